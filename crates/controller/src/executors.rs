//! Executors: registration, sessions, reports.

mod agree;

use std::collections::HashSet;
use std::sync::Arc;
use std::time::Instant;

use bytes::Bytes;
use octavius_core::execution::{Applied, Attempt, Event, Fence, LogSeal, Reason, Refusal};
use octavius_core::limit::LABELS;
use octavius_core::{Digest, Execution, ExecutionId, ExecutorId, Labels, Principal, Timestamp, Timing, label};
use octavius_proto::v1::executor_service_server::ExecutorService;
use octavius_proto::v1::report_execution_request::Step as WireStep;
use octavius_proto::v1::{self, SessionRequest, SessionResponse, session_request, session_response::Say};
use octavius_proto::{Fault, InvalidField, MAX_MESSAGE_BYTES, reason, to_duration, to_timestamp};
use octavius_store::record::{ExecutorRecord, LogHead, SessionRecord, TokenRecord};
use octavius_store::{Presence, Store, StoreError, Txn, codec, key};
use tokio::sync::mpsc;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;
use tonic::{Code, Request, Response, Status, Streaming};

use crate::engine::{Engine, EngineError};
use crate::fleet::{Fleet, Voice};
use crate::heads::{End, Heads};
use crate::losses::Judge;
use crate::streams::{Responses, until_stop};
use crate::tokens::Tokens;
use crate::{auth, fault, mirror, random};

/// Most slots that one executor may offer.
const MAX_CAPACITY: u32 = 10_000;

/// Most attempts that an executor may say it holds.
const MAX_HELD: usize = 20_000;

/// Words to an executor that may wait beside an assignment and a stop for each of its slots.
const SPARE_WORDS: usize = 256;

/// Longest version and runner of an executor, in bytes.
const NAME_BYTES: usize = 128;

/// Most bytes of what an attempt is where it runs, and of a reason's code.
const RUNS_AS_BYTES: usize = 200;
const REASON_BYTES: usize = 32;

/// Longest reference to an image, in bytes: a name of 255 characters, and a digest.
const IMAGE_BYTES: usize = 330;

/// How often a presence is renewed before it would run out.
const RENEWALS: u32 = 3;

/// Tries of a final report whose log keeps growing meanwhile.
const REPORT_TRIES: usize = 5;

