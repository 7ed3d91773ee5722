//! Tables without borders, as `kubectl` has them; times and durations as they stand in them.

use std::time::Duration;

use comfy_table::{ContentArrangement, Row, Table, presets};
use octavius_core::{HumanDuration, Timestamp};

use crate::sanitize;

/// A table of `header` over `rows`; ends in a line break. Where `width` is known, columns are cut so that a row stays on one line.
#[must_use]
pub fn render(header: &[&str], rows: impl IntoIterator<Item = Vec<String>>, width: Option<u16>) -> String {
    let mut table = Table::new();
    table.load_style(presets::NOTHING).set_truncation_indicator("…");
    if let Some(width) = width {
        table.set_width(width).set_content_arrangement(ContentArrangement::Dynamic);
    }
    table.set_header(header.to_vec());
    for cells in rows {
        let mut row = Row::from(cells.iter().map(|cell| sanitize::line(cell)));
        row.max_height(1);
        table.add_row(row);
    }
    for column in table.column_iter_mut() {
        column.set_padding((0, 2));
    }
    let mut text: String = table.lines().map(|line| line.trim_end().to_owned() + "\n").collect();
    if text.is_empty() {
        text.push('\n');
    }
    text
}

/// A time to the second, in UTC: `2026-03-01T12:00:00Z`.
#[must_use]
pub fn time(at: Timestamp) -> String {
    at.strftime("%Y-%m-%dT%H:%M:%SZ").to_string()
}

/// A time of the wire, empty where there is none.
#[must_use]
pub fn wire_time(at: Option<&prost_types::Timestamp>) -> String {
    from_wire(at).map(time).unwrap_or_default()
}

/// A time of the wire; one out of range counts as none.
#[must_use]
pub fn from_wire(at: Option<&prost_types::Timestamp>) -> Option<Timestamp> {
    at.and_then(|at| Timestamp::new(at.seconds, at.nanos).ok())
}

/// The time between two moments with its two largest units: `2m10s`, `340ms`.
#[must_use]
pub fn between(from: Timestamp, to: Timestamp) -> String {
    let length = Duration::try_from(to.duration_since(from)).unwrap_or_default();
    short(length)
}

/// A duration with its two largest units.
#[must_use]
pub fn short(length: Duration) -> String {
    let seconds = length.as_secs();
    let kept = match seconds {
        0 => Duration::from_millis(u64::try_from(length.as_millis()).unwrap_or(u64::MAX)),
        1..=3599 => Duration::from_secs(seconds),
        3600..=86_399 => Duration::from_secs(seconds / 60 * 60),
        _ => Duration::from_secs(seconds / 3600 * 3600),
    };
    HumanDuration::new(kept).to_string()
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
    fn cells_cannot_move_the_cursor() {
        assert!(!render(&["A"], [vec!["x\u{1b}[2Jy".into()]], None).contains('\u{1b}'));
    }

    #[test]
    fn durations_are_short() {
        for (millis, text) in
            [(0, "0s"), (340, "340ms"), (2_500, "2s"), (130_000, "2m10s"), (3_700_000, "1h1m"), (90_061_000, "1d1h")]
        {
            assert_eq!(short(Duration::from_millis(millis)), text);
        }
    }
}
