//! The records that are kept in the store beside executions, whose stored form is [`octavius_core::Execution`] itself.

use std::collections::BTreeMap;

use octavius_core::execution::Fence;
use octavius_core::{CatalogName, Digest, ExecutionId, ExecutorId, JobName, KeyId, Labels, Role, Timestamp};
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

fn is_zero<N: Default + PartialEq>(number: &N) -> bool {
    *number == N::default()
}

#[expect(clippy::trivially_copy_pass_by_ref, reason = "serde passes references")]
fn is_false(flag: &bool) -> bool {
    !*flag
}

/// That an execution waits, under [`crate::key::queued`].
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct QueueRecord {
    /// Labels that its executor must have.
    pub selector: Labels,
    /// When it has waited too long, by the clock of the controller that queued it.
    pub expires_at: Timestamp,
    /// Its job.
    pub job: JobName,
    /// How many of its job may run at once; 0 where nothing is said, or where it has its slot already.
    #[serde(default, skip_serializing_if = "is_zero")]
    pub limit: u32,
    /// For how long it waits before its next attempt, from when it is seen.
    #[serde(default, skip_serializing_if = "std::time::Duration::is_zero")]
    pub delay: std::time::Duration,
}

/// That an execution waits for approval, under [`crate::key::awaits_approval`].
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct ApprovalWaitRecord {
    /// When it has waited too long, by the clock of the controller that took it in.
    pub expires_at: Timestamp,
}

/// A message that a webhook has not taken yet, or that was given up, under [`crate::key::delivery`].
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct DeliveryRecord {
    /// When what it tells came about, by the clock of the controller that wrote it down.
    pub at: Timestamp,
    /// How often the webhook was asked to take it.
    #[serde(default, skip_serializing_if = "is_zero")]
    pub tries: u32,
    /// When it is tried next, by the controllers' clocks; when it was given up, where it was.
    pub then: Timestamp,
    /// Why the webhook did not take it last; empty where it was not asked yet.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub failure: String,
}

/// Who holds a concurrency slot of a job, under [`crate::key::slot`].
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct SlotRecord {
    /// The execution.
    pub id: ExecutionId,
    /// Set where it was lost: for how long it may run still, from when that is seen.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub lost: Option<std::time::Duration>,
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

/// How far a job's schedule has been seen to, under [`crate::key::tick`]: moved in the very transaction that makes a tick's execution, so that
/// no tick has two.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct TickRecord {
    /// The catalogue that the job belongs to.
    pub catalog: CatalogName,
    /// SHA-256 of what the ticks depend on: with another schedule, they begin anew.
    pub schedule: Digest,
    /// Every tick until then has been seen to.
    pub last: Timestamp,
    /// The execution of the last tick that had one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub execution: Option<ExecutionId>,
    /// The last tick that had none.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub skipped: Option<SkippedTick>,
}

/// A tick without execution.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct SkippedTick {
    /// The tick.
    pub tick: Timestamp,
    /// Why: one of the constants here, or what a newer version says.
    pub because: String,
    /// The execution that had not ended.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub execution: Option<ExecutionId>,
}

impl SkippedTick {
    /// The execution of a tick before had not ended.
    pub const OVERLAP: &'static str = "overlap";
    /// No controller ran, or the store had no room for it.
    pub const MISSED: &'static str = "missed";
    /// As many executions of the job ran as it allows, and it refuses more.
    pub const FULL: &'static str = "full";
    /// The job was paused.
    pub const PAUSED: &'static str = "paused";
    /// The job cannot run without somebody who gives its arguments.
    pub const ARGUMENTS: &'static str = "arguments";
}

/// A user's idempotency key, under [`crate::key::once`].
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct OnceRecord {
    /// The execution that it led to.
    pub id: ExecutionId,
    /// SHA-256 of the request; where `key` is there, keyed with it, so that no argument can be guessed from it.
    pub request: Digest,
    /// The controllers' key that the digest is made with.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub key: Option<KeyId>,
    /// When.
    pub at: Timestamp,
}

