//! An executor under test.

use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use octavius_core::{ExecutorId, Timing};
use octavius_executor::{Credential, ExecutorError, ExecutorOptions, RunnerOptions, SecretOffers};
use octavius_proto::client::Address;
use tokio::runtime::Runtime;
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;

use crate::controller::{Controller, TOKEN};

/// An executor's place: it can be started there again and again.
pub(crate) struct Place {
    folder: tempfile::TempDir,
    controllers: Vec<Address>,
    pub(crate) capacity: u32,
    pub(crate) token: String,
}

impl Place {
    pub(crate) fn near(controller: &Controller) -> Self {
        Self::among(&[controller])
    }

    /// Near several controllers, of which the first is tried first.
    pub(crate) fn among(controllers: &[&Controller]) -> Self {
        let _ = tracing_subscriber::fmt().with_env_filter("octavius_executor=debug").with_test_writer().try_init();
        let controllers = controllers.iter().map(|controller| Address::parse(&controller.address.to_string()).unwrap()).collect();
        Self { folder: tempfile::tempdir().unwrap(), controllers, capacity: 4, token: TOKEN.to_owned() }
    }

    pub(crate) fn data_dir(&self) -> PathBuf {
        self.folder.path().join("data")
    }

    /// Names in one of the data folder's folders.
    pub(crate) fn list(&self, folder: &str) -> Vec<String> {
        let entries = std::fs::read_dir(self.data_dir().join(folder)).into_iter().flatten();
        entries.map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect()
    }

    /// The only run folder.
    pub(crate) fn run_dir(&self) -> PathBuf {
        let names = self.list("runs");
        assert_eq!(names.len(), 1, "{names:?}");
        self.data_dir().join("runs").join(&names[0])
    }

    /// The lines of its journal.
    pub(crate) fn journal(&self) -> Vec<String> {
        let journal = std::fs::read_to_string(self.run_dir().join("journal")).unwrap_or_default();
        journal.lines().map(str::to_owned).collect()
    }

    /// Waits until an attempt is prepared.
    pub(crate) fn prepared(&self) {
        crate::until("an attempt is prepared", || self.list("runs").len() == 1 && self.journal().len() == 1);
    }

    pub(crate) fn options(&self) -> ExecutorOptions {
        ExecutorOptions {
            id: ExecutorId::new("e1").unwrap(),
            controllers: self.controllers.clone(),
            credential: Credential::given(&self.token),
            labels: [("vpc".to_owned(), "a".to_owned())].into(),
            capacity: self.capacity,
            data_dir: self.data_dir(),
            runner: RunnerOptions::Process { shim: Path::new(crate::SHIM).to_owned() },
            secrets: SecretOffers::default(),
            spool_limit: octavius_core::limit::SPOOL_BYTES,
            log_rate: None,
            connect_timeout: Duration::from_secs(2),
            timing: Timing::faster(20),
        }
    }

    pub(crate) fn start(&self) -> Daemon {
        Daemon::start(self.options())
    }
}

/// An executor that runs.
pub(crate) struct Daemon {
    runtime: Runtime,
    shutdown: CancellationToken,
    task: JoinHandle<Result<(), ExecutorError>>,
}

impl Daemon {
    pub(crate) fn start(options: ExecutorOptions) -> Self {
        let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().unwrap();
        let shutdown = CancellationToken::new();
        let task = runtime.spawn(octavius_executor::run(options, shutdown.clone()));
        Self { runtime, shutdown, task }
    }

    /// Asks it to end, and holds it to the time that it may take.
    pub(crate) fn stop(self) {
        let begun = Instant::now();
        self.shutdown.cancel();
        self.runtime.block_on(self.task).unwrap().unwrap();
        assert!(begun.elapsed() < Duration::from_secs(2), "took {:?}", begun.elapsed());
    }

    /// Ends it as a killed process ends: whatever it was doing.
    pub(crate) fn kill(self) {
        self.runtime.shutdown_timeout(Duration::from_secs(5));
    }

    /// Waits until it gives up by itself.
    pub(crate) fn gives_up(self) -> ExecutorError {
        let patience = tokio::time::Duration::from_secs(20);
        self.runtime.block_on(async { tokio::time::timeout(patience, self.task).await }).unwrap().unwrap().unwrap_err()
    }
}
