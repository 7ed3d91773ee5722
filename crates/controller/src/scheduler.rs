//! Hands out what waits: the first in line whose executor has a free slot is claimed, and the executor is told. Woken by events, never by
//! polling the queue.

use std::collections::{BTreeMap, HashMap};
use std::sync::{Arc, MutexGuard};
use std::time::Duration;

use octavius_core::dispatch::Hold;
use octavius_core::execution::{Event, Fence, Reason, Refusal};
use octavius_core::wait::cause;
use octavius_core::{Execution, ExecutionId, ExecutorId, State, Wait};
use octavius_proto::to_duration;
use octavius_proto::v1::{Assignment, session_response::Say};
use octavius_store::{Condition, Entry, Event as Change, Revision, Store, StoreError, Txn, key};
use octavius_trace::{Kind, Span};
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;

use crate::awaiting::Awaiting;
use crate::definitions::Definitions;
use crate::engine::{Engine, EngineError};
use crate::fleet::{self, Fleet};
use crate::mirror::{Listener, Mirrors};
use crate::origins::Origins;
use crate::pauses::{Gate, Pauses};
use crate::queue::{Queue, Waiting};
use crate::random;
use crate::sealing::SealError;
use crate::slots::{self, Slots};
use crate::waiting::{self, ExecutorFacts, Facts};

/// Claims under way at once. Enough for transactions to be grouped; few enough that order is kept nearly as it was.
const CLAIMS_AT_ONCE: usize = 64;

/// Pause before an execution is tried again whose claim failed for the store's sake.
const RETRY: Duration = Duration::from_millis(250);

/// The same where something else stood against the claim, of which the watch is about to show what: another controller has taken the slot,
/// the executor's record has changed, or something was paused.
const FORESTALLED: Duration = Duration::from_millis(20);

/// What hands out work.
#[derive(Debug)]
pub(crate) struct Scheduler {
    store: Arc<dyn Store>,
    engine: Engine,
    definitions: Arc<Definitions>,
    origins: Origins,
    fleet: Arc<Fleet>,
    pauses: Arc<Pauses>,
    slots: Arc<Slots>,
    awaiting: Awaiting,
}

impl Scheduler {
    pub(crate) fn new(
        store: Arc<dyn Store>,
        engine: Engine,
        definitions: Arc<Definitions>,
        origins: Origins,
        fleet: Arc<Fleet>,
        pauses: Arc<Pauses>,
    ) -> Self {
        let slots = Arc::new(Slots::new(Arc::clone(&fleet), engine.clock().clone()));
        Self { store, engine, definitions, origins, fleet, pauses, slots, awaiting: Awaiting::default() }
    }

