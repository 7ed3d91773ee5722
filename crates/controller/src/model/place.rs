//! The place of a play: controllers put together as the real one does it, but for their network and their clock, over one store in memory; and
//! executors that do what they are told.

use std::sync::{Arc, LazyLock};
use std::time::Duration;

use futures::{FutureExt as _, StreamExt as _};
use octavius_core::dispatch::Strategy;
use octavius_core::limit::LOG_BYTES_IN_STORE;
use octavius_core::{CatalogName, ExecutionId, ExecutorId, JobDefinition, Labels, Principal, Role, State, Timestamp, Timing};
use octavius_proto::v1::execution_service_server::ExecutionService as _;
use octavius_proto::v1::executor_service_server::ExecutorService as _;
use octavius_proto::v1::report_execution_request::Step;
use octavius_proto::v1::session_response::Say;
use octavius_proto::v1::{self, SessionRequest, SessionResponse, session_request};
use octavius_proto::{Fault, to_duration, to_state};
use octavius_store::{Store, codec, key};
use tokio::sync::mpsc;
use tokio_stream::wrappers::UnboundedReceiverStream;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;
use tonic::{Request, Status};

use super::memory::{Memory, View};
use super::spec::Word;
use crate::audit::{Act, What};
use crate::catalogs::{self, Catalogs, Wanted};
use crate::clock::Clock;
use crate::definitions::Definitions;
use crate::engine::Engine;
use crate::executions::Executions;
use crate::executors::Executors;
use crate::fleet::Fleet;
use crate::logs::Keeping;
use crate::logs::settle::Settler;
use crate::losses::Judge;
use crate::mirror::Mirrors;
use crate::origins::Origins;
use crate::pauses::{self, Pauses, Whose};
use crate::queue::SharedQueue;
use crate::reconcile::Reconciler;
use crate::scheduler::{self, Scheduler};
use crate::streams::Responses;
use crate::tokens::{self, NewToken, Tokens};
use crate::webhooks::Webhooks;
use crate::{random, slices};

/// As real ones are to each other, but short: a play of a few minutes sees everything run out.
pub(super) const TIMING: fn() -> Timing = || Timing {
    ping_interval: Duration::from_secs(2),
    ping_deadline: Duration::from_secs(9),
    claim_timeout: Duration::from_secs(20),
    lost_after: Duration::from_secs(30),
    outage_grace: Duration::from_secs(40),
    queue_timeout: Duration::from_secs(120),
    back_off_min: Duration::from_secs(3),
    back_off_max: Duration::from_secs(10),
    run_timeout: Duration::from_secs(60),
    kill_grace: Duration::from_secs(2),
    overdue: Duration::from_secs(20),
    ..Timing::default()
};

/// The jobs that there are, as their files say.
const JOBS: [&str; 7] = [
    r#"{"name":"once","command":["true"],"env_vars":{"args":[{"name":"n","default":"0"}]}}"#,
    r#"{"name":"again","command":["true"],"retries":2,"on_lost":"retry","env_vars":{"args":[{"name":"n","default":"0"}]}}"#,
    r#"{"name":"web","command":["true"],"executor":{"vpc":"web"},"retries":1,"env_vars":{"args":[{"name":"n","default":"0"}]}}"#,
    r#"{"name":"urgent","command":["true"],"priority":9,"env_vars":{"args":[{"name":"n","default":"0"}]}}"#,
    r#"{"name":"two","command":["true"],"retries":1,"concurrency":{"limit":2},"env_vars":{"args":[{"name":"n","default":"0"}]}}"#,
    r#"{"name":"one","command":["true"],"retries":1,"on_lost":"retry","concurrency":{"limit":1,"when_full":"reject"},
        "env_vars":{"args":[{"name":"n","default":"0"}]}}"#,
    r#"{"name":"nowhere","command":["true"],"executor":{"vpc":"none"},"env_vars":{"args":[{"name":"n","default":"0"}]}}"#,
];

/// Executors: labels and capacity.
const ROBOTS: [(&[(&str, &str)], u32); 3] = [(&[], 2), (&[("vpc", "web")], 1), (&[("vpc", "web"), ("zone", "a")], 2)];

