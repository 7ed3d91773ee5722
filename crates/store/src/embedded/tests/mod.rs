//! Tests that need a disk of their own: crashes, faults, and how often the disk is waited for.

#![expect(clippy::await_holding_lock, reason = "the lock is what holds the disk up while commits are asked for")]

mod crash;
mod disk;
mod faults;

use std::sync::atomic::{AtomicUsize, Ordering};

use super::*;
use crate::api::{Change, Event, WatchBatch};
use disk::Disk;

fn key(text: &str) -> Key {
    Key::new(text)
}

fn open(disk: &Disk) -> Result<Arc<Embedded>, Failure> {
    open_with(disk, &EmbeddedOptions::default())
}

fn open_with(disk: &Disk, options: &EmbeddedOptions) -> Result<Arc<Embedded>, Failure> {
    let disk = disk.clone();
    Embedded::open(file::opener_on(options.cache_bytes, move || Ok(disk.clone())), options).map(Arc::new)
}

async fn put(store: &Embedded, name: &str, value: impl Into<Bytes>) -> Result<Commit, StoreError> {
    store.commit(Txn::new().put(key(name), value)).await
}

/// The whole state, and its revision.
async fn all(store: &Embedded) -> (Vec<Entry>, Revision) {
    let mut entries = Vec::new();
    let mut range = Some(Range::of(key(""), 10_000));
    let mut revision = 0;
    while let Some(asked) = range {
        let page = store.range(&asked).await.unwrap();
        range = asked.next(&page);
        revision = page.revision;
        entries.extend(page.entries);
    }
    (entries, revision)
}

#[tokio::test]
async fn a_lone_commit_waits_for_the_disk_once() {
    let disk = Disk::default();
    let store = open(&disk).unwrap();
    put(&store, "a", "1").await.unwrap();
    for round in 0..10 {
        let before = disk.syncs();
        put(&store, "a", format!("{round}")).await.unwrap();
        assert_eq!(disk.syncs() - before, 1);
        assert_eq!(store.commit(Txn::new().absent(key("a"))).await, Ok(Commit::Conflict(vec![])));
        assert_eq!(disk.syncs() - before, 1, "a conflict writes nothing");
    }
}

/// Commits all of these while the disk is held up, so that none but the first is written before all are asked for.
async fn at_once(disk: &Disk, store: &Arc<Embedded>, txns: impl Iterator<Item = Txn>) -> Vec<Commit> {
    let gate = disk.hold_syncs();
    let asked = Arc::new(AtomicUsize::new(0));
    let commits: Vec<_> = txns
        .map(|txn| {
            let (store, asked) = (Arc::clone(store), Arc::clone(&asked));
            tokio::spawn(async move {
                // On a runtime of one thread nothing comes between this and the asking.
                asked.fetch_add(1, Ordering::Relaxed);
                store.commit(txn).await.unwrap()
            })
        })
        .collect();
    while asked.load(Ordering::Relaxed) < commits.len() {
        tokio::task::yield_now().await;
    }
    drop(gate);
    let mut answers = Vec::new();
    for commit in commits {
        answers.push(commit.await.unwrap());
    }
    answers
}

#[tokio::test]
async fn what_waits_while_the_disk_is_busy_is_one_group() {
    let disk = Disk::default();
    let store = open(&disk).unwrap();
    let before = disk.syncs();
    let answers = at_once(&disk, &store, (0..500).map(|index| Txn::new().put(key(&format!("k{index}")), "x"))).await;
    assert_eq!(answers, (1..=500).map(Commit::Done).collect::<Vec<_>>(), "each is a revision of its own, in the order asked");
    // One for the group that holds the disk up, one for all the others, and what it takes to let the file grow.
    assert!(disk.syncs() - before <= 5, "{} waits for 500 commits", disk.syncs() - before);
}

#[tokio::test]
async fn transactions_of_one_group_see_each_other() {
    let disk = Disk::default();
    let store = open(&disk).unwrap();
    let racer = |index| Txn::new().absent(key("one")).put(key("one"), format!("{index}")).or_read(key("one"));
    let txns = [Txn::new().put(key("first"), "x")].into_iter().chain((0..5).map(racer));
    let answers = at_once(&disk, &store, txns).await;
    let lost = Commit::Conflict(vec![store.get(&key("one")).await.unwrap()]);
    assert_eq!(answers[..2], [Commit::Done(1), Commit::Done(2)]);
    assert!(answers[2..].iter().all(|answer| *answer == lost), "{answers:?}");
}

#[tokio::test]
async fn closing_answers_what_was_asked_and_ends_watches() {
    let disk = Disk::default();
    let store = open(&disk).unwrap();
    let mut watch = store.watch(&key(""), 0).await.unwrap();
    let presence = store.announce(key("p"), "x".into(), Duration::from_secs(60)).await.unwrap();
    let gate = disk.hold_syncs();
    let (reply, answer) = oneshot::channel();
    store.shared.send(Request::Commit { txn: Txn::new().put(key("late"), "x"), reply }).unwrap_or_else(|error| panic!("{error}"));
    drop(gate);
    drop(store);
    assert_eq!(answer.await, Ok(Ok(Commit::Done(2))));
    assert_eq!(watch.next().await.map(|batch| batch.revision), Ok(1));
    assert_eq!(watch.next().await.map(|batch| batch.revision), Ok(2));
    for _ in 0..2 {
        assert!(matches!(watch.next().await, Err(StoreError::Unavailable(_))));
    }
    assert!(matches!(presence.renew().await, Err(StoreError::Unavailable(_))));
    assert!(matches!(presence.withdraw().await, Err(StoreError::Unavailable(_))));

    let store = open(&disk).unwrap();
    let (entries, revision) = all(&store).await;
    let names: Vec<_> = entries.iter().map(|entry| entry.key.as_str()).collect();
    assert_eq!((names, revision), (vec!["late"], 3), "a presence does not outlive its process, and its removal is a revision");
    assert!(matches!(store.watch(&key(""), 2).await.err(), Some(StoreError::Compacted { asked: 2, oldest: 3 })));
}

