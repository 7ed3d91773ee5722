//! A store compared, step by step, with a plain map.

use std::collections::BTreeMap;

use bytes::Bytes;

use super::{key, list, next, short};
use crate::api::{Change, Commit, Entry, Range, Revision, Store, Txn};

/// Keys that lie close to each other, so that steps meet and prefixes have edges.
const KEYS: [&str; 12] = ["a", "a/", "a/b", "a/b/c", "a/b/d", "a/bc", "a0", "b", "b/b", "b/b/b", "c", "~"];
const PREFIXES: [&str; 9] = ["", "a", "a/", "a/b", "a/b/", "b", "b/", "c", "z"];

type State = BTreeMap<String, Entry>;

/// Numbers that determine a run of [`follows_model`], from a seed.
pub(super) fn choices(seed: u64, steps: usize) -> Vec<u64> {
    let mut state = seed;
    (0..steps).map(|_| mix(&mut state)).collect()
}

/// The next number of the SplitMix64 sequence.
fn mix(state: &mut u64) -> u64 {
    *state = state.wrapping_add(0x9e37_79b9_7f4a_7c15);
    let z = (*state ^ (*state >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    let z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    z ^ (z >> 31)
}

/// One step's own choices, all from its one number.
struct Choice(u64);

impl Choice {
    fn below(&mut self, bound: usize) -> usize {
        (mix(&mut self.0) % bound as u64) as usize
    }

    fn of<'a>(&mut self, texts: &[&'a str]) -> &'a str {
        texts[self.below(texts.len())]
    }
}

/// What the store should be.
struct Model {
    now: State,
    /// Every state there was, by its revision.
    past: BTreeMap<Revision, State>,
    /// Every change there was, as a watch of everything tells it.
    events: Vec<(Revision, Vec<String>)>,
}

impl Model {
    fn txn(&self, choice: &mut Choice) -> Txn {
        let mut txn = Txn::new();
        for _ in 0..choice.below(3) {
            let name = choice.of(&KEYS);
            let modified = self.now.get(name).map_or(0, |entry| entry.modified);
            // Most hold; some name another revision.
            txn = txn.when(key(name), if choice.below(5) == 0 { modified + 1 } else { modified });
        }
        for _ in 0..choice.below(6) {
            let name = key(choice.of(&KEYS));
            if txn.changes.iter().any(|change| *change.key() == name) {
                continue;
            }
            txn = if choice.below(3) == 0 {
                txn.delete(name)
            } else {
                let size = [0, 3, 40, 9000][choice.below(4)];
                txn.put(name, Bytes::from(vec![b'a' + choice.below(26) as u8; size]))
            };
        }
        for _ in 0..choice.below(3) {
            txn = txn.or_read(key(choice.of(&KEYS)));
        }
        txn
    }

    /// Holds the store's answer against what must come of `txn`, and takes the change over.
    fn commit(&mut self, txn: &Txn, answer: &Commit) {
        let holds = txn
            .conditions
            .iter()
            .all(|condition| self.now.get(condition.key.as_str()).map_or(0, |entry| entry.modified) == condition.modified);
        if !holds {
            let reads = txn.otherwise.iter().map(|key| self.now.get(key.as_str()).cloned()).collect();
            return assert_eq!(*answer, Commit::Conflict(reads), "{txn:?}");
        }
        let Commit::Done(revision) = *answer else { panic!("{txn:?} must be done: {answer:?}") };
        let mut events = Vec::new();
        for change in &txn.changes {
            let name = change.key().to_string();
            match change {
                Change::Put(key, value) => {
                    let created = self.now.get(&name).map_or(revision, |entry| entry.created);
                    let entry = Entry { key: key.clone(), value: value.clone(), created, modified: revision };
                    events.push(format!("{name}={}", String::from_utf8_lossy(value)));
                    self.now.insert(name, entry);
                }
                Change::Delete(_) => {
                    if self.now.remove(&name).is_some() {
                        events.push(format!("{name} gone"));
                    }
                }
            }
        }
        if !events.is_empty() {
            let last = self.past.last_key_value().map_or(0, |(last, _)| *last);
            assert!(revision > last, "{revision} after {last}");
            events.sort();
            self.events.push((revision, events));
            self.past.insert(revision, self.now.clone());
        }
    }
}

/// Takes as many random steps as there are `choices` (any numbers; the same ones are the same run) on an empty store: transactions,
/// reads, and reads of older revisions, each compared with a model; at the end a watch of all that happened.
pub async fn follows_model(store: &dyn Store, choices: &[u64]) {
    let start = store.range(&Range::of(key(""), 1)).await.unwrap().revision;
    let mut model = Model { now: State::new(), past: BTreeMap::from([(start, State::new())]), events: Vec::new() };
    for number in choices {
        let mut choice = Choice(*number);
        match choice.below(10) {
            0 => {
                let name = choice.of(&KEYS);
                assert_eq!(store.get(&key(name)).await.unwrap().as_ref(), model.now.get(name), "{name}");
            }
            1..=3 => {
                let (revision, state) = model.past.iter().nth(choice.below(model.past.len())).unwrap();
                let (prefix, limit) = (choice.of(&PREFIXES), 1 + choice.below(4));
                let range = Range { at: Some(*revision), ..Range::of(key(prefix), limit) };
                let (entries, shown) = list(store, range).await.unwrap();
                let expected: Vec<_> = state.values().filter(|entry| entry.key.as_str().starts_with(prefix)).cloned().collect();
                assert_eq!((entries, shown), (expected, *revision), "{prefix} at {revision} in pages of {limit}");
            }
            _ => {
                let txn = model.txn(&mut choice);
                let answer = store.commit(txn.clone()).await.unwrap();
                model.commit(&txn, &answer);
            }
        }
        let (entries, revision) = list(store, Range::of(key(""), 1000)).await.unwrap();
        assert_eq!(entries, model.now.values().cloned().collect::<Vec<_>>());
        assert_eq!(Some(&revision), model.past.last_key_value().map(|(revision, _)| revision));
    }
    let mut watch = store.watch(&key(""), start).await.unwrap();
    for (revision, expected) in model.events {
        let batch = next(&mut watch).await;
        let mut events: Vec<_> = batch.events.iter().map(short).collect();
        events.sort();
        assert_eq!((batch.revision, events), (revision, expected));
    }
}
