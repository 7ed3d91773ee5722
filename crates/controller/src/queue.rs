//! What waits, in memory: fed by the store's watch and by submissions as they are made, in the order in which it will be handed out. No
//! work here grows with the number of executions that wait, but for the one look at each when controllers come and go.

use std::collections::{BTreeSet, HashMap, HashSet};
use std::sync::Arc;

use octavius_core::{Execution, ExecutionId, Labels, Timestamp};
use octavius_store::record::QueueRecord;
use octavius_store::{Entry, Key, Revision, codec, key};

use crate::engine;
use crate::slices::Slices;

/// By how many revisions the first of another controller's slice must have come before the first of our own to go first all the same.
/// Where both controllers hand out, their lines move on alike and they hardly ever meet; where one cannot, its slice is not left behind
/// for long. An execution makes about ten revisions in its life.
const LEAD: Revision = 1000;

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
    /// Those of our own slice.
    own: BTreeSet<Place>,
    /// Those of other controllers' slices.
    foreign: BTreeSet<Place>,
}

impl Pool {
    fn first(&self) -> Option<&Place> {
        match (self.own.first(), self.foreign.first()) {
            (Some(own), Some(foreign)) => {
                let waits_longer = foreign.rank == own.rank && foreign.arrived.saturating_add(LEAD) < own.arrived;
                Some(if foreign.rank < own.rank || waits_longer { foreign } else { own })
            }
            (own, foreign) => own.or(foreign),
        }
    }

    fn line(&mut self, own: bool) -> &mut BTreeSet<Place> {
        if own { &mut self.own } else { &mut self.foreign }
    }

    fn is_empty(&self) -> bool {
        self.own.is_empty() && self.foreign.is_empty()
    }
}

/// Where an execution waits. There may be very many of these: they are kept small.
#[derive(Debug, Clone)]
struct Spot {
    pool: Arc<str>,
    place: Place,
    expires_at: Timestamp,
}

/// An execution that was taken out of line to be claimed.
#[derive(Debug, Clone)]
pub(crate) struct Waiting {
    pub(crate) id: ExecutionId,
    spot: Spot,
    selector: Labels,
}

/// An execution that has waited too long.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Expired {
    pub(crate) id: ExecutionId,
    arrived: Revision,
}

/// Everything that waits.
#[derive(Debug, Default)]
pub(crate) struct Queue {
    slices: Slices,
    pools: HashMap<Arc<str>, Pool>,
    spots: HashMap<ExecutionId, Spot>,
    expiries: BTreeSet<(Timestamp, ExecutionId)>,
    /// Those that were taken out to be claimed, and when they had arrived: until the watch has shown that they are gone, what it shows of
    /// them is old.
    taken: HashMap<ExecutionId, Revision>,
    /// Up to here the watch has shown everything.
    shown: Revision,
}

impl Queue {
    /// Takes in what the store says waits, and up to which revision it has said so. A record that cannot be read is left where it is and
    /// told.
    pub(crate) fn insert(&mut self, entry: &Entry, shown: Revision) {
        self.shown = self.shown.max(shown);
        let Some((pool, place)) = place_of(&entry.key, entry.created) else {
            tracing::error!(key = %entry.key, "not a place in the queue");
            return;
        };
        // Most of what comes was submitted here, or is being claimed here already: its record says nothing new.
        let is_known = self.spots.get(&place.id).is_some_and(|known| known.place == place)
            || self.taken.get(&place.id).is_some_and(|arrived| *arrived >= place.arrived);
        if is_known {
            return;
        }
        match codec::decode::<QueueRecord>(entry) {
            Ok(QueueRecord { selector, expires_at }) => self.arrive(pool, place, expires_at, &selector),
            Err(error) => tracing::error!(%error, "a place in the queue cannot be read"),
        }
    }

    /// Takes in what this controller has just submitted, written at `revision`, without waiting for the watch. Where the watch has come
    /// further already, it has shown this and perhaps the end of it.
    pub(crate) fn submitted(&mut self, execution: &Execution, revision: Revision) {
        if revision > self.shown
            && let Some((pool, place)) = place_of(&engine::queue_key(execution), revision)
        {
            self.arrive(pool, place, execution.waits_until(), &execution.selector);
        }
    }

    fn arrive(&mut self, pool: &str, place: Place, expires_at: Timestamp, selector: &Labels) {
        match self.taken.get(&place.id) {
            Some(arrived) if *arrived >= place.arrived => return, // being claimed; it does not wait twice
            Some(_) => drop(self.taken.remove(&place.id)),
            None => {}
        }
        let pool = self.pools.get_key_value(pool).map_or_else(|| pool.into(), |(name, _)| Arc::clone(name));
        self.put(place.id, Spot { pool, place, expires_at }, selector);
    }

