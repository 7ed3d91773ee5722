//! `octavius executor`: registers, checks and runs an executor.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::time::Duration;

use clap::{Args, FromArgMatches as _, Subcommand};
use octavius_core::limit::{SPOOL_BYTES, SPOOL_BYTES_MIN};
use octavius_core::token::{Token, TokenKind};
use octavius_core::{ByteSize, ExecutorId, Labels};
use octavius_executor::{
    Credential, ExecutorError, ExecutorOptions, FoundOffer, KubernetesPermission, RunnerOptions, check_kubernetes,
    check_kubernetes_offers, check_offers,
};
use octavius_proto::client::Address;
use octavius_proto::tls::Authorities;
use serde_json::json;

use super::list::labels;
use crate::client_tls::Certificates;
use crate::config::given_token;
use crate::daemon::{Settings, default_data_dir, this_program, timing, until_signal};
use crate::error::{Failure, Outcome};
use crate::exit::Exit;
use crate::log::{LogFormat, LogOptions, start_log};
use crate::output::Format;
use crate::secret_options::OfferArgs;
use crate::trace::Export;
use crate::{Context, env, kubernetes_options, secret_options, table};

/// Flags of `octavius executor`.
#[derive(Debug, Args)]
pub struct ExecutorArgs {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Register this executor once, with a registration token (--token-file FILE)
    Register(CommonArgs),
    /// Run the executor until a signal stops it; jobs run on, for its next start
    Start(StartArgs),
    /// Say what it needs where it runs, and what of that is missing; asks the cluster, and no controller
    Check(CheckArgs),
}

#[derive(Debug, Args)]
struct CommonArgs {
    /// Configuration file [default: ./executor_config.json, where it is there]
    #[arg(long, value_name = "FILE", env = env::EXECUTOR_CONFIG)]
    config: Option<PathBuf>,
    /// The executor's id
    #[arg(long, value_name = "ID", env = env::ID)]
    id: Option<String>,
    /// Folder for its credential and its runs [default: a folder under the user's own, by id]
    #[arg(long, value_name = "DIR", env = env::DATA_DIR)]
    data_dir: Option<PathBuf>,
}

/// What is in the file alone.
const KEYS_HELP: &str = "\
Keys of the configuration file for every runner, without a flag:
  log_file_path                 a file for the log instead of standard error [env: OCTAVIUS_LOG_FILE_PATH]
  log_file_max_size_in_mb       the size in MiB at which it is put aside as NAME.1 [env: OCTAVIUS_LOG_FILE_MAX_SIZE_IN_MB]
  otlp_endpoint                 a collector's URL, to which spans are exported by OTLP [env: OTEL_EXPORTER_OTLP_ENDPOINT]

Keys of the configuration file for TLS, which are flags too: ca_file, client_cert, client_key, server_name. The files are read again for each new
connection, so that certificates can be renewed under a running executor.

