//! What becomes of work whose executor fails, where `faults.rs` does not say it already: killed before the claim, asleep for minutes, cut off
//! in one direction or both, without an answer to the outcome. With the process runner; `kubernetes_faults.rs` has the other.

use std::os::unix::fs::MetadataExt as _;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, ensure};
use octavius_core::execution::State;
use octavius_failpoint::{FIRED, VARIABLE};
use octavius_proto::v1;
use octavius_tests::caller::Caller;
use octavius_tests::cluster::{Link, Part, Shape};
use octavius_tests::workload::{Job, Run};
use octavius_tests::{Direction, Mode, PATIENCE, Special, World, eventually};

use crate::faults::{Trial, long, short};

/// A silence that costs nothing, of 20 s, and one longer than the 3 minutes after which an executor is given up, of 4; all at a twentieth.
const MOMENT: Duration = Duration::from_secs(1);
const FOUR_MINUTES: Duration = Duration::from_secs(12);

/// A sleep of 120 s, and when an executor is given up.
const TWO_MINUTES: Duration = Duration::from_secs(6);
const LOST_AFTER: Duration = Duration::from_secs(9);

/// Within which a silent executor is found out: 30 s, which are 1.5, and time for a busy machine. Well before it is given up.
const FOUND_OUT: Duration = Duration::from_secs(5);

/// How many executors have a session that is heard of.
fn active(trial: &Trial, caller: &Caller) -> Result<usize> {
    let listed = trial.runtime.block_on(caller.call(PATIENCE, |connection| async move {
        Ok(connection.executors().list_executors(v1::ListExecutorsRequest {}).await?.into_inner().executors)
    }))?;
    Ok(listed.iter().filter(|executor| executor.state() == v1::ExecutorState::Active).count())
}

fn until_active(trial: &Trial, caller: &Caller, count: usize) -> Result<()> {
    eventually("executors come or go", || {
        let active = active(trial, caller)?;
        ensure!(active == count, "{active} are active");
        Ok(())
    })
}

/// Waits until the armed point of an executor is reached.
fn until_it_sleeps(trial: &mut Trial, executor: usize) -> Result<()> {
    eventually("it sleeps", || {
        ensure!(trial.cluster.daemon(Part::Executor(executor))?.said().contains(FIRED), "not yet");
        Ok(())
    })
}

/// How often an attempt of an execution began, by what the job itself wrote down.
fn begun(trial: &Trial, id: &str, attempt: u32) -> Result<usize> {
    let ledger = std::fs::read_to_string(trial.cluster.workload.ledger())?;
    Ok(ledger.lines().filter(|line| line.starts_with(&format!("start {id} {attempt} "))).count())
}

#[test]
fn what_waits_when_its_executor_is_killed_waits_on_as_if_nothing_had_been() -> Result<()> {
    let mut trial = Trial::start(Shape { capacity: 1, ..Shape::small(2, 1) })?;
    let caller = trial.caller(0)?;
    let runs = trial.submit(&caller, long(1))?;
    trial.reaches(&caller, &runs, State::Running)?;
    let waits = trial.submit(&caller, short())?;
    trial.cluster.kill(Part::Executor(0))?;
    trial.history.fault("the executor is killed; something runs, something waits");
    until_active(&trial, &caller, 0)?;
    let comes = trial.submit(&caller, short())?;
    for id in [&waits, &comes] {
        let seen = trial.runtime.block_on(caller.look(id, PATIENCE))?.context("there is no such execution")?;
        ensure!(seen.state == State::Queued && seen.attempts.is_empty(), "nobody could claim it: {seen:?}");
    }
    trial.cluster.start_executor(0, &[], false)?;
    for id in [&runs, &waits, &comes] {
        let seen = trial.ended(&caller, id)?;
        ensure!(seen.state == State::Succeeded && seen.attempts.len() == 1, "{seen:?}");
    }
    trial.check(&caller)
}

#[test]
fn an_executor_that_sleeps_for_two_minutes_keeps_what_it_runs() -> Result<()> {
    let mut trial = Trial::start(Shape::small(2, 1))?;
    let caller = trial.caller(0)?;
    let ends_meanwhile = trial.submit(&caller, long(2))?;
    let goes_on = trial.submit(&caller, long(10))?;
    for id in [&ends_meanwhile, &goes_on] {
        trial.reaches(&caller, id, State::Running)?;
    }
    trial.cluster.pause(Part::Executor(0))?;
    trial.history.fault("the executor sleeps for 6 s");
    std::thread::sleep(TWO_MINUTES); // the fault itself
    trial.cluster.wake(Part::Executor(0))?;
    for id in [&ends_meanwhile, &goes_on] {
        let seen = trial.ended(&caller, id)?;
        ensure!(seen.state == State::Succeeded && seen.attempts.len() == 1, "{seen:?}");
    }
    trial.check(&caller)
}

