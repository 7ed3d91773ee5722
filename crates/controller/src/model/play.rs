//! A play: commands, made from a seed, carried out on the real engine, and after each of them a look at everything that was written: each
//! change must be one that the model allows for what was just done, and the model and the store must then say the same.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use octavius_core::definition::Concurrency;
use octavius_core::execution::Event;
use octavius_core::{ExecutionId, JobDefinition, State, label};
use octavius_proto::Fault;
use octavius_proto::v1::{self, Verdict};
use octavius_store::{Key, Revision, key};

use super::commands::{Command, What};
use super::memory::{Mishap, Rival};
use super::place::{Held, Node, Place, Robot, Said, TIMING, execute, jobs, request};
use super::spec::{Run, Runs, Word};
use crate::engine::EngineError;

const MIRRORS: [fn() -> Key; 6] = [key::queue, key::owned_by_all, key::presences, key::slots, key::pauses, key::executors];
pub(super) const USERS: [&str; 2] = ["ann", "bob"];
const OUTCOMES: [State; 8] = [
    State::Succeeded,
    State::Succeeded,
    State::Succeeded,
    State::Failed,
    State::Failed,
    State::Failed,
    State::TimedOut,
    State::Lost,
];

/// What is known of why something may be written during a command.
#[derive(Debug, Default)]
pub(super) struct Cause {
    pub(super) said: Vec<Said>,
    pub(super) cancels: bool,
    pub(super) turn: bool,
    /// An executor that has just said what it holds.
    pub(super) hello: Option<(usize, BTreeSet<(ExecutionId, u64)>)>,
    pub(super) submits: Vec<Asked>,
}

/// A submission, as it was asked for.
#[derive(Debug, Clone)]
pub(super) struct Asked {
    pub(super) id: ExecutionId,
    pub(super) job: usize,
    pub(super) user: usize,
    pub(super) argument: String,
    pub(super) once: Option<usize>,
}

impl Asked {
    fn request(&self) -> v1::ExecuteRequest {
        let once = self.once.map(|once| format!("key {once}")).unwrap_or_default();
        request(self.id, self.job, &self.argument, &once)
    }
}

/// A play under way.
pub(super) struct Play {
    pub(super) place: Place,
    pub(super) runs: Runs,
    pub(super) asked: Vec<Asked>,
    pub(super) said: Vec<Said>,
    pub(super) seen: Revision,
    /// Until when a controller may give nobody up, and which executors had a session with whom when the command began.
    pub(super) grace: [Duration; 2],
    pub(super) lines: Vec<Option<usize>>,
    /// Since when the store shows nobody of an executor's name; none while it does.
    pub(super) gone: BTreeMap<String, Option<Duration>>,
    /// Whether something went wrong with the store during this command.
    pub(super) troubled: bool,
    pub(super) serial: u128,
    /// Jobs that are paused, by their folded names, and `.all`; executors that drain.
    pub(super) paused: BTreeSet<String>,
    pub(super) draining: BTreeSet<String>,
    /// What happened, and how often.
    pub(super) happened: BTreeMap<String, usize>,
}

pub(super) type Checked = Result<(), String>;

macro_rules! hold {
    ($condition:expr, $($message:tt)*) => {
        if !$condition {
            return Err(format!($($message)*));
        }
    };
}
pub(super) use hold;

impl Play {
    pub(super) async fn open() -> Self {
        let place = Place::open().await;
        let seen = place.memory.revision();
        Self {
            place,
            runs: Runs::new(),
            asked: Vec::new(),
            said: Vec::new(),
            seen,
            grace: [Duration::ZERO; 2],
            lines: vec![None; 3],
            gone: BTreeMap::new(),
            troubled: false,
            serial: 0,
            paused: BTreeSet::new(),
            draining: BTreeSet::new(),
            happened: BTreeMap::new(),
        }
    }

