//! The audit trail, for admins: who did, or was refused, what.

use std::collections::VecDeque;

use askama::Template;
use axum::response::Response;
use http::StatusCode;
use octavius_core::Timestamp;
use octavius_proto::{to_timestamp, v1};

use crate::executions::parse_since;
use crate::form::Fields;
use crate::session::Visitor;
use crate::shell::{Who, html};
use crate::show;
use crate::trouble::Trouble;

/// Most records that are shown: the newest.
const SHOWN: usize = 200;

/// Most records that are read for that. The trail is read from its old end; where this does not reach the new one, the page says so.
const READ: usize = 50_000;

/// How far back it is read where nothing is said.
const SINCE: &str = "24h";

/// The filters, as they stand in the address.
struct Filters {
    since: String,
    user: String,
    action: String,
    object: String,
    refused: bool,
}

impl Filters {
    fn of(fields: &Fields) -> Self {
        let since = fields.get("since");
        Self {
            since: if since.is_empty() { SINCE } else { since }.to_owned(),
            user: fields.get("user").to_owned(),
            action: fields.get("action").to_owned(),
            object: fields.get("object").to_owned(),
            refused: !fields.get("refused").is_empty(),
        }
    }

    fn let_through(&self, record: &v1::AuditRecord) -> bool {
        (self.user.is_empty() || record.user == self.user)
            && (self.action.is_empty() || record.action.starts_with(&self.action))
            && (self.object.is_empty() || record.object.contains(&self.object))
            && (!self.refused || record.result() == v1::AuditResult::Refused)
    }
}

fn result_of(record: &v1::AuditRecord) -> String {
    match record.result() {
        v1::AuditResult::Refused => format!("refused: {}", record.reason),
        v1::AuditResult::Done => "done".to_owned(),
        v1::AuditResult::Unspecified => "-".to_owned(),
    }
}

#[derive(Template)]
#[template(path = "audit.html")]
struct Audit<'a> {
    who: Option<&'a Who>,
    place: &'a str,
    now: Timestamp,
    filters: &'a Filters,
    problem: Option<String>,
    /// Newest first.
    records: Vec<v1::AuditRecord>,
    /// Whether older ones fit the filters, too.
    more: bool,
    /// Whether reading ended before the trail did.
    cut: bool,
}

pub(crate) async fn page(visitor: Visitor, fields: Fields) -> Result<Response, Trouble> {
    let filters = Filters::of(&fields);
    let now = visitor.who.now;
    let (since, problem) = match parse_since(&filters.since, now) {
        Ok(since) => (since, None),
        Err(problem) => (None, Some(problem)),
    };
    let mut records = VecDeque::new();
    let (mut read, mut more, mut cut) = (0, false, false);
    if problem.is_none() {
        let ask = v1::ReadAuditRequest { since: since.map(to_timestamp), follow: false, after: None };
        let mut trail = visitor.calls.admin().read_audit(ask).await?.into_inner();
        while let Some(piece) = trail.message().await? {
            read += piece.records.len();
            for record in piece.records.into_iter().filter(|record| filters.let_through(record)) {
                more |= records.len() == SHOWN;
                records.truncate(SHOWN - 1);
                records.push_front(record);
            }
            cut = read >= READ;
            if piece.caught_up || cut {
                break;
            }
        }
    }
    let status = if problem.is_some() { StatusCode::BAD_REQUEST } else { StatusCode::OK };
    let page =
        Audit { who: Some(&visitor.who), place: "audit", now, filters: &filters, problem, records: records.into(), more, cut };
    html(status, &page)
}
