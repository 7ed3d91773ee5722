//! What a schema cannot say about a job: names of variables, defaults within their own rules, patterns that compile. The loader
//! of files and the controller both ask here, so that a client that skips its own check gets the same findings.

use std::collections::{BTreeSet, HashMap};

use regex::Regex;

use crate::argument;
use crate::definition::{Approvals, Argument, ArgumentType, JobDefinition, Logs, MAX_PRIORITY, Scalar, Schedule, SecretSource};
use crate::duration::HumanDuration;
use crate::label;
use crate::limit::{
    APPROVAL_COUNT, APPROVAL_GROUP_BYTES, APPROVAL_GROUPS, APPROVAL_VALID_MAX, APPROVAL_VALID_MIN, LABELS, LOG_BYTES_MIN,
    LOG_KEPT_MIN, VARIABLE_NAME_CHARS, VARIABLES_PER_JOB,
};
use crate::schedule::{ScheduleError, Ticks};
use crate::size::{ByteSize, SizeLimit};

/// How much a finding weighs.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Severity {
    /// The job cannot be taken as it is.
    Error,
    /// The job can be taken; someone should look.
    Warning,
}

/// Something to say about a definition.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Finding {
    /// How much it weighs.
    pub severity: Severity,
    /// A stable code, like `default-type`.
    pub code: &'static str,
    /// Where: a JSON pointer into the definition, like `/env_vars/args/0/default`.
    pub pointer: String,
    /// What is wrong, a lower-case fragment.
    pub message: String,
    /// What to do; empty where the message says it.
    pub hint: String,
}

/// Longest message or hint, in characters: what it repeats of a file may be as long as the file.
const MESSAGE_CHARS: usize = 1000;

/// A message with its middle left out where it is longer than anyone reads; its end often says what is wrong.
#[must_use]
pub fn shortened(message: String) -> String {
    if message.len() <= MESSAGE_CHARS {
        return message;
    }
    let chars = message.chars().count();
    if chars <= MESSAGE_CHARS {
        return message;
    }
    let half = MESSAGE_CHARS / 2;
    message.chars().take(half).chain(['…']).chain(message.chars().skip(chars - half)).collect()
}

struct Findings(Vec<Finding>);

impl Findings {
    fn error(&mut self, code: &'static str, pointer: impl Into<String>, message: impl Into<String>, hint: impl Into<String>) {
        self.0.push(Finding {
            severity: Severity::Error,
            code,
            pointer: pointer.into(),
            message: shortened(message.into()),
            hint: shortened(hint.into()),
        });
    }

    fn warning(&mut self, code: &'static str, pointer: impl Into<String>, message: impl Into<String>, hint: impl Into<String>) {
        self.error(code, pointer, message, hint);
        if let Some(last) = self.0.last_mut() {
            last.severity = Severity::Warning;
        }
    }
}

/// Patterns that were compiled already, and schedules that were read: the jobs of a catalogue share many, and compiling one takes longer than all other checks
/// of a job.
#[derive(Debug, Clone, Default)]
pub struct Patterns {
    /// What is wrong about each; `None` where it compiles.
    problems: HashMap<String, Option<String>>,
    compiled: HashMap<String, Regex>,
    /// What is wrong about each cron with its time zone; `None` where it has ticks.
    schedules: HashMap<(String, Option<String>), Option<ScheduleError>>,
}

/// Compiled patterns that are kept; with more, the ones so far are dropped. Each may take 1 MiB.
const KEPT_PATTERNS: usize = 100;

impl Patterns {
    /// What is wrong about a pattern; `None` where it compiles.
    fn problem(&mut self, pattern: &str) -> Option<String> {
        if let Some(known) = self.problems.get(pattern) {
            return known.clone();
        }
        let problem = self.compile(pattern).err().map(|error| {
            let detail = error.to_string();
            detail.lines().last().unwrap_or_default().trim_start_matches("error: ").to_owned()
        });
        self.problems.insert(pattern.to_owned(), problem.clone());
        problem
    }

