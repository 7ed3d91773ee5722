//! `octavius executor`: registers, checks and runs an executor.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::time::Duration;

use clap::{Args, Subcommand};
use octavius_core::token::{Token, TokenKind};
use octavius_core::{ExecutorId, Labels};
use octavius_executor::{ExecutorError, ExecutorOptions, KubernetesPermission, RunnerOptions, check_kubernetes};
use octavius_proto::client::Address;
use serde::{Deserialize, Serialize};
use serde_json::json;

use super::list::labels;
use crate::config::{given_token, write_private};
use crate::daemon::{LogOptions, Settings, default_data_dir, start_log, this_program, timing, until_signal};
use crate::error::{Failure, Outcome};
use crate::exit::Exit;
use crate::output::Format;
use crate::{Context, env, kubernetes_options, table};

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
Keys of the configuration file for the kubernetes runner; each has a variable, like OCTAVIUS_KUBE_CONFIG:
  kube_config, kube_context     out-of-cluster takes $KUBECONFIG or ~/.kube/config; anything else the account of its own pod
  default_namespace             where Jobs go that name no namespace; namespaces: others that a job may name
  service_account_name          the account of jobs that name none; service_accounts: others that a job may name
  job_active_deadline_seconds   longest run of any job
  wait_for_resource_poll_count  seconds that a pod may wait for a node, a quota or an image
  log_process_wait_time         seconds that the end of a log is waited for
  job_pod_annotations           annotations of every Job and pod
  job_may_set                   what a job may set for itself: resources, annotations
  secret                        Kubernetes Secret that holds secrets without a `from`
  pod_template                  what every pod is built on: tolerations, pull secrets, a container `job`
  run_as_non_root               refuse images that run as root
  orphan_delay, keep_finished   how long unknown and finished Jobs are kept";

#[derive(Debug, Args)]
struct RunnerArgs {
    /// What it runs jobs with: kubernetes, or process, which runs them on this machine [default: kubernetes where the configuration has
    /// keys for it, otherwise process]
    #[arg(long, value_name = "RUNNER", env = env::RUNNER)]
    runner: Option<String>,
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
    /// How much is logged: error, warn, info, debug, trace
    #[arg(long, value_name = "LEVEL", env = env::LOG_LEVEL)]
    log_level: Option<String>,
}

/// Keys of `executor_config.json` for every runner: the first Octavius', then ours.
const KEYS: [&str; 12] = [
    "id",
    "cp_host",
    "access_token",
    "ping_interval",
    "conn_time_out",
    "log_level",
    "log_file_path",
    "log_file_max_size_in_mb",
    "runner",
    "labels",
    "capacity",
    "data_dir",
];

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

/// What an executor keeps of its registration, readable by its owner alone.
#[derive(Serialize, Deserialize)]
struct Credential {
    format_version: u32,
    id: ExecutorId,
    token: String,
}

const CREDENTIAL_VERSION: u32 = 1;

fn credential_path(data_dir: &Path) -> PathBuf {
    data_dir.join("credential.json")
}

/// The token that the registration left in the data folder.
///
/// # Errors
/// Where the file cannot be understood, is another executor's, or can be read by others.
pub fn stored_token(data_dir: &Path, id: &ExecutorId) -> Outcome<Option<String>> {
    use std::os::unix::fs::PermissionsExt as _;
    let path = credential_path(data_dir);
    let text = match std::fs::read_to_string(&path) {
        Ok(text) => text,
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(None),
        Err(error) => return Err(Failure::file("read", &path, error)),
    };
    let mode = std::fs::metadata(&path).map_err(|error| Failure::file("read", &path, error))?.permissions().mode();
    if mode & 0o077 != 0 {
        return Err(Failure::usage(format!("{} can be read by others (mode {:03o})", path.display(), mode & 0o777))
            .hint(format!("chmod 600 {}", path.display())));
    }
    let credential: Credential = serde_json::from_str(&text).map_err(|_| {
        Failure::usage(format!("{} is not an executor's credential", path.display())).hint("remove it and register again")
    })?;
    if credential.format_version > CREDENTIAL_VERSION {
        return Err(Failure::usage(format!(
            "{} has format version {}, this version reads up to {CREDENTIAL_VERSION}",
            path.display(),
            credential.format_version
        )));
    }
    if credential.id != *id {
        return Err(Failure::usage(format!("{} belongs to executor `{}`, not to `{id}`", path.display(), credential.id))
            .hint("give each executor a folder of its own with --data-dir"));
    }
    Ok(Some(credential.token))
}

/// Keeps the token of a registration.
///
/// # Errors
/// Where it cannot be written.
pub fn store_token(data_dir: &Path, id: &ExecutorId, token: &str) -> Outcome<()> {
    let credential = Credential { format_version: CREDENTIAL_VERSION, id: id.clone(), token: token.to_owned() };
    let text = serde_json::to_vec_pretty(&credential).map_err(|error| Failure::fault(error.to_string()))?;
    write_private(&credential_path(data_dir), &text)
}

