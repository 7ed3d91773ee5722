//! The tree of commands and the flags that all of them take. What a command does, and its own flags, are in its module.

use std::path::PathBuf;

use clap::{Args, CommandFactory as _, Parser, Subcommand};

use crate::commands::{
    apply, approve, audit, backup, cancel, completion, config, controller, create, demo, describe, dev, diff, doctor, execute,
    executions, executor, executors, export, getlogs, history, import, init, list, man, pause, rollback, schema, status, tls,
    tokens, unfreeze, validate, version, webhooks, whoami,
};
use crate::env;
use crate::error::{Failure, Outcome};
use crate::token_from::TokenFrom;

/// A job catalogue that a team reviews in pull requests and runs anywhere
#[derive(Debug, Parser)]
#[command(name = "octavius", version, disable_help_subcommand = true, max_term_width = 120)]
pub struct Cli {
    /// How to reach a controller.
    #[command(flatten)]
    pub connect: ConnectArgs,
    /// What to do.
    #[command(subcommand)]
    pub command: Command,
}

/// How to reach a controller. Their environment variables are read in [`crate::config`], after the flags of all commands are known.
#[derive(Debug, Clone, Default, Args)]
#[command(next_help_heading = "Connection")]
pub struct ConnectArgs {
    /// Configuration file [default: ./octavius_client.yaml, then ~/.octavius/octavius_client.yaml] [env: OCTAVIUS_CONFIG]
    #[arg(long, global = true, value_name = "FILE", hide_short_help = true)]
    pub config: Option<PathBuf>,
    /// Context of the configuration file [env: OCTAVIUS_CONTEXT]
    #[arg(long, global = true, value_name = "NAME", hide_short_help = true)]
    pub context: Option<String>,
    /// Address of the controller, several by comma; https://HOST:PORT for TLS with a certificate that the system trusts [env:
    /// OCTAVIUS_CP_HOST, CP_HOST]
    #[arg(long, global = true, value_name = "HOST:PORT", hide_short_help = true)]
    pub cp_host: Option<String>,
    /// Your mail address [env: OCTAVIUS_EMAIL_ID, EMAIL_ID]
    #[arg(long, global = true, value_name = "ADDRESS", hide_short_help = true)]
    pub email_id: Option<String>,
    /// Token; others on this machine can read it from the list of processes [env: OCTAVIUS_TOKEN, ACCESS_TOKEN]
    #[arg(long, global = true, value_name = "TOKEN", hide_short_help = true, conflicts_with = "token_file")]
    pub token: Option<String>,
    /// File that holds the token, or - for standard input [env: OCTAVIUS_TOKEN_FILE]
    #[arg(long, global = true, value_name = "FILE", hide_short_help = true)]
    pub token_file: Option<PathBuf>,
    /// Who makes a token for this run: github or github:AUDIENCE, in a job of GitHub Actions [env: OCTAVIUS_TOKEN_FROM]
    #[arg(long, global = true, value_name = "CI", hide_short_help = true, conflicts_with_all = ["token", "token_file"])]
    pub token_from: Option<TokenFrom>,
    /// Longest wait for the controller, 0 for the default of 10 [env: OCTAVIUS_TIME_OUT, CONNECTION_TIMEOUT_SECS]
    #[arg(long, global = true, value_name = "SECONDS", hide_short_help = true)]
    pub time_out: Option<u64>,
    /// TLS, with a certificate that this authority has signed, PEM [env: OCTAVIUS_CA_FILE]
    #[arg(long, global = true, value_name = "FILE", hide_short_help = true)]
    pub ca_file: Option<PathBuf>,
    /// TLS, and a certificate to show to the controller, PEM [env: OCTAVIUS_CLIENT_CERT]
    #[arg(long, global = true, value_name = "FILE", hide_short_help = true)]
    pub client_cert: Option<PathBuf>,
    /// Key of that certificate, PEM [env: OCTAVIUS_CLIENT_KEY]
    #[arg(long, global = true, value_name = "FILE", hide_short_help = true)]
    pub client_key: Option<PathBuf>,
    /// TLS, with a certificate for this name, where it is not that of the address [env: OCTAVIUS_SERVER_NAME]
    #[arg(long, global = true, value_name = "NAME", hide_short_help = true)]
    pub server_name: Option<String>,
    /// Never ask; as without a terminal [env: OCTAVIUS_NO_INPUT]
    #[arg(long, global = true, hide_short_help = true)]
    pub no_input: bool,
}

