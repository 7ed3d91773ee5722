//! Keys, conditions, ranges and limits.

use std::sync::Arc;

use bytes::Bytes;
use octavius_core::limit::STORED_VALUE_BYTES;
use tokio::task::JoinSet;

use super::{done, key, list, names, put};
use crate::api::{Commit, Key, Range, Store, StoreError, Txn};

pub(super) async fn keys_come_and_go(store: &dyn Store) {
    assert_eq!(store.get(&key("k")).await, Ok(None));
    let first = put(store, "k", "one").await;
    let entry = store.get(&key("k")).await.unwrap().unwrap();
    assert_eq!((entry.key.as_str(), &entry.value[..], entry.created, entry.modified), ("k", &b"one"[..], first, first));
    let second = put(store, "k", "two").await;
    let entry = store.get(&key("k")).await.unwrap().unwrap();
    assert_eq!((&entry.value[..], entry.created, entry.modified), (&b"two"[..], first, second));
    done(store, Txn::new().delete(key("k"))).await;
    assert_eq!(store.get(&key("k")).await, Ok(None));
    let again = put(store, "k", "three").await;
    let entry = store.get(&key("k")).await.unwrap().unwrap();
    assert_eq!((entry.created, entry.modified), (again, again), "a key that comes back is a new one");
    done(store, Txn::new().delete(key("never was"))).await;
}

pub(super) async fn values_hold_any_bytes(store: &dyn Store) {
    let all: Vec<u8> = (0..=255).collect();
    for (name, value) in [("empty", vec![]), ("nul", vec![0]), ("all", all), ("large", vec![0xff; STORED_VALUE_BYTES])] {
        put(store, name, value.clone()).await;
        let entry = store.get(&key(name)).await.unwrap().unwrap();
        assert!(entry.value == value, "{name} came back as {} bytes", entry.value.len());
    }
}

pub(super) async fn conditions_hold_all_or_nothing_is_written(store: &dyn Store) {
    let conflict = Ok(Commit::Conflict(vec![]));
    done(store, Txn::new().absent(key("a")).put(key("a"), "1")).await;
    assert_eq!(store.commit(Txn::new().absent(key("a")).put(key("a"), "2")).await, conflict);
    let entry = store.get(&key("a")).await.unwrap().unwrap();
    assert_eq!(&entry.value[..], b"1");

    done(store, Txn::new().unchanged(&entry).put(key("a"), "3")).await;
    assert_eq!(store.commit(Txn::new().unchanged(&entry).put(key("a"), "4")).await, conflict, "the entry is an older one");
    let entry = store.get(&key("a")).await.unwrap().unwrap();

    let txn = Txn::new().unchanged(&entry).absent(key("b"));
    assert_eq!(
        store.commit(txn.clone().when(key("c"), 1).put(key("a"), "5").put(key("b"), "5")).await,
        conflict,
        "one does not hold"
    );
    assert_eq!((names(store, "").await, store.get(&key("a")).await), (vec!["a".to_owned()], Ok(Some(entry))));
    done(store, txn.absent(key("c")).put(key("b"), "6").delete(key("a"))).await;
    assert_eq!(names(store, "").await, ["b"]);

    let gone = store.get(&key("b")).await.unwrap().unwrap();
    done(store, Txn::new().delete(key("b"))).await;
    assert_eq!(store.commit(Txn::new().unchanged(&gone).put(key("d"), "7")).await, conflict, "the key is gone");
    done(store, Txn::new().absent(key("b"))).await;
    assert_eq!(store.commit(Txn::new().when(key("b"), gone.modified)).await, conflict, "conditions alone are checked too");
}

pub(super) async fn a_conflict_reads_what_was_asked(store: &dyn Store) {
    put(store, "a", "1").await;
    put(store, "b", "2").await;
    let (a, b) = (store.get(&key("a")).await.unwrap(), store.get(&key("b")).await.unwrap());
    let txn = Txn::new().absent(key("a")).put(key("a"), "3").or_read(key("b")).or_read(key("none")).or_read(key("a"));
    assert_eq!(store.commit(txn).await, Ok(Commit::Conflict(vec![b, None, a])), "in the order asked");
}

