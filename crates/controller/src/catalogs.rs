//! What catalogues there are, as their heads say: every job by name, and how a head moves.

use std::collections::{BTreeMap, HashMap};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use bytes::Bytes;
use octavius_catalog::manifest::{self, Bucket, Entry as ManifestEntry, Root};
use octavius_core::{CatalogName, Digest, JobDefinition, JobName, Principal, Timestamp, nearest};
use octavius_proto::{Fault, reason, v1};
use octavius_store::record::{FrozenRecord, HeadRecord, RevisionRecord};
use octavius_store::{Commit, Entry, Event, Key, Revision, Store, StoreError, Txn, blob, codec, key};
use tonic::Code;

use crate::definitions::Definitions;
use crate::mirror::{Listener, Mirrors};
use crate::{fault, mirror};

/// Tries of one apply. It loses to another of its own catalogue for good; to those of others only while they take names.
const MAX_TRIES: usize = 100;

/// One catalogue at one revision.
#[derive(Debug)]
pub(crate) struct Catalog {
    pub(crate) name: CatalogName,
    pub(crate) head: HeadRecord,
    head_modified: Revision,
    pub(crate) root: Root,
    pub(crate) buckets: BTreeMap<u8, Bucket>,
}

/// Every catalogue, and every job by its folded name.
#[derive(Debug, Default)]
pub(crate) struct View {
    pub(crate) catalogs: BTreeMap<CatalogName, Arc<Catalog>>,
    /// From a folded name to the catalogue that owns it.
    pub(crate) owners: BTreeMap<String, Owned>,
}

impl View {
    /// The manifest's entry of a job.
    pub(crate) fn entry(&self, name: &JobName) -> Option<(&Arc<Catalog>, &ManifestEntry)> {
        let owned = self.owners.get(&name.folded())?;
        Some((&owned.catalog, owned.entry()?))
    }
}

/// A job's catalogue, and where in its manifest the job stands: a list of all jobs looks none of them up by name.
#[derive(Debug)]
pub(crate) struct Owned {
    pub(crate) catalog: Arc<Catalog>,
    bucket: u8,
    place: usize,
}

impl Owned {
    /// The manifest's entry.
    pub(crate) fn entry(&self) -> Option<&ManifestEntry> {
        self.catalog.buckets.get(&self.bucket)?.entries().get(self.place)
    }
}

/// A job as it stands at its catalogue's head.
#[derive(Debug)]
pub(crate) struct Job {
    pub(crate) catalog: Arc<Catalog>,
    pub(crate) entry: ManifestEntry,
    pub(crate) definition: Arc<JobDefinition>,
}

impl Job {
    /// Asks, in `txn`, that the job is still at its catalogue's head; whether it is, [`Job::was_current`] tells of a conflict.
    pub(crate) fn still_current(&self, txn: Txn) -> Txn {
        let head = key::catalog_head(&self.catalog.name);
        txn.when(head.clone(), self.catalog.head_modified).or_read(head)
    }

    /// Whether `head`, as a conflict told it, is still the one that the job was found at.
    pub(crate) fn was_current(&self, head: Option<&Entry>) -> bool {
        head.is_some_and(|head| head.modified == self.catalog.head_modified)
    }
}

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
    pub(crate) by: String,
    /// The plan that this carries out; empty for none.
    pub(crate) plan_id: String,
    /// The revision that this brings back; 0 for none.
    pub(crate) rollback_to: u64,
    /// Whether the catalogue is frozen with it.
    pub(crate) freeze: bool,
}

/// Catalogues.
#[derive(Debug)]
pub(crate) struct Catalogs {
    store: Arc<dyn Store>,
    definitions: Arc<Definitions>,
    heads: Mutex<Heads>,
    view: Mutex<(Stamp, Arc<View>)>,
}

/// The heads as they were last seen: read, written, or shown by the watch.
#[derive(Debug, Default)]
struct Heads {
    newest: BTreeMap<Key, Entry>,
    /// Whether the watch follows them: before, they may lack catalogues.
    followed: bool,
}

