//! `octavius getlogs`: an execution's log, while it runs and after.

use std::fs::File;
use std::io::Write as _;
use std::path::PathBuf;

use clap::Args;
use octavius_core::Timestamp;
use octavius_core::log::Times;
use octavius_proto::v1;
use octavius_proto::words::{has_ended, spoken};

use super::executions::parse_since;
use super::status::whole_id;
use crate::cli::IdArgs;
use crate::error::{Failure, Outcome};
use crate::execution::{because, sentence};
use crate::exit::Exit;
use crate::output::Shell;
use crate::reading::{self, LogRead, LogRequest, LogSink};
use crate::sanitize::{Cleaner, line};
use crate::session::Session;
use crate::stamps::Stamper;
use crate::wait::{self, Waited};
use crate::{Context, env};

/// Flags of `octavius getlogs`.
#[derive(Debug, Args)]
pub struct GetlogsArgs {
    #[command(flatten)]
    id: IdArgs,
    /// Go on with what comes, until the execution has ended, and say how it did
    #[arg(short, long, env = env::FOLLOW, value_parser = clap::builder::BoolishValueParser::new())]
    follow: bool,
    /// Only so many lines from the end
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u64).range(1..), env = env::TAIL)]
    tail: Option<u64>,
    /// Only lines printed since: a duration like 10m, or a time
    #[arg(long, value_name = "TIME", value_parser = parse_since, env = env::SINCE)]
    since: Option<Timestamp>,
    /// Begin each line with the time when it was printed, in UTC
    #[arg(long, env = env::TIMESTAMPS, value_parser = clap::builder::BoolishValueParser::new())]
    timestamps: bool,
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
    stamper: Option<Stamper>,
    /// Lines with their stamps, on their way.
    stamped: Vec<u8>,
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
        let cleaner = (shell.stdout_is_terminal && !raw).then(Cleaner::default);
        Self { shell, file: None, stamper: None, stamped: Vec::new(), cleaner, ends_when_closed: false }
    }

    /// Where the command's flags say.
    fn of(shell: &'a Shell, args: &GetlogsArgs) -> Self {
        let mut sink = Self { ends_when_closed: true, ..Self::stdout(shell, args.raw) };
        if let Some(path) = &args.output_file {
            sink.file = Some(LogFile { path: path.clone(), file: None });
            (sink.cleaner, sink.ends_when_closed) = (None, false);
        }
        sink.stamper = args.timestamps.then(Stamper::default);
        sink
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

    fn write(&mut self, bytes: &[u8]) -> Outcome<()> {
        match (&mut self.file, &mut self.cleaner) {
            (Some(file), _) => {
                return file.open().and_then(|to| to.write_all(bytes)).map_err(|error| Failure::file("write", &file.path, error));
            }
            (None, Some(cleaner)) => self.shell.print(&cleaner.clean(bytes))?,
            (None, None) => self.shell.bytes(bytes)?,
        }
        if self.ends_when_closed && self.shell.is_closed() { Err(Failure::quiet(Exit::Done)) } else { Ok(()) }
    }

    /// Writes what `make` makes of the stamps, where lines have any.
    fn with_stamps(&mut self, make: impl FnOnce(&mut Stamper, &mut Vec<u8>)) -> Outcome<()> {
        let Some(stamper) = &mut self.stamper else { return Ok(()) };
        let mut stamped = std::mem::take(&mut self.stamped);
        stamped.clear();
        make(stamper, &mut stamped);
        let written = if stamped.is_empty() { Ok(()) } else { self.write(&stamped) };
        self.stamped = stamped;
        written
    }
}

impl LogSink for TerminalSink<'_> {
    fn bytes(&mut self, bytes: &[u8], times: &Times) -> Outcome<()> {
        if self.stamper.is_none() {
            return self.write(bytes);
        }
        self.with_stamps(|stamper, out| stamper.stamp(bytes, times, out))
    }

    fn gap(&mut self, gap: &v1::LogGap) -> Outcome<()> {
        self.with_stamps(Stamper::end_line)?;
        let reason = if gap.reason.is_empty() { String::new() } else { format!(": {}", line(&gap.reason)) };
        self.shell.warn(&format!("{} bytes of the log are missing at byte {}{reason}", gap.size, gap.offset));
        Ok(())
    }

    fn attempt(&mut self, number: u32) -> Outcome<()> {
        self.with_stamps(Stamper::end_line)?;
        self.shell.note(&format!("attempt {number}"));
        Ok(())
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
    let mut sink = TerminalSink::of(&context.shell, args);
    let request = LogRequest {
        id,
        attempt: args.attempt.unwrap_or_default(),
        tail_lines: args.tail.unwrap_or_default(),
        since: args.since,
        follow: args.follow,
        times: args.timestamps,
    };
    let work = async {
        let read = reading::read_log(&session, &request, &mut sink).await?;
        // the log first: what is said of its end stands below it
        sink.finish()?;
        let execution = if request.follow { Some(wait::look(&session, &request.id).await?) } else { None };
        Ok((read, execution))
    };
    match wait::bounded(None, work).await? {
        Waited::Done((read, None)) => {
            if let Some(nothing) = nothing(&request, read) {
                context.shell.note(nothing);
            }
            Ok(Exit::Done)
        }
        Waited::Done((read, Some(execution))) => {
            why_it_ended(&execution, &request, read, Timestamp::now()).iter().for_each(|told| context.shell.note(told));
            Ok(Exit::Done)
        }
        Waited::TimedOut | Waited::Interrupted => {
            // before anything came, the file is left as it was
            if sink.file.as_ref().is_none_or(|file| file.file.is_some()) {
                sink.finish()?;
            }
            if request.follow {
                context.shell.note(&format!("detached, the job runs on; stop it: octavius cancel {}", request.id));
            }
            Ok(Exit::Interrupted)
        }
    }
}

