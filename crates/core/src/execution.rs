//! An execution and its life: queued → claimed → starting → running → finished, with a wait for approval before where its job asks for it.
//! Pure: an event comes in, the execution changes or the event is refused with the reason. Whoever stores executions applies each event inside one transaction.
//!
//! What holds for every sequence of events: a terminal state never changes; an event that bears an old fence changes nothing but the
//! record of its own, lost attempt; an attempt starts at most once; nothing is claimed that lacks an approval.

mod approvals;
mod attempt;
mod event;
mod formerly;
mod logs;
mod state;

use std::time::Duration;

use jiff::Timestamp;
use serde::{Deserialize, Serialize};

use crate::argument::Arguments;
use crate::definition::{Concurrency, JobDefinition, OnLost, WhenFull};
use crate::digest::Digest;
use crate::id::{CatalogName, ExecutionId, ExecutorId, JobName};
use crate::key_id::KeyId;
use crate::label::Labels;
use crate::timing::{Timing, doubled};
use crate::trace::TraceContext;

pub use approvals::{ApprovalDecision, Approver, ExecutionApprovals, NotApprover};
pub use attempt::{Attempt, Ending, Fence, LogSeal};
pub use event::{Applied, Event, Refusal};
pub use formerly::first_octavius_status;
pub use logs::LogRules;
pub use state::{Reason, State};

/// A request to stop, which takes effect wherever the executor next hears of it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct CancelRequest {
    /// Who asked.
    pub by: String,
    /// When.
    pub at: Timestamp,
}

/// An execution of a job.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Execution {
    /// Its id.
    pub id: ExecutionId,
    /// The job's name.
    pub job: JobName,
    /// The catalogue that the job belongs to.
    pub catalog: CatalogName,
    /// The definition that it runs, whatever the catalogue says later.
    pub definition: Digest,
    /// The catalogue's revision at the time of the submission.
    pub revision: u64,
    /// The arguments, checked and with defaults filled in. Where [`Execution::sealed_with`] names a key, those that are sensitive stand here
    /// encrypted: a NUL, which no value has, and then what only the controllers' keys open.
    pub arguments: Arguments,
    /// The key that sensitive arguments are encrypted with; none where there are none.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub sealed_with: Option<KeyId>,
    /// Where the arguments are when they are too large for the record: the digest of a blob that holds them as JSON. `arguments` is
    /// then empty in the record.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub large_arguments: Option<Digest>,
    /// Who asked for it.
    pub user: String,
    /// The execution that this one was asked to repeat.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub rerun_of: Option<ExecutionId>,
    /// The tick of the job's schedule that it is for; none where somebody asked for it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub tick: Option<Timestamp>,
    /// The trace that it is part of; none where nobody traces.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub trace: Option<Box<TraceContext>>,
    /// When it was accepted, by the controller's clock.
    pub created_at: Timestamp,
    /// Where it may run.
    pub selector: Labels,
    /// Higher goes first.
    pub priority: u8,
    /// Longest run of an attempt.
    pub timeout: Duration,
    /// Longest wait in the queue.
    pub queue_timeout: Duration,
    /// More attempts that may follow failed ones.
    pub retries: u32,
    /// Whether it may run again after a loss.
    pub on_lost: OnLost,
    /// How many of its job may run at once, where that is limited.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub concurrency: Option<Concurrency>,
    /// What its job says about its logs.
    #[serde(default, skip_serializing_if = "LogRules::is_empty")]
    pub logs: LogRules,
    /// The slot of its job that it holds: from the claim on, or from its submission where it is refused when all are taken, to its end. A lost
    /// execution keeps it until it is known that nothing of it runs any more.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub slot: Option<u32>,
    /// The approvals that it needs before it may start, and has; none where its job asks for none.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub approvals: Option<Box<ExecutionApprovals>>,
    /// Where it is in its life.
    pub state: State,
    /// Since when it is in that state.
    pub state_since: Timestamp,
    /// How it ended, or why it is back in the queue.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub reason: Option<Reason>,
    /// The reason in a sentence.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub message: String,
    /// The job's exit code.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub exit_code: Option<i32>,
    /// When it reached a terminal state.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub finished_at: Option<Timestamp>,
    /// A request to stop it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub cancel: Option<CancelRequest>,
    /// Its attempts, oldest first; at most [`Execution::MAX_ATTEMPTS`].
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub attempts: Vec<Attempt>,
}

