//! A session with the controllers: one connection at a time, calls that end within the connection timeout, and another connection where
//! one broke. Every call that the command line makes can be made twice, so that the death of a controller costs a note on standard error
//! as long as another one lives.

use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use octavius_core::HumanDuration;
use octavius_proto::Fault;
use octavius_proto::client::{Address, ConnectError, Connection};
use octavius_proto::tls::TlsTrouble;
use tokio::time::Instant;
use tonic::{Response, Status, Streaming};

use crate::Context;
use crate::client_tls;
use crate::config::{self, Resolved};
use crate::error::{Failure, Outcome};
use crate::exit::Exit;
use crate::output::Shell;

/// A connection, and what is needed to make it again.
#[derive(Debug)]
pub struct Session {
    resolved: Resolved,
    shell: Shell,
    current: Mutex<Current>,
}

/// The connection that is used now. Calls that run side by side break together: the number tells whether another has reconnected already.
#[derive(Debug, Clone)]
struct Current {
    number: u64,
    connection: Connection,
}

impl Session {
    /// Connects as flags, environment and file say.
    ///
    /// # Errors
    /// Where nothing says which controller is meant, or none answers in time.
    pub async fn open(context: &Context) -> Outcome<Self> {
        Self::open_if(context, |_| Ok(())).await
    }

    /// As [`Session::open`], where `allowed` lets it: nothing is sent before.
    ///
    /// # Errors
    /// What `allowed` says, and as [`Session::open`].
    pub async fn open_if(context: &Context, allowed: impl FnOnce(&Resolved) -> Outcome<()>) -> Outcome<Self> {
        let resolved = config::resolve(&context.connect)?;
        allowed(&resolved)?;
        for warning in &resolved.warnings {
            context.shell.warn(warning);
        }
        Self::connect(&context.shell, resolved).await
    }

    /// Connects.
    ///
    /// # Errors
    /// Where no controller answers in time.
    pub async fn connect(shell: &Shell, resolved: Resolved) -> Outcome<Self> {
        let connection = Connection::open(&resolved.addresses, resolved.token.as_deref(), resolved.timeout).await?;
        Ok(Self { resolved, shell: shell.clone(), current: Mutex::new(Current { number: 0, connection }) })
    }

    fn lock(&self) -> MutexGuard<'_, Current> {
        self.current.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn current(&self) -> Current {
        self.lock().clone()
    }

    /// Connects again, to another address where one answers; unless that has been done since the connection of this number. Returns the
    /// addresses that failed on the way.
    async fn reconnect_after(&self, number: u64, within: Duration) -> Result<Vec<(Address, String)>, ConnectError> {
        let before = self.current();
        if before.number != number {
            return Ok(Vec::new());
        }
        let Resolved { addresses, token, .. } = &self.resolved;
        let connection = Connection::open_elsewhere(addresses, before.connection.address(), token.as_deref(), within).await?;
        let missed = connection.missed().to_vec();
        let mut current = self.lock();
        if current.number == number {
            *current = Current { number: number + 1, connection };
        }
        Ok(missed)
    }

    /// Connects again, to another address where one answers.
    ///
    /// # Errors
    /// Where no controller answers in time.
    pub async fn reconnect(&self) -> Outcome<()> {
        let number = self.current().number;
        self.reconnect_after(number, self.resolved.timeout).await?;
        Ok(())
    }

    /// The address of the controller that is spoken with now.
    #[must_use]
    pub fn address(&self) -> Address {
        self.lock().connection.address().clone()
    }

    /// What the controller is called: the context's name, or its address.
    #[must_use]
    pub fn name(&self) -> &str {
        &self.resolved.name
    }

    /// The streams of the process.
    #[must_use]
    pub const fn shell(&self) -> &Shell {
        &self.shell
    }

    /// Longest wait for an answer.
    #[must_use]
    pub fn timeout(&self) -> Duration {
        self.resolved.timeout
    }

    /// Makes a call and waits for its answer, at most the connection timeout. Where no answer comes, it is made again, through another
    /// address where there is one: it must be one that does no harm when it is made twice.
    ///
    /// # Errors
    /// What the controller answered, or that none did.
    pub async fn call<T>(&self, call: impl AsyncFn(Connection) -> Result<Response<T>, Status>) -> Outcome<T> {
        self.call_within(self.resolved.timeout, call).await
    }

