//! What YAML and JSON become, and that nothing a file holds makes the loader panic.

use octavius_catalog::{Document, Limits, load_file};
use proptest::prelude::*;

use super::{catalog, places};

/// The text that a plain value of a job file becomes.
fn default_of(written: &str) -> Option<String> {
    let text = format!("name: a\ncommand: [x]\nenv_vars: {{args: [{{name: v, default: {written}}}]}}\n");
    let loaded = load_file("a.yaml", text.as_bytes(), &Limits::default());
    let default = loaded.jobs.first()?.definition.env_vars.args[0].default.clone();
    default.map(|scalar| scalar.0)
}

#[test]
fn plain_values_reach_a_job_as_they_are_written() {
    for (written, becomes) in [
        ("007", "007"),
        ("1e3", "1e3"),
        ("1.50", "1.50"),
        ("0x1F", "0x1F"),
        ("12345678901234567890123", "12345678901234567890123"),
        ("yes", "yes"),
        ("no", "no"),
        ("True", "true"),
        ("false", "false"),
        ("'true'", "true"),
        ("1_000", "1_000"),
        ("12:30:45", "12:30:45"),
        ("2024-01-01", "2024-01-01"),
        ("\" x \"", " x "),
    ] {
        assert_eq!(default_of(written).as_deref(), Some(becomes), "{written}");
    }
    for refused in ["null", "~", "", ".inf", "-.INF", ".nan", "[1]", "{a: 1}"] {
        assert_eq!(default_of(refused), None, "{refused}");
    }
}

#[test]
fn json_may_be_indented_with_tabs_and_is_held_to_its_own_rules() {
    let good = "{\n\t\"name\":\t\"a\",\n\t\"command\": [\"echo\", \"a\\tb\\u00e9\\/\"]\n}";
    let loaded = load_file("a.json", good.as_bytes(), &Limits::default());
    assert_eq!(places(&loaded), [""; 0]);
    assert_eq!(loaded.jobs[0].definition.command, ["echo", "a\tbé/"]);
    for bad in ["{name: a}", "{\"name\": \"a\",}", "{\"name\": \"a\"} x", "# no\n{}", "{\"name\": 'a'}", "{\"name\": 01}", ""] {
        let loaded = load_file("a.json", bad.as_bytes(), &Limits::default());
        assert!(loaded.has_errors(), "{bad}");
        assert!(matches!(loaded.diagnostics[0].code, "syntax" | "empty-file"), "{bad}");
    }
}

#[test]
fn a_byte_order_mark_is_accepted() {
    for (path, text) in
        [("a.yaml", "\u{feff}name: a\ncommand: [x]\n"), ("a.json", "\u{feff}{\"name\": \"a\", \"command\": [\"x\"]}")]
    {
        let loaded = load_file(path, text.as_bytes(), &Limits::default());
        assert_eq!(places(&loaded), [""; 0]);
        assert_eq!(loaded.jobs[0].name().as_str(), "a");
    }
}

#[test]
fn windows_line_ends_change_nothing() {
    let text = "name: a\ncommand:\n- sh\n- |\n  echo one\n  echo two\ntimeout: 5m\n";
    let one = load_file("a.yaml", text.as_bytes(), &Limits::default());
    let other = load_file("a.yaml", text.replace('\n', "\r\n").as_bytes(), &Limits::default());
    assert_eq!(one.jobs[0].digest, other.jobs[0].digest);
}

#[test]
fn places_count_characters_and_know_keys_from_values() {
    let document = Document::index("a.yaml", "a: 1\n\"ключ\": {b: [x, 'y']}\n".as_bytes()).unwrap();
    let at = |span: Option<octavius_catalog::Span>| span.map(|span| (span.line, span.column));
    assert_eq!(at(document.key("/ключ")), Some((2, 1)));
    assert_eq!(at(document.key("/ключ/b")), Some((2, 10)));
    assert_eq!(at(document.value("/ключ/b/1")), Some((2, 17)));
    assert_eq!(at(document.value("/a")), Some((1, 4)));
    assert_eq!(at(document.value("/ключ/c")), None);
}

