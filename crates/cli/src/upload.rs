//! The upload of an apply: a header, then the definitions of new and changed jobs in parts, made while they are sent. A try after a broken
//! connection makes them again; nothing of it is kept in between.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};
use octavius_catalog::manifest::Inherited;
use octavius_catalog::{Action, Plan};
use octavius_core::{Digest, JobDefinition};
use octavius_proto::v1;
use v1::apply_request::Part;

use crate::output::Shell;
use crate::remote_catalog::Applying;

/// Largest part of an apply, in bytes of definitions: well under what a message may have.
const PART_BYTES: usize = 900 * 1024;

/// An apply that takes no longer than this shows nothing of its progress.
const QUIET: Duration = Duration::from_millis(500);

/// What an apply sends.
#[derive(Debug)]
pub struct Upload {
    header: v1::ApplyHeader,
    definitions: Arc<[Arc<JobDefinition>]>,
    bar: ProgressBar,
}

impl Upload {
    /// The upload of a plan.
    #[must_use]
    pub fn of(plan: &Plan, applying: &Applying) -> Self {
        let Applying { controller_id, provenance, plan_id, rollback_to, freeze } = applying.clone();
        let mut header = v1::ApplyHeader {
            catalog: plan.catalog.to_string(),
            parent: plan.parent_revision,
            put: Vec::new(),
            remove: Vec::new(),
            provenance,
            controller_id,
            plan_id,
            rollback_to,
            freeze,
        };
        let mut definitions: BTreeMap<Digest, Arc<JobDefinition>> = BTreeMap::new();
        for change in &plan.changes {
            match (change.action, change.after, &change.definition) {
                (Action::Removed, ..) => header.remove.push(change.job.to_string()),
                (Action::Added | Action::Changed, Some(digest), Some(definition)) => {
                    header.put.push(v1::ManifestEntry {
                        name: change.job.to_string(),
                        definition: digest.as_bytes().to_vec().into(),
                        file: change.file.clone(),
                        line: change.line,
                        changed_in: 0,
                        inherited: change.inherited.iter().map(wire_inherited).collect(),
                    });
                    definitions.insert(digest, Arc::clone(definition));
                }
                (Action::Added | Action::Changed | Action::Blocked, ..) => {}
            }
        }
        let definitions: Arc<[_]> = definitions.into_values().collect();
        let bar = ProgressBar::with_draw_target(u64::try_from(definitions.len()).ok(), ProgressDrawTarget::hidden());
        Self { header, definitions, bar }
    }

    /// The messages of one try.
    pub fn messages(&self) -> impl Iterator<Item = v1::ApplyRequest> + Send + 'static {
        self.bar.set_position(0);
        self.bar.set_message("");
        let header = v1::ApplyRequest { part: Some(Part::Header(self.header.clone())) };
        std::iter::once(header).chain(Parts {
            definitions: Arc::clone(&self.definitions),
            at: 0,
            left_over: None,
            bar: self.bar.clone(),
        })
    }

    /// Does `work` and shows how far the upload is, where it takes long and someone is there to see it.
    pub async fn shown<T>(&self, shell: &Shell, work: impl Future<Output = T>) -> T {
        tokio::pin!(work);
        if shell.interactive && shell.color_stderr() {
            tokio::select! {
                done = &mut work => return done,
                () = tokio::time::sleep(QUIET) => {}
            }
            if let Ok(style) = ProgressStyle::with_template("applying {bar:30} {pos}/{len} definitions, {elapsed}{msg}") {
                self.bar.set_style(style);
            }
            self.bar.set_draw_target(ProgressDrawTarget::stderr());
            self.bar.enable_steady_tick(Duration::from_millis(100));
        }
        let done = work.await;
        self.bar.finish_and_clear();
        done
    }
}

fn wire_inherited(from: &Inherited) -> v1::InheritedField {
    let Inherited { field, file, line } = from;
    v1::InheritedField { field: field.clone(), file: file.clone(), line: *line }
}

/// The definitions of one try, in parts.
struct Parts {
    definitions: Arc<[Arc<JobDefinition>]>,
    /// The first definition that has not been serialised yet.
    at: usize,
    /// One that did not fit into the part before.
    left_over: Option<Vec<u8>>,
    bar: ProgressBar,
}

impl Iterator for Parts {
    type Item = v1::ApplyRequest;

    fn next(&mut self) -> Option<v1::ApplyRequest> {
        let mut part = v1::ApplyDefinitions::default();
        let mut bytes = 0;
        loop {
            let json = self.left_over.take().or_else(|| {
                let definition = self.definitions.get(self.at)?;
                self.at += 1;
                Some(definition.to_canonical_json())
            });
            let Some(json) = json else { break };
            if bytes + json.len() > PART_BYTES && !part.definitions.is_empty() {
                self.left_over = Some(json);
                break;
            }
            bytes += json.len();
            part.definitions.push(v1::Definition { json: json.into() });
        }
        self.bar.inc(u64::try_from(part.definitions.len()).unwrap_or_default());
        if part.definitions.is_empty() {
            self.bar.set_message(", the controller writes");
        }
        (!part.definitions.is_empty()).then_some(v1::ApplyRequest { part: Some(Part::Definitions(part)) })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use octavius_catalog::Change;
    use octavius_catalog::plan::Summary;
    use octavius_core::CatalogName;

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
            inherited: Vec::new(),
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
        let upload = Upload::of(&plan, &Applying { controller_id: "store".into(), ..Default::default() });
        let messages: Vec<_> = upload.messages().collect();
        // another try sends the same
        assert_eq!(upload.messages().collect::<Vec<_>>(), messages);
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
