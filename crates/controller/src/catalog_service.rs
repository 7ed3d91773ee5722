//! The catalogue's RPCs: what is asked is checked here, what is done is in [`crate::catalogs`].

mod receive;

use std::sync::Arc;
use std::time::Instant;

use bytes::Bytes;
use futures::{StreamExt as _, TryStreamExt as _};
use octavius_catalog::manifest::{Bucket, Entry as ManifestEntry, Inherited};
use octavius_core::limit::CATALOG_JOBS;
use octavius_core::schedule::Ticks;
use octavius_core::{CatalogName, JobDefinition, JobName, Principal};
use octavius_proto::v1;
use octavius_proto::v1::catalog_service_server::CatalogService;
use octavius_proto::{Fault, InvalidField, reason, to_timestamp};
use octavius_store::record::{FrozenRecord, RevisionRecord, SkippedTick};
use prost::Message as _;
use tokio_util::sync::CancellationToken;
use tonic::{Code, Request, Response, Status, Streaming};

use crate::catalogs::Catalogs;
use crate::clock::Clock;
use crate::definitions::Definitions;
use crate::pauses::Pauses;
use crate::streams::Responses;
use crate::{audit, auth, fault};

pub(crate) use receive::Turns;

/// Bytes of definitions in one message of an answer.
const MESSAGE_BYTES: usize = 1024 * 1024;

/// Largest message of an apply, in bytes. Its header names every job that changes, and for each what it inherits: ten thousand of them do not
/// fit what other calls take.
pub(crate) const MAX_APPLY_BYTES: usize = 16 * 1024 * 1024;

/// Buckets that are read ahead of the one that is being sent.
const BUCKETS_AHEAD: usize = 4;

/// Most entries of a list in one answer.
const MAX_LIST: u32 = 1000;

/// Ticks of a schedule that are told ahead.
const NEXT_RUNS: usize = 5;

/// Jobs whose definitions are read together for a list.
const LOOKED_AT: usize = 256;

#[derive(Debug)]
pub(crate) struct CatalogRpcs {
    pub(crate) catalogs: Arc<Catalogs>,
    pub(crate) pauses: Arc<Pauses>,
    pub(crate) room: Arc<crate::room::Room>,
    pub(crate) definitions: Arc<Definitions>,
    /// What schedules go by.
    pub(crate) clock: Clock,
    pub(crate) turns: Turns,
    pub(crate) controller_id: String,
    pub(crate) shutdown: CancellationToken,
}

fn catalog_name(text: &str) -> Result<CatalogName, Fault> {
    text.parse().map_err(|error| InvalidField::new("catalog", error).into())
}

/// The catalogue of this name, if it is the caller's to read as a whole and to change.
fn own_catalog(principal: &Principal, text: &str) -> Result<CatalogName, Fault> {
    let name = catalog_name(text)?;
    if principal.may_apply(&name) {
        return Ok(name);
    }
    let own: Vec<&str> = principal.catalogs.iter().map(CatalogName::as_str).collect();
    let message = format!("{} applies {} and no other catalogue, {name} neither", principal.user, own.join(", "));
    Err(fault::not_permitted(message).with("catalog", name))
}

impl CatalogRpcs {
    /// Makes sure that the caller may know of a job of a catalogue: of one that is there, whoever may see it; of one that is gone, or never
    /// was, whoever applies.
    async fn may_know(&self, principal: &Principal, catalog: &CatalogName, job: &JobName) -> Result<(), Fault> {
        if principal.may_apply(catalog) {
            return Ok(()); // they read the catalogue whole
        }
        let found = self.catalogs.job(principal, &*self.catalogs.view().await?, job.as_str()).await?;
        if found.catalog.name == *catalog { Ok(()) } else { Err(fault::no_job(job.as_str(), None)) }
    }

    /// The next ticks of a job's schedule.
    fn next_runs(&self, job: &JobDefinition) -> Vec<prost_types::Timestamp> {
        let Some(Ok(ticks)) = job.schedule.as_ref().map(Ticks::of) else { return Vec::new() };
        let next = std::iter::successors(ticks.next_after(self.clock.now()), |tick| ticks.next_after(*tick));
        next.take(NEXT_RUNS).map(to_timestamp).collect()
    }