    /// Carries out a command and looks at what came of it.
    pub(super) async fn carry_out(&mut self, command: Command) -> Checked {
        let mut cause = Cause::default();
        self.lines = self.place.robots.iter().map(|robot| robot.line.as_ref().map(|line| line.node)).collect();
        self.troubled = self.place.nodes.iter().any(|node| node.view.is_away());
        if let Some((node, after, mishap)) = command.mishap {
            let other = &self.place.nodes[1 - node];
            let (engine, executions) = (other.engine.clone(), other.executions.clone());
            // Of what is there it is cancelled in between; of what is to come, another comes first with the same idempotency key.
            let asked = match command.what {
                What::Submit { job, user, once, .. } if mishap == Mishap::Overtaken => Some(self.ask(job, user, once)),
                _ => None,
            };
            cause.submits.extend(asked.clone());
            let rival: Rival = Box::new(move |id| {
                Box::pin(async move {
                    let cancel = Event::Cancel { by: "rival".to_owned() };
                    if let (Err(EngineError::NotFound(_)), Some(asked)) = (engine.step(id, cancel).await, asked) {
                        let _ = execute(&executions, USERS[asked.user], asked.request()).await;
                    }
                })
            });
            cause.cancels = mishap == Mishap::Overtaken;
            self.place.nodes[node].view.arm(after, mishap, Some(rival));
        }
        let answer = self.act(command.what, &mut cause).await;
        let back = self.place.settle().await;
        self.take_in(back, &mut cause).await?;
        for node in &self.place.nodes {
            self.troubled |= node.view.disarm();
        }
        self.explain(&cause)?;
        answer.and_then(|answer| self.judge(&answer))?;
        self.compare()?;
        // By now all that had to be tried again was.
        if matches!(command.what, What::Pass { .. }) && command.mishap.is_none() && self.is_calm() {
            self.goes_on()
        } else {
            Ok(())
        }
    }

    /// Whether anything keeps what should happen at once from happening.
    fn is_calm(&self) -> bool {
        !self.troubled && self.place.nodes.iter().all(|node| !node.view.is_away() && !node.view.lags())
    }

    /// Nothing waits that could run, and nobody runs what was to be stopped without knowing.
    fn goes_on(&self) -> Checked {
        for robot in self.place.robots.iter().filter(|robot| robot.line.is_some()) {
            let name = robot.id.as_str();
            let held = self.runs.values().filter(|run| run.shape.held().is_some_and(|held| held.executor == name)).count();
            let has_room = held.max(robot.held.len()) < robot.capacity as usize;
            let goes = |run: &Run| {
                let has_slot = |concurrency: Concurrency| slots_of(&self.runs, &run.job) < concurrency.limit as usize;
                run.shape.state == State::Queued
                    && !self.is_paused(&run.job)
                    && !self.draining.contains(name)
                    && run.not_before <= self.place.now()
                    && label::matches(&definition(run).executor, &robot.labels)
                    && (run.shape.slot.is_some() || run.concurrency.is_none_or(has_slot))
            };
            let waits = self.runs.iter().find(|(_, run)| goes(run));
            hold!(!has_room || waits.is_none(), "{name} has {held} of {}, and there waits {waits:?}", robot.capacity);
            for held in &robot.held {
                let run = &self.runs[&held.id];
                let to_stop = run.shape.cancelled && run.shape.held().is_some_and(|one| one.nonce == held.nonce);
                hold!(!to_stop || held.stop, "{name} was not told to stop {}", held.id);
            }
        }
        Ok(())
    }

    pub(super) fn is_paused(&self, job: &str) -> bool {
        self.paused.contains(job) || self.paused.contains(".all")
    }

    /// Lets all be well, and everything come to its end.
    pub(super) async fn finish(&mut self) -> Checked {
        for node in 0..2 {
            self.carry_out(What::Back { node }.into()).await?;
            self.carry_out(What::CatchUp { node }.into()).await?;
        }
        for job in (0..jobs().len()).map(Some).chain([None]) {
            self.carry_out(What::Pause { node: 0, job, paused: false }.into()).await?;
        }
        for robot in 0..self.place.robots.len() {
            self.carry_out(What::Drain { node: 1, robot, drains: false }.into()).await?;
        }
        for round in 0..20 {
            for robot in 0..self.place.robots.len() {
                if self.place.robots[robot].line.is_none() {
                    self.carry_out(What::Connect { robot, node: (round + robot) % 2, forgets: 0, anew: false }.into()).await?;
                }
                for held in (0..self.place.robots[robot].held.len()).rev() {
                    for _ in 0..2 {
                        self.carry_out(What::Step { robot, held, node: round % 2, outcome: 1 }.into()).await?;
                    }
                }
            }
            self.carry_out(What::Turn { node: round % 2 }.into()).await?;
            if self.runs.values().all(|run| run.shape.state.is_terminal()) {
                return Ok(());
            }
            self.carry_out(What::Pass { seconds: 10 }.into()).await?;
        }
        let left: Vec<_> = self.runs.iter().filter(|(_, run)| !run.shape.state.is_terminal()).collect();
        Err(format!("these never end: {left:?}"))
    }