/// One attempt's log, under [`crate::key::log_head`]. Its bytes are, in this order, in objects of the archive, and in segments of the store;
/// what was cut out of the middle is in neither.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct LogHead {
    /// Bytes that the executor has sent.
    pub next_offset: u64,
    /// CRC-32C of all bytes sent.
    pub crc32c: u32,
    /// Where the last segment begins; `next_offset` where there is none.
    pub last_segment: u64,
    /// Bytes before this offset are not in segments: they are in objects, or were cut.
    #[serde(default, skip_serializing_if = "is_zero")]
    pub archived: u64,
    /// How many objects have been written; those that were cut count.
    #[serde(default, skip_serializing_if = "is_zero")]
    pub objects: u32,
    /// How many bytes those that are left take in the archive.
    #[serde(default, skip_serializing_if = "is_zero")]
    pub stored: u64,
    /// When the latest byte in an object was printed: milliseconds since 1970, UTC.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub latest: Option<i64>,
    /// What was cut out of the middle.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub cut: Option<LogCut>,
    /// Whether all of it was removed after the execution's end, while the execution is kept.
    #[serde(default, skip_serializing_if = "is_false")]
    pub removed: bool,
}

/// What was cut out of a log whose job printed more than is kept.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct LogCut {
    /// Where it begins.
    pub from: u64,
    /// Where it ends.
    pub to: u64,
    /// The first object that is gone with it, where its bytes were in objects.
    #[serde(default, skip_serializing_if = "is_zero")]
    pub first_object: u32,
    /// The first object after it.
    #[serde(default, skip_serializing_if = "is_zero")]
    pub next_object: u32,
}

/// An object of the archive that holds a piece of an attempt's log, under [`crate::key::log_object`].
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct LogObject {
    /// Where in the log it begins.
    pub offset: u64,
    /// How many bytes of the log it holds.
    pub size: u64,
    /// CRC-32C of the object as it is in the archive; a part of its name.
    pub crc32c: u32,
    /// Its parts, in order: each can be read without the others.
    pub parts: Vec<LogPart>,
    /// When the first of its bytes was printed, and the latest up to its end: milliseconds since 1970, UTC, by the clock of where they were
    /// read.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub printed: Option<(i64, i64)>,
}

/// A part of an object: as an array of three numbers.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(from = "(u32, u32, u32)", into = "(u32, u32, u32)")]
pub struct LogPart {
    /// How many bytes of the log it holds.
    pub size: u32,
    /// How many bytes it takes in the object.
    pub stored: u32,
    /// CRC-32C of its bytes of the log.
    pub crc32c: u32,
}

impl From<(u32, u32, u32)> for LogPart {
    fn from((size, stored, crc32c): (u32, u32, u32)) -> Self {
        Self { size, stored, crc32c }
    }
}

impl From<LogPart> for (u32, u32, u32) {
    fn from(part: LogPart) -> Self {
        (part.size, part.stored, part.crc32c)
    }
}

impl LogObject {
    /// Where in the log it ends.
    #[must_use]
    pub const fn end(&self) -> u64 {
        self.offset + self.size
    }

    /// How many bytes it takes in the archive.
    #[must_use]
    pub fn stored(&self) -> u64 {
        self.parts.iter().map(|part| u64::from(part.stored)).sum()
    }
}

/// What the log of an ended execution takes, under [`crate::key::kept_log`].
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct KeptLogRecord {
    /// The job.
    pub job: JobName,
    /// Bytes in the archive, or in the store where there is none.
    pub stored: u64,
    /// How long the log is kept, where the job says so.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub keep_for: Option<std::time::Duration>,
    /// Most bytes that the logs of this job may take, where the job said so then.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub keep_bytes: Option<u64>,
}

