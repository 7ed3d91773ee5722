//! From files to jobs: the values of each file are checked against the schema, inherited values are filled in, and what a schema
//! cannot say is checked by `octavius_core::check`. Every finding of every file is reported at once.
//!
//! A job inherits from the `defaults` of `octavius.yaml`, then from the `_defaults.yaml` of each folder on its way, the nearer one
//! over the farther, its own file over all of them. Maps are merged key by key; lists and plain values are replaced.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use octavius_core::check::{Finding, Patterns, check_with};
use octavius_core::{CatalogName, Digest, JobDefinition, JobName};
use serde::Deserialize as _;
use serde_json::{Map, Value as Json};

use crate::diagnostic::{self, Diagnostic, FINDINGS_PER_FILE};
use crate::document::{self, Document, Node, Span, Value};
use crate::shape::{CATALOG, DEFAULTS, JOB, Walk};
use crate::source::{self, CATALOG_FILE, DEFAULTS_FILE, File, Files, Limits, joined};

/// A job and where it came from.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LoadedJob {
    /// What the file says, with inherited values filled in.
    pub definition: Arc<JobDefinition>,
    /// The digest of the definition's canonical JSON.
    pub digest: Digest,
    /// The file, with the prefix that [`Files::file_prefix`] names.
    pub file: String,
    /// The line of the job's name, counted from 1; 0 where there is no file.
    pub line: u32,
    /// The file's bytes, for the lines of its fields in a diff; `None` where there is no file.
    pub source: Option<Arc<[u8]>>,
}

impl LoadedJob {
    /// A job without a file: one that came over the wire.
    #[must_use]
    pub fn without_file(definition: JobDefinition) -> Self {
        Self { digest: definition.digest(), definition: Arc::new(definition), file: String::new(), line: 0, source: None }
    }

    /// The job's name.
    #[must_use]
    pub fn name(&self) -> &JobName {
        &self.definition.name
    }
}

/// A catalogue's jobs, and everything there is to say about its files.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Loaded {
    /// The catalogue's name; `None` where `octavius.yaml` is missing or does not say.
    pub catalog: Option<CatalogName>,
    /// The jobs that have no errors, sorted by name without regard to case.
    pub jobs: Vec<LoadedJob>,
    /// All findings, sorted by path and position.
    pub diagnostics: Vec<Diagnostic>,
    /// How many files were looked at.
    pub files: usize,
}

impl Loaded {
    /// Whether any finding is an error: the catalogue cannot be applied.
    #[must_use]
    pub fn has_errors(&self) -> bool {
        self.diagnostics.iter().any(Diagnostic::is_error)
    }
}

/// A file that jobs inherit from.
struct Defaults<'a> {
    file: &'a File,
    text: &'a str,
    document: Document,
    /// Where in the document the inherited values are: empty, or `/defaults` in the catalogue file.
    pointer: &'static str,
    /// The values of this file over those of the folders above.
    merged: Json,
    /// The folder above that has defaults too.
    parent: Option<String>,
}

