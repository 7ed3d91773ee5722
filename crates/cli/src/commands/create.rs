//! `octavius create` and `octavius delete`: single jobs in the catalogue `manual`, through the same checks and plans as any other.

use std::path::{Path, PathBuf};
use std::time::Duration;

use clap::Args;
use octavius_catalog::diagnostic::render_text;
use octavius_catalog::render::{self, RenderOptions};
use octavius_catalog::{Limits, LoadedJob, MANUAL, MaxDeletions, Plan, PlanOptions, ReadError, load_file, read_file};
use octavius_core::{CatalogName, JobName};
use octavius_proto::{reason, v1};
use serde_json::json;
use tokio::time::Instant;

use super::apply::{PAUSES, consent, is_within};
use crate::cli::JobArgs;
use crate::error::{Failure, Outcome};
use crate::exit::Exit;
use crate::output::Format;
use crate::remote_catalog::{Applying, Remote, unreadable};
use crate::sanitize::line;
use crate::session::Session;
use crate::{Context, env, remote_catalog};

/// Flags of `octavius create`.
#[derive(Debug, Args)]
pub struct CreateArgs {
    /// The job file: YAML or JSON, also the first Octavius' metadata.json
    #[arg(long, value_name = "FILE", required = true, env = env::JOB_PATH)]
    job_path: PathBuf,
    /// Do not ask
    #[arg(short, long)]
    yes: bool,
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

fn applying(controller_id: String) -> Applying {
    Applying { controller_id, ..Default::default() }
}

/// How long a job is planned again where others change other jobs of the catalogue.
const CONFLICTS: Duration = Duration::from_secs(60);

/// Carries out a plan for one job, and returns the revision that holds it. Everyone's single jobs are in one catalogue: where someone else came
/// before, `look` plans again, and it goes on while that comes to the same.
async fn carry_out(
    session: &Session,
    (mut remote, mut plan): (Remote, Plan),
    look: impl AsyncFn() -> Outcome<(Remote, Plan)>,
) -> Outcome<u64> {
    let (until, mut pause) = (Instant::now() + CONFLICTS, PAUSES.0);
    loop {
        let failure = match remote_catalog::apply(session, &plan, applying(remote.controller_id)).await {
            Ok(revision) => return Ok(revision.number),
            Err(failure) if failure.is(reason::HEAD_MOVED) && Instant::now() + pause < until => failure,
            Err(failure) => return Err(failure),
        };
        tokio::time::sleep(pause).await;
        pause = (pause * 2).min(PAUSES.1);
        let agreed = plan;
        (remote, plan) = look().await?;
        if !plan.changes_anything() {
            return Ok(remote.number());
        }
        remote_catalog::refuse_frozen(&plan.catalog, &remote)?;
        if !is_within(&plan, &agreed) {
            return Err(failure);
        }
    }
}

/// A job that is read from a file of its own. Where that lies on this machine means nothing to others; its own name does.
fn without_folder(mut job: LoadedJob) -> LoadedJob {
    job.file = Path::new(&job.file).file_name().map(|name| name.to_string_lossy().into_owned()).unwrap_or_default();
    job
}

/// The hint that says where a job of another catalogue is changed instead: its file and its repository.
fn where_it_is(job: &v1::GetJobResponse, verb: &str) -> String {
    let revision = job.changed_in.clone().unwrap_or_default();
    let repository = revision.provenance.map(|provenance| provenance.repository).unwrap_or_default();
    let file = job.entry.as_ref().map(|entry| entry.file.as_str()).filter(|file| !file.is_empty()).unwrap_or("its file");
    let of = if repository.is_empty() { String::new() } else { format!(" in {repository}") };
    line(&format!("catalogue `{}` owns it: {verb} {file}{of}", revision.catalog))
}

/// A refusal because another catalogue owns the name says where the job is to be changed instead.
async fn owned_elsewhere(session: &Session, mut failure: Failure, name: &str) -> Failure {
    if !failure.is(reason::NAME_TAKEN) {
        return failure;
    }
    let Ok((_, job)) = super::describe::get_job(session, name).await else { return failure };
    failure.hints.clear();
    failure.hint(where_it_is(&job, "change"))
}

/// Refuses a job that another catalogue owns, before anyone is asked about it.
async fn refuse_elsewhere(session: &Session, name: &JobName) -> Outcome<()> {
    match super::describe::get_job(session, name.as_str()).await {
        Ok((_, job)) => {
            let failure = Failure::refused(format!("job `{name}` is in another catalogue already"));
            Err(failure.hint(where_it_is(&job, "change")))
        }
        Err(failure) if failure.is(reason::JOB_NOT_FOUND) => Ok(()),
        Err(failure) => Err(failure),
    }
}

/// Shows what happens to the one job, on standard error.
fn show(context: &Context, session: &Session, remote: &Remote, plan: &Plan, to: &str) {
    let shell = &context.shell;
    let header = remote_catalog::header(session, &plan.catalog, remote, to);
    shell.stderr(&render::render_text(
        plan,
        &RenderOptions { color: shell.color_stderr(), header: Some(header), ..Default::default() },
    ));
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
    let jobs: Vec<LoadedJob> = loaded.jobs.into_iter().map(without_folder).collect();
    let [job] = jobs.as_slice() else {
        return Err(Failure::usage(format!("{} holds no job", args.job_path.display())));
    };
    let catalog = manual()?;
    let session = Session::open(context).await?;
    let look = async || {
        let remote = remote_catalog::observe_job(&session, &catalog, job.name(), &jobs).await?;
        let plan = remote_catalog::make_plan(&catalog, &remote, &jobs, &PlanOptions::default())?;
        Ok((remote, plan))
    };
    let (remote, plan) = look().await?;
    let mut number = remote.number();
    if plan.changes_anything() {
        if remote.jobs.is_empty() {
            refuse_elsewhere(&session, job.name()).await?;
        }
        show(context, &session, &remote, &plan, &format!("with {}", job.name()));
        remote_catalog::refuse_frozen(&catalog, &remote)?;
        consent(context, &session, &plan, args.yes)?;
        number = match carry_out(&session, (remote, plan), look).await {
            Ok(number) => number,
            Err(failure) => return Err(owned_elsewhere(&session, failure, job.name().as_str()).await),
        };
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
    let look = async || {
        let remote = remote_catalog::observe_job(&session, &catalog, &name, &[]).await?;
        if remote.jobs.is_empty() {
            let (_, job) = super::describe::get_job(&session, name.as_str()).await?;
            return Err(Failure::refused(format!("job `{name}` is not in catalogue `{MANUAL}`"))
                .hint(format!("{}, and apply that with --prune", where_it_is(&job, "remove"))));
        }
        let options = PlanOptions { prune: true, max_deletions: MaxDeletions::Count(1), allow_empty: true };
        let plan = remote_catalog::make_plan(&catalog, &remote, &[], &options)?;
        match plan.changes.iter().find_map(|change| change.reason.as_deref()) {
            Some(reason) => Err(Failure::refused(format!("job `{name}` is {reason}"))),
            None => Ok((remote, plan)),
        }
    };
    let (remote, plan) = look().await?;
    show(context, &session, &remote, &plan, &format!("without {name}"));
    remote_catalog::refuse_frozen(&catalog, &remote)?;
    consent(context, &session, &plan, args.yes)?;
    let number = carry_out(&session, (remote, plan), look).await?;
    if !args.output.structured(&context.shell, || json!({ "name": name, "catalog": catalog, "revision": number }))? {
        context.shell.line(name.as_str())?;
    }
    Ok(Exit::Done)
}
