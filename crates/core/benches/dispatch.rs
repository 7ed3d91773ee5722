//! How quickly it is decided what goes next and where, with many executions waiting: `cargo bench -p octavius-core`. The aim: 50,000 decisions
//! a second on one core, as many with 100,000 waiting as with 1,000.
//!
//! 1,000 jobs wait for 500 executors with 50 sets of labels, all of whose slots are taken: each turn one slot is freed, what waits for it is
//! decided, and a new execution arrives, so that as many wait at the end as at the beginning. One turn is what an execution costs here.

use std::time::{Duration, Instant};

use octavius_core::dispatch::{Dispatch, Item, Strategy};
use octavius_core::{ExecutionId, ExecutorId, Labels};

const JOBS: u64 = 1_000;
const EXECUTORS: usize = 500;
const LABEL_SETS: usize = 50;
const SLOTS: usize = 8;
const TURNS: u64 = 200_000;

/// A small generator: the same numbers each time.
struct Random(u64);

impl Random {
    fn below(&mut self, end: u64) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0 % end
    }
}

/// What an executor of this set has: where it is, and what it is good for.
fn labels(set: usize) -> Labels {
    [("vpc".to_owned(), format!("vpc-{}", set / 2)), ("disk".to_owned(), ["large", "small"][set % 2].to_owned())].into()
}

/// What a job asks for: one set exactly, or a network and nothing else, or nothing at all.
fn selector(job: u64) -> Labels {
    let mut all = labels((job as usize / 3) % LABEL_SETS);
    match job % 3 {
        0 => {}
        1 => drop(all.remove("disk")),
        _ => all.clear(),
    }
    all
}

struct World {
    dispatch: Dispatch,
    executors: Vec<(ExecutorId, Labels)>,
    /// Who runs something, once for each slot.
    busy: Vec<usize>,
    jobs: Vec<(String, String, Labels)>,
    arrived: u64,
    random: Random,
}

impl World {
    fn new(waiting: u64, strategy: Strategy) -> Result<Self, Box<dyn std::error::Error>> {
        let mut dispatch = Dispatch::new(strategy, 0);
        let mut executors = Vec::new();
        for number in 0..EXECUTORS {
            let executor = (ExecutorId::new(format!("executor-{number}"))?, labels(number % LABEL_SETS));
            dispatch.offer(&executor.0, &executor.1, SLOTS, 0);
            executors.push(executor);
        }
        let busy = (0..EXECUTORS * SLOTS).map(|slot| slot % EXECUTORS).collect();
        let jobs = (0..JOBS).map(|job| (format!("job-{job}"), octavius_core::label::pool(&selector(job)), selector(job)));
        let mut world =
            Self { dispatch, executors, busy, jobs: jobs.collect(), arrived: 0, random: Random(0x9E37_79B9_7F4A_7C15) };
        for _ in 0..waiting {
            world.arrive();
        }
        Ok(world)
    }

    fn arrive(&mut self) {
        self.arrived += 1;
        let job = self.random.below(JOBS);
        let (name, pool, selector) = &self.jobs[job as usize];
        let item = Item { id: ExecutionId::from_bits(self.arrived.into()), arrived: self.arrived, limit: 0 };
        self.dispatch.arrive(pool, selector, name, (job % 3) as u8 + 3, item, true);
    }

    /// One execution ends, the next one starts, another arrives. Returns whether something started, and how long deciding took.
    fn turn(&mut self) -> (bool, Duration) {
        let slot = self.random.below(self.busy.len() as u64) as usize;
        let (executor, labels) = &self.executors[self.busy[slot]];
        let start = Instant::now();
        self.dispatch.offer(executor, labels, SLOTS, 1);
        let decision = self.dispatch.take();
        let decided = start.elapsed();
        if decision.is_some() {
            self.arrive();
        } else {
            self.dispatch.offer(executor, labels, SLOTS, 0);
        }
        (decision.is_some(), decided)
    }
}

#[expect(clippy::print_stdout, reason = "a benchmark prints what it measured")]
fn main() -> Result<(), Box<dyn std::error::Error>> {
    println!("{JOBS} jobs, {EXECUTORS} executors with {LABEL_SETS} sets of labels, {TURNS} turns on one core");
    println!("| waiting | strategy | decisions | a decision alone | beside 1,000 waiting |");
    println!("| --- | --- | --- | --- | --- |");
    for strategy in Strategy::ALL {
        let mut first = None;
        for waiting in [1_000, 10_000, 100_000] {
            let mut world = World::new(waiting, strategy)?;
            let (mut decided, mut deciding) = (0_u64, Duration::ZERO);
            let start = Instant::now();
            for _ in 0..TURNS {
                let (made, took) = world.turn();
                decided += u64::from(made);
                deciding += took;
            }
            let rate = decided as f64 / start.elapsed().as_secs_f64();
            let alone = deciding.as_secs_f64() * 1e6 / TURNS as f64;
            let first = *first.get_or_insert(rate);
            println!("| {waiting} | {} | {rate:.0}/s | {alone:.2} µs | {:.2} × |", strategy.as_str(), rate / first);
            assert!(decided > TURNS / 2, "only {decided} decisions in {TURNS} turns: this measures nothing");
        }
    }
    Ok(())
}
