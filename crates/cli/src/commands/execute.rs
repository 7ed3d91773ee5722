//! `octavius execute`: runs a job; `octavius rerun`: the same again. The client proposes the execution's id, so a call of which no answer came
//! can be made again without a second run.

use clap::Args;
use octavius_core::argument::{Arguments, check_value};
use octavius_core::{ExecutionId, HumanDuration, JobDefinition, Timestamp};
use octavius_proto::{reason, to_duration, v1};
use serde_json::json;

use super::describe::get_job;
use super::getlogs::TerminalSink;
use crate::arguments::{ArgumentArgs, gather, shell_quoted};
use crate::cli::{IdArgs, JobArgs};
use crate::error::{Failure, Outcome};
use crate::execution::sentence;
use crate::exit::Exit;
use crate::output::Format;
use crate::reading::{self, LogRequest};
use crate::sanitize::line;
use crate::session::Session;
use crate::wait::{self, Waited};
use crate::{Context, approvals, env, prompt};

/// Flags of `octavius execute`.
#[derive(Debug, Args)]
pub struct ExecuteArgs {
    #[command(flatten)]
    job: JobArgs,
    #[command(flatten)]
    arguments: ArgumentArgs,
    #[command(flatten)]
    run: RunArgs,
}

/// Flags of `octavius rerun`.
#[derive(Debug, Args)]
pub struct RerunArgs {
    #[command(flatten)]
    id: IdArgs,
    #[command(flatten)]
    run: RunArgs,
}

/// What happens with the execution that is made.
#[derive(Debug, Clone, Args)]
pub struct RunArgs {
    /// Wait for the end; the exit code tells how it ended: 0, 1 failed, 5 cancelled, 6 timed out, 7 lost
    #[arg(short, long, env = env::WAIT, value_parser = clap::builder::BoolishValueParser::new())]
    wait: bool,
    /// Print the log as it comes, and wait for the end; the ID goes to standard error
    #[arg(short, long, env = env::FOLLOW, value_parser = clap::builder::BoolishValueParser::new())]
    follow: bool,
    /// The same key makes one execution, however often the command is run
    #[arg(long, value_name = "KEY", env = env::IDEMPOTENCY_KEY)]
    idempotency_key: Option<String>,
    /// Longest run, for this execution alone
    #[arg(long, value_name = "DURATION", env = env::TIMEOUT)]
    timeout: Option<HumanDuration>,
    /// Longest wait, with --wait or --follow; then exit code 124, and the job runs on
    #[arg(long, value_name = "DURATION", env = env::WAIT_TIMEOUT)]
    wait_timeout: Option<HumanDuration>,
    /// Form of the output
    #[arg(short, long, value_parser = Format::among(&["id", "json", "yaml"]), default_value = "id", env = env::OUTPUT)]
    output: Format,
}

/// Runs `octavius execute`.
///
/// # Errors
/// Where arguments are wrong, the controller cannot be reached or refuses, or the person declines.
pub async fn run(context: &Context, args: &ExecuteArgs) -> Outcome {
    check(&args.run)?;
    let name = args.job.get()?;
    let mut given = gather(&args.arguments)?;
    for warning in &given.warnings {
        context.shell.warn(warning);
    }
    let session = Session::open(context).await.map_err(nothing_sent)?;
    if context.shell.interactive {
        ask(context, &session, &name, &mut given.arguments).await.map_err(nothing_sent)?;
    }
    execute(context, session, name, given.arguments, &args.run).await
}

/// Refuses flags that say nothing together. One that stands in the environment is meant for other commands too.
fn check(args: &RunArgs) -> Outcome<()> {
    if args.wait_timeout.is_some() && !args.wait && !args.follow && !env::is_set(env::WAIT_TIMEOUT) {
        return Err(Failure::usage("--wait-timeout without --wait or --follow: nothing is waited for"));
    }
    let set = env::is_set(env::OUTPUT) || env::is_set(env::FOLLOW);
    if args.follow && args.output != Format::Id && !set {
        return Err(Failure::usage("--follow prints the log on standard output, so there is no other form of the output")
            .hint("--wait with the form, and then `octavius getlogs`"));
    }
    Ok(())
}

/// Before the call that makes the execution, a failure to reach the controller has changed nothing.
fn nothing_sent(failure: Failure) -> Failure {
    if failure.may_pass() { failure.hint("nothing was sent: it is safe to run the same command again") } else { failure }
}

