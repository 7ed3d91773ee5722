//! What the loader has to say about files: plain data with a place, a stable code and a hint, and its forms for people and for
//! GitHub. Everything a file holds is shown with control characters replaced, since a catalogue may come from a stranger.

use std::fmt::Write as _;

pub use octavius_core::check::Severity;
use serde::{Serialize, Serializer};

/// One finding about a file.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Diagnostic {
    /// The file, as a person at the prompt would name it.
    pub path: String,
    /// The line, counted from 1; 0 where the file as a whole is meant.
    pub line: u32,
    /// The column, counted in characters from 1; 0 where the file as a whole is meant.
    pub column: u32,
    /// How much it weighs.
    #[serde(serialize_with = "severity_text")]
    pub severity: Severity,
    /// A stable code, like `default-type`; all of them are in `catalog/README.md`.
    pub code: &'static str,
    /// What is wrong, a lower-case fragment.
    pub message: String,
    /// What stands beside the marked span; may be empty.
    pub label: String,
    /// What to do; empty where the message says it.
    pub hint: String,
    /// The text of the line, without its line break; empty where the file as a whole is meant. Long lines are cut around the span.
    pub source: String,
    /// Characters of `source` before the marked span.
    pub offset: u32,
    /// Characters in the marked span, on this line; 0 where the file as a whole is meant.
    pub length: u32,
}

#[expect(clippy::trivially_copy_pass_by_ref, reason = "serde's serialize_with passes a reference")]
fn severity_text<S: Serializer>(severity: &Severity, serializer: S) -> Result<S::Ok, S::Error> {
    serializer.serialize_str(severity_name(*severity))
}

/// The word for a severity: `error` or `warning`.
#[must_use]
pub const fn severity_name(severity: Severity) -> &'static str {
    match severity {
        Severity::Error => "error",
        Severity::Warning => "warning",
    }
}

/// Findings that are told of one file. A file with more is no job file, and a catalogue of them must not fill the memory.
pub(crate) const FINDINGS_PER_FILE: usize = 100;

/// Characters of a source line that a diagnostic keeps; a longer line is cut around the span.
const WINDOW: usize = 120;

/// Characters kept before the span where a line is cut.
const BEFORE: usize = 50;

impl Diagnostic {
    /// An error about a file as a whole.
    pub(crate) fn of_file(
        path: impl Into<String>,
        code: &'static str,
        message: impl Into<String>,
        hint: impl Into<String>,
    ) -> Self {
        Self {
            path: path.into(),
            line: 0,
            column: 0,
            severity: Severity::Error,
            code,
            message: message.into(),
            label: String::new(),
            hint: hint.into(),
            source: String::new(),
            offset: 0,
            length: 0,
        }
    }

    /// The same with a place: bytes `start..end` of `text`, in line `line` and column `column`. A span over several lines is marked
    /// to the end of its first.
    pub(crate) fn at(mut self, text: &str, line: u32, column: u32, start: usize, end: usize) -> Self {
        let start = floor_boundary(text, start);
        let line_start = text[..start].rfind('\n').map_or(0, |index| index + 1);
        let line_end = text[start..].find('\n').map_or(text.len(), |index| start + index);
        let end = floor_boundary(text, end.clamp(start, line_end));
        (self.line, self.column) = (line, column);
        // Counted over a short line; on a long one only the surroundings are looked at, since a file may be one line of 256 KiB.
        let before = text[line_start..start].trim_start_matches('\u{feff}');
        let is_long = line_end - line_start > WINDOW;
        let from = before.char_indices().rev().nth(BEFORE - 1).filter(|_| is_long).map_or(0, |(index, _)| index);
        if from > 0 {
            self.source.push('…');
        }
        self.source.push_str(&before[from..]);
        self.offset = small(self.source.chars().count());
        let length = text[start..end].trim_end().chars().take(WINDOW - BEFORE).count().max(1);
        let mut rest = text[start..line_end].trim_end_matches('\r').chars();
        self.source.extend(rest.by_ref().take(if is_long { WINDOW - BEFORE } else { WINDOW }));
        if rest.next().is_some() {
            self.source.push('…');
        }
        self.length = small(length);
        self
    }

    /// Whether the catalogue cannot be taken because of it.
    #[must_use]
    pub fn is_error(&self) -> bool {
        self.severity == Severity::Error
    }
}

fn small(count: usize) -> u32 {
    u32::try_from(count).unwrap_or(u32::MAX)
}

