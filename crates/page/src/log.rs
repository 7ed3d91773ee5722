//! The log of an execution: on its page, on one of its own that works without script, and as the pieces that the script fetches, follows and
//! searches. A browser holds a window of a log and never the whole.

mod follow;
mod paint;
mod parts;
mod rows;
mod search;
#[cfg(test)]
mod tests;
mod view;

use askama::Template;
use axum::Router;
use axum::body::Body;
use axum::extract::Path;
use axum::response::{IntoResponse as _, Response};
use axum::routing::get;
use bytes::Bytes;
use http::header::{CACHE_CONTROL, CONTENT_DISPOSITION, CONTENT_TYPE};
use http::{HeaderMap, StatusCode};
use octavius_proto::v1;
use serde::Serialize;
use tonic::Status;
use url::form_urlencoded;

use crate::app::App;
use crate::assets::Asset;
use crate::form::Fields;
use crate::rpcs::Calls;
use crate::session::{Session, Visitor};
use crate::shell::{Who, html};
use crate::trouble::Trouble;
use follow::{Follower, Position};
use parts::{Log, Part, Parts};
use search::MOST_CHARS;
use view::{Place, View};

/// Styles and scripts of the log alone.
pub(crate) const ASSETS: &[Asset] =
    &[Asset::css("log.css", include_str!("../assets/log.css")), Asset::js("log.js", include_str!("../assets/log.js"))];

/// The addresses that are about logs.
pub(crate) fn routes() -> Router<App> {
    Router::new()
        .route("/executions/{id}/log", get(page))
        .route("/executions/{id}/log/view", get(piece))
        .route("/executions/{id}/log/follow", get(events))
        .route("/executions/{id}/log/search", get(find))
        .route("/executions/{id}/log/download", get(download))
}

/// What an address says of a log: `attempt`, the place that is looked at, and what is searched for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Wanted {
    /// The attempt; 0 for the newest that started.
    attempt: u32,
    place: Place,
    /// A text, which rows are shown from on that hold it.
    search: String,
}

impl Wanted {
    /// Of an address like `?attempt=1&from=1024`.
    ///
    /// # Errors
    /// Where a field is not a number.
    pub(crate) fn of(fields: &Fields) -> Result<Self, Trouble> {
        let place = match ["from", "before", "near"].map(|name| number(fields, name)) {
            [Ok(None), Ok(None), Ok(None)] => Place::Tail,
            [Ok(Some(from)), Ok(None), Ok(None)] => Place::From(from),
            [Ok(None), Ok(Some(before)), Ok(None)] => Place::Before(before),
            [Ok(None), Ok(None), Ok(Some(near))] => Place::Near(near),
            [Err(trouble), ..] | [_, Err(trouble), _] | [.., Err(trouble)] => return Err(trouble),
            _ => return Err(Trouble::of(StatusCode::BAD_REQUEST, "only one of from, before and near says where to look")),
        };
        Ok(Self { attempt: number(fields, "attempt")?.unwrap_or_default(), place, search: searched(fields)? })
    }
}

fn number<N: std::str::FromStr>(fields: &Fields, name: &str) -> Result<Option<N>, Trouble> {
    match fields.get(name) {
        "" => Ok(None),
        text => match text.parse() {
            Ok(number) => Ok(Some(number)),
            Err(_) => Err(Trouble::of(StatusCode::BAD_REQUEST, format!("{name} is a number, counted from 0, and not {text:?}"))),
        },
    }
}

/// The text that is searched for; empty where none is. Blanks around it count.
fn searched(fields: &Fields) -> Result<String, Trouble> {
    let text = fields.all("q").next().unwrap_or_default();
    if text.chars().count() > MOST_CHARS {
        return Err(Trouble::of(StatusCode::BAD_REQUEST, format!("a text to search for has at most {MOST_CHARS} characters")));
    }
    Ok(text.to_owned())
}

/// The log on a page.
#[derive(Template)]
#[template(path = "log_section.html")]
struct Section<'a> {
    /// The address of the log's page.
    base: String,
    /// The numbers of the attempts that have started.
    attempts: Vec<u32>,
    /// The attempt that was asked for; 0 for the newest.
    asked: u32,
    view: View,
    search: &'a str,
    /// What came of the search.
    found: String,
    /// Where the search goes on.
    next: Option<u64>,
}