pub(super) async fn revisions_grow(store: &dyn Store) {
    let mut last = store.range(&Range::of(key(""), 1)).await.unwrap().revision;
    for round in 0..20 {
        let revision = put(store, "k", format!("{round}")).await;
        assert!(revision > last, "{revision} after {last}");
        assert_eq!(store.range(&Range::of(key("none"), 1)).await.unwrap().revision, revision);
        last = revision;
        assert_eq!(store.commit(Txn::new().absent(key("k")).put(key("k"), "no")).await, Ok(Commit::Conflict(vec![])));
    }
    assert_eq!(store.range(&Range::of(key(""), 1)).await.unwrap().revision, last, "a conflict is no revision");
}

pub(super) async fn racers_lose_no_update(store: Arc<dyn Store>) {
    const RACERS: u64 = 50;
    const ROUNDS: u64 = 4;
    put(&*store, "n", "0").await;
    let mut racers = JoinSet::new();
    for _ in 0..RACERS {
        let store = Arc::clone(&store);
        racers.spawn(async move {
            for _ in 0..ROUNDS {
                let mut entry = store.get(&key("n")).await.unwrap().unwrap();
                loop {
                    let n: u64 = std::str::from_utf8(&entry.value).unwrap().parse().unwrap();
                    let txn = Txn::new().unchanged(&entry).put(key("n"), format!("{}", n + 1)).or_read(key("n"));
                    match store.commit(txn).await.unwrap() {
                        Commit::Done(_) => break,
                        Commit::Conflict(mut reads) => entry = reads.remove(0).unwrap(),
                    }
                }
            }
        });
    }
    while let Some(racer) = racers.join_next().await {
        racer.unwrap();
    }
    let entry = store.get(&key("n")).await.unwrap().unwrap();
    assert_eq!(&entry.value[..], format!("{}", RACERS * ROUNDS).as_bytes());
}

pub(super) async fn ranges_are_ordered_and_cut_at_prefixes(store: &dyn Store) {
    let all = ["A", "a", "a-", "a/", "a/b", "a/b/c", "a/bc", "a/~", "a0", "b", "~"];
    for name in all.iter().rev() {
        put(store, name, *name).await;
    }
    assert_eq!(names(store, "").await, all, "in the order of their bytes");
    assert_eq!(names(store, "a/").await, ["a/", "a/b", "a/b/c", "a/bc", "a/~"]);
    assert_eq!(names(store, "a/b").await, ["a/b", "a/b/c", "a/bc"]);
    assert_eq!(names(store, "a/b/").await, ["a/b/c"]);
    assert_eq!(names(store, "~").await, ["~"]);
    assert!(names(store, "a/c").await.is_empty());

    for (after, expected) in
        [("a/b", vec!["a/b/c", "a/bc", "a/~"]), ("a/bb", vec!["a/bc", "a/~"]), ("a/~", vec![]), ("b", vec![])]
    {
        let page = store.range(&Range { after: Some(key(after)), ..Range::of(key("a/"), 10) }).await.unwrap();
        let names: Vec<_> = page.entries.iter().map(|entry| entry.key.as_str()).collect();
        assert_eq!((names, page.more), (expected, false), "after {after}");
    }
    let page = store.range(&Range { after: Some(key("A")), ..Range::of(key("a/"), 10) }).await.unwrap();
    assert_eq!(page.entries.len(), 5, "a key before the prefix leaves nothing out");
}

pub(super) async fn pages_end_by_limit_and_by_size(store: &dyn Store) {
    for index in 0..5 {
        put(store, &format!("few/{index}"), "x").await;
    }
    for limit in 1..=6 {
        let page = store.range(&Range::of(key("few/"), limit)).await.unwrap();
        assert_eq!((page.entries.len(), page.more), (limit.min(5), limit < 5));
        let (entries, _) = list(store, Range::of(key("few/"), limit)).await.unwrap();
        assert_eq!(entries.len(), 5, "in pages of {limit}");
    }
    let value = Bytes::from(vec![1; STORED_VALUE_BYTES]);
    let count = Range::MAX_BYTES / STORED_VALUE_BYTES + 6;
    for start in (0..count).step_by(7) {
        let keys = (start..count.min(start + 7)).map(|index| key(&format!("large/{index:03}")));
        done(store, keys.fold(Txn::new(), |txn, key| txn.put(key, value.clone()))).await;
    }
    let page = store.range(&Range::of(key("large/"), 1000)).await.unwrap();
    let bytes: usize = page.entries.iter().map(|entry| entry.value.len()).sum();
    assert!(page.more && bytes <= Range::MAX_BYTES && bytes > 0, "{bytes} bytes in one page");
    let (entries, _) = list(store, Range::of(key("large/"), 1000)).await.unwrap();
    assert_eq!(entries.len(), count);
}

