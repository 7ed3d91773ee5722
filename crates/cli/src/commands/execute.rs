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
use crate::session::{Patience, Session};
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
    let name = args.job.get()?.to_owned();
    let mut given = gather(&args.arguments)?;
    for warning in &given.warnings {
        context.shell.warn(warning);
    }
    let session = Session::open(context).await?;
    if context.shell.interactive {
        ask(context, &session, &name, &mut given.arguments).await?;
    }
    execute(context, session, name, given.arguments, &args.run).await
}

/// Runs `octavius rerun`.
///
/// # Errors
/// Where there is no such execution, its arguments are not all known, or the new one is refused.
pub async fn rerun(context: &Context, args: &RerunArgs) -> Outcome {
    let id = args.id.get()?.to_owned();
    let session = Session::open(context).await?;
    let mut client = session.connection().executions();
    let response = session.call(client.get_execution(v1::GetExecutionRequest { id })).await?;
    let before = response.execution.unwrap_or_default();
    let mut arguments: Arguments = before.arguments.into_iter().collect();
    let (job, _) = get_job(&session, &before.job).await?;
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
        ask(context, &session, &before.job, &mut arguments).await?;
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

async fn execute(context: &Context, mut session: Session, job: String, arguments: Arguments, args: &RunArgs) -> Outcome {
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
    let id = submit(&mut session, &request).await.map_err(|failure| match failure.may_pass() {
        true => failure
            .hint(format!("it may or may not have been accepted; this line is safe to repeat:\n  {}", retry_line(&request))),
        false => failure,
    })?;
    let shell = &context.shell;
    if args.follow {
        shell.note(&id);
    } else if !args.output.structured(shell, || json!({ "id": id }))? {
        shell.line(&id)?;
    }
    if args.wait || args.follow { attend(context, session, &id, args).await } else { Ok(Exit::Done) }
}

/// Makes the call, again and again while no answer comes, within the connection timeout.
async fn submit(session: &mut Session, request: &v1::ExecuteRequest) -> Outcome<String> {
    let mut patience = Patience::of(session.timeout());
    loop {
        let mut client = session.connection().executions();
        let mut failure = match session.call(client.execute(request.clone())).await {
            Ok(response) => return Ok(response.id),
            Err(failure) => failure,
        };
        loop {
            patience.bear(failure, |_| {}).await?;
            match session.reconnect().await {
                Ok(()) => break,
                Err(again) => failure = again,
            }
        }
    }
}

fn retry_line(request: &v1::ExecuteRequest) -> String {
    let mut text = format!("octavius execute {}", shell_quoted(&request.job));
    let mut arguments: Vec<_> = request.arguments.iter().collect();
    arguments.sort_unstable();
    for (name, value) in arguments {
        text.push_str(&format!(" --arg {}", shell_quoted(&format!("{name}={value}"))));
    }
    if let Some(timeout) = &request.timeout {
        let length =
            std::time::Duration::new(u64::try_from(timeout.seconds).unwrap_or(0), u32::try_from(timeout.nanos).unwrap_or(0));
        text.push_str(&format!(" --timeout {}", HumanDuration::new(length)));
    }
    let key = if request.idempotency_key.is_empty() { &request.id } else { &request.idempotency_key };
    text.push_str(&format!(" --idempotency-key {}", shell_quoted(key)));
    text
}

/// Waits for the end, with or without the log.
async fn attend(context: &Context, mut session: Session, id: &str, args: &RunArgs) -> Outcome {
    let work = async {
        if args.follow {
            let request = LogRequest { id: id.to_owned(), follow: true, ..Default::default() };
            let mut sink = TerminalSink::stdout(&context.shell, false);
            wait::read_log(context, &mut session, &request, &mut sink).await?;
            sink.finish()?;
        }
        wait::until_ended(context, &mut session, id).await
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
    fn the_line_that_retries_brings_the_same_call_again() {
        let request = v1::ExecuteRequest {
            id: "0k3v7q2m8d5x1n4r6t9w0b9f2q".into(),
            job: "refund".into(),
            arguments: [("b".to_owned(), "it's, so".to_owned()), ("a".to_owned(), "1".to_owned())].into(),
            timeout: Some(to_duration(std::time::Duration::from_secs(600))),
            idempotency_key: String::new(),
        };
        assert_eq!(
            retry_line(&request),
            r"octavius execute refund --arg a=1 --arg 'b=it'\''s, so' --timeout 10m --idempotency-key 0k3v7q2m8d5x1n4r6t9w0b9f2q"
        );
    }
}