impl Heads {
    fn note(&mut self, entry: Entry) {
        match self.newest.entry(entry.key.clone()) {
            std::collections::btree_map::Entry::Occupied(known) if known.get().modified > entry.modified => {}
            std::collections::btree_map::Entry::Occupied(mut known) => drop(known.insert(entry)),
            std::collections::btree_map::Entry::Vacant(place) => drop(place.insert(entry)),
        }
    }
}

/// Feeds the catalogues with their heads: everything under `head/`.
struct HeadsListener(Arc<Catalogs>);

impl Listener for HeadsListener {
    fn reset(&mut self, entries: Vec<Entry>, revision: Revision) {
        let mut heads = self.0.heads();
        heads.followed = true;
        heads.newest.retain(|_, known| known.modified > revision);
        entries.into_iter().for_each(|entry| heads.note(entry));
    }

    fn change(&mut self, event: Event, _: Revision) {
        match event {
            Event::Put(entry) => self.0.heads().note(entry),
            Event::Delete(key) => drop(self.0.heads().newest.remove(&key)),
        }
    }
}

/// Keeps sight of the catalogues' heads until the shutdown.
pub(crate) async fn follow(catalogs: Arc<Catalogs>, mirrors: Mirrors) {
    mirrors.run(key::catalog_heads(), HeadsListener(catalogs)).await;
}

/// The heads that a view was made from, with the revisions that wrote them.
type Stamp = Vec<(Key, Revision)>;

impl Catalogs {
    pub(crate) fn new(store: Arc<dyn Store>, definitions: Arc<Definitions>) -> Self {
        Self { store, definitions, heads: Mutex::default(), view: Mutex::default() }
    }

    fn heads(&self) -> MutexGuard<'_, Heads> {
        self.heads.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// What there is now. The heads are read each time; what hangs from them is read again only where one has moved.
    pub(crate) async fn view(&self) -> Result<Arc<View>, Fault> {
        let (heads, _) = mirror::list(&*self.store, &key::catalog_heads()).await.map_err(fault::from_store)?;
        {
            let mut known = self.heads();
            heads.iter().for_each(|head| known.note(head.clone()));
        }
        self.view_of(heads).await
    }

    /// What there was a moment ago, as a rule without asking the store. Good for a submission that asks that it is still so, and to say yes
    /// to something; whoever says no, looks at [`Catalogs::view`] first.
    pub(crate) async fn recent(&self) -> Result<Arc<View>, Fault> {
        let heads = {
            let known = self.heads();
            known.followed.then(|| known.newest.values().cloned().collect())
        };
        match heads {
            Some(heads) => self.view_of(heads).await,
            None => self.view().await,
        }
    }

    /// What hangs from these heads.
    async fn view_of(&self, heads: Vec<Entry>) -> Result<Arc<View>, Fault> {
        let stamp: Stamp = heads.iter().map(|entry| (entry.key.clone(), entry.modified)).collect();
        let lock = || self.view.lock().unwrap_or_else(PoisonError::into_inner);
        let known = {
            let guard = lock();
            if guard.0 == stamp {
                return Ok(Arc::clone(&guard.1));
            }
            Arc::clone(&guard.1)
        };
        let mut view = View::default();
        for entry in &heads {
            let catalog = self.load(entry, &known).await.map_err(fault::from_store)?;
            for (&bucket, jobs) in &catalog.buckets {
                for (place, job) in jobs.entries().iter().enumerate() {
                    view.owners.insert(job.name.folded(), Owned { catalog: Arc::clone(&catalog), bucket, place });
                }
            }
            view.catalogs.insert(catalog.name.clone(), catalog);
        }
        let view = Arc::new(view);
        *lock() = (stamp, Arc::clone(&view));
        Ok(view)
    }

