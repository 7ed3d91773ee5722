//! Transactions on their way to etcd. They stand in [`Line`]: so a durable write's cost is shared by those who wait for one, and nobody waits for company.

use std::sync::Arc;
use std::time::Duration;

use etcd_client::TxnResponse;
use tokio::sync::oneshot;
use tokio::time::Instant;

use super::connection::{Answer, Cluster, Member};
use super::failure::Failure;
use super::group;
use super::keys::Prefix;
use super::line::Line;
use crate::api::{Commit, StoreError, Txn};

/// Groups on their way at once: of 1, 2, 3 and 6, the best in tests/benches/etcd on two cores. With one, whoever comes waits for two calls;
/// many make the groups small, and etcd's cost is mostly one of groups.
const RUNNERS: usize = 2;

/// A transaction that waits, and who waits for its answer.
struct Waiting {
    txn: Txn,
    since: Instant,
    answer: oneshot::Sender<Result<Commit, StoreError>>,
}

/// The way for transactions into etcd.
pub(super) struct Commits {
    line: Line<Waiting>,
}

impl Commits {
    pub(super) fn new(cluster: &Arc<Cluster>, prefix: &Prefix) -> Self {
        let runner = Runner { cluster: Arc::clone(cluster), prefix: prefix.clone() };
        let send = move |group| {
            let runner = runner.clone();
            async move { runner.send(group).await }
        };
        Self { line: Line::new(RUNNERS, |waiting| group::take(waiting, |waiting| &waiting.txn), send) }
    }

    /// Makes a transaction. It is made even where the caller stops waiting.
    pub(super) async fn commit(&self, txn: Txn) -> Result<Commit, StoreError> {
        txn.check()?;
        let (sender, answer) = oneshot::channel();
        self.line.put(Waiting { txn, since: Instant::now(), answer: sender });
        answer.await.unwrap_or_else(|_| Err(StoreError::Unknown("the store is closing".to_owned())))
    }
}

#[derive(Clone)]
struct Runner {
    cluster: Arc<Cluster>,
    prefix: Prefix,
}

impl Runner {
    /// Sends a group, and what did not lose in it again, until all have their answers.
    async fn send(&self, mut group: Vec<Waiting>) {
        let timeout = self.cluster.timeout;
        let longest_wait = timeout * 3 / 4;
        loop {
            // It has not been made, and would not have its answer in time.
            for late in group.extract_if(.., |waiting| waiting.since.elapsed() > longest_wait) {
                late.tell(Err(StoreError::Unavailable(format!("not made within {longest_wait:?}"))));
            }
            let Some(first) = group.first() else { return };
            // What the one that waits longest has left; where etcd is silent, those who came behind others must not wait for two timeouts.
            let left = timeout.saturating_sub(first.since.elapsed()).max(timeout / 2);
            let answer = self.cluster.write_within(left, |member| call(member, group::request(&self.prefix, txns(&group)))).await;
            let answers = match (answer, &group[..]) {
                (Err(failure), _) => return tell_all(group, &failure),
                (Ok(answer), [waiting]) => group::answer(&self.prefix, &waiting.txn, answer.0).map(|answer| vec![Some(answer)]),
                (Ok(answer), _) if answer.succeeded() => Ok(vec![Some(group::done(&answer.0)); group.len()]),
                _ => self.look(&group, left).await,
            };
            let answers = match answers {
                Ok(answers) => answers,
                Err(error) => return group.into_iter().for_each(|waiting| waiting.tell(Err(error.clone()))),
            };
            let mut rest = Vec::new();
            for (waiting, answer) in group.into_iter().zip(answers) {
                match answer {
                    Some(answer) => waiting.tell(Ok(answer)),
                    None => rest.push(waiting),
                }
            }
            group = rest;
        }
    }

    /// Whose conditions of a group that was not made do not hold.
    async fn look(&self, group: &[Waiting], within: Duration) -> Result<Vec<Option<Commit>>, StoreError> {
        let look = self.cluster.read_within(within, |member| call(member, group::look(&self.prefix, txns(group))));
        group::losers(&self.prefix, txns(group), look.await.map_err(Failure::of_read)?.0)
    }
}

fn txns(group: &[Waiting]) -> impl ExactSizeIterator<Item = &Txn> + Clone {
    group.iter().map(|waiting| &waiting.txn)
}

fn call(member: &Member, request: etcd_client::Txn) -> impl Answer<TxnResponse> + use<> {
    let mut kv = member.kv();
    async move { kv.txn(request).await }
}

impl Waiting {
    fn tell(self, answer: Result<Commit, StoreError>) {
        // The caller may have stopped waiting.
        let _ = self.answer.send(answer);
    }
}

fn tell_all(group: Vec<Waiting>, failure: &Failure) {
    for waiting in group {
        let failure = failure.clone();
        // What changes nothing has not happened, whatever became of it.
        let error = if waiting.txn.changes.is_empty() { failure.of_read() } else { failure.of_write() };
        waiting.tell(Err(error));
    }
}
