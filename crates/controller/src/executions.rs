//! Executions: submitted, approved, found, listed, watched, cancelled.

mod approvals;
mod asked;
mod sight;

use std::sync::Arc;
use std::time::Duration;

use jiff::SignedDuration;
use octavius_core::argument;
use octavius_core::execution::{Event as Step, Submission};
use octavius_core::{Execution, ExecutionId, JobDefinition, Principal, State, Timestamp, Timing};
use octavius_proto::v1::execution_service_server::ExecutionService;
use octavius_proto::v1::{self, WatchExecutionResponse};
use octavius_proto::{Fault, InvalidField, reason, to_execution};
use octavius_store::record::OnceRecord;
use octavius_store::{Commit, Entry, Event, Key, Range, Store, StoreError, codec, key};
use prost::Message as _;
use tokio::sync::mpsc;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;
use tonic::{Code, Request, Response, Status};

use crate::audit;
use crate::catalogs::{Catalogs, Job, View};
use crate::definitions::Definitions;
use crate::engine::{Engine, EngineError};
use crate::room::Room;
use crate::scheduler::Scheduler;
use crate::streams::{Responses, until_stop};
use crate::webhooks::Webhooks;
use crate::{auth, fault, traced};

use approvals::Decision;
pub(crate) use asked::Asked;
use asked::used_lately;

/// Tries of one submission whose catalogue keeps changing.
const MAX_TRIES: usize = 100;

/// Records looked at for one page of a filtered list; where they do not suffice, the page is short and its token says where to go on.
const LOOKED_AT: usize = 5000;

/// Records read at once.
const PAGE: usize = 200;

/// Most executions in one answer.
const MAX_LIST: u32 = 1000;

/// For how long an idempotency key is remembered.
const ONCE_KEPT: Duration = Duration::from_secs(24 * 3600);

/// How far the clock of whoever made an id may be from ours.
pub(crate) const CLOCKS_DIFFER: SignedDuration = SignedDuration::from_hours(2);

/// Bytes after which a page of executions ends.
const PAGE_BYTES: usize = 1024 * 1024;

/// Longest idempotency key, in bytes.
const ONCE_KEY_BYTES: usize = 256;

#[derive(Debug, Clone)]
pub(crate) struct Executions {
    pub(crate) store: Arc<dyn Store>,
    pub(crate) engine: Engine,
    pub(crate) catalogs: Arc<Catalogs>,
    pub(crate) definitions: Arc<Definitions>,
    pub(crate) scheduler: Arc<Scheduler>,
    pub(crate) room: Arc<Room>,
    pub(crate) webhooks: Webhooks,
    pub(crate) timing: Timing,
    pub(crate) tasks: TaskTracker,
    pub(crate) shutdown: CancellationToken,
}

impl Executions {
    /// Accepts a run, or answers as the first time where the call is a repetition.
    pub(crate) async fn run(&self, asked: Asked) -> Result<ExecutionId, Fault> {
        let once = match &asked.once {
            Some(at) => {
                let entry = self.store.get(at).await.map_err(fault::from_store)?;
                if let Some(id) = asked.answered(entry.as_ref(), &self.engine)? {
                    return Ok(id);
                }
                entry
            }
            None => None,
        };
        // First by what is known of the catalogues; that it is still so, the submission asks. Nothing is refused before they were read.
        let mut view = self.catalogs.recent().await?;
        let mut refused = None;
        for _ in 0..MAX_TRIES {
            match self.prepare(&view, &asked).await {
                Ok((job, execution)) => match self.submit(&job, execution, &asked, once.clone()).await? {
                    Some(id) => return Ok(id),
                    None => refused = None,
                },
                Err(fault) if refused.is_some() => {
                    // It may be the call repeated, after the catalogue has changed.
                    return match self.engine.get(asked.id).await {
                        Ok(known) => self.same_request(&known, &asked).await,
                        Err(_) => Err(fault),
                    };
                }
                Err(fault) => refused = Some(fault),
            }
            view = self.catalogs.view().await?;
        }
        let changing =
            || Fault::new(Code::Unavailable, reason::STORE_UNAVAILABLE, "the catalogues change too quickly, try again");
        Err(refused.unwrap_or_else(changing))
    }

