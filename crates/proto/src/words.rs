//! Executions, executors, schedules and faults in words: the same on the command line and on the page. Texts that come from elsewhere stand
//! in them as they are; whoever shows them makes them harmless for where they are shown.

use std::borrow::Cow;
use std::time::Duration;

use jiff::Timestamp;
use octavius_core::definition::Schedule;
use octavius_core::schedule::Ticks;
use octavius_core::wait::cause;
use octavius_core::{HumanDuration, Wait};

use crate::v1::{self, ExecutionState, ExecutorState};
use crate::{Fault, reason};

/// What to do about something that passes by itself.
pub const TRY_AGAIN: &str = "try again in a moment";

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

/// The state's name as people say it: `timed out`.
#[must_use]
pub fn spoken(state: ExecutionState) -> String {
    state_name(state).replace('_', " ")
}

/// The name of an executor's state; `unknown` for one that this version does not know.
#[must_use]
pub const fn executor_state_name(state: ExecutorState) -> &'static str {
    match state {
        ExecutorState::Registered => "registered",
        ExecutorState::Active => "active",
        ExecutorState::Expired => "expired",
        ExecutorState::Draining => "draining",
        ExecutorState::Unspecified => "unknown",
    }
}

/// An executor's state as people read it: one that is away and drains is both.
#[must_use]
pub fn executor_state(executor: &v1::Executor) -> String {
    let state = executor_state_name(executor.state());
    let both = executor.draining.is_some() && executor.state() != ExecutorState::Draining;
    if both { format!("{state}, draining") } else { state.to_owned() }
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

/// How long an execution has taken, or takes until now; empty where it is not known when it was created.
#[must_use]
pub fn duration(execution: &v1::Execution, now: Timestamp) -> String {
    let end = time(execution.finished_at.as_ref()).unwrap_or(now);
    time(execution.created_at.as_ref()).map(|created| between(created, end)).unwrap_or_default()
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
        Reason::REJECTED => "somebody who could have approved it said no",
        Reason::APPROVAL_EXPIRED => "it had not started when its approvals, or the wait for them, ran out",
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

/// Each cause of a wait, but for the place in line, which the sentence tells: the executor that stands before it, and the cause. The executor
/// is empty where there is none, and where the sentence names it: the nearest of those that do not match.
#[must_use]
pub fn causes(wait: &v1::Wait) -> Vec<(&str, &v1::WaitCause)> {
    let told = wait.causes.iter().filter(|cause| cause.code != cause::AHEAD);
    told.map(|cause| (if cause.code == cause::NO_MATCHING_EXECUTOR { "" } else { cause.executor.as_str() }, cause)).collect()
}

/// One sentence on how an execution stands, with its place in line: `failed after 2s: exit code 3`, `queued 2m10s, 3rd in line`.
#[must_use]
pub fn sentence(execution: &v1::Execution, wait: Option<&v1::Wait>, now: Timestamp) -> String {
    format!("{} {}", spoken(execution.state()), after_state(execution, wait, now))
}

/// The rest of [`sentence`], for where the state stands before it already: `after 2s: exit code 3`.
#[must_use]
pub fn after_state(execution: &v1::Execution, wait: Option<&v1::Wait>, now: Timestamp) -> String {
    // who asked for it is why, which a message of the executor's does not know
    let by = (execution.state() == ExecutionState::Cancelled && !execution.cancel_requested_by.is_empty())
        .then(|| format!("by {}", execution.cancel_requested_by));
    let mut text = by.as_ref().map(|by| format!("{by} ")).unwrap_or_default();
    let created = time(execution.created_at.as_ref()).unwrap_or(now);
    text.push_str(&match time(execution.finished_at.as_ref()) {
        Some(finished) => format!("after {}", between(created, finished)),
        None => between(time(execution.state_since.as_ref()).unwrap_or(created), now),
    });
    text.push_str(&wait.map(place).unwrap_or_default());
    let plain_exit = execution.reason == octavius_core::execution::Reason::EXIT_CODE && execution.message.is_empty();
    let because = match execution.exit_code.filter(|_| plain_exit) {
        Some(code) => format!("exit code {code}"),
        None => because(&execution.reason, &execution.message).to_owned(),
    };
    let is_told = by.is_some_and(|by| because.strip_prefix("cancelled ") == Some(by.as_str()));
    if !because.is_empty() && !is_told {
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

/// When a job runs by itself, in its schedule's own time zone.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ScheduleLines {
    /// The schedule, and how long it is until it is due: `scheduled at 0 3 * * * (Asia/Jakarta), next in 5h6m`.
    pub schedule: String,
    /// The next ticks, a line each: `Mon 2026-11-30 03:00 +0700`.
    pub ticks: Vec<String>,
    /// The last tick without execution, and why it has none; none where there was no such tick.
    pub skipped: Option<String>,
}

/// A schedule, its next ticks and the last one that was skipped.
#[must_use]
pub fn schedule(schedule: &Schedule, next: &[Timestamp], skipped: Option<&v1::SkippedTick>, now: Timestamp) -> ScheduleLines {
    let ticks = Ticks::of(schedule).ok();
    // A controller of another version may know what this one does not: then in UTC.
    let shown = |at: Timestamp| match &ticks {
        Some(ticks) => at.to_zoned(ticks.zone().clone()).strftime("%a %Y-%m-%d %H:%M %z").to_string(),
        None => at.strftime("%a %Y-%m-%d %H:%M +0000").to_string(),
    };
    let zone = schedule.time_zone.as_deref().unwrap_or("UTC");
    let soon = next.first().map(|next| format!(", next in {}", between(now, *next))).unwrap_or_default();
    ScheduleLines {
        schedule: format!("scheduled at {} ({zone}){soon}", schedule.cron),
        ticks: next.iter().map(|at| shown(*at)).collect(),
        skipped: skipped.map(|skipped| {
            let tick = time(skipped.tick.as_ref()).map(shown).unwrap_or_default();
            format!("last skipped {tick}: {}", skipped_because(skipped))
        }),
    }
}

/// Why a tick has no execution; the controller's own word where this version does not know it.
fn skipped_because(skipped: &v1::SkippedTick) -> String {
    match skipped.because.as_str() {
        "overlap" => format!("execution {} of a tick before had not ended", skipped.execution),
        "missed" => "no controller ran, or the store had no room".to_owned(),
        "full" => "as many executions ran as the job allows".to_owned(),
        "paused" => "the job was paused".to_owned(),
        "arguments" => "the job has arguments that somebody must give".to_owned(),
        other => other.to_owned(),
    }
}

/// What failed; the code where the controller says no more.
#[must_use]
pub fn failed(fault: &Fault) -> Cow<'_, str> {
    if fault.message.is_empty() {
        format!("the controller answered {:?}", fault.code).into()
    } else {
        fault.message.as_str().into()
    }
}

/// What is wrong with the input, each thing by itself; what [`failed`] says already is left out.
#[must_use]
pub fn details(fault: &Fault) -> Vec<&str> {
    let failed = failed(fault);
    let details = fault.violations.iter().map(|violation| violation.description.as_str());
    details.filter(|detail| !detail.is_empty() && !failed.contains(detail)).collect()
}

/// What to do next about a fault, where that is the same for everyone; none where it depends on what they asked with.
#[must_use]
pub fn hint(fault: &Fault) -> Option<&'static str> {
    Some(match fault.reason.as_str() {
        reason::AMBIGUOUS_ID => "give more of its last characters",
        reason::STOPPING | reason::STORE_UNAVAILABLE => TRY_AGAIN,
        reason::STORE_FULL => "the store has no room left: an operator must free some",
        _ => return None,
    })
}

/// How much a revision changed: `+1 ~2 -0, rollback to 41`.
#[must_use]
pub fn changes(revision: &v1::Revision) -> String {
    let summary = revision.summary.unwrap_or_default();
    let mut text = format!("+{} ~{} -{}", summary.added, summary.changed, summary.removed);
    if revision.rollback_to > 0 {
        text.push_str(&format!(", rollback to {}", revision.rollback_to));
    }
    if !revision.plan_id.is_empty() {
        text.push_str(&format!(", plan {}", revision.plan_id));
    }
    text
}

/// What webhooks were not told of an execution, each in a sentence: but for what is on its way.
pub fn all_undelivered(execution: &v1::Execution) -> impl Iterator<Item = String> {
    let late = execution.deliveries.iter().filter(|delivery| delivery.tries > 0 || delivery.given_up_at.is_some());
    late.map(undelivered)
}

/// A delivery in a sentence, without its execution: `chat was not told that it failed: given up after 14 tries`.
#[must_use]
pub fn undelivered(delivery: &v1::Delivery) -> String {
    let what = match delivery.event.as_str() {
        "waiting_for_approval" => "that it waits for approval",
        "failed" => "that it failed",
        _ => "that it has finished",
    };
    let tries = match delivery.tries {
        0 => "not tried yet".to_owned(),
        1 => "1 try".to_owned(),
        tries => format!("{tries} tries"),
    };
    let how = match (delivery.given_up_at.is_some(), delivery.tries) {
        (true, 0) => "given up untried".to_owned(),
        (true, _) => format!("given up after {tries}"),
        (false, _) => format!("not yet, {tries}"),
    };
    format!("{} was not told {what}: {how}", delivery.webhook)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_a_webhook_was_not_told_is_a_sentence() {
        let told = |event: &str, tries, given_up: bool| {
            let given_up_at = given_up.then(prost_types::Timestamp::default);
            let webhook = "chat".to_owned();
            undelivered(&v1::Delivery { webhook, event: event.to_owned(), tries, given_up_at, ..Default::default() })
        };
        assert_eq!(told("waiting_for_approval", 1, false), "chat was not told that it waits for approval: not yet, 1 try");
        assert_eq!(told("failed", 14, true), "chat was not told that it failed: given up after 14 tries");
        assert_eq!(told("finished", 0, true), "chat was not told that it has finished: given up untried");
    }

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

    #[test]
    fn what_was_cancelled_says_by_whom_once() {
        let mut execution = v1::Execution {
            state: ExecutionState::Cancelled.into(),
            created_at: Some(crate::to_timestamp(at(0))),
            finished_at: Some(crate::to_timestamp(at(130))),
            reason: "CANCELLED".to_owned(),
            cancel_requested_by: "ann".to_owned(),
            ..Default::default()
        };
        for (message, expected) in [
            ("cancelled by ann", "cancelled by ann after 2m10s"),
            ("stopped as requested", "cancelled by ann after 2m10s: stopped as requested"),
            ("", "cancelled by ann after 2m10s: someone asked for it to stop"),
        ] {
            execution.message = message.to_owned();
            assert_eq!(sentence(&execution, None, at(1000)), expected);
        }
    }

    #[test]
    fn every_reason_is_put_into_words() {
        for reason in octavius_core::execution::Reason::ALL {
            assert_ne!(in_words(reason), *reason, "people would be shown the code");
        }
        assert_eq!(in_words("OF_A_NEWER_CONTROLLER"), "OF_A_NEWER_CONTROLLER");
    }

    #[test]
    fn durations_are_short() {
        for (millis, text) in
            [(0, "0s"), (340, "340ms"), (2_500, "2s"), (130_000, "2m10s"), (3_700_000, "1h1m"), (90_061_000, "1d1h")]
        {
            assert_eq!(short(Duration::from_millis(millis)), text);
        }
    }

    #[test]
    fn the_place_in_line_is_told_from_the_second_on() {
        let place = |ahead| place(&v1::Wait { ahead, causes: Vec::new() });
        assert_eq!((place(0), place(1), place(2)), (String::new(), ", 2nd in line".into(), ", 3rd in line".into()));
        assert_eq!(
            (place(10), place(20), place(111)),
            (", 11th in line".into(), ", 21st in line".into(), ", 112th in line".into())
        );
        assert_eq!(place(1000), ", behind 1000 or more");
    }

    #[test]
    fn a_tick_that_was_skipped_says_why_and_a_newer_controllers_word_stays() {
        let schedule: Schedule = serde_json::from_value(serde_json::json!({"cron": "0 3 * * *"})).unwrap();
        for (because, expected) in [
            ("paused", "last skipped Thu 2026-01-01 03:00 +0000: the job was paused"),
            ("overlap", "last skipped Thu 2026-01-01 03:00 +0000: execution x1 of a tick before had not ended"),
            ("eclipse", "last skipped Thu 2026-01-01 03:00 +0000: eclipse"),
        ] {
            let tick = Some(crate::to_timestamp(at(3 * 3600)));
            let skipped = v1::SkippedTick { tick, because: because.to_owned(), execution: "x1".to_owned() };
            let lines = super::schedule(&schedule, &[at(27 * 3600)], Some(&skipped), at(4 * 3600));
            assert_eq!(lines.skipped.as_deref(), Some(expected));
            assert_eq!((lines.schedule.as_str(), lines.ticks.len()), ("scheduled at 0 3 * * * (UTC), next in 23h", 1));
        }
    }

    #[test]
    fn a_fault_without_a_message_says_its_code_and_no_detail_is_said_twice() {
        let fault =
            Fault::new(tonic::Code::InvalidArgument, reason::INVALID_ARGUMENTS, "").violating("a", "").violating("b", "wrong");
        assert_eq!((&*failed(&fault), details(&fault)), ("the controller answered InvalidArgument", vec!["wrong"]));
        assert_eq!(details(&Fault { message: "b is wrong".to_owned(), ..fault }), Vec::<&str>::new());
    }
}
