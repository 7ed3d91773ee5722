//! The list of executions: newest first, a page at a time, with its filters in the address. Each page is one bounded call, however many
//! executions there are.

use askama::Template;
use axum::response::Response;
use http::StatusCode;
use octavius_core::{HumanDuration, Timestamp};
use octavius_proto::v1::{self, ExecutionState};
use octavius_proto::{to_timestamp, words};
use url::form_urlencoded;

use crate::form::Fields;
use crate::session::Visitor;
use crate::shell::{Who, html};
use crate::show;
use crate::trouble::Trouble;

/// Executions on one page.
const PAGE: u32 = 50;

/// The filters, as they stand in the address.
#[derive(Debug, Clone, Default)]
struct Filters {
    job: String,
    state: String,
    user: String,
    all: bool,
    since: String,
}

impl Filters {
    fn of(fields: &Fields) -> Self {
        Self {
            job: fields.get("job").to_owned(),
            state: fields.get("state").to_owned(),
            user: fields.get("user").to_owned(),
            all: !fields.get("all").is_empty(),
            since: fields.get("since").to_owned(),
        }
    }

    /// The address of the page that begins at this token.
    fn address(&self, page: &str) -> String {
        let mut query = form_urlencoded::Serializer::new(String::new());
        let all = if self.all { "1" } else { "" };
        let pairs = [
            ("job", self.job.as_str()),
            ("state", &self.state),
            ("user", &self.user),
            ("all", all),
            ("since", &self.since),
            ("page", page),
        ];
        for (name, value) in pairs.into_iter().filter(|(_, value)| !value.is_empty()) {
            query.append_pair(name, value);
        }
        format!("/executions?{}", query.finish())
    }

    /// What is asked of the controller, and what is wrong with the filters, by field.
    fn request(&self, now: Timestamp, page: &str) -> (v1::ListExecutionsRequest, Option<String>) {
        let state = words::STATES.into_iter().find(|state| words::state_name(*state) == self.state);
        let since = parse_since(&self.since, now);
        let problem = match (&since, state) {
            (Err(problem), _) => Some(problem.clone()),
            (_, None) if !self.state.is_empty() => Some(format!("there is no state {}", self.state)),
            _ => None,
        };
        let request = v1::ListExecutionsRequest {
            user: self.user.clone(),
            all: self.all && self.user.is_empty(),
            job: self.job.clone(),
            states: state.map(i32::from).into_iter().collect(),
            since: since.ok().flatten().map(to_timestamp),
            limit: PAGE,
            page_token: page.to_owned(),
        };
        (request, problem)
    }
}

/// Reads a time: a duration before now, or a time in RFC 3339; none where nothing is said.
pub(crate) fn parse_since(text: &str, now: Timestamp) -> Result<Option<Timestamp>, String> {
    if text.is_empty() {
        return Ok(None);
    }
    if let Ok(duration) = text.parse::<HumanDuration>() {
        return now.checked_sub(duration.get()).map(Some).map_err(|error| error.to_string());
    }
    let wrong = |_| "write a duration like 90s, 2h or 1d, or a time like 2026-03-01T12:00:00Z".to_owned();
    text.parse().map(Some).map_err(wrong)
}

#[derive(Template)]
#[template(path = "executions.html")]
struct Executions<'a> {
    who: Option<&'a Who>,
    place: &'a str,
    now: Timestamp,
    filters: &'a Filters,
    states: [ExecutionState; 10],
    problem: Option<String>,
    executions: Vec<v1::Execution>,
    is_first: bool,
    next: Option<String>,
}

pub(crate) async fn list(visitor: Visitor, fields: Fields) -> Result<Response, Trouble> {
    let (filters, page) = (Filters::of(&fields), fields.get("page"));
    let now = visitor.who.now;
    let (request, problem) = filters.request(now, page);
    let listed = match &problem {
        None => visitor.calls.executions().list_executions(request).await?.into_inner(),
        Some(_) => v1::ListExecutionsResponse::default(),
    };
    let status = if problem.is_some() { StatusCode::BAD_REQUEST } else { StatusCode::OK };
    let page = Executions {
        who: Some(&visitor.who),
        place: "executions",
        now,
        filters: &filters,
        states: words::STATES,
        problem,
        executions: listed.executions,
        is_first: page.is_empty(),
        next: (!listed.next_page_token.is_empty()).then(|| filters.address(&listed.next_page_token)),
    };
    html(status, &page)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn filters_keep_their_place_in_the_address() {
        let query = "job=a%26b&state=timed_out&all=1&since=2h&page=old";
        let filters = Filters::of(&Fields::of_query(Some(query)));
        assert_eq!(filters.address("new"), "/executions?job=a%26b&state=timed_out&all=1&since=2h&page=new");
        let now = Timestamp::from_second(1_767_225_600).unwrap();
        let (request, problem) = filters.request(now, "");
        assert_eq!((request.states, problem), (vec![i32::from(ExecutionState::TimedOut)], None));
        assert_eq!(request.since.unwrap().seconds, 1_767_225_600 - 7200);
        let wrong = |query| Filters::of(&Fields::of_query(Some(query))).request(now, "").1.unwrap();
        assert!(wrong("since=yesterday").contains("like 90s") && wrong("state=ended").contains("no state ended"));
    }
}
