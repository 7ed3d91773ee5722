//! The connections to etcd's members, and which of them is asked.
//!
//! Each member has a connection of its own, opened when it is first used and again whenever it broke. All calls go to one member until that
//! one fails; then to the next. What has certainly not reached a member is tried at the others within the same call.

use std::fmt;
use std::hash::{BuildHasher as _, RandomState};
use std::path::Path;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use etcd_client::{Channel, Client, ConnectOptions, KvClient, LeaseClient, MaintenanceClient, WatchClient};
use tokio::sync::OnceCell;
use tokio::time::{Instant, timeout_at};
use tonic::transport::{Certificate, ClientTlsConfig, Endpoint, Identity};

use super::EtcdOptions;
use super::failure::{Failure, refusal};
use crate::api::{Refusal, StoreError};

/// How often a connection is tried where nothing else goes over it. Etcd cuts off clients that ask more often than every 5 s.
const KEEP_ALIVE: Duration = Duration::from_secs(10);

/// How long such a trial may take: a connection that is open at our end only is found out within 15 s.
const KEEP_ALIVE_ANSWER: Duration = Duration::from_secs(5);

/// Largest answer. The largest that is asked for is a chunk of a page, see the module on reading; tonic's 4 MiB would not do.
const ANSWER_BYTES: usize = 96 * 1024 * 1024;

/// What of a connection's answers may be on its way. HTTP/2's 64 KiB would slow large pages down.
const WINDOW_BYTES: u32 = 1024 * 1024;

/// How often a member that knows no leader is asked whether there is one now.
const LOOK: Duration = Duration::from_millis(20);

/// Such a question must be answered within this part of a call's time: a member looks it up in its memory.
const SAYS_WITHIN: u32 = 4;

/// A call on its way: it holds what it needs, so that it borrows from nobody.
pub(super) trait Answer<T>: Future<Output = Result<T, etcd_client::Error>> + Send {}

impl<T, F: Future<Output = Result<T, etcd_client::Error>> + Send> Answer<T> for F {}

/// One of etcd's members.
pub(super) struct Member {
    /// As the options name it.
    name: String,
    client: Client,
    /// Streams are to end where the member loses its leader; calls rather wait for the next one.
    streaming: Client,
    user: Option<(String, String)>,
    signed_in: OnceCell<()>,
}

impl Member {
    async fn new(name: &str, options: &EtcdOptions, tls: Option<&ClientTlsConfig>) -> Result<Self, String> {
        let endpoint = endpoint(name, options, tls)?;
        let channel = endpoint.connect_lazy();
        let connect = |require_leader| {
            // Without the user: it would be signed in at once, and a member that is down now may be back later.
            let options = ConnectOptions::new().with_require_leader(require_leader).with_auto_token_refresh(true);
            Client::from_channel(Channel::Tonic(channel.clone()), Some(options))
        };
        let client = connect(false).await.map_err(|error| error.to_string())?;
        let streaming = connect(true).await.map_err(|error| error.to_string())?;
        Ok(Self { name: name.to_owned(), client, streaming, user: options.user.clone(), signed_in: OnceCell::new() })
    }

    /// Signs the user in where that has not happened; an expired token is renewed by the clients themselves.
    pub(super) async fn sign_in(&self) -> Result<(), Failure> {
        let Some(user) = &self.user else { return Ok(()) };
        let sign_in = async || {
            for mut client in [self.client.clone(), self.streaming.clone()] {
                client.update_user(Some(user.clone())).await.map_err(|error| match Failure::from(error) {
                    // The request proper was not sent.
                    Failure::Lost(why) => Failure::NotSent(why),
                    other => other,
                })?;
            }
            Ok(())
        };
        self.signed_in.get_or_try_init(sign_in).await.copied()
    }

    /// Gets a new token for streams: etcd does not say of a refused watch whether its token was too old.
    pub(super) async fn sign_in_again(&self) {
        if self.user.is_some() {
            // Where it fails, the stream says so when it is opened.
            let _ = self.streaming.refresh_token().await;
        }
    }

