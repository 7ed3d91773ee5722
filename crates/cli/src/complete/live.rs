//! What a controller knows and a shell may complete.

use std::ffi::OsStr;
use std::time::Duration;

use clap_complete::engine::CompletionCandidate;
use octavius_core::definition::{Argument, ArgumentType};
use octavius_core::{State, Timestamp};
use octavius_proto::v1;
use octavius_proto::words::{self, between};

use super::Line;
use crate::commands::whoami::role_name;
use crate::config;
use crate::error::{Failure, Outcome};
use crate::output::Shell;
use crate::session::Session;
use crate::{approvals, catalog_args, env};

/// How long a controller may take: what is left of the whole is for starting and reading files.
const ANSWER: Duration = Duration::from_millis(400);

/// Executions that are offered: nobody looks through more.
const EXECUTIONS: u32 = 30;

/// What is completed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Wanted {
    /// A job's name.
    Job,
    /// An execution's id.
    Execution(Which),
    /// An executor's id.
    Executor,
    /// A token's id.
    Token,
    /// A webhook's name.
    Webhook,
    /// A catalogue's name.
    Catalog,
    /// A revision of a catalogue.
    Revision,
    /// `NAME=VALUE` of the job that is named.
    Argument,
    /// A state of executions.
    State,
    /// A context of the configuration.
    Context,
}

/// Which executions make sense.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Which {
    /// All.
    All,
    /// Those that can be stopped.
    Going,
    /// Those that have ended.
    Ended,
    /// Those of everybody's that wait for one's approval.
    Yours,
}

/// Candidates that begin with `current`; none where anything goes wrong.
pub(super) fn ask(line: &Line, wanted: Wanted, current: &OsStr) -> Vec<CompletionCandidate> {
    let Some(current) = current.to_str() else { return Vec::new() };
    let mut found = match wanted {
        Wanted::State => State::ALL.iter().map(|state| CompletionCandidate::new(state.as_str())).collect(),
        Wanted::Context => contexts(line).unwrap_or_default(),
        _ => from_controller(line, wanted, current),
    };
    found.retain(|candidate| candidate.get_value().as_encoded_bytes().starts_with(current.as_bytes()));
    // they stand in the order in which they were found
    found.into_iter().enumerate().map(|(at, candidate)| candidate.display_order(Some(at))).collect()
}

fn candidate(value: impl Into<String>, help: impl Into<String>) -> CompletionCandidate {
    CompletionCandidate::new(value.into()).help(Some(help.into().into()))
}

fn contexts(line: &Line) -> Outcome<Vec<CompletionCandidate>> {
    let Some(located) = config::locate(&line.connect)? else { return Ok(Vec::new()) };
    let file = &located.file;
    let top = (file.has_top() && file.is_top(config::TOP)).then_some((config::TOP, &file.top));
    let all = top.into_iter().chain(file.contexts.iter().map(|(name, entry)| (name.as_str(), entry)));
    Ok(all.map(|(name, entry)| candidate(name, entry.cp_host.clone().unwrap_or_default())).collect())
}

fn from_controller(line: &Line, wanted: Wanted, current: &str) -> Vec<CompletionCandidate> {
    // The terminal is the person's: no token is read from it.
    let dash = std::path::Path::new("-");
    if line.connect.token_file.as_deref() == Some(dash) || env::get(env::TOKEN_FILE).as_deref() == Some("-") {
        return Vec::new();
    }
    let Ok(runtime) = tokio::runtime::Builder::new_current_thread().enable_all().build() else { return Vec::new() };
    let work = async {
        let mut resolved = config::resolve(&line.connect)?;
        resolved.timeout = resolved.timeout.min(ANSWER);
        let session = Session::connect(&Shell::new(true), resolved).await?;
        match wanted {
            Wanted::Job => jobs(&session, current).await,
            Wanted::Execution(which) => executions(&session, which).await,
            Wanted::Executor => executors(&session).await,
            Wanted::Token => tokens(&session).await,
            Wanted::Webhook => webhooks(&session).await,
            Wanted::Catalog => catalogs(&session).await,
            Wanted::Revision => revisions(&session, line).await,
            Wanted::Argument => arguments(&session, line, current).await,
            Wanted::State | Wanted::Context => Ok(Vec::new()),
        }
    };
    let found = runtime.block_on(async { tokio::time::timeout(ANSWER, work).await });
    runtime.shutdown_background();
    found.map_or_else(|_| Vec::new(), Outcome::unwrap_or_default)
}

