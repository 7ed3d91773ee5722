//! `octavius controller start`: the server.

use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::path::{Path, PathBuf};
use std::time::Duration;

use clap::{Args, FromArgMatches as _, Subcommand};
use octavius_controller::{
    ArchiveError, AuditExport, Clock, Controller, ControllerError, ControllerOptions, IssuerConfig, PageListen, RequestLimits,
    Retention, TlsFiles, WebhookConfig,
};
use octavius_core::ByteSize;
use octavius_core::dispatch::Strategy;
use octavius_core::limit::LOG_BYTES_MIN;
use octavius_store::StoreError;
use tokio_util::sync::CancellationToken;
use url::Url;

use super::encryption_keys::{KeysArgs, NewKeyArgs, keys, new_key};
use crate::archive_options::{ArchiveArgs, ArchiveChoice, LogKeeping};
use crate::client_tls::file_failure;
use crate::daemon::{Settings, raise_file_limit, timing, until_signal};
use crate::encryption_options::{EncryptionArgs, EncryptionChoice};
use crate::error::{Failure, Outcome};
use crate::exit::Exit;
use crate::issuer_options;
use crate::listen_options::TlsArgs;
use crate::log::{LogFormat, LogOptions, start_log};
use crate::store_options::{self, StoreArgs, StoreChoice};
use crate::trace::Export;
use crate::{Context, env, webhook_options};

/// Flags of `octavius controller`.
#[derive(Debug, Args)]
pub struct ControllerArgs {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Run the controller until a signal stops it
    Start(Box<StartArgs>),
    /// Make a key with which controllers encrypt sensitive arguments, in a new file; prints the key's name
    NewKey(NewKeyArgs),
    /// Say which encryption keys the store needs, without a controller; an embedded store must not be in use
    Keys(Box<KeysArgs>),
}

/// Least age that executions are kept to. With less, one would be gone before whoever started it has looked at it.
const MIN_RETENTION_AGE: Duration = Duration::from_secs(3600);

/// Least life of an executor's token.
const MIN_TOKEN_LIFETIME: Duration = Duration::from_secs(10);

/// What is in the file alone.
const KEYS_HELP: &str = "\
All flags of TLS are keys of the configuration file too: tls_cert, tls_key, client_ca, insecure. Metrics are served in the clear, TLS or not.

Keys of the configuration file without a flag:
  retention_age         how long executions that have ended are kept, like 30d; 1h or more [env: OCTAVIUS_RETENTION_AGE]
  retention_executions  how many of them are kept; 1 or more [env: OCTAVIUS_RETENTION_EXECUTIONS]
  retention_log_bytes   most that all logs take together, like 100GiB; the oldest go first [env: OCTAVIUS_RETENTION_LOG_BYTES]
  retention_audit       how long the audit trail is kept, like 365d [default: 90d, or retention_age where that is more]
                        [env: OCTAVIUS_RETENTION_AUDIT]
  audit_export          a folder into which the audit trail is exported every few minutes, as JSON, one record a line and one file a day;
                        nothing is removed from the trail before that. Of several controllers, the one whose turn it is writes: give each
                        the same shared folder, or gather from all. `none` ends it, and nothing is kept for it any more
                        [env: OCTAVIUS_AUDIT_EXPORT]
  executor_token_lifetime
                        how long an executor's token is good, like 30d; 10s or more; executors replace theirs by themselves after three
                        quarters of it [default: 30d] [env: OCTAVIUS_EXECUTOR_TOKEN_LIFETIME]
  otlp_endpoint         a collector's URL, to which spans are exported by OTLP, like http://127.0.0.1:4317 [env:
                        OTEL_EXPORTER_OTLP_ENDPOINT]; OpenTelemetry's other variables are read as well
  page_url              where browsers reach the web page, like https://octavius.example.com; needed where they sign in with an issuer
  log_file_path         a file for the log instead of standard error [env: OCTAVIUS_LOG_FILE_PATH]; it is put aside as NAME.1 when it
                        has log_file_max_size_in_mb MiB [env: OCTAVIUS_LOG_FILE_MAX_SIZE_IN_MB]
  request_rate          calls a second that one user may make on this controller, an executor five times as many, or none for no limit;
                        one who makes more waits, and is then refused [default: 1000] [env: OCTAVIUS_REQUEST_RATE]
ISSUERS
WEBHOOKS

An archive in S3, or in what speaks like it, is reached by the variables that Amazon's own tools read: AWS_REGION, AWS_ENDPOINT_URL,
AWS_ACCESS_KEY_ID, AWS_SECRET_ACCESS_KEY, AWS_SESSION_TOKEN; or by the role of the machine or the pod. A server without TLS has an endpoint
that begins with http://.";

