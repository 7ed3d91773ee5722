//! Sensitive arguments at rest: nowhere in the store as they were given, under keys that change, and told where they cannot be opened.

use octavius_controller::{Encryption, EncryptionKey, UsedKey, used_keys};
use octavius_core::{Execution, ExecutionId, KeyId};
use octavius_proto::v1::{self, ExecutionState as S, Role};
use octavius_proto::{Fault, reason};
use octavius_store::{Entry, Key, Range, Store, Txn, codec, key};
use tonic::Code;

use crate::fake::{Fake, Session, hello};
use crate::harness::{
    House, connect, encryption_key, eventually, execute, get, reaches, request, rerun_request, send, send_rerun,
};
use crate::keeping::{age, often, turns};

const PAY: &str = r#"{"name":"pay","command":["true"],"env_vars":{"args":[
    {"name":"order"},{"name":"pin","sensitive":true},{"name":"code","sensitive":true}]}}"#;
const PLAIN: &str = r#"{"name":"plain","command":["true"]}"#;

const PIN: &str = "hunter2-is-the-pin";

async fn dump(store: &dyn Store) -> Vec<Entry> {
    let mut range = Some(Range::of(Key::new(""), 500));
    let mut entries = Vec::new();
    while let Some(asked) = range {
        let page = store.range(&asked).await.unwrap();
        range = asked.next(&page);
        entries.extend(page.entries);
    }
    entries
}

/// Keys of the store under which, or in which, this text stands.
async fn found(store: &dyn Store, text: &str) -> Vec<String> {
    let holds = |entry: &Entry| {
        entry.key.as_str().contains(text) || entry.value.windows(text.len()).any(|window| window == text.as_bytes())
    };
    dump(store).await.iter().filter(|entry| holds(entry)).map(|entry| entry.key.to_string()).collect()
}

async fn record(house: &House, id: &str) -> Entry {
    house.store().get(&key::execution(id.parse().unwrap())).await.unwrap().unwrap()
}

/// Changes an execution's record behind the controller's back, as whoever can write to the store could.
async fn tamper(house: &House, id: &str, change: impl FnOnce(&mut Execution)) {
    let entry = record(house, id).await;
    let mut execution: Execution = codec::decode(&entry).unwrap();
    change(&mut execution);
    let txn = Txn::new().unchanged(&entry).put(entry.key.clone(), codec::encode(&execution));
    assert!(matches!(house.store().commit(txn).await.unwrap(), octavius_store::Commit::Done(_)));
}

fn keys_of(encryption: &[&EncryptionKey]) -> Encryption {
    Encryption::Keys(encryption.iter().map(|&key| key.clone()).collect())
}

fn used(keys: &[(KeyId, u64)]) -> Vec<UsedKey> {
    let mut used: Vec<_> = keys.iter().map(|&(id, executions)| UsedKey { id, executions }).collect();
    used.sort_by_key(|used| used.id);
    used
}

/// The same store, with other keys.
async fn change_keys(house: &mut House, encryption: &[&EncryptionKey]) {
    house.stop().await;
    house.encryption = keys_of(encryption);
    house.start_again().await;
}

