//! What a controller tells of itself over HTTP: `/metrics` in the text form of Prometheus, `/healthz` for whoever restarts what is not well,
//! `/readyz` for whoever sends work.
//!
//! Two kinds of metrics: what happens is counted where it happens, in [`Counts`], [`StoreCounts`] and [`Rpcs`]; what is, is looked up at each
//! scrape, by [`Live`]. Nobody signs in here: the names of jobs that ended stand here, and nothing else that users make. The number
//! of series is bounded, by the files of this folder.

mod counts;
mod live;
mod rpcs;
mod store;
mod webhooks;

use std::fmt;
use std::net::SocketAddr;
use std::sync::Arc;

use axum::Router;
use axum::http::{StatusCode, header};
use axum::response::IntoResponse;
use axum::routing::get;
use prometheus_client::encoding::text;
use prometheus_client::metrics::info::Info;
use prometheus_client::registry::Registry;
use tokio::net::TcpListener;
use tokio_util::sync::CancellationToken;

pub(crate) use counts::Counts;
use live::Live;
pub(crate) use rpcs::{Observed, Rpcs};
pub(crate) use store::{Counted, StoreCounts};
pub(crate) use webhooks::WebhookCounts;

use crate::archive::Archive;
use crate::fleet::Fleet;
use crate::listen::Certificates;
use crate::losses::Judge;
use crate::room::Room;
use crate::scheduler::Scheduler;
use crate::webhooks::Webhooks;

/// A metric's one label and its value.
type Label = [(&'static str, &'static str); 1];

/// Everything that is looked at.
#[derive(Debug)]
pub(crate) struct Sources {
    pub(crate) counts: Counts,
    pub(crate) store: StoreCounts,
    pub(crate) rpcs: Rpcs,
    pub(crate) fleet: Arc<Fleet>,
    pub(crate) scheduler: Arc<Scheduler>,
    pub(crate) room: Arc<Room>,
    pub(crate) archive: Option<Archive>,
    pub(crate) certificates: Option<Arc<Certificates>>,
    pub(crate) webhooks: Webhooks,
}

/// Everything that is to be scraped.
fn registry(sources: Sources) -> Registry {
    let Sources { counts, store, rpcs, fleet, scheduler, room, archive, certificates, webhooks } = sources;
    let mut registry = Registry::with_prefix("octavius");
    let labels = vec![("version".to_owned(), env!("CARGO_PKG_VERSION").to_owned())];
    registry.register("build", "The version that runs", Info::new(labels));
    counts.register(&mut registry);
    store.register(&mut registry);
    registry.register_collector(Box::new(rpcs));
    registry.register_collector(Box::new(Live { fleet, scheduler, room, archive, certificates, webhooks }));
    registry
}

/// Whether the controller is well, and whether to send it work.
#[derive(Debug, Clone)]
pub(crate) struct Health {
    /// A part of it has failed.
    pub(crate) failed: CancellationToken,
    /// It stops.
    pub(crate) stopping: CancellationToken,
    /// Knows whether the store is away.
    pub(crate) judge: Arc<Judge>,
}

impl Health {
    /// Why it is to be started again, if it is. A store that is away is no reason: another start would find it as far away.
    fn is_broken(&self) -> Option<&'static str> {
        self.failed.is_cancelled().then_some("a part of the controller failed\n")
    }

    /// Why others are to be asked, if they are.
    fn is_not_ready(&self) -> Option<&'static str> {
        let stops = || self.stopping.is_cancelled().then_some("the controller is stopping\n");
        let away = || self.judge.is_store_away().then_some("the store does not answer\n");
        self.is_broken().or_else(stops).or_else(away)
    }
}

/// The media type of what `/metrics` answers.
const OPEN_METRICS: &str = "application/openmetrics-text; version=1.0.0; charset=utf-8";

/// Where metrics are served.
#[derive(Debug)]
pub(crate) struct Metrics {
    listener: TcpListener,
    router: Router,
}

impl Metrics {
    /// Listens at `address`; nothing is answered before [`Metrics::serve`].
    pub(crate) async fn bind(address: SocketAddr, sources: Sources, health: Health) -> std::io::Result<Self> {
        let registry = Arc::new(registry(sources));
        let metrics = async move || match encode(&registry) {
            Ok(text) => ([(header::CONTENT_TYPE, OPEN_METRICS)], text).into_response(),
            Err(error) => {
                tracing::error!(%error, "the metrics cannot be written");
                StatusCode::INTERNAL_SERVER_ERROR.into_response()
            }
        };
        let answer = |trouble: Option<&'static str>| match trouble {
            None => (StatusCode::OK, "ok\n"),
            Some(trouble) => (StatusCode::SERVICE_UNAVAILABLE, trouble),
        };
        let ready = health.clone();
        let lives = async move || answer(health.is_broken());
        let is_ready = async move || answer(ready.is_not_ready());
        let router = Router::new().route("/metrics", get(metrics)).route("/healthz", get(lives)).route("/readyz", get(is_ready));
        Ok(Self { listener: TcpListener::bind(address).await?, router })
    }

    /// Where it listens.
    pub(crate) fn address(&self) -> std::io::Result<SocketAddr> {
        self.listener.local_addr()
    }

    /// Serves until `shutdown`. Connections that are under way then are not waited for: a scrape can be made again.
    pub(crate) async fn serve(self, shutdown: CancellationToken) {
        tokio::select! {
            served = axum::serve(self.listener, self.router) => {
                if let Err(error) = served {
                    tracing::error!(%error, "metrics are not served any more");
                }
            }
            () = shutdown.cancelled() => {}
        }
    }
}

fn encode(registry: &Registry) -> Result<String, fmt::Error> {
    let mut text = String::new();
    text::encode(&mut text, registry)?;
    Ok(text)
}