#[test]
fn the_first_octavius_metadata_loads_unchanged() {
    let json = r#"{
  "name": "hello-friend",
  "description": "Say hello to a friend",
  "image_name": "registry.example/hello:1.0",
  "env_vars": {
    "secrets": [{ "name": "TOKEN", "description": "to sign in with" }],
    "args": [{ "name": "data", "description": "whom to greet", "required": true }]
  },
  "authorized_groups": ["group-one", "group-two"],
  "author": "ann@example.org",
  "contributors": "bob, eve",
  "organization": "example"
}"#;
    let loaded = load_file("metadata.json", json.as_bytes(), &Limits::default());
    assert_eq!(places(&loaded), [""; 0]);
    let job = &loaded.jobs[0].definition;
    assert_eq!(**job, serde_json::from_str(json).unwrap());
    assert_eq!(job.env_vars.args[0].name, "data");
}

#[test]
fn null_stands_for_absent_in_json_and_is_a_slip_in_yaml() {
    let json = r#"{"name": "a", "image_name": "i:1", "description": null, "env_vars": {"secrets": null, "args": [{"name": "x", "default": null}]}}"#;
    let loaded = load_file("metadata.json", json.as_bytes(), &Limits::default());
    assert_eq!(places(&loaded), [""; 0]);
    assert_eq!(loaded.jobs[0].definition.env_vars.args[0].default, None);
    let loaded = load_file("a.yaml", b"name: a\nimage_name: i:1\ntimeout:\n", &Limits::default());
    assert_eq!(loaded.diagnostics.len(), 1);
}

#[test]
fn every_finding_of_every_file_is_told_at_once() {
    let loaded = catalog(&[
        (
            "b.yaml",
            "name: b\ncommand: [x]\ntimout: 5m\nretries: many\nenv_vars: {args: [{name: 1x}, {name: c, type: integer, default: d}]}\n",
        ),
        ("a.yaml", "name: a b\ncommand: [x]\ntimeout: soon\n"),
        ("c.yaml", "name: c\ncommand: [x]\n"),
        ("d.yaml", "- not a job\n"),
    ]);
    let expected = [
        "a.yaml:1:7 job-name",
        "a.yaml:3:10 duration",
        "b.yaml:3:1 unknown-key",
        "b.yaml:4:10 type",
        "b.yaml:5:26 variable-name",
        "b.yaml:5:65 default-type",
        "d.yaml:1:1 type",
    ];
    assert_eq!(places(&loaded), expected);
    assert_eq!(loaded.jobs.iter().map(|job| job.name().as_str()).collect::<Vec<_>>(), ["c"]);
}

/// Files that were made to take long: none takes more than moments, in however many findings it ends.
#[test]
fn hostile_files_are_refused_quickly() {
    const SIZE: usize = 256 * 1024;
    let fill = |head: &str, part: &str| format!("{head}{}", part.repeat((SIZE - head.len()) / part.len()));
    let numbered = |head: &str, part: &dyn Fn(usize) -> String| {
        let mut text = head.to_owned();
        for number in 0.. {
            let part = part(number);
            if text.len() + part.len() + 2 > SIZE {
                break;
            }
            text.push_str(&part);
        }
        text
    };
    let job = "name: a\ncommand: [x]\n";
    let files = [
        fill("", "["),
        fill("", "{"),
        fill("", "- "),
        fill("", "? "),
        fill("", "a: "),
        fill("a: ", "&a "),
        fill("a: ", "!a "),
        fill("", "\n"),
        fill("", "#\n"),
        fill("", "a\n"),
        fill("\"", "\\n"),
        fill("'", "''"),
        fill("a: |\n", " \n"),
        fill(job, "x: 1\n"),
        fill("{name: a, command: [x]", ", x: 1"),
        fill(&format!("{job}labels: {{"), "a,"),
        fill(&format!("{job}x"), "y"),
        fill(&format!("{job}on_lost: "), "y"),
        numbered(job, &|number| format!("x{number}: 1\n")),
        numbered("{name: a, command: [x]", &|number| format!(", x{number}: 1")),
        numbered(&format!("{job}env_vars: {{args: [{{name: a, enum: ["), &|number| format!("{number},")) + "]}]}",
        numbered(&format!("{job}labels: {{"), &|number| format!("{number}: 1,")) + "}",
    ];
    for text in &files {
        let start = std::time::Instant::now();
        let loaded = load_file("a.yaml", text.as_bytes(), &Limits::default());
        let took = start.elapsed();
        assert!(loaded.diagnostics.len() <= 101);
        assert!(took.as_secs() < 5, "{:?}… took {took:?}", &text[..40.min(text.len())]);
    }
}

