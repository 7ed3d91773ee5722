//! Fetches an issuer's keys: from a file, or over HTTP within bounds of time and size, and from nowhere that was not named.

use std::path::Path;
use std::time::Duration;

use reqwest::header::CACHE_CONTROL;
use reqwest::{Client, RequestBuilder, StatusCode};
use serde_json::{Map, Value};
use url::Url;

use super::config::{IssuerConfig, KeysFrom};
use super::jose::parse_object;
use super::jwk::KeySet;
use crate::outbound::{self, WITHIN};

/// Most bytes of an answer, and of a file.
const ANSWER_BYTES: usize = 256 * 1024;

/// What was fetched.
#[derive(Debug)]
pub(super) struct Fetched {
    pub(super) keys: KeySet,
    /// For how long whoever serves the keys says that they are good.
    pub(super) max_age: Option<Duration>,
}

/// Fetches the keys of one issuer.
#[derive(Debug)]
pub(super) struct Fetcher {
    issuer: String,
    from: KeysFrom,
    /// None for a file; otherwise what speaks HTTP, or why nothing does.
    client: Option<Result<Client, String>>,
}

impl Fetcher {
    pub(super) fn new(config: &IssuerConfig) -> Self {
        let client = match &config.keys {
            KeysFrom::File(_) => None,
            KeysFrom::Url(url) | KeysFrom::Discovery(url) => Some(outbound::client(config.ca_file.as_deref(), url)),
        };
        Self { issuer: config.issuer.clone(), from: config.keys.clone(), client }
    }

    /// Fetches the keys; otherwise says why not.
    pub(super) async fn fetch(&self) -> Result<Fetched, String> {
        let late = |_| format!("no answer within {} s", WITHIN.as_secs());
        tokio::time::timeout(WITHIN, self.fetch_at_leisure()).await.map_err(late)?
    }

    async fn fetch_at_leisure(&self) -> Result<Fetched, String> {
        let (url, client) = match (&self.from, &self.client) {
            (KeysFrom::File(path), _) => {
                let keys = KeySet::parse(&read(path).await?).map_err(|problem| format!("{}: {problem}", path.display()))?;
                return Ok(Fetched { keys, max_age: None });
            }
            (_, Some(Err(problem))) => return Err(problem.clone()),
            (_, None) => return Err("nothing speaks HTTP".to_owned()),
            (KeysFrom::Url(url), Some(Ok(client))) => (url.clone(), client),
            (KeysFrom::Discovery(url), Some(Ok(client))) => (self.discover(client, url).await?, client),
        };
        let (body, max_age) = get(client, &url).await?;
        let keys = KeySet::parse(&body).map_err(|problem| format!("{url}: {problem}"))?;
        Ok(Fetched { keys, max_age })
    }

    /// Where the issuer says that its keys are.
    async fn discover(&self, client: &Client, url: &Url) -> Result<Url, String> {
        About::fetch(client, url, &self.issuer).await?.url("jwks_uri", "keys may be fetched from")
    }
}

/// What an issuer says of itself.
pub(super) struct About {
    url: Url,
    members: Map<String, Value>,
}

impl About {
    pub(super) async fn fetch(client: &Client, url: &Url, issuer: &str) -> Result<Self, String> {
        let (body, _) = get(client, url).await?;
        let members = parse_object(&body).ok_or_else(|| format!("{url}: it is no JSON object of single members"))?;
        // Another issuer's keys are not this one's.
        if members.get("issuer").and_then(Value::as_str) != Some(issuer) {
            return Err(format!("{url}: it is about another issuer"));
        }
        Ok(Self { url: url.clone(), members })
    }

    /// A URL that it names, as safe as the one it was told at; `purpose` says what for.
    pub(super) fn url(&self, name: &str, purpose: &str) -> Result<Url, String> {
        let named = self.members.get(name).and_then(Value::as_str).and_then(|text| Url::parse(text).ok());
        let fits = |named: &Url| outbound::is_safe(named) && (named.scheme() == "https" || outbound::is_on_loopback(&self.url));
        named.filter(fits).ok_or_else(|| format!("{}: its {name} is no URL that {purpose}", self.url))
    }
}

/// What a URL answers, and for how long it is good.
pub(super) async fn get(client: &Client, url: &Url) -> Result<(Vec<u8>, Option<Duration>), String> {
    answer(client.get(url.clone()), url).await
}

/// What a URL answers to a request, and for how long it is good.
pub(super) async fn answer(request: RequestBuilder, url: &Url) -> Result<(Vec<u8>, Option<Duration>), String> {
    let told = |error: reqwest::Error| format!("{url}: {}", octavius_proto::client::root_cause(&error));
    let mut response = request.header("accept", "application/json").send().await.map_err(told)?;
    if response.status() != StatusCode::OK {
        return Err(format!("{url}: it answers {}", response.status()));
    }
    let max_age = response.headers().get(CACHE_CONTROL).and_then(|value| value.to_str().ok()).and_then(max_age);
    let mut body = Vec::new();
    while let Some(chunk) = response.chunk().await.map_err(told)? {
        body.extend_from_slice(&chunk);
        if body.len() > ANSWER_BYTES {
            return Err(format!("{url}: its answer is larger than 256 KiB"));
        }
    }
    Ok((body, max_age))
}

