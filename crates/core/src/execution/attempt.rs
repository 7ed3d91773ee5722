//! One attempt to run a job: by which claim, how far it came, how it ended.

use jiff::Timestamp;
use serde::{Deserialize, Serialize};

use crate::id::ExecutorId;

use super::{Reason, State};

/// What makes one claim different from every other: each call on behalf of an attempt bears it, and a call with another is refused.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct Fence {
    /// The attempt, counted from 1.
    pub attempt: u32,
    /// A random number, drawn at the claim.
    pub nonce: u64,
}

/// How an attempt ended.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Ending {
    /// A terminal state.
    pub outcome: State,
    /// Why; none where there is nothing to explain.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub reason: Option<Reason>,
    /// The reason in a sentence, with what to do where there is something.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub message: String,
    /// The job's exit code, where it had one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub exit_code: Option<i32>,
}

impl Ending {
    /// The ending of a job that exited with 0.
    #[must_use]
    pub fn succeeded() -> Self {
        Self { outcome: State::Succeeded, reason: None, message: String::new(), exit_code: Some(0) }
    }

    /// An ending without exit code.
    #[must_use]
    pub fn because(outcome: State, reason: &str, message: impl Into<String>) -> Self {
        Self { outcome, reason: Some(Reason::new(reason)), message: message.into(), exit_code: None }
    }
}

/// One attempt to run the job.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Attempt {
    /// Counted from 1.
    pub number: u32,
    /// Who had it.
    pub executor: ExecutorId,
    /// The claim's random number.
    pub nonce: u64,
    /// When it was claimed.
    pub claimed_at: Timestamp,
    /// When the executor said that it starts.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub starting_at: Option<Timestamp>,
    /// When the job ran.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub running_at: Option<Timestamp>,
    /// When the attempt ended.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub ended_at: Option<Timestamp>,
    /// How it ended; none for a claim that went back to the queue without a start, and while it lasts.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub ending: Option<Ending>,
    /// What the executor reported after the attempt had been given up as lost.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub late: Option<Ending>,
    /// The log's size and CRC-32C at its seal, where it was sealed.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub log: Option<LogSeal>,
    /// What the attempt is where it runs: a process id, a Kubernetes Job.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub runs_as: String,
    /// The image that ran, by its digest; empty where there is none, or it is not known yet.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub image: String,
}

/// A log's size and checksum when its writer had said everything.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct LogSeal {
    /// Bytes that the job printed, after masking.
    pub size_bytes: u64,
    /// CRC-32C of them.
    pub crc32c: u32,
    /// Whether what is kept is what the executor says that the job printed. A host that lost its power may have forgotten the end of
    /// what it had sent.
    pub whole: bool,
    /// Bytes at the end that are not kept because the store had no room for them; 0 nearly always.
    #[serde(default, skip_serializing_if = "is_zero")]
    pub missing_bytes: u64,
}

#[expect(clippy::trivially_copy_pass_by_ref, reason = "serde hands over a reference")]
fn is_zero(count: &u64) -> bool {
    *count == 0
}
