//! An execution's page: how it stands and why, what happened to it, its log, and what can be done with it. While it goes on, the page is
//! told by server-sent events; without script it is as it was when it was loaded.

use std::convert::Infallible;
use std::time::Duration;

use askama::Template;
use axum::extract::Path;
use axum::response::sse::{Event, KeepAlive, Sse};
use axum::response::{IntoResponse as _, Response};
use futures::{Stream, stream};
use http::StatusCode;
use octavius_core::{ExecutionId, Timestamp};
use octavius_proto::v1::{self, ExecutionState};
use octavius_proto::words;
use tonic::Streaming;

use crate::form::{Fields, Posted};
use crate::log::{self, Wanted};
use crate::rpcs::Calls;
use crate::session::Visitor;
use crate::shell::{Who, html, see};
use crate::show;
use crate::trouble::Trouble;

/// How often a page is told again why its execution waits: that changes without the execution.
const WAIT_REFRESH: Duration = Duration::from_secs(5);

/// What an execution's page shows of it.
pub(crate) struct Shown {
    pub(crate) execution: v1::Execution,
    wait: Option<v1::Wait>,
    now: Timestamp,
}

impl Shown {
    pub(crate) async fn get(calls: &Calls, id: &str, now: Timestamp) -> Result<Self, Trouble> {
        let told = calls.executions().get_execution(v1::GetExecutionRequest { id: id.to_owned() }).await?.into_inner();
        let execution = told.execution.ok_or_else(|| Trouble::not_found(&format!("execution {id}")))?;
        Ok(Self { execution, wait: told.wait, now })
    }

    /// How it stands, behind its state, which has a sign of its own.
    fn after_state(&self) -> String {
        words::after_state(&self.execution, self.wait.as_ref(), self.now)
    }

    /// Whether the visitor may do more with it than approve or reject it.
    fn is_to_act_on(&self, visitor: &Who) -> bool {
        visitor.runs() && self.execution.is_callers
    }

    pub(crate) fn has_ended(&self) -> bool {
        words::has_ended(self.execution.state())
    }

    fn waits_for_approval(&self) -> bool {
        self.execution.state() == ExecutionState::WaitingForApproval
    }

    /// Whether nothing holds it up: it is about to be handed out.
    fn is_next(&self) -> bool {
        self.wait.as_ref().is_some_and(|wait| wait.causes.is_empty())
    }

    /// Each cause of its wait, but for the place in line, which the sentence tells: the executor that it is about, and what is so.
    fn causes(&self) -> Vec<(&str, &v1::WaitCause)> {
        self.wait.as_ref().map(words::causes).unwrap_or_default()
    }

    pub(crate) fn arguments(&self) -> Vec<(&String, &String)> {
        let mut arguments: Vec<_> = self.execution.arguments.iter().collect();
        arguments.sort_unstable();
        arguments
    }

    /// Facts that stand below the sentence; empty ones are left out.
    fn facts(&self) -> Vec<(&'static str, String)> {
        let execution = &self.execution;
        let last = execution.attempts.last();
        let facts = [
            ("exit code", execution.exit_code.map(|code| code.to_string()).unwrap_or_default()),
            ("runs as", last.map(|attempt| attempt.runs_as.clone()).unwrap_or_default()),
            ("image", last.map(|attempt| attempt.image.clone()).unwrap_or_default()),
            (
                "timeout",
                execution
                    .timeout
                    .map(|timeout| words::short(Duration::try_from(timeout).unwrap_or_default()))
                    .unwrap_or_default(),
            ),
            ("needs", show::pairs(&execution.selector)),
            ("trace id", execution.trace_id.clone()),
        ];
        let webhooks = words::all_undelivered(execution).map(|told| ("webhook", told));
        facts.into_iter().chain(webhooks).filter(|(_, value)| !value.is_empty()).collect()
    }

    fn definition(&self) -> String {
        octavius_proto::digest("definition", &self.execution.definition)
            .map(|digest| digest.short().to_string())
            .unwrap_or_default()
    }

    pub(crate) fn approvals(&self) -> Option<&v1::ExecutionApprovals> {
        self.execution.approvals.as_ref()
    }

    /// Whether the visitor's approval or rejection is waited for.
    pub(crate) fn is_callers(&self) -> bool {
        self.waits_for_approval() && self.approvals().is_some_and(|approvals| approvals.is_callers)
    }

    /// Whether the visitor's approval is among those that it has.
    pub(crate) fn has_callers(&self) -> bool {
        self.approvals().is_some_and(|approvals| approvals.has_callers)
    }
}

/// Who may approve, in words: `1 of 2 approvals, from ops or leads, not from the requester`.
pub(crate) fn rule(approvals: &v1::ExecutionApprovals) -> String {
    let groups = if approvals.groups.is_empty() { "those who may run it".to_owned() } else { approvals.groups.join(" or ") };
    let requester = if approvals.not_self { ", not from the requester" } else { "" };
    format!("{} of {} approvals, from {groups}{requester}", approvals.approved.len(), approvals.count)
}

/// Why an attempt ended, for where the page has not said it yet.
fn because(ending: &v1::Ending) -> &str {
    words::because(&ending.reason, &ending.message)
}

#[derive(Template)]
#[template(path = "execution_status.html")]
struct Status<'a> {
    visitor: &'a Who,
    shown: &'a Shown,
    now: Timestamp,
}

