//! What an attempt's run folder says, for this executor and the next:
//!
//! | name | says |
//! | --- | --- |
//! | `journal` | which attempt, and which Job by its UID; a second line, how it ended, before anything of it is deleted; mode 0600, since values that are masked in the log are in it |
//! | `output` | the container's output as far as it was read |
//! | `position` | where in the container's log that is |
//! | `times`, `sent`, `stop`, `let-be` | as for the process runner |
//!
//! The folder is made after the suspended Job. A Job without one is found by its labels, so that an executor whose disk went with its pod
//! goes on as well.

use std::collections::BTreeMap;
use std::fs::{self, DirBuilder, OpenOptions};
use std::io::{self, Write as _};
use std::os::unix::fs::{DirBuilderExt as _, OpenOptionsExt as _};
use std::path::{Path, PathBuf};
use std::time::Duration;

use octavius_core::execution::{Ending, Fence};
use octavius_core::{ExecutionId, TraceContext};
use serde::{Deserialize, Serialize};

use crate::journal::{JOURNAL, line};
use crate::runner::Held;

/// The version of a journal that this program writes; it reads no newer one.
const VERSION: u32 = 1;
/// Tells these journals from those of the process runner.
const RUNNER: &str = "kubernetes";

/// A journal's first line. No `Debug`: values that must not be seen are in it.
#[derive(Serialize, Deserialize)]
pub(super) struct Record {
    version: u32,
    runner: String,
    id: ExecutionId,
    attempt: u32,
    nonce: u64,
    pub(super) namespace: String,
    pub(super) name: String,
    pub(super) uid: String,
    timeout_ms: u64,
    /// Variables and their values that are masked in the log. Called as in the other journals, so that the quarantine takes it out.
    pub(super) env: BTreeMap<String, String>,
    /// The span that the job was given as the parent of its own.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(super) trace: Option<TraceContext>,
}

impl Record {
    pub(super) fn new(
        held: Held,
        namespace: &str,
        name: &str,
        uid: &str,
        timeout: Duration,
        env: BTreeMap<String, String>,
    ) -> Self {
        Self {
            version: VERSION,
            runner: RUNNER.to_owned(),
            id: held.id,
            attempt: held.fence.attempt,
            nonce: held.fence.nonce,
            namespace: namespace.to_owned(),
            name: name.to_owned(),
            uid: uid.to_owned(),
            timeout_ms: u64::try_from(timeout.as_millis()).unwrap_or(u64::MAX),
            env,
            trace: None,
        }
    }

    /// The same, of a job that was given this span as the parent of its own.
    pub(super) fn in_trace(self, trace: Option<TraceContext>) -> Self {
        Self { trace, ..self }
    }

    pub(super) fn held(&self) -> Held {
        Held { id: self.id, fence: Fence { attempt: self.attempt, nonce: self.nonce } }
    }

    pub(super) fn timeout(&self) -> Duration {
        Duration::from_millis(self.timeout_ms)
    }

    /// Where it is, below the folder of all runs.
    pub(super) fn folder(&self, runs: &Path) -> PathBuf {
        runs.join(self.held().to_string())
    }

    /// Makes the run folder. One that is there is of the same attempt and is let be.
    pub(super) fn write(&self, runs: &Path) -> io::Result<()> {
        let folder = self.folder(runs);
        DirBuilder::new().mode(0o700).create(&folder)?;
        let written = OpenOptions::new()
            .write(true)
            .create_new(true)
            .mode(0o600)
            .open(folder.join(JOURNAL))
            .and_then(|mut journal| journal.write_all(&line(self)?));
        if written.is_err() {
            let _ = fs::remove_dir_all(&folder);
        }
        written
    }

    /// Reads a run folder's journal, and the ending in it. None where its writer did not come so far; an error where it is something else.
    pub(super) fn read(folder: &Path) -> Result<Option<(Self, Option<Ending>)>, String> {
        let bytes = match fs::read(folder.join(JOURNAL)) {
            Ok(bytes) => bytes,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
            Err(error) => return Err(format!("{JOURNAL}: {error}")),
        };
        let mut lines = bytes.split_inclusive(|&byte| byte == b'\n');
        let Some(first) = lines.next().and_then(|line| line.strip_suffix(b"\n")) else { return Ok(None) };
        let record: Self = serde_json::from_slice(first)
            .map_err(|error| format!("{JOURNAL}: its first line is not what it should be: {error}"))?;
        if record.version > VERSION || record.runner != RUNNER {
            return Err(format!("{JOURNAL}: of runner {}, version {}", record.runner, record.version));
        }
        if folder.file_name().is_none_or(|name| *name != *record.held().to_string()) {
            return Err(format!("the folder's name is not {}, which is what is in it", record.held()));
        }
        let ending = lines.next().and_then(|line| line.strip_suffix(b"\n")).and_then(|line| serde_json::from_slice(line).ok());
        Ok(Some((record, ending)))
    }
}

/// Adds to a journal how the attempt ended.
pub(super) fn note_ending(folder: &Path, ending: &Ending) -> io::Result<()> {
    let mut journal = OpenOptions::new().append(true).open(folder.join(JOURNAL))?;
    journal.write_all(&line(ending)?)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_journal_is_read_as_it_was_written_and_a_cut_one_is_nothing() {
        let runs = tempfile::tempdir().unwrap();
        let held = Held { id: ExecutionId::from_bits(7), fence: Fence { attempt: 2, nonce: 9 } };
        let record = Record::new(held, "ns", "n", "u", Duration::from_secs(3), [("A".to_owned(), "b".to_owned())].into());
        record.write(runs.path()).unwrap();
        let folder = record.folder(runs.path());
        let (read, ending) = Record::read(&folder).unwrap().unwrap();
        assert_eq!((read.held(), read.uid.as_str(), read.timeout(), ending), (held, "u", Duration::from_secs(3), None));
        note_ending(&folder, &Ending::succeeded()).unwrap();
        assert_eq!(Record::read(&folder).unwrap().unwrap().1, Some(Ending::succeeded()));
        assert_eq!(record.write(runs.path()).unwrap_err().kind(), io::ErrorKind::AlreadyExists);
        let whole = fs::read(folder.join(JOURNAL)).unwrap();
        fs::write(folder.join(JOURNAL), &whole[..20]).unwrap();
        assert!(Record::read(&folder).unwrap().is_none());
        fs::write(folder.join(JOURNAL), "{\"version\":1}\n").unwrap();
        assert!(Record::read(&folder).is_err());
    }
}
