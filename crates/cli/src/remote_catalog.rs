//! A catalogue on both sides: what the files say, what the controller holds, the plan between them, and its apply. Only what differs is
//! fetched: the buckets of the manifest whose digest is another, and the definitions of jobs that change or go.

use std::cell::Cell;
use std::collections::{BTreeSet, HashMap};
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use octavius_catalog::diagnostic::{render_count, render_text};
use octavius_catalog::git::{self, Provenance};
use octavius_catalog::manifest::{BUCKETS, Bucket, Entry, Inherited, Manifest, bucket_of};
use octavius_catalog::{
    Action, Change, Limits, Loaded, LoadedJob, Observed, Plan, PlanError, PlanOptions, ReadError, load, needed, plan, read_dir,
};
use octavius_core::{CatalogName, Digest, JobDefinition};
use octavius_proto::{reason, v1};

use crate::Context;
use crate::error::{Failure, Outcome};
use crate::exit::Exit;
use crate::lineage::{refuse_older, require_clean};
use crate::output::Shell;
use crate::session::Session;
use crate::table::wire_time;
use crate::upload::Upload;

/// A catalogue's folder, read and without errors.
#[derive(Debug)]
pub struct Local {
    /// Its name.
    pub name: CatalogName,
    /// Its jobs, and warnings.
    pub loaded: Loaded,
    /// Where its files come from.
    pub provenance: Option<Provenance>,
}

/// Most definitions that are asked for at once.
const DEFINITIONS_PER_CALL: usize = 10_000;

/// Longest wait for the answer to an apply, where the connection timeout is shorter: thousands of jobs are written in it.
const APPLY_WAIT: Duration = Duration::from_secs(120);

/// Reads a catalogue's folder, with what git knows of it.
///
/// # Errors
/// Where the folder cannot be read, or its repository belongs to someone else.
pub fn read(path: &Path) -> Outcome<(Loaded, Option<Provenance>)> {
    let mut files = read_dir(path, &Limits::default()).map_err(unreadable)?;
    let provenance = git::provenance(path).map_err(|error| Failure::new(Exit::Usage, error))?;
    files.file_prefix = match &provenance {
        Some(provenance) => provenance.prefix.clone(),
        // Where it lies on this machine means nothing to others; its own name does.
        None => {
            path.canonicalize().ok().and_then(|path| Some(path.file_name()?.to_string_lossy().into_owned())).unwrap_or_default()
        }
    };
    Ok((load(&files), provenance))
}

/// A catalogue that cannot be read, with what to do.
#[must_use]
pub fn unreadable(error: ReadError) -> Failure {
    let missing = matches!(error, ReadError::Missing(_));
    let failure = Failure::new(Exit::Usage, error);
    if missing { failure.hint("name the folder that holds octavius.yaml") } else { failure }
}

/// Prints findings on standard error.
pub fn print_findings(shell: &Shell, loaded: &Loaded) {
    let text: String = loaded.diagnostics.iter().map(|diagnostic| render_text(diagnostic, shell.color_stderr())).collect();
    shell.stderr(&text);
}

/// Reads a catalogue that has to be without errors; findings go to standard error.
///
/// # Errors
/// Where it cannot be read, or has errors.
pub fn read_sound(shell: &Shell, path: &Path) -> Outcome<Local> {
    let (loaded, provenance) = read(path)?;
    print_findings(shell, &loaded);
    if loaded.has_errors() {
        shell.note(&render_count(&loaded.diagnostics, loaded.files));
        return Err(Failure::quiet(Exit::Usage));
    }
    let Some(name) = loaded.catalog.clone() else {
        return Err(Failure::usage(format!("{} has no octavius.yaml that names the catalogue", path.display())));
    };
    Ok(Local { name, loaded, provenance })
}

/// What the controller holds of a catalogue, as far as it matters for a plan.
#[derive(Debug)]
pub struct Remote {
    /// The id of the controller's store.
    pub controller_id: String,
    /// The newest revision; none where the catalogue was never applied.
    pub revision: Option<v1::Revision>,
    /// Who froze it, and when; none where it is not frozen.
    pub frozen: Option<v1::Frozen>,
    /// Its jobs.
    pub jobs: Vec<Observed>,
}

