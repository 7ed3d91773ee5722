//! A controller's life: everything is put together, served, and stopped in order.

use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use futures::FutureExt as _;
use octavius_core::{ExecutionId, Timing};
use octavius_proto::v1::admin_service_server::AdminServiceServer;
use octavius_proto::v1::catalog_service_server::CatalogServiceServer;
use octavius_proto::v1::execution_service_server::ExecutionServiceServer;
use octavius_proto::v1::executor_service_server::ExecutorServiceServer;
use octavius_proto::v1::log_service_server::LogServiceServer;
use octavius_proto::{DESCRIPTORS, MAX_MESSAGE_BYTES, WINDOW_BYTES};
use octavius_store::record::ControllerRecord;
use octavius_store::{Commit, Store, StoreError, Txn, codec, key};
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;
use tonic::transport::Server;
use tonic::transport::server::TcpIncoming;

use crate::admin::Admin;
use crate::auth::AuthLayer;
use crate::catalog_service::{CatalogRpcs, MAX_APPLY_BYTES, Turns};
use crate::catalogs::{self, Catalogs};
use crate::definitions::Definitions;
use crate::engine::Engine;
use crate::executions::Executions;
use crate::executors::Executors;
use crate::fleet::Fleet;
use crate::heads::Heads;
use crate::keeper::{Keeper, Retention};
use crate::logs::Logs;
use crate::losses::Judge;
use crate::mirror::Mirrors;
use crate::origins::Origins;
use crate::reconcile::Reconciler;
use crate::room::Room;
use crate::scheduler::{self, Scheduler};
use crate::slices;
use crate::tokens::{self, BootstrapError, Tokens};

/// Calls that one connection may have under way: a client needs a few, a flood is held here.
const STREAMS_PER_CONNECTION: u32 = 1024;

/// Largest headers of a call.
const HEADER_BYTES: u32 = 16 * 1024;

/// How often an idle connection is asked whether it lives, and how long the answer may take: a half-open one is found within 30 s.
const KEEPALIVE: Duration = Duration::from_secs(15);

/// How long a stop waits for calls that are under way.
const STOP_WITHIN: Duration = Duration::from_secs(10);

/// How long a stop then waits for answers to be taken: a client that does not read holds nobody up.
const FLUSH_WITHIN: Duration = Duration::from_secs(1);

/// What a controller needs to know.
#[derive(Debug, Clone)]
pub struct ControllerOptions {
    /// Where everything is kept.
    pub store: Arc<dyn Store>,
    /// Where it listens; port 0 takes a free one.
    pub listen: SocketAddr,
    /// Where an admin's token is written (0600) when the store knows no admin, or read from when the file is there.
    pub bootstrap_token_file: PathBuf,
    /// Durations.
    pub timing: Timing,
    /// How long what is over is kept.
    pub retention: Retention,
    /// Whether the controllers have the store forget what was replaced more than a few minutes ago. Not where etcd is shared with others
    /// who see to that; where nobody does, the store grows until it is full.
    pub compact: bool,
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
    /// The store does not answer.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// A backup is being restored into the store, or its restore was interrupted.
    #[error("a backup was being restored into the store, and not all of it is there: run the restore again, or empty the store")]
    Restoring,
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
        let ControllerOptions { store, listen, bootstrap_token_file, timing, retention, compact } = options;
        let id = identity(&*store).await?;
        let tokens = Arc::new(Tokens::new(Arc::clone(&store)));
        tokens.bootstrap(&bootstrap_token_file).await?;

        let listen_error = |source| ControllerError::Listen { address: listen, source };
        let incoming = TcpIncoming::bind(listen).map_err(|error| listen_error(error.into()))?.with_nodelay(Some(true));
        let address = incoming.local_addr().map_err(|error| listen_error(error.into()))?;

