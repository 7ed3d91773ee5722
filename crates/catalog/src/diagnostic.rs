//! What the loader has to say about files: plain data with a place, a stable code and a hint, and its forms for people and for
//! GitHub. Everything a file holds is shown with control characters replaced, since a catalogue may come from a stranger.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Write as _;
use std::ops::Range;

use octavius_core::argument::MASK;
pub use octavius_core::check::Severity;
use octavius_core::check::shortened;
use octavius_core::nearest::nearest;
use serde::{Serialize, Serializer};

use crate::document::{self, Entry, Node, Value};

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
    /// The text of the line, without its line break; empty where the file as a whole is meant, or where the line may hold a
    /// sensitive value that cannot be told from the rest. Long lines are cut around the span, sensitive values masked.
    pub source: String,
    /// Characters of `source` before the marked span.
    pub offset: u32,
    /// Characters in the marked span, on this line; 0 where there is no `source` to mark.
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
            message: shortened(message.into()),
            label: String::new(),
            hint: shortened(hint.into()),
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

/// Keys of an argument, of which only those of [`SECRET_KEYS`] hold values.
const ARGUMENT_KEYS: [&str; 8] = ["name", "description", "required", "type", "default", "enum", "pattern", "sensitive"];

/// Keys of a sensitive argument whose values are sensitive.
const SECRET_KEYS: [&str; 2] = ["default", "enum"];

/// Masks the values of sensitive arguments in findings. `files` are those that the findings may be of: the paths as the findings
/// have them, and their bytes.
pub(crate) fn mask<'f>(findings: &mut [Diagnostic], files: impl IntoIterator<Item = (String, &'f [u8])>) {
    let mut by_path: BTreeMap<String, Vec<&mut Diagnostic>> = BTreeMap::new();
    for finding in findings.iter_mut().filter(|finding| finding.length > 0) {
        by_path.entry(finding.path.clone()).or_default().push(finding);
    }
    if by_path.is_empty() {
        return;
    }
    for (path, bytes) in files {
        let Some(findings) = by_path.remove(&path) else { continue };
        // Most files say nothing of it, and need no second look.
        if !bytes.windows(SENSITIVE.len()).any(|part| part == SENSITIVE.as_bytes()) {
            continue;
        }
        let mut told = Vec::new();
        let parsed = document::parse(&path, bytes, &mut told);
        let mut secrets = Secrets::default();
        if let Some((document, text)) = &parsed {
            secrets.find(&document.root, text);
        }
        for finding in findings {
            finding.mask_words(&secrets);
            // Where a file is not understood, nobody knows where its sensitive values start and end.
            match &parsed {
                Some((_, text)) if told.is_empty() => finding.mask_source(text, &secrets),
                _ => finding.withhold(),
            }
        }
    }
}

const SENSITIVE: &str = "sensitive";

/// Where a file's sensitive values are.
#[derive(Default)]
struct Secrets {
    /// Bytes of the file, from the first to the last, none within another.
    bytes: Vec<Range<usize>>,
    /// Line and column of each.
    places: BTreeSet<(u32, u32)>,
}

impl Secrets {
    /// Adds what a value holds of them. An argument is known by its key `sensitive`, wherever it stands: one in the wrong place is
    /// no less sensitive. So is one of which it says something else than `false`.
    fn find(&mut self, node: &Node, text: &str) {
        match &node.value {
            Value::List(items) => items.iter().for_each(|item| self.find(item, text)),
            Value::Map(entries) => {
                let is_sensitive = |entry: &Entry| entry.key == SENSITIVE && entry.node.value != Value::Bool(false);
                let is_sensitive = entries.iter().any(is_sensitive);
                let is_flow = text.get(node.span.start as usize..).is_some_and(|rest| rest.starts_with('{'));
                for entry in entries {
                    let is_known = ARGUMENT_KEYS.contains(&&*entry.key);
                    if !is_sensitive || (is_known && !SECRET_KEYS.contains(&&*entry.key)) {
                        self.find(&entry.node, text);
                        continue;
                    }
                    // Between braces a comma ends a value, and what was meant as its rest is a key.
                    if !is_known && (entry.node.value == Value::Null || is_flow) && nearest(&entry.key, ARGUMENT_KEYS).is_none() {
                        self.add(entry.key_span);
                    }
                    self.add_all(&entry.node);
                }
            }
            _ => {}
        }
    }

    /// Adds a value with all that it holds.
    fn add_all(&mut self, node: &Node) {
        match &node.value {
            Value::Null => {}
            Value::List(items) => items.iter().for_each(|item| self.add_all(item)),
            Value::Map(entries) => {
                for entry in entries {
                    self.add(entry.key_span);
                    self.add_all(&entry.node);
                }
            }
            Value::Bool(_) | Value::Number(_) | Value::Text(_) | Value::Refused => self.add(node.span),
        }
    }

    fn add(&mut self, span: crate::Span) {
        self.bytes.push(span.start as usize..span.end as usize);
        self.places.insert((span.line, span.column));
    }
}

