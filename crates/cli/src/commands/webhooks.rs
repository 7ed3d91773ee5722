//! `octavius webhooks`: who is told what comes of executions, and what they did not take.

use std::path::{Path, PathBuf};

use clap::{Args, Subcommand};
use octavius_controller::{WebhookSecrets, private};
use octavius_core::Timestamp;
use octavius_proto::json::{text_or_null, time_or_null};
use octavius_proto::v1;
use octavius_proto::words::{self, between};
use serde_json::{Value, json};

use crate::error::{Failure, Outcome};
use crate::exit::Exit;
use crate::output::Format;
use crate::sanitize::line;
use crate::session::Session;
use crate::table::wire_time;
use crate::{Context, env, table};

/// Flags of `octavius webhooks`.
#[derive(Debug, Args)]
pub struct WebhooksArgs {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// List the webhooks of the controllers' configuration, and how each stands
    List(ListArgs),
    /// List the deliveries that were given up, or those that wait
    Deliveries(DeliveriesArgs),
    /// Have deliveries that were given up tried again
    Retry(RetryArgs),
    /// Send a webhook a message, and say whether it takes it
    Test(TestArgs),
    /// Make a secret for a webhook, in a new file: asks no controller
    NewSecret(NewSecretArgs),
}

#[derive(Debug, Args)]
struct ListArgs {
    /// Form of the output
    #[arg(short, long, value_parser = Format::among(&["table", "name", "json", "yaml"]), default_value = "table", env = env::OUTPUT)]
    output: Format,
}

#[derive(Debug, Args)]
struct DeliveriesArgs {
    /// Those of this webhook alone
    #[arg(value_name = "NAME")]
    webhook: Option<String>,
    /// Those that wait, and not those that were given up
    #[arg(long, env = env::WAITING)]
    waiting: bool,
    /// Form of the output
    #[arg(short, long, value_parser = Format::among(&["table", "json", "yaml"]), default_value = "table", env = env::OUTPUT)]
    output: Format,
}

#[derive(Debug, Args)]
struct RetryArgs {
    /// Those of this webhook
    #[arg(value_name = "NAME", required_unless_present_any = ["execution", "all"])]
    webhook: Option<String>,
    /// Those about this execution alone, by its whole id
    #[arg(long, value_name = "ID")]
    execution: Option<String>,
    /// Those of all webhooks
    #[arg(long, conflicts_with_all = ["webhook", "execution"])]
    all: bool,
    /// Form of the output
    #[arg(short, long, value_parser = Format::among(&["text", "json", "yaml"]), default_value = "text", env = env::OUTPUT)]
    output: Format,
}

#[derive(Debug, Args)]
struct TestArgs {
    /// The webhook's name
    #[arg(value_name = "NAME")]
    webhook: String,
    /// Form of the output
    #[arg(short, long, value_parser = Format::among(&["text", "json", "yaml"]), default_value = "text", env = env::OUTPUT)]
    output: Format,
}

#[derive(Debug, Args)]
struct NewSecretArgs {
    /// The file to make, or - for standard output; one that is there is never overwritten
    #[arg(value_name = "FILE")]
    file: PathBuf,
}

/// Runs the command.
///
/// # Errors
/// Where the controller cannot be reached or refuses, or a webhook does not take a message.
pub async fn run(context: &Context, args: &WebhooksArgs) -> Outcome {
    match &args.command {
        Command::List(args) => list(context, args).await,
        Command::Deliveries(args) => deliveries(context, args).await,
        Command::Retry(args) => retry(context, args).await,
        Command::Test(args) => test(context, args).await,
        Command::NewSecret(args) => new_secret(context, args),
    }
}

async fn list(context: &Context, args: &ListArgs) -> Outcome {
    let session = Session::open(context).await?;
    let webhooks = session.call(async |to| to.admin().list_webhooks(v1::ListWebhooksRequest {}).await).await?.webhooks;
    let shell = &context.shell;
    if args.output.structured(shell, || json!({ "webhooks": webhooks.iter().map(webhook_json).collect::<Vec<_>>() }))? {
        return Ok(Exit::Done);
    }
    if args.output == Format::Name {
        shell.print(&webhooks.iter().map(|webhook| format!("{}\n", line(&webhook.name))).collect::<String>())?;
        return Ok(Exit::Done);
    }
    if webhooks.is_empty() {
        shell.note("no webhooks: `octavius controller start --help` says how the configuration names them");
        return Ok(Exit::Done);
    }
    let now = Timestamp::now();
    let rows = webhooks.iter().map(|webhook| {
        vec![
            webhook.name.clone(),
            if webhook.is_configured { webhook.url.clone() } else { "-".to_owned() },
            if webhook.events.is_empty() { "-".to_owned() } else { webhook.events.join(",") },
            if webhook.jobs.is_empty() { "all".to_owned() } else { webhook.jobs.join(",") },
            webhook.waiting.to_string(),
            webhook.given_up.to_string(),
            standing(webhook, now),
        ]
    });
    shell.print(&table::render(&["NAME", "URL", "EVENTS", "JOBS", "WAITING", "GIVEN UP", "LAST"], rows, shell.width))?;
    if webhooks.iter().any(|webhook| webhook.given_up > 0) {
        shell.hint("octavius webhooks deliveries lists what was given up, octavius webhooks retry NAME has it tried again");
    }
    Ok(Exit::Done)
}

