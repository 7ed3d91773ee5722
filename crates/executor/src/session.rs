//! The session: the stream over which a controller learns what this executor can take, and tells it what to run and what to stop. It
//! is made again as often as it breaks; what runs does not notice.

use std::collections::{BTreeSet, HashMap};
use std::pin::pin;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use octavius_core::execution::{Ending, Reason, State};
use octavius_core::version::{self, Side};
use octavius_core::{ExecutorId, JobDefinition, Labels, Timestamp, Timing};
use octavius_proto::client::{Address, ConnectError, Connection};
use octavius_proto::v1::session_request::Say as Request;
use octavius_proto::v1::session_response::Say as Response;
use octavius_proto::{Fault, InvalidField, execution_id, fence, reason, to_timestamp, v1};
use tokio::sync::{mpsc, watch};
use tokio::time::{Instant, MissedTickBehavior, interval, timeout};
use tokio_stream::wrappers::ReceiverStream;
use tokio_util::sync::CancellationToken;
use tonic::{Code, Status};

use crate::ExecutorError;
use crate::attempt::Begin;
use crate::book::{Book, NotEntered, Page};
use crate::credential::Credential;
use crate::journal::StopCause;
use crate::link::Backoff;
use crate::runner::{Held, Launch, Orphan, Orphans};

/// Free slots are told at most this often, beside the regular pings.
const BETWEEN_HINTS: Duration = Duration::from_millis(20);

/// How many of the longest pauses between calls lie between two tries to replace a token.
const ROTATIONS: u32 = 30;

/// For how long at least a session that seems to be another's is waited for, by the clock and not by [`Timing`]: the presence of a controller
/// that was killed with it stays until its lease runs out, and etcd makes no lease shorter than about one and a half election timeouts.
const LEAST_PATIENCE: Duration = Duration::from_secs(5);

/// What the session hands to whoever owns the attempts.
pub(crate) enum Order {
    /// Lead this attempt through its life.
    Drive(Page, Begin),
    /// Give this back.
    HandBack(Held, String),
}

/// What a session needs. No `Debug`: the token.
pub(crate) struct Session {
    pub(crate) id: ExecutorId,
    pub(crate) controllers: Vec<Address>,
    pub(crate) credential: Mutex<Credential>,
    pub(crate) labels: Labels,
    pub(crate) capacity: u32,
    pub(crate) runner: &'static str,
    pub(crate) connect_timeout: Duration,
    pub(crate) timing: Timing,
    pub(crate) instance: u64,
    pub(crate) book: Book,
    pub(crate) orders: mpsc::UnboundedSender<Order>,
    /// The connection of the newest session. None before the first one: until then another executor may have this one's id.
    pub(crate) connection: watch::Sender<Option<Connection>>,
    /// Since when a session stands, where one does.
    pub(crate) stands: watch::Sender<Option<Instant>>,
    /// What the runner has found that no execution is for.
    pub(crate) orphans: watch::Receiver<Orphans>,
    pub(crate) shutdown: CancellationToken,
}

/// How a session ended.
enum End {
    /// The executor ends.
    Shutdown,
    /// It broke, for this reason, after it stood or before.
    Broken { stood: bool, why: String },
    /// The controller refused it.
    Refused(Fault),
    /// The versions of controller and executor do not go together, as either of them says.
    Skew(String),
    /// The executor has a new token.
    Rotated,
}

/// Controllers whose version does not go with this executor's.
#[derive(Default)]
struct Skews {
    /// What has been told of them since a session last stood: each of it once.
    told: BTreeSet<String>,
    in_a_row: usize,
}

