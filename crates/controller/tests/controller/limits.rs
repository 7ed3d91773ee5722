//! How many of a job run at once, whose turn it is, and how long a repeated attempt waits.

use octavius_core::Timing;
use octavius_proto::reason;
use octavius_proto::v1::report_execution_request::Step;
use octavius_proto::v1::{self, ExecutionState as S, Verdict};
use octavius_store::key;
use std::time::{Duration, Instant};
use tonic::Code;

use crate::fake::{Fake, hello};
use crate::harness::{House, cancel, connect, eventually, execute, get, reaches, request, send, timing};

const LIMITED: &str = r#"{"name":"one","command":["true"],"concurrency":{"limit":1}}"#;
const REFUSING: &str = r#"{"name":"two","command":["true"],"concurrency":{"limit":2,"when_full":"reject"}}"#;

async fn slots(house: &House) -> usize {
    house.store().range(&octavius_store::Range::of(key::slots(), 100)).await.unwrap().entries.len()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn of_a_limited_job_so_many_run_at_once_through_either_controller() {
    let house = House::open().await;
    house.apply(&[LIMITED, r#"{"name":"free","command":["true"]}"#]).await;
    let neighbour = house.neighbour().await;
    let (here, token) = (Fake::register(&house, "here").await, house.register("there").await);
    let there = Fake { connection: connect(neighbour.address(), Some(&token)).await };
    let mut ids = Vec::new();
    for _ in 0..6 {
        ids.push(house.execute("one").await);
    }
    let (mut one, mut other) = (here.session(hello(4)).await.unwrap(), there.session(hello(4)).await.unwrap());
    for left in (0..6).rev() {
        let (by, claim) = tokio::select! {
            claim = one.assignment() => (&here, claim),
            claim = other.assignment() => (&there, claim),
        };
        by.begins(&claim).await;
        // Others are held up by nothing.
        let free = house.execute("free").await;
        let (by_free, of_free) = tokio::select! {
            claim = one.assignment() => (&here, claim),
            claim = other.assignment() => (&there, claim),
        };
        assert_eq!(of_free.id, free, "a second one runs beside the first");
        by_free.completes(&of_free, b"").await;
        assert_eq!(slots(&house).await, 1);
        by.finishes(&claim, S::Succeeded, b"").await.unwrap();
        if left == 0 {
            assert_eq!(slots(&house).await, 0);
        }
    }
    for id in ids {
        assert_eq!(get(&house.admin().await, &id).await.state(), S::Succeeded);
    }
    neighbour.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_job_that_refuses_more_says_by_whom_its_slots_are_held_and_repeats_its_answers() {
    let house = House::open().await;
    house.apply(&[REFUSING]).await;
    let admin = house.admin().await;
    let neighbour = house.neighbour().await;
    let elsewhere = connect(neighbour.address(), Some(&house.token)).await;
    let first = request("two", &[]);
    let one = send(&admin, first.clone()).await.unwrap();
    let other = execute(&elsewhere, "two", &[]).await.unwrap();
    for connection in [&admin, &elsewhere] {
        let refused = execute(connection, "two", &[]).await.unwrap_err();
        assert_eq!((refused.code, refused.reason.as_str()), (Code::FailedPrecondition, reason::CONCURRENCY_LIMIT));
        assert!(refused.message.contains(&one) && refused.message.contains(&other), "{refused:?}");
        assert_eq!(send(connection, first.clone()).await.unwrap(), one, "the call repeated is no other call");
    }
    // One that waits for approval holds its slot too, and who looks for one that runs is told.
    house.apply(&[r#"{"name":"gated","command":["true"],"approvals":{},"concurrency":{"limit":1,"when_full":"reject"}}"#]).await;
    let waits = execute(&admin, "gated", &[]).await.unwrap();
    let refused = execute(&admin, "gated", &[]).await.unwrap_err();
    let why = format!("job gated refuses more: one execution of it runs, or waits for approval, already, {waits}");
    assert_eq!(refused.message, why);
    cancel(&admin, &waits).await;
    // A slot is free as soon as it is given back, also where the other controller's watch has not shown it.
    for _ in 0..5 {
        cancel(&admin, &one).await;
        let again = execute(&elsewhere, "two", &[]).await.unwrap();
        assert_eq!(execute(&admin, "two", &[]).await.unwrap_err().reason, reason::CONCURRENCY_LIMIT);
        cancel(&elsewhere, &again).await;
        execute(&admin, "two", &[]).await.map(|id| assert_ne!(id, again)).unwrap();
        let queued = v1::ListExecutionsRequest { states: vec![S::Queued.into()], ..Default::default() };
        let all = admin.executions().list_executions(queued).await.unwrap().into_inner();
        for execution in all.executions.iter().filter(|execution| execution.id != other) {
            cancel(&admin, &execution.id).await;
        }
    }
    // Of many at once, as many get a slot as there are.
    cancel(&admin, &other).await;
    let calls = (0..20).map(|n| {
        let connection = if n % 2 == 0 { admin.clone() } else { elsewhere.clone() };
        tokio::spawn(async move { execute(&connection, "two", &[]).await })
    });
    let mut taken = 0;
    for call in calls.collect::<Vec<_>>() {
        match call.await.unwrap() {
            Ok(_) => taken += 1,
            Err(refused) => assert_eq!(refused.reason, reason::CONCURRENCY_LIMIT),
        }
    }
    assert_eq!((taken, slots(&house).await), (2, 2));
    neighbour.stop().await;
}

/// A limited job may guard something that two must not touch: a lost execution may run still.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_lost_execution_keeps_its_slot_until_it_is_known_to_be_over() {
    let house = House::with(Timing { ping_deadline: Duration::from_millis(500), ..timing() }).await;
    house.apply(&[LIMITED]).await;
    let admin = house.admin().await;
    let fake = Fake::register(&house, "e").await;
    let lose = async || {
        let id = house.execute("one").await;
        let mut session = fake.session(hello(2)).await.unwrap();
        let claim = session.assignment().await;
        assert_eq!(claim.id, id);
        fake.begins(&claim).await;
        drop(session);
        reaches(&admin, &id, S::Lost).await;
        claim
    };
    let lost = lose().await;
    let next = house.execute("one").await;
    let mut session = fake.session(hello(2)).await.unwrap();
    session.hears_nothing(3).await;
    assert_eq!((get(&admin, &next).await.state(), slots(&house).await), (S::Queued, 1));
    // Its executor says how it ended, late.
    fake.finishes(&lost, S::Succeeded, b"").await.unwrap();
    let claim = session.assignment().await;
    assert_eq!(claim.id, next);
    fake.completes(&claim, b"").await;
    drop(session);

    // Or somebody says that it is over.
    let lost = lose().await;
    let next = house.execute("one").await;
    assert_eq!(cancel(&admin, &lost.id).await.state(), S::Lost);
    let mut session = fake.session(hello(2)).await.unwrap();
    let claim = session.assignment().await;
    assert_eq!(claim.id, next);
    fake.completes(&claim, b"").await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_slot_of_what_was_lost_is_free_once_its_timeout_is_over() {
    let quick = Timing { ping_deadline: Duration::from_millis(500), overdue: Duration::from_millis(200), ..timing() };
    let house = House::with(quick).await;
    house.apply(&[r#"{"name":"one","command":["true"],"timeout":"1s","concurrency":{"limit":1}}"#]).await;
    let admin = house.admin().await;
    let fake = Fake::register(&house, "e").await;
    let id = house.execute("one").await;
    let mut session = fake.session(hello(1)).await.unwrap();
    fake.begins(&session.assignment().await).await;
    drop(session);
    reaches(&admin, &id, S::Lost).await;
    eventually("the slot to be free", async || match slots(&house).await {
        0 => Ok(()),
        held => Err(format!("{held} are held")),
    })
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_flood_of_one_job_holds_no_other_up() {
    let house = House::open().await;
    house.apply(&[r#"{"name":"flood","command":["true"]}"#, r#"{"name":"other","command":["true"]}"#]).await;
    let admin = house.admin().await;
    for _ in 0..200 {
        execute(&admin, "flood", &[]).await.unwrap();
    }
    let fake = Fake::register(&house, "e").await;
    let mut session = fake.session(hello(1)).await.unwrap();
    let mut others = Vec::new();
    for _ in 0..10 {
        others.push(execute(&admin, "other", &[]).await.unwrap());
    }
    let mut floods = 0;
    while !others.is_empty() {
        let claim = session.assignment().await;
        match others.iter().position(|id| *id == claim.id) {
            Some(at) => drop(others.remove(at)),
            None => floods += 1,
        }
        assert!(floods < 40, "{} of the others wait still", others.len());
        fake.completes(&claim, b"").await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_attempt_that_follows_a_failed_one_waits_longer_each_time() {
    let slow = Timing { back_off_min: Duration::from_millis(400), back_off_max: Duration::from_millis(800), ..timing() };
    let house = House::with(slow).await;
    house.apply(&[r#"{"name":"j","command":["true"],"retries":3}"#]).await;
    let fake = Fake::register(&house, "e").await;
    let id = house.execute("j").await;
    let mut session = fake.session(hello(1)).await.unwrap();
    let mut claim = session.assignment().await;
    for least in [400, 800, 800] {
        fake.begins(&claim).await;
        fake.finishes(&claim, S::Failed, b"").await.unwrap();
        let failed = Instant::now();
        claim = session.assignment().await;
        assert!(
            failed.elapsed() >= Duration::from_millis(least - 50),
            "{:?} after attempt {}",
            failed.elapsed(),
            claim.attempt - 1
        );
    }
    // What is given back untouched goes again at once.
    let handed_back = Step::HandedBack(v1::HandedBack { message: "full".into() });
    assert_eq!(fake.report(&claim, handed_back).await, Ok(Verdict::Accepted));
    session.says_free(1).await;
    assert_eq!(session.assignment().await.attempt, 5);
    assert_eq!(get(&house.admin().await, &id).await.attempts.len(), 5);
}
