//! `octavius config`: writes the client's configuration, as the first Octavius did, and shows it.

use std::path::{Path, PathBuf};

use clap::{Args, Subcommand};
use octavius_proto::client::Address;
use serde_json::{Value, json};

use crate::client_tls::read_ca;
use crate::config::{ClientFile, Entry, Located, TOP, given_token, home_path, locate, read, write};
use crate::error::{Failure, Outcome};
use crate::exit::Exit;
use crate::output::Format;
use crate::sanitize::line;
use crate::{Context, env};

/// Flags of `octavius config`; what it writes are the flags of every command.
#[derive(Debug, Args)]
#[command(
    after_help = "octavius config --cp-host HOST:PORT --email-id ADDRESS --token-file FILE --time-out SECONDS --ca-file FILE\n\
    --client-cert FILE --client-key FILE --server-name NAME\n\
    writes ~/.octavius/octavius_client.yaml, readable by you alone; with --context NAME, a context of it"
)]
pub struct ConfigArgs {
    #[command(subcommand)]
    command: Option<Command>,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Show the configuration; tokens are masked
    View(ViewArgs),
    /// Choose the context that is used from now on
    Use(UseArgs),
    /// List the contexts
    Contexts(ViewArgs),
}

#[derive(Debug, Default, Args)]
struct ViewArgs {
    /// Form of the output
    #[arg(short, long, value_parser = Format::among(&["text", "json", "yaml"]), env = env::OUTPUT)]
    output: Option<Format>,
}

#[derive(Debug, Args)]
struct UseArgs {
    /// The context's name
    #[arg(value_name = "CONTEXT")]
    name: String,
}

/// Runs the command.
///
/// # Errors
/// Where the configuration cannot be read, understood or written.
pub fn run(context: &Context, args: &ConfigArgs) -> Outcome {
    match &args.command {
        Some(Command::View(args)) => view(context, args),
        Some(Command::Contexts(args)) => contexts(context, args),
        Some(Command::Use(args)) => choose(context, &args.name),
        None => {
            let flags = &context.connect;
            let given = flags.cp_host.is_some()
                || flags.email_id.is_some()
                || flags.token.is_some()
                || flags.token_file.is_some()
                || flags.time_out.is_some()
                || flags.ca_file.is_some()
                || flags.client_cert.is_some()
                || flags.client_key.is_some()
                || flags.server_name.is_some();
            if given { set(context) } else { view(context, &ViewArgs::default()) }
        }
    }
}

/// The file that is written: the one that was named, or the user's own.
fn target(context: &Context) -> Outcome<PathBuf> {
    let named = context.connect.config.clone().or_else(|| env::path(env::CONFIG).map(PathBuf::from));
    named.or_else(home_path).ok_or_else(|| Failure::usage("HOME is not set").hint("name the file with --config"))
}

fn set(context: &Context) -> Outcome {
    let flags = &context.connect;
    if let Some(host) = &flags.cp_host {
        Address::parse_list(host)?;
    }
    let mut warnings = Vec::new();
    if flags.token_from.is_some() {
        return Err(Failure::usage("--token-from makes a token for one run, which is not to be written down"));
    }
    // only flags: what stands in the environment now is not to be written down
    let token = if flags.token.is_some() || flags.token_file.is_some() {
        given_token(flags, &mut warnings)?.map(|(token, _)| token)
    } else {
        None
    };
    for warning in &warnings {
        context.shell.warn(warning);
    }
    let ca = flags.ca_file.as_deref().map(read_ca).transpose()?;
    let path = target(context)?;
    let mut file = read(&path)?.unwrap_or_default();
    let entry = match &flags.context {
        Some(name) if !file.is_top(name) => {
            // the first one is used, unless the top is: writing one beside it is no reason to go elsewhere
            if !file.has_top() {
                file.current_context.get_or_insert_with(|| name.clone());
            }
            file.contexts.entry(name.clone()).or_default()
        }
        _ => &mut file.top,
    };
    if token.is_none() && entry.access_token.is_some() && flags.cp_host.is_some() && flags.cp_host != entry.cp_host {
        // the token belongs to the host that it was set with
        entry.access_token = None;
        context.shell.warn("the token that was set for the former host is taken away; set the new host's with --token-file");
    }
    let Entry { cp_host, email_id, access_token, connection_timeout_secs, ca_pem, client_cert, client_key, server_name } = entry;
    replace(cp_host, flags.cp_host.clone());
    replace(email_id, flags.email_id.clone());
    replace(access_token, token);
    replace(connection_timeout_secs, flags.time_out);
    replace(ca_pem, ca);
    replace(client_cert, flags.client_cert.as_deref().map(absolute));
    replace(client_key, flags.client_key.as_deref().map(absolute));
    replace(server_name, flags.server_name.clone());
    write(&path, &file)?;
    let named = env::get(env::CONTEXT).unwrap_or_else(|| current(&file).to_owned());
    context.shell.note(&format!("written to {}; context {} is in use", path.display(), line(&named)));
    if flags.context.as_ref().is_some_and(|written| *written != named) {
        context.shell.hint(&format!("octavius config use {}", flags.context.as_deref().map(line).unwrap_or_default()));
    }
    Ok(Exit::Done)
}

