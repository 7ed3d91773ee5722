//! Blobs, over any backend.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use async_trait::async_trait;
use bytes::Bytes;
use octavius_core::Digest;
use tokio::sync::watch;

use super::{PATIENCE, done, key, names};
use crate::StoreLayer;
use crate::api::{Commit, Store, StoreError, Txn};
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

pub(super) async fn what_no_transaction_takes_is_refused_and_ends_nothing_silently(store: &dyn Store) {
    let huge = Bytes::from(vec![1; Txn::MAX_BYTES + 1]);
    let values = [(key("before"), Bytes::from("x")), (key("huge"), huge), (key("behind"), Bytes::from("y"))];
    let answer = blob::put_in_batches(store, values.into_iter()).await;
    assert!(matches!(&answer, Err(StoreError::Invalid(_))), "{answer:?}");
    assert_eq!(store.get(&key("huge")).await, Ok(None));
}

/// Whichever transaction of a blob is not made, while all that were on their way with it are, nobody reads half a blob.
pub(super) async fn a_blob_is_whole_or_not_there_whatever_is_not_written(inner: Arc<dyn Store>) {
    let mut fails = 0;
    loop {
        let store = OneFails { inner: Arc::clone(&inner), fails, commits: AtomicUsize::new(0), under_way: watch::channel(0).0 };
        // Others each time: what one try leaves behind would hide what the next does wrong.
        let blobs = [2_500_000, 70_000, 10].map(|size| blob_of(size + 1000 + fails));
        let answer = tokio::time::timeout(PATIENCE, blob::put_all(&store, blobs.clone())).await.unwrap();
        for (digest, bytes) in blobs {
            let read = blob::get(&*inner, &digest).await;
            let whole = read.as_ref().is_ok_and(|read| read.as_ref() == Some(&bytes));
            assert!(
                whole || (answer.is_err() && read == Ok(None)),
                "{} bytes, commit {fails} failed: {:?}",
                bytes.len(),
                read.err()
            );
        }
        if store.commits.load(Ordering::SeqCst) <= fails {
            assert_eq!(answer, Ok(()));
            break;
        }
        assert!(matches!(answer, Err(StoreError::Unavailable(_))), "{answer:?}");
        fails += 1;
    }
    assert!(fails > 4, "only {fails} transactions: several must be on their way at once");
}

/// A store that does not make one transaction, and says so when all others that were on their way have been made.
#[derive(Debug)]
struct OneFails {
    inner: Arc<dyn Store>,
    /// Which one, from 0.
    fails: usize,
    commits: AtomicUsize,
    under_way: watch::Sender<usize>,
}

#[async_trait]
impl StoreLayer for OneFails {
    fn inner(&self) -> &dyn Store {
        &*self.inner
    }

    async fn commit(&self, txn: Txn) -> Result<Commit, StoreError> {
        let number = self.commits.fetch_add(1, Ordering::SeqCst);
        self.under_way.send_modify(|count| *count += 1);
        if number == self.fails {
            tokio::task::yield_now().await; // those that go with it begin
            let alone = self.under_way.subscribe().wait_for(|count| *count == 1).await.map(drop);
            assert!(alone.is_ok(), "the store itself is the sender");
            return Err(StoreError::Unavailable("a test has not made it".to_owned()));
        }
        let answer = self.inner.commit(txn).await;
        self.under_way.send_modify(|count| *count -= 1);
        answer
    }
}
