//! A store in memory, strict and quick, of which each controller has a view of its own that can be made to fail: transactions that are
//! refused, done without an answer, or overtaken by someone else's; watches that lag or break.

use std::collections::{BTreeMap, HashMap};
use std::pin::pin;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use async_trait::async_trait;
use bytes::Bytes;
use futures::future::BoxFuture;
use octavius_core::ExecutionId;
use octavius_store::{
    Change, Commit, Entry, Event, Key, Page, Presence, Range, Revision, Store, StoreError, Txn, Usage, Watch, WatchBatch, key,
};
use tokio::sync::Notify;

use crate::clock::Clock;

/// Transactions that are kept for those who watch, as with a real store.
const KEPT: usize = 4096;

/// A key's value at some time; none where it was removed.
type Version = (Revision, Option<Entry>);

/// One transaction that was made: by whom, and what it changed.
#[derive(Debug, Clone)]
pub(super) struct Made {
    pub(super) revision: Revision,
    pub(super) at: Instant,
    /// The view that it came through; none for what time brought about.
    pub(super) by: Option<usize>,
    pub(super) events: Vec<Event>,
}

#[derive(Debug, Default)]
struct Data {
    keys: BTreeMap<Key, Vec<Version>>,
    revision: Revision,
    made: Vec<Made>,
    /// Who announced which key, by a number, and until when it stands.
    presences: BTreeMap<Key, (u64, Instant)>,
    announced: u64,
    oldest: Revision,
}

impl Data {
    fn modified(&self, key: &Key) -> Revision {
        self.get(key).map_or(0, |entry| entry.modified)
    }

    fn get(&self, key: &Key) -> Option<&Entry> {
        self.keys.get(key)?.last()?.1.as_ref()
    }

    fn apply(&mut self, changes: Vec<Change>, by: Option<usize>, at: Instant) -> Revision {
        let revision = self.revision + 1;
        let mut events = Vec::new();
        for change in changes {
            let name = change.key().clone();
            let created = self.get(&name).map(|entry| entry.created);
            let versions = self.keys.entry(name.clone()).or_default();
            match change {
                Change::Put(key, value) => {
                    let entry = Entry { key, value, created: created.unwrap_or(revision), modified: revision };
                    events.push(Event::Put(entry.clone()));
                    versions.push((revision, Some(entry)));
                }
                Change::Delete(key) if created.is_some() => {
                    events.push(Event::Delete(key));
                    versions.push((revision, None));
                }
                Change::Delete(_) => {}
            }
            self.presences.remove(&name);
        }
        if !events.is_empty() {
            self.revision = revision;
            self.made.push(Made { revision, at, by, events });
            if self.made.len() > KEPT {
                self.oldest = self.made.remove(0).revision;
            }
        }
        self.revision
    }

    fn expire(&mut self, now: Instant) -> bool {
        let over: Vec<Key> = self.presences.iter().filter(|(_, (_, until))| *until <= now).map(|(key, _)| key.clone()).collect();
        let any = !over.is_empty();
        for key in over {
            self.apply(vec![Change::Delete(key)], None, now);
        }
        any
    }
}

/// The store itself.
#[derive(Debug)]
pub(super) struct Memory {
    data: Mutex<Data>,
    clock: Clock,
    /// Rung with each transaction, for those who watch. They wake in order, the same in each run.
    grown: Notify,
}

impl Memory {
    pub(super) fn new(clock: Clock) -> Arc<Self> {
        Arc::new(Self { data: Mutex::default(), clock, grown: Notify::new() })
    }

    fn lock(&self) -> MutexGuard<'_, Data> {
        self.data.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Data as it is now: presences that have run out are gone.
    fn now(&self) -> MutexGuard<'_, Data> {
        let mut data = self.lock();
        if data.expire(self.clock.instant()) {
            self.grown.notify_waiters();
        }
        data
    }

    pub(super) fn revision(&self) -> Revision {
        self.now().revision
    }

    /// Transactions after this revision.
    pub(super) fn made_after(&self, revision: Revision) -> Vec<Made> {
        let data = self.now();
        let from = data.made.partition_point(|made| made.revision <= revision);
        data.made[from..].to_vec()
    }

    /// All entries under a prefix, now.
    pub(super) fn all(&self, prefix: &Key) -> Vec<Entry> {
        let data = self.now();
        let keys = data.keys.range(prefix.clone()..).take_while(|(key, _)| key.as_str().starts_with(prefix.as_str()));
        keys.filter_map(|(_, versions)| versions.last()?.1.clone()).collect()
    }

    /// A controller's view of it.
    pub(super) fn view(self: &Arc<Self>, index: usize) -> Arc<View> {
        Arc::new(View { memory: Arc::clone(self), index, trouble: Arc::default() })
    }
}

