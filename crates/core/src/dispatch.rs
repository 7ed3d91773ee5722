//! Which of the executions that wait goes next, and to which executor. Pure, and as quick for 100,000 that wait as for 1,000.
//!
//! Executions wait in lines: one for each job, priority and set of labels that is asked for. Among the lines that have an executor with a
//! free slot, the highest priority goes first, and then the job that was served longest ago: each start sends its job to the back, so that
//! no flood of one job keeps another waiting for more than a turn. Within a line the one goes first that has waited longest.
//!
//! Several controllers hand out at once, each its own slice first. What another controller starts is a turn of the job here too, and a line
//! that holds nothing of the own slice stands back a little ([`STAND_BACK`]): the other controller is about to take it.

mod offers;
mod slots;
#[cfg(test)]
mod tests;

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::sync::Arc;

use serde::{Deserialize, Serialize};
use slab::Slab;

use crate::id::{ExecutionId, ExecutorId};
use crate::label::Labels;

use offers::{Offers, Shift};
use slots::Slots;

/// By how many starts a line stands back that holds nothing of the own slice. Where the other controller hands out, it will have done so by
/// then; where it can't, nothing is left behind for long.
pub const STAND_BACK: u64 = 64;

/// By how much (in revisions of the store, which are what arrivals are counted in) the first of another controller's slice must have come
/// before the first of our own, in the same line, to go first all the same. An execution makes about ten revisions in its life.
pub const LEAD: u64 = 1000;

/// Jobs without anything in line that are remembered beside as many that have, so that their turns are; the rest begins anew.
const IDLE_JOBS: usize = 10_000;

/// Who gets the next execution, of the executors that fit.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Strategy {
    /// The one with the largest share of free slots; of equals, the one that was given something longest ago.
    #[default]
    LeastLoaded,
    /// The one that was given something longest ago, however many slots it has free: as with the first Octavius, where an idle executor
    /// that asked first got what there was.
    FirstCome,
}

impl Strategy {
    /// Every strategy.
    pub const ALL: [Self; 2] = [Self::LeastLoaded, Self::FirstCome];

    /// As configuration files and flags write it.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::LeastLoaded => "least-loaded",
            Self::FirstCome => "first-come",
        }
    }
}

/// Which line something waits in.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LineName {
    /// A name for the labels asked for, the same for equal ones.
    pub pool: Arc<str>,
    /// The labels asked for.
    pub selector: Arc<Labels>,
    /// The job, in small letters.
    pub job: Arc<str>,
    /// 0 is the highest priority.
    pub rank: u8,
}

/// An execution in line.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Item {
    /// Its id.
    pub id: ExecutionId,
    /// Counts arrivals: the lowest has waited longest.
    pub arrived: u64,
    /// How many of its job may run at once; 0 where nothing is said, or where it has its slot already.
    pub limit: u32,
}

/// A line, as long as something waits in it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct LineId(u32);

/// What was decided.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Decision {
    /// The execution. It is out of line.
    pub item: Item,
    /// Where it stood.
    pub line: LineName,
    /// Who is to have it. One of its slots counts as taken until [`Dispatch::offer`] says otherwise.
    pub executor: ExecutorId,
    /// The slot of its job that it is to take.
    pub slot: Option<u32>,
}

/// What holds a line up.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Hold {
    /// Nothing: it goes as soon as its turn comes.
    Turn,
    /// Its job is paused.
    Paused,
    /// As many of its job run as may.
    Limit,
    /// Nobody here has its labels.
    NoExecutor,
    /// All who have its labels are full.
    Full,
}

/// When a line's turn comes; the lowest goes first.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
struct Turn {
    rank: u8,
    /// When its job was served last, counted in starts.
    served: u64,
    arrived: u64,
    line: usize,
}

/// Arrivals and ids of those in line, and their limits.
type Places = BTreeMap<(u64, ExecutionId), u32>;

#[derive(Debug)]
struct Line {
    pool: usize,
    job: usize,
    rank: u8,
    /// Of our own slice.
    own: Places,
    /// Of other controllers' slices.
    foreign: Places,
    /// Its place among its pool's lines; none while it is held up.
    turn: Option<Turn>,
}

