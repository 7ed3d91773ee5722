//! What happens to executions, and what comes of it.

use crate::id::ExecutorId;

use super::{Approver, Ending, Fence, LogSeal, NotApprover, Reason, State};

/// Something that happens to an execution.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Event {
    /// An executor was chosen.
    Claim {
        /// Who.
        executor: ExecutorId,
        /// Drawn at random.
        nonce: u64,
        /// The slot of its job that it takes, where its job has such and it has none yet.
        slot: Option<u32>,
    },
    /// The claim goes back to the queue: nothing was started.
    Unclaim {
        /// Which claim.
        fence: Fence,
        /// Why.
        reason: Reason,
        /// The reason in a sentence.
        message: String,
    },
    /// The executor is about to start the job.
    Start {
        /// Which claim.
        fence: Fence,
    },
    /// The job runs.
    Run {
        /// Which claim.
        fence: Fence,
        /// What it is where it runs.
        runs_as: String,
        /// The image that runs, by its digest; empty where there is none, or it is not known yet.
        image: String,
    },
    /// The attempt ended.
    Finish {
        /// Which claim.
        fence: Fence,
        /// How.
        ending: Ending,
        /// Its log, sealed.
        log: Option<LogSeal>,
    },
    /// The executor was not heard of for too long.
    Lose {
        /// Which claim.
        fence: Fence,
        /// Why, in a sentence.
        message: String,
    },
    /// Someone wants it stopped.
    Cancel {
        /// Who.
        by: String,
    },
    /// It cannot be handed out at present: it waits on and says why.
    HoldUp {
        /// Why.
        reason: Reason,
        /// The reason in a sentence.
        message: String,
    },
    /// It can never be handed out: it ends as failed.
    FailInQueue {
        /// Why.
        reason: Reason,
        /// The reason in a sentence.
        message: String,
    },
    /// It has waited for too long: in the queue, or for its approvals.
    ExpireWait,
    /// Somebody approves it.
    Approve {
        /// Who.
        by: Approver,
        /// Why, as they say.
        reason: String,
    },
    /// Somebody rejects it.
    Reject {
        /// Who.
        by: Approver,
        /// Why, as they say.
        reason: String,
    },
    /// It was lost, and so long ago that nothing of it runs any more.
    FreeSlot,
}

/// What an event did.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Applied {
    /// The execution changed and must be stored.
    Changed,
    /// The event had already happened, or does not matter any more; repeating it does no harm.
    Unchanged,
}

/// Why an event was refused. Nothing changed.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Refusal {
    /// The execution has ended.
    #[error("the execution has already ended: {0}")]
    Ended(State),
    /// The event bears the fence of another claim.
    #[error("attempt {attempt} is not the current claim any more")]
    StaleFence {
        /// The attempt that the event speaks for.
        attempt: u32,
    },
    /// The event does not fit the state.
    #[error("not possible while {0}")]
    State(State),
    /// It does not wait for approval.
    #[error("it does not wait for approval: it is {0}")]
    NotWaitingForApproval(State),
    /// Its approvals, or the wait for them, ran out before it started.
    #[error("its time to be approved and started is over")]
    ApprovalExpired,
    /// It is not for them to approve or reject.
    #[error("{0}")]
    NotApprover(NotApprover),
    /// It has not waited for as long as it may.
    #[error("it may wait longer")]
    MayWait,
    /// It may not be claimed without a slot of its job.
    #[error("it has no slot of its job")]
    NoSlot,
    /// An ending that is not terminal.
    #[error("{0} is not an outcome")]
    NotAnOutcome(State),
}
