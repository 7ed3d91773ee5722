//! The archive of logs: an object store, a folder or S3 and what speaks like it, that all controllers reach. Logs are large and written once,
//! and a store of small values that everything waits for is no place for them.
//!
//! Objects are named by what they hold, so that writing one twice does no harm, and are taken for written only after they were read back.

mod object;

use std::fmt;
use std::path::Path as FilePath;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use bytes::Bytes;
use futures::TryStreamExt as _;
use object_store::aws::AmazonS3Builder;
use object_store::local::LocalFileSystem;
use object_store::path::Path;
use object_store::prefix::PrefixStore;
use object_store::{
    BackoffConfig, ClientOptions, ObjectStore, ObjectStoreExt as _, PutMode, PutOptions, PutPayload, RetryConfig,
};
use octavius_core::ExecutionId;
use octavius_failpoint::{ARCHIVE_PUT, ARCHIVE_PUT_DONE, reach};
use octavius_store::piece::Piece;
use octavius_store::record::{ArchiveRecord, LogObject};
use octavius_store::{Commit, Store, StoreError, Txn, codec, key};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio::task::spawn_blocking;
use url::Url;

use object::{Packed, pack, unpack};

/// The object that says whose archive it is.
const MARKER: &str = "octavius-archive";

/// Objects that are compressed and written at once: each takes up to some 10 MiB meanwhile.
const WRITES: usize = 4;

/// An object store that has not answered for so long does not answer: less than an executor waits for the answer to an append.
const ANSWER: Duration = Duration::from_secs(10);

/// After a failure the archive is not asked for so long, by those who can wait; doubled with each up to the longest.
const PAUSE: Duration = Duration::from_millis(500);
const LONGEST_PAUSE: Duration = Duration::from_secs(15);

/// Most bytes that are read at once, in whole parts: one reader's share of memory.
const READ_BYTES: u64 = 1024 * 1024;

/// Why the archive did not do what was asked.
#[derive(Debug, thiserror::Error)]
pub enum ArchiveError {
    /// The address is none that can be used.
    #[error("the archive {url} cannot be used: {problem}")]
    Address {
        /// The address, without its credentials.
        url: String,
        /// What is wrong.
        problem: String,
    },
    /// It does not answer, or refuses.
    #[error("the archive {url} does not answer: {problem}")]
    Unavailable {
        /// The address.
        url: String,
        /// What it says.
        problem: String,
    },
    /// An object is not what was written.
    #[error("the object {name} of the archive is damaged: {problem}")]
    Damaged {
        /// Its name.
        name: String,
        /// What is wrong with it.
        problem: String,
    },
    /// An object is not there.
    #[error("the object {name} is missing from the archive")]
    Missing {
        /// Its name.
        name: String,
    },
    /// The archive is another store's, or the store has another archive.
    #[error("the archive {url} is not this store's: {problem}")]
    Foreign {
        /// The address.
        url: String,
        /// What was found, and what to do.
        problem: String,
    },
    /// The store does not answer.
    #[error(transparent)]
    Store(#[from] StoreError),
}

/// An archive. A handle, cheap to clone.
#[derive(Clone)]
pub struct Archive {
    url: Arc<str>,
    objects: Arc<dyn ObjectStore>,
    writes: Arc<Semaphore>,
    down: Arc<Mutex<Down>>,
}

/// Since when, and until when, it is not asked.
#[derive(Debug, Default)]
struct Down {
    pause: Duration,
    until: Option<Instant>,
}

impl fmt::Debug for Archive {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.debug_struct("Archive").field("url", &self.url).finish_non_exhaustive()
    }
}

