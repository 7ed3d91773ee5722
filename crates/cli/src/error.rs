//! How a command fails: an exit code, an error with its causes, and hints. Errors come from below as they are; what to do about them is
//! said here, at the edge.

use std::io;

use octavius_proto::client::ConnectError;
use octavius_proto::{Fault, reason, words};
use tonic::Status;

use crate::client_tls;
use crate::exit::Exit;

/// Why a command did not do what it was asked.
#[derive(Debug)]
pub struct Failure {
    /// How the process ends.
    pub exit: Exit,
    /// What failed; none where everything has been said already.
    pub error: Option<anyhow::Error>,
    /// Lines under the error that belong to it.
    pub details: Vec<String>,
    /// What to do next.
    pub hints: Vec<String>,
    /// What the controller answered, where it did.
    pub fault: Option<Box<Fault>>,
    /// Whether it stays so however often it is tried: what answers there is no controller.
    pub lasting: bool,
}

/// What commands return.
pub type Outcome<T = Exit> = Result<T, Failure>;

impl Failure {
    /// A failure with an exit code and an error.
    pub fn new(exit: Exit, error: impl Into<anyhow::Error>) -> Self {
        Self { exit, error: Some(error.into()), details: Vec::new(), hints: Vec::new(), fault: None, lasting: false }
    }

    /// An end about which nothing more is to be said.
    #[must_use]
    pub const fn quiet(exit: Exit) -> Self {
        Self { exit, error: None, details: Vec::new(), hints: Vec::new(), fault: None, lasting: false }
    }

    /// Wrong usage, configuration or files.
    pub fn usage(message: impl Into<String>) -> Self {
        Self::new(Exit::Usage, anyhow::Error::msg(message.into()))
    }

    /// A refusal.
    pub fn refused(message: impl Into<String>) -> Self {
        Self::new(Exit::Refused, anyhow::Error::msg(message.into()))
    }

    /// A fault of ours.
    pub fn fault(message: impl Into<String>) -> Self {
        Self::new(Exit::Fault, anyhow::Error::msg(message.into()))
    }

    /// A file or folder that cannot be used.
    pub fn file(action: &str, path: &std::path::Path, error: io::Error) -> Self {
        // the name of a temporary file beside it helps nobody
        let told = error.get_ref().and_then(|named| named.source()?.downcast_ref::<io::Error>());
        let error = told.and_then(io::Error::raw_os_error).map_or(error, io::Error::from_raw_os_error);
        Self::new(Exit::Usage, anyhow::Error::new(error).context(format!("cannot {action} {}", path.display())))
    }

    /// Adds what to do next.
    #[must_use]
    pub fn hint(mut self, hint: impl Into<String>) -> Self {
        self.hints.push(hint.into());
        self
    }

    /// Puts what was being done before the error.
    #[must_use]
    pub fn context(mut self, context: impl Into<String>) -> Self {
        self.error = self.error.map(|error| error.context(context.into()));
        self
    }

    /// Whether trying again may help: the controller was not reached, or is stopping.
    #[must_use]
    pub fn may_pass(&self) -> bool {
        (self.exit == Exit::Unreachable && !self.lasting) || self.is(reason::RATE_LIMITED)
    }

    /// Whether the controller gave this reason.
    #[must_use]
    pub fn is(&self, reason: &str) -> bool {
        self.fault.as_ref().is_some_and(|fault| fault.reason == reason)
    }
}

/// What goes wrong on standard output; that it is closed is [`crate::output::Shell`]'s to know.
impl From<io::Error> for Failure {
    fn from(error: io::Error) -> Self {
        Self::new(Exit::Fault, anyhow::Error::new(error).context("cannot write to standard output"))
    }
}

impl From<ConnectError> for Failure {
    fn from(error: ConnectError) -> Self {
        match error {
            ConnectError::Address { .. } | ConnectError::Token => Self::new(Exit::Usage, error),
            ConnectError::Clear { .. } => Self::new(Exit::Usage, error)
                .hint("write https://HOST:PORT or HOST:PORT; `octavius config view` shows what is set"),
            ConnectError::Files(error) => client_tls::file_failure(error),
            ConnectError::Untrusted { ref trouble, .. } => {
                let hint = client_tls::hint(trouble);
                Self { lasting: true, ..Self::new(Exit::Unreachable, error).hint(hint) }
            }
            ConnectError::Unreachable { .. } => Self::new(Exit::Unreachable, error)
                .hint("is it running, and is this its address? `octavius config view` shows what is set"),
        }
    }
}

