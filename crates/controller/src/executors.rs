//! Executors: registration, sessions, reports. What operators do with them is in [`life`].

mod agree;
mod credentials;
mod life;
mod orphans;
mod report;
mod texts;

use std::collections::HashSet;
use std::pin::Pin;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use futures::{Stream, TryStreamExt as _};
use octavius_core::execution::Fence;
use octavius_core::limit::LABELS;
use octavius_core::version::{self, Side};
use octavius_core::{Digest, ExecutionId, ExecutorId, Labels, Principal, Timing, label};
use octavius_proto::v1::executor_service_server::ExecutorService;
use octavius_proto::v1::{self, SessionRequest, SessionResponse, session_request, session_response::Say};
use octavius_proto::{Fault, InvalidField, MAX_MESSAGE_BYTES, reason, to_duration};
use octavius_store::record::{ExecutorRecord, SessionRecord};
use octavius_store::{Commit, Entry, Presence, Store, StoreError, Txn, codec, key};
use tokio::sync::mpsc;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;
use tonic::{Code, Request, Response, Status, Streaming};

use crate::engine::Engine;
use crate::fleet::{Fleet, Voice};
use crate::heads::Heads;
use crate::logs::settle::Settling;
use crate::losses::Judge;
use crate::streams::{Responses, until_stop};
use crate::tokens::Tokens;
use crate::{audit, auth, fault, random};

/// Most slots that one executor may offer.
const MAX_CAPACITY: u32 = 10_000;

/// Most attempts that an executor may say it holds.
const MAX_HELD: usize = 20_000;

/// Words to an executor that may wait beside an assignment and a stop for each of its slots.
const SPARE_WORDS: usize = 256;

/// Longest version and runner of an executor, in bytes.
const NAME_BYTES: usize = 128;

/// How often a presence is renewed before it would run out.
const RENEWALS: u32 = 3;

#[derive(Debug, Clone)]
pub(crate) struct Executors {
    pub(crate) store: Arc<dyn Store>,
    pub(crate) engine: Engine,
    pub(crate) fleet: Arc<Fleet>,
    pub(crate) tokens: Arc<Tokens>,
    pub(crate) judge: Arc<Judge>,
    pub(crate) heads: Arc<Heads>,
    pub(crate) settling: Settling,
    pub(crate) timing: Timing,
    pub(crate) controller_id: String,
    pub(crate) tasks: TaskTracker,
    pub(crate) shutdown: CancellationToken,
}

/// What an executor says in its session.
type Incoming = Pin<Box<dyn Stream<Item = Result<SessionRequest, Status>> + Send + Sync>>;

/// A session's presence; none while it could not be announced.
type MaybePresence = Option<Box<dyn Presence>>;

/// A session, from the side of the task that holds it.
struct Session {
    executor: ExecutorId,
    instance: u64,
    number: u64,
    /// Tells it from the executor's other sessions, with whichever controller.
    nonce: u64,
    /// SHA-256 of the executor's token.
    token: Digest,
    /// After how long the executor is to replace that, if it ends.
    rotate_after: Option<Duration>,
    held: HashSet<(ExecutionId, Fence)>,
    note: SessionRecord,
    incoming: Incoming,
    voice: Voice,
    end: CancellationToken,
}

impl Session {
    /// What its presence says: which daemon is there, and by which of its sessions.
    fn presence_value(&self) -> Bytes {
        [self.instance.to_be_bytes(), self.nonce.to_be_bytes()].concat().into()
    }

    /// Ends it with a word of why.
    fn refuse(&self, fault: Fault, presence: MaybePresence) -> (&'static str, MaybePresence) {
        let _ = self.voice.try_send(Err(fault.into())); // nobody may listen any more
        ("it was refused", presence)
    }
}

/// The executor that makes this call: its token names it, nothing in the message does.
fn caller(principal: &Principal) -> Result<ExecutorId, Fault> {
    principal.user.parse().map_err(|_| fault::not_permitted("the token is not that of an executor"))
}

