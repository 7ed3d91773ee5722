//! Room: a full etcd, and how it takes writes again.

use octavius_store::{Commit, EtcdOptions, Store, StoreError, Txn, open_etcd};
use octavius_tests::{Etcd, EtcdOptions as Start};
use tokio::task::JoinSet;

use crate::{eventually, key, names, options, put};

const QUOTA: u64 = 16 * 1024 * 1024;

async fn fill(store: &dyn Store) -> StoreError {
    for round in 0..200 {
        let txn = (0..7).fold(Txn::new(), |txn, index| txn.put(key(&format!("fill/{round}/{index}")), vec![1_u8; 60_000]));
        match store.commit(txn).await {
            Ok(_) => {}
            Err(error) => return error,
        }
    }
    panic!("it took more than its quota")
}

/// Fills a cluster and empties it; `dies` says whether its last member is gone meanwhile.
async fn fills_and_recovers(members: usize, dies: bool) {
    let mut etcd = Etcd::start(&Start::new(members).flag(format!("--quota-backend-bytes={QUOTA}"))).unwrap();
    let store = open_etcd(EtcdOptions { quota_bytes: QUOTA, ..options(&etcd, "/o/") }).await.unwrap();
    put(&*store, "before", "x").await;
    let usage = store.usage().await.unwrap();
    assert!(!usage.full && usage.quota_bytes == Some(QUOTA) && usage.used_bytes <= usage.allocated_bytes, "{usage:?}");
    let error = fill(&*store).await;
    assert!(matches!(&error, StoreError::Full(why) if why.contains("space exceeded")), "{error:?}");
    // Others hear of it a moment later.
    eventually("it says that it is full", async || {
        let usage = store.usage().await.unwrap();
        if usage.full { Ok(()) } else { Err(usage) }
    })
    .await;

    // Writers do not stand in the way of removals, though they all wait at the same time.
    let filled = names(&*store, "fill/").await;
    let mut tasks = JoinSet::new();
    for (index, chunk) in filled.chunks(20).enumerate() {
        let removal = chunk.iter().fold(Txn::new(), |txn, name| txn.delete(key(name)));
        for txn in [removal, Txn::new().put(key(&format!("more/{index}")), "x")] {
            let store = store.clone();
            tasks.spawn(async move {
                let puts = txn.value_bytes() > 0;
                (puts, store.commit(txn).await)
            });
        }
    }
    while let Some(task) = tasks.join_next().await {
        match task.unwrap() {
            (true, Err(StoreError::Full(_))) | (false, Ok(Commit::Done(_))) => {}
            other => panic!("{other:?}"),
        }
    }
    assert!(names(&*store, "fill/").await.is_empty());
    assert!(matches!(
        store.announce(key("p"), "x".into(), std::time::Duration::from_secs(60)).await.err(),
        Some(StoreError::Full(_))
    ));

    let Ok(Commit::Done(now)) = store.commit(Txn::new().delete(key("before"))).await else { panic!("a removal must work") };
    store.compact(now).await.unwrap();
    if dies {
        etcd.kill(members - 1).unwrap();
    }
    // Compaction frees its pages in the background.
    let has_room = async || {
        store.reclaim().await.map_err(|error| error.to_string())?;
        let usage = store.usage().await.map_err(|error| error.to_string())?;
        if usage.full || usage.allocated_bytes > QUOTA / 2 { Err(format!("{usage:?}")) } else { Ok(()) }
    };
    eventually("there is room again", has_room).await;
    // With a member gone, a leader may have to be found first.
    eventually("it takes writes again", async || store.commit(Txn::new().put(key("after"), "x")).await).await;
    if dies {
        // Its file is as large as it was: it may say that it is full, until it has its turn.
        etcd.restart(members - 1).unwrap();
        eventually("there is room in all of them", has_room).await;
        eventually("it still takes writes", async || store.commit(Txn::new().put(key("after"), "y")).await).await;
    }
    assert_eq!(names(&*store, "").await, ["after"]);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_full_member_takes_removals_and_recovers() {
    fills_and_recovers(1, false).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn full_members_recover_one_after_the_other() {
    fills_and_recovers(3, false).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_full_store_recovers_without_a_member_that_is_gone() {
    fills_and_recovers(3, true).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn usage_is_known_while_a_member_is_away() {
    let mut etcd = Etcd::start(&Start::new(3)).unwrap();
    let store = open_etcd(options(&etcd, "/o/")).await.unwrap();
    put(&*store, "k", "x").await;
    etcd.kill(1).unwrap();
    let usage = eventually("usage", async || store.usage().await).await;
    assert!(usage.allocated_bytes > 0 && !usage.full, "{usage:?}");
    let refused = store.reclaim().await;
    assert!(matches!(refused, Ok(()) | Err(StoreError::Unavailable(_))), "{refused:?}");
}
