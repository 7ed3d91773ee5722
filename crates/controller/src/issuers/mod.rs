//! JSON Web Tokens of issuers that the configuration names: of a person's identity provider, or of a CI job, which needs no stored secret
//! then. A token is taken apart strictly ([`jose`]), its issuer's key verifies it ([`jwk`], [`keys`], [`fetch`]), what it says of its purpose
//! and its time is held against the configuration, and the rules make a user of its claims ([`rules`], [`config`]).
//!
//! Nothing of such a token is stored: what it may is over when it expires, or when its issuer's key or rule is taken away.

mod config;
mod fetch;
mod jose;
mod jwk;
mod keys;
mod rules;
mod sign_in;
#[cfg(test)]
mod testing;
#[cfg(test)]
mod tests;

use std::borrow::Cow;
use std::sync::Arc;

use octavius_core::{Principal, Timestamp};
use octavius_page::Provider;
use serde_json::Value;
use tokio_util::sync::CancellationToken;
use url::Url;

use crate::audit::Act;
use config::KeysFrom;
use fetch::Fetcher;
use jose::Unverified;
use keys::{Keys, Pace, Unfit};
use sign_in::CodeFlow;

pub use config::IssuerConfig;
pub(crate) use jose::is_jwt;

/// The issuers that are trusted.
#[derive(Debug)]
pub(crate) struct Issuers(Vec<Trusted>);

#[derive(Debug)]
struct Trusted {
    config: IssuerConfig,
    keys: Keys,
}

/// The bearer of a good token.
#[derive(Debug)]
pub(crate) struct Known {
    pub(crate) principal: Principal,
    /// Who says so.
    pub(crate) issuer: String,
    /// Until when, as the token says.
    pub(crate) expires_at: Timestamp,
    /// Until when it is taken: clocks may differ.
    pub(crate) good_until: Timestamp,
    /// Whether visitors of the page sign in with the issuer.
    pub(crate) signs_in: bool,
}

/// Why a token is not good: for the audit trail, and not for its bearer.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Denial {
    pub(crate) why: Cow<'static, str>,
    /// What its issuer is called here, where that is known.
    issuer: Option<String>,
    /// Whose it is; none while its signature is not verified: anybody could write anything there.
    subject: Option<String>,
}

impl Denial {
    /// Adds to an act what is known of the token.
    pub(crate) fn note(&self, act: &Act) {
        act.note("token", &self.why);
        act.note("issuer", self.issuer.as_deref().unwrap_or_default());
        act.note("subject", self.subject.as_deref().unwrap_or_default());
    }
}

impl Issuers {
    pub(crate) fn new(configs: Vec<IssuerConfig>) -> Self {
        let trusted = configs.into_iter().map(|config| {
            let pace = if matches!(config.keys, KeysFrom::File(_)) { Pace::FILE } else { Pace::REMOTE };
            Trusted { keys: Keys::new(&config.name, Fetcher::new(&config), pace), config }
        });
        Self(trusted.collect())
    }

    /// Those that visitors of the web page, at this URL, sign in with.
    pub(crate) fn to_sign_in_with(&self, page: &Url) -> Vec<Arc<dyn Provider>> {
        let flows = self.0.iter().filter_map(|trusted| CodeFlow::of(&trusted.config, page));
        flows.map(|flow| Arc::new(flow) as Arc<dyn Provider>).collect()
    }

    /// Keeps the issuers' keys fresh until the shutdown.
    pub(crate) async fn run(&self, shutdown: CancellationToken) {
        futures::future::join_all(self.0.iter().map(|trusted| trusted.keys.run(shutdown.clone()))).await;
    }

    /// Who bears this token.
    pub(crate) async fn bearer(&self, text: &str) -> Result<Known, Denial> {
        let stranger = |why| Denial { why: Cow::Borrowed(why), issuer: None, subject: None };
        if self.0.is_empty() {
            return Err(stranger("malformed"));
        }
        let token = Unverified::parse(text).map_err(stranger)?;
        let issuer = token.text("iss").ok_or_else(|| stranger("it names no issuer"))?;
        let trusted = self.0.iter().find(|trusted| trusted.config.issuer == issuer);
        let Trusted { config, keys } = trusted.ok_or_else(|| stranger("its issuer is not trusted"))?;
        let unverified = |why| Denial { issuer: Some(config.name.clone()), ..stranger(why) };
        keys.verify(&token).await.map_err(|unfit| {
            unverified(match unfit {
                Unfit::NoKeys => "its issuer's keys could not be fetched",
                Unfit::UnknownKey => "its issuer has no such key",
                Unfit::Forged => "its signature is not its issuer's",
            })
        })?;
        let subject = token.claims.get("sub").and_then(Value::as_str);
        let verified = |why| Denial { why, issuer: Some(config.name.clone()), subject: subject.map(str::to_owned) };
        let expires_at = token.until(Timestamp::now()).map_err(|why| verified(why.into()))?;
        if !token.is_for(&config.audiences) {
            return Err(verified("for another audience".into()));
        }
        let principal = rules::principal(config, &token.claims).map_err(|why| verified(why.into()))?;
        let good_until = expires_at.checked_add(jose::SKEW).unwrap_or(expires_at);
        let signs_in = config.is_to_sign_in_with();
        Ok(Known { principal, issuer: config.issuer.clone(), expires_at, good_until, signs_in })
    }
}