/// What a submission brings beside the job.
#[derive(Debug, Clone)]
pub struct Submission {
    /// The id that the client proposed.
    pub id: ExecutionId,
    /// Checked arguments.
    pub arguments: Arguments,
    /// Who asks.
    pub user: String,
    /// The time, by the controller's clock.
    pub at: Timestamp,
    /// A timeout for this run alone.
    pub timeout: Option<Duration>,
    /// The slot of its job that it takes at once, see [`Execution::slot`].
    pub slot: Option<u32>,
}

impl Execution {
    /// Most attempts that are kept. Retries are at most 100; the rest is room for claims that came to nothing. The record of so many
    /// attempts still is one value of the store.
    pub const MAX_ATTEMPTS: usize = 106;

    /// Attempts, counted from the newest, that keep their messages, and where and as which image they ran.
    const WHOLE_ATTEMPTS: usize = 4;

    /// With more attempts than this, only the newest is whole, and the reasons of approvals are in the audit trail alone.
    const FEW_ATTEMPTS: usize = 50;

    /// Most bytes of a message, as an executor may report it.
    pub const MESSAGE_BYTES: usize = 600;

    /// Arguments that take more bytes than this are kept beside the record, see [`Execution::large_arguments`].
    pub const ARGUMENTS_BYTES: usize = 4096;

    /// A new execution: queued, or waiting for the approvals that its job asks for.
    #[must_use]
    pub fn submit(job: &JobDefinition, catalog: CatalogName, revision: u64, submission: Submission, timing: &Timing) -> Self {
        Self {
            id: submission.id,
            job: job.name.clone(),
            catalog,
            definition: job.digest(),
            revision,
            arguments: submission.arguments,
            sealed_with: None,
            large_arguments: None,
            user: submission.user,
            rerun_of: None,
            tick: None,
            trace: None,
            created_at: submission.at,
            selector: job.executor.clone(),
            priority: job.priority,
            timeout: submission.timeout.or(job.timeout.map(Into::into)).unwrap_or(timing.run_timeout),
            queue_timeout: timing.queue_timeout,
            retries: job.retries,
            on_lost: job.on_lost,
            concurrency: job.concurrency,
            logs: LogRules::from(&job.logs),
            slot: submission.slot,
            approvals: job.approvals.as_ref().map(|rule| Box::new(rule.into())),
            state: if job.approvals.is_some() { State::WaitingForApproval } else { State::Queued },
            state_since: submission.at,
            reason: None,
            message: String::new(),
            exit_code: None,
            finished_at: None,
            cancel: None,
            attempts: Vec::new(),
        }
    }

    /// The current claim, while there is one.
    #[must_use]
    pub fn fence(&self) -> Option<Fence> {
        let held = matches!(self.state, State::Claimed | State::Starting | State::Running);
        self.attempts.last().filter(|_| held).map(|attempt| Fence { attempt: attempt.number, nonce: attempt.nonce })
    }

    /// Who has it: the executor of the current claim, or of the last attempt that started.
    #[must_use]
    pub fn executor(&self) -> Option<&ExecutorId> {
        self.attempts.last().filter(|attempt| attempt.ending.is_some() || self.fence().is_some()).map(|attempt| &attempt.executor)
    }

    /// How often the job has been started, or may have been.
    #[must_use]
    pub fn starts(&self) -> usize {
        self.attempts.iter().filter(|attempt| attempt.starting_at.is_some()).count()
    }

