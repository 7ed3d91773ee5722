//! Sessions: who may have one, what is agreed at its beginning, and how it ends.

use octavius_proto::client::Connection;
use octavius_proto::v1::{self, ExecutionState as S, ExecutorState, SessionRequest, Verdict, session_request::Say};
use octavius_proto::{Fault, reason};
use tonic::Code;

use crate::fake::{Fake, held, hello};
use crate::harness::{House, connect, eventually, get, reaches, soon, timing, told};

const JOB: &str = r#"{"name":"j","command":["true"]}"#;

async fn listed(house: &House, id: &str) -> v1::Executor {
    listed_by(&house.admin().await, id).await
}

async fn listed_by(admin: &Connection, id: &str) -> v1::Executor {
    let executors = admin.executors().list_executors(v1::ListExecutorsRequest {}).await.unwrap().into_inner().executors;
    executors.into_iter().find(|executor| executor.id == id).unwrap()
}

async fn becomes(house: &House, id: &str, state: ExecutorState) -> v1::Executor {
    eventually(&format!("{id} to be {state:?}"), async || {
        let executor = listed(house, id).await;
        if executor.state() == state { Ok(executor) } else { Err(format!("{executor:?}")) }
    })
    .await
}

/// What is wrong must not cost the right one what it runs.
#[tokio::test]
async fn a_second_daemon_with_the_same_id_is_refused_and_takes_nothing_from_the_first() {
    let house = House::open().await;
    house.apply(&[JOB]).await;
    let admin = house.admin().await;
    let fake = Fake::register(&house, "e").await;
    let mut session = fake.session(hello(2)).await.unwrap();
    house.execute("j").await;
    house.execute("j").await;
    let (running, claimed) = (session.assignment().await, session.assignment().await);
    fake.begins(&running).await;
    let second = fake.session(v1::Hello { instance: 2, ..hello(2) }).await.err().unwrap();
    assert_eq!((second.code, second.reason.as_str()), (Code::AlreadyExists, reason::SESSION_EXISTS));
    // Nor through another controller.
    let neighbour = house.neighbour().await;
    let token = house.register("other").await;
    let other = Fake { connection: connect(neighbour.address(), Some(&token)).await };
    let there = other.session(hello(1)).await.unwrap();
    let elsewhere = Fake { connection: house.connect(Some(&token)).await };
    let second = elsewhere.session(v1::Hello { instance: 2, ..hello(1) }).await.err().unwrap();
    assert_eq!(second.reason, reason::SESSION_EXISTS);
    drop(there);
    assert_eq!(get(&admin, &running.id).await.state(), S::Running);
    assert_eq!(get(&admin, &claimed.id).await.state(), S::Claimed);

    // The same daemon may come back, before anyone has noticed that it was gone.
    let mut again = fake.session(v1::Hello { held: vec![held(&running), held(&claimed)], ..hello(2) }).await.unwrap();
    assert!(matches!(session.next().await, Ok(None) | Err(_)), "the old session is over");
    fake.completes(&claimed, b"").await;
    fake.completes(&running, b"").await;
    house.execute("j").await;
    again.assignment().await;
    neighbour.stop().await;
}

#[tokio::test]
async fn what_an_executor_does_not_hold_any_more_goes_back_or_is_lost() {
    let house = House::open().await;
    house.apply(&[JOB]).await;
    let admin = house.admin().await;
    let fake = Fake::register(&house, "e").await;
    let mut session = fake.session(hello(3)).await.unwrap();
    for _ in 0..3 {
        house.execute("j").await;
    }
    let (kept, started, claimed) = (session.assignment().await, session.assignment().await, session.assignment().await);
    fake.begins(&kept).await;
    fake.starts(&started).await;
    drop(session);
    let mut session = fake.session(v1::Hello { held: vec![held(&kept)], ..hello(3) }).await.unwrap();
    let again = session.assignment().await;
    assert_eq!((&again.id, again.attempt), (&claimed.id, 2), "a claim that never arrived is made again");
    assert_eq!(reaches(&admin, &started.id, S::Lost).await.reason, "EXECUTOR_LOST");
    assert_eq!(get(&admin, &kept.id).await.state(), S::Running);
    fake.completes(&kept, b"").await;

    // One attempt too many and one that is right, of the same execution.
    let stale = v1::Held { attempt: 1, nonce: claimed.nonce, id: claimed.id.clone() };
    drop(session);
    for order in [[held(&again), stale.clone()], [stale, held(&again)]] {
        let mut session = fake.session(v1::Hello { held: order.to_vec(), ..hello(3) }).await.unwrap();
        let stop = session.stop().await;
        assert_eq!((stop.id.as_str(), stop.attempt, stop.cause()), (claimed.id.as_str(), 1, v1::StopCause::Fenced));
        assert_eq!(get(&admin, &claimed.id).await.state(), S::Claimed, "the right one is still its own");
    }
    assert_eq!(fake.starts(&again).await, Verdict::Accepted);
}