impl Remote {
    /// The newest revision's number, 0 for none.
    #[must_use]
    pub fn number(&self) -> u64 {
        self.revision.as_ref().map_or(0, |revision| revision.number)
    }

    /// The commit that the newest revision came from; none where it is not known.
    #[must_use]
    pub fn commit(&self) -> Option<&str> {
        let provenance = self.revision.as_ref()?.provenance.as_ref()?;
        Some(provenance.commit.as_str()).filter(|commit| !commit.is_empty())
    }
}

/// The first seven characters of a commit.
#[must_use]
pub fn short(commit: &str) -> &str {
    commit.get(..7).unwrap_or(commit)
}

/// Where files come from, as a revision says it.
#[must_use]
pub fn wire_provenance(from: &Provenance) -> v1::Provenance {
    v1::Provenance {
        commit: from.commit.clone(),
        dirty: from.dirty,
        repository: from.repository.clone(),
        author: from.author.split(" <").next().unwrap_or_default().to_owned(),
    }
}

/// Something in a controller's answer that cannot be.
fn strange(error: impl Into<anyhow::Error>) -> Failure {
    Failure::new(Exit::Fault, error.into().context("the controller's answer cannot be understood"))
}

/// The newest revision of a catalogue, and whether it is frozen.
///
/// # Errors
/// Where the controller cannot be reached or refuses.
pub async fn head(session: &Session, catalog: &CatalogName) -> Outcome<v1::GetHeadResponse> {
    let request = v1::GetHeadRequest { catalog: catalog.to_string() };
    session.call(async |to| to.catalog().get_head(request.clone()).await).await
}

/// The jobs of some buckets of a revision.
async fn fetch_buckets(session: &Session, catalog: &CatalogName, revision: u64, buckets: &[u8]) -> Outcome<Vec<Entry>> {
    let mut jobs = Vec::new();
    if buckets.is_empty() || revision == 0 {
        return Ok(jobs);
    }
    let buckets = buckets.iter().map(|&bucket| bucket.into()).collect();
    let request = v1::GetBucketsRequest { catalog: catalog.to_string(), revision, buckets };
    let inherited = |from: v1::InheritedField| Inherited { field: from.field, file: from.file, line: from.line };
    for message in session.gather(async |to| to.catalog().get_buckets(request.clone()).await).await? {
        for entry in message.entries {
            jobs.push(Entry {
                name: octavius_proto::job_name("name", &entry.name).map_err(strange)?,
                digest: octavius_proto::digest("definition", &entry.definition).map_err(strange)?,
                file: entry.file,
                line: entry.line,
                changed_in: entry.changed_in,
                inherited: entry.inherited.into_iter().map(inherited).collect(),
            });
        }
    }
    Ok(jobs)
}

/// Brings the definitions that a plan has to see.
async fn fetch_needed(session: &Session, desired: &[LoadedJob], jobs: &mut [Observed]) -> Outcome<()> {
    let digests = needed(desired, jobs);
    fetch_definitions(session, &digests, jobs).await
}

/// Brings the definitions of these digests to the jobs that have them.
async fn fetch_definitions(session: &Session, digests: &[Digest], jobs: &mut [Observed]) -> Outcome<()> {
    let mut definitions: HashMap<Digest, Arc<JobDefinition>> = HashMap::new();
    for part in digests.chunks(DEFINITIONS_PER_CALL) {
        let request =
            v1::GetDefinitionsRequest { digests: part.iter().map(|digest| digest.as_bytes().to_vec().into()).collect() };
        for message in session.gather(async |to| to.catalog().get_definitions(request.clone()).await).await? {
            for definition in message.definitions {
                let parsed = octavius_proto::definition("definition", Some(&definition)).map_err(strange)?;
                definitions.insert(Digest::of(&definition.json), Arc::new(parsed));
            }
        }
    }
    for job in jobs {
        job.definition = definitions.get(&job.digest).cloned();
    }
    Ok(())
}