pub(super) fn jobs() -> &'static [JobDefinition] {
    static READ: LazyLock<Vec<JobDefinition>> = LazyLock::new(|| JOBS.map(|job| serde_json::from_str(job).unwrap()).into());
    &READ
}

pub(super) fn somebody(user: &str) -> Principal {
    Principal::new("", user, Role::Admin)
}

/// What somebody does.
fn act(principal: &Principal) -> Act {
    Act::new(Some(principal.clone()), None, What::default())
}

/// A call as it comes from the network, past the check of who makes it.
fn call<T>(principal: &Principal, message: T) -> Request<T> {
    let mut request = Request::new(message);
    request.extensions_mut().insert(act(principal));
    request
}

/// A controller.
pub(super) struct Node {
    pub(super) view: Arc<View>,
    pub(super) engine: Engine,
    pub(super) reconciler: Reconciler,
    executors: Executors,
    pub(super) executions: Executions,
    catalogs: Arc<Catalogs>,
    pauses: Arc<Pauses>,
    shutdown: CancellationToken,
}

impl Node {
    pub(super) fn start(memory: &Arc<Memory>, index: usize, clock: &Clock) -> Self {
        let view = memory.view(index);
        let store: Arc<dyn Store> = Arc::clone(&view) as _;
        let (timing, shutdown, tasks) = (TIMING(), CancellationToken::new(), TaskTracker::new());
        let engine =
            Engine::new(Arc::clone(&store), timing, clock.clone(), crate::sealing::Sealer::new(crate::Encryption::Unset));
        let definitions = Arc::new(Definitions::new(Arc::clone(&store)));
        let catalogs = Arc::new(Catalogs::new(Arc::clone(&store), Arc::clone(&definitions)));
        let fleet = Arc::new(Fleet::new(clock.clone(), SharedQueue::new(Strategy::default(), index as u32, clock.clone())));
        let origins = Origins::new(Arc::clone(&catalogs));
        let pauses = Arc::new(Pauses::new(Arc::clone(&store), Arc::clone(&fleet), clock.clone()));
        let scheduler = Arc::new(Scheduler::new(
            Arc::clone(&store),
            engine.clone(),
            Arc::clone(&definitions),
            origins,
            Arc::clone(&fleet),
            Arc::clone(&pauses),
        ));
        let judge = Arc::new(Judge::new(&timing, clock.clone()));
        let tokens = Arc::new(Tokens::new(Arc::clone(&store), Timing::default().executor_token_life));
        let mirrors = Mirrors { store: Arc::clone(&store), judge: Arc::clone(&judge), shutdown: shutdown.clone() };
        let peer = format!("peer-{index}");
        tasks.spawn(slices::run(
            peer,
            Arc::clone(&scheduler),
            tokio::sync::watch::Sender::new(None),
            mirrors.clone(),
            timing.ping_interval,
            timing.ping_deadline,
        ));
        tasks.spawn(pauses::follow(Arc::clone(&pauses), mirrors.clone()));
        tasks.spawn(catalogs::follow(Arc::clone(&catalogs), mirrors.clone()));
        tasks.spawn(tokens::follow(Arc::clone(&tokens), mirrors.clone()));
        tasks.spawn(scheduler::mirror(Arc::clone(&scheduler), mirrors));
        tasks.spawn(Arc::clone(&scheduler).run(shutdown.clone()));
        let reconciler = Reconciler {
            store: Arc::clone(&store),
            engine: engine.clone(),
            fleet: Arc::clone(&fleet),
            scheduler: Arc::clone(&scheduler),
            judge: Arc::clone(&judge),
            timing,
        };
        let webhooks = Webhooks::new(Arc::clone(&store), &engine, timing, None);
        let executions = Executions {
            webhooks,
            store: Arc::clone(&store),
            engine: engine.clone(),
            catalogs: Arc::clone(&catalogs),
            definitions,
            scheduler,
            room: Arc::default(),
            timing,
            tasks: tasks.clone(),
            shutdown: shutdown.clone(),
        };
        let keeping = Keeping { archive: None, limit: LOG_BYTES_IN_STORE };
        let executors = Executors {
            store: Arc::clone(&store),
            engine: engine.clone(),
            fleet: Arc::clone(&fleet),
            tokens,
            judge,
            heads: Arc::default(),
            settling: Settler::new(store, engine.clone(), Arc::default(), keeping, timing).1,
            timing,
            controller_id: "model".to_owned(),
            tasks,
            shutdown: shutdown.clone(),
        };
        Self { view, engine, reconciler, executors, executions, catalogs, pauses, shutdown }
    }

