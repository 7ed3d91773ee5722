//! The sweep: each failpoint is reached once, and nothing is lost, doubled or changed. Then the faults of controllers, networks and clients
//! that FAULTS names one by one.

use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, ensure};
use octavius_core::execution::State;
use octavius_failpoint::{FIRED, POINTS, Process, VARIABLE};
use octavius_proto::client::{Address, Connection};
use octavius_proto::v1;
use octavius_tests::caller::{Caller, Tags};
use octavius_tests::checker::check;
use octavius_tests::cluster::{Cluster, Link, Part, Shape, runtime};
use octavius_tests::history::{History, Seen, What};
use octavius_tests::workload::{CATALOG, Job, Run, Workload};
use octavius_tests::{Direction, Mode, PATIENCE, eventually};
use tokio::runtime::Runtime;
use tonic::Code;

use crate::kubernetes_kills::{ENDS, STARTS};

/// What I1 allows over a deadline, at a twentieth.
const GRACE: Duration = Duration::from_secs(15);

/// A run that prints a line and ends.
pub(crate) fn short() -> Run {
    Run { job: Job::Once, lines: 1, pause: Duration::ZERO, code: 0, timeout: Duration::from_secs(30) }
}

/// A run that goes on for so long.
pub(crate) fn long(seconds: u64) -> Run {
    Run { lines: 10, pause: Duration::from_secs(seconds), ..short() }
}

/// A cluster, and clients of it whose history is checked.
pub(crate) struct Trial {
    pub(crate) cluster: Cluster,
    pub(crate) runtime: Runtime,
    pub(crate) history: Arc<History>,
    pub(crate) tags: Tags,
    pub(crate) asked: Vec<(String, Run)>,
    /// States of the catalogue that it may have: an apply whose answer was lost may have been made.
    states: Vec<String>,
}

impl Trial {
    pub(crate) fn start(shape: Shape) -> Result<Self> {
        let cluster = Cluster::start(shape, "first")?;
        let (runtime, history, tags) = (runtime()?, Arc::default(), Tags::default());
        let first = cluster.workload.jobs("first")?.into_iter().map(|job| (job.digest(), "first".to_owned())).collect();
        *tags.lock().unwrap() = first;
        Ok(Self { cluster, runtime, history, tags, asked: Vec::new(), states: vec!["first".to_owned()] })
    }

    /// A client that begins with the controller of this index.
    pub(crate) fn caller(&self, first: usize) -> Result<Caller> {
        self.cluster.caller(first, &self.history, &self.tags)
    }

    /// Submits a run, which must be accepted.
    pub(crate) fn submit(&mut self, caller: &Caller, run: Run) -> Result<String> {
        let (id, acknowledged) = self.runtime.block_on(caller.submit(&run, PATIENCE))?;
        ensure!(acknowledged, "{id} was not accepted in {PATIENCE:?}");
        self.asked.push((id.clone(), run));
        Ok(id)
    }

    /// Waits until an execution has ended.
    pub(crate) fn ended(&self, caller: &Caller, id: &str) -> Result<Seen> {
        let seen = self.runtime.block_on(caller.watch(id, PATIENCE))?;
        seen.with_context(|| format!("{id} has not ended in {PATIENCE:?}"))
    }

    /// Waits until an execution is in this state.
    pub(crate) fn reaches(&self, caller: &Caller, id: &str, state: State) -> Result<Seen> {
        eventually("the execution gets there", || {
            let seen = self.runtime.block_on(caller.look(id, PATIENCE))?.context("there is no such execution")?;
            ensure!(seen.state == state, "{id} is {}", seen.state);
            Ok(seen)
        })
    }

    /// Looks at everything once more, reads all logs and the ledger, and holds the history against the invariants.
    pub(crate) fn check(&mut self, caller: &Caller) -> Result<()> {
        self.check_with(caller, GRACE)
    }

