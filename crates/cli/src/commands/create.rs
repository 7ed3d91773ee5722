//! `octavius create` and `octavius delete`: single jobs in the catalogue `manual`, through the same checks and plans as any other.

use std::path::PathBuf;

use clap::Args;
use octavius_catalog::diagnostic::render_text;
use octavius_catalog::{Limits, MaxDeletions, PlanOptions, ReadError, load_file, read_file};
use octavius_core::{CatalogName, JobName};
use octavius_proto::reason;
use serde_json::json;

use super::apply::consent;
use crate::cli::JobArgs;
use crate::error::{Failure, Outcome};
use crate::exit::Exit;
use crate::output::Format;
use crate::remote_catalog::unreadable;
use crate::session::Session;
use crate::{Context, env, remote_catalog};

/// The catalogue of jobs that did not come from a folder.
const MANUAL: &str = "manual";

/// Flags of `octavius create`.
#[derive(Debug, Args)]
pub struct CreateArgs {
    /// The job file: YAML or JSON, also the first Octavius' metadata.json
    #[arg(long, value_name = "FILE", required = true, env = env::JOB_PATH)]
    job_path: PathBuf,
    /// Form of the output
    #[arg(short, long, value_parser = Format::among(&["name", "json", "yaml"]), default_value = "name", env = env::OUTPUT)]
    output: Format,
}

/// Flags of `octavius delete`.
#[derive(Debug, Args)]
pub struct DeleteArgs {
    #[command(flatten)]
    job: JobArgs,
    /// Do not ask; needed without a terminal
    #[arg(short, long)]
    yes: bool,
    /// Form of the output
    #[arg(short, long, value_parser = Format::among(&["name", "json", "yaml"]), default_value = "name", env = env::OUTPUT)]
    output: Format,
}

fn manual() -> Outcome<CatalogName> {
    CatalogName::new(MANUAL).map_err(|error| Failure::new(Exit::Fault, error))
}

/// A refusal because another catalogue owns the name says where the job is to be changed instead.
async fn owned_elsewhere(session: &Session, mut failure: Failure, name: &str) -> Failure {
    if !failure.is(reason::NAME_TAKEN) {
        return failure;
    }
    let Ok((_, job)) = super::describe::get_job(session, name).await else { return failure };
    let revision = job.changed_in.unwrap_or_default();
    let repository = revision.provenance.map(|provenance| provenance.repository).unwrap_or_default();
    failure.hints.clear();
    let place = match (repository.is_empty(), job.entry) {
        (true, _) => String::new(),
        (false, entry) => format!(": change {} in {repository}", entry.map(|entry| entry.file).unwrap_or_default()),
    };
    failure.hint(format!("catalogue `{}` owns it{place}", revision.catalog))
}

/// Runs `octavius create`.
///
/// # Errors
/// Where the file has errors, another catalogue owns the job, or the controller cannot be reached.
pub async fn run(context: &Context, args: &CreateArgs) -> Outcome {
    let shell = &context.shell;
    let limits = Limits::default();
    let bytes = read_file(&args.job_path, &limits).map_err(|error| match error {
        ReadError::Missing(path) => Failure::usage(format!("no file at {}", path.display())),
        error => unreadable(error),
    })?;
    let loaded = load_file(&args.job_path.to_string_lossy(), &bytes, &limits);
    let findings: String = loaded.diagnostics.iter().map(|diagnostic| render_text(diagnostic, shell.color_stderr())).collect();
    shell.stderr(&findings);
    if loaded.has_errors() {
        return Err(Failure::quiet(Exit::Usage));
    }
    let [job] = loaded.jobs.as_slice() else {
        return Err(Failure::usage(format!("{} holds no job", args.job_path.display())));
    };
    let catalog = manual()?;
    let session = Session::open(context).await?;
    let remote = remote_catalog::observe_job(&session, &catalog, job.name(), &loaded.jobs).await?;
    let plan = remote_catalog::make_plan(&catalog, &remote, &loaded.jobs, &PlanOptions::default())?;
    let mut number = remote.number();
    if plan.changes_anything() {
        match remote_catalog::apply(&session, &plan, remote.controller_id, None).await {
            Ok(revision) => number = revision.number,
            Err(failure) => return Err(owned_elsewhere(&session, failure, job.name().as_str()).await),
        }
    }
    if !args.output.structured(shell, || json!({ "name": job.name(), "catalog": catalog, "revision": number }))? {
        shell.line(job.name().as_str())?;
    }
    Ok(Exit::Done)
}

/// Runs `octavius delete`.
///
/// # Errors
/// Where there is no such job in the catalogue, the person declines, or the controller cannot be reached.
pub async fn delete(context: &Context, args: &DeleteArgs) -> Outcome {
    let name: JobName = args.job.get()?.parse().map_err(|error| Failure::new(Exit::Usage, anyhow::Error::new(error)))?;
    let catalog = manual()?;
    let session = Session::open(context).await?;
    let remote = remote_catalog::observe_job(&session, &catalog, &name, &[]).await?;
    if remote.jobs.is_empty() {
        let (_, job) = super::describe::get_job(&session, name.as_str()).await?;
        let owner = job.changed_in.unwrap_or_default().catalog;
        return Err(Failure::refused(format!("job `{name}` belongs to catalogue `{owner}`, not to `{MANUAL}`"))
            .hint("take its file away, and apply that catalogue with --prune"));
    }
    let options = PlanOptions { prune: true, max_deletions: MaxDeletions::Count(1), allow_empty: true };
    let plan = remote_catalog::make_plan(&catalog, &remote, &[], &options)?;
    if let Some(reason) = plan.changes.iter().find_map(|change| change.reason.as_deref()) {
        return Err(Failure::refused(format!("job `{name}` is {reason}")));
    }
    consent(context, &session, &plan, args.yes)?;
    let revision = remote_catalog::apply(&session, &plan, remote.controller_id, None).await?;
    if !args.output.structured(&context.shell, || json!({ "name": name, "catalog": catalog, "revision": revision.number }))? {
        context.shell.line(name.as_str())?;
    }
    Ok(Exit::Done)
}