    fn put(&mut self, id: ExecutionId, spot: Spot, selector: &Labels) {
        self.take_out(id);
        let own = self.slices.is_own(id);
        self.expiries.insert((spot.expires_at, id));
        let pool = self.pools.entry(Arc::clone(&spot.pool)).or_insert_with(|| Pool {
            selector: selector.clone(),
            own: BTreeSet::new(),
            foreign: BTreeSet::new(),
        });
        pool.line(own).insert(spot.place);
        self.spots.insert(id, spot);
    }

    /// Puts an execution back to where it was taken from, unless the watch has shown meanwhile that it does not wait there any more.
    pub(crate) fn put_back(&mut self, waiting: Waiting) {
        if self.taken.get(&waiting.id) == Some(&waiting.spot.place.arrived) {
            self.taken.remove(&waiting.id);
            self.put(waiting.id, waiting.spot, &waiting.selector);
        }
    }

    /// Leaves out of line what cannot be handed out, until all that waits is listed anew. Its wait still has an end.
    pub(crate) fn set_aside(&mut self, waiting: Waiting) {
        let Waiting { id, spot, .. } = waiting;
        if self.taken.get(&id) == Some(&spot.place.arrived) {
            self.taken.remove(&id);
            self.expiries.insert((spot.expires_at, id));
            self.spots.insert(id, spot);
        }
    }

    fn take_out(&mut self, id: ExecutionId) -> Option<Spot> {
        let spot = self.spots.remove(&id)?;
        self.expiries.remove(&(spot.expires_at, id));
        let own = self.slices.is_own(id);
        if let Some(pool) = self.pools.get_mut(&spot.pool) {
            pool.line(own).remove(&spot.place);
            if pool.is_empty() {
                self.pools.remove(&spot.pool);
            }
        }
        Some(spot)
    }

    /// The watch has shown, at `shown`, that the execution of this key does not wait any more.
    pub(crate) fn remove(&mut self, key: &Key, shown: Revision) {
        self.shown = self.shown.max(shown);
        if let Some(id) = key::execution_of(key) {
            self.taken.remove(&id);
            self.take_out(id);
        }
    }

    /// Takes in a listing of everything that waits.
    pub(crate) fn reset(&mut self, entries: &[Entry], revision: Revision) {
        self.pools.clear();
        self.spots.clear();
        self.expiries.clear();
        // What is being claimed and is not listed, is over.
        let listed: HashSet<_> = entries.iter().filter_map(|entry| key::execution_of(&entry.key)).collect();
        self.taken.retain(|id, _| listed.contains(id));
        self.shown = revision;
        for entry in entries {
            self.insert(entry, revision);
        }
    }

    /// Takes in who hands out beside us. All that waits is looked at once.
    pub(crate) fn slice(&mut self, slices: Slices) {
        self.slices = slices;
        for pool in self.pools.values_mut() {
            let all: Vec<Place> = pool.own.iter().chain(&pool.foreign).copied().collect();
            let (own, foreign) = all.into_iter().partition(|place| self.slices.is_own(place.id));
            (pool.own, pool.foreign) = (own, foreign);
        }
    }

    /// How many wait.
    #[cfg(test)]
    pub(crate) fn len(&self) -> usize {
        self.spots.len()
    }

    /// The first in line whose executor may be one that `fits` says yes to; it is taken out, to be claimed.
    pub(crate) fn take<T>(&mut self, mut fits: impl FnMut(&Labels) -> Option<T>) -> Option<(Waiting, T)> {
        let mut firsts: Vec<(Place, &Pool)> = self.pools.values().filter_map(|pool| Some((*pool.first()?, pool))).collect();
        firsts.sort_unstable_by_key(|(place, _)| *place);
        let (place, selector, found) =
            firsts.into_iter().find_map(|(place, pool)| Some((place, &pool.selector, fits(&pool.selector)?)))?;
        let (id, selector) = (place.id, selector.clone());
        let spot = self.take_out(id)?;
        self.taken.insert(id, place.arrived);
        Some((Waiting { id, spot, selector }, found))
    }

    /// Those that have waited longer than they may, at most `limit` of them, the longest first.
    pub(crate) fn expired(&self, now: Timestamp, limit: usize) -> Vec<Expired> {
        let expired = self.expiries.iter().take_while(|(expires, _)| *expires <= now).take(limit);
        expired.filter_map(|(_, id)| Some(Expired { id: *id, arrived: self.spots.get(id)?.place.arrived })).collect()
    }

