//! `octavius executions`: the table of executions, one's own or all.

use clap::Args;
use octavius_core::{HumanDuration, State, Timestamp};
use octavius_proto::words::{duration, state_name};
use octavius_proto::{to_state, to_timestamp, v1};
use serde_json::json;

use crate::error::{Failure, Outcome};
use crate::execution::{first_octavius_status, summary};
use crate::exit::Exit;
use crate::output::Format;
use crate::session::Session;
use crate::{Context, approvals, env, sanitize, table};

/// Flags of `octavius executions`.
#[derive(Debug, Args)]
pub struct ExecutionsArgs {
    /// Everyone's, not only yours
    #[arg(short, long, env = env::ALL_USERS, value_parser = clap::builder::BoolishValueParser::new())]
    all: bool,
    /// Only those of this job
    #[arg(long, visible_alias = "job", value_name = "NAME", env = env::JOB_NAME)]
    job_name: Option<String>,
    /// Only those of this user
    #[arg(long, value_name = "USER", env = env::USER)]
    user: Option<String>,
    /// Only those in these states
    #[arg(long, value_name = "STATE", value_delimiter = ',', value_parser = parse_state, env = env::STATE)]
    state: Vec<State>,
    /// Only those created since: a duration like 2h, or a time
    #[arg(long, value_name = "TIME", value_parser = parse_since, env = env::SINCE)]
    since: Option<Timestamp>,
    /// At most so many
    #[arg(long, value_name = "N", default_value_t = 50, value_parser = clap::value_parser!(u32).range(1..), env = env::LIMIT)]
    limit: u32,
    /// Form of the output
    #[arg(short, long, value_parser = Format::among(&["table", "wide", "name", "json", "yaml"]), default_value = "table", env = env::OUTPUT)]
    output: Format,
}

/// Reads a state's name, for a flag.
///
/// # Errors
/// Where there is no such state.
pub fn parse_state(text: &str) -> Result<State, String> {
    State::parse(text).ok_or_else(|| {
        let names = State::ALL.map(State::as_str);
        match octavius_core::nearest::nearest(text, names) {
            Some(near) => format!("there is no such state; did you mean `{near}`?"),
            None => format!("there is no such state; states are {}", names.join(", ")),
        }
    })
}

/// Reads a time: a duration before now, or a time in RFC 3339.
///
/// # Errors
/// Where it is neither.
pub fn parse_since(text: &str) -> Result<Timestamp, String> {
    if let Ok(duration) = text.parse::<HumanDuration>() {
        return Timestamp::now().checked_sub(duration.get()).map_err(|error| error.to_string());
    }
    text.parse().map_err(|_| "write a duration like 90s, 2h or 1d, or a time like 2026-03-01T12:00:00Z".to_owned())
}

/// The columns of the table.
pub const HEADER: [&str; 7] = ["ID", "JOB", "STATE", "USER", "EXECUTOR", "CREATED", "DURATION"];

/// An execution's row.
#[must_use]
pub fn row(execution: &v1::Execution, now: Timestamp) -> Vec<String> {
    vec![
        execution.id.clone(),
        execution.job.clone(),
        state_name(execution.state()).to_owned(),
        execution.user.clone(),
        if execution.executor.is_empty() { "-".to_owned() } else { execution.executor.clone() },
        table::wire_time(execution.created_at.as_ref()),
        duration(execution, now),
    ]
}

/// The columns of the wide table, and of the one below a job.
pub const WIDE_HEADER: [&str; 9] = ["ID", "JOB", "STATE", "USER", "EXECUTOR", "CREATED", "DURATION", "OLD STATUS", "REASON"];

/// An execution's row in the wide table: with what the first Octavius called its state, and why it is so.
#[must_use]
pub fn wide_row(execution: &v1::Execution, now: Timestamp) -> Vec<String> {
    let more = [first_octavius_status(execution).to_owned(), execution.reason.clone()];
    row(execution, now).into_iter().chain(more).collect()
}