impl Section<'_> {
    /// The addresses of the log's beginning, of what is before what is shown, and of what is after it.
    fn beginning(&self) -> String {
        self.address(self.view.attempt, &[("from", "0".to_owned())])
    }

    fn earlier(&self) -> String {
        self.address(self.view.attempt, &[("before", self.view.start.to_string())])
    }

    fn later(&self) -> String {
        self.address(self.view.attempt, &[("from", self.view.end.to_string())])
    }

    /// The address of an attempt's end.
    fn attempt(&self, attempt: &u32) -> String {
        self.address(*attempt, &[])
    }

    /// The address of the next row that holds what is searched for.
    fn next_match(&self, offset: &u64) -> String {
        self.address(self.view.attempt, &[("q", self.search.to_owned()), ("from", offset.to_string())])
    }

    fn address(&self, attempt: u32, fields: &[(&str, String)]) -> String {
        let mut query = form_urlencoded::Serializer::new(String::new());
        if attempt > 0 {
            query.append_pair("attempt", &attempt.to_string());
        }
        query.extend_pairs(fields);
        format!("{}?{}", self.base, query.finish())
    }

    /// Whether more may come that the script is to follow: not of a log that is over, nor of an attempt that another came after.
    fn is_live(&self) -> bool {
        !self.view.sealed && self.attempts.last().is_none_or(|last| *last == self.view.attempt)
    }
}

/// The log of an execution as a section of a page, whose head links `log.css` and `log.js`.
///
/// # Errors
/// Where the log cannot be read.
pub(crate) async fn section(calls: &Calls, execution: &v1::Execution, wanted: &Wanted) -> Result<String, Trouble> {
    let started = execution.attempts.iter().filter(|attempt| attempt.starting_at.is_some());
    let attempts: Vec<_> = started.map(|attempt| attempt.number).collect();
    let log = Log::new(calls, &execution.id, wanted.attempt);
    let (view, found, next) = match (wanted.search.as_str(), wanted.place) {
        ("", place) => (log.view(place).await?, String::new(), None),
        (text, place) => searched_view(&log, text, place).await?,
    };
    let base = format!("/executions/{}/log", execution.id);
    let section = Section { base, attempts, asked: wanted.attempt, view, search: &wanted.search, found, next };
    section.render().map_err(|error| {
        tracing::error!(%error, "a log could not be written");
        Trouble::of(StatusCode::INTERNAL_SERVER_ERROR, "the log could not be written")
    })
}

/// The rows from the first one on that holds the text, what to say of it, and where to look for the next.
async fn searched_view(log: &Log, text: &str, place: Place) -> Result<(View, String, Option<u64>), Status> {
    let from = if let Place::From(from) = place { from } else { 0 };
    let end = log.end().await?;
    let log = log.of(end.attempt);
    if end.attempt == 0 {
        return Ok((log.view(Place::Tail).await?, String::new(), None));
    }
    let found = log.search(text, from.min(end.size)).await?;
    Ok(match *found.lines {
        [first, ref more @ ..] => {
            let next = more.first().copied().or((!found.is_all).then_some(found.next));
            (log.view(Place::From(first)).await?, format!("found at byte {first}"), next)
        }
        [] if found.is_all => (log.view(Place::Tail).await?, "not found from there to the end".to_owned(), None),
        [] => (log.view(Place::From(found.next)).await?, format!("not found up to byte {}", found.next), Some(found.next)),
    })
}

#[derive(Template)]
#[template(path = "log.html")]
struct LogPage<'a> {
    who: Option<&'a Who>,
    place: &'a str,
    id: &'a str,
    job: &'a str,
    log: String,
}

async fn page(visitor: Visitor, Path(id): Path<String>, fields: Fields) -> Result<Response, Trouble> {
    let wanted = Wanted::of(&fields)?;
    let ask = v1::GetExecutionRequest { id };
    let execution = visitor.calls.executions().get_execution(ask).await?.into_inner().execution.unwrap_or_default();
    let log = section(&visitor.calls, &execution, &wanted).await?;
    let (id, job) = (&execution.id, &execution.job);
    html(StatusCode::OK, &LogPage { who: Some(&visitor.who), place: "executions", id, job, log })
}

