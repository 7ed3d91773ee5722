//! `octavius dev`: a controller with the embedded store and an executor with the process runner in one process, on this machine only; with
//! a catalogue, which is applied on every change.

use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::time::Duration;

use clap::Args;
use notify_debouncer_full::notify::{self, RecommendedWatcher, RecursiveMode};
use notify_debouncer_full::{DebounceEventResult, Debouncer, RecommendedCache, new_debouncer};
use octavius_catalog::render::render_summary;
use octavius_controller::{ControllerOptions, Retention};
use octavius_core::{ExecutorId, Labels, Timing};
use octavius_executor::{ExecutorError, ExecutorOptions};
use octavius_proto::client::Address;
use octavius_proto::v1;
use tokio::sync::mpsc;
use tokio_util::sync::CancellationToken;

use super::executor::{check_labels, default_capacity, failure, store_token, stored_token};
use super::list::labels;
use crate::config::{ClientFile, Entry, Resolved, create_private_dir, read_token_file, write};
use crate::daemon::{LogOptions, default_data_dir, start_log, this_program, timing, until_signal};
use crate::error::{Failure, Outcome};
use crate::exit::Exit;
use crate::output::Shell;
use crate::remote_catalog::{Applied, apply_folder};
use crate::session::Session;
use crate::{Context, config, env};

/// Flags of `octavius dev`.
#[derive(Debug, Args)]
pub struct DevArgs {
    /// Where to listen, on this machine only; port 0 takes a free one
    #[arg(long, value_name = "ADDR", default_value = "127.0.0.1:3000", env = env::LISTEN)]
    listen: SocketAddr,
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
}

/// The executor's id.
const EXECUTOR: &str = "dev";

/// How long files have to be quiet before a change counts.
const SETTLE: Duration = Duration::from_millis(150);

/// Longest wait for the controller in this process.
const TIMEOUT: Duration = Duration::from_secs(10);

struct Setup {
    listen: SocketAddr,
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
    if !args.listen.ip().is_loopback() {
        return Err(Failure::usage(format!("{} can be reached from other machines", args.listen))
            .hint("`dev` listens on this machine only; for others: octavius controller start, octavius executor start"));
    }
    let data_dir = args.data_dir.clone().map_or_else(|| default_data_dir("dev"), Ok)?;
    create_private_dir(&data_dir)?;
    let labels = labels::<Labels>(&args.label)?;
    check_labels(&labels)?;
    if let Some(path) = args.catalog.as_ref().filter(|path| !path.is_dir()) {
        return Err(Failure::usage(format!("no catalogue at {}", path.display())));
    }
    start_log(&LogOptions { level: args.log_level.clone(), ..Default::default() }, "warn")?;
    let setup = Setup {
        listen: args.listen,
        data_dir: std::path::absolute(&data_dir).unwrap_or(data_dir),
        catalog: args.catalog.clone(),
        labels,
        capacity: args.capacity.unwrap_or_else(default_capacity),
        timing: timing()?,
    };
    until_signal(&context.shell, |stop| serve(context, setup, stop)).await
}

async fn serve(context: &Context, setup: Setup, stop: CancellationToken) -> Outcome {
    let store = crate::store_options::open_embedded_in(&setup.data_dir.join("store"))?;
    let token_file = setup.data_dir.join("admin.token");
    let options = ControllerOptions {
        store,
        listen: setup.listen,
        bootstrap_token_file: token_file.clone(),
        retention: Retention::default(),
        compact: true,
        timing: setup.timing,
    };
    let controller = super::controller::start(options).await?;
    let address = controller.address();
    let outcome = serve_beside(context, &setup, address, &token_file, stop).await;
    controller.stop().await;
    outcome
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
        token: match stored_token(&data_dir, &id)? {
            Some(token) => token,
            None => register(&session, &addresses, &id, &data_dir).await?,
        },
        id,
        controllers: addresses,
        labels: setup.labels.clone(),
        capacity: setup.capacity,
        data_dir,
        runner: octavius_executor::RunnerOptions::Process { shim: this_program()? },
        connect_timeout: TIMEOUT,
        timing: setup.timing,
    };
    let executor = async {
        match octavius_executor::run(options.clone(), stop.clone()).await {
            // the store was removed and the credential was not: as good as new
            Err(ExecutorError::TokenRefused { .. }) => {
                options.token = register(&session, &options.controllers, &options.id, &options.data_dir).await?;
                octavius_executor::run(options, stop.clone()).await.map_err(failure)
            }
            ended => ended.map_err(failure),
        }
    };
    let catalog = async {
        let changes = setup.catalog.as_ref().map(|path| watch(path)).transpose()?;
        if let Some(path) = &setup.catalog {
            bring(context, &session, path).await;
        }
        context.shell.announce(&format!("ready: octavius dev on {address}, config {}", client_file.display()));
        match (changes, &setup.catalog) {
            (Some(changes), Some(path)) => follow(context, &session, path, changes, stop.clone()).await,
            _ => stop.cancelled().await,
        }
        Ok::<(), Failure>(())
    };
    tokio::try_join!(executor, catalog)?;
    Ok(Exit::Done)
}

async fn register(session: &Session, addresses: &[Address], id: &ExecutorId, data_dir: &Path) -> Outcome<String> {
    let request = v1::CreateTokenRequest { role: v1::Role::Registration.into(), user: EXECUTOR.to_owned(), ..Default::default() };
    let made = session.call(async |to| to.admin().create_token(request.clone()).await).await?;
    let own = octavius_executor::register(addresses, &made.token, id, TIMEOUT).await.map_err(failure)?;
    store_token(data_dir, id, &own)?;
    let request = v1::RevokeTokenRequest { id: made.id };
    session.call(async |to| to.admin().revoke_token(request.clone()).await).await?;
    Ok(own)
}

