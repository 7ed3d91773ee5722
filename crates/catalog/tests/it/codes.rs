//! Every code that a finding may have: an input that gives it, whose report is held by a snapshot, and examples in
//! catalog/README.md that are tried here too. The codes are read from the source, so that none can be left out.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::{Path, PathBuf};

use octavius_catalog::diagnostic::render_text;
use octavius_catalog::{Diagnostic, Files, Limits, Loaded, load, load_file, read_dir, read_file, selectors};
use octavius_core::label::Labels;

/// The executors there are, for the one code that asks for them.
fn executors() -> [Labels; 1] {
    [Labels::from([("vpc".to_owned(), "payments".to_owned())])]
}

/// Makes the input for a code that no file under git can give, in an empty folder; the limits to read it with.
type Make = fn(&Path) -> Limits;

/// Inputs that are made: a symlink or a repository would not survive a checkout, and what is too much would be a burden there.
const MADE: [(&str, Make); 6] = [
    ("catalog-size", |root| {
        write(root, "a.yaml", &job("a", 40));
        write(root, "b.yaml", &job("b", 40));
        Limits { total_bytes: 100, ..Limits::default() }
    }),
    ("file-size", |root| {
        write(root, "a.yaml", &job("a", 256 * 1024));
        Limits::default()
    }),
    ("submodule", |root| {
        write(root, "module/.git", "gitdir: ../.git/modules/module\n");
        write(root, "module/a.yaml", &job("a", 0));
        Limits::default()
    }),
    ("symlink", |root| {
        write(root, "a.yaml", &job("a", 0));
        std::os::unix::fs::symlink("a.yaml", root.join("b.yaml")).unwrap();
        Limits::default()
    }),
    ("too-many-defaults", |root| {
        for number in 0..=1_000 {
            write(root, &format!("{number:04}/_defaults.yaml"), "retries: 1\n");
        }
        Limits::default()
    }),
    ("too-many-jobs", |root| {
        for number in 0..=10_000 {
            fs::write(root.join(format!("job-{number:05}.yaml")), job(&format!("job-{number}"), 0)).unwrap();
        }
        Limits::default()
    }),
];

/// Codes without an input: `definition` stands for a fault of ours, and is tested beside its code in load.rs.
const WITHOUT_INPUT: [&str; 1] = ["definition"];

fn job(name: &str, filler: usize) -> String {
    format!("name: {name}\ncommand: [x]\n#{}\n", "-".repeat(filler))
}

fn write(root: &Path, path: &str, text: &str) {
    let path = root.join(path);
    fs::create_dir_all(path.parent().unwrap()).unwrap();
    fs::write(path, text).unwrap();
}

/// The inputs under git: a file is loaded on its own, a folder as a catalogue. The part of the name before the first dot is the
/// code.
fn inputs() -> Vec<(String, PathBuf)> {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/files");
    let mut inputs: Vec<_> = fs::read_dir(folder)
        .unwrap()
        .map(|entry| (entry.as_ref().unwrap().file_name().into_string().unwrap(), entry.unwrap().path()))
        .collect();
    inputs.sort();
    inputs
}

fn code_of(name: &str) -> &str {
    name.split('.').next().unwrap()
}

/// Loads a folder as if it lay at `name`.
fn load_folder(path: &Path, name: &str, limits: &Limits) -> Loaded {
    let mut files = read_dir(path, limits).unwrap();
    let shown = files.display_prefix.clone();
    for finding in &mut files.findings {
        finding.path = finding.path.replace(&shown, name);
    }
    name.clone_into(&mut files.display_prefix);
    load(&files)
}

fn all_findings(loaded: &Loaded) -> Vec<Diagnostic> {
    loaded.diagnostics.iter().cloned().chain(selectors(loaded, &executors())).collect()
}

fn gives(name: &str, findings: &[Diagnostic]) {
    let code = code_of(name);
    let codes: Vec<_> = findings.iter().map(|finding| finding.code).collect();
    assert!(codes.contains(&code), "{name} gives {codes:?}");
    let text: Vec<_> = findings.iter().take(20).map(|finding| render_text(finding, false)).collect();
    insta::with_settings!({ prepend_module_to_snapshot => false, omit_expression => true }, {
        insta::assert_snapshot!(name.replace('.', "_"), text.join("\n"));
    });
}

#[test]
fn every_input_gives_the_finding_that_it_is_named_after() {
    for (name, path) in inputs() {
        let limits = Limits::default();
        let loaded = if path.is_dir() {
            load_folder(&path, &name, &limits)
        } else {
            load_file(&name, &read_file(&path, &limits).unwrap(), &limits)
        };
        gives(&name, &all_findings(&loaded));
    }
}

#[test]
fn what_cannot_be_a_file_under_git_is_made_and_gives_its_finding() {
    for (name, make) in MADE {
        let folder = tempfile::tempdir().unwrap();
        write(folder.path(), "octavius.yaml", "catalog: test\n");
        let limits = make(folder.path());
        let loaded = load_folder(folder.path(), name, &limits);
        gives(name, &all_findings(&loaded));
    }
}