fn floor_boundary(text: &str, index: usize) -> usize {
    let mut index = index.min(text.len());
    while !text.is_char_boundary(index) {
        index -= 1;
    }
    index
}

/// Sorts findings as they are shown: by path, then by position.
pub(crate) fn sort(diagnostics: &mut Vec<Diagnostic>) {
    diagnostics
        .sort_by(|a, b| (&a.path, a.line, a.column, a.code, &a.message).cmp(&(&b.path, b.line, b.column, b.code, &b.message)));
    diagnostics.dedup();
}

/// `path:line:column`, or the path alone where the file as a whole is meant.
#[must_use]
pub fn place(diagnostic: &Diagnostic) -> String {
    let path = printable(&diagnostic.path);
    match diagnostic {
        Diagnostic { line: 0, .. } => path,
        Diagnostic { line, column, .. } => format!("{path}:{line}:{column}"),
    }
}

/// A finding as people read it, with the source line under it; ends in a line break.
#[must_use]
pub fn render_text(diagnostic: &Diagnostic, color: bool) -> String {
    let style = |code: &'static str| if color { code } else { "" };
    let (reset, bold, blue) = (style("\x1b[0m"), style("\x1b[1m"), style("\x1b[1;34m"));
    let tint = match diagnostic.severity {
        Severity::Error => style("\x1b[1;31m"),
        Severity::Warning => style("\x1b[1;33m"),
    };
    let Diagnostic { code, message, label, hint, line, .. } = diagnostic;
    let mut out = String::new();
    let severity = severity_name(diagnostic.severity);
    let _ = writeln!(out, "{bold}{}:{reset} {tint}{severity}[{code}]{reset}: {}", place(diagnostic), printable(message));
    if *line > 0 {
        let number = line.to_string();
        let (before, marked, after) = split(diagnostic);
        let (before, marked, after) = (shown(before), shown(marked), shown(after));
        let source = format!("{before}{marked}{after}");
        let _ = writeln!(out, "{blue}{number} |{reset} {}", source.trim_end());
        let margin = " ".repeat(number.len());
        let indent = " ".repeat(width(&before));
        let marks = "^".repeat(width(&marked).max(1));
        let label = if label.is_empty() { String::new() } else { format!(" {}", printable(label)) };
        let _ = writeln!(out, "{blue}{margin} |{reset} {indent}{tint}{marks}{label}{reset}");
    }
    if !hint.is_empty() {
        let _ = writeln!(out, "{bold}hint:{reset} {}", printable(hint));
    }
    out
}

/// A finding as a GitHub workflow command, which marks the line in a pull request.
#[must_use]
pub fn render_github(diagnostic: &Diagnostic) -> String {
    let data = |text: &str| text.replace('%', "%25").replace('\r', "%0D").replace('\n', "%0A");
    let property = |text: &str| data(text).replace(':', "%3A").replace(',', "%2C");
    let Diagnostic { code, message, hint, line, column, length, .. } = diagnostic;
    let mut text = format!("::{} file={}", severity_name(diagnostic.severity), property(&diagnostic.path));
    if *line > 0 {
        let _ = write!(text, ",line={line},col={column},endColumn={}", column + length);
    }
    let _ = write!(text, ",title={code}::{}", data(message));
    if !hint.is_empty() {
        let _ = write!(text, " ({})", data(hint));
    }
    text
}

/// How many errors and warnings in how many files: the last line of `validate`.
#[must_use]
pub fn render_count(diagnostics: &[Diagnostic], files: usize) -> String {
    let plural = |count: usize, word: &str| format!("{count} {word}{}", if count == 1 { "" } else { "s" });
    let errors = diagnostics.iter().filter(|diagnostic| diagnostic.is_error()).count();
    let warnings = diagnostics.len() - errors;
    let mut parts = Vec::new();
    if errors > 0 || warnings == 0 {
        parts.push(if errors == 0 { "no findings".to_owned() } else { plural(errors, "error") });
    }
    if warnings > 0 {
        parts.push(plural(warnings, "warning"));
    }
    parts.push(plural(files, "file"));
    parts.join(", ")
}

fn split(diagnostic: &Diagnostic) -> (&str, &str, &str) {
    let at = |chars: u32| {
        let chars = usize::try_from(chars).unwrap_or(usize::MAX);
        diagnostic.source.char_indices().nth(chars).map_or(diagnostic.source.len(), |(index, _)| index)
    };
    let start = at(diagnostic.offset);
    let end = at(diagnostic.offset.saturating_add(diagnostic.length)).max(start);
    (&diagnostic.source[..start], &diagnostic.source[start..end], &diagnostic.source[end..])
}

