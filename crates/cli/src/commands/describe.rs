//! `octavius describe`: a job, and how to run it.

use std::collections::BTreeMap;

use clap::Args;
use octavius_core::definition::{Argument, ArgumentType, Logs};
use octavius_core::{JobDefinition, Timestamp};
use octavius_proto::v1;
use octavius_proto::words;
use serde_json::{Value, json};

use crate::arguments::shell_quoted;
use crate::cli::JobArgs;
use crate::error::{Failure, Outcome};
use crate::exit::Exit;
use crate::output::Format;
use crate::remote_catalog::frozen_by;
use crate::sanitize::line;
use crate::schedule::Planned;
use crate::session::Session;
use crate::{Context, env, execution, table};

/// Flags of `octavius describe`.
#[derive(Debug, Args)]
pub struct DescribeArgs {
    #[command(flatten)]
    job: JobArgs,
    /// Form of the output
    #[arg(short, long, value_parser = Format::among(&["text", "json", "yaml"]), default_value = "text", env = env::OUTPUT)]
    output: Format,
}

/// How many executions are shown below a job.
const LAST_EXECUTIONS: u32 = 5;

/// Everything that is shown of a job.
struct Described {
    definition: JobDefinition,
    entry: v1::ManifestEntry,
    changed_in: v1::Revision,
    head: u64,
    frozen: Option<v1::Frozen>,
    paused: Option<v1::Paused>,
    groups: Option<Vec<String>>,
    executions: Vec<v1::Execution>,
    planned: Planned,
}

/// Gets a job from the controller.
///
/// # Errors
/// Where it is not there, or its definition cannot be understood.
pub async fn get_job(session: &Session, name: &str) -> Outcome<(JobDefinition, v1::GetJobResponse)> {
    let request = v1::GetJobRequest { name: name.to_owned() };
    let response = session.call(async |to| to.catalog().get_job(request.clone()).await).await?;
    let definition = octavius_proto::definition("definition", response.definition.as_ref()).map_err(|error| {
        Failure::new(Exit::Fault, anyhow::Error::new(error).context("the controller's answer cannot be understood"))
    })?;
    Ok((definition, response))
}

/// Runs the command.
///
/// # Errors
/// Where the controller cannot be reached or refuses, or there is no such job.
pub async fn run(context: &Context, args: &DescribeArgs) -> Outcome {
    let name = args.job.get()?;
    let name = name.as_str();
    let session = Session::open(context).await?;
    let listed = v1::ListExecutionsRequest { job: name.to_owned(), all: true, limit: LAST_EXECUTIONS, ..Default::default() };
    // three calls in one round trip; what goes beyond the job itself is left out where it is refused
    let (job, last, me) = tokio::join!(
        get_job(&session, name),
        session.call(async |to| to.executions().list_executions(listed.clone()).await),
        session.call(async |to| to.admin().who_am_i(v1::WhoAmIRequest {}).await),
    );
    let (definition, response) = job?;
    let planned = Planned::of(&response);
    let changed_in = response.changed_in.unwrap_or_default();
    let described = Described {
        definition,
        frozen: frozen(&session, &changed_in.catalog).await,
        entry: response.entry.unwrap_or_default(),
        changed_in,
        head: response.head,
        paused: response.paused,
        groups: me.ok().map(|me| me.groups),
        executions: last.map(|last| last.executions).unwrap_or_default(),
        planned,
    };
    if !args.output.structured(&context.shell, || to_json(&described))? {
        context.shell.print(&render(&described, Timestamp::now(), context.shell.width))?;
    }
    Ok(Exit::Done)
}

/// Who froze a catalogue: for those who may apply to it, whom alone it concerns.
async fn frozen(session: &Session, catalog: &str) -> Option<v1::Frozen> {
    let request = v1::GetHeadRequest { catalog: catalog.to_owned() };
    session.call(async |to| to.catalog().get_head(request.clone()).await).await.ok()?.frozen
}