    /// The same where ends may be taken down so much later than what was asked for says, by the controllers' clocks.
    pub(crate) fn check_with(&mut self, caller: &Caller, grace: Duration) -> Result<()> {
        for (id, run) in std::mem::take(&mut self.asked) {
            self.ended(caller, &id)?;
            let seen = self.runtime.block_on(caller.look(&id, PATIENCE))?.context("there is no such execution")?;
            for attempt in seen.attempts.iter().filter(|attempt| attempt.started) {
                let read = self.runtime.block_on(caller.read_log(&id, attempt.number, &run, false, PATIENCE))?;
                ensure!(read, "the log of {id} could not be read");
            }
        }
        self.history.ledger(self.cluster.workload.ledger())?;
        let verdict = check(&self.history.events(), grace);
        let violations: Vec<_> = verdict.violations.iter().map(ToString::to_string).collect();
        ensure!(violations.is_empty(), "{}", violations.join("\n"));
        ensure!(verdict.undecided.is_empty(), "{:?} have not ended", verdict.undecided);
        Ok(())
    }

    /// Starts the process `part` again where it has ended, which it must have at the point that `line` names; says whether it had.
    fn bury(&mut self, part: Part, line: &str) -> Result<bool> {
        let Ok(daemon) = self.cluster.daemon(part) else { return Ok(false) };
        if daemon.is_running()? {
            return Ok(false);
        }
        let dead = self.cluster.take(part).context("it is there")?;
        eventually("it says that the point was reached", || {
            ensure!(dead.said().contains(line), "{part:?} ended: {}", dead.said());
            Ok(())
        })?;
        self.cluster.revive(part)?;
        Ok(true)
    }

    /// Lets the process `part` fail as `plan` says in the middle of all that clients do, starts it again where it died, and checks what came
    /// of everything.
    fn sweep(&mut self, part: Part, plan: &str) -> Result<()> {
        self.history = Arc::default();
        self.history.fault(format!("{part:?} with {plan}"));
        let jobs = self.cluster.workload.jobs("")?.len();
        for tag in &self.states {
            self.history.record(What::Applying { tag: tag.clone(), jobs });
        }
        let state = format!("state {plan}");
        self.states.push(state.clone());
        let armed = [(VARIABLE, plan)];
        // The executor is started after the controller, so that its session is with the one that fails.
        self.cluster.kill(Part::Executor(0))?;
        if let Part::Controller(index) = part {
            self.cluster.kill(part)?;
            self.cluster.start_controller(index, &armed, true)?;
        }
        let line = format!("{FIRED}{} ", plan.split('=').next().unwrap_or_default());
        // Some die before they serve.
        let mut fired = eventually("the controller listens, or has ended", || {
            let listens = std::net::TcpStream::connect(("127.0.0.1", self.cluster.port(0))).is_ok();
            let ended = self.bury(part, &line)?;
            ensure!(listens || ended, "neither");
            Ok(ended)
        })?;
        let variables = if part == Part::Executor(0) { &armed[..] } else { &[] };
        self.cluster.start_executor(0, variables, true)?;
        let (caller, workload) = (self.caller(0)?, self.cluster.workload.clone());
        // Most is over in a moment, a claim that runs out takes 3 s, a loss 9 s.
        let work = async {
            let mut asked = Vec::new();
            for run in [Run { lines: 1300, ..short() }, long(300), Run { job: Job::Again, ..short() }] {
                let (id, acknowledged) = caller.submit(&run, PATIENCE).await?;
                ensure!(acknowledged, "{id} was not accepted in {PATIENCE:?}");
                asked.push((id, run));
            }
            caller.apply(&workload, &state).await?;
            caller.read_catalog().await;
            ensure!(caller.cancel(&asked[1].0, PATIENCE).await?, "nobody heard that it is to stop");
            for (id, _) in &asked {
                caller.watch(id, PATIENCE).await?.with_context(|| format!("{id} has not ended in {PATIENCE:?}"))?;
            }
            caller.list_jobs().await;
            anyhow::Ok(asked)
        };
        let handle = self.runtime.handle().clone();
        let asked = std::thread::scope(|scope| -> Result<_> {
            let working = scope.spawn(|| handle.block_on(work));
            while !working.is_finished() {
                std::thread::sleep(Duration::from_millis(10)); // how often a service manager looks; nothing waits for it
                fired |= self.bury(part, &line)?;
                // However its last session seems to go on: the controller that had it is dead and could not take it back.
                let executor = Part::Executor(0);
                let lives = part == executor || self.cluster.daemon(executor)?.is_running()?;
                ensure!(lives, "the executor gave up\n{}", self.cluster.said());
            }
            let done = working.join().map_err(|_| anyhow::anyhow!("a client panicked"))?;
            done.with_context(|| format!("{plan}\n{}", self.cluster.said()))
        })?;
        // What a process does beside its answers may come a moment after them.
        if !fired {
            eventually("the point is reached", || {
                let reached = self.bury(part, &line)? || self.cluster.daemon(part)?.said().contains(&line);
                ensure!(reached, "{plan}: the point was never reached");
                Ok(())
            })?;
        }
        self.asked = asked;
        let id = self.asked[0].0.clone();
        self.check(&caller).with_context(|| plan.to_owned())?;
        let seen = self.runtime.block_on(caller.look(&id, PATIENCE))?.context("there is no such execution")?;
        ensure!(seen.state == State::Succeeded, "{plan}: {id} is {} where nothing stood against it", seen.state);
        Ok(())
    }
}