impl Executors {
    async fn record(&self, id: &ExecutorId) -> Result<Option<ExecutorRecord>, StoreError> {
        self.store.get(&key::executor(id)).await?.as_ref().map(codec::decode).transpose()
    }

    /// Notes what an executor said of itself, for those who list executors. Not worth failing a session for. False where it is not noted.
    async fn note_session(&self, id: &ExecutorId, session: SessionRecord) -> bool {
        let noted: Result<bool, StoreError> = async {
            let at = key::executor(id);
            loop {
                let Some(entry) = self.store.get(&at).await? else { return Ok(true) };
                let mut record: ExecutorRecord = codec::decode(&entry)?;
                record.session = Some(session.clone());
                let value = codec::encode(&record);
                let txn = Txn::new().unchanged(&entry).put(at.clone(), value.clone());
                if let Commit::Done(modified) = self.store.commit(txn).await? {
                    // Claims ask for this revision: they need not wait for the watch to show it.
                    self.fleet.note_record(&Entry { value, modified, ..entry });
                    return Ok(true);
                }
            }
        }
        .await;
        noted.unwrap_or_else(|error| {
            tracing::warn!(executor = %id, %error, "the session could not be noted");
            false
        })
    }

    pub(crate) async fn begin(
        &self,
        executor: ExecutorId,
        token_id: &str,
        mut incoming: Incoming,
    ) -> Result<Responses<SessionResponse>, Fault> {
        let hello = self.hello(&mut incoming).await?;
        check_version(&executor, &hello.version)?;
        let labels: Labels = hello.labels.into_iter().collect();
        let mut held = HashSet::new();
        for one in &hello.held {
            held.insert((octavius_proto::execution_id("held.id", &one.id)?, octavius_proto::fence(one.attempt, one.nonce)?));
        }
        let (record, token) = self.credential(&executor, token_id).await?;
        let exists = || {
            let message = format!("another daemon with the id {executor} has a session; give one of them another id");
            Fault::new(Code::AlreadyExists, reason::SESSION_EXISTS, message)
        };
        // Another controller may have the other daemon's session; its presence tells.
        let present = self.store.get(&key::presence(&executor)).await.map_err(fault::from_store)?;
        if !self.fleet.has_session(&executor)
            && present.is_some_and(|there| !there.value.starts_with(&hello.instance.to_be_bytes()))
        {
            return Err(exists());
        }
        let capacity = usize::try_from(hello.capacity).unwrap_or(usize::MAX);
        let (voice, ears) = mpsc::channel(2 * capacity + held.len() + SPARE_WORDS);
        let deadline = self.timing.ping_deadline;
        let begun = self.fleet.begin(&executor, hello.instance, labels.clone(), capacity, voice.clone(), deadline);
        let (number, end) = begun.ok_or_else(exists)?;
        let note = SessionRecord {
            labels,
            capacity: hello.capacity,
            version: hello.version,
            runner: hello.runner,
            seen_at: self.engine.clock().now(),
            orphans: Vec::new(),
            orphan_count: 0,
        };
        let session = Session {
            executor,
            instance: hello.instance,
            number,
            nonce: random::number(),
            token: record.token,
            rotate_after: credentials::rotate_after(&token),
            held,
            note,
            incoming,
            voice,
            end,
        };
        // From here on the task sees to everything: this call may be dropped at any of its awaits, the task is not.
        self.tasks.spawn(tracing::Instrument::in_current_span(self.clone().hold(session)));
        Ok(until_stop(ears, self.shutdown.clone()))
    }

