//! Executions in words: the same on the command line and on the page. Texts that come from elsewhere stand in them as they are; whoever shows
//! them makes them harmless for where they are shown.

use std::time::Duration;

use jiff::Timestamp;
use octavius_core::{HumanDuration, Wait};

use crate::v1::{self, ExecutionState};

/// The state's name, as output and addresses write it; `unknown` for one that this version does not know.
#[must_use]
pub const fn state_name(state: ExecutionState) -> &'static str {
    match state {
        ExecutionState::WaitingForApproval => "waiting_for_approval",
        ExecutionState::Queued => "queued",
        ExecutionState::Claimed => "claimed",
        ExecutionState::Starting => "starting",
        ExecutionState::Running => "running",
        ExecutionState::Succeeded => "succeeded",
        ExecutionState::Failed => "failed",
        ExecutionState::Cancelled => "cancelled",
        ExecutionState::TimedOut => "timed_out",
        ExecutionState::Lost => "lost",
        ExecutionState::Unspecified => "unknown",
    }
}

/// Every state that has a name, in the order of an execution's life.
pub const STATES: [ExecutionState; 10] = [
    ExecutionState::WaitingForApproval,
    ExecutionState::Queued,
    ExecutionState::Claimed,
    ExecutionState::Starting,
    ExecutionState::Running,
    ExecutionState::Succeeded,
    ExecutionState::Failed,
    ExecutionState::Cancelled,
    ExecutionState::TimedOut,
    ExecutionState::Lost,
];

/// Whether an execution in this state has ended.
#[must_use]
pub const fn has_ended(state: ExecutionState) -> bool {
    use ExecutionState as S;
    matches!(state, S::Succeeded | S::Failed | S::Cancelled | S::TimedOut | S::Lost)
}

/// A time of the wire; one out of range counts as none.
#[must_use]
pub fn time(at: Option<&prost_types::Timestamp>) -> Option<Timestamp> {
    at.and_then(|at| Timestamp::new(at.seconds, at.nanos).ok())
}

/// The time between two moments with its two largest units: `2m10s`, `340ms`.
#[must_use]
pub fn between(from: Timestamp, to: Timestamp) -> String {
    let length = Duration::try_from(to.duration_since(from)).unwrap_or_default();
    short(length)
}

/// A duration with its two largest units.
#[must_use]
pub fn short(length: Duration) -> String {
    let seconds = length.as_secs();
    let kept = match seconds {
        0 => Duration::from_millis(u64::try_from(length.as_millis()).unwrap_or(u64::MAX)),
        1..=3599 => Duration::from_secs(seconds),
        3600..=86_399 => Duration::from_secs(seconds / 60 * 60),
        _ => Duration::from_secs(seconds / 3600 * 3600),
    };
    HumanDuration::new(kept).to_string()
}

/// What a reason means, in plain words; the code itself where this version does not know it.
#[must_use]
pub fn in_words(reason: &str) -> &str {
    use octavius_core::execution::Reason;
    match reason {
        Reason::EXIT_CODE => "the job ended with an exit code other than 0",
        Reason::SIGNAL => "the job was ended by a signal that Octavius did not send",
        Reason::START_FAILED => "the job's program could not be started",
        Reason::REQUIREMENT_NOT_MET => "the executor cannot run this job",
        Reason::SECRET_MISSING => "a secret that the job needs was not found where the executor looked",
        Reason::SECRET_NOT_OFFERED => "the executor's owner does not offer what a secret is to be taken from",
        Reason::ENCRYPTION_KEY_MISSING => "the controllers lack the key that its sensitive arguments are encrypted with",
        Reason::ARGUMENTS_DAMAGED => "its sensitive arguments are not as they were encrypted",
        Reason::CANCELLED => "someone asked for it to stop",
        Reason::DEADLINE => "it ran longer than its timeout",
        Reason::QUEUE_DEADLINE => "it waited in the queue longer than it may",
        Reason::EXECUTOR_LOST => "its executor was not heard of for too long",
        Reason::RUNNER_LOST => "what watched over the job ended without leaving its exit code",
        Reason::IMAGE_PULL => "the job's image could not be pulled",
        Reason::UNSCHEDULABLE => "no node of the cluster took it in time",
        Reason::OOM_KILLED => "it used more memory than it may",
        Reason::EVICTED => "its node threw it out, short of memory or disk",
        Reason::INFRASTRUCTURE => "what it ran on failed or was taken away",
        Reason::DELETED_EXTERNALLY => "someone else deleted its Kubernetes Job",
        Reason::QUOTA => "a quota of its namespace leaves no room for it",
        Reason::FORBIDDEN => "the cluster, or the executor's configuration, does not allow it",
        Reason::CONFLICT => "the name that it needs in the cluster is taken by something else",
        Reason::CLAIM_EXPIRED => "the executor that was chosen did not begin in time",
        Reason::HANDED_BACK => "the executor gave it back: it is stopping",
        other => other,
    }
}

