//! `octavius tokens`: makes, lists and revokes tokens.

use std::cell::Cell;

use clap::{Args, Subcommand};
use octavius_core::token::{Token, TokenKind};
use octavius_core::{HumanDuration, Role};
use octavius_proto::words;
use octavius_proto::{to_duration, v1};
use serde_json::json;

use super::whoami::role_name;
use crate::error::{Failure, Outcome};
use crate::exit::Exit;
use crate::output::Format;
use crate::sanitize::line;
use crate::session::Session;
use crate::table::wire_time;
use crate::{Context, env, table};

/// Flags of `octavius tokens`.
#[derive(Debug, Args)]
pub struct TokensArgs {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Make a token; it is shown this once
    Create(CreateArgs),
    /// Make a token for the first admin of a controller that is still to be started: asks nobody, and keeps nothing
    Generate,
    /// List tokens, without the tokens themselves
    List(ListArgs),
    /// Revoke a token
    Revoke(RevokeArgs),
}

#[derive(Debug, Args)]
struct CreateArgs {
    /// What its bearer may do
    #[arg(long, value_name = "ROLE", env = env::ROLE, default_value = "user",
        value_parser = ["viewer", "user", "applier", "admin", "executor", "registration"])]
    role: String,
    /// A group of its bearer; may be repeated
    #[arg(long, value_name = "GROUP", value_delimiter = ',', env = env::GROUP)]
    group: Vec<String>,
    /// A catalogue that an applier may change; may be repeated [default: every one]
    #[arg(long, value_name = "NAME", value_delimiter = ',', env = env::CATALOGS)]
    catalog: Vec<String>,
    /// How many executors may be registered with a registration token [default: 1]
    #[arg(long, value_name = "N", env = env::USES)]
    uses: Option<u32>,
    /// Who its bearer is [default: the role's name]
    #[arg(long, value_name = "USER", env = env::USER)]
    user: Option<String>,
    /// How long it is good [default: 90d; for registration 24h]
    #[arg(long, value_name = "DURATION", env = env::EXPIRES)]
    expires: Option<HumanDuration>,
    /// Form of the output; text is the token alone
    #[arg(short, long, value_parser = Format::among(&["text", "json", "yaml"]), default_value = "text", env = env::OUTPUT)]
    output: Format,
}

#[derive(Debug, Args)]
struct ListArgs {
    /// Form of the output
    #[arg(short, long, value_parser = Format::among(&["table", "name", "json", "yaml"]), default_value = "table", env = env::OUTPUT)]
    output: Format,
}

#[derive(Debug, Args)]
struct RevokeArgs {
    /// The token's id, not the token
    id: String,
    /// Form of the output
    #[arg(short, long, value_parser = Format::among(&["id", "json", "yaml"]), default_value = "id", env = env::OUTPUT)]
    output: Format,
}

/// Runs the command.
///
/// # Errors
/// Where the controller cannot be reached or refuses.
pub async fn run(context: &Context, args: &TokensArgs) -> Outcome {
    match &args.command {
        Command::Create(args) => create(context, args).await,
        Command::Generate => generate(context),
        Command::List(args) => list(context, args).await,
        Command::Revoke(args) => revoke(context, args).await,
    }
}

async fn create(context: &Context, args: &CreateArgs) -> Outcome {
    let role = Role::parse(&args.role).unwrap_or(Role::User);
    let session = Session::open(context).await?;
    let request = v1::CreateTokenRequest {
        role: v1::Role::from(role).into(),
        user: args.user.clone().unwrap_or_else(|| args.role.clone()),
        groups: args.group.clone(),
        lifetime: args.expires.map(|expires| to_duration(expires.get())),
        catalogs: args.catalog.clone(),
        uses: args.uses.unwrap_or_default(),
    };
    let tries = Cell::new(0u32);
    let made = session.call(async |to| {
        tries.set(tries.get() + 1);
        to.admin().create_token(request.clone()).await
    });
    let made = made.await?;
    if tries.get() > 1 {
        // nobody has seen the other, so nobody can use it
        context.shell.note("the first answer was lost: `octavius tokens list` may show a second token that was never handed out");
    }
    let expires = words::time(made.expires_at.as_ref());
    let value = || json!({ "id": made.id, "token": made.token, "expires_at": expires.map(|at| at.to_string()) });
    if !args.output.structured(&context.shell, value)? {
        context.shell.line(&line(&made.token))?;
        context.shell.note(&format!(
            "shown this once; ends {}; revoke it: octavius tokens revoke {}",
            expires.map_or("never".to_owned(), table::time),
            line(&made.id)
        ));
    }
    Ok(Exit::Done)
}

