//! The catalogue: from files to jobs, and from two catalogues to what changed between them.
//!
//! ```text
//! read_dir ─► Files ─► load ─► Loaded { catalog, jobs, diagnostics } ─┐
//!          revision's manifest ─► Observed ───────────────────────────┴► plan ─► Plan ─► render / report / apply
//! ```
//!
//! Everything but [`source::read_dir`], [`source::read_file`] and [`git`] is a plain function over values.
//!
//! ```
//! use octavius_catalog::{Files, Limits, PlanOptions, load, plan, render};
//!
//! let files = Files::new(
//!     [
//!         ("octavius.yaml".to_owned(), b"catalog: support".to_vec()),
//!         ("greet.yaml".to_owned(), b"name: greet\ncommand: [echo, hello]\n".to_vec()),
//!     ],
//!     &Limits::default(),
//! );
//! let loaded = load(&files);
//! for diagnostic in &loaded.diagnostics {
//!     eprint!("{}", octavius_catalog::diagnostic::render_text(diagnostic, false));
//! }
//! let catalog = loaded.catalog.as_ref().ok_or("no name")?;
//! let plan = plan(catalog, 0, &loaded.jobs, &[], &PlanOptions::default())?;
//! print!("{}", render::render_text(&plan, &render::RenderOptions::default()));
//! # Ok::<(), Box<dyn std::error::Error>>(())
//! ```

mod defaults;
pub mod diagnostic;
pub mod diff;
pub mod document;
pub mod export;
pub mod git;
pub mod import;
pub mod load;
pub mod manifest;
pub mod plan;
pub mod plan_file;
pub mod render;
pub mod schema;
mod selectors;
mod shape;
pub mod source;

/// The catalogue of jobs that come from no folder: `octavius create` puts them there. A folder's catalogue cannot be called so.
pub const MANUAL: &str = "manual";

pub use diagnostic::{Diagnostic, Severity};
pub use diff::FieldChange;
pub use document::{Document, Span};
pub use load::{Loaded, LoadedJob, load, load_file};
pub use manifest::{Bucket, Manifest, Root};
pub use plan::{Action, Change, MaxDeletions, Observed, Plan, PlanError, PlanOptions, Revision, Summary, needed, plan};
pub use plan_file::{Made, PlanFile, PlanFileError, PlannedChange, PlannedFrom};
pub use selectors::selectors;
pub use source::{Files, Limits, ReadError, read_dir, read_file};