/// Sweeps over these points of a process: each is killed there, and where there is an answer, loses it.
fn sweep(process: Process, names: &[&str], times: &[u64]) -> Result<()> {
    let mut trial = Trial::start(Shape { archive: true, ..Shape::small(2, 1) })?;
    let part = match process {
        Process::Controller => Part::Controller(0),
        Process::Executor => Part::Executor(0),
    };
    for name in names {
        let point = octavius_failpoint::find(name).context("no such point")?;
        for time in times {
            trial.sweep(part, &format!("{name}=kill@{time}"))?;
            if point.can_drop {
                trial.sweep(part, &format!("{name}=drop@{time}"))?;
            }
        }
    }
    Ok(())
}

/// The points of each test of the sweep, and at which times that they are reached they fail.
const SWEEPS: [(Process, &[&str], &[u64]); 7] = [
    (Process::Controller, &["store.commit"], &[1, 4, 9, 16]),
    (Process::Controller, &["store.commit.done"], &[2, 5, 10]),
    (Process::Controller, &["reply.execute", "reply.cancel", "reply.report", "reply.append-log"], &[1]),
    (Process::Controller, &["reply.apply", "session.announced", "assign", "assign.told", "apply.blobs", "apply.head"], &[1]),
    (Process::Controller, &["archive.put", "archive.put.done"], &[1, 2]),
    (Process::Executor, &["executor.assigned", "executor.starting", "executor.starting.told", "executor.started"], &[1]),
    (Process::Executor, &["executor.over", "executor.log-sent", "executor.reported"], &[1]),
];

macro_rules! sweeps {
    ($($test:ident: $index:literal;)*) => {
        $(#[test]
        fn $test() -> Result<()> {
            let (process, names, times) = SWEEPS[$index];
            sweep(process, names, times)
        })*
    };
}

sweeps! {
    sweep_before_transactions: 0;
    sweep_after_transactions: 1;
    sweep_replies: 2;
    sweep_sessions_assignments_and_applies: 3;
    sweep_the_archive: 4;
    sweep_starts: 5;
    sweep_ends: 6;
}

#[test]
fn the_sweep_leaves_no_point_out() {
    for point in POINTS {
        let sweeps = SWEEPS.iter().filter(|(process, names, _)| *process == point.process && names.contains(&point.name));
        let on_kubernetes = STARTS.iter().chain(&ENDS).filter(|name| **name == point.name).count();
        // Only the kubernetes runner comes by these; what both come by is visited with both.
        let of_a_job = point.name.starts_with("executor.job-");
        assert_eq!(sweeps.count(), usize::from(!of_a_job), "{}", point.name);
        assert_eq!(on_kubernetes, usize::from(point.process == Process::Executor), "{}", point.name);
    }
}

#[test]
fn a_plan_that_cannot_be_carried_out_is_refused() -> Result<()> {
    let world = octavius_tests::World::new()?;
    let refused = world.run_with(&["version"], &[(VARIABLE, "no.such.point=kill")])?.expect(2)?;
    ensure!(refused.stderr.contains("no.such.point"), "{refused:?}");
    Ok(())
}

