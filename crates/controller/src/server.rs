//! A controller's life: everything is put together, served, and stopped in order.

use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use futures::FutureExt as _;
use octavius_core::dispatch::Strategy;
use octavius_core::{ExecutionId, Timing};
use octavius_proto::pem::PemError;
use octavius_proto::v1::admin_service_server::AdminServiceServer;
use octavius_proto::v1::catalog_service_server::CatalogServiceServer;
use octavius_proto::v1::execution_service_server::ExecutionServiceServer;
use octavius_proto::v1::executor_service_server::ExecutorServiceServer;
use octavius_proto::v1::log_service_server::LogServiceServer;
use octavius_proto::{DESCRIPTORS, MAX_APPEND_BYTES, MAX_MESSAGE_BYTES, WINDOW_BYTES};
use octavius_store::record::ControllerRecord;
use octavius_store::{Commit, Store, StoreError, Txn, codec, key};
use tokio::sync::watch;
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;
use tonic::service::Routes;
use tonic::transport::Server;
use tower::Layer as _;

use crate::admin::Admin;
use crate::archive::{Archive, ArchiveError};
use crate::audit::{AuditExport, Refusals};
use crate::auth::AuthLayer;
use crate::catalog_service::{CatalogRpcs, MAX_APPLY_BYTES, Turns};
use crate::catalogs::{self, Catalogs};
use crate::clock::Clock;
use crate::condition::Condition;
use crate::definitions::Definitions;
use crate::engine::Engine;
use crate::executions::Executions;
use crate::executors::Executors;
use crate::fleet::Fleet;
use crate::heads::Heads;
use crate::issuers::{IssuerConfig, Issuers};
use crate::keeper::{Keeper, Retention};
use crate::limits::{Limits, RequestLimits};
use crate::listen::{Certificates, Listener, Speaks, TlsFiles};
use crate::logs::settle::Settler;
use crate::logs::{Keeping, Logs};
use crate::losses::Judge;
use crate::metrics::{Counted, Health, Metrics, Rpcs, Sources, StoreCounts};
use crate::mirror::Mirrors;
use crate::origins::Origins;
use crate::page::{Page, PageListen};
use crate::pauses::{self, Pauses};
use crate::queue::SharedQueue;
use crate::reconcile::Reconciler;
use crate::room::Room;
use crate::scheduler::{self, Scheduler};
use crate::sealing::{self, Encryption, Sealer};
use crate::slices;
use crate::ticks::{self, Ticker};
use crate::tokens::{self, BootstrapError, Tokens};
use crate::traced::TraceLayer;
use crate::webhooks::{WebhookConfig, Webhooks};

/// Calls that one connection may have under way: a client needs a few, a flood is held here.
const STREAMS_PER_CONNECTION: u32 = 1024;

/// Largest message of a call that takes no token: the name of a service, or of a symbol.
const MAX_PUBLIC_BYTES: usize = 4096;

/// Largest headers of a call.
const HEADER_BYTES: u32 = 16 * 1024;

/// How often an idle connection is asked whether it lives, and how long the answer may take: a half-open one is found within 30 s.
pub(crate) const KEEPALIVE: Duration = Duration::from_secs(15);

/// How long a stop waits for calls that are under way.
const STOP_WITHIN: Duration = Duration::from_secs(10);

/// How long a stop then waits for answers to be taken: a client that does not read holds nobody up.
const FLUSH_WITHIN: Duration = Duration::from_secs(1);

/// Refused calls are counted, for the audit trail, in so many windows of a keeper's turn: each is a minute.
const COUNTS_OF_A_TURN: u32 = 5;

