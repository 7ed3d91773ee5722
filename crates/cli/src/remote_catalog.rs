//! A catalogue on both sides: what the files say, what the controller holds, the plan between them, and its apply. Only what differs is
//! fetched: the buckets of the manifest whose digest is another, and the definitions of jobs that change or go.

use std::cell::Cell;
use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use octavius_catalog::diagnostic::{render_count, render_text};
use octavius_catalog::git::{self, Provenance};
use octavius_catalog::manifest::{BUCKETS, Bucket, Entry, Manifest, bucket_of};
use octavius_catalog::{
    Action, Change, Limits, Loaded, LoadedJob, Observed, Plan, PlanError, PlanOptions, ReadError, load, needed, plan, read_dir,
};
use octavius_core::{CatalogName, Digest, JobDefinition};
use octavius_proto::{reason, v1};

use crate::Context;
use crate::error::{Failure, Outcome};
use crate::exit::Exit;
use crate::output::Shell;
use crate::session::Session;

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

/// Largest part of an apply, in bytes of definitions: well under what a message may have.
const PART_BYTES: usize = 900 * 1024;

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
    /// Its jobs.
    pub jobs: Vec<Observed>,
}

impl Remote {
    /// The newest revision's number, 0 for none.
    #[must_use]
    pub fn number(&self) -> u64 {
        self.revision.as_ref().map_or(0, |revision| revision.number)
    }
}

/// Something in a controller's answer that cannot be.
fn strange(error: impl Into<anyhow::Error>) -> Failure {
    Failure::new(Exit::Fault, error.into().context("the controller's answer cannot be understood"))
}

async fn head(session: &Session, catalog: &CatalogName) -> Outcome<v1::GetHeadResponse> {
    let request = v1::GetHeadRequest { catalog: catalog.to_string() };
    session.call(async |to| to.catalog().get_head(request.clone()).await).await
}

/// The jobs of some buckets of a revision.
async fn fetch_buckets(session: &Session, catalog: &CatalogName, revision: u64, buckets: &[u8]) -> Outcome<Vec<Observed>> {
    let mut jobs = Vec::new();
    if buckets.is_empty() || revision == 0 {
        return Ok(jobs);
    }
    let buckets = buckets.iter().map(|&bucket| bucket.into()).collect();
    let request = v1::GetBucketsRequest { catalog: catalog.to_string(), revision, buckets };
    for message in session.gather(async |to| to.catalog().get_buckets(request.clone()).await).await? {
        for entry in message.entries {
            jobs.push(Observed {
                name: octavius_proto::job_name("name", &entry.name).map_err(strange)?,
                digest: octavius_proto::digest("definition", &entry.definition).map_err(strange)?,
                file: entry.file,
                line: entry.line,
                definition: None,
            });
        }
    }
    Ok(jobs)
}

