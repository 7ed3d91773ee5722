//! A rolling upgrade: every process is asked to stop and is replaced, one after the other, in the middle of the work. Nobody who asks again
//! when he hears nothing notices more than a moment.

use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, ensure};
use octavius_core::execution::State;
use octavius_tests::caller::Caller;
use octavius_tests::cluster::{Part, Shape};
use octavius_tests::workload::Run;
use octavius_tests::{PATIENCE, World, eventually};
use serde_json::Value;

use crate::faults::{Trial, long, short};

/// Clients that submit at once.
const CLIENTS: usize = 4;

/// Executions that have to be accepted between two steps of the upgrade.
const BETWEEN: usize = 8;

/// How long a stop may take: less than the time after which a controller, or an executor, gives up waiting for something.
const STOPS_WITHIN: Duration = Duration::from_secs(8);

/// What the clients have got done.
#[derive(Default)]
struct Load {
    ends: AtomicBool,
    accepted: AtomicUsize,
    asked: Mutex<Vec<(String, Run)>>,
}

impl Load {
    /// Submits one run after the other and follows each to its end, until the load ends.
    async fn client(&self, caller: Caller, number: usize) -> Result<()> {
        for turn in number.. {
            if self.ends.load(Ordering::SeqCst) {
                break;
            }
            let run = if turn % 3 == 0 { long(2) } else { short() };
            let (id, acknowledged) = caller.submit(&run, PATIENCE).await?;
            ensure!(acknowledged, "{id} was not accepted in {PATIENCE:?}");
            self.asked.lock().unwrap().push((id.clone(), run));
            self.accepted.fetch_add(1, Ordering::SeqCst);
            caller.watch(&id, PATIENCE).await?.with_context(|| format!("{id} has not ended in {PATIENCE:?}"))?;
        }
        Ok(())
    }

    /// Waits until so many more were accepted.
    fn goes_on(&self) -> Result<()> {
        let before = self.accepted.load(Ordering::SeqCst);
        eventually("more executions are accepted", || {
            let more = self.accepted.load(Ordering::SeqCst) - before;
            ensure!(more >= BETWEEN, "{more} of {BETWEEN}");
            Ok(())
        })
    }
}

/// Stops a part as a service manager does, and starts it again.
fn replace(trial: &mut Trial, part: Part) -> Result<()> {
    let daemon = trial.cluster.take(part).with_context(|| format!("{part:?} does not run"))?;
    let begun = Instant::now();
    let (code, said) = daemon.stop()?;
    let took = begun.elapsed();
    ensure!(code == 0, "{part:?} ended with {code}: {said}");
    ensure!(took < STOPS_WITHIN, "{part:?} took {took:?} to stop: {said}");
    match part {
        Part::Controller(index) => trial.cluster.start_controller(index, &[], false),
        Part::Executor(index) => trial.cluster.start_executor(index, &[], false),
        Part::Member(_) => unreachable!("members are not replaced here"),
    }
}

#[test]
fn a_rolling_upgrade_under_load_fails_no_call_and_runs_everything_once() -> Result<()> {
    let mut trial = Trial::start(Shape { faster: 1, ..Shape::small(2, 2) })?;
    let load = Arc::new(Load::default());
    let callers = (0..CLIENTS).map(|number| trial.caller(number % 2)).collect::<Result<Vec<_>>>()?;
    let clients: Vec<_> = callers
        .into_iter()
        .enumerate()
        .map(|(number, caller)| {
            let load = Arc::clone(&load);
            trial.runtime.spawn(async move { load.client(caller, number).await })
        })
        .collect();
    let rolled = (|| {
        load.goes_on()?;
        for part in [Part::Controller(0), Part::Executor(0), Part::Controller(1), Part::Executor(1)] {
            replace(&mut trial, part)?;
            load.goes_on()?;
        }
        anyhow::Ok(())
    })();
    load.ends.store(true, Ordering::SeqCst);
    for client in clients {
        trial.runtime.block_on(client)?.with_context(|| trial.cluster.said())?;
    }
    rolled.with_context(|| trial.cluster.said())?;
    let caller = trial.caller(0)?;
    let asked = load.asked.lock().unwrap().clone();
    ensure!(asked.len() >= 5 * BETWEEN, "{} were accepted", asked.len());
    for (id, _) in &asked {
        let seen = trial.runtime.block_on(caller.look(id, PATIENCE))?.context("there is no such execution")?;
        let started = seen.attempts.iter().filter(|attempt| attempt.started).count();
        ensure!(seen.state == State::Succeeded && started == 1, "{id}: {seen:?}");
    }
    trial.asked.extend(asked);
    trial.check(&caller)
}

