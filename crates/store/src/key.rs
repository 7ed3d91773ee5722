//! Every key there is, made in one place. Where a key holds a name that may contain `/` or sorts by case, the name is made safe here.

use std::fmt::Write as _;

use octavius_core::{CatalogName, Digest, ExecutionId, ExecutorId, JobName, KeyId, WebhookEvent};

use crate::api::Key;

/// Makes any text a single path segment whose order is that of its bytes: everything but `[A-Za-z0-9._=,-]` becomes `%XX`.
fn segment(text: &str) -> String {
    let mut safe = String::with_capacity(text.len());
    for byte in text.bytes() {
        if byte.is_ascii_alphanumeric() || matches!(byte, b'.' | b'_' | b'=' | b',' | b'-') {
            safe.push(char::from(byte));
        } else {
            let _ = write!(safe, "%{byte:02X}");
        }
    }
    safe
}

/// What all executions' keys start with. They sort newest first.
#[must_use]
pub fn executions() -> Key {
    Key::new("exec/")
}

/// An execution's record: state, attempts, who, pinned digest.
#[must_use]
pub fn execution(id: ExecutionId) -> Key {
    Key::new(format!("exec/{}", id.inverted()))
}

/// The execution that a key of [`execution`], [`queued`], [`awaits_approval`], [`owned`], [`by_job`] or [`by_user`] is about.
#[must_use]
pub fn execution_of(key: &Key) -> Option<ExecutionId> {
    let last = key.as_str().rsplit('/').next()?;
    match key.as_str().split('/').next()? {
        "queue" | "own" => last.parse().ok(),
        _ => ExecutionId::from_inverted(last),
    }
}

/// What the keys of everything that waits start with.
#[must_use]
pub fn queue() -> Key {
    Key::new("queue/")
}

/// That an execution waits, in its pool of executors. Higher priorities sort first.
#[must_use]
pub fn queued(pool: &str, priority: u8, id: ExecutionId) -> Key {
    Key::new(format!("queue/{}/{}/{id}", segment(pool), octavius_core::definition::MAX_PRIORITY.saturating_sub(priority)))
}

/// What the keys of everything that waits for approval start with. They sort newest first.
#[must_use]
pub fn awaiting_approval() -> Key {
    Key::new("awaiting-approval/")
}

/// That an execution waits for approval, see [`crate::record::ApprovalWaitRecord`].
#[must_use]
pub fn awaits_approval(id: ExecutionId) -> Key {
    Key::new(format!("awaiting-approval/{}", id.inverted()))
}

/// What the keys of all messages start with that webhooks have not taken, those that were given up included.
#[must_use]
pub fn deliveries() -> Key {
    Key::new("webhook/")
}

/// A message about an execution that a webhook of this name is to take, see [`crate::record::DeliveryRecord`].
#[must_use]
pub fn delivery(id: ExecutionId, event: WebhookEvent, webhook: &str) -> Key {
    Key::new(format!("webhook/waiting/{id}/{event}/{}", segment(webhook)))
}

/// The same once it was given up.
#[must_use]
pub fn delivery_given_up(id: ExecutionId, event: WebhookEvent, webhook: &str) -> Key {
    Key::new(format!("webhook/given-up/{id}/{event}/{}", segment(webhook)))
}

/// The message that a key of [`delivery`] or [`delivery_given_up`] names: of which execution, of what, to whom, and whether it was given up.
#[must_use]
pub fn delivery_of(key: &Key) -> Option<(ExecutionId, WebhookEvent, &str, bool)> {
    let mut parts = key.as_str().strip_prefix("webhook/")?.splitn(4, '/');
    let given_up = match parts.next()? {
        "waiting" => false,
        "given-up" => true,
        _ => return None,
    };
    Some((parts.next()?.parse().ok()?, WebhookEvent::parse(parts.next()?)?, parts.next()?, given_up))
}

/// What the keys of everything that any executor holds start with.
#[must_use]
pub fn owned_by_all() -> Key {
    Key::new("own/")
}

/// What the keys of everything that one executor holds start with.
#[must_use]
pub fn owned_by(executor: &ExecutorId) -> Key {
    Key::new(format!("own/{executor}/"))
}

/// That an executor holds an execution.
#[must_use]
pub fn owned(executor: &ExecutorId, id: ExecutionId) -> Key {
    Key::new(format!("own/{executor}/{id}"))
}

/// The executor that a key of [`owned`] names.
#[must_use]
pub fn owner_of(key: &Key) -> Option<ExecutorId> {
    key.as_str().strip_prefix("own/")?.split('/').next()?.parse().ok()
}

/// What the keys of one job's executions start with. They sort newest first.
#[must_use]
pub fn by_job_all(job: &JobName) -> Key {
    Key::new(format!("by-job/{}/", job.folded()))
}

