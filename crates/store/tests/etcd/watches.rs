//! Watches: compaction, slow owners, large histories, numbers of them.

use std::time::{Duration, Instant};

use octavius_store::{Commit, Range, StoreError, Txn};
use octavius_tests::{Etcd, PATIENCE};
use tokio::task::JoinSet;

use crate::{key, next, open, put};

#[tokio::test(flavor = "multi_thread")]
async fn what_is_compacted_is_told_with_the_oldest_that_is_left() {
    let etcd = Etcd::single().unwrap();
    let store = open(&etcd, "/o/").await;
    let mut revisions = Vec::new();
    for index in 0..10 {
        revisions.push(put(&*store, "k", format!("{index}")).await);
    }
    let mut before = store.watch(&key(""), revisions[2]).await.unwrap();
    assert_eq!(next(&mut before).await.revision, revisions[3]);
    store.compact(revisions[6]).await.unwrap();
    store.compact(revisions[6]).await.unwrap();
    store.compact(revisions[1]).await.unwrap();

    // One that has them already keeps them; one that asks for them is told.
    assert_eq!(next(&mut before).await.revision, revisions[4]);
    for after in [0, revisions[0], revisions[4]] {
        let mut watch = store.watch(&key(""), after).await.unwrap();
        let end = tokio::time::timeout(PATIENCE, watch.next()).await.unwrap();
        assert_eq!(end, Err(StoreError::Compacted { asked: after, oldest: revisions[6] }));
        assert_eq!(watch.next().await, end, "it stays ended");
    }
    let mut watch = store.watch(&key(""), revisions[5]).await.unwrap();
    assert_eq!(next(&mut watch).await.revision, revisions[6], "what is left can be watched");

    let at = |revision| Range { at: Some(revision), ..Range::of(key(""), 10) };
    let told = store.range(&at(revisions[4])).await;
    assert_eq!(told, Err(StoreError::Compacted { asked: revisions[4], oldest: revisions[6] }));
    assert_eq!(&store.range(&at(revisions[6])).await.unwrap().entries[0].value[..], b"6");
    let told = store.range(&at(revisions[9] + 1000)).await;
    assert!(matches!(told, Err(StoreError::Invalid(_))), "{told:?}");
}

/// 40 transactions of 500 KiB: far more than waits in memory for an owner, and more than etcd puts into one message.
#[tokio::test(flavor = "multi_thread")]
async fn a_slow_owner_misses_nothing_or_is_told() {
    let etcd = Etcd::single().unwrap();
    let store = open(&etcd, "/o/").await;
    let start = put(&*store, "w/start", "x").await;
    let mut slow = store.watch(&key("w/"), start).await.unwrap();
    let mut slower = store.watch(&key("w/"), start).await.unwrap();
    let mut revisions = Vec::new();
    for round in 0..40_u8 {
        let txn = (0..100).fold(Txn::new(), |txn, index| txn.put(key(&format!("w/{index}")), vec![round; 5_000]));
        let Ok(Commit::Done(revision)) = store.commit(txn).await else { panic!("round {round}") };
        revisions.push(revision);
    }
    let mut late = store.watch(&key("w/"), start).await.unwrap();
    for watch in [&mut slow, &mut late] {
        for revision in &revisions {
            let batch = next(watch).await;
            assert_eq!((batch.revision, batch.events.len()), (*revision, 100));
        }
    }
    store.compact(*revisions.last().unwrap()).await.unwrap();
    let end = loop {
        match tokio::time::timeout(PATIENCE, slower.next()).await.unwrap() {
            Ok(batch) => assert_eq!(Some(&batch.revision), revisions.first(), "in order until then"),
            Err(error) => break error,
        }
        revisions.remove(0);
    };
    let oldest = *revisions.last().unwrap();
    assert!(matches!(end, StoreError::Compacted { asked, oldest: told } if told == oldest && asked < oldest), "{end:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn thousands_of_watches_go_over_one_connection() {
    const WATCHES: usize = 3_000;
    let etcd = Etcd::single().unwrap();
    let store = open(&etcd, "/o/").await;
    let start = put(&*store, "start", "x").await;
    let begun = Instant::now();
    let mut watches = Vec::new();
    for index in 0..WATCHES {
        watches.push(store.watch(&key(&format!("w/{index}/")), start).await.unwrap());
    }
    let mut writers = JoinSet::new();
    for index in 0..WATCHES {
        let store = store.clone();
        writers.spawn(async move { put(&*store, &format!("w/{index}/k"), format!("{index}")).await });
    }
    for (index, watch) in watches.iter_mut().enumerate() {
        let batch = next(watch).await;
        assert_eq!(batch.events.len(), 1);
        assert_eq!(batch.events[0].key().as_str(), format!("w/{index}/k"));
    }
    println!("{WATCHES} watches and writes: {:?}", begun.elapsed());
    while let Some(writer) = writers.join_next().await {
        writer.unwrap();
    }
    // Those that are dropped are gone from etcd too.
    watches.truncate(1);
    crate::eventually("etcd has one watch left", async || match etcd_watches(etcd.port(0)) {
        Some(1) => Ok(()),
        other => Err(other),
    })
    .await;
    put(&*store, "w/0/k", "again").await;
    assert_eq!(next(&mut watches[0]).await.events.len(), 1);
    assert!(tokio::time::timeout(Duration::ZERO, watches[0].next()).await.is_err());
}

/// How many watches an etcd has, by its own count.
fn etcd_watches(port: u16) -> Option<u64> {
    use std::io::{Read as _, Write as _};
    let mut stream = std::net::TcpStream::connect(("127.0.0.1", port)).ok()?;
    stream.write_all(b"GET /metrics HTTP/1.0\r\nHost: localhost\r\n\r\n").ok()?;
    let mut text = String::new();
    stream.read_to_string(&mut text).ok()?;
    text.lines().find_map(|line| line.strip_prefix("etcd_debugging_mvcc_watcher_total "))?.parse().ok()
}
