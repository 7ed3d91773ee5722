//! Controllers' tickers over one store, turn by turn, by a clock that the tests put.

use std::collections::HashMap;
use std::sync::atomic::{AtomicU8, Ordering};

use async_trait::async_trait;
use octavius_catalog::manifest::Entry as ManifestEntry;
use octavius_core::argument::Arguments;
use octavius_core::execution::{Approver, Event as Step, Submission};
use octavius_core::schedule::SCHEDULE_USER;
use octavius_core::{CatalogName, Execution, ExecutionId, JobDefinition, State, Timing};
use octavius_proto::v1;
use octavius_store::record::TickRecord;
use octavius_store::{EmbeddedOptions, Store, codec, open_embedded};
use tempfile::TempDir;
use tokio_util::task::TaskTracker;

use super::*;
use crate::catalogs::{Catalogs, Wanted};
use crate::clock::Clock;
use crate::definitions::Definitions;
use crate::engine::Engine;
use crate::fleet::Fleet;
use crate::mirror::{self, Listener as _};
use crate::origins::Origins;
use crate::pauses::Pauses;
use crate::queue::SharedQueue;
use crate::room::Room;
use crate::scheduler::Scheduler;
use crate::webhooks::Webhooks;

const KEPT: u8 = 0;
const LOST_AFTER: u8 = 1;
const LOST_BEFORE: u8 = 2;

/// A store that loses the answer to its next transaction, made or not, when it is told to.
#[derive(Debug)]
struct Forgetful {
    inner: Arc<dyn Store>,
    next: AtomicU8,
}

#[async_trait]
impl octavius_store::StoreLayer for Forgetful {
    fn inner(&self) -> &dyn Store {
        &*self.inner
    }

    async fn commit(&self, txn: Txn) -> Result<Commit, StoreError> {
        match self.next.swap(KEPT, Ordering::SeqCst) {
            LOST_BEFORE => Err(StoreError::Unknown("lost before it was made".into())),
            LOST_AFTER => self.inner.commit(txn).await.and(Err(StoreError::Unknown("lost after it was made".into()))),
            _ => self.inner.commit(txn).await,
        }
    }
}

/// A controller, as far as schedules go.
struct Part {
    ticker: Arc<Ticker>,
    clock: Clock,
    paused: Arc<Mutex<bool>>,
    view: tokio::sync::Mutex<Arc<View>>,
}

impl Part {
    fn begin(store: Arc<dyn Store>, now: &str) -> Self {
        let definitions = Arc::new(Definitions::new(Arc::clone(&store)));
        let catalogs = Arc::new(Catalogs::new(Arc::clone(&store), Arc::clone(&definitions)));
        let clock = Clock::manual(at(now));
        let engine = Engine::new(
            Arc::clone(&store),
            Timing::default(),
            clock.clone(),
            crate::sealing::Sealer::new(crate::Encryption::Unset),
        );
        let origins = Origins::new(Arc::clone(&catalogs));
        let fleet = Arc::new(Fleet::new(clock.clone(), SharedQueue::default()));
        let scheduler = Arc::new(Scheduler::new(
            Arc::clone(&store),
            engine.clone(),
            Arc::clone(&definitions),
            origins,
            Arc::clone(&fleet),
            Arc::new(Pauses::new(Arc::clone(&store), fleet, clock.clone())),
        ));
        let (room, timing, tasks, shutdown) =
            (Arc::new(Room::default()), Timing::default(), TaskTracker::new(), CancellationToken::new());
        let webhooks = Webhooks::new(Arc::clone(&store), &engine, timing, None);
        let executions = Executions { webhooks, store, engine, catalogs, definitions, scheduler, room, timing, tasks, shutdown };
        let paused = Arc::new(Mutex::new(false));
        let asked = Arc::clone(&paused);
        let is_paused: IsPaused = Arc::new(move |_| *asked.lock().unwrap());
        let ticker = Arc::new(Ticker::new(executions, is_paused));
        Self { ticker, clock, paused, view: tokio::sync::Mutex::default() }
    }

