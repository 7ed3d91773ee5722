//! The log of a daemon: where it goes, how much of it, and its form.

mod line;

use std::fs::{File, OpenOptions};
use std::io::{self, IsTerminal as _, Write};
use std::path::{Path, PathBuf};
use std::sync::Mutex;

use clap::ValueEnum;
use tracing_subscriber::EnvFilter;
use tracing_subscriber::layer::SubscriberExt as _;
use tracing_subscriber::util::SubscriberInitExt as _;

use crate::env;
use crate::error::{Failure, Outcome};

use line::Lines;

/// The form of a line.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum LogFormat {
    /// For people.
    Text,
    /// For programs: one JSON object a line.
    Json,
}

/// Where a daemon's log goes, and how much of it.
#[derive(Debug, Default)]
pub struct LogOptions {
    /// `error`, `warn`, `info`, `debug`, `trace` or `off`; the first Octavius says `warning` too.
    pub level: Option<String>,
    /// The form; without one, text on a terminal, and JSON elsewhere.
    pub format: Option<LogFormat>,
    /// A file instead of standard error.
    pub file: Option<PathBuf>,
    /// Largest size of the file before it is put aside, in MiB; 0 for no limit.
    pub max_mib: u64,
}

/// Starts the log.
///
/// # Errors
/// Where the level or the filter cannot be understood, or the file cannot be written.
pub fn start_log(options: &LogOptions, default_level: &str) -> Outcome<()> {
    let level = match &options.level {
        Some(text) => level(text)?,
        None => default_level,
    };
    let filter = env::get(env::LOG).unwrap_or_else(|| level.to_owned());
    let filter = EnvFilter::try_new(&filter).map_err(|_| {
        Failure::usage(format!("{} is \"{}\", not a filter", env::LOG, filter.escape_debug()))
            .hint("write TARGET=LEVEL, several by comma, like octavius_controller=debug,info")
    })?;
    let (to, terminal): (Box<dyn Write + Send>, bool) = match &options.file {
        Some(path) => {
            let file = LogFile::open(path, options.max_mib).map_err(|error| Failure::file("write the log to", path, error))?;
            (Box::new(file), false)
        }
        None => (Box::new(io::stderr()), io::stderr().is_terminal()),
    };
    let format = options.format.unwrap_or(if terminal { LogFormat::Text } else { LogFormat::Json });
    let coloured = terminal && !env::is_set(env::NO_COLOR);
    let started = tracing_subscriber::registry().with(filter).with(Lines::new(format, coloured, Mutex::new(to))).try_init();
    started.map_err(|error| Failure::fault(format!("cannot start the log: {error}")))
}

/// A level by its name. A word that is none would be taken for a part of the program by the filter, and everything else would go unlogged.
fn level(text: &str) -> Outcome<&'static str> {
    Ok(match text.trim().to_ascii_lowercase().as_str() {
        "error" => "error",
        "warn" | "warning" => "warn",
        "info" => "info",
        "debug" => "debug",
        "trace" => "trace",
        "off" => "off",
        _ => {
            return Err(Failure::usage(format!("\"{}\" is not a log level", text.escape_debug()))
                .hint(format!("levels are error, warn, info, debug, trace and off; filters go into {}", env::LOG)));
        }
    })
}

/// A log file that is put aside as `NAME.1` when it has become too large, over the one before. Each write is a line: none is cut in two.
#[derive(Debug)]
struct LogFile {
    path: PathBuf,
    file: File,
    size: u64,
    limit: u64,
}

impl LogFile {
    fn open(path: &Path, max_mib: u64) -> io::Result<Self> {
        let file = OpenOptions::new().create(true).append(true).open(path)?;
        let size = file.metadata()?.len();
        Ok(Self { path: path.to_owned(), file, size, limit: max_mib.saturating_mul(1024 * 1024) })
    }

    fn put_aside(&mut self) -> io::Result<()> {
        let mut aside = self.path.clone().into_os_string();
        aside.push(".1");
        // Opened whatever came of this: somebody else may have put it aside, and it is no longer there.
        let moved = std::fs::rename(&self.path, aside);
        *self = Self::open(&self.path, self.limit / (1024 * 1024))?;
        moved
    }
}

impl Write for LogFile {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        if self.limit > 0 && self.size > 0 && self.size + bytes.len() as u64 > self.limit {
            let _ = self.put_aside(); // where that cannot be done, the file grows: better than to lose what it says
        }
        self.file.write_all(bytes)?;
        self.size += bytes.len() as u64;
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        self.file.flush()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::exit::Exit;

    #[test]
    fn a_log_file_is_put_aside_when_it_is_large() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("log");
        let mut file = LogFile::open(&path, 1).unwrap();
        for _ in 0..3 {
            file.write_all(&vec![b'x'; 600 * 1024]).unwrap();
        }
        assert_eq!(std::fs::metadata(&path).unwrap().len(), 600 * 1024);
        assert!(folder.path().join("log.1").exists());
    }

    #[test]
    fn a_log_file_that_somebody_else_moved_away_begins_again() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("log");
        let mut file = LogFile::open(&path, 1).unwrap();
        file.write_all(&vec![b'x'; 600 * 1024]).unwrap();
        std::fs::rename(&path, folder.path().join("theirs")).unwrap();
        file.write_all(&vec![b'x'; 600 * 1024]).unwrap();
        assert_eq!(std::fs::metadata(&path).unwrap().len(), 600 * 1024);
    }

    #[test]
    fn a_log_file_that_cannot_be_put_aside_grows() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("log");
        std::fs::create_dir(folder.path().join("log.1")).unwrap();
        let mut file = LogFile::open(&path, 1).unwrap();
        for _ in 0..2 {
            file.write_all(&vec![b'x'; 600 * 1024]).unwrap();
        }
        assert_eq!(std::fs::metadata(&path).unwrap().len(), 1200 * 1024);
    }

    #[test]
    fn a_word_that_is_no_level_is_refused() {
        assert_eq!((level("Warning").unwrap(), level(" info").unwrap(), level("off").unwrap()), ("warn", "info", "off"));
        for wrong in ["inof", "info,octavius=debug", "octavius=debug", "", "3"] {
            assert_eq!(level(wrong).unwrap_err().exit, Exit::Usage, "{wrong}");
        }
    }
}