    async fn list_jobs(&self, principal: &Principal, request: v1::ListJobsRequest) -> Result<v1::ListJobsResponse, Fault> {
        let view = self.catalogs.view().await?;
        let paused = self.pauses.now().await.map_err(fault::from_store)?;
        let limit = if request.limit == 0 { MAX_LIST } else { request.limit.min(MAX_LIST) } as usize;
        let search = request.search.to_lowercase();
        let (mut jobs, mut bytes) = (Vec::new(), 0);
        let mut after = request.after;
        loop {
            // A few hundred definitions at a time: they are read together, and few more than are answered.
            let found: Vec<_> = view.after(&after).take(LOOKED_AT).collect();
            let Some((_, last)) = found.last() else {
                return Ok(v1::ListJobsResponse { jobs, more: false });
            };
            after = last.name.to_string();
            let digests = found.iter().map(|(_, entry)| entry.digest).collect();
            let definitions = self.definitions.all(digests).await.map_err(fault::from_store)?;
            for ((catalog, entry), job) in found.into_iter().zip(definitions) {
                let holds = |text: &str| text.to_lowercase().contains(&search);
                let wanted = request.labels.iter().all(|(key, value)| job.labels.get(key) == Some(value))
                    && (search.is_empty() || holds(entry.name.as_str()) || holds(&job.description));
                if !wanted || !principal.may_use(&job.authorized_groups) {
                    continue;
                }
                if jobs.len() == limit || bytes > MESSAGE_BYTES {
                    return Ok(v1::ListJobsResponse { jobs, more: true });
                }
                let summary = v1::JobSummary {
                    name: entry.name.to_string(),
                    description: job.description.clone(),
                    catalog: catalog.name.to_string(),
                    executor: job.executor.clone().into_iter().collect(),
                    labels: job.labels.clone().into_iter().collect(),
                    definition: entry.digest.as_bytes().to_vec().into(),
                    file: entry.file.clone(),
                    paused: paused.of_job(&entry.name).as_ref().map(Into::into),
                };
                bytes += summary.encoded_len();
                jobs.push(summary);
            }
        }
    }
}

fn to_entry(entry: &ManifestEntry) -> v1::ManifestEntry {
    v1::ManifestEntry {
        name: entry.name.to_string(),
        definition: entry.digest.as_bytes().to_vec().into(),
        file: entry.file.clone(),
        line: entry.line,
        changed_in: entry.changed_in,
        inherited: entry.inherited.iter().map(to_inherited).collect(),
    }
}

/// A bucket's entries, in as many messages as a client can take.
fn bucket_responses(index: u8, bucket: &Bucket) -> Vec<v1::GetBucketsResponse> {
    let mut responses = Vec::new();
    let (mut entries, mut bytes) = (Vec::new(), 0);
    for entry in bucket.entries().iter().map(to_entry) {
        bytes += entry.encoded_len();
        entries.push(entry);
        if bytes >= MESSAGE_BYTES {
            responses.push(v1::GetBucketsResponse { bucket: index.into(), entries: std::mem::take(&mut entries) });
            bytes = 0;
        }
    }
    if !entries.is_empty() {
        responses.push(v1::GetBucketsResponse { bucket: index.into(), entries });
    }
    responses
}

fn to_inherited(inherited: &Inherited) -> v1::InheritedField {
    v1::InheritedField { field: inherited.field.clone(), file: inherited.file.clone(), line: inherited.line }
}

fn to_skipped(skipped: SkippedTick) -> v1::SkippedTick {
    v1::SkippedTick {
        tick: Some(to_timestamp(skipped.tick)),
        because: skipped.because,
        execution: skipped.execution.map(|id| id.to_string()).unwrap_or_default(),
    }
}

fn to_frozen(frozen: &FrozenRecord) -> v1::Frozen {
    v1::Frozen { by: frozen.by.clone(), at: Some(to_timestamp(frozen.at)) }
}

