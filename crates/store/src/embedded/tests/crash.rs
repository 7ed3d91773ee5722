//! What a power cut leaves: everything that was synced, and any part of what was not.

use std::collections::BTreeMap;

use proptest::prelude::*;
use proptest::test_runner::{RngAlgorithm, TestRng};

use super::disk::{Op, apply};
use super::*;

type State = BTreeMap<String, Entry>;

/// What a run has done to its disk, and what its callers were told.
struct History {
    /// What the disk held before.
    image: Vec<u8>,
    ops: Vec<Op>,
    /// How many operations the disk had seen when a revision was acknowledged.
    acknowledged: Vec<(usize, Revision)>,
    /// The state at every revision.
    states: BTreeMap<Revision, State>,
}

/// Rounds of transactions that are committed at the same time, in groups as they fall.
async fn run(rng: &mut TestRng, rounds: usize) -> History {
    // A file gets its name only once it is whole, so a run begins with an empty store.
    let empty = Disk::default();
    drop(open(&empty).unwrap());
    let image = empty.image();
    let disk = Disk::recording(image.clone());
    let store = open(&disk).unwrap();
    let mut acknowledged = Vec::new();
    let mut txns = BTreeMap::new();
    let mut presences = Vec::new();
    for round in 0..rounds {
        if rng.random_range(0..6) == 0 {
            let name = format!("presence/{round}");
            presences.push(store.announce(key(&name), "here".into(), Duration::from_secs(600)).await.unwrap());
            let revision = store.get(&key(&name)).await.unwrap().unwrap().modified;
            txns.insert(revision, Txn::new().put(key(&name), "here"));
            acknowledged.push((disk.op_count(), revision));
        }
        let commits: Vec<_> = (0..rng.random_range(1..12))
            .map(|_| {
                let mut txn = Txn::new().put(key(&format!("last/{}", rng.random_range(0..5))), format!("{round}"));
                for index in 0..rng.random_range(0..5) {
                    let name = key(&format!("k/{index}/{}", rng.random_range(0..15)));
                    let size = [0, 10, 300, 3_000, 30_000][rng.random_range(0..5)];
                    txn = if rng.random_range(0..3) == 0 { txn.delete(name) } else { txn.put(name, vec![round as u8; size]) };
                }
                let (store, disk) = (Arc::clone(&store), disk.clone());
                tokio::spawn(async move {
                    let commit = store.commit(txn.clone()).await.unwrap();
                    (txn, commit, disk.op_count())
                })
            })
            .collect();
        for commit in commits {
            let (txn, Commit::Done(revision), ops) = commit.await.unwrap() else { panic!("a conflict of nothing") };
            txns.insert(revision, txn);
            acknowledged.push((ops, revision));
        }
    }
    drop(store);
    let mut states = BTreeMap::from([(0, State::new())]);
    let mut state = State::new();
    for (revision, txn) in txns {
        assert_eq!(states.len() as u64, revision, "every revision is one transaction");
        for change in txn.changes {
            let name = change.key().to_string();
            match change {
                Change::Put(key, value) => {
                    let created = state.get(&name).map_or(revision, |entry| entry.created);
                    state.insert(name, Entry { key, value, created, modified: revision });
                }
                Change::Delete(_) => drop(state.remove(&name)),
            }
        }
        states.insert(revision, state.clone());
    }
    History { image, ops: disk.ops(), acknowledged, states }
}

/// The disk after the power went at operation `cut`: all that was synced before, and a random part of the rest, some of it torn.
fn cut(image: &[u8], ops: &[Op], cut: usize, rng: &mut TestRng) -> Vec<u8> {
    let mut image = image.to_vec();
    let synced = ops[..cut].iter().rposition(|op| matches!(op, Op::Sync)).map_or(0, |at| at + 1);
    ops[..synced].iter().for_each(|op| apply(&mut image, op));
    let share = rng.random_range(0..=4);
    for op in &ops[synced..cut] {
        if rng.random_range(0..4) >= share {
            continue;
        }
        match op {
            Op::Write(offset, data) if rng.random_range(0..4) == 0 => {
                let torn = rng.random_range(0..=data.len());
                apply(&mut image, &Op::Write(*offset, data[..torn].to_vec()));
            }
            op => apply(&mut image, op),
        }
    }
    image
}

/// Opens what a cut left and holds it against the history: it is the state of one revision, which no acknowledged one is newer than.
/// Answers with that revision.
async fn check(history: &History, disk: &Disk, acknowledged: Revision) -> Revision {
    let store = open(disk).unwrap_or_else(|failure| panic!("not to be opened any more: {failure}"));
    let (entries, shown) = all(&store).await;
    // Removing presences is a revision of its own. What was cut off in an earlier attempt to open it may have removed them already.
    let matches = |revision: Revision, with_presences: bool| {
        let state = history.states.get(&revision)?;
        let has_presences = state.keys().any(|name| name.starts_with("presence/"));
        let expected = state.values().filter(|entry| !entry.key.as_str().starts_with("presence/")).cloned().collect::<Vec<_>>();
        (has_presences == with_presences && expected == entries).then_some(revision)
    };
    let revision = matches(shown, false).or_else(|| matches(shown.checked_sub(1)?, true));
    let revision = revision.unwrap_or_else(|| panic!("{} entries at {shown} are no state there was", entries.len()));
    assert!(revision >= acknowledged, "{revision} after {acknowledged} was acknowledged");
    assert_eq!(put(&store, "after", "x").await, Ok(Commit::Done(shown + 1)), "it goes on from there");
    revision
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 24, failure_persistence: None, max_shrink_iters: 50, ..ProptestConfig::default() })]

    /// Cut at any operation, and once more while the first cut is mended. A failure prints its seed.
    #[test]
    fn a_power_cut_loses_nothing_acknowledged(seed in any::<[u8; 32]>(), rounds in 1_usize..25) {
        let mut rng = TestRng::from_seed(RngAlgorithm::ChaCha, &seed);
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        runtime.block_on(async {
            let history = run(&mut rng, rounds).await;
            for _ in 0..10 {
                let at = rng.random_range(0..=history.ops.len());
                let acknowledged = history.acknowledged.iter().filter(|(ops, _)| *ops <= at).map(|(_, revision)| *revision).max();
                let acknowledged = acknowledged.unwrap_or(0);
                let image = cut(&history.image, &history.ops, at, &mut rng);
                let mending = Disk::recording(image.clone());
                let opened = open(&mending);
                prop_assert!(opened.is_ok(), "cut at {at} of {}: {:?}", history.ops.len(), opened.err());
                drop(opened);
                check(&history, &Disk::recording(image.clone()), acknowledged).await;
                let ops = mending.ops();
                let again = rng.random_range(0..=ops.len());
                check(&history, &Disk::recording(cut(&image, &ops, again, &mut rng)), acknowledged).await;
            }
            Ok(())
        })?;
    }
}
