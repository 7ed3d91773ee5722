//! What changed between two definitions of a job, field by field, as people read it. Every field is named here, without `..`, so
//! that a new field does not compile until someone decides what a change of it means.

use std::collections::{BTreeMap, HashMap};
use std::time::Duration;

use octavius_core::JobDefinition;
use octavius_core::argument::MASK;
use octavius_core::definition::{
    Approvals, Argument, ArgumentType, Concurrency, EnvVars, KubernetesSecret, Logs, Resources, Scalar, Schedule, Secret,
    SecretSource,
};
use serde::{Deserialize, Serialize};

use crate::defaults::by_key;
use crate::document::{Document, escaped};
use crate::manifest::Inherited;

/// One field that is not the same.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct FieldChange {
    /// Which field: `args.limit.default`, `labels.team`, `authorized_groups`.
    pub path: String,
    /// Its value before; `None` where it was not there. A sensitive value is masked.
    pub before: Option<String>,
    /// Its value after; `None` where it is gone. A sensitive value is masked.
    pub after: Option<String>,
    /// Its line in the file that says the new value; `None` where no file does.
    pub line: Option<u32>,
    /// The file that says the new value, where it is not the job's own: the job inherits it from there. As `LoadedJob::file` is
    /// written.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub file: Option<String>,
    /// For texts of several lines, the change as a unified diff without header.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub unified: Option<String>,
}

/// What changed from `before` to `after`; empty exactly where they are equal. `document` is the file of `after`, and `inherited`
/// what `after` has from other files: for the places of new values.
#[must_use]
pub fn diff(
    before: &JobDefinition,
    after: &JobDefinition,
    document: Option<&Document>,
    inherited: &[Inherited],
) -> Vec<FieldChange> {
    let mut differ = Differ { document, inherited, changes: Vec::new() };
    differ.job(before, after);
    if differ.changes.is_empty() && before != after {
        // Two entries of one name, which no checked definition has, can hide a difference from the comparison by name.
        differ.push("definition", "/name", None, Some("differs".into()));
    }
    differ.changes
}

struct Differ<'a> {
    document: Option<&'a Document>,
    inherited: &'a [Inherited],
    changes: Vec<FieldChange>,
}

/// The parts of two lists that have names of their own, compared by them.
fn by_name<'t, T>(list: &'t [T], name: impl Fn(&T) -> &str, wanted: &str) -> Option<&'t T> {
    list.iter().find(|item| name(item) == wanted)
}

fn word(value: &impl Serialize) -> String {
    let value = serde_json::to_value(value).unwrap_or_default();
    value.as_str().map_or_else(|| value.to_string(), str::to_owned)
}

