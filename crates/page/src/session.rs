//! Who visits: the session cookie, signing in and out. The page keeps no sessions itself; a cookie holds the token of one that the controller
//! has opened, and it is the controller that knows whether it is good.

use askama::Template;
use axum::Router;
use axum::extract::{FromRequestParts, Request, State};
use axum::middleware::Next;
use axum::response::{IntoResponse as _, Response};
use axum::routing::{get, post};
use http::header::{COOKIE, HOST, SET_COOKIE};
use http::request::Parts;
use http::{Extensions, HeaderMap, HeaderName, StatusCode, Uri};
use octavius_core::Timestamp;
use octavius_proto::{Fault, v1};

use crate::app::App;
use crate::form::{self, Fields, Posted};
use crate::rpcs::Calls;
use crate::shell::{Who, html, see};
use crate::trouble::Trouble;

/// What the session's cookie is called, but for its prefix and its port.
const SESSION_COOKIE: &str = "octavius";

/// What the server has noted of a request: its extensions from before any of the page's own.
#[derive(Clone, Default)]
struct Peer(Extensions);

/// Notes who the peer is, for the RPCs that are called on their behalf.
pub(crate) async fn note_peer(mut request: Request, next: Next) -> Response {
    let peer = Peer(request.extensions().clone());
    request.extensions_mut().insert(peer);
    next.run(request).await
}

pub(crate) fn peer(extensions: &Extensions) -> Extensions {
    extensions.get::<Peer>().cloned().unwrap_or_default().0
}

/// A visitor's session, as their browser has it; whether it is good is found out by the first call.
#[derive(Clone)]
pub(crate) struct Session {
    /// The RPCs, called in the visitor's name.
    pub(crate) calls: Calls,
    token: String,
}

impl Session {
    /// The session's token, which nothing but form tokens may be made from.
    pub(crate) fn token(&self) -> &str {
        &self.token
    }
}

impl FromRequestParts<App> for Session {
    type Rejection = Trouble;

    async fn from_request_parts(parts: &mut Parts, app: &App) -> Result<Self, Trouble> {
        let name = cookie_name(app.options.secure, SESSION_COOKIE, &parts.headers, &parts.uri);
        let token = cookie(&parts.headers, &name).ok_or_else(Trouble::signed_out)?;
        Ok(Self { calls: app.rpcs.by(Some(&token), peer(&parts.extensions)), token })
    }
}

/// A visitor whom the controller knows.
#[derive(Clone)]
pub(crate) struct Visitor {
    /// The RPCs, called in their name.
    pub(crate) calls: Calls,
    /// Who they are.
    pub(crate) who: Who,
}

impl FromRequestParts<App> for Visitor {
    type Rejection = Trouble;

    async fn from_request_parts(parts: &mut Parts, app: &App) -> Result<Self, Trouble> {
        let session = Session::from_request_parts(parts, app).await?;
        let told = session.calls.admin().who_am_i(v1::WhoAmIRequest {}).await?.into_inner();
        let who = Who::new(told, form::token(session.token()));
        if let Some(known) = parts.extensions.get::<Known>() {
            let _ = known.0.set(who.clone()); // it is set once: a second extraction says the same
        }
        Ok(Self { calls: session.calls, who })
    }
}

/// Where the visitor is noted once they are known, so that a page about what went wrong still looks like theirs.
#[derive(Clone, Default)]
pub(crate) struct Known(pub(crate) std::sync::Arc<std::sync::OnceLock<Who>>);

/// The address that a request was sent to, `HOST` or `HOST:PORT`.
pub(crate) fn authority<'r>(headers: &'r HeaderMap, uri: &'r Uri) -> Option<&'r str> {
    let told = headers.get(HOST).and_then(|host| host.to_str().ok());
    uri.authority().map(http::uri::Authority::as_str).or(told)
}

/// The name of the cookie. Browsers do not tell ports of one host apart: two controllers on one machine would sign each other's visitors out.
pub(crate) fn cookie_name(secure: bool, base: &str, headers: &HeaderMap, uri: &Uri) -> String {
    let port = authority(headers, uri).and_then(|authority| authority.rsplit_once(':'));
    let port = port.map(|(_, port)| port).filter(|port| !port.is_empty() && port.bytes().all(|byte| byte.is_ascii_digit()));
    let prefix = if secure { "__Host-" } else { "" };
    match port {
        Some(port) => format!("{prefix}{base}-{port}"),
        None => format!("{prefix}{base}"),
    }
}

/// The value of a cookie, as it came.
pub(crate) fn cookie_value<'h>(headers: &'h HeaderMap, name: &str) -> Option<&'h str> {
    let cookies = headers.get_all(COOKIE).iter().filter_map(|value| value.to_str().ok()).flat_map(|value| value.split(';'));
    let mut values = cookies.filter_map(|cookie| cookie.trim().split_once('=')).filter(|(known, _)| *known == name);
    let (_, value) = values.next()?;
    // Cookies do not know ports: two that differ are not both ours, and nobody can say which is.
    values.all(|(_, other)| other == value).then_some(value)
}

/// The session cookie's value: a token's characters and nothing else.
fn cookie(headers: &HeaderMap, name: &str) -> Option<String> {
    let value = cookie_value(headers, name)?;
    let fits = (1..=200).contains(&value.len()) && value.bytes().all(|byte| byte.is_ascii_alphanumeric() || byte == b'_');
    fits.then(|| value.to_owned())
}

