//! The one binary of Octavius: arguments, rendering, `dev` and `demo`. Each command has its module in [`commands`]; what they share is here:
//! configuration ([`config`]), connections ([`session`]), output ([`output`]), errors and exit codes ([`error`], [`exit`]).

pub mod approvals;
pub mod archive_options;
pub mod arguments;
pub mod catalog_args;
pub mod cli;
pub mod client_tls;
pub mod commands;
pub mod complete;
pub mod config;
pub mod daemon;
pub mod encryption_options;
pub mod env;
pub mod error;
pub mod execution;
pub mod exit;
pub mod folder;
pub mod issuer_options;
pub mod kubernetes_options;
pub mod lineage;
pub mod listen_options;
pub mod log;
pub mod notes;
pub mod output;
pub mod prompt;
pub mod reading;
pub mod remote_catalog;
pub mod sanitize;
pub mod schedule;
pub mod secret_options;
pub mod session;
pub mod stamps;
pub mod store_options;
pub mod table;
pub mod token_from;
pub mod trace;
pub mod upload;
pub mod wait;
pub mod waiting;
pub mod watch;
pub mod webhook_options;

use std::process::ExitCode;

use clap::FromArgMatches as _;

use crate::cli::{Cli, Command, ConnectArgs};
use crate::error::{Failure, Outcome};
use crate::exit::Exit;
use crate::output::Shell;
use crate::trace::traced;

/// Most threads of an executor that do its work.
const EXECUTOR_WORKERS: usize = 4;

/// Most threads of an executor that wait for its disk, or for a name to be looked up. Of the runtime's own 512, a burst of assignments would
/// start one for each.
const EXECUTOR_BLOCKING: usize = 16;

/// What every command gets.
#[derive(Debug, Clone)]
pub struct Context {
    /// The streams.
    pub shell: Shell,
    /// The flags that say how to reach a controller.
    pub connect: ConnectArgs,
}

/// Runs the command line of this process.
#[must_use]
pub fn main() -> ExitCode {
    // Before much is allocated, since what is there stays as it is. That a job is called so as well does no harm.
    if std::env::args_os().any(|argument| argument == "executor") {
        daemon::take_huge_pages(false);
    }
    if let Some(answered) = complete::answer(std::env::args_os()) {
        return answered;
    }
    let parsed = match std::env::args_os().len() {
        0 | 1 => cli::parser().try_get_matches_from(["octavius", "-h"]),
        _ => cli::parser().try_get_matches(),
    };
    let cli = match parsed.and_then(|matches| Cli::from_arg_matches(&matches)) {
        Ok(cli) => cli,
        Err(error) => {
            let code = error.exit_code();
            let _ = error.print(); // where the stream is closed there is nobody to tell
            return ExitCode::from(u8::try_from(code).unwrap_or(Exit::Usage.code()));
        }
    };
    let shell = Shell::new(cli.connect.no_input || env::is_true(env::NO_INPUT));
    let context = Context { shell, connect: cli.connect };
    let exit = match dispatch(&context, cli.command) {
        Ok(exit) => exit,
        Err(failure) => {
            context.shell.failure(&failure);
            failure.exit
        }
    };
    exit.into()
}