#[tokio::test]
async fn executors_are_listed_as_they_are() {
    let house = House::with(octavius_core::Timing { ping_deadline: std::time::Duration::from_millis(400), ..timing() }).await;
    let fake = Fake::register(&house, "e").await;
    assert_eq!(listed(&house, "e").await.state(), ExecutorState::Registered);
    let session = fake.session(crate::fake::labelled(7, &[("vpc", "web")])).await.unwrap();
    let executor = eventually("its labels", async || {
        let executor = becomes(&house, "e", ExecutorState::Active).await;
        if executor.capacity == 7 { Ok(executor) } else { Err(format!("{executor:?}")) }
    })
    .await;
    assert_eq!((executor.labels["vpc"].as_str(), executor.runner.as_str()), ("web", "process"));
    // It hangs: nothing comes any more, and nobody hangs up.
    session.falls_silent();
    becomes(&house, "e", ExecutorState::Expired).await;
    drop(session);
    let session = fake.session(v1::Hello { instance: 2, ..hello(1) }).await.unwrap();
    becomes(&house, "e", ExecutorState::Active).await;
    drop(session);
    becomes(&house, "e", ExecutorState::Expired).await;
}

#[tokio::test]
async fn a_session_ends_with_its_token() {
    let house = House::open().await;
    let fake = Fake::register(&house, "e").await;
    let mut session = fake.session(hello(1)).await.unwrap();
    // While it is there, nobody takes its place.
    let operator = house.person(v1::Role::Registration, "operator", &[]).await;
    let register = async || {
        let request = v1::RegisterExecutorRequest { id: "e".into(), ..Default::default() };
        operator.executors().register_executor(request).await.map_err(|status| told(&status))
    };
    assert_eq!(register().await.unwrap_err().reason, reason::SESSION_EXISTS);
    let admin = house.admin().await;
    let tokens = admin.admin().list_tokens(v1::ListTokensRequest {}).await.unwrap().into_inner().tokens;
    let id = tokens.into_iter().find(|token| token.user == "e").unwrap().id;
    admin.admin().revoke_token(v1::RevokeTokenRequest { id }).await.unwrap();
    let fault = told(&session.next().await.unwrap_err());
    assert_eq!((fault.code, fault.reason.as_str()), (Code::Unauthenticated, reason::UNAUTHENTICATED));
    let anew = eventually("another registration", async || register().await.map_err(|fault| format!("{fault:?}"))).await;
    let anew = Fake { connection: house.connect(Some(&anew.into_inner().token)).await };
    let mut session = eventually("a session for the new token", async || {
        anew.session(v1::Hello { instance: 2, ..hello(1) }).await.map_err(|fault| format!("{fault:?}"))
    })
    .await;
    let tokens = admin.admin().list_tokens(v1::ListTokensRequest {}).await.unwrap().into_inner().tokens;
    let own: Vec<_> = tokens.into_iter().filter(|token| token.user == "e").collect();
    assert_eq!(own.len(), 1, "the old token is gone");
    admin.admin().revoke_token(v1::RevokeTokenRequest { id: own[0].id.clone() }).await.unwrap();
    assert_eq!(told(&session.next().await.unwrap_err()).code, Code::Unauthenticated);
}

