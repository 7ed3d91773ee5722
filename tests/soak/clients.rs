//! What the clients of the soak do: submit, cancel, watch, follow, apply, read, each again and again.

use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use anyhow::{Context as _, Result};
use octavius_tests::Random;
use octavius_tests::caller::Caller;
use octavius_tests::workload::{Job, Run, Workload};
use tokio::sync::{Semaphore, watch};
use tokio::task::JoinSet;
use tokio::time::{MissedTickBehavior, interval, sleep};

/// How long a client goes on with one call.
const PATIENCE: Duration = Duration::from_secs(30);

/// How long a client watches, or follows.
const WATCH: Duration = Duration::from_secs(60);

/// Executions that clients are busy with at the same time; more are not submitted while these are not over.
const STORIES: usize = 64;

/// Executions of a run at most: the history of all of them is kept in memory.
const MOST: usize = 100_000;

/// An execution that was asked for.
#[derive(Debug, Clone)]
pub(crate) struct Asked {
    pub(crate) id: String,
    pub(crate) run: Run,
    pub(crate) acknowledged: bool,
}

/// What all clients share.
#[derive(Debug, Default)]
pub(crate) struct Shared {
    pub(crate) asked: Mutex<Vec<Asked>>,
    pub(crate) applies: AtomicUsize,
    pub(crate) reads: AtomicUsize,
    /// What clients were told that they should not have been.
    pub(crate) wrong: Mutex<Vec<String>>,
}

impl Shared {
    fn tell<T>(&self, result: Result<T>) -> Option<T> {
        result.map_err(|error| self.wrong.lock().unwrap_or_else(PoisonError::into_inner).push(format!("{error:#}"))).ok()
    }

    pub(crate) fn asked(&self) -> Vec<Asked> {
        self.asked.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }
}

/// A run at random: most are short and print little.
fn run(random: &mut Random) -> Run {
    let millis = |random: &mut Random, most| random.between(Duration::ZERO, Duration::from_millis(most));
    Run {
        job: if random.percent(30) { Job::Again } else { Job::Once },
        lines: if random.percent(15) { 1300 } else { u32::try_from(random.below(30)).unwrap_or_default() },
        pause: if random.percent(20) { millis(random, 6000) } else { millis(random, 400) },
        code: if random.percent(10) { 3 } else { 0 },
        timeout: if random.percent(8) { Duration::from_secs(2) } else { Duration::from_secs(20) },
    }
}

/// Submits `rate` executions a second until `stop`, and does with each what people do.
pub(crate) async fn submit(
    callers: Vec<Arc<Caller>>,
    shared: Arc<Shared>,
    mut random: Random,
    rate: f64,
    mut stop: watch::Receiver<bool>,
) {
    let room = Arc::new(Semaphore::new(STORIES));
    let mut stories = JoinSet::new();
    let mut ticks = interval(Duration::from_secs_f64(1.0 / rate));
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    for number in 0..MOST {
        let permit = tokio::select! {
            permit = async { ticks.tick().await; Arc::clone(&room).acquire_owned().await } => permit,
            _ = stop.wait_for(|stop| *stop) => break,
        };
        let caller = Arc::clone(&callers[number % callers.len()]);
        let (shared, random) = (Arc::clone(&shared), random.fork());
        stories.spawn(async move {
            let _permit = permit;
            let told = story(&caller, &shared, random).await;
            shared.tell(told);
        });
        while stories.try_join_next().is_some() {}
    }
    while stories.join_next().await.is_some() {}
}

async fn story(caller: &Caller, shared: &Shared, mut random: Random) -> Result<()> {
    let run = run(&mut random);
    let (id, acknowledged) = caller.submit(&run, PATIENCE).await?;
    shared.asked.lock().unwrap_or_else(PoisonError::into_inner).push(Asked { id: id.clone(), run, acknowledged });
    match random.below(100) {
        0..15 => {
            sleep(random.between(Duration::ZERO, Duration::from_secs(3))).await;
            caller.cancel(&id, PATIENCE).await?;
        }
        15..45 if acknowledged => drop(caller.watch(&id, WATCH).await?),
        45..60 if acknowledged => drop(caller.read_log(&id, 1, &run, true, WATCH).await),
        60..70 if acknowledged => drop(caller.look(&id, PATIENCE).await),
        _ => {}
    }
    Ok(())
}

/// Applies one state of the catalogue after the other until `stop`; several do, and one of two that meet loses.
pub(crate) async fn apply(
    caller: Arc<Caller>,
    shared: Arc<Shared>,
    workloads: [Workload; 2],
    mut random: Random,
    stop: watch::Receiver<bool>,
) {
    while !*stop.borrow() {
        let number = shared.applies.fetch_add(1, Ordering::Relaxed);
        let applied = caller.apply(&workloads[number % 2], &format!("state {number}")).await;
        shared.tell(applied);
        sleep(random.between(Duration::from_millis(500), Duration::from_secs(4))).await;
    }
}

/// Reads the catalogue until `stop`.
pub(crate) async fn read(caller: Arc<Caller>, shared: Arc<Shared>, mut random: Random, stop: watch::Receiver<bool>) {
    while !*stop.borrow() {
        let read = if random.percent(50) { caller.read_catalog().await } else { caller.list_jobs().await };
        shared.reads.fetch_add(usize::from(read), Ordering::Relaxed);
        sleep(random.between(Duration::from_millis(50), Duration::from_millis(500))).await;
    }
}

/// Looks at every execution until it has ended, for at most `patience` in all, and reads the logs of all its attempts.
pub(crate) async fn look_at_all(callers: &[Arc<Caller>], asked: Vec<Asked>, patience: Duration) -> Result<()> {
    const AT_ONCE: usize = 16;
    let begun = std::time::Instant::now();
    let room = Arc::new(Semaphore::new(AT_ONCE));
    let mut looks = JoinSet::new();
    for (number, asked) in asked.into_iter().enumerate() {
        let permit = Arc::clone(&room).acquire_owned().await?;
        let caller = Arc::clone(&callers[number % callers.len()]);
        looks.spawn(async move {
            let _permit = permit;
            look_at(&caller, &asked, patience.saturating_sub(begun.elapsed())).await
        });
    }
    while let Some(looked) = looks.join_next().await {
        looked??;
    }
    Ok(())
}

async fn look_at(caller: &Caller, asked: &Asked, patience: Duration) -> Result<()> {
    let mut newest = caller.look(&asked.id, PATIENCE).await?;
    if newest.as_ref().is_some_and(|seen| !seen.state.is_terminal()) {
        newest = caller.watch(&asked.id, patience).await?;
    }
    // Once more by a call: what a call shows is never older than what was known before it.
    let Some(seen) = caller.look(&asked.id, PATIENCE).await?.or(newest) else { return Ok(()) };
    for attempt in seen.attempts.iter().filter(|attempt| attempt.started) {
        let read = caller.read_log(&asked.id, attempt.number, &asked.run, false, PATIENCE).await?;
        read.then_some(()).with_context(|| format!("the log of {} could not be read", asked.id))?;
    }
    Ok(())
}
