//! What is looked at after each command of a play: that every change is one that the model allows, that what was answered is so, and that the
//! store and the model then say the same.

use std::time::Duration;

use octavius_core::definition::WhenFull;
use octavius_core::{Execution, ExecutionId, State, label};
use octavius_proto::v1::Verdict;
use octavius_proto::{Fault, reason};
use octavius_store::record::ExecutorRecord;
use octavius_store::{Event, Key, codec, key};

use super::memory::Made;
use super::place::{Said, TIMING, jobs};
use super::play::{Answer, Asked, Cause, Checked, Play, USERS, definition, hold, slots_of};
use super::spec::{Happening, Indexes, Run, Shape, Try, Word};

impl Play {
    /// Finds for each change of a record what it is in the model; there must be something, and it must be allowed.
    pub(super) fn explain(&mut self, cause: &Cause) -> Checked {
        let made = self.place.memory.made_after(self.seen);
        for made in made {
            self.seen = made.revision;
            for event in &made.events {
                if let Some(executor) = event.key().as_str().strip_prefix("presence/") {
                    let gone = matches!(event, Event::Delete(_)).then(|| self.place.time(made.at));
                    self.gone.insert(executor.to_owned(), gone);
                }
                if let Some(job) = event.key().as_str().strip_prefix("paused/") {
                    match event {
                        Event::Put(_) => self.paused.insert(job.to_owned()),
                        Event::Delete(_) => self.paused.remove(job),
                    };
                }
                if let Event::Put(entry) = event
                    && event.key().as_str().starts_with(key::executors().as_str())
                {
                    let record: ExecutorRecord = codec::decode(entry).map_err(|error| error.to_string())?;
                    match record.draining {
                        Some(_) => self.draining.insert(record.id.to_string()),
                        None => self.draining.remove(record.id.as_str()),
                    };
                }
                if !event.key().as_str().starts_with("exec/") {
                    continue;
                }
                let Event::Put(entry) = event else { return Err(format!("{} was removed", event.key())) };
                let execution: Execution = codec::decode(entry).map_err(|error| error.to_string())?;
                let shape = Shape::of(&execution);
                if self.runs.contains_key(&execution.id) {
                    self.explain_change(execution.id, shape, &made, cause)?;
                } else {
                    self.explain_arrival(&execution, shape, self.place.time(made.at), cause)?;
                }
            }
        }
        Ok(())
    }

    fn explain_arrival(&mut self, execution: &Execution, shape: Shape, now: Duration, cause: &Cause) -> Checked {
        let asked = cause.submits.iter().find(|asked| asked.id == execution.id);
        let Some(asked) = asked else { return Err(format!("{} came from nowhere", execution.id)) };
        let job = &jobs()[asked.job];
        let argument = execution.arguments.get("n").cloned().unwrap_or_default();
        let is = (execution.job.as_str(), execution.user.as_str(), argument.as_str());
        hold!(is == (job.name.as_str(), USERS[asked.user], asked.argument.as_str()), "{is:?} was not asked for: {asked:?}");
        if asked.once.is_some() {
            let same = |other: &&Asked| other.once == asked.once && other.user == asked.user && self.runs.contains_key(&other.id);
            let other = self.asked.iter().find(same).map(|other| other.id);
            hold!(other.is_none(), "{} came under the idempotency key of {other:?}", execution.id);
        }
        let promised = job.concurrency.filter(|concurrency| concurrency.when_full == WhenFull::Reject);
        let slot = shape.slot.filter(|slot| promised.is_some_and(|promised| *slot < promised.limit));
        hold!(slot.is_some() == promised.is_some(), "it has the slot {:?}", shape.slot);
        let fresh = Shape { state: State::Queued, cancelled: false, tries: Vec::new(), slot };
        hold!(shape == fresh, "it begins as {shape:?}");
        let run = Run {
            job: job.name.folded(),
            user: USERS[asked.user].to_owned(),
            argument,
            retries: job.retries as usize,
            on_lost: job.on_lost,
            concurrency: job.concurrency,
            shape,
            claimed: now,
            started: now,
            ended: now,
            waits_since: now,
            not_before: now,
            timeout: TIMING().run_timeout,
            acknowledged: false,
        };
        self.runs.insert(execution.id, run);
        Ok(())
    }

