//! A plan as people read it, on a terminal and in a pull request. Values come from files and are shown on one line, cut where they
//! are long, with control characters replaced.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Write as _;

use octavius_core::JobName;

use crate::diagnostic::{is_hidden, printable, width};
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

/// Columns that a file name, a field's path and a line of a text take at most.
const LINE_WIDTH: usize = 200;

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

/// The order in which a plan is told.
const GROUPS: [Action; 4] = [Action::Added, Action::Changed, Action::Removed, Action::Blocked];

/// The plan as text: what is added, changed, removed and blocked, each by name; ends in a line break. What several jobs inherit from
/// one line is told once.
#[must_use]
pub fn render_text(plan: &Plan, options: &RenderOptions) -> String {
    let mut out = String::new();
    if let Some(header) = &options.header {
        let _ = writeln!(out, "{}", printable(header));
    }
    for (_, entries) in groups(plan, options) {
        out.extend(entries.into_iter().map(|entry| entry.text));
    }
    let _ = writeln!(out, "{}", render_summary(&plan.summary));
    out
}

/// A part of a rendering that is shown whole or not at all.
struct Entry<'p> {
    jobs: Vec<&'p JobName>,
    text: String,
}

fn groups<'p>(plan: &'p Plan, options: &RenderOptions) -> Vec<(Action, Vec<Entry<'p>>)> {
    let paint = Paint(options.color);
    let shared = Shared::of(plan);
    // A job all of whose changes are told above needs no line of its own, unless there is more to say about it.
    let is_told = |change: &&Change| {
        !change.fields.is_empty()
            && shared.count(change) == change.fields.len()
            && !options.notes.contains_key(&change.job)
            && change.reason.is_none()
    };
    let listed: Vec<&Change> = plan.changes.iter().filter(|change| !is_told(change)).collect();
    let names = column(listed.iter().map(|change| change.job.as_str()));
    let entries = |action: Action| -> Vec<Entry<'p>> {
        let together = if action == Action::Changed { shared.entries(&paint) } else { Vec::new() };
        let alone = listed.iter().filter(|change| change.action == action).map(|change| {
            let note = options.notes.get(&change.job);
            Entry { jobs: vec![&change.job], text: render_change(change, note, &shared, names, &paint) }
        });
        together.into_iter().chain(alone).collect()
    };
    GROUPS.into_iter().map(|action| (action, entries(action))).filter(|(_, entries)| !entries.is_empty()).collect()
}

/// Jobs from which on a change that they have in common is told once.
const IN_COMMON: usize = 3;

/// Names that are told of jobs that have a change in common.
const NAMED: usize = 5;

/// What makes a change the same in several jobs: its place, its field, its values.
type Same<'p> = (Option<&'p str>, Option<u32>, &'p str, Option<&'p str>, Option<&'p str>);

/// Changes that several jobs have in common, because they inherit them from one line, or because a value is gone from all of them.
struct Shared<'p>(BTreeMap<Same<'p>, (&'p FieldChange, Vec<&'p JobName>)>);

impl<'p> Shared<'p> {
    fn of(plan: &'p Plan) -> Self {
        let mut same: BTreeMap<Same<'p>, (&FieldChange, Vec<&JobName>)> = BTreeMap::new();
        for change in &plan.changes {
            for field in change.fields.iter().filter(|field| field.file.is_some() || field.line.is_none()) {
                same.entry(key(field)).or_insert_with(|| (field, Vec::new())).1.push(&change.job);
            }
        }
        same.retain(|_, (_, jobs)| jobs.len() >= IN_COMMON);
        Self(same)
    }

    /// Whether a change is told for several jobs together. One that stands in a line of the job's own file never is.
    fn has(&self, field: &FieldChange) -> bool {
        (field.file.is_some() || field.line.is_none()) && self.0.contains_key(&key(field))
    }

    fn count(&self, change: &Change) -> usize {
        change.fields.iter().filter(|field| self.has(field)).count()
    }

