//! What waits, in memory: fed by the store's watch and by submissions as they are made. Who goes next is [`Dispatch`]'s to say; here it is kept
//! what is known of the store: what has been shown, what is being claimed, what may not go yet. No work here grows with the number of
//! executions that wait, but for the one look at each when controllers come and go.

use std::collections::{BTreeSet, HashMap, HashSet};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use octavius_core::dispatch::{Decision, Dispatch, Hold, Item, LineId, LineName, Strategy};
use octavius_core::{Execution, ExecutionId, ExecutorId, Timestamp};
use octavius_store::record::QueueRecord;
use octavius_store::{Entry, Key, Revision, codec, key};

use crate::clock::Clock;
use crate::engine;
use crate::slices::Slices;

/// Where an execution is that waits. There may be very many of these: they are kept small.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum At {
    /// In line.
    Line(LineId),
    /// In [`Queue::later`].
    Later,
    /// Nowhere: it cannot be handed out.
    Aside,
}

#[derive(Debug, Clone)]
struct Spot {
    at: At,
    arrived: Revision,
    limit: u32,
    expires_at: Timestamp,
}

/// An execution that was taken out of line to be claimed.
#[derive(Debug, Clone)]
pub(crate) struct Waiting {
    pub(crate) id: ExecutionId,
    /// The slot of its job that it is to take.
    pub(crate) slot: Option<u32>,
    arrived: Revision,
    limit: u32,
    expires_at: Timestamp,
    line: LineName,
}

/// An execution that has waited too long.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Expired {
    pub(crate) id: ExecutionId,
    arrived: Revision,
}

/// Where an execution stands.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Standing {
    /// How many of its job, with the same priority and labels, are before it; counted up to 1,000.
    pub(crate) ahead: usize,
    /// What holds its line up; none where it is in no line.
    pub(crate) hold: Option<Hold>,
    /// How long it still waits before its next attempt.
    pub(crate) pause: Option<Duration>,
}

/// The queue, shared by who feeds it, who takes from it, and who knows the executors. Locked after the fleet, never before.
#[derive(Debug, Clone, Default)]
pub(crate) struct SharedQueue(Arc<Mutex<Queue>>);

impl SharedQueue {
    /// Slots of jobs are looked for from `first_slot` on: controllers that begin elsewhere hardly ever reach for the same one.
    pub(crate) fn new(strategy: Strategy, first_slot: u32, clock: Clock) -> Self {
        let queue = Queue { dispatch: Dispatch::new(strategy, first_slot), clock, ..Queue::default() };
        Self(Arc::new(Mutex::new(queue)))
    }

    pub(crate) fn lock(&self) -> MutexGuard<'_, Queue> {
        // A panic while it was held leaves plain maps behind, which the next listing puts right.
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Everything that waits.
#[derive(Debug, Default)]
pub(crate) struct Queue {
    slices: Slices,
    dispatch: Dispatch,
    spots: HashMap<ExecutionId, Spot>,
    expiries: BTreeSet<(Timestamp, ExecutionId)>,
    /// Those that wait for their next attempt, and from when on they may go.
    later: BTreeSet<(Instant, ExecutionId)>,
    pauses: HashMap<ExecutionId, (Instant, LineName)>,
    /// Those that were taken out to be claimed, and when they had arrived: until the watch has shown that they are gone, what it shows of
    /// them is old.
    taken: HashMap<ExecutionId, Revision>,
    /// Up to here the watch has shown everything.
    shown: Revision,
    clock: Clock,
}

impl Queue {
    /// Executors, slots and pauses, which decide with it.
    pub(crate) fn dispatch(&mut self) -> &mut Dispatch {
        &mut self.dispatch
    }

    /// Takes in what the store says waits, and up to which revision it has said so. A record that cannot be read is left where it is and
    /// told.
    pub(crate) fn insert(&mut self, entry: &Entry, shown: Revision) {
        self.shown = self.shown.max(shown);
        self.take_in(entry, |_| None);
    }

