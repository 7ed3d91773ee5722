//! Approving and rejecting what waits for approval. Who may is the execution's own rule, and the domain's to say; here it is found out who
//! asks, and put into words what they are told.

use octavius_core::execution::{Approver, Event, Refusal};
use octavius_core::limit::APPROVAL_REASON_BYTES;
use octavius_core::{Execution, Permission, Principal, State};
use octavius_proto::v1;
use octavius_proto::{Fault, InvalidField, reason};
use tonic::Code;

use super::Executions;
use crate::audit::Act;
use crate::engine::EngineError;
use crate::fault;

/// What somebody says to an execution that waits for approval.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Decision {
    Approve,
    Reject,
}

impl Decision {
    fn event(self, by: Approver, reason: String) -> Event {
        match self {
            Self::Approve => Event::Approve { by, reason },
            Self::Reject => Event::Reject { by, reason },
        }
    }

    const fn as_str(self) -> &'static str {
        match self {
            Self::Approve => "approved",
            Self::Reject => "rejected",
        }
    }
}

impl Executions {
    /// Takes in somebody's decision; the execution as it is then.
    pub(super) async fn decide(&self, act: &Act, id: &str, reason: String, decision: Decision) -> Result<v1::Execution, Fault> {
        if reason.len() > APPROVAL_REASON_BYTES || reason.chars().any(char::is_control) {
            let problem = format!("one line of at most {APPROVAL_REASON_BYTES} bytes is expected");
            return Err(InvalidField::new("reason", problem).into());
        }
        let principal = act.principal()?;
        let found = self.find_to_decide(principal, id).await?;
        act.on("execution", found.id);
        act.note("job", &found.job);
        act.note("decision", decision.as_str());
        let by = self.approver(principal, &found).await?;
        let known = self.engine.recall(found.id, |_| true).await.map_err(fault::from_engine)?;
        let step = self.engine.step_from(known, decision.event(by, reason), |txn| act.done(txn)).await;
        let step = step.map_err(|error| refused(&found, error))?;
        tracing::info!(execution = %found.id, by = act.user(), decision = decision.as_str(), state = %step.execution.state, "decided");
        if self.may_see(principal, &step.execution).await? {
            return self.shown(principal, &step.execution).await;
        }
        // Another was quicker: they are told how it stands, and what it runs with is not for them any more.
        self.shown_to(principal, &step.execution, octavius_proto::execution(&step.execution)).await
    }

    /// Them as one who would approve or reject this execution.
    async fn approver(&self, principal: &Principal, execution: &Execution) -> Result<Approver, Fault> {
        let job = self.job_of(execution).await?;
        let may_run = principal.role.may(Permission::Execute) && principal.may_use(&job.authorized_groups);
        Ok(Approver { user: principal.user.clone(), groups: principal.groups.clone(), may_run })
    }

    /// Whether they may approve or reject it now.
    pub(super) async fn may_decide(&self, principal: &Principal, execution: &Execution) -> Result<bool, Fault> {
        let Some(approvals) = execution.approvals.as_deref() else { return Ok(false) };
        let now = self.engine.clock().now();
        let waits = execution.state == State::WaitingForApproval && approvals.expires_at(execution.created_at) > now;
        if !waits || !principal.role.may(Permission::Execute) {
            return Ok(false);
        }
        let approver = self.approver(principal, execution).await?;
        Ok(approvals.stands_against(&execution.user, &approver).is_none())
    }
}

/// What they are told whose decision was not taken.
fn refused(execution: &Execution, error: EngineError) -> Fault {
    let id = execution.id;
    match error {
        EngineError::Refused(Refusal::NotApprover(not)) => {
            let message = format!("execution {id} of job {}: {not}", execution.job);
            Fault::new(Code::PermissionDenied, reason::NOT_AN_APPROVER, message).with("id", id)
        }
        EngineError::Refused(Refusal::NotWaitingForApproval(state)) => {
            let message = format!("execution {id} does not wait for approval: it is {state}");
            Fault::new(Code::FailedPrecondition, reason::NOT_WAITING_FOR_APPROVAL, message).with("id", id).with("state", state)
        }
        EngineError::Refused(Refusal::ApprovalExpired) => {
            let message = format!("execution {id} can be approved no longer: its time to be approved and started is over");
            Fault::new(Code::FailedPrecondition, reason::APPROVAL_EXPIRED, message).with("id", id)
        }
        error => fault::from_engine(error),
    }
}