    /// Learns of the cursors as the watch would show them.
    async fn learn(&self) {
        let (entries, revision) = mirror::list(&*self.ticker.executions.store, &key::ticks()).await.unwrap();
        CursorsListener(Arc::clone(&self.ticker)).reset(entries, revision);
    }

    /// Takes turns at this time, until there is nothing to do before another.
    async fn goes_on(&self, now: &str) {
        self.clock.advance(Duration::try_from(at(now).duration_since(self.clock.now())).unwrap());
        let mut view = self.view.lock().await;
        for _ in 0..20 {
            if self.ticker.turn(&mut view).await > RETRY {
                return;
            }
        }
        panic!("it goes on and on at {now}");
    }

    async fn learns_and_goes_on(&self, now: &str) {
        self.learn().await;
        self.goes_on(now).await;
    }
}

fn at(time: &str) -> Timestamp {
    if time.len() > 8 { time.parse().unwrap() } else { format!("2026-11-29T{time}Z").parse().unwrap() }
}

struct House {
    store: Arc<Forgetful>,
    _dir: TempDir,
}

impl House {
    fn open() -> Self {
        let dir = tempfile::tempdir().unwrap();
        let inner = open_embedded(&dir.path().join("store"), EmbeddedOptions::default()).unwrap();
        Self { store: Arc::new(Forgetful { inner, next: AtomicU8::new(KEPT) }), _dir: dir }
    }

    fn part(&self, now: &str) -> Part {
        Part::begin(Arc::<Forgetful>::clone(&self.store), now)
    }

    /// Makes the catalogue hold these jobs beside those that it has, and these no more.
    async fn apply(&self, part: &Part, jobs: &[String], remove: &[&str]) {
        let jobs: Vec<JobDefinition> = jobs.iter().map(|job| serde_json::from_str(job).unwrap()).collect();
        let catalog = CatalogName::new("c").unwrap();
        let catalogs = &part.ticker.executions.catalogs;
        let parent = catalogs.view().await.unwrap().catalogs.get(&catalog).map_or(0, |catalog| catalog.head.revision);
        let entry = |job: &JobDefinition| ManifestEntry {
            name: job.name.clone(),
            digest: job.digest(),
            file: "f.yaml".into(),
            line: 1,
            changed_in: 0,
            inherited: Vec::new(),
        };
        let wanted = Wanted {
            catalog,
            parent,
            put: jobs.iter().map(entry).collect(),
            remove: remove.iter().map(|name| name.parse().unwrap()).collect(),
            definitions: jobs.iter().map(|job| (job.digest(), job.to_canonical_json().into())).collect::<HashMap<_, _>>(),
            provenance: v1::Provenance::default(),
            act: crate::audit::Act::new(None, None, crate::audit::What::default()),
            plan_id: String::new(),
            rollback_to: 0,
            freeze: false,
        };
        catalogs.apply(&wanted).await.unwrap();
    }

    /// The ticks that have executions, oldest first.
    async fn ran(&self, job: &str) -> Vec<String> {
        self.executions(job).await.iter().map(|run| run.tick.unwrap().strftime("%H:%M").to_string()).collect()
    }

    async fn executions(&self, job: &str) -> Vec<Execution> {
        let (keys, _) = mirror::list(&*self.store, &key::by_job_all(&job.parse().unwrap())).await.unwrap();
        let mut executions = Vec::new();
        for id in keys.iter().rev().filter_map(|entry| key::execution_of(&entry.key)) {
            executions.push(codec::decode(&self.store.get(&key::execution(id)).await.unwrap().unwrap()).unwrap());
        }
        executions
    }

    async fn cursor(&self, job: &str) -> Option<TickRecord> {
        let entry = self.store.get(&key::tick(job)).await.unwrap();
        entry.map(|entry| codec::decode(&entry).unwrap())
    }

    /// The last tick that was skipped, and why.
    async fn skipped(&self, job: &str) -> (String, String, Option<ExecutionId>) {
        let skipped = self.cursor(job).await.unwrap().skipped.unwrap();
        (skipped.tick.strftime("%H:%M").to_string(), skipped.because, skipped.execution)
    }
}