    /// `since` says of an execution since when its pause is counted, where that is not now.
    fn take_in(&mut self, entry: &Entry, since: impl Fn(ExecutionId) -> Option<Instant>) {
        let Some((pool, rank, id)) = place_of(&entry.key) else {
            tracing::error!(key = %entry.key, "not a place in the queue");
            return;
        };
        // Most of what comes was submitted here, or is being claimed here already: its record says nothing new.
        let arrived = entry.created;
        let is_known = self.spots.get(&id).is_some_and(|known| known.arrived == arrived)
            || self.taken.get(&id).is_some_and(|taken| *taken >= arrived);
        if is_known {
            return;
        }
        match codec::decode::<QueueRecord>(entry) {
            Ok(record) => self.arrive(pool, rank, Item { id, arrived, limit: record.limit }, &record, since(id)),
            Err(error) => tracing::error!(%error, "a place in the queue cannot be read"),
        }
    }

    /// Takes in what this controller has just submitted, written at `revision`, without waiting for the watch. Where the watch has come
    /// further already, it has shown this and perhaps the end of it.
    pub(crate) fn submitted(&mut self, execution: &Execution, record: &QueueRecord, revision: Revision) {
        let at = engine::queue_key(execution);
        if revision > self.shown
            && let Some((pool, rank, id)) = place_of(&at)
        {
            self.arrive(pool, rank, Item { id, arrived: revision, limit: record.limit }, record, None);
        }
    }

    fn arrive(&mut self, pool: &str, rank: u8, item: Item, record: &QueueRecord, since: Option<Instant>) {
        let Item { id, arrived, limit } = item;
        match self.taken.get(&id) {
            Some(taken) if *taken >= arrived => return, // being claimed; it does not wait twice
            Some(_) => drop(self.taken.remove(&id)),
            None => {}
        }
        self.take_out(id, false);
        let job = record.job.folded();
        let is_paused = !record.delay.is_zero();
        let due = is_paused.then(|| since.unwrap_or_else(|| self.clock.instant() + record.delay));
        let at = match due {
            Some(due) => {
                self.later.insert((due, id));
                let selector = Arc::new(record.selector.clone());
                self.pauses.insert(id, (due, LineName { pool: pool.into(), selector, job: job.into(), rank }));
                At::Later
            }
            None => At::Line(self.dispatch.arrive(pool, &record.selector, &job, rank, item, self.slices.is_own(id))),
        };
        self.note(id, Spot { at, arrived, limit, expires_at: record.expires_at });
    }

    fn note(&mut self, id: ExecutionId, spot: Spot) {
        self.expiries.insert((spot.expires_at, id));
        self.spots.insert(id, spot);
    }

    fn line_up(&mut self, line: &LineName, item: Item) -> At {
        let own = self.slices.is_own(item.id);
        At::Line(self.dispatch.arrive(&line.pool, &line.selector, &line.job, line.rank, item, own))
    }

    /// Lets go those whose pause is over. Returns in how long the next one's is.
    pub(crate) fn promote(&mut self) -> Option<Duration> {
        let now = self.clock.instant();
        while let Some((due, id)) = self.later.first().copied() {
            if due > now {
                return Some(due - now);
            }
            self.later.pop_first();
            let Some((_, line)) = self.pauses.remove(&id) else { continue };
            let Some(item) = self.spots.get(&id).map(|spot| Item { id, arrived: spot.arrived, limit: spot.limit }) else {
                continue;
            };
            let at = self.line_up(&line, item);
            if let Some(spot) = self.spots.get_mut(&id) {
                spot.at = at;
            }
        }
        None
    }

    /// Puts an execution back to where it was taken from, unless the watch has shown meanwhile that it does not wait there any more.
    pub(crate) fn put_back(&mut self, waiting: Waiting) {
        if self.untake(&waiting) {
            let Waiting { id, arrived, limit, expires_at, line, .. } = waiting;
            let at = self.line_up(&line, Item { id, arrived, limit });
            self.note(id, Spot { at, arrived, limit, expires_at });
        }
    }

    /// Leaves out of line what cannot be handed out, until all that waits is listed anew. Its wait still has an end.
    pub(crate) fn set_aside(&mut self, waiting: &Waiting) {
        if self.untake(waiting) {
            let Waiting { id, arrived, limit, expires_at, .. } = *waiting;
            self.note(id, Spot { at: At::Aside, arrived, limit, expires_at });
        }
    }