    /// Why a schedule has no ticks; `None` where it has.
    fn schedule_error(&mut self, schedule: &Schedule) -> Option<ScheduleError> {
        let of = (schedule.cron.clone(), schedule.time_zone.clone());
        self.schedules.entry(of).or_insert_with(|| Ticks::of(schedule).err()).clone()
    }

    fn compile(&mut self, pattern: &str) -> Result<Regex, regex::Error> {
        if let Some(regex) = self.compiled.get(pattern) {
            return Ok(regex.clone());
        }
        let regex = argument::compile_pattern(pattern)?;
        if self.compiled.len() >= KEPT_PATTERNS {
            self.compiled.clear();
        }
        self.compiled.insert(pattern.to_owned(), regex.clone());
        Ok(regex)
    }

    /// As [`argument::check_value`].
    fn check_value(&mut self, argument: &Argument, value: &str) -> Result<(), String> {
        argument::check_all_but_pattern(argument, value)?;
        let Some(pattern) = &argument.pattern else { return Ok(()) };
        let regex = self.compile(pattern).map_err(|_| format!("its pattern {pattern} does not compile"))?;
        argument::check_pattern(argument, value, &regex)
    }
}

/// Most attempts that may follow a failed one, as the schema has it.
const MAX_RETRIES: u32 = 100;

/// Highest limit of executions at once, as the schema has it.
const MAX_CONCURRENCY: u32 = 10_000;

/// Everything there is to say about a definition.
#[must_use]
pub fn check(job: &JobDefinition) -> Vec<Finding> {
    check_with(job, &mut Patterns::default())
}

/// Everything there is to say about one of many definitions.
#[must_use]
pub fn check_with(job: &JobDefinition, patterns: &mut Patterns) -> Vec<Finding> {
    let mut findings = Findings(Vec::new());
    check_variables(job, &mut findings);
    for (index, argument) in job.env_vars.args.iter().enumerate() {
        check_argument(argument, &format!("/env_vars/args/{index}"), patterns, &mut findings);
    }
    for (index, secret) in job.env_vars.secrets.iter().enumerate() {
        check_secret_source(secret.from.as_ref(), &format!("/env_vars/secrets/{index}/from"), &mut findings);
    }
    check_labels(job, &mut findings);
    check_logs(&job.logs, &mut findings);
    if let Some(approvals) = &job.approvals {
        check_approvals(approvals, &mut findings);
    }
    check_rest(job, &mut findings);
    if let Some(schedule) = &job.schedule {
        check_schedule(job, schedule, patterns, &mut findings);
    }
    findings.0
}

fn check_schedule(job: &JobDefinition, schedule: &Schedule, patterns: &mut Patterns, findings: &mut Findings) {
    if let Some(error) = patterns.schedule_error(schedule) {
        let message = error.to_string();
        match error {
            ScheduleError::Fields(_) => findings.error("cron", "/schedule/cron", message, "like `0 3 * * mon-fri`"),
            ScheduleError::ShortForm(_) => findings.error("cron", "/schedule/cron", message, ""),
            ScheduleError::Field { field, .. } => {
                let hint = format!("{}; lists 1,2, ranges 1-5, steps */5 and 0-30/5", field.values);
                findings.error("cron", "/schedule/cron", message, hint);
            }
            ScheduleError::Never(_) => findings.error("never-fires", "/schedule/cron", message, "no such month has such a day"),
            ScheduleError::TimeZone { nearest, .. } => {
                let hint = match nearest {
                    Some(nearest) => format!("did you mean {nearest}?"),
                    None => "zones have names like Asia/Jakarta; without one it is UTC".to_owned(),
                };
                findings.error("time-zone", "/schedule/time_zone", message, hint);
            }
        }
    }
    for (index, argument) in job.env_vars.args.iter().enumerate().filter(|(_, argument)| argument.required) {
        let name = &argument.name;
        let message = format!("`{name}` is required, and the schedule has nobody who gives it");
        let hint = format!("give `{name}` a default instead of `required`, or the job no schedule");
        findings.error("scheduled-argument", format!("/env_vars/args/{index}/required"), message, hint);
    }
}

