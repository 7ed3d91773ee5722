//! Names and identifiers, each its own type, so that one cannot stand where another is meant.

use std::borrow::Cow;
use std::fmt;
use std::str::FromStr;

use jiff::Timestamp;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use uuid::Uuid;

use crate::digest::Digest;
use crate::limit::NAME_CHARS;

/// Why a text is not a name or identifier.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum IdError {
    /// The text is empty.
    #[error("{what} is empty")]
    Empty {
        /// What the text was to be: "job name", "executor id".
        what: &'static str,
    },
    /// The text is too long.
    #[error("{what} has {chars} characters, at most {NAME_CHARS} are allowed")]
    TooLong {
        /// What the text was to be.
        what: &'static str,
        /// How long it is.
        chars: usize,
    },
    /// The text holds a character that is not allowed where it stands.
    #[error("{what} \"{}\" has {found:?} at character {position}; {rule}", text.escape_debug())]
    Character {
        /// What the text was to be.
        what: &'static str,
        /// The text.
        text: String,
        /// The character.
        found: char,
        /// Where it is, counted from 1.
        position: usize,
        /// What is allowed.
        rule: &'static str,
    },
    /// The text is not an execution id.
    #[error("\"{}\" is not an execution id: 26 characters of 0-9 and a-z without i, l, o, u are expected", .0.escape_debug())]
    ExecutionId(String),
}

const NAME_RULE: &str = "allowed are A-Z a-z 0-9 . _ - with a letter or digit at both ends";

fn check_name(what: &'static str, text: &str) -> Result<(), IdError> {
    if text.is_empty() {
        return Err(IdError::Empty { what });
    }
    let chars = text.chars().count();
    if chars > NAME_CHARS {
        return Err(IdError::TooLong { what, chars });
    }
    for (index, found) in text.chars().enumerate() {
        let at_end = index == 0 || index == chars - 1;
        let allowed = found.is_ascii_alphanumeric() || (!at_end && matches!(found, '.' | '_' | '-'));
        if !allowed {
            return Err(IdError::Character { what, text: text.to_owned(), found, position: index + 1, rule: NAME_RULE });
        }
    }
    Ok(())
}

macro_rules! name_type {
    ($(#[$doc:meta])* $type:ident, $what:literal) => {
        $(#[$doc])*
        #[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
        #[serde(try_from = "String", into = "String")]
        pub struct $type(String);

        impl $type {
            /// Checks `text` and takes it as a name.
            ///
            /// # Errors
            /// Where the text is not 1 to 63 characters of `A-Z a-z 0-9 . _ -` with a letter or digit at both ends.
            pub fn new(text: impl Into<String>) -> Result<Self, IdError> {
                let text = text.into();
                check_name($what, &text)?;
                Ok(Self(text))
            }

            /// The name as text.
            #[must_use]
            pub fn as_str(&self) -> &str {
                &self.0
            }
        }

        impl fmt::Display for $type {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.pad(&self.0)
            }
        }

        impl FromStr for $type {
            type Err = IdError;
            fn from_str(text: &str) -> Result<Self, IdError> {
                Self::new(text)
            }
        }

        impl TryFrom<String> for $type {
            type Error = IdError;
            fn try_from(text: String) -> Result<Self, IdError> {
                Self::new(text)
            }
        }

        impl From<$type> for String {
            fn from(name: $type) -> String {
                name.0
            }
        }

        impl AsRef<str> for $type {
            fn as_ref(&self) -> &str {
                &self.0
            }
        }

        impl JsonSchema for $type {
            fn schema_name() -> Cow<'static, str> {
                stringify!($type).into()
            }
            fn json_schema(_: &mut schemars::SchemaGenerator) -> schemars::Schema {
                schemars::json_schema!({
                    "type": "string",
                    "minLength": 1,
                    "maxLength": NAME_CHARS,
                    "pattern": "^[A-Za-z0-9]([A-Za-z0-9._-]*[A-Za-z0-9])?$"
                })
            }
        }
    };
}

name_type!(
    /// A job's name, unique in a controller without regard to case.
    JobName,
    "job name"
);
name_type!(
    /// A catalogue's name.
    CatalogName,
    "catalogue name"
);
name_type!(
    /// An executor's id.
    ExecutorId,
    "executor id"
);

impl JobName {
    /// The form under which names are compared: `Backup` and `backup` are one name.
    #[must_use]
    pub fn folded(&self) -> String {
        self.0.to_ascii_lowercase()
    }
}

/// Crockford's base 32 in lower case: no i, l, o, u, so that an id read aloud is not mistaken.
const ALPHABET: &[u8; 32] = b"0123456789abcdefghjkmnpqrstvwxyz";

/// Characters of an id: 128 bits in base 32.
const ID_CHARS: usize = 26;

fn encode(mut bits: u128) -> String {
    let mut text = [0u8; ID_CHARS];
    for slot in text.iter_mut().rev() {
        *slot = ALPHABET[(bits & 31) as usize];
        bits >>= 5;
    }
    text.iter().map(|&byte| char::from(byte)).collect()
}

fn decode(text: &str) -> Option<u128> {
    if text.len() != ID_CHARS {
        return None;
    }
    let mut bits: u128 = 0;
    for (index, byte) in text.bytes().enumerate() {
        let digit = ALPHABET.iter().position(|&c| c == byte)? as u128;
        if index == 0 && digit > 7 {
            return None; // 26 characters hold 130 bits, an id has 128
        }
        bits = (bits << 5) | digit;
    }
    Some(bits)
}

/// The bits of an id that are neither its time nor say that it is a UUID version 7.
const TICK_HASH: u128 = (0xfff << 64) | (u128::MAX >> 66);