/// How a webhook stands, as the controller that was asked has found it.
fn standing(webhook: &v1::Webhook, now: Timestamp) -> String {
    let ago = |at| words::time(at).map(|at| between(at, now)).unwrap_or_default();
    match (webhook.failing_since.as_ref(), webhook.delivered_at.as_ref()) {
        _ if !webhook.is_configured => "not in the configuration".to_owned(),
        (Some(since), _) => format!("failing for {}: {}", ago(Some(since)), webhook.failure),
        (None, Some(at)) => format!("taken {} ago", ago(Some(at))),
        (None, None) => "-".to_owned(),
    }
}

fn webhook_json(webhook: &v1::Webhook) -> Value {
    json!({
        "name": webhook.name,
        "url": text_or_null(&webhook.url),
        "events": webhook.events,
        "jobs": webhook.jobs,
        "waiting": webhook.waiting,
        "given_up": webhook.given_up,
        "failing_since": time_or_null(webhook.failing_since.as_ref()),
        "failure": text_or_null(&webhook.failure),
        "delivered_at": time_or_null(webhook.delivered_at.as_ref()),
        "is_configured": webhook.is_configured,
    })
}

async fn deliveries(context: &Context, args: &DeliveriesArgs) -> Outcome {
    let session = Session::open(context).await?;
    let request = v1::ListDeliveriesRequest { webhook: args.webhook.clone().unwrap_or_default(), waiting: args.waiting };
    let listed = session.call(async |to| to.admin().list_deliveries(request.clone()).await).await?;
    let shell = &context.shell;
    let value = || {
        let deliveries: Vec<_> = listed.deliveries.iter().map(to_json).collect();
        json!({ "deliveries": deliveries, "more": listed.more })
    };
    if args.output.structured(shell, value)? {
        return Ok(Exit::Done);
    }
    if listed.deliveries.is_empty() {
        shell.note(if args.waiting { "no deliveries wait" } else { "no deliveries were given up" });
        return Ok(Exit::Done);
    }
    let rows = listed.deliveries.iter().map(|delivery| {
        let then = if args.waiting { delivery.next_at.as_ref() } else { delivery.given_up_at.as_ref() };
        vec![
            delivery.webhook.clone(),
            delivery.execution.clone(),
            delivery.event.clone(),
            delivery.tries.to_string(),
            wire_time(then),
            if delivery.failure.is_empty() { "-".to_owned() } else { delivery.failure.clone() },
        ]
    });
    let then = if args.waiting { "NEXT TRY" } else { "GIVEN UP" };
    shell.print(&table::render(&["WEBHOOK", "EXECUTION", "EVENT", "TRIES", then, "FAILURE"], rows, shell.width))?;
    if listed.more > 0 {
        shell.note(&format!("and {} more", listed.more));
    }
    Ok(Exit::Done)
}

/// A delivery as JSON.
#[must_use]
pub fn to_json(delivery: &v1::Delivery) -> Value {
    json!({
        "webhook": delivery.webhook,
        "execution": delivery.execution,
        "event": delivery.event,
        "at": time_or_null(delivery.at.as_ref()),
        "tries": delivery.tries,
        "next_at": time_or_null(delivery.next_at.as_ref()),
        "given_up_at": time_or_null(delivery.given_up_at.as_ref()),
        "failure": text_or_null(&delivery.failure),
    })
}

async fn retry(context: &Context, args: &RetryArgs) -> Outcome {
    let session = Session::open(context).await?;
    let request = v1::RetryDeliveriesRequest {
        webhook: args.webhook.clone().unwrap_or_default(),
        execution: args.execution.clone().unwrap_or_default(),
    };
    // Where the first answer was lost, the second says 0: what they are is shown by the list either way.
    let deliveries = session.call(async |to| to.admin().retry_deliveries(request.clone()).await).await?.deliveries;
    if !args.output.structured(&context.shell, || json!({ "deliveries": deliveries }))? {
        context.shell.line(&match deliveries {
            0 => "nothing was given up".to_owned(),
            1 => "1 delivery is tried again".to_owned(),
            some => format!("{some} deliveries are tried again"),
        })?;
    }
    Ok(Exit::Done)
}

async fn test(context: &Context, args: &TestArgs) -> Outcome {
    let session = Session::open(context).await?;
    let request = v1::TestWebhookRequest { webhook: args.webhook.clone() };
    session.call_once(async |to| to.admin().test_webhook(request.clone()).await).await?;
    if !args.output.structured(&context.shell, || json!({ "webhook": args.webhook, "taken": true }))? {
        context.shell.line(&format!("{} has taken it", line(&args.webhook)))?;
    }
    Ok(Exit::Done)
}

fn new_secret(context: &Context, args: &NewSecretArgs) -> Outcome {
    let secret = WebhookSecrets::generate();
    if args.file == Path::new("-") {
        context.shell.line(&secret)?;
    } else {
        private::write_new(&args.file, format!("{secret}\n").as_bytes(), 0o600).map_err(|error| {
            let there = error.kind() == std::io::ErrorKind::AlreadyExists;
            let failure = Failure::file("write the secret to", &args.file, error);
            if there {
                failure.hint("append a second one by hand to replace it without a gap, or name another file")
            } else {
                failure
            }
        })?;
        context.shell.hint("name it as the webhook's secret_file, and give whoever takes its messages what is in it");
    }
    Ok(Exit::Done)
}