    /// The claim came to nothing. Whether it still waits where it was taken from.
    fn untake(&mut self, waiting: &Waiting) -> bool {
        if let Some(slot) = waiting.slot {
            self.dispatch.slot_failed(&waiting.line.job, slot, waiting.id);
        }
        let waits = self.taken.get(&waiting.id) == Some(&waiting.arrived);
        if waits {
            self.taken.remove(&waiting.id);
        }
        waits
    }

    /// The claim was made, at `revision`.
    pub(crate) fn claimed(&mut self, waiting: &Waiting, revision: Revision) {
        if let Some(slot) = waiting.slot {
            self.dispatch.slot_made(&waiting.line.job, slot, waiting.id, revision);
        }
    }

    /// The claim was refused: someone else has it, or it is over.
    pub(crate) fn forget(&mut self, waiting: &Waiting) {
        if let Some(slot) = waiting.slot {
            self.dispatch.slot_failed(&waiting.line.job, slot, waiting.id);
        }
    }

    fn take_out(&mut self, id: ExecutionId, started: bool) -> Option<Spot> {
        let spot = self.spots.remove(&id)?;
        self.expiries.remove(&(spot.expires_at, id));
        match spot.at {
            At::Line(line) => self.dispatch.leave(line, id, spot.arrived, self.slices.is_own(id), started),
            At::Later => {
                if let Some((due, _)) = self.pauses.remove(&id) {
                    self.later.remove(&(due, id));
                }
            }
            At::Aside => {}
        }
        Some(spot)
    }

    /// The watch has shown, at `shown`, that the execution of this key does not wait any more: another controller has claimed it, unless this
    /// one has.
    pub(crate) fn remove(&mut self, key: &Key, shown: Revision) {
        self.shown = self.shown.max(shown);
        if let Some(id) = key::execution_of(key) {
            self.taken.remove(&id);
            self.take_out(id, true);
        }
    }

    /// Takes in a listing of everything that waits. Pauses are counted from when they were first seen.
    pub(crate) fn reset(&mut self, entries: &[Entry], revision: Revision) {
        self.dispatch.clear();
        self.expiries.clear();
        self.later.clear();
        let pauses = std::mem::take(&mut self.pauses);
        let spots = std::mem::take(&mut self.spots);
        // What is being claimed and is not listed, is over.
        let listed: HashSet<_> = entries.iter().filter_map(|entry| key::execution_of(&entry.key)).collect();
        self.taken.retain(|id, _| listed.contains(id));
        self.shown = revision;
        let now = self.clock.instant();
        for entry in entries {
            self.take_in(entry, |id| {
                let known = spots.get(&id).filter(|known| known.arrived == entry.created)?;
                match known.at {
                    At::Later => pauses.get(&id).map(|(due, _)| *due),
                    At::Line(_) | At::Aside => Some(now), // its pause is over
                }
            });
        }
        self.promote();
    }

    /// Takes in who hands out beside us. All that waits is looked at once.
    pub(crate) fn slice(&mut self, slices: Slices) {
        self.slices = slices;
        self.dispatch.slice(|id| self.slices.is_own(id));
    }

    /// How many wait.
    #[cfg(test)]
    pub(crate) fn len(&self) -> usize {
        self.spots.len()
    }

    /// The next to be claimed, and by whom; it is taken out.
    pub(crate) fn take(&mut self) -> Option<(Waiting, ExecutorId)> {
        let Decision { item: Item { id, arrived, limit }, line, executor, slot } = self.dispatch.take()?;
        let expires_at = self.spots.remove(&id).map_or(Timestamp::MAX, |spot| spot.expires_at);
        self.expiries.remove(&(expires_at, id));
        self.taken.insert(id, arrived);
        Some((Waiting { id, slot, arrived, limit, expires_at, line }, executor))
    }

    /// Those that have waited longer than they may, at most `limit` of them, the longest first.
    pub(crate) fn expired(&self, now: Timestamp, limit: usize) -> Vec<Expired> {
        let expired = self.expiries.iter().take_while(|(expires, _)| *expires <= now).take(limit);
        expired.filter_map(|(_, id)| Some(Expired { id: *id, arrived: self.spots.get(id)?.arrived })).collect()
    }

    /// One that had waited too long is seen to. Where it has come anew meanwhile, it stays.
    pub(crate) fn expire(&mut self, expired: Expired) {
        if self.spots.get(&expired.id).is_some_and(|spot| spot.arrived == expired.arrived) {
            self.take_out(expired.id, false);
        }
    }

