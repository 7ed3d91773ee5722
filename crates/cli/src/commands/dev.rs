//! `octavius dev`: a controller with the embedded store and an executor with the process runner in one process, on this machine only; with
//! a catalogue, which is applied on every change.

use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::time::Duration;

use clap::Args;
use octavius_catalog::render::render_summary;
use octavius_controller::{Clock, ControllerOptions, OpenCode, PageListen, RequestLimits, Retention};
use octavius_core::limit::SPOOL_BYTES;
use octavius_core::{ExecutorId, Labels, Timing};
use octavius_executor::{Credential, ExecutorError, ExecutorOptions};
use octavius_proto::client::Address;
use octavius_proto::v1;
use tokio_util::sync::CancellationToken;

use super::executor::{check_labels, default_capacity, failure, kept};
use super::list::labels;
use crate::archive_options::LogKeeping;
use crate::config::{ClientFile, Entry, Resolved, create_private_dir, read_token_file, write};
use crate::daemon::{default_data_dir, this_program, timing, until_signal};
use crate::encryption_options::EncryptionChoice;
use crate::error::{Failure, Outcome};
use crate::exit::Exit;
use crate::log::{LogFormat, LogOptions, start_log};
use crate::remote_catalog::{Applied, Wanted, apply_folder};
use crate::session::Session;
use crate::trace::Export;
use crate::watch::watch;
use crate::{Context, config, env};

/// Flags of `octavius dev`.
#[derive(Debug, Args)]
pub struct DevArgs {
    /// Where to listen, on this machine only; port 0 takes a free one
    #[arg(long, value_name = "ADDR", default_value = "127.0.0.1:3000", env = env::LISTEN)]
    listen: SocketAddr,
    /// Where to serve the web page, on this machine only; port 0 takes a free one [default: the port after that of --listen]
    #[arg(long, value_name = "ADDR", env = env::PAGE_LISTEN)]
    page_listen: Option<SocketAddr>,
    /// Folder for everything that is kept [default: a folder under the user's own]
    #[arg(long, value_name = "DIR", env = env::DATA_DIR)]
    data_dir: Option<PathBuf>,
    /// Folder of a catalogue that is applied now and on each change; nothing is ever removed
    #[arg(long, value_name = "DIR", env = env::CATALOG)]
    catalog: Option<PathBuf>,
    /// A label of the executor, for jobs that ask for it; may be repeated
    #[arg(short, long, value_name = "KEY=VALUE", env = env::LABEL)]
    label: Vec<String>,
    /// How many executions run at once [default: the number of processors]
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..=10_000), env = env::CAPACITY)]
    capacity: Option<u32>,
    /// How much is logged: error, warn, info, debug, trace [default: warn]
    #[arg(long, value_name = "LEVEL", env = env::LOG_LEVEL)]
    log_level: Option<String>,
    /// Form of the log [default: text on a terminal, json elsewhere]
    #[arg(long, value_name = "FORMAT", value_enum, env = env::LOG_FORMAT)]
    log_format: Option<LogFormat>,
}

/// The executor's id.
const EXECUTOR: &str = "dev";

/// Longest wait for the controller in this process.
const TIMEOUT: Duration = Duration::from_secs(10);

struct Setup {
    listen: SocketAddr,
    page_listen: SocketAddr,
    data_dir: PathBuf,
    catalog: Option<PathBuf>,
    labels: Labels,
    capacity: u32,
    timing: Timing,
}

/// Runs the command.
///
/// # Errors
/// Where the address is not of this machine, or something cannot begin.
pub async fn run(context: &Context, args: &DevArgs) -> Outcome {
    let beside =
        |listen: SocketAddr| SocketAddr::new(listen.ip(), if listen.port() == 0 { 0 } else { listen.port().wrapping_add(1) });
    let page_listen = args.page_listen.unwrap_or_else(|| beside(args.listen));
    if let Some(open) = [args.listen, page_listen].iter().find(|address| !address.ip().is_loopback()) {
        return Err(Failure::usage(format!("{open} can be reached from other machines"))
            .hint("`dev` listens on this machine only; for others: octavius controller start, octavius executor start"));
    }
    let data_dir = args.data_dir.clone().map_or_else(|| default_data_dir("dev"), Ok)?;
    create_private_dir(&data_dir)?;
    let labels = labels::<Labels>(&args.label)?;
    check_labels(&labels)?;
    if let Some(path) = args.catalog.as_ref().filter(|path| !path.is_dir()) {
        return Err(Failure::usage(format!("no catalogue at {}", path.display())));
    }
    start_log(&LogOptions { level: args.log_level.clone(), format: args.log_format, ..Default::default() }, "warn")?;
    let export = Export::start(None, "octavius-dev")?;
    let setup = Setup {
        listen: args.listen,
        page_listen,
        data_dir: std::path::absolute(&data_dir).unwrap_or(data_dir),
        catalog: args.catalog.clone(),
        labels,
        capacity: args.capacity.unwrap_or_else(default_capacity),
        timing: timing()?,
    };
    let outcome = until_signal(&context.shell, |stop| serve(context, setup, stop)).await;
    export.stop().await;
    outcome
}

