//! Errors as they travel: a gRPC code, a reason that scripts can match, and one violation for each thing that is wrong with the input.
//! Both sides speak it: the controller makes them, clients read them.

use tonic::{Code, Status};
use tonic_types::{ErrorDetails, StatusExt as _};

use crate::convert::InvalidField;

/// The domain of our reasons in `google.rpc.ErrorInfo`.
pub const DOMAIN: &str = "octavius";

/// Reasons that a client may want to match.
pub mod reason {
    /// The message is not what the RPC takes.
    pub const INVALID_REQUEST: &str = "INVALID_REQUEST";
    /// Arguments do not fit the job.
    pub const INVALID_ARGUMENTS: &str = "INVALID_ARGUMENTS";
    /// Definitions with findings.
    pub const INVALID_CATALOG: &str = "INVALID_CATALOG";
    /// No job of this name, or not one that the caller may see.
    pub const JOB_NOT_FOUND: &str = "JOB_NOT_FOUND";
    /// No execution of this id, or not one that the caller may see.
    pub const EXECUTION_NOT_FOUND: &str = "EXECUTION_NOT_FOUND";
    /// Something else that was named is not there.
    pub const NOT_FOUND: &str = "NOT_FOUND";
    /// The end of an id fits several executions.
    pub const AMBIGUOUS_ID: &str = "AMBIGUOUS_ID";
    /// The id is that of another execution already.
    pub const ID_TAKEN: &str = "ID_TAKEN";
    /// The idempotency key was used for another request.
    pub const KEY_REUSED: &str = "KEY_REUSED";
    /// Head has moved since the plan was made; metadata `head` names it.
    pub const HEAD_MOVED: &str = "HEAD_MOVED";
    /// The catalogue is frozen; `by` names who froze it.
    pub const FROZEN: &str = "FROZEN";
    /// A job that is to go is protected: it has to be applied without `protect` first. `job` names it.
    pub const PROTECTED: &str = "PROTECTED";
    /// The plan was made against another controller.
    pub const OTHER_CONTROLLER: &str = "OTHER_CONTROLLER";
    /// A job name is owned by another catalogue; metadata `job` and `catalog`.
    pub const NAME_TAKEN: &str = "NAME_TAKEN";
    /// A limit of size or number.
    pub const LIMIT: &str = "LIMIT";
    /// The caller has too many calls under way, or calls too often: the same call goes through later.
    pub const RATE_LIMITED: &str = "RATE_LIMITED";
    /// The caller's message took too long to arrive.
    pub const SLOW_MESSAGE: &str = "SLOW_MESSAGE";
    /// No token, or not a valid one. Which of it is not told.
    pub const UNAUTHENTICATED: &str = "UNAUTHENTICATED";
    /// The caller's role, or the object's owner, does not permit it.
    pub const NOT_PERMITTED: &str = "NOT_PERMITTED";
    /// The end of a session is asked for with a token that is not a session's.
    pub const NOT_A_SESSION: &str = "NOT_A_SESSION";
    /// It is not for the caller to approve or reject the execution; the message says who may.
    pub const NOT_AN_APPROVER: &str = "NOT_AN_APPROVER";
    /// The execution does not wait for approval; `state` says where it is.
    pub const NOT_WAITING_FOR_APPROVAL: &str = "NOT_WAITING_FOR_APPROVAL";
    /// The time for the execution to be approved and started is over.
    pub const APPROVAL_EXPIRED: &str = "APPROVAL_EXPIRED";
    /// As many executions of the job run as may, and it refuses more; metadata `holders` names some of them.
    pub const CONCURRENCY_LIMIT: &str = "CONCURRENCY_LIMIT";
    /// Log bytes after a gap; metadata `next_offset` says where to go on.
    pub const LOG_GAP: &str = "LOG_GAP";
    /// The log is sealed.
    pub const LOG_SEALED: &str = "LOG_SEALED";
    /// The executor holds executions; `executions` names some of them, `count` says how many they are.
    pub const EXECUTOR_BUSY: &str = "EXECUTOR_BUSY";
    /// The versions of executor and controller do not go together.
    pub const VERSION_SKEW: &str = "VERSION_SKEW";
    /// The executor has a session already.
    pub const SESSION_EXISTS: &str = "SESSION_EXISTS";
    /// The controller is stopping.
    pub const STOPPING: &str = "STOPPING";
    /// The store does not answer.
    pub const STORE_UNAVAILABLE: &str = "STORE_UNAVAILABLE";
    /// The store is full.
    pub const STORE_FULL: &str = "STORE_FULL";
    /// The archive of logs does not answer, and the store holds as much of the log as it may.
    pub const ARCHIVE_UNAVAILABLE: &str = "ARCHIVE_UNAVAILABLE";
    /// A piece of a log is not in the archive as it was written.
    pub const LOG_DAMAGED: &str = "LOG_DAMAGED";
    /// The log was removed, and its execution is kept.
    pub const LOG_REMOVED: &str = "LOG_REMOVED";
    /// There is no key to encrypt sensitive arguments with, or not the one that they are encrypted with; metadata `key` names that one.
    pub const ENCRYPTION_KEY_MISSING: &str = "ENCRYPTION_KEY_MISSING";
    /// Encrypted arguments are not as they were written.
    pub const ARGUMENTS_DAMAGED: &str = "ARGUMENTS_DAMAGED";
    /// A webhook did not take a message that was sent to it now; metadata `webhook` names it.
    pub const WEBHOOK_FAILED: &str = "WEBHOOK_FAILED";
    /// A fault of ours.
    pub const INTERNAL: &str = "INTERNAL";
}

