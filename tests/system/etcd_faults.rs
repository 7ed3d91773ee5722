//! Faults of the etcd beneath: a leader that dies or stops, no quorum, a pause longer than a lease, compaction behind a silent watch, no
//! room.

use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, ensure};
use etcd_client::Client;
use octavius_core::ExecutionId;
use octavius_core::execution::State;
use octavius_proto::v1;
use octavius_tests::cluster::{Link, Part, Shape};
use octavius_tests::history::What;
use octavius_tests::{Direction, EtcdOptions, Mode, PATIENCE, eventually};
use tonic::Code;

use crate::faults::{Trial, connection, long, short};

/// How soon writes must go on after a member is gone, and how soon a call must be answered without a quorum.
const SOON: Duration = Duration::from_secs(5);

fn execute(run: &octavius_tests::workload::Run) -> v1::ExecuteRequest {
    v1::ExecuteRequest {
        id: ExecutionId::generate().to_string(),
        job: run.job.name().to_owned(),
        arguments: run.arguments().into_iter().collect(),
        ..v1::ExecuteRequest::default()
    }
}

/// Takes the leader away as `take` does, and sees that writes go on and that nothing is lost.
fn without_the_leader(
    take: impl Fn(&mut Trial, Part) -> Result<()>,
    back: impl Fn(&mut Trial, Part) -> Result<()>,
) -> Result<()> {
    let mut trial = Trial::start(Shape::small(2, 1).members(3))?;
    let caller = trial.caller(0)?;
    let running = trial.submit(&caller, long(8))?;
    trial.reaches(&caller, &running, State::Running)?;
    let leader = Part::Member(trial.cluster.etcd.leader()?);
    trial.history.fault(format!("the leader, {leader:?}, is gone"));
    let gone = Instant::now();
    take(&mut trial, leader)?;
    trial.submit(&caller, short())?;
    ensure!(gone.elapsed() < SOON, "a write went through after {:?}", gone.elapsed());
    let next = trial.submit(&caller, short())?;
    ensure!(trial.ended(&caller, &next)?.state == State::Succeeded);
    // It runs longer than an executor that is not heard is waited for.
    let seen = trial.ended(&caller, &running)?;
    ensure!(seen.state == State::Succeeded && seen.attempts.len() == 1, "{seen:?}");
    back(&mut trial, leader)?;
    trial.check(&caller)
}

#[test]
fn a_leader_that_is_killed_is_missed_for_less_than_5_s() -> Result<()> {
    without_the_leader(|trial, leader| trial.cluster.kill(leader), |trial, leader| trial.cluster.revive(leader))
}

#[test]
fn a_leader_that_stops_is_missed_for_less_than_5_s() -> Result<()> {
    without_the_leader(|trial, leader| trial.cluster.pause(leader), |trial, leader| trial.cluster.wake(leader))
}

#[test]
fn without_a_quorum_calls_are_answered_and_jobs_run_on() -> Result<()> {
    let mut trial = Trial::start(Shape::small(2, 1).members(3))?;
    let caller = trial.caller(0)?;
    let running = trial.submit(&caller, long(3))?;
    trial.reaches(&caller, &running, State::Running)?;
    let stopped = [Part::Member(0), Part::Member(1)];
    trial.history.record(What::StoreAway);
    stopped.iter().try_for_each(|part| trial.cluster.pause(*part))?;
    let begun = Instant::now();
    for controller in 0..2 {
        let asked = Instant::now();
        let answer = trial.runtime.block_on(async {
            let connection = connection(&trial, controller).await?;
            anyhow::Ok(connection.executions().execute(execute(&short())).await)
        })?;
        let code = answer.err().context("accepted without a quorum")?.code();
        ensure!(code == Code::Unavailable && asked.elapsed() < SOON, "{code:?} after {:?}", asked.elapsed());
    }
    // Longer than an executor is waited for that is not heard.
    std::thread::sleep(Duration::from_secs(12).saturating_sub(begun.elapsed())); // the fault itself
    stopped.iter().try_for_each(|part| trial.cluster.wake(*part))?;
    trial.history.record(What::StoreBack);
    let seen = trial.ended(&caller, &running)?;
    ensure!(seen.state == State::Succeeded && seen.attempts.len() == 1, "{seen:?}");
    trial.submit(&caller, short())?;
    trial.check(&caller)
}