    /// A session's first message, checked.
    async fn hello(&self, incoming: &mut Incoming) -> Result<v1::Hello, Fault> {
        let first = tokio::select! {
            first = tokio::time::timeout(self.timing.ping_deadline, incoming.try_next()) => first,
            () = self.shutdown.cancelled() => return Err(fault::stopping()),
        };
        let first = first.map_err(|_| fault::invalid("no hello came in time"))?;
        let Some(session_request::Say::Hello(hello)) =
            first.map_err(|status| fault::broken("session", &status, MAX_MESSAGE_BYTES))?.and_then(|first| first.say)
        else {
            return Err(fault::invalid("a session begins with a hello"));
        };
        let invalid = |field, problem: String| Err(InvalidField::new(field, problem).into());
        if hello.capacity == 0 || hello.capacity > MAX_CAPACITY {
            return invalid("capacity", format!("{} is not between 1 and {MAX_CAPACITY}", hello.capacity));
        }
        if hello.held.len() > MAX_HELD {
            return invalid("held", format!("{} attempts, at most {MAX_HELD} are taken", hello.held.len()));
        }
        if hello.labels.len() > LABELS {
            return invalid("labels", format!("{} labels, at most {LABELS} are taken", hello.labels.len()));
        }
        let is_label = |(key, value): &(&String, &String)| label::is_valid_part(key, true) && label::is_valid_part(value, false);
        if let Some((key, value)) = hello.labels.iter().find(|pair| !is_label(pair)) {
            return invalid("labels", format!("\"{}={}\" is not a label", key.escape_debug(), value.escape_debug()));
        }
        if hello.version.len() > NAME_BYTES || hello.runner.len() > NAME_BYTES {
            return invalid("version", format!("version and runner have at most {NAME_BYTES} bytes"));
        }
        Ok(hello)
    }

    /// A session from its hello to its end.
    async fn hold(self, mut session: Session) {
        let executor = session.executor.clone();
        let presence = self.announce(&session).await;
        octavius_failpoint::reach(&octavius_failpoint::SESSION_ANNOUNCED);
        let (why, presence) = match presence {
            // This word came late: a newer session may have announced itself before, and announces itself again when it sees this.
            Ok(presence) if session.end.is_cancelled() => ("a newer session took its place", Some(presence)),
            Ok(presence) => match self.greet(&mut session).await {
                Ok(say) => {
                    for say in say {
                        self.fleet.tell(&executor, say);
                    }
                    // Before it is given work: a claim asks that its record stays as it is.
                    self.note_session(&executor, session.note.clone()).await;
                    self.fleet.open(&executor, session.number);
                    tracing::info!(%executor, capacity = session.note.capacity, "session begins");
                    self.listen(&mut session, Some(presence)).await
                }
                Err(fault) => session.refuse(fault, Some(presence)),
            },
            Err(error) => {
                tracing::warn!(%executor, %error, "presence could not be announced");
                self.fleet.end(&executor, session.number);
                let _ = session.voice.try_send(Err(fault::from_store(error).into())); // nobody may listen any more
                return;
            }
        };
        tracing::info!(%executor, why, "session ends");
        if self.fleet.end(&executor, session.number) {
            if let Some(presence) = presence
                && let Err(error) = presence.withdraw().await
            {
                tracing::debug!(%executor, %error, "presence runs out by itself");
            }
            self.note_session(&executor, SessionRecord { seen_at: self.engine.clock().now(), ..session.note }).await;
        } // otherwise a newer session took its place, which has announced itself
    }

    /// Welcomes an executor, and returns what else it must be told.
    async fn greet(&self, session: &mut Session) -> Result<Vec<Say>, Fault> {
        let welcome = v1::Welcome {
            version: crate::VERSION.to_owned(),
            controller_id: self.controller_id.clone(),
            ping_interval: Some(to_duration(self.timing.ping_interval)),
            rotate_token_after: session.rotate_after.map(to_duration),
        };
        // First the welcome, then the look at the store: a cancel is either seen there, or told by the watch.
        self.fleet.greet(&session.executor, session.number, welcome);
        self.agree(session).await
    }

    async fn announce(&self, session: &Session) -> Result<Box<dyn Presence>, StoreError> {
        let at = key::presence(&session.executor);
        let announced = self.store.announce(at, session.presence_value(), self.timing.ping_deadline).await;
        match &announced {
            Ok(_) => self.judge.store_answered(),
            // Also where it is full: those who cannot be announced are not away.
            Err(_) => self.judge.store_failed(),
        }
        announced
    }

