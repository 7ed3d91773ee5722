//! Finding lines of a log: on the controller, since a browser has but a window of it. Each answer looks through a bounded part; the asker goes on
//! where it ended.

use regex::bytes::{Regex, RegexBuilder};
use serde::Serialize;
use tokio::sync::Semaphore;
use tonic::Status;

use super::parts::{Log, Part};
use super::rows::{ROW_BYTES, Rows};

/// Bytes that one answer looks through: well below a second, so that the asker sees how it goes.
const SEARCH_BYTES: u64 = 4 * 1024 * 1024;

/// Lines that one answer tells of.
const MOST_FOUND: usize = 2000;

/// Searches at once.
static SEARCHES: Semaphore = Semaphore::const_new(2);

/// Characters that can be searched for.
pub(super) const MOST_CHARS: usize = 256;

/// What was found.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub(super) struct Found {
    /// Where the lines begin that hold what is searched for, in order.
    pub(super) lines: Vec<u64>,
    /// Where to go on.
    pub(super) next: u64,
    /// Whether everything was looked through that is there by now.
    pub(super) is_all: bool,
}

/// Looks for a text in lines, without regard to case.
struct Search {
    wanted: Regex,
    /// The length of the text, in bytes.
    length: usize,
    /// The beginning of a line whose rest has not come, and where it begins.
    line: Vec<u8>,
    begins: u64,
    found: Vec<u64>,
}

impl Search {
    fn new(text: &str, begins: u64) -> Result<Self, Status> {
        let wanted = RegexBuilder::new(&regex::escape(text)).case_insensitive(true).build();
        let wanted = wanted.map_err(|error| Status::invalid_argument(format!("this cannot be searched for: {error}")))?;
        Ok(Self { wanted, length: text.len(), line: Vec::new(), begins, found: Vec::new() })
    }

    fn look(&mut self, line: &[u8]) {
        // A line is found by what is seen of it, whatever colours stand between, and by what was printed.
        let differs = line.iter().any(|byte| matches!(byte, 0x1b | b'\r' | 0x8));
        if self.wanted.is_match(line) || (differs && self.wanted.is_match(Rows::text(line).as_bytes())) {
            self.found.push(self.begins);
        }
    }

    /// Takes bytes that go on with the line; returns how many it needed, where it found enough before the end.
    fn take(&mut self, bytes: &[u8]) -> usize {
        let mut taken = 0;
        for piece in bytes.split_inclusive(|byte| *byte == b'\n') {
            if self.found.len() >= MOST_FOUND {
                break;
            }
            taken += piece.len();
            let Some(rest) = piece.strip_suffix(b"\n") else {
                self.line.extend_from_slice(piece);
                if self.line.len() as u64 >= ROW_BYTES {
                    self.break_off();
                }
                break;
            };
            let length = self.line.len() + piece.len();
            if self.line.is_empty() {
                self.look(rest);
            } else {
                let mut line = std::mem::take(&mut self.line);
                line.extend_from_slice(rest);
                self.look(&line);
                line.clear();
                self.line = line;
            }
            self.begins += length as u64;
        }
        taken
    }

    /// A line is not kept for ever: looks at what is there of it, and keeps what the text may begin in.
    fn break_off(&mut self) {
        let line = std::mem::take(&mut self.line);
        self.look(&line);
        let kept = line.len() - line.len().min(self.length.saturating_sub(1));
        self.begins += kept as u64;
        self.line = line[kept..].to_vec();
    }

    fn skip_to(&mut self, offset: u64) {
        self.end_line();
        self.begins = offset;
    }

    fn end_line(&mut self) {
        let line = std::mem::take(&mut self.line);
        if !line.is_empty() {
            self.look(&line);
        }
    }
}

impl Log {
    /// Looks for a text from an offset on, where a line begins.
    pub(super) async fn search(&self, text: &str, from: u64) -> Result<Found, Status> {
        // It is work for the processor, in the process that must answer executors: a few at a time, and others' turns between.
        let _turn = SEARCHES.acquire().await;
        let mut search = Search::new(text, from)?;
        let mut parts = self.read(from, false).await?;
        let mut looked = 0;
        let is_all = loop {
            match parts.next().await? {
                Part::Attempt(_) => {}
                Part::Gap(gap) => search.skip_to(gap.end()),
                Part::Bytes(_, data) => {
                    let taken = search.take(&data);
                    tokio::task::yield_now().await;
                    looked += taken as u64;
                    if taken < data.len() || looked >= SEARCH_BYTES {
                        break false;
                    }
                }
                Part::End(_) => {
                    search.end_line();
                    break true;
                }
            }
        };
        Ok(Found { lines: search.found, next: search.begins, is_all })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The lines found in a log that comes in these pieces.
    fn found(text: &str, pieces: &[&[u8]]) -> Vec<u64> {
        let mut search = Search::new(text, 0).unwrap();
        for piece in pieces {
            let mut rest = *piece;
            while !rest.is_empty() {
                rest = &rest[search.take(rest)..];
            }
        }
        search.end_line();
        search.found
    }

    #[test]
    fn lines_are_found_wherever_pieces_are_cut() {
        let log = "first\nan Error\nfine\nÄRGER error error\nerr\nor\nlast error".as_bytes();
        let expected = [6, 20, 46];
        assert_eq!(found("error", &[log]), expected);
        for cut in 0..log.len() {
            assert_eq!(found("ERROR", &[&log[..cut], &log[cut..]]), expected, "cut at {cut}");
        }
        assert_eq!(found("ärger", &[log]), [20]);
    }

    #[test]
    fn a_text_is_no_pattern() {
        assert_eq!(found("a.c", &[b"abc\na.c\n"]), [4]);
        assert_eq!(found("(", &[b"x\n(\n"]), [2]);
    }

    #[test]
    fn colours_do_not_hide_what_is_seen() {
        assert_eq!(found("error", &[b"x\nan \x1b[31mer\x1b[1mror\x1b[0m\n"]), [2]);
        assert_eq!(found("100%", &[b" 10%\r100%\n"]), [0]);
        assert_eq!(found("[31m", &[b"\x1b[31mred\n"]), [0]);
    }

    #[test]
    fn in_a_line_without_an_end_the_text_is_found_where_the_line_is_broken_off() {
        let before = vec![b'x'; usize::try_from(ROW_BYTES).unwrap() - 3];
        let log = [&before[..], b"needle", &before, b"\nneedle\n"].concat();
        let pieces: Vec<_> = log.chunks(ROW_BYTES as usize).collect();
        let lines = found("needle", &pieces);
        assert_eq!(lines.len(), 2, "{lines:?}");
        assert_eq!(lines[1], log.len() as u64 - 7);
    }
}