/// The codes in a source file: the first words of their own in calls that make findings. Tests at its end do not count.
fn codes_in(source: &str) -> BTreeSet<String> {
    let source = source.split("\n#[cfg(test)]\n").next().unwrap();
    let mut codes = BTreeSet::new();
    for call in ["of_file(", "finding(", "findings.error(", "findings.warning(", "self.text(node, "] {
        for (at, _) in source.match_indices(call) {
            let mut depth = 1;
            let arguments = source[at + call.len()..].char_indices().find_map(|(end, c)| {
                depth += i32::from(c == '(') - i32::from(c == ')');
                (depth == 0).then(|| &source[at + call.len()..at + call.len() + end])
            });
            let arguments = arguments.unwrap().split(", ").map(str::trim);
            let arguments = arguments.flat_map(|argument| argument.split(",\n")).map(str::trim);
            let literals = arguments.filter_map(|argument| argument.strip_prefix('"')?.strip_suffix('"'));
            let is_code = |text: &&str| {
                !text.is_empty()
                    && text.starts_with(|c: char| c.is_ascii_lowercase())
                    && text.chars().all(|c| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '-')
            };
            codes.extend(literals.filter(is_code).take(1).map(str::to_owned));
        }
    }
    codes
}

#[test]
fn every_code_in_the_source_is_described_and_has_an_input() {
    let package = Path::new(env!("CARGO_MANIFEST_DIR"));
    let sources = fs::read_dir(package.join("src")).unwrap().map(|entry| entry.unwrap().path());
    let sources = sources.chain([package.join("../core/src/check.rs")]);
    let codes: BTreeSet<String> = sources.flat_map(|path| codes_in(&fs::read_to_string(path).unwrap())).collect();
    assert!(codes.len() > 45 && codes.contains("duplicate-key") && codes.contains("too-many-labels"), "{codes:?}");
    let described: BTreeSet<String> = described().into_keys().collect();
    assert_eq!(described, codes, "catalog/README.md and the source");
    let inputs = inputs();
    let given = inputs.iter().map(|(name, _)| code_of(name)).chain(MADE.map(|(name, _)| name)).chain(WITHOUT_INPUT);
    assert_eq!(given.map(str::to_owned).collect::<BTreeSet<_>>(), codes, "inputs and the source");
}

/// The bad and the good example of each code.
fn described() -> BTreeMap<String, (String, String)> {
    let readme = fs::read_to_string(Path::new(env!("CARGO_MANIFEST_DIR")).join("../../catalog/README.md")).unwrap();
    let findings = readme.split_once("\n## Findings\n").unwrap().1;
    let rows = findings.lines().filter_map(|line| line.strip_prefix("| `")?.strip_suffix('|'));
    let cells = rows.map(|row| {
        let (code, rest) = row.split_once("` | ").unwrap();
        let (bad, good) = rest.split_once(" |").unwrap();
        (code.to_owned(), (bad.trim_start_matches("(warning) ").to_owned(), good.trim().to_owned()))
    });
    cells.collect()
}

/// The files that an example consists of; `None` where it is told in words. Lines stand in quotes of their own, a file's first
/// one behind its name. A part of a job is made a whole one.
fn example(cell: &str) -> Option<Vec<(String, String)>> {
    let mut files: Vec<(String, String)> = Vec::new();
    for line in cell.split("<br>") {
        let line = line.strip_prefix('`')?.strip_suffix('`')?;
        let (name, line) = line.split_once("`: `").map_or((None, line), |(name, line)| (Some(name), line));
        if name.is_some() || files.is_empty() {
            files.push((name.unwrap_or("a.yaml").to_owned(), String::new()));
        }
        let text = &mut files.last_mut().unwrap().1;
        text.push_str(line);
        text.push('\n');
    }
    for (_, text) in files.iter_mut().filter(|(name, _)| name == "a.yaml") {
        let has = |key: &str| text.lines().any(|line| line.starts_with(key));
        if !has("name:") && !has("description: Refund") {
            let command = if has("command:") { "" } else { "command: [x]\n" };
            *text = format!("name: x\n{command}{text}");
        }
    }
    if files.iter().all(|(name, _)| name != "octavius.yaml") {
        files.push(("octavius.yaml".to_owned(), "catalog: test\n".to_owned()));
    }
    Some(files)
}

#[test]
fn the_examples_that_describe_a_code_are_true() {
    let mut in_words = BTreeSet::new();
    for (code, (bad, good)) in described() {
        let findings = |files: Vec<(String, String)>| {
            let files = files.into_iter().map(|(path, text)| (path, text.into_bytes()));
            all_findings(&load(&Files::new(files, &Limits::default())))
        };
        match example(&bad) {
            Some(files) => {
                let found = findings(files);
                assert!(found.iter().any(|finding| finding.code == code), "{code}: {bad} gives {found:?}");
            }
            None => drop(in_words.insert(code.clone())),
        }
        if let Some(files) = example(&good) {
            let found = findings(files);
            assert!(found.is_empty(), "{code}: {good} gives {found:?}");
        }
    }
    let expected = [
        "catalog-size",
        "definition",
        "file-size",
        "no-catalog-file",
        "submodule",
        "symlink",
        "too-many-defaults",
        "too-many-findings",
        "too-many-groups",
        "too-many-jobs",
        "too-many-labels",
        "too-many-variables",
        "utf-8",
    ];
    assert_eq!(in_words, expected.map(str::to_owned).into(), "only these are told in words");
}
