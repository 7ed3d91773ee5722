//! Every step of every execution: read, apply the event, write the record and its indexes in one transaction that asks that the record is
//! still as it was read. Whoever loses the race reads again. Any controller can take any step.

use std::sync::Arc;

use octavius_core::argument::Arguments;
use octavius_core::execution::{Applied, Event, Execution, Refusal, State};
use octavius_core::{Digest, ExecutionId, ExecutorId, JobDefinition, Timing, label};
use octavius_store::record::{ApprovalWaitRecord, OwnRecord, QueueRecord, SlotRecord};
use octavius_store::{Commit, Entry, Key, Revision, Store, StoreError, Txn, blob, codec, key};

use crate::clock::Clock;
use crate::metrics::Counts;
use crate::recent::Recent;
use crate::sealing::{self, SealError, Sealer};
use crate::webhooks::Subscriptions;

/// Tries of one step before giving up. Steps of one execution hardly ever race; many losses in a row mean something is wrong.
const MAX_TRIES: usize = 20;

/// Why a step was not taken.
#[derive(Debug, thiserror::Error)]
pub(crate) enum EngineError {
    /// The store did not answer.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// There is no such execution.
    #[error("no execution {0}")]
    NotFound(ExecutionId),
    /// The step is not possible.
    #[error(transparent)]
    Refused(Refusal),
    /// What the caller asked for beside the execution does not hold.
    #[error("something else stands against a step of execution {0}")]
    Forestalled(ExecutionId),
    /// Its sensitive arguments cannot be kept or read.
    #[error("execution {0}: {1}")]
    Sealed(ExecutionId, SealError),
    /// Others kept changing it.
    #[error("execution {0} changes too quickly")]
    Contended(ExecutionId),
}

/// An execution after a step, and whether the step changed it.
#[derive(Debug)]
pub(crate) struct Step {
    /// As it is now.
    pub(crate) execution: Arc<Execution>,
    /// Whether this call changed it.
    pub(crate) applied: Applied,
    /// The revision that wrote it so.
    pub(crate) revision: Revision,
}

/// An execution as it was read, or as it is remembered.
#[derive(Debug)]
pub(crate) struct Known {
    /// It.
    pub(crate) execution: Arc<Execution>,
    modified: Revision,
    /// Whether it was just read, so that what is concluded from it is right.
    fresh: bool,
}

impl Known {
    /// Asks, in `txn`, that it is still so.
    pub(crate) fn still(&self, txn: Txn) -> Txn {
        txn.when(key::execution(self.execution.id), self.modified)
    }
}

/// Takes steps.
#[derive(Debug, Clone)]
pub(crate) struct Engine {
    store: Arc<dyn Store>,
    recent: Arc<Recent>,
    timing: Timing,
    clock: Clock,
    sealer: Sealer,
    subscriptions: Subscriptions,
    /// What is taken of steps, for the metrics.
    pub(crate) counts: Counts,
}

impl Engine {
    pub(crate) fn new(store: Arc<dyn Store>, timing: Timing, clock: Clock, sealer: Sealer) -> Self {
        Self {
            store,
            recent: Arc::default(),
            timing,
            clock,
            sealer,
            subscriptions: Subscriptions::default(),
            counts: Counts::default(),
        }
    }

    /// The same, with webhooks that are told of steps.
    pub(crate) fn telling(self, subscriptions: Subscriptions) -> Self {
        Self { subscriptions, ..self }
    }

    /// The webhooks that are told of steps.
    pub(crate) fn subscriptions(&self) -> &Subscriptions {
        &self.subscriptions
    }

    /// The clock that steps are dated by.
    pub(crate) fn clock(&self) -> &Clock {
        &self.clock
    }

    /// What encrypts sensitive arguments.
    pub(crate) fn sealer(&self) -> &Sealer {
        &self.sealer
    }

    /// The execution as it is now.
    pub(crate) async fn read(&self, id: ExecutionId) -> Result<Known, EngineError> {
        let entry = self.store.get(&key::execution(id)).await?;
        self.take_in(id, entry)
    }