/// What a controller needs to know.
#[derive(Debug, Clone)]
pub struct ControllerOptions {
    /// Where everything is kept.
    pub store: Arc<dyn Store>,
    /// Where it listens; port 0 takes a free one.
    pub listen: SocketAddr,
    /// The certificates of TLS; in the clear without.
    pub tls: Option<TlsFiles>,
    /// Where an admin's token is written (0600) when the store knows no admin, or read from when the file is there.
    pub bootstrap_token_file: PathBuf,
    /// Durations.
    pub timing: Timing,
    /// How long what is over is kept.
    pub retention: Retention,
    /// Where logs are kept; without one, the beginning and the end of each stay in the store.
    pub archive: Option<Archive>,
    /// Most bytes that are kept of one attempt's log where its job does not say; without an archive, where it says more, too.
    pub log_limit: u64,
    /// Whether, and where, the audit trail is exported.
    pub audit_export: AuditExport,
    /// Whether the controllers have the store forget what was replaced more than a few minutes ago. Not where etcd is shared with others
    /// who see to that; where nobody does, the store grows until it is full.
    pub compact: bool,
    /// Who gets the next execution, of the executors that fit.
    pub strategy: Strategy,
    /// How sensitive arguments are kept.
    pub encryption: Encryption,
    /// What tells the time: [`Clock::default`], but in tests.
    pub clock: Clock,
    /// What one caller can ask of it.
    pub limits: RequestLimits,
    /// Whose JSON Web Tokens are taken, beside the tokens that the store knows.
    pub issuers: Vec<IssuerConfig>,
    /// Who is told what comes of executions. All controllers of a store have the same ones.
    pub webhooks: Vec<WebhookConfig>,
    /// Where metrics are served over HTTP, in clear and to whoever asks; nowhere where it is none.
    pub metrics_listen: Option<SocketAddr>,
    /// Where and how the web page is served; nowhere where it is none.
    pub page: Option<PageListen>,
}

