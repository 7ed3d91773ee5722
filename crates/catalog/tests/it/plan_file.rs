//! Plans as files: what is reviewed is what is applied, or nothing.

use std::path::Path;

use octavius_catalog::render::{RenderOptions, render_text};
use octavius_catalog::{LoadedJob, Made, Plan, PlanFile, PlanFileError, PlanOptions, PlannedFrom, plan};
use octavius_core::CatalogName;
use proptest::prelude::*;
use serde_json::{Value, json};

use super::plans::{job, planned, prune};

fn from() -> PlannedFrom {
    PlannedFrom {
        commit: "4be07d1".repeat(6)[..40].to_owned(),
        dirty: false,
        repository: "https://git.example.org/team/jobs.git".into(),
        author: "Ann".into(),
    }
}

fn made(provenance: Option<PlannedFrom>, rendering: String) -> Made {
    Made {
        id: "0k3v7q2m8d5x1n4r6t9w0b9f2q".into(),
        controller_id: "c-1".into(),
        controller: "prod".into(),
        path: "catalog".into(),
        prune: true,
        provenance,
        rendering,
    }
}

const PIN: &str = "name: pin\ncommand: [x]\nenv_vars: {args: [{name: pin, default: SECRET, sensitive: true}]}\n";

fn before() -> Vec<LoadedJob> {
    vec![
        job(&PIN.replace("SECRET", "hunter2")),
        job("name: gone\ncommand: [x]\n"),
        job("name: kept\ncommand: [x]\nprotect: true\n"),
        job("name: note\ncommand: [x]\ndescription: |\n  one\n  two\n"),
    ]
}

fn after() -> Vec<LoadedJob> {
    vec![
        job(&PIN.replace("SECRET", "swordfish")),
        job("name: new\ncommand: [x]\nenv_vars: {args: [{name: pin, default: opensesame, sensitive: true}]}\n"),
        job("name: note\ncommand: [x]\ndescription: |\n  one\n  three\n"),
    ]
}

fn example() -> (Plan, PlanFile) {
    let plan = planned(&after(), &before(), &prune()).unwrap();
    let rendering = render_text(&plan, &RenderOptions::default());
    let file = PlanFile::of(&plan, made(Some(from()), rendering));
    (plan, file)
}

fn error(bytes: &[u8]) -> PlanFileError {
    PlanFile::from_bytes(bytes).unwrap_err()
}

#[test]
fn a_plan_comes_back_as_it_was_written() {
    let (plan, file) = example();
    let bytes = file.to_bytes();
    assert_eq!(bytes.last(), Some(&b'\n'));
    assert_eq!(PlanFile::from_bytes(&bytes), Ok(file.clone()));
    assert_eq!((file.summary, file.changes.len(), file.parent_revision), (plan.summary, 5, 41));
    // Formatted by another tool, it is the same plan.
    let value: Value = serde_json::from_slice(&bytes).unwrap();
    assert_eq!(PlanFile::from_bytes(value.to_string().as_bytes()), Ok(file.clone()));
    insta::assert_snapshot!("file", String::from_utf8(bytes).unwrap());
    let colored = PlanFile::of(&plan, made(None, render_text(&plan, &RenderOptions { color: true, ..Default::default() })));
    assert!(!colored.rendering.contains('\x1b'));
    assert_eq!(PlanFile::from_bytes(&colored.to_bytes()), Ok(colored));
}

#[test]
fn no_sensitive_value_stands_in_it() {
    let text = String::from_utf8(example().1.to_bytes()).unwrap();
    assert!(text.contains("********"), "{text}");
    for secret in ["hunter2", "swordfish", "opensesame"] {
        assert!(!text.contains(secret), "{text}");
    }
}

