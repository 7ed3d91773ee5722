//! A plan as people read it, on a terminal and in a pull request. Values come from files and are shown on one line, cut where they
//! are long, with control characters replaced.

use std::collections::BTreeMap;
use std::fmt::Write as _;

use octavius_core::JobName;

use crate::diagnostic::{printable, width};
use crate::diff::FieldChange;
use crate::plan::{Action, Change, Plan, Summary};

/// What the one who prints a plan knows about a job beyond the plan.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Note {
    /// Put behind the job's file: `last run 3h ago`.
    pub beside: Option<String>,
    /// Lines of their own below the job: `2 running executions keep revision 41`.
    pub below: Vec<String>,
}

/// How a plan is printed.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct RenderOptions {
    /// With colours.
    pub color: bool,
    /// The line above it: `prod/support: revision 41 (9c1f2ab) → working tree (4be07d1)`.
    pub header: Option<String>,
    /// What else is known about jobs, by name.
    pub notes: BTreeMap<JobName, Note>,
}

/// Columns that one value takes at most.
const VALUE_WIDTH: usize = 60;

/// Columns to which names and field paths are aligned at most: one long name must not push all others off the screen.
const COLUMN_WIDTH: usize = 40;

struct Paint(bool);

impl Paint {
    const fn style(&self, code: &'static str) -> &'static str {
        if self.0 { code } else { "" }
    }

    const fn green(&self) -> &'static str {
        self.style("\x1b[32m")
    }

    const fn red(&self) -> &'static str {
        self.style("\x1b[31m")
    }

    const fn yellow(&self) -> &'static str {
        self.style("\x1b[33m")
    }

    const fn dim(&self) -> &'static str {
        self.style("\x1b[2m")
    }

    const fn reset(&self) -> &'static str {
        self.style("\x1b[0m")
    }

    const fn of(&self, action: Action) -> &'static str {
        match action {
            Action::Added => self.green(),
            Action::Changed => self.yellow(),
            Action::Removed | Action::Blocked => self.red(),
        }
    }
}

const fn sign(action: Action) -> char {
    match action {
        Action::Added => '+',
        Action::Changed => '~',
        Action::Removed | Action::Blocked => '-',
    }
}

/// The plan as text; ends in a line break.
#[must_use]
pub fn render_text(plan: &Plan, options: &RenderOptions) -> String {
    let paint = Paint(options.color);
    let mut out = String::new();
    if let Some(header) = &options.header {
        let _ = writeln!(out, "{header}");
    }
    let names = column(plan.changes.iter().map(|change| change.job.as_str()));
    for change in &plan.changes {
        render_change(&mut out, change, options.notes.get(&change.job), names, &paint);
    }
    let _ = writeln!(out, "{}", render_summary(&plan.summary));
    out
}

fn column<'t>(texts: impl Iterator<Item = &'t str>) -> usize {
    texts.map(width).max().unwrap_or(0).min(COLUMN_WIDTH)
}

fn padded(text: &str, columns: usize) -> String {
    format!("{text}{}", " ".repeat(columns.saturating_sub(width(text))))
}

fn render_change(out: &mut String, change: &Change, note: Option<&Note>, names: usize, paint: &Paint) {
    let (tint, reset) = (paint.of(change.action), paint.reset());
    let beside = note.and_then(|note| note.beside.as_deref());
    let file = (!change.file.is_empty()).then(|| printable(&change.file));
    let rest = [file.as_deref(), beside].into_iter().flatten().collect::<Vec<_>>().join(", ");
    let name = padded(change.job.as_str(), names);
    let line = format!("{tint}{} {name}{reset}  {rest}", sign(change.action));
    let _ = writeln!(out, "{}", line.trim_end());
    let lines: Vec<String> =
        change.fields.iter().map(|field| field.line.map(|line| format!(":{line}")).unwrap_or_default()).collect();
    let (line_column, path_column) =
        (column(lines.iter().map(String::as_str)), column(change.fields.iter().map(|field| &*field.path)));
    for (line, field) in lines.iter().zip(&change.fields) {
        let gap = if line_column == 0 { "" } else { "  " };
        let (dim, line, path) = (paint.dim(), padded(line, line_column), padded(&printable(&field.path), path_column));
        let _ = write!(out, "    {dim}{line}{reset}{gap}{path}  ");
        render_values(out, field, paint);
        if let Some(unified) = &field.unified {
            render_unified(out, unified, paint);
        }
    }
    for below in note.iter().flat_map(|note| &note.below) {
        let _ = writeln!(out, "    {}", printable(below));
    }
    if let Some(reason) = &change.reason {
        let _ = writeln!(out, "    {}blocked: {}{reset}", paint.yellow(), printable(reason));
    }
}