/// The context that is used where none is named.
fn current(file: &ClientFile) -> &str {
    file.current_context.as_deref().unwrap_or(TOP)
}

fn replace<T>(slot: &mut Option<T>, given: Option<T>) {
    if given.is_some() {
        *slot = given;
    }
}

/// A path as it is meant from any folder.
fn absolute(path: &Path) -> PathBuf {
    std::path::absolute(path).unwrap_or_else(|_| path.to_owned())
}

fn existing(context: &Context) -> Outcome<Located> {
    locate(&context.connect)?.ok_or_else(|| {
        Failure::usage("there is no configuration file").hint("octavius config --cp-host HOST:PORT --token-file FILE")
    })
}

/// A token as it may be shown: its kind.
fn masked(token: &str) -> String {
    let kind = token.split_once('_').map(|(kind, _)| kind).filter(|kind| matches!(*kind, "octu" | "octe" | "octr"));
    kind.map_or("********".to_owned(), |kind| format!("{kind}_********"))
}

fn entry_json(entry: &Entry) -> Value {
    json!({
        "cp_host": entry.cp_host,
        "email_id": entry.email_id,
        "access_token": entry.access_token.as_deref().map(masked),
        "connection_timeout_secs": entry.connection_timeout_secs,
        "ca_pem": entry.ca_pem,
        "client_cert": entry.client_cert,
        "client_key": entry.client_key,
        "server_name": entry.server_name,
    })
}

fn view(context: &Context, args: &ViewArgs) -> Outcome {
    let Located { path, found: _, file } = existing(context)?;
    let ClientFile { top, contexts, current_context } = &file;
    let value = || {
        let contexts: serde_json::Map<String, Value> =
            contexts.iter().map(|(name, entry)| (name.clone(), entry_json(entry))).collect();
        let mut value = entry_json(top);
        value["file"] = path.to_string_lossy().into();
        value["current_context"] = current_context.clone().into();
        value["contexts"] = contexts.into();
        value
    };
    if args.output.unwrap_or(Format::Text).structured(&context.shell, value)? {
        return Ok(Exit::Done);
    }
    let mut shown = file.clone();
    for entry in shown.contexts.values_mut().chain([&mut shown.top]) {
        entry.access_token = entry.access_token.as_deref().map(masked);
    }
    context.shell.note(&format!("{}:", path.display()));
    let text = shown.to_yaml();
    context.shell.print(if text.trim() == "{}" { "" } else { &text })?;
    Ok(Exit::Done)
}

fn contexts(context: &Context, args: &ViewArgs) -> Outcome {
    let Located { file, .. } = existing(context)?;
    let top = file.has_top() && file.is_top(TOP);
    let names: Vec<&str> = top.then_some(TOP).into_iter().chain(file.contexts.keys().map(String::as_str)).collect();
    let current = Some(current(&file)).filter(|current| names.contains(current));
    let value = || json!({ "current_context": current, "contexts": names });
    if args.output.unwrap_or(Format::Text).structured(&context.shell, value)? {
        return Ok(Exit::Done);
    }
    for name in &names {
        context.shell.line(&format!("{} {}", if Some(*name) == current { "*" } else { " " }, line(name)))?;
    }
    if names.is_empty() {
        context.shell.note("no contexts; `octavius config --context NAME --cp-host HOST:PORT` makes one");
    }
    Ok(Exit::Done)
}

fn choose(context: &Context, name: &str) -> Outcome {
    let Located { path, mut file, .. } = existing(context)?;
    file.context(name)?;
    file.current_context = Some(name.to_owned()).filter(|name| !file.is_top(name));
    write(&path, &file)?;
    context.shell.note(&format!("{name} is used from now on ({})", path.display()));
    Ok(Exit::Done)
}
