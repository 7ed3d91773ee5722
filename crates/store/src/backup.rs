//! Backups: everything that a store holds, as of one revision, in one file, and the way back into an empty store.
//!
//! A backup holds the hashes of all tokens and the arguments of all executions: it is to be kept like a secret.
//!
//! The file, numbers with their low byte first:
//!
//! | part | bytes |
//! | --- | --- |
//! | beginning | `OCTAVIUS-BACKUP\n`, the format's version (4), the length of the header (4), the header as JSON, the checksum (4) |
//! | each entry | the length of the key (4, never 0), the length of the value (4), both, the checksum (4) |
//! | end | 0 (4), the number of entries (8), the checksum (4) |
//!
//! A checksum is the CRC-32C of all bytes from the beginning of the file, checksums left out: so damage is found where it is, and no part
//! can be missing or out of its place. What is leased or passing is left out: presences, and whose turn it is to look after the store.

use std::io::{self, BufReader, Read, Seek, SeekFrom};
use std::sync::Arc;
use std::time::{Duration, Instant};

use bytes::{BufMut as _, Bytes, BytesMut};
use jiff::Timestamp;
use octavius_core::HumanDuration;
use octavius_core::limit::STORED_VALUE_BYTES;
use serde::{Deserialize, Serialize};

use crate::api::{Change, Commit, Entry, Key, Range, Revision, Store, StoreError, Txn};
use crate::record::ControllerRecord;
use crate::{codec, key};

/// The version of the format that is written, and the newest that is read.
pub const FORMAT_VERSION: u32 = 1;

/// Most bytes of one piece of [`Backup::next`].
pub const PIECE_BYTES: usize = 256 * 1024;

const MAGIC: &[u8; 16] = b"OCTAVIUS-BACKUP\n";

/// Largest header that is read.
const HEADER_BYTES: u32 = 64 * 1024;

/// Entries read from the store at once.
const PAGE: usize = 500;

/// Puts and bytes of one transaction of a restore: a little below what a transaction may have, for the condition that goes with them.
const BATCH: usize = Txn::MAX_OPERATIONS - 2;
const BATCH_BYTES: usize = Txn::MAX_BYTES - STORED_VALUE_BYTES;

/// How often one transaction of a restore is tried whose answer is lost.
const TRIES: usize = 5;

/// Keys that are named where a store is not empty.
const NAMED: usize = 5;

/// What a backup says of itself.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Header {
    /// The id of the store that it was made of: the restored one has it too, so plans made against the one fit the other.
    pub controller_id: String,
    /// The store's revision that it shows.
    pub revision: Revision,
    /// When it was made, by the controller's clock.
    pub created_at: Timestamp,
}

/// A backup that was read, or restored.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Summary {
    /// What it says of itself.
    pub header: Header,
    /// How many keys it holds.
    pub entries: u64,
    /// Bytes of its file.
    pub bytes: u64,
}

/// Why a backup was not made or restored.
#[derive(Debug, thiserror::Error)]
pub enum BackupError {
    /// The store did not answer.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// The store no longer keeps the revision that the backup shows: it was read too slowly, or too much changed meanwhile.
    #[error(
        "the store forgot revision {revision} after {after}, before all of it was read: \
         what is replaced is kept for a few minutes and changes; take the backup over a faster link, or when less is going on"
    )]
    Overtaken {
        /// Which revision.
        revision: Revision,
        /// How long it had been read.
        after: HumanDuration,
    },
    /// The store was never used by a controller.
    #[error("there is nothing to back up: the store has no controller's record")]
    Unused,
    /// The file could not be read.
    #[error("the backup could not be read")]
    File(#[from] io::Error),
    /// It is something else.
    #[error("not a backup of Octavius: it does not begin as one")]
    Foreign,
    /// A later version wrote it.
    #[error(
        "the backup has format {0}, this version reads {FORMAT_VERSION}: restore it with the version that made it, or a later one"
    )]
    Newer(u32),
    /// It ends too early.
    #[error("the backup is cut short: it ends at byte {0}, in the middle")]
    CutShort(u64),
    /// Its bytes are not those that were written.
    #[error("the backup is damaged at byte {at}: {why}")]
    Damaged {
        /// Where the damaged part begins.
        at: u64,
        /// What is wrong with it.
        why: &'static str,
    },
    /// The store holds something already.
    #[error("the store is not empty, it holds {}: restore into an empty one", named(.0))]
    NotEmpty(Vec<Key>),
    /// The store holds what a restore of this very backup, or of another one of the same controller, would have left.
    #[error("the store holds controller {0}, whose backup this is: it seems to be restored already, start the controller on it")]
    Restored(String),
    /// Another backup was being restored into the store.
    #[error(
        "the restore of another backup into this store, of revision {} made at {}, was not finished: restore that one, or empty the store",
        .0.revision, .0.created_at
    )]
    Other(Box<Header>),
    /// Someone else writes to the store.
    #[error(
        "something else writes to the store while it is restored: see that no controller and no other restore uses it, and run it again"
    )]
    Contended,
}

