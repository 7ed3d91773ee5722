//! Durations as people write them: `90s`, `10m`, `1h30m`.

use std::borrow::Cow;
use std::fmt;
use std::str::FromStr;
use std::time::Duration;

use jiff::SignedDuration;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// A length of time, written `10m` or `1h30m`; zero or longer, at most [`HumanDuration::MAX`].
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct HumanDuration(Duration);

/// Why a text is not a duration.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum DurationError {
    /// Not a duration at all.
    #[error("\"{}\" is not a duration: write a number with its unit, like 90s, 10m or 1h30m", .0.escape_debug())]
    Malformed(String),
    /// A duration, but negative or longer than a year.
    #[error("\"{}\" is out of range: a duration is between 0s and 366d", .0.escape_debug())]
    Range(String),
}

impl HumanDuration {
    /// The longest duration that is taken: 366 days. Longer ones are mistakes, and far from any overflow.
    pub const MAX: Duration = Duration::from_secs(366 * 24 * 3600);

    /// Wraps a duration.
    #[must_use]
    pub const fn new(duration: Duration) -> Self {
        Self(duration)
    }

    /// The duration.
    #[must_use]
    pub const fn get(self) -> Duration {
        self.0
    }
}

impl From<HumanDuration> for Duration {
    fn from(duration: HumanDuration) -> Duration {
        duration.0
    }
}

impl FromStr for HumanDuration {
    type Err = DurationError;
    fn from_str(text: &str) -> Result<Self, DurationError> {
        let malformed = || DurationError::Malformed(text.chars().take(80).collect());
        // jiff reads neither days (they are calendar units there) nor bare numbers; days are 24 hours here, bare numbers an error.
        let trimmed = text.trim();
        let (days, rest) = match trimmed.split_once('d') {
            Some((number, rest)) if !number.is_empty() && number.bytes().all(|b| b.is_ascii_digit()) => {
                (number.parse::<u64>().map_err(|_| malformed())?, rest.trim_start())
            }
            _ => (0, trimmed),
        };
        let rest = if rest.is_empty() && trimmed.ends_with('d') {
            Duration::ZERO
        } else {
            let signed: SignedDuration = rest.parse().map_err(|_| malformed())?;
            Duration::try_from(signed).map_err(|_| DurationError::Range(text.to_owned()))?
        };
        days.checked_mul(24 * 3600)
            .and_then(|seconds| Duration::from_secs(seconds).checked_add(rest))
            .filter(|duration| *duration <= Self::MAX)
            .map(Self)
            .ok_or_else(|| DurationError::Range(text.to_owned()))
    }
}

impl fmt::Display for HumanDuration {
    /// The shortest exact form: `1h30m`, `250ms`, `0s`.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut text = String::new();
        let seconds = self.0.as_secs();
        for (unit, length) in [("d", 86_400), ("h", 3600), ("m", 60), ("s", 1)] {
            let value = match unit {
                "d" => seconds / length,
                "h" => seconds % 86_400 / length,
                "m" => seconds % 3600 / length,
                _ => seconds % 60,
            };
            if value > 0 {
                text.push_str(&format!("{value}{unit}"));
            }
        }
        let nanos = self.0.subsec_nanos();
        for (unit, value) in [("ms", nanos / 1_000_000), ("us", nanos / 1000 % 1000), ("ns", nanos % 1000)] {
            if value > 0 {
                text.push_str(&format!("{value}{unit}"));
            }
        }
        f.pad(if text.is_empty() { "0s" } else { &text })
    }
}

impl TryFrom<String> for HumanDuration {
    type Error = DurationError;
    fn try_from(text: String) -> Result<Self, DurationError> {
        text.parse()
    }
}

impl From<HumanDuration> for String {
    fn from(duration: HumanDuration) -> String {
        duration.to_string()
    }
}

impl JsonSchema for HumanDuration {
    fn schema_name() -> Cow<'static, str> {
        "Duration".into()
    }
    fn json_schema(_: &mut schemars::SchemaGenerator) -> schemars::Schema {
        schemars::json_schema!({
            "type": "string",
            "description": "A number with its unit, like 90s, 10m or 1h30m",
            "examples": ["90s", "10m", "1h30m"]
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn what_is_written_reads_back(nanos in 0..HumanDuration::MAX.as_nanos() as u64) {
            let duration = HumanDuration::new(Duration::from_nanos(nanos));
            prop_assert_eq!(duration.to_string().parse(), Ok(duration));
        }

        #[test]
        fn no_text_panics(text in ".{0,20}") {
            let _ = text.parse::<HumanDuration>();
        }
    }

    #[test]
    fn people_write_durations_in_many_ways() {
        for (text, seconds) in
            [("90s", 90), ("10m", 600), ("1h30m", 5400), ("1h 30m", 5400), ("2d", 172_800), ("1d12h", 129_600), ("0s", 0)]
        {
            assert_eq!(text.parse::<HumanDuration>().map(|d| d.get().as_secs()), Ok(seconds), "{text}");
        }
        for text in ["", "10", "m", "-5s", "ten minutes", "1000d", "9999999999999999999d"] {
            assert!(text.parse::<HumanDuration>().is_err(), "{text}");
        }
        assert_eq!("90m".parse::<HumanDuration>().map(|d| d.to_string()), Ok("1h30m".into()));
    }
}