/// Runs `octavius rerun`: the job as its catalogue has it now, with the arguments of then, which the controller knows.
///
/// # Errors
/// Where there is no such execution, its arguments do not fit the job any more, or the new one is refused.
pub async fn rerun(context: &Context, args: &RerunArgs) -> Outcome {
    check(&args.run)?;
    let source = args.id.get()?;
    let session = Session::open(context).await.map_err(nothing_sent)?;
    let before = super::status::get(&session, &source).await.map_err(nothing_sent)?.execution.unwrap_or_default();
    if context.shell.interactive {
        let (job, _) = get_job(&session, &before.job).await.map_err(nothing_sent)?;
        confirm(context, &session, &job)?;
    }
    let Proposal { id, idempotency_key } = Proposal::new(&args.run);
    // The source as it was named: the controller knows what `@latest` meant when the call was made first.
    let timeout = args.run.timeout.map(|timeout| to_duration(timeout.get()));
    let request = v1::RerunExecutionRequest { id, source, idempotency_key, timeout };
    let made = session.call(async |to| to.executions().rerun_execution(request.clone()).await).await;
    let made = made.map_err(|failure| match &failure.fault {
        Some(fault) if fault.reason == reason::INVALID_ARGUMENTS => {
            let hint = format!("the job has changed since; `octavius execute {}` takes other arguments", line(&before.job));
            failure.hint(hint)
        }
        _ => unanswered(failure, &request.id, &request.idempotency_key),
    })?;
    announce(context, &made.id, &args.run)?;
    tell_of_changes(context, &session, &before, &made.id).await;
    attend(context, &session, &made.id, &args.run).await
}

/// Says where the new execution runs another definition than the one before. Nothing is said where that cannot be learnt: it runs all the same.
async fn tell_of_changes(context: &Context, session: &Session, before: &v1::Execution, id: &str) {
    let Ok(after) = super::status::get(session, id).await else { return };
    let after = after.execution.unwrap_or_default();
    if after.definition == before.definition {
        return;
    }
    let (old, new) = tokio::join!(super::status::commit_of(session, before), super::status::commit_of(session, &after));
    context.shell.note(&line(&changed(before, &old, &after, &new)));
}

fn changed(before: &v1::Execution, old: &str, after: &v1::Execution, new: &str) -> String {
    let named = |execution: &v1::Execution, commit: &str| {
        let commit = commit.get(..7).map(|commit| format!(" ({commit})")).unwrap_or_default();
        format!("{} revision {}{commit}", execution.catalog, execution.revision)
    };
    format!("{} has changed since: {} → {}", after.job, named(before, old), named(after, new))
}

/// At a terminal: asks for required arguments that are missing, and for the job's name where the job wants that.
async fn ask(context: &Context, session: &Session, name: &str, arguments: &mut Arguments) -> Outcome<()> {
    let (job, _) = get_job(session, name).await?;
    for argument in job.env_vars.args.iter().filter(|argument| argument.required && argument.default.is_none()) {
        if arguments.contains_key(&argument.name) {
            continue;
        }
        let description = if argument.description.is_empty() { String::new() } else { format!(" ({})", argument.description) };
        let value = prompt::value(&context.shell, &format!("{}{description}", argument.name), argument.sensitive, |value| {
            check_value(argument, value)
        })?;
        arguments.insert(argument.name.clone(), value);
    }
    confirm(context, session, &job)
}

/// Asks for the job's name, where the job wants that.
fn confirm(context: &Context, session: &Session, job: &JobDefinition) -> Outcome<()> {
    if job.confirm {
        let question = format!("{} runs on {}; type its name to run it", job.name, session.name());
        prompt::type_back(&context.shell, &question, job.name.as_str())?;
    }
    Ok(())
}

/// The id that is proposed for an execution, and the key under which it is made once.
struct Proposal {
    id: String,
    idempotency_key: String,
}

impl Proposal {
    /// A key that is an id is that of a call made before: the line that retries safely brings it.
    fn new(args: &RunArgs) -> Self {
        let key = args.idempotency_key.clone().unwrap_or_default();
        match key.parse::<ExecutionId>() {
            Ok(proposed) => Self { id: proposed.to_string(), idempotency_key: String::new() },
            Err(_) => Self { id: ExecutionId::generate().to_string(), idempotency_key: key },
        }
    }
}

