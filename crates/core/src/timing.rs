//! Every duration that the behaviour of the system hangs on, in one value, so that tests can run them all at a twentieth.

use std::time::Duration;

/// The system's durations. Controllers and executors get one each at their start.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Timing {
    /// How often an executor pings on its session. The first Octavius' default.
    pub ping_interval: Duration,
    /// An executor that has not pinged for so long is shown as expired. The first Octavius' default.
    pub ping_deadline: Duration,
    /// A claim that no `starting` has followed for so long goes back into the queue.
    pub claim_timeout: Duration,
    /// An executor that has not reached a controller for so long starts nothing more; shorter than `lost_after`, so that it has
    /// stopped starting work before a controller gives that work to another.
    pub start_within: Duration,
    /// An executor absent for so long, by the controller's own monotonic clock, loses what it runs.
    pub lost_after: Duration,
    /// For so long after the store was away, or a watch of it broke, nobody is given up as lost: executors were as cut off as we were.
    pub outage_grace: Duration,
    /// When over half of at least five sessions vanish within this time, the fault is more likely ours or the network's than theirs.
    pub exodus_window: Duration,
    /// For so long, then, nobody is given up as lost, unless they come back before.
    pub exodus_pause: Duration,
    /// How often one of the controllers looks after the store: what is old is removed, what was replaced is forgotten.
    pub keep_interval: Duration,
    /// How long after its timeout a started attempt is waited for whose executor is there and says nothing of it.
    pub overdue: Duration,
    /// How often a controller looks at everything that an event may have missed.
    pub reconcile_interval: Duration,
    /// Pause before an attempt that follows a failed or lost one; doubled with each, up to `back_off_max`. Kubernetes' own for Jobs.
    pub back_off_min: Duration,
    /// Longest such pause.
    pub back_off_max: Duration,
    /// Longest wait in the queue, where the job does not say.
    pub queue_timeout: Duration,
    /// Longest run, where the job does not say.
    pub run_timeout: Duration,
    /// Between the polite signal and the killing one.
    pub kill_grace: Duration,
    /// How often an executor looks for new output of what it runs.
    pub log_poll: Duration,
    /// Between the beginnings of two appends of one attempt. Followers see what is printed a little later than this, and a controller has
    /// five appends a second of an attempt to do at most.
    pub log_pace: Duration,
    /// How long the log of a job that is over waits for room in the store, before it is cut where it is.
    pub room_patience: Duration,
    /// The same where it waits for the archive, which somebody has to put right.
    pub archive_patience: Duration,
    /// How long output that nobody takes holds a job up when an executor's spool is full, before output is dropped and counted.
    pub spool_patience: Duration,
    /// How long an executor's token is good. After three quarters of it, the executor replaces it.
    pub executor_token_life: Duration,
    /// First pause after a failed call; later ones double, with jitter, up to `retry_max`.
    pub retry_min: Duration,
    /// Longest pause between repeated calls.
    pub retry_max: Duration,
    /// A connection that is older takes no new calls: its client makes another, perhaps to another controller, with the certificate of
    /// that day. What is under way on it, an executor's session say, goes on for as long as it likes.
    pub connection_age: Duration,
    /// Pause before a webhook that did not take a message is asked again; doubled with each failure of that message, up to `webhook_retry_max`.
    pub webhook_retry_min: Duration,
    /// Longest such pause.
    pub webhook_retry_max: Duration,
    /// Longest pause in which a webhook that took nothing last is asked for nothing at all: one message finds out whether it is back.
    pub webhook_pause_max: Duration,
    /// A message that no webhook has taken for so long is given up.
    pub webhook_patience: Duration,
}

impl Default for Timing {
    fn default() -> Self {
        Self {
            ping_interval: Duration::from_secs(2),
            ping_deadline: Duration::from_secs(9),
            claim_timeout: Duration::from_secs(60),
            start_within: Duration::from_secs(120),
            lost_after: Duration::from_secs(180),
            outage_grace: Duration::from_secs(300),
            exodus_window: Duration::from_secs(30),
            exodus_pause: Duration::from_secs(600),
            keep_interval: Duration::from_secs(300),
            overdue: Duration::from_secs(300),
            reconcile_interval: Duration::from_secs(5),
            back_off_min: Duration::from_secs(10),
            back_off_max: Duration::from_secs(360),
            queue_timeout: Duration::from_secs(24 * 3600),
            run_timeout: Duration::from_secs(24 * 3600),
            kill_grace: Duration::from_secs(10),
            log_poll: Duration::from_millis(20),
            log_pace: Duration::from_millis(200),
            room_patience: Duration::from_secs(60),
            archive_patience: Duration::from_secs(600),
            spool_patience: Duration::from_secs(30),
            executor_token_life: Duration::from_secs(30 * 24 * 3600),
            retry_min: Duration::from_millis(50),
            retry_max: Duration::from_secs(2),
            connection_age: Duration::from_secs(3600),
            webhook_retry_min: Duration::from_secs(5),
            webhook_retry_max: Duration::from_secs(3600),
            webhook_pause_max: Duration::from_secs(60),
            webhook_patience: Duration::from_secs(24 * 3600),
        }
    }
}

/// The pause after so many failures in a row: `first`, doubled with each after the first, and `most` at most.
#[must_use]
pub fn doubled(first: Duration, failures: u32, most: Duration) -> Duration {
    first.saturating_mul(2_u32.saturating_pow(failures.saturating_sub(1))).min(most)
}

impl Timing {
    /// The defaults, `factor` times as fast; tests use 20. `log_poll`, `log_pace`, `retry_min`, `executor_token_life` and the two long timeouts
    /// stay as they are: they are short already, or bound real work.
    #[must_use]
    pub fn faster(factor: u32) -> Self {
        let default = Self::default();
        Self {
            ping_interval: default.ping_interval / factor,
            ping_deadline: default.ping_deadline / factor,
            claim_timeout: default.claim_timeout / factor,
            start_within: default.start_within / factor,
            lost_after: default.lost_after / factor,
            outage_grace: default.outage_grace / factor,
            exodus_window: default.exodus_window / factor,
            exodus_pause: default.exodus_pause / factor,
            keep_interval: default.keep_interval / factor,
            overdue: default.overdue / factor,
            reconcile_interval: default.reconcile_interval / factor,
            back_off_min: default.back_off_min / factor,
            back_off_max: default.back_off_max / factor,
            kill_grace: default.kill_grace / factor,
            room_patience: default.room_patience / factor,
            archive_patience: default.archive_patience / factor,
            spool_patience: default.spool_patience / factor,
            retry_max: default.retry_max / factor,
            connection_age: default.connection_age / factor,
            webhook_retry_min: default.webhook_retry_min / factor,
            webhook_retry_max: default.webhook_retry_max / factor,
            webhook_pause_max: default.webhook_pause_max / factor,
            webhook_patience: default.webhook_patience / factor,
            ..default
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pauses_double_and_no_number_of_failures_is_too_much() {
        let (first, most) = (Duration::from_secs(5), Duration::from_secs(3600));
        assert_eq!([0, 1, 2, 3, 4].map(|failures| doubled(first, failures, most).as_secs()), [5, 5, 10, 20, 40]);
        assert_eq!(doubled(first, u32::MAX, most), most);
    }
}
