//! `octavius import`: a catalogue of the jobs that a first Octavius keeps in its etcd. Nothing is written there.

use std::io;
use std::path::{Path, PathBuf};

use clap::Args;
use octavius_catalog::import::{Imported, PREFIX, import};
use octavius_catalog::source::CATALOG_FILE;
use octavius_catalog::{Files, Limits, Loaded, load, read_dir};
use octavius_core::CatalogName;
use octavius_store::{EtcdOptions, read_foreign};
use serde_json::{Value, json};

use crate::error::{Failure, Outcome};
use crate::exit::Exit;
use crate::folder::{self, NewFiles};
use crate::output::{Format, Shell};
use crate::remote_catalog::print_findings;
use crate::sanitize::line;
use crate::store_options::{EtcdAccessArgs, EtcdUse};
use crate::{Context, config, env};

/// Flags of `octavius import`.
#[derive(Debug, Args)]
pub struct ImportArgs {
    /// Folder for the catalogue; files that are there are never replaced
    #[arg(value_name = "DIR")]
    dir: PathBuf,
    /// The first Octavius' etcd; several members separated by commas
    #[arg(long, value_name = "HOST:PORT,…", required = true, env = env::ETCD)]
    etcd: String,
    /// Name of the catalogue, where it is new [default: the folder's]
    #[arg(long, value_name = "NAME", env = env::CATALOG_NAME)]
    catalog_name: Option<CatalogName>,
    #[command(flatten)]
    access: EtcdAccessArgs,
    /// Form of the output
    #[arg(short, long, value_parser = Format::among(&["text", "json", "yaml"]), default_value = "text", env = env::OUTPUT, help_heading = "Options")]
    output: Format,
}

/// Runs the command.
///
/// # Errors
/// Where the etcd cannot be read, it holds no jobs, they do not fit to what is in the folder, or the files cannot be written.
pub async fn run(context: &Context, args: &ImportArgs) -> Outcome {
    let shell = &context.shell;
    let options = EtcdOptions { timeout: config::timeout(&context.connect, None)?, ..args.access.options(&args.etcd, None)? };
    let there = existing(&args.dir)?;
    let new_name = new_catalog(args, there.as_ref())?;
    let endpoints = options.endpoints.join(", ");
    let wanted = EtcdUse::new(&options, "--time-out", format!("read all keys that start with {PREFIX}"));
    let entries = read_foreign(options, PREFIX).await.map_err(|error| wanted.failure(error))?;
    if entries.is_empty() {
        return Err(Failure::usage(format!("no jobs in the etcd at {endpoints}: no key starts with {PREFIX}"))
            .hint("is it the etcd that the first Octavius' controller_config.json names?"));
    }
    let imported = import(entries);
    if imported.jobs.is_empty() {
        tell_refused(shell, &imported);
        return Err(Failure::new(Exit::No, anyhow::Error::msg("none of the jobs can be taken; nothing was written")));
    }
    let mut files: NewFiles = imported.jobs.iter().map(|job| (job.file.clone(), job.yaml.clone().into_bytes())).collect();
    if let Some(name) = &new_name {
        files.insert(CATALOG_FILE.to_owned(), format!("catalog: {name}\n").into_bytes());
    }
    folder::refuse_existing(&args.dir, &files)?;
    let loaded = together(shell, &args.dir, there.as_ref(), &files)?;
    folder::write_all(&args.dir, &files)?;
    if !args.output.structured(shell, || to_json(&args.dir, &imported, &loaded))? {
        print_findings(shell, &loaded);
        tell_refused(shell, &imported);
        let (dir, taken, refused) = (args.dir.display(), imported.jobs.len(), imported.refused.len());
        shell.line(&format!("{dir}: {taken} imported, {refused} not"))?;
        shell.hint(&format!("look them through, then `octavius diff {dir}` and `octavius apply {dir}`"));
    }
    let whole = imported.refused.is_empty() && !loaded.has_errors();
    Ok(if whole { Exit::Done } else { Exit::No })
}

