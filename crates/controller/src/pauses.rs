//! What is paused: nothing of such a job starts, wherever it would. Each controller mirrors the few records that say so, and decides by them
//! without asking the store, and closes the lines of what is paused; the transaction that starts something asks that they are still what was seen.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use octavius_core::{JobName, Timestamp};
use octavius_proto::{to_timestamp, v1};
use octavius_store::record::PausedRecord;
use octavius_store::{Commit, Entry, Event, Revision, Store, StoreError, Txn, codec, key};

use tokio::sync::Notify;

use crate::audit::Act;
use crate::clock::Clock;
use crate::fleet::Fleet;
use crate::mirror::{self, Listener, Mirrors};

/// Most names of jobs that stay paused, where the pause of all jobs ends.
const STILL_PAUSED: usize = 100;

/// That a job is paused, and whether by its own name.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Pause {
    pub(crate) record: PausedRecord,
    /// All jobs are.
    pub(crate) all: bool,
}

impl From<&Pause> for v1::Paused {
    fn from(pause: &Pause) -> Self {
        let PausedRecord { by, at, reason } = pause.record.clone();
        Self { by, at: Some(to_timestamp(at)), all: pause.all, reason }
    }
}

/// Everything that is paused, as of one revision.
#[derive(Debug, Clone, Default)]
pub(crate) struct Paused {
    /// By the last part of its key: a job's folded name.
    jobs: HashMap<String, PausedRecord>,
    all: Option<PausedRecord>,
    /// The revision that last wrote the version; 0 where nothing has ever been paused.
    version: Revision,
}

impl Paused {
    fn of(entries: &[Entry]) -> Self {
        let mut paused = Self::default();
        entries.iter().for_each(|entry| paused.put(entry));
        paused
    }

    fn put(&mut self, entry: &Entry) {
        if entry.key == key::pauses_version() {
            self.version = entry.modified;
            return;
        }
        // One that cannot be read still says that it is paused.
        let record = codec::decode::<PausedRecord>(entry).unwrap_or_else(|error| {
            tracing::error!(%error, "a pause cannot be read");
            PausedRecord { by: String::new(), at: Timestamp::UNIX_EPOCH, reason: String::new() }
        });
        if entry.key == key::paused_all() {
            self.all = Some(record);
        } else {
            self.jobs.insert(last_part(&entry.key).to_owned(), record);
        }
    }

    fn remove(&mut self, key: &octavius_store::Key) {
        if *key == key::paused_all() {
            self.all = None;
        } else {
            self.jobs.remove(last_part(key));
        }
    }

    /// Whether nothing of a job may start: by its own name, or because nothing may at all.
    pub(crate) fn of_job(&self, job: &JobName) -> Option<Pause> {
        if self.jobs.is_empty() && self.all.is_none() {
            return None;
        }
        let own = self.jobs.get(&job.folded()).map(|record| (record, false));
        let (record, all) = own.or_else(|| Some((self.all.as_ref()?, true)))?;
        Some(Pause { record: record.clone(), all })
    }
}

fn last_part(key: &octavius_store::Key) -> &str {
    key.as_str().rsplit('/').next().unwrap_or_default()
}

/// That a job was not paused when it was looked at.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Open(Revision);

impl Open {
    /// Asks, in `txn`, that nothing has been paused or unpaused since. Many transactions ask the same, which etcd looks at once.
    pub(crate) fn still(self, txn: Txn) -> Txn {
        txn.when(key::pauses_version(), self.0)
    }
}

/// Whether something of a job may start.
#[derive(Debug, Clone, Copy)]
pub(crate) enum Gate {
    /// It may, in a transaction that asks that this is [`Open::still`] so.
    Open(Open),
    /// It may not, [`Pauses::is_paused`] says why.
    Paused,
    /// Nothing is known yet: the controller has just begun.
    Unknown,
}

/// What is paused, as the watch shows it.
#[derive(Debug)]
pub(crate) struct Pauses {
    store: Arc<dyn Store>,
    /// Is told which lines are closed.
    fleet: Arc<Fleet>,
    clock: Clock,
    /// None until all of it was listed once.
    seen: Mutex<Option<Paused>>,
    /// Rung when it was.
    listed: Notify,
}

/// Feeds the pauses: everything under `paused/`.
struct PausesListener(Arc<Pauses>);

