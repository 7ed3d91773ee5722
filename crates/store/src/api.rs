//! The trait and the types that pass through it.

use std::collections::HashSet;
use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use bytes::Bytes;
use octavius_core::limit::STORED_VALUE_BYTES;

/// A store's revision: how many transactions it has seen. Never falls, not even over a restart.
pub type Revision = u64;

/// A key: a path of ASCII text, like `exec/0k3v7q2m8d5x1n4r6t9w0b9f2q`. [`crate::key`] makes them.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Key(Arc<str>);

impl Key {
    /// Longest key in bytes. Ours stay far below; it keeps a key within one page of the embedded file.
    pub const MAX_BYTES: usize = 2048;

    /// A key of this text.
    #[must_use]
    pub fn new(text: impl Into<Arc<str>>) -> Self {
        Self(text.into())
    }

    /// The key's text.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl fmt::Display for Key {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(&self.0)
    }
}

/// A key's value and where it comes from.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Entry {
    /// The key.
    pub key: Key,
    /// The value.
    pub value: Bytes,
    /// The revision at which the key came into being.
    pub created: Revision,
    /// The revision that last wrote it. Conditions name this one.
    pub modified: Revision,
}

/// What a transaction asks of a key.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Condition {
    /// The key.
    pub key: Key,
    /// The revision that last wrote it, 0 where it must not exist.
    pub modified: Revision,
}

/// A write.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Change {
    /// Writes a value.
    Put(Key, Bytes),
    /// Removes a key; removing one that is not there does nothing.
    Delete(Key),
}

impl Change {
    /// The key that is written.
    #[must_use]
    pub fn key(&self) -> &Key {
        match self {
            Self::Put(key, _) | Self::Delete(key) => key,
        }
    }
}

/// A transaction: where all conditions hold, all changes are made; otherwise none, and the keys in `otherwise` are read instead.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Txn {
    /// What must hold.
    pub conditions: Vec<Condition>,
    /// What is then written. No key stands here twice.
    pub changes: Vec<Change>,
    /// What is read where a condition does not hold.
    pub otherwise: Vec<Key>,
}

impl Txn {
    /// Most conditions, changes and reads together. Etcd takes 128 operations; several transactions are grouped into one of its own.
    pub const MAX_OPERATIONS: usize = 100;

    /// Most bytes of values in one transaction. Etcd takes requests of 1.5 MiB.
    pub const MAX_BYTES: usize = 512 * 1024;

    /// An empty transaction.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// Asks that `key` was last written at `modified`.
    #[must_use]
    pub fn when(mut self, key: Key, modified: Revision) -> Self {
        self.conditions.push(Condition { key, modified });
        self
    }

    /// Asks that the entry is still as it was read.
    #[must_use]
    pub fn unchanged(self, entry: &Entry) -> Self {
        self.when(entry.key.clone(), entry.modified)
    }

    /// Asks that `key` does not exist.
    #[must_use]
    pub fn absent(self, key: Key) -> Self {
        self.when(key, 0)
    }

    /// Writes `value` under `key`.
    #[must_use]
    pub fn put(mut self, key: Key, value: impl Into<Bytes>) -> Self {
        self.changes.push(Change::Put(key, value.into()));
        self
    }

    /// Removes `key`.
    #[must_use]
    pub fn delete(mut self, key: Key) -> Self {
        self.changes.push(Change::Delete(key));
        self
    }

    /// Reads `key` where a condition does not hold.
    #[must_use]
    pub fn or_read(mut self, key: Key) -> Self {
        self.otherwise.push(key);
        self
    }

    /// Bytes of the values that it writes.
    #[must_use]
    pub fn value_bytes(&self) -> usize {
        self.changes.iter().map(|change| if let Change::Put(_, value) = change { value.len() } else { 0 }).sum()
    }