    /// What executors said by themselves, until they have nothing more to say.
    async fn take_in(&mut self, mut back: Vec<Said>, cause: &mut Cause) -> Checked {
        for _ in 0..20 {
            if back.is_empty() {
                return Ok(());
            }
            for said in std::mem::take(&mut back) {
                cause.said.push(said.clone());
                // To the controller that it has its session with, as a real one does.
                let line = self
                    .place
                    .robots
                    .iter()
                    .find(|robot| robot.id.as_str() == said.principal.user)
                    .and_then(|robot| robot.line.as_ref());
                let node = line.map_or(0, |line| line.node);
                let _ = self.place.nodes[node].report(&said).await; // where it fails, the claim runs out
            }
            back = self.place.settle().await;
        }
        Err("an executor without room is given something again and again".to_owned())
    }

    async fn act(&mut self, what: What, cause: &mut Cause) -> Result<Answer, String> {
        match what {
            What::Submit { node, job, user, once } => {
                let asked = self.ask(job, user, once);
                return Ok(self.submit(node, asked, cause).await);
            }
            What::Resubmit { node, earlier, other } => {
                if let Some(mut asked) = pick(&self.asked, earlier).cloned() {
                    if other {
                        asked.argument.push('0');
                    }
                    return Ok(self.submit(node, asked, cause).await);
                }
            }
            What::Step { robot, held, node, outcome } => return Ok(self.step(robot, held, node, outcome, cause).await),
            What::GiveBack { robot, held, node } => {
                let one = &self.place.robots[robot];
                if let Some(held) = pick(&one.held, held).filter(|held| !held.started).cloned() {
                    let answer = self.say(node, said_of(one, &held, Word::GivesBack), cause).await;
                    if matches!(&answer, Answer::Said(_, Ok(_))) {
                        self.place.robots[robot].held.retain(|one| one.nonce != held.nonce);
                    }
                    return Ok(answer);
                }
            }
            What::Repeat { said, node } => {
                if let Some(said) = pick(&self.said, said).cloned() {
                    return Ok(self.say(node, said, cause).await);
                }
            }
            What::Cancel { node, run } => {
                if let Some(id) = index(self.runs.len(), run).and_then(|at| self.runs.keys().nth(at).copied()) {
                    cause.cancels = true;
                    return Ok(Answer::Cancelled(id, self.place.nodes[node].cancel(USERS[0], id).await));
                }
            }
            What::Connect { robot, node, forgets, anew } => {
                let one = &mut self.place.robots[robot];
                if anew {
                    one.instance += 1;
                    one.line = None;
                    self.place.settle().await;
                }
                let one = &mut self.place.robots[robot];
                one.held.truncate(one.held.len().saturating_sub(forgets));
                cause.hello = Some((robot, one.held.iter().map(|held| (held.id, held.nonce)).collect()));
                let _ = one.connect(node, &self.place.nodes).await; // it may be refused; then it has no session
            }
            What::HangUp { robot } => self.place.robots[robot].line = None,
            What::Pass { seconds } => {
                let back = self.place.pass(Duration::from_secs(seconds)).await;
                self.take_in(back, cause).await?;
            }
            What::Turn { node } => {
                cause.turn = true;
                self.place.nodes[node].reconciler.turn().await;
            }
            What::Pause { node, job, paused } => {
                return Ok(Answer::Paused(job, paused, self.place.nodes[node].pause(job, paused).await));
            }
            What::Drain { node, robot, drains } => {
                let id = self.place.robots[robot].id.clone();
                return Ok(Answer::Drained(robot, drains, self.place.nodes[node].drain(&id, drains).await));
            }
            What::Lag { node, mirror } => self.place.nodes[node].view.lag(&MIRRORS[mirror]()),
            What::CatchUp { node } => self.place.nodes[node].view.catch_up(),
            What::Break { node, mirror } => self.place.nodes[node].view.break_off(&MIRRORS[mirror]()),
            What::Away { node } => {
                self.troubled = true;
                self.place.nodes[node].view.set_away(true);
            }
            What::Back { node } => {
                if self.place.nodes[node].view.is_away() {
                    self.place.nodes[node].view.set_away(false);
                    self.grace[node] = self.place.now() + TIMING().outage_grace;
                }
            }
            What::Restart { node } => {
                self.place.nodes[node].kill();
                self.place.settle().await;
                self.place.nodes[node] = Node::start(&self.place.memory, node, &self.place.clock);
            }
        }
        Ok(Answer::None)
    }