    /// The execution as it is remembered, if `suits` says yes to that; otherwise as it is now.
    ///
    /// What is remembered may be old. It is good for a transaction that asks that it is [`Known::still`] so, and for nothing else: ask `suits`
    /// to say no to whatever would be refused, so that nobody is refused for what was. Where such a transaction meets a conflict, go on
    /// with [`Engine::read`]; the same copy is recalled otherwise.
    pub(crate) async fn recall(&self, id: ExecutionId, suits: impl FnOnce(&Execution) -> bool) -> Result<Known, EngineError> {
        match self.recent.get(id) {
            Some((execution, modified)) if suits(&execution) => Ok(Known { execution, modified, fresh: false }),
            _ => self.read(id).await,
        }
    }

    /// What the store has just said of an execution, remembered.
    fn take_in(&self, id: ExecutionId, entry: Option<Entry>) -> Result<Known, EngineError> {
        let Some(entry) = entry else {
            self.recent.remove(id);
            return Err(EngineError::NotFound(id));
        };
        let execution: Arc<Execution> = Arc::new(codec::decode(&entry)?);
        self.recent.put(&execution, entry.modified, entry.value.len());
        Ok(Known { execution, modified: entry.modified, fresh: true })
    }

    /// Remembers a submission that was made at `revision`: its claim comes soon.
    pub(crate) fn submitted(&self, execution: &Arc<Execution>, revision: Revision) {
        self.counts.submitted();
        let size = execution.selector.len() * 64 + execution.arguments.iter().map(|(k, v)| k.len() + v.len()).sum::<usize>();
        self.recent.put(execution, revision, size + 512);
    }

    /// The execution as it is now, for those who only look at it.
    pub(crate) async fn get(&self, id: ExecutionId) -> Result<Arc<Execution>, EngineError> {
        Ok(self.read(id).await?.execution)
    }

    /// Applies `event` at the present time.
    pub(crate) async fn step(&self, id: ExecutionId, event: Event) -> Result<Step, EngineError> {
        self.step_from(self.recall(id, |_| true).await?, event, |txn| txn).await
    }

    /// Applies `event` to an execution as it was read or recalled; `more` adds conditions and changes to the same transaction. Where one of
    /// those conditions does not hold, the answer is [`EngineError::Forestalled`].
    pub(crate) async fn step_from(&self, mut known: Known, event: Event, more: impl Fn(Txn) -> Txn) -> Result<Step, EngineError> {
        let id = known.execution.id;
        let record = key::execution(id);
        for _ in 0..MAX_TRIES {
            let mut execution = Execution::clone(&known.execution);
            let applied = execution.apply(event.clone(), self.clock.now());
            if !known.fresh && !matches!(applied, Ok(Applied::Changed)) {
                known = self.read(id).await?; // nobody is told no, or that it is done, by what is only remembered
                continue;
            }
            let applied = applied.map_err(EngineError::Refused)?;
            let execution = Arc::new(execution);
            if applied == Applied::Unchanged {
                return Ok(Step { execution, applied, revision: known.modified });
            }
            let value = codec::encode(&*execution);
            let size = value.len();
            let txn = known.still(Txn::new()).put(record.clone(), value);
            let txn = index(txn, Some(&known.execution), &execution, &self.timing);
            let txn = self.subscriptions.note(txn, Some(&known.execution), &execution, self.clock.now());
            let current = match self.store.commit(more(txn.or_read(record.clone()))).await {
                Ok(Commit::Done(revision)) => {
                    self.recent.put(&execution, revision, size);
                    self.counts.step(&known.execution, &execution);
                    return Ok(Step { execution, applied, revision });
                }
                Ok(Commit::Conflict(mut current)) => {
                    let current = current.pop().flatten();
                    if current.as_ref().is_some_and(|current| current.modified == known.modified) {
                        return Err(EngineError::Forestalled(id));
                    }
                    current
                }
                // The write may have happened. Reading again and applying the same event tells: done twice, it changes nothing.
                Err(StoreError::Unknown(_)) => self.store.get(&record).await?,
                Err(error) => return Err(error.into()),
            };
            known = self.take_in(id, current)?;
        }
        Err(EngineError::Contended(id))
    }

