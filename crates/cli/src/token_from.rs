//! A token that a CI system makes for a job when the job asks for it: nothing is stored anywhere.

use std::str::FromStr;
use std::time::Duration;

use octavius_proto::client::root_cause;
use reqwest::redirect::Policy;
use serde_json::Value;
use url::{Host, Url};

use crate::env;
use crate::error::{Failure, Outcome};
use crate::exit::Exit;

/// For whom a token is where nothing is said.
const AUDIENCE: &str = "octavius";

/// Longest wait for a token.
const WITHIN: Duration = Duration::from_secs(10);

/// Largest answer that is read.
const ANSWER_BYTES: usize = 64 * 1024;

/// Who makes the token: `github`, or `github:AUDIENCE`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TokenFrom {
    audience: String,
}

impl FromStr for TokenFrom {
    type Err = &'static str;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let (name, audience) = text.split_once(':').unwrap_or((text, AUDIENCE));
        if name != "github" || audience.is_empty() {
            return Err("github is expected, or github:AUDIENCE");
        }
        Ok(Self { audience: audience.to_owned() })
    }
}

impl TokenFrom {
    /// Asks for a token, and waits for it, for at most 10 s.
    ///
    /// # Errors
    /// Where this is no job that may have one, or none comes.
    pub fn get(&self) -> Outcome<String> {
        let missing = || {
            Failure::new(Exit::NotSignedIn, anyhow::anyhow!("GitHub Actions gives this job no token of its own"))
                .hint("the job needs `permissions: {id-token: write, contents: read}`; a pull request from a fork cannot have it")
        };
        let url = env::get(env::ACTIONS_ID_TOKEN_REQUEST_URL).ok_or_else(missing)?;
        let secret = env::get(env::ACTIONS_ID_TOKEN_REQUEST_TOKEN).ok_or_else(missing)?;
        let mut url = Url::parse(&url)
            .ok()
            .filter(is_private)
            .ok_or_else(|| Failure::usage(format!("{} is no https:// URL", env::ACTIONS_ID_TOKEN_REQUEST_URL)))?;
        url.query_pairs_mut().append_pair("audience", &self.audience);
        // Whoever asks may be within a runtime already, which must not wait for another: a thread may.
        let asked = std::thread::scope(|scope| scope.spawn(|| ask(&url, &secret)).join());
        let token = asked.unwrap_or_else(|_| Err("asking for it failed".to_owned()));
        token.map_err(|problem| {
            Failure::new(Exit::Unreachable, anyhow::anyhow!("GitHub Actions gives no token: {problem}"))
                .hint("once more, or see https://www.githubstatus.com")
        })
    }
}

/// Whether nobody between can read what is sent there.
fn is_private(url: &Url) -> bool {
    let local = match url.host() {
        Some(Host::Ipv4(address)) => address.is_loopback(),
        Some(Host::Ipv6(address)) => address.is_loopback(),
        Some(Host::Domain(_)) | None => false,
    };
    url.scheme() == "https" || (url.scheme() == "http" && local)
}

fn ask(url: &Url, secret: &str) -> Result<String, String> {
    let told = |error: reqwest::Error| root_cause(&error.without_url());
    // What speaks HTTP takes the process' provider of cryptography, and panics where there is none. An error means that there is one already.
    let _ = rustls::crypto::ring::default_provider().install_default();
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().map_err(|error| error.to_string())?;
    runtime.block_on(async {
        let mut builder = reqwest::Client::builder().redirect(Policy::none()).timeout(WITHIN).user_agent("octavius");
        if url.scheme() == "http" {
            builder = builder.no_proxy();
        }
        let client = builder.build().map_err(told)?;
        let mut response = client.get(url.clone()).bearer_auth(secret).send().await.map_err(told)?;
        if !response.status().is_success() {
            return Err(format!("it answers {}", response.status()));
        }
        let mut body = Vec::new();
        while let Some(chunk) = response.chunk().await.map_err(told)? {
            body.extend_from_slice(&chunk);
            if body.len() > ANSWER_BYTES {
                return Err("its answer is too large".to_owned());
            }
        }
        let answer: Option<Value> = serde_json::from_slice(&body).ok();
        let token = answer.as_ref().and_then(|answer| answer["value"].as_str()).filter(|token| !token.is_empty());
        token.map(str::to_owned).ok_or_else(|| "its answer holds none".to_owned())
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn who_makes_a_token_is_named_with_its_audience() {
        let audience = |text: &str| text.parse::<TokenFrom>().map(|from| from.audience);
        assert_eq!(audience("github"), Ok("octavius".to_owned()));
        assert_eq!(audience("github:https://octavius.acme.com"), Ok("https://octavius.acme.com".to_owned()));
        for wrong in ["", "gitlab", "github:", "GitHub", "github "] {
            assert!(audience(wrong).is_err(), "{wrong}");
        }
    }

    #[test]
    fn a_secret_is_sent_where_nobody_can_read_it() {
        for (url, expected) in [
            ("https://pipelines.actions.githubusercontent.com/x?api-version=2.0", true),
            ("http://127.0.0.1:1/x", true),
            ("http://[::1]:1/x", true),
            ("http://localhost/x", false),
            ("http://example.com/x", false),
            ("file:///x", false),
        ] {
            assert_eq!(is_private(&Url::parse(url).unwrap()), expected, "{url}");
        }
    }
}
