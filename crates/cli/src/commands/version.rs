//! `octavius version`: of the client and, where it can be reached, of the controller.

use std::time::Duration;

use clap::Args;
use octavius_core::version::{self, Side};
use octavius_proto::v1;
use serde_json::json;

use crate::config::resolve;
use crate::error::Outcome;
use crate::exit::Exit;
use crate::output::Format;
use crate::sanitize::line;
use crate::session::Session;
use crate::{Context, env};

/// Flags of `octavius version`.
#[derive(Debug, Args)]
pub struct VersionArgs {
    /// Form of the output
    #[arg(short, long, value_parser = Format::among(&["text", "json", "yaml"]), default_value = "text", env = env::OUTPUT)]
    output: Format,
}

/// Longest wait for the controller: its version is a courtesy here.
const WAIT: Duration = Duration::from_secs(2);

async fn controller(context: &Context) -> Outcome<(String, String)> {
    let mut resolved = resolve(&context.connect)?;
    resolved.timeout = resolved.timeout.min(WAIT);
    let session = Session::connect(&context.shell, resolved).await?;
    let me = session.call(async |to| to.admin().who_am_i(v1::WhoAmIRequest {}).await).await?;
    Ok((me.version, session.address().to_string()))
}

/// Runs the command.
///
/// # Errors
/// Where standard output cannot be written; a controller that is away is told, not an error.
pub async fn run(context: &Context, args: &VersionArgs) -> Outcome {
    let client = env!("CARGO_PKG_VERSION");
    let controller = controller(context).await;
    let skew = controller.as_ref().ok().and_then(|(version, _)| {
        version::compare(Side { what: "this client", version: client }, Side { what: "the controller", version }).err()
    });
    if let Some(skew) = skew {
        context.shell.warn(&line(&skew.to_string()));
    }
    let reason = |failure: &crate::error::Failure| failure.error.as_ref().map(|error| format!("{error:#}")).unwrap_or_default();
    let value = || {
        json!({
            "client": client,
            "controller": controller.as_ref().ok().map(|(version, _)| version),
            "controller_error": controller.as_ref().err().map(reason),
        })
    };
    if !args.output.structured(&context.shell, value)? {
        context.shell.line(&format!("client      {client}"))?;
        match &controller {
            Ok((version, address)) => context.shell.line(&format!("controller  {} ({address})", line(version)))?,
            Err(failure) => context.shell.note(&format!("controller  not known: {}", reason(failure))),
        }
    }
    Ok(Exit::Done)
}
