//! What no event brings about: claims that nobody followed up, executors that stay away, waits that are too long. Looked at in turns, by the
//! state as it is; doing a turn twice does no harm, on one controller or on several.

use std::sync::Arc;
use std::time::Duration;

use octavius_core::execution::{Applied, Event, Reason, Refusal};
use octavius_core::{ExecutionId, HumanDuration, Timing};
use octavius_store::{Store, StoreError, Txn, key};
use tokio_util::sync::CancellationToken;

use crate::engine::{Engine, EngineError, Step};
use crate::fleet::Fleet;
use crate::losses::Judge;
use crate::scheduler::Scheduler;

/// Waits that are ended in one turn; the rest follows in the next.
const EXPIRIES_A_TURN: usize = 1000;

/// Takes turns.
#[derive(Debug)]
pub(crate) struct Reconciler {
    pub(crate) store: Arc<dyn Store>,
    pub(crate) engine: Engine,
    pub(crate) fleet: Arc<Fleet>,
    pub(crate) scheduler: Arc<Scheduler>,
    pub(crate) judge: Arc<Judge>,
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

    pub(crate) async fn turn(&self) {
        // One small read, so that a controller that has no sessions knows too whether the store was away.
        match self.store.get(&key::duty()).await {
            Err(StoreError::Unavailable(_) | StoreError::Unknown(_)) => return self.judge.store_failed(),
            _ => self.judge.store_answered(),
        }
        let mut failed = Failed::default();
        let may_lose = self.judge.may_lose(self.fleet.present());
        for (executor, id, holding) in self.fleet.holdings() {
            if failed.is_away() {
                break;
            }
            let fence = holding.record.fence;
            let absent = self.fleet.absent_for(&executor);
            let event = if !holding.record.started && self.engine.clock().since(holding.since) >= self.timing.claim_timeout {
                let waited = HumanDuration::new(self.timing.claim_timeout);
                let message = format!("{executor} did not start it within {waited}");
                Event::Unclaim { fence, reason: Reason::new(Reason::CLAIM_EXPIRED), message }
            } else if !may_lose {
                continue;
            } else if absent.is_some_and(|absent| absent >= self.timing.lost_after) {
                let silent = HumanDuration::new(self.timing.lost_after);
                let message = format!("{executor} was not heard of for {silent}; whether the job ended is not known");
                // Where the executor has come back to another controller meanwhile, its presence stands against the loss.
                let still_absent = |txn: Txn| txn.absent(key::presence(&executor));
                failed.note(id, self.lose(id, Event::Lose { fence, message }, still_absent).await);
                continue;
            } else if holding.record.started && self.engine.clock().since(holding.since) >= self.overdue(holding.record.timeout) {
                let timeout = HumanDuration::new(holding.record.timeout);
                let message = format!("{executor} is there and has not said how it ended, long after its timeout of {timeout}");
                Event::Lose { fence, message }
            } else {
                continue;
            };
            failed.note(id, self.engine.step(id, event).await);
        }
        for id in self.scheduler.slots().outlived(self.timing.kill_grace + self.timing.overdue) {
            if failed.is_away() {
                break;
            }
            failed.note(id, self.engine.step(id, Event::FreeSlot).await);
        }
        let expired = self.scheduler.queue().expired(self.engine.clock().now(), EXPIRIES_A_TURN);
        for expired in expired {
            if failed.is_away() {
                break;
            }
            let step = self.engine.step(expired.id, Event::ExpireWait).await;
            match &step {
                Err(EngineError::Refused(Refusal::MayWait)) => {} // it waits anew, and the watch is about to show since when
                // It does not wait any more, whatever the watch shows when.
                Ok(_) | Err(EngineError::Refused(_) | EngineError::NotFound(_)) => self.scheduler.queue().expire(expired),
                Err(_) => {}
            }
            failed.note(expired.id, step);
        }
        for id in self.scheduler.awaiting().expired(self.engine.clock().now(), EXPIRIES_A_TURN) {
            if failed.is_away() {
                break;
            }
            let step = self.engine.step(id, Event::ExpireWait).await;
            match &step {
                Err(EngineError::Refused(Refusal::MayWait)) => {} // by the record it has time yet: it is asked again when that is over
                // Where it was approved meanwhile, the queue sees to the rest.
                Ok(_) | Err(EngineError::Refused(_) | EngineError::NotFound(_)) => self.scheduler.awaiting().forget(id),
                Err(_) => {}
            }
            failed.note(id, step);
        }
        failed.tell();
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

/// What a turn could not do. Told once a turn, whatever it holds: a store that is full or away fails everything.
#[derive(Debug, Default)]
struct Failed {
    count: usize,
    first: Option<(ExecutionId, EngineError)>,
}

impl Failed {
    fn note(&mut self, id: ExecutionId, result: Result<Step, EngineError>) {
        match result {
            Ok(Step { applied: Applied::Unchanged, .. }) => {}
            Ok(step) => {
                tracing::info!(execution = %id, state = %step.execution.state, why = %step.execution.message, "reconciled");
            }
            // Someone else was quicker, or the executor is back.
            Err(EngineError::Refused(_) | EngineError::Forestalled(_) | EngineError::NotFound(_)) => {}
            Err(error) => {
                tracing::debug!(execution = %id, %error, "could not be reconciled");
                self.count += 1;
                self.first.get_or_insert((id, error));
            }
        }
    }

    /// Whether the store does not answer: then nothing else succeeds either, each after a wait, and what was known when the turn
    /// began is out of date when it is back.
    fn is_away(&self) -> bool {
        matches!(self.first, Some((_, EngineError::Store(StoreError::Unavailable(_) | StoreError::Unknown(_)))))
    }

    fn tell(self) {
        if let Some((id, error)) = self.first {
            tracing::warn!(count = self.count, execution = %id, %error, "could not be reconciled; the next turn tries again");
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicUsize, Ordering};

    use tracing::{Level, Metadata, Subscriber, span};

    use super::*;

    /// Counts what is told to operators.
    struct Warnings(Arc<AtomicUsize>);

    impl Subscriber for Warnings {
        fn enabled(&self, metadata: &Metadata<'_>) -> bool {
            *metadata.level() <= Level::WARN
        }
        fn new_span(&self, _: &span::Attributes<'_>) -> span::Id {
            span::Id::from_u64(1)
        }
        fn record(&self, _: &span::Id, _: &span::Record<'_>) {}
        fn record_follows_from(&self, _: &span::Id, _: &span::Id) {}
        fn event(&self, _: &tracing::Event<'_>) {
            self.0.fetch_add(1, Ordering::Relaxed);
        }
        fn enter(&self, _: &span::Id) {}
        fn exit(&self, _: &span::Id) {}
    }

    #[test]
    fn a_store_that_takes_nothing_is_told_once_a_turn_and_not_for_each_execution() {
        let told = Arc::new(AtomicUsize::new(0));
        tracing::subscriber::with_default(Warnings(Arc::clone(&told)), || {
            let mut failed = Failed::default();
            for bits in 0..1000 {
                failed.note(ExecutionId::from_bits(bits), Err(StoreError::Full("made up".into()).into()));
                assert!(!failed.is_away(), "a full store takes what removes");
            }
            assert_eq!((told.load(Ordering::Relaxed), failed.count), (0, 1000));
            failed.tell();
            assert_eq!(told.load(Ordering::Relaxed), 1);
            Failed::default().tell();
            assert_eq!(told.load(Ordering::Relaxed), 1, "nothing failed");
        });
        let mut failed = Failed::default();
        failed.note(ExecutionId::from_bits(1), Err(StoreError::Unavailable("made up".into()).into()));
        assert!(failed.is_away());
    }
}