/// A token that nobody knows yet. A controller that finds it in its bootstrap token file, and knows no admin, makes it one's.
fn generate(context: &Context) -> Outcome {
    let mut random = [0u8; 32];
    getrandom::fill(&mut random)
        .map_err(|error| Failure::fault(format!("the operating system gives no random bytes: {error}")))?;
    context.shell.line(Token::from_random(TokenKind::User, &random).reveal())?;
    context.shell.note("good for nothing until a controller that knows no admin starts with it: --bootstrap-token-file FILE");
    Ok(Exit::Done)
}

async fn list(context: &Context, args: &ListArgs) -> Outcome {
    let session = Session::open(context).await?;
    let tokens = session.call(async |to| to.admin().list_tokens(v1::ListTokensRequest {}).await).await?.tokens;
    let shell = &context.shell;
    let value = || {
        let tokens: Vec<_> = tokens
            .iter()
            .map(|token| {
                json!({
                    "id": token.id,
                    "role": role_name(token.role),
                    "user": token.user,
                    "groups": token.groups,
                    "created_at": words::time(token.created_at.as_ref()).map(|at| at.to_string()),
                    "created_by": token.created_by,
                    "expires_at": words::time(token.expires_at.as_ref()).map(|at| at.to_string()),
                    "catalogs": token.catalogs,
                    "uses_left": token.uses_left,
                    "is_session": token.is_session,
                    "last_used_at": words::time(token.last_used_at.as_ref()).map(|at| at.to_string()),
                })
            })
            .collect();
        json!({ "tokens": tokens })
    };
    if args.output.structured(shell, value)? {
        return Ok(Exit::Done);
    }
    if args.output == Format::Name {
        shell.print(&tokens.iter().map(|token| format!("{}\n", line(&token.id))).collect::<String>())?;
        return Ok(Exit::Done);
    }
    let rows = tokens.iter().map(|token| {
        let expires = wire_time(token.expires_at.as_ref());
        vec![
            token.id.clone(),
            role_name(token.role).to_owned(),
            token.user.clone(),
            if token.groups.is_empty() { "-".to_owned() } else { token.groups.join(",") },
            bound_to(token),
            wire_time(token.created_at.as_ref()),
            if token.last_used_at.is_none() { "-".to_owned() } else { wire_time(token.last_used_at.as_ref()) },
            if expires.is_empty() { "never".to_owned() } else { expires },
        ]
    });
    shell.print(&table::render(
        &["ID", "ROLE", "USER", "GROUPS", "ONLY FOR", "CREATED", "LAST USED", "EXPIRES"],
        rows,
        shell.width,
    ))?;
    Ok(Exit::Done)
}

/// What a token is good for beyond its role: certain catalogues, so many registrations.
fn bound_to(token: &v1::TokenInfo) -> String {
    match token.uses_left {
        _ if token.is_session => "a browser's session".to_owned(),
        _ if !token.catalogs.is_empty() => token.catalogs.join(","),
        Some(0) => "used up".to_owned(),
        Some(1) => "1 executor".to_owned(),
        Some(uses) => format!("{uses} executors"),
        None => "-".to_owned(),
    }
}

async fn revoke(context: &Context, args: &RevokeArgs) -> Outcome {
    if args.id.parse::<Token>().is_ok() {
        return Err(Failure::usage("that is a token, not a token's id").hint("`octavius tokens list` shows the ids"));
    }
    let session = Session::open(context).await?;
    let request = v1::RevokeTokenRequest { id: args.id.clone() };
    session.call(async |to| to.admin().revoke_token(request.clone()).await).await?;
    if !args.output.structured(&context.shell, || json!({ "id": args.id }))? {
        context.shell.line(&args.id)?;
    }
    Ok(Exit::Done)
}