/// Brings the definitions that a plan has to see.
async fn fetch_definitions(session: &Session, desired: &[LoadedJob], jobs: &mut [Observed]) -> Outcome<()> {
    let digests = needed(desired, jobs);
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
    let mut jobs = fetch_buckets(session, catalog, number, &differing).await?;
    if number > 0 {
        let kept = same.iter().filter_map(|index| ours.buckets().get(index)).flat_map(Bucket::entries);
        jobs.extend(kept.cloned().map(Observed::from));
    }
    fetch_definitions(session, desired, &mut jobs).await?;
    Ok(Remote { controller_id: head.controller_id, revision: head.revision, jobs })
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
    let mut jobs = fetch_buckets(session, catalog, number, &[bucket]).await?;
    jobs.retain(|job| job.name.folded() == name.folded());
    fetch_definitions(session, desired, &mut jobs).await?;
    Ok(Remote { controller_id: head.controller_id, revision: head.revision, jobs })
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

/// The line above a plan: `prod/support: revision 41 (9c1f2ab) → working tree (4be07d1)`.
#[must_use]
pub fn header(session: &Session, catalog: &CatalogName, remote: &Remote, provenance: Option<&Provenance>) -> String {
    let before = match &remote.revision {
        None => "no revision".to_owned(),
        Some(revision) => {
            let commit = revision.provenance.as_ref().and_then(|provenance| provenance.commit.get(..7));
            format!("revision {}{}", revision.number, commit.map(|commit| format!(" ({commit})")).unwrap_or_default())
        }
    };
    let after = match provenance {
        None => "working tree".to_owned(),
        Some(provenance) => format!("working tree ({}{})", provenance.short, if provenance.dirty { ", changed" } else { "" }),
    };
    format!("{}/{catalog}: {before} → {after}", session.name())
}

/// The messages of an apply: a header, then the definitions of new and changed jobs.
fn messages(plan: &Plan, controller_id: String, provenance: Option<&Provenance>) -> Vec<v1::ApplyRequest> {
    use v1::apply_request::Part;
    let mut header = v1::ApplyHeader {
        catalog: plan.catalog.to_string(),
        parent: plan.parent_revision,
        put: Vec::new(),
        remove: Vec::new(),
        provenance: provenance.map(|from| v1::Provenance {
            commit: from.commit.clone(),
            dirty: from.dirty,
            repository: from.repository.clone(),
            author: from.author.split(" <").next().unwrap_or_default().to_owned(),
        }),
        controller_id,
        ..Default::default()
    };
    let mut bodies: BTreeMap<Digest, Vec<u8>> = BTreeMap::new();
    for change in &plan.changes {
        match (change.action, &change.definition) {
            (Action::Removed, _) => header.remove.push(change.job.to_string()),
            (Action::Added | Action::Changed, Some(definition)) => {
                let json = definition.to_canonical_json();
                let digest = Digest::of(&json);
                header.put.push(v1::ManifestEntry {
                    name: change.job.to_string(),
                    definition: digest.as_bytes().to_vec().into(),
                    file: change.file.clone(),
                    line: change.line,
                    changed_in: 0,
                    inherited: Vec::new(),
                });
                bodies.insert(digest, json);
            }
            (Action::Added | Action::Changed | Action::Blocked, _) => {}
        }
    }
    let mut messages = vec![v1::ApplyRequest { part: Some(Part::Header(header)) }];
    let mut part = v1::ApplyDefinitions::default();
    let mut bytes = 0;
    for json in bodies.into_values() {
        if bytes + json.len() > PART_BYTES && !part.definitions.is_empty() {
            messages.push(v1::ApplyRequest { part: Some(Part::Definitions(std::mem::take(&mut part))) });
            bytes = 0;
        }
        bytes += json.len();
        part.definitions.push(v1::Definition { json: json.into() });
    }
    if !part.definitions.is_empty() {
        messages.push(v1::ApplyRequest { part: Some(Part::Definitions(part)) });
    }
    messages
}

/// Carries a plan out.
///
/// # Errors
/// Where head has moved, the controller refuses, or cannot be reached.
pub async fn apply(
    session: &Session,
    plan: &Plan,
    controller_id: String,
    provenance: Option<&Provenance>,
) -> Outcome<v1::Revision> {
    let messages = messages(plan, controller_id, provenance);
    let limit = session.timeout().max(APPLY_WAIT);
    let tries = Cell::new(0u32);
    let answer = session.call_within(limit, async |to| {
        tries.set(tries.get() + 1);
        to.catalog().apply(tokio_stream::iter(messages.clone())).await
    });
    match answer.await {
        Ok(response) => Ok(response.revision.unwrap_or_default()),
        // head may have been moved by the try whose answer was lost
        Err(failure) if tries.get() > 1 && failure.is(reason::HEAD_MOVED) => made_by(session, plan).await?.ok_or(failure),
        Err(failure) if failure.may_pass() => {
            Err(failure.hint("it may or may not have been applied: `octavius diff` tells, and it is safe to run the same again"))
        }
        Err(failure) => Err(failure),
    }
}

/// The revision that a plan made, if it was this plan that made it: it follows on the plan's parent, holds everything that the plan puts
/// and nothing that it removes, and changed just as much. From one parent that leads to one catalogue, whoever did it.
async fn made_by(session: &Session, plan: &Plan) -> Outcome<Option<v1::Revision>> {
    let (catalog, parent) = (&plan.catalog, plan.parent_revision);
    let request = v1::ListRevisionsRequest { catalog: catalog.to_string(), limit: 1, before: parent + 2, job: String::new() };
    let found = session.call(async |to| to.catalog().list_revisions(request.clone()).await).await?.revisions;
    let follows = |revision: &v1::Revision| revision.number == parent + 1 && revision.parent == parent;
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

/// Applies a folder as it is, without removals and without questions: what `dev` does at its start and on each change.
///
/// # Errors
/// Where the files have errors, the controller refuses, or cannot be reached.
pub async fn apply_folder(context: &Context, session: &Session, path: &Path) -> Outcome<Applied> {
    let local = read_sound(&context.shell, path)?;
    let remote = observe(session, &local.name, &local.loaded.jobs).await?;
    let plan = make_plan(&local.name, &remote, &local.loaded.jobs, &PlanOptions { allow_empty: true, ..Default::default() })?;
    if !plan.changes_anything() {
        return Ok(Applied::Unchanged(plan, remote.number()));
    }
    let revision = apply(session, &plan, remote.controller_id, local.provenance.as_ref()).await?;
    Ok(Applied::Revision(plan, revision.number))
}

#[cfg(test)]
mod tests {
    use super::*;
    use octavius_catalog::plan::Summary;
    use v1::apply_request::Part;

    fn added(name: &str, description: &str) -> Change {
        let definition: JobDefinition =
            serde_json::from_value(serde_json::json!({ "name": name, "description": description })).unwrap();
        Change {
            job: definition.name.clone(),
            action: Action::Added,
            file: format!("{name}.yaml"),
            line: 1,
            reason: None,
            fields: Vec::new(),
            before: None,
            after: Some(definition.digest()),
            definition: Some(Arc::new(definition)),
        }
    }

    #[test]
    fn an_apply_is_a_header_and_parts_below_one_mebibyte() {
        let mut changes: Vec<Change> =
            (0..40).map(|index| added(&format!("job-{index}"), &format!("{index} {}", "x".repeat(60_000)))).collect();
        changes.push(Change { action: Action::Removed, definition: None, ..added("gone", "") });
        changes.push(Change { action: Action::Blocked, definition: None, ..added("kept", "") });
        let plan = Plan {
            format_version: 1,
            catalog: CatalogName::new("support").unwrap(),
            parent_revision: 7,
            summary: Summary::default(),
            changes,
        };
        let messages = messages(&plan, "store".into(), None);
        let Some(Part::Header(header)) = &messages[0].part else { panic!("no header") };
        assert_eq!((header.parent, header.put.len(), header.remove.as_slice()), (7, 40, ["gone".to_owned()].as_slice()));
        let sizes: Vec<(usize, usize)> = messages[1..]
            .iter()
            .map(|message| match &message.part {
                Some(Part::Definitions(part)) => (part.definitions.len(), part.definitions.iter().map(|d| d.json.len()).sum()),
                _ => panic!("not definitions"),
            })
            .collect();
        assert_eq!(sizes.iter().map(|(count, _)| count).sum::<usize>(), 40);
        assert!(sizes.len() > 2 && sizes.iter().all(|(_, bytes)| *bytes < 1 << 20), "{sizes:?}");
    }
}
