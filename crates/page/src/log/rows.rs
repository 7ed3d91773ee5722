//! Log bytes as rows of HTML. Whatever a job prints, what comes out is escaped text and classes of a fixed set: colours and attributes are kept,
//! a line that is written over (a progress bar) is shown as it was left, and everything else that would act on a terminal or on the text
//! around it is left out or made visible.

use std::fmt::Write as _;

use super::paint::{Paint, Params};

/// A row is broken off where a line has so many bytes: one that never ends can be read and shown a piece at a time.
pub(super) const ROW_BYTES: u64 = 64 * 1024;

/// Columns that a sequence can move the place of writing beyond what the row has: a few bytes must not become a page of blanks.
const MOST_BLANKS: usize = 200;

/// Characters of a row that are shown; of the others it is said how many they are.
const SHOWN_CHARS: usize = 8192;

/// Characters that room is kept for between two rows: few rows are longer.
const KEPT_CHARS: usize = 256;

/// Takes log bytes in pieces of any size. A sequence, a character or a line may be cut anywhere between two pieces.
#[derive(Debug)]
pub(super) struct Rows {
    state: State,
    params: Params,
    /// The beginning of a character whose rest has not come.
    pending: Vec<u8>,
    /// How what comes next looks.
    paint: Paint,
    row: Row,
    /// Where in the log the next byte is, those of `pending` not counted.
    at: u64,
}

#[derive(Debug, Default, Clone, Copy, PartialEq, Eq)]
enum State {
    #[default]
    Text,
    /// After ESC.
    Escape,
    /// In a control sequence, until its final byte.
    Sequence,
    /// In a control sequence that means nothing here, whatever ends it.
    OtherSequence,
    /// In a string (title, link), until BEL or ESC `\`.
    String,
    /// In a string, after ESC.
    StringEscape,
}

/// The row that is being written.
#[derive(Debug, Default)]
struct Row {
    /// Where in the log it begins.
    begins: u64,
    /// What it shows so far, at most [`SHOWN_CHARS`].
    cells: Vec<(char, Paint)>,
    /// Where the next character goes.
    column: usize,
    /// How many characters it has, those included that are not shown.
    width: usize,
    /// Whether something of it was written over or wiped.
    is_rewritten: bool,
}

impl Row {
    fn put(&mut self, c: char, paint: Paint) {
        if self.column < SHOWN_CHARS {
            if self.column < self.cells.len() {
                self.is_rewritten = true;
                self.cells[self.column] = (c, paint);
            } else {
                self.cells.resize(self.column, (' ', Paint::default()));
                self.cells.push((c, paint));
            }
        }
        self.column += 1;
        self.width = self.width.max(self.column);
    }

    fn go_to(&mut self, column: usize) {
        self.column = column.min(self.width.max(self.column) + MOST_BLANKS);
    }

    /// Wipes what is before the place where it is written, what is from there on, or both.
    fn wipe(&mut self, before: bool, after: bool) {
        if after {
            self.is_rewritten |= self.column < self.width;
            self.cells.truncate(self.column);
            self.width = self.width.min(self.column);
        }
        if before {
            let wiped = self.cells.iter_mut().take(self.column + 1);
            wiped.for_each(|cell| *cell = (' ', Paint::default()));
            self.is_rewritten |= self.width > 0;
        }
    }

    /// Whether nothing was printed in it.
    fn is_empty(&self) -> bool {
        self.width == 0 && !self.is_rewritten
    }

