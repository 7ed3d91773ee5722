//! The executor: a daemon that holds a session with a controller, runs the work it is given, and uploads the logs.
//!
//! Rooms: `session` talks with the controller, `book` says what is held, `attempt` leads one attempt through its life with a
//! `runner`, `upload` and `link`; `shim` is the small process beside each job, which shares only `journal` with the rest.

mod attempt;
mod book;
mod daemon;
mod ending;
mod journal;
mod link;
mod mask;
mod runner;
mod session;
mod shim;
mod sys;
mod upload;

pub use runner::kubernetes::{JobSetting, KubernetesConnection, KubernetesOptions, KubernetesPermission, check_kubernetes};

use std::fmt;
use std::io;
use std::path::PathBuf;
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
    /// Its own token.
    pub token: String,
    /// Its labels.
    pub labels: Labels,
    /// How many executions it runs at once, 1 or more.
    pub capacity: u32,
    /// Where it keeps what it runs; one executor at a time uses it.
    pub data_dir: PathBuf,
    /// What runs the jobs.
    pub runner: RunnerOptions,
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
        let Self { id, controllers, token: _, labels, capacity, data_dir, runner, connect_timeout, timing } = self;
        f.debug_struct("ExecutorOptions")
            .field("id", id)
            .field("controllers", controllers)
            .field("labels", labels)
            .field("capacity", capacity)
            .field("data_dir", data_dir)
            .field("runner", runner)
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

/// Registers an executor and returns the token that is its own.
///
/// # Errors
/// Where no controller answers, or the registration token is refused.
pub async fn register(
    controllers: &[Address],
    registration_token: &str,
    id: &ExecutorId,
    connect_timeout: Duration,
) -> Result<String, ExecutorError> {
    let connection = Connection::open(controllers, Some(registration_token), connect_timeout).await?;
    let mut request = tonic::Request::new(v1::RegisterExecutorRequest { id: id.to_string() });
    request.set_timeout(connect_timeout);
    let registered = connection.executors().register_executor(request).await;
    let refused = |status| ExecutorError::Registration { id: id.clone(), fault: Box::new(Fault::from_status(&status)) };
    Ok(registered.map_err(refused)?.into_inner().token)
}

/// Runs an executor until `shutdown`; jobs that run then go on running, for the next executor with the same data folder.
///
/// # Errors
/// Where it cannot begin at all: the data folder is in use, the token is refused for good.
pub async fn run(options: ExecutorOptions, shutdown: CancellationToken) -> Result<(), ExecutorError> {
    daemon::run(options, shutdown).await
}

/// What `octavius shim RUN_DIR` does; `arguments` are those after `shim`. Returns the exit code. To be called before anything else is
/// done in the process, above all before there are other threads: each job pays for what happens before.
#[must_use]
pub fn shim_main(arguments: &[std::ffi::OsString]) -> i32 {
    shim::main(arguments)
}
