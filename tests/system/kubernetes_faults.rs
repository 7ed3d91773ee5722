//! What becomes of work whose executor fails, with the kubernetes runner: what `executor_faults.rs` and `clocks.rs` show of the process runner.

use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, ensure};
use octavius_failpoint::{FIRED, VARIABLE};
use octavius_tests::{Client, Daemon, Direction, Kubernetes, KubernetesExecutor, Mode, Namespace, Proxy, World, eventually};
use rustix::process::Signal;
use serde_json::{Value, json};

use crate::clocks::wrong_clock;
use crate::kubernetes_kills::seen;

/// As in `executor_faults.rs`: 20 s, 4 minutes and 2 minutes at a twentieth.
const MOMENT: Duration = Duration::from_secs(1);
const FOUR_MINUTES: Duration = Duration::from_secs(12);
const TWO_MINUTES: Duration = Duration::from_secs(6);

/// A controller with jobs that sleep for a while, and an executor that reaches it through a proxy.
struct Place<'p> {
    namespace: &'p Namespace<'p>,
    admin: Client<'p>,
    proxy: Proxy,
    executor: KubernetesExecutor<'p>,
    _controller: Daemon,
}

impl<'p> Place<'p> {
    fn new(world: &'p World, namespace: &'p Namespace<'p>, capacity: u32) -> Result<Self> {
        world.write("catalog/octavius.yaml", "catalog: team\n")?;
        for seconds in [1, 5] {
            let script = format!("echo begun; sleep {seconds}; echo done");
            let image = Kubernetes::BUSYBOX;
            let job = format!("name: sleeps-{seconds}\nimage_name: {image}\ncommand: [sh, -c, '{script}; sleep 1']\n");
            world.write(&format!("catalog/sleeps-{seconds}.yaml"), &job)?;
        }
        let (controller, port) = world.controller("store", 0)?;
        let admin = world.admin(port)?;
        admin.run(&["apply", "catalog"])?.expect(0)?;
        let proxy = Proxy::before(port)?;
        let host = proxy.address().to_string();
        let settings = json!({"cp_host": host, "access_token": admin.registration()?, "capacity": capacity});
        let executor = KubernetesExecutor::new(world, "e1", namespace, &settings)?;
        Ok(Self { namespace, admin, proxy, executor, _controller: controller })
    }

    fn reaches(&self, id: &str, state: &str) -> Result<Value> {
        eventually(state, || {
            let status = self.admin.status(id)?;
            ensure!(status["state"] == state, "{status}");
            Ok(status)
        })
    }

    /// Waits until the job has printed its first line, so that it surely runs.
    fn prints(&self, id: &str) -> Result<()> {
        eventually("it prints", || {
            let log = self.admin.run(&["getlogs", id])?.expect(0)?.stdout;
            ensure!(log.starts_with("begun\n"), "{log:?}");
            Ok(())
        })
    }

    /// Waits for a good end of the only attempt that started, with a whole log, and no Job that is left.
    fn succeeds(&self, id: &str) -> Result<Value> {
        let status = self.admin.run(&["status", id, "--wait", "-o", "json"])?.expect(0)?.json()?;
        let attempts = status["attempts"].as_array().context("no attempts")?;
        let started = attempts.iter().filter(|attempt| !attempt["starting_at"].is_null()).count();
        ensure!(status["state"] == "succeeded" && started == 1, "{status}");
        let log = self.admin.run(&["getlogs", id])?.expect(0)?.stdout;
        ensure!(log == "begun\ndone\n", "the log is not whole: {log:?}");
        Ok(status)
    }

    fn nothing_is_left(&self, cluster: &Kubernetes) -> Result<()> {
        eventually("no Job is left", || {
            let left = cluster.get(&self.namespace.batch("jobs"))?;
            ensure!(left["items"] == json!([]), "{}", left["items"]);
            Ok(())
        })
    }
}

#[test]
fn what_waits_when_its_executor_is_killed_waits_on_as_if_nothing_had_been() -> Result<()> {
    let (cluster, world) = (Kubernetes::shared()?, World::on_etcd()?.faster(20));
    let namespace = cluster.namespace()?;
    let place = Place::new(&world, &namespace, 1)?;
    let executor = place.executor.start(&[])?;
    let runs = place.admin.execute("sleeps-5", &[])?;
    place.prints(&runs)?;
    let waits = place.admin.execute("sleeps-1", &[])?;
    executor.kill()?;
    let status = place.admin.status(&waits)?;
    ensure!(status["state"] == "queued" && status["attempts"] == json!([]), "{status}");
    let _executor = place.executor.start(&[])?;
    for id in [&runs, &waits] {
        let status = place.succeeds(id)?;
        ensure!(status["attempts"].as_array().is_some_and(|attempts| attempts.len() == 1), "{status}");
    }
    place.nothing_is_left(&cluster)
}

