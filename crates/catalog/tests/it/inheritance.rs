//! Values that jobs inherit, and where findings about them are reported.

use super::{catalog, places};

#[test]
fn nearer_folders_win_maps_merge_and_lists_are_replaced() {
    let loaded = catalog(&[
        (
            "octavius.yaml",
            "catalog: test\ndefaults:\n  timeout: 1h\n  retries: 1\n  labels: {team: all, tier: low}\n  authorized_groups: [everyone]\n",
        ),
        ("_defaults.yaml", "author: root\n"),
        ("a/_defaults.yaml", "timeout: 30m\nlabels: {team: a}\n"),
        ("a/b/c/_defaults.yaml", "labels: {deep: \"yes\"}\n"),
        ("a/b/c/job.yaml", "name: deep\ncommand: [x]\ntimeout: 5m\nauthorized_groups: [few]\n"),
        ("a/job.yaml", "name: near\ncommand: [x]\nlabels: {tier: high}\n"),
        ("job.yaml", "name: far\ncommand: [x]\n"),
    ]);
    assert_eq!(places(&loaded), [""; 0]);
    let shown: Vec<String> = loaded
        .jobs
        .iter()
        .map(|job| {
            let job = &job.definition;
            let timeout = job.timeout.unwrap();
            format!("{} {timeout} {} {} {:?} {:?}", job.name, job.retries, job.author, job.labels, job.authorized_groups)
        })
        .collect();
    assert_eq!(
        shown,
        [
            r#"deep 5m 1 root {"deep": "yes", "team": "a", "tier": "low"} ["few"]"#,
            r#"far 1h 1 root {"team": "all", "tier": "low"} ["everyone"]"#,
            r#"near 30m 1 root {"team": "a", "tier": "high"} ["everyone"]"#,
        ]
    );
}

#[test]
fn a_finding_about_an_inherited_value_is_reported_once_where_it_is_written() {
    let loaded = catalog(&[
        ("octavius.yaml", "catalog: test\ndefaults:\n  executor: {vpc: \"not a label\"}\n"),
        ("a/_defaults.yaml", "timeout: soon\nretris: 2\ntimeout: 0s\n"),
        ("a/x.yaml", "name: x\ncommand: [x]\n"),
        ("a/y.yaml", "name: y\ncommand: [x]\n"),
        ("b.yaml", "name: b\ncommand: [x]\nexecutor: {vpc: fine}\n"),
    ]);
    let expected = [
        "a/_defaults.yaml:1:10 duration",
        "a/_defaults.yaml:2:1 unknown-key",
        "a/_defaults.yaml:3:1 duplicate-key",
        "octavius.yaml:3:19 label",
    ];
    assert_eq!(places(&loaded), expected);
    assert!(loaded.has_errors());
}

#[test]
fn a_nested_map_may_be_completed_by_what_it_inherits() {
    let loaded = catalog(&[
        ("octavius.yaml", "catalog: test\ndefaults: {concurrency: {limit: 2}}\n"),
        ("a.yaml", "name: a\ncommand: [x]\nconcurrency: {when_full: reject}\n"),
    ]);
    assert!(!loaded.has_errors());
    assert_eq!(loaded.jobs[0].definition.concurrency.unwrap().limit, 2);
    let loaded = catalog(&[("_defaults.yaml", "concurrency: {when_full: reject}\n")]);
    assert_eq!(places(&loaded), ["_defaults.yaml:1:1 missing-key"]);
}

#[test]
fn names_are_unique_without_regard_to_case_and_the_other_file_is_named() {
    let loaded = catalog(&[("a.yaml", "name: Backup\ncommand: [x]\n"), ("b.yaml", "command: [x]\nname: backup\n")]);
    assert_eq!(places(&loaded), ["b.yaml:2:7 duplicate-name"]);
    assert!(loaded.diagnostics[0].message.contains("a.yaml:1"));
    assert_eq!(loaded.jobs.len(), 1);
}
