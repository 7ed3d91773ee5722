//! Completion in a shell, of what is there at that moment: the script that `octavius completion` prints asks this program at each TAB, by
//! a first argument that is no command of ours, what may stand where the cursor is. Commands, flags and paths are known here; names of jobs,
//! arguments and ids come from the controller.
//!
//! Whoever presses TAB waits, and did not ask for an error: nothing takes longer than half a second, and whatever fails is silence.

mod live;

use std::ffi::{OsStr, OsString};
use std::io::Write as _;
use std::process::ExitCode;
use std::sync::{Arc, mpsc};
use std::time::Duration;

use clap::{Arg, ArgMatches, Command, FromArgMatches as _};
use clap_complete::engine::{ArgValueCompleter, CompletionCandidate};

use crate::cli::{self, ConnectArgs};
use crate::env;
use live::Wanted;

/// The first argument by which the scripts ask. After it the shell's name, and the words before the cursor, the one that it is in last.
const ASKED: &str = "__complete";

/// How long a TAB may take in all, whatever the disk and the network do.
const LIMIT: Duration = Duration::from_millis(500);

/// Columns of a description beside a candidate: shells show it on one line.
const HELP_COLUMNS: usize = 72;

/// The shells for which there is a script that asks.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Asking {
    /// GNU bash, 4 or later.
    Bash,
    /// Zsh, 5 or later.
    Zsh,
    /// Fish, 3 or later.
    Fish,
}

impl Asking {
    fn named(name: &OsStr) -> Option<Self> {
        match name.to_str()? {
            "bash" => Some(Self::Bash),
            "zsh" => Some(Self::Zsh),
            "fish" => Some(Self::Fish),
            _ => None,
        }
    }

    /// What the shell is to read.
    #[must_use]
    pub const fn script(self) -> &'static str {
        match self {
            Self::Bash => include_str!("octavius.bash"),
            Self::Zsh => include_str!("octavius.zsh"),
            Self::Fish => include_str!("octavius.fish"),
        }
    }
}

/// Answers a script, where one asks; none where this is any other call.
#[must_use]
pub fn answer(arguments: impl IntoIterator<Item = OsString>) -> Option<ExitCode> {
    let mut arguments = arguments.into_iter().skip(1);
    if arguments.next()? != ASKED {
        return None;
    }
    let shell = arguments.next().and_then(|name| Asking::named(&name));
    let words: Vec<OsString> = arguments.collect();
    let Some(shell) = shell.filter(|_| !words.is_empty()) else { return Some(ExitCode::SUCCESS) };
    let (told, candidates) = mpsc::channel();
    // On a thread of its own, which ends with the process: a disk that hangs holds nobody up.
    std::thread::spawn(move || told.send(candidates_for(shell, words)));
    if let Ok(candidates) = candidates.recv_timeout(LIMIT) {
        let text: String = candidates.iter().map(|candidate| candidate.line(shell)).collect();
        let _ = std::io::stdout().lock().write_all(text.as_bytes()); // where the shell has gone nobody waits for it
    }
    Some(ExitCode::SUCCESS)
}

/// What may stand where the cursor is.
#[derive(Debug, PartialEq, Eq)]
struct Candidate {
    value: String,
    help: String,
}

impl Candidate {
    /// One that can be shown on a line. What a controller says is not trusted to be that: a name that moves the cursor is left out.
    fn new(candidate: &CompletionCandidate) -> Option<Self> {
        let value = candidate.get_value().to_str().filter(|value| !value.chars().any(char::is_control))?.to_owned();
        let help = candidate.get_help().map(ToString::to_string).unwrap_or_default();
        let help = crate::sanitize::line(&crate::sanitize::first_sentence(&help));
        let help = match help.char_indices().nth(HELP_COLUMNS) {
            Some((end, _)) => format!("{}…", help[..end].trim_end()),
            None => help,
        };
        Some(Self { value, help })
    }

