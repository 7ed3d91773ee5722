//! The form that runs a job, while it is filled in: made from the job's arguments, with what was typed and what is wrong with it.

use std::collections::HashMap;

use octavius_core::definition::{Argument, ArgumentType};
use octavius_core::{ExecutionId, HumanDuration, JobDefinition};
use octavius_proto::{Fault, reason, to_duration, v1};

use crate::form::Fields;
use crate::trouble::Trouble;

/// Names of arguments stand behind this in the form, so that they are none of its other fields.
const ARGUMENT: &str = "arg.";

/// What was typed, and what is wrong with it.
pub(super) struct Draft {
    /// The id that the execution is to have: sending the form twice runs the job once.
    pub(super) id: String,
    values: HashMap<String, String>,
    /// The timeout of this run alone, as it was typed.
    pub(super) timeout: String,
    confirm: String,
    /// What is wrong, by the form's field.
    problems: Vec<(String, String)>,
    /// What went wrong with all of it.
    pub(super) trouble: Option<Trouble>,
}

/// A field of the form.
pub(super) struct Field<'a> {
    pub(super) argument: &'a Argument,
    /// What it holds; never a sensitive value.
    pub(super) value: &'a str,
    /// What is wrong with that.
    pub(super) problem: Option<&'a str>,
}

impl Field<'_> {
    /// The name that it is sent by.
    pub(super) fn name(&self) -> String {
        format!("{ARGUMENT}{}", self.argument.name)
    }

    /// Its id in the page.
    pub(super) fn id(&self) -> String {
        format!("arg-{}", self.argument.name)
    }

    /// What it is filled in with: one of `secret`, `choice`, `boolean`, `long`, `text`.
    pub(super) fn control(&self) -> &'static str {
        match self.argument.kind {
            _ if self.argument.sensitive => "secret",
            _ if !self.argument.choices.is_empty() => "choice",
            ArgumentType::Boolean => "boolean",
            ArgumentType::String if self.argument.default.as_ref().is_some_and(|default| default.0.contains('\n')) => "long",
            _ => "text",
        }
    }

    /// The input's type, and its step where it has one.
    pub(super) fn input(&self) -> (&'static str, &'static str) {
        match self.argument.kind {
            ArgumentType::Integer => ("number", "1"),
            ArgumentType::Number => ("number", "any"),
            ArgumentType::String | ArgumentType::Boolean | ArgumentType::Duration => ("text", ""),
        }
    }

    /// Whether a choice need not be made.
    pub(super) fn may_be_empty(&self) -> bool {
        self.argument.default.is_none()
    }

    /// What stands under it, so that one knows what to type.
    pub(super) fn help(&self) -> String {
        let argument = self.argument;
        let mut parts = vec![argument.description.trim().to_owned()];
        parts.push(match (argument.kind, argument.choices.is_empty() || argument.sensitive) {
            (ArgumentType::Duration, true) => "a duration, like 90s, 10m or 1h30m".to_owned(),
            (ArgumentType::Integer, true) => "an integer".to_owned(),
            (ArgumentType::Number, true) => "a number".to_owned(),
            _ => String::new(),
        });
        parts.extend(argument.pattern.as_ref().map(|pattern| format!("matches {pattern}")));
        if argument.sensitive {
            let kept = if argument.default.is_some() { "; left empty, the job's own value is taken" } else { "" };
            parts.push(format!("sensitive: it is shown nowhere{kept}"));
        }
        parts.retain(|part| !part.is_empty());
        parts.join("; ")
    }

    /// The ids of what describes it; empty for nothing.
    pub(super) fn described_by(&self) -> String {
        let (help, problem) = (!self.help().is_empty(), self.problem.is_some());
        let ids = [problem.then(|| format!("{}-problem", self.id())), help.then(|| format!("{}-help", self.id()))];
        ids.into_iter().flatten().collect::<Vec<_>>().join(" ")
    }
}

impl Draft {
    /// A form that nobody has touched, with the job's defaults in it.
    pub(super) fn new(job: &JobDefinition) -> Self {
        let arguments = job.env_vars.args.iter().filter(|argument| !argument.sensitive);
        let default = |argument: &Argument| Some((argument.name.clone(), argument.default.as_ref()?.0.clone()));
        Self {
            id: ExecutionId::generate().to_string(),
            values: arguments.filter_map(default).collect(),
            timeout: String::new(),
            confirm: String::new(),
            problems: Vec::new(),
            trouble: None,
        }
    }

    /// The form as it was sent.
    pub(super) fn sent(job: &JobDefinition, fields: &Fields) -> Self {
        let value = |argument: &Argument| {
            let value = fields.all(&format!("{ARGUMENT}{}", argument.name)).next()?;
            // browsers send the ends of lines as two characters
            Some((argument.name.clone(), value.replace("\r\n", "\n")))
        };
        Self {
            id: fields.get("id").to_owned(),
            values: job.env_vars.args.iter().filter_map(value).collect(),
            timeout: fields.get("timeout").to_owned(),
            confirm: fields.get("confirm").to_owned(),
            problems: Vec::new(),
            trouble: None,
        }
    }

