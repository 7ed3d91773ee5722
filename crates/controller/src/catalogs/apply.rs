//! How a catalogue's head moves: a new revision, all or nothing; frozen and thawed.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::sync::Arc;

use bytes::Bytes;
use octavius_catalog::manifest::{Bucket, Changed, Entry as ManifestEntry, Root};
use octavius_core::limit::CATALOG_JOBS;
use octavius_core::{CatalogName, Digest, JobName, Timestamp};
use octavius_proto::{Fault, reason, v1};
use octavius_store::record::{FrozenRecord, HeadRecord, RevisionRecord};
use octavius_store::{Commit, Entry, StoreError, Txn, blob, codec, key};
use tonic::Code;

use super::{Catalog, Catalogs, View};
use crate::audit::Act;
use crate::fault;

/// Tries of one apply. It loses to another of its own catalogue for good; to those of others only while they take names.
const MAX_TRIES: usize = 100;

/// What an apply is to change.
#[derive(Debug)]
pub(crate) struct Wanted {
    pub(crate) catalog: CatalogName,
    pub(crate) parent: u64,
    pub(crate) put: Vec<ManifestEntry>,
    pub(crate) remove: Vec<JobName>,
    /// New definitions' canonical JSON by digest.
    pub(crate) definitions: HashMap<Digest, Bytes>,
    pub(crate) provenance: v1::Provenance,
    /// Who asked for it, as the audit trail tells it.
    pub(crate) act: Act,
    /// The plan that this carries out; empty for none.
    pub(crate) plan_id: String,
    /// The revision that this brings back; 0 for none.
    pub(crate) rollback_to: u64,
    /// Whether the catalogue is frozen with it.
    pub(crate) freeze: bool,
}

/// What the tries of one apply have in common.
#[derive(Debug)]
struct Tries {
    /// The same in every try, so that a revision that is found there tells whether one of them made it.
    applied_at: Timestamp,
    /// What was written, or was not: its answer was lost, and it may land at any time.
    lost: Option<RevisionRecord>,
    /// The blobs that are there already, written by a try before.
    written: HashSet<Digest>,
}

/// The manifest that an apply leads to, and what is new in it.
struct Next {
    changes: Changed,
    /// The definitions to store.
    definitions: Vec<(Digest, Bytes)>,
    added: u32,
    changed: u32,
    removed: u32,
}

impl Catalogs {
    /// Freezes a catalogue, or thaws it. One that is frozen already stays as it is.
    pub(crate) async fn set_frozen(&self, catalog: &CatalogName, freeze: bool, act: &Act) -> Result<Option<FrozenRecord>, Fault> {
        let head_key = key::catalog_head(catalog);
        for _ in 0..MAX_TRIES {
            let Some(entry) = self.store.get(&head_key).await.map_err(fault::from_store)? else {
                return Err(fault::no_catalog(catalog));
            };
            let mut head: HeadRecord = codec::decode(&entry).map_err(fault::from_store)?;
            if head.frozen.is_some() == freeze {
                return Ok(head.frozen);
            }
            head.frozen = freeze.then(|| FrozenRecord { by: act.user().to_owned(), at: Timestamp::now() });
            let value = codec::encode(&head);
            act.note("revision", head.revision);
            let txn = Txn::new().unchanged(&entry).put(head_key.clone(), value.clone());
            match self.store.commit(act.done(txn)).await {
                Ok(Commit::Done(modified)) => {
                    self.heads().note(Entry { key: head_key, value, created: entry.created, modified });
                    return Ok(head.frozen);
                }
                Ok(Commit::Conflict(_)) | Err(StoreError::Unknown(_)) => {}
                Err(error) => return Err(fault::from_store(error)),
            }
        }
        Err(changing())
    }

    /// Makes a new revision, all or nothing. One that would change nothing, not even where a job stands, is not made: then it is head's.
    pub(crate) async fn apply(self: &Arc<Self>, wanted: &Wanted) -> Result<RevisionRecord, Fault> {
        let mut tries = Tries { applied_at: Timestamp::now(), lost: None, written: HashSet::new() };
        for _ in 0..MAX_TRIES {
            if let Some(record) = self.try_apply(wanted, &mut tries).await? {
                return Ok(record);
            }
        }
        Err(changing())
    }

