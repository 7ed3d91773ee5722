//! The catalogue: the jobs that a visitor may see.

use askama::Template;
use axum::response::Response;
use http::StatusCode;
use octavius_proto::v1;

use crate::form::Fields;
use crate::session::Visitor;
use crate::shell::{Who, html};
use crate::trouble::Trouble;

#[derive(Template)]
#[template(path = "catalog.html")]
struct Catalog<'a> {
    who: Option<&'a Who>,
    place: &'a str,
    search: &'a str,
    jobs: Vec<v1::JobSummary>,
}

pub(crate) async fn list(visitor: Visitor, fields: Fields) -> Result<Response, Trouble> {
    let search = fields.get("q");
    let ask = v1::ListJobsRequest { search: search.to_owned(), ..Default::default() };
    let jobs = visitor.calls.catalog().list_jobs(ask).await?.into_inner().jobs;
    html(StatusCode::OK, &Catalog { who: Some(&visitor.who), place: "jobs", search, jobs })
}
