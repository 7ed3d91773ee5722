//! The inbox of approvals: executions that wait for somebody's word, those that wait for the visitor's first. What the visitor has approved
//! waits for others.

use askama::Template;
use axum::response::Response;
use futures::future::join_all;
use http::StatusCode;
use octavius_core::Timestamp;
use octavius_proto::v1::{self, ExecutionState};
use url::form_urlencoded;

use crate::execution::Shown;
use crate::form::Fields;
use crate::session::Visitor;
use crate::shell::{Who, html};
use crate::show;
use crate::trouble::Trouble;

/// Executions on one page. Each is read in whole, with the arguments that somebody is to look at before approving.
const PAGE: u32 = 20;

#[derive(Template)]
#[template(path = "approvals.html")]
struct Approvals<'a> {
    who: Option<&'a Who>,
    place: &'a str,
    visitor: &'a Who,
    now: Timestamp,
    yours: Vec<Shown>,
    others: Vec<Shown>,
    next: Option<String>,
}

pub(crate) async fn inbox(visitor: Visitor, fields: Fields) -> Result<Response, Trouble> {
    let ask = v1::ListExecutionsRequest {
        all: true,
        states: vec![ExecutionState::WaitingForApproval.into()],
        limit: PAGE,
        page_token: fields.get("page").to_owned(),
        ..Default::default()
    };
    let listed = visitor.calls.executions().list_executions(ask).await?.into_inner();
    let now = visitor.who.now;
    let whole = listed.executions.iter().map(|execution| Shown::get(&visitor.calls, &execution.id, now));
    let (mut yours, mut others) = (Vec::new(), Vec::new());
    for shown in join_all(whole).await {
        match shown {
            Ok(shown) if shown.execution.state() != ExecutionState::WaitingForApproval => {}
            Ok(shown) if shown.is_callers() && !shown.has_callers() => yours.push(shown),
            Ok(shown) => others.push(shown),
            // One that is not there any more does not wait any more. An inbox that shows less for any other reason would be taken for done.
            Err(trouble) if trouble.status() == StatusCode::NOT_FOUND => {}
            Err(trouble) => return Err(trouble),
        }
    }
    let next = (!listed.next_page_token.is_empty()).then(|| {
        let query = form_urlencoded::Serializer::new(String::new()).append_pair("page", &listed.next_page_token).finish();
        format!("/approvals?{query}")
    });
    let page = Approvals { who: Some(&visitor.who), place: "approvals", visitor: &visitor.who, now, yours, others, next };
    html(StatusCode::OK, &page)
}
