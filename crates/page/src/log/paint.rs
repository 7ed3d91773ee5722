//! How log text looks: what ANSI's "select graphic rendition" says, as classes of a fixed set that `log.css` has rules for. No colour is ever
//! written into a page as such: the content security policy forbids it, and the style sheet chooses shades that can be read in light and dark.

use std::fmt::Write as _;

/// A colour of the palette: what is as good as any for the class to be named by.
type Ink = u8;

/// The palette as a job means it: ANSI's 16 colours, then what lies between them. The style sheet has classes `f0`… for text and `g0`… for
/// the ground, in this order; 256 and 16 million colours are shown as the nearest of these.
const PALETTE: [(u8, u8, u8); 22] = [
    (0, 0, 0),
    (205, 0, 0),
    (0, 205, 0),
    (205, 205, 0),
    (0, 0, 238),
    (205, 0, 205),
    (0, 205, 205),
    (229, 229, 229),
    (127, 127, 127),
    (255, 0, 0),
    (0, 255, 0),
    (255, 255, 0),
    (92, 92, 255),
    (255, 0, 255),
    (0, 255, 255),
    (255, 255, 255),
    (255, 135, 0),   // orange
    (135, 215, 0),   // lime
    (0, 135, 135),   // teal
    (0, 135, 255),   // azure
    (135, 0, 215),   // violet
    (255, 135, 175), // rose
];

/// The colours of ANSI's cube of 6×6×6 have one of these strengths of red, green and blue.
const CUBE: [u8; 6] = [0, 95, 135, 175, 215, 255];

/// Numbers of one control sequence that are looked at; real ones have a few.
const MAX_PARAMS: usize = 32;

/// The numbers of a control sequence, as they come.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(super) struct Params {
    numbers: [u16; MAX_PARAMS],
    /// Which numbers go with the one before: those after a colon.
    joined: u32,
    count: usize,
}

impl Params {
    /// Takes a digit.
    pub(super) fn digit(&mut self, digit: u16) {
        self.count = self.count.max(1);
        if let Some(number) = self.numbers.get_mut(self.count - 1) {
            *number = number.saturating_mul(10).saturating_add(digit);
        }
    }

    /// Takes what separates two numbers.
    pub(super) fn next(&mut self, joins: bool) {
        self.count = (self.count.max(1) + 1).min(MAX_PARAMS + 1);
        if joins && self.count <= MAX_PARAMS {
            self.joined |= 1 << (self.count - 1);
        }
    }

    /// The first number, 0 where none was said.
    pub(super) fn first(&self) -> u16 {
        self.numbers[0]
    }

    /// The numbers, each with whether it goes with the one before.
    fn all(&self) -> impl Iterator<Item = (u16, bool)> {
        let joined = self.joined;
        self.numbers.into_iter().take(self.count.max(1)).enumerate().map(move |(at, number)| (number, joined & (1 << at) != 0))
    }
}

/// How a character looks.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(super) struct Paint {
    text: Option<Ink>,
    ground: Option<Ink>,
    /// Bits, see [`ATTRIBUTES`].
    has: u8,
}

const BOLD: u8 = 1;
const DIM: u8 = 1 << 1;
const ITALIC: u8 = 1 << 2;
const UNDERLINE: u8 = 1 << 3;
const STRUCK: u8 = 1 << 4;
const INVERSE: u8 = 1 << 5;
/// Stands for something that is not shown as it is.
const MARK: u8 = 1 << 6;

/// The attributes that are classes by themselves. That text and ground change places is seen to by the colours' classes.
const ATTRIBUTES: [(u8, &str); 6] = [(BOLD, "bo"), (DIM, "di"), (ITALIC, "it"), (UNDERLINE, "un"), (STRUCK, "st"), (MARK, "ct")];

impl Paint {
    /// The look of what stands for something that is not shown as it is.
    pub(super) const MARKED: Self = Self { text: None, ground: None, has: MARK };