What jobs may have of the secrets that this executor can read; a job whose `from` names another is refused (SECRET_NOT_OFFERED):
  secrets                       {\"environment\": [\"PAY_*\"], \"files\": [\"/run/secrets/\"], \"kubernetes\": [\"gateway\", \"payments/*\"]}; `*` stands
                                for any characters, a slash at the end of a file's path for all that is in the folder

Keys of the configuration file for the kubernetes runner; each has a variable, like OCTAVIUS_KUBE_CONFIG:
  kube_config, kube_context     out-of-cluster takes $KUBECONFIG or ~/.kube/config; anything else the account of its own pod
  default_namespace             where Jobs go that name no namespace; namespaces: others that a job may name
  service_account_name          the account of jobs that name none; service_accounts: others that a job may name
  job_active_deadline_seconds   longest run of any job
  wait_for_resource_poll_count  seconds that a pod may wait for a node, a quota or an image
  log_process_wait_time         seconds that the end of a log is waited for
  job_pod_annotations           annotations of every Job and pod
  job_may_set                   what a job may set for itself: resources, plain_annotations (without a prefix), annotations
  secret                        Kubernetes Secret that holds secrets without a `from`; jobs may have all that is in it
  pod_template                  what every pod is built on: tolerations, pull secrets, a container `job`
  run_as_non_root               refuse images that run as root
  orphan_delay, keep_finished   how long unknown and finished Jobs are kept";

#[derive(Debug, Args)]
struct RunnerArgs {
    /// What it runs jobs with: kubernetes, or process, which runs them on this machine [default: kubernetes where the configuration has
    /// keys for it, otherwise process]
    #[arg(long, value_name = "RUNNER", env = env::RUNNER)]
    runner: Option<String>,
    #[command(flatten)]
    offers: OfferArgs,
}

#[derive(Debug, Args)]
#[command(after_long_help = KEYS_HELP)]
struct CheckArgs {
    #[command(flatten)]
    common: CommonArgs,
    #[command(flatten)]
    runner: RunnerArgs,
    /// Form of the output
    #[arg(short, long, value_parser = Format::among(&["text", "json", "yaml"]), default_value = "text", env = env::OUTPUT)]
    output: Format,
}

#[derive(Debug, Args)]
#[command(after_long_help = KEYS_HELP)]
struct StartArgs {
    #[command(flatten)]
    common: CommonArgs,
    #[command(flatten)]
    runner: RunnerArgs,
    /// A label, for jobs that ask for it; may be repeated
    #[arg(short, long, value_name = "KEY=VALUE", env = env::LABEL)]
    label: Vec<String>,
    /// How many executions it runs at once [default: the number of processors]
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..=10_000), env = env::CAPACITY)]
    capacity: Option<u32>,
    /// How much output may wait on its disk until a controller has it, at least 16MiB; while that is full, it takes no work and jobs that
    /// print wait [default: 256MiB]
    #[arg(long, value_name = "SIZE", env = env::SPOOL_LIMIT)]
    spool_limit: Option<ByteSize>,
    /// How much output it sends in a second, of all jobs together, as 10MiB [default: no limit]
    #[arg(long, value_name = "SIZE", env = env::LOG_RATE)]
    log_rate: Option<ByteSize>,
    /// How much is logged: error, warn, info, debug, trace
    #[arg(long, value_name = "LEVEL", env = env::LOG_LEVEL)]
    log_level: Option<String>,
    /// Form of the log [default: text on a terminal, json elsewhere]
    #[arg(long, value_name = "FORMAT", value_enum, env = env::LOG_FORMAT)]
    log_format: Option<LogFormat>,
}

/// Keys of `executor_config.json` for every runner: the first Octavius', then ours.
const KEYS: [&str; 20] = [
    "id",
    "cp_host",
    "access_token",
    "ca_file",
    "client_cert",
    "client_key",
    "server_name",
    "ping_interval",
    "conn_time_out",
    "log_level",
    "log_file_path",
    "log_file_max_size_in_mb",
    "runner",
    "labels",
    "capacity",
    "data_dir",
    "spool_limit",
    "log_rate",
    secret_options::KEY.0,
    "otlp_endpoint",
];

/// Variables that stand over the file beside those of flags.
const LOG_VARIABLES: [(&str, &[&str]); 2] =
    [("log_file_path", &[env::LOG_FILE_PATH]), ("log_file_max_size_in_mb", &[env::LOG_FILE_MAX_SIZE])];

/// How long is waited for a controller where nothing is said: the first Octavius' default.
const DEFAULT_TIMEOUT: Duration = Duration::from_secs(10);

/// Which executor this is.
#[derive(Debug)]
struct Own {
    settings: Settings,
    id: ExecutorId,
    data_dir: PathBuf,
}

/// Which executor this is, and how it reaches a controller.
#[derive(Debug)]
struct Common {
    settings: Settings,
    id: ExecutorId,
    controllers: Vec<Address>,
    token: Option<Token>,
    data_dir: PathBuf,
    connect_timeout: Duration,
}

/// What the registration has left in the data folder.
///
/// # Errors
/// Where the file cannot be understood, is another executor's, or can be read by others.
pub fn kept(data_dir: &Path, id: &ExecutorId) -> Outcome<Option<Credential>> {
    Credential::read(data_dir, id).map_err(|error| failure(error.into()))
}