/// Looks at what the controller holds of a catalogue, as far as it differs from `desired`.
///
/// # Errors
/// Where the controller cannot be reached or refuses.
pub async fn observe(session: &Session, catalog: &CatalogName, desired: &[LoadedJob]) -> Outcome<Remote> {
    let head = head(session, catalog).await?;
    let number = head.revision.as_ref().map_or(0, |revision| revision.number);
    let entries = desired.iter().map(|job| Entry {
        name: job.name().clone(),
        digest: job.digest,
        file: job.file.clone(),
        line: job.line,
        changed_in: 0,
        inherited: Vec::new(),
    });
    let ours = Manifest::build(entries).map_err(|error| Failure::new(Exit::Usage, error))?;
    let theirs = &head.bucket_digests;
    let known = theirs.len() == BUCKETS * 32;
    let same = |index: &u8| {
        let at = usize::from(*index) * 32;
        known && theirs.get(at..at + 32) == Some(ours.root().bucket(*index).content.as_bytes().as_slice())
    };
    let (same, differing): (Vec<u8>, Vec<u8>) = (0..=u8::MAX).partition(same);
    let mut jobs: Vec<Observed> =
        fetch_buckets(session, catalog, number, &differing).await?.into_iter().map(Observed::from).collect();
    if number > 0 {
        let kept = same.iter().filter_map(|index| ours.buckets().get(index)).flat_map(Bucket::entries);
        jobs.extend(kept.cloned().map(Observed::from));
    }
    fetch_needed(session, desired, &mut jobs).await?;
    Ok(Remote { controller_id: head.controller_id, revision: head.revision, frozen: head.frozen, jobs })
}

/// Looks at one job of a catalogue alone.
///
/// # Errors
/// Where the controller cannot be reached or refuses.
pub async fn observe_job(
    session: &Session,
    catalog: &CatalogName,
    name: &octavius_core::JobName,
    desired: &[LoadedJob],
) -> Outcome<Remote> {
    let head = head(session, catalog).await?;
    let number = head.revision.as_ref().map_or(0, |revision| revision.number);
    let bucket = bucket_of(name);
    let mut jobs: Vec<Observed> =
        fetch_buckets(session, catalog, number, &[bucket]).await?.into_iter().map(Observed::from).collect();
    jobs.retain(|job| job.name.folded() == name.folded());
    fetch_needed(session, desired, &mut jobs).await?;
    Ok(Remote { controller_id: head.controller_id, revision: head.revision, frozen: head.frozen, jobs })
}

/// All jobs of a revision, with their definitions.
///
/// # Errors
/// Where there is no such revision, or the controller cannot be reached or refuses.
pub async fn fetch_revision(
    session: &Session,
    catalog: &CatalogName,
    revision: u64,
) -> Outcome<Vec<(Entry, Arc<JobDefinition>)>> {
    let all: Vec<u8> = (0..=u8::MAX).collect();
    let entries = fetch_buckets(session, catalog, revision, &all).await?;
    let digests: BTreeSet<Digest> = entries.iter().map(|job| job.digest).collect();
    let digests: Vec<Digest> = digests.into_iter().collect();
    let mut jobs: Vec<Observed> = entries.iter().cloned().map(Observed::from).collect();
    fetch_definitions(session, &digests, &mut jobs).await?;
    let whole = |(entry, job): (Entry, Observed)| match job.definition {
        Some(definition) => Ok((entry, definition)),
        None => Err(strange(anyhow::Error::msg(format!("the definition of job `{}` is missing", job.name)))),
    };
    entries.into_iter().zip(jobs).map(whole).collect()
}

/// Plans, with refusals as such.
///
/// # Errors
/// Where the plan would remove more than it may, or the catalogue is empty.
pub fn make_plan(catalog: &CatalogName, remote: &Remote, desired: &[LoadedJob], options: &PlanOptions) -> Outcome<Plan> {
    plan(catalog, remote.number(), desired, &remote.jobs, options).map_err(|error| match error {
        PlanError::TooManyDeletions { .. } | PlanError::Empty { .. } => Failure::new(Exit::Refused, error),
        PlanError::DefinitionMissing(_) => strange(error),
    })
}

