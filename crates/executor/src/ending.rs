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
    let mut ending = match exit.cause {
        Cause::TimedOut => {
            let limit = HumanDuration::new(timeout);
            Ending::because(State::TimedOut, Reason::DEADLINE, format!("ran longer than {limit}"))
        }
        Cause::Stopped if stop.is_some() => Ending::because(State::Cancelled, Reason::CANCELLED, "stopped as requested"),
        Cause::Stopped => lost("stopped from outside Octavius: whoever shuts a machine down does so"),
        Cause::StartFailed => Ending::because(State::Failed, Reason::START_FAILED, ""),
        Cause::Exited => of_status(exit.code, exit.signal),
    };
    append(&mut ending, &exit.message);
    ending
}

/// Adds to an ending's message what else is to be known.
pub(crate) fn append(ending: &mut Ending, more: &str) {
    if !ending.message.is_empty() && !more.is_empty() {
        ending.message.push_str("; ");
    }
    ending.message.push_str(more);
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
        Exit { cause, code, signal, ..Exit::start_failed(String::new()) }
    }

    #[test]
    fn what_the_shim_has_to_say_is_told_whatever_the_cause() {
        let message = |cause, code| {
            let exit = Exit { message: "the end of the output is lost: x".to_owned(), ..exit(cause, code, None) };
            of_exit(&exit, Duration::from_secs(600), Some(StopCause::Cancelled)).message
        };
        assert_eq!(message(Cause::Exited, Some(0)), "the end of the output is lost: x");
        assert_eq!(message(Cause::Exited, Some(3)), "exit code 3; the end of the output is lost: x");
        assert_eq!(message(Cause::TimedOut, None), "ran longer than 10m; the end of the output is lost: x");
        assert_eq!(message(Cause::Stopped, None), "stopped as requested; the end of the output is lost: x");
        assert_eq!(message(Cause::StartFailed, None), "the end of the output is lost: x");
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
            (exit(Cause::StartFailed, None, None), None, "failed START_FAILED '' None"),
        ] {
            let ending = of_exit(&exit, timeout, stop);
            let reason = ending.reason.map_or("-".to_owned(), |reason| reason.0);
            assert_eq!(format!("{} {reason} '{}' {:?}", ending.outcome, ending.message, ending.exit_code), expected);
        }
    }
}
