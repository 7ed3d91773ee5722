//! The process runner: each job is a process on the executor's machine, under a [shim](crate::shim) of its own.
//!
//! A job runs as the executor's user. What the runner keeps apart are working folders, environments and lifetimes, not what a hostile
//! job could read: that is what the Kubernetes runner is for.

use std::fs::{self, DirBuilder, File, OpenOptions};
use std::io::{self, Read as _, Write as _};
use std::os::unix::fs::{DirBuilderExt as _, OpenOptionsExt as _};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use async_trait::async_trait;
use octavius_core::Timing;
use octavius_core::execution::{Ending, Fence, Reason, State};
use rustix::process::{Pid, Signal, kill_process};
use tokio::io::unix::AsyncFd;
use tokio::task::spawn_blocking;

use super::output::Output;
use super::{Held, Launch, Over, Recovered, Run, Runner, Unprepared, environment, folder};
use crate::journal::{Exit, JOURNAL, Journal, LET_BE, STOP, Spec, StopCause, VERSION, WORK, line};
use crate::mask::Mask;
use crate::offers::Offered;
use crate::spool::Spool;
use crate::{ending, sys};

/// How often a run is looked at whose shim cannot be waited for, which is so only for moments.
const LOOK_AGAIN: Duration = Duration::from_millis(20);

/// How much must fit on the disk before work is taken again that did not fit: more than the files that make an attempt ready.
const PROBE_BYTES: usize = 256 * 1024;

/// Where a runner keeps its things.
#[derive(Debug)]
pub(super) struct Folders {
    /// A folder for each attempt.
    pub(super) runs: PathBuf,
    /// Attempts that could not be understood, for people to look at.
    pub(super) quarantine: PathBuf,
    /// The program that is the shim.
    pub(super) shim: PathBuf,
    /// Identifies this start of the machine.
    pub(super) boot: String,
    /// What the output of all runs is a part of.
    pub(super) spool: Spool,
    /// What jobs may be given of what is on this machine.
    offered: Offered,
}

/// Runs jobs as processes.
#[derive(Debug)]
pub(crate) struct ProcessRunner {
    pub(super) folders: Arc<Folders>,
    timing: Timing,
}

pub(super) fn private_folder(path: &Path) -> io::Result<()> {
    match DirBuilder::new().mode(0o700).create(path) {
        Err(error) if error.kind() != io::ErrorKind::AlreadyExists => Err(error),
        _ => Ok(()),
    }
}

impl ProcessRunner {
    /// A runner that keeps its things in `data_dir`, which is there, absolute, and this executor's alone.
    pub(crate) fn open(data_dir: &Path, shim: &Path, offered: Offered, spool: Spool, timing: Timing) -> io::Result<Self> {
        let folders = Folders {
            runs: data_dir.join("runs"),
            quarantine: data_dir.join("quarantine"),
            shim: shim.to_owned(),
            boot: sys::boot_id(),
            spool,
            offered,
        };
        // Asked once and here: what forbids it, an old kernel or a container's seccomp profile, forbids it for every job.
        sys::Process::open(std::process::id()).map_err(|error| {
            let message = "this machine does not let processes be watched (pidfd_open: Linux 5.3 or later, and no seccomp filter \
                           that forbids it)";
            io::Error::new(error.kind(), format!("{message}: {error}"))
        })?;
        for folder in [&folders.runs, &folders.quarantine] {
            private_folder(folder)?;
        }
        Ok(Self { folders: Arc::new(folders), timing })
    }
}

#[async_trait]
impl Runner for ProcessRunner {
    fn name(&self) -> &'static str {
        "process"
    }

    async fn prepare(&self, launch: Launch) -> Result<Arc<dyn Run>, Unprepared> {
        if launch.job.command.is_empty() {
            let message = "the job has no `command`, which the process runner needs: it does not run images; \
                           add `command` to the job, or run it on a kubernetes executor";
            return Err(Ending::because(State::Failed, Reason::REQUIREMENT_NOT_MET, message).into());
        }
        let (folders, timing) = (Arc::clone(&self.folders), self.timing);
        let run = blocking(move || prepare(folders, &launch, timing)).await??;
        Ok(Arc::new(run))
    }

    async fn probe(&self) -> io::Result<()> {
        // Without a journal: should the executor end in the middle, the next one removes it.
        let probe = self.folders.runs.join("probe");
        let write = move || {
            private_folder(&probe)?;
            let written = fs::write(probe.join("room"), [0; PROBE_BYTES]);
            written.and(fs::remove_dir_all(&probe))
        };
        spawn_blocking(write).await.map_err(io::Error::other)?
    }

    async fn recover(&self) -> io::Result<Vec<Recovered>> {
        let folders = Arc::clone(&self.folders);
        spawn_blocking(move || super::recover::scan(&folders)).await.map_err(io::Error::other)?
    }
}