/// Most executions in one answer.
const PAGE: usize = 1000;

/// All executions that fit a request, page by page, at most `limit`; and whether there are more. A page may be short, or empty, and
/// others follow all the same.
///
/// # Errors
/// Where the controller cannot be reached or refuses.
pub async fn fetch(
    session: &Session,
    mut request: v1::ListExecutionsRequest,
    limit: usize,
) -> Outcome<(Vec<v1::Execution>, bool)> {
    let mut executions = Vec::new();
    while executions.len() < limit {
        request.limit = u32::try_from((limit - executions.len()).min(PAGE)).unwrap_or(u32::MAX);
        let page = session.call(async |to| to.executions().list_executions(request.clone()).await).await?;
        executions.extend(page.executions);
        if page.next_page_token.is_empty() {
            return Ok((executions, false));
        }
        request.page_token = page.next_page_token;
    }
    Ok((executions, true))
}

/// Runs the command.
///
/// # Errors
/// Where the controller cannot be reached or refuses.
pub async fn run(context: &Context, args: &ExecutionsArgs) -> Outcome {
    if args.all && args.user.is_some() {
        return Err(Failure::usage("--all and --user do not go together"));
    }
    let session = Session::open(context).await?;
    let request = v1::ListExecutionsRequest {
        user: args.user.clone().unwrap_or_default(),
        all: args.all,
        job: args.job_name.clone().unwrap_or_default(),
        states: args.state.iter().map(|state| to_state(*state).into()).collect(),
        since: args.since.map(to_timestamp),
        limit: 0,
        page_token: String::new(),
    };
    let (executions, truncated) = fetch(&session, request, usize::try_from(args.limit).unwrap_or(usize::MAX)).await?;
    let shell = &context.shell;
    if args.output.structured(
        shell,
        || json!({ "executions": executions.iter().map(summary).collect::<Vec<_>>(), "truncated": truncated }),
    )? {
        return Ok(Exit::Done);
    }
    match args.output {
        Format::Name => {
            shell
                .print(&executions.iter().map(|execution| format!("{}\n", sanitize::line(&execution.id))).collect::<String>())?;
        }
        _ if executions.is_empty() => {
            let narrowed = args.job_name.is_some() || args.user.is_some() || !args.state.is_empty() || args.since.is_some();
            shell.note(match (narrowed, args.all || args.user.is_some()) {
                (true, true) => "no execution matches",
                (true, false) => "no execution of yours matches; `--all` looks at everyone's",
                (false, true) => "no executions",
                (false, false) => "no executions of yours; `--all` shows everyone's",
            });
        }
        _ => {
            let now = Timestamp::now();
            let table = match args.output {
                Format::Wide => {
                    table::render(&WIDE_HEADER, executions.iter().map(|execution| wide_row(execution, now)), shell.width)
                }
                _ => table::render(&HEADER, executions.iter().map(|execution| row(execution, now)), shell.width),
            };
            shell.print(&table)?;
            let yours = executions.iter().filter(|execution| approvals::needs_you(execution)).count();
            if yours > 0 {
                let these = if yours == 1 { "1 of these is".to_owned() } else { format!("{yours} of these are") };
                shell.note(&format!("{these} yours to approve: octavius approve ID, or octavius reject ID"));
            }
        }
    }
    if truncated {
        shell.note(&format!("{} shown; --limit for more", executions.len()));
    }
    Ok(Exit::Done)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_are_durations_or_moments() {
        assert!(parse_since("2h").unwrap() < Timestamp::now());
        assert_eq!(parse_since("2026-03-01T12:00:00Z").unwrap().to_string(), "2026-03-01T12:00:00Z");
        assert!(parse_since("yesterday").is_err());
    }

    #[test]
    fn a_state_that_is_mistyped_is_recognised() {
        assert_eq!(parse_state("timed_out"), Ok(State::TimedOut));
        assert!(parse_state("suceeded").unwrap_err().contains("`succeeded`"));
    }
}
