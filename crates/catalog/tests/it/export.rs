//! Catalogues as files: what is exported loads again as the same jobs, wherever they came from.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::sync::Arc;

use octavius_catalog::{Files, Limits, Loaded, export, load, manifest, read_dir};
use octavius_core::{CatalogName, Digest, JobDefinition, JobName};
use proptest::prelude::*;

use super::plans::{definition, job};

type Jobs = Vec<(manifest::Entry, Arc<JobDefinition>)>;

fn of(mut definition: JobDefinition, name: &str, file: &str) -> (manifest::Entry, Arc<JobDefinition>) {
    definition.name = JobName::new(name).unwrap();
    let entry = manifest::Entry {
        name: definition.name.clone(),
        digest: definition.digest(),
        file: file.to_owned(),
        line: 1,
        changed_in: 1,
        inherited: Vec::new(),
    };
    (entry, Arc::new(definition))
}

fn plain(name: &str, file: &str) -> (manifest::Entry, Arc<JobDefinition>) {
    of((*job("name: a\ncommand: [x]\n").definition).clone(), name, file)
}

fn export(name: &str, jobs: &Jobs) -> BTreeMap<String, Vec<u8>> {
    export::files(&CatalogName::new(name).unwrap(), jobs)
}

fn paths(jobs: &Jobs) -> Vec<String> {
    export("test", jobs).into_keys().collect()
}

fn digests(loaded: &Loaded) -> BTreeMap<JobName, Digest> {
    assert!(!loaded.has_errors(), "{:?}", loaded.diagnostics);
    loaded.jobs.iter().map(|job| (job.name().clone(), job.digest)).collect()
}

/// Writes the files to a disk and loads them from there, and from memory.
fn loaded_again(name: &str, jobs: &Jobs) -> BTreeMap<JobName, Digest> {
    let files = export(name, jobs);
    let folder = tempfile::tempdir().unwrap();
    for (path, bytes) in &files {
        let path = folder.path().join(path);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(path, bytes).unwrap();
    }
    let on_disk = load(&read_dir(folder.path(), &Limits::default()).unwrap());
    assert_eq!(on_disk.catalog.as_ref().unwrap().as_str(), name);
    assert_eq!(digests(&on_disk), digests(&load(&Files::new(files, &Limits::default()))));
    digests(&on_disk)
}

fn asked(jobs: &Jobs) -> BTreeMap<JobName, Digest> {
    jobs.iter().map(|(entry, _)| (entry.name.clone(), entry.digest)).collect()
}

#[test]
fn jobs_keep_their_files_without_the_folders_that_all_have() {
    let jobs = vec![
        plain("a", "deploy/catalog/a.yaml"),
        plain("b", "deploy/catalog/pay/b.yml"),
        plain("c", "deploy/catalog/c/metadata.json"),
        plain("d", ""),
    ];
    assert_eq!(paths(&jobs), ["a.yaml", "c/metadata.json", "d.yaml", "octavius.yaml", "pay/b.yml"]);
    assert_eq!(loaded_again("test", &jobs), asked(&jobs));
    assert_eq!(paths(&vec![plain("a", "x/y/z.yaml")]), ["octavius.yaml", "z.yaml"]);
    assert_eq!(paths(&Vec::new()), ["octavius.yaml"]);
    // Folders that only begin alike are not the same.
    assert_eq!(paths(&vec![plain("a", "web/a.yaml"), plain("b", "webs/b.yaml")]), ["octavius.yaml", "web/a.yaml", "webs/b.yaml"]);
}

#[test]
fn a_file_that_cannot_be_is_named_after_its_job() {
    for file in [
        "",
        "a",
        "a.txt",
        "_a.yaml",
        ".a.yaml",
        "x/_y/a.yaml",
        "octavius.yaml",
        "Octavius.YAML",
        "octavius.yml",
        "x/octavius.yaml",
        "_defaults.yaml",
        "../a.yaml",
        "x//a.yaml",
        "x\\a.yaml",
        "a\n.yaml",
        "\0.yaml",
    ] {
        let jobs = vec![plain("job", file), plain("root", "root.yaml")];
        assert_eq!(paths(&jobs), ["job.yaml", "octavius.yaml", "root.yaml"], "{file:?}");
    }
    let long = format!("{}.yaml", "x".repeat(251));
    assert_eq!(paths(&vec![plain("job", &long), plain("root", "root.yaml")])[0], "job.yaml");
    assert_eq!(paths(&vec![plain("octavius", "")]), ["octavius-2.yaml", "octavius.yaml"]);
}