/// Why an image's reference means another image tomorrow; `None` where it does not.
fn mutable_tag(image: &str) -> Option<String> {
    if image.contains('@') {
        return None;
    }
    // A colon before the last slash is a registry's port.
    let name = image.rsplit('/').next().unwrap_or(image);
    match name.split_once(':') {
        None => {
            Some("the image has no tag, which means `latest`: runs of the same definition may run different images".to_owned())
        }
        Some((_, "latest")) => {
            Some("`latest` is another image tomorrow: runs of the same definition may run different images".to_owned())
        }
        Some(_) => None,
    }
}

fn variable_name_problem(name: &str) -> Option<String> {
    let first_fits = name.starts_with(|c: char| c.is_ascii_alphabetic() || c == '_');
    if !first_fits || !name.chars().all(|c| c.is_ascii_alphanumeric() || c == '_') {
        return Some(format!("\"{}\" cannot be the name of an environment variable", name.escape_debug()));
    }
    if name.len() > VARIABLE_NAME_CHARS {
        return Some(format!("the name has {} characters, at most {VARIABLE_NAME_CHARS} are allowed", name.len()));
    }
    name.to_ascii_uppercase().starts_with("OCTAVIUS_").then(|| format!("names that start with OCTAVIUS_ are reserved: {name}"))
}

fn check_variables(job: &JobDefinition, findings: &mut Findings) {
    let args = job.env_vars.args.iter().map(|argument| &argument.name).enumerate().map(|(i, name)| ("args", i, name));
    let secrets = job.env_vars.secrets.iter().map(|secret| &secret.name).enumerate().map(|(i, name)| ("secrets", i, name));
    let mut seen = BTreeSet::new();
    for (list, index, name) in args.chain(secrets) {
        let pointer = format!("/env_vars/{list}/{index}/name");
        if let Some(problem) = variable_name_problem(name) {
            let hint = if problem.contains("reserved") {
                "use another prefix"
            } else {
                "use letters, digits and _, not starting with a digit"
            };
            findings.error("variable-name", &pointer, problem, hint);
        }
        if !seen.insert(name) {
            findings.error(
                "duplicate-variable",
                &pointer,
                format!("`{name}` is declared twice"),
                "give one of them another name",
            );
        }
    }
    for (list, count) in [("args", job.env_vars.args.len()), ("secrets", job.env_vars.secrets.len())] {
        if count > VARIABLES_PER_JOB {
            let message = format!("{count} {list}, at most {VARIABLES_PER_JOB} are allowed");
            findings.error("too-many-variables", format!("/env_vars/{list}"), message, "");
        }
    }
}

fn check_argument(argument: &Argument, pointer: &str, patterns: &mut Patterns, findings: &mut Findings) {
    let name = &argument.name;
    let kind = argument.kind;
    if argument.required && argument.default.is_some() {
        let message = format!("`{name}` is required and has a default");
        findings.error("required-default", format!("{pointer}/default"), message, "remove `required`, or the default");
    }
    if let Some(problem) = argument.pattern.as_deref().and_then(|pattern| patterns.problem(pattern)) {
        findings.error("pattern", format!("{pointer}/pattern"), format!("the pattern does not compile: {problem}"), "");
        return;
    }
    let mut choices_fit = true;
    let mut seen = BTreeSet::new();
    for (index, choice) in argument.choices.iter().enumerate() {
        let at = format!("{pointer}/enum/{index}");
        if let Err(expected) = argument::check_type(kind, &choice.0) {
            choices_fit = false;
            let message = format!("\"{}\" is not {expected}", shown(argument, choice));
            findings.error("enum-type", &at, message, format!("`{name}` has type {}", kind.as_str()));
        }
        if !seen.insert(choice) {
            findings.error("enum-duplicate", &at, format!("\"{}\" is listed twice", shown(argument, choice)), "");
        }
    }
    let Some(default) = &argument.default else { return };
    let at = format!("{pointer}/default");
    if let Err(expected) = argument::check_type(kind, &default.0) {
        let hint = match kind {
            ArgumentType::Integer | ArgumentType::Number => "write a number, or `type: string`",
            _ => "change the default, or the type",
        };
        findings.error("default-type", at, format!("\"{}\" is not {expected}", shown(argument, default)), hint);
    } else if choices_fit && let Err(problem) = patterns.check_value(argument, &default.0) {
        findings.error("default-value", at, format!("the default does not fit: {problem}"), "");
    } else if argument.sensitive {
        let message = format!("`{name}` is sensitive, and its default is readable in the file");
        findings.warning("sensitive-default", at, message, "make it required, or declare it as a secret");
    }
}

