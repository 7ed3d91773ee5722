//! What operators do with executors: look at them, have them drain and resume, revoke them.

use futures::StreamExt as _;
use octavius_core::execution::{Event, Reason};
use octavius_core::{ExecutionId, ExecutorId, State, nearest};
use octavius_proto::{Fault, reason, to_timestamp, v1};
use octavius_store::record::{DrainRecord, ExecutorRecord, OwnRecord};
use octavius_store::{Commit, Entry, Revision, StoreError, Txn, codec, key};
use tonic::Code;

use super::{Executors, orphans};
use crate::audit::Act;
use crate::engine::EngineError;
use crate::{fault, mirror};

/// Steps taken at once for what a revoked executor held: enough for transactions to be grouped.
const STEPS_AT_ONCE: usize = 32;

/// How often what a revoked executor holds is looked at: for a moment it may still say, elsewhere, that it starts what it was given.
const LOOKS: usize = 5;

/// Executions that a refusal names.
const NAMED: usize = 10;

fn to_drain(drain: &DrainRecord) -> v1::Drain {
    v1::Drain { by: drain.by.clone(), at: Some(to_timestamp(drain.at)) }
}

fn texts(ids: &[ExecutionId]) -> Vec<String> {
    ids.iter().map(ToString::to_string).collect()
}

fn busy(id: &ExecutorId, held: &[(ExecutionId, OwnRecord)]) -> Fault {
    let mut named: Vec<_> = held.iter().take(NAMED).map(|(id, _)| id.to_string()).collect();
    if held.len() > NAMED {
        named.push("…".to_owned());
    }
    let (count, named) = (held.len(), named.join(", "));
    let word = if count == 1 { "execution" } else { "executions" };
    Fault::new(Code::FailedPrecondition, reason::EXECUTOR_BUSY, format!("executor {id} holds {count} {word}: {named}"))
        .with("count", count)
        .with("executions", named)
}

impl Executors {
    pub(super) async fn list(&self) -> Result<Vec<v1::Executor>, StoreError> {
        let (entries, _) = mirror::list(&*self.store, &key::executors()).await?;
        let mut executors = Vec::with_capacity(entries.len());
        for entry in entries {
            let record: ExecutorRecord = codec::decode(&entry)?;
            let running = self.fleet.held_by(&record.id);
            executors.push(self.shown(record, &running));
        }
        Ok(executors)
    }

    fn shown(&self, record: ExecutorRecord, running: &[ExecutionId]) -> v1::Executor {
        let ExecutorRecord { id, registered_at, token: _, next_token: _, session, draining } = record;
        let present = self.fleet.is_present(&id);
        let state = match (&session, present) {
            (_, true) if draining.is_some() => v1::ExecutorState::Draining,
            (_, true) => v1::ExecutorState::Active,
            (Some(_), false) => v1::ExecutorState::Expired,
            (None, false) => v1::ExecutorState::Registered,
        };
        let seen_at = session.as_ref().map(|session| if present { self.engine.clock().now() } else { session.seen_at });
        v1::Executor {
            id: id.to_string(),
            state: state.into(),
            labels: session.as_ref().map(|session| session.labels.clone().into_iter().collect()).unwrap_or_default(),
            capacity: session.as_ref().map_or(0, |session| session.capacity),
            running: texts(running),
            version: session.as_ref().map(|session| session.version.clone()).unwrap_or_default(),
            orphans: session.as_ref().map(orphans::shown).unwrap_or_default(),
            orphan_count: session.as_ref().map_or(0, |session| u32::try_from(session.orphan_count).unwrap_or(u32::MAX)),
            runner: session.map(|session| session.runner).unwrap_or_default(),
            registered_at: Some(to_timestamp(registered_at)),
            last_seen_at: seen_at.map(to_timestamp),
            draining: draining.as_ref().map(to_drain),
        }
    }

