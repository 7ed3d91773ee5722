//! `octavius whoami`: who one is to the controller.

use clap::Args;
use octavius_core::{Role, Timestamp};
use octavius_proto::v1;
use octavius_proto::words::{self, between};
use serde_json::json;

use crate::error::Outcome;
use crate::exit::Exit;
use crate::output::Format;
use crate::sanitize::line;
use crate::session::Session;
use crate::{Context, env};

/// Flags of `octavius whoami`.
#[derive(Debug, Args)]
pub struct WhoamiArgs {
    /// Form of the output
    #[arg(short, long, value_parser = Format::among(&["text", "json", "yaml"]), default_value = "text", env = env::OUTPUT)]
    output: Format,
}

/// A role's name.
#[must_use]
pub fn role_name(number: i32) -> &'static str {
    v1::Role::try_from(number).ok().and_then(|role| Role::try_from(role).ok()).map_or("unknown", Role::as_str)
}

/// Runs the command.
///
/// # Errors
/// Where the controller cannot be reached, or does not know the token.
pub async fn run(context: &Context, args: &WhoamiArgs) -> Outcome {
    let session = Session::open(context).await?;
    let me = session.call(async |to| to.admin().who_am_i(v1::WhoAmIRequest {}).await).await?;
    let expires = words::time(me.expires_at.as_ref());
    let value = || {
        json!({
            "controller": session.address().to_string(),
            "controller_id": me.controller_id,
            "controller_version": me.version,
            "user": me.user,
            "role": role_name(me.role),
            "groups": me.groups,
            "catalogs": me.catalogs,
            "token_id": me.token_id,
            "issuer": Some(&me.issuer).filter(|issuer| !issuer.is_empty()),
            "expires_at": expires.map(|at| at.to_string()),
        })
    };
    if args.output.structured(&context.shell, value)? {
        return Ok(Exit::Done);
    }
    let now = Timestamp::now();
    let expiry = expires.map_or("never".to_owned(), |at| format!("{at:.0}, in {}", between(now, at)));
    let groups = if me.groups.is_empty() { "none".to_owned() } else { me.groups.join(", ") };
    let mut facts = vec![
        ("controller", format!("{} ({})", session.address(), me.controller_id)),
        ("user", me.user),
        ("role", role_name(me.role).to_owned()),
        ("groups", groups),
        ("expires", expiry),
    ];
    if !me.catalogs.is_empty() {
        facts.insert(facts.len() - 1, ("catalogues", me.catalogs.join(", ")));
    }
    if !me.issuer.is_empty() {
        facts.push(("issuer", me.issuer));
    }
    context.shell.print(&facts.iter().map(|(name, value)| format!("{name:<10}  {}\n", line(value))).collect::<String>())?;
    Ok(Exit::Done)
}
