//! What catalogues there are, as their heads say: every job by name. How a head moves is in [`apply`], what was there before in [`history`].

mod apply;
mod history;

use std::cmp::Ordering;
use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};

use bytes::Bytes;
use futures::future::{BoxFuture, WeakShared};
use futures::{FutureExt as _, StreamExt as _, TryStreamExt as _, stream};
use octavius_catalog::manifest::{self, Bucket, Entry as ManifestEntry, Root};
use octavius_core::{CatalogName, Digest, JobDefinition, JobName, Principal, nearest};
use octavius_proto::Fault;
use octavius_store::record::{HeadRecord, RevisionRecord, SkippedTick, TickRecord};
use octavius_store::{Entry, Event, Key, Revision, Store, StoreError, Txn, blob, codec, key};
use tokio::sync::Notify;

use crate::definitions::Definitions;
use crate::mirror::{Listener, Mirrors};
use crate::{fault, mirror};

pub(crate) use apply::Wanted;

/// Buckets that are read at once: with each some tens of KiB at most, and a round trip.
const BUCKETS_AT_ONCE: usize = 32;

/// Catalogues that are read at once, where their heads have moved.
const HEADS_AT_ONCE: usize = 4;

/// One catalogue at one revision.
#[derive(Debug)]
pub(crate) struct Catalog {
    pub(crate) name: CatalogName,
    pub(crate) head: HeadRecord,
    head_modified: Revision,
    /// The revision that head names.
    pub(crate) record: Arc<RevisionRecord>,
    pub(crate) root: Arc<Root>,
    buckets: BTreeMap<u8, Arc<Bucket>>,
    /// The buckets and places of all jobs in order of their folded names, once somebody asks for them.
    order: OnceLock<Vec<(u8, usize)>>,
}

impl Catalog {
    /// The manifest's entry of a job, without regard to case.
    pub(crate) fn entry(&self, name: &JobName) -> Option<&ManifestEntry> {
        self.entry_in(manifest::bucket_of(name), name)
    }

    fn entry_in(&self, bucket: u8, name: &JobName) -> Option<&ManifestEntry> {
        let entries = self.buckets.get(&bucket)?.entries();
        let place = entries.binary_search_by(|entry| folded_order(entry.name.as_str(), name.as_str())).ok()?;
        entries.get(place)
    }

    /// Asks, in `txn`, that this is still the catalogue's head.
    pub(crate) fn still_head(&self, txn: Txn) -> Txn {
        txn.when(key::catalog_head(&self.name), self.head_modified)
    }

    fn at(&self, (bucket, place): (u8, usize)) -> Option<&ManifestEntry> {
        self.buckets.get(&bucket)?.entries().get(place)
    }

    /// The jobs whose names sort after `name`, in order of their folded names.
    fn after(&self, name: &str) -> impl Iterator<Item = &ManifestEntry> {
        let order = self.order.get_or_init(|| {
            let places = |(&bucket, jobs): (&u8, &Arc<Bucket>)| (0..jobs.entries().len()).map(move |place| (bucket, place));
            let mut order: Vec<_> = self.buckets.iter().flat_map(places).collect();
            let name = |at| self.at(at).map_or("", |entry| entry.name.as_str());
            order.sort_unstable_by(|a, b| folded_order(name(*a), name(*b)));
            order
        });
        let first = order
            .partition_point(|at| self.at(*at).is_none_or(|entry| folded_order(entry.name.as_str(), name) != Ordering::Greater));
        order[first..].iter().filter_map(|at| self.at(*at))
    }
}

/// The jobs that are new or have another definition than before, and those that were there before alone. Looks into nothing that the two have in
/// common.
pub(crate) fn changes<'a>(
    before: Option<&'a Catalog>,
    now: Option<&'a Catalog>,
) -> (Vec<&'a ManifestEntry>, Vec<&'a ManifestEntry>) {
    fn bucket(catalog: Option<&Catalog>, index: u8) -> Option<&Arc<Bucket>> {
        catalog?.buckets.get(&index)
    }
    let entry = |catalog: Option<&'a Catalog>, index, name: &JobName| catalog.and_then(|catalog| catalog.entry_in(index, name));
    let (mut changed, mut gone) = (Vec::new(), Vec::new());
    for index in 0..=u8::MAX {
        let (then, now_there) = (bucket(before, index), bucket(now, index));
        if then.map(Arc::as_ptr) == now_there.map(Arc::as_ptr) {
            continue;
        }
        let is_new = |job: &&ManifestEntry| entry(before, index, &job.name).is_none_or(|known| known.digest != job.digest);
        changed.extend(now_there.into_iter().flat_map(|jobs| jobs.entries()).filter(is_new));
        gone.extend(then.into_iter().flat_map(|jobs| jobs.entries()).filter(|job| entry(now, index, &job.name).is_none()));
    }
    (changed, gone)
}