    /// The execution that this idempotency key of the caller's stands for, if it was used not too long ago.
    pub(crate) async fn made_under(&self, principal: &Principal, key: &str) -> Result<Option<ExecutionId>, Fault> {
        if key.is_empty() || key.len() > ONCE_KEY_BYTES {
            return Ok(None);
        }
        let entry = self.store.get(&key::once(&principal.user, key)).await.map_err(fault::from_store)?;
        Ok(used_lately(entry.as_ref(), self.engine.clock().now())?.map(|record| record.id))
    }

    /// The execution that is asked for, checked against the catalogues as `view` shows them, and the job that it is of.
    async fn prepare(&self, view: &View, asked: &Asked) -> Result<(Job, Arc<Execution>), Fault> {
        self.room.for_work()?;
        let job = self.catalogs.job(asked.act.principal()?, view, &asked.job).await?;
        let arguments = match &asked.again {
            Some(again) => again.resolve(&job.definition, &asked.arguments)?,
            None => {
                argument::resolve(&job.definition, &asked.arguments).map_err(|errors| wrong_arguments(&asked.job, &errors))?
            }
        };
        let submission = Submission {
            id: asked.id,
            arguments,
            user: asked.act.user().to_owned(),
            at: self.engine.clock().now(),
            timeout: asked.timeout,
            slot: None,
        };
        let mut execution = self.queued(&job, submission).await.map_err(fault::from_engine)?;
        execution.rerun_of = asked.again.as_ref().map(|again| again.source);
        execution.trace.clone_from(&asked.trace);
        Ok((job, Arc::new(execution)))
    }

    /// The execution that a submission of a job leads to, as it will wait; its arguments are where they belong already.
    pub(crate) async fn queued(&self, job: &Job, submission: Submission) -> Result<Execution, EngineError> {
        let (catalog, revision) = (job.catalog.name.clone(), job.catalog.head.revision);
        let mut execution = Execution::submit(&job.definition, catalog, revision, submission, &self.timing);
        self.engine.put_away_arguments(&mut execution, &job.definition).await?;
        Ok(execution)
    }

    /// Writes a submission; none where the catalogue has changed meanwhile.
    async fn submit(
        &self,
        job: &Job,
        execution: Arc<Execution>,
        asked: &Asked,
        mut once: Option<Entry>,
    ) -> Result<Option<ExecutionId>, Fault> {
        asked.act.note_run(&execution, &job.definition, &asked.arguments);
        for tries in 0..MAX_TRIES {
            let (execution, slot) = match self.scheduler.slots().reserve(&execution, &*self.store, tries > 0).await {
                Ok(None) => (Arc::clone(&execution), None),
                Ok(Some(slot)) => (Arc::new(Execution { slot: Some(slot.slot), ..Execution::clone(&execution) }), Some(slot)),
                // It may be the call repeated: then its first has a slot.
                Err(full) => match self.engine.get(execution.id).await {
                    Ok(known) => return self.same_request(&known, asked).await.map(Some),
                    Err(_) => return Err(full),
                },
            };
            let mut txn = job.still_current(self.engine.submission(&execution));
            if let Some(at) = &asked.once {
                let (request, key) = self.engine.sealer().digest(&asked.essence());
                let record = OnceRecord { id: execution.id, request, key, at: execution.created_at };
                let modified = once.as_ref().map_or(0, |entry| entry.modified);
                txn = txn.when(at.clone(), modified).put(at.clone(), codec::encode(&record));
                txn = txn.put(key::removable_once(key::hour_of(record.at), at), "");
            }
            let (head, failed) = match self.store.commit(asked.act.done(txn)).await {
                Ok(Commit::Done(revision)) => {
                    if let Some(slot) = slot {
                        slot.made(revision);
                    }
                    self.scheduler.submitted(&execution, revision);
                    return Ok(Some(execution.id));
                }
                Ok(Commit::Conflict(mut current)) => (current.pop().flatten(), None),
                Err(error @ StoreError::Unknown(_)) => (None, Some(error)),
                Err(error) => return Err(fault::from_store(error)),
            };
            // The id is there already: this is the call repeated, or another's id. Or else the catalogue has changed, or the idempotency key
            // has just been used.
            match self.engine.get(execution.id).await {
                Ok(known) => return self.same_request(&known, asked).await.map(Some),
                Err(EngineError::NotFound(_)) => {}
                Err(error) => return Err(fault::from_engine(error)),
            }
            if let Some(lost) = failed {
                return Err(fault::from_store(lost));
            }
            if !job.was_current(head.as_ref()) {
                return Ok(None);
            }
            // Another has taken the slot, then, or used the key.
            let Some(at) = asked.once.as_ref() else { continue };
            once = self.store.get(at).await.map_err(fault::from_store)?;
            if let Some(id) = asked.answered(once.as_ref(), &self.engine)? {
                return Ok(Some(id));
            }
        }
        Err(fault::from_engine(EngineError::Contended(execution.id)))
    }

