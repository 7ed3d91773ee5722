//! The executors that this controller sees: their sessions here, their presence anywhere, and what each of them holds. All of it in memory,
//! fed by watches of the store and by the sessions themselves.

mod facts;
mod feeds;

use std::collections::HashMap;
use std::sync::{Mutex, MutexGuard};
use std::time::Instant;

use bytes::Bytes;
use octavius_core::{Digest, ExecutionId, ExecutorId, Labels, Timestamp};
use octavius_proto::v1::{SessionResponse, Stop, StopCause, Welcome, session_response::Say};
use octavius_store::record::{DrainRecord, OwnRecord};
use octavius_store::{Entry, Revision, Txn, codec, key};
use tokio::sync::{Notify, mpsc};
use tokio_util::sync::CancellationToken;
use tonic::Status;

use crate::clock::Clock;
use crate::queue::{Queue, SharedQueue};

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
    /// Its record says that it drains, or it has none that is known here.
    closed: bool,
    /// Ends the session's own task.
    end: CancellationToken,
}

impl Session {
    /// Whether it may be given work.
    fn listens(&self) -> bool {
        self.stage == Stage::Open && !self.full && !self.closed && !self.voice.is_closed() && !self.end.is_cancelled()
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
    /// Who has it drain, if it does.
    draining: Option<DrainRecord>,
    /// The revision that wrote the record so.
    modified: Revision,
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
    /// Since when executors have had no free slot, as this controller has seen it.
    full_since: HashMap<ExecutorId, Timestamp>,
    clock: Clock,
    /// The revision of the newest listing of what is held.
    listed: Revision,
    sessions_so_far: u64,
}

/// The fleet.
#[derive(Debug, Default)]
pub(crate) struct Fleet {
    clock: Clock,
    queue: SharedQueue,
    state: Mutex<State>,
    /// Rung when an executor may have become free.
    pub(crate) changed: Notify,
}

impl Fleet {
    /// A fleet whose free slots are told to `queue`.
    pub(crate) fn new(clock: Clock, queue: SharedQueue) -> Self {
        let state = State { clock: clock.clone(), ..State::default() };
        Self { clock, queue, state: Mutex::new(state), ..Self::default() }
    }

    /// What waits, and who is free.
    pub(crate) fn queue(&self) -> MutexGuard<'_, Queue> {
        self.queue.lock()
    }