/// The order of two names, without regard to case.
fn folded_order(one: &str, other: &str) -> Ordering {
    one.bytes().map(|byte| byte.to_ascii_lowercase()).cmp(other.bytes().map(|byte| byte.to_ascii_lowercase()))
}

/// Every catalogue. No name is in two of them.
#[derive(Debug, Default)]
pub(crate) struct View {
    pub(crate) catalogs: BTreeMap<CatalogName, Arc<Catalog>>,
}

impl View {
    /// The manifest's entry of a job.
    pub(crate) fn entry(&self, name: &JobName) -> Option<(&Arc<Catalog>, &ManifestEntry)> {
        let bucket = manifest::bucket_of(name);
        self.catalogs.values().find_map(|catalog| Some((catalog, catalog.entry_in(bucket, name)?)))
    }

    /// The jobs of all catalogues whose names sort after `name`, in order of their folded names.
    pub(crate) fn after(&self, name: &str) -> impl Iterator<Item = (&Arc<Catalog>, &ManifestEntry)> {
        let mut rest: Vec<_> = self.catalogs.values().map(|catalog| (catalog, catalog.after(name).peekable())).collect();
        std::iter::from_fn(move || {
            let heads = rest.iter_mut().filter_map(|(catalog, jobs)| Some((jobs.peek()?.name.as_str(), catalog, jobs)));
            let (_, catalog, jobs) = heads.min_by(|(one, ..), (other, ..)| folded_order(one, other))?;
            Some((&**catalog, jobs.next()?))
        })
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
        self.catalog.still_head(txn).or_read(key::catalog_head(&self.catalog.name))
    }

    /// Whether `head`, as a conflict told it, is still the one that the job was found at.
    pub(crate) fn was_current(&self, head: Option<&Entry>) -> bool {
        head.is_some_and(|head| head.modified == self.catalog.head_modified)
    }
}

/// Catalogues.
#[derive(Debug)]
pub(crate) struct Catalogs {
    store: Arc<dyn Store>,
    definitions: Arc<Definitions>,
    heads: Mutex<Heads>,
    view: Mutex<(Stamp, Arc<View>)>,
    /// The newest view that is being read, while somebody waits for it.
    reading: Mutex<Option<(Stamp, WeakShared<Reading>)>>,
    /// Is told whenever the watch shows that a head has moved, for the one who waits for it.
    pub(crate) moved: Notify,
}