/// That an execution is one of this job.
#[must_use]
pub fn by_job(job: &JobName, id: ExecutionId) -> Key {
    Key::new(format!("by-job/{}/{}", job.folded(), id.inverted()))
}

/// What the keys of one user's executions start with. They sort newest first.
#[must_use]
pub fn by_user_all(user: &str) -> Key {
    Key::new(format!("by-user/{}/", segment(user)))
}

/// That an execution is one of this user.
#[must_use]
pub fn by_user(user: &str, id: ExecutionId) -> Key {
    Key::new(format!("by-user/{}/{}", segment(user), id.inverted()))
}

/// What the keys that say what is encrypted with which key start with.
#[must_use]
pub fn sealed_all() -> Key {
    Key::new("sealed/")
}

/// What the keys of all executions start with whose sensitive arguments are encrypted with this key.
#[must_use]
pub fn sealed_with(key: KeyId) -> Key {
    Key::new(format!("sealed/{key}/"))
}

/// That an execution's sensitive arguments are encrypted with this key.
#[must_use]
pub fn sealed(key: KeyId, id: ExecutionId) -> Key {
    Key::new(format!("sealed/{key}/{id}"))
}

/// What a key of [`sealed`] says.
#[must_use]
pub fn sealed_of(key: &Key) -> Option<(KeyId, ExecutionId)> {
    let (of, id) = key.as_str().strip_prefix("sealed/")?.split_once('/')?;
    Some((of.parse().ok()?, id.parse().ok()?))
}

/// A user's own idempotency key.
#[must_use]
pub fn once(principal: &str, key: &str) -> Key {
    Key::new(format!("once/{}/{}", segment(principal), Digest::of(key.as_bytes())))
}

/// What the keys of all concurrency slots start with.
#[must_use]
pub fn slots() -> Key {
    Key::new("slot/")
}

/// What the keys of one job's concurrency slots start with.
#[must_use]
pub fn slots_of(job: &JobName) -> Key {
    Key::new(format!("slot/{}/", job.folded()))
}

/// That an execution holds this slot of its job, see [`crate::record::SlotRecord`].
#[must_use]
pub fn slot(job: &JobName, number: u32) -> Key {
    Key::new(format!("slot/{}/{number:05}", job.folded()))
}

/// The job, in small letters, and the number that a key of [`slot`] names.
#[must_use]
pub fn slot_of(key: &Key) -> Option<(&str, u32)> {
    let (job, number) = key.as_str().strip_prefix("slot/")?.split_once('/')?;
    Some((job, number.parse().ok()?))
}

/// What the presences of executors start with.
#[must_use]
pub fn presences() -> Key {
    Key::new("presence/")
}

/// That an executor is there.
#[must_use]
pub fn presence(executor: &ExecutorId) -> Key {
    Key::new(format!("presence/{executor}"))
}

/// What the keys of an execution's logs start with.
#[must_use]
pub fn logs(id: ExecutionId) -> Key {
    Key::new(format!("log/{id}/"))
}

/// What the keys of one attempt's log start with.
#[must_use]
pub fn log(id: ExecutionId, attempt: u32) -> Key {
    Key::new(format!("log/{id}/{attempt:06}/"))
}

/// One attempt's log: next offset, checksum so far. Whether it is sealed, the execution says.
#[must_use]
pub fn log_head(id: ExecutionId, attempt: u32) -> Key {
    Key::new(format!("log/{id}/{attempt:06}/head"))
}

/// What the keys of one attempt's segments start with.
#[must_use]
pub fn log_segments(id: ExecutionId, attempt: u32) -> Key {
    Key::new(format!("log/{id}/{attempt:06}/at/"))
}

/// The segment of an attempt's log that begins at this byte.
#[must_use]
pub fn log_segment(id: ExecutionId, attempt: u32, offset: u64) -> Key {
    Key::new(format!("log/{id}/{attempt:06}/at/{offset:016x}"))
}

/// What the keys that name an attempt's objects in the archive start with.
#[must_use]
pub fn log_objects(id: ExecutionId, attempt: u32) -> Key {
    Key::new(format!("log/{id}/{attempt:06}/object/"))
}

/// The object of this number, from 0, of an attempt's log.
#[must_use]
pub fn log_object(id: ExecutionId, attempt: u32, number: u32) -> Key {
    Key::new(format!("log/{id}/{attempt:06}/object/{number:08x}"))
}

/// What the keys of logs start with that have bytes in the store, or had when somebody looked last.
#[must_use]
pub fn hot_logs() -> Key {
    Key::new("hot/")
}

/// That an attempt's log has bytes in the store that are to go into the archive once the execution has ended.
#[must_use]
pub fn hot_log(id: ExecutionId, attempt: u32) -> Key {
    Key::new(format!("hot/{id}/{attempt:06}"))
}

