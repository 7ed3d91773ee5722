//! Hands out what waits: the first in line whose executor has a free slot is claimed, and the executor is told. Woken by events, never by
//! polling the queue.

use std::sync::{Arc, Mutex, MutexGuard};
use std::time::Duration;

use octavius_core::execution::{Event, Fence, Reason};
use octavius_core::{Execution, ExecutionId, ExecutorId};
use octavius_proto::to_duration;
use octavius_proto::v1::{Assignment, session_response::Say};
use octavius_store::{Entry, Event as Change, Revision, StoreError, key};
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;

use crate::definitions::Definitions;
use crate::engine::{Engine, EngineError};
use crate::fleet::{self, Fleet};
use crate::mirror::{Listener, Mirrors};
use crate::origins::Origins;
use crate::queue::{Queue, Waiting};
use crate::random;

/// Claims under way at once. Enough for transactions to be grouped; few enough that order is kept nearly as it was.
const CLAIMS_AT_ONCE: usize = 64;

/// Pause before an execution is tried again whose claim failed for the store's sake.
const RETRY: Duration = Duration::from_millis(250);

/// What hands out work.
#[derive(Debug)]
pub(crate) struct Scheduler {
    engine: Engine,
    definitions: Arc<Definitions>,
    origins: Origins,
    fleet: Arc<Fleet>,
    queue: Mutex<Queue>,
}

impl Scheduler {
    pub(crate) fn new(engine: Engine, definitions: Arc<Definitions>, origins: Origins, fleet: Arc<Fleet>) -> Self {
        Self { engine, definitions, origins, fleet, queue: Mutex::default() }
    }

    /// What waits.
    pub(crate) fn queue(&self) -> MutexGuard<'_, Queue> {
        self.queue.lock().unwrap_or_else(std::sync::PoisonError::into_inner)
    }

    /// Takes in what this controller has just submitted, written at `revision`: it need not wait for the watch to show it.
    pub(crate) fn submitted(&self, execution: &Arc<Execution>, revision: Revision) {
        self.engine.submitted(execution, revision);
        self.queue().submitted(execution, revision);
        self.fleet.changed.notify_one();
    }

    /// Hands out work until `shutdown`.
    pub(crate) async fn run(self: Arc<Self>, shutdown: CancellationToken) {
        let mut claims: JoinSet<()> = JoinSet::new();
        loop {
            while claims.len() < CLAIMS_AT_ONCE {
                let taken = self.queue().take(|selector| self.fleet.choose(selector));
                let Some((waiting, executor)) = taken else { break };
                let nonce = random::number();
                self.fleet.claiming(&executor, nonce);
                claims.spawn(Arc::clone(&self).claim(waiting, executor, nonce));
            }
            tokio::select! {
                () = shutdown.cancelled() => break,
                () = self.fleet.changed.notified() => {}
                Some(claim) = claims.join_next() => {
                    // A claim that failed has taken its execution along. Better to begin anew than to forget one.
                    if let Some(panic) = claim.err().and_then(|error| error.try_into_panic().ok()) {
                        std::panic::resume_unwind(panic);
                    }
                }
            }
        }
        // Claims that are under way end by themselves, quickly; their executors are told, or the claims run out.
        while claims.join_next().await.is_some() {}
    }

    async fn claim(self: Arc<Self>, waiting: Waiting, executor: ExecutorId, nonce: u64) {
        match self.try_claim(waiting.id, &executor, nonce).await {
            Ok(()) => {}
            // Someone else was quicker, or it was cancelled.
            Err(EngineError::Refused(_) | EngineError::NotFound(_)) => self.fleet.unclaimed(&executor, nonce),
            // Trying again would not help. It waits on, for an administrator or until its wait is over, and holds nobody up.
            Err(EngineError::Store(error @ StoreError::Unreadable(_))) => {
                tracing::error!(id = %waiting.id, %error, "cannot be handed out");
                self.fleet.unclaimed(&executor, nonce);
                self.queue().set_aside(waiting);
            }
            Err(error) => {
                tracing::warn!(id = %waiting.id, %executor, %error, "could not be claimed");
                self.fleet.unclaimed(&executor, nonce);
                // It waits on where it stood.
                tokio::time::sleep(RETRY).await;
                self.queue().put_back(waiting);
                self.fleet.changed.notify_one();
            }
        }
    }

    async fn try_claim(&self, id: ExecutionId, executor: &ExecutorId, nonce: u64) -> Result<(), EngineError> {
        let known = self.engine.recall(id, |_| true).await?;
        // Before the claim: what cannot be assigned need not be claimed.
        let definition = self.definitions.get(known.execution.definition).await?;
        let arguments = self.engine.arguments(&known.execution).await?;
        let waits = Arc::clone(&known.execution);
        let claim = async {
            let step = self.engine.step_from(known, Event::Claim { executor: executor.clone(), nonce }, |txn| txn).await?;
            self.fleet.claimed(executor, nonce, step.revision);
            Ok::<_, EngineError>(step.execution)
        };
        let (execution, origin) = self.origins.beside(&waits, claim).await?;
        let Some(fence) = execution.fence() else { return Ok(()) };
        let assignment = Assignment {
            id: id.to_string(),
            attempt: fence.attempt,
            nonce: fence.nonce,
            definition: definition.to_canonical_json().into(),
            arguments: arguments.into_iter().collect(),
            timeout: Some(to_duration(execution.timeout)),
            user: execution.user.clone(),
            origin,
        };
        octavius_failpoint::reach(&octavius_failpoint::ASSIGN);
        if !self.fleet.tell(executor, Say::Assignment(assignment)) {
            self.unclaim(id, fence, "the executor's session ended before it was told").await;
        }
        octavius_failpoint::reach(&octavius_failpoint::ASSIGN_TOLD);
        Ok(())
    }

    async fn unclaim(&self, id: ExecutionId, fence: Fence, message: &str) {
        let event = Event::Unclaim { fence, reason: Reason::new(Reason::HANDED_BACK), message: message.to_owned() };
        if let Err(error) = self.engine.step(id, event).await {
            tracing::warn!(%id, %error, "a claim could not be given back; it will run out");
        }
    }
}

