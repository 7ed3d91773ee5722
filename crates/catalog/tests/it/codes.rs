//! One input for every code that the loader has; what it prints for each is held by a snapshot. A file is loaded on its own, a folder
//! as a catalogue. The part of the name before the first dot is the code.

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};

use octavius_catalog::diagnostic::render_text;
use octavius_catalog::{Limits, load, load_file, read_dir, read_file};

fn inputs() -> Vec<(String, PathBuf)> {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/files");
    let mut inputs: Vec<_> = fs::read_dir(folder)
        .unwrap()
        .map(|entry| (entry.as_ref().unwrap().file_name().into_string().unwrap(), entry.unwrap().path()))
        .collect();
    inputs.sort();
    inputs
}

#[test]
fn every_input_gives_the_finding_that_it_is_named_after() {
    for (name, path) in inputs() {
        let limits = Limits::default();
        let loaded = if path.is_dir() {
            let mut files = read_dir(&path, &limits).unwrap();
            let shown = files.display_prefix.clone();
            for finding in &mut files.findings {
                finding.path = finding.path.replace(&shown, &name);
            }
            files.display_prefix.clone_from(&name);
            load(&files)
        } else {
            load_file(&name, &read_file(&path, &limits).unwrap(), &limits)
        };
        let code = name.split('.').next().unwrap();
        let codes: Vec<_> = loaded.diagnostics.iter().map(|finding| finding.code).collect();
        assert!(codes.contains(&code), "{name} gives {codes:?}");
        let text: Vec<_> = loaded.diagnostics.iter().take(20).map(|finding| render_text(finding, false)).collect();
        insta::with_settings!({ prepend_module_to_snapshot => false, omit_expression => true }, {
            insta::assert_snapshot!(name.replace('.', "_"), text.join("\n"));
        });
    }
}

/// Every code has a section in catalog/README.md, and no other code is described there.
#[test]
fn every_code_is_described() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("../..");
    let readme = fs::read_to_string(root.join("catalog/README.md")).unwrap();
    let findings = readme.split_once("\n## Findings\n").unwrap().1;
    let codes = findings.lines().filter_map(|line| Some(line.strip_prefix("| `")?.split_once("` | ")?.0.to_owned()));
    let described: BTreeSet<String> = codes.collect();
    let mut expected: BTreeSet<String> = inputs().iter().map(|(name, _)| name.split('.').next().unwrap().to_owned()).collect();
    // Too large to keep as files, not a thing that a file can hold, or a fault of ours: their tests stand beside their code.
    expected.extend(["file-size", "too-many-jobs", "catalog-size", "symlink", "submodule", "definition"].map(str::to_owned));
    assert_eq!(described, expected);
}
