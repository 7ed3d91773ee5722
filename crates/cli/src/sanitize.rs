//! Text from elsewhere, made harmless for a terminal: a job's log or description must not move the cursor, change the title or hide what
//! stands beside it.

/// One line of text with everything replaced that is not to be shown as it is.
#[must_use]
pub fn line(text: &str) -> String {
    text.chars().map(|c| if is_hidden(c) { '\u{fffd}' } else { c }).collect()
}

/// The first sentence of a text in one line, for places where one line is all there is: a line of the text may end in the middle of it. It ends
/// where a new one begins, with a capital, or with the paragraph.
#[must_use]
pub fn first_sentence(text: &str) -> String {
    let lines = text.lines().map(str::trim).skip_while(|line| line.is_empty()).take_while(|line| !line.is_empty());
    let mut paragraph = lines.collect::<Vec<_>>().join(" ");
    let begins = |rest: &str| rest.strip_prefix(' ').is_some_and(|rest| rest.trim_start().starts_with(char::is_uppercase));
    let end = paragraph.match_indices(['.', '!', '?']).map(|(at, mark)| at + mark.len()).find(|end| begins(&paragraph[*end..]));
    paragraph.truncate(end.unwrap_or(paragraph.len()));
    paragraph
}

/// Control characters, and those that reorder what stands around them.
fn is_hidden(c: char) -> bool {
    c.is_control() || matches!(c, '\u{200e}' | '\u{200f}' | '\u{202a}'..='\u{202e}' | '\u{2066}'..='\u{2069}')
}

/// Takes log bytes in pieces of any size and gives text for a terminal: escape sequences and control characters are left out, bytes
/// that are no UTF-8 become replacement characters. A sequence or a character may be cut anywhere between two pieces.
#[derive(Debug, Default)]
pub struct Cleaner {
    state: State,
    /// The beginning of a character whose rest has not come.
    pending: Vec<u8>,
}

#[derive(Debug, Default, Clone, Copy, PartialEq, Eq)]
enum State {
    #[default]
    Text,
    /// After ESC.
    Escape,
    /// In a control sequence, until its final byte.
    Sequence,
    /// In a string (title, link), until BEL or ESC `\`.
    String,
    /// In a string, after ESC.
    StringEscape,
}

/// Bytes that stand for themselves, whatever is around them. The others are control characters, and those with which the UTF-8 of a
/// character begins that may be hidden: U+0080 to U+00BF, and U+2000 to U+2FFF.
const PLAIN: [bool; 256] = {
    let mut plain = [true; 256];
    let mut byte = 0;
    while byte < 0x20 {
        plain[byte] = matches!(byte, 0x09 | 0x0a);
        byte += 1;
    }
    plain[0x7f] = false;
    plain[0xc2] = false;
    plain[0xe2] = false;
    plain
};

impl Cleaner {
    /// The text of the next piece.
    pub fn clean(&mut self, bytes: &[u8]) -> String {
        let mut out = String::with_capacity(bytes.len());
        if self.pending.is_empty() {
            self.clean_whole(bytes, &mut out);
        } else {
            let mut joined = std::mem::take(&mut self.pending);
            joined.extend_from_slice(bytes);
            self.clean_whole(&joined, &mut out);
        }
        out
    }