fn json(value: &impl Serialize) -> Result<Response, Trouble> {
    let text = serde_json::to_string(value).map_err(|error| {
        tracing::error!(%error, "an answer could not be written");
        Trouble::of(StatusCode::INTERNAL_SERVER_ERROR, "the answer could not be written")
    })?;
    Ok(([(CONTENT_TYPE, "application/json")], text).into_response())
}

/// A piece of the log, for the script.
async fn piece(session: Session, Path(id): Path<String>, fields: Fields) -> Result<Response, Trouble> {
    let wanted = Wanted::of(&fields)?;
    json(&Log::new(&session.calls, &id, wanted.attempt).view(wanted.place).await?)
}

/// Where lines of the log are that hold a text, for the script.
async fn find(session: Session, Path(id): Path<String>, fields: Fields) -> Result<Response, Trouble> {
    let text = searched(&fields)?;
    if text.is_empty() {
        return Err(Trouble::of(StatusCode::BAD_REQUEST, "q says what to search for"));
    }
    let log = Log::new(&session.calls, &id, number(&fields, "attempt")?.unwrap_or_default());
    json(&log.search(&text, number(&fields, "from")?.unwrap_or_default()).await?)
}

/// The log as it comes, as server-sent events: from `attempt` and `from` on, or from where the browser's last event was. With `all` the attempts after
/// that one too.
async fn events(session: Session, Path(id): Path<String>, fields: Fields, headers: HeaderMap) -> Result<Response, Trouble> {
    let last = headers.get("last-event-id").and_then(|last| last.to_str().ok()).and_then(Position::parse);
    let from = match last {
        Some(last) => last,
        None => match number(&fields, "attempt")?.unwrap_or_default() {
            0 => Position::default(),
            attempt => Position { attempt, offset: number(&fields, "from")?.unwrap_or_default() },
        },
    };
    let follower = Follower::new(&Log::new(&session.calls, &id, from.attempt), from, fields.get("all") == "1").await?;
    let headers = [(CONTENT_TYPE, "text/event-stream"), (CACHE_CONTROL, "no-store")];
    Ok((headers, Body::from_stream(follower.events())).into_response())
}

/// The bytes of the log, as they were printed, up to its present end.
async fn download(session: Session, Path(id): Path<String>, fields: Fields) -> Result<Response, Trouble> {
    let end = Log::new(&session.calls, &id, number(&fields, "attempt")?.unwrap_or_default()).end().await?;
    if end.attempt == 0 {
        return Err(Trouble::not_found("log of this execution yet: no attempt has started"));
    }
    let parts = Log::new(&session.calls, &id, end.attempt).read(0, false).await?;
    let bytes = futures::stream::unfold(Some(parts), |parts| async move {
        let mut parts = parts?;
        match next_bytes(&mut parts).await.transpose()? {
            Ok(bytes) => Some((Ok(bytes), Some(parts))),
            // The connection breaks, so that nobody takes what came for the whole.
            Err(status) => Some((Err(status), None)),
        }
    });
    let safe = |c: &char| c.is_ascii_alphanumeric() || matches!(c, '-' | '_');
    let name: String = id.chars().filter(safe).take(64).collect();
    let headers = [
        (CONTENT_TYPE, "text/plain; charset=utf-8".to_owned()),
        (CONTENT_DISPOSITION, format!("attachment; filename=\"octavius-{name}-{}.log\"", end.attempt)),
    ];
    Ok((headers, Body::from_stream(bytes)).into_response())
}

/// The next bytes; none at the end. What is missing is passed over, as the command line does in a file: the page tells of it.
async fn next_bytes(parts: &mut Parts) -> Result<Option<Bytes>, Status> {
    loop {
        match parts.next().await? {
            Part::Bytes(_, bytes) => return Ok(Some(bytes)),
            Part::Gap(_) | Part::Attempt(_) => {}
            Part::End(_) => return Ok(None),
        }
    }
}