#[test]
fn every_edit_and_every_cut_is_noticed() {
    let bytes = example().1.to_bytes();
    for end in 0..bytes.len() - 2 {
        assert!(PlanFile::from_bytes(&bytes[..end]).is_err(), "the first {end} bytes are taken for a plan");
    }
    assert_eq!(error(&bytes[..bytes.len() / 2]), PlanFileError::Damaged("it is not whole"));
    let value: Value = serde_json::from_slice(&bytes).unwrap();
    let edited = |pointer: &str, new: Value| {
        let mut value = value.clone();
        *value.pointer_mut(pointer).unwrap() = new;
        error(value.to_string().as_bytes())
    };
    let damaged = PlanFileError::Damaged("it was edited");
    for (pointer, new) in [
        ("/catalog", json!("other")),
        ("/parent_revision", json!(42)),
        ("/controller_id", json!("c-2")),
        ("/prune", json!(false)),
        ("/provenance", Value::Null),
        ("/provenance/commit", json!("0000000")),
        ("/summary/removed", json!(0)),
        ("/changes", json!([])),
        ("/changes/0/action", json!("blocked")),
        ("/changes/0/action", json!("renamed")),
        ("/changes/2/after", json!("0".repeat(64))),
        ("/changes/2/job", json!("not a name")),
        ("/rendering", json!("no changes\n")),
        ("/checksum", json!("0".repeat(64))),
        ("/checksum", json!(1)),
    ] {
        assert_eq!(edited(pointer, new), damaged, "{pointer}");
    }
    // What is added is noticed too, at any depth.
    for pointer in ["", "/provenance", "/summary", "/changes/0", "/changes/3/fields/0"] {
        let mut value = value.clone();
        value.pointer_mut(pointer).unwrap()["extra"] = json!(1);
        assert_eq!(error(value.to_string().as_bytes()), damaged, "{pointer}");
    }
    assert_eq!(edited("/format_version", json!(2)), PlanFileError::Newer(2));
    assert_eq!(edited("/format_version", json!(0)), PlanFileError::Damaged("its format version is none"));
    assert_eq!(edited("/kind", json!("other")), PlanFileError::Report);
}

#[test]
fn a_stranger_is_told_from_a_plan_and_what_to_do_is_said() {
    let (plan, _) = example();
    assert_eq!(error(plan.report().to_string().as_bytes()), PlanFileError::Report);
    for bytes in [&b""[..], b"{}", b"[]", b"null", b"name: a\ncommand: [x]\n", b"\xff\xfe", b"{\"kind\": 7}"] {
        assert_eq!(error(bytes), PlanFileError::NotAPlan);
    }
    let hint = "`octavius diff --out FILE`";
    for error in [PlanFileError::NotAPlan, PlanFileError::Report, PlanFileError::Damaged("x")] {
        assert!(error.to_string().contains(hint), "{error}");
    }
    assert!(PlanFileError::Newer(2).to_string().contains("update octavius"));
}

/// Whoever makes a checksum that fits still cannot send control characters to a terminal.
#[test]
fn a_rendering_that_a_terminal_would_obey_is_refused() {
    let (_, mut file) = example();
    file.rendering = "no changes\x1b[2J\n".into();
    assert_eq!(error(&file.to_bytes()), PlanFileError::Damaged("it was edited"));
}

/// Each part of a plan that is told as a part of a line, set by a test.
type Set = fn(&mut PlanFile, String);

#[test]
fn what_is_told_on_one_line_holds_nothing_that_is_not_seen() {
    let parts: [Set; 11] = [
        |file, text| file.id = text,
        |file, text| file.controller_id = text,
        |file, text| file.controller = text,
        |file, text| file.path = text,
        |file, text| file.provenance.as_mut().unwrap().commit = text,
        |file, text| file.provenance.as_mut().unwrap().repository = text,
        |file, text| file.provenance.as_mut().unwrap().author = text,
        |file, text| file.changes[0].file = text,
        |file, text| file.changes[0].reason = Some(text),
        |file, text| file.changes[3].fields[0].path = text,
        |file, text| file.changes[3].fields[0].file = Some(text),
    ];
    for set in parts {
        for hidden in ["a\x1b[2J", "a\nb", "a\u{202e}b", "a\u{200b}b", "a\u{e0041}", "\u{feff}a"] {
            let (_, mut file) = example();
            set(&mut file, hidden.into());
            assert_eq!(error(&file.to_bytes()), PlanFileError::Damaged("it was edited"), "{hidden:?}");
        }
        let (_, mut file) = example();
        set(&mut file, "größer/日本 😀".into());
        assert_eq!(PlanFile::from_bytes(&file.to_bytes()), Ok(file));
    }
    // A value may hold anything; whatever a plan is made of, what is written can be read.
    let (mut plan, _) = example();
    plan.changes[0].file = "a\u{200b}\n.yaml".into();
    plan.changes[3].fields[0].before = Some("a\x1b\u{200b}".into());
    let mut made = made(Some(from()), "a\u{200b}\n".into());
    made.path = "cata\u{ad}log".into();
    let file = PlanFile::of(&plan, made);
    assert_eq!((&*file.changes[0].file, &*file.path), ("a\u{fffd}\u{fffd}.yaml", "cata\u{fffd}log"));
    assert_eq!(PlanFile::from_bytes(&file.to_bytes()), Ok(file));
}

