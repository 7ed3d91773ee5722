//! The session: the stream over which a controller learns what this executor can take, and tells it what to run and what to stop. It
//! is made again as often as it breaks; what runs does not notice.

use std::collections::HashMap;
use std::time::Duration;

use octavius_core::execution::{Ending, Reason, State};
use octavius_core::{ExecutorId, JobDefinition, Labels, Timing};
use octavius_proto::client::{Address, ConnectError, Connection};
use octavius_proto::v1::session_request::Say as Request;
use octavius_proto::v1::session_response::Say as Response;
use octavius_proto::{Fault, InvalidField, execution_id, fence, reason, v1};
use tokio::sync::{mpsc, watch};
use tokio::time::{Instant, MissedTickBehavior, interval, timeout};
use tokio_stream::wrappers::ReceiverStream;
use tokio_util::sync::CancellationToken;
use tonic::{Code, Status};

use crate::ExecutorError;
use crate::attempt::Begin;
use crate::book::{Book, NotEntered, Page};
use crate::journal::StopCause;
use crate::link::Backoff;
use crate::runner::{Held, Launch};

/// Free slots are told at most this often, beside the regular pings.
const BETWEEN_HINTS: Duration = Duration::from_millis(20);

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
    pub(crate) token: String,
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
}

impl Session {
    /// Holds a session until the executor ends. The error is one that no repetition would cure.
    pub(crate) async fn hold(&self) -> Result<(), ExecutorError> {
        let mut backoff = Backoff::new(self.timing);
        let mut taken_since: Option<Instant> = None;
        let mut told = false;
        let mut broken: Option<Address> = None;
        loop {
            let end = match self.open(broken.as_ref()).await {
                Ok(Some(connection)) => {
                    let end = self.converse(&connection).await;
                    self.stands.send_replace(None);
                    if matches!(end, End::Broken { .. }) {
                        broken = Some(connection.address().clone());
                    }
                    end
                }
                Ok(None) => End::Shutdown,
                Err(error @ ConnectError::Unreachable { .. }) => End::Broken { stood: false, why: error.to_string() },
                Err(error) => return Err(error.into()),
            };
            match end {
                End::Shutdown => return Ok(()),
                End::Broken { stood, why } => {
                    if stood {
                        backoff.reset();
                        (told, taken_since) = (false, None);
                    }
                    if told {
                        tracing::debug!(error = why, "no session, trying again");
                    } else {
                        tracing::warn!(error = why, "no session, trying on; what runs goes on running");
                        told = true;
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
                End::Refused(fault) => return Err(ExecutorError::TokenRefused { id: self.id.clone(), message: fault.message }),
            }
            tokio::select! {
                () = tokio::time::sleep(backoff.pause()) => {}
                () = self.shutdown.cancelled() => return Ok(()),
            }
        }
    }

    /// Connects to a controller, and after a session with `broken` ended rather to another one: a controller that is frozen, or cut off from
    /// its store, takes connections as if nothing were wrong.
    async fn open(&self, broken: Option<&Address>) -> Result<Option<Connection>, ConnectError> {
        let (token, limit) = (Some(self.token.as_str()), self.connect_timeout);
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

    async fn converse(&self, connection: &Connection) -> End {
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
            Ok(Err(status)) => return ended(false, &status),
            Err(_) => return End::Broken { stood: false, why: format!("{}: no welcome in time", connection.address()) },
        };
        tracing::info!(controller = %connection.address(), version = welcome.version, "session stands");
        self.connection.send_replace(Some(connection.clone()));
        self.stands.send_replace(Some(Instant::now()));

        let every = welcome.ping_interval.and_then(|every| Duration::try_from(every).ok()).filter(|every| !every.is_zero());
        let mut pings = interval(every.unwrap_or(self.timing.ping_interval));
        pings.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let mut heard = Instant::now();
        let mut hinted = Instant::now();
        loop {
            tokio::select! {
                () = self.shutdown.cancelled() => return End::Shutdown,
                _ = pings.tick() => {
                    if heard.elapsed() > self.timing.ping_deadline {
                        return End::Broken { stood: true, why: format!("{}: no sign of life", connection.address()) };
                    }
                    self.ping(&say);
                }
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
                    id = stop.id,
                    attempt = stop.attempt,
                    "told to stop for a cause that this version does not know"
                );
            }
        };
        let known = execution_id("id", &stop.id).is_ok_and(|id| self.book.stop(id, stop.attempt, cause));
        tracing::debug!(id = stop.id, attempt = stop.attempt, cause = cause.as_str(), known, "told to stop");
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

fn request(say: Request) -> v1::SessionRequest {
    v1::SessionRequest { say: Some(say) }
}

fn ended(stood: bool, status: &Status) -> End {
    let fault = Fault::from_status(status);
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