    /// How many wait for their next attempt.
    pub(crate) fn pausing(&self) -> usize {
        self.pauses.len()
    }

    /// Where an execution stands that waits.
    pub(crate) fn standing(&self, id: ExecutionId) -> Option<Standing> {
        let spot = self.spots.get(&id)?;
        let (ahead, hold) = match spot.at {
            At::Line(line) => (self.dispatch.ahead(line, id, spot.arrived), self.dispatch.hold(line)),
            At::Later | At::Aside => (0, None),
        };
        Some(Standing {
            ahead,
            hold,
            pause: self.pauses.get(&id).map(|(due, _)| due.saturating_duration_since(self.clock.instant())),
        })
    }
}

/// The pool, the rank and the execution that a key of the queue names.
fn place_of(key: &Key) -> Option<(&str, u8, ExecutionId)> {
    let mut parts = key.as_str().split('/').skip(1);
    Some((parts.next()?, parts.next()?.parse().ok()?, parts.next()?.parse().ok()?))
}

#[cfg(test)]
mod tests {
    use super::*;
    use octavius_core::Labels;
    use octavius_core::dispatch::LEAD;

    fn entry(pool: &[(&str, &str)], priority: u8, id: u128, created: Revision) -> Entry {
        let selector: Labels = pool.iter().map(|(k, v)| ((*k).to_owned(), (*v).to_owned())).collect();
        let key = key::queued(&octavius_core::label::pool(&selector), priority, ExecutionId::from_bits(id));
        let expires_at = Timestamp::from_second(created as i64).unwrap();
        let job = "j".parse().unwrap();
        let record = QueueRecord { selector, expires_at, job, limit: 0, delay: Duration::ZERO };
        Entry { key, value: codec::encode(&record), created, modified: created }
    }

    fn arrive(queue: &mut Queue, entry: &Entry) {
        queue.insert(entry, entry.modified);
    }

    fn id(bits: u128) -> ExecutionId {
        ExecutionId::from_bits(bits)
    }

    /// Takes what the only executor, with these labels, would be given.
    fn take_out(queue: &mut Queue, labels: &Labels) -> Option<Waiting> {
        let executor = "e".parse().unwrap();
        queue.dispatch().offer(&executor, labels, 1, 1);
        let taken = queue.take().map(|(waiting, _)| waiting);
        queue.dispatch().withdraw(&executor);
        taken
    }

    fn take_any(queue: &mut Queue) -> Option<Waiting> {
        take_out(queue, &[("vpc".to_owned(), "web".to_owned())].into())
    }

    fn take(queue: &mut Queue, labels: &[(&str, &str)]) -> Option<ExecutionId> {
        let labels: Labels = labels.iter().map(|(k, v)| ((*k).to_owned(), (*v).to_owned())).collect();
        take_out(queue, &labels).map(|waiting| waiting.id)
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
        assert_eq!(queue.standing(id(2)).unwrap().ahead, 1);
    }

    /// A claim that failed for the store's sake must not cost an execution its place, let alone lose it.
    #[test]
    fn what_is_put_back_stands_where_it_stood() {
        let mut queue = Queue::default();
        for id in 1..=3 {
            arrive(&mut queue, &entry(&[("vpc", "web")], 5, id, id as u64));
        }
        let first = take_any(&mut queue).unwrap();
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
        let first = take_any(&mut queue).unwrap();
        queue.set_aside(&first);
        assert_eq!((take(&mut queue, &[]), take(&mut queue, &[])), (Some(id(2)), None));
        let expired = Expired { id: id(1), arrived: 1 };
        assert_eq!(queue.expired(Timestamp::from_second(1).unwrap(), 9), [expired]);
        queue.reset(&[entry(&[], 5, 1, 1)], 3);
        assert_eq!(take(&mut queue, &[]), Some(id(1)), "listed anew, it is tried anew");
        queue.set_aside(&first);
        queue.expire(expired);
        assert!(queue.spots.is_empty() && queue.expiries.is_empty() && queue.taken.is_empty());
    }