fn dispatch(context: &Context, command: Command) -> Outcome {
    use commands as c;
    octavius_failpoint::arm().map_err(|wrong| Failure::new(Exit::Usage, wrong))?;
    match command {
        // offline
        Command::Validate(args) => client(c::validate::run(context, &args)),
        Command::Init(args) => c::init::run(context, &args),
        Command::Schema(args) => c::schema::run(context, &args),
        Command::Config(args) => c::config::run(context, &args),
        Command::Tls(args) => c::tls::run(context, &args),
        Command::Completion(args) => c::completion::run(context, &args),
        Command::Man(args) => c::man::run(context, &args),
        // clients
        Command::Diff(args) => client(c::diff::run(context, &args)),
        Command::Apply(args) => client(traced(&context.shell, "octavius apply", c::apply::run(context, &args))),
        Command::History(args) => client(c::history::run(context, &args)),
        Command::Rollback(args) => client(c::rollback::run(context, &args)),
        Command::Unfreeze(args) => client(c::unfreeze::run(context, &args)),
        Command::Export(args) => client(c::export::run(context, &args)),
        Command::Create(args) => client(c::create::run(context, &args)),
        Command::Delete(args) => client(c::create::delete(context, &args)),
        Command::List(args) => client(c::list::run(context, &args)),
        Command::Describe(args) => client(c::describe::run(context, &args)),
        Command::Execute(args) => client(traced(&context.shell, "octavius execute", c::execute::run(context, &args))),
        Command::Rerun(args) => client(traced(&context.shell, "octavius rerun", c::execute::rerun(context, &args))),
        Command::Executions(args) => client(c::executions::run(context, &args)),
        Command::Status(args) => client(c::status::run(context, &args)),
        Command::Getlogs(args) => client(c::getlogs::run(context, &args)),
        Command::Cancel(args) => client(c::cancel::run(context, &args)),
        Command::Approve(args) => client(c::approve::approve(context, &args)),
        Command::Reject(args) => client(c::approve::reject(context, &args)),
        Command::Executors(args) => client(c::executors::run(context, &args)),
        Command::Pause(args) => client(c::pause::pause(context, &args)),
        Command::Unpause(args) => client(c::pause::unpause(context, &args)),
        Command::Audit(args) => client(c::audit::run(context, &args)),
        Command::Tokens(args) => client(c::tokens::run(context, &args)),
        Command::Webhooks(args) => client(c::webhooks::run(context, &args)),
        Command::Whoami(args) => client(c::whoami::run(context, &args)),
        Command::Version(args) => client(c::version::run(context, &args)),
        Command::Doctor(args) => client(c::doctor::run(context, &args)),
        Command::Demo(args) => c::demo::run(context, &args),
        Command::Backup(args) => client(c::backup::run(context, &args)),
        Command::Import(args) => client(c::import::run(context, &args)),
        Command::Restore(args) => daemon(c::backup::restore(context, &args)),
        // daemons
        Command::Controller(args) => daemon(c::controller::run(context, &args)),
        Command::Executor(args) => executor(c::executor::run(context, &args)),
        Command::Dev(args) => daemon(c::dev::run(context, &args)),
    }
}

/// Runs a client's command on this thread: starting others would take longer than most calls.
fn client(work: impl Future<Output = Outcome>) -> Outcome {
    block_on(&mut tokio::runtime::Builder::new_current_thread(), work)
}

/// Runs a daemon on all processors.
fn daemon(work: impl Future<Output = Outcome>) -> Outcome {
    block_on(&mut tokio::runtime::Builder::new_multi_thread(), work)
}

/// Runs an executor. It waits for hundreds of jobs and computes next to nothing: what counts is that it is small.
fn executor(work: impl Future<Output = Outcome>) -> Outcome {
    let workers = std::thread::available_parallelism().map_or(1, std::num::NonZero::get).min(EXECUTOR_WORKERS);
    let mut builder = tokio::runtime::Builder::new_multi_thread();
    block_on(builder.worker_threads(workers).max_blocking_threads(EXECUTOR_BLOCKING), work)
}

fn block_on(builder: &mut tokio::runtime::Builder, work: impl Future<Output = Outcome>) -> Outcome {
    let runtime = builder
        .enable_all()
        .build()
        .map_err(|error| Failure::new(Exit::Fault, anyhow::Error::new(error).context("cannot start the runtime")))?;
    let outcome = runtime.block_on(work);
    // what still runs on other threads (a lookup of a name, a read of stdin) must not keep the process
    runtime.shutdown_background();
    outcome
}
