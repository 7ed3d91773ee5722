//! The upkeep of the store: what is old goes without a trace, what is named stays, and a store that fills up refuses what can wait.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

use async_trait::async_trait;
use bytes::Bytes;
use octavius_controller::Retention;
use octavius_core::{ExecutionId, Timing};
use octavius_proto::v1::read_log_response::Part;
use octavius_proto::v1::report_execution_request::Step;
use octavius_proto::v1::{self, ExecutionState as S, Verdict};
use octavius_proto::{Fault, reason};
use octavius_store::key::Removable;
use octavius_store::record::{DutyRecord, OnceRecord};
use octavius_store::{Change, Commit, Key, Range, Revision, Store, StoreError, StoreLayer, Txn, Usage, blob, codec, key};
use tonic::Code;

use crate::archiving::{objects, until_settled};
use crate::fake::{Fake, Session, finished, hello};
use crate::harness::{House, apply, eventually, execute, get, header, reaches, request, send, soon, timing, told};

const JOB: &str = r#"{"name":"j","command":["true"]}"#;

/// An hour long past.
const LONG_AGO: u64 = 5;

pub(crate) fn often() -> Timing {
    Timing { keep_interval: Duration::from_millis(50), reconcile_interval: Duration::from_millis(50), ..timing() }
}

/// The store's keys, but for those that come and go by themselves, and for the audit trail, which has its own time.
async fn keys(store: &dyn Store) -> BTreeSet<String> {
    let mut range = Some(Range::of(Key::new(""), 1000));
    let mut keys = BTreeSet::new();
    while let Some(asked) = range {
        let page = store.range(&asked).await.unwrap();
        range = asked.next(&page);
        keys.extend(page.entries.iter().map(|entry| entry.key.as_str().to_owned()));
    }
    keys.retain(|key| {
        key != "duty" && !["presence/", "peer/", "audit/", "token-used/"].iter().any(|prefix| key.starts_with(prefix))
    });
    keys
}

/// Makes everything that is over appear to have been over for long. What is still to be written of it is waited for: it would stand under the
/// hour in which it really ended.
pub(crate) async fn age(house: &House) {
    until_settled(house).await;
    let store = &**house.store();
    // First what goes with an execution: the keeper takes its turns meanwhile.
    for entry in store.range(&Range::of(key::kept_logs(), 1000)).await.unwrap().entries {
        let (_, id) = key::kept_log_of(&entry.key).unwrap();
        let txn = Txn::new().unchanged(&entry).delete(entry.key.clone());
        store.commit(txn.put(key::kept_log(LONG_AGO, id), entry.value.clone())).await.unwrap();
    }
    for entry in store.range(&Range::of(key::removables(), 1000)).await.unwrap().entries {
        let moved = match key::removable_of(&entry.key).unwrap().1 {
            Removable::Execution(id) => Txn::new().put(key::removable_execution(LONG_AGO, id), ""),
            Removable::Once(once) => {
                let known = store.get(&once).await.unwrap().unwrap();
                let record: OnceRecord = codec::decode(&known).unwrap();
                let at = octavius_core::Timestamp::from_second(i64::try_from(LONG_AGO).unwrap() * 3600).unwrap();
                Txn::new().put(key::removable_once(LONG_AGO, &once), "").put(once, codec::encode(&OnceRecord { at, ..record }))
            }
        };
        store.commit(moved.unchanged(&entry).delete(entry.key.clone())).await.unwrap();
    }
}

async fn until_keys_are(store: &dyn Store, expected: &BTreeSet<String>) {
    eventually("only what is kept to be left", async || {
        let now = keys(store).await;
        if now == *expected {
            return Ok(());
        }
        let (more, less): (Vec<_>, Vec<_>) = (now.difference(expected).collect(), expected.difference(&now).collect());
        Err(format!("too many: {more:?}, missing: {less:?}"))
    })
    .await;
}

/// Runs one execution that prints this.
async fn run(house: &House, fake: &Fake, session: &mut Session, log: &[u8]) -> String {
    let id = house.execute("j").await;
    let claim = session.assignment().await;
    fake.completes(&claim, log).await;
    id
}

