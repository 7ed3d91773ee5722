//! Schedules: each tick of a job's schedule makes one execution, whichever controllers there are. None leads: each of them knows from the
//! catalogues who is due when, and at the tick tries one transaction, which makes the execution and moves the job's cursor on. The cursor
//! was moved by one of them only; and the execution's id comes from job and tick, so that a cursor that was lost makes no second one.
//!
//! Clocks are not compared. A controller whose clock is ahead runs a job so much too early, and moves the cursor with it: the others, whose
//! clocks reach the tick later, find it seen to.

mod book;
mod run;
#[cfg(test)]
mod tests;

use std::hash::{BuildHasher as _, RandomState};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use octavius_core::definition::Schedule;
use octavius_core::schedule::Ticks;
use octavius_core::{JobName, Timestamp};
use octavius_proto::Fault;
use octavius_store::{Commit, StoreError, Txn, key};
use tokio::sync::Notify;
use tokio_util::sync::CancellationToken;

use crate::catalogs::{self, View};
use crate::executions::Executions;
use crate::fault;
use crate::mirror::Mirrors;

use book::{Book, Cursor, CursorsListener, Scheduled};
use run::Attended;

/// A tick that is late by no more is on time: controllers are restarted, and stores move.
pub(crate) const GRACE: Duration = Duration::from_secs(60);

/// Jobs that are attended to at once: their transactions then are grouped.
const AT_ONCE: usize = 64;

/// Definitions that are looked at at once, for whether they have a schedule.
const LOOKED_AT: usize = 64;

/// Jobs whose time is found in one go: a few milliseconds.
const PLANNED_AT_ONCE: usize = 256;

/// Pause after the store did not answer, or something stood against a tick.
const RETRY: Duration = Duration::from_millis(250);

/// Whether a job is paused. Asked at each tick: must be quick.
pub(crate) type IsPaused = Arc<dyn Fn(&JobName) -> bool + Send + Sync>;

/// Sees to all schedules.
pub(crate) struct Ticker {
    executions: Executions,
    is_paused: IsPaused,
    book: Mutex<Book>,
    /// Is told when a cursor has moved.
    woken: Notify,
    /// Gives each controller an order of its own, so that of many ticks at once each begins with others.
    order: RandomState,
}

impl Ticker {
    pub(crate) fn new(executions: Executions, is_paused: IsPaused) -> Self {
        let (book, woken, order) = (Mutex::default(), Notify::new(), RandomState::new());
        Self { executions, is_paused, book, woken, order }
    }

    fn now(&self) -> Timestamp {
        self.executions.engine.clock().now()
    }

    fn book(&self) -> MutexGuard<'_, Book> {
        self.book.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Sees to them until `shutdown`.
    pub(crate) async fn run(self: Arc<Self>, shutdown: CancellationToken) {
        let mut view = Arc::default();
        let turns = async {
            loop {
                let pause = self.turn(&mut view).await;
                tokio::select! {
                    () = self.executions.engine.clock().sleep(pause) => {}
                    // By the machine's clock too: a test's stands still while something is to be tried again.
                    () = tokio::time::sleep(self.longest_pause()) => {}
                    () = self.woken.notified() => {}
                    () = self.executions.catalogs.moved.notified() => {}
                }
            }
        };
        tokio::select! {
            () = turns => {}
            () = shutdown.cancelled() => {}
        }
    }

    /// Attends to whoever is due; how long the next turn may wait if nothing wakes it. `view` is what the last turn saw of the catalogues.
    async fn turn(&self, view: &mut Arc<View>) -> Duration {
        match self.executions.catalogs.recent().await {
            Ok(now) if Arc::ptr_eq(&now, view) => {}
            Ok(now) => match self.take_in(view, &now).await {
                Ok(()) => *view = now,
                Err(fault) => return told(&fault),
            },
            Err(fault) => return told(&fault),
        }
        if !self.book().is_followed() {
            return self.longest_pause();
        }
        let mut later = None;
        while later.is_none() {
            self.plan().await;
            let mut due = self.book().due(self.now());
            if due.is_empty() {
                break;
            }
            due.sort_by_cached_key(|folded| self.order.hash_one(folded));
            later = self.attend_all(view, &due).await;
        }
        if let Err(error) = self.delete_loose(view).await {
            tracing::warn!(%error, "cursors of jobs that are gone could not be deleted; the next turn tries again");
        }
        let now = self.now();
        let next = self.book().next(now).and_then(|next| Duration::try_from(next.duration_since(now)).ok());
        next.into_iter().chain(later).fold(self.longest_pause(), Duration::min)
    }

