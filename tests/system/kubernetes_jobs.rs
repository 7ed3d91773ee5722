//! The main job on a real Kubernetes, over etcd: from a file in a catalogue to a Job in a namespace and its log, with the rights that
//! `deploy/executor-role.yaml` gives and no others.

use std::path::Path;

use anyhow::{Context as _, Result, ensure};
use octavius_tests::{Client, Daemon, Kubernetes, KubernetesExecutor, Namespace, World, eventually, executor_rules};
use serde_json::{Value, json};

/// A file of this repository.
fn repository(path: &str) -> Result<String> {
    Ok(std::fs::read_to_string(Path::new(env!("CARGO_MANIFEST_DIR")).join("..").join(path))?)
}

/// The repository's own job file, as the first Octavius had them, with an image that the cluster has.
fn hello_friend() -> Result<String> {
    let mut job: Value = serde_json::from_str(&repository("catalog/hello-friend.json")?)?;
    job["image_name"] = Kubernetes::BUSYBOX.into();
    Ok(job.to_string())
}

/// Starts an executor for a namespace, with the rights that it needs there.
fn executor(world: &World, admin: &Client<'_>, port: u16, id: &str, namespace: &Namespace<'_>, vpc: &str) -> Result<Daemon> {
    let settings = json!({
        "cp_host": format!("127.0.0.1:{port}"),
        "access_token": admin.registration()?,
        "labels": {"vpc": vpc},
        "capacity": 4,
    });
    KubernetesExecutor::new(world, id, namespace, &settings)?.start(&[])
}

/// Waits until the namespace has no Job any more: what has ended is not left lying about.
fn no_jobs(cluster: &Kubernetes, namespace: &Namespace<'_>) -> Result<()> {
    eventually("no Jobs in the namespace", || {
        let jobs = cluster.get(&namespace.batch("jobs"))?;
        ensure!(jobs["items"] == json!([]), "{}", jobs["items"]);
        Ok(())
    })
}

#[test]
fn a_job_of_the_catalogue_runs_in_a_cluster_and_is_seen_there() -> Result<()> {
    let cluster = Kubernetes::shared()?;
    let namespace = cluster.namespace()?;
    let world = World::on_etcd()?;
    world.write("catalog/octavius.yaml", "catalog: team\n")?;
    world.write("catalog/hello-friend.json", &hello_friend()?)?;
    let image = Kubernetes::BUSYBOX;
    let wait = format!("name: wait\nimage_name: {image}\ncommand: [sh, -c, 'echo waiting; sleep 600']\n");
    world.write("catalog/wait.yaml", &wait)?;
    let (_controller, port) = world.controller("store", 0)?;
    let admin = world.admin(port)?;
    let _executor = executor(&world, &admin, port, "cluster-1", &namespace, "payments")?;
    admin.run(&["apply", "catalog"])?.expect(0)?;

    let followed = admin.run(&["execute", "hello-friend", "--arg", "data=Ann", "--follow"])?.expect(0)?;
    let log = "step 1 of 3\nstep 2 of 3\nstep 3 of 3\nHello, Ann!\n";
    assert_eq!(followed.stdout, log);
    let status = admin.status("@latest")?;
    let id = status["id"].as_str().context("no id")?;
    assert_eq!(admin.run(&["getlogs", id])?.expect(0)?.stdout, log);
    let attempt = &status["attempts"][0];
    let job = format!("octavius-{id}-1");
    assert_eq!((&status["state"], &status["executor"]), (&"succeeded".into(), &"cluster-1".into()));
    assert_eq!(attempt["runs_as"], format!("job {}/{job}", namespace.name()));
    assert!(attempt["image"].as_str().is_some_and(|image| image.contains("sha256:")), "the image by its digest: {attempt}");
    no_jobs(&cluster, &namespace)?;

    // What runs is where `status` says that it is, under the name that it says.
    let parent = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01";
    let output = admin.command(&["execute", "wait"]).env("TRACEPARENT", parent).output()?;
    let id = String::from_utf8(output.stdout)?.trim().to_owned();
    let name = format!("octavius-{id}-1");
    let line = format!("kubectl -n {} get job {name}\n", namespace.name());
    eventually("status says where it runs, and what", || {
        let text = admin.run(&["status", &id])?.expect(0)?.stdout;
        ensure!(text.contains(&line) && text.contains("sha256:"), "{text}");
        Ok(())
    })?;
    let job = cluster.get(&namespace.batch(&format!("jobs/{name}")))?;
    // On the Job and on its pods alike: where it comes from.
    for annotations in [&job["metadata"]["annotations"], &job["spec"]["template"]["metadata"]["annotations"]] {
        assert_eq!(annotations["team"], "support");
        assert_eq!((&annotations["octavius/catalog"], &annotations["octavius/revision"]), (&"team".into(), &"1".into()));
        assert!(annotations["octavius/file"].as_str().is_some_and(|file| file.ends_with("wait.yaml:1")), "{annotations}");
        assert_eq!(annotations["octavius/commit"], Value::Null, "it was applied from outside a repository");
    }
    // And which trace it is part of, which its container is told as well.
    assert_eq!(job["metadata"]["annotations"]["octavius/trace-id"], admin.status(&id)?["trace_id"]);
    assert_eq!(job["metadata"]["annotations"]["octavius/trace-id"], parent[3..35]);
    let variables = job["spec"]["template"]["spec"]["containers"][0]["env"].as_array().context("no variables")?;
    assert!(variables.contains(&json!({"name": "TRACEPARENT", "value": parent})), "{variables:?}");
    let labels = &job["metadata"]["labels"];
    assert_eq!((&labels["octavius/job"], &labels["octavius/user"]), (&"wait".into(), &"admin".into()));
    assert_eq!(job["spec"]["template"]["spec"]["activeDeadlineSeconds"], 300);
    admin.run(&["cancel", &id, "--yes"])?.expect(0)?;
    admin.run(&["status", &id, "--wait"])?.expect(5)?;
    no_jobs(&cluster, &namespace)
}

