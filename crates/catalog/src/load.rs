//! From files to jobs: the values of each file are checked against the schema, inherited values are filled in, and what a schema
//! cannot say is checked by `octavius_core::check`. Every finding of every file is reported at once.
//!
//! A job inherits from the `defaults` of `octavius.yaml`, then from the `_defaults.yaml` of each folder on its way, the nearer
//! one over the farther, its own file over all of them. Maps are merged key by key; lists and plain values are replaced.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use octavius_core::check::{Finding, Patterns, Severity, check_with, shortened};
use octavius_core::{CatalogName, Digest, JobDefinition, JobName};
use serde_json::Value as Json;

use crate::defaults::{self, Chain};
use crate::diagnostic::{self, Diagnostic, FINDINGS_PER_FILE};
use crate::document::{self, Document, Node, Span, Value};
use crate::manifest::Inherited;
use crate::selectors::Places;
use crate::shape::{JOB, Walk};
use crate::source::{self, CATALOG_FILE, File, Files, Limits, joined};

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
    /// The parts of the definition that `octavius.yaml` or a `_defaults.yaml` says, not the job's own file. Of a map that both
    /// have a part in, the inherited keys; a list comes from one file as a whole. A map of which more than 8 values are inherited
    /// is one part, at the nearest file that says any of it. The files are written as [`LoadedJob::file`] is.
    pub inherited: Vec<Inherited>,
}

