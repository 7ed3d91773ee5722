//! Executions as they are shown: as JSON, in a line, in whole.

use octavius_core::{State, Timestamp};
use octavius_proto::json::{self, text_or_null, time_or_null};
use octavius_proto::v1;
use octavius_proto::words::{self, has_ended, state_name};
use serde_json::{Value, json};

use crate::approvals;
use crate::arguments::shell_quoted;
use crate::commands::webhooks::to_json as delivery_json;
use crate::sanitize::line;
use crate::table::{self, wire_time};
use crate::waiting;

/// The state, where this version knows it.
#[must_use]
pub fn state(execution: &v1::Execution) -> Option<State> {
    octavius_proto::state("state", execution.state).ok()
}

/// What the first Octavius called it. Listings come without attempts: that one has an executor says that it had begun.
#[must_use]
pub fn first_octavius_status(execution: &v1::Execution) -> &'static str {
    let reason = Some(execution.reason.as_str());
    let began = !execution.executor.is_empty();
    state(execution).map_or("", |state| octavius_core::execution::first_octavius_status(state, reason, began))
}

/// An execution in a list.
#[must_use]
pub fn summary(execution: &v1::Execution) -> Value {
    let mut value = json::execution(execution);
    value["first_octavius_status"] = text_or_null(first_octavius_status(execution));
    if let Some(approvals) = &execution.approvals {
        value["approvals"]["is_yours"] = approvals.is_callers.into();
        value["approvals"]["has_yours"] = approvals.has_callers.into();
    }
    value
}

/// Everything about an execution.
#[must_use]
pub fn whole(execution: &v1::Execution, wait: Option<&v1::Wait>, commit: &str) -> Value {
    let mut value = summary(execution);
    let more = json!({
        "attempts": execution.attempts.iter().map(attempt).collect::<Vec<_>>(),
        "catalog": execution.catalog,
        "definition": octavius_proto::digest("definition", &execution.definition).map_or(Value::Null, |digest| digest.to_string().into()),
        "revision": execution.revision,
        "commit": text_or_null(commit),
        "arguments": execution.arguments.iter().collect::<std::collections::BTreeMap<_, _>>(),
        "selector": execution.selector.iter().collect::<std::collections::BTreeMap<_, _>>(),
        "state_since": time_or_null(execution.state_since.as_ref()),
        "timeout_secs": execution.timeout.as_ref().map(|timeout| timeout.seconds),
        "cancel_requested_by": text_or_null(&execution.cancel_requested_by),
        "cancel_requested_at": time_or_null(execution.cancel_requested_at.as_ref()),
        "rerun_of": text_or_null(&execution.rerun_of),
        "wait": wait.map(waiting::to_json),
        "deliveries": execution.deliveries.iter().map(delivery_json).collect::<Vec<_>>(),
    });
    if let (Value::Object(fields), Value::Object(more)) = (&mut value, more) {
        fields.extend(more);
    }
    value
}

fn ending(ending: &v1::Ending) -> Value {
    json!({
        "state": state_name(ending.outcome()),
        "reason": text_or_null(&ending.reason),
        "message": text_or_null(&ending.message),
        "exit_code": ending.exit_code,
    })
}

fn attempt(attempt: &v1::Attempt) -> Value {
    let end = attempt.ending.as_ref();
    json!({
        "number": attempt.number,
        "executor": attempt.executor,
        "state": end.map_or(Value::Null, |end| state_name(end.outcome()).into()),
        "reason": end.map_or(Value::Null, |end| text_or_null(&end.reason)),
        "message": end.map_or(Value::Null, |end| text_or_null(&end.message)),
        "exit_code": end.and_then(|end| end.exit_code),
        "claimed_at": time_or_null(attempt.claimed_at.as_ref()),
        "starting_at": time_or_null(attempt.starting_at.as_ref()),
        "running_at": time_or_null(attempt.running_at.as_ref()),
        "ended_at": time_or_null(attempt.ended_at.as_ref()),
        "late": attempt.late.as_ref().map(ending),
        "log_size": attempt.log_size,
        "runs_as": text_or_null(&attempt.runs_as),
        "image": text_or_null(&attempt.image),
    })
}

/// Why an attempt ended, for a terminal; empty where there is nothing to explain.
#[must_use]
pub fn because(ending: &v1::Ending) -> String {
    line(words::because(&ending.reason, &ending.message))
}

/// One sentence on how an execution stands, for a terminal: `failed after 2s: exit code 3`.
#[must_use]
pub fn sentence(execution: &v1::Execution, now: Timestamp) -> String {
    line(&words::sentence(execution, None, now))
}

/// The namespace and the name of an attempt's Job, where it runs as one.
fn in_cluster(runs_as: &str) -> Option<(&str, &str)> {
    runs_as.strip_prefix("job ")?.split_once('/')
}