fn prepare(folders: Arc<Folders>, launch: &Launch, timing: Timing) -> Result<ProcessRun, Unprepared> {
    let held = launch.held;
    let folder = folders.runs.join(held.to_string());
    let work = folder.join(WORK);
    let environment = environment::of(launch, &work, &folders.offered, |name| std::env::var_os(name))?;
    let millis = |duration: Duration| u64::try_from(duration.as_millis()).unwrap_or(u64::MAX);
    let spec = Spec {
        version: VERSION,
        id: held.id,
        attempt: held.fence.attempt,
        nonce: held.fence.nonce,
        boot: folders.boot.clone(),
        command: launch.job.command.clone(),
        env: environment.variables,
        masked: environment.masked,
        timeout_ms: millis(launch.timeout),
        kill_grace_ms: millis(timing.kill_grace),
        room: folders.spool.share(),
        room_patience_ms: millis(timing.spool_patience),
    };
    let write = || -> io::Result<()> {
        DirBuilder::new().mode(0o700).create(&folder)?;
        DirBuilder::new().mode(0o700).create(&work)?;
        let mut journal = OpenOptions::new().write(true).create_new(true).mode(0o600).open(folder.join(JOURNAL))?;
        journal.write_all(&line(&spec)?)
    };
    if let Err(error) = write() {
        if error.kind() == io::ErrorKind::AlreadyExists {
            // Of another history of the store, and let be: what is there must neither be touched nor started a second time.
            let message =
                "this executor still has a run of the same attempt, of which the store did not know: see its quarantine";
            return Err(Ending::because(State::Failed, Reason::START_FAILED, message).into());
        }
        let _ = fs::remove_dir_all(&folder);
        let message = format!("the executor could not write its run folder {}: {error}", folder.display());
        return Err(Unprepared::NotNow(message));
    }
    Ok(ProcessRun::new(folders, &spec))
}

/// One attempt, by its run folder.
pub(super) struct ProcessRun {
    held: Held,
    folders: Arc<Folders>,
    folder: PathBuf,
    timeout: Duration,
    mask: Mask,
    shim: Mutex<Option<Arc<Shim>>>,
    /// The shim where this executor started it, and so has to take note of its end.
    child: Mutex<Option<Child>>,
    output: Output,
}

/// A shim that can be waited for.
struct Shim {
    process: AsyncFd<ProcessFd>,
}

/// For [`AsyncFd`], which wants the descriptor.
struct ProcessFd(sys::Process);

impl std::os::fd::AsRawFd for ProcessFd {
    fn as_raw_fd(&self) -> std::os::fd::RawFd {
        self.0.handle.as_raw_fd()
    }
}

impl Shim {
    fn of(process: sys::Process) -> io::Result<Arc<Self>> {
        #[expect(
            deprecated,
            reason = "its successor is `unsafe`, for descriptors that do not stay open as long as it; this one does"
        )]
        let process = AsyncFd::with_interest(ProcessFd(process), tokio::io::Interest::READABLE)?;
        Ok(Arc::new(Self { process }))
    }

    async fn ended(&self) {
        // An error here means that the runtime is going down; whoever waits is dropped with it.
        if let Ok(mut ready) = self.process.readable().await {
            ready.retain_ready();
        }
    }
}

fn guard<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

async fn blocking<T: Send + 'static>(task: impl FnOnce() -> T + Send + 'static) -> Result<T, Ending> {
    let failed = |error| Ending::because(State::Failed, Reason::START_FAILED, format!("a fault in the executor: {error}"));
    spawn_blocking(task).await.map_err(failed)
}

/// What a job is where it runs: its shim's process.
pub(super) fn runs_as(pid: u32) -> String {
    format!("pid {pid}")
}

/// What a run folder says about its job.
#[derive(Debug)]
pub(super) enum Situation {
    /// It is over, and how is known.
    Ended(Exit),
    /// A shim has the lock; its id, where it has written it already.
    Watched(Option<u32>),
    /// Nobody ever started it.
    NotStarted,
    /// It was started, its shim is gone, and nobody knows how it ended.
    Lost(String),
}

pub(super) fn look(folder: &Path) -> Situation {
    match look_once(folder) {
        // A shim may have taken the lock and begun between two looks; it cannot between two more.
        Situation::Lost(_) => look_once(folder),
        situation => situation,
    }
}

