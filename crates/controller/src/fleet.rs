//! The executors that this controller sees: their sessions here, their presence anywhere, and what each of them holds. All of it in memory,
//! fed by watches of the store and by the sessions themselves.

mod feeds;

use std::collections::{BTreeMap, HashMap};
use std::sync::{Mutex, MutexGuard};
use std::time::Instant;

use bytes::Bytes;
use octavius_core::{Digest, ExecutionId, ExecutorId, Labels, label};
use octavius_proto::v1::{SessionResponse, Stop, StopCause, Welcome, session_response::Say};
use octavius_store::record::OwnRecord;
use octavius_store::{Entry, Revision, codec, key};
use tokio::sync::{Notify, mpsc};
use tokio_util::sync::CancellationToken;
use tonic::Status;

pub(crate) use feeds::{Holdings, Presences, Registrations};

/// What a session is told through. Bounded: an executor that does not listen loses its session, not the controller's memory.
pub(crate) type Voice = mpsc::Sender<Result<SessionResponse, Status>>;

/// How far a session has come.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Stage {
    /// It has a place here and is told nothing: its presence is not announced yet.
    New,
    /// It is told what to stop. Both sides agree on what the executor holds.
    Greeted,
    /// It is given work.
    Open,
}

/// A session that an executor holds with this controller.
#[derive(Debug)]
struct Session {
    /// Tells this session from an earlier one of the same executor.
    number: u64,
    instance: u64,
    labels: Labels,
    capacity: usize,
    voice: Voice,
    last_heard: Instant,
    stage: Stage,
    /// The executor says that it has no room, whatever is counted here: it still runs what was given up as lost, or its disk is full.
    full: bool,
    /// Ends the session's own task.
    end: CancellationToken,
}

impl Session {
    /// Whether it may be given work.
    fn listens(&self) -> bool {
        self.stage == Stage::Open && !self.full && !self.voice.is_closed() && !self.end.is_cancelled()
    }

    /// Tells the executor something; false where it cannot be told any more.
    fn tell(&self, say: Say) -> bool {
        if self.stage == Stage::New {
            return false; // what it must know, it learns when both sides agree
        }
        match self.voice.try_send(Ok(SessionResponse { say: Some(say) })) {
            Ok(()) => true,
            Err(mpsc::error::TrySendError::Closed(_)) => false,
            Err(mpsc::error::TrySendError::Full(_)) => {
                self.end.cancel(); // it does not listen; the next session is told everything anew
                false
            }
        }
    }
}

/// An execution that an executor holds, as this controller has observed it.
#[derive(Debug, Clone)]
pub(crate) struct Holding {
    /// The store's record.
    pub(crate) record: OwnRecord,
    /// Since when this controller has seen the record as it is.
    pub(crate) since: Instant,
}

/// What the store's record of an executor says that matters here.
#[derive(Debug)]
struct Registered {
    /// SHA-256 of its token.
    token: Digest,
    /// Labels and capacity of its newest session, with whichever controller. Capacity 0: it never had one.
    labels: Labels,
    capacity: usize,
}

#[derive(Debug, Default)]
struct State {
    sessions: HashMap<ExecutorId, Session>,
    registered: HashMap<ExecutorId, Registered>,
    /// Presences, and since when an executor has had none.
    present: HashMap<ExecutorId, Bytes>,
    absent_since: HashMap<ExecutorId, Instant>,
    holdings: HashMap<ExecutorId, HashMap<ExecutionId, Holding>>,
    /// Claims, by their nonces, that the watch has not shown yet: they take a slot too. With the revision of those that were made.
    claiming: HashMap<ExecutorId, HashMap<u64, Option<Revision>>>,
    /// The revision of the newest listing of what is held.
    listed: Revision,
    sessions_so_far: u64,
}

/// The fleet.
#[derive(Debug, Default)]
pub(crate) struct Fleet {
    state: Mutex<State>,
    /// Rung when an executor may have become free.
    pub(crate) changed: Notify,
}

/// Why an execution waits, as far as one executor is concerned.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Unfit {
    /// It lacks a label.
    Label {
        /// The label asked for.
        wanted: (String, String),
        /// What it has instead.
        has: Option<String>,
    },
    /// All its slots are taken.
    Full {
        /// How many it has.
        capacity: usize,
    },
}

