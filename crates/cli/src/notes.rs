//! What is known of the executions of the jobs that a plan touches: how many go on with the definition from before, and when a job that
//! goes was run last. It is a courtesy of `diff` and `apply`: where it cannot be had, it is left out.

use std::collections::BTreeMap;

use futures::StreamExt as _;
use octavius_catalog::render::Note;
use octavius_catalog::{Action, Change, Plan};
use octavius_core::{JobName, State, Timestamp};
use octavius_proto::words::{self, between};
use octavius_proto::{to_state, v1};
use serde_json::{Value, json};

use crate::error::Outcome;
use crate::session::Session;

/// Most jobs about whose executions is asked: each takes a call or two.
const NOTED: usize = 50;

/// How many jobs are asked about at once.
const AT_ONCE: usize = 8;

/// Most unfinished executions of a job that are looked at.
const COUNTED: u32 = 100;

/// The executions of one job that a plan touches.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Runs {
    /// Unfinished executions that are pinned to the definition from before.
    pub running: usize,
    /// Whether there may be more of them: only the newest are looked at.
    pub or_more: bool,
    /// When the newest execution was asked for; none where there is none, or where the job stays and it does not matter.
    pub last: Option<Timestamp>,
}

/// Asks for the executions of the jobs that change or go, of the first of them where they are many.
pub async fn runs(session: &Session, plan: &Plan) -> BTreeMap<JobName, Runs> {
    let touched = plan.changes.iter().filter(|change| change.action != Action::Added).take(NOTED);
    let asked = futures::stream::iter(touched.map(async |change| (change, of(session, change).await)));
    let answers: Vec<_> = asked.buffer_unordered(AT_ONCE).collect().await;
    answers.into_iter().filter_map(|(change, runs)| Some((change.job.clone(), runs.ok()?))).collect()
}

async fn of(session: &Session, change: &Change) -> Outcome<Runs> {
    let ask = async |states: Vec<i32>, limit| {
        let job = change.job.to_string();
        let request = v1::ListExecutionsRequest { all: true, job, states, limit, ..Default::default() };
        session.call(async |to| to.executions().list_executions(request.clone()).await).await
    };
    let live = State::ALL.into_iter().filter(|state| !state.is_terminal()).map(|state| to_state(state).into()).collect();
    let found = ask(live, COUNTED).await?;
    let is_pinned =
        |execution: &&v1::Execution| change.before.is_some_and(|before| execution.definition == before.as_bytes()[..]);
    let running = found.executions.iter().filter(is_pinned).count();
    let last = match change.action {
        Action::Removed | Action::Blocked => {
            let newest = ask(Vec::new(), 1).await?;
            newest.executions.first().and_then(|last| words::time(last.created_at.as_ref()))
        }
        Action::Added | Action::Changed => None,
    };
    Ok(Runs { running, or_more: !found.next_page_token.is_empty(), last })
}

/// Asks for the executions of the jobs that change or go, and gives the lines beside them in a plan.
pub async fn about(session: &Session, plan: &Plan) -> BTreeMap<JobName, Note> {
    notes(plan, &runs(session, plan).await)
}

/// The same as lines beside the jobs of a plan.
#[must_use]
pub fn notes(plan: &Plan, runs: &BTreeMap<JobName, Runs>) -> BTreeMap<JobName, Note> {
    let now = Timestamp::now();
    let note = |change: &Change| {
        let Runs { running, or_more, last } = *runs.get(&change.job)?;
        let count = format!("{running}{}", if or_more { "+" } else { "" });
        let one = running == 1 && !or_more;
        let below = match change.action {
            _ if running == 0 => Vec::new(),
            Action::Blocked => vec![format!("{count} {} now", if one { "execution runs" } else { "executions run" })],
            Action::Added | Action::Changed | Action::Removed => {
                let word = if one { "running execution keeps" } else { "running executions keep" };
                vec![format!("{count} {word} revision {}", plan.parent_revision)]
            }
        };
        let beside = match change.action {
            Action::Added | Action::Changed => None,
            Action::Removed | Action::Blocked => {
                Some(last.map_or("never run".to_owned(), |last| format!("last run {} ago", between(last, now))))
            }
        };
        Some((change.job.clone(), Note { beside, below }))
    };
    plan.changes.iter().filter_map(note).collect()
}

/// A plan as JSON, with the number of executions that run and the time of the last one where they are known.
#[must_use]
pub fn report(plan: &Plan, runs: &BTreeMap<JobName, Runs>) -> Value {
    let mut report = plan.report();
    let changes = report.get_mut("changes").and_then(Value::as_array_mut).into_iter().flatten();
    for (value, change) in changes.zip(&plan.changes) {
        let (Some(known), Some(fields)) = (runs.get(&change.job), value.as_object_mut()) else { continue };
        fields.insert("running".into(), json!(known.running));
        if let Some(last) = known.last {
            fields.insert("last_run".into(), json!(last.to_string()));
        }
    }
    report
}