    /// Everything that an executor holds at this moment, by the store itself and not by what the watch has shown.
    async fn held(&self, id: &ExecutorId) -> Result<Vec<(ExecutionId, OwnRecord)>, Fault> {
        let (entries, _) = mirror::list(&*self.store, &key::owned_by(id)).await.map_err(fault::from_store)?;
        let held = entries.iter().filter_map(|entry| Some((key::execution_of(&entry.key)?, codec::decode(entry))));
        held.map(|(id, record)| Ok((id, record.map_err(fault::from_store)?))).collect()
    }

    /// An executor as its record, read a moment ago, says; with what it holds now.
    async fn looked_at(&self, record: ExecutorRecord) -> Result<v1::Executor, Fault> {
        let held: Vec<_> = self.held(&record.id).await?.into_iter().map(|(id, _)| id).collect();
        Ok(self.shown(record, &held))
    }

    async fn find(&self, id: &str) -> Result<(Entry, ExecutorRecord), Fault> {
        if let Ok(id) = id.parse::<ExecutorId>()
            && let Some(entry) = self.store.get(&key::executor(&id)).await.map_err(fault::from_store)?
        {
            let record = codec::decode(&entry).map_err(fault::from_store)?;
            return Ok((entry, record));
        }
        let all = self.list().await.map_err(fault::from_store)?;
        let unknown = Fault::new(Code::NotFound, reason::NOT_FOUND, format!("no executor \"{}\"", id.escape_debug()));
        Err(match nearest::nearest(id, all.iter().map(|executor| executor.id.as_str())) {
            Some(near) => unknown.with("nearest", near),
            None => unknown,
        })
    }

    pub(super) async fn get(&self, id: &str) -> Result<v1::Executor, Fault> {
        self.looked_at(self.find(id).await?.1).await
    }

    /// Has an executor drain. What it holds is looked at after that has been written, so that nothing can come beside it.
    pub(super) async fn drain(&self, id: &str, act: &Act) -> Result<v1::Executor, Fault> {
        let (entry, mut record) = self.find(id).await?;
        if record.draining.is_none() {
            let drain = DrainRecord { by: act.user().to_owned(), at: self.engine.clock().now() };
            record = self.rewrite(entry, record, Some(act), |record| record.draining = Some(drain.clone())).await?.1;
            tracing::info!(executor = id, by = act.user(), "drains");
        }
        self.looked_at(record).await
    }

    pub(super) async fn resume(&self, id: &str, act: &Act) -> Result<v1::Executor, Fault> {
        let (entry, mut record) = self.find(id).await?;
        if record.draining.is_some() {
            record = self.rewrite(entry, record, Some(act), |record| record.draining = None).await?.1;
            tracing::info!(executor = id, by = act.user(), "resumes");
        }
        self.looked_at(record).await
    }

    /// Changes an executor's record; whoever else changes it meanwhile, the change is made to what they wrote. With an act, that is what is
    /// done; without, a step on the way.
    async fn rewrite(
        &self,
        mut entry: Entry,
        mut record: ExecutorRecord,
        act: Option<&Act>,
        change: impl Fn(&mut ExecutorRecord),
    ) -> Result<(Entry, ExecutorRecord), Fault> {
        loop {
            change(&mut record);
            let value = codec::encode(&record);
            let txn = Txn::new().unchanged(&entry).put(entry.key.clone(), value.clone());
            let txn = act.map_or(txn.clone(), |act| act.done(txn));
            match self.store.commit(txn).await {
                Ok(Commit::Done(modified)) => {
                    entry = Entry { value, modified, ..entry };
                    self.fleet.note_record(&entry);
                    return Ok((entry, record));
                }
                // The answer was lost: writing the same once more does no harm.
                Ok(Commit::Conflict(_)) | Err(StoreError::Unknown(_)) => {
                    (entry, record) = self.find(record.id.as_str()).await?;
                }
                Err(error) => return Err(fault::from_store(error)),
            }
        }
    }

