//! Why an execution waits. Pure: the facts come in as values, as this controller has observed them, and the causes come out; so the
//! command line, programs and the metrics are all told the same.

use octavius_core::wait::{Cause, cause};
use octavius_core::{ExecutionId, ExecutorId, Labels, Timestamp, Wait, label};
use octavius_store::record::PausedRecord;

use crate::pauses::Pause;

/// So many executors are told one by one; more are told together.
const ONE_BY_ONE: usize = 10;

/// Most executions that are named as standing in the way.
pub(crate) const NAMED: usize = 100;

/// What is known of an executor.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct ExecutorFacts {
    pub(crate) id: ExecutorId,
    pub(crate) labels: Labels,
    /// How many it runs at most, and how many of these slots are taken.
    pub(crate) capacity: usize,
    pub(crate) taken: usize,
    /// It says that it has no room, whatever is counted here.
    pub(crate) no_room: bool,
    /// Since when this controller has seen no free slot.
    pub(crate) full_since: Option<Timestamp>,
    /// Whether it has a session, with whichever controller.
    pub(crate) present: bool,
    /// Since when this controller has seen it away.
    pub(crate) absent_since: Option<Timestamp>,
    /// Who drains it, and since when.
    pub(crate) draining: Option<(String, Timestamp)>,
}

impl ExecutorFacts {
    fn is_full(&self) -> bool {
        self.no_room || self.taken >= self.capacity
    }
}

/// Everything that bears on why one execution waits.
#[derive(Debug, Clone, Default)]
pub(crate) struct Facts {
    /// Every executor that is there, and those that were, in order of their ids.
    pub(crate) executors: Vec<ExecutorFacts>,
    /// How many executions are before it.
    pub(crate) ahead: usize,
    /// The job's concurrency limit, where it is reached, and who holds it.
    pub(crate) slots: Option<(u32, Vec<ExecutionId>)>,
    /// That the job is paused, or all are.
    pub(crate) paused: Option<Pause>,
    /// Its next attempt does not come before.
    pub(crate) not_before: Option<Timestamp>,
}

/// Why an execution that asks for `selector` waits.
pub(crate) fn explain(selector: &Labels, facts: &Facts, now: Timestamp) -> Wait {
    let mut causes = Vec::new();
    if let Some(Pause { record: PausedRecord { by, at, reason }, all }) = &facts.paused {
        let what = if *all { "all jobs are paused" } else { "the job is paused" };
        let why = if reason.is_empty() { String::new() } else { format!(": {reason}") };
        let message = format!("{what} since {} ({by}){why}", clock(*at, now));
        causes.push(Cause::new(cause::JOB_PAUSED, message).since(Some(*at)));
    }
    if let Some(until) = facts.not_before.filter(|until| *until > now) {
        let message = format!("waits until {} before its next attempt", moment(until, now));
        causes.push(Cause::new(cause::BACK_OFF, message).since(Some(until)));
    }
    if let Some((limit, holders)) = &facts.slots {
        causes.push(at_the_limit(*limit, holders));
    }
    let standing = standing(selector, &facts.executors);
    match standing {
        cause::NO_EXECUTOR => causes.push(Cause::new(cause::NO_EXECUTOR, "no executor is there")),
        cause::NO_MATCHING_EXECUTOR => causes.extend(no_match(selector, &facts.executors)),
        _ => {}
    }
    // Where one has room, why the others have none is of no interest.
    if standing != cause::AHEAD {
        causes.extend(by_executor(selector, &facts.executors, now));
    }
    if facts.ahead > 0 {
        causes.push(Cause::new(cause::AHEAD, ahead(facts.ahead)));
    }
    causes.sort_by_key(|known| cause::ALL.iter().position(|code| *code == known.code));
    let counted = u32::try_from(facts.ahead).unwrap_or(u32::MAX).min(Wait::AHEAD_COUNTED);
    Wait { ahead: counted, causes }
}

