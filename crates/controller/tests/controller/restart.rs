//! A controller that stops loses nothing, and keeps nobody waiting.

use std::time::Duration;

use octavius_proto::reason;
use octavius_proto::v1::{self, ExecutionState as S, Role};
use tonic::Code;

use crate::fake::{Fake, held, hello};
use crate::harness::{House, execute, get, reaches, soon, told};

const JOB: &str = r#"{"name":"j","command":["true"]}"#;

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn everything_survives_a_restart() {
    let mut house = House::open().await;
    house.apply(&[JOB]).await;
    let ann = house.token(Role::User, "ann", &[]).await.token;
    let admin_token = house.token.clone();
    let token = house.register("e").await;
    let fake = Fake { connection: house.connect(Some(&token)).await };
    let mut session = fake.session(hello(2)).await.unwrap();
    let connection = house.connect(Some(&ann)).await;
    let mut ids = Vec::new();
    for _ in 0..3 {
        ids.push(execute(&connection, "j", &[]).await.unwrap());
    }
    let (running, claimed) = (session.assignment().await, session.assignment().await);
    fake.begins(&running).await;
    fake.append(&running, 0, b"before\n").await.unwrap();
    let id = house.id().to_owned();

    house.stop().await;
    house.start_again().await;
    assert_eq!((house.id(), house.token.as_str()), (id.as_str(), admin_token.as_str()));
    let connection = house.connect(Some(&ann)).await;
    let fake = Fake { connection: house.connect(Some(&token)).await };
    assert_eq!(get(&connection, &running.id).await.state(), S::Running);
    let back = v1::Hello { held: vec![held(&running), held(&claimed)], ..hello(3) };
    let mut session = fake.session(back).await.unwrap();
    let third = session.assignment().await;
    assert!(ids.contains(&third.id) && ![&running.id, &claimed.id].contains(&&third.id), "what waited is handed out");
    assert_eq!(fake.append(&running, 7, b"after\n").await, Ok(13));
    fake.finishes(&running, S::Succeeded, b"before\nafter\n").await.unwrap();
    fake.completes(&claimed, b"").await;
    fake.completes(&third, b"").await;
    for id in &ids {
        reaches(&connection, id, S::Succeeded).await;
    }
}

/// A restart is not a reason to lose what runs: absence counts from the moment at which the new controller looks.
#[tokio::test]
async fn a_controller_that_was_away_for_long_loses_nothing_for_it() {
    let lost_after = Duration::from_secs(2);
    let mut house = House::with(octavius_core::Timing { lost_after, ..crate::harness::timing() }).await;
    house.apply(&[JOB]).await;
    let token = house.register("e").await;
    let fake = Fake { connection: house.connect(Some(&token)).await };
    let mut session = fake.session(hello(1)).await.unwrap();
    let id = house.execute("j").await;
    let claim = session.assignment().await;
    fake.begins(&claim).await;
    house.stop().await;
    let began = std::time::Instant::now();
    house.start_again().await;
    let admin = house.admin().await;
    if began.elapsed() < lost_after / 2 {
        assert_eq!(get(&admin, &id).await.state(), S::Running);
    }
    // Nobody comes back; the controller has never seen that executor, and still it is lost in the end.
    reaches(&admin, &id, S::Lost).await;
    assert!(began.elapsed() >= lost_after);
}

/// A stream that never says anything, and when it was first asked to: its call has been sent then.
fn silence<T: Send + 'static>() -> (impl futures::Stream<Item = T> + Send + 'static, tokio::sync::oneshot::Receiver<()>) {
    let (ask, asked) = tokio::sync::oneshot::channel();
    let mut ask = Some(ask);
    let stream = futures::stream::poll_fn(move |_| {
        if let Some(ask) = ask.take() {
            let _ = ask.send(());
        }
        std::task::Poll::Pending
    });
    (stream, asked)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_stop_is_quick_and_tells_every_stream() {
    let mut house = House::open().await;
    house.apply(&[JOB]).await;
    let admin = house.admin().await;
    let mut sessions = Vec::new();
    for n in 0..5 {
        let fake = Fake::register(&house, &format!("e{n}")).await;
        sessions.push(fake.session(hello(1)).await.unwrap());
    }
    let id = house.execute("j").await;
    let (mut watches, mut followers) = (Vec::new(), Vec::new());
    for _ in 0..5 {
        let watch = v1::WatchExecutionRequest { id: id.clone() };
        watches.push(admin.executions().watch_execution(watch).await.unwrap().into_inner());
        let read = v1::ReadLogRequest { id: id.clone(), follow: true, ..Default::default() };
        followers.push(admin.logs().read_log(read).await.unwrap().into_inner());
    }
    // An apply whose client says nothing more, and a session without a hello.
    let (says_nothing, applies) = silence();
    let applying = admin.clone();
    let apply = tokio::spawn(async move { applying.catalog().apply(says_nothing).await });
    let (says_nothing, begins) = silence();
    let silent = Fake::register(&house, "silent").await.connection;
    let beginning = silent.clone();
    let hello = tokio::spawn(async move { beginning.executors().session(says_nothing).await });
    for (sent, connection) in [(applies, &admin), (begins, &silent)] {
        // What is answered on the same connection came after what was sent before.
        sent.await.unwrap();
        connection.admin().who_am_i(v1::WhoAmIRequest {}).await.unwrap();
    }

    let took = house.stop().await;
    assert!(took < Duration::from_secs(2), "{took:?}");
    let mut ends = Vec::new();
    for follower in &mut followers {
        ends.push(soon("the end of a follower", follower.message()).await.unwrap_err());
    }
    for watch in &mut watches {
        let end = async {
            loop {
                if let Err(status) = watch.message().await {
                    break status;
                }
            }
        };
        ends.push(soon("the end of a watch", end).await);
    }
    for session in &mut sessions {
        let end = async {
            loop {
                if let Err(status) = session.next().await {
                    break status;
                }
            }
        };
        ends.push(soon("the end of a session", end).await);
    }
    for status in ends {
        assert_eq!((status.code(), told(&status).reason.as_str()), (Code::Unavailable, reason::STOPPING), "{status:?}");
    }
    for status in [apply.await.unwrap().unwrap_err(), hello.await.unwrap().unwrap_err()] {
        assert_eq!(status.code(), Code::Unavailable, "{status:?}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_client_that_does_not_read_does_not_hold_up_a_stop() {
    let mut house = House::open().await;
    house.apply(&[JOB]).await;
    let fake = Fake::register(&house, "e").await;
    let mut session = fake.session(hello(1)).await.unwrap();
    let id = house.execute("j").await;
    let claim = session.assignment().await;
    fake.begins(&claim).await;
    let piece = vec![b'x'; 1 << 20];
    for n in 0..8 {
        fake.append(&claim, n << 20, &piece).await.unwrap();
    }
    let admin = house.admin().await;
    let read = v1::ReadLogRequest { id, follow: true, ..Default::default() };
    let follower = admin.logs().read_log(read).await.unwrap().into_inner();
    let took = house.stop().await;
    assert!(took < Duration::from_secs(3), "{took:?}");
    drop((follower, session));
}