    /// The answer where the id that was asked for is there already: the same, if it was the same call.
    async fn same_request(&self, known: &Execution, asked: &Asked) -> Result<ExecutionId, Fault> {
        let taken = || Fault::new(Code::AlreadyExists, reason::ID_TAKEN, format!("{} is the id of another execution", asked.id));
        if known.user != asked.act.user() || known.job.folded() != asked.job.to_ascii_lowercase() {
            return Err(taken());
        }
        // By the definition of then, whatever the catalogue says now.
        let job = self.job_of(known).await?;
        let timeout = asked.timeout.or(job.timeout.map(Into::into)).unwrap_or(self.timing.run_timeout);
        let same = timeout == known.timeout
            && known.rerun_of == asked.again.as_ref().map(|again| again.source)
            && match &asked.again {
                Some(_) => true, // the arguments are those of its source
                None => {
                    let arguments = argument::resolve(&job, &asked.arguments).map_err(|_| taken())?;
                    arguments == self.engine.arguments(known).await.map_err(fault::from_engine)?
                }
            };
        if same { Ok(known.id) } else { Err(taken()) }
    }

    pub(crate) async fn job_of(&self, execution: &Execution) -> Result<Arc<JobDefinition>, Fault> {
        self.definitions.get(execution.definition).await.map_err(fault::from_store)
    }

    async fn shown(&self, principal: &Principal, execution: &Execution) -> Result<v1::Execution, Fault> {
        let arguments = self.engine.shown_arguments(execution).await.map_err(fault::from_store)?;
        let whole = Execution { arguments, ..execution.clone() };
        let mut shown = to_execution(&whole, Some(&*self.job_of(execution).await?));
        shown.deliveries = self.webhooks.undelivered(execution);
        self.shown_to(principal, execution, shown).await
    }

    /// Adds what is not the same for everybody.
    async fn shown_to(
        &self,
        principal: &Principal,
        execution: &Execution,
        mut shown: v1::Execution,
    ) -> Result<v1::Execution, Fault> {
        shown.is_callers = self.is_theirs(principal, execution).await?;
        if let Some(approvals) = &mut shown.approvals {
            approvals.has_callers = execution.approvals.as_deref().is_some_and(|known| known.has_approval_of(&principal.user));
            approvals.is_callers = self.may_decide(principal, execution).await?;
        }
        Ok(shown)
    }