    pub(super) fn kv(&self) -> KvClient {
        self.client.kv_client().max_decoding_message_size(ANSWER_BYTES)
    }

    pub(super) fn lease(&self) -> LeaseClient {
        self.client.lease_client()
    }

    pub(super) fn lease_stream(&self) -> LeaseClient {
        self.streaming.lease_client()
    }

    pub(super) fn watch(&self) -> WatchClient {
        self.streaming.watch_client().max_decoding_message_size(ANSWER_BYTES)
    }

    pub(super) fn maintenance(&self) -> MaintenanceClient {
        self.client.maintenance_client()
    }
}

impl fmt::Display for Member {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.name)
    }
}

/// What a call does.
#[derive(Debug, Clone, Copy)]
enum Kind {
    Read,
    Write,
}

impl Kind {
    /// Whether another member may be asked after one failed so: it must not be written twice.
    fn may_go_on(self, failure: &Failure) -> bool {
        matches!((self, failure), (Self::Read, _) | (Self::Write, Failure::NotSent(_)))
    }
}

/// All members.
pub(super) struct Cluster {
    members: Vec<Member>,
    /// The one that is asked, counted up for each failure.
    current: AtomicUsize,
    /// The turn whose member knew a leader.
    led: AtomicUsize,
    pub(super) timeout: Duration,
}

impl Cluster {
    /// Connects to the members and asks `probe`, a key, of one after the other until one answers.
    pub(super) async fn open(options: &EtcdOptions, probe: Vec<u8>) -> Result<Self, StoreError> {
        let wrong = |why| StoreError::Refused { refusal: Refusal::Options, why };
        let tls = tls(options).map_err(wrong)?;
        let mut members = Vec::new();
        for name in &options.endpoints {
            let member = Member::new(name, options, tls.as_ref()).await;
            members.push(member.map_err(|why| wrong(format!("{name}: {why}")))?);
        }
        // Controllers with the same list do not all go to its first member.
        let start = RandomState::new().hash_one(0_u8) as usize % members.len().max(1);
        let (current, led) = (AtomicUsize::new(start), AtomicUsize::new(usize::MAX));
        let cluster = Self { members, current, led, timeout: options.timeout };
        let (mut said, mut refused) = (Vec::new(), None);
        for _ in 0..cluster.members.len() {
            let (turn, member) = cluster.current();
            let answer = cluster.ask(member, cluster.timeout, |member| {
                let (mut kv, probe) = (member.kv(), probe.clone());
                async move { kv.get(probe, None).await.map(drop) }
            });
            match answer.await {
                Ok(()) => {
                    cluster.led.store(turn, Ordering::Relaxed); // it could not have answered otherwise
                    return Ok(cluster);
                }
                Err(failure) => {
                    if let Failure::Refused(StoreError::Unavailable(why)) = &failure {
                        refused = refused.or(refusal(why));
                    }
                    said.push(format!("{member}: {}", reason(failure, tls.is_some())));
                }
            }
            cluster.leave(turn);
        }
        if said.is_empty() {
            return Err(wrong("no endpoint is given".to_owned()));
        }
        let why = said.join("; ");
        Err(match refused {
            Some(refusal) => StoreError::Refused { refusal, why },
            None => StoreError::Unavailable(why),
        })
    }

    pub(super) fn members(&self) -> &[Member] {
        &self.members
    }

    /// The member that is asked now, and the turn to name where it fails.
    pub(super) fn current(&self) -> (usize, &Member) {
        let turn = self.current.load(Ordering::Relaxed);
        (turn, &self.members[turn % self.members.len()])
    }

    /// Asks the next member from now on, unless somebody else has already moved on from this turn.
    pub(super) fn leave(&self, turn: usize) {
        if self.current.compare_exchange(turn, turn.wrapping_add(1), Ordering::Relaxed, Ordering::Relaxed).is_ok()
            && self.members.len() > 1
        {
            tracing::debug!(from = %self.members[turn % self.members.len()], "an etcd member does not answer, asking the next");
        }
    }

