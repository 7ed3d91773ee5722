//! What time it is: by the machine's clocks, or by one that a test moves on by hand, so that a day's wait takes no time and ends when it should.

use std::pin::pin;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use octavius_core::Timestamp;
use tokio::sync::Notify;

/// Tells the time, to whoever holds it or a clone of it.
#[derive(Debug, Clone, Default)]
pub struct Clock(Option<Arc<Manual>>);

/// A clock that stands still unless it is told how much time has passed.
#[derive(Debug)]
struct Manual {
    /// What both of its hands showed when it was made.
    time: Timestamp,
    instant: Instant,
    passed: Mutex<Duration>,
    /// Rung when more has passed. Whoever sleeps wakes in the order in which they fell asleep, the same in each run of a test.
    moved: Notify,
}

impl Manual {
    fn passed(&self) -> Duration {
        *self.passed.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Clock {
    /// A clock for tests: it stands at `time` until [`Clock::advance`] moves it on, and all clones of it with it.
    #[must_use]
    pub fn manual(time: Timestamp) -> Self {
        Self(Some(Arc::new(Manual { time, instant: Instant::now(), passed: Mutex::default(), moved: Notify::new() })))
    }

    /// Lets time pass, and wakes those that sleep by this clock. A clock that is not manual goes by itself and takes no notice.
    pub fn advance(&self, time: Duration) {
        if let Some(manual) = &self.0 {
            let mut passed = manual.passed.lock().unwrap_or_else(PoisonError::into_inner);
            *passed = passed.saturating_add(time);
            drop(passed);
            manual.moved.notify_waiters();
        }
    }

    /// The time of day, for what is written down and shown. It may be wrong, and may jump.
    #[must_use]
    pub fn now(&self) -> Timestamp {
        match &self.0 {
            None => Timestamp::now(),
            Some(manual) => manual.time.checked_add(manual.passed()).unwrap_or(Timestamp::MAX),
        }
    }

    /// A point of monotonic time, for what is measured here.
    #[must_use]
    pub fn instant(&self) -> Instant {
        match &self.0 {
            None => Instant::now(),
            Some(manual) => manual.instant + manual.passed(),
        }
    }

    /// The monotonic time since an earlier [`Clock::instant`] of the same clock.
    #[must_use]
    pub fn since(&self, earlier: Instant) -> Duration {
        self.instant().saturating_duration_since(earlier)
    }

    /// Returns when this much time has passed.
    pub async fn sleep(&self, time: Duration) {
        let Some(manual) = &self.0 else { return tokio::time::sleep(time).await };
        let until = manual.passed().saturating_add(time);
        loop {
            let mut moved = pin!(manual.moved.notified());
            moved.as_mut().enable(); // before the look, so that no move is missed between it and the wait
            if manual.passed() >= until {
                return;
            }
            moved.await;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_manual_clock_goes_as_far_as_it_is_moved_and_wakes_who_sleeps_by_it() {
        let clock = Clock::manual(Timestamp::UNIX_EPOCH);
        let (began, other) = (clock.instant(), clock.clone());
        assert_eq!((clock.now(), clock.since(began)), (Timestamp::UNIX_EPOCH, Duration::ZERO));
        let day = Duration::from_secs(24 * 3600);
        let sleeper = tokio::spawn(async move {
            other.sleep(day).await;
            other.now()
        });
        tokio::task::yield_now().await;
        clock.advance(day / 2);
        tokio::task::yield_now().await;
        assert!(!sleeper.is_finished(), "half a day is not a day");
        clock.advance(day / 2);
        assert_eq!(sleeper.await.unwrap(), Timestamp::UNIX_EPOCH.checked_add(day).unwrap());
        assert_eq!(clock.since(began), day);
    }
}