impl Archive {
    /// An archive at this address: a folder's path or `file:` URL, made where it is missing, or `s3://BUCKET/PREFIX`, with region, endpoint
    /// and credentials from the environment's `AWS_` variables, as Amazon's own tools read them. Nothing is asked of it yet.
    ///
    /// # Errors
    /// [`ArchiveError::Address`].
    pub fn open(address: &str) -> Result<Self, ArchiveError> {
        let wrong = |url: &str, problem: String| ArchiveError::Address { url: url.to_owned(), problem };
        let url = match Url::parse(address) {
            Ok(url) if url.scheme() != "file" => url,
            Ok(url) => {
                let folder = url.to_file_path().map_err(|()| wrong(address, "it names no folder of this machine".to_owned()))?;
                return Self::folder(&folder);
            }
            Err(_) => return Self::folder(FilePath::new(address)),
        };
        if url.scheme() != "s3" {
            return Err(wrong(url.as_str(), format!("{}: is not known; a folder, or s3://BUCKET/PREFIX", url.scheme())));
        }
        let told = url.as_str().to_owned();
        let retry = RetryConfig { max_retries: 2, retry_timeout: ANSWER, backoff: BackoffConfig::default() };
        let client = ClientOptions::new().with_timeout(ANSWER).with_connect_timeout(ANSWER / 2);
        let builder = AmazonS3Builder::from_env().with_url(url.as_str()).with_retry(retry);
        // What is meant for a server on this machine needs no TLS, and says so with its endpoint.
        let plain = std::env::var("AWS_ENDPOINT_URL").is_ok_and(|endpoint| endpoint.starts_with("http://"));
        let builder = builder.with_client_options(client.with_allow_http(plain));
        let store = builder.build().map_err(|error| wrong(&told, chain(&error)))?;
        let prefix = Path::parse(url.path()).map_err(|error| wrong(&told, chain(&error)))?;
        Ok(Self::over(told, Arc::new(PrefixStore::new(store, prefix))))
    }

    fn folder(folder: &FilePath) -> Result<Self, ArchiveError> {
        let told = folder.display().to_string();
        let wrong = |problem: String| ArchiveError::Address { url: told.clone(), problem };
        std::fs::create_dir_all(folder).map_err(|error| wrong(error.to_string()))?;
        let store = LocalFileSystem::new_with_prefix(folder).map_err(|error| wrong(chain(&error)))?;
        let store = store.with_fsync(true).with_automatic_cleanup(true);
        Ok(Self::over(told, Arc::new(store)))
    }

    fn over(url: String, objects: Arc<dyn ObjectStore>) -> Self {
        Self { url: url.into(), objects, writes: Arc::new(Semaphore::new(WRITES)), down: Arc::default() }
    }

    /// Where it is.
    #[must_use]
    pub fn url(&self) -> &str {
        &self.url
    }

    /// Makes sure that it is this store's archive, whose controllers have the id `controller`: an empty one becomes so. The marker has an id of
    /// its own besides, so that two folders of one name on two machines are not taken for one.
    pub(crate) async fn claim(&self, store: &dyn Store, controller: &str) -> Result<(), ArchiveError> {
        let foreign = |problem: String| ArchiveError::Foreign { url: self.url.to_string(), problem };
        let elsewhere = |known: &ArchiveRecord| {
            let first = &known.url;
            foreign(format!("the store's logs are in an archive that was at {first} when it was first used"))
        };
        let known: Option<ArchiveRecord> = store.get(&key::archive()).await?.as_ref().map(codec::decode).transpose()?;
        let marker = match (self.marker().await?, &known) {
            (Some(marker), _) => marker,
            (None, Some(known)) => return Err(elsewhere(known)),
            (None, None) => self.mark(controller).await?,
        };
        let (of, id) = marker.split_once(' ').unwrap_or((&marker, ""));
        if of != controller {
            return Err(foreign(format!(
                "its object {MARKER} names {of}, the store is {controller}: name another folder or prefix"
            )));
        }
        let known = match known {
            Some(known) => known,
            None => {
                let record = ArchiveRecord { id: id.to_owned(), url: self.url.to_string() };
                let txn = Txn::new().absent(key::archive()).put(key::archive(), codec::encode(&record)).or_read(key::archive());
                match store.commit(txn).await? {
                    Commit::Done(_) => {
                        tracing::info!(archive = %self.url, "the archive is this store's from now on");
                        record
                    }
                    Commit::Conflict(entries) => match entries.into_iter().flatten().next() {
                        Some(entry) => codec::decode(&entry)?,
                        None => return Err(StoreError::Unavailable("the archive's record came and went".to_owned()).into()),
                    },
                }
            }
        };
        if known.id == id { Ok(()) } else { Err(elsewhere(&known)) }
    }