#[test]
fn each_executor_runs_in_its_namespace_what_its_labels_ask_for() -> Result<()> {
    let cluster = Kubernetes::shared()?;
    let (here, there) = (cluster.namespace()?, cluster.namespace()?);
    let world = World::on_etcd()?;
    world.write("catalog/octavius.yaml", "catalog: team\n")?;
    for vpc in ["payments", "web"] {
        let image = Kubernetes::BUSYBOX;
        let job = format!("name: in-{vpc}\nimage_name: {image}\ncommand: [sh, -c, 'echo in {vpc}']\nexecutor: {{vpc: {vpc}}}\n");
        world.write(&format!("catalog/in-{vpc}.yaml"), &job)?;
    }
    let (_controller, port) = world.controller("store", 0)?;
    let admin = world.admin(port)?;
    admin.run(&["apply", "catalog"])?.expect(0)?;
    let _executors =
        [executor(&world, &admin, port, "pay-1", &here, "payments")?, executor(&world, &admin, port, "web-1", &there, "web")?];
    let places = [("payments", "pay-1", &here), ("web", "web-1", &there)];
    let mut ids = Vec::new();
    for (vpc, executor, namespace) in places.into_iter().chain(places) {
        ids.push((admin.execute(&format!("in-{vpc}"), &[])?, vpc, executor, namespace));
    }
    for (id, vpc, executor, namespace) in ids {
        let status = admin.run(&["status", &id, "--wait", "-o", "json"])?.expect(0)?.json()?;
        assert_eq!(status["executor"], executor);
        assert_eq!(status["attempts"][0]["runs_as"], format!("job {}/octavius-{id}-1", namespace.name()));
        assert_eq!(admin.run(&["getlogs", &id])?.expect(0)?.stdout, format!("in {vpc}\n"));
    }
    no_jobs(&cluster, &here)?;
    no_jobs(&cluster, &there)
}

