//! What waits for approval, in memory: fed by the store's watch. It is in no queue, so nobody hands it out; here it is known how much there is
//! and what has waited too long, without looking at each execution again and again.

use std::collections::{BTreeSet, HashMap};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use octavius_core::{ExecutionId, Timestamp};
use octavius_store::record::ApprovalWaitRecord;
use octavius_store::{Entry, Event, Revision, codec, key};

use crate::mirror::Listener;

/// Everything that waits for approval. Clones are of the same.
#[derive(Debug, Clone, Default)]
pub(crate) struct Awaiting(Arc<Mutex<Waits>>);

#[derive(Debug, Default)]
struct Waits {
    by_id: HashMap<ExecutionId, Timestamp>,
    expiries: BTreeSet<(Timestamp, ExecutionId)>,
}

impl Waits {
    /// A record that cannot be read is left where it is and told.
    fn insert(&mut self, entry: &Entry) {
        let Some(id) = key::execution_of(&entry.key) else { return };
        match codec::decode::<ApprovalWaitRecord>(entry) {
            Ok(record) => {
                self.remove(id);
                self.by_id.insert(id, record.expires_at);
                self.expiries.insert((record.expires_at, id));
            }
            Err(error) => tracing::error!(execution = %id, %error, "when its approvals run out cannot be read"),
        }
    }

    fn remove(&mut self, id: ExecutionId) {
        if let Some(expires_at) = self.by_id.remove(&id) {
            self.expiries.remove(&(expires_at, id));
        }
    }
}

impl Awaiting {
    fn lock(&self) -> MutexGuard<'_, Waits> {
        // A panic while it was held leaves plain maps behind, which the next listing puts right.
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// How many wait.
    pub(crate) fn count(&self) -> usize {
        self.lock().by_id.len()
    }

    /// Those that have waited longer than they may, at most `limit` of them, the longest first.
    pub(crate) fn expired(&self, now: Timestamp, limit: usize) -> Vec<ExecutionId> {
        self.lock().expiries.iter().take_while(|(expires, _)| *expires <= now).take(limit).map(|(_, id)| *id).collect()
    }

    /// One of [`Awaiting::expired`] is seen to, whatever the watch shows when.
    pub(crate) fn forget(&self, id: ExecutionId) {
        self.lock().remove(id);
    }
}

impl Listener for Awaiting {
    fn reset(&mut self, entries: Vec<Entry>, _: Revision) {
        let mut waits = self.lock();
        *waits = Waits::default();
        entries.iter().for_each(|entry| waits.insert(entry));
    }

    fn change(&mut self, event: Event, _: Revision) {
        let mut waits = self.lock();
        match event {
            Event::Put(entry) => waits.insert(&entry),
            Event::Delete(key) => {
                if let Some(id) = key::execution_of(&key) {
                    waits.remove(id);
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(second: i64) -> Timestamp {
        Timestamp::from_second(second).unwrap()
    }

    fn entry(id: u128, expires: i64) -> Entry {
        let key = key::awaits_approval(ExecutionId::from_bits(id));
        let value = codec::encode(&ApprovalWaitRecord { expires_at: at(expires) });
        Entry { key, value, created: 1, modified: 1 }
    }

    #[test]
    fn what_has_waited_longest_ends_first_and_what_does_not_wait_any_more_is_forgotten() {
        let mut awaiting = Awaiting::default();
        let ids = |ids: &[u128]| ids.iter().map(|id| ExecutionId::from_bits(*id)).collect::<Vec<_>>();
        awaiting.reset(vec![entry(1, 30), entry(2, 10), entry(3, 20)], 1);
        assert_eq!(awaiting.expired(at(9), 10), []);
        assert_eq!(awaiting.expired(at(30), 2), ids(&[2, 3]));
        awaiting.change(Event::Delete(entry(2, 10).key), 2);
        awaiting.change(Event::Put(entry(4, 5)), 3);
        awaiting.forget(ExecutionId::from_bits(3));
        assert_eq!((awaiting.expired(at(30), 10), awaiting.count()), (ids(&[4, 1]), 2));
        awaiting.reset(vec![entry(1, 30)], 4);
        assert_eq!((awaiting.expired(at(30), 10), awaiting.count()), (ids(&[1]), 1));
    }
}