fn to_revision(catalog: &CatalogName, record: &RevisionRecord) -> v1::Revision {
    v1::Revision {
        catalog: catalog.to_string(),
        number: record.number,
        parent: record.parent,
        manifest: record.manifest.as_bytes().to_vec().into(),
        applied_by: record.applied_by.clone(),
        applied_at: Some(to_timestamp(record.applied_at)),
        provenance: Some(v1::Provenance {
            commit: record.commit.clone(),
            dirty: record.dirty,
            repository: record.repository.clone(),
            author: record.author.clone(),
        }),
        summary: Some(v1::RevisionSummary {
            added: record.added,
            changed: record.changed,
            removed: record.removed,
            unchanged: record.unchanged,
        }),
        rollback_to: record.rollback_to,
        plan_id: record.plan_id.clone(),
    }
}

#[tonic::async_trait]
impl CatalogService for CatalogRpcs {
    type GetBucketsStream = Responses<v1::GetBucketsResponse>;
    type GetDefinitionsStream = Responses<v1::GetDefinitionsResponse>;

    async fn get_head(&self, request: Request<v1::GetHeadRequest>) -> Result<Response<v1::GetHeadResponse>, Status> {
        let principal = auth::principal(&request)?;
        let name = own_catalog(&principal, &request.into_inner().catalog)?;
        let view = self.catalogs.view().await?;
        let mut response = v1::GetHeadResponse { controller_id: self.controller_id.clone(), ..Default::default() };
        if let Some(catalog) = view.catalogs.get(&name) {
            response.revision = Some(to_revision(&name, &catalog.record));
            response.frozen = catalog.head.frozen.as_ref().map(to_frozen);
            let digests = (0..=u8::MAX).flat_map(|index| *catalog.root.bucket(index).content.as_bytes());
            response.bucket_digests = digests.collect::<Vec<u8>>().into();
        }
        Ok(Response::new(response))
    }

    async fn get_buckets(&self, request: Request<v1::GetBucketsRequest>) -> Result<Response<Self::GetBucketsStream>, Status> {
        let principal = auth::principal(&request)?;
        let request = request.into_inner();
        let name = own_catalog(&principal, &request.catalog)?;
        let wanted = request.buckets.iter().map(|index| u8::try_from(*index)).collect::<Result<Vec<_>, _>>();
        let wanted = wanted.map_err(|_| Fault::from(InvalidField::new("buckets", "buckets are numbered 0 to 255")))?;
        let record = self.catalogs.revision(&name, request.revision).await.map_err(fault::from_store)?;
        let record = record.ok_or_else(|| fault::no_revision(&name, request.revision))?;
        let root = self.catalogs.root_of(&record).await.map_err(fault::from_store)?;
        let catalogs = Arc::clone(&self.catalogs);
        let blobs: Vec<_> = root.blobs().filter(|(index, _)| wanted.is_empty() || wanted.contains(index)).collect();
        // A few buckets at a time: however many were asked for, the others are not in memory.
        let buckets = futures::stream::iter(blobs).map(move |(index, digest)| {
            let catalogs = Arc::clone(&catalogs);
            async move {
                let bucket = catalogs.bucket(&digest).await.map_err(fault::from_store)?;
                Ok::<_, Status>(futures::stream::iter(bucket_responses(index, &bucket).into_iter().map(Ok)))
            }
        });
        Ok(Response::new(Box::pin(buckets.buffered(BUCKETS_AHEAD).try_flatten())))
    }

    async fn get_definitions(
        &self,
        request: Request<v1::GetDefinitionsRequest>,
    ) -> Result<Response<Self::GetDefinitionsStream>, Status> {
        let digests = request.into_inner().digests;
        if digests.len() > CATALOG_JOBS {
            return Err(Fault::from(InvalidField::new("digests", format!("at most {CATALOG_JOBS}"))).into());
        }
        let digests = digests.iter().map(|digest| octavius_proto::digest("digests", digest)).collect::<Result<Vec<_>, _>>();
        let definitions = Arc::clone(&self.definitions);
        // One message at a time: however many were asked for, only one is in memory.
        let stream = futures::stream::try_unfold(digests.map_err(Fault::from)?.into_iter(), move |mut rest| {
            let definitions = Arc::clone(&definitions);
            async move {
                let (mut response, mut bytes) = (v1::GetDefinitionsResponse::default(), 0);
                while bytes < MESSAGE_BYTES {
                    let Some(digest) = rest.next() else { break };
                    let definition = definitions.find(digest).await.map_err(fault::from_store)?;
                    let unknown = || Fault::new(Code::NotFound, reason::NOT_FOUND, format!("no definition {digest}"));
                    let json = Bytes::from(definition.ok_or_else(unknown)?.to_canonical_json());
                    bytes += json.len();
                    response.definitions.push(v1::Definition { json });
                }
                Ok((!response.definitions.is_empty()).then_some((response, rest)))
            }
        });
        Ok(Response::new(Box::pin(stream)))
    }

