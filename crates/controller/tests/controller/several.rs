//! Several controllers over one store: whatever one has acknowledged, all others know; whoever stops, nothing is lost.

use std::time::{Duration, Instant};

use octavius_core::execution::{Execution, Fence};
use octavius_core::{ExecutionId, Timing};
use octavius_proto::reason;
use octavius_proto::v1::report_execution_request::Step;
use octavius_proto::v1::{self, ExecutionState as S, StopCause, Verdict};
use octavius_store::{Commit, Txn, codec, key};
use tonic::Code;

use crate::fake::{Fake, Session, finished, held, hello, labelled};
use crate::harness::{Dice, House, apply, cancel, connect, digest, execute, get, head, header, reaches, soon, timing};

const JOB: &str = r#"{"name":"j","command":["true"]}"#;

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn three_controllers_are_as_good_as_one_and_two_of_them_too() {
    let house = House::open().await;
    let (b, c) = (house.neighbour().await, house.neighbour().await);
    let at_a = house.admin().await;
    let at_c = connect(c.address(), Some(&house.token)).await;
    house.apply(&[JOB]).await;
    let token = house.register("e").await;
    let fake = Fake { connection: connect(b.address(), Some(&token)).await };
    let mut session = fake.session(hello(3)).await.unwrap();

    // Submitted at one, run through another, watched at the third.
    let id = execute(&at_a, "j", &[]).await.unwrap();
    let mut watch = at_c.executions().watch_execution(v1::WatchExecutionRequest { id: id.clone() }).await.unwrap().into_inner();
    let claim = session.assignment().await;
    assert_eq!(claim.id, id);
    fake.completes(&claim, b"hello\n").await;
    let mut seen = Vec::new();
    while let Some(state) = soon("a state", watch.message()).await.unwrap() {
        seen.push(state.execution.unwrap().state());
    }
    assert_eq!(seen.last(), Some(&S::Succeeded));

    // Cancelled at the third while it runs at the second.
    let id = execute(&at_a, "j", &[]).await.unwrap();
    let claim = session.assignment().await;
    fake.begins(&claim).await;
    assert_eq!(cancel(&at_c, &id).await.cancel_requested_by, "admin");
    let stop = session.stop().await;
    assert_eq!((stop.id.as_str(), stop.cause()), (id.as_str(), StopCause::Cancelled));
    // What was said to one may be repeated to another.
    let elsewhere = Fake { connection: connect(c.address(), Some(&token)).await };
    assert_eq!(fake.finishes(&claim, S::Cancelled, b"").await, Ok(Verdict::Accepted));
    assert_eq!(elsewhere.finishes(&claim, S::Cancelled, b"").await, Ok(Verdict::Accepted));
    reaches(&at_a, &id, S::Cancelled).await;

    // The executor's controller stops; it goes on with another one.
    let (running, waits) = (execute(&at_a, "j", &[]).await.unwrap(), execute(&at_c, "j", &[]).await.unwrap());
    let (first, second) = (session.assignment().await, session.assignment().await);
    assert_eq!(first.id, running);
    assert_eq!(second.id, waits);
    fake.begins(&first).await;
    fake.append(&first, 0, b"before\n").await.unwrap();
    b.stop().await;
    let late = execute(&at_c, "j", &[]).await.unwrap();
    let fake = Fake { connection: house.connect(Some(&token)).await };
    let back = v1::Hello { held: vec![held(&first), held(&second)], ..hello(3) };
    let mut session = fake.session(back).await.unwrap();
    let third = session.assignment().await;
    assert_eq!(third.id, late);
    assert_eq!(fake.append(&first, 7, b"after\n").await, Ok(13));
    assert_eq!(fake.finishes(&first, S::Succeeded, b"before\nafter\n").await, Ok(Verdict::Accepted));
    fake.completes(&second, b"").await;
    fake.completes(&third, b"").await;
    for id in [&running, &waits, &late] {
        let execution = reaches(&at_c, id, S::Succeeded).await;
        assert_eq!(execution.attempts.len(), 1, "{execution:?}");
    }
    c.stop().await;
}

