//! What operators do with executors and jobs: drain, resume, revoke, pause; through whichever controller, and while others hand out work.

use std::time::Duration;

use octavius_core::Timing;
use octavius_proto::client::Connection;
use octavius_proto::v1::{self, ExecutionState as S, ExecutorState, Verdict};
use octavius_proto::{Fault, reason};
use tonic::Code;

use crate::fake::{Fake, held, hello, labelled};
use crate::harness::{House, cancel, connect, eventually, execute, get, reaches, told};

const JOB: &str = r#"{"name":"j","command":["true"]}"#;
const OTHER: &str = r#"{"name":"other","command":["true"]}"#;

async fn drain(by: &Connection, id: &str) -> v1::Executor {
    let request = v1::DrainExecutorRequest { id: id.to_owned() };
    by.executors().drain_executor(request).await.unwrap().into_inner().executor.unwrap()
}

async fn resume(by: &Connection, id: &str) -> v1::Executor {
    let request = v1::ResumeExecutorRequest { id: id.to_owned() };
    by.executors().resume_executor(request).await.unwrap().into_inner().executor.unwrap()
}

async fn revoke(by: &Connection, id: &str, force: bool) -> Result<v1::RevokeExecutorResponse, Fault> {
    let request = v1::RevokeExecutorRequest { id: id.to_owned(), force };
    by.executors().revoke_executor(request).await.map(tonic::Response::into_inner).map_err(|status| told(&status))
}

pub(crate) async fn find(by: &Connection, id: &str) -> Result<v1::Executor, Fault> {
    let request = v1::GetExecutorRequest { id: id.to_owned() };
    let found = by.executors().get_executor(request).await.map_err(|status| told(&status))?;
    Ok(found.into_inner().executor.unwrap())
}

async fn becomes(by: &Connection, id: &str, state: ExecutorState) -> v1::Executor {
    eventually(&format!("{id} to be {state:?}"), async || {
        let executor = find(by, id).await.map_err(|fault| format!("{fault:?}"))?;
        if executor.state() == state { Ok(executor) } else { Err(format!("{executor:?}")) }
    })
    .await
}

async fn pause(by: &Connection, job: &str) -> Result<v1::Paused, Fault> {
    let request = v1::PauseJobsRequest { job: job.to_owned(), all: job.is_empty(), reason: "moving".into() };
    let answer = by.admin().pause_jobs(request).await.map_err(|status| told(&status))?;
    Ok(answer.into_inner().paused.unwrap())
}

