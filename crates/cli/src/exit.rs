//! Exit codes: what scripts and CI jobs go by.

use octavius_core::State;
use octavius_proto::Fault;
use tonic::Code;

/// How `octavius` ends. The numbers are fixed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[repr(u8)]
pub enum Exit {
    /// Done.
    Done = 0,
    /// The answer is no: there are differences or findings, or the execution waited for has failed.
    No = 1,
    /// Wrong usage, configuration or files. Nothing was changed.
    Usage = 2,
    /// The controller refused: not found, not allowed, a stale plan, a conflict; or the person declined.
    Refused = 3,
    /// No controller could be reached in time; by a controller itself, an import or a restore, its store.
    Unreachable = 4,
    /// The execution waited for was cancelled.
    Cancelled = 5,
    /// The execution waited for ran, or waited, longer than it may.
    TimedOut = 6,
    /// The execution waited for was lost with its executor.
    Lost = 7,
    /// Not signed in: the token is missing, expired or unknown; by a controller itself, an import or a restore, the etcd's user is.
    NotSignedIn = 8,
    /// A fault of Octavius.
    Fault = 70,
    /// The waiting took longer than `--wait-timeout`; the execution goes on.
    WaitTimedOut = 124,
    /// Interrupted from the keyboard.
    Interrupted = 130,
}

impl Exit {
    /// The number.
    #[must_use]
    pub const fn code(self) -> u8 {
        self as u8
    }

    /// The exit for what a controller answered: the one place where this is decided.
    #[must_use]
    pub const fn of_fault(fault: &Fault) -> Self {
        match fault.code {
            Code::Ok => Self::Done,
            Code::InvalidArgument => Self::Usage,
            Code::Unauthenticated => Self::NotSignedIn,
            Code::Unavailable | Code::DeadlineExceeded => Self::Unreachable,
            Code::Internal | Code::Unknown | Code::DataLoss => Self::Fault,
            Code::Cancelled
            | Code::NotFound
            | Code::AlreadyExists
            | Code::PermissionDenied
            | Code::ResourceExhausted
            | Code::FailedPrecondition
            | Code::Aborted
            | Code::OutOfRange
            | Code::Unimplemented => Self::Refused,
        }
    }

    /// The exit for an execution that was waited for.
    #[must_use]
    pub const fn of_outcome(state: State) -> Self {
        match state {
            State::Succeeded => Self::Done,
            State::Failed => Self::No,
            State::Cancelled => Self::Cancelled,
            State::TimedOut => Self::TimedOut,
            State::Lost => Self::Lost,
            State::WaitingForApproval | State::Queued | State::Claimed | State::Starting | State::Running => Self::WaitTimedOut,
        }
    }
}

impl From<Exit> for std::process::ExitCode {
    fn from(exit: Exit) -> Self {
        Self::from(exit.code())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_code_has_its_exit() {
        let exit = |code| Exit::of_fault(&Fault::new(code, "", "")).code();
        for (code, expected) in [
            (Code::InvalidArgument, 2),
            (Code::NotFound, 3),
            (Code::PermissionDenied, 3),
            (Code::Aborted, 3),
            (Code::AlreadyExists, 3),
            (Code::FailedPrecondition, 3),
            (Code::ResourceExhausted, 3),
            (Code::Unimplemented, 3),
            (Code::Unavailable, 4),
            (Code::DeadlineExceeded, 4),
            (Code::Unauthenticated, 8),
            (Code::Internal, 70),
            (Code::Unknown, 70),
            (Code::DataLoss, 70),
        ] {
            assert_eq!(exit(code), expected, "{code:?}");
        }
    }

    #[test]
    fn outcomes_have_the_exits_of_the_contract() {
        let codes =
            [State::Succeeded, State::Failed, State::Cancelled, State::TimedOut, State::Lost].map(|s| Exit::of_outcome(s).code());
        assert_eq!(codes, [0, 1, 5, 6, 7]);
    }
}
