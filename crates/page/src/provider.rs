//! Signing in with an identity provider: OpenID Connect's authorisation code with PKCE. The browser is sent there and comes back with a code,
//! the controller changes the code for an ID token, and a session is opened with that as with any other token: who somebody is here, and what
//! they may, the controller's rules for the issuer say.
//!
//! What has to be the same on the way there and back is in a cookie that lasts as long as somebody may take to sign in: no controller keeps
//! anything of it, and so the way back may lead to another one.

use std::fmt;

use axum::Router;
use axum::extract::{Path, Request, State};
use axum::response::{IntoResponse as _, Response};
use axum::routing::get;
use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use futures::future::BoxFuture;
use http::header::{LOCATION, SET_COOKIE};
use http::request::Parts;
use http::{Extensions, StatusCode};
use ring::digest;
use ring::rand::{SecureRandom as _, SystemRandom};
use serde::{Deserialize, Serialize};

use crate::app::App;
use crate::form::Fields;
use crate::session::{cookie_name, cookie_value, enter, peer, safe_next, set_cookie};
use crate::trouble::Trouble;

/// Seconds that somebody may take to sign in with their provider.
const SECONDS: i64 = 600;

/// Longest cookie of it; an address to go to afterwards that does not fit is forgotten.
const COOKIE_BYTES: usize = 3000;

/// Why a provider did not do what it was asked for.
#[derive(Debug)]
pub enum ProviderError {
    /// It is asked too often at this moment, by this visitor's address or by all.
    Busy,
    /// It cannot be used: a sentence for an operator, which has no secret in it.
    Failed(String),
}

/// An identity provider that visitors may sign in with.
pub trait Provider: fmt::Debug + Send + Sync {
    /// What it is called: letters, digits and `-`.
    fn name(&self) -> &str;

    /// The address to send a visitor to.
    ///
    /// # Errors
    /// Where there is none at present.
    fn begin<'a>(&'a self, asked: &'a Asked) -> BoxFuture<'a, Result<String, ProviderError>>;

    /// The ID token that a visitor's code is changed for. `peer` is what the server has noted of their request: anybody can send made-up codes,
    /// and whoever does so often is not to have the provider asked for each.
    ///
    /// # Errors
    /// Where it is not.
    fn redeem<'a>(
        &'a self,
        code: &'a str,
        asked: &'a Asked,
        peer: &'a Extensions,
    ) -> BoxFuture<'a, Result<String, ProviderError>>;
}

/// What is drawn for one visitor's way to a provider and back.
#[derive(Clone, Serialize, Deserialize)]
pub struct Asked {
    #[serde(rename = "p")]
    provider: String,
    /// Comes back with the code: whoever brings another did not begin here.
    #[serde(rename = "s")]
    pub state: String,
    /// Comes back in the ID token: it was made for this visitor.
    #[serde(rename = "n")]
    pub nonce: String,
    /// Shown when the code is changed: whoever has seen the code alone cannot change it.
    #[serde(rename = "v")]
    pub verifier: String,
    #[serde(rename = "t")]
    next: String,
}

impl fmt::Debug for Asked {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Asked").field("provider", &self.provider).finish_non_exhaustive()
    }
}

impl Asked {
    fn draw(provider: &str, next: &str) -> Result<Self, Trouble> {
        let random = || {
            let mut bytes = [0; 32];
            SystemRandom::new()
                .fill(&mut bytes)
                .map_err(|_| Trouble::of(StatusCode::INTERNAL_SERVER_ERROR, "the operating system gives no random bytes"))?;
            Ok::<_, Trouble>(URL_SAFE_NO_PAD.encode(bytes))
        };
        let next = if next.len() < COOKIE_BYTES / 2 { next } else { "/" };
        Ok(Self { provider: provider.to_owned(), state: random()?, nonce: random()?, verifier: random()?, next: next.to_owned() })
    }

    /// What is shown of the verifier beforehand: its SHA-256, as RFC 7636 writes it (`S256`).
    #[must_use]
    pub fn challenge(&self) -> String {
        URL_SAFE_NO_PAD.encode(digest::digest(&digest::SHA256, self.verifier.as_bytes()))
    }

    fn to_cookie(&self) -> Option<String> {
        let value = URL_SAFE_NO_PAD.encode(serde_json::to_vec(self).ok()?);
        (value.len() <= COOKIE_BYTES).then_some(value)
    }

    fn of_cookie(value: &str) -> Option<Self> {
        let fits = value.len() <= COOKIE_BYTES;
        serde_json::from_slice(&URL_SAFE_NO_PAD.decode(value).ok().filter(|_| fits)?).ok()
    }
}

pub(crate) fn routes() -> Router<App> {
    Router::new().route("/sign-in/with/{provider}", get(leave)).route("/sign-in/callback", get(come_back))
}

fn own_cookie(app: &App, parts: &Parts) -> String {
    cookie_name(app.options.secure, "octavius-sign-in", &parts.headers, &parts.uri)
}

