//! `octavius status`: one execution, and why it is as it is.

use clap::Args;
use octavius_core::{HumanDuration, Timestamp};
use octavius_proto::v1;

use crate::cli::IdArgs;
use crate::error::{Failure, Outcome};
use crate::execution::{render, whole};
use crate::exit::Exit;
use crate::output::Format;
use crate::session::Session;
use crate::wait::{self, Waited};
use crate::{Context, env};

/// Flags of `octavius status`.
#[derive(Debug, Args)]
pub struct StatusArgs {
    #[command(flatten)]
    id: IdArgs,
    /// Wait for the end; the exit code tells how it ended: 0, 1 failed, 5 cancelled, 6 timed out, 7 lost
    #[arg(short, long, env = env::WAIT, value_parser = clap::builder::BoolishValueParser::new())]
    wait: bool,
    /// Longest wait, with --wait; then exit code 124
    #[arg(long, value_name = "DURATION", env = env::WAIT_TIMEOUT)]
    wait_timeout: Option<HumanDuration>,
    /// Form of the output
    #[arg(short, long, value_parser = Format::among(&["text", "json", "yaml"]), default_value = "text", env = env::OUTPUT)]
    output: Format,
}

/// Gets an execution from the controller.
///
/// # Errors
/// Where there is none, or the controller cannot be reached.
pub async fn get(session: &Session, id: &str) -> Outcome<v1::GetExecutionResponse> {
    let request = v1::GetExecutionRequest { id: id.to_owned() };
    session.call(async |to| to.executions().get_execution(request.clone()).await).await
}

/// The whole id that is meant: `@latest` and the end of an id may mean another execution later.
///
/// # Errors
/// Where there is none, or the controller cannot be reached.
pub async fn whole_id(session: &Session, id: &str) -> Outcome<String> {
    if id.parse::<octavius_core::ExecutionId>().is_ok() {
        return Ok(id.to_owned());
    }
    Ok(get(session, id).await?.execution.map(|execution| execution.id).unwrap_or_default())
}

/// The git commit of the revision that an execution runs; empty where there is none, or it is not kept any more.
pub async fn commit_of(session: &Session, execution: &v1::Execution) -> String {
    if execution.revision == 0 {
        return String::new();
    }
    let request = v1::ListRevisionsRequest {
        catalog: execution.catalog.clone(),
        limit: 1,
        before: execution.revision + 1,
        job: String::new(),
    };
    let revisions = session.call(async |to| to.catalog().list_revisions(request.clone()).await).await;
    let revisions = revisions.map(|found| found.revisions).unwrap_or_default();
    let pinned = revisions.into_iter().find(|revision| revision.number == execution.revision);
    pinned.and_then(|revision| revision.provenance).map(|provenance| provenance.commit).unwrap_or_default()
}

/// Runs the command.
///
/// # Errors
/// Where there is no such execution, or the controller cannot be reached.
pub async fn run(context: &Context, args: &StatusArgs) -> Outcome {
    let mut id = args.id.get()?;
    if args.wait_timeout.is_some() && !args.wait && !env::is_set(env::WAIT_TIMEOUT) {
        return Err(Failure::usage("--wait-timeout without --wait: nothing is waited for"));
    }
    let session = Session::open(context).await?;
    let mut exit = Exit::Done;
    if args.wait {
        id = whole_id(&session, &id).await?;
        let work = wait::until_ended(&session, &id);
        match wait::bounded(args.wait_timeout.map(HumanDuration::get), work).await? {
            Waited::Done(execution) => exit = wait::exit_of(&execution),
            Waited::TimedOut => exit = Exit::WaitTimedOut,
            Waited::Interrupted => return Ok(Exit::Interrupted),
        }
    }
    let response = get(&session, &id).await?;
    let execution = response.execution.unwrap_or_default();
    let commit = commit_of(&session, &execution).await;
    let wait = response.wait.as_ref();
    if !args.output.structured(&context.shell, || whole(&execution, wait, &commit))? {
        context.shell.print(&render(&execution, wait, &commit, Timestamp::now()))?;
    }
    Ok(exit)
}