/// It was told that it may start, and sleeps before it does. When it wakes, it has been given up, and another runs the job.
#[test]
fn an_executor_that_was_given_up_in_its_sleep_does_not_start_what_it_was_allowed_to() -> Result<()> {
    let mut trial = Trial::start(Shape::small(2, 2))?;
    let caller = trial.caller(0)?;
    trial.cluster.kill(Part::Executor(1))?;
    trial.cluster.kill(Part::Executor(0))?;
    trial.cluster.start_executor(0, &[(VARIABLE, "executor.starting.told=stop")], false)?;
    let id = trial.submit(&caller, Run { job: Job::Again, ..long(3) })?;
    until_it_sleeps(&mut trial, 0)?;
    trial.history.fault("the executor that may start sleeps until it is given up");
    trial.cluster.start_executor(1, &[], false)?;
    eventually("the second attempt runs", || {
        let seen = trial.runtime.block_on(caller.look(&id, PATIENCE))?.context("there is no such execution")?;
        ensure!(seen.state == State::Running && seen.attempts.len() == 2, "{seen:?}");
        Ok(())
    })?;
    trial.cluster.wake(Part::Executor(0))?;
    let seen = trial.ended(&caller, &id)?;
    ensure!(seen.state == State::Succeeded && seen.attempts.len() == 2, "{seen:?}");
    // Whatever it would do with it, it has done when it works again.
    until_active(&trial, &caller, 2)?;
    trial.cluster.kill(Part::Executor(1))?;
    let next = trial.submit(&caller, short())?;
    ensure!(trial.ended(&caller, &next)?.state == State::Succeeded);
    let times = (begun(&trial, &id, 1)?, begun(&trial, &id, 2)?);
    ensure!(times == (0, 1), "the attempts began {times:?} times");
    trial.check(&caller)
}

#[test]
fn a_half_open_network_is_found_out_and_costs_a_loss_only_after_three_minutes() -> Result<()> {
    const WAYS: [Direction; 3] = [Direction::Both, Direction::ToServer, Direction::ToClient];
    let mut trial = Trial::start(Shape { capacity: 1, ..Shape::small(2, WAYS.len()) })?;
    let caller = trial.caller(0)?;
    let silent = |trial: &Trial, is: bool| {
        for (executor, way) in WAYS.into_iter().enumerate() {
            let mode = if is { Mode::Blackhole(way) } else { Mode::Pass };
            (0..2).for_each(|controller| trial.cluster.link(Link::Executor(executor, controller)).set(mode));
        }
    };
    // One on each executor, as they have one slot each.
    let running = |trial: &mut Trial, seconds: u64| -> Result<Vec<String>> {
        let ids = WAYS.iter().map(|_| trial.submit(&caller, long(seconds))).collect::<Result<Vec<_>>>()?;
        ids.iter().try_for_each(|id| trial.reaches(&caller, id, State::Running).map(drop))?;
        Ok(ids)
    };
    let ids = running(&mut trial, 2)?;
    silent(&trial, true);
    trial.history.fault("silence of 1 s: both ways, to the controllers, from them");
    std::thread::sleep(MOMENT); // the fault itself
    silent(&trial, false);
    for id in &ids {
        let seen = trial.ended(&caller, id)?;
        ensure!(seen.state == State::Succeeded && seen.attempts.len() == 1, "{seen:?}");
    }

    until_active(&trial, &caller, WAYS.len())?;
    let ids = running(&mut trial, 4)?;
    silent(&trial, true);
    let began = Instant::now();
    trial.history.fault("silence of 12 s: both ways, to the controllers, from them");
    until_active(&trial, &caller, 0)?;
    ensure!(began.elapsed() < FOUND_OUT, "found out after {:?}", began.elapsed());
    for id in &ids {
        ensure!(trial.ended(&caller, id)?.state == State::Lost);
        ensure!(began.elapsed() >= LOST_AFTER, "{id} was given up after {:?}", began.elapsed());
    }
    ensure!(began.elapsed() < FOUR_MINUTES, "given up after {:?}", began.elapsed());
    std::thread::sleep(FOUR_MINUTES.saturating_sub(began.elapsed())); // the rest of the fault
    silent(&trial, false);
    for id in &ids {
        eventually("its late end is told", || {
            let seen = trial.runtime.block_on(caller.look(id, PATIENCE))?.context("gone")?;
            ensure!(seen.state == State::Lost && seen.attempts.len() == 1, "{seen:?}");
            ensure!(seen.attempts[0].late == Some(State::Succeeded), "{seen:?}");
            Ok(())
        })?;
    }
    trial.check(&caller)
}

