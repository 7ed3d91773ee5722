//! What an executor and the store agree on when a session begins: what the executor holds.

use futures::StreamExt as _;
use octavius_core::definition::OnLost;
use octavius_core::execution::{Event, Fence, Reason};
use octavius_core::{Execution, ExecutionId, ExecutorId, State, label};
use octavius_proto::Fault;
use octavius_proto::v1::{self, session_response::Say};
use octavius_store::record::OwnRecord;
use octavius_store::{Entry, codec, key};
use tonic::Code;

use super::report::{is, is_from_elsewhere};
use super::{Executors, Session};
use crate::engine::EngineError;
use crate::{fault, mirror};

/// Steps taken at once when an executor comes back without what it held: enough for transactions to be grouped.
const STEPS_AT_ONCE: usize = 32;

impl Executors {
    /// Compares what an executor says it holds with what the store says, and returns what it must be told. All of it as long as the
    /// executor's presence is this session's: an executor that has begun another meanwhile, here or elsewhere, has new things to say.
    pub(super) async fn agree(&self, session: &mut Session) -> Result<Vec<Say>, Fault> {
        let executor = session.executor.clone();
        let at = key::presence(&executor);
        let present = self.store.get(&at).await.map_err(fault::from_store)?;
        let present = present.filter(|there| there.value == session.presence_value()).ok_or_else(replaced)?;
        // Its own late word may have displaced that of a newer session, which knows better what the executor holds.
        if !self.fleet.is_newest(&executor, session.number) {
            return Err(replaced());
        }
        let mut held = std::mem::take(&mut session.held);
        let (mut say, mut gone) = (Vec::new(), Vec::new());
        let (owned, _) = mirror::list(&*self.store, &key::owned_by(&executor)).await.map_err(fault::from_store)?;
        for entry in owned {
            let Some(id) = key::execution_of(&entry.key) else { continue };
            let record: OwnRecord = codec::decode(&entry).map_err(fault::from_store)?;
            match held.remove(&(id, record.fence)) {
                true if record.cancel => say.push(stop(id, record.fence, v1::StopCause::Cancelled)),
                true => {}
                false => gone.push((id, record)),
            }
        }
        let gone = gone.into_iter().map(|(id, record)| self.take_from(&executor, id, record, &present));
        let mut gone = futures::stream::iter(gone).buffer_unordered(STEPS_AT_ONCE);
        while let Some(taken) = gone.next().await {
            taken?;
        }
        // What is left is held by the executor and not owned in the store: ended, lost, given to someone else, or not known at all.
        for (id, fence) in held {
            if let Some(cause) = self.why_stop(session, id, fence).await? {
                say.push(stop(id, fence, cause));
            }
        }
        Ok(say)
    }

    /// The executor does not have what it should. A claim that never arrived goes back in line; something started is gone.
    async fn take_from(&self, executor: &ExecutorId, id: ExecutionId, record: OwnRecord, present: &Entry) -> Result<(), Fault> {
        let event = if record.started {
            let message = format!("{executor} came back without it; whether the job ended is not known");
            Event::Lose { fence: record.fence, message }
        } else {
            let reason = Reason::new(Reason::HANDED_BACK);
            Event::Unclaim { fence: record.fence, reason, message: format!("{executor} did not receive it") }
        };
        let step = async { self.engine.step_from(self.engine.read(id).await?, event, |txn| txn.unchanged(present)).await };
        match step.await {
            Ok(_) | Err(EngineError::Refused(_) | EngineError::NotFound(_)) => Ok(()),
            Err(EngineError::Forestalled(_)) => Err(replaced()),
            Err(error) => Err(fault::from_engine(error)),
        }
    }

    /// Why an executor must stop what it holds without owning it; none where the attempt was given up as lost and nothing has come after
    /// it: then what it still reports is worth having.
    async fn why_stop(&self, session: &Session, id: ExecutionId, fence: Fence) -> Result<Option<v1::StopCause>, Fault> {
        let execution = match self.engine.get(id).await {
            Ok(execution) => execution,
            Err(EngineError::NotFound(_)) => return Ok(Some(v1::StopCause::Unknown)),
            Err(error) => return Err(fault::from_engine(error)),
        };
        if is_from_elsewhere(&execution, fence) {
            self.withhold(session, &execution, fence).await?;
            return Ok(Some(v1::StopCause::Unknown));
        }
        let is_last = execution.attempts.last().is_some_and(|last| is(last, fence));
        Ok((execution.state != State::Lost || !is_last).then_some(v1::StopCause::Fenced))
    }

    /// The store was restored from a backup older than an attempt that this executor holds. The execution waits as if nothing had happened:
    /// it is ended before it runs a second time, unless the job says that it may. An executor that could not have been given it has no say.
    async fn withhold(&self, session: &Session, execution: &Execution, fence: Fence) -> Result<(), Fault> {
        let executor = &session.executor;
        let waits = matches!(execution.state, State::WaitingForApproval | State::Queued | State::Claimed);
        tracing::warn!(execution = %execution.id, %executor, attempt = fence.attempt, state = %execution.state,
            "an executor holds an attempt that the store does not know; was it restored from an older backup?");
        if !waits || execution.on_lost == OnLost::Retry || !label::matches(&execution.selector, &session.note.labels) {
            return Ok(());
        }
        let by =
            format!("octavius: {executor} holds attempt {}, which the store does not know; it keeps it aside", fence.attempt);
        match self.engine.step(execution.id, Event::Cancel { by }).await {
            Ok(_) | Err(EngineError::Refused(_) | EngineError::NotFound(_)) => Ok(()),
            Err(error) => Err(fault::from_engine(error)),
        }
    }
}

fn replaced() -> Fault {
    Fault::new(Code::Aborted, "SESSION_REPLACED", "a newer session of this executor has taken the place of this one")
}

fn stop(id: ExecutionId, fence: Fence, cause: v1::StopCause) -> Say {
    Say::Stop(v1::Stop { id: id.to_string(), attempt: fence.attempt, cause: cause.into() })
}