fn look_once(folder: &Path) -> Situation {
    let read = || -> io::Result<(bool, Vec<u8>)> {
        let mut journal = File::open(folder.join(JOURNAL))?;
        // The lock first: a shim that lets go of it has written all that it ever will.
        let watched = sys::is_locked(&journal)?;
        let mut bytes = Vec::new();
        journal.read_to_end(&mut bytes)?;
        Ok((watched, bytes))
    };
    let unreadable = |error: &dyn std::error::Error| Situation::Lost(format!("the job's journal cannot be read: {error}"));
    let (watched, bytes) = match read() {
        Ok(read) => read,
        Err(error) => return unreadable(&error),
    };
    match Journal::read(&bytes) {
        Ok(Journal { exit: Some(exit), .. }) => Situation::Ended(exit),
        Ok(Journal { shim, .. }) if watched => Situation::Watched(shim),
        Ok(Journal { started: false, .. }) => Situation::NotStarted,
        Ok(_) => {
            Situation::Lost("the process that watched over the job is gone: it was killed, or the machine went down".to_owned())
        }
        Err(error) => unreadable(&error),
    }
}

impl ProcessRun {
    pub(super) fn new(folders: Arc<Folders>, spec: &Spec) -> Self {
        let held = Held { id: spec.id, fence: Fence { attempt: spec.attempt, nonce: spec.nonce } };
        let values = spec.masked.iter().filter_map(|name| spec.env.get(name).cloned());
        let folder = folders.runs.join(held.to_string());
        Self {
            held,
            output: Output::new(&folders.spool, &folder, spec.room),
            folder,
            folders,
            timeout: Duration::from_millis(spec.timeout_ms),
            mask: Mask::new(values),
            shim: Mutex::new(None),
            child: Mutex::new(None),
        }
    }

    pub(super) fn held(&self) -> Held {
        self.held
    }

    fn asked_to_stop(&self) -> Option<StopCause> {
        fs::read_to_string(self.folder.join(STOP)).ok().and_then(|text| StopCause::parse(&text))
    }

    /// Takes over a shim that this executor did not start. Opened before the lock is looked at: a shim that has the lock after its id
    /// was opened is the process that was opened.
    fn adopt(&self, pid: u32) -> io::Result<()> {
        let process = sys::Process::open(pid)?;
        if sys::is_locked(&File::open(self.folder.join(JOURNAL))?)? {
            *guard(&self.shim) = Some(Shim::of(process)?);
        }
        Ok(())
    }

    /// Whether the shim that this executor started is there still; takes note of its end.
    fn child_lives(&self) -> bool {
        let mut child = guard(&self.child);
        let lives = child.as_mut().is_some_and(|child| matches!(child.try_wait(), Ok(None)));
        if !lives {
            *child = None;
        }
        lives
    }

    /// Kills what a killed shim left behind.
    async fn kill_rest(&self) {
        let Held { id, fence } = self.held;
        let marks = [format!("OCTAVIUS_EXECUTION_ID={id}"), format!("OCTAVIUS_ATTEMPT={}", fence.attempt)];
        let killed = spawn_blocking(move || sys::kill_marked(&marks)).await.unwrap_or_default();
        if killed > 0 {
            tracing::warn!(execution = %id, attempt = fence.attempt, killed, "killed processes that a lost shim had left");
        }
    }
}

#[async_trait]
impl Run for ProcessRun {
    async fn start(&self) -> Result<String, Ending> {
        // Without a pause anywhere: a start that is given up halfway would leave a shim of which nobody knows.
        let start = || -> io::Result<Child> {
            let mut command = Command::new(&self.folders.shim);
            command.arg("shim").arg(&self.folder).current_dir("/");
            command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
            command.spawn()
        };
        let child = start().map_err(|error| {
            let message = format!("the executor could not start the job's shim {}: {error}", self.folders.shim.display());
            Ending::because(State::Failed, Reason::START_FAILED, message)
        })?;
        let pid = child.id();
        *guard(&self.child) = Some(child);
        // From here on the job may run, so nothing that fails is an ending: without a handle the shim is looked at now and then.
        match sys::Process::open(pid).and_then(Shim::of) {
            Ok(shim) => *guard(&self.shim) = Some(shim),
            Err(error) => {
                tracing::warn!(execution = %self.held.id, attempt = self.held.fence.attempt, %error, "cannot wait for a shim, looking at it instead");
            }
        }
        Ok(runs_as(pid))
    }

    async fn wait(&self) -> Over {
        loop {
            let shim = guard(&self.shim).clone();
            if let Some(shim) = shim {
                shim.ended().await;
                *guard(&self.shim) = None;
            }
            // Asked before the look: what a shim leaves is final only once it has ended; before, it may be on its way to the lock.
            let lives = self.child_lives();
            match look(&self.folder) {
                Situation::Watched(pid) => {
                    let adopted = pid.is_some_and(|pid| self.adopt(pid).is_ok()) && guard(&self.shim).is_some();
                    if !adopted {
                        tokio::time::sleep(LOOK_AGAIN).await;
                    } else if self.asked_to_stop().is_some() {
                        // Whoever asked may have gone before the signal did.
                        self.signal();
                    }
                }
                _ if lives => tokio::time::sleep(LOOK_AGAIN).await,
                Situation::Ended(exit) => return Over::Ended(ending::of_exit(&exit, self.timeout, self.asked_to_stop())),
                Situation::NotStarted => return Over::NotStarted("its shim ended before it started the job".to_owned()),
                Situation::Lost(message) => {
                    self.kill_rest().await;
                    return Over::Ended(ending::lost(&message));
                }
            }
        }
    }