#[test]
fn a_controller_that_is_killed_under_load_is_missed_for_less_than_5_s() -> Result<()> {
    let mut trial = Trial::start(Shape { faster: 1, ..Shape::small(2, 1) })?;
    let caller = trial.caller(1)?;
    for round in 0..4 {
        let running = trial.submit(&caller, long(2))?;
        trial.reaches(&caller, &running, State::Running)?;
        let killed = Instant::now();
        trial.cluster.kill(Part::Controller(round % 2))?;
        let next = trial.submit(&caller, short())?;
        trial.ended(&caller, &next)?;
        ensure!(killed.elapsed() < Duration::from_secs(5), "round {round}: {:?}", killed.elapsed());
        let seen = trial.ended(&caller, &running)?;
        ensure!(seen.state == State::Succeeded && seen.attempts.len() == 1, "{seen:?}");
        trial.cluster.start_controller(round % 2, &[], false)?;
    }
    trial.check(&caller)
}

#[test]
fn a_silent_network_costs_nothing_if_it_is_short_and_a_loss_if_it_is_long() -> Result<()> {
    let mut trial = Trial::start(Shape::small(2, 1))?;
    let caller = trial.caller(0)?;
    let links = [Link::Executor(0, 0), Link::Executor(0, 1)];
    let silent = |trial: &Trial, mode| links.iter().for_each(|link| trial.cluster.link(*link).set(mode));

    // Shorter than the 9 s after which an executor is given up: what ended meanwhile is told afterwards.
    let id = trial.submit(&caller, long(1))?;
    trial.reaches(&caller, &id, State::Running)?;
    silent(&trial, Mode::Blackhole(Direction::Both));
    trial.history.fault("silence of 4 s");
    std::thread::sleep(Duration::from_secs(4)); // the fault itself: how long it lasts is what is tested
    silent(&trial, Mode::Pass);
    let seen = trial.ended(&caller, &id)?;
    ensure!(seen.state == State::Succeeded && seen.attempts.len() == 1, "{seen:?}");

    // Longer: lost, and its late end stands beside.
    let id = trial.submit(&caller, long(2))?;
    trial.reaches(&caller, &id, State::Running)?;
    silent(&trial, Mode::Blackhole(Direction::Both));
    trial.history.fault("silence until the loss");
    let seen = trial.ended(&caller, &id)?;
    ensure!(seen.state == State::Lost, "{seen:?}");
    silent(&trial, Mode::Pass);
    eventually("its late end is told", || {
        let seen = trial.runtime.block_on(caller.look(&id, PATIENCE))?.context("gone")?;
        ensure!(seen.state == State::Lost && seen.attempts[0].late == Some(State::Succeeded), "{seen:?}");
        Ok(())
    })?;
    trial.check(&caller)
}

/// It was given the work, and sleeps before it says that it starts. When it wakes, the work is another's.
#[test]
fn an_executor_that_sleeps_between_claim_and_start_starts_nothing_when_it_wakes() -> Result<()> {
    let mut trial = Trial::start(Shape::small(2, 2))?;
    let caller = trial.caller(0)?;
    trial.cluster.kill(Part::Executor(1))?;
    trial.cluster.kill(Part::Executor(0))?;
    trial.cluster.start_executor(0, &[(VARIABLE, "executor.starting=stop")], false)?;
    let id = trial.submit(&caller, short())?;
    eventually("it sleeps", || {
        ensure!(trial.cluster.daemon(Part::Executor(0))?.said().contains(FIRED), "not yet");
        Ok(())
    })?;
    trial.history.fault("the executor that has the claim sleeps");
    trial.cluster.start_executor(1, &[], false)?;
    let seen = trial.ended(&caller, &id)?;
    ensure!(seen.state == State::Succeeded && seen.attempts.iter().filter(|attempt| attempt.started).count() == 1, "{seen:?}");
    trial.cluster.kill(Part::Executor(1))?;
    trial.cluster.wake(Part::Executor(0))?;
    // It is as good as new, and what it runs now is all that it runs: the ledger tells.
    let next = trial.submit(&caller, short())?;
    ensure!(trial.ended(&caller, &next)?.state == State::Succeeded);
    trial.check(&caller)
}