async fn read_log(house: &House, id: &str) -> Result<Vec<Part>, Fault> {
    let request = v1::ReadLogRequest { id: id.to_owned(), ..Default::default() };
    let mut stream = house.admin().await.logs().read_log(request).await.map_err(|status| told(&status))?.into_inner();
    let mut parts = Vec::new();
    while let Some(response) = soon("a piece of a log", stream.message()).await.map_err(|status| told(&status))? {
        parts.push(response.part.unwrap());
    }
    Ok(parts)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn nothing_is_left_of_an_execution_that_ended_long_ago() {
    let house = House::with(often()).await;
    house.apply(&[JOB]).await;
    let fake = Fake::register(&house, "e").await;
    let mut session = fake.session(hello(1)).await.unwrap();
    let before = keys(&**house.store()).await;

    let long = vec![b'x'; 700_000];
    let ids = [run(&house, &fake, &mut session, &long).await, run(&house, &fake, &mut session, b"").await];
    // One that was tried twice and then called off, asked for with a key of its own.
    let admin = house.admin().await;
    let asked = v1::ExecuteRequest { idempotency_key: "k".into(), ..request("j", &[]) };
    let twice = send(&admin, asked).await.unwrap();
    let claim = session.assignment().await;
    fake.begins(&claim).await;
    fake.append(&claim, 0, b"first attempt\n").await.unwrap();
    admin.executions().cancel_execution(v1::CancelExecutionRequest { id: twice.clone() }).await.unwrap();
    assert_eq!(fake.finishes(&claim, S::Cancelled, b"first attempt\n").await, Ok(Verdict::Accepted));
    until_settled(&house).await;
    // What is young stays, through turns that remove nothing.
    let kept = keys(&**house.store()).await;
    assert!(kept.len() > before.len() + 15, "{kept:?}");
    turns(&house, 3).await;
    assert_eq!(keys(&**house.store()).await, kept);

    age(&house).await;
    until_keys_are(&**house.store(), &before).await;
    assert_eq!(objects(&house.dir().join("archive")), Vec::<std::path::PathBuf>::new());
    for id in ids.iter().chain([&twice]) {
        let asked = v1::GetExecutionRequest { id: id.clone() };
        let status = admin.executions().get_execution(asked).await.unwrap_err();
        assert_eq!((status.code(), told(&status).reason.as_str()), (Code::NotFound, reason::EXECUTION_NOT_FOUND));
        assert_eq!(read_log(&house, id).await.unwrap_err().reason, reason::EXECUTION_NOT_FOUND);
    }
    // The key is free again: it leads to a new execution.
    let asked = v1::ExecuteRequest { idempotency_key: "k".into(), ..request("j", &[]) };
    assert_ne!(send(&admin, asked).await.unwrap(), twice);
}

async fn duty(house: &House) -> DutyRecord {
    eventually("someone to look after the store", async || {
        let entry = house.store().get(&key::duty()).await.unwrap().ok_or("nobody")?;
        Ok(codec::decode(&entry).unwrap())
    })
    .await
}

/// Waits until so many more turns were begun, the last but one of which is then over.
pub(crate) async fn turns(house: &House, count: u64) -> DutyRecord {
    let first = duty(house).await.turn;
    eventually("turns to be taken", async || {
        let now = duty(house).await;
        if now.turn > first + count { Ok(now) } else { Err(format!("{now:?}")) }
    })
    .await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn of_too_many_those_that_ended_first_go() {
    // Only their number counts here.
    let age = Duration::from_secs(300 * 365 * 24 * 3600);
    let house = House::keeping(often(), Retention { executions: 3, age, ..Retention::default() }).await;
    house.apply(&[JOB]).await;
    let fake = Fake::register(&house, "e").await;
    let mut session = fake.session(hello(1)).await.unwrap();
    let mut ids = Vec::new();
    for n in 0..8 {
        ids.push(run(&house, &fake, &mut session, format!("run {n}\n").as_bytes()).await);
    }
    let waits = house.execute("j").await;
    let claim = session.assignment().await;
    until_settled(&house).await;
    // A call to execute that is repeated must find what it made, or the job would run again.
    let kept = keys(&**house.store()).await;
    turns(&house, 3).await;
    assert_eq!(keys(&**house.store()).await, kept, "what has just ended stays, however many they are");
    self::age(&house).await;
    eventually("the newest three to be left", async || {
        let ids: Vec<_> = keys(&**house.store()).await.into_iter().filter(|key| key.starts_with("gc/")).collect();
        if ids.len() == 3 { Ok(()) } else { Err(format!("{ids:?}")) }
    })
    .await;
    let listed = v1::ListExecutionsRequest { all: true, limit: 1000, ..Default::default() };
    let listed = house.admin().await.executions().list_executions(listed).await.unwrap().into_inner().executions;
    let listed: Vec<_> = listed.into_iter().map(|execution| execution.id).collect();
    assert_eq!(listed.iter().collect::<Vec<_>>(), [&waits, &ids[7], &ids[6], &ids[5]], "and what goes on is not counted");
    let keys = keys(&**house.store()).await;
    assert!(ids[..5].iter().all(|id| !keys.iter().any(|key| key.contains(id.as_str()))), "{keys:?}");
    fake.completes(&claim, b"the last\n").await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_removal_that_was_broken_off_is_finished_by_the_next_turn() {
    let house = House::with(often()).await;
    house.apply(&[JOB]).await;
    let fake = Fake::register(&house, "e").await;
    let mut session = fake.session(hello(1)).await.unwrap();
    let before = keys(&**house.store()).await;
    let id: ExecutionId = run(&house, &fake, &mut session, &vec![b'x'; 300_000]).await.parse().unwrap();
    until_settled(&house).await;
    // As a crash after the first of its transactions leaves it.
    let job = "j".parse().unwrap();
    let broken_off = Txn::new().delete(key::execution(id)).delete(key::by_job(&job, id)).delete(key::by_user("admin", id));
    house.store().commit(broken_off).await.unwrap();
    age(&house).await;
    until_keys_are(&**house.store(), &before).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn one_controller_looks_after_the_store_and_another_when_it_stops() {
    // Long, for a machine that is busy with other tests: whoever is late by a whole turn loses it.
    let mut house = House::with(Timing { keep_interval: Duration::from_secs(1), ..often() }).await;
    let holder = duty(&house).await.controller;
    let neighbour = house.neighbour().await;
    assert_eq!(turns(&house, 3).await.controller, holder, "whoever has it goes on with it");
    let last = duty(&house).await;
    house.stop().await;
    let next = eventually("the other to take over", async || {
        let now = duty(&house).await;
        if now.controller == holder { Err(format!("{now:?}")) } else { Ok(now) }
    })
    .await;
    assert!(next.turn > last.turn && next.revision >= last.revision, "{last:?} {next:?}");
    neighbour.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_sweep_takes_what_nothing_names_and_nothing_else() {
    let timing = Timing { keep_interval: Duration::from_millis(4), ..often() };
    let house = House::with(timing).await;
    let store = Arc::clone(house.store());
    house.apply(&[JOB, r#"{"name":"old","command":["a"]}"#]).await;
    let changed = house.apply(&[r#"{"name":"old","command":["b"]}"#]).await;
    let admin = house.admin().await;
    let large = "x".repeat(20_000);
    house.apply(&[r#"{"name":"k","command":["true"],"env_vars":{"args":[{"name":"a"}]}}"#]).await;
    let id = execute(&admin, "k", &[("a", &large)]).await.unwrap();
    let named = keys(&*store).await;

    let garbage = [Bytes::from_static(b"nobody's"), Bytes::from(vec![7; 5 * 1024 * 1024])].map(|bytes| {
        let (digest, _) = blob::put_changes(&bytes);
        (digest, bytes)
    });
    blob::put_all(&*store, garbage.clone()).await.unwrap();
    // A definition that an apply wrote which then ended, and that another names after all: it stays.
    let later = r#"{"name":"later","command":["true"]}"#;
    let definition = Bytes::from(crate::harness::job(later).to_canonical_json());
    blob::put_all(&*store, [(crate::harness::digest(later), definition.clone())]).await.unwrap();
    turns(&house, 100).await;
    house.apply(&[later]).await;
    eventually("what nothing names to go", async || {
        let left: Vec<_> = keys(&*store).await.into_iter().filter(|key| key.contains(&garbage[0].0.to_string())).collect();
        let chunks = keys(&*store).await.into_iter().filter(|key| key.contains(&garbage[1].0.to_string())).count();
        if left.is_empty() && chunks == 0 { Ok(()) } else { Err(format!("{left:?} and {chunks} chunks")) }
    })
    .await;
    let after = keys(&*store).await;
    assert_eq!(named.difference(&after).collect::<Vec<_>>(), Vec::<&String>::new(), "something that is named went");
    assert_eq!(blob::get(&*store, &crate::harness::digest(later)).await.unwrap(), Some(definition));
    assert_eq!(get(&admin, &id).await.arguments["a"], large);
    assert_eq!(changed.number, 2);
}

/// A store whose fill a test sets, and that takes no puts while it is full. Like etcd, it then counts what is freed only when it is rewritten.
#[derive(Debug)]
struct Gauge {
    inner: Arc<dyn Store>,
    percent: Arc<AtomicU64>,
    /// What it counts.
    counted: AtomicU64,
    full: Arc<AtomicBool>,
    compactions: Arc<AtomicU64>,
    reclaims: Arc<AtomicU64>,
}

#[async_trait]
impl StoreLayer for Gauge {
    fn inner(&self) -> &dyn Store {
        &*self.inner
    }

    async fn commit(&self, txn: Txn) -> Result<Commit, StoreError> {
        let puts = txn.changes.iter().any(|change| matches!(change, Change::Put(..)));
        if puts && self.full.load(Ordering::SeqCst) {
            return Err(StoreError::Full("made up".into()));
        }
        self.inner.commit(txn).await
    }
    async fn usage(&self) -> Result<Usage, StoreError> {
        let full = self.full.load(Ordering::SeqCst);
        if !full {
            self.counted.store(self.percent.load(Ordering::SeqCst), Ordering::SeqCst);
        }
        let used_bytes = self.counted.load(Ordering::SeqCst);
        Ok(Usage { allocated_bytes: 95, used_bytes, quota_bytes: Some(100), full })
    }
    async fn compact(&self, until: Revision) -> Result<(), StoreError> {
        self.compactions.fetch_add(1, Ordering::SeqCst);
        self.inner.compact(until).await
    }
    async fn reclaim(&self) -> Result<(), StoreError> {
        self.reclaims.fetch_add(1, Ordering::SeqCst);
        let percent = self.percent.load(Ordering::SeqCst);
        self.counted.store(percent, Ordering::SeqCst);
        self.full.fetch_and(percent >= 90, Ordering::SeqCst);
        Ok(())
    }
}

pub(crate) struct Gauged {
    pub(crate) house: House,
    pub(crate) percent: Arc<AtomicU64>,
    pub(crate) full: Arc<AtomicBool>,
    compactions: Arc<AtomicU64>,
    reclaims: Arc<AtomicU64>,
}

pub(crate) async fn gauged() -> Gauged {
    let (percent, full) = (Arc::new(AtomicU64::new(75)), Arc::new(AtomicBool::new(false)));
    let (compactions, reclaims) = (Arc::<AtomicU64>::default(), Arc::<AtomicU64>::default());
    percent.store(10, Ordering::SeqCst);
    let gauge = |inner| Gauge {
        inner,
        percent: Arc::clone(&percent),
        counted: AtomicU64::new(10),
        full: Arc::clone(&full),
        compactions: Arc::clone(&compactions),
        reclaims: Arc::clone(&reclaims),
    };
    let house = House::over(often(), |inner| Arc::new(gauge(inner))).await;
    Gauged { house, percent, full, compactions, reclaims }
}

/// Asks until the answer is for want of room.
async fn until_refused<T: std::fmt::Debug>(what: &str, mut ask: impl AsyncFnMut() -> Result<T, Fault>) -> Fault {
    eventually(what, async || match ask().await {
        Err(fault) if fault.reason == reason::STORE_FULL => Ok(fault),
        other => Err(format!("{other:?}")),
    })
    .await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn as_the_store_fills_up_logs_are_refused_first_then_work_and_outcomes_never() {
    let Gauged { house, percent, .. } = gauged().await;
    house.apply(&[JOB]).await;
    let fake = Fake::register(&house, "e").await;
    let mut session = fake.session(hello(2)).await.unwrap();
    let admin = house.admin().await;
    let (one, two) = (house.execute("j").await, house.execute("j").await);
    let (first, second) = (session.assignment().await, session.assignment().await);
    fake.begins(&first).await;
    fake.begins(&second).await;
    assert_eq!(fake.append(&first, 0, b"before\n").await, Ok(7));

    percent.store(72, Ordering::SeqCst);
    let mut offset = 0;
    let fault = until_refused("log bytes to be refused", async || {
        offset = fake.append(&second, offset, b"x").await?;
        Ok(offset)
    })
    .await;
    assert_eq!((fault.code, fault.fact("percent")), (Code::ResourceExhausted, Some("72")));
    assert_eq!(fake.append(&first, 0, b"before\n").await, Ok(7), "what is there already is no new byte");
    let three = house.execute("j").await;

    percent.store(90, Ordering::SeqCst);
    let fault = until_refused("new work to be refused", async || execute(&admin, "j", &[]).await).await;
    assert!(fault.message.contains("90%") && fault.message.contains("85%"), "{fault}");
    let more = [r#"{"name":"more","command":["true"]}"#];
    let refused = apply(&admin, header("c", 1, &more), &more).await.unwrap_err();
    assert_eq!(refused.reason, reason::STORE_FULL);
    // A call repeated is answered as it was: it asks for nothing new.
    let again = v1::ExecuteRequest { id: three.clone(), ..request("j", &[]) };
    assert_eq!(send(&admin, again).await, Ok(three.clone()));
    admin.executions().cancel_execution(v1::CancelExecutionRequest { id: three.clone() }).await.unwrap();
    reaches(&admin, &three, S::Cancelled).await;

    // The log of one is cut, and its readers are told; the other's is whole.
    let Step::Finished(whole) = finished(S::Succeeded, b"before\nand after\n") else { panic!("not an end") };
    assert_eq!(fake.report(&first, Step::Finished(whole.clone())).await.unwrap_err().reason, reason::LOG_GAP);
    let cut = v1::Finished { log_cut: true, ..whole };
    for _ in 0..2 {
        assert_eq!(fake.report(&first, Step::Finished(cut.clone())).await, Ok(Verdict::Accepted), "said twice");
    }
    reaches(&admin, &one, S::Succeeded).await;
    let parts = read_log(&house, &one).await.unwrap();
    let [Part::Chunk(chunk), Part::Gap(gap), Part::End(end)] = parts.as_slice() else { panic!("{parts:?}") };
    assert_eq!((&chunk.data[..], gap.offset, gap.size), (&b"before\n"[..], 7, 10));
    assert!(gap.reason.contains("no room"), "{gap:?}");
    assert_eq!((end.sealed, end.size, end.damaged), (true, 17, false));
    let log = vec![b'x'; usize::try_from(offset).unwrap()];
    let Step::Finished(whole) = finished(S::Succeeded, &log) else { panic!("not an end") };
    let whole = Step::Finished(v1::Finished { log_cut: true, ..whole });
    assert_eq!(fake.report(&second, whole).await, Ok(Verdict::Accepted));
    let parts = read_log(&house, &two).await.unwrap();
    assert!(matches!(parts.last(), Some(Part::End(end)) if end.sealed && !end.damaged), "{parts:?}");
    assert!(!parts.iter().any(|part| matches!(part, Part::Gap(_))), "{parts:?}");

    percent.store(10, Ordering::SeqCst);
    eventually("work to be taken again", async || execute(&admin, "j", &[]).await.map_err(|fault| fault.to_string())).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_store_that_has_run_full_is_emptied_and_takes_writes_again() {
    let Gauged { house, percent, full, compactions, reclaims } = gauged().await;
    house.apply(&[JOB]).await;
    let fake = Fake::register(&house, "e").await;
    let mut session = fake.session(hello(1)).await.unwrap();
    house.store().commit(Txn::new().put(Key::new("spare"), "")).await.unwrap();
    let before = keys(&**house.store()).await;
    run(&house, &fake, &mut session, b"some log\n").await;
    age(&house).await;
    percent.store(95, Ordering::SeqCst);
    full.store(true, Ordering::SeqCst);
    until_keys_are(&**house.store(), &before).await;
    let admin = house.admin().await;
    until_refused("new work to be refused", async || execute(&admin, "j", &[]).await).await;
    let reaches = async |count: &AtomicU64, least: u64| {
        eventually("the upkeep to go on", async || match count.load(Ordering::SeqCst) {
            now if now >= least => Ok(now),
            now => Err(format!("{now} of {least}")),
        })
        .await
    };
    // What was removed is given back, and is too little. Then nothing more is there to be given back, turn after turn.
    let given_back = reaches(&reclaims, 1).await;
    let turns = compactions.load(Ordering::SeqCst);
    reaches(&compactions, turns + 10).await;
    assert!(full.load(Ordering::SeqCst), "it would be full again at once");
    assert!(reclaims.load(Ordering::SeqCst) <= given_back + 2, "the store stands still for nothing");
    // Someone removes more, which nothing counts before it is given back.
    percent.store(40, Ordering::SeqCst);
    house.store().commit(Txn::new().delete(Key::new("spare"))).await.unwrap();
    eventually("work to be taken again", async || execute(&admin, "j", &[]).await.map_err(|fault| fault.to_string())).await;
}
