//! The sweep of blobs: a blob that nothing has named for a day goes. What names blobs are the kept revisions of catalogues and the kept
//! executions.
//!
//! Whoever is about to name a blob writes it first, also where it is there already; so its modification revision tells whether anybody has
//! meant to name it since it was found without a name, and each removal asks that it has not moved.

use std::collections::{HashMap, HashSet};
use std::time::{Duration, Instant};

use octavius_catalog::manifest::{Bucket, ManifestError, Root};
use octavius_core::{Digest, Execution};
use octavius_store::record::RevisionRecord;
use octavius_store::{Commit, Key, Revision, Store, StoreError, Txn, blob, codec, key};

use super::Pages;

/// Keys of a blob that one transaction removes: each is a condition and a change.
const BATCH: usize = Txn::MAX_OPERATIONS / 2;

/// A blob that had no name.
#[derive(Debug, Clone, Copy)]
struct Candidate {
    /// The newest modification revision of its keys.
    modified: Revision,
    since: Instant,
}

/// What the sweeps before have found. Lost at a restart, which only delays what would have been removed.
#[derive(Debug, Default)]
pub(crate) struct Sweep {
    candidates: HashMap<Digest, Candidate>,
}

/// The keys of one blob and the revisions that wrote them.
type Keys = Vec<(Key, Revision)>;

impl Sweep {
    /// One sweep: removes what has had no name for `grace`; how many that were.
    pub(crate) async fn run(&mut self, store: &dyn Store, grace: Duration) -> Result<u64, StoreError> {
        let named = named(store).await?;
        let mut found = HashMap::new();
        let mut removed = 0;
        let mut blob: Option<(Digest, Keys)> = None;
        let mut pages = Pages::of(key::blobs());
        while let Some(blobs) = pages.next(store).await? {
            for entry in blobs {
                let Some(digest) = key::blob_of(&entry.key).filter(|digest| !named.contains(digest)) else { continue };
                let at = (entry.key, entry.modified);
                match &mut blob {
                    Some((known, keys)) if *known == digest => keys.push(at),
                    _ => {
                        if let Some((digest, keys)) = blob.replace((digest, vec![at])) {
                            removed += u64::from(self.consider(store, digest, &keys, grace, &mut found).await?);
                        }
                    }
                }
            }
        }
        if let Some((digest, keys)) = blob {
            removed += u64::from(self.consider(store, digest, &keys, grace, &mut found).await?);
        }
        self.candidates = found;
        Ok(removed)
    }

    /// Removes a blob without a name if it has been so for long enough, and otherwise notes it.
    async fn consider(
        &self,
        store: &dyn Store,
        digest: Digest,
        keys: &Keys,
        grace: Duration,
        found: &mut HashMap<Digest, Candidate>,
    ) -> Result<bool, StoreError> {
        let modified = keys.iter().map(|(_, modified)| *modified).max().unwrap_or_default();
        let before = self.candidates.get(&digest).filter(|before| before.modified == modified);
        match before {
            Some(before) if before.since.elapsed() >= grace => remove(store, keys).await,
            _ => {
                found.insert(digest, before.copied().unwrap_or(Candidate { modified, since: Instant::now() }));
                Ok(false)
            }
        }
    }
}

/// Removes a blob's keys, the header first: without it the blob is not there. Whoever writes it meanwhile writes all of its keys, and what
/// they have written stays.
async fn remove(store: &dyn Store, keys: &Keys) -> Result<bool, StoreError> {
    for batch in keys.chunks(BATCH) {
        let mut txn = Txn::new();
        for (key, modified) in batch {
            txn = txn.when(key.clone(), *modified).delete(key.clone());
        }
        if let Commit::Conflict(_) = store.commit(txn).await? {
            return Ok(false);
        }
    }
    Ok(true)
}

/// Every digest that a kept revision or a kept execution names.
async fn named(store: &dyn Store) -> Result<HashSet<Digest>, StoreError> {
    let mut named = HashSet::new();
    for head in crate::mirror::list(store, &key::catalog_heads()).await?.0 {
        let Some(catalog) = key::catalog_of(&head.key) else { continue };
        let mut pages = Pages::of(key::catalog_revisions(&catalog));
        while let Some(revisions) = pages.next(store).await? {
            for entry in revisions {
                let record: RevisionRecord = codec::decode(&entry)?;
                name_manifest(store, record.manifest, &mut named).await?;
            }
        }
    }
    let mut pages = Pages::of(key::executions());
    while let Some(executions) = pages.next(store).await? {
        for entry in executions {
            let execution: Execution = codec::decode(&entry)?;
            named.insert(execution.definition);
            named.extend(execution.large_arguments);
        }
    }
    Ok(named)
}

/// A manifest's root, its buckets and their definitions. What is named already was looked into before.
async fn name_manifest(store: &dyn Store, manifest: Digest, named: &mut HashSet<Digest>) -> Result<(), StoreError> {
    if !named.insert(manifest) {
        return Ok(());
    }
    let Some(root) = blob::get(store, &manifest).await? else {
        return Err(StoreError::Unreadable(format!("manifest {manifest} is missing")));
    };
    for (_, bucket) in Root::from_bytes(&root).map_err(unreadable)?.blobs() {
        if !named.insert(bucket) {
            continue;
        }
        let Some(bytes) = blob::get(store, &bucket).await? else {
            return Err(StoreError::Unreadable(format!("blob {bucket} of manifest {manifest} is missing")));
        };
        named.extend(Bucket::from_bytes(&bytes).map_err(unreadable)?.entries().iter().map(|entry| entry.digest));
    }
    Ok(())
}

#[expect(clippy::needless_pass_by_value, reason = "`map_err` hands it over")]
fn unreadable(error: ManifestError) -> StoreError {
    StoreError::Unreadable(error.to_string())
}