    /// The watch comes after what this controller knows of its own doing, and must not undo it.
    #[test]
    fn what_is_being_claimed_does_not_wait_twice() {
        let mut queue = Queue::default();
        arrive(&mut queue, &entry(&[], 5, 1, 5));
        let first = take_any(&mut queue).unwrap();
        arrive(&mut queue, &entry(&[], 5, 1, 5));
        assert_eq!(take(&mut queue, &[]), None);
        queue.reset(&[entry(&[], 5, 1, 5)], 6);
        assert_eq!(take(&mut queue, &[]), None, "the listing is older than the claim");

        // Claimed, and in line again: that is another place.
        queue.remove(&entry(&[], 5, 1, 5).key, 7);
        queue.put_back(first);
        assert_eq!(take(&mut queue, &[]), None, "it does not wait where it waited");
        arrive(&mut queue, &entry(&[], 5, 1, 8));
        let second = take_any(&mut queue).unwrap();
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
            slot: None,
        };
        Execution::submit(&job, octavius_core::CatalogName::new("c").unwrap(), 1, submission, &octavius_core::Timing::default())
    }

    fn submit(queue: &mut Queue, bits: u128, revision: Revision) {
        let execution = submission(bits);
        let (selector, expires_at) = (Labels::new(), execution.waits_until());
        let record = QueueRecord { selector, expires_at, job: execution.job.clone(), limit: 0, delay: Duration::ZERO };
        queue.submitted(&execution, &record, revision);
    }

    #[test]
    fn a_submission_waits_at_once_and_once_unless_the_watch_was_quicker() {
        let mut queue = Queue::default();
        submit(&mut queue, 1, 5);
        arrive(&mut queue, &entry(&[], submission(1).priority, 1, 5));
        assert_eq!((take(&mut queue, &[]), take(&mut queue, &[])), (Some(id(1)), None));
        // Another controller has claimed it before we hear that our own submission is made.
        queue.remove(&entry(&[], submission(2).priority, 2, 6).key, 7);
        submit(&mut queue, 2, 6);
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
        assert_eq!(queue.standing(id(own[0])).unwrap().ahead, 1);
        let order = std::iter::from_fn(|| take(&mut queue, &[])).collect::<Vec<_>>();
        assert_eq!(order, [id(foreign[1]), id(own[0]), id(foreign[0])], "by priority, then our own");
        arrive(&mut queue, &entry(&[], 5, foreign[2], 20));
        arrive(&mut queue, &entry(&[], 5, own[2], 20 + LEAD + 1));
        assert_eq!(take(&mut queue, &[]), Some(id(foreign[2])), "it was left behind");
        queue.slice(Slices::of("a", ["a"].into_iter()));
        assert_eq!(take(&mut queue, &[]), Some(id(own[2])));
        assert!(queue.dispatch.waiting().next().is_none() && queue.expiries.is_empty());
    }

    #[test]
    fn a_pause_is_counted_from_when_it_was_first_seen_and_ends_by_itself() {
        let clock = Clock::manual(Timestamp::UNIX_EPOCH);
        let queue = SharedQueue::new(Strategy::LeastLoaded, 0, clock.clone());
        let mut queue = queue.lock();
        let paused = |id: u128, created: Revision| {
            let mut entry = entry(&[], 5, id, created);
            let mut record: QueueRecord = codec::decode(&entry).unwrap();
            record.delay = Duration::from_secs(10);
            record.expires_at = Timestamp::MAX;
            entry.value = codec::encode(&record);
            entry
        };
        arrive(&mut queue, &paused(1, 5));
        assert_eq!(queue.promote(), Some(Duration::from_secs(10)));
        assert_eq!((take(&mut queue, &[]), queue.standing(id(1)).unwrap().pause), (None, Some(Duration::from_secs(10))));
        clock.advance(Duration::from_secs(6));
        queue.reset(&[paused(1, 5), paused(2, 6)], 7);
        assert_eq!(queue.promote(), Some(Duration::from_secs(4)));
        clock.advance(Duration::from_secs(4));
        assert_eq!(queue.promote(), Some(Duration::from_secs(6)));
        queue.reset(&[paused(1, 5), paused(2, 6)], 8);
        assert_eq!((take(&mut queue, &[]), take(&mut queue, &[])), (Some(id(1)), None), "its pause is over, whatever is listed");
        queue.remove(&paused(2, 6).key, 9);
        assert!(queue.later.is_empty() && queue.pauses.is_empty() && queue.spots.is_empty());
        assert_eq!(queue.promote(), None);
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