impl From<Status> for Failure {
    fn from(status: Status) -> Self {
        let mut fault = Fault::from_status(&status);
        // Everything that a controller says has a reason. One of these codes without a reason was made on the way or on this side: the
        // connection broke, or its controller stopped, before an answer came.
        use tonic::Code as C;
        let foreign = matches!(fault.code, C::Unavailable | C::Cancelled | C::Unknown | C::Internal);
        let broken = fault.reason.is_empty() && (foreign || std::error::Error::source(&status).is_some());
        if broken {
            fault.code = tonic::Code::Unavailable;
            fault.message = format!("the connection to the controller broke: {}", octavius_proto::client::root_cause(&status));
        }
        fault.into()
    }
}

impl From<Fault> for Failure {
    fn from(fault: Fault) -> Self {
        let shown = crate::sanitize::line;
        let message = shown(&words::failed(&fault));
        let details = words::details(&fault).into_iter().map(shown).collect();
        let mut failure = Self { details, ..Self::new(Exit::of_fault(&fault), anyhow::Error::msg(message)) };
        if let Some(nearest) = fault.fact("nearest") {
            failure.hints.push(format!("did you mean `{}`?", shown(nearest)));
        } else if let Some(hint) = words::hint(&fault).or_else(|| hint_for(&fault)) {
            failure.hints.push(hint.to_owned());
        }
        failure.fault = Some(Box::new(fault));
        failure
    }
}

/// What to do next with the command line, where [`words::hint`] has nothing.
fn hint_for(fault: &Fault) -> Option<&'static str> {
    Some(match fault.reason.as_str() {
        reason::JOB_NOT_FOUND => "`octavius list` shows the jobs that you may see",
        reason::EXECUTION_NOT_FOUND => "`octavius executions` shows yours, `octavius executions --all` everyone's",
        reason::UNAUTHENTICATED => {
            "`octavius config --token-file FILE` sets a token; an admin makes one with `octavius tokens create`"
        }
        reason::NOT_PERMITTED => "`octavius whoami` shows your role and groups",
        reason::NOT_AN_APPROVER => "`octavius whoami` shows your groups; who asked for it can stop it: `octavius cancel ID`",
        reason::NOT_WAITING_FOR_APPROVAL => "`octavius status ID` shows how it stands, `octavius cancel ID` stops it",
        reason::APPROVAL_EXPIRED => "ask for it anew: `octavius rerun ID`",
        reason::HEAD_MOVED => "someone applied in the meantime: look at `octavius diff` and apply again",
        reason::FROZEN => "nothing is applied to it until `octavius unfreeze`",
        reason::PROTECTED => "apply it without `protect: true` first, then remove it",
        reason::OTHER_CONTROLLER => "make the plan against this controller",
        reason::NAME_TAKEN => "rename the job, or change it in the catalogue that owns it",
        reason::KEY_REUSED => "use another `--idempotency-key`, or exactly the first call's job and arguments",
        reason::CONCURRENCY_LIMIT => "wait for one of them, `octavius status ID --wait`, or stop it, `octavius cancel ID`",
        _ if fault.code == tonic::Code::Unauthenticated => "`octavius config --token-file FILE` sets a token",
        _ if fault.code == tonic::Code::Unimplemented => "the controller may be older than this client: `octavius version`",
        _ => return None,
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use tonic::Code;

    #[test]
    fn violations_are_lines_of_their_own_and_not_said_twice() {
        let fault = Fault::new(Code::InvalidArgument, reason::INVALID_ARGUMENTS, "one thing")
            .violating("a", "one thing")
            .violating("b", "another \u{1b}[31mthing");
        let failure = Failure::from(fault);
        assert_eq!(failure.exit, Exit::Usage);
        assert_eq!(failure.details, ["another \u{fffd}[31mthing"]);
    }

    #[test]
    fn findings_of_the_controller_stand_below_with_their_places() {
        let fault = Fault::new(Code::InvalidArgument, reason::INVALID_CATALOG, "the catalogue has findings; nothing was changed")
            .violating("a/env_vars/args/0", "catalog/a.yaml:1: error[default-type]: \"many\" is not an integer")
            .violating("b", "catalog/b.yaml:3: error[definition]: the definition is that of c, not of b");
        let failure = Failure::from(fault);
        assert_eq!(failure.exit, Exit::Usage);
        assert_eq!(failure.details[0], "catalog/a.yaml:1: error[default-type]: \"many\" is not an integer");
        assert_eq!(failure.details.len(), 2);
    }
}