    /// One entry for all changes that exactly the same jobs have in common.
    fn entries(&self, paint: &Paint) -> Vec<Entry<'p>> {
        let mut together: Vec<(&Vec<&'p JobName>, Vec<&FieldChange>)> = Vec::new();
        let mut known = BTreeMap::new();
        for (field, jobs) in self.0.values() {
            let index = *known.entry(jobs).or_insert(together.len());
            match together.get_mut(index) {
                Some((_, fields)) => fields.push(field),
                None => together.push((jobs, vec![field])),
            }
        }
        let entry = |(jobs, fields): (&Vec<&'p JobName>, Vec<&FieldChange>)| {
            let (tint, reset) = (paint.of(Action::Changed), paint.reset());
            let named = jobs.iter().take(NAMED).map(|job| job.as_str()).collect::<Vec<_>>().join(", ");
            let more = jobs.len().saturating_sub(NAMED);
            let more = if more > 0 { format!(" and {more} more") } else { String::new() };
            let mut text = format!("{tint}{} {} jobs{reset}: {named}{more}\n", sign(Action::Changed), jobs.len());
            render_fields(&mut text, &fields, paint);
            Entry { jobs: jobs.clone(), text }
        };
        together.into_iter().map(entry).collect()
    }
}

fn key(field: &FieldChange) -> Same<'_> {
    let FieldChange { path, before, after, line, file, unified: _ } = field;
    (file.as_deref(), *line, path, before.as_deref(), after.as_deref())
}

fn column<'t>(texts: impl Iterator<Item = &'t str>) -> usize {
    texts.map(width).max().unwrap_or(0).min(COLUMN_WIDTH)
}

fn padded(text: &str, columns: usize) -> String {
    format!("{text}{}", " ".repeat(columns.saturating_sub(width(text))))
}

/// The first columns of a text, with a mark where more follows. What takes no column counts as one, so that a text of nothing else is
/// cut too.
fn cut(text: &str, columns: usize) -> String {
    let mut used = 0;
    let mut end = 0;
    for (index, c) in text.char_indices() {
        if used < columns {
            end = index;
        }
        used += width(c.encode_utf8(&mut [0; 4])).max(1);
        if used > columns {
            return format!("{}…", &text[..end]);
        }
    }
    text.to_owned()
}

fn render_change(change: &Change, note: Option<&Note>, shared: &Shared<'_>, names: usize, paint: &Paint) -> String {
    let (tint, reset) = (paint.of(change.action), paint.reset());
    let beside = note.and_then(|note| note.beside.as_deref()).map(printable);
    let file = (!change.file.is_empty()).then(|| cut(&printable(&change.file), LINE_WIDTH));
    let rest = [file, beside].into_iter().flatten().collect::<Vec<_>>().join(", ");
    let name = padded(change.job.as_str(), names);
    let mut out = format!("{tint}{} {name}{reset}  {rest}", sign(change.action)).trim_end().to_owned() + "\n";
    let own: Vec<&FieldChange> = change.fields.iter().filter(|field| !shared.has(field)).collect();
    render_fields(&mut out, &own, paint);
    let above = change.fields.len() - own.len();
    if above > 0 {
        let word = if above == 1 { "change" } else { "changes" };
        let _ = writeln!(out, "    {}{above} {word} in common with other jobs: see above{reset}", paint.dim());
    }
    for below in note.iter().flat_map(|note| &note.below) {
        let _ = writeln!(out, "    {}", cut(&printable(below), LINE_WIDTH));
    }
    if let Some(reason) = &change.reason {
        let _ = writeln!(out, "    {}blocked: {}{reset}", paint.yellow(), printable(reason));
    }
    out
}

/// Where the new value stands: `:14` in the job's own file, `catalog/_defaults.yaml:3` in one that it inherits from.
fn place(field: &FieldChange) -> String {
    let file = field.file.as_deref().map(|file| cut(&printable(file), LINE_WIDTH)).unwrap_or_default();
    field.line.map_or_else(|| file.clone(), |line| format!("{file}:{line}"))
}

fn render_fields(out: &mut String, fields: &[&FieldChange], paint: &Paint) {
    let rows: Vec<_> = fields.iter().map(|field| (place(field), cut(&printable(&field.path), LINE_WIDTH))).collect();
    let (places, paths) = (column(rows.iter().map(|(place, _)| &**place)), column(rows.iter().map(|(_, path)| &**path)));
    // What is gone from a list and what is new in it may look the same on one line.
    let only = |value: &Option<String>, other: &Option<String>| {
        value.as_ref().filter(|_| other.is_none()).map(|value| cut(&one_line(value), VALUE_WIDTH))
    };
    let gone: BTreeSet<_> = fields.iter().filter_map(|field| Some((&field.path, only(&field.before, &field.after)?))).collect();
    let new: BTreeSet<_> = fields.iter().filter_map(|field| Some((&field.path, only(&field.after, &field.before)?))).collect();
    let twins: BTreeSet<_> = gone.intersection(&new).collect();
    for ((place, path), field) in rows.iter().zip(fields) {
        let gap = if places == 0 { "" } else { "  " };
        let (dim, place, path, reset) = (paint.dim(), padded(place, places), padded(path, paths), paint.reset());
        let _ = write!(out, "    {dim}{place}{reset}{gap}{path}  ");
        let shown = only(&field.before, &field.after).or_else(|| only(&field.after, &field.before));
        let is_twin = shown.is_some_and(|shown| twins.contains(&(&field.path, shown)));
        render_values(out, field, is_twin, paint);
        if let Some(unified) = &field.unified {
            render_unified(out, unified, paint);
        }
    }
}

