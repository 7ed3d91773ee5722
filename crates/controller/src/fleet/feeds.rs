//! What the fleet is fed with from the store: who is registered, who is there, who holds what.

use std::collections::HashMap;
use std::sync::Arc;

use octavius_core::ExecutorId;
use octavius_store::record::ExecutorRecord;
use octavius_store::{Entry, Event, Key, Revision, codec};

use super::{Fleet, Registered};
use crate::mirror::Listener;

/// Feeds the fleet with what is held: everything under `own/`.
pub(crate) struct Holdings(pub(crate) Arc<Fleet>);

impl Listener for Holdings {
    fn reset(&mut self, entries: Vec<Entry>, revision: Revision) {
        self.0.reset(&entries, revision);
    }

    fn change(&mut self, event: Event, _: Revision) {
        match event {
            Event::Put(entry) => self.0.hold(&entry),
            Event::Delete(key) => self.0.release(&key),
        }
    }
}

/// The executor that a key under `presence/` or `executor/` names.
fn executor_of(key: &Key) -> Option<ExecutorId> {
    key.as_str().rsplit('/').next()?.parse().ok()
}

/// Feeds the fleet with who is there: everything under `presence/`.
pub(crate) struct Presences(pub(crate) Arc<Fleet>);

impl Listener for Presences {
    fn reset(&mut self, entries: Vec<Entry>, _: Revision) {
        let present: HashMap<_, _> =
            entries.into_iter().filter_map(|entry| Some((executor_of(&entry.key)?, entry.value))).collect();
        let now = self.0.clock.instant();
        let mut state = self.0.lock();
        for executor in present.keys() {
            state.absent_since.remove(executor);
        }
        for executor in std::mem::replace(&mut state.present, present).into_keys() {
            if !state.present.contains_key(&executor) {
                state.absent_since.entry(executor).or_insert(now);
            }
        }
    }

    fn change(&mut self, event: Event, _: Revision) {
        let Some(executor) = executor_of(event.key()) else { return };
        let now = self.0.clock.instant();
        let mut state = self.0.lock();
        match event {
            Event::Put(entry) => {
                state.absent_since.remove(&executor);
                state.present.insert(executor, entry.value);
            }
            Event::Delete(_) => {
                state.present.remove(&executor);
                state.absent_since.entry(executor).or_insert(now);
            }
        }
    }
}

/// Feeds the fleet with who is registered, and what they said of themselves: everything under `executor/`.
pub(crate) struct Registrations(pub(crate) Arc<Fleet>);

/// What the fleet needs of a record. One that cannot be read is told and passed over.
fn registered(entry: &Entry) -> Option<(ExecutorId, Registered)> {
    match codec::decode::<ExecutorRecord>(entry) {
        Ok(ExecutorRecord { id, token, session, draining, registered_at: _, next_token: _ }) => {
            let (labels, capacity) = session.map(|session| (session.labels, session.capacity)).unzip();
            let capacity = usize::try_from(capacity.unwrap_or(0)).unwrap_or(usize::MAX);
            let labels = labels.unwrap_or_default();
            Some((id, Registered { token, labels, capacity, draining, modified: entry.modified }))
        }
        Err(error) => {
            tracing::error!(%error, "an executor's record cannot be read");
            None
        }
    }
}

impl Fleet {
    /// Takes in an executor's record as it was read, written, or shown by the watch. Old news changes nothing.
    pub(crate) fn note_record(&self, entry: &Entry) {
        let Some((executor, known)) = registered(entry) else { return };
        let mut state = self.lock();
        if state.registered.get(&executor).is_some_and(|newer| newer.modified > known.modified) {
            return;
        }
        state.registered.insert(executor.clone(), known);
        state.note_room(&executor);
        if state.follow_record(&executor) {
            self.offer(&mut state, &executor);
            drop(state);
            self.changed.notify_one();
        }
    }

    /// An executor's record went at `revision`, and with it the executor.
    pub(crate) fn forget_record(&self, executor: &ExecutorId, revision: Revision) {
        let mut state = self.lock();
        if state.registered.get(executor).is_some_and(|known| known.modified > revision) {
            return; // it has registered anew
        }
        state.registered.remove(executor);
        state.follow_record(executor);
        if let Some(session) = state.sessions.get(executor) {
            session.end.cancel();
        }
        self.offer(&mut state, executor);
    }
}

impl Listener for Registrations {
    fn reset(&mut self, entries: Vec<Entry>, revision: Revision) {
        let all: HashMap<_, _> = entries.iter().filter_map(registered).collect();
        let mut state = self.0.lock();
        state.registered.retain(|_, known| known.modified > revision);
        for (executor, known) in all {
            state.registered.entry(executor).or_insert(known);
        }
        state.note_room_of_all();
        let sessions: Vec<_> = state.sessions.keys().cloned().collect();
        for executor in sessions {
            if state.follow_record(&executor) {
                self.0.offer(&mut state, &executor);
            }
        }
        drop(state);
        self.0.changed.notify_one();
    }

    fn change(&mut self, event: Event, revision: Revision) {
        match event {
            Event::Put(entry) => self.0.note_record(&entry),
            Event::Delete(key) => {
                if let Some(executor) = executor_of(&key) {
                    self.0.forget_record(&executor, revision);
                }
            }
        }
    }
}
