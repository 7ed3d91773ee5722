//! Differences between definitions, and plans made of them.

use std::sync::Arc;

use octavius_catalog::render::{Note, RenderOptions, render_markdown, render_summary, render_text};
use octavius_catalog::{
    Action, Document, LoadedJob, Manifest, MaxDeletions, Observed, Plan, PlanError, PlanOptions, Summary, diff, export,
    load_file, manifest, needed, plan,
};
use octavius_core::{CatalogName, JobDefinition, JobName};
use proptest::prelude::*;
use serde_json::{Value, json};

use super::catalog;

const EVERYTHING: &str = include_str!("../good/everything.yaml");

pub(super) fn job(text: &str) -> LoadedJob {
    let loaded = load_file("job.yaml", text.as_bytes(), &octavius_catalog::Limits::default());
    assert!(!loaded.has_errors(), "{:?}", loaded.diagnostics);
    loaded.jobs.into_iter().next().unwrap()
}

fn changes(before: &str, after: &str) -> Vec<String> {
    let document = Document::index("job.yaml", after.as_bytes());
    let shown = |value: Option<String>| value.unwrap_or_else(|| "∅".into());
    diff::diff(&job(before).definition, &job(after).definition, document.as_ref(), &[])
        .into_iter()
        .map(|change| {
            let line = change.line.map(|line| format!(":{line} ")).unwrap_or_default();
            format!("{line}{} {} → {}", change.path, shown(change.before), shown(change.after))
        })
        .collect()
}

pub(super) fn observed(jobs: &[LoadedJob]) -> Vec<Observed> {
    let observed = |job: &LoadedJob| Observed {
        name: job.name().clone(),
        digest: job.digest,
        file: job.file.clone(),
        line: job.line,
        definition: Some(Arc::clone(&job.definition)),
    };
    jobs.iter().map(observed).collect()
}

pub(super) fn support() -> CatalogName {
    CatalogName::new("support").unwrap()
}

pub(super) fn planned(desired: &[LoadedJob], before: &[LoadedJob], options: &PlanOptions) -> Result<Plan, PlanError> {
    plan(&support(), 41, desired, &observed(before), options)
}

fn jobs(names: &[&str]) -> Vec<LoadedJob> {
    names.iter().map(|name| job(&format!("name: {name}\ncommand: [x]\n"))).collect()
}

pub(super) fn prune() -> PlanOptions {
    PlanOptions { prune: true, ..PlanOptions::default() }
}

#[test]
fn fields_are_compared_by_what_they_mean() {
    let before = "name: a\nimage_name: sync:1.4\nauthorized_groups: [x, y]\nlabels: {team: a, gone: z}\nenv_vars:\n  args:\n  - {name: limit, \
                  type: integer, default: 100}\n  - {name: old}\n  secrets:\n  - {name: T, from: {environment: A}}\n";
    let after = "# moved around\nenv_vars:\n  secrets:\n  - {name: T, from: {file: /a}}\n  args:\n  - name: new\n    required: true\n    \
                 pattern: A+\n  - name: limit\n    type: integer\n    default: 500\nname: a\nimage_name: sync:1.5\nauthorized_groups: [y, z]\n\
                 labels: {team: b}\ntimeout: 90m\nconcurrency: {limit: 2}\nlogs: {limit: 1024MiB, keep_bytes: 65536}\n";
    assert_eq!(
        changes(before, after),
        [
            ":13 image_name sync:1.4 → sync:1.5",
            ":6 args.new ∅ → string, like A+, required",
            ":11 args.limit.default 100 → 500",
            "args.old string → ∅",
            ":4 secrets.T.from environment A → file /a",
            "authorized_groups x → ∅",
            ":14 authorized_groups ∅ → z",
            ":16 timeout ∅ → 1h30m",
            ":17 concurrency ∅ → limit 2, when full: queue",
            ":18 logs.limit ∅ → 1GiB",
            ":18 logs.keep_bytes ∅ → 64KiB",
            "labels.gone z → ∅",
            ":15 labels.team a → b",
        ]
    );
}

