//! An executor of a cluster that is killed wherever it may hurt: the next one goes on, with its disk and without, and each execution has run
//! once. The API server's own watch is the ledger: it tells of every pod that there ever was.

use std::collections::BTreeSet;

use anyhow::{Context as _, Result, ensure};
use octavius_failpoint::{FIRED, VARIABLE};
use octavius_tests::{Client, Kubernetes, KubernetesExecutor, Namespace, Watch, World, eventually};
use serde_json::json;

/// Up to the start of the pod.
pub(crate) const STARTS: [&str; 5] =
    ["executor.assigned", "executor.job-created", "executor.starting", "executor.starting.told", "executor.started"];

/// From its end on.
pub(crate) const ENDS: [&str; 4] = ["executor.over", "executor.log-sent", "executor.reported", "executor.job-deleted"];

/// What a run prints.
fn lines(id: &str) -> String {
    (1..=100).map(|number| format!("line {number} of {id}\n")).collect()
}

/// Distinct objects of an execution that a watch has told of.
pub(crate) fn seen(watch: &Watch, id: &str) -> Result<usize> {
    let changes = watch.so_far()?.into_iter().map(|change| change.object["metadata"].clone());
    let of_this = changes.filter(|metadata| metadata["labels"]["octavius/id"] == id);
    Ok(of_this.map(|metadata| metadata["uid"].to_string()).collect::<BTreeSet<_>>().len())
}

/// An executor, its cluster and who calls it.
struct Place<'p> {
    world: &'p World,
    cluster: &'p Kubernetes,
    namespace: &'p Namespace<'p>,
    admin: Client<'p>,
    executor: KubernetesExecutor<'p>,
}

impl Place<'_> {
    /// Takes away what the executor has on disk, but for its token: that comes from a Secret where executors have no disk.
    fn forget(&self) -> Result<()> {
        for entry in std::fs::read_dir(self.world.path("e1"))? {
            let path = entry?.path();
            if path.is_dir() {
                std::fs::remove_dir_all(path)?;
            }
        }
        Ok(())
    }

    fn killed_at(&self, point: &str, keeps_disk: bool) -> Result<()> {
        let jobs = self.cluster.watch(&self.namespace.batch("jobs"))?;
        let pods = self.cluster.watch(&self.namespace.path("pods"))?;
        let mut armed = self.executor.start(&[(VARIABLE, &format!("{point}=kill"))])?;
        let id = self.admin.execute("lines", &[])?;
        eventually("it is killed", || {
            ensure!(!armed.is_running()?, "it runs: {}", armed.said());
            Ok(())
        })?;
        ensure!(armed.said().contains(&format!("{FIRED}{point} ")), "it ended otherwise: {}", armed.said());
        if !keeps_disk {
            self.forget()?;
        }
        let next = self.executor.start(&[])?;
        let status = self.admin.run(&["status", &id, "--wait", "-o", "json"])?;
        let status = status.expect(0).with_context(|| next.said())?.json()?;
        ensure!(status["state"] == "succeeded", "{status}");
        let log = self.admin.run(&["getlogs", &id])?.expect(0)?.stdout;
        ensure!(log == lines(&id), "the log is not whole: {log:?}");
        eventually("its Job is gone", || {
            let left = self.cluster.get(&self.namespace.batch("jobs"))?;
            ensure!(left["items"] == json!([]), "{}", left["items"]);
            Ok(())
        })?;
        let (made, ran) = (seen(&jobs, &id)?, seen(&pods, &id)?);
        ensure!((made, ran) == (1, 1), "{made} Jobs and {ran} pods");
        next.kill()
    }
}

fn sweep(points: &[&str], keeps_disk: bool) -> Result<()> {
    let cluster = Kubernetes::shared()?;
    let namespace = cluster.namespace()?;
    // A claim that no start follows is given out again after 3 s.
    let world = World::on_etcd()?.faster(20).variable("OCTAVIUS_LOG_LEVEL", "debug");
    world.write("catalog/octavius.yaml", "catalog: team\n")?;
    // It does not end with its last line, which containerd may lose then.
    let script = "for i in $(seq 100); do echo line $i of $OCTAVIUS_EXECUTION_ID; done; sleep 1";
    let job = format!("name: lines\nimage_name: {}\ncommand: [sh, -c, '{script}']\n", Kubernetes::BUSYBOX);
    world.write("catalog/lines.yaml", &job)?;
    let (_controller, port) = world.controller("store", 0)?;
    let admin = world.admin(port)?;
    admin.run(&["apply", "catalog"])?.expect(0)?;
    let settings = json!({"cp_host": format!("127.0.0.1:{port}"), "access_token": admin.registration()?, "capacity": 4});
    let executor = KubernetesExecutor::new(&world, "e1", &namespace, &settings)?;
    let place = Place { world: &world, cluster: &cluster, namespace: &namespace, admin, executor };
    for point in points {
        place.killed_at(point, keeps_disk).with_context(|| format!("{point}, with its disk: {keeps_disk}"))?;
    }
    Ok(())
}