    /// Everything that a new execution writes: its record, its place in the queue or among what waits for approval, its place in two listings,
    /// the slot of its job where it takes one at once, and what webhooks are to be told of it.
    pub(crate) fn submission(&self, execution: &Execution) -> Txn {
        let record = key::execution(execution.id);
        let txn = Txn::new().absent(record.clone()).put(record.clone(), codec::encode(execution)).or_read(record);
        let txn = index(txn, None, execution, &self.timing);
        let mut txn = self.subscriptions.note(txn, None, execution, self.clock.now());
        if let Some(with) = execution.sealed_with {
            txn = txn.put(key::sealed(with, execution.id), "");
        }
        txn.put(key::by_job(&execution.job, execution.id), "").put(key::by_user(&execution.user, execution.id), "")
    }

    /// What the queue says of an execution that waits.
    pub(crate) fn queue_record(&self, execution: &Execution) -> QueueRecord {
        queue_record(execution, &self.timing)
    }

    /// Makes a new execution's arguments as they are kept: sensitive ones encrypted, and all of them in a blob of their own where they are too
    /// large for the record. Comes before the submission.
    pub(crate) async fn put_away_arguments(&self, execution: &mut Execution, job: &JobDefinition) -> Result<(), EngineError> {
        self.sealer.seal(execution, job).map_err(|error| EngineError::Sealed(execution.id, error))?;
        Ok(set_aside_arguments(&*self.store, execution).await?)
    }

    /// An execution's arguments as they were given, wherever they are.
    pub(crate) async fn arguments(&self, execution: &Execution) -> Result<Arguments, EngineError> {
        let kept = kept_arguments(&*self.store, execution).await?;
        self.sealer.open(execution, kept).map_err(|error| EngineError::Sealed(execution.id, error))
    }

    /// An execution's arguments with those masked that are encrypted, to be shown: that needs no key.
    pub(crate) async fn shown_arguments(&self, execution: &Execution) -> Result<Arguments, StoreError> {
        Ok(sealing::masked(kept_arguments(&*self.store, execution).await?))
    }
}

/// Moves arguments that are too large for the record into a blob of their own.
pub(crate) async fn set_aside_arguments(store: &dyn Store, execution: &mut Execution) -> Result<(), StoreError> {
    let json = codec::encode(&execution.arguments);
    if json.len() > Execution::ARGUMENTS_BYTES {
        let digest = Digest::of(&json);
        blob::put_all(store, [(digest, json)]).await?;
        execution.large_arguments = Some(digest);
        execution.arguments.clear();
    }
    Ok(())
}

/// An execution's arguments as they are kept.
pub(crate) async fn kept_arguments(store: &dyn Store, execution: &Execution) -> Result<Arguments, StoreError> {
    let Some(digest) = execution.large_arguments else { return Ok(execution.arguments.clone()) };
    let missing = || StoreError::Unreadable(format!("the arguments of {}, blob {digest}, are missing", execution.id));
    let json = blob::get(store, &digest).await?.ok_or_else(missing)?;
    codec::decode(&Entry { key: key::blob(&digest), value: json, created: 0, modified: 0 })
}

/// Longest name of a pool that is written out in a key.
const POOL_BYTES: usize = 256;

/// The key under which an execution waits.
pub(crate) fn queue_key(execution: &Execution) -> Key {
    let mut pool = label::pool(&execution.selector);
    if pool.len() > POOL_BYTES {
        pool = Digest::of(pool.as_bytes()).to_string();
    }
    key::queued(&pool, execution.priority, execution.id)
}

fn holder(execution: &Execution) -> Option<(&ExecutorId, OwnRecord)> {
    let fence = execution.fence()?;
    let (started, cancel) = (execution.state != State::Claimed, execution.cancel.is_some());
    let record = OwnRecord { fence, started, cancel, timeout: execution.timeout };
    Some((execution.executor()?, record))
}

/// The slot of its job that an execution holds, and what the store says of it.
fn slot(execution: &Execution) -> Option<(u32, SlotRecord)> {
    let lost = (execution.state == State::Lost).then_some(execution.timeout);
    Some((execution.slot?, SlotRecord { id: execution.id, lost }))
}

