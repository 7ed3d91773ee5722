//! How records become bytes: one byte that says the format's version, then JSON. A reader refuses a newer version with a clear error, so
//! that an older controller never half-understands what a newer one wrote.

use bytes::Bytes;
use serde::Serialize;
use serde::de::DeserializeOwned;

use crate::api::{Entry, StoreError};

/// The version that this code writes.
pub const VERSION: u8 = 1;

/// A record's bytes.
#[must_use]
pub fn encode<T: Serialize>(record: &T) -> Bytes {
    let mut bytes = vec![VERSION];
    #[expect(clippy::expect_used, reason = "our records are structs of strings, numbers and maps with string keys")]
    serde_json::to_writer(&mut bytes, record).expect("a record has a JSON form");
    bytes.into()
}

/// Reads a record back.
///
/// # Errors
/// [`StoreError::Unreadable`], with the key, where the bytes are of a newer version or damaged.
pub fn decode<T: DeserializeOwned>(entry: &Entry) -> Result<T, StoreError> {
    let unreadable = |why: String| StoreError::Unreadable(format!("{}: {why}", entry.key));
    match entry.value.split_first() {
        Some((&VERSION, json)) => serde_json::from_slice(json).map_err(|error| unreadable(error.to_string())),
        Some((version, _)) => Err(unreadable(format!("written in format {version}, this version reads {VERSION}"))),
        None => Err(unreadable("empty".to_owned())),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::api::Key;

    fn entry(value: Bytes) -> Entry {
        Entry { key: Key::new("k"), value, created: 1, modified: 1 }
    }

    #[test]
    fn a_newer_format_is_refused_by_name() {
        assert_eq!(decode::<u32>(&entry(encode(&7))), Ok(7));
        let error = decode::<u32>(&entry(Bytes::from_static(b"\x027"))).unwrap_err();
        assert_eq!(error.to_string(), "a stored record cannot be read: k: written in format 2, this version reads 1");
        assert!(decode::<u32>(&entry(Bytes::new())).is_err());
    }
}