    /// The value, and after a tab what it means, where the shell shows that.
    fn line(&self, shell: Asking) -> String {
        match (shell, self.help.is_empty()) {
            (Asking::Bash, _) | (_, true) => format!("{}\n", self.value),
            (Asking::Zsh | Asking::Fish, false) => format!("{}\t{}\n", self.value, self.help),
        }
    }
}

fn candidates_for(shell: Asking, words: Vec<OsString>) -> Vec<Candidate> {
    // Bash gives words as they were typed; the others have taken quotes and backslashes away.
    let words: Vec<OsString> = match shell {
        Asking::Bash => words.iter().map(|word| unquoted(&word.to_string_lossy()).into()).collect(),
        Asking::Zsh | Asking::Fish => words,
    };
    let Some((current, before)) = words.split_last() else { return Vec::new() };
    let line = Arc::new(Line::read(before));
    let mut command = with_live_values(cli::command(), &mut Vec::new(), &line);
    let home = env::path(env::HOME).filter(|_| current.as_encoded_bytes().starts_with(b"~/"));
    let home = home.and_then(|home| home.into_string().ok());
    let (typed, home) = match (&home, current.to_str()) {
        (Some(home), Some(text)) => (format!("{home}{}", &text[1..]).into(), Some(home)),
        _ => (current.clone(), None),
    };
    let flag_is_wanted = current.as_encoded_bytes().starts_with(b"-");
    let arguments: Vec<OsString> = std::iter::once("octavius".into()).chain(before.iter().cloned()).chain([typed]).collect();
    let (index, folder) = (arguments.len() - 1, std::env::current_dir().ok());
    let found = clap_complete::engine::complete(&mut command, arguments, index, folder.as_deref()).unwrap_or_default();
    let mut candidates: Vec<Candidate> = found.iter().filter_map(Candidate::new).collect();
    // Thirty flags beside three jobs hide the jobs: flags are shown to who types a dash, or where there is nothing else.
    if !flag_is_wanted && candidates.iter().any(|candidate| !candidate.value.starts_with('-')) {
        candidates.retain(|candidate| !candidate.value.starts_with('-'));
    }
    if let Some(home) = home {
        for candidate in &mut candidates {
            if let Some(rest) = candidate.value.strip_prefix(home) {
                candidate.value = format!("~{rest}");
            }
        }
    }
    candidates
}

/// What the words before the cursor say that matters for what comes from a controller.
#[derive(Debug, Default)]
pub(crate) struct Line {
    /// How to reach it.
    connect: ConnectArgs,
    /// The job that is named.
    job: Option<String>,
    /// The catalogue that is named, or its folder.
    catalog: Option<String>,
    path: Option<std::path::PathBuf>,
    /// Names of arguments that are given already.
    given: Vec<String>,
}

impl Line {
    fn read(before: &[OsString]) -> Self {
        // A flag whose value the cursor is in says nothing yet, and would make the rest unreadable.
        let ends_in_flag = before.last().is_some_and(|word| word.to_string_lossy().starts_with('-'));
        let whole = &before[..before.len() - usize::from(ends_in_flag)];
        let words = std::iter::once(OsString::from("octavius")).chain(whole.iter().cloned());
        let Ok(matches) = cli::parser().ignore_errors(true).try_get_matches_from(words) else { return Self::default() };
        let connect = ConnectArgs::from_arg_matches(&matches).unwrap_or_default();
        let mut innermost = &matches;
        while let Some((_, inner)) = innermost.subcommand() {
            innermost = inner;
        }
        let text = |name: &str| one(innermost, name);
        let catalog = innermost.try_get_one::<octavius_core::CatalogName>("catalog_name").ok().flatten();
        let arguments = innermost.try_get_many::<String>("arg").ok().flatten().into_iter().flatten();
        Self {
            connect,
            job: text("name").or_else(|| text("job_name")).or_else(|| env::get(env::JOB_NAME)),
            catalog: catalog.map(ToString::to_string),
            path: innermost.try_get_one::<std::path::PathBuf>("path").ok().flatten().cloned(),
            given: arguments.filter_map(|text| Some(text.split_once('=')?.0.to_owned())).collect(),
        }
    }
}

