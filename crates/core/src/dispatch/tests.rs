//! Held against a model that looks at everything each time.

use std::collections::BTreeMap;

use proptest::prelude::*;
use proptest::strategy::Strategy as _;

use super::Strategy;
use super::*;
use crate::label;

fn id(bits: u128) -> ExecutionId {
    ExecutionId::from_bits(bits)
}

fn executor(name: &str) -> ExecutorId {
    name.parse().unwrap()
}

fn labels(pairs: &[(&str, &str)]) -> Labels {
    pairs.iter().map(|(k, v)| ((*k).to_owned(), (*v).to_owned())).collect()
}

/// A dispatch with one executor without labels.
fn one_executor(free: usize) -> Dispatch {
    let mut dispatch = Dispatch::new(Strategy::LeastLoaded, 0);
    dispatch.offer(&executor("e"), &labels(&[]), free.max(1), free);
    dispatch
}

fn wait(dispatch: &mut Dispatch, job: &str, number: u64, limit: u32) -> LineId {
    dispatch.arrive("any", &Labels::new(), job, 4, Item { id: id(number.into()), arrived: number, limit }, true)
}

fn taken(dispatch: &mut Dispatch) -> Vec<u128> {
    std::iter::from_fn(|| dispatch.take()).map(|decision| decision.item.id.to_bits()).collect()
}

#[test]
fn ten_of_others_start_before_forty_of_a_flood() {
    let others: [fn(u64) -> String; 2] = [|_| "other".to_owned(), |number| format!("other-{number}")];
    for name in others {
        let mut dispatch = one_executor(20_000);
        for number in 0..10_000 {
            wait(&mut dispatch, "flood", number, 0);
        }
        // The flood has had the place for itself for a while.
        for _ in 0..100 {
            dispatch.take().unwrap();
        }
        for number in 10_000..10_010 {
            wait(&mut dispatch, &name(number), number, 0);
        }
        let order = taken(&mut dispatch);
        let last = order.iter().rposition(|bits| *bits >= 10_000).unwrap();
        assert!(last < 40, "the last of the others was number {last}");
        assert_eq!(order.len(), 9_910);
    }
}

/// A flood whose executors are shared with a pool that asks for more.
#[test]
fn jobs_are_served_in_turn_over_pools_too() {
    let mut dispatch = Dispatch::new(Strategy::LeastLoaded, 0);
    let web = labels(&[("vpc", "web")]);
    dispatch.offer(&executor("e"), &web, 100, 100);
    for number in 0..60 {
        wait(&mut dispatch, "flood", number, 0);
    }
    for number in 60..70 {
        dispatch.arrive("vpc=web", &web, "other", 4, Item { id: id(number.into()), arrived: number, limit: 0 }, true);
    }
    let last = taken(&mut dispatch).iter().rposition(|bits| *bits >= 60).unwrap();
    assert!(last < 21, "{last}");
}

#[test]
fn a_job_runs_as_often_at_once_as_it_says_and_holds_nobody_up() {
    let mut dispatch = one_executor(10);
    for number in 0..4 {
        wait(&mut dispatch, "limited", number, 2);
    }
    let line = wait(&mut dispatch, "limited", 4, 2);
    wait(&mut dispatch, "free", 5, 0);
    let first = dispatch.take().unwrap();
    let mut slots = vec![first.slot];
    assert_eq!(taken(&mut dispatch), [5, 1]);
    assert_eq!(dispatch.hold(line), Some(Hold::Limit));
    assert_eq!(dispatch.holders("limited", 9), [id(0), id(1)]);
    // The claim of the first fails, that of the second is shown and ends.
    dispatch.slot_failed("limited", 0, id(0));
    let next = dispatch.take().unwrap();
    slots.push(next.slot);
    assert_eq!((next.item.id, slots), (id(2), vec![Some(0), Some(0)]));
    dispatch.slot_made("limited", 1, id(1), 7);
    assert_eq!(taken(&mut dispatch), [0_u128; 0]);
    dispatch.slot_shown("limited", 1, id(1));
    dispatch.slot_freed("limited", 1);
    assert_eq!(taken(&mut dispatch), [3]);
}