/// What to do.
#[derive(Debug, Subcommand)]
pub enum Command {
    /// Make a catalogue to begin from, with settings for the editor and CI
    Init(init::InitArgs),
    /// Check the files of a catalogue, offline
    Validate(validate::ValidateArgs),
    /// Show what an apply would change
    Diff(diff::DiffArgs),
    /// Make the controller hold what the files say
    Apply(apply::ApplyArgs),
    /// Show the revisions of a catalogue
    History(history::HistoryArgs),
    /// Bring back what an older revision held
    Rollback(rollback::RollbackArgs),
    /// Let a catalogue be applied again that a rollback froze
    Unfreeze(unfreeze::UnfreezeArgs),
    /// Write a revision as files
    Export(export::ExportArgs),
    /// Put one job into the catalogue `manual`
    Create(create::CreateArgs),
    /// Remove one job from the catalogue `manual`
    Delete(create::DeleteArgs),
    /// Make a catalogue of the jobs of a first Octavius
    Import(import::ImportArgs),
    /// Print the JSON Schema of job files
    Schema(schema::SchemaArgs),

    /// List the jobs that you may see
    List(list::ListArgs),
    /// Show a job and how to run it
    Describe(describe::DescribeArgs),
    /// Run a job
    #[command(visible_alias = "run")]
    Execute(execute::ExecuteArgs),
    /// Run the job of an execution again, with the same arguments
    Rerun(execute::RerunArgs),
    /// List executions, yours or all
    Executions(executions::ExecutionsArgs),
    /// Show an execution, and why it is as it is
    Status(status::StatusArgs),
    /// Print an execution's log
    #[command(visible_alias = "logs")]
    Getlogs(getlogs::GetlogsArgs),
    /// Stop an execution
    Cancel(cancel::CancelArgs),
    /// Approve an execution that waits for approval
    Approve(approve::DecisionArgs),
    /// Reject an execution that waits for approval
    Reject(approve::DecisionArgs),

    /// Run a controller
    Controller(controller::ControllerArgs),
    /// Register and run an executor
    Executor(executor::ExecutorArgs),
    /// List executors, drain and revoke them
    Executors(executors::ExecutorsArgs),
    /// Have nothing of a job start, or of any job
    Pause(pause::PauseArgs),
    /// Let a job start again that was paused
    Unpause(pause::UnpauseArgs),
    /// Make, list and revoke tokens
    Tokens(tokens::TokensArgs),
    /// List webhooks and what they did not take, and have it tried again
    Webhooks(webhooks::WebhooksArgs),
    /// Show who did, or was refused, what
    Audit(audit::AuditArgs),
    /// Make certificates to try TLS with
    Tls(tls::TlsArgs),
    /// Keep everything that the controller holds in a file
    Backup(backup::BackupArgs),
    /// Put a backup into an empty store
    Restore(backup::RestoreArgs),
    /// Run a controller and an executor in one process, to try things
    Dev(dev::DevArgs),
    /// Take the whole tour in a temporary folder
    Demo(demo::DemoArgs),

    /// Show and write the configuration
    Config(config::ConfigArgs),
    /// Show who you are to the controller
    Whoami(whoami::WhoamiArgs),
    /// Look for what is wrong, and say what to do about it
    Doctor(doctor::DoctorArgs),
    /// Print a completion script for a shell
    Completion(completion::CompletionArgs),
    /// Show the versions of client and controller
    Version(version::VersionArgs),
    /// Write the manual pages
    #[command(hide = true)]
    Man(man::ManArgs),
}

/// The groups of the help text.
pub(crate) const GROUPS: [(&str, &[&str]); 4] = [
    (
        "For the catalogue",
        &[
            "init", "validate", "diff", "apply", "history", "rollback", "unfreeze", "export", "create", "delete", "import",
            "schema",
        ],
    ),
    (
        "For people who run jobs",
        &["list", "describe", "execute", "rerun", "executions", "status", "getlogs", "cancel", "approve", "reject"],
    ),
    (
        "For operators",
        &[
            "controller",
            "executor",
            "executors",
            "pause",
            "unpause",
            "tokens",
            "webhooks",
            "audit",
            "tls",
            "backup",
            "restore",
            "dev",
            "demo",
        ],
    ),
    ("Connections", &["config", "whoami", "doctor", "completion", "version"]),
];

