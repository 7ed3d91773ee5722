//! What goes wrong, as a page: what failed, and what to do next, in the words of the controller's faults.

use askama::Template;
use axum::extract::Request;
use axum::middleware::Next;
use axum::response::{IntoResponse, Response};
use http::{HeaderMap, Method, StatusCode};
use octavius_proto::{Fault, reason, words};
use tonic::Code;
use url::form_urlencoded;

use crate::session::Known;
use crate::shell::{Who, html, see};

/// Why a request is not answered as it was meant. Handlers return it; [`show`] makes a page of it.
#[derive(Debug, Clone)]
pub(crate) struct Trouble {
    status: StatusCode,
    message: String,
    details: Vec<String>,
    hint: Option<String>,
    /// Whether signing in is what to do next.
    signs_in: bool,
}

impl Trouble {
    /// Something wrong that this status tells.
    pub(crate) fn of(status: StatusCode, message: impl Into<String>) -> Self {
        Self { status, message: message.into(), details: Vec::new(), hint: None, signs_in: false }
    }

    /// There is no such thing.
    pub(crate) fn not_found(what: &str) -> Self {
        Self::of(StatusCode::NOT_FOUND, format!("there is no {what}"))
    }

    /// Something that is not let through, of which the page it came from may know more when it is loaded again.
    pub(crate) fn refused(message: &str) -> Self {
        Self::of(StatusCode::FORBIDDEN, message).hint("go back, load the page again, and try once more")
    }

    /// Nobody is signed in.
    pub(crate) fn signed_out() -> Self {
        Self { signs_in: true, ..Self::of(StatusCode::UNAUTHORIZED, "you are not signed in").hint("sign in") }
    }

    /// Adds what to do next.
    pub(crate) fn hint(mut self, hint: &str) -> Self {
        self.hint = Some(hint.to_owned());
        self
    }

    /// The HTTP status that tells it.
    pub(crate) fn status(&self) -> StatusCode {
        self.status
    }

    /// What failed.
    pub(crate) fn message(&self) -> &str {
        &self.message
    }

    /// What is wrong, each thing by itself.
    pub(crate) fn details(&self) -> &[String] {
        &self.details
    }

    /// What to do next.
    pub(crate) fn next(&self) -> Option<&str> {
        self.hint.as_deref()
    }
}

impl From<tonic::Status> for Trouble {
    fn from(status: tonic::Status) -> Self {
        Fault::from_status(&status).into()
    }
}

impl From<Fault> for Trouble {
    fn from(fault: Fault) -> Self {
        let status = status_of(&fault);
        let message = words::failed(&fault).into_owned();
        let details = words::details(&fault).into_iter().map(str::to_owned).collect();
        let nearest = fault.fact("nearest").map(|nearest| format!("did you mean {nearest}?"));
        let hint = nearest.or_else(|| words::hint(&fault).or_else(|| hint_for(&fault)).map(str::to_owned));
        Self { status, details, hint, signs_in: fault.code == Code::Unauthenticated, message }
    }
}

fn status_of(fault: &Fault) -> StatusCode {
    match fault.code {
        Code::InvalidArgument | Code::OutOfRange => StatusCode::BAD_REQUEST,
        Code::Unauthenticated => StatusCode::UNAUTHORIZED,
        Code::PermissionDenied => StatusCode::FORBIDDEN,
        Code::NotFound => StatusCode::NOT_FOUND,
        Code::AlreadyExists | Code::Aborted | Code::FailedPrecondition => StatusCode::CONFLICT,
        Code::ResourceExhausted if fault.reason == reason::RATE_LIMITED => StatusCode::TOO_MANY_REQUESTS,
        Code::ResourceExhausted | Code::Unavailable | Code::DeadlineExceeded => StatusCode::SERVICE_UNAVAILABLE,
        _ => StatusCode::INTERNAL_SERVER_ERROR,
    }
}