/// The archive that a store's logs are in, under [`crate::key::archive`].
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ArchiveRecord {
    /// What its marker says, so that another archive is not taken for it.
    pub id: String,
    /// Where it was when it was first used, for whoever has to find it again.
    pub url: String,
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
    /// SHA-256 of the token that takes its place with the next session.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub next_token: Option<Digest>,
    /// Its newest session, if it had one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub session: Option<SessionRecord>,
    /// Who had it drain, and when, until someone lets it resume: it is given no work meanwhile. A claim asks that this record is as it was
    /// when it was judged, so that whoever writes this has stopped every controller.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub draining: Option<DrainRecord>,
}

/// That an executor drains.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct DrainRecord {
    /// Who asked for it.
    pub by: String,
    /// When, by the controller's clock.
    pub at: Timestamp,
}

/// That nothing of a job starts, under [`crate::key::paused`], or nothing at all, under [`crate::key::paused_all`].
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct PausedRecord {
    /// Who paused it.
    pub by: String,
    /// When, by the controller's clock.
    pub at: Timestamp,
    /// Why, as they say; empty where they do not.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub reason: String,
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
    /// What it has made and no execution is for, as it was last told: the first [`octavius_core::limit::ORPHANS`].
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub orphans: Vec<OrphanRecord>,
    /// How many of these there are.
    #[serde(default, skip_serializing_if = "is_zero")]
    pub orphan_count: u64,
}

/// Something that an executor has made and that no execution is for.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct OrphanRecord {
    /// Its name.
    pub name: String,
    /// Its namespace.
    pub namespace: String,
    /// Since when no execution is for it, by the executor's clock.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub since: Option<Timestamp>,
    /// When it is removed at the earliest, by the executor's clock.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub removed_at: Option<Timestamp>,
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
    /// The catalogues that an applier changes; empty for every one.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub catalogs: Vec<CatalogName>,
    /// When it was made.
    pub created_at: Timestamp,
    /// Who made it.
    pub created_by: String,
    /// When it ends; none for the first admin's, and for those of executors that registered with an older version.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub expires_at: Option<Timestamp>,
    /// How many more executors may be registered with it; none where that is not limited, and for other roles.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub uses: Option<u32>,
    /// What makes it the token of a browser's session; none where it is none.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub session: Option<BrowserSessionRecord>,
}

/// A browser's session.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct BrowserSessionRecord {
    /// SHA-256 of the token that somebody signed in with: the session is good no longer than that is there. None where they did with a JSON
    /// Web Token, which is not kept.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub of: Option<Digest>,
}

/// When a token was last used, as far as a controller has noted it, under [`crate::key::token_used`].
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct UsedRecord {
    /// When.
    pub at: Timestamp,
}

/// Who did what, or was refused, under [`crate::key::audited`]. What was done is written in the very transaction that does it: the order of
/// the trail is that of the revisions that wrote it. Never holds a secret.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct AuditRecord {
    /// When, by the clock of the controller that was asked.
    pub at: Timestamp,
    /// Who: the user, or the executor; empty where that is not known.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub user: String,
    /// What they are.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub role: Option<Role>,
    /// The id of the token that they came with; empty where that is not known.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub token: String,
    /// The address that the call came from, without its port; empty where the controller did it by itself.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub from: String,
    /// What, in a word that does not change: `execution.submit`.
    pub action: String,
    /// On what: `execution/<id>`, `job/<name>`; empty where that is not known.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub object: String,
    /// Why it was refused, as a code; empty where it was done.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub refused: String,
    /// What else there is to say.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub details: BTreeMap<String, String>,
}

/// How far the audit trail has been exported, under [`crate::key::audit_exported`]. While this is there, nothing of the trail is removed that
/// is not covered by it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ExportRecord {
    /// Everything that was written at this revision or before it has been exported.
    pub revision: u64,
    /// The hour (since 1970, UTC) in which that was: what is not exported yet is in it, in one after it, or a little before it.
    pub hour: u64,
}
