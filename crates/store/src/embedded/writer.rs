//! The one thread that writes. It takes everything that waits as one group, writes it with one wait for the disk, and answers.

use std::sync::mpsc::{Receiver, RecvTimeoutError};
use std::sync::{Arc, PoisonError};
use std::time::{Duration, Instant};

use bytes::Bytes;
use redb::{Database, Durability, ReadableDatabase as _, ReadableTable as _, Table};
use tokio::sync::oneshot;

use super::feed::{self, Change};
use super::file::{self, Failure, LEASES, META, Opener, RECORDS, REVISION, Stored};
use super::{Shared, lock};
use crate::api::{self, Commit, Key, Revision, StoreError, Txn};

/// Most requests in one group. More would make the first wait longer without making the last much faster.
const GROUP_REQUESTS: usize = 1_000;

/// Most bytes of values in one group: they are in memory several times until the group is written.
const GROUP_BYTES: usize = 4 * 1024 * 1024;

/// How long after a failed attempt to open the file again the next one is made.
const REOPEN_EVERY: Duration = Duration::from_secs(1);

type Reply<T> = oneshot::Sender<Result<T, StoreError>>;

/// What the writer is asked to do.
pub(super) enum Request {
    Commit {
        txn: Txn,
        reply: Reply<Commit>,
    },
    Announce {
        key: Key,
        value: Bytes,
        ttl: Duration,
        reply: Reply<u64>,
    },
    /// Removes a key if it still lives by this lease. Without `reply` the lease has run out.
    Withdraw {
        key: Key,
        lease: u64,
        reply: Option<Reply<()>>,
    },
    /// A reader found that the file must be opened again.
    Mend,
}

impl Request {
    fn bytes(&self) -> usize {
        match self {
            Self::Commit { txn, .. } => txn.value_bytes(),
            Self::Announce { value, .. } => value.len(),
            Self::Withdraw { .. } | Self::Mend => 0,
        }
    }

    /// Answers that it was not done. Callers that stopped waiting do not mind.
    fn refuse(self, error: StoreError) {
        match self {
            Self::Commit { reply, .. } => drop(reply.send(Err(error))),
            Self::Announce { reply, .. } => drop(reply.send(Err(error))),
            Self::Withdraw { reply: Some(reply), .. } => drop(reply.send(Err(error))),
            Self::Withdraw { reply: None, .. } | Self::Mend => {}
        }
    }
}

/// What became of a request, to be told once the group is durable.
enum Outcome {
    Commit(Commit),
    Announced(u64),
    Withdrawn,
}

/// What a group comes to.
struct Group {
    outcomes: Vec<Outcome>,
    changes: Vec<Change>,
    revision: Revision,
    /// Leases that ended because their key was written or removed.
    ended: Vec<u64>,
}

pub(super) struct Writer {
    shared: Arc<Shared>,
    opener: Opener,
    requests: Receiver<Request>,
    /// The newest durable revision.
    revision: Revision,
    /// When to look for leases that have run out; earlier than needed does no harm.
    next_expiry: Option<Instant>,
    /// When the file could last not be opened again.
    last_reopen: Option<Instant>,
}

impl Writer {
    pub(super) fn new(shared: Arc<Shared>, opener: Opener, requests: Receiver<Request>, revision: Revision) -> Self {
        Self { shared, opener, requests, revision, next_expiry: None, last_reopen: None }
    }

    /// Writes until the last handle is gone and everything asked before is answered, then closes the file.
    pub(super) fn run(mut self) {
        while let Some(group) = self.next_group() {
            if !group.is_empty() {
                self.write(group);
            }
        }
    }

    /// Everything that waits, up to the bounds of a group; `None` when there will be no more. Waits for the first request only.
    fn next_group(&mut self) -> Option<Vec<Request>> {
        let first = match self.next_expiry {
            None => Some(self.requests.recv().ok()?),
            Some(expiry) => match self.requests.recv_timeout(expiry.saturating_duration_since(Instant::now())) {
                Ok(request) => Some(request),
                Err(RecvTimeoutError::Timeout) => None,
                Err(RecvTimeoutError::Disconnected) => return None,
            },
        };
        let mut bytes = first.as_ref().map_or(0, Request::bytes);
        let mut group: Vec<Request> = first.into_iter().collect();
        while group.len() < GROUP_REQUESTS && bytes < GROUP_BYTES {
            let Ok(request) = self.requests.try_recv() else { break };
            bytes += request.bytes();
            group.push(request);
        }
        let now = Instant::now();
        if self.next_expiry.is_some_and(|expiry| expiry <= now) {
            let mut leases = lock(&self.shared.leases);
            let expired = leases.expire(now);
            group.extend(expired.into_iter().map(|(key, lease)| Request::Withdraw { key, lease, reply: None }));
            self.next_expiry = leases.next_deadline();
        }
        Some(group)
    }

