//! The line under a client's connection: the network, with TLS over it or without. It keeps what went wrong with TLS: HTTP/2 above it only tells
//! that it was cut.

use std::error::Error;
use std::io;
use std::pin::Pin;
use std::sync::{Arc, Mutex, PoisonError};
use std::task::{Context, Poll};
use std::time::Duration;

use http::uri::Scheme;
use http::{Uri, uri};
use hyper_util::client::legacy::connect::HttpConnector;
use hyper_util::rt::TokioIo;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::TcpStream;
use tokio_rustls::client::TlsStream;
use tokio_util::either::Either;
use tonic::transport::{Channel, Endpoint};
use tower::{Service as _, ServiceExt as _};

use crate::tls::{TLS_ONLY, Tls, TlsTrouble};

/// What an alert of TLS begins with, which is what a server of it answers to HTTP/2 in the clear: the record's type, and the version's first byte.
const ALERT: [u8; 2] = [0x15, 0x03];

/// What went wrong with TLS on the lines of one connection, which are made anew where they break.
#[derive(Debug, Clone, Default)]
pub(crate) struct Noted(Arc<Mutex<Option<TlsTrouble>>>);

impl Noted {
    /// What went wrong with the newest line.
    pub(crate) fn trouble(&self) -> Option<TlsTrouble> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    fn set(&self, trouble: Option<TlsTrouble>) {
        *self.0.lock().unwrap_or_else(PoisonError::into_inner) = trouble;
    }
}

/// Connects to a controller. `with` sets what there is to set of an endpoint.
pub(crate) async fn connect(
    uri: &Uri,
    tls: Option<Arc<Tls>>,
    noted: Noted,
    timeout: Duration,
    with: impl FnOnce(Endpoint) -> Endpoint,
) -> Result<Channel, tonic::transport::Error> {
    let mut http = HttpConnector::new();
    http.enforce_http(false);
    http.set_nodelay(true);
    http.set_connect_timeout(Some(timeout));
    let origin = with_scheme(uri, if tls.is_some() { Scheme::HTTPS } else { Scheme::HTTP });
    let connector = tower::service_fn(move |uri: Uri| {
        let (http, tls, noted) = (http.clone(), tls.clone(), noted.clone());
        async move { open(http, tls, noted, uri).await.map(TokioIo::new) }
    });
    // For tonic a line is always one in the clear: what is in it is not its matter. What the other side reads says https.
    with(Endpoint::from(with_scheme(uri, Scheme::HTTP)).origin(origin)).connect_with_connector(connector).await
}

fn with_scheme(uri: &Uri, scheme: Scheme) -> Uri {
    let mut parts = uri::Parts::from(uri.clone());
    parts.scheme = Some(scheme);
    Uri::from_parts(parts).unwrap_or_else(|_| uri.clone())
}

async fn open(
    mut http: HttpConnector,
    tls: Option<Arc<Tls>>,
    noted: Noted,
    uri: Uri,
) -> Result<Line, Box<dyn Error + Send + Sync>> {
    noted.set(None);
    let host = uri.host().unwrap_or_default().to_owned();
    let stream = http.ready().await?.call(uri).await?.into_inner();
    let io = match tls {
        None => Io::Left(stream),
        Some(tls) => Io::Right(Box::new(tls.shake_hands(&host, stream).await?)),
    };
    Ok(Line { io, noted, heard: false })
}

/// The network alone, or TLS over it.
type Io = Either<TcpStream, Box<TlsStream<TcpStream>>>;

struct Line {
    io: Io,
    noted: Noted,
    /// Whether the other side has said anything.
    heard: bool,
}

impl AsyncRead for Line {
    fn poll_read(self: Pin<&mut Self>, context: &mut Context<'_>, buffer: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        let before = buffer.filled().len();
        match &mut this.io {
            Io::Left(stream) => {
                let read = Pin::new(stream).poll_read(context, buffer);
                let said = buffer.filled().get(before..).unwrap_or_default();
                if !this.heard && !said.is_empty() {
                    this.heard = true;
                    let is_told = said.windows(TLS_ONLY.len()).any(|window| window == TLS_ONLY.as_bytes());
                    if is_told || said.starts_with(&ALERT) {
                        this.noted.set(Some(TlsTrouble::TlsOnly));
                    }
                }
                read
            }
            Io::Right(stream) => {
                let read = Pin::new(stream).poll_read(context, buffer);
                if let Poll::Ready(Err(error)) = &read
                    && let Some(trouble) = TlsTrouble::of(error)
                {
                    this.noted.set(Some(trouble));
                }
                read
            }
        }
    }
}

impl AsyncWrite for Line {
    fn poll_write(self: Pin<&mut Self>, context: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.get_mut().io).poll_write(context, bytes)
    }

    fn poll_flush(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.get_mut().io).poll_flush(context)
    }

    fn poll_shutdown(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.get_mut().io).poll_shutdown(context)
    }

    fn poll_write_vectored(
        self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffers: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.get_mut().io).poll_write_vectored(context, buffers)
    }

    fn is_write_vectored(&self) -> bool {
        self.io.is_write_vectored()
    }
}