#[test]
fn a_pause_longer_than_a_lease_loses_nothing() -> Result<()> {
    let mut trial = Trial::start(Shape::small(2, 1))?;
    let caller = trial.caller(0)?;
    // At a twentieth, a presence lasts seconds, and after 9 s an executor that is not heard is given up.
    let running = trial.submit(&caller, long(14))?;
    trial.reaches(&caller, &running, State::Running)?;
    trial.history.record(What::StoreAway);
    trial.cluster.pause(Part::Member(0))?;
    std::thread::sleep(Duration::from_secs(11)); // the fault itself
    trial.cluster.wake(Part::Member(0))?;
    trial.history.record(What::StoreBack);
    let seen = trial.ended(&caller, &running)?;
    ensure!(seen.state == State::Succeeded && seen.attempts.len() == 1, "{seen:?}");
    let next = trial.submit(&caller, short())?;
    ensure!(trial.ended(&caller, &next)?.state == State::Succeeded);
    trial.check(&caller)
}

#[test]
fn what_was_compacted_behind_a_silent_watch_is_listed_again() -> Result<()> {
    let mut trial = Trial::start(Shape::small(2, 1))?;
    let (first, second) = (trial.caller(0)?, trial.caller(1)?);
    trial.cluster.link(Link::Etcd(0, 0)).set(Mode::Blackhole(Direction::Both));
    trial.history.fault("controller 0 does not hear the etcd");
    // Changes of the queue too, whoever works them off.
    for _ in 0..5 {
        trial.submit(&second, short())?;
    }
    let workload = trial.cluster.workload.clone();
    ensure!(trial.runtime.block_on(second.apply(&workload, "after"))?, "not applied");
    let endpoint = trial.cluster.etcd.endpoints();
    let revision = trial.runtime.block_on(async {
        let mut client = Client::connect(&endpoint, None).await?;
        let revision = client.get("x", None).await?.header().context("no header")?.revision();
        client.compact(revision, None).await?;
        anyhow::Ok(revision)
    })?;
    trial.history.fault(format!("compacted at {revision}"));
    trial.cluster.link(Link::Etcd(0, 0)).set(Mode::Pass);
    eventually("controller 0 shows the new catalogue", || {
        let jobs = trial.runtime.block_on(async {
            let listed = connection(&trial, 0).await?.catalog().list_jobs(v1::ListJobsRequest::default()).await?;
            anyhow::Ok(listed.into_inner().jobs)
        })?;
        ensure!(!jobs.is_empty() && jobs.iter().all(|job| job.description == "after"), "{:?}", jobs.first());
        Ok(())
    })?;
    let next = trial.submit(&first, short())?;
    ensure!(trial.ended(&first, &next)?.state == State::Succeeded);
    trial.check(&first)
}

#[test]
fn without_room_people_are_told_and_all_goes_on_when_there_is_room_again() -> Result<()> {
    const QUOTA: &str = "16777216";
    let shape = Shape {
        etcd: EtcdOptions::new(1).flag(format!("--quota-backend-bytes={QUOTA}")),
        variables: vec![("OCTAVIUS_ETCD_QUOTA_BYTES", QUOTA), ("OCTAVIUS_LOG", "error,octavius_controller::keeper=info")],
        // Room is made in the third turn of whoever looks after the store, and a turn takes 300 s.
        faster: 40,
        ..Shape::small(2, 1)
    };
    let mut trial = Trial::start(shape)?;
    let caller = trial.caller(0)?;
    let running = trial.submit(&caller, long(3))?;
    trial.reaches(&caller, &running, State::Running)?;
    let endpoint = trial.cluster.etcd.endpoints();
    trial.history.record(What::StoreAway);
    trial.runtime.block_on(async {
        let mut client = Client::connect(&endpoint, None).await?;
        for number in 0..32 {
            // Someone else's keys, until etcd takes no more.
            if client.put(format!("foreign/{number}"), vec![b'x'; 1 << 20], None).await.is_err() {
                return Ok(());
            }
        }
        anyhow::bail!("the etcd has room without end")
    })?;
    trial.history.fault("the etcd is full");
    let refused = trial.runtime.block_on(async {
        let connection = connection(&trial, 0).await?;
        anyhow::Ok(connection.executions().execute(execute(&short())).await)
    })?;
    let code = refused.err().context("accepted without room")?.code();
    ensure!(code == Code::ResourceExhausted, "{code:?}");
    trial.runtime.block_on(async {
        let mut client = Client::connect(&endpoint, None).await?;
        client.delete("foreign/", Some(etcd_client::DeleteOptions::new().with_prefix())).await?;
        anyhow::Ok(())
    })?;
    // A controller compacts, makes room and takes the alarm back by itself.
    let next = trial.submit(&caller, short());
    let next = next.with_context(|| trial.cluster.said())?;
    trial.history.record(What::StoreBack);
    ensure!(trial.ended(&caller, &next)?.state == State::Succeeded);
    let seen = trial.runtime.block_on(caller.watch(&running, PATIENCE))?.context("it has not ended")?;
    ensure!(seen.state == State::Succeeded && seen.attempts.len() == 1, "{seen:?}");
    trial.check(&caller)
}