    /// One that had waited too long is seen to. Where it has come anew meanwhile, it stays.
    pub(crate) fn expire(&mut self, expired: Expired) {
        if self.spots.get(&expired.id).is_some_and(|spot| spot.place.arrived == expired.arrived) {
            self.take_out(expired.id);
        }
    }

    /// How many of the same pool are before this one.
    pub(crate) fn ahead_of(&self, id: ExecutionId) -> Option<usize> {
        let spot = self.spots.get(&id)?;
        let pool = self.pools.get(&spot.pool)?;
        // Counted only for someone who asks, and cut where nobody reads the number any more.
        Some(pool.own.range(..spot.place).chain(pool.foreign.range(..spot.place)).take(1000).count())
    }
}

fn place_of(key: &Key, arrived: Revision) -> Option<(&str, Place)> {
    let mut parts = key.as_str().split('/').skip(1);
    let pool = parts.next()?;
    let rank = parts.next()?.parse().ok()?;
    let id = parts.next()?.parse().ok()?;
    Some((pool, Place { rank, arrived, id }))
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

    fn arrive(queue: &mut Queue, entry: &Entry) {
        queue.insert(entry, entry.modified);
    }

    fn id(bits: u128) -> ExecutionId {
        ExecutionId::from_bits(bits)
    }

    fn take(queue: &mut Queue, labels: &[(&str, &str)]) -> Option<ExecutionId> {
        let labels: Labels = labels.iter().map(|(k, v)| ((*k).to_owned(), (*v).to_owned())).collect();
        queue.take(|selector| octavius_core::label::matches(selector, &labels).then_some(())).map(|(waiting, ())| waiting.id)
    }

    #[test]
    fn priority_goes_first_then_arrival_and_a_pool_without_executor_holds_nobody_up() {
        let mut queue = Queue::default();
        arrive(&mut queue, &entry(&[("vpc", "web")], 9, 1, 1));
        arrive(&mut queue, &entry(&[], 5, 2, 3));
        arrive(&mut queue, &entry(&[], 5, 3, 2));
        arrive(&mut queue, &entry(&[], 7, 4, 4));
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
        arrive(&mut queue, &entry(&[], 5, 1, 10));
        arrive(&mut queue, &entry(&[], 5, 1, 10));
        arrive(&mut queue, &entry(&[], 5, 2, 20));
        assert_eq!(queue.len(), 2);
        let expired = Expired { id: id(1), arrived: 10 };
        assert_eq!(queue.expired(Timestamp::from_second(15).unwrap(), 9), [expired]);
        assert_eq!(queue.ahead_of(ExecutionId::from_bits(2)), Some(1));
    }

    /// A claim that failed for the store's sake must not cost an execution its place, let alone lose it.
    #[test]
    fn what_is_put_back_stands_where_it_stood() {
        let mut queue = Queue::default();
        for id in 1..=3 {
            arrive(&mut queue, &entry(&[("vpc", "web")], 5, id, id as u64));
        }
        let (first, ()) = queue.take(|_| Some(())).unwrap();
        assert_eq!(queue.expired(Timestamp::from_second(1).unwrap(), 9), []);
        queue.put_back(first);
        let expired = Expired { id: id(1), arrived: 1 };
        assert_eq!(queue.expired(Timestamp::from_second(1).unwrap(), 9), [expired]);
        assert_eq!(take(&mut queue, &[("vpc", "web")]), Some(ExecutionId::from_bits(1)));
    }

    /// It must neither be tried for ever nor be forgotten.
    #[test]
    fn what_is_set_aside_holds_nobody_up_and_its_wait_still_ends() {
        let mut queue = Queue::default();
        for id in 1..=2 {
            arrive(&mut queue, &entry(&[], 5, id, id as u64));
        }
        let (first, ()) = queue.take(|_| Some(())).unwrap();
        queue.set_aside(first.clone());
        assert_eq!((take(&mut queue, &[]), take(&mut queue, &[])), (Some(id(2)), None));
        let expired = Expired { id: id(1), arrived: 1 };
        assert_eq!(queue.expired(Timestamp::from_second(1).unwrap(), 9), [expired]);
        queue.reset(&[entry(&[], 5, 1, 1)], 3);
        assert_eq!(take(&mut queue, &[]), Some(id(1)), "listed anew, it is tried anew");
        queue.set_aside(first);
        queue.expire(expired);
        assert!(queue.spots.is_empty() && queue.expiries.is_empty() && queue.taken.is_empty());
    }

    /// The watch comes after what this controller knows of its own doing, and must not undo it.
    #[test]
    fn what_is_being_claimed_does_not_wait_twice() {
        let mut queue = Queue::default();
        arrive(&mut queue, &entry(&[], 5, 1, 5));
        let (first, ()) = queue.take(|_| Some(())).unwrap();
        arrive(&mut queue, &entry(&[], 5, 1, 5));
        assert_eq!(take(&mut queue, &[]), None);
        queue.reset(&[entry(&[], 5, 1, 5)], 6);
        assert_eq!(take(&mut queue, &[]), None, "the listing is older than the claim");

        // Claimed, and in line again: that is another place.
        queue.remove(&entry(&[], 5, 1, 5).key, 7);
        queue.put_back(first);
        assert_eq!(take(&mut queue, &[]), None, "it does not wait where it waited");
        arrive(&mut queue, &entry(&[], 5, 1, 8));
        let (second, ()) = queue.take(|_| Some(())).unwrap();
        queue.reset(&[], 9);
        queue.put_back(second);
        assert_eq!(take(&mut queue, &[]), None);
        assert!(queue.taken.is_empty());
    }

    fn submission(bits: u128) -> Execution {
        let job: octavius_core::JobDefinition = serde_json::from_str(r#"{"name":"j","command":["true"]}"#).unwrap();
        let submission = octavius_core::execution::Submission {
            id: id(bits),
            arguments: octavius_core::argument::Arguments::new(),
            user: "ann".into(),
            at: Timestamp::UNIX_EPOCH,
            timeout: None,
        };
        Execution::submit(&job, octavius_core::CatalogName::new("c").unwrap(), 1, submission, &octavius_core::Timing::default())
    }

    #[test]
    fn a_submission_waits_at_once_and_once_unless_the_watch_was_quicker() {
        let mut queue = Queue::default();
        queue.submitted(&submission(1), 5);
        arrive(&mut queue, &entry(&[], submission(1).priority, 1, 5));
        assert_eq!((take(&mut queue, &[]), take(&mut queue, &[])), (Some(id(1)), None));
        // Another controller has claimed it before we hear that our own submission is made.
        queue.remove(&entry(&[], submission(2).priority, 2, 6).key, 7);
        queue.submitted(&submission(2), 6);
        assert_eq!(take(&mut queue, &[]), None);
    }

    #[test]
    fn the_own_slice_goes_first_and_no_other_is_left_behind() {
        let slices = Slices::of("a", ["a", "b"].into_iter());
        let of = |own: bool| (1..100).filter(|bits| slices.is_own(id(*bits)) == own).collect::<Vec<_>>();
        let (own, foreign) = (of(true), of(false));
        let mut queue = Queue::default();
        arrive(&mut queue, &entry(&[], 5, foreign[0], 10));
        arrive(&mut queue, &entry(&[], 5, own[0], 11));
        arrive(&mut queue, &entry(&[], 6, foreign[1], 12));
        queue.slice(Slices::of("a", ["a", "b"].into_iter()));
        assert_eq!(queue.ahead_of(id(own[0])), Some(2));
        let order = std::iter::from_fn(|| take(&mut queue, &[])).collect::<Vec<_>>();
        assert_eq!(order, [id(foreign[1]), id(own[0]), id(foreign[0])], "by priority, then our own");
        arrive(&mut queue, &entry(&[], 5, foreign[2], 20));
        arrive(&mut queue, &entry(&[], 5, own[2], 20 + LEAD + 1));
        assert_eq!(take(&mut queue, &[]), Some(id(foreign[2])), "it was left behind");
        queue.slice(Slices::of("a", ["a"].into_iter()));
        assert_eq!(take(&mut queue, &[]), Some(id(own[2])));
        assert!(queue.pools.is_empty() && queue.expiries.is_empty());
    }

    /// Pages of this process that are in memory, in KiB.
    fn resident() -> u64 {
        let status = std::fs::read_to_string("/proc/self/status").unwrap();
        let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:")).unwrap();
        line.trim().trim_end_matches(" kB").parse().unwrap()
    }

    #[test]
    fn a_hundred_thousand_that_wait_take_little_memory() {
        let mut queue = Queue::default();
        let before = resident();
        for n in 1..=100_000 {
            arrive(&mut queue, &entry(&[("vpc", "payments"), ("zone", "a")], 5, n, n as u64));
        }
        let grown = (resident() - before) / 1024;
        assert_eq!(queue.len(), 100_000);
        assert!(grown <= 40, "{grown} MiB");
        queue.slice(Slices::of("a", ["a", "b"].into_iter()));
        let grown = (resident() - before) / 1024;
        assert!(grown <= 50, "{grown} MiB");
    }
}
