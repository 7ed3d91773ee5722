//! `octavius validate`: everything there is to say about a catalogue's files, offline; with `--server`, whether there are executors for its
//! jobs too.

use std::path::PathBuf;

use clap::Args;
use octavius_catalog::diagnostic::{render_count, render_github, render_text};
use octavius_catalog::{Limits, Loaded, load, load_file, read_dir, read_file};
use octavius_core::Labels;
use octavius_proto::v1;
use serde_json::json;

use crate::error::{Failure, Outcome};
use crate::exit::Exit;
use crate::output::Format;
use crate::remote_catalog::unreadable;
use crate::session::Session;
use crate::{Context, env};

/// Flags of `octavius validate`.
#[derive(Debug, Args)]
pub struct ValidateArgs {
    /// Folder of the catalogue, or one job file
    #[arg(value_name = "PATH", default_value = "catalog")]
    path: PathBuf,
    /// Form of the output
    #[arg(short, long, value_parser = Format::among(&["text", "json", "yaml", "github"]), default_value = "text", env = env::OUTPUT)]
    output: Format,
    /// Ask the controller for its executors, and warn of jobs that none of them takes
    #[arg(long, env = env::SERVER, value_parser = clap::builder::BoolishValueParser::new())]
    server: bool,
}

/// Runs the command.
///
/// # Errors
/// Where there is nothing to check, or it cannot be read; with `--server`, where the controller cannot be reached or refuses.
pub async fn run(context: &Context, args: &ValidateArgs) -> Outcome {
    let limits = Limits::default();
    let mut loaded = if args.path.is_file() {
        let shown = args.path.to_string_lossy();
        load_file(&shown, &read_file(&args.path, &limits).map_err(unreadable)?, &limits)
    } else {
        load(&read_dir(&args.path, &limits).map_err(unreadable)?)
    };
    if loaded.files == 0 && loaded.diagnostics.iter().all(|diagnostic| diagnostic.line == 0) && loaded.catalog.is_none() {
        return Err(Failure::usage(format!("nothing to check in {}", args.path.display()))
            .hint("name the folder that holds octavius.yaml"));
    }
    if args.server {
        let executors = executors(context).await?;
        let warnings = octavius_catalog::selectors(&loaded, &executors);
        loaded.diagnostics.extend(warnings);
        loaded.diagnostics.sort_by(|a, b| (&a.path, a.line, a.column).cmp(&(&b.path, b.line, b.column)));
    }
    print(context, &loaded, args.output)?;
    Ok(if loaded.has_errors() { Exit::No } else { Exit::Done })
}

/// The labels of all executors that the controller knows, also of those that are away: they come back.
async fn executors(context: &Context) -> Outcome<Vec<Labels>> {
    let session = Session::open(context).await?;
    let listed = session.call(async |to| to.executors().list_executors(v1::ListExecutorsRequest {}).await).await?;
    let labels = listed.executors.into_iter().map(|executor| executor.labels.into_iter().collect());
    Ok(labels.collect())
}

fn print(context: &Context, loaded: &Loaded, format: Format) -> Outcome<()> {
    let shell = &context.shell;
    let Loaded { catalog, jobs, diagnostics, files, .. } = loaded;
    let value = || {
        json!({
            "catalog": catalog,
            "valid": !loaded.has_errors(),
            "files": files,
            "jobs": jobs.len(),
            "findings": diagnostics,
        })
    };
    if format.structured(shell, value)? {
        return Ok(());
    }
    let mut text = String::new();
    for diagnostic in diagnostics {
        match format {
            Format::Github => text.push_str(&format!("{}\n", render_github(diagnostic))),
            _ => text.push_str(&render_text(diagnostic, shell.color())),
        }
    }
    let count = render_count(diagnostics, *files);
    match format {
        Format::Github => shell.note(&count),
        _ => text.push_str(&format!("{count}\n")),
    }
    shell.print(&text)
}