    /// Listens to a session until it ends; says why it did.
    async fn listen(&self, session: &mut Session, mut presence: MaybePresence) -> (&'static str, MaybePresence) {
        let executor = session.executor.clone();
        let clock = self.engine.clock();
        let (mut asked, mut renewed) = (clock.instant(), clock.instant());
        let (mut announced, mut answered) = (clock.instant(), clock.instant());
        let mut is_noted = true;
        loop {
            let heard = tokio::select! {
                biased;
                heard = tokio::time::timeout(self.timing.ping_deadline, session.incoming.try_next()) => heard,
                () = session.end.cancelled() => return ("it was replaced or revoked, or it did not listen", presence),
                () = self.shutdown.cancelled() => return ("the controller stops", presence),
            };
            match heard {
                Ok(Ok(Some(SessionRequest { say: Some(session_request::Say::Ping(ping)) }))) => {
                    self.fleet.heard(&executor, ping.free);
                }
                Ok(Ok(Some(SessionRequest { say: Some(session_request::Say::Orphans(told)) }))) => {
                    is_noted &= !orphans::note(&mut session.note, &told); // written below, no oftener than other things
                }
                Ok(Ok(Some(_))) => {} // what a newer executor may say
                Ok(Ok(None)) => return ("the executor ended it", presence),
                Ok(Err(_)) => return ("the connection broke", presence),
                Err(_) => return ("no ping came in time", presence),
            }
            if session.voice.try_send(Ok(SessionResponse { say: Some(Say::Pong(v1::Pong {})) })).is_err() {
                return ("it does not listen", presence);
            }
            if clock.since(asked) < self.timing.ping_interval / 2 {
                continue; // an executor may say more than its pings
            }
            asked = clock.instant();
            is_noted = is_noted || self.note_session(&executor, session.note.clone()).await;
            match self.token_stands(&executor, session.token).await {
                Ok(true) => {}
                Ok(false) => return session.refuse(auth::unauthenticated(), presence),
                Err(error) => tracing::debug!(%executor, %error, "its token could not be looked up"),
            }
            if clock.since(renewed) < self.timing.ping_deadline / RENEWALS {
                continue;
            }
            renewed = clock.instant();
            // Another session's late word may have taken its place: what is shown for so long is what there is.
            if clock.since(announced) >= self.timing.ping_deadline
                && !self.fleet.shows_presence(&executor, &session.presence_value())
            {
                presence = None;
            }
            let is_new = presence.is_none();
            let Err(error) = self.keep_present(session, &mut presence).await else {
                (announced, answered) = (if is_new { clock.instant() } else { announced }, clock.instant());
                continue;
            };
            // A full store does answer, and so would it another controller.
            if matches!(error, StoreError::Unavailable(_) | StoreError::Unknown(_))
                && clock.since(answered) >= self.timing.ping_deadline
            {
                return session.refuse(fault::from_store(error), presence);
            }
        }
    }

    /// Renews a presence, or announces it anew. For as long as that fails, an executor is taken for absent elsewhere, and can be given
    /// nothing here: after a while it is better off with a controller that reaches the store.
    async fn keep_present(&self, session: &Session, presence: &mut MaybePresence) -> Result<(), StoreError> {
        if let Some(there) = presence {
            let Err(error) = there.renew().await else {
                self.judge.store_answered();
                return Ok(());
            };
            tracing::debug!(executor = %session.executor, %error, "presence");
            if error != StoreError::PresenceLost {
                self.judge.store_failed();
            }
        }
        // Until it is announced anew there is none: an announcement that failed may still have displaced the old one.
        *presence = None;
        let anew = self.announce(session).await;
        *presence = Some(
            anew.inspect_err(|error| tracing::warn!(executor = %session.executor, %error, "presence could not be announced"))?,
        );
        Ok(())
    }

