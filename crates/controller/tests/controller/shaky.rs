//! A store that fails every so often, loses answers and breaks watches: what was accepted still ends, once.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use async_trait::async_trait;
use bytes::Bytes;
use futures::future::join_all;
use octavius_core::Timing;
use octavius_proto::v1::report_execution_request::Step;
use octavius_proto::v1::session_response::Say;
use octavius_proto::v1::{self, ExecutionState as S, Verdict};
use octavius_proto::{Fault, reason};
use octavius_store::{Commit, Entry, Key, Page, Presence, Range, Revision, Store, StoreError, Txn, Watch, WatchBatch};
use tonic::Code;

use crate::fake::{Fake, finished, hello};
use crate::harness::{Dice, House, PATIENCE, get, reaches, request, send, timing};

#[derive(Debug)]
struct Shaky {
    inner: Arc<dyn Store>,
    dice: Arc<Mutex<Dice>>,
    shakes: Arc<AtomicBool>,
}

impl Shaky {
    /// Whether something of this likelihood, in percent, happens now.
    fn happens(&self, percent: usize) -> bool {
        self.shakes.load(Ordering::Relaxed) && self.dice.lock().unwrap().below(100) < percent
    }

    fn fails(&self) -> Result<(), StoreError> {
        if self.happens(3) { Err(StoreError::Unavailable("shaken".into())) } else { Ok(()) }
    }
}

#[async_trait]
impl Store for Shaky {
    async fn get(&self, key: &Key) -> Result<Option<Entry>, StoreError> {
        self.fails()?;
        self.inner.get(key).await
    }

    async fn range(&self, range: &Range) -> Result<Page, StoreError> {
        self.fails()?;
        self.inner.range(range).await
    }

    async fn commit(&self, txn: Txn) -> Result<Commit, StoreError> {
        self.fails()?;
        if self.happens(3) {
            return Err(StoreError::Unknown("lost before it was made".into()));
        }
        let answer = self.inner.commit(txn).await;
        if self.happens(6) { Err(StoreError::Unknown("lost after it was made".into())) } else { answer }
    }

    async fn watch(&self, prefix: &Key, after: Revision) -> Result<Box<dyn Watch>, StoreError> {
        self.fails()?;
        let inner = self.inner.watch(prefix, after).await?;
        Ok(Box::new(ShakyWatch { inner, dice: Arc::clone(&self.dice), shakes: Arc::clone(&self.shakes) }))
    }

    async fn announce(&self, key: Key, value: Bytes, ttl: Duration) -> Result<Box<dyn Presence>, StoreError> {
        self.fails()?;
        self.inner.announce(key, value, ttl).await
    }
}

struct ShakyWatch {
    inner: Box<dyn Watch>,
    dice: Arc<Mutex<Dice>>,
    shakes: Arc<AtomicBool>,
}

#[async_trait]
impl Watch for ShakyWatch {
    async fn next(&mut self) -> Result<WatchBatch, StoreError> {
        let batch = self.inner.next().await?;
        let breaks = self.shakes.load(Ordering::Relaxed) && self.dice.lock().unwrap().below(100) < 5;
        if breaks { Err(StoreError::Compacted { asked: batch.revision, oldest: batch.revision + 1 }) } else { Ok(batch) }
    }
}

/// Asks until there is an answer that is not about the store.
async fn insist<T, F: Future<Output = Result<T, Fault>>>(what: &str, mut ask: impl FnMut() -> F) -> T {
    let began = Instant::now();
    loop {
        match ask().await {
            Ok(answer) => return answer,
            Err(fault) if fault.reason == reason::STORE_UNAVAILABLE && began.elapsed() < PATIENCE => {
                assert_eq!(fault.code, Code::Unavailable);
                tokio::time::sleep(Duration::from_millis(5)).await;
            }
            Err(fault) => panic!("{what}: {fault:?}"),
        }
    }
}