    async fn image(&self) -> String {
        String::new()
    }

    async fn stop(&self, cause: StopCause) {
        let asked = self.asked_to_stop();
        if asked.is_none_or(|asked| asked < cause)
            && let Err(error) = fs::write(self.folder.join(STOP), cause.as_str())
        {
            tracing::warn!(execution = %self.held.id, attempt = self.held.fence.attempt, %error, "cannot note that the job is to stop");
        }
        self.signal();
    }

    async fn stop_asked(&self) -> Option<StopCause> {
        self.asked_to_stop()
    }

    fn output(&self) -> &Output {
        &self.output
    }

    fn mask(&self) -> &Mask {
        &self.mask
    }

    async fn remove(&self) {
        let folder = self.folder.clone();
        let removed = spawn_blocking(move || folder::remove(&folder)).await;
        if let Err(error) = removed.unwrap_or_else(|error| Err(io::Error::other(error))) {
            tracing::warn!(execution = %self.held.id, attempt = self.held.fence.attempt, %error, "cannot remove a run folder");
        }
    }

    async fn let_be(&self, why: &str) {
        let Held { id, fence } = self.held;
        if let Err(error) = fs::write(self.folder.join(LET_BE), why) {
            tracing::warn!(execution = %id, attempt = fence.attempt, %error, "cannot note that an attempt is let be: the next executor finds it again");
        }
    }

    async fn quarantine(&self, why: &str) {
        super::recover::quarantine(&self.folders.quarantine, &self.folder, why);
    }
}

impl ProcessRun {
    /// By its id, which nobody else can have as long as its end has not been taken note of: that is done under the same lock.
    fn signal_child(&self) -> io::Result<()> {
        let child = guard(&self.child);
        let pid = child.as_ref().and_then(|child| i32::try_from(child.id()).ok()).and_then(Pid::from_raw);
        pid.map_or(Ok(()), |pid| Ok(kill_process(pid, Signal::TERM)?))
    }

    fn signal(&self) {
        let shim = guard(&self.shim).clone();
        let signalled = match shim {
            Some(shim) => shim.process.get_ref().0.signal(Signal::TERM),
            None => self.signal_child(),
        };
        if let Err(error) = signalled {
            tracing::warn!(execution = %self.held.id, attempt = self.held.fence.attempt, %error, "cannot stop a shim");
        }
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt as _;

    use octavius_core::ExecutionId;

    use super::*;

    #[tokio::test]
    async fn a_shim_without_a_handle_is_waited_for_and_stopped_all_the_same() {
        let place = tempfile::tempdir().unwrap();
        let shim = place.path().join("shim");
        fs::write(&shim, "#!/bin/sh\nexec sleep 60\n").unwrap();
        fs::set_permissions(&shim, fs::Permissions::from_mode(0o700)).unwrap();
        let executor = octavius_core::ExecutorId::new("e1").unwrap();
        let offered = Offered { executor, offers: crate::SecretOffers::default(), own_folder: place.path().to_owned() };
        let runner = ProcessRunner::open(place.path(), &shim, offered, Spool::new(1 << 24, 1), Timing::faster(1000)).unwrap();
        let launch = Launch {
            held: Held { id: ExecutionId::from_bits(1), fence: Fence { attempt: 1, nonce: 9 } },
            job: octavius_core::JobDefinition::from_canonical_json(br#"{"name":"j","command":["true"]}"#).unwrap(),
            arguments: std::iter::empty::<(String, String)>().collect(),
            timeout: Duration::from_secs(60),
            user: "ann".to_owned(),
            origin: crate::runner::Origin::default(),
            trace: None,
        };
        let run = prepare(Arc::clone(&runner.folders), &launch, runner.timing).ok().unwrap();
        run.start().await.unwrap();
        *guard(&run.shim) = None;
        let mut over = run.wait();
        assert!(futures::poll!(&mut over).is_pending(), "it has not taken the lock, and lives");
        run.stop(StopCause::Cancelled).await;
        assert!(matches!(tokio::time::timeout(Duration::from_secs(20), over).await, Ok(Over::NotStarted(_))));
        assert!(guard(&run.child).is_none());
    }
}
