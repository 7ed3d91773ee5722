//! `octavius controller start`: the server.

use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use clap::{Args, Subcommand};
use octavius_controller::{Controller, ControllerError, ControllerOptions};
use octavius_store::{EmbeddedOptions, Store, open_embedded};
use tokio_util::sync::CancellationToken;

use crate::daemon::{LogOptions, Settings, start_log, timing, until_signal};
use crate::error::{Failure, Outcome};
use crate::exit::Exit;
use crate::{Context, env};

/// Flags of `octavius controller`.
#[derive(Debug, Args)]
pub struct ControllerArgs {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Run the controller until a signal stops it
    Start(StartArgs),
}

#[derive(Debug, Args)]
struct StartArgs {
    /// Configuration file [default: ./controller_config.json, where it is there]
    #[arg(long, value_name = "FILE", env = env::CONTROLLER_CONFIG)]
    config: Option<PathBuf>,
    /// Where everything is kept: embedded:DIR, one file on this machine
    #[arg(long, value_name = "STORE", env = env::STORE)]
    store: Option<String>,
    /// Where to listen; port 0 takes a free one [default: 127.0.0.1:3000]
    #[arg(long, value_name = "ADDR", env = env::LISTEN)]
    listen: Option<SocketAddr>,
    /// File of an admin's token; made where the store knows no admin and the file is missing [default: admin.token beside the store]
    #[arg(long, value_name = "FILE", env = env::BOOTSTRAP_TOKEN_FILE)]
    bootstrap_token_file: Option<PathBuf>,
    /// How much is logged: error, warn, info, debug, trace
    #[arg(long, value_name = "LEVEL", env = env::LOG_LEVEL)]
    log_level: Option<String>,
}

/// Keys of `controller_config.json`: the first Octavius', then ours.
const KEYS: [&str; 11] = [
    "etcd_host",
    "etcd_port",
    "etcd_dial_timeout",
    "log_level",
    "app_port",
    "executor_ping_deadline",
    "log_file_path",
    "log_file_max_size_in_mb",
    "store",
    "listen",
    "bootstrap_token_file",
];

/// The first Octavius' port.
const DEFAULT_PORT: u16 = 3000;

/// Everything that a controller needs, from flags, environment and file.
#[derive(Debug)]
struct Options {
    store: PathBuf,
    listen: SocketAddr,
    bootstrap_token_file: PathBuf,
    timing: octavius_core::Timing,
    log: LogOptions,
}

fn store_dir(text: &str) -> Outcome<PathBuf> {
    match text.split_once(':') {
        Some(("embedded", dir)) if !dir.is_empty() => Ok(PathBuf::from(dir)),
        _ if text == "etcd" || text.starts_with("etcd:") => {
            Err(Failure::usage("this version has no etcd store yet")
                .hint("--store embedded:DIR keeps everything in one file of DIR"))
        }
        _ => Err(Failure::usage(format!("store \"{}\" is not known", crate::sanitize::line(text))).hint("--store embedded:DIR")),
    }
}

