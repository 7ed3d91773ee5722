//! Logs that go before their executions do: those that are older than their job says, and the oldest of those that take more room than their
//! job, or this controller, grants. What each takes is in an index, which is looked through once an hour.

use std::collections::HashMap;
use std::time::Duration;

use octavius_core::{Execution, ExecutionId, JobName, Timestamp};
use octavius_store::record::{KeptLogRecord, LogHead};
use octavius_store::{Commit, Entry, Key, Range, Store, StoreError, Txn, codec, key};

use super::Pages;
use crate::archive::{Archive, ArchiveError};

/// What takes how much.
#[derive(Debug, Default)]
struct Sums {
    all: u64,
    by_job: HashMap<JobName, u64>,
    /// What each job's newest execution said of how much its logs may take.
    most: HashMap<JobName, Option<u64>>,
}

/// Removes logs that are not to be kept any more; how many. Where `most` is given, all logs together take no more.
pub(super) async fn remove(store: &dyn Store, archive: &Archive, most: Option<u64>) -> Result<u64, ArchiveError> {
    let mut sums = Sums::default();
    let mut pages = Pages::of(key::kept_logs());
    let mut ages = false;
    while let Some(page) = pages.next(store).await? {
        for (_, record) in page.iter().filter_map(read) {
            sums.all += record.stored;
            *sums.by_job.entry(record.job.clone()).or_default() += record.stored;
            ages |= record.keep_for.is_some();
            sums.most.insert(record.job, record.keep_bytes); // they come in the order of their ends
        }
    }
    let jobs_over = sums.most.iter().any(|(job, most)| most.is_some_and(|most| sums.by_job[job] > most));
    if !(ages || jobs_over || most.is_some_and(|most| sums.all > most)) {
        return Ok(0);
    }
    let now = key::hour_of(Timestamp::now());
    let mut removed = 0;
    let mut pages = Pages::of(key::kept_logs());
    while let Some(page) = pages.next(store).await? {
        for (entry, ((hour, id), record)) in page.iter().filter_map(|entry| Some((entry, read(entry)?))) {
            let of_job = sums.by_job.entry(record.job.clone()).or_default();
            let job_over = sums.most.get(&record.job).copied().flatten().is_some_and(|most| *of_job > most);
            let all_over = most.is_some_and(|most| sums.all > most);
            let old = record.keep_for.is_some_and(|keep_for| hour + hours(keep_for) < now);
            if old || job_over || all_over {
                match remove_log(store, archive, entry, id).await {
                    Err(ArchiveError::Store(error @ StoreError::Unreadable(_))) => {
                        tracing::error!(execution = %id, %error, "cannot remove a log");
                        continue;
                    }
                    done => done?,
                }
                removed += 1;
                *of_job = of_job.saturating_sub(record.stored);
                sums.all = sums.all.saturating_sub(record.stored);
            }
        }
    }
    Ok(removed)
}

fn hours(duration: Duration) -> u64 {
    duration.as_secs().div_ceil(3600)
}

fn read(entry: &Entry) -> Option<((u64, ExecutionId), KeptLogRecord)> {
    let of = key::kept_log_of(&entry.key)?;
    match codec::decode(entry) {
        Ok(record) => Some((of, record)),
        Err(error) => {
            tracing::error!(key = %entry.key, %error, "cannot read what a log takes");
            None
        }
    }
}

/// Removes an execution's log. First each head says that it goes, so that nobody takes a part of it for the whole; the key that names it goes
/// last, so that a crash in between is made good.
async fn remove_log(store: &dyn Store, archive: &Archive, entry: &Entry, id: ExecutionId) -> Result<(), ArchiveError> {
    let attempts = match store.get(&key::execution(id)).await? {
        Some(entry) => codec::decode::<Execution>(&entry)?.attempts.iter().map(|attempt| attempt.number).collect(),
        None => Vec::new(),
    };
    for attempt in attempts {
        while let Some(entry) = store.get(&key::log_head(id, attempt)).await? {
            let head: LogHead = codec::decode(&entry)?;
            let head = LogHead { removed: true, stored: 0, objects: 0, archived: head.next_offset, ..head };
            let txn = Txn::new().unchanged(&entry).put(entry.key.clone(), codec::encode(&head));
            if matches!(store.commit(txn).await?, Commit::Done(_)) {
                break;
            }
        }
        remove_records(store, key::log_objects(id, attempt)).await?;
    }
    archive.remove(id).await?;
    store.commit(Txn::new().unchanged(entry).delete(entry.key.clone())).await?;
    Ok(())
}

async fn remove_records(store: &dyn Store, prefix: Key) -> Result<(), ArchiveError> {
    let range = Range::of(prefix, Txn::MAX_OPERATIONS);
    loop {
        let page = store.range(&range).await?;
        if page.entries.is_empty() {
            return Ok(());
        }
        store.commit(page.entries.iter().fold(Txn::new(), |txn, entry| txn.delete(entry.key.clone()))).await?;
    }
}
