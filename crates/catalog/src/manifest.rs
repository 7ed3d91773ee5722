//! What a revision of a catalogue holds: a tree of 256 buckets from job names to digests of definitions. A change of a few jobs
//! writes a few buckets, and two revisions are compared by their roots alone; see [`Root::differing`].

use std::collections::{BTreeMap, BTreeSet};

use octavius_core::{Digest, JobName};
use serde::{Deserialize, Serialize};

use crate::plan::Revision;

/// Version of the stored form. A reader refuses a newer one.
const FORMAT_VERSION: u32 = 1;

/// Buckets of a manifest: one for each value of a byte.
pub const BUCKETS: usize = 256;

/// One job of a revision.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Entry {
    /// The job's name.
    pub name: JobName,
    /// The digest of its definition's canonical JSON.
    pub digest: Digest,
    /// The file it came from.
    pub file: String,
    /// The line of its name in the file, counted from 1; 0 where there is no file.
    pub line: u32,
    /// The revision in which the definition last changed.
    pub changed_in: Revision,
    /// The parts of the definition that come from elsewhere than its own file.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub inherited: Vec<Inherited>,
}

/// A part of a definition that the job's own file does not say: `octavius.yaml` or a `_defaults.yaml` does.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Inherited {
    /// JSON pointer into the definition: `/resources/cpu`.
    pub field: String,
    /// The file that says it, as [`Entry::file`] is written.
    pub file: String,
    /// The line there, counted from 1.
    pub line: u32,
}

/// Why stored bytes are not a manifest, or a change cannot be made.
#[derive(Debug, thiserror::Error)]
pub enum ManifestError {
    /// The bytes are not JSON of the kind.
    #[error("not a manifest's {what}")]
    Malformed {
        /// What was read: `root` or `bucket`.
        what: &'static str,
        /// Where it failed.
        source: serde_json::Error,
    },
    /// A newer version of Octavius wrote it.
    #[error("the manifest's {what} has format version {version}, this version reads up to {FORMAT_VERSION}")]
    Newer {
        /// What was read.
        what: &'static str,
        /// Its version.
        version: u32,
    },
    /// The root does not list 256 buckets.
    #[error("the manifest's root lists {0} buckets, {BUCKETS} are expected")]
    Buckets(usize),
    /// A change touches a bucket that was not given.
    #[error("bucket {0} of the manifest is needed and was not loaded")]
    NotLoaded(u8),
    /// Two entries have one name, without regard to case.
    #[error("job `{0}` is in the manifest twice")]
    Duplicate(JobName),
}

/// The bucket that a job's name falls into: the first byte of SHA-256 of the folded name.
#[must_use]
pub fn bucket_of(name: &JobName) -> u8 {
    Digest::of(name.folded().as_bytes()).as_bytes()[0]
}

/// The entries that fall into one bucket, sorted by folded name.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Bucket {
    entries: Vec<Entry>,
}

#[derive(Serialize, Deserialize)]
struct StoredBucket<E> {
    format_version: u32,
    entries: E,
}

impl Bucket {
    /// The entries, sorted by folded name.
    #[must_use]
    pub fn entries(&self) -> &[Entry] {
        &self.entries
    }

    /// The job of this name, without regard to case.
    #[must_use]
    pub fn get(&self, name: &JobName) -> Option<&Entry> {
        let folded = name.folded();
        self.entries.iter().find(|entry| entry.name.folded() == folded)
    }

    /// The digest of what the bucket says, which covers names and digests only: a job that moved to another line is the same job.
    #[must_use]
    pub fn content(&self) -> Digest {
        let mut bytes = Vec::with_capacity(self.entries.len() * 64);
        for entry in &self.entries {
            bytes.extend_from_slice(entry.name.as_str().as_bytes());
            bytes.push(0);
            bytes.extend_from_slice(entry.digest.as_bytes());
        }
        Digest::of(&bytes)
    }

    /// The stored form; `None` for an empty bucket, which is not stored.
    #[must_use]
    pub fn to_bytes(&self) -> Option<Vec<u8>> {
        let stored = StoredBucket { format_version: FORMAT_VERSION, entries: &self.entries };
        (!self.entries.is_empty()).then(|| to_json(&stored))
    }

    /// Reads the stored form.
    ///
    /// # Errors
    /// Where the bytes are not a bucket, or a newer version wrote them.
    pub fn from_bytes(bytes: &[u8]) -> Result<Self, ManifestError> {
        let what = "bucket";
        let malformed = |source| ManifestError::Malformed { what, source };
        check_version(bytes, what)?;
        let stored: StoredBucket<Vec<Entry>> = serde_json::from_slice(bytes).map_err(malformed)?;
        Self::new(stored.entries)
    }