#[test]
fn no_two_jobs_share_a_file_also_where_case_does_not_count() {
    let jobs = vec![
        plain("a", "x.yaml"),
        plain("b", "X.yaml"),
        plain("c", "x.yaml"),
        plain("d", "b.yaml"),
        plain("e", "É.yaml"),
        plain("f", "é.yaml"),
    ];
    assert_eq!(paths(&jobs), ["b-2.yaml", "b.yaml", "c.yaml", "f.yaml", "octavius.yaml", "x.yaml", "É.yaml"]);
    // A file and a folder of one name.
    let jobs = vec![plain("a", "x.yaml/a.yaml"), plain("b", "X.yaml"), plain("c", "r.yaml"), plain("d", "R.YAML/d.yaml")];
    assert_eq!(paths(&jobs), ["b.yaml", "d.yaml", "octavius.yaml", "r.yaml", "x.yaml/a.yaml"]);
    assert_eq!(loaded_again("test", &jobs), asked(&jobs));
}

#[test]
fn names_that_yaml_takes_for_something_else_stay_names() {
    for name in ["007", "true", "null", "1.10", "1e3", "0x1F", "No", "y", "2024-01-01", "-"] {
        let Ok(catalog) = CatalogName::new(name) else { continue };
        let jobs = vec![plain(name, "")];
        assert_eq!(loaded_again(catalog.as_str(), &jobs), asked(&jobs));
    }
}

/// YAML would indent each of its lines, and come out over what the loader takes.
#[test]
fn a_file_near_the_limit_does_not_come_out_over_it() {
    let mut definition = (*job("name: a\ncommand: [x]\n").definition).clone();
    definition.description = "x\n".repeat(80_000);
    let jobs = vec![of(definition, "a", "a.yaml")];
    assert!(export::to_yaml(&jobs[0].1, None).len() > octavius_core::limit::JOB_FILE_BYTES);
    assert_eq!(loaded_again("test", &jobs), asked(&jobs));
}

#[test]
fn two_thousand_jobs_come_back() {
    let jobs: Jobs =
        (0..2000).map(|number| plain(&format!("Job-{number}"), &format!("catalog/{}/job-{number}.yaml", number % 40))).collect();
    let files = export("test", &jobs);
    assert_eq!((files.len(), files.contains_key("7/job-47.yaml")), (2001, true));
    assert_eq!(loaded_again("test", &jobs), asked(&jobs));
    // All from one file, as a careless importer might say.
    let jobs: Jobs = (0..2000).map(|number| plain(&format!("job-{number}"), "jobs.yaml")).collect();
    assert_eq!(loaded_again("test", &jobs), asked(&jobs));
}

/// Files as a manifest may name them, and as it should not.
fn file() -> impl Strategy<Value = String> {
    prop_oneof![
        "[a-cA-C]{1,2}\\.(yaml|yml|json|YAML|txt)",
        "(catalog/)?([a-b_.A]{1,2}/){0,2}[a-cA-C]\\.(yaml|json)",
        "(catalog/)?(octavius|_defaults|a\\.yaml/b|job-1)\\.(yaml|yml)",
        ".{0,20}\\.yaml",
        any::<String>(),
    ]
}

proptest! {
    #![proptest_config(ProptestConfig { failure_persistence: None, cases: 100, ..ProptestConfig::default() })]

    #[test]
    fn what_is_exported_is_what_there_was(
        jobs in proptest::collection::btree_map("[a-cA-C]|octavius|[A-Ca-c]-2|job-1|true|007|[A-Za-z0-9]([A-Za-z0-9._-]{0,8}[A-Za-z0-9])?", (definition(), file(), any::<String>()), 0..8),
        catalog in "[A-Za-z0-9]([A-Za-z0-9._-]{0,8}[A-Za-z0-9])?",
    ) {
        let mut folded = BTreeSet::new();
        let jobs: Jobs = jobs
            .into_iter()
            .filter(|(name, _)| folded.insert(name.to_lowercase()))
            .map(|(name, (mut definition, file, text))| {
                definition.description = text;
                of(definition, &name, &file)
            })
            .collect();
        let files = export(&catalog, &jobs);
        let lower: BTreeSet<String> = files.keys().map(|path| path.to_lowercase()).collect();
        prop_assert_eq!(lower.len(), jobs.len() + 1);
        prop_assert_eq!(loaded_again(&catalog, &jobs), asked(&jobs));
    }
}
