//! JSON Web Tokens of a test's own: keys that sign them, and an issuer on loopback that publishes the keys and counts who asks.

use std::collections::HashMap;
use std::net::SocketAddr;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{SystemTime, UNIX_EPOCH};

use anyhow::{Context as _, Result, anyhow};
use axum::Router;
use axum::extract::State;
use axum::http::{HeaderMap, StatusCode, Uri};
use axum::response::{IntoResponse, Response};
use base64::Engine as _;
use base64::engine::general_purpose::{STANDARD, URL_SAFE_NO_PAD};
use ring::rand::SystemRandom;
use ring::signature::{
    ECDSA_P256_SHA256_FIXED_SIGNING, EcdsaKeyPair, Ed25519KeyPair, KeyPair as _, RSA_PKCS1_SHA256, RsaKeyPair,
    RsaPublicKeyComponents,
};
use serde_json::{Value, json};
use tokio::task::JoinHandle;

/// A key of nobody's: it is in a public repository, and signs what tests make. RSA keys cannot be made by ring.
const RSA_KEY: &str = include_str!("rsa-key-for-tests-only.pem");

#[derive(Debug)]
enum Pair {
    Rsa(Box<RsaKeyPair>),
    P256(EcdsaKeyPair),
    Ed25519(Ed25519KeyPair),
}

/// A key that signs tokens.
#[derive(Debug)]
pub struct Signer {
    pair: Pair,
    kid: String,
}

impl Signer {
    /// RS256. All of them have the same key.
    ///
    /// # Errors
    /// Where the key cannot be read.
    pub fn rsa(kid: &str) -> Result<Self> {
        let body: String = RSA_KEY.lines().filter(|line| !line.starts_with('-')).collect();
        let pair = RsaKeyPair::from_pkcs8(&STANDARD.decode(body)?).map_err(|error| anyhow!("the RSA key: {error}"))?;
        Ok(Self { pair: Pair::Rsa(Box::new(pair)), kid: kid.to_owned() })
    }

    /// ES256, with a new key.
    ///
    /// # Errors
    /// Where the system has no randomness.
    pub fn p256(kid: &str) -> Result<Self> {
        let random = SystemRandom::new();
        let made = EcdsaKeyPair::generate_pkcs8(&ECDSA_P256_SHA256_FIXED_SIGNING, &random);
        let made = made.map_err(|_| anyhow!("cannot make a P-256 key"))?;
        let pair = EcdsaKeyPair::from_pkcs8(&ECDSA_P256_SHA256_FIXED_SIGNING, made.as_ref(), &random);
        let pair = pair.map_err(|error| anyhow!("the P-256 key: {error}"))?;
        Ok(Self { pair: Pair::P256(pair), kid: kid.to_owned() })
    }

    /// EdDSA, with a new key.
    ///
    /// # Errors
    /// Where the system has no randomness.
    pub fn ed25519(kid: &str) -> Result<Self> {
        let made = Ed25519KeyPair::generate_pkcs8(&SystemRandom::new()).map_err(|_| anyhow!("cannot make an Ed25519 key"))?;
        let pair = Ed25519KeyPair::from_pkcs8(made.as_ref()).map_err(|error| anyhow!("the Ed25519 key: {error}"))?;
        Ok(Self { pair: Pair::Ed25519(pair), kid: kid.to_owned() })
    }

