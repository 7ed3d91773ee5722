//! `octavius backup`: everything that the controller's store holds, in one file that has been read back; `octavius restore`: such a file into
//! an empty store, without a controller.

use std::fs::File;
use std::io::{self, IsTerminal as _, Read, Seek as _, SeekFrom, Write as _};
use std::path::{Path, PathBuf};

use clap::Args;
use octavius_controller::used_keys;
use octavius_proto::v1;
use octavius_store::StoreError;
use octavius_store::backup::{self, BackupError, Summary};
use serde_json::{Value, json};

use crate::error::{Failure, Outcome};
use crate::exit::Exit;
use crate::output::Format;
use crate::session::{Session, Tries};
use crate::store_options::{self, StoreArgs};
use crate::{Context, env};

/// Flags of `octavius backup`.
#[derive(Debug, Args)]
pub struct BackupArgs {
    /// The file, or - for standard output; one that is there is replaced when the new one is whole
    #[arg(value_name = "FILE")]
    file: PathBuf,
    /// Form of the output
    #[arg(short, long, value_parser = Format::among(&["text", "json", "yaml"]), default_value = "text", env = env::OUTPUT)]
    output: Format,
}

/// Flags of `octavius restore`.
#[derive(Debug, Args)]
pub struct RestoreArgs {
    /// A file that `octavius backup` wrote, or - for standard input
    #[arg(value_name = "FILE")]
    file: PathBuf,
    #[command(flatten)]
    store: StoreArgs,
    /// Form of the output
    #[arg(short, long, value_parser = Format::among(&["text", "json", "yaml"]), default_value = "text", env = env::OUTPUT, help_heading = "Options")]
    output: Format,
}

/// What is said to whoever makes a backup.
const SECRET: &str = "the backup holds the hashes of all tokens and the arguments of all executions, sensitive ones encrypted: keep it like a \
                      secret, and apart from the controllers' encryption keys, which are not in it";

/// Where a backup goes: its place is looked at before anything is asked of a controller.
enum Target {
    Stdout,
    /// A file that is not there yet, or a regular one; never a link.
    File(PathBuf),
}

impl Target {
    fn of(path: &Path) -> Outcome<Self> {
        if path == Path::new("-") {
            return Ok(Self::Stdout);
        }
        let shown = path.display();
        let wrong =
            |what: &str| Err(Failure::usage(format!("{shown} {what}")).hint("name a file; `-` writes to standard output"));
        match path.metadata() {
            Ok(found) if found.is_dir() => wrong("is a folder"),
            Ok(found) if !found.is_file() => wrong("is not a regular file, and would be replaced by one"),
            Ok(_) => Ok(Self::File(path.canonicalize().map_err(|error| Failure::file("write", path, error))?)),
            Err(error) if error.kind() != io::ErrorKind::NotFound => Err(Failure::file("write", path, error)),
            Err(_) if path.symlink_metadata().is_ok() => wrong("is a link that leads nowhere"),
            Err(_) if path.file_name().is_none() => wrong("is no file's name"),
            Err(_) if !folder_of(path).is_dir() => wrong("cannot be written: its folder is not there"),
            Err(_) => Ok(Self::File(path.to_owned())),
        }
    }
}

fn folder_of(path: &Path) -> &Path {
    path.parent().filter(|folder| !folder.as_os_str().is_empty()).unwrap_or(Path::new("."))
}

/// Writes a file beside `target`, for its owner alone, and puts it in its place when it is whole: once this returns, it survives a crash of
/// the machine. Before that nothing is changed, and nothing stays behind.
async fn replace(target: &Path, shown: &Path, session: &Session) -> Outcome<Summary> {
    let folder = folder_of(target);
    let broken = |error| Failure::file("write", shown, error);
    let mut part = tempfile::Builder::new().prefix(".octavius-backup-").tempfile_in(folder).map_err(broken)?;
    let summary = fetch(session, part.as_file_mut()).await.map_err(|failure| failure.at(shown))?;
    part.as_file().sync_all().map_err(broken)?;
    part.persist(target).map_err(|failed| broken(failed.error))?;
    File::open(folder).and_then(|folder| folder.sync_all()).map_err(broken)?;
    Ok(summary)
}

