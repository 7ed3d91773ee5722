//! `octavius apply`: makes the controller hold what the files say, or carries out a plan that was kept in a file.

mod plan;

use std::collections::HashMap;
use std::path::PathBuf;
use std::time::Duration;

use clap::Args;
use octavius_catalog::render::{self, RenderOptions};
use octavius_catalog::{Action, Change, MaxDeletions, Plan, PlanOptions, Summary};
use octavius_core::HumanDuration;
use octavius_proto::reason;
use serde_json::{Value, json};
use tokio::time::Instant;

use crate::daemon::until_signal;
use crate::error::{Failure, Outcome};
use crate::exit::Exit;
use crate::lineage::{refuse_older, require_clean, warn_dirty};
use crate::output::Format;
use crate::remote_catalog::{self, Applied, Applying, Local, Remote, Wanted, refuse_frozen, wire_provenance, working_tree};
use crate::session::{Session, is_local};
use crate::watch::watch;
use crate::{Context, env, notes, prompt};

/// Flags of `octavius apply`.
#[derive(Debug, Args)]
pub struct ApplyArgs {
    /// Folder of the catalogue; or a plan that `octavius diff --out PLAN` wrote, which is carried out exactly or not at all
    #[arg(value_name = "PATH|PLAN", default_value = "catalog")]
    path: PathBuf,
    /// Remove jobs that no file asks for
    #[arg(long)]
    prune: bool,
    /// Most jobs that may be removed: a number, or a part like 20% [default: 10%, at least 1, at most 5]
    #[arg(long, value_name = "N|N%", default_value = None)]
    max_deletions: Option<MaxDeletions>,
    /// Take a catalogue without any job over one that has jobs
    #[arg(long)]
    allow_empty: bool,
    /// Take a commit that is older than the one that was applied last [env: OCTAVIUS_ALLOW_OLDER]
    #[arg(long)]
    allow_older: bool,
    /// Refuse files that are in no commit
    #[arg(long, env = env::REQUIRE_CLEAN, value_parser = clap::builder::BoolishValueParser::new())]
    require_clean: bool,
    /// Where someone else applied in the meantime, plan again for so long, while it comes to what was agreed to [env:
    /// OCTAVIUS_RETRY_CONFLICT]
    #[arg(long, value_name = "DURATION")]
    retry_conflict: Option<HumanDuration>,
    /// Apply again on each change of the files, until Ctrl-C; never removes; to another machine only with --yes [env: OCTAVIUS_WATCH]
    #[arg(long)]
    watch: bool,
    /// Show the plan and end; one that is in a file is shown without a controller
    #[arg(long, env = env::DRY_RUN, value_parser = clap::builder::BoolishValueParser::new())]
    dry_run: bool,
    /// Do not ask; removals without a terminal need it
    #[arg(short, long)]
    yes: bool,
    /// Form of the output
    #[arg(short, long, value_parser = Format::among(&["text", "json", "yaml"]), default_value = "text", env = env::OUTPUT)]
    output: Format,
}