impl Line {
    fn places(&mut self, own: bool) -> &mut Places {
        if own { &mut self.own } else { &mut self.foreign }
    }

    /// The first, and whether it is of our own slice.
    fn first(&self) -> Option<(Item, bool)> {
        let item = |(&(arrived, id), &limit): (&(u64, ExecutionId), &u32)| Item { id, arrived, limit };
        match (self.own.first_key_value().map(item), self.foreign.first_key_value().map(item)) {
            (Some(own), Some(foreign)) if foreign.arrived.saturating_add(LEAD) < own.arrived => Some((foreign, false)),
            (Some(own), _) => Some((own, true)),
            (None, foreign) => Some((foreign?, false)),
        }
    }

    fn len(&self) -> usize {
        self.own.len() + self.foreign.len()
    }
}

#[derive(Debug)]
struct Job {
    name: Arc<str>,
    lines: Vec<usize>,
    served: u64,
    paused: bool,
    slots: Slots,
}

/// Lines that ask for the same labels.
#[derive(Debug)]
struct Pool {
    name: Arc<str>,
    selector: Arc<Labels>,
    lines: usize,
    /// Those that are not held up.
    turns: BTreeSet<Turn>,
    /// The classes of executors that fit, and how many of them have a free slot.
    classes: Vec<usize>,
    free: usize,
    /// Its place among the pools that have a free slot and something to give it to.
    open: Option<Turn>,
}

/// Everything that waits, and everyone who is free.
#[derive(Debug, Default)]
pub struct Dispatch {
    lines: Slab<Line>,
    line_ids: HashMap<(usize, usize, u8), usize>,
    jobs: Slab<Job>,
    job_ids: HashMap<Arc<str>, usize>,
    pools: Slab<Pool>,
    pool_ids: HashMap<Arc<str>, usize>,
    open: BTreeSet<(Turn, usize)>,
    offers: Offers,
    /// Starts so far.
    served: u64,
    /// All jobs are paused.
    paused: bool,
    /// Where this controller begins to look for a free slot of a job.
    first_slot: u32,
    /// The revision of the newest listing of slots.
    slots_listed: u64,
}

impl Dispatch {
    /// Nothing waits and nobody is there. Slots of jobs are looked for from `first_slot` on.
    #[must_use]
    pub fn new(strategy: Strategy, first_slot: u32) -> Self {
        Self { offers: Offers::new(strategy), first_slot, ..Self::default() }
    }

    /// Puts an execution in line. `own` says whether it is of our own slice.
    pub fn arrive(&mut self, pool: &str, selector: &Labels, job: &str, rank: u8, item: Item, own: bool) -> LineId {
        let pool = self.pool(pool, selector);
        let job = self.job(job);
        let line = match self.line_ids.get(&(pool, job, rank)) {
            Some(line) => *line,
            None => {
                let line = Line { pool, job, rank, own: Places::new(), foreign: Places::new(), turn: None };
                let line = self.lines.insert(line);
                self.line_ids.insert((pool, job, rank), line);
                self.jobs[job].lines.push(line);
                self.pools[pool].lines += 1;
                line
            }
        };
        self.lines[line].places(own).insert((item.arrived, item.id), item.limit);
        self.refresh_line(line);
        LineId(u32::try_from(line).unwrap_or(u32::MAX))
    }

    /// Takes an execution out of line. `started` says that another controller may have started it: its job has had a turn.
    pub fn leave(&mut self, line: LineId, id: ExecutionId, arrived: u64, own: bool, started: bool) {
        let line = line.0 as usize;
        let Some(known) = self.lines.get_mut(line) else { return };
        if known.places(own).remove(&(arrived, id)).is_none() {
            return;
        }
        let job = known.job;
        if started {
            self.serve(job);
        }
        self.close_if_empty(line);
        self.refresh_job(job);
        self.forget_idle(job);
    }

    /// How an execution in this line is held up, if it is.
    #[must_use]
    pub fn hold(&self, line: LineId) -> Option<Hold> {
        self.lines.get(line.0 as usize).map(|line| self.hold_of(line))
    }

