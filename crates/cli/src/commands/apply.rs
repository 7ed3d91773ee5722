//! `octavius apply`: makes the controller hold what the files say.

use std::path::PathBuf;

use clap::Args;
use octavius_catalog::render::{self, RenderOptions};
use octavius_catalog::{MaxDeletions, Plan, PlanOptions, Summary};
use serde_json::json;

use crate::error::{Failure, Outcome};
use crate::exit::Exit;
use crate::output::Format;
use crate::session::Session;
use crate::{Context, env, prompt, remote_catalog};

/// Flags of `octavius apply`.
#[derive(Debug, Args)]
pub struct ApplyArgs {
    /// Folder of the catalogue
    #[arg(value_name = "PATH", default_value = "catalog")]
    path: PathBuf,
    /// Remove jobs that no file asks for
    #[arg(long)]
    prune: bool,
    /// Most jobs that may be removed: a number, or a part like 20% [default: 10%, at least 1, at most 5]
    #[arg(long, value_name = "N|N%", default_value = None)]
    max_deletions: Option<MaxDeletions>,
    /// Take a catalogue without any job over one that has jobs
    #[arg(long)]
    allow_empty: bool,
    /// Show the plan and end
    #[arg(long, env = env::DRY_RUN, value_parser = clap::builder::BoolishValueParser::new())]
    dry_run: bool,
    /// Do not ask; removals without a terminal need it
    #[arg(short, long)]
    yes: bool,
    /// Form of the output
    #[arg(short, long, value_parser = Format::among(&["text", "json", "yaml"]), default_value = "text", env = env::OUTPUT)]
    output: Format,
}

/// Runs the command.
///
/// # Errors
/// Where the files have errors, the person declines, the controller refuses, or cannot be reached.
pub async fn run(context: &Context, args: &ApplyArgs) -> Outcome {
    let shell = &context.shell;
    let local = remote_catalog::read_sound(shell, &args.path)?;
    let session = Session::open(context).await?;
    let remote = remote_catalog::observe(&session, &local.name, &local.loaded.jobs).await?;
    let options =
        PlanOptions { prune: args.prune, max_deletions: args.max_deletions.unwrap_or_default(), allow_empty: args.allow_empty };
    let made = remote_catalog::make_plan(&local.name, &remote, &local.loaded.jobs, &options);
    // a plan that goes too far is shown all the same: how else would one see whether it is meant
    let (plan, refusal) = match made {
        Err(refusal) if refusal.exit == Exit::Refused => {
            let all = PlanOptions { max_deletions: MaxDeletions::Count(usize::MAX), allow_empty: true, ..options };
            (remote_catalog::make_plan(&local.name, &remote, &local.loaded.jobs, &all)?, Some(refusal))
        }
        made => (made?, None),
    };
    let header = remote_catalog::header(&session, &local.name, &remote, local.provenance.as_ref());
    let notes = super::diff::notes(&session, &plan).await;
    let show = |color| render::render_text(&plan, &RenderOptions { color, header: Some(header.clone()), notes: notes.clone() });
    if args.dry_run {
        if !args.output.structured(shell, || plan.report())? {
            shell.print(&show(shell.color()))?;
        }
        return refusal.map_or(Ok(Exit::Done), Err);
    }
    shell.stderr(&show(shell.color_stderr()));
    if let Some(refusal) = refusal {
        return Err(refusal);
    }
    if !plan.changes_anything() {
        print(context, args.output, remote.number(), &plan.summary)?;
        return Ok(Exit::Done);
    }
    consent(context, &session, &plan, args.yes)?;
    let revision = remote_catalog::apply(&session, &plan, remote.controller_id, local.provenance.as_ref()).await?;
    print(context, args.output, revision.number, &plan.summary)?;
    Ok(Exit::Done)
}

/// Asks, where there is someone to ask; removals are never carried out without consent.
///
/// # Errors
/// Where the person declines, or a removal has no consent.
pub fn consent(context: &Context, session: &Session, plan: &Plan, yes: bool) -> Outcome<()> {
    if yes {
        return Ok(());
    }
    if context.shell.interactive {
        let counts = render::render_summary(&plan.summary);
        return prompt::confirm(&context.shell, &format!("apply to {} ({})?", session.name(), counts.trim_end()));
    }
    if plan.summary.removed > 0 {
        let word = if plan.summary.removed == 1 { "job" } else { "jobs" };
        return Err(Failure::refused(format!(
            "{} {word} would be removed, and there is no terminal to ask at",
            plan.summary.removed
        ))
        .hint("pass --yes where that is meant"));
    }
    Ok(())
}

/// Prints the revision.
///
/// # Errors
/// Where standard output cannot be written.
pub fn print(context: &Context, format: Format, revision: u64, summary: &Summary) -> Outcome<()> {
    if !format.structured(&context.shell, || json!({ "revision": revision, "summary": summary }))? {
        context.shell.line(&format!("revision {revision}"))?;
    }
    Ok(())
}
