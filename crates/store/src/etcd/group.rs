//! Which transactions may go to etcd as one, and what its answer means for each of them.

use std::collections::{HashMap, HashSet, VecDeque};

use etcd_client::proto::{PbKeyValue, PbTxnOpResponse, PbTxnResponse};
use etcd_client::{Compare, CompareOp, GetOptions, TxnOp};

use super::keys::{Prefix, number, revision};
use crate::api::{Change, Commit, Condition, Entry, Key, Revision, StoreError, Txn};

/// How many waiting transactions may be passed over, because they do not go with the group, before the search for more ends.
const PASSED_OVER: usize = 64;

/// Most conditions, changes or reads of a group: what etcd takes in one transaction where it is not told otherwise (`--max-txn-ops`).
const OPERATIONS: usize = 128;

/// A group in the making.
///
/// Two transactions go together only where neither writes a key that the other writes or has a condition on: then each succeeds together
/// with the other exactly where it would alone, before or after it. What only removes stays among its own kind, because that is what etcd
/// takes when it is full.
#[derive(Default)]
struct Shape {
    changes: usize,
    bytes: usize,
    written: HashSet<Key>,
    /// Keys that a condition is on, and how that asks that they are.
    conditions: HashSet<(Key, Revision)>,
    asked: HashSet<Key>,
    /// Keys that would be read, were a condition not to hold.
    read: HashSet<Key>,
    puts: bool,
}

impl Shape {
    fn takes(&self, txn: &Txn) -> bool {
        // As if nothing that it asks and reads were asked and read already: that is mostly so, and cheap to say.
        let fits = self.conditions.len() + txn.conditions.len() <= OPERATIONS
            && self.changes + txn.changes.len() <= OPERATIONS
            && self.read.len() + txn.conditions.len() + txn.otherwise.len() <= OPERATIONS
            && self.bytes + txn.value_bytes() <= Txn::MAX_BYTES;
        fits && self.puts == puts(txn)
            && txn.changes.iter().all(|change| !self.written.contains(change.key()) && !self.asked.contains(change.key()))
            && txn.conditions.iter().all(|condition| !self.written.contains(&condition.key))
    }

    fn add(&mut self, txn: &Txn) {
        self.changes += txn.changes.len();
        self.bytes += txn.value_bytes();
        self.written.extend(txn.changes.iter().map(|change| change.key().clone()));
        for condition in &txn.conditions {
            self.conditions.insert((condition.key.clone(), condition.modified));
            self.asked.insert(condition.key.clone());
        }
        self.look_at(txn);
        self.puts = puts(txn);
    }

    /// Whether `txn` loses where the group is made, and there is room to look at what it asks for then.
    fn beats(&self, txn: &Txn) -> bool {
        let replaced = |condition: &Condition| {
            self.written.contains(&condition.key) && self.conditions.contains(&(condition.key.clone(), condition.modified))
        };
        self.read.len() + txn.conditions.len() + txn.otherwise.len() <= OPERATIONS && txn.conditions.iter().any(replaced)
    }

    fn look_at(&mut self, txn: &Txn) {
        self.read.extend(txn.conditions.iter().map(|condition| condition.key.clone()).chain(txn.otherwise.iter().cloned()));
    }

    fn is_full(&self) -> bool {
        self.changes.max(self.conditions.len()).max(self.read.len()) >= OPERATIONS || self.bytes >= Txn::MAX_BYTES
    }
}

/// Transactions that go to etcd together.
pub(super) struct Taken<T> {
    /// Those that are made as one.
    pub(super) group: Vec<T>,
    /// Those that ask for the same version of a key that one of the group replaces: where the group is made, they lose, and one look at what
    /// is there then answers all of them. Fifty applies of one catalogue are one write and one read, not fifty writes one after the other.
    pub(super) rivals: Vec<T>,
}

fn puts(txn: &Txn) -> bool {
    txn.changes.iter().any(|change| matches!(change, Change::Put(..)))
}

/// Takes the transaction that has waited longest, and those that can go with it; `None` where none waits. The others keep their order.
pub(super) fn take<T>(waiting: &mut VecDeque<T>, txn_of: impl Fn(&T) -> &Txn) -> Option<Taken<T>> {
    let mut shape = Shape::default();
    let (mut group, mut rivals) = (Vec::new(), Vec::new());
    let mut passed_over = Vec::new();
    while let Some(next) = waiting.pop_front() {
        let txn = txn_of(&next);
        if group.is_empty() || shape.takes(txn) {
            shape.add(txn);
            group.push(next);
        } else if shape.beats(txn) {
            shape.look_at(txn);
            rivals.push(next);
        } else {
            passed_over.push(next);
        }
        if shape.is_full() || passed_over.len() == PASSED_OVER {
            break;
        }
    }
    for next in passed_over.into_iter().rev() {
        waiting.push_front(next);
    }
    (!group.is_empty()).then_some(Taken { group, rivals })
}