    fn explain_change(&mut self, id: ExecutionId, shape: Shape, made: &Made, cause: &Cause) -> Checked {
        let (now, timing) = (self.place.time(made.at), TIMING());
        let run = &self.runs[&id];
        let mut why = Vec::new();
        let possible = self.possible(id, &shape, made, cause, &mut why);
        let found = possible.iter().find(|what| run.after(what, now, &timing).as_ref() == Some(&shape));
        let Some(found) = found else {
            let before = &run.shape;
            return Err(format!(
                "{id} of {}\n    was {before:?}\n    became {shape:?}\n    possible: {possible:?} {why:?}",
                run.job
            ));
        };
        *self.happened.entry(found.name(run.shape.state)).or_default() += 1;
        self.runs.get_mut(&id).unwrap().becomes(shape, now, &timing);
        Ok(())
    }

    /// What may have happened to an execution, by what was done.
    fn possible(&self, id: ExecutionId, next: &Shape, made: &Made, cause: &Cause, why: &mut Vec<String>) -> Vec<Happening> {
        let (now, timing, run) = (self.place.time(made.at), TIMING(), &self.runs[&id]);
        let mut possible = Vec::new();
        possible.extend(cause.said.iter().filter(|said| said.id == id).map(|said| Happening::Word(said.nonce, said.word)));
        if cause.cancels {
            possible.push(Happening::Cancel);
        }
        if cause.turn {
            possible.push(Happening::Expire);
            if now.saturating_sub(run.ended) >= run.timeout + timing.kill_grace + timing.overdue {
                possible.push(Happening::FreeSlot);
            }
        }
        if run.shape.state == State::Queued
            && let Some(claim) = next.tries.last()
        {
            match self.may_claim(id, claim, next.slot, made.by, now) {
                Ok(()) => {
                    possible.push(Happening::Claim { executor: claim.executor.clone(), nonce: claim.nonce, slot: next.slot });
                }
                Err(reason) => why.push(reason),
            }
        }
        if let Some(held) = run.shape.held() {
            let robot = self.place.robots.iter().position(|robot| robot.id.as_str() == held.executor).unwrap();
            let came_without =
                cause.hello.as_ref().is_some_and(|(who, holds)| *who == robot && !holds.contains(&(id, held.nonce)));
            let by_turn = cause.turn && {
                let grace = made.by.map_or(Duration::ZERO, |node| self.grace[node]);
                let absent = self.gone.get(&held.executor).copied().flatten().map(|since| now.saturating_sub(since));
                let gone = absent.is_some_and(|absent| absent >= timing.lost_after) && now >= grace;
                let stale = run.shape.state == State::Claimed && now.saturating_sub(run.claimed) >= timing.claim_timeout;
                let after = run.timeout + timing.kill_grace + timing.overdue;
                let overdue = run.shape.state != State::Claimed && now >= grace && now.saturating_sub(run.started) >= after;
                why.push(format!("absent for {absent:?}, grace until {grace:?}, now {now:?}"));
                gone || stale || overdue
            };
            // The session ended before the executor could be told of its claim.
            let untold = run.shape.state == State::Claimed && run.claimed == now;
            if came_without || by_turn || untold {
                possible.push(Happening::Lose(held.nonce));
            }
        }
        possible
    }