    fn write(&mut self, group: Vec<Request>) {
        let is_closed = self.shared.database.read().unwrap_or_else(PoisonError::into_inner).is_none();
        if is_closed && let Err(error) = self.reopen() {
            group.into_iter().for_each(|request| request.refuse(error.clone()));
            return;
        }
        let mut may_repeat = true;
        let error = loop {
            let failure = match self.attempt(&group) {
                Ok(done) => return self.publish(group, done),
                Err(failure) => failure,
            };
            let is_earlier = matches!(failure, Failure::Store(redb::Error::PreviousIo));
            match self.recover(failure) {
                // An earlier fault, a reader's perhaps, of which this group has no part.
                Ok(_) if is_earlier && may_repeat => may_repeat = false,
                Ok(error) | Err(error) => break error,
            }
        };
        group.into_iter().for_each(|request| request.refuse(error.clone()));
    }

    /// Carries a group out on the file: durably and wholly, or not at all.
    fn attempt(&self, group: &[Request]) -> Result<Group, Failure> {
        let database = self.shared.database.read().unwrap_or_else(PoisonError::into_inner);
        let database = database.as_ref().ok_or_else(super::not_open)?;
        let mut txn = database.begin_write()?;
        txn.set_durability(Durability::Immediate)?;
        let mut done = Group { outcomes: Vec::new(), changes: Vec::new(), revision: self.revision, ended: Vec::new() };
        {
            let mut tables = Tables { records: txn.open_table(RECORDS)?, leases: txn.open_table(LEASES)? };
            for request in group {
                let outcome = tables.carry_out(request, &self.shared, &mut done)?;
                done.outcomes.push(outcome);
            }
        }
        if done.changes.is_empty() {
            txn.abort()?;
            return Ok(done);
        }
        txn.open_table(META)?.insert(REVISION, done.revision)?;
        lock(&self.shared.feed).stage(std::mem::take(&mut done.changes));
        txn.commit()?;
        Ok(done)
    }

    /// Tells everyone what has become durable.
    fn publish(&mut self, group: Vec<Request>, done: Group) {
        self.revision = done.revision;
        let woken = lock(&self.shared.feed).publish(done.revision);
        let now = Instant::now();
        {
            // In the order of the group, so that a presence that was announced and taken over in it has ended.
            let mut leases = lock(&self.shared.leases);
            for (request, outcome) in group.iter().zip(&done.outcomes) {
                match (request, outcome) {
                    (Request::Announce { key, ttl, .. }, Outcome::Announced(id)) => {
                        leases.begin(*id, key.clone(), *ttl, now);
                        self.next_expiry = Some(self.next_expiry.map_or(now + *ttl, |next| next.min(now + *ttl)));
                    }
                    (Request::Withdraw { lease, .. }, _) => leases.end(*lease),
                    _ => {}
                }
            }
            done.ended.iter().for_each(|lease| leases.end(*lease));
        }
        for (request, outcome) in group.into_iter().zip(done.outcomes) {
            // A caller that stopped waiting does not mind.
            match (request, outcome) {
                (Request::Commit { reply, .. }, Outcome::Commit(commit)) => drop(reply.send(Ok(commit))),
                (Request::Announce { reply, .. }, Outcome::Announced(lease)) => drop(reply.send(Ok(lease))),
                (Request::Withdraw { reply: Some(reply), .. }, _) => drop(reply.send(Ok(()))),
                _ => {}
            }
        }
        woken.into_iter().for_each(|watcher| watcher.notify_one());
    }

    /// After a failed write: opens the file again and finds out which state it is in. Answers with what the callers are told: why
    /// nothing was written, or, as the error, that this is not known.
    fn recover(&mut self, failure: Failure) -> Result<StoreError, StoreError> {
        let cause = failure.into_error();
        tracing::warn!(%cause, "a write failed, opening the store's file again");
        let before = self.revision;
        match self.reopen() {
            Ok(()) if self.revision == before => Ok(cause),
            Ok(()) => Err(StoreError::Unknown(cause.to_string())),
            Err(error) => Err(StoreError::Unknown(format!("{cause}, then {error}"))),
        }
    }

    /// Closes the file and opens it again, which puts in order whatever an aborted write left.
    fn reopen(&mut self) -> Result<(), StoreError> {
        if let Some(last) = self.last_reopen
            && last.elapsed() < REOPEN_EVERY
        {
            return Err(StoreError::Unavailable("its file cannot be opened".to_owned()));
        }
        let shared = Arc::clone(&self.shared);
        let mut database = shared.database.write().unwrap_or_else(PoisonError::into_inner);
        drop(database.take());
        match (self.opener)().and_then(|opened| self.look(opened)) {
            Ok(opened) => {
                *database = Some(opened);
                self.last_reopen = None;
                Ok(())
            }
            Err(failure) => {
                self.last_reopen = Some(Instant::now());
                let error = failure.into_error();
                tracing::error!(%error, "the store's file cannot be opened again");
                Err(error)
            }
        }
    }