/// A definition that was replaced must not run once its replacement is acknowledged, by whichever controller.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_was_applied_at_one_is_run_at_the_other_from_then_on() {
    let house = House::open().await;
    let neighbour = house.neighbour().await;
    let at_a = house.admin().await;
    let at_b = connect(neighbour.address(), Some(&house.token)).await;
    for round in 0..20 {
        let job = format!(
            r#"{{"name":"j","command":["echo","{round}"],"env_vars":{{"args":[{{"name":"n","description":"d","enum":["{round}"]}}]}}}}"#
        );
        let parent = head(&at_a, "c").await;
        apply(&at_a, header("c", parent, &[&job]), &[&job]).await.unwrap();
        // The argument is one that only the newest definition takes.
        let id = execute(&at_b, "j", &[("n", &round.to_string())]).await.unwrap();
        let execution = get(&at_a, &id).await;
        assert_eq!((&execution.definition[..], execution.revision), (&digest(&job).as_bytes()[..], parent + 1));
        let old = execute(&at_b, "j", &[("n", "old")]).await.unwrap_err();
        assert_eq!(old.reason, reason::INVALID_ARGUMENTS);

        // And one that is gone is gone.
        let extra = r#"{"name":"extra","command":["true"]}"#;
        apply(&at_b, header("c", parent + 1, &[extra]), &[extra]).await.unwrap();
        execute(&at_a, "extra", &[]).await.unwrap();
        let removal = v1::ApplyHeader { remove: vec!["extra".into()], ..header("c", parent + 2, &[]) };
        apply(&at_b, removal, &[]).await.unwrap();
        assert_eq!(execute(&at_a, "extra", &[]).await.unwrap_err().reason, reason::JOB_NOT_FOUND);
    }
    neighbour.stop().await;
}

/// Runs whatever comes to its end; how many came.
async fn works(fake: Fake, mut session: Session) -> usize {
    let mut done = 0;
    while let Ok(Some(v1::session_response::Say::Assignment(claim))) = session.next().await {
        if claim.arguments.contains_key("last") {
            fake.completes(&claim, b"").await;
            return done;
        }
        fake.completes(&claim, b"").await;
        done += 1;
    }
    panic!("the session ended");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn two_controllers_share_what_waits_and_run_nothing_twice() {
    const COUNT: usize = 120;
    let house = House::open().await;
    let neighbour = house.neighbour().await;
    let last = |vpc: &str| {
        format!(
            r#"{{"name":"last-{vpc}","command":["true"],"priority":0,"executor":{{"vpc":"{vpc}"}},
                "env_vars":{{"args":[{{"name":"last","description":"d","default":"yes"}}]}}}}"#
        )
    };
    house.apply(&[JOB, &last("a"), &last("b")]).await;
    let at_a = house.admin().await;
    let at_b = connect(neighbour.address(), Some(&house.token)).await;
    let mut ids = Vec::new();
    for n in 0..COUNT {
        let connection = if n % 2 == 0 { &at_a } else { &at_b };
        ids.push(execute(connection, "j", &[]).await.unwrap());
    }
    let token = house.register("b").await;
    let (a, b) = (Fake::register(&house, "a").await, Fake { connection: connect(neighbour.address(), Some(&token)).await });
    let session_a = a.session(labelled(4, &[("vpc", "a")])).await.unwrap();
    let session_b = b.session(labelled(4, &[("vpc", "b")])).await.unwrap();
    let working = (tokio::spawn(works(a, session_a)), tokio::spawn(works(b, session_b)));
    for id in &ids {
        let execution = reaches(&at_b, id, S::Succeeded).await;
        assert_eq!(execution.attempts.len(), 1, "claimed once: {execution:?}");
    }
    for vpc in ["a", "b"] {
        execute(&at_a, &format!("last-{vpc}"), &[]).await.unwrap();
    }
    let (a, b) = (soon("the end", working.0).await.unwrap(), soon("the end", working.1).await.unwrap());
    assert_eq!(a + b, COUNT);
    assert!(a > COUNT / 8 && b > COUNT / 8, "{a} and {b}: each did its share");

    // Alone, one takes what is in the other's slice too.
    let alone = Fake::register(&house, "alone").await;
    let mut session = alone.session(hello(2)).await.unwrap();
    for _ in 0..10 {
        execute(&at_b, "j", &[]).await.unwrap();
        let claim = session.assignment().await;
        alone.completes(&claim, b"").await;
    }
    neighbour.stop().await;
}