fn job(name: &str, cron: &str, more: &str) -> String {
    format!(
        r#"{{"name":"{name}","command":["true"],"env_vars":{{"args":[{{"name":"n","default":"1"}}]}},"schedule":{{"cron":"{cron}"{more}}}}}"#
    )
}

const ALLOW: &str = r#","overlap":"allow""#;

#[tokio::test]
async fn each_tick_has_one_execution_whichever_controllers_there_are() {
    let house = House::open();
    let (a, b) = (house.part("03:30:00"), house.part("03:30:00"));
    let jobs: Vec<String> = (0..100).map(|n| job(&format!("j{n}"), "0 * * * *", ALLOW)).collect();
    house.apply(&a, &jobs, &[]).await;
    a.learns_and_goes_on("03:30:00").await;
    b.learns_and_goes_on("03:30:00").await;
    for hour in 4..8 {
        // Neither hears of the other: what it knows of the cursors is old.
        let now = format!("0{hour}:00:00");
        tokio::join!(a.goes_on(&now), b.goes_on(&now));
    }
    // One whose clock is ahead runs them early, and nobody runs them again.
    a.goes_on("08:00:10").await;
    b.learns_and_goes_on("07:10:00").await;
    b.goes_on("08:00:00").await;
    // One that begins anew knows it too.
    house.part("08:00:20").learns_and_goes_on("08:00:20").await;
    for n in 0..100 {
        assert_eq!(house.ran(&format!("j{n}")).await, ["04:00", "05:00", "06:00", "07:00", "08:00"], "j{n}");
    }
    let run = &house.executions("j1").await[0];
    assert_eq!((run.user.as_str(), run.arguments.get("n").map(String::as_str)), (SCHEDULE_USER, Some("1")));
    assert_eq!(run.id, ExecutionId::of_tick(&run.catalog, &run.job, at("04:00:00"), 0));
    assert_eq!(a.ticker.book().sizes(), [100; 4]);
}

