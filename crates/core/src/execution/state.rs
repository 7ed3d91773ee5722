//! The states of an execution, and the reasons for them.

use std::fmt;

use serde::{Deserialize, Serialize};

/// Where an execution is in its life.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum State {
    /// Waits for the approvals that its job asks for; it is not in the queue.
    WaitingForApproval,
    /// Waits for an executor.
    Queued,
    /// An executor has been chosen and told.
    Claimed,
    /// The executor has said that it starts now; from here on the job may have run.
    Starting,
    /// The job runs.
    Running,
    /// The job ended with exit code 0.
    Succeeded,
    /// The job ended otherwise, or could not be started.
    Failed,
    /// Someone asked for it to stop, or did not approve it.
    Cancelled,
    /// It ran, or waited, longer than it may.
    TimedOut,
    /// Its executor vanished, and whether the job ended is not known.
    Lost,
}

impl State {
    /// Every state, in the order of life.
    pub const ALL: [Self; 10] = [
        Self::WaitingForApproval,
        Self::Queued,
        Self::Claimed,
        Self::Starting,
        Self::Running,
        Self::Succeeded,
        Self::Failed,
        Self::Cancelled,
        Self::TimedOut,
        Self::Lost,
    ];

    /// Whether nothing follows this state.
    #[must_use]
    pub const fn is_terminal(self) -> bool {
        matches!(self, Self::Succeeded | Self::Failed | Self::Cancelled | Self::TimedOut | Self::Lost)
    }

    /// The state as output and files write it.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::WaitingForApproval => "waiting_for_approval",
            Self::Queued => "queued",
            Self::Claimed => "claimed",
            Self::Starting => "starting",
            Self::Running => "running",
            Self::Succeeded => "succeeded",
            Self::Failed => "failed",
            Self::Cancelled => "cancelled",
            Self::TimedOut => "timed_out",
            Self::Lost => "lost",
        }
    }

    /// The state of this name.
    #[must_use]
    pub fn parse(text: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|state| state.as_str() == text)
    }
}

impl fmt::Display for State {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.as_str())
    }
}

/// Why an execution is as it is: a code that scripts can match. Codes that this version does not know are kept as they came.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Reason(pub String);

/// Names each reason after its code, and lists them all.
macro_rules! reasons {
    ($($(#[doc = $meaning:literal])+ $code:ident,)+) => {
        impl Reason {
            $($(#[doc = $meaning])+ pub const $code: &'static str = stringify!($code);)+

            /// The reasons above: all that this version knows. An executor of another version may give one that does not stand here.
            pub const ALL: &'static [&'static str] = &[$(Self::$code),+];
        }
    };
}

reasons! {
    /// The job ended with an exit code other than 0.
    EXIT_CODE,
    /// The job was ended by a signal that Octavius did not send.
    SIGNAL,
    /// The job's program could not be started.
    START_FAILED,
    /// The executor cannot run this job at all: a job without `command` on a process runner.
    REQUIREMENT_NOT_MET,
    /// A secret that the job needs was not found where the executor looked.
    SECRET_MISSING,
    /// The executor's owner does not offer to jobs what a secret is to be taken from.
    SECRET_NOT_OFFERED,
    /// Its sensitive arguments are encrypted with a key that the controllers that looked do not have: it waits for one that has it.
    ENCRYPTION_KEY_MISSING,
    /// Its sensitive arguments are not as they were encrypted: damaged, or put there by somebody else.
    ARGUMENTS_DAMAGED,
    /// Someone asked for it to stop.
    CANCELLED,
    /// Somebody who could have approved it said no.
    REJECTED,
    /// It had not started when its approvals, or the wait for them, ran out.
    APPROVAL_EXPIRED,
    /// It ran longer than its timeout.
    DEADLINE,
    /// It waited in the queue longer than it may.
    QUEUE_DEADLINE,
    /// Its executor was not heard of for too long.
    EXECUTOR_LOST,
    /// What watched over the process ended without leaving its exit code: killed, or the host restarted.
    RUNNER_LOST,
    /// The job's image could not be pulled.
    IMAGE_PULL,
    /// No node of the cluster had room for it, or was allowed to take it, within the limit.
    UNSCHEDULABLE,
    /// It used more memory than it may.
    OOM_KILLED,
    /// Its node threw it out, because the node or the job ran short of memory or disk.
    EVICTED,
    /// What it ran on failed or was taken away: a node was lost or drained, a pod was deleted.
    INFRASTRUCTURE,
    /// Someone else deleted the Kubernetes Job.
    DELETED_EXTERNALLY,
    /// A quota of the namespace leaves no room for it.
    QUOTA,
    /// The cluster, or the executor's configuration, does not allow it.
    FORBIDDEN,
    /// The name that it needs in the cluster is taken by something else.
    CONFLICT,
    /// No `starting` followed the claim in time.
    CLAIM_EXPIRED,
    /// The executor gave the claim back: it is stopping.
    HANDED_BACK,
}

impl Reason {
    /// The code.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// A reason of this code.
    #[must_use]
    pub fn new(code: &str) -> Self {
        Self(code.to_owned())
    }
}

impl fmt::Display for Reason {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(&self.0)
    }
}