/// When everyone vanishes at once, it is the network, and what they run goes on.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn nobody_is_lost_at_once_when_over_half_vanish() {
    let pause = Duration::from_secs(2);
    let timing = Timing {
        lost_after: Duration::from_millis(200),
        reconcile_interval: Duration::from_millis(20),
        exodus_window: Duration::from_secs(20),
        exodus_pause: pause,
        ..timing()
    };
    let house = House::with(timing).await;
    house.apply(&[JOB]).await;
    let admin = house.admin().await;
    let mut sessions = Vec::new();
    for n in 0..6 {
        let fake = Fake::register(&house, &format!("e{n}")).await;
        sessions.push((fake.session(hello(1)).await.unwrap(), fake));
    }
    let mut ids = Vec::new();
    for _ in 0..6 {
        ids.push(house.execute("j").await);
    }
    for (session, fake) in &mut sessions {
        let claim = session.assignment().await;
        fake.begins(&claim).await;
    }
    sessions[0].0.hears_nothing(3).await; // many turns have seen all six
    let began = Instant::now();
    drop(sessions);
    for id in &ids {
        reaches(&admin, id, S::Lost).await;
        assert!(began.elapsed() >= pause, "{:?}", began.elapsed());
    }
}

/// Takes the store back to before the claim, as a backup from then would.
async fn restore(house: &House, before: &Execution, executor: &str) {
    let at = key::execution(before.id);
    let queue = |pool: &str| key::queued(pool, before.priority, before.id);
    let record = octavius_store::record::QueueRecord {
        selector: before.selector.clone(),
        expires_at: before.waits_until(),
        job: before.job.clone(),
        limit: 0,
        delay: std::time::Duration::ZERO,
    };
    let txn = Txn::new()
        .put(at, codec::encode(before))
        .put(queue("any"), codec::encode(&record))
        .delete(key::owned(&executor.parse().unwrap(), before.id));
    assert!(matches!(house.store().commit(txn).await, Ok(Commit::Done(_))));
}

async fn stored(house: &House, id: &str) -> Execution {
    let entry = house.store().get(&key::execution(id.parse().unwrap())).await.unwrap().unwrap();
    codec::decode(&entry).unwrap()
}