fn render_values(out: &mut String, field: &FieldChange, paint: &Paint) {
    let (green, red, reset) = (paint.green(), paint.red(), paint.reset());
    let _ = match (&field.before, &field.after) {
        (Some(_), Some(_)) if field.unified.is_some() => writeln!(out, "changed"),
        (None, Some(_)) if field.unified.is_some() => writeln!(out, "{green}added{reset}"),
        (Some(_), None) if field.unified.is_some() => writeln!(out, "{red}removed{reset}"),
        (Some(before), Some(after)) => writeln!(out, "{red}{}{reset} → {green}{}{reset}", clip(before), clip(after)),
        (None, Some(after)) => writeln!(out, "{green}+ {}{reset}", clip(after)),
        (Some(before), None) => writeln!(out, "{red}- {}{reset}", clip(before)),
        (None, None) => writeln!(out),
    };
}

/// Lines of a unified diff that are shown; the rest is counted.
const UNIFIED_LINES: usize = 60;

fn render_unified(out: &mut String, unified: &str, paint: &Paint) {
    for line in unified.lines().take(UNIFIED_LINES) {
        let tint = match line.as_bytes().first() {
            Some(b'+') => paint.green(),
            Some(b'-') => paint.red(),
            Some(b'@') => paint.dim(),
            _ => "",
        };
        let reset = if tint.is_empty() { "" } else { paint.reset() };
        let line = printable(&line.replace('\t', "    "));
        let _ = writeln!(out, "      {tint}{}{reset}", line.trim_end());
    }
    let more = unified.lines().count().saturating_sub(UNIFIED_LINES);
    if more > 0 {
        let _ = writeln!(out, "      … {more} more lines");
    }
}

fn clip(text: &str) -> String {
    let text = printable(&text.trim_end().replace('\n', "⏎"));
    if text.is_empty() || text != text.trim() {
        return format!("\"{text}\"");
    }
    if width(&text) <= VALUE_WIDTH { text } else { text.chars().take(VALUE_WIDTH - 1).chain(['…']).collect() }
}

/// The plan as Markdown, for a comment on a pull request; ends in a line break. The counts come first, since a mail shows only them.
#[must_use]
pub fn render_markdown(plan: &Plan, options: &RenderOptions) -> String {
    let mut out = format!("### Catalogue `{}`: {}\n", plan.catalog, render_summary(&plan.summary));
    if let Some(header) = &options.header {
        let _ = writeln!(out, "\n{}", printable(header));
    }
    if plan.changes.is_empty() {
        return out;
    }
    let text = render_text(plan, &RenderOptions { color: false, header: None, notes: options.notes.clone() });
    // The last line is the counts, which stand above already. `+` and `-` at the start of a line give it its colour; `!` does so for
    // changes where the language is `diff`.
    let lines: Vec<String> = text
        .lines()
        .take(text.lines().count().saturating_sub(1))
        .map(|line| line.strip_prefix('~').map_or_else(|| line.to_owned(), |rest| format!("!{rest}")))
        .collect();
    let body = lines.join("\n");
    let mut fence = "```".to_owned();
    while body.contains(&fence) {
        fence.push('`');
    }
    let _ = writeln!(out, "\n{fence}diff\n{body}\n{fence}");
    out
}

/// `1 added, 1 changed, 1 removed (blocked), 38 unchanged`.
#[must_use]
pub fn render_summary(summary: &Summary) -> String {
    let Summary { added, changed, removed, blocked, unchanged } = *summary;
    let mut parts = Vec::new();
    for (count, word) in [(added, "added"), (changed, "changed"), (removed, "removed"), (blocked, "removed (blocked)")] {
        if count > 0 {
            parts.push(format!("{count} {word}"));
        }
    }
    if parts.is_empty() {
        parts.push("no changes".to_owned());
    }
    parts.push(format!("{unchanged} unchanged"));
    parts.join(", ")
}