/// What to say where there was nothing to show.
fn nothing(request: &LogRequest, read: LogRead) -> Option<&'static str> {
    match read {
        LogRead { shown: true, .. } => None,
        LogRead { size: 0, sealed: true, .. } => Some("nothing was printed"),
        LogRead { size: 0, .. } => Some("nothing has been printed yet"),
        _ => request.since.map(|_| "nothing was printed since then"),
    }
}

/// Why a followed log ended: how the execution did, and whether more of the log may come.
fn why_it_ended(execution: &v1::Execution, request: &LogRequest, read: LogRead, now: Timestamp) -> Vec<String> {
    let mut told = Vec::new();
    let is_last = execution.attempts.last().is_some_and(|last| last.number == read.attempt);
    let attempt = execution.attempts.iter().find(|attempt| attempt.number == request.attempt);
    if let Some(ending) =
        attempt.filter(|_| !(is_last && has_ended(execution.state()))).and_then(|attempt| attempt.ending.as_ref())
    {
        let because = because(ending);
        let because = if because.is_empty() { String::new() } else { format!(": {because}") };
        told.push(format!("attempt {} {}{because}", request.attempt, spoken(ending.outcome())));
    }
    told.push(sentence(execution, now));
    if read.attempt > 0 && !read.sealed {
        told.push(
            "the log may not be whole: its executor has not said so; what it still sends is kept: octavius getlogs".to_owned(),
        );
    }
    told
}

#[cfg(test)]
mod tests {
    use super::*;
    use octavius_proto::to_timestamp;

    fn at(second: i64) -> Timestamp {
        Timestamp::from_second(1_767_225_600 + second).unwrap()
    }

    fn ending(outcome: v1::ExecutionState, reason: &str, message: &str) -> Option<v1::Ending> {
        Some(v1::Ending { outcome: outcome.into(), reason: reason.into(), message: message.into(), ..Default::default() })
    }

    fn execution(state: v1::ExecutionState, attempts: Vec<v1::Attempt>) -> v1::Execution {
        v1::Execution {
            state: state.into(),
            created_at: Some(to_timestamp(at(0))),
            state_since: Some(to_timestamp(at(2))),
            finished_at: (state == v1::ExecutionState::Failed || state == v1::ExecutionState::Lost).then(|| to_timestamp(at(3))),
            reason: if state == v1::ExecutionState::Failed { "EXIT_CODE".into() } else { String::new() },
            exit_code: (state == v1::ExecutionState::Failed).then_some(3),
            attempts,
            ..Default::default()
        }
    }

    #[test]
    fn a_followed_log_ends_with_why() {
        use v1::ExecutionState::{Failed, Lost, Running};
        let first = v1::Attempt { number: 1, ending: ending(Failed, "EXIT_CODE", "exit code 7"), ..Default::default() };
        let second = |ending| v1::Attempt { number: 2, ending, ..Default::default() };
        let told = |execution: &v1::Execution, attempt: u32, sealed: bool| {
            let request = LogRequest { attempt, follow: true, ..LogRequest::default() };
            let attempt = if attempt == 0 { 2 } else { attempt };
            why_it_ended(execution, &request, LogRead { attempt, sealed, size: 9, shown: true }, at(12))
        };
        let failed = execution(Failed, vec![first.clone(), second(ending(Failed, "EXIT_CODE", "exit code 3"))]);
        assert_eq!(told(&failed, 0, true), ["failed after 3s: exit code 3"]);
        assert_eq!(told(&failed, 2, true), ["failed after 3s: exit code 3"]);
        assert_eq!(told(&failed, 1, true), ["attempt 1 failed: exit code 7", "failed after 3s: exit code 3"]);
        let again = execution(Running, vec![first, second(None)]);
        assert_eq!(told(&again, 1, true), ["attempt 1 failed: exit code 7", "running 10s"]);
        let lost = execution(Lost, vec![second(ending(Lost, "EXECUTOR_LOST", ""))]);
        let told = told(&lost, 0, false);
        assert_eq!(told[0], "lost after 3s");
        assert!(told[1].starts_with("the log may not be whole"), "{told:?}");
    }

    #[test]
    fn nothing_to_show_is_told_apart() {
        let read = LogRead { attempt: 1, sealed: true, size: 0, shown: false };
        let request = LogRequest::default();
        assert_eq!(nothing(&request, read), Some("nothing was printed"));
        assert_eq!(nothing(&request, LogRead { sealed: false, ..read }), Some("nothing has been printed yet"));
        let since = LogRequest { since: Some(at(0)), ..LogRequest::default() };
        assert_eq!(nothing(&since, LogRead { size: 9, ..read }), Some("nothing was printed since then"));
        assert_eq!(nothing(&since, LogRead { size: 9, shown: true, ..read }), None);
    }
}