/// Adds to `txn` what else changes with an execution: whether it waits, and for what, whether it is over, who holds it, and which slot of its job it has.
fn index(mut txn: Txn, before: Option<&Execution>, after: &Execution, timing: &Timing) -> Txn {
    let waited = before.is_some_and(|before| before.state == State::Queued);
    let waits = after.state == State::Queued;
    if waited && !waits {
        txn = txn.delete(queue_key(after));
    }
    if waits && !waited {
        txn = txn.put(queue_key(after), codec::encode(&queue_record(after, timing)));
    }
    let awaits = |execution: &Execution| execution.state == State::WaitingForApproval;
    match (before.is_some_and(awaits), awaits(after)) {
        (false, true) => {
            let record = ApprovalWaitRecord { expires_at: after.waits_until() };
            txn = txn.put(key::awaits_approval(after.id), codec::encode(&record));
        }
        (true, false) => txn = txn.delete(key::awaits_approval(after.id)),
        (false, false) | (true, true) => {}
    }
    if let Some(finished_at) = after.finished_at
        && after.state.is_terminal()
        && before.is_none_or(|before| !before.state.is_terminal())
    {
        txn = txn.put(key::removable_execution(key::hour_of(finished_at), after.id), "");
    }
    let (held_by, holds) = (before.and_then(holder), holder(after));
    if held_by != holds {
        if let Some((executor, _)) = &held_by
            && holds.as_ref().is_none_or(|(now, _)| now != executor)
        {
            txn = txn.delete(key::owned(executor, after.id));
        }
        if let Some((executor, record)) = holds {
            txn = txn.put(key::owned(executor, after.id), codec::encode(&record));
        }
    }
    let (had, has) = (before.and_then(slot), slot(after));
    match (had, has) {
        (had, has) if had == has => txn,
        (Some((number, _)), None) => txn.delete(key::slot(&after.job, number)),
        (Some(_), Some((number, record))) => txn.put(key::slot(&after.job, number), codec::encode(&record)),
        (None, Some((number, record))) => {
            let at = key::slot(&after.job, number);
            txn.absent(at.clone()).put(at, codec::encode(&record))
        }
        (None, None) => txn,
    }
}

