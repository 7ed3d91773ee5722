//! What jobs inherit: the `defaults` of `octavius.yaml` and each folder's `_defaults.yaml`, merged from the root down, and for
//! every value the file and line that say it.

use std::collections::BTreeMap;
use std::sync::Arc;

use octavius_core::CatalogName;
use serde::Deserialize as _;
use serde_json::{Map, Value as Json};

use crate::diagnostic::Diagnostic;
use crate::document::{self, Document, Node, Value};
use crate::load::{Loaded, at, cap, start_of};
use crate::manifest::Inherited;
use crate::shape::{CATALOG, DEFAULTS, Walk};
use crate::source::{CATALOG_FILE, DEFAULTS_FILE, File, Files};

/// A file that jobs inherit from.
pub(crate) struct Defaults<'a> {
    pub(crate) file: &'a File,
    pub(crate) text: &'a str,
    pub(crate) document: Document,
    /// Where in the document the inherited values are: empty, or [`WITHIN_CATALOG_FILE`].
    pub(crate) pointer: &'static str,
    /// The values of this file over those of the folders above.
    pub(crate) merged: Json,
    /// About how much memory the merged values take, in bytes.
    bytes: usize,
    /// Who says each of the merged values.
    origin: Origin,
    /// The folder above that has defaults too.
    parent: Option<String>,
}

/// Where `octavius.yaml` holds what jobs inherit.
pub(crate) const WITHIN_CATALOG_FILE: &str = "/defaults";

/// The files that jobs inherit from, by folder.
pub(crate) type Folders<'a> = BTreeMap<String, Defaults<'a>>;

/// Who says a merged value: of a map the nearest file that says any of it, and who says each of its parts.
#[derive(Clone)]
struct Origin {
    file: Arc<str>,
    line: u32,
    /// The parts of a map; shared with the folders above where these say all of it.
    parts: Option<Arc<BTreeMap<String, Origin>>>,
}

/// Values of one map that a job is told to inherit one by one; of more, the map is named, so that ten thousand jobs do not
/// remember the places of ten thousand annotations each.
const INHERITED_PER_MAP: usize = 8;

impl Origin {
    /// The origin of `merged`, which the file says where `own` has it and the files above otherwise.
    fn of(merged: &Json, own: Option<(u32, &Node)>, above: Option<&Self>, file: &Arc<str>) -> Option<Self> {
        let Some((line, node)) = own else { return above.cloned() };
        let parts = merged.as_object().map(|map| {
            let entries = by_key(Some(node));
            let above = |key: &str| above.and_then(|above| above.parts.as_ref()?.get(key));
            let origins = map.iter().filter_map(|(key, value)| {
                Some((key.clone(), Self::of(value, entries.get(key.as_str()).copied(), above(key), file)?))
            });
            Arc::new(origins.collect())
        });
        Some(Self { file: Arc::clone(file), line, parts })
    }

    /// Adds what a file inherits that has `own` at `pointer`.
    fn inherited(&self, own: Option<&Node>, pointer: &str, inherited: &mut Vec<Inherited>) {
        let place = || Inherited { field: pointer.to_owned(), file: self.file.to_string(), line: self.line };
        let Some(parts) = &self.parts else {
            if own.is_none() {
                inherited.push(place());
            }
            return;
        };
        let entries = by_key(own);
        let before = inherited.len();
        for (key, origin) in &**parts {
            let part = format!("{pointer}/{}", document::escaped(key));
            origin.inherited(entries.get(key.as_str()).map(|(_, node)| *node), &part, inherited);
            // A job as a whole is not inherited.
            if !pointer.is_empty() && inherited.len() - before > INHERITED_PER_MAP {
                inherited.truncate(before);
                inherited.push(place());
                return;
            }
        }
    }
}

/// About how much memory a value takes, in bytes: what is between two values counts too, since many files are made of short ones.
fn weight(value: &Json) -> usize {
    /// A value in its map, with the allocation of its key.
    const EACH: usize = 64;
    let parts = match value {
        Json::Object(map) => map.iter().map(|(key, value)| key.len() + weight(value)).sum(),
        Json::Array(items) => items.iter().map(weight).sum(),
        Json::String(text) => text.len(),
        Json::Null | Json::Bool(_) | Json::Number(_) => 0,
    };
    EACH + parts
}

/// A map's values by key, with the lines of the keys: looked up once for each, so that two long maps do not take the product of
/// their lengths.
pub(crate) fn by_key(node: Option<&Node>) -> BTreeMap<&str, (u32, &Node)> {
    match node.map(|node| &node.value) {
        Some(Value::Map(entries)) => entries.iter().map(|entry| (&*entry.key, (entry.key_span.line, &entry.node))).collect(),
        _ => BTreeMap::new(),
    }
}

