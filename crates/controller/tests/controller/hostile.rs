//! Clients that mean harm: whatever they do, the others are answered.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use async_trait::async_trait;
use bytes::Bytes;
use futures::future::join_all;
use futures::stream::{self, StreamExt as _};
use octavius_core::token::{Token, TokenKind};
use octavius_proto::client::Connection;
use octavius_proto::v1::{self, Role};
use octavius_proto::{MAX_MESSAGE_BYTES, reason};
use octavius_store::record::AuditRecord;
use octavius_store::{Entry, Key, Range, Store, StoreError, codec, key};
use tonic::Code;
use tonic::body::Body;
use tonic::codegen::http;
use tonic::transport::Channel;
use tower::ServiceExt as _;

use crate::harness::{Dice, House, connect, eventually, execute, request, send, soon, timing, told};
use crate::meddling::{self, Meddler};
use crate::permissions::{call, channel};

const JOB: &str = r#"{"name":"j","command":["true"],"env_vars":{"args":[{"name":"a"}]}}"#;

const EXECUTE: &str = "/octavius.v1.ExecutionService/Execute";

/// Calls that a hostile client has under way at once on each of its connections.
const AT_ONCE: usize = 900;

async fn who_am_i(connection: &Connection) -> Result<String, Code> {
    let answer = connection.admin().who_am_i(v1::WhoAmIRequest {}).await;
    answer.map(|answer| answer.into_inner().user).map_err(|status| told(&status).code)
}

/// Counts the tokens that are looked up in the store.
#[derive(Debug, Default)]
struct LookUps(AtomicUsize);

#[async_trait]
impl Meddler for LookUps {
    async fn get(&self, store: &dyn Store, key: &Key) -> Result<Option<Entry>, StoreError> {
        if key.as_str().starts_with(key::tokens().as_str()) {
            self.0.fetch_add(1, Ordering::SeqCst);
        }
        store.get(key).await
    }
}