    async fn list(&self, principal: &Principal, request: v1::ListExecutionsRequest) -> Result<v1::ListExecutionsResponse, Fault> {
        let filter = Filter::new(principal, &request)?;
        let mut range = Range::of(filter.prefix(self.scheduler.awaiting().count()), PAGE);
        if !request.page_token.is_empty() {
            let last = ExecutionId::from_inverted(&request.page_token);
            last.ok_or_else(|| InvalidField::new("page_token", "not one of ours"))?;
            range.after = Some(Key::new(format!("{}{}", range.prefix, request.page_token)));
        }
        let limit = if request.limit == 0 { 50 } else { request.limit.min(MAX_LIST) } as usize;
        let mut executions = Vec::new();
        let (mut looked_at, mut bytes) = (0, 0);
        loop {
            let page = self.store.range(&range).await.map_err(fault::from_store)?;
            for (index, entry) in page.entries.iter().enumerate() {
                looked_at += 1;
                let Some(id) = key::execution_of(&entry.key) else { continue };
                if filter.is_past(id) {
                    return Ok(v1::ListExecutionsResponse { executions, next_page_token: String::new() });
                }
                let record = if filter.is_whole() {
                    Some(entry.clone())
                } else {
                    self.store.get(&key::execution(id)).await.map_err(fault::from_store)?
                };
                let Some(record) = record else { continue };
                let execution: Execution = codec::decode(&record).map_err(fault::from_store)?;
                if filter.takes(&execution) && self.may_see(principal, &execution).await? {
                    let shown = self.shown_to(principal, &execution, octavius_proto::execution(&execution)).await?;
                    bytes += shown.encoded_len();
                    executions.push(shown);
                }
                let more = page.more || index + 1 < page.entries.len();
                if more && (executions.len() == limit || looked_at >= LOOKED_AT || bytes > PAGE_BYTES) {
                    return Ok(v1::ListExecutionsResponse { executions, next_page_token: id.inverted() });
                }
            }
            match range.next(&page) {
                // What is new comes before what was read, so later pages need no old revision.
                Some(next) => range = Range { at: None, ..next },
                None => return Ok(v1::ListExecutionsResponse { executions, next_page_token: String::new() }),
            }
        }
    }

    /// Tells an execution's states, each of them, in order.
    async fn watch(
        &self,
        principal: &Principal,
        id: ExecutionId,
        voice: &mpsc::Sender<Result<WatchExecutionResponse, Status>>,
    ) -> Result<(), Fault> {
        let record = key::execution(id);
        let gone = || fault::from_engine(EngineError::NotFound(id));
        let mut told = 0;
        loop {
            let page = self.store.range(&Range::of(record.clone(), 1)).await.map_err(fault::from_store)?;
            let entry = page.entries.first().ok_or_else(gone)?;
            if entry.modified > told && self.tell(principal, entry, voice).await? {
                return Ok(());
            }
            told = entry.modified;
            let mut watch = match self.store.watch(&record, page.revision).await {
                Err(StoreError::Compacted { .. }) => continue,
                watch => watch.map_err(fault::from_store)?,
            };
            loop {
                let changed = tokio::select! {
                    changed = watch.next() => changed,
                    () = voice.closed() => return Ok(()),
                };
                let batch = match changed {
                    Err(StoreError::Compacted { .. }) => break, // some states were missed; the present one follows
                    changed => changed.map_err(fault::from_store)?,
                };
                for event in batch.events {
                    let Event::Put(entry) = event else { return Err(gone()) };
                    told = entry.modified;
                    if self.tell(principal, &entry, voice).await? {
                        return Ok(());
                    }
                }
            }
        }
    }

    /// Tells one state; true where no other will follow, or nobody listens.
    async fn tell(
        &self,
        principal: &Principal,
        entry: &Entry,
        voice: &mpsc::Sender<Result<WatchExecutionResponse, Status>>,
    ) -> Result<bool, Fault> {
        let execution: Execution = codec::decode(entry).map_err(fault::from_store)?;
        if !self.may_see(principal, &execution).await? {
            let message = format!("execution {} waits for approval no longer, and is not yours to follow", execution.id);
            return Err(Fault::new(Code::NotFound, reason::EXECUTION_NOT_FOUND, message));
        }
        let response = WatchExecutionResponse { execution: Some(self.shown(principal, &execution).await?) };
        Ok(voice.send(Ok(response)).await.is_err() || execution.state.is_terminal())
    }
}

fn wrong_arguments(job: &str, errors: &[argument::ArgumentError]) -> Fault {
    unfit_arguments(job, errors.iter().map(|error| (error.name().unwrap_or_default().to_owned(), error.to_string())).collect())
}

/// That arguments, each by its name, do not fit a job, and why.
pub(crate) fn unfit_arguments(job: &str, errors: Vec<(String, String)>) -> Fault {
    let count = if errors.len() == 1 { "1 argument does".to_owned() } else { format!("{} arguments do", errors.len()) };
    let message = format!("{count} not fit job {}", job.escape_debug());
    let fault = Fault::new(Code::InvalidArgument, reason::INVALID_ARGUMENTS, message);
    errors.into_iter().fold(fault, |fault, (name, problem)| fault.violating(name, problem))
}

