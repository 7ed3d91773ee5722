//! Which executors could run the jobs of a catalogue: the one check that needs to know who is registered.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::sync::Arc;

use octavius_core::check::Severity;
use octavius_core::label::{Labels, matches, pool};
use octavius_core::nearest::nearest;

use crate::defaults::WITHIN_CATALOG_FILE;
use crate::diagnostic::{self, Diagnostic};
use crate::document::{Document, Span, escaped};
use crate::load::{Loaded, LoadedJob, at, cap};
use crate::source::{CATALOG_FILE, DEFAULTS_FILE, File, Files, joined};

/// Where a catalogue's files are: what a finding needs that is made after loading.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub(crate) struct Places {
    display_prefix: String,
    file_prefix: String,
    /// The bytes of the files that jobs inherit from, by path.
    defaults: BTreeMap<String, Arc<[u8]>>,
}

impl Places {
    pub(crate) fn of(files: &Files, defaults: &[&File]) -> Self {
        Self {
            display_prefix: files.display_prefix.clone(),
            file_prefix: files.file_prefix.clone(),
            defaults: defaults.iter().map(|file| (file.path.clone(), Arc::clone(&file.bytes))).collect(),
        }
    }

    /// A file's path from the catalogue's root, where jobs remember it as `file`.
    fn within<'f>(&self, file: &'f str) -> &'f str {
        let rest = file.strip_prefix(&*self.file_prefix).unwrap_or(file);
        if self.file_prefix.is_empty() { rest } else { rest.strip_prefix('/').unwrap_or(file) }
    }
}

/// Warnings about jobs whose `executor` asks for labels that none of `executors` has, sorted by path and position; a selector
/// that several jobs inherit is told once, where it is written, for the first of them. Where `executors` is empty, every job that
/// asks for labels is told of.
#[must_use]
pub fn selectors(loaded: &Loaded, executors: &[Labels]) -> Vec<Diagnostic> {
    let mut known: HashMap<&Labels, Option<Unmet>> = HashMap::new();
    let mut written = Written { places: &loaded.places, documents: HashMap::new() };
    let mut told = HashSet::new();
    let mut by_path: BTreeMap<String, Vec<Diagnostic>> = BTreeMap::new();
    for job in &loaded.jobs {
        let selector = &job.definition.executor;
        let Some(unmet) = known.entry(selector).or_insert_with(|| Unmet::of(selector, executors)) else { continue };
        let pointer = format!("/executor/{}", escaped(&unmet.key));
        let (path, place) = written.place(job, &pointer);
        if told.insert((path.clone(), pointer)) {
            let shown = joined(&loaded.places.display_prefix, &path);
            let finding = Diagnostic::of_file(&*shown, "no-executor", &*unmet.message, &*unmet.hint);
            let finding = match place {
                Some((span, text)) => {
                    let mut finding = at(finding, text, span);
                    diagnostic::mask(std::slice::from_mut(&mut finding), [(shown.clone(), text.as_bytes())]);
                    finding
                }
                None => finding,
            };
            by_path.entry(shown).or_default().push(finding);
        }
    }
    let mut findings = Vec::new();
    for (path, mut told) in by_path {
        let before = findings.len();
        diagnostic::sort(&mut told);
        findings.append(&mut told);
        cap(&path, &mut findings, before);
    }
    for finding in &mut findings {
        finding.severity = Severity::Warning;
    }
    findings
}

/// Where labels are written. A file that jobs inherit from is parsed once for all of them.
struct Written<'l> {
    places: &'l Places,
    documents: HashMap<&'l str, Option<(Document, &'l str)>>,
}

impl<'l> Written<'l> {
    /// The file that gives a job the value at `pointer`, from the catalogue's root, with the place there and the file's text.
    fn place(&mut self, job: &'l LoadedJob, pointer: &str) -> (String, Option<(Span, &'l str)>) {
        let own = self.places.within(&job.file);
        // Most jobs that inherit a label say so, and are not parsed for it.
        if job.inherited.iter().all(|said| said.field != pointer)
            && let Some((document, text)) = job.source.as_deref().and_then(|source| index(own, source))
            && let Some(span) = document.value(pointer)
        {
            return (own.to_owned(), Some((span, text)));
        }
        let mut above = own;
        while let Some((folder, _)) = above.rsplit_once('/') {
            if let Some(found) = self.inherited(&joined(folder, DEFAULTS_FILE), pointer) {
                return found;
            }
            above = folder;
        }
        let within_catalog_file = format!("{WITHIN_CATALOG_FILE}{pointer}");
        let root = self.inherited(DEFAULTS_FILE, pointer).or_else(|| self.inherited(CATALOG_FILE, &within_catalog_file));
        root.unwrap_or_else(|| (own.to_owned(), None))
    }

    fn inherited(&mut self, path: &str, pointer: &str) -> Option<(String, Option<(Span, &'l str)>)> {
        let (path, bytes) = self.places.defaults.get_key_value(path)?;
        let (document, text) = self.documents.entry(path).or_insert_with(|| index(path, bytes)).as_ref()?;
        Some((path.clone(), Some((document.value(pointer)?, *text))))
    }
}

fn index<'b>(path: &str, bytes: &'b [u8]) -> Option<(Document, &'b str)> {
    Document::index(path, bytes).zip(std::str::from_utf8(bytes).ok())
}

/// Why no executor fits a selector.
struct Unmet {
    /// The label that the nearest executor lacks.
    key: String,
    message: String,
    hint: String,
}

impl Unmet {
    fn of(selector: &Labels, executors: &[Labels]) -> Option<Self> {
        if selector.is_empty() || executors.iter().any(|labels| matches(selector, labels)) {
            return None;
        }
        let like =
            |key: &String, value: &str| nearest(value, executors.iter().filter_map(|labels| labels.get(key)).map(String::as_str));
        // The most labels met, then the most that are met but for a slip; of equals the first.
        let score = |labels: &Labels| {
            let met = selector.iter().filter(|(key, value)| labels.get(*key) == Some(value)).count();
            let slips = selector.iter().filter(|(key, value)| labels.get(*key).is_some_and(|l| like(key, value) == Some(l)));
            (met, slips.count())
        };
        let nearest_executor = executors.iter().rev().max_by_key(|labels| score(labels));
        let lacks = |(key, value): &(&String, &String)| nearest_executor.is_none_or(|labels| labels.get(*key) != Some(value));
        let (key, value) = selector.iter().find(lacks)?;
        let hint = match nearest_executor {
            None => "no executor is registered".to_owned(),
            Some(labels) => {
                let keys = executors.iter().flat_map(|labels| labels.keys()).map(String::as_str);
                let meant = match (like(key, value), nearest(key, keys)) {
                    (Some(value), _) => format!("did you mean `{key}: {value}`? "),
                    (None, Some(near)) if near != key => format!("did you mean `{near}`? "),
                    _ => String::new(),
                };
                let has = if labels.is_empty() { "no labels".to_owned() } else { pool(labels) };
                format!("{meant}the nearest executor has {has}")
            }
        };
        Some(Self { key: key.clone(), message: format!("no executor has {}", pool(selector)), hint })
    }
}