    /// Tells the queue how many slots an executor has free now, and notes since when it has none. Comes after each change of what that hangs
    /// on, under the same lock.
    fn offer(&self, state: &mut State, executor: &ExecutorId) {
        state.note_room(executor);
        match state.sessions.get(executor).filter(|session| session.listens()) {
            Some(Session { labels, capacity, .. }) => {
                self.queue().dispatch().offer(executor, labels, *capacity, capacity.saturating_sub(state.taken(executor)));
            }
            None => self.queue().dispatch().withdraw(executor),
        }
    }

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
            let alive = self.clock.since(old.last_heard) < alive_within && !old.voice.is_closed();
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
            last_heard: self.clock.instant(),
            stage: Stage::New,
            full: false,
            closed: !state.takes_work(executor),
            end: end.clone(),
        };
        state.sessions.insert(executor.clone(), session);
        state.absent_since.remove(executor);
        self.offer(&mut state, executor);
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
        let mut state = self.lock();
        if let Some(session) = state.sessions.get_mut(executor).filter(|session| session.number == number) {
            session.stage = Stage::Open;
        }
        self.offer(&mut state, executor);
        drop(state);
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
            self.offer(&mut state, executor);
        }
        current
    }

    /// Notes that an executor was heard, and how many slots it says are free.
    pub(crate) fn heard(&self, executor: &ExecutorId, free: u32) {
        let mut state = self.lock();
        let Some(session) = state.sessions.get_mut(executor) else { return };
        session.last_heard = self.clock.instant();
        let is_full = free == 0;
        if std::mem::replace(&mut session.full, is_full) != is_full {
            self.offer(&mut state, executor);
            drop(state);
            self.changed.notify_one();
        }
    }

    /// Notes that an executor gave something back: it is given nothing more until it says that it has room.
    pub(crate) fn declined(&self, executor: &ExecutorId) {
        let mut state = self.lock();
        if let Some(session) = state.sessions.get_mut(executor) {
            session.full = true;
        }
        self.offer(&mut state, executor);
    }

    /// Takes a slot for a claim that is under way; false where the executor can't be told of it any more.
    pub(crate) fn claiming(&self, executor: &ExecutorId, nonce: u64) -> bool {
        let mut state = self.lock();
        let listens = state.sessions.get(executor).is_some_and(Session::listens);
        if listens {
            state.claiming.entry(executor.clone()).or_default().insert(nonce, None);
        }
        self.offer(&mut state, executor);
        listens
    }

    /// The claim was made at `revision`: the slot is the holding's, once the watch or a listing has shown it.
    pub(crate) fn claimed(&self, executor: &ExecutorId, nonce: u64, revision: Revision) {
        let mut state = self.lock();
        let shown = revision <= state.listed;
        let Some(claims) = state.claiming.get_mut(executor) else { return };
        if shown {
            claims.remove(&nonce);
            self.offer(&mut state, executor);
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
        self.offer(&mut state, executor);
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
        let mut all: Vec<_> = state.holdings.iter().flat_map(of).collect();
        all.sort_unstable_by_key(|(_, id, _)| *id);
        all
    }

    /// What one executor holds.
    pub(crate) fn held_by(&self, executor: &ExecutorId) -> Vec<ExecutionId> {
        let state = self.lock();
        let mut ids: Vec<_> = state.holdings.get(executor).map(|held| held.keys().copied().collect()).unwrap_or_default();
        ids.sort_unstable();
        ids
    }

    /// Asks, in `txn`, that an executor's record is still as it was when it was judged to take work. `None` where it takes none: it drains,
    /// or its record is not known here.
    pub(crate) fn still_takes_work(&self, executor: &ExecutorId, txn: Txn) -> Option<Txn> {
        let state = self.lock();
        let known = state.registered.get(executor).filter(|known| known.draining.is_none())?;
        Some(txn.when(key::executor(executor), known.modified))
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
        let since = *state.absent_since.entry(executor.clone()).or_insert_with(|| self.clock.instant());
        Some(self.clock.since(since))
    }

    /// Whether the store's record, as it was last seen, says that this is the executor's token.
    pub(crate) fn has_token(&self, executor: &ExecutorId, token: Digest) -> bool {
        self.lock().registered.get(executor).is_some_and(|known| known.token == token)
    }

    /// How many executors are there, with whichever controller.
    pub(crate) fn present(&self) -> usize {
        let state = self.lock();
        state.present.len() + state.sessions.keys().filter(|id| !state.present.contains_key(*id)).count()
    }

    fn hold(&self, entry: &Entry) {
        let mut state = self.lock();
        state.hold(entry, self.clock.instant());
        if let Some(executor) = key::owner_of(&entry.key) {
            self.offer(&mut state, &executor);
        }
    }

    /// Takes in a listing of everything that is held. What was known already is known for as long as before.
    fn reset(&self, entries: &[Entry], revision: Revision) {
        let mut state = self.lock();
        let before = std::mem::take(&mut state.holdings);
        state.listed = revision;
        let full_since = std::mem::take(&mut state.full_since);
        for claims in state.claiming.values_mut() {
            // A claim that was made before the listing is in it, or is over already.
            claims.retain(|_, made| made.is_none_or(|made| made > revision));
        }
        let now = self.clock.instant();
        entries.iter().for_each(|entry| state.hold(entry, now));
        for (executor, known) in before {
            let Some(held) = state.holdings.get_mut(&executor) else { continue };
            for (id, old) in known {
                if let Some(new) = held.get_mut(&id).filter(|new| new.record == old.record) {
                    new.since = old.since;
                }
            }
        }
        // While it was taken in, all seemed to have room.
        state.full_since = full_since;
        state.note_room_of_all();
        for executor in state.sessions.keys().cloned().collect::<Vec<_>>() {
            self.offer(&mut state, &executor);
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
        self.offer(&mut state, &executor);
        drop(state);
        self.changed.notify_one();
    }
}

impl State {
    /// Whether an executor may be given work, as far as its record says.
    fn takes_work(&self, executor: &ExecutorId) -> bool {
        self.registered.get(executor).is_some_and(|known| known.draining.is_none())
    }

    /// Has an executor's session follow its record; whether that changes whether it may be given work.
    fn follow_record(&mut self, executor: &ExecutorId) -> bool {
        let closed = !self.takes_work(executor);
        let Some(session) = self.sessions.get_mut(executor) else { return false };
        std::mem::replace(&mut session.closed, closed) != closed
    }

    fn is_present(&self, executor: &ExecutorId) -> bool {
        self.sessions.contains_key(executor) || self.present.contains_key(executor)
    }

    fn hold(&mut self, entry: &Entry, now: Instant) {
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
        self.holdings.entry(executor.clone()).or_default().insert(id, Holding { record, since: now });
        self.note_room(&executor);
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
mod tests;