/// Applies the catalogue as it is now, and tells what came of it on standard error.
async fn bring(context: &Context, session: &Session, path: &Path) {
    let shell = &context.shell;
    match apply_folder(context, session, path).await {
        Ok(Applied::Revision(plan, revision)) => {
            shell.note(&format!("{}: revision {} ({})", plan.catalog, revision, render_summary(&plan.summary).trim_end()));
        }
        Ok(Applied::Unchanged(plan, _)) if plan.summary.blocked > 0 => {
            shell.note(&format!(
                "{}: {}; `octavius apply --prune` removes",
                plan.catalog,
                render_summary(&plan.summary).trim_end()
            ));
        }
        Ok(Applied::Unchanged(..)) => {}
        Err(failure) => shell.failure(&failure),
    }
}

/// A watch on a folder: a message for each time that it has settled after a change. The folder above is watched too, so that one that is
/// replaced is found again.
struct Watch {
    path: PathBuf,
    settled: mpsc::Receiver<()>,
    debouncer: Debouncer<RecommendedWatcher, RecommendedCache>,
    /// The folder that is watched: a path may come to mean another one. None while there is none.
    armed: Option<(u64, u64)>,
}

/// Which folder is at a path.
fn identity(path: &Path) -> Option<(u64, u64)> {
    use std::os::unix::fs::MetadataExt as _;
    std::fs::metadata(path).ok().filter(std::fs::Metadata::is_dir).map(|folder| (folder.dev(), folder.ino()))
}

fn watch(path: &Path) -> Outcome<Watch> {
    let path = std::path::absolute(path).unwrap_or_else(|_| path.to_owned());
    // one place: what happens while an apply is under way counts once
    let (sender, settled) = mpsc::channel(1);
    let ours = path.clone();
    let heard = move |events: DebounceEventResult| {
        let matters = match &events {
            // what happens beside the catalogue is nothing to it
            Ok(events) => {
                events.iter().any(|event| !event.kind.is_access() && event.paths.iter().any(|path| path.starts_with(&ours)))
            }
            Err(_) => true,
        };
        if matters {
            let _ = sender.try_send(()); // full: a message is waiting already
        }
    };
    let broken = |error: notify::Error| {
        Failure::new(Exit::Usage, anyhow::Error::new(error).context(format!("cannot watch {}", path.display())))
    };
    let mut debouncer = new_debouncer(SETTLE, None, heard).map_err(broken)?;
    // where the folder above cannot be watched, the catalogue itself can be all the same
    if let (Some(parent), Some(_)) = (path.parent(), path.file_name())
        && let Err(error) = debouncer.watch(parent, RecursiveMode::NonRecursive)
    {
        tracing::warn!(%error, "cannot watch {}: a catalogue that is replaced is not found again", parent.display());
    }
    debouncer.watch(&path, RecursiveMode::Recursive).map_err(broken)?;
    Ok(Watch { armed: identity(&path), path, settled, debouncer })
}

impl Watch {
    /// After a change: watches the folder that is there now. Says whether there is one.
    fn rearm(&mut self, shell: &Shell) -> bool {
        let now = identity(&self.path);
        if now == self.armed {
            return now.is_some();
        }
        let before = std::mem::replace(&mut self.armed, now);
        let _ = self.debouncer.unwatch(&self.path); // a watch that ended with its folder
        if now.is_none() {
            shell.warn(&format!("{} is gone; applied again when it is back", self.path.display()));
        } else if let Err(error) = self.debouncer.watch(&self.path, RecursiveMode::Recursive) {
            shell.warn(&format!("cannot watch {} any more: {error}", self.path.display()));
        } else if before.is_none() {
            shell.note(&format!("{} is back", self.path.display()));
        }
        now.is_some()
    }
}

async fn follow(context: &Context, session: &Session, path: &Path, mut watch: Watch, stop: CancellationToken) {
    loop {
        tokio::select! {
            () = stop.cancelled() => return,
            heard = watch.settled.recv() => if heard.is_none() { return },
        }
        if !watch.rearm(&context.shell) {
            continue;
        }
        tokio::select! {
            () = stop.cancelled() => return,
            () = bring(context, session, path) => {}
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_folder_that_is_replaced_is_watched_on() {
        let above = tempfile::tempdir().unwrap();
        let path = above.path().join("catalog");
        std::fs::create_dir(&path).unwrap();
        let shell = Shell::new(true);
        let mut watch = watch(&path).unwrap();
        let settled = async |watch: &mut Watch| {
            tokio::time::timeout(Duration::from_secs(10), watch.settled.recv()).await.expect("a change was not heard").unwrap();
        };
        std::fs::rename(&path, above.path().join("old")).unwrap();
        settled(&mut watch).await;
        assert!(!watch.rearm(&shell));
        std::fs::create_dir(&path).unwrap();
        settled(&mut watch).await;
        assert!(watch.rearm(&shell));
        while tokio::time::timeout(2 * SETTLE, watch.settled.recv()).await.is_ok() {}
        std::fs::write(path.join("a.yaml"), "a").unwrap();
        settled(&mut watch).await;
        // what lies beside it is not heard
        while tokio::time::timeout(2 * SETTLE, watch.settled.recv()).await.is_ok() {}
        std::fs::write(above.path().join("beside"), "a").unwrap();
        assert!(tokio::time::timeout(3 * SETTLE, watch.settled.recv()).await.is_err());
    }
}