impl Fleet {
    fn lock(&self) -> MutexGuard<'_, State> {
        // A panic while it was held leaves plain maps behind, which the next listing puts right.
        self.state.lock().unwrap_or_else(std::sync::PoisonError::into_inner)
    }

    /// Begins a session, to be greeted and opened; `None` where another daemon holds one that was heard of within `alive_within`. An older
    /// session of the same daemon ends.
    pub(crate) fn begin(
        &self,
        executor: &ExecutorId,
        instance: u64,
        labels: Labels,
        capacity: usize,
        voice: Voice,
        alive_within: std::time::Duration,
    ) -> Option<(u64, CancellationToken)> {
        let mut state = self.lock();
        if let Some(old) = state.sessions.get(executor) {
            let alive = old.last_heard.elapsed() < alive_within && !old.voice.is_closed();
            if alive && old.instance != instance {
                return None;
            }
            old.end.cancel();
        }
        state.sessions_so_far += 1;
        let number = state.sessions_so_far;
        let end = CancellationToken::new();
        let session = Session {
            number,
            instance,
            labels,
            capacity,
            voice,
            last_heard: Instant::now(),
            stage: Stage::New,
            full: false,
            end: end.clone(),
        };
        state.sessions.insert(executor.clone(), session);
        state.absent_since.remove(executor);
        Some((number, end))
    }

    /// Says the first word of a session. From here on it is told what to stop.
    pub(crate) fn greet(&self, executor: &ExecutorId, number: u64, welcome: Welcome) {
        if let Some(session) = self.lock().sessions.get_mut(executor).filter(|session| session.number == number) {
            session.stage = Stage::Greeted;
            session.tell(Say::Welcome(welcome));
        }
    }

    /// From here on a session is given work.
    pub(crate) fn open(&self, executor: &ExecutorId, number: u64) {
        if let Some(session) = self.lock().sessions.get_mut(executor).filter(|session| session.number == number) {
            session.stage = Stage::Open;
        }
        self.changed.notify_one();
    }

    /// Whether this session is the executor's newest here.
    pub(crate) fn is_newest(&self, executor: &ExecutorId, number: u64) -> bool {
        self.lock().sessions.get(executor).is_some_and(|session| session.number == number)
    }

    /// Whether the executor's presence, as it was last shown, has this value.
    pub(crate) fn shows_presence(&self, executor: &ExecutorId, value: &[u8]) -> bool {
        self.lock().present.get(executor).is_some_and(|shown| shown == value)
    }

    /// Ends a session, unless a newer one has taken its place. Returns whether it did.
    pub(crate) fn end(&self, executor: &ExecutorId, number: u64) -> bool {
        let mut state = self.lock();
        let current = state.sessions.get(executor).is_some_and(|session| session.number == number);
        if current {
            state.sessions.remove(executor);
        }
        current
    }

    /// Notes that an executor was heard, and how many slots it says are free.
    pub(crate) fn heard(&self, executor: &ExecutorId, free: u32) {
        let mut state = self.lock();
        let Some(session) = state.sessions.get_mut(executor) else { return };
        session.last_heard = Instant::now();
        let has_room_again = session.full && free > 0;
        session.full = free == 0;
        drop(state);
        if has_room_again {
            self.changed.notify_one();
        }
    }

    /// Notes that an executor gave something back: it is given nothing more until it says that it has room.
    pub(crate) fn declined(&self, executor: &ExecutorId) {
        if let Some(session) = self.lock().sessions.get_mut(executor) {
            session.full = true;
        }
    }

    /// The executor with the largest share of free slots among those that `selector` fits.
    pub(crate) fn choose(&self, selector: &Labels) -> Option<ExecutorId> {
        let state = self.lock();
        state
            .sessions
            .iter()
            .filter(|(_, session)| session.listens() && label::matches(selector, &session.labels))
            .filter_map(|(id, session)| {
                let free = session.capacity.saturating_sub(state.taken(id));
                (free > 0).then(|| (free as f64 / session.capacity as f64, id))
            })
            .max_by(|(a, x), (b, y)| a.total_cmp(b).then_with(|| y.cmp(x)))
            .map(|(_, id)| id.clone())
    }

    /// Takes a slot for a claim that is under way.
    pub(crate) fn claiming(&self, executor: &ExecutorId, nonce: u64) {
        self.lock().claiming.entry(executor.clone()).or_default().insert(nonce, None);
    }

    /// The claim was made at `revision`: the slot is the holding's, once the watch or a listing has shown it.
    pub(crate) fn claimed(&self, executor: &ExecutorId, nonce: u64, revision: Revision) {
        let mut state = self.lock();
        let shown = revision <= state.listed;
        let Some(claims) = state.claiming.get_mut(executor) else { return };
        if shown {
            claims.remove(&nonce);
            drop(state);
            self.changed.notify_one();
        } else if let Some(claim) = claims.get_mut(&nonce) {
            *claim = Some(revision);
        }
    }

    /// The claim came to nothing: the slot is free again.
    pub(crate) fn unclaimed(&self, executor: &ExecutorId, nonce: u64) {
        let mut state = self.lock();
        if let Some(claims) = state.claiming.get_mut(executor) {
            claims.remove(&nonce);
        }
        drop(state);
        self.changed.notify_one();
    }

    /// Tells an executor something; false where it has no session here that listens.
    pub(crate) fn tell(&self, executor: &ExecutorId, say: Say) -> bool {
        self.lock().sessions.get(executor).is_some_and(|session| session.tell(say))
    }

    /// Everything that is held, by executor.
    pub(crate) fn holdings(&self) -> Vec<(ExecutorId, ExecutionId, Holding)> {
        let state = self.lock();
        let of = |(executor, held): (&ExecutorId, &HashMap<ExecutionId, Holding>)| {
            held.iter().map(|(id, holding)| (executor.clone(), *id, holding.clone())).collect::<Vec<_>>()
        };
        state.holdings.iter().flat_map(of).collect()
    }

    /// What one executor holds.
    pub(crate) fn held_by(&self, executor: &ExecutorId) -> Vec<ExecutionId> {
        let state = self.lock();
        let mut ids: Vec<_> = state.holdings.get(executor).map(|held| held.keys().copied().collect()).unwrap_or_default();
        ids.sort_unstable();
        ids
    }

    /// Whether an executor has a session with this controller.
    pub(crate) fn has_session(&self, executor: &ExecutorId) -> bool {
        self.lock().sessions.contains_key(executor)
    }

    /// Whether an executor is there: it has a session with some controller.
    pub(crate) fn is_present(&self, executor: &ExecutorId) -> bool {
        self.lock().is_present(executor)
    }

    /// For how long an executor has been absent, as this controller has observed it; none while it is there.
    pub(crate) fn absent_for(&self, executor: &ExecutorId) -> Option<std::time::Duration> {
        let mut state = self.lock();
        if state.is_present(executor) {
            state.absent_since.remove(executor);
            return None;
        }
        Some(state.absent_since.entry(executor.clone()).or_insert_with(Instant::now).elapsed())
    }

    /// Whether the store's record, as it was last seen, says that this is the executor's token.
    pub(crate) fn has_token(&self, executor: &ExecutorId, token: Digest) -> bool {
        self.lock().registered.get(executor).is_some_and(|known| known.token == token)
    }

    /// Why each executor that is there, with whichever controller, does not take what asks for `selector`; those that could are left out.
    pub(crate) fn unfit(&self, selector: &Labels) -> BTreeMap<ExecutorId, Unfit> {
        let state = self.lock();
        let reason = |id: &ExecutorId, labels: &Labels, capacity: usize, full: bool| {
            if let Some((key, value)) = selector.iter().find(|(key, value)| labels.get(*key) != Some(value)) {
                return Some(Unfit::Label { wanted: (key.clone(), value.clone()), has: labels.get(key).cloned() });
            }
            (full || state.taken(id) >= capacity).then_some(Unfit::Full { capacity })
        };
        let here = state
            .sessions
            .iter()
            .filter_map(|(id, session)| Some((id.clone(), reason(id, &session.labels, session.capacity, session.full)?)));
        let elsewhere = state.present.keys().filter(|id| !state.sessions.contains_key(*id)).filter_map(|id| {
            let known = state.registered.get(id).filter(|known| known.capacity > 0)?;
            Some((id.clone(), reason(id, &known.labels, known.capacity, false)?))
        });
        here.chain(elsewhere).collect()
    }

    /// How many executors are there, with whichever controller.
    pub(crate) fn present(&self) -> usize {
        let state = self.lock();
        state.present.len() + state.sessions.keys().filter(|id| !state.present.contains_key(*id)).count()
    }

    fn hold(&self, entry: &Entry) {
        self.lock().hold(entry);
    }

    /// Takes in a listing of everything that is held. What was known already is known for as long as before.
    fn reset(&self, entries: &[Entry], revision: Revision) {
        let mut state = self.lock();
        let before = std::mem::take(&mut state.holdings);
        state.listed = revision;
        for claims in state.claiming.values_mut() {
            // A claim that was made before the listing is in it, or is over already.
            claims.retain(|_, made| made.is_none_or(|made| made > revision));
        }
        entries.iter().for_each(|entry| state.hold(entry));
        for (executor, known) in before {
            let Some(held) = state.holdings.get_mut(&executor) else { continue };
            for (id, old) in known {
                if let Some(new) = held.get_mut(&id).filter(|new| new.record == old.record) {
                    new.since = old.since;
                }
            }
        }
        drop(state);
        self.changed.notify_one();
    }

    fn release(&self, key: &octavius_store::Key) {
        let (Some(executor), Some(id)) = (key::owner_of(key), key::execution_of(key)) else { return };
        let mut state = self.lock();
        if let Some(held) = state.holdings.get_mut(&executor) {
            held.remove(&id);
        }
        drop(state);
        self.changed.notify_one();
    }
}

