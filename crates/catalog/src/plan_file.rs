//! A plan as a file: what `octavius diff --out` writes, a person reviews and `octavius apply PLAN` carries out. It holds what would
//! change and where, not the definitions: those are read from the files again, and must give the same plan. No sensitive value is in
//! it. Its checksum finds slips and edits; it is no signature, so whoever applies a plan must trust where it comes from.

use std::collections::BTreeMap;

use octavius_core::{CatalogName, Digest, JobName};
use serde::{Deserialize, Serialize};

use crate::diagnostic::{is_hidden, printable};
use crate::diff::FieldChange;
use crate::git::Provenance;
use crate::plan::{Action, Change, Plan, Revision, Summary};

/// Version of the file's form. A reader refuses a newer one.
const FORMAT_VERSION: u32 = 1;

/// What tells the file from any other JSON.
const KIND: &str = "octavius-plan";

/// The commit that a plan was made from.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct PlannedFrom {
    /// The commit: 40 hexadecimal characters.
    pub commit: String,
    /// Whether files of the catalogue differed from it.
    pub dirty: bool,
    /// The repository's URL, without user and password; empty where it has none.
    pub repository: String,
    /// The name of who wrote the commit.
    pub author: String,
}

impl From<&Provenance> for PlannedFrom {
    fn from(from: &Provenance) -> Self {
        let Provenance { commit, short: _, dirty, repository, author, prefix: _ } = from;
        let author = author.split(" <").next().unwrap_or_default().to_owned();
        Self { commit: commit.clone(), dirty: *dirty, repository: repository.clone(), author }
    }
}

/// What happens to one job; [`Change`] without what only an apply needs.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct PlannedChange {
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
}

/// What the one who makes a plan file knows beyond the plan.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Made {
    /// A new id; the controller takes each at most once.
    pub id: String,
    /// The id of the controller that the plan was made against.
    pub controller_id: String,
    /// That controller's name, for people.
    pub controller: String,
    /// The catalogue's folder as it was given.
    pub path: String,
    /// Whether jobs that no file asks for are removed.
    pub prune: bool,
    /// The commit; `None` outside of a repository.
    pub provenance: Option<PlannedFrom>,
    /// What the reader was shown, see [`crate::render::render_text`]; control characters other than line breaks are replaced.
    pub rendering: String,
}

/// A plan as a file holds it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct PlanFile {
    /// Version of this form; a reader refuses a newer one.
    pub format_version: u32,
    /// The plan's id; the controller takes each at most once.
    pub id: String,
    /// The id of the controller that the plan was made against.
    pub controller_id: String,
    /// That controller's name, for people.
    pub controller: String,
    /// The catalogue.
    pub catalog: CatalogName,
    /// The revision it was made against; 0 where the catalogue had none yet.
    pub parent_revision: Revision,
    /// The catalogue's folder as it was given.
    pub path: String,
    /// Whether jobs that no file asks for are removed.
    pub prune: bool,
    /// The commit; `None` outside of a repository.
    pub provenance: Option<PlannedFrom>,
    /// How many jobs it touches.
    pub summary: Summary,
    /// What happens to each job that is touched, sorted by name without regard to case.
    pub changes: Vec<PlannedChange>,
    /// What the reader was shown: lines without control characters.
    pub rendering: String,
}

/// The file: the plan, between what it is and what proves it whole.
#[derive(Serialize, Deserialize)]
struct Stored<P> {
    kind: String,
    #[serde(flatten)]
    plan: P,
    /// Of the plan's compact JSON, so that another formatting of the file is no edit.
    checksum: Digest,
}