#[tokio::test]
async fn nothing_is_run_for_the_time_before_a_schedule_was_applied() {
    let house = House::open();
    let part = house.part("03:00:30");
    let latest = job("latest", "0 * * * *", r#","catch_up":"latest""#);
    house.apply(&part, &[latest, job("Plain", "0 * * * *", "")], &[]).await;
    part.learns_and_goes_on("03:00:30").await;
    part.goes_on("03:59:59").await;
    assert!(house.ran("latest").await.is_empty() && house.ran("plain").await.is_empty());
    // Another schedule begins anew too, and only from then on.
    house.apply(&part, &[job("plain", "30 * * * *", r#","catch_up":"latest""#)], &[]).await;
    part.goes_on("04:40:00").await;
    assert_eq!(house.ran("plain").await, [""; 0]);
    assert_eq!(house.cursor("plain").await.unwrap().last, at("04:40:00"));
    part.goes_on("05:30:00").await;
    assert_eq!(house.ran("plain").await, ["05:30"]);
    // Without schedule, or without job, there is no cursor.
    house.apply(&part, &[r#"{"name":"plain","command":["true"]}"#.to_owned()], &["latest"]).await;
    part.goes_on("06:30:00").await;
    assert!(house.cursor("plain").await.is_none() && house.cursor("latest").await.is_none());
    assert_eq!(part.ticker.book().sizes(), [0; 4]);
}

#[tokio::test]
async fn what_was_missed_is_made_good_as_the_job_says() {
    let house = House::open();
    let part = house.part("03:30:00");
    house.apply(&part, &[job("none", "0 * * * *", ""), job("latest", "0 * * * *", r#","catch_up":"latest""#)], &[]).await;
    part.learns_and_goes_on("03:30:00").await;
    drop(part);
    // A minute is nothing.
    house.part("04:00:55").learns_and_goes_on("04:00:55").await;
    assert_eq!((house.ran("none").await, house.ran("latest").await), (vec!["04:00".to_owned()], vec!["04:00".to_owned()]));
    for (job, id) in [("none", house.executions("none").await[0].id), ("latest", house.executions("latest").await[0].id)] {
        let part = house.part("04:10:00");
        let step = part.ticker.executions.engine.step(id, Step::Cancel { by: "ann".into() }).await.unwrap();
        assert_eq!(step.execution.state, State::Cancelled, "{job}");
    }
    let part = house.part("07:20:00");
    part.learns_and_goes_on("07:20:00").await;
    assert_eq!(
        (house.ran("none").await, house.ran("latest").await.last().unwrap().as_str()),
        (vec!["04:00".to_owned()], "07:00")
    );
    assert_eq!(house.ran("latest").await.len(), 2);
    assert_eq!(house.skipped("none").await, ("07:00".to_owned(), "missed".to_owned(), None));
    part.goes_on("08:00:00").await;
    assert_eq!(house.ran("none").await, ["04:00", "08:00"]);
}

#[tokio::test]
async fn a_tick_is_skipped_while_the_one_before_goes_on_unless_both_may_run() {
    let house = House::open();
    let part = house.part("03:30:00");
    house.apply(&part, &[job("skip", "0 * * * *", ""), job("allow", "0 * * * *", ALLOW)], &[]).await;
    part.learns_and_goes_on("03:30:00").await;
    part.goes_on("04:00:00").await;
    part.goes_on("05:00:00").await;
    let first = house.executions("skip").await[0].id;
    assert_eq!((house.ran("skip").await.len(), house.ran("allow").await.len()), (1, 2));
    assert_eq!(house.skipped("skip").await, ("05:00".to_owned(), "overlap".to_owned(), Some(first)));
    part.ticker.executions.engine.step(first, Step::Cancel { by: "ann".into() }).await.unwrap();
    part.goes_on("05:30:00").await;
    assert_eq!(house.ran("skip").await, ["04:00"], "what was skipped stays so");
    part.goes_on("06:00:00").await;
    assert_eq!(house.ran("skip").await, ["04:00", "06:00"]);
}

#[tokio::test]
async fn what_waits_for_approval_until_just_after_the_next_tick_does_not_keep_that_away() {
    let house = House::open();
    let part = house.part("03:30:00");
    let gated = |name, valid_for| {
        let approvals = format!(r#"{{"approvals":{{"valid_for":"{valid_for}"}},"#);
        job(name, "0 * * * *", "").replacen('{', &approvals, 1)
    };
    house.apply(&part, &[gated("hour", "1h"), gated("longer", "61m"), gated("approved", "1h")], &[]).await;
    part.learns_and_goes_on("03:30:00").await;
    part.goes_on("04:00:20").await;
    let first = |job: &'static str| async { house.executions(job).await.remove(0) };
    let approved = first("approved").await.id;
    assert_eq!(first("hour").await.state, State::WaitingForApproval);
    part.goes_on("05:00:00").await;
    assert_eq!(house.ran("hour").await, ["04:00"], "two do not wait at once");
    assert!(house.cursor("hour").await.unwrap().skipped.is_none(), "its time is still to come");
    let skipped = ("05:00".to_owned(), "overlap".to_owned(), Some(first("longer").await.id));
    assert_eq!(house.skipped("longer").await, skipped, "what waits longer goes on");
    let by = Approver { user: "bob".into(), groups: Vec::new(), may_run: true };
    part.ticker.executions.engine.step(approved, Step::Approve { by, reason: String::new() }).await.unwrap();
    part.goes_on("05:00:10").await;
    assert_eq!(house.skipped("approved").await, ("05:00".to_owned(), "overlap".to_owned(), Some(approved)), "it is to run now");
    part.goes_on("05:00:20").await;
    assert_eq!(house.ran("hour").await, ["04:00", "05:00"]);
    assert_eq!(first("hour").await.state, State::TimedOut);
    part.goes_on("06:00:25").await;
    assert_eq!(house.ran("hour").await, ["04:00", "05:00", "06:00"]);
    assert_eq!(house.ran("longer").await, ["04:00", "06:00"], "ended by then, whether anybody had looked at it or not");
}

#[tokio::test]
async fn a_job_that_refuses_more_than_its_limit_skips_a_tick_beyond_it() {
    let house = House::open();
    let part = house.part("03:30:00");
    let limited = job("j", "0 * * * *", ALLOW).replacen('{', r#"{"concurrency":{"limit":1,"when_full":"reject"},"#, 1);
    house.apply(&part, &[limited], &[]).await;
    part.learns_and_goes_on("03:30:00").await;
    part.goes_on("04:00:00").await;
    part.goes_on("05:00:00").await;
    assert_eq!(house.ran("j").await, ["04:00"]);
    assert_eq!(house.skipped("j").await, ("05:00".to_owned(), "full".to_owned(), None));
}

#[tokio::test]
async fn a_paused_job_does_not_run_and_nothing_of_that_time_is_made_good() {
    let house = House::open();
    let part = house.part("03:30:00");
    house.apply(&part, &[job("j", "0 * * * *", r#","catch_up":"latest","overlap":"allow""#)], &[]).await;
    part.learns_and_goes_on("03:30:00").await;
    *part.paused.lock().unwrap() = true;
    part.goes_on("04:00:00").await;
    part.goes_on("06:10:00").await;
    assert_eq!(house.skipped("j").await, ("06:00".to_owned(), "paused".to_owned(), None));
    *part.paused.lock().unwrap() = false;
    part.goes_on("06:20:00").await;
    assert!(house.ran("j").await.is_empty());
    part.goes_on("07:00:00").await;
    assert_eq!(house.ran("j").await, ["07:00"]);
}

#[tokio::test]
async fn a_lost_answer_makes_no_second_execution_and_loses_none() {
    let house = House::open();
    let part = house.part("03:30:00");
    house.apply(&part, &[job("j", "0 * * * *", ALLOW)], &[]).await;
    part.learn().await;
    for (now, lost) in [("03:30:00", LOST_AFTER), ("04:00:00", LOST_AFTER), ("05:00:00", LOST_BEFORE), ("06:00:00", LOST_AFTER)] {
        house.store.next.store(lost, Ordering::SeqCst);
        part.goes_on(now).await;
        assert_eq!(house.store.next.load(Ordering::SeqCst), KEPT, "{now}");
    }
    assert_eq!(house.ran("j").await, ["04:00", "05:00", "06:00"]);
}

#[tokio::test]
async fn a_lost_cursor_makes_no_second_execution_and_a_taken_id_keeps_none_away() {
    let house = House::open();
    let part = house.part("03:30:00");
    house.apply(&part, &[job("j", "0 * * * *", ALLOW)], &[]).await;
    part.learns_and_goes_on("03:30:00").await;
    let before = house.store.get(&key::tick("j")).await.unwrap().unwrap();
    part.goes_on("04:00:00").await;
    house.store.commit(Txn::new().put(before.key, before.value)).await.unwrap();
    part.learns_and_goes_on("04:00:30").await;
    assert_eq!(house.ran("j").await, ["04:00"]);

    // Somebody has asked for a run by the very id that the next tick would have.
    let executions = &part.ticker.executions;
    let view = executions.catalogs.view().await.unwrap();
    let (catalog, entry) = view.entry(&"j".parse().unwrap()).unwrap();
    let definition = executions.definitions.get(entry.digest).await.unwrap();
    let job = crate::catalogs::Job { catalog: Arc::clone(catalog), entry: entry.clone(), definition };
    let id = ExecutionId::of_tick(&catalog.name, &entry.name, at("05:00:00"), 0);
    let submission =
        Submission { id, arguments: Arguments::new(), user: "mallory".into(), at: at("04:30:00"), timeout: None, slot: None };
    let execution = executions.queued(&job, submission).await.unwrap();
    house.store.commit(executions.engine.submission(&execution)).await.unwrap();
    part.goes_on("05:00:00").await;
    let ticks: Vec<_> = house.executions("j").await.into_iter().filter_map(|run| run.tick).collect();
    assert_eq!(ticks, [at("04:00:00"), at("05:00:00")]);
}
