//! `octavius cancel`: stops one execution, or those of a job in a state.

use clap::Args;
use octavius_core::{State, Timestamp};
use octavius_proto::{to_state, v1};
use serde_json::json;

use crate::cli::IdArgs;
use crate::error::{Failure, Outcome};
use crate::execution::{sentence, summary};
use crate::exit::Exit;
use crate::output::Format;
use crate::sanitize::line;
use crate::session::Session;
use crate::{Context, env, prompt};

/// Flags of `octavius cancel`.
#[derive(Debug, Args)]
pub struct CancelArgs {
    #[command(flatten)]
    id: IdArgs,
    /// Instead of one: those in this state
    #[arg(long, value_name = "STATE", value_delimiter = ',', value_parser = super::executions::parse_state)]
    state: Vec<State>,
    /// Instead of one: those of this job
    #[arg(long, value_name = "NAME")]
    job_name: Option<String>,
    /// With --state or --job-name: everyone's, not only yours
    #[arg(long)]
    all: bool,
    /// Do not ask; several without a terminal need it
    #[arg(short, long)]
    yes: bool,
    /// Form of the output
    #[arg(short, long, value_parser = Format::among(&["text", "name", "json", "yaml"]), default_value = "text", env = env::OUTPUT)]
    output: Format,
}

/// Most executions that one call cancels: more is a reason to look twice.
const MOST: usize = 10_000;

/// Runs the command.
///
/// # Errors
/// Where there is no such execution, it may not be cancelled, or the controller cannot be reached.
pub async fn run(context: &Context, args: &CancelArgs) -> Outcome {
    let shell = &context.shell;
    let selects = !args.state.is_empty() || args.job_name.is_some();
    if args.id.is_given() && (selects || args.all) {
        return Err(Failure::usage("an ID and --state, --job-name or --all do not go together")
            .hint("give the ID alone to cancel one, or the flags alone to cancel several"));
    }
    let cancelled = if selects {
        several(context, args).await?
    } else if args.all {
        return Err(Failure::usage("--all goes with --state or --job-name").hint("--state queued, --job-name NAME, or both"));
    } else {
        let id = args.id.get().map_err(|failure| failure.hint("for several: --state queued --job-name NAME"))?;
        let session = Session::open(context).await?;
        vec![cancel(&session, &id).await?]
    };
    if args.output.structured(shell, || json!({ "executions": cancelled.iter().map(summary).collect::<Vec<_>>() }))? {
        return Ok(Exit::Done);
    }
    for execution in &cancelled {
        match args.output {
            Format::Name => shell.line(&line(&execution.id))?,
            _ => shell.line(&format!(
                "{}  {}  {}",
                line(&execution.id),
                line(&execution.job),
                sentence(execution, Timestamp::now())
            ))?,
        }
    }
    if cancelled.is_empty() {
        shell.note("no execution matches");
    }
    Ok(Exit::Done)
}

async fn cancel(session: &Session, id: &str) -> Outcome<v1::Execution> {
    let request = v1::CancelExecutionRequest { id: id.to_owned() };
    let response = session.call(async |to| to.executions().cancel_execution(request.clone()).await).await?;
    Ok(response.execution.unwrap_or_default())
}

async fn several(context: &Context, args: &CancelArgs) -> Outcome<Vec<v1::Execution>> {
    if !context.shell.interactive && !args.yes {
        return Err(Failure::refused("several executions may be cancelled, and there is no terminal to ask at")
            .hint("pass --yes where that is meant; `octavius executions` with the same flags shows which"));
    }
    let live = || State::ALL.into_iter().filter(|state| !state.is_terminal()).collect();
    let states: Vec<State> = if args.state.is_empty() { live() } else { args.state.clone() };
    let session = Session::open(context).await?;
    let request = v1::ListExecutionsRequest {
        all: args.all,
        job: args.job_name.clone().unwrap_or_default(),
        states: states.into_iter().map(|state| to_state(state).into()).collect(),
        ..Default::default()
    };
    let (found, more) = super::executions::fetch(&session, request, MOST).await?;
    if context.shell.interactive && !args.yes && !found.is_empty() {
        let word = if found.len() == 1 { "execution" } else { "executions" };
        prompt::confirm(&context.shell, &format!("cancel {} {word} on {}?", found.len(), session.name()))?;
    }
    let mut cancelled = Vec::with_capacity(found.len());
    for execution in found {
        cancelled.push(cancel(&session, &execution.id).await?);
    }
    if more {
        context.shell.warn(&format!("these are {MOST}, and there are more: run it again for them"));
    }
    Ok(cancelled)
}
