//! A bucket that fills at a steady rate: what is over it has to wait.

use std::time::Duration;

use tokio::time::Instant;

/// How full it is, and since when.
#[derive(Debug)]
pub(super) struct Bucket {
    /// Below zero, as many wait for their turn.
    level: f64,
    at: Instant,
}

impl Bucket {
    pub(super) fn full(size: f64, now: Instant) -> Self {
        Self { level: size, at: now }
    }

    fn fill(&mut self, rate: f64, size: f64, now: Instant) {
        self.level = (self.level + now.saturating_duration_since(self.at).as_secs_f64() * rate).min(size);
        self.at = now;
    }

    /// Takes one out of a bucket of this size, into which `rate` come a second: after how long it is there. None, and nothing is taken, where
    /// that is longer than `patience`.
    pub(super) fn take(&mut self, rate: f64, size: f64, patience: Duration, now: Instant) -> Option<Duration> {
        self.fill(rate, size, now);
        let lacking = (1.0 - self.level).max(0.0);
        if lacking > patience.as_secs_f64() * rate {
            return None;
        }
        self.level -= 1.0;
        Some(Duration::from_secs_f64(lacking / rate))
    }

    /// Whether it is as if nobody had ever taken anything.
    pub(super) fn is_full(&mut self, rate: f64, size: f64, now: Instant) -> bool {
        self.fill(rate, size, now);
        self.level >= size
    }
}