    /// Compares a file that was opened again with what is in memory.
    fn look(&mut self, database: Database) -> Result<Database, Failure> {
        let snapshot = database.begin_read()?;
        let revision = file::revision(&snapshot)?;
        let woken = if revision == self.revision {
            lock(&self.shared.feed).unstage();
            Vec::new()
        } else {
            lock(&self.shared.feed).cut(revision)
        };
        self.revision = revision;
        let mut leases = lock(&self.shared.leases);
        leases.reconcile(file::leases(&snapshot)?, Instant::now());
        self.next_expiry = leases.next_deadline();
        drop(leases);
        drop(snapshot);
        woken.into_iter().for_each(|watcher| watcher.notify_one());
        Ok(database)
    }
}

impl Drop for Writer {
    /// However the thread ends, nobody waits for it in vain: watches end and the file is closed. Requests that are still queued are
    /// dropped with the channel, which their callers notice.
    fn drop(&mut self) {
        drop(lock(&self.shared.queue).take());
        let woken = lock(&self.shared.feed).close();
        lock(&self.shared.leases).close();
        drop(self.shared.database.write().unwrap_or_else(PoisonError::into_inner).take());
        woken.into_iter().for_each(|watcher| watcher.notify_one());
    }
}

/// The tables that a group writes. They show what the group has written so far.
struct Tables<'txn> {
    records: Table<'txn, &'static str, &'static [u8]>,
    leases: Table<'txn, &'static str, u64>,
}

impl Tables<'_> {
    fn carry_out(&mut self, request: &Request, shared: &Shared, done: &mut Group) -> Result<Outcome, Failure> {
        Ok(match request {
            Request::Commit { txn, .. } => Outcome::Commit(self.commit(txn, done)?),
            Request::Announce { key, value, .. } => {
                let lease = lock(&shared.leases).next_number();
                let revision = done.revision + 1;
                self.change(key, Some(value), lease, revision, done)?;
                done.revision = revision;
                Outcome::Announced(lease)
            }
            Request::Withdraw { key, lease, .. } => {
                if self.get(key)?.is_some_and(|stored| stored.lease == *lease) {
                    let revision = done.revision + 1;
                    self.change(key, None, 0, revision, done)?;
                    done.revision = revision;
                }
                Outcome::Withdrawn
            }
            Request::Mend => Outcome::Withdrawn,
        })
    }

    fn commit(&mut self, txn: &Txn, done: &mut Group) -> Result<Commit, Failure> {
        for condition in &txn.conditions {
            if self.get(&condition.key)?.map_or(0, |stored| stored.modified) != condition.modified {
                let reads = txn.otherwise.iter().map(|key| Ok(self.get(key)?.map(|stored| stored.entry(key.clone()))));
                return Ok(Commit::Conflict(reads.collect::<Result<_, Failure>>()?));
            }
        }
        let revision = done.revision + 1;
        let before = done.changes.len();
        for change in &txn.changes {
            match change {
                api::Change::Put(key, value) => self.change(key, Some(value), 0, revision, done)?,
                api::Change::Delete(key) => self.change(key, None, 0, revision, done)?,
            }
        }
        // A transaction that changes nothing, as one of conditions only, is no revision of its own.
        if done.changes.len() > before {
            done.revision = revision;
        }
        Ok(Commit::Done(done.revision))
    }

    fn get(&self, key: &Key) -> Result<Option<Stored>, Failure> {
        self.records.get(key.as_str())?.map(|bytes| Stored::decode(key.as_str(), bytes.value())).transpose()
    }

    /// Writes or, without a value, removes a key.
    fn change(
        &mut self,
        key: &Key,
        value: Option<&Bytes>,
        lease: u64,
        revision: Revision,
        done: &mut Group,
    ) -> Result<(), Failure> {
        let before = self.get(key)?;
        let after = value.map(|value| Stored {
            created: before.as_ref().map_or(revision, |stored| stored.created),
            modified: revision,
            lease,
            value: feed::own(value),
        });
        match &after {
            Some(stored) => drop(self.records.insert(key.as_str(), stored.encode().as_slice())?),
            None if before.is_some() => drop(self.records.remove(key.as_str())?),
            None => return Ok(()),
        }
        let lease_before = before.as_ref().map_or(0, |stored| stored.lease);
        if lease != 0 {
            self.leases.insert(key.as_str(), lease)?;
        } else if lease_before != 0 {
            self.leases.remove(key.as_str())?;
        }
        if lease_before != 0 {
            done.ended.push(lease_before);
        }
        done.changes.push(Change { revision, key: key.clone(), before, after });
        Ok(())
    }
}