/// For how long an answer is good by its `cache-control`.
fn max_age(cache_control: &str) -> Option<Duration> {
    let directives = cache_control.split(',').map(|part| part.trim().to_ascii_lowercase());
    let seconds = directives.filter_map(|part| part.strip_prefix("max-age=")?.trim_matches('"').parse().ok());
    seconds.min().map(Duration::from_secs)
}

async fn read(path: &Path) -> Result<Vec<u8>, String> {
    use tokio::io::AsyncReadExt as _;
    let told = |error: std::io::Error| format!("{}: {error}", path.display());
    let file = tokio::fs::File::open(path).await.map_err(told)?;
    let mut bytes = Vec::new();
    file.take(ANSWER_BYTES as u64 + 1).read_to_end(&mut bytes).await.map_err(told)?;
    if bytes.len() > ANSWER_BYTES {
        return Err(format!("{}: it is larger than 256 KiB", path.display()));
    }
    Ok(bytes)
}

#[cfg(test)]
mod tests {
    use super::super::testing::{Signer, config, issuer};
    use super::*;
    use octavius_tests::jwt::{Answer, Issuer};
    use serde_json::json;

    fn ok(body: String) -> Answer {
        Answer { status: 200, header: None, body }
    }

    #[tokio::test]
    async fn keys_are_found_where_the_issuer_says() {
        let signer = Signer::ed25519("k");
        let issuer = issuer(&[&signer]).await;
        let fetched = Fetcher::new(&config(&issuer, json!({}))).fetch().await.unwrap();
        assert_eq!((fetched.keys.len(), fetched.max_age), (1, None));
        assert_eq!((issuer.asked("/.well-known/openid-configuration"), issuer.fetches()), (1, 1));
        let direct = json!({"jwks_url": format!("{}/other", issuer.url())});
        let keys = json!({"keys": [signer.jwk()]}).to_string();
        issuer.answer(
            "/other",
            Answer { status: 200, header: Some(("cache-control", "public, Max-Age=90".to_owned())), body: keys },
        );
        let fetched = Fetcher::new(&config(&issuer, direct)).fetch().await.unwrap();
        assert_eq!((fetched.keys.len(), fetched.max_age), (1, Some(Duration::from_secs(90))));
        assert_eq!(issuer.asked("/.well-known/openid-configuration"), 1);
    }

    #[tokio::test]
    async fn answers_that_cannot_be_are_told() {
        let signer = Signer::ed25519("k");
        let issuer = issuer(&[&signer]).await;
        let fetcher = Fetcher::new(&config(&issuer, json!({})));
        let failure = async || fetcher.fetch().await.unwrap_err();
        let elsewhere =
            Answer { status: 302, header: Some(("location", format!("{}/other", issuer.url()))), body: String::new() };
        issuer.answer("/other", ok(json!({"keys": [signer.jwk()]}).to_string()));
        for (answer, expected) in [
            (elsewhere, "it answers 302"),
            (Answer { status: 503, header: None, body: String::new() }, "it answers 503"),
            (ok("<html>".to_owned()), "no JSON object"),
            (ok(format!("{{\"keys\":[],\"a\":\"{}\"}}", "x".repeat(ANSWER_BYTES))), "larger than 256 KiB"),
        ] {
            issuer.answer("/keys", answer);
            let told = failure().await;
            assert!(told.contains("/keys: ") && told.contains(expected), "{told}");
        }
        assert_eq!(issuer.asked("/other"), 0, "a redirect is not followed");
        let url = issuer.url();
        for (about, expected) in [
            (json!({"issuer": "https://other", "jwks_uri": format!("{url}/keys")}), "about another issuer"),
            (json!({"issuer": url, "jwks_uri": "http://keys.example/keys"}), "no URL that keys may be fetched from"),
            (json!({"issuer": url, "jwks_uri": "file:///etc/keys"}), "no URL that keys may be fetched from"),
            (json!({"issuer": url}), "no URL that keys may be fetched from"),
            (json!([]), "no JSON object"),
        ] {
            issuer.answer("/.well-known/openid-configuration", ok(about.to_string()));
            let told = failure().await;
            assert!(told.contains(expected), "{told}");
        }
        let away = Issuer::away().unwrap();
        let told = Fetcher::new(&config(&away, json!({}))).fetch().await.unwrap_err();
        assert!(told.contains("connection refused"), "{told}");
    }

    #[tokio::test]
    async fn a_file_is_read_within_bounds() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("keys.json");
        let away = Issuer::away().unwrap();
        let fetcher = Fetcher::new(&config(&away, json!({"jwks_file": path.to_str().unwrap()})));
        assert!(fetcher.fetch().await.unwrap_err().contains("keys.json: No such file"));
        std::fs::write(&path, json!({"keys": [Signer::p256("k").jwk()]}).to_string()).unwrap();
        assert_eq!(fetcher.fetch().await.unwrap().keys.len(), 1);
        std::fs::write(&path, " ".repeat(ANSWER_BYTES + 1)).unwrap();
        assert!(fetcher.fetch().await.unwrap_err().contains("keys.json: it is larger than 256 KiB"));
    }

    #[test]
    fn how_long_an_answer_is_good_is_read_where_it_is_said() {
        for (text, expected) in
            [("max-age=60", Some(60)), ("no-cache, MAX-AGE=\"7\"", Some(7)), ("public", None), ("max-age=soon", None), ("", None)]
        {
            assert_eq!(max_age(text), expected.map(Duration::from_secs), "{text}");
        }
    }
}