fn options(args: &StartArgs) -> Outcome<Options> {
    let settings = Settings::read(args.config.as_deref(), "controller_config.json", &KEYS)?;
    // a wrong value is told even where it would not be used
    let (_, _, _) = (settings.text("etcd_host")?, settings.number::<u16>("etcd_port")?, settings.seconds("etcd_dial_timeout")?);
    let store = match (&args.store, settings.text("store")?) {
        (Some(text), _) => store_dir(text)?,
        (None, Some(text)) => settings.beside(&store_dir(&text)?),
        (None, None) => {
            let failure = Failure::usage("no store is named").hint("--store embedded:DIR keeps everything in one file of DIR");
            return Err(if settings.has("etcd_host") { failure.hint("this version has no etcd store yet") } else { failure });
        }
    };
    let port = settings.number::<u16>("app_port")?.unwrap_or(DEFAULT_PORT);
    let listen = match (args.listen, settings.text("listen")?) {
        (Some(listen), _) => listen,
        (None, Some(text)) => {
            text.parse().map_err(|_| Failure::usage(format!("`listen` is \"{text}\", not an address like 127.0.0.1:3000")))?
        }
        // The first Octavius listened everywhere. Tokens travel in plain text here, so that has to be asked for.
        (None, None) => SocketAddr::new(IpAddr::V4(Ipv4Addr::LOCALHOST), port),
    };
    let mut timing = timing()?;
    if let Some(deadline) = settings.seconds("executor_ping_deadline")? {
        timing.ping_deadline = deadline;
    }
    let bootstrap =
        args.bootstrap_token_file.clone().map_or_else(|| settings.path("bootstrap_token_file"), |path| Ok(Some(path)))?;
    Ok(Options {
        bootstrap_token_file: bootstrap.unwrap_or_else(|| store.join("admin.token")),
        store,
        listen,
        timing,
        log: LogOptions {
            level: args.log_level.clone().map_or_else(|| settings.text("log_level"), |level| Ok(Some(level)))?,
            file: settings.path("log_file_path")?,
            max_mib: settings.number("log_file_max_size_in_mb")?.unwrap_or_default(),
        },
    })
}

/// Opens the embedded store in a folder.
///
/// # Errors
/// Where the folder cannot be used, or another process has it open.
pub fn open_store(dir: &Path) -> Outcome<Arc<dyn Store>> {
    open_embedded(dir, EmbeddedOptions::default()).map_err(|error| {
        let locked = error.to_string().contains("another process");
        let failure = Failure::new(Exit::Usage, error);
        if locked {
            failure.hint("one process at a time has it; give this one a folder of its own, or stop the other")
        } else {
            failure
        }
    })
}

/// Starts a controller.
///
/// # Errors
/// Where it cannot listen, or the store does not answer.
pub async fn start(options: ControllerOptions) -> Outcome<Controller> {
    Controller::start(options).await.map_err(|error| match error {
        ControllerError::Listen { .. } => {
            Failure::new(Exit::Usage, error).hint("choose another address with --listen; port 0 takes a free one")
        }
        ControllerError::Bootstrap(_) => Failure::new(Exit::Usage, error),
        ControllerError::Store(_) | ControllerError::Reflection(_) => Failure::new(Exit::Fault, error),
    })
}

/// Runs the command.
///
/// # Errors
/// Where the configuration is wrong, or the controller cannot begin.
pub async fn run(context: &Context, args: &ControllerArgs) -> Outcome {
    let Command::Start(args) = &args.command;
    let options = options(args)?;
    start_log(&options.log, "info")?;
    until_signal(&context.shell, |stop| serve(context, options, stop)).await
}

async fn serve(context: &Context, options: Options, stop: CancellationToken) -> Outcome {
    let store = open_store(&options.store)?;
    let Options { listen, bootstrap_token_file, timing, .. } = options;
    let made = !bootstrap_token_file.exists();
    let controller =
        start(ControllerOptions { store, listen, bootstrap_token_file: bootstrap_token_file.clone(), timing }).await?;
    let address = controller.address();
    if !address.ip().is_loopback() {
        tracing::warn!(%address, "listening without TLS: tokens travel in the clear; keep it within a network that you trust");
    }
    if made && bootstrap_token_file.exists() {
        context.shell.note(&format!("an admin's token was written to {}", bootstrap_token_file.display()));
    }
    context.shell.announce(&format!("ready: octavius controller on {address}"));
    let failed = tokio::select! {
        () = stop.cancelled() => false,
        () = controller.failed() => true,
    };
    controller.stop().await;
    if failed { Err(Failure::fault("a part of the controller failed; start it again, nothing is lost")) } else { Ok(Exit::Done) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn stores_are_named_or_refused() {
        assert_eq!(store_dir("embedded:/data/x").unwrap(), PathBuf::from("/data/x"));
        for text in ["etcd", "etcd:http://a", "embedded", "embedded:", "redis"] {
            assert_eq!(store_dir(text).unwrap_err().exit, Exit::Usage, "{text}");
        }
    }
}