/// Why the execution is as it is: the controller's sentence, or the code in words; empty where there is nothing to explain.
#[must_use]
pub fn because<'a>(reason: &'a str, message: &'a str) -> &'a str {
    match (reason.is_empty(), message.is_empty()) {
        (_, false) => message,
        (false, true) => in_words(reason),
        (true, true) => "",
    }
}

/// The place in line, behind what it is said of: `, 3rd in line`. Who is first is told nothing: he waits for something else.
#[must_use]
pub fn place(wait: &v1::Wait) -> String {
    match wait.ahead {
        0 => String::new(),
        Wait::AHEAD_COUNTED.. => format!(", behind {} or more", Wait::AHEAD_COUNTED),
        ahead => format!(", {} in line", ordinal(ahead + 1)),
    }
}

fn ordinal(number: u32) -> String {
    let ending = match (number % 10, number % 100) {
        (_, 11..=13) => "th",
        (1, _) => "st",
        (2, _) => "nd",
        (3, _) => "rd",
        _ => "th",
    };
    format!("{number}{ending}")
}

/// One sentence on how an execution stands, with its place in line: `failed after 2s: exit code 3`, `queued 2m10s, 3rd in line`.
#[must_use]
pub fn sentence(execution: &v1::Execution, wait: Option<&v1::Wait>, now: Timestamp) -> String {
    let mut name = state_name(execution.state()).replace('_', " ");
    // who asked for it is why, which a message of the executor's does not know
    let by = (execution.state() == ExecutionState::Cancelled && !execution.cancel_requested_by.is_empty())
        .then(|| format!("cancelled by {}", execution.cancel_requested_by));
    if let Some(by) = &by {
        name.clone_from(by);
    }
    let created = time(execution.created_at.as_ref()).unwrap_or(now);
    let mut text = match time(execution.finished_at.as_ref()) {
        Some(finished) => format!("{name} after {}", between(created, finished)),
        None => format!("{name} {}", between(time(execution.state_since.as_ref()).unwrap_or(created), now)),
    };
    text.push_str(&wait.map(place).unwrap_or_default());
    let plain_exit = execution.reason == octavius_core::execution::Reason::EXIT_CODE && execution.message.is_empty();
    let because = match execution.exit_code.filter(|_| plain_exit) {
        Some(code) => format!("exit code {code}"),
        None => because(&execution.reason, &execution.message).to_owned(),
    };
    if !because.is_empty() && by.as_ref() != Some(&because) {
        text.push_str(": ");
        text.push_str(&because);
    }
    if let Some(code) = execution.exit_code.filter(|&code| code != 0)
        && !text.contains(&code.to_string())
    {
        text.push_str(&format!(" (exit code {code})"));
    }
    if !execution.cancel_requested_by.is_empty() && !has_ended(execution.state()) {
        text.push_str(&format!("; cancel requested by {}", execution.cancel_requested_by));
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(second: i64) -> Timestamp {
        Timestamp::from_second(1_767_225_600 + second).unwrap()
    }

    #[test]
    fn every_state_of_the_wire_has_a_name_of_its_own() {
        let mut names: Vec<_> = STATES.into_iter().map(state_name).collect();
        let numbered = (0..64).filter(|number| ExecutionState::try_from(*number).is_ok()).count();
        assert_eq!(STATES.len() + 1, numbered, "all but the one that is never sent");
        names.sort_unstable();
        names.dedup();
        assert_eq!(names.len(), STATES.len());
    }

    #[test]
    fn who_waits_is_told_the_place_and_who_cancelled_is_told_once() {
        let mut execution = v1::Execution {
            state: ExecutionState::Queued.into(),
            state_since: Some(crate::to_timestamp(at(0))),
            created_at: Some(crate::to_timestamp(at(0))),
            ..Default::default()
        };
        let wait = v1::Wait { ahead: 2, causes: Vec::new() };
        assert_eq!(sentence(&execution, Some(&wait), at(130)), "queued 2m10s, 3rd in line");
        execution.state = ExecutionState::TimedOut.into();
        (execution.finished_at, execution.reason) = (Some(crate::to_timestamp(at(2))), "DEADLINE".to_owned());
        assert_eq!(sentence(&execution, None, at(9)), "timed out after 2s: it ran longer than its timeout");
        execution.state = ExecutionState::Cancelled.into();
        execution.cancel_requested_by = "ann".to_owned();
        execution.message = "cancelled by ann".to_owned();
        assert_eq!(sentence(&execution, None, at(9)), "cancelled by ann after 2s");
    }
}
