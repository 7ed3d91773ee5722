//! Tables without borders, as `kubectl` has them; times as they stand in them.

use octavius_core::Timestamp;
use octavius_proto::words;
use unicode_width::{UnicodeWidthChar as _, UnicodeWidthStr as _};

use crate::sanitize;

/// Columns of space between two cells.
const GAP: usize = 2;

/// A cell is not cut to less than this, and a window that is too narrow even so is left to wrap.
const NARROWEST: usize = 8;

/// Columns of free text: what is cut first.
const FREE_TEXT: [&str; 7] = ["DETAILS", "DESCRIPTION", "FILE", "LABELS", "RUNS", "CHANGES", "OUTCOME"];

/// Columns that mean nothing once they are cut: what is cut last, and only where that helps.
const STIFF: [&str; 11] =
    ["STATE", "CREATED", "APPLIED", "LAST SEEN", "REGISTERED", "EXPIRES", "DURATION", "ROLE", "RUNNING", "SLOTS", "VERSION"];

/// A table of `header` over `rows`; ends in a line break. Where the window's `width` is known, columns are cut so that a row stays on one
/// line: free text first, and never the first column, which names what the row is about. A window too narrow even so is left to wrap.
///
/// Ours and not a library's: a list of 1,000 jobs spent half its time in one, and this is all that is needed.
#[must_use]
pub fn render(header: &[&str], rows: impl IntoIterator<Item = Vec<String>>, width: Option<u16>) -> String {
    Growing::new(header, width).rows(rows)
}

/// A table whose rows come one after the other: columns are as wide as any row so far needs them.
#[derive(Debug)]
pub struct Growing<'a> {
    header: &'a [&'a str],
    widths: Vec<usize>,
    window: Option<u16>,
    begun: bool,
}

impl<'a> Growing<'a> {
    /// A table of this header, as [`render`] has it.
    #[must_use]
    pub fn new(header: &'a [&'a str], width: Option<u16>) -> Self {
        Self { header, widths: header.iter().map(|cell| cell.width()).collect(), window: width, begun: false }
    }

    /// The next rows; the first time the header before them.
    #[must_use]
    pub fn rows(&mut self, rows: impl IntoIterator<Item = Vec<String>>) -> String {
        let rows: Vec<Vec<String>> = rows.into_iter().map(|row| row.iter().map(|cell| sanitize::line(cell)).collect()).collect();
        for row in &rows {
            for (column, cell) in self.widths.iter_mut().zip(row) {
                *column = (*column).max(cell.width());
            }
        }
        let mut widths = self.widths.clone();
        if let Some(window) = self.window {
            fit(self.header, &mut widths, window.into());
        }
        let mut text = String::with_capacity((rows.len() + 1) * (widths.iter().sum::<usize>() + widths.len() * GAP + 1));
        if !std::mem::replace(&mut self.begun, true) {
            write_row(&mut text, self.header.iter().copied(), &widths);
        }
        for row in &rows {
            write_row(&mut text, row.iter().map(String::as_str), &widths);
        }
        text
    }
}

/// Takes from the columns until all fit the window: from the widest of the free text, then of the others, then of the stiff ones.
fn fit(header: &[&str], widths: &mut [usize], window: usize) {
    let mut over = (widths.iter().sum::<usize>() + widths.len().saturating_sub(1) * GAP).saturating_sub(window);
    let rank = |column: usize| match header.get(column) {
        Some(name) if column > 0 && FREE_TEXT.contains(name) => 0,
        Some(name) if column > 0 && STIFF.contains(name) => 2,
        Some(name) if column > 0 && *name != "ID" => 1,
        _ => 3,
    };
    for turn in 0..3 {
        let room: usize =
            (0..widths.len()).filter(|&column| rank(column) == turn).map(|column| widths[column].saturating_sub(NARROWEST)).sum();
        if turn == 2 && room < over {
            return; // rows wrap anyway: they wrap whole
        }
        while over > 0 {
            let columns = widths.iter_mut().enumerate().filter(|(column, _)| rank(*column) == turn);
            let widest = columns.map(|(_, width)| width).max().filter(|widest| **widest > NARROWEST);
            let Some(widest) = widest else { break };
            *widest -= 1;
            over -= 1;
        }
    }
}

