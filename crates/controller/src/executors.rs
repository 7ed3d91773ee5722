//! Executors: registration, sessions, reports. What operators do with them is in [`life`].

mod agree;
mod credentials;
mod life;
mod orphans;
mod texts;

use std::collections::HashSet;
use std::pin::Pin;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use futures::{Stream, TryStreamExt as _};
use octavius_core::execution::{Applied, Attempt, Event, Fence, LogSeal, Reason, Refusal};
use octavius_core::limit::LABELS;
use octavius_core::version::{self, Side};
use octavius_core::{Digest, Execution, ExecutionId, ExecutorId, Labels, Principal, Timing, label};
use octavius_proto::v1::executor_service_server::ExecutorService;
use octavius_proto::v1::report_execution_request::Step as WireStep;
use octavius_proto::v1::{self, SessionRequest, SessionResponse, session_request, session_response::Say};
use octavius_proto::{Fault, InvalidField, MAX_MESSAGE_BYTES, reason, to_duration};
use octavius_store::record::{ExecutorRecord, LogHead, SessionRecord};
use octavius_store::{Commit, Entry, Presence, Store, StoreError, Txn, codec, key};
use tokio::sync::mpsc;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;
use tonic::{Code, Request, Response, Status, Streaming};

use crate::engine::{Engine, EngineError};
use crate::fleet::{Fleet, Voice};
use crate::heads::{End, Heads};
use crate::logs::settle::Settling;
use crate::losses::Judge;
use crate::streams::{Responses, until_stop};
use crate::tokens::Tokens;
use crate::{audit, auth, fault, random};

use texts::{clip, image_of};

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
            let (mut log_head, mut printed) = (None, false);
            if let Event::Finish { log: Some(seal), .. } = &mut event {
                log_head = Some((key::log_head(id, fence.attempt), self.check_log(id, fence.attempt, seal, cut).await?));
                printed = seal.size_bytes > 0;
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
                    if printed {
                        self.settling.ended(id);
                    }
                    if step.applied == Applied::Changed {
                        tracing::debug!(execution = %id, %executor, state = %step.execution.state, "reported");
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
                    tracing::info!(execution = %id, %executor, %refusal, "report refused");
                    if refusal == Refusal::ApprovalExpired {
                        self.too_late(id, fence).await;
                    }
                    return Ok(v1::Verdict::Stop);
                }
                Err(error) => return Err(fault::from_engine(error)),
            }
        }
        Err(fault::from_engine(EngineError::Contended(id)))
    }

    /// Ends what was claimed and came to its start too late: back in the queue, its wait is over. Where that fails, its claim runs out.
    async fn too_late(&self, id: ExecutionId, fence: Fence) {
        let (reason, message) = (Reason::new(Reason::APPROVAL_EXPIRED), String::new());
        if let Err(error) = self.engine.step(id, Event::Unclaim { fence, reason, message }).await {
            tracing::warn!(execution = %id, %error, "a claim whose approvals ran out could not be given back; it will run out");
        }
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
            tracing::warn!(execution = %id, attempt, kept = next_offset, of = seal.size_bytes, "a log is cut: there was no room for the rest");
            let missing_bytes = seal.size_bytes - next_offset;
            *seal = LogSeal { whole: false, missing_bytes, ..*seal };
        } else if next_offset < seal.size_bytes {
            let message = format!("the log of {id} has {next_offset} bytes, {} were announced", seal.size_bytes);
            return Err(Fault::new(Code::OutOfRange, reason::LOG_GAP, message).with("next_offset", next_offset));
        } else if let Some(head) = head
            && (next_offset, head.crc32c) != (seal.size_bytes, seal.crc32c)
        {
            tracing::error!(execution = %id, attempt, "the log is not what its executor says that the job printed");
            *seal = LogSeal { size_bytes: next_offset, crc32c: head.crc32c, whole: false, missing_bytes: 0 };
        }
        Ok(entry.map_or(0, |entry| entry.modified))
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