pub(super) async fn pages_of_one_revision_show_one_state(store: Arc<dyn Store>) {
    fn all(value: usize) -> Txn {
        (0..20).fold(Txn::new(), |txn, index| {
            // Some keys come and go, so that a page of an older revision has to bring keys back and to leave keys out.
            let key = key(&format!("p/{index:02}"));
            if index % 5 == 4 && value % 2 == 1 { txn.delete(key) } else { txn.put(key, format!("{value}")) }
        })
    }
    done(&*store, all(0)).await;
    let writer = tokio::spawn({
        let store = Arc::clone(&store);
        async move {
            for value in 1..=60 {
                done(&*store, all(value)).await;
            }
        }
    });
    let mut rounds = 0;
    while !writer.is_finished() || rounds == 0 {
        let (entries, revision) = list(&*store, Range::of(key("p/"), 3)).await.unwrap();
        let value: usize = std::str::from_utf8(&entries[0].value).unwrap().parse().unwrap();
        assert!(
            entries.iter().all(|entry| entry.value == entries[0].value && entry.modified == revision),
            "{entries:?} at {revision}"
        );
        assert_eq!(entries.len(), if value % 2 == 1 { 16 } else { 20 }, "at {revision}");
        rounds += 1;
        tokio::task::yield_now().await;
    }
    writer.await.unwrap();
}

/// Transactions over each limit.
fn refused() -> Vec<(&'static str, Txn)> {
    let keys = |count: usize| (0..count).map(|index| key(&format!("k{index}")));
    let value = |size: usize| Bytes::from(vec![0; size]);
    vec![
        ("too many changes", keys(Txn::MAX_OPERATIONS + 1).fold(Txn::new(), |txn, key| txn.put(key, "x"))),
        ("too many conditions", keys(Txn::MAX_OPERATIONS).fold(Txn::new().put(key("a"), "x"), Txn::absent)),
        ("too many reads", keys(Txn::MAX_OPERATIONS).fold(Txn::new().put(key("a"), "x"), Txn::or_read)),
        ("too large a value", Txn::new().put(key("b"), "x").put(key("a"), value(STORED_VALUE_BYTES + 1))),
        ("too large in all", keys(9).fold(Txn::new(), |txn, key| txn.put(key, value(Txn::MAX_BYTES / 9 + 1)))),
        ("put twice", Txn::new().put(key("a"), "x").put(key("a"), "y")),
        ("put and deleted", Txn::new().put(key("a"), "x").delete(key("a"))),
        ("a key of nothing", Txn::new().put(key("a"), "x").put(key(""), "x")),
        ("too long a key", Txn::new().put(Key::new("k".repeat(Key::MAX_BYTES + 1)), "x")),
    ]
}

pub(super) async fn limits_refuse_and_change_nothing(store: &dyn Store) {
    let before = put(store, "before", "x").await;
    for (why, txn) in refused() {
        let answer = store.commit(txn).await;
        assert!(matches!(answer, Err(StoreError::Invalid(_))), "{why}: {answer:?}");
    }
    let answer = store.announce(key("p"), vec![0; STORED_VALUE_BYTES + 1].into(), std::time::Duration::from_secs(60)).await;
    assert!(matches!(answer.err(), Some(StoreError::Invalid(_))), "too large a presence");
    assert!(store.range(&Range::of(key(""), 0)).await.is_err(), "a page of nothing");
    assert_eq!(names(store, "").await, ["before"]);
    assert_eq!(store.range(&Range::of(key(""), 1)).await.unwrap().revision, before);
}

pub(super) async fn what_limits_allow_is_taken(store: &dyn Store) {
    let keys = (0..Txn::MAX_OPERATIONS).map(|index| key(&format!("n/{index}")));
    done(store, keys.fold(Txn::new(), |txn, key| txn.put(key, "x"))).await;
    let keys = (0..Txn::MAX_BYTES / STORED_VALUE_BYTES).map(|index| key(&format!("s/{index}")));
    done(store, keys.fold(Txn::new(), |txn, key| txn.put(key, vec![1; STORED_VALUE_BYTES]))).await;
    done(store, Txn::new().put(Key::new("k".repeat(Key::MAX_BYTES)), "x")).await;
    let keys = (0..Txn::MAX_OPERATIONS).map(|index| key(&format!("n/{index}")));
    done(store, keys.fold(Txn::new(), Txn::delete)).await;
    assert!(names(store, "n/").await.is_empty());
}
