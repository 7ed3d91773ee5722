//! What no event brings about: claims that nobody followed up, executors that stay away, waits that are too long. Looked at in turns, by the
//! state as it is; doing a turn twice does no harm, on one controller or on several.

use std::sync::Arc;
use std::time::Duration;

use octavius_core::execution::{Applied, Event, Reason};
use octavius_core::{ExecutionId, HumanDuration, Timestamp, Timing};
use octavius_store::{Txn, key};
use tokio_util::sync::CancellationToken;

use crate::engine::{Engine, EngineError, Step};
use crate::fleet::Fleet;
use crate::scheduler::Scheduler;

/// Waits that are ended in one turn; the rest follows in the next.
const EXPIRIES_A_TURN: usize = 1000;

/// Takes turns.
#[derive(Debug)]
pub(crate) struct Reconciler {
    pub(crate) engine: Engine,
    pub(crate) fleet: Arc<Fleet>,
    pub(crate) scheduler: Arc<Scheduler>,
    pub(crate) timing: Timing,
}

impl Reconciler {
    pub(crate) async fn run(self, shutdown: CancellationToken) {
        let mut turns = tokio::time::interval(self.timing.reconcile_interval);
        turns.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        loop {
            tokio::select! {
                () = shutdown.cancelled() => return,
                _ = turns.tick() => {}
            }
            // Each step is one transaction, so a turn may end anywhere.
            tokio::select! {
                () = shutdown.cancelled() => return,
                () = self.turn() => {}
            }
        }
    }

    async fn turn(&self) {
        for (executor, id, holding) in self.fleet.holdings() {
            let fence = holding.record.fence;
            let absent = self.fleet.absent_for(&executor);
            let event = if !holding.record.started && holding.since.elapsed() >= self.timing.claim_timeout {
                let waited = HumanDuration::new(self.timing.claim_timeout);
                let message = format!("{executor} did not start it within {waited}");
                Event::Unclaim { fence, reason: Reason::new(Reason::CLAIM_EXPIRED), message }
            } else if absent.is_some_and(|absent| absent >= self.timing.lost_after) {
                let silent = HumanDuration::new(self.timing.lost_after);
                let message = format!("{executor} was not heard of for {silent}; whether the job ended is not known");
                // Where the executor has come back to another controller meanwhile, its presence stands against the loss.
                let still_absent = |txn: Txn| txn.absent(key::presence(&executor));
                report(id, self.lose(id, Event::Lose { fence, message }, still_absent).await);
                continue;
            } else if holding.record.started && holding.since.elapsed() >= self.overdue(holding.record.timeout) {
                let timeout = HumanDuration::new(holding.record.timeout);
                let message = format!("{executor} is there and has not said how it ended, long after its timeout of {timeout}");
                Event::Lose { fence, message }
            } else {
                continue;
            };
            report(id, self.engine.step(id, event).await);
        }
        let expired = self.scheduler.queue().expired(Timestamp::now(), EXPIRIES_A_TURN);
        for id in expired {
            report(id, self.engine.step(id, Event::ExpireInQueue).await);
        }
        self.fleet.changed.notify_one();
    }

    /// How long a started attempt may be held: its timeout is its executor's to keep, and this is for executors that do not.
    fn overdue(&self, timeout: Duration) -> Duration {
        timeout.saturating_add(self.timing.kill_grace).saturating_add(self.timing.overdue)
    }

    async fn lose(&self, id: ExecutionId, event: Event, still_absent: impl Fn(Txn) -> Txn) -> Result<Step, EngineError> {
        self.engine.step_from(self.engine.read(id).await?, event, still_absent).await
    }
}

fn report(id: ExecutionId, result: Result<Step, EngineError>) {
    match result {
        Ok(Step { applied: Applied::Unchanged, .. }) => {}
        Ok(step) => tracing::info!(%id, state = %step.execution.state, message = step.execution.message, "reconciled"),
        // Someone else was quicker, or the executor is back.
        Err(EngineError::Refused(_) | EngineError::Forestalled(_) | EngineError::NotFound(_)) => {}
        Err(error) => tracing::warn!(%id, %error, "could not be reconciled; the next turn tries again"),
    }
}
