//! Everything that is printed. Standard output bears what was asked for and nothing else; standard error bears progress, questions, warnings
//! and errors. Colour and cutting to the width of the window happen on a terminal only.

use std::io::{self, IsTerminal as _, Write as _};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use anstyle::{AnsiColor, Style};
use serde_json::Value;

use crate::env;
use crate::error::{Failure, Outcome};

/// The version of JSON output.
pub const FORMAT_VERSION: u32 = 1;

/// The streams of this process and what may be done with them.
#[derive(Debug, Clone)]
pub struct Shell {
    /// Whether there is a person to ask: stdin and stderr are terminals, `CI` is not set, no `--no-input`.
    pub interactive: bool,
    /// Whether standard output is a terminal.
    pub stdout_is_terminal: bool,
    color_stdout: bool,
    color_stderr: bool,
    /// Columns of the terminal on standard output, where it is one.
    pub width: Option<u16>,
    /// Whether whoever read standard output has gone: `| head`. The command goes on to its own exit code, and prints no more.
    closed: Arc<AtomicBool>,
}

const ERROR: Style = AnsiColor::Red.on_default().bold();
const WARNING: Style = AnsiColor::Yellow.on_default().bold();
const HINT: Style = AnsiColor::Cyan.on_default().bold();

impl Shell {
    /// Looks at the streams once.
    #[must_use]
    pub fn new(no_input: bool) -> Self {
        let stdout = io::stdout();
        let (stdout_is_terminal, stderr_is_terminal) = (stdout.is_terminal(), io::stderr().is_terminal());
        let plain = env::is_set(env::NO_COLOR) || std::env::var_os(env::TERM).is_some_and(|term| term == "dumb");
        let width = stdout_is_terminal
            .then(|| rustix::termios::tcgetwinsize(&stdout).ok())
            .flatten()
            .map(|size| size.ws_col)
            .filter(|&columns| columns > 0);
        Self {
            interactive: stderr_is_terminal && io::stdin().is_terminal() && !env::is_set(env::CI) && !no_input,
            stdout_is_terminal,
            color_stdout: stdout_is_terminal && !plain,
            color_stderr: stderr_is_terminal && !plain,
            width,
            closed: Arc::default(),
        }
    }

    /// Whether standard output takes colour.
    #[must_use]
    pub fn color(&self) -> bool {
        self.color_stdout
    }

    /// Whether standard error takes colour.
    #[must_use]
    pub fn color_stderr(&self) -> bool {
        self.color_stderr
    }

    /// Text on standard output, as it is.
    ///
    /// # Errors
    /// Where standard output cannot be written. That nobody reads it any more is no error: see [`Shell::is_closed`].
    pub fn print(&self, text: &str) -> Outcome<()> {
        self.bytes(text.as_bytes())
    }

    /// A line on standard output.
    ///
    /// # Errors
    /// As [`Shell::print`].
    pub fn line(&self, text: &str) -> Outcome<()> {
        self.write(&[text.as_bytes(), b"\n"])
    }

    /// Whether standard output was found closed: what has no end and no answer of its own may stop.
    #[must_use]
    pub fn is_closed(&self) -> bool {
        self.closed.load(Ordering::Relaxed)
    }

    fn write(&self, parts: &[&[u8]]) -> Outcome<()> {
        if self.is_closed() {
            return Ok(());
        }
        let mut stdout = io::stdout().lock();
        match parts.iter().try_for_each(|part| stdout.write_all(part)).and_then(|()| stdout.flush()) {
            Err(error) if error.kind() == io::ErrorKind::BrokenPipe => {
                self.closed.store(true, Ordering::Relaxed);
                Ok(())
            }
            written => Ok(written?),
        }
    }

    /// A line on standard output, where there is someone to read it: a daemon runs on without.
    pub fn announce(&self, text: &str) {
        let _ = self.line(text);
    }

    /// Bytes on standard output.
    ///
    /// # Errors
    /// As [`Shell::print`].
    pub fn bytes(&self, bytes: &[u8]) -> Outcome<()> {
        self.write(&[bytes])
    }