impl Diagnostic {
    /// Takes the source line out.
    fn withhold(&mut self) {
        self.source.clear();
        (self.offset, self.length) = (0, 0);
        // A part of a value that holds a comma may have been taken for a key.
        if self.code == "duplicate-key" && !ARGUMENT_KEYS.iter().any(|key| self.message.contains(&format!("`{key}`"))) {
            self.message = format!("the key `{MASK}` is there twice");
        }
    }

    /// Masks what its words repeat of a sensitive value at its place.
    fn mask_words(&mut self, secrets: &Secrets) {
        if !secrets.places.contains(&(self.line, self.column)) {
            return;
        }
        if let Some(end) = self.message.rfind("` is not a key").filter(|_| self.code == "unknown-key") {
            self.message.replace_range(..end, &format!("`{MASK}"));
        }
        if let (Some(start), Some(end)) = (self.hint.find('"'), self.hint.rfind('"')) {
            self.hint.replace_range(start..=end, &format!("\"{MASK}\""));
        }
    }

    /// Masks sensitive values in its source line, which is one of its file's `text`.
    fn mask_source(&mut self, text: &str, secrets: &Secrets) {
        let mut lines = text.split_inclusive('\n').scan(0, |next, line| {
            let start = *next;
            *next += line.len();
            Some((start, line.trim_end_matches(['\n', '\r'])))
        });
        let Some((line_start, line)) = lines.nth((self.line as usize).saturating_sub(1)) else {
            return self.withhold();
        };
        let byte = |chars: u32| line.char_indices().nth(chars as usize).map_or(line.len(), |(index, _)| index);
        let (start, end) =
            (byte(self.column.saturating_sub(1)), byte((self.column.saturating_sub(1)).saturating_add(self.length)));
        let mut again = Self { source: String::new(), ..self.clone() }.at(line, self.line, self.column, start, end);
        if again != *self {
            // The parser counts lines or columns in another way, as with a byte order mark.
            return self.withhold();
        }
        let on_line = secrets.bytes.iter().filter_map(|range| {
            let (from, to) = (range.start.max(line_start) - line_start, range.end.saturating_sub(line_start).min(line.len()));
            let part = line.get(from..to)?;
            let from = from + part.len() - part.trim_start().len();
            let to = from + part.trim().len();
            (from < to).then_some(from..to)
        });
        let (mut masked, mut done) = (String::new(), 0);
        let (mut new_start, mut new_end) = (None, None);
        for secret in on_line {
            masked.push_str(&line[done..secret.start]);
            let moved = |at: usize| masked.len() - (secret.start - at);
            // What starts or ends within a value is marked from its first to its last character.
            if new_start.is_none() && start < secret.end {
                new_start = Some(if start < secret.start { moved(start) } else { masked.len() });
            }
            if new_end.is_none() && end <= secret.end {
                new_end = Some(if end <= secret.start { moved(end) } else { masked.len() + MASK.len() });
            }
            masked.push_str(MASK);
            done = secret.end;
        }
        if done == 0 {
            return;
        }
        let moved = |at: usize| masked.len() + at - done;
        let (start, end) = (new_start.unwrap_or_else(|| moved(start)), new_end.unwrap_or_else(|| moved(end)));
        masked.push_str(&line[done..]);
        again.source.clear();
        *self = again.at(&masked, self.line, self.column, start, end);
    }
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
    if *line > 0 && diagnostic.length == 0 {
        let margin = " ".repeat(line.to_string().len());
        let label = if label.is_empty() { String::new() } else { format!("; {}", printable(label)) };
        let _ = writeln!(out, "{blue}{margin} |{reset} (not shown: the line may hold a sensitive value{label})");
    } else if *line > 0 {
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

/// Text from a file, fit for a terminal: a tab becomes four spaces, what is not seen a replacement character.
fn shown(text: &str) -> String {
    printable(&text.replace('\t', "    "))
}

/// Text in which each control character, and each that formats other text and is not seen itself, is replaced: with them, text
/// can be made to look like another.
pub(crate) fn printable(text: &str) -> String {
    text.chars().map(|c| if is_hidden(c) { '\u{fffd}' } else { c }).collect()
}

/// Whether [`printable`] replaces a character.
pub(crate) fn is_hidden(c: char) -> bool {
    c.is_control()
        || matches!(
            c,
            '\u{ad}'
                | '\u{61c}'
                | '\u{200b}'..='\u{200f}'
                | '\u{2028}'..='\u{202e}'
                | '\u{2060}'..='\u{2069}'
                | '\u{feff}'
                | '\u{e0000}'..='\u{e007f}'
        )
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
    fn what_is_not_seen_is_replaced() {
        let hidden = "\u{0}\u{7f}\u{9b}\u{ad}\u{61c}\u{200b}\u{200d}\u{200f}\u{2028}\u{2029}\u{202a}\u{202e}\u{2060}\u{2066}\u{2069}\u{feff}\u{e0000}\u{e0041}\u{e007f}";
        assert_eq!(printable(hidden), "\u{fffd}".repeat(hidden.chars().count()));
        let seen = "aé日😀 \u{301}\u{200a}\u{2010}\u{2027}\u{202f}\u{205f}\u{fe0f}\u{e0100}";
        assert_eq!(printable(seen), seen);
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