    /// The name of its algorithm in a token's header.
    #[must_use]
    pub const fn alg(&self) -> &'static str {
        match self.pair {
            Pair::Rsa(_) => "RS256",
            Pair::P256(_) => "ES256",
            Pair::Ed25519(_) => "EdDSA",
        }
    }

    /// Its public key, as a set of keys has it.
    #[must_use]
    pub fn jwk(&self) -> Value {
        let text = |bytes: &[u8]| URL_SAFE_NO_PAD.encode(bytes);
        let mut key = match &self.pair {
            Pair::Rsa(pair) => {
                let RsaPublicKeyComponents { n, e } = RsaPublicKeyComponents::<Vec<u8>>::from(pair.public());
                json!({"kty": "RSA", "n": text(&n), "e": text(&e)})
            }
            Pair::P256(pair) => {
                let point = pair.public_key().as_ref(); // 4, then both coordinates
                let (x, y) = point.get(1..).unwrap_or_default().split_at(32);
                json!({"kty": "EC", "crv": "P-256", "x": text(x), "y": text(y)})
            }
            Pair::Ed25519(pair) => json!({"kty": "OKP", "crv": "Ed25519", "x": text(pair.public_key().as_ref())}),
        };
        for (name, value) in [("kid", self.kid.as_str()), ("alg", self.alg()), ("use", "sig")] {
            key[name] = value.into();
        }
        key
    }

    /// A token with these claims.
    ///
    /// # Errors
    /// Where the system has no randomness.
    pub fn sign(&self, claims: &Value) -> Result<String> {
        self.sign_as(&json!({"alg": self.alg(), "kid": self.kid, "typ": "JWT"}), claims)
    }

    /// A token with this header, whatever it says.
    ///
    /// # Errors
    /// Where the system has no randomness.
    pub fn sign_as(&self, header: &Value, claims: &Value) -> Result<String> {
        self.sign_text(&header.to_string(), &claims.to_string())
    }

    /// A token of these two texts, whatever they are.
    ///
    /// # Errors
    /// Where the system has no randomness.
    pub fn sign_text(&self, header: &str, claims: &str) -> Result<String> {
        let signed = format!("{}.{}", URL_SAFE_NO_PAD.encode(header), URL_SAFE_NO_PAD.encode(claims));
        let random = SystemRandom::new();
        let signature = match &self.pair {
            Pair::Rsa(pair) => {
                let mut signature = vec![0; pair.public().modulus_len()];
                pair.sign(&RSA_PKCS1_SHA256, &random, signed.as_bytes(), &mut signature).map_err(|_| anyhow!("cannot sign"))?;
                signature
            }
            Pair::P256(pair) => pair.sign(&random, signed.as_bytes()).map_err(|_| anyhow!("cannot sign"))?.as_ref().to_vec(),
            Pair::Ed25519(pair) => pair.sign(signed.as_bytes()).as_ref().to_vec(),
        };
        Ok(format!("{signed}.{}", URL_SAFE_NO_PAD.encode(signature)))
    }
}

/// A token whose "signature" is an HMAC with this secret.
#[must_use]
pub fn hmac_token(secret: &[u8], kid: &str, claims: &Value) -> String {
    let header = json!({"alg": "HS256", "kid": kid, "typ": "JWT"}).to_string();
    let signed = format!("{}.{}", URL_SAFE_NO_PAD.encode(header), URL_SAFE_NO_PAD.encode(claims.to_string()));
    let tag = ring::hmac::sign(&ring::hmac::Key::new(ring::hmac::HMAC_SHA256, secret), signed.as_bytes());
    format!("{signed}.{}", URL_SAFE_NO_PAD.encode(tag))
}

/// A set of these keys.
#[must_use]
pub fn jwks(signers: &[&Signer]) -> Value {
    json!({"keys": signers.iter().map(|signer| signer.jwk()).collect::<Vec<_>>()})
}

/// So many seconds from now, as tokens write times.
#[must_use]
pub fn seconds_from_now(seconds: i64) -> i64 {
    let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    i64::try_from(now.as_secs()).unwrap_or_default() + seconds
}

/// What an issuer answers, and how often it was asked, by path.
#[derive(Debug, Default)]
struct Served {
    answers: HashMap<String, Answer>,
    asked: HashMap<String, usize>,
    last: Option<(String, String)>,
    body: String,
}