/// The executions of a table in JSON, each as its job and state.
fn runs(listed: &Value) -> Vec<(String, String)> {
    let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
    let runs = listed["executions"].as_array().into_iter().flatten();
    runs.map(|run| (text(&run["job"]), text(&run["state"]))).collect()
}

#[test]
fn what_the_version_before_has_stored_is_read_and_gone_on_with() -> Result<()> {
    let before = concat!(env!("CARGO_MANIFEST_DIR"), "/system/before");
    let world = World::new()?;
    let token = std::fs::read_to_string(format!("{before}/admin.token"))?;
    let store = format!("embedded:{}", world.path("store").display());
    world.run(&["restore", &format!("{before}/store.backup"), "--store", &store])?.expect(0)?;
    let (_controller, port) = world.controller("store", 0)?;
    let admin = world.client("admin", port, token.trim())?;

    let jobs = admin.run(&["list", "-o", "name"])?.expect(0)?.stdout;
    ensure!(jobs.lines().collect::<Vec<_>>() == ["fails", "greet", "parked"], "{jobs}");
    let described = admin.run(&["describe", "greet"])?.expect(0)?.stdout;
    ensure!(described.contains("Says hello, kindly") && described.contains("greet.yaml"), "{described}");
    let history = admin.run(&["history", "--catalog-name", "shop", "-o", "json"])?.expect(0)?.json()?;
    ensure!(history["revisions"].as_array().map(Vec::len) == Some(2), "{history}");
    let listed = admin.run(&["executions", "--all", "-o", "json"])?.expect(0)?.json()?;
    let expected =
        [("parked", "cancelled"), ("parked", "queued"), ("fails", "failed"), ("greet", "succeeded"), ("greet", "succeeded")];
    let expected = expected.map(|(job, state)| (job.to_owned(), state.to_owned()));
    ensure!(runs(&listed) == expected, "{listed}");
    let ids: Vec<&str> = listed["executions"].as_array().into_iter().flatten().filter_map(|run| run["id"].as_str()).collect();
    let [_, queued, failed, _, greeted] = ids[..] else { anyhow::bail!("{ids:?}") };
    let log = admin.run(&["getlogs", greeted])?.expect(0)?.stdout;
    ensure!(log == "hello Ann\npin has 4 characters\n", "{log:?}");
    let status = admin.status(failed)?;
    ensure!(status["exit_code"] == 3 && status["reason"] == "EXIT_CODE" && status["executor"] == "vpc-a", "{status}");
    let tokens = admin.run(&["tokens", "list", "-o", "json"])?.expect(0)?.json()?;
    let roles: Vec<&str> = tokens["tokens"].as_array().into_iter().flatten().filter_map(|token| token["role"].as_str()).collect();
    ensure!(roles == ["admin", "registration", "user", "viewer", "executor"], "{roles:?}");

    // And it goes on from there.
    let _executor = world.executor("vpc-b", port, &admin.registration()?, 2)?;
    let again = admin.run(&["rerun", greeted, "--wait"])?.expect(0)?.stdout;
    let log = admin.run(&["getlogs", again.trim()])?.expect(0)?.stdout;
    ensure!(log == "hello Ann\npin has 4 characters\n", "{log:?}");
    admin.run(&["cancel", queued])?.expect(0)?;
    admin.run(&["executors", "revoke", "vpc-a"])?.expect(0)?;
    Ok(())
}
