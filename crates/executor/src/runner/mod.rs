//! What runs jobs, and what the rest of the executor knows of it. A runner starts a job at most once for each attempt, finds it again
//! after the executor was away, and keeps its output until it is told to remove it.

pub(crate) mod environment;
mod folder;
pub(crate) mod kubernetes;
pub(crate) mod output;
pub(crate) mod process;
mod recover;

use std::fmt;
use std::io;
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use octavius_core::argument::Arguments;
use octavius_core::execution::{Ending, Fence};
use octavius_core::{ExecutionId, JobDefinition, TraceContext};
use octavius_proto::v1;
use tokio::time::Instant;

use self::output::Output;
use crate::journal::StopCause;
use crate::mask::Mask;

/// An attempt that this executor holds: which, and the claim's random number.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(crate) struct Held {
    pub(crate) id: ExecutionId,
    pub(crate) fence: Fence,
}

impl fmt::Display for Held {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}-{}", self.id, self.fence.attempt)
    }
}

/// What is to be run. No `Debug`: arguments may be sensitive.
pub(crate) struct Launch {
    pub(crate) held: Held,
    pub(crate) job: JobDefinition,
    pub(crate) arguments: Arguments,
    pub(crate) timeout: Duration,
    pub(crate) user: String,
    pub(crate) origin: Origin,
    /// The span that the job's own spans are children of.
    pub(crate) trace: Option<TraceContext>,
}

/// Where a job's definition comes from, as far as that is known: what is not is empty, or 0.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct Origin {
    pub(crate) catalog: String,
    pub(crate) revision: u64,
    /// The git commit that was applied.
    pub(crate) commit: String,
    /// The repository's URL, without credentials.
    pub(crate) repository: String,
    /// The file, relative to the repository's root where there is one.
    pub(crate) file: String,
    /// The line of the job's name in it, from 1.
    pub(crate) line: u32,
}

impl From<v1::JobOrigin> for Origin {
    fn from(wire: v1::JobOrigin) -> Self {
        let v1::JobOrigin { catalog, revision, commit, repository, file, line } = wire;
        Self { catalog, revision, commit, repository, file, line }
    }
}

/// How far an attempt had come when it was found again.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Stage {
    /// Nothing was started; `starting` may have been reported.
    Prepared,
    /// It was started, and may have ended since; where it runs, where that is known.
    Started(Option<String>),
    /// It cannot be known, and will not be, how it ended.
    Lost(String),
}

/// An attempt that was found again.
pub(crate) struct Recovered {
    pub(crate) held: Held,
    pub(crate) stage: Stage,
    pub(crate) run: Arc<dyn Run>,
    /// The span that the job was given as its parent.
    pub(crate) trace: Option<TraceContext>,
}

/// How waiting for a job's end came out.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Over {
    /// It ended so.
    Ended(Ending),
    /// It never began, for this reason, and may be started again.
    NotStarted(String),
}

/// Why an attempt was not made ready.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Unprepared {
    /// This job cannot run here, and so it ends.
    Never(Ending),
    /// This machine cannot take it at present, for a reason that has nothing to do with the job: another one may.
    NotNow(String),
}

impl From<Ending> for Unprepared {
    fn from(ending: Ending) -> Self {
        Self::Never(ending)
    }
}

/// What a runner has made, as far as it can tell, and no execution is for. It is removed after a delay.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub(crate) struct Orphans {
    /// Those that have waited longest, no more than are told by name.
    pub(crate) first: Vec<Orphan>,
    /// How many there are.
    pub(crate) count: usize,
}

/// One of these.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Orphan {
    pub(crate) namespace: String,
    pub(crate) name: String,
    /// Since when no execution has been for it.
    pub(crate) since: Instant,
    /// When it is removed at the earliest.
    pub(crate) until: Instant,
}

/// Something that runs jobs.
#[async_trait]
pub(crate) trait Runner: Send + Sync {
    /// What it is called in an executor's hello.
    fn name(&self) -> &'static str;

    /// Makes an attempt ready, so that from here on it is found again after a crash. Nothing is started.
    async fn prepare(&self, launch: Launch) -> Result<Arc<dyn Run>, Unprepared>;

    /// Whether attempts can be made ready again, after one could not.
    async fn probe(&self) -> io::Result<()>;

    /// Everything that was prepared and not removed before this executor began.
    async fn recover(&self) -> io::Result<Vec<Recovered>>;
}

/// One attempt in the hands of a runner.
#[async_trait]
pub(crate) trait Run: Send + Sync {
    /// Starts the job and says what it is where it runs. The error is the attempt's ending.
    async fn start(&self) -> Result<String, Ending>;

    /// Waits until the job is over and nothing is left of it. May be dropped and called again.
    async fn wait(&self) -> Over;

    /// The image that runs, by its digest, once that is known; empty where a job has none.
    async fn image(&self) -> String;

    /// Asks for the job to be stopped; [`Run::wait`] tells when it has. Asking again does no harm.
    async fn stop(&self, cause: StopCause);

    /// A stop that was asked for, also by an executor before this one.
    async fn stop_asked(&self) -> Option<StopCause>;

    /// What it prints.
    fn output(&self) -> &Output;

    /// What must not leave this machine in the output.
    fn mask(&self) -> &Mask;

    /// Forgets the attempt and its output.
    async fn remove(&self);

    /// Notes that the attempt is not this executor's to touch: whatever runs goes on, and no executor finds it again.
    async fn let_be(&self, why: &str);

    /// Puts the attempt aside for people to look at; it is not found again. Comes when nothing of it runs.
    async fn quarantine(&self, why: &str);
}
