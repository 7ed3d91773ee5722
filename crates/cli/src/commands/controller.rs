//! `octavius controller start`: the server.

use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::path::{Path, PathBuf};
use std::time::Duration;

use clap::{Args, Subcommand};
use octavius_controller::{Controller, ControllerError, ControllerOptions, Retention};
use octavius_store::StoreError;
use tokio_util::sync::CancellationToken;

use crate::daemon::{LogOptions, start_log, timing, until_signal};
use crate::error::{Failure, Outcome};
use crate::exit::Exit;
use crate::store_options::{self, StoreArgs, StoreChoice};
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

/// Least age that executions are kept to. With less, one would be gone before whoever started it has looked at it.
const MIN_RETENTION_AGE: Duration = Duration::from_secs(3600);

/// What is in the file alone.
const KEYS_HELP: &str = "\
Keys of the configuration file without a flag:
  retention_age         how long executions that have ended are kept, like 30d; 1h or more [env: OCTAVIUS_RETENTION_AGE]
  retention_executions  how many of them are kept; 1 or more [env: OCTAVIUS_RETENTION_EXECUTIONS]";

#[derive(Debug, Args)]
#[command(after_long_help = KEYS_HELP)]
struct StartArgs {
    #[command(flatten)]
    store: StoreArgs,
    /// Where to listen; port 0 takes a free one [default: 127.0.0.1:3000]
    #[arg(long, value_name = "ADDR", env = env::LISTEN, help_heading = "Options")]
    listen: Option<SocketAddr>,
    /// File of an admin's token; made where the store knows no admin and the file is missing [default: admin.token beside the store; with
    /// etcd, beside the configuration file]
    #[arg(long, value_name = "FILE", env = env::BOOTSTRAP_TOKEN_FILE, help_heading = "Options")]
    bootstrap_token_file: Option<PathBuf>,
    /// How much is logged: error, warn, info, debug, trace, off
    #[arg(long, value_name = "LEVEL", env = env::LOG_LEVEL, help_heading = "Options")]
    log_level: Option<String>,
}

/// The first Octavius' port.
const DEFAULT_PORT: u16 = 3000;

/// Everything that a controller needs, from flags, environment and file.
#[derive(Debug)]
struct Options {
    store: StoreChoice,
    listen: SocketAddr,
    bootstrap_token_file: PathBuf,
    retention: Retention,
    /// Whether old revisions of the store are ours to forget: not where others use the etcd too.
    compact: bool,
    timing: octavius_core::Timing,
    log: LogOptions,
}

fn options(args: &StartArgs) -> Outcome<Options> {
    let settings = args.store.settings()?;
    let store = args.store.choice(&settings)?;
    let port = settings.number::<u16>("app_port")?.unwrap_or(DEFAULT_PORT);
    let listen = match (args.listen, settings.text("listen")?) {
        (Some(listen), _) => listen,
        (None, Some(text)) => {
            text.parse().map_err(|_| settings.wrong("listen", &format!("is \"{text}\", not an address like 127.0.0.1:3000")))?
        }
        // The first Octavius listened everywhere. Tokens travel in plain text here, so that has to be asked for.
        (None, None) => SocketAddr::new(IpAddr::V4(Ipv4Addr::LOCALHOST), port),
    };
    let mut timing = timing()?;
    if let Some(deadline) = settings.seconds("executor_ping_deadline")? {
        timing.ping_deadline = deadline;
    }
    let mut retention = Retention::default();
    if let Some(age) = settings.duration("retention_age")? {
        if age < MIN_RETENTION_AGE {
            return Err(settings.wrong("retention_age", "is under 1h: what has ended would be removed before anyone has seen it"));
        }
        retention.age = age;
    }
    if let Some(executions) = settings.number("retention_executions")? {
        if executions == 0 {
            return Err(settings.wrong("retention_executions", "is 0: every execution would be removed as soon as it has ended"));
        }
        retention.executions = executions;
    }
    let bootstrap =
        args.bootstrap_token_file.clone().map_or_else(|| settings.path("bootstrap_token_file"), |path| Ok(Some(path)))?;
    let beside = match &store {
        StoreChoice::Embedded(dir) => dir.join("admin.token"),
        StoreChoice::Etcd(_) => settings.beside(Path::new("admin.token")),
    };
    Ok(Options {
        store,
        listen,
        bootstrap_token_file: bootstrap.unwrap_or(beside),
        retention,
        compact: !settings.flag("etcd_shared")?.unwrap_or_default(),
        timing,
        log: LogOptions {
            level: args.log_level.clone().map_or_else(|| settings.text("log_level"), |level| Ok(Some(level)))?,
            file: settings.path("log_file_path")?,
            max_mib: settings.number("log_file_max_size_in_mb")?.unwrap_or_default(),
        },
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
        ControllerError::Restoring => {
            Failure::new(Exit::Refused, error).hint("run the same `octavius restore` again; it goes on where it stopped")
        }
        ControllerError::Store(StoreError::Unavailable(_)) => {
            Failure::new(Exit::Unreachable, error).hint("is the etcd well? it answered, and then no more")
        }
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
    let Options { store, listen, bootstrap_token_file, retention, compact, timing, log: _ } = options;
    let store = store_options::open(store).await?;
    let made = !bootstrap_token_file.exists();
    let options =
        ControllerOptions { store, listen, bootstrap_token_file: bootstrap_token_file.clone(), retention, compact, timing };
    let controller = start(options).await?;
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
