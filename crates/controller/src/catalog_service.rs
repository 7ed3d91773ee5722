//! The catalogue's RPCs: what is asked is checked here, what is done is in [`crate::catalogs`].

use std::collections::{BTreeSet, HashMap};
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use octavius_catalog::manifest::{Entry as ManifestEntry, Inherited};
use octavius_core::check::{self, Severity};
use octavius_core::limit::{CATALOG_BYTES, CATALOG_JOBS, JOB_FILE_BYTES};
use octavius_core::{CatalogName, Digest, JobDefinition, Principal};
use octavius_proto::v1::catalog_service_server::CatalogService;
use octavius_proto::v1::{self, apply_request::Part};
use octavius_proto::{Fault, InvalidField, reason, to_timestamp};
use octavius_store::record::{FrozenRecord, RevisionRecord};
use octavius_store::{Range, Store, codec, key};
use prost::Message as _;
use tokio_util::sync::CancellationToken;
use tonic::{Code, Request, Response, Status, Streaming};

use crate::catalogs::{Catalogs, Wanted};
use crate::definitions::Definitions;
use crate::streams::Responses;
use crate::{auth, fault};

/// Bytes of definitions in one message of an answer.
const MESSAGE_BYTES: usize = 1024 * 1024;

/// For how long the next part of an apply is waited for.
const PART_WITHIN: Duration = Duration::from_secs(60);

/// Most entries of a list in one answer.
const MAX_LIST: u32 = 1000;

/// Longest text of provenance that is kept, in characters.
const PROVENANCE_CHARS: usize = 1000;

#[derive(Debug)]
pub(crate) struct CatalogRpcs {
    pub(crate) store: Arc<dyn Store>,
    pub(crate) catalogs: Arc<Catalogs>,
    pub(crate) room: Arc<crate::room::Room>,
    pub(crate) definitions: Arc<Definitions>,
    pub(crate) controller_id: String,
    pub(crate) shutdown: CancellationToken,
}

fn catalog_name(text: &str) -> Result<CatalogName, Fault> {
    text.parse().map_err(|error| InvalidField::new("catalog", error).into())
}

impl CatalogRpcs {
    /// The next part of an apply. A client that falls silent gives up its place.
    async fn next(&self, parts: &mut Streaming<v1::ApplyRequest>) -> Result<Option<v1::ApplyRequest>, Fault> {
        let next = tokio::select! {
            next = tokio::time::timeout(PART_WITHIN, parts.message()) => next,
            () = self.shutdown.cancelled() => return Err(fault::stopping()),
        };
        let next = next.map_err(|_| fault::invalid("the apply fell silent; nothing was changed"))?;
        next.map_err(|status| fault::broken("apply", &status))
    }

    async fn receive(&self, mut parts: Streaming<v1::ApplyRequest>, principal: &Principal) -> Result<Wanted, Fault> {
        let first = self.next(&mut parts).await?.and_then(|message| message.part);
        let Some(Part::Header(header)) = first else {
            return Err(fault::invalid("an apply begins with its header"));
        };
        if !header.controller_id.is_empty() && header.controller_id != self.controller_id {
            let message = format!("the plan is for controller {}, this is {}", header.controller_id, self.controller_id);
            return Err(Fault::new(Code::FailedPrecondition, reason::OTHER_CONTROLLER, message));
        }
        let mut definitions = HashMap::new();
        let mut jobs = HashMap::new();
        let mut bytes = 0;
        while let Some(message) = self.next(&mut parts).await? {
            let Some(Part::Definitions(more)) = message.part else {
                return Err(fault::invalid("after the header only definitions follow"));
            };
            for definition in more.definitions {
                bytes += definition.json.len();
                check_size(&definition, bytes, definitions.len() + 1)?;
                let job = octavius_proto::definition("definition", Some(&definition))?;
                let canonical = Bytes::from(job.to_canonical_json());
                let digest = Digest::of(&canonical);
                definitions.insert(digest, canonical);
                jobs.insert(digest, job);
            }
        }
        check_definitions(&header.put, &jobs).await?;
        let put = header.put.into_iter().map(entry).collect::<Result<Vec<_>, _>>()?;
        let remove = header.remove.iter().map(|name| octavius_proto::job_name("remove", name)).collect::<Result<Vec<_>, _>>()?;
        let mut seen = BTreeSet::new();
        for name in put.iter().map(|entry| &entry.name).chain(&remove) {
            if !seen.insert(name.folded()) {
                return Err(fault::invalid(format!("job {name} stands in the apply twice")));
            }
        }
        if put.len() > CATALOG_JOBS {
            return Err(Fault::new(Code::ResourceExhausted, reason::LIMIT, format!("more than {CATALOG_JOBS} jobs")));
        }
        Ok(Wanted {
            catalog: catalog_name(&header.catalog)?,
            parent: header.parent,
            put,
            remove,
            definitions,
            provenance: provenance(header.provenance.unwrap_or_default()),
            by: principal.user.clone(),
            plan_id: header.plan_id,
            rollback_to: header.rollback_to,
            freeze: header.freeze,
        })
    }