    /// One try; none where something has changed meanwhile and it is to be looked at again.
    async fn try_apply(self: &Arc<Self>, wanted: &Wanted, tries: &mut Tries) -> Result<Option<RevisionRecord>, Fault> {
        let names_entry = self.store.get(&key::names()).await.map_err(fault::from_store)?;
        let view = self.view().await?;
        let base = view.catalogs.get(&wanted.catalog).map(|base| &**base);
        let head = base.map_or(0, |base| base.head.revision);
        if let Some(record) = tries.lost.take_if(|_| head != wanted.parent)
            && self.revision(&wanted.catalog, record.number).await.map_err(fault::from_store)?.as_ref() == Some(&record)
        {
            return Ok(Some(record));
        }
        let known = base.and_then(|base| base.head.frozen.clone());
        if let Some(frozen) = known.as_ref().filter(|_| wanted.rollback_to == 0) {
            let message = format!("catalogue {} is frozen since {}, by {}", wanted.catalog, frozen.at, frozen.by);
            return Err(Fault::new(Code::FailedPrecondition, reason::FROZEN, message).with("by", &frozen.by));
        }
        if head != wanted.parent {
            return Err(self.head_moved(wanted, head).await?);
        }
        let frozen =
            known.or_else(|| wanted.freeze.then(|| FrozenRecord { by: wanted.act.user().to_owned(), at: tries.applied_at }));
        let next = self.next(wanted, &view, base).await?;
        let manifest = next.changes.root.digest();
        if let Some(base) = base.filter(|base| base.record.manifest == manifest)
            && wanted.rollback_to == 0
            && frozen == base.head.frozen
        {
            return Ok(Some(RevisionRecord::clone(&base.record)));
        }
        let record = RevisionRecord {
            number: head + 1,
            parent: head,
            manifest,
            applied_by: wanted.act.user().to_owned(),
            applied_at: tries.applied_at,
            commit: wanted.provenance.commit.clone(),
            dirty: wanted.provenance.dirty,
            repository: wanted.provenance.repository.clone(),
            author: wanted.provenance.author.clone(),
            added: next.added,
            changed: next.changed,
            removed: next.removed,
            unchanged: next.changes.root.jobs().saturating_sub(next.added + next.changed),
            rollback_to: wanted.rollback_to,
            plan_id: wanted.plan_id.clone(),
        };
        let tree = next.changes.blobs().map(|(digest, bytes)| (digest, Bytes::from(bytes)));
        let mut blobs: Vec<_> = next.definitions.into_iter().chain(tree).collect();
        blobs.retain(|(digest, _)| !tries.written.contains(digest));
        let digests: Vec<_> = blobs.iter().map(|(digest, _)| *digest).collect();
        blob::put_all(&*self.store, blobs).await.map_err(fault::from_store)?;
        tries.written.extend(digests);

        let head_key = key::catalog_head(&wanted.catalog);
        let head_value = codec::encode(&HeadRecord { revision: record.number, manifest: record.manifest, frozen });
        let revision_key = key::catalog_revision(&wanted.catalog, record.number);
        let mut txn = Txn::new()
            .when(head_key.clone(), base.map_or(0, |base| base.head_modified))
            .put(head_key.clone(), head_value.clone())
            .put(revision_key, codec::encode(&record));
        if record.added > 0 {
            txn = txn
                .when(key::names(), names_entry.map_or(0, |entry| entry.modified))
                .put(key::names(), codec::encode(&wanted.catalog));
        }
        octavius_failpoint::reach(&octavius_failpoint::APPLY_HEAD);
        note(wanted, &record);
        match self.store.commit(wanted.act.done(txn)).await {
            Ok(Commit::Done(modified)) => {
                self.heads().note(Entry { key: head_key, value: head_value, created: modified, modified });
                Ok(Some(record))
            }
            // Head has moved, was frozen or thawed, or another catalogue has taken names: the next look tells which, and whether they are
            // these.
            Ok(Commit::Conflict(_)) => Ok(None),
            Err(StoreError::Unknown(_)) => {
                let there = self.revision(&wanted.catalog, record.number).await.map_err(fault::from_store)?;
                if there.as_ref() == Some(&record) {
                    return Ok(there);
                }
                tries.lost = Some(record);
                Ok(None)
            }
            Err(error) => Err(fault::from_store(error)),
        }
    }

    /// What someone is told whose plan was made against another revision than head.
    async fn head_moved(&self, wanted: &Wanted, head: u64) -> Result<Fault, Fault> {
        let message = format!("catalogue {} is at revision {head}, the plan was made against {}", wanted.catalog, wanted.parent);
        if !wanted.plan_id.is_empty() && wanted.parent < head {
            let next = self.revision(&wanted.catalog, wanted.parent + 1).await.map_err(fault::from_store)?;
            if let Some(next) = next.filter(|next| next.plan_id == wanted.plan_id) {
                let message =
                    format!("the plan was carried out already: it is revision {} of catalogue {}", next.number, wanted.catalog);
                let fault = Fault::new(Code::Aborted, reason::HEAD_MOVED, message);
                return Ok(fault.with("head", head).with("applied_as", next.number));
            }
        }
        Ok(Fault::new(Code::Aborted, reason::HEAD_MOVED, message).with("head", head))
    }