impl Session {
    /// Holds a session until the executor ends. The error is one that no repetition would cure.
    pub(crate) async fn hold(&self) -> Result<(), ExecutorError> {
        let mut backoff = Backoff::new(self.timing);
        let mut taken_since: Option<Instant> = None;
        let mut told = false;
        let mut broken: Option<Address> = None;
        let mut skews = Skews::default();
        // Whether the token in use is the other one of two, after one was refused.
        let mut swapped = false;
        loop {
            let mut pause_long = false;
            let end = match self.open(broken.as_ref()).await {
                Ok(Some(connection)) => {
                    let end = self.converse(&connection, &mut swapped).await;
                    self.stands.send_replace(None);
                    if matches!(end, End::Broken { .. } | End::Skew(_)) {
                        broken = Some(connection.address().clone());
                    }
                    end
                }
                Ok(None) => End::Shutdown,
                // Certificates are put right while an executor runs: one of them may be on its way into its place.
                Err(error @ (ConnectError::Unreachable { .. } | ConnectError::Untrusted { .. } | ConnectError::Files(_))) => {
                    End::Broken { stood: false, why: error.to_string() }
                }
                Err(error) => return Err(error.into()),
            };
            match end {
                End::Shutdown => return Ok(()),
                End::Broken { stood, why } => {
                    if stood {
                        backoff.reset();
                        skews = Skews::default();
                        (told, taken_since) = (false, None);
                    }
                    skews.in_a_row = 0;
                    if told {
                        tracing::debug!(error = why, "no session, trying again");
                    } else {
                        tracing::warn!(error = why, "no session, trying on; what runs goes on running");
                        told = true;
                    }
                }
                End::Skew(why) => {
                    // With several controllers, one of another version may take it: only when each has refused it is the pause a long one.
                    skews.in_a_row += 1;
                    pause_long = skews.in_a_row >= self.controllers.len();
                    if skews.told.insert(why.clone()) {
                        tracing::error!(
                            error = why,
                            "no session: the versions do not go together; trying on, what runs goes on running"
                        );
                    } else {
                        tracing::debug!(error = why, "no session, trying again");
                    }
                }
                End::Refused(fault) if fault.reason == reason::SESSION_EXISTS => {
                    // The old session may be one that the controller has not found dead yet.
                    if taken_since.is_none() {
                        tracing::warn!("another executor with this id has a session; waiting whether it ends");
                    }
                    let since = *taken_since.get_or_insert_with(Instant::now);
                    let lasts = self.timing.ping_deadline + 3 * self.timing.ping_interval;
                    if since.elapsed() > lasts.max(LEAST_PATIENCE) {
                        return Err(ExecutorError::SessionExists { id: self.id.clone() });
                    }
                }
                // A token that was being replaced when the executor died may have been replaced.
                End::Refused(fault) if fault.code == Code::Unauthenticated && !swapped && self.credential().swap() => {
                    tracing::info!("trying the token that was to take the place of the one that is refused");
                    swapped = true;
                    continue;
                }
                End::Refused(fault) => return Err(ExecutorError::TokenRefused { id: self.id.clone(), message: fault.message }),
                End::Rotated => {
                    tracing::info!("the token was replaced");
                    backoff.reset();
                    continue;
                }
            }
            let pause = if pause_long { backoff.long_pause() } else { backoff.pause() };
            tokio::select! {
                () = tokio::time::sleep(pause) => {}
                () = self.shutdown.cancelled() => return Ok(()),
            }
        }
    }

    /// Connects to a controller, and after a session with `broken` ended rather to another one: a controller that is frozen, or cut off from
    /// its store, takes connections as if nothing were wrong.
    async fn open(&self, broken: Option<&Address>) -> Result<Option<Connection>, ConnectError> {
        let token = self.credential().token().to_owned();
        let (token, limit) = (Some(token.as_str()), self.connect_timeout);
        let opening = async {
            match broken {
                Some(broken) => Connection::open_elsewhere(&after(&self.controllers, broken), broken, token, limit).await,
                None => Connection::open(&self.controllers, token, limit).await,
            }
        };
        tokio::select! {
            connection = opening => connection.map(Some),
            () = self.shutdown.cancelled() => Ok(None),
        }
    }