#[tokio::test]
async fn a_presence_that_is_plainly_written_stays() {
    let disk = Disk::default();
    let store = open(&disk).unwrap();
    let presence = store.announce(key("p"), "x".into(), Duration::from_secs(60)).await.unwrap();
    put(&store, "p", "y").await.unwrap();
    assert_eq!(presence.renew().await, Err(StoreError::PresenceLost));
    presence.withdraw().await.unwrap();
    assert_eq!(store.get(&key("p")).await.unwrap().unwrap().value, "y");
    drop(store);
    assert_eq!(all(&open(&disk).unwrap()).await.0.len(), 1, "also when the store is opened again");
}

#[tokio::test]
async fn a_slow_watch_ends_and_memory_stays_bounded() {
    let disk = Disk::default();
    let options = EmbeddedOptions { history_changes: 10, ..EmbeddedOptions::default() };
    let store = open_with(&disk, &options).unwrap();
    let mut slow = store.watch(&key("a/"), 0).await.unwrap();
    let mut quiet = store.watch(&key("b/"), 0).await.unwrap();
    for index in 0..11 {
        put(&store, &format!("a/{index}"), "x").await.unwrap();
    }
    let compacted = Err(StoreError::Compacted { asked: 0, oldest: 1 });
    assert_eq!((slow.next().await, slow.next().await), (compacted.clone(), compacted));
    put(&store, "b/1", "x").await.unwrap();
    assert_eq!(quiet.next().await.map(|batch| batch.revision), Ok(12), "a watch of which nothing was missed goes on");
    assert!(store.range(&Range { at: Some(1), ..Range::of(key(""), 5) }).await.is_err());
    assert_eq!(store.range(&Range { at: Some(2), ..Range::of(key(""), 5) }).await.unwrap().entries.len(), 2);

    let options = EmbeddedOptions { history_bytes: 100_000, ..EmbeddedOptions::default() };
    let store = open_with(&Disk::default(), &options).unwrap();
    for index in 0..50 {
        put(&store, &format!("a/{index}"), vec![0; 10_000]).await.unwrap();
    }
    let answer = store.watch(&key("a/"), 30).await.err();
    assert!(matches!(answer, Some(StoreError::Compacted { oldest: 40..=42, .. })), "{answer:?}");
}

#[tokio::test]
async fn watches_cost_nothing_to_those_who_write_elsewhere() {
    let mut feed = Feed::new(0, 100, 1 << 20);
    let ids: Vec<_> = (0..5_000).map(|index| feed.watch(&key(&format!("exec/{index:04}")), 0).unwrap().0).collect();
    let all = feed.watch(&key(""), 0).unwrap().0;
    let change = |name: &str| feed::Change {
        revision: 1,
        key: key(name),
        before: None,
        after: Some(file::Stored { created: 1, modified: 1, lease: 0, value: Bytes::new() }),
    };
    feed.stage(vec![change("exec/0007"), change("exec/0007/more"), change("exec/none"), change("e")]);
    assert!(feed.next(ids[7]).is_none(), "nothing is seen before it is durable");
    assert_eq!(feed.publish(1).len(), 2, "one of 5,000, and the one that watches all");
    let Some(Ok(WatchBatch { revision: 1, events })) = feed.next(ids[7]) else { panic!("nothing was delivered") };
    let names: Vec<_> = events.iter().map(|event| event.key().as_str()).collect();
    assert_eq!(names, ["exec/0007", "exec/0007/more"]);
    assert_eq!(feed.next(all).unwrap().unwrap().events.len(), 4);
    assert_eq!(feed.watchers(), 5_001);
    ids.into_iter().chain([all]).for_each(|id| feed.unwatch(id));
    assert_eq!(feed.watchers(), 0);
}

#[tokio::test]
async fn dropping_a_watch_unregisters_it() {
    let store = open(&Disk::default()).unwrap();
    let watches = [store.watch(&key("a"), 0).await.unwrap(), store.watch(&key("a"), 0).await.unwrap()];
    assert_eq!(lock(&store.shared.feed).watchers(), 2);
    drop(watches);
    assert_eq!(lock(&store.shared.feed).watchers(), 0);
}

#[tokio::test]
async fn a_file_of_a_newer_format_is_refused() {
    let disk = Disk::default();
    drop(open(&disk).unwrap());
    let database = Database::builder().create_with_backend(disk.clone()).unwrap();
    let txn = database.begin_write().unwrap();
    txn.open_table(file::META).unwrap().insert("format", 2).unwrap();
    txn.commit().unwrap();
    drop(database);
    let error = open(&disk).err().map(|failure| failure.at(Path::new("somewhere")));
    let expected = "somewhere: written in format 2, this version reads 1";
    assert_eq!(error, Some(StoreError::Unreadable(expected.to_owned())));
}
