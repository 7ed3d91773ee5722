//! The file: where it is, what its tables hold, how it is opened, and what its failures mean.

use std::fs::{self, DirBuilder, File, OpenOptions};
use std::io;
use std::os::unix::fs::{DirBuilderExt as _, OpenOptionsExt as _};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::Path;
use std::sync::atomic::{AtomicU32, Ordering};

use bytes::Bytes;
use redb::backends::FileBackend;
use redb::{
    Database, DatabaseError, ReadableDatabase as _, ReadableTable as _, ReadableTableMetadata as _, StorageBackend, StorageError,
    TableDefinition, TableError,
};

use crate::api::{Entry, Key, Revision, StoreError};

/// The file's name in its folder.
pub(super) const FILE: &str = "octavius.redb";

/// The layout of the tables below. A newer one is refused.
const FORMAT: u64 = 1;

/// From keys to [`Stored`].
pub(super) const RECORDS: TableDefinition<'static, &str, &[u8]> = TableDefinition::new("records");

/// The keys that are presences, with their leases' numbers: also in their records, here so that they are found without a scan.
pub(super) const LEASES: TableDefinition<'static, &str, u64> = TableDefinition::new("leases");

/// The few facts about the whole: `format` and `revision`.
pub(super) const META: TableDefinition<'static, &str, u64> = TableDefinition::new("meta");

/// The key of the newest revision in [`META`].
pub(super) const REVISION: &str = "revision";

/// A record as it is stored: three numbers of 8 bytes, low byte first, then the value.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Stored {
    pub(super) created: Revision,
    pub(super) modified: Revision,
    /// The lease that the key lives by, 0 for none.
    pub(super) lease: u64,
    pub(super) value: Bytes,
}

impl Stored {
    const HEAD_BYTES: usize = 24;

    pub(super) fn encode(&self) -> Vec<u8> {
        let mut bytes = Vec::with_capacity(Self::HEAD_BYTES + self.value.len());
        for number in [self.created, self.modified, self.lease] {
            bytes.extend_from_slice(&number.to_le_bytes());
        }
        bytes.extend_from_slice(&self.value);
        bytes
    }

    pub(super) fn decode(key: &str, bytes: &[u8]) -> Result<Self, Failure> {
        let number = |at: usize| bytes.get(at..at + 8)?.try_into().ok().map(u64::from_le_bytes);
        match (number(0), number(8), number(16)) {
            (Some(created), Some(modified), Some(lease)) => {
                Ok(Self { created, modified, lease, value: Bytes::copy_from_slice(&bytes[Self::HEAD_BYTES..]) })
            }
            _ => Err(Failure::Unreadable(format!("{key}: {} bytes are too few", bytes.len()))),
        }
    }

    pub(super) fn entry(self, key: Key) -> Entry {
        Entry { key, value: self.value, created: self.created, modified: self.modified }
    }
}