fn queue_record(execution: &Execution, timing: &Timing) -> QueueRecord {
    QueueRecord {
        selector: execution.selector.clone(),
        expires_at: execution.waits_until(),
        job: execution.job.clone(),
        limit: execution.concurrency.filter(|_| execution.slot.is_none()).map_or(0, |concurrency| concurrency.limit),
        delay: execution.back_off(timing),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use octavius_core::execution::{Approver, Ending, Fence, Submission};
    use octavius_core::{CatalogName, Timestamp};
    use octavius_store::Change;

    fn queued(job: &str, slot: Option<u32>) -> Execution {
        let job: JobDefinition = serde_json::from_str(job).unwrap();
        let at = Timestamp::UNIX_EPOCH;
        let id = ExecutionId::from_bits(1);
        let submission = Submission { id, arguments: Arguments::new(), user: "ann".into(), at, timeout: None, slot };
        Execution::submit(&job, CatalogName::new("c").unwrap(), 1, submission, &Timing::default())
    }

    /// What a step changes beside the record, in short; the conditions that it adds, first.
    fn indexed(before: Option<&Execution>, after: &Execution) -> Vec<String> {
        let txn = index(Txn::new(), before, after, &Timing::default());
        let kind = |key: &Key| key.as_str().split('/').next().unwrap().to_owned();
        let conditions = txn.conditions.iter().map(|condition| format!("absent {}", kind(&condition.key)));
        let changes = txn.changes.iter().map(|change| match change {
            Change::Put(key, _) => format!("put {}", kind(key)),
            Change::Delete(key) => format!("delete {}", kind(key)),
        });
        conditions.chain(changes).collect()
    }

    /// Takes steps, and says what each changes beside the record.
    struct Steps(Execution);

    impl Steps {
        fn take(&mut self, event: Event) -> Vec<String> {
            let before = self.0.clone();
            self.0.apply(event, Timestamp::UNIX_EPOCH).unwrap();
            indexed(Some(&before), &self.0)
        }

        fn claim(&mut self, slot: Option<u32>) -> (Vec<String>, Fence) {
            let changes = self.take(Event::Claim { executor: ExecutorId::new("e").unwrap(), nonce: 1, slot });
            (changes, self.0.fence().unwrap())
        }
    }

    #[test]
    fn an_execution_is_either_in_the_queue_or_held_or_over() {
        let execution = queued(r#"{"name":"j","command":["true"]}"#, None);
        assert_eq!(indexed(None, &execution), ["put queue"]);
        let mut steps = Steps(execution);
        let (changes, fence) = steps.claim(None);
        assert_eq!(changes, ["delete queue", "put own"]);
        assert_eq!(steps.take(Event::Start { fence }), ["put own"]);
        assert_eq!(steps.take(Event::Run { fence, runs_as: String::new(), image: String::new() }), [""; 0]);
        assert_eq!(steps.take(Event::Cancel { by: "ann".into() }), ["put own"]);
        assert_eq!(steps.take(Event::Finish { fence, ending: Ending::succeeded(), log: None }), ["put gc", "delete own"]);
    }

    /// What is neither in the queue nor among what waits for approval would wait for ever; what is in both would start unapproved.
    #[test]
    fn what_waits_for_approval_is_not_in_the_queue() {
        let asked = |count: u32| queued(&format!(r#"{{"name":"j","command":["true"],"approvals":{{"count":{count}}}}}"#), None);
        let approve = |user: &str| {
            let by = Approver { user: user.into(), groups: Vec::new(), may_run: true };
            Event::Approve { by, reason: String::new() }
        };
        assert_eq!(indexed(None, &asked(2)), ["put awaiting-approval"]);
        let mut steps = Steps(asked(2));
        assert_eq!(steps.take(approve("bob")), [""; 0]);
        assert_eq!(steps.take(approve("cyn")), ["put queue", "delete awaiting-approval"]);
        assert_eq!(queue_record(&steps.0, &Timing::default()).expires_at, steps.0.waits_until());
        assert_eq!(steps.claim(None).0, ["delete queue", "put own"]);
        let mut steps = Steps(asked(1));
        assert_eq!(steps.take(Event::Cancel { by: "ann".into() }), ["delete awaiting-approval", "put gc"]);
    }

    #[test]
    fn a_slot_is_taken_with_the_claim_and_freed_when_nothing_runs_any_more() {
        let mut steps = Steps(queued(r#"{"name":"j","command":["true"],"concurrency":{"limit":1}}"#, None));
        assert_eq!(queue_record(&steps.0, &Timing::default()).limit, 1);
        let (changes, fence) = steps.claim(Some(0));
        assert_eq!(changes, ["absent slot", "delete queue", "put own", "put slot"]);
        let reason = octavius_core::execution::Reason::new("X");
        assert_eq!(
            steps.take(Event::Unclaim { fence, reason, message: String::new() }),
            ["put queue", "delete own", "delete slot"]
        );
        let (_, fence) = steps.claim(Some(0));
        steps.take(Event::Start { fence });
        assert_eq!(steps.take(Event::Lose { fence, message: String::new() }), ["put gc", "delete own", "put slot"]);
        assert_eq!(slot(&steps.0).unwrap().1.lost, Some(steps.0.timeout));
        let mut others = Steps(steps.0.clone());
        assert_eq!(others.take(Event::FreeSlot), ["delete slot"]);
        assert_eq!(others.take(Event::FreeSlot), [""; 0]);
        assert_eq!(steps.take(Event::Finish { fence, ending: Ending::succeeded(), log: None }), ["delete slot"]);
    }

    #[test]
    fn what_is_refused_when_all_slots_are_taken_has_one_from_its_submission_to_its_end() {
        let job = r#"{"name":"j","command":["true"],"retries":1,"concurrency":{"limit":2,"when_full":"reject"}}"#;
        let execution = queued(job, Some(1));
        assert_eq!(indexed(None, &execution), ["absent slot", "put queue", "put slot"]);
        assert_eq!(queue_record(&execution, &Timing::default()).limit, 0);
        let mut steps = Steps(execution);
        let failed = || Ending::because(State::Failed, "X", "");
        let (changes, fence) = steps.claim(None);
        assert_eq!(changes, ["delete queue", "put own"]);
        steps.take(Event::Start { fence });
        assert_eq!(steps.take(Event::Finish { fence, ending: failed(), log: None }), ["put queue", "delete own"]);
        assert_eq!(queue_record(&steps.0, &Timing::default()).delay, Timing::default().back_off_min);
        let (_, fence) = steps.claim(None);
        steps.take(Event::Start { fence });
        assert_eq!(steps.take(Event::Finish { fence, ending: failed(), log: None }), ["put gc", "delete own", "delete slot"]);
    }
}