/// Why a file is no plan that can be carried out.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum PlanFileError {
    /// The bytes are something else.
    #[error("not a plan; `octavius diff --out FILE` writes one")]
    NotAPlan,
    /// The bytes are what `octavius diff -o json` prints.
    #[error("this is what `octavius diff -o json` prints, which cannot be applied; `octavius diff --out FILE` writes a plan")]
    Report,
    /// A newer version of Octavius wrote it.
    #[error("the plan has format version {0}, this version of octavius reads up to {FORMAT_VERSION}; update octavius")]
    Newer(u64),
    /// It was edited, or is not whole.
    #[error("the plan is damaged: {0}; make it again with `octavius diff --out FILE`")]
    Damaged(&'static str),
    /// The files are of another catalogue.
    #[error("the plan is for catalogue `{planned}`, the files are of `{found}`")]
    OtherCatalog {
        /// The plan's.
        planned: CatalogName,
        /// That of the files.
        found: CatalogName,
    },
    /// The catalogue has another revision now.
    #[error(
        "the plan was made against revision {planned}, the catalogue is at {found}; make it again with `octavius diff --out FILE`"
    )]
    Moved {
        /// The revision that the plan was made against.
        planned: Revision,
        /// The revision now.
        found: Revision,
    },
    /// The files ask for something else than what was planned.
    #[error("the files do not give this plan any more: {difference}; make it again with `octavius diff --out FILE`")]
    Differs {
        /// The first job that is not the same.
        job: JobName,
        /// In what it differs, with the job's name.
        difference: String,
    },
}

impl PlanFile {
    /// The file for `plan`. Control characters, and others that are not seen, are replaced in all but the values.
    #[must_use]
    pub fn of(plan: &Plan, made: Made) -> Self {
        let Made { id, controller_id, controller, path, prune, provenance, rendering } = made;
        let rendering = rendering.lines().map(|line| printable(line) + "\n").collect();
        let mut file = Self {
            format_version: FORMAT_VERSION,
            id,
            controller_id,
            controller,
            catalog: plan.catalog.clone(),
            parent_revision: plan.parent_revision,
            path,
            prune,
            provenance,
            summary: plan.summary,
            changes: plan.changes.iter().map(PlannedChange::of).collect(),
            rendering,
        };
        file.one_line_texts().into_iter().for_each(|text| *text = printable(text));
        file
    }

    /// The strings that a reader is shown as a part of one line. The values of fields, which may hold anything, are none of them.
    fn one_line_texts(&mut self) -> Vec<&mut String> {
        let Self {
            format_version: _,
            id,
            controller_id,
            controller,
            catalog: _,
            parent_revision: _,
            path,
            prune: _,
            provenance,
            summary: _,
            changes,
            rendering: _,
        } = self;
        let mut texts = vec![id, controller_id, controller, path];
        if let Some(PlannedFrom { commit, dirty: _, repository, author }) = provenance {
            texts.extend([commit, repository, author]);
        }
        for change in changes {
            let PlannedChange { job: _, action: _, file, line: _, reason, fields, before: _, after: _ } = change;
            texts.push(file);
            texts.extend(reason);
            for FieldChange { path, before: _, after: _, line: _, file, unified: _ } in fields {
                texts.push(path);
                texts.extend(file);
            }
        }
        texts
    }

    /// The file's bytes: JSON for people to read, with a line break at its end.
    #[must_use]
    pub fn to_bytes(&self) -> Vec<u8> {
        let stored = Stored { kind: KIND.to_owned(), plan: self, checksum: self.checksum() };
        #[expect(clippy::expect_used, reason = "strings, numbers and lists always have a JSON form")]
        let mut bytes = serde_json::to_vec_pretty(&stored).expect("a plan has a JSON form");
        bytes.push(b'\n');
        bytes
    }

    fn checksum(&self) -> Digest {
        #[expect(clippy::expect_used, reason = "strings, numbers and lists always have a JSON form")]
        Digest::of(&serde_json::to_vec(self).expect("a plan has a JSON form"))
    }