    /// One call to one member, which must answer within `limit`, the sign-in before the first one included.
    pub(super) async fn ask<T, A: Answer<T>>(
        &self,
        member: &Member,
        limit: Duration,
        call: impl FnOnce(&Member) -> A,
    ) -> Result<T, Failure> {
        let deadline = Instant::now() + limit;
        let signed_in = match timeout_at(deadline, member.sign_in()).await {
            Ok(signed_in) => signed_in,
            Err(_) => Err(Failure::NotSent(format!("no answer to the sign-in within {limit:?}"))),
        };
        signed_in?;
        timeout_at(deadline, call(member))
            .await
            .map_or_else(|_| Err(Failure::timed_out(limit)), |answer| answer.map_err(Failure::from))
    }

    /// Waits until the member of this turn knows a leader, unless it is known that it does: it drops a write that comes before, and answers it
    /// never. One that does not even say whether it knows one is not waited for as long.
    async fn until_led(&self, turn: usize, member: &Member, limit: Duration) -> Result<(), Failure> {
        let deadline = Instant::now() + limit;
        if self.led.load(Ordering::Relaxed) == turn {
            return Ok(());
        }
        loop {
            let leader = self.ask(member, limit / SAYS_WITHIN, |member| {
                let mut maintenance = member.maintenance();
                async move { maintenance.status().await.map(|status| status.leader()) }
            });
            match leader.await {
                Ok(0) if Instant::now() + LOOK < deadline => tokio::time::sleep(LOOK).await,
                Ok(0) => return Err(Failure::NotSent("it knows no leader".to_owned())),
                Err(Failure::Lost(why) | Failure::NotSent(why)) => return Err(Failure::NotSent(why)),
                // One that does not say so to everybody: the call itself shows it.
                Ok(_) | Err(_) => break self.led.store(turn, Ordering::Relaxed),
            }
        }
        Ok(())
    }

    /// One call that changes something, to the member of this turn, once that knows a leader.
    async fn change<T, A: Answer<T>>(
        &self,
        (turn, member): (usize, &Member),
        limit: Duration,
        call: impl FnOnce(&Member) -> A,
    ) -> Result<T, Failure> {
        let deadline = Instant::now() + limit;
        self.until_led(turn, member, limit).await?;
        self.ask(member, deadline.saturating_duration_since(Instant::now()), call).await
    }

    /// A call that changes nothing: where a member fails, another one is asked. All of it within the timeout.
    pub(super) async fn read<T, A: Answer<T>>(&self, call: impl Fn(&Member) -> A) -> Result<T, Failure> {
        self.read_within(self.timeout, call).await
    }

    /// The same within another time than the timeout.
    pub(super) async fn read_within<T, A: Answer<T>>(&self, within: Duration, call: impl Fn(&Member) -> A) -> Result<T, Failure> {
        let first = share(within, self.members.len());
        self.go_round(within, first, self.members.len() + 1, Kind::Read, call).await
    }

    /// A call that changes something: another member is asked only where this one has certainly not seen it. All of it within the timeout.
    pub(super) async fn write<T, A: Answer<T>>(&self, call: impl Fn(&Member) -> A) -> Result<T, Failure> {
        self.write_within(self.timeout, call).await
    }

    /// The same within another time than the timeout.
    pub(super) async fn write_within<T, A: Answer<T>>(
        &self,
        within: Duration,
        call: impl Fn(&Member) -> A,
    ) -> Result<T, Failure> {
        self.go_round(within, within, self.members.len(), Kind::Write, call).await
    }