fn one(matches: &ArgMatches, name: &str) -> Option<String> {
    matches.try_get_one::<String>(name).ok().flatten().cloned()
}

/// What of an argument's values only a controller, or the configuration, knows.
fn wanted(path: &[String], arg: &Arg) -> Option<Wanted> {
    let path: Vec<&str> = path.iter().map(String::as_str).collect();
    Some(match (path.as_slice(), arg.get_id().as_str()) {
        (_, "job_name" | "job") => Wanted::Job,
        (["describe" | "execute" | "pause" | "unpause" | "delete"], "name") => Wanted::Job,
        (["cancel"], "id" | "job_id") => Wanted::Execution(live::Which::Going),
        (["approve" | "reject"], "id" | "job_id") => Wanted::Execution(live::Which::Yours),
        (["rerun"], "id" | "job_id") => Wanted::Execution(live::Which::Ended),
        (["status" | "getlogs"], "id" | "job_id") => Wanted::Execution(live::Which::All),
        (["executors", "describe" | "drain" | "resume" | "revoke"], "id") => Wanted::Executor,
        (["tokens", "revoke"], "id") => Wanted::Token,
        (["webhooks", "deliveries" | "retry" | "test"], "webhook") => Wanted::Webhook,
        (["rollback" | "export"], "revision") => Wanted::Revision,
        (_, "catalog_name") => Wanted::Catalog,
        (["execute"], "arg") => Wanted::Argument,
        (["executions" | "cancel"], "state") => Wanted::State,
        (["config", "use"], "name") | (_, "context") => Wanted::Context,
        _ => return None,
    })
}

fn with_live_values(command: Command, path: &mut Vec<String>, line: &Arc<Line>) -> Command {
    let within: &[String] = path;
    let command = command.mut_args(|arg| match wanted(within, &arg) {
        Some(wanted) => {
            let line = Arc::clone(line);
            arg.add(ArgValueCompleter::new(move |current: &OsStr| live::ask(&line, wanted, current)))
        }
        None => arg,
    });
    command.mut_subcommands(|sub| {
        path.push(sub.get_name().to_owned());
        let sub = with_live_values(sub, path, line);
        path.pop();
        sub
    })
}