/// Otherwise a slot that is taken and freed while a watch is broken is taken for ever.
#[test]
fn a_slot_is_free_again_whatever_the_store_shows_when() {
    let mut dispatch = one_executor(10);
    let claim = |dispatch: &mut Dispatch, number| {
        wait(dispatch, "j", number, 1);
        dispatch.take().is_some()
    };
    assert!(claim(&mut dispatch, 1));
    dispatch.slot_made("j", 0, id(1), 5);
    assert!(!claim(&mut dispatch, 2));
    dispatch.list_slots(std::iter::empty(), 4);
    assert!(dispatch.take().is_none(), "the listing is older than the claim");
    dispatch.list_slots(std::iter::empty(), 6);
    assert!(dispatch.take().is_some(), "taken at 5 and freed before 6");
    // The answer to the claim comes after a listing that is newer than it.
    dispatch.list_slots(std::iter::empty(), 9);
    assert!(!claim(&mut dispatch, 3), "a claim under way stays");
    dispatch.slot_made("j", 0, id(2), 8);
    assert!(dispatch.take().is_some());
    // Another controller was quicker: what it holds stays taken when our claim fails.
    dispatch.slot_shown("j", 0, id(7));
    dispatch.slot_failed("j", 0, id(3));
    assert!(!claim(&mut dispatch, 4));
}

#[test]
fn slots_above_a_limit_that_was_lowered_count() {
    let mut dispatch = one_executor(10);
    dispatch.list_slots([("j", 4, id(90)), ("j", 3, id(91))].into_iter(), 1);
    wait(&mut dispatch, "j", 1, 2);
    assert!(dispatch.take().is_none());
    dispatch.slot_freed("j", 4);
    assert_eq!(dispatch.take().unwrap().slot, Some(0));
}

#[test]
fn what_is_paused_waits() {
    let mut dispatch = one_executor(10);
    let line = wait(&mut dispatch, "j", 1, 0);
    dispatch.pause("j", true);
    assert_eq!((dispatch.take(), dispatch.hold(line)), (None, Some(Hold::Paused)));
    dispatch.pause_all(true);
    dispatch.pause("j", false);
    assert_eq!((dispatch.take(), dispatch.hold(line)), (None, Some(Hold::Paused)));
    dispatch.pause_all(false);
    assert_eq!(taken(&mut dispatch), [1]);
}

#[test]
fn strategies_choose_among_those_that_fit() {
    for (strategy, expected) in
        [(Strategy::LeastLoaded, ["big", "big", "small"]), (Strategy::FirstCome, ["small", "big", "small"])]
    {
        let mut dispatch = Dispatch::new(strategy, 0);
        dispatch.offer(&executor("small"), &labels(&[("a", "1")]), 2, 2);
        dispatch.offer(&executor("big"), &labels(&[("b", "1")]), 8, 8);
        dispatch.offer(&executor("small"), &labels(&[("a", "1")]), 4, 2);
        for number in 0..3 {
            wait(&mut dispatch, "j", number, 0);
        }
        let mut order: Vec<String> = std::iter::from_fn(|| dispatch.take()).map(|taken| taken.executor.to_string()).collect();
        order.sort_unstable();
        let mut expected = expected.map(str::to_owned);
        expected.sort_unstable();
        if strategy == Strategy::LeastLoaded {
            assert_eq!(order, ["big", "big", "big"], "half of the small one is taken");
        } else {
            assert_eq!(order, expected);
        }
    }
}