fn named(keys: &[Key]) -> String {
    let names: Vec<_> = keys.iter().take(NAMED).map(Key::as_str).collect();
    let more = if keys.len() > NAMED { " and more" } else { "" };
    format!("{}{more}", names.join(", "))
}

/// Whether a key has a place in a backup.
fn is_kept(key: &Key) -> bool {
    let passing = [key::presences(), key::peers()];
    *key != key::duty() && *key != key::restoring() && !passing.iter().any(|prefix| key.as_str().starts_with(prefix.as_str()))
}

/// A backup that is being made, piece by piece: whoever takes them sets the pace. In memory there is never more than one page of the
/// store.
#[derive(Debug)]
pub struct Backup {
    store: Arc<dyn Store>,
    header: Header,
    began: Instant,
    /// What is read next; none once everything was.
    range: Option<Range>,
    /// What was made and not yet taken.
    ready: BytesMut,
    checksum: u32,
    entries: u64,
}

impl Backup {
    /// Begins a backup of what the store holds now.
    ///
    /// # Errors
    /// Where the store does not answer, or no controller ever used it.
    pub async fn begin(store: Arc<dyn Store>) -> Result<Self, BackupError> {
        // The page and not the answer of a `get` says which revision it shows.
        let page = store.range(&Range::of(key::controller(), 1)).await?;
        let controller = page.entries.first().filter(|entry| entry.key == key::controller()).ok_or(BackupError::Unused)?;
        let controller_id = codec::decode::<ControllerRecord>(controller)?.id;
        let header = Header { controller_id, revision: page.revision, created_at: Timestamp::now() };
        let range = Range { at: Some(page.revision), ..Range::of(Key::new(""), PAGE) };
        let mut backup =
            Self { store, header, began: Instant::now(), range: Some(range), ready: BytesMut::new(), checksum: 0, entries: 0 };
        let json = serde_json::to_vec(&backup.header).map_err(|error| StoreError::Invalid(error.to_string()))?;
        backup.frame(|bytes| {
            bytes.put_slice(MAGIC);
            bytes.put_u32_le(FORMAT_VERSION);
            bytes.put_u32_le(length(&json));
            bytes.put_slice(&json);
        });
        Ok(backup)
    }

    /// What it says of itself.
    #[must_use]
    pub fn header(&self) -> &Header {
        &self.header
    }

    /// The file's next bytes, at most [`PIECE_BYTES`] of them; `None` after its end.
    ///
    /// # Errors
    /// Where the store does not answer, or no longer keeps the revision. What was taken so far is then of no use.
    pub async fn next(&mut self) -> Result<Option<Bytes>, BackupError> {
        while self.ready.len() < PIECE_BYTES
            && let Some(range) = self.range.take()
        {
            let page = match self.store.range(&range).await {
                Err(StoreError::Compacted { .. }) => {
                    let after = HumanDuration::new(Duration::from_secs(self.began.elapsed().as_secs()));
                    return Err(BackupError::Overtaken { revision: self.header.revision, after });
                }
                page => page?,
            };
            self.range = range.next(&page);
            for Entry { key, value, .. } in page.entries.iter().filter(|entry| is_kept(&entry.key)) {
                self.entries += 1;
                self.frame(|bytes| {
                    bytes.put_u32_le(length(key.as_str().as_bytes()));
                    bytes.put_u32_le(length(value));
                    bytes.put_slice(key.as_str().as_bytes());
                    bytes.put_slice(value);
                });
            }
            if self.range.is_none() {
                let entries = self.entries;
                self.frame(|bytes| {
                    bytes.put_u32_le(0);
                    bytes.put_u64_le(entries);
                });
            }
        }
        let size = self.ready.len().min(PIECE_BYTES);
        Ok((size > 0).then(|| self.ready.split_to(size).freeze()))
    }