/// One thing that is wrong with the input.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Violation {
    /// The field, argument or place.
    pub field: String,
    /// What is wrong.
    pub description: String,
}

/// An error as it travels.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{message}")]
pub struct Fault {
    /// The gRPC code.
    pub code: Code,
    /// One of [`reason`].
    pub reason: String,
    /// What failed, on which object; a lower-case fragment.
    pub message: String,
    /// Facts that go with the reason.
    pub metadata: Vec<(String, String)>,
    /// What is wrong with the input, all of it.
    pub violations: Vec<Violation>,
}

impl Fault {
    /// A fault of this code and reason.
    #[must_use]
    pub fn new(code: Code, reason: &str, message: impl Into<String>) -> Self {
        Self { code, reason: reason.to_owned(), message: message.into(), metadata: Vec::new(), violations: Vec::new() }
    }

    /// Adds a fact.
    #[must_use]
    pub fn with(mut self, key: &str, value: impl std::fmt::Display) -> Self {
        self.metadata.push((key.to_owned(), value.to_string()));
        self
    }

    /// Adds a violation.
    #[must_use]
    pub fn violating(mut self, field: impl Into<String>, description: impl Into<String>) -> Self {
        self.violations.push(Violation { field: field.into(), description: description.into() });
        self
    }

    /// The fact of this key.
    #[must_use]
    pub fn fact(&self, key: &str) -> Option<&str> {
        self.metadata.iter().find(|(known, _)| known == key).map(|(_, value)| value.as_str())
    }

    /// Reads a fault from what a call answered. Where the peer is not ours, the reason is empty.
    #[must_use]
    pub fn from_status(status: &Status) -> Self {
        let details = status.get_error_details();
        let info = details.error_info().filter(|info| info.domain == DOMAIN);
        let violations = details.bad_request().map(|request| request.field_violations.as_slice()).unwrap_or_default();
        Self {
            code: status.code(),
            reason: info.map(|info| info.reason.clone()).unwrap_or_default(),
            message: status.message().to_owned(),
            metadata: info.map(|info| info.metadata.clone().into_iter().collect()).unwrap_or_default(),
            violations: violations
                .iter()
                .map(|violation| Violation { field: violation.field.clone(), description: violation.description.clone() })
                .collect(),
        }
    }
}

/// Most bytes of a message, a field or a description as they travel.
const TEXT_BYTES: usize = 1000;

/// Most bytes of all violations together. Errors travel in headers, in base 64, and peers take 16 KiB of headers.
const VIOLATIONS_BYTES: usize = 6 * 1024;

/// The beginning of a text, where it is too long to travel.
fn clip(mut text: String) -> String {
    if text.len() > TEXT_BYTES {
        let end = (0..=TEXT_BYTES).rev().find(|end| text.is_char_boundary(*end)).unwrap_or_default();
        text.truncate(end);
        text.push('…');
    }
    text
}

impl From<Fault> for Status {
    fn from(fault: Fault) -> Self {
        let metadata = fault.metadata.into_iter().map(|(key, value)| (key, clip(value)));
        let mut details =
            ErrorDetails::with_error_info(fault.reason, DOMAIN, metadata.collect::<std::collections::HashMap<_, _>>());
        let mut bytes = 0;
        let count = fault.violations.len();
        for (index, violation) in fault.violations.into_iter().enumerate() {
            let (field, description) = (clip(violation.field), clip(violation.description));
            bytes += field.len() + description.len() + 8;
            if bytes > VIOLATIONS_BYTES {
                details.add_bad_request_violation("", format!("and {} more", count - index));
                break;
            }
            details.add_bad_request_violation(field, description);
        }
        Status::with_error_details(fault.code, clip(fault.message), details)
    }
}

impl From<InvalidField> for Fault {
    fn from(invalid: InvalidField) -> Self {
        Self::new(Code::InvalidArgument, reason::INVALID_REQUEST, invalid.to_string()).violating(invalid.field, invalid.problem)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_fault_survives_the_wire() {
        let fault = Fault::new(Code::Aborted, reason::HEAD_MOVED, "head is 8 now").with("head", 8).violating("a", "b");
        assert_eq!(Fault::from_status(&Status::from(fault.clone())), fault);
        assert_eq!(fault.fact("head"), Some("8"));
        let foreign = Fault::from_status(&Status::unavailable("no route"));
        assert_eq!((foreign.code, foreign.reason.as_str()), (Code::Unavailable, ""));
    }

    /// Errors travel in headers: one that is too large would reach nobody.
    #[test]
    fn a_fault_with_very_much_to_say_still_fits_the_headers() {
        let long = "ä".repeat(9000);
        let mut fault = Fault::new(Code::InvalidArgument, reason::INVALID_CATALOG, long.clone()).with("nearest", long.clone());
        for index in 0..3000 {
            fault = fault.violating(format!("jobs/{index}.yaml"), "wrong");
        }
        let status = Status::from(fault);
        let headers: usize =
            status.into_http::<()>().headers().iter().map(|(name, value)| name.as_str().len() + value.len() + 32).sum();
        assert!(headers < 16 * 1024, "{headers}");
        let told = Fault::from_status(&Status::from(Fault::new(Code::Aborted, "R", long).violating("a", "b")));
        assert!(told.message.starts_with("ää") && told.message.len() < 1010);
    }
}
