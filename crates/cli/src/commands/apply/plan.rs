//! `octavius apply PLAN`: carries out exactly the plan that is in a file, or nothing. The plan is itself the consent. It holds no
//! definitions: they are read from the catalogue's folder again, and have to be the ones that were planned.

use std::fs::File;
use std::io::Read as _;
use std::path::Path;

use octavius_catalog::{MaxDeletions, PlanFile, PlanFileError, PlanOptions, PlannedFrom};
use octavius_proto::v1;
use serde_json::json;

use super::{ApplyArgs, print, show};
use crate::error::{Failure, Outcome};
use crate::exit::Exit;
use crate::lineage::require_clean;
use crate::remote_catalog::{self, Applying, Remote, refuse_frozen};
use crate::session::Session;
use crate::table::wire_time;
use crate::{Context, sanitize};

/// Largest plan that is read, in bytes: more than 10,000 changed jobs take.
const PLAN_BYTES: u64 = 256 << 20;

/// What to do about a plan that does not fit any more.
const AGAIN: &str = "make the plan again: octavius diff --out PLAN";

fn read(path: &Path) -> Outcome<PlanFile> {
    let mut bytes = Vec::new();
    File::open(path)
        .and_then(|file| file.take(PLAN_BYTES).read_to_end(&mut bytes))
        .map_err(|error| Failure::file("read", path, error))?;
    PlanFile::from_bytes(&bytes).map_err(|error| {
        let is_foreign = matches!(error, PlanFileError::NotAPlan);
        let failure = Failure::new(Exit::Usage, anyhow::Error::new(error).context(path.display().to_string()));
        if is_foreign { failure.hint("to apply a catalogue, name the folder that holds octavius.yaml") } else { failure }
    })
}

/// Carries out the plan that is in the file.
///
/// # Errors
/// Where the file is no plan, the plan does not fit any more or was used before, the controller refuses, or cannot be reached.
pub(super) async fn run(context: &Context, args: &ApplyArgs) -> Outcome {
    let shell = &context.shell;
    let file = read(&args.path)?;
    let planning = args.given(&["--prune", "--max-deletions", "--allow-empty", "--allow-older", "--retry-conflict", "--watch"]);
    if !planning.is_empty() {
        return Err(Failure::usage(format!("{} is a plan, and {} is for planning", args.path.display(), planning.join(", ")))
            .hint("give such flags to `octavius diff --out PLAN`, or apply the folder"));
    }
    if args.dry_run {
        if !args.output.structured(shell, || json!(file))? {
            // what is in a file may be of anyone's making
            shell.print(&file.rendering.lines().map(|line| sanitize::line(line) + "\n").collect::<String>())?;
        }
        return Ok(Exit::Done);
    }
    let folder = Path::new(&file.path);
    if args.require_clean {
        require_clean(folder, file.provenance.as_ref().map(|from| (&*from.commit, from.dirty)))?;
    }
    let (loaded, provenance) = remote_catalog::read(folder).map_err(|failure| Failure {
        exit: Exit::Refused,
        hints: vec![format!("the plan was made for the folder {}: run this where that lies", sanitize::line(&file.path))],
        ..failure
    })?;
    if loaded.has_errors() {
        remote_catalog::print_findings(shell, &loaded);
        return Err(Failure::refused("the files have changed since the plan was made, and have findings now").hint(AGAIN));
    }
    let from_now = provenance.as_ref().map(PlannedFrom::from);
    let session = Session::open(context).await?;
    let remote = remote_catalog::observe(&session, &file.catalog, &loaded.jobs).await?;
    refuse_another_place(&session, &file, &remote).await?;
    let options = PlanOptions { prune: file.prune, max_deletions: MaxDeletions::Count(usize::MAX), allow_empty: true };
    let name = loaded.catalog.as_ref().unwrap_or(&file.catalog);
    let plan = remote_catalog::make_plan(name, &remote, &loaded.jobs, &options)?;
    file.is_fulfilled_by(&plan).map_err(|error| Failure::new(Exit::Refused, error))?;
    refuse_other_origin(file.provenance.as_ref(), from_now.as_ref())?;
    // as it is made now: what a file says of itself is not what is carried out
    let commit = file.provenance.as_ref().map(|from| {
        format!(" ({}{})", sanitize::line(remote_catalog::short(&from.commit)), if from.dirty { ", changed" } else { "" })
    });
    let to = format!("{}{}", args.path.display(), commit.unwrap_or_default());
    show(context, &session, &remote_catalog::header(&session, name, &remote, &to), &plan, None).await?;
    if !plan.changes_anything() {
        print(context, args.output, remote.number(), &plan.summary)?;
        return Ok(Exit::Done);
    }
    refuse_frozen(&file.catalog, &remote)?;
    let provenance = file.provenance.map(|from| v1::Provenance {
        commit: from.commit,
        dirty: from.dirty,
        repository: from.repository,
        author: from.author,
    });
    let applying = Applying { controller_id: file.controller_id, provenance, plan_id: file.id, rollback_to: 0, freeze: false };
    let revision = remote_catalog::apply(&session, &plan, applying).await?;
    print(context, args.output, revision.number, &plan.summary)?;
    Ok(Exit::Done)
}