impl Listener for PausesListener {
    fn reset(&mut self, entries: Vec<Entry>, _: Revision) {
        let now = Paused::of(&entries);
        let before = self.0.lock().replace(now.clone()).unwrap_or_default();
        {
            let mut queue = self.0.fleet.queue();
            let ended = before.jobs.keys().filter(|job| !now.jobs.contains_key(*job));
            ended.for_each(|job| queue.dispatch().pause(job, false));
            now.jobs.keys().for_each(|job| queue.dispatch().pause(job, true));
            queue.dispatch().pause_all(now.all.is_some());
        }
        self.0.listed.notify_waiters();
        self.0.fleet.changed.notify_one();
    }

    fn change(&mut self, event: Event, revision: Revision) {
        self.changes(vec![event], revision);
    }

    /// All of a transaction under one lock: the new version must not be seen beside what the old one stood for.
    fn changes(&mut self, events: Vec<Event>, _: Revision) {
        {
            let mut seen = self.0.lock();
            let paused = seen.get_or_insert_default();
            for event in &events {
                match event {
                    Event::Put(entry) => paused.put(entry),
                    Event::Delete(key) => paused.remove(key),
                }
            }
        }
        {
            let mut queue = self.0.fleet.queue();
            for event in events.iter().filter(|event| *event.key() != key::pauses_version()) {
                let is_paused = matches!(event, Event::Put(_));
                match last_part(event.key()) {
                    _ if *event.key() == key::paused_all() => queue.dispatch().pause_all(is_paused),
                    job => queue.dispatch().pause(job, is_paused),
                }
            }
        }
        self.0.fleet.changed.notify_one();
    }
}

/// Keeps sight of what is paused until the shutdown.
pub(crate) async fn follow(pauses: Arc<Pauses>, mirrors: Mirrors) {
    mirrors.run(key::pauses(), PausesListener(pauses)).await;
}

/// What is paused or unpaused.
#[derive(Debug, Clone, Copy)]
pub(crate) enum Whose<'a> {
    /// One job.
    Job(&'a JobName),
    /// All of them.
    All,
}

impl Whose<'_> {
    fn key(self) -> octavius_store::Key {
        match self {
            Self::Job(job) => key::paused(job),
            Self::All => key::paused_all(),
        }
    }

    const fn is_all(self) -> bool {
        matches!(self, Self::All)
    }
}

/// What is left when a pause has ended.
#[derive(Debug, Default)]
pub(crate) struct Unpaused {
    /// Whether there was one.
    pub(crate) was_paused: bool,
    /// The pause of all jobs, where a job's own has ended.
    pub(crate) all: Option<Pause>,
    /// Some of the jobs that are paused by their own names, where the pause of all has ended.
    pub(crate) still_paused: Vec<String>,
}

impl Pauses {
    pub(crate) fn new(store: Arc<dyn Store>, fleet: Arc<Fleet>, clock: Clock) -> Self {
        Self { store, fleet, clock, seen: Mutex::default(), listed: Notify::new() }
    }

    fn lock(&self) -> MutexGuard<'_, Option<Paused>> {
        self.seen.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Returns once it is known what is paused.
    pub(crate) async fn known(&self) {
        loop {
            let mut listed = std::pin::pin!(self.listed.notified());
            listed.as_mut().enable();
            if self.lock().is_some() {
                return;
            }
            listed.await;
        }
    }

    /// Why nothing of a job starts at present, as far as this controller has seen. Good to show and to leave a job alone by; whoever starts
    /// something asks [`Pauses::gate`].
    pub(crate) fn is_paused(&self, job: &JobName) -> Option<Pause> {
        self.lock().as_ref()?.of_job(job)
    }

    /// Whether something of a job may start, and what the transaction that starts it must ask for. Both are of one moment: between two looks
    /// the job could have been paused.
    pub(crate) fn gate(&self, job: &JobName) -> Gate {
        match &*self.lock() {
            None => Gate::Unknown,
            Some(paused) => paused.of_job(job).map_or(Gate::Open(Open(paused.version)), |_| Gate::Paused),
        }
    }

    /// Everything that is paused now, whichever controller was asked to.
    pub(crate) async fn now(&self) -> Result<Paused, StoreError> {
        Ok(Paused::of(&mirror::list(&*self.store, &key::pauses()).await?.0))
    }

