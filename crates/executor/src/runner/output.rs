//! What a job prints, as both runners keep it: one file in its run folder, which grows while someone else reads it.

use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt as _;
use std::path::Path;
use std::sync::{Arc, Mutex, PoisonError};

use tokio::task::spawn_blocking;

use crate::journal::OUTPUT;

/// The file, opened when it is first read.
#[derive(Debug, Default)]
pub(super) struct Output(Mutex<Option<Arc<File>>>);

impl Output {
    /// The bytes from `offset` on that are there by now, at most `longest`; none where the file is not there yet.
    pub(super) async fn read(&self, folder: &Path, offset: u64, longest: usize) -> io::Result<Vec<u8>> {
        let Some(file) = self.open(folder)? else { return Ok(Vec::new()) };
        // The size is known without touching the disk, and mostly there is nothing new.
        let more = file.metadata()?.len().saturating_sub(offset);
        let size = usize::try_from(more).unwrap_or(usize::MAX).min(longest);
        if size == 0 {
            return Ok(Vec::new());
        }
        spawn_blocking(move || read_at(&file, offset, size)).await.map_err(io::Error::other)?
    }

    fn open(&self, folder: &Path) -> io::Result<Option<Arc<File>>> {
        let mut opened = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(file) = &*opened {
            return Ok(Some(Arc::clone(file)));
        }
        match File::open(folder.join(OUTPUT)) {
            Ok(file) => Ok(Some(Arc::clone(opened.insert(Arc::new(file))))),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
            Err(error) => Err(error),
        }
    }
}

fn read_at(file: &File, offset: u64, size: usize) -> io::Result<Vec<u8>> {
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
