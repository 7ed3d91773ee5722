//! The ends of the logs that are being written, as this controller wrote them last, so that bytes that follow need no read first. What is here
//! may be old; the transaction that appends asks that it is not.

use std::collections::{HashMap, VecDeque};
use std::sync::{Mutex, MutexGuard};

use octavius_core::ExecutionId;
use octavius_store::Revision;
use octavius_store::piece::Piece;
use octavius_store::record::LogHead;

/// Logs whose ends are remembered: with the last segment, which is copied only where it is short, less than 3 KiB each.
const KEPT: usize = 512;

/// The end of a log.
#[derive(Debug, Clone)]
pub(crate) struct End {
    /// The revision that last wrote the head, 0 where there is none.
    pub(crate) modified: Revision,
    pub(crate) head: LogHead,
    /// The bytes of the last segment, where it is short enough to be written again with what follows.
    pub(crate) last: Piece,
}

impl End {
    /// The end of a log that has not begun.
    pub(crate) fn beginning() -> Self {
        Self { modified: 0, head: LogHead::default(), last: Piece::default() }
    }
}

type Log = (ExecutionId, u32);

#[derive(Debug, Default)]
struct Ends {
    by_log: HashMap<Log, End>,
    /// In the order in which they came, the oldest first; some may be gone.
    order: VecDeque<Log>,
}

/// The ends of logs as they were last seen.
#[derive(Debug, Default)]
pub(crate) struct Heads(Mutex<Ends>);

impl Heads {
    fn lock(&self) -> MutexGuard<'_, Ends> {
        self.0.lock().unwrap_or_else(std::sync::PoisonError::into_inner)
    }

    pub(crate) fn get(&self, id: ExecutionId, attempt: u32) -> Option<End> {
        self.lock().by_log.get(&(id, attempt)).cloned()
    }

    pub(crate) fn put(&self, id: ExecutionId, attempt: u32, end: End) {
        let mut ends = self.lock();
        let log = (id, attempt);
        if ends.by_log.get(&log).is_some_and(|known| known.modified > end.modified) {
            return;
        }
        if ends.by_log.insert(log, end).is_none() {
            ends.order.push_back(log);
            if ends.order.len() > KEPT
                && let Some(oldest) = ends.order.pop_front()
            {
                ends.by_log.remove(&oldest);
            }
        }
    }

    /// Forgets the logs of an execution that has ended.
    pub(crate) fn forget(&self, id: ExecutionId) {
        let mut ends = self.lock();
        ends.by_log.retain(|(known, _), _| *known != id);
        ends.order.retain(|(known, _)| *known != id);
    }

    /// Forgets one that turned out to be old.
    pub(crate) fn remove(&self, id: ExecutionId, attempt: u32) {
        let mut ends = self.lock();
        let log = (id, attempt);
        if ends.by_log.remove(&log).is_some() {
            ends.order.retain(|known| *known != log);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn end(modified: Revision) -> End {
        End { modified, ..End::beginning() }
    }

    #[test]
    fn the_newest_stays_and_the_oldest_go() {
        let heads = Heads::default();
        let id = |n: usize| ExecutionId::from_bits(n as u128);
        heads.put(id(0), 1, end(7));
        heads.put(id(0), 1, end(5));
        assert_eq!(heads.get(id(0), 1).map(|end| end.modified), Some(7));
        assert!(heads.get(id(0), 2).is_none());
        heads.remove(id(0), 1);
        assert!(heads.get(id(0), 1).is_none() && heads.lock().order.is_empty());
        for n in 0..2 * KEPT {
            heads.put(id(n), 1, end(1));
        }
        assert_eq!(heads.lock().by_log.len(), KEPT);
        assert_eq!(heads.lock().order.len(), KEPT);
        assert!(heads.get(id(KEPT - 1), 1).is_none() && heads.get(id(KEPT), 1).is_some());
    }
}