/// What is in the file alone, with its issuers and webhooks.
fn keys_help() -> String {
    KEYS_HELP.replace("ISSUERS", issuer_options::HELP).replace("WEBHOOKS", webhook_options::HELP)
}

#[derive(Debug, Args)]
#[command(after_long_help = keys_help())]
struct StartArgs {
    #[command(flatten)]
    store: StoreArgs,
    #[command(flatten)]
    archive: ArchiveArgs,
    #[command(flatten)]
    tls: TlsArgs,
    #[command(flatten)]
    encryption: EncryptionArgs,
    /// Where to listen; port 0 takes a free one [default: 127.0.0.1:3000]
    #[arg(long, value_name = "ADDR", env = env::LISTEN, help_heading = "Options")]
    listen: Option<SocketAddr>,
    /// Where to serve metrics for Prometheus, and /healthz, over HTTP and without asking who it is [default: nowhere]
    #[arg(long, value_name = "ADDR", env = env::METRICS_LISTEN, help_heading = "Options")]
    metrics_listen: Option<SocketAddr>,
    /// Where to serve the web page, with the certificates of --listen [default: nowhere]
    #[arg(long, value_name = "ADDR", env = env::PAGE_LISTEN, help_heading = "Options")]
    page_listen: Option<SocketAddr>,
    /// Browsers speak TLS with what stands before the web page, where the controller itself does not
    #[arg(long, env = env::PAGE_BEHIND_TLS, help_heading = "Options")]
    page_behind_tls: bool,
    /// File of an admin's token; made where the store knows no admin and the file is missing [default: admin.token beside the store; with
    /// etcd, beside the configuration file]
    #[arg(long, value_name = "FILE", env = env::BOOTSTRAP_TOKEN_FILE, help_heading = "Options")]
    bootstrap_token_file: Option<PathBuf>,
    /// Who gets the next execution, of the executors that fit: least-loaded, or first-come as with the first Octavius [default: least-loaded]
    #[arg(long, value_name = "STRATEGY", env = env::STRATEGY, help_heading = "Options")]
    strategy: Option<String>,
    /// How much is logged: error, warn, info, debug, trace, off
    #[arg(long, value_name = "LEVEL", env = env::LOG_LEVEL, help_heading = "Options")]
    log_level: Option<String>,
    /// Form of the log [default: text on a terminal, json elsewhere]
    #[arg(long, value_name = "FORMAT", value_enum, env = env::LOG_FORMAT, help_heading = "Options")]
    log_format: Option<LogFormat>,
}

/// The first Octavius' port.
const DEFAULT_PORT: u16 = 3000;

/// Everything that a controller needs, from flags, environment and file.
#[derive(Debug)]
struct Options {
    store: StoreChoice,
    listen: SocketAddr,
    tls: Option<TlsFiles>,
    metrics_listen: Option<SocketAddr>,
    page: Option<PageListen>,
    bootstrap_token_file: PathBuf,
    retention: Retention,
    logs: LogKeeping,
    encryption: EncryptionChoice,
    audit_export: AuditExport,
    /// Whether old revisions of the store are ours to forget: not where others use the etcd too.
    compact: bool,
    strategy: Strategy,
    limits: RequestLimits,
    issuers: Vec<IssuerConfig>,
    webhooks: Vec<WebhookConfig>,
    timing: octavius_core::Timing,
    log: LogOptions,
    otlp_endpoint: Option<String>,
}