fn shown(argument: &Argument, value: &Scalar) -> String {
    if argument.sensitive { argument::MASK.to_owned() } else { value.0.escape_debug().to_string() }
}

fn check_secret_source(from: Option<&SecretSource>, pointer: &str, findings: &mut Findings) {
    let (parts, what): (Vec<(&str, &str)>, _) = match from {
        None => return,
        Some(SecretSource::Kubernetes(source)) => {
            (vec![("/kubernetes/secret", &source.secret), ("/kubernetes/key", &source.key)], "name")
        }
        Some(SecretSource::Environment(variable)) => (vec![("/environment", variable)], "variable"),
        Some(SecretSource::File(path)) => (vec![("/file", path)], "path"),
    };
    for (part, text) in parts {
        if text.is_empty() || text.contains('\0') {
            findings.error("secret-source", format!("{pointer}{part}"), format!("not a {what}: \"{}\"", text.escape_debug()), "");
        }
    }
}

fn check_labels(job: &JobDefinition, findings: &mut Findings) {
    for (field, labels) in [("executor", &job.executor), ("labels", &job.labels)] {
        if labels.len() > LABELS {
            let message = format!("{} labels, at most {LABELS} are allowed", labels.len());
            findings.error("too-many-labels", format!("/{field}"), message, "");
        }
        for (key, value) in labels {
            let pointer = format!("/{field}/{}", key.replace('~', "~0").replace('/', "~1"));
            if !label::is_valid_part(key, true) || !label::is_valid_part(value, false) {
                let message = format!("\"{}={}\" is not a label", key.escape_debug(), value.escape_debug());
                findings.error("label", pointer, message, "keys and values are 1 to 63 characters of A-Z a-z 0-9 . _ -");
            }
        }
    }
}

fn check_logs(logs: &Logs, findings: &mut Findings) {
    let Logs { limit, keep_for, keep_bytes } = logs;
    let least = ByteSize::new(LOG_BYTES_MIN);
    let small = |size: &ByteSize| *size < least;
    if let Some(SizeLimit::Bytes(size)) = limit.filter(|limit| limit.most() < LOG_BYTES_MIN) {
        let hint = format!("{least} or more, or `none` to keep all");
        findings.error("range", "/logs/limit", format!("{size} is out of range for `limit`"), hint);
    }
    if let Some(kept) = keep_for.filter(|kept| kept.get() < LOG_KEPT_MIN) {
        let hint = format!("{} to {}", HumanDuration::new(LOG_KEPT_MIN), HumanDuration::new(HumanDuration::MAX));
        findings.error("range", "/logs/keep_for", format!("{kept} is out of range for `keep_for`"), hint);
    }
    if let Some(size) = keep_bytes.filter(small) {
        findings.error(
            "range",
            "/logs/keep_bytes",
            format!("{size} is out of range for `keep_bytes`"),
            format!("{least} or more"),
        );
    }
}