    /// How many of the same line are before this one, counted up to 1,000: nobody reads more.
    #[must_use]
    pub fn ahead(&self, line: LineId, id: ExecutionId, arrived: u64) -> usize {
        let Some(line) = self.lines.get(line.0 as usize) else { return 0 };
        let before = ..(arrived, id);
        line.own.range(before).chain(line.foreign.range(before)).take(1000).count()
    }

    /// What holds each line up, what it asks for, and how many wait in it.
    pub fn waiting(&self) -> impl Iterator<Item = (Hold, &Labels, usize)> {
        self.lines.iter().map(|(_, line)| (self.hold_of(line), &*self.pools[line.pool].selector, line.len()))
    }

    fn hold_of(&self, line: &Line) -> Hold {
        let (job, pool) = (&self.jobs[line.job], &self.pools[line.pool]);
        if self.paused || job.paused {
            Hold::Paused
        } else if line.first().is_some_and(|(first, _)| first.limit > 0 && !job.slots.has_room(first.limit)) {
            Hold::Limit
        } else if pool.classes.is_empty() {
            Hold::NoExecutor
        } else if pool.free == 0 {
            Hold::Full
        } else {
            Hold::Turn
        }
    }

    /// Decides again for each execution that is in line whether it is of our own slice.
    pub fn slice(&mut self, mut is_own: impl FnMut(ExecutionId) -> bool) {
        for line in self.lines.iter().map(|(line, _)| line).collect::<Vec<_>>() {
            let known = &mut self.lines[line];
            let all = std::mem::take(&mut known.own).into_iter().chain(std::mem::take(&mut known.foreign));
            (known.own, known.foreign) = all.partition(|((_, id), _)| is_own(*id));
            self.refresh_line(line);
        }
    }

    /// Forgets everything that waits; executors, turns, pauses and slots stay.
    pub fn clear(&mut self) {
        self.lines.clear();
        self.line_ids.clear();
        for (_, job) in &mut self.jobs {
            job.lines.clear();
        }
        for (_, class) in &mut self.offers.classes {
            class.pools.clear();
        }
        self.pools.clear();
        self.pool_ids.clear();
        self.open.clear();
    }

    /// An executor that may be given work, and how many of its slots are free; replaces what was said of it before.
    pub fn offer(&mut self, executor: &ExecutorId, labels: &Labels, capacity: usize, free: usize) {
        if let Some(class) = self.offers.class_of_executor(executor)
            && self.offers.classes[class].labels != *labels
        {
            self.withdraw(executor);
        }
        let (class, is_new) = self.offers.class_of(labels);
        if is_new {
            for (id, pool) in &mut self.pools {
                if crate::label::matches(&pool.selector, labels) {
                    pool.classes.push(class);
                    self.offers.classes[class].pools.push(id);
                }
            }
        }
        let shift = self.offers.seat(executor, class, capacity, free);
        self.shift(shift);
    }

    /// An executor that may not be given work any more.
    pub fn withdraw(&mut self, executor: &ExecutorId) {
        let class = self.offers.class_of_executor(executor);
        let (shift, gone) = self.offers.remove(executor);
        // The class may be gone: its pools are told by what is left of it.
        if let (Some(class), Some(gone)) = (class, gone) {
            for pool in gone.pools {
                let known = &mut self.pools[pool];
                known.classes.retain(|known| *known != class);
                known.free -= usize::from(shift.is_some());
                self.refresh_pool(pool);
            }
        } else {
            self.shift(shift);
        }
    }

    /// Pauses a job, or lets it go on.
    pub fn pause(&mut self, job: &str, paused: bool) {
        let job = self.job(job);
        self.jobs[job].paused = paused;
        self.refresh_job(job);
        self.forget_idle(job);
    }

    /// Pauses all jobs, or lets go on those that are not paused by themselves.
    pub fn pause_all(&mut self, paused: bool) {
        self.paused = paused;
        for line in self.lines.iter().map(|(line, _)| line).collect::<Vec<_>>() {
            self.refresh_line(line);
        }
    }