    fn frame(&mut self, write: impl FnOnce(&mut BytesMut)) {
        let begins = self.ready.len();
        write(&mut self.ready);
        self.checksum = crc32c::crc32c_append(self.checksum, &self.ready[begins..]);
        self.ready.put_u32_le(self.checksum);
    }
}

/// Keys, values and headers are far below this; a longer one would be found by its own checksum.
fn length(bytes: &[u8]) -> u32 {
    u32::try_from(bytes.len()).unwrap_or(u32::MAX)
}

/// A file being read, from its beginning to its end.
struct Reading<R> {
    file: R,
    at: u64,
    /// Where the present part begins.
    part: u64,
    checksum: u32,
    entries: u64,
}

impl<R: Read> Reading<R> {
    fn begin(file: R) -> Result<(Self, Header), BackupError> {
        let mut reading = Self { file, at: 0, part: 0, checksum: 0, entries: 0 };
        let magic = match reading.array::<16>() {
            Err(BackupError::CutShort(_)) => return Err(BackupError::Foreign),
            magic => magic?,
        };
        if magic != *MAGIC {
            return Err(BackupError::Foreign);
        }
        let version = reading.number()?;
        if version > FORMAT_VERSION {
            return Err(BackupError::Newer(version));
        }
        let size = reading.number()?;
        if size > HEADER_BYTES {
            return Err(reading.damaged("its header is too long"));
        }
        let json = reading.bytes(size)?;
        reading.check()?;
        let header = serde_json::from_slice(&json).map_err(|_| reading.damaged("its header cannot be read"))?;
        Ok((reading, header))
    }

    /// The next entry; `None` at the end of the file, which is then wholly as it was written.
    fn next(&mut self) -> Result<Option<(Key, Bytes)>, BackupError> {
        self.part = self.at;
        let key_size = self.number()?;
        if key_size == 0 {
            let entries = u64::from_le_bytes(self.array()?);
            self.check()?;
            if entries != self.entries {
                return Err(self.damaged("its number of entries is another"));
            }
            let mut more = [0];
            if self.file.read(&mut more)? > 0 {
                self.part = self.at;
                return Err(self.damaged("something follows its end"));
            }
            return Ok(None);
        }
        let value_size = self.number()?;
        if key_size as usize > Key::MAX_BYTES || value_size as usize > STORED_VALUE_BYTES {
            return Err(self.damaged("an entry is too long"));
        }
        let key = self.bytes(key_size)?;
        let value = self.bytes(value_size)?;
        self.check()?;
        self.entries += 1;
        let key = String::from_utf8(key).map_err(|_| self.damaged("a key is not text"))?;
        Ok(Some((Key::new(key), value.into())))
    }

    fn damaged(&self, why: &'static str) -> BackupError {
        BackupError::Damaged { at: self.part, why }
    }

    fn number(&mut self) -> Result<u32, BackupError> {
        Ok(u32::from_le_bytes(self.array()?))
    }

    fn array<const N: usize>(&mut self) -> Result<[u8; N], BackupError> {
        let mut bytes = [0; N];
        self.fill(&mut bytes)?;
        Ok(bytes)
    }

    fn bytes(&mut self, size: u32) -> Result<Vec<u8>, BackupError> {
        let mut bytes = vec![0; size as usize];
        self.fill(&mut bytes)?;
        Ok(bytes)
    }

    /// Reads bytes that count in the checksum.
    fn fill(&mut self, bytes: &mut [u8]) -> Result<(), BackupError> {
        self.fill_uncounted(bytes)?;
        self.checksum = crc32c::crc32c_append(self.checksum, bytes);
        Ok(())
    }

    fn fill_uncounted(&mut self, bytes: &mut [u8]) -> Result<(), BackupError> {
        let mut filled = 0;
        while filled < bytes.len() {
            match self.file.read(&mut bytes[filled..]) {
                Ok(0) => return Err(BackupError::CutShort(self.at + filled as u64)),
                Ok(count) => filled += count,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(error.into()),
            }
        }
        self.at += filled as u64;
        Ok(())
    }

    fn check(&mut self) -> Result<(), BackupError> {
        let mut told = [0; 4];
        self.fill_uncounted(&mut told)?;
        if u32::from_le_bytes(told) == self.checksum { Ok(()) } else { Err(self.damaged("its checksum is another")) }
    }
}