    fn credential(&self) -> MutexGuard<'_, Credential> {
        self.credential.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Replaces the token when `after` is over; tries on until that has been done. Never returns where there is no need, or no way.
    async fn rotate(&self, connection: &Connection, after: Option<Duration>) {
        let Some(after) = after else { return std::future::pending().await };
        if !self.credential().is_kept() {
            tracing::warn!(
                ?after,
                "the token was given by hand, and is not replaced by itself: register the executor before it ends"
            );
            return std::future::pending().await;
        }
        tokio::time::sleep(after).await;
        let mut told = false;
        loop {
            let Err(why) = self.try_rotate(connection).await else { return };
            if told {
                tracing::debug!(error = why, "the token could not be replaced, trying again");
            } else {
                tracing::warn!(error = why, "the token could not be replaced, trying on; it is still good");
                told = true;
            }
            tokio::time::sleep(self.timing.retry_max * ROTATIONS).await;
        }
    }

    async fn try_rotate(&self, connection: &Connection) -> Result<(), String> {
        let token_digest = self.credential().begin_rotation().map_err(|error| error.to_string())?.into();
        let mut executors = connection.executors();
        let asked = executors.rotate_token(v1::RotateTokenRequest { token_digest });
        match timeout(self.connect_timeout, asked).await {
            Ok(Ok(_)) => self.credential().finish_rotation().map(drop).map_err(|error| error.to_string()),
            Ok(Err(status)) => Err(status.message().to_owned()),
            Err(_) => Err("the controller did not answer".to_owned()),
        }
    }

    /// Holds one session. `swapped` says that its token is the other one of two, which is the executor's only one when the session stands.
    async fn converse(&self, connection: &Connection, swapped: &mut bool) -> End {
        let (say, requests) = mpsc::channel(16);
        let hello = request(Request::Hello(self.hello()));
        if say.try_send(hello).is_err() {
            return End::Broken { stood: false, why: "the session's own channel is closed".to_owned() };
        }
        let mut client = connection.executors();
        let opening = async {
            let mut responses = client.session(ReceiverStream::new(requests)).await?.into_inner();
            match responses.message().await?.and_then(|response| response.say) {
                Some(Response::Welcome(welcome)) => Ok((welcome, responses)),
                _ => Err(Status::internal("the controller did not say welcome")),
            }
        };
        let opened = tokio::select! {
            opened = timeout(self.connect_timeout, opening) => opened,
            () = self.shutdown.cancelled() => return End::Shutdown,
        };
        let (welcome, mut responses) = match opened {
            Ok(Ok(opened)) => opened,
            Ok(Err(status)) => {
                return match connection.trouble() {
                    Some(trouble) => End::Broken { stood: false, why: format!("{}: {trouble}", connection.address()) },
                    None => ended(false, &status),
                };
            }
            Err(_) => return End::Broken { stood: false, why: format!("{}: no welcome in time", connection.address()) },
        };
        let own = Side { what: &format!("executor {}", self.id), version: env!("CARGO_PKG_VERSION") };
        let its = Side { what: "the controller", version: &welcome.version };
        if let Err(skew) = version::compare(own, its) {
            return End::Skew(skew.to_string());
        }
        tracing::info!(controller = %connection.address(), version = welcome.version, "session stands");
        if std::mem::take(swapped)
            && let Err(error) = self.credential().settle()
        {
            tracing::error!(%error, "the token that was taken cannot be kept; both are");
        }
        self.connection.send_replace(Some(connection.clone()));
        self.stands.send_replace(Some(Instant::now()));

        let every = welcome.ping_interval.and_then(|every| Duration::try_from(every).ok()).filter(|every| !every.is_zero());
        let mut pings = interval(every.unwrap_or(self.timing.ping_interval));
        pings.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let rotate_after = welcome.rotate_token_after.map(|after| Duration::try_from(after).unwrap_or_default());
        let mut rotation = pin!(self.rotate(connection, rotate_after));
        let mut heard = Instant::now();
        let mut hinted = Instant::now();
        let mut orphans = self.orphans.clone();
        // A session begins without any.
        let mut untold = *orphans.borrow_and_update() != Orphans::default();
        loop {
            // Where there is no room for it now, there will be by the next ping.
            if untold {
                untold = say.try_send(request(Request::Orphans(told(&orphans.borrow())))).is_err();
            }
            tokio::select! {
                () = self.shutdown.cancelled() => return End::Shutdown,
                _ = pings.tick() => {
                    if heard.elapsed() > self.timing.ping_deadline {
                        return End::Broken { stood: true, why: format!("{}: no sign of life", connection.address()) };
                    }
                    self.ping(&say);
                }
                () = &mut rotation => return End::Rotated,
                Ok(()) = orphans.changed() => untold = true,
                () = self.book.freed() => {
                    let since = hinted.elapsed();
                    if since < BETWEEN_HINTS {
                        // The pings' own clock is set forward, so that this hint and those that follow at once become one ping.
                        pings.reset_after(BETWEEN_HINTS - since);
                    } else {
                        hinted = Instant::now();
                        self.ping(&say);
                    }
                }
                response = responses.message() => {
                    heard = Instant::now();
                    match response {
                        Ok(Some(response)) => self.hear(response),
                        Ok(None) => return End::Broken { stood: true, why: format!("{}: ended by the controller", connection.address()) },
                        Err(status) => return ended(true, &status),
                    }
                }
            }
        }
    }