fn to_json(described: &Described) -> Value {
    let Described { definition, entry, changed_in, head, frozen, paused, groups: _, executions, planned } = described;
    let (next_runs, last_skipped) = planned.to_json();
    let inherited = entry.inherited.iter();
    let provenance = changed_in.provenance.clone().unwrap_or_default();
    json!({
        "name": definition.name,
        "job": masked(definition),
        "definition": definition.digest().to_string(),
        "catalog": changed_in.catalog,
        "revision": changed_in.number,
        "head": head,
        "file": entry.file,
        "line": entry.line,
        "inherited": inherited.map(|from| json!({ "field": from.field, "file": from.file, "line": from.line })).collect::<Vec<_>>(),
        "frozen": frozen.as_ref().map(|frozen| json!({
            "by": frozen.by,
            "at": words::time(frozen.at.as_ref()).map(|at| at.to_string()),
        })),
        "paused": paused.as_ref().map(super::pause::to_json),
        "commit": provenance.commit,
        "repository": provenance.repository,
        "next_runs": next_runs,
        "last_skipped": last_skipped,
        "executions": executions.iter().map(execution::summary).collect::<Vec<_>>(),
        "execute": execute_line(definition),
    })
}

/// The definition without the values of its sensitive arguments.
fn masked(definition: &JobDefinition) -> JobDefinition {
    let mut definition = definition.clone();
    for argument in definition.env_vars.args.iter_mut().filter(|argument| argument.sensitive) {
        for value in argument.default.iter_mut().chain(&mut argument.choices) {
            value.0 = octavius_core::argument::MASK.to_owned();
        }
    }
    definition
}

/// The type as the table shows it: the choices, where there are some and they may be seen.
fn type_of(argument: &Argument) -> String {
    let mut text = match argument.choices.as_slice() {
        _ if argument.sensitive => argument.kind.as_str().to_owned(),
        [] => argument.kind.as_str().to_owned(),
        choices => choices.iter().map(|choice| choice.0.as_str()).collect::<Vec<_>>().join("|"),
    };
    if argument.sensitive {
        text.push_str(", sensitive");
    }
    text
}

fn default_of(argument: &Argument) -> String {
    match &argument.default {
        _ if argument.required => "required".to_owned(),
        Some(_) if argument.sensitive => octavius_core::argument::MASK.to_owned(),
        Some(default) if default.0.is_empty() => "\"\"".to_owned(),
        Some(default) => default.0.clone(),
        None => String::new(),
    }
}

/// What the job says about its logs: `log at most 256MiB, kept 90d, 10GiB in all`.
fn logs_of(logs: &Logs) -> Option<String> {
    let Logs { limit, keep_for, keep_bytes } = logs;
    let parts = [
        limit.map(|limit| if limit.most() == u64::MAX { "whole".to_owned() } else { format!("at most {limit}") }),
        keep_for.map(|time| format!("kept {time}")),
        keep_bytes.map(|size| format!("{size} in all")),
    ];
    let parts: Vec<_> = parts.into_iter().flatten().collect();
    (!parts.is_empty()).then(|| format!("log {}", parts.join(", ")))
}

fn description_of(argument: &Argument) -> String {
    // a table's cell is one line
    let description = argument.description.split_whitespace().collect::<Vec<_>>().join(" ");
    match &argument.pattern {
        Some(pattern) if description.is_empty() => format!("matches {pattern}"),
        Some(pattern) => format!("{description} (matches {pattern})"),
        None => description,
    }
}

/// A line that runs the job, with a place for each required argument.
fn execute_line(job: &JobDefinition) -> String {
    let mut text = format!("octavius execute {}", job.name);
    for argument in job.env_vars.args.iter().filter(|argument| argument.required) {
        let choice = argument.choices.first().filter(|_| !argument.sensitive);
        let value = match (choice, argument.kind) {
            (Some(choice), _) => choice.0.clone(),
            (None, ArgumentType::String) => "VALUE".to_owned(),
            (None, ArgumentType::Integer | ArgumentType::Number) => "N".to_owned(),
            (None, ArgumentType::Boolean) => "true".to_owned(),
            (None, ArgumentType::Duration) => "10m".to_owned(),
        };
        text.push_str(&format!(" --arg {}", shell_quoted(&format!("{}={value}", argument.name))));
    }
    line(&text)
}