/// All jobs whose names or descriptions hold the text: the controller narrows them down.
async fn summaries(session: &Session, holding: &str) -> Outcome<Vec<v1::JobSummary>> {
    let mut jobs: Vec<v1::JobSummary> = Vec::new();
    loop {
        let after = jobs.last().map(|job| job.name.clone()).unwrap_or_default();
        let request = v1::ListJobsRequest { after, limit: 0, labels: Default::default(), search: holding.to_owned() };
        let page = session.call_once(async |to| to.catalog().list_jobs(request.clone()).await).await?;
        let ended = !page.more || page.jobs.is_empty();
        jobs.extend(page.jobs);
        if ended {
            return Ok(jobs);
        }
    }
}

async fn jobs(session: &Session, current: &str) -> Outcome<Vec<CompletionCandidate>> {
    let jobs = summaries(session, current).await?;
    Ok(jobs.into_iter().map(|job| candidate(job.name, job.description)).collect())
}

async fn catalogs(session: &Session) -> Outcome<Vec<CompletionCandidate>> {
    let mut names: Vec<String> = summaries(session, "").await?.into_iter().map(|job| job.catalog).collect();
    names.sort_unstable();
    names.dedup();
    Ok(names.into_iter().map(CompletionCandidate::new).collect())
}

async fn executions(session: &Session, which: Which) -> Outcome<Vec<CompletionCandidate>> {
    let states = State::ALL.iter().filter(|state| match which {
        Which::All => true,
        Which::Going => !state.is_terminal(),
        Which::Ended => state.is_terminal(),
        Which::Yours => **state == State::WaitingForApproval,
    });
    let states = states.map(|state| octavius_proto::to_state(*state).into()).collect();
    let all = which == Which::Yours;
    let request = v1::ListExecutionsRequest { states, all, limit: EXECUTIONS, ..Default::default() };
    let mut listed = session.call_once(async |to| to.executions().list_executions(request.clone()).await).await?;
    if which == Which::Yours {
        listed.executions.retain(approvals::is_yours);
    }
    let now = Timestamp::now();
    let found = listed.executions.into_iter().map(|execution| {
        let state = octavius_proto::state("state", execution.state).map_or("unknown", State::as_str);
        let age = words::time(execution.created_at.as_ref()).map(|at| format!(", {} ago", between(at, now))).unwrap_or_default();
        let help = format!("{} {state}{age}", execution.job);
        candidate(execution.id, help)
    });
    let latest = (which == Which::All).then(|| candidate("@latest", "your newest"));
    Ok(latest.into_iter().chain(found).collect())
}

async fn executors(session: &Session) -> Outcome<Vec<CompletionCandidate>> {
    let listed = session.call_once(async |to| to.executors().list_executors(v1::ListExecutorsRequest {}).await).await?;
    let help = |executor: &v1::Executor| {
        format!("{}, {}/{}", words::executor_state_name(executor.state()), executor.running.len(), executor.capacity)
    };
    Ok(listed.executors.iter().map(|executor| candidate(executor.id.clone(), help(executor))).collect())
}

async fn tokens(session: &Session) -> Outcome<Vec<CompletionCandidate>> {
    let listed = session.call_once(async |to| to.admin().list_tokens(v1::ListTokensRequest {}).await).await?;
    let help = |token: &v1::TokenInfo| format!("{}, {}", token.user, role_name(token.role));
    Ok(listed.tokens.iter().map(|token| candidate(token.id.clone(), help(token))).collect())
}

async fn webhooks(session: &Session) -> Outcome<Vec<CompletionCandidate>> {
    let listed = session.call_once(async |to| to.admin().list_webhooks(v1::ListWebhooksRequest {}).await).await?;
    Ok(listed.webhooks.into_iter().map(|webhook| candidate(webhook.name, webhook.url)).collect())
}

async fn revisions(session: &Session, line: &Line) -> Outcome<Vec<CompletionCandidate>> {
    let folder = line.path.clone().unwrap_or_else(|| "catalog".into());
    let named = match &line.catalog {
        Some(name) => Some(name.clone()),
        None => catalog_args::name_in(&folder)?.map(|name| name.to_string()),
    };
    let catalog = named.ok_or_else(|| Failure::usage("no catalogue is named"))?;
    let request = v1::ListRevisionsRequest { catalog, ..Default::default() };
    let listed = session.call_once(async |to| to.catalog().list_revisions(request.clone()).await).await?;
    let now = Timestamp::now();
    Ok(listed.revisions.iter().map(|revision| candidate(revision.number.to_string(), applied(revision, now))).collect())
}

