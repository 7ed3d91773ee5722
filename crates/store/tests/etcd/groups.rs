//! Grouped transactions: each caller sees what it would see alone.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use octavius_store::{Change, Commit, Entry, Revision, Store, Txn};
use octavius_tests::Etcd;
use tokio::sync::Barrier;
use tokio::task::JoinSet;

use crate::{key, open, put};

/// The next number of the SplitMix64 sequence.
fn mix(state: &mut u64) -> u64 {
    *state = state.wrapping_add(0x9e37_79b9_7f4a_7c15);
    let z = (*state ^ (*state >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    let z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    z ^ (z >> 31)
}

/// A key's last write and value.
type State = BTreeMap<String, (Revision, Vec<u8>)>;

/// What one caller did and was told.
#[derive(Debug)]
struct Done {
    txn: Txn,
    answer: Commit,
}

fn holds(txn: &Txn, state: &State) -> bool {
    txn.conditions.iter().all(|condition| state.get(condition.key.as_str()).map_or(0, |(at, _)| *at) == condition.modified)
}

fn matches(read: &Option<Entry>, name: &str, state: &State) -> bool {
    match (read, state.get(name)) {
        (None, None) => true,
        (Some(entry), Some((at, value))) => entry.modified == *at && entry.value == value[..],
        _ => false,
    }
}

/// Random transactions by many callers on a few keys. A caller conditions on what it read, which others change meanwhile.
async fn caller(store: Arc<dyn Store>, mut seed: u64, txns: usize) -> Vec<Done> {
    let mut done = Vec::new();
    for _ in 0..txns {
        let mut below = |bound: u64| mix(&mut seed) % bound;
        let mut txn = Txn::new();
        for _ in 0..below(3) {
            let name = key(&format!("k{}", below(40)));
            let modified = store.get(&name).await.unwrap().map_or(0, |entry| entry.modified);
            txn = txn.when(name, modified);
        }
        for _ in 0..=below(3) {
            let name = key(&format!("k{}", below(40)));
            if txn.changes.iter().all(|change| *change.key() != name) {
                txn = if below(5) == 0 { txn.delete(name) } else { txn.put(name, format!("{}", below(u64::MAX))) };
            }
        }
        for _ in 0..below(3) {
            txn = txn.or_read(key(&format!("k{}", below(40))));
        }
        let answer = store.commit(txn.clone()).await.unwrap();
        done.push(Done { txn, answer });
    }
    done
}

#[tokio::test(flavor = "multi_thread")]
async fn many_callers_see_a_serial_order() {
    let seed: u64 = std::process::id().into();
    println!("seed {seed}");
    let etcd = Etcd::single().unwrap();
    let store = open(&etcd, "/o/").await;
    let mut callers = JoinSet::new();
    for index in 0..64 {
        callers.spawn(caller(Arc::clone(&store), seed + index * 7919, 25));
    }
    let mut by_revision: BTreeMap<Revision, Vec<Txn>> = BTreeMap::new();
    let mut conflicts = Vec::new();
    while let Some(done) = callers.join_next().await {
        for Done { txn, answer } in done.unwrap() {
            match answer {
                Commit::Done(revision) => by_revision.entry(revision).or_default().push(txn),
                Commit::Conflict(reads) => conflicts.push((txn, reads)),
            }
        }
    }
    let mut state = State::new();
    let mut states = vec![state.clone()];
    for (revision, txns) in &by_revision {
        // A removal of what is not there makes no revision of its own: it shares that of the transaction before it.
        let before = state.clone();
        let mut written = BTreeSet::new();
        for txn in txns {
            let alone_later =
                txn.changes.iter().all(|change| matches!(change, Change::Delete(key) if !state.contains_key(key.as_str())));
            assert!(holds(txn, &before) || (alone_later && holds(txn, &state)), "{txn:?} at {revision}");
            for change in &txn.changes {
                match change {
                    Change::Put(key, value) => {
                        assert!(written.insert(key.clone()), "{key} is written twice at {revision}");
                        state.insert(key.to_string(), (*revision, value.to_vec()));
                    }
                    Change::Delete(key) => drop(state.remove(key.as_str())),
                }
            }
        }
        states.push(state.clone());
    }
    for (txn, reads) in &conflicts {
        let is_so = |state: &State| {
            !holds(txn, state)
                && reads.len() == txn.otherwise.len()
                && reads.iter().zip(&txn.otherwise).all(|(read, key)| matches(read, key.as_str(), state))
        };
        assert!(states.iter().any(is_so), "{txn:?} was told {reads:?}, which was never so");
    }
    for index in 0..40 {
        let name = format!("k{index}");
        let entry = store.get(&key(&name)).await.unwrap();
        assert!(matches(&entry, &name, &state), "{name}: {entry:?}, expected {:?}", state.get(&name));
    }
    let grouped = by_revision.values().filter(|txns| txns.len() > 1).count();
    println!("{} revisions, {grouped} of several transactions, {} conflicts", by_revision.len(), conflicts.len());
    assert!(grouped > 10 && conflicts.len() > 10, "the run shows nothing");
}

#[tokio::test(flavor = "multi_thread")]
async fn losers_do_not_harm_the_others() {
    const CALLERS: usize = 200;
    let etcd = Etcd::single().unwrap();
    let store = open(&etcd, "/o/").await;
    let taken = put(&*store, "taken", "x").await;
    let start = Arc::new(Barrier::new(CALLERS));
    let mut callers = JoinSet::new();
    for index in 0..CALLERS {
        let (store, start) = (Arc::clone(&store), Arc::clone(&start));
        callers.spawn(async move {
            let txn = Txn::new().put(key(&format!("k{index}")), "x").or_read(key("taken"));
            let txn = match index % 5 {
                0 => txn.absent(key("taken")),
                1 => txn.when(key("taken"), taken),
                2 => txn.absent(key(&format!("k{index}"))),
                _ => txn,
            };
            start.wait().await;
            (index, store.commit(txn).await.unwrap())
        });
    }
    let mut revisions = BTreeSet::new();
    while let Some(told) = callers.join_next().await {
        match told.unwrap() {
            (index, Commit::Conflict(reads)) if index % 5 == 0 => {
                assert_eq!(reads[0].as_ref().unwrap().modified, taken);
            }
            (index, Commit::Done(revision)) if index % 5 != 0 => drop(revisions.insert(revision)),
            other => panic!("{other:?}"),
        }
    }
    for index in 0..CALLERS {
        assert_eq!(store.get(&key(&format!("k{index}"))).await.unwrap().is_some(), index % 5 != 0, "k{index}");
    }
    assert!(revisions.len() < CALLERS / 4, "{} revisions: nothing was grouped", revisions.len());
}

/// As when many apply one catalogue, or many controllers claim one execution: one wins, and that all the others lose costs hardly more than
/// that one does.
#[tokio::test(flavor = "multi_thread")]
async fn many_rivals_for_one_key_cost_a_few_writes() {
    const RIVALS: usize = 200;
    let etcd = Etcd::single().unwrap();
    let store = open(&etcd, "/o/").await;
    put(&*store, "head", "0").await;
    for round in 0..5 {
        let head = store.get(&key("head")).await.unwrap().unwrap();
        let before = etcd.proposals(0).unwrap();
        let start = Arc::new(Barrier::new(RIVALS));
        let mut rivals = JoinSet::new();
        for rival in 0..RIVALS {
            let (store, start) = (Arc::clone(&store), Arc::clone(&start));
            let txn = Txn::new().unchanged(&head).put(key("head"), format!("{round}/{rival}")).or_read(key("head"));
            rivals.spawn(async move {
                start.wait().await;
                (rival, store.commit(txn).await.unwrap())
            });
        }
        let (mut won, mut lost) = (Vec::new(), Vec::new());
        while let Some(answer) = rivals.join_next().await {
            match answer.unwrap() {
                (rival, Commit::Done(_)) => won.push(format!("{round}/{rival}")),
                (_, Commit::Conflict(mut read)) => lost.push(read.pop().flatten().unwrap().value),
            }
        }
        assert_eq!((won.len(), lost.len()), (1, RIVALS - 1), "{won:?}");
        assert!(lost.iter().all(|seen| seen == won[0].as_bytes()), "every loser is told what won");
        let proposals = etcd.proposals(0).unwrap() - before;
        assert!(proposals < 40, "{proposals} proposals for {RIVALS} rivals");
    }
}
