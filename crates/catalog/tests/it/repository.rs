//! What the repository itself holds: its example catalogue and the checked-in schemas.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};

use octavius_catalog::diagnostic::render_text;
use octavius_catalog::{Limits, Loaded, load, load_file, read_dir, schema};
use octavius_core::argument;
use serde_json::Value;

fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../..")
}

fn examples() -> Loaded {
    let mut files = read_dir(&root().join("catalog"), &Limits::default()).unwrap();
    files.display_prefix = "catalog".into();
    load(&files)
}

#[test]
fn the_example_catalogue_has_no_finding() {
    let loaded = examples();
    let text: String = loaded.diagnostics.iter().map(|finding| render_text(finding, false)).collect();
    assert!(text.is_empty(), "{text}");
    assert_eq!(loaded.catalog.unwrap().as_str(), "examples");
    assert!(loaded.jobs.iter().any(|job| job.name().as_str() == "hello-friend"));
    assert!(loaded.jobs.len() >= 9);
    assert!(loaded.jobs.iter().all(|job| !job.definition.command.is_empty() && !job.definition.image_name.is_empty()));
}

/// Every job does its work on any Linux host, with its defaults and with only what it requires.
#[cfg(unix)]
#[test]
fn every_example_runs() {
    let temporary = tempfile::tempdir().unwrap();
    let expected = BTreeMap::from([
        ("access-review", "1 accounts, 0 not reviewed"),
        ("cache-flush", "would delete 1 files not changed for 1h"),
        ("certificate-check", ""),
        ("database-backup", "verified: the archive holds what is at the source"),
        ("disk-report", "none is fuller than 100%"),
        ("hello-friend", "Hello, friend!"),
        ("log-archive", "api.log: 200 lines"),
        ("mailbox-export", "3 messages since 2020-01-01"),
        ("user-offboarding", "ann is closed (left)"),
        ("user-onboarding", "may use: wiki"),
    ]);
    let jobs = examples().jobs;
    assert_eq!(jobs.iter().map(|job| job.name().as_str()).collect::<Vec<_>>(), expected.keys().copied().collect::<Vec<_>>());
    let job = |name: &str| jobs.iter().find(|job| job.name().as_str() == name).unwrap();
    let order = expected.keys().filter(|name| !matches!(**name, "access-review" | "user-offboarding" | "user-onboarding"));
    for name in order.chain(&["user-onboarding", "access-review", "user-offboarding"]) {
        let definition = &job(name).definition;
        let required = definition.env_vars.args.iter().filter(|argument| argument.required);
        let given = required.map(|argument| (argument.name.clone(), "ann".to_owned())).collect();
        let arguments = argument::resolve(definition, &given).unwrap();
        let output = std::process::Command::new(&definition.command[0])
            .args(&definition.command[1..])
            .env_clear()
            .env("PATH", std::env::var_os("PATH").unwrap())
            .env("TMPDIR", temporary.path())
            .envs(arguments)
            .current_dir(temporary.path())
            .output()
            .unwrap();
        let (out, err) = (String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
        assert!(output.status.success(), "{name}: {}\n{out}{err}", output.status);
        assert!(out.contains(expected[name]), "{name}:\n{out}{err}");
    }
}

fn check_schema(name: &str, generated: &Value) {
    let path = root().join("schemas").join(name);
    if std::env::var_os("OCTAVIUS_UPDATE_SCHEMAS").is_some() {
        fs::write(&path, format!("{}\n", serde_json::to_string_pretty(generated).unwrap())).unwrap();
    }
    let found: Value = serde_json::from_slice(&fs::read(&path).unwrap_or_default()).unwrap_or_default();
    assert!(
        found == *generated,
        "schemas/{name} is not what the types say; write it anew with OCTAVIUS_UPDATE_SCHEMAS=1 cargo test -p octavius-catalog schemas"
    );
}

#[test]
fn the_checked_in_schemas_are_the_generated_ones() {
    check_schema("job.schema.json", &schema::job_schema());
    check_schema("catalog.schema.json", &schema::catalog_schema());
}

fn validator(schema: &Value) -> jsonschema::Validator {
    jsonschema::draft7::options().with_pattern_options(jsonschema::PatternOptions::regex()).build(schema).unwrap()
}

fn value(path: &Path) -> Option<Value> {
    serde_yaml::from_slice(&fs::read(path).unwrap()).ok()
}

#[test]
fn good_files_fit_the_schemas() {
    let (job, catalog) = (validator(&schema::job_schema()), validator(&schema::catalog_schema()));
    let definitions = schema::catalog_schema()["definitions"].take();
    let defaults = validator(&serde_json::json!({ "allOf": [{ "$ref": "#/definitions/Defaults" }], "definitions": definitions }));
    let files = read_dir(&root().join("catalog"), &Limits::default()).unwrap();
    assert!(files.files.len() > 9);
    for file in &files.files {
        let validator = match file.path.rsplit('/').next().unwrap() {
            "octavius.yaml" => &catalog,
            "_defaults.yaml" => &defaults,
            _ => &job,
        };
        let value = value(&root().join("catalog").join(&file.path)).unwrap();
        let errors: Vec<String> =
            validator.iter_errors(&value).map(|error| format!("{}: {error}", error.instance_path())).collect();
        assert!(errors.is_empty(), "{}: {errors:?}", file.path);
    }
    let everything = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/good/everything.yaml");
    assert!(job.is_valid(&value(&everything).unwrap()));
    let loaded = load_file("everything.yaml", &fs::read(&everything).unwrap(), &Limits::default());
    assert!(!loaded.has_errors() && loaded.jobs.len() == 1);
}

/// Whatever the loader refuses for its shape, an editor marks too.
#[test]
fn files_of_a_wrong_shape_do_not_fit_the_schema() {
    let job = validator(&schema::job_schema());
    for name in
        ["unknown-key.yaml", "type.yaml", "missing-key.yaml", "job-name.yaml", "value.yaml", "range.yaml", "duration.number.yaml"]
    {
        let value = value(&Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/files").join(name)).unwrap();
        assert!(!job.is_valid(&value), "{name} fits the schema");
    }
}
