//! Every step of every execution: read, apply the event, write the record and its indexes in one transaction that asks that the record is
//! still as it was read. Whoever loses the race reads again. Any controller can take any step.

use std::sync::Arc;

use octavius_core::argument::Arguments;
use octavius_core::execution::{Applied, Event, Execution, Refusal, State};
use octavius_core::{Digest, ExecutionId, ExecutorId, Timestamp, label};
use octavius_store::record::{OwnRecord, QueueRecord};
use octavius_store::{Change, Commit, Entry, Key, Revision, Store, StoreError, Txn, blob, codec, key};

use crate::recent::Recent;

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
}

impl Engine {
    pub(crate) fn new(store: Arc<dyn Store>) -> Self {
        Self { store, recent: Arc::default() }
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
            let applied = execution.apply(event.clone(), Timestamp::now());
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
            let mut txn = known.still(Txn::new()).put(record.clone(), value);
            txn.changes.extend(index_changes(Some(&known.execution), &execution));
            let current = match self.store.commit(more(txn.or_read(record.clone()))).await {
                Ok(Commit::Done(revision)) => {
                    self.recent.put(&execution, revision, size);
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

    /// Everything that a new execution writes: its record, its place in the queue, and its place in two listings.
    pub(crate) fn submission(execution: &Execution) -> Txn {
        let record = key::execution(execution.id);
        let mut txn = Txn::new().absent(record.clone()).put(record.clone(), codec::encode(execution)).or_read(record);
        txn.changes.extend(index_changes(None, execution));
        txn.put(key::by_job(&execution.job, execution.id), "").put(key::by_user(&execution.user, execution.id), "")
    }

    /// Moves arguments that are too large for the record into a blob of their own. Comes before the submission.
    pub(crate) async fn set_aside_arguments(&self, execution: &mut Execution) -> Result<(), StoreError> {
        let json = codec::encode(&execution.arguments);
        if json.len() > Execution::ARGUMENTS_BYTES {
            let digest = Digest::of(&json);
            blob::put_all(&*self.store, [(digest, json)]).await?;
            execution.large_arguments = Some(digest);
            execution.arguments.clear();
        }
        Ok(())
    }

    /// An execution's arguments, wherever they are.
    pub(crate) async fn arguments(&self, execution: &Execution) -> Result<Arguments, StoreError> {
        let Some(digest) = execution.large_arguments else { return Ok(execution.arguments.clone()) };
        let missing = || StoreError::Unreadable(format!("the arguments of {}, blob {digest}, are missing", execution.id));
        let json = blob::get(&*self.store, &digest).await?.ok_or_else(missing)?;
        codec::decode(&Entry { key: key::blob(&digest), value: json, created: 0, modified: 0 })
    }
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

/// What else changes with an execution: whether it waits, whether it is over, and who holds it.
fn index_changes(before: Option<&Execution>, after: &Execution) -> Vec<Change> {
    let mut changes = Vec::new();
    let waited = before.is_some_and(|before| before.state == State::Queued);
    let waits = after.state == State::Queued;
    if waited && !waits {
        changes.push(Change::Delete(queue_key(after)));
    }
    if waits && !waited {
        let record = QueueRecord { selector: after.selector.clone(), expires_at: after.waits_until() };
        changes.push(Change::Put(queue_key(after), codec::encode(&record)));
    }
    if let Some(finished_at) = after.finished_at
        && after.state.is_terminal()
        && before.is_none_or(|before| !before.state.is_terminal())
    {
        changes.push(Change::Put(key::removable_execution(key::hour_of(finished_at), after.id), "".into()));
    }
    let held_by = before.and_then(holder);
    let holds = holder(after);
    if held_by != holds {
        if let Some((executor, _)) = &held_by
            && holds.as_ref().is_none_or(|(now, _)| now != executor)
        {
            changes.push(Change::Delete(key::owned(executor, after.id)));
        }
        if let Some((executor, record)) = holds {
            changes.push(Change::Put(key::owned(executor, after.id), codec::encode(&record)));
        }
    }
    changes
}

#[cfg(test)]
mod tests {
    use super::*;
    use octavius_core::execution::{Ending, Submission};
    use octavius_core::{CatalogName, JobDefinition, Timing};

    fn queued() -> Execution {
        let job: JobDefinition = serde_json::from_str(r#"{"name":"j","command":["true"]}"#).unwrap();
        let at = Timestamp::UNIX_EPOCH;
        let id = ExecutionId::from_bits(1);
        let submission = Submission { id, arguments: Arguments::new(), user: "ann".into(), at, timeout: None };
        Execution::submit(&job, CatalogName::new("c").unwrap(), 1, submission, &Timing::default())
    }

    fn shown(changes: &[Change]) -> Vec<String> {
        changes
            .iter()
            .map(|change| match change {
                Change::Put(key, _) => format!("put {}", key.as_str().split('/').next().unwrap()),
                Change::Delete(key) => format!("delete {}", key.as_str().split('/').next().unwrap()),
            })
            .collect()
    }

    #[test]
    fn an_execution_is_either_in_the_queue_or_held_or_over() {
        let at = Timestamp::UNIX_EPOCH;
        let mut execution = queued();
        assert_eq!(shown(&index_changes(None, &execution)), ["put queue"]);
        let mut step = |event: Event| {
            let before = execution.clone();
            execution.apply(event, at).unwrap();
            (shown(&index_changes(Some(&before), &execution)), execution.fence())
        };
        let executor = ExecutorId::new("e").unwrap();
        let (changes, fence) = step(Event::Claim { executor, nonce: 1 });
        assert_eq!(changes, ["delete queue", "put own"]);
        let fence = fence.unwrap();
        assert_eq!(step(Event::Start { fence }).0, ["put own"]);
        assert_eq!(step(Event::Run { fence, runs_as: String::new(), image: String::new() }).0, [""; 0]);
        assert_eq!(step(Event::Cancel { by: "ann".into() }).0, ["put own"]);
        assert_eq!(step(Event::Finish { fence, ending: Ending::succeeded(), log: None }).0, ["put gc", "delete own"]);
    }
}
