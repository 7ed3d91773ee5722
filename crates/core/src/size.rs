//! Sizes in bytes as people write them: `64MiB`, `1GiB`, `500KB`.

use std::borrow::Cow;
use std::fmt;
use std::str::FromStr;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// A number of bytes, written `64MiB` or `500KB`; at most [`ByteSize::MAX`].
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct ByteSize(u64);

/// A most of bytes, or that there is none: `256MiB`, `none`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub enum SizeLimit {
    /// At most so many.
    Bytes(ByteSize),
    /// Any number.
    None,
}

/// Why a text is not a size.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum SizeError {
    /// Not a size at all.
    #[error("\"{}\" is not a size: write a number of bytes with its unit, like 64MiB, 1GiB or 500KB", .text.escape_debug())]
    Malformed {
        /// The text, or its beginning.
        text: String,
        /// The size that was likely meant.
        meant: Option<String>,
    },
    /// More than is taken.
    #[error("\"{}\" is out of range: a size is at most {}", .0.escape_debug(), ByteSize::MAX)]
    Range(String),
}

impl SizeError {
    /// What to write instead; empty where the message says it.
    #[must_use]
    pub fn hint(&self) -> String {
        match self {
            Self::Malformed { meant: Some(meant), .. } => format!("did you mean {meant}?"),
            _ => String::new(),
        }
    }
}

/// The units, larger ones first, and of two alike the power of two.
const UNITS: [(&str, u64); 9] = [
    ("TiB", 1 << 40),
    ("TB", 1_000_000_000_000),
    ("GiB", 1 << 30),
    ("GB", 1_000_000_000),
    ("MiB", 1 << 20),
    ("MB", 1_000_000),
    ("KiB", 1 << 10),
    ("KB", 1000),
    ("B", 1),
];

impl ByteSize {
    /// The largest size that is taken: larger ones are mistakes, and far from any overflow.
    pub const MAX: Self = Self(1 << 50);

    /// Wraps a number of bytes.
    #[must_use]
    pub const fn new(bytes: u64) -> Self {
        Self(bytes)
    }

    /// The number of bytes.
    #[must_use]
    pub const fn get(self) -> u64 {
        self.0
    }
}

impl SizeLimit {
    /// The most bytes; [`u64::MAX`] where there is no limit.
    #[must_use]
    pub const fn most(self) -> u64 {
        match self {
            Self::Bytes(size) => size.get(),
            Self::None => u64::MAX,
        }
    }
}

/// The size with its unit as it is written, where only that was wrong: `64Mi`, `64 mib`, `1g`.
fn meant(number: &str, unit: &str) -> Option<String> {
    let first = unit.chars().next()?.to_ascii_uppercase();
    let rest = &unit[1..];
    let unit = match (first, rest) {
        ('B', "") => "B".to_owned(),
        ('K' | 'M' | 'G' | 'T', "B" | "b") => format!("{first}B"),
        ('K' | 'M' | 'G' | 'T', _) if rest.is_empty() || ["i", "ib"].contains(&&*rest.to_ascii_lowercase()) => {
            format!("{first}iB")
        }
        _ => return None,
    };
    (!number.is_empty()).then(|| format!("{number}{unit}"))
}

impl FromStr for ByteSize {
    type Err = SizeError;
    fn from_str(text: &str) -> Result<Self, SizeError> {
        let trimmed = text.trim();
        let (number, unit) = trimmed.split_at(trimmed.bytes().take_while(u8::is_ascii_digit).count());
        let unit = unit.trim_start();
        let clipped = || text.chars().take(80).collect();
        let known = UNITS.iter().find(|(name, _)| *name == unit || (unit.is_empty() && *name == "B"));
        let Some((_, bytes)) = known.filter(|_| !number.is_empty()) else {
            let meant = unit.is_ascii().then(|| meant(number, unit)).flatten();
            return Err(SizeError::Malformed { text: clipped(), meant });
        };
        let size = number.parse::<u64>().ok().and_then(|number| number.checked_mul(*bytes)).map(Self);
        size.filter(|size| *size <= Self::MAX).ok_or_else(|| SizeError::Range(clipped()))
    }
}

impl fmt::Display for ByteSize {
    /// The exact form with the smallest number: `1GiB`, `500KB`, `12345B`.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let exact = UNITS.iter().filter(|(_, bytes)| self.0.is_multiple_of(*bytes));
        let (unit, bytes) = exact.min_by_key(|(_, bytes)| self.0 / bytes).filter(|_| self.0 > 0).unwrap_or(&("B", 1));
        f.pad(&format!("{}{unit}", self.0 / bytes))
    }
}

impl FromStr for SizeLimit {
    type Err = SizeError;
    fn from_str(text: &str) -> Result<Self, SizeError> {
        if text.trim() == "none" { Ok(Self::None) } else { text.parse().map(Self::Bytes) }
    }
}

