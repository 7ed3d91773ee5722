//! A job's page: what it does, where it comes from, how it went, the form that runs it, and for admins the one that pauses it.

mod draft;

use std::collections::BTreeMap;

use askama::Template;
use axum::extract::Path;
use axum::response::Response;
use http::StatusCode;
use octavius_core::definition::Logs;
use octavius_core::{JobDefinition, Timestamp};
use octavius_proto::{Fault, v1, words};
use tonic::Code;

use crate::form::{Fields, Posted};
use crate::rpcs::Calls;
use crate::session::Visitor;
use crate::shell::{Who, html, see};
use crate::show;
use crate::trouble::Trouble;
use draft::{Draft, Field};

/// How many executions are shown below a job.
const LAST_EXECUTIONS: u32 = 5;

/// A job as its page shows it.
struct Job {
    definition: JobDefinition,
    entry: v1::ManifestEntry,
    changed_in: v1::Revision,
    head: u64,
    paused: Option<v1::Paused>,
    next_runs: Vec<prost_types::Timestamp>,
    last_skipped: Option<v1::SkippedTick>,
}

impl Job {
    async fn get(calls: &Calls, name: &str) -> Result<Self, Trouble> {
        let told = calls.catalog().get_job(v1::GetJobRequest { name: name.to_owned() }).await?.into_inner();
        let definition = octavius_proto::definition("definition", told.definition.as_ref());
        let definition = definition.map_err(|error| {
            tracing::error!(job = name, %error, "a job's definition cannot be understood");
            Trouble::of(StatusCode::INTERNAL_SERVER_ERROR, format!("the definition of job {name} cannot be understood"))
        })?;
        Ok(Self {
            definition,
            entry: told.entry.unwrap_or_default(),
            changed_in: told.changed_in.unwrap_or_default(),
            head: told.head,
            paused: told.paused,
            next_runs: told.next_runs,
            last_skipped: told.last_skipped,
        })
    }

    fn description(&self) -> Vec<&str> {
        self.definition.description.trim().split("\n\n").map(str::trim).filter(|text| !text.is_empty()).collect()
    }

    /// What holds for every run of it, a fact each.
    fn facts(&self, who: &Who) -> Vec<(&'static str, String)> {
        let job = &self.definition;
        let groups = job.authorized_groups.iter();
        let groups = groups.map(|group| if who.groups.contains(group) { format!("{group} (yours)") } else { group.clone() });
        let secrets = job.env_vars.secrets.iter().map(|secret| secret.name.as_str());
        let runs = if job.executor.is_empty() { String::new() } else { octavius_core::label::pool(&job.executor).to_string() };
        let facts = [
            ("groups", groups.collect::<Vec<_>>().join(", ")),
            ("approvals", job.approvals.as_ref().map(ToString::to_string).unwrap_or_default()),
            ("secrets", secrets.collect::<Vec<_>>().join(", ")),
            ("runs", runs),
            ("timeout", job.timeout.map(|timeout| timeout.to_string()).unwrap_or_default()),
            ("retries", if job.retries > 0 { job.retries.to_string() } else { String::new() }),
            ("at once", job.concurrency.map(|most| format!("at most {}", most.limit)).unwrap_or_default()),
            ("log", logs_of(&job.logs)),
            ("image", job.image_name.clone()),
            ("author", job.author.clone()),
            ("labels", job.labels.iter().map(|(name, value)| format!("{name}={value}")).collect::<Vec<_>>().join(", ")),
        ];
        facts.into_iter().filter(|(_, value)| !value.is_empty()).collect()
    }

    /// When it runs by itself, in its own time zone; empty for never.
    fn schedule(&self, now: Timestamp) -> Vec<String> {
        let Some(schedule) = &self.definition.schedule else { return Vec::new() };
        let next: Vec<Timestamp> = self.next_runs.iter().filter_map(|at| words::time(Some(at))).collect();
        let told = words::schedule(schedule, &next, self.last_skipped.as_ref(), now);
        [told.schedule].into_iter().chain(told.ticks).chain(told.skipped).collect()
    }

    /// Whether it is paused by its name: where all jobs are, it may be so, too.
    fn is_paused_itself(&self) -> bool {
        self.paused.as_ref().is_some_and(|paused| !paused.all)
    }

    /// Where it comes from: `catalog/a.yaml:3`.
    fn file(&self) -> String {
        if self.entry.file.is_empty() { String::new() } else { format!("{}:{}", self.entry.file, self.entry.line) }
    }