    /// The manifest that `wanted` makes of `base`, where it may.
    async fn next(&self, wanted: &Wanted, view: &View, base: Option<&Catalog>) -> Result<Next, Fault> {
        let number = wanted.parent + 1;
        let before = |name: &JobName| base.and_then(|base| base.entry(name));
        let (mut added, mut changed, mut definitions) = (0, 0, Vec::new());
        let mut put = wanted.put.clone();
        for entry in &mut put {
            let known = before(&entry.name);
            if let Some(known) = known.filter(|known| known.digest == entry.digest && known.name == entry.name) {
                entry.changed_in = known.changed_in;
                continue;
            }
            entry.changed_in = number;
            if known.is_some() {
                changed += 1;
            } else if let Some((owner, _)) = view.entry(&entry.name) {
                return Err(name_taken(&entry.name, owner));
            } else {
                added += 1;
            }
            // Only what the revision names: a blob that nothing names would take room for a day, until it is swept.
            let Some((digest, json)) = wanted.definitions.get_key_value(&entry.digest) else {
                return Err(fault::invalid(format!("the definition of job {} was not sent", entry.name)));
            };
            definitions.push((*digest, json.clone()));
        }
        let removed: Vec<_> = wanted.remove.iter().filter_map(before).collect();
        let digests = removed.iter().map(|entry| entry.digest).collect();
        for (entry, definition) in removed.iter().zip(self.definitions.all(digests).await.map_err(fault::from_store)?) {
            if definition.protect {
                let message = format!("job {} is protected: apply it without `protect: true` first, then remove it", entry.name);
                return Err(Fault::new(Code::FailedPrecondition, reason::PROTECTED, message).with("job", &entry.name));
            }
        }
        let changes = match base {
            Some(base) => {
                let touched = Root::touched(put.iter().map(|entry| &entry.name).chain(&wanted.remove));
                let touched = touched.iter().filter_map(|index| Some((*index, Bucket::clone(base.buckets.get(index)?))));
                base.root.with_changes(&touched.collect(), &put, &wanted.remove)
            }
            None => Root::default().with_changes(&BTreeMap::new(), &put, &wanted.remove),
        };
        let changes = changes.map_err(|error| fault::invalid(error.to_string()))?;
        let jobs = changes.root.jobs();
        if jobs as usize > CATALOG_JOBS {
            let message = format!("catalogue {} would have {jobs} jobs, at most {CATALOG_JOBS} are taken", wanted.catalog);
            return Err(Fault::new(Code::ResourceExhausted, reason::LIMIT, message));
        }
        if wanted.rollback_to > 0 {
            self.check_rollback(wanted, &changes.root).await?;
        }
        let removed = u32::try_from(removed.len()).unwrap_or(u32::MAX);
        Ok(Next { changes, definitions, added, changed, removed })
    }

    /// Makes sure that `root` holds what the revision held that `wanted` is to bring back.
    async fn check_rollback(&self, wanted: &Wanted, root: &Root) -> Result<(), Fault> {
        let number = wanted.rollback_to;
        if number >= wanted.parent {
            let message = format!("revision {number} is not before head, which is {}", wanted.parent);
            return Err(fault::invalid(message));
        }
        let record = self.revision(&wanted.catalog, number).await.map_err(fault::from_store)?;
        let record = record.ok_or_else(|| fault::no_revision(&wanted.catalog, number))?;
        if self.root(&record.manifest).await.map_err(fault::from_store)?.differing(root).is_empty() {
            return Ok(());
        }
        Err(fault::invalid(format!("what is to be applied is not what revision {number} of catalogue {} holds", wanted.catalog)))
    }
}

/// Says in the audit trail what a new revision is.
fn note(wanted: &Wanted, record: &RevisionRecord) {
    let act = &wanted.act;
    act.note("revision", record.number);
    act.note("parent", record.parent);
    act.note("added", record.added);
    act.note("changed", record.changed);
    act.note("removed", record.removed);
    act.note("commit", &record.commit);
    if record.dirty {
        act.note("dirty", true);
    }
    act.note("plan_id", &record.plan_id);
    if record.rollback_to > 0 {
        act.note("rollback_to", record.rollback_to);
    }
    if wanted.freeze {
        act.note("freeze", true);
    }
}

fn changing() -> Fault {
    Fault::new(Code::Unavailable, reason::STORE_UNAVAILABLE, "the catalogues change too quickly, try again")
}

fn name_taken(job: &JobName, owner: &Catalog) -> Fault {
    let repository = &owner.record.repository;
    let repository = if repository.is_empty() { String::new() } else { format!(" ({repository})") };
    let message = format!("job {job} is owned by catalogue {}{repository}", owner.name);
    Fault::new(Code::FailedPrecondition, reason::NAME_TAKEN, message).with("job", job).with("catalog", &owner.name)
}
