//! `octavius schema`: the JSON Schemas of catalogue files, for editors.

use clap::{Args, ValueEnum};
use octavius_catalog::schema::{catalog_schema, job_schema};

use crate::Context;
use crate::error::{Failure, Outcome};
use crate::exit::Exit;

/// Flags of `octavius schema`.
#[derive(Debug, Args)]
pub struct SchemaArgs {
    /// Of which file
    #[arg(value_enum, default_value = "job")]
    of: SchemaOf,
}

/// What a schema describes.
#[derive(Debug, Clone, Copy, ValueEnum)]
pub enum SchemaOf {
    /// A job file
    Job,
    /// The catalogue file octavius.yaml
    Catalog,
}

/// Runs the command.
///
/// # Errors
/// Where standard output cannot be written.
pub fn run(context: &Context, args: &SchemaArgs) -> Outcome {
    let schema = match args.of {
        SchemaOf::Job => job_schema(),
        SchemaOf::Catalog => catalog_schema(),
    };
    let text = serde_json::to_string_pretty(&schema).map_err(|error| Failure::fault(error.to_string()))?;
    context.shell.line(&text)?;
    Ok(Exit::Done)
}
