//! What an execution may become, said a second time and as plainly as can be: no store, no races, no clocks but one. What the engine makes of
//! its records is held against this.

use std::collections::BTreeMap;
use std::time::Duration;

use octavius_core::definition::{Concurrency, OnLost, WhenFull};
use octavius_core::{Execution, ExecutionId, State, Timing};

/// One attempt, as far as the model looks.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Try {
    pub(super) number: u32,
    pub(super) executor: String,
    pub(super) nonce: u64,
    pub(super) started: bool,
    pub(super) running: bool,
    pub(super) end: Option<State>,
    pub(super) late: Option<State>,
}

/// An execution, as far as the model looks.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Shape {
    pub(super) state: State,
    pub(super) cancelled: bool,
    pub(super) tries: Vec<Try>,
    /// The concurrency slot of its job that it has.
    pub(super) slot: Option<u32>,
}

impl Shape {
    /// What a record says.
    pub(super) fn of(execution: &Execution) -> Self {
        let last = execution.attempts.last().map(|last| last.number);
        let tries = execution.attempts.iter().map(|attempt| Try {
            number: attempt.number,
            executor: attempt.executor.to_string(),
            nonce: attempt.nonce,
            started: attempt.starting_at.is_some(),
            // Of older attempts it is forgotten in time.
            running: attempt.running_at.is_some() && Some(attempt.number) == last,
            end: attempt.ending.as_ref().map(|ending| ending.outcome),
            late: attempt.late.as_ref().map(|ending| ending.outcome),
        });
        Self { state: execution.state, cancelled: execution.cancel.is_some(), tries: tries.collect(), slot: execution.slot }
    }

    /// The attempt that has it now.
    pub(super) fn held(&self) -> Option<&Try> {
        let held = matches!(self.state, State::Claimed | State::Starting | State::Running);
        self.tries.last().filter(|_| held)
    }

    fn is_held_by(&self, nonce: u64) -> bool {
        self.held().is_some_and(|held| held.nonce == nonce)
    }
}

/// What somebody says of an attempt.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Word {
    Starts,
    Runs,
    Ends(State),
    GivesBack,
}

/// What may happen to an execution.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Happening {
    Claim {
        executor: String,
        nonce: u64,
        slot: Option<u32>,
    },
    /// An executor's word, of the attempt with this nonce.
    Word(u64, Word),
    /// The claim comes to nothing, or what was started is given up.
    Lose(u64),
    Cancel,
    Expire,
    /// It was lost so long ago that nothing of it runs.
    FreeSlot,
}

impl Happening {
    /// What it is where it meets an execution in this state, for the count of what a run of all plays has seen.
    pub(super) fn name(&self, state: State) -> String {
        let what = match self {
            Self::Claim { .. } => "claimed".to_owned(),
            Self::Word(_, Word::Ends(outcome)) => format!("ended {outcome}"),
            Self::Word(_, word) => format!("{word:?}").to_lowercase(),
            Self::Lose(_) => "given up".to_owned(),
            Self::Cancel => "cancelled".to_owned(),
            Self::Expire => "expired".to_owned(),
            Self::FreeSlot => "slot freed".to_owned(),
        };
        format!("{state}: {what}")
    }
}

/// An execution in the model: what was asked for, and what has become of it.
#[derive(Debug, Clone)]
pub(super) struct Run {
    pub(super) job: String,
    pub(super) user: String,
    pub(super) argument: String,
    pub(super) retries: usize,
    pub(super) on_lost: OnLost,
    pub(super) concurrency: Option<Concurrency>,
    pub(super) shape: Shape,
    /// When it was last claimed and started, ended, since when it waits and when it may be claimed: since the beginning of the play.
    pub(super) claimed: Duration,
    pub(super) started: Duration,
    pub(super) ended: Duration,
    pub(super) waits_since: Duration,
    pub(super) not_before: Duration,
    pub(super) timeout: Duration,
    /// Whether its submission was answered.
    pub(super) acknowledged: bool,
}