/// An execution in whole, for people.
#[must_use]
pub fn render(execution: &v1::Execution, wait: Option<&v1::Wait>, commit: &str, now: Timestamp) -> String {
    let sentence = line(&words::sentence(execution, wait, now));
    let mut out = format!("{}  {}  {sentence}\n", line(&execution.id), line(&execution.job));
    out.push_str(&wait.map(waiting::render).unwrap_or_default());
    out.push_str(&approvals::render_missing(execution, now));
    let mut facts: Vec<(&str, String)> = vec![
        ("user", execution.user.clone()),
        ("scheduled", words::time(execution.tick.as_ref()).map(|tick| format!("for {}", table::time(tick))).unwrap_or_default()),
        ("created", wire_time(execution.created_at.as_ref())),
        ("finished", wire_time(execution.finished_at.as_ref())),
        ("executor", execution.executor.clone()),
        ("exit code", execution.exit_code.map(|code| code.to_string()).unwrap_or_default()),
        ("old status", first_octavius_status(execution).to_owned()),
        (
            "definition",
            octavius_proto::digest("definition", &execution.definition)
                .map(|digest| {
                    let commit = commit.get(..7).map(|commit| format!(" ({commit})")).unwrap_or_default();
                    format!("{}, {} revision {}{commit}", digest.short(), execution.catalog, execution.revision)
                })
                .unwrap_or_default(),
        ),
    ];
    let mut arguments: Vec<_> = execution.arguments.iter().collect();
    arguments.sort_unstable();
    let arguments: Vec<String> = arguments.into_iter().map(|(name, value)| format!("{name}={value}")).collect();
    facts.push(("arguments", arguments.join(" ")));
    facts.extend(approvals::facts(execution));
    facts.push(("rerun of", execution.rerun_of.clone()));
    facts.push(("trace id", execution.trace_id.clone()));
    let place = execution.attempts.last().and_then(|attempt| in_cluster(&attempt.runs_as));
    if let Some((namespace, name)) = place {
        facts.push(("Job", format!("{name} in namespace {namespace}")));
    }
    facts.push(("image", execution.attempts.last().map(|attempt| attempt.image.clone()).unwrap_or_default()));
    facts.extend(words::all_undelivered(execution).map(|told| ("webhook", told)));
    for (name, value) in facts.iter().filter(|(_, value)| !value.is_empty()) {
        out.push_str(&format!("{name:<11} {}\n", line(value)));
    }
    if !execution.attempts.is_empty() {
        out.push_str(&timeline(execution));
    }
    for attempt in &execution.attempts {
        // why the last one ended is why the execution did, which the first line says
        let told = has_ended(execution.state()) && execution.attempts.last().is_some_and(|last| last.number == attempt.number);
        if let Some(ending) = attempt.ending.as_ref().filter(|_| !told) {
            let because = because(ending);
            if !because.is_empty() {
                out.push_str(&format!("attempt {} {}: {because}\n", attempt.number, state_name(ending.outcome())));
            }
        }
        if let Some(late) = &attempt.late {
            let because = because(late);
            let because = if because.is_empty() { String::new() } else { format!(": {because}") };
            out.push_str(&format!(
                "attempt {} was given up, and reported later: {}{because}\n",
                attempt.number,
                state_name(late.outcome())
            ));
        }
    }
    let id = &line(&execution.id);
    // once it has ended, the executor deletes it
    if let Some((namespace, name)) = place.filter(|_| !has_ended(execution.state())) {
        out.push_str(&line(&format!("in its cluster: kubectl -n {} get job {}", shell_quoted(namespace), shell_quoted(name))));
        out.push('\n');
    }
    match state(execution) {
        Some(state) if state.is_terminal() => out.push_str(&format!("its log: octavius getlogs {id}\n")),
        Some(State::WaitingForApproval) => {
            out.push_str(&approvals::render_commands(execution));
            out.push_str(&format!("stop it: octavius cancel {id}\n"));
        }
        Some(State::Queued) => out.push_str(&format!("stop it: octavius cancel {id}\n")),
        _ => out.push_str(&format!("follow it: octavius getlogs {id} -f\nstop it: octavius cancel {id}\n")),
    }
    out
}

/// The attempts in a table of 80 columns: the date is above, and here only where it is another one.
fn timeline(execution: &v1::Execution) -> String {
    let created = words::time(execution.created_at.as_ref());
    let day = |at: Timestamp| at.strftime("%Y-%m-%d").to_string();
    let clock = |at: Option<&prost_types::Timestamp>| match words::time(at) {
        None => String::new(),
        Some(at) if created.is_some_and(|created| day(created) == day(at)) => at.strftime("%H:%M:%S").to_string(),
        Some(at) => at.strftime("%m-%d %H:%M").to_string(),
    };
    let rows = execution.attempts.iter().map(|attempt| {
        vec![
            attempt.number.to_string(),
            attempt.executor.clone(),
            clock(attempt.claimed_at.as_ref()),
            clock(attempt.starting_at.as_ref()),
            clock(attempt.running_at.as_ref()),
            clock(attempt.ended_at.as_ref()),
            attempt.ending.as_ref().map(|ending| state_name(ending.outcome()).to_owned()).unwrap_or_default(),
        ]
    });
    table::render(&["ATTEMPT", "EXECUTOR", "CLAIMED", "STARTING", "RUNNING", "ENDED", "OUTCOME"], rows, None)
}

