//! What the fleet is fed with from the store: who is registered, who is there, who holds what.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Instant;

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
        let mut state = self.0.lock();
        for executor in present.keys() {
            state.absent_since.remove(executor);
        }
        for executor in std::mem::replace(&mut state.present, present).into_keys() {
            if !state.present.contains_key(&executor) {
                state.absent_since.entry(executor).or_insert_with(Instant::now);
            }
        }
    }

    fn change(&mut self, event: Event, _: Revision) {
        let Some(executor) = executor_of(event.key()) else { return };
        let mut state = self.0.lock();
        match event {
            Event::Put(entry) => {
                state.absent_since.remove(&executor);
                state.present.insert(executor, entry.value);
            }
            Event::Delete(_) => {
                state.present.remove(&executor);
                state.absent_since.entry(executor).or_insert_with(Instant::now);
            }
        }
    }
}

/// Feeds the fleet with who is registered, and what they said of themselves: everything under `executor/`.
pub(crate) struct Registrations(pub(crate) Arc<Fleet>);

/// What the fleet needs of a record. One that cannot be read is told and passed over.
fn registered(entry: &Entry) -> Option<(ExecutorId, Registered)> {
    match codec::decode::<ExecutorRecord>(entry) {
        Ok(record) => {
            let (labels, capacity) = record.session.map(|session| (session.labels, session.capacity)).unzip();
            let capacity = usize::try_from(capacity.unwrap_or(0)).unwrap_or(usize::MAX);
            Some((record.id, Registered { token: record.token, labels: labels.unwrap_or_default(), capacity }))
        }
        Err(error) => {
            tracing::error!(%error, "an executor's record cannot be read");
            None
        }
    }
}

impl Listener for Registrations {
    fn reset(&mut self, entries: Vec<Entry>, _: Revision) {
        let all = entries.iter().filter_map(registered).collect();
        self.0.lock().registered = all;
    }

    fn change(&mut self, event: Event, _: Revision) {
        match event {
            Event::Put(entry) => {
                if let Some((executor, known)) = registered(&entry) {
                    self.0.lock().registered.insert(executor, known);
                }
            }
            Event::Delete(key) => {
                if let Some(executor) = executor_of(&key) {
                    self.0.lock().registered.remove(&executor);
                }
            }
        }
    }
}
