//! The last changes, in memory: what watches are fed from, and what is undone to read an older revision.
//!
//! A change is staged here before it is written to the file and published once it is durable. So readers of the file never see a
//! change that is not here, and watches never see one that is not in the file.
//!
//! A watch does not hold values, only the revisions that it still has to deliver: however slow it is, it costs a number for each revision
//! that it has not read, and a watch that falls behind the history ends when it is read.

use std::collections::{BTreeMap, HashMap, VecDeque};
use std::sync::Arc;

use bytes::Bytes;
use tokio::sync::Notify;

use super::closed;
use super::file::Stored;
use crate::api::{Event, Key, Revision, StoreError, WatchBatch};

/// One change of one key.
#[derive(Debug)]
pub(super) struct Change {
    pub(super) revision: Revision,
    pub(super) key: Key,
    pub(super) before: Option<Stored>,
    pub(super) after: Option<Stored>,
}

impl Change {
    /// What it takes in memory, about: allocations and the queue's slot are counted too.
    fn bytes(&self) -> usize {
        let value = |stored: &Option<Stored>| stored.as_ref().map_or(0, |stored| stored.value.len() + 32);
        size_of::<Self>() + self.key.as_str().len() + 32 + value(&self.before) + value(&self.after)
    }
}

/// A copy that shares no memory with a larger buffer that its sender may have cut it from, so that the history is as large as it says.
pub(super) fn own(value: &Bytes) -> Bytes {
    Bytes::copy_from_slice(value)
}

#[derive(Debug)]
struct Watcher {
    prefix: Key,
    /// The revision up to which everything was delivered.
    seen: Revision,
    pending: VecDeque<Revision>,
    /// Changes were missed: the history was lost altogether.
    is_cut: bool,
    wake: Arc<Notify>,
}

/// The history and who watches it.
#[derive(Debug)]
pub(super) struct Feed {
    changes: VecDeque<Change>,
    bytes: usize,
    max_changes: usize,
    max_bytes: usize,
    /// All changes of revisions greater than this one are in `changes`.
    floor: Revision,
    /// The newest durable revision; what is staged lies above.
    published: Revision,
    watchers: HashMap<u64, Watcher>,
    next_watcher: u64,
    /// Watchers by prefix, and how many prefixes of each length there are: a change asks for each of these few lengths of its key, so
    /// that its cost does not grow with the number of watchers.
    by_prefix: HashMap<Box<[u8]>, Vec<u64>>,
    lengths: BTreeMap<usize, usize>,
    is_closed: bool,
}

impl Feed {
    pub(super) fn new(revision: Revision, max_changes: usize, max_bytes: usize) -> Self {
        Self {
            changes: VecDeque::new(),
            bytes: 0,
            max_changes,
            max_bytes,
            floor: revision,
            published: revision,
            watchers: HashMap::new(),
            next_watcher: 0,
            by_prefix: HashMap::new(),
            lengths: BTreeMap::new(),
            is_closed: false,
        }
    }

    pub(super) fn published(&self) -> Revision {
        self.published
    }

    /// Takes in changes that are about to be written to the file.
    pub(super) fn stage(&mut self, changes: Vec<Change>) {
        for change in changes {
            self.bytes += change.bytes();
            self.changes.push_back(change);
        }
    }

    /// Forgets what was staged: it did not come to be.
    pub(super) fn unstage(&mut self) {
        for change in self.changes.drain(self.first_after(self.published)..) {
            self.bytes -= change.bytes();
        }
    }

    /// What was staged is durable, up to `revision`. Answers with whom to wake, which is best done without the lock.
    pub(super) fn publish(&mut self, revision: Revision) -> Vec<Arc<Notify>> {
        let mut woken = Vec::new();
        for change in self.changes.range(self.first_after(self.published)..) {
            let key = change.key.as_str().as_bytes();
            for (&length, _) in self.lengths.range(..=key.len()) {
                for id in self.by_prefix.get(&key[..length]).into_iter().flatten() {
                    let Some(watcher) = self.watchers.get_mut(id) else { continue };
                    if change.revision > watcher.seen && watcher.pending.back() != Some(&change.revision) {
                        watcher.pending.push_back(change.revision);
                        woken.push(Arc::clone(&watcher.wake));
                    }
                }
            }
        }
        self.published = revision;
        self.trim();
        woken
    }

    /// The file now shows `revision`, and how it came there is not known: watches have missed something.
    pub(super) fn cut(&mut self, revision: Revision) -> Vec<Arc<Notify>> {
        self.changes.clear();
        self.bytes = 0;
        self.floor = revision;
        self.published = revision;
        self.watchers.values_mut().for_each(|watcher| watcher.is_cut = true);
        self.watchers.values().map(|watcher| Arc::clone(&watcher.wake)).collect()
    }