impl State {
    fn is_present(&self, executor: &ExecutorId) -> bool {
        self.sessions.contains_key(executor) || self.present.contains_key(executor)
    }

    fn hold(&mut self, entry: &Entry) {
        let Some((executor, id, record)) = held(entry) else { return };
        if let Some(claims) = self.claiming.get_mut(&executor) {
            claims.remove(&record.fence.nonce);
        }
        if record.cancel
            && let Some(session) = self.sessions.get(&executor)
        {
            // A session that is over has a successor, which is told everything anew.
            session.tell(Say::Stop(Stop {
                id: id.to_string(),
                attempt: record.fence.attempt,
                cause: StopCause::Cancelled.into(),
            }));
        }
        self.holdings.entry(executor).or_default().insert(id, Holding { record, since: Instant::now() });
    }

    fn taken(&self, executor: &ExecutorId) -> usize {
        let held = self.holdings.get(executor).map_or(0, HashMap::len);
        held + self.claiming.get(executor).map_or(0, HashMap::len)
    }
}

/// Who holds what by which claim, as a record under `own/` says. One that cannot be read is told and passed over.
fn held(entry: &Entry) -> Option<(ExecutorId, ExecutionId, OwnRecord)> {
    let (Some(executor), Some(id)) = (key::owner_of(&entry.key), key::execution_of(&entry.key)) else {
        tracing::error!(key = %entry.key, "not the key of something held");
        return None;
    };
    match codec::decode(entry) {
        Ok(record) => Some((executor, id, record)),
        Err(error) => {
            tracing::error!(%error, "something held cannot be read");
            None
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::Duration;

    fn begin(fleet: &Fleet, id: &str, instance: u64, labels: &[(&str, &str)], capacity: usize) -> Option<u64> {
        let (voice, ears) = mpsc::channel(8);
        std::mem::forget(ears); // the session stays open for the length of the test
        let labels = labels.iter().map(|(k, v)| ((*k).to_owned(), (*v).to_owned())).collect();
        let id = id.parse().unwrap();
        let (number, _) = fleet.begin(&id, instance, labels, capacity, voice, Duration::from_secs(9))?;
        assert_eq!(fleet.choose(&[("never".to_owned(), "open".to_owned())].into()), None);
        fleet.open(&id, number);
        Some(number)
    }

    fn own(id: u128, nonce: u64, started: bool, modified: Revision) -> Entry {
        let record = OwnRecord {
            fence: octavius_core::execution::Fence { attempt: 1, nonce },
            started,
            cancel: false,
            timeout: std::time::Duration::from_secs(60),
        };
        let key = key::owned(&"e".parse().unwrap(), ExecutionId::from_bits(id));
        Entry { key, value: codec::encode(&record), created: modified, modified }
    }

    #[test]
    fn work_goes_to_the_least_loaded_executor_that_fits() {
        let fleet = Fleet::default();
        begin(&fleet, "big", 1, &[], 4).unwrap();
        begin(&fleet, "small", 2, &[("vpc", "web")], 1).unwrap();
        let web: Labels = [("vpc".to_owned(), "web".to_owned())].into();
        assert_eq!(fleet.choose(&web).unwrap().as_str(), "small");
        fleet.claiming(&"small".parse().unwrap(), 1);
        assert_eq!(fleet.choose(&web), None);
        assert_eq!(fleet.choose(&Labels::new()).unwrap().as_str(), "big");
        assert_eq!(fleet.unfit(&web).len(), 2);
        fleet.unclaimed(&"small".parse().unwrap(), 1);
        assert_eq!(fleet.choose(&web).unwrap().as_str(), "small");
    }

    #[test]
    fn a_second_daemon_with_the_same_id_is_refused_and_the_same_one_may_come_back() {
        let fleet = Fleet::default();
        let first = begin(&fleet, "e", 1, &[], 1).unwrap();
        assert_eq!(begin(&fleet, "e", 2, &[], 1), None);
        let again = begin(&fleet, "e", 1, &[], 1).unwrap();
        assert!(!fleet.end(&"e".parse().unwrap(), first), "the old session's end does not end the new one");
        assert!(fleet.end(&"e".parse().unwrap(), again));
        assert!(begin(&fleet, "e", 2, &[], 1).is_some());
    }

    /// A slot that is counted twice idles; one that is not counted runs two jobs where one has room; one that is never given back is
    /// lost until the controller restarts.
    #[test]
    fn a_slot_is_taken_from_the_claim_to_the_release_whatever_the_watch_shows_when() {
        let fleet = Fleet::default();
        let e: ExecutorId = "e".parse().unwrap();
        begin(&fleet, "e", 1, &[], 1).unwrap();
        let free = || fleet.choose(&Labels::new()).is_some();

        // The watch shows the claim before the claim's own answer is known.
        fleet.claiming(&e, 1);
        fleet.hold(&own(1, 1, false, 5));
        fleet.claimed(&e, 1, 5);
        assert!(!free());
        fleet.release(&own(1, 1, false, 5).key);
        assert!(free());

        // An earlier claim's release is shown while the next claim of the same execution is under way.
        fleet.claiming(&e, 2);
        fleet.release(&own(1, 1, false, 5).key);
        assert!(!free(), "the slot is the new claim's");

        // The watch breaks; claim and release both lie before the next listing, which shows neither.
        fleet.claimed(&e, 2, 7);
        assert!(!free());
        fleet.reset(&[], 9);
        assert!(free(), "a slot leaked");

        // The same, but the claim's answer comes after the listing.
        fleet.claiming(&e, 3);
        fleet.reset(&[], 12);
        assert!(!free(), "the claim is still under way");
        fleet.claimed(&e, 3, 11);
        assert!(free(), "a slot leaked");
    }

    /// Otherwise a busy store, whose watches often fall behind, would never give a dead claim back.
    #[test]
    fn listing_again_does_not_make_a_claim_younger() {
        let fleet = Fleet::default();
        fleet.reset(&[own(1, 1, false, 5)], 5);
        let since = fleet.holdings()[0].2.since;
        fleet.reset(&[own(1, 1, false, 5)], 6);
        assert_eq!(fleet.holdings()[0].2.since, since);
        fleet.reset(&[own(1, 1, true, 7)], 7);
        assert!(fleet.holdings()[0].2.since > since);
    }

    #[test]
    fn a_session_that_does_not_listen_ends_instead_of_growing() {
        let fleet = Fleet::default();
        let e: ExecutorId = "e".parse().unwrap();
        let (voice, _ears) = mpsc::channel(2);
        let (number, end) = fleet.begin(&e, 1, Labels::new(), 1, voice, Duration::from_secs(9)).unwrap();
        let pong = || Say::Pong(octavius_proto::v1::Pong {});
        assert!(!fleet.tell(&e, pong()), "the first word is a welcome");
        fleet.greet(&e, number, Welcome::default());
        assert!(fleet.tell(&e, pong()));
        assert!(!end.is_cancelled());
        assert!(!fleet.tell(&e, pong()));
        assert!(end.is_cancelled());
    }
}
