//! What an apply would do: the difference between the jobs that files ask for and the jobs that a revision holds. Planning takes
//! values and gives a value; carrying a plan out leaves no choices, and applying it to any other revision is refused.

use std::collections::BTreeMap;
use std::str::FromStr;
use std::sync::Arc;

use octavius_core::{CatalogName, Digest, JobDefinition, JobName};
use serde::{Deserialize, Serialize};

use crate::diff::{FieldChange, diff};
use crate::document::Document;
use crate::load::LoadedJob;
use crate::manifest::Inherited;

/// The number of a catalogue's revision; the first is 1, and 0 stands for a catalogue that has none yet.
pub type Revision = u64;

/// Version of the form in which plans are written, as a file and as `-o json`.
pub const PLAN_FORMAT_VERSION: u32 = 1;

/// A job as a revision holds it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Observed {
    /// The job's name.
    pub name: JobName,
    /// The digest of its definition.
    pub digest: Digest,
    /// The file it came from; empty where it came from none.
    pub file: String,
    /// The line of its name there; 0 where it came from none.
    pub line: u32,
    /// Its definition. Needed only for the jobs that [`needed`] names; the others are not looked at.
    pub definition: Option<Arc<JobDefinition>>,
}

impl From<crate::manifest::Entry> for Observed {
    fn from(entry: crate::manifest::Entry) -> Self {
        Self { name: entry.name, digest: entry.digest, file: entry.file, line: entry.line, definition: None }
    }
}

/// The digests of the observed definitions that [`plan`] has to see: of jobs that change or go.
#[must_use]
pub fn needed(desired: &[LoadedJob], observed: &[Observed]) -> Vec<Digest> {
    let desired: BTreeMap<String, Digest> = desired.iter().map(|job| (job.name().folded(), job.digest)).collect();
    let differs = |job: &&Observed| desired.get(&job.name.folded()) != Some(&job.digest);
    observed.iter().filter(differs).map(|job| job.digest).collect()
}

/// How many jobs one apply may remove.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum MaxDeletions {
    /// A tenth of the jobs there are, at least 1 and at most 5.
    #[default]
    Cautious,
    /// This many.
    Count(usize),
    /// This part of the jobs there are, in hundredths, rounded down.
    Percent(u8),
}

impl MaxDeletions {
    /// The number allowed where there are `jobs` jobs.
    #[must_use]
    pub fn of(self, jobs: usize) -> usize {
        match self {
            Self::Cautious => (jobs / 10).clamp(1, 5),
            Self::Count(count) => count,
            Self::Percent(percent) => jobs.saturating_mul(usize::from(percent)) / 100,
        }
    }
}

/// A text that is neither a number nor a percentage.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("\"{}\" is neither a number of jobs nor a percentage from 0% to 100%", .0.escape_debug())]
pub struct MaxDeletionsError(String);

impl FromStr for MaxDeletions {
    type Err = MaxDeletionsError;
    fn from_str(text: &str) -> Result<Self, MaxDeletionsError> {
        let error = || MaxDeletionsError(text.chars().take(80).collect());
        match text.strip_suffix('%') {
            Some(percent) => percent.parse().ok().filter(|&percent| percent <= 100).map(Self::Percent).ok_or_else(error),
            None => text.parse().map(Self::Count).map_err(|_| error()),
        }
    }
}

/// What a plan may do.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct PlanOptions {
    /// Jobs that no file asks for are removed; otherwise their removal is shown as blocked.
    pub prune: bool,
    /// How many jobs may be removed.
    pub max_deletions: MaxDeletions,
    /// A catalogue without any job may be planned over one that has jobs.
    pub allow_empty: bool,
}

/// Why there is no plan.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum PlanError {
    /// More jobs would go than are allowed.
    #[error(
        "{removed} of {jobs} jobs would be removed, at most {allowed} may be; \
         pass `--max-deletions {removed}` where that is meant"
    )]
    TooManyDeletions {
        /// How many would go.
        removed: usize,
        /// How many there are.
        jobs: usize,
        /// How many may go.
        allowed: usize,
    },
    /// The files hold no job, the revision does.
    #[error("the catalogue has no jobs, and `{catalog}` has {jobs}; pass `--allow-empty` where that is meant")]
    Empty {
        /// The catalogue.
        catalog: CatalogName,
        /// How many jobs there are.
        jobs: usize,
    },
    /// A definition that [`needed`] names was not given.
    #[error("the definition of job `{0}` was not given to the plan")]
    DefinitionMissing(JobName),
}

/// What happens to a job.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Action {
    /// It is new.
    Added,
    /// Its definition changes.
    Changed,
    /// It goes.
    Removed,
    /// No file asks for it, and it stays for the reason given.
    Blocked,
}

impl Action {
    /// The word for it: `added`, `changed`, `removed`, `blocked`.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Added => "added",
            Self::Changed => "changed",
            Self::Removed => "removed",
            Self::Blocked => "blocked",
        }
    }
}

/// What happens to one job.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Change {
    /// The job.
    pub job: JobName,
    /// What happens to it.
    pub action: Action,
    /// Its file: the new one where there is one.
    pub file: String,
    /// The line of its name there; 0 where there is no file.
    pub line: u32,
    /// Why it is blocked.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub reason: Option<String>,
    /// What changes in it; empty unless its definition changes. Sensitive values are masked.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub fields: Vec<FieldChange>,
    /// The digest of the definition that is there before.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub before: Option<Digest>,
    /// The digest of the definition that is to be there.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub after: Option<Digest>,
    /// The definition that is to be there: of added and changed jobs. Never written with the plan, since it may hold a sensitive
    /// default.
    #[serde(skip)]
    pub definition: Option<Arc<JobDefinition>>,
    /// The parts of that definition that come from elsewhere than the job's own file, see [`LoadedJob::inherited`].
    #[serde(skip)]
    pub inherited: Vec<Inherited>,
}

