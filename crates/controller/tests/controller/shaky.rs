//! A store that fails every so often, loses answers and breaks watches: what was accepted still ends, once.

use std::collections::HashSet;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use async_trait::async_trait;
use bytes::Bytes;
use futures::future::join_all;
use octavius_core::{JobDefinition, Timing};
use octavius_proto::v1::report_execution_request::Step;
use octavius_proto::v1::session_response::Say;
use octavius_proto::v1::{self, ExecutionState as S, Verdict};
use octavius_proto::{Fault, reason};
use octavius_store::{
    Commit, Entry, Key, Page, Presence, Range, Revision, Store, StoreError, Txn, Usage, Watch, WatchBatch, key,
};
use octavius_tests::receiver::Receiver;
use tokio::sync::watch;
use tonic::Code;

use crate::fake::{Fake, finished, hello};
use crate::harness::{Dice, House, PATIENCE, apply, eventually, get, header, reaches, request, send, timing, told};
use crate::webhooks::{Secret, nothing_left};

#[derive(Debug)]
struct Shaky {
    inner: Arc<dyn Store>,
    dice: Arc<Mutex<Dice>>,
    shakes: Arc<AtomicBool>,
    /// Whether it does not answer at all.
    away: watch::Receiver<bool>,
    /// How often it was asked for anything but watches and presences.
    asked: Arc<AtomicUsize>,
    /// Keys that are not counted when they are asked for.
    passed_over: HashSet<Key>,
}

impl Shaky {
    /// A store that neither shakes nor goes away.
    fn calm(inner: Arc<dyn Store>) -> Self {
        let dice = Arc::new(Mutex::new(Dice::thrown()));
        Self {
            inner,
            dice,
            shakes: Arc::default(),
            away: watch::channel(false).1,
            asked: Arc::default(),
            passed_over: HashSet::new(),
        }
    }

    fn count(&self) {
        self.asked.fetch_add(1, Ordering::SeqCst);
    }

    /// Whether something of this likelihood, in percent, happens now.
    fn happens(&self, percent: usize) -> bool {
        self.shakes.load(Ordering::Relaxed) && self.dice.lock().unwrap().below(100) < percent
    }

    fn fails(&self) -> Result<(), StoreError> {
        if *self.away.borrow() {
            return Err(StoreError::Unavailable("away".into()));
        }
        if self.happens(3) { Err(StoreError::Unavailable("shaken".into())) } else { Ok(()) }
    }
}

#[async_trait]
impl Store for Shaky {
    async fn get(&self, key: &Key) -> Result<Option<Entry>, StoreError> {
        if !self.passed_over.contains(key) {
            self.count();
        }
        self.fails()?;
        self.inner.get(key).await
    }

    async fn range(&self, range: &Range) -> Result<Page, StoreError> {
        self.count();
        self.fails()?;
        self.inner.range(range).await
    }

    async fn commit(&self, txn: Txn) -> Result<Commit, StoreError> {
        self.count();
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
        let (dice, shakes, away) = (Arc::clone(&self.dice), Arc::clone(&self.shakes), self.away.clone());
        Ok(Box::new(ShakyWatch { inner, dice, shakes, away }))
    }

    async fn announce(&self, key: Key, value: Bytes, ttl: Duration) -> Result<Box<dyn Presence>, StoreError> {
        self.fails()?;
        let inner = self.inner.announce(key, value, ttl).await?;
        Ok(Box::new(ShakyPresence { inner, away: self.away.clone() }))
    }

    async fn usage(&self) -> Result<Usage, StoreError> {
        self.fails()?;
        self.inner.usage().await
    }

    async fn compact(&self, until: Revision) -> Result<(), StoreError> {
        self.fails()?;
        self.inner.compact(until).await
    }

    async fn reclaim(&self) -> Result<(), StoreError> {
        self.fails()?;
        self.inner.reclaim().await
    }
}

struct ShakyPresence {
    inner: Box<dyn Presence>,
    away: watch::Receiver<bool>,
}

#[async_trait]
impl Presence for ShakyPresence {
    async fn renew(&self) -> Result<(), StoreError> {
        if *self.away.borrow() {
            return Err(StoreError::Unavailable("away".into()));
        }
        self.inner.renew().await
    }

