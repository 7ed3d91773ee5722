//! The Kubernetes of the tests itself: what other tests take for granted of it.

use anyhow::{Context as _, Result, ensure};
use octavius_tests::{Component, Kubernetes, Namespace, eventually};
use serde_json::{Value, json};

fn job(name: &str, script: &str, suspend: bool) -> Value {
    let container = json!({"name": "main", "image": Kubernetes::BUSYBOX, "command": ["sh", "-c", script]});
    let pod = json!({"spec": {"restartPolicy": "Never", "containers": [container]}});
    json!({"metadata": {"name": name}, "spec": {"suspend": suspend, "backoffLimit": 0, "template": pod}})
}

/// Waits until the Job has a condition.
fn until(cluster: &Kubernetes, namespace: &Namespace<'_>, name: &str, condition: &str) -> Result<Value> {
    eventually("the Job gets its condition", || {
        let job = cluster.get(&namespace.batch(&format!("jobs/{name}")))?;
        let conditions = job["status"]["conditions"].as_array().context("no conditions")?;
        ensure!(conditions.iter().any(|seen| seen["type"] == condition && seen["status"] == "True"), "{conditions:?}");
        Ok(job)
    })
}

#[test]
fn a_job_completes_and_another_fails() -> Result<()> {
    let cluster = Kubernetes::shared()?;
    let namespace = cluster.namespace()?;
    cluster.post(&namespace.batch("jobs"), &job("well", "true", false))?;
    cluster.post(&namespace.batch("jobs"), &job("ill", "exit 3", false))?;
    let well = until(&cluster, &namespace, "well", "Complete")?;
    assert_eq!(well["status"]["succeeded"], 1);
    let ill = until(&cluster, &namespace, "ill", "Failed")?;
    assert_eq!(ill["status"]["failed"], 1);
    Ok(())
}

#[test]
fn what_a_pod_prints_can_be_read() -> Result<()> {
    let cluster = Kubernetes::shared()?;
    let namespace = cluster.namespace()?;
    cluster.post(&namespace.batch("jobs"), &job("talk", "echo one; echo two", false))?;
    until(&cluster, &namespace, "talk", "Complete")?;
    let pods = cluster.get(&namespace.path("pods?labelSelector=job-name%3Dtalk"))?;
    let pod = pods["items"][0]["metadata"]["name"].as_str().context("no pod")?;
    assert_eq!(cluster.text(&namespace.path(&format!("pods/{pod}/log")))?, "one\ntwo\n");
    Ok(())
}

#[test]
fn a_suspended_job_has_no_pod_until_it_is_resumed() -> Result<()> {
    let cluster = Kubernetes::shared()?;
    let namespace = cluster.namespace()?;
    cluster.post(&namespace.batch("jobs"), &job("asleep", "true", true))?;
    // The condition says that the controller has seen the Job and decided.
    until(&cluster, &namespace, "asleep", "Suspended")?;
    let pods = cluster.get(&namespace.path("pods"))?;
    assert_eq!(pods["items"], json!([]));
    cluster.patch(&namespace.batch("jobs/asleep"), &json!({"spec": {"suspend": false}}))?;
    until(&cluster, &namespace, "asleep", "Complete")?;
    Ok(())
}

#[test]
fn an_account_may_do_what_its_role_says_and_nothing_else() -> Result<()> {
    let cluster = Kubernetes::shared()?;
    let namespace = cluster.namespace()?;
    let kubeconfig = namespace.account("reader", &json!([{"apiGroups": ["batch"], "resources": ["jobs"], "verbs": ["list"]}]))?;
    let admin = std::fs::read_to_string(namespace.kubeconfig())?;
    let reader = std::fs::read_to_string(kubeconfig)?;
    assert!(reader.contains(&format!("namespace: {},", namespace.name())), "{reader}");
    assert_ne!(admin, reader);
    let user = format!("system:serviceaccount:{}:reader", namespace.name());
    for (verb, group, resource, allowed) in
        [("list", "batch", "jobs", true), ("create", "batch", "jobs", false), ("list", "", "pods", false)]
    {
        let attributes = json!({"namespace": namespace.name(), "verb": verb, "group": group, "resource": resource});
        let review = json!({"spec": {"user": user, "resourceAttributes": attributes}});
        let answer = cluster.post("/apis/authorization.k8s.io/v1/subjectaccessreviews", &review)?;
        assert_eq!(answer["status"]["allowed"], allowed, "{verb} {resource}");
    }
    Ok(())
}

#[test]
fn a_paused_api_server_does_not_answer_and_then_does() -> Result<()> {
    let cluster = Kubernetes::alone()?;
    let paused = cluster.pause(Component::ApiServer)?;
    let error = cluster.get("/api/v1/nodes").unwrap_err();
    assert!(error.to_string().contains("timed out"), "{error:#}");
    drop(paused);
    cluster.until_ready()
}

#[test]
fn what_is_killed_is_started_again() -> Result<()> {
    let cluster = Kubernetes::alone()?;
    let namespace = cluster.namespace()?;
    for component in [Component::ApiServer, Component::Kubelet, Component::ControllerManager] {
        cluster.kill(component)?;
    }
    cluster.until_ready()?;
    cluster.post(&namespace.batch("jobs"), &job("after", "true", false))?;
    until(&cluster, &namespace, "after", "Complete")?;
    Ok(())
}

#[test]
fn requests_are_counted() -> Result<()> {
    let cluster = Kubernetes::alone()?;
    let labels = [("resource", "configmaps"), ("verb", "POST"), ("code", "201")];
    let namespace = cluster.namespace()?;
    // Each namespace gets a configuration map from the controller-manager, before it can be said when.
    let before = eventually("the certificate's configuration map is there", || {
        cluster.get(&namespace.path("configmaps/kube-root-ca.crt"))?;
        cluster.requests(&labels)
    })?;
    for number in 0..3 {
        cluster.post(&namespace.path("configmaps"), &json!({"metadata": {"name": format!("map-{number}")}}))?;
    }
    assert_eq!(cluster.requests(&labels)? - before, 3);
    Ok(())
}

#[test]
fn a_cluster_runs_beside_another_and_leaves_nothing_behind() -> Result<()> {
    let other = Kubernetes::shared()?;
    let cluster = Kubernetes::start()?;
    assert_ne!(cluster.url()?, other.url()?);
    // It still runs when its cluster is stopped: it must go too.
    cluster.post("/apis/batch/v1/namespaces/default/jobs", &job("endless", "sleep 1000000", false))?;
    eventually("the pod runs", || {
        let job = cluster.get("/apis/batch/v1/namespaces/default/jobs/endless")?;
        ensure!(job["status"]["ready"] == 1, "{}", job["status"]);
        Ok(())
    })?;
    let pids = Component::ALL.map(|component| cluster.pid(component));
    // `down` fails, and the test with it, where it leaves a process, a mount, a cgroup or a route.
    drop(cluster);
    for pid in pids {
        let process = std::path::Path::new("/proc").join(pid?.to_string());
        assert!(!process.exists(), "{} still runs", process.display());
    }
    other.until_ready()
}
