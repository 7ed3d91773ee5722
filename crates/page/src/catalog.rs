//! The catalogue: the jobs that a visitor may see, with search and labels, and how each went last.

use std::collections::{BTreeSet, HashMap};

use askama::Template;
use axum::response::Response;
use http::StatusCode;
use octavius_proto::v1;
use url::form_urlencoded;

use crate::form::Fields;
use crate::session::Visitor;
use crate::shell::{Who, html};
use crate::show;
use crate::trouble::Trouble;

/// Most jobs on one page.
const PAGE: u32 = 200;

/// Among how many executions the last ones of jobs are looked for: one bounded call for the whole page.
const LOOKED_AT: u32 = 500;

/// A job in the list, with its newest execution.
struct Row {
    job: v1::JobSummary,
    last: Option<v1::Execution>,
}

/// The jobs of one catalogue.
struct Group {
    name: String,
    rows: Vec<Row>,
}

/// A job's own labels, `name=value` each, in order.
pub(crate) fn labels_of(job: &v1::JobSummary) -> BTreeSet<String> {
    job.labels.iter().map(|(name, value)| format!("{name}={value}")).collect()
}

#[derive(Template)]
#[template(path = "catalog.html")]
struct Catalog<'a> {
    who: Option<&'a Who>,
    place: &'a str,
    now: octavius_core::Timestamp,
    search: &'a str,
    label: &'a str,
    labels: BTreeSet<String>,
    count: usize,
    groups: Vec<Group>,
    next: Option<String>,
}

pub(crate) async fn list(visitor: Visitor, fields: Fields) -> Result<Response, Trouble> {
    let (search, label) = (fields.get("q"), fields.get("label"));
    let ask = v1::ListJobsRequest {
        search: search.to_owned(),
        labels: label.split_once('=').map(|(name, value)| (name.to_owned(), value.to_owned())).into_iter().collect(),
        after: fields.get("after").to_owned(),
        limit: PAGE,
    };
    let recent = v1::ListExecutionsRequest { all: true, limit: LOOKED_AT, ..Default::default() };
    let (mut catalog, mut executions) = (visitor.calls.catalog(), visitor.calls.executions());
    let (listed, recent) = tokio::join!(catalog.list_jobs(ask), executions.list_executions(recent));
    let listed = listed?.into_inner();
    let mut last = HashMap::new();
    // newest first: the first of a job is its last; where they may not be seen, jobs are listed without
    for execution in recent.map(|recent| recent.into_inner().executions).unwrap_or_default() {
        last.entry(execution.job.to_lowercase()).or_insert(execution);
    }
    let next = listed.jobs.last().filter(|_| listed.more).map(|job| {
        let mut query = form_urlencoded::Serializer::new(String::new());
        query.append_pair("q", search).append_pair("label", label).append_pair("after", &job.name);
        format!("/?{}", query.finish())
    });
    let mut labels: BTreeSet<String> = listed.jobs.iter().flat_map(labels_of).collect();
    if !label.is_empty() {
        labels.insert(label.to_owned());
    }
    let count = listed.jobs.len();
    let mut groups: Vec<Group> = Vec::new();
    for job in listed.jobs {
        let row = Row { last: last.remove(&job.name.to_lowercase()), job };
        match groups.iter_mut().find(|group| group.name == row.job.catalog) {
            Some(group) => group.rows.push(row),
            None => groups.push(Group { name: row.job.catalog.clone(), rows: vec![row] }),
        }
    }
    groups.sort_by(|a, b| a.name.cmp(&b.name));
    let now = visitor.who.now;
    html(StatusCode::OK, &Catalog { who: Some(&visitor.who), place: "jobs", now, search, label, labels, count, groups, next })
}
