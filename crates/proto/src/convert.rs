//! Conversions between the wire and the domain.

use std::time::Duration;

use octavius_core::argument::{self, Arguments};
use octavius_core::execution::{ApprovalDecision, Attempt, Ending, Execution, Fence, Reason, State};
use octavius_core::log::{Steps, Times};
use octavius_core::{Digest, ExecutionId, ExecutorId, JobDefinition, JobName, Role, Timestamp, Wait};
use prost_types::{Duration as WireDuration, Timestamp as WireTimestamp};

use crate::v1;

/// A field of a message that is missing or cannot be understood.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("field `{field}`: {problem}")]
pub struct InvalidField {
    /// The field's name.
    pub field: &'static str,
    /// What is wrong with it.
    pub problem: String,
}

impl InvalidField {
    /// An invalid field.
    #[must_use]
    pub fn new(field: &'static str, problem: impl std::fmt::Display) -> Self {
        Self { field, problem: problem.to_string() }
    }
}

/// Reads an execution's id.
///
/// # Errors
/// Where the text is none.
pub fn execution_id(field: &'static str, text: &str) -> Result<ExecutionId, InvalidField> {
    text.parse().map_err(|error| InvalidField::new(field, error))
}

/// Reads an executor's id.
///
/// # Errors
/// Where the text is none.
pub fn executor_id(field: &'static str, text: &str) -> Result<ExecutorId, InvalidField> {
    text.parse().map_err(|error| InvalidField::new(field, error))
}

/// Reads a job's name.
///
/// # Errors
/// Where the text is none.
pub fn job_name(field: &'static str, text: &str) -> Result<JobName, InvalidField> {
    text.parse().map_err(|error| InvalidField::new(field, error))
}

/// Reads a digest of 32 bytes.
///
/// # Errors
/// Where the length is another.
pub fn digest(field: &'static str, bytes: &[u8]) -> Result<Digest, InvalidField> {
    let bytes: [u8; 32] =
        bytes.try_into().map_err(|_| InvalidField::new(field, format!("{} bytes, a digest has 32", bytes.len())))?;
    Ok(Digest::from_bytes(bytes))
}

/// Reads a definition's canonical JSON.
///
/// # Errors
/// Where the message is missing or its JSON is not a definition.
pub fn definition(field: &'static str, wire: Option<&v1::Definition>) -> Result<JobDefinition, InvalidField> {
    let wire = wire.ok_or_else(|| InvalidField::new(field, "missing"))?;
    serde_json::from_slice(&wire.json).map_err(|error| InvalidField::new(field, error))
}

/// Reads a claim's fence.
///
/// # Errors
/// Where the attempt is 0.
pub fn fence(attempt: u32, nonce: u64) -> Result<Fence, InvalidField> {
    if attempt == 0 {
        return Err(InvalidField::new("attempt", "attempts count from 1"));
    }
    Ok(Fence { attempt, nonce })
}

/// Reads a time.
///
/// # Errors
/// Where it is out of range.
pub fn timestamp(field: &'static str, wire: &WireTimestamp) -> Result<Timestamp, InvalidField> {
    Timestamp::new(wire.seconds, wire.nanos).map_err(|error| InvalidField::new(field, error))
}

/// Writes a time.
#[must_use]
pub fn to_timestamp(at: Timestamp) -> WireTimestamp {
    // protobuf wants nanoseconds of 0 and up, also before 1970; ours count towards zero there
    let (seconds, nanos) = (at.as_second(), at.subsec_nanosecond());
    if nanos < 0 {
        WireTimestamp { seconds: seconds - 1, nanos: nanos + 1_000_000_000 }
    } else {
        WireTimestamp { seconds, nanos }
    }
}

/// Writes a length of time.
#[must_use]
pub fn to_duration(duration: Duration) -> WireDuration {
    WireDuration {
        seconds: i64::try_from(duration.as_secs()).unwrap_or(i64::MAX),
        nanos: i32::try_from(duration.subsec_nanos()).unwrap_or_default(),
    }
}

/// Reads a duration.
///
/// # Errors
/// Where it is negative, or none.
pub fn std_duration(field: &'static str, duration: WireDuration) -> Result<Duration, InvalidField> {
    Duration::try_from(duration).map_err(|_| InvalidField::new(field, "a duration of 0 s or more is expected"))
}

