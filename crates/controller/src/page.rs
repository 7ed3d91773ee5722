//! The web page's port: what `octavius-page` makes of the controller's services, for browsers. It listens as the gRPC port does, with the same
//! certificates and the same bounds on who is slow, silent or many.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use axum::Extension;
use hyper_util::rt::{TokioExecutor, TokioIo, TokioTimer};
use hyper_util::server::conn::auto::Builder;
use hyper_util::server::graceful::GracefulShutdown;
use hyper_util::service::TowerToHyperService;
use octavius_page::{OpenCode, PageOptions, Rpcs};
use octavius_proto::WINDOW_BYTES;
use tokio::task::JoinSet;
use tokio_stream::StreamExt as _;
use tokio_util::sync::CancellationToken;
use tonic::transport::server::Connected as _;
use url::Url;

use crate::issuers::Issuers;
use crate::listen::{Certificates, Listener, Speaks};
use crate::server::KEEPALIVE;

/// How long a browser may take for the headers of a request.
const HEADERS_WITHIN: Duration = Duration::from_secs(10);

/// Requests that one connection may have under way: a browser has a few, and an open page streams.
const STREAMS_PER_CONNECTION: u32 = 64;

/// Largest headers of a request.
const HEADER_BYTES: u32 = 16 * 1024;

/// How long a stop waits for pages that are under way. Streams end at once.
const STOP_WITHIN: Duration = Duration::from_secs(5);

/// How the page is served.
#[derive(Debug, Clone)]
pub struct PageListen {
    /// Where; port 0 takes a free one.
    pub address: SocketAddr,
    /// A code that signs in with a token that this process has: what `octavius dev` prints.
    pub open: Option<OpenCode>,
    /// The URL that browsers reach it at: identity providers send visitors back there. Without it, nobody signs in with one.
    pub url: Option<Url>,
    /// Whether browsers speak TLS with something that stands before it: cookies are for TLS alone then, too.
    pub behind_tls: bool,
}

/// The page, listening.
#[derive(Debug)]
pub(crate) struct Page {
    listener: Listener,
    options: PageOptions,
}

impl Page {
    /// Listens; nothing is answered before [`Page::serve`].
    pub(crate) fn bind(listen: PageListen, certificates: Option<Arc<Certificates>>, issuers: &Issuers) -> std::io::Result<Self> {
        let by_https = listen.url.as_ref().is_some_and(|url| url.scheme() == "https");
        let secure = certificates.is_some() || listen.behind_tls || by_https;
        let listener = Listener::bind(listen.address, certificates, Speaks::Pages)?;
        let origin = listen.url.as_ref().map(|url| url.origin().ascii_serialization());
        let providers = listen.url.map(|url| issuers.to_sign_in_with(&url)).unwrap_or_default();
        Ok(Self { listener, options: PageOptions { secure, origin, open: listen.open, providers } })
    }

    /// Where it listens.
    pub(crate) fn address(&self) -> std::io::Result<SocketAddr> {
        self.listener.local_addr()
    }

    /// Serves what `rpcs` answer, until `shutdown`.
    pub(crate) async fn serve(self, rpcs: Rpcs, shutdown: CancellationToken) {
        let router = octavius_page::router(rpcs, self.options);
        let http = http();
        let (mut incoming, accepting) = self.listener.serve();
        let open = GracefulShutdown::new();
        let mut connections = JoinSet::new(); // those that do not end in time end with it
        let taken = async {
            while let Some(Ok(connection)) = incoming.next().await {
                // Who is there goes along with each request, and so to the RPCs.
                let peer = Extension(connection.connect_info());
                let service = TowerToHyperService::new(router.clone().layer(peer));
                let served = open.watch(http.serve_connection(TokioIo::new(connection), service).into_owned());
                while connections.try_join_next().is_some() {}
                connections.spawn(async move {
                    if let Err(error) = served.await {
                        tracing::debug!(%error, "a browser's connection ended badly");
                    }
                });
            }
        };
        tokio::select! {
            ((), ()) = futures::future::join(taken, accepting) => {}
            () = shutdown.cancelled() => {}
        }
        let _ = tokio::time::timeout(STOP_WITHIN, open.shutdown()).await; // whoever is slow is cut off
    }
}

/// HTTP/1.1 and HTTP/2, as browsers choose.
fn http() -> Builder<TokioExecutor> {
    let mut http = Builder::new(TokioExecutor::new());
    http.http1().timer(TokioTimer::new()).header_read_timeout(HEADERS_WITHIN).max_buf_size(HEADER_BYTES as usize);
    http.http2()
        .timer(TokioTimer::new())
        .initial_stream_window_size(WINDOW_BYTES)
        .initial_connection_window_size(WINDOW_BYTES)
        .max_concurrent_streams(STREAMS_PER_CONNECTION)
        .max_header_list_size(HEADER_BYTES)
        .keep_alive_interval(KEEPALIVE)
        .keep_alive_timeout(KEEPALIVE);
    http
}