async fn worker(house: &House, id: &str) -> (Fake, Session) {
    let fake = Fake::register(house, id).await;
    let session = fake.session(hello(4)).await.unwrap();
    (fake, session)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_sensitive_argument_reaches_its_job_and_stands_nowhere_in_the_store() {
    let house = House::with(often()).await;
    house.apply(&[PAY]).await;
    let (fake, mut session) = worker(&house, "e").await;
    let ann = house.person(Role::User, "ann", &[]).await;
    let large = format!("{PIN}{}", "x".repeat(20_000));
    let mut ids = Vec::new();
    for pin in [PIN, &large] {
        let asked = || v1::ExecuteRequest {
            idempotency_key: format!("key-{}", pin.len()),
            ..request("pay", &[("order", "A-1042"), ("pin", pin), ("code", "")])
        };
        let id = send(&ann, asked()).await.unwrap();
        assert_eq!(send(&ann, asked()).await, Ok(id.clone()), "the call repeated is known again");
        let other = v1::ExecuteRequest {
            idempotency_key: format!("key-{}", pin.len()),
            ..request("pay", &[("order", "A-1042"), ("pin", "another")])
        };
        assert_eq!(send(&ann, other).await.unwrap_err().reason, reason::KEY_REUSED);
        let again = v1::ExecuteRequest { id: id.clone(), ..request("pay", &[("order", "A-1042"), ("pin", pin), ("code", "")]) };
        assert_eq!(send(&ann, again.clone()).await, Ok(id.clone()));
        let other = v1::ExecuteRequest { arguments: request("pay", &[("pin", "another")]).arguments, ..again };
        assert_eq!(send(&ann, other).await.unwrap_err().reason, reason::ID_TAKEN);
        let claim = session.assignment().await;
        assert_eq!((claim.id.as_str(), claim.arguments["pin"].as_str(), claim.arguments["code"].as_str()), (&*id, pin, ""));
        let shown = get(&ann, &id).await;
        let shown = ["order", "pin", "code"].map(|name| shown.arguments[name].clone());
        assert_eq!(shown, ["A-1042", "********", "********"]);
        fake.completes(&claim, b"paid\n").await;
        let rerun = send_rerun(&ann, rerun_request(&id)).await.unwrap();
        let claim = session.assignment().await;
        assert_eq!((claim.id.as_str(), claim.arguments["pin"].as_str()), (&*rerun, pin));
        fake.completes(&claim, b"paid\n").await;
        ids.extend([id, rerun]);
    }
    assert_eq!(found(&**house.store(), PIN).await, Vec::<String>::new());
    assert!(!found(&**house.store(), "A-1042").await.is_empty(), "the search finds what is there");
    let Encryption::Keys(own) = &house.encryption else { panic!("no keys") };
    assert_eq!(used_keys(&**house.store()).await.unwrap(), used(&[(own[0].id(), 4)]));
    // With the executions goes what says that they were encrypted.
    age(&house).await;
    until_gone(&house, &ids).await;
    assert_eq!(used_keys(&**house.store()).await.unwrap(), []);
}

async fn until_gone(house: &House, ids: &[String]) {
    eventually("old executions to be removed", async || {
        let mut left = 0;
        for id in ids {
            left += usize::from(house.store().get(&key::execution(id.parse().unwrap())).await.unwrap().is_some());
        }
        if left == 0 { Ok(()) } else { Err(format!("{left} are left")) }
    })
    .await;
}

#[tokio::test]
async fn what_one_controller_encrypts_another_hands_out_and_repeats() {
    let house = House::open().await;
    house.apply(&[PAY]).await;
    let neighbour = house.neighbour().await;
    let there = connect(neighbour.address(), Some(&house.token)).await;
    let asked = request("pay", &[("pin", PIN)]);
    let id = send(&house.admin().await, asked.clone()).await.unwrap();
    assert_eq!(send(&there, asked).await, Ok(id.clone()), "the call repeated through the other");
    let rerun = send_rerun(&there, rerun_request(&id)).await.unwrap();
    let fake = Fake { connection: connect(neighbour.address(), Some(&house.register("e").await)).await };
    let mut session = fake.session(hello(4)).await.unwrap();
    for _ in 0..2 {
        let claim = session.assignment().await;
        assert!([&id, &rerun].contains(&&claim.id) && claim.arguments["pin"] == PIN, "{}", claim.id);
        fake.completes(&claim, b"").await;
    }
    assert_eq!(found(&**house.store(), PIN).await, Vec::<String>::new());
    drop(session);
    neighbour.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_key_is_replaced_while_executions_wait_and_the_old_one_can_go() {
    let (old, new) = (encryption_key(), encryption_key());
    let mut house = House::with(often()).await;
    change_keys(&mut house, &[&old]).await;
    house.apply(&[PAY]).await;
    let admin = house.admin().await;
    let large = format!("{PIN}{}", "x".repeat(10_000));
    let asked = v1::ExecuteRequest { idempotency_key: "once".to_owned(), ..request("pay", &[("pin", PIN)]) };
    let waits = send(&admin, asked.clone()).await.unwrap();
    let waits_large = execute(&admin, "pay", &[("pin", &large)]).await.unwrap();
    let ended = execute(&admin, "pay", &[("pin", PIN)]).await.unwrap();
    crate::harness::cancel(&admin, &ended).await;
    assert_eq!(used_keys(&**house.store()).await.unwrap(), used(&[(old.id(), 3)]));

    change_keys(&mut house, &[&new, &old]).await;
    eventually("everything to be under the new key", async || {
        let now = used_keys(&**house.store()).await.unwrap();
        if now == used(&[(new.id(), 3)]) { Ok(()) } else { Err(format!("{now:?}")) }
    })
    .await;
    assert_eq!(send(&house.admin().await, asked.clone()).await, Ok(waits.clone()), "under a key of before");

    change_keys(&mut house, &[&new]).await;
    let admin = house.admin().await;
    let (fake, mut session) = worker(&house, "e").await;
    let mut given = std::collections::BTreeMap::new();
    for _ in 0..2 {
        let claim = session.assignment().await;
        fake.completes(&claim, b"").await;
        given.insert(claim.id.clone(), claim.arguments["pin"].clone());
    }
    assert_eq!(given, [(waits.clone(), PIN.to_owned()), (waits_large, large)].into());
    let rerun = send_rerun(&admin, rerun_request(&ended)).await.unwrap();
    let claim = session.assignment().await;
    assert_eq!((claim.id.as_str(), claim.arguments["pin"].as_str()), (&*rerun, PIN));
    // Its digest cannot be made any more, and nobody is told that it was another request.
    let fault = send(&admin, asked).await.unwrap_err();
    assert_eq!((fault.code, fault.reason.as_str()), (Code::FailedPrecondition, reason::ENCRYPTION_KEY_MISSING));
    assert_eq!(found(&**house.store(), PIN).await, Vec::<String>::new());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn without_the_key_an_execution_says_so_and_waits_and_the_others_go_on() {
    let (old, new) = (encryption_key(), encryption_key());
    let mut house = House::with(often()).await;
    change_keys(&mut house, &[&old]).await;
    house.apply(&[PAY, PLAIN]).await;
    let waits = execute(&house.admin().await, "pay", &[("pin", PIN)]).await.unwrap();

    change_keys(&mut house, &[&new]).await;
    let (fake, mut session) = worker(&house, "e").await;
    let admin = house.admin().await;
    let plain = execute(&admin, "plain", &[]).await.unwrap();
    let other = execute(&admin, "pay", &[("pin", "another")]).await.unwrap();
    let mut ran = Vec::new();
    for _ in 0..2 {
        let claim = session.assignment().await;
        fake.completes(&claim, b"").await;
        ran.push(claim.id);
    }
    ran.sort();
    assert_eq!(ran, [plain, other]);
    let known = eventually("it to say why", async || {
        let known = get(&admin, &waits).await;
        if known.reason.is_empty() { Err(format!("{known:?}")) } else { Ok(known) }
    })
    .await;
    assert_eq!((known.state(), known.reason.as_str()), (S::Queued, "ENCRYPTION_KEY_MISSING"));
    assert!(known.message.contains(&format!("key {}", old.id())) && known.arguments["pin"] == "********", "{known:?}");
    let fault = send_rerun(&admin, rerun_request(&waits)).await.unwrap_err();
    assert_eq!((fault.code, fault.reason.as_str()), (Code::FailedPrecondition, reason::ENCRYPTION_KEY_MISSING));
    assert!(fault.message.contains(&waits) && fault.metadata.contains(&("key".to_owned(), old.id().to_string())), "{fault:?}");
    turns(&house, 2).await;
    assert!(used_keys(&**house.store()).await.unwrap().contains(&UsedKey { id: old.id(), executions: 1 }));

    drop(session);
    change_keys(&mut house, &[&new, &old]).await;
    let fake = Fake { connection: house.connect(Some(&house.register("e2").await)).await };
    let mut session = fake.session(hello(1)).await.unwrap();
    let claim = session.assignment().await;
    assert_eq!((claim.id.as_str(), claim.arguments["pin"].as_str()), (&*waits, PIN));
    let known = get(&house.admin().await, &waits).await;
    assert_eq!((known.state(), known.reason.as_str(), known.message.as_str()), (S::Claimed, "", ""));
}

/// One who can write to the store, and has no key, must not choose what a job is given.
#[tokio::test]
async fn a_value_that_was_changed_or_moved_ends_its_execution_and_reaches_no_job() {
    let mut house = House::open().await;
    house.apply(&[PAY, PLAIN]).await;
    let admin = house.admin().await;
    let mut ids = Vec::new();
    for _ in 0..3 {
        ids.push(execute(&admin, "pay", &[("pin", PIN), ("code", "swordfish")]).await.unwrap());
    }
    // A controller that has just accepted them remembers what they were.
    house.stop().await;
    let donor: Execution = codec::decode(&record(&house, &ids[2]).await).unwrap();
    tamper(&house, &ids[0], |execution| {
        let sealed = execution.arguments["pin"].clone();
        let last = if sealed.ends_with('A') { "B" } else { "A" };
        execution.arguments.insert("pin".to_owned(), format!("{}{last}", &sealed[..sealed.len() - 1]));
    })
    .await;
    tamper(&house, &ids[1], |execution| {
        execution.arguments.insert("pin".to_owned(), donor.arguments["pin"].clone());
    })
    .await;
    tamper(&house, &ids[2], |execution| {
        execution.arguments.insert("pin".to_owned(), donor.arguments["code"].clone());
    })
    .await;
    house.start_again().await;
    let admin = house.admin().await;
    let plain = execute(&admin, "plain", &[]).await.unwrap();
    let (fake, mut session) = worker(&house, "e").await;
    let claim = session.assignment().await;
    assert_eq!(claim.id, plain);
    fake.completes(&claim, b"").await;
    for id in &ids {
        let known = reaches(&admin, id, S::Failed).await;
        assert_eq!((known.reason.as_str(), known.attempts.len()), ("ARGUMENTS_DAMAGED", 0), "{known:?}");
        assert!(known.message.contains("`pin`"), "{}", known.message);
    }
    let fault = send_rerun(&admin, rerun_request(&ids[0])).await.unwrap_err();
    assert_eq!((fault.code, fault.reason.as_str()), (Code::DataLoss, reason::ARGUMENTS_DAMAGED));
    assert!(house.store().range(&Range::of(key::queue(), 10)).await.unwrap().entries.is_empty());
}

async fn refused(house: &House) -> Fault {
    execute(&house.admin().await, "pay", &[("order", "A-1"), ("pin", PIN)]).await.unwrap_err()
}

#[tokio::test]
async fn without_any_key_a_sensitive_argument_is_refused_unless_somebody_has_decided_otherwise() {
    let mut house = House::open().await;
    house.apply(&[PAY]).await;
    house.stop().await;
    house.encryption = Encryption::Unset;
    house.start_again().await;
    let fault = refused(&house).await;
    assert_eq!((fault.code, fault.reason.as_str()), (Code::FailedPrecondition, reason::ENCRYPTION_KEY_MISSING));
    assert!(fault.message.contains("(pin)") && fault.message.contains("octavius controller new-key"), "{fault:?}");
    assert!(house.store().range(&Range::of(key::executions(), 10)).await.unwrap().entries.is_empty());
    execute(&house.admin().await, "pay", &[("order", "A-1")]).await.unwrap();

    house.stop().await;
    house.encryption = Encryption::Off;
    house.start_again().await;
    let id = execute(&house.admin().await, "pay", &[("pin", PIN)]).await.unwrap();
    assert_eq!(get(&house.admin().await, &id).await.arguments["pin"], "********");
    let id: ExecutionId = id.parse().unwrap();
    assert_eq!(found(&**house.store(), PIN).await, [key::execution(id).to_string()]);
    // What is in the clear stays readable under a key that comes later.
    let key = encryption_key();
    change_keys(&mut house, &[&key]).await;
    let rerun = send_rerun(&house.admin().await, rerun_request(&id.to_string())).await.unwrap();
    let kept: Execution = codec::decode(&record(&house, &rerun).await).unwrap();
    assert_eq!(kept.sealed_with, Some(key.id()));
}