/// The lowest id of this time: a UUID version 7 begins with 48 bits of milliseconds.
fn earliest_id(at: Timestamp) -> ExecutionId {
    ExecutionId::from_bits(u128::try_from(at.as_millisecond()).unwrap_or_default() << 80)
}

/// Which executions are asked for.
struct Filter {
    user: Option<String>,
    job: Option<octavius_core::JobName>,
    states: Vec<State>,
    since: Option<Timestamp>,
}

impl Filter {
    fn new(principal: &Principal, request: &v1::ListExecutionsRequest) -> Result<Self, Fault> {
        let user = match (request.user.as_str(), request.all) {
            ("", true) => None,
            ("", false) => Some(principal.user.clone()),
            (user, _) => Some(user.to_owned()),
        };
        let job = match request.job.as_str() {
            "" => None,
            job => Some(octavius_proto::job_name("job", job)?),
        };
        let states = request.states.iter().map(|state| octavius_proto::state("states", *state)).collect::<Result<_, _>>()?;
        let since = request.since.as_ref().map(|since| octavius_proto::timestamp("since", since)).transpose()?;
        Ok(Self { user, job, states, since })
    }

    /// Whether only those are asked for that wait for approval: they have an index of their own.
    fn is_of_awaiting(&self) -> bool {
        !self.states.is_empty() && self.states.iter().all(|state| *state == State::WaitingForApproval)
    }

    /// The narrowest index there is, where about `awaiting` executions wait for approval: these are few among those of a user or a job, as a
    /// rule, but nobody's own list is to be long in coming because somebody else has asked for very many. Pages of one listing may be
    /// of different indexes, since all are in order of ids.
    fn prefix(&self, awaiting: usize) -> Key {
        if self.is_of_awaiting() && (awaiting <= PAGE || (self.job.is_none() && self.user.is_none())) {
            return key::awaiting_approval();
        }
        match (&self.job, &self.user) {
            (Some(job), _) => key::by_job_all(job),
            (None, Some(user)) => key::by_user_all(user),
            (None, None) => key::executions(),
        }
    }

    /// Whether the index holds the executions themselves.
    fn is_whole(&self) -> bool {
        self.job.is_none() && self.user.is_none() && !self.is_of_awaiting()
    }

    /// Whether this execution and all after it are too old. Listings are in order of ids, which clients make by their own clocks.
    fn is_past(&self, id: ExecutionId) -> bool {
        self.since.and_then(|since| since.checked_sub(CLOCKS_DIFFER).ok()).is_some_and(|since| id < earliest_id(since))
    }

    fn takes(&self, execution: &Execution) -> bool {
        self.user.as_ref().is_none_or(|user| *user == execution.user)
            && self.job.as_ref().is_none_or(|job| job.folded() == execution.job.folded())
            && (self.states.is_empty() || self.states.contains(&execution.state))
            && self.since.is_none_or(|since| execution.created_at >= since)
    }
}

#[tonic::async_trait]
impl ExecutionService for Executions {
    type WatchExecutionStream = Responses<WatchExecutionResponse>;

    async fn execute(&self, request: Request<v1::ExecuteRequest>) -> Result<Response<v1::ExecuteResponse>, Status> {
        let trace = traced::context(&request);
        let (act, request) = audit::begin(request)?;
        let id = self.run(Asked::new(act, request, None, self.engine.clock().now())?.in_trace(trace)).await?;
        Ok(Response::new(v1::ExecuteResponse { id: id.to_string() }))
    }

    async fn rerun_execution(
        &self,
        request: Request<v1::RerunExecutionRequest>,
    ) -> Result<Response<v1::ExecuteResponse>, Status> {
        let trace = traced::context(&request);
        let (act, request) = audit::begin(request)?;
        let id = self.rerun(act, request, trace).await?;
        Ok(Response::new(v1::ExecuteResponse { id: id.to_string() }))
    }

