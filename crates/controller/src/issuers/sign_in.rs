//! Signing in with an issuer in a browser: what the web page needs of an identity provider for OpenID Connect's authorisation code. The ID token
//! that comes of it is taken as any other of the issuer's, by the same rules.

use std::fmt;
use std::path::PathBuf;
use std::time::{Duration, Instant};

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use futures::FutureExt as _;
use futures::future::BoxFuture;
use http::Extensions;
use octavius_page::{Asked, Provider, ProviderError};
use reqwest::Client;
use reqwest::header::{AUTHORIZATION, CONTENT_TYPE};
use serde_json::Value;
use tokio::sync::{Mutex, Semaphore};
use url::Url;
use url::form_urlencoded::{Serializer, byte_serialize};

use super::config::IssuerConfig;
use super::fetch::{self, About};
use super::jose::Unverified;
use crate::limits::Guesses;
use crate::listen::Peer;
use crate::outbound::{self, WITHIN};
use crate::private;

/// How long what an issuer says of itself is taken for right; and that it says nothing, so that it is not asked for each visitor.
const KNOWN_FOR: Duration = Duration::from_secs(300);
const AWAY_FOR: Duration = Duration::from_secs(5);

/// Visitors whose codes are changed at once. Whoever sends made-up codes does not have us ask the issuer more than that.
const AT_ONCE: usize = 8;

/// What is asked for where nothing is said: who it is.
const SCOPES: [&str; 3] = ["openid", "email", "profile"];

/// How visitors of the web page sign in with an issuer.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct SignInConfig {
    /// Who the controller is to the issuer.
    pub(super) client_id: String,
    /// A file with what the controller proves that with, which others cannot read. None for a public client, which PKCE alone protects.
    pub(super) client_secret_file: Option<PathBuf>,
    /// What is asked for; none for `openid email profile`.
    pub(super) scopes: Vec<String>,
}

/// Where an issuer sends visitors, and where it changes codes.
#[derive(Debug, Clone)]
struct Endpoints {
    authorization: Url,
    token: Url,
}

/// One issuer, to sign in with.
pub(super) struct CodeFlow {
    name: String,
    issuer: String,
    about: Url,
    /// Where the issuer sends visitors back to.
    redirect: String,
    config: SignInConfig,
    client: Result<Client, String>,
    /// What it last said. Whoever asks holds it: the others wait for what comes of that.
    known: Mutex<Option<(Instant, Result<Endpoints, String>)>>,
    /// Codes that visitors bring, by address.
    brought: Guesses,
    turns: Semaphore,
}

impl fmt::Debug for CodeFlow {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("CodeFlow").field("name", &self.name).finish_non_exhaustive()
    }
}

impl CodeFlow {
    /// How visitors sign in with this issuer, on the page at this URL; none where they do not.
    pub(super) fn of(issuer: &IssuerConfig, page: &Url) -> Option<Self> {
        let config = issuer.sign_in.clone()?;
        let about = issuer.about()?;
        Some(Self {
            name: issuer.name.clone(),
            issuer: issuer.issuer.clone(),
            redirect: format!("{}/sign-in/callback", page.as_str().trim_end_matches('/')),
            client: outbound::client(issuer.ca_file.as_deref(), &about),
            about,
            config,
            known: Mutex::default(),
            brought: Guesses::default(),
            turns: Semaphore::new(AT_ONCE),
        })
    }

    fn client(&self) -> Result<&Client, String> {
        self.client.as_ref().map_err(Clone::clone)
    }

    async fn endpoints(&self) -> Result<Endpoints, String> {
        let mut known = self.known.lock().await;
        if let Some((at, told)) = &*known
            && at.elapsed() < if told.is_ok() { KNOWN_FOR } else { AWAY_FOR }
        {
            return told.clone();
        }
        let told = self.fetch_endpoints().await;
        *known = Some((Instant::now(), told.clone()));
        told
    }

    async fn fetch_endpoints(&self) -> Result<Endpoints, String> {
        let url = &self.about;
        let late = |_| format!("{url}: no answer within {} s", WITHIN.as_secs());
        let about = tokio::time::timeout(WITHIN, About::fetch(self.client()?, url, &self.issuer)).await.map_err(late)??;
        let endpoint = |name| about.url(name, "visitors may be sent to");
        Ok(Endpoints { authorization: endpoint("authorization_endpoint")?, token: endpoint("token_endpoint")? })
    }

