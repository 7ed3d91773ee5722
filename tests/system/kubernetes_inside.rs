//! An executor that runs where it is meant to: in a pod, with nothing but what a pod has. Its binary and the libraries that it is linked with
//! come from this machine, since the test's only image is a busybox without any.

use std::path::Path;

use anyhow::{Context as _, Result, ensure};
use octavius_tests::{Kubernetes, World, eventually, executor_rules};
use serde_json::{Value, json};

/// Folders of this machine in which a program's libraries are.
const LIBRARIES: [&str; 5] = ["/lib", "/lib64", "/usr/lib", "/usr/lib64", "/usr/local/lib"];

/// A pod that runs the executor, on this machine's own network: the cluster's has no way to services.
fn pod(world: &World, cluster: &Kubernetes) -> Result<Value> {
    let url = cluster.url()?;
    let port = url.rsplit(':').next().context("no port")?;
    let binary = world.command(["version"]).get_program().to_owned();
    let binary = std::fs::canonicalize(binary)?.display().to_string();
    let libraries = LIBRARIES.iter().filter(|folder| Path::new(folder).is_dir()).map(|folder| (*folder).to_owned());
    let (mut volumes, mut mounts) = (Vec::new(), Vec::new());
    for (number, path) in libraries.chain([binary.clone(), world.path("inside").display().to_string()]).enumerate() {
        let (name, is_data) = (format!("host-{number}"), path.ends_with("inside"));
        volumes.push(json!({"name": name, "hostPath": {"path": path}}));
        mounts.push(json!({"name": name, "mountPath": path, "readOnly": !is_data}));
    }
    let config = world.path("inside/executor_config.json").display().to_string();
    let container = json!({
        "name": "executor",
        "image": Kubernetes::BUSYBOX,
        "command": [binary, "executor", "start", "--config", config],
        "env": [
            {"name": "HOME", "value": world.path("inside").display().to_string()},
            // As the kubelet sets them, but for the address: there is no way to that of the service.
            {"name": "KUBERNETES_SERVICE_HOST", "value": "127.0.0.1"},
            {"name": "KUBERNETES_SERVICE_PORT", "value": port},
        ],
        "volumeMounts": mounts,
    });
    Ok(json!({
        "metadata": {"name": "executor"},
        "spec": {
            "serviceAccountName": "executor",
            "hostNetwork": true,
            "restartPolicy": "Never",
            "terminationGracePeriodSeconds": 5,
            "containers": [container],
            "volumes": volumes,
        },
    }))
}

#[test]
fn an_executor_in_a_pod_uses_the_pods_account_and_namespace() -> Result<()> {
    let cluster = Kubernetes::shared()?;
    let namespace = cluster.namespace()?;
    namespace.account("executor", &executor_rules()?)?;
    let world = World::on_etcd()?;
    world.write("catalog/octavius.yaml", "catalog: team\n")?;
    let job = format!("name: hello\nimage_name: {}\ncommand: [sh, -c, 'echo hello; sleep 1']\n", Kubernetes::BUSYBOX);
    world.write("catalog/hello.yaml", &job)?;
    let (_controller, port) = world.controller("store", 0)?;
    let admin = world.admin(port)?;
    admin.run(&["apply", "catalog"])?.expect(0)?;

    // Nothing of the cluster is in it: neither an address, nor a token, nor a namespace.
    let config = json!({
        "id": "inside",
        "data_dir": "data",
        "runner": "kubernetes",
        "cp_host": format!("127.0.0.1:{port}"),
        "access_token": admin.registration()?,
        "capacity": 2,
    });
    let path = world.write("inside/executor_config.json", &config.to_string())?;
    std::fs::set_permissions(&path, std::os::unix::fs::PermissionsExt::from_mode(0o600))?;
    cluster.post(&namespace.path("pods"), &pod(&world, &cluster)?)?;
    eventually("it has registered and has a session", || {
        let pod = cluster.get(&namespace.path("pods/executor"))?;
        let log = cluster.text(&namespace.path("pods/executor/log")).unwrap_or_default();
        ensure!(log.contains("session stands"), "{}\n{log}", pod["status"]);
        Ok(())
    })?;
    let id = admin.execute("hello", &[])?;
    let status = admin.run(&["status", &id, "--wait", "-o", "json"])?.expect(0)?.json()?;
    assert_eq!((&status["state"], &status["executor"]), (&"succeeded".into(), &"inside".into()));
    assert_eq!(status["attempts"][0]["runs_as"], format!("job {}/octavius-{id}-1", namespace.name()));
    assert_eq!(admin.run(&["getlogs", &id])?.expect(0)?.stdout, "hello\n");
    // It was the pod's own token, and the API server says whose that is.
    let calls = cluster.audit(&format!("system:serviceaccount:{}:executor", namespace.name()))?;
    let with_pod = |event: &&Value| event["user"]["extra"]["authentication.kubernetes.io/pod-name"] == json!(["executor"]);
    let created = calls.iter().find(|event| event["verb"] == "create" && event["objectRef"]["resource"] == "jobs");
    ensure!(created.as_ref().is_some_and(with_pod), "{created:?}");
    Ok(())
}
