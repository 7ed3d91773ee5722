//! What waits for approval: through whichever door it came it starts only when those have said so who may, in time, and whoever waits, who may
//! and who has is told.

use std::time::Duration;

use octavius_controller::Clock;
use octavius_core::{ExecutionId, Timestamp, Timing};
use octavius_proto::client::Connection;
use octavius_proto::v1::{self, ExecutionState as S, Role, Verdict};
use octavius_proto::{Fault, reason};
use octavius_store::{Range, Txn, key};
use tonic::Code;

use crate::fake::{Fake, Session, hello};
use crate::harness::{
    House, cancel, connect, eventually, execute, get, reaches, request, rerun_request, send, send_rerun, soon, timing, told,
};
use crate::waiting::http;

const GATED: &str = r#"{"name":"gated","command":["true"],"approvals":{}}"#;
const HOUR: Duration = Duration::from_secs(3600);

async fn approve(connection: &Connection, id: &str) -> Result<v1::Execution, Fault> {
    let request = v1::ApproveExecutionRequest { id: id.to_owned(), reason: "seen".into() };
    let response = connection.executions().approve_execution(request).await.map_err(|status| told(&status))?;
    Ok(response.into_inner().execution.unwrap())
}

async fn reject(connection: &Connection, id: &str) -> Result<v1::Execution, Fault> {
    let request = v1::RejectExecutionRequest { id: id.to_owned(), reason: "not today".into() };
    let response = connection.executions().reject_execution(request).await.map_err(|status| told(&status))?;
    Ok(response.into_inner().execution.unwrap())
}

async fn sees(connection: &Connection, id: &str) -> Result<v1::Execution, Fault> {
    let request = v1::GetExecutionRequest { id: id.to_owned() };
    let response = connection.executions().get_execution(request).await.map_err(|status| told(&status))?;
    Ok(response.into_inner().execution.unwrap())
}

/// The ids of all that waits for approval and that they may see, page by page of `limit`.
async fn awaiting(connection: &Connection, limit: u32) -> Vec<String> {
    let states = vec![S::WaitingForApproval.into()];
    let mut request = v1::ListExecutionsRequest { all: true, states, limit, ..Default::default() };
    let mut ids = Vec::new();
    loop {
        let page = connection.executions().list_executions(request.clone()).await.unwrap().into_inner();
        assert!(page.executions.iter().all(|execution| execution.state() == S::WaitingForApproval), "{page:?}");
        ids.extend(page.executions.into_iter().map(|execution| execution.id));
        if page.next_page_token.is_empty() {
            return ids;
        }
        request.page_token = page.next_page_token;
    }
}

/// How many keys the store has of what waits for approval, and of what is queued.
async fn indexed(house: &House) -> (usize, usize) {
    let count = async |prefix| house.store().range(&Range::of(prefix, 100)).await.unwrap().entries.len();
    (count(key::awaiting_approval()).await, count(key::queue()).await)
}

/// A clock near the time that it is: ids and tokens are held against that.
fn clock() -> Clock {
    let minute = Timestamp::now().as_second() / 60 * 60;
    Clock::manual(Timestamp::from_second(minute + 30).unwrap())
}