/// The line above a plan: `prod/support: revision 41 (9c1f2ab) → working tree (4be07d1)`; and where nothing can be applied, that it is
/// frozen. `to` is what the plan leads to: [`working_tree`], or a revision.
#[must_use]
pub fn header(session: &Session, catalog: &CatalogName, remote: &Remote, to: &str) -> String {
    let before = match &remote.revision {
        None => "no revision".to_owned(),
        Some(revision) => {
            let dirty = revision.provenance.as_ref().is_some_and(|provenance| provenance.dirty);
            let changed = if dirty { ", changed" } else { "" };
            let commit = remote.commit().map(|commit| format!(" ({}{changed})", short(commit))).unwrap_or_default();
            format!("revision {}{commit}", revision.number)
        }
    };
    let frozen = remote.frozen.as_ref().map(|frozen| format!(", {}", frozen_by(frozen))).unwrap_or_default();
    format!("{}/{catalog}: {before} → {to}{frozen}", session.name())
}

/// `working tree (4be07d1, changed)`.
#[must_use]
pub fn working_tree(provenance: Option<&Provenance>) -> String {
    match provenance {
        None => "working tree".to_owned(),
        Some(provenance) => format!("working tree ({}{})", provenance.short, if provenance.dirty { ", changed" } else { "" }),
    }
}

/// `frozen by ann since 2026-03-01T12:00:00Z`.
#[must_use]
pub fn frozen_by(frozen: &v1::Frozen) -> String {
    let at = wire_time(frozen.at.as_ref());
    let since = if at.is_empty() { at } else { format!(" since {at}") };
    format!("frozen by {}{since}", crate::sanitize::line(&frozen.by))
}

/// The refusal to apply to a catalogue that is frozen.
///
/// # Errors
/// Where it is frozen.
pub fn refuse_frozen(catalog: &CatalogName, remote: &Remote) -> Outcome<()> {
    let Some(frozen) = &remote.frozen else { return Ok(()) };
    Err(Failure::refused(format!("catalogue `{catalog}` is {}", frozen_by(frozen)))
        .hint("nothing is applied to it until `octavius unfreeze`"))
}

/// With what a plan is carried out.
#[derive(Debug, Clone, Default)]
pub struct Applying {
    /// The id of the controller that the plan was made against; empty for any.
    pub controller_id: String,
    /// Where the files came from: [`wire_provenance`] gives it.
    pub provenance: Option<v1::Provenance>,
    /// The id of the plan, where it was kept in a file; else empty.
    pub plan_id: String,
    /// The revision that is brought back; 0 where this is no rollback.
    pub rollback_to: u64,
    /// Freezes the catalogue with the new revision.
    pub freeze: bool,
}

/// Carries a plan out. On a terminal, an upload that takes long shows how far it is.
///
/// # Errors
/// Where head has moved, the controller refuses, or cannot be reached.
pub async fn apply(session: &Session, plan: &Plan, applying: Applying) -> Outcome<v1::Revision> {
    let upload = Upload::of(plan, &applying);
    let limit = session.timeout().max(APPLY_WAIT);
    let tries = Cell::new(0u32);
    let answer = session.call_within(limit, async |to| {
        tries.set(tries.get() + 1);
        to.catalog().apply(tokio_stream::iter(upload.messages())).await
    });
    match upload.shown(session.shell(), answer).await {
        Ok(response) => Ok(response.revision.unwrap_or_default()),
        // head may have been moved by the try whose answer was lost
        Err(failure) if tries.get() > 1 && failure.is(reason::HEAD_MOVED) => {
            made_by(session, plan, &applying).await?.ok_or(failure)
        }
        Err(failure) if failure.may_pass() => {
            Err(failure.hint("it may or may not have been applied: `octavius diff` tells, and it is safe to run the same again"))
        }
        Err(failure) => Err(failure),
    }
}

