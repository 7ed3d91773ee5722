//! Where the definition of a job that runs comes from: executors write it on what they start. Nobody waits long for it.

use std::collections::HashMap;
use std::pin::pin;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use futures::future::{Either, select};
use octavius_catalog::manifest::Entry;
use octavius_core::{CatalogName, Execution};
use octavius_proto::v1::JobOrigin;
use octavius_store::StoreError;
use octavius_store::record::RevisionRecord;

use crate::catalogs::Catalogs;

/// For how long an execution that is claimed waits for it: where the store takes longer, it goes without.
const WITHIN: Duration = Duration::from_millis(50);

/// Origins that are remembered, of jobs as older revisions held them, and that there is none: some hundred bytes each.
const KEPT: usize = 1024;

/// A revision's job: its catalogue, the revision's number, the job's folded name.
type Pinned = (CatalogName, u64, String);

/// Where jobs come from.
#[derive(Debug)]
pub(crate) struct Origins {
    catalogs: Arc<Catalogs>,
    kept: Mutex<HashMap<Pinned, Option<JobOrigin>>>,
}

impl Origins {
    pub(crate) fn new(catalogs: Arc<Catalogs>) -> Self {
        Self { catalogs, kept: Mutex::default() }
    }

    /// Makes the claim of an execution, and says beside it where its definition comes from; none where that is not known soon after the claim.
    pub(crate) async fn beside<T, E>(
        &self,
        execution: &Execution,
        claim: impl Future<Output = Result<T, E>>,
    ) -> Result<(T, Option<JobOrigin>), E> {
        beside(claim, self.of(execution)).await
    }

    /// Where the execution's definition comes from; none where that cannot be read, or its revision is not kept any more. Where the revision
    /// is still head, as this controller saw it last, the store is not asked.
    async fn of(&self, execution: &Execution) -> Option<JobOrigin> {
        let view = self.catalogs.seen();
        let head = view.catalogs.get(&execution.catalog).filter(|catalog| catalog.record.number == execution.revision);
        if let Some(catalog) = head {
            return Some(origin(&execution.catalog, &catalog.record, catalog.entry(&execution.job)?));
        }
        let pinned = (execution.catalog.clone(), execution.revision, execution.job.folded());
        if let Some(known) = self.kept.lock().unwrap_or_else(PoisonError::into_inner).get(&pinned) {
            return known.clone();
        }
        match self.read(execution).await {
            Ok(found) => {
                let mut kept = self.kept.lock().unwrap_or_else(PoisonError::into_inner);
                if kept.len() >= KEPT {
                    kept.clear(); // what is still needed is soon there again
                }
                kept.insert(pinned, found.clone());
                found
            }
            Err(error) => {
                tracing::debug!(execution = %execution.id, %error, "handed out without where it comes from");
                None
            }
        }
    }

    async fn read(&self, execution: &Execution) -> Result<Option<JobOrigin>, StoreError> {
        let Some(record) = self.catalogs.revision(&execution.catalog, execution.revision).await? else { return Ok(None) };
        let entry = self.catalogs.entry_in(&record, &execution.job).await?;
        Ok(entry.map(|entry| origin(&execution.catalog, &record, &entry)))
    }
}

/// What `claim` comes to, and what `origin` comes to until then or soon after.
async fn beside<T, E, O>(
    claim: impl Future<Output = Result<T, E>>,
    origin: impl Future<Output = Option<O>>,
) -> Result<(T, Option<O>), E> {
    let (claim, origin) = (pin!(claim), pin!(origin));
    match select(claim, origin).await {
        Either::Left((claimed, origin)) => {
            let claimed = claimed?;
            Ok((claimed, tokio::time::timeout(WITHIN, origin).await.ok().flatten()))
        }
        Either::Right((origin, claim)) => Ok((claim.await?, origin)),
    }
}

fn origin(catalog: &CatalogName, record: &RevisionRecord, entry: &Entry) -> JobOrigin {
    JobOrigin {
        catalog: catalog.to_string(),
        revision: record.number,
        commit: record.commit.clone(),
        repository: record.repository.clone(),
        file: entry.file.clone(),
        line: entry.line,
    }
}

#[cfg(test)]
mod tests {
    use std::future::{pending, ready};
    use std::time::Instant;

    use octavius_core::argument::Arguments;
    use octavius_core::execution::Submission;
    use octavius_core::{Digest, ExecutionId, JobDefinition, Timestamp, Timing};
    use octavius_store::{EmbeddedOptions, Txn, codec, key, open_embedded};

    use super::*;
    use crate::definitions::Definitions;

    #[tokio::test]
    async fn a_claim_waits_hardly_for_where_its_job_comes_from_and_fails_at_once() {
        let began = Instant::now();
        assert_eq!(beside(ready(Ok::<_, ()>(1)), pending::<Option<u8>>()).await, Ok((1, None)));
        assert!(began.elapsed() >= WITHIN && began.elapsed() < 10 * WITHIN, "{:?}", began.elapsed());
        assert_eq!(beside(ready(Err::<u8, _>("no")), pending::<Option<u8>>()).await, Err("no"));
        let later = async {
            tokio::task::yield_now().await;
            Ok::<_, ()>(1)
        };
        assert_eq!(beside(later, ready(Some(2))).await, Ok((1, Some(2))));
        assert_eq!(beside(ready(Ok::<_, ()>(1)), ready(Some(2))).await, Ok((1, Some(2))));
    }

    #[tokio::test]
    async fn that_there_is_none_is_remembered_and_a_failure_is_not() {
        let dir = tempfile::tempdir().unwrap();
        let store = open_embedded(dir.path(), EmbeddedOptions::default()).unwrap();
        let definitions = Arc::new(Definitions::new(Arc::clone(&store)));
        let origins = Origins::new(Arc::new(Catalogs::new(Arc::clone(&store), definitions)));
        let catalog: CatalogName = "c".parse().unwrap();
        let job: JobDefinition = serde_json::from_str(r#"{"name":"j","command":["true"]}"#).unwrap();
        let pinned_to = |revision| {
            let submission = Submission {
                id: ExecutionId::generate(),
                arguments: Arguments::new(),
                user: "ann".into(),
                at: Timestamp::UNIX_EPOCH,
                timeout: None,
                slot: None,
            };
            Execution::submit(&job, catalog.clone(), revision, submission, &Timing::default())
        };
        let kept = || origins.kept.lock().unwrap().clone();
        assert_eq!(origins.of(&pinned_to(7)).await, None);
        assert_eq!(kept().into_iter().collect::<Vec<_>>(), [((catalog.clone(), 7, "j".to_owned()), None)]);
        // A revision whose manifest cannot be read may be read another time.
        let record = RevisionRecord {
            number: 8,
            parent: 7,
            manifest: Digest::of(b"not there"),
            applied_by: "ann".into(),
            applied_at: Timestamp::UNIX_EPOCH,
            commit: String::new(),
            dirty: false,
            repository: String::new(),
            author: String::new(),
            added: 0,
            changed: 0,
            removed: 0,
            unchanged: 0,
            rollback_to: 0,
            plan_id: String::new(),
        };
        store.commit(Txn::new().put(key::catalog_revision(&catalog, 8), codec::encode(&record))).await.unwrap();
        assert_eq!(origins.of(&pinned_to(8)).await, None);
        assert_eq!(kept().len(), 1);
    }
}