    /// As [`Session::call`], for at most `limit` in all.
    ///
    /// # Errors
    /// What the controller answered, or that none did.
    pub async fn call_within<T>(
        &self,
        limit: Duration,
        call: impl AsyncFn(Connection) -> Result<Response<T>, Status>,
    ) -> Outcome<T> {
        let mut tries = Tries::new(self, limit);
        loop {
            match tries.once(&call).await {
                Ok(answer) => return Ok(answer),
                Err(failure) => tries.recover(failure).await?,
            }
        }
    }

    /// Makes a call once: for streams that whoever reads them takes up again.
    ///
    /// # Errors
    /// What the controller answered, or that it did not.
    pub async fn call_once<T>(&self, call: impl AsyncFn(Connection) -> Result<Response<T>, Status>) -> Outcome<T> {
        Tries::new(self, self.resolved.timeout).once(&call).await
    }

    /// Makes a call whose answer is a stream, and gathers all of it; from its beginning again, where it breaks. Each message has to come
    /// within the connection timeout.
    ///
    /// # Errors
    /// What the controller answered, or that none did.
    pub async fn gather<T>(&self, call: impl AsyncFn(Connection) -> Result<Response<Streaming<T>>, Status>) -> Outcome<Vec<T>> {
        let mut tries = Tries::new(self, self.resolved.timeout);
        'tries: loop {
            let mut gathered = Vec::new();
            let broken = match tries.once(&call).await {
                Err(failure) => failure,
                Ok(mut stream) => loop {
                    match self.message(&mut stream).await {
                        Ok(Some(message)) => gathered.push(message),
                        Ok(None) => break 'tries Ok(gathered),
                        Err(failure) => break failure,
                    }
                },
            };
            if !gathered.is_empty() {
                tries.renew();
            }
            tries.recover(broken).await?;
        }
    }

    /// The next message of a stream, which has to come within the connection timeout; none at its end.
    ///
    /// # Errors
    /// That the stream broke, or nothing came.
    pub async fn message<T>(&self, stream: &mut Streaming<T>) -> Outcome<Option<T>> {
        match tokio::time::timeout(self.resolved.timeout, stream.message()).await {
            Ok(message) => Ok(message?),
            Err(_) => Err(silent(&self.address(), self.resolved.timeout)),
        }
    }

    /// What came instead of an answer. Whatever else listens at the one address that there is will not become a controller.
    fn failure(&self, address: &Address, status: Status, trouble: Option<TlsTrouble>) -> Failure {
        if let Some(trouble) = trouble {
            let told = format!("no secure connection: {address}: {trouble}");
            return Failure {
                lasting: self.resolved.addresses.len() < 2,
                ..Failure::new(Exit::Unreachable, anyhow::Error::msg(told)).hint(client_tls::hint(&trouble))
            };
        }
        match speaks_otherwise(&status) {
            Some(told) => Failure {
                lasting: self.resolved.addresses.len() < 2,
                ..Failure::new(Exit::Unreachable, anyhow::Error::msg(format!("no controller answers at {address}: {told}")))
                    .hint("is this the port of a controller?")
            },
            None => self.with_source(status.into()),
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

    /// Says that something broke and is tried again.
    pub fn notice(&self, failure: &Failure) {
        self.shell.note(&format!("{}; trying again", why(failure)));
    }
}

/// Whether every controller that may be spoken with is on this machine.
#[must_use]
pub fn is_local(resolved: &Resolved) -> bool {
    resolved.addresses.iter().all(is_loopback)
}

/// Whether an address is of this machine alone: `localhost`, or one of the loopback.
pub(crate) fn is_loopback(address: &Address) -> bool {
    let text = address.to_string();
    let host = text.rsplit_once(':').map_or(text.as_str(), |(host, _)| host).trim_matches(['[', ']']);
    host.eq_ignore_ascii_case("localhost") || host.parse::<std::net::IpAddr>().is_ok_and(|ip| ip.is_loopback())
}

/// What shows that a server is none of ours: it has other services, or speaks another protocol. Nothing where it may be a controller.
fn speaks_otherwise(status: &Status) -> Option<String> {
    let told = match std::error::Error::source(status) {
        Some(cause) => octavius_proto::client::root_cause(cause),
        None => status.message().to_owned(),
    };
    let of_ours = !Fault::from_status(status).reason.is_empty();
    // grpc-go's words for a service that it does not have, tonic's for an answer that is not gRPC, h2's for one that is not HTTP/2
    let marks = ["unknown service", "http status code 404", "http status code 405", "frame with invalid size", "http/1"];
    let is_other = !of_ours && marks.iter().any(|mark| told.to_lowercase().contains(mark));
    is_other.then(|| crate::sanitize::line(&told))
}

/// That a controller took a connection and did not answer.
fn silent(address: &Address, limit: Duration) -> Failure {
    // to the tenth of a second: what is left of a longer wait is no round number
    let tenths = u64::try_from((limit.as_millis() + 50) / 100).unwrap_or(u64::MAX).max(1);
    let limit = HumanDuration::new(Duration::from_millis(tenths.saturating_mul(100)));
    Failure::new(Exit::Unreachable, anyhow::Error::msg(format!("the controller at {address} did not answer within {limit}")))
}

fn why(failure: &Failure) -> String {
    failure.error.as_ref().map(|error| format!("{error:#}")).unwrap_or_default()
}

/// The tries of one call: how long they may go on, and what came of each address.
#[derive(Debug)]
pub struct Tries<'s> {
    session: &'s Session,
    limit: Duration,
    deadline: Instant,
    pause: Duration,
    /// The connection that the last try was made with.
    number: u64,
    address: Address,
    /// Addresses that failed, each with what it said last.
    failed: Vec<(Address, String)>,
}

