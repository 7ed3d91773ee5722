//! Watches.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use tokio::task::JoinSet;

use super::{PATIENCE, done, key, list, next, put, shorts};
use crate::api::{Event, Range, Store, StoreError, Txn};

pub(super) async fn past_and_present_come_in_order(store: &dyn Store) {
    let before = put(store, "w/0", "old").await;
    let first = put(store, "w/1", "a").await;
    let second = put(store, "w/1", "b").await;
    let mut watch = store.watch(&key("w/"), before).await.unwrap();
    let third = done(store, Txn::new().delete(key("w/1"))).await;
    let fourth = put(store, "w/1", "c").await;
    for (revision, event) in [(first, "w/1=a"), (second, "w/1=b"), (third, "w/1 gone"), (fourth, "w/1=c")] {
        let batch = next(&mut watch).await;
        assert_eq!((batch.revision, shorts(&batch)), (revision, vec![event.to_owned()]));
    }
    let entry = store.get(&key("w/1")).await.unwrap().unwrap();
    let fifth = put(store, "w/1", "d").await;
    let batch = next(&mut watch).await;
    let [Event::Put(seen)] = &batch.events[..] else { panic!("{batch:?}") };
    assert_eq!((seen.created, seen.modified), (entry.created, fifth), "an event's entry is the one that a read gives");

    let mut watch = store.watch(&key("w/"), third).await.unwrap();
    assert_eq!(next(&mut watch).await.revision, fourth, "what comes after, not the one named");
    let mut watch = store.watch(&key("w/"), fifth + 1).await.unwrap();
    let sixth = put(store, "w/2", "e").await;
    let seventh = put(store, "w/2", "f").await;
    let expected = if sixth > fifth + 1 { sixth } else { seventh };
    assert_eq!(next(&mut watch).await.revision, expected, "a revision still to come can be waited for");
}

pub(super) async fn a_transaction_is_one_batch_of_its_prefix(store: &dyn Store) {
    let start = put(store, "w/c", "0").await;
    let mut watch = store.watch(&key("w/"), start).await.unwrap();
    let mut all = store.watch(&key(""), start).await.unwrap();
    put(store, "w", "outside").await;
    put(store, "w0", "outside").await;
    put(store, "v/w/x", "outside").await;
    assert!(store.commit(Txn::new().absent(key("w/c")).put(key("w/c"), "conflict")).await.is_ok());
    let txn = Txn::new().put(key("w/a"), "1").put(key("x"), "2").delete(key("w/c")).delete(key("w/never")).put(key("w/b"), "3");
    let revision = done(store, txn).await;
    let batch = next(&mut watch).await;
    assert_eq!((batch.revision, shorts(&batch)), (revision, ["w/a=1", "w/b=3", "w/c gone"].map(str::to_owned).to_vec()));
    let mut seen = Vec::new();
    while seen.last() != Some(&vec!["w/a=1".to_owned(), "w/b=3".to_owned(), "w/c gone".to_owned(), "x=2".to_owned()]) {
        seen.push(shorts(&next(&mut all).await));
        assert!(seen.len() <= 4, "the empty prefix is everything, once: {seen:?}");
    }
    assert_eq!(seen.len(), 4, "{seen:?}");
}

pub(super) async fn two_watchers_see_the_same(store: &dyn Store) {
    let start = put(store, "w/0", "x").await;
    let mut one = store.watch(&key("w/"), start).await.unwrap();
    let mut two = store.watch(&key("w/"), start).await.unwrap();
    let dropped = store.watch(&key("w/"), start).await.unwrap();
    for index in 0..10 {
        put(store, &format!("w/{index}"), format!("{index}")).await;
    }
    drop(dropped);
    put(store, "w/last", "x").await;
    for _ in 0..11 {
        assert_eq!(next(&mut one).await, next(&mut two).await);
    }
}

pub(super) async fn nothing_is_lost_between_a_list_and_a_watch(store: Arc<dyn Store>) {
    const WRITERS: usize = 8;
    const KEYS: usize = 40;
    let mut writers = JoinSet::new();
    for writer in 0..WRITERS {
        let store = Arc::clone(&store);
        writers.spawn(async move {
            for index in 0..KEYS {
                put(&*store, &format!("w/{writer}/{index:02}"), "x").await;
            }
        });
    }
    // Readers begin at different moments of the writing.
    let mut readers = JoinSet::new();
    for reader in 0..6 {
        let store = Arc::clone(&store);
        readers.spawn(async move {
            while list(&*store, Range::of(key("w/"), 100)).await.unwrap().0.len() < reader * 40 {
                tokio::task::yield_now().await;
            }
            let (entries, revision) = list(&*store, Range::of(key("w/"), 7)).await.unwrap();
            let mut seen: HashMap<_, _> = entries.into_iter().map(|entry| (entry.key, 1)).collect();
            let mut watch = store.watch(&key("w/"), revision).await.unwrap();
            let mut last = revision;
            while seen.len() < WRITERS * KEYS {
                let batch = next(&mut watch).await;
                assert!(batch.revision > last, "{} after {last}", batch.revision);
                last = batch.revision;
                batch.events.iter().for_each(|event| *seen.entry(event.key().clone()).or_insert(0) += 1);
            }
            assert!(seen.values().all(|count| *count == 1), "seen more than once: {seen:?}");
        });
    }
    while let Some(task) = writers.join_next().await {
        task.unwrap();
    }
    while let Some(task) = readers.join_next().await {
        task.unwrap();
    }
}

pub(super) async fn old_revisions_are_whole_or_compacted(store: &dyn Store) {
    const TXNS: usize = 130;
    let first = put(store, "w/first", "x").await;
    for round in 0..TXNS {
        let keys = (0..Txn::MAX_OPERATIONS).map(|index| key(&format!("w/{index}")));
        done(store, keys.fold(Txn::new(), |txn, key| txn.put(key, format!("{round}")))).await;
    }
    match store.watch(&key("w/"), first).await {
        Err(error) => assert_compacted(&error, first),
        Ok(mut watch) => {
            for round in 0..TXNS {
                let batch = match tokio::time::timeout(PATIENCE, watch.next()).await.expect("nothing came from the watch") {
                    Ok(batch) => batch,
                    Err(error) => return assert_compacted(&error, first),
                };
                assert_eq!(batch.events.len(), Txn::MAX_OPERATIONS, "round {round}");
            }
        }
    }
    let range = Range { at: Some(first), ..Range::of(key("w/"), 1000) };
    match list(store, range).await {
        Err(error) => assert_compacted(&error, first),
        Ok((entries, _)) => assert_eq!(entries.len(), 1),
    }
}

fn assert_compacted(error: &StoreError, asked: u64) {
    assert!(matches!(error, StoreError::Compacted { oldest, .. } if *oldest > asked), "{error}");
}

pub(super) async fn a_dropped_wait_loses_nothing(store: &dyn Store) {
    let start = put(store, "w/0", "x").await;
    let mut watch = store.watch(&key("w/"), start).await.unwrap();
    for index in 0..20 {
        let nothing = tokio::time::timeout(Duration::ZERO, watch.next()).await;
        assert!(nothing.is_err(), "{nothing:?}");
        let revision = put(store, "w/0", format!("{index}")).await;
        assert_eq!(next(&mut watch).await.revision, revision);
    }
}
