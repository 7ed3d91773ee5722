//! The lives of tokens: for what they are good, how they are replaced, and that what they opened ends with them.

use std::time::Duration;

use futures::future::join_all;
use octavius_core::token::{Token, TokenKind};
use octavius_core::{Digest, Timing};
use octavius_proto::client::Connection;
use octavius_proto::v1::{self, Role};
use octavius_proto::{Fault, reason};
use octavius_store::record::{ExecutorRecord, TokenRecord};
use octavius_store::{Range, codec, key};
use tonic::Code;

use crate::fake::{Fake, hello};
use crate::harness::{House, apply, cancel, connect, eventually, head, header, soon, timing, told};
use crate::keeping::often;

const JOB: &str = r#"{"name":"j","command":["true"]}"#;
const OTHER: &str = r#"{"name":"k","command":["true"]}"#;

/// Makes a token, in full.
async fn made(house: &House, request: v1::CreateTokenRequest) -> v1::CreateTokenResponse {
    house.admin().await.admin().create_token(request).await.unwrap().into_inner()
}

/// Waits for the end of a stream, and says why it ended.
async fn end_of<T>(mut stream: tonic::Streaming<T>) -> Fault {
    let ended = async {
        loop {
            match stream.message().await {
                Ok(Some(_)) => {}
                Ok(None) => panic!("it ended as if all had been said"),
                Err(status) => return told(&status),
            }
        }
    };
    soon("the end of the stream", ended).await
}

#[tokio::test]
async fn an_applier_of_a_catalogue_reads_and_changes_no_other() {
    let house = House::open().await;
    house.apply(&[JOB]).await;
    let asked = v1::CreateTokenRequest {
        role: Role::Applier.into(),
        user: "ci".into(),
        catalogs: vec!["d".into()],
        ..Default::default()
    };
    let token = made(&house, asked).await;
    let ci = house.connect(Some(&token.token)).await;
    let me = ci.admin().who_am_i(v1::WhoAmIRequest {}).await.unwrap().into_inner();
    assert_eq!(me.catalogs, ["d"]);
    apply(&ci, header("d", 0, &[OTHER]), &[OTHER]).await.unwrap();
    assert_eq!(head(&ci, "d").await, 1);
    let refused = |fault: Fault| {
        assert_eq!((fault.code, fault.reason.as_str()), (Code::PermissionDenied, reason::NOT_PERMITTED), "{fault:?}");
        assert_eq!(fault.fact("catalog"), Some("c"));
    };
    refused(apply(&ci, header("c", 1, &[OTHER]), &[OTHER]).await.unwrap_err());
    let catalog = || "c".to_owned();
    refused(told(&ci.catalog().get_head(v1::GetHeadRequest { catalog: catalog() }).await.unwrap_err()));
    let buckets = v1::GetBucketsRequest { catalog: catalog(), revision: 1, buckets: Vec::new() };
    refused(told(&ci.catalog().get_buckets(buckets).await.unwrap_err()));
    let freeze = v1::SetFrozenRequest { catalog: catalog(), frozen: true };
    refused(told(&ci.catalog().set_frozen(freeze).await.unwrap_err()));
    assert_eq!(head(&house.admin().await, "c").await, 1, "nothing was changed");
    let listed = house.admin().await.admin().list_tokens(v1::ListTokensRequest {}).await.unwrap().into_inner().tokens;
    assert!(listed.iter().any(|listed| listed.id == token.id && listed.catalogs == ["d"]));
}

async fn register(with: &Connection, id: &str, own: Option<&Token>) -> Result<v1::RegisterExecutorResponse, Fault> {
    let token_digest = own.map(|own| own.digest().as_bytes().to_vec()).unwrap_or_default().into();
    let request = v1::RegisterExecutorRequest { id: id.to_owned(), token_digest };
    with.executors().register_executor(request).await.map(tonic::Response::into_inner).map_err(|status| told(&status))
}

fn own(seed: u8) -> Token {
    Token::from_random(TokenKind::Executor, &[seed; 32])
}