/// An execution's id: a UUID version 7 in 26 characters of lower-case base 32, so that ids sort by time of creation and fit into
/// Kubernetes names. The client proposes it, which makes a submission safe to repeat.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct ExecutionId(u128);

impl ExecutionId {
    /// A new id at the clock's time.
    #[must_use]
    pub fn generate() -> Self {
        Self(Uuid::now_v7().as_u128())
    }

    /// The id of what a job's schedule asks for at `tick`: the same wherever and however often it is made, and sorted by time like all others.
    /// Where that id is another's, the next `number` gives another.
    #[must_use]
    pub fn of_tick(catalog: &CatalogName, job: &JobName, tick: Timestamp, number: u32) -> Self {
        let of = format!("{catalog}/{}/{tick}/{number}", job.folded());
        let mut hash = [0; 16];
        hash.copy_from_slice(&Digest::of(of.as_bytes()).as_bytes()[..16]);
        let milliseconds = u128::try_from(tick.as_millisecond()).unwrap_or_default();
        let (version, variant) = (7_u128 << 76, 2_u128 << 62);
        Self((milliseconds << 80) | version | variant | (u128::from_be_bytes(hash) & TICK_HASH))
    }

    /// An id of exactly these 128 bits.
    #[must_use]
    pub const fn from_bits(bits: u128) -> Self {
        Self(bits)
    }

    /// The id's 128 bits.
    #[must_use]
    pub const fn to_bits(self) -> u128 {
        self.0
    }

    /// The id's text with every bit inverted: sorts newest first, for indexes that are read forwards.
    #[must_use]
    pub fn inverted(self) -> String {
        encode(!self.0)
    }

    /// Reads back what [`ExecutionId::inverted`] wrote.
    #[must_use]
    pub fn from_inverted(text: &str) -> Option<Self> {
        decode(text).map(|bits| Self(!bits))
    }

    /// The end of the id, for places where a whole id is too long.
    #[must_use]
    pub fn short(self) -> String {
        encode(self.0)[ID_CHARS - 6..].to_owned()
    }
}

impl fmt::Display for ExecutionId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(&encode(self.0))
    }
}

impl fmt::Debug for ExecutionId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "ExecutionId({self})")
    }
}

impl FromStr for ExecutionId {
    type Err = IdError;
    fn from_str(text: &str) -> Result<Self, IdError> {
        decode(text).map(Self).ok_or_else(|| IdError::ExecutionId(text.to_owned()))
    }
}

impl TryFrom<String> for ExecutionId {
    type Error = IdError;
    fn try_from(text: String) -> Result<Self, IdError> {
        text.parse()
    }
}

impl From<ExecutionId> for String {
    fn from(id: ExecutionId) -> String {
        id.to_string()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn an_id_survives_text_and_inversion(bits: u128) {
            let id = ExecutionId::from_bits(bits);
            prop_assert_eq!(id.to_string().parse::<ExecutionId>(), Ok(id));
            prop_assert_eq!(ExecutionId::from_inverted(&id.inverted()), Some(id));
        }

        #[test]
        fn ids_sort_as_their_bits_and_inverted_ids_the_other_way(a: u128, b: u128) {
            let (x, y) = (ExecutionId::from_bits(a), ExecutionId::from_bits(b));
            prop_assert_eq!(x.to_string().cmp(&y.to_string()), a.cmp(&b));
            prop_assert_eq!(x.inverted().cmp(&y.inverted()), b.cmp(&a));
        }

        #[test]
        fn any_text_is_an_id_or_an_error(text in ".{0,40}") {
            if let Ok(id) = text.parse::<ExecutionId>() {
                prop_assert_eq!(id.to_string(), text);
            }
        }
    }

    #[test]
    fn the_id_of_a_tick_is_one_for_each_job_and_tick() {
        let (catalog, job) = (CatalogName::new("c").unwrap(), JobName::new("Backup").unwrap());
        let tick: Timestamp = "2026-11-29T03:00:00Z".parse().unwrap();
        let id = |job: &str, tick: Timestamp, number| ExecutionId::of_tick(&catalog, &JobName::new(job).unwrap(), tick, number);
        let one = ExecutionId::of_tick(&catalog, &job, tick, 0);
        assert_eq!(one, id("backup", tick, 0));
        let uuid = Uuid::from_u128(one.0);
        assert_eq!((uuid.get_version_num(), uuid.get_variant()), (7, uuid::Variant::RFC4122));
        assert_eq!(uuid.get_timestamp().unwrap().to_unix().0, tick.as_second().unsigned_abs());
        let later = tick.checked_add(jiff::SignedDuration::from_millis(1)).unwrap();
        let others = [id("backup", later, 0), id("backup", tick, 1), id("restore", tick, 0)];
        assert!(others.iter().all(|other| *other != one) && others[0] > one);
    }

    #[test]
    fn ids_of_later_times_sort_later() {
        let first = ExecutionId::generate();
        let later = (0..1000).map(|_| ExecutionId::generate()).collect::<Vec<_>>();
        assert!(later.iter().all(|id| id.to_string() > first.to_string()));
        assert!(later.windows(2).all(|pair| pair[0] < pair[1]));
    }

    #[test]
    fn names_that_kubernetes_and_files_could_not_hold_are_refused() {
        for good in ["a", "A9", "refund-order", "a.b_c-d", &"x".repeat(63)] {
            assert!(JobName::new(good).is_ok(), "{good}");
        }
        for bad in ["", "-a", "a-", ".a", "a b", "ä", "a/b", "..", "a\n", &"x".repeat(64)] {
            assert!(JobName::new(bad).is_err(), "{bad:?}");
        }
    }
}