    async fn get_execution(
        &self,
        request: Request<v1::GetExecutionRequest>,
    ) -> Result<Response<v1::GetExecutionResponse>, Status> {
        let principal = auth::principal(&request)?;
        let execution = self.find(&principal, &request.into_inner().id).await?;
        let waits = execution.state == State::Queued;
        let wait = waits.then(|| self.scheduler.why_it_waits(&execution).into());
        Ok(Response::new(v1::GetExecutionResponse { execution: Some(self.shown(&principal, &execution).await?), wait }))
    }

    async fn list_executions(
        &self,
        request: Request<v1::ListExecutionsRequest>,
    ) -> Result<Response<v1::ListExecutionsResponse>, Status> {
        let principal = auth::principal(&request)?;
        Ok(Response::new(self.list(&principal, request.into_inner()).await?))
    }

    async fn watch_execution(
        &self,
        request: Request<v1::WatchExecutionRequest>,
    ) -> Result<Response<Self::WatchExecutionStream>, Status> {
        let principal = auth::principal(&request)?;
        let id = self.find(&principal, &request.into_inner().id).await?.id;
        let (voice, ears) = mpsc::channel(4);
        let this = self.clone();
        self.tasks.spawn(tracing::Instrument::in_current_span(async move {
            let watched = async {
                if let Err(fault) = this.watch(&principal, id, &voice).await {
                    let _ = voice.send(Err(fault.into())).await; // nobody may listen any more
                }
            };
            tokio::select! {
                () = watched => {}
                () = this.shutdown.cancelled() => {}
            }
        }));
        Ok(Response::new(until_stop(ears, self.shutdown.clone())))
    }

    async fn cancel_execution(
        &self,
        request: Request<v1::CancelExecutionRequest>,
    ) -> Result<Response<v1::CancelExecutionResponse>, Status> {
        let (act, request) = audit::begin(request)?;
        let found = self.find(act.principal()?, &request.id).await?;
        act.on("execution", found.id);
        act.note("job", &found.job);
        self.must_be_theirs(act.principal()?, &found, "cancel it").await?;
        let cancel = Step::Cancel { by: act.user().to_owned() };
        let known = self.engine.recall(found.id, |_| true).await.map_err(fault::from_engine)?;
        let step = self.engine.step_from(known, cancel, |txn| act.done(txn)).await.map_err(fault::from_engine)?;
        Ok(Response::new(v1::CancelExecutionResponse { execution: Some(self.shown(act.principal()?, &step.execution).await?) }))
    }

    async fn approve_execution(
        &self,
        request: Request<v1::ApproveExecutionRequest>,
    ) -> Result<Response<v1::ApproveExecutionResponse>, Status> {
        let (act, request) = audit::begin(request)?;
        let execution = self.decide(&act, &request.id, request.reason, Decision::Approve).await?;
        Ok(Response::new(v1::ApproveExecutionResponse { execution: Some(execution) }))
    }

    async fn reject_execution(
        &self,
        request: Request<v1::RejectExecutionRequest>,
    ) -> Result<Response<v1::RejectExecutionResponse>, Status> {
        let (act, request) = audit::begin(request)?;
        let execution = self.decide(&act, &request.id, request.reason, Decision::Reject).await?;
        Ok(Response::new(v1::RejectExecutionResponse { execution: Some(execution) }))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Whose list is short does not wait for whoever has asked for very many, and few are found without looking at all that somebody ever ran.
    #[test]
    fn what_waits_for_approval_is_looked_for_where_it_is_found_soonest() {
        let ann = Principal::new("t", "ann", octavius_core::Role::User);
        let prefix = |all: bool, job: &str, awaiting| {
            let states = vec![v1::ExecutionState::WaitingForApproval.into()];
            let request = v1::ListExecutionsRequest { all, job: job.to_owned(), states, ..Default::default() };
            Filter::new(&ann, &request).unwrap().prefix(awaiting)
        };
        for (all, job) in [(false, ""), (true, "j"), (true, "")] {
            assert_eq!(prefix(all, job, PAGE), key::awaiting_approval());
        }
        assert_eq!(prefix(false, "", PAGE + 1), key::by_user_all("ann"));
        assert_eq!(prefix(true, "j", PAGE + 1), key::by_job_all(&"j".parse().unwrap()));
        assert_eq!(prefix(true, "", PAGE + 1), key::awaiting_approval());
    }
}