fn provider<'a>(app: &'a App, name: &str) -> Result<&'a dyn Provider, Trouble> {
    let known = app.options.providers.iter().find(|provider| provider.name() == name);
    known
        .map(|provider| &**provider)
        .ok_or_else(|| Trouble::refused("nobody signs in here with that provider: sign in with another, or with a token"))
}

async fn leave(State(app): State<App>, Path(name): Path<String>, request: Request) -> Result<Response, Trouble> {
    let (parts, _) = request.into_parts();
    let provider = provider(&app, &name)?;
    let asked = Asked::draw(&name, safe_next(Fields::of_query(parts.uri.query()).get("next")))?;
    let address = provider.begin(&asked).await.map_err(|error| failed(&name, &error))?;
    let cookie =
        asked.to_cookie().ok_or_else(|| Trouble::refused("the address to go to is too long: sign in from the first page"))?;
    let cookie = set_cookie(app.options.secure, &own_cookie(&app, &parts), &cookie, SECONDS);
    Ok((StatusCode::SEE_OTHER, cookie, [(LOCATION, address)]).into_response())
}

/// That a provider cannot be used: what it said is for the log, and the visitor is told whom to ask.
fn failed(name: &str, error: &ProviderError) -> Trouble {
    let told = match error {
        ProviderError::Busy => {
            let told = "too many sign in at this moment";
            return Trouble::of(StatusCode::TOO_MANY_REQUESTS, told).hint("wait for a moment, and begin again");
        }
        ProviderError::Failed(problem) => problem,
    };
    tracing::warn!(provider = name, problem = told, "somebody could not sign in with an identity provider");
    let told = "the identity provider cannot be used at present; the controller's log says why";
    Trouble::of(StatusCode::SERVICE_UNAVAILABLE, told).hint("try again, or sign in with a token")
}

async fn come_back(State(app): State<App>, request: Request) -> Result<Response, Trouble> {
    let (parts, _) = request.into_parts();
    let fields = Fields::of_query(parts.uri.query());
    let name = own_cookie(&app, &parts);
    let asked = cookie_value(&parts.headers, &name).and_then(Asked::of_cookie);
    let asked = asked.ok_or_else(|| Trouble::refused("this sign-in was begun elsewhere, or too long ago: begin it again"))?;
    // Hashes are compared: how long that takes tells nothing of how much was right.
    let hash = |text: &str| digest::digest(&digest::SHA256, text.as_bytes());
    if hash(&asked.state).as_ref() != hash(fields.get("state")).as_ref() {
        return Err(Trouble::refused("this sign-in was begun elsewhere: begin it again"));
    }
    let code = fields.get("code");
    if code.is_empty() {
        let why: String = fields.get("error").chars().filter(char::is_ascii_graphic).take(60).collect();
        return Err(Trouble::refused(&format!(
            "the identity provider did not let you in ({why}): begin again, or ask its admins"
        )));
    }
    let provider = provider(&app, &asked.provider)?;
    let token = provider.redeem(code, &asked, &peer(&parts.extensions)).await.map_err(|error| failed(&asked.provider, &error))?;
    let entered = enter(&app, &token, &parts, safe_next(&asked.next)).await;
    let mut entered = entered.map_err(|status| match status.code() {
        tonic::Code::Unauthenticated => Trouble::refused(
            "the identity provider knows you, and no rule of the controller lets you in: ask an admin; the audit trail says why",
        ),
        _ => status.into(),
    })?;
    let [(_, gone)] = set_cookie(app.options.secure, &name, "", 0);
    if let Ok(gone) = http::HeaderValue::try_from(gone) {
        entered.headers_mut().append(SET_COOKIE, gone);
    }
    Ok(entered)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_was_asked_comes_back_as_it_went_and_a_long_way_on_is_forgotten() {
        let asked = Asked::draw("acme", "/jobs/a").unwrap();
        let back = Asked::of_cookie(&asked.to_cookie().unwrap()).unwrap();
        assert_eq!((back.state, back.nonce, back.verifier, back.next), (asked.state, asked.nonce, asked.verifier, asked.next));
        assert_eq!(Asked::draw("acme", &format!("/{}", "a".repeat(2000))).unwrap().next, "/");
        for bad in ["", "e30", "!", &"a".repeat(5000)] {
            assert!(Asked::of_cookie(bad).is_none(), "{bad:?}");
        }
    }

    /// The example of RFC 7636, appendix B.
    #[test]
    fn the_challenge_is_that_of_the_standard() {
        let verifier = "dBjftJeZ4CVP-mB92K27uhbUJU1p1r_wW1gFWFOEjXk".to_owned();
        let asked = Asked { verifier, ..Asked::draw("acme", "/").unwrap() };
        assert_eq!(asked.challenge(), "E9Melhoa2OwvFrEMTJguCHaoeK1t8URWbuGJSstw-cM");
    }
}