/// The revision that a plan made, if it was this plan that made it: it follows on the plan's parent, holds everything that the plan puts
/// and nothing that it removes, and changed just as much. From one parent that leads to one catalogue, whoever did it.
async fn made_by(session: &Session, plan: &Plan, applying: &Applying) -> Outcome<Option<v1::Revision>> {
    let (catalog, parent) = (&plan.catalog, plan.parent_revision);
    let request =
        v1::ListRevisionsRequest { catalog: catalog.to_string(), limit: 1, before: parent.saturating_add(2), job: String::new() };
    let found = session.call(async |to| to.catalog().list_revisions(request.clone()).await).await?.revisions;
    let follows = |revision: &v1::Revision| {
        let same = revision.plan_id == applying.plan_id && revision.rollback_to == applying.rollback_to;
        revision.number == parent.saturating_add(1) && revision.parent == parent && same
    };
    let Some(revision) = found.into_iter().find(follows) else { return Ok(None) };
    let summary = revision.summary.unwrap_or_default();
    let count = |action| plan.changes.iter().filter(|change| change.action == action && change.before != change.after).count();
    let counts = [(Action::Added, summary.added), (Action::Changed, summary.changed), (Action::Removed, summary.removed)];
    if counts.into_iter().any(|(action, told)| u32::try_from(count(action)) != Ok(told)) {
        return Ok(None);
    }
    let touched: BTreeSet<u8> = plan.changes.iter().map(|change| bucket_of(&change.job)).collect();
    let touched: Vec<u8> = touched.into_iter().collect();
    let jobs = fetch_buckets(session, catalog, revision.number, &touched).await?;
    let jobs: HashMap<String, Digest> = jobs.into_iter().map(|job| (job.name.folded(), job.digest)).collect();
    let holds = |change: &Change| match change.action {
        Action::Added | Action::Changed => jobs.get(&change.job.folded()) == change.after.as_ref(),
        Action::Removed => !jobs.contains_key(&change.job.folded()),
        Action::Blocked => true,
    };
    Ok(plan.changes.iter().all(holds).then_some(revision))
}

/// What an apply of a folder came to.
#[derive(Debug)]
pub enum Applied {
    /// A new revision.
    Revision(Plan, u64),
    /// The controller held it all already.
    Unchanged(Plan, u64),
}

/// Which commits [`apply_folder`] takes.
#[derive(Debug, Clone, Copy)]
pub struct Wanted {
    /// One that is older than the one that was applied last, too.
    pub allow_older: bool,
    /// Only files that are in a commit.
    pub require_clean: bool,
}

/// Applies a folder as it is, without removals and without questions: what `dev` and `apply --watch` do at their start and on each change.
///
/// # Errors
/// Where the files have errors, are not of a commit that is wanted, the controller refuses, or cannot be reached.
pub async fn apply_folder(context: &Context, session: &Session, path: &Path, wanted: &Wanted) -> Outcome<Applied> {
    let local = read_sound(&context.shell, path)?;
    if wanted.require_clean {
        require_clean(path, local.provenance.as_ref().map(|from| (&*from.commit, from.dirty)))?;
    }
    let remote = observe(session, &local.name, &local.loaded.jobs).await?;
    let plan = make_plan(&local.name, &remote, &local.loaded.jobs, &PlanOptions { allow_empty: true, ..Default::default() })?;
    if !plan.changes_anything() {
        return Ok(Applied::Unchanged(plan, remote.number()));
    }
    refuse_frozen(&local.name, &remote)?;
    if !wanted.allow_older {
        refuse_older(&context.shell, path, local.provenance.as_ref(), &remote)?;
    }
    let provenance = local.provenance.as_ref().map(wire_provenance);
    let applying = Applying { controller_id: remote.controller_id, provenance, ..Default::default() };
    let revision = apply(session, &plan, applying).await?;
    Ok(Applied::Revision(plan, revision.number))
}
