//! What a catalogue was before: its revisions, what they held, and which of them touched a job.

use std::time::{Duration, Instant};

use futures::{StreamExt as _, TryStreamExt as _, stream};
use octavius_catalog::manifest::{self, Entry as ManifestEntry, Root};
use octavius_core::{CatalogName, JobName};
use octavius_proto::{Fault, reason};
use octavius_store::record::RevisionRecord;
use octavius_store::{Range, StoreError, codec, key};
use tonic::Code;

use super::Catalogs;
use crate::fault;

/// Most revisions that are looked into for where a job was removed, in one call, give or take a few: some tens of KiB are read for each.
const LOOKED_INTO: usize = 1000;

/// Most records of revisions that are read in one step of such a search.
const PAGE: usize = 1000;

/// Revisions that are looked into at once.
const AT_ONCE: usize = 16;

/// For how long one call searches the history of a job: what was found until then is answered.
const WITHIN: Duration = Duration::from_secs(3);

impl Catalogs {
    /// A revision's record; `None` where there is none of this number, or it is not kept any more.
    pub(crate) async fn revision(&self, catalog: &CatalogName, number: u64) -> Result<Option<RevisionRecord>, StoreError> {
        self.store.get(&key::catalog_revision(catalog, number)).await?.as_ref().map(codec::decode).transpose()
    }

    /// Records of the revisions lower than `before`, or of all where that is 0: newest first, at most `limit`.
    pub(crate) async fn revisions(
        &self,
        catalog: &CatalogName,
        before: u64,
        limit: usize,
    ) -> Result<Vec<RevisionRecord>, StoreError> {
        let after = (before > 0).then(|| key::catalog_revision(catalog, before));
        let range = Range { after, ..Range::of(key::catalog_revisions(catalog), limit) };
        self.store.range(&range).await?.entries.iter().map(codec::decode).collect()
    }

    /// The root of a revision's manifest.
    pub(crate) async fn root_of(&self, revision: &RevisionRecord) -> Result<Root, StoreError> {
        self.root(&revision.manifest).await
    }

    /// The manifest's entry of a job in a revision.
    pub(crate) async fn entry_in(&self, revision: &RevisionRecord, job: &JobName) -> Result<Option<ManifestEntry>, StoreError> {
        let root = self.root(&revision.manifest).await?;
        let Some(digest) = root.bucket(manifest::bucket_of(job)).blob else { return Ok(None) };
        Ok(self.bucket(&digest).await?.get(job).cloned())
    }

