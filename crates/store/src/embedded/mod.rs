//! The backend that is one file on disk, for single machines, development and demonstrations.
//!
//! One thread owns all writing ([`writer`]): whatever waits while the disk is busy with one group of transactions becomes the next
//! group, so that the cost of a durable write is shared by everyone who waits for one. Reads go to the file's newest snapshot directly
//! and wait for nobody. The last changes are kept in memory ([`feed`]): watches are fed from there, and older revisions are read by
//! undoing them.

mod feed;
mod file;
mod lease;
mod read;
mod watch;
mod writer;

#[cfg(test)]
mod tests;

use std::fmt;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, RwLock, mpsc};
use std::thread::JoinHandle;
use std::time::Duration;

use async_trait::async_trait;
use bytes::Bytes;
use redb::{Database, ReadableDatabase as _};
use tokio::sync::oneshot;

use crate::api::{Commit, Entry, Key, Page, Presence, Range, Revision, Store, StoreError, Txn, Usage, Watch};
use crate::failing;
use feed::Feed;
use file::{Failure, Opener};
use lease::{Lease, Leases};
use watch::Watching;
use writer::{Request, Writer};

/// How an embedded store uses memory.
#[derive(Debug, Clone, Copy)]
pub struct EmbeddedOptions {
    /// Bytes of the file that are kept in memory. 16 MiB by default, because a whole controller is to stay below 60 MiB.
    pub cache_bytes: usize,
    /// Most changes that are kept for watches and for pages of an older revision. 10,000 by default.
    pub history_changes: usize,
    /// Most bytes of those changes, old and new values together. 8 MiB by default.
    pub history_bytes: usize,
}

impl Default for EmbeddedOptions {
    fn default() -> Self {
        Self { cache_bytes: 16 * 1024 * 1024, history_changes: 10_000, history_bytes: 8 * 1024 * 1024 }
    }
}

/// Opens the store in `dir`, which is one file, `octavius.redb`. Folder and file are created where they are missing, for their owner
/// only. What was announced by the process that had it open before is gone.
///
/// After a crash the whole file is checked first, which takes about two seconds per gigabyte. The store closes, after everything that
/// was asked of it is answered, when the last handle is dropped; that drop waits for the disk.
///
/// # Errors
/// [`StoreError::Unavailable`] where the folder cannot be used or another process has it open, [`StoreError::Full`] where there is no
/// room to create it, [`StoreError::Unreadable`] where the file is damaged, is something else, or was written by a newer version. All
/// name the folder.
pub fn open_embedded(dir: &Path, options: EmbeddedOptions) -> Result<Arc<dyn Store>, StoreError> {
    let store = Embedded::open(file::opener(dir, options.cache_bytes), &options);
    let mut store = store.map_err(|failure| failure.at(dir))?;
    store.path = Some(dir.join(file::FILE));
    Ok(Arc::new(store))
}

/// A handle on the store; the last one dropped closes it.
struct Embedded {
    shared: Arc<Shared>,
    writer: Option<JoinHandle<()>>,
    /// The file; `None` where tests put the store on something else.
    path: Option<PathBuf>,
}

/// What the handle, the writer, the watches and the presences share.
struct Shared {
    /// The open file; `None` while it could not be opened again after a fault, and when closed.
    database: RwLock<Option<Database>>,
    feed: Mutex<Feed>,
    leases: Mutex<Leases>,
    /// The way to the writer; `None` when closed. Its length is bounded by the number of callers, each of which waits for its answer.
    queue: Mutex<Option<mpsc::Sender<Request>>>,
}

/// The lock, whether or not a thread died holding it: what these locks guard is changed in single steps.
fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// What every call on a closed store gets.
fn closed() -> StoreError {
    StoreError::Unavailable("it is closed".to_owned())
}

/// What a read gets while the file cannot be opened again.
fn not_open() -> StoreError {
    StoreError::Unavailable("its file is not open".to_owned())
}

impl Shared {
    /// Hands the writer a request and waits for the answer. The request is carried out even where the caller stops waiting.
    async fn ask<T>(&self, request: impl FnOnce(oneshot::Sender<Result<T, StoreError>>) -> Request) -> Result<T, StoreError> {
        let (reply, answer) = oneshot::channel();
        self.send(request(reply))?;
        answer.await.unwrap_or_else(|_| Err(StoreError::Unknown("the writer has stopped".to_owned())))
    }

    fn send(&self, request: Request) -> Result<(), StoreError> {
        let queue = lock(&self.queue);
        queue.as_ref().ok_or_else(closed)?.send(request).map_err(|_| StoreError::Unavailable("the writer has stopped".to_owned()))
    }