    /// Takes in a "select graphic rendition".
    pub(super) fn select(&mut self, params: &Params) {
        let mut numbers = params.all().peekable();
        while let Some((number, _)) = numbers.next() {
            // What is joined to a number by colons, and what belongs to it without.
            let mut joined = [0u16; 6];
            let mut count = 0;
            while let Some((number, _)) = numbers.next_if(|(_, joins)| *joins) {
                if let Some(slot) = joined.get_mut(count) {
                    *slot = number;
                    count += 1;
                }
            }
            let joined = &joined[..count];
            match number {
                0 => *self = Self::default(),
                1 => self.has |= BOLD,
                2 => self.has |= DIM,
                3 => self.has |= ITALIC,
                4 if joined.first() == Some(&0) => self.has &= !UNDERLINE,
                4 | 21 => self.has |= UNDERLINE,
                7 => self.has |= INVERSE,
                9 => self.has |= STRUCK,
                22 => self.has &= !(BOLD | DIM),
                23 => self.has &= !ITALIC,
                24 => self.has &= !UNDERLINE,
                27 => self.has &= !INVERSE,
                29 => self.has &= !STRUCK,
                30..=37 => self.text = ink(number - 30),
                39 => self.text = None,
                40..=47 => self.ground = ink(number - 40),
                49 => self.ground = None,
                90..=97 => self.text = ink(number - 90 + 8),
                100..=107 => self.ground = ink(number - 100 + 8),
                38 | 48 | 58 => {
                    let colour = if joined.is_empty() {
                        let mut next = || numbers.next().map_or(0, |(number, _)| number);
                        match next() {
                            5 => indexed(next()),
                            2 => Some(nearest([next(), next(), next()])),
                            _ => None,
                        }
                    } else {
                        match *joined {
                            [5, index, ..] => indexed(index),
                            // Some write which space of colours it is, others leave that out.
                            [2, _, red, green, blue, ..] | [2, red, green, blue] => Some(nearest([red, green, blue])),
                            _ => None,
                        }
                    };
                    match (number, colour) {
                        (38, Some(colour)) => self.text = Some(colour),
                        (48, Some(colour)) => self.ground = Some(colour),
                        _ => {} // the colour of the line under it: it has the text's
                    }
                }
                _ => {}
            }
        }
    }

    /// Appends the classes that make text look so, separated by spaces; nothing for text like any.
    pub(super) fn classes(self, out: &mut String) {
        let begins = out.len();
        let separate = |out: &mut String| {
            if out.len() > begins {
                out.push(' ');
            }
        };
        let turned = self.has & INVERSE != 0;
        let (text, ground) = if turned { (self.ground, self.text) } else { (self.text, self.ground) };
        for (letter, colour) in [('f', text), ('g', ground)] {
            match colour {
                Some(ink) => {
                    separate(out);
                    let _ = write!(out, "{letter}{ink}"); // a String takes everything
                }
                // turned round, and it was the page's own colour
                None if turned => {
                    separate(out);
                    out.push(letter);
                    out.push('v');
                }
                None => {}
            }
        }
        for (bit, class) in ATTRIBUTES {
            if self.has & bit != 0 {
                separate(out);
                out.push_str(class);
            }
        }
    }
}

fn ink(number: u16) -> Option<Ink> {
    u8::try_from(number).ok()
}

/// A colour of the 256.
fn indexed(index: u16) -> Option<Ink> {
    let strength = |place: u16| u16::from(CUBE[usize::from(place % 6)]);
    match index {
        0..=15 => ink(index),
        16..=231 => {
            let index = index - 16;
            Some(nearest([strength(index / 36), strength(index / 6), strength(index)]))
        }
        232..=255 => Some(nearest([8 + (index - 232) * 10; 3])),
        _ => None,
    }
}

/// The colour of the palette that looks most like this one.
fn nearest(colour: [u16; 3]) -> Ink {
    let [red, green, blue] = colour.map(|strength| i64::from(strength.min(255)));
    let distance = |&(_, (r, g, b)): &(Ink, (u8, u8, u8))| {
        let (r, g, b) = (red - i64::from(r), green - i64::from(g), blue - i64::from(b));
        // The eye tells shades of green apart best, of blue worst; how much depends on how red it is.
        let redness = (red + r.abs()) / 2;
        (512 + redness) * r * r / 256 + 4 * g * g + (767 - redness) * b * b / 256
    };
    (0..).zip(PALETTE).min_by_key(distance).map_or(0, |(ink, _)| ink)
}

