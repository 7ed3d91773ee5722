//! The catalogue from outside: files in, findings, jobs and plans out.

#![expect(clippy::unwrap_used, reason = "a test that cannot go on has failed")]

mod codes;
mod documents;
mod export;
mod fuzz;
mod git;
mod inheritance;
mod plan_file;
mod plans;
mod render;
mod repository;
mod sensitive;

use octavius_catalog::{Files, Limits, Loaded, load};

/// The files of a catalogue named `test`, unless they say otherwise.
fn files(files: &[(&str, &str)]) -> Files {
    let named = files.iter().any(|(path, _)| *path == "octavius.yaml");
    let root = (!named).then_some(("octavius.yaml", "catalog: test\n"));
    let files = files.iter().copied().chain(root).map(|(path, text)| (path.to_owned(), text.as_bytes().to_vec()));
    Files::new(files, &Limits::default())
}

/// Loads a catalogue named `test` of these files.
fn catalog(files: &[(&str, &str)]) -> Loaded {
    load(&self::files(files))
}

/// The findings of a catalogue as `path:line:column code`.
fn places(loaded: &Loaded) -> Vec<String> {
    loaded.diagnostics.iter().map(|found| format!("{}:{}:{} {}", found.path, found.line, found.column, found.code)).collect()
}