/// Who reviews the change must see that fewer have to agree, or others.
#[test]
fn a_looser_rule_for_approvals_is_seen_in_the_difference() {
    let with = |rule: &str| format!("name: a\ncommand: [x]\n{rule}");
    let strict = with("approvals:\n  groups: [ops, leads]\n  count: 2\n  valid_for: 1h\n");
    let loose = with("approvals:\n  groups: [ops, support]\n  not_self: false\n");
    assert_eq!(
        changes(&strict, &loose),
        [
            "approvals.groups leads → ∅",
            ":4 approvals.groups ∅ → support",
            "approvals.count 2 → 1",
            ":5 approvals.not_self true → false",
            "approvals.valid_for 1h → ∅",
        ]
    );
    assert_eq!(changes(&strict, &with("")), ["approvals 2 of ops or leads, not the requester, within 1h → ∅"]);
    assert_eq!(
        changes(&with(""), &with("approvals: {not_self: false}\n")),
        [":3 approvals ∅ → 1 of those who may run it, the requester too, within 1d"]
    );
}

#[test]
fn sensitive_values_are_in_no_difference() {
    let with = |value: &str, sensitive: bool| {
        format!(
            "name: a\ncommand: [x]\nenv_vars: {{args: [{{name: pin, default: {value}, enum: [{value}], sensitive: {sensitive}}}]}}\n"
        )
    };
    for (one, other) in [(true, true), (true, false), (false, true)] {
        let (before, after) = (with("hunter2", one), with("swordfish", other));
        let text = changes(&before, &after).join("\n");
        assert!(text.contains("args.pin.default ******** → ********"), "{text}");
        let plan = planned(&[job(&after)], &[job(&before)], &prune()).unwrap();
        let written = serde_json::to_string(&plan).unwrap();
        let text = format!("{}{}{written}{text}", render_text(&plan, &RenderOptions::default()), plan.report());
        assert!(!text.contains("hunter2") && !text.contains("swordfish"), "{text}");
    }
    let added = "name: a\ncommand: [x]\nenv_vars: {args: [{name: pin, default: hunter2, sensitive: true}]}\n";
    assert_eq!(changes("name: a\ncommand: [x]\n", added), [":3 args.pin ∅ → string, default ********, sensitive"]);
}

#[test]
fn the_order_of_lists_is_a_difference_too() {
    let with = |args: &str| format!("name: a\ncommand: [x]\nenv_vars: {{args: [{args}]}}\n");
    assert_eq!(changes(&with("{name: b}, {name: c}"), &with("{name: c}, {name: b}")), [":3 args in order b, c → c, b"]);
}

#[test]
fn a_plan_reads_as_the_command_line_promises() {
    let before = catalog(&[
        ("purge-cache.yaml", "name: purge-cache\ncommand: [x]\n"),
        ("same.yaml", "name: same\ncommand: [x]\n"),
        (
            "sync-users.yaml",
            "name: sync-users\ndescription: |\n  Copies users.\n  Once a day.\nimage_name: sync:1.4\nenv_vars:\n  args:\n  - {name: limit, type: integer, \
             default: 100}\n",
        ),
    ]);
    let after = catalog(&[
        ("refund-order.yaml", "name: refund-order\ncommand: [x]\n"),
        ("same.yaml", "# only a comment\ncommand: [x]\nname: same\n"),
        (
            "sync-users.yaml",
            "name: sync-users\ndescription: |\n  Copies users.\n  Twice a day.\nimage_name: sync:1.5\nenv_vars:\n  args:\n  - name: limit\n    type: \
             integer\n    default: 500\ntimeout: 5m\n",
        ),
    ]);
    let plan = planned(&after.jobs, &before.jobs, &PlanOptions::default()).unwrap();
    let name = |name: &str| JobName::new(name).unwrap();
    let options = RenderOptions {
        color: false,
        header: Some("prod/support: revision 41 (9c1f2ab) → working tree (4be07d1)".into()),
        notes: [
            (name("purge-cache"), Note { beside: Some("last run 3h ago".into()), below: vec![] }),
            (name("sync-users"), Note { beside: None, below: vec!["2 running executions keep revision 41".into()] }),
        ]
        .into(),
    };
    insta::assert_snapshot!("plan", render_text(&plan, &options));
    insta::assert_snapshot!("plan_markdown", render_markdown(&plan, &options));
    insta::with_settings!({ sort_maps => true }, { insta::assert_json_snapshot!("plan_json", plan.report()) });
    let colored = render_text(&plan, &RenderOptions { color: true, ..options });
    assert!(colored.contains("\x1b[32m+ refund-order"));
    let read: Plan = serde_json::from_slice(&serde_json::to_vec(&plan).unwrap()).unwrap();
    let mut without = plan.clone();
    without.changes.iter_mut().for_each(|change| change.definition = None);
    assert_eq!(read, without);
}