    /// Pauses; where it is paused already, that stands. Once this has returned, no controller starts anything of it.
    pub(crate) async fn pause(&self, whose: Whose<'_>, act: &Act, reason: &str) -> Result<Pause, StoreError> {
        let at = whose.key();
        let record = PausedRecord { by: act.user().to_owned(), at: self.clock.now(), reason: reason.to_owned() };
        loop {
            if let Some(entry) = self.store.get(&at).await? {
                return Ok(Pause { record: codec::decode(&entry)?, all: whose.is_all() });
            }
            let txn = Txn::new().absent(at.clone()).put(at.clone(), codec::encode(&record)).put(key::pauses_version(), "");
            match self.store.commit(act.done(txn)).await {
                Ok(Commit::Done(_)) => return Ok(Pause { record, all: whose.is_all() }),
                // Someone else was quicker, or the answer was lost: what is there now tells.
                Ok(Commit::Conflict(_)) | Err(StoreError::Unknown(_)) => {}
                Err(error) => return Err(error),
            }
        }
    }

    /// Ends a pause.
    pub(crate) async fn unpause(&self, whose: Whose<'_>, act: &Act) -> Result<Unpaused, StoreError> {
        let at = whose.key();
        let mut was_paused = false;
        while let Some(entry) = self.store.get(&at).await? {
            was_paused = true;
            let txn = Txn::new().unchanged(&entry).delete(at.clone()).put(key::pauses_version(), "");
            match self.store.commit(act.done(txn)).await {
                Ok(Commit::Done(_)) => break,
                Ok(Commit::Conflict(_)) | Err(StoreError::Unknown(_)) => {}
                Err(error) => return Err(error),
            }
        }
        let left = self.now().await?;
        Ok(match whose {
            Whose::Job(job) => Unpaused { was_paused, all: left.of_job(job), still_paused: Vec::new() },
            Whose::All => {
                let mut still_paused: Vec<_> = left.jobs.into_keys().collect();
                still_paused.sort_unstable();
                still_paused.truncate(STILL_PAUSED);
                Unpaused { was_paused, all: None, still_paused }
            }
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use octavius_store::Key;

    fn job(name: &str) -> JobName {
        name.parse().unwrap()
    }

    fn entry(key: Key, by: &str, modified: Revision) -> Entry {
        let record = PausedRecord { by: by.into(), at: Timestamp::UNIX_EPOCH, reason: String::new() };
        Entry { key, value: codec::encode(&record), created: modified, modified }
    }

    fn version(modified: Revision) -> Entry {
        Entry { key: key::pauses_version(), value: "".into(), created: modified, modified }
    }

    fn asks(gate: Gate) -> Txn {
        match gate {
            Gate::Open(open) => open.still(Txn::new()),
            closed => panic!("{closed:?}"),
        }
    }

    #[tokio::test]
    async fn a_job_is_paused_by_its_name_or_with_all_and_what_starts_asks_for_the_version() {
        let dir = tempfile::tempdir().unwrap();
        let store = octavius_store::open_embedded(dir.path(), octavius_store::EmbeddedOptions::default()).unwrap();
        let pauses = Arc::new(Pauses::new(store, Arc::default(), Clock::default()));
        assert!(matches!(pauses.gate(&job("a")), Gate::Unknown), "nothing starts before what is paused is known");
        let mut listener = PausesListener(Arc::clone(&pauses));
        listener.reset(vec![], 5);
        assert_eq!(asks(pauses.gate(&job("a"))), Txn::new().absent(key::pauses_version()));

        // Whichever of the two comes first in the transaction.
        let own = || Event::Put(entry(key::paused(&job("a")), "ann", 7));
        for events in [vec![own(), Event::Put(version(7))], vec![Event::Put(version(7)), own()]] {
            listener.reset(vec![], 5);
            listener.changes(events, 7);
            assert!(matches!(pauses.gate(&job("A")), Gate::Paused), "without regard to case");
            assert_eq!(asks(pauses.gate(&job("b"))), Txn::new().when(key::pauses_version(), 7));
        }
        listener.changes(vec![Event::Put(entry(key::paused_all(), "bob", 8)), Event::Put(version(8))], 8);
        let of = |name| pauses.is_paused(&job(name)).map(|pause| (pause.record.by, pause.all));
        assert_eq!((of("a"), of("b")), (Some(("ann".into(), false)), Some(("bob".into(), true))));
        listener.changes(vec![Event::Delete(key::paused_all()), Event::Put(version(9))], 9);
        assert_eq!((of("a"), of("b")), (Some(("ann".into(), false)), None));
        listener.reset(vec![version(9)], 9);
        assert_eq!(of("a"), None);
        assert_eq!(asks(pauses.gate(&job("a"))), Txn::new().when(key::pauses_version(), 9));
    }

    #[test]
    fn what_cannot_be_read_is_paused_all_the_same() {
        let damaged = Entry { value: "{".into(), ..entry(key::paused(&job("a")), "ann", 7) };
        assert!(Paused::of(&[damaged, version(7)]).of_job(&job("a")).is_some());
    }
}
