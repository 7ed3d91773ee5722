//! How often, how large and how many at once: what holds appends of all attempts back, so that neither a controller nor this executor's memory
//! has more to do with them than it must.

use std::sync::{Arc, PoisonError};
use std::time::Duration;

use octavius_core::Timing;
use octavius_core::limit::LOG_PIECE_BYTES;
use tokio::sync::{Mutex, OwnedSemaphorePermit, Semaphore};
use tokio::time::Instant;

/// From so much on, it is worth waiting for more.
const WORTH_GATHERING: u64 = 512 * 1024;
/// For so many paces at most.
const GATHERING: u32 = 5;
/// Pieces up to this size have memory of their own, so that they do not wait behind large ones.
const SMALL: usize = 256 * 1024;
/// Memory for pieces, in KiB: for the large ones, and for the small ones.
const LARGE_KIB: u32 = 12 * 1024;
const SMALL_KIB: u32 = 4 * 1024;
/// Smallest piece that a rate may ask for.
const LEAST_PIECE: u64 = 16 * 1024;

/// From so many appends within a pace on, there is a crowd: a store writes what comes together at once, so each may come more often and costs it
/// no more. A line is then seen sooner, by as much as the crowd holds it up.
const CROWD: u32 = 24;
/// The pace of a crowd, in hundredths of that of a few.
const CROWD_PACE: u32 = 80;

/// When an append is to be made.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum When {
    /// At once.
    Now,
    /// At this time; before, where there is a whole piece.
    At(Instant),
}

/// What appends of all attempts have in common. A handle, cheap to clone.
#[derive(Debug, Clone)]
pub(crate) struct Appends {
    pace: Duration,
    traffic: Arc<std::sync::Mutex<Traffic>>,
    large: Arc<Semaphore>,
    small: Arc<Semaphore>,
    rate: Option<Arc<Rate>>,
}

impl Appends {
    /// With at most `rate` bytes a second, if that is limited.
    pub(crate) fn new(timing: Timing, rate: Option<u64>) -> Self {
        let semaphore = |kib: u32| Arc::new(Semaphore::new(usize::try_from(kib).unwrap_or(usize::MAX)));
        let rate = rate.map(|per_second| Arc::new(Rate { per_second: per_second.max(1), next: Mutex::new(Instant::now()) }));
        let traffic = Arc::new(std::sync::Mutex::new(Traffic { since: Instant::now(), now: 0, before: 0 }));
        Self { pace: timing.log_pace, traffic, large: semaphore(LARGE_KIB), small: semaphore(SMALL_KIB), rate }
    }

    /// Largest piece.
    pub(crate) fn largest(&self) -> usize {
        let slow = self.rate.as_ref().map_or(u64::MAX, |rate| (rate.per_second / 4).max(LEAST_PIECE));
        usize::try_from(slow).unwrap_or(usize::MAX).min(LOG_PIECE_BYTES)
    }

    /// When so many bytes are to be sent, where the append before began at `last`.
    pub(crate) fn when(&self, available: u64, last: Option<Instant>, now: Instant) -> When {
        let Some(last) = last else { return When::Now };
        if available >= self.largest() as u64 {
            return When::Now;
        }
        let paces = if available >= WORTH_GATHERING { GATHERING } else { 1 };
        let at = last + self.pace() * paces;
        if at <= now { When::Now } else { When::At(at) }
    }

    /// How far apart the appends of one attempt are now.
    fn pace(&self) -> Duration {
        let Traffic { now, before, .. } = *self.traffic.lock().unwrap_or_else(PoisonError::into_inner);
        if now.max(before) >= CROWD { self.pace * CROWD_PACE / 100 } else { self.pace }
    }

    /// Waits until so many bytes may be sent, and counts that they are.
    pub(crate) async fn turn(&self, bytes: usize) {
        self.traffic.lock().unwrap_or_else(PoisonError::into_inner).count(Instant::now(), self.pace);
        if let Some(rate) = &self.rate {
            rate.turn(bytes as u64).await;
        }
    }

    /// Waits for memory for a piece of so many bytes.
    pub(crate) async fn memory(&self, bytes: usize) -> Option<OwnedSemaphorePermit> {
        let (semaphore, kib) = self.needed(bytes);
        semaphore.acquire_many_owned(kib).await.ok()
    }

    /// The same, if there is some at once.
    pub(crate) fn memory_now(&self, bytes: usize) -> Option<OwnedSemaphorePermit> {
        let (semaphore, kib) = self.needed(bytes);
        semaphore.try_acquire_many_owned(kib).ok()
    }