/// The tree of commands, with the grouped help.
#[must_use]
pub fn command() -> clap::Command {
    let command = Cli::command();
    let mut help = String::from("{about}\n\n{usage-heading} {usage}\n");
    for (title, names) in GROUPS {
        help.push_str(&format!("\n{title}:\n"));
        for name in names {
            let about =
                command.find_subcommand(name).and_then(clap::Command::get_about).map(ToString::to_string).unwrap_or_default();
            help.push_str(&format!("  {name:<12} {about}\n"));
        }
    }
    help.push_str("\n`octavius COMMAND --help` tells all of a command. To begin: `octavius demo`\n\n{options}\n");
    command.help_template(help)
}

/// The tree of commands for parsing: a variable that is empty counts as unset, as CI systems give those that nobody set; and a form of output
/// in the environment that a command does not have is none of its business.
#[must_use]
pub fn parser() -> clap::Command {
    by_environment(command())
}

pub(crate) fn by_environment(command: clap::Command) -> clap::Command {
    command
        .mut_args(|arg| {
            let Some(name) = arg.get_env() else { return arg };
            let counts = match std::env::var_os(name) {
                Some(value) if value.is_empty() => false,
                Some(value) if name == env::OUTPUT => {
                    arg.get_possible_values().iter().any(|form| value.to_str().is_some_and(|value| form.matches(value, false)))
                }
                _ => true,
            };
            if counts { arg } else { arg.env(clap::builder::Resettable::Reset) }
        })
        .mut_subcommands(by_environment)
}

/// A job's name, as the argument or by the first Octavius' flag.
#[derive(Debug, Clone, Args)]
pub struct JobArgs {
    /// Name of the job
    #[arg(value_name = "NAME")]
    pub name: Option<String>,
    /// Name of the job, as the first Octavius has it [env: OCTAVIUS_JOB_NAME]
    #[arg(long, value_name = "NAME", hide_short_help = true)]
    pub job_name: Option<String>,
}

impl JobArgs {
    /// The name.
    ///
    /// # Errors
    /// Where none was given, or two.
    pub fn get(&self) -> Outcome<String> {
        let given = one("NAME", self.name.as_deref(), "--job-name", self.job_name.as_deref(), env::JOB_NAME)?;
        given.ok_or_else(|| Failure::usage("no job is named").hint("give its NAME; `octavius list` shows them"))
    }
}

/// An execution's id, as the argument or by the first Octavius' flag.
#[derive(Debug, Clone, Args)]
pub struct IdArgs {
    /// The id, its last four or more characters, or @latest
    #[arg(value_name = "ID")]
    pub id: Option<String>,
    /// The id, as the first Octavius has it [env: OCTAVIUS_JOB_ID]
    #[arg(long, value_name = "ID", hide_short_help = true)]
    pub job_id: Option<String>,
}

impl IdArgs {
    /// The id.
    ///
    /// # Errors
    /// Where none was given, or two.
    pub fn get(&self) -> Outcome<String> {
        let given = one("ID", self.id.as_deref(), "--job-id", self.job_id.as_deref(), env::JOB_ID)?;
        // ids are written in lower case; some programs show them in upper
        given.map(|id| id.to_ascii_lowercase()).ok_or_else(|| {
            Failure::usage("no execution is named").hint("give its ID, or @latest; `octavius executions` shows them")
        })
    }

    /// Whether one stands on the command line.
    #[must_use]
    pub fn is_given(&self) -> bool {
        self.id.is_some() || self.job_id.is_some()
    }
}

