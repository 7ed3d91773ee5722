//! `octavius diff`: what an apply would change; or, offline, what changed since a git revision.

use std::collections::BTreeMap;
use std::io::Write as _;
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};

use clap::Args;
use octavius_catalog::git::{self, GitError};
use octavius_catalog::render::{self, Note, RenderOptions};
use octavius_catalog::{Limits, Made, MaxDeletions, Observed, Plan, PlanFile, PlanOptions, PlannedFrom, load};
use octavius_core::{ExecutionId, JobName};
use octavius_proto::v1;
use octavius_proto::words;
use serde_json::{Value, json};

use crate::error::{Failure, Outcome};
use crate::exit::Exit;
use crate::lineage::{Age, age, refuse_older};
use crate::notes::{notes, report, runs};
use crate::output::Format;
use crate::remote_catalog::{Local, Remote, header, make_plan, observe, read_sound, short, working_tree};
use crate::session::Session;
use crate::{Context, env};

/// Flags of `octavius diff`.
#[derive(Debug, Args)]
#[command(
    after_help = "Exit codes: 0 the same, 1 differences, 2 findings in the files or wrong flags, 3 and above other trouble"
)]
pub struct DiffArgs {
    /// Folder of the catalogue
    #[arg(value_name = "PATH", default_value = "catalog")]
    path: PathBuf,
    /// Form of the output; `markdown` is for a comment on a pull request
    #[arg(short, long, value_parser = Format::among(&["text", "markdown", "json", "yaml", "name"]), default_value = "text", env = env::OUTPUT)]
    output: Format,
    /// Compare with a git revision of the same folder, offline: a branch, a tag, a commit, HEAD~1
    #[arg(long, value_name = "GITREV", env = env::AGAINST)]
    against: Option<String>,
    /// Write the plan into a file too: `octavius apply PLAN` carries out exactly that
    #[arg(long, value_name = "PLAN", value_parser = a_file(), env = env::OUT)]
    out: Option<PathBuf>,
    /// Write a plan also where the commit is older than the one that was applied last
    #[arg(long, env = env::ALLOW_OLDER, value_parser = clap::builder::BoolishValueParser::new())]
    allow_older: bool,
    /// Plan with the removal of jobs that no file asks for
    #[arg(long)]
    prune: bool,
    /// End with 0 also where there are differences
    #[arg(long, env = env::EXIT_ZERO, value_parser = clap::builder::BoolishValueParser::new())]
    exit_zero: bool,
}

/// Takes the name of a file: a plan is kept, and standard output has the diff already.
fn a_file() -> impl clap::builder::TypedValueParser<Value = PathBuf> {
    use clap::builder::{PathBufValueParser, TypedValueParser as _};
    PathBufValueParser::new().try_map(|path| {
        let is_stream = path == Path::new("-");
        if is_stream { Err("a plan is written into a file, not to standard output") } else { Ok(path) }
    })
}

/// A diff shows all there is; how much may go is for the apply to say.
const fn everything(prune: bool) -> PlanOptions {
    PlanOptions { prune, max_deletions: MaxDeletions::Count(usize::MAX), allow_empty: true }
}

/// Runs the command.
///
/// # Errors
/// Where the files have errors, the revision is not known, or the controller cannot be reached. Exit code 2 means findings in the files or
/// flags that cannot be: whatever else ends with 2 elsewhere, a missing configuration say, ends with 3 here.
pub async fn run(context: &Context, args: &DiffArgs) -> Outcome {
    if args.against.is_some() && args.out.is_some() {
        return Err(Failure::usage("--out writes a plan for a controller, and --against asks none").hint("leave out one of them"));
    }
    let done = match &args.against {
        Some(revision) => against(context, args, revision),
        None => with_controller(context, args).await,
    };
    done.map_err(|failure| {
        let has_findings = failure.error.is_none();
        if failure.exit == Exit::Usage && !has_findings { Failure { exit: Exit::Refused, ..failure } } else { failure }
    })
}

async fn with_controller(context: &Context, args: &DiffArgs) -> Outcome {
    let shell = &context.shell;
    let local = read_sound(shell, &args.path)?;
    if let Some(out) = &args.out {
        refuse_within_catalog(out, &args.path)?;
    }
    let session = Session::open(context).await?;
    let remote = observe(&session, &local.name, &local.loaded.jobs).await?;
    let plan = make_plan(&local.name, &remote, &local.loaded.jobs, &everything(args.prune))?;
    let provenance = local.provenance.as_ref();
    match (&args.out, plan.changes_anything() && !args.allow_older) {
        (_, false) => {}
        (Some(_), true) => refuse_older(shell, &args.path, provenance, &remote)?,
        (None, true) => {
            if let (Age::Older, Some(ours)) = (age(&args.path, provenance, &remote)?, provenance) {
                let theirs = short(remote.commit().unwrap_or_default());
                shell.warn(&format!("commit {} is older than {theirs}, which was applied last: an apply is refused", ours.short));
            }
        }
    }
    let header = header(&session, &local.name, &remote, &working_tree(provenance));
    let runs = runs(&session, &plan).await;
    let notes = notes(&plan, &runs);
    let value = || {
        let mut value = report(&plan, &runs);
        if let (Some(frozen), Some(fields)) = (&remote.frozen, value.as_object_mut()) {
            fields.insert("frozen".into(), frozen_to_json(frozen));
        }
        value
    };
    if let Some(out) = &args.out {
        let options = RenderOptions { color: false, header: Some(header.clone()), notes: notes.clone() };
        let file = plan_file(&session, &local, &remote, &plan, args, render::render_text(&plan, &options))?;
        write_plan(out, &file.to_bytes())?;
        shell.note(&format!("plan written to {0}; it is carried out by: octavius apply {0}", out.display()));
    }
    show(context, args, &plan, header, notes, value)
}