#[test]
fn a_plan_is_fulfilled_by_the_same_plan_only() {
    let (plan, file) = example();
    assert_eq!(file.is_fulfilled_by(&plan), Ok(()));
    let differs = |after: &[LoadedJob], before: &[LoadedJob], options: &PlanOptions| {
        file.is_fulfilled_by(&planned(after, before, options).unwrap()).unwrap_err().to_string()
    };
    let (before, after) = (before(), after());
    let more = [after.clone(), vec![job("name: zoo\ncommand: [x]\n")]].concat();
    assert!(differs(&more, &before, &prune()).contains("`zoo` would be added, which is not planned"));
    assert!(differs(&after[..2], &before[..3], &prune()).contains("`note` was planned to be changed and would stay as it is"));
    assert!(
        differs(&after, &before, &PlanOptions::default()).contains("`gone` was planned to be removed and would be blocked"),
        "the first difference by name is told"
    );
    let other = [after[..2].to_vec(), vec![job("name: note\ncommand: [y]\n")]].concat();
    let text = differs(&other, &before, &prune());
    let (now, then) = (other[2].digest.short(), after[2].digest.short());
    assert!(text.contains(&format!("`note` becomes definition {now}, {then} was planned")), "{text}");
    let other = [before[..3].to_vec(), vec![job("name: note\ncommand: [z]\n")]].concat();
    assert!(differs(&after, &other, &prune()).contains("`note` comes from definition"));
    let observed = super::plans::observed(&before);
    let options = prune();
    let moved = plan_at("support", 42, &after, &observed, &options);
    assert_eq!(file.is_fulfilled_by(&moved), Err(PlanFileError::Moved { planned: 41, found: 42 }));
    let stranger = plan_at("other", 41, &after, &observed, &options);
    assert!(matches!(file.is_fulfilled_by(&stranger), Err(PlanFileError::OtherCatalog { .. })));
}

fn plan_at(
    catalog: &str,
    revision: u64,
    desired: &[LoadedJob],
    observed: &[octavius_catalog::Observed],
    options: &PlanOptions,
) -> Plan {
    plan(&CatalogName::new(catalog).unwrap(), revision, desired, observed, options).unwrap()
}

/// The schema names every key that a plan has, and no other: it closes all of its objects.
#[test]
fn plans_fit_their_schema() {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../schemas/plan.schema.json");
    let schema: Value = serde_json::from_slice(&std::fs::read(path).unwrap()).unwrap();
    let validator = jsonschema::draft7::new(&schema).unwrap();
    let (plan, full) = example();
    for file in [full, PlanFile::of(&plan, made(None, String::new()))] {
        let value: Value = serde_json::from_slice(&file.to_bytes()).unwrap();
        let errors: Vec<_> = validator.iter_errors(&value).map(|error| error.to_string()).collect();
        assert!(errors.is_empty(), "{errors:?}");
        for key in value.as_object().unwrap().keys() {
            let mut without = value.clone();
            without.as_object_mut().unwrap().remove(key);
            assert!(!validator.is_valid(&without), "`{key}` is not required");
        }
        for pointer in ["", "/summary", "/changes/0", "/changes/3/fields/0"] {
            let mut more = value.clone();
            more.pointer_mut(pointer).unwrap()["extra"] = json!(1);
            assert!(!validator.is_valid(&more), "{pointer} is open");
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn any_bytes_are_read_without_a_panic(bytes in any::<Vec<u8>>(), json in "[\\[\\]{}\",:a-z0-9_\\\\ -]{0,200}") {
        prop_assert!(PlanFile::from_bytes(&bytes).is_err());
        prop_assert!(PlanFile::from_bytes(json.as_bytes()).is_err());
    }

    /// A plan with bytes replaced, taken away or put in is refused, unless it still says the same.
    #[test]
    fn a_mutated_plan_is_refused(edits in proptest::collection::vec((any::<prop::sample::Index>(), any::<u8>(), 0..3u8), 1..4)) {
        let (_, file) = example();
        let mut bytes = file.to_bytes();
        for (at, byte, how) in edits {
            let at = at.index(bytes.len());
            match how {
                0 => bytes[at] = byte,
                1 => drop(bytes.remove(at)),
                _ => bytes.insert(at, byte),
            }
        }
        if let Ok(read) = PlanFile::from_bytes(&bytes) {
            prop_assert_eq!(read, file);
        }
    }
}
