//! `octavius history`: the revisions of a catalogue.

use clap::Args;
use octavius_core::CatalogName;
use octavius_proto::words;
use octavius_proto::{reason, v1};
use serde_json::{Value, json};

use crate::catalog_args::CatalogArgs;
use crate::error::Outcome;
use crate::exit::Exit;
use crate::output::Format;
use crate::session::Session;
use crate::table::wire_time;
use crate::{Context, env, table};

/// Flags of `octavius history`.
#[derive(Debug, Args)]
pub struct HistoryArgs {
    #[command(flatten)]
    catalog: CatalogArgs,
    /// Only revisions that added, changed or removed this job [env: OCTAVIUS_JOB_NAME]
    #[arg(long, value_name = "NAME")]
    job_name: Option<String>,
    /// At most so many
    #[arg(long, value_name = "N", default_value_t = 20, value_parser = clap::value_parser!(u32).range(1..), env = env::LIMIT)]
    limit: u32,
    /// Form of the output
    #[arg(short, long, value_parser = Format::among(&["table", "json", "yaml"]), default_value = "table", env = env::OUTPUT)]
    output: Format,
}

/// Most revisions that are asked for at once.
const PAGE: u32 = 1000;

/// Most revisions of one job that are asked for at once: the controller follows them from one to the next.
const PAGE_OF_JOB: u32 = 100;

/// Revisions of a catalogue that are lower than `before` (0 for all), newest first, at most `limit`; of one job, where it is named.
///
/// # Errors
/// Where the controller cannot be reached or refuses.
pub async fn revisions(
    session: &Session,
    catalog: &CatalogName,
    job: &str,
    before: u64,
    limit: u32,
) -> Outcome<Vec<v1::Revision>> {
    let page = if job.is_empty() { PAGE } else { PAGE_OF_JOB };
    let mut request =
        v1::ListRevisionsRequest { catalog: catalog.to_string(), limit: limit.min(page), before, job: job.to_owned() };
    let mut found: Vec<v1::Revision> = Vec::new();
    loop {
        let answer = match session.call(async |to| to.catalog().list_revisions(request.clone()).await).await {
            Ok(answer) => answer.revisions,
            // it looked as far as it does for one answer, and says where to go on
            Err(failure) => {
                let from = failure.fault.as_ref().and_then(|fault| fault.fact("before")?.parse().ok());
                request.before = from.filter(|_| failure.is(reason::LIMIT)).ok_or(failure)?;
                continue;
            }
        };
        let last = answer.last().map_or(0, |revision| revision.number);
        found.extend(answer);
        let left = limit.saturating_sub(u32::try_from(found.len()).unwrap_or(u32::MAX));
        // an answer may be short although more follow; an empty one is the end
        if last <= 1 || left == 0 {
            return Ok(found);
        }
        request.before = last;
        request.limit = left.min(page);
    }
}

/// Runs the command.
///
/// # Errors
/// Where the controller cannot be reached or refuses.
pub async fn run(context: &Context, args: &HistoryArgs) -> Outcome {
    let catalog = args.catalog.get()?;
    let job = args.job_name.clone().or_else(|| env::get(env::JOB_NAME)).unwrap_or_default();
    let session = Session::open(context).await?;
    let revisions = revisions(&session, &catalog, &job, 0, args.limit).await?;
    if args.output.structured(&context.shell, || json!({ "revisions": revisions.iter().map(to_json).collect::<Vec<_>>() }))? {
        return Ok(Exit::Done);
    }
    if revisions.is_empty() {
        let of_job = if job.is_empty() { String::new() } else { format!(" that touches job `{job}`") };
        context.shell.note(&format!("catalogue `{catalog}` has no revision{of_job}"));
        return Ok(Exit::Done);
    }
    let rows = revisions.iter().map(|revision| {
        vec![
            revision.number.to_string(),
            wire_time(revision.applied_at.as_ref()),
            revision.applied_by.clone(),
            commit(revision).unwrap_or_else(|| "-".to_owned()),
            words::changes(revision),
        ]
    });
    let text = table::render(&["REVISION", "APPLIED", "BY", "COMMIT", "CHANGES"], rows, context.shell.width);
    context.shell.print(&text)?;
    Ok(Exit::Done)
}

/// The commit that a revision came from, short, and whether files differed from it; none where it is not known.
#[must_use]
pub fn commit(revision: &v1::Revision) -> Option<String> {
    let provenance = revision.provenance.as_ref()?;
    let commit = provenance.commit.get(..7)?;
    Some(format!("{commit}{}", if provenance.dirty { ", changed" } else { "" }))
}

fn to_json(revision: &v1::Revision) -> Value {
    let provenance = revision.provenance.clone().unwrap_or_default();
    let summary = revision.summary.unwrap_or_default();
    json!({
        "revision": revision.number,
        "parent": revision.parent,
        "applied_by": revision.applied_by,
        "applied_at": words::time(revision.applied_at.as_ref()).map(|at| at.to_string()),
        "commit": provenance.commit,
        "dirty": provenance.dirty,
        "repository": provenance.repository,
        "author": provenance.author,
        "rollback_to": (revision.rollback_to > 0).then_some(revision.rollback_to),
        "plan_id": Some(&revision.plan_id).filter(|id| !id.is_empty()),
        "summary": {
            "added": summary.added,
            "changed": summary.changed,
            "removed": summary.removed,
            "unchanged": summary.unchanged,
        },
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_revision_says_what_it_was() {
        let summary = Some(v1::RevisionSummary { added: 1, changed: 2, removed: 3, unchanged: 4 });
        let plain = v1::Revision { number: 7, summary, ..Default::default() };
        assert_eq!(words::changes(&plain), "+1 ~2 -3");
        assert_eq!(words::changes(&v1::Revision { rollback_to: 5, ..plain.clone() }), "+1 ~2 -3, rollback to 5");
        let planned = v1::Revision { plan_id: "0k3v".into(), ..plain };
        assert_eq!(words::changes(&planned), "+1 ~2 -3, plan 0k3v");
        assert_eq!((&to_json(&planned)["plan_id"], &to_json(&planned)["rollback_to"]), (&"0k3v".into(), &Value::Null));
        assert_eq!(commit(&planned), None);
    }
}