#[tokio::test]
async fn what_a_restored_store_does_not_know_is_kept_aside_and_not_run_again() {
    let house = House::open().await;
    house.apply(&[JOB, r#"{"name":"twice","command":["true"],"on_lost":"retry"}"#]).await;
    let admin = house.admin().await;
    let (once, twice) = (house.execute("j").await, house.execute("twice").await);
    let (before_once, before_twice) = (stored(&house, &once).await, stored(&house, &twice).await);
    let fake = Fake::register(&house, "e").await;
    let mut session = fake.session(hello(2)).await.unwrap();
    let (a, b) = (session.assignment().await, session.assignment().await);
    let (a, b) = if a.id == once { (a, b) } else { (b, a) };
    fake.begins(&a).await;
    fake.begins(&b).await;
    drop(session);
    restore(&house, &before_once, "e").await;
    restore(&house, &before_twice, "e").await;

    // What is reported meanwhile is not known, and not to be forgotten.
    let unknown = fake.report(&a, finished(S::Succeeded, b"")).await.unwrap_err();
    assert_eq!((unknown.code, unknown.reason.as_str()), (Code::NotFound, reason::EXECUTION_NOT_FOUND));

    // One that the store has never heard of; and one whose number is past, which is no riddle.
    let never = v1::Held { id: ExecutionId::generate().to_string(), attempt: 1, nonce: 7 };
    let back = v1::Hello { held: vec![held(&a), held(&b), never.clone()], ..hello(4) };
    let mut session = fake.session(back).await.unwrap();
    let mut unknown = Vec::new();
    for _ in 0..3 {
        let stop = session.stop().await;
        assert_eq!((stop.attempt, stop.cause()), (1, StopCause::Unknown), "{stop:?}");
        unknown.push(stop.id);
    }
    unknown.sort();
    let mut expected = [a.id.clone(), b.id.clone(), never.id.clone()];
    expected.sort();
    assert_eq!(unknown, expected);
    // The job that may not run twice does not; the one that may, does.
    let ended = reaches(&admin, &once, S::Cancelled).await;
    assert!(ended.message.contains("e holds attempt 1, which the store does not know"), "{}", ended.message);
    let again = session.assignment().await;
    assert_eq!((again.id.as_str(), again.attempt), (twice.as_str(), 1));
    assert_ne!(again.nonce, b.nonce);
    let late = fake.report(&b, Step::Running(v1::Running::default())).await.unwrap_err();
    assert_eq!(late.reason, reason::EXECUTION_NOT_FOUND, "the same number, and another attempt");
    fake.completes(&again, b"").await;
    session.hears_nothing(2).await;
}

/// An executor's word is not enough to end what it could not have been given.
#[tokio::test]
async fn no_executor_ends_what_is_not_for_it_by_saying_that_it_holds_it() {
    let house = House::open().await;
    house.apply(&[r#"{"name":"web","command":["true"],"executor":{"vpc":"web"}}"#]).await;
    let id = house.execute("web").await;
    let fence = Fence { attempt: 1, nonce: 7 };
    let fake = Fake::register(&house, "e").await;
    let claims = v1::Held { id: id.clone(), attempt: fence.attempt, nonce: fence.nonce };
    let mut session = fake.session(v1::Hello { held: vec![claims], ..hello(1) }).await.unwrap();
    assert_eq!(session.stop().await.cause(), StopCause::Unknown);
    assert_eq!(get(&house.admin().await, &id).await.state(), S::Queued);
}

/// A network that delivers late, twice and in any order, through two controllers: the log is what the offsets say, whatever came first.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn pieces_of_a_log_that_come_twice_in_any_order_through_two_controllers_are_there_once() {
    let mut dice = Dice::thrown();
    let house = House::open().await;
    let neighbour = house.neighbour().await;
    house.apply(&[JOB]).await;
    let token = house.register("e").await;
    let fake = Fake { connection: connect(house.address, Some(&token)).await };
    let elsewhere = Fake { connection: connect(neighbour.address(), Some(&token)).await };
    let mut session = fake.session(hello(1)).await.unwrap();
    house.execute("j").await;
    let claim = session.assignment().await;
    fake.begins(&claim).await;

    let log: Vec<u8> = (0..6000_u32).flat_map(u32::to_le_bytes).collect();
    let mut pieces = Vec::new();
    for _ in 0..120 {
        let from = dice.below(log.len());
        pieces.push(from..(from + 1 + dice.below(4000)).min(log.len()));
    }
    let mut end = 0_usize;
    while end < log.len() {
        // Now and then one that goes on where the log ends.
        let piece = if dice.below(3) == 0 { end..(end + 3000).min(log.len()) } else { pieces[dice.below(pieces.len())].clone() };
        let (offset, data) = (piece.start as u64, &log[piece.clone()]);
        let both = [fake.append(&claim, offset, data), elsewhere.append(&claim, offset, data)];
        for answer in futures::future::join_all(both).await {
            let next = match answer {
                Ok(next) => next,
                Err(fault) => {
                    assert_eq!((fault.code, fault.reason.as_str()), (Code::OutOfRange, reason::LOG_GAP), "{fault:?}");
                    fault.fact("next_offset").unwrap().parse().unwrap()
                }
            };
            end = end.max(usize::try_from(next).unwrap());
            assert!(end <= log.len());
        }
    }
    for executor in [&elsewhere, &fake] {
        assert_eq!(executor.finishes(&claim, S::Succeeded, &log).await, Ok(Verdict::Accepted));
    }
    let late = fake.append(&claim, 0, &log[..100]).await;
    assert!(late == Ok(log.len() as u64) || late.as_ref().is_err_and(|fault| fault.reason == reason::LOG_SEALED), "{late:?}");
    for connection in [house.admin().await, connect(neighbour.address(), Some(&house.token)).await] {
        let read = crate::logs::read(&connection, crate::logs::whole(&claim.id)).await.unwrap();
        assert!(read.only() == log, "another log");
        assert!(read.gaps.is_empty() && read.end.as_ref().is_some_and(|end| end.sealed && !end.damaged), "{:?}", read.end);
    }
    neighbour.stop().await;
}

/// An executor repeats what was not answered, and a network delivers late: what is said twice, or after what came later, changes nothing.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn reports_that_come_twice_in_any_order_through_two_controllers_count_once() {
    let mut dice = Dice::thrown();
    let house = House::open().await;
    let neighbour = house.neighbour().await;
    house.apply(&[r#"{"name":"j","command":["true"],"retries":2}"#]).await;
    let token = house.register("e").await;
    let here = Fake { connection: connect(house.address, Some(&token)).await };
    let there = Fake { connection: connect(neighbour.address(), Some(&token)).await };
    let admin = house.admin().await;
    let mut session = here.session(hello(1)).await.unwrap();
    for round in 0..6 {
        let id = house.execute("j").await;
        let record = key::execution(id.parse().unwrap());
        let mut said: Vec<(v1::Assignment, Step)> = Vec::new();
        let ends = [S::Failed, S::Failed, S::Succeeded];
        for (number, outcome) in ends.into_iter().enumerate() {
            let claim = session.assignment().await;
            assert_eq!((claim.id.as_str(), claim.attempt as usize), (id.as_str(), number + 1));
            let running = Step::Running(v1::Running { runs_as: "pid 7".into(), image: String::new() });
            let mut steps = vec![(Step::Starting(v1::Starting {}), S::Starting), (running.clone(), S::Running)];
            let overtaken = dice.below(2) == 0;
            if overtaken {
                steps.pop();
            }
            for (step, state) in steps {
                let both = tokio::join!(here.report(&claim, step.clone()), there.report(&claim, step.clone()));
                assert_eq!(both, (Ok(Verdict::Accepted), Ok(Verdict::Accepted)), "round {round}");
                assert_eq!(get(&admin, &id).await.state(), state);
                said.push((claim.clone(), step));
                for _ in 0..3 {
                    let (claim, step) = said[dice.below(said.len())].clone();
                    let verdict = if dice.below(2) == 0 { &here } else { &there }.report(&claim, step.clone()).await;
                    // Those of an earlier attempt are told to stop, or that it is known.
                    let is_this = claim.attempt as usize == number + 1;
                    assert!(
                        verdict == Ok(Verdict::Accepted) || !is_this && verdict == Ok(Verdict::Stop),
                        "{step:?}: {verdict:?}"
                    );
                    assert_eq!(get(&admin, &id).await.state(), state, "after {step:?} of attempt {}", claim.attempt);
                }
            }
            let end = finished(outcome, b"");
            let both = tokio::join!(here.report(&claim, end.clone()), there.report(&claim, end.clone()));
            assert_eq!(both, (Ok(Verdict::Accepted), Ok(Verdict::Accepted)), "round {round}");
            said.push((claim.clone(), end));
            if overtaken {
                said.push((claim, running));
            }
        }
        let ended = reaches(&admin, &id, S::Succeeded).await;
        assert_eq!(ended.attempts.len(), ends.len(), "{ended:?}");
        let before = house.store().get(&record).await.unwrap().unwrap();
        for _ in 0..40 {
            let (claim, step) = said[dice.below(said.len())].clone();
            if dice.below(2) == 0 { &here } else { &there }.report(&claim, step).await.unwrap();
        }
        assert_eq!(house.store().get(&record).await.unwrap().unwrap(), before, "what is over was written again");
    }
    neighbour.stop().await;
}