/// What stands behind a value whose change goes on after the part that is shown.
const FURTHER: &str = " (… differs further on)";

/// What stands behind a removed and an added value that look the same.
const UNSEEN: &str = " (differs in what is not shown)";

fn render_values(out: &mut String, field: &FieldChange, is_twin: bool, paint: &Paint) {
    let (green, red, reset) = (paint.green(), paint.red(), paint.reset());
    let unseen = if is_twin { UNSEEN } else { "" };
    let _ = match (&field.before, &field.after) {
        (Some(_), Some(_)) if field.unified.is_some() => writeln!(out, "changed"),
        (None, Some(_)) if field.unified.is_some() => writeln!(out, "{green}added{reset}"),
        (Some(_), None) if field.unified.is_some() => writeln!(out, "{red}removed{reset}"),
        (Some(before), Some(after)) => {
            let Contrast { before, after, further } = contrasted(before, after, one_line, VALUE_WIDTH);
            writeln!(out, "{red}{before}{reset} → {green}{after}{reset}{}", if further { FURTHER } else { "" })
        }
        (None, Some(after)) => writeln!(out, "{green}+ {}{reset}{unseen}", cut(&one_line(after), VALUE_WIDTH)),
        (Some(before), None) => writeln!(out, "{red}- {}{reset}{unseen}", cut(&one_line(before), VALUE_WIDTH)),
        (None, None) => writeln!(out),
    };
}

/// Lines of a unified diff that are shown; the rest is counted.
const UNIFIED_LINES: usize = 60;

fn render_unified(out: &mut String, unified: &str, paint: &Paint) {
    // Not `lines`, which takes a carriage return for a part of the line break: to add one is a change.
    let lines: Vec<&str> = unified.strip_suffix('\n').unwrap_or(unified).split('\n').collect();
    let mut rest = &lines[..];
    let mut shown = Vec::new();
    while let Some(first) = rest.first().filter(|_| shown.len() < UNIFIED_LINES) {
        let run = |lines: &[&str], sign: char| lines.iter().take_while(|line| line.starts_with(sign)).count();
        let gone = run(rest, '-');
        let new = run(&rest[gone..], '+');
        if gone + new == 0 {
            let tint = if first.starts_with('@') { paint.dim() } else { "" };
            shown.push((tint, cut(&text_line(first), LINE_WIDTH).trim_end().to_owned()));
            rest = &rest[1..];
        } else {
            let (changed, after) = rest.split_at(gone + new);
            shown.extend(render_run(&changed[..gone], &changed[gone..], paint));
            rest = after;
        }
    }
    for (tint, line) in shown.iter().take(UNIFIED_LINES) {
        let reset = if tint.is_empty() { "" } else { paint.reset() };
        let _ = writeln!(out, "      {tint}{line}{reset}");
    }
    let hidden = lines.get(UNIFIED_LINES..).unwrap_or_default();
    let differ = hidden.iter().filter(|line| line.starts_with(['-', '+'])).count();
    let _ = match (hidden.len(), differ) {
        (0, _) => Ok(()),
        (more, 0) => writeln!(out, "      … {more} more lines"),
        (_, 1) => writeln!(out, "      … 1 more line differs"),
        (_, differ) => writeln!(out, "      … {differ} more lines differ"),
    };
}

