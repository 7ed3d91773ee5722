//! Holds a history against the invariants I1 to I6. A pure function: the same history always gives the same answer.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::time::Duration;

use octavius_core::execution::State;

use crate::history::{Event, Permits, Reader, Seen, What};

/// What must hold over every fault.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Invariant {
    /// Every acknowledged execution reaches a terminal state in time.
    I1,
    /// At most one start per attempt; another attempt only where the job permits it.
    I2,
    /// The stored log is what the job printed, or says that it is not.
    I3,
    /// Terminal states never change; what is heard late stands beside them.
    I4,
    /// After retention nothing is left.
    I5,
    /// A catalogue is wholly one revision for every reader.
    I6,
}

/// An invariant that did not hold.
#[derive(Debug, Clone)]
pub struct Violation {
    /// Which.
    pub invariant: Invariant,
    /// How that shows.
    pub message: String,
    /// What happened around it.
    pub around: Vec<Event>,
}

impl fmt::Display for Violation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:?} is violated: {}", self.invariant, self.message)?;
        self.around.iter().try_for_each(|event| write!(f, "\n  {event}"))
    }
}

/// What the checker found.
#[derive(Debug, Default)]
pub struct Verdict {
    /// What did not hold.
    pub violations: Vec<Violation>,
    /// Acknowledged executions that had not ended when the history did, and still had time: neither right nor wrong.
    pub undecided: Vec<String>,
    /// Executions by their last known state.
    pub states: BTreeMap<&'static str, usize>,
    /// How many were acknowledged.
    pub acknowledged: usize,
    /// How many starts jobs told of.
    pub starts: usize,
}

/// Most events that are shown with a violation.
const AROUND: usize = 40;

/// How near to a violation's events faults are shown with it.
const NEAR: Duration = Duration::from_secs(5);

/// Checks a history whose events are in order of time. `grace` is what I1 allows over a deadline: 300 s, divided as all timing was.
#[must_use]
pub fn check(events: &[Event], grace: Duration) -> Verdict {
    let mut check = Check { events, verdict: Verdict::default() };
    let end = events.last().map_or(Duration::ZERO, |event| event.at);
    let outages = outages(events, end);
    for (id, life) in lives(events) {
        check.verdict.starts += life.starts.values().sum::<usize>();
        if let Some(seen) = life.sights.last() {
            *check.verdict.states.entry(seen.seen.state.as_str()).or_default() += 1;
        }
        check.ends_in_time(id, &life, grace, &outages, end);
        check.starts_once(id, &life);
        check.keeps_logs(id, &life);
        check.never_changes_its_end(id, &life);
    }
    check.leaves_nothing();
    check.shows_whole_catalogues();
    check.verdict
}

struct Check<'e> {
    events: &'e [Event],
    verdict: Verdict,
}

/// A sight of an execution.
struct Sight<'e> {
    at: Duration,
    by: Reader,
    seen: &'e Seen,
}

/// Everything about one execution.
#[derive(Default)]
struct Life<'e> {
    permits: Option<Permits>,
    acknowledged: Option<Duration>,
    sights: Vec<Sight<'e>>,
    missing: Vec<Duration>,
    starts: BTreeMap<u32, usize>,
    logs: Vec<&'e What>,
}

fn lives(events: &[Event]) -> BTreeMap<&str, Life<'_>> {
    let mut lives: BTreeMap<&str, Life<'_>> = BTreeMap::new();
    for event in events {
        let Some(id) = event.what.id() else { continue };
        let life = lives.entry(id).or_default();
        match &event.what {
            What::Submitted { permits, .. } => life.permits = Some(*permits),
            What::Acknowledged { .. } => life.acknowledged = life.acknowledged.or(Some(event.at)),
            What::Seen { by, seen, .. } => life.sights.push(Sight { at: event.at, by: *by, seen }),
            What::Missing { asked, .. } => life.missing.push(*asked),
            What::Started { attempt, .. } => *life.starts.entry(*attempt).or_default() += 1,
            What::Log { .. } => life.logs.push(&event.what),
            _ => {}
        }
    }
    lives
}

/// When the store was away.
fn outages(events: &[Event], end: Duration) -> Vec<(Duration, Duration)> {
    let mut outages = Vec::new();
    let mut since = None;
    for event in events {
        match event.what {
            What::StoreAway => since = since.or(Some(event.at)),
            What::StoreBack => outages.extend(since.take().map(|since| (since, event.at))),
            _ => {}
        }
    }
    outages.extend(since.map(|since| (since, end)));
    outages
}