#[test]
fn a_removal_needs_consent_and_a_protected_job_two_applies() {
    let protected = job("name: b\ncommand: [x]\nprotect: true\n");
    let before = [jobs(&["a"]), vec![protected], jobs(&["c"])].concat();
    let after = jobs(&["a"]);
    let actions = |options: &PlanOptions| {
        let plan = planned(&after, &before, options).unwrap();
        plan.changes
            .iter()
            .map(|change| (change.job.to_string(), change.action, change.reason.clone().unwrap_or_default()))
            .collect::<Vec<_>>()
    };
    let needs_prune = "needs --prune".to_owned();
    assert_eq!(
        actions(&PlanOptions::default()),
        [("b".into(), Action::Blocked, needs_prune.clone()), ("c".into(), Action::Blocked, needs_prune)]
    );
    let pruned = actions(&prune());
    assert_eq!((pruned[0].1, pruned[1].1), (Action::Blocked, Action::Removed));
    assert!(pruned[0].2.starts_with("protected"));
}

#[test]
fn removals_are_capped_and_an_empty_catalogue_is_refused() {
    let names: Vec<String> = (0..60).map(|number| format!("job-{number}")).collect();
    let before = jobs(&names.iter().map(String::as_str).collect::<Vec<_>>());
    let keep = |count: usize| planned(&before[..count], &before, &prune());
    assert_eq!(keep(55).unwrap().summary, Summary { removed: 5, unchanged: 55, ..Summary::default() });
    let error = keep(54).unwrap_err();
    assert_eq!(error, PlanError::TooManyDeletions { removed: 6, jobs: 60, allowed: 5 });
    assert_eq!(
        error.to_string(),
        "6 of 60 jobs would be removed, at most 5 may be; pass `--max-deletions 6` where that is meant"
    );
    let options = PlanOptions { max_deletions: MaxDeletions::Count(6), ..prune() };
    assert_eq!(planned(&before[..54], &before, &options).unwrap().summary.removed, 6);
    assert!(matches!(planned(&[], &before, &options), Err(PlanError::Empty { jobs: 60, .. })));
    let all = PlanOptions { max_deletions: "100%".parse().unwrap(), allow_empty: true, prune: true };
    assert_eq!(planned(&[], &before, &all).unwrap().summary.removed, 60);
    assert!(planned(&[], &[], &PlanOptions::default()).unwrap().is_empty());
    // Of one job, one may go; of nine, one; of a thousand, five.
    assert_eq!([1, 9, 20, 1000].map(|jobs| MaxDeletions::default().of(jobs)), [1, 1, 2, 5]);
    assert_eq!("5".parse(), Ok(MaxDeletions::Count(5)));
    for bad in ["", "-1", "101%", "x%", "5 %"] {
        assert!(bad.parse::<MaxDeletions>().is_err(), "{bad}");
    }
}

#[test]
fn a_change_of_case_is_a_change_and_not_two_jobs() {
    let plan = planned(&jobs(&["Backup"]), &jobs(&["backup"]), &prune()).unwrap();
    assert_eq!(
        (plan.changes.len(), plan.changes[0].action, plan.changes[0].fields[0].path.as_str()),
        (1, Action::Changed, "name")
    );
}