/// Removed lines and the added ones that follow them, each with its sign. A long line is cut to where it differs from the one in
/// its place, so that the two never look the same.
fn render_run(gone: &[&str], new: &[&str], paint: &Paint) -> Vec<(&'static str, String)> {
    let text = |line: &str| line.get(1..).unwrap_or_default().to_owned();
    let mut shown = (Vec::new(), Vec::new());
    for index in 0..gone.len().max(new.len()) {
        let alone = |sign: char, line: &str| {
            let line = text_line(&text(line));
            let part = cut(&line, LINE_WIDTH);
            let further = if part == line { "" } else { FURTHER };
            format!("{sign}{}{further}", part.trim_end())
        };
        match (gone.get(index), new.get(index)) {
            (Some(before), Some(after)) => {
                let (old, new) = (text(before), text(after));
                let Contrast { before, after, further } = contrasted(&old, &new, text_line, LINE_WIDTH);
                let note = match (old == new, further) {
                    // Without its line break, the last line of a text is another.
                    (true, _) => UNSEEN,
                    (false, true) => FURTHER,
                    (false, false) => "",
                };
                shown.0.push(format!("-{}{note}", before.trim_end()));
                shown.1.push(format!("+{}{note}", after.trim_end()));
            }
            (Some(before), None) => shown.0.push(alone('-', before)),
            (None, Some(after)) => shown.1.push(alone('+', after)),
            (None, None) => {}
        }
    }
    let (red, green) = (paint.red(), paint.green());
    shown.0.into_iter().map(|line| (red, line)).chain(shown.1.into_iter().map(|line| (green, line))).collect()
}

/// A value on one line; quoted where its ends would not be seen.
fn one_line(text: &str) -> String {
    let text = text_line(&text.replace('\n', "⏎"));
    if text.is_empty() || text != text.trim() { format!("\"{text}\"") } else { text }
}

/// A line of a text.
fn text_line(text: &str) -> String {
    printable(&text.replace('\t', "    "))
}

/// Columns of what two long values have in common that are kept before their first difference.
const LEAD: usize = 20;

/// Two values, cut to what surrounds their first difference.
struct Contrast {
    before: String,
    after: String,
    /// Whether they differ in what is cut off, too.
    further: bool,
}

/// Two values, each on one line of so many columns, so that their difference is seen. Where `plain` would hide a part of it, they
/// are written with escapes.
fn contrasted(before: &str, after: &str, plain: impl Fn(&str) -> String, columns: usize) -> Contrast {
    let (mut old, mut new) = (plain(before), plain(after));
    let is_unseen = |text: &str| text.chars().any(|c| c == '⏎' || (is_hidden(c) && !matches!(c, '\n' | '\t')));
    let is_lossy = is_unseen(before) || is_unseen(after) || before.contains('\t') != after.contains('\t');
    if before != after && (is_lossy || old.trim_end() == new.trim_end()) {
        let escaped = |text: &str| printable(&format!("\"{}\"", text.escape_debug()));
        (old, new) = (escaped(before), escaped(after));
    }
    let same = old.chars().zip(new.chars()).take_while(|(a, b)| a == b).count();
    let (old_chars, new_chars) = (old.chars().count(), new.chars().count());
    let end = old.chars().rev().zip(new.chars().rev()).take_while(|(a, b)| a == b).count().min(old_chars.min(new_chars) - same);
    let is_long = width(&old) > columns || width(&new) > columns;
    // What ends within the cut is shown from its start.
    let from = if is_long && same > columns / 2 { same - LEAD } else { 0 };
    let start = if from > 0 { "…" } else { "" };
    let shown = |text: &str, chars: usize| {
        let whole = format!("{start}{}", text.chars().skip(from).collect::<String>());
        let part = cut(&whole, columns);
        let seen = if part == whole { chars } else { from + part.chars().count() - 1 - start.chars().count() };
        (part, seen < chars - end)
    };
    let ((before, old_further), (after, new_further)) = (shown(&old, old_chars), shown(&new, new_chars));
    Contrast { before, after, further: old_further || new_further }
}

/// Most characters of a comment, counted as UTF-16 does: GitHub takes 65,536, and the rest is for what a CI job adds.
const COMMENT: usize = 60_000;

/// Of those, what is kept for everything but the entries.
const FRAME: usize = 5_000;

/// Most characters of one entry in a comment; a job with more changes shows the first.
const ENTRY: usize = 8_000;