fn own(args: &CommonArgs) -> Outcome<Own> {
    let keys: Vec<&str> = KEYS.into_iter().chain(kubernetes_options::KEYS.map(|(key, _)| key)).collect();
    let settings = Settings::read(args.config.as_deref(), "executor_config.json", &keys)?;
    let settings = settings.with_variables(&kubernetes_options::KEYS).with_variables(&[secret_options::KEY]);
    let settings = settings.with_variables(&LOG_VARIABLES);
    let id = args.id.clone().map_or_else(|| settings.text("id"), |id| Ok(Some(id)))?;
    let id = id.ok_or_else(|| Failure::usage("the executor has no id").hint("--id ID, or `id` in executor_config.json"))?;
    let id = ExecutorId::new(id).map_err(|error| Failure::new(Exit::Usage, error))?;
    let data_dir = args.data_dir.clone().map_or_else(|| settings.path("data_dir"), |dir| Ok(Some(dir)))?;
    let data_dir = data_dir.map_or_else(|| default_data_dir(&format!("executor-{id}")), Ok)?;
    Ok(Own { settings, id, data_dir })
}

fn common(context: &Context, args: &CommonArgs) -> Outcome<Common> {
    let Own { settings, id, data_dir } = own(args)?;
    let flags = &context.connect;
    let host = flags.cp_host.clone().or_else(|| env::get(env::CP_HOST)).or_else(|| env::get(env::SEED_CP_HOST));
    let host = host.map_or_else(|| settings.text("cp_host"), |host| Ok(Some(host)))?;
    let host = host.ok_or_else(|| {
        Failure::usage("no controller is named").hint("--cp-host HOST:PORT, or `cp_host` in executor_config.json")
    })?;
    let mut warnings = Vec::new();
    let token = match given_token(flags, &mut warnings)? {
        Some((token, _)) => Some(token),
        None => settings.text("access_token")?,
    };
    for warning in &warnings {
        context.shell.warn(warning);
    }
    let token = token.map(|text| text.parse::<Token>()).transpose().map_err(|error| Failure::new(Exit::NotSignedIn, error))?;
    let seconds = flags.time_out.filter(|&seconds| seconds > 0).map(Duration::from_secs);
    let connect_timeout = match (seconds, settings.number::<u32>("conn_time_out")?) {
        (Some(given), _) => given,
        (None, None | Some(0)) => DEFAULT_TIMEOUT,
        (None, Some(seconds)) => Duration::from_secs(seconds.into()),
    };
    let certificates = Certificates::given(flags).or(Certificates {
        ca: settings.path("ca_file")?.map(Authorities::File),
        client_cert: settings.path("client_cert")?,
        client_key: settings.path("client_key")?,
        server_name: settings.text("server_name")?,
    });
    let controllers = certificates.secure(Address::parse_list(&host)?)?;
    Ok(Common { controllers, settings, id, token, data_dir, connect_timeout })
}

/// Runs the command.
///
/// # Errors
/// Where the configuration is wrong, the controller cannot be reached or refuses, or the executor cannot begin.
pub async fn run(context: &Context, args: &ExecutorArgs) -> Outcome {
    match &args.command {
        Command::Register(args) => {
            let common = common(context, args)?;
            let token = common.token.as_ref().ok_or_else(no_registration_token)?;
            register(&common, token).await?;
            context.shell.line(common.id.as_str())?;
            context.shell.note(&format!("its token is kept in {}", Credential::path(&common.data_dir).display()));
            Ok(Exit::Done)
        }
        Command::Start(args) => start(context, args).await,
        Command::Check(args) => check(context, args).await,
    }
}

fn no_registration_token() -> Failure {
    Failure::new(Exit::NotSignedIn, anyhow::Error::msg("no registration token is given"))
        .hint("an admin makes one: octavius tokens create --role registration")
        .hint("give it with --token-file FILE, or - for standard input")
}

/// Registers, and keeps the token.
async fn register(common: &Common, token: &Token) -> Outcome<Credential> {
    if token.kind() != TokenKind::Registration {
        return Err(Failure::new(
            Exit::NotSignedIn,
            anyhow::Error::msg("that is not a registration token: one starts with octr_"),
        )
        .hint("an admin makes one: octavius tokens create --role registration"));
    }
    let Common { controllers, id, data_dir, connect_timeout, .. } = common;
    octavius_executor::register(controllers, token.reveal(), id, data_dir, *connect_timeout).await.map_err(failure)
}