impl Run {
    /// What becomes of it; none where it may not happen, and the same where it changes nothing.
    pub(super) fn after(&self, what: &Happening, now: Duration, timing: &Timing) -> Option<Shape> {
        let mut next = self.shape.clone();
        let over = self.shape.state.is_terminal();
        let waited = now.saturating_sub(self.waits_since) >= timing.queue_timeout;
        match what {
            Happening::Claim { executor, nonce, slot } if self.shape.state == State::Queued => {
                if let Some(concurrency) = self.concurrency {
                    let slot = self.shape.slot.or(*slot)?;
                    next.slot = (slot < concurrency.limit).then_some(slot);
                    next.slot?;
                }
                let number = self.shape.tries.last().map_or(1, |last| last.number + 1);
                let (executor, nonce) = (executor.clone(), *nonce);
                next.tries.iter_mut().for_each(|old| old.running = false);
                next.tries.push(Try { number, executor, nonce, started: false, running: false, end: None, late: None });
                next.state = State::Claimed;
            }
            Happening::Word(nonce, word) if self.shape.is_held_by(*nonce) => {
                let held = next.tries.last_mut()?;
                match (word, self.shape.state) {
                    (Word::Starts, State::Claimed) => (held.started, next.state) = (true, State::Starting),
                    (Word::Runs, State::Starting) => (held.running, next.state) = (true, State::Running),
                    (Word::Starts, _) | (Word::Runs, State::Running) => {}
                    (Word::GivesBack, State::Claimed) => next.state = if waited { State::TimedOut } else { State::Queued },
                    // What never started can neither have succeeded nor be lost.
                    (Word::Ends(State::Lost), State::Claimed) => {
                        next.state = if waited { State::TimedOut } else { State::Queued }
                    }
                    (Word::Ends(State::Succeeded), State::Claimed) | (Word::Runs | Word::GivesBack, _) => return None,
                    (Word::Ends(outcome), _) => {
                        held.end = Some(*outcome);
                        next.state = if self.goes_again(*outcome) { State::Queued } else { *outcome };
                    }
                }
            }
            // What comes after a loss is kept beside it; what else is said of an attempt that is over changes nothing.
            Happening::Word(nonce, Word::Ends(outcome)) => {
                let old = next.tries.iter_mut().find(|old| old.nonce == *nonce)?;
                match (old.end, old.late) {
                    (Some(State::Lost), None) => old.late = Some(*outcome),
                    (Some(_), _) => {}
                    (None, _) => return None,
                }
                // Now it is known that nothing of it runs.
                if self.shape.state == State::Lost && next.tries.last()?.late.is_some() {
                    next.slot = None;
                }
            }
            Happening::Lose(nonce) if self.shape.is_held_by(*nonce) => {
                if self.shape.state == State::Claimed {
                    next.state = if waited { State::TimedOut } else { State::Queued };
                } else {
                    next.tries.last_mut()?.end = Some(State::Lost);
                    next.state = if self.goes_again(State::Lost) { State::Queued } else { State::Lost };
                }
            }
            Happening::FreeSlot | Happening::Cancel if self.shape.state == State::Lost => next.slot = None,
            Happening::Cancel if !over => {
                next.cancelled = true;
                if matches!(self.shape.state, State::Queued | State::Claimed) {
                    next.state = State::Cancelled;
                }
            }
            Happening::Expire if self.shape.state == State::Queued && waited => next.state = State::TimedOut,
            _ => return None,
        }
        // A slot is kept by what may run still: what was given up, until more is known. And by what was promised one at its submission.
        let promised = self.concurrency.is_some_and(|concurrency| concurrency.when_full == WhenFull::Reject);
        let given_up = matches!(what, Happening::Lose(_)) && next.state == State::Lost;
        if next.state != self.shape.state && (next.state.is_terminal() && !given_up || next.state == State::Queued && !promised) {
            next.slot = None;
        }
        Some(next)
    }

    /// Whether another attempt follows one that ended so.
    fn goes_again(&self, outcome: State) -> bool {
        let failures = self.shape.tries.iter().filter(|one| one.end == Some(State::Failed)).count();
        let again = match outcome {
            State::Failed => failures < self.retries,
            State::Lost => self.on_lost == OnLost::Retry,
            _ => false,
        };
        again && !self.shape.cancelled
    }

    /// Takes over what has become of it.
    pub(super) fn becomes(&mut self, next: Shape, now: Duration, timing: &Timing) {
        if next.state != self.shape.state {
            if next.state.is_terminal() {
                self.ended = now;
            }
            if next.state == State::Claimed {
                self.claimed = now;
            }
            if next.state == State::Starting {
                self.started = now;
            }
            // The wait goes on where a claim came to nothing, and begins anew after an attempt that started.
            if next.state == State::Queued && next.tries.last().is_some_and(|last| last.end.is_some()) {
                self.waits_since = now;
                let starts = next.tries.iter().filter(|one| one.started).count();
                let pauses =
                    std::iter::successors(Some(timing.back_off_min), |pause| Some((*pause * 2).min(timing.back_off_max)));
                self.not_before = now + pauses.take(starts).last().unwrap_or_default();
            }
        }
        self.shape = next;
    }
}

/// Everything that was submitted.
pub(super) type Runs = BTreeMap<ExecutionId, Run>;

/// What must stand in the store beside the records: who waits, who holds what, what is over.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct Indexes {
    pub(super) queued: Vec<ExecutionId>,
    /// Executor, execution, attempt, nonce, whether it has started, whether it is to stop.
    pub(super) owned: Vec<(String, ExecutionId, u32, u64, bool, bool)>,
    pub(super) over: Vec<ExecutionId>,
    /// Job, number, who has it, and whether that was lost.
    pub(super) slots: Vec<(String, u32, ExecutionId, bool)>,
    pub(super) by_job: Vec<(String, ExecutionId)>,
    pub(super) by_user: Vec<(String, ExecutionId)>,
}

impl Indexes {
    /// As the model has it.
    pub(super) fn of(runs: &Runs) -> Self {
        let mut indexes = Self::default();
        for (id, run) in runs {
            let shape = &run.shape;
            if shape.state == State::Queued {
                indexes.queued.push(*id);
            }
            if let Some(held) = shape.held() {
                let started = shape.state != State::Claimed;
                indexes.owned.push((held.executor.clone(), *id, held.number, held.nonce, started, shape.cancelled));
            }
            if shape.state.is_terminal() {
                indexes.over.push(*id);
            }
            if let Some(slot) = shape.slot {
                indexes.slots.push((run.job.clone(), slot, *id, shape.state == State::Lost));
            }
            indexes.by_job.push((run.job.clone(), *id));
            indexes.by_user.push((run.user.clone(), *id));
        }
        indexes.sorted()
    }

    pub(super) fn sorted(mut self) -> Self {
        self.queued.sort();
        self.owned.sort();
        self.over.sort();
        self.slots.sort();
        self.by_job.sort();
        self.by_user.sort();
        self
    }
}