/// What happens to a transaction about an execution.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Mishap {
    /// It is not made.
    Unavailable,
    /// It is not made, and nobody can say whether it was.
    LostBefore,
    /// It is made, and nobody can say whether it was.
    LostAfter,
    /// Someone else's comes first.
    Overtaken,
}

/// Does something to an execution in between.
pub(super) type Rival = Box<dyn FnOnce(ExecutionId) -> BoxFuture<'static, ()> + Send>;

#[derive(Default)]
struct Trouble {
    /// What becomes of the so many-th transaction about an execution from now, counted from 0.
    mishaps: Vec<(usize, Mishap)>,
    rival: Option<Rival>,
    /// Whether one of them has happened since it was last asked.
    happened: bool,
    /// The store cannot be reached.
    away: bool,
    /// Up to which revision watches of a prefix have come that lag.
    lags: HashMap<String, Revision>,
    /// How often watches of a prefix were broken.
    breaks: HashMap<String, u64>,
}

/// The store as one controller has it.
pub(super) struct View {
    memory: Arc<Memory>,
    index: usize,
    trouble: Arc<Mutex<Trouble>>,
}

impl std::fmt::Debug for View {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "View({})", self.index)
    }
}

fn made_up() -> String {
    "made up".to_owned()
}

impl View {
    fn trouble(&self) -> MutexGuard<'_, Trouble> {
        self.trouble.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Lets the so many-th transaction about an execution from now go wrong.
    pub(super) fn arm(&self, after: usize, mishap: Mishap, rival: Option<Rival>) {
        let mut trouble = self.trouble();
        trouble.mishaps.push((after, mishap));
        trouble.rival = rival;
    }

    /// Takes back what has not happened; whether anything has.
    pub(super) fn disarm(&self) -> bool {
        let mut trouble = self.trouble();
        trouble.mishaps.clear();
        trouble.rival = None;
        std::mem::take(&mut trouble.happened)
    }

    pub(super) fn set_away(&self, away: bool) {
        self.trouble().away = away;
        self.wake();
    }

    pub(super) fn is_away(&self) -> bool {
        self.trouble().away
    }

    /// Holds the watches of a prefix where they are.
    pub(super) fn lag(&self, prefix: &Key) {
        let revision = self.memory.revision();
        self.trouble().lags.entry(prefix.as_str().to_owned()).or_insert(revision);
    }

    /// Lets all watches go on.
    pub(super) fn catch_up(&self) {
        self.trouble().lags.clear();
        self.wake();
    }

    pub(super) fn lags(&self) -> bool {
        !self.trouble().lags.is_empty()
    }

    /// Lets the watches of a prefix miss something.
    pub(super) fn break_off(&self, prefix: &Key) {
        *self.trouble().breaks.entry(prefix.as_str().to_owned()).or_default() += 1;
        self.wake();
    }

    fn wake(&self) {
        self.memory.grown.notify_waiters();
    }

    fn reachable(&self) -> Result<(), StoreError> {
        if self.trouble().away { Err(StoreError::Unavailable(made_up())) } else { Ok(()) }
    }

    /// What is to happen to this transaction.
    fn mishap(&self, txn: &Txn) -> Option<(ExecutionId, Mishap)> {
        let about = txn.conditions.iter().find(|condition| condition.key.as_str().starts_with("exec/"))?;
        let id = key::execution_of(&about.key)?;
        let mut trouble = self.trouble();
        let due = trouble.mishaps.iter().position(|(after, _)| *after == 0);
        for (after, _) in &mut trouble.mishaps {
            *after = after.saturating_sub(1);
        }
        let (_, mishap) = trouble.mishaps.remove(due?);
        trouble.happened = true;
        Some((id, mishap))
    }
}