/// An executor's error with its exit.
#[must_use]
pub fn failure(error: ExecutorError) -> Failure {
    match error {
        ExecutorError::Connect(error) => error.into(),
        ExecutorError::Registration { fault, id } => Failure::from(*fault).context(format!("cannot register executor `{id}`")),
        ExecutorError::TokenRefused { .. } => {
            Failure::new(Exit::NotSignedIn, error).hint("octavius executor register --token-file FILE, with a registration token")
        }
        ExecutorError::Credential(_) => Failure::new(Exit::Usage, error),
        ExecutorError::SessionExists { .. } => Failure::new(Exit::Refused, error),
        ExecutorError::Kubernetes { .. } => Failure::new(Exit::Usage, error).hint(
            "`kube_config`: \"out-of-cluster\" takes a kubeconfig; anything else the account of the pod that the executor runs in",
        ),
        ExecutorError::DataDirInUse { .. } | ExecutorError::DataDir { .. } | ExecutorError::NoCapacity => {
            Failure::new(Exit::Usage, error)
        }
    }
}

/// How many executions this machine runs at once where nothing is said.
#[must_use]
pub fn default_capacity() -> u32 {
    std::thread::available_parallelism().map_or(1, |count| u32::try_from(count.get()).unwrap_or(u32::MAX))
}

/// What runs the jobs. A configuration that names a cluster means the runner that it was written for, not this machine.
fn runner(context: &Context, args: &RunnerArgs, settings: &Settings) -> Outcome<RunnerOptions> {
    let named = args.runner.clone().map_or_else(|| settings.text("runner"), |runner| Ok(Some(runner)))?;
    match named.as_deref() {
        Some("process") => Ok(RunnerOptions::Process { shim: this_program()? }),
        None if !kubernetes_options::are_in(settings) => Ok(RunnerOptions::Process { shim: this_program()? }),
        None | Some("kubernetes") => {
            let (options, warnings) = kubernetes_options::read(settings)?;
            for warning in &warnings {
                context.shell.warn(warning);
            }
            Ok(RunnerOptions::Kubernetes(Box::new(options)))
        }
        Some(other) => Err(Failure::usage(format!("runner \"{}\" is not known", crate::sanitize::line(other)))
            .hint("--runner kubernetes, or --runner process")),
    }
}

/// What an executor needs where it runs, as it was found.
#[derive(Debug)]
pub(super) struct Examined {
    pub(super) id: ExecutorId,
    pub(super) data_dir: PathBuf,
    pub(super) runner: &'static str,
    pub(super) writable: std::io::Result<()>,
    /// The token that the registration left.
    pub(super) token: Option<String>,
    pub(super) permissions: Vec<KubernetesPermission>,
    /// What is offered to jobs, and whether it is there.
    found: Vec<FoundOffer>,
}

async fn examine(context: &Context, args: &CheckArgs) -> Outcome<Examined> {
    let own = own(&args.common)?;
    let runner = runner(context, &args.runner, &own.settings)?;
    let offers = args.runner.offers.offers(&own.settings)?;
    let Own { settings: _, id, data_dir } = own;
    let writable = crate::folder::is_writable(&data_dir);
    let credential = if writable.is_ok() { kept(&data_dir, &id)? } else { None };
    let token = credential.map(|credential| credential.token().to_owned());
    let (runner, permissions, found) = match &runner {
        RunnerOptions::Process { .. } => ("process", Vec::new(), check_offers(&id, &offers, &data_dir)),
        RunnerOptions::Kubernetes(options) => {
            let permissions = check_kubernetes(&id, options).await.map_err(failure)?;
            ("kubernetes", permissions, check_kubernetes_offers(&id, options, &offers).await.map_err(failure)?)
        }
    };
    Ok(Examined { id, data_dir, runner, writable, token, permissions, found })
}

/// The flags of `executor check` with this file and the environment.
fn flags_of(config: &Path) -> Outcome<CheckArgs> {
    let flags = crate::cli::by_environment(CheckArgs::augment_args(clap::Command::new("check")));
    let given = [std::ffi::OsStr::new("check"), "--config".as_ref(), config.as_os_str()];
    let matches = flags.try_get_matches_from(given).and_then(|matches| CheckArgs::from_arg_matches(&matches));
    matches.map_err(|error| Failure::usage(error.to_string().trim().to_owned()))
}

/// What an executor of this configuration needs here, as it is found.
///
/// # Errors
/// Where the configuration is wrong, or the cluster does not answer.
pub(super) async fn examined(context: &Context, config: &Path) -> Outcome<Examined> {
    examine(context, &flags_of(config)?).await
}