#[test]
fn an_own_line_goes_before_a_foreign_one_and_nothing_is_left_behind() {
    let mut dispatch = one_executor(1000);
    let place = |dispatch: &mut Dispatch, job: &str, number: u64, own| {
        let item = Item { id: id(number.into()), arrived: number, limit: 0 };
        dispatch.arrive("any", &Labels::new(), job, 4, item, own);
    };
    for number in 0..500 {
        place(&mut dispatch, "own", 10 + number, true);
    }
    place(&mut dispatch, "foreign", 1, false);
    let order = taken(&mut dispatch);
    let at = order.iter().position(|bits| *bits == 1).unwrap() as u64;
    assert!((STAND_BACK..=STAND_BACK + 2).contains(&at), "{at}");
    // Within a line, our own first, until the other has waited for much longer.
    place(&mut dispatch, "j", 1, false);
    place(&mut dispatch, "j", LEAD, true);
    place(&mut dispatch, "j", LEAD + 5, true);
    assert_eq!(taken(&mut dispatch), [u128::from(LEAD), 1, u128::from(LEAD) + 5]);
}

#[test]
fn nothing_is_left_of_what_is_over() {
    let mut dispatch = Dispatch::new(Strategy::LeastLoaded, 0);
    for number in 0..30_000 {
        let job = format!("job-{number}");
        let line = wait(&mut dispatch, &job, number, 1);
        if number % 2 == 0 {
            dispatch.leave(line, id(number.into()), number, true, number % 4 == 0);
        }
    }
    dispatch.offer(&executor("e"), &labels(&[("a", "b")]), 20_000, 20_000);
    while let Some(decision) = dispatch.take() {
        dispatch.slot_failed(&decision.line.job, decision.slot.unwrap(), decision.item.id);
    }
    dispatch.withdraw(&executor("e"));
    assert!(dispatch.lines.is_empty() && dispatch.pools.is_empty() && dispatch.open.is_empty() && dispatch.line_ids.is_empty());
    assert!(dispatch.offers.classes.is_empty());
    assert!(dispatch.jobs.len() <= IDLE_JOBS + 1, "{}", dispatch.jobs.len());
    assert_eq!(dispatch.jobs.len(), dispatch.job_ids.len());
}

/// Everything that can happen, with small numbers so that things meet.
#[derive(Debug, Clone)]
enum Op {
    Arrive { pool: u8, job: u8, rank: u8, limit: u32, own: bool },
    Leave { which: usize, started: bool },
    Offer { executor: u8, labels: u8, capacity: usize, free: usize },
    Withdraw { executor: u8 },
    Pause { job: u8, paused: bool },
    PauseAll { paused: bool },
    SlotFreed { job: u8, slot: u32 },
    SlotShown { job: u8, slot: u32 },
    Slice { modulus: u128 },
    Take,
}

fn op() -> impl proptest::strategy::Strategy<Value = Op> {
    prop_oneof![
        6 => (0..4_u8, 0..4_u8, 3..6_u8, prop_oneof![Just(0_u32), 1..3_u32], any::<bool>())
            .prop_map(|(pool, job, rank, limit, own)| Op::Arrive { pool, job, rank, limit, own }),
        2 => (any::<usize>(), any::<bool>()).prop_map(|(which, started)| Op::Leave { which, started }),
        4 => (0..4_u8, 0..4_u8, 1..5_usize, 0..5_usize)
            .prop_map(|(executor, labels, capacity, free)| Op::Offer { executor, labels, capacity, free }),
        1 => (0..4_u8).prop_map(|executor| Op::Withdraw { executor }),
        1 => (0..4_u8, any::<bool>()).prop_map(|(job, paused)| Op::Pause { job, paused }),
        1 => any::<bool>().prop_map(|paused| Op::PauseAll { paused }),
        2 => (0..4_u8, 0..3_u32).prop_map(|(job, slot)| Op::SlotFreed { job, slot }),
        1 => (0..4_u8, 0..3_u32).prop_map(|(job, slot)| Op::SlotShown { job, slot }),
        1 => (1..4_u128).prop_map(|modulus| Op::Slice { modulus }),
        8 => Just(Op::Take),
    ]
}

