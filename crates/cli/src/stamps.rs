//! Log lines with the time of when they were printed before them.

use octavius_core::Timestamp;
use octavius_core::log::Times;

/// Characters of a time: `2026-03-01T12:00:00.000Z`.
const WIDTH: usize = 24;

/// Takes log bytes in pieces of any size and puts before each line when its first byte was printed; `-` where that is not known. A line may
/// be cut anywhere between two pieces.
#[derive(Debug, Default)]
pub struct Stamper {
    /// Whether the last byte stands within a line.
    within: bool,
    /// The stamp that was written last, and for which time: many lines are printed at one.
    last: Option<(Option<i64>, String)>,
}

impl Stamper {
    /// Appends the next piece to `out`.
    pub fn stamp(&mut self, bytes: &[u8], times: &Times, out: &mut Vec<u8>) {
        let mut at = 0;
        for line in bytes.split_inclusive(|byte| *byte == b'\n') {
            if !self.within {
                let stamp = self.at(times.at(at));
                out.extend_from_slice(stamp.as_bytes());
            }
            out.extend_from_slice(line);
            self.within = line.last() != Some(&b'\n');
            at += line.len() as u64;
        }
    }

    /// What comes next does not go on with the line before: ends it.
    pub fn end_line(&mut self, out: &mut Vec<u8>) {
        if std::mem::take(&mut self.within) {
            out.push(b'\n');
        }
    }

    fn at(&mut self, unix_ms: Option<i64>) -> &str {
        if self.last.as_ref().is_none_or(|(of, _)| *of != unix_ms) {
            let time = unix_ms.and_then(|unix_ms| Timestamp::from_millisecond(unix_ms).ok());
            let text = time.map_or_else(|| "-".to_owned(), |time| time.strftime("%Y-%m-%dT%H:%M:%S.%3fZ").to_string());
            self.last = Some((unix_ms, format!("{text:<WIDTH$} ")));
        }
        self.last.as_ref().map_or("", |(_, stamp)| stamp)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn times(marks: &[(u64, i64)]) -> Times {
        let mut times = Times::default();
        marks.iter().for_each(|&(at, unix_ms)| times.push(at, unix_ms));
        times
    }

    fn stamped(pieces: &[(&[u8], Times)]) -> String {
        let (mut stamper, mut out) = (Stamper::default(), Vec::new());
        pieces.iter().for_each(|(bytes, times)| stamper.stamp(bytes, times, &mut out));
        String::from_utf8_lossy(&out).into_owned()
    }

    #[test]
    fn each_line_has_the_time_of_its_first_byte() {
        let at = |ms: i64| 1_772_366_400_000 + ms;
        let text = stamped(&[(b"one\ntwo\nth\0\xffree", times(&[(0, at(0)), (5, at(1500)), (9, at(70_020))]))]);
        let expected = "2026-03-01T12:00:00.000Z one\n2026-03-01T12:00:00.000Z two\n2026-03-01T12:00:01.500Z th\0\u{fffd}ree";
        assert_eq!(text, expected);
    }

    #[test]
    fn what_is_not_known_keeps_the_lines_in_one_column() {
        assert_eq!(
            stamped(&[(b"a\n\nb\n", Times::default())]),
            format!("{0} a\n{0} \n{0} b\n", "-".to_owned() + &" ".repeat(23))
        );
        assert!(stamped(&[(b"a\n", Times::all_at(i64::MAX))]).starts_with("-  "));
        assert!(stamped(&[(b"a\n", Times::all_at(-1))]).starts_with("1969-12-31T23:59:59.999Z a"));
    }

    #[test]
    fn what_does_not_go_on_with_a_line_ends_it() {
        let (mut stamper, mut out) = (Stamper::default(), Vec::new());
        stamper.end_line(&mut out);
        stamper.stamp(b"a", &Times::all_at(0), &mut out);
        stamper.end_line(&mut out);
        stamper.end_line(&mut out);
        stamper.stamp(b"b\n", &Times::all_at(0), &mut out);
        assert_eq!(String::from_utf8(out).unwrap(), "1970-01-01T00:00:00.000Z a\n1970-01-01T00:00:00.000Z b\n");
    }

    proptest! {
        #[test]
        fn it_does_not_matter_where_pieces_are_cut(
            text in "[a\n]{0,40}", cut in 0usize..40, marks in prop::collection::vec((1u64..9, 0i64..99), 0..9)
        ) {
            let mut whole = Times::default();
            let (mut at, mut unix_ms) = (0, 0);
            for (skip, wait) in marks {
                whole.push(at, unix_ms);
                (at, unix_ms) = (at + skip, unix_ms + wait);
            }
            let bytes = text.as_bytes();
            let (head, tail) = bytes.split_at(cut.min(bytes.len()));
            let (from, size) = (head.len() as u64, bytes.len() as u64);
            let cut = stamped(&[(head, whole.part(0, from)), (tail, whole.part(from, size))]);
            prop_assert_eq!(cut, stamped(&[(bytes, whole)]));
        }
    }
}
