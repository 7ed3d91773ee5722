//! Immutable blobs under their SHA-256, over any [`Store`]: definitions, manifests, large arguments.
//!
//! A blob that fits is one value, with a first byte that says so. A larger one is cut into chunks under keys of their own and a header
//! that tells how many there are. Whoever writes a blob writes its header last, so where a header is, the blob is whole. Writing what is
//! already there does no harm: the bytes are the same.

use std::collections::HashSet;

use bytes::{BufMut as _, Bytes, BytesMut};
use octavius_core::Digest;
use octavius_core::limit::STORED_VALUE_BYTES;
use octavius_failpoint::{APPLY_BLOBS, reach};

use crate::api::{Change, Key, Range, Store, StoreError, Txn};
use crate::key;

/// First byte of a blob that is one value; the bytes follow.
const WHOLE: u8 = 0;

/// First byte of a header; the size and the number of chunks follow, 8 bytes each, low byte first.
const CHUNKED: u8 = 1;

/// Largest blob that is one value.
const WHOLE_BYTES: usize = STORED_VALUE_BYTES - 1;

/// A chunk is a little smaller than a value may be: with its key and what a backend adds, it then fits a page of 64 KiB instead of
/// taking half of the next size.
const CHUNK_BYTES: usize = STORED_VALUE_BYTES - 512;

/// Transactions of many blobs that are on their way at once: the store writes one while the next is made ready.
const AT_ONCE: usize = 4;

/// A blob's digest, and the keys and values that store it. Write them in this order, or all at once.
#[must_use]
pub fn put_changes(bytes: &Bytes) -> (Digest, Vec<(Key, Bytes)>) {
    let digest = Digest::of(bytes);
    (digest, values(&digest, bytes))
}

fn values(digest: &Digest, bytes: &Bytes) -> Vec<(Key, Bytes)> {
    if bytes.len() <= WHOLE_BYTES {
        let mut value = BytesMut::with_capacity(1 + bytes.len());
        value.put_u8(WHOLE);
        value.put_slice(bytes);
        return vec![(key::blob(digest), value.freeze())];
    }
    let starts = (0..bytes.len()).step_by(CHUNK_BYTES).enumerate();
    let mut values: Vec<_> = starts
        .map(|(index, start)| (key::blob_chunk(digest, index), bytes.slice(start..bytes.len().min(start + CHUNK_BYTES))))
        .collect();
    let mut header = BytesMut::with_capacity(17);
    header.put_u8(CHUNKED);
    header.put_u64_le(bytes.len() as u64);
    header.put_u64_le(values.len() as u64);
    values.push((key::blob(digest), header.freeze()));
    values
}

/// Writes blobs under the digests that the caller has computed, in as few transactions as possible, a few of them at a time. Where it
/// fails, some may be written; repeating it is safe.
///
/// # Errors
/// Where the store does not answer or is full.
pub async fn put_all(store: &dyn Store, blobs: impl IntoIterator<Item = (Digest, Bytes)>) -> Result<(), StoreError> {
    // The same blob given twice would be the same key twice.
    let mut seen = HashSet::new();
    let mut headers = Vec::new();
    let rest = blobs.into_iter().filter(|(digest, _)| seen.insert(*digest)).flat_map(|(digest, blob)| {
        let mut values = values(&digest, &blob);
        // Transactions that are on their way together land in any order: headers of chunks wait for all chunks.
        if values.len() > 1 {
            headers.extend(values.pop());
        }
        values
    });
    put_in_batches(store, rest).await?;
    put_in_batches(store, headers.into_iter()).await
}

/// Writes values, each under a key of its own. One that is too large for a transaction goes alone, and the store refuses it.
pub(crate) async fn put_in_batches(store: &dyn Store, values: impl Iterator<Item = (Key, Bytes)>) -> Result<(), StoreError> {
    let mut values = values.peekable();
    let mut batch = || {
        let (mut txn, mut bytes) = (Txn::new(), 0);
        while txn.changes.len() < Txn::MAX_OPERATIONS
            && let Some((key, value)) =
                values.next_if(|(_, value)| txn.changes.is_empty() || bytes + value.len() <= Txn::MAX_BYTES)
        {
            bytes += value.len();
            txn.changes.push(Change::Put(key, value));
        }
        txn
    };
    let commit = async |txn: Txn| {
        if txn.changes.is_empty() {
            return Ok(());
        }
        reach(&APPLY_BLOBS);
        store.commit(txn).await.map(drop)
    };
    loop {
        let batches: [Txn; AT_ONCE] = std::array::from_fn(|_| batch());
        if batches[0].changes.is_empty() {
            return Ok(());
        }
        let [first, second, third, fourth] = batches.map(&commit);
        tokio::try_join!(first, second, third, fourth)?;
    }
}

/// Reads a blob, and makes sure that it is the one; `None` where it is not there.
///
/// # Errors
/// [`StoreError::Unreadable`] where it is damaged: its bytes are not those of the digest, or a chunk is missing.
pub async fn get(store: &dyn Store, digest: &Digest) -> Result<Option<Bytes>, StoreError> {
    let key = key::blob(digest);
    let Some(entry) = store.get(&key).await? else { return Ok(None) };
    let unreadable = |why: &str| Err(StoreError::Unreadable(format!("{key}: {why}")));
    let bytes = match entry.value.split_first() {
        Some((&WHOLE, _)) => entry.value.slice(1..),
        Some((&CHUNKED, header)) => {
            let Some(size) = header.first_chunk().map(|size| u64::from_le_bytes(*size)) else {
                return unreadable("its header is damaged");
            };
            match chunks(store, &key, size).await? {
                Some(bytes) => bytes,
                // It may have been removed in the meantime, which is not damage.
                None if store.get(&key).await?.is_none() => return Ok(None),
                None => return unreadable("chunks are missing"),
            }
        }
        Some(_) => return unreadable("written in a newer format"),
        None => return unreadable("empty"),
    };
    if Digest::of(&bytes) == *digest { Ok(Some(bytes)) } else { unreadable("its bytes are not those of its digest") }
}

/// A blob's chunks, put together; `None` where they are not `size` bytes in all.
async fn chunks(store: &dyn Store, key: &Key, size: u64) -> Result<Option<Bytes>, StoreError> {
    let mut bytes = BytesMut::new();
    let mut range = Some(Range::of(Key::new(format!("{key}/")), Range::MAX_BYTES / CHUNK_BYTES));
    while let Some(asked) = range {
        let page = store.range(&asked).await?;
        range = asked.next(&page);
        for chunk in page.entries {
            if (bytes.len() + chunk.value.len()) as u64 > size {
                return Ok(None);
            }
            bytes.extend_from_slice(&chunk.value);
        }
    }
    Ok((bytes.len() as u64 == size).then(|| bytes.freeze()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn values_keep_within_the_limit_and_the_header_comes_last() {
        for size in [0, 1, WHOLE_BYTES, WHOLE_BYTES + 1, 3 * CHUNK_BYTES, 3 * CHUNK_BYTES + 1] {
            let (digest, values) = put_changes(&Bytes::from(vec![7; size]));
            assert!(values.iter().all(|(_, value)| value.len() <= STORED_VALUE_BYTES), "{size}");
            assert_eq!(values.last().unwrap().0, key::blob(&digest), "{size}");
            assert_eq!(values.len() == 1, size <= WHOLE_BYTES, "{size}");
        }
    }
}