    /// Applies an event that happened at `at`.
    ///
    /// # Errors
    /// Where the event is not possible; the execution is then as it was.
    pub fn apply(&mut self, event: Event, at: Timestamp) -> Result<Applied, Refusal> {
        match event {
            Event::Claim { executor, nonce, slot } => self.claim(executor, nonce, slot, at),
            Event::Unclaim { fence, reason, message } => self.unclaim(fence, reason, message, at),
            Event::Start { fence } => self.start(fence, at),
            Event::Run { fence, runs_as, image } => self.run(fence, runs_as, image, at),
            Event::Finish { fence, ending, log } => self.finish(fence, ending, log, at),
            Event::Lose { fence, message } => self.lose(fence, message, at),
            Event::Cancel { by } => Ok(self.request_cancel(by, at)),
            Event::HoldUp { reason, message } => self.hold_up(reason, message),
            Event::FailInQueue { reason, message } => self.fail_in_queue(reason, message, at),
            Event::ExpireWait => self.expire_wait(at),
            Event::Approve { by, reason } => self.approve(by, reason, at),
            Event::Reject { by, reason } => self.reject(by, reason, at),
            Event::FreeSlot => Ok(self.free_lost_slot()),
        }
    }

    fn claim(&mut self, executor: ExecutorId, nonce: u64, slot: Option<u32>, at: Timestamp) -> Result<Applied, Refusal> {
        match self.state {
            State::Queued if self.approval_is_over(at) => return Err(Refusal::ApprovalExpired),
            State::Queued => {}
            // This very claim, made before; its answer was lost.
            State::Claimed if self.attempts.last().is_some_and(|last| last.nonce == nonce && last.executor == executor) => {
                return Ok(Applied::Unchanged);
            }
            state if state.is_terminal() => return Err(Refusal::Ended(state)),
            state => return Err(Refusal::State(state)),
        }
        let slot = self.slot.or(slot);
        if self.concurrency.is_some_and(|concurrency| slot.is_none_or(|slot| slot >= concurrency.limit)) {
            return Err(Refusal::NoSlot);
        }
        self.slot = slot.filter(|_| self.concurrency.is_some());
        if self.attempts.len() >= Self::MAX_ATTEMPTS {
            // Only claims that came to nothing can pile up so; the oldest of them says nothing any more.
            let nothing = |attempt: &Attempt| attempt.starting_at.is_none() && attempt.ending.is_none();
            let oldest = self.attempts.iter().position(nothing).unwrap_or(0);
            self.attempts.remove(oldest);
        }
        self.shorten();
        let number = self.attempts.last().map_or(1, |last| last.number + 1);
        self.attempts.push(Attempt {
            number,
            executor,
            nonce,
            claimed_at: at,
            starting_at: None,
            running_at: None,
            ended_at: None,
            ending: None,
            late: None,
            log: None,
            runs_as: String::new(),
            image: String::new(),
        });
        self.enter(State::Claimed, at);
        self.reason = None;
        self.message.clear();
        Ok(Applied::Changed)
    }

    /// Takes what is long from attempts that nobody reads any more, so that the record stays within what a store's value may have.
    fn shorten(&mut self) {
        let is_many = self.attempts.len() > Self::FEW_ATTEMPTS;
        if let Some(approvals) = self.approvals.as_mut().filter(|_| is_many) {
            approvals.approved.iter_mut().for_each(|decision| decision.reason.clear());
        }
        let old = self.attempts.len().saturating_sub(if is_many { 0 } else { Self::WHOLE_ATTEMPTS });
        for attempt in &mut self.attempts[..old] {
            attempt.running_at = None;
            attempt.runs_as.clear();
            attempt.image.clear();
            if let Some(late) = &mut attempt.late {
                late.reason = None;
            }
            for ending in [&mut attempt.ending, &mut attempt.late].into_iter().flatten() {
                ending.message.clear();
            }
        }
    }