    /// Makes the catalogue hold the jobs.
    pub(super) async fn apply(&self) {
        let put = jobs().iter().map(|job| octavius_catalog::manifest::Entry {
            name: job.name.clone(),
            digest: job.digest(),
            file: format!("{}.yaml", job.name),
            line: 1,
            changed_in: 0,
            inherited: Vec::new(),
        });
        let wanted = Wanted {
            catalog: CatalogName::new("c").unwrap(),
            parent: 0,
            put: put.collect(),
            remove: Vec::new(),
            definitions: jobs().iter().map(|job| (job.digest(), job.to_canonical_json().into())).collect(),
            provenance: v1::Provenance::default(),
            act: act(&somebody("ann")),
            plan_id: String::new(),
            rollback_to: 0,
            freeze: false,
        };
        self.catalogs.apply(&wanted).await.unwrap();
    }

    pub(super) async fn register(&self, id: &ExecutorId) -> Principal {
        let bearer = NewToken { role: Role::Registration, user: "operator".to_owned(), ..NewToken::default() };
        let made = self.executors.tokens.create(&bearer, &act(&somebody("ann"))).await.unwrap();
        let with = made.token.digest();
        self.executors.tokens.register(id, None, &with, &act(&somebody("ann"))).await.unwrap();
        let entries = self.view.range(&octavius_store::Range::of(key::tokens(), 100)).await.unwrap().entries;
        let records = entries.iter().map(|entry| codec::decode::<octavius_store::record::TokenRecord>(entry).unwrap());
        let record = records.into_iter().find(|record| record.user == id.as_str()).unwrap();
        Principal::new(&record.id, id.as_str(), Role::Executor)
    }

    /// Pauses a job, or all where none is named; or ends that.
    pub(super) async fn pause(&self, job: Option<usize>, paused: bool) -> Result<(), Fault> {
        let whose = job.map_or(Whose::All, |job| Whose::Job(&jobs()[job].name));
        let done = match paused {
            true => self.pauses.pause(whose, &act(&somebody("ann")), "").await.map(drop),
            false => self.pauses.unpause(whose, &act(&somebody("ann"))).await.map(drop),
        };
        done.map_err(crate::fault::from_store)
    }

    /// Has an executor drain; or ends that.
    pub(super) async fn drain(&self, id: &ExecutorId, drains: bool) -> Result<(), Fault> {
        let (id, ann) = (id.to_string(), somebody("ann"));
        let done = match drains {
            true => self.executors.drain_executor(call(&ann, v1::DrainExecutorRequest { id })).await.map(drop),
            false => self.executors.resume_executor(call(&ann, v1::ResumeExecutorRequest { id })).await.map(drop),
        };
        done.map_err(|status| Fault::from_status(&status))
    }

    pub(super) async fn cancel(&self, user: &str, id: ExecutionId) -> Result<(), Fault> {
        let request = v1::CancelExecutionRequest { id: id.to_string() };
        let answer = self.executions.cancel_execution(call(&somebody(user), request)).await;
        answer.map(drop).map_err(|status| Fault::from_status(&status))
    }

