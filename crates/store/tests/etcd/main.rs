//! The etcd store as its callers see it, on real etcd processes: the conformance suite, and what only an etcd does wrong.

#![expect(clippy::unwrap_used, clippy::print_stdout, reason = "a test may fail loudly, and say which seed and what it saw")]

mod access;
mod etcd_3_6;
mod faults;
mod groups;
mod room;
mod watches;

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use octavius_store::{Commit, EtcdOptions, Key, Range, Revision, Store, Txn, Watch, WatchBatch, conformance, open_etcd};
use octavius_tests::{Etcd, EtcdOptions as Start, PATIENCE};
use proptest::prelude::*;

fn options(etcd: &Etcd, prefix: &str) -> EtcdOptions {
    EtcdOptions { prefix: prefix.to_owned(), ..EtcdOptions::new(etcd.endpoints()) }
}

async fn open(etcd: &Etcd, prefix: &str) -> Arc<dyn Store> {
    open_etcd(options(etcd, prefix)).await.unwrap()
}

fn key(name: &str) -> Key {
    Key::new(name)
}

async fn put(store: &dyn Store, name: &str, value: impl Into<bytes::Bytes>) -> Revision {
    match store.commit(Txn::new().put(key(name), value)).await {
        Ok(Commit::Done(revision)) => revision,
        other => panic!("{name}: {other:?}"),
    }
}

async fn names(store: &dyn Store, prefix: &str) -> Vec<String> {
    let mut next = Some(Range::of(key(prefix), 1000));
    let mut names = Vec::new();
    while let Some(range) = next {
        let page = store.range(&range).await.unwrap();
        next = range.next(&page);
        names.extend(page.entries.into_iter().map(|entry| entry.key.to_string()));
    }
    names
}

async fn next(watch: &mut Box<dyn Watch>) -> WatchBatch {
    tokio::time::timeout(PATIENCE, watch.next()).await.expect("nothing came from the watch").unwrap()
}

/// Asks `look` until it answers `Ok`, as [`octavius_tests::eventually`] does, where the looking waits.
async fn eventually<T, E: std::fmt::Debug>(what: &str, mut look: impl AsyncFnMut() -> Result<T, E>) -> T {
    let begun = Instant::now();
    loop {
        match look().await {
            Ok(found) => return found,
            Err(error) if begun.elapsed() > PATIENCE => panic!("{what}: last seen: {error:?}"),
            Err(_) => tokio::time::sleep(Duration::from_millis(20)).await,
        }
    }
}

/// Other tests keep the machine and its disk busy: an etcd that does not answer for a while is not what is asked for here.
async fn conforms(etcd: &Etcd) {
    let (count, timeout) = (AtomicUsize::new(0), Duration::from_secs(15));
    let open = async || {
        let prefix = format!("/{}/", count.fetch_add(1, Ordering::Relaxed));
        open_etcd(EtcdOptions { timeout, ..options(etcd, &prefix) }).await.unwrap()
    };
    conformance::all(open).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn one_member_conforms() {
    conforms(&Etcd::single().unwrap()).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn three_members_conform() {
    conforms(&Etcd::start(&Start::new(3)).unwrap()).await;
}

/// A failure prints the numbers of the smallest run that shows it.
#[test]
fn it_follows_the_model() {
    let etcd = Etcd::single().unwrap();
    let count = AtomicUsize::new(0);
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    let config = ProptestConfig { cases: 12, failure_persistence: None, ..ProptestConfig::default() };
    proptest!(config, |(choices in prop::collection::vec(any::<u64>(), 1..60))| {
        runtime.block_on(async {
            let store = open(&etcd, &format!("/{}/", count.fetch_add(1, Ordering::Relaxed))).await;
            conformance::follows_model(&*store, &choices).await;
        });
    });
}

#[tokio::test(flavor = "multi_thread")]
async fn a_store_outlives_its_process_and_its_etcd() {
    let mut etcd = Etcd::single().unwrap();
    let store = open(&etcd, "/o/").await;
    let revision = put(&*store, "k", "x").await;
    drop(store);
    etcd.kill(0).unwrap();
    etcd.restart(0).unwrap();
    let entry = open(&etcd, "/o/").await.get(&key("k")).await.unwrap().unwrap();
    assert_eq!((&entry.value[..], entry.created, entry.modified), (&b"x"[..], revision, revision));
}