fn check_approvals(approvals: &Approvals, findings: &mut Findings) {
    let Approvals { groups, count, not_self: _, valid_for } = approvals;
    check_groups(groups, "/approvals/groups", findings);
    if groups.len() > APPROVAL_GROUPS {
        let message = format!("{} groups, at most {APPROVAL_GROUPS} are allowed", groups.len());
        findings.error("too-many-groups", "/approvals/groups", message, "one group that they are all in");
    }
    for (index, group) in groups.iter().enumerate().filter(|(_, group)| group.len() > APPROVAL_GROUP_BYTES) {
        let message = format!("the group's name has {} bytes, at most {APPROVAL_GROUP_BYTES} are allowed", group.len());
        findings.error("group", format!("/approvals/groups/{index}"), message, "");
    }
    if !(1..=APPROVAL_COUNT).contains(count) {
        let message = format!("{count} is out of range for `count`");
        findings.error("range", "/approvals/count", message, format!("1 to {APPROVAL_COUNT}"));
    }
    if let Some(valid_for) = valid_for.filter(|valid_for| !(APPROVAL_VALID_MIN..=APPROVAL_VALID_MAX).contains(&valid_for.get())) {
        let hint = format!("{} to {}", HumanDuration::new(APPROVAL_VALID_MIN), HumanDuration::new(APPROVAL_VALID_MAX));
        findings.error("range", "/approvals/valid_for", format!("{valid_for} is out of range for `valid_for`"), hint);
    }
}

fn check_groups(groups: &[String], pointer: &str, findings: &mut Findings) {
    for (index, _) in groups.iter().enumerate().filter(|(_, group)| group.trim().is_empty()) {
        findings.error("group", format!("{pointer}/{index}"), "a group without a name", "");
    }
}