    fn clean_whole(&mut self, mut rest: &[u8], out: &mut String) {
        loop {
            match std::str::from_utf8(rest) {
                Ok(text) => return self.push(text, out),
                Err(error) => {
                    let (valid, after) = rest.split_at(error.valid_up_to());
                    self.push(std::str::from_utf8(valid).unwrap_or_default(), out);
                    match error.error_len() {
                        Some(bad) => {
                            self.push("\u{fffd}", out);
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

    /// What was left at the end: half a character.
    pub fn finish(&mut self) -> &'static str {
        if std::mem::take(&mut self.pending).is_empty() { "" } else { "\u{fffd}" }
    }

    fn push(&mut self, mut text: &str, out: &mut String) {
        loop {
            if self.state == State::Text {
                // most of a log: runs of what stands for itself are taken at once
                let run = text.bytes().position(|byte| !PLAIN[usize::from(byte)]).unwrap_or(text.len());
                let (plain, after) = text.split_at(run);
                out.push_str(plain);
                text = after;
            }
            let mut chars = text.chars();
            let Some(c) = chars.next() else { return };
            text = chars.as_str();
            self.state = match (self.state, c) {
                (State::Text, '\u{1b}') => State::Escape,
                (State::Text, '\u{9b}') => State::Sequence,
                (State::Text, '\u{90}' | '\u{98}' | '\u{9d}'..='\u{9f}') => State::String,
                (State::Text, _) => {
                    if matches!(c, '\n' | '\t') || !is_hidden(c) {
                        out.push(c);
                    }
                    State::Text
                }
                (State::Escape, '[') => State::Sequence,
                (State::Escape, ']' | 'P' | 'X' | '^' | '_') => State::String,
                (State::Escape, '\u{1b}') => State::Escape,
                // intermediate bytes, as in `ESC ( B`
                (State::Escape, ' '..='/') => State::Escape,
                (State::Sequence, ' '..='?') => State::Sequence,
                (State::Sequence, '\u{1b}') => State::Escape,
                (State::String, '\u{7}' | '\u{9c}') | (State::StringEscape, '\\') => State::Text,
                (State::String | State::StringEscape, '\u{1b}') => State::StringEscape,
                // an unfinished string must not swallow the rest of the log
                (State::String | State::StringEscape, '\n') => {
                    out.push('\n');
                    State::Text
                }
                (State::String | State::StringEscape, _) => State::String,
                (State::Escape | State::Sequence, '\n') => {
                    out.push('\n');
                    State::Text
                }
                (State::Escape | State::Sequence, _) => State::Text,
            };
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn clean(bytes: &[u8]) -> String {
        let mut cleaner = Cleaner::default();
        let mut text = cleaner.clean(bytes);
        text.push_str(cleaner.finish());
        text
    }

    #[test]
    fn a_sentence_is_not_cut_where_its_line_ends() {
        assert_eq!(first_sentence("\n  Warns of those\n  that end.\n\nExit code 1: one ends."), "Warns of those that end.");
        assert_eq!(
            first_sentence("Warns of those\nthat end, e.g. soon. Exit code 1: one."),
            "Warns of those that end, e.g. soon."
        );
        assert_eq!(first_sentence("Version 1.2 of it? Übung"), "Version 1.2 of it?");
        assert_eq!(first_sentence(" one\r\n"), "one");
        assert_eq!(first_sentence("\n\n"), "");
    }

    #[test]
    fn sequences_are_left_out_and_text_stays() {
        assert_eq!(clean(b"\x1b[31mred\x1b[0m\n"), "red\n");
        assert_eq!(clean(b"\x1b]0;title\x07a\x1b]8;;http://x\x1b\\link\x1b]8;;\x1b\\b"), "alinkb");
        assert_eq!(clean(b"a\x1b(Bb\x1bcc\rd\x08\0e\tf"), "abcde\tf");
        assert_eq!(clean("a\u{9b}2Jb\u{202e}c".as_bytes()), "abc");
        assert_eq!(clean(b"\x1b]0;never ends\nnext"), "\nnext");
        assert_eq!(clean(b"a\xff\xfeb\xe2\x82"), "a\u{fffd}\u{fffd}b\u{fffd}");
    }

    #[test]
    fn it_does_not_matter_where_pieces_are_cut() {
        let whole = "x\u{1b}[1;31m€\u{1b}[0m ü\u{1b}]0;t\u{1b}\\z\n".as_bytes();
        let expected = clean(whole);
        for cut in 0..whole.len() {
            let mut cleaner = Cleaner::default();
            let text = cleaner.clean(&whole[..cut]) + &cleaner.clean(&whole[cut..]);
            assert_eq!(text, expected, "cut at {cut}");
        }
    }

    /// What is taken in runs is what each character would have become by itself.
    #[test]
    fn every_character_is_hidden_or_shown_as_it_should_be() {
        for c in (0..=0x0010_ffff).filter_map(char::from_u32).filter(|c| !matches!(*c, '\u{1b}' | '\u{90}'..='\u{9f}')) {
            let shown = matches!(c, '\n' | '\t') || !is_hidden(c);
            let expected = if shown { format!("a{c}b") } else { "ab".to_owned() };
            assert_eq!(clean(format!("a{c}b").as_bytes()), expected, "{c:?}");
        }
    }

    #[test]
    fn a_line_shows_where_something_was() {
        assert_eq!(line("a\u{1b}[2Jb\n\u{202e}"), "a\u{fffd}[2Jb\u{fffd}\u{fffd}");
    }
}
