//! What a failing or full disk leaves, while the store goes on.

use std::io::ErrorKind;

use super::disk::Fault;
use super::*;

#[tokio::test]
async fn a_full_disk_takes_removals_and_recovers() {
    let disk = Disk::default();
    let store = open(&disk).unwrap();
    for index in 0..20 {
        put(&store, &format!("k/{index:02}"), vec![7; 50_000]).await.unwrap();
    }
    let mut watch = store.watch(&key(""), 20).await.unwrap();
    disk.set_capacity(Some(disk.len()));
    let mut written = 20;
    let error = loop {
        match put(&store, &format!("k/{written:02}"), vec![7; 50_000]).await {
            Ok(_) => written += 1,
            Err(error) => break error,
        }
        assert!(written < 1_000, "the disk does not fill up");
    };
    assert!(matches!(error, StoreError::Full(_)), "{error}");
    assert_eq!(all(&store).await.1, written, "what failed is no revision");
    for index in 0..written {
        assert_eq!(store.commit(Txn::new().delete(key(&format!("k/{index:02}")))).await, Ok(Commit::Done(written + index + 1)));
    }
    put(&store, "again", vec![7; 50_000]).await.unwrap();
    disk.set_capacity(None);
    put(&store, "more", vec![7; 60_000]).await.unwrap();
    for revision in 21..=2 * written + 2 {
        assert_eq!(watch.next().await.map(|batch| batch.revision), Ok(revision), "a watch sees what was done and nothing else");
    }
}

/// Fails every operation there is, one after the other, and each both with and without effect.
#[tokio::test]
async fn a_fault_anywhere_loses_and_invents_nothing() {
    let mut unknown = 0;
    for takes_effect in [false, true] {
        for after in 0.. {
            let disk = Disk::default();
            // So small a cache that reads reach the disk too.
            let options = EmbeddedOptions { cache_bytes: 0, ..EmbeddedOptions::default() };
            let store = open_with(&disk, &options).unwrap();
            put(&store, "k", "before").await.unwrap();
            let mut watch = store.watch(&key("k"), 1).await.unwrap();
            disk.set_fault(Some(Fault { after, error: ErrorKind::Other, takes_effect }));
            let answer = put(&store, "k", "after").await;
            let is_done = !disk.has_fault();
            disk.set_fault(None);
            // Where it was a read that failed, one more write makes sure that the writer has seen to it.
            let other = put(&store, "other", "x").await;
            assert!(other.is_ok(), "{after} {takes_effect}: {other:?}");
            let value = store.get(&key("k")).await.unwrap().unwrap().value;
            let seen = tokio::time::timeout(Duration::from_millis(0), watch.next()).await;
            match &answer {
                Ok(_) => {
                    assert_eq!(value, "after", "{after}");
                    let batch =
                        WatchBatch { revision: 2, events: vec![Event::Put(store.get(&key("k")).await.unwrap().unwrap())] };
                    assert_eq!(seen, Ok(Ok(batch)), "{after}");
                }
                Err(StoreError::Unavailable(_)) => {
                    assert_eq!(value, "before", "{after}");
                    assert!(seen.is_err(), "{after}: {seen:?}");
                }
                Err(StoreError::Unknown(_)) => {
                    unknown += 1;
                    assert!(value == "before" || value == "after", "{after}: {value:?}");
                    let is_cut = matches!(seen, Ok(Err(StoreError::Compacted { .. })));
                    assert_eq!(is_cut, value == "after", "{after}: {seen:?}");
                }
                Err(error) => panic!("{after}: {error}"),
            }
            drop(store);
            let store = open(&disk).unwrap();
            assert_eq!(store.get(&key("k")).await.unwrap().unwrap().value, value, "{after}: after opening it again");
            if !is_done {
                break;
            }
            assert!(after < 200, "a commit does not take that much");
        }
    }
    assert!(unknown > 0, "no fault came after the point of no return");
}

#[tokio::test]
async fn a_read_that_fails_is_mended() {
    let disk = Disk::default();
    let options = EmbeddedOptions { cache_bytes: 0, ..EmbeddedOptions::default() };
    let store = open_with(&disk, &options).unwrap();
    put(&store, "k", "x").await.unwrap();
    disk.set_fault(Some(Fault { after: 0, error: ErrorKind::Other, takes_effect: false }));
    assert!(matches!(store.get(&key("k")).await, Err(StoreError::Unavailable(_))));
    // The reader has asked for mending; a request that is queued behind it comes after it.
    assert_eq!(store.commit(Txn::new().absent(key("none"))).await, Ok(Commit::Done(1)));
    assert!(store.get(&key("k")).await.unwrap().is_some());
}

#[tokio::test]
async fn a_presence_ends_though_the_disk_failed() {
    let disk = Disk::default();
    let store = open(&disk).unwrap();
    let mut watch = store.watch(&key("p"), 0).await.unwrap();
    let presence = store.announce(key("p"), "x".into(), Duration::from_millis(50)).await.unwrap();
    disk.set_fault(Some(Fault { after: 2, error: ErrorKind::Other, takes_effect: false }));
    assert_eq!(watch.next().await.map(|batch| batch.revision), Ok(1));
    let gone = tokio::time::timeout(Duration::from_secs(30), watch.next()).await.unwrap();
    assert_eq!(gone, Ok(WatchBatch { revision: 2, events: vec![Event::Delete(key("p"))] }));
    assert!(!disk.has_fault(), "the disk did not fail");
    assert_eq!(presence.renew().await, Err(StoreError::PresenceLost));
}