impl fmt::Display for SizeLimit {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Bytes(size) => size.fmt(f),
            Self::None => f.pad("none"),
        }
    }
}

impl TryFrom<String> for ByteSize {
    type Error = SizeError;
    fn try_from(text: String) -> Result<Self, SizeError> {
        text.parse()
    }
}

impl From<ByteSize> for String {
    fn from(size: ByteSize) -> String {
        size.to_string()
    }
}

impl TryFrom<String> for SizeLimit {
    type Error = SizeError;
    fn try_from(text: String) -> Result<Self, SizeError> {
        text.parse()
    }
}

impl From<SizeLimit> for String {
    fn from(limit: SizeLimit) -> String {
        limit.to_string()
    }
}

impl JsonSchema for ByteSize {
    fn schema_name() -> Cow<'static, str> {
        "ByteSize".into()
    }
    fn json_schema(_: &mut schemars::SchemaGenerator) -> schemars::Schema {
        schemars::json_schema!({
            "type": ["string", "integer"],
            "description": "A number of bytes with its unit, like 64MiB, 1GiB or 500KB",
            "pattern": "^\\s*[0-9]+\\s*([KMGT]?B|[KMGT]iB)?\\s*$",
            "minimum": 0,
            "examples": ["64MiB", "1GiB", "500KB"]
        })
    }
}

impl JsonSchema for SizeLimit {
    fn schema_name() -> Cow<'static, str> {
        "SizeLimit".into()
    }
    fn json_schema(_: &mut schemars::SchemaGenerator) -> schemars::Schema {
        schemars::json_schema!({
            "type": ["string", "integer"],
            "description": "A number of bytes with its unit, like 64MiB, 1GiB or 500KB; or none",
            "pattern": "^\\s*([0-9]+\\s*([KMGT]?B|[KMGT]iB)?|none)\\s*$",
            "minimum": 0,
            "examples": ["64MiB", "1GiB", "none"]
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn what_is_written_reads_back(bytes in 0..=ByteSize::MAX.get(), unit in 0..UNITS.len()) {
            for bytes in [bytes, bytes / UNITS[unit].1 * UNITS[unit].1] {
                let size = ByteSize::new(bytes);
                prop_assert_eq!(size.to_string().parse(), Ok(size));
            }
        }

        #[test]
        fn no_text_panics(text in ".{0,20}", number in "[0-9]{0,30}", unit in "[ KMGTiIbBkmgtäx]{0,4}") {
            for text in [text, format!("{number}{unit}")] {
                let _ = text.parse::<ByteSize>().map_err(|error| (error.to_string(), error.hint()));
            }
        }
    }

    #[test]
    fn people_write_sizes_in_many_ways() {
        for (text, bytes, written) in [
            ("0", 0, "0B"),
            ("512", 512, "512B"),
            ("65536", 65_536, "64KiB"),
            ("500KB", 500_000, "500KB"),
            ("64 MB", 64_000_000, "64MB"),
            (" 64MiB ", 64 << 20, "64MiB"),
            ("1024MiB", 1 << 30, "1GiB"),
            ("2TB", 2_000_000_000_000, "2TB"),
            ("1024TiB", 1 << 50, "1024TiB"),
        ] {
            let size = text.parse::<ByteSize>().unwrap();
            assert_eq!((size.get(), &*size.to_string()), (bytes, written), "{text}");
        }
        assert_eq!("none".parse::<SizeLimit>().map(|limit| (limit.most(), limit.to_string())), Ok((u64::MAX, "none".into())));
        assert_eq!("1KiB".parse::<SizeLimit>().map(|limit| (limit.most(), limit.to_string())), Ok((1024, "1KiB".into())));
    }

    #[test]
    fn a_slip_in_the_unit_is_told_with_what_was_meant() {
        for (text, hint) in [
            ("64Mi", "did you mean 64MiB?"),
            ("64mib", "did you mean 64MiB?"),
            ("1g", "did you mean 1GiB?"),
            ("500 kb", "did you mean 500KB?"),
            ("12b", "did you mean 12B?"),
            ("MiB", ""),
            ("-1", ""),
            ("1.5GiB", ""),
            ("1e6", ""),
            ("", ""),
            ("None", ""),
            ("64MiBs", ""),
            ("1025TiB", ""),
            ("99999999999999999999", ""),
        ] {
            let error = text.parse::<SizeLimit>().unwrap_err();
            assert_eq!(error.hint(), hint, "{text}: {error}");
        }
        assert_eq!(
            "2000TiB".parse::<ByteSize>().unwrap_err().to_string(),
            "\"2000TiB\" is out of range: a size is at most 1024TiB"
        );
    }
}
