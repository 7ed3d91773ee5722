//! `octavius approve` and `octavius reject`: somebody's word on an execution that waits for approval.

use clap::Args;
use octavius_core::Timestamp;
use octavius_proto::v1;

use crate::cli::IdArgs;
use crate::error::Outcome;
use crate::execution::{sentence, summary};
use crate::exit::Exit;
use crate::output::Format;
use crate::sanitize::line;
use crate::session::Session;
use crate::{Context, approvals, env};

/// Flags of `octavius approve` and `octavius reject`.
#[derive(Debug, Args)]
pub struct DecisionArgs {
    #[command(flatten)]
    id: IdArgs,
    /// Why, for those who look
    #[arg(long, value_name = "TEXT", env = env::REASON)]
    reason: Option<String>,
    /// Form of the output
    #[arg(short, long, value_parser = Format::among(&["text", "name", "json", "yaml"]), default_value = "text", env = env::OUTPUT)]
    output: Format,
}

/// Runs `octavius approve`.
///
/// # Errors
/// Where there is no such execution, it does not wait for approval, it is not for the caller to approve, or the controller cannot be reached.
pub async fn approve(context: &Context, args: &DecisionArgs) -> Outcome {
    let (session, request) = begin(context, args).await?;
    let response = session.call(async |to| to.executions().approve_execution(request.clone()).await).await?;
    tell(context, args, &response.execution.unwrap_or_default())
}

/// Runs `octavius reject`.
///
/// # Errors
/// As [`approve`].
pub async fn reject(context: &Context, args: &DecisionArgs) -> Outcome {
    let (session, v1::ApproveExecutionRequest { id, reason }) = begin(context, args).await?;
    let request = v1::RejectExecutionRequest { id, reason };
    let response = session.call(async |to| to.executions().reject_execution(request.clone()).await).await?;
    tell(context, args, &response.execution.unwrap_or_default())
}

async fn begin(context: &Context, args: &DecisionArgs) -> Outcome<(Session, v1::ApproveExecutionRequest)> {
    let (id, reason) = (args.id.get().map_err(what_waits)?, args.reason.clone().unwrap_or_default());
    let session = Session::open(context).await?;
    // The whole id: where the call is made again after a lost answer, its end and `@latest` may mean another execution.
    let id = super::status::whole_id(&session, &id).await?;
    Ok((session, v1::ApproveExecutionRequest { id, reason }))
}

fn what_waits(failure: crate::error::Failure) -> crate::error::Failure {
    failure.hint("what waits for approval: octavius executions --all --state waiting_for_approval")
}

fn tell(context: &Context, args: &DecisionArgs, execution: &v1::Execution) -> Outcome {
    let shell = &context.shell;
    if args.output.structured(shell, || summary(execution))? {
        return Ok(Exit::Done);
    }
    match args.output {
        Format::Name => shell.line(&line(&execution.id))?,
        _ => {
            let now = Timestamp::now();
            shell.line(&format!("{}  {}  {}", line(&execution.id), line(&execution.job), sentence(execution, now)))?;
            shell.print(&approvals::render_missing(execution, now))?;
        }
    }
    Ok(Exit::Done)
}