/// When something is due that takes `time` of a store that is there, begun at `from`.
fn due(from: Duration, time: Duration, outages: &[(Duration, Duration)]) -> Duration {
    let mut due = from + time;
    for (away, back) in outages {
        if *away < due && *back > from {
            due += *back - (*away).max(from);
        }
    }
    due
}

impl Check<'_> {
    fn violated(&mut self, invariant: Invariant, id: Option<&str>, message: String) {
        let about: Vec<&Event> = self.events.iter().filter(|event| id.is_some() && event.what.id() == id).collect();
        let near = |event: &Event| about.iter().any(|other| other.at.abs_diff(event.at) < NEAR);
        let shown = |event: &&Event| match event.what {
            What::Fault { .. } | What::StoreAway | What::StoreBack => near(event),
            _ => id.is_some() && event.what.id() == id,
        };
        let mut around: Vec<Event> = self.events.iter().filter(shown).cloned().collect();
        if around.len() > AROUND {
            // The beginning and the end say most.
            around.drain(AROUND / 2..around.len() - AROUND / 2);
        }
        self.verdict.violations.push(Violation { invariant, message, around });
    }

    /// I1.
    fn ends_in_time(&mut self, id: &str, life: &Life<'_>, grace: Duration, outages: &[(Duration, Duration)], end: Duration) {
        let Some(acknowledged) = life.acknowledged else { return };
        self.verdict.acknowledged += 1;
        if let Some(asked) = life.missing.iter().find(|asked| **asked > acknowledged) {
            let message = format!(
                "{id} was acknowledged, and {:.3} s later there was no such execution",
                (*asked - acknowledged).as_secs_f64()
            );
            self.violated(Invariant::I1, Some(id), message);
        }
        let deadline = life.permits.map_or(Duration::ZERO, |permits| permits.deadline);
        let due = due(acknowledged, deadline + grace, outages);
        let ended = life.sights.iter().find(|sight| sight.seen.state.is_terminal());
        match ended.map(|sight| sight.seen.finished.unwrap_or(sight.at)) {
            Some(ended) if ended > due => {
                let late = (ended - due).as_secs_f64();
                self.violated(Invariant::I1, Some(id), format!("{id} ended {late:.3} s later than it had to"));
            }
            None if end > due => self.violated(Invariant::I1, Some(id), format!("{id} was acknowledged and has not ended")),
            None => self.verdict.undecided.push(id.to_owned()),
            Some(_) => {}
        }
    }

    /// I2.
    fn starts_once(&mut self, id: &str, life: &Life<'_>) {
        for (attempt, starts) in &life.starts {
            if *starts > 1 {
                self.violated(Invariant::I2, Some(id), format!("attempt {attempt} of {id} started {starts} times"));
            }
        }
        // The last sight of its end has every attempt that there was; before that, the one with the most.
        let ended = life.sights.iter().rev().find(|sight| sight.seen.state.is_terminal());
        let fullest = || life.sights.iter().max_by_key(|sight| sight.seen.attempts.len());
        let Some(newest) = ended.or_else(fullest).map(|sight| sight.seen) else { return };
        for attempt in life.starts.keys() {
            let known = newest.attempts.iter().find(|known| known.number == *attempt);
            if newest.state.is_terminal() && known.is_none_or(|known| !known.started) {
                self.violated(
                    Invariant::I2,
                    Some(id),
                    format!("the job of attempt {attempt} of {id} ran, and nobody had said that it starts"),
                );
            }
        }
        let Some(permits) = life.permits else { return };
        let mut failures = 0;
        for (earlier, later) in life.starts.keys().zip(life.starts.keys().skip(1)) {
            let outcome = newest.attempts.iter().find(|attempt| attempt.number == *earlier).and_then(|attempt| attempt.outcome);
            let permitted = match outcome {
                Some(State::Failed) => {
                    failures += 1;
                    failures <= permits.retries
                }
                Some(State::Lost) => permits.on_lost_retry,
                _ => false,
            };
            if !permitted {
                let outcome = outcome.map_or("without an end", State::as_str);
                let message =
                    format!("attempt {later} of {id} started after attempt {earlier} ({outcome}), which its job does not permit");
                self.violated(Invariant::I2, Some(id), message);
            }
        }
    }

    /// I3.
    fn keeps_logs(&mut self, id: &str, life: &Life<'_>) {
        for log in &life.logs {
            let What::Log { attempt, read, whole, prefix, marked, .. } = log else { continue };
            let outcome = life.sights.iter().rev().find_map(|sight| {
                let known = sight.seen.attempts.iter().find(|known| known.number == *attempt)?;
                known.outcome
            });
            // These two say that the job came to its own end, so everything that it printed must be there.
            let complete = matches!(outcome, Some(State::Succeeded | State::Failed));
            if *marked || (read == whole) || (!complete && *prefix) {
                continue;
            }
            let outcome = outcome.map_or("without an end", State::as_str);
            let message = format!(
                "the log of attempt {attempt} of {id} ({outcome}) has {} bytes, CRC {:08x}; the job printed {}, CRC {:08x}; nothing is marked",
                read.size, read.crc32c, whole.size, whole.crc32c
            );
            self.violated(Invariant::I3, Some(id), message);
        }
    }

    /// I4.
    fn never_changes_its_end(&mut self, id: &str, life: &Life<'_>) {
        let Some(first) = life.sights.iter().find(|sight| sight.seen.state.is_terminal()) else { return };
        let mut ended_streams = BTreeSet::new();
        let mut late: BTreeMap<u32, State> = BTreeMap::new();
        for sight in &life.sights {
            let after = match sight.by {
                Reader::Call(asked) => asked > first.at,
                Reader::Stream(number) => ended_streams.contains(&number),
            };
            match sight.seen.end() {
                None if after => {
                    let message = format!("{id} had ended as {}, and was seen {} after that", first.seen.state, sight.seen.state);
                    self.violated(Invariant::I4, Some(id), message);
                }
                Some(end) if Some(end) != first.seen.end() => {
                    let message = format!("{id} ended as {:?}, and as {end:?}", first.seen.end());
                    self.violated(Invariant::I4, Some(id), message);
                }
                _ => {}
            }
            if let (Some(_), Reader::Stream(number)) = (sight.seen.end(), sight.by) {
                ended_streams.insert(number);
            }
            for attempt in &sight.seen.attempts {
                let Some(heard) = attempt.late else { continue };
                if *late.entry(attempt.number).or_insert(heard) != heard {
                    let message = format!("what was heard late of attempt {} of {id} has changed to {heard}", attempt.number);
                    self.violated(Invariant::I4, Some(id), message);
                }
            }
        }
    }

    /// I5.
    fn leaves_nothing(&mut self) {
        for event in self.events {
            if let What::Left { what } = &event.what {
                self.violated(Invariant::I5, None, format!("{what} is still there"));
            }
        }
    }

    /// I6.
    fn shows_whole_catalogues(&mut self) {
        let mut applied: BTreeMap<&str, usize> = BTreeMap::new();
        for event in self.events {
            match &event.what {
                What::Applying { tag, jobs } => drop(applied.insert(tag, *jobs)),
                What::CatalogRead { tags } => {
                    let whole = match tags.len() {
                        0 => true,
                        1 => tags.iter().all(|(tag, jobs)| applied.get(tag.as_str()) == Some(jobs)),
                        _ => false,
                    };
                    if !whole {
                        let message = format!("at {:.3} s the catalogue was read as {tags:?}", event.at.as_secs_f64());
                        self.violated(Invariant::I6, None, message);
                    }
                }
                _ => {}
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::history::{Bytes, SeenAttempt};

    const GRACE: Duration = Duration::from_secs(15);
    const PERMITS: Permits = Permits { deadline: Duration::from_secs(10), retries: 0, on_lost_retry: false };

    fn seconds(seconds: u64) -> Duration {
        Duration::from_secs(seconds)
    }

    fn id() -> String {
        "x".to_owned()
    }

    fn attempt(number: u32, outcome: Option<State>) -> SeenAttempt {
        SeenAttempt { number, started: true, outcome, late: None }
    }

    fn like(state: State, finished: Option<u64>, attempts: Vec<SeenAttempt>) -> Seen {
        Seen { state, reason: String::new(), exit_code: None, finished: finished.map(seconds), attempts }
    }

    fn seen(seen: Seen, asked: u64) -> What {
        What::Seen { id: id(), by: Reader::Call(seconds(asked)), seen }
    }

    fn log(read: &[u8], whole: &[u8], marked: bool) -> What {
        let prefix = whole.starts_with(read);
        What::Log { id: id(), attempt: 1, read: Bytes::of(read), whole: Bytes::of(whole), prefix, marked }
    }

    /// One execution that is all that it should be: accepted at 1 s, ended at 5 s, looked at at 6 s.
    fn good() -> Vec<(u64, What)> {
        vec![
            (0, What::Submitted { id: id(), permits: PERMITS }),
            (1, What::Acknowledged { id: id() }),
            (2, seen(like(State::Running, None, vec![attempt(1, None)]), 2)),
            (3, What::Started { id: id(), attempt: 1 }),
            (5, What::Ended { id: id(), attempt: 1 }),
            (6, seen(like(State::Succeeded, Some(5), vec![attempt(1, Some(State::Succeeded))]), 6)),
            (7, log(b"hello", b"hello", false)),
        ]
    }

    fn found(events: Vec<(u64, What)>) -> Vec<Invariant> {
        let mut events: Vec<_> = events.into_iter().map(|(at, what)| Event { at: seconds(at), what }).collect();
        events.sort_by_key(|event| event.at);
        let verdict = check(&events, GRACE);
        for violation in &verdict.violations {
            assert!(violation.to_string().contains(&format!("{:?} is violated", violation.invariant)));
        }
        verdict.violations.iter().map(|violation| violation.invariant).collect()
    }

    fn with(more: Vec<(u64, What)>) -> Vec<(u64, What)> {
        good().into_iter().chain(more).collect()
    }

    #[test]
    fn what_went_well_is_left_alone() {
        let mut all = good();
        all.push((8, What::Applying { tag: "a".into(), jobs: 3 }));
        all.push((9, What::CatalogRead { tags: BTreeMap::from([("a".into(), 3)]) }));
        all.push((9, What::Fault { what: "something".into() }));
        assert_eq!(found(all), []);
    }

    #[test]
    fn i1_an_execution_without_an_end_or_with_a_late_one() {
        let open = || good().into_iter().filter(|(at, _)| *at < 5).collect::<Vec<_>>();
        let later = |at| (at, What::Fault { what: "the end of the history".into() });
        assert_eq!(found(open().into_iter().chain([later(26)]).collect()), []);
        assert_eq!(found(open().into_iter().chain([later(27)]).collect()), [Invariant::I1]);
        let ended = |at| (99, seen(like(State::Succeeded, Some(at), vec![attempt(1, Some(State::Succeeded))]), 99));
        assert_eq!(found(open().into_iter().chain([ended(26)]).collect()), []);
        assert_eq!(found(open().into_iter().chain([ended(27)]).collect()), [Invariant::I1]);
        // Time in which the store was away does not count.
        let away = [(10, What::StoreAway), (20, What::StoreBack), ended(36)];
        assert_eq!(found(open().into_iter().chain(away).collect()), []);
        assert_eq!(found(with(vec![(8, What::Missing { id: id(), asked: seconds(8) })])), [Invariant::I1]);
    }

    #[test]
    fn i1_what_still_has_time_is_undecided() {
        let events: Vec<_> = good().into_iter().take(3).map(|(at, what)| Event { at: seconds(at), what }).collect();
        let verdict = check(&events, GRACE);
        assert!(verdict.violations.is_empty());
        assert_eq!((verdict.undecided, verdict.acknowledged), (vec![id()], 1));
    }

    #[test]
    fn i2_an_attempt_that_started_twice() {
        assert_eq!(found(with(vec![(4, What::Started { id: id(), attempt: 1 })])), [Invariant::I2]);
    }

    #[test]
    fn i2_a_start_that_nobody_was_told_of() {
        let mut unsaid = good();
        unsaid[5].1 = seen(like(State::Lost, Some(5), vec![SeenAttempt { started: false, ..attempt(1, Some(State::Lost)) }]), 6);
        assert_eq!(found(unsaid), [Invariant::I2]);
        assert_eq!(found(with(vec![(4, What::Started { id: id(), attempt: 9 })])), [Invariant::I2, Invariant::I2]);
    }

    #[test]
    fn i2_a_second_attempt_needs_leave() {
        let run = |first: State, permits: Permits| {
            let mut events = good();
            events[0].1 = What::Submitted { id: id(), permits };
            events[5].1 =
                seen(like(State::Succeeded, Some(5), vec![attempt(1, Some(first)), attempt(2, Some(State::Succeeded))]), 6);
            events.push((4, What::Started { id: id(), attempt: 2 }));
            found(events)
        };
        assert_eq!(run(State::Lost, PERMITS), [Invariant::I2]);
        assert_eq!(run(State::Lost, Permits { retries: 5, ..PERMITS }), [Invariant::I2]);
        assert_eq!(run(State::Lost, Permits { on_lost_retry: true, ..PERMITS }), []);
        assert_eq!(run(State::Failed, PERMITS), [Invariant::I2]);
        assert_eq!(run(State::Failed, Permits { retries: 1, ..PERMITS }), []);
        assert_eq!(run(State::TimedOut, Permits { retries: 1, on_lost_retry: true, ..PERMITS }), [Invariant::I2]);
    }

    #[test]
    fn i3_a_log_that_is_not_what_was_printed() {
        let run = |outcome: State, log: What| {
            let mut events = good();
            events[5].1 = seen(like(outcome, Some(5), vec![attempt(1, Some(outcome))]), 6);
            events[6].1 = log;
            found(events)
        };
        for outcome in [State::Succeeded, State::Failed] {
            assert_eq!(run(outcome, log(b"hell", b"hello", false)), [Invariant::I3], "cut off and not marked");
            assert_eq!(run(outcome, log(b"hell", b"hello", true)), []);
        }
        assert_eq!(run(State::Lost, log(b"hell", b"hello", false)), [], "what was lost on the way cannot be there");
        assert_eq!(run(State::Lost, log(b"hallo", b"hello", false)), [Invariant::I3]);
        assert_eq!(run(State::Cancelled, log(b"helloo", b"hello", false)), [Invariant::I3]);
    }

    #[test]
    fn i4_an_end_that_changed() {
        let ended = |state, finished| like(state, finished, vec![attempt(1, Some(state))]);
        let other = |finished, asked| (8, seen(ended(State::Succeeded, finished), asked));
        assert_eq!(found(with(vec![other(Some(5), 7)])), []);
        assert_eq!(found(with(vec![other(Some(6), 7)])), [Invariant::I4], "another time");
        assert_eq!(found(with(vec![(8, seen(ended(State::Failed, Some(5)), 7))])), [Invariant::I4]);
        let running = || like(State::Running, None, vec![attempt(1, None)]);
        assert_eq!(found(with(vec![(8, seen(running(), 7))])), [Invariant::I4]);
        assert_eq!(found(with(vec![(8, seen(running(), 5))])), [], "asked before it ended");
        let streamed = |at, seen, number| (at, What::Seen { id: id(), by: Reader::Stream(number), seen });
        assert_eq!(found(with(vec![streamed(8, running(), 1)])), [], "a stream may lag");
        let back = vec![streamed(8, ended(State::Succeeded, Some(5)), 1), streamed(9, running(), 1)];
        assert_eq!(found(with(back)), [Invariant::I4], "and never goes back");
    }

    #[test]
    fn i4_what_was_heard_late_stays() {
        let lost = |late| {
            let attempts = vec![SeenAttempt { late, ..attempt(1, Some(State::Lost)) }];
            like(State::Lost, Some(5), attempts)
        };
        let run = |first, second| {
            let mut events = good();
            events[5].1 = seen(lost(first), 6);
            events.push((8, seen(lost(second), 7)));
            found(events)
        };
        assert_eq!(run(None, Some(State::Succeeded)), []);
        assert_eq!(run(Some(State::Succeeded), Some(State::Succeeded)), []);
        assert_eq!(run(Some(State::Succeeded), Some(State::Failed)), [Invariant::I4]);
    }

    #[test]
    fn i5_something_that_was_left() {
        assert_eq!(found(with(vec![(9, What::Left { what: "exec/x".into() })])), [Invariant::I5]);
    }

    #[test]
    fn i6_a_catalogue_of_two_revisions() {
        let run = |tags: &[(&str, usize)]| {
            let tags = tags.iter().map(|(tag, jobs)| ((*tag).to_owned(), *jobs)).collect();
            let applied = |tag: &str, jobs| What::Applying { tag: tag.into(), jobs };
            found(vec![(1, applied("a", 3)), (2, applied("b", 4)), (3, What::CatalogRead { tags })])
        };
        assert_eq!((run(&[]), run(&[("a", 3)]), run(&[("b", 4)])), (vec![], vec![], vec![]));
        assert_eq!(run(&[("a", 2), ("b", 1)]), [Invariant::I6]);
        assert_eq!(run(&[("a", 2)]), [Invariant::I6], "a part of it");
        assert_eq!(run(&[("c", 1)]), [Invariant::I6], "never applied");
    }
}