/// Every class that [`Paint::classes`] may write, for tests.
#[cfg(test)]
pub(super) fn all_classes() -> std::collections::BTreeSet<String> {
    let colours = (0..PALETTE.len()).flat_map(|ink| [format!("f{ink}"), format!("g{ink}")]);
    let turned = ["fv", "gv"].map(str::to_owned);
    colours.chain(turned).chain(ATTRIBUTES.map(|(_, class)| class.to_owned())).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The classes after these sequences, each as it stands between `ESC [` and `m`.
    fn classes(sequences: &[&str]) -> String {
        let mut paint = Paint::default();
        for sequence in sequences {
            let mut params = Params::default();
            for c in sequence.chars() {
                match c.to_digit(10) {
                    Some(digit) => params.digit(u16::try_from(digit).unwrap()),
                    None => params.next(c == ':'),
                }
            }
            paint.select(&params);
        }
        let mut out = String::new();
        paint.classes(&mut out);
        out
    }

    #[test]
    fn attributes_and_colours_become_classes() {
        assert_eq!(classes(&["31"]), "f1");
        assert_eq!(classes(&["1;97;44"]), "f15 g4 bo");
        assert_eq!(classes(&["1", "2", "3", "4", "9"]), "bo di it un st");
        assert_eq!(classes(&["1;2;3;4;9", "22;23;24;29"]), "");
        assert_eq!(classes(&["4:3"]), "un");
        assert_eq!(classes(&["4", "4:0"]), "");
        assert_eq!(classes(&["31;42", "39", "49"]), "");
        assert_eq!(classes(&["1;31", ""]), "");
        assert_eq!(classes(&["104"]), "g12");
    }

    #[test]
    fn inverse_turns_text_and_ground_round() {
        assert_eq!(classes(&["7"]), "fv gv");
        assert_eq!(classes(&["7;31"]), "fv g1");
        assert_eq!(classes(&["31;42;7"]), "f2 g1");
        assert_eq!(classes(&["7;31", "27"]), "f1");
    }

    #[test]
    fn many_colours_become_the_nearest_of_few() {
        assert_eq!(classes(&["38;5;9"]), "f9");
        assert_eq!(classes(&["38;5;208"]), "f16");
        assert_eq!(classes(&["48;5;232"]), "g0");
        assert_eq!(classes(&["38;5;244"]), "f8");
        assert_eq!(classes(&["38;5;16", "48;5;231"]), "f0 g15");
        assert_eq!(classes(&["38;2;250;130;10"]), "f16");
        assert_eq!(classes(&["38:2::0:0:230"]), classes(&["38:2:0:0:230"]));
        assert_eq!(classes(&["38:5:1;4"]), "f1 un");
        // the numbers of a colour are not attributes
        assert_eq!(classes(&["38;5;1;58;2;3;4;9;1"]), "f1 bo");
        for (ink, (red, green, blue)) in PALETTE.iter().enumerate() {
            assert_eq!(classes(&[&format!("38;2;{red};{green};{blue}")]), format!("f{ink}"));
        }
    }

    #[test]
    fn nonsense_changes_nothing() {
        assert_eq!(classes(&["38"]), "");
        assert_eq!(classes(&["38;5;999"]), "");
        assert_eq!(classes(&["38;7;1"]), "bo");
        assert_eq!(classes(&["99999999999999999999"]), "");
        assert_eq!(classes(&[&"1;".repeat(1000), "22"]), "");
    }

    /// A class without a rule would be a colour that nobody sees.
    #[test]
    fn the_style_sheet_has_a_rule_for_every_class() {
        let css = include_str!("../../assets/log.css");
        for class in all_classes() {
            assert!(css.contains(&format!(".{class} ")) || css.contains(&format!(".{class},")), "{class}");
        }
    }
}