    /// Reads the catalogue of a head, taking from `known` what has not changed.
    async fn load(&self, entry: &Entry, known: &View) -> Result<Arc<Catalog>, StoreError> {
        let name =
            key::catalog_of(&entry.key).ok_or_else(|| StoreError::Unreadable(format!("{}: not a catalogue", entry.key)))?;
        let before = known.catalogs.get(&name);
        if let Some(before) = before.filter(|before| before.head_modified == entry.modified) {
            return Ok(Arc::clone(before));
        }
        let head: HeadRecord = codec::decode(entry)?;
        let root = Root::from_bytes(&self.blob(&head.manifest).await?).map_err(unreadable)?;
        let mut buckets = BTreeMap::new();
        for (index, digest) in root.blobs() {
            let same = before.filter(|before| before.root.bucket(index).blob == Some(digest));
            let bucket = match same.and_then(|before| before.buckets.get(&index)) {
                Some(bucket) => bucket.clone(),
                None => Bucket::from_bytes(&self.blob(&digest).await?).map_err(unreadable)?,
            };
            buckets.insert(index, bucket);
        }
        Ok(Arc::new(Catalog { name, head, head_modified: entry.modified, root, buckets }))
    }

    async fn blob(&self, digest: &Digest) -> Result<Bytes, StoreError> {
        blob::get(&*self.store, digest).await?.ok_or_else(|| StoreError::Unreadable(format!("blob {digest} is missing")))
    }

    /// A revision's record.
    pub(crate) async fn revision(&self, catalog: &CatalogName, number: u64) -> Result<Option<RevisionRecord>, StoreError> {
        self.store.get(&key::catalog_revision(catalog, number)).await?.as_ref().map(codec::decode).transpose()
    }

    /// The buckets of a revision; all of them where `wanted` is empty.
    pub(crate) async fn buckets(&self, revision: &RevisionRecord, wanted: &[u8]) -> Result<Vec<(u8, Bucket)>, StoreError> {
        let root = Root::from_bytes(&self.blob(&revision.manifest).await?).map_err(unreadable)?;
        let mut buckets = Vec::new();
        for (index, digest) in root.blobs().filter(|(index, _)| wanted.is_empty() || wanted.contains(index)) {
            buckets.push((index, Bucket::from_bytes(&self.blob(&digest).await?).map_err(unreadable)?));
        }
        Ok(buckets)
    }

    /// The job of this name in `view`, if it is for the caller.
    pub(crate) async fn job(&self, principal: &Principal, view: &View, name: &str) -> Result<Job, Fault> {
        let parsed = name.parse::<JobName>().ok();
        let found = parsed.as_ref().and_then(|name| view.entry(name));
        if let Some((catalog, entry)) = found {
            let definition = self.definitions.get(entry.digest).await.map_err(fault::from_store)?;
            if principal.may_use(&definition.authorized_groups) {
                return Ok(Job { catalog: Arc::clone(catalog), entry: entry.clone(), definition });
            }
        }
        let near = nearest::nearest(name, view.owners.keys().map(String::as_str)).map(str::to_owned);
        // What is suggested must be for the caller too; who may not see a job does not learn its name.
        let suggestion = match near.and_then(|near| near.parse::<JobName>().ok()).as_ref().and_then(|near| view.entry(near)) {
            Some((_, entry)) => {
                let definition = self.definitions.get(entry.digest).await.map_err(fault::from_store)?;
                principal.may_use(&definition.authorized_groups).then(|| entry.name.to_string())
            }
            None => None,
        };
        Err(fault::no_job(name, suggestion.as_deref()))
    }

