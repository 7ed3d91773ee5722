//! Connections to the API server: one over HTTP/2, where that is spoken, for all calls and watches, and one over HTTP/1.1 for each log that is
//! followed. Logs do not share one: of 100 MB of short lines, read over a shared connection, rotation took 30 MB before they were read.

use std::time::Duration;

use http::Uri;
use hyper_rustls::{FixedServerNameResolver, HttpsConnector, HttpsConnectorBuilder};
use hyper_util::client::legacy::Client as Http;
use hyper_util::client::legacy::connect::HttpConnector;
use hyper_util::rt::{TokioExecutor, TokioTimer};
use kube::client::{Body, ConfigExt as _};
use kube::{Client, Config};
use tower::timeout::Timeout;
use tower::util::BoxCloneSyncService;
use tower::{BoxError, ServiceBuilder};

use super::api::CALL;

/// Connections of logs that have ended which are kept for others.
const SPARE: usize = 4;
/// A connection that says nothing for so long is asked whether it lives, and has half of that to answer.
const SILENCE: Duration = Duration::from_secs(10);
/// The stream of a connection, over TLS or not.
type Stream = <HttpsConnector<HttpConnector> as tower::Service<Uri>>::Response;

/// Connections to an API server, made when they are used.
pub(super) struct Connections {
    calls: Client,
    logs: Client,
}

/// A client that speaks HTTP/1.1, and HTTP/2 where it may.
fn client(config: &Config, http2: bool) -> Result<Client, kube::Error> {
    let mut tcp = HttpConnector::new();
    tcp.enforce_http(false);
    tcp.set_nodelay(true);
    let mut tls = HttpsConnectorBuilder::new().with_tls_config(config.rustls_client_config()?).https_or_http();
    if let Some(name) = &config.tls_server_name {
        let name = name.clone().try_into().map_err(|error| kube::Error::Service(Box::new(error)))?;
        tls = tls.with_server_name_resolver(FixedServerNameResolver::new(name));
    }
    let tls = if http2 { tls.enable_all_versions().wrap_connector(tcp) } else { tls.enable_http1().wrap_connector(tcp) };
    let connector: BoxCloneSyncService<Uri, Stream, BoxError> = BoxCloneSyncService::new(Timeout::new(tls, CALL));
    let http: Http<_, Body> = Http::builder(TokioExecutor::new())
        .timer(TokioTimer::new())
        .pool_timer(TokioTimer::new())
        .pool_max_idle_per_host(SPARE)
        .http2_keep_alive_interval(SILENCE)
        .http2_keep_alive_timeout(SILENCE / 2)
        .build(connector);
    let service = ServiceBuilder::new()
        .layer(config.base_uri_layer())
        .option_layer(config.auth_layer()?)
        .layer(config.extra_headers_layer()?)
        .map_err(BoxError::from)
        .service(http);
    Ok(Client::new(service, config.default_namespace.clone()))
}

impl Connections {
    pub(super) fn new(config: Config) -> Result<Self, kube::Error> {
        let (calls, logs) = (client(&config, true)?, client(&config, false)?);
        if config.proxy_url.is_some() {
            // This build goes through no proxy, and kube says so.
            Client::try_from(config)?;
        }
        Ok(Self { calls, logs })
    }

    /// For calls and watches.
    pub(super) fn calls(&self) -> Client {
        self.calls.clone()
    }

    /// For logs.
    pub(super) fn logs(&self) -> Client {
        self.logs.clone()
    }
}