/// Loads a catalogue: the value, and every finding.
#[must_use]
pub fn load(files: &Files) -> Loaded {
    let mut loaded = Loaded { diagnostics: files.findings.clone(), files: files.files.len(), ..Loaded::default() };
    let display = |path: &str| joined(&files.display_prefix, path);
    let (jobs, others): (Vec<&File>, Vec<&File>) = files.files.iter().partition(|file| source::is_job(&file.path));
    let mut folders = BTreeMap::new();
    if others.iter().all(|file| file.path != CATALOG_FILE) {
        let message = format!("the catalogue has no {CATALOG_FILE} at its root");
        let hint = "write one that holds the line `catalog: NAME`";
        loaded.diagnostics.push(Diagnostic::of_file(display(CATALOG_FILE), "no-catalog-file", message, hint));
    }
    load_defaults(&others, &display, &mut folders, &mut loaded);
    let parts = source::in_parallel(&jobs, |jobs| {
        let mut found = Vec::with_capacity(jobs.len());
        let mut findings = Vec::new();
        let mut patterns = Patterns::default();
        for &file in jobs {
            let chain = inherited_by(&file.path, &folders);
            let before = findings.len();
            let job = load_job(&display(&file.path), &file.bytes, chain.as_ref(), &display, &mut patterns, &mut findings);
            cap(&display(&file.path), &mut findings, before);
            found.extend(job.map(|(definition, line)| {
                let digest = definition.digest();
                let path = joined(&files.file_prefix, &file.path);
                let job = LoadedJob {
                    definition: Arc::new(definition),
                    digest,
                    file: path,
                    line,
                    source: Some(Arc::clone(&file.bytes)),
                };
                (job, file)
            }));
        }
        (found, findings)
    });
    let mut found = Vec::with_capacity(jobs.len());
    for (jobs, findings) in parts {
        found.extend(jobs);
        loaded.diagnostics.extend(findings);
    }
    let found = without_duplicates(found, &display, &mut loaded.diagnostics);
    diagnostic::sort(&mut loaded.diagnostics);
    let failed: BTreeSet<&str> =
        loaded.diagnostics.iter().filter(|finding| finding.is_error()).map(|finding| &*finding.path).collect();
    let is_sound = |file: &File| failed.is_empty() || !failed.contains(&*display(&file.path));
    loaded.jobs = found.into_iter().filter(|(_, file)| is_sound(file)).map(|(job, _)| job).collect();
    loaded
}

/// Loads one job file on its own, without a catalogue around it. `path` decides between YAML and JSON and names the file in
/// findings.
#[must_use]
pub fn load_file(path: &str, bytes: &[u8], limits: &Limits) -> Loaded {
    let mut loaded = Loaded { files: 1, ..Loaded::default() };
    if bytes.len() > limits.file_bytes {
        loaded.diagnostics.push(source::too_large(path, limits));
        return loaded;
    }
    if let Some((definition, line)) =
        load_job(path, bytes, None, &str::to_owned, &mut Patterns::default(), &mut loaded.diagnostics)
    {
        let digest = definition.digest();
        let source = Some(Arc::from(bytes));
        loaded.jobs.push(LoadedJob { definition: Arc::new(definition), digest, file: path.to_owned(), line, source });
    }
    cap(path, &mut loaded.diagnostics, 0);
    diagnostic::sort(&mut loaded.diagnostics);
    if loaded.has_errors() {
        loaded.jobs.clear();
    }
    loaded
}

/// Findings that are told in all by one thread; the files that follow are counted as faulty with one finding each.
const FINDINGS: usize = 10_000;

/// Holds the findings of one file, which start at `from`, to what is told of one.
fn cap(path: &str, findings: &mut Vec<Diagnostic>, from: usize) {
    let most = if from < FINDINGS { FINDINGS_PER_FILE } else { 1 };
    let more = (findings.len() - from).saturating_sub(most);
    // Errors stay before warnings: without its errors, a file would seem to be good.
    if more > 0 {
        findings[from..].sort_by_key(|finding| !finding.is_error());
        findings.truncate(from + most);
        let message = format!("the file has more than {most} findings");
        findings.push(Diagnostic::of_file(path, "too-many-findings", message, "fix the first ones and look again"));
    }
}