/// Text from a file, fit for a terminal: a tab becomes four spaces, any other control character a replacement character.
fn shown(text: &str) -> String {
    printable(&text.replace('\t', "    "))
}

/// Text with control characters replaced.
pub(crate) fn printable(text: &str) -> String {
    let hidden =
        |c: char| c.is_control() || matches!(c, '\u{200e}' | '\u{200f}' | '\u{202a}'..='\u{202e}' | '\u{2066}'..='\u{2069}');
    text.chars().map(|c| if hidden(c) { '\u{fffd}' } else { c }).collect()
}

/// Columns that a text takes on a terminal. East Asian wide characters and emoji take two, combining marks none; that is enough to
/// put a mark under a word, and spares a table of all of Unicode.
pub(crate) fn width(text: &str) -> usize {
    text.chars()
        .map(|c| match c {
            '\u{0300}'..='\u{036f}'
            | '\u{200b}'..='\u{200f}'
            | '\u{20d0}'..='\u{20ff}'
            | '\u{fe00}'..='\u{fe0f}'
            | '\u{feff}' => 0,
            '\u{1100}'..='\u{115f}'
            | '\u{2e80}'..='\u{a4cf}'
            | '\u{ac00}'..='\u{d7a3}'
            | '\u{f900}'..='\u{faff}'
            | '\u{fe30}'..='\u{fe6f}'
            | '\u{ff00}'..='\u{ff60}'
            | '\u{ffe0}'..='\u{ffe6}'
            | '\u{1f300}'..='\u{1faff}'
            | '\u{20000}'..='\u{3fffd}' => 2,
            _ => 1,
        })
        .sum()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn render(text: &str, span: &str) -> String {
        let start = text.find(span).unwrap();
        let line = u32::try_from(text[..start].matches('\n').count() + 1).unwrap();
        let column = u32::try_from(text[..start].rsplit('\n').next().unwrap().chars().count() + 1).unwrap();
        let mut diagnostic =
            Diagnostic::of_file("a.yaml", "code", "message", "do this").at(text, line, column, start, start + span.len());
        diagnostic.label = "label".into();
        render_text(&diagnostic, false)
    }

    #[test]
    fn the_mark_stands_under_the_word() {
        assert_eq!(
            render("a: 1\n  default: many # x\n", "many"),
            "a.yaml:2:12: error[code]: message\n2 |   default: many # x\n  |            ^^^^ label\nhint: do this\n"
        );
    }

    #[test]
    fn tabs_wide_characters_and_control_characters_keep_the_mark_in_place() {
        assert_eq!(render("\tx: 1", "x"), "a.yaml:1:2: error[code]: message\n1 |     x: 1\n  |     ^ label\nhint: do this\n");
        assert_eq!(
            render("日本: 語 x", "x"),
            "a.yaml:1:7: error[code]: message\n1 | 日本: 語 x\n  |          ^ label\nhint: do this\n"
        );
        assert!(render("a: \u{1b}[31m x", "x").contains("1 | a: \u{fffd}[31m x\n"));
        assert!(render("\u{feff}a: 1", "a").contains("1 | a: 1\n  | ^ label"));
    }

    #[test]
    fn a_long_line_is_cut_around_the_span() {
        let text = format!("k: [{}WORD{}]", "a, ".repeat(2000), ", b".repeat(2000));
        let shown = render(&text, "WORD");
        assert!(shown.lines().all(|line| line.chars().count() < 140), "{shown}");
        let lines: Vec<&str> = shown.lines().collect();
        let at = lines[1].chars().position(|c| c == 'W').unwrap();
        assert_eq!(lines[2].chars().position(|c| c == '^').unwrap(), at);
        assert!(lines[1].contains('…'));
    }

    #[test]
    fn a_span_over_lines_is_marked_on_its_first() {
        assert!(render("a: [1,\n 2]\n", "[1,\n 2]").contains("  |    ^^^ label\n"));
    }

    #[test]
    fn github_commands_are_escaped() {
        let diagnostic = Diagnostic::of_file("a,b.yaml", "code", "50%\nmore", "");
        assert_eq!(render_github(&diagnostic), "::error file=a%2Cb.yaml,title=code::50%25%0Amore");
    }
}