    /// Looks whether it answers, and has its marker still.
    pub(crate) async fn look(&self) -> Result<(), ArchiveError> {
        match self.marker().await? {
            Some(_) => Ok(()),
            None => Err(ArchiveError::Missing { name: MARKER.to_owned() }),
        }
    }

    /// What the marker says: whose archive it is, and its id.
    async fn marker(&self) -> Result<Option<String>, ArchiveError> {
        let marker = Path::from(MARKER);
        match self.answer(&marker, async { self.objects.get(&marker).await?.bytes().await }).await {
            Ok(bytes) => Ok(Some(String::from_utf8_lossy(&bytes).trim().to_owned())),
            Err(ArchiveError::Missing { .. }) => Ok(None),
            Err(error) => Err(error),
        }
    }

    /// Marks an archive that has no marker; what the marker says then, which may be another controller's.
    async fn mark(&self, controller: &str) -> Result<String, ArchiveError> {
        let marker = Path::from(MARKER);
        let text = format!("{controller} {}\n", ExecutionId::generate());
        let create = async {
            let once = PutOptions { mode: PutMode::Create, ..PutOptions::default() };
            match self.objects.put_opts(&marker, text.clone().into(), once).await {
                // Somebody else was quicker; or it knows no such condition, and then the last one is right.
                Ok(_) | Err(object_store::Error::AlreadyExists { .. } | object_store::Error::Precondition { .. }) => Ok(()),
                Err(_) => self.objects.put(&marker, text.into()).await.map(drop),
            }
        };
        self.answer(&marker, create).await?;
        self.marker().await?.ok_or_else(|| ArchiveError::Missing { name: MARKER.to_owned() })
    }

    /// Refuses to go on without the archive that the store's logs are in.
    pub(crate) async fn check_absent(store: &dyn Store) -> Result<(), ArchiveError> {
        let Some(entry) = store.get(&key::archive()).await? else { return Ok(()) };
        let known: ArchiveRecord = codec::decode(&entry)?;
        let problem = format!("the store's logs are in an archive that was at {} when it was first used", known.url);
        Err(ArchiveError::Foreign { url: "none".to_owned(), problem })
    }

    /// Whether it failed so lately that whoever can wait does not ask it. Of those who ask this later, one is told to try, and the others wait
    /// for what comes of that: an archive that does not answer holds up one call at a time.
    pub(crate) fn is_down(&self) -> bool {
        let mut down = self.down.lock().unwrap_or_else(PoisonError::into_inner);
        let now = Instant::now();
        match down.until {
            Some(until) if now < until => true,
            Some(_) => {
                down.until = Some(now + ANSWER);
                false
            }
            None => false,
        }
    }

    /// A turn to write: whoever has one may hold some megabytes meanwhile, so there are few.
    pub(crate) async fn turn(&self) -> Option<OwnedSemaphorePermit> {
        Arc::clone(&self.writes).acquire_owned().await.ok()
    }

    /// Does some work with it, but not for longer than it may take to answer.
    pub(crate) async fn within<T>(&self, work: impl Future<Output = Result<T, ArchiveError>>) -> Result<T, ArchiveError> {
        match tokio::time::timeout(ANSWER, work).await {
            Ok(done) => done,
            Err(_) => Err(self.too_slow()),
        }
    }

    fn too_slow(&self) -> ArchiveError {
        let problem = format!("no answer within {} s", ANSWER.as_secs());
        self.note(Err(&problem));
        ArchiveError::Unavailable { url: self.url.to_string(), problem }
    }