/// It was given the work and has made its Job, suspended; when it wakes, the claim is not worth anything any more.
#[test]
fn an_executor_that_sleeps_between_claim_and_start_starts_nothing_when_it_wakes() -> Result<()> {
    let (cluster, world) = (Kubernetes::shared()?, World::on_etcd()?.faster(20));
    let namespace = cluster.namespace()?;
    let place = Place::new(&world, &namespace, 4)?;
    let pods = cluster.watch(&namespace.path("pods"))?;
    let executor = place.executor.start(&[(VARIABLE, "executor.starting=stop")])?;
    let id = place.admin.execute("sleeps-1", &[])?;
    eventually("it sleeps", || {
        ensure!(executor.said().contains(FIRED), "not yet");
        Ok(())
    })?;
    let asleep = Instant::now();
    place.reaches(&id, "queued")?;
    std::thread::sleep(TWO_MINUTES.saturating_sub(asleep.elapsed())); // the rest of the fault
    executor.signal(Signal::CONT)?;
    let status = place.succeeds(&id)?;
    ensure!(status["attempts"].as_array().is_some_and(|attempts| attempts.len() == 2), "{status}");
    place.nothing_is_left(&cluster)?;
    let ran = seen(&pods, &id)?;
    ensure!(ran == 1, "{ran} pods");
    Ok(())
}

#[test]
fn a_silent_network_costs_nothing_if_it_is_short_and_a_loss_if_it_is_long() -> Result<()> {
    let (cluster, world) = (Kubernetes::shared()?, World::on_etcd()?.faster(20));
    let namespace = cluster.namespace()?;
    let place = Place::new(&world, &namespace, 4)?;
    let _executor = place.executor.start(&[])?;
    let id = place.admin.execute("sleeps-5", &[])?;
    place.prints(&id)?;
    place.proxy.set(Mode::Blackhole(Direction::Both));
    std::thread::sleep(MOMENT); // the fault itself
    place.proxy.set(Mode::Pass);
    let status = place.succeeds(&id)?;
    ensure!(status["attempts"].as_array().is_some_and(|attempts| attempts.len() == 1), "{status}");

    let id = place.admin.execute("sleeps-5", &[])?;
    place.prints(&id)?;
    place.proxy.set(Mode::Blackhole(Direction::Both));
    let silent = Instant::now();
    place.reaches(&id, "lost")?;
    std::thread::sleep(FOUR_MINUTES.saturating_sub(silent.elapsed())); // the rest of the fault
    place.proxy.set(Mode::Pass);
    eventually("its late end is told", || {
        let status = place.admin.status(&id)?;
        let attempts = status["attempts"].as_array().context("no attempts")?;
        ensure!(status["state"] == "lost" && attempts.len() == 1, "{status}");
        ensure!(attempts[0]["late"]["state"] == "succeeded", "{status}");
        Ok(())
    })?;
    let log = place.admin.run(&["getlogs", &id])?.expect(0)?.stdout;
    ensure!(log == "begun\ndone\n", "the log is not whole: {log:?}");
    place.nothing_is_left(&cluster)
}

#[test]
fn a_clock_that_is_an_hour_ahead_changes_nothing() -> Result<()> {
    let (cluster, world) = (Kubernetes::shared()?, World::on_etcd()?.faster(20));
    let namespace = cluster.namespace()?;
    let place = Place::new(&world, &namespace, 4)?;
    let clock = wrong_clock(&world)?;
    let wrong = [("LD_PRELOAD", clock.to_str().context("a path that is no text")?), ("CLOCK_AHEAD", "3600")];
    let executor = place.executor.start(&wrong)?;
    let ids = [place.admin.execute("sleeps-1", &[])?, place.admin.execute("sleeps-5", &[])?];
    place.prints(&ids[1])?;
    // What the next one finds in the cluster, it takes for what it is, whatever the times there say.
    executor.kill()?;
    let _executor = place.executor.start(&wrong)?;
    for id in &ids {
        let status = place.succeeds(id)?;
        ensure!(status["attempts"].as_array().is_some_and(|attempts| attempts.len() == 1), "{status}");
    }
    place.nothing_is_left(&cluster)
}
