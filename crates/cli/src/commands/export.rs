//! `octavius export`: a catalogue as files, which validate and apply as the same revision.

use std::path::{Path, PathBuf};

use clap::Args;
use octavius_catalog::{Limits, ReadError, export, read_dir};
use octavius_core::CatalogName;
use octavius_proto::v1;
use serde_json::json;

use super::{history, rollback};
use crate::catalog_args::name_in;
use crate::error::{Failure, Outcome};
use crate::exit::Exit;
use crate::folder::{self, NewFiles};
use crate::output::Format;
use crate::remote_catalog::{self, unreadable};
use crate::session::Session;
use crate::{Context, env};

/// Flags of `octavius export`.
#[derive(Debug, Args)]
pub struct ExportArgs {
    /// Folder for the files; those that are there are never replaced
    #[arg(value_name = "DIR")]
    dir: PathBuf,
    /// The revision [default: the newest]
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u64).range(1..), env = env::REVISION)]
    revision: Option<u64>,
    /// Name of the catalogue [default: what octavius.yaml says, in DIR or in ./catalog; or the only one there is]
    #[arg(long, value_name = "NAME", env = env::CATALOG_NAME)]
    catalog_name: Option<CatalogName>,
    /// Form of the output
    #[arg(short, long, value_parser = Format::among(&["text", "json", "yaml"]), default_value = "text", env = env::OUTPUT)]
    output: Format,
}

/// Runs the command.
///
/// # Errors
/// Where there is no such revision, the files do not fit to what is in the folder, or the controller cannot be reached.
pub async fn run(context: &Context, args: &ExportArgs) -> Outcome {
    if args.dir.metadata().is_ok_and(|found| !found.is_dir()) {
        return Err(Failure::usage(format!("{} is not a folder", args.dir.display())));
    }
    let session = Session::open(context).await?;
    let catalog = catalog_of(args, &session).await?;
    let newest = history::revisions(&session, &catalog, "", 0, 1).await?.first().map_or(0, |newest| newest.number);
    let number = rollback::revision(&session, &catalog, args.revision.unwrap_or(newest)).await?.number;
    let jobs = remote_catalog::fetch_revision(&session, &catalog, number).await?;
    let files = export::files(&catalog, &jobs);
    refuse_others(&args.dir, &files)?;
    let count = files.len();
    let new = folder::missing(&args.dir, files)?;
    folder::write_all(&args.dir, &new)?;
    let value = || {
        json!({
            "directory": args.dir.display().to_string(),
            "catalog": catalog,
            "revision": number,
            "jobs": jobs.len(),
            "written": new.keys().collect::<Vec<_>>(),
        })
    };
    if !args.output.structured(&context.shell, value)? {
        let there = if new.len() == count { String::new() } else { format!(" ({} were there already)", count - new.len()) };
        let (dir, jobs) = (args.dir.display(), jobs.len());
        let word = if jobs == 1 { "job" } else { "jobs" };
        context.shell.line(&format!("{dir}: {jobs} {word} of {catalog} revision {number}{there}"))?;
    }
    Ok(Exit::Done)
}

/// Which catalogue is meant.
async fn catalog_of(args: &ExportArgs, session: &Session) -> Outcome<CatalogName> {
    if let Some(name) = &args.catalog_name {
        return Ok(name.clone());
    }
    for dir in [&args.dir, Path::new("catalog")] {
        if let Some(name) = name_in(dir)? {
            return Ok(name);
        }
    }
    only_catalog(session).await
}

/// The catalogue of a controller that has one.
async fn only_catalog(session: &Session) -> Outcome<CatalogName> {
    let mut request = v1::ListJobsRequest::default();
    let mut found: Option<String> = None;
    let ambiguous =
        || Failure::usage("no catalogue is named").hint("name it: --catalog-name NAME; `octavius list -o wide` shows them");
    loop {
        let page = session.call(async |to| to.catalog().list_jobs(request.clone()).await).await?;
        for job in &page.jobs {
            if found.get_or_insert_with(|| job.catalog.clone()) != &job.catalog {
                return Err(ambiguous());
            }
        }
        match page.jobs.last() {
            Some(last) if page.more => request.after = last.name.clone(),
            _ => break,
        }
    }
    found.and_then(|name| CatalogName::new(name).ok()).ok_or_else(ambiguous)
}

/// That nothing else in the folder would be part of the catalogue.
fn refuse_others(dir: &Path, files: &NewFiles) -> Outcome<()> {
    let there = match read_dir(dir, &Limits::default()) {
        Ok(there) => there,
        Err(ReadError::Missing(_)) => return Ok(()),
        Err(error) => return Err(unreadable(error)),
    };
    let others: Vec<_> = there.files.iter().map(|file| &file.path).filter(|path| !files.contains_key(*path)).collect();
    let Some((first, rest)) = others.split_first() else { return Ok(()) };
    let more = if rest.is_empty() { String::new() } else { format!(" and {} more", rest.len()) };
    Err(Failure::usage(format!("{} holds files that are not part of it: {first}{more}; nothing was written", dir.display()))
        .hint("name another folder, or move these away"))
}