impl ApplyArgs {
    /// Flags of those named here that stand on the command line. What only a variable says is not among them: it was not written for this
    /// call.
    fn given(&self, names: &[&'static str]) -> Vec<&'static str> {
        let all = [
            ("--prune", self.prune),
            ("--max-deletions", self.max_deletions.is_some()),
            ("--allow-empty", self.allow_empty),
            ("--allow-older", self.allow_older),
            ("--retry-conflict", self.retry_conflict.is_some()),
            ("--watch", self.watch),
            ("--dry-run", self.dry_run),
        ];
        all.into_iter().filter(|(name, given)| *given && names.contains(name)).map(|(name, _)| name).collect()
    }

    fn allows_older(&self) -> bool {
        self.allow_older || env::is_true(env::ALLOW_OLDER)
    }

    fn retry_conflict(&self) -> Outcome<Option<Duration>> {
        let given = match (self.retry_conflict, env::get(env::RETRY_CONFLICT)) {
            (Some(given), _) => Some(given),
            (None, Some(text)) => {
                let parsed = text.parse().map_err(|error| Failure::usage(format!("{}: {error}", env::RETRY_CONFLICT)))?;
                Some(parsed)
            }
            (None, None) => None,
        };
        Ok(given.map(HumanDuration::get))
    }

    fn options(&self) -> PlanOptions {
        let max_deletions = self.max_deletions.unwrap_or_default();
        PlanOptions { prune: self.prune, max_deletions, allow_empty: self.allow_empty }
    }
}

/// First and longest pause before a plan is made again that someone else came before.
pub(super) const PAUSES: (Duration, Duration) = (Duration::from_millis(50), Duration::from_secs(1));

/// What would be applied, and to what.
struct Proposal {
    remote: Remote,
    plan: Plan,
    /// Why it cannot be: it goes further than it may. It is shown all the same: how else would one see whether it is meant?
    refusal: Option<Failure>,
}

async fn propose(session: &Session, local: &Local, options: &PlanOptions) -> Outcome<Proposal> {
    let jobs = &local.loaded.jobs;
    let remote = remote_catalog::observe(session, &local.name, jobs).await?;
    let (plan, refusal) = match remote_catalog::make_plan(&local.name, &remote, jobs, options) {
        Err(refusal) if refusal.exit == Exit::Refused => {
            let all = PlanOptions { max_deletions: MaxDeletions::Count(usize::MAX), allow_empty: true, ..options.clone() };
            (remote_catalog::make_plan(&local.name, &remote, jobs, &all)?, Some(refusal))
        }
        made => (made?, None),
    };
    Ok(Proposal { remote, plan, refusal })
}

/// Shows what would be applied: on standard output where that is all that is asked for, else on standard error.
async fn show(context: &Context, session: &Session, header: &str, plan: &Plan, to_stdout: Option<Format>) -> Outcome<()> {
    let shell = &context.shell;
    let runs = notes::runs(session, plan).await;
    let render = |color| {
        let header = Some(header.to_owned());
        render::render_text(plan, &RenderOptions { color, header, notes: notes::notes(plan, &runs) })
    };
    match to_stdout {
        Some(format) if format.structured(shell, || notes::report(plan, &runs))? => {}
        Some(_) => shell.print(&render(shell.color()))?,
        None => shell.stderr(&render(shell.color_stderr())),
    }
    Ok(())
}

/// Runs the command.
///
/// # Errors
/// Where the files have errors, the person declines, the controller refuses, or cannot be reached.
pub async fn run(context: &Context, args: &ApplyArgs) -> Outcome {
    if args.path.is_file() {
        return plan::run(context, args).await;
    }
    if !args.path.exists() {
        return Err(Failure::usage(format!("nothing at {}", args.path.display()))
            .hint("name the folder that holds octavius.yaml, or a plan that `octavius diff --out PLAN` wrote"));
    }
    if args.watch || env::is_true(env::WATCH) {
        return follow(context, args).await;
    }
    let retry = args.retry_conflict()?;
    let shell = &context.shell;
    let local = remote_catalog::read_sound(shell, &args.path)?;
    let provenance = local.provenance.as_ref();
    if args.require_clean {
        require_clean(&args.path, provenance.map(|from| (&*from.commit, from.dirty)))?;
    }
    let session = Session::open(context).await?;
    let header = |remote: &Remote| remote_catalog::header(&session, &local.name, remote, &working_tree(provenance));
    let mut proposal = propose(&session, &local, &args.options()).await?;
    let to_stdout = args.dry_run.then_some(args.output);
    show(context, &session, &header(&proposal.remote), &proposal.plan, to_stdout).await?;
    if args.dry_run {
        return proposal.refusal.map_or(Ok(Exit::Done), Err);
    }
    let mut agreed: Option<Plan> = None;
    let (mut deadline, mut pause) = (None, PAUSES.0);
    loop {
        let Proposal { remote, plan, refusal } = proposal;
        if let Some(refusal) = refusal {
            return Err(refusal);
        }
        if !plan.changes_anything() {
            print(context, args.output, remote.number(), &plan.summary)?;
            return Ok(Exit::Done);
        }
        refuse_frozen(&local.name, &remote)?;
        if !args.allows_older() {
            refuse_older(shell, &args.path, provenance, &remote)?;
        }
        match &agreed {
            None => {
                warn_dirty(shell, provenance);
                consent(context, &session, &plan, args.yes)?;
            }
            Some(agreed) => consent_again(context, &session, agreed, &plan, args.yes)?,
        }
        let provenance = provenance.map(wire_provenance);
        let applying = Applying { controller_id: remote.controller_id, provenance, ..Default::default() };
        match remote_catalog::apply(&session, &plan, applying).await {
            Ok(revision) => {
                print(context, args.output, revision.number, &plan.summary)?;
                return Ok(Exit::Done);
            }
            Err(failure) if failure.is(reason::HEAD_MOVED) => {
                let Some(retry) = retry else {
                    return Err(failure.hint("`--retry-conflict 30s` does that by itself, where nothing else has changed"));
                };
                let until = *deadline.get_or_insert_with(|| Instant::now() + retry);
                if Instant::now() + pause > until {
                    return Err(failure);
                }
                shell.note("someone else applied in the meantime; planning again");
                tokio::time::sleep(pause).await;
                pause = (pause * 2).min(PAUSES.1);
                proposal = propose(&session, &local, &args.options()).await?;
                if !is_within(&proposal.plan, &plan) {
                    show(context, &session, &header(&proposal.remote), &proposal.plan, None).await?;
                }
                agreed = Some(plan);
            }
            Err(failure) => return Err(failure),
        }
    }
}

/// Whether a plan does nothing but what another does, from the same to the same.
pub(super) fn is_within(plan: &Plan, agreed: &Plan) -> bool {
    let what = |change: &Change| (change.action, change.before, change.after);
    let agreed: HashMap<_, _> = agreed.changes.iter().map(|change| (&change.job, what(change))).collect();
    let does = |change: &&Change| change.action != Action::Blocked;
    plan.changes.iter().filter(does).all(|change| agreed.get(&change.job) == Some(&what(change)))
}

/// Consent to a plan that was made again: it stands while the plan does what was agreed to and removes nothing; else it is asked for anew.
fn consent_again(context: &Context, session: &Session, agreed: &Plan, plan: &Plan, yes: bool) -> Outcome<()> {
    match is_within(plan, agreed) {
        true if yes || plan.summary.removed == 0 => Ok(()),
        _ if context.shell.interactive && !yes => consent(context, session, plan, false),
        _ => Err(Failure::refused("someone else applied in the meantime, and what is to be applied is not what it was")
            .hint("look at `octavius diff` and apply again")),
    }
}

/// Asks, where there is someone to ask; removals are never carried out without consent.
///
/// # Errors
/// Where the person declines, or a removal has no consent.
pub fn consent(context: &Context, session: &Session, plan: &Plan, yes: bool) -> Outcome<()> {
    if yes {
        return Ok(());
    }
    if context.shell.interactive {
        let counts = render::render_summary(&plan.summary);
        return prompt::confirm(&context.shell, &format!("apply to {} ({})?", session.name(), counts.trim_end()));
    }
    if plan.summary.removed > 0 {
        let word = if plan.summary.removed == 1 { "job" } else { "jobs" };
        return Err(Failure::refused(format!(
            "{} {word} would be removed, and there is no terminal to ask at",
            plan.summary.removed
        ))
        .hint("pass --yes where that is meant"));
    }
    Ok(())
}

/// Prints the revision.
///
/// # Errors
/// Where standard output cannot be written.
pub fn print(context: &Context, format: Format, revision: u64, summary: &Summary) -> Outcome<()> {
    let value = || -> Value { json!({ "revision": revision, "summary": summary }) };
    if !format.structured(&context.shell, value)? {
        context.shell.line(&format!("revision {revision}"))?;
    }
    Ok(())
}

/// Applies on each settled change, until it is stopped.
async fn follow(context: &Context, args: &ApplyArgs) -> Outcome {
    let odd = args.given(&["--prune", "--max-deletions", "--allow-empty", "--retry-conflict", "--dry-run"]);
    if !odd.is_empty() {
        return Err(Failure::usage(format!("{} and --watch do not go together", odd.join(", ")))
            .hint("--watch applies what the files say, and never removes"));
    }
    if !args.path.is_dir() {
        return Err(remote_catalog::unreadable(octavius_catalog::ReadError::Missing(args.path.clone())));
    }
    let session = Session::open_if(context, |resolved| {
        if args.yes || is_local(resolved) {
            return Ok(());
        }
        let message = format!("{} is not on this machine: each change would be applied there unasked", resolved.name);
        Err(Failure::refused(message).hint("pass --yes where that is meant"))
    })
    .await?;
    let shell = &context.shell;
    until_signal(shell, async |stop| {
        let bring = async || follow_once(context, &session, args).await;
        let ready = || shell.note(&format!("watching {} for changes; Ctrl-C ends it", args.path.display()));
        watch(&args.path)?.each(shell, &stop, bring, ready).await?;
        Ok(Exit::Interrupted)
    })
    .await
}

/// Applies the folder as it is now.
async fn follow_once(context: &Context, session: &Session, args: &ApplyArgs) -> Outcome<()> {
    let shell = &context.shell;
    let wanted = Wanted { allow_older: args.allows_older(), require_clean: args.require_clean };
    match remote_catalog::apply_folder(context, session, &args.path, &wanted).await? {
        Applied::Revision(plan, revision) => {
            shell.stderr(&render::render_text(&plan, &RenderOptions { color: shell.color_stderr(), ..Default::default() }));
            print(context, args.output, revision, &plan.summary)
        }
        Applied::Unchanged(plan, number) => {
            shell.note(&format!("{}: revision {number}, {}", plan.catalog, render::render_summary(&plan.summary)));
            Ok(())
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use octavius_core::{CatalogName, Digest};

    fn plan(changes: &[(&str, Action, Option<&str>, Option<&str>)]) -> Plan {
        let digest = |text: &Option<&str>| text.map(|text| Digest::of(text.as_bytes()));
        let changes = changes.iter().map(|(job, action, before, after)| Change {
            job: job.parse().unwrap(),
            action: *action,
            file: String::new(),
            line: 0,
            reason: None,
            fields: Vec::new(),
            before: digest(before),
            after: digest(after),
            definition: None,
            inherited: Vec::new(),
        });
        Plan {
            format_version: 1,
            catalog: CatalogName::new("support").unwrap(),
            parent_revision: 1,
            summary: Summary::default(),
            changes: changes.collect(),
        }
    }

    #[test]
    fn consent_holds_for_the_same_changes_and_for_fewer() {
        let agreed = plan(&[
            ("a", Action::Added, None, Some("1")),
            ("b", Action::Changed, Some("1"), Some("2")),
            ("c", Action::Removed, Some("1"), None),
        ]);
        assert!(is_within(&agreed, &agreed));
        assert!(is_within(&plan(&[("b", Action::Changed, Some("1"), Some("2"))]), &agreed));
        // what someone else added stays where it is
        assert!(is_within(&plan(&[("x", Action::Blocked, Some("1"), None)]), &agreed));
        for other in [
            ("b", Action::Changed, Some("3"), Some("2")),
            ("a", Action::Changed, Some("3"), Some("1")),
            ("x", Action::Removed, Some("1"), None),
            ("x", Action::Added, None, Some("1")),
        ] {
            assert!(!is_within(&plan(&[other]), &agreed), "{other:?}");
        }
    }
}