#[async_trait]
impl Store for View {
    async fn get(&self, key: &Key) -> Result<Option<Entry>, StoreError> {
        self.reachable()?;
        Ok(self.memory.now().get(key).cloned())
    }

    async fn range(&self, range: &Range) -> Result<Page, StoreError> {
        if range.limit == 0 {
            return Err(StoreError::Invalid("a page of nothing".to_owned()));
        }
        self.reachable()?;
        let data = self.memory.now();
        let revision = range.at.unwrap_or(data.revision);
        if revision < data.oldest {
            return Err(StoreError::Compacted { asked: revision, oldest: data.oldest });
        }
        let from = range.after.as_ref().map_or(range.prefix.as_str(), |after| after.as_str().max(range.prefix.as_str()));
        let mut page = Page { entries: Vec::new(), more: false, revision };
        let mut bytes = 0;
        for (key, versions) in data.keys.range(Key::new(from)..) {
            if !key.as_str().starts_with(range.prefix.as_str()) {
                break;
            }
            let then = versions.iter().rev().find(|(at, _)| *at <= revision);
            let Some((_, Some(entry))) = then.filter(|_| range.after.as_ref() != Some(key)) else { continue };
            bytes += entry.value.len();
            if page.entries.len() == range.limit || (bytes > Range::MAX_BYTES && !page.entries.is_empty()) {
                page.more = true;
                break;
            }
            page.entries.push(entry.clone());
        }
        Ok(page)
    }

    async fn commit(&self, txn: Txn) -> Result<Commit, StoreError> {
        txn.check()?;
        self.reachable()?;
        let mishap = self.mishap(&txn);
        match mishap {
            Some((_, Mishap::Unavailable)) => return Err(StoreError::Unavailable(made_up())),
            Some((_, Mishap::LostBefore)) => return Err(StoreError::Unknown(made_up())),
            Some((id, Mishap::Overtaken)) => {
                let rival = self.trouble().rival.take();
                if let Some(rival) = rival {
                    rival(id).await;
                }
            }
            Some((_, Mishap::LostAfter)) | None => {}
        }
        let answer = {
            let mut data = self.memory.now();
            if txn.conditions.iter().all(|condition| data.modified(&condition.key) == condition.modified) {
                Commit::Done(data.apply(txn.changes, Some(self.index), self.memory.clock.instant()))
            } else {
                Commit::Conflict(txn.otherwise.iter().map(|key| data.get(key).cloned()).collect())
            }
        };
        self.memory.grown.notify_waiters();
        if matches!(mishap, Some((_, Mishap::LostAfter))) {
            return Err(StoreError::Unknown(made_up()));
        }
        Ok(answer)
    }

    async fn watch(&self, prefix: &Key, after: Revision) -> Result<Box<dyn Watch>, StoreError> {
        self.reachable()?;
        let data = self.memory.now();
        if after < data.oldest {
            return Err(StoreError::Compacted { asked: after, oldest: data.oldest });
        }
        let breaks = self.trouble().breaks.get(prefix.as_str()).copied().unwrap_or(0);
        let (memory, trouble) = (Arc::clone(&self.memory), Arc::clone(&self.trouble));
        Ok(Box::new(Watching { memory, trouble, prefix: prefix.clone(), after, breaks }))
    }

    async fn announce(&self, key: Key, value: Bytes, ttl: Duration) -> Result<Box<dyn Presence>, StoreError> {
        Txn::new().put(key.clone(), value.clone()).check()?;
        self.reachable()?;
        let mut data = self.memory.now();
        let now = self.memory.clock.instant();
        data.apply(vec![Change::Put(key.clone(), value)], Some(self.index), now);
        data.announced += 1;
        let number = data.announced;
        let until = now + ttl;
        data.presences.insert(key.clone(), (number, until));
        self.memory.grown.notify_waiters();
        let (memory, trouble) = (Arc::clone(&self.memory), Arc::clone(&self.trouble));
        Ok(Box::new(There { memory, trouble, key, number, ttl }))
    }

