//! Keys that live as long as someone renews them. Announcing and vanishing are ordinary writes; renewing only touches memory.

use std::collections::{HashMap, HashSet};
use std::sync::Arc;
use std::time::{Duration, Instant};

use async_trait::async_trait;

use super::writer::Request;
use super::{Shared, closed, lock};
use crate::api::{Key, Presence, StoreError};

/// How long after a failed removal it is tried again.
const RETRY: Duration = Duration::from_secs(1);

#[derive(Debug)]
struct Running {
    key: Key,
    ttl: Duration,
    /// On the monotonic clock, so that setting the wall clock neither ends nor prolongs anything.
    deadline: Instant,
    /// It has run out: it cannot be renewed any more, and its key is about to go.
    is_over: bool,
}

/// All leases that run, by their numbers. A number is in the record of its key too, so a key that was taken over is not the old
/// lease's to remove.
#[derive(Debug, Default)]
pub(super) struct Leases {
    running: HashMap<u64, Running>,
    last: u64,
    is_closed: bool,
}

impl Leases {
    /// A number that was not used before, since the store was opened.
    pub(super) fn next_number(&mut self) -> u64 {
        self.last += 1;
        self.last
    }

    /// The announcement is durable: the time to live begins.
    pub(super) fn begin(&mut self, id: u64, key: Key, ttl: Duration, now: Instant) {
        self.running.insert(id, Running { key, ttl, deadline: now + ttl, is_over: false });
    }

    /// The key is gone, taken over, or plainly written.
    pub(super) fn end(&mut self, id: u64) {
        self.running.remove(&id);
    }

    fn renew(&mut self, id: u64, now: Instant) -> Result<(), StoreError> {
        if self.is_closed {
            return Err(closed());
        }
        let lease = self.running.get_mut(&id).filter(|lease| !lease.is_over && lease.deadline > now);
        let lease = lease.ok_or(StoreError::PresenceLost)?;
        lease.deadline = now + lease.ttl;
        Ok(())
    }

    /// Leases that have run out and whose keys are to be removed now.
    pub(super) fn expire(&mut self, now: Instant) -> Vec<(Key, u64)> {
        let over = self.running.iter_mut().filter(|(_, lease)| lease.deadline <= now);
        let over = over.map(|(id, lease)| {
            lease.is_over = true;
            lease.deadline = now + RETRY;
            (lease.key.clone(), *id)
        });
        over.collect()
    }

    /// When to look again, at the latest.
    pub(super) fn next_deadline(&self) -> Option<Instant> {
        self.running.values().map(|lease| lease.deadline).min()
    }

    /// After a fault: `stored` is what the file says. What nobody renews goes, and what is not stored any more has ended.
    pub(super) fn reconcile(&mut self, stored: Vec<(Key, u64)>, now: Instant) {
        let ids: HashSet<u64> = stored.iter().map(|(_, id)| *id).collect();
        self.running.retain(|id, _| ids.contains(id));
        for (key, id) in stored {
            self.running.entry(id).or_insert(Running { key, ttl: Duration::ZERO, deadline: now, is_over: true });
        }
    }

    pub(super) fn close(&mut self) {
        self.is_closed = true;
        self.running.clear();
    }
}

/// The owner's side of a presence.
pub(super) struct Lease {
    pub(super) shared: Arc<Shared>,
    pub(super) key: Key,
    pub(super) id: u64,
}

#[async_trait]
impl Presence for Lease {
    async fn renew(&self) -> Result<(), StoreError> {
        lock(&self.shared.leases).renew(self.id, Instant::now())
    }

    async fn withdraw(self: Box<Self>) -> Result<(), StoreError> {
        self.shared.ask(|reply| Request::Withdraw { key: self.key.clone(), lease: self.id, reply: Some(reply) }).await
    }
}