async fn unpause(by: &Connection, job: &str) -> Result<v1::UnpauseJobsResponse, Fault> {
    let request = v1::UnpauseJobsRequest { job: job.to_owned(), all: job.is_empty() };
    by.admin().unpause_jobs(request).await.map(tonic::Response::into_inner).map_err(|status| told(&status))
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn one_that_drains_finishes_what_it_has_and_is_given_nothing_until_it_resumes() {
    let house = House::open().await;
    let neighbour = house.neighbour().await;
    house.apply(&[JOB]).await;
    let admin = house.admin().await;
    let at_b = connect(neighbour.address(), Some(&house.token)).await;
    let fake = Fake::register(&house, "e").await;
    let mut session = fake.session(hello(4)).await.unwrap();
    let running = house.execute("j").await;
    let claim = session.assignment().await;
    fake.begins(&claim).await;

    // Asked at the other controller: once that has answered, this one gives it nothing either.
    let drained = drain(&at_b, "e").await;
    assert_eq!((&drained.running, drained.draining.as_ref().unwrap().by.as_str()), (&vec![running.clone()], "admin"));
    let waits = execute(&admin, "j", &[]).await.unwrap();
    session.hears_nothing(4).await;
    becomes(&admin, "e", ExecutorState::Draining).await;
    assert_eq!(drain(&admin, "e").await.draining, drained.draining, "it drains since it was first asked to");
    let request = v1::GetExecutionRequest { id: waits.clone() };
    let why = admin.executions().get_execution(request).await.unwrap().into_inner().wait.unwrap().causes;
    let drains =
        |cause: &v1::WaitCause| cause.code == "EXECUTOR_DRAINING" && cause.executor == "e" && cause.message.ends_with("(admin)");
    assert!(why.iter().any(drains), "{why:?}");

    // What it runs goes on, over a new session too, which is given nothing either.
    fake.append(&claim, 0, b"x").await.unwrap();
    drop(session);
    let expired = becomes(&admin, "e", ExecutorState::Expired).await;
    assert!(expired.draining.is_some(), "one that is away drains all the same");
    let mut session = fake.session(v1::Hello { held: vec![held(&claim)], ..hello(4) }).await.unwrap();
    session.hears_nothing(4).await;
    assert_eq!(fake.finishes(&claim, S::Succeeded, b"x").await, Ok(Verdict::Accepted));
    assert_eq!(find(&at_b, "e").await.unwrap().running, Vec::<String>::new());
    session.hears_nothing(4).await;

    let resumed = resume(&at_b, "e").await;
    assert_eq!(resumed.draining, None);
    assert_eq!(session.assignment().await.id, waits);
    resume(&admin, "e").await;
    becomes(&admin, "e", ExecutorState::Active).await;
    neighbour.stop().await;
}

/// What a drain's answer shows is all that there will be, however many claims are under way meanwhile at another controller.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn nothing_is_claimed_behind_an_acknowledged_drain() {
    let house = House::open().await;
    let neighbour = house.neighbour().await;
    house
        .apply(&[
            r#"{"name":"j","command":["true"],"executor":{"free":"no"}}"#,
            r#"{"name":"probe","command":["true"],"executor":{"free":"yes"}}"#,
        ])
        .await;
    let admin = house.admin().await;
    let at_b = connect(neighbour.address(), Some(&house.token)).await;
    let free = Fake::register(&house, "free").await;
    let mut elsewhere = free.session(labelled(1, &[("free", "yes")])).await.unwrap();
    let fake = Fake::register(&house, "e").await;
    let _session = fake.session(labelled(1000, &[("free", "no")])).await.unwrap();
    for _ in 0..10 {
        let flood = tokio::spawn({
            let admin = admin.clone();
            async move { futures::future::join_all((0..30).map(|_| execute(&admin, "j", &[]))).await }
        });
        eventually("some of it to be claimed", async || {
            let holds = find(&at_b, "e").await.unwrap().running.len();
            if holds > 0 { Ok(()) } else { Err("none".to_owned()) }
        })
        .await;
        let then = drain(&at_b, "e").await.running;
        let ids: Vec<String> = flood.await.unwrap().into_iter().map(Result::unwrap).collect();
        // Work that comes after it has been handed out elsewhere: so has been tried what came before.
        execute(&admin, "probe", &[]).await.unwrap();
        let probe = elsewhere.assignment().await;
        free.completes(&probe, b"").await;
        let now = find(&at_b, "e").await.unwrap().running;
        assert!(now.iter().all(|id| then.contains(id)), "claimed behind the drain: {now:?} and {then:?}");
        resume(&at_b, "e").await;
        // None of those that met the drain was forgotten.
        for id in &ids {
            reaches(&admin, id, S::Claimed).await;
            cancel(&admin, id).await;
        }
        eventually("it to hold nothing", async || match find(&at_b, "e").await.unwrap().running.len() {
            0 => Ok(()),
            holds => Err(format!("{holds}")),
        })
        .await;
    }
    neighbour.stop().await;
}

#[tokio::test]
async fn a_drain_survives_controllers_sessions_and_a_new_registration() {
    let mut house = House::open().await;
    house.apply(&[JOB]).await;
    let fake = Fake::register(&house, "e").await;
    let session = fake.session(hello(1)).await.unwrap();
    drain(&house.admin().await, "e").await;
    drop((session, fake));
    house.stop().await;
    house.start_again().await;
    let token = house.register("e").await;
    let fake = Fake { connection: house.connect(Some(&token)).await };
    let id = house.execute("j").await;
    let mut session = fake.session(v1::Hello { instance: 2, ..hello(1) }).await.unwrap();
    session.hears_nothing(4).await;
    resume(&house.admin().await, "e").await;
    assert_eq!(session.assignment().await.id, id);
}

#[tokio::test]
async fn one_that_holds_something_is_not_revoked_and_goes_on() {
    let house = House::open().await;
    house.apply(&[JOB]).await;
    let admin = house.admin().await;
    let fake = Fake::register(&house, "e").await;
    let mut session = fake.session(hello(2)).await.unwrap();
    let id = house.execute("j").await;
    let claim = session.assignment().await;
    let fault = revoke(&admin, "e", false).await.unwrap_err();
    assert_eq!((fault.code, fault.reason.as_str()), (Code::FailedPrecondition, reason::EXECUTOR_BUSY));
    assert!(fault.message.contains(&id) && fault.fact("count") == Some("1"), "{fault:?}");
    assert_eq!(find(&admin, "e").await.unwrap().draining, None, "a refusal leaves it as it was");
    fake.completes(&claim, b"").await;
    let next = house.execute("j").await;
    let claim = session.assignment().await;
    assert_eq!(claim.id, next);
    fake.completes(&claim, b"").await;

    let done = revoke(&admin, "e", false).await.unwrap();
    assert!(done.was_registered && done.lost.is_empty() && done.given_back.is_empty(), "{done:?}");
    assert!(matches!(session.next().await, Ok(None) | Err(_)), "its session is over");
    let again = fake.session(hello(2)).await.err().unwrap();
    assert_eq!(again.code, Code::Unauthenticated);
    assert_eq!(find(&admin, "e").await.unwrap_err().reason, reason::NOT_FOUND);
    assert!(!revoke(&admin, "e", false).await.unwrap().was_registered, "said again, it changes nothing");
    let tokens = admin.admin().list_tokens(v1::ListTokensRequest {}).await.unwrap().into_inner().tokens;
    assert!(tokens.iter().all(|token| token.user != "e"), "{tokens:?}");
}