    /// Whether it keeps within the limits that all backends hold to. Backends ask this before anything else.
    ///
    /// # Errors
    /// [`StoreError::Invalid`], naming the key and the limit.
    pub fn check(&self) -> Result<(), StoreError> {
        let invalid = |why: String| Err(StoreError::Invalid(why));
        let operations = self.conditions.len() + self.changes.len() + self.otherwise.len();
        if operations > Self::MAX_OPERATIONS {
            return invalid(format!("{operations} operations, at most {} are possible", Self::MAX_OPERATIONS));
        }
        let bytes = self.value_bytes();
        if bytes > Self::MAX_BYTES {
            return invalid(format!("{bytes} bytes of values, at most {} are possible", Self::MAX_BYTES));
        }
        let keys = self.conditions.iter().map(|condition| &condition.key);
        for key in keys.chain(self.changes.iter().map(Change::key)).chain(&self.otherwise) {
            if key.as_str().is_empty() || key.as_str().len() > Key::MAX_BYTES {
                return invalid(format!("a key of {} bytes, 1 to {} are possible", key.as_str().len(), Key::MAX_BYTES));
            }
        }
        let mut written = HashSet::with_capacity(self.changes.len());
        for change in &self.changes {
            if !written.insert(change.key()) {
                return invalid(format!("{} is written twice", change.key()));
            }
            match change {
                Change::Put(key, value) if value.len() > STORED_VALUE_BYTES => {
                    return invalid(format!("{key}: {} bytes, at most {STORED_VALUE_BYTES} are possible", value.len()));
                }
                _ => {}
            }
        }
        Ok(())
    }
}

/// What became of a transaction. A condition that does not hold is an answer, not a failure.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Commit {
    /// Written, durably, as this revision.
    Done(Revision),
    /// Nothing was written; here is what `otherwise` asked for, in its order.
    Conflict(Vec<Option<Entry>>),
}

/// Keys to read, in their order.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Range {
    /// What the keys start with.
    pub prefix: Key,
    /// Only keys greater than this one: the last of the page before.
    pub after: Option<Key>,
    /// Most entries, 1 or more. A page also ends before 4 MiB of values.
    pub limit: usize,
    /// The revision to read at, so that several pages show one state; `None` for now.
    pub at: Option<Revision>,
}

impl Range {
    /// Most bytes of values in one page.
    pub const MAX_BYTES: usize = 4 * 1024 * 1024;

    /// All keys that start with `prefix`, in pages of `limit`.
    #[must_use]
    pub fn of(prefix: Key, limit: usize) -> Self {
        Self { prefix, after: None, limit, at: None }
    }

    /// The page after `page`, at the same revision; `None` where there is none.
    #[must_use]
    pub fn next(&self, page: &Page) -> Option<Self> {
        let last = page.entries.last().filter(|_| page.more)?;
        Some(Self { after: Some(last.key.clone()), at: Some(page.revision), ..self.clone() })
    }
}

/// A page of entries.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Page {
    /// The entries, in order of their keys.
    pub entries: Vec<Entry>,
    /// Whether keys of the range follow.
    pub more: bool,
    /// The revision that the page shows.
    pub revision: Revision,
}

/// One change of one key, as a watcher sees it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Event {
    /// The key has a new value.
    Put(Entry),
    /// The key is gone.
    Delete(Key),
}

impl Event {
    /// The key that changed.
    #[must_use]
    pub fn key(&self) -> &Key {
        match self {
            Self::Put(entry) => &entry.key,
            Self::Delete(key) => key,
        }
    }
}

/// All changes that one transaction made under a watched prefix.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct WatchBatch {
    /// The transaction's revision.
    pub revision: Revision,
    /// Its changes there.
    pub events: Vec<Event>,
}

/// A running watch.
#[async_trait]
pub trait Watch: Send {
    /// The next transaction's changes, in order of revisions, none left out.
    ///
    /// # Errors
    /// [`StoreError::Compacted`] where changes were missed: list again and watch from there. Any error ends the watch.
    async fn next(&mut self) -> Result<WatchBatch, StoreError>;
}

/// A key that lives as long as its owner renews it. A hint about who is there, never a lock.
#[async_trait]
pub trait Presence: Send + Sync {
    /// Renews it for another time to live.
    ///
    /// # Errors
    /// [`StoreError::PresenceLost`] where it had already vanished; announce again.
    async fn renew(&self) -> Result<(), StoreError>;

    /// Removes the key now. Dropping a presence without this lets it run out.
    ///
    /// # Errors
    /// Where the store does not answer; the key then vanishes at the end of its time to live.
    async fn withdraw(self: Box<Self>) -> Result<(), StoreError>;
}