    /// The value that is given for an argument; none where it was left to the job.
    fn given(&self, argument: &Argument) -> Option<String> {
        let value = self.values.get(&argument.name)?;
        let typed = matches!(argument.kind, ArgumentType::Integer | ArgumentType::Number | ArgumentType::Duration);
        let value = if typed { value.trim() } else { value.as_str() };
        // An empty field means nothing was given, but where the default stood in it and was taken out.
        let emptied = argument.kind == ArgumentType::String
            && argument.choices.is_empty()
            && !argument.sensitive
            && argument.default.as_ref().is_some_and(|default| !default.0.is_empty());
        (!value.is_empty() || emptied).then(|| value.to_owned())
    }

    /// The request that the form makes; none where something in it is wrong that the controller need not be asked about.
    pub(super) fn request(&mut self, job: &JobDefinition) -> Option<v1::ExecuteRequest> {
        let given = |argument: &Argument| Some((argument.name.clone(), self.given(argument)?));
        let arguments = job.env_vars.args.iter().filter_map(given).collect();
        let timeout = match self.timeout.parse::<HumanDuration>() {
            _ if self.timeout.is_empty() => None,
            Ok(timeout) => Some(to_duration(timeout.get())),
            Err(error) => {
                self.problems.push(("timeout".to_owned(), error.to_string()));
                None
            }
        };
        if job.confirm && self.confirm != job.name.as_str() {
            self.problems.push(("confirm".to_owned(), format!("this is not the name: type {}", job.name)));
        }
        if !self.problems.is_empty() {
            self.trouble = Some(Trouble::of(http::StatusCode::BAD_REQUEST, "the job was not run"));
            return None;
        }
        let request =
            v1::ExecuteRequest { id: self.id.clone(), job: job.name.to_string(), arguments, timeout, ..Default::default() };
        Some(request)
    }

    /// Takes in what the controller found wrong.
    pub(super) fn refused(&mut self, job: &JobDefinition, fault: &Fault) {
        let mut rest = fault.clone();
        rest.violations.clear();
        for violation in &fault.violations {
            if job.argument(&violation.field).is_some() {
                let named = format!("argument `{}`", violation.field);
                let said = violation.description.strip_prefix(&named).unwrap_or(&violation.description);
                let said = said.strip_prefix(':').unwrap_or(said).trim_start();
                self.problems.push((format!("{ARGUMENT}{}", violation.field), said.to_owned()));
            } else if violation.field == "timeout" {
                self.problems.push(("timeout".to_owned(), violation.description.clone()));
            } else {
                rest.violations.push(violation.clone());
            }
        }
        // Sent again, it is another form: this id is taken, or was made too long ago.
        let id = fault.violations.iter().any(|violation| violation.field == "id");
        if id || fault.reason == reason::ID_TAKEN {
            self.id = ExecutionId::generate().to_string();
        }
        self.trouble = Some(rest.into());
    }

    /// The form's fields, in the job's order.
    pub(super) fn fields<'a>(&'a self, job: &'a JobDefinition) -> Vec<Field<'a>> {
        let field = |argument: &'a Argument| {
            let value = self.values.get(&argument.name).filter(|_| !argument.sensitive);
            Field {
                argument,
                value: value.map_or("", String::as_str),
                problem: self.problem(&format!("{ARGUMENT}{}", argument.name)),
            }
        };
        job.env_vars.args.iter().map(field).collect()
    }

    /// What is wrong with the field of this name.
    pub(super) fn problem(&self, field: &str) -> Option<&str> {
        self.problems.iter().find(|(of, _)| of == field).map(|(_, problem)| problem.as_str())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn job() -> JobDefinition {
        serde_json::from_value(json!({
            "name": "a", "confirm": true,
            "env_vars": {"args": [
                {"name": "text", "default": "x"}, {"name": "free"}, {"name": "count", "type": "integer", "default": 3},
                {"name": "pin", "sensitive": true, "default": "1234"}, {"name": "sure", "type": "boolean"},
            ]},
        }))
        .unwrap()
    }

    #[test]
    fn what_is_left_empty_is_left_to_the_job() {
        let mut draft = Draft::sent(
            &job(),
            &Fields::of_query(Some("id=1&confirm=a&arg.text=&arg.free=&arg.count=&arg.pin=&arg.sure=&timeout=5m")),
        );
        let request = draft.request(&job()).unwrap();
        assert_eq!(request.arguments, [("text".to_owned(), String::new())].into(), "its default was taken out of the field");
        assert_eq!(request.timeout.unwrap().seconds, 300);
    }

    #[test]
    fn a_job_that_asks_for_its_name_does_not_run_without() {
        let mut draft = Draft::sent(&job(), &Fields::of_query(Some("id=1&confirm=A&timeout=soon&arg.pin=4321")));
        assert!(draft.request(&job()).is_none());
        assert!(draft.problem("confirm").is_some() && draft.problem("timeout").is_some());
        assert!(draft.fields(&job()).iter().all(|field| field.value != "4321"), "what is sensitive is not shown again");
    }
}