        let shutdown = CancellationToken::new();
        let tasks = TaskTracker::new();
        let engine = Engine::new(Arc::clone(&store));
        let definitions = Arc::new(Definitions::new(Arc::clone(&store)));
        let catalogs = Arc::new(Catalogs::new(Arc::clone(&store), Arc::clone(&definitions)));
        let fleet = Arc::new(Fleet::default());
        let scheduler = Arc::new(Scheduler::new(
            engine.clone(),
            Arc::clone(&definitions),
            Origins::new(Arc::clone(&catalogs)),
            Arc::clone(&fleet),
        ));
        let failed = CancellationToken::new();
        let judge = Arc::new(Judge::new(&timing));
        let mirrors = Mirrors { store: Arc::clone(&store), judge: Arc::clone(&judge), shutdown: shutdown.clone() };
        let peer = ExecutionId::generate().to_string();
        let slices = slices::run(peer, Arc::clone(&scheduler), mirrors.clone(), timing.ping_interval, timing.ping_deadline);
        tasks.spawn(watched(failed.clone(), slices));
        tasks.spawn(watched(failed.clone(), catalogs::follow(Arc::clone(&catalogs), mirrors.clone())));
        tasks.spawn(watched(failed.clone(), tokens::follow(Arc::clone(&tokens), mirrors.clone())));
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
        let keeper = Keeper::new(Arc::clone(&store), timing, retention, compact);
        tasks.spawn(watched(failed.clone(), keeper.run(shutdown.clone())));

        let executions = Executions {
            store: Arc::clone(&store),
            engine: engine.clone(),
            catalogs: Arc::clone(&catalogs),
            definitions: Arc::clone(&definitions),
            scheduler,
            room: Arc::clone(&room),
            timing,
            tasks: tasks.clone(),
            shutdown: shutdown.clone(),
        };
        let heads: Arc<Heads> = Arc::default();
        let logs = Logs {
            store: Arc::clone(&store),
            engine: engine.clone(),
            executions: executions.clone(),
            heads: Arc::clone(&heads),
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
            timing,
            controller_id: id.clone(),
            tasks: tasks.clone(),
            shutdown: shutdown.clone(),
        };
        let catalog = CatalogRpcs {
            catalogs,
            definitions,
            room,
            turns: Turns::default(),
            controller_id: id.clone(),
            shutdown: shutdown.clone(),
        };
        let admin = Admin {
            store,
            tokens: Arc::clone(&tokens),
            controller_id: id.clone(),
            tasks: tasks.clone(),
            shutdown: shutdown.clone(),
        };

        let (health, health_service) = tonic_health::server::health_reporter();
        health.set_serving::<ExecutionServiceServer<Executions>>().await;
        let reflection =
            tonic_reflection::server::Builder::configure().register_encoded_file_descriptor_set(DESCRIPTORS).build_v1()?;
        let router = Server::builder()
            .max_concurrent_streams(STREAMS_PER_CONNECTION)
            .initial_stream_window_size(WINDOW_BYTES)
            .initial_connection_window_size(WINDOW_BYTES)
            .http2_max_header_list_size(HEADER_BYTES)
            .http2_keepalive_interval(Some(KEEPALIVE))
            .http2_keepalive_timeout(Some(KEEPALIVE))
            .layer(AuthLayer { tokens, tasks: tasks.clone() })
            .add_service(health_service)
            .add_service(reflection)
            .add_service(CatalogServiceServer::new(catalog).max_decoding_message_size(MAX_APPLY_BYTES))
            .add_service(ExecutionServiceServer::new(executions).max_decoding_message_size(MAX_MESSAGE_BYTES))
            .add_service(LogServiceServer::new(logs).max_decoding_message_size(MAX_MESSAGE_BYTES))
            .add_service(ExecutorServiceServer::new(executors).max_decoding_message_size(MAX_MESSAGE_BYTES))
            .add_service(AdminServiceServer::new(admin).max_decoding_message_size(MAX_MESSAGE_BYTES));
        let stopping = shutdown.clone();
        let serving = tokio::spawn(router.serve_with_incoming_shutdown(incoming, async move { stopping.cancelled().await }));
        tracing::info!(%address, controller = id, "serving");
        Ok(Self { address, id, shutdown, failed, tasks, serving })
    }

    /// Where it listens.
    #[must_use]
    pub fn address(&self) -> SocketAddr {
        self.address
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