const JOB: &str = include_str!("../good/everything.yaml");

/// What has a meaning in YAML.
const MARKS: &[u8] = b" \n\t:-[]{}&*!|>'\"#%@`,?<";

proptest! {
    #![proptest_config(ProptestConfig { cases: 2000, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn no_mutation_of_a_job_file_panics(changes in proptest::collection::vec((0..JOB.len(), any::<u8>(), 0..3u8), 1..6), json: bool) {
        let mut bytes = JOB.as_bytes().to_vec();
        for (at, byte, how) in changes {
            let at = at.min(bytes.len().saturating_sub(1));
            match how {
                0 => bytes[at] = byte,
                1 => bytes.insert(at, MARKS[usize::from(byte) % MARKS.len()]),
                _ => drop(bytes.drain(at..(at + usize::from(byte) % 40).min(bytes.len()))),
            }
            if bytes.is_empty() {
                break;
            }
        }
        let loaded = load_file(if json { "a.json" } else { "a.yaml" }, &bytes, &Limits::default());
        prop_assert!(loaded.has_errors() || loaded.jobs.len() == 1);
        for finding in &loaded.diagnostics {
            let _ = octavius_catalog::diagnostic::render_text(finding, true);
        }
    }

    #[test]
    fn no_text_panics(text in "\\PC{0,80}") {
        let _ = load_file("a.yaml", text.as_bytes(), &Limits::default());
    }

    /// One reader of YAML must not see another job than the others do: where both take a value, it is the same value.
    #[test]
    fn plain_values_mean_what_they_mean_to_serde_yaml(text in "[-+.0-9a-fxo_eEyYnN~tTrRuUlL ]{0,8}") {
        let Ok(other) = serde_yaml::from_str::<serde_yaml::Value>(&format!("v: [{text}]")) else { return Ok(()) };
        let Some(items) = other["v"].as_sequence() else { return Ok(()) };
        let [other] = &items[..] else { return Ok(()) };
        let ours = default_of(&text);
        match other {
            serde_yaml::Value::String(other) => prop_assert!(ours.is_none_or(|ours| ours == *other)),
            serde_yaml::Value::Bool(other) => prop_assert_eq!(ours, Some(other.to_string())),
            serde_yaml::Value::Null => prop_assert_eq!(ours, None),
            serde_yaml::Value::Number(_) => prop_assert!(ours.is_none_or(|ours| ours == text.trim())),
            _ => {}
        }
    }

    #[test]
    fn valid_json_is_read_as_json(value in json_value(), tabs: bool) {
        let map = serde_json::json!({ "name": "a", "command": ["x"], "annotations": value });
        let text = serde_json::to_string_pretty(&map).unwrap();
        let text = if tabs { text.replace("\n  ", "\n\t") } else { text };
        let loaded = load_file("a.json", text.as_bytes(), &Limits::default());
        prop_assert_eq!(places(&loaded), [""; 0]);
        prop_assert_eq!(serde_json::to_value(&loaded.jobs[0].definition.annotations).unwrap(), map["annotations"].clone());
    }
}

fn json_value() -> impl Strategy<Value = std::collections::BTreeMap<String, String>> {
    proptest::collection::btree_map("[ -~äß\u{4e00}]{1,12}", any::<String>(), 0..4)
}