    /// Records of the revisions lower than `before`, or of all where that is 0, that added, changed or removed a job: newest first, at most
    /// `limit`. They may be fewer although more follow; that none follow, an empty answer says.
    ///
    /// While the job is there, its entry names the revision that put it so, and none between has to be looked at; where it is not, only a
    /// revision that removed jobs can have removed it. Each entry is known only after the one before: several revisions are looked into at
    /// once, and more of them the more of those before were of use, so that a job that changes all the time is read in few steps, and one
    /// that seldom does in few reads.
    pub(crate) async fn revisions_of(
        &self,
        catalog: &CatalogName,
        job: &JobName,
        before: u64,
        limit: usize,
    ) -> Result<Vec<RevisionRecord>, Fault> {
        let mut search = Search { catalogs: self, catalog, job, until: Instant::now() + WITHIN, looked_into: 0 };
        let (mut found, mut below, mut ahead) = (Vec::new(), before, 1);
        while found.len() < limit && (found.is_empty() || Instant::now() < search.until) {
            let looked = search.look(below, ahead).await.map_err(fault::from_store)?;
            let mut at = 0;
            let mut useful = 0;
            while found.len() < limit
                && let Some((record, entry)) = looked.get(at)
            {
                useful += 1;
                if let Some(entry) = entry {
                    // One that is not kept any more ends the history: none before it is kept either.
                    let number = entry.changed_in;
                    let changed_in = match looked[at..].iter().find(|(older, _)| older.number == number) {
                        Some((record, _)) => Some(record.clone()),
                        None => self.revision(catalog, number).await.map_err(fault::from_store)?,
                    };
                    let Some(changed_in) = changed_in else { return Ok(found) };
                    found.push(changed_in);
                    below = number;
                    at += looked[at..].iter().take_while(|(older, _)| older.number >= number).count();
                } else if matches!(looked.get(at + 1), Some((_, Some(_)))) {
                    found.push(record.clone());
                    below = record.number;
                    at += 1;
                } else {
                    match search.removal(record.clone()).await.map_err(fault::from_store)? {
                        Removal::By(removal) => {
                            below = removal.number;
                            found.push(*removal);
                            break;
                        }
                        Removal::NotUntil(number) if found.is_empty() => {
                            let message = format!("job {job} was removed by none of the newest revisions, down to {number}");
                            let fault = Fault::new(Code::ResourceExhausted, reason::LIMIT, message);
                            return Err(fault.with("before", number));
                        }
                        Removal::None | Removal::NotUntil(_) => return Ok(found),
                    }
                }
            }
            if useful == 0 || below == 1 {
                break; // before the first there is none
            }
            ahead = if useful == looked.len() { 2 * ahead } else { useful }
                .min(AT_ONCE)
                .min(limit.saturating_sub(found.len()))
                .max(1);
        }
        Ok(found)
    }
}

/// Which revision removed a job.
enum Removal {
    /// This one.
    By(Box<RevisionRecord>),
    /// None that is kept.
    None,
    /// None from this number on; older ones have not been looked into, for it would have taken too long.
    NotUntil(u64),
}

/// A search through the revisions of a catalogue for those that touched a job.
struct Search<'a> {
    catalogs: &'a Catalogs,
    catalog: &'a CatalogName,
    job: &'a JobName,
    until: Instant,
    /// Revisions that were looked into for a removal.
    looked_into: usize,
}

impl Search<'_> {
    /// The newest `count` revisions lower than `below`, or of all where that is 0, each with the job's entry.
    async fn look(&self, below: u64, count: usize) -> Result<Vec<(RevisionRecord, Option<ManifestEntry>)>, StoreError> {
        let records = self.catalogs.revisions(self.catalog, below, count).await?;
        let entries: Vec<_> = records.iter().map(|record| self.catalogs.entry_in(record, self.job)).collect();
        let entries: Vec<_> = stream::iter(entries).buffered(AT_ONCE).try_collect().await?;
        Ok(records.into_iter().zip(entries).collect())
    }

    /// What removed the job, which is not in `record`: the newest revision up to that one before which it was there.
    async fn removal(&mut self, record: RevisionRecord) -> Result<Removal, StoreError> {
        let mut newer = record;
        let mut page = 2;
        loop {
            let older = self.catalogs.revisions(self.catalog, newer.number, page).await?;
            let Some(oldest) = older.last().cloned() else { return Ok(Removal::None) };
            let pairs = std::iter::once(newer).chain(older.iter().cloned()).zip(&older);
            let removing: Vec<_> = pairs.filter(|(newer, _)| newer.removed > 0).collect();
            for some in removing.chunks(AT_ONCE) {
                if self.looked_into >= LOOKED_INTO || Instant::now() >= self.until {
                    return Ok(Removal::NotUntil(some[0].0.number + 1));
                }
                self.looked_into += some.len();
                let there: Vec<_> = some.iter().map(|(_, older)| self.catalogs.entry_in(older, self.job)).collect();
                let there: Vec<_> = stream::iter(there).buffered(AT_ONCE).try_collect().await?;
                if let Some(at) = there.iter().position(Option::is_some) {
                    return Ok(Removal::By(Box::new(some[at].0.clone())));
                }
            }
            newer = oldest;
            page = (2 * page).min(PAGE);
        }
    }
}