    /// Runs `read` on the newest snapshot. Reads block their thread rather than going to a pool of threads: nearly all are served
    /// from memory within microseconds, a page is bounded, and nothing here waits for a writer.
    fn read<T>(&self, read: impl FnOnce(&redb::ReadTransaction) -> Result<T, Failure>) -> Result<T, StoreError> {
        let database = self.database.read().unwrap_or_else(PoisonError::into_inner);
        let database = database.as_ref().ok_or_else(not_open)?;
        let result = database.begin_read().map_err(Failure::from).and_then(|snapshot| read(&snapshot));
        result.map_err(|failure| {
            if failure.needs_reopening() {
                // The writer may be gone, in which case there is nobody to mend it.
                let _ = self.send(Request::Mend);
            }
            failure.into_error()
        })
    }
}

impl Embedded {
    /// Opens a store on whatever `opener` opens, and again where a fault of the disk makes that necessary.
    fn open(opener: Opener, options: &EmbeddedOptions) -> Result<Self, Failure> {
        let (database, revision) = file::open(&opener)?;
        let (sender, requests) = mpsc::channel();
        let shared = Arc::new(Shared {
            database: RwLock::new(Some(database)),
            feed: Mutex::new(Feed::new(revision, options.history_changes, options.history_bytes)),
            leases: Mutex::new(Leases::default()),
            queue: Mutex::new(Some(sender)),
        });
        let writer = Writer::new(Arc::clone(&shared), opener, requests, revision);
        let writer = std::thread::Builder::new().name("octavius-store".to_owned()).spawn(move || writer.run());
        Ok(Self { shared, writer: Some(writer.map_err(Failure::from)?), path: None })
    }
}

impl Drop for Embedded {
    fn drop(&mut self) {
        // Without a sender left, the writer ends once it has answered what is queued.
        drop(lock(&self.shared.queue).take());
        if let Some(writer) = self.writer.take().filter(|writer| writer.thread().id() != std::thread::current().id()) {
            // A writer that panicked has already said so, and its callers got errors.
            let _ = writer.join();
        }
    }
}

impl fmt::Debug for Embedded {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Embedded").field("revision", &lock(&self.shared.feed).published()).finish_non_exhaustive()
    }
}

#[async_trait]
impl Store for Embedded {
    async fn get(&self, key: &Key) -> Result<Option<Entry>, StoreError> {
        self.shared.read(|snapshot| read::get(snapshot, key))
    }

    async fn range(&self, range: &Range) -> Result<Page, StoreError> {
        self.shared.read(|snapshot| read::range(snapshot, &self.shared.feed, range))
    }

    async fn commit(&self, txn: Txn) -> Result<Commit, StoreError> {
        txn.check()?;
        failing::commit(self.shared.ask(|reply| Request::Commit { txn, reply })).await
    }

    async fn watch(&self, prefix: &Key, after: Revision) -> Result<Box<dyn Watch>, StoreError> {
        Ok(Box::new(Watching::begin(Arc::clone(&self.shared), prefix, after)?))
    }

    async fn announce(&self, key: Key, value: Bytes, ttl: Duration) -> Result<Box<dyn Presence>, StoreError> {
        Txn::new().put(key.clone(), value.clone()).check()?;
        // More than anyone means, and still a time that can be added to any other.
        let ttl = ttl.min(Duration::from_secs(365 * 24 * 3600));
        let id = self.shared.ask(|reply| Request::Announce { key: key.clone(), value, ttl, reply }).await?;
        Ok(Box::new(Lease { shared: Arc::clone(&self.shared), key, id }))
    }

    async fn usage(&self) -> Result<Usage, StoreError> {
        // How much of the file holds something is known only to who visits every page, which takes a second per gigabyte; and without a quota
        // nobody needs to know. Asked for every few seconds, only its length is told.
        let length =
            self.path.as_ref().map(|path| path.metadata()).transpose().map_err(|error| Failure::from(error).into_error())?;
        let bytes = length.map_or(0, |metadata| metadata.len());
        Ok(Usage { allocated_bytes: bytes, used_bytes: bytes, quota_bytes: None, full: false })
    }

    async fn compact(&self, _: Revision) -> Result<(), StoreError> {
        Ok(()) // old revisions are kept in memory only, within bounds
    }

    async fn reclaim(&self) -> Result<(), StoreError> {
        // What is free in the file is used again, and a disk that was full takes writes as soon as it has room. Making the file smaller
        // would need it without readers, and rewrites most of it: a machine's disk is not worth that, it has no quota.
        Ok(())
    }
}
