//! Mutated catalogues, and what must hold for each: shared by the program `fuzz` and by a test of few cases. A case is known by
//! its seed and number alone.

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};

use octavius_catalog::diagnostic::{render_count, render_github, render_text};
use octavius_catalog::render::{self, RenderOptions};
use octavius_catalog::{
    Diagnostic, Files, Limits, Loaded, LoadedJob, MaxDeletions, Observed, PlanOptions, export, load, manifest, plan,
};

/// Files of a catalogue by path.
type Catalogue = BTreeMap<String, Vec<u8>>;

/// What cases are made of.
pub(crate) struct Corpus {
    /// The example catalogue, which has no findings.
    examples: Catalogue,
    /// The catalogues among the inputs of the tests.
    catalogues: Vec<Catalogue>,
    /// Every job file there is, good or bad.
    jobs: Vec<(String, Vec<u8>)>,
    /// Every file there is, for pieces.
    pieces: Vec<Vec<u8>>,
    /// A file with every field, as defaults: of the catalogue and of a folder.
    defaults: [(&'static str, Vec<u8>); 2],
}

/// SplitMix64: small, and the same everywhere.
struct Random(u64);

impl Random {
    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut mixed = self.0;
        mixed = (mixed ^ (mixed >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        mixed ^ (mixed >> 31)
    }

    /// A number below `end`, which is not 0.
    fn below(&mut self, end: usize) -> usize {
        let end = u64::try_from(end.max(1)).unwrap_or(u64::MAX);
        usize::try_from(self.next() % end).unwrap_or(0)
    }

    fn one_in(&mut self, many: usize) -> bool {
        self.below(many) == 0
    }

    fn pick<'t, T>(&mut self, items: &'t [T]) -> &'t T {
        &items[self.below(items.len())]
    }

    /// A length up to `most`, short ones far more often than long ones.
    fn length(&mut self, most: usize) -> usize {
        let bits = self.below(usize::BITS as usize - most.leading_zeros() as usize + 1);
        self.below((1 << bits).min(most)) + 1
    }

    /// A piece of `bytes`, of at most 4 KiB.
    fn range(&mut self, bytes: &[u8]) -> std::ops::Range<usize> {
        let start = self.below(bytes.len() + 1);
        start..(start + self.length(4096)).min(bytes.len())
    }
}

/// What means something in YAML or JSON, or to those who print it.
const MARKS: [&str; 52] = [
    " ",
    "\n",
    "\r\n",
    "\r",
    "\t",
    ":",
    ": ",
    "- ",
    "? ",
    "[",
    "]",
    "{",
    "}",
    ",",
    "&a ",
    "*a",
    "!!str ",
    "!x ",
    "!<tag:x> ",
    "<<: ",
    "|\n",
    "|2-\n",
    ">+\n",
    "'",
    "\"",
    "#",
    " #",
    "%YAML 1.2\n",
    "%TAG ! x\n",
    "@",
    "`",
    "---\n",
    "...\n",
    "--- ",
    "\u{feff}",
    "\0",
    "\u{85}",
    "\u{2028}",
    "\u{202e}",
    "\u{1b}[31m",
    "\u{7f}",
    "日本語",
    "🙂",
    "e\u{301}",
    "\\",
    "\\u0000",
    "\\ud800",
    "\\x41",
    "~",
    "/",
    "~1",
    "::",
];

/// Values that sit at an edge of what a field may hold.
const VALUES: [&str; 37] = [
    "null",
    "~",
    "true",
    "True",
    "yes",
    "0",
    "-1",
    "007",
    "0x1F",
    "0b1",
    "0o7",
    "1e3",
    "1e400",
    ".inf",
    "-.INF",
    ".nan",
    "1_000",
    "12:30:45",
    "18446744073709551616",
    "100000000000000000000000",
    "\"\"",
    "''",
    "[]",
    "{}",
    "[[]]",
    "{a: b}",
    "10m",
    "0s",
    "99999999999999d",
    "\"(\"",
    "\"(a+)+$\"",
    "\"a{99999}\"",
    "\"\\\\p{L}{1000}\"",
    "2024-01-01",
    "OCTAVIUS_X",
    "../../etc/passwd",
    "\"\\0\"",
];

/// Text that YAML readers have choked on, as whole lines.
const LINES: [&str; 10] = [
    "a: &a [x,x,x,x,x,x,x,x]\nb: &b [*a,*a,*a,*a,*a,*a,*a,*a]\nc: &c [*b,*b,*b,*b,*b,*b,*b,*b]\nd: [*c,*c,*c,*c,*c,*c,*c,*c]\n",
    "a: &a\n  <<: *a\n",
    "? {a: b}\n: c\n",
    "? |\n  block\n: - x\n",
    "name: x\n",
    "timeout: 5m\ntimeout: 6m\n",
    "---\nname: y\n",
    "concurrency: {}\n",
    "labels: {a: b, A: b, ? c, d}\n",
    "env_vars: {args: [{name: a, default: 1, enum: [1, 1]}], secrets: [{name: a, from: {file: x, environment: y}}]}\n",
];

/// Paths that are near others, or lead out.
const PATHS: [&str; 14] = [
    "octavius.yml",
    "octavius.json",
    "a/octavius.yaml",
    "_defaults.yml",
    "a/_defaults.json",
    "../x.yaml",
    "a/../x.yaml",
    "/x.yaml",
    "a//x.yaml",
    "x\n.yaml",
    "_x.yaml",
    ".x.yaml",
    "a\\b.yaml",
    "日本/x.yaml",
];

/// Largest file that a mutation makes: more than a file may have.
const FILE_BYTES: usize = 300 * 1024;

impl Corpus {
    /// Reads the example catalogue and the tests' inputs of the package at `package`.
    pub(crate) fn read(package: &Path) -> std::io::Result<Self> {
        let mut everything = Vec::new();
        let examples = folder(&package.join("../../catalog"))?;
        let mut catalogues = Vec::new();
        for entry in fs::read_dir(package.join("tests/files"))? {
            let path = entry?.path();
            if path.is_dir() {
                catalogues.push(folder(&path)?);
            } else {
                everything.push((name_of(&path), fs::read(&path)?));
            }
        }
        let full = fs::read_to_string(package.join("tests/good/everything.yaml"))?;
        let lines = || full.lines().filter(|line| !line.starts_with("name:"));
        let catalog: String = lines().map(|line| format!("  {line}\n")).collect();
        let defaults = [
            ("octavius.yaml", format!("catalog: fuzz\ndefaults:\n{catalog}").into_bytes()),
            ("_defaults.yaml", lines().map(|line| format!("{line}\n")).collect::<String>().into_bytes()),
        ];
        everything.push(("everything.yaml".to_owned(), full.into_bytes()));
        // The order in which a folder is listed is not the same everywhere.
        everything.sort();
        catalogues.sort();
        let pieces = everything.iter().map(|(_, bytes)| bytes.clone());
        let pieces = pieces.chain(catalogues.iter().chain([&examples]).flat_map(|catalogue| catalogue.values().cloned()));
        let pieces = pieces.chain(defaults.iter().map(|(_, bytes)| bytes.clone())).filter(|bytes| !bytes.is_empty()).collect();
        Ok(Self { examples, catalogues, jobs: everything, pieces, defaults })
    }

