//! What is to be seen of the fleet: for those who ask why something waits, and for the metrics.

use std::time::Instant;

use octavius_core::{ExecutorId, Timestamp};

use super::{Fleet, State};
use crate::waiting::ExecutorFacts;

impl Fleet {
    /// What is known of every executor that is there, or ever was, in order of their ids.
    pub(crate) fn facts(&self) -> Vec<ExecutorFacts> {
        let state = self.lock();
        let now = (self.clock.now(), self.clock.instant());
        let here = state.sessions.iter().map(|(id, session)| ExecutorFacts {
            no_room: session.full,
            present: true,
            ..state.fact(id, session.labels.clone(), session.capacity, now)
        });
        let known = state.registered.iter().filter(|(id, known)| known.capacity > 0 && !state.sessions.contains_key(*id));
        let elsewhere = known.map(|(id, known)| state.fact(id, known.labels.clone(), known.capacity, now));
        let mut facts: Vec<_> = here.chain(elsewhere).collect();
        drop(state);
        facts.sort_unstable_by(|a, b| a.id.cmp(&b.id));
        facts
    }

    /// How many executors are registered that never had a session.
    pub(crate) fn never_there(&self) -> usize {
        let state = self.lock();
        state.registered.iter().filter(|(id, known)| known.capacity == 0 && !state.is_present(id)).count()
    }
}

impl State {
    fn fact(&self, id: &ExecutorId, labels: octavius_core::Labels, capacity: usize, now: (Timestamp, Instant)) -> ExecutorFacts {
        let present = self.is_present(id);
        let away = self.absent_since.get(id).filter(|_| !present);
        ExecutorFacts {
            id: id.clone(),
            labels,
            capacity,
            taken: self.taken(id),
            no_room: false,
            full_since: self.full_since.get(id).copied(),
            present,
            absent_since: away.and_then(|since| now.0.checked_sub(now.1.saturating_duration_since(*since)).ok()),
            draining: self.registered.get(id).and_then(|known| known.draining.clone()).map(|drain| (drain.by, drain.at)),
        }
    }

    /// Notes whether an executor has a free slot, after anything that bears on it: since when it has had none is told to whoever waits.
    pub(super) fn note_room(&mut self, executor: &ExecutorId) {
        let capacity = match (self.sessions.get(executor), self.registered.get(executor)) {
            (Some(session), _) if session.full => Some(0),
            (Some(session), _) => Some(session.capacity),
            (None, Some(known)) if known.capacity > 0 => Some(known.capacity),
            (None, _) => None,
        };
        if capacity.is_none_or(|capacity| self.taken(executor) < capacity) {
            self.full_since.remove(executor);
        } else if !self.full_since.contains_key(executor) {
            self.full_since.insert(executor.clone(), self.clock.now());
        }
    }

    /// The same of every executor, after a listing.
    pub(super) fn note_room_of_all(&mut self) {
        let all: Vec<ExecutorId> = self.sessions.keys().chain(self.registered.keys()).cloned().collect();
        all.iter().for_each(|executor| self.note_room(executor));
        let State { full_since, sessions, registered, .. } = self;
        full_since.retain(|executor: &ExecutorId, _| sessions.contains_key(executor) || registered.contains_key(executor));
    }
}
