//! `octavius history`: the revisions of a catalogue.

use std::path::{Path, PathBuf};

use clap::Args;
use octavius_catalog::{Limits, load, read_dir};
use octavius_proto::v1;
use serde_json::{Value, json};

use crate::error::{Failure, Outcome};
use crate::exit::Exit;
use crate::output::Format;
use crate::remote_catalog::unreadable;
use crate::session::Session;
use crate::table::{from_wire, wire_time};
use crate::{Context, env, table};

/// Flags of `octavius history`.
#[derive(Debug, Args)]
pub struct HistoryArgs {
    /// Folder of the catalogue, for its name
    #[arg(value_name = "PATH", default_value = "catalog")]
    path: PathBuf,
    /// Name of the catalogue, where there is no folder
    #[arg(long, value_name = "NAME", env = env::CATALOG_NAME)]
    catalog_name: Option<String>,
    /// At most so many
    #[arg(long, value_name = "N", default_value_t = 20, value_parser = clap::value_parser!(u32).range(1..=1000), env = env::LIMIT)]
    limit: u32,
    /// Form of the output
    #[arg(short, long, value_parser = Format::among(&["table", "json", "yaml"]), default_value = "table", env = env::OUTPUT)]
    output: Format,
}

fn name_of(path: &Path) -> Outcome<String> {
    let files = read_dir(path, &Limits::default()).map_err(|error| unreadable(error).hint("or name it: --catalog-name NAME"))?;
    let name = load(&files).catalog.map(|name| name.to_string());
    name.ok_or_else(|| Failure::usage(format!("{} has no octavius.yaml that names the catalogue", path.display())))
}

/// Runs the command.
///
/// # Errors
/// Where the controller cannot be reached or refuses.
pub async fn run(context: &Context, args: &HistoryArgs) -> Outcome {
    let catalog = args.catalog_name.clone().map_or_else(|| name_of(&args.path), Ok)?;
    let session = Session::open(context).await?;
    let request = v1::ListRevisionsRequest { catalog, limit: args.limit, before: 0, job: String::new() };
    let revisions = session.call(async |to| to.catalog().list_revisions(request.clone()).await).await?.revisions;
    if args.output.structured(&context.shell, || json!({ "revisions": revisions.iter().map(to_json).collect::<Vec<_>>() }))? {
        return Ok(Exit::Done);
    }
    if revisions.is_empty() {
        context.shell.note("no revisions");
        return Ok(Exit::Done);
    }
    let rows = revisions.iter().map(|revision| {
        let provenance = revision.provenance.clone().unwrap_or_default();
        let summary = revision.summary.unwrap_or_default();
        let commit = provenance.commit.get(..7).unwrap_or("-");
        vec![
            revision.number.to_string(),
            wire_time(revision.applied_at.as_ref()),
            revision.applied_by.clone(),
            format!("{commit}{}", if provenance.dirty { ", changed" } else { "" }),
            format!("+{} ~{} -{}", summary.added, summary.changed, summary.removed),
        ]
    });
    let text = table::render(&["REVISION", "APPLIED", "BY", "COMMIT", "CHANGES"], rows, context.shell.width);
    context.shell.print(&text)?;
    Ok(Exit::Done)
}

fn to_json(revision: &v1::Revision) -> Value {
    let provenance = revision.provenance.clone().unwrap_or_default();
    let summary = revision.summary.unwrap_or_default();
    json!({
        "revision": revision.number,
        "parent": revision.parent,
        "applied_by": revision.applied_by,
        "applied_at": from_wire(revision.applied_at.as_ref()).map(|at| at.to_string()),
        "commit": provenance.commit,
        "dirty": provenance.dirty,
        "repository": provenance.repository,
        "author": provenance.author,
        "summary": {
            "added": summary.added,
            "changed": summary.changed,
            "removed": summary.removed,
            "unchanged": summary.unchanged,
        },
    })
}