/// Runs an assignment to its end, insisting on each step.
async fn run(fake: Fake, claim: v1::Assignment) {
    if insist("starting", || fake.report(&claim, Step::Starting(v1::Starting {}))).await == Verdict::Stop {
        return; // the claim was taken back before it was started
    }
    let log = claim.id.as_bytes();
    insist("running", || fake.report(&claim, Step::Running(v1::Running::default()))).await;
    let size = insist("appending", || fake.append(&claim, 0, log)).await;
    assert_eq!(size, log.len() as u64);
    let verdict = insist("finishing", || fake.report(&claim, finished(S::Succeeded, log))).await;
    assert_eq!(verdict, Verdict::Accepted);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn whatever_the_store_does_each_execution_starts_once_and_ends() {
    let shakes = Arc::new(AtomicBool::new(false));
    let dice = Arc::new(Mutex::new(Dice::thrown()));
    let timing = Timing { claim_timeout: Duration::from_millis(500), ..timing() };
    let house = House::over(timing, |inner| Arc::new(Shaky { inner, dice, shakes: Arc::clone(&shakes) })).await;
    house.apply(&[r#"{"name":"j","command":["true"]}"#]).await;
    let admin = house.admin().await;
    let fake = Fake::register(&house, "e").await;
    let calm = house.connect(Some(&house.token)).await;

    let mut session = fake.session(hello(5)).await.unwrap();
    shakes.store(true, Ordering::Relaxed);
    let submit = |n: usize| {
        let admin = admin.clone();
        async move {
            let mut asked = request("j", &[]);
            if n.is_multiple_of(2) {
                asked.idempotency_key = format!("key {n}");
            }
            insist("an execution", || send(&admin, asked.clone())).await
        }
    };
    const COUNT: usize = 80;
    let working = async {
        let mut attempts = Vec::new();
        let mut left = COUNT;
        while left > 0 {
            // Claims that were taken back come again: what counts is what is finished.
            attempts.push(tokio::spawn(run(fake.clone(), session.assignment().await)));
            left = left.saturating_sub(1);
        }
        attempts
    };
    let (ids, attempts) = tokio::join!(join_all((0..COUNT).map(submit)), working);
    let drain = async {
        loop {
            match session.next().await {
                Ok(Some(Say::Assignment(claim))) => run(fake.clone(), claim).await,
                other => panic!("not an assignment: {other:?}"),
            }
        }
    };
    let all_end = async {
        for attempt in attempts {
            attempt.await.unwrap();
        }
        shakes.store(false, Ordering::Relaxed);
        for id in &ids {
            let execution = reaches(&calm, id, S::Succeeded).await;
            let starts = execution.attempts.iter().filter(|attempt| attempt.starting_at.is_some()).count();
            assert_eq!(starts, 1, "{execution:?}");
        }
    };
    tokio::select! {
        () = all_end => {}
        () = drain => {}
    }
    let mut unique = ids.clone();
    unique.sort();
    unique.dedup();
    assert_eq!(unique.len(), COUNT);
    let listed = v1::ListExecutionsRequest { all: true, limit: 1000, ..Default::default() };
    let listed = calm.executions().list_executions(listed).await.unwrap().into_inner().executions;
    assert_eq!(listed.len(), COUNT, "a call repeated made another execution");

    // No slot was lost on the way, and none came from nowhere.
    let mut last = Vec::new();
    for _ in 0..6 {
        last.push(insist("an execution", || send(&calm, request("j", &[]))).await);
    }
    let mut claims = Vec::new();
    for _ in 0..5 {
        let claim = session.assignment().await;
        assert_eq!(fake.starts(&claim).await, Verdict::Accepted);
        claims.push(claim.id);
    }
    session.hears_nothing(3).await;
    let waits = last.iter().find(|id| !claims.contains(id)).unwrap();
    assert_eq!(get(&calm, waits).await.state(), S::Queued);
}
