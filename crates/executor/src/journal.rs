//! What is in a run folder: the files through which an executor, the shim that watches over a job, and the next executor tell each
//! other what they need to know.
//!
//! | name | written by | says |
//! | --- | --- | --- |
//! | `journal` | both | what to run, that it was started, how it ended: a line each; mode 0600, since arguments and secrets are in it |
//! | `output` | the shim | the job's standard output and standard error, in one, as they came; not there before the first byte |
//! | `times` | the shim | when the output was printed: see [`crate::times`]; not there where all of it came at once |
//! | `sent` | the executor, whenever it gives disk blocks back | how far the controller has the output, and the checksum up to there |
//! | `room` | the executor, when the shim needs more than it was given at first | how far the output may grow: see [`crate::room`] |
//! | `stop` | the executor, before it sends the signal | that the executor wants it stopped, and why |
//! | `let-be` | the executor | that it is not the executor's to touch any more, and why: it is let run, and moved away once it is over |
//! | `work/` | the job | its working folder, home and place for temporary files |
//!
//! The journal's first line is written by the executor before it reports `starting`. The shim takes an exclusive lock on the file, which
//! it holds as long as it lives, and only where there is no second line writes one, with its process id: so a job is started at most
//! once. The third line is the last thing it does. One file, because making and removing files is most of what a short job costs.

use std::collections::BTreeMap;

use octavius_core::ExecutionId;
use serde::{Deserialize, Serialize};

pub(crate) const JOURNAL: &str = "journal";
pub(crate) const OUTPUT: &str = "output";
pub(crate) const TIMES: &str = "times";
pub(crate) const SENT: &str = "sent";
pub(crate) const ROOM: &str = "room";
pub(crate) const STOP: &str = "stop";
pub(crate) const LET_BE: &str = "let-be";
pub(crate) const WORK: &str = "work";

/// The version of these files that this program writes; it reads no newer one.
pub(crate) const VERSION: u32 = 1;

/// A journal as far as it goes. No `Debug`: see [`Spec`].
pub(crate) struct Journal {
    pub(crate) spec: Spec,
    /// Whether there is anything after the first line, be it half a line.
    pub(crate) started: bool,
    /// The shim's process id, where it is written.
    pub(crate) shim: Option<u32>,
    /// How the job ended, where that is written.
    pub(crate) exit: Option<Exit>,
}

/// Why a journal cannot be read.
#[derive(Debug, thiserror::Error)]
pub(crate) enum JournalError {
    /// Its writer was interrupted, or it is something else.
    #[error("its first line is not whole")]
    Cut,
    /// A later version wrote it.
    #[error("its version {0} is newer than this program")]
    Newer(u32),
    /// It is something else.
    #[error("its first line is not what it should be: {0}")]
    Malformed(#[from] serde_json::Error),
}

impl Journal {
    /// Reads a journal's bytes.
    pub(crate) fn read(bytes: &[u8]) -> Result<Self, JournalError> {
        #[derive(Deserialize)]
        struct Versioned {
            version: u32,
        }
        let mut lines = bytes.split_inclusive(|&byte| byte == b'\n');
        let first = lines.next().and_then(whole).ok_or(JournalError::Cut)?;
        let spec: Spec = match serde_json::from_slice(first) {
            Ok(Spec { version, .. }) if version > VERSION => return Err(JournalError::Newer(version)),
            Ok(spec) => spec,
            Err(error) => match serde_json::from_slice(first) {
                Ok(Versioned { version }) if version > VERSION => return Err(JournalError::Newer(version)),
                _ => return Err(error.into()),
            },
        };
        let second = lines.next();
        let shim = second.and_then(whole).and_then(|line| std::str::from_utf8(line).ok()?.parse().ok());
        let exit = lines.next().and_then(whole).and_then(|line| serde_json::from_slice(line).ok());
        Ok(Self { spec, started: second.is_some(), shim, exit })
    }
}

/// A line without its end, if it has one.
fn whole(line: &[u8]) -> Option<&[u8]> {
    line.strip_suffix(b"\n")
}

/// A value as a line of a journal.
pub(crate) fn line(value: &impl Serialize) -> Result<Vec<u8>, serde_json::Error> {
    let mut line = serde_json::to_vec(value)?;
    line.push(b'\n');
    Ok(line)
}

/// What to run. No `Debug`: the environment holds secrets.
#[derive(Serialize, Deserialize)]
pub(crate) struct Spec {
    pub(crate) version: u32,
    pub(crate) id: ExecutionId,
    pub(crate) attempt: u32,
    pub(crate) nonce: u64,
    /// The start of the machine at which this was written: after another one, whether a second line reached the disk is not known.
    pub(crate) boot: String,
    pub(crate) command: Vec<String>,
    /// The job's whole environment.
    pub(crate) env: BTreeMap<String, String>,
    /// Variables whose values are masked in the log.
    pub(crate) masked: Vec<String>,
    pub(crate) timeout_ms: u64,
    pub(crate) kill_grace_ms: u64,
    /// How far the output may grow, in bytes, before the executor has said more in `room`.
    #[serde(default = "unlimited")]
    pub(crate) room: u64,
    /// How long output waits for room before it is dropped.
    #[serde(default = "default_patience")]
    pub(crate) room_patience_ms: u64,
}

/// Executors before this version gave no limit.
fn unlimited() -> u64 {
    u64::MAX
}

fn default_patience() -> u64 {
    u64::try_from(octavius_core::Timing::default().spool_patience.as_millis()).unwrap_or(u64::MAX)
}

/// What brought a job to its end.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(crate) enum Cause {
    /// It ended by itself, or by a signal that the shim did not send.
    Exited,
    /// It ran longer than it may and was stopped.
    TimedOut,
    /// The shim was told to stop it.
    Stopped,
    /// It could not be started.
    StartFailed,
}