#[tokio::test]
async fn a_session_begins_with_a_hello_that_makes_sense() {
    let house = House::with(octavius_core::Timing { ping_deadline: std::time::Duration::from_millis(400), ..timing() }).await;
    let fake = Fake::register(&house, "e").await;
    let pairs = |count: usize, value: &str| (0..count).map(|n| (format!("k{n}"), value.to_owned())).collect();
    let bad_held = |id: &str, attempt| vec![v1::Held { id: id.into(), attempt, nonce: 1 }];
    let id = octavius_core::ExecutionId::generate().to_string();
    for (hello, field) in [
        (hello(0), "capacity"),
        (hello(10_001), "capacity"),
        (v1::Hello { labels: pairs(33, "v"), ..hello(1) }, "labels"),
        (v1::Hello { labels: pairs(1, "not a label"), ..hello(1) }, "labels"),
        (v1::Hello { labels: pairs(1, &"v".repeat(100_000)), ..hello(1) }, "labels"),
        (v1::Hello { version: "v".repeat(1000), ..hello(1) }, "version"),
        (v1::Hello { held: bad_held("nonsense", 1), ..hello(1) }, "held.id"),
        (v1::Hello { held: bad_held(&id, 0), ..hello(1) }, "attempt"),
        (v1::Hello { held: vec![v1::Held { id: id.clone(), attempt: 1, nonce: 1 }; 20_001], ..hello(1) }, "held"),
    ] {
        let fault = fake.session(hello).await.err().unwrap();
        assert_eq!((fault.code, fault.violations[0].field.as_str()), (Code::InvalidArgument, field), "{fault:?}");
    }
    let ping = || SessionRequest { say: Some(Say::Ping(v1::Ping { free: 1 })) };
    for first in [vec![], vec![ping()], vec![SessionRequest { say: None }]] {
        let status = fake.connection.executors().session(futures::stream::iter(first)).await.unwrap_err();
        assert_eq!(status.code(), Code::InvalidArgument);
    }
    // One that never says anything does not sit there for ever.
    let silent = fake.connection.clone();
    let call = async move { silent.executors().session(futures::stream::pending()).await.unwrap_err() };
    assert_eq!(Fault::from_status(&soon("an answer to silence", call).await).code, Code::InvalidArgument);
}

/// An executor that hangs up in the middle of its own welcome is not there, and must not be taken for present.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_session_given_up_at_its_beginning_leaves_nothing_behind() {
    let house = House::open().await;
    let fake = Fake::register(&house, "e").await;
    for _ in 0..50 {
        let connection = fake.connection.clone();
        let hello = SessionRequest { say: Some(Say::Hello(hello(1))) };
        let call = tokio::spawn(async move { connection.executors().session(futures::stream::iter([hello])).await });
        tokio::task::yield_now().await;
        call.abort();
        let _ = call.await;
    }
    eventually("nobody to be there", async || {
        let executor = listed(&house, "e").await;
        if executor.state() == ExecutorState::Active { Err(format!("{executor:?}")) } else { Ok(()) }
    })
    .await;
    fake.session(v1::Hello { instance: 9, ..hello(1) }).await.map(drop).unwrap();
}

/// Whoever asks, and whichever controller: an operator wants to know what is there and who will remove it.
#[tokio::test]
async fn what_an_executor_made_and_nobody_asked_for_is_shown_by_every_controller() {
    let house = House::open().await;
    let other = house.neighbour().await;
    let (here, there) = (house.admin().await, connect(other.address(), Some(&house.token)).await);
    let fake = Fake::register(&house, "e").await;
    let session = fake.session(hello(1)).await.unwrap();
    becomes(&house, "e", ExecutorState::Active).await;
    let shown = async |admin: &Connection, count: u32| {
        eventually(&format!("{count} orphans"), async || {
            let executor = listed_by(admin, "e").await;
            if executor.orphan_count == count { Ok(executor.orphans) } else { Err(format!("{executor:?}")) }
        })
        .await
    };
    let at = |seconds| Some(prost_types::Timestamp { seconds, nanos: 0 });
    let orphan = |number: i64| v1::Orphan {
        name: format!("octavius-x-{number}"),
        namespace: "jobs".to_owned(),
        since: at(number),
        removed_at: at(number + 600),
    };
    let told: Vec<_> = (0..25).map(orphan).collect();
    session.tells_orphans(v1::Orphans { orphans: told.clone(), count: 25 }).await;
    assert_eq!(shown(&here, 25).await, told[..20], "no more than 20 by name");
    assert_eq!(shown(&there, 25).await, told[..20]);
    session.tells_orphans(v1::Orphans { orphans: told[..1].to_vec(), count: 1 }).await;
    assert_eq!(shown(&there, 1).await, told[..1]);
    session.tells_orphans(v1::Orphans::default()).await;
    assert_eq!(shown(&there, 0).await, []);

    // A session begins without any: what an earlier one told is not said of this one.
    session.tells_orphans(v1::Orphans { orphans: told[..1].to_vec(), count: 1 }).await;
    shown(&here, 1).await;
    let _again = fake.session(hello(1)).await.unwrap();
    assert_eq!(shown(&there, 0).await, []);
    other.stop().await;
}