/// What holds up everything that asks for `selector`, as far as executors do; [`cause::AHEAD`] where one has room, and it is all a matter of
/// whose turn it is.
pub(crate) fn standing(selector: &Labels, executors: &[ExecutorFacts]) -> &'static str {
    let (mut there, mut draining, mut full) = (false, false, false);
    for executor in executors.iter().filter(|executor| executor.present) {
        there = true;
        if label::matches(selector, &executor.labels) {
            match (executor.draining.is_some(), executor.is_full()) {
                (false, false) => return cause::AHEAD,
                (true, _) => draining = true,
                (false, true) => full = true,
            }
        }
    }
    match (full, draining, there) {
        (true, ..) => cause::EXECUTOR_FULL,
        (false, true, _) => cause::EXECUTOR_DRAINING,
        (false, false, true) => cause::NO_MATCHING_EXECUTOR,
        (false, false, false) => cause::NO_EXECUTOR,
    }
}

fn ahead(count: usize) -> String {
    match count {
        1 => "1 execution is ahead of it".to_owned(),
        count if count >= Wait::AHEAD_COUNTED as usize => format!("{} executions or more are ahead of it", Wait::AHEAD_COUNTED),
        count => format!("{count} executions are ahead of it"),
    }
}

fn at_the_limit(limit: u32, holders: &[ExecutionId]) -> Cause {
    let mut message = format!("concurrency limit of {limit}");
    if !holders.is_empty() {
        let shown: Vec<String> = holders.iter().take(ONE_BY_ONE).map(ToString::to_string).collect();
        message.push_str(&format!(", held by {}", shown.join(", ")));
    }
    if holders.len() > ONE_BY_ONE {
        message.push_str(&format!(" and {} more", holders.len() - ONE_BY_ONE));
    }
    Cause { executions: holders.iter().take(NAMED).copied().collect(), ..Cause::new(cause::CONCURRENCY_LIMIT, message) }
}

/// The labels of `selector` that are not in `labels`, each with what stands there instead.
fn lacking<'a>(selector: &'a Labels, labels: &'a Labels) -> impl Iterator<Item = (&'a str, &'a str, Option<&'a str>)> {
    selector.iter().filter_map(|(key, value)| {
        let has = labels.get(key);
        (has != Some(value)).then_some((key.as_str(), value.as_str(), has.map(String::as_str)))
    })
}

/// That no executor that is there has the labels, and which comes nearest. Where one has them that is away, that one is nearer still.
fn no_match(selector: &Labels, executors: &[ExecutorFacts]) -> Option<Cause> {
    let wanted = label::pool(selector);
    if executors.iter().any(|executor| !executor.present && label::matches(selector, &executor.labels)) {
        return Some(Cause::new(cause::NO_MATCHING_EXECUTOR, format!("no executor with {wanted} is there")));
    }
    let there = executors.iter().filter(|executor| executor.present);
    let nearest = there.min_by_key(|executor| lacking(selector, &executor.labels).count())?;
    let missing: Vec<_> = lacking(selector, &nearest.labels).collect();
    let lacks = match missing.as_slice() {
        [(key, _, Some(has))] => format!("has {key}={has}"),
        _ if selector.len() == 1 => "lacks it".to_owned(),
        several => {
            let several: Vec<String> = several.iter().map(|(key, value, _)| format!("{key}={value}")).collect();
            format!("lacks {}", several.join(", "))
        }
    };
    let message = format!("no executor with {wanted} (nearest: {} {lacks})", nearest.id);
    Some(Cause::new(cause::NO_MATCHING_EXECUTOR, message).of(&nearest.id))
}

/// What each executor lacks, one by one, or many together.
fn by_executor(selector: &Labels, executors: &[ExecutorFacts], now: Timestamp) -> Vec<Cause> {
    let (matching, others): (Vec<_>, Vec<_>) = executors
        .iter()
        .filter(|executor| executor.present || label::matches(selector, &executor.labels))
        .partition(|executor| label::matches(selector, &executor.labels));
    let mut causes: Vec<Cause> = if matching.len() > ONE_BY_ONE {
        matching_together(selector, &matching, now)
    } else {
        matching.iter().map(|executor| matching_one(executor, now)).collect()
    };
    causes.extend(if matching.len() + others.len() > ONE_BY_ONE {
        others_together(selector, &others)
    } else {
        others.iter().map(|executor| other(selector, executor)).collect()
    });
    causes
}

/// Why an executor with the right labels does not take it.
fn holds_up(executor: &ExecutorFacts) -> &'static str {
    match (executor.present, &executor.draining) {
        (false, _) => cause::EXECUTOR_ABSENT,
        (true, Some(_)) => cause::EXECUTOR_DRAINING,
        (true, None) => cause::EXECUTOR_FULL,
    }
}

