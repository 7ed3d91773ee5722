//! Whoever takes a webhook's messages: an HTTP server on loopback that checks each message's signature as the standard says, keeps it, and
//! answers as a test wants.

use std::collections::HashMap;
use std::net::{SocketAddr, TcpListener};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{SystemTime, UNIX_EPOCH};

use anyhow::{Context as _, Result, bail, ensure};
use axum::Router;
use axum::body::Bytes;
use axum::extract::State;
use axum::http::{HeaderMap, HeaderName, HeaderValue, Method, StatusCode, Uri};
use axum::response::{IntoResponse, Response};
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use serde_json::Value;
use tokio::sync::{oneshot, watch};

/// A message that came.
#[derive(Debug, Clone)]
pub struct Message {
    /// Its id, which is the same each time it comes.
    pub id: String,
    /// What it says.
    pub body: Value,
    /// The signatures, each with its version.
    pub signatures: Vec<String>,
    /// What was answered.
    pub status: u16,
}

impl Message {
    /// What it is about, like `execution.finished`.
    #[must_use]
    pub fn kind(&self) -> &str {
        self.body["type"].as_str().unwrap_or_default()
    }

    /// The execution that it is about.
    #[must_use]
    pub fn execution(&self) -> &str {
        self.body["data"]["id"].as_str().unwrap_or_default()
    }
}

#[derive(Debug)]
struct Shared {
    state: Mutex<Desk>,
    /// Whether answers are held back.
    held: watch::Sender<bool>,
}

#[derive(Debug)]
struct Desk {
    secret: Vec<u8>,
    status: u16,
    header: Option<(&'static str, String)>,
    /// What is answered to what is about certain executions.
    of: HashMap<String, u16>,
    messages: Vec<Message>,
    /// What was wrong with what came.
    wrong: Vec<String>,
}

impl Shared {
    fn lock(&self) -> MutexGuard<'_, Desk> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// It. It ends when it is dropped, and its port can be taken again by another.
#[derive(Debug)]
pub struct Receiver {
    address: SocketAddr,
    shared: Arc<Shared>,
    stop: Option<oneshot::Sender<()>>,
    serving: Option<std::thread::JoinHandle<()>>,
}

async fn take(State(shared): State<Arc<Shared>>, method: Method, uri: Uri, headers: HeaderMap, body: Bytes) -> Response {
    let mut held = shared.held.subscribe();
    let answer = {
        let mut desk = shared.lock();
        let mut status = desk.status;
        match read(&desk.secret, &method, &uri, &headers, &body) {
            Ok(message) => {
                status = desk.of.get(message.execution()).copied().unwrap_or(status);
                desk.messages.push(Message { status, ..message });
            }
            Err(error) => desk.wrong.push(format!("{error:#}")),
        }
        (status, desk.header.clone())
    };
    let _ = held.wait_for(|held| !held).await; // where the sender is gone, so is everything
    let mut response = StatusCode::from_u16(answer.0).unwrap_or(StatusCode::INTERNAL_SERVER_ERROR).into_response();
    if let Some((name, value)) = answer.1
        && let Ok(value) = HeaderValue::from_str(&value)
    {
        response.headers_mut().insert(HeaderName::from_static(name), value);
    }
    response
}

/// Reads a message, and holds it to the standard.
fn read(secret: &[u8], method: &Method, uri: &Uri, headers: &HeaderMap, body: &[u8]) -> Result<Message> {
    let header = |name: &str| -> Result<&str> { Ok(headers.get(name).with_context(|| format!("no header {name}"))?.to_str()?) };
    ensure!(method == Method::POST && uri.path() == "/hook/s3cr3t", "{method} {uri}");
    ensure!(header("content-type")? == "application/json");
    let (id, timestamp) = (header("webhook-id")?, header("webhook-timestamp")?);
    let now = SystemTime::now().duration_since(UNIX_EPOCH)?.as_secs();
    ensure!(timestamp.parse::<u64>()?.abs_diff(now) < 300, "it is of {timestamp}, and now it is {now}");
    let mut signed = format!("{id}.{timestamp}.").into_bytes();
    signed.extend_from_slice(body);
    let tag = ring::hmac::sign(&ring::hmac::Key::new(ring::hmac::HMAC_SHA256, secret), &signed);
    let expected = format!("v1,{}", STANDARD.encode(tag));
    let signatures: Vec<_> = header("webhook-signature")?.split(' ').map(str::to_owned).collect();
    ensure!(signatures.contains(&expected), "no signature is by the secret: {signatures:?}");
    Ok(Message { id: id.to_owned(), body: serde_json::from_slice(body)?, signatures, status: 0 })
}

/// The bytes of a secret as `octavius webhooks new-secret` writes it.
fn bytes_of(secret: &str) -> Result<Vec<u8>> {
    Ok(STANDARD.decode(secret.trim().strip_prefix("whsec_").context("not a secret")?)?)
}

impl Receiver {
    /// One that takes what is signed with `secret`.
    ///
    /// # Errors
    /// Where it cannot listen, or that is no secret.
    pub fn start(secret: &str) -> Result<Self> {
        Self::at(SocketAddr::from(([127, 0, 0, 1], 0)), secret)
    }

