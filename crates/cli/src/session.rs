//! A session with a controller: one connection, calls that end within the connection timeout, and new connections where one broke.

use std::time::Duration;

use octavius_proto::client::Connection;
use tonic::{Response, Status};

use crate::Context;
use crate::config::{self, Resolved};
use crate::error::{Failure, Outcome};
use crate::exit::Exit;

/// A connection, and what is needed to make it again.
#[derive(Debug, Clone)]
pub struct Session {
    resolved: Resolved,
    connection: Connection,
}

impl Session {
    /// Connects as flags, environment and file say.
    ///
    /// # Errors
    /// Where nothing says which controller is meant, or none answers in time.
    pub async fn open(context: &Context) -> Outcome<Self> {
        let resolved = config::resolve(&context.connect)?;
        for warning in &resolved.warnings {
            context.shell.warn(warning);
        }
        Self::connect(resolved).await
    }

    /// Connects.
    ///
    /// # Errors
    /// Where no controller answers in time.
    pub async fn connect(resolved: Resolved) -> Outcome<Self> {
        let connection = Connection::open(&resolved.addresses, resolved.token.as_deref(), resolved.timeout).await?;
        Ok(Self { resolved, connection })
    }

    /// Connects again, perhaps to another address.
    ///
    /// # Errors
    /// Where no controller answers in time.
    pub async fn reconnect(&mut self) -> Outcome<()> {
        self.connection =
            Connection::open(&self.resolved.addresses, self.resolved.token.as_deref(), self.resolved.timeout).await?;
        Ok(())
    }

    /// The connection, for its clients.
    #[must_use]
    pub fn connection(&self) -> &Connection {
        &self.connection
    }

    /// What the controller is called: the context's name, or its address.
    #[must_use]
    pub fn name(&self) -> &str {
        &self.resolved.name
    }

    /// Longest wait for an answer.
    #[must_use]
    pub fn timeout(&self) -> Duration {
        self.resolved.timeout
    }

    /// Makes a call and waits for its answer, at most the connection timeout.
    ///
    /// # Errors
    /// What the controller answered, or that it did not.
    pub async fn call<T>(&self, call: impl Future<Output = Result<Response<T>, Status>>) -> Outcome<T> {
        self.call_within(self.resolved.timeout, call).await
    }

    /// Makes a call and waits for its answer, at most `limit`.
    ///
    /// # Errors
    /// What the controller answered, or that it did not.
    pub async fn call_within<T>(&self, limit: Duration, call: impl Future<Output = Result<Response<T>, Status>>) -> Outcome<T> {
        match tokio::time::timeout(limit, call).await {
            Ok(Ok(response)) => Ok(response.into_inner()),
            Ok(Err(status)) => Err(self.with_source(status.into())),
            Err(_) => Err(self.no_answer(limit)),
        }
    }

    /// Says of a token that was refused where it came from: several places may hold one.
    fn with_source(&self, failure: Failure) -> Failure {
        match (&self.resolved.token_source, failure.exit) {
            (Some(source), Exit::NotSignedIn) => failure.hint(format!("the token came from {source}")),
            (None, Exit::NotSignedIn) if self.resolved.token.is_none() => failure.hint("no token is set"),
            _ => failure,
        }
    }

    /// That a controller took a connection and did not answer.
    #[must_use]
    pub fn no_answer(&self, limit: Duration) -> Failure {
        let limit = octavius_core::HumanDuration::new(limit);
        let message = format!("the controller at {} did not answer within {limit}", self.connection.address());
        Failure::new(Exit::Unreachable, anyhow::Error::msg(message))
    }
}

/// Pauses between tries, longer and longer, until a limit since the last success.
#[derive(Debug)]
pub struct Patience {
    limit: Duration,
    failing_since: Option<tokio::time::Instant>,
    pause: Duration,
}

/// How long a wait or a followed log bears a controller that does not answer. A controller's restart takes seconds, that of its machine
/// minutes; a job may run for a day, and to end early would say nothing about it.
const BEARS: Duration = Duration::from_secs(300);

/// First and longest pause between two tries.
const PAUSES: (Duration, Duration) = (Duration::from_millis(100), Duration::from_secs(2));

impl Patience {
    /// Patience with a controller that is away: at least as long as a connection may take.
    #[must_use]
    pub fn new(timeout: Duration) -> Self {
        Self::of(timeout.max(BEARS))
    }

    /// Patience of this length.
    #[must_use]
    pub fn of(limit: Duration) -> Self {
        Self { limit, failing_since: None, pause: PAUSES.0 }
    }

    /// Something went well: counting starts anew.
    pub fn renew(&mut self) {
        *self = Self::of(self.limit);
    }

    /// After a failure: waits a while, or gives the failure back where it cannot pass or has lasted too long. Says so on the first.
    ///
    /// # Errors
    /// The failure.
    pub async fn bear(&mut self, failure: Failure, notice: impl FnOnce(&Failure)) -> Outcome<()> {
        if !failure.may_pass() {
            return Err(failure);
        }
        let now = tokio::time::Instant::now();
        let since = *self.failing_since.get_or_insert_with(|| {
            notice(&failure);
            now
        });
        if now + self.pause > since + self.limit {
            return Err(failure);
        }
        tokio::time::sleep(self.pause).await;
        self.pause = (self.pause * 2).min(PAUSES.1);
        Ok(())
    }
}