async fn serve(context: &Context, setup: Setup, stop: CancellationToken) -> Outcome {
    let store = crate::store_options::open_embedded_in(&setup.data_dir.join("store"))?;
    let logs = LogKeeping::within(&setup.data_dir)?;
    let token_file = setup.data_dir.join("admin.token");
    let code = random_code()?;
    let admins = token_file.clone();
    let open = OpenCode::new(&code, move || read_token_file(&admins).ok());
    let options = ControllerOptions {
        store,
        listen: setup.listen,
        tls: None, // on loopback alone
        bootstrap_token_file: token_file.clone(),
        retention: Retention::default(),
        archive: logs.open()?,
        log_limit: logs.limit,
        audit_export: octavius_controller::AuditExport::default(),
        compact: true,
        strategy: octavius_core::dispatch::Strategy::default(),
        encryption: EncryptionChoice::within(&setup.data_dir).open()?,
        clock: Clock::default(),
        limits: RequestLimits::default(),
        issuers: Vec::new(),
        webhooks: Vec::new(),
        metrics_listen: None,
        page: Some(PageListen { address: setup.page_listen, open: Some(open), url: None, behind_tls: false }),
        timing: setup.timing,
    };
    let controller = super::controller::start(options).await?;
    let address = controller.address();
    if let Some(page) = controller.page_address() {
        context.shell.note(&format!("page, signed in as its admin: http://{page}/open?code={code}"));
    }
    let outcome = serve_beside(context, &setup, address, &token_file, stop).await;
    controller.stop().await;
    outcome
}

/// A code for one life of this process, of 160 random bits: whoever has it is the admin.
fn random_code() -> Outcome<String> {
    let mut random = [0u8; 20];
    getrandom::fill(&mut random)
        .map_err(|error| Failure::fault(format!("the operating system gives no random bytes: {error}")))?;
    Ok(random.iter().map(|byte| format!("{byte:02x}")).collect())
}

/// Everything beside the controller: what the client needs, the executor, the catalogue.
async fn serve_beside(
    context: &Context,
    setup: &Setup,
    address: SocketAddr,
    token_file: &Path,
    stop: CancellationToken,
) -> Outcome {
    let token = read_token_file(token_file).map_err(|failure| {
        failure.hint("its admin's token is gone; choose another --data-dir, or remove this one to begin anew")
    })?;
    let client_file = setup.data_dir.join(config::FILE_NAME);
    let entry = Entry { cp_host: Some(address.to_string()), access_token: Some(token.clone()), ..Default::default() };
    write(&client_file, &ClientFile { top: entry, ..Default::default() })?;
    let addresses = vec![Address::parse(&address.to_string())?];
    let resolved = Resolved {
        addresses: addresses.clone(),
        token: Some(token),
        token_source: None,
        email_id: None,
        timeout: TIMEOUT,
        name: address.to_string(),
        warnings: Vec::new(),
    };
    let session = Session::connect(&context.shell, resolved).await?;
    let id = ExecutorId::new(EXECUTOR).map_err(|error| Failure::new(Exit::Fault, error))?;
    let data_dir = setup.data_dir.join("executor");
    let mut options = ExecutorOptions {
        credential: match kept(&data_dir, &id)? {
            Some(credential) => credential,
            None => register(&session, &addresses, &id, &data_dir).await?,
        },
        id,
        controllers: addresses,
        labels: setup.labels.clone(),
        capacity: setup.capacity,
        data_dir,
        runner: octavius_executor::RunnerOptions::Process { shim: this_program()? },
        // Its jobs are its user's, on its user's machine: they could read all of it by themselves.
        secrets: octavius_executor::SecretOffers::everything(),
        spool_limit: SPOOL_BYTES,
        log_rate: None,
        connect_timeout: TIMEOUT,
        timing: setup.timing,
    };
    let executor = async {
        match octavius_executor::run(options.clone(), stop.clone()).await {
            // the store was removed and the credential was not: as good as new
            Err(ExecutorError::TokenRefused { .. }) => {
                options.credential = register(&session, &options.controllers, &options.id, &options.data_dir).await?;
                octavius_executor::run(options, stop.clone()).await.map_err(failure)
            }
            ended => ended.map_err(failure),
        }
    };
    let ready = || context.shell.announce(&format!("ready: octavius dev on {address}, config {}", client_file.display()));
    let catalog = async {
        match &setup.catalog {
            Some(path) => watch(path)?.each(&context.shell, &stop, async || bring(context, &session, path).await, ready).await?,
            None => {
                ready();
                stop.cancelled().await;
            }
        }
        Ok::<(), Failure>(())
    };
    tokio::try_join!(executor, catalog)?;
    Ok(Exit::Done)
}

async fn register(session: &Session, addresses: &[Address], id: &ExecutorId, data_dir: &Path) -> Outcome<Credential> {
    let request = v1::CreateTokenRequest { role: v1::Role::Registration.into(), user: EXECUTOR.to_owned(), ..Default::default() };
    let made = session.call(async |to| to.admin().create_token(request.clone()).await).await?;
    let own = octavius_executor::register(addresses, &made.token, id, data_dir, TIMEOUT).await.map_err(failure)?;
    let request = v1::RevokeTokenRequest { id: made.id };
    session.call(async |to| to.admin().revoke_token(request.clone()).await).await?;
    Ok(own)
}

/// Applies the catalogue as it is now, and tells what came of it on standard error.
async fn bring(context: &Context, session: &Session, path: &Path) -> Outcome<()> {
    let shell = &context.shell;
    match apply_folder(context, session, path, &Wanted { allow_older: true, require_clean: false }).await? {
        Applied::Revision(plan, revision) => {
            shell.note(&format!("{}: revision {} ({})", plan.catalog, revision, render_summary(&plan.summary)));
        }
        Applied::Unchanged(plan, _) if plan.summary.blocked > 0 => {
            shell.note(&format!("{}: {}; `octavius apply --prune` removes", plan.catalog, render_summary(&plan.summary)));
        }
        Applied::Unchanged(..) => {}
    }
    Ok(())
}
