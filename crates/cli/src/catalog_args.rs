//! Which catalogue a command is about, where it reads none of its jobs.

use std::path::{Path, PathBuf};

use clap::Args;
use octavius_catalog::source::CATALOG_FILE;
use octavius_catalog::{Files, Limits, ReadError, load, read_file};
use octavius_core::CatalogName;

use crate::env;
use crate::error::{Failure, Outcome};
use crate::remote_catalog::unreadable;

/// A catalogue, by its folder or its name.
#[derive(Debug, Clone, Args)]
pub struct CatalogArgs {
    /// Folder of the catalogue, for its name
    #[arg(value_name = "PATH", default_value = "catalog")]
    path: PathBuf,
    /// Name of the catalogue, where there is no folder
    #[arg(long, value_name = "NAME", env = env::CATALOG_NAME)]
    catalog_name: Option<CatalogName>,
}

impl CatalogArgs {
    /// The name.
    ///
    /// # Errors
    /// Where it is not given, and the folder does not say it.
    pub fn get(&self) -> Outcome<CatalogName> {
        if let Some(name) = &self.catalog_name {
            return Ok(name.clone());
        }
        let unnamed = || Failure::usage(format!("{} has no {CATALOG_FILE} that names the catalogue", self.path.display()));
        name_in(&self.path)?.ok_or_else(|| unnamed().hint("name its folder, or it: --catalog-name NAME"))
    }
}

/// The name that a folder's octavius.yaml gives; none where there is no such file, or it says none.
///
/// # Errors
/// Where the file cannot be read.
pub fn name_in(dir: &Path) -> Outcome<Option<CatalogName>> {
    let limits = Limits::default();
    match read_file(&dir.join(CATALOG_FILE), &limits) {
        Ok(bytes) => Ok(load(&Files::new([(CATALOG_FILE.to_owned(), bytes)], &limits)).catalog),
        Err(ReadError::Missing(_)) => Ok(None),
        Err(error) => Err(unreadable(error)),
    }
}