/// What is in the folder; none where it is not there yet.
fn existing(dir: &Path) -> Outcome<Option<Files>> {
    if dir.symlink_metadata().is_err_and(|error| error.kind() == io::ErrorKind::NotFound) {
        return Ok(None);
    }
    if dir.metadata().is_ok_and(|found| !found.is_dir()) {
        return Err(Failure::usage(format!("{} is not a folder", dir.display())));
    }
    Ok(Some(read_dir(dir, &Limits::default()).map_err(|error| Failure::new(Exit::Usage, error))?))
}

/// The catalogue as it will be. What is wrong in the folder already is not the import's to judge; what the new jobs bring with them is
/// refused while nothing is written.
fn together(shell: &Shell, dir: &Path, there: Option<&Files>, files: &NewFiles) -> Outcome<Loaded> {
    let of_there = there.map_or_else(Vec::new, |there| load(there).diagnostics);
    let old = there.into_iter().flat_map(|there| &there.files).map(|file| (file.path.clone(), file.bytes.to_vec()));
    let new = files.iter().map(|(name, bytes)| (name.clone(), bytes.clone()));
    let shown = dir.to_string_lossy();
    let prefix = there.map_or_else(|| shown.trim_end_matches('/').to_owned(), |there| there.display_prefix.clone());
    let mut all = Files::new(old.chain(new), &Limits::default()).at(&prefix);
    for finding in there.into_iter().flat_map(|there| &there.findings) {
        if !all.findings.contains(finding) {
            all.findings.push(finding.clone());
        }
    }
    let mut loaded = load(&all);
    if loaded.diagnostics.iter().any(|diagnostic| diagnostic.is_error() && !of_there.contains(diagnostic)) {
        loaded.diagnostics.retain(|diagnostic| !of_there.contains(diagnostic));
        print_findings(shell, &loaded);
        return Err(Failure::usage(format!("the jobs do not fit to what is in {}; nothing was written", dir.display()))
            .hint("name another folder, or change what is there"));
    }
    Ok(loaded)
}

/// The name of the catalogue that is to be made; none where there is one in the folder.
fn new_catalog(args: &ImportArgs, there: Option<&Files>) -> Outcome<Option<CatalogName>> {
    if let Some(there) = there.filter(|there| there.files.iter().any(|file| file.path == CATALOG_FILE)) {
        return match (&args.catalog_name, load(there).catalog) {
            (Some(asked), Some(there)) if *asked != there => {
                Err(Failure::usage(format!("{} is the catalogue `{there}` already, not `{asked}`", args.dir.display()))
                    .hint("name another folder, or leave --catalog-name out"))
            }
            _ => Ok(None),
        };
    }
    if let Some(name) = &args.catalog_name {
        return Ok(Some(name.clone()));
    }
    let absolute = std::path::absolute(&args.dir).unwrap_or_else(|_| args.dir.clone());
    let name = absolute.file_name().map(|name| name.to_string_lossy().into_owned()).unwrap_or_default();
    CatalogName::new(name.clone()).map(Some).map_err(|error| {
        Failure::new(Exit::Usage, anyhow::Error::new(error).context(format!("a catalogue cannot be called \"{}\"", line(&name))))
            .hint("name it: --catalog-name NAME")
    })
}

fn tell_refused(shell: &Shell, imported: &Imported) {
    for refused in &imported.refused {
        shell.warn(&format!("{} was not imported", line(&refused.key)));
        for reason in &refused.reasons {
            shell.note(&format!("  {}", line(reason)));
        }
        shell.hint(refused.hint);
    }
}

fn to_json(dir: &Path, imported: &Imported, loaded: &Loaded) -> Value {
    let jobs = imported.jobs.iter().map(|job| json!({ "name": job.name, "file": job.file }));
    let refused = imported.refused.iter();
    let refused = refused.map(|refused| json!({ "key": refused.key, "reasons": refused.reasons, "hint": refused.hint }));
    json!({
        "directory": dir.display().to_string(),
        "catalog": loaded.catalog,
        "imported": jobs.collect::<Vec<_>>(),
        "refused": refused.collect::<Vec<_>>(),
        "valid": !loaded.has_errors(),
        "findings": loaded.diagnostics,
    })
}
