//! What waits, in memory: fed by the store's watch, in the order in which it will be handed out. No work here grows with the number of
//! executions that wait.

use std::collections::{BTreeSet, HashMap};

use octavius_core::{ExecutionId, Labels, Timestamp};
use octavius_store::record::QueueRecord;
use octavius_store::{Entry, Key, Revision, codec, key};

/// A place in line: higher priorities first, then in order of arrival.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
struct Place {
    /// 0 is the highest.
    rank: u8,
    arrived: Revision,
    id: ExecutionId,
}

/// Executions that wait for the same kind of executor.
#[derive(Debug)]
struct Pool {
    /// What their executor must have.
    selector: Labels,
    line: BTreeSet<Place>,
}

/// One execution that waits.
#[derive(Debug, Clone)]
pub(crate) struct Waiting {
    pub(crate) id: ExecutionId,
    place: Place,
    pool: String,
    selector: Labels,
    expires_at: Timestamp,
}

/// Everything that waits.
#[derive(Debug, Default)]
pub(crate) struct Queue {
    pools: HashMap<String, Pool>,
    places: HashMap<ExecutionId, (String, Place, Timestamp)>,
    expiries: BTreeSet<(Timestamp, ExecutionId)>,
}

impl Queue {
    /// Takes in what the store says waits. A record that cannot be read is left where it is and told.
    pub(crate) fn insert(&mut self, entry: &Entry) {
        let Some((pool, place)) = place_of(entry) else {
            tracing::error!(key = %entry.key, "not a place in the queue");
            return;
        };
        match codec::decode::<QueueRecord>(entry) {
            Ok(QueueRecord { selector, expires_at }) => {
                self.put(Waiting { id: place.id, place, pool, selector, expires_at });
            }
            Err(error) => tracing::error!(%error, "a place in the queue cannot be read"),
        }
    }

    /// Puts an execution in line, or back to where it was taken from.
    pub(crate) fn put(&mut self, waiting: Waiting) {
        let Waiting { id, place, pool, selector, expires_at } = waiting;
        self.remove(id);
        self.places.insert(id, (pool.clone(), place, expires_at));
        self.expiries.insert((expires_at, id));
        self.pools.entry(pool).or_insert_with(|| Pool { selector, line: BTreeSet::new() }).line.insert(place);
    }

    /// Takes an execution out.
    pub(crate) fn remove(&mut self, id: ExecutionId) {
        let Some((name, place, expires_at)) = self.places.remove(&id) else { return };
        self.expiries.remove(&(expires_at, id));
        if let Some(pool) = self.pools.get_mut(&name) {
            pool.line.remove(&place);
            if pool.line.is_empty() {
                self.pools.remove(&name);
            }
        }
    }

    /// Takes out the execution of this key.
    pub(crate) fn remove_key(&mut self, key: &Key) {
        if let Some(id) = key::execution_of(key) {
            self.remove(id);
        }
    }

    /// Forgets everything.
    pub(crate) fn clear(&mut self) {
        *self = Self::default();
    }

    /// How many wait.
    #[cfg(test)]
    pub(crate) fn len(&self) -> usize {
        self.places.len()
    }

    /// The first in line whose executor may be one that `fits` says yes to; it is taken out.
    pub(crate) fn take<T>(&mut self, mut fits: impl FnMut(&Labels) -> Option<T>) -> Option<(Waiting, T)> {
        let mut firsts: Vec<(Place, &String, &Pool)> =
            self.pools.iter().filter_map(|(name, pool)| pool.line.first().map(|place| (*place, name, pool))).collect();
        firsts.sort_unstable_by_key(|(place, ..)| *place);
        let (place, name, pool, found) =
            firsts.into_iter().find_map(|(place, name, pool)| Some((place, name, pool, fits(&pool.selector)?)))?;
        let (_, _, expires_at) = self.places.get(&place.id)?;
        let waiting =
            Waiting { id: place.id, place, pool: name.clone(), selector: pool.selector.clone(), expires_at: *expires_at };
        self.remove(place.id);
        Some((waiting, found))
    }