impl<'s> Tries<'s> {
    /// Tries that go on for at most `limit`.
    #[must_use]
    pub fn new(session: &'s Session, limit: Duration) -> Self {
        let Current { number, connection } = session.current();
        let (deadline, address) = (Instant::now() + limit, connection.address().clone());
        Self { session, limit, deadline, pause: PAUSES.0, number, address, failed: Vec::new() }
    }

    /// How long one try may take: a controller that is stopped in the middle must leave time for the others.
    fn share(&self) -> Duration {
        let untried = self.session.resolved.addresses.len().saturating_sub(self.failed.len()).max(1);
        let left = self.deadline.saturating_duration_since(Instant::now());
        left / u32::try_from(untried).unwrap_or(u32::MAX)
    }

    /// Makes the call once.
    ///
    /// # Errors
    /// What the controller answered, or that it did not.
    pub async fn once<T>(&mut self, call: &impl AsyncFn(Connection) -> Result<Response<T>, Status>) -> Outcome<T> {
        let Current { number, connection } = self.session.current();
        (self.number, self.address) = (number, connection.address().clone());
        let limit = self.share();
        match tokio::time::timeout(limit, call(connection.clone())).await {
            Ok(Ok(response)) => Ok(response.into_inner()),
            Ok(Err(status)) => Err(self.session.failure(&self.address, status, connection.trouble())),
            Err(_) => Err(silent(&self.address, limit)),
        }
    }

    /// Something went well: the time counts from now.
    pub fn renew(&mut self) {
        *self = Self::new(self.session, self.limit);
    }

    /// After a failure: connects anew for another try, or gives the failure back where it cannot pass or the time is over. Says so the
    /// first time.
    ///
    /// # Errors
    /// The failure; where several addresses failed, what each said.
    pub async fn recover(&mut self, failure: Failure) -> Outcome<()> {
        if !failure.may_pass() {
            return Err(failure);
        }
        if self.failed.is_empty() && Instant::now() + self.pause < self.deadline {
            self.session.notice(&failure);
        }
        self.note(self.address.clone(), &why(&failure));
        let mut failure = failure;
        loop {
            let all = self.failed.len() >= self.session.resolved.addresses.len();
            let pause = if all { self.pause } else { Duration::ZERO };
            let left = self.deadline.saturating_duration_since(Instant::now());
            if left <= pause {
                return Err(self.told(failure));
            }
            if all {
                tokio::time::sleep(pause).await;
                self.pause = (self.pause * 2).min(PAUSES.1);
            }
            match self.session.reconnect_after(self.number, left - pause).await {
                Ok(missed) => {
                    missed.into_iter().for_each(|(address, told)| self.note(address, &told));
                    return Ok(());
                }
                Err(ConnectError::Unreachable { tried }) => {
                    for address in &self.session.resolved.addresses {
                        let prefix = format!("{address}: ");
                        if let Some(told) = tried.iter().find_map(|line| line.strip_prefix(&prefix)) {
                            self.note(address.clone(), told);
                        }
                    }
                    failure = ConnectError::Unreachable { tried }.into();
                }
                Err(error) => return Err(error.into()),
            }
        }
    }