fn options(args: &StartArgs) -> Outcome<Options> {
    let settings = args.store.settings()?;
    let store = args.store.choice(&settings)?;
    let port = settings.number::<u16>("app_port")?.unwrap_or(DEFAULT_PORT);
    let address = |key: &str, flag: Option<SocketAddr>| match (flag, settings.text(key)?) {
        (Some(flag), _) => Ok(Some(flag)),
        (None, Some(text)) => match text.parse() {
            Ok(address) => Ok(Some(address)),
            Err(_) => Err(settings.wrong(key, &format!("is \"{text}\", not an address like 127.0.0.1:3000"))),
        },
        (None, None) => Ok::<_, Failure>(None),
    };
    let listen = match address("listen", args.listen)? {
        Some(listen) => listen,
        // The first Octavius listened everywhere. That has to be asked for, as tokens come by here.
        None => SocketAddr::new(IpAddr::V4(Ipv4Addr::LOCALHOST), port),
    };
    let issuers = issuer_options::issuers(&settings)?;
    let page_listen = address("page_listen", args.page_listen)?;
    let page_url = page_url(&settings, &issuers, page_listen)?;
    let behind_tls = args.page_behind_tls || settings.flag("page_behind_tls")?.unwrap_or_default();
    let addresses: Vec<_> = [listen].into_iter().chain(page_listen).collect();
    let mut timing = timing()?;
    if let Some(deadline) = settings.seconds("executor_ping_deadline")? {
        timing.ping_deadline = deadline;
    }
    if let Some(life) = settings.duration("executor_token_lifetime")? {
        if life < MIN_TOKEN_LIFETIME {
            return Err(settings.wrong("executor_token_lifetime", "is under 10s: executors could not replace theirs in time"));
        }
        timing.executor_token_life = life;
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
    retention.audit = match settings.duration("retention_audit")? {
        Some(audit) if audit < MIN_RETENTION_AGE => {
            return Err(
                settings.wrong("retention_audit", "is under 1h: what was done would be removed before anyone has seen it")
            );
        }
        Some(audit) => audit,
        None => retention.audit.max(retention.age),
    };
    let audit_export = match settings.text("audit_export")?.as_deref() {
        Some("none") => AuditExport::Off,
        _ => settings.path("audit_export")?.map_or(AuditExport::Unset, AuditExport::Folder),
    };
    let bootstrap =
        args.bootstrap_token_file.clone().map_or_else(|| settings.path("bootstrap_token_file"), |path| Ok(Some(path)))?;
    let beside = match &store {
        StoreChoice::Embedded(dir) => dir.join("admin.token"),
        StoreChoice::Etcd(_) => settings.beside(Path::new("admin.token")),
    };
    let strategy = match args.strategy.clone().map_or_else(|| settings.text("strategy"), |text| Ok(Some(text)))? {
        None => Strategy::default(),
        Some(text) => Strategy::ALL.into_iter().find(|known| known.as_str() == text).ok_or_else(|| {
            let known = Strategy::ALL.map(Strategy::as_str).join(" or ");
            settings.wrong("strategy", &format!("is \"{text}\"; {known} is expected"))
        })?,
    };
    retention.log_bytes = settings.size("retention_log_bytes")?.map(ByteSize::get);
    if retention.log_bytes.is_some_and(|bytes| bytes < LOG_BYTES_MIN) {
        let least = ByteSize::new(LOG_BYTES_MIN);
        return Err(settings.wrong("retention_log_bytes", &format!("is under {least}: no log would be kept")));
    }
    let logs = args.archive.keeping(&settings, &store)?;
    let encryption = args.encryption.choice(&settings, &store)?;
    Ok(Options {
        store,
        logs,
        tls: args.tls.files(&settings, &addresses)?,
        encryption,
        listen,
        strategy,
        metrics_listen: address("metrics_listen", args.metrics_listen)?,
        page: page_listen.map(|address| PageListen { address, open: None, url: page_url, behind_tls }),
        bootstrap_token_file: bootstrap.unwrap_or(beside),
        retention,
        audit_export,
        limits: RequestLimits { rate: settings.number_or_none("request_rate")?.unwrap_or(RequestLimits::default().rate) },
        issuers,
        webhooks: webhook_options::webhooks(&settings)?,
        compact: !settings.flag("etcd_shared")?.unwrap_or_default(),
        timing,
        log: LogOptions {
            level: args.log_level.clone().map_or_else(|| settings.text("log_level"), |level| Ok(Some(level)))?,
            format: args.log_format,
            file: settings.path("log_file_path")?,
            max_mib: settings.number("log_file_max_size_in_mb")?.unwrap_or_default(),
        },
        otlp_endpoint: settings.text("otlp_endpoint")?,
    })
}

/// Where browsers reach the web page, which is needed where they sign in with an issuer.
fn page_url(settings: &Settings, issuers: &[IssuerConfig], page: Option<SocketAddr>) -> Outcome<Option<Url>> {
    let signs_in = issuers.iter().any(IssuerConfig::is_to_sign_in_with);
    let Some(text) = settings.text("page_url")? else {
        let told = "is missing: an issuer with `sign_in` sends visitors back to it";
        return if signs_in && page.is_some() { Err(settings.wrong("page_url", told)) } else { Ok(None) };
    };
    let url = Url::parse(&text).ok().filter(|url| matches!(url.scheme(), "https" | "http") && url.has_host());
    let url =
        url.filter(|url| url.path() == "/" && url.query().is_none() && url.fragment().is_none() && url.username().is_empty());
    url.map(Some)
        .ok_or_else(|| settings.wrong("page_url", &format!("is \"{text}\", not a URL like https://octavius.example.com")))
}

/// What a configuration says of the controller that is started with it.
#[derive(Debug)]
pub(super) struct Described {
    pub(super) store: StoreChoice,
    pub(super) listen: SocketAddr,
    pub(super) bootstrap_token_file: PathBuf,
    pub(super) archive: ArchiveChoice,
    pub(super) audit_export: AuditExport,
    pub(super) tls: Option<TlsFiles>,
}

/// What this file and the environment say of a controller.
///
/// # Errors
/// Where the configuration is wrong.
pub(super) fn described(config: &Path) -> Outcome<Described> {
    let flags = crate::cli::by_environment(StartArgs::augment_args(clap::Command::new("start")));
    let given = [std::ffi::OsStr::new("start"), "--config".as_ref(), config.as_os_str()];
    let matches = flags.try_get_matches_from(given).and_then(|matches| StartArgs::from_arg_matches(&matches));
    let args = matches.map_err(|error| Failure::usage(error.to_string().trim().to_owned()))?;
    let Options { store, listen, bootstrap_token_file, logs, audit_export, tls, .. } = options(&args)?;
    Ok(Described { store, listen, bootstrap_token_file, archive: logs.archive, audit_export, tls })
}

/// Starts a controller.
///
/// # Errors
/// Where it cannot listen, or the store does not answer.
pub async fn start(options: ControllerOptions) -> Outcome<Controller> {
    Controller::start(options).await.map_err(|error| match error {
        ControllerError::Listen { .. } => Failure::new(Exit::Usage, error)
            .hint("choose another address with --listen, --page-listen or --metrics-listen; port 0 takes a free one"),
        ControllerError::Certificates(error) => file_failure(error),
        ControllerError::Bootstrap(_) | ControllerError::AuditExport { .. } => Failure::new(Exit::Usage, error),
        ControllerError::Restoring => {
            Failure::new(Exit::Refused, error).hint("run the same `octavius restore` again; it goes on where it stopped")
        }
        ControllerError::Archive(ArchiveError::Unavailable { .. }) => Failure::new(Exit::Unreachable, error).hint(
            "for an S3, AWS_REGION, AWS_ENDPOINT_URL, AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY say where it is and who asks",
        ),
        ControllerError::Archive(ArchiveError::Foreign { .. }) => Failure::new(Exit::Refused, error)
            .hint("all controllers of a store name the same archive with --archive, and each store has an archive of its own"),
        ControllerError::Archive(ArchiveError::Address { .. }) => Failure::new(Exit::Usage, error),
        ControllerError::Store(StoreError::Unavailable(_)) => {
            Failure::new(Exit::Unreachable, error).hint("is the etcd well? it answered, and then no more")
        }
        ControllerError::Store(_) | ControllerError::Archive(_) | ControllerError::Reflection(_) => {
            Failure::new(Exit::Fault, error)
        }
    })
}

/// Runs the command.
///
/// # Errors
/// Where the configuration is wrong, or the controller cannot begin.
pub async fn run(context: &Context, args: &ControllerArgs) -> Outcome {
    let args = match &args.command {
        Command::Start(args) => args,
        Command::NewKey(args) => return new_key(context, args),
        Command::Keys(args) => return keys(context, args).await,
    };
    let options = options(args)?;
    start_log(&options.log, "info")?;
    raise_file_limit();
    let export = Export::start(options.otlp_endpoint.as_deref(), "octavius-controller")?;
    let outcome = until_signal(&context.shell, |stop| serve(context, options, stop)).await;
    export.stop().await;
    outcome
}

async fn serve(context: &Context, options: Options, stop: CancellationToken) -> Outcome {
    let Options {
        store,
        listen,
        tls,
        metrics_listen,
        page,
        bootstrap_token_file,
        retention,
        audit_export,
        logs,
        encryption,
        compact,
        strategy,
        limits,
        issuers,
        webhooks,
        timing,
        log: _,
        otlp_endpoint: _,
    } = options;
    let store = store_options::open(store).await?;
    // after the store, whose folder is made private: the archive's may be within it
    let archive = logs.open()?;
    let encryption = encryption.open()?;
    let made = !bootstrap_token_file.exists();
    let options = ControllerOptions {
        store,
        listen,
        tls,
        bootstrap_token_file: bootstrap_token_file.clone(),
        retention,
        archive,
        log_limit: logs.limit,
        audit_export,
        compact,
        strategy,
        limits,
        encryption,
        issuers,
        webhooks,
        timing,
        clock: Clock::default(),
        metrics_listen,
        page,
    };
    let clear = options.tls.is_none();
    let controller = start(options).await?;
    let address = controller.address();
    if clear && !address.ip().is_loopback() {
        tracing::warn!(%address, "listening without TLS: tokens travel in the clear; keep it within a network that you trust");
    }
    if let Some(address) = controller.metrics_address() {
        context.shell.note(&format!("metrics: http://{address}/metrics"));
    }
    if let Some(address) = controller.page_address() {
        context.shell.note(&format!("page: {}://{address}/", if clear { "http" } else { "https" }));
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