#[test]
fn only_definitions_that_differ_are_needed() {
    let (before, after) = (jobs(&["a", "b"]), jobs(&["a", "c"]));
    let mut seen = observed(&before);
    assert_eq!(needed(&after, &seen), [before[1].digest]);
    seen[0].definition = None;
    assert!(plan(&support(), 41, &after, &seen, &prune()).is_ok());
    seen[1].definition = None;
    assert_eq!(plan(&support(), 41, &after, &seen, &prune()), Err(PlanError::DefinitionMissing(JobName::new("b").unwrap())));
}

#[test]
fn counts_say_what_is_blocked() {
    let summary = |removed, blocked| Summary { added: 1, changed: 1, removed, blocked, unchanged: 38 };
    assert_eq!(render_summary(&summary(0, 1)), "1 added, 1 changed, 1 removed (blocked), 38 unchanged");
    assert_eq!(render_summary(&summary(2, 0)), "1 added, 1 changed, 2 removed, 38 unchanged");
    assert_eq!(render_summary(&Summary { unchanged: 3, ..Summary::default() }), "no changes, 3 unchanged");
}

#[test]
fn a_hostile_description_cannot_break_out_of_a_plan() {
    let before = job("name: a\ncommand: [x]\n");
    let after = job("name: a\ncommand: [x]\ndescription: \"\\e[2Jgone\\n```\\n# heading\"\nauthor: \"x\\u202ey\"\n");
    let plan = planned(&[after], &[before], &prune()).unwrap();
    let text = render_text(&plan, &RenderOptions::default());
    assert!(!text.contains('\x1b') && !text.contains('\u{202e}'), "{text}");
    assert!(render_markdown(&plan, &RenderOptions::default()).contains("\n````diff\n"));
}

/// Definitions near each other: one with everything in it, with fields taken away or replaced.
pub(super) fn definition() -> impl Strategy<Value = JobDefinition> {
    let full: Value = serde_json::to_value(&*job(EVERYTHING).definition).unwrap();
    let keys: Vec<String> = full.as_object().unwrap().keys().filter(|key| *key != "name").cloned().collect();
    let replaced = json!({
        "description": "one line", "image_name": "other:1", "command": ["/app/refund", "two\nlines\n"],
        "env_vars": {"args": [{"name": "order", "default": "x"}, {"name": "count", "type": "integer"}, {"name": "pin", "sensitive": true, "default": "1"}],
            "secrets": [{"name": "CONFIGURED", "from": {"environment": "X"}}]},
        "authorized_groups": ["support", "other"], "executor": {"vpc": "web", "zone": "a"}, "timeout": "5m", "retries": 3,
        "concurrency": {"limit": 3, "when_full": "reject"}, "schedule": {"cron": "1 1 * * *"}, "priority": 1, "resources": {"limits": {"cpu": "1"}},
        "annotations": {"a/b~c": "1"}, "labels": {"team": "web"},
    });
    proptest::collection::vec(0..3u8, keys.len()).prop_map(move |choices| {
        let mut value = full.clone();
        for (key, choice) in keys.iter().zip(choices) {
            match (choice, replaced.get(key)) {
                (1, _) => drop(value.as_object_mut().unwrap().remove(key)),
                (2, Some(other)) => value[key] = other.clone(),
                _ => {}
            }
        }
        let mut definition: JobDefinition = serde_json::from_value(value).unwrap();
        if definition.image_name.is_empty() && definition.command.is_empty() {
            definition.command.push("true".into());
        }
        definition
    })
}

pub(super) fn entry(job: &LoadedJob) -> manifest::Entry {
    manifest::Entry {
        name: job.name().clone(),
        digest: job.digest,
        file: job.file.clone(),
        line: job.line,
        changed_in: 42,
        inherited: Vec::new(),
    }
}

