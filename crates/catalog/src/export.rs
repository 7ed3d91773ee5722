//! Definitions as files: what `octavius export` writes loads again as the same definition.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use octavius_core::limit::JOB_FILE_BYTES;
use octavius_core::{CatalogName, JobDefinition};
use serde_yaml::with::singleton_map_recursive;

use crate::manifest::Entry;
use crate::source::{CATALOG_FILE, Files, is_job};

/// The line that tells editors which schema a job file has.
const SCHEMA_LINE: &str = "# yaml-language-server: $schema=";

/// Characters that YAML 1.1 takes for the end of a line and YAML 1.2 does not: whoever writes them as they are may be read otherwise.
const LINE_ENDS: [char; 3] = ['\u{85}', '\u{2028}', '\u{2029}'];

/// The definition as a YAML job file. `schema` is where editors find the schema, relative to the file or as a URL.
#[must_use]
pub fn to_yaml(definition: &JobDefinition, schema: Option<&str>) -> String {
    let mut text = schema.map(|schema| format!("{SCHEMA_LINE}{schema}\n")).unwrap_or_default().into_bytes();
    let mut serializer = serde_yaml::Serializer::new(&mut text);
    // Without this, serde_yaml writes the variants of an enum as tags, which job files do not have.
    #[expect(clippy::expect_used, reason = "strings, numbers and maps with string keys always have a YAML form")]
    singleton_map_recursive::serialize(definition, &mut serializer).expect("a definition has a YAML form");
    drop(serializer);
    let text = String::from_utf8_lossy(&text).into_owned();
    if !text.contains(LINE_ENDS) {
        return text;
    }
    // JSON is YAML too, and there they can be written so that nobody misreads them.
    schema.map(|schema| format!("{SCHEMA_LINE}{schema}\n")).unwrap_or_default() + &to_json(definition, true)
}

/// A whole catalogue as files, by path from its root: `octavius.yaml`, without defaults, and one file per job, under the path that
/// the job came from where such a file can be, without the folders that all jobs have in common; otherwise `NAME.yaml`. Loaded again
/// they give the same names and digests.
#[must_use]
pub fn files(catalog: &CatalogName, jobs: &[(Entry, Arc<JobDefinition>)]) -> BTreeMap<String, Vec<u8>> {
    let mut jobs: Vec<_> = jobs.iter().collect();
    jobs.sort_by_cached_key(|(entry, _)| entry.name.folded());
    let above = common_folder(jobs.iter().map(|(entry, _)| entry.file.as_str()));
    let mut taken = Taken::default();
    taken.take(CATALOG_FILE);
    let kept: Vec<Option<&str>> =
        jobs.iter().map(|(entry, _)| entry.file.strip_prefix(above).filter(|path| is_usable(path) && taken.take(path))).collect();
    let mut files = BTreeMap::from([(CATALOG_FILE.to_owned(), format!("catalog: {}\n", quoted(catalog)).into_bytes())]);
    for ((entry, definition), kept) in jobs.into_iter().zip(kept) {
        let path = kept.map_or_else(|| taken.named(entry.name.as_str()), str::to_owned);
        let bytes = if path.ends_with(".json") { to_json(definition, true) } else { to_yaml(definition, None) };
        // YAML indents every line of a text, so that a file near the limit can come out over it.
        let bytes = if bytes.len() > JOB_FILE_BYTES { to_json(definition, false) } else { bytes };
        files.insert(path, bytes.into_bytes());
    }
    files
}

/// A name as YAML reads it back as text: `007`, `true` and `1.10` are names too.
fn quoted(name: &CatalogName) -> String {
    format!("\"{name}\"")
}

/// The folders that all these files lie in, with a slash at the end; files that came from nowhere have no say.
fn common_folder<'f>(files: impl Iterator<Item = &'f str>) -> &'f str {
    let folder = |file: &'f str| file.rfind('/').map_or("", |end| &file[..=end]);
    let common = |one: &'f str, other: &'f str| {
        let same = one.bytes().zip(other.bytes()).take_while(|(a, b)| a == b).count();
        one.as_bytes()[..same].iter().rposition(|&byte| byte == b'/').map_or("", |end| &one[..=end])
    };
    files.filter(|file| !file.is_empty()).map(folder).reduce(common).unwrap_or_default()
}

/// Bytes that file systems take as one name.
const NAME_BYTES: usize = 255;

/// Whether the loader reads a job from a file of this path, and file systems take it.
fn is_usable(path: &str) -> bool {
    path.split('/').all(|part| part.len() <= NAME_BYTES) && is_job(path) && Files::default().wants(path)
}

/// Paths in use, without regard to case, since not every file system has it: the files, and the folders that they lie in.
#[derive(Default)]
struct Taken {
    files: BTreeSet<String>,
    folders: BTreeSet<String>,
}

impl Taken {
    /// Takes a path for a file, unless there is a file or a folder of that path, or a file where it needs a folder.
    fn take(&mut self, path: &str) -> bool {
        let path = path.to_lowercase();
        let folders: Vec<_> = path.match_indices('/').map(|(end, _)| path[..end].to_owned()).collect();
        if self.folders.contains(&path) || folders.iter().any(|folder| self.files.contains(folder)) {
            return false;
        }
        let is_free = self.files.insert(path);
        if is_free {
            self.folders.extend(folders);
        }
        is_free
    }

    /// Takes `NAME.yaml`, or `NAME-2.yaml` and so on where that is taken.
    fn named(&mut self, name: &str) -> String {
        let mut path = format!("{name}.yaml");
        let mut number = 1;
        while !self.take(&path) {
            number += 1;
            path = format!("{name}-{number}.yaml");
        }
        path
    }
}

fn to_json(definition: &JobDefinition, pretty: bool) -> String {
    let json = if pretty { serde_json::to_string_pretty(definition) } else { serde_json::to_string(definition) };
    #[expect(clippy::expect_used, reason = "strings, numbers and maps with string keys always have a JSON form")]
    let json = json.expect("a definition has a JSON form");
    // What YAML may take for the end of a line is written so that nobody misreads it.
    let escaped = |text: String, end: char| text.replace(end, &format!("\\u{:04x}", u32::from(end)));
    LINE_ENDS.into_iter().fold(json, escaped) + "\n"
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::load::load_file;

    #[test]
    fn a_strange_line_end_comes_back_as_it_was() {
        let mut definition: JobDefinition = serde_json::from_str(r#"{"name":"j","command":["true"]}"#).unwrap();
        for end in LINE_ENDS {
            definition.description = format!("{end}a{end}\n{end}");
            let yaml = to_yaml(&definition, Some("s.json"));
            let loaded = load_file("a.yaml", yaml.as_bytes(), &crate::Limits::default());
            assert_eq!(*loaded.jobs[0].definition, definition, "{yaml}");
        }
    }
}
