//! The page as a whole: its options, and its routes.

use std::fmt;
use std::sync::Arc;

use axum::Router;
use axum::middleware::{from_fn, from_fn_with_state};
use axum::routing::get;
use ring::hmac;

use crate::provider::{self, Provider};
use crate::rpcs::Rpcs;
use crate::turns::{self, Turns};
use crate::{
    approvals, assets, audit, catalog, execution, executions, executors, headers, job, log, revisions, session, trouble,
};

/// How the page is served.
#[derive(Debug, Default)]
pub struct PageOptions {
    /// Whether browsers reach it by TLS: cookies are then for TLS alone.
    pub secure: bool,
    /// The origin that browsers reach it at, like `https://octavius.example.com`, where that is known: something before it may not hand on the
    /// name by which it was asked.
    pub origin: Option<String>,
    /// A code that signs in with a token that this process has: what `octavius dev` prints.
    pub open: Option<OpenCode>,
    /// Whom visitors may sign in with, beside with a token.
    pub providers: Vec<Arc<dyn Provider>>,
}

/// A code in an address that signs in whoever opens it, and the token that it signs in with.
#[derive(Clone)]
pub struct OpenCode {
    key: hmac::Key,
    code: hmac::Tag,
    token: Arc<dyn Fn() -> Option<String> + Send + Sync>,
}

impl fmt::Debug for OpenCode {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("OpenCode")
    }
}

impl OpenCode {
    /// A visitor who brings `code`, as `/open?code=…`, is signed in with what `token` says then: nobody, where it says nothing. The code should
    /// hold 128 random bits or more.
    #[must_use]
    pub fn new(code: &str, token: impl Fn() -> Option<String> + Send + Sync + 'static) -> Self {
        // Tags are compared, not texts: how long that takes tells nothing of how much of a code was right.
        let key = hmac::Key::new(hmac::HMAC_SHA256, b"octavius open code");
        let code = hmac::sign(&key, code.as_bytes());
        Self { key, code, token: Arc::new(token) }
    }

    /// The token that `code` signs in with; none for another code.
    pub(crate) fn token(&self, code: &str) -> Option<String> {
        hmac::verify(&self.key, code.as_bytes(), self.code.as_ref()).ok()?;
        (self.token)()
    }
}

/// What every handler has.
#[derive(Clone)]
pub(crate) struct App {
    pub(crate) rpcs: Rpcs,
    pub(crate) options: Arc<PageOptions>,
}

/// The page, for the controller's HTTP server. It answers every path; those that it has no page for with a page that says so. What the
/// server puts into a request's extensions, such as who the peer is, reaches the RPCs.
pub fn router(rpcs: Rpcs, options: PageOptions) -> Router {
    let app = App { rpcs, options: Arc::new(options) };
    let pages = Router::new()
        .route("/", get(catalog::list))
        .route("/jobs/{name}", get(job::page).post(job::act))
        .route("/executions", get(executions::list))
        .route("/executions/{id}", get(execution::page).post(execution::act))
        .route("/executions/{id}/events", get(execution::events))
        .route("/approvals", get(approvals::inbox))
        .route("/executors", get(executors::list))
        .route("/executors/{id}", get(executors::page).post(executors::act))
        .route("/revisions", get(revisions::list))
        .route("/revisions/{catalog}/{number}", get(revisions::page))
        .route("/audit", get(audit::page))
        .merge(session::routes())
        .merge(provider::routes())
        .merge(log::routes())
        .merge(assets::routes())
        .fallback(trouble::no_page)
        .method_not_allowed_fallback(trouble::no_method);
    // The pages are the fallback of a router around them, so that the peer is noted before routing adds extensions of its own.
    let turns = from_fn_with_state(Turns::default(), turns::bound);
    let shown = pages.layer(turns).layer(from_fn(trouble::show)).with_state(app);
    Router::new().fallback_service(shown).layer(from_fn(session::note_peer)).layer(from_fn(headers::set))
}