/// One line for each file that says a part of the definition: `timeout (line 6), organization (line 5) from catalog/octavius.yaml`.
fn inherited_by_place(inherited: &[v1::InheritedField]) -> Vec<String> {
    let mut places: BTreeMap<&str, Vec<String>> = BTreeMap::new();
    for from in inherited {
        let field = from.field.trim_start_matches('/').replace('/', ".");
        places.entry(&from.file).or_default().push(format!("{field} (line {})", from.line));
    }
    places.into_iter().map(|(file, fields)| format!("{} from {file}", fields.join(", "))).collect()
}

fn render(described: &Described, now: Timestamp, width: Option<u16>) -> String {
    let Described { definition: job, entry, changed_in, head, frozen, paused, groups, executions, planned } = described;
    let provenance = changed_in.provenance.clone().unwrap_or_default();
    let mut description = job.description.trim().lines();
    let title = description.next().unwrap_or("no description");
    let mut at = Vec::new();
    if let Some(commit) = provenance.commit.get(..7) {
        at.push(format!("{commit}{}", if provenance.dirty { ", changed" } else { "" }));
    }
    at.push(format!("revision {}", changed_in.number));
    let mut out = format!("{}: {} ({})\n", job.name, line(title), at.join(", "));
    for more in description {
        out.push_str(&format!("{}\n", line(more.trim_end())));
    }
    if job.env_vars.args.is_empty() {
        out.push_str("no arguments\n");
    } else {
        let rows = job
            .env_vars
            .args
            .iter()
            .map(|argument| vec![argument.name.clone(), type_of(argument), default_of(argument), description_of(argument)]);
        out.push_str(&table::render(&["ARGUMENT", "TYPE", "DEFAULT", "DESCRIPTION"], rows, width));
    }
    let mut facts = Vec::new();
    let secrets: Vec<&str> = job.env_vars.secrets.iter().map(|secret| secret.name.as_str()).collect();
    if !secrets.is_empty() {
        facts.push(format!("secrets {}", secrets.join(", ")));
    }
    if !job.authorized_groups.is_empty() {
        let yours = |group: &String| groups.as_ref().is_some_and(|groups| groups.contains(group));
        let shown =
            job.authorized_groups.iter().map(|group| if yours(group) { format!("{group} (yours)") } else { group.clone() });
        facts.push(format!("groups {}", shown.collect::<Vec<_>>().join(", ")));
    }
    if let Some(approvals) = &job.approvals {
        facts.push(format!("approvals {approvals}"));
    }
    if !job.executor.is_empty() {
        facts.push(format!("runs {}", octavius_core::label::pool(&job.executor)));
    }
    if let Some(timeout) = job.timeout {
        facts.push(format!("timeout {timeout}"));
    }
    if job.retries > 0 {
        facts.push(format!("retries {}", job.retries));
    }
    if let Some(concurrency) = job.concurrency {
        facts.push(format!("at most {} at once", concurrency.limit));
    }
    facts.extend(logs_of(&job.logs));
    if !job.image_name.is_empty() {
        facts.push(format!("image {}", job.image_name));
    }
    if !job.author.is_empty() {
        facts.push(format!("author {}", job.author));
    }
    if !facts.is_empty() {
        out.push_str(&format!("{}\n", line(&facts.join("; "))));
    }
    if let Some(schedule) = &job.schedule {
        planned.lines(schedule, now).iter().for_each(|line| out.push_str(&format!("{line}\n")));
    }
    if !entry.file.is_empty() {
        let of = if provenance.repository.is_empty() { String::new() } else { format!(" of {}", provenance.repository) };
        out.push_str(&format!(
            "from {}\n",
            line(&format!("{}:{}{of}, catalogue {}, head {head}", entry.file, entry.line, changed_in.catalog))
        ));
    }
    for from in inherited_by_place(&entry.inherited) {
        out.push_str(&format!("{}\n", line(&from)));
    }
    if let Some(frozen) = frozen {
        out.push_str(&format!("catalogue {} is {}\n", changed_in.catalog, frozen_by(frozen)));
    }
    if let Some(paused) = paused {
        out.push_str(&format!("{}\n", super::pause::paused_by(paused)));
    }
    if !executions.is_empty() {
        // with what the first Octavius called their states, for those who come from there
        let rows = executions.iter().map(|execution| super::executions::wide_row(execution, now));
        out.push_str("last executions\n");
        out.push_str(&table::render(&super::executions::WIDE_HEADER, rows, width));
    }
    out.push_str(&format!("{}\n", execute_line(job)));
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_job_as_the_contract_shows_it() {
        let definition: JobDefinition = serde_json::from_value(json!({
            "name": "refund-order", "description": "refund one order",
            "env_vars": {
                "args": [
                    {"name": "order", "description": "like\nA-1042\n", "required": true},
                    {"name": "reason", "enum": ["fraud", "goodwill"], "default": "goodwill"},
                    {"name": "pin", "sensitive": true, "default": "1234"},
                    {"name": "door", "sensitive": true, "enum": ["1234", "12345"], "required": true},
                ],
                "secrets": [{"name": "PAYMENT_TOKEN"}],
            },
            "authorized_groups": ["support"], "executor": {"vpc": "payments"}, "approvals": {"groups": ["leads"], "count": 2},
        }))
        .unwrap();
        let described = Described {
            definition,
            entry: v1::ManifestEntry {
                file: "catalog/refund-order.yaml".into(),
                line: 2,
                inherited: [("/executor/vpc", 4), ("/authorized_groups", 7)]
                    .map(|(field, line)| v1::InheritedField { field: field.into(), file: "catalog/_defaults.yaml".into(), line })
                    .into(),
                ..Default::default()
            },
            frozen: Some(v1::Frozen { by: "ann".into(), at: Some(prost_types::Timestamp { seconds: 0, nanos: 0 }) }),
            paused: Some(v1::Paused {
                by: "bob".into(),
                at: Some(prost_types::Timestamp { seconds: 0, nanos: 0 }),
                all: false,
                reason: "the gateway moves".into(),
            }),
            changed_in: v1::Revision {
                catalog: "support".into(),
                number: 42,
                provenance: Some(v1::Provenance { commit: "4be07d1".repeat(6)[..40].into(), ..Default::default() }),
                ..Default::default()
            },
            head: 43,
            groups: Some(vec!["support".into()]),
            executions: Vec::new(),
            planned: Planned::default(),
        };
        insta::assert_snapshot!(render(&described, Timestamp::UNIX_EPOCH, None));
        let json = to_json(&described);
        assert_eq!(json["execute"], "octavius execute refund-order --arg order=VALUE --arg door=VALUE");
        assert!(!json.to_string().contains("1234"), "{json}");
        let args = &json["job"]["env_vars"]["args"];
        assert_eq!((&args[1]["default"], &args[2]["default"]), (&json!("goodwill"), &json!(octavius_core::argument::MASK)));
    }

    #[test]
    fn what_a_job_says_about_its_logs_is_told_in_a_few_words() {
        let told = |logs: Value| logs_of(&serde_json::from_value(logs).unwrap());
        assert_eq!(told(json!({})), None);
        assert_eq!(told(json!({"limit": "none"})).unwrap(), "log whole");
        let all = json!({"limit": "256MiB", "keep_for": "90d", "keep_bytes": "10GiB"});
        assert_eq!(told(all).unwrap(), "log at most 256MiB, kept 90d, 10GiB in all");
    }
}