fn matching_one(executor: &ExecutorFacts, now: Timestamp) -> Cause {
    let since = |at: Option<Timestamp>| at.map(|at| format!(" since {}", clock(at, now))).unwrap_or_default();
    let ExecutorFacts { taken, capacity, full_since, absent_since, .. } = executor;
    let (message, at) = match (holds_up(executor), &executor.draining) {
        (cause::EXECUTOR_ABSENT, _) => (format!("not there{}", since(*absent_since)), *absent_since),
        (_, Some((by, at))) => (format!("draining since {} ({by})", clock(*at, now)), Some(*at)),
        _ if taken < capacity => {
            (format!("says that it has no room, {taken}/{capacity} slots are taken{}", since(*full_since)), *full_since)
        }
        _ => (format!("full: {taken}/{capacity} slots{}", since(*full_since)), *full_since),
    };
    Cause::new(holds_up(executor), message).of(&executor.id).since(at)
}

fn matching_together(selector: &Labels, matching: &[&ExecutorFacts], now: Timestamp) -> Vec<Cause> {
    let with = if selector.is_empty() { String::new() } else { format!(" with {}", label::pool(selector)) };
    let all = matching.len();
    let kinds = [(cause::EXECUTOR_FULL, "full"), (cause::EXECUTOR_DRAINING, "draining"), (cause::EXECUTOR_ABSENT, "not there")];
    let told = kinds.into_iter().filter_map(|(code, word)| {
        let these: Vec<_> = matching.iter().filter(|executor| holds_up(executor) == code).collect();
        let begun = |executor: &&&ExecutorFacts| match code {
            cause::EXECUTOR_FULL => executor.full_since,
            cause::EXECUTOR_ABSENT => executor.absent_since,
            _ => executor.draining.as_ref().map(|(_, at)| *at),
        };
        // From when on it is so of all of them; not known where it is not known of one.
        let since = these.iter().map(begun).collect::<Option<Vec<_>>>().and_then(|all| all.into_iter().max());
        let count = match these.len() {
            0 => return None,
            count if count == all => format!("all {all}"),
            count => format!("{count} of {all}"),
        };
        let at = since.map(|at| format!(" since {}", clock(at, now))).unwrap_or_default();
        Some(Cause::new(code, format!("{count}{with} {word}{at}")).since(since))
    });
    told.collect()
}

fn other(selector: &Labels, executor: &ExecutorFacts) -> Cause {
    let told = lacking(selector, &executor.labels).map(|(key, value, has)| match has {
        Some(has) => format!("{key}={has}, needs {key}={value}"),
        None => format!("has no label {key}, needs {key}={value}"),
    });
    Cause::new(cause::LABEL, told.collect::<Vec<_>>().join("; ")).of(&executor.id)
}

/// How many lack which label; each executor is counted once, for the first that it lacks.
fn others_together(selector: &Labels, others: &[&ExecutorFacts]) -> Vec<Cause> {
    let told = selector.iter().filter_map(|(key, value)| {
        let first =
            |executor: &&&ExecutorFacts| lacking(selector, &executor.labels).next().is_some_and(|(lacks, ..)| lacks == key);
        match others.iter().filter(first).count() {
            0 => None,
            1 => Some(Cause::new(cause::LABEL, format!("1 executor lacks {key}={value}"))),
            count => Some(Cause::new(cause::LABEL, format!("{count} executors lack {key}={value}"))),
        }
    });
    told.collect()
}

/// A time as it is told to people, in UTC, to the minute: without the date where that is today's.
fn clock(at: Timestamp, now: Timestamp) -> String {
    at.strftime(if same_day(at, now) { "%H:%M" } else { "%Y-%m-%d %H:%M" }).to_string()
}

/// The same to the second, for times that are near.
fn moment(at: Timestamp, now: Timestamp) -> String {
    at.strftime(if same_day(at, now) { "%H:%M:%S" } else { "%Y-%m-%d %H:%M:%S" }).to_string()
}

fn same_day(at: Timestamp, now: Timestamp) -> bool {
    let day = |at: Timestamp| at.strftime("%Y-%m-%d").to_string();
    day(at) == day(now)
}

#[cfg(test)]
mod tests;