/// The group as etcd's transaction. One that is alone reads what it asks for where it fails; what several ask for is seldom needed, would be
/// carried through etcd's log each time, and is left to [`look`].
pub(super) fn request<'a>(prefix: &Prefix, txns: impl ExactSizeIterator<Item = &'a Txn>) -> etcd_client::Txn {
    let alone = txns.len() == 1;
    let (mut compares, mut changes, mut reads) = (Vec::new(), Vec::new(), Vec::new());
    // Many submissions of one catalogue's jobs ask for the same head: etcd looks at it once.
    let mut asked = HashSet::new();
    for txn in txns {
        for condition in &txn.conditions {
            if asked.insert((&condition.key, condition.modified)) {
                compares.push(Compare::mod_revision(prefix.key(&condition.key), CompareOp::Equal, number(condition.modified)));
            }
        }
        changes.extend(txn.changes.iter().map(|change| match change {
            Change::Put(key, value) => TxnOp::put(prefix.key(key), value.to_vec(), None),
            Change::Delete(key) => TxnOp::delete(prefix.key(key), None),
        }));
        if alone {
            reads.extend(txn.otherwise.iter().map(|key| get(prefix, key)));
        }
    }
    etcd_client::Txn::new().when(compares).and_then(changes).or_else(reads)
}

/// What etcd's answer says of a transaction that went alone.
pub(super) fn answer(prefix: &Prefix, txn: &Txn, answer: PbTxnResponse) -> Result<Commit, StoreError> {
    if answer.succeeded {
        return Ok(done(&answer));
    }
    let mut read = pairs(answer);
    let entries = txn.otherwise.iter().map(|_| read.next().ok_or_else(unreadable)?.map(|pair| prefix.entry(pair?)).transpose());
    Ok(Commit::Conflict(entries.collect::<Result<_, _>>()?))
}

/// What etcd's answer says of a group's transactions, where they were made.
pub(super) fn done(answer: &PbTxnResponse) -> Commit {
    Commit::Done(revision(answer.header.as_ref().map_or(0, |header| header.revision)))
}

/// What is read of a group that was not made, to learn whose conditions do not hold, and what each asks for then: its keys, each once. That
/// is one moment of the store in which those lose: as good as the one in which all were tried, since none was made.
pub(super) fn look<'a>(prefix: &Prefix, txns: impl Iterator<Item = &'a Txn>) -> etcd_client::Txn {
    etcd_client::Txn::new().and_then(looked_at(txns).into_iter().map(|key| get(prefix, key)).collect::<Vec<_>>())
}

fn get(prefix: &Prefix, key: &Key) -> TxnOp {
    TxnOp::get(prefix.key(key), None::<GetOptions>)
}

fn looked_at<'a>(txns: impl Iterator<Item = &'a Txn>) -> Vec<&'a Key> {
    let mut known = HashSet::new();
    let keys = txns.flat_map(|txn| txn.conditions.iter().map(|condition| &condition.key).chain(&txn.otherwise));
    keys.filter(|key| known.insert(*key)).collect()
}

/// What etcd's answer to [`look`] says of each transaction; `None` of one that does not lose, and may be tried again.
pub(super) fn losers<'a>(
    prefix: &Prefix,
    txns: impl Iterator<Item = &'a Txn> + Clone,
    answer: PbTxnResponse,
) -> Result<Vec<Option<Commit>>, StoreError> {
    let mut entries: HashMap<&Key, Option<Entry>> = HashMap::new();
    let mut read = pairs(answer);
    for key in looked_at(txns.clone()) {
        entries.insert(key, read.next().ok_or_else(unreadable)?.map(|pair| prefix.entry(pair?)).transpose()?);
    }
    let modified = |key: &Key| entries.get(key).and_then(Option::as_ref).map_or(0, |entry| entry.modified);
    let answer = |txn: &Txn| {
        let is_lost = txn.conditions.iter().any(|condition| modified(&condition.key) != condition.modified);
        is_lost.then(|| Commit::Conflict(txn.otherwise.iter().map(|key| entries.get(key).cloned().flatten()).collect()))
    };
    Ok(txns.map(answer).collect())
}