/// Through another controller than the one that has its session.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn forced_what_was_not_started_goes_back_and_what_was_is_lost() {
    let house = House::open().await;
    let neighbour = house.neighbour().await;
    house.apply(&[JOB]).await;
    let admin = house.admin().await;
    let at_b = connect(neighbour.address(), Some(&house.token)).await;
    let fake = Fake::register(&house, "e").await;
    let mut session = fake.session(hello(2)).await.unwrap();
    house.execute("j").await;
    let started = session.assignment().await;
    fake.begins(&started).await;
    house.execute("j").await;
    let claimed = session.assignment().await;

    let done = revoke(&at_b, "e", true).await.unwrap();
    assert!(done.was_registered);
    assert_eq!((&done.lost, &done.given_back), (&vec![started.id.clone()], &vec![claimed.id.clone()]));
    let lost = get(&admin, &started.id).await;
    assert_eq!((lost.state(), lost.reason.as_str()), (S::Lost, "EXECUTOR_LOST"));
    assert!(lost.message.starts_with("admin revoked e while it ran there"), "{}", lost.message);
    assert_eq!(get(&admin, &claimed.id).await.state(), S::Queued);
    assert!(matches!(session.next().await, Ok(None) | Err(_)), "its session with the other controller is over");
    let second = revoke(&admin, "e", true).await.unwrap();
    assert_eq!(second, v1::RevokeExecutorResponse::default());

    let other = Fake::register(&house, "f").await;
    let mut session = other.session(hello(1)).await.unwrap();
    let again = session.assignment().await;
    assert_eq!((again.id.as_str(), again.attempt), (claimed.id.as_str(), 2));
    neighbour.stop().await;
}

#[tokio::test]
async fn executors_that_are_not_there_are_told_with_the_nearest() {
    let house = House::open().await;
    Fake::register(&house, "payments-1").await;
    let admin = house.admin().await;
    for unknown in ["payments-2", "not an id", ""] {
        let fault = find(&admin, unknown).await.unwrap_err();
        assert_eq!((fault.code, fault.reason.as_str()), (Code::NotFound, reason::NOT_FOUND));
        assert_eq!(fault.fact("nearest").is_some(), unknown == "payments-2", "{fault:?}");
        let request = v1::DrainExecutorRequest { id: unknown.to_owned() };
        assert_eq!(told(&admin.executors().drain_executor(request).await.unwrap_err()).code, Code::NotFound);
    }
}

#[tokio::test]
async fn versions_that_do_not_go_together_are_refused_with_what_to_upgrade() {
    let house = House::open().await;
    let fake = Fake::register(&house, "e").await;
    let own = octavius_controller::VERSION;
    let mut parts = own.split('.').map(|part| part.parse::<u64>().unwrap());
    let (major, minor) = (parts.next().unwrap(), parts.next().unwrap());
    for version in [format!("{major}.{}.7", minor + 1), format!("{major}.{minor}.99")] {
        drop(fake.session(v1::Hello { version, ..hello(1) }).await.unwrap());
    }
    for (version, upgrade) in [
        (format!("{major}.{}.0", minor + 2), "the controller"),
        (format!("{}.{minor}.0", major + 1), "the controller"),
        ("latest".to_owned(), "executor e"),
        (String::new(), "executor e"),
    ] {
        let fault = fake.session(v1::Hello { version: version.clone(), ..hello(1) }).await.err().unwrap();
        assert_eq!((fault.code, fault.reason.as_str()), (Code::FailedPrecondition, reason::VERSION_SKEW));
        assert!(fault.message.contains(&version) && fault.message.contains(own), "{}", fault.message);
        assert!(fault.message.ends_with(&format!("upgrade {upgrade}")), "{}", fault.message);
    }
}