/// Does the work until a signal stops it; what it holds is then cleared away.
async fn unless_stopped<T>(work: impl Future<Output = Outcome<T>>) -> Outcome<T> {
    use tokio::signal::unix::{SignalKind, signal};
    let listen = |kind| {
        signal(kind).map_err(|error| Failure::new(Exit::Fault, anyhow::Error::new(error).context("cannot listen for signals")))
    };
    let (mut interrupt, mut terminate, mut hang_up) =
        (listen(SignalKind::interrupt())?, listen(SignalKind::terminate())?, listen(SignalKind::hangup())?);
    tokio::select! {
        done = work => done,
        _ = interrupt.recv() => Err(Failure::quiet(Exit::Interrupted)),
        _ = terminate.recv() => Err(Failure::quiet(Exit::Interrupted)),
        _ = hang_up.recv() => Err(Failure::quiet(Exit::Interrupted)),
    }
}

/// Runs `octavius backup`.
///
/// # Errors
/// Where the controller cannot be reached or refuses, the file cannot be written, or what came is not whole.
pub async fn run(context: &Context, args: &BackupArgs) -> Outcome {
    let shell = &context.shell;
    let target = Target::of(&args.file)?;
    let Target::File(file) = &target else { return to_stdout(context, args).await };
    let session = Session::open(context).await?;
    let summary = unless_stopped(replace(file, &args.file, &session)).await?;
    shell.warn(SECRET);
    if !args.output.structured(shell, || to_json(&args.file, &summary))? {
        shell.line(&format!("{}: {}", args.file.display(), sentence(&summary)))?;
    }
    Ok(Exit::Done)
}

async fn to_stdout(context: &Context, args: &BackupArgs) -> Outcome {
    let shell = &context.shell;
    if args.output != Format::Text && !env::is_set(env::OUTPUT) {
        return Err(Failure::usage("standard output takes the backup, so there is no other form of the output"));
    }
    if shell.stdout_is_terminal {
        return Err(Failure::usage("a backup is not for a terminal").hint("octavius backup FILE, or redirect standard output"));
    }
    let session = Session::open(context).await?;
    // it is read back before anyone takes it for one
    let mut file = temporary()?;
    let summary = fetch(&session, &mut file).await.map_err(|failure| failure.at(&std::env::temp_dir()))?;
    copy_out(context, &mut file)?;
    shell.warn(SECRET);
    shell.note(&sentence(&summary));
    Ok(Exit::Done)
}

/// A file without a name, which is gone with the process.
fn temporary() -> Outcome<File> {
    tempfile::tempfile().map_err(|error| Failure::file("write in", &std::env::temp_dir(), error))
}

/// Why a backup did not come.
enum Trouble {
    Told(Failure),
    Written(io::Error),
}

impl Trouble {
    fn at(self, path: &Path) -> Failure {
        match self {
            Self::Told(failure) => failure,
            Self::Written(error) => Failure::file("write", path, error),
        }
    }
}

impl From<Failure> for Trouble {
    fn from(failure: Failure) -> Self {
        Self::Told(failure)
    }
}

/// Brings a backup into a file, from its beginning again where the controller is gone in the middle, and reads it back.
async fn fetch(session: &Session, file: &mut File) -> Result<Summary, Trouble> {
    let mut tries = Tries::new(session, session.timeout());
    loop {
        file.set_len(0).and_then(|()| file.rewind()).map_err(Trouble::Written)?;
        match fetch_once(session, &mut tries, file).await {
            Ok(()) => return backup::verify(file).map_err(|error| Trouble::Told(failure(error, Exit::Fault))),
            Err(Trouble::Told(failure)) => {
                if file.stream_position().is_ok_and(|written| written > 0) {
                    tries.renew();
                }
                tries.recover(failure).await?;
            }
            Err(trouble) => return Err(trouble),
        }
    }
}

async fn fetch_once(session: &Session, tries: &mut Tries<'_>, file: &mut File) -> Result<(), Trouble> {
    let mut stream = tries.once(&async |to| to.admin().backup(v1::BackupRequest {}).await).await?;
    while let Some(message) = session.message(&mut stream).await? {
        file.write_all(&message.data).map_err(Trouble::Written)?;
    }
    Ok(())
}

fn copy_out(context: &Context, file: &mut File) -> Outcome<()> {
    let broken = |error| Failure::file("read in", &std::env::temp_dir(), error);
    file.seek(SeekFrom::Start(0)).map_err(broken)?;
    let mut buffer = vec![0; 64 * 1024];
    loop {
        let count = file.read(&mut buffer).map_err(broken)?;
        if count == 0 {
            break;
        }
        context.shell.bytes(buffer.get(..count).unwrap_or_default())?;
    }
    if context.shell.is_closed() {
        return Err(Failure::new(
            Exit::Usage,
            anyhow::Error::msg("standard output was closed before all of the backup was taken"),
        ));
    }
    Ok(())
}

