//! Blobs, over any backend.

use bytes::Bytes;
use octavius_core::Digest;

use super::{done, key, names};
use crate::api::{Store, StoreError, Txn};
use crate::blob;
use crate::key as keys;

fn blob_of(size: usize) -> (Digest, Bytes) {
    let bytes: Bytes = (0..size).map(|index| (index * 7 + size) as u8).collect::<Vec<_>>().into();
    (Digest::of(&bytes), bytes)
}

pub(super) async fn all_sizes_come_back(store: &dyn Store) {
    // More than one transaction by number and by size, one blob larger than a page, one given twice.
    let mut blobs: Vec<_> = [0, 1, 65_535, 65_536, 65_537, 200_000, 5_000_000].map(blob_of).to_vec();
    blobs.extend((2..250).map(blob_of));
    blobs.push(blob_of(1));
    for _ in 0..2 {
        blob::put_all(store, blobs.clone()).await.unwrap();
    }
    for (digest, bytes) in blobs {
        assert!(blob::get(store, &digest).await == Ok(Some(bytes.clone())), "a blob of {} bytes", bytes.len());
    }
    assert_eq!(blob::get(store, &Digest::of(b"never written")).await, Ok(None));
    let (digest, changes) = blob::put_changes(&blob_of(300_000).1);
    done(store, changes.into_iter().fold(Txn::new(), |txn, (key, value)| txn.put(key, value))).await;
    assert_eq!(blob::get(store, &digest).await, Ok(Some(blob_of(300_000).1)));
}

pub(super) async fn damage_is_told(store: &dyn Store) {
    let (small, large) = (blob_of(100), blob_of(200_000));
    let (small_key, large_key) = (keys::blob(&small.0), keys::blob(&large.0));
    blob::put_all(store, [small.clone(), large.clone()]).await.unwrap();
    assert_eq!(names(store, large_key.as_str()).await.len(), 5);
    let mut damaged = store.get(&small_key).await.unwrap().unwrap().value.to_vec();
    damaged[50] ^= 1;
    for value in [damaged, vec![], vec![9, 9], vec![1]] {
        done(store, Txn::new().put(small_key.clone(), value)).await;
        let answer = blob::get(store, &small.0).await;
        assert!(matches!(&answer, Err(StoreError::Unreadable(why)) if why.contains(small_key.as_str())), "{answer:?}");
    }
    done(store, Txn::new().delete(keys::blob_chunk(&large.0, 2))).await;
    assert!(matches!(blob::get(store, &large.0).await, Err(StoreError::Unreadable(_))));
    done(store, Txn::new().put(key(&format!("{large_key}/000002")), "something else")).await;
    assert!(matches!(blob::get(store, &large.0).await, Err(StoreError::Unreadable(_))));
    done(store, Txn::new().delete(large_key)).await;
    assert_eq!(blob::get(store, &large.0).await, Ok(None));
}