    async fn list_jobs(&self, principal: &Principal, request: v1::ListJobsRequest) -> Result<v1::ListJobsResponse, Fault> {
        let view = self.catalogs.view().await?;
        let limit = if request.limit == 0 { MAX_LIST } else { request.limit.min(MAX_LIST) } as usize;
        let after = request.after.to_ascii_lowercase();
        let search = request.search.to_lowercase();
        let (mut jobs, mut bytes) = (Vec::new(), 0);
        let later = view.owners.range::<str, _>((std::ops::Bound::Excluded(after.as_str()), std::ops::Bound::Unbounded));
        for (folded, owned) in later {
            let Some(entry) = owned.entry() else { continue };
            let job = self.definitions.get(entry.digest).await.map_err(fault::from_store)?;
            let wanted = request.labels.iter().all(|(key, value)| job.labels.get(key) == Some(value))
                && (search.is_empty() || folded.contains(&search) || job.description.to_lowercase().contains(&search));
            if !wanted || !principal.may_use(&job.authorized_groups) {
                continue;
            }
            if jobs.len() == limit || bytes > MESSAGE_BYTES {
                return Ok(v1::ListJobsResponse { jobs, more: true });
            }
            let summary = v1::JobSummary {
                name: entry.name.to_string(),
                description: job.description.clone(),
                catalog: owned.catalog.name.to_string(),
                executor: job.executor.clone().into_iter().collect(),
                labels: job.labels.clone().into_iter().collect(),
                definition: entry.digest.as_bytes().to_vec().into(),
                file: entry.file.clone(),
            };
            bytes += summary.encoded_len();
            jobs.push(summary);
        }
        Ok(v1::ListJobsResponse { jobs, more: false })
    }
}

fn check_size(definition: &v1::Definition, bytes: usize, count: usize) -> Result<(), Fault> {
    let limit = |message: String| Err(Fault::new(Code::ResourceExhausted, reason::LIMIT, message));
    if definition.json.len() > JOB_FILE_BYTES {
        return limit(format!("a definition has {} bytes, at most {JOB_FILE_BYTES} are taken", definition.json.len()));
    }
    if bytes > CATALOG_BYTES || count > CATALOG_JOBS {
        return limit(format!("a catalogue has at most {CATALOG_JOBS} jobs and {CATALOG_BYTES} bytes"));
    }
    Ok(())
}

/// Checks what a client may have skipped: each definition by the rules of files, and that it is the one its entry names.
async fn check_definitions(put: &[v1::ManifestEntry], jobs: &HashMap<Digest, JobDefinition>) -> Result<(), Fault> {
    let mut fault = Fault::new(Code::InvalidArgument, reason::INVALID_CATALOG, "the catalogue has findings; nothing was changed");
    for wire in put {
        let digest = octavius_proto::digest("definition", &wire.definition)?;
        let Some(job) = jobs.get(&digest) else { continue };
        tokio::task::coop::consume_budget().await; // a large catalogue takes a while; others take their turns in between
        if job.name.as_str() != wire.name {
            fault = fault
                .violating(&wire.file, format!("the definition is that of {}, not of {}", job.name, wire.name.escape_debug()));
        }
        for finding in check::check(job).into_iter().filter(|finding| finding.severity == Severity::Error) {
            let place = format!("{}{}", wire.file, finding.pointer);
            fault = fault.violating(place, format!("[{}] {}", finding.code, finding.message));
        }
    }
    if fault.violations.is_empty() { Ok(()) } else { Err(fault) }
}

fn entry(wire: v1::ManifestEntry) -> Result<ManifestEntry, Fault> {
    if wire.file.len() > 4096 {
        return Err(InvalidField::new("file", "a path of more than 4096 bytes").into());
    }
    Ok(ManifestEntry {
        name: octavius_proto::job_name("name", &wire.name)?,
        digest: octavius_proto::digest("definition", &wire.definition)?,
        file: wire.file,
        line: wire.line,
        changed_in: 0,
        inherited: wire
            .inherited
            .into_iter()
            .map(|v1::InheritedField { field, file, line }| Inherited { field, file, line })
            .collect(),
    })
}

