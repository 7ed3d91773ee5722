//! What a revision changed: its manifest against that of the revision before, and the definitions of what differs.

use std::collections::{BTreeMap, HashMap};

use octavius_core::argument::MASK;
use octavius_core::{Digest, JobDefinition};
use octavius_proto::v1;
use similar::{ChangeTag, TextDiff};

use crate::rpcs::Calls;
use crate::trouble::Trouble;

/// Most jobs whose changes are shown on one page.
const SHOWN: usize = 100;

/// Lines around a change.
const AROUND: usize = 3;

/// A job that a revision added, changed or removed.
pub(super) struct Change {
    pub(super) name: String,
    /// `added`, `changed` or `removed`.
    pub(super) action: &'static str,
    /// Where it is in the catalogue, `file:line`.
    pub(super) file: String,
    /// The definition's lines that differ, and some around them.
    pub(super) lines: Vec<Line>,
}

/// A line of a definition.
pub(super) struct Line {
    /// `+`, `-`, ` `, or `…` where lines are left out.
    pub(super) sign: &'static str,
    pub(super) text: String,
}

type Manifest = BTreeMap<String, v1::ManifestEntry>;

/// The jobs of a revision by their names, folded; none of revision 0.
async fn manifest(calls: &Calls, catalog: &str, revision: u64) -> Result<Manifest, Trouble> {
    let mut jobs = Manifest::new();
    if revision == 0 {
        return Ok(jobs);
    }
    let ask = v1::GetBucketsRequest { catalog: catalog.to_owned(), revision, buckets: Vec::new() };
    let mut buckets = calls.catalog().get_buckets(ask).await?.into_inner();
    while let Some(bucket) = buckets.message().await? {
        jobs.extend(bucket.entries.into_iter().map(|entry| (entry.name.to_lowercase(), entry)));
    }
    Ok(jobs)
}

/// The definitions of these digests as text.
async fn definitions(calls: &Calls, digests: Vec<bytes::Bytes>) -> Result<HashMap<Digest, String>, Trouble> {
    let mut texts = HashMap::new();
    if digests.is_empty() {
        return Ok(texts);
    }
    let mut told = calls.catalog().get_definitions(v1::GetDefinitionsRequest { digests }).await?.into_inner();
    while let Some(piece) = told.message().await? {
        for definition in piece.definitions {
            if let Ok(job) = JobDefinition::from_canonical_json(&definition.json) {
                texts.insert(job.digest(), text_of(job));
            }
        }
    }
    Ok(texts)
}

/// A definition in lines, without the values of its sensitive arguments.
fn text_of(mut job: JobDefinition) -> String {
    for argument in job.env_vars.args.iter_mut().filter(|argument| argument.sensitive) {
        argument.default.iter_mut().chain(&mut argument.choices).for_each(|value| value.0 = MASK.to_owned());
    }
    serde_json::to_string_pretty(&job).unwrap_or_default()
}

/// The lines that differ, with some around them.
fn lines(before: &str, after: &str) -> Vec<Line> {
    let diff = TextDiff::from_lines(before, after);
    let mut lines = Vec::new();
    for (index, group) in diff.grouped_ops(AROUND).iter().enumerate() {
        if index > 0 {
            lines.push(Line { sign: "…", text: String::new() });
        }
        for change in group.iter().flat_map(|op| diff.iter_changes(op)) {
            let sign = match change.tag() {
                ChangeTag::Insert => "+",
                ChangeTag::Delete => "-",
                ChangeTag::Equal => " ",
            };
            lines.push(Line { sign, text: change.value().trim_end_matches('\n').to_owned() });
        }
    }
    lines
}

/// What the revision changed, in order of the jobs' names; and how many more changes there are than are shown.
pub(super) async fn changes(calls: &Calls, revision: &v1::Revision) -> Result<(Vec<Change>, usize), Trouble> {
    let (before, after) = tokio::try_join!(
        manifest(calls, &revision.catalog, revision.parent),
        manifest(calls, &revision.catalog, revision.number)
    )?;
    let mut names: Vec<&String> = before.keys().chain(after.keys()).collect();
    names.sort_unstable();
    names.dedup();
    let digest = |entry: Option<&v1::ManifestEntry>| entry.map(|entry| entry.definition.clone());
    let mut pairs: Vec<_> = names.into_iter().map(|name| (before.get(name), after.get(name))).collect();
    pairs.retain(|(old, new)| digest(*old) != digest(*new));
    let untold = pairs.len().saturating_sub(SHOWN);
    pairs.truncate(SHOWN);
    let wanted = pairs.iter().flat_map(|(old, new)| [digest(*old), digest(*new)]).flatten().collect();
    let texts = definitions(calls, wanted).await?;
    let text = |entry: Option<&v1::ManifestEntry>| {
        let digest = entry.and_then(|entry| octavius_proto::digest("definition", &entry.definition).ok());
        digest.and_then(|digest| texts.get(&digest)).map(String::as_str).unwrap_or_default()
    };
    let change = |(old, new): (Option<&v1::ManifestEntry>, Option<&v1::ManifestEntry>)| {
        let entry = new.or(old)?;
        let action = match (old, new) {
            (None, _) => "added",
            (_, None) => "removed",
            (Some(_), Some(_)) => "changed",
        };
        let file = if entry.file.is_empty() { String::new() } else { format!("{}:{}", entry.file, entry.line) };
        Some(Change { name: entry.name.clone(), action, file, lines: lines(text(old), text(new)) })
    };
    Ok((pairs.into_iter().filter_map(change).collect(), untold))
}
