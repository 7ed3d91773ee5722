//! The approvals that an execution needs before it may start, and what it has of them.

use std::fmt;
use std::time::Duration;

use jiff::Timestamp;
use serde::{Deserialize, Serialize};

use crate::HumanDuration;
use crate::definition::Approvals;

use super::{Applied, Ending, Execution, Reason, Refusal, State};

/// Somebody who would approve or reject an execution.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Approver {
    /// Their name: two tokens of one name are one person.
    pub user: String,
    /// Their groups.
    pub groups: Vec<String>,
    /// Whether they may run the job themselves.
    pub may_run: bool,
}

/// Why it is not for somebody to approve or reject an execution, in words that say who may.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum NotApprover {
    /// They asked for it.
    Requester,
    /// They are in none of these groups.
    NotIn(Vec<String>),
    /// It is for those who may run the job.
    MayNotRun,
}

impl fmt::Display for NotApprover {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Requester => {
                f.write_str("whoever asked for an execution of this job may not approve or reject it: somebody else must")
            }
            Self::NotIn(groups) => write!(f, "only members of {} may approve or reject it", groups.join(" or ")),
            Self::MayNotRun => f.write_str("only those who may run the job may approve or reject it"),
        }
    }
}

/// Somebody's word on an execution.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ApprovalDecision {
    /// Whose.
    pub by: String,
    /// When.
    pub at: Timestamp,
    /// Why, as they say.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub reason: String,
}

/// What an execution needs before it may start, as its job said when it was asked for, and what it has of that. What the catalogue says
/// later changes nothing of it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ExecutionApprovals {
    /// The groups whose members may approve or reject; empty for everybody who may run the job.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub groups: Vec<String>,
    /// How many people must approve.
    pub count: u32,
    /// Whether whoever asked for the execution may not approve it.
    pub not_self: bool,
    /// How long after its submission it may still start.
    pub valid_for: Duration,
    /// The approvals that it has, oldest first, each of another person.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub approved: Vec<ApprovalDecision>,
    /// Who rejected it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub rejected: Option<ApprovalDecision>,
}

impl From<&Approvals> for ExecutionApprovals {
    fn from(rule: &Approvals) -> Self {
        let Approvals { groups, count, not_self, valid_for: _ } = rule;
        Self {
            groups: groups.clone(),
            count: (*count).max(1),
            not_self: *not_self,
            valid_for: rule.valid_for(),
            approved: Vec::new(),
            rejected: None,
        }
    }
}

impl ExecutionApprovals {
    /// Whether it has all approvals that it needs.
    #[must_use]
    pub fn is_complete(&self) -> bool {
        self.approved.len() >= self.count as usize
    }

    /// Whether one of the approvals is theirs.
    #[must_use]
    pub fn has_approval_of(&self, user: &str) -> bool {
        self.approved.iter().any(|decision| decision.by == user)
    }

    /// Whether they have approved or rejected it.
    #[must_use]
    pub fn has_decision_of(&self, user: &str) -> bool {
        self.has_approval_of(user) || self.rejected.as_ref().is_some_and(|rejected| rejected.by == user)
    }

    /// When an execution that was asked for at `created_at` ends where it has not started by then.
    #[must_use]
    pub fn expires_at(&self, created_at: Timestamp) -> Timestamp {
        created_at.checked_add(self.valid_for).unwrap_or(Timestamp::MAX)
    }

    /// Why it is not for `who` to approve or reject what `requester` asked for; `None` where it is. Nobody's role stands above the rule: the
    /// reviewed file says who may.
    #[must_use]
    pub fn stands_against(&self, requester: &str, who: &Approver) -> Option<NotApprover> {
        if self.groups.is_empty() && !who.may_run {
            return Some(NotApprover::MayNotRun);
        }
        if !self.groups.is_empty() && !self.groups.iter().any(|group| who.groups.contains(group)) {
            return Some(NotApprover::NotIn(self.groups.clone()));
        }
        (self.not_self && who.user == requester).then_some(NotApprover::Requester)
    }