/// The value that an argument or its flag gives, or else a variable: it weighs less than both, and they must not differ.
fn one(argument: &str, given: Option<&str>, flag: &str, flagged: Option<&str>, variable: &str) -> Outcome<Option<String>> {
    if let (Some(one), Some(other)) = (given, flagged)
        && one != other
    {
        return Err(Failure::usage(format!("{argument} and {flag} name two different things")).hint("give one of them"));
    }
    Ok(given.or(flagged).map(str::to_owned).or_else(|| env::get(variable)))
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::BTreeSet;

    #[test]
    fn the_tree_is_sound() {
        command().debug_assert();
    }

    #[test]
    fn every_command_is_in_one_group_of_the_help() {
        let command = command();
        let mut grouped: Vec<_> = GROUPS.iter().flat_map(|(_, names)| names.iter().copied()).collect();
        let mut known: Vec<_> = command.get_subcommands().filter(|c| !c.is_hide_set()).map(|c| c.get_name().to_owned()).collect();
        grouped.sort_unstable();
        known.sort_unstable();
        assert_eq!(grouped, known);
    }

    /// Flags that consent to harm must be written out each time.
    const CONSENT: [&str; 5] = ["yes", "prune", "allow-empty", "max-deletions", "force"];

    /// What `cancel`, `pause`, `unpause` and `webhooks retry` take many by: a variable that was set for a list must not choose what is stopped.
    const SELECTORS: [(&str, &[&str]); 4] = [
        (" cancel", &["state", "job-name", "all"]),
        (" pause", &["all"]),
        (" unpause", &["all"]),
        (" webhooks retry", &["execution", "all"]),
    ];

    #[test]
    fn every_flag_has_its_variable_except_those_that_consent() {
        fn walk(command: &clap::Command, path: &str, problems: &mut Vec<String>, used: &mut BTreeSet<String>) {
            for arg in command.get_arguments() {
                let Some(long) = arg.get_long().filter(|long| !matches!(*long, "help" | "version")) else { continue };
                let own = arg.get_env().map(|name| name.to_string_lossy().into_owned());
                let told = arg.get_help().map(ToString::to_string).unwrap_or_default();
                let in_help = told.split("[env: ").nth(1).and_then(|rest| rest.split([',', ']']).next()).map(str::to_owned);
                let name = own.or(in_help);
                used.extend(name.clone());
                let selects = SELECTORS.iter().any(|(of, flags)| path.ends_with(of) && flags.contains(&long));
                match (CONSENT.contains(&long) || selects, &name) {
                    (true, Some(name)) => problems.push(format!("{path} --{long} consents and has {name}")),
                    (false, None) => problems.push(format!("{path} --{long} has no variable")),
                    (false, Some(name)) if !crate::env::ALL.contains(&name.as_str()) => {
                        problems.push(format!("{name} is not declared"));
                    }
                    _ => {}
                }
            }
            for sub in command.get_subcommands() {
                walk(sub, &format!("{path} {}", sub.get_name()), problems, used);
            }
        }
        let (mut problems, mut used) = (Vec::new(), BTreeSet::new());
        walk(&command(), "octavius", &mut problems, &mut used);
        assert_eq!(problems, Vec::<String>::new());
        use crate::env as e;
        let without_flag = [
            e::LOG,
            e::FASTER,
            // keys of a configuration file, and a secret
            e::ETCD_PORT,
            e::ETCD_DIAL_TIMEOUT,
            e::ETCD_PASSWORD,
            e::ETCD_QUOTA_BYTES,
            e::ETCD_SHARED,
            e::RETENTION_AGE,
            e::RETENTION_EXECUTIONS,
            e::RETENTION_LOG_BYTES,
            e::RETENTION_AUDIT,
            e::AUDIT_EXPORT,
            e::REQUEST_RATE,
            e::SECRETS,
            e::EXECUTOR_TOKEN_LIFETIME,
            e::APP_PORT,
            e::EXECUTOR_PING_DEADLINE,
            e::LOG_FILE_PATH,
            e::LOG_FILE_MAX_SIZE,
        ];
        let of_kubernetes = crate::kubernetes_options::KEYS.iter().flat_map(|(_, names)| *names);
        let without_flag: Vec<_> = without_flag.into_iter().chain(of_kubernetes.copied()).collect();
        let unused: Vec<_> = crate::env::ALL
            .iter()
            .filter(|name| name.starts_with("OCTAVIUS_") && !used.contains(**name) && !without_flag.contains(name))
            .collect();
        assert_eq!(unused, Vec::<&&str>::new(), "declared and not used");
    }

    #[test]
    fn the_help_is_grouped() {
        let help = command().render_help().to_string();
        insta::assert_snapshot!(help);
    }
}