    /// Those that have waited longer than they may, at most `limit` of them, the longest first.
    pub(crate) fn expired(&self, now: Timestamp, limit: usize) -> Vec<ExecutionId> {
        self.expiries.iter().take_while(|(expires, _)| *expires <= now).map(|(_, id)| *id).take(limit).collect()
    }

    /// How many of the same pool are before this one.
    pub(crate) fn ahead_of(&self, id: ExecutionId) -> Option<usize> {
        let (name, place, _) = self.places.get(&id)?;
        // Counted only for someone who asks, and cut where nobody reads the number any more.
        Some(self.pools.get(name)?.line.range(..place).take(1000).count())
    }
}

fn place_of(entry: &Entry) -> Option<(String, Place)> {
    let mut parts = entry.key.as_str().split('/').skip(1);
    let pool = parts.next()?.to_owned();
    let rank = parts.next()?.parse().ok()?;
    let id = parts.next()?.parse().ok()?;
    Some((pool, Place { rank, arrived: entry.created, id }))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn entry(pool: &[(&str, &str)], priority: u8, id: u128, created: Revision) -> Entry {
        let selector: Labels = pool.iter().map(|(k, v)| ((*k).to_owned(), (*v).to_owned())).collect();
        let key = key::queued(&octavius_core::label::pool(&selector), priority, ExecutionId::from_bits(id));
        let record = QueueRecord { selector, expires_at: Timestamp::from_second(created as i64).unwrap() };
        Entry { key, value: codec::encode(&record), created, modified: created }
    }

    fn take(queue: &mut Queue, labels: &[(&str, &str)]) -> Option<ExecutionId> {
        let labels: Labels = labels.iter().map(|(k, v)| ((*k).to_owned(), (*v).to_owned())).collect();
        queue.take(|selector| octavius_core::label::matches(selector, &labels).then_some(())).map(|(waiting, ())| waiting.id)
    }

    #[test]
    fn priority_goes_first_then_arrival_and_a_pool_without_executor_holds_nobody_up() {
        let mut queue = Queue::default();
        queue.insert(&entry(&[("vpc", "web")], 9, 1, 1));
        queue.insert(&entry(&[], 5, 2, 3));
        queue.insert(&entry(&[], 5, 3, 2));
        queue.insert(&entry(&[], 7, 4, 4));
        let order: Vec<u128> = std::iter::from_fn(|| take(&mut queue, &[]))
            .map(|id| (1..9).find(|b| ExecutionId::from_bits(*b) == id).unwrap())
            .collect();
        assert_eq!(order, [4, 3, 2]);
        assert_eq!(queue.len(), 1);
        assert_eq!(take(&mut queue, &[("vpc", "web"), ("zone", "a")]), Some(ExecutionId::from_bits(1)));
    }

    #[test]
    fn what_waited_too_long_is_found_and_an_entry_seen_twice_counts_once() {
        let mut queue = Queue::default();
        queue.insert(&entry(&[], 5, 1, 10));
        queue.insert(&entry(&[], 5, 1, 10));
        queue.insert(&entry(&[], 5, 2, 20));
        assert_eq!(queue.len(), 2);
        assert_eq!(queue.expired(Timestamp::from_second(15).unwrap(), 9), [ExecutionId::from_bits(1)]);
        assert_eq!(queue.ahead_of(ExecutionId::from_bits(2)), Some(1));
    }

    /// A claim that failed for the store's sake must not cost an execution its place, let alone lose it.
    #[test]
    fn what_is_put_back_stands_where_it_stood() {
        let mut queue = Queue::default();
        for id in 1..=3 {
            queue.insert(&entry(&[("vpc", "web")], 5, id, id as u64));
        }
        let (first, ()) = queue.take(|_| Some(())).unwrap();
        assert_eq!(queue.expired(Timestamp::from_second(1).unwrap(), 9), []);
        queue.put(first);
        assert_eq!(queue.expired(Timestamp::from_second(1).unwrap(), 9), [ExecutionId::from_bits(1)]);
        assert_eq!(take(&mut queue, &[("vpc", "web")]), Some(ExecutionId::from_bits(1)));
    }
}