    /// Freezes a catalogue, or thaws it where nobody is named. One that is frozen already stays as it is.
    pub(crate) async fn set_frozen(&self, catalog: &CatalogName, by: Option<&String>) -> Result<Option<FrozenRecord>, Fault> {
        let head_key = key::catalog_head(catalog);
        for _ in 0..MAX_TRIES {
            let Some(entry) = self.store.get(&head_key).await.map_err(fault::from_store)? else {
                return Err(fault::no_catalog(catalog));
            };
            let mut head: HeadRecord = codec::decode(&entry).map_err(fault::from_store)?;
            if head.frozen.is_some() == by.is_some() {
                return Ok(head.frozen);
            }
            head.frozen = by.map(|by| FrozenRecord { by: by.clone(), at: Timestamp::now() });
            let value = codec::encode(&head);
            match self.store.commit(Txn::new().unchanged(&entry).put(head_key.clone(), value.clone())).await {
                Ok(Commit::Done(modified)) => {
                    self.heads().note(Entry { key: head_key, value, created: entry.created, modified });
                    return Ok(head.frozen);
                }
                Ok(Commit::Conflict(_)) | Err(StoreError::Unknown(_)) => {}
                Err(error) => return Err(fault::from_store(error)),
            }
        }
        Err(Fault::new(Code::Unavailable, reason::STORE_UNAVAILABLE, "the catalogues change too quickly, try again"))
    }

    /// Makes a new revision, all or nothing.
    pub(crate) async fn apply(&self, wanted: &Wanted) -> Result<RevisionRecord, Fault> {
        // The same in every try, so that a revision that is found there tells whether one of them made it.
        let applied_at = Timestamp::now();
        let mut lost = None;
        for _ in 0..MAX_TRIES {
            if let Some(record) = self.try_apply(wanted, applied_at, &mut lost).await? {
                return Ok(record);
            }
        }
        Err(Fault::new(Code::Unavailable, reason::STORE_UNAVAILABLE, "the catalogues change too quickly, try again"))
    }

