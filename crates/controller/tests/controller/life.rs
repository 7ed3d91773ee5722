//! The life of executions, from the queue to their end, with an executor that does as it is told or does not.

use std::time::Duration;

use octavius_core::Timing;
use octavius_proto::client::Connection;
use octavius_proto::reason;
use octavius_proto::v1::report_execution_request::Step;
use octavius_proto::v1::session_response::Say;
use octavius_proto::v1::{self, ExecutionState as S, Verdict};
use tonic::Code;

use crate::fake::{Fake, finished, held, hello, labelled};
use crate::harness::{House, cancel, eventually, execute, get, header, reaches, soon, timing};
use crate::operators::find;

const JOB: &str = r#"{"name":"j","command":["true"]}"#;

/// All states that a watch tells, to its end.
async fn states(connection: Connection, id: String) -> Vec<S> {
    let mut watch = connection.executions().watch_execution(v1::WatchExecutionRequest { id }).await.unwrap().into_inner();
    let mut states = Vec::new();
    while let Some(seen) = soon("a state", watch.message()).await.unwrap() {
        states.push(seen.execution.unwrap().state());
    }
    states
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_watch_tells_each_state_once_in_order_and_ends() {
    let house = House::open().await;
    house.apply(&[JOB]).await;
    let admin = house.admin().await;
    let fake = Fake::register(&house, "e").await;
    for round in 0..5 {
        let id = house.execute("j").await;
        let mut watches = Vec::new();
        for _ in 0..3 {
            watches.push(tokio::spawn(states(admin.clone(), id.clone())));
        }
        // The last ones come while everything happens, and see the rest.
        let late = tokio::spawn(states(admin.clone(), id.clone()));
        let watcher = states(admin.clone(), id.clone());
        let life = async {
            let mut session = fake.session(hello(1)).await.unwrap();
            let assignment = session.assignment().await;
            assert_eq!(assignment.id, id);
            fake.completes(&assignment, b"hello\n").await;
        };
        let (_, first) = tokio::join!(life, watcher);
        let whole = [S::Queued, S::Claimed, S::Starting, S::Running, S::Succeeded];
        let is_end_of = |seen: &[S]| whole.ends_with(seen) && !seen.is_empty();
        assert!(is_end_of(&first), "{first:?} in round {round}");
        for watch in watches.into_iter().chain([late]) {
            let seen = watch.await.unwrap();
            assert!(is_end_of(&seen), "{seen:?} in round {round}");
        }
        let execution = get(&admin, &id).await;
        let attempt = &execution.attempts[0];
        assert_eq!((attempt.log_size, attempt.runs_as.as_str(), execution.exit_code), (Some(6), "pid 7", Some(0)));
        assert_eq!(attempt.image, "i@sha256:7");
        assert_eq!(states(admin.clone(), id).await, [S::Succeeded], "one that has ended is told once");
    }
}

#[tokio::test]
async fn an_executor_that_has_no_room_is_given_nothing_until_it_says_that_it_has() {
    let house = House::open().await;
    house.apply(&[JOB]).await;
    let fake = Fake::register(&house, "e").await;
    let mut session = fake.session(hello(1)).await.unwrap();
    session.says_free(0).await;
    session.hears_nothing(1).await;
    let id = house.execute("j").await;
    session.hears_nothing(3).await;
    session.says_free(1).await;
    let claim = session.assignment().await;
    assert_eq!(claim.id, id);
    // What it gives back does not come again at once.
    session.says_free(0).await;
    let back = Step::HandedBack(v1::HandedBack { message: "no room".into() });
    assert_eq!(fake.report(&claim, back).await, Ok(Verdict::Accepted));
    session.hears_nothing(3).await;
    session.says_free(1).await;
    assert_eq!(session.assignment().await.id, id);
}

#[tokio::test]
async fn claims_that_come_to_nothing_do_not_make_the_wait_longer() {
    let house = House::with(Timing { queue_timeout: Duration::from_secs(1), ..timing() }).await;
    house.apply(&[JOB]).await;
    let admin = house.admin().await;
    let fake = Fake::register(&house, "e").await;
    let mut session = fake.session(hello(1)).await.unwrap();
    let id = house.execute("j").await;
    let give_back = async {
        loop {
            let claim = session.assignment().await;
            let back = Step::HandedBack(v1::HandedBack { message: "not now".into() });
            fake.report(&claim, back).await.unwrap();
            session.says_free(1).await;
        }
    };
    let ended = tokio::select! {
        ended = reaches(&admin, &id, S::TimedOut) => ended,
        () = give_back => unreachable!(),
    };
    assert_eq!(ended.reason, "QUEUE_DEADLINE");
}

#[tokio::test]
async fn an_executor_that_is_there_and_says_nothing_for_long_loses_what_it_runs() {
    let house = House::with(Timing { overdue: Duration::from_millis(300), ..timing() }).await;
    house.apply(&[r#"{"name":"j","command":["true"],"timeout":"100ms"}"#]).await;
    let admin = house.admin().await;
    let fake = Fake::register(&house, "e").await;
    let mut session = fake.session(hello(1)).await.unwrap();
    let id = house.execute("j").await;
    let claim = session.assignment().await;
    fake.begins(&claim).await;
    let ended = reaches(&admin, &id, S::Lost).await;
    assert_eq!(ended.reason, "EXECUTOR_LOST");
    assert!(ended.message.contains("long after its timeout of 100ms"), "{}", ended.message);
    // What it says in the end is kept beside the loss.
    fake.finishes(&claim, S::Succeeded, b"").await.unwrap();
    assert_eq!(get(&admin, &id).await.attempts[0].late.clone().unwrap().outcome(), S::Succeeded);
}

#[tokio::test]
async fn reports_can_be_repeated_and_only_the_holder_may_make_them() {
    let house = House::open().await;
    house.apply(&[JOB]).await;
    let (fake, thief) = (Fake::register(&house, "e").await, Fake::register(&house, "thief").await);
    let mut session = fake.session(hello(1)).await.unwrap();
    house.execute("j").await;
    let claim = session.assignment().await;
    let stolen = thief.report(&claim, Step::Starting(v1::Starting {})).await.unwrap_err();
    assert_eq!((stolen.code, stolen.reason.as_str()), (Code::PermissionDenied, reason::NOT_PERMITTED));
    let guessed = v1::Assignment { nonce: claim.nonce ^ 1, ..claim.clone() };
    for step in [Step::Starting(v1::Starting {}), finished(S::Succeeded, b"")] {
        let fault = fake.report(&guessed, step).await.unwrap_err();
        assert_eq!((fault.code, fault.reason.as_str()), (Code::NotFound, reason::EXECUTION_NOT_FOUND), "another fence");
    }
    let unstarted = fake.finishes(&claim, S::Succeeded, b"").await;
    assert_eq!(unstarted, Ok(Verdict::Stop), "what never started cannot have succeeded");
    for _ in 0..2 {
        fake.begins(&claim).await;
    }
    for _ in 0..2 {
        assert_eq!(fake.finishes(&claim, S::Failed, b"").await, Ok(Verdict::Accepted));
    }
    assert_eq!(
        fake.finishes(&claim, S::Succeeded, b"").await,
        Ok(Verdict::Accepted),
        "said again differently, it is over all the same"
    );
    let execution = get(&house.admin().await, &claim.id).await;
    assert_eq!((execution.state(), execution.exit_code, execution.reason.as_str()), (S::Failed, Some(3), "EXIT_CODE"));
    assert_eq!(fake.starts(&claim).await, Verdict::Stop);
    let nowhere = v1::Assignment { id: octavius_core::ExecutionId::generate().to_string(), ..claim };
    let unknown = fake.report(&nowhere, Step::Starting(v1::Starting {})).await.unwrap_err();
    assert_eq!(unknown.reason, reason::EXECUTION_NOT_FOUND, "an execution that the store does not know is not run");
}

#[tokio::test]
async fn a_claim_that_is_not_followed_up_goes_back_and_its_fence_is_worth_nothing() {
    let house = House::with(Timing { claim_timeout: Duration::from_millis(300), ..timing() }).await;
    house.apply(&[JOB]).await;
    let fake = Fake::register(&house, "e").await;
    let mut session = fake.session(hello(1)).await.unwrap();
    let id = house.execute("j").await;
    let first = session.assignment().await;
    let second = session.assignment().await;
    assert_eq!((second.id.as_str(), second.attempt), (id.as_str(), 2));
    assert_eq!(fake.starts(&first).await, Verdict::Stop);
    assert_eq!(fake.append(&first, 0, b"late").await, Ok(4), "what the first attempt may still say is its own log");
    fake.completes(&second, b"second").await;
    let execution = reaches(&house.admin().await, &id, S::Succeeded).await;
    assert_eq!(execution.attempts.len(), 2);
    // Given back by the executor itself.
    let id = house.execute("j").await;
    let claim = session.assignment().await;
    let back = Step::HandedBack(v1::HandedBack { message: "stopping\u{1b}[31m".into() });
    assert_eq!(fake.report(&claim, back).await, Ok(Verdict::Accepted));
    let again = session.assignment().await;
    assert_eq!((again.id, again.attempt), (id, 2));
}

#[tokio::test]
async fn an_executor_that_stays_away_loses_what_it_runs() {
    let house = House::with(Timing { lost_after: Duration::from_millis(500), ..timing() }).await;
    let again = r#"{"name":"again","command":["true"],"on_lost":"retry"}"#;
    house.apply(&[JOB, again]).await;
    let admin = house.admin().await;
    let fake = Fake::register(&house, "e").await;
    let mut session = fake.session(hello(2)).await.unwrap();
    let (once, twice) = (house.execute("j").await, house.execute("again").await);
    let (a, b) = (session.assignment().await, session.assignment().await);
    let (a, b) = if a.id == once { (a, b) } else { (b, a) };
    fake.begins(&a).await;
    fake.begins(&b).await;
    drop(session);
    let lost = reaches(&admin, &once, S::Lost).await;
    assert_eq!((lost.reason.as_str(), lost.executor.as_str()), ("EXECUTOR_LOST", "e"));
    assert_eq!(reaches(&admin, &twice, S::Queued).await.reason, "EXECUTOR_LOST");

    // It comes back: of what is lost it may still tell the outcome, which is kept beside the loss.
    let back = v1::Hello { held: vec![held(&a), held(&b)], ..hello(2) };
    let mut session = fake.session(back).await.unwrap();
    let (stop, assignment) = (session.next().await.unwrap().unwrap(), session.next().await.unwrap().unwrap());
    let Say::Stop(stop) = stop else { panic!("{stop:?}") };
    assert_eq!(
        (stop.id.as_str(), stop.attempt, stop.cause()),
        (twice.as_str(), 1, v1::StopCause::Fenced),
        "lost, and queued again"
    );
    let Say::Assignment(second) = assignment else { panic!("{assignment:?}") };
    assert_eq!((second.id.as_str(), second.attempt), (twice.as_str(), 2));
    assert_eq!(fake.append(&a, 0, b"done after all").await, Ok(14));
    assert_eq!(fake.finishes(&a, S::Succeeded, b"done after all").await, Ok(Verdict::Accepted));
    let late = get(&admin, &once).await;
    assert_eq!(
        (late.state(), late.attempts[0].late.as_ref().unwrap().outcome()),
        (S::Lost, S::Succeeded),
        "the end stays the end"
    );
    fake.completes(&second, b"").await;
    reaches(&admin, &twice, S::Succeeded).await;
}

#[tokio::test]
async fn an_executor_that_is_there_loses_nothing_however_long_it_takes() {
    let timing = Timing { lost_after: Duration::from_millis(200), reconcile_interval: Duration::from_millis(20), ..timing() };
    let house = House::with(timing).await;
    house.apply(&[JOB]).await;
    let fake = Fake::register(&house, "e").await;
    let mut session = fake.session(hello(1)).await.unwrap();
    let id = house.execute("j").await;
    let claim = session.assignment().await;
    fake.begins(&claim).await;
    // Its session is with another controller; this one only sees its presence.
    let neighbour = house.neighbour().await;
    session.hears_nothing(10).await;
    assert_eq!(get(&house.admin().await, &id).await.state(), S::Running);
    neighbour.stop().await;
}

#[tokio::test]
async fn a_cancel_takes_effect_wherever_the_execution_is() {
    let house = House::open().await;
    house.apply(&[JOB]).await;
    let admin = house.admin().await;
    let queued = house.execute("j").await;
    for _ in 0..2 {
        let execution = cancel(&admin, &queued).await;
        assert_eq!((execution.state(), execution.message.as_str()), (S::Cancelled, "cancelled by admin"));
    }
    let fake = Fake::register(&house, "e").await;
    let mut session = fake.session(hello(1)).await.unwrap();
    house.execute("j").await;
    let claimed = session.assignment().await;
    assert_eq!(cancel(&admin, &claimed.id).await.state(), S::Cancelled);
    assert_eq!(fake.starts(&claimed).await, Verdict::Stop, "it must not start any more");

    house.execute("j").await;
    let running = session.assignment().await;
    fake.begins(&running).await;
    let execution = cancel(&admin, &running.id).await;
    assert_eq!((execution.state(), execution.cancel_requested_by.as_str()), (S::Running, "admin"));
    let stop = session.stop().await;
    assert_eq!((stop.id.as_str(), stop.attempt, stop.cause()), (running.id.as_str(), 1, v1::StopCause::Cancelled));
    // It is told again after every reconnection.
    drop(session);
    let mut session = fake.session(v1::Hello { held: vec![held(&running)], ..hello(1) }).await.unwrap();
    assert_eq!(session.stop().await.cause(), v1::StopCause::Cancelled);
    assert_eq!(fake.finishes(&running, S::Cancelled, b"").await, Ok(Verdict::Accepted));
    reaches(&admin, &running.id, S::Cancelled).await;
}

/// The states between those above, in which something is about to happen.
#[tokio::test]
async fn a_cancel_stops_what_starts_and_what_would_start_again() {
    let house = House::open().await;
    house.apply(&[r#"{"name":"r","command":["true"],"retries":5}"#]).await;
    let admin = house.admin().await;
    let fake = Fake::register(&house, "e").await;
    let mut session = fake.session(hello(1)).await.unwrap();
    house.execute("r").await;
    let starting = session.assignment().await;
    assert_eq!(fake.starts(&starting).await, Verdict::Accepted);
    let execution = cancel(&admin, &starting.id).await;
    assert_eq!((execution.state(), execution.cancel_requested_by.as_str()), (S::Starting, "admin"));
    assert_eq!(session.stop().await.id, starting.id);
    assert_eq!(fake.runs(&starting).await, Verdict::Accepted, "it has started, and is told to stop");
    // That it failed on the way is no reason to try again.
    assert_eq!(fake.finishes(&starting, S::Failed, b"").await, Ok(Verdict::Accepted));
    reaches(&admin, &starting.id, S::Failed).await;

    let id = house.execute("r").await;
    let first = session.assignment().await;
    session.says_free(0).await;
    fake.begins(&first).await;
    assert_eq!(fake.finishes(&first, S::Failed, b"").await, Ok(Verdict::Accepted));
    reaches(&admin, &id, S::Queued).await;
    let execution = cancel(&admin, &id).await;
    assert_eq!((execution.state(), execution.attempts.len()), (S::Cancelled, 1));
    // What has ended stays as it is.
    let before = get(&admin, &starting.id).await;
    assert_eq!(cancel(&admin, &starting.id).await, before);
    session.says_free(1).await;
    session.hears_nothing(2).await;
}

/// A cancel between the moment at which a session looks up what is asked of it and the moment at which it can be told would be lost.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn no_cancel_is_lost_on_an_executor_that_keeps_reconnecting() {
    let house = House::open().await;
    house.apply(&[JOB]).await;
    let admin = house.admin().await;
    let fake = Fake::register(&house, "e").await;
    for _ in 0..20 {
        let mut session = fake.session(hello(1)).await.unwrap();
        let id = house.execute("j").await;
        let claim = session.assignment().await;
        fake.begins(&claim).await;
        until_runs(&admin, "e", &[&id]).await;
        drop(session);
        let back = v1::Hello { held: vec![held(&claim)], ..hello(1) };
        let (mut session, _) = tokio::join!(async { fake.session(back).await.unwrap() }, cancel(&admin, &id));
        assert_eq!(session.stop().await.id, id);
        fake.finishes(&claim, S::Cancelled, b"").await.unwrap();
        // The watch that told of the cancel is behind the store at times; the next session is not to hear of it.
        until_runs(&admin, "e", &[]).await;
    }
}

/// Waits until the controller has seen that an executor runs just these.
async fn until_runs(by: &Connection, executor: &str, ids: &[&str]) {
    eventually(&format!("{executor} to run {ids:?}"), async || {
        let running = find(by, executor).await.map_err(|fault| format!("{fault:?}"))?.running;
        if running == ids { Ok(()) } else { Err(format!("{running:?}")) }
    })
    .await;
}

#[tokio::test]
async fn failures_are_retried_as_often_as_the_job_says_even_if_it_says_very_often() {
    let house = House::open().await;
    house.apply(&[r#"{"name":"r","command":["false"],"retries":100}"#]).await;
    let fake = Fake::register(&house, &"x".repeat(63)).await;
    let mut session = fake.session(hello(1)).await.unwrap();
    let id = house.execute("r").await;
    for number in 1..=101 {
        let claim = session.assignment().await;
        assert_eq!(claim.attempt, number);
        fake.begins(&claim).await;
        let Step::Finished(mut end) = finished(S::Failed, b"") else { panic!() };
        let ending = end.ending.as_mut().unwrap();
        (ending.message, ending.reason) = ("\"why\"\n".repeat(10_000), "R".repeat(10_000));
        assert_eq!(fake.report(&claim, Step::Finished(end)).await, Ok(Verdict::Accepted), "attempt {number}");
    }
    let execution = reaches(&house.admin().await, &id, S::Failed).await;
    assert_eq!(execution.attempts.len(), 101);
    assert!(execution.message.starts_with("\"why\"") && execution.message.ends_with('…'));
}

#[tokio::test]
async fn nothing_waits_for_ever() {
    let timing = Timing { queue_timeout: Duration::from_millis(200), ..timing() };
    let house = House::with(timing).await;
    house.apply(&[JOB]).await;
    let id = house.execute("j").await;
    let execution = reaches(&house.admin().await, &id, S::TimedOut).await;
    assert_eq!(execution.reason, "QUEUE_DEADLINE");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn fifty_executions_go_through_three_slots_and_never_take_a_fourth() {
    let house = House::open().await;
    house.apply(&[JOB]).await;
    let admin = house.admin().await;
    let mut ids = Vec::new();
    for _ in 0..50 {
        ids.push(house.execute("j").await);
    }
    let fake = Fake::register(&house, "e").await;
    let mut session = fake.session(hello(3)).await.unwrap();
    let mut running = std::collections::VecDeque::new();
    let mut order = Vec::new();
    while order.len() < 50 {
        while running.len() < 3 && order.len() + running.len() < 50 {
            running.push_back(session.assignment().await);
        }
        // One ends; exactly then there is room for one more.
        let first: v1::Assignment = running.pop_front().unwrap();
        for claim in std::iter::once(&first).chain(&running) {
            fake.starts(claim).await;
        }
        session.hears_nothing(usize::from(order.len() % 10 == 0)).await;
        fake.completes(&first, b"").await;
        order.push(first.id);
    }
    for id in &ids {
        reaches(&admin, id, S::Succeeded).await;
    }
    order.sort();
    ids.sort();
    assert_eq!(order, ids, "each once");
}

#[tokio::test]
async fn work_goes_where_its_labels_are_and_by_priority() {
    let house = House::open().await;
    let web = r#"{"name":"web","command":["true"],"executor":{"vpc":"web"}}"#;
    let high = r#"{"name":"high","command":["true"],"priority":9}"#;
    let low = r#"{"name":"low","command":["true"],"priority":1}"#;
    house.apply(&[JOB, web, high, low]).await;
    let admin = house.admin().await;
    let mut ids = Vec::new();
    for job in ["web", "low", "j", "high", "j", "high"] {
        ids.push(execute(&admin, job, &[]).await.unwrap());
    }
    let plain = Fake::register(&house, "plain").await;
    let mut session = plain.session(labelled(1, &[("zone", "a")])).await.unwrap();
    let mut order = Vec::new();
    for _ in 0..5 {
        let claim = session.assignment().await;
        plain.completes(&claim, b"").await;
        order.push(ids.iter().position(|id| *id == claim.id).unwrap());
    }
    assert_eq!(order, [3, 5, 2, 4, 1], "higher priorities first, then as they came");
    session.hears_nothing(2).await;
    assert_eq!(get(&admin, &ids[0]).await.state(), S::Queued, "nobody has its label");
    let fake = Fake::register(&house, "web-1").await;
    let mut session = fake.session(labelled(1, &[("vpc", "web"), ("zone", "a")])).await.unwrap();
    assert_eq!(session.assignment().await.id, ids[0]);
}

/// A selector is part of a key, and keys have an end.
#[tokio::test]
async fn many_labels_are_no_trouble_and_too_many_are_refused() {
    let house = House::open().await;
    let label = |n: usize| (format!("{n:02}{}", "k".repeat(60)), "v".repeat(63));
    let labels = |count: usize| (0..count).map(label).collect::<std::collections::BTreeMap<_, _>>();
    let job =
        |count| format!(r#"{{"name":"l","command":["true"],"executor":{}}}"#, serde_json::to_string(&labels(count)).unwrap());
    let admin = house.admin().await;
    let fault = crate::harness::apply(&admin, header("c", 0, &[&job(33)]), &[&job(33)]).await.unwrap_err();
    assert!(fault.violations[0].description.contains("33 labels"), "{fault:?}");
    house.apply(&[&job(32)]).await;
    let id = house.execute("l").await;
    let fake = Fake::register(&house, "e").await;
    let mut session = fake.session(v1::Hello { labels: labels(32).into_iter().collect(), ..hello(1) }).await.unwrap();
    assert_eq!(session.assignment().await.id, id);
}