/// Sets the cookie for so many seconds; 0 takes it away.
pub(crate) fn set_cookie(secure: bool, name: &str, value: &str, seconds: i64) -> [(HeaderName, String); 1] {
    let secure = if secure { "; Secure" } else { "" };
    [(SET_COOKIE, format!("{name}={value}; Path=/; HttpOnly; SameSite=Lax; Max-Age={seconds}{secure}"))]
}

/// Where to go after signing in: a path of this page, and nothing that a browser would take for another host's.
pub(crate) fn safe_next(next: &str) -> &str {
    let inside =
        next.starts_with('/') && !next.starts_with("//") && next.bytes().all(|byte| byte.is_ascii_graphic() && byte != b'\\');
    let comes_back = ["/sign-in", "/sign-out", "/open"].iter().any(|path| next.starts_with(path));
    if inside && !comes_back { next } else { "/" }
}

pub(crate) fn routes() -> Router<App> {
    Router::new().route("/sign-in", get(show).post(sign_in)).route("/sign-out", post(sign_out)).route("/open", get(open))
}

/// Whom visitors may sign in with.
fn providers(app: &App) -> Vec<&str> {
    app.options.providers.iter().map(|provider| provider.name()).collect()
}

#[derive(Template)]
#[template(path = "sign_in.html")]
struct SignIn<'a> {
    next: &'a str,
    problem: Option<&'a str>,
    ended: bool,
    providers: Vec<&'a str>,
}

async fn show(State(app): State<App>, request: Request) -> Result<Response, Trouble> {
    let (mut parts, _) = request.into_parts();
    let fields = Fields::of_query(parts.uri.query());
    let next = safe_next(fields.get("next"));
    let session = Session::from_request_parts(&mut parts, &app).await.ok();
    if let Some(session) = &session
        && session.calls.admin().who_am_i(v1::WhoAmIRequest {}).await.is_ok()
    {
        return Ok(see(next));
    }
    html(StatusCode::OK, &SignIn { next, problem: None, ended: session.is_some(), providers: providers(&app) })
}

/// Opens a session with a token and has the browser keep it.
pub(crate) async fn enter(app: &App, token: &str, parts: &Parts, next: &str) -> Result<Response, tonic::Status> {
    let calls = app.rpcs.by(Some(token), peer(&parts.extensions));
    let session = calls.admin().create_session(v1::CreateSessionRequest {}).await?.into_inner();
    // The controller is this process: its clock is ours.
    let seconds = (session.expires_at.map_or(0, |at| at.seconds) - Timestamp::now().as_second()).max(0);
    let name = cookie_name(app.options.secure, SESSION_COOKIE, &parts.headers, &parts.uri);
    if let Some(old) = cookie(&parts.headers, &name) {
        // What the browser had until now would be good for hours, and nobody's; it may be good no more.
        let _ = app.rpcs.by(Some(&old), peer(&parts.extensions)).admin().end_session(v1::EndSessionRequest {}).await;
    }
    Ok((set_cookie(app.options.secure, &name, &session.token, seconds), see(next)).into_response())
}

async fn sign_in(State(app): State<App>, request: Request) -> Result<Response, Trouble> {
    let (parts, fields) = form::read(request, form::SMALL_BYTES, &app.options).await?;
    let next = safe_next(fields.get("next"));
    let token = fields.get("token").trim();
    let refused = |status: StatusCode, problem: &str| {
        html(status, &SignIn { next, problem: Some(problem), ended: false, providers: providers(&app) })
    };
    let fits = !token.is_empty() && token.bytes().all(|byte| byte.is_ascii_graphic());
    if !fits {
        return refused(
            StatusCode::BAD_REQUEST,
            "a token has letters, digits and a few signs, and no blanks: paste the whole of it",
        );
    }
    match enter(&app, token, &parts, next).await {
        Ok(entered) => Ok(entered),
        Err(status) if status.code() == tonic::Code::Unauthenticated => {
            refused(StatusCode::UNAUTHORIZED, "this token is not known here, or has ended")
        }
        Err(status) if status.code() == tonic::Code::PermissionDenied => {
            refused(StatusCode::FORBIDDEN, &Fault::from_status(&status).message)
        }
        Err(status) => Err(status.into()),
    }
}

/// Ends the session. Where the controller does not know it any more, or cannot be asked, the browser forgets it all the same.
async fn sign_out(State(app): State<App>, posted: Posted) -> Result<Response, Trouble> {
    let Posted { visitor, parts, .. } = posted;
    if let Err(error) = visitor.calls.admin().end_session(v1::EndSessionRequest {}).await {
        tracing::warn!(%error, "a session that somebody signed out of goes on until its end");
    }
    let name = cookie_name(app.options.secure, SESSION_COOKIE, &parts.headers, &parts.uri);
    Ok((set_cookie(app.options.secure, &name, "", 0), see("/sign-in")).into_response())
}

async fn open(State(app): State<App>, request: Request) -> Result<Response, Trouble> {
    let (parts, _) = request.into_parts();
    let fields = Fields::of_query(parts.uri.query());
    let token = app.options.open.as_ref().and_then(|open| open.token(fields.get("code")));
    let token = token.ok_or_else(|| Trouble::refused("this code is not, or no longer, good: sign in with a token"))?;
    Ok(enter(&app, &token, &parts, "/").await?)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nobody_is_sent_elsewhere_after_signing_in() {
        for inside in ["/", "/jobs/a?x=//b", "/executions?job=a%20b"] {
            assert_eq!(safe_next(inside), inside);
        }
        for outside in ["", "//evil", "/\\evil", "https://evil", "/\t/evil", "\\evil", "/a b", "javascript:alert(1)", "/sign-out"]
        {
            assert_eq!(safe_next(outside), "/", "{outside:?}");
        }
    }
}
