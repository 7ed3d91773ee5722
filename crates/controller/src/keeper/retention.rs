//! What is old goes: executions that ended long ago or are too many, idempotency keys after a day, revisions of catalogues. Removals only, so
//! that a full store is made emptier.

use std::time::Duration;

use futures::future::join_all;
use octavius_core::{Execution, ExecutionId, Timestamp};
use octavius_store::key::Removable;
use octavius_store::record::{HeadRecord, OnceRecord, RevisionRecord};
use octavius_store::{Commit, Entry, Key, Range, Store, StoreError, Txn, codec, key};

use super::{Pages, Retention};
use crate::archive::{Archive, ArchiveError};
use crate::audit;
use crate::executions::CLOCKS_DIFFER;

/// For how many hours an idempotency key is kept.
const ONCE_HOURS: u64 = 24;

/// For how many hours an execution is kept after its end in any case. For as long as its id is taken to be new, a call that is repeated must
/// find it, or it would run again: an id may be so far ahead of the clock and then so far behind it, and an hour is for the clocks of
/// controllers.
const SETTLED_HOURS: u64 = 2 * CLOCKS_DIFFER.as_hours().unsigned_abs() + 1;

/// Revisions of a catalogue that stay however old they are.
const REVISIONS: u64 = 100;

/// Executions that are removed at a time: their transactions then share the disk's time.
const AT_ONCE: usize = 16;

/// What was removed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(crate) struct Removed {
    pub(crate) executions: u64,
    pub(crate) keys: u64,
    pub(crate) revisions: u64,
    pub(crate) audited: u64,
}

/// Hours, rounded up.
fn hours(duration: Duration) -> u64 {
    duration.as_secs().div_ceil(3600)
}

/// Removes everything that is old now.
///
/// Where the archive does not answer, what has a log there stays until it does.
pub(crate) async fn remove(store: &dyn Store, retention: Retention, archive: Option<&Archive>) -> Result<Removed, StoreError> {
    let now = key::hour_of(Timestamp::now());
    let mut removed = Removed::default();
    let is_old = |hour: u64| hour + hours(retention.age).max(SETTLED_HOURS) < now;
    let is_settled = |hour: u64| hour + SETTLED_HOURS < now;
    let mut beyond = ended(store).await?.saturating_sub(retention.executions);
    let mut pages = Pages::of(key::removables());
    while let Some(page) = pages.next(store).await? {
        let (mut executions, mut keys) = (Vec::new(), Vec::new());
        for entry in &page {
            match key::removable_of(&entry.key) {
                Some((hour, Removable::Execution(id))) => {
                    if is_old(hour) || (beyond > 0 && is_settled(hour)) {
                        executions.push((entry.key.clone(), id));
                    }
                    beyond = beyond.saturating_sub(1);
                }
                Some((hour, Removable::Once(once))) if hour + ONCE_HOURS < now => keys.push((entry.key.clone(), once)),
                Some((_, Removable::Once(_))) => {}
                None => tracing::debug!(key = %entry.key, "a newer version's"),
            }
        }
        for some in executions.chunks(AT_ONCE) {
            let mut removing = Vec::with_capacity(AT_ONCE);
            for (at, id) in some {
                removing.push(remove_execution(store, archive, at, *id));
            }
            for (done, (_, id)) in join_all(removing).await.into_iter().zip(some) {
                match done {
                    Err(ArchiveError::Store(error @ StoreError::Unreadable(_))) => {
                        tracing::error!(execution = %id, %error, "cannot remove an old execution");
                    }
                    Err(ArchiveError::Store(error)) => return Err(error),
                    Err(error) => tracing::debug!(execution = %id, %error, "an old execution is removed later"),
                    Ok(done) => removed.executions += u64::from(done),
                }
            }
        }
        for (at, once) in keys {
            removed.keys += u64::from(remove_once(store, &at, &once).await?);
        }
        // They are in order of their hours: where nothing of this one would go, nothing of what follows goes either.
        let goes = |hour| is_old(hour) || hour + ONCE_HOURS < now || (beyond > 0 && is_settled(hour));
        if page.last().and_then(|last| key::removable_of(&last.key)).is_some_and(|(hour, _)| !goes(hour)) {
            break;
        }
    }
    removed.revisions = remove_revisions(store, retention).await?;
    removed.audited = remove_audited(store, retention).await?;
    Ok(removed)
}

/// How many executions have ended and are kept.
async fn ended(store: &dyn Store) -> Result<u64, StoreError> {
    let mut count = 0;
    let mut pages = Pages::of(key::removables());
    while let Some(page) = pages.next(store).await? {
        let is_execution = |entry: &&Entry| matches!(key::removable_of(&entry.key), Some((_, Removable::Execution(_))));
        count += page.iter().filter(is_execution).count() as u64;
    }
    Ok(count)
}

