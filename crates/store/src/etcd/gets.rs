//! Single keys, read together: what is asked for while etcd is busy with other reads goes to it as one call. A read of its own costs etcd and
//! us several times what one more key in a call does.

use std::collections::VecDeque;
use std::sync::Arc;
use std::time::Duration;

use etcd_client::proto::PbTxnOpResponse;
use etcd_client::{GetOptions, TxnOp};
use tokio::sync::oneshot;
use tokio::time::Instant;

use super::connection::Cluster;
use super::failure::Failure;
use super::keys::Prefix;
use super::line::Line;
use crate::api::{Entry, Key, StoreError};

/// Calls on their way at once.
const RUNNERS: usize = 3;

/// Most keys in one call: with the largest values that is 4 MiB.
const KEYS: usize = 64;

/// A key that is asked for, and who waits for it.
struct Asked {
    key: Key,
    since: Instant,
    answer: oneshot::Sender<Result<Option<Entry>, StoreError>>,
}

/// The way to single keys.
pub(super) struct Gets {
    line: Line<Asked>,
}

impl Gets {
    pub(super) fn new(cluster: &Arc<Cluster>, prefix: &Prefix) -> Self {
        let (cluster, prefix) = (Arc::clone(cluster), prefix.clone());
        let send = move |group| {
            let (cluster, prefix) = (Arc::clone(&cluster), prefix.clone());
            async move { send(&cluster, &prefix, group).await }
        };
        Self { line: Line::new(RUNNERS, take, send) }
    }

    /// One key's entry.
    pub(super) async fn get(&self, key: &Key) -> Result<Option<Entry>, StoreError> {
        let (sender, answer) = oneshot::channel();
        self.line.put(Asked { key: key.clone(), since: Instant::now(), answer: sender });
        answer.await.unwrap_or_else(|_| Err(StoreError::Unavailable("the store is closing".to_owned())))
    }
}

fn take(waiting: &mut VecDeque<Asked>) -> Option<Vec<Asked>> {
    (!waiting.is_empty()).then(|| waiting.drain(..waiting.len().min(KEYS)).collect())
}

async fn send(cluster: &Cluster, prefix: &Prefix, mut group: Vec<Asked>) {
    // Nobody waits any more for what a caller has given up.
    group.retain(|asked| !asked.answer.is_closed());
    // All of it within the timeout, the wait behind others that etcd did not answer included.
    let longest_wait = cluster.timeout / 2;
    for late in group.extract_if(.., |asked| asked.since.elapsed() > longest_wait) {
        let _ = late.answer.send(Err(StoreError::Unavailable(format!("not sent within {longest_wait:?}"))));
    }
    let Some(first) = group.first() else { return };
    let left = cluster.timeout.saturating_sub(first.since.elapsed());
    match read(cluster, prefix, &group, left).await {
        Ok(entries) => group.into_iter().zip(entries).for_each(|(asked, entry)| drop(asked.answer.send(entry))),
        Err(failure) => group.into_iter().for_each(|asked| drop(asked.answer.send(Err(failure.clone().of_read())))),
    }
}

/// The keys' entries, all of one moment.
async fn read(
    cluster: &Cluster,
    prefix: &Prefix,
    group: &[Asked],
    within: Duration,
) -> Result<Vec<Result<Option<Entry>, StoreError>>, Failure> {
    if let [asked] = group {
        let key = prefix.key(&asked.key);
        let answer = cluster.read_within(within, |member| {
            let (mut kv, key) = (member.kv(), key.clone());
            async move { kv.get(key, None).await }
        });
        let pair = answer.await?.0.kvs.into_iter().next();
        return Ok(vec![pair.map(|pair| prefix.entry(pair)).transpose()]);
    }
    let gets = group.iter().map(|asked| TxnOp::get(prefix.key(&asked.key), None::<GetOptions>)).collect::<Vec<_>>();
    let txn = etcd_client::Txn::new().and_then(gets);
    let answer = cluster.read_within(within, |member| {
        let (mut kv, txn) = (member.kv(), txn.clone());
        async move { kv.txn(txn).await }
    });
    let unreadable = || StoreError::Unreadable("etcd's answer is not one to what was asked".to_owned());
    let mut answers = answer.await?.0.responses.into_iter();
    Ok(group
        .iter()
        .map(|_| match answers.next().and_then(|answer| answer.response) {
            Some(PbTxnOpResponse::ResponseRange(read)) => read.kvs.into_iter().next().map(|pair| prefix.entry(pair)).transpose(),
            _ => Err(unreadable()),
        })
        .collect())
}
