//! Why an execution waits, as it is shown: as JSON, and in a line for each cause.

use octavius_proto::{v1, words};
use serde_json::{Value, json};
use unicode_width::UnicodeWidthStr as _;

use crate::sanitize::line;
use octavius_proto::json::{text_or_null, time_or_null};

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

/// A line for each cause, but for the place in line, which the first line tells.
#[must_use]
pub fn render(wait: &v1::Wait) -> String {
    if wait.causes.is_empty() {
        return "an executor has room: it is about to be handed out\n".to_owned();
    }
    let causes: Vec<_> = words::causes(wait).into_iter().map(|(executor, cause)| (line(executor), cause)).collect();
    let width = causes.iter().map(|(executor, _)| executor.width()).max().unwrap_or_default();
    let mut out = String::new();
    for (executor, cause) in causes {
        if !executor.is_empty() {
            out.push_str(&format!("{executor}{:pad$}  ", "", pad = width - executor.width()));
        }
        out.push_str(&format!("{}\n", line(&cause.message)));
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;
    use octavius_core::wait::cause;

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
