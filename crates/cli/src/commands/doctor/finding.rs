//! What a check has found, and how that is shown.

use anstyle::{AnsiColor, Style};
use serde_json::{Value, json};

use crate::error::Failure;
use crate::output::Shell;
use crate::sanitize::line;

/// What is checked together, in the order in which it is shown.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Area {
    /// How this machine's configuration says that a controller is reached.
    Client,
    /// The controllers, as they answer.
    Controllers,
    /// The executors, as a controller sees them.
    Executors,
    /// The catalogue in the working directory.
    Catalog,
    /// What a controller's configuration on this machine says.
    ControllerHost,
    /// What an executor's configuration on this machine says.
    ExecutorHost,
}

impl Area {
    pub(super) const ALL: [Self; 6] =
        [Self::Client, Self::Controllers, Self::Executors, Self::Catalog, Self::ControllerHost, Self::ExecutorHost];

    /// The code in JSON; as a heading, underscores are blanks.
    pub(super) const fn code(self) -> &'static str {
        match self {
            Self::Client => "client",
            Self::Controllers => "controllers",
            Self::Executors => "executors",
            Self::Catalog => "catalog",
            Self::ControllerHost => "controller_host",
            Self::ExecutorHost => "executor_host",
        }
    }
}

/// What a check came to.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Verdict {
    /// As it should be.
    Ok,
    /// It works, and may not for long, or not as somebody thinks.
    Warning,
    /// It does not work.
    Problem,
    /// It could not be looked at, or there is nothing to look at.
    Skipped,
}

impl Verdict {
    pub(super) const fn code(self) -> &'static str {
        match self {
            Self::Ok => "ok",
            Self::Warning => "warning",
            Self::Problem => "problem",
            Self::Skipped => "skipped",
        }
    }

    const fn style(self) -> Style {
        match self {
            Self::Ok => AnsiColor::Green.on_default(),
            Self::Warning => AnsiColor::Yellow.on_default().bold(),
            Self::Problem => AnsiColor::Red.on_default().bold(),
            Self::Skipped => Style::new().dimmed(),
        }
    }
}

/// What one check has found.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Finding {
    pub(super) area: Area,
    /// What was looked at, in one word: `token`.
    pub(super) check: &'static str,
    /// Which one of several; empty where there is one.
    pub(super) subject: String,
    pub(super) verdict: Verdict,
    /// What was found.
    pub(super) message: String,
    /// What to do about it, a line each; some for each problem.
    pub(super) remedies: Vec<String>,
}

impl Finding {
    fn new(area: Area, check: &'static str, verdict: Verdict, message: impl Into<String>) -> Self {
        Self { area, check, subject: String::new(), verdict, message: message.into(), remedies: Vec::new() }
    }

    pub(super) fn ok(area: Area, check: &'static str, message: impl Into<String>) -> Self {
        Self::new(area, check, Verdict::Ok, message)
    }

    pub(super) fn skipped(area: Area, check: &'static str, message: impl Into<String>) -> Self {
        Self::new(area, check, Verdict::Skipped, message)
    }

    pub(super) fn warning(area: Area, check: &'static str, message: impl Into<String>, remedy: impl Into<String>) -> Self {
        Self::new(area, check, Verdict::Warning, message).remedy(remedy)
    }

    pub(super) fn problem(area: Area, check: &'static str, message: impl Into<String>, remedy: impl Into<String>) -> Self {
        Self::new(area, check, Verdict::Problem, message).remedy(remedy)
    }

    /// The problem that a failure tells, with its hints as remedies; `otherwise` where it has none.
    pub(super) fn failed(area: Area, check: &'static str, failure: &Failure, otherwise: &str) -> Self {
        let told = failure.error.as_ref().map(|error| format!("{error:#}")).unwrap_or_default();
        let message = std::iter::once(told).chain(failure.details.iter().cloned()).collect::<Vec<_>>().join("; ");
        let finding = Self::new(area, check, Verdict::Problem, message);
        if failure.hints.is_empty() { finding.remedy(otherwise) } else { Self { remedies: failure.hints.clone(), ..finding } }
    }

    /// Of several, this one.
    pub(super) fn of(mut self, subject: impl Into<String>) -> Self {
        self.subject = subject.into();
        self
    }

    /// One more thing to do.
    pub(super) fn remedy(mut self, remedy: impl Into<String>) -> Self {
        self.remedies.push(remedy.into());
        self
    }
}

/// Whether nothing is a problem.
pub(super) fn is_well(findings: &[Finding]) -> bool {
    findings.iter().all(|finding| finding.verdict != Verdict::Problem)
}

