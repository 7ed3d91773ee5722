//! What etcd's errors mean: whether a write may have happened, and what a caller is told.

use std::error::Error as _;
use std::fmt::Write as _;
use std::time::Duration;

use etcd_client::Error;
use tonic::{Code, ConnectError, Status};

use crate::api::{Refusal, StoreError};

/// Why a call failed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Failure {
    /// There was no connection, so etcd has not seen the request. Another member may take it.
    NotSent(String),
    /// The answer was lost; a write may have happened.
    Lost(String),
    /// Etcd refused the request, or it was never fit to be sent: nothing happened, and another member would say the same.
    Refused(StoreError),
    /// The revision asked for is compacted. Etcd does not say here what the oldest is.
    Compacted,
    /// The lease is gone.
    LeaseGone,
}

impl Failure {
    /// No answer came in time.
    pub(super) fn timed_out(timeout: Duration) -> Self {
        Self::Lost(format!("no answer within {timeout:?}"))
    }

    /// What this means for a call that changes nothing.
    pub(super) fn of_read(self) -> StoreError {
        match self {
            Self::NotSent(why) | Self::Lost(why) => StoreError::Unavailable(why),
            Self::Refused(error) => error,
            Self::Compacted => StoreError::Unavailable("a compacted revision where none was named".to_owned()),
            Self::LeaseGone => StoreError::PresenceLost,
        }
    }

    /// What this means for a call that changes something.
    pub(super) fn of_write(self) -> StoreError {
        match self {
            Self::Lost(why) => StoreError::Unknown(why),
            other => other.of_read(),
        }
    }
}

/// What of the options has to be put right, where a message of etcd's says so. Its messages are part of its interface.
pub(super) fn refusal(message: &str) -> Option<Refusal> {
    let says = |text: &str| message.contains(text);
    if says("authentication is not enabled") {
        Some(Refusal::NoUsers)
    } else if says("authentication failed") || says("user name is empty") || says("user name not found") {
        Some(Refusal::Credentials)
    } else if says("permission denied") {
        Some(Refusal::Permission)
    } else {
        None
    }
}

impl From<Error> for Failure {
    fn from(error: Error) -> Self {
        match error {
            Error::GRpcStatus(status) => of_status(&status),
            Error::InvalidArgs(why) => Self::Refused(StoreError::Invalid(why)),
            Error::LeaseKeepAliveError(why) if why.contains("not found") => Self::LeaseGone,
            other => Self::Lost(other.to_string()),
        }
    }
}

fn of_status(status: &Status) -> Failure {
    if was_not_connected(status) {
        return Failure::NotSent(describe(status));
    }
    let message = status.message();
    let says = |text: &str| message.contains(text);
    // Etcd's messages are part of its interface: its own client tells its errors apart by them.
    if says("database space exceeded") {
        return Failure::Refused(StoreError::Full(message.to_owned()));
    }
    if says("request is too large") || says("too many operations") || says("duplicate key given") || says("future revision") {
        return Failure::Refused(StoreError::Invalid(message.to_owned()));
    }
    if says("required revision has been compacted") {
        return Failure::Compacted;
    }
    if says("requested lease not found") {
        return Failure::LeaseGone;
    }
    // It says so before it proposes anything to the other members.
    if says("too many requests") {
        return Failure::Refused(StoreError::Unavailable(message.to_owned()));
    }
    match status.code() {
        Code::PermissionDenied
        | Code::Unauthenticated
        | Code::InvalidArgument
        | Code::FailedPrecondition
        | Code::Unimplemented => Failure::Refused(StoreError::Unavailable(message.to_owned())),
        _ => Failure::Lost(describe(status)),
    }
}

fn was_not_connected(status: &Status) -> bool {
    let mut source = status.source();
    while let Some(error) = source {
        if error.is::<ConnectError>() {
            return true;
        }
        source = error.source();
    }
    false
}

/// The message with its causes: "tcp connect error" alone helps nobody.
fn describe(status: &Status) -> String {
    let mut text = status.message().to_owned();
    let mut source = status.source();
    while let Some(error) = source {
        let cause = error.to_string();
        if !text.contains(&cause) {
            // Writing to a string does not fail.
            let _ = write!(text, ": {cause}");
        }
        source = error.source();
    }
    if text.is_empty() { status.code().to_string() } else { text }
}
