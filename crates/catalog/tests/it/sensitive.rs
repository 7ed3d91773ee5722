//! Findings about files that hold sensitive values: told with their places, and without the values.

use octavius_catalog::diagnostic::{render_github, render_text};
use octavius_catalog::{Diagnostic, Limits, Loaded, load_file, selectors};

use super::catalog;

/// Everything that is ever printed of findings.
fn printed(findings: &[Diagnostic]) -> String {
    let text = findings.iter().map(|finding| render_text(finding, false) + &render_github(finding)).collect::<String>();
    text + &serde_json::to_string(findings).unwrap()
}

fn held(loaded: &Loaded, codes: &[&str]) -> String {
    let found: Vec<_> = loaded.diagnostics.iter().map(|finding| finding.code).collect();
    assert_eq!(found, codes);
    let printed = printed(&loaded.diagnostics);
    for secret in ["hunter", "sword", "fish"] {
        assert!(!printed.contains(secret), "{secret} is told:\n{printed}");
    }
    printed
}

fn job(args: &str) -> Loaded {
    load_file("a.yaml", format!("name: a\ncommand: [x]\nenv_vars:\n  args:\n{args}").as_bytes(), &Limits::default())
}

fn lines(text: &str) -> Vec<&str> {
    text.lines().collect()
}

#[test]
fn a_value_is_masked_and_the_mark_stands_under_it() {
    let loaded = job("    - name: pin\n      sensitive: true\n      default: hunter2 # kept\n");
    let text = held(&loaded, &["sensitive-default"]);
    assert_eq!(lines(&text)[1..3], ["7 |       default: ******** # kept", "  |                ^^^^^^^^"]);
    let loaded = job("    - {name: pin, default: 'hunter2', type: integer, enum: [hunter3, \"sword, fish\"], sensitive: true}\n");
    let text = held(&loaded, &["default-type", "enum-type", "enum-type"]);
    let source = "5 |     - {name: pin, default: ********, type: integer, enum: [********, ********], sensitive: true}";
    for ((start, _), part) in source.match_indices("********").zip(lines(&text).chunks(4)) {
        assert_eq!((part[1], part[2].find('^')), (source, Some(start)), "{text}");
    }
}

#[test]
fn findings_beside_a_value_do_not_tell_it_either() {
    // What is no value of its own has its mark where it stood, and the rest of the line is as it was.
    let loaded = job("    - {name: pin, default: hunter2, requird: true, sensitive: true, descripton: swordfish}\n");
    let text = held(&loaded, &["sensitive-default", "unknown-key", "unknown-key"]);
    assert!(
        text.contains("- {name: pin, default: ********, requird: ********, sensitive: true, descripton: ********}"),
        "{text}"
    );
    assert!(text.contains("did you mean `required`?") && text.contains("did you mean `description`?"), "{text}");
    // A list that is none, with a hint that repeats it.
    let text = held(&job("    - {name: pin, sensitive: true, enum: hunter2}\n"), &["type"]);
    assert!(text.contains("make it a list: [\"********\"]"), "{text}");
    // A comma in a value between braces makes a key of its rest.
    let text =
        held(&job("    - {name: pin, default: hunter,swordfish, sensitive: true}\n"), &["sensitive-default", "unknown-key"]);
    assert!(text.contains("`********` is not a key of an item of `args`"), "{text}");
    held(&job("    - {name: pin, default: hunter,sword: fish, sensitive: true}\n"), &["sensitive-default", "unknown-key"]);
    // Whoever writes something else than `false` means it.
    held(&job("    - {name: pin, default: hunter2, sensitive: yes}\n"), &["type"]);
    // A line without a value is shown as it is; so is that of an argument that is not sensitive.
    let loaded = job("    - name: 1pin\n      sensitive: true\n    - {name: 2x, default: shown, sensitive: false}\n");
    let text = held(&loaded, &["variable-name", "variable-name"]);
    assert!(text.contains("5 |     - name: 1pin\n") && text.contains("- {name: 2x, default: shown, sensitive: false}"), "{text}");
}

