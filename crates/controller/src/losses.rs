//! When executors that are away may be given up as lost. Where many are away at once, or the store was, the fault is more likely ours or
//! the network's than theirs, and what they run most likely goes on. All of it by the local monotonic clock.

use std::collections::VecDeque;
use std::sync::{Mutex, MutexGuard};
use std::time::{Duration, Instant};

use octavius_core::{HumanDuration, Timing};

use crate::clock::Clock;

/// With fewer executors than this, half of them is no crowd.
const CROWD: usize = 5;

/// Judges, from what it is told and when.
#[derive(Debug)]
struct Losses {
    outage_grace: Duration,
    exodus_window: Duration,
    exodus_pause: Duration,
    /// The store does not answer.
    away: bool,
    /// Until when nobody is given up because the store was away.
    grace: Option<Instant>,
    /// How many executors were there, and when, within the window.
    seen: VecDeque<(Instant, usize)>,
    /// Since when nobody is given up because many left at once, and how many there were before.
    exodus: Option<(Instant, usize)>,
}

impl Losses {
    fn new(timing: &Timing) -> Self {
        Self {
            outage_grace: timing.outage_grace,
            exodus_window: timing.exodus_window,
            exodus_pause: timing.exodus_pause,
            away: false,
            grace: None,
            seen: VecDeque::new(),
            exodus: None,
        }
    }

    /// The store did not answer. Returns whether that is news.
    fn store_failed(&mut self) -> bool {
        !std::mem::replace(&mut self.away, true)
    }

    /// The store answers, again or still.
    fn store_answered(&mut self, now: Instant) {
        if std::mem::replace(&mut self.away, false) {
            self.grace = Some(now + self.outage_grace);
        }
    }

    /// Notes how many executors are there. Returns how many there were, where over half have just vanished.
    fn observe(&mut self, now: Instant, present: usize) -> Option<usize> {
        if let Some((since, before)) = self.exodus {
            if now - since < self.exodus_pause && 2 * present <= before {
                return None;
            }
            self.exodus = None;
            self.seen.clear();
        }
        while self.seen.front().is_some_and(|(at, _)| now - *at > self.exodus_window) {
            self.seen.pop_front();
        }
        self.seen.push_back((now, present));
        let before = self.seen.iter().map(|(_, count)| *count).max().unwrap_or(0);
        let left = before >= CROWD && 2 * present < before;
        if left {
            self.exodus = Some((now, before));
        }
        left.then_some(before)
    }

    /// Whether an executor that has been away for long enough is to be given up now.
    fn may_lose(&self, now: Instant) -> bool {
        !self.away && self.grace.is_none_or(|until| now >= until) && self.exodus.is_none()
    }
}

/// A judge that everyone can speak to.
#[derive(Debug)]
pub(crate) struct Judge {
    clock: Clock,
    losses: Mutex<Losses>,
}

impl Judge {
    pub(crate) fn new(timing: &Timing, clock: Clock) -> Self {
        Self { clock, losses: Mutex::new(Losses::new(timing)) }
    }

    fn lock(&self) -> MutexGuard<'_, Losses> {
        self.losses.lock().unwrap_or_else(std::sync::PoisonError::into_inner)
    }

    /// The store did not answer, or a watch of it broke.
    pub(crate) fn store_failed(&self) {
        if self.lock().store_failed() {
            tracing::warn!("the store is away, or too full to note who is there; nobody is given up as lost for now");
        }
    }

    /// Whether the store did not answer when it was last asked for what others are told by.
    pub(crate) fn is_store_away(&self) -> bool {
        self.lock().away
    }

    /// The store answers.
    pub(crate) fn store_answered(&self) {
        self.lock().store_answered(self.clock.instant());
    }

    /// Whether executors that have been away for long enough are to be given up, now that `present` are there.
    pub(crate) fn may_lose(&self, present: usize) -> bool {
        let mut losses = self.lock();
        let now = self.clock.instant();
        if let Some(before) = losses.observe(now, present) {
            let pause = HumanDuration::new(losses.exodus_pause);
            tracing::warn!(before, present, "over half of the executors vanished at once; none is given up as lost for {pause}");
        }
        losses.may_lose(now)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SECOND: Duration = Duration::from_secs(1);

    fn losses() -> (Losses, Instant) {
        (Losses::new(&Timing::default()), Instant::now())
    }

    #[test]
    fn nobody_is_lost_for_a_while_after_the_store_was_away() {
        let (mut losses, t) = losses();
        losses.store_answered(t);
        assert!(losses.may_lose(t), "it was never away");
        assert!(losses.store_failed());
        assert!(!losses.store_failed(), "told once");
        assert!(!losses.may_lose(t + 1000 * SECOND), "it is away still");
        losses.store_answered(t + 1000 * SECOND);
        assert!(!losses.may_lose(t + 1299 * SECOND));
        losses.store_answered(t + 1299 * SECOND);
        assert!(losses.may_lose(t + 1300 * SECOND), "an answer more makes no new grace");
    }

    #[test]
    fn a_second_outage_makes_a_new_grace() {
        let (mut losses, t) = losses();
        losses.store_failed();
        losses.store_answered(t);
        losses.store_failed();
        losses.store_answered(t + 200 * SECOND);
        assert!(!losses.may_lose(t + 400 * SECOND));
        assert!(losses.may_lose(t + 500 * SECOND));
    }

    #[test]
    fn nobody_is_lost_while_over_half_have_just_vanished_until_most_are_back() {
        let (mut losses, t) = losses();
        assert_eq!(losses.observe(t, 10), None);
        assert_eq!(losses.observe(t + 10 * SECOND, 5), None, "half is not over half");
        assert!(losses.may_lose(t + 10 * SECOND));
        assert_eq!(losses.observe(t + 20 * SECOND, 4), Some(10));
        assert!(!losses.may_lose(t + 20 * SECOND));
        assert_eq!(losses.observe(t + 300 * SECOND, 4), None, "told once");
        assert!(!losses.may_lose(t + 300 * SECOND));
        losses.observe(t + 310 * SECOND, 5);
        assert!(!losses.may_lose(t + 310 * SECOND));
        losses.observe(t + 320 * SECOND, 6);
        assert!(losses.may_lose(t + 320 * SECOND));
    }

    #[test]
    fn the_pause_ends() {
        let (mut losses, t) = losses();
        losses.observe(t, 5);
        assert_eq!(losses.observe(t + SECOND, 0), Some(5));
        losses.observe(t + 600 * SECOND, 0);
        assert!(!losses.may_lose(t + 600 * SECOND));
        assert_eq!(losses.observe(t + 601 * SECOND, 0), None);
        assert!(losses.may_lose(t + 601 * SECOND));
    }

    #[test]
    fn few_or_slowly_leaving_executors_are_no_exodus() {
        let (mut losses, t) = losses();
        losses.observe(t, 4);
        assert_eq!(losses.observe(t + SECOND, 0), None);
        let (mut losses, t) = (losses, t + 100 * SECOND);
        for gone in 0..=20 {
            assert_eq!(losses.observe(t + 20 * gone * SECOND, 20 - gone as usize), None, "{gone} are gone");
        }
    }
}