    /// Asks one member after the other, the first for at most `first`, all of them `within` a time and so many `tries`, until one answers or
    /// it may be asked of no other after how the last one failed.
    async fn go_round<T, A: Answer<T>>(
        &self,
        within: Duration,
        first: Duration,
        tries: usize,
        kind: Kind,
        call: impl Fn(&Member) -> A,
    ) -> Result<T, Failure> {
        let deadline = Instant::now() + within;
        let mut limit = first;
        let mut tried = 0;
        loop {
            let current = self.current();
            let answer = match kind {
                Kind::Read => self.ask(current.1, limit, &call).await,
                Kind::Write => self.change(current, limit, &call).await,
            };
            let failure = match answer {
                Err(failure @ (Failure::NotSent(_) | Failure::Lost(_))) => failure,
                answer => return answer,
            };
            self.leave(current.0);
            tried += 1;
            limit = deadline.saturating_duration_since(Instant::now());
            if tried >= tries || limit.is_zero() || !kind.may_go_on(&failure) {
                return Err(failure);
            }
        }
    }
}

/// What one of so many members has of a call's time: two are asked within it.
fn share(timeout: Duration, members: usize) -> Duration {
    timeout / u32::try_from(members.clamp(1, 2)).unwrap_or(1)
}

/// Why a member could not be opened.
fn reason(failure: Failure, is_secure: bool) -> String {
    // A server that refuses our certificate does so once the connection stands, and its word may be lost with the connection.
    let is_cut_off = matches!(&failure, Failure::Lost(why) if is_secure && why.contains("connection"));
    match failure.of_read() {
        StoreError::Unavailable(why) if is_cut_off => format!("{why}; it may ask for a client's certificate, or for another one"),
        StoreError::Unavailable(why) => why,
        other => other.to_string(),
    }
}

fn endpoint(name: &str, options: &EtcdOptions, tls: Option<&ClientTlsConfig>) -> Result<Endpoint, String> {
    let has_files = options.ca_file.is_some() || options.client_cert.is_some();
    let (uri, is_secure) = if name.starts_with("https://") {
        (name.to_owned(), true)
    } else if name.starts_with("http://") {
        if has_files {
            return Err("certificates are given, but its URL is http".to_owned());
        }
        (name.to_owned(), false)
    } else {
        (format!("{}://{name}", if has_files { "https" } else { "http" }), has_files)
    };
    let endpoint = Endpoint::from_shared(uri).map_err(|error| error.to_string())?;
    let endpoint = endpoint
        .connect_timeout(share(options.timeout, options.endpoints.len()))
        .tcp_nodelay(true)
        .keep_alive_while_idle(true)
        .http2_keep_alive_interval(KEEP_ALIVE)
        .keep_alive_timeout(KEEP_ALIVE_ANSWER)
        .initial_stream_window_size(WINDOW_BYTES)
        .initial_connection_window_size(4 * WINDOW_BYTES);
    match tls.filter(|_| is_secure) {
        Some(tls) => endpoint.tls_config(tls.clone()).map_err(|error| chain(&error)),
        None => Ok(endpoint),
    }
}

/// What is needed for members with `https`; `None` where there are none.
fn tls(options: &EtcdOptions) -> Result<Option<ClientTlsConfig>, String> {
    let is_wanted = options.ca_file.is_some()
        || options.client_cert.is_some()
        || options.endpoints.iter().any(|name| name.starts_with("https://"));
    if !is_wanted {
        return Ok(None);
    }
    let read = |path: &Path| std::fs::read(path).map_err(|error| format!("{}: {error}", path.display()));
    let mut tls = match &options.ca_file {
        Some(path) => ClientTlsConfig::new().ca_certificate(Certificate::from_pem(read(path)?)),
        None => ClientTlsConfig::new().with_native_roots(),
    };
    if let Some((certificate, key)) = &options.client_cert {
        tls = tls.identity(Identity::from_pem(read(certificate)?, read(key)?));
    }
    Ok(Some(tls))
}

fn chain(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut source = error.source();
    while let Some(error) = source {
        text = format!("{text}: {error}");
        source = error.source();
    }
    text
}