/// Why an execution waits, a line for each cause, as people read it.
pub(crate) fn waiting(scheduler: &Scheduler, execution: &Execution) -> Vec<String> {
    use crate::fleet::Unfit;
    let mut lines = Vec::new();
    if let Some(ahead) = scheduler.queue().ahead_of(execution.id)
        && ahead > 0
    {
        lines.push(format!("{ahead} {} ahead of it", if ahead == 1 { "execution is" } else { "executions are" }));
    }
    let fleet = &scheduler.fleet;
    if fleet.present() == 0 {
        lines.push("no executor is there".to_owned());
    }
    for (executor, unfit) in fleet.unfit(&execution.selector) {
        lines.push(match unfit {
            Unfit::Full { capacity } => format!("{executor}  full: {capacity}/{capacity} slots"),
            Unfit::Label { wanted: (key, value), has: Some(has) } => format!("{executor}  {key}={has}, needs {key}={value}"),
            Unfit::Label { wanted: (key, value), has: None } => format!("{executor}  has no label {key}, needs {key}={value}"),
        });
    }
    lines
}

/// Feeds the scheduler with what waits: everything under `queue/`.
struct Waits(Arc<Scheduler>);

impl Listener for Waits {
    fn reset(&mut self, entries: Vec<Entry>, revision: Revision) {
        self.0.queue().reset(&entries, revision);
        self.0.fleet.changed.notify_one();
    }

    fn change(&mut self, event: Change, revision: Revision) {
        match event {
            Change::Put(entry) => {
                self.0.queue().insert(&entry, revision);
                self.0.fleet.changed.notify_one();
            }
            Change::Delete(key) => self.0.queue().remove(&key, revision),
        }
    }
}

/// Keeps the mirrors that the scheduler works from, until the shutdown.
pub(crate) async fn mirror(scheduler: Arc<Scheduler>, mirrors: Mirrors) {
    let fleet = || Arc::clone(&scheduler.fleet);
    tokio::join!(
        mirrors.run(key::queue(), Waits(Arc::clone(&scheduler))),
        mirrors.run(key::owned_by_all(), fleet::Holdings(fleet())),
        mirrors.run(key::presences(), fleet::Presences(fleet())),
        mirrors.run(key::executors(), fleet::Registrations(fleet())),
    );
}