/// Why the file could not be read or written.
#[derive(Debug, thiserror::Error)]
pub(super) enum Failure {
    #[error("{0}")]
    Store(#[from] redb::Error),
    #[error("{0}")]
    Io(#[from] io::Error),
    #[error("{0}")]
    Unreadable(String),
    /// The call was refused for a reason of its own; the file is well.
    #[error("{0}")]
    Refused(#[from] StoreError),
}

impl Failure {
    /// Whether the file must be opened again before anything else works: after a fault of the disk, redb refuses everything.
    pub(super) fn needs_reopening(&self) -> bool {
        matches!(
            self,
            Self::Store(redb::Error::Io(_) | redb::Error::PreviousIo | redb::Error::Backend(_) | redb::Error::Corrupted(_))
        )
    }

    pub(super) fn into_error(self) -> StoreError {
        match self {
            Self::Refused(error) => error,
            Self::Unreadable(why) => StoreError::Unreadable(why),
            Self::Io(error) | Self::Store(redb::Error::Io(error)) => match error.kind() {
                io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded | io::ErrorKind::FileTooLarge => {
                    StoreError::Full(error.to_string())
                }
                io::ErrorKind::InvalidData | io::ErrorKind::UnexpectedEof => StoreError::Unreadable(error.to_string()),
                _ => StoreError::Unavailable(error.to_string()),
            },
            Self::Store(redb::Error::DatabaseAlreadyOpen) => StoreError::Unavailable("another process has it open".to_owned()),
            Self::Store(
                error @ (redb::Error::Corrupted(_)
                | redb::Error::UpgradeRequired(_)
                | redb::Error::TableTypeMismatch { .. }
                | redb::Error::TypeDefinitionChanged { .. }
                | redb::Error::TableIsMultimap(_)
                | redb::Error::TableDoesNotExist(_)),
            ) => StoreError::Unreadable(error.to_string()),
            Self::Store(error) => StoreError::Unavailable(error.to_string()),
        }
    }

    /// The error of opening the store in `dir`.
    pub(super) fn at(self, dir: &Path) -> StoreError {
        let name = |why: String| format!("{}: {why}", dir.display());
        match self.into_error() {
            StoreError::Unavailable(why) => StoreError::Unavailable(name(why)),
            StoreError::Unreadable(why) => StoreError::Unreadable(name(why)),
            StoreError::Full(why) => StoreError::Full(name(why)),
            other => other,
        }
    }
}

/// redb has an error for each thing that can be done; all are parts of one.
macro_rules! failure_from {
    ($($error:ty),*) => {
        $(impl From<$error> for Failure {
            fn from(error: $error) -> Self {
                Self::Store(error.into())
            }
        })*
    };
}
failure_from!(DatabaseError, StorageError, TableError, redb::TransactionError, redb::CommitError, redb::SetDurabilityError);

/// Opens the database, also again after a fault.
pub(super) type Opener = Box<dyn Fn() -> Result<Database, Failure> + Send>;

/// Opens the file in `dir`.
pub(super) fn opener(dir: &Path, cache_bytes: usize) -> Opener {
    let dir = dir.to_owned();
    opener_on(cache_bytes, move || {
        let path = dir.join(FILE);
        match open_file(&path, false) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => create(&dir)?,
            Err(error) => return Err(error.into()),
            Ok(file) => return Ok(FileBackend::new(file)?),
        }
        Ok(FileBackend::new(open_file(&path, false)?)?)
    })
}

fn open_file(path: &Path, create: bool) -> io::Result<File> {
    OpenOptions::new().read(true).write(true).create(create).truncate(create).mode(0o600).open(path)
}

/// Makes an empty store in `dir`. Until it is whole it has another name, so that a crash leaves either a store or none; and linking,
/// other than renaming, never replaces one that another process made in the meantime.
fn create(dir: &Path) -> Result<(), Failure> {
    let is_new = !dir.exists();
    DirBuilder::new().recursive(true).mode(0o700).create(dir)?;
    // Named by process and attempt, so that nobody else writes to it.
    static ATTEMPTS: AtomicU32 = AtomicU32::new(0);
    let path = dir.join(format!("{FILE}.new-{}-{}", std::process::id(), ATTEMPTS.fetch_add(1, Ordering::Relaxed)));
    let file = open_file(&path, true)?;
    let made = (|| {
        let database = Database::builder().set_cache_size(0).create_with_backend(FileBackend::new(file)?)?;
        sweep(&database)?;
        database.close()?;
        match fs::hard_link(&path, dir.join(FILE)) {
            Err(error) if error.kind() != io::ErrorKind::AlreadyExists => Err(Failure::from(error)),
            _ => Ok(()),
        }
    })();
    fs::remove_file(&path)?;
    made?;
    File::open(dir)?.sync_all()?;
    if is_new && let Some(parent) = dir.parent().filter(|parent| *parent != Path::new("")) {
        File::open(parent)?.sync_all()?;
    }
    Ok(())
}

/// Opens what `backend` gives, which may be anything that redb can write to.
pub(super) fn opener_on<B: StorageBackend>(
    cache_bytes: usize,
    backend: impl Fn() -> Result<B, Failure> + Send + 'static,
) -> Opener {
    Box::new(move || {
        let backend = backend()?;
        let mut builder = Database::builder();
        builder.set_cache_size(cache_bytes);
        builder.set_repair_callback(|repair| {
            if repair.progress() == 0.0 {
                tracing::info!("the store was not closed properly; checking its file");
            }
        });
        // redb trusts a file that says it was closed properly, and may panic where somebody else has changed it since.
        let opened = catch_unwind(AssertUnwindSafe(|| builder.create_with_backend(backend)));
        opened.map_err(|_| Failure::Unreadable("the file is damaged".to_owned()))?.map_err(Failure::from)
    })
}

/// Opens the database, creates its tables where it is new, removes all presences, whose owners died with the process before, and
/// answers with its revision.
pub(super) fn open(opener: &Opener) -> Result<(Database, Revision), Failure> {
    let database = opener()?;
    let snapshot = database.begin_read()?;
    let is_new = match snapshot.open_table(META) {
        Ok(meta) => {
            let format = meta.get("format")?.map_or(0, |number| number.value());
            if format > FORMAT {
                return Err(Failure::Unreadable(format!("written in format {format}, this version reads {FORMAT}")));
            }
            false
        }
        Err(TableError::TableDoesNotExist(_)) => true,
        Err(error) => return Err(error.into()),
    };
    if is_new || !snapshot.open_table(LEASES)?.is_empty()? {
        sweep(&database)?;
    }
    drop(snapshot);
    let revision = revision(&database.begin_read()?)?;
    Ok((database, revision))
}

/// Creates the tables and removes presences, as one transaction with a revision of its own where there are any.
fn sweep(database: &Database) -> Result<(), Failure> {
    let txn = database.begin_write()?;
    {
        let mut meta = txn.open_table(META)?;
        let mut records = txn.open_table(RECORDS)?;
        let mut leases = txn.open_table(LEASES)?;
        let mut revision = meta.get(REVISION)?.map_or(0, |number| number.value());
        let mut swept = Vec::new();
        for lease in leases.iter()? {
            swept.push(lease?.0.value().to_owned());
        }
        for key in &swept {
            records.remove(key.as_str())?;
            leases.remove(key.as_str())?;
        }
        revision += u64::from(!swept.is_empty());
        meta.insert(REVISION, revision)?;
        meta.insert("format", FORMAT)?;
    }
    txn.commit()?;
    Ok(())
}

/// The revision that a snapshot shows.
pub(super) fn revision(snapshot: &redb::ReadTransaction) -> Result<Revision, Failure> {
    let revision = snapshot.open_table(META)?.get(REVISION)?.map(|number| number.value());
    revision.ok_or_else(|| Failure::Unreadable("it has no revision".to_owned()))
}

/// The leases that a snapshot shows.
pub(super) fn leases(snapshot: &redb::ReadTransaction) -> Result<Vec<(Key, u64)>, Failure> {
    let mut leases = Vec::new();
    for lease in snapshot.open_table(LEASES)?.iter()? {
        let (key, id) = lease?;
        leases.push((Key::new(key.value()), id.value()));
    }
    Ok(leases)
}