/// Why a store did not answer.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum StoreError {
    /// The store cannot be reached or does not answer in time. A transaction was not made.
    #[error("the store is not available: {0}")]
    Unavailable(String),
    /// The answer was lost: the transaction may have been made. Read again before repeating it.
    #[error("the store's answer was lost, the write may have happened: {0}")]
    Unknown(String),
    /// The revision asked for is not kept any more.
    #[error("revision {asked} is not kept any more, the oldest is {oldest}")]
    Compacted {
        /// What was asked for.
        asked: Revision,
        /// The oldest that can be had.
        oldest: Revision,
    },
    /// There is no room left; only removals work.
    #[error("the store is full: {0}")]
    Full(String),
    /// The store does not open in the way that was asked for, and will not until something is put right.
    #[error("{why}")]
    Refused {
        /// What has to be put right.
        refusal: Refusal,
        /// What was said, and by whom.
        why: String,
    },
    /// A presence had vanished before it was renewed.
    #[error("the presence had run out")]
    PresenceLost,
    /// The transaction breaks a limit or names a key twice: a fault of ours.
    #[error("not a transaction: {0}")]
    Invalid(String),
    /// What is stored cannot be read: damaged, or written by a newer version.
    #[error("a stored record cannot be read: {0}")]
    Unreadable(String),
}

/// What has to be put right before a store opens.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Refusal {
    /// The options: an address, or a certificate's file.
    Options,
    /// User or password; it may be that none was given.
    Credentials,
    /// What the user may do under our prefix.
    Permission,
    /// A user was given, and the store knows no users.
    NoUsers,
}

/// How much room a store takes. Of several members, the one that has the least left.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Usage {
    /// Bytes of the file, what is free within it included: this is what a quota counts.
    pub allocated_bytes: u64,
    /// Of these, bytes that hold something; a store that would have to count them and has no quota says all.
    pub used_bytes: u64,
    /// Most bytes of the file; `None` where only the disk sets a bound.
    pub quota_bytes: Option<u64>,
    /// Whether it has run full and takes removals only, until [`Store::reclaim`].
    pub full: bool,
}

/// A store. Cheap to share: all methods take `&self`.
#[async_trait]
pub trait Store: fmt::Debug + Send + Sync + 'static {
    /// One key's entry.
    ///
    /// # Errors
    /// Where the store does not answer.
    async fn get(&self, key: &Key) -> Result<Option<Entry>, StoreError>;

    /// A page of keys.
    ///
    /// # Errors
    /// [`StoreError::Compacted`] where `range.at` is not kept any more: begin again at the first page.
    async fn range(&self, range: &Range) -> Result<Page, StoreError>;

    /// Makes a transaction, or tells what stands against it. Once it answers [`Commit::Done`], the changes survive any crash.
    ///
    /// # Errors
    /// [`StoreError::Unknown`] where it may have been made all the same; with all other errors it was not.
    async fn commit(&self, txn: Txn) -> Result<Commit, StoreError>;

    /// Watches all keys that start with `prefix` for changes of revisions greater than `after`.
    ///
    /// # Errors
    /// [`StoreError::Compacted`] where those changes are not kept any more: list again and watch from there.
    async fn watch(&self, prefix: &Key, after: Revision) -> Result<Box<dyn Watch>, StoreError>;

    /// Puts `value` under `key` for `ttl`, to be renewed. Where the key exists, it is taken over.
    ///
    /// # Errors
    /// Where the store does not answer.
    async fn announce(&self, key: Key, value: Bytes, ttl: Duration) -> Result<Box<dyn Presence>, StoreError>;

    /// How much room the store takes.
    ///
    /// # Errors
    /// Where the store does not answer.
    async fn usage(&self) -> Result<Usage, StoreError>;

    /// Forgets what was replaced or removed at or before `until`; the present values stay. Revisions before it cannot be read or watched
    /// from afterwards. A backend may forget earlier by itself. Asking for what is forgotten already does nothing.
    ///
    /// # Errors
    /// Where the store does not answer.
    async fn compact(&self, until: Revision) -> Result<(), StoreError>;

    /// Gives room that removals and compaction have freed back, and takes writes again where the store had run full and has room now.
    /// Costly: a member of the store does not answer for as long as it works on it. Members take turns.
    ///
    /// # Errors
    /// Where the store does not answer.
    async fn reclaim(&self) -> Result<(), StoreError>;
}