    fn needed(&self, bytes: usize) -> (Arc<Semaphore>, u32) {
        let (semaphore, most) = if bytes <= SMALL { (&self.small, SMALL_KIB) } else { (&self.large, LARGE_KIB) };
        (Arc::clone(semaphore), u32::try_from(bytes.div_ceil(1024)).unwrap_or(u32::MAX).min(most))
    }
}

/// Appends of all attempts, in this span of a pace's length and in the one before.
#[derive(Debug)]
struct Traffic {
    since: Instant,
    now: u32,
    before: u32,
}

impl Traffic {
    fn count(&mut self, at: Instant, span: Duration) {
        let gone = at.saturating_duration_since(self.since);
        if gone >= span {
            (self.since, self.before) = (at, if gone < 2 * span { self.now } else { 0 });
            self.now = 0;
        }
        self.now += 1;
    }
}

/// So many bytes a second, of all attempts: each has its turn, in the order in which they come.
#[derive(Debug)]
struct Rate {
    per_second: u64,
    /// When all that went before is paid for.
    next: Mutex<Instant>,
}

impl Rate {
    async fn turn(&self, bytes: u64) {
        // Held while waiting: the lock is given in the order in which it was asked for.
        let mut next = self.next.lock().await;
        tokio::time::sleep_until(*next).await;
        #[expect(clippy::cast_precision_loss, reason = "a pause needs no exactness")]
        let costs = Duration::from_secs_f64(bytes as f64 / self.per_second as f64);
        *next = (*next).max(Instant::now()) + costs;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MIB: u64 = 1024 * 1024;

    #[test]
    fn little_goes_five_times_a_second_much_is_gathered_and_a_whole_piece_goes_at_once() {
        let appends = Appends::new(Timing::default(), None);
        let last = Instant::now();
        let after = |millis| last + Duration::from_millis(millis);
        assert_eq!(appends.when(1, None, last), When::Now);
        assert_eq!(appends.when(1, Some(last), after(199)), When::At(after(200)));
        assert_eq!(appends.when(1, Some(last), after(200)), When::Now);
        assert_eq!(appends.when(MIB / 2 - 1, Some(last), after(200)), When::Now);
        assert_eq!(appends.when(MIB / 2, Some(last), after(200)), When::At(after(1000)));
        assert_eq!(appends.when(4 * MIB - 1, Some(last), after(999)), When::At(after(1000)));
        assert_eq!(appends.when(MIB, Some(last), after(1000)), When::Now);
        assert_eq!(appends.when(4 * MIB, Some(last), after(1)), When::Now);
    }

    #[tokio::test]
    async fn of_a_crowd_each_goes_more_often() {
        let appends = Appends::new(Timing::default(), None);
        let last = Instant::now();
        for _ in 0..CROWD - 1 {
            appends.turn(1).await;
        }
        assert_eq!(appends.when(1, Some(last), last), When::At(last + Duration::from_millis(200)));
        appends.turn(1).await;
        assert_eq!(appends.when(1, Some(last), last), When::At(last + Duration::from_millis(160)));
        let mut traffic = Traffic { since: last, now: CROWD, before: 0 };
        traffic.count(last + Duration::from_millis(200), Duration::from_millis(200));
        assert_eq!((traffic.now, traffic.before), (1, CROWD));
        traffic.count(last + Duration::from_secs(1), Duration::from_millis(200));
        assert_eq!((traffic.now, traffic.before), (1, 0));
    }

    #[tokio::test]
    async fn all_attempts_together_keep_to_the_rate_and_none_waits_for_ever() {
        let appends = Appends::new(Timing::default(), Some(8 * MIB));
        assert_eq!(appends.largest() as u64, 2 * MIB);
        let begun = Instant::now();
        let one = |size: usize, times: usize| {
            let appends = appends.clone();
            tokio::spawn(async move {
                for _ in 0..times {
                    appends.turn(size).await;
                }
                begun.elapsed()
            })
        };
        let large = [one(256 * 1024, 20), one(256 * 1024, 20)];
        let small = one(1024, 8).await.unwrap();
        let mut last = small;
        for large in large {
            last = last.max(large.await.unwrap());
        }
        assert!(small < last / 2, "{small:?} of {last:?}");
        // 10 MiB and 8 KiB, of which the last quarter of a MiB is sent before it is paid for.
        assert!(last > Duration::from_millis(1200), "{last:?}");
    }

    #[tokio::test]
    async fn small_pieces_do_not_wait_behind_large_ones() {
        let appends = Appends::new(Timing::default(), None);
        let held: Vec<_> = (0..3).map(|_| appends.memory_now(LOG_PIECE_BYTES).unwrap()).collect();
        assert!(appends.memory_now(LOG_PIECE_BYTES).is_none());
        assert!(appends.memory(1000).await.is_some());
        drop(held);
        assert!(appends.memory_now(LOG_PIECE_BYTES).is_some());
    }
}