    pub(super) async fn report(&self, said: &Said) -> Result<v1::Verdict, Fault> {
        let step = match said.word {
            Word::Starts => Step::Starting(v1::Starting {}),
            Word::Runs => Step::Running(v1::Running { runs_as: "pid 7".into(), image: String::new() }),
            Word::GivesBack => Step::HandedBack(v1::HandedBack { message: "full".into() }),
            Word::Ends(outcome) => {
                let exit_code = (outcome == State::Succeeded).then_some(0);
                let outcome = to_state(outcome).into();
                let ending = v1::Ending { outcome, reason: String::new(), message: "said".into(), exit_code };
                Step::Finished(v1::Finished { ending: Some(ending), log_size: 0, log_crc32c: 0, log_cut: false })
            }
        };
        let (id, attempt, nonce) = (said.id.to_string(), said.attempt, said.nonce);
        let request = v1::ReportExecutionRequest { id, attempt, nonce, step: Some(step) };
        let answer = self.executors.report_execution(call(&said.principal, request)).await;
        answer.map(|answer| answer.into_inner().verdict()).map_err(|status| Fault::from_status(&status))
    }

    /// Stops it as a kill does: nothing that it would still say reaches the store.
    pub(super) fn kill(&self) {
        self.view.set_away(true);
        self.shutdown.cancel();
    }
}

pub(super) async fn execute(executions: &Executions, user: &str, request: v1::ExecuteRequest) -> Result<ExecutionId, Fault> {
    let answer = executions.execute(call(&somebody(user), request)).await;
    let answer = answer.map_err(|status| Fault::from_status(&status))?;
    Ok(answer.into_inner().id.parse().unwrap())
}

/// Something that was said of an attempt, to be said again perhaps.
#[derive(Debug, Clone)]
pub(super) struct Said {
    pub(super) principal: Principal,
    pub(super) id: ExecutionId,
    pub(super) attempt: u32,
    pub(super) nonce: u64,
    pub(super) word: Word,
}

/// An attempt that an executor has.
#[derive(Debug, Clone)]
pub(super) struct Held {
    pub(super) id: ExecutionId,
    pub(super) attempt: u32,
    pub(super) nonce: u64,
    pub(super) started: bool,
    /// Whether it was told to stop it.
    pub(super) stop: bool,
}

/// A session from an executor's side.
pub(super) struct Line {
    pub(super) node: usize,
    say: mpsc::UnboundedSender<Result<SessionRequest, Status>>,
    ears: Responses<SessionResponse>,
}

/// An executor.
pub(super) struct Robot {
    pub(super) id: ExecutorId,
    pub(super) principal: Principal,
    pub(super) labels: Labels,
    pub(super) capacity: u32,
    pub(super) instance: u64,
    pub(super) line: Option<Line>,
    pub(super) held: Vec<Held>,
}

impl Robot {
    /// Begins a session. Whether it stands is heard later.
    pub(super) async fn connect(&mut self, node: usize, nodes: &[Node]) -> Result<(), Fault> {
        self.line = None;
        let (say, said) = mpsc::unbounded_channel();
        let held = self.held.iter().map(|held| v1::Held { id: held.id.to_string(), attempt: held.attempt, nonce: held.nonce });
        let hello = v1::Hello {
            version: crate::VERSION.to_owned(),
            capacity: self.capacity,
            runner: "process".into(),
            instance: self.instance,
            labels: self.labels.clone().into_iter().collect(),
            held: held.collect(),
        };
        let _ = say.send(Ok(SessionRequest { say: Some(session_request::Say::Hello(hello)) }));
        let executors = &nodes[node].executors;
        let incoming = Box::pin(UnboundedReceiverStream::new(said));
        let ears = executors.begin(self.id.clone(), &self.principal.token_id, incoming).await?;
        self.line = Some(Line { node, say, ears });
        Ok(())
    }

    pub(super) fn ping(&self) {
        if let Some(line) = &self.line {
            let free = self.capacity.saturating_sub(u32::try_from(self.held.len()).unwrap());
            let _ = line.say.send(Ok(SessionRequest { say: Some(session_request::Say::Ping(v1::Ping { free })) }));
        }
    }