    async fn withdraw(self: Box<Self>) -> Result<(), StoreError> {
        if *self.away.borrow() {
            return Err(StoreError::Unavailable("away".into()));
        }
        self.inner.withdraw().await
    }
}

struct ShakyWatch {
    inner: Box<dyn Watch>,
    dice: Arc<Mutex<Dice>>,
    shakes: Arc<AtomicBool>,
    away: watch::Receiver<bool>,
}

#[async_trait]
impl Watch for ShakyWatch {
    async fn next(&mut self) -> Result<WatchBatch, StoreError> {
        let gone = async {
            // Where nobody can say any more that it is away, it is there for good.
            if self.away.wait_for(|away| *away).await.is_err() {
                std::future::pending::<()>().await;
            }
        };
        let batch = tokio::select! {
            batch = self.inner.next() => batch?,
            () = gone => return Err(StoreError::Unavailable("away".into())),
        };
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
    let house = House::over(timing, |inner| Arc::new(Shaky { dice, shakes: Arc::clone(&shakes), ..Shaky::calm(inner) })).await;
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

/// Whatever the store forgets to answer, what has ended is told: once, but where that it was told could not be written down.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn whatever_the_store_does_webhooks_are_told_of_each_end() {
    let shakes = Arc::new(AtomicBool::new(false));
    let dice = Arc::new(Mutex::new(Dice::thrown()));
    let soon = Duration::from_millis(20);
    let timing = Timing { webhook_retry_min: soon, webhook_retry_max: soon * 5, webhook_pause_max: soon * 5, ..timing() };
    let secret = Secret::new();
    let receiver = Receiver::start(&secret.text).unwrap();
    let hook = secret.webhook("chat", &receiver.url(), &serde_json::json!({}));
    let wrap = |inner| Arc::new(Shaky { dice, shakes: Arc::clone(&shakes), ..Shaky::calm(inner) }) as Arc<dyn Store>;
    let house = House::telling(timing, vec![hook], wrap).await;
    house.apply(&[r#"{"name":"j","command":["true"]}"#]).await;
    let admin = house.admin().await;
    shakes.store(true, Ordering::Relaxed);
    let mut ids = HashSet::new();
    for n in 0..60 {
        // Now and then it does not take them either.
        receiver.answer(if n % 4 == 3 { 500 } else { 200 }, None);
        let asked = request("j", &[]);
        let id = insist("an execution", || send(&admin, asked.clone())).await;
        let cancelled = || async {
            let request = v1::CancelExecutionRequest { id: id.clone() };
            admin.executions().cancel_execution(request).await.map(drop).map_err(|status| told(&status))
        };
        insist("its end", cancelled).await;
        ids.insert(id);
    }
    receiver.answer(200, None);
    shakes.store(false, Ordering::Relaxed);
    let told = eventually("all to be told", async || {
        let told: HashSet<_> = receiver.taken().unwrap().iter().map(|message| message.execution().to_owned()).collect();
        if told == ids { Ok(told) } else { Err(format!("{} of {}", told.len(), ids.len())) }
    })
    .await;
    assert_eq!(told.len(), 60);
    nothing_left(&house).await;
    let again = receiver.taken().unwrap().len() - 60;
    assert!(again < 30, "{again} were told twice");
}

/// An executor that cannot reach its controller while the store is away is not lost for it.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn nobody_is_lost_for_a_while_after_the_store_was_away() {
    let grace = Duration::from_secs(2);
    let timing = Timing {
        lost_after: Duration::from_millis(200),
        reconcile_interval: Duration::from_millis(20),
        outage_grace: grace,
        ..timing()
    };
    let (goes, away) = watch::channel(false);
    let house = House::over(timing, |inner| Arc::new(Shaky { away, ..Shaky::calm(inner) })).await;
    house.apply(&[r#"{"name":"j","command":["true"]}"#]).await;
    let admin = house.admin().await;
    let fake = Fake::register(&house, "e").await;
    let mut session = fake.session(hello(1)).await.unwrap();
    let id = house.execute("j").await;
    fake.begins(&session.assignment().await).await;
    goes.send(true).unwrap();
    let unavailable = send(&admin, request("j", &[])).await.unwrap_err();
    assert_eq!((unavailable.code, unavailable.reason.as_str()), (Code::Unavailable, reason::STORE_UNAVAILABLE));
    goes.send(false).unwrap();
    let answers = Instant::now();
    drop(session);
    reaches(&admin, &id, S::Lost).await;
    assert!(answers.elapsed() >= grace, "{:?}", answers.elapsed());
}

/// An executor is better off with a controller that reaches the store: this one can neither show it as present nor give it anything.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_controller_that_does_not_reach_the_store_ends_its_sessions_and_begins_none() {
    let deadline = Duration::from_millis(600);
    let timing = Timing { ping_interval: Duration::from_millis(50), ping_deadline: deadline, ..timing() };
    let (goes, away) = watch::channel(false);
    let house = House::over(timing, |inner| Arc::new(Shaky { away, ..Shaky::calm(inner) })).await;
    let fake = Fake::register(&house, "e").await;
    let mut session = fake.session(hello(1)).await.unwrap();
    session.hears_nothing(3).await; // it stands: its beginning asks the store, and would be refused at once
    goes.send(true).unwrap();
    let gone = Instant::now();
    let fault = told(&session.next().await.unwrap_err());
    assert_eq!((fault.code, fault.reason.as_str()), (Code::Unavailable, reason::STORE_UNAVAILABLE));
    // The last renewal may be a third of the deadline old.
    assert!(gone.elapsed() >= deadline / 2, "a short absence of the store costs no session: {:?}", gone.elapsed());
    let refused = fake.session(hello(1)).await.err().unwrap();
    assert_eq!((refused.code, refused.reason.as_str()), (Code::Unavailable, reason::STORE_UNAVAILABLE));
    goes.send(false).unwrap();
    let mut session = fake.session(hello(1)).await.unwrap();
    session.hears_nothing(3).await;
}

/// With a thousand executors, what each ping asks of the store is asked five hundred times a second.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_session_that_stands_asks_nothing_of_the_store() {
    let asked = Arc::new(AtomicUsize::new(0));
    let count = Arc::clone(&asked);
    let timing = Timing { ping_interval: Duration::from_millis(50), keep_interval: Duration::from_secs(3600), ..timing() };
    let house = House::over(timing, |inner| Arc::new(Shaky { asked: count, ..Shaky::calm(inner) })).await;
    let mut sessions = Vec::new();
    for n in 0..20 {
        let fake = Fake::register(&house, &format!("e{n}")).await;
        sessions.push(fake.session(hello(1)).await.unwrap());
    }
    // Each session's beginning is over, and the mirrors show it.
    for session in &mut sessions {
        session.hears_nothing(20).await;
    }
    let before = asked.load(Ordering::SeqCst);
    for session in &mut sessions {
        session.hears_nothing(20).await;
    }
    let after = asked.load(Ordering::SeqCst) - before;
    assert!(after < 20, "{after} for 400 pings");
}

/// Each read on the way of an execution is a round trip that all others wait behind.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_execution_costs_one_write_for_each_step_and_hardly_a_read() {
    const COUNT: usize = 40;
    let asked = Arc::new(AtomicUsize::new(0));
    let count = Arc::clone(&asked);
    let timing = Timing { keep_interval: Duration::from_secs(3600), ..timing() };
    let house = House::over(timing, |inner| Arc::new(Shaky { asked: count, ..Shaky::calm(inner) })).await;
    house.apply(&[r#"{"name":"j","command":["true"]}"#]).await;
    let admin = house.admin().await;
    let fake = Fake::register(&house, "e").await;
    send(&admin, request("j", &[])).await.unwrap(); // the definition is read once
    let before = asked.load(Ordering::SeqCst);
    for _ in 1..COUNT {
        send(&admin, request("j", &[])).await.unwrap();
    }
    let accepted = asked.load(Ordering::SeqCst) - before;
    assert!(accepted < COUNT + COUNT / 4, "{accepted} calls to accept {COUNT}");
    let mut session = fake.session(hello(2)).await.unwrap();
    let before = asked.load(Ordering::SeqCst);
    for _ in 0..COUNT {
        let claim = session.assignment().await;
        fake.completes(&claim, b"").await;
    }
    // The claim, its start, that it runs and how it ended; a look at the log before its seal.
    let ran = asked.load(Ordering::SeqCst) - before;
    assert!(ran < 5 * COUNT + COUNT / 2, "{ran} calls to run {COUNT}");
}

/// The history of a job costs what it answers: not what was done to others meanwhile, and no look at each revision one after the other.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_history_of_a_job_is_read_in_proportion_to_its_length() {
    const COUNT: u64 = 120;
    let asked = Arc::new(AtomicUsize::new(0));
    let count = Arc::clone(&asked);
    let timing = Timing { keep_interval: Duration::from_secs(3600), ..timing() };
    let house = House::over(timing, |inner| Arc::new(Shaky { asked: count, ..Shaky::calm(inner) })).await;
    // One changes each time, one seldom, one comes and goes.
    for number in 1..=COUNT {
        let busy = format!(r#"{{"name":"busy","command":["{number}"]}}"#);
        let calm = format!(r#"{{"name":"calm","command":["{number}"]}}"#);
        let odd = r#"{"name":"odd","command":["true"]}"#;
        let mut put = vec![busy.as_str()];
        put.extend((number % 40 == 1).then_some(calm.as_str()));
        put.extend((number % 2 == 1).then_some(odd));
        let remove = if number % 2 == 0 { vec!["odd".to_owned()] } else { vec![] };
        apply(&house.admin().await, v1::ApplyHeader { remove, ..header("c", number - 1, &put) }, &put).await.unwrap();
    }
    let admin = house.admin().await;
    let every = |step: u64| (1..=COUNT).rev().filter(move |number| number % step == 1 % step).collect::<Vec<_>>();
    for (job, expected, most) in [("busy", every(1), 300), ("calm", every(40), 40), ("odd", every(1), 300)] {
        let before = asked.load(Ordering::SeqCst);
        let request = v1::ListRevisionsRequest { catalog: "c".into(), limit: 1000, before: 0, job: job.to_owned() };
        let revisions = admin.catalog().list_revisions(request).await.unwrap().into_inner().revisions;
        let reads = asked.load(Ordering::SeqCst) - before;
        assert_eq!(revisions.iter().map(|revision| revision.number).collect::<Vec<_>>(), expected, "{job}");
        assert!(reads <= most, "{reads} reads for {} revisions of {job}", expected.len());
        eprintln!("{job}: {reads} reads for {} revisions", expected.len());
    }
}

/// Fifty who apply all look at each new head: it is read once.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_new_head_is_read_once_by_all_who_look_at_it() {
    let asked = Arc::new(AtomicUsize::new(0));
    let count = Arc::clone(&asked);
    let timing = Timing { keep_interval: Duration::from_secs(3600), ..timing() };
    let jobs: Vec<String> = (0..600).map(|n| format!(r#"{{"name":"j{n}","command":["true"]}}"#)).collect();
    let jobs: Vec<&str> = jobs.iter().map(String::as_str).collect();
    // Those who look for schedules read the jobs' definitions, each in its time: no part of what a head is.
    let definition = |job: &&str| key::blob(&JobDefinition::from_canonical_json(job.as_bytes()).unwrap().digest());
    let passed_over = jobs.iter().map(definition).collect();
    let house = House::over(timing, |inner| Arc::new(Shaky { asked: count, passed_over, ..Shaky::calm(inner) })).await;
    house.apply(&jobs).await;
    // The first controller reads them too, by itself; that is over when it answers, and is not counted.
    crate::harness::head(&house.admin().await, "c").await;
    // Another controller has seen nothing of it yet: some 230 buckets.
    let neighbour = house.neighbour().await;
    let there = crate::harness::connect(neighbour.address(), Some(&house.token)).await;
    there.admin().who_am_i(v1::WhoAmIRequest {}).await.unwrap();
    let before = asked.load(Ordering::SeqCst);
    let heads = join_all((0..50).map(|_| crate::harness::head(&there, "c"))).await;
    let reads = asked.load(Ordering::SeqCst) - before;
    assert!(heads.iter().all(|head| *head == 1));
    assert!(reads < 600, "{reads} reads for 50 who look at one head");
    neighbour.stop().await;
}