    /// One line for each other file that says a part of the definition.
    fn inherited(&self) -> Vec<String> {
        let mut places: BTreeMap<&str, Vec<String>> = BTreeMap::new();
        for from in &self.entry.inherited {
            let field = from.field.trim_start_matches('/').replace('/', ".");
            places.entry(&from.file).or_default().push(format!("{field} (line {})", from.line));
        }
        places.into_iter().map(|(file, fields)| format!("{} from {file}", fields.join(", "))).collect()
    }

    fn repository(&self) -> &str {
        self.changed_in.provenance.as_ref().map_or("", |from| &from.repository)
    }
}

fn logs_of(logs: &Logs) -> String {
    let Logs { limit, keep_for, keep_bytes } = logs;
    let parts = [
        limit.map(|limit| if limit.most() == u64::MAX { "whole".to_owned() } else { format!("at most {limit}") }),
        keep_for.map(|time| format!("kept {time}")),
        keep_bytes.map(|size| format!("{size} in all")),
    ];
    parts.into_iter().flatten().collect::<Vec<_>>().join(", ")
}

#[derive(Template)]
#[template(path = "job.html")]
struct JobPage<'a> {
    who: Option<&'a Who>,
    place: &'a str,
    now: Timestamp,
    visitor: &'a Who,
    job: &'a Job,
    executions: Vec<v1::Execution>,
    draft: &'a Draft,
    fields: Vec<Field<'a>>,
}

async fn shown(visitor: &Visitor, job: &Job, draft: &Draft, status: StatusCode) -> Result<Response, Trouble> {
    let name = job.definition.name.to_string();
    let ask = v1::ListExecutionsRequest { job: name, all: true, limit: LAST_EXECUTIONS, ..Default::default() };
    // what goes beyond the job itself is left out where it is refused
    let executions = visitor.calls.executions().list_executions(ask).await;
    let executions = executions.map(|listed| listed.into_inner().executions).unwrap_or_default();
    let page = JobPage {
        who: Some(&visitor.who),
        place: "jobs",
        now: visitor.who.now,
        visitor: &visitor.who,
        job,
        executions,
        draft,
        fields: draft.fields(&job.definition),
    };
    html(status, &page)
}

pub(crate) async fn page(visitor: Visitor, Path(name): Path<String>) -> Result<Response, Trouble> {
    let job = Job::get(&visitor.calls, &name).await?;
    let draft = Draft::new(&job.definition);
    shown(&visitor, &job, &draft, StatusCode::OK).await
}

/// Does what one of the page's buttons says. The one that runs the job has no word of its own: Enter in any of its fields presses it.
pub(crate) async fn act(Path(name): Path<String>, posted: Posted) -> Result<Response, Trouble> {
    let Posted { visitor, fields, .. } = posted;
    let (mut calls, job) = (visitor.calls.admin(), name.clone());
    match fields.get("do") {
        "" => return run(&visitor, &name, &fields).await,
        "pause" => {
            let reason = fields.get("reason").to_owned();
            drop(calls.pause_jobs(v1::PauseJobsRequest { job, all: false, reason }).await?);
        }
        "unpause" => drop(calls.unpause_jobs(v1::UnpauseJobsRequest { job, all: false }).await?),
        other => return Err(Trouble::of(StatusCode::BAD_REQUEST, format!("a job's page has no button \"{other}\""))),
    }
    Ok(see(&format!("/jobs/{name}")))
}

/// Runs the job as the form says. What the controller finds wrong is shown in the form, and what was typed is kept.
async fn run(visitor: &Visitor, name: &str, fields: &Fields) -> Result<Response, Trouble> {
    let job = Job::get(&visitor.calls, name).await?;
    let mut draft = Draft::sent(&job.definition, fields);
    let Some(request) = draft.request(&job.definition) else {
        return shown(visitor, &job, &draft, StatusCode::BAD_REQUEST).await;
    };
    let refused = match visitor.calls.executions().execute(request).await {
        Ok(accepted) => return Ok(see(&format!("/executions/{}", accepted.into_inner().id))),
        Err(status) if status.code() == Code::Unauthenticated => return Err(status.into()),
        Err(status) => Fault::from_status(&status),
    };
    draft.refused(&job.definition, &refused);
    shown(visitor, &job, &draft, Trouble::from(refused).status()).await
}
