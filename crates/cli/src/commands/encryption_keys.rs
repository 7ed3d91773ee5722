//! `octavius controller new-key` makes a key for sensitive arguments; `octavius controller keys` says which keys a store needs.

use std::path::{Path, PathBuf};

use clap::Args;
use octavius_controller::{EncryptionKey, UsedKey, used_keys};
use serde_json::json;

use crate::encryption_options::{EncryptionArgs, KeyFile, write_new};
use crate::error::{Failure, Outcome};
use crate::exit::Exit;
use crate::output::Format;
use crate::store_options::{self, StoreArgs};
use crate::{Context, env, table};

/// Flags of `octavius controller new-key`.
#[derive(Debug, Args)]
pub struct NewKeyArgs {
    /// The file to make, or - for standard output; one that is there is never overwritten
    #[arg(value_name = "FILE")]
    file: PathBuf,
}

/// Flags of `octavius controller keys`.
#[derive(Debug, Args)]
pub struct KeysArgs {
    #[command(flatten)]
    store: StoreArgs,
    #[command(flatten)]
    encryption: EncryptionArgs,
    /// Form of the output
    #[arg(short, long, value_parser = Format::among(&["table", "json", "yaml"]), default_value = "table", env = env::OUTPUT, help_heading = "Options")]
    output: Format,
}

/// Makes a key.
///
/// # Errors
/// Where the file is there, or cannot be written.
pub fn new_key(context: &Context, args: &NewKeyArgs) -> Outcome {
    let text = EncryptionKey::generate();
    let key = EncryptionKey::parse(&text).map_err(|error| Failure::fault(error.to_string()))?;
    if args.file == Path::new("-") {
        context.shell.line(&text)?;
        context.shell.note(&format!("this is key {}", key.id()));
    } else {
        write_new(&args.file, &text)?;
        context.shell.line(&key.id().to_string())?;
        context
            .shell
            .hint("start every controller of the store with it: --encryption-key-file FILE, before those with older keys");
    }
    context.shell.note("keep a copy in a safe place, not beside backups: without it, nobody reads what it encrypts");
    Ok(Exit::Done)
}

/// Says which keys a store needs, and which of them there are.
///
/// # Errors
/// Where the store, or a key's file, cannot be read.
pub async fn keys(context: &Context, args: &KeysArgs) -> Outcome {
    let settings = args.store.settings()?;
    let choice = args.store.choice(&settings)?;
    let files = args.encryption.choice(&settings, &choice)?.read()?;
    let store = store_options::open(choice).await?;
    let used = used_keys(&*store).await.map_err(|error| Failure::new(Exit::Unreachable, error))?;
    let rows = rows(&files, &used);
    let value = || {
        let keys: Vec<_> = rows
            .iter()
            .map(|row| json!({"key": row.key, "use": row.purpose, "executions": row.executions, "file": row.file}))
            .collect();
        json!({ "keys": keys })
    };
    if !args.output.structured(&context.shell, value)? {
        let cells = rows.iter().map(|row| {
            vec![row.key.clone(), row.purpose.to_owned(), row.executions.to_string(), row.file.clone().unwrap_or_default()]
        });
        context.shell.print(&table::render(&["KEY", "USE", "EXECUTIONS", "FILE"], cells, context.shell.width))?;
    }
    for row in rows.iter().filter(|row| row.purpose == MISSING) {
        context.shell.warn(&format!("the file of key {} is not named: {} executions need it", row.key, row.executions));
    }
    Ok(Exit::Done)
}

/// A key that is needed and not there.
const MISSING: &str = "missing";

struct Row {
    key: String,
    purpose: &'static str,
    executions: u64,
    file: Option<String>,
}

fn rows(files: &[KeyFile], used: &[UsedKey]) -> Vec<Row> {
    let executions = |id| used.iter().find(|used| used.id == id).map_or(0, |used| used.executions);
    let named = files.iter().enumerate().map(|(place, file)| Row {
        key: file.key.id().to_string(),
        purpose: if place == 0 { "encrypts" } else { "reads" },
        executions: executions(file.key.id()),
        file: Some(file.path.display().to_string()),
    });
    let missing = used.iter().filter(|used| !files.iter().any(|file| file.key.id() == used.id));
    let missing = missing.map(|used| Row { key: used.id.to_string(), purpose: MISSING, executions: used.executions, file: None });
    named.chain(missing).collect()
}