    /// What waits.
    pub(crate) fn queue(&self) -> MutexGuard<'_, Queue> {
        self.fleet.queue()
    }

    /// What waits for approval before it comes into the queue.
    pub(crate) fn awaiting(&self) -> &Awaiting {
        &self.awaiting
    }

    /// Who holds the concurrency slots of jobs.
    pub(crate) fn slots(&self) -> &Slots {
        &self.slots
    }

    /// Why an execution waits, as far as it is to be seen from here.
    pub(crate) fn why_it_waits(&self, execution: &Execution) -> Wait {
        let now = self.engine.clock().now();
        let mut queue = self.queue();
        let standing = queue.standing(execution.id);
        let at_limit = standing.is_some_and(|standing| standing.hold == Some(Hold::Limit));
        let mut holders = || queue.dispatch().holders(&execution.job.folded(), waiting::NAMED);
        let slots = execution.concurrency.filter(|_| at_limit).map(|concurrency| (concurrency.limit, holders()));
        drop(queue);
        let facts = Facts {
            executors: self.fleet.facts(),
            ahead: standing.map_or(0, |standing| standing.ahead),
            slots,
            paused: self.pauses.is_paused(&execution.job),
            not_before: standing.and_then(|standing| standing.pause).and_then(|pause| now.checked_add(pause).ok()),
        };
        waiting::explain(&execution.selector, &facts, now)
    }

    /// How many wait for what, by the codes of [`octavius_core::wait::cause`]; the work is by lines, not by executions.
    pub(crate) fn waiting_by_cause(&self, executors: &[ExecutorFacts]) -> BTreeMap<&'static str, usize> {
        let mut counts = BTreeMap::new();
        let mut queue = self.queue();
        let pausing = queue.pausing();
        if pausing > 0 {
            counts.insert(cause::BACK_OFF, pausing);
        }
        let mut by_selector = HashMap::new();
        for (hold, selector, count) in queue.dispatch().waiting() {
            let cause = match hold {
                Hold::Paused => cause::JOB_PAUSED,
                Hold::Limit => cause::CONCURRENCY_LIMIT,
                // Of executors that have their sessions elsewhere, the queue knows nothing.
                Hold::Turn | Hold::NoExecutor | Hold::Full => {
                    *by_selector.entry(selector).or_insert_with(|| waiting::standing(selector, executors))
                }
            };
            *counts.entry(cause).or_default() += count;
        }
        counts
    }

    /// Takes in what this controller has just submitted, written at `revision`: it need not wait for the watch to show it.
    pub(crate) fn submitted(&self, execution: &Arc<Execution>, revision: Revision) {
        self.engine.submitted(execution, revision);
        if execution.state != State::Queued {
            return; // it waits for approval: its last one queues it
        }
        self.queue().submitted(execution, &self.engine.queue_record(execution), revision);
        self.fleet.changed.notify_one();
    }

    /// Hands out work until `shutdown`.
    pub(crate) async fn run(self: Arc<Self>, shutdown: CancellationToken) {
        let mut claims: JoinSet<()> = JoinSet::new();
        loop {
            let next = self.queue().promote();
            while claims.len() < CLAIMS_AT_ONCE {
                let taken = self.queue().take();
                let Some((waiting, executor)) = taken else { break };
                let nonce = random::number();
                if self.fleet.claiming(&executor, nonce) {
                    claims.spawn(Arc::clone(&self).claim(waiting, executor, nonce));
                } else {
                    self.queue().put_back(waiting); // its session has just ended
                }
            }
            tokio::select! {
                biased;
                () = shutdown.cancelled() => break,
                () = self.fleet.changed.notified() => {}
                () = self.engine.clock().sleep(next.unwrap_or(Duration::MAX)), if next.is_some() => {}
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
        let Err(error) = self.try_claim(&waiting, &executor, nonce).await else { return };
        self.fleet.unclaimed(&executor, nonce);
        let pause = match error {
            // Its approvals ran out before the next look at who has waited for too long, which ends it.
            EngineError::Refused(Refusal::ApprovalExpired) => return self.queue().set_aside(&waiting),
            // Someone else was quicker, or it was cancelled.
            EngineError::Refused(_) | EngineError::NotFound(_) => return self.queue().forget(&waiting),
            // Trying again would not help. It waits on, for an administrator or until its wait is over, and holds nobody up.
            EngineError::Store(error @ StoreError::Unreadable(_)) => {
                tracing::error!(execution = %waiting.id, %error, "cannot be handed out");
                return self.queue().set_aside(&waiting);
            }
            EngineError::Sealed(id, error) => return self.cannot_open(&waiting, id, error).await,
            EngineError::Forestalled(_) => {
                self.look_again(&executor).await;
                FORESTALLED
            }
            error => {
                tracing::warn!(execution = %waiting.id, %executor, %error, "could not be claimed");
                RETRY
            }
        };
        // It waits on where it stood.
        tokio::time::sleep(pause).await;
        self.queue().put_back(waiting);
        self.fleet.changed.notify_one();
    }

    /// Tells on the execution itself why it cannot be handed out. Without the key, it waits for a controller that has it, aside; what was damaged
    /// will never be what it was.
    async fn cannot_open(&self, waiting: &Waiting, id: ExecutionId, error: SealError) {
        tracing::error!(execution = %id, %error, "cannot be handed out");
        let message = error.to_string();
        let (event, reason) = match error {
            SealError::Damaged { .. } => {
                let reason = Reason::new(Reason::ARGUMENTS_DAMAGED);
                (Event::FailInQueue { reason, message }, Reason::ARGUMENTS_DAMAGED)
            }
            SealError::NoKey { .. } | SealError::KeyMissing(_) => {
                let reason = Reason::new(Reason::ENCRYPTION_KEY_MISSING);
                (Event::HoldUp { reason, message }, Reason::ENCRYPTION_KEY_MISSING)
            }
        };
        if let Err(error) = self.engine.step(id, event).await {
            tracing::warn!(execution = %id, %error, reason, "this could not be noted on it");
        }
        self.queue().set_aside(waiting);
    }

    /// What must hold beside the execution for a claim: the executor takes work and the job is not paused, both as they were seen here. Once
    /// a drain or a pause was acknowledged by any controller, no claim is made any more, whatever has been shown to this one.
    fn permits(&self, execution: &Execution, executor: &ExecutorId) -> Result<Vec<Condition>, EngineError> {
        let Gate::Open(open) = self.pauses.gate(&execution.job) else { return Err(EngineError::Forestalled(execution.id)) };
        let asked = self.fleet.still_takes_work(executor, open.still(Txn::new()));
        asked.map(|asked| asked.conditions).ok_or(EngineError::Forestalled(execution.id))
    }

    /// Reads an executor's record, which may have changed without its having been shown yet.
    async fn look_again(&self, executor: &ExecutorId) {
        match self.store.get(&key::executor(executor)).await {
            Ok(Some(entry)) => self.fleet.note_record(&entry),
            Ok(None) => {} // revoked; the watch is about to show it
            Err(error) => tracing::debug!(%executor, %error, "its record could not be read"),
        }
    }

    async fn try_claim(&self, waiting: &Waiting, executor: &ExecutorId, nonce: u64) -> Result<(), EngineError> {
        let id = waiting.id;
        let known = self.engine.recall(id, |_| true).await?;
        // Before the claim: what cannot be assigned need not be claimed.
        let definition = self.definitions.get(known.execution.definition).await?;
        let arguments = self.engine.arguments(&known.execution).await?;
        let waits = Arc::clone(&known.execution);
        let permits = self.permits(&waits, executor)?;
        let permitted = |mut txn: Txn| {
            txn.conditions.extend_from_slice(&permits);
            txn
        };
        let claim = async {
            let claim = Event::Claim { executor: executor.clone(), nonce, slot: waiting.slot };
            let step = self.engine.step_from(known, claim, permitted).await?;
            self.queue().claimed(waiting, step.revision);
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
            trace: execution.trace.as_deref().map(Into::into),
        };
        if octavius_trace::is_on()
            && let Some(trace) = &execution.trace
        {
            let mut waited = Span::since("queue", Kind::Internal, Some(trace), waits.state_since);
            waited.set("octavius.execution.id", id.to_string());
            waited.set("octavius.attempt", i64::from(fence.attempt));
            waited.set("octavius.executor", executor.to_string());
        }
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
            tracing::warn!(execution = %id, %error, "a claim could not be given back; it will run out");
        }
    }
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
        mirrors.run(key::awaiting_approval(), scheduler.awaiting.clone()),
        mirrors.run(key::slots(), slots::Feed(Arc::clone(&scheduler.slots))),
        mirrors.run(key::owned_by_all(), fleet::Holdings(fleet())),
        mirrors.run(key::presences(), fleet::Presences(fleet())),
        mirrors.run(key::executors(), fleet::Registrations(fleet())),
    );
}