    /// The same at an address where another was, or nobody has been yet.
    ///
    /// # Errors
    /// Where it cannot listen there, or that is no secret.
    pub fn at(address: SocketAddr, secret: &str) -> Result<Self> {
        let listener = TcpListener::bind(address)?;
        listener.set_nonblocking(true)?;
        let address = listener.local_addr()?;
        let desk = Desk {
            secret: bytes_of(secret)?,
            status: 204,
            header: None,
            of: HashMap::new(),
            messages: Vec::new(),
            wrong: Vec::new(),
        };
        let shared = Arc::new(Shared { state: Mutex::new(desk), held: watch::Sender::new(false) });
        let router = Router::new().fallback(take).with_state(Arc::clone(&shared));
        let (stop, stopped) = oneshot::channel::<()>();
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
        let serving = std::thread::spawn(move || {
            runtime.block_on(async move {
                let Ok(listener) = tokio::net::TcpListener::from_std(listener) else { return };
                tokio::select! {
                    _ = axum::serve(listener, router) => {}
                    _ = stopped => {}
                }
            });
        });
        Ok(Self { address, shared, stop: Some(stop), serving: Some(serving) })
    }

    /// Where it listens.
    #[must_use]
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// The URL that is told. Its path is a secret, as with many.
    #[must_use]
    pub fn url(&self) -> String {
        url_at(self.address)
    }

    /// What it answers from now on.
    pub fn answer(&self, status: u16, header: Option<(&'static str, String)>) {
        let mut desk = self.shared.lock();
        (desk.status, desk.header) = (status, header);
    }

    /// What it answers from now on to what is about this execution.
    pub fn answer_of(&self, execution: &str, status: u16) {
        self.shared.lock().of.insert(execution.to_owned(), status);
    }

    /// Holds answers back, or lets them go. Messages are kept when they come.
    pub fn hold(&self, held: bool) {
        self.shared.held.send_replace(held);
    }

    /// From now on it takes what is signed with this one.
    ///
    /// # Errors
    /// Where that is no secret.
    pub fn trust(&self, secret: &str) -> Result<()> {
        self.shared.lock().secret = bytes_of(secret)?;
        Ok(())
    }

    /// How much has come.
    #[must_use]
    pub fn count(&self) -> usize {
        self.shared.lock().messages.len()
    }

    /// All that came, in order.
    ///
    /// # Errors
    /// Where something came that is no message, or not rightly signed.
    pub fn came(&self) -> Result<Vec<Message>> {
        let desk = self.shared.lock();
        if let Some(wrong) = desk.wrong.first() {
            bail!("{wrong}");
        }
        Ok(desk.messages.clone())
    }

    /// What it has taken, that is, answered with 2xx.
    ///
    /// # Errors
    /// As with [`Receiver::came`].
    pub fn taken(&self) -> Result<Vec<Message>> {
        Ok(self.came()?.into_iter().filter(|message| (200..300).contains(&message.status)).collect())
    }

    /// What was wrong with what came, which is then forgotten.
    pub fn wrong(&self) -> Vec<String> {
        std::mem::take(&mut self.shared.lock().wrong)
    }
}

/// The URL of one at this address.
#[must_use]
pub fn url_at(address: SocketAddr) -> String {
    format!("http://{address}/hook/s3cr3t")
}

impl Drop for Receiver {
    fn drop(&mut self) {
        if let Some(stop) = self.stop.take() {
            let _ = stop.send(()); // it may have ended by itself
        }
        if let Some(serving) = self.serving.take() {
            let _ = serving.join();
        }
    }
}
