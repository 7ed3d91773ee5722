//! `octavius completion`: a script by which a shell completes commands, flags, and names that the controller knows.

use clap::Args;
use clap_complete::Shell;

use crate::Context;
use crate::complete::Asking;
use crate::error::Outcome;
use crate::exit::Exit;

/// How each shell reads its script.
const INSTALL_HELP: &str = "\
For bash:
  octavius completion bash > ~/.local/share/bash-completion/completions/octavius
For zsh, into a folder of $fpath:
  octavius completion zsh > ~/.zfunc/_octavius
For fish:
  octavius completion fish > ~/.config/fish/completions/octavius.fish
For this session of bash alone:
  . <(octavius completion bash)

In these three, names of jobs, their arguments and values, ids of executions and executors, contexts and revisions are completed as the
controller has them, with the token that the command would use. A controller that does not answer within half a second is not waited for.";

/// Flags of `octavius completion`.
#[derive(Debug, Args)]
#[command(after_help = INSTALL_HELP)]
pub struct CompletionArgs {
    /// The shell
    shell: Shell,
}

/// Runs the command.
///
/// # Errors
/// Where standard output cannot be written.
pub fn run(context: &Context, args: &CompletionArgs) -> Outcome {
    let asking = match args.shell {
        Shell::Bash => Some(Asking::Bash),
        Shell::Zsh => Some(Asking::Zsh),
        Shell::Fish => Some(Asking::Fish),
        // these complete what was known when the script was made
        _ => None,
    };
    match asking {
        Some(asking) => context.shell.print(asking.script())?,
        None => {
            // into memory first: the generator panics where it cannot write
            let mut script = Vec::new();
            clap_complete::generate(args.shell, &mut crate::cli::command(), "octavius", &mut script);
            context.shell.bytes(&script)?;
        }
    }
    Ok(Exit::Done)
}