fn applied(revision: &v1::Revision, now: Timestamp) -> String {
    let age = words::time(revision.applied_at.as_ref()).map(|at| format!("{} ago by ", between(at, now))).unwrap_or_default();
    format!("{age}{}", revision.applied_by)
}

/// Arguments of the job, by name; after the `=`, the values that may be.
async fn arguments(session: &Session, line: &Line, current: &str) -> Outcome<Vec<CompletionCandidate>> {
    let name = line.job.clone().ok_or_else(|| Failure::usage("no job is named"))?;
    let request = v1::GetJobRequest { name };
    let job = session.call_once(async |to| to.catalog().get_job(request.clone()).await).await?;
    let job =
        octavius_proto::definition("definition", job.definition.as_ref()).map_err(|error| Failure::fault(error.to_string()))?;
    Ok(match current.split_once('=') {
        Some((name, _)) => job.env_vars.args.iter().find(|argument| argument.name == name).map(values).unwrap_or_default(),
        None => names(&job.env_vars.args, &line.given),
    })
}

/// `NAME=` of each argument that is not given yet, those first without which the job does not run.
fn names(arguments: &[Argument], given: &[String]) -> Vec<CompletionCandidate> {
    let needed = |argument: &Argument| argument.required && argument.default.is_none();
    let mut open: Vec<&Argument> = arguments.iter().filter(|argument| !given.contains(&argument.name)).collect();
    open.sort_by_key(|argument| !needed(argument));
    let help = |argument: &Argument| {
        let word = match &argument.default {
            _ if needed(argument) => "required".to_owned(),
            Some(default) if !argument.sensitive => format!("default {}", default.0),
            _ => "optional".to_owned(),
        };
        let described = [argument.description.as_str(), argument.kind.as_str(), &word];
        described.into_iter().filter(|part| !part.is_empty()).collect::<Vec<_>>().join("; ")
    };
    open.into_iter().map(|argument| candidate(format!("{}=", argument.name), help(argument))).collect()
}

/// `NAME=VALUE` for each value that is known.
fn values(argument: &Argument) -> Vec<CompletionCandidate> {
    let mut values: Vec<String> = argument.choices.iter().map(|choice| choice.0.clone()).collect();
    if values.is_empty() && argument.kind == ArgumentType::Boolean {
        values.extend(["true".to_owned(), "false".to_owned()]);
    }
    let default = argument.default.as_ref().filter(|_| !argument.sensitive).map(|default| default.0.clone());
    values.extend(default.clone().filter(|default| !values.contains(default)));
    let help = |value: &String| if Some(value) == default.as_ref() { "default" } else { "" };
    values.iter().map(|value| candidate(format!("{}={value}", argument.name), help(value))).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn argument(json: serde_json::Value) -> Argument {
        serde_json::from_value(json).unwrap()
    }

    fn shown(candidates: &[CompletionCandidate]) -> Vec<(String, String)> {
        let help = |one: &CompletionCandidate| one.get_help().map(ToString::to_string).unwrap_or_default();
        candidates.iter().map(|one| (one.get_value().to_string_lossy().into_owned(), help(one))).collect()
    }

    #[test]
    fn arguments_are_named_once_and_the_required_ones_first() {
        let arguments = [
            argument(serde_json::json!({"name": "limit", "type": "integer", "default": 100})),
            argument(serde_json::json!({"name": "order", "description": "like A-1", "required": true})),
            argument(serde_json::json!({"name": "pin", "sensitive": true, "default": "1234"})),
        ];
        let all = shown(&names(&arguments, &[]));
        let expected =
            [("order=", "like A-1; string; required"), ("limit=", "integer; default 100"), ("pin=", "string; optional")];
        assert_eq!(all, expected.map(|(value, help)| (value.to_owned(), help.to_owned())));
        assert_eq!(names(&arguments, &["order".to_owned()]).len(), 2);
    }

    #[test]
    fn values_are_those_that_the_job_knows() {
        let of = |json| shown(&values(&argument(json))).into_iter().map(|(value, _)| value).collect::<Vec<_>>();
        assert_eq!(
            of(serde_json::json!({"name": "why", "enum": ["fraud", "two words"], "default": "fraud"})),
            ["why=fraud", "why=two words"]
        );
        assert_eq!(of(serde_json::json!({"name": "dry", "type": "boolean"})), ["dry=true", "dry=false"]);
        assert_eq!(of(serde_json::json!({"name": "n", "default": 7})), ["n=7"]);
        assert_eq!(of(serde_json::json!({"name": "pin", "default": "1234", "sensitive": true})), Vec::<String>::new());
    }
}