/// Selectors of pools and labels of executors, by number: 3 asks for everything, or has it.
fn some_labels(number: u8) -> Labels {
    match number {
        0 => labels(&[]),
        1 => labels(&[("a", "1")]),
        2 => labels(&[("b", "1")]),
        _ => labels(&[("a", "1"), ("b", "1")]),
    }
}

#[derive(Debug, Clone)]
struct Waits {
    pool: u8,
    job: u8,
    rank: u8,
    item: Item,
    own: bool,
    line: LineId,
}

#[derive(Debug, Clone, Copy)]
struct Free {
    labels: u8,
    capacity: usize,
    free: usize,
    given: u64,
}

#[derive(Debug, Default)]
struct Model {
    waits: Vec<Waits>,
    executors: BTreeMap<u8, Free>,
    served: BTreeMap<u8, u64>,
    serves: u64,
    given: u64,
    paused: BTreeMap<u8, bool>,
    all_paused: bool,
    slots: BTreeMap<u8, BTreeMap<u32, ExecutionId>>,
}

impl Model {
    fn line(&self, of: &Waits) -> impl Iterator<Item = &Waits> + use<'_> {
        let (pool, job, rank) = (of.pool, of.job, of.rank);
        self.waits.iter().filter(move |other| (other.pool, other.job, other.rank) == (pool, job, rank))
    }

    fn is_first(&self, waits: &Waits) -> bool {
        let earliest = |own| self.line(waits).filter(|w| w.own == own).map(|w| (w.item.arrived, w.item.id)).min();
        let (own, foreign) = (earliest(true), earliest(false));
        let first = match (own, foreign) {
            (Some(own), Some(foreign)) => {
                if foreign.0 + LEAD < own.0 {
                    foreign
                } else {
                    own
                }
            }
            (own, foreign) => own.or(foreign).unwrap(),
        };
        first == (waits.item.arrived, waits.item.id)
    }

    fn best(&self, pool: u8) -> Option<u8> {
        let fits = |free: &Free| free.free > 0 && label::matches(&some_labels(pool), &some_labels(free.labels));
        let share = |free: &Free| (free.capacity - free.free) as u64 * (1 << 20) / free.capacity as u64;
        self.executors.iter().filter(|(_, free)| fits(free)).min_by_key(|(_, free)| (share(free), free.given)).map(|(e, _)| *e)
    }

    fn goes(&self, waits: &Waits) -> bool {
        let held = self.slots.get(&waits.job).map_or(0, BTreeMap::len);
        !self.all_paused
            && !self.paused.get(&waits.job).copied().unwrap_or_default()
            && (waits.item.limit == 0 || held < waits.item.limit as usize)
            && self.is_first(waits)
            && self.best(waits.pool).is_some()
    }

    fn turn(&self, waits: &Waits) -> (u8, u64, u64) {
        let back = if self.line(waits).any(|other| other.own) { 0 } else { STAND_BACK };
        (waits.rank, self.served.get(&waits.job).copied().unwrap_or_default() + back, waits.item.arrived)
    }

    fn serve(&mut self, job: u8) {
        self.serves += 1;
        self.served.insert(job, self.serves);
    }
}

