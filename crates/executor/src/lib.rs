//! The executor: a daemon that holds a session with a controller, runs the work it is given, and uploads the logs.
//!
//! Rooms: `session` talks with the controller, `book` says what is held, `attempt` leads one attempt through its life with a
//! `runner`, `upload` and `link`; `shim` is the small process beside each job, which shares with the rest only what is in a run folder: `journal`,
//! `room`, `times`. What jobs print is brought by `carry` into the `spool` and by `upload` from there to a controller, at the `pace` of all.

mod attempt;
mod book;
mod carry;
mod credential;
mod daemon;
mod ending;
mod journal;
mod link;
mod mask;
mod offers;
mod pace;
mod room;
mod runner;
mod session;
mod shim;
mod spool;
mod sys;
mod times;
mod traced;
mod upload;

pub use credential::{Credential, CredentialError};
pub use offers::{FoundOffer, OfferError, SecretOffers, check_offers};
pub use runner::kubernetes::{
    JobSetting, KubernetesConnection, KubernetesOptions, KubernetesPermission, check_kubernetes, check_kubernetes_offers,
};

use std::fmt;
use std::io;
use std::path::{Path, PathBuf};
use std::time::Duration;

use octavius_core::{ExecutorId, Labels, Timing};
use octavius_proto::client::{Address, ConnectError, Connection};
use octavius_proto::{Fault, v1};
use tokio_util::sync::CancellationToken;

/// What an executor needs to know.
#[derive(Clone)]
pub struct ExecutorOptions {
    /// Its id, as registered.
    pub id: ExecutorId,
    /// Controllers; the first that answers is used.
    pub controllers: Vec<Address>,
    /// Its own tokens.
    pub credential: Credential,
    /// Its labels.
    pub labels: Labels,
    /// How many executions it runs at once, 1 or more.
    pub capacity: u32,
    /// Where it keeps what it runs; one executor at a time uses it.
    pub data_dir: PathBuf,
    /// What runs the jobs.
    pub runner: RunnerOptions,
    /// What jobs may be given, of what the executor can read.
    pub secrets: SecretOffers,
    /// How much output may wait on its disk until a controller has it, in bytes.
    pub spool_limit: u64,
    /// How many bytes of output it sends in a second, of all jobs together; none for no limit.
    pub log_rate: Option<u64>,
    /// Longest wait for a connection.
    pub connect_timeout: Duration,
    /// Durations.
    pub timing: Timing,
}

/// What runs an executor's jobs.
#[derive(Debug, Clone, PartialEq)]
pub enum RunnerOptions {
    /// Each job is a process on the executor's machine.
    Process {
        /// The program that is called as `PROGRAM shim RUN_DIR`: the `octavius` binary.
        shim: PathBuf,
    },
    /// Each job is a Kubernetes Job.
    Kubernetes(Box<KubernetesOptions>),
}

impl fmt::Debug for ExecutorOptions {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self {
            id,
            controllers,
            credential,
            labels,
            capacity,
            data_dir,
            runner,
            secrets,
            spool_limit,
            log_rate,
            connect_timeout,
            timing,
        } = self;
        f.debug_struct("ExecutorOptions")
            .field("id", id)
            .field("controllers", controllers)
            .field("credential", credential)
            .field("labels", labels)
            .field("capacity", capacity)
            .field("data_dir", data_dir)
            .field("runner", runner)
            .field("secrets", secrets)
            .field("spool_limit", spool_limit)
            .field("log_rate", log_rate)
            .field("connect_timeout", connect_timeout)
            .field("timing", timing)
            .finish_non_exhaustive()
    }
}

/// Why an executor ended or could not begin.
#[derive(Debug, thiserror::Error)]
pub enum ExecutorError {
    /// No controller answered.
    #[error(transparent)]
    Connect(#[from] ConnectError),
    /// The controller refused the registration, or did not answer it.
    #[error("executor `{id}` was not registered: {}", fault.message)]
    Registration {
        /// The executor.
        id: ExecutorId,
        /// What the controller answered.
        fault: Box<Fault>,
    },
    /// Its tokens cannot be kept, or used.
    #[error(transparent)]
    Credential(#[from] CredentialError),
    /// The controller does not take the executor's token.
    #[error("the controller does not take the token of executor `{id}` ({message}): register it again")]
    TokenRefused {
        /// The executor.
        id: ExecutorId,
        /// What the controller answered.
        message: String,
    },
    /// Another executor with the same id holds a session.
    #[error("another executor with the id `{id}` has a session: stop that one, or give this one an id of its own")]
    SessionExists {
        /// The executor.
        id: ExecutorId,
    },
    /// Another executor has the data folder.
    #[error("data folder {} is in use by another executor: stop that one, or give this one a folder of its own", path.display())]
    DataDirInUse {
        /// The folder.
        path: PathBuf,
    },
    /// The data folder is not usable.
    #[error("data folder {} is not usable", path.display())]
    DataDir {
        /// The folder.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// The cluster, or what is said of it, is not usable.
    #[error("the kubernetes runner cannot be used: {why}")]
    Kubernetes {
        /// What is wrong.
        why: String,
    },
    /// The capacity is 0.
    #[error("the capacity is 0: give the executor 1 slot or more")]
    NoCapacity,
}

/// Registers an executor, keeps its token in the data folder, and returns it. Repeated after its answer was lost, it is one registration.
///
/// # Errors
/// Where no controller answers, or the registration token is refused.
pub async fn register(
    controllers: &[Address],
    registration_token: &str,
    id: &ExecutorId,
    data_dir: &Path,
    connect_timeout: Duration,
) -> Result<Credential, ExecutorError> {
    let own = Credential::prepare(data_dir, id)?;
    let connection = Connection::open(controllers, Some(registration_token), connect_timeout).await?;
    let mut request = tonic::Request::new(v1::RegisterExecutorRequest { id: id.to_string(), token_digest: own.digest().into() });
    request.set_timeout(connect_timeout);
    let registered = connection.executors().register_executor(request).await;
    let refused = |status| match connection.trouble() {
        Some(trouble) => {
            let tried = vec![format!("{}: {trouble}", connection.address())];
            ConnectError::Untrusted { tried, trouble }.into()
        }
        None => ExecutorError::Registration { id: id.clone(), fault: Box::new(Fault::from_status(&status)) },
    };
    registered.map_err(refused)?;
    Ok(own.registered(data_dir)?)
}

/// Runs an executor until `shutdown`; jobs that run then go on running, for the next executor with the same data folder.
///
/// # Errors
/// Where it cannot begin at all: the data folder is in use, the token is refused for good.
pub async fn run(options: ExecutorOptions, shutdown: CancellationToken) -> Result<(), ExecutorError> {
    use tracing::Instrument as _;
    let line = tracing::info_span!("executor", executor = %options.id);
    daemon::run(options, shutdown).instrument(line).await
}

/// What `octavius shim RUN_DIR` does; `arguments` are those after `shim`. Returns the exit code. To be called before anything else is
/// done in the process, above all before there are other threads: each job pays for what happens before.
#[must_use]
pub fn shim_main(arguments: &[std::ffi::OsString]) -> i32 {
    shim::main(arguments)
}