    fn new(mut entries: Vec<Entry>) -> Result<Self, ManifestError> {
        entries.sort_by_cached_key(|entry| entry.name.folded());
        if let Some(pair) = entries.windows(2).find(|pair| pair[0].name.folded() == pair[1].name.folded()) {
            return Err(ManifestError::Duplicate(pair[1].name.clone()));
        }
        Ok(Self { entries })
    }
}

fn to_json(value: &impl Serialize) -> Vec<u8> {
    #[expect(clippy::expect_used, reason = "strings, numbers and lists always have a JSON form")]
    serde_json::to_vec(value).expect("a manifest has a JSON form")
}

fn check_version(bytes: &[u8], what: &'static str) -> Result<(), ManifestError> {
    #[derive(Deserialize)]
    struct Version {
        format_version: u32,
    }
    let Version { format_version } = serde_json::from_slice(bytes).map_err(|source| ManifestError::Malformed { what, source })?;
    if format_version > FORMAT_VERSION { Err(ManifestError::Newer { what, version: format_version }) } else { Ok(()) }
}

/// What a root says about one bucket.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct BucketRef {
    /// The digest of the bucket's names and definitions, see [`Bucket::content`].
    pub content: Digest,
    /// The digest of the bucket's stored bytes; `None` for an empty bucket.
    pub blob: Option<Digest>,
}

impl BucketRef {
    fn of(bucket: &Bucket) -> Self {
        Self { content: bucket.content(), blob: bucket.to_bytes().map(|bytes| Digest::of(&bytes)) }
    }
}

/// The root of a manifest: what a revision names.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Root {
    jobs: u32,
    buckets: Vec<BucketRef>,
}

#[derive(Serialize, Deserialize)]
struct StoredRoot<B> {
    format_version: u32,
    jobs: u32,
    buckets: B,
}

impl Default for Root {
    /// The root of a manifest without jobs.
    fn default() -> Self {
        Self { jobs: 0, buckets: vec![BucketRef::of(&Bucket::default()); BUCKETS] }
    }
}

impl Root {
    /// How many jobs the manifest holds.
    #[must_use]
    pub const fn jobs(&self) -> u32 {
        self.jobs
    }

    /// What it says about a bucket.
    #[must_use]
    pub fn bucket(&self, index: u8) -> BucketRef {
        self.buckets[usize::from(index)]
    }

    /// The digests of all bucket blobs there are.
    pub fn blobs(&self) -> impl Iterator<Item = (u8, Digest)> {
        (0u8..=u8::MAX).zip(&self.buckets).filter_map(|(index, bucket)| Some((index, bucket.blob?)))
    }

    /// The buckets whose jobs or definitions are not the same in `other`.
    #[must_use]
    pub fn differing(&self, other: &Self) -> Vec<u8> {
        (0u8..=u8::MAX).filter(|&index| self.bucket(index).content != other.bucket(index).content).collect()
    }

    /// The stored form.
    #[must_use]
    pub fn to_bytes(&self) -> Vec<u8> {
        to_json(&StoredRoot { format_version: FORMAT_VERSION, jobs: self.jobs, buckets: &self.buckets })
    }

    /// The digest of the stored form, which names the manifest.
    #[must_use]
    pub fn digest(&self) -> Digest {
        Digest::of(&self.to_bytes())
    }

    /// Reads the stored form.
    ///
    /// # Errors
    /// Where the bytes are not a root, do not list 256 buckets, or a newer version wrote them.
    pub fn from_bytes(bytes: &[u8]) -> Result<Self, ManifestError> {
        let what = "root";
        check_version(bytes, what)?;
        let stored: StoredRoot<Vec<BucketRef>> =
            serde_json::from_slice(bytes).map_err(|source| ManifestError::Malformed { what, source })?;
        if stored.buckets.len() != BUCKETS {
            return Err(ManifestError::Buckets(stored.buckets.len()));
        }
        Ok(Self { jobs: stored.jobs, buckets: stored.buckets })
    }