#[test]
fn when_most_executors_vanish_at_once_nothing_is_given_up() -> Result<()> {
    let mut trial = Trial::start(Shape::small(2, 6))?;
    let caller = trial.caller(0)?;
    let ids = (0..6).map(|_| trial.submit(&caller, long(2))).collect::<Result<Vec<_>>>()?;
    for id in &ids {
        trial.reaches(&caller, id, State::Running)?;
    }
    let links: Vec<_> = (0..6).flat_map(|executor| [Link::Executor(executor, 0), Link::Executor(executor, 1)]).collect();
    links.iter().for_each(|link| trial.cluster.link(*link).set(Mode::Blackhole(Direction::Both)));
    trial.history.fault("no executor is heard for 14 s, where one alone is given up after 9 s");
    std::thread::sleep(Duration::from_secs(14)); // the fault itself
    links.iter().for_each(|link| trial.cluster.link(*link).set(Mode::Pass));
    for id in &ids {
        let seen = trial.ended(&caller, id)?;
        ensure!(seen.state == State::Succeeded && seen.attempts.len() == 1, "{seen:?}");
    }
    for controller in 0..2 {
        let said = trial.cluster.daemon(Part::Controller(controller))?.said();
        ensure!(said.contains("over half of the executors vanished at once"), "nobody is warned: {said}");
    }
    trial.check(&caller)
}

/// A controller without its store has sessions and nothing to say in them: it lets its executors go to one that has it.
#[test]
fn a_controller_cut_off_from_the_store_does_not_keep_its_executors() -> Result<()> {
    // At the real pace: at a twentieth, an executor gives every controller up that waits for an answer of the store.
    let mut trial = Trial::start(Shape { faster: 1, ..Shape::small(2, 1) })?;
    let caller = trial.caller(1)?;
    // Its session is with the first controller, which it tries first.
    let before = trial.submit(&caller, short())?;
    ensure!(trial.ended(&caller, &before)?.state == State::Succeeded);
    trial.cluster.link(Link::Etcd(0, 0)).set(Mode::Blackhole(Direction::Both));
    trial.history.fault("controller 0 does not hear the etcd");
    let id = trial.submit(&caller, short())?;
    let seen = trial.ended(&caller, &id)?;
    ensure!(seen.state == State::Succeeded && seen.attempts.len() == 1, "{seen:?}");
    // It does not come back to the one that is cut off, and is not missed.
    let id = trial.submit(&caller, short())?;
    ensure!(trial.ended(&caller, &id)?.state == State::Succeeded);
    trial.cluster.link(Link::Etcd(0, 0)).set(Mode::Pass);
    trial.check(&caller)
}

/// A connection of one's own to a controller, without a client that tries again.
pub(crate) async fn connection(trial: &Trial, controller: usize) -> Result<Connection> {
    let token = std::fs::read_to_string(trial.cluster.world.path("admin.token"))?;
    let address = Address::parse(&trial.cluster.link(Link::Clients(controller)).address().to_string())?;
    Ok(Connection::open(&[address], Some(token.trim()), PATIENCE).await?)
}

#[test]
fn a_call_that_is_made_many_times_through_all_controllers_is_done_once() -> Result<()> {
    let mut trial = Trial::start(Shape::small(2, 1))?;
    let caller = trial.caller(0)?;
    let id = trial.submit(&caller, long(60))?;
    let run = short();
    let request = v1::ExecuteRequest {
        id: octavius_core::ExecutionId::generate().to_string(),
        job: run.job.name().to_owned(),
        arguments: run.arguments().into_iter().collect(),
        ..v1::ExecuteRequest::default()
    };
    let answers = trial.runtime.block_on(async {
        let connections = [connection(&trial, 0).await?, connection(&trial, 1).await?];
        let mut calls = tokio::task::JoinSet::new();
        for number in 0..40 {
            let (connection, request, id) = (connections[number % 2].clone(), request.clone(), id.clone());
            calls.spawn(async move {
                connection.executions().cancel_execution(v1::CancelExecutionRequest { id }).await?;
                Ok::<_, tonic::Status>(connection.executions().execute(request).await?.into_inner().id)
            });
        }
        calls.join_all().await.into_iter().collect::<Result<Vec<_>, _>>().map_err(anyhow::Error::from)
    })?;
    ensure!(answers.iter().all(|answer| *answer == request.id), "{answers:?}");
    let seen = trial.ended(&caller, &request.id)?;
    ensure!(seen.state == State::Succeeded && seen.attempts.len() == 1, "{seen:?}");
    ensure!(trial.ended(&caller, &id)?.state == State::Cancelled);
    trial.check(&caller)
}