    /// That it failed lately, for those who can wait.
    pub(crate) fn still_down(&self) -> ArchiveError {
        ArchiveError::Unavailable { url: self.url.to_string(), problem: "it did not lately".to_owned() }
    }

    fn note(&self, answered: Result<(), &str>) {
        let mut down = self.down.lock().unwrap_or_else(PoisonError::into_inner);
        let Err(problem) = answered else {
            if down.until.is_some() {
                tracing::info!(archive = %self.url, "the archive answers again");
            }
            *down = Down::default();
            return;
        };
        if down.until.is_none() {
            tracing::warn!(
                archive = %self.url, problem,
                "the archive does not answer: logs stay in the store, and then with the executors, until it does"
            );
        }
        down.pause = (down.pause * 2).clamp(PAUSE, LONGEST_PAUSE);
        down.until = Some(Instant::now() + down.pause);
    }

    /// Waits for an answer, but not for ever.
    async fn answer<T>(&self, name: &Path, call: impl Future<Output = object_store::Result<T>>) -> Result<T, ArchiveError> {
        let problem = match tokio::time::timeout(ANSWER, call).await {
            Ok(Ok(answer)) => {
                self.note(Ok(()));
                return Ok(answer);
            }
            Ok(Err(object_store::Error::NotFound { .. })) => {
                self.note(Ok(()));
                return Err(ArchiveError::Missing { name: name.to_string() });
            }
            Ok(Err(error)) => chain(&error),
            Err(_) => return Err(self.too_slow()),
        };
        self.note(Err(&problem));
        Err(ArchiveError::Unavailable { url: self.url.to_string(), problem })
    }

    /// Writes a piece of an attempt's log and reads it back: in one's turn.
    pub(crate) async fn put(&self, id: ExecutionId, attempt: u32, offset: u64, piece: Piece) -> Result<LogObject, ArchiveError> {
        let (size, printed) = (piece.size(), piece.times.span());
        let packed = spawn_blocking(move || pack(&piece)).await.map_err(std::io::Error::other).and_then(|packed| packed);
        let unavailable =
            |error: std::io::Error| ArchiveError::Unavailable { url: self.url.to_string(), problem: error.to_string() };
        let Packed { bytes, parts } = packed.map_err(unavailable)?;
        let object = LogObject { offset, size, crc32c: crc32c::crc32c(&bytes), parts, printed };
        let name = name_of(id, attempt, &object);
        reach(&ARCHIVE_PUT);
        self.answer(&name, self.objects.put(&name, PutPayload::from_bytes(bytes))).await?;
        self.verify(&name, &object).await?;
        reach(&ARCHIVE_PUT_DONE);
        Ok(object)
    }

    async fn verify(&self, name: &Path, object: &LogObject) -> Result<(), ArchiveError> {
        let read = async {
            let mut stream = self.objects.get(name).await?.into_stream();
            let (mut crc, mut size) = (0, 0);
            while let Some(bytes) = stream.try_next().await? {
                crc = crc32c::crc32c_append(crc, &bytes);
                size += bytes.len() as u64;
            }
            Ok((size, crc))
        };
        let there = self.answer(name, read).await?;
        if there == (object.stored(), object.crc32c) {
            return Ok(());
        }
        Err(ArchiveError::Damaged { name: name.to_string(), problem: "it was not the same when it was read back".to_owned() })
    }