/// The log was sent, the outcome taken down, and the executor does not hear of it: it says it again, to the same controller or another.
#[test]
fn an_outcome_whose_answer_is_lost_is_told_again_and_counts_once() -> Result<()> {
    let mut trial = Trial::start(Shape::small(2, 1))?;
    let caller = trial.caller(1)?;
    // Its reports are that it starts, that it runs, and how it ended.
    for plan in ["reply.report=drop@3", "reply.report=kill@3"] {
        trial.cluster.kill(Part::Executor(0))?;
        trial.cluster.kill(Part::Controller(0))?;
        trial.cluster.start_controller(0, &[(VARIABLE, plan)], false)?;
        // After the controller, so that its session and its reports are with that one.
        trial.cluster.start_executor(0, &[], false)?;
        trial.history.fault(plan);
        let id = trial.submit(&caller, Run { lines: 1300, ..long(1) })?;
        let seen = trial.ended(&caller, &id)?;
        ensure!(seen.state == State::Succeeded && seen.attempts.len() == 1, "{plan}: {seen:?}");
        eventually("the point is reached", || {
            let said = trial.cluster.daemon(Part::Controller(0))?.said();
            ensure!(said.contains(FIRED), "{plan} was not reached: {said}");
            Ok(())
        })?;
        // It is done with that one, and takes the next.
        let next = trial.submit(&caller, short())?;
        ensure!(trial.ended(&caller, &next)?.state == State::Succeeded);
        ensure!(begun(&trial, &id, 1)? == 1, "{plan}: it ran more than once");
    }
    trial.check(&caller)
}

/// Bytes of the disk that the output of an executor's runs takes.
fn spooled(world: &World, executor: &str) -> Result<u64> {
    let mut bytes = 0;
    for run in std::fs::read_dir(world.path(executor).join("runs"))? {
        // A run may end, and its folder go, in between.
        bytes += std::fs::metadata(run?.path().join("output")).map_or(0, |output| output.blocks() * 512);
    }
    Ok(bytes)
}