/// How many jobs a plan touches.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct Summary {
    /// New jobs.
    pub added: usize,
    /// Jobs whose definition changes.
    pub changed: usize,
    /// Jobs that go.
    pub removed: usize,
    /// Jobs that no file asks for and that stay.
    pub blocked: usize,
    /// Jobs that stay as they are.
    pub unchanged: usize,
}

/// What an apply would do, and to what.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Plan {
    /// Version of this form; a reader refuses a newer one.
    pub format_version: u32,
    /// The catalogue.
    pub catalog: CatalogName,
    /// The revision it was made against; 0 where the catalogue has none yet.
    pub parent_revision: Revision,
    /// How many jobs it touches.
    pub summary: Summary,
    /// What happens to each job that is touched, sorted by name without regard to case.
    pub changes: Vec<Change>,
}

impl Plan {
    /// Whether files and revision say the same: no change, and nothing blocked either.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.changes.is_empty()
    }

    /// Whether carrying it out would make a new revision.
    #[must_use]
    pub fn changes_anything(&self) -> bool {
        self.changes.iter().any(|change| change.action != Action::Blocked)
    }

    /// The plan as `diff -o json` prints it: without definitions.
    #[must_use]
    pub fn report(&self) -> serde_json::Value {
        #[derive(Serialize)]
        struct Reported<'a> {
            job: &'a JobName,
            action: Action,
            file: &'a str,
            line: u32,
            #[serde(skip_serializing_if = "Option::is_none")]
            reason: Option<&'a str>,
            fields: &'a [FieldChange],
        }
        let reported = |change: &Change| {
            let Change { job, action, file, line, reason, fields, before: _, after: _, definition: _, inherited: _ } = change;
            serde_json::to_value(Reported { job, action: *action, file, line: *line, reason: reason.as_deref(), fields })
                .unwrap_or_default()
        };
        serde_json::json!({
            "format_version": self.format_version,
            "catalog": self.catalog,
            "parent_revision": self.parent_revision,
            "summary": self.summary,
            "changes": self.changes.iter().map(reported).collect::<Vec<_>>(),
        })
    }
}

/// Why a job that no file asks for stays.
const NEEDS_PRUNE: &str = "needs --prune";
const PROTECTED: &str = "protected: apply it without `protect: true` first, then remove it";

/// What it takes to get from `observed`, the jobs of revision `parent_revision`, to `desired`.
///
/// # Errors
/// Where the plan would remove more than it may, `desired` is empty and may not be, or a definition is missing that [`needed`]
/// names.
pub fn plan(
    catalog: &CatalogName,
    parent_revision: Revision,
    desired: &[LoadedJob],
    observed: &[Observed],
    options: &PlanOptions,
) -> Result<Plan, PlanError> {
    if desired.is_empty() && !observed.is_empty() && !options.allow_empty {
        return Err(PlanError::Empty { catalog: catalog.clone(), jobs: observed.len() });
    }
    let mut left: BTreeMap<String, &Observed> = observed.iter().map(|job| (job.name.folded(), job)).collect();
    let mut changes = BTreeMap::new();
    let mut summary = Summary::default();
    for job in desired {
        let folded = job.name().folded();
        let before = left.remove(&folded);
        let fields = match before {
            Some(before) if before.digest == job.digest => {
                summary.unchanged += 1;
                continue;
            }
            Some(before) => {
                let definition = before.definition.as_ref().ok_or_else(|| PlanError::DefinitionMissing(before.name.clone()))?;
                let document = job.source.as_ref().and_then(|source| Document::index(&job.file, source));
                diff(definition, &job.definition, document.as_ref(), &job.inherited)
            }
            None => Vec::new(),
        };
        let action = if before.is_some() { Action::Changed } else { Action::Added };
        *(if before.is_some() { &mut summary.changed } else { &mut summary.added }) += 1;
        let change = Change {
            job: job.name().clone(),
            action,
            file: job.file.clone(),
            line: job.line,
            reason: None,
            fields,
            before: before.map(|before| before.digest),
            after: Some(job.digest),
            definition: Some(Arc::clone(&job.definition)),
            inherited: job.inherited.clone(),
        };
        changes.insert(folded, change);
    }
    for (folded, job) in left {
        let definition = job.definition.as_ref().ok_or_else(|| PlanError::DefinitionMissing(job.name.clone()))?;
        let reason = if !options.prune {
            Some(NEEDS_PRUNE)
        } else if definition.protect {
            Some(PROTECTED)
        } else {
            None
        };
        *(if reason.is_some() { &mut summary.blocked } else { &mut summary.removed }) += 1;
        let change = Change {
            job: job.name.clone(),
            action: if reason.is_some() { Action::Blocked } else { Action::Removed },
            file: job.file.clone(),
            line: job.line,
            reason: reason.map(str::to_owned),
            fields: Vec::new(),
            before: Some(job.digest),
            after: None,
            definition: None,
            inherited: Vec::new(),
        };
        changes.insert(folded, change);
    }
    let allowed = options.max_deletions.of(observed.len());
    if summary.removed > allowed {
        return Err(PlanError::TooManyDeletions { removed: summary.removed, jobs: observed.len(), allowed });
    }
    let changes = changes.into_values().collect();
    Ok(Plan { format_version: PLAN_FORMAT_VERSION, catalog: catalog.clone(), parent_revision, summary, changes })
}
