//! `octavius executors drain`, `resume` and `revoke`: what operators change about executors.

use std::cell::Cell;
use std::time::Duration;

use clap::Args;
use octavius_core::HumanDuration;
use octavius_proto::v1;
use octavius_proto::words::executor_state_name;
use serde_json::json;

use super::{drained_by, fetch, to_json};
use crate::error::{Failure, Outcome};
use crate::exit::Exit;
use crate::output::Format;
use crate::sanitize::line;
use crate::session::{Patience, Session};
use crate::wait::{Waited, bounded};
use crate::{Context, env, prompt};

/// First and longest pause between two looks at an executor that drains: jobs take seconds at least, and some take hours.
const LOOKS: (Duration, Duration) = (Duration::from_millis(250), Duration::from_secs(5));

/// Executions that a line of progress names.
const NAMED: usize = 4;

#[derive(Debug, Args)]
pub(super) struct DrainArgs {
    /// The executor's id
    id: String,
    /// Wait until it holds nothing any more
    #[arg(long, env = env::WAIT)]
    wait: bool,
    /// Longest wait; what runs goes on
    #[arg(long, value_name = "DURATION", env = env::WAIT_TIMEOUT)]
    wait_timeout: Option<HumanDuration>,
    /// Form of the output
    #[arg(short, long, value_parser = Format::among(&["text", "json", "yaml"]), default_value = "text", env = env::OUTPUT)]
    output: Format,
}

#[derive(Debug, Args)]
pub(super) struct ResumeArgs {
    /// The executor's id
    id: String,
    /// Form of the output
    #[arg(short, long, value_parser = Format::among(&["text", "json", "yaml"]), default_value = "text", env = env::OUTPUT)]
    output: Format,
}

#[derive(Debug, Args)]
pub(super) struct RevokeArgs {
    /// The executor's id
    id: String,
    /// Even while it holds something: what it has started is lost, what not is given to another one
    #[arg(long)]
    force: bool,
    /// Do not ask
    #[arg(short, long)]
    yes: bool,
    /// Form of the output
    #[arg(short, long, value_parser = Format::among(&["text", "json", "yaml"]), default_value = "text", env = env::OUTPUT)]
    output: Format,
}

fn executions(count: usize) -> String {
    format!("{count} {}", if count == 1 { "execution" } else { "executions" })
}

/// `2 executions: a, b`, the first few by their ids.
fn holds(executor: &v1::Executor) -> String {
    let mut named: Vec<_> = executor.running.iter().take(NAMED).map(|id| line(id)).collect();
    if executor.running.len() > NAMED {
        named.push("…".to_owned());
    }
    format!("{}: {}", executions(executor.running.len()), named.join(", "))
}

pub(super) async fn drain(context: &Context, args: &DrainArgs) -> Outcome {
    if args.wait_timeout.is_some() && !args.wait && !env::is_set(env::WAIT_TIMEOUT) {
        return Err(Failure::usage("--wait-timeout goes with --wait"));
    }
    let (shell, id) = (&context.shell, line(&args.id));
    let session = Session::open(context).await?;
    let request = v1::DrainExecutorRequest { id: args.id.clone() };
    let drained = session.call(async |to| to.executors().drain_executor(request.clone()).await).await?;
    let mut executor = drained.executor.unwrap_or_default();
    let mut exit = Exit::Done;
    if args.wait && !executor.running.is_empty() {
        shell.note(&format!("{id} is given nothing more; it holds {}", holds(&executor)));
        match bounded(args.wait_timeout.map(HumanDuration::get), until_drained(&session, &executor)).await? {
            Waited::Done(done) => executor = done,
            Waited::TimedOut => {
                shell.note(&format!("{id} is not empty yet; it goes on draining, see it: octavius executors describe {id}"));
                exit = Exit::WaitTimedOut;
            }
            Waited::Interrupted => {
                shell.note(&format!("detached, {id} goes on draining; end that: octavius executors resume {id}"));
                exit = Exit::Interrupted;
            }
        }
    }
    if exit != Exit::Done {
        return Ok(exit); // what it holds now was not asked for once more
    }
    if !args.output.structured(shell, || to_json(&executor))? {
        match executor.running.len() {
            0 => shell.line(&format!("{id} is drained: it holds nothing"))?,
            count => {
                shell.line(&format!("{id} drains: it is given nothing more and holds {}", executions(count)))?;
                shell.hint(&format!("octavius executors drain {id} --wait"));
            }
        }
    }
    Ok(Exit::Done)
}

