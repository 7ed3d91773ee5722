//! A job's concurrency slots, as far as they are known here: what the store shows, and what is being taken.

use std::collections::BTreeMap;

use crate::id::ExecutionId;

/// How a slot is known to be taken.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Made {
    /// The store has shown it.
    Shown,
    /// A transaction that takes it is under way.
    Claiming,
    /// It was taken at this revision, which the store has not shown yet.
    At(u64),
}

#[derive(Debug, Clone, Copy)]
struct Slot {
    holder: ExecutionId,
    made: Made,
}

/// The slots of one job.
#[derive(Debug, Default)]
pub(super) struct Slots(BTreeMap<u32, Slot>);

impl Slots {
    pub(super) fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// Whether one more may run where `limit` may. Slots beyond the limit count too: they are from before it was lowered.
    pub(super) fn has_room(&self, limit: u32) -> bool {
        self.0.len() < limit as usize
    }

    /// A free slot below `limit`, looked for from `start` on. Controllers that start elsewhere hardly ever reach for the same one.
    pub(super) fn free(&self, limit: u32, start: u32) -> Option<u32> {
        if !self.has_room(limit) {
            return None;
        }
        let start = start % limit;
        self.gap(start, limit).or_else(|| self.gap(0, start))
    }

    fn gap(&self, from: u32, to: u32) -> Option<u32> {
        let mut free = from;
        for (taken, _) in self.0.range(from..to) {
            if *taken != free {
                break;
            }
            free += 1;
        }
        (free < to).then_some(free)
    }

    pub(super) fn holders(&self) -> impl Iterator<Item = ExecutionId> + '_ {
        self.0.values().map(|slot| slot.holder)
    }

    pub(super) fn claim(&mut self, number: u32, holder: ExecutionId) {
        self.0.insert(number, Slot { holder, made: Made::Claiming });
    }

    pub(super) fn show(&mut self, number: u32, holder: ExecutionId) {
        self.0.insert(number, Slot { holder, made: Made::Shown });
    }

    pub(super) fn gone(&mut self, number: u32) {
        self.0.remove(&number);
    }

    /// The transaction that was to take it did not.
    pub(super) fn failed(&mut self, number: u32, holder: ExecutionId) {
        if self.0.get(&number).is_some_and(|slot| slot.holder == holder && slot.made == Made::Claiming) {
            self.0.remove(&number);
        }
    }

    /// It was taken at `revision`; `shown` is the revision of the newest listing.
    pub(super) fn made(&mut self, number: u32, holder: ExecutionId, revision: u64, shown: u64) {
        let Some(slot) = self.0.get_mut(&number).filter(|slot| slot.holder == holder && slot.made == Made::Claiming) else {
            return;
        };
        if revision <= shown {
            self.0.remove(&number); // taken and freed before the listing, which does not show it
        } else {
            slot.made = Made::At(revision);
        }
    }

    /// Forgets what a listing of `revision` would show, before it is taken in.
    pub(super) fn forget_shown(&mut self, revision: u64) {
        self.0.retain(|_, slot| match slot.made {
            Made::Shown => false,
            Made::Claiming => true,
            Made::At(made) => made > revision,
        });
    }
}
