//! `octavius completion`: a script that completes commands and flags.

use clap::Args;
use clap_complete::Shell;

use crate::Context;
use crate::error::Outcome;
use crate::exit::Exit;

/// Flags of `octavius completion`.
#[derive(Debug, Args)]
#[command(after_help = "for bash: octavius completion bash > ~/.local/share/bash-completion/completions/octavius")]
pub struct CompletionArgs {
    /// The shell
    shell: Shell,
}

/// Runs the command.
///
/// # Errors
/// Where standard output cannot be written.
pub fn run(context: &Context, args: &CompletionArgs) -> Outcome {
    // into memory first: the generator panics where it cannot write
    let mut script = Vec::new();
    clap_complete::generate(args.shell, &mut crate::cli::command(), "octavius", &mut script);
    context.shell.bytes(&script)?;
    Ok(Exit::Done)
}