/// How an executor of this configuration reaches its controllers: their addresses, and the longest wait.
///
/// # Errors
/// Where the configuration is wrong, or names none.
pub(super) fn reached(context: &Context, config: &Path) -> Outcome<(Vec<Address>, Duration)> {
    let Common { controllers, connect_timeout, .. } = common(context, &flags_of(config)?.common)?;
    Ok((controllers, connect_timeout))
}

async fn check(context: &Context, args: &CheckArgs) -> Outcome {
    let Examined { id, data_dir, runner: name, writable, token, permissions, found } = examine(context, args).await?;
    let registered = token.is_some();
    let missing: Vec<_> = permissions.iter().filter(|permission| permission.required && !permission.allowed).collect();
    let value = || {
        json!({
            "id": id,
            "runner": name,
            "data_dir": data_dir.display().to_string(),
            "data_dir_writable": writable.is_ok(),
            "registered": registered,
            "permissions": permissions,
            "secrets": found,
            "ok": writable.is_ok() && missing.is_empty(),
        })
    };
    if !args.output.structured(&context.shell, value)? {
        context.shell.print(&checked(&id, name, &data_dir, registered, &permissions, context.shell.width))?;
        context.shell.print(&secret_options::render(&found, context.shell.width))?;
    }
    if let Err(error) = writable {
        return Err(Failure { exit: Exit::No, ..failure(ExecutorError::DataDir { path: data_dir, source: error }) });
    }
    if !missing.is_empty() {
        let namespaces: BTreeSet<_> = missing.iter().map(|permission| permission.namespace.as_str()).collect();
        let namespaces = namespaces.into_iter().collect::<Vec<_>>().join(", ");
        let message = format!("required rights are missing in the cluster: {} in namespace {namespaces}", missing.len());
        return Err(Failure::new(Exit::No, anyhow::Error::msg(message)).hint("deploy/README.md says how to give them"));
    }
    Ok(Exit::Done)
}

/// What a check has found, for people.
fn checked(
    id: &ExecutorId,
    runner: &str,
    data_dir: &Path,
    registered: bool,
    permissions: &[KubernetesPermission],
    width: Option<u16>,
) -> String {
    let registered = if registered { "yes" } else { "not yet: octavius executor register, or start with a registration token" };
    let facts = [
        ("executor", id.to_string()),
        ("runner", runner.to_owned()),
        ("data folder", data_dir.display().to_string()),
        ("registered", registered.to_owned()),
    ];
    let mut text: String = facts.iter().map(|(name, value)| format!("{name:<11} {}\n", crate::sanitize::line(value))).collect();
    if permissions.is_empty() {
        return text;
    }
    let rows = permissions.iter().map(|permission| {
        let KubernetesPermission { namespace, verb, group, resource, needed_for, required, allowed, reason: _ } = permission;
        let resource = if group.is_empty() { (*resource).to_owned() } else { format!("{resource}.{group}") };
        vec![
            namespace.clone(),
            (*verb).to_owned(),
            resource,
            if *required { "required" } else { "optional" }.to_owned(),
            if *allowed { "yes" } else { "no" }.to_owned(),
            (*needed_for).to_owned(),
        ]
    });
    text.push_str(&table::render(&["NAMESPACE", "VERB", "RESOURCE", "NEEDED", "ALLOWED", "DESCRIPTION"], rows, width));
    text
}

