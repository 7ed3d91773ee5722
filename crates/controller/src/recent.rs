//! Executions as this controller read or wrote them last, within bounds, so that a step needs no read first. What is here may be old: a
//! step from an old copy fails at its condition and is taken again from the present one, so an old copy only ever costs a try.

use std::collections::{HashMap, VecDeque};
use std::sync::{Arc, Mutex, MutexGuard};

use octavius_core::{Execution, ExecutionId, State};
use octavius_store::Revision;

/// Executions kept: a KiB or two each, so some MiB in all.
const KEPT: usize = 4096;

/// Of these, so many may be ones that only wait: in a long queue the first come are the next to be claimed, and those at work matter more.
const KEPT_WAITING: usize = KEPT / 2;

/// Most bytes of their records: one with a hundred attempts is large.
const KEPT_BYTES: usize = 16 * 1024 * 1024;

/// One execution as it was.
#[derive(Debug)]
struct Copy {
    modified: Revision,
    execution: Arc<Execution>,
    /// Bytes of its record.
    size: usize,
}

#[derive(Debug, Default)]
struct Copies {
    by_id: HashMap<ExecutionId, Copy>,
    /// Ids in the order in which they came, the oldest first. Some may be gone, or stand here twice: then they go a little early.
    order: VecDeque<ExecutionId>,
    bytes: usize,
}

impl Copies {
    fn remove(&mut self, id: ExecutionId) {
        if let Some(gone) = self.by_id.remove(&id) {
            self.bytes -= gone.size;
        }
    }
}

/// Executions as they were last seen.
#[derive(Debug, Default)]
pub(crate) struct Recent(Mutex<Copies>);

impl Recent {
    fn lock(&self) -> MutexGuard<'_, Copies> {
        // A panic while it was held leaves maps behind of which the worst is a copy that counts for nothing.
        self.0.lock().unwrap_or_else(std::sync::PoisonError::into_inner)
    }

    /// The execution as it was last seen, and the revision that wrote it so.
    pub(crate) fn get(&self, id: ExecutionId) -> Option<(Arc<Execution>, Revision)> {
        self.lock().by_id.get(&id).map(|copy| (Arc::clone(&copy.execution), copy.modified))
    }

    /// Takes in what was just read or written as a record of `size` bytes. One that has ended needs no more steps and is forgotten, and
    /// one that waits for approval none for so long that others need the place more.
    pub(crate) fn put(&self, execution: &Arc<Execution>, modified: Revision, size: usize) {
        let id = execution.id;
        let mut copies = self.lock();
        let known = copies.by_id.get(&id);
        if known.is_some_and(|known| known.modified > modified) {
            return; // whoever read this was slower than whoever wrote the newer one
        }
        let new = known.is_none();
        copies.remove(id);
        let waits = execution.state == State::Queued;
        let is_idle = execution.state.is_terminal() || execution.state == State::WaitingForApproval;
        if is_idle || (new && waits && copies.by_id.len() >= KEPT_WAITING) {
            return;
        }
        copies.by_id.insert(id, Copy { modified, execution: Arc::clone(execution), size });
        copies.bytes += size;
        if new {
            copies.order.push_back(id);
        }
        while copies.order.len() > KEPT || copies.bytes > KEPT_BYTES {
            let Some(oldest) = copies.order.pop_front() else { break };
            copies.remove(oldest);
        }
    }

    /// Forgets one that is not there any more.
    pub(crate) fn remove(&self, id: ExecutionId) {
        self.lock().remove(id);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use octavius_core::argument::Arguments;
    use octavius_core::execution::{Event, Submission};
    use octavius_core::{CatalogName, JobDefinition, Timestamp, Timing};

    fn queued(id: u128) -> Execution {
        let job: JobDefinition = serde_json::from_str(r#"{"name":"j","command":["true"]}"#).unwrap();
        let (id, at) = (ExecutionId::from_bits(id), Timestamp::UNIX_EPOCH);
        let submission = Submission { id, arguments: Arguments::new(), user: "ann".into(), at, timeout: None, slot: None };
        Execution::submit(&job, CatalogName::new("c").unwrap(), 1, submission, &Timing::default())
    }

    fn claimed(id: u128) -> Execution {
        let mut execution = queued(id);
        let claim = Event::Claim { executor: "e".parse().unwrap(), nonce: 1, slot: None };
        execution.apply(claim, Timestamp::UNIX_EPOCH).unwrap();
        execution
    }

    #[test]
    fn the_newest_copy_stays_until_the_end() {
        let recent = Recent::default();
        let id = ExecutionId::from_bits(1);
        recent.put(&Arc::new(claimed(1)), 7, 100);
        recent.put(&Arc::new(queued(1)), 5, 100);
        assert_eq!(recent.get(id).map(|(known, modified)| (known.state, modified)), Some((State::Claimed, 7)));
        let mut over = claimed(1);
        over.apply(Event::Cancel { by: "ann".into() }, Timestamp::UNIX_EPOCH).unwrap();
        recent.put(&Arc::new(over), 8, 100);
        assert!(recent.get(id).is_none());
        // What waits for approval may do so for weeks, and there may be much of it.
        let mut gated = queued(2);
        gated.state = State::WaitingForApproval;
        recent.put(&Arc::new(gated), 9, 100);
        assert!(recent.get(ExecutionId::from_bits(2)).is_none());
    }

    #[test]
    fn it_stays_within_its_bounds_and_those_at_work_go_last() {
        let recent = Recent::default();
        for n in 0..3 * KEPT as u128 {
            recent.put(&Arc::new(queued(n)), 1, 100);
        }
        assert_eq!(recent.lock().by_id.len(), KEPT_WAITING, "the first in line are the next to be claimed");
        for n in 0..3 * KEPT as u128 {
            recent.put(&Arc::new(claimed(n)), 2, 100);
        }
        assert!(recent.lock().by_id.len() <= KEPT && recent.lock().order.len() <= KEPT);
        assert!(recent.get(ExecutionId::from_bits(3 * KEPT as u128 - 1)).is_some());
        for n in 0..1000 {
            recent.put(&Arc::new(claimed(n)), 3, 60_000);
        }
        let copies = recent.lock();
        assert!(copies.bytes <= KEPT_BYTES);
        assert_eq!(copies.bytes, copies.by_id.values().map(|copy| copy.size).sum::<usize>());
    }
}