fn count(findings: &[Finding], verdict: Verdict) -> usize {
    findings.iter().filter(|finding| finding.verdict == verdict).count()
}

/// The findings as `schemas/doctor.schema.json` describes them.
pub(super) fn to_json(findings: &[Finding]) -> Value {
    let checks = findings.iter().map(|finding| {
        json!({
            "area": finding.area.code(),
            "check": finding.check,
            "subject": finding.subject,
            "verdict": finding.verdict.code(),
            "message": finding.message,
            "remedies": finding.remedies,
        })
    });
    json!({
        "ok": is_well(findings),
        "summary": {
            "ok": count(findings, Verdict::Ok),
            "warnings": count(findings, Verdict::Warning),
            "problems": count(findings, Verdict::Problem),
            "skipped": count(findings, Verdict::Skipped),
        },
        "checks": checks.collect::<Vec<_>>(),
    })
}

/// The findings for people: each on a line, under it what to do.
pub(super) fn to_text(findings: &[Finding], shell: &Shell) -> String {
    let mut text = String::new();
    for area in Area::ALL {
        let mut within = findings.iter().filter(|finding| finding.area == area).peekable();
        if within.peek().is_some() {
            text.push_str(&format!("{}\n", area.code().replace('_', " ")));
        }
        for Finding { check, subject, verdict, message, remedies, .. } in within {
            let style = if shell.color() { verdict.style() } else { Style::new() };
            let label = if subject.is_empty() { (*check).to_owned() } else { format!("{check} {}", line(subject)) };
            text.push_str(&format!("  {style}{:<7}{style:#}  {label}: {}\n", verdict.code(), line(message)));
            for remedy in remedies {
                text.push_str(&format!("           {}\n", line(remedy)));
            }
        }
    }
    let counted = |verdict, one: &str, many: &str| {
        let count = count(findings, verdict);
        format!("{count} {}", if count == 1 { one } else { many })
    };
    text.push_str(&format!(
        "{}, {}, {}, {}\n",
        counted(Verdict::Ok, "ok", "ok"),
        counted(Verdict::Warning, "warning", "warnings"),
        counted(Verdict::Problem, "problem", "problems"),
        counted(Verdict::Skipped, "skipped", "skipped"),
    ));
    text
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::BTreeSet;

    fn findings() -> Vec<Finding> {
        vec![
            Finding::ok(Area::Client, "configuration", "~/.octavius/octavius_client.yaml, mode 600"),
            Finding::problem(Area::Controllers, "address", "connection refused", "start it").of("ctl-2:3000"),
            Finding::warning(Area::Executors, "present", "e\u{1b}[2J is away", "start it").remedy("or revoke it"),
            Finding::skipped(Area::Catalog, "files", "no octavius.yaml here"),
        ]
    }

    #[test]
    fn each_finding_is_a_line_with_its_remedies_under_it() {
        insta::assert_snapshot!(to_text(&findings(), &Shell::new(true)), @r"
        client
          ok       configuration: ~/.octavius/octavius_client.yaml, mode 600
        controllers
          problem  address ctl-2:3000: connection refused
                   start it
        executors
          warning  present: e�[2J is away
                   start it
                   or revoke it
        catalog
          skipped  files: no octavius.yaml here
        1 ok, 1 warning, 1 problem, 1 skipped
        ");
    }

    #[test]
    fn json_is_as_the_schema_says() {
        let schema = concat!(env!("CARGO_MANIFEST_DIR"), "/../../schemas/doctor.schema.json");
        let schema: Value = serde_json::from_str(&std::fs::read_to_string(schema).unwrap()).unwrap();
        let validator = jsonschema::draft7::new(&schema).unwrap();
        let mut json = to_json(&findings());
        json["format_version"] = crate::output::FORMAT_VERSION.into();
        let problems: Vec<_> = validator.iter_errors(&json).map(|error| error.to_string()).collect();
        assert_eq!(problems, Vec::<String>::new(), "{json}");
        assert_eq!((json["ok"].as_bool(), json["summary"]["problems"].as_u64()), (Some(false), Some(1)));
        let known = |pointer: &str| -> BTreeSet<String> {
            let names = schema.pointer(pointer).and_then(Value::as_array).unwrap();
            names.iter().map(|name| name.as_str().unwrap().to_owned()).collect()
        };
        let check = "/properties/checks/items/properties";
        assert_eq!(known(&format!("{check}/area/enum")), Area::ALL.map(|area| area.code().to_owned()).into());
        let all = [Verdict::Ok, Verdict::Warning, Verdict::Problem, Verdict::Skipped];
        assert_eq!(known(&format!("{check}/verdict/enum")), all.map(|verdict| verdict.code().to_owned()).into());
    }
}