async fn start(context: &Context, args: &StartArgs) -> Outcome {
    let common = common(context, &args.common)?;
    let settings = &common.settings;
    let runner = runner(context, &args.runner, settings)?;
    let secrets = args.runner.offers.offers(settings)?;
    if matches!(runner, RunnerOptions::Process { .. }) {
        crate::daemon::take_huge_pages(true); // its jobs are its children, and may want them
    }
    let mut all_labels: Labels = settings.map("labels")?;
    all_labels.extend(labels::<Labels>(&args.label)?);
    check_labels(&all_labels)?;
    let mut timing = timing()?;
    if let Some(interval) = settings.seconds("ping_interval")? {
        timing.ping_interval = interval;
    }
    let log = LogOptions {
        level: args.log_level.clone().map_or_else(|| settings.text("log_level"), |level| Ok(Some(level)))?,
        format: args.log_format,
        file: settings.path("log_file_path")?,
        max_mib: settings.number("log_file_max_size_in_mb")?.unwrap_or_default(),
    };
    let capacity = args.capacity.map_or_else(|| settings.number("capacity"), |capacity| Ok(Some(capacity)))?;
    let (spool_limit, log_rate) = (spool_limit(args, settings)?, log_rate(args, settings)?);
    let credential = match (&common.token, kept(&common.data_dir, &common.id)?) {
        (Some(token), _) if token.kind() == TokenKind::Executor => Credential::given(token.reveal()),
        (_, Some(stored)) => stored,
        (Some(token), None) => register(&common, token).await?,
        (None, None) => return Err(no_registration_token()),
    };
    start_log(&log, "info")?;
    let export = Export::start(settings.text("otlp_endpoint")?.as_deref(), "octavius-executor")?;
    let options = ExecutorOptions {
        id: common.id,
        controllers: common.controllers,
        credential,
        labels: all_labels,
        capacity: capacity.unwrap_or_else(default_capacity),
        data_dir: common.data_dir,
        runner,
        secrets,
        spool_limit,
        log_rate,
        connect_timeout: common.connect_timeout,
        timing,
    };
    take_turn(&options.data_dir).await?;
    context.shell.announce(&format!("ready: octavius executor {}", options.id));
    let outcome = until_signal(&context.shell, |stop| async {
        octavius_executor::run(options, stop).await.map_err(failure)?;
        Ok(Exit::Done)
    });
    let outcome = outcome.await;
    export.stop().await;
    outcome
}

/// How much output may wait on the disk, in bytes.
fn spool_limit(args: &StartArgs, settings: &Settings) -> Outcome<u64> {
    let limit = match args.spool_limit {
        Some(given) => Some(given),
        None => settings.size("spool_limit")?,
    };
    let least = ByteSize::new(SPOOL_BYTES_MIN);
    match limit {
        None => Ok(SPOOL_BYTES),
        Some(limit) if limit >= least => Ok(limit.get()),
        Some(_) if args.spool_limit.is_some() => Err(Failure::usage(format!("--spool-limit is under {least}"))),
        Some(_) => Err(settings.wrong("spool_limit", &format!("is under {least}"))),
    }
}

/// How many bytes of output are sent in a second, if that is limited.
fn log_rate(args: &StartArgs, settings: &Settings) -> Outcome<Option<u64>> {
    let rate = match args.log_rate {
        Some(given) => Some(given),
        None => settings.size("log_rate")?,
    };
    match rate.map(ByteSize::get) {
        Some(0) if args.log_rate.is_some() => Err(Failure::usage("--log-rate is 0: nothing would ever be sent")),
        Some(0) => Err(settings.wrong("log_rate", "is 0: nothing would ever be sent")),
        rate => Ok(rate),
    }
}

/// Longest wait for another executor that is just ending.
const LOCK_PATIENCE: Duration = Duration::from_secs(1);

/// Sees that no other executor has the data folder, before this one says that it is ready. The executor takes it by itself, and looks again.
async fn take_turn(data_dir: &Path) -> Outcome<()> {
    let begun = std::time::Instant::now();
    loop {
        // what else may be wrong with the folder, the executor tells
        let Ok(file) = std::fs::File::open(data_dir.join("lock")) else { return Ok(()) };
        match file.try_lock() {
            Err(std::fs::TryLockError::WouldBlock) if begun.elapsed() < LOCK_PATIENCE => {
                tokio::time::sleep(Duration::from_millis(20)).await;
            }
            Err(std::fs::TryLockError::WouldBlock) => {
                return Err(failure(ExecutorError::DataDirInUse { path: data_dir.to_owned() }));
            }
            Ok(()) | Err(std::fs::TryLockError::Error(_)) => return Ok(()),
        }
    }
}

/// Refuses labels that a job could not ask for.
///
/// # Errors
/// Names the label.
pub fn check_labels(labels: &Labels) -> Outcome<()> {
    use octavius_core::label::is_valid_part;
    match labels.iter().find(|(key, value)| !is_valid_part(key, true) || !is_valid_part(value, false)) {
        None => Ok(()),
        Some((key, value)) => {
            Err(Failure::usage(format!("label \"{}={}\" cannot be", crate::sanitize::line(key), crate::sanitize::line(value)))
                .hint("1 to 63 characters A-Z a-z 0-9 . _ -, a letter or digit at both ends"))
        }
    }
}