    fn unclaim(&mut self, fence: Fence, reason: Reason, message: String, at: Timestamp) -> Result<Applied, Refusal> {
        self.current(fence)?;
        if self.state != State::Claimed {
            return Err(Refusal::State(self.state));
        }
        self.current(fence)?.ended_at = Some(at);
        self.wait_again(Some(reason), message, at);
        if at >= self.waits_until() {
            self.end_waiting(at); // claims that come to nothing do not make the wait longer
        }
        Ok(Applied::Changed)
    }

    /// When it has waited too long. In the queue that is counted from when it came there first, or from the end of the last attempt that had
    /// started; before its first start, its approvals, or the wait for them, may run out earlier.
    #[must_use]
    pub fn waits_until(&self) -> Timestamp {
        let expires = self.approval_expires_at().unwrap_or(Timestamp::MAX);
        if self.state == State::WaitingForApproval { expires } else { expires.min(self.queued_until()) }
    }

    /// When it has been in the queue for too long.
    fn queued_until(&self) -> Timestamp {
        let started = self.attempts.iter().rev().find(|attempt| attempt.starting_at.is_some());
        let since = started.and_then(|attempt| attempt.ended_at).unwrap_or_else(|| self.queued_since());
        since.checked_add(self.queue_timeout).unwrap_or(Timestamp::MAX)
    }

    fn end_waiting(&mut self, at: Timestamp) {
        if self.approval_expires_at() == Some(self.waits_until())
            && let Some(ending) = self.approval_expired()
        {
            return self.end(ending, at);
        }
        let waited = crate::HumanDuration::new(self.queue_timeout);
        let mut message = format!("no executor took it within {waited}");
        if self.reason.as_ref().is_some_and(|reason| reason.0 == Reason::ENCRYPTION_KEY_MISSING) {
            message = format!("{message}: {}", self.message); // nobody could give it to one
        }
        self.end(Ending::because(State::TimedOut, Reason::QUEUE_DEADLINE, message), at);
    }

    fn start(&mut self, fence: Fence, at: Timestamp) -> Result<Applied, Refusal> {
        let (state, is_too_late) = (self.state, self.approval_is_over(at));
        let attempt = self.current(fence)?;
        match state {
            State::Claimed if is_too_late => Err(Refusal::ApprovalExpired),
            State::Claimed => {
                attempt.starting_at = Some(at);
                self.enter(State::Starting, at);
                Ok(Applied::Changed)
            }
            State::Starting | State::Running => Ok(Applied::Unchanged),
            state => Err(Refusal::State(state)),
        }
    }

    fn run(&mut self, fence: Fence, runs_as: String, image: String, at: Timestamp) -> Result<Applied, Refusal> {
        let state = self.state;
        if let Some(attempt) = self.attempt_of(fence)
            && attempt.ending.is_some()
        {
            return Ok(Applied::Unchanged); // a repeated or overtaken report of an attempt that has ended
        }
        let attempt = self.current(fence)?;
        match state {
            State::Starting => {
                attempt.running_at = Some(at);
                attempt.runs_as = runs_as;
                attempt.image = image;
                self.enter(State::Running, at);
                Ok(Applied::Changed)
            }
            // A cluster tells the image only when it has it, which is long after it was told to run it.
            State::Running if attempt.image.is_empty() && !image.is_empty() => {
                attempt.image = image;
                Ok(Applied::Changed)
            }
            State::Running => Ok(Applied::Unchanged),
            state => Err(Refusal::State(state)),
        }
    }

    fn finish(&mut self, fence: Fence, ending: Ending, log: Option<LogSeal>, at: Timestamp) -> Result<Applied, Refusal> {
        if !ending.outcome.is_terminal() {
            return Err(Refusal::NotAnOutcome(ending.outcome));
        }
        if self.fence() != Some(fence) {
            return self.finish_late(fence, ending, log);
        }
        match (self.state, ending.outcome) {
            (State::Claimed, State::Succeeded) => return Err(Refusal::State(self.state)), // it never started
            // Nothing had started, so nothing is lost: another may have it.
            (State::Claimed, State::Lost) => {
                return self.unclaim(fence, Reason::new(Reason::EXECUTOR_LOST), ending.message, at);
            }
            _ => {}
        }
        let attempt = self.current(fence)?;
        attempt.ended_at = Some(at);
        attempt.ending = Some(ending.clone());
        attempt.log = log;
        if self.may_go_again(&ending) {
            self.requeue(ending, at);
        } else {
            self.end(ending, at);
        }
        Ok(Applied::Changed)
    }

