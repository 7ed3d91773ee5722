//! `octavius executors`: who runs jobs, and what.

mod change;

use clap::{Args, Subcommand};
use octavius_proto::v1;
use octavius_proto::words;
use serde_json::{Value, json};

use super::list::pairs;
use crate::error::Outcome;
use crate::exit::Exit;
use crate::output::Format;
use crate::sanitize::line;
use crate::session::Session;
use crate::table::wire_time;
use crate::{Context, env, table};

/// Flags of `octavius executors`.
#[derive(Debug, Args)]
#[command(args_conflicts_with_subcommands = true)]
pub struct ExecutorsArgs {
    #[command(subcommand)]
    command: Option<Command>,
    #[command(flatten)]
    list: ListArgs,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// List executors
    List(ListArgs),
    /// Show one executor
    Describe(DescribeArgs),
    /// Give an executor nothing more; what it runs goes on
    Drain(change::DrainArgs),
    /// Give an executor that drains work again
    Resume(change::ResumeArgs),
    /// Remove an executor: its token is worth nothing any more
    Revoke(change::RevokeArgs),
}

#[derive(Debug, Args)]
struct ListArgs {
    /// Form of the output
    #[arg(short, long, value_parser = Format::among(&["table", "wide", "name", "json", "yaml"]), default_value = "table", env = env::OUTPUT)]
    output: Format,
}

#[derive(Debug, Args)]
struct DescribeArgs {
    /// The executor's id
    id: String,
    /// Form of the output
    #[arg(short, long, value_parser = Format::among(&["text", "json", "yaml"]), default_value = "text", env = env::OUTPUT)]
    output: Format,
}

/// Runs the command.
///
/// # Errors
/// Where the controller cannot be reached or refuses, or there is no such executor.
pub async fn run(context: &Context, args: &ExecutorsArgs) -> Outcome {
    match &args.command {
        None => list(context, &args.list, &listed(context).await?),
        Some(Command::List(args)) => list(context, args, &listed(context).await?),
        Some(Command::Describe(args)) => describe(context, args).await,
        Some(Command::Drain(args)) => change::drain(context, args).await,
        Some(Command::Resume(args)) => change::resume(context, args).await,
        Some(Command::Revoke(args)) => change::revoke(context, args).await,
    }
}

async fn listed(context: &Context) -> Outcome<Vec<v1::Executor>> {
    let session = Session::open(context).await?;
    let listed = session.call(async |to| to.executors().list_executors(v1::ListExecutorsRequest {}).await);
    Ok(listed.await?.executors)
}

/// An executor as it is now.
async fn fetch(session: &Session, id: &str) -> Outcome<v1::Executor> {
    let request = v1::GetExecutorRequest { id: id.to_owned() };
    let answer = session.call(async |to| to.executors().get_executor(request.clone()).await).await;
    let answer = answer.map_err(|failure| match failure.is(octavius_proto::reason::NOT_FOUND) && failure.hints.is_empty() {
        true => failure.hint("`octavius executors` shows them"),
        false => failure,
    });
    Ok(answer?.executor.unwrap_or_default())
}

/// Who has an executor drain: `draining since 2026-03-01T12:00:00Z (sam)`.
fn drained_by(drain: &v1::Drain) -> String {
    format!("draining since {} ({})", wire_time(drain.at.as_ref()), line(&drain.by))
}

fn list(context: &Context, args: &ListArgs, executors: &[v1::Executor]) -> Outcome {
    let shell = &context.shell;
    if args.output.structured(shell, || json!({ "executors": executors.iter().map(to_json).collect::<Vec<_>>() }))? {
        return Ok(Exit::Done);
    }
    match args.output {
        Format::Name => shell.print(&executors.iter().map(|executor| format!("{}\n", line(&executor.id))).collect::<String>())?,
        _ if executors.is_empty() => shell.note("no executors; `octavius executor register` makes one known"),
        format => {
            let wide = format == Format::Wide;
            let rows = executors.iter().map(|executor| {
                let labels = pairs(&executor.labels);
                let mut row = vec![
                    executor.id.clone(),
                    words::executor_state(executor),
                    if labels.is_empty() { "-".to_owned() } else { labels },
                    format!("{}/{}", executor.running.len(), executor.capacity),
                    wire_time(executor.last_seen_at.as_ref()),
                    executor.version.clone(),
                    executor.runner.clone(),
                ];
                if wide {
                    let runs = executor.running.join(",");
                    row.extend([wire_time(executor.registered_at.as_ref()), if runs.is_empty() { "-".to_owned() } else { runs }]);
                }
                row
            });
            let mut header = vec!["ID", "STATE", "LABELS", "SLOTS", "LAST SEEN", "VERSION", "RUNNER"];
            if wide {
                header.extend(["REGISTERED", "EXECUTIONS"]);
            }
            shell.print(&table::render(&header, rows, shell.width))?;
        }
    }
    Ok(Exit::Done)
}