#[tokio::test]
async fn one_that_missed_its_deadline_comes_back_and_is_given_work() {
    let house = House::with(Timing { ping_deadline: Duration::from_millis(400), ..crate::harness::timing() }).await;
    house.apply(&[JOB]).await;
    let admin = house.admin().await;
    let fake = Fake::register(&house, "e").await;
    assert_eq!(find(&admin, "e").await.unwrap().state(), ExecutorState::Registered);
    let session = fake.session(hello(1)).await.unwrap();
    becomes(&admin, "e", ExecutorState::Active).await;
    session.falls_silent();
    becomes(&admin, "e", ExecutorState::Expired).await;
    let id = house.execute("j").await;
    let mut session = fake.session(hello(1)).await.unwrap();
    assert_eq!(session.assignment().await.id, id);
    becomes(&admin, "e", ExecutorState::Active).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn nothing_of_a_paused_job_starts_and_others_do() {
    let house = House::open().await;
    let neighbour = house.neighbour().await;
    house.apply(&[JOB, OTHER]).await;
    let admin = house.admin().await;
    let at_b = connect(neighbour.address(), Some(&house.token)).await;
    let fake = Fake::register(&house, "e").await;
    let mut session = fake.session(hello(4)).await.unwrap();
    house.execute("j").await;
    let runs = session.assignment().await;
    fake.begins(&runs).await;

    let first = pause(&at_b, "J").await.unwrap();
    assert_eq!((first.by.as_str(), first.all, first.reason.as_str()), ("admin", false, "moving"));
    assert_eq!(pause(&admin, "j").await.unwrap(), first, "it is paused since it was first");
    let waits = execute(&admin, "j", &[]).await.unwrap();
    let passes = execute(&admin, "other", &[]).await.unwrap();
    let claim = session.assignment().await;
    assert_eq!(claim.id, passes);
    fake.completes(&claim, b"").await;
    session.hears_nothing(4).await;
    fake.completes(&runs, b"").await; // what ran goes on
    session.hears_nothing(4).await;

    // It is shown, by whichever controller.
    for by in [&admin, &at_b] {
        let shown = by.catalog().get_job(v1::GetJobRequest { name: "j".into() }).await.unwrap().into_inner().paused;
        assert_eq!(shown, Some(first.clone()));
        let listed = by.catalog().list_jobs(v1::ListJobsRequest::default()).await.unwrap().into_inner().jobs;
        let paused: Vec<_> = listed.iter().map(|job| (job.name.as_str(), job.paused.is_some())).collect();
        assert_eq!(paused, [("j", true), ("other", false)]);
    }

    // With all jobs, and by its own name still.
    pause(&admin, "").await.unwrap();
    let other = execute(&at_b, "other", &[]).await.unwrap();
    session.hears_nothing(4).await;
    let left = unpause(&at_b, "").await.unwrap();
    assert_eq!((left.was_paused, left.still_paused), (true, vec!["j".to_owned()]));
    assert_eq!(session.assignment().await.id, other);
    session.hears_nothing(4).await;
    let left = unpause(&admin, "j").await.unwrap();
    assert!(left.was_paused && left.all.is_none());
    assert_eq!(session.assignment().await.id, waits);
    assert!(!unpause(&admin, "j").await.unwrap().was_paused, "said again, it changes nothing");
    neighbour.stop().await;
}

#[tokio::test]
async fn a_pause_names_a_job_that_there_is_or_all_of_them() {
    let house = House::open().await;
    house.apply(&[r#"{"name":"refund-order","command":["true"]}"#]).await;
    let admin = house.admin().await;
    for fault in [pause(&admin, "refund-ordre").await.unwrap_err(), unpause(&admin, "refund-ordre").await.unwrap_err()] {
        assert_eq!((fault.reason.as_str(), fault.fact("nearest")), (reason::JOB_NOT_FOUND, Some("refund-order")));
    }
    for (job, all, why) in [("", false, ""), ("refund-order", true, ""), ("refund-order", false, "a\nb")] {
        let request = v1::PauseJobsRequest { job: job.into(), all, reason: why.into() };
        assert_eq!(told(&admin.admin().pause_jobs(request).await.unwrap_err()).code, Code::InvalidArgument);
    }
    // A job that is gone can be unpaused all the same.
    pause(&admin, "refund-order").await.unwrap();
    let removal = v1::ApplyHeader { remove: vec!["refund-order".into()], ..crate::harness::header("c", 1, &[]) };
    crate::harness::apply(&admin, removal, &[]).await.unwrap();
    assert!(unpause(&admin, "refund-order").await.unwrap().was_paused);
}
