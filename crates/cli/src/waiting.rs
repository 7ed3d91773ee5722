//! Why an execution waits, as it is shown: as JSON, in the first line, and a line for each cause.

use octavius_core::Wait;
use octavius_core::wait::cause;
use octavius_proto::v1;
use serde_json::{Value, json};
use unicode_width::UnicodeWidthStr as _;

use crate::execution::{text_or_null, time_or_null};
use crate::sanitize::line;

/// A wait as JSON.
#[must_use]
pub fn to_json(wait: &v1::Wait) -> Value {
    let cause = |cause: &v1::WaitCause| {
        json!({
            "code": cause.code,
            "message": cause.message,
            "executor": text_or_null(&cause.executor),
            "since": time_or_null(cause.since.as_ref()),
            "executions": cause.executions,
        })
    };
    json!({ "ahead": wait.ahead, "causes": wait.causes.iter().map(cause).collect::<Vec<_>>() })
}

/// The place in line, behind what it is said of: `, 3rd in line`. Who is first is told nothing: he waits for something else.
#[must_use]
pub fn place(wait: &v1::Wait) -> String {
    match wait.ahead {
        0 => String::new(),
        Wait::AHEAD_COUNTED.. => format!(", behind {} or more", Wait::AHEAD_COUNTED),
        ahead => format!(", {} in line", ordinal(ahead + 1)),
    }
}

fn ordinal(number: u32) -> String {
    let ending = match (number % 10, number % 100) {
        (_, 11..=13) => "th",
        (1, _) => "st",
        (2, _) => "nd",
        (3, _) => "rd",
        _ => "th",
    };
    format!("{number}{ending}")
}

/// A line for each cause, but for the place in line, which the first line tells.
#[must_use]
pub fn render(wait: &v1::Wait) -> String {
    if wait.causes.is_empty() {
        return "an executor has room: it is about to be handed out\n".to_owned();
    }
    // the nearest of those that do not match stands in the sentence
    let named = |cause: &v1::WaitCause| cause.code != cause::NO_MATCHING_EXECUTOR && !cause.executor.is_empty();
    let width =
        wait.causes.iter().filter(|cause| named(cause)).map(|cause| line(&cause.executor).width()).max().unwrap_or_default();
    let mut out = String::new();
    for cause in wait.causes.iter().filter(|cause| cause.code != cause::AHEAD) {
        if named(cause) {
            let executor = line(&cause.executor);
            out.push_str(&format!("{executor}{:pad$}  ", "", pad = width - executor.width()));
        }
        out.push_str(&format!("{}\n", line(&cause.message)));
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_place_in_line_is_told_from_the_second_on() {
        let place = |ahead| place(&v1::Wait { ahead, causes: Vec::new() });
        assert_eq!((place(0), place(1), place(2)), (String::new(), ", 2nd in line".into(), ", 3rd in line".into()));
        assert_eq!(
            (place(10), place(20), place(111)),
            (", 11th in line".into(), ", 21st in line".into(), ", 112th in line".into())
        );
        assert_eq!(place(1000), ", behind 1000 or more");
    }

    #[test]
    fn the_nearest_executor_is_named_once() {
        let nearest = v1::WaitCause {
            code: cause::NO_MATCHING_EXECUTOR.into(),
            message: "no executor with vpc=payments (nearest: exec-2 lacks it)".into(),
            executor: "exec-2".into(),
            ..Default::default()
        };
        let lacks = v1::WaitCause {
            code: cause::LABEL.into(),
            message: "has no label vpc, needs vpc=payments".into(),
            executor: "exec-2".into(),
            ..Default::default()
        };
        let unknown =
            v1::WaitCause { code: "OF_A_NEWER_CONTROLLER".into(), message: "the moon is new".into(), ..Default::default() };
        let wait = v1::Wait { ahead: 0, causes: vec![nearest, lacks, unknown] };
        assert_eq!(
            render(&wait),
            "no executor with vpc=payments (nearest: exec-2 lacks it)\nexec-2  has no label vpc, needs vpc=payments\nthe moon is new\n"
        );
        let json = to_json(&wait);
        assert_eq!((&json["causes"][1]["executor"], &json["causes"][2]["executor"]), (&json!("exec-2"), &Value::Null));
        assert_eq!(render(&v1::Wait::default()), "an executor has room: it is about to be handed out\n");
    }
}