    /// The buckets that putting or removing jobs of these names touches, each once.
    #[must_use]
    pub fn touched<'a>(names: impl IntoIterator<Item = &'a JobName>) -> BTreeSet<u8> {
        names.into_iter().map(bucket_of).collect()
    }

    /// The manifest after a change. `loaded` holds the present content of every touched bucket that is not empty. Jobs in `put` take
    /// the place of the ones of the same name; names in `removed` that are not there are passed over.
    ///
    /// # Errors
    /// Where a bucket is needed that `loaded` does not hold, or `put` holds one name twice.
    pub fn with_changes(
        &self,
        loaded: &BTreeMap<u8, Bucket>,
        put: &[Entry],
        removed: &[JobName],
    ) -> Result<Changed, ManifestError> {
        let mut changes: BTreeMap<u8, (Vec<&Entry>, BTreeSet<String>)> = BTreeMap::new();
        for entry in put {
            changes.entry(bucket_of(&entry.name)).or_default().0.push(entry);
        }
        for name in removed {
            changes.entry(bucket_of(name)).or_default().1.insert(name.folded());
        }
        let mut root = self.clone();
        let mut buckets = BTreeMap::new();
        for (index, (put, mut gone)) in changes {
            let before = match loaded.get(&index) {
                Some(bucket) => bucket.entries(),
                None if self.bucket(index).blob.is_none() => &[],
                None => return Err(ManifestError::NotLoaded(index)),
            };
            gone.extend(put.iter().map(|entry| entry.name.folded()));
            let kept = before.iter().filter(|entry| !gone.contains(&entry.name.folded()));
            let bucket = Bucket::new(kept.chain(put).cloned().collect())?;
            root.jobs = (root.jobs + count(&bucket)).saturating_sub(u32::try_from(before.len()).unwrap_or(u32::MAX));
            root.buckets[usize::from(index)] = BucketRef::of(&bucket);
            buckets.insert(index, bucket);
        }
        Ok(Changed { root, buckets })
    }
}

fn count(bucket: &Bucket) -> u32 {
    u32::try_from(bucket.entries.len()).unwrap_or(u32::MAX)
}

/// What a change of a manifest writes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Changed {
    /// The new root.
    pub root: Root,
    /// The buckets that were touched, in their new form.
    pub buckets: BTreeMap<u8, Bucket>,
}

impl Changed {
    /// The blobs to write, by digest: touched buckets that are not empty, and the root.
    pub fn blobs(&self) -> impl Iterator<Item = (Digest, Vec<u8>)> {
        let buckets = self.buckets.values().filter_map(Bucket::to_bytes);
        buckets.chain([self.root.to_bytes()]).map(|bytes| (Digest::of(&bytes), bytes))
    }
}

/// A whole manifest in memory.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Manifest {
    root: Root,
    buckets: BTreeMap<u8, Bucket>,
}

impl Manifest {
    /// The manifest of these jobs.
    ///
    /// # Errors
    /// Where two of them have one name, without regard to case.
    pub fn build(entries: impl IntoIterator<Item = Entry>) -> Result<Self, ManifestError> {
        let mut sorted: BTreeMap<u8, Vec<Entry>> = BTreeMap::new();
        for entry in entries {
            sorted.entry(bucket_of(&entry.name)).or_default().push(entry);
        }
        let mut root = Root::default();
        let mut buckets = BTreeMap::new();
        for (index, entries) in sorted {
            let bucket = Bucket::new(entries)?;
            root.jobs += count(&bucket);
            root.buckets[usize::from(index)] = BucketRef::of(&bucket);
            buckets.insert(index, bucket);
        }
        Ok(Self { root, buckets })
    }

    /// Its root.
    #[must_use]
    pub const fn root(&self) -> &Root {
        &self.root
    }

    /// Its buckets that are not empty.
    #[must_use]
    pub const fn buckets(&self) -> &BTreeMap<u8, Bucket> {
        &self.buckets
    }

    /// The job of this name, without regard to case.
    #[must_use]
    pub fn get(&self, name: &JobName) -> Option<&Entry> {
        self.buckets.get(&bucket_of(name))?.get(name)
    }

    /// All jobs, bucket by bucket.
    pub fn entries(&self) -> impl Iterator<Item = &Entry> {
        self.buckets.values().flat_map(Bucket::entries)
    }

    /// The manifest after a change.
    ///
    /// # Errors
    /// Where `put` holds one name twice.
    pub fn with_changes(&self, put: &[Entry], removed: &[JobName]) -> Result<Self, ManifestError> {
        let changed = self.root.with_changes(&self.buckets, put, removed)?;
        let mut buckets = self.buckets.clone();
        buckets.extend(changed.buckets);
        buckets.retain(|_, bucket| !bucket.entries.is_empty());
        Ok(Self { root: changed.root, buckets })
    }