/// A word without its quotes and backslashes, as bash would take it; a quote that is still open is taken away too. Nothing is expanded.
fn unquoted(word: &str) -> String {
    let mut text = String::with_capacity(word.len());
    let mut quote = None;
    let mut characters = word.chars().peekable();
    while let Some(c) = characters.next() {
        match (quote, c) {
            (None, '\'' | '"') => quote = Some(c),
            (Some(open), c) if c == open => quote = None,
            (None, '\\') => text.extend(characters.next()),
            (Some('"'), '\\') if characters.peek().is_some_and(|next| "\\\"$`".contains(*next)) => text.extend(characters.next()),
            _ => text.push(c),
        }
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    fn completed(shell: Asking, words: &[&str]) -> Vec<String> {
        let candidates = candidates_for(shell, words.iter().map(Into::into).collect());
        candidates.into_iter().map(|candidate| candidate.value).collect()
    }

    #[test]
    fn commands_flags_and_their_values_need_no_controller() {
        assert_eq!(completed(Asking::Bash, &["ex"]), ["export", "execute", "executions", "executor", "executors"]);
        assert_eq!(completed(Asking::Fish, &["executors", "dr"]), ["drain"]);
        assert_eq!(completed(Asking::Zsh, &["tokens", "create", "--rol"]), ["--role"]);
        assert_eq!(completed(Asking::Bash, &["tokens", "create", "--role", "ap"]), ["applier"]);
        assert_eq!(completed(Asking::Bash, &["tokens", "create", "--role=ap"]), ["--role=applier"]);
        assert_eq!(completed(Asking::Bash, &["cancel", "--state", "queued,run"]), ["queued,running"]);
        let commands = completed(Asking::Bash, &[""]);
        assert!(commands.contains(&"apply".to_owned()) && !commands.iter().any(|one| one.starts_with('-')), "{commands:?}");
        assert!(!commands.contains(&"man".to_owned()), "what the help does not show is not offered");
    }

    /// A new argument that names a job, an execution or an executor does not go without completion because somebody forgot.
    #[test]
    fn whatever_names_something_live_is_completed() {
        fn walk(command: &Command, path: &mut Vec<String>, problems: &mut Vec<String>) {
            for arg in command.get_arguments() {
                let help = arg.get_help().map(ToString::to_string).unwrap_or_default().to_lowercase();
                let names_one = ["name of the job", "the id, ", "the executor's id", "the token's id", "context's name"]
                    .iter()
                    .any(|begin| help.starts_with(begin));
                // An executor that is registered or started says itself who it is.
                let own = path.first().is_some_and(|first| first == "executor");
                if names_one && !own && wanted(path, arg).is_none() {
                    problems.push(format!("{} {}: {help}", path.join(" "), arg.get_id()));
                }
            }
            for sub in command.get_subcommands() {
                path.push(sub.get_name().to_owned());
                walk(sub, path, problems);
                path.pop();
            }
        }
        let mut problems = Vec::new();
        walk(&cli::command(), &mut Vec::new(), &mut problems);
        assert_eq!(problems, Vec::<String>::new());
    }

    #[test]
    fn what_was_typed_before_the_cursor_is_understood() {
        let read = |words: &[&str]| Line::read(&words.iter().map(OsString::from).collect::<Vec<_>>());
        let line = read(&["--context", "prod", "execute", "refund", "--arg", "order=A-1", "--arg"]);
        assert_eq!((line.connect.context.as_deref(), line.job.as_deref()), (Some("prod"), Some("refund")));
        assert_eq!(line.given, ["order"]);
        let line = read(&["run", "--job-name", "refund", "--cp-host", "ctl:1"]);
        assert_eq!((line.job.as_deref(), line.connect.cp_host.as_deref()), (Some("refund"), Some("ctl:1")));
        assert_eq!(read(&["rollback", "3", "--catalog-name", "support"]).catalog.as_deref(), Some("support"));
        assert!(read(&["executions", "--nonsense", "x"]).job.is_none());
    }

    #[test]
    fn words_are_read_as_bash_reads_them() {
        for (typed, meant) in [
            ("a\\ b", "a b"),
            ("'a b'", "a b"),
            ("\"a \\\"b", "a \"b"),
            ("'a \\b", "a \\b"),
            ("\"a\\b\"", "a\\b"),
            ("reason=\"two w", "reason=two w"),
            ("", ""),
            ("\\", ""),
        ] {
            assert_eq!(unquoted(typed), meant, "{typed}");
        }
    }

    #[test]
    fn what_would_move_the_cursor_is_not_offered() {
        let candidate =
            |value: &str, help: &str| Candidate::new(&CompletionCandidate::new(value).help(Some(help.to_owned().into())));
        assert_eq!(candidate("a\nb", ""), None);
        assert_eq!(candidate("a\u{1b}[2J", ""), None);
        let shown = candidate("a", &format!("{}\nmore", "w".repeat(100))).unwrap();
        assert_eq!(shown.help.chars().count(), HELP_COLUMNS + 1);
        assert_eq!(shown.line(Asking::Bash), "a\n");
        assert!(shown.line(Asking::Fish).starts_with("a\tww"));
    }

    #[test]
    fn only_the_scripts_are_answered() {
        let asked = |words: &[&str]| answer(words.iter().map(OsString::from)).is_some();
        assert!(!asked(&["octavius"]) && !asked(&["octavius", "list"]) && !asked(&["octavius", "execute", ASKED]));
        assert!(asked(&["octavius", ASKED]) && asked(&["octavius", ASKED, "tcsh", "li"]));
    }
}