#[cfg(test)]
mod tests {
    use super::*;
    use octavius_proto::to_timestamp;

    fn at(second: i64) -> Timestamp {
        Timestamp::from_second(1_767_225_600 + second).unwrap()
    }

    fn failed() -> v1::Execution {
        v1::Execution {
            id: "0k3v7q2m8d5x1n4r6t9w0b9f2q".into(),
            job: "refund-order".into(),
            catalog: "support".into(),
            definition: vec![7; 32].into(),
            revision: 42,
            arguments: [("order".to_owned(), "A-1".to_owned()), ("amount".to_owned(), "\u{1b}[2J".to_owned())].into(),
            user: "ann".into(),
            state: v1::ExecutionState::Failed.into(),
            state_since: Some(to_timestamp(at(130))),
            reason: "EXIT_CODE".into(),
            exit_code: Some(3),
            created_at: Some(to_timestamp(at(0))),
            finished_at: Some(to_timestamp(at(130))),
            executor: "pay-1".into(),
            attempts: vec![v1::Attempt {
                number: 1,
                executor: "pay-1".into(),
                claimed_at: Some(to_timestamp(at(1))),
                starting_at: Some(to_timestamp(at(2))),
                running_at: Some(to_timestamp(at(3))),
                ended_at: Some(to_timestamp(at(130))),
                ending: Some(v1::Ending {
                    outcome: v1::ExecutionState::Failed.into(),
                    reason: "EXIT_CODE".into(),
                    message: String::new(),
                    exit_code: Some(3),
                }),
                log_size: Some(17),
                ..Default::default()
            }],
            ..Default::default()
        }
    }

    #[test]
    fn an_ended_execution_in_whole() {
        insta::assert_snapshot!(render(&failed(), None, &"4be07d1".repeat(6), at(1000)));
    }

    #[test]
    fn a_waiting_execution_says_why() {
        let queued = v1::Execution {
            id: "0k3v7q2m8d5x1n4r6t9w0b9f2q".into(),
            job: "refund-order".into(),
            state: v1::ExecutionState::Queued.into(),
            state_since: Some(to_timestamp(at(0))),
            created_at: Some(to_timestamp(at(0))),
            user: "ann".into(),
            ..Default::default()
        };
        let cause = |code: &str, executor: &str, message: &str| v1::WaitCause {
            code: code.into(),
            executor: executor.into(),
            message: message.into(),
            ..Default::default()
        };
        let causes = vec![
            cause("EXECUTOR_FULL", "pay-1", "full: 4/4 slots since 10:32"),
            cause("EXECUTOR_DRAINING", "payer-2", "draining since 14:02 (sam)"),
            cause("AHEAD", "", "2 executions are ahead of it"),
            cause("LABEL", "web-1", "vpc=web, needs vpc=payments"),
        ];
        let wait = v1::Wait { ahead: 2, causes };
        insta::assert_snapshot!(render(&queued, Some(&wait), "", at(130)));
        let again = v1::Execution { reason: "EXECUTOR_LOST".into(), message: "it was away".into(), ..queued };
        let text = render(&again, Some(&wait), "", at(130));
        assert!(text.contains("queued 2m10s, 3rd in line: it was away\n"), "{text}");
    }

    #[test]
    fn where_it_runs_in_a_cluster_is_told_with_the_line_that_shows_it() {
        let mut running = failed();
        running.state = v1::ExecutionState::Running.into();
        running.attempts[0].runs_as = "job jobs/octavius-0k3v-1".into();
        running.attempts[0].image = "registry.example/refund@sha256:07".into();
        let text = render(&running, None, "", at(130));
        assert!(
            text.contains("Job         octavius-0k3v-1 in namespace jobs\nimage       registry.example/refund@sha256:07\n"),
            "{text}"
        );
        assert!(text.contains("\nin its cluster: kubectl -n jobs get job octavius-0k3v-1\n"), "{text}");
        assert_eq!(whole(&running, None, "")["attempts"][0]["image"], "registry.example/refund@sha256:07");
        running.state = v1::ExecutionState::Failed.into();
        let text = render(&running, None, "", at(130));
        assert!(text.contains("namespace jobs") && !text.contains("kubectl"), "what is deleted is not pointed at: {text}");
        running.attempts[0].runs_as = "pid 7".into();
        assert!(!render(&running, None, "", at(130)).contains("pid 7"));
    }

    #[test]
    fn json_has_the_keys_of_the_contract() {
        let value = whole(&failed(), None, "");
        for key in ["id", "job", "state", "reason", "message", "exit_code", "attempts", "executor", "created_at", "finished_at"] {
            assert!(value.get(key).is_some(), "{key}");
        }
        assert_eq!(value["state"], "failed");
        assert_eq!((&value["first_octavius_status"], &value["wait"]), (&"POD_FAILED".into(), &Value::Null));
        assert_eq!(value["message"], Value::Null);
        assert_eq!(value["created_at"], "2026-01-01T00:00:00Z");
        assert_eq!(value["attempts"][0]["log_size"], 17);
    }
}