/// Reads the catalogue file and the defaults files, from the root down, into `folders`.
fn load_defaults<'a>(
    others: &[&'a File],
    display: &impl Fn(&str) -> String,
    folders: &mut BTreeMap<String, Defaults<'a>>,
    loaded: &mut Loaded,
) {
    let mut others: Vec<_> = others.to_vec();
    // The catalogue file first, then defaults files from the root down: a folder's path is a prefix of those below it.
    others.sort_by_key(|file| (file.path != CATALOG_FILE, folder_of(&file.path).len()));
    for file in others {
        let path = display(&file.path);
        let told = loaded.diagnostics.len();
        let Some((document, text)) = document::parse(&path, &file.bytes, &mut loaded.diagnostics) else { continue };
        let is_catalog = file.path == CATALOG_FILE;
        // The folder of the catalogue file lies above the root's own defaults file.
        let folder = if is_catalog { CATALOG_ROOT.to_owned() } else { folder_of(&file.path).to_owned() };
        let parent = (!is_catalog).then(|| nearest_above(&folder, folders)).flatten();
        let above = parent.as_ref().and_then(|parent| folders.get(parent)).map(|defaults| &defaults.merged);
        let mut walk = Walk::new(&path, text, &mut loaded.diagnostics);
        let start = start_of(&document);
        let (pointer, merged) = if is_catalog {
            let value = walk.lower(&document.root, &CATALOG, None, start, "").unwrap_or_default();
            loaded.catalog = value.get("catalog").and_then(|name| CatalogName::deserialize(name).ok());
            ("/defaults", value.get("defaults").cloned().unwrap_or_else(|| Json::Object(Map::new())))
        } else {
            refuse_name(&document, &mut walk);
            ("", walk.lower(&without_name(&document.root), &DEFAULTS, above, start, "").unwrap_or_default())
        };
        cap(&path, &mut loaded.diagnostics, told);
        folders.insert(folder, Defaults { file, text, document, pointer, merged, parent });
    }
}

/// Stands for the catalogue file among folders; no folder has this name.
const CATALOG_ROOT: &str = "/";

fn folder_of(path: &str) -> &str {
    path.rsplit_once('/').map_or("", |(folder, _)| folder)
}

/// The key in `folders` of the nearest defaults strictly above `folder`.
fn nearest_above(folder: &str, folders: &BTreeMap<String, Defaults<'_>>) -> Option<String> {
    let mut folder = folder;
    while !folder.is_empty() {
        folder = folder_of(folder);
        if folders.contains_key(folder) {
            return Some(folder.to_owned());
        }
    }
    folders.contains_key(CATALOG_ROOT).then(|| CATALOG_ROOT.to_owned())
}

/// What a job at `path` inherits from, nearest first.
fn inherited_by<'m, 'a>(path: &str, folders: &'m BTreeMap<String, Defaults<'a>>) -> Option<Chain<'m, 'a>> {
    let folder = folder_of(path);
    let first = match folders.get(folder) {
        Some(defaults) => defaults,
        None => folders.get(&nearest_above(folder, folders)?)?,
    };
    Some(Chain { first, folders })
}

struct Chain<'m, 'a> {
    first: &'m Defaults<'a>,
    folders: &'m BTreeMap<String, Defaults<'a>>,
}

impl<'m, 'a> Chain<'m, 'a> {
    fn iter(&self) -> impl Iterator<Item = &'m Defaults<'a>> + use<'m, 'a> {
        let folders = self.folders;
        std::iter::successors(Some(self.first), move |defaults| folders.get(defaults.parent.as_ref()?))
    }
}

fn refuse_name(document: &Document, walk: &mut Walk<'_>) {
    if let Some(span) = document.key("/name") {
        let hint = "each job has a name of its own: write it in the job's file";
        let finding = Diagnostic::of_file(walk.path, "defaults-name", format!("{DEFAULTS_FILE} cannot set `name`"), hint);
        walk.findings.push(finding.at(walk.text, span.line, span.column, span.start as usize, span.end as usize));
    }
}

fn without_name(root: &Node) -> Node {
    let mut root = root.clone();
    if let Value::Map(entries) = &mut root.value {
        entries.retain(|entry| entry.key != "name");
    }
    root
}

/// Where to point for what is missing from a whole file: its first key.
fn start_of(document: &Document) -> Span {
    match &document.root.value {
        Value::Map(entries) => entries.first().map_or(document.root.span, |entry| entry.key_span),
        _ => document.root.span,
    }
}