/// Reads a state.
///
/// # Errors
/// Where the number is not that of a state.
pub fn state(field: &'static str, number: i32) -> Result<State, InvalidField> {
    use v1::ExecutionState as W;
    match W::try_from(number) {
        Ok(W::WaitingForApproval) => Ok(State::WaitingForApproval),
        Ok(W::Queued) => Ok(State::Queued),
        Ok(W::Claimed) => Ok(State::Claimed),
        Ok(W::Starting) => Ok(State::Starting),
        Ok(W::Running) => Ok(State::Running),
        Ok(W::Succeeded) => Ok(State::Succeeded),
        Ok(W::Failed) => Ok(State::Failed),
        Ok(W::Cancelled) => Ok(State::Cancelled),
        Ok(W::TimedOut) => Ok(State::TimedOut),
        Ok(W::Lost) => Ok(State::Lost),
        Ok(W::Unspecified) | Err(_) => Err(InvalidField::new(field, format!("{number} is not a state"))),
    }
}

/// Writes a state.
#[must_use]
pub const fn to_state(state: State) -> v1::ExecutionState {
    use v1::ExecutionState as W;
    match state {
        State::WaitingForApproval => W::WaitingForApproval,
        State::Queued => W::Queued,
        State::Claimed => W::Claimed,
        State::Starting => W::Starting,
        State::Running => W::Running,
        State::Succeeded => W::Succeeded,
        State::Failed => W::Failed,
        State::Cancelled => W::Cancelled,
        State::TimedOut => W::TimedOut,
        State::Lost => W::Lost,
    }
}

/// Reads an ending.
///
/// # Errors
/// Where it is missing or its outcome is not a terminal state.
pub fn ending(field: &'static str, wire: Option<v1::Ending>) -> Result<Ending, InvalidField> {
    let wire = wire.ok_or_else(|| InvalidField::new(field, "missing"))?;
    let outcome = state("outcome", wire.outcome)?;
    if !outcome.is_terminal() {
        return Err(InvalidField::new("outcome", format!("{outcome} is not an outcome")));
    }
    let reason = (!wire.reason.is_empty()).then_some(Reason(wire.reason));
    Ok(Ending { outcome, reason, message: wire.message, exit_code: wire.exit_code })
}

impl From<&Ending> for v1::Ending {
    fn from(ending: &Ending) -> Self {
        Self {
            outcome: to_state(ending.outcome).into(),
            reason: ending.reason.as_ref().map(|reason| reason.0.clone()).unwrap_or_default(),
            message: ending.message.clone(),
            exit_code: ending.exit_code,
        }
    }
}

fn to_attempt(attempt: &Attempt) -> v1::Attempt {
    v1::Attempt {
        number: attempt.number,
        executor: attempt.executor.to_string(),
        claimed_at: Some(to_timestamp(attempt.claimed_at)),
        starting_at: attempt.starting_at.map(to_timestamp),
        running_at: attempt.running_at.map(to_timestamp),
        ended_at: attempt.ended_at.map(to_timestamp),
        ending: attempt.ending.as_ref().map(Into::into),
        late: attempt.late.as_ref().map(Into::into),
        log_size: attempt.log.map(|log| log.size_bytes),
        runs_as: attempt.runs_as.clone(),
        image: attempt.image.clone(),
    }
}

/// Writes an execution as people may see it: with the values of the job's sensitive arguments masked. Without the job, every value
/// is masked.
#[must_use]
pub fn to_execution(execution: &Execution, job: Option<&JobDefinition>) -> v1::Execution {
    let arguments: Arguments = match job {
        Some(job) => argument::masked(job, &execution.arguments),
        None => execution.arguments.keys().map(|name| (name.clone(), argument::MASK.to_owned())).collect(),
    };
    v1::Execution {
        arguments: arguments.into_iter().collect(),
        attempts: execution.attempts.iter().map(to_attempt).collect(),
        ..self::execution(execution)
    }
}

/// Writes an execution for a listing: without arguments and attempts.
#[must_use]
pub fn execution(execution: &Execution) -> v1::Execution {
    v1::Execution {
        id: execution.id.to_string(),
        job: execution.job.to_string(),
        catalog: execution.catalog.to_string(),
        definition: execution.definition.as_bytes().to_vec().into(),
        revision: execution.revision,
        arguments: Default::default(),
        user: execution.user.clone(),
        state: to_state(execution.state).into(),
        state_since: Some(to_timestamp(execution.state_since)),
        reason: execution.reason.as_ref().map(|reason| reason.0.clone()).unwrap_or_default(),
        message: execution.message.clone(),
        exit_code: execution.exit_code,
        created_at: Some(to_timestamp(execution.created_at)),
        finished_at: execution.finished_at.map(to_timestamp),
        executor: execution.executor().map(ToString::to_string).unwrap_or_default(),
        cancel_requested_by: execution.cancel.as_ref().map(|request| request.by.clone()).unwrap_or_default(),
        cancel_requested_at: execution.cancel.as_ref().map(|request| to_timestamp(request.at)),
        attempts: Vec::new(),
        timeout: Some(to_duration(execution.timeout)),
        selector: execution.selector.clone().into_iter().collect(),
        tick: execution.tick.map(to_timestamp),
        trace_id: execution.trace.as_ref().map(|trace| trace.trace_id_text()).unwrap_or_default(),
        approvals: to_approvals(execution),
        deliveries: Vec::new(), // whoever knows them adds them
        rerun_of: execution.rerun_of.as_ref().map(ToString::to_string).unwrap_or_default(),
        is_callers: false, // whoever knows the caller says
    }
}