    /// The next execution to start, and where; none where nothing can go anywhere.
    pub fn take(&mut self) -> Option<Decision> {
        let (turn, pool) = *self.open.first()?;
        let (item, own) = self.lines[turn.line].first()?;
        let (executor, shift) = self.offers.take(&self.pools[pool].classes)?;
        let line = &mut self.lines[turn.line];
        line.places(own).remove(&(item.arrived, item.id));
        let job = line.job;
        let known = &mut self.jobs[job];
        let slot = if item.limit > 0 { known.slots.free(item.limit, self.first_slot) } else { None };
        if let Some(slot) = slot {
            known.slots.claim(slot, item.id);
        }
        let at = &self.pools[pool];
        let (job_name, rank) = (Arc::clone(&known.name), turn.rank);
        let line = LineName { pool: Arc::clone(&at.name), selector: Arc::clone(&at.selector), job: job_name, rank };
        self.shift(shift);
        self.serve(job);
        self.close_if_empty(turn.line);
        self.refresh_job(job);
        self.forget_idle(job);
        Some(Decision { item, line, executor, slot })
    }

    /// A free slot of `job` for `holder`, where `limit` may run at once; it counts as taken until [`Dispatch::slot_failed`] or
    /// [`Dispatch::slot_made`] is called.
    pub fn take_slot(&mut self, job: &str, limit: u32, holder: ExecutionId) -> Option<u32> {
        let job = self.job(job);
        let slots = &mut self.jobs[job].slots;
        let slot = slots.free(limit, self.first_slot);
        if let Some(slot) = slot {
            slots.claim(slot, holder);
        }
        self.refresh_job(job);
        slot
    }

    /// The same for a slot that is known to be free, whatever has been shown here.
    pub fn claim_slot(&mut self, job: &str, slot: u32, holder: ExecutionId) {
        self.with_slots(job, |slots, _| slots.claim(slot, holder));
    }

    /// The transaction that was to take a slot did not.
    pub fn slot_failed(&mut self, job: &str, slot: u32, holder: ExecutionId) {
        self.with_slots(job, |slots, _| slots.failed(slot, holder));
    }

    /// A slot was taken, at `revision`.
    pub fn slot_made(&mut self, job: &str, slot: u32, holder: ExecutionId, revision: u64) {
        self.with_slots(job, |slots, listed| slots.made(slot, holder, revision, listed));
    }

    /// The store shows that a slot is taken.
    pub fn slot_shown(&mut self, job: &str, slot: u32, holder: ExecutionId) {
        self.with_slots(job, |slots, _| slots.show(slot, holder));
    }

    /// The store shows that a slot is free.
    pub fn slot_freed(&mut self, job: &str, slot: u32) {
        self.with_slots(job, |slots, _| slots.gone(slot));
    }