    async fn address(&self, asked: &Asked) -> Result<String, String> {
        let mut url = self.endpoints().await?.authorization;
        let scopes = if self.config.scopes.is_empty() { SCOPES.join(" ") } else { self.config.scopes.join(" ") };
        url.query_pairs_mut()
            .append_pair("response_type", "code")
            .append_pair("client_id", &self.config.client_id)
            .append_pair("redirect_uri", &self.redirect)
            .append_pair("scope", &scopes)
            .append_pair("state", &asked.state)
            .append_pair("nonce", &asked.nonce)
            .append_pair("code_challenge", &asked.challenge())
            .append_pair("code_challenge_method", "S256");
        Ok(url.into())
    }

    /// What proves who the controller is; none for a public client.
    fn credentials(&self) -> Result<Option<String>, String> {
        let Some(path) = &self.config.client_secret_file else { return Ok(None) };
        let secret = private::read(path).map_err(|problem| format!("{}: {problem}", path.display()))?;
        // Both parts are encoded before they are put together: RFC 6749, section 2.3.1.
        let encoded = |text: &str| byte_serialize(text.as_bytes()).collect::<String>();
        let pair = format!("{}:{}", encoded(&self.config.client_id), encoded(secret.trim()));
        Ok(Some(format!("Basic {}", STANDARD.encode(pair))))
    }

    async fn change(&self, code: &str, asked: &Asked) -> Result<String, String> {
        let url = self.endpoints().await?.token;
        let form = Serializer::new(String::new())
            .append_pair("grant_type", "authorization_code")
            .append_pair("code", code)
            .append_pair("redirect_uri", &self.redirect)
            .append_pair("client_id", &self.config.client_id)
            .append_pair("code_verifier", &asked.verifier)
            .finish();
        let mut request = self.client()?.post(url.clone()).header(CONTENT_TYPE, "application/x-www-form-urlencoded");
        if let Some(credentials) = self.credentials()? {
            request = request.header(AUTHORIZATION, credentials);
        }
        let (body, _) = fetch::answer(request.body(form), &url).await?;
        let answer: Value = serde_json::from_slice(&body).map_err(|_| format!("{url}: it answers no JSON"))?;
        let token = answer.get("id_token").and_then(Value::as_str).ok_or_else(|| format!("{url}: it answers no id_token"))?;
        let claims = Unverified::parse(token).map_err(|why| format!("{url}: its id_token is none: {why}"))?;
        if claims.text("iss") != Some(&self.issuer) || !claims.is_for(std::slice::from_ref(&self.config.client_id)) {
            return Err(format!("{url}: its id_token is another issuer's, or for somebody else"));
        }
        if claims.text("nonce") != Some(&asked.nonce) {
            return Err(format!("{url}: its id_token was made for another visitor"));
        }
        Ok(token.to_owned())
    }
}

impl Provider for CodeFlow {
    fn name(&self) -> &str {
        &self.name
    }

    fn begin<'a>(&'a self, asked: &'a Asked) -> BoxFuture<'a, Result<String, ProviderError>> {
        async { self.address(asked).await.map_err(ProviderError::Failed) }.boxed()
    }

    fn redeem<'a>(
        &'a self,
        code: &'a str,
        asked: &'a Asked,
        peer: &'a Extensions,
    ) -> BoxFuture<'a, Result<String, ProviderError>> {
        async {
            if !self.brought.allow(peer.get::<Peer>().map(Peer::address)) {
                return Err(ProviderError::Busy);
            }
            let turn = tokio::time::timeout(WITHIN, self.turns.acquire()).await;
            let _turn = turn.ok().and_then(Result::ok).ok_or(ProviderError::Busy)?;
            let late = |_| ProviderError::Failed(format!("no answer within {} s", WITHIN.as_secs()));
            tokio::time::timeout(WITHIN, self.change(code, asked)).await.map_err(late)?.map_err(ProviderError::Failed)
        }
        .boxed()
    }
}