/// Applies `jobs` against `parent` on a connection of its own.
async fn apply(connection: &Connection, messages: Vec<v1::ApplyRequest>) -> Result<u64, tonic::Status> {
    let answer = connection.catalog().apply(tokio_stream::iter(messages)).await?;
    Ok(answer.into_inner().revision.unwrap_or_default().number)
}

async fn head(connection: &Connection) -> Result<u64> {
    let head = connection.catalog().get_head(v1::GetHeadRequest { catalog: CATALOG.to_owned() }).await?;
    Ok(head.into_inner().revision.unwrap_or_default().number)
}

#[test]
fn of_fifty_applies_at_once_one_wins() -> Result<()> {
    let trial = Trial::start(Shape::small(2, 0))?;
    let answers = trial.runtime.block_on(async {
        let connections = [connection(&trial, 0).await?, connection(&trial, 1).await?];
        let parent = head(&connections[0]).await?;
        let mut racers = tokio::task::JoinSet::new();
        for number in 0..50 {
            let jobs = trial.cluster.workload.jobs(&format!("racer {number}"))?;
            let (connection, messages) = (connections[number % 2].clone(), Workload::apply(&jobs, parent, &[]));
            racers.spawn(async move { apply(&connection, messages).await });
        }
        let answers = racers.join_all().await;
        ensure!(head(&connections[1]).await? == parent + 1);
        Ok(answers)
    })?;
    let won = answers.iter().filter(|answer| answer.is_ok()).count();
    let aborted = answers.iter().filter(|answer| answer.as_ref().is_err_and(|status| status.code() == Code::Aborted)).count();
    ensure!((won, aborted) == (1, 49), "{won} won, {aborted} were aborted: {answers:?}");
    Ok(())
}

#[test]
fn a_client_that_goes_in_the_middle_of_an_apply_changes_nothing() -> Result<()> {
    let trial = Trial::start(Shape::small(1, 0))?;
    let jobs = trial.cluster.workload.jobs("never")?;
    trial.runtime.block_on(async {
        let connection = connection(&trial, 0).await?;
        let parent = head(&connection).await?;
        // The header and some definitions go out, and then nothing comes but the end of the connection.
        for sent in 0..2 {
            let (sender, messages) = tokio::sync::mpsc::channel(4);
            for message in Workload::apply(&jobs, parent, &[]).into_iter().take(sent) {
                sender.send(message).await?;
            }
            let mut catalog = connection.catalog();
            let stream = tokio_stream::wrappers::ReceiverStream::new(messages);
            let mut call = tokio::spawn(async move { catalog.apply(stream).await });
            // Again and again: where it was not on its way yet, it goes over the next connection.
            let ended = async {
                loop {
                    trial.cluster.link(Link::Clients(0)).reset();
                    if let Ok(answer) = tokio::time::timeout(Duration::from_millis(50), &mut call).await {
                        return answer;
                    }
                }
            };
            let answer = tokio::time::timeout(Duration::from_secs(30), ended).await??;
            ensure!(answer.is_err(), "half an apply was answered with {answer:?}");
            drop(sender);
        }
        let after = head(&self::connection(&trial, 0).await?).await?;
        ensure!(after == parent, "revision {after} where {parent} was");
        let messages = Workload::apply(&jobs, parent, &[]);
        let whole = apply(&self::connection(&trial, 0).await?, messages).await?;
        ensure!(whole == parent + 1);
        Ok(())
    })
}