#[derive(Template)]
#[template(path = "execution.html")]
struct ExecutionPage<'a> {
    who: Option<&'a Who>,
    place: &'a str,
    visitor: &'a Who,
    shown: &'a Shown,
    now: Timestamp,
    commit: String,
    /// Its log, as markup.
    log: String,
    /// The id that running it again is to have: sending the form twice runs it once.
    new_id: String,
}

#[derive(Template)]
#[template(path = "no_log.html")]
struct LogTrouble<'a> {
    trouble: &'a Trouble,
}

/// The commit of the revision that an execution runs; empty where there is none, or it is not kept any more.
async fn commit_of(calls: &Calls, execution: &v1::Execution) -> String {
    let ask = v1::ListRevisionsRequest {
        catalog: execution.catalog.clone(),
        limit: 1,
        before: execution.revision + 1,
        job: String::new(),
    };
    let listed = calls.catalog().list_revisions(ask).await.map(|listed| listed.into_inner().revisions).unwrap_or_default();
    let pinned = listed.into_iter().find(|revision| revision.number == execution.revision);
    pinned.map(|revision| show::commit(&revision.provenance)).unwrap_or_default()
}

pub(crate) async fn page(visitor: Visitor, Path(id): Path<String>, fields: Fields) -> Result<Response, Trouble> {
    let now = visitor.who.now;
    let shown = Shown::get(&visitor.calls, &id, now).await?;
    if shown.execution.id != id {
        // the end of an id, or @latest, means another execution later: the address is to be one that can be sent to a colleague
        return Ok(see(&format!("/executions/{}", shown.execution.id)));
    }
    let wanted = Wanted::of(&fields)?;
    let (commit, log) =
        tokio::join!(commit_of(&visitor.calls, &shown.execution), log::section(&visitor.calls, &shown.execution, &wanted),);
    // what is known of the execution is shown, whatever becomes of its log
    let log = log.unwrap_or_else(|trouble| LogTrouble { trouble: &trouble }.render().unwrap_or_default());
    let page = ExecutionPage {
        who: Some(&visitor.who),
        place: "executions",
        visitor: &visitor.who,
        shown: &shown,
        now,
        commit,
        log,
        new_id: ExecutionId::generate().to_string(),
    };
    html(StatusCode::OK, &page)
}

/// Does what one of the page's buttons says.
pub(crate) async fn act(Path(id): Path<String>, posted: Posted) -> Result<Response, Trouble> {
    let Posted { visitor, fields, .. } = posted;
    let mut calls = visitor.calls.executions();
    let reason = fields.get("reason").to_owned();
    match fields.get("do") {
        "cancel" => drop(calls.cancel_execution(v1::CancelExecutionRequest { id: id.clone() }).await?),
        "approve" => drop(calls.approve_execution(v1::ApproveExecutionRequest { id: id.clone(), reason }).await?),
        "reject" => drop(calls.reject_execution(v1::RejectExecutionRequest { id: id.clone(), reason }).await?),
        "rerun" => {
            let ask = v1::RerunExecutionRequest { id: fields.get("new_id").to_owned(), source: id, ..Default::default() };
            let accepted = calls.rerun_execution(ask).await?.into_inner();
            return Ok(see(&format!("/executions/{}", accepted.id)));
        }
        other => return Err(Trouble::of(StatusCode::BAD_REQUEST, format!("an execution's page has no button \"{other}\""))),
    }
    // the inbox is gone through one by one
    let back = if fields.get("back") == "approvals" { "/approvals".to_owned() } else { format!("/executions/{id}") };
    Ok(see(&back))
}

/// An execution that a page is told about.
struct Live {
    visitor: Visitor,
    watch: Streaming<v1::WatchExecutionResponse>,
    id: String,
    /// The state that was told last.
    state: ExecutionState,
}

impl Live {
    /// The next thing to tell; none when there is nothing more.
    async fn next(mut self) -> Option<(Result<Event, Infallible>, Option<Self>)> {
        let waits = matches!(self.state, ExecutionState::Queued | ExecutionState::WaitingForApproval);
        let changed = tokio::select! {
            changed = self.watch.message() => changed,
            // what was watched is still watched: it is asked again why the execution waits
            () = tokio::time::sleep(WAIT_REFRESH), if waits => Ok(Some(v1::WatchExecutionResponse::default())),
        };
        // An end without a last state is a broken connection: the browser comes again.
        changed.ok().flatten()?;
        let now = Timestamp::now();
        let shown = Shown::get(&self.visitor.calls, &self.id, now).await.ok()?;
        self.state = shown.execution.state();
        let markup = Status { visitor: &self.visitor.who, shown: &shown, now }.render().ok()?;
        let name = if shown.has_ended() { "ended" } else { "status" };
        // a carriage return ends a line of an event, and what comes from a job may hold one
        let event = Event::default().event(name).data(markup.replace('\r', "\u{fffd}"));
        Some((Ok(event), (!shown.has_ended()).then_some(self)))
    }
}

fn told(live: Live) -> impl Stream<Item = Result<Event, Infallible>> {
    stream::unfold(Some(live), |live| async { live?.next().await })
}

/// The execution's status as markup: now, at each change, and for the last time when it has ended.
pub(crate) async fn events(visitor: Visitor, Path(id): Path<String>) -> Result<Response, Trouble> {
    let watch = visitor.calls.executions().watch_execution(v1::WatchExecutionRequest { id: id.clone() }).await?.into_inner();
    let live = Live { visitor, watch, id, state: ExecutionState::Unspecified };
    Ok(Sse::new(told(live)).keep_alive(KeepAlive::default()).into_response())
}
