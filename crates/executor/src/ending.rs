//! How what happened to a process becomes the ending of an attempt.

use std::time::Duration;

use octavius_core::HumanDuration;
use octavius_core::execution::{Ending, Reason, State};

use crate::journal::{Cause, Exit, StopCause};
use crate::shim::signal_name;

/// The ending that `exit` stands for, where the job had `timeout` and the executor had, or had not, asked for a stop.
///
/// A job that was ended by a signal has the exit code that a shell would show: 128 and the signal's number.
pub(crate) fn of_exit(exit: &Exit, timeout: Duration, stop: Option<StopCause>) -> Ending {
    match exit.cause {
        Cause::TimedOut => {
            let limit = HumanDuration::new(timeout);
            Ending::because(State::TimedOut, Reason::DEADLINE, format!("ran longer than {limit}"))
        }
        Cause::Stopped if stop.is_some() => Ending::because(State::Cancelled, Reason::CANCELLED, "stopped as requested"),
        Cause::Stopped => lost("stopped from outside Octavius: whoever shuts a machine down does so"),
        Cause::StartFailed => Ending::because(State::Failed, Reason::START_FAILED, exit.message.clone()),
        Cause::Exited => of_status(exit.code, exit.signal),
    }
}

fn of_status(code: Option<i32>, signal: Option<i32>) -> Ending {
    match (code, signal) {
        (Some(0), _) => Ending::succeeded(),
        (Some(code), _) => {
            Ending { exit_code: Some(code), ..Ending::because(State::Failed, Reason::EXIT_CODE, format!("exit code {code}")) }
        }
        (None, Some(signal)) => {
            let message = format!("killed by {} ({signal})", signal_name(signal));
            Ending { exit_code: Some(128 + signal), ..Ending::because(State::Failed, Reason::SIGNAL, message) }
        }
        (None, None) => lost("how the job ended is not known"),
    }
}

/// The ending of a job whose shim is gone without having said how the job ended.
pub(crate) fn lost(message: &str) -> Ending {
    Ending::because(State::Lost, Reason::RUNNER_LOST, message)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn exit(cause: Cause, code: Option<i32>, signal: Option<i32>) -> Exit {
        Exit { cause, code, signal, ..Exit::start_failed("program not found: x".to_owned()) }
    }

    #[test]
    fn every_way_to_end_has_its_outcome_reason_and_code() {
        let timeout = Duration::from_secs(600);
        let cancelled = Some(StopCause::Cancelled);
        for (exit, stop, expected) in [
            (exit(Cause::Exited, Some(0), None), None, "succeeded - '' Some(0)"),
            (exit(Cause::Exited, Some(3), None), cancelled, "failed EXIT_CODE 'exit code 3' Some(3)"),
            (exit(Cause::Exited, None, Some(9)), None, "failed SIGNAL 'killed by SIGKILL (9)' Some(137)"),
            (exit(Cause::TimedOut, None, Some(15)), None, "timed_out DEADLINE 'ran longer than 10m' None"),
            (exit(Cause::Stopped, None, Some(15)), cancelled, "cancelled CANCELLED 'stopped as requested' None"),
            (
                exit(Cause::Stopped, Some(0), None),
                None,
                "lost RUNNER_LOST 'stopped from outside Octavius: whoever shuts a machine down does so' None",
            ),
            (exit(Cause::StartFailed, None, None), None, "failed START_FAILED 'program not found: x' None"),
        ] {
            let ending = of_exit(&exit, timeout, stop);
            let reason = ending.reason.map_or("-".to_owned(), |reason| reason.0);
            assert_eq!(format!("{} {reason} '{}' {:?}", ending.outcome, ending.message, ending.exit_code), expected);
        }
    }
}