/// Loads one job; `None` where nothing can be made of it. The line is that of its name.
fn load_job(
    path: &str,
    bytes: &[u8],
    chain: Option<&Chain<'_, '_>>,
    display: &impl Fn(&str) -> String,
    patterns: &mut Patterns,
    findings: &mut Vec<Diagnostic>,
) -> Option<(JobDefinition, u32)> {
    let (document, text) = document::parse(path, bytes, findings)?;
    let before = findings.len();
    let inherited = chain.map(|chain| &chain.first.merged);
    let start = start_of(&document);
    let mut walk = Walk::new(path, text, findings);
    let (value, is_named) = walk.lower_job(&document.root, inherited, start)?;
    let definition: JobDefinition = match serde_json::from_value(value) {
        Ok(definition) => definition,
        Err(error) => {
            // The walk has let something pass that the types do not take, or an inherited value is the cause.
            if findings.len() == before {
                let finding = Diagnostic::of_file(path, "definition", format!("not a job definition: {error}"), "");
                findings.push(at(finding, text, start));
            }
            return None;
        }
    };
    let job = Located { path, text, document: &document, chain };
    for finding in check_with(&definition, patterns) {
        // Without the parts that have findings of their own, there may seem to be nothing to run.
        let cut =
            finding.code == "nothing-to-run" && (document.key("/image_name").is_some() || document.key("/command").is_some());
        if !(cut && findings.len() > before) {
            findings.push(job.diagnostic(&definition, finding, display));
        }
    }
    let line = document.value("/name").unwrap_or(start).line;
    is_named.then_some((definition, line))
}

impl Walk<'_> {
    /// A job from its file's root. One whose name cannot be taken goes on under a stand-in, so that its other findings are told too;
    /// whether it has a name of its own comes with it.
    fn lower_job(&mut self, root: &Node, inherited: Option<&Json>, start: Span) -> Option<(Json, bool)> {
        let Value::Map(entries) = &root.value else {
            return self.lower(root, &JOB, inherited, start, "the file").map(|value| (value, true));
        };
        if let Some(value) = self.lower(root, &JOB, inherited, start, "") {
            return Some((value, true));
        }
        let mut entries: Vec<_> = entries.iter().filter(|entry| entry.key != "name").cloned().collect();
        let stand_in = Node { value: Value::Text("unnamed".into()), span: start };
        entries.push(document::Entry { key: "name".into(), key_span: start, node: stand_in });
        let mut told = Vec::new();
        let mut again = Walk::new(self.path, self.text, &mut told);
        let value = again.lower(&Node { value: Value::Map(entries), span: root.span }, &JOB, inherited, start, "")?;
        Some((value, false))
    }
}

fn at(finding: Diagnostic, text: &str, span: Span) -> Diagnostic {
    finding.at(text, span.line, span.column, span.start as usize, span.end as usize)
}

/// A job's file and the files it inherits from, to find the place of a value in.
struct Located<'a> {
    path: &'a str,
    text: &'a str,
    document: &'a Document,
    chain: Option<&'a Chain<'a, 'a>>,
}

impl Located<'_> {
    /// A finding about a definition, at the line that gave the value: in the job's own file or in one that it inherits from.
    fn diagnostic(&self, definition: &JobDefinition, finding: Finding, display: &impl Fn(&str) -> String) -> Diagnostic {
        let Finding { severity, code, pointer, message, hint } = finding;
        let own = (self.path.to_owned(), self.text, self.document, "");
        let inherited = self.chain.iter().flat_map(|chain| chain.iter());
        let inherited =
            inherited.map(|defaults| (display(&defaults.file.path), defaults.text, &defaults.document, defaults.pointer));
        let mut places = std::iter::once(own).chain(inherited);
        let found = places.find_map(|(path, text, document, prefix)| {
            let (key, node) = document.find(&format!("{prefix}{pointer}"))?;
            let block = matches!(node.value, Value::Map(_) | Value::List(_) | Value::Null);
            Some((path, text, document, prefix, if block { key.unwrap_or(node.span) } else { node.span }))
        });
        let (path, text, document, prefix, span) =
            found.unwrap_or_else(|| (self.path.to_owned(), self.text, self.document, "", self.nearest(&pointer)));
        let mut diagnostic = at(Diagnostic::of_file(path, code, message, hint), text, span);
        diagnostic.severity = severity;
        diagnostic.label = label(definition, code, &pointer, |pointer| document.value(&format!("{prefix}{pointer}")));
        diagnostic
    }

    /// The place of the nearest thing around a pointer that stands in the file.
    fn nearest(&self, pointer: &str) -> Span {
        let mut pointer = pointer;
        while let Some((above, _)) = pointer.rsplit_once('/') {
            if let Some((key, node)) = self.document.find(above)
                && !above.is_empty()
            {
                return key.unwrap_or(node.span);
            }
            pointer = above;
        }
        start_of(self.document)
    }
}