#[derive(Debug, Clone)]
pub(crate) struct Executors {
    pub(crate) store: Arc<dyn Store>,
    pub(crate) engine: Engine,
    pub(crate) fleet: Arc<Fleet>,
    pub(crate) tokens: Arc<Tokens>,
    pub(crate) judge: Arc<Judge>,
    pub(crate) heads: Arc<Heads>,
    pub(crate) timing: Timing,
    pub(crate) controller_id: String,
    pub(crate) tasks: TaskTracker,
    pub(crate) shutdown: CancellationToken,
}

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
    held: HashSet<(ExecutionId, Fence)>,
    note: SessionRecord,
    incoming: Streaming<SessionRequest>,
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

    /// Notes what an executor said of itself, for those who list executors. Not worth failing a session for.
    async fn note_session(&self, id: &ExecutorId, session: SessionRecord) {
        let noted: Result<(), StoreError> = async {
            let at = key::executor(id);
            let Some(entry) = self.store.get(&at).await? else { return Ok(()) };
            let mut record: ExecutorRecord = codec::decode(&entry)?;
            record.session = Some(session);
            self.store.commit(Txn::new().unchanged(&entry).put(at, codec::encode(&record))).await.map(drop)
        }
        .await;
        if let Err(error) = noted {
            tracing::warn!(executor = %id, %error, "the session could not be noted");
        }
    }

    async fn begin(
        &self,
        executor: ExecutorId,
        token_id: &str,
        mut incoming: Streaming<SessionRequest>,
    ) -> Result<Responses<SessionResponse>, Fault> {
        let hello = self.hello(&mut incoming).await?;
        let labels: Labels = hello.labels.into_iter().collect();
        let mut held = HashSet::new();
        for one in &hello.held {
            held.insert((octavius_proto::execution_id("held.id", &one.id)?, octavius_proto::fence(one.attempt, one.nonce)?));
        }
        let Some(record) = self.record(&executor).await.map_err(fault::from_store)? else {
            return Err(fault::not_permitted(format!("executor {executor} is not registered")));
        };
        // The token of this call may be one that a newer registration has replaced, and that is trusted for a moment still.
        let token = self.store.get(&key::token(&record.token)).await.map_err(fault::from_store)?;
        let token: Option<TokenRecord> = token.as_ref().map(codec::decode).transpose().map_err(fault::from_store)?;
        if token.is_none_or(|token| token.id != token_id) {
            return Err(auth::unauthenticated());
        }
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
            seen_at: Timestamp::now(),
        };
        let session = Session {
            executor,
            instance: hello.instance,
            number,
            nonce: random::number(),
            token: record.token,
            held,
            note,
            incoming,
            voice,
            end,
        };
        // From here on the task sees to everything: this call may be dropped at any of its awaits, the task is not.
        self.tasks.spawn(self.clone().hold(session));
        Ok(until_stop(ears, self.shutdown.clone()))
    }

    /// A session's first message, checked.
    async fn hello(&self, incoming: &mut Streaming<SessionRequest>) -> Result<v1::Hello, Fault> {
        let first = tokio::select! {
            first = tokio::time::timeout(self.timing.ping_deadline, incoming.message()) => first,
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
                    self.fleet.open(&executor, session.number);
                    self.note_session(&executor, session.note.clone()).await;
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
            self.note_session(&executor, SessionRecord { seen_at: Timestamp::now(), ..session.note }).await;
        } // otherwise a newer session took its place, which has announced itself
    }

    /// Welcomes an executor, and returns what else it must be told.
    async fn greet(&self, session: &mut Session) -> Result<Vec<Say>, Fault> {
        let welcome = v1::Welcome {
            version: crate::VERSION.to_owned(),
            controller_id: self.controller_id.clone(),
            ping_interval: Some(to_duration(self.timing.ping_interval)),
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
        let (mut asked, mut renewed) = (Instant::now(), Instant::now());
        let (mut announced, mut answered) = (Instant::now(), Instant::now());
        loop {
            let heard = tokio::select! {
                heard = tokio::time::timeout(self.timing.ping_deadline, session.incoming.message()) => heard,
                () = session.end.cancelled() => return ("a newer session took its place, or it did not listen", presence),
                () = self.shutdown.cancelled() => return ("the controller stops", presence),
            };
            match heard {
                Ok(Ok(Some(SessionRequest { say: Some(session_request::Say::Ping(ping)) }))) => {
                    self.fleet.heard(&executor, ping.free);
                }
                Ok(Ok(Some(_))) => {} // what a newer executor may say
                Ok(Ok(None)) => return ("the executor ended it", presence),
                Ok(Err(_)) => return ("the connection broke", presence),
                Err(_) => return ("no ping came in time", presence),
            }
            if session.voice.try_send(Ok(SessionResponse { say: Some(Say::Pong(v1::Pong {})) })).is_err() {
                return ("it does not listen", presence);
            }
            if asked.elapsed() < self.timing.ping_interval / 2 {
                continue; // an executor may say more than its pings
            }
            asked = Instant::now();
            match self.token_stands(&executor, session.token).await {
                Ok(true) => {}
                Ok(false) => return session.refuse(auth::unauthenticated(), presence),
                Err(error) => tracing::debug!(%executor, %error, "its token could not be looked up"),
            }
            if renewed.elapsed() < self.timing.ping_deadline / RENEWALS {
                continue;
            }
            renewed = Instant::now();
            // Another session's late word may have taken its place: what is shown for so long is what there is.
            if announced.elapsed() >= self.timing.ping_deadline
                && !self.fleet.shows_presence(&executor, &session.presence_value())
            {
                presence = None;
            }
            let is_new = presence.is_none();
            let Err(error) = self.keep_present(session, &mut presence).await else {
                (announced, answered) = (if is_new { Instant::now() } else { announced }, Instant::now());
                continue;
            };
            // A full store does answer, and so would it another controller.
            if matches!(error, StoreError::Unavailable(_) | StoreError::Unknown(_))
                && answered.elapsed() >= self.timing.ping_deadline
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

    async fn report(&self, executor: &ExecutorId, request: v1::ReportExecutionRequest) -> Result<v1::Verdict, Fault> {
        let id = octavius_proto::execution_id("id", &request.id)?;
        let fence = octavius_proto::fence(request.attempt, request.nonce)?;
        let mut cut = false;
        let event = match request.step.ok_or_else(|| InvalidField::new("step", "missing"))? {
            WireStep::Starting(_) => Event::Start { fence },
            WireStep::Running(v1::Running { runs_as, image }) => {
                Event::Run { fence, runs_as: clip(&runs_as, RUNS_AS_BYTES), image: image_of(image) }
            }
            WireStep::HandedBack(back) => {
                let message = clip(&back.message, Execution::MESSAGE_BYTES);
                Event::Unclaim { fence, reason: Reason::new(Reason::HANDED_BACK), message }
            }
            WireStep::Finished(finished) => {
                let mut ending = octavius_proto::ending("ending", finished.ending)?;
                ending.message = clip(&ending.message, Execution::MESSAGE_BYTES);
                ending.reason = ending.reason.map(|reason| Reason(clip(&reason.0, REASON_BYTES)));
                cut = finished.log_cut;
                let (size_bytes, crc32c) = (finished.log_size, finished.log_crc32c);
                Event::Finish { fence, ending, log: Some(LogSeal { size_bytes, crc32c, whole: true, missing_bytes: 0 }) }
            }
        };
        let handed_back = matches!(event, Event::Unclaim { .. });
        for _ in 0..REPORT_TRIES {
            // An execution that the store does not know is no reason to stop and forget it: the executor keeps it aside.
            let known = self.engine.recall(id, |known| known.attempts.iter().any(|attempt| is(attempt, fence))).await;
            let known = known.map_err(fault::from_engine)?;
            match known.execution.attempts.iter().find(|attempt| is(attempt, fence)) {
                Some(attempt) if attempt.executor == *executor => {}
                Some(_) => return Err(fault::not_permitted(format!("execution {id} is not {executor}'s"))),
                None if is_from_elsewhere(&known.execution, fence) => return Err(not_known(id, fence)),
                None => return Ok(v1::Verdict::Stop),
            }
            let mut event = event.clone();
            let mut log_head = None;
            if let Event::Finish { log: Some(seal), .. } = &mut event {
                log_head = Some((key::log_head(id, fence.attempt), self.check_log(id, fence.attempt, seal, cut).await?));
            }
            // Nothing is appended between the look at the log and its seal.
            let sealing = |txn: Txn| match &log_head {
                Some((head, modified)) => txn.when(head.clone(), *modified),
                None => txn,
            };
            match self.engine.step_from(known, event, sealing).await {
                Ok(step) => {
                    if handed_back {
                        self.fleet.declined(executor);
                    }
                    if step.applied == Applied::Changed {
                        tracing::debug!(%id, %executor, state = %step.execution.state, "reported");
                    }
                    return Ok(v1::Verdict::Accepted);
                }
                Err(EngineError::Forestalled(_)) => self.heads.remove(id, fence.attempt), // the log has grown meanwhile
                Err(EngineError::Refused(Refusal::NotAnOutcome(_))) => return Err(fault::invalid("not an outcome")),
                Err(EngineError::Refused(refusal)) => {
                    // By the present record, which may be another than the one that was recalled.
                    if is_from_elsewhere(&*self.engine.get(id).await.map_err(fault::from_engine)?, fence) {
                        return Err(not_known(id, fence));
                    }
                    tracing::info!(%id, %executor, %refusal, "report refused");
                    return Ok(v1::Verdict::Stop);
                }
                Err(error) => return Err(fault::from_engine(error)),
            }
        }
        Err(fault::from_engine(EngineError::Contended(id)))
    }

    /// Whether the whole log has arrived, or as much of it as there was room for; returns the revision that last wrote its head, 0 for none.
    /// Where more has arrived than the executor knows of, or something else, the seal is what is here, and says so: the ending matters
    /// more than the log.
    async fn check_log(&self, id: ExecutionId, attempt: u32, seal: &mut LogSeal, cut: bool) -> Result<u64, Fault> {
        // What is remembered is good where it is just what was announced: the transaction that seals it asks whether it still is.
        let remembered = self.heads.get(id, attempt);
        let is_whole = |end: &End| (end.head.next_offset, end.head.crc32c) == (seal.size_bytes, seal.crc32c);
        if let Some(end) = remembered.filter(is_whole) {
            return Ok(end.modified);
        }
        let entry = self.store.get(&key::log_head(id, attempt)).await.map_err(fault::from_store)?;
        let head: Option<LogHead> = entry.as_ref().map(codec::decode).transpose().map_err(fault::from_store)?;
        let next_offset = head.map_or(0, |head| head.next_offset);
        if next_offset < seal.size_bytes && cut {
            tracing::warn!(%id, attempt, kept = next_offset, of = seal.size_bytes, "a log is cut: there was no room for the rest");
            let missing_bytes = seal.size_bytes - next_offset;
            *seal = LogSeal { whole: false, missing_bytes, ..*seal };
        } else if next_offset < seal.size_bytes {
            let message = format!("the log of {id} has {next_offset} bytes, {} were announced", seal.size_bytes);
            return Err(Fault::new(Code::OutOfRange, reason::LOG_GAP, message).with("next_offset", next_offset));
        } else if let Some(head) = head
            && (next_offset, head.crc32c) != (seal.size_bytes, seal.crc32c)
        {
            tracing::error!(%id, attempt, "the log is not what its executor says that the job printed");
            *seal = LogSeal { size_bytes: next_offset, crc32c: head.crc32c, whole: false, missing_bytes: 0 };
        }
        Ok(entry.map_or(0, |entry| entry.modified))
    }

    async fn list(&self) -> Result<Vec<v1::Executor>, StoreError> {
        let (entries, _) = mirror::list(&*self.store, &key::executors()).await?;
        let mut executors = Vec::with_capacity(entries.len());
        for entry in entries {
            let record: ExecutorRecord = codec::decode(&entry)?;
            let present = self.fleet.is_present(&record.id);
            let state = match (&record.session, present) {
                (_, true) => v1::ExecutorState::Active,
                (Some(_), false) => v1::ExecutorState::Expired,
                (None, false) => v1::ExecutorState::Registered,
            };
            let running = self.fleet.held_by(&record.id).iter().map(ToString::to_string).collect();
            let session = record.session;
            let seen_at = session.as_ref().map(|session| if present { Timestamp::now() } else { session.seen_at });
            executors.push(v1::Executor {
                id: record.id.to_string(),
                state: state.into(),
                labels: session.as_ref().map(|session| session.labels.clone().into_iter().collect()).unwrap_or_default(),
                capacity: session.as_ref().map_or(0, |session| session.capacity),
                running,
                version: session.as_ref().map(|session| session.version.clone()).unwrap_or_default(),
                runner: session.map(|session| session.runner).unwrap_or_default(),
                registered_at: Some(to_timestamp(record.registered_at)),
                last_seen_at: seen_at.map(to_timestamp),
            });
        }
        Ok(executors)
    }
}

/// Whether this is the attempt that `fence` names.
fn is(attempt: &Attempt, fence: Fence) -> bool {
    attempt.number == fence.attempt && attempt.nonce == fence.nonce
}

/// Whether no history of the store that this execution is of has made an attempt of this fence: its number is yet to come, or another has
/// it. So it is after the store was restored from an older backup. An old claim that came to nothing may have been dropped from the record;
/// such a number is in the past and nobody's.
fn is_from_elsewhere(execution: &Execution, fence: Fence) -> bool {
    let last = execution.attempts.last().map_or(0, |last| last.number);
    let same = execution.attempts.iter().find(|attempt| attempt.number == fence.attempt);
    fence.attempt > last || same.is_some_and(|same| same.nonce != fence.nonce)
}

fn not_known(id: ExecutionId, fence: Fence) -> Fault {
    let message = format!("attempt {} of execution {id} is not known", fence.attempt);
    Fault::new(Code::NotFound, reason::EXECUTION_NOT_FOUND, message).with("id", id)
}

/// Keeps an executor's texts within what a record may hold.
fn clip(text: &str, bytes: usize) -> String {
    let clean = |c: char| if c.is_control() && c != '\n' { ' ' } else { c };
    if text.len() <= bytes {
        return text.chars().map(clean).collect();
    }
    let room = bytes.saturating_sub('…'.len_utf8());
    let kept = text.char_indices().take_while(|(at, c)| at + c.len_utf8() <= room);
    kept.map(|(_, c)| clean(c)).chain(['…']).collect()
}

#[tonic::async_trait]
impl ExecutorService for Executors {
    type SessionStream = Responses<SessionResponse>;

    async fn register_executor(
        &self,
        request: Request<v1::RegisterExecutorRequest>,
    ) -> Result<Response<v1::RegisterExecutorResponse>, Status> {
        let by = auth::principal(&request)?.user;
        let id = octavius_proto::executor_id("id", &request.into_inner().id).map_err(Fault::from)?;
        let token = self.tokens.register(&id, &by).await.map_err(fault::from_store)?;
        tracing::info!(executor = %id, by, "registered");
        let token = token.reveal().to_owned();
        Ok(Response::new(v1::RegisterExecutorResponse { token, controller_id: self.controller_id.clone() }))
    }

    async fn session(&self, request: Request<Streaming<SessionRequest>>) -> Result<Response<Self::SessionStream>, Status> {
        let principal = auth::principal(&request)?;
        Ok(Response::new(self.begin(caller(&principal)?, &principal.token_id, request.into_inner()).await?))
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
}

/// An image as an executor reports it; what can be none is left out. One that was cut would be another's, or nobody's.
fn image_of(reported: String) -> String {
    let fits = |byte: u8| byte.is_ascii_alphanumeric() || b"-._/:@+".contains(&byte);
    if reported.len() <= IMAGE_BYTES && reported.bytes().all(fits) { reported } else { String::new() }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_image_is_kept_whole_or_not_at_all() {
        let image = format!("registry.example:5000/team/refund@sha256:{}", "0".repeat(64));
        assert_eq!(image_of(image.clone()), image);
        for none in ["refund\u{1b}[2J", "a \"b\"", &"x".repeat(IMAGE_BYTES + 1)] {
            assert_eq!(image_of(none.to_owned()), "");
        }
    }

    #[test]
    fn texts_are_cut_between_characters_and_hold_no_control_characters() {
        assert_eq!(clip("a\u{1b}[31m\u{9b}b\n", 100), "a [31m b\n");
        assert_eq!(clip("äöü", 6), "äöü");
        assert_eq!(clip("äöüß", 7), "äö…");
        assert_eq!(clip("äöüß", 2), "…");
    }
}
