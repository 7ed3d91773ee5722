//! The catalogue in the working directory, where there is one.

use std::path::Path;

use octavius_catalog::diagnostic::render_count;
use octavius_catalog::git::{self, Provenance};
use octavius_catalog::source::CATALOG_FILE;
use octavius_catalog::{Limits, load, read_dir};

use super::finding::{Area, Finding};

const AREA: Area = Area::Catalog;

/// Whether it is valid, and what git says of it.
pub(super) fn check() -> Vec<Finding> {
    let root = [".", "catalog"].into_iter().map(Path::new).find(|folder| folder.join(CATALOG_FILE).exists());
    match root {
        Some(root) => vec![files(root), git(root)],
        None => vec![Finding::skipped(AREA, "files", format!("no {CATALOG_FILE} in ./ or ./catalog/"))],
    }
}

fn files(root: &Path) -> Finding {
    let remedy = format!("octavius validate {}", root.display());
    let files = match read_dir(root, &Limits::default()) {
        Ok(files) => files,
        Err(error) => return Finding::problem(AREA, "files", error.to_string(), remedy),
    };
    let loaded = load(&files);
    let told = render_count(&loaded.diagnostics, loaded.files);
    if loaded.has_errors() {
        Finding::problem(AREA, "files", told, remedy)
    } else if loaded.diagnostics.is_empty() {
        let name = loaded.catalog.map(|name| format!("{name}: ")).unwrap_or_default();
        Finding::ok(AREA, "files", format!("{name}{} jobs, valid", loaded.jobs.len()))
    } else {
        Finding::warning(AREA, "files", told, remedy)
    }
}

fn git(root: &Path) -> Finding {
    match git::provenance(root) {
        Ok(Some(Provenance { short, dirty: false, .. })) => Finding::ok(AREA, "git", format!("commit {short}")),
        // that is what working on it looks like
        Ok(Some(Provenance { short, dirty: true, .. })) => {
            Finding::ok(AREA, "git", format!("commit {short}, and changes in no commit"))
        }
        Ok(None) => {
            let told = "in no git repository: revisions will not say which commit they came from";
            Finding::warning(AREA, "git", told, "git init, and commit what is to be reviewed")
        }
        Err(error) => {
            let cause = std::error::Error::source(&error).map(|cause| format!(": {cause}")).unwrap_or_default();
            let remedy = "`git status` in that folder has to work for this user";
            Finding::problem(AREA, "git", format!("{error}{cause}"), remedy)
        }
    }
}