fn frozen_to_json(frozen: &v1::Frozen) -> Value {
    json!({ "by": frozen.by, "at": words::time(frozen.at.as_ref()).map(|at| at.to_string()) })
}

/// The plan as a file.
fn plan_file(
    session: &Session,
    local: &Local,
    remote: &Remote,
    plan: &Plan,
    args: &DiffArgs,
    rendering: String,
) -> Outcome<PlanFile> {
    let path = args.path.to_str().ok_or_else(|| Failure::usage(format!("{} is not valid UTF-8", args.path.display())))?;
    let made = Made {
        id: ExecutionId::generate().to_string(),
        controller_id: remote.controller_id.clone(),
        controller: session.name().to_owned(),
        path: path.to_owned(),
        prune: args.prune,
        provenance: local.provenance.as_ref().map(PlannedFrom::from),
        rendering,
    };
    Ok(PlanFile::of(plan, made))
}

/// A plan within the catalogue's folder would be read as a job the next time.
fn refuse_within_catalog(out: &Path, catalog: &Path) -> Outcome<()> {
    let folder = parent(out).canonicalize().map_err(|error| Failure::file("write", out, error))?;
    let is_read = out.extension().is_some_and(|extension| ["yaml", "yml", "json"].iter().any(|read| extension == *read));
    let is_within = catalog.canonicalize().is_ok_and(|catalog| folder.starts_with(catalog));
    if is_read && is_within {
        return Err(Failure::usage(format!("{} would be read as a job of the catalogue", out.display()))
            .hint("write the plan outside of its folder"));
    }
    Ok(())
}

fn parent(path: &Path) -> &Path {
    path.parent().filter(|folder| !folder.as_os_str().is_empty()).unwrap_or(Path::new("."))
}

/// Writes the plan: whole, or not at all.
fn write_plan(path: &Path, bytes: &[u8]) -> Outcome<()> {
    let written = (|| {
        // nothing in it is secret, and others review it: as any new file
        let readable = std::fs::Permissions::from_mode(0o666);
        let mut temporary = tempfile::Builder::new().permissions(readable).tempfile_in(parent(path))?;
        temporary.write_all(bytes)?;
        temporary.as_file().sync_all()?;
        temporary.persist(path).map_err(|error| error.error)
    })();
    written.map(|_| ()).map_err(|error| Failure::file("write", path, error))
}

fn refused(error: GitError) -> Failure {
    Failure::new(Exit::Refused, error)
}

/// The files against a git revision of the same folder. No controller is asked, so nothing is known of executions.
fn against(context: &Context, args: &DiffArgs, revision: &str) -> Outcome {
    let shell = &context.shell;
    let local = read_sound(shell, &args.path)?;
    let commit = git::commit_at(&args.path, revision).map_err(refused)?;
    let files = git::files_at(&args.path, revision, &Limits::default()).map_err(refused)?;
    let is_new = files.files.is_empty();
    let before = load(&files);
    if before.has_errors() && !is_new {
        let wrong: Vec<_> =
            before.diagnostics.iter().filter(|finding| finding.is_error()).map(|finding| &*finding.path).collect();
        let first = wrong.first().copied().unwrap_or_default();
        shell.warn(&format!("at {revision} the catalogue has findings ({first}): jobs in such files count as new"));
    }
    let observed: Vec<Observed> = before
        .jobs
        .into_iter()
        .map(|job| Observed {
            name: job.name().clone(),
            digest: job.digest,
            file: job.file,
            line: job.line,
            definition: Some(job.definition),
        })
        .collect();
    let plan = octavius_catalog::plan(&local.name, 0, &local.loaded.jobs, &observed, &everything(args.prune))
        .map_err(|error| Failure::new(Exit::Fault, error))?;
    let from = if commit.starts_with(revision) { short(&commit).to_owned() } else { format!("{revision} ({})", short(&commit)) };
    let header = format!("{}: {from} → {}", local.name, working_tree(local.provenance.as_ref()));
    let value = || {
        let mut value = plan.report();
        if let Some(fields) = value.as_object_mut() {
            fields.insert("against".into(), json!({ "revision": revision, "commit": commit }));
        }
        value
    };
    show(context, args, &plan, header, BTreeMap::new(), value)
}

/// Prints the plan in the form that is wanted.
fn show(
    context: &Context,
    args: &DiffArgs,
    plan: &Plan,
    header: String,
    notes: BTreeMap<JobName, Note>,
    value: impl FnOnce() -> Value,
) -> Outcome {
    let shell = &context.shell;
    if !args.output.structured(shell, value)? {
        let color = shell.color() && args.output != Format::Markdown;
        let options = RenderOptions { color, header: Some(header), notes };
        let text = match args.output {
            Format::Name => plan.changes.iter().map(|change| format!("{}\n", change.job)).collect(),
            Format::Markdown => render::render_markdown(plan, &options),
            _ => render::render_text(plan, &options),
        };
        shell.print(&text)?;
    }
    Ok(if plan.is_empty() || args.exit_zero { Exit::Done } else { Exit::No })
}
