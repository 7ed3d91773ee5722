//! What goes wrong at one place in the store: an answer that is lost there, a write that lands late, a record that is gone.

use std::fmt::Debug;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use async_trait::async_trait;
use octavius_core::{CatalogName, Digest, Execution, ExecutionId, Timestamp, Timing};
use octavius_proto::reason;
use octavius_proto::v1::{self, ExecutionState as S};
use octavius_store::record::{FrozenRecord, HeadRecord};
use octavius_store::{Commit, Entry, Key, Store, StoreError, StoreLayer, Txn, codec, key};
use tonic::Code;

use crate::fake::{Fake, hello};
use crate::harness::{House, apply, cancel, execute, get, head, header, timing, told};

const JOB: &str = r#"{"name":"j","command":["true"],"env_vars":{"args":[{"name":"a"}]}}"#;

/// What stands between a controller and its store.
#[async_trait]
pub(crate) trait Meddler: Debug + Send + Sync + 'static {
    async fn get(&self, store: &dyn Store, key: &Key) -> Result<Option<Entry>, StoreError> {
        store.get(key).await
    }
    async fn commit(&self, store: &dyn Store, txn: Txn) -> Result<Commit, StoreError> {
        store.commit(txn).await
    }
}

#[derive(Debug)]
struct Meddled<M> {
    inner: Arc<dyn Store>,
    meddler: Arc<M>,
}

#[async_trait]
impl<M: Meddler> StoreLayer for Meddled<M> {
    fn inner(&self) -> &dyn Store {
        &*self.inner
    }

    async fn get(&self, key: &Key) -> Result<Option<Entry>, StoreError> {
        self.meddler.get(&*self.inner, key).await
    }
    async fn commit(&self, txn: Txn) -> Result<Commit, StoreError> {
        self.meddler.commit(&*self.inner, txn).await
    }
}

/// A controller over a store that someone meddles with.
pub(crate) async fn house<M: Meddler>(timing: Timing, meddler: &Arc<M>) -> House {
    let meddler = Arc::clone(meddler);
    House::over(timing, |inner| Arc::new(Meddled { inner, meddler })).await
}

/// Loses the answer to the write of a catalogue's first revision, which lands only after it was looked for.
#[derive(Debug)]
struct Late {
    head: Key,
    revision: Key,
    lost: AtomicBool,
    held: Mutex<Option<Txn>>,
}

#[async_trait]
impl Meddler for Late {
    async fn get(&self, store: &dyn Store, key: &Key) -> Result<Option<Entry>, StoreError> {
        let answer = store.get(key).await;
        let held = if *key == self.revision { self.held.lock().unwrap().take() } else { None };
        if let Some(txn) = held {
            assert!(matches!(store.commit(txn).await, Ok(Commit::Done(_))));
        }
        answer
    }
    async fn commit(&self, store: &dyn Store, txn: Txn) -> Result<Commit, StoreError> {
        if txn.changes.iter().any(|change| *change.key() == self.head) && !self.lost.swap(true, Ordering::SeqCst) {
            *self.held.lock().unwrap() = Some(txn);
            return Err(StoreError::Unknown("the answer was lost".into()));
        }
        store.commit(txn).await
    }
}

#[tokio::test]
async fn an_apply_that_lands_after_it_was_looked_for_is_known_as_its_own() {
    let catalog = CatalogName::new("c").unwrap();
    let (head_key, revision) = (key::catalog_head(&catalog), key::catalog_revision(&catalog, 1));
    let late = Arc::new(Late { head: head_key, revision, lost: AtomicBool::new(false), held: Mutex::default() });
    let house = house(timing(), &late).await;
    let admin = house.admin().await;
    let made = apply(&admin, header("c", 0, &[JOB]), &[JOB]).await.unwrap();
    assert!(late.lost.load(Ordering::SeqCst) && late.held.lock().unwrap().is_none(), "nothing was held up");
    assert_eq!((made.number, head(&admin, "c").await), (1, 1));
    // Another's is still another's.
    let behind = apply(&admin, header("c", 0, &[JOB]), &[JOB]).await.unwrap_err();
    assert_eq!((behind.code, behind.reason.as_str()), (Code::Aborted, reason::HEAD_MOVED));
}