proptest! {
    #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn a_difference_is_empty_exactly_where_definitions_are_equal(before in definition(), after in definition()) {
        prop_assert_eq!(diff::diff(&before, &after, None, &[]).is_empty(), before == after);
        prop_assert!(diff::diff(&before, &before, None, &[]).is_empty());
        prop_assert!(diff::diff(&before, &after, None, &[]).iter().all(|change| change.path != "definition"));
    }

    #[test]
    fn what_is_exported_loads_as_the_same_definition(definition in definition(), text in any::<String>(), value in "[-+.0-9a-fxo_eEyYnN~tTrRuUlLsS<]{0,8}") {
        let mut definition = definition;
        definition.description = text.clone();
        definition.author = value.clone();
        definition.annotations.insert("key".into(), text.replace('\0', ""));
        definition.labels.insert("x".into(), "007".into());
        definition.command = vec!["echo".into(), value, text.replace('\0', "")];
        let yaml = export::to_yaml(&definition, Some("../schemas/job.schema.json"));
        let loaded = load_file("a.yaml", yaml.as_bytes(), &octavius_catalog::Limits::default());
        prop_assert!(!loaded.has_errors(), "{:?}\n{}", loaded.diagnostics, yaml);
        prop_assert_eq!(&*loaded.jobs[0].definition, &definition);
    }

    /// Formatting, comments and the order of keys change no digest: the same job as JSON, as YAML and shuffled is one job.
    #[test]
    fn formatting_is_no_difference(definition in definition(), comment in "[ -~]{0,30}") {
        let json = serde_json::to_string_pretty(&definition).unwrap();
        let value: Value = serde_json::from_str(&json).unwrap();
        let mut lines: Vec<String> = value.as_object().unwrap().iter().map(|(key, value)| format!("{key}: {value} # {comment}\n")).collect();
        lines.reverse();
        let yaml = format!("# {comment}\n\n{}", lines.concat());
        let limits = octavius_catalog::Limits::default();
        for (path, text) in [("a.json", &json), ("a.yaml", &json), ("a.yaml", &yaml)] {
            let loaded = load_file(path, text.as_bytes(), &limits);
            prop_assert!(!loaded.has_errors(), "{:?}\n{}", loaded.diagnostics, text);
            prop_assert_eq!(loaded.jobs[0].digest, definition.digest());
        }
    }

    #[test]
    fn a_plan_carried_out_leaves_nothing_to_do(
        before in proptest::collection::btree_map("[a-dA-D]", definition(), 0..5),
        after in proptest::collection::btree_map("[a-d]", definition(), 1..5),
    ) {
        let named = |jobs: std::collections::BTreeMap<String, JobDefinition>| {
            let mut folded = std::collections::BTreeMap::new();
            for (name, mut definition) in jobs {
                definition.name = JobName::new(name.clone()).unwrap();
                definition.protect = false;
                folded.insert(name.to_lowercase(), LoadedJob::of(Arc::new(definition), String::new(), 0));
            }
            folded.into_values().collect::<Vec<_>>()
        };
        let (before, after) = (named(before), named(after));
        let options = PlanOptions { max_deletions: MaxDeletions::Percent(100), ..prune() };
        let plan = planned(&after, &before, &options).unwrap();
        let Summary { added, changed, removed, blocked, unchanged } = plan.summary;
        prop_assert_eq!((added + changed + unchanged, removed + changed + unchanged, blocked), (after.len(), before.len(), 0));
        let manifest = Manifest::build(before.iter().map(entry)).unwrap();
        let put: Vec<_> = plan.changes.iter().filter_map(|change| change.definition.as_ref()).map(|definition| {
            entry(&LoadedJob::of(Arc::clone(definition), String::new(), 0))
        }).collect();
        let gone: Vec<_> = plan.changes.iter().filter(|change| change.action == Action::Removed).map(|change| change.job.clone()).collect();
        let manifest = manifest.with_changes(&put, &gone).unwrap();
        prop_assert!(manifest.root().differing(Manifest::build(after.iter().map(entry)).unwrap().root()).is_empty());
        let observed: Vec<Observed> = manifest.entries().cloned().map(Observed::from).collect();
        let again = octavius_catalog::plan(&support(), 42, &after, &observed, &options).unwrap();
        prop_assert!(again.is_empty());
        prop_assert_eq!(again.summary.unchanged, after.len());
    }
}