    /// A value as JSON, indented, with `format_version` first.
    ///
    /// # Errors
    /// As [`Shell::print`].
    pub fn json(&self, value: &Value) -> Outcome<()> {
        let text = serde_json::to_string_pretty(&versioned(value)).map_err(|error| Failure::fault(error.to_string()))?;
        self.line(&text)
    }

    /// A value as YAML, in the shape of the JSON.
    ///
    /// # Errors
    /// As [`Shell::print`].
    pub fn yaml(&self, value: &Value) -> Outcome<()> {
        let text = serde_yaml::to_string(&versioned(value)).map_err(|error| Failure::fault(error.to_string()))?;
        self.print(&text)
    }

    /// A line on standard error.
    pub fn note(&self, text: &str) {
        self.stderr(&format!("{text}\n"));
    }

    /// A warning on standard error.
    pub fn warn(&self, text: &str) {
        self.stderr(&format!("{} {text}\n", self.tinted("warning:", WARNING)));
    }

    /// A hint on standard error.
    pub fn hint(&self, text: &str) {
        self.stderr(&format!("{} {text}\n", self.tinted("hint:", HINT)));
    }

    /// A failure on standard error: the whole chain of causes, details, hints.
    pub fn failure(&self, failure: &Failure) {
        let mut text = String::new();
        if let Some(error) = &failure.error {
            text.push_str(&format!("{} {error:#}\n", self.tinted("error:", ERROR)));
        }
        for detail in &failure.details {
            text.push_str(&format!("  {detail}\n"));
        }
        for hint in &failure.hints {
            text.push_str(&format!("{} {hint}\n", self.tinted("hint:", HINT)));
        }
        self.stderr(&text);
    }

    /// Text on standard error, as it is. Where it is closed there is nobody to tell.
    pub fn stderr(&self, text: &str) {
        let _ = io::stderr().lock().write_all(text.as_bytes());
    }

    fn tinted(&self, text: &str, style: Style) -> String {
        if self.color_stderr { format!("{style}{text}{style:#}") } else { text.to_owned() }
    }
}

fn versioned(value: &Value) -> Value {
    match value {
        Value::Object(fields) if !fields.contains_key("format_version") => {
            let mut object = serde_json::Map::new();
            object.insert("format_version".into(), FORMAT_VERSION.into());
            object.extend(fields.clone());
            Value::Object(object)
        }
        other => other.clone(),
    }
}

/// The forms in which commands can answer; each command takes some of them.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Format {
    /// Prose for people.
    Text,
    /// A table for people.
    Table,
    /// A table with more columns.
    Wide,
    /// Names alone, one a line.
    Name,
    /// The id alone.
    Id,
    /// JSON.
    Json,
    /// YAML.
    Yaml,
    /// GitHub workflow commands.
    Github,
    /// Markdown, for a comment on a pull request.
    Markdown,
}

impl Format {
    const ALL: [(&'static str, Self); 9] = [
        ("text", Self::Text),
        ("table", Self::Table),
        ("wide", Self::Wide),
        ("name", Self::Name),
        ("id", Self::Id),
        ("json", Self::Json),
        ("yaml", Self::Yaml),
        ("github", Self::Github),
        ("markdown", Self::Markdown),
    ];

    /// A parser that takes these forms only.
    pub fn among(names: &'static [&'static str]) -> impl clap::builder::TypedValueParser<Value = Self> {
        use clap::builder::TypedValueParser as _;
        clap::builder::PossibleValuesParser::new(names)
            .map(|name| Self::ALL.into_iter().find(|(known, _)| *known == name).map_or(Self::Text, |(_, format)| format))
    }

    /// Prints `value` where the form is JSON or YAML; says whether it did.
    ///
    /// # Errors
    /// As [`Shell::print`].
    pub fn structured(self, shell: &Shell, value: impl FnOnce() -> Value) -> Outcome<bool> {
        match self {
            Self::Json => shell.json(&value())?,
            Self::Yaml => shell.yaml(&value())?,
            _ => return Ok(false),
        }
        Ok(true)
    }
}
