//! The concurrency slots of jobs, as the store shows them: who holds one, and which are held by what was lost.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use octavius_core::definition::WhenFull;
use octavius_core::{Execution, ExecutionId};
use octavius_proto::{Fault, reason};
use octavius_store::record::SlotRecord;
use octavius_store::{Entry, Event, Key, Revision, Store, codec, key};
use tonic::Code;

use crate::clock::Clock;
use crate::fault;
use crate::fleet::Fleet;
use crate::mirror::{self, Listener};

/// Holders of a job's slots that are named to who is refused.
const NAMED: usize = 3;

/// A slot that a lost execution holds still: nobody knows whether it runs.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Lost {
    id: ExecutionId,
    /// For how long it may run.
    for_long: Duration,
    /// Since when this controller has seen it lost.
    since: Instant,
}

/// Tells the queue which slots are taken, and remembers those of lost executions.
#[derive(Debug)]
pub(crate) struct Slots {
    fleet: Arc<Fleet>,
    clock: Clock,
    lost: Mutex<HashMap<Key, Lost>>,
}

impl Slots {
    pub(crate) fn new(fleet: Arc<Fleet>, clock: Clock) -> Self {
        Self { fleet, clock, lost: Mutex::default() }
    }

    fn lock(&self) -> MutexGuard<'_, HashMap<Key, Lost>> {
        self.lost.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Lost executions that hold a slot and have been lost for longer than their own timeout and `grace`: by then whoever ran them has ended
    /// them.
    pub(crate) fn outlived(&self, grace: Duration) -> Vec<ExecutionId> {
        let is_over = |lost: &&Lost| self.clock.since(lost.since) >= lost.for_long.saturating_add(grace);
        self.lock().values().filter(is_over).map(|lost| lost.id).collect()
    }

    /// Takes a slot for a submission that is to have one at once: of a job that refuses what it has no slot for. None where it is not.
    ///
    /// What is remembered may be behind: nobody is refused before the store was asked, and whoever was forestalled asks it at once (`anew`),
    /// or would be told the same again until the watch has come.
    pub(crate) async fn reserve(
        &self,
        execution: &Execution,
        store: &dyn Store,
        anew: bool,
    ) -> Result<Option<Reservation>, Fault> {
        let Some(limit) = execution.concurrency.filter(|of| of.when_full == WhenFull::Reject).map(|of| of.limit) else {
            return Ok(None);
        };
        let (job, id) = (execution.job.folded(), execution.id);
        let reserved = |slot| Reservation { fleet: Arc::clone(&self.fleet), job: job.clone(), slot, id };
        let known = (!anew).then(|| self.fleet.queue().dispatch().take_slot(&job, limit, id)).flatten();
        if let Some(slot) = known {
            return Ok(Some(reserved(slot)));
        }
        let (entries, _) = mirror::list(store, &key::slots_of(&execution.job)).await.map_err(fault::from_store)?;
        let taken: Vec<_> = entries.iter().filter_map(taken).map(|(_, number, record)| (number, record.id)).collect();
        let free =
            (0..limit).find(|number| taken.iter().all(|(taken, _)| taken != number)).filter(|_| taken.len() < limit as usize);
        if let Some(slot) = free {
            self.fleet.queue().dispatch().claim_slot(&job, slot, id);
            return Ok(Some(reserved(slot)));
        }
        let named: Vec<_> = taken.iter().take(NAMED).map(|(_, id)| id.to_string()).collect();
        let and_more = if taken.len() > NAMED { format!(" and {} more", taken.len() - NAMED) } else { String::new() };
        // One that waits for approval holds its slot, too.
        let (runs, run) = match execution.approvals {
            Some(_) => ("runs, or waits for approval,", "run, or wait for approval,"),
            None => ("runs", "run"),
        };
        let some = if limit == 1 { format!("one execution of it {runs}") } else { format!("{limit} executions of it {run}") };
        let message = format!("job {} refuses more: {some} already, {}{and_more}", execution.job, named.join(", "));
        Err(Fault::new(Code::FailedPrecondition, reason::CONCURRENCY_LIMIT, message).with("holders", named.join(",")))
    }

    fn note(&self, at: &Key, record: &SlotRecord) {
        let mut lost = self.lock();
        match record.lost {
            Some(for_long) => {
                let known = lost.get(at).filter(|known| known.id == record.id).map(|known| known.since);
                let since = known.unwrap_or_else(|| self.clock.instant());
                lost.insert(at.clone(), Lost { id: record.id, for_long, since });
            }
            None => drop(lost.remove(at)),
        }
    }
}

/// A slot that counts as taken while a submission is under way. Dropped before it was made, it is free again.
#[derive(Debug)]
pub(crate) struct Reservation {
    fleet: Arc<Fleet>,
    job: String,
    /// Its number.
    pub(crate) slot: u32,
    id: ExecutionId,
}

impl Reservation {
    /// The submission was made, at `revision`.
    pub(crate) fn made(self, revision: Revision) {
        self.fleet.queue().dispatch().slot_made(&self.job, self.slot, self.id, revision);
    }
}

impl Drop for Reservation {
    fn drop(&mut self) {
        // Does nothing where it was made.
        self.fleet.queue().dispatch().slot_failed(&self.job, self.slot, self.id);
        self.fleet.changed.notify_one();
    }
}

/// Feeds them with everything under `slot/`.
pub(crate) struct Feed(pub(crate) Arc<Slots>);

/// What an entry says: the job, the slot's number, and its record. One that cannot be read is told and passed over.
fn taken(entry: &Entry) -> Option<(&str, u32, SlotRecord)> {
    let named = key::slot_of(&entry.key);
    match codec::decode::<SlotRecord>(entry) {
        Ok(record) => named.map(|(job, number)| (job, number, record)),
        Err(error) => {
            tracing::error!(%error, "a concurrency slot cannot be read");
            None
        }
    }
}

impl Listener for Feed {
    fn reset(&mut self, entries: Vec<Entry>, revision: Revision) {
        let slots: Vec<_> = entries.iter().filter_map(|entry| Some((entry, taken(entry)?))).collect();
        self.0.lock().retain(|at, _| slots.iter().any(|(entry, _)| entry.key == *at));
        for (entry, (_, _, record)) in &slots {
            self.0.note(&entry.key, record);
        }
        let listed = slots.iter().map(|(_, (job, number, record))| (*job, *number, record.id));
        self.0.fleet.queue().dispatch().list_slots(listed, revision);
        self.0.fleet.changed.notify_one();
    }

    fn change(&mut self, event: Event, _: Revision) {
        match &event {
            Event::Put(entry) => {
                let Some((job, number, record)) = taken(entry) else { return };
                self.0.note(&entry.key, &record);
                self.0.fleet.queue().dispatch().slot_shown(job, number, record.id);
            }
            Event::Delete(at) => {
                self.0.lock().remove(at);
                let Some((job, number)) = key::slot_of(at) else { return };
                self.0.fleet.queue().dispatch().slot_freed(job, number);
                self.0.fleet.changed.notify_one();
            }
        }
    }
}