    fn note(&mut self, address: Address, told: &str) {
        // the address stands before it
        let stripped = ["the controller at {} ", "no controller answers at {}: "]
            .iter()
            .find_map(|begins| told.strip_prefix(&begins.replace("{}", &address.to_string())));
        let told = stripped.unwrap_or(told).to_owned();
        match self.failed.iter_mut().find(|(known, _)| *known == address) {
            Some((_, before)) => *before = told,
            None => self.failed.push((address, told)),
        }
    }

    /// The failure, with what every address said where there are several.
    fn told(&self, failure: Failure) -> Failure {
        if self.session.resolved.addresses.len() < 2 {
            return failure;
        }
        let order = |address: &Address| self.session.resolved.addresses.iter().position(|known| known == address);
        let mut failed: Vec<_> = self.failed.iter().collect();
        failed.sort_by_key(|(address, _)| order(address));
        let tried = failed.into_iter().map(|(address, told)| format!("{address}: {told}")).collect();
        Failure { fault: failure.fault, ..ConnectError::Unreachable { tried }.into() }
    }
}

/// Pauses between tries, longer and longer, until a limit since the last success.
#[derive(Debug)]
pub struct Patience {
    limit: Duration,
    failing_since: Option<Instant>,
    pause: Duration,
}

/// How long a wait or a followed log bears a controller that does not answer. A controller's restart takes seconds, that of its machine
/// minutes; a job may run for a day, and to end early would say nothing about it.
const BEARS: Duration = Duration::from_secs(300);

/// A stream that was open for so long shows that there is a controller that serves it.
const LASTED: Duration = Duration::from_secs(10);

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

    /// The next message of a stream that was opened then; none where it ended. Either is taken note of.
    ///
    /// # Errors
    /// That the stream broke.
    pub async fn next<T>(&mut self, stream: &mut Streaming<T>, opened: Instant) -> Outcome<Option<T>> {
        let message = stream.message().await;
        match message {
            Ok(Some(_)) => self.renew(),
            _ => self.lasted(opened),
        }
        Ok(message?)
    }

    /// A stream broke that had been open since `opened`. One that said nothing for so long went well: a job may be silent for hours.
    pub fn lasted(&mut self, opened: Instant) {
        if opened.elapsed() >= LASTED {
            self.renew();
        }
    }

    /// After a failure: waits a while, or gives the failure back where it cannot pass or has lasted too long. Says so on the first.
    ///
    /// # Errors
    /// The failure.
    pub async fn bear(&mut self, failure: Failure, notice: impl FnOnce(&Failure)) -> Outcome<()> {
        if !failure.may_pass() {
            return Err(failure);
        }
        let now = Instant::now();
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

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn patience_ends_with_what_fails_all_the_time_and_not_with_what_is_silent() {
        let failure = || Failure::new(Exit::Unreachable, anyhow::Error::msg("away"));
        let bears = async |patience: &mut Patience| patience.bear(failure(), |_| ()).await.is_ok();
        let mut patience = Patience::of(Duration::from_secs(60));
        for _ in 0..10 {
            assert!(bears(&mut patience).await);
            let opened = Instant::now();
            tokio::time::advance(Duration::from_secs(3600)).await;
            patience.lasted(opened);
        }
        let mut tries = 0;
        while bears(&mut patience).await {
            patience.lasted(Instant::now());
            tries += 1;
        }
        assert!((30..60).contains(&tries), "{tries}");
    }

    #[test]
    fn only_the_loopback_is_this_machine() {
        for (address, expected) in [
            ("127.0.0.1:1", true),
            ("127.8.9.10:3000", true),
            ("[::1]:1", true),
            ("localhost:3000", true),
            ("LocalHost:3000", true),
            ("http://localhost:3000", true),
            ("0.0.0.0:3000", false),
            ("[::]:3000", false),
            ("192.0.2.1:3000", false),
            ("128.0.0.1:3000", false),
            ("[2001:db8::1]:3000", false),
            ("127.0.0.1.evil.example:3000", false),
            ("localhost.evil.example:3000", false),
            ("evil.localhost.example:3000", false),
            ("127.0.0.1@evil.example:3000", false),
            ("localhost:80@evil.example:3000", false),
        ] {
            assert_eq!(is_loopback(&Address::parse(address).unwrap()), expected, "{address}");
        }
    }
}
