//! Members that are killed and paused: nothing acknowledged is lost, nothing is made twice, and writes go on.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use octavius_store::{Commit, EtcdOptions, Store, StoreError, Txn, open_etcd};
use octavius_tests::{Etcd, EtcdOptions as Start, PATIENCE};
use rustix::process::Signal;
use tokio::task::JoinSet;

use crate::{eventually, key, names, next, open, options, put};

const WRITERS: usize = 8;

/// Longest time without a write after a leader is gone.
const WRITES_AGAIN: Duration = Duration::from_secs(5);

/// Longest time until a write and the read after it are both answered where nobody can answer.
const ANSWERED: Duration = Duration::from_secs(5);

/// Adds one to the counter and writes a key of its own with it, in one transaction; what is acknowledged, until it is told to stop.
async fn writer(store: Arc<dyn Store>, writer: usize, stop: Arc<AtomicBool>) -> Vec<String> {
    let mut acknowledged = Vec::new();
    let mut count = 0;
    while !stop.load(Ordering::Relaxed) {
        let Ok(Some(counter)) = store.get(&key("n")).await else { continue };
        let n: u64 = std::str::from_utf8(&counter.value).unwrap().parse().unwrap();
        let name = format!("op/{writer}/{count:06}");
        let txn = Txn::new().unchanged(&counter).put(key("n"), format!("{}", n + 1)).put(key(&name), "x");
        match store.commit(txn).await {
            Ok(Commit::Done(_)) => acknowledged.push(name),
            Ok(Commit::Conflict(_)) => continue,
            // This name is not used again: whether it was made is found out at the end.
            Err(StoreError::Unknown(_) | StoreError::Unavailable(_)) => {}
            Err(error) => panic!("{error:?}"),
        }
        count += 1;
    }
    acknowledged
}

/// How long until a write is acknowledged that began now or later.
async fn writes_again(store: &dyn Store) -> Duration {
    let begun = Instant::now();
    eventually("a write is acknowledged", async || store.commit(Txn::new().put(key("probe"), "x")).await).await;
    begun.elapsed()
}