/// What stands beside the marked value: the rule that it breaks, and where that is written.
fn label(job: &JobDefinition, code: &str, pointer: &str, place: impl Fn(&str) -> Option<Span>) -> String {
    let mut parts = pointer.split('/').skip(1);
    let (Some("env_vars"), Some(list), Some(index)) = (parts.next(), parts.next(), parts.next()) else { return String::new() };
    let Ok(index) = index.parse::<usize>() else { return String::new() };
    let line = |pointer: String| place(&pointer).map(|span| format!(" (line {})", span.line)).unwrap_or_default();
    match (code, list) {
        ("default-type" | "enum-type" | "default-value", "args") => {
            let Some(argument) = job.env_vars.args.get(index) else { return String::new() };
            let kind = argument.kind.as_str();
            let article = if kind.starts_with('i') { "an" } else { "a" };
            format!("`{}` is {article} {kind}{}", argument.name, line(format!("/env_vars/args/{index}/type")))
        }
        ("required-default", "args") => format!("required{}", line(format!("/env_vars/args/{index}/required"))),
        ("duplicate-variable", _) => {
            let args = job.env_vars.args.iter().map(|argument| ("args", &argument.name)).enumerate();
            let secrets = job.env_vars.secrets.iter().map(|secret| ("secrets", &secret.name)).enumerate();
            let name = match list {
                "args" => job.env_vars.args.get(index).map(|argument| &argument.name),
                _ => job.env_vars.secrets.get(index).map(|secret| &secret.name),
            };
            let first = args.chain(secrets).find(|(_, (_, other))| Some(*other) == name);
            first.map(|(index, (list, _))| format!("first{}", line(format!("/env_vars/{list}/{index}/name")))).unwrap_or_default()
        }
        _ => String::new(),
    }
}

/// Sorts jobs by name and takes out those whose name another file has already, with a finding for each.
fn without_duplicates<'a>(
    mut found: Vec<(LoadedJob, &'a File)>,
    display: &impl Fn(&str) -> String,
    diagnostics: &mut Vec<Diagnostic>,
) -> Vec<(LoadedJob, &'a File)> {
    found.sort_by_cached_key(|(job, file)| (job.name().folded(), file.path.clone()));
    let mut kept: Vec<(LoadedJob, &File)> = Vec::with_capacity(found.len());
    for (job, file) in found {
        match kept.last() {
            Some((first, first_file)) if first.name().folded() == job.name().folded() => {
                let path = display(&file.path);
                let message =
                    format!("another file has the job `{}`: {}:{}", first.name(), display(&first_file.path), first.line);
                let hint = "names are compared without regard to case: give one of them another name";
                let finding = Diagnostic::of_file(&path, "duplicate-name", message, hint);
                let span = Document::index(&path, &file.bytes).and_then(|document| document.value("/name"));
                let text = std::str::from_utf8(&file.bytes).unwrap_or_default();
                diagnostics.push(span.map_or(finding.clone(), |span| at(finding, text, span)));
            }
            _ => kept.push((job, file)),
        }
    }
    kept
}

#[cfg(test)]
mod tests {
    use super::*;
    use octavius_core::check::Severity;

    #[test]
    fn a_warning_does_not_stop_a_job() {
        let loaded = load_file("a.yaml", b"name: a\ncommand: [true_]\nschedule: {cron: '* * * * *'}\n", &Limits::default());
        assert_eq!(
            loaded.diagnostics.iter().map(|d| (d.code, d.severity)).collect::<Vec<_>>(),
            [("not-yet-enforced", Severity::Warning)]
        );
        assert_eq!(loaded.jobs.len(), 1);
    }
}