/// Freezes a catalogue, through another controller as it were, just before a transaction that asks for its head is carried out.
#[derive(Debug)]
struct Freezer {
    head: Key,
    armed: AtomicBool,
}

#[async_trait]
impl Meddler for Freezer {
    async fn commit(&self, store: &dyn Store, txn: Txn) -> Result<Commit, StoreError> {
        let asks = txn.conditions.iter().any(|condition| condition.key == self.head);
        if asks && self.armed.swap(false, Ordering::SeqCst) {
            let entry = store.get(&self.head).await?.unwrap();
            let mut head: HeadRecord = codec::decode(&entry)?;
            head.frozen = Some(FrozenRecord { by: "ann".into(), at: Timestamp::now() });
            let frozen = store.commit(Txn::new().unchanged(&entry).put(self.head.clone(), codec::encode(&head))).await;
            assert!(matches!(frozen, Ok(Commit::Done(_))));
        }
        store.commit(txn).await
    }
}

#[tokio::test]
async fn a_freeze_in_between_is_told_to_an_apply_and_does_not_keep_jobs_from_running() {
    let freezer = Freezer { head: key::catalog_head(&CatalogName::new("c").unwrap()), armed: AtomicBool::new(false) };
    let freezer = Arc::new(freezer);
    let house = house(timing(), &freezer).await;
    let admin = house.admin().await;
    house.apply(&[JOB]).await;
    let other = JOB.replace("true", "false");
    let arm = || freezer.armed.store(true, Ordering::SeqCst);
    arm();
    let fault = apply(&admin, header("c", 1, &[&other]), &[&other]).await.unwrap_err();
    assert_eq!((fault.reason.as_str(), fault.fact("by")), (reason::FROZEN, Some("ann")), "{fault:?}");
    assert_eq!(head(&admin, "c").await, 1);
    arm();
    execute(&admin, "j", &[]).await.unwrap();
    assert!(!freezer.armed.load(Ordering::SeqCst), "nothing came in between");
    let thaw = v1::SetFrozenRequest { catalog: "c".into(), frozen: false };
    arm();
    assert_eq!(admin.catalog().set_frozen(thaw.clone()).await.unwrap().into_inner().frozen, None);
    // What both freeze and thaw between leaves is what was planned against.
    apply(&admin, header("c", 1, &[&other]), &[&other]).await.unwrap();
    // Frozen with a rollback, by whoever was first.
    arm();
    let back = v1::ApplyHeader { rollback_to: 1, freeze: true, ..header("c", 2, &[JOB]) };
    apply(&admin, back, &[JOB]).await.unwrap();
    let now = admin.catalog().get_head(v1::GetHeadRequest { catalog: "c".into() }).await.unwrap().into_inner();
    assert_eq!((now.revision.unwrap().number, now.frozen.unwrap().by.as_str()), (3, "ann"));
}

/// Loses every write to a log.
#[derive(Debug, Default)]
struct Forgetful {
    forgets: AtomicBool,
    tried: AtomicUsize,
}

#[async_trait]
impl Meddler for Forgetful {
    async fn commit(&self, store: &dyn Store, txn: Txn) -> Result<Commit, StoreError> {
        if self.forgets.load(Ordering::SeqCst) && txn.changes.iter().any(|change| change.key().as_str().starts_with("log/")) {
            self.tried.fetch_add(1, Ordering::SeqCst);
            return Err(StoreError::Unknown("lost".into()));
        }
        store.commit(txn).await
    }
}

#[tokio::test]
async fn an_append_that_is_lost_again_and_again_is_told_and_can_be_repeated() {
    let forgetful = Arc::new(Forgetful::default());
    let house = house(timing(), &forgetful).await;
    house.apply(&[JOB]).await;
    let fake = Fake::register(&house, "e").await;
    let mut session = fake.session(hello(1)).await.unwrap();
    house.execute("j").await;
    let claim = session.assignment().await;
    fake.begins(&claim).await;
    forgetful.forgets.store(true, Ordering::SeqCst);
    let fault = fake.append(&claim, 0, b"some log\n").await.unwrap_err();
    assert_eq!((fault.code, fault.reason.as_str()), (Code::Unavailable, reason::STORE_UNAVAILABLE));
    let tried = forgetful.tried.load(Ordering::SeqCst);
    assert!((2..10).contains(&tried), "{tried} tries");
    forgetful.forgets.store(false, Ordering::SeqCst);
    assert_eq!(fake.append(&claim, 0, b"some log\n").await, Ok(9));
    assert_eq!(fake.finishes(&claim, S::Succeeded, b"some log\n").await, Ok(v1::Verdict::Accepted));
}