/// Refuses files of another commit than the plan's, or that differ from it only now or only then: what the new revision says of where it
/// came from has to be true.
fn refuse_other_origin(planned: Option<&PlannedFrom>, now: Option<&PlannedFrom>) -> Outcome<()> {
    let of = |from: Option<&PlannedFrom>| from.map(|from| (from.commit.clone(), from.dirty));
    if of(planned) == of(now) {
        return Ok(());
    }
    let told = |from: Option<&PlannedFrom>| match from {
        None => "in no commit".to_owned(),
        Some(PlannedFrom { commit, dirty, .. }) => {
            let commit = sanitize::line(remote_catalog::short(commit));
            if *dirty { format!("those of commit {commit} with changes") } else { format!("those of commit {commit}") }
        }
    };
    let message = format!("files changed since the plan: they were {}, and are {}", told(planned), told(now));
    Err(Failure::refused(message).hint(AGAIN))
}

/// Refuses a plan that was made against another controller or another revision, and says what has happened since.
async fn refuse_another_place(session: &Session, file: &PlanFile, remote: &Remote) -> Outcome<()> {
    if remote.controller_id != file.controller_id {
        let made = sanitize::line(&file.controller);
        let message = format!("the plan was made against another controller ({made}), and {} is not that one", session.name());
        return Err(Failure::refused(message).hint("choose the controller with --context or --cp-host, or make the plan again"));
    }
    if remote.number() == file.parent_revision {
        return Ok(());
    }
    // whatever number a file of someone's making holds
    let next = file.parent_revision.saturating_add(1);
    let before = next.saturating_add(1);
    let request = v1::ListRevisionsRequest { catalog: file.catalog.to_string(), limit: 1, before, job: String::new() };
    let found = session.call(async |to| to.catalog().list_revisions(request.clone()).await).await?.revisions;
    let next = found.into_iter().find(|revision| revision.number == next);
    let told = |revision: &v1::Revision| {
        format!(
            "revision {} by {} at {}",
            revision.number,
            sanitize::line(&revision.applied_by),
            wire_time(revision.applied_at.as_ref())
        )
    };
    let message = match next {
        Some(revision) if revision.plan_id == file.id => {
            return Err(Failure::refused(format!("the plan was used before: it made {}", told(&revision))).hint(AGAIN));
        }
        Some(revision) => format!("then came {}", told(&revision)),
        None => format!("now it is at {}", remote.number()),
    };
    let (catalog, planned) = (&file.catalog, file.parent_revision);
    Err(Failure::refused(format!(
        "head has moved: the plan was made against revision {planned} of catalogue `{catalog}`; {message}"
    ))
    .hint(AGAIN))
}