/// How a job ended.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Exit {
    pub(crate) cause: Cause,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) code: Option<i32>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) signal: Option<i32>,
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub(crate) message: String,
    /// Milliseconds since 1970.
    pub(crate) started_at_ms: u64,
    pub(crate) ended_at_ms: u64,
}

impl Exit {
    pub(crate) fn start_failed(message: String) -> Self {
        Self { cause: Cause::StartFailed, code: None, signal: None, message, started_at_ms: 0, ended_at_ms: 0 }
    }
}

/// Why an executor wants an attempt stopped.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum StopCause {
    /// Someone asked; its ending is reported.
    Cancelled,
    /// It is not this executor's any more; nothing is reported.
    Fenced,
    /// The store does not know of it. Not a reason to stop it: it is let be.
    Unknown,
}

impl StopCause {
    pub(crate) const fn as_str(self) -> &'static str {
        match self {
            Self::Cancelled => "cancelled",
            Self::Fenced => "fenced",
            Self::Unknown => "unknown",
        }
    }

    pub(crate) fn parse(text: &str) -> Option<Self> {
        [Self::Cancelled, Self::Fenced].into_iter().find(|cause| cause.as_str() == text)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SPEC: &str = r#"{"version":1,"id":"00000000000000000000000007","attempt":1,"nonce":9,"boot":"b","command":["true"],"env":{},
        "masked":[],"timeout_ms":1,"kill_grace_ms":1}"#;

    fn read(rest: &str) -> Result<(bool, Option<u32>, Option<i32>), String> {
        let journal =
            Journal::read(format!("{}\n{rest}", SPEC.replace('\n', "")).as_bytes()).map_err(|error| error.to_string())?;
        Ok((journal.started, journal.shim, journal.exit.and_then(|exit| exit.code)))
    }

    #[test]
    fn a_journal_that_was_cut_anywhere_after_its_first_line_says_that_the_job_was_started() {
        let exit = r#"{"cause":"exited","code":3,"started_at_ms":1,"ended_at_ms":2}"#;
        assert_eq!(read(""), Ok((false, None, None)));
        assert_eq!(read("4"), Ok((true, None, None)));
        assert_eq!(read("42\n"), Ok((true, Some(42), None)));
        assert_eq!(read(&format!("42\n{exit}")), Ok((true, Some(42), None)));
        assert_eq!(read(&format!("42\n{exit}\n")), Ok((true, Some(42), Some(3))));
    }

    #[test]
    fn what_is_no_journal_is_told_from_what_is_newer() {
        for (text, expected) in
            [("", "not whole"), ("{", "not whole"), ("{}\n", "missing field"), ("{\"version\":2}\n", "version 2 is newer")]
        {
            let error = Journal::read(text.as_bytes()).err().map(|error| error.to_string()).unwrap_or_default();
            assert!(error.contains(expected), "{text}: {error}");
        }
    }
}