    /// Takes in a listing of all slots that are taken, as of `revision`.
    pub fn list_slots<'a>(&mut self, taken: impl Iterator<Item = (&'a str, u32, ExecutionId)>, revision: u64) {
        self.slots_listed = revision;
        for (_, job) in &mut self.jobs {
            job.slots.forget_shown(revision);
        }
        for (job, slot, holder) in taken {
            let job = self.job(job);
            self.jobs[job].slots.show(slot, holder);
        }
        for job in self.jobs.iter().map(|(job, _)| job).collect::<Vec<_>>() {
            self.refresh_job(job);
        }
    }

    /// The executions that hold a slot of `job`, at most `limit` of them.
    #[must_use]
    pub fn holders(&self, job: &str, limit: usize) -> Vec<ExecutionId> {
        let job = self.job_ids.get(job).and_then(|job| self.jobs.get(*job));
        job.map(|job| job.slots.holders().take(limit).collect()).unwrap_or_default()
    }

    fn with_slots(&mut self, job: &str, change: impl FnOnce(&mut Slots, u64)) {
        let job = self.job(job);
        let listed = self.slots_listed;
        change(&mut self.jobs[job].slots, listed);
        self.refresh_job(job);
        self.forget_idle(job);
    }

    fn pool(&mut self, name: &str, selector: &Labels) -> usize {
        if let Some(pool) = self.pool_ids.get(name) {
            return *pool;
        }
        let (classes, free) = self.offers.fitting(selector);
        let name: Arc<str> = name.into();
        let pool = self.pools.insert(Pool {
            name: Arc::clone(&name),
            selector: Arc::new(selector.clone()),
            lines: 0,
            turns: BTreeSet::new(),
            classes: classes.clone(),
            free,
            open: None,
        });
        for class in classes {
            self.offers.classes[class].pools.push(pool);
        }
        self.pool_ids.insert(name, pool);
        pool
    }

    fn job(&mut self, name: &str) -> usize {
        if let Some(job) = self.job_ids.get(name) {
            return *job;
        }
        let name: Arc<str> = name.into();
        let job = Job { name: Arc::clone(&name), lines: Vec::new(), served: 0, paused: false, slots: Slots::default() };
        let job = self.jobs.insert(job);
        self.job_ids.insert(name, job);
        job
    }

    /// One of this job starts: it goes to the back.
    fn serve(&mut self, job: usize) {
        self.served += 1;
        self.jobs[job].served = self.served;
    }

    /// Jobs that have nothing in line are remembered for their turns, but not without end.
    fn forget_idle(&mut self, job: usize) {
        let is_idle = |job: &Job| job.lines.is_empty() && job.slots.is_empty() && !job.paused;
        if self.jobs.len() <= IDLE_JOBS + 2 * self.lines.len() || !is_idle(&self.jobs[job]) {
            return;
        }
        let ids = &mut self.job_ids;
        self.jobs.retain(|_, job| {
            let stays = !is_idle(job);
            if !stays {
                ids.remove(&job.name);
            }
            stays
        });
    }

    fn close_if_empty(&mut self, line: usize) {
        if self.lines[line].len() > 0 {
            return;
        }
        self.set_turn(line, None);
        let Line { pool, job, rank, .. } = self.lines.remove(line);
        self.line_ids.remove(&(pool, job, rank));
        self.jobs[job].lines.retain(|known| *known != line);
        let known = &mut self.pools[pool];
        known.lines -= 1;
        if known.lines == 0 {
            let Pool { name, classes, .. } = self.pools.remove(pool);
            self.pool_ids.remove(&name);
            for class in classes {
                self.offers.classes[class].pools.retain(|known| *known != pool);
            }
        }
    }

    fn refresh_job(&mut self, job: usize) {
        for index in 0..self.jobs[job].lines.len() {
            self.refresh_line(self.jobs[job].lines[index]);
        }
    }

    fn refresh_line(&mut self, line: usize) {
        let known = &self.lines[line];
        let job = &self.jobs[known.job];
        let turn = known.first().and_then(|(first, _)| {
            let goes = !self.paused && !job.paused && (first.limit == 0 || job.slots.has_room(first.limit));
            let served = job.served + if known.own.is_empty() { STAND_BACK } else { 0 };
            goes.then_some(Turn { rank: known.rank, served, arrived: first.arrived, line })
        });
        self.set_turn(line, turn);
    }

    fn set_turn(&mut self, line: usize, turn: Option<Turn>) {
        let known = &mut self.lines[line];
        if known.turn == turn {
            return;
        }
        let turns = &mut self.pools[known.pool].turns;
        if let Some(old) = std::mem::replace(&mut known.turn, turn) {
            turns.remove(&old);
        }
        turns.extend(turn);
        let pool = known.pool;
        self.refresh_pool(pool);
    }

    fn refresh_pool(&mut self, pool: usize) {
        let known = &mut self.pools[pool];
        let open = if known.free > 0 { known.turns.first().copied() } else { None };
        if known.open == open {
            return;
        }
        if let Some(old) = std::mem::replace(&mut known.open, open) {
            self.open.remove(&(old, pool));
        }
        self.open.extend(open.map(|open| (open, pool)));
    }

    /// Tells the pools that a class fits whether it has a free slot now.
    fn shift(&mut self, shift: Option<Shift>) {
        let (class, opened) = match shift {
            Some(Shift::Opened(class)) => (class, true),
            Some(Shift::Closed(class)) => (class, false),
            None => return,
        };
        for index in 0..self.offers.classes[class].pools.len() {
            let pool = self.offers.classes[class].pools[index];
            let known = &mut self.pools[pool];
            if opened {
                known.free += 1;
            } else {
                known.free -= 1;
            }
            self.refresh_pool(pool);
        }
    }
}