fn write_row<'a>(text: &mut String, cells: impl Iterator<Item = &'a str>, widths: &[usize]) {
    let begin = text.len();
    for (cell, &column) in cells.zip(widths) {
        let used = write_cell(text, cell, column);
        text.extend(std::iter::repeat_n(' ', column.saturating_sub(used) + GAP));
    }
    text.truncate(begin + text[begin..].trim_end().len());
    text.push('\n');
}

/// Writes a cell, cut where it is too wide; returns how many columns it takes.
fn write_cell(text: &mut String, cell: &str, column: usize) -> usize {
    let width = cell.width();
    if width <= column {
        text.push_str(cell);
        return width;
    }
    let mut used = 0;
    for c in cell.chars() {
        let width = c.width().unwrap_or_default();
        if used + width + 1 > column {
            break;
        }
        text.push(c);
        used += width;
    }
    text.push('…');
    used + 1
}

/// A time to the second, in UTC: `2026-03-01T12:00:00Z`.
#[must_use]
pub fn time(at: Timestamp) -> String {
    at.strftime("%Y-%m-%dT%H:%M:%SZ").to_string()
}

/// A time of the wire, empty where there is none.
#[must_use]
pub fn wire_time(at: Option<&prost_types::Timestamp>) -> String {
    words::time(at).map(time).unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn rows() -> Vec<Vec<String>> {
        vec![vec!["a".into(), "a long description of what the job does".into()], vec!["longer-name".into(), String::new()]]
    }

    #[test]
    fn columns_are_aligned_and_nothing_trails() {
        assert_eq!(
            render(&["NAME", "DESCRIPTION"], rows(), None),
            "NAME         DESCRIPTION\na            a long description of what the job does\nlonger-name\n"
        );
    }

    #[test]
    fn a_narrow_window_cuts_and_does_not_wrap() {
        let text = render(&["NAME", "DESCRIPTION"], rows(), Some(32));
        assert_eq!(text.lines().count(), 3, "{text}");
        assert!(text.lines().all(|line| line.chars().count() <= 32), "{text}");
        assert!(text.contains('…'), "{text}");
    }

    #[test]
    fn wide_characters_take_the_room_that_they_take() {
        let rows = vec![vec!["退款".into(), "b".into()], vec!["abc".into(), "b".into()]];
        assert_eq!(render(&["A", "B"], rows, None), "A     B\n退款  b\nabc   b\n");
        let text = render(&["A", "B"], [vec!["b".into(), "退款退款退款退款".into()]], Some(12));
        assert_eq!(text, "A  B\nb  退款退款…\n");
    }

    #[test]
    fn rows_that_come_later_stand_below_those_before() {
        let mut table = Growing::new(&["A", "B"], None);
        assert_eq!(table.rows([vec!["abc".into(), "b".into()]]), "A    B\nabc  b\n");
        assert_eq!(table.rows([vec!["a".into(), "b".into()]]), "a    b\n");
        assert_eq!(table.rows([vec!["abcde".into(), "b".into()], vec!["a".into(), "b".into()]]), "abcde  b\na      b\n");
        assert_eq!(Growing::new(&["A", "B"], None).rows([]), "A  B\n");
    }

    #[test]
    fn what_names_the_row_is_never_cut() {
        let id = "0k3v7q2m8d5x1n4r6t9w0b9f2q";
        let rows = || [vec![id.into(), "a-job-with-a-long-name".into(), "succeeded".into(), "some free text, quite long".into()]];
        let header = ["ID", "JOB", "STATE", "DESCRIPTION"];
        let text = render(&header, rows(), Some(74));
        assert!(text.contains("a-job-with-a-long-name") && text.contains("succeeded") && text.contains('…'), "{text}");
        assert!(text.lines().all(|line| line.width() <= 74), "{text}");
        for width in 1..80 {
            assert!(render(&header, rows(), Some(width)).contains(id));
        }
    }

    #[test]
    fn cells_cannot_move_the_cursor() {
        assert!(!render(&["A"], [vec!["x\u{1b}[2Jy".into()]], None).contains('\u{1b}'));
    }
}