    /// Takes in what it was told. Returns what goes back at once: it takes no more than it has room for.
    pub(super) fn hear(&mut self) -> Vec<Said> {
        let mut back = Vec::new();
        while let Some(line) = &mut self.line {
            match line.ears.next().now_or_never() {
                None => break,
                Some(Some(Ok(response))) => match response.say {
                    Some(Say::Assignment(claim)) => {
                        let id = claim.id.parse().unwrap();
                        let held = Held { id, attempt: claim.attempt, nonce: claim.nonce, started: false, stop: false };
                        if self.held.len() < self.capacity as usize {
                            self.held.push(held);
                        } else {
                            let (principal, attempt, nonce) = (self.principal.clone(), held.attempt, held.nonce);
                            back.push(Said { principal, id, attempt, nonce, word: Word::GivesBack });
                        }
                    }
                    Some(Say::Stop(stop)) => {
                        let cancelled = stop.cause() == v1::StopCause::Cancelled;
                        let this = |held: &Held| held.id.to_string() == stop.id && held.attempt == stop.attempt;
                        self.held.iter_mut().filter(|held| this(held)).for_each(|held| held.stop = true);
                        self.held.retain(|held| cancelled || !this(held));
                    }
                    _ => {}
                },
                Some(Some(Err(_)) | None) => self.line = None,
            }
        }
        back
    }
}

/// All of it.
pub(super) struct Place {
    pub(super) memory: Arc<Memory>,
    pub(super) clock: Clock,
    pub(super) nodes: Vec<Node>,
    pub(super) robots: Vec<Robot>,
    began: std::time::Instant,
}

impl Place {
    /// Two controllers and three executors that have registered and are not there yet.
    pub(super) async fn open() -> Self {
        // Always the same, so that ids are, and with them whose slice an execution is in.
        let clock = Clock::manual(Timestamp::from_second(1_800_000_000).unwrap());
        let memory = Memory::new(clock.clone());
        let nodes: Vec<_> = (0..2).map(|index| Node::start(&memory, index, &clock)).collect();
        nodes[0].apply().await;
        let mut robots = Vec::new();
        for (index, (labels, capacity)) in ROBOTS.into_iter().enumerate() {
            let id = ExecutorId::new(format!("e{index}")).unwrap();
            let principal = nodes[0].register(&id).await;
            let labels = labels.iter().map(|(key, value)| ((*key).to_owned(), (*value).to_owned())).collect();
            let (line, held) = (None, Vec::new());
            robots.push(Robot { id, principal, labels, capacity, instance: random::number(), line, held });
        }
        let began = clock.instant();
        let mut place = Self { memory, clock, nodes, robots, began };
        place.settle().await;
        place
    }

    /// How much time has passed.
    pub(super) fn now(&self) -> Duration {
        self.clock.since(self.began)
    }

    /// How much time had passed then.
    pub(super) fn time(&self, instant: std::time::Instant) -> Duration {
        instant.saturating_duration_since(self.began)
    }

    /// Lets everything happen that happens by itself at this time. The runtime's clock stands still while anything can go on.
    pub(super) async fn settle(&mut self) -> Vec<Said> {
        let mut back = Vec::new();
        for _ in 0..2 {
            tokio::time::sleep(Duration::from_millis(1)).await;
            for robot in &mut self.robots {
                back.extend(robot.hear());
            }
        }
        back
    }

    /// Lets time pass, in which executors ping.
    pub(super) async fn pass(&mut self, time: Duration) -> Vec<Said> {
        let (mut left, mut back) = (time, Vec::new());
        while !left.is_zero() {
            let step = left.min(TIMING().ping_interval * 2);
            left -= step;
            self.clock.advance(step);
            tokio::time::advance(step).await;
            self.robots.iter().for_each(Robot::ping);
            back.extend(self.settle().await);
        }
        back
    }
}

/// A request for a run.
pub(super) fn request(id: ExecutionId, job: usize, argument: &str, once: &str) -> v1::ExecuteRequest {
    v1::ExecuteRequest {
        id: id.to_string(),
        job: jobs()[job].name.to_string(),
        arguments: [("n".to_owned(), argument.to_owned())].into(),
        timeout: Some(to_duration(TIMING().run_timeout)),
        idempotency_key: once.to_owned(),
    }
}