    fn html(&self, is_open: bool, out: &mut String) {
        let class = if self.is_rewritten { "log-row over" } else { "log-row" };
        let open = if is_open { " data-open" } else { "" };
        let _ = write!(out, r#"<div class="{class}" data-at="{}"{open}>"#, self.begins); // a String takes everything
        let mut rest = &self.cells[..];
        while let Some(&(_, paint)) = rest.first() {
            let run = rest.iter().position(|cell| cell.1 != paint).unwrap_or(rest.len());
            let (cells, after) = rest.split_at(run);
            rest = after;
            let is_plain = paint == Paint::default();
            if !is_plain {
                out.push_str("<span class=\"");
                paint.classes(out);
                out.push_str("\">");
            }
            cells.iter().for_each(|&(c, _)| escape(c, out));
            if !is_plain {
                out.push_str("</span>");
            }
        }
        let more = self.width.saturating_sub(SHOWN_CHARS);
        if more > 0 {
            let _ = write!(out, r#"<span class="log-cut"> … {more} more characters</span>"#);
        }
        out.push_str("</div>");
    }
}

/// Appends a character as HTML's text, or an attribute's value.
fn escape(c: char, out: &mut String) {
    match c {
        '&' => out.push_str("&amp;"),
        '<' => out.push_str("&lt;"),
        '>' => out.push_str("&gt;"),
        '"' => out.push_str("&quot;"),
        '\'' => out.push_str("&#39;"),
        _ => out.push(c),
    }
}

/// Characters that reorder what stands around them, or break a line where the log has no line break.
fn acts_on_text(c: char) -> bool {
    matches!(c, '\u{61c}' | '\u{200e}' | '\u{200f}' | '\u{2028}'..='\u{202e}' | '\u{2066}'..='\u{2069}')
}

impl Rows {
    /// Of a log from this offset on, where a row begins.
    pub(super) fn new(at: u64) -> Self {
        let row = Row { begins: at, ..Row::default() };
        Self { state: State::Text, params: Params::default(), pending: Vec::new(), paint: Paint::default(), row, at }
    }

    /// Where the row begins that has not ended yet.
    pub(super) fn row_begins(&self) -> u64 {
        self.row.begins
    }

    /// Takes the next bytes and appends the rows that end in them.
    pub(super) fn take(&mut self, bytes: &[u8], out: &mut String) {
        if self.pending.is_empty() {
            self.take_whole(bytes, out);
        } else {
            let mut joined = std::mem::take(&mut self.pending);
            joined.extend_from_slice(bytes);
            self.take_whole(&joined, out);
        }
    }

    fn take_whole(&mut self, mut rest: &[u8], out: &mut String) {
        loop {
            match std::str::from_utf8(rest) {
                Ok(text) => return self.take_text(text, out),
                Err(error) => {
                    let (valid, after) = rest.split_at(error.valid_up_to());
                    self.take_text(std::str::from_utf8(valid).unwrap_or_default(), out);
                    match error.error_len() {
                        Some(bad) => {
                            self.take_char('\u{fffd}', bad, out);
                            rest = &after[bad..];
                        }
                        None => {
                            self.pending = after.to_vec();
                            return;
                        }
                    }
                }
            }
        }
    }

    fn take_text(&mut self, text: &str, out: &mut String) {
        text.chars().for_each(|c| self.take_char(c, c.len_utf8(), out));
    }

    /// Takes a character that stands for so many bytes of the log.
    fn take_char(&mut self, c: char, size: usize, out: &mut String) {
        if self.at - self.row.begins >= ROW_BYTES && c != '\n' {
            self.end_row(out);
        }
        self.at += size as u64;
        self.state = match (self.state, c) {
            // An unfinished sequence must not swallow the rest of the log.
            (_, '\n') => {
                self.end_row(out);
                State::Text
            }
            (State::Text, '\u{1b}') => State::Escape,
            (State::Text, '\u{9b}') => self.begin_sequence(),
            (State::Text, '\u{90}' | '\u{98}' | '\u{9d}'..='\u{9f}') => State::String,
            (State::Text, _) => {
                self.put(c);
                State::Text
            }
            (State::Escape, '[') => self.begin_sequence(),
            (State::Escape, ']' | 'P' | 'X' | '^' | '_') => State::String,
            (State::Escape, '\u{1b}') => State::Escape,
            // intermediate bytes, as in `ESC ( B`
            (State::Escape, ' '..='/') => State::Escape,
            (State::Sequence, '0'..='9') => {
                self.params.digit(c as u16 - '0' as u16);
                State::Sequence
            }
            (State::Sequence, ';' | ':') => {
                self.params.next(c == ':');
                State::Sequence
            }
            (State::Sequence | State::OtherSequence, ' '..='?') => State::OtherSequence,
            (State::Sequence | State::OtherSequence, '\u{1b}') => State::Escape,
            (State::Sequence, _) => {
                self.obey(c);
                State::Text
            }
            (State::String, '\u{7}' | '\u{9c}') | (State::StringEscape, '\\') => State::Text,
            (State::String | State::StringEscape, '\u{1b}') => State::StringEscape,
            (State::String | State::StringEscape, _) => State::String,
            (State::Escape | State::OtherSequence, _) => State::Text,
        };
    }

    fn begin_sequence(&mut self) -> State {
        self.params = Params::default();
        State::Sequence
    }

    /// Does what a control sequence says, of those that mean something within a line.
    fn obey(&mut self, last: char) {
        let first = usize::from(self.params.first());
        match last {
            'm' => self.paint.select(&self.params),
            'K' => self.row.wipe(first == 1 || first == 2, first == 0 || first == 2),
            'C' => self.row.go_to(self.row.column + first.max(1)),
            'D' => self.row.go_to(self.row.column.saturating_sub(first.max(1))),
            'G' => self.row.go_to(first.max(1) - 1),
            _ => {}
        }
    }

    fn put(&mut self, c: char) {
        match c {
            '\r' => self.row.column = 0,
            '\u{8}' => self.row.column = self.row.column.saturating_sub(1),
            '\t' => self.row.put(c, self.paint),
            // Pictures of control characters stand in the order of these.
            '\0'..='\u{1f}' => self.row.put(char::from_u32(0x2400 + c as u32).unwrap_or('\u{fffd}'), Paint::MARKED),
            '\u{7f}' => self.row.put('\u{2421}', Paint::MARKED),
            '\u{80}'..='\u{9f}' => self.row.put('\u{fffd}', Paint::MARKED),
            _ if acts_on_text(c) => {
                format!("⟨U+{:04X}⟩", c as u32).chars().for_each(|c| self.row.put(c, Paint::MARKED));
            }
            _ => self.row.put(c, self.paint),
        }
    }

    fn end_row(&mut self, out: &mut String) {
        self.row.html(false, out);
        self.begin_row();
    }

    fn begin_row(&mut self) {
        let mut cells = std::mem::take(&mut self.row.cells);
        cells.clear();
        cells.shrink_to(KEPT_CHARS);
        self.row = Row { begins: self.at, cells, ..Row::default() };
    }

    /// Appends the row that has not ended yet, where something was printed in it: it may still change.
    pub(super) fn open(&self, out: &mut String) {
        if !self.row.is_empty() {
            self.row.html(true, out);
        }
    }

    /// What is seen of a line, without how it looks.
    pub(super) fn text(line: &[u8]) -> String {
        let mut rows = Self::new(0);
        rows.take(line, &mut String::new());
        rows.row.cells.iter().map(|cell| cell.0).collect()
    }

    /// Ends the row that was begun, where something was printed in it: nothing more comes.
    pub(super) fn finish(&mut self, out: &mut String) {
        if !self.pending.is_empty() {
            let size = std::mem::take(&mut self.pending).len();
            self.take_char('\u{fffd}', size, out);
        }
        if !self.row.is_empty() {
            self.end_row(out);
        }
        self.state = State::Text;
    }

    /// Goes on at another place, where a row begins; how text looks is kept, and a row that was begun is dropped.
    pub(super) fn restart(&mut self, at: u64) {
        self.at = at;
        self.pending.clear();
        self.begin_row();
    }

    /// Tells of a piece that is not there, in the words of the command line, and goes on after it.
    pub(super) fn gap(&mut self, offset: u64, size: u64, reason: &str, out: &mut String) {
        self.finish(out);
        let _ = write!(
            out,
            r#"<div class="log-row log-gap" data-at="{offset}">{size} bytes of the log are missing at byte {offset}"#
        );
        if !reason.is_empty() {
            out.push_str(": ");
            reason.chars().for_each(|c| escape(if c.is_control() || acts_on_text(c) { '\u{fffd}' } else { c }, out));
        }
        out.push_str("</div>");
        *self = Self::new(offset.saturating_add(size));
    }
}

#[cfg(test)]
mod tests;
