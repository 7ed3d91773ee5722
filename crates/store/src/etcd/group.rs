//! Which transactions may go to etcd as one, and what its answer means for each of them.

use std::collections::{HashSet, VecDeque};

use etcd_client::proto::{PbKeyValue, PbTxnOpResponse, PbTxnResponse};
use etcd_client::{Compare, CompareOp, GetOptions, TxnOp};

use super::keys::{Prefix, number, revision};
use crate::api::{Change, Commit, Key, StoreError, Txn};

/// How many waiting transactions may be passed over, because they do not go with the group, before the search for more ends.
const PASSED_OVER: usize = 64;

/// A group in the making.
///
/// Two transactions go together only where neither writes a key that the other writes or has a condition on: then each succeeds together
/// with the other exactly where it would alone, before or after it. What only removes stays among its own kind, because that is what etcd
/// takes when it is full.
#[derive(Default)]
struct Shape {
    conditions: usize,
    changes: usize,
    reads: usize,
    bytes: usize,
    written: HashSet<Key>,
    asked: HashSet<Key>,
    puts: bool,
}

impl Shape {
    fn takes(&self, txn: &Txn) -> bool {
        let fits = self.conditions + txn.conditions.len() <= Txn::MAX_OPERATIONS
            && self.changes + txn.changes.len() <= Txn::MAX_OPERATIONS
            && self.reads + txn.conditions.len() + txn.otherwise.len() <= Txn::MAX_OPERATIONS
            && self.bytes + txn.value_bytes() <= Txn::MAX_BYTES;
        fits && self.puts == puts(txn)
            && txn.changes.iter().all(|change| !self.written.contains(change.key()) && !self.asked.contains(change.key()))
            && txn.conditions.iter().all(|condition| !self.written.contains(&condition.key))
    }

    fn add(&mut self, txn: &Txn) {
        self.conditions += txn.conditions.len();
        self.changes += txn.changes.len();
        self.reads += txn.conditions.len() + txn.otherwise.len();
        self.bytes += txn.value_bytes();
        self.written.extend(txn.changes.iter().map(|change| change.key().clone()));
        self.asked.extend(txn.conditions.iter().map(|condition| condition.key.clone()));
        self.puts = puts(txn);
    }

    fn is_full(&self) -> bool {
        self.changes.max(self.conditions).max(self.reads) >= Txn::MAX_OPERATIONS || self.bytes >= Txn::MAX_BYTES
    }
}

fn puts(txn: &Txn) -> bool {
    txn.changes.iter().any(|change| matches!(change, Change::Put(..)))
}

/// Takes the transaction that has waited longest, and those that can go with it. The others keep their order.
pub(super) fn take<T>(waiting: &mut VecDeque<T>, txn_of: impl Fn(&T) -> &Txn) -> Vec<T> {
    let mut shape = Shape::default();
    let mut group = Vec::new();
    let mut passed_over = Vec::new();
    while let Some(next) = waiting.pop_front() {
        let txn = txn_of(&next);
        if group.is_empty() || shape.takes(txn) {
            shape.add(txn);
            group.push(next);
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
    group
}

/// The group as etcd's transaction. Where it fails, it reads the conditions' keys, to learn whose do not hold, and what each asks for then.
pub(super) fn request<'a>(prefix: &Prefix, txns: impl ExactSizeIterator<Item = &'a Txn>) -> etcd_client::Txn {
    let alone = txns.len() == 1;
    let (mut compares, mut changes, mut reads) = (Vec::new(), Vec::new(), Vec::new());
    // Many submissions of one catalogue's jobs ask for the same head: etcd looks at it once.
    let mut asked = HashSet::new();
    for txn in txns {
        for condition in &txn.conditions {
            let key = prefix.key(&condition.key);
            if !alone {
                reads.push(TxnOp::get(key.clone(), Some(GetOptions::new().with_keys_only())));
            }
            if asked.insert((&condition.key, condition.modified)) {
                compares.push(Compare::mod_revision(key, CompareOp::Equal, number(condition.modified)));
            }
        }
        changes.extend(txn.changes.iter().map(|change| match change {
            Change::Put(key, value) => TxnOp::put(prefix.key(key), value.to_vec(), None),
            Change::Delete(key) => TxnOp::delete(prefix.key(key), None),
        }));
        reads.extend(txn.otherwise.iter().map(|key| TxnOp::get(prefix.key(key), None)));
    }
    etcd_client::Txn::new().when(compares).and_then(changes).or_else(reads)
}

/// What etcd's answer to [`request`] says of each transaction; `None` of one that did not lose, but goes with others that did.
pub(super) fn answers<'a>(
    prefix: &Prefix,
    txns: impl ExactSizeIterator<Item = &'a Txn>,
    answer: PbTxnResponse,
) -> Result<Vec<Option<Commit>>, StoreError> {
    if answer.succeeded {
        let revision = revision(answer.header.map_or(0, |header| header.revision));
        return Ok(txns.map(|_| Some(Commit::Done(revision))).collect());
    }
    let alone = txns.len() == 1;
    let mut reads = answer.responses.into_iter().map(|read| match read.response {
        Some(PbTxnOpResponse::ResponseRange(read)) => Ok(read.kvs.into_iter().next()),
        _ => Err(unreadable()),
    });
    let mut next = || -> Result<Option<PbKeyValue>, StoreError> { reads.next().unwrap_or_else(|| Err(unreadable())) };
    let mut answers = Vec::with_capacity(txns.len());
    for txn in txns {
        let mut lost = alone;
        for condition in txn.conditions.iter().filter(|_| !alone) {
            let modified = next()?.map_or(0, |pair| revision(pair.mod_revision));
            lost |= modified != condition.modified;
        }
        let mut entries = Vec::with_capacity(txn.otherwise.len());
        for _ in &txn.otherwise {
            let pair = next()?;
            if lost {
                entries.push(pair.map(|pair| prefix.entry(pair)).transpose()?);
            }
        }
        answers.push(lost.then_some(Commit::Conflict(entries)));
    }
    Ok(answers)
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
        while !waiting.is_empty() {
            groups.push(take(&mut waiting, |(_, txn)| txn).into_iter().map(|(index, _)| index).collect());
        }
        groups
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
        assert_eq!(groups(&many).iter().map(Vec::len).collect::<Vec<_>>(), [25, 5]);
        let large: Vec<_> = (0..20).map(|n| Txn::new().put(key(&format!("k{n}")), vec![0; 64 * 1024])).collect();
        assert_eq!(groups(&large).iter().map(Vec::len).collect::<Vec<_>>(), [8, 8, 4]);
        let reads: Vec<_> =
            (0..5).map(|n| (0..40).fold(Txn::new().put(key(&format!("k{n}")), "x"), |txn, _| txn.or_read(key("r")))).collect();
        assert_eq!(groups(&reads).iter().map(Vec::len).collect::<Vec<_>>(), [2, 2, 1]);
    }
}
