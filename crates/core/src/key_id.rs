//! The name of a key with which controllers encrypt what is sensitive.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

/// Names a key without saying anything of it: eight hexadecimal digits that are computed from it, so that a key has the same name everywhere.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(into = "String", try_from = "String")]
pub struct KeyId(u32);

/// A text that names no key.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("not the name of a key: eight digits 0 to 9 and a to f")]
pub struct KeyIdError;

impl KeyId {
    /// The name of these bits.
    #[must_use]
    pub const fn from_bits(bits: u32) -> Self {
        Self(bits)
    }
}

impl fmt::Display for KeyId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(&format!("{:08x}", self.0))
    }
}

impl FromStr for KeyId {
    type Err = KeyIdError;
    fn from_str(text: &str) -> Result<Self, KeyIdError> {
        let known = text.len() == 8 && text.bytes().all(|byte| byte.is_ascii_digit() || (b'a'..=b'f').contains(&byte));
        u32::from_str_radix(text, 16).ok().filter(|_| known).map(Self).ok_or(KeyIdError)
    }
}

impl From<KeyId> for String {
    fn from(id: KeyId) -> Self {
        id.to_string()
    }
}

impl TryFrom<String> for KeyId {
    type Error = KeyIdError;
    fn try_from(text: String) -> Result<Self, KeyIdError> {
        text.parse()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_key_is_named_in_one_way_only() {
        let id = KeyId::from_bits(0x0a1b_2c3d);
        assert_eq!((id.to_string().as_str(), "0a1b2c3d".parse()), ("0a1b2c3d", Ok(id)));
        assert_eq!(serde_json::from_str::<KeyId>("\"0a1b2c3d\"").unwrap(), id);
        for wrong in ["", "a1b2c3d", "0A1B2C3D", "+a1b2c3d", "0a1b2c3d0", "0a1b2c3g"] {
            assert_eq!(wrong.parse::<KeyId>(), Err(KeyIdError), "{wrong}");
        }
    }
}