/// That it is deleted after the delay is tested with the runner, where the delay may be shorter than a minute.
#[test]
fn a_job_that_no_execution_knows_is_told_of() -> Result<()> {
    let cluster = Kubernetes::shared()?;
    let namespace = cluster.namespace()?;
    let world = World::new()?;
    let (_controller, port) = world.controller("store", 0)?;
    let settings = json!({
        "cp_host": format!("127.0.0.1:{port}"),
        "access_token": world.admin(port)?.registration()?,
        "orphan_delay": "1m",
    });
    let container = json!({"name": "job", "image": Kubernetes::BUSYBOX, "command": ["true"]});
    let job = json!({
        "metadata": {"name": "octavius-orphan", "labels": {"octavius/executor": "cluster-1"}},
        "spec": {"suspend": true, "template": {"spec": {"restartPolicy": "Never", "containers": [container]}}},
    });
    cluster.post(&namespace.batch("jobs"), &job)?;
    let executor = KubernetesExecutor::new(&world, "cluster-1", &namespace, &settings)?.start(&[])?;
    eventually("the executor tells of it", || {
        let said = executor.said();
        let told = |line: &str| line.contains("octavius-orphan") && line.contains("no execution is for");
        ensure!(said.lines().any(told), "{said}");
        Ok(())
    })?;
    let admin = world.admin(port)?;
    let described = eventually("the controller tells of it", || {
        let described = admin.run(&["executors", "describe", "cluster-1", "-o", "json"])?.expect(0)?.json()?;
        ensure!(described["orphan_count"] == 1, "{described}");
        Ok(described)
    })?;
    let orphan = &described["orphans"][0];
    assert_eq!((&orphan["name"], &orphan["namespace"]), (&"octavius-orphan".into(), &namespace.name().into()));
    assert!(orphan["since"].as_str() < orphan["removed_at"].as_str(), "{orphan}");
    let text = admin.run(&["executors", "describe", "cluster-1"])?.expect(0)?.stdout;
    let line = text.lines().find(|line| line.starts_with("orphans ")).context(text.clone())?;
    assert!(line.contains(&format!("Job {}/octavius-orphan", namespace.name())), "{text}");
    cluster.get(&namespace.batch("jobs/octavius-orphan"))?;
    Ok(())
}

#[test]
fn a_check_says_which_rights_are_missing() -> Result<()> {
    let cluster = Kubernetes::shared()?;
    let namespace = cluster.namespace()?;
    let world = World::new()?;
    let config = KubernetesExecutor::configure(&world, "e1", &namespace, &json!({}))?.display().to_string();
    let check = |kubeconfig: &Path, output: &str| {
        let kubeconfig = kubeconfig.display().to_string();
        world.run_with(&["executor", "check", "--config", &config, "-o", output], &[("KUBECONFIG", &kubeconfig)])
    };

    let allowed = namespace.account("allowed", &executor_rules()?)?;
    let found = check(&allowed, "json")?.expect(0)?.json()?;
    assert_eq!((&found["runner"], &found["ok"]), (&"kubernetes".into(), &true.into()));
    let permissions = found["permissions"].as_array().context("no permissions")?;
    for permission in permissions {
        assert_eq!(permission["namespace"], namespace.name());
        // The role leaves out what can be done without: other than by name, it reads no secrets.
        assert!(permission["allowed"] == true || permission["required"] == false, "{permission}");
    }
    assert!(permissions.iter().any(|permission| permission["required"] == false && permission["allowed"] == false));

    let pods = json!({"apiGroups": [""], "resources": ["pods", "pods/log"], "verbs": ["get", "list", "watch"]});
    let refused = namespace.account("refused", &json!([pods]))?;
    let found = check(&refused, "text")?.expect(1)?;
    let row = |line: &&str| line.split_whitespace().take(5).eq([namespace.name(), "create", "jobs.batch", "required", "no"]);
    assert!(found.stdout.lines().any(|line| row(&line)), "{}", found.stdout);
    let told = format!("6 in namespace {}", namespace.name());
    assert!(found.stderr.contains(&told) && found.stderr.contains("deploy/README.md"), "{}", found.stderr);

    let nowhere = check(&world.path("nowhere"), "text")?.expect(2)?;
    assert!(nowhere.stderr.contains("the kubernetes runner cannot be used"), "{}", nowhere.stderr);
    Ok(())
}