fn seat(number: u8) -> ExecutorId {
    executor(&format!("e{number}"))
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 500, ..ProptestConfig::default() })]

    #[test]
    fn every_decision_is_the_one_of_a_model_that_looks_at_everything(ops in prop::collection::vec(op(), 1..80)) {
        let mut dispatch = Dispatch::new(Strategy::LeastLoaded, 0);
        let mut model = Model::default();
        let mut arrivals = 0;
        for op in ops {
            match op {
                Op::Arrive { pool, job, rank, limit, own } => {
                    // Far enough apart that what stands behind by LEAD occurs.
                    arrivals += 400;
                    let item = Item { id: id(arrivals.into()), arrived: arrivals, limit };
                    let line = dispatch.arrive(&pool.to_string(), &some_labels(pool), &job.to_string(), rank, item, own);
                    model.waits.push(Waits { pool, job, rank, item, own, line });
                }
                Op::Leave { which, started } if !model.waits.is_empty() => {
                    let waits = model.waits.remove(which % model.waits.len());
                    dispatch.leave(waits.line, waits.item.id, waits.item.arrived, waits.own, started);
                    if started {
                        model.serve(waits.job);
                    }
                }
                Op::Leave { .. } => {}
                Op::Offer { executor, labels, capacity, free } => {
                    let free = free.min(capacity);
                    dispatch.offer(&seat(executor), &some_labels(labels), capacity, free);
                    // One whose labels have changed is another.
                    let given = model.executors.get(&executor).filter(|known| known.labels == labels).map_or(model.given, |k| k.given);
                    model.executors.insert(executor, Free { labels, capacity, free, given });
                }
                Op::Withdraw { executor } => {
                    dispatch.withdraw(&seat(executor));
                    model.executors.remove(&executor);
                }
                Op::Pause { job, paused } => {
                    dispatch.pause(&job.to_string(), paused);
                    model.paused.insert(job, paused);
                }
                Op::PauseAll { paused } => {
                    dispatch.pause_all(paused);
                    model.all_paused = paused;
                }
                Op::SlotFreed { job, slot } => {
                    dispatch.slot_freed(&job.to_string(), slot);
                    model.slots.entry(job).or_default().remove(&slot);
                }
                Op::SlotShown { job, slot } => {
                    dispatch.slot_shown(&job.to_string(), slot, id(9));
                    model.slots.entry(job).or_default().insert(slot, id(9));
                }
                Op::Slice { modulus } => {
                    let is_own = |id: ExecutionId| (id.to_bits() / 400).is_multiple_of(modulus);
                    dispatch.slice(is_own);
                    model.waits.iter_mut().for_each(|waits| waits.own = is_own(waits.item.id));
                }
                Op::Take => {
                    let expected = model.waits.iter().filter(|waits| model.goes(waits)).map(|waits| model.turn(waits)).min();
                    let decision = dispatch.take();
                    prop_assert_eq!(decision.is_some(), expected.is_some());
                    let Some(decision) = decision else { continue };
                    let at = model.waits.iter().position(|waits| waits.item == decision.item).unwrap();
                    prop_assert!(model.goes(&model.waits[at]));
                    prop_assert_eq!(Some(model.turn(&model.waits[at])), expected);
                    let waits = model.waits.remove(at);
                    // Of equals, any.
                    let chosen: u8 = decision.executor.as_str()[1..].parse().unwrap();
                    let best = model.best(waits.pool).unwrap();
                    let key = |e: u8| { let f = model.executors[&e]; ((f.capacity - f.free) as u64 * (1 << 20) / f.capacity as u64, f.given) };
                    prop_assert_eq!(key(chosen), key(best));
                    prop_assert!(label::matches(&some_labels(waits.pool), &some_labels(model.executors[&chosen].labels)));
                    model.given += 1;
                    let free = model.executors.get_mut(&chosen).unwrap();
                    free.free -= 1;
                    free.given = model.given;
                    model.serve(waits.job);
                    if waits.item.limit > 0 {
                        let slots = model.slots.entry(waits.job).or_default();
                        let slot = decision.slot.unwrap();
                        prop_assert!(slot < waits.item.limit && !slots.contains_key(&slot));
                        slots.insert(slot, waits.item.id);
                    } else {
                        prop_assert_eq!(decision.slot, None);
                    }
                }
            }
            let counted: usize = dispatch.waiting().map(|(_, _, count)| count).sum();
            prop_assert_eq!(counted, model.waits.len());
        }
    }
}
