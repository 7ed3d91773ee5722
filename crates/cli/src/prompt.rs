//! Questions to the person at the terminal. They go to standard error, name what they are about, and default to No.

use dialoguer::{Confirm, Input, Password};

use crate::error::{Failure, Outcome};
use crate::exit::Exit;
use crate::output::Shell;
use crate::sanitize;

fn interrupted(error: dialoguer::Error) -> Failure {
    let dialoguer::Error::IO(error) = error;
    match error.kind() {
        std::io::ErrorKind::Interrupted => Failure::quiet(Exit::Interrupted),
        _ => Failure::new(Exit::Fault, anyhow::Error::new(error).context("cannot ask at this terminal")),
    }
}

/// Asks a question that is answered with yes or no; No is the default.
///
/// # Errors
/// Where the person declines, or interrupts.
pub fn confirm(shell: &Shell, question: &str) -> Outcome<()> {
    debug_assert!(shell.interactive);
    let agreed = Confirm::new().with_prompt(sanitize::line(question)).default(false).interact_opt().map_err(interrupted)?;
    if agreed == Some(true) { Ok(()) } else { Err(Failure::refused("declined; nothing was changed")) }
}

/// Asks for a word to be typed, so that nothing runs by mere habit.
///
/// # Errors
/// Where another word comes, or the person interrupts.
pub fn type_back(shell: &Shell, question: &str, word: &str) -> Outcome<()> {
    debug_assert!(shell.interactive);
    let typed: String =
        Input::new().with_prompt(sanitize::line(question)).allow_empty(true).interact_text().map_err(interrupted)?;
    if typed.trim() == word { Ok(()) } else { Err(Failure::refused("declined; nothing was run")) }
}

/// Asks for a value, until `check` takes it.
///
/// # Errors
/// Where the person interrupts.
pub fn value(shell: &Shell, question: &str, hidden: bool, check: impl Fn(&str) -> Result<(), String>) -> Outcome<String> {
    debug_assert!(shell.interactive);
    let question = sanitize::line(question);
    let check = |text: &String| if text.is_empty() { Err("a value is needed".to_owned()) } else { check(text) };
    if hidden {
        Password::new().with_prompt(question).allow_empty_password(true).validate_with(check).interact().map_err(interrupted)
    } else {
        Input::new().with_prompt(question).allow_empty(true).validate_with(check).interact_text().map_err(interrupted)
    }
}