/// What to do next in the places that this page has, where [`words::hint`] has nothing.
fn hint_for(fault: &Fault) -> Option<&'static str> {
    Some(match fault.reason.as_str() {
        reason::JOB_NOT_FOUND => "the catalogue shows the jobs that you may see",
        reason::EXECUTION_NOT_FOUND => "executions shows yours, and everyone's with all",
        reason::UNAUTHENTICATED => "sign in again; an admin makes a token with `octavius tokens create`",
        reason::NOT_PERMITTED => "your role and groups stand at the top of the page; an admin can give you others",
        reason::CONCURRENCY_LIMIT => "wait for one of them, or cancel it",
        reason::RATE_LIMITED | reason::SLOW_MESSAGE => words::TRY_AGAIN,
        reason::KEY_REUSED | reason::ID_TAKEN => "load the form again and send it once",
        _ if fault.violations.iter().any(|violation| violation.field == "id") => {
            "the page may have been open for more than two hours: load it again, and send the form once more"
        }
        _ if fault.code == Code::Unavailable => words::TRY_AGAIN,
        _ => return None,
    })
}

impl IntoResponse for Trouble {
    fn into_response(self) -> Response {
        let mut response = self.status.into_response();
        response.extensions_mut().insert(self);
        response
    }
}

#[derive(Template)]
#[template(path = "trouble.html")]
struct TroublePage<'a> {
    who: Option<&'a Who>,
    place: &'a str,
    title: &'a str,
    trouble: &'a Trouble,
}

fn title(status: StatusCode) -> &'static str {
    match status {
        StatusCode::BAD_REQUEST | StatusCode::UNSUPPORTED_MEDIA_TYPE => "Not understood",
        StatusCode::UNAUTHORIZED => "Not signed in",
        StatusCode::FORBIDDEN => "Not allowed",
        StatusCode::NOT_FOUND => "Not found",
        StatusCode::METHOD_NOT_ALLOWED => "Not possible here",
        StatusCode::CONFLICT => "Not possible now",
        StatusCode::PAYLOAD_TOO_LARGE => "Too large",
        StatusCode::REQUEST_TIMEOUT => "Too slow",
        StatusCode::TOO_MANY_REQUESTS => "Too many calls",
        StatusCode::SERVICE_UNAVAILABLE => "Not available",
        _ => "A fault of ours",
    }
}

/// What a request would come back to after signing in: the page itself; a form's page, since every form is sent to its own page's address.
fn back_to(method: &Method, uri: &http::Uri) -> String {
    let path = if method == Method::GET { uri.path_and_query().map_or("/", |path| path.as_str()) } else { uri.path() };
    path.to_owned()
}

/// Whether it is a script that asks, which a page to sign in would be of no use to.
fn is_script(headers: &HeaderMap) -> bool {
    headers.get("sec-fetch-dest").is_some_and(|dest| dest == "empty")
}

/// Makes a page of what a handler says went wrong, or sends the visitor to sign in and back.
pub(crate) async fn show(mut request: Request, next: Next) -> Response {
    let (back, script) = (back_to(request.method(), request.uri()), is_script(request.headers()));
    let known = Known::default();
    request.extensions_mut().insert(known.clone());
    let mut response = next.run(request).await;
    let Some(trouble) = response.extensions_mut().remove::<Trouble>() else { return response };
    if trouble.signs_in && !script {
        let query = form_urlencoded::Serializer::new(String::new()).append_pair("next", &back).finish();
        return see(&format!("/sign-in?{query}"));
    }
    let page = TroublePage { who: known.0.get(), place: "", title: title(trouble.status), trouble: &trouble };
    html(trouble.status, &page).unwrap_or(response)
}

/// The answer for a path that has no page.
pub(crate) async fn no_page(uri: http::Uri) -> Trouble {
    Trouble::not_found(&format!("page {}", uri.path())).hint("the links at the top lead to all pages there are")
}

/// The answer for a page that does not take what was sent.
pub(crate) async fn no_method(method: Method, uri: http::Uri) -> Trouble {
    Trouble::of(StatusCode::METHOD_NOT_ALLOWED, format!("{} takes no {method}", uri.path()))
}