fn own(args: &CommonArgs) -> Outcome<Own> {
    let keys: Vec<&str> = KEYS.into_iter().chain(kubernetes_options::KEYS.map(|(key, _)| key)).collect();
    let settings = Settings::read(args.config.as_deref(), "executor_config.json", &keys)?;
    let settings = settings.with_variables(&kubernetes_options::KEYS);
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
    Ok(Common { controllers: Address::parse_list(&host)?, settings, id, token, data_dir, connect_timeout })
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
            context.shell.note(&format!("its token is kept in {}", credential_path(&common.data_dir).display()));
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
async fn register(common: &Common, token: &Token) -> Outcome<String> {
    if token.kind() != TokenKind::Registration {
        return Err(Failure::new(
            Exit::NotSignedIn,
            anyhow::Error::msg("that is not a registration token: one starts with octr_"),
        )
        .hint("an admin makes one: octavius tokens create --role registration"));
    }
    let own = octavius_executor::register(&common.controllers, token.reveal(), &common.id, common.connect_timeout).await;
    let own = own.map_err(failure)?;
    store_token(&common.data_dir, &common.id, &own)?;
    Ok(own)
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

async fn check(context: &Context, args: &CheckArgs) -> Outcome {
    let own = own(&args.common)?;
    let runner = runner(context, &args.runner, &own.settings)?;
    let Own { settings: _, id, data_dir } = own;
    let writable = is_writable(&data_dir);
    let registered = writable.is_ok() && stored_token(&data_dir, &id)?.is_some();
    let (name, permissions) = match &runner {
        RunnerOptions::Process { .. } => ("process", Vec::new()),
        RunnerOptions::Kubernetes(options) => ("kubernetes", check_kubernetes(&id, options).await.map_err(failure)?),
    };
    let missing: Vec<_> = permissions.iter().filter(|permission| permission.required && !permission.allowed).collect();
    let value = || {
        json!({
            "id": id,
            "runner": name,
            "data_dir": data_dir.display().to_string(),
            "data_dir_writable": writable.is_ok(),
            "registered": registered,
            "permissions": permissions,
            "ok": writable.is_ok() && missing.is_empty(),
        })
    };
    if !args.output.structured(&context.shell, value)? {
        context.shell.print(&checked(&id, name, &data_dir, registered, &permissions, context.shell.width))?;
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

/// Whether files can be written into a folder, or into what it would be made in. Leaves nothing behind.
fn is_writable(folder: &Path) -> std::io::Result<()> {
    let there = folder.ancestors().find(|path| path.exists()).filter(|path| !path.as_os_str().is_empty());
    tempfile::tempfile_in(there.unwrap_or(Path::new("."))).map(drop)
}

async fn start(context: &Context, args: &StartArgs) -> Outcome {
    let common = common(context, &args.common)?;
    let settings = &common.settings;
    let runner = runner(context, &args.runner, settings)?;
    let mut all_labels: Labels = settings.map("labels")?;
    all_labels.extend(labels::<Labels>(&args.label)?);
    check_labels(&all_labels)?;
    let mut timing = timing()?;
    if let Some(interval) = settings.seconds("ping_interval")? {
        timing.ping_interval = interval;
    }
    let log = LogOptions {
        level: args.log_level.clone().map_or_else(|| settings.text("log_level"), |level| Ok(Some(level)))?,
        file: settings.path("log_file_path")?,
        max_mib: settings.number("log_file_max_size_in_mb")?.unwrap_or_default(),
    };
    let capacity = args.capacity.map_or_else(|| settings.number("capacity"), |capacity| Ok(Some(capacity)))?;
    let token = match (&common.token, stored_token(&common.data_dir, &common.id)?) {
        (Some(token), _) if token.kind() == TokenKind::Executor => token.reveal().to_owned(),
        (_, Some(stored)) => stored,
        (Some(token), None) => register(&common, token).await?,
        (None, None) => return Err(no_registration_token()),
    };
    start_log(&log, "info")?;
    let options = ExecutorOptions {
        id: common.id,
        controllers: common.controllers,
        token,
        labels: all_labels,
        capacity: capacity.unwrap_or_else(default_capacity),
        data_dir: common.data_dir,
        runner,
        connect_timeout: common.connect_timeout,
        timing,
    };
    take_turn(&options.data_dir).await?;
    context.shell.announce(&format!("ready: octavius executor {}", options.id));
    until_signal(&context.shell, |stop| async {
        octavius_executor::run(options, stop).await.map_err(failure)?;
        Ok(Exit::Done)
    })
    .await
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