/// What the keys of [`hot_log`] of one execution start with.
#[must_use]
pub fn hot_log_prefix(id: ExecutionId) -> Key {
    Key::new(format!("hot/{id}/"))
}

/// The attempt whose log a key of [`hot_log`] names.
#[must_use]
pub fn hot_log_of(key: &Key) -> Option<(ExecutionId, u32)> {
    let (id, attempt) = key.as_str().strip_prefix("hot/")?.split_once('/')?;
    Some((id.parse().ok()?, attempt.parse().ok()?))
}

/// What the keys of the logs of ended executions start with. They sort by the hour of the end, the oldest first.
#[must_use]
pub fn kept_logs() -> Key {
    Key::new("kept-log/")
}

/// What the log of an execution takes that ended in this hour (since 1970, UTC).
#[must_use]
pub fn kept_log(hour: u64, id: ExecutionId) -> Key {
    Key::new(format!("kept-log/{hour:010}/{id}"))
}

/// The hour and the execution that a key of [`kept_log`] names.
#[must_use]
pub fn kept_log_of(key: &Key) -> Option<(u64, ExecutionId)> {
    let (hour, id) = key.as_str().strip_prefix("kept-log/")?.split_once('/')?;
    Some((hour.parse().ok()?, id.parse().ok()?))
}

/// The archive that this store's logs are in.
#[must_use]
pub fn archive() -> Key {
    Key::new("archive")
}

/// An immutable blob, or the list of its chunks' count where it is large.
#[must_use]
pub fn blob(digest: &Digest) -> Key {
    Key::new(format!("blob/{digest}"))
}

/// One chunk of a large blob.
#[must_use]
pub fn blob_chunk(digest: &Digest, index: usize) -> Key {
    Key::new(format!("blob/{digest}/{index:06}"))
}

/// Written by every transaction that adds a name to a catalogue, so that two catalogues cannot take one name at the same time.
#[must_use]
pub fn names() -> Key {
    Key::new("names")
}

/// What the keys of all catalogues' heads start with: a prefix of its own, so that all heads are one small range.
#[must_use]
pub fn catalog_heads() -> Key {
    Key::new("head/")
}

/// A catalogue's head: the number of its newest revision.
#[must_use]
pub fn catalog_head(catalog: &CatalogName) -> Key {
    Key::new(format!("head/{catalog}"))
}

/// The catalogue that a key of [`catalog_head`] names.
#[must_use]
pub fn catalog_of(head: &Key) -> Option<CatalogName> {
    head.as_str().strip_prefix("head/")?.parse().ok()
}

/// What the keys of a catalogue's revisions start with. They sort newest first.
#[must_use]
pub fn catalog_revisions(catalog: &CatalogName) -> Key {
    Key::new(format!("cat/{catalog}/rev/"))
}

/// One revision of a catalogue.
#[must_use]
pub fn catalog_revision(catalog: &CatalogName, revision: u64) -> Key {
    Key::new(format!("cat/{catalog}/rev/{:016x}", u64::MAX - revision))
}

/// What the records of registered executors start with.
#[must_use]
pub fn executors() -> Key {
    Key::new("executor/")
}

/// A registered executor.
#[must_use]
pub fn executor(id: &ExecutorId) -> Key {
    Key::new(format!("executor/{id}"))
}

/// What the keys of everything that is paused start with.
#[must_use]
pub fn pauses() -> Key {
    Key::new("paused/")
}

/// That a job is paused. No job's name begins with a dot.
#[must_use]
pub fn paused(job: &JobName) -> Key {
    Key::new(format!("paused/{}", job.folded()))
}

/// That all jobs are paused.
#[must_use]
pub fn paused_all() -> Key {
    Key::new("paused/.all")
}

/// Written by every transaction that pauses or unpauses: one condition on it stands for all that is paused and all that is not.
#[must_use]
pub fn pauses_version() -> Key {
    Key::new("paused/.version")
}

/// What the keys of all schedules' cursors start with.
#[must_use]
pub fn ticks() -> Key {
    Key::new("tick/")
}

/// How far a job's schedule has been seen to.
#[must_use]
pub fn tick(folded_job: &str) -> Key {
    Key::new(format!("tick/{folded_job}"))
}

/// The job, its name folded, that a key of [`tick`] is about.
#[must_use]
pub fn ticking_job(key: &Key) -> Option<&str> {
    key.as_str().strip_prefix("tick/")
}

/// What all tokens' records start with.
#[must_use]
pub fn tokens() -> Key {
    Key::new("token/")
}

/// A token's record, under the SHA-256 of the token.
#[must_use]
pub fn token(digest: &Digest) -> Key {
    Key::new(format!("token/{digest}"))
}