async fn executor(house: &House, capacity: u32) -> (Fake, Session) {
    let fake = Fake::register(house, "e").await;
    let session = fake.session(hello(capacity)).await.unwrap();
    (fake, session)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn through_every_door_it_waits_until_it_is_approved() {
    let house = House::open().await;
    house.apply(&[GATED]).await;
    let (ann, bob) = (house.person(Role::User, "ann", &[]).await, house.person(Role::User, "bob", &[]).await);
    let (fake, mut session) = executor(&house, 1).await;
    let asked = v1::ExecuteRequest { idempotency_key: "monday".into(), ..request("gated", &[]) };
    let first = send(&ann, asked.clone()).await.unwrap();
    let rerun = send_rerun(&ann, rerun_request(&first)).await.unwrap();
    // The same call again, by its id and by its key: what waits already is the answer.
    assert_eq!(send(&ann, asked.clone()).await.as_ref(), Ok(&first));
    let id = ExecutionId::generate().to_string();
    assert_eq!(send(&ann, v1::ExecuteRequest { id, ..asked.clone() }).await.as_ref(), Ok(&first));
    session.hears_nothing(3).await;
    assert_eq!((indexed(&house).await, awaiting(&ann, 50).await), ((2, 0), vec![rerun.clone(), first.clone()]));
    for id in [&first, &rerun] {
        assert_eq!(get(&ann, id).await.state(), S::WaitingForApproval);
        assert_eq!(approve(&bob, id).await.unwrap().state(), S::Queued);
        let claim = session.assignment().await;
        assert_eq!(&claim.id, id);
        fake.completes(&claim, b"").await;
    }
    // Once approved and run, the same call asks for nothing new, and an answer that was lost is given again.
    assert_eq!(send(&ann, asked).await.as_ref(), Ok(&first));
    assert_eq!(approve(&bob, &first).await.unwrap().state(), S::Succeeded);
    assert_eq!((indexed(&house).await, awaiting(&ann, 50).await), ((0, 0), vec![]));
    // What is over, or asks for nothing, is nobody's to approve.
    house.apply(&[r#"{"name":"open","command":["true"]}"#]).await;
    let open = execute(&ann, "open", &[]).await.unwrap();
    assert_eq!(session.assignment().await.id, open);
    for (id, state) in [(first, "succeeded"), (open, "claimed")] {
        let fault = approve(&house.admin().await, &id).await.unwrap_err();
        assert_eq!((fault.code, fault.reason.as_str()), (Code::FailedPrecondition, reason::NOT_WAITING_FOR_APPROVAL));
        assert_eq!(fault.message, format!("execution {id} does not wait for approval: it is {state}"));
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_tick_of_a_schedule_waits_too_and_the_next_is_skipped_meanwhile() {
    let clock = clock();
    let house = House::by(clock.clone()).await;
    let (_fake, mut session) = executor(&house, 2).await;
    house
        .apply(&[r#"{"name":"nightly","command":["true"],"schedule":{"cron":"* * * * *"},"approvals":{"valid_for":"1h"}}"#])
        .await;
    eventually("the cursor of a new schedule", async || {
        house.store().get(&key::tick("nightly")).await.unwrap().ok_or_else(|| "none".to_owned()).map(drop)
    })
    .await;
    let bob = house.person(Role::User, "bob", &[]).await;
    clock.advance(Duration::from_secs(60));
    let ids = eventually("a tick's execution", async || match awaiting(&bob, 50).await {
        ids if ids.is_empty() => Err("none".to_owned()),
        ids => Ok(ids),
    })
    .await;
    clock.advance(Duration::from_secs(60));
    session.hears_nothing(3).await;
    assert_eq!(awaiting(&bob, 50).await, ids);
    // Nobody in particular asked for it: who may run the job may approve it.
    approve(&bob, &ids[0]).await.unwrap();
    assert_eq!(session.assignment().await.id, ids[0]);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_waits_outlives_its_controller_and_is_approved_through_any() {
    let mut house = House::open().await;
    house.apply(&[r#"{"name":"gated","command":["true"],"approvals":{"count":2}}"#]).await;
    let ann = house.token(Role::User, "ann", &[]).await.token;
    let bob = house.token(Role::User, "bob", &[]).await.token;
    let cyn = house.token(Role::User, "cyn", &[]).await.token;
    let token = house.register("e").await;
    let id = execute(&house.connect(Some(&ann)).await, "gated", &[]).await.unwrap();
    house.stop().await;
    house.start_again().await;
    let neighbour = house.neighbour().await;
    let fake = Fake { connection: house.connect(Some(&token)).await };
    let mut session = fake.session(hello(1)).await.unwrap();
    session.hears_nothing(2).await;
    let there = connect(neighbour.address(), Some(&bob)).await;
    assert_eq!(awaiting(&there, 50).await, std::slice::from_ref(&id));
    // Two people at both at once: both count, and it is handed out once.
    let here = house.connect(Some(&cyn)).await;
    let (one, other) = tokio::join!(approve(&here, &id), approve(&there, &id));
    let mut after = [one.unwrap(), other.unwrap()].map(|known| (known.approvals.as_ref().unwrap().approved.len(), known.state()));
    after.sort_unstable();
    assert_eq!(after[0], (1, S::WaitingForApproval));
    assert_eq!(after[1].0, 2);
    assert_eq!(session.assignment().await.id, id);
    let mut approved: Vec<_> = get(&here, &id).await.approvals.unwrap().approved.into_iter().map(|one| one.by).collect();
    approved.sort_unstable();
    assert_eq!(approved, ["bob", "cyn"]);
    session.hears_nothing(2).await;
    neighbour.stop().await;
}

#[tokio::test]
async fn only_those_approve_whom_the_file_names_and_they_see_what_they_judge() {
    let house = House::open().await;
    let job = r#"{"name":"vip","command":["true"],"authorized_groups":["support"],"env_vars":{"args":[{"name":"order"}]},
        "approvals":{"groups":["leads","ops"]}}"#;
    house.apply(&[job]).await;
    let ann = house.person(Role::User, "ann", &["support", "leads"]).await;
    let id = execute(&ann, "vip", &[("order", "A-1")]).await.unwrap();

    let fault = approve(&ann, &id).await.unwrap_err();
    assert_eq!((fault.code, fault.reason.as_str()), (Code::PermissionDenied, reason::NOT_AN_APPROVER));
    assert!(fault.message.contains("somebody else must"), "{fault:?}");
    assert!(!get(&ann, &id).await.approvals.unwrap().is_callers);
    // Another token of hers is she.
    let also_ann = house.person(Role::Admin, "ann", &["leads"]).await;
    assert_eq!(approve(&also_ann, &id).await.unwrap_err().reason, reason::NOT_AN_APPROVER);
    // Who may run it may not approve it for that, and an admin is bound by what was reviewed.
    for somebody in [house.person(Role::User, "sue", &["support"]).await, house.admin().await] {
        let fault = approve(&somebody, &id).await.unwrap_err();
        assert_eq!((fault.code, fault.reason.as_str()), (Code::PermissionDenied, reason::NOT_AN_APPROVER));
        assert!(fault.message.ends_with("only members of leads or ops may approve or reject it"), "{fault:?}");
        assert_eq!(reject(&somebody, &id).await.unwrap_err().reason, reason::NOT_AN_APPROVER);
    }
    // To others it is not there, and viewers approve nothing.
    let eve = house.person(Role::User, "eve", &["sales"]).await;
    assert_eq!(approve(&eve, &id).await.unwrap_err().reason, reason::EXECUTION_NOT_FOUND);
    let viewer = house.person(Role::Viewer, "vic", &["ops"]).await;
    assert_eq!(approve(&viewer, &id).await.unwrap_err().reason, reason::NOT_PERMITTED);
    assert_eq!(sees(&viewer, &id).await.unwrap_err().reason, reason::EXECUTION_NOT_FOUND, "and have nothing to judge");

    let bob = house.person(Role::User, "bob", &["ops"]).await;
    assert_eq!(execute(&bob, "vip", &[]).await.unwrap_err().reason, reason::JOB_NOT_FOUND, "it is not his to run");
    assert_eq!(awaiting(&bob, 50).await, std::slice::from_ref(&id));
    let seen = get(&bob, &id).await;
    let approvals = seen.approvals.as_ref().unwrap();
    assert_eq!(
        (approvals.groups.as_slice(), approvals.count, approvals.not_self),
        (&["leads".to_owned(), "ops".into()][..], 1, true)
    );
    assert!(approvals.is_callers && !approvals.has_callers && approvals.approved.is_empty());
    assert_eq!(seen.arguments["order"], "A-1");
    let created = seen.created_at.unwrap();
    assert_eq!(approvals.expires_at.unwrap().seconds, created.seconds + 24 * 3600);
    let approved = approve(&bob, &id[18..]).await.unwrap();
    assert_eq!(approved.state(), S::Queued);
    let approvals = approved.approvals.unwrap();
    assert!(!approvals.is_callers && approvals.has_callers);
    assert_eq!((approvals.approved[0].by.as_str(), approvals.approved[0].reason.as_str()), ("bob", "seen"));
    assert!(approvals.approved[0].at.is_some());

    let long = v1::ApproveExecutionRequest { id, reason: "x".repeat(201) };
    let fault = told(&bob.executions().approve_execution(long).await.unwrap_err());
    assert_eq!((fault.code, fault.violations[0].field.as_str()), (Code::InvalidArgument, "reason"));
}

#[tokio::test]
async fn who_only_judges_an_execution_sees_it_while_they_do_and_neither_reads_its_log_nor_cancels_it() {
    let house = House::open().await;
    let job = r#"{"name":"vip","command":["true"],"authorized_groups":["support"],"env_vars":{"args":[{"name":"order"}]},
        "approvals":{"groups":["ops"]}}"#;
    house.apply(&[job]).await;
    let ann = house.person(Role::User, "ann", &["support"]).await;
    let (bob, cyn) = (house.person(Role::User, "bob", &["ops"]).await, house.person(Role::User, "cyn", &["ops"]).await);
    let (fake, mut session) = executor(&house, 1).await;
    let id = execute(&ann, "vip", &[("order", "A-1")]).await.unwrap();
    let watch = async |connection: &Connection| {
        let watched = v1::WatchExecutionRequest { id: id.clone() };
        let mut watch = connection.executions().watch_execution(watched).await.unwrap().into_inner();
        let first = soon("a state", watch.message()).await.unwrap().unwrap().execution.unwrap();
        assert_eq!((first.state(), first.arguments["order"].as_str()), (S::WaitingForApproval, "A-1"));
        watch
    };
    let (mut bobs, mut cyns) = (watch(&bob).await, watch(&cyn).await);
    let may_do_nothing_else = async |connection: &Connection| {
        let read = v1::ReadLogRequest { id: id.clone(), ..Default::default() };
        let cancel = v1::CancelExecutionRequest { id: id.clone() };
        for (status, what) in [
            (connection.logs().read_log(read).await.map(drop).unwrap_err(), "read its log"),
            (connection.executions().cancel_execution(cancel).await.map(drop).unwrap_err(), "cancel it"),
        ] {
            let fault = told(&status);
            assert_eq!((fault.code, fault.reason.as_str()), (Code::PermissionDenied, reason::NOT_PERMITTED));
            let why = format!("yours to approve or reject, not to {what}: that is for ann and for the groups of job vip");
            assert!(fault.message.ends_with(&why), "{fault:?}");
        }
    };
    may_do_nothing_else(&bob).await;
    // Each is told beforehand, so that nobody is offered what would be refused.
    for (somebody, is_theirs) in [(&ann, true), (&house.admin().await, true), (&bob, false)] {
        assert_eq!(get(somebody, &id).await.is_callers, is_theirs);
    }
    approve(&bob, &id).await.unwrap();

    // He sees what has come of his word. She has said nothing, and it is nothing to her any more.
    let next = soon("the next state", bobs.message()).await.unwrap().unwrap().execution.unwrap();
    assert_eq!(next.state(), S::Queued);
    let fault = told(&soon("the end", cyns.message()).await.unwrap_err());
    assert_eq!(fault.reason, reason::EXECUTION_NOT_FOUND);
    assert_eq!(sees(&cyn, &id).await.unwrap_err().reason, reason::EXECUTION_NOT_FOUND);
    let late = approve(&cyn, &id).await.unwrap();
    assert!(late.arguments.is_empty() && late.attempts.is_empty(), "it goes on as she wants it: {late:?}");
    assert_eq!(reject(&cyn, &id).await.unwrap_err().reason, reason::NOT_WAITING_FOR_APPROVAL);
    let claim = session.assignment().await;
    fake.completes(&claim, b"of support's").await;
    assert_eq!(reaches(&bob, &id, S::Succeeded).await.arguments["order"], "A-1");
    may_do_nothing_else(&bob).await;
    let read = v1::ReadLogRequest { id: id.clone(), ..Default::default() };
    ann.logs().read_log(read).await.unwrap();
    // Nor is it hers to judge what never was for approval, or was rejected by another.
    let rejected = execute(&ann, "vip", &[]).await.unwrap();
    reject(&bob, &rejected).await.unwrap();
    assert_eq!(sees(&bob, &rejected).await.unwrap().state(), S::Cancelled);
    assert_eq!(sees(&cyn, &rejected).await.unwrap_err().reason, reason::EXECUTION_NOT_FOUND);
}

/// What waits may have been asked for before a thousand others.
#[tokio::test]
async fn the_end_of_an_id_finds_what_waits_however_much_came_after_it() {
    let house = House::open().await;
    house.apply(&[GATED, r#"{"name":"open","command":["true"]}"#]).await;
    let (ann, bob) = (house.person(Role::User, "ann", &[]).await, house.person(Role::User, "bob", &[]).await);
    let id = execute(&ann, "gated", &[]).await.unwrap();
    let open: ExecutionId = execute(&ann, "open", &[]).await.unwrap().parse().unwrap();
    let record = house.store().get(&key::execution(open)).await.unwrap().unwrap().value;
    for _ in 0..10 {
        let txn = (0..100).fold(Txn::new(), |txn, _| txn.put(key::execution(ExecutionId::generate()), record.clone()));
        house.store().commit(txn).await.unwrap();
    }
    assert_eq!(approve(&bob, &id[14..]).await.unwrap().id, id);
}

#[tokio::test]
async fn two_pairs_of_eyes_are_two_people() {
    let house = House::open().await;
    house.apply(&[r#"{"name":"twice","command":["true"],"approvals":{"count":2,"not_self":false}}"#]).await;
    let ann = house.person(Role::User, "ann", &[]).await;
    let id = execute(&ann, "twice", &[]).await.unwrap();
    let admin = house.admin().await;
    let mut watch = {
        let watched = v1::WatchExecutionRequest { id: id.clone() };
        admin.executions().watch_execution(watched).await.unwrap().into_inner()
    };
    let mut next = async || {
        let execution = soon("a state", watch.message()).await.unwrap().unwrap().execution.unwrap();
        (execution.state(), execution.approvals.unwrap().approved.len())
    };
    assert_eq!(next().await, (S::WaitingForApproval, 0));
    for connection in [&ann, &house.person(Role::User, "ann", &[]).await] {
        let after = approve(connection, &id).await.unwrap();
        let approvals = after.approvals.as_ref().unwrap();
        assert_eq!((after.state(), approvals.approved.len()), (S::WaitingForApproval, 1));
        assert!(approvals.is_callers && approvals.has_callers, "she may still reject it");
    }
    // The rule is that of the definition that it runs, whatever is applied meanwhile.
    house.apply(&[r#"{"name":"twice","command":["true"]}"#]).await;
    assert_eq!(get(&ann, &id).await.state(), S::WaitingForApproval);
    assert_eq!(approve(&admin, &id).await.unwrap().state(), S::Queued);
    assert_eq!([next().await, next().await], [(S::WaitingForApproval, 1), (S::Queued, 2)], "each step of it");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_is_not_approved_and_started_in_time_ends() {
    let clock = clock();
    let house = House::by(clock.clone()).await;
    let hourly = r#"{"name":"hourly","command":["true"],"retries":1,"approvals":{"valid_for":"1h"}}"#;
    // Nobody can take it, also where a claim is given up just when its time is over.
    let nowhere = r#"{"name":"nowhere","command":["true"],"executor":{"zone":"none"},"approvals":{"valid_for":"1h"}}"#;
    house.apply(&[hourly, nowhere]).await;
    let (ann, bob) = (house.person(Role::User, "ann", &[]).await, house.person(Role::User, "bob", &[]).await);
    let (fake, mut session) = executor(&house, 2).await;
    let mut ids = Vec::new();
    for job in ["hourly", "hourly", "nowhere", "hourly"] {
        ids.push(execute(&ann, job, &[]).await.unwrap());
    }
    // The first starts and fails, and is about to be tried again; the second is claimed; the third is approved; the fourth is not.
    approve(&bob, &ids[0]).await.unwrap();
    let started = session.assignment().await;
    fake.begins(&started).await;
    approve(&bob, &ids[1]).await.unwrap();
    let claimed = session.assignment().await;
    approve(&bob, &ids[2]).await.unwrap();
    clock.advance(HOUR);
    for (id, why) in [(&ids[2], "did not start within 1h"), (&ids[3], "0 of 1 approvals came within 1h")] {
        let ended = reaches(&bob, id, S::TimedOut).await;
        assert_eq!(ended.reason, "APPROVAL_EXPIRED");
        assert!(ended.message.contains(why), "{}", ended.message);
    }
    let fault = approve(&bob, &ids[3]).await.unwrap_err();
    assert_eq!((fault.code, fault.reason.as_str()), (Code::FailedPrecondition, reason::NOT_WAITING_FOR_APPROVAL));
    // An hour is longer than a claim may be unfollowed, too; however it comes, it does not start, and ends.
    assert_eq!(fake.starts(&claimed).await, Verdict::Stop);
    assert_eq!(reaches(&bob, &ids[1], S::TimedOut).await.reason, "APPROVAL_EXPIRED");
    assert_eq!(fake.finishes(&started, S::Failed, b"").await, Ok(Verdict::Accepted));
    // The pause before the next attempt begins when the controller sees that there is one: its clock goes on until that is over.
    let again = soon("the second attempt", async {
        loop {
            match session.heard.message().await.unwrap().unwrap().say {
                Some(v1::session_response::Say::Assignment(again)) => return again,
                _ => clock.advance(Duration::from_secs(1)),
            }
        }
    })
    .await;
    assert_eq!((again.id.as_str(), again.attempt), (ids[0].as_str(), 2), "what has started was approved for good");
    fake.completes(&again, b"").await;
    assert_eq!(indexed(&house).await, (0, 0));
}

/// It is in the queue until somebody looks at who has waited for too long, and an executor that comes before is not given it.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_was_approved_and_is_too_late_is_not_handed_out() {
    let clock = clock();
    let house = House::by_and_with(clock.clone(), Timing { reconcile_interval: Duration::from_secs(3), ..timing() }).await;
    house.apply(&[r#"{"name":"brief","command":["true"],"approvals":{"valid_for":"1m"}}"#]).await;
    let (ann, bob) = (house.person(Role::User, "ann", &[]).await, house.person(Role::User, "bob", &[]).await);
    let id = execute(&ann, "brief", &[]).await.unwrap();
    approve(&bob, &id).await.unwrap();
    clock.advance(Duration::from_secs(60));
    let (_fake, mut session) = executor(&house, 1).await;
    session.hears_nothing(3).await;
    let ended = reaches(&bob, &id, S::TimedOut).await;
    assert_eq!((ended.reason.as_str(), ended.attempts.len()), ("APPROVAL_EXPIRED", 0));
    assert_eq!(indexed(&house).await, (0, 0));
}

/// The claim is younger than it may be, and its approval is not.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_start_that_comes_too_late_is_refused_and_ends_it() {
    let clock = clock();
    let house = House::by(clock.clone()).await;
    house.apply(&[r#"{"name":"brief","command":["true"],"approvals":{"valid_for":"1m"}}"#]).await;
    let (ann, bob) = (house.person(Role::User, "ann", &[]).await, house.person(Role::User, "bob", &[]).await);
    let (fake, mut session) = executor(&house, 1).await;
    let id = execute(&ann, "brief", &[]).await.unwrap();
    clock.advance(Duration::from_secs(59));
    approve(&bob, &id).await.unwrap();
    let claim = session.assignment().await;
    clock.advance(Duration::from_secs(1));
    assert_eq!(fake.starts(&claim).await, Verdict::Stop);
    let ended = get(&bob, &id).await;
    assert_eq!((ended.state(), ended.reason.as_str()), (S::TimedOut, "APPROVAL_EXPIRED"));
}

#[tokio::test]
async fn what_is_rejected_or_cancelled_never_starts() {
    let house = House::open().await;
    house.apply(&[GATED]).await;
    let (ann, bob) = (house.person(Role::User, "ann", &[]).await, house.person(Role::User, "bob", &[]).await);
    let (_fake, mut session) = executor(&house, 1).await;
    let rejected = execute(&ann, "gated", &[]).await.unwrap();
    let cancelled = execute(&ann, "gated", &[]).await.unwrap();
    for _ in 0..2 {
        let ended = reject(&bob, &rejected).await.unwrap();
        assert_eq!((ended.state(), ended.reason.as_str()), (S::Cancelled, "REJECTED"));
        assert_eq!(ended.message, "rejected by bob: not today");
        assert_eq!(ended.approvals.unwrap().rejected.unwrap().by, "bob");
    }
    assert_eq!(cancel(&ann, &cancelled).await.state(), S::Cancelled);
    // One approval is there, and it is cancelled before it starts: whoever gave it is told so when they give it again.
    house.apply(&[r#"{"name":"twice","command":["true"],"approvals":{"count":2}}"#]).await;
    let halfway = execute(&ann, "twice", &[]).await.unwrap();
    approve(&house.admin().await, &halfway).await.unwrap();
    assert_eq!(cancel(&ann, &halfway).await.state(), S::Cancelled);
    for id in [&rejected, &cancelled, &halfway] {
        let fault = approve(&house.admin().await, id).await.unwrap_err();
        assert_eq!((fault.reason.as_str(), fault.fact("state")), (reason::NOT_WAITING_FOR_APPROVAL, Some("cancelled")));
    }
    session.hears_nothing(2).await;
    assert_eq!(indexed(&house).await, (0, 0));
    // Once it is approved it is stopped by whoever may cancel it.
    let approved = execute(&ann, "gated", &[]).await.unwrap();
    approve(&bob, &approved).await.unwrap();
    assert_eq!(reject(&bob, &approved).await.unwrap_err().reason, reason::NOT_WAITING_FOR_APPROVAL);
    assert_eq!(session.assignment().await.id, approved);
    eventually("the decisions to be counted", async || {
        let (_, body) = http(house.metrics_address(), "GET", "/metrics").await;
        let expected = [
            "octavius_approvals_total{decision=\"approved\"} 2",
            "octavius_approvals_total{decision=\"rejected\"} 1",
            "octavius_executions_waiting_for_approval 0",
        ];
        if expected.iter().all(|line| body.lines().any(|known| known == *line)) { Ok(()) } else { Err(body) }
    })
    .await;
}

#[tokio::test]
async fn what_waits_for_approval_is_listed_without_looking_at_anything_else() {
    let house = House::open().await;
    house.apply(&[GATED, r#"{"name":"open","command":["true"]}"#]).await;
    let (ann, bob) = (house.person(Role::User, "ann", &[]).await, house.person(Role::User, "bob", &[]).await);
    let mut ids = Vec::new();
    for _ in 0..5 {
        execute(&ann, "open", &[]).await.unwrap();
        ids.push(execute(&ann, "gated", &[]).await.unwrap());
    }
    ids.push(execute(&bob, "gated", &[]).await.unwrap());
    ids.reverse();
    assert_eq!(awaiting(&bob, 2).await, ids, "newest first, over pages");
    let states = vec![S::WaitingForApproval.into()];
    let request = v1::ListExecutionsRequest { states: states.clone(), ..Default::default() };
    let own = bob.executions().list_executions(request.clone()).await.unwrap().into_inner().executions;
    assert_eq!(own.iter().map(|execution| &execution.id).collect::<Vec<_>>(), [&ids[0]]);
    assert!(!own[0].approvals.as_ref().unwrap().is_callers, "one's own is another's to approve");
    let request = v1::ListExecutionsRequest { user: "ann".into(), job: "GATED".into(), ..request };
    let anns = bob.executions().list_executions(request.clone()).await.unwrap().into_inner().executions;
    assert_eq!(anns.len(), 5);
    assert!(anns.iter().all(|execution| execution.approvals.as_ref().unwrap().is_callers));
    let other = v1::ListExecutionsRequest { job: "open".into(), ..request };
    assert_eq!(bob.executions().list_executions(other).await.unwrap().into_inner().executions, []);
    // What the index does not have is not looked for: nothing else is read.
    let id: ExecutionId = ids[0].parse().unwrap();
    house.store().commit(octavius_store::Txn::new().delete(key::awaits_approval(id))).await.unwrap();
    assert_eq!(awaiting(&bob, 50).await, ids[1..]);
    eventually("five to be counted", async || {
        let (_, body) = http(house.metrics_address(), "GET", "/metrics").await;
        let counted = body.lines().any(|line| line == "octavius_executions_waiting_for_approval 5");
        if counted { Ok(()) } else { Err(body) }
    })
    .await;
}