    /// Everything to store, by digest: the buckets that are not empty, and the root.
    pub fn blobs(&self) -> impl Iterator<Item = (Digest, Vec<u8>)> {
        let buckets = self.buckets.values().filter_map(Bucket::to_bytes);
        buckets.chain([self.root.to_bytes()]).map(|bytes| (Digest::of(&bytes), bytes))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn entry(name: &str, content: u8) -> Entry {
        Entry {
            name: JobName::new(name).unwrap(),
            digest: Digest::of(&[content]),
            file: "a.yaml".into(),
            line: 1,
            changed_in: 1,
            inherited: Vec::new(),
        }
    }

    #[test]
    fn an_empty_manifest_is_the_same_everywhere_and_has_no_bucket_blobs() {
        let manifest = Manifest::build([]).unwrap();
        assert_eq!(*manifest.root(), Root::default());
        assert_eq!(manifest.blobs().count(), 1);
        assert_eq!(
            Root::default().bucket(7).content.to_string(),
            "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855"
        );
    }

    #[test]
    fn a_root_fits_one_value_of_the_store() {
        let entries = (0..10_000).map(|number| entry(&format!("job-{number}"), 1));
        let manifest = Manifest::build(entries).unwrap();
        assert_eq!(manifest.root().jobs(), 10_000);
        assert!(manifest.blobs().all(|(_, bytes)| bytes.len() <= octavius_core::limit::STORED_VALUE_BYTES));
    }

    #[test]
    fn a_moved_line_is_no_difference_and_a_changed_definition_is_one() {
        let before = Manifest::build([entry("a", 1), entry("b", 1)]).unwrap();
        let mut moved = entry("a", 1);
        moved.line = 9;
        let after = before.with_changes(&[moved], &[]).unwrap();
        assert!(before.root().differing(after.root()).is_empty());
        assert_ne!(before.root().digest(), after.root().digest());
        let after = before.with_changes(&[entry("A", 2)], &[]).unwrap();
        assert_eq!(before.root().differing(after.root()), [bucket_of(&JobName::new("a").unwrap())]);
        assert_eq!(after.root().jobs(), 2);
    }

    #[test]
    fn names_that_differ_in_case_only_are_one_name() {
        assert!(matches!(Manifest::build([entry("a", 1), entry("A", 1)]), Err(ManifestError::Duplicate(_))));
    }

    #[test]
    fn a_change_needs_the_buckets_it_touches() {
        let manifest = Manifest::build([entry("a", 1)]).unwrap();
        let result = manifest.root().with_changes(&BTreeMap::new(), &[entry("a", 2)], &[]);
        assert!(matches!(result, Err(ManifestError::NotLoaded(_))));
    }

    #[test]
    fn newer_and_broken_bytes_are_refused() {
        assert!(matches!(Root::from_bytes(br#"{"format_version":2}"#), Err(ManifestError::Newer { version: 2, .. })));
        assert!(matches!(Root::from_bytes(br#"{"format_version":1,"jobs":0,"buckets":[]}"#), Err(ManifestError::Buckets(0))));
        assert!(matches!(Bucket::from_bytes(b"{"), Err(ManifestError::Malformed { .. })));
    }

    proptest! {
        #[test]
        fn changing_is_building_anew(
            before in proptest::collection::btree_map("[a-c]{1,3}", 0u8..3, 0..20),
            put in proptest::collection::btree_map("[a-c]{1,3}", 0u8..3, 0..10),
            removed in proptest::collection::btree_set("[a-c]{1,3}", 0..10),
        ) {
            let entries = |jobs: &BTreeMap<String, u8>| jobs.iter().map(|(name, content)| entry(name, *content)).collect::<Vec<_>>();
            let names: Vec<_> = removed.iter().map(|name| JobName::new(name.as_str()).unwrap()).collect();
            let changed = Manifest::build(entries(&before)).unwrap().with_changes(&entries(&put), &names).unwrap();
            let mut expected = before.clone();
            expected.retain(|name, _| !removed.contains(name));
            expected.extend(put);
            prop_assert_eq!(&changed, &Manifest::build(entries(&expected)).unwrap());
            let root = Root::from_bytes(&changed.root().to_bytes()).unwrap();
            prop_assert_eq!(&root, changed.root());
            for bucket in changed.buckets().values() {
                prop_assert_eq!(&Bucket::from_bytes(&bucket.to_bytes().unwrap()).unwrap(), bucket);
            }
        }
    }
}