    fn may_claim(&self, id: ExecutionId, claim: &Try, slot: Option<u32>, by: Option<usize>, now: Duration) -> Checked {
        let (run, executor, nonce) = (&self.runs[&id], claim.executor.as_str(), claim.nonce);
        // Once these are said, they hold, whatever a controller has heard.
        hold!(!self.is_paused(&run.job), "its job is paused");
        hold!(!self.draining.contains(executor), "{executor} drains");
        // Whoever does not hear of the last attempt does not know of the pause after it.
        let lags = by.is_some_and(|node| self.place.nodes[node].view.lags());
        hold!(now >= run.not_before || lags, "it is to wait until {:?}, and it is {now:?}", run.not_before);
        let other = self.runs.iter().find(|(other, one)| **other != id && one.job == run.job && one.shape.slot == slot);
        hold!(slot.is_none() || other.is_none(), "its slot is that of {other:?}");
        let robot = self.place.robots.iter().position(|robot| robot.id.as_str() == executor);
        let Some(robot) = robot else { return Err(format!("there is no {executor}")) };
        let one = &self.place.robots[robot];
        hold!(label::matches(&definition(run).executor, &one.labels), "{executor} has not the labels");
        let line = one.line.as_ref().map(|line| line.node);
        hold!(by.is_some() && (line == by || self.lines[robot] == by), "{executor} has no session with {by:?}");
        let again = self.runs.values().any(|run| run.shape.tries.iter().any(|one| one.nonce == nonce));
        hold!(!again, "the fence was used before");
        let holds = self.runs.values().filter(|run| run.shape.held().is_some_and(|held| held.executor == executor)).count();
        let sees = by.is_some_and(|node| !self.place.nodes[node].view.lags()) && !self.troubled && self.lines[robot] == line;
        hold!(!sees || holds < one.capacity as usize, "{executor} has {holds} already");
        Ok(())
    }

    /// Holds what was answered against what has become of it.
    pub(super) fn judge(&mut self, answer: &Answer) -> Checked {
        match answer {
            Answer::None => Ok(()),
            Answer::Said(said, verdict) => self.judge_verdict(said, verdict),
            Answer::Cancelled(id, answer) => {
                let run = &self.runs[id];
                match answer {
                    Ok(()) => {
                        hold!(run.shape.cancelled || run.shape.state.is_terminal(), "a cancel was accepted and is not there");
                        Ok(())
                    }
                    Err(fault) => self.excused(fault),
                }
            }
            Answer::Paused(job, paused, answer) => {
                let name = job.map_or(".all".to_owned(), |job| jobs()[job].name.folded());
                let is = self.paused.contains(&name);
                answer.as_ref().map_or_else(
                    |fault| self.excused(fault),
                    |()| {
                        hold!(is == *paused, "it was answered that {name} is paused: {paused}, and it is {is}");
                        Ok(())
                    },
                )
            }
            Answer::Drained(robot, drains, answer) => {
                let is = self.draining.contains(self.place.robots[*robot].id.as_str());
                answer.as_ref().map_or_else(
                    |fault| self.excused(fault),
                    |()| {
                        hold!(is == *drains, "it was answered that {robot} drains: {drains}, and it is {is}");
                        Ok(())
                    },
                )
            }
            Answer::Submitted(asked, answer) => self.judge_submission(asked, answer),
        }
    }

    /// A call may fail for the store's sake, and for nothing else.
    fn excused(&self, fault: &Fault) -> Checked {
        hold!(self.troubled && fault.reason == reason::STORE_UNAVAILABLE, "refused without a cause: {fault:?}");
        Ok(())
    }

    fn judge_submission(&mut self, asked: &Asked, answer: &Result<ExecutionId, Fault>) -> Checked {
        // The first that came under an idempotency key decides.
        let earlier = asked.once.and_then(|once| {
            let same = |other: &&Asked| other.once == Some(once) && other.user == asked.user && self.runs.contains_key(&other.id);
            self.asked.iter().find(same)
        });
        let first = earlier.map_or(asked.id, |earlier| earlier.id);
        match answer {
            Ok(id) => {
                hold!(*id == first, "{id} was answered instead of {first}");
                let Some(run) = self.runs.get_mut(id) else { return Err(format!("{id} was accepted and is not there")) };
                run.acknowledged = true;
                let is = (run.job.clone(), run.user.as_str(), run.argument.as_str());
                let wanted = (jobs()[asked.job].name.folded(), USERS[asked.user], asked.argument.as_str());
                hold!(is == wanted, "{wanted:?} was asked for, and {is:?} answered");
                Ok(())
            }
            Err(fault) if [reason::ID_TAKEN, reason::KEY_REUSED].contains(&fault.reason.as_str()) => {
                let run = self.runs.get(&first).ok_or("refused for what is not there")?;
                let same = run.job == jobs()[asked.job].name.folded() && run.argument == asked.argument;
                hold!(!same, "the same request was refused: {fault:?}");
                Ok(())
            }
            Err(fault) if fault.reason == reason::CONCURRENCY_LIMIT => {
                let limit = jobs()[asked.job].concurrency.map_or(u32::MAX, |concurrency| concurrency.limit) as usize;
                hold!(slots_of(&self.runs, &jobs()[asked.job].name.folded()) >= limit, "refused with a slot free: {fault:?}");
                hold!(!self.runs.contains_key(&first), "the call repeated was refused: {fault:?}");
                Ok(())
            }
            Err(fault) => self.excused(fault),
        }
    }

