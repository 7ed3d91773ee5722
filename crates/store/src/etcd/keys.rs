//! Our keys as etcd has them: below a prefix, which is added on the way there and taken off on the way back.

use bytes::Bytes;
use etcd_client::proto::PbKeyValue;

use crate::api::{Entry, Key, StoreError};

/// What all our keys in etcd start with.
#[derive(Debug, Clone)]
pub(super) struct Prefix(String);

impl Prefix {
    pub(super) fn new(text: String) -> Self {
        Self(text)
    }

    /// A key as etcd has it.
    pub(super) fn key(&self, key: &Key) -> Vec<u8> {
        [self.0.as_bytes(), key.as_str().as_bytes()].concat()
    }

    /// The first key after `key` that etcd could have.
    pub(super) fn after(&self, key: &Key) -> Vec<u8> {
        [self.0.as_bytes(), key.as_str().as_bytes(), b"\0"].concat()
    }

    /// All keys that start with `prefix`, as etcd's range: from the first one to before the second.
    pub(super) fn range(&self, prefix: &Key) -> (Vec<u8>, Vec<u8>) {
        range_of(self.key(prefix))
    }

    /// Our key of etcd's.
    pub(super) fn strip(&self, key: &[u8]) -> Result<Key, StoreError> {
        let text = std::str::from_utf8(key).ok().and_then(|text| text.strip_prefix(self.0.as_str()));
        text.map(Key::new).ok_or_else(|| StoreError::Unreadable(format!("{}: not a key of ours", String::from_utf8_lossy(key))))
    }

    /// Our entry of etcd's.
    pub(super) fn entry(&self, pair: PbKeyValue) -> Result<Entry, StoreError> {
        Ok(Entry {
            key: self.strip(&pair.key)?,
            value: Bytes::from(pair.value),
            created: revision(pair.create_revision),
            modified: revision(pair.mod_revision),
        })
    }
}

/// The range of all keys that start with `prefix`.
pub(super) fn range_of(prefix: Vec<u8>) -> (Vec<u8>, Vec<u8>) {
    let mut end = prefix.clone();
    while let Some(last) = end.pop() {
        if last < 0xff {
            end.push(last + 1);
            return (prefix, end);
        }
    }
    // There is no key after all of them: etcd writes that as a zero byte, and wants a key where ours is empty.
    (if prefix.is_empty() { vec![0] } else { prefix }, vec![0])
}

/// Our revision of etcd's, which are never negative.
pub(super) fn revision(number: i64) -> u64 {
    u64::try_from(number).unwrap_or_default()
}

/// Etcd's revision of ours; what is beyond its numbers will never come.
pub(super) fn number(revision: u64) -> i64 {
    i64::try_from(revision).unwrap_or(i64::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ranges_hold_what_starts_with_the_prefix() {
        for (prefix, expected) in [
            (&b"a"[..], (&b"a"[..], &b"b"[..])),
            (b"/o/", (b"/o/", b"/o0")),
            (b"a\xff", (b"a\xff", b"b")),
            (b"\xff\xff", (b"\xff\xff", b"\0")),
            (b"", (b"\0", b"\0")),
        ] {
            let (from, to) = range_of(prefix.to_vec());
            assert_eq!((&from[..], &to[..]), expected);
        }
    }

    #[test]
    fn keys_come_back_without_the_prefix() {
        let prefix = Prefix::new("/o/".to_owned());
        let key = Key::new("exec/1");
        assert_eq!(prefix.strip(&prefix.key(&key)), Ok(key));
        for foreign in [&b"/p/exec"[..], b"/o", b"/o/\xff"] {
            assert!(matches!(prefix.strip(foreign), Err(StoreError::Unreadable(_))));
        }
    }
}