/// Writes what an execution needs and has of approvals. Whether they are the caller's to give, or one is, whoever knows the caller adds.
fn to_approvals(execution: &Execution) -> Option<v1::ExecutionApprovals> {
    let approvals = execution.approvals.as_deref()?;
    let decision = |ApprovalDecision { by, at, reason }: &ApprovalDecision| v1::ApprovalDecision {
        by: by.clone(),
        at: Some(to_timestamp(*at)),
        reason: reason.clone(),
    };
    Some(v1::ExecutionApprovals {
        groups: approvals.groups.clone(),
        count: approvals.count,
        not_self: approvals.not_self,
        expires_at: Some(to_timestamp(approvals.expires_at(execution.created_at))),
        approved: approvals.approved.iter().map(decision).collect(),
        rejected: approvals.rejected.as_ref().map(decision),
        is_callers: false,
        has_callers: false,
    })
}

impl From<Wait> for v1::Wait {
    fn from(wait: Wait) -> Self {
        let causes = wait.causes.into_iter().map(|cause| v1::WaitCause {
            code: cause.code.to_owned(),
            message: cause.message,
            executor: cause.executor.as_ref().map(ToString::to_string).unwrap_or_default(),
            since: cause.since.map(to_timestamp),
            executions: cause.executions.iter().map(ToString::to_string).collect(),
        });
        Self { ahead: wait.ahead, causes: causes.collect() }
    }
}

impl From<Times> for v1::LogTimes {
    fn from(times: Times) -> Self {
        let Steps { first_unix_ms, steps } = times.into();
        let (skips, waits_ms) = steps.into_iter().unzip();
        Self { first_unix_ms, skips, waits_ms }
    }
}

impl TryFrom<v1::LogTimes> for Times {
    type Error = InvalidField;

    fn try_from(times: v1::LogTimes) -> Result<Self, Self::Error> {
        if times.skips.len() != times.waits_ms.len() {
            return Err(InvalidField::new("times", "as many skips as waits are needed"));
        }
        let steps = times.skips.into_iter().zip(times.waits_ms).collect();
        Ok(Steps { first_unix_ms: times.first_unix_ms, steps }.into())
    }
}

impl From<Role> for v1::Role {
    fn from(role: Role) -> Self {
        match role {
            Role::Viewer => Self::Viewer,
            Role::User => Self::User,
            Role::Applier => Self::Applier,
            Role::Admin => Self::Admin,
            Role::Executor => Self::Executor,
            Role::Registration => Self::Registration,
        }
    }
}

impl TryFrom<v1::Role> for Role {
    type Error = InvalidField;
    fn try_from(role: v1::Role) -> Result<Self, InvalidField> {
        Ok(match role {
            v1::Role::Viewer => Self::Viewer,
            v1::Role::User => Self::User,
            v1::Role::Applier => Self::Applier,
            v1::Role::Admin => Self::Admin,
            v1::Role::Executor => Self::Executor,
            v1::Role::Registration => Self::Registration,
            v1::Role::Unspecified => return Err(InvalidField::new("role", "missing, or not a role")),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn states_survive_the_wire_and_unknown_numbers_are_refused() {
        for known in State::ALL {
            assert_eq!(state("state", to_state(known).into()), Ok(known));
        }
        assert_eq!(state("state", 77).unwrap_err().to_string(), "field `state`: 77 is not a state");
        assert!(state("state", 0).is_err());
    }

    #[test]
    fn times_survive_the_wire_on_both_sides_of_1970() {
        for nanos in [0, 1, -1, 1_700_000_000_123_456_789, -1_500_000_000] {
            let at = Timestamp::from_nanosecond(nanos).unwrap();
            let wire = to_timestamp(at);
            assert!(wire.nanos >= 0);
            assert_eq!(timestamp("at", &wire), Ok(at));
        }
    }
}