/// Removes one execution and all that is its own. The record goes first, so that nobody reads half a log and takes it for a whole one, and
/// nothing is appended any more; the key that says that it is to be removed goes last, so that a crash in between is made good.
async fn remove_execution(store: &dyn Store, archive: Option<&Archive>, at: &Key, id: ExecutionId) -> Result<bool, ArchiveError> {
    // Before anything goes: what could not be finished now would be tried again in each turn, for as long as each answer takes.
    if let Some(archive) = archive.filter(|archive| archive.is_down()) {
        return Err(archive.still_down());
    }
    if let Some(entry) = store.get(&key::execution(id)).await? {
        let execution: Execution = codec::decode(&entry)?;
        if !execution.state.is_terminal() {
            tracing::error!(execution = %id, "an execution that goes on is listed as ended");
            return Ok(false);
        }
        let mut txn = Txn::new()
            .unchanged(&entry)
            .delete(entry.key.clone())
            .delete(key::by_job(&execution.job, id))
            .delete(key::by_user(&execution.user, id));
        if let Some(with) = execution.sealed_with {
            txn = txn.delete(key::sealed(with, id));
        }
        if let Some(slot) = execution.slot {
            txn = txn.delete(key::slot(&execution.job, slot)); // it was lost, and nobody has heard of it since
        }
        if matches!(store.commit(txn).await?, Commit::Conflict(_)) {
            return Ok(false); // a late outcome has come; the next turn takes it
        }
    }
    if let Some(archive) = archive {
        archive.remove(id).await?;
    }
    let kept_log = key::removable_of(at).map(|(hour, _)| key::kept_log(hour, id));
    let logs = Range::of(key::logs(id), Txn::MAX_OPERATIONS - 2);
    loop {
        let page = store.range(&logs).await?;
        let mut txn = Txn::new();
        for entry in &page.entries {
            txn = txn.delete(entry.key.clone());
        }
        if !page.more {
            txn = txn.delete(at.clone());
            if let Some(kept_log) = kept_log {
                txn = txn.delete(kept_log);
            }
            store.commit(txn).await?;
            return Ok(true);
        }
        store.commit(txn).await?;
    }
}

async fn remove_once(store: &dyn Store, at: &Key, once: &Key) -> Result<bool, StoreError> {
    let Some(entry) = store.get(once).await? else {
        store.commit(Txn::new().delete(at.clone())).await?;
        return Ok(false);
    };
    let record: OnceRecord = codec::decode(&entry)?;
    let used_again = key::hour_of(record.at) > key::removable_of(at).map_or(0, |(hour, _)| hour);
    let txn = Txn::new().unchanged(&entry).delete(at.clone());
    // Used again since, it stands under a later hour too.
    let txn = if used_again { txn } else { txn.delete(once.clone()) };
    Ok(matches!(store.commit(txn).await?, Commit::Done(_)) && !used_again)
}

/// Removes what is old of the audit trail; where it is exported, what was.
async fn remove_audited(store: &dyn Store, retention: Retention) -> Result<u64, StoreError> {
    let exported = audit::exported(store).await?;
    let oldest = key::hour_of(Timestamp::now()).saturating_sub(hours(retention.audit));
    let is_old = |entry: &Entry| key::audited_of(&entry.key).is_some_and(|(hour, _)| hour < oldest);
    let is_kept = |entry: &Entry| exported.is_some_and(|exported| entry.created > exported.revision);
    let (mut removed, mut kept) = (0, 0);
    let mut pages = Pages::of(key::audit());
    while let Some(page) = pages.next(store).await? {
        let (waits, goes): (Vec<_>, Vec<_>) = page.iter().filter(|entry| is_old(entry)).partition(|entry| is_kept(entry));
        kept += waits.len();
        for some in goes.chunks(Txn::MAX_OPERATIONS) {
            store.commit(some.iter().fold(Txn::new(), |txn, entry| txn.delete(entry.key.clone()))).await?;
            removed += some.len() as u64;
        }
        if page.last().is_some_and(|last| !is_old(last)) {
            break; // they are in order of their hours
        }
    }
    if kept > 0 {
        tracing::warn!(kept, "old records of the audit trail wait for a controller that exports them");
    }
    Ok(removed)
}

/// Removes revisions of catalogues that are neither young nor among the newest.
async fn remove_revisions(store: &dyn Store, retention: Retention) -> Result<u64, StoreError> {
    let mut removed = 0;
    let now = key::hour_of(Timestamp::now());
    for head in crate::mirror::list(store, &key::catalog_heads()).await?.0 {
        let Some(catalog) = key::catalog_of(&head.key) else { continue };
        let HeadRecord { revision, .. } = codec::decode(&head)?;
        // They sort newest first: this is the last one that stays in any case.
        let Some(last) = revision.checked_sub(REVISIONS - 1).filter(|last| *last > 1) else { continue };
        let mut pages = Pages::after(key::catalog_revisions(&catalog), key::catalog_revision(&catalog, last));
        while let Some(revisions) = pages.next(store).await? {
            for entry in revisions {
                let record: RevisionRecord = codec::decode(&entry)?;
                if key::hour_of(record.applied_at) + hours(retention.age) < now {
                    let txn = Txn::new().unchanged(&entry).delete(entry.key.clone());
                    removed += u64::from(matches!(store.commit(txn).await?, Commit::Done(_)));
                }
            }
        }
    }
    Ok(removed)
}