/// Reads the catalogue file and the defaults files, from the root down, and says about how much memory, in bytes, their merged
/// values take. Once that is over the limit, no further file is read.
pub(crate) fn load<'a>(
    files: &Files,
    mut others: Vec<&'a File>,
    display: &impl Fn(&str) -> String,
    loaded: &mut Loaded,
) -> (Folders<'a>, usize) {
    let mut folders = Folders::new();
    let mut total = 0;
    // The catalogue file first, then defaults files from the root down: a folder's path is a prefix of those below it.
    others.sort_by_key(|file| (file.path != CATALOG_FILE, folder_of(&file.path).len()));
    for file in others {
        if total > files.limits.total_bytes {
            break;
        }
        let path = display(&file.path);
        let told = loaded.diagnostics.len();
        let Some((document, text)) = document::parse(&path, &file.bytes, &mut loaded.diagnostics) else { continue };
        let is_catalog = file.path == CATALOG_FILE;
        // The folder of the catalogue file lies above the root's own defaults file.
        let folder = if is_catalog { CATALOG_ROOT.to_owned() } else { folder_of(&file.path).to_owned() };
        let parent = (!is_catalog).then(|| nearest_above(&folder, &folders)).flatten();
        let above = parent.as_ref().and_then(|parent| folders.get(parent));
        let mut walk = Walk::new(&path, text, &mut loaded.diagnostics);
        let start = start_of(&document);
        let (pointer, merged) = if is_catalog {
            let value = walk.lower(&document.root, &CATALOG, None, start, "").unwrap_or_default();
            loaded.catalog = value.get("catalog").and_then(|name| CatalogName::deserialize(name).ok());
            (WITHIN_CATALOG_FILE, value.get("defaults").cloned().unwrap_or_else(|| Json::Object(Map::new())))
        } else {
            refuse_name(&document, &mut walk);
            let above = above.map(|defaults| &defaults.merged);
            ("", walk.lower(&without_name(&document.root), &DEFAULTS, above, start, "").unwrap_or_default())
        };
        cap(&path, &mut loaded.diagnostics, told);
        let own = document.find(pointer).map(|(key, node)| (key.unwrap_or(node.span).line, node));
        let said_in = Arc::from(files.remembered(&file.path));
        let origin = Origin::of(&merged, own, above.map(|defaults| &defaults.origin), &said_in);
        let origin = origin.unwrap_or_else(|| Origin { file: said_in, line: 0, parts: Some(Arc::default()) });
        let bytes = weight(&merged);
        total += bytes;
        folders.insert(folder, Defaults { file, text, document, pointer, merged, bytes, origin, parent });
    }
    (folders, total)
}

/// Stands for the catalogue file among folders; no folder has this name.
const CATALOG_ROOT: &str = "/";

fn folder_of(path: &str) -> &str {
    path.rsplit_once('/').map_or("", |(folder, _)| folder)
}

/// The key in `folders` of the nearest defaults strictly above `folder`.
fn nearest_above(folder: &str, folders: &Folders<'_>) -> Option<String> {
    let mut folder = folder;
    while !folder.is_empty() {
        folder = folder_of(folder);
        if folders.contains_key(folder) {
            return Some(folder.to_owned());
        }
    }
    folders.contains_key(CATALOG_ROOT).then(|| CATALOG_ROOT.to_owned())
}

/// The files that one job inherits from.
pub(crate) struct Chain<'m, 'a> {
    first: &'m Defaults<'a>,
    folders: &'m Folders<'a>,
}

impl<'m, 'a> Chain<'m, 'a> {
    /// What a job at `path` inherits from; `None` where that is nothing.
    pub(crate) fn of(path: &str, folders: &'m Folders<'a>) -> Option<Self> {
        let folder = folder_of(path);
        let first = match folders.get(folder) {
            Some(defaults) => defaults,
            None => folders.get(&nearest_above(folder, folders)?)?,
        };
        Some(Self { first, folders })
    }

    /// The files, nearest first.
    pub(crate) fn iter(&self) -> impl Iterator<Item = &'m Defaults<'a>> + use<'m, 'a> {
        let folders = self.folders;
        std::iter::successors(Some(self.first), move |defaults| folders.get(defaults.parent.as_ref()?))
    }

    /// The values of all of them.
    pub(crate) const fn merged(&self) -> &'m Json {
        &self.first.merged
    }

    /// About how much memory these values take, in bytes.
    pub(crate) const fn bytes(&self) -> usize {
        self.first.bytes
    }

    /// What of them a job gets that does not say it itself.
    pub(crate) fn inherited(&self, document: &Document) -> Vec<Inherited> {
        let mut inherited = Vec::new();
        self.first.origin.inherited(Some(&document.root), "", &mut inherited);
        inherited
    }
}

fn refuse_name(document: &Document, walk: &mut Walk<'_>) {
    if let Some(span) = document.key("/name") {
        let hint = "each job has a name of its own: write it in the job's file";
        let finding = Diagnostic::of_file(walk.path, "defaults-name", format!("{DEFAULTS_FILE} cannot set `name`"), hint);
        walk.findings.push(at(finding, walk.text, span));
    }
}

fn without_name(root: &Node) -> Node {
    let mut root = root.clone();
    if let Value::Map(entries) = &mut root.value {
        entries.retain(|entry| entry.key != "name");
    }
    root
}
