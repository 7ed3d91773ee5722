//! What an execution needs and has of approvals, as it is shown: in a sentence, and a line for each fact.

use octavius_core::{State, Timestamp};
use octavius_proto::v1;
use octavius_proto::words::{self, between, has_ended};

use crate::execution::state;
use crate::sanitize::line;
use crate::table::wire_time;

/// Whether the execution waits for approval.
#[must_use]
pub fn waits(execution: &v1::Execution) -> bool {
    state(execution) == Some(State::WaitingForApproval)
}

/// Whether it is for who asks to approve or reject it.
#[must_use]
pub fn is_yours(execution: &v1::Execution) -> bool {
    execution.approvals.as_ref().is_some_and(|approvals| approvals.is_callers)
}

/// Whether one of its approvals is that of who asks.
fn has_yours(execution: &v1::Execution) -> bool {
    execution.approvals.as_ref().is_some_and(|approvals| approvals.has_callers)
}

/// Whether it waits for the word of who asks: they may approve it, and have not yet.
#[must_use]
pub fn needs_you(execution: &v1::Execution) -> bool {
    is_yours(execution) && !has_yours(execution)
}

/// What is missing, and who may give it: `needs 1 more approval, by ops or leads, not by ann`.
fn missing(execution: &v1::Execution, approvals: &v1::ExecutionApprovals) -> String {
    let has = u32::try_from(approvals.approved.len()).unwrap_or(u32::MAX);
    let (left, more) = (approvals.count.saturating_sub(has), if has > 0 { " more" } else { "" });
    let word = if left == 1 { "approval" } else { "approvals" };
    let who = if approvals.groups.is_empty() { "those who may run the job".to_owned() } else { approvals.groups.join(" or ") };
    let but = if approvals.not_self { format!(", not by {}", execution.user) } else { String::new() };
    format!("needs {left}{more} {word}, by {who}{but}")
}

/// A sentence for whoever has asked for an execution that waits for approval; none for another.
#[must_use]
pub fn note(execution: &v1::Execution) -> Option<String> {
    let approvals = execution.approvals.as_ref().filter(|_| waits(execution))?;
    let until = wire_time(approvals.expires_at.as_ref());
    let missing = missing(execution, approvals);
    Some(line(&format!("waiting for approval: {missing}, until {until}; they say: octavius approve {}", execution.id)))
}

/// What is missing of an execution that waits for approval; empty for another.
#[must_use]
pub fn render_missing(execution: &v1::Execution, now: Timestamp) -> String {
    let Some(approvals) = execution.approvals.as_ref().filter(|_| waits(execution)) else { return String::new() };
    let until = words::time(approvals.expires_at.as_ref()).unwrap_or(now);
    let left = if until > now { format!(" ({} left)", between(now, until)) } else { String::new() };
    format!("{}\n", line(&format!("{}, until {}{left}", missing(execution, approvals), wire_time(approvals.expires_at.as_ref()))))
}

/// The facts that stand among those of an execution: who has approved it and who rejected it, and until when an approved one may start.
#[must_use]
pub fn facts(execution: &v1::Execution) -> Vec<(&'static str, String)> {
    let Some(approvals) = &execution.approvals else { return Vec::new() };
    let decision = |decision: &v1::ApprovalDecision| {
        let why = if decision.reason.is_empty() { String::new() } else { format!(": {}", decision.reason) };
        format!("by {} at {}{why}", decision.by, wire_time(decision.at.as_ref()))
    };
    let mut facts: Vec<_> = approvals.approved.iter().map(|approved| ("approved", decision(approved))).collect();
    facts.extend(approvals.rejected.as_ref().map(|rejected| ("rejected", decision(rejected))));
    let is_to_start =
        !waits(execution) && !has_ended(execution.state()) && execution.attempts.iter().all(|a| a.starting_at.is_none());
    if is_to_start {
        facts.push(("must start", format!("before {}", wire_time(approvals.expires_at.as_ref()))));
    }
    facts
}