    /// Whether another attempt follows one that ended so. After a failure as often as `retries` says; after a loss, where the job may
    /// have done everything already, only if it says that it may run twice.
    fn may_go_again(&self, ending: &Ending) -> bool {
        let hopeless = ending.reason.as_ref().is_some_and(|reason| reason.0 == Reason::REQUIREMENT_NOT_MET);
        let again = match ending.outcome {
            State::Failed => !hopeless && self.failures() <= self.retries as usize && self.starts() < Self::MAX_ATTEMPTS,
            State::Lost => self.on_lost == OnLost::Retry && self.starts() < Self::MAX_ATTEMPTS / 2,
            _ => false,
        };
        again && self.cancel.is_none()
    }

    /// A report for a claim that is not the current one: kept beside a loss, and otherwise a repetition or stale.
    fn finish_late(&mut self, fence: Fence, ending: Ending, log: Option<LogSeal>) -> Result<Applied, Refusal> {
        let state = self.state;
        let Some(attempt) = self.attempt_of(fence) else {
            return Err(Refusal::StaleFence { attempt: fence.attempt });
        };
        match (&attempt.ending, &attempt.late) {
            (Some(known), None) if known.outcome == State::Lost && *known != ending => {
                attempt.late = Some(ending);
                attempt.log = attempt.log.or(log);
                if self.attempts.last().is_some_and(|last| last.late.is_some()) {
                    self.free_lost_slot(); // nothing of it runs any more
                }
                Ok(Applied::Changed)
            }
            (Some(_), _) => Ok(Applied::Unchanged),
            (None, _) if state.is_terminal() => Err(Refusal::Ended(state)),
            (None, _) => Err(Refusal::StaleFence { attempt: fence.attempt }),
        }
    }

    fn lose(&mut self, fence: Fence, message: String, at: Timestamp) -> Result<Applied, Refusal> {
        let state = self.state;
        let attempt = self.current(fence)?;
        if state == State::Claimed {
            return self.unclaim(fence, Reason::new(Reason::EXECUTOR_LOST), message, at);
        }
        let ending = Ending::because(State::Lost, Reason::EXECUTOR_LOST, message);
        attempt.ended_at = Some(at);
        attempt.ending = Some(ending.clone());
        if self.may_go_again(&ending) {
            self.requeue(ending, at);
        } else {
            let slot = self.slot;
            self.end(ending, at);
            self.slot = slot; // it may run still
        }
        Ok(Applied::Changed)
    }

    fn request_cancel(&mut self, by: String, at: Timestamp) -> Applied {
        if self.state == State::Lost {
            return self.free_lost_slot(); // whoever cancels what is lost says that it is over
        }
        if self.state.is_terminal() || self.cancel.is_some() {
            return Applied::Unchanged;
        }
        let message = format!("cancelled by {by}");
        self.cancel = Some(CancelRequest { by, at });
        // Nothing has started before this, and a start after this is refused.
        if matches!(self.state, State::WaitingForApproval | State::Queued | State::Claimed) {
            let claimed = self.state == State::Claimed;
            if let Some(attempt) = self.attempts.last_mut().filter(|_| claimed) {
                attempt.ended_at = Some(at);
            }
            self.end(Ending::because(State::Cancelled, Reason::CANCELLED, message), at);
        }
        Applied::Changed
    }

    fn hold_up(&mut self, reason: Reason, message: String) -> Result<Applied, Refusal> {
        self.must_wait()?;
        if self.reason.as_ref() == Some(&reason) && self.message == message {
            return Ok(Applied::Unchanged);
        }
        (self.reason, self.message) = (Some(reason), message);
        Ok(Applied::Changed)
    }

