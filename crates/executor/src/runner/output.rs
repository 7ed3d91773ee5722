//! What a job prints, as both runners keep it: one file in its run folder, which grows while someone else reads it, a part of the executor's
//! [spool](crate::spool).
//!
//! What a controller has is given back to the disk from the beginning on. Before that it is written down how far the controller is and what
//! the checksum of all that is, since neither can be found out from the file any more.

use std::fs::{self, File, OpenOptions};
use std::io::{self, Write as _};
use std::os::unix::fs::{FileExt as _, OpenOptionsExt as _};
use std::path::Path;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use octavius_core::log::Times;
use rustix::fs::SeekFrom;
use serde::{Deserialize, Serialize};
use tokio::sync::watch;
use tokio::task::spawn_blocking;

use crate::journal::{OUTPUT, SENT};
use crate::spool::{Entry, Spool, punch};
use crate::times::Noted;

/// While a reader has no room, how often it looks for some.
const LOOK_AGAIN: Duration = Duration::from_millis(20);
/// Blocks of times are given back in such steps.
const TIMES_STEP: u64 = 64 * 1024;
const BLOCK: u64 = 4096;

/// How far a controller has the output.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Sent {
    /// Every byte before this one.
    pub(crate) offset: u64,
    /// The checksum of those bytes, masked.
    pub(crate) crc32c: u32,
    /// Bytes before this one may be gone.
    pub(crate) freed: u64,
}

/// The output of one run.
#[derive(Debug)]
pub(crate) struct Output {
    entry: Arc<Entry>,
    spool: Spool,
    sent: Sent,
    noted: Arc<Mutex<Noted>>,
    times_freed: Mutex<u64>,
}

impl Output {
    /// The output in this folder, which may grow to `limit` bytes as things stand.
    pub(crate) fn new(spool: &Spool, folder: &Path, limit: u64) -> Self {
        let sent = read_sent(folder);
        let entry = spool.enter(folder, limit, sent.freed);
        Self { entry, spool: spool.clone(), sent, noted: Arc::default(), times_freed: Mutex::default() }
    }

    /// How far a controller had it when this executor began, and the checksum of that. Nothing where nothing was given back by then.
    pub(crate) fn sent(&self) -> Sent {
        self.sent
    }

    /// Where the bytes begin that can be read.
    pub(crate) fn begin(&self) -> u64 {
        self.entry.freed()
    }

    /// How many bytes there are by now, those counted that were given back.
    pub(crate) fn length(&self) -> io::Result<u64> {
        self.entry.look()
    }

    /// Tells of every change of the length, soon after it.
    pub(crate) fn lengths(&self) -> watch::Receiver<u64> {
        self.entry.lengths()
    }

    /// The bytes from `offset` on that are there by now, at most `longest`, and when those from `times_from` on were printed; none where the
    /// file is not there yet.
    pub(crate) async fn read(&self, offset: u64, longest: usize, times_from: u64) -> io::Result<(Vec<u8>, Times)> {
        let Some(file) = self.entry.file()? else { return Ok(Default::default()) };
        if offset < self.begin() {
            return Err(io::Error::new(io::ErrorKind::NotFound, "it was given back to the disk"));
        }
        let (entry, noted) = (Arc::clone(&self.entry), Arc::clone(&self.noted));
        let read = move || {
            let bytes = read_at(&file, offset, longest)?;
            let end = offset + bytes.len() as u64;
            let mut noted = noted.lock().unwrap_or_else(PoisonError::into_inner);
            let times = noted.between(&entry.folder, &file, times_from, end.max(times_from));
            Ok((bytes, times))
        };
        spawn_blocking(read).await.map_err(io::Error::other)?
    }

    /// Notes that a controller has everything before `offset`, whose checksum is this, and gives blocks back to the disk where it is worth it.
    /// The last `context` bytes before it stay.
    pub(crate) async fn release(&self, offset: u64, crc32c: u32, context: usize) {
        self.spool.taken();
        let end = offset.saturating_sub(context as u64);
        if !self.entry.is_worth_it(end) {
            return;
        }
        let (entry, spool) = (Arc::clone(&self.entry), self.spool.clone());
        let give_back = move || {
            let keep = |freed| write_sent(&entry.folder, Sent { offset, crc32c, freed });
            spool.give_back(&entry, end, keep)
        };
        let given = spawn_blocking(give_back).await.unwrap_or_else(|error| Err(io::Error::other(error)));
        if let Err(error) = given {
            tracing::debug!(folder = %self.entry.folder.display(), %error, "cannot give blocks of a job's output back, trying on");
        }
        self.give_times_back();
    }

