//! `octavius execute`: runs a job; `octavius rerun`: the same again. The client proposes the execution's id, so a call of which no answer came
//! can be made again without a second run.

use clap::Args;
use octavius_core::argument::{Arguments, check_value};
use octavius_core::{ExecutionId, HumanDuration, Timestamp};
use octavius_proto::{to_duration, v1};
use serde_json::json;

use super::describe::get_job;
use super::getlogs::TerminalSink;
use crate::arguments::{ArgumentArgs, gather, shell_quoted};
use crate::cli::{IdArgs, JobArgs};
use crate::error::{Failure, Outcome};
use crate::execution::sentence;
use crate::exit::Exit;
use crate::output::Format;
use crate::session::Session;
use crate::wait::{self, LogRequest, Waited};
use crate::{Context, env, prompt};

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

/// Runs `octavius rerun`.
///
/// # Errors
/// Where there is no such execution, its arguments are not all known, or the new one is refused.
pub async fn rerun(context: &Context, args: &RerunArgs) -> Outcome {
    check(&args.run)?;
    let id = args.id.get()?;
    let session = Session::open(context).await.map_err(nothing_sent)?;
    let response = super::status::get(&session, &id).await.map_err(nothing_sent)?;
    let before = response.execution.unwrap_or_default();
    let mut arguments: Arguments = before.arguments.into_iter().collect();
    let (job, _) = get_job(&session, &before.job).await.map_err(nothing_sent)?;
    let masked: Vec<String> = arguments
        .iter()
        .filter(|(name, value)| {
            *value == octavius_core::argument::MASK && job.argument(name).is_none_or(|argument| argument.sensitive)
        })
        .map(|(name, _)| name.clone())
        .collect();
    if !masked.is_empty() && !context.shell.interactive {
        return Err(Failure::usage(format!("the value of {} is masked and not known here", masked.join(", ")))
            .hint("run `octavius execute` with all arguments"));
    }
    for name in masked {
        let check = |value: &str| job.argument(&name).map_or(Ok(()), |argument| check_value(argument, value));
        let value = prompt::value(&context.shell, &format!("{name} (sensitive)"), true, check)?;
        arguments.insert(name, value);
    }
    if context.shell.interactive {
        ask(context, &session, &before.job, &mut arguments).await.map_err(nothing_sent)?;
    }
    execute(context, session, before.job, arguments, &args.run).await
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
    if job.confirm {
        let question = format!("{} runs on {}; type its name to run it", job.name, session.name());
        prompt::type_back(&context.shell, &question, job.name.as_str())?;
    }
    Ok(())
}

async fn execute(context: &Context, session: Session, job: String, arguments: Arguments, args: &RunArgs) -> Outcome {
    // A key that is an id is that of a call made before: the line that retries safely brings it.
    let key = args.idempotency_key.clone().unwrap_or_default();
    let proposed = key.parse::<ExecutionId>();
    let id = proposed.clone().unwrap_or_else(|_| ExecutionId::generate());
    let request = v1::ExecuteRequest {
        id: id.to_string(),
        job,
        arguments: arguments.into_iter().collect(),
        timeout: args.timeout.map(|timeout| to_duration(timeout.get())),
        idempotency_key: if proposed.is_ok() { String::new() } else { key },
    };
    // the id is the same in every try, so that one counts
    let made = session.call(async |to| to.executions().execute(request.clone()).await).await;
    let id = made.map(|response| response.id).map_err(|failure| match failure.may_pass() {
        true => failure.hint(format!("it may or may not have been accepted; safe to repeat: {}", retry_line(&request))),
        false => failure,
    })?;
    let shell = &context.shell;
    if args.follow {
        shell.note(&id);
    } else {
        let printed = match args.output.structured(shell, || json!({ "id": id })) {
            Ok(false) => shell.line(&id),
            printed => printed.map(|_| ()),
        };
        // it runs: whoever cannot read its id on standard output needs it all the more
        printed.map_err(|failure| failure.context(format!("execution {id} was made")))?;
    }
    if args.wait || args.follow { attend(context, &session, &id, args).await } else { Ok(Exit::Done) }
}

/// How the call is made again and counts once; without the arguments, which may be sensitive.
fn retry_line(request: &v1::ExecuteRequest) -> String {
    let key = if request.idempotency_key.is_empty() { &request.id } else { &request.idempotency_key };
    format!("run the same command again with --idempotency-key {}", shell_quoted(key))
}

/// Waits for the end, with or without the log.
async fn attend(context: &Context, session: &Session, id: &str, args: &RunArgs) -> Outcome {
    let work = async {
        if args.follow {
            let request = LogRequest { id: id.to_owned(), follow: true, ..Default::default() };
            let mut sink = TerminalSink::stdout(&context.shell, false);
            wait::read_log(context, session, &request, &mut sink).await?;
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
    fn the_line_that_retries_names_the_key_and_no_value() {
        let mut request = v1::ExecuteRequest {
            id: "0k3v7q2m8d5x1n4r6t9w0b9f2q".into(),
            job: "refund".into(),
            arguments: [("pin".to_owned(), "1234".to_owned())].into(),
            ..Default::default()
        };
        assert_eq!(retry_line(&request), "run the same command again with --idempotency-key 0k3v7q2m8d5x1n4r6t9w0b9f2q");
        request.idempotency_key = "it's".into();
        assert!(retry_line(&request).ends_with(r"--idempotency-key 'it'\''s'"));
    }
}