/// A job prints far more than the spool holds and the executor may send. As long as the controller takes it, the job waits and nothing is lost;
/// when the controller is gone, what there is no room for is dropped and counted. Meanwhile nothing else is claimed.
#[test]
fn a_full_spool_ends_the_claiming_and_what_it_has_no_room_for_is_marked() -> Result<()> {
    const LIMIT: u64 = 16 << 20;
    const LAST: u32 = 12_000_000;
    let world = World::new()?.faster(20);
    let folder = world.write("printed", "")?.parent().context("no folder")?.display().to_string();
    let script = format!(
        "seq 1 {LAST}; echo done > '{folder}/printed'; while ! [ -e '{folder}/go' ]; do sleep 0.05; done; echo and the end"
    );
    let job = |name: &str, script: &str| serde_json::json!({"name": name, "command": ["sh", "-c", script]}).to_string();
    world.write("catalog/octavius.yaml", "catalog: team\n")?;
    world.write("catalog/loud.yaml", &job("loud", &script))?;
    world.write("catalog/quiet.yaml", &job("quiet", "echo quiet"))?;
    let (controller, port) = world.controller("store", 0)?;
    let admin = world.admin(port)?;
    admin.run(&["apply", &world.path("catalog").display().to_string()])?.expect(0)?;
    let special =
        Special { variables: &[("OCTAVIUS_SPOOL_LIMIT", "16MiB"), ("OCTAVIUS_LOG_RATE", "4MiB")], ..Special::default() };
    let executor = world.executor_of("e1", &format!("127.0.0.1:{port}"), &admin.registration()?, 2, &special)?;

    let loud = admin.execute("loud", &[])?;
    eventually("the executor says that its spool is full", || {
        ensure!(executor.said().contains("the spool is full"), "{}", executor.said());
        Ok(())
    })?;
    let quiet = admin.execute("quiet", &[])?;
    ensure!(admin.status(&quiet)?["state"] == "queued", "a slot is free, and it is claimed all the same");
    ensure!(spooled(&world, "e1")? <= LIMIT);
    ensure!(std::fs::read_to_string(world.path("printed"))?.is_empty(), "the job waits");

    controller.kill()?;
    let most = eventually("the job has printed all, into nothing", || {
        let spooled = spooled(&world, "e1")?;
        ensure!(!std::fs::read_to_string(world.path("printed"))?.is_empty(), "{spooled} bytes are spooled");
        Ok(spooled)
    })?;
    ensure!(most <= LIMIT && most > LIMIT / 2, "{most} bytes of the disk");
    let (_controller, _) = world.controller("store", port)?;
    eventually("there is room again, and it is claimed", || {
        let state = admin.status(&quiet)?["state"].clone();
        ensure!(state == "succeeded", "{state}");
        Ok(())
    })?;
    ensure!(spooled(&world, "e1")? <= LIMIT);
    world.write("go", "")?;
    eventually("the job ends", || {
        let state = admin.status(&loud)?["state"].clone();
        ensure!(state == "succeeded", "{state}");
        Ok(())
    })?;

    let log = admin.run(&["getlogs", &loud])?.expect(0)?.stdout;
    let (kept, rest) = log.split_once("\n[octavius: ").context("there is no mark")?;
    let (missing, rest) = rest
        .split_once(" bytes of output are missing here: the executor's spool was full]\n")
        .with_context(|| format!("not a mark: {rest:.100}"))?;
    let all: String = (1..=LAST).map(|number| format!("{number}\n")).collect();
    ensure!(all.starts_with(kept), "what is before the mark is not what was printed");
    ensure!(rest == "and the end\n", "after the mark stands {rest:?}");
    ensure!(missing.parse::<usize>()? == all.len() - kept.len(), "{missing} missing of {}, {} kept", all.len(), kept.len());
    ensure!(executor.said().matches("the spool is full").count() == 1, "it is said once: {}", executor.said());
    Ok(())
}

/// The token that an executor has kept.
fn kept_token(world: &World, executor: &str) -> Result<String> {
    let text = std::fs::read_to_string(world.path(executor).join("credential.json"))?;
    let kept: serde_json::Value = serde_json::from_str(&text)?;
    Ok(kept["token"].as_str().context("it has none")?.to_owned())
}

#[test]
fn a_token_is_replaced_while_a_job_runs_and_nobody_notices() -> Result<()> {
    let world = World::new()?;
    let special = Special { variables: &[("OCTAVIUS_EXECUTOR_TOKEN_LIFETIME", "12s")], ..Special::default() };
    let (_controller, port) = world.controller_with("store", 0, &special)?;
    let admin = world.admin(port)?;
    world.write("catalog/octavius.yaml", "catalog: c\n")?;
    world.write(
        "catalog/long.yaml",
        "name: long\ncommand: [sh, -c, 'i=0; while [ $i -lt 20 ]; do echo line $i; i=$((i+1)); sleep 1; done']\n",
    )?;
    admin.run(&["apply", "catalog"])?.expect(0)?;
    let registration = admin.registration()?;
    let executor = world.executor("e", port, &registration, 2)?;
    let first = kept_token(&world, "e")?;
    // Longer than the first token is good, and the second begins to be needed.
    let id = admin.execute("long", &["--wait"])?;
    let second = kept_token(&world, "e")?;
    ensure!(second != first, "the token was not replaced");
    let lines = admin.run(&["getlogs", &id])?.expect(0)?.stdout;
    ensure!(lines.lines().count() == 20, "{lines}");
    let status = admin.status(&id)?;
    ensure!(status["attempts"].as_array().map(Vec::len) == Some(1), "{status}");
    // Another start goes on with what is kept; the registration token is used up, and not asked for.
    executor.stop()?;
    let _executor = world.executor("e", port, &registration, 2)?;
    admin.execute("long", &[])?;
    eventually("it is there again", || {
        let listed = admin.run(&["executors", "-o", "json"])?.expect(0)?.stdout;
        ensure!(listed.contains("active"), "{listed}");
        Ok(())
    })
}
