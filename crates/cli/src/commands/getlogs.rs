//! `octavius getlogs`: an execution's log, while it runs and after.

use std::fs::File;
use std::io::Write as _;
use std::path::PathBuf;

use clap::Args;
use octavius_proto::v1;

use super::status::whole_id;
use crate::cli::IdArgs;
use crate::error::{Failure, Outcome};
use crate::exit::Exit;
use crate::output::Shell;
use crate::sanitize::{Cleaner, line};
use crate::session::Session;
use crate::wait::{self, LogRequest, LogSink, Waited};
use crate::{Context, env};

/// Flags of `octavius getlogs`.
#[derive(Debug, Args)]
pub struct GetlogsArgs {
    #[command(flatten)]
    id: IdArgs,
    /// Go on with what comes, until the execution has ended
    #[arg(short, long, env = env::FOLLOW, value_parser = clap::builder::BoolishValueParser::new())]
    follow: bool,
    /// Only so many lines from the end
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u64).range(1..), env = env::TAIL)]
    tail: Option<u64>,
    /// The attempt, counted from 1 [default: the newest that started]
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..), env = env::ATTEMPT)]
    attempt: Option<u32>,
    /// The bytes as they are, also on a terminal
    #[arg(long, env = env::RAW, value_parser = clap::builder::BoolishValueParser::new())]
    raw: bool,
    /// Write to this file
    #[arg(long, value_name = "FILE", env = env::OUTPUT_FILE)]
    output_file: Option<PathBuf>,
}

/// Writes a log to standard output or a file, harmless where that is a terminal.
#[derive(Debug)]
pub struct TerminalSink<'a> {
    shell: &'a Shell,
    file: Option<LogFile>,
    cleaner: Option<Cleaner>,
    /// Whether a reader that has gone ends it: there is nothing else that it is read for.
    ends_when_closed: bool,
}

/// A file that is opened, and emptied, when the first bytes come: a log that cannot be read leaves the one before as it is.
#[derive(Debug)]
struct LogFile {
    path: PathBuf,
    file: Option<File>,
}

impl LogFile {
    fn open(&mut self) -> std::io::Result<&mut File> {
        Ok(match &mut self.file {
            Some(file) => file,
            empty => empty.insert(File::create(&self.path)?),
        })
    }
}

impl<'a> TerminalSink<'a> {
    /// To standard output.
    #[must_use]
    pub fn stdout(shell: &'a Shell, raw: bool) -> Self {
        Self { shell, file: None, cleaner: (shell.stdout_is_terminal && !raw).then(Cleaner::default), ends_when_closed: false }
    }

    /// Ends the output.
    ///
    /// # Errors
    /// Where the last bytes cannot be written.
    pub fn finish(&mut self) -> Outcome<()> {
        if let Some(cleaner) = &mut self.cleaner {
            self.shell.print(cleaner.finish())?;
        }
        if let Some(file) = &mut self.file {
            file.open().and_then(std::io::Write::flush).map_err(|error| Failure::file("write", &file.path, error))?;
        }
        Ok(())
    }
}

impl LogSink for TerminalSink<'_> {
    fn bytes(&mut self, bytes: &[u8]) -> Outcome<()> {
        match (&mut self.file, &mut self.cleaner) {
            (Some(file), _) => {
                return file.open().and_then(|to| to.write_all(bytes)).map_err(|error| Failure::file("write", &file.path, error));
            }
            (None, Some(cleaner)) => self.shell.print(&cleaner.clean(bytes))?,
            (None, None) => self.shell.bytes(bytes)?,
        }
        if self.ends_when_closed && self.shell.is_closed() { Err(Failure::quiet(Exit::Done)) } else { Ok(()) }
    }

    fn gap(&mut self, gap: &v1::LogGap) {
        let reason = if gap.reason.is_empty() { String::new() } else { format!(": {}", line(&gap.reason)) };
        self.shell.warn(&format!("{} bytes of the log are missing at byte {}{reason}", gap.size, gap.offset));
    }

    fn attempt(&mut self, number: u32) {
        self.shell.note(&format!("attempt {number}"));
    }

    fn damaged(&mut self, attempt: u32) {
        self.shell.warn(&format!(
            "the log of attempt {attempt} is not whole: its executor's count or checksum differs from what was kept"
        ));
    }
}

/// Runs the command.
///
/// # Errors
/// Where there is no such log, the controller cannot be reached, or the log cannot be written.
pub async fn run(context: &Context, args: &GetlogsArgs) -> Outcome {
    let id = args.id.get()?;
    let session = Session::open(context).await?;
    let id = if args.follow { whole_id(&session, &id).await? } else { id };
    let mut sink = TerminalSink { ends_when_closed: true, ..TerminalSink::stdout(&context.shell, args.raw) };
    if let Some(path) = &args.output_file {
        let file = LogFile { path: path.clone(), file: None };
        sink = TerminalSink { shell: &context.shell, file: Some(file), cleaner: None, ends_when_closed: false };
    }
    let request = LogRequest {
        id,
        attempt: args.attempt.unwrap_or_default(),
        tail_lines: args.tail.unwrap_or_default(),
        follow: args.follow,
    };
    let work = wait::read_log(context, &session, &request, &mut sink);
    let waited = wait::bounded(None, work).await?;
    // interrupted before anything came: the file is left as it was
    if matches!(waited, Waited::Done(())) || sink.file.as_ref().is_none_or(|file| file.file.is_some()) {
        sink.finish()?;
    }
    Ok(match waited {
        Waited::Done(()) => Exit::Done,
        Waited::TimedOut | Waited::Interrupted => Exit::Interrupted,
    })
}