/// Well-formed tokens that nobody has made.
fn guesses(dice: &mut Dice, count: usize) -> Vec<String> {
    let mut random = || dice.bytes(32).try_into().unwrap();
    (0..count).map(|_| format!("Bearer {}", Token::from_random(TokenKind::User, &random()).reveal())).collect()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn ten_thousand_wrong_tokens_wear_nobody_out_who_calls_from_the_same_address() {
    let look_ups = Arc::new(LookUps::default());
    let house = meddling::house(timing(), &look_ups).await;
    house.apply(&[JOB]).await;
    let (admin, ann) = (house.admin().await, house.person(Role::User, "ann", &[]).await);
    let neighbour = house.neighbour().await;
    let elsewhere = connect(neighbour.address(), Some(&house.token)).await;
    assert_eq!(who_am_i(&ann).await.unwrap(), "ann");

    let wrong = guesses(&mut Dice::thrown(), 10_000);
    let before = look_ups.0.load(Ordering::SeqCst);
    let strangers = join_all((0..3).map(|_| channel(&house))).await;
    let flood = async {
        let refused = stream::iter(wrong.into_iter().zip(strangers.iter().cycle())).map(async |(token, stranger)| {
            let answer = call(stranger, "/octavius.v1.AdminService/WhoAmI", Some(&token)).await;
            assert_eq!(answer.unwrap_err().code(), Code::Unauthenticated);
        });
        refused.buffer_unordered(3 * AT_ONCE).count().await
    };
    let honest = async {
        for round in 0..20 {
            assert_eq!(soon("an answer", who_am_i(&ann)).await.unwrap(), "ann");
            soon("an execution", execute(&ann, "j", &[])).await.unwrap();
            // One that was made a moment ago is good at once, through whichever controller.
            let user = format!("new {round}");
            for by in [&admin, &elsewhere] {
                let request = v1::CreateTokenRequest { role: Role::User.into(), user: user.clone(), ..Default::default() };
                let made = soon("a token", by.admin().create_token(request)).await.unwrap().into_inner();
                let new = house.connect(Some(&made.token)).await;
                assert_eq!(soon("an answer", who_am_i(&new)).await.unwrap(), user);
            }
        }
    };
    let (refused, ()) = soon("the flood to end", futures::future::join(flood, honest)).await;
    assert_eq!(refused, 10_000);
    // Those of the honest are looked up once in two seconds, and a guess now and then.
    let looked_up = look_ups.0.load(Ordering::SeqCst) - before;
    assert!(looked_up < 300, "{looked_up} tokens were looked up");

    eventually("the audit trail to tell of it", async || {
        let page = house.store().range(&Range::of(key::audit(), 10_000)).await.unwrap();
        let records: Vec<AuditRecord> = page.entries.iter().map(|entry| codec::decode(entry).unwrap()).collect();
        let unknown = records.iter().filter(|record| record.details.get("token").is_some_and(|why| why == "unknown, or revoked"));
        let count = unknown.count();
        if (1..100).contains(&count) { Ok(()) } else { Err(format!("{count} records")) }
    })
    .await;
    neighbour.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn one_who_opens_all_the_streams_there_are_takes_them_from_nobody_else() {
    let house = House::open().await;
    house.apply(&[JOB]).await;
    let id = house.execute("j").await;
    let token = house.token(Role::User, "eve", &[]).await.token;
    let (admin, other) = (house.admin().await, house.person(Role::User, "ann", &[]).await);
    let mut held = Vec::new();
    let mut refused = 0;
    for _ in 0..5 {
        let eve = house.connect(Some(&token)).await;
        let opened = join_all((0..500).map(|_| async {
            let request = v1::WatchExecutionRequest { id: id.clone() };
            eve.executions().watch_execution(request).await
        }));
        for stream in soon("streams to be opened", opened).await {
            match stream {
                Ok(stream) => held.push(stream),
                Err(status) => {
                    let fault = told(&status);
                    assert_eq!((fault.code, fault.reason.as_str()), (Code::ResourceExhausted, reason::RATE_LIMITED));
                    refused += 1;
                }
            }
        }
    }
    assert_eq!((held.len(), refused), (2048, 5 * 500 - 2048));
    assert_eq!(soon("an answer", who_am_i(&other)).await.unwrap(), "ann");
    soon("an execution", execute(&admin, "j", &[])).await.unwrap();
    held.truncate(1000);
    let eve = house.connect(Some(&token)).await;
    eventually("what is given back to be had again", async || who_am_i(&eve).await.map_err(|code| format!("{code:?}"))).await;
}

/// A call that says how long its message is, sends the beginning of it, and then nothing more.
async fn begins_a_message(channel: Channel, path: &str, token: Option<&str>, length: usize) -> http::Response<Body> {
    let length = u32::try_from(length).unwrap().to_be_bytes();
    let begun = [&[0], &length[..], &[0x12; 1000]].concat();
    let pieces = stream::iter([Ok::<_, tonic::Status>(Bytes::from(begun))]).chain(stream::pending());
    let mut request = http::Request::post(path).header("content-type", "application/grpc").header("te", "trailers");
    if let Some(token) = token {
        request = request.header("authorization", format!("Bearer {token}"));
    }
    let request = request.body(Body::new(axum::body::Body::from_stream(pieces))).unwrap();
    channel.oneshot(request).await.unwrap()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn messages_that_never_end_hold_no_more_memory_than_one_caller_has() {
    let house = House::open().await;
    house.apply(&[JOB]).await;
    let token = house.token(Role::User, "eve", &[]).await.token;
    let (eve, ann) = (house.connect(Some(&token)).await, house.person(Role::User, "ann", &[]).await);
    let connection = channel(&house).await;
    let stalled: Vec<_> = (0..500)
        .map(|_| {
            let (connection, token) = (connection.clone(), token.clone());
            tokio::spawn(async move { begins_a_message(connection, EXECUTE, Some(&token), MAX_MESSAGE_BYTES).await })
        })
        .collect();
    let large = "x".repeat(32 * 1024);
    let asked = request("j", &[("a", &large)]);
    eventually("the room to be taken", async || {
        match tokio::time::timeout(Duration::from_millis(100), send(&eve, asked.clone())).await {
            Err(_) => Ok(()),
            Ok(answer) => Err(format!("{answer:?}")),
        }
    })
    .await;
    soon("an answer", execute(&ann, "j", &[("a", &large)])).await.unwrap();
    assert_eq!(soon("a small message's answer", who_am_i(&eve)).await.unwrap(), "eve");
    stalled.iter().for_each(tokio::task::JoinHandle::abort);
    soon("room", send(&eve, asked)).await.unwrap();
}

/// What takes no token takes little: whoever calls it is nobody.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn calls_that_take_no_token_are_few_and_small() {
    const REFLECTION: &str = "/grpc.reflection.v1.ServerReflection/ServerReflectionInfo";
    const HEALTH: &str = "/grpc.health.v1.Health/Check";
    let house = House::open().await;
    let code = |answer: &http::Response<Body>| {
        let code = answer.headers().get(tonic::Status::GRPC_STATUS).unwrap_or_else(|| panic!("{answer:?} has no status"));
        Code::from_bytes(code.as_bytes())
    };
    let connection = channel(&house).await;
    let answer = soon(
        "a large message to be refused before it is there",
        begins_a_message(connection.clone(), HEALTH, None, MAX_MESSAGE_BYTES),
    );
    assert_eq!(code(&answer.await), Code::OutOfRange);
    // A stream whose answer has begun, and a call whose message never ends.
    let mut held = Vec::new();
    for _ in 0..8 {
        held.push(soon("a stream", begins_a_message(connection.clone(), REFLECTION, None, 4000)).await);
    }
    let stalled: Vec<_> = (0..100).map(|_| tokio::spawn(begins_a_message(connection.clone(), HEALTH, None, 4000))).collect();
    eventually("all but eight of the stalled ones to be refused", async || {
        let waiting = stalled.iter().filter(|call| !call.is_finished()).count();
        if waiting == 8 { Ok(()) } else { Err(format!("{waiting} wait")) }
    })
    .await;
    let answer = soon("a further one to be refused", begins_a_message(connection.clone(), HEALTH, None, 4000)).await;
    assert_eq!(code(&answer), Code::ResourceExhausted);
    let other = channel(&house).await;
    let answer = soon("another connection's answer", begins_a_message(other, REFLECTION, None, 4000)).await;
    assert!(answer.headers().get(tonic::Status::GRPC_STATUS).is_none(), "{answer:?}");
    assert_eq!(soon("an answer", who_am_i(&house.admin().await)).await.unwrap(), "admin");
    drop(held);
    stalled.iter().for_each(tokio::task::JoinHandle::abort);
    eventually("what is given back to be had again", async || {
        let answer = begins_a_message(connection.clone(), REFLECTION, None, 4000).await;
        if answer.headers().get(tonic::Status::GRPC_STATUS).is_none() { Ok(()) } else { Err(format!("{answer:?}")) }
    })
    .await;
}