    fn judge_verdict(&self, said: &Said, verdict: &Result<Verdict, Fault>) -> Checked {
        let verdict = match verdict {
            Ok(verdict) => *verdict,
            Err(fault) => return self.excused(fault),
        };
        let run = &self.runs[&said.id];
        let this = run.shape.tries.iter().find(|one| one.nonce == said.nonce).ok_or("an answer for an attempt that never was")?;
        let holds = run.shape.held().is_some_and(|held| held.nonce == said.nonce);
        let good = match (said.word, verdict) {
            // Whoever is told yes has it, and whoever has it is told yes.
            (Word::Starts, Verdict::Accepted) => holds && this.started,
            (Word::Starts, _) => !holds,
            (Word::Runs, Verdict::Accepted) => holds && this.running || this.end.is_some(),
            (Word::Runs, _) => !holds || !this.started,
            (Word::Ends(_), Verdict::Accepted) => this.end.is_some() || !holds,
            (Word::Ends(_), _) => this.end.is_none() && (!holds || !this.started),
            (Word::GivesBack, Verdict::Accepted) => !holds,
            (Word::GivesBack, _) => !holds || this.started,
        };
        hold!(good, "{:?} of attempt {} was answered with {verdict:?}, and it is {:?}", said.word, said.attempt, run.shape);
        Ok(())
    }

    /// Compares what stands in the store with the model.
    pub(super) fn compare(&self) -> Checked {
        let memory = &self.place.memory;
        let id =
            |entry: &octavius_store::Entry| key::execution_of(&entry.key).ok_or_else(|| format!("{} names nothing", entry.key));
        let mut found = Indexes::default();
        for entry in memory.all(&key::queue()) {
            found.queued.push(id(&entry)?);
        }
        for entry in memory.all(&key::owned_by_all()) {
            let record: octavius_store::record::OwnRecord = codec::decode(&entry).map_err(|error| error.to_string())?;
            let executor = key::owner_of(&entry.key).ok_or("nobody's")?.to_string();
            let fence = record.fence;
            found.owned.push((executor, id(&entry)?, fence.attempt, fence.nonce, record.started, record.cancel));
        }
        for entry in memory.all(&key::slots()) {
            let record: octavius_store::record::SlotRecord = codec::decode(&entry).map_err(|error| error.to_string())?;
            let (job, number) = key::slot_of(&entry.key).ok_or("no slot")?;
            found.slots.push((job.to_owned(), number, record.id, record.lost.is_some()));
        }
        for entry in memory.all(&key::removables()) {
            if let Some((_, key::Removable::Execution(id))) = key::removable_of(&entry.key) {
                found.over.push(id);
            }
        }
        let second = |entry: &octavius_store::Entry| entry.key.as_str().split('/').nth(1).unwrap_or_default().to_owned();
        for entry in memory.all(&Key::new("by-job/")) {
            found.by_job.push((second(&entry), id(&entry)?));
        }
        for entry in memory.all(&Key::new("by-user/")) {
            found.by_user.push((second(&entry), id(&entry)?));
        }
        let (found, expected) = (found.sorted(), Indexes::of(&self.runs));
        hold!(found == expected, "the store has\n    {found:?}\nthe model\n    {expected:?}");
        Ok(())
    }
}