    /// One try; none where something has changed meanwhile and it is to be looked at again. `lost` holds what was written, or was not: its
    /// answer was lost, and it may land at any time.
    async fn try_apply(
        &self,
        wanted: &Wanted,
        applied_at: Timestamp,
        lost: &mut Option<RevisionRecord>,
    ) -> Result<Option<RevisionRecord>, Fault> {
        let names_entry = self.store.get(&key::names()).await.map_err(fault::from_store)?;
        let view = self.view().await?;
        let base = view.catalogs.get(&wanted.catalog);
        let head = base.map_or(0, |base| base.head.revision);
        if head != wanted.parent {
            if let Some(record) = lost.take()
                && self.revision(&wanted.catalog, record.number).await.map_err(fault::from_store)?.as_ref() == Some(&record)
            {
                return Ok(Some(record));
            }
            let message =
                format!("catalogue {} is at revision {head}, the plan was made against {}", wanted.catalog, wanted.parent);
            return Err(Fault::new(Code::Aborted, reason::HEAD_MOVED, message).with("head", head));
        }
        let known = base.and_then(|base| base.head.frozen.clone());
        if let Some(frozen) = known.as_ref().filter(|_| wanted.rollback_to == 0) {
            let message = format!("catalogue {} is frozen since {}, by {}", wanted.catalog, frozen.at, frozen.by);
            return Err(Fault::new(Code::FailedPrecondition, reason::FROZEN, message).with("by", &frozen.by));
        }
        let frozen = known.or_else(|| wanted.freeze.then(|| FrozenRecord { by: wanted.by.clone(), at: applied_at }));
        let number = head + 1;
        let empty = (Root::default(), BTreeMap::new());
        let (root, buckets) = base.map_or((&empty.0, &empty.1), |base| (&base.root, &base.buckets));
        let before = |name: &JobName| buckets.get(&manifest::bucket_of(name)).and_then(|bucket| bucket.get(name));
        let (mut added, mut changed) = (0, 0);
        let mut put = wanted.put.clone();
        for entry in &mut put {
            match before(&entry.name) {
                Some(known) if known.digest == entry.digest => entry.changed_in = known.changed_in,
                Some(_) => (entry.changed_in, changed) = (number, changed + 1),
                None => {
                    (entry.changed_in, added) = (number, added + 1);
                    if let Some(Owned { catalog: owner, .. }) = view.owners.get(&entry.name.folded()) {
                        return Err(name_taken(&entry.name, owner, &self.revision(&owner.name, owner.head.revision).await));
                    }
                }
            }
            let stored = before(&entry.name).is_some_and(|known| known.digest == entry.digest);
            if !stored && !wanted.definitions.contains_key(&entry.digest) {
                return Err(fault::invalid(format!("the definition of job {} was not sent", entry.name)));
            }
        }
        let removed = wanted.remove.iter().filter(|name| before(name).is_some()).count();
        let changes = root.with_changes(buckets, &put, &wanted.remove).map_err(|error| fault::invalid(error.to_string()))?;
        let record = RevisionRecord {
            number,
            parent: head,
            manifest: changes.root.digest(),
            applied_by: wanted.by.clone(),
            applied_at,
            commit: wanted.provenance.commit.clone(),
            dirty: wanted.provenance.dirty,
            repository: wanted.provenance.repository.clone(),
            author: wanted.provenance.author.clone(),
            added,
            changed,
            removed: u32::try_from(removed).unwrap_or(u32::MAX),
            unchanged: changes.root.jobs().saturating_sub(added + changed),
            rollback_to: wanted.rollback_to,
            plan_id: wanted.plan_id.clone(),
        };
        let blobs = changes.blobs().map(|(digest, bytes)| (digest, Bytes::from(bytes)));
        // Only what the revision names: a blob that nothing names would take room for a day, until it is swept.
        let sent = put.iter().filter_map(|entry| wanted.definitions.get_key_value(&entry.digest));
        let sent = sent.map(|(digest, json)| (*digest, json.clone()));
        let blobs: Vec<_> = sent.chain(blobs).collect();
        blob::put_all(&*self.store, blobs).await.map_err(fault::from_store)?;

        let head_key = key::catalog_head(&wanted.catalog);
        let head_value = codec::encode(&HeadRecord { revision: number, manifest: record.manifest, frozen });
        let revision_key = key::catalog_revision(&wanted.catalog, number);
        let mut txn = Txn::new()
            .when(head_key.clone(), base.map_or(0, |base| base.head_modified))
            .put(head_key.clone(), head_value.clone())
            .put(revision_key, codec::encode(&record));
        if added > 0 {
            txn = txn
                .when(key::names(), names_entry.map_or(0, |entry| entry.modified))
                .put(key::names(), codec::encode(&wanted.catalog));
        }
        octavius_failpoint::reach(&octavius_failpoint::APPLY_HEAD);
        match self.store.commit(txn).await {
            Ok(Commit::Done(modified)) => {
                self.heads().note(Entry { key: head_key, value: head_value, created: modified, modified });
                Ok(Some(record))
            }
            // Head has moved, or another catalogue has taken names: the next look tells which, and whether they are these.
            Ok(Commit::Conflict(_)) => Ok(None),
            Err(StoreError::Unknown(_)) => {
                let there = self.revision(&wanted.catalog, number).await.map_err(fault::from_store)?;
                if there.as_ref() == Some(&record) {
                    return Ok(there);
                }
                *lost = Some(record);
                Ok(None)
            }
            Err(error) => Err(fault::from_store(error)),
        }
    }
}

#[expect(clippy::needless_pass_by_value, reason = "`map_err` hands it over")]
fn unreadable(error: manifest::ManifestError) -> StoreError {
    StoreError::Unreadable(error.to_string())
}

fn name_taken(job: &JobName, owner: &Catalog, revision: &Result<Option<RevisionRecord>, StoreError>) -> Fault {
    let repository = match revision {
        Ok(Some(record)) if !record.repository.is_empty() => format!(" ({})", record.repository),
        _ => String::new(),
    };
    let message = format!("job {job} is owned by catalogue {}{repository}", owner.name);
    Fault::new(Code::FailedPrecondition, reason::NAME_TAKEN, message).with("job", job).with("catalog", &owner.name)
}