    /// A catalogue before it is mutated: the good one more often than not, since of a bad one little is looked at but its
    /// findings.
    fn base(&self, random: &mut Random) -> Catalogue {
        let mut files = if random.one_in(3) { random.pick(&self.catalogues) } else { &self.examples }.clone();
        // A few files are as good as all of them, and load sooner.
        files.retain(|path, _| path.starts_with('_') || path == "octavius.yaml" || random.one_in(3));
        for _ in 0..random.below(6).saturating_sub(2) {
            let (name, bytes) = random.pick(&self.jobs);
            let folder = random.pick(&["", "a/", "a/b/", "people/"]);
            files.insert(format!("{folder}{name}"), bytes.clone());
        }
        let [(catalog, in_catalog), (folder, in_folder)] = &self.defaults;
        if random.one_in(5) {
            files.insert((*catalog).to_owned(), in_catalog.clone());
        }
        if random.one_in(5) {
            let at = random.pick(&["", "a/", "platform/"]);
            files.insert(format!("{at}{folder}"), in_folder.clone());
        }
        files
    }

    /// The files of one case, and the catalogue that they were made of.
    fn case(&self, random: &mut Random) -> (Catalogue, Catalogue) {
        let base = self.base(random);
        let mut files = base.clone();
        let is_gentle = random.one_in(2);
        for _ in 0..=random.below(if is_gentle { 2 } else { 4 }) {
            let names: Vec<String> = files.keys().cloned().collect();
            if names.is_empty() {
                break;
            }
            let name = random.pick(&names);
            let mut bytes = files.remove(name).unwrap_or_default();
            for _ in 0..random.length(if is_gentle { 1 } else { 8 }) {
                self.mutate(&mut bytes, random);
                bytes.truncate(FILE_BYTES);
            }
            let path = match random.below(40) {
                0 => (*random.pick(&PATHS)).to_owned(),
                1 => format!("{name}.json"),
                2 => format!("{}{name}", "deep/".repeat(random.length(300))),
                _ => name.clone(),
            };
            files.insert(path, bytes);
        }
        (base, files)
    }