    /// Reads the bytes of an object from `offset` of the log on, as many whole parts of it as are read at once. Where nothing of it is at or
    /// after `offset`, the piece is empty.
    pub(crate) async fn read(
        &self,
        id: ExecutionId,
        attempt: u32,
        object: &LogObject,
        offset: u64,
    ) -> Result<(u64, Piece), ArchiveError> {
        let name = name_of(id, attempt, object);
        let (mut begins, mut stored_at) = (object.offset, 0u64);
        let mut wanted = Vec::new();
        let (mut from, mut to) = (0, 0);
        let mut first = begins;
        for part in &object.parts {
            let ends = begins + u64::from(part.size);
            let stored_end = stored_at + u64::from(part.stored);
            if ends > offset && (wanted.is_empty() || ends - first <= READ_BYTES) {
                if wanted.is_empty() {
                    (first, from) = (begins, stored_at);
                }
                to = stored_end;
                wanted.push(*part);
            }
            (begins, stored_at) = (ends, stored_end);
        }
        if wanted.is_empty() {
            return Ok((object.end(), Piece::default()));
        }
        let bytes = match self.answer(&name, self.objects.get_range(&name, from..to)).await {
            // A range that is not there is no fault of the archive's.
            Err(error @ ArchiveError::Unavailable { .. }) => match self.answer(&name, self.objects.head(&name)).await {
                Ok(meta) if meta.size != object.stored() => Bytes::new(),
                _ => return Err(error),
            },
            bytes => bytes?,
        };
        let damaged = |problem: String| ArchiveError::Damaged { name: name.to_string(), problem };
        if bytes.len() as u64 != to - from {
            return Err(damaged("it is shorter than it was".to_owned()));
        }
        let unpacked = spawn_blocking(move || unpack_all(&bytes, &wanted)).await.map_err(|error| damaged(error.to_string()))?;
        let piece = unpacked.map_err(damaged)?;
        let skip = usize::try_from(offset.saturating_sub(first)).unwrap_or(usize::MAX);
        let whole = piece.data.len();
        Ok((first.max(offset), piece.part(skip, whole)))
    }

    /// Removes one object. That it is not there is as good.
    pub(crate) async fn remove_object(&self, id: ExecutionId, attempt: u32, object: &LogObject) -> Result<(), ArchiveError> {
        let name = name_of(id, attempt, object);
        match self.answer(&name, self.objects.delete(&name)).await {
            Err(ArchiveError::Missing { .. }) => Ok(()),
            done => done,
        }
    }

    /// Removes everything that is there of an execution, also what no record names.
    pub(crate) async fn remove(&self, id: ExecutionId) -> Result<(), ArchiveError> {
        let prefix = Path::from(format!("log/{id}"));
        let names = self.objects.list(Some(&prefix)).map_ok(|found| found.location).try_collect::<Vec<_>>();
        for name in self.answer(&prefix, names).await? {
            match self.answer(&name, self.objects.delete(&name)).await {
                Ok(()) | Err(ArchiveError::Missing { .. }) => {}
                Err(error) => return Err(error),
            }
        }
        Ok(())
    }
}

fn unpack_all(bytes: &Bytes, parts: &[octavius_store::record::LogPart]) -> Result<Piece, String> {
    let mut at = 0;
    let mut pieces = Vec::with_capacity(parts.len());
    for part in parts {
        let stored = usize::try_from(part.stored).map_err(|error| error.to_string())?;
        pieces.push(unpack(&bytes.slice(at..at + stored), *part)?);
        at += stored;
    }
    Ok(match <[Piece; 1]>::try_from(pieces) {
        Ok([one]) => one,
        Err(pieces) => Piece::join(&pieces),
    })
}

/// An object's name: where it begins, so that names sort as the log goes, and what it is.
fn name_of(id: ExecutionId, attempt: u32, object: &LogObject) -> Path {
    let LogObject { offset, size, crc32c, .. } = object;
    Path::from(format!("log/{id}/{attempt:06}/{offset:016x}-{size:x}-{crc32c:08x}.zst"))
}

/// An error and what is behind it, without what it says twice.
fn chain(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut source = error.source();
    while let Some(cause) = source {
        let cause_text = cause.to_string();
        if !text.contains(&cause_text) {
            text = format!("{text}: {cause_text}");
        }
        source = cause.source();
    }
    text
}

#[cfg(test)]
mod tests;