impl Differ<'_> {
    /// The line of a new value, and its file where that is not the job's own.
    fn place(&self, pointer: &str) -> (Option<u32>, Option<String>) {
        let own = self.document.and_then(|document| document.key(pointer).or_else(|| document.value(pointer)));
        own.map_or_else(|| self.place_above(pointer), |span| (Some(span.line), None))
    }

    /// The line and the file of a new value that the job's own file does not say.
    fn place_above(&self, pointer: &str) -> (Option<u32>, Option<String>) {
        // A list is inherited as a whole, a map key by key: the value may be a part of what is inherited, or the other way round.
        let is_within =
            |part: &str, whole: &str| part.strip_prefix(whole).is_some_and(|rest| rest.is_empty() || rest.starts_with('/'));
        let said = self.inherited.iter().find(|said| is_within(pointer, &said.field) || is_within(&said.field, pointer));
        (said.map(|said| said.line), said.map(|said| said.file.clone()))
    }

    fn change(&mut self, path: &str, pointer: &str, before: Option<String>, after: Option<String>) {
        let (line, file) = if after.is_some() { self.place(pointer) } else { (None, None) };
        self.changes.push(FieldChange { path: path.to_owned(), before, after, line, file, unified: None });
    }

    fn push(&mut self, path: &str, pointer: &str, before: Option<String>, after: Option<String>) {
        if before != after {
            self.change(path, pointer, before, after);
        }
    }

    /// A change that is told although both sides look the same: of masked values.
    fn masked(&mut self, path: &str, pointer: &str, before: Option<()>, after: Option<()>) {
        let mask = |value: Option<()>| value.map(|()| MASK.to_owned());
        self.change(path, pointer, mask(before), mask(after));
    }

    fn text(&mut self, path: &str, pointer: &str, before: &str, after: &str) {
        if before == after {
            return;
        }
        let present = |text: &str| (!text.is_empty()).then(|| text.to_owned());
        self.push(path, pointer, present(before), present(after));
        if let Some(change) = self.changes.last_mut()
            && (before.trim_end().contains('\n') || after.trim_end().contains('\n'))
        {
            change.unified = Some(unified(before, after));
        }
    }

    fn value<T: PartialEq + ToString>(&mut self, path: &str, pointer: &str, before: &T, after: &T) {
        if before != after {
            self.push(path, pointer, Some(before.to_string()), Some(after.to_string()));
        }
    }

    fn words<T: PartialEq + Serialize>(&mut self, path: &str, pointer: &str, before: &T, after: &T) {
        if before != after {
            self.push(path, pointer, Some(word(before)), Some(word(after)));
        }
    }

    fn optional<T: PartialEq + ToString>(&mut self, path: &str, pointer: &str, before: Option<&T>, after: Option<&T>) {
        self.push(path, pointer, before.map(ToString::to_string), after.map(ToString::to_string));
    }

    fn map(&mut self, path: &str, pointer: &str, before: &BTreeMap<String, String>, after: &BTreeMap<String, String>) {
        if before == after {
            return;
        }
        // Indexed once: a lookup by pointer goes through all keys of a map.
        let own = by_key(self.document.and_then(|document| document.find(pointer)).map(|(_, node)| node));
        let keys = before.keys().chain(after.keys().filter(|key| !before.contains_key(*key)));
        for key in keys.filter(|key| before.get(*key) != after.get(*key)) {
            let (line, file) = match own.get(key.as_str()) {
                _ if !after.contains_key(key) => (None, None),
                Some((line, _)) => (Some(*line), None),
                None => self.place_above(&format!("{pointer}/{}", escaped(key))),
            };
            let (before, after) = (before.get(key).cloned(), after.get(key).cloned());
            self.changes.push(FieldChange { path: format!("{path}.{key}"), before, after, line, file, unified: None });
        }
    }

    /// Lists whose order says little: what was added and what was removed.
    fn list(&mut self, path: &str, pointer: &str, before: &[String], after: &[String]) {
        if before == after {
            return;
        }
        let mut left: HashMap<&str, usize> = HashMap::new();
        for item in before {
            *left.entry(item).or_default() += 1;
        }
        let mut take = |item: &String| left.get_mut(item.as_str()).filter(|count| **count > 0).map(|count| *count -= 1).is_some();
        let new: Vec<_> = after.iter().enumerate().filter(|(_, item)| !take(item)).collect();
        // What `after` did not take of each is gone; of several that are the same, the last ones.
        let mut gone: Vec<_> = before.iter().rev().filter(|item| take(item)).collect();
        gone.reverse();
        if gone.is_empty() && new.is_empty() {
            self.push(path, pointer, Some(before.join(", ")), Some(after.join(", ")));
        }
        for item in gone {
            self.push(path, pointer, Some(item.clone()), None);
        }
        for (index, item) in new {
            self.push(path, &format!("{pointer}/{index}"), None, Some(item.clone()));
        }
    }

    fn job(&mut self, before: &JobDefinition, after: &JobDefinition) {
        let JobDefinition {
            name,
            description,
            image_name,
            command,
            env_vars,
            authorized_groups,
            author,
            contributors,
            organization,
            executor,
            timeout,
            retries,
            on_lost,
            concurrency,
            priority,
            schedule,
            logs,
            resources,
            service_account,
            namespace,
            annotations,
            labels,
            protect,
            confirm,
            approvals,
        } = after;
        self.value("name", "/name", &before.name, name);
        self.text("description", "/description", &before.description, description);
        self.text("image_name", "/image_name", &before.image_name, image_name);
        self.command(&before.command, command);
        self.env_vars(&before.env_vars, env_vars);
        self.list("authorized_groups", "/authorized_groups", &before.authorized_groups, authorized_groups);
        self.approvals(before.approvals.as_ref(), approvals.as_ref());
        self.text("author", "/author", &before.author, author);
        self.text("contributors", "/contributors", &before.contributors, contributors);
        self.text("organization", "/organization", &before.organization, organization);
        self.map("executor", "/executor", &before.executor, executor);
        self.optional("timeout", "/timeout", before.timeout.as_ref(), timeout.as_ref());
        self.value("retries", "/retries", &before.retries, retries);
        self.words("on_lost", "/on_lost", &before.on_lost, on_lost);
        self.concurrency(before.concurrency.as_ref(), concurrency.as_ref());
        self.value("priority", "/priority", &before.priority, priority);
        self.schedule(before.schedule.as_ref(), schedule.as_ref());
        self.logs(&before.logs, logs);
        self.resources(&before.resources, resources);
        self.text("service_account", "/service_account", &before.service_account, service_account);
        self.text("namespace", "/namespace", &before.namespace, namespace);
        self.map("annotations", "/annotations", &before.annotations, annotations);
        self.map("labels", "/labels", &before.labels, labels);
        self.value("protect", "/protect", &before.protect, protect);
        self.value("confirm", "/confirm", &before.confirm, confirm);
    }

    fn command(&mut self, before: &[String], after: &[String]) {
        if before.len() == after.len() {
            for (index, (before, after)) in before.iter().zip(after).enumerate() {
                let pointer = format!("/command/{index}");
                self.text(&format!("command[{index}]"), &pointer, before, after);
            }
            return;
        }
        let shown = |command: &[String]| (!command.is_empty()).then(|| word(&command));
        self.push("command", "/command", shown(before), shown(after));
        let is_long = |command: &[String]| command.iter().any(|part| part.contains('\n'));
        if let Some(change) = self.changes.last_mut()
            && (is_long(before) || is_long(after))
        {
            change.unified = Some(unified(&before.join("\n"), &after.join("\n")));
        }
    }

    fn env_vars(&mut self, before: &EnvVars, after: &EnvVars) {
        let EnvVars { secrets, args } = after;
        let name = |argument: &Argument| -> String { argument.name.clone() };
        for (index, argument) in args.iter().enumerate() {
            let (path, pointer) = (format!("args.{}", argument.name), format!("/env_vars/args/{index}"));
            match by_name(&before.args, |argument| &argument.name, &argument.name) {
                Some(before) => self.argument(&path, &pointer, before, argument),
                None => self.push(&path, &format!("{pointer}/name"), None, Some(summary(argument))),
            }
        }
        for argument in before.args.iter().filter(|argument| by_name(args, |other| &other.name, &argument.name).is_none()) {
            self.push(&format!("args.{}", argument.name), "", Some(summary(argument)), None);
        }
        self.order("args", before.args.iter().map(name).collect(), args.iter().map(name).collect());
        for (index, secret) in secrets.iter().enumerate() {
            let (path, pointer) = (format!("secrets.{}", secret.name), format!("/env_vars/secrets/{index}"));
            match by_name(&before.secrets, |secret| &secret.name, &secret.name) {
                Some(before) => self.secret(&path, &pointer, before, secret),
                None => self.push(&path, &format!("{pointer}/name"), None, Some(secret_summary(secret))),
            }
        }
        for secret in before.secrets.iter().filter(|secret| by_name(secrets, |other| &other.name, &secret.name).is_none()) {
            self.push(&format!("secrets.{}", secret.name), "", Some(secret_summary(secret)), None);
        }
        let name = |secret: &Secret| -> String { secret.name.clone() };
        self.order("secrets", before.secrets.iter().map(name).collect(), secrets.iter().map(name).collect());
    }

    /// The order of what both have, where it changed: arguments are asked for and listed in it.
    fn order(&mut self, list: &str, mut before: Vec<String>, mut after: Vec<String>) {
        let all_before = before.clone();
        before.retain(|name| after.contains(name));
        after.retain(|name| all_before.contains(name));
        if before != after {
            self.push(&format!("{list} in order"), &format!("/env_vars/{list}"), Some(before.join(", ")), Some(after.join(", ")));
        }
    }

    fn argument(&mut self, path: &str, pointer: &str, before: &Argument, after: &Argument) {
        let Argument { name: _, description, required, kind, default, choices, pattern, sensitive } = after;
        let at = |field: &str| (format!("{path}.{field}"), format!("{pointer}/{field}"));
        let (to, place) = at("description");
        self.text(&to, &place, &before.description, description);
        let (to, place) = at("type");
        self.words(&to, &place, &before.kind, kind);
        let (to, place) = at("required");
        self.value(&to, &place, &before.required, required);
        // Sensitive on either side: a value that is not secret any more was so yesterday, and the other way round.
        let is_masked = *sensitive || before.sensitive;
        let (to, place) = at("default");
        if !is_masked {
            self.optional(
                &to,
                &place,
                before.default.as_ref().map(|Scalar(text)| text),
                default.as_ref().map(|Scalar(text)| text),
            );
        } else if before.default != *default {
            self.masked(&to, &place, before.default.as_ref().map(|_| ()), default.as_ref().map(|_| ()));
        }
        let (to, place) = at("enum");
        if !is_masked {
            let texts = |scalars: &[Scalar]| scalars.iter().map(|Scalar(text)| text.clone()).collect::<Vec<_>>();
            self.list(&to, &place, &texts(&before.choices), &texts(choices));
        } else if before.choices != *choices {
            self.masked(&to, &place, (!before.choices.is_empty()).then_some(()), (!choices.is_empty()).then_some(()));
        }
        let (to, place) = at("pattern");
        self.optional(&to, &place, before.pattern.as_ref(), pattern.as_ref());
        let (to, place) = at("sensitive");
        self.value(&to, &place, &before.sensitive, sensitive);
    }

    fn secret(&mut self, path: &str, pointer: &str, before: &Secret, after: &Secret) {
        let Secret { name: _, description, from } = after;
        self.text(&format!("{path}.description"), &format!("{pointer}/description"), &before.description, description);
        let (before, after) = (before.from.as_ref().map(source_text), from.as_ref().map(source_text));
        self.push(&format!("{path}.from"), &format!("{pointer}/from"), before, after);
    }

    /// Field by field where there is a rule before and after: that fewer must approve, or others may, is seen at a glance.
    fn approvals(&mut self, before: Option<&Approvals>, after: Option<&Approvals>) {
        if let (Some(before), Some(after)) = (before, after) {
            let Approvals { groups, count, not_self, valid_for } = after;
            self.list("approvals.groups", "/approvals/groups", &before.groups, groups);
            self.value("approvals.count", "/approvals/count", &before.count, count);
            self.value("approvals.not_self", "/approvals/not_self", &before.not_self, not_self);
            self.optional("approvals.valid_for", "/approvals/valid_for", before.valid_for.as_ref(), valid_for.as_ref());
            return;
        }
        self.optional("approvals", "/approvals", before, after);
    }

    fn concurrency(&mut self, before: Option<&Concurrency>, after: Option<&Concurrency>) {
        if let (Some(before), Some(after)) = (before, after) {
            let Concurrency { limit, when_full } = after;
            self.value("concurrency.limit", "/concurrency/limit", &before.limit, limit);
            self.words("concurrency.when_full", "/concurrency/when_full", &before.when_full, when_full);
            return;
        }
        let shown =
            |concurrency: &Concurrency| format!("limit {}, when full: {}", concurrency.limit, word(&concurrency.when_full));
        self.push("concurrency", "/concurrency", before.map(shown), after.map(shown));
    }

    fn schedule(&mut self, before: Option<&Schedule>, after: Option<&Schedule>) {
        if let (Some(before), Some(after)) = (before, after) {
            let Schedule { cron, time_zone, catch_up, overlap } = after;
            self.value("schedule.cron", "/schedule/cron", &before.cron, cron);
            self.optional("schedule.time_zone", "/schedule/time_zone", before.time_zone.as_ref(), time_zone.as_ref());
            self.words("schedule.catch_up", "/schedule/catch_up", &before.catch_up, catch_up);
            self.words("schedule.overlap", "/schedule/overlap", &before.overlap, overlap);
            return;
        }
        let shown = |schedule: &Schedule| match &schedule.time_zone {
            Some(time_zone) => format!("{} ({time_zone})", schedule.cron),
            None => schedule.cron.clone(),
        };
        self.push("schedule", "/schedule", before.map(shown), after.map(shown));
    }

    fn logs(&mut self, before: &Logs, after: &Logs) {
        let Logs { limit, keep_for, keep_bytes } = after;
        self.optional("logs.limit", "/logs/limit", before.limit.as_ref(), limit.as_ref());
        self.optional("logs.keep_for", "/logs/keep_for", before.keep_for.as_ref(), keep_for.as_ref());
        self.optional("logs.keep_bytes", "/logs/keep_bytes", before.keep_bytes.as_ref(), keep_bytes.as_ref());
    }

    fn resources(&mut self, before: &Resources, after: &Resources) {
        let Resources { requests, limits } = after;
        self.map("resources.requests", "/resources/requests", &before.requests, requests);
        self.map("resources.limits", "/resources/limits", &before.limits, limits);
    }
}