/// That the token of this SHA-256 was taken as the first admin's from a file, once.
#[must_use]
pub fn bootstrapped(digest: &Digest) -> Key {
    Key::new(format!("bootstrapped/{digest}"))
}

/// What all notes of when tokens were last used start with.
#[must_use]
pub fn tokens_used() -> Key {
    Key::new("token-used/")
}

/// When the token of this id was last used.
#[must_use]
pub fn token_used(id: &str) -> Key {
    Key::new(format!("token-used/{id}"))
}

/// The id of the token that a key of [`token_used`] names.
#[must_use]
pub fn token_used_of(key: &Key) -> Option<&str> {
    key.as_str().strip_prefix("token-used/")
}

/// The controller's own facts: its id, made at the first start.
#[must_use]
pub fn controller() -> Key {
    Key::new("controller")
}

/// That a backup is being restored into this store: its header. While it is there, the store is not whole and no controller begins on it.
#[must_use]
pub fn restoring() -> Key {
    Key::new("restoring")
}

/// What the presences of controllers start with.
#[must_use]
pub fn peers() -> Key {
    Key::new("peer/")
}

/// That a controller is there: `id` is new at each of its starts.
#[must_use]
pub fn peer(id: &str) -> Key {
    Key::new(format!("peer/{}", segment(id)))
}

/// Whose turn it is to look after the store: one controller at a time, see [`crate::record::DutyRecord`].
#[must_use]
pub fn duty() -> Key {
    Key::new("duty")
}

/// What the keys of everything that will be removed in time start with. They sort by the hour in which it became removable, the oldest
/// first.
#[must_use]
pub fn removables() -> Key {
    Key::new("gc/")
}

/// That an execution ended in this hour (since 1970, UTC): it may be removed so many hours later as executions are kept.
#[must_use]
pub fn removable_execution(hour: u64, id: ExecutionId) -> Key {
    Key::new(format!("gc/{hour:010}/exec/{id}"))
}

/// That a user's idempotency key was used in this hour (since 1970, UTC). `once` is the key that [`once`] made.
#[must_use]
pub fn removable_once(hour: u64, once: &Key) -> Key {
    Key::new(format!("gc/{hour:010}/{once}"))
}

/// What a key under [`removables`] is about.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Removable {
    /// An execution that has ended.
    Execution(ExecutionId),
    /// A user's idempotency key, under the key that [`once`] made.
    Once(Key),
}

/// The hour and the thing that a key under [`removables`] names.
#[must_use]
pub fn removable_of(key: &Key) -> Option<(u64, Removable)> {
    let (hour, what) = key.as_str().strip_prefix("gc/")?.split_once('/')?;
    let removable = match what.split_once('/')? {
        ("exec", id) => Removable::Execution(id.parse().ok()?),
        ("once", _) => Removable::Once(Key::new(what)),
        _ => return None,
    };
    Some((hour.parse().ok()?, removable))
}

/// What the keys of the audit trail start with. They sort by the hour, the oldest first, and within it by when they were made.
#[must_use]
pub fn audit() -> Key {
    Key::new("audit/")
}

/// Who did, or was refused, what in this hour (since 1970, UTC), see [`crate::record::AuditRecord`].
#[must_use]
pub fn audited(hour: u64, id: ExecutionId) -> Key {
    Key::new(format!("audit/{hour:010}/{id}"))
}

/// What sorts before all keys of [`audited`] of this hour and those after it.
#[must_use]
pub fn audit_from(hour: u64) -> Key {
    Key::new(format!("audit/{hour:010}/"))
}

/// The hour and the id that a key of [`audited`] names.
#[must_use]
pub fn audited_of(key: &Key) -> Option<(u64, ExecutionId)> {
    let (hour, id) = key.as_str().strip_prefix("audit/")?.split_once('/')?;
    Some((hour.parse().ok()?, id.parse().ok()?))
}

/// How far the audit trail has been exported, see [`crate::record::ExportRecord`]; absent where it is not exported.
#[must_use]
pub fn audit_exported() -> Key {
    Key::new("audit-exported")
}

/// What the keys of all blobs and their chunks start with.
#[must_use]
pub fn blobs() -> Key {
    Key::new("blob/")
}

/// The digest that a key of [`blob`] or [`blob_chunk`] names.
#[must_use]
pub fn blob_of(key: &Key) -> Option<Digest> {
    key.as_str().strip_prefix("blob/")?.split('/').next()?.parse().ok()
}

/// The hour since 1970, UTC, of a time; 0 before.
#[must_use]
pub fn hour_of(at: octavius_core::Timestamp) -> u64 {
    u64::try_from(at.as_second() / 3600).unwrap_or_default()
}

#[cfg(test)]
mod tests;