fn provenance(mut provenance: v1::Provenance) -> v1::Provenance {
    for text in [&mut provenance.commit, &mut provenance.repository, &mut provenance.author] {
        *text = text.chars().filter(|c| !c.is_control()).take(PROVENANCE_CHARS).collect();
    }
    provenance
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

fn to_inherited(inherited: &Inherited) -> v1::InheritedField {
    v1::InheritedField { field: inherited.field.clone(), file: inherited.file.clone(), line: inherited.line }
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
        let name = catalog_name(&request.into_inner().catalog)?;
        let view = self.catalogs.view().await?;
        let mut response = v1::GetHeadResponse { controller_id: self.controller_id.clone(), ..Default::default() };
        if let Some(catalog) = view.catalogs.get(&name) {
            let record = self.catalogs.revision(&name, catalog.head.revision).await.map_err(fault::from_store)?;
            response.revision = record.map(|record| to_revision(&name, &record));
            let digests = (0..=u8::MAX).flat_map(|index| *catalog.root.bucket(index).content.as_bytes());
            response.bucket_digests = digests.collect::<Vec<u8>>().into();
        }
        Ok(Response::new(response))
    }

    async fn get_buckets(&self, request: Request<v1::GetBucketsRequest>) -> Result<Response<Self::GetBucketsStream>, Status> {
        let request = request.into_inner();
        let name = catalog_name(&request.catalog)?;
        let wanted = request.buckets.iter().map(|index| u8::try_from(*index)).collect::<Result<Vec<_>, _>>();
        let wanted = wanted.map_err(|_| Fault::from(InvalidField::new("buckets", "buckets are numbered 0 to 255")))?;
        let record = self.catalogs.revision(&name, request.revision).await.map_err(fault::from_store)?;
        let record = record.ok_or_else(|| {
            let message = format!("catalogue {name} has no revision {}", request.revision);
            Fault::new(Code::NotFound, reason::NOT_FOUND, message)
        })?;
        let buckets = self.catalogs.buckets(&record, &wanted).await.map_err(fault::from_store)?;
        let responses = buckets.into_iter().map(|(index, bucket)| {
            Ok(v1::GetBucketsResponse { bucket: index.into(), entries: bucket.entries().iter().map(to_entry).collect() })
        });
        Ok(Response::new(Box::pin(futures::stream::iter(responses.collect::<Vec<_>>()))))
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
        let principal = auth::principal(&request)?;
        self.room.for_work()?;
        let wanted = self.receive(request.into_inner(), &principal).await?;
        let name = wanted.catalog.clone();
        let record = self.catalogs.apply(&wanted).await?;
        tracing::info!(catalog = %name, revision = record.number, by = record.applied_by, "applied");
        Ok(Response::new(v1::ApplyResponse { revision: Some(to_revision(&name, &record)) }))
    }

    async fn set_frozen(&self, request: Request<v1::SetFrozenRequest>) -> Result<Response<v1::SetFrozenResponse>, Status> {
        let principal = auth::principal(&request)?;
        let request = request.into_inner();
        let name = catalog_name(&request.catalog)?;
        let frozen = self.catalogs.set_frozen(&name, request.frozen.then_some(&principal.user)).await?;
        tracing::info!(catalog = %name, by = principal.user, frozen = request.frozen, "frozen or thawed");
        Ok(Response::new(v1::SetFrozenResponse { frozen: frozen.as_ref().map(to_frozen) }))
    }

    async fn list_revisions(
        &self,
        request: Request<v1::ListRevisionsRequest>,
    ) -> Result<Response<v1::ListRevisionsResponse>, Status> {
        let request = request.into_inner();
        let name = catalog_name(&request.catalog)?;
        let limit = if request.limit == 0 { 100 } else { request.limit.min(MAX_LIST) } as usize;
        let after = (request.before > 0).then(|| key::catalog_revision(&name, request.before));
        let range = Range { after, ..Range::of(key::catalog_revisions(&name), limit) };
        let page = self.store.range(&range).await.map_err(fault::from_store)?;
        let records = page.entries.iter().map(codec::decode).collect::<Result<Vec<RevisionRecord>, _>>();
        let records = records.map_err(fault::from_store)?;
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
        Ok(Response::new(v1::GetJobResponse {
            definition: Some(v1::Definition { json: job.definition.to_canonical_json().into() }),
            entry: Some(to_entry(&job.entry)),
            changed_in: changed_in.map(|record| to_revision(&job.catalog.name, &record)),
            head: job.catalog.head.revision,
        }))
    }
}