async fn describe(context: &Context, args: &DescribeArgs) -> Outcome {
    let session = Session::open(context).await?;
    let executor = &fetch(&session, &args.id).await?;
    if args.output.structured(&context.shell, || to_json(executor))? {
        return Ok(Exit::Done);
    }
    context.shell.print(&text(executor))?;
    Ok(Exit::Done)
}

fn text(executor: &v1::Executor) -> String {
    let facts = [
        ("id", executor.id.clone()),
        ("state", words::executor_state_name(executor.state()).to_owned()),
        ("labels", pairs(&executor.labels)),
        (
            "draining",
            executor.draining.as_ref().map(|d| format!("since {} ({})", wire_time(d.at.as_ref()), d.by)).unwrap_or_default(),
        ),
        ("slots", format!("{}/{}", executor.running.len(), executor.capacity)),
        ("executions", executor.running.join(" ")),
        ("runner", executor.runner.clone()),
        ("version", executor.version.clone()),
        ("registered", wire_time(executor.registered_at.as_ref())),
        ("last seen", wire_time(executor.last_seen_at.as_ref())),
    ];
    let orphans = orphans(executor).into_iter().enumerate().map(|(at, orphan)| (if at == 0 { "orphans" } else { "" }, orphan));
    let shown = facts.into_iter().filter(|(_, value)| !value.is_empty()).chain(orphans);
    shown.map(|(name, value)| format!("{name:<10}  {}\n", line(&value))).collect()
}

/// What the executor has made and no execution is for, a line each, and one for those that are not told by name.
fn orphans(executor: &v1::Executor) -> Vec<String> {
    let time = |at: &Option<_>| Some(wire_time(at.as_ref())).filter(|time| !time.is_empty());
    let mut lines: Vec<String> = executor
        .orphans
        .iter()
        .map(|orphan| {
            let since = time(&orphan.since).map_or_else(String::new, |since| format!(" since {since}"));
            let removed = time(&orphan.removed_at).map_or_else(String::new, |at| format!(", removed after {at}"));
            format!("Job {}/{}: no execution is for it{since}{removed}", orphan.namespace, orphan.name)
        })
        .collect();
    let untold = usize::try_from(executor.orphan_count).unwrap_or(usize::MAX).saturating_sub(lines.len());
    if untold > 0 {
        lines.push(format!("and {untold} more"));
    }
    lines
}

fn to_json(executor: &v1::Executor) -> Value {
    json!({
        "id": executor.id,
        "state": words::executor_state_name(executor.state()),
        "labels": executor.labels,
        "capacity": executor.capacity,
        "running": executor.running,
        "draining": executor.draining.as_ref().map(|drain| json!({
            "by": drain.by,
            "at": words::time(drain.at.as_ref()).map(|at| at.to_string()),
        })),
        "runner": executor.runner,
        "version": executor.version,
        "registered_at": words::time(executor.registered_at.as_ref()).map(|at| at.to_string()),
        "last_seen_at": words::time(executor.last_seen_at.as_ref()).map(|at| at.to_string()),
        "orphan_count": executor.orphan_count,
        "orphans": executor.orphans.iter().map(|orphan| json!({
            "name": orphan.name,
            "namespace": orphan.namespace,
            "since": words::time(orphan.since.as_ref()).map(|at| at.to_string()),
            "removed_at": words::time(orphan.removed_at.as_ref()).map(|at| at.to_string()),
        })).collect::<Vec<_>>(),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(seconds: i64) -> Option<prost_types::Timestamp> {
        Some(prost_types::Timestamp { seconds, nanos: 0 })
    }

    #[test]
    fn orphans_are_shown_with_when_they_are_removed_and_those_without_a_name_are_counted() {
        let orphan =
            |name: &str, removed_at| v1::Orphan { name: name.to_owned(), namespace: "jobs".to_owned(), since: at(0), removed_at };
        let executor = v1::Executor {
            id: "pay-1".to_owned(),
            state: v1::ExecutorState::Active.into(),
            capacity: 4,
            orphans: vec![orphan("octavius-a-1", at(600)), orphan("made\u{1b}[2J", None)],
            orphan_count: 5,
            ..v1::Executor::default()
        };
        insta::assert_snapshot!(text(&executor), @r"
        id          pay-1
        state       active
        slots       0/4
        orphans     Job jobs/octavius-a-1: no execution is for it since 1970-01-01T00:00:00Z, removed after 1970-01-01T00:10:00Z
                    Job jobs/made�[2J: no execution is for it since 1970-01-01T00:00:00Z
                    and 3 more
        ");
        let json = to_json(&executor);
        assert_eq!((&json["orphan_count"], &json["orphans"][0]["removed_at"]), (&5.into(), &"1970-01-01T00:10:00Z".into()));
        assert_eq!(json["orphans"][1]["removed_at"], Value::Null);
    }
}