    fn hello(&self) -> v1::Hello {
        let held = self.book.held().into_iter();
        let held = held.map(|held| v1::Held { id: held.id.to_string(), attempt: held.fence.attempt, nonce: held.fence.nonce });
        v1::Hello {
            version: env!("CARGO_PKG_VERSION").to_owned(),
            labels: self.labels.clone().into_iter().collect::<HashMap<_, _>>(),
            capacity: self.capacity,
            runner: self.runner.to_owned(),
            held: held.collect(),
            instance: self.instance,
        }
    }

    fn ping(&self, say: &mpsc::Sender<v1::SessionRequest>) {
        // Where the controller does not read, another ping in the queue tells it nothing; its silence ends the session.
        let _ = say.try_send(request(Request::Ping(v1::Ping { free: self.book.free() })));
    }

    fn hear(&self, response: v1::SessionResponse) {
        match response.say {
            Some(Response::Assignment(assignment)) => match self.assigned(assignment) {
                Ok(Some(order)) => drop(self.orders.send(order)),
                Ok(None) => {}
                Err(invalid) => tracing::warn!(error = %invalid, "an assignment that cannot be understood"),
            },
            Some(Response::Stop(stop)) => self.told_to_stop(&stop),
            Some(Response::Pong(_) | Response::Welcome(_)) => {}
            None => tracing::debug!("the controller says something that this version does not know"),
        }
    }

    fn assigned(&self, assignment: v1::Assignment) -> Result<Option<Order>, InvalidField> {
        let held = Held { id: execution_id("id", &assignment.id)?, fence: fence(assignment.attempt, assignment.nonce)? };
        let page = match self.book.enter(held) {
            Ok(page) => page,
            Err(NotEntered::Known) => return Ok(None),
            Err(NotEntered::Full) => {
                self.book.tell(); // the controller thinks that there is room
                return Ok(Some(Order::HandBack(held, format!("all {} slots of the executor are taken", self.capacity))));
            }
        };
        let begin = match JobDefinition::from_canonical_json(&assignment.definition) {
            Ok(job) => Begin::Assigned(Box::new(Launch {
                held,
                job,
                arguments: assignment.arguments.into_iter().collect(),
                timeout: assignment
                    .timeout
                    .and_then(|timeout| Duration::try_from(timeout).ok())
                    .unwrap_or(self.timing.run_timeout),
                user: assignment.user,
                origin: assignment.origin.unwrap_or_default().into(),
                trace: assignment.trace.as_ref().and_then(v1::TraceContext::read),
            })),
            Err(_) => Begin::Impossible(Ending::because(
                State::Failed,
                Reason::REQUIREMENT_NOT_MET,
                concat!("executor version ", env!("CARGO_PKG_VERSION"), " cannot read the job's definition: update the executor"),
            )),
        };
        Ok(Some(Order::Drive(page, begin)))
    }

