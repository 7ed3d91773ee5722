//! Versions of what speaks with one another: controllers and executors of neighbouring minor versions do, so that they can be upgraded one
//! after the other.

use std::cmp::Ordering;
use std::fmt;
use std::str::FromStr;

/// Minor versions that may lie between two sides: the one before and the one after.
const MINORS_APART: u64 = 1;

/// A version: `MAJOR.MINOR.PATCH`, and whatever else a build is told apart by, which is not compared.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct Version {
    major: u64,
    minor: u64,
    patch: u64,
}

impl fmt::Display for Version {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}.{}.{}", self.major, self.minor, self.patch)
    }
}

/// A text that is no version.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("not a version: MAJOR.MINOR.PATCH is expected")]
pub struct NotAVersion;

impl FromStr for Version {
    type Err = NotAVersion;

    fn from_str(text: &str) -> Result<Self, NotAVersion> {
        let release = text.split(['-', '+']).next().unwrap_or_default();
        let number = |part: &str| {
            // `u64` would also read "+1"
            let digits = !part.is_empty() && part.bytes().all(|byte| byte.is_ascii_digit());
            if digits { part.parse().map_err(|_| NotAVersion) } else { Err(NotAVersion) }
        };
        match release.split('.').collect::<Vec<_>>().as_slice() {
            [major, minor, patch] => Ok(Self { major: number(major)?, minor: number(minor)?, patch: number(patch)? }),
            _ => Err(NotAVersion),
        }
    }
}

/// One side, for a message: what it is, and the version that it says it has.
#[derive(Debug, Clone, Copy)]
pub struct Side<'a> {
    /// What it is: `the controller`.
    pub what: &'a str,
    /// Its version, as it says.
    pub version: &'a str,
}

/// Why two sides do not go together, and which of them is to be upgraded.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Skew {
    /// What a side says is no version.
    #[error("{what} says that its version is \"{}\", which is none, and {other} has version {version}: upgrade {what}", given.escape_debug())]
    Unknown {
        /// Whose version it is.
        what: String,
        /// What it says.
        given: String,
        /// The other side.
        other: String,
        /// What that one says.
        version: String,
    },
    /// They are too far from each other.
    #[error(
        "{older} has version {old} and {newer} version {new}, at most one minor version apart they go together: upgrade {older}"
    )]
    TooFar {
        /// The side to upgrade.
        older: String,
        /// Its version.
        old: Version,
        /// The other side.
        newer: String,
        /// Its version.
        new: Version,
    },
}

/// Whether two sides go together: the same major version, and at most one minor version between them.
///
/// # Errors
/// [`Skew`], which names both and says which one to upgrade.
pub fn compare(one: Side<'_>, other: Side<'_>) -> Result<(), Skew> {
    let read = |side: Side<'_>, beside: Side<'_>| {
        side.version.parse::<Version>().map_err(|NotAVersion| Skew::Unknown {
            what: side.what.to_owned(),
            given: side.version.to_owned(),
            other: beside.what.to_owned(),
            version: beside.version.to_owned(),
        })
    };
    let (a, b) = (read(one, other)?, read(other, one)?);
    if a.major == b.major && a.minor.abs_diff(b.minor) <= MINORS_APART {
        return Ok(());
    }
    let ((older, old), (newer, new)) = if a.cmp(&b) == Ordering::Less { ((one, a), (other, b)) } else { ((other, b), (one, a)) };
    Err(Skew::TooFar { older: older.what.to_owned(), old, newer: newer.what.to_owned(), new })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn told(executor: &str, controller: &str) -> Option<String> {
        let executor = Side { what: "executor e1", version: executor };
        compare(executor, Side { what: "the controller", version: controller }).err().map(|skew| skew.to_string())
    }

    #[test]
    fn one_minor_version_apart_goes_and_more_does_not() {
        for (one, other) in [
            ("0.1.0", "0.1.0"),
            ("0.1.0", "0.1.9"),
            ("0.1.0", "0.2.0"),
            ("0.2.7", "0.1.0"),
            ("3.9.0", "3.10.4"),
            ("1.2.3-rc.1", "1.3.0+build.7"),
        ] {
            assert_eq!(told(one, other), None, "{one} and {other}");
        }
        for (one, other, upgrade) in [
            ("0.1.0", "0.3.0", "executor e1"),
            ("0.3.0", "0.1.0", "the controller"),
            ("0.9.0", "1.0.0", "executor e1"),
            ("2.0.0", "1.9.0", "the controller"),
            ("1.9.0", "1.11.0", "executor e1"),
            ("0.1.0", "0.18446744073709551615.0", "executor e1"),
        ] {
            let told = told(one, other).unwrap_or_else(|| panic!("{one} and {other} go together"));
            assert!(told.contains(one) && told.contains(other) && told.ends_with(&format!("upgrade {upgrade}")), "{told}");
        }
    }

    #[test]
    fn what_is_no_version_goes_with_nothing() {
        for none in
            ["", "0", "0.1", "0.1.0.0", "v0.1.0", "0.1.x", "0.+1.0", "0. 1.0", "99999999999999999999.0.0", "0.1.\u{1b}[0m"]
        {
            let told = told(none, "0.1.0").unwrap_or_else(|| panic!("{none:?} is taken for a version"));
            assert!(told.starts_with("executor e1 says that its version is") && told.ends_with("upgrade executor e1"), "{told}");
            assert!(!told.contains('\u{1b}'), "{told}");
            let told = self::told("0.1.0", none).unwrap();
            assert!(told.ends_with("upgrade the controller"), "{told}");
        }
    }
}