/// How long a unified diff may be looked for before a coarser one is taken.
const DIFF_PATIENCE: Duration = Duration::from_millis(200);

fn unified(before: &str, after: &str) -> String {
    let diff = similar::TextDiff::configure().timeout(DIFF_PATIENCE).diff_lines(before, after);
    diff.unified_diff().context_radius(2).missing_newline_hint(false).to_string()
}

/// A new or removed argument in a few words.
fn summary(argument: &Argument) -> String {
    let Argument { name: _, description: _, required, kind, default, choices, pattern, sensitive } = argument;
    let shown = |Scalar(text): &Scalar| if *sensitive { MASK.to_owned() } else { text.clone() };
    let mut parts = vec![kind.as_str().to_owned()];
    if *kind == ArgumentType::String && !choices.is_empty() {
        parts.clear();
    }
    if !choices.is_empty() {
        parts.push(choices.iter().map(shown).collect::<Vec<_>>().join("|"));
    }
    if let Some(pattern) = pattern {
        parts.push(format!("like {pattern}"));
    }
    if *required {
        parts.push("required".into());
    }
    if let Some(default) = default {
        parts.push(format!("default {}", shown(default)));
    }
    if *sensitive {
        parts.push("sensitive".into());
    }
    parts.join(", ")
}

fn secret_summary(secret: &Secret) -> String {
    let Secret { name: _, description: _, from } = secret;
    from.as_ref().map_or_else(|| "secret".to_owned(), source_text)
}

fn source_text(source: &SecretSource) -> String {
    match source {
        SecretSource::Kubernetes(KubernetesSecret { secret, key }) => format!("kubernetes {secret}/{key}"),
        SecretSource::Environment(variable) => format!("environment {variable}"),
        SecretSource::File(path) => format!("file {path}"),
    }
}