async fn execute(context: &Context, session: Session, job: String, arguments: Arguments, args: &RunArgs) -> Outcome {
    let Proposal { id, idempotency_key } = Proposal::new(args);
    let timeout = args.timeout.map(|timeout| to_duration(timeout.get()));
    let request = v1::ExecuteRequest { id, job, arguments: arguments.into_iter().collect(), timeout, idempotency_key };
    // the id is the same in every try, so that one counts
    let made = session.call(async |to| to.executions().execute(request.clone()).await).await;
    let id = made.map_err(|failure| unanswered(failure, &request.id, &request.idempotency_key))?.id;
    announce(context, &id, args)?;
    attend(context, &session, &id, args).await
}

/// Says how a call is repeated of which no answer came.
fn unanswered(failure: Failure, id: &str, key: &str) -> Failure {
    if !failure.may_pass() {
        return failure;
    }
    failure.hint(format!("it may or may not have been accepted; safe to repeat: {}", retry_line(id, key)))
}

/// How the call is made again and counts once; without the arguments, which may be sensitive.
fn retry_line(id: &str, key: &str) -> String {
    let key = if key.is_empty() { id } else { key };
    format!("run the same command again with --idempotency-key {}", shell_quoted(key))
}

/// Prints the id of the execution that was made.
fn announce(context: &Context, id: &str, args: &RunArgs) -> Outcome<()> {
    let shell = &context.shell;
    if args.follow {
        shell.note(id);
        return Ok(());
    }
    let printed = match args.output.structured(shell, || json!({ "id": id })) {
        Ok(false) => shell.line(id),
        printed => printed.map(|_| ()),
    };
    // it runs: whoever cannot read its id on standard output needs it all the more
    printed.map_err(|failure| failure.context(format!("execution {id} was made")))
}

/// Says that the execution waits for approval, and for whose. Nothing is said where that cannot be learnt at once: it is made all the same.
async fn tell_of_approval(context: &Context, session: &Session, id: &str) {
    let request = v1::GetExecutionRequest { id: id.to_owned() };
    let Ok(made) = session.call_once(async |to| to.executions().get_execution(request.clone()).await).await else { return };
    if let Some(note) = made.execution.as_ref().and_then(approvals::note) {
        context.shell.note(&note);
    }
}

/// Waits for the end, with or without the log, where that is asked for.
async fn attend(context: &Context, session: &Session, id: &str, args: &RunArgs) -> Outcome {
    tell_of_approval(context, session, id).await;
    if !args.wait && !args.follow {
        return Ok(Exit::Done);
    }
    let work = async {
        if args.follow {
            let request = LogRequest { id: id.to_owned(), follow: true, ..Default::default() };
            let mut sink = TerminalSink::stdout(&context.shell, false);
            reading::read_log(session, &request, &mut sink).await?;
            sink.finish()?;
        }
        wait::until_ended(session, id).await
    };
    match wait::bounded(args.wait_timeout.map(HumanDuration::get), work).await? {
        Waited::Done(execution) => {
            context.shell.note(&sentence(&execution, Timestamp::now()));
            Ok(wait::exit_of(&execution))
        }
        Waited::TimedOut => {
            context.shell.note(&format!("not ended yet, the job runs on; see it: octavius status {id}"));
            Ok(Exit::WaitTimedOut)
        }
        Waited::Interrupted => {
            context.shell.note(&format!("detached, the job runs on; stop it: octavius cancel {id}"));
            Ok(Exit::Interrupted)
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_line_that_retries_names_the_key_or_else_the_id() {
        let id = "0k3v7q2m8d5x1n4r6t9w0b9f2q";
        assert_eq!(retry_line(id, ""), format!("run the same command again with --idempotency-key {id}"));
        assert!(retry_line(id, "it's").ends_with(r"--idempotency-key 'it'\''s'"));
    }

    #[test]
    fn what_has_changed_since_is_told_by_revision_and_commit() {
        let of = |revision, catalog: &str| v1::Execution {
            job: "refund".into(),
            catalog: catalog.into(),
            revision,
            ..Default::default()
        };
        let (before, after) = (of(41, "support"), of(42, "support"));
        let told = changed(&before, &"9c1f2ab".repeat(6), &after, &"4be07d1".repeat(6));
        assert_eq!(told, "refund has changed since: support revision 41 (9c1f2ab) → support revision 42 (4be07d1)");
        let told = changed(&before, "", &of(1, "manual"), "");
        assert_eq!(told, "refund has changed since: support revision 41 → manual revision 1");
    }
}