#[test]
fn an_executor_killed_about_a_start_goes_on() -> Result<()> {
    sweep(&STARTS, true)
}

#[test]
fn an_executor_killed_about_a_start_goes_on_without_its_disk() -> Result<()> {
    sweep(&STARTS, false)
}

#[test]
fn an_executor_killed_about_an_end_goes_on() -> Result<()> {
    sweep(&ENDS, true)
}

#[test]
fn an_executor_killed_about_an_end_goes_on_without_its_disk() -> Result<()> {
    sweep(&ENDS, false)
}

/// The second sees the first's Jobs, and would give up at once what the first waits for, if it took them for its own.
#[test]
fn a_second_executor_with_the_same_id_is_refused_and_touches_nothing() -> Result<()> {
    let cluster = Kubernetes::shared()?;
    let namespace = cluster.namespace()?;
    let world = World::on_etcd()?;
    world.write("catalog/octavius.yaml", "catalog: team\n")?;
    let image = Kubernetes::BUSYBOX;
    for (job, more) in [("runs", ""), ("waits", "resources: {requests: {cpu: \"1000\"}}\n")] {
        let text = format!("name: {job}\nimage_name: {image}\ncommand: [sh, -c, 'echo begun; sleep 600']\n{more}");
        world.write(&format!("catalog/{job}.yaml"), &text)?;
    }
    let (_controller, port) = world.controller("store", 0)?;
    let admin = world.admin(port)?;
    admin.run(&["apply", "catalog"])?.expect(0)?;
    let host = format!("127.0.0.1:{port}");
    let settings = json!({"cp_host": host, "access_token": admin.registration()?, "capacity": 4});
    let first = KubernetesExecutor::new(&world, "e1", &namespace, &settings)?;
    let mut running = first.start(&[])?;
    let (runs, waits) = (admin.execute("runs", &[])?, admin.execute("waits", &[])?);
    eventually("one runs, and the other waits for a node", || {
        for id in [&runs, &waits] {
            let status = admin.status(id)?;
            ensure!(status["state"] == "running", "{status}");
        }
        let log = admin.run(&["getlogs", &runs])?.expect(0)?.stdout;
        ensure!(log == "begun\n", "{log}");
        Ok(())
    })?;

    // With the first one's token, as replicas of one Deployment have it.
    let settings = json!({"id": "e1", "cp_host": host, "capacity": 4, "wait_for_resource_poll_count": 1});
    let second = KubernetesExecutor::new(&world, "second", &namespace, &settings)?;
    world.write("second/lock", "")?;
    std::fs::copy(world.path("e1/credential.json"), world.path("second/credential.json"))?;
    let (config, kubeconfig) = (second.config.display().to_string(), second.kubeconfig.display().to_string());
    let refused = world.run_with(&["executor", "start", "--config", &config], &[("KUBECONFIG", &kubeconfig)])?;
    ensure!(refused.code != 0 && refused.stderr.contains("another executor with the id `e1` has a session"), "{refused:?}");
    let asked = cluster.audit(&second.user)?;
    let verbs: BTreeSet<_> = asked.iter().filter_map(|event| event["verb"].as_str()).collect();
    ensure!(verbs.contains("list") && verbs.is_subset(&["list", "watch", "get"].into()), "{verbs:?}");

    ensure!(running.is_running()?, "the first has gone: {}", running.said());
    for id in [&runs, &waits] {
        let status = admin.status(id)?;
        ensure!(status["state"] == "running", "{status}");
        cluster.get(&namespace.batch(&format!("jobs/octavius-{id}-1")))?;
        admin.run(&["cancel", id, "--yes"])?.expect(0)?;
        admin.run(&["status", id, "--wait"])?.expect(5)?;
    }
    Ok(())
}
