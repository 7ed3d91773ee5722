//! What webhooks tell of executions.

use std::fmt;

use serde::{Deserialize, Serialize};

use crate::execution::{Execution, State};

/// What has come of an execution, and is told.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum WebhookEvent {
    /// It waits for people to approve it.
    WaitingForApproval,
    /// It has ended, in whatever state.
    Finished,
    /// It has ended as it should not: it failed, ran or waited for too long, or was lost.
    Failed,
}

impl WebhookEvent {
    /// Every event.
    pub const ALL: [Self; 3] = [Self::WaitingForApproval, Self::Finished, Self::Failed];

    /// The event as files, keys and output write it.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::WaitingForApproval => "waiting_for_approval",
            Self::Finished => "finished",
            Self::Failed => "failed",
        }
    }

    /// The event of this name.
    #[must_use]
    pub fn parse(text: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|event| event.as_str() == text)
    }

    /// Which of `wanted` a step brings about; `before` is none for an execution that is new. One end is told once: where both ask for it, as
    /// the failure that it is.
    #[must_use]
    pub fn of(wanted: &[Self], before: Option<&Execution>, after: &Execution) -> Option<Self> {
        let was = before.map(|before| before.state);
        if was == Some(after.state) || was.is_some_and(State::is_terminal) {
            return None;
        }
        let happened: &[Self] = match after.state {
            State::WaitingForApproval => &[Self::WaitingForApproval],
            State::Succeeded | State::Cancelled => &[Self::Finished],
            State::Failed | State::TimedOut | State::Lost => &[Self::Failed, Self::Finished],
            State::Queued | State::Claimed | State::Starting | State::Running => &[],
        };
        happened.iter().copied().find(|event| wanted.contains(event))
    }
}

impl fmt::Display for WebhookEvent {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.as_str())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::argument::Arguments;
    use crate::execution::Submission;
    use crate::{ExecutionId, Timestamp, Timing};

    fn in_state(state: State) -> Execution {
        let job = serde_json::from_str(r#"{"name":"pay","command":["true"]}"#).unwrap();
        let at = Timestamp::from_second(1).unwrap();
        let id = ExecutionId::from_bits(1);
        let submission = Submission { id, arguments: Arguments::new(), user: "ann".into(), at, timeout: None, slot: None };
        Execution { state, ..Execution::submit(&job, "c".parse().unwrap(), 1, submission, &Timing::default()) }
    }

    #[test]
    fn an_end_is_told_once_and_as_what_it_is() {
        use WebhookEvent as W;
        let told = |wanted: &[W], from: State, to: State| W::of(wanted, Some(&in_state(from)), &in_state(to));
        for state in State::ALL {
            let fails = matches!(state, State::Failed | State::TimedOut | State::Lost);
            let ends = state.is_terminal();
            assert_eq!(told(&[W::Finished], State::Queued, state), ends.then_some(W::Finished), "{state}");
            assert_eq!(told(&[W::Failed], State::Queued, state), fails.then_some(W::Failed), "{state}");
            let both = if fails { Some(W::Failed) } else { ends.then_some(W::Finished) };
            assert_eq!(told(&[W::Finished, W::Failed], State::Running, state), both, "{state}");
            assert_eq!(told(&W::ALL, state, state), None, "{state}: nothing has come of it");
        }
        assert_eq!(told(&W::ALL, State::Lost, State::Failed), None, "what has ended does not end again");
        let waits = in_state(State::WaitingForApproval);
        assert_eq!(W::of(&W::ALL, None, &waits), Some(W::WaitingForApproval));
        assert_eq!(W::of(&[W::Finished], None, &waits), None);
        assert_eq!(W::of(&W::ALL, None, &in_state(State::Queued)), None);
    }

    #[test]
    fn names_are_read_back() {
        for event in WebhookEvent::ALL {
            assert_eq!(WebhookEvent::parse(event.as_str()), Some(event));
        }
        assert_eq!(WebhookEvent::parse("started"), None);
    }
}