/// Writers and a watch, while `fault` is done to one member after the other, the leader first, and undone.
async fn survives(fault: fn(&mut Etcd, usize), undo: fn(&mut Etcd, usize)) {
    let mut etcd = Etcd::start(&Start::new(3)).unwrap();
    let store = open(&etcd, "/o/").await;
    let start = put(&*store, "n", "0").await;
    let mut watch = store.watch(&key("op/"), start).await.unwrap();
    let stop = Arc::new(AtomicBool::new(false));
    let mut writers = JoinSet::new();
    for index in 0..WRITERS {
        // Each through a store of its own, so that every member serves some.
        writers.spawn(writer(open(&etcd, "/o/").await, index, Arc::clone(&stop)));
    }
    let mut slowest = Duration::ZERO;
    for round in 0..4 {
        let victim = if round < 2 { etcd.leader().unwrap() } else { round - 2 };
        fault(&mut etcd, victim);
        slowest = slowest.max(writes_again(&*store).await);
        // Each of them lasts long enough to be noticed by everyone.
        for _ in 0..50 {
            eventually("writes go on", async || store.commit(Txn::new().put(key("probe"), "x")).await).await;
        }
        undo(&mut etcd, victim);
        eventually("the counter can be read", async || store.get(&key("n")).await).await;
    }
    stop.store(true, Ordering::Relaxed);
    let mut acknowledged = BTreeSet::new();
    while let Some(writer) = writers.join_next().await {
        acknowledged.extend(writer.unwrap());
    }
    assert!(acknowledged.len() > 100, "only {} writes", acknowledged.len());
    println!("{} writes, writing again after {slowest:?}", acknowledged.len());

    let made: BTreeSet<_> = names(&*store, "op/").await.into_iter().collect();
    assert!(acknowledged.is_subset(&made), "lost: {:?}", acknowledged.difference(&made).collect::<Vec<_>>());
    let counter = store.get(&key("n")).await.unwrap().unwrap();
    assert_eq!(std::str::from_utf8(&counter.value).unwrap(), made.len().to_string(), "each is counted once");
    let mut seen = BTreeSet::new();
    let mut last = start;
    while seen.len() < made.len() {
        let batch = next(&mut watch).await;
        assert!(batch.revision > last, "{} after {last}", batch.revision);
        last = batch.revision;
        for event in batch.events {
            assert!(seen.insert(event.key().to_string()), "{} came twice", event.key());
        }
    }
    assert_eq!(seen, made);
    assert!(slowest < WRITES_AGAIN, "writes again after {slowest:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn members_are_killed_under_writers_and_watches() {
    survives(|etcd, member| etcd.kill(member).unwrap(), |etcd, member| etcd.restart(member).unwrap()).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn members_are_paused_under_writers_and_watches() {
    survives(
        |etcd, member| etcd.signal(member, Signal::STOP).unwrap(),
        |etcd, member| etcd.signal(member, Signal::CONT).unwrap(),
    )
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_lost_quorum_is_told_in_time() {
    let mut etcd = Etcd::start(&Start::new(3)).unwrap();
    let store = open(&etcd, "/o/").await;
    put(&*store, "k", "x").await;
    for member in 0..2 {
        etcd.signal(member, Signal::STOP).unwrap();
    }
    // All to one key, so that they cannot go as one group and most wait behind others. Who is told that a write may have happened reads
    // again, and has waited for both in the end.
    let mut writers = JoinSet::new();
    for _ in 0..20 {
        let store = Arc::clone(&store);
        writers.spawn(async move {
            let begun = Instant::now();
            let written = store.commit(Txn::new().put(key("k"), "y")).await;
            assert!(matches!(written, Err(StoreError::Unknown(_) | StoreError::Unavailable(_))), "{written:?}");
            let read = store.get(&key("k")).await;
            assert!(matches!(read, Err(StoreError::Unavailable(_))), "{read:?}");
            begun.elapsed()
        });
    }
    let slowest = writers.join_all().await.into_iter().max().unwrap();
    println!("a write and a read after it: {slowest:?}");
    assert!(slowest < ANSWERED, "{slowest:?} for a write and a read");
    for member in 0..2 {
        etcd.signal(member, Signal::CONT).unwrap();
    }
    eventually("writes again", async || store.commit(Txn::new().put(key("k"), "z")).await).await;
}

/// What became of writes whose answers were lost is not known; of all others it is, and is so.
#[tokio::test(flavor = "multi_thread")]
async fn lost_answers_are_not_called_done() {
    let mut etcd = Etcd::single().unwrap();
    let timeout = Duration::from_millis(700);
    let store = open_etcd(EtcdOptions { timeout, ..options(&etcd, "/o/") }).await.unwrap();
    let (mut done, mut not_made, mut unknown) = (Vec::new(), Vec::new(), 0);
    for round in 0..4 {
        let mut writers = JoinSet::new();
        for index in 0..100 {
            let store = Arc::clone(&store);
            let name = format!("op/{round}/{index}");
            // Each of another size, so that they do not all go as one group.
            let txn = Txn::new().put(key(&name), vec![b'x'; index * 500]);
            writers.spawn(async move { (name, store.commit(txn).await) });
        }
        // In the middle of it, wherever that is.
        if let Some(first) = writers.join_next().await {
            let (name, answer) = first.unwrap();
            assert!(matches!(answer, Ok(Commit::Done(_))), "{answer:?}");
            done.push(name);
        }
        etcd.signal(0, Signal::STOP).unwrap();
        let late = store.commit(Txn::new().put(key(&format!("late/{round}")), "x")).await;
        assert!(matches!(late, Err(StoreError::Unknown(_) | StoreError::Unavailable(_))), "{late:?}");
        while let Some(writer) = writers.join_next().await {
            match writer.unwrap() {
                (name, Ok(Commit::Done(_))) => done.push(name),
                (name, Err(StoreError::Unavailable(_))) => not_made.push(name),
                (_, Err(StoreError::Unknown(_))) => unknown += 1,
                other => panic!("{other:?}"),
            }
        }
        etcd.signal(0, Signal::CONT).unwrap();
        eventually("it answers", async || store.get(&key("k")).await).await;
    }
    println!("{} done, {} not made, {unknown} unknown", done.len(), not_made.len());
    assert!(unknown > 0 || !not_made.is_empty(), "the pauses met no write");
    let made: BTreeSet<_> = names(&*store, "op/").await.into_iter().collect();
    for name in &done {
        assert!(made.contains(name), "{name} was acknowledged");
    }
    for name in &not_made {
        assert!(!made.contains(name), "{name} was said not to be made");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_presence_is_lost_by_a_pause() {
    let mut etcd = Etcd::single().unwrap();
    let store = open(&etcd, "/o/").await;
    let start = put(&*store, "k", "x").await;
    let mut watch = store.watch(&key("p"), start).await.unwrap();
    let presence = store.announce(key("p"), "x".into(), Duration::from_secs(2)).await.unwrap();
    presence.renew().await.unwrap();
    next(&mut watch).await;
    etcd.signal(0, Signal::STOP).unwrap();
    let begun = Instant::now();
    while begun.elapsed() < Duration::from_secs(5) {
        let answer = presence.renew().await;
        assert!(matches!(answer, Err(StoreError::Unavailable(_))), "{answer:?}");
    }
    etcd.signal(0, Signal::CONT).unwrap();
    let lost = async || match presence.renew().await {
        Err(StoreError::PresenceLost) => Ok(()),
        other => Err(other),
    };
    eventually("the presence is lost", lost).await;
    assert_eq!(next(&mut watch).await.events.len(), 1, "its key is gone");
    assert!(store.get(&key("p")).await.unwrap().is_none());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_thousand_presences_are_renewed() {
    let etcd = Etcd::start(&Start::new(3)).unwrap();
    let store = open(&etcd, "/o/").await;
    let mut tasks = JoinSet::new();
    for index in 0..1_000 {
        let store = Arc::clone(&store);
        tasks.spawn(
            async move { store.announce(key(&format!("p/{index}")), "x".into(), Duration::from_secs(600)).await.unwrap() },
        );
    }
    let presences: Vec<_> = tasks.join_all().await.into_iter().map(Arc::<dyn octavius_store::Presence>::from).collect();
    let begun = Instant::now();
    let mut tasks = JoinSet::new();
    for presence in &presences {
        let presence = Arc::clone(presence);
        tasks.spawn(async move { presence.renew().await });
    }
    let renewed = tokio::time::timeout(PATIENCE, tasks.join_all()).await.unwrap();
    println!("1,000 renewals: {:?}", begun.elapsed());
    assert!(renewed.iter().all(Result::is_ok), "{:?}", renewed.iter().find(|renewed| renewed.is_err()));
}