/// An answer of an issuer's.
#[derive(Debug, Clone)]
pub struct Answer {
    /// The status.
    pub status: u16,
    /// One more header, by its name.
    pub header: Option<(&'static str, String)>,
    /// The body.
    pub body: String,
}

type Shared = Arc<Mutex<Served>>;

/// An issuer of tokens, over HTTP on loopback: `/.well-known/openid-configuration` names `/keys`. It ends when it is dropped.
#[derive(Debug)]
pub struct Issuer {
    address: SocketAddr,
    served: Shared,
    serving: Option<JoinHandle<()>>,
}

fn lock(served: &Shared) -> MutexGuard<'_, Served> {
    served.lock().unwrap_or_else(PoisonError::into_inner)
}

async fn answer(State(served): State<Shared>, uri: Uri, headers: HeaderMap, body: String) -> Response {
    let mut served = lock(&served);
    let authorization = headers.get("authorization").and_then(|value| value.to_str().ok()).unwrap_or_default();
    served.last = Some((uri.to_string(), authorization.to_owned()));
    served.body = body;
    *served.asked.entry(uri.path().to_owned()).or_default() += 1;
    let Some(Answer { status, header, body }) = served.answers.get(uri.path()).cloned() else {
        return StatusCode::NOT_FOUND.into_response();
    };
    let status = StatusCode::from_u16(status).unwrap_or(StatusCode::INTERNAL_SERVER_ERROR);
    match header {
        Some((name, value)) => (status, [(name, value)], body).into_response(),
        None => (status, body).into_response(),
    }
}

impl Issuer {
    /// An issuer that publishes these keys.
    ///
    /// # Errors
    /// Where it cannot listen.
    pub async fn start(keys: &[&Signer]) -> Result<Self> {
        let mut issuer = Self::away()?;
        issuer.publish(keys);
        issuer.come().await?;
        Ok(issuer)
    }

    /// An issuer that has an address, and is not there.
    ///
    /// # Errors
    /// Where no port is free.
    pub fn away() -> Result<Self> {
        let address = std::net::TcpListener::bind("127.0.0.1:0").and_then(|listener| listener.local_addr())?;
        let issuer = Self { address, served: Shared::default(), serving: None };
        let about = json!({"issuer": issuer.url(), "jwks_uri": format!("{}/keys", issuer.url())});
        issuer.answer("/.well-known/openid-configuration", Answer { status: 200, header: None, body: about.to_string() });
        Ok(issuer)
    }

    /// Begins to serve, at the address that it has had.
    ///
    /// # Errors
    /// Where it cannot listen.
    pub async fn come(&mut self) -> Result<()> {
        let listener = tokio::net::TcpListener::bind(self.address).await.context("cannot listen as an issuer")?;
        let router = Router::new().fallback(answer).with_state(Arc::clone(&self.served));
        self.serving = Some(tokio::spawn(async move {
            let _ = axum::serve(listener, router).await;
        }));
        Ok(())
    }

    /// What its tokens name as their issuer.
    #[must_use]
    pub fn url(&self) -> String {
        format!("http://{}", self.address)
    }

    /// Publishes these keys from now on.
    pub fn publish(&self, keys: &[&Signer]) {
        self.answer("/keys", Answer { status: 200, header: None, body: jwks(keys).to_string() });
    }

    /// Answers this at a path from now on.
    pub fn answer(&self, path: &str, answer: Answer) {
        lock(&self.served).answers.insert(path.to_owned(), answer);
    }

    /// How often a path was asked for.
    #[must_use]
    pub fn asked(&self, path: &str) -> usize {
        lock(&self.served).asked.get(path).copied().unwrap_or_default()
    }

    /// The path and query of the last request, and its authorization.
    #[must_use]
    pub fn last(&self) -> Option<(String, String)> {
        lock(&self.served).last.clone()
    }

    /// The body of the last request.
    #[must_use]
    pub fn last_body(&self) -> String {
        lock(&self.served).body.clone()
    }

    /// How often its keys were asked for.
    #[must_use]
    pub fn fetches(&self) -> usize {
        self.asked("/keys")
    }
}

impl Drop for Issuer {
    fn drop(&mut self) {
        if let Some(serving) = self.serving.take() {
            serving.abort();
        }
    }
}
