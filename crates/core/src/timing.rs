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
    /// Longest wait in the queue, where the job does not say.
    pub queue_timeout: Duration,
    /// Longest run, where the job does not say.
    pub run_timeout: Duration,
    /// Between the polite signal and the killing one.
    pub kill_grace: Duration,
    /// How often an executor looks for new output of a running process.
    pub log_poll: Duration,
    /// How long the log of a job that is over waits for room in the store, before it is cut where it is.
    pub room_patience: Duration,
    /// First pause after a failed call; later ones double, with jitter, up to `retry_max`.
    pub retry_min: Duration,
    /// Longest pause between repeated calls.
    pub retry_max: Duration,
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
            queue_timeout: Duration::from_secs(24 * 3600),
            run_timeout: Duration::from_secs(24 * 3600),
            kill_grace: Duration::from_secs(10),
            log_poll: Duration::from_millis(50),
            room_patience: Duration::from_secs(60),
            retry_min: Duration::from_millis(50),
            retry_max: Duration::from_secs(2),
        }
    }
}

impl Timing {
    /// The defaults, `factor` times as fast; tests use 20. `log_poll`, `retry_min` and the two long timeouts stay as they are: they
    /// are short already, or bound real work.
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
            kill_grace: default.kill_grace / factor,
            room_patience: default.room_patience / factor,
            retry_max: default.retry_max / factor,
            ..default
        }
    }
}
