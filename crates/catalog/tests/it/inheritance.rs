//! Values that jobs inherit, and where findings about them are reported.

use octavius_catalog::{Diagnostic, Files, Limits, LoadedJob, Observed, PlanOptions, load, plan, selectors};
use octavius_core::CatalogName;
use octavius_core::label::Labels;

use super::{catalog, files, places};

/// What a job inherits, as `field file:line`.
fn inherited(job: &LoadedJob) -> Vec<String> {
    job.inherited.iter().map(|said| format!("{} {}:{}", said.field, said.file, said.line)).collect()
}

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

#[test]
fn a_job_knows_which_file_and_line_says_what_it_inherits() {
    let mut files = files(&[
        (
            "octavius.yaml",
            "catalog: test\ndefaults:\n  timeout: 1h\n  labels: {team: all}\n  env_vars:\n    args: [{name: v}]\n  annotations: {a/b~c: x}\n  resources: {limits: {}}\n",
        ),
        ("_defaults.yaml", "author: root\nconcurrency:\n  limit: 2\n"),
        ("a/_defaults.yaml", "labels: {team: a}\nconcurrency:\n  when_full: reject\nauthorized_groups: [few]\n"),
        ("a/near.yaml", "name: near\ncommand: [x]\ntimeout: 5m\nlabels:\n  own: x\n"),
        ("a/own.json", r#"{"name": "own", "command": ["x"], "timeout": null, "authorized_groups": [], "labels": {"team": "b"}}"#),
        ("far.yaml", "name: far\ncommand: [x]\nconcurrency: {limit: 3}\nenv_vars: {secrets: [{name: S}]}\nauthor: me\n"),
    ]);
    files.file_prefix = "jobs".into();
    let loaded = load(&files);
    assert!(!loaded.has_errors(), "{:?}", loaded.diagnostics);
    let [far, near, own] = &loaded.jobs[..] else { panic!("{:?}", loaded.jobs) };
    assert_eq!(
        inherited(near),
        [
            "/annotations/a~1b~0c jobs/octavius.yaml:7",
            "/author jobs/_defaults.yaml:1",
            "/authorized_groups jobs/a/_defaults.yaml:4",
            "/concurrency/limit jobs/_defaults.yaml:3",
            "/concurrency/when_full jobs/a/_defaults.yaml:3",
            "/env_vars/args jobs/octavius.yaml:6",
            "/labels/team jobs/a/_defaults.yaml:1",
        ]
    );
    assert_eq!(
        inherited(far),
        [
            "/annotations/a~1b~0c jobs/octavius.yaml:7",
            "/env_vars/args jobs/octavius.yaml:6",
            "/labels/team jobs/octavius.yaml:4",
            "/timeout jobs/octavius.yaml:3",
        ]
    );
    assert!(inherited(own).contains(&"/timeout jobs/octavius.yaml:3".to_owned()), "null in JSON says nothing");
    assert!(!own.inherited.iter().any(|said| said.field == "/authorized_groups" || said.field == "/labels/team"));
    // Each is a part of the definition.
    for job in &loaded.jobs {
        let value = serde_json::to_value(&*job.definition).unwrap();
        assert!(job.inherited.iter().all(|said| value.pointer(&said.field).is_some()), "{value} {:?}", job.inherited);
    }
}

#[test]
fn a_change_of_an_inherited_value_names_the_file_that_says_it() {
    let job = ("a/x.yaml", "name: x\ncommand: [x]\nretries: 1\nconcurrency: {limit: 1}\n");
    let before = catalog(&[
        ("octavius.yaml", "catalog: test\ndefaults: {timeout: 1h, authorized_groups: [b]}\n"),
        ("a/_defaults.yaml", "author: ann\nlabels: {a: x}\nenv_vars: {args: [{name: n, default: 1}]}\n"),
        job,
    ]);
    let after = catalog(&[
        ("octavius.yaml", "catalog: test\ndefaults:\n  timeout: 2h\n  authorized_groups:\n  - b\n  - c\n"),
        (
            "a/_defaults.yaml",
            "# moved\nenv_vars: {args: [{name: n, default: 2}]}\nconcurrency: {limit: 9, when_full: reject}\nlabels:\n  a: y\n  b: z\n",
        ),
        ("a/x.yaml", "name: x\ncommand: [x]\nconcurrency: {limit: 1}\nretries: 2\n"),
    ]);
    let observed: Vec<Observed> = before
        .jobs
        .iter()
        .map(|job| Observed {
            name: job.name().clone(),
            digest: job.digest,
            file: job.file.clone(),
            line: job.line,
            definition: Some(job.definition.clone()),
        })
        .collect();
    let plan = plan(&CatalogName::new("test").unwrap(), 1, &after.jobs, &observed, &PlanOptions::default()).unwrap();
    assert!(!before.has_errors() && !after.has_errors(), "{:?}", after.diagnostics);
    let [change] = &plan.changes[..] else { panic!("{plan:?}") };
    let mut places: Vec<String> = change
        .fields
        .iter()
        .map(|field| {
            let line = field.line.map(|line| format!(":{line}")).unwrap_or_default();
            format!("{} {}{line}", field.path, field.file.as_deref().unwrap_or("-"))
        })
        .collect();
    places.sort();
    assert_eq!(
        places,
        [
            "args.n.default a/_defaults.yaml:2",
            "author -",
            "authorized_groups octavius.yaml:4",
            "concurrency.when_full a/_defaults.yaml:3",
            "labels.a a/_defaults.yaml:5",
            "labels.b a/_defaults.yaml:6",
            "retries -:4",
            "timeout octavius.yaml:3",
        ]
    );
    assert_eq!(change.inherited, after.jobs[0].inherited);
    let written = serde_json::to_value(&plan).unwrap();
    let written = &written["changes"][0];
    assert!(written.get("definition").is_none() && written.get("inherited").is_none(), "{written}");
    assert_eq!(written["fields"][0]["path"], "args.n.default");
    assert_eq!(written["fields"][0]["file"], "a/_defaults.yaml");
}

fn labels(pairs: &[(&str, &str)]) -> Labels {
    pairs.iter().map(|(key, value)| ((*key).to_owned(), (*value).to_owned())).collect()
}

fn told(findings: &[Diagnostic]) -> Vec<String> {
    let place = octavius_catalog::diagnostic::place;
    findings.iter().map(|found| format!("{} {}: {} ({})", place(found), found.code, found.message, found.hint)).collect()
}

#[test]
fn a_selector_that_no_executor_fits_is_told_where_it_is_written() {
    let mut files = files(&[
        ("octavius.yaml", "catalog: test\ndefaults:\n  executor:\n    zone: a\n"),
        ("p/_defaults.yaml", "executor:\n  vpc: paymnts\n"),
        ("p/x.yaml", "name: x\ncommand: [x]\n"),
        ("p/y.yaml", "name: y\ncommand: [x]\n"),
        ("p/z.yaml", "name: z\ncommand: [x]\nexecutor: {vpc: payments}\n"),
        ("w.yaml", "name: w\ncommand: [x]\nexecutor:\n  gpu: \"yes\"\n  zone: b\n"),
        ("v.yaml", "name: v\ncommand: [x]\nexecutor: {regoin: eu}\n"),
    ]);
    files.display_prefix = "here".into();
    files.file_prefix = "in/repository".into();
    let loaded = load(&files);
    assert!(!loaded.has_errors(), "{:?}", loaded.diagnostics);
    let executors = [labels(&[]), labels(&[("vpc", "payments"), ("zone", "a")]), labels(&[("region", "eu"), ("zone", "a")])];
    let findings = selectors(&loaded, &executors);
    assert_eq!(
        told(&findings),
        [
            "here/p/_defaults.yaml:2:8 no-executor: no executor has vpc=paymnts,zone=a (did you mean `vpc: payments`? the nearest executor has \
             vpc=payments,zone=a)",
            "here/v.yaml:3:20 no-executor: no executor has regoin=eu,zone=a (did you mean `region`? the nearest executor has \
             vpc=payments,zone=a)",
            "here/w.yaml:4:8 no-executor: no executor has gpu=yes,zone=b (the nearest executor has vpc=payments,zone=a)",
        ]
    );
    assert!(findings.iter().all(|found| !found.is_error()));
    assert_eq!((findings[0].source.as_str(), findings[0].offset, findings[0].length), ("  vpc: paymnts", 7, 7));
    assert_eq!(selectors(&loaded, &[]).len(), 4, "without executors each selector is told of once");
    assert!(selectors(&loaded, &[]).iter().all(|found| found.hint == "no executor is registered"));
}

#[test]
fn what_many_jobs_inherit_counts_for_each_of_them() {
    let limits = Limits { file_bytes: 1000, jobs: 10, total_bytes: 2400 };
    let defaults = |bytes: usize| format!("catalog: test\ndefaults: {{description: {}}}\n", "x".repeat(bytes));
    let load_with = |bytes: usize| {
        let jobs = (0..5).map(|number| (format!("{number}.yaml"), format!("name: job-{number}\ncommand: [x]\n").into_bytes()));
        let files = jobs.chain([("octavius.yaml".to_owned(), defaults(bytes).into_bytes())]);
        load(&Files::new(files, &limits))
    };
    assert!(!load_with(300).has_errors());
    let loaded = load_with(600);
    assert_eq!(places(&loaded), ["octavius.yaml:0:0 catalog-size"]);
    assert!(loaded.jobs.len() < 5 && loaded.diagnostics[0].message.contains("2400 bytes"));
    let loaded = load_with(900);
    assert_eq!(places(&loaded), ["octavius.yaml:0:0 catalog-size"], "the largest job has just less than 1,000 bytes");
    let loaded = load_with(960);
    assert_eq!(places(&loaded)[..2], ["0.yaml:0:0 file-size", "1.yaml:0:0 file-size"]);
}

#[test]
fn of_a_map_of_which_much_is_inherited_the_map_is_named() {
    let lines = |keys: std::ops::Range<u32>| keys.map(|key| format!("  k{key}: x\n")).collect::<String>();
    let root = format!("catalog: test\ndefaults:\n annotations:\n{}", lines(0..9).replace("  ", "   "));
    let nearer = format!(
        "retries: 1\nannotations:\n{}labels: {{a: x}}\nresources:\n limits: {{cpu: \"1\"}}\n requests: {{cpu: \"1\"}}\n",
        lines(8..10)
    );
    let loaded = catalog(&[
        ("octavius.yaml", &root),
        ("a/_defaults.yaml", &nearer),
        ("a/more.yaml", "name: more\ncommand: [x]\nannotations: {own: x}\n"),
        ("a/less.yaml", &format!("name: less\ncommand: [x]\nannotations:\n{}", lines(2..9))),
    ]);
    assert!(!loaded.has_errors(), "{:?}", loaded.diagnostics);
    let [less, more] = &loaded.jobs[..] else { panic!("{:?}", loaded.jobs) };
    let rest = [
        "/labels/a a/_defaults.yaml:5",
        "/resources/limits/cpu a/_defaults.yaml:7",
        "/resources/requests/cpu a/_defaults.yaml:8",
        "/retries a/_defaults.yaml:1",
    ];
    let with = |annotations: &[&str]| annotations.iter().chain(&rest).map(|part| (*part).to_owned()).collect::<Vec<_>>();
    assert_eq!(inherited(more), with(&["/annotations a/_defaults.yaml:2"]));
    let places = ["/annotations/k0 octavius.yaml:4", "/annotations/k1 octavius.yaml:5", "/annotations/k9 a/_defaults.yaml:4"];
    assert_eq!(inherited(less), with(&places));
}

#[test]
fn what_defaults_files_inherit_counts_and_stops_the_loading() {
    let mut files: Vec<(String, String)> = vec![("octavius.yaml".into(), "catalog: test\n".into())];
    let mut folder = String::new();
    for number in 0..40 {
        let annotations: String = (0..20).map(|key| format!("  k{number}-{key}: {}\n", "x".repeat(20))).collect();
        files.push((format!("{folder}_defaults.yaml"), format!("annotations:\n{annotations}")));
        folder.push_str("a/");
    }
    files.push(("bad.yaml".into(), "name: bad\nretris: 1\n".into()));
    let bytes: usize = files.iter().map(|(_, text)| text.len()).sum();
    let load_with = |total_bytes: usize| {
        let files = files.iter().map(|(path, text)| (path.clone(), text.clone().into_bytes()));
        load(&Files::new(files, &Limits { total_bytes, ..Limits::default() }))
    };
    // Each holds what those above it hold: twenty times as much as the files.
    assert_eq!(places(&load_with(bytes * 60)), ["bad.yaml:1:7 nothing-to-run", "bad.yaml:2:1 unknown-key"]);
    assert_eq!(places(&load_with(bytes * 5)), ["octavius.yaml:0:0 catalog-size"], "no job is looked at any more");
}

/// Jobs with selectors of their own that share the label that nobody has.
#[test]
fn a_label_that_many_jobs_inherit_is_told_once() {
    let shared: String = (0..9).map(|key| format!("  k{key}: x\n")).collect();
    let mut listed = vec![
        ("octavius.yaml".to_owned(), format!("catalog: test\ndefaults:\n executor:\n  a: nobody\n{shared}")),
        ("team/_defaults.yaml".to_owned(), "executor: {b: x}\n".to_owned()),
    ];
    let job = |number: u32| {
        (format!("team/{number}.yaml"), format!("name: job-{number}\ncommand: [x]\nexecutor: {{zone: z{number}}}\n"))
    };
    listed.extend((0..200).map(job));
    let listed: Vec<_> = listed.iter().map(|(path, text)| (path.as_str(), text.as_str())).collect();
    let loaded = catalog(&listed);
    assert!(!loaded.has_errors() && loaded.jobs.len() == 200, "{:?}", loaded.diagnostics);
    let findings = selectors(&loaded, &[]);
    let [finding] = &findings[..] else { panic!("{findings:?}") };
    assert_eq!((octavius_catalog::diagnostic::place(finding), finding.is_error()), ("octavius.yaml:4:6".to_owned(), false));
}

#[test]
fn each_value_of_a_long_map_has_its_line_in_a_diff() {
    let of = |value: &str| {
        let (own, above): (String, String) = (0..20_000).map(|key| format!("  k{key}: {value}\n")).enumerate().fold(
            (String::new(), String::new()),
            |(own, above), (number, line)| {
                if number.is_multiple_of(2) { (own + &line, above) } else { (own, above + &line) }
            },
        );
        let defaults = format!("annotations:\n{above}");
        catalog(&[("_defaults.yaml", &defaults), ("a.yaml", &format!("name: a\ncommand: [x]\nannotations:\n{own}"))])
    };
    let (before, after) = (of("x"), of("y"));
    assert!(!before.has_errors() && !after.has_errors(), "{:?}", after.diagnostics);
    let (before, after) = (&before.jobs[0], &after.jobs[0]);
    let document = octavius_catalog::Document::index("a.yaml", after.source.as_deref().unwrap()).unwrap();
    let changes = octavius_catalog::diff::diff(&before.definition, &after.definition, Some(&document), &after.inherited);
    assert_eq!(changes.len(), 20_000);
    for change in changes {
        let number: u32 = change.path.strip_prefix("annotations.k").unwrap().parse().unwrap();
        let expected =
            if number.is_multiple_of(2) { (Some(number / 2 + 4), None) } else { (Some(1), Some("_defaults.yaml".to_owned())) };
        assert_eq!((change.line, change.file), expected, "{}", change.path);
    }
}