/// Why a controller could not begin.
#[derive(Debug, thiserror::Error)]
pub enum ControllerError {
    /// The address cannot be listened on.
    #[error("cannot listen on {address}")]
    Listen {
        /// The address.
        address: SocketAddr,
        /// Why.
        source: Box<dyn std::error::Error + Send + Sync>,
    },
    /// The certificates cannot be used.
    #[error(transparent)]
    Certificates(#[from] PemError),
    /// The store does not answer.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// The archive does not answer, or is not the store's.
    #[error(transparent)]
    Archive(#[from] ArchiveError),
    /// A backup is being restored into the store, or its restore was interrupted.
    #[error("a backup was being restored into the store, and not all of it is there: run the restore again, or empty the store")]
    Restoring,
    /// The audit trail cannot be exported.
    #[error("cannot write the audit trail to {path}")]
    AuditExport {
        /// The folder.
        path: PathBuf,
        /// Why.
        source: std::io::Error,
    },
    /// The first admin's token could not be written.
    #[error(transparent)]
    Bootstrap(#[from] BootstrapError),
    /// The protos' own descriptors cannot be served: a fault of ours.
    #[error("cannot serve reflection")]
    Reflection(#[from] tonic_reflection::server::Error),
}

/// A running controller.
#[derive(Debug)]
pub struct Controller {
    address: SocketAddr,
    metrics_address: Option<SocketAddr>,
    page_address: Option<SocketAddr>,
    id: String,
    shutdown: CancellationToken,
    failed: CancellationToken,
    tasks: TaskTracker,
    serving: JoinHandle<Result<(), tonic::transport::Error>>,
}

impl Controller {
    /// Starts a controller; once this returns, it serves.
    ///
    /// # Errors
    /// Where it cannot listen, the store does not answer, or the first admin's token cannot be written.
    pub async fn start(options: ControllerOptions) -> Result<Self, ControllerError> {
        let ControllerOptions {
            store,
            listen,
            tls,
            bootstrap_token_file,
            timing,
            retention,
            archive,
            log_limit,
            audit_export,
            compact,
            strategy,
            encryption,
            clock,
            limits,
            issuers,
            webhooks,
            metrics_listen,
            page,
        } = options;
        if let (Err(source), AuditExport::Folder(path)) = (audit_export.prepare(), &audit_export) {
            return Err(ControllerError::AuditExport { path: path.clone(), source });
        }
        let store_counts = StoreCounts::default();
        let store: Arc<dyn Store> = Arc::new(Counted::new(store, store_counts.clone()));
        let certificates = tls.map(Certificates::load).transpose()?.map(Arc::new);
        let id = identity(&*store).await?;
        match &archive {
            Some(archive) => archive.claim(&*store, &id).await?,
            None => Archive::check_absent(&*store).await?,
        }
        let sealer = Sealer::new(encryption);
        sealing::tell_keys(&*store, &sealer).await?;
        let tokens = Arc::new(Tokens::new(Arc::clone(&store), timing.executor_token_life));
        tokens.bootstrap(&bootstrap_token_file).await?;

        let listener = Listener::bind(listen, certificates.clone(), Speaks::Grpc).map_err(listen_error(listen))?;
        let address = listener.local_addr().map_err(listen_error(listen))?;
        let issuers = Arc::new(Issuers::new(issuers));
        let bind_page = |page: PageListen| {
            let at = page.address;
            let page = Page::bind(page, certificates.clone(), &issuers).map_err(listen_error(at))?;
            let address = page.address().map_err(listen_error(at))?;
            Ok::<_, ControllerError>((page, address))
        };
        let page_url = page.as_ref().and_then(|page| page.url.clone());
        let (page, page_address) = page.map(bind_page).transpose()?.unzip();

        let shutdown = CancellationToken::new();
        let tasks = TaskTracker::new();
        let engine = Engine::new(Arc::clone(&store), timing, clock.clone(), sealer.clone()).telling(webhooks.into());
        let webhooks = Webhooks::new(Arc::clone(&store), &engine, timing, page_url.as_ref());
        let definitions = Arc::new(Definitions::new(Arc::clone(&store)));
        let catalogs = Arc::new(Catalogs::new(Arc::clone(&store), Arc::clone(&definitions)));
        let queue = SharedQueue::new(strategy, u32::from(address.port()), clock.clone());
        let fleet = Arc::new(Fleet::new(clock.clone(), queue));
        let pauses = Arc::new(Pauses::new(Arc::clone(&store), Arc::clone(&fleet), clock.clone()));
        let scheduler = Arc::new(Scheduler::new(
            Arc::clone(&store),
            engine.clone(),
            Arc::clone(&definitions),
            Origins::new(Arc::clone(&catalogs)),
            Arc::clone(&fleet),
            Arc::clone(&pauses),
        ));
        let failed = CancellationToken::new();
        let judge = Arc::new(Judge::new(&timing, clock.clone()));
        let mirrors = Mirrors { store: Arc::clone(&store), judge: Arc::clone(&judge), shutdown: shutdown.clone() };
        let peer = ExecutionId::generate().to_string();
        let told = watch::Sender::new(None);
        tasks.spawn(watched(failed.clone(), webhooks.clone().run(mirrors.clone(), told.subscribe())));
        let slices = slices::run(peer, Arc::clone(&scheduler), told, mirrors.clone(), timing.ping_interval, timing.ping_deadline);
        tasks.spawn(watched(failed.clone(), slices));
        tasks.spawn(watched(failed.clone(), catalogs::follow(Arc::clone(&catalogs), mirrors.clone())));
        tasks.spawn(watched(failed.clone(), tokens::follow(Arc::clone(&tokens), mirrors.clone())));
        let noted = Arc::clone(&tokens);
        let stop = shutdown.clone();
        tasks.spawn(watched(failed.clone(), async move { noted.note_uses(timing.keep_interval, stop).await }));
        let (trusted, stop) = (Arc::clone(&issuers), shutdown.clone());
        tasks.spawn(watched(failed.clone(), async move { trusted.run(stop).await }));
        tasks.spawn(watched(failed.clone(), pauses::follow(Arc::clone(&pauses), mirrors.clone())));
        tasks.spawn(watched(failed.clone(), scheduler::mirror(Arc::clone(&scheduler), mirrors.clone())));
        tasks.spawn(watched(failed.clone(), Arc::clone(&scheduler).run(shutdown.clone())));
        let reconciler = Reconciler {
            store: Arc::clone(&store),
            engine: engine.clone(),
            fleet: Arc::clone(&fleet),
            scheduler: Arc::clone(&scheduler),
            judge: Arc::clone(&judge),
            timing,
        };
        tasks.spawn(watched(failed.clone(), reconciler.run(shutdown.clone())));
        let room = Arc::new(Room::default());
        tasks.spawn(watched(failed.clone(), Arc::clone(&room).watch(Arc::clone(&store), timing, shutdown.clone())));
        let heads: Arc<Heads> = Arc::default();
        let keeping = Keeping { archive: archive.clone(), limit: log_limit };
        let (settler, settling) = Settler::new(Arc::clone(&store), engine.clone(), Arc::clone(&heads), keeping.clone(), timing);
        tasks.spawn(watched(failed.clone(), settler.run(shutdown.clone())));
        let keeper = Keeper::new(Arc::clone(&store), timing, retention, archive.clone(), audit_export, compact, sealer);
        tasks.spawn(watched(failed.clone(), keeper.run(shutdown.clone())));

        let refusals = Arc::new(Refusals::new(Arc::clone(&store), timing.keep_interval / COUNTS_OF_A_TURN, tasks.clone()));
        tasks.spawn(watched(failed.clone(), Arc::clone(&refusals).run(shutdown.clone())));

        let rpcs = Rpcs::default();
        let mut metrics_address = None;
        if let Some(listen) = metrics_listen {
            let sources = Sources {
                counts: engine.counts.clone(),
                store: store_counts,
                rpcs: rpcs.clone(),
                fleet: Arc::clone(&fleet),
                scheduler: Arc::clone(&scheduler),
                room: Arc::clone(&room),
                archive: keeping.archive.clone(),
                certificates: certificates.clone(),
                webhooks: webhooks.clone(),
            };
            let health = Health { failed: failed.clone(), stopping: shutdown.clone(), judge: Arc::clone(&judge) };
            let metrics = Metrics::bind(listen, sources, health).await.map_err(listen_error(listen))?;
            metrics_address = Some(metrics.address().map_err(listen_error(listen))?);
            tasks.spawn(metrics.serve(shutdown.clone()));
        }

        let executions = Executions {
            store: Arc::clone(&store),
            engine: engine.clone(),
            catalogs: Arc::clone(&catalogs),
            definitions: Arc::clone(&definitions),
            scheduler,
            room: Arc::clone(&room),
            webhooks: webhooks.clone(),
            timing,
            tasks: tasks.clone(),
            shutdown: shutdown.clone(),
        };
        let asked = Arc::clone(&pauses);
        let ticker = Arc::new(Ticker::new(executions.clone(), Arc::new(move |job| asked.is_paused(job).is_some())));
        tasks.spawn(watched(failed.clone(), ticks::mirror(Arc::clone(&ticker), mirrors)));
        let (asked, stop) = (Arc::clone(&pauses), shutdown.clone());
        tasks.spawn(watched(failed.clone(), async move {
            // Nothing fires before it is known what is paused.
            tokio::select! {
                () = asked.known() => ticker.run(stop).await,
                () = stop.cancelled() => {}
            }
        }));
        let logs = Logs {
            store: Arc::clone(&store),
            engine: engine.clone(),
            executions: executions.clone(),
            heads: Arc::clone(&heads),
            feeds: Arc::default(),
            keeping,
            room: Arc::clone(&room),
            tasks: tasks.clone(),
            shutdown: shutdown.clone(),
        };
        let executors = Executors {
            store: Arc::clone(&store),
            engine,
            fleet,
            tokens: Arc::clone(&tokens),
            judge,
            heads,
            settling,
            timing,
            controller_id: id.clone(),
            tasks: tasks.clone(),
            shutdown: shutdown.clone(),
        };
        let catalog = CatalogRpcs {
            catalogs: Arc::clone(&catalogs),
            pauses: Arc::clone(&pauses),
            definitions,
            room: Arc::clone(&room),
            clock: clock.clone(),
            turns: Turns::default(),
            controller_id: id.clone(),
            shutdown: shutdown.clone(),
        };
        let condition = Condition { store: Arc::clone(&store), room, archive, clock };
        let admin = Admin {
            store,
            condition,
            tokens: Arc::clone(&tokens),
            issuers: Arc::clone(&issuers),
            catalogs,
            pauses,
            webhooks,
            controller_id: id.clone(),
            tasks: tasks.clone(),
            shutdown: shutdown.clone(),
        };

        let (health, health_service) = tonic_health::server::health_reporter();
        health.set_serving::<ExecutionServiceServer<Executions>>().await;
        let reflection =
            tonic_reflection::server::Builder::configure().register_encoded_file_descriptor_set(DESCRIPTORS).build_v1()?;
        let auth = AuthLayer { tokens, issuers, refusals, limits: Arc::new(Limits::new(limits)), rpcs, tasks: tasks.clone() };
        let services = Routes::new(health_service.max_decoding_message_size(MAX_PUBLIC_BYTES))
            .add_service(reflection.max_decoding_message_size(MAX_PUBLIC_BYTES))
            .add_service(CatalogServiceServer::new(catalog).max_decoding_message_size(MAX_APPLY_BYTES))
            .add_service(ExecutionServiceServer::new(executions).max_decoding_message_size(MAX_MESSAGE_BYTES))
            .add_service(LogServiceServer::new(logs).max_decoding_message_size(MAX_APPEND_BYTES))
            .add_service(ExecutorServiceServer::new(executors).max_decoding_message_size(MAX_MESSAGE_BYTES))
            .add_service(AdminServiceServer::new(admin).max_decoding_message_size(MAX_MESSAGE_BYTES));
        if let Some(page) = page {
            // The page calls what gRPC clients call, through all that stands before it.
            let rpcs = octavius_page::Rpcs::new(TraceLayer.layer(auth.layer(services.clone())));
            tasks.spawn(watched(failed.clone(), page.serve(rpcs, shutdown.clone())));
        }
        let router = Server::builder()
            .max_concurrent_streams(STREAMS_PER_CONNECTION)
            .initial_stream_window_size(WINDOW_BYTES)
            .initial_connection_window_size(WINDOW_BYTES)
            .http2_max_header_list_size(HEADER_BYTES)
            .http2_keepalive_interval(Some(KEEPALIVE))
            .http2_keepalive_timeout(Some(KEEPALIVE))
            // without a grace: with one, tonic cuts what is under way, an executor's session or a follower, and gains nothing by it
            .max_connection_age(timing.connection_age)
            .layer(TraceLayer)
            .layer(auth)
            .add_routes(services);
        if let Some(certificates) = certificates {
            tasks.spawn(watched(failed.clone(), certificates.follow(shutdown.clone())));
        }
        let (incoming, accepting) = listener.serve();
        tasks.spawn(watched(failed.clone(), accepting));
        let stopping = shutdown.clone();
        let serving = tokio::spawn(router.serve_with_incoming_shutdown(incoming, async move { stopping.cancelled().await }));
        tracing::info!(%address, controller = id, "serving");
        Ok(Self { address, metrics_address, page_address, id, shutdown, failed, tasks, serving })
    }

    /// Where it listens.
    #[must_use]
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// Where it serves metrics, if it does.
    #[must_use]
    pub fn metrics_address(&self) -> Option<SocketAddr> {
        self.metrics_address
    }

    /// Where it serves the web page, if it does.
    #[must_use]
    pub fn page_address(&self) -> Option<SocketAddr> {
        self.page_address
    }

    /// The id of its store.
    #[must_use]
    pub fn id(&self) -> &str {
        &self.id
    }

    /// Returns when a part of it has failed without which it accepts executions and never runs them: a fault of ours. Whoever runs the
    /// controller then ends the process, and what restarts it begins from the store.
    pub async fn failed(&self) {
        self.failed.cancelled().await;
    }

    /// Stops it: ends streams, finishes calls that are under way, and returns when all is done, or after 11 s.
    pub async fn stop(self) {
        self.shutdown.cancel();
        self.tasks.close();
        if tokio::time::timeout(STOP_WITHIN, self.tasks.wait()).await.is_err() {
            tracing::warn!("some calls did not end in time");
        }
        match tokio::time::timeout(FLUSH_WITHIN, self.serving).await {
            Ok(Ok(Ok(()))) => {}
            Ok(Ok(Err(error))) => tracing::warn!(%error, "the server ended badly"),
            Ok(Err(error)) => tracing::error!(%error, "the server failed"),
            Err(_) => tracing::debug!("some clients did not take their answers"),
        }
    }
}

fn listen_error<E: Into<Box<dyn std::error::Error + Send + Sync>>>(address: SocketAddr) -> impl FnOnce(E) -> ControllerError {
    move |error| ControllerError::Listen { address, source: error.into() }
}

/// Runs one of the controller's loops, and tells where it fails.
async fn watched(failed: CancellationToken, work: impl Future<Output = ()>) {
    if std::panic::AssertUnwindSafe(work).catch_unwind().await.is_err() {
        tracing::error!("a loop of the controller failed"); // the panic itself has been printed
        failed.cancel();
    }
}

/// The id of a store, made by whoever starts first.
async fn identity(store: &dyn Store) -> Result<String, ControllerError> {
    let at = key::controller();
    loop {
        if let Some(entry) = store.get(&at).await? {
            return Ok(codec::decode::<ControllerRecord>(&entry)?.id);
        }
        if store.get(&key::restoring()).await?.is_some() {
            return Err(ControllerError::Restoring);
        }
        let id = ExecutionId::generate().to_string();
        let record = ControllerRecord { id: id.clone() };
        let txn = Txn::new().absent(at.clone()).absent(key::restoring()).put(at.clone(), codec::encode(&record));
        if let Commit::Done(_) = store.commit(txn).await? {
            return Ok(id);
        }
    }
}
