//! `octavius diff`: what an apply would change.

use std::collections::BTreeMap;
use std::path::PathBuf;

use clap::Args;
use octavius_catalog::render::{self, Note, RenderOptions};
use octavius_catalog::{Action, MaxDeletions, Plan, PlanOptions};
use octavius_core::{JobName, State, Timestamp};
use octavius_proto::{to_state, v1};

use crate::error::Outcome;
use crate::exit::Exit;
use crate::output::Format;
use crate::session::Session;
use crate::table::{between, from_wire};
use crate::{Context, env, remote_catalog};

/// Flags of `octavius diff`.
#[derive(Debug, Args)]
pub struct DiffArgs {
    /// Folder of the catalogue
    #[arg(value_name = "PATH", default_value = "catalog")]
    path: PathBuf,
    /// Form of the output
    #[arg(short, long, value_parser = Format::among(&["text", "json", "yaml", "name"]), default_value = "text", env = env::OUTPUT)]
    output: Format,
    /// Plan with the removal of jobs that no file asks for
    #[arg(long)]
    prune: bool,
    /// End with 0 also where there are differences
    #[arg(long, env = env::EXIT_ZERO, value_parser = clap::builder::BoolishValueParser::new())]
    exit_zero: bool,
}

/// Most jobs about whose executions is asked: each is a call of its own.
const NOTED: usize = 20;

/// Most running executions that are counted.
const COUNTED: u32 = 100;

/// What is known of the executions of jobs that change or go. It is a courtesy: where it cannot be had, it is left out.
pub async fn notes(session: &Session, plan: &Plan) -> BTreeMap<JobName, Note> {
    let mut notes = BTreeMap::new();
    let touched = plan.changes.iter().filter(|change| change.action != Action::Added);
    for change in touched.take(NOTED) {
        let ask = |states: Vec<i32>, limit| v1::ListExecutionsRequest {
            all: true,
            job: change.job.to_string(),
            states,
            limit,
            ..Default::default()
        };
        let live = State::ALL.into_iter().filter(|state| !state.is_terminal()).map(|state| to_state(state).into()).collect();
        let request = if change.action == Action::Changed { ask(live, COUNTED) } else { ask(Vec::new(), 1) };
        let found = session.call(async |to| to.executions().list_executions(request.clone()).await);
        let Ok(found) = found.await else { break };
        let note = match (change.action, found.executions.as_slice()) {
            (Action::Changed, []) => continue,
            (Action::Changed, running) => {
                let count = running.len();
                let more = if found.next_page_token.is_empty() { "" } else { "+" };
                let word = if count == 1 { "execution keeps" } else { "executions keep" };
                let below = vec![format!("{count}{more} unfinished {word} the definition from before")];
                Note { beside: None, below }
            }
            (_, []) => Note { beside: Some("never run".to_owned()), below: Vec::new() },
            (_, [last, ..]) => {
                let ago = from_wire(last.created_at.as_ref()).map(|at| between(at, Timestamp::now()));
                Note { beside: ago.map(|ago| format!("last run {ago} ago")), below: Vec::new() }
            }
        };
        notes.insert(change.job.clone(), note);
    }
    notes
}

/// Runs the command.
///
/// # Errors
/// Where the files have errors, or the controller cannot be reached.
pub async fn run(context: &Context, args: &DiffArgs) -> Outcome {
    let shell = &context.shell;
    let local = remote_catalog::read_sound(shell, &args.path)?;
    let session = Session::open(context).await?;
    let remote = remote_catalog::observe(&session, &local.name, &local.loaded.jobs).await?;
    // a diff shows all there is; how much may go is for the apply to say
    let options = PlanOptions { prune: args.prune, max_deletions: MaxDeletions::Count(usize::MAX), allow_empty: true };
    let plan = remote_catalog::make_plan(&local.name, &remote, &local.loaded.jobs, &options)?;
    if !args.output.structured(shell, || plan.report())? {
        match args.output {
            Format::Name => shell.print(&plan.changes.iter().map(|change| format!("{}\n", change.job)).collect::<String>())?,
            _ => {
                let header = remote_catalog::header(&session, &local.name, &remote, local.provenance.as_ref());
                let notes = notes(&session, &plan).await;
                let options = RenderOptions { color: shell.color(), header: Some(header), notes };
                shell.print(&render::render_text(&plan, &options))?;
            }
        }
    }
    Ok(if plan.is_empty() || args.exit_zero { Exit::Done } else { Exit::No })
}