    /// Reads a file's bytes.
    ///
    /// # Errors
    /// Where they are not a plan, a newer version wrote it, or it was edited or cut short.
    pub fn from_bytes(bytes: &[u8]) -> Result<Self, PlanFileError> {
        let Ok(value) = serde_json::from_slice::<serde_json::Value>(bytes) else {
            let is_plan = bytes.windows(KIND.len()).take(64).any(|part| part == KIND.as_bytes());
            let error = if is_plan { PlanFileError::Damaged("it is not whole") } else { PlanFileError::NotAPlan };
            return Err(error);
        };
        if value.get("kind").and_then(serde_json::Value::as_str) != Some(KIND) {
            let is_report = value.get("changes").is_some() && value.get("parent_revision").is_some();
            return Err(if is_report { PlanFileError::Report } else { PlanFileError::NotAPlan });
        }
        match value.get("format_version").and_then(serde_json::Value::as_u64) {
            Some(version) if version > u64::from(FORMAT_VERSION) => return Err(PlanFileError::Newer(version)),
            Some(version) if version == u64::from(FORMAT_VERSION) => {}
            _ => return Err(PlanFileError::Damaged("its format version is none")),
        }
        let edited = PlanFileError::Damaged("it was edited");
        let Ok(mut stored) = serde_json::from_slice::<Stored<Self>>(bytes) else { return Err(edited) };
        // What the types do not know, the checksum does not cover.
        let is_all = serde_json::to_value(&stored).is_ok_and(|known| known == value);
        // A terminal must not obey what a stranger's file says.
        let is_plain = !stored.plan.rendering.contains(|c| c != '\n' && is_hidden(c))
            && stored.plan.one_line_texts().iter().all(|text| !text.contains(is_hidden));
        if is_all && is_plain && stored.checksum == stored.plan.checksum() { Ok(stored.plan) } else { Err(edited) }
    }

    /// Whether `plan`, made again from the files, does what this one says: to the same revision of the same catalogue, with the same
    /// jobs, actions, digests and places.
    ///
    /// # Errors
    /// The first difference.
    pub fn is_fulfilled_by(&self, plan: &Plan) -> Result<(), PlanFileError> {
        if self.catalog != plan.catalog {
            return Err(PlanFileError::OtherCatalog { planned: self.catalog.clone(), found: plan.catalog.clone() });
        }
        if self.parent_revision != plan.parent_revision {
            return Err(PlanFileError::Moved { planned: self.parent_revision, found: plan.parent_revision });
        }
        let mut jobs: BTreeMap<String, (Option<&PlannedChange>, Option<&Change>)> = BTreeMap::new();
        for change in &self.changes {
            jobs.entry(change.job.folded()).or_default().0 = Some(change);
        }
        for change in &plan.changes {
            jobs.entry(change.job.folded()).or_default().1 = Some(change);
        }
        for pair in jobs.into_values() {
            let (job, difference) = match pair {
                (Some(planned), Some(now)) => match planned.difference(now) {
                    Some(difference) => (&planned.job, difference),
                    None => continue,
                },
                (Some(planned), None) => (&planned.job, planned.dropped()),
                (None, Some(now)) => (&now.job, unplanned(now)),
                (None, None) => continue,
            };
            return Err(PlanFileError::Differs { job: job.clone(), difference });
        }
        Ok(())
    }
}

fn unplanned(now: &Change) -> String {
    format!("`{}` would be {}, which is not planned", now.job, now.action.as_str())
}

impl PlannedChange {
    fn of(change: &Change) -> Self {
        let Change { job, action, file, line, reason, fields, before, after, .. } = change;
        Self {
            job: job.clone(),
            action: *action,
            file: file.clone(),
            line: *line,
            reason: reason.clone(),
            fields: fields.clone(),
            before: *before,
            after: *after,
        }
    }

    fn dropped(&self) -> String {
        format!("`{}` was planned to be {} and would stay as it is", self.job, self.action.as_str())
    }

    fn difference(&self, now: &Change) -> Option<String> {
        let shown = |digest: Option<Digest>| digest.map_or_else(|| "nothing".to_owned(), |digest| digest.short());
        let job = &self.job;
        if self.action != now.action {
            let (planned, now) = (self.action.as_str(), now.action.as_str());
            return Some(format!("`{job}` was planned to be {planned} and would be {now}"));
        }
        for (what, planned, now) in [("comes from", self.before, now.before), ("becomes", self.after, now.after)] {
            if planned != now {
                return Some(format!("`{job}` {what} definition {}, {} was planned", shown(now), shown(planned)));
            }
        }
        if (&self.file, self.line) != (&now.file, now.line) {
            let (file, line) = (printable(&self.file), self.line);
            return Some(format!("`{job}` is at {}:{}, {file}:{line} was planned", printable(&now.file), now.line));
        }
        None
    }
}
