//! Revisions of catalogues: who applied what, when, from which commit; and, for those who may apply, what each changed.

mod changes;

use std::collections::BTreeSet;

use askama::Template;
use axum::extract::Path;
use axum::response::Response;
use http::StatusCode;
use octavius_core::{Permission, Timestamp};
use octavius_proto::{Fault, reason, v1};
use url::form_urlencoded;

use crate::form::Fields;
use crate::rpcs::Calls;
use crate::session::Visitor;
use crate::shell::{Who, html};
use crate::show;
use crate::trouble::Trouble;
use changes::{Change, changes};

/// Revisions on one page.
const PAGE: u32 = 50;

/// Most jobs that are looked at for the names of catalogues.
const JOBS: u32 = 1000;

#[derive(Template)]
#[template(path = "revisions.html")]
struct Revisions<'a> {
    who: Option<&'a Who>,
    place: &'a str,
    now: Timestamp,
    catalog: &'a str,
    catalogs: BTreeSet<String>,
    job: &'a str,
    revisions: Vec<v1::Revision>,
    is_first: bool,
    next: Option<String>,
    /// Whether the visitor may see what a revision changed.
    sees_changes: bool,
}

/// The names of the catalogues that own the jobs which the visitor sees.
async fn catalogs(calls: &Calls) -> Result<BTreeSet<String>, Trouble> {
    let listed = calls.catalog().list_jobs(v1::ListJobsRequest { limit: JOBS, ..Default::default() }).await?.into_inner();
    Ok(listed.jobs.into_iter().map(|job| job.catalog).collect())
}

fn address(catalog: &str, job: &str, before: u64) -> String {
    let mut query = form_urlencoded::Serializer::new(String::new());
    query.append_pair("catalog", catalog);
    if !job.is_empty() {
        query.append_pair("job", job);
    }
    query.append_pair("before", &before.to_string());
    format!("/revisions?{}", query.finish())
}

pub(crate) async fn list(visitor: Visitor, fields: Fields) -> Result<Response, Trouble> {
    let mut catalogs = catalogs(&visitor.calls).await?;
    let catalog = match fields.get("catalog") {
        "" => catalogs.first().cloned().unwrap_or_default(),
        named => named.to_owned(),
    };
    let (job, before) = (fields.get("job"), fields.get("before").parse().unwrap_or_default());
    let (mut revisions, mut next) = (Vec::new(), None);
    if !catalog.is_empty() {
        catalogs.insert(catalog.clone());
        let ask = v1::ListRevisionsRequest { catalog: catalog.clone(), limit: PAGE, before, job: job.to_owned() };
        match visitor.calls.catalog().list_revisions(ask).await {
            Ok(listed) => revisions = listed.into_inner().revisions,
            // it looked as far back as it does for one answer, and says where to go on
            Err(status) => {
                let fault = Fault::from_status(&status);
                let from = fault.fact("before").and_then(|before| before.parse().ok()).filter(|_| fault.reason == reason::LIMIT);
                next = Some(address(&catalog, job, from.ok_or(status)?));
            }
        }
    }
    if let Some(last) = revisions.last().filter(|last| last.number > 1) {
        next = Some(address(&catalog, job, last.number));
    }
    let page = Revisions {
        who: Some(&visitor.who),
        place: "revisions",
        now: visitor.who.now,
        catalog: &catalog,
        catalogs,
        job,
        revisions,
        is_first: before == 0,
        next,
        sees_changes: visitor.who.may(Permission::Apply),
    };
    html(StatusCode::OK, &page)
}

#[derive(Template)]
#[template(path = "revision.html")]
struct RevisionPage<'a> {
    who: Option<&'a Who>,
    place: &'a str,
    now: Timestamp,
    revision: v1::Revision,
    changes: Vec<Change>,
    /// Changes that are not shown for their number.
    untold: usize,
}

pub(crate) async fn page(visitor: Visitor, Path((catalog, number)): Path<(String, u64)>) -> Result<Response, Trouble> {
    let missing = || Trouble::not_found(&format!("revision {number} of catalogue {catalog}"));
    let before = number.checked_add(1).ok_or_else(missing)?;
    let ask = v1::ListRevisionsRequest { catalog: catalog.clone(), limit: 1, before, job: String::new() };
    let listed = visitor.calls.catalog().list_revisions(ask).await?.into_inner().revisions;
    let revision = listed.into_iter().find(|revision| revision.number == number).ok_or_else(missing)?;
    let (changes, untold) = changes(&visitor.calls, &revision).await?;
    let page = RevisionPage { who: Some(&visitor.who), place: "revisions", now: visitor.who.now, revision, changes, untold };
    html(StatusCode::OK, &page)
}
