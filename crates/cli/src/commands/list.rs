//! `octavius list`: the jobs that one may see.

use std::collections::HashMap;

use clap::Args;
use octavius_proto::v1;
use serde_json::{Value, json};

use crate::error::{Failure, Outcome};
use crate::exit::Exit;
use crate::output::Format;
use crate::sanitize::first_sentence;
use crate::session::Session;
use crate::{Context, env, sanitize, table};

/// Flags of `octavius list`.
#[derive(Debug, Args)]
pub struct ListArgs {
    /// Form of the output
    #[arg(short, long, value_parser = Format::among(&["table", "wide", "name", "json", "yaml"]), default_value = "table", env = env::OUTPUT)]
    output: Format,
    /// Only jobs with this label; may be repeated
    #[arg(short, long, value_name = "KEY=VALUE", env = env::LABEL)]
    label: Vec<String>,
    /// Only jobs whose name or description holds this text
    #[arg(long, value_name = "TEXT", env = env::SEARCH)]
    search: Option<String>,
}

/// Reads `key=value` pairs.
///
/// # Errors
/// Where one of them is none.
pub fn labels<M: FromIterator<(String, String)>>(pairs: &[String]) -> Outcome<M> {
    pairs
        .iter()
        .map(|pair| match pair.split_once('=') {
            Some((key, value)) if !key.is_empty() => Ok((key.trim().to_owned(), value.trim().to_owned())),
            _ => Err(Failure::usage(format!("--label \"{}\" is not KEY=VALUE", sanitize::line(pair)))),
        })
        .collect()
}

/// Runs the command.
///
/// # Errors
/// Where the controller cannot be reached or refuses.
pub async fn run(context: &Context, args: &ListArgs) -> Outcome {
    let labels: HashMap<String, String> = labels(&args.label)?;
    let session = Session::open(context).await?;
    let mut jobs = Vec::new();
    loop {
        let after = jobs.last().map(|job: &v1::JobSummary| job.name.clone()).unwrap_or_default();
        let search = args.search.clone().unwrap_or_default();
        let request = v1::ListJobsRequest { after, limit: 0, labels: labels.clone(), search };
        let page = session.call(async |to| to.catalog().list_jobs(request.clone()).await).await?;
        let ended = !page.more || page.jobs.is_empty();
        jobs.extend(page.jobs);
        if ended {
            break;
        }
    }
    let shell = &context.shell;
    // a column of its own only where it says something
    let any_paused = jobs.iter().any(|job| job.paused.is_some());
    let paused = |job: &v1::JobSummary| {
        let mark = job.paused.as_ref().map_or("-", |paused| if paused.all { "all" } else { "paused" });
        any_paused.then(|| mark.to_owned())
    };
    let header = |names: &[&'static str]| names.iter().copied().chain(any_paused.then_some("PAUSED")).collect::<Vec<_>>();
    if args.output.structured(shell, || json!({ "jobs": jobs.iter().map(to_json).collect::<Vec<_>>() }))? {
        return Ok(Exit::Done);
    }
    match args.output {
        Format::Name => shell.print(&jobs.iter().map(|job| format!("{}\n", sanitize::line(&job.name))).collect::<String>())?,
        Format::Wide => {
            let rows = jobs.iter().map(|job| {
                let pairs = |map: &HashMap<String, String>| if map.is_empty() { "-".to_owned() } else { pairs(map) };
                let row = [
                    job.name.clone(),
                    first_sentence(&job.description),
                    job.catalog.clone(),
                    pairs(&job.executor),
                    pairs(&job.labels),
                    job.file.clone(),
                ];
                row.into_iter().chain(paused(job)).collect()
            });
            let header = header(&["NAME", "DESCRIPTION", "CATALOG", "RUNS", "LABELS", "FILE"]);
            shell.print(&table::render(&header, rows, shell.width))?;
        }
        _ if jobs.is_empty() => {
            let narrowed = !args.label.is_empty() || args.search.is_some();
            shell.note(if narrowed { "no job matches" } else { "no jobs; `octavius apply` brings a catalogue's" });
        }
        _ => {
            let row = |job: &v1::JobSummary| [job.name.clone(), first_sentence(&job.description)];
            let rows = jobs.iter().map(|job| row(job).into_iter().chain(paused(job)).collect());
            shell.print(&table::render(&header(&["NAME", "DESCRIPTION"]), rows, shell.width))?;
        }
    }
    Ok(Exit::Done)
}

/// `a=1,b=2`, in order of the keys.
#[must_use]
pub fn pairs(map: &HashMap<String, String>) -> String {
    let mut pairs: Vec<String> = map.iter().map(|(key, value)| format!("{key}={value}")).collect();
    pairs.sort_unstable();
    pairs.join(",")
}

fn to_json(job: &v1::JobSummary) -> Value {
    json!({
        "name": job.name,
        "description": job.description,
        "catalog": job.catalog,
        "executor": job.executor,
        "labels": job.labels,
        "definition": octavius_proto::digest("definition", &job.definition).map_or(Value::Null, |digest| digest.to_string().into()),
        "file": job.file,
        "paused": job.paused.as_ref().map(super::pause::to_json),
    })
}
