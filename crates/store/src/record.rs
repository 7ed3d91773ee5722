//! The records that are kept in the store beside executions, whose stored form is [`octavius_core::Execution`] itself.

use octavius_core::execution::Fence;
use octavius_core::{Digest, ExecutionId, ExecutorId, Labels, Role, Timestamp};
use serde::{Deserialize, Serialize};

/// The controller's own facts, under [`crate::key::controller`].
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ControllerRecord {
    /// The id of this store, made at the first start: plans name it, so that they cannot be applied elsewhere.
    pub id: String,
}

/// A catalogue's head, under [`crate::key::catalog_head`].
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct HeadRecord {
    /// The newest revision's number.
    pub revision: u64,
    /// SHA-256 of its manifest's root.
    pub manifest: Digest,
    /// Who froze the catalogue, and when: only rollbacks move its head then.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub frozen: Option<FrozenRecord>,
}

/// That a catalogue is frozen.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct FrozenRecord {
    /// Who froze it.
    pub by: String,
    /// When, by the controller's clock.
    pub at: Timestamp,
}

/// A revision of a catalogue, under [`crate::key::catalog_revision`].
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct RevisionRecord {
    /// Its number, from 1.
    pub number: u64,
    /// The revision that it replaced, 0 for none.
    pub parent: u64,
    /// SHA-256 of the manifest's root.
    pub manifest: Digest,
    /// Who applied it.
    pub applied_by: String,
    /// When, by the controller's clock.
    pub applied_at: Timestamp,
    /// The git commit that the files came from; empty outside a repository.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub commit: String,
    /// Whether files differed from that commit.
    #[serde(default)]
    pub dirty: bool,
    /// The repository's URL without credentials.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub repository: String,
    /// The commit's author.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub author: String,
    /// New jobs.
    pub added: u32,
    /// Changed jobs.
    pub changed: u32,
    /// Removed jobs.
    pub removed: u32,
    /// Jobs that stayed.
    pub unchanged: u32,
    /// The revision that it brought back; 0 where it is no rollback.
    #[serde(default, skip_serializing_if = "is_zero")]
    pub rollback_to: u64,
    /// The id of the plan that it carried out; empty where that was made and applied in one go.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub plan_id: String,
}

#[expect(clippy::trivially_copy_pass_by_ref, reason = "serde hands over a reference")]
const fn is_zero(number: &u64) -> bool {
    *number == 0
}

/// That an execution waits, under [`crate::key::queued`].
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct QueueRecord {
    /// Labels that its executor must have.
    pub selector: Labels,
    /// When it has waited too long, by the clock of the controller that queued it.
    pub expires_at: Timestamp,
}

/// That an executor holds an execution, under [`crate::key::owned`].
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct OwnRecord {
    /// The claim.
    pub fence: Fence,
    /// Whether the executor has said that it starts.
    pub started: bool,
    /// Whether someone asked for it to stop.
    pub cancel: bool,
    /// Longest run of the attempt: an executor that is there and says nothing for much longer has lost it.
    pub timeout: std::time::Duration,
}

/// A user's idempotency key, under [`crate::key::once`].
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct OnceRecord {
    /// The execution that it led to.
    pub id: ExecutionId,
    /// SHA-256 of the request.
    pub request: Digest,
    /// When.
    pub at: Timestamp,
}

/// One attempt's log, under [`crate::key::log_head`].
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct LogHead {
    /// Bytes that the executor has sent.
    pub next_offset: u64,
    /// Of these, bytes that are kept: the first so many.
    pub kept: u64,
    /// CRC-32C of all bytes sent.
    pub crc32c: u32,
    /// Where the last segment begins.
    pub last_segment: u64,
}

/// A registered executor, under [`crate::key::executor`].
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ExecutorRecord {
    /// Its id.
    pub id: ExecutorId,
    /// When it registered.
    pub registered_at: Timestamp,
    /// SHA-256 of its token.
    pub token: Digest,
    /// Its newest session, if it had one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub session: Option<SessionRecord>,
}

/// An executor's newest session.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct SessionRecord {
    /// Its labels.
    pub labels: Labels,
    /// How many executions it runs at once.
    pub capacity: u32,
    /// Its version.
    pub version: String,
    /// What it runs jobs with.
    pub runner: String,
    /// When the session began, or ended.
    pub seen_at: Timestamp,
}

/// Whose turn it is to look after the store, under [`crate::key::duty`]. Nobody compares clocks: a controller that has seen the same record
/// for a whole turn, by its own clock, takes the next one by compare-and-swap.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct DutyRecord {
    /// Counts turns.
    pub turn: u64,
    /// The controller that took this one; its id is new at each of its starts.
    pub controller: String,
    /// The store's revision when the turn began: the next turn forgets what was replaced before.
    pub revision: u64,
}

/// A token, under [`crate::key::token`]. The token itself is not kept.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct TokenRecord {
    /// Its id, to name it by.
    pub id: String,
    /// What its bearer is.
    pub role: Role,
    /// Who its bearer is; an executor's id.
    pub user: String,
    /// Their groups.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub groups: Vec<String>,
    /// When it was made.
    pub created_at: Timestamp,
    /// Who made it.
    pub created_by: String,
    /// When it ends; none for executors' tokens and the first admin's.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub expires_at: Option<Timestamp>,
}