    async fn apply(&self, request: Request<Streaming<v1::ApplyRequest>>) -> Result<Response<v1::ApplyResponse>, Status> {
        let act = auth::act(&request)?;
        self.room.for_work()?;
        let _turn = self.turns.turn(request.metadata(), &self.shutdown).await?; // until the answer is made: so long it holds memory
        let wanted = self.receive(request.into_inner(), act).await?;
        let began = Instant::now();
        let name = wanted.catalog.clone();
        let record = self.catalogs.apply(&wanted).await?;
        tracing::info!(catalog = %name, revision = record.number, by = record.applied_by, took = ?began.elapsed(), "applied");
        Ok(Response::new(v1::ApplyResponse { revision: Some(to_revision(&name, &record)) }))
    }

    async fn set_frozen(&self, request: Request<v1::SetFrozenRequest>) -> Result<Response<v1::SetFrozenResponse>, Status> {
        let (act, request) = audit::begin(request)?;
        let name = own_catalog(act.principal()?, &request.catalog)?;
        let frozen = self.catalogs.set_frozen(&name, request.frozen, &act).await?;
        tracing::info!(catalog = %name, by = act.user(), frozen = request.frozen, "frozen or thawed");
        Ok(Response::new(v1::SetFrozenResponse { frozen: frozen.as_ref().map(to_frozen) }))
    }

    async fn list_revisions(
        &self,
        request: Request<v1::ListRevisionsRequest>,
    ) -> Result<Response<v1::ListRevisionsResponse>, Status> {
        let principal = auth::principal(&request)?;
        let request = request.into_inner();
        let name = catalog_name(&request.catalog)?;
        let limit = if request.limit == 0 { 100 } else { request.limit.min(MAX_LIST) } as usize;
        let records = if request.job.is_empty() {
            self.catalogs.revisions(&name, request.before, limit).await.map_err(fault::from_store)?
        } else {
            let job = octavius_proto::job_name("job", &request.job).map_err(Fault::from)?;
            self.may_know(&principal, &name, &job).await?;
            self.catalogs.revisions_of(&name, &job, request.before, limit).await?
        };
        let revisions = records.iter().map(|record| to_revision(&name, record)).collect();
        Ok(Response::new(v1::ListRevisionsResponse { revisions }))
    }

    async fn list_jobs(&self, request: Request<v1::ListJobsRequest>) -> Result<Response<v1::ListJobsResponse>, Status> {
        let principal = auth::principal(&request)?;
        Ok(Response::new(self.list_jobs(&principal, request.into_inner()).await?))
    }

    async fn get_job(&self, request: Request<v1::GetJobRequest>) -> Result<Response<v1::GetJobResponse>, Status> {
        let principal = auth::principal(&request)?;
        let view = self.catalogs.view().await?;
        let job = self.catalogs.job(&principal, &view, &request.into_inner().name).await?;
        let changed_in = self.catalogs.revision(&job.catalog.name, job.entry.changed_in).await.map_err(fault::from_store)?;
        let paused = self.pauses.now().await.map_err(fault::from_store)?;
        Ok(Response::new(v1::GetJobResponse {
            definition: Some(v1::Definition { json: job.definition.to_canonical_json().into() }),
            entry: Some(to_entry(&job.entry)),
            changed_in: changed_in.map(|record| to_revision(&job.catalog.name, &record)),
            head: job.catalog.head.revision,
            paused: paused.of_job(&job.entry.name).as_ref().map(Into::into),
            next_runs: self.next_runs(&job.definition),
            last_skipped: match job.definition.schedule {
                Some(_) => self.catalogs.last_skipped(&job).await.map_err(fault::from_store)?.map(to_skipped),
                None => None,
            },
        }))
    }
}
