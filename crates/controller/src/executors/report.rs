//! Reports: what an executor says has become of an attempt, held against what the store knows of it.

use octavius_core::execution::{Applied, Attempt, Event, Fence, LogSeal, Reason, Refusal};
use octavius_core::{Execution, ExecutionId, ExecutorId};
use octavius_proto::v1::report_execution_request::Step as WireStep;
use octavius_proto::{Fault, InvalidField, reason, v1};
use octavius_store::record::LogHead;
use octavius_store::{Txn, codec, key};
use tonic::Code;

use super::Executors;
use super::texts::{clip, image_of};
use crate::engine::EngineError;
use crate::fault;
use crate::heads::End;

/// Most bytes of what an attempt is where it runs, and of a reason's code.
const RUNS_AS_BYTES: usize = 200;
const REASON_BYTES: usize = 32;

/// Tries of a final report whose log keeps growing meanwhile.
const REPORT_TRIES: usize = 5;

impl Executors {
    /// What is to become of an attempt that its executor reports on.
    pub(super) async fn report(&self, executor: &ExecutorId, request: v1::ReportExecutionRequest) -> Result<v1::Verdict, Fault> {
        let id = octavius_proto::execution_id("id", &request.id)?;
        let fence = octavius_proto::fence(request.attempt, request.nonce)?;
        let mut cut = false;
        let event = match request.step.ok_or_else(|| InvalidField::new("step", "missing"))? {
            WireStep::Starting(_) => Event::Start { fence },
            WireStep::Running(v1::Running { runs_as, image }) => {
                Event::Run { fence, runs_as: clip(&runs_as, RUNS_AS_BYTES), image: image_of(image) }
            }
            WireStep::HandedBack(back) => {
                let message = clip(&back.message, Execution::MESSAGE_BYTES);
                Event::Unclaim { fence, reason: Reason::new(Reason::HANDED_BACK), message }
            }
            WireStep::Finished(finished) => {
                let mut ending = octavius_proto::ending("ending", finished.ending)?;
                ending.message = clip(&ending.message, Execution::MESSAGE_BYTES);
                ending.reason = ending.reason.map(|reason| Reason(clip(&reason.0, REASON_BYTES)));
                cut = finished.log_cut;
                let (size_bytes, crc32c) = (finished.log_size, finished.log_crc32c);
                Event::Finish { fence, ending, log: Some(LogSeal { size_bytes, crc32c, whole: true, missing_bytes: 0 }) }
            }
        };
        let handed_back = matches!(event, Event::Unclaim { .. });
        for _ in 0..REPORT_TRIES {
            // An execution that the store does not know is no reason to stop and forget it: the executor keeps it aside.
            let known = self.engine.recall(id, |known| known.attempts.iter().any(|attempt| is(attempt, fence))).await;
            let known = known.map_err(fault::from_engine)?;
            match known.execution.attempts.iter().find(|attempt| is(attempt, fence)) {
                Some(attempt) if attempt.executor == *executor => {}
                Some(_) => return Err(fault::not_permitted(format!("execution {id} is not {executor}'s"))),
                None if is_from_elsewhere(&known.execution, fence) => return Err(not_known(id, fence)),
                None => return Ok(v1::Verdict::Stop),
            }
            let mut event = event.clone();
            let (mut log_head, mut printed) = (None, false);
            if let Event::Finish { log: Some(seal), .. } = &mut event {
                log_head = Some((key::log_head(id, fence.attempt), self.check_log(id, fence.attempt, seal, cut).await?));
                printed = seal.size_bytes > 0;
            }
            // Nothing is appended between the look at the log and its seal.
            let sealing = |txn: Txn| match &log_head {
                Some((head, modified)) => txn.when(head.clone(), *modified),
                None => txn,
            };
            match self.engine.step_from(known, event, sealing).await {
                Ok(step) => {
                    if handed_back {
                        self.fleet.declined(executor);
                    }
                    if printed {
                        self.settling.ended(id);
                    }
                    if step.applied == Applied::Changed {
                        tracing::debug!(execution = %id, %executor, state = %step.execution.state, "reported");
                    }
                    return Ok(v1::Verdict::Accepted);
                }
                Err(EngineError::Forestalled(_)) => self.heads.remove(id, fence.attempt), // the log has grown meanwhile
                Err(EngineError::Refused(Refusal::NotAnOutcome(_))) => return Err(fault::invalid("not an outcome")),
                Err(EngineError::Refused(refusal)) => {
                    // By the present record, which may be another than the one that was recalled.
                    if is_from_elsewhere(&*self.engine.get(id).await.map_err(fault::from_engine)?, fence) {
                        return Err(not_known(id, fence));
                    }
                    tracing::info!(execution = %id, %executor, %refusal, "report refused");
                    if refusal == Refusal::ApprovalExpired {
                        self.too_late(id, fence).await;
                    }
                    return Ok(v1::Verdict::Stop);
                }
                Err(error) => return Err(fault::from_engine(error)),
            }
        }
        Err(fault::from_engine(EngineError::Contended(id)))
    }

