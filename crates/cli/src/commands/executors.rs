//! `octavius executors`: who runs jobs, and what.

use clap::{Args, Subcommand};
use octavius_proto::v1;
use serde_json::{Value, json};

use super::list::pairs;
use crate::error::{Failure, Outcome};
use crate::exit::Exit;
use crate::output::Format;
use crate::sanitize::line;
use crate::session::Session;
use crate::table::{from_wire, wire_time};
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

fn state_name(number: i32) -> &'static str {
    use v1::ExecutorState as S;
    match S::try_from(number) {
        Ok(S::Registered) => "registered",
        Ok(S::Active) => "active",
        Ok(S::Expired) => "expired",
        Ok(S::Unspecified) | Err(_) => "unknown",
    }
}

/// Runs the command.
///
/// # Errors
/// Where the controller cannot be reached or refuses, or there is no such executor.
pub async fn run(context: &Context, args: &ExecutorsArgs) -> Outcome {
    let session = Session::open(context).await?;
    let listed = session.call(async |to| to.executors().list_executors(v1::ListExecutorsRequest {}).await);
    let executors = listed.await?.executors;
    match &args.command {
        None => list(context, &args.list, &executors),
        Some(Command::List(args)) => list(context, args, &executors),
        Some(Command::Describe(args)) => describe(context, args, &executors),
    }
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
                    state_name(executor.state).to_owned(),
                    format!("{}/{}", executor.running.len(), executor.capacity),
                    if labels.is_empty() { "-".to_owned() } else { labels },
                    wire_time(executor.last_seen_at.as_ref()),
                ];
                if wide {
                    row.extend([executor.runner.clone(), executor.version.clone(), wire_time(executor.registered_at.as_ref())]);
                }
                row
            });
            let mut header = vec!["ID", "STATE", "RUNNING", "LABELS", "LAST SEEN"];
            if wide {
                header.extend(["RUNNER", "VERSION", "REGISTERED"]);
            }
            shell.print(&table::render(&header, rows, shell.width))?;
        }
    }
    Ok(Exit::Done)
}

fn describe(context: &Context, args: &DescribeArgs, executors: &[v1::Executor]) -> Outcome {
    let Some(executor) = executors.iter().find(|executor| executor.id == args.id) else {
        let failure = Failure::refused(format!("no executor `{}`", line(&args.id)));
        let near = octavius_core::nearest::nearest(&args.id, executors.iter().map(|executor| executor.id.as_str()));
        return Err(match near {
            Some(near) => failure.hint(format!("did you mean `{}`?", line(near))),
            None => failure.hint("`octavius executors` shows them"),
        });
    };
    if args.output.structured(&context.shell, || to_json(executor))? {
        return Ok(Exit::Done);
    }
    let facts = [
        ("id", executor.id.clone()),
        ("state", state_name(executor.state).to_owned()),
        ("labels", pairs(&executor.labels)),
        ("running", format!("{} of {}", executor.running.len(), executor.capacity)),
        ("executions", executor.running.join(" ")),
        ("runner", executor.runner.clone()),
        ("version", executor.version.clone()),
        ("registered", wire_time(executor.registered_at.as_ref())),
        ("last seen", wire_time(executor.last_seen_at.as_ref())),
    ];
    let shown = facts.iter().filter(|(_, value)| !value.is_empty());
    context.shell.print(&shown.map(|(name, value)| format!("{name:<10}  {}\n", line(value))).collect::<String>())?;
    Ok(Exit::Done)
}

fn to_json(executor: &v1::Executor) -> Value {
    json!({
        "id": executor.id,
        "state": state_name(executor.state),
        "labels": executor.labels,
        "capacity": executor.capacity,
        "running": executor.running,
        "runner": executor.runner,
        "version": executor.version,
        "registered_at": from_wire(executor.registered_at.as_ref()).map(|at| at.to_string()),
        "last_seen_at": from_wire(executor.last_seen_at.as_ref()).map(|at| at.to_string()),
    })
}