async fn uses_left(house: &House, id: &str) -> Option<u32> {
    let listed = house.admin().await.admin().list_tokens(v1::ListTokensRequest {}).await.unwrap().into_inner().tokens;
    listed.into_iter().find(|token| token.id == id).unwrap().uses_left
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_registration_token_registers_as_many_executors_as_it_is_for_and_no_answer_that_is_lost_costs_one() {
    let house = House::open().await;
    let neighbour = house.neighbour().await;
    let asked = v1::CreateTokenRequest { role: Role::Registration.into(), user: "vpc".into(), uses: 3, ..Default::default() };
    let token = made(&house, asked).await;
    let here = house.connect(Some(&token.token)).await;
    let there = connect(neighbour.address(), Some(&token.token)).await;
    // Ten at once, through both controllers.
    let tries = (0..10_u8).map(|number| {
        let by = if number % 2 == 0 { &here } else { &there };
        let (id, own) = (format!("e{number}"), own(number));
        async move { register(by, &id, Some(&own)).await.map(|_| number) }
    });
    let (done, refused): (Vec<_>, Vec<_>) = join_all(tries).await.into_iter().partition(Result::is_ok);
    assert_eq!((done.len(), refused.len()), (3, 7), "{refused:?}");
    for refused in refused {
        let fault = refused.unwrap_err();
        assert_eq!(fault.code, Code::PermissionDenied);
        assert!(fault.message.contains("tokens create --role registration"), "{fault:?}");
    }
    assert_eq!(uses_left(&house, &token.id).await, Some(0));
    // Said once more, after its answer was lost: the same, and no use of it.
    let number = *done[0].as_ref().unwrap();
    register(&there, &format!("e{number}"), Some(&own(number))).await.unwrap();
    let fake = Fake { connection: house.connect(Some(own(number).reveal())).await };
    let session = fake.session(hello(1)).await.unwrap();
    // A stranger who has seen the call, or has another registration token, does not take the place of one that is there.
    let other = house.person(Role::Registration, "mallory", &[]).await;
    let fault = register(&other, &format!("e{number}"), Some(&own(99))).await.unwrap_err();
    assert_eq!(fault.reason, reason::SESSION_EXISTS, "{fault:?}");
    drop(session);
    // By default, one.
    let asked = v1::CreateTokenRequest { role: Role::Registration.into(), user: "operator".into(), ..Default::default() };
    let once = made(&house, asked).await;
    assert_eq!(uses_left(&house, &once.id).await, Some(1));
    neighbour.stop().await;
}

/// As a controller of an older version has left it: whoever holds it registers as many as he likes.
#[tokio::test]
async fn tokens_of_an_older_version_are_good_as_they_were() {
    let house = House::open().await;
    let once = house.token(Role::Registration, "operator", &[]).await;
    let digest = once.token.parse::<Token>().unwrap().digest();
    let entry = house.store().get(&key::token(&digest)).await.unwrap().unwrap();
    let record = TokenRecord { uses: None, ..codec::decode(&entry).unwrap() };
    let put = octavius_store::Txn::new().put(entry.key, codec::encode(&record));
    house.store().commit(put).await.unwrap();
    let with = house.connect(Some(&once.token)).await;
    for id in ["a", "b", "c"] {
        // Without a token of its own, it is given one.
        let given = register(&with, id, None).await.unwrap();
        assert!(given.token.starts_with("octe_"));
        let fake = Fake { connection: house.connect(Some(&given.token)).await };
        fake.session(hello(1)).await.unwrap();
    }
}

async fn rotate(executor: &Connection, new: &Token) -> Result<v1::RotateTokenResponse, Fault> {
    let request = v1::RotateTokenRequest { token_digest: new.digest().as_bytes().to_vec().into() };
    executor.executors().rotate_token(request).await.map(tonic::Response::into_inner).map_err(|status| told(&status))
}

async fn tokens_of(house: &House, id: &str) -> usize {
    let page = house.store().range(&Range::of(key::tokens(), 1000)).await.unwrap();
    page.entries.iter().filter(|entry| codec::decode::<TokenRecord>(entry).unwrap().user == id).count()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_executors_token_is_replaced_without_a_gap_however_often_it_is_tried() {
    let house = House::open().await;
    let first = own(1);
    register(&house.person(Role::Registration, "operator", &[]).await, "e", Some(&first)).await.unwrap();
    let old = house.connect(Some(first.reveal())).await;
    let fake = Fake { connection: old.clone() };
    let session = fake.session(hello(1)).await.unwrap();
    // Two tries whose answers were lost, then one that is repeated.
    for new in [own(2), own(3), own(4), own(4)] {
        rotate(&old, &new).await.unwrap();
        assert_eq!(tokens_of(&house, "e").await, 2, "there are two at most");
    }
    // Until a session begins with the new one, both are good; those in between never were an executor's.
    for (token, good) in [(own(1), true), (own(2), false), (own(3), false), (own(4), true)] {
        let answer = house.connect(Some(token.reveal())).await.admin().who_am_i(v1::WhoAmIRequest {}).await;
        assert_eq!(answer.is_ok(), good, "{answer:?}");
    }
    drop(session);
    let new = Fake { connection: house.connect(Some(own(4).reveal())).await };
    let _session =
        eventually("a session with the new token", async || new.session(hello(1)).await.map_err(|fault| format!("{fault:?}")))
            .await;
    assert_eq!(tokens_of(&house, "e").await, 1);
    let entry = house.store().get(&key::executor(&"e".parse().unwrap())).await.unwrap().unwrap();
    let record: ExecutorRecord = codec::decode(&entry).unwrap();
    assert_eq!((record.token, record.next_token), (Digest::of(own(4).reveal().as_bytes()), None));
    let fault = rotate(&old, &own(5)).await.unwrap_err();
    assert_eq!(fault.code, Code::Unauthenticated, "the old one is good for nothing any more");
    // Another executor's cannot be had.
    let other = house.connect(Some(&house.register("f").await)).await;
    assert_eq!(rotate(&other, &own(4)).await.unwrap_err().code, Code::InvalidArgument);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_executor_is_told_when_to_replace_its_token() {
    let life = Duration::from_secs(1000);
    let house = House::with(Timing { executor_token_life: life, ..timing() }).await;
    let fake = Fake::register(&house, "e").await;
    let welcome = fake.session(hello(1)).await.unwrap().welcome.clone();
    let after = Duration::try_from(welcome.rotate_token_after.unwrap()).unwrap();
    assert!((Duration::from_secs(700)..=Duration::from_secs(750)).contains(&after), "{after:?}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_a_token_has_opened_ends_with_it_on_every_controller() {
    let house = House::open().await;
    house.apply(&[JOB]).await;
    let id = house.execute("j").await;
    let neighbour = house.neighbour().await;
    let watch = async |token: &str| {
        let connection = connect(neighbour.address(), Some(token)).await;
        let watching = connection.executions().watch_execution(v1::WatchExecutionRequest { id: id.clone() }).await;
        watching.unwrap().into_inner()
    };
    let (revoked, stays) = (house.token(Role::User, "ann", &[]).await, house.token(Role::User, "bob", &[]).await);
    let short = v1::CreateTokenRequest {
        role: Role::User.into(),
        user: "eve".into(),
        lifetime: Some(prost_types::Duration { seconds: 1, nanos: 0 }),
        ..Default::default()
    };
    let ends = made(&house, short).await;
    let (of_ann, of_eve, mut of_bob) = (watch(&revoked.token).await, watch(&ends.token).await, watch(&stays.token).await);
    soon("the first message", of_bob.message()).await.unwrap().unwrap();
    house.admin().await.admin().revoke_token(v1::RevokeTokenRequest { id: revoked.id }).await.unwrap();
    assert_eq!(end_of(of_ann).await.reason, reason::UNAUTHENTICATED);
    assert_eq!(end_of(of_eve).await.reason, reason::UNAUTHENTICATED);
    // Bob's goes on: what happens is told.
    cancel(&house.admin().await, &id).await;
    soon("another message", of_bob.message()).await.unwrap().unwrap();
    neighbour.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn it_is_known_when_a_token_was_last_used() {
    let house = House::with(often()).await;
    let used = house.token(Role::User, "ann", &[]).await;
    let unused = house.token(Role::User, "bob", &[]).await;
    house.connect(Some(&used.token)).await.admin().who_am_i(v1::WhoAmIRequest {}).await.unwrap();
    let neighbour = house.neighbour().await;
    let elsewhere = connect(neighbour.address(), Some(&house.token)).await;
    eventually("the use to be told, through whichever controller", async || {
        let listed = elsewhere.admin().list_tokens(v1::ListTokensRequest {}).await.unwrap().into_inner().tokens;
        let last = |id: &str| listed.iter().find(|token| token.id == id).unwrap().last_used_at;
        assert_eq!(last(&unused.id), None);
        last(&used.id).map(drop).ok_or_else(|| "not yet".to_owned())
    })
    .await;
    house.admin().await.admin().revoke_token(v1::RevokeTokenRequest { id: used.id.clone() }).await.unwrap();
    assert!(house.store().get(&key::token_used(&used.id)).await.unwrap().is_none());
    neighbour.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_bootstrap_token_that_was_revoked_does_not_come_back_with_the_next_start() {
    let mut house = House::open().await;
    let admin = house.admin().await;
    let id = admin.admin().who_am_i(v1::WhoAmIRequest {}).await.unwrap().into_inner().token_id;
    admin.admin().revoke_token(v1::RevokeTokenRequest { id }).await.unwrap();
    house.stop().await;
    house.start_again().await;
    let answer = house.admin().await.admin().who_am_i(v1::WhoAmIRequest {}).await;
    assert_eq!(answer.unwrap_err().code(), Code::Unauthenticated);
    // Another one in the file is a new admin's.
    house.stop().await;
    std::fs::remove_file(house.token_file()).unwrap();
    house.start_again().await;
    house.admin().await.admin().who_am_i(v1::WhoAmIRequest {}).await.unwrap();
}

/// As whoever has stolen one uses it, at the moment in which it is revoked.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_registration_token_is_revoked_however_busily_it_is_used() {
    let house = House::open().await;
    let asked =
        v1::CreateTokenRequest { role: Role::Registration.into(), user: "vpc".into(), uses: 10_000, ..Default::default() };
    let token = made(&house, asked).await;
    let with = house.connect(Some(&token.token)).await;
    let busy = async {
        for number in 0..10_000_u32 {
            if register(&with, &format!("e{number}"), None).await.is_err_and(|fault| fault.code == Code::Unauthenticated) {
                return;
            }
        }
    };
    let admin = house.admin().await;
    let revoked = async {
        eventually("some registrations", async || match uses_left(&house, &token.id).await {
            Some(left) if left < 9_990 => Ok(()),
            left => Err(format!("{left:?}")),
        })
        .await;
        admin.admin().revoke_token(v1::RevokeTokenRequest { id: token.id.clone() }).await.unwrap();
    };
    soon("the end of it", futures::future::join(busy, revoked)).await;
    let digest = token.token.parse::<Token>().unwrap().digest();
    assert!(house.store().get(&key::token(&digest)).await.unwrap().is_none());
}

#[tokio::test]
async fn a_hash_that_is_anothers_is_refused_and_not_tried_for_ever() {
    let house = House::open().await;
    let user = house.token(Role::User, "ann", &[]).await.token.parse::<Token>().unwrap();
    let with = house.person(Role::Registration, "operator", &[]).await;
    let fault = soon("an answer", register(&with, "ann", Some(&user))).await.unwrap_err();
    assert_eq!(fault.code, Code::InvalidArgument, "{fault:?}");
}

#[tokio::test]
async fn a_bootstrap_token_that_others_can_read_is_refused() {
    use std::os::unix::fs::PermissionsExt as _;
    let house = House::open().await;
    let file = house.dir().join("exposed.token");
    std::fs::write(&file, Token::from_random(TokenKind::User, &[9; 32]).reveal()).unwrap();
    std::fs::set_permissions(&file, std::fs::Permissions::from_mode(0o644)).unwrap();
    let dir = tempfile::tempdir().unwrap();
    let store = octavius_store::open_embedded(dir.path(), octavius_store::EmbeddedOptions::default()).unwrap();
    let options = octavius_controller::ControllerOptions { store, archive: None, ..house.options(file.clone()) };
    let refused = octavius_controller::Controller::start(options).await.unwrap_err().to_string();
    assert!(refused.contains("exposed.token can be read by others (mode 644)"), "{refused}");
}
