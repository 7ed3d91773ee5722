//! Masking: values that must not leave the machine are replaced in the output, byte for byte by `*`, so that offsets stay as they are.
//!
//! Which bytes are masked depends on the output alone and not on how it was cut into pieces: a byte is masked if it lies in any
//! occurrence of any value. So a piece can be read and masked again, after a restart, and is the same.

use std::ops::Range;

use aho_corasick::AhoCorasick;

/// Shorter values are not masked: they would be found everywhere.
pub(crate) const SHORTEST: usize = 4;

/// The values to be masked. No `Debug`.
pub(crate) struct Mask {
    values: Vec<String>,
    search: Option<AhoCorasick>,
    longest: usize,
}

impl Mask {
    /// A mask for these values.
    pub(crate) fn new(values: impl IntoIterator<Item = String>) -> Self {
        let mut values: Vec<String> = values.into_iter().filter(|value| value.len() >= SHORTEST).collect();
        values.sort_unstable();
        values.dedup();
        // Values are at most a few MiB in all, far below what the search structure can hold; without it nothing may leave, see `apply`.
        let search = (!values.is_empty()).then(|| AhoCorasick::new(&values).ok()).flatten();
        let longest = values.iter().map(String::len).max().unwrap_or_default();
        Self { values, search, longest }
    }

    /// How many bytes on either side of a piece decide what in the piece is masked.
    pub(crate) fn context(&self) -> usize {
        self.longest.saturating_sub(1)
    }

    /// Masks every occurrence of every value.
    pub(crate) fn apply(&self, bytes: &mut [u8]) {
        let Some(search) = &self.search else {
            if !self.values.is_empty() {
                bytes.fill(b'*');
            }
            return;
        };
        // In the order of their ends. What overlaps becomes one, so that a text that is nothing but occurrences takes no more time and memory.
        let mut found: Vec<Range<usize>> = Vec::new();
        for mut range in search.find_overlapping_iter(&*bytes).map(|found| found.range()) {
            while let Some(last) = found.pop_if(|last| last.end >= range.start) {
                range.start = range.start.min(last.start);
            }
            found.push(range);
        }
        for range in found {
            bytes[range].fill(b'*');
        }
    }

    /// How many bytes at the end may be the beginning of a value, so that what follows must be seen first.
    pub(crate) fn undecided(&self, bytes: &[u8]) -> usize {
        let from = bytes.len().saturating_sub(self.context());
        let begins = |tail: &[u8]| self.values.iter().any(|value| value.len() > tail.len() && value.as_bytes().starts_with(tail));
        (from..bytes.len()).find(|&at| begins(&bytes[at..])).map_or(0, |at| bytes.len() - at)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn mask(values: &[&str]) -> Mask {
        Mask::new(values.iter().map(|&value| value.to_owned()))
    }

    fn masked(mask: &Mask, text: &str) -> String {
        let mut bytes = text.as_bytes().to_vec();
        mask.apply(&mut bytes);
        String::from_utf8(bytes).unwrap()
    }

    #[test]
    fn every_occurrence_goes_and_lengths_stay() {
        let mask = mask(&["hunter2", "ter2xyz", "abc"]);
        assert_eq!(masked(&mask, "a hunter2 b hunter2xyz abc"), "a ******* b ********** abc");
        assert_eq!(masked(&self::mask(&[]), "hunter2"), "hunter2");
    }

    #[test]
    fn a_beginning_at_the_end_is_held_back() {
        let mask = mask(&["secret", "crypt"]);
        for (text, undecided) in
            [("", 0), ("x", 0), ("a s", 1), ("a secre", 5), ("a secret", 0), ("a sec", 3), ("a cr", 2), ("tc", 1)]
        {
            assert_eq!(mask.undecided(text.as_bytes()), undecided, "{text}");
        }
    }

    proptest! {
        #[test]
        fn a_byte_is_masked_where_it_lies_in_an_occurrence(text in "[abc]{0,200}") {
            let values = ["abca", "bbbbbb", "cabcab", "aaaa", "cccccccccc"];
            let mut expected = text.clone().into_bytes();
            for value in values {
                for at in (0..text.len()).filter(|&at| text[at..].starts_with(value)) {
                    expected[at..at + value.len()].fill(b'*');
                }
            }
            prop_assert_eq!(masked(&mask(&values), &text).into_bytes(), expected);
        }

        #[test]
        fn pieces_with_their_context_are_masked_as_the_whole(text in "[abc]{0,200}", cut in 0usize..200, size in 1usize..50) {
            let mask = mask(&["abca", "bbbbbb", "cabcab", "aaaa"]);
            let mut whole = text.clone().into_bytes();
            mask.apply(&mut whole);
            let from = cut.min(whole.len());
            let to = (from + size).min(whole.len());
            let (before, after) = (from.saturating_sub(mask.context()), (to + mask.context()).min(whole.len()));
            let mut window = text.as_bytes()[before..after].to_vec();
            mask.apply(&mut window);
            prop_assert_eq!(&window[from - before..to - before], &whole[from..to]);
        }

        #[test]
        fn what_is_let_through_early_is_as_in_the_whole(text in "[abc]{0,60}", more in "[abc]{0,60}") {
            let mask = mask(&["abca", "bbbbbb", "cabcab", "aaaa"]);
            let known = text.len() - mask.undecided(text.as_bytes());
            let mut early = text.clone().into_bytes();
            mask.apply(&mut early);
            let mut whole = format!("{text}{more}").into_bytes();
            mask.apply(&mut whole);
            prop_assert_eq!(&early[..known], &whole[..known]);
        }
    }
}
