//! Executors: who runs jobs, and what; admins drain and resume them.

use askama::Template;
use axum::extract::Path;
use axum::response::Response;
use http::StatusCode;
use octavius_core::Timestamp;
use octavius_proto::v1;

use crate::form::Posted;
use crate::session::Visitor;
use crate::shell::{Who, html, see};
use crate::show;
use crate::trouble::Trouble;

#[derive(Template)]
#[template(path = "executors.html")]
struct Executors<'a> {
    who: Option<&'a Who>,
    place: &'a str,
    now: Timestamp,
    executors: Vec<v1::Executor>,
}

pub(crate) async fn list(visitor: Visitor) -> Result<Response, Trouble> {
    let executors = visitor.calls.executors().list_executors(v1::ListExecutorsRequest {}).await?.into_inner().executors;
    let page = Executors { who: Some(&visitor.who), place: "executors", now: visitor.who.now, executors };
    html(StatusCode::OK, &page)
}

#[derive(Template)]
#[template(path = "executor.html")]
struct ExecutorPage<'a> {
    who: Option<&'a Who>,
    place: &'a str,
    visitor: &'a Who,
    now: Timestamp,
    executor: v1::Executor,
    /// Jobs in a cluster that no execution is for and that are not told by name.
    untold: usize,
}

pub(crate) async fn page(visitor: Visitor, Path(id): Path<String>) -> Result<Response, Trouble> {
    let told = visitor.calls.executors().get_executor(v1::GetExecutorRequest { id: id.clone() }).await?.into_inner();
    let executor = told.executor.ok_or_else(|| Trouble::not_found(&format!("executor {id}")))?;
    let untold = usize::try_from(executor.orphan_count).unwrap_or(usize::MAX).saturating_sub(executor.orphans.len());
    let who = &visitor.who;
    let page = ExecutorPage { who: Some(who), place: "executors", visitor: who, now: who.now, executor, untold };
    html(StatusCode::OK, &page)
}

/// Does what the page's button says.
pub(crate) async fn act(Path(id): Path<String>, posted: Posted) -> Result<Response, Trouble> {
    let mut calls = posted.visitor.calls.executors();
    let address = format!("/executors/{id}");
    match posted.fields.get("do") {
        "drain" => drop(calls.drain_executor(v1::DrainExecutorRequest { id }).await?),
        "resume" => drop(calls.resume_executor(v1::ResumeExecutorRequest { id }).await?),
        other => return Err(Trouble::of(StatusCode::BAD_REQUEST, format!("an executor's page has no button \"{other}\""))),
    }
    Ok(see(&address))
}
