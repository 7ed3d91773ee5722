//! Why an execution waits, as it is told: a code for programs, a sentence for people, and the facts behind both.

use jiff::Timestamp;

use crate::id::{ExecutionId, ExecutorId};

/// Codes of the causes. Adding one is free: whoever reads them keeps what he does not know, and shows its sentence.
pub mod cause {
    /// No executor is there at all.
    pub const NO_EXECUTOR: &str = "NO_EXECUTOR";
    /// Executors are there, and none has the labels that the job asks for; the sentence names the nearest.
    pub const NO_MATCHING_EXECUTOR: &str = "NO_MATCHING_EXECUTOR";
    /// An executor lacks a label.
    pub const LABEL: &str = "LABEL";
    /// An executor has no free slot.
    pub const EXECUTOR_FULL: &str = "EXECUTOR_FULL";
    /// An executor takes nothing new: someone drains it.
    pub const EXECUTOR_DRAINING: &str = "EXECUTOR_DRAINING";
    /// An executor has the labels, and is not there.
    pub const EXECUTOR_ABSENT: &str = "EXECUTOR_ABSENT";
    /// As many executions of the job run as may; their ids stand beside.
    pub const CONCURRENCY_LIMIT: &str = "CONCURRENCY_LIMIT";
    /// The job is paused.
    pub const JOB_PAUSED: &str = "JOB_PAUSED";
    /// It has failed or was lost, and waits a while before its next attempt.
    pub const BACK_OFF: &str = "BACK_OFF";
    /// Others are before it.
    pub const AHEAD: &str = "AHEAD";

    /// All of them, in the order in which they weigh: of those that hold an execution up, the first is named where there is room for one.
    pub const ALL: [&str; 10] = [
        JOB_PAUSED,
        BACK_OFF,
        CONCURRENCY_LIMIT,
        NO_EXECUTOR,
        NO_MATCHING_EXECUTOR,
        EXECUTOR_FULL,
        EXECUTOR_DRAINING,
        EXECUTOR_ABSENT,
        AHEAD,
        LABEL,
    ];
}

/// One cause of a wait.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Cause {
    /// One of [`cause`].
    pub code: &'static str,
    /// The cause in a few words, without the name of its executor.
    pub message: String,
    /// The executor that it is about, where it is about one.
    pub executor: Option<ExecutorId>,
    /// Since when it is so, or, of a back-off, until when, as far as that is known.
    pub since: Option<Timestamp>,
    /// Executions that stand in the way.
    pub executions: Vec<ExecutionId>,
}

impl Cause {
    /// A cause that is about the whole.
    #[must_use]
    pub fn new(code: &'static str, message: impl Into<String>) -> Self {
        Self { code, message: message.into(), executor: None, since: None, executions: Vec::new() }
    }

    /// The same, of one executor.
    #[must_use]
    pub fn of(self, executor: &ExecutorId) -> Self {
        Self { executor: Some(executor.clone()), ..self }
    }

    /// The same, since this time.
    #[must_use]
    pub fn since(self, since: Option<Timestamp>) -> Self {
        Self { since, ..self }
    }
}

/// Why an execution waits.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Wait {
    /// How many executions are before it in its line; counted up to [`Wait::AHEAD_COUNTED`].
    pub ahead: u32,
    /// The causes, the weightiest first. None where nothing holds it up: it is about to be handed out.
    pub causes: Vec<Cause>,
}

impl Wait {
    /// So many are counted; beyond, nobody reads the number.
    pub const AHEAD_COUNTED: u32 = 1000;
}