    /// Removes an executor; with `force` gives up what it holds. Whatever of this was done before is not done again, so that a call whose
    /// answer was lost can be repeated.
    pub(super) async fn revoke(
        &self,
        request: &v1::RevokeExecutorRequest,
        act: &Act,
    ) -> Result<v1::RevokeExecutorResponse, Fault> {
        let id = octavius_proto::executor_id("id", &request.id)?;
        let mut response = v1::RevokeExecutorResponse::default();
        if let Some(revision) = self.unregister(&id, request.force, act).await? {
            response.was_registered = true;
            self.fleet.forget_record(&id, revision);
            tracing::info!(executor = %id, by = act.user(), force = request.force, "revoked");
        }
        if request.force {
            // It can be given nothing any more: a claim asks for the record that is gone.
            for _ in 0..LOOKS {
                let held = self.held(&id).await?;
                if held.is_empty() {
                    break;
                }
                let given_up = held.into_iter().map(|(execution, record)| self.give_up(&id, execution, record, act.user()));
                let mut given_up = futures::stream::iter(given_up).buffer_unordered(STEPS_AT_ONCE);
                while let Some(done) = given_up.next().await {
                    match done? {
                        Some((execution, State::Queued)) => response.given_back.push(execution.to_string()),
                        Some((execution, State::Lost)) => response.lost.push(execution.to_string()),
                        Some(_) | None => {} // it has ended, or is looked at once more
                    }
                }
            }
            response.given_back.sort_unstable();
            response.lost.sort_unstable();
        }
        Ok(response)
    }

    /// Removes an executor's record and its token; the revision in which they went, none where it was not registered.
    async fn unregister(&self, id: &ExecutorId, force: bool, act: &Act) -> Result<Option<Revision>, Fault> {
        let at = key::executor(id);
        let drain = DrainRecord { by: act.user().to_owned(), at: self.engine.clock().now() };
        let mut may_have = None;
        loop {
            let Some(mut entry) = self.store.get(&at).await.map_err(fault::from_store)? else { return Ok(may_have) };
            let mut record: ExecutorRecord = codec::decode(&entry).map_err(fault::from_store)?;
            if !force {
                let held = self.held(id).await?;
                if !held.is_empty() {
                    return Err(busy(id, &held));
                }
                // It drains first, so that nothing is given to it between the look at what it holds and its end.
                let drains = record.draining.is_some();
                if !drains {
                    (entry, record) = self.rewrite(entry, record, None, |record| record.draining = Some(drain.clone())).await?;
                }
                let held = self.held(id).await?;
                if !held.is_empty() {
                    if !drains {
                        self.rewrite(entry, record, None, |record| {
                            record.draining = record.draining.take().filter(|now| *now != drain);
                        })
                        .await?;
                    }
                    return Err(busy(id, &held));
                }
            }
            let tokens: Vec<_> = [Some(record.token), record.next_token].into_iter().flatten().collect();
            let txn = Txn::new().unchanged(&entry).delete(at.clone());
            let txn = tokens.iter().fold(txn, |txn, token| txn.delete(key::token(token)));
            match act.commit_removal(&*self.store, txn).await {
                Ok(Commit::Done(revision)) => {
                    tokens.iter().for_each(|token| self.tokens.forget(token));
                    return Ok(Some(revision));
                }
                Ok(Commit::Conflict(_)) => {}
                Err(StoreError::Unknown(_)) => may_have = Some(entry.modified),
                Err(error) => return Err(fault::from_store(error)),
            }
        }
    }

    /// Takes something from an executor that is no more; what it is now, none where it had ended or gone already.
    async fn give_up(
        &self,
        executor: &ExecutorId,
        id: ExecutionId,
        record: OwnRecord,
        by: &str,
    ) -> Result<Option<(ExecutionId, State)>, Fault> {
        let event = if record.started {
            let message = format!("{by} revoked {executor} while it ran there; whether the job ended is not known");
            Event::Lose { fence: record.fence, message }
        } else {
            let reason = Reason::new(Reason::HANDED_BACK);
            Event::Unclaim { fence: record.fence, reason, message: format!("{by} revoked {executor}") }
        };
        match self.engine.step(id, event).await {
            Ok(step) => Ok(Some((id, step.execution.state))),
            // It has ended; or what was claimed has started meanwhile.
            Err(EngineError::Refused(_) | EngineError::NotFound(_)) => Ok(None),
            Err(error) => Err(fault::from_engine(error)),
        }
    }
}
