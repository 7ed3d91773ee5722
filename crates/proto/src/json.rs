//! Executions as JSON, in the words that the command line and webhooks share.

use serde_json::{Value, json};

use crate::v1;
use crate::words::{self, state_name};

/// A text, or null where it is empty.
#[must_use]
pub fn text_or_null(text: &str) -> Value {
    if text.is_empty() { Value::Null } else { text.into() }
}

/// A time as RFC 3339 has it, or null.
#[must_use]
pub fn time_or_null(at: Option<&prost_types::Timestamp>) -> Value {
    words::time(at).map_or(Value::Null, |at| at.to_string().into())
}

/// An execution as it is the same for everybody who may see it, without its arguments.
#[must_use]
pub fn execution(execution: &v1::Execution) -> Value {
    json!({
        "id": execution.id,
        "job": execution.job,
        "state": state_name(execution.state()),
        "reason": text_or_null(&execution.reason),
        "message": text_or_null(&execution.message),
        "exit_code": execution.exit_code,
        "user": execution.user,
        "executor": text_or_null(&execution.executor),
        "scheduled_for": time_or_null(execution.tick.as_ref()),
        "trace_id": text_or_null(&execution.trace_id),
        "approvals": execution.approvals.as_ref().map(approvals),
        "created_at": time_or_null(execution.created_at.as_ref()),
        "finished_at": time_or_null(execution.finished_at.as_ref()),
    })
}

fn approvals(approvals: &v1::ExecutionApprovals) -> Value {
    let decision = |decision: &v1::ApprovalDecision| {
        let (at, reason) = (time_or_null(decision.at.as_ref()), text_or_null(&decision.reason));
        json!({ "by": decision.by, "at": at, "reason": reason })
    };
    json!({
        "groups": approvals.groups,
        "count": approvals.count,
        "not_self": approvals.not_self,
        "expires_at": time_or_null(approvals.expires_at.as_ref()),
        "approved": approvals.approved.iter().map(decision).collect::<Vec<_>>(),
        "rejected": approvals.rejected.as_ref().map(decision),
    })
}