    async fn usage(&self) -> Result<Usage, StoreError> {
        self.reachable()?;
        Ok(Usage { allocated_bytes: 0, used_bytes: 0, quota_bytes: None, full: false })
    }

    async fn compact(&self, until: Revision) -> Result<(), StoreError> {
        self.reachable()?;
        let mut data = self.memory.now();
        data.oldest = data.oldest.max(until.min(data.revision));
        Ok(())
    }

    async fn reclaim(&self) -> Result<(), StoreError> {
        self.reachable()
    }
}

/// A watch of a prefix.
struct Watching {
    memory: Arc<Memory>,
    trouble: Arc<Mutex<Trouble>>,
    prefix: Key,
    after: Revision,
    breaks: u64,
}

impl Watching {
    /// What comes next, as far as it may be seen, and when the next presence runs out.
    fn look(&mut self) -> Result<(Option<WatchBatch>, Option<Duration>), StoreError> {
        let data = self.memory.now();
        let trouble = self.trouble.lock().unwrap_or_else(PoisonError::into_inner);
        if trouble.away {
            return Err(StoreError::Unavailable(made_up()));
        }
        let broken = trouble.breaks.get(self.prefix.as_str()).is_some_and(|breaks| *breaks != self.breaks);
        if broken || self.after < data.oldest {
            return Err(StoreError::Compacted { asked: self.after, oldest: data.revision });
        }
        let until = trouble.lags.get(self.prefix.as_str()).copied().unwrap_or(Revision::MAX);
        let from = data.made.partition_point(|made| made.revision <= self.after);
        for made in data.made[from..].iter().take_while(|made| made.revision <= until) {
            self.after = made.revision;
            let ours = |event: &&Event| event.key().as_str().starts_with(self.prefix.as_str());
            let events: Vec<_> = made.events.iter().filter(ours).cloned().collect();
            if !events.is_empty() {
                return Ok((Some(WatchBatch { revision: made.revision, events }), None));
            }
        }
        let now = self.memory.clock.instant();
        Ok((None, data.presences.values().map(|(_, until)| until.saturating_duration_since(now)).min()))
    }
}

#[async_trait]
impl Watch for Watching {
    async fn next(&mut self) -> Result<WatchBatch, StoreError> {
        let memory = Arc::clone(&self.memory);
        loop {
            let mut grown = pin!(memory.grown.notified());
            grown.as_mut().enable(); // before the look, so that nothing is missed between it and the wait
            let (batch, runs_out) = self.look()?;
            if let Some(batch) = batch {
                return Ok(batch);
            }
            let time = async {
                match runs_out {
                    Some(time) => memory.clock.sleep(time).await,
                    None => std::future::pending().await,
                }
            };
            tokio::select! {
                biased;
                () = grown => {}
                () = time => {}
            }
        }
    }
}

/// A presence.
struct There {
    memory: Arc<Memory>,
    trouble: Arc<Mutex<Trouble>>,
    key: Key,
    number: u64,
    ttl: Duration,
}

impl There {
    fn reachable(&self) -> Result<(), StoreError> {
        let away = self.trouble.lock().unwrap_or_else(PoisonError::into_inner).away;
        if away { Err(StoreError::Unavailable(made_up())) } else { Ok(()) }
    }
}

#[async_trait]
impl Presence for There {
    async fn renew(&self) -> Result<(), StoreError> {
        self.reachable()?;
        let until = self.memory.clock.instant() + self.ttl;
        let mut data = self.memory.now();
        match data.presences.get_mut(&self.key) {
            Some(there) if there.0 == self.number => {
                there.1 = until;
                Ok(())
            }
            _ => Err(StoreError::PresenceLost),
        }
    }

    async fn withdraw(self: Box<Self>) -> Result<(), StoreError> {
        self.reachable()?;
        let mut data = self.memory.now();
        if data.presences.get(&self.key).is_none_or(|there| there.0 != self.number) {
            return Err(StoreError::PresenceLost);
        }
        data.apply(vec![Change::Delete(self.key.clone())], None, self.memory.clock.instant());
        self.memory.grown.notify_waiters();
        Ok(())
    }
}