    fn give_times_back(&self) {
        let noted = self.noted.lock().unwrap_or_else(PoisonError::into_inner);
        let mut freed = self.times_freed.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some((file, end)) = noted.done_with()
            && end >= *freed + TIMES_STEP
        {
            let end = end / BLOCK * BLOCK;
            // Where it cannot be done, it need not be.
            let _ = punch(file, *freed, end);
            *freed = end;
        }
    }

    /// Waits until bytes may be added to those that are there, and says how many.
    pub(crate) async fn room(&self) -> usize {
        loop {
            // What cannot be looked at can hardly be written: whoever tries will see.
            let length = self.entry.look().unwrap_or_default();
            match self.entry.limit().saturating_sub(length) {
                0 => tokio::time::sleep(LOOK_AGAIN).await,
                left => return usize::try_from(left).unwrap_or(usize::MAX),
            }
        }
    }

    /// Notes that nothing writes any more.
    pub(crate) fn end(&self) {
        let _ = self.entry.look();
        self.entry.end();
    }

    /// Notes that nobody will take what is printed.
    pub(crate) fn forsake(&self) {
        self.entry.forsake();
    }
}

fn read_sent(folder: &Path) -> Sent {
    let read = fs::read(folder.join(SENT)).ok().and_then(|bytes| serde_json::from_slice(&bytes).ok());
    // A machine that lost its power may have kept the holes and not what was written down before: what was there is not known then.
    read.unwrap_or_else(|| Sent { freed: hole(folder).unwrap_or_default(), ..Sent::default() })
}

/// How far the output begins with blocks that were given back.
fn hole(folder: &Path) -> Option<u64> {
    let output = File::open(folder.join(OUTPUT)).ok()?;
    match rustix::fs::seek(&output, SeekFrom::Data(0)) {
        Ok(begin) => Some(begin),
        Err(rustix::io::Errno::NXIO) => Some(output.metadata().ok()?.len()),
        Err(_) => None,
    }
}

fn write_sent(folder: &Path, sent: Sent) -> io::Result<()> {
    let new = folder.join("sent.new");
    let mut file = OpenOptions::new().write(true).create(true).truncate(true).mode(0o600).open(&new)?;
    file.write_all(&serde_json::to_vec(&sent)?)?;
    fs::rename(&new, folder.join(SENT))
}

fn read_at(file: &File, offset: u64, longest: usize) -> io::Result<Vec<u8>> {
    let more = file.metadata()?.len().saturating_sub(offset);
    let size = usize::try_from(more).unwrap_or(usize::MAX).min(longest);
    let mut bytes = vec![0; size];
    let mut filled = 0;
    while filled < size {
        match file.read_at(&mut bytes[filled..], offset + filled as u64) {
            Ok(0) => break,
            Ok(count) => filled += count,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
    bytes.truncate(filled);
    Ok(bytes)
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::MetadataExt as _;

    use super::*;

    const MIB: usize = 1024 * 1024;

    #[tokio::test]
    async fn what_a_controller_has_is_given_back_and_known_to_the_next_executor() {
        let folder = tempfile::tempdir().unwrap();
        let bytes: Vec<u8> = (0..6 * MIB).map(|at| u8::try_from(at % 251).unwrap()).collect();
        fs::write(folder.path().join(OUTPUT), &bytes).unwrap();
        let spool = Spool::new(64 * 1024 * 1024, 1);
        let output = Output::new(&spool, folder.path(), u64::MAX);
        assert_eq!((output.length().unwrap(), output.sent()), (6 * MIB as u64, Sent::default()));
        output.release(10_000, 1, 0).await;
        assert_eq!(output.begin(), 0, "too little to be worth it");
        let blocks = || fs::metadata(folder.path().join(OUTPUT)).unwrap().blocks() * 512;
        assert!(blocks() >= 6 * MIB as u64);
        output.release(6 * MIB as u64, 7, 100).await;
        let begin = output.begin();
        assert_eq!(begin, 6 * MIB as u64 - 4096, "of the context a whole block stays");
        // Not every file system takes them.
        let holes = !fs::exists(folder.path().join(SENT)).unwrap() || blocks() <= 64 * 1024;
        assert!(holes, "{} bytes of the disk", blocks());
        let (read, _) = output.read(begin, MIB, begin).await.unwrap();
        assert_eq!(read, &bytes[6 * MIB - 4096..]);
        output.read(begin - 1, 10, begin).await.unwrap_err();

        let next = Output::new(&spool, folder.path(), u64::MAX);
        assert_eq!(next.sent(), Sent { offset: 6 * MIB as u64, crc32c: 7, freed: begin });
        assert_eq!(next.begin(), begin);
        // What was written down is lost: that the beginning is gone shows all the same.
        fs::write(folder.path().join(SENT), "{\"off").unwrap();
        let next = Output::new(&spool, folder.path(), u64::MAX);
        assert_eq!((next.sent().offset, next.begin()), (0, begin));
    }
}