/// The lines with what to do about an execution that waits for approval.
#[must_use]
pub fn render_commands(execution: &v1::Execution) -> String {
    let id = line(&execution.id);
    if is_yours(execution) && has_yours(execution) {
        return format!("approved by you, waits for others; if it is wrong after all: octavius reject {id}\n");
    }
    let who = if is_yours(execution) { "yours to approve" } else { "whoever may" };
    format!("{who}: octavius approve {id}, or octavius reject {id}\n")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::execution::{render, sentence, whole};
    use octavius_proto::to_timestamp;
    use serde_json::{Value, json};

    fn at(second: i64) -> Option<prost_types::Timestamp> {
        Some(to_timestamp(time(second)))
    }

    fn time(second: i64) -> Timestamp {
        Timestamp::from_second(1_767_225_600 + second).unwrap()
    }

    fn waiting() -> v1::Execution {
        let approved = vec![v1::ApprovalDecision { by: "bob".into(), at: at(60), reason: "\u{1b}[2Jseen".into() }];
        v1::Execution {
            id: "0k3v7q2m8d5x1n4r6t9w0b9f2q".into(),
            job: "refund-order".into(),
            user: "ann".into(),
            state: v1::ExecutionState::WaitingForApproval.into(),
            state_since: at(0),
            created_at: at(0),
            approvals: Some(v1::ExecutionApprovals {
                groups: vec!["ops".into(), "leads".into()],
                count: 2,
                not_self: true,
                expires_at: at(3600),
                approved,
                rejected: None,
                is_callers: true,
                has_callers: false,
            }),
            ..Default::default()
        }
    }

    #[test]
    fn what_waits_for_approval_says_for_whose_and_until_when() {
        insta::assert_snapshot!(render(&waiting(), None, "", time(130)));
        assert_eq!(
            note(&waiting()).unwrap(),
            "waiting for approval: needs 1 more approval, by ops or leads, not by ann, until 2026-01-01T01:00:00Z; they say: octavius \
             approve 0k3v7q2m8d5x1n4r6t9w0b9f2q"
        );
        let mut open = waiting();
        open.approvals = Some(v1::ExecutionApprovals { count: 2, expires_at: at(3600), ..Default::default() });
        assert!(note(&open).unwrap().contains("needs 2 approvals, by those who may run the job, until "));
        let text = render(&open, None, "", time(4000));
        assert!(text.contains("until 2026-01-01T01:00:00Z\n") && text.contains("whoever may: octavius approve"), "{text}");
        let mut given = waiting();
        assert!(needs_you(&given));
        given.approvals.as_mut().unwrap().has_callers = true;
        assert!(!needs_you(&given), "what one has approved is not asked for again");
        let text = render(&given, None, "", time(130));
        assert!(
            text.contains("approved by you") && text.contains("octavius reject") && !text.contains("octavius approve"),
            "{text}"
        );
    }

    #[test]
    fn who_decided_is_told_as_long_as_the_execution_is_kept() {
        let mut queued = waiting();
        queued.state = v1::ExecutionState::Queued.into();
        let text = render(&queued, None, "", time(130));
        assert!(text.contains("approved    by bob at 2026-01-01T00:01:00Z: \u{fffd}[2Jseen\n"), "{text}");
        assert!(text.contains("must start  before 2026-01-01T01:00:00Z\n") && !text.contains("octavius approve"), "{text}");
        assert_eq!(note(&queued), None);
        let mut rejected = waiting();
        rejected.state = v1::ExecutionState::Cancelled.into();
        (rejected.reason, rejected.message, rejected.finished_at) = ("REJECTED".into(), "rejected by cyn: no".into(), at(70));
        rejected.approvals.as_mut().unwrap().rejected =
            Some(v1::ApprovalDecision { by: "cyn".into(), at: at(70), reason: "no".into() });
        assert_eq!(sentence(&rejected, time(130)), "cancelled after 1m10s: rejected by cyn: no");
        let text = render(&rejected, None, "", time(130));
        assert!(text.contains("rejected    by cyn at 2026-01-01T00:01:10Z: no\n") && !text.contains("must start"), "{text}");
    }

    #[test]
    fn scripts_learn_all_of_it() {
        let json = whole(&waiting(), None, "");
        assert_eq!(json["state"], "waiting_for_approval");
        let expected = json!({
            "groups": ["ops", "leads"], "count": 2, "not_self": true, "expires_at": "2026-01-01T01:00:00Z",
            "approved": [{"by": "bob", "at": "2026-01-01T00:01:00Z", "reason": "\u{1b}[2Jseen"}], "rejected": null, "is_yours": true, "has_yours": false,
        });
        assert_eq!(json["approvals"], expected);
        assert_eq!(whole(&v1::Execution::default(), None, "")["approvals"], Value::Null);
    }
}