    fn fail_in_queue(&mut self, reason: Reason, message: String, at: Timestamp) -> Result<Applied, Refusal> {
        if self.state == State::Failed && self.reason.as_ref() == Some(&reason) {
            return Ok(Applied::Unchanged);
        }
        self.must_wait()?;
        self.end(Ending { outcome: State::Failed, reason: Some(reason), message, exit_code: None }, at);
        Ok(Applied::Changed)
    }

    fn must_wait(&self) -> Result<(), Refusal> {
        match self.state {
            State::Queued => Ok(()),
            state if state.is_terminal() => Err(Refusal::Ended(state)),
            state => Err(Refusal::State(state)),
        }
    }

    fn expire_wait(&mut self, at: Timestamp) -> Result<Applied, Refusal> {
        match self.state {
            // Whoever says so may speak of an earlier wait: it has been approved, or has been claimed, has run and waits anew.
            State::WaitingForApproval | State::Queued if at < self.waits_until() => Err(Refusal::MayWait),
            State::WaitingForApproval | State::Queued => {
                self.end_waiting(at);
                Ok(Applied::Changed)
            }
            state if state.is_terminal() => Ok(Applied::Unchanged),
            state => Err(Refusal::State(state)),
        }
    }

    /// For how long it waits, once it is back in the queue, before its next attempt: nothing where none has started, and then twice as long
    /// after each.
    #[must_use]
    pub fn back_off(&self, timing: &Timing) -> Duration {
        let started = self.attempts.last().is_some_and(|last| last.ending.is_some());
        if self.state != State::Queued || !started {
            return Duration::ZERO;
        }
        let starts = u32::try_from(self.starts()).unwrap_or(u32::MAX);
        doubled(timing.back_off_min, starts, timing.back_off_max)
    }

    fn wait_again(&mut self, reason: Option<Reason>, message: String, at: Timestamp) {
        self.enter(State::Queued, at);
        self.reason = reason;
        self.message = message;
        // What is refused when all slots are taken has been promised one.
        if self.concurrency.is_none_or(|concurrency| concurrency.when_full == WhenFull::Queue) {
            self.slot = None;
        }
    }

    fn requeue(&mut self, ending: Ending, at: Timestamp) {
        self.wait_again(ending.reason, ending.message, at);
    }

    fn free_lost_slot(&mut self) -> Applied {
        if self.state != State::Lost || self.slot.is_none() {
            return Applied::Unchanged;
        }
        self.slot = None;
        Applied::Changed
    }

    fn end(&mut self, ending: Ending, at: Timestamp) {
        self.slot = None;
        self.enter(ending.outcome, at);
        self.reason = ending.reason;
        self.message = ending.message;
        self.exit_code = ending.exit_code;
        self.finished_at = Some(at);
    }

    fn enter(&mut self, state: State, at: Timestamp) {
        self.state = state;
        self.state_since = at;
    }

    fn failures(&self) -> usize {
        let failed = |attempt: &&Attempt| attempt.ending.as_ref().is_some_and(|ending| ending.outcome == State::Failed);
        self.attempts.iter().filter(failed).count()
    }

    fn attempt_of(&mut self, fence: Fence) -> Option<&mut Attempt> {
        self.attempts.iter_mut().find(|attempt| attempt.number == fence.attempt && attempt.nonce == fence.nonce)
    }

    /// The attempt that holds the current claim, if that is what `fence` names.
    fn current(&mut self, fence: Fence) -> Result<&mut Attempt, Refusal> {
        if self.state.is_terminal() {
            return Err(Refusal::Ended(self.state));
        }
        let stale = Refusal::StaleFence { attempt: fence.attempt };
        if self.fence() != Some(fence) {
            return Err(stale);
        }
        self.attempts.last_mut().ok_or(stale)
    }
}

#[cfg(test)]
mod tests;