fn check_rest(job: &JobDefinition, findings: &mut Findings) {
    for (index, part) in job.command.iter().enumerate() {
        if part.contains('\0') || (index == 0 && part.is_empty()) {
            findings.error("command", format!("/command/{index}"), "not a program or argument", "");
        }
    }
    if job.command.is_empty() && job.image_name.is_empty() {
        let hint = "add `image_name` for Kubernetes, `command` for the process runner, or both";
        findings.error("nothing-to-run", "/name", format!("`{}` has neither image_name nor command", job.name), hint);
    }
    // The loader finds these by the schema already, with the same code and words: here they are for definitions that came another
    // way.
    let limit = job.concurrency.map_or(1, |concurrency| concurrency.limit);
    for (pointer, value, min, max) in [
        ("/priority", u32::from(job.priority), 0, u32::from(MAX_PRIORITY)),
        ("/retries", job.retries, 0, MAX_RETRIES),
        ("/concurrency/limit", limit, 1, MAX_CONCURRENCY),
    ] {
        if !(min..=max).contains(&value) {
            let field = pointer.rsplit('/').next().unwrap_or_default();
            findings.error("range", pointer, format!("{value} is out of range for `{field}`"), format!("{min} to {max}"));
        }
    }
    if job.timeout.is_some_and(|timeout| timeout.get().is_zero()) {
        findings.error("timeout", "/timeout", "a timeout of 0s ends every run at once", "leave it out for the default of 24h");
    }
    check_groups(&job.authorized_groups, "/authorized_groups", findings);
    if let Some(problem) = mutable_tag(&job.image_name).filter(|_| !job.image_name.is_empty()) {
        findings.warning("mutable-tag", "/image_name", problem, "name a version, like `:1.8.2`, or a digest: `@sha256:…`");
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn codes(json: &str) -> Vec<(&'static str, String)> {
        let job: JobDefinition = serde_json::from_str(json).unwrap();
        check(&job).into_iter().map(|finding| (finding.code, finding.pointer)).collect()
    }

    #[test]
    fn a_good_job_has_no_findings() {
        let job =
            r#"{"name":"a","command":["true"],"env_vars":{"args":[{"name":"n","type":"integer","default":1,"enum":[1,2]}]}}"#;
        assert_eq!(codes(job), []);
    }

    #[test]
    fn every_finding_of_a_job_is_told_at_once_with_its_place() {
        let json = r#"{"name":"a","image_name":"i","timeout":"0s","env_vars":{"args":[
            {"name":"1x"},{"name":"OCTAVIUS_ID"},{"name":"b","required":true,"default":"x"},{"name":"b"},
            {"name":"p","pattern":"("},{"name":"t","type":"integer","default":"many"},{"name":"e","enum":["x"],"default":"y"}],
            "secrets":[{"name":"b"}]},"executor":{"vpc":"not a label"}}"#;
        let expected = [
            ("variable-name", "/env_vars/args/0/name"),
            ("variable-name", "/env_vars/args/1/name"),
            ("duplicate-variable", "/env_vars/args/3/name"),
            ("duplicate-variable", "/env_vars/secrets/0/name"),
            ("required-default", "/env_vars/args/2/default"),
            ("pattern", "/env_vars/args/4/pattern"),
            ("default-type", "/env_vars/args/5/default"),
            ("default-value", "/env_vars/args/6/default"),
            ("label", "/executor/vpc"),
            ("timeout", "/timeout"),
            ("mutable-tag", "/image_name"),
        ];
        assert_eq!(codes(json), expected.map(|(code, pointer)| (code, pointer.to_owned())));
    }

    #[test]
    fn a_message_does_not_repeat_a_whole_file() {
        let json = format!(
            r#"{{"name":"a","command":["true"],"env_vars":{{"args":[{{"name":"n","type":"integer","default":"{}"}}]}}}}"#,
            "é".repeat(50_000)
        );
        let job: JobDefinition = serde_json::from_str(&json).unwrap();
        let found = check(&job);
        assert_eq!(found[0].message.chars().count(), 1001);
        assert!(found[0].message.starts_with("\"éé") && found[0].message.ends_with("is not an integer"), "{}", found[0].message);
        assert_eq!(shortened("é".repeat(1000)), "é".repeat(1000));
    }

    #[test]
    fn numbers_are_held_to_the_range_that_the_schema_has() {
        let job = |priority: u32, retries: u32, limit: u32| {
            format!(
                r#"{{"name":"a","command":["true"],"priority":{priority},"retries":{retries},"concurrency":{{"limit":{limit}}}}}"#
            )
        };
        let ranges = |json: String| {
            let mut found = codes(&json);
            found.retain(|(code, _)| *code == "range");
            found.into_iter().map(|(_, pointer)| pointer).collect::<Vec<_>>()
        };
        assert_eq!(ranges(job(10, 101, 0)), ["/priority", "/retries", "/concurrency/limit"]);
        assert_eq!(ranges(job(9, 100, 10_001)), ["/concurrency/limit"]);
        assert_eq!(ranges(job(9, 100, 10_000)), [""; 0]);
    }

    #[test]
    fn logs_are_kept_in_a_size_and_for_a_time_that_make_sense() {
        let found = |logs: &str| codes(&format!(r#"{{"name":"a","command":["true"],"logs":{logs}}}"#));
        assert_eq!(found(r#"{"limit":"64KiB","keep_for":"1h","keep_bytes":"64KiB"}"#), []);
        assert_eq!(found(r#"{"limit":"none"}"#), []);
        let expected = ["limit", "keep_for", "keep_bytes"].map(|field| ("range", format!("/logs/{field}")));
        assert_eq!(found(r#"{"limit":"65535B","keep_for":"59m","keep_bytes":"0"}"#), expected);
    }

    #[test]
    fn a_schedule_that_cannot_run_the_job_is_told() {
        let found = |schedule: &str, required: bool| {
            codes(&format!(
                r#"{{"name":"a","command":["x"],"confirm":true,"schedule":{schedule},"env_vars":{{"args":[{{"name":"o"}},{{"name":"p","required":{required}}}]}}}}"#
            ))
        };
        assert_eq!(found(r#"{"cron":"0 3 * * *","time_zone":"Asia/Jakarta"}"#, false), []);
        let expected = [("time-zone", "/schedule/time_zone"), ("scheduled-argument", "/env_vars/args/1/required")];
        assert_eq!(found(r#"{"cron":"0 3 * * *","time_zone":"Jakart"}"#, true), expected.map(|(code, at)| (code, at.to_owned())));
        assert_eq!(found(r#"{"cron":"0 3 * *"}"#, false), [("cron", "/schedule/cron".to_owned())]);
        assert_eq!(found(r#"{"cron":"0 3 30 feb *"}"#, false), [("never-fires", "/schedule/cron".to_owned())]);
    }

    #[test]
    fn an_image_that_may_be_another_one_tomorrow_is_told() {
        for (image, told) in [
            ("refund", true),
            ("refund:latest", true),
            ("registry.example:5000/team/refund", true),
            ("registry.example:5000/team/refund:latest", true),
            ("refund:1.8.2", false),
            ("registry.example:5000/team/refund:1", false),
            ("refund@sha256:00", false),
            ("refund:latest@sha256:00", false),
            ("", false),
        ] {
            let job: JobDefinition =
                serde_json::from_value(serde_json::json!({"name": "a", "image_name": image, "command": ["x"]})).unwrap();
            let found = check(&job);
            assert_eq!(found.iter().any(|finding| finding.code == "mutable-tag"), told, "{image}");
            assert!(found.iter().all(|finding| finding.severity == Severity::Warning));
        }
    }

    #[test]
    fn a_pattern_is_compiled_once_for_all_jobs_and_their_defaults() {
        let mut patterns = Patterns::default();
        let found = |patterns: &mut Patterns, default: &str| -> Vec<_> {
            let json = format!(
                r#"{{"name":"a","command":["x"],"env_vars":{{"args":[{{"name":"o","pattern":"A-[0-9]+","default":"{default}"}},
                {{"name":"q","pattern":"("}}]}}}}"#
            );
            let job: JobDefinition = serde_json::from_str(&json).unwrap();
            check_with(&job, patterns).into_iter().map(|finding| finding.code).collect()
        };
        assert_eq!(found(&mut patterns, "A-1"), ["pattern"]);
        assert_eq!(found(&mut patterns, "B-1"), ["default-value", "pattern"]);
        assert_eq!((patterns.problems.len(), patterns.compiled.len()), (2, 1));
        // With another in its place it is seen that the one that was kept is used.
        patterns.compiled.insert("A-[0-9]+".into(), Regex::new("^B").unwrap());
        patterns.problems.insert("(".into(), None);
        assert_eq!(found(&mut patterns, "A-1"), ["default-value"]);
        assert_eq!(found(&mut patterns, "B-1"), [""; 0]);
        for number in 0..3 * KEPT_PATTERNS {
            assert_eq!(patterns.problem(&format!("x{number}")), None);
            assert!(patterns.compiled.len() <= KEPT_PATTERNS);
        }
    }

    /// A rule out of bounds would be kept with each execution, or let one start long after anybody remembers why.
    #[test]
    fn approvals_are_within_their_bounds() {
        let codes = |rule: &str| codes(&format!(r#"{{"name":"a","command":["x"],"approvals":{rule}}}"#));
        assert_eq!(codes("{}"), []);
        assert_eq!(codes(r#"{"groups":["ops"],"count":10,"not_self":false,"valid_for":"30d"}"#), []);
        assert_eq!(
            codes(r#"{"groups":["ops"," "],"count":0,"valid_for":"59s"}"#),
            [
                ("group", "/approvals/groups/1".into()),
                ("range", "/approvals/count".into()),
                ("range", "/approvals/valid_for".into())
            ]
        );
        assert_eq!(
            codes(r#"{"count":11,"valid_for":"31d"}"#),
            [("range", "/approvals/count".into()), ("range", "/approvals/valid_for".into())]
        );
        let many = serde_json::to_string(&vec!["x".repeat(129); 11]).unwrap();
        let found = codes(&format!(r#"{{"groups":{many}}}"#));
        assert_eq!((found[0].0, found.len()), ("too-many-groups", 12));
    }

    #[test]
    fn a_sensitive_default_is_in_no_message() {
        let json = r#"{"name":"a","image_name":"i","env_vars":{"args":[{"name":"p","sensitive":true,"type":"integer","default":"hunter2"}]}}"#;
        let choice = r#"{"name":"a","command":["x"],"env_vars":{"args":[{"name":"p","sensitive":true,"enum":["hunter2"],"default":"hunter1"}]}}"#;
        for json in [json, choice] {
            let job: JobDefinition = serde_json::from_str(json).unwrap();
            assert!(!format!("{:?}", check(&job)).contains("hunter"), "{:?}", check(&job));
        }
    }
}