#[test]
fn values_of_several_lines_are_masked_in_each() {
    for value in ["|\n        hunter2\n        swordfish", "\"hunter2\n        swordfish\"", "hunter2\n        swordfish"] {
        let loaded = job(&format!("    - name: pin\n      sensitive: true\n      type: integer\n      default: {value}\n"));
        held(&loaded, &["default-type"]);
    }
    let loaded = job(
        "    - name: pin\n      sensitive: true\n      enum:\n        - hunter2\n        - hunter2\n      default: [\n        swordfish, 1]\n",
    );
    let text = held(&loaded, &["enum-duplicate", "type"]);
    assert!(text.contains("9 |         - ********\n") && text.contains("10 |       default: [\n"), "{text}");
    let json = r#"{"name": "a", "command": ["x"], "retris": 1, "env_vars": {"args": [{"name": "pin",	"sensitive": true, "default": "hunter2"}]}}"#;
    for bom in ["", "\u{feff}"] {
        let loaded = load_file("a.json", format!("{bom}{json}\n").as_bytes(), &Limits::default());
        held(&loaded, &["unknown-key", "sensitive-default"]);
    }
}

#[test]
fn a_file_that_is_not_understood_shows_no_line() {
    for (args, code) in [
        ("    - {name: pin, sensitive: true, default: \"hunter2}\n", "syntax"),
        ("    - {name: pin, sensitive: true, default: hunter1, default: hunter2}\n", "duplicate-key"),
        ("    - {name: pin, sensitive: true, default: a,swordfish,swordfish}\n", "duplicate-key"),
    ] {
        let loaded = job(args);
        assert!(loaded.diagnostics.iter().any(|finding| finding.code == code), "{:?}", loaded.diagnostics);
        let text = printed(&loaded.diagnostics);
        assert!(!text.contains("hunter") && !text.contains("swordfish"), "{text}");
        assert!(text.contains("(not shown: the line may hold a sensitive value"), "{text}");
    }
    let loaded = load_file("a.yaml", b"name: a\ncommand: [x]\nname: b\n", &Limits::default());
    assert!(printed(&loaded.diagnostics).contains("3 | name: b\n"));
}

#[test]
fn findings_of_a_whole_catalogue_do_not_tell_them() {
    let argument = "{name: pin, sensitive: true, default: hunter2}";
    let json = |rest: &str| {
        format!(
            r#"{{"name": "a", "command": ["x"]{rest}, "env_vars": {{"args": [{{"name": "pin", "default": "hunter2", "sensitive": true}}]}}}}"#
        )
    };
    let root = format!("catalog: test\ndefaults: {{env_vars: {{args: [{argument}]}}}}\n");
    // In what jobs inherit, on the line of a name that two jobs have, and on that of a label that no executor has.
    let loaded = catalog(&[
        ("octavius.yaml", &root),
        ("b.yaml", "name: b\ncommand: [x]\n"),
        ("web/_defaults.yaml", &format!("env_vars: {{args: [{argument}]}}\n")),
        ("web/c.yaml", "name: c\ncommand: [x]\n"),
        ("a.json", &json(r#", "executor": {"vpc": "x"}"#)),
        ("d.json", &json("")),
    ]);
    let text =
        held(&loaded, &["sensitive-default", "duplicate-name", "sensitive-default", "sensitive-default", "sensitive-default"]);
    assert!(text.contains("web/_defaults.yaml:1:") && text.contains("octavius.yaml:2:"), "{text}");
    let mut with_job = catalog(&[("a.json", &json(r#", "executor": {"vpc": "x"}"#))]);
    with_job.diagnostics = selectors(&with_job, &[]);
    assert!(held(&with_job, &["no-executor"]).contains("\"default\": ********"));
}