/// Reads a backup from the beginning to the end, and makes sure that it is what was written.
///
/// # Errors
/// Where it cannot be read, is cut short, damaged, something else, or of a newer format.
pub fn verify(file: &mut (impl Read + Seek)) -> Result<Summary, BackupError> {
    file.seek(SeekFrom::Start(0))?;
    let (mut reading, header) = Reading::begin(BufReader::new(file))?;
    while reading.next()?.is_some() {}
    Ok(Summary { header, entries: reading.entries, bytes: reading.at })
}

/// Restores a backup into a store that is empty, or into which the same backup was being restored when that was interrupted. The whole file
/// is verified before anything is written. Until all of it is there, the store holds the key [`key::restoring`] and no
/// [`key::controller`], and no controller begins on it.
///
/// # Errors
/// As [`verify`]; where the store is not empty or does not answer. To try again after that is safe.
pub async fn restore(store: &dyn Store, file: &mut (impl Read + Seek)) -> Result<Summary, BackupError> {
    let summary = verify(file)?;
    let mark = mark(store, &summary.header).await?;
    file.seek(SeekFrom::Start(0))?;
    let (mut reading, _) = Reading::begin(BufReader::new(file))?;
    let mut last = None;
    let mut batch = Batch { store, mark: &mark, changes: Vec::new(), bytes: 0 };
    while let Some((key, value)) = reading.next()? {
        if key == key::controller() {
            last = Some(value); // what makes it a store that a controller takes comes when all else is there
        } else {
            batch.put(key, value).await?;
        }
    }
    batch.write().await?;
    let identity = last.ok_or(BackupError::Damaged { at: 0, why: "it has no controller's record" })?;
    batch.changes = vec![Change::Put(key::controller(), identity), Change::Delete(key::restoring())];
    batch.write().await?;
    Ok(summary)
}

/// Marks the store as one that is being restored, and returns the mark.
async fn mark(store: &dyn Store, header: &Header) -> Result<Entry, BackupError> {
    let at = key::restoring();
    for _ in 0..TRIES {
        if let Some(entry) = store.get(&at).await? {
            let begun: Header = codec::decode(&entry)?;
            return if begun == *header { Ok(entry) } else { Err(BackupError::Other(Box::new(begun))) };
        }
        let page = store.range(&Range::of(Key::new(""), NAMED + 1)).await?;
        // The last write of a restore takes the mark away; its answer may have been lost.
        if let Some(entry) = store.get(&key::controller()).await?
            && let Ok(ControllerRecord { id }) = codec::decode(&entry)
            && id == header.controller_id
        {
            return Err(BackupError::Restored(id));
        }
        if !page.entries.is_empty() {
            return Err(BackupError::NotEmpty(page.entries.into_iter().map(|entry| entry.key).collect()));
        }
        let txn = Txn::new().absent(at.clone()).absent(key::controller()).put(at.clone(), codec::encode(header));
        match store.commit(txn).await {
            Ok(_) | Err(StoreError::Unknown(_)) => {}
            Err(error) => return Err(error.into()),
        }
    }
    Err(BackupError::Contended)
}

/// Writes that go together.
struct Batch<'a> {
    store: &'a dyn Store,
    mark: &'a Entry,
    changes: Vec<Change>,
    bytes: usize,
}

impl Batch<'_> {
    async fn put(&mut self, key: Key, value: Bytes) -> Result<(), BackupError> {
        if self.changes.len() == BATCH || self.bytes + value.len() > BATCH_BYTES {
            self.write().await?;
        }
        self.bytes += value.len();
        self.changes.push(Change::Put(key, value));
        Ok(())
    }

    async fn write(&mut self) -> Result<(), BackupError> {
        self.bytes = 0;
        let changes = std::mem::take(&mut self.changes);
        if changes.is_empty() {
            return Ok(());
        }
        let finishes = changes.iter().any(|change| *change.key() == self.mark.key);
        let txn = Txn { changes, ..Txn::new().unchanged(self.mark) };
        let mut lost = None;
        for _ in 0..TRIES {
            match self.store.commit(txn.clone()).await {
                Ok(Commit::Done(_)) => return Ok(()),
                // The mark went with the write whose answer was lost.
                Ok(Commit::Conflict(_)) if finishes && lost.is_some() => return Ok(()),
                Ok(Commit::Conflict(_)) => return Err(BackupError::Contended),
                Err(error @ StoreError::Unknown(_)) => lost = Some(error),
                Err(error) => return Err(error.into()),
            }
        }
        Err(lost.map_or(BackupError::Contended, BackupError::Store))
    }
}

#[cfg(test)]
mod tests;