impl LoadedJob {
    /// A job that was not read from a file just now, as one that an older revision holds. `file` and `line` say where it once
    /// came from: empty and 0 where it came from no file.
    #[must_use]
    pub fn of(definition: Arc<JobDefinition>, file: String, line: u32) -> Self {
        Self { digest: definition.digest(), definition, file, line, source: None, inherited: Vec::new() }
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
    /// Where the files are, for what is found out about their jobs later.
    pub(crate) places: Places,
}

impl Loaded {
    /// Whether any finding is an error: the catalogue cannot be applied.
    #[must_use]
    pub fn has_errors(&self) -> bool {
        self.diagnostics.iter().any(Diagnostic::is_error)
    }
}

/// Loads a catalogue: the value, and every finding.
#[must_use]
pub fn load(files: &Files) -> Loaded {
    let mut loaded = Loaded { diagnostics: files.findings.clone(), files: files.files.len(), ..Loaded::default() };
    let display = |path: &str| joined(&files.display_prefix, path);
    let (jobs, others): (Vec<&File>, Vec<&File>) = files.files.iter().partition(|file| source::is_job(&file.path));
    let is_told = |path: &str| files.findings.iter().any(|finding| finding.path == path);
    if others.iter().all(|file| file.path != CATALOG_FILE) && !is_told(&display(CATALOG_FILE)) {
        let message = format!("the catalogue has no {CATALOG_FILE} at its root");
        let hint = "write one that holds the line `catalog: NAME`";
        loaded.diagnostics.push(Diagnostic::of_file(display(CATALOG_FILE), "no-catalog-file", message, hint));
    }
    loaded.places = Places::of(files, &others);
    let (folders, bytes) = defaults::load(files, others, &display, &mut loaded);
    // A short file may inherit much: once all are over the limit together, no further job is looked at.
    let total = AtomicUsize::new(bytes);
    let is_over = || total.load(Ordering::Relaxed) > files.limits.total_bytes;
    let fits = |read: &Read| total.fetch_add(read.bytes, Ordering::Relaxed) + read.bytes <= files.limits.total_bytes;
    let parts = source::in_parallel(&jobs, |jobs| {
        let mut found = Vec::with_capacity(jobs.len());
        let mut findings = Vec::new();
        let mut patterns = Patterns::default();
        for &file in jobs {
            if is_over() {
                break;
            }
            let chain = Chain::of(&file.path, &folders);
            let before = findings.len();
            let path = display(&file.path);
            let limit = files.limits.file_bytes;
            let job = load_job(&path, &file.bytes, limit, chain.as_ref(), &display, &mut patterns, &mut findings);
            cap(&path, &mut findings, before);
            if job.is_none() {
                // What is inherited was worked on for a faulty job too.
                total.fetch_add(chain.as_ref().map_or(0, Chain::bytes), Ordering::Relaxed);
            }
            found
                .extend(job.filter(fits).map(|read| (read.of_file(files.remembered(&file.path), Arc::clone(&file.bytes)), file)));
        }
        (found, findings)
    });
    if total.into_inner() > files.limits.total_bytes {
        let message = format!("the jobs and what they inherit exceed {} in all", source::size(files.limits.total_bytes));
        let hint = "share less, split the catalogue, or raise the limit";
        loaded.diagnostics.push(Diagnostic::of_file(display(CATALOG_FILE), "catalog-size", message, hint));
    }
    let mut found = Vec::with_capacity(jobs.len());
    for (jobs, findings) in parts {
        found.extend(jobs);
        loaded.diagnostics.extend(findings);
    }
    let found = without_duplicates(found, &display, &mut loaded.diagnostics);
    diagnostic::mask(&mut loaded.diagnostics, files.files.iter().map(|file| (display(&file.path), &*file.bytes)));
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
    let read = load_job(path, bytes, limits.file_bytes, None, &str::to_owned, &mut Patterns::default(), &mut loaded.diagnostics);
    loaded.jobs.extend(read.map(|read| read.of_file(path.to_owned(), Arc::from(bytes))));
    cap(path, &mut loaded.diagnostics, 0);
    diagnostic::mask(&mut loaded.diagnostics, [(path.to_owned(), bytes)]);
    diagnostic::sort(&mut loaded.diagnostics);
    if loaded.has_errors() {
        loaded.jobs.clear();
    }
    loaded
}

/// Findings that are told in all by one thread; the files that follow are counted as faulty with one finding each.
const FINDINGS: usize = 10_000;

/// Holds the findings of one file, which start at `from`, to what is told of one.
pub(crate) fn cap(path: &str, findings: &mut Vec<Diagnostic>, from: usize) {
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

/// Where to point for what is missing from a whole file: its first key.
pub(crate) fn start_of(document: &Document) -> Span {
    match &document.root.value {
        Value::Map(entries) => entries.first().map_or(document.root.span, |entry| entry.key_span),
        _ => document.root.span,
    }
}

/// What a job's file and the files that it inherits from say.
struct Read {
    definition: JobDefinition,
    digest: Digest,
    /// Bytes of its canonical JSON.
    bytes: usize,
    line: u32,
    inherited: Vec<Inherited>,
}

impl Read {
    fn of_file(self, file: String, source: Arc<[u8]>) -> LoadedJob {
        let Self { definition, digest, bytes: _, line, inherited } = self;
        LoadedJob { definition: Arc::new(definition), digest, file, line, source: Some(source), inherited }
    }
}

/// Loads one job; `None` where nothing can be made of it.
fn load_job(
    path: &str,
    bytes: &[u8],
    limit: usize,
    chain: Option<&Chain<'_, '_>>,
    display: &impl Fn(&str) -> String,
    patterns: &mut Patterns,
    findings: &mut Vec<Diagnostic>,
) -> Option<Read> {
    let (document, text) = document::parse(path, bytes, findings)?;
    let before = findings.len();
    let inherited = chain.map(Chain::merged);
    let start = start_of(&document);
    let mut walk = Walk::new(path, text, findings);
    let (value, is_named) = walk.lower_job(&document.root, inherited, start)?;
    let definition = match definition_of(path, value) {
        Ok(definition) => definition,
        Err(finding) => {
            // Where the parts with findings are left out, the rest may well be no definition.
            if findings.len() == before {
                findings.push(at(*finding, text, start));
            }
            return None;
        }
    };
    let job = Located { path, text, document: &document, chain };
    let mut told = check_with(&definition, patterns);
    // One more than is told of a file: to place each of many thousands takes long.
    told.sort_by_key(|finding| finding.severity != Severity::Error);
    told.truncate(FINDINGS_PER_FILE + 1);
    for finding in told {
        // Without the parts that have findings of their own, there may seem to be nothing to run.
        let cut =
            finding.code == "nothing-to-run" && (document.key("/image_name").is_some() || document.key("/command").is_some());
        if !(cut && findings.len() > before) {
            findings.push(job.diagnostic(&definition, finding, display));
        }
    }
    let line = document.value("/name").unwrap_or(start).line;
    let canonical = definition.to_canonical_json();
    if canonical.len() > limit {
        let message = format!("with what it inherits the job has more than {} as JSON", source::size(limit));
        findings.push(Diagnostic::of_file(path, "file-size", message, source::TOO_LARGE_HINT));
        return None;
    }
    let inherited = chain.map(|chain| chain.inherited(&document)).unwrap_or_default();
    is_named.then_some(Read { definition, digest: Digest::of(&canonical), bytes: canonical.len(), line, inherited })
}

/// The definition that a file's values make. The walk lets nothing pass that the types do not take: a finding is a fault of ours.
fn definition_of(path: &str, value: Json) -> Result<JobDefinition, Box<Diagnostic>> {
    let hint = "the check of the file missed this: please report it, with the file";
    serde_json::from_value(value)
        .map_err(|error| Diagnostic::of_file(path, "definition", format!("not a job definition: {error}"), hint).into())
}

impl Walk<'_> {
    /// A job from its file's root. One whose name cannot be taken goes on under a stand-in, so that its other findings are told
    /// too; whether it has a name of its own comes with it.
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

pub(crate) fn at(finding: Diagnostic, text: &str, span: Span) -> Diagnostic {
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
        let place = |pointer: &str| document.value(&format!("{prefix}{pointer}"));
        diagnostic.label = shortened(label(definition, code, &pointer, place));
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

    #[test]
    fn what_the_types_do_not_take_is_a_finding() {
        let finding = definition_of("a.yaml", serde_json::json!({ "name": "a", "retries": "many" })).unwrap_err();
        assert_eq!((finding.code, finding.path.as_str(), finding.is_error()), ("definition", "a.yaml", true));
        assert!(finding.message.starts_with("not a job definition: ") && finding.message.contains("many"), "{finding:?}");
        assert!(definition_of("a.yaml", serde_json::json!({ "name": "a", "retries": 1 })).is_ok());
    }

    #[test]
    fn a_warning_does_not_stop_a_job() {
        let loaded = load_file("a.yaml", b"name: a\nimage_name: busybox\n", &Limits::default());
        assert_eq!(
            loaded.diagnostics.iter().map(|d| (d.code, d.severity)).collect::<Vec<_>>(),
            [("mutable-tag", Severity::Warning)]
        );
        assert_eq!(loaded.jobs.len(), 1);
    }
}