    /// When it had all its approvals; `None` before.
    fn complete_since(&self) -> Option<Timestamp> {
        self.approved.last().filter(|_| self.is_complete()).map(|last| last.at)
    }
}

impl Execution {
    /// When it ends where it has not started by then, for want of approvals or because they are good no longer; `None` where its job asks for
    /// none, or it has started.
    #[must_use]
    pub fn approval_expires_at(&self) -> Option<Timestamp> {
        let approvals = self.approvals.as_ref().filter(|_| self.starts() == 0)?;
        Some(approvals.expires_at(self.created_at))
    }

    /// When it came into the queue first, or will where it still waits for approval.
    pub(super) fn queued_since(&self) -> Timestamp {
        self.approvals.as_deref().and_then(ExecutionApprovals::complete_since).unwrap_or(self.created_at)
    }

    /// Whether it is too late to start it for the first time.
    pub(super) fn approval_is_over(&self, at: Timestamp) -> bool {
        self.approval_expires_at().is_some_and(|expires| at >= expires)
    }

    /// Why its wait ends where its approvals, or the wait for them, ran out.
    pub(super) fn approval_expired(&self) -> Option<Ending> {
        let approvals = self.approvals.as_ref()?;
        let valid_for = HumanDuration::new(approvals.valid_for);
        let message = if approvals.is_complete() {
            format!("it was approved, and did not start within {valid_for} of being asked for")
        } else {
            format!("{} of {} approvals came within {valid_for}", approvals.approved.len(), approvals.count)
        };
        Some(Ending::because(State::TimedOut, Reason::APPROVAL_EXPIRED, message))
    }

    pub(super) fn approve(&mut self, by: Approver, reason: String, at: Timestamp) -> Result<Applied, Refusal> {
        let (state, is_over, has_started) = (self.state, self.approval_is_over(at), self.starts() > 0);
        let approvals = self.for_decision(&by)?;
        let has_theirs = approvals.has_approval_of(&by.user);
        if state != State::WaitingForApproval {
            // The call repeated, or another was quicker: it is as they want it where it goes on, or went on and theirs was one of those that
            // let it.
            let is_done = approvals.is_complete() && (!state.is_terminal() || (has_theirs && has_started));
            return if is_done { Ok(Applied::Unchanged) } else { Err(Refusal::NotWaitingForApproval(state)) };
        }
        if is_over {
            return Err(Refusal::ApprovalExpired);
        }
        if has_theirs {
            return Ok(Applied::Unchanged);
        }
        approvals.approved.push(ApprovalDecision { by: by.user, at, reason });
        if approvals.is_complete() {
            self.enter(State::Queued, at);
        }
        Ok(Applied::Changed)
    }

    pub(super) fn reject(&mut self, by: Approver, reason: String, at: Timestamp) -> Result<Applied, Refusal> {
        let state = self.state;
        let approvals = self.for_decision(&by)?;
        if approvals.rejected.as_ref().is_some_and(|rejected| rejected.by == by.user) {
            return Ok(Applied::Unchanged);
        }
        if state != State::WaitingForApproval {
            return Err(Refusal::NotWaitingForApproval(state));
        }
        let mut message = format!("rejected by {}", by.user);
        if !reason.is_empty() {
            message = format!("{message}: {reason}");
        }
        approvals.rejected = Some(ApprovalDecision { by: by.user, at, reason });
        self.end(Ending::because(State::Cancelled, Reason::REJECTED, message), at);
        Ok(Applied::Changed)
    }

    /// Its approvals, where it is for `who` to add theirs or to reject it.
    fn for_decision(&mut self, who: &Approver) -> Result<&mut ExecutionApprovals, Refusal> {
        let state = self.state;
        let approvals = self.approvals.as_mut().ok_or(Refusal::NotWaitingForApproval(state))?;
        match approvals.stands_against(&self.user, who) {
            Some(not) => Err(Refusal::NotApprover(not)),
            None => Ok(approvals),
        }
    }
}

#[cfg(test)]
mod tests;
