//! `octavius unfreeze`: lets a catalogue be applied again that a rollback froze.

use clap::Args;
use octavius_core::CatalogName;
use octavius_proto::v1;
use serde_json::json;

use crate::catalog_args::CatalogArgs;
use crate::error::Outcome;
use crate::exit::Exit;
use crate::output::Format;
use crate::session::Session;
use crate::{Context, env};

/// Flags of `octavius unfreeze`.
#[derive(Debug, Args)]
pub struct UnfreezeArgs {
    #[command(flatten)]
    catalog: CatalogArgs,
    /// Form of the output
    #[arg(short, long, value_parser = Format::among(&["text", "json", "yaml"]), default_value = "text", env = env::OUTPUT)]
    output: Format,
}

/// Freezes a catalogue, or thaws it.
///
/// # Errors
/// Where the catalogue was never applied, the controller refuses, or cannot be reached.
pub async fn set_frozen(session: &Session, catalog: &CatalogName, frozen: bool) -> Outcome<()> {
    let request = v1::SetFrozenRequest { catalog: catalog.to_string(), frozen };
    session.call(async |to| to.catalog().set_frozen(request.clone()).await).await?;
    Ok(())
}

/// Runs the command.
///
/// # Errors
/// Where the catalogue was never applied, the controller refuses, or cannot be reached.
pub async fn run(context: &Context, args: &UnfreezeArgs) -> Outcome {
    let catalog = args.catalog.get()?;
    let session = Session::open(context).await?;
    set_frozen(&session, &catalog, false).await?;
    if !args.output.structured(&context.shell, || json!({ "catalog": catalog, "frozen": false }))? {
        context.shell.line(&format!("catalogue `{catalog}` is not frozen: applies go on"))?;
        context.shell.hint("`octavius diff` shows what the next apply changes");
    }
    Ok(Exit::Done)
}