/// A view that is being read. Whoever waits for it drives it on, so that it does not matter whose call it began with.
type Reading = BoxFuture<'static, Result<Arc<View>, StoreError>>;

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
        drop(heads);
        self.0.moved.notify_one();
    }

    fn change(&mut self, event: Event, _: Revision) {
        match event {
            Event::Put(entry) => self.0.heads().note(entry),
            Event::Delete(key) => drop(self.0.heads().newest.remove(&key)),
        }
        self.0.moved.notify_one();
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
        Self {
            store,
            definitions,
            heads: Mutex::default(),
            view: Mutex::default(),
            reading: Mutex::default(),
            moved: Notify::new(),
        }
    }

    fn heads(&self) -> MutexGuard<'_, Heads> {
        self.heads.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// What there is now. The heads are read each time; what hangs from them is read again only where one has moved.
    pub(crate) async fn view(self: &Arc<Self>) -> Result<Arc<View>, Fault> {
        let (heads, _) = mirror::list(&*self.store, &key::catalog_heads()).await.map_err(fault::from_store)?;
        {
            let mut known = self.heads();
            heads.iter().for_each(|head| known.note(head.clone()));
        }
        self.view_of(heads).await
    }

    /// What there was a moment ago, as a rule without asking the store. Good for a submission that asks that it is still so, and to say yes
    /// to something; whoever says no, looks at [`Catalogs::view`] first.
    pub(crate) async fn recent(self: &Arc<Self>) -> Result<Arc<View>, Fault> {
        let heads = {
            let known = self.heads();
            known.followed.then(|| known.newest.values().cloned().collect())
        };
        match heads {
            Some(heads) => self.view_of(heads).await,
            None => self.view().await,
        }
    }

    /// What was seen last, without asking anybody: it may be old, and lack catalogues.
    pub(crate) fn seen(&self) -> Arc<View> {
        Arc::clone(&self.view.lock().unwrap_or_else(PoisonError::into_inner).1)
    }

    /// What hangs from these heads. However many ask for the same, one reads it and all get what came of it, be it that the store failed: nobody
    /// stands in line behind a store that hangs.
    async fn view_of(self: &Arc<Self>, heads: Vec<Entry>) -> Result<Arc<View>, Fault> {
        let stamp: Stamp = heads.iter().map(|entry| (entry.key.clone(), entry.modified)).collect();
        let reading = {
            let mut reading = self.reading.lock().unwrap_or_else(PoisonError::into_inner);
            let known = self.view.lock().unwrap_or_else(PoisonError::into_inner);
            if known.0 == stamp {
                return Ok(Arc::clone(&known.1));
            }
            let same = reading.as_ref().filter(|(under_way, _)| *under_way == stamp);
            match same.and_then(|(_, reading)| reading.upgrade()) {
                Some(reading) => reading,
                None => {
                    let begun = Arc::clone(self).read_view(stamp.clone(), heads, Arc::clone(&known.1)).boxed().shared();
                    *reading = begun.downgrade().map(|begun| (stamp, begun));
                    begun
                }
            }
        };
        reading.await.map_err(fault::from_store)
    }

    /// Reads the view of these heads, taking from `known` what has not changed.
    async fn read_view(self: Arc<Self>, stamp: Stamp, heads: Vec<Entry>, known: Arc<View>) -> Result<Arc<View>, StoreError> {
        let catalogs: Vec<_> = heads.iter().map(|entry| self.load(entry, &known)).collect();
        let catalogs: Vec<_> = stream::iter(catalogs).buffered(HEADS_AT_ONCE).try_collect().await?;
        let catalogs = catalogs.into_iter().map(|catalog: Arc<Catalog>| (catalog.name.clone(), catalog)).collect();
        let view = Arc::new(View { catalogs });
        *self.view.lock().unwrap_or_else(PoisonError::into_inner) = (stamp, Arc::clone(&view));
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
        let (head_modified, order) = (entry.modified, OnceLock::new());
        // Frozen or thawed: nothing else has changed.
        if let Some(before) = before.filter(|before| before.head.revision == head.revision) {
            let (record, root, buckets) = (Arc::clone(&before.record), Arc::clone(&before.root), before.buckets.clone());
            return Ok(Arc::new(Catalog { name, head, head_modified, record, root, buckets, order }));
        }
        let (record, root) = tokio::try_join!(self.revision(&name, head.revision), self.root(&head.manifest))?;
        let missing = || StoreError::Unreadable(format!("revision {} of catalogue {name} is missing", head.revision));
        let record = Arc::new(record.ok_or_else(missing)?);
        let buckets: Vec<_> = root
            .blobs()
            .map(|(index, digest)| {
                let same = before.filter(|before| before.root.bucket(index).blob == Some(digest));
                let same = same.and_then(|before| before.buckets.get(&index)).cloned();
                async move {
                    match same {
                        Some(bucket) => Ok((index, bucket)),
                        None => Ok::<_, StoreError>((index, Arc::new(self.bucket(&digest).await?))),
                    }
                }
            })
            .collect();
        let buckets = stream::iter(buckets).buffered(BUCKETS_AT_ONCE).try_collect().await?;
        Ok(Arc::new(Catalog { name, head, head_modified, record, root: Arc::new(root), buckets, order }))
    }

    async fn root(&self, digest: &Digest) -> Result<Root, StoreError> {
        Root::from_bytes(&self.blob(digest).await?).map_err(unreadable)
    }

    /// A bucket of a manifest, by the digest of its blob.
    pub(crate) async fn bucket(&self, digest: &Digest) -> Result<Bucket, StoreError> {
        Bucket::from_bytes(&self.blob(digest).await?).map_err(unreadable)
    }

    async fn blob(&self, digest: &Digest) -> Result<Bytes, StoreError> {
        blob::get(&*self.store, digest).await?.ok_or_else(|| StoreError::Unreadable(format!("blob {digest} is missing")))
    }

    /// The last tick of a job's schedule that had no execution.
    pub(crate) async fn last_skipped(&self, job: &Job) -> Result<Option<SkippedTick>, StoreError> {
        let entry = self.store.get(&key::tick(&job.entry.name.folded())).await?;
        let record: Option<TickRecord> = entry.as_ref().map(codec::decode).transpose()?;
        Ok(record.filter(|record| record.catalog == job.catalog.name).and_then(|record| record.skipped))
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
        let near = nearest::nearest(name, view.after("").map(|(_, entry)| entry.name.as_str())).map(str::to_owned);
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
}

#[expect(clippy::needless_pass_by_value, reason = "`map_err` hands it over")]
fn unreadable(error: manifest::ManifestError) -> StoreError {
    StoreError::Unreadable(error.to_string())
}