    fn mutate(&self, bytes: &mut Vec<u8>, random: &mut Random) {
        let at = random.below(bytes.len() + 1);
        let line_at = bytes[..at].iter().rposition(|&byte| byte == b'\n').map_or(0, |index| index + 1);
        let insert = |bytes: &mut Vec<u8>, at: usize, new: &[u8]| drop(bytes.splice(at..at, new.iter().copied()));
        match random.below(14) {
            0 if !bytes.is_empty() => {
                let index = random.below(bytes.len());
                bytes[index] ^= 1 << random.below(8);
            }
            1 if !bytes.is_empty() => {
                let index = random.below(bytes.len());
                bytes[index] = random.next().to_le_bytes()[0];
            }
            2 | 3 => insert(bytes, at, random.pick(&MARKS).as_bytes()),
            4 => drop(bytes.drain(random.range(bytes))),
            5 => {
                let piece = random.pick(&self.pieces);
                insert(bytes, at, &piece[random.range(piece)]);
            }
            6 => {
                let range = random.range(bytes);
                let piece = bytes[range].repeat(random.length(64));
                insert(bytes, at, &piece[..piece.len().min(FILE_BYTES)]);
            }
            7 => {
                let opening = random.pick(&["[", "{", "{a: ", "- ", "? ", "[{", "a:\n ", "!a ", "&a "]);
                insert(bytes, at, opening.repeat(random.length(20_000)).as_bytes());
            }
            8 => {
                let filling =
                    random.pick(&["x", "\\n", "''", "a ", "é", "\u{301}", "\t", "\\u00e9", "1", "\n", "#", "a: b\n", ", a"]);
                insert(bytes, at, filling.repeat(random.length(100_000)).as_bytes());
            }
            9 => insert(bytes, line_at, random.pick(&LINES).as_bytes()),
            10 => {
                // The value of a key somewhere, for one at an edge.
                let Some(colon) = bytes[at..].windows(2).position(|pair| pair == b": ") else { return };
                let start = at + colon + 2;
                let end =
                    bytes[start..].iter().position(|byte| b"\n,}]".contains(byte)).map_or(bytes.len(), |index| start + index);
                bytes.splice(start..end, random.pick(&VALUES).bytes());
            }
            11 => {
                // A line moved in or out, or told twice.
                let end = bytes[at..].iter().position(|&byte| byte == b'\n').map_or(bytes.len(), |index| at + index + 1);
                let line = bytes[line_at..end].to_vec();
                match random.below(3) {
                    0 => insert(bytes, line_at, &line),
                    1 => insert(bytes, line_at, " ".repeat(random.length(8)).as_bytes()),
                    _ => drop(bytes.drain(line_at..line_at + line.iter().take_while(|&&byte| byte == b' ').count())),
                }
            }
            12 => bytes.truncate(at),
            _ => {
                let piece = random.pick(&self.pieces);
                bytes.truncate(at);
                bytes.extend_from_slice(&piece[random.below(piece.len())..]);
            }
        }
    }
}

fn name_of(path: &Path) -> String {
    path.file_name().unwrap_or_default().to_string_lossy().into_owned()
}

/// The files that the loader may read below a folder.
fn folder(root: &Path) -> std::io::Result<Catalogue> {
    let mut files = Catalogue::new();
    let mut folders = vec![String::new()];
    while let Some(folder) = folders.pop() {
        for entry in fs::read_dir(root.join(&folder))? {
            let path = entry?.path();
            let name = format!("{folder}{}", name_of(&path));
            if path.is_dir() {
                folders.push(format!("{name}/"));
            } else if name.ends_with("yaml") || name.ends_with("yml") || name.ends_with("json") {
                files.insert(name, fs::read(&path)?);
            }
        }
    }
    Ok(files)
}

/// What came of one case.
pub(crate) struct Outcome {
    /// How long loading took.
    pub(crate) took: Duration,
    /// Jobs that were loaded.
    pub(crate) jobs: usize,
    /// Findings that were told.
    pub(crate) findings: usize,
    /// Whether the catalogue could be applied.
    pub(crate) good: bool,
}

/// The files of case `number`: what to look at when it fails.
pub(crate) fn files_of(corpus: &Corpus, seed: u64, number: u64) -> Vec<(String, Vec<u8>)> {
    corpus.case(&mut random(seed, number)).1.into_iter().collect()
}

fn random(seed: u64, number: u64) -> Random {
    let mut random = Random(seed);
    Random(random.next() ^ Random(number).next())
}

/// Loads case `number` and holds the loader to its promises.
///
/// # Panics
/// Where one is broken.
pub(crate) fn run(corpus: &Corpus, seed: u64, number: u64) -> Outcome {
    let (base, files) = corpus.case(&mut random(seed, number));
    let start = Instant::now();
    let loaded = load(&Files::new(files, &Limits::default()).at("catalog"));
    let took = start.elapsed();
    check_findings(&loaded);
    let good = !loaded.has_errors() && loaded.catalog.is_some();
    if good {
        check_jobs(&loaded, &load(&Files::new(base, &Limits::default())));
    }
    Outcome { took, jobs: loaded.jobs.len(), findings: loaded.diagnostics.len(), good }
}

/// Every finding can be shown in every form, and none of them lets through what a stranger wrote for a terminal.
fn check_findings(loaded: &Loaded) {
    let mut files: BTreeMap<&str, usize> = BTreeMap::new();
    for finding in &loaded.diagnostics {
        let Diagnostic { path, code, message, .. } = finding;
        assert_ne!(*code, "definition", "{path}: {message}");
        *files.entry(path).or_default() += 1;
        let text = render_text(finding, false);
        assert!(!text.contains(|c: char| c.is_control() && c != '\n'), "a control character in {text:?}");
        assert!(text.lines().count() <= 4 && text.len() < 64 * 1024, "{} lines, {} bytes", text.lines().count(), text.len());
        assert!(render_text(finding, true).len() >= text.len());
        let command = render_github(finding);
        assert!(!command.contains(['\n', '\r']), "more than one line: {command:?}");
    }
    assert!(files.values().all(|count| *count <= 110), "{files:?}");
    assert!(serde_json::to_string(&loaded.diagnostics).is_ok());
    assert!(!render_count(&loaded.diagnostics, loaded.files).is_empty());
    assert!(loaded.jobs.is_sorted_by(|a, b| a.name().folded() < b.name().folded()));
}

fn observed(job: &LoadedJob) -> Observed {
    let definition = Some(Arc::clone(&job.definition));
    Observed { name: job.name().clone(), digest: job.digest, file: job.file.clone(), line: job.line, definition }
}

/// What loads is exported and loads again as the same; a plan against itself is empty, and one against what it was made of can be
/// shown.
fn check_jobs(loaded: &Loaded, base: &Loaded) {
    let Some(catalog) = &loaded.catalog else { return };
    for job in &loaded.jobs {
        let value = serde_json::to_value(&*job.definition).unwrap_or_default();
        assert!(job.line > 0 && job.digest == job.definition.digest());
        for said in &job.inherited {
            let known = value.pointer(&said.field).is_some() || is_default(&said.field);
            assert!(known && said.line > 0 && !said.file.is_empty(), "{said:?} of {value}");
        }
    }
    let all: Vec<Observed> = loaded.jobs.iter().map(observed).collect();
    let options = PlanOptions { prune: true, max_deletions: MaxDeletions::Percent(100), allow_empty: true };
    let same = plan(catalog, 1, &loaded.jobs, &all, &options);
    assert!(same.as_ref().is_ok_and(octavius_catalog::Plan::is_empty), "{same:?}");
    let before: Vec<Observed> = base.jobs.iter().map(observed).collect();
    match plan(catalog, 1, &loaded.jobs, &before, &options) {
        Ok(plan) => {
            let text = render::render_text(&plan, &RenderOptions::default());
            assert!(!text.contains(|c: char| c.is_control() && c != '\n' && c != '\t'), "a control character in {text:?}");
            assert!(!render::render_markdown(&plan, &RenderOptions::default()).is_empty() || plan.is_empty());
            assert!(plan.changes.iter().all(|change| change.before != change.after));
        }
        Err(error) => panic!("no plan: {error}"),
    }
    let entry = |job: &LoadedJob| manifest::Entry {
        name: job.name().clone(),
        digest: job.digest,
        file: job.file.clone(),
        line: job.line,
        changed_in: 1,
        inherited: job.inherited.clone(),
    };
    let jobs: Vec<_> = loaded.jobs.iter().map(|job| (entry(job), Arc::clone(&job.definition))).collect();
    let exported = load(&Files::new(export::files(catalog, &jobs), &Limits::default()));
    assert!(!exported.has_errors() && exported.catalog == loaded.catalog, "{:?}", exported.diagnostics);
    let digests = |loaded: &Loaded| loaded.jobs.iter().map(|job| (job.name().clone(), job.digest)).collect::<Vec<_>>();
    assert_eq!(digests(&exported), digests(loaded), "what was exported is not what was loaded");
}

/// A field that says what it would be anyway is left out of a definition's canonical form.
fn is_default(pointer: &str) -> bool {
    let parts: Vec<&str> = pointer.split('/').skip(1).collect();
    !matches!(parts[..], ["labels" | "annotations" | "executor", _] | ["timeout"])
}
