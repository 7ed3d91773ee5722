//! What the first Octavius called the states of an execution, for people and scripts that know it by those names.

use super::{Reason, State};

/// The first Octavius' status for an execution in `state`, which ended so for `reason`; `began` says whether an executor had begun with it.
///
/// It had fewer words than there are states. What never came to an executor is `CREATION_FAILED`; what was stopped while it ran
/// is `POD_FAILED`; of what was lost with its executor neither end nor log could be had, `FETCH_POD_LOG_FAILED`. It called
/// `FINISHED` also what had failed: here, that is what succeeded alone.
#[must_use]
pub fn first_octavius_status(state: State, reason: Option<&str>, began: bool) -> &'static str {
    match state {
        State::WaitingForApproval | State::Queued => "RECEIVED",
        State::Claimed => "CREATED",
        State::Starting => "JOB_READY",
        State::Running => "POD_READY",
        State::Succeeded => "FINISHED",
        State::Lost => "FETCH_POD_LOG_FAILED",
        State::Cancelled | State::TimedOut if !began => "CREATION_FAILED",
        State::Cancelled | State::TimedOut => "POD_FAILED",
        State::Failed => failed(reason.unwrap_or_default()),
    }
}

fn failed(reason: &str) -> &'static str {
    match reason {
        Reason::REQUIREMENT_NOT_MET | Reason::SECRET_MISSING | Reason::SECRET_NOT_OFFERED => "REQUIREMENT_NOT_MET",
        Reason::START_FAILED | Reason::FORBIDDEN | Reason::QUOTA | Reason::CONFLICT => "JOB_CREATION_FAILED",
        Reason::IMAGE_PULL | Reason::UNSCHEDULABLE => "POD_CREATION_FAILED",
        Reason::ARGUMENTS_DAMAGED => "CREATION_FAILED",
        _ => "POD_FAILED",
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_state_has_a_status_of_the_first_octavius() {
        let known = [
            "RECEIVED",
            "REQUIREMENT_NOT_MET",
            "CREATED",
            "CREATION_FAILED",
            "JOB_CREATION_FAILED",
            "JOB_READY",
            "POD_CREATION_FAILED",
            "POD_READY",
            "POD_FAILED",
            "FETCH_POD_LOG_FAILED",
            "FINISHED",
        ];
        let reasons =
            [None, Some(Reason::EXIT_CODE), Some(Reason::SECRET_MISSING), Some(Reason::QUOTA), Some(Reason::IMAGE_PULL)];
        let mut given = std::collections::BTreeSet::new();
        for state in State::ALL {
            for (reason, began) in reasons.into_iter().flat_map(|reason| [(reason, true), (reason, false)]) {
                let status = first_octavius_status(state, reason, began);
                assert!(known.contains(&status), "{status}");
                given.insert(status);
            }
        }
        assert_eq!(given.len(), known.len(), "{given:?}");
    }

    #[test]
    fn only_what_succeeded_is_finished() {
        for state in State::ALL {
            let finished = first_octavius_status(state, None, true) == "FINISHED";
            assert_eq!(finished, state == State::Succeeded, "{state}");
        }
        assert_eq!(first_octavius_status(State::Failed, Some("FROM_THE_FUTURE"), true), "POD_FAILED");
        assert_eq!(first_octavius_status(State::TimedOut, Some(Reason::QUEUE_DEADLINE), false), "CREATION_FAILED");
        assert_eq!(first_octavius_status(State::TimedOut, Some(Reason::DEADLINE), true), "POD_FAILED");
    }
}