/// Looks until an executor holds nothing. Controllers may come and go meanwhile.
async fn until_drained(session: &Session, first: &v1::Executor) -> Outcome<v1::Executor> {
    let mut patience = Patience::new(session.timeout());
    let (mut count, mut pause) = (first.running.len(), LOOKS.0);
    loop {
        tokio::time::sleep(pause).await;
        pause = (pause * 2).min(LOOKS.1);
        let executor = match fetch(session, &first.id).await {
            Ok(executor) => executor,
            Err(failure) => {
                patience.bear(failure, |failure| session.notice(failure)).await?;
                continue;
            }
        };
        patience.renew();
        if executor.draining.is_none() {
            let told = format!("executor {} was resumed by someone: it is given work again", line(&first.id));
            return Err(Failure::refused(told));
        }
        if executor.running.is_empty() {
            return Ok(executor);
        }
        if executor.running.len() != count {
            (count, pause) = (executor.running.len(), LOOKS.0);
            session.shell().note(&format!("{} still holds {}", line(&first.id), holds(&executor)));
        }
    }
}

pub(super) async fn resume(context: &Context, args: &ResumeArgs) -> Outcome {
    let session = Session::open(context).await?;
    let request = v1::ResumeExecutorRequest { id: args.id.clone() };
    let resumed = session.call(async |to| to.executors().resume_executor(request.clone()).await).await?;
    let executor = resumed.executor.unwrap_or_default();
    if !args.output.structured(&context.shell, || to_json(&executor))? {
        context.shell.line(&format!("{} is given work again", line(&args.id)))?;
        if executor.state() != v1::ExecutorState::Active {
            context.shell.note(&format!("it is not there at present: {}", executor_state_name(executor.state())));
        }
    }
    Ok(Exit::Done)
}

pub(super) async fn revoke(context: &Context, args: &RevokeArgs) -> Outcome {
    let (shell, id) = (&context.shell, line(&args.id));
    let session = Session::open(context).await?;
    // A slip in the id must not pass for done: what is not there is told, and what is near.
    let executor = fetch(&session, &args.id).await?;
    if shell.interactive && !args.yes && !args.force {
        let drains = executor.draining.as_ref().map(|drain| format!(", {}", drained_by(drain))).unwrap_or_default();
        let state = executor_state_name(executor.state());
        prompt::confirm(shell, &format!("revoke executor {id} ({state}{drains}) on {}?", session.name()))?;
    }
    let request = v1::RevokeExecutorRequest { id: args.id.clone(), force: args.force };
    let tries = Cell::new(0u32);
    let revoked = session.call(async |to| {
        tries.set(tries.get() + 1);
        to.executors().revoke_executor(request.clone()).await
    });
    let revoked = revoked.await.map_err(|failure| match failure.is(octavius_proto::reason::EXECUTOR_BUSY) {
        true => failure
            .hint(format!("let it finish: octavius executors drain {id} --wait"))
            .hint("or give up what it holds with --force"),
        false => failure,
    })?;
    if tries.get() > 1 && args.force {
        shell.note("the first answer was lost: what it gave up then is not counted here; `octavius executions --all` shows it");
    }
    let (given_back, lost) = (&revoked.given_back, &revoked.lost);
    if !args.output.structured(shell, || json!({ "id": args.id, "given_back": given_back, "lost": lost }))? {
        shell.line(&format!("{id} is revoked: its token is worth nothing any more"))?;
        for (ids, what) in [(given_back, "waits again"), (lost, "given up; whether it ended is not known")] {
            ids.iter().for_each(|id| shell.note(&format!("{}  {what}", line(id))));
        }
    }
    Ok(Exit::Done)
}