    /// A request under a new id.
    fn ask(&mut self, job: usize, user: usize, once: Option<usize>) -> Asked {
        self.serial += 1;
        let millis = u128::try_from(self.place.clock.now().as_millisecond()).unwrap();
        let id = ExecutionId::from_bits((millis << 80) | self.serial);
        let asked = Asked { id, job, user, argument: self.serial.to_string(), once };
        self.asked.push(asked.clone());
        asked
    }

    async fn submit(&mut self, node: usize, asked: Asked, cause: &mut Cause) -> Answer {
        cause.submits.push(asked.clone());
        let request = asked.request();
        Answer::Submitted(asked.clone(), execute(&self.place.nodes[node].executions, USERS[asked.user], request).await)
    }

    /// The next step of something that an executor has; what it hears then, it goes by.
    async fn step(&mut self, robot: usize, held: usize, node: usize, outcome: usize, cause: &mut Cause) -> Answer {
        let one = &self.place.robots[robot];
        let Some(held) = pick(&one.held, held).cloned() else { return Answer::None };
        let word = match (held.started, outcome % 3) {
            (false, _) if held.stop => Word::Ends(State::Cancelled),
            (false, _) => Word::Starts,
            (true, 0) if !held.stop => Word::Runs,
            (true, _) if held.stop => Word::Ends(State::Cancelled),
            (true, _) => Word::Ends(OUTCOMES[outcome % OUTCOMES.len()]),
        };
        let answer = self.say(node, said_of(one, &held, word), cause).await;
        if let Answer::Said(_, Ok(verdict)) = &answer {
            let robot = &mut self.place.robots[robot];
            match (verdict, word) {
                (Verdict::Accepted, Word::Starts) => {
                    robot.held.iter_mut().filter(|one| one.nonce == held.nonce).for_each(|one| one.started = true);
                }
                (Verdict::Accepted, Word::Runs) => {}
                _ => robot.held.retain(|one| one.nonce != held.nonce),
            }
        }
        answer
    }

    async fn say(&mut self, node: usize, said: Said, cause: &mut Cause) -> Answer {
        self.said.push(said.clone());
        cause.said.push(said.clone());
        let verdict = self.place.nodes[node].report(&said).await;
        Answer::Said(said, verdict)
    }
}

/// The definition that an execution is of.
pub(super) fn definition(run: &Run) -> &'static JobDefinition {
    jobs().iter().find(|job| job.name.folded() == run.job).unwrap()
}

/// How many slots of a job are taken.
pub(super) fn slots_of(runs: &Runs, job: &str) -> usize {
    runs.values().filter(|run| run.job == job && run.shape.slot.is_some()).count()
}

/// What was answered.
pub(super) enum Answer {
    None,
    Said(Said, Result<Verdict, Fault>),
    Cancelled(ExecutionId, Result<(), Fault>),
    Paused(Option<usize>, bool, Result<(), Fault>),
    Drained(usize, bool, Result<(), Fault>),
    Submitted(Asked, Result<ExecutionId, Fault>),
}

fn index(length: usize, number: usize) -> Option<usize> {
    number.checked_rem(length)
}

fn pick<T>(all: &[T], number: usize) -> Option<&T> {
    all.get(index(all.len(), number)?)
}

fn said_of(robot: &Robot, held: &Held, word: Word) -> Said {
    Said { principal: robot.principal.clone(), id: held.id, attempt: held.attempt, nonce: held.nonce, word }
}