/// The file of a restore, to be read more than once: what can be read once alone, like a pipe, is taken down first.
fn source(path: &Path) -> Outcome<File> {
    let unreadable = |error| Failure::file("read", path, error);
    let taken_down = |from: &mut dyn Read| {
        let mut file = temporary()?;
        io::copy(from, &mut file).map_err(unreadable)?;
        Ok(file)
    };
    if path == Path::new("-") {
        if io::stdin().is_terminal() {
            return Err(Failure::usage("a backup does not come from a terminal")
                .hint("octavius restore FILE, or redirect standard input"));
        }
        return taken_down(&mut io::stdin().lock());
    }
    let mut file = File::open(path).map_err(unreadable)?;
    let kind = file.metadata().map_err(unreadable)?.file_type();
    if kind.is_dir() {
        return Err(Failure::usage(format!("{} is a folder", path.display())).hint("name the file that `octavius backup` wrote"));
    }
    if kind.is_file() { Ok(file) } else { taken_down(&mut file) }
}

/// Runs `octavius restore`.
///
/// # Errors
/// Where the file is no backup that this version reads, the store is not empty, or cannot be used.
pub async fn restore(context: &Context, args: &RestoreArgs) -> Outcome {
    let settings = args.store.settings()?;
    let choice = args.store.choice(&settings)?;
    let mut file = source(&args.file)?;
    let (place, flags) = (format!("{choice:?}"), choice.flags());
    let shown = if args.file == Path::new("-") { "standard input".to_owned() } else { args.file.display().to_string() };
    // a file that is none leaves no store behind
    let named = |failure: Failure| failure.context(format!("cannot restore {shown}"));
    backup::verify(&mut file).map_err(|error| named(failure(error, Exit::Usage)))?;
    let store = store_options::open(choice).await?;
    let restored = backup::restore(&*store, &mut file).await;
    let summary = restored.map_err(|error| match error {
        BackupError::NotEmpty(_) => Failure::refused(format!("the store is not empty, nothing was written: {place}"))
            .hint("an empty one is a folder that is not there yet, or another --etcd-prefix"),
        restored @ BackupError::Restored(_) => {
            named(failure(restored, Exit::Usage)).hint(format!("`octavius controller start {flags}`"))
        }
        other => named(failure(other, Exit::Usage)),
    })?;
    if !args.output.structured(&context.shell, || to_json(&args.file, &summary))? {
        context.shell.line(&format!("restored into {place}: {}", sentence(&summary)))?;
    }
    context.shell.note("the tokens of that time are good again");
    for key in used_keys(&*store).await.map_err(|error| failure(BackupError::Store(error), Exit::Fault))? {
        let (id, executions) = (key.id, key.executions);
        context.shell.warn(&format!(
            "sensitive arguments of {executions} executions are encrypted with key {id}: a controller needs its file, encryption_key_files, \
             to hand them out or run them again"
        ));
    }
    context.shell.hint(&format!("a controller may start on it: `octavius controller start {flags}`"));
    Ok(Exit::Done)
}

/// A backup's error with its exit; `damaged` is the exit where the file is not whole.
fn failure(error: BackupError, damaged: Exit) -> Failure {
    use BackupError as E;
    let exit = match &error {
        E::Store(StoreError::Unavailable(_) | StoreError::Unknown(_)) => Exit::Unreachable,
        E::Store(_) => Exit::Fault,
        E::File(_) | E::Newer(_) => Exit::Usage,
        E::Foreign | E::CutShort(_) | E::Damaged { .. } => damaged,
        E::Overtaken { .. } | E::Unused | E::NotEmpty(_) | E::Restored(_) | E::Other(_) | E::Contended => Exit::Refused,
    };
    let again = matches!(error, E::Store(_));
    let failure = Failure::new(exit, error);
    if again { failure.hint("it is safe to run the same command again") } else { failure }
}

fn sentence(summary: &Summary) -> String {
    let header = &summary.header;
    format!(
        "revision {} of {}, made {:.0}: {} keys, {} bytes",
        header.revision,
        crate::sanitize::line(&header.controller_id),
        header.created_at,
        summary.entries,
        summary.bytes
    )
}

fn to_json(file: &Path, summary: &Summary) -> Value {
    json!({
        "file": file.display().to_string(),
        "controller_id": summary.header.controller_id,
        "revision": summary.header.revision,
        "created_at": summary.header.created_at.to_string(),
        "keys": summary.entries,
        "bytes": summary.bytes,
    })
}