    /// Ends what was claimed and came to its start too late: back in the queue, its wait is over. Where that fails, its claim runs out.
    async fn too_late(&self, id: ExecutionId, fence: Fence) {
        let (reason, message) = (Reason::new(Reason::APPROVAL_EXPIRED), String::new());
        if let Err(error) = self.engine.step(id, Event::Unclaim { fence, reason, message }).await {
            tracing::warn!(execution = %id, %error, "a claim whose approvals ran out could not be given back; it will run out");
        }
    }

    /// Whether the whole log has arrived, or as much of it as there was room for; returns the revision that last wrote its head, 0 for none.
    /// Where more has arrived than the executor knows of, or something else, the seal is what is here, and says so: the ending matters
    /// more than the log.
    async fn check_log(&self, id: ExecutionId, attempt: u32, seal: &mut LogSeal, cut: bool) -> Result<u64, Fault> {
        // What is remembered is good where it is just what was announced: the transaction that seals it asks whether it still is.
        let remembered = self.heads.get(id, attempt);
        let is_whole = |end: &End| (end.head.next_offset, end.head.crc32c) == (seal.size_bytes, seal.crc32c);
        if let Some(end) = remembered.filter(is_whole) {
            return Ok(end.modified);
        }
        let entry = self.store.get(&key::log_head(id, attempt)).await.map_err(fault::from_store)?;
        let head: Option<LogHead> = entry.as_ref().map(codec::decode).transpose().map_err(fault::from_store)?;
        let next_offset = head.map_or(0, |head| head.next_offset);
        if next_offset < seal.size_bytes && cut {
            tracing::warn!(execution = %id, attempt, kept = next_offset, of = seal.size_bytes, "a log is cut: there was no room for the rest");
            let missing_bytes = seal.size_bytes - next_offset;
            *seal = LogSeal { whole: false, missing_bytes, ..*seal };
        } else if next_offset < seal.size_bytes {
            let message = format!("the log of {id} has {next_offset} bytes, {} were announced", seal.size_bytes);
            return Err(Fault::new(Code::OutOfRange, reason::LOG_GAP, message).with("next_offset", next_offset));
        } else if let Some(head) = head
            && (next_offset, head.crc32c) != (seal.size_bytes, seal.crc32c)
        {
            tracing::error!(execution = %id, attempt, "the log is not what its executor says that the job printed");
            *seal = LogSeal { size_bytes: next_offset, crc32c: head.crc32c, whole: false, missing_bytes: 0 };
        }
        Ok(entry.map_or(0, |entry| entry.modified))
    }
}

/// Whether this is the attempt that `fence` names.
pub(super) fn is(attempt: &Attempt, fence: Fence) -> bool {
    attempt.number == fence.attempt && attempt.nonce == fence.nonce
}

/// Whether no history of the store that this execution is of has made an attempt of this fence: its number is yet to come, or another has
/// it. So it is after the store was restored from an older backup. An old claim that came to nothing may have been dropped from the record;
/// such a number is in the past and nobody's.
pub(super) fn is_from_elsewhere(execution: &Execution, fence: Fence) -> bool {
    let last = execution.attempts.last().map_or(0, |last| last.number);
    let same = execution.attempts.iter().find(|attempt| attempt.number == fence.attempt);
    fence.attempt > last || same.is_some_and(|same| same.nonce != fence.nonce)
}

fn not_known(id: ExecutionId, fence: Fence) -> Fault {
    let message = format!("attempt {} of execution {id} is not known", fence.attempt);
    Fault::new(Code::NotFound, reason::EXECUTION_NOT_FOUND, message).with("id", id)
}