/// Counts how often one key is asked for.
#[derive(Debug, Default)]
struct Counting {
    key: Mutex<Option<Key>>,
    asked: AtomicUsize,
}

#[async_trait]
impl Meddler for Counting {
    async fn get(&self, store: &dyn Store, key: &Key) -> Result<Option<Entry>, StoreError> {
        if self.key.lock().unwrap().as_ref() == Some(key) {
            self.asked.fetch_add(1, Ordering::SeqCst);
        }
        store.get(key).await
    }
}

/// What cannot be read today cannot be read a quarter of a second later; it waits on, and can be called off.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_cannot_be_read_is_not_tried_for_ever_and_holds_nobody_up() {
    let counting = Arc::new(Counting::default());
    let house = house(Timing { ping_interval: Duration::from_millis(50), ..timing() }, &counting).await;
    house.apply(&[JOB]).await;
    let admin = house.admin().await;
    let damaged = execute(&admin, "j", &[("a", &"x".repeat(20_000))]).await.unwrap();
    let record = house.store().get(&key::execution(damaged.parse().unwrap())).await.unwrap().unwrap();
    let digest: Digest = codec::decode::<Execution>(&record).unwrap().large_arguments.unwrap();
    house.store().commit(Txn::new().delete(key::blob(&digest))).await.unwrap();
    *counting.key.lock().unwrap() = Some(key::blob(&digest));
    let sound = house.execute("j").await;

    let fake = Fake::register(&house, "e").await;
    let mut session = fake.session(hello(1)).await.unwrap();
    let claim = session.assignment().await;
    assert_eq!(claim.id, sound);
    fake.completes(&claim, b"").await;
    // A second: it was tried four times in one.
    session.hears_nothing(20).await;
    let tries = counting.asked.load(Ordering::SeqCst);
    assert_eq!(tries, 1, "it was tried {tries} times");
    assert_eq!(get_state(&house, &damaged).await, S::Queued);
    counting.key.lock().unwrap().take();
    let request = v1::CancelExecutionRequest { id: damaged.clone() };
    let _ = admin.executions().cancel_execution(request).await; // its answer would show its arguments
    assert_eq!(get_state(&house, &damaged).await, S::Cancelled);
}

/// The state as the store has it: the controller cannot show an execution whose arguments are gone.
async fn get_state(house: &House, id: &str) -> S {
    let record = house.store().get(&key::execution(id.parse().unwrap())).await.unwrap().unwrap();
    match codec::decode::<Execution>(&record).unwrap().state {
        octavius_core::State::Queued => S::Queued,
        octavius_core::State::Cancelled => S::Cancelled,
        state => panic!("{state}"),
    }
}

/// One that ends the same may have been removed since it was listed.
#[tokio::test]
async fn an_id_is_found_by_its_end_beside_one_that_is_gone() {
    let house = House::open().await;
    house.apply(&[JOB]).await;
    let admin = house.admin().await;
    let id = house.execute("j").await;
    let mut gone = id.clone().into_bytes();
    gone[20] = if gone[20] == b'0' { b'1' } else { b'0' };
    let gone: ExecutionId = std::str::from_utf8(&gone).unwrap().parse().unwrap();
    house.store().commit(Txn::new().put(key::by_user("admin", gone), "")).await.unwrap();
    assert_eq!(get(&admin, &id[id.len() - 5..]).await.id, id);
    // And where none is left, there is none.
    cancel(&admin, &id).await;
    house.store().commit(Txn::new().delete(key::execution(id.parse().unwrap()))).await.unwrap();
    let request = v1::GetExecutionRequest { id: id[id.len() - 5..].to_owned() };
    assert_eq!(told(&admin.executions().get_execution(request).await.unwrap_err()).reason, reason::EXECUTION_NOT_FOUND);
}