/// The plan as Markdown, for a comment on a pull request; ends in a line break. The first line is a marker, by which the next run
/// finds the comment; the counts come before all details, since a mail shows little more. Always shorter than 60,000 characters: each
/// group is cut from its end, the largest first, so that a thousand additions do not hide a removal.
#[must_use]
pub fn render_markdown(plan: &Plan, options: &RenderOptions) -> String {
    let Plan { catalog, summary, .. } = plan;
    let mut out = format!("<!-- octavius:diff:{catalog} -->\n### Catalogue `{catalog}`\n\n**{}**\n", render_summary(summary));
    if let Some(header) = &options.header {
        let _ = writeln!(out, "\n{}", code_span(&cut(&printable(header), LINE_WIDTH)));
    }
    let plain = RenderOptions { color: false, header: None, notes: options.notes.clone() };
    let mut groups = groups(plan, &plain);
    // Jobs of which anything is left out: also those that stand in an entry that they share with others, which is shown.
    let mut hidden = BTreeSet::<&JobName>::new();
    for entry in groups.iter_mut().flat_map(|(_, entries)| entries) {
        let (text, is_whole) = without_the_rest(&entry.text);
        entry.text = text;
        if !is_whole {
            hidden.extend(entry.jobs.iter().copied());
        }
    }
    let sizes: Vec<usize> = groups.iter().map(|(_, entries)| entries.iter().map(size).sum()).collect();
    for ((action, entries), room) in groups.iter().zip(shares(&sizes, COMMENT - FRAME)) {
        let mut left = room;
        let fitting = entries.iter().take_while(|entry| left.checked_sub(size(entry)).map(|rest| left = rest).is_some()).count();
        let (kept, cut_off) = entries.split_at(fitting);
        hidden.extend(cut_off.iter().flat_map(|entry| entry.jobs.iter().copied()));
        let body: String = kept.iter().map(|entry| entry.text.as_str()).collect();
        let fence = "`".repeat((longest_run(&body) + 1).max(3));
        let count = count(summary, *action);
        let _ = writeln!(out, "\n<details>\n<summary>{count}</summary>\n\n{fence}diff\n{body}{fence}\n\n</details>");
    }
    let missing = hidden.len();
    if missing > 0 {
        let jobs = if missing == 1 { "job is" } else { "jobs are" };
        let _ = writeln!(out, "\n**{missing} {jobs} not shown in full.** `octavius diff` shows all of them.");
    }
    out
}

fn size(entry: &Entry<'_>) -> usize {
    length(&entry.text)
}

fn length(text: &str) -> usize {
    text.encode_utf16().count()
}

/// An entry as a `diff` fence colours it, where `!` marks changes, and its first lines if it is very long; whether these are all.
fn without_the_rest(text: &str) -> (String, bool) {
    let text = text.strip_prefix(sign(Action::Changed)).map_or_else(|| text.to_owned(), |rest| format!("!{rest}"));
    let mut left = ENTRY;
    let fitting = text.lines().take_while(|line| left.checked_sub(length(line) + 1).map(|rest| left = rest).is_some()).count();
    let more = text.lines().count() - fitting;
    if more == 0 {
        return (text, true);
    }
    let kept: String = text.lines().take(fitting).flat_map(|line| [line, "\n"]).collect();
    (format!("{kept}    … {more} more lines\n"), false)
}

/// How `room` is divided among what has these sizes: whoever needs less than an equal part leaves the rest to the others.
fn shares(sizes: &[usize], room: usize) -> Vec<usize> {
    let mut order: Vec<usize> = (0..sizes.len()).collect();
    order.sort_by_key(|&index| sizes[index]);
    let mut shares = vec![0; sizes.len()];
    let mut left = room;
    for (position, &index) in order.iter().enumerate() {
        shares[index] = sizes[index].min(left / (order.len() - position));
        left -= shares[index];
    }
    shares
}

fn longest_run(text: &str) -> usize {
    text.split(|c| c != '`').map(str::len).max().unwrap_or(0)
}

/// Text as it is, in which Markdown sees neither markup nor mentions. It has one line.
fn code_span(text: &str) -> String {
    let ticks = "`".repeat(longest_run(text) + 1);
    let gap = if ticks.len() > 1 { " " } else { "" };
    format!("{ticks}{gap}{text}{gap}{ticks}")
}

fn count(summary: &Summary, action: Action) -> String {
    let Summary { added, changed, removed, blocked, unchanged: _ } = *summary;
    match action {
        Action::Added => format!("{added} added"),
        Action::Changed => format!("{changed} changed"),
        Action::Removed => format!("{removed} removed"),
        Action::Blocked => format!("{blocked} removed (blocked)"),
    }
}

/// `1 added, 1 changed, 1 removed (blocked), 38 unchanged`.
#[must_use]
pub fn render_summary(summary: &Summary) -> String {
    let Summary { added, changed, removed, blocked, unchanged } = *summary;
    let counts = GROUPS.into_iter().zip([added, changed, removed, blocked]);
    let mut parts: Vec<_> = counts.filter(|(_, jobs)| *jobs > 0).map(|(action, _)| count(summary, action)).collect();
    if parts.is_empty() {
        parts.push("no changes".to_owned());
    }
    parts.push(format!("{unchanged} unchanged"));
    parts.join(", ")
}
