//! Whoever connects and does nothing, a lot or for ever: the port is there for those who show a token.

use std::sync::Arc;
use std::time::{Duration, Instant};

use octavius_controller::TlsFiles;
use octavius_core::Timing;
use octavius_proto::client::{Address, Connection};
use octavius_proto::tls::{Authorities, Tls, TlsSettings};
use octavius_proto::{Fault, v1};
use octavius_tests::{Authority, Days, PairFiles};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;

use crate::fake::{Fake, hello};
use crate::harness::{House, PATIENCE, execute, soon, timing};

const JOB: &str = r#"{"name":"j","command":["true"]}"#;

/// HTTP/2's own first words, and an empty SETTINGS frame.
const PREFACE: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\0\0\0\x04\0\0\0\0\0";

/// A controller, in TLS or not, and what its clients need.
async fn open(secure: bool) -> (House, Option<Arc<Tls>>) {
    let mut house = House::open().await;
    house.apply(&[JOB]).await;
    if !secure {
        return (house, None);
    }
    house.stop().await;
    let authority = Authority::new("ours").unwrap();
    let PairFiles { certificate, key } = authority.server(house.dir(), "server", &["127.0.0.1"], Days::Now).unwrap();
    house.tls = Some(TlsFiles { certificate, key, client_ca: None });
    house.start_again().await;
    let settings = TlsSettings { authorities: Authorities::Text(authority.pem().to_owned()), ..TlsSettings::default() };
    (house, Some(Arc::new(Tls::new(settings).unwrap())))
}

async fn honest(house: &House, tls: Option<&Arc<Tls>>) -> Connection {
    let address = Address::parse(&house.address.to_string()).unwrap();
    let address = tls.map_or(Ok(address.clone()), |tls| address.secured(tls)).unwrap();
    Connection::open(&[address], Some(&house.token), PATIENCE).await.unwrap()
}

async fn who(connection: &Connection) {
    let user = connection.admin().who_am_i(v1::WhoAmIRequest {}).await.unwrap().into_inner().user;
    assert_eq!(user, "admin");
}

/// The other side closes it, after whatever it says.
async fn is_closed(what: &str, stream: &mut TcpStream) {
    let mut bytes = [0; 64];
    soon(what, async { while stream.read(&mut bytes).await.is_ok_and(|read| read > 0) {} }).await;
}

/// From the same address as the honest ones, who hardly notice.
async fn silent_ones_hold_up_nobody(secure: bool) {
    let (house, tls) = open(secure).await;
    let before = honest(&house, tls.as_ref()).await;
    who(&before).await;
    let mut silent = Vec::new();
    for _ in 0..200 {
        silent.push(TcpStream::connect(house.address).await.unwrap());
    }
    let begun = Instant::now();
    for _ in 0..5 {
        who(&honest(&house, tls.as_ref()).await).await;
    }
    assert!(begun.elapsed() < Duration::from_secs(5), "{:?} for five honest ones beside 200 silent ones", begun.elapsed());
    // More of them than there is room for: the oldest go, and nobody who is known.
    for _ in 0..400 {
        silent.push(TcpStream::connect(house.address).await.unwrap());
        if silent.len() % 100 == 0 {
            who(&honest(&house, tls.as_ref()).await).await;
        }
    }
    who(&before).await;
    is_closed("the oldest of the silent ones to go", &mut silent[0]).await;
    // And those for whom there is room are not waited for without an end.
    is_closed("the newest of the silent ones to go", silent.last_mut().unwrap()).await;
    who(&before).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn silent_ones_hold_up_nobody_in_the_clear() {
    silent_ones_hold_up_nobody(false).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn silent_ones_hold_up_nobody_in_tls() {
    silent_ones_hold_up_nobody(true).await;
}

/// A connection takes no new calls when it is old, and what is under way on it goes on.
#[tokio::test(flavor = "multi_thread")]
async fn an_old_connection_is_replaced_and_costs_no_session_and_no_call() {
    let age = Duration::from_millis(400);
    let house = House::with(Timing { connection_age: age, ..timing() }).await;
    house.apply(&[JOB]).await;
    let admin = house.admin().await;
    let fake = Fake::register(&house, "e").await;
    let mut session = fake.session(hello(1)).await.unwrap();
    let begun = Instant::now();
    let mut idle = TcpStream::connect(house.address).await.unwrap();
    idle.write_all(PREFACE).await.unwrap();
    // Calls without a pause, by both of them, over many lives of a connection. One that meets its end was not sent, and is made again, as
    // our clients make theirs.
    let id = execute(&admin, "j", &[]).await.unwrap();
    let claim = session.assignment().await;
    assert_eq!(claim.id, id);
    fake.begins(&claim).await;
    let (mut calls, mut again) = (0, 0);
    while begun.elapsed() < 8 * age {
        for connection in [&admin, &fake.connection] {
            match connection.admin().who_am_i(v1::WhoAmIRequest {}).await {
                Ok(_) => calls += 1,
                Err(status) if Fault::from_status(&status).reason.is_empty() => again += 1,
                Err(status) => panic!("{status:?}"),
            }
        }
    }
    assert!(calls > 10 * again, "{again} of {calls} calls met the end of a connection");
    // It stands on the first connection, and so does what it was given there.
    fake.completes(&claim, b"x").await;
    execute(&admin, "j", &[]).await.unwrap();
    session.assignment().await;
    let mut last_words = Vec::new();
    soon("an idle connection to be closed when it is old", idle.read_to_end(&mut last_words)).await.unwrap();
    let goaway = last_words.windows(9).any(|frame| frame[3] == 7 && frame[5..] == [0; 4]);
    assert!(goaway, "the client was not told that it should make another: {last_words:?}");
}
