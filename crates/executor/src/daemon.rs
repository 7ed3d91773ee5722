//! The daemon: takes the data folder, finds what was running, holds a session, and owns every attempt's task.

use std::fs::{File, OpenOptions, TryLockError};
use std::io;
use std::os::unix::fs::{DirBuilderExt as _, OpenOptionsExt as _};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use tokio::sync::{mpsc, watch};
use tokio::task::{JoinError, JoinSet};
use tokio_util::sync::CancellationToken;
use tracing::Instrument as _;

use crate::attempt::{Begin, Context, drive, hand_back};
use crate::book::{Book, Page};
use crate::link::{Link, random};
use crate::offers::Offered;
use crate::pace::Appends;
use crate::runner::kubernetes::{KubernetesRunner, Place};
use crate::runner::process::ProcessRunner;
use crate::runner::{Orphans, Recovered, Runner};
use crate::session::{Order, Session};
use crate::spool::Spool;
use crate::{ExecutorError, ExecutorOptions, RunnerOptions};

/// How long attempts may take to come to rest after a shutdown; they are then left to the next executor.
const REST: Duration = Duration::from_millis(1500);

/// An executor that is ending, or a process that it was just starting, may hold the data folder's lock for a moment longer.
const LOCK_PATIENCE: Duration = Duration::from_secs(1);
const LOCK_AGAIN: Duration = Duration::from_millis(20);

/// A data folder that no other executor has.
struct DataDir {
    path: PathBuf,
    _lock: File,
}

async fn take(path: &Path) -> Result<DataDir, ExecutorError> {
    let unusable = |source: io::Error| ExecutorError::DataDir { path: path.to_owned(), source };
    std::fs::DirBuilder::new().recursive(true).mode(0o700).create(path).map_err(unusable)?;
    let path = std::fs::canonicalize(path).map_err(unusable)?;
    let lock =
        OpenOptions::new().write(true).create(true).truncate(false).mode(0o600).open(path.join("lock")).map_err(unusable)?;
    let begun = Instant::now();
    loop {
        match lock.try_lock() {
            Ok(()) => return Ok(DataDir { path, _lock: lock }),
            Err(TryLockError::WouldBlock) if begun.elapsed() < LOCK_PATIENCE => tokio::time::sleep(LOCK_AGAIN).await,
            Err(TryLockError::WouldBlock) => return Err(ExecutorError::DataDirInUse { path }),
            Err(TryLockError::Error(error)) => return Err(unusable(error)),
        }
    }
}

/// Runs an executor until `shutdown`, or until it cannot go on.
pub(crate) async fn run(options: ExecutorOptions, shutdown: CancellationToken) -> Result<(), ExecutorError> {
    if options.capacity == 0 {
        return Err(ExecutorError::NoCapacity);
    }
    let data_dir = take(&options.data_dir).await?;
    let unusable = |source| ExecutorError::DataDir { path: data_dir.path.clone(), source };
    let (stands, standing) = watch::channel(None);
    let (orphans_seen, orphans) = watch::channel(Orphans::default());
    let spool = Spool::new(options.spool_limit, options.capacity);
    let offered = Offered { executor: options.id.clone(), offers: options.secrets, own_folder: data_dir.path.clone() };
    let runner: Box<dyn Runner> = match options.runner {
        RunnerOptions::Process { shim } => {
            Box::new(ProcessRunner::open(&data_dir.path, &shim, offered, spool.clone(), options.timing).map_err(unusable)?)
        }
        RunnerOptions::Kubernetes(kubernetes) => {
            let place = Place { data_dir: &data_dir.path, spool: spool.clone() };
            let opened =
                KubernetesRunner::open(place, offered, *kubernetes, options.timing, standing.clone(), orphans_seen).await;
            Box::new(opened.map_err(|why| ExecutorError::Kubernetes { why })?)
        }
    };
    let found = runner.recover().await.map_err(unusable)?;

    // Ends with this function, however it ends, and ends everything below with it.
    let shutdown = shutdown.child_token();
    let _ended_with_this = shutdown.clone().drop_guard();
    let book = Book::new(options.capacity);
    let (connection, connected) = watch::channel(None);
    let (orders, mut ordered) = mpsc::unbounded_channel();
    let runner_name = runner.name();
    let context = Arc::new(Context {
        runner,
        link: Link::new(connected, options.timing),
        appends: Appends::new(options.timing, options.log_rate),
        timing: options.timing,
        shutdown: shutdown.clone(),
    });
    let mut attempts = JoinSet::new();
    if !found.is_empty() {
        tracing::info!(found = found.len(), "found attempts from before");
    }
    for recovered in found {
        if let Ok(page) = book.enter_found(recovered.held) {
            attempts.spawn(go_on(Arc::clone(&context), page, recovered, standing.clone()).in_current_span());
        }
    }
    let keeping = spool.keep(book.clone(), options.timing);
    let session = Session {
        id: options.id,
        controllers: options.controllers,
        credential: Mutex::new(options.credential),
        labels: options.labels,
        capacity: options.capacity,
        runner: runner_name,
        connect_timeout: options.connect_timeout,
        timing: options.timing,
        instance: random(),
        book,
        orders,
        connection,
        stands,
        orphans,
        shutdown: shutdown.clone(),
    };
    let held = {
        let holding = session.hold();
        tokio::pin!(holding);
        tokio::pin!(keeping);
        loop {
            tokio::select! {
                held = &mut holding => break held,
                () = &mut keeping => {} // it never ends
                Some(order) = ordered.recv() => obey(&mut attempts, &context, order),
                Some(done) = attempts.join_next() => note(done),
            }
        }
    };
    shutdown.cancel();
    // What was assigned and not begun is given back; its tasks see the shutdown.
    while let Ok(order) = ordered.try_recv() {
        obey(&mut attempts, &context, order);
    }
    let resting = async {
        while let Some(done) = attempts.join_next().await {
            note(done);
        }
    };
    if tokio::time::timeout(REST, resting).await.is_err() {
        tracing::warn!(left = attempts.len(), "left reports to the next executor with this data folder");
    }
    attempts.shutdown().await;
    held
}

/// Goes on with an attempt from before, once there is a session: without one it may be that another executor has this one's id, and is at
/// work on the same attempts.
async fn go_on(context: Arc<Context>, page: Page, found: Recovered, mut standing: watch::Receiver<Option<tokio::time::Instant>>) {
    let stands = tokio::select! {
        stands = standing.wait_for(Option::is_some) => stands.is_ok(),
        () = context.shutdown.cancelled() => false,
    };
    if stands {
        drive(context, page, Begin::Found(found.stage, found.run, found.trace)).await;
    }
}

fn obey(attempts: &mut JoinSet<()>, context: &Arc<Context>, order: Order) {
    let context = Arc::clone(context);
    match order {
        Order::Drive(page, begin) => attempts.spawn(drive(context, page, begin).in_current_span()),
        Order::HandBack(held, message) => {
            attempts.spawn(async move { hand_back(&context, held, &message).await }.in_current_span())
        }
    };
}

fn note(done: Result<(), JoinError>) {
    if let Err(error) = done
        && error.is_panic()
    {
        tracing::error!(%error, "a fault in the executor: the attempt is left to the next executor with this data folder");
    }
}