    fn told_to_stop(&self, stop: &v1::Stop) {
        let cause = match stop.cause() {
            v1::StopCause::Cancelled => StopCause::Cancelled,
            v1::StopCause::Fenced => StopCause::Fenced,
            v1::StopCause::Unknown => StopCause::Unknown,
            v1::StopCause::Unspecified => {
                return tracing::warn!(
                    execution = stop.id,
                    attempt = stop.attempt,
                    "told to stop for a cause that this version does not know"
                );
            }
        };
        let known = execution_id("id", &stop.id).is_ok_and(|id| self.book.stop(id, stop.attempt, cause));
        tracing::debug!(execution = stop.id, attempt = stop.attempt, cause = cause.as_str(), known, "told to stop");
    }
}

/// The addresses in a ring, from the one behind `broken` on: with several that break, each has its turn.
fn after(addresses: &[Address], broken: &Address) -> Vec<Address> {
    let mut ring = addresses.to_vec();
    if let Some(at) = addresses.iter().position(|address| address == broken) {
        ring.rotate_left(at + 1);
    }
    ring
}

/// Orphans as the controller is told of them: with times instead of moments.
fn told(orphans: &Orphans) -> v1::Orphans {
    let (now, moment) = (Timestamp::now(), Instant::now());
    let at = |when: Instant| match when.checked_duration_since(moment) {
        Some(ahead) => now.saturating_add(ahead),
        None => now.saturating_sub(moment - when),
    };
    let one = |orphan: &Orphan| v1::Orphan {
        name: orphan.name.clone(),
        namespace: orphan.namespace.clone(),
        since: at(orphan.since).ok().map(to_timestamp),
        removed_at: at(orphan.until).ok().map(to_timestamp),
    };
    v1::Orphans { orphans: orphans.first.iter().map(one).collect(), count: u32::try_from(orphans.count).unwrap_or(u32::MAX) }
}

fn request(say: Request) -> v1::SessionRequest {
    v1::SessionRequest { say: Some(say) }
}

fn ended(stood: bool, status: &Status) -> End {
    let fault = Fault::from_status(status);
    if fault.reason == reason::VERSION_SKEW {
        return End::Skew(fault.message);
    }
    // A proxy in between may answer so too, about itself; only what a controller says, which gives a reason, is final.
    let unwelcome = matches!(fault.code, Code::Unauthenticated | Code::PermissionDenied) && !fault.reason.is_empty();
    let refused = unwelcome || fault.reason == reason::SESSION_EXISTS;
    if refused { End::Refused(fault) } else { End::Broken { stood, why: format!("{:?}: {}", fault.code, fault.message) } }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_controller_has_its_turn_after_the_one_before_it_broke() {
        let all = Address::parse_list("a:1,b:1,c:1").unwrap();
        let mut broken = all[0].clone();
        for expected in ["b", "c", "a", "b"] {
            broken = after(&all, &broken)[0].clone();
            assert!(broken.to_string().contains(&format!("{expected}:1")), "{broken} where {expected} was expected");
        }
        assert_eq!(after(&all[..1], &all[0]), &all[..1]);
    }

    #[test]
    fn only_a_controller_refuses_a_session_for_good() {
        for (status, final_) in [
            (Status::unauthenticated("a proxy's page"), false),
            (Status::permission_denied("a proxy's page"), false),
            (Status::unavailable("x"), false),
            (Fault::new(Code::Unauthenticated, reason::UNAUTHENTICATED, "x").into(), true),
            (Fault::new(Code::AlreadyExists, reason::SESSION_EXISTS, "x").into(), true),
        ] {
            assert_eq!(matches!(ended(false, &status), End::Refused(_)), final_, "{status:?}");
        }
    }
}
