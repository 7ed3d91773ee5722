//! `octavius rollback`: what an older revision held becomes the newest one, through the same plan and consent as an apply.

use clap::Args;
use octavius_catalog::render::{self, RenderOptions};
use octavius_catalog::{Action, LoadedJob, MaxDeletions, PlanOptions};
use octavius_core::CatalogName;
use octavius_proto::v1;

use super::history::{self, revisions};
use super::{apply, unfreeze};
use crate::catalog_args::CatalogArgs;
use crate::error::{Failure, Outcome};
use crate::exit::Exit;
use crate::output::Format;
use crate::remote_catalog::{self, Applying};
use crate::session::Session;
use crate::{Context, env, prompt};

/// Flags of `octavius rollback`.
#[derive(Debug, Args)]
pub struct RollbackArgs {
    /// The revision to bring back; `octavius history` shows them
    #[arg(value_parser = clap::value_parser!(u64).range(1..))]
    revision: u64,
    #[command(flatten)]
    catalog: CatalogArgs,
    /// Freeze the catalogue with it: nothing is applied then until `octavius unfreeze`
    #[arg(long, env = env::FREEZE, value_parser = clap::builder::BoolishValueParser::new())]
    freeze: bool,
    /// Do not ask; removals without a terminal need it
    #[arg(short, long)]
    yes: bool,
    /// Form of the output
    #[arg(short, long, value_parser = Format::among(&["text", "json", "yaml"]), default_value = "text", env = env::OUTPUT)]
    output: Format,
}

/// One revision of a catalogue.
///
/// # Errors
/// Where there is none of this number, with those there are, or the controller cannot be reached.
pub async fn revision(session: &Session, catalog: &CatalogName, number: u64) -> Outcome<v1::Revision> {
    let found = revisions(session, catalog, "", number.saturating_add(1), 1).await?;
    if let Some(revision) = found.into_iter().find(|revision| revision.number == number) {
        return Ok(revision);
    }
    let all = revisions(session, catalog, "", 0, u32::MAX).await?;
    Err(Failure::refused(match (all.first(), all.last()) {
        (Some(newest), Some(oldest)) => {
            format!("catalogue `{catalog}` has no revision {number}; it has {} to {}", oldest.number, newest.number)
        }
        _ => format!("catalogue `{catalog}` has no revision yet"),
    })
    .hint("`octavius history` shows them"))
}

/// Runs the command.
///
/// # Errors
/// Where there is no such revision, a protected job would go, the person declines, the controller refuses, or cannot be reached.
pub async fn run(context: &Context, args: &RollbackArgs) -> Outcome {
    let shell = &context.shell;
    let catalog = args.catalog.get()?;
    let session = Session::open(context).await?;
    let back = revision(&session, &catalog, args.revision).await?;
    let desired: Vec<LoadedJob> = remote_catalog::fetch_revision(&session, &catalog, args.revision)
        .await?
        .into_iter()
        .map(|(entry, definition)| LoadedJob { inherited: entry.inherited, ..LoadedJob::of(definition, entry.file, entry.line) })
        .collect();
    let remote = remote_catalog::observe(&session, &catalog, &desired).await?;
    // the guards against removing too much are for what nobody has seen yet: this state was applied once
    let options = PlanOptions { prune: true, max_deletions: MaxDeletions::Count(usize::MAX), allow_empty: true };
    let plan = remote_catalog::make_plan(&catalog, &remote, &desired, &options)?;
    let commit = history::commit(&back).map(|commit| format!(" ({commit})")).unwrap_or_default();
    let header = remote_catalog::header(&session, &catalog, &remote, &format!("revision {}{commit}", back.number));
    let notes = crate::notes::about(&session, &plan).await;
    shell.stderr(&render::render_text(&plan, &RenderOptions { color: shell.color_stderr(), header: Some(header), notes }));
    // half a rollback is none
    if let Some(blocked) = plan.changes.iter().find(|change| change.action == Action::Blocked) {
        let what = format!("job `{}` is protected, and revision {} does not have it", blocked.job, back.number);
        return Err(Failure::refused(what).hint("apply it without `protect: true` first, then roll back"));
    }
    if !plan.changes_anything() {
        if args.freeze && remote.frozen.is_none() {
            freeze(context, &session, &catalog, remote.number(), args.yes).await?;
        }
        apply::print(context, args.output, remote.number(), &plan.summary)?;
        return Ok(Exit::Done);
    }
    apply::consent(context, &session, &plan, args.yes)?;
    let applying = Applying {
        controller_id: remote.controller_id,
        provenance: back.provenance,
        rollback_to: back.number,
        freeze: args.freeze,
        ..Default::default()
    };
    let made = remote_catalog::apply(&session, &plan, applying).await?;
    if args.freeze || remote.frozen.is_some() {
        tell_frozen(context, &catalog);
    } else {
        shell.hint("the files still say something else: until they agree, the next apply undoes this; --freeze keeps it");
    }
    apply::print(context, args.output, made.number, &plan.summary)?;
    Ok(Exit::Done)
}

/// Freezes a catalogue that holds already what is to be brought back, as far as its head `number` goes.
async fn freeze(context: &Context, session: &Session, catalog: &CatalogName, number: u64, yes: bool) -> Outcome<()> {
    if context.shell.interactive && !yes {
        prompt::confirm(&context.shell, &format!("freeze `{catalog}` of {}?", session.name()))?;
    }
    unfreeze::set_frozen(session, catalog, true).await?;
    tell_frozen(context, catalog);
    // nothing says with a freeze which revision it is for, so someone may have applied just before it
    let now = remote_catalog::head(session, catalog).await?.revision.map_or(0, |revision| revision.number);
    if now == number {
        return Ok(());
    }
    Err(Failure::refused(format!(
        "head has moved: revision {now} was applied before the catalogue was frozen, after revision {number}"
    ))
    .hint("look at `octavius history`, and roll back again; or `octavius unfreeze`"))
}

fn tell_frozen(context: &Context, catalog: &CatalogName) {
    context.shell.note(&format!("catalogue `{catalog}` is frozen: nothing is applied to it until `octavius unfreeze`"));
}