/// The pairs that were read; `None` for a key that is not there.
fn pairs(answer: PbTxnResponse) -> impl Iterator<Item = Option<Result<PbKeyValue, StoreError>>> {
    answer.responses.into_iter().map(|read| match read.response {
        Some(PbTxnOpResponse::ResponseRange(read)) => read.kvs.into_iter().next().map(Ok),
        _ => Some(Err(unreadable())),
    })
}

fn unreadable() -> StoreError {
    StoreError::Unreadable("etcd's answer is not one to what was asked".to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn key(name: &str) -> Key {
        Key::new(name)
    }

    /// Takes groups until nothing waits; each as the numbers of its transactions.
    fn groups(txns: &[Txn]) -> Vec<Vec<usize>> {
        let mut waiting: VecDeque<_> = txns.iter().enumerate().collect();
        let mut groups = Vec::new();
        while let Some(taken) = take(&mut waiting, |(_, txn)| txn) {
            let numbers = |txns: Vec<(usize, &Txn)>| txns.into_iter().map(|(index, _)| index).collect::<Vec<_>>();
            let (group, rivals) = (numbers(taken.group), numbers(taken.rivals));
            groups.push(group);
            groups.extend((!rivals.is_empty()).then_some(rivals));
        }
        groups
    }

    #[test]
    fn who_can_only_lose_is_looked_at_and_not_sent() {
        let swap = |name: &str, modified| Txn::new().when(key(name), modified).put(key(name), "x").or_read(key(name));
        let mut waiting: VecDeque<_> = [swap("a", 3), swap("a", 3), swap("b", 1), swap("a", 4), swap("a", 3)].into();
        let Some(taken) = take(&mut waiting, |txn| txn) else { panic!("nothing was taken") };
        assert_eq!((taken.group, taken.rivals), (vec![swap("a", 3), swap("b", 1)], vec![swap("a", 3), swap("a", 3)]));
        assert_eq!(waiting, [swap("a", 4)], "one that asks for another version may win yet");
    }

    #[test]
    fn what_does_not_meet_goes_together() {
        let put = |name: &str| Txn::new().put(key(name), "x");
        assert_eq!(groups(&[put("a"), put("b"), put("c").absent(key("d"))]), [[0, 1, 2]]);
        assert_eq!(groups(&[put("a").absent(key("x")), put("b").absent(key("x"))]), [[0, 1]], "the same condition is no matter");
        assert_eq!(groups(&[put("a"), put("a"), put("b")]), [vec![0, 2], vec![1]], "the same key written");
        assert_eq!(groups(&[put("a"), put("b").absent(key("a"))]), [[0], [1]], "a condition on what another writes");
        assert_eq!(groups(&[put("b").absent(key("a")), put("a")]), [[0], [1]], "and the other way round");
        assert_eq!(groups(&[put("a"), put("b").or_read(key("a"))]), [[0, 1]], "what is read in a conflict is written by nobody");
        assert_eq!(groups(&[put("a"), Txn::new().delete(key("b")), put("c")]), [vec![0, 2], vec![1]], "removals stay alone");
    }

    #[test]
    fn groups_stay_within_what_etcd_takes() {
        let many: Vec<_> = (0..30)
            .map(|n| (0..4).fold(Txn::new().absent(key(&format!("c{n}"))), |txn, m| txn.put(key(&format!("k{n}/{m}")), "x")))
            .collect();
        assert_eq!(groups(&many).iter().map(Vec::len).collect::<Vec<_>>(), [30]);
        let many: Vec<_> = (0..35).map(|n| (0..4).fold(Txn::new(), |txn, m| txn.put(key(&format!("k{n}/{m}")), "x"))).collect();
        assert_eq!(groups(&many).iter().map(Vec::len).collect::<Vec<_>>(), [32, 3]);
        let large: Vec<_> = (0..20).map(|n| Txn::new().put(key(&format!("k{n}")), vec![0; 64 * 1024])).collect();
        assert_eq!(groups(&large).iter().map(Vec::len).collect::<Vec<_>>(), [8, 8, 4]);
        let reads: Vec<_> = (0..5)
            .map(|n| (0..60).fold(Txn::new().put(key(&format!("k{n}")), "x"), |txn, m| txn.or_read(key(&format!("r{n}/{m}")))))
            .collect();
        assert_eq!(groups(&reads).iter().map(Vec::len).collect::<Vec<_>>(), [2, 2, 1]);
        let same: Vec<_> =
            (0..50).map(|n| Txn::new().put(key(&format!("k{n}")), "x").absent(key("r")).or_read(key("r"))).collect();
        assert_eq!(groups(&same).iter().map(Vec::len).collect::<Vec<_>>(), [50], "what several look at is looked at once");
    }
}