    /// Ends all watches, once they have delivered what is published.
    pub(super) fn close(&mut self) -> Vec<Arc<Notify>> {
        self.is_closed = true;
        self.watchers.values().map(|watcher| Arc::clone(&watcher.wake)).collect()
    }

    /// What to put back over a snapshot of `newest` to see the keys that `is_asked` as they were at `at`.
    pub(super) fn undo(
        &self,
        at: Revision,
        newest: Revision,
        is_asked: impl Fn(&Key) -> bool,
    ) -> Result<BTreeMap<Key, Option<Stored>>, StoreError> {
        if at < self.floor {
            return Err(StoreError::Compacted { asked: at, oldest: self.floor });
        }
        let mut undo = BTreeMap::new();
        // From the oldest on, so that of a key that changed several times the first state stays.
        for change in self.changes.range(self.first_after(at)..).take_while(|change| change.revision <= newest) {
            if is_asked(&change.key) && !undo.contains_key(&change.key) {
                undo.insert(change.key.clone(), change.before.clone());
            }
        }
        Ok(undo)
    }

    /// Begins to watch; what has happened since `after` is delivered first.
    pub(super) fn watch(&mut self, prefix: &Key, after: Revision) -> Result<(u64, Arc<Notify>), StoreError> {
        if self.is_closed {
            return Err(closed());
        }
        if after < self.floor {
            return Err(StoreError::Compacted { asked: after, oldest: self.floor });
        }
        let mut pending = VecDeque::new();
        for change in self.changes.range(self.first_after(after)..).take_while(|change| change.revision <= self.published) {
            if change.key.as_str().starts_with(prefix.as_str()) && pending.back() != Some(&change.revision) {
                pending.push_back(change.revision);
            }
        }
        let id = self.next_watcher;
        self.next_watcher += 1;
        let bytes = prefix.as_str().as_bytes();
        let ids = self.by_prefix.entry(bytes.into()).or_default();
        if ids.is_empty() {
            *self.lengths.entry(bytes.len()).or_default() += 1;
        }
        ids.push(id);
        let wake = Arc::new(Notify::new());
        let watcher = Watcher { prefix: prefix.clone(), seen: after, pending, is_cut: false, wake: Arc::clone(&wake) };
        self.watchers.insert(id, watcher);
        Ok((id, wake))
    }

    /// Ends a watch.
    pub(super) fn unwatch(&mut self, id: u64) {
        let Some(watcher) = self.watchers.remove(&id) else { return };
        let bytes = watcher.prefix.as_str().as_bytes();
        let Some(ids) = self.by_prefix.get_mut(bytes) else { return };
        ids.retain(|other| *other != id);
        if ids.is_empty() {
            self.by_prefix.remove(bytes);
            if let Some(count) = self.lengths.get_mut(&bytes.len()) {
                *count -= 1;
                if *count == 0 {
                    self.lengths.remove(&bytes.len());
                }
            }
        }
    }

    /// What a watch delivers next, if there is anything yet.
    pub(super) fn next(&mut self, id: u64) -> Option<Result<WatchBatch, StoreError>> {
        let (floor, is_closed) = (self.floor, self.is_closed);
        let watcher = self.watchers.get_mut(&id)?;
        let compacted = Some(Err(StoreError::Compacted { asked: watcher.seen, oldest: floor }));
        if watcher.is_cut {
            return compacted;
        }
        let Some(revision) = watcher.pending.pop_front() else { return is_closed.then(|| Err(closed())) };
        if revision <= floor {
            return compacted;
        }
        watcher.seen = revision;
        let prefix = watcher.prefix.clone();
        let changes = self.changes.range(self.first_after(revision - 1)..).take_while(|change| change.revision == revision);
        let events =
            changes.filter(|change| change.key.as_str().starts_with(prefix.as_str())).map(|change| match &change.after {
                Some(stored) => Event::Put(stored.clone().entry(change.key.clone())),
                None => Event::Delete(change.key.clone()),
            });
        Some(Ok(WatchBatch { revision, events: events.collect() }))
    }

    /// How many watches there are.
    #[cfg(test)]
    pub(super) fn watchers(&self) -> usize {
        debug_assert_eq!(self.lengths.values().sum::<usize>(), self.by_prefix.len());
        self.watchers.len()
    }

    /// The index of the first change after `revision`.
    fn first_after(&self, revision: Revision) -> usize {
        self.changes.partition_point(|change| change.revision <= revision)
    }

    /// Drops whole transactions, oldest first, until the rest is within bounds.
    fn trim(&mut self) {
        while self.changes.len() > self.max_changes || self.bytes > self.max_bytes {
            let Some(oldest) = self.changes.front().map(|change| change.revision) else { break };
            for change in self.changes.drain(..self.first_after(oldest)) {
                self.bytes -= change.bytes();
            }
            self.floor = oldest;
        }
    }
}
