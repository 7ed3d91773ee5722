//! Executors with free slots, in classes of equal labels: who takes the next execution is the best of each class that fits.

use std::collections::{BTreeSet, HashMap};

use slab::Slab;

use crate::id::ExecutorId;
use crate::label::{self, Labels};

use super::Strategy;

/// What one whole executor is in [`Rank::taken`].
const WHOLE: u64 = 1 << 20;

/// How early an executor's turn comes within its class; the lowest goes first.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
struct Rank {
    /// Which share of its slots is taken, of [`WHOLE`]; always 0 where the strategy does not look at it.
    taken: u64,
    /// When it was given something last, counted in decisions.
    given: u64,
    seat: usize,
}

/// An executor.
#[derive(Debug)]
struct Seat {
    id: ExecutorId,
    class: usize,
    capacity: usize,
    free: usize,
    given: u64,
}

impl Seat {
    fn rank(&self, strategy: Strategy, seat: usize) -> Option<Rank> {
        let taken = match strategy {
            Strategy::LeastLoaded => (self.capacity - self.free) as u64 * WHOLE / self.capacity.max(1) as u64,
            Strategy::FirstCome => 0,
        };
        (self.free > 0).then_some(Rank { taken, given: self.given, seat })
    }
}

/// Executors with the same labels.
#[derive(Debug)]
pub(super) struct Class {
    pub(super) labels: Labels,
    /// The pools whose selector these labels fit.
    pub(super) pools: Vec<usize>,
    free: BTreeSet<Rank>,
    members: usize,
}

/// What a change of an executor did to its class.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Shift {
    /// The class has a free slot now, and had none.
    Opened(usize),
    /// It has none any more.
    Closed(usize),
}

/// All executors that may be given work.
#[derive(Debug, Default)]
pub(super) struct Offers {
    strategy: Strategy,
    pub(super) classes: Slab<Class>,
    by_labels: HashMap<Labels, usize>,
    seats: Slab<Seat>,
    by_id: HashMap<ExecutorId, usize>,
    /// Decisions so far.
    given: u64,
}

impl Offers {
    pub(super) fn new(strategy: Strategy) -> Self {
        Self { strategy, ..Self::default() }
    }

    /// The class of these labels, made where there is none yet; `true` where it was.
    pub(super) fn class_of(&mut self, labels: &Labels) -> (usize, bool) {
        if let Some(class) = self.by_labels.get(labels) {
            return (*class, false);
        }
        let class = self.classes.insert(Class { labels: labels.clone(), pools: Vec::new(), free: BTreeSet::new(), members: 0 });
        self.by_labels.insert(labels.clone(), class);
        (class, true)
    }

    /// The classes that a selector fits, and how many of them have a free slot.
    pub(super) fn fitting(&self, selector: &Labels) -> (Vec<usize>, usize) {
        let classes: Vec<usize> =
            self.classes.iter().filter(|(_, class)| label::matches(selector, &class.labels)).map(|(class, _)| class).collect();
        let free = classes.iter().filter(|class| self.is_free(**class)).count();
        (classes, free)
    }

    pub(super) fn is_free(&self, class: usize) -> bool {
        self.classes.get(class).is_some_and(|class| !class.free.is_empty())
    }

    pub(super) fn class_of_executor(&self, id: &ExecutorId) -> Option<usize> {
        Some(self.seats.get(*self.by_id.get(id)?)?.class)
    }

    /// Notes an executor of `class` with so many free slots.
    pub(super) fn seat(&mut self, id: &ExecutorId, class: usize, capacity: usize, free: usize) -> Option<Shift> {
        let seat = *self.by_id.entry(id.clone()).or_insert_with(|| {
            self.classes[class].members += 1;
            self.seats.insert(Seat { id: id.clone(), class, capacity: 0, free: 0, given: self.given })
        });
        let was_free = self.is_free(class);
        let strategy = self.strategy;
        let known = &mut self.seats[seat];
        if let Some(rank) = known.rank(strategy, seat) {
            self.classes[class].free.remove(&rank);
        }
        (known.capacity, known.free) = (capacity, free.min(capacity));
        if let Some(rank) = known.rank(strategy, seat) {
            self.classes[class].free.insert(rank);
        }
        self.shift(class, was_free)
    }

    /// Forgets an executor. Returns what that did to its class, and the class where it is gone with it.
    pub(super) fn remove(&mut self, id: &ExecutorId) -> (Option<Shift>, Option<Class>) {
        let Some(seat) = self.by_id.remove(id) else { return (None, None) };
        let known = self.seats.remove(seat);
        let was_free = self.is_free(known.class);
        let class = &mut self.classes[known.class];
        if let Some(rank) = known.rank(self.strategy, seat) {
            class.free.remove(&rank);
        }
        class.members -= 1;
        let is_gone = class.members == 0;
        let shift = self.shift(known.class, was_free);
        let gone = is_gone.then(|| {
            let class = self.classes.remove(known.class);
            self.by_labels.remove(&class.labels);
            class
        });
        (shift, gone)
    }

    fn shift(&self, class: usize, was_free: bool) -> Option<Shift> {
        match (was_free, self.is_free(class)) {
            (false, true) => Some(Shift::Opened(class)),
            (true, false) => Some(Shift::Closed(class)),
            _ => None,
        }
    }

    /// Takes a slot of the best executor of these classes.
    pub(super) fn take(&mut self, classes: &[usize]) -> Option<(ExecutorId, Option<Shift>)> {
        let best = classes.iter().filter_map(|class| self.classes.get(*class)?.free.first()).min()?.seat;
        self.given += 1;
        let known = &self.seats[best];
        let (id, class, capacity, free) = (known.id.clone(), known.class, known.capacity, known.free - 1);
        // In two steps, since both what is taken and when it was given change the rank.
        let closed = self.seat(&id, class, capacity, 0);
        self.seats[best].given = self.given;
        let opened = self.seat(&id, class, capacity, free);
        let shift = if closed.is_some() && opened.is_some() { None } else { closed.or(opened) };
        Some((id, shift))
    }
}
