//! `octavius doctor`: looks at everything that has to be right, and says of what is not what to do about it.

mod catalog;
mod client;
mod controllers;
mod finding;
mod hosts;
mod webhooks;

use std::path::PathBuf;

use clap::Args;

use crate::error::Outcome;
use crate::exit::Exit;
use crate::output::Format;
use crate::{Context, env};
use finding::{Area, Finding};

/// Flags of `octavius doctor`.
#[derive(Debug, Args)]
pub struct DoctorArgs {
    /// On a controller's machine: its configuration file, whose store, folders and addresses are looked at too
    #[arg(long, value_name = "FILE", env = env::CONTROLLER_CONFIG)]
    controller_config: Option<PathBuf>,
    /// On an executor's machine: its configuration file, whose runner, folder and controllers are looked at too
    #[arg(long, value_name = "FILE", env = env::EXECUTOR_CONFIG)]
    executor_config: Option<PathBuf>,
    /// Form of the output
    #[arg(short, long, value_parser = Format::among(&["text", "json", "yaml"]), default_value = "text", env = env::OUTPUT)]
    output: Format,
}

/// Runs the command.
///
/// # Errors
/// Where standard output cannot be written. What is wrong is told there, and ends with [`Exit::No`].
pub async fn run(context: &Context, args: &DoctorArgs) -> Outcome {
    let is_host = args.controller_config.is_some() || args.executor_config.is_some();
    let (mut findings, resolved) = client::check(context);
    match resolved {
        Some(resolved) => {
            let (found, answers) = controllers::check(&context.shell, &resolved).await;
            findings.extend(found);
            findings.extend(controllers::executors(&answers));
        }
        // a daemon's machine need not be a client's
        None if is_host && crate::config::locate(&context.connect).is_ok_and(|located| located.is_none()) => {
            findings = vec![Finding::skipped(Area::Client, "configuration", "no controller is configured for a client here")];
        }
        None => {}
    }
    findings.extend(catalog::check());
    if let Some(config) = &args.controller_config {
        findings.extend(hosts::controller(config).await);
    }
    if let Some(config) = &args.executor_config {
        findings.extend(hosts::executor(context, config).await);
    }
    if !args.output.structured(&context.shell, || finding::to_json(&findings))? {
        context.shell.print(&finding::to_text(&findings, &context.shell))?;
    }
    Ok(if finding::is_well(&findings) { Exit::Done } else { Exit::No })
}
