//! `octavius pause` and `octavius unpause`: whether anything of a job starts.

use clap::Args;
use octavius_proto::v1;
use octavius_proto::words;
use serde_json::{Value, json};

use crate::cli::JobArgs;
use crate::error::{Failure, Outcome};
use crate::exit::Exit;
use crate::output::Format;
use crate::sanitize::line;
use crate::session::Session;
use crate::table::wire_time;
use crate::{Context, env};

/// Flags of `octavius pause`.
#[derive(Debug, Args)]
pub struct PauseArgs {
    #[command(flatten)]
    which: WhichArgs,
    /// Why, for those who wonder
    #[arg(long, value_name = "TEXT", env = env::REASON)]
    reason: Option<String>,
    /// Form of the output
    #[arg(short, long, value_parser = Format::among(&["text", "json", "yaml"]), default_value = "text", env = env::OUTPUT)]
    output: Format,
}

/// Flags of `octavius unpause`.
#[derive(Debug, Args)]
pub struct UnpauseArgs {
    #[command(flatten)]
    which: WhichArgs,
    /// Form of the output
    #[arg(short, long, value_parser = Format::among(&["text", "json", "yaml"]), default_value = "text", env = env::OUTPUT)]
    output: Format,
}

#[derive(Debug, Args)]
struct WhichArgs {
    #[command(flatten)]
    job: JobArgs,
    /// Instead of one: all jobs, also those that are yet to come
    #[arg(long)]
    all: bool,
}

impl WhichArgs {
    /// The job's name; empty for all.
    fn get(&self) -> Outcome<String> {
        if !self.all {
            return self.job.get().map_err(|failure| failure.hint("for all jobs: --all"));
        }
        if self.job.name.is_some() || self.job.job_name.is_some() {
            return Err(Failure::usage("a NAME and --all do not go together").hint("give one of them"));
        }
        Ok(String::new())
    }
}

/// Why nothing of a job starts: `paused by ann since 2026-03-01T12:00:00Z: the database moves`.
#[must_use]
pub fn paused_by(paused: &v1::Paused) -> String {
    let what = if paused.all { "paused with all jobs" } else { "paused" };
    let (at, why) = (wire_time(paused.at.as_ref()), line(&paused.reason));
    let since = if at.is_empty() { at } else { format!(" since {at}") };
    let why = if why.is_empty() { why } else { format!(": {why}") };
    format!("{what} by {}{since}{why}", line(&paused.by))
}

/// The same as JSON.
#[must_use]
pub fn to_json(paused: &v1::Paused) -> Value {
    json!({
        "by": paused.by,
        "at": words::time(paused.at.as_ref()).map(|at| at.to_string()),
        "all": paused.all,
        "reason": paused.reason,
    })
}

/// Runs `octavius pause`.
///
/// # Errors
/// Where the controller cannot be reached or refuses, or there is no such job.
pub async fn pause(context: &Context, args: &PauseArgs) -> Outcome {
    let job = args.which.get()?;
    let session = Session::open(context).await?;
    let reason = args.reason.clone().unwrap_or_default();
    let request = v1::PauseJobsRequest { job: job.clone(), all: args.which.all, reason };
    let paused = session.call(async |to| to.admin().pause_jobs(request.clone()).await).await?.paused.unwrap_or_default();
    let name = (!args.which.all).then_some(&job);
    if !args.output.structured(&context.shell, || json!({ "job": name, "paused": to_json(&paused) }))? {
        let what = if args.which.all { "all jobs".to_owned() } else { line(&job) };
        context.shell.line(&format!("{what}: {}", paused_by(&v1::Paused { all: false, ..paused })))?;
        context.shell.note("executions wait from now on; what was handed out already goes on");
    }
    Ok(Exit::Done)
}

/// Runs `octavius unpause`.
///
/// # Errors
/// Where the controller cannot be reached or refuses, or there is no such job.
pub async fn unpause(context: &Context, args: &UnpauseArgs) -> Outcome {
    let job = args.which.get()?;
    let session = Session::open(context).await?;
    let request = v1::UnpauseJobsRequest { job: job.clone(), all: args.which.all };
    let left = session.call(async |to| to.admin().unpause_jobs(request.clone()).await).await?;
    let name = (!args.which.all).then_some(&job);
    let value = || {
        let paused = left.all.as_ref().map(to_json);
        json!({ "job": name, "was_paused": left.was_paused, "paused": paused, "still_paused": left.still_paused })
    };
    if args.output.structured(&context.shell, value)? {
        return Ok(Exit::Done);
    }
    let shell = &context.shell;
    let was = if left.was_paused { "no longer paused" } else { "not paused" };
    match &left.all {
        Some(all) => shell.line(&format!("{}: {was} by its name, and {}", line(&job), paused_by(all)))?,
        None if args.which.all => shell.line(&format!("all jobs: {was}"))?,
        None => shell.line(&format!("{}: {was}", line(&job)))?,
    }
    if left.all.is_some() {
        shell.hint("octavius unpause --all");
    }
    if !left.still_paused.is_empty() {
        shell.note(&format!("paused by their names still: {}", line(&left.still_paused.join(", "))));
    }
    Ok(Exit::Done)
}