    /// Whether the token that a session began with is still the executor's: it may have been revoked, or the executor registered anew. That
    /// it is, the mirrors say without asking the store; that it is not, is looked up first.
    async fn token_stands(&self, executor: &ExecutorId, token: Digest) -> Result<bool, StoreError> {
        if self.fleet.has_token(executor, token) && self.tokens.is_shown(&token) {
            return Ok(true);
        }
        let registered = self.record(executor).await?.is_some_and(|record| record.token == token);
        Ok(registered && self.store.get(&key::token(&token)).await?.is_some())
    }
}

/// Refuses an executor whose version does not go with this controller's.
fn check_version(executor: &ExecutorId, version: &str) -> Result<(), Fault> {
    let what = format!("executor {executor}");
    let (it, we) = (Side { what: &what, version }, Side { what: "the controller", version: crate::VERSION });
    version::compare(it, we).map_err(|skew| {
        tracing::warn!(%executor, %skew, "refused");
        Fault::new(Code::FailedPrecondition, reason::VERSION_SKEW, skew.to_string())
            .with("executor_version", version)
            .with("controller_version", crate::VERSION)
    })
}

#[tonic::async_trait]
impl ExecutorService for Executors {
    type SessionStream = Responses<SessionResponse>;

    async fn register_executor(
        &self,
        request: Request<v1::RegisterExecutorRequest>,
    ) -> Result<Response<v1::RegisterExecutorResponse>, Status> {
        Ok(Response::new(self.register(request).await?))
    }

    async fn rotate_token(&self, request: Request<v1::RotateTokenRequest>) -> Result<Response<v1::RotateTokenResponse>, Status> {
        Ok(Response::new(self.rotate(request).await?))
    }

    async fn session(&self, request: Request<Streaming<SessionRequest>>) -> Result<Response<Self::SessionStream>, Status> {
        let principal = auth::principal(&request)?;
        Ok(Response::new(self.begin(caller(&principal)?, &principal.token_id, Box::pin(request.into_inner())).await?))
    }

    async fn report_execution(
        &self,
        request: Request<v1::ReportExecutionRequest>,
    ) -> Result<Response<v1::ReportExecutionResponse>, Status> {
        let executor = caller(&auth::principal(&request)?)?;
        let verdict = self.report(&executor, request.into_inner()).await?;
        Ok(Response::new(v1::ReportExecutionResponse { verdict: verdict.into() }))
    }

    async fn list_executors(&self, _: Request<v1::ListExecutorsRequest>) -> Result<Response<v1::ListExecutorsResponse>, Status> {
        let executors = self.list().await.map_err(fault::from_store)?;
        Ok(Response::new(v1::ListExecutorsResponse { executors }))
    }

    async fn get_executor(&self, request: Request<v1::GetExecutorRequest>) -> Result<Response<v1::GetExecutorResponse>, Status> {
        let executor = self.get(&request.into_inner().id).await?;
        Ok(Response::new(v1::GetExecutorResponse { executor: Some(executor) }))
    }

    async fn drain_executor(
        &self,
        request: Request<v1::DrainExecutorRequest>,
    ) -> Result<Response<v1::DrainExecutorResponse>, Status> {
        let (act, request) = audit::begin(request)?;
        let executor = self.drain(&request.id, &act).await?;
        Ok(Response::new(v1::DrainExecutorResponse { executor: Some(executor) }))
    }

    async fn resume_executor(
        &self,
        request: Request<v1::ResumeExecutorRequest>,
    ) -> Result<Response<v1::ResumeExecutorResponse>, Status> {
        let (act, request) = audit::begin(request)?;
        let executor = self.resume(&request.id, &act).await?;
        Ok(Response::new(v1::ResumeExecutorResponse { executor: Some(executor) }))
    }

    async fn revoke_executor(
        &self,
        request: Request<v1::RevokeExecutorRequest>,
    ) -> Result<Response<v1::RevokeExecutorResponse>, Status> {
        let (act, request) = audit::begin(request)?;
        Ok(Response::new(self.revoke(&request, &act).await?))
    }
}