    /// The machine's clock may be put, and stands still while it sleeps: it is looked at every so often.
    fn longest_pause(&self) -> Duration {
        self.executions.timing.reconcile_interval
    }

    async fn plan(&self) {
        while self.book().plan(PLANNED_AT_ONCE, self.now()) {
            tokio::task::yield_now().await;
        }
    }

    /// Attends to these jobs; the pause after which to go on where some could not be seen to.
    async fn attend_all(&self, view: &View, due: &[String]) -> Option<Duration> {
        let mut pause = None;
        for some in due.chunks(AT_ONCE) {
            let attended = futures::future::join_all(some.iter().map(|folded| self.attend(view, folded))).await;
            let mut failed = false;
            for (attended, folded) in attended.into_iter().zip(some) {
                let wait = match attended {
                    Ok(Attended::Done) => continue,
                    Ok(Attended::Later(wait)) => wait,
                    Err(error) => {
                        tracing::warn!(job = folded, %error, "a schedule could not be seen to; it is tried again");
                        failed = true;
                        RETRY
                    }
                };
                pause = Some(pause.map_or(wait, |pause: Duration| pause.min(wait)));
            }
            if failed {
                break; // a store that does not answer answers nobody
            }
        }
        pause
    }

    /// Takes in what catalogues have become since `before`.
    async fn take_in(&self, before: &View, now: &View) -> Result<(), Fault> {
        let of = |view: &'_ View, name| view.catalogs.get(name).map(Arc::clone);
        for name in before.catalogs.keys() {
            let (before, now) = (of(before, name), of(now, name));
            let mut book = self.book();
            catalogs::changes(before.as_deref(), now.as_deref())
                .1
                .iter()
                .for_each(|job| book.remove_job(&job.name.folded(), name));
        }
        for (name, catalog) in &now.catalogs {
            let before = of(before, name);
            let (changed, _) = catalogs::changes(before.as_deref(), Some(catalog));
            for some in changed.chunks(LOOKED_AT) {
                let digests: Vec<_> = some.iter().map(|entry| entry.digest).collect();
                let looks = digests.iter().map(|digest| self.executions.definitions.look_at(*digest)).collect::<Vec<_>>();
                let definitions = futures::future::try_join_all(looks).await.map_err(fault::from_store)?;
                let mut book = self.book();
                for (entry, definition) in some.iter().zip(definitions) {
                    let (job, catalog) = (entry.name.clone(), name.clone());
                    match readable(&job, definition.schedule.as_ref()) {
                        Some(schedule) => book.put_job(Scheduled { name: job, catalog, definition: entry.digest, schedule }),
                        None => book.remove_job(&job.folded(), name),
                    }
                }
            }
        }
        Ok(())
    }

    /// Deletes the cursors of jobs that have no schedule any more. That it is so, the transaction asks of the catalogue that the cursor names; and
    /// whoever gives the job a schedule again writes the cursor anew.
    async fn delete_loose(&self, view: &View) -> Result<(), StoreError> {
        let loose = self.book().loose(AT_ONCE);
        let deletions = loose.into_iter().map(|(folded, Cursor { record, modified })| async move {
            let at = key::tick(&folded);
            let txn = Txn::new().when(at.clone(), modified).delete(at);
            let txn = match view.catalogs.get(&record.catalog) {
                Some(catalog) => catalog.still_head(txn),
                None => txn.absent(key::catalog_head(&record.catalog)),
            };
            if let Commit::Done(revision) = self.executions.store.commit(txn).await? {
                self.book().note(&folded, None, revision);
            }
            Ok(())
        });
        futures::future::try_join_all(deletions).await.map(drop)
    }
}

/// A schedule that can be followed. An older version may have taken others.
fn readable(job: &JobName, schedule: Option<&Schedule>) -> Option<Schedule> {
    let schedule = schedule?;
    match Ticks::of(schedule) {
        Ok(_) => Some(schedule.clone()),
        Err(error) => {
            tracing::error!(%job, %error, "not scheduled");
            None
        }
    }
}

fn told(fault: &Fault) -> Duration {
    tracing::warn!(%fault, "schedules are not seen to for a moment");
    RETRY
}

/// Mirrors the cursors into the ticker until the shutdown.
pub(crate) async fn mirror(ticker: Arc<Ticker>, mirrors: Mirrors) {
    mirrors.run(key::ticks(), CursorsListener(ticker)).await;
}
