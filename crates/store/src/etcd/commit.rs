//! Transactions on their way to etcd. They stand in [`Line`]: so a durable write's cost is shared by those who wait for one, and nobody waits for company.

use std::sync::Arc;
use std::time::Duration;

use etcd_client::TxnResponse;
use tokio::sync::oneshot;
use tokio::time::Instant;

use super::connection::{Answer, Cluster, Member};
use super::failure::Failure;
use super::group::{self, Taken};
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
    /// Sends a group, and what did not lose in it again, until all have their answers; then its rivals' answers, and those that did not lose.
    async fn send(&self, Taken { mut group, mut rivals }: Taken<Waiting>) {
        let timeout = self.cluster.timeout;
        let longest_wait = timeout * 3 / 4;
        loop {
            // It has not been made, and would not have its answer in time.
            let is_late = |waiting: &mut Waiting| waiting.since.elapsed() > longest_wait;
            for late in group.extract_if(.., is_late).chain(rivals.extract_if(.., is_late)) {
                late.tell(Err(StoreError::Unavailable(format!("not made within {longest_wait:?}"))));
            }
            if group.is_empty() && !rivals.is_empty() {
                group.push(rivals.remove(0));
            }
            let Some(first) = group.first() else { return };
            // What the one that waits longest has left; where etcd is silent, those who came behind others must not wait for two timeouts.
            let left = timeout.saturating_sub(first.since.elapsed()).max(timeout / 2);
            let answer = self.cluster.write_within(left, |member| call(member, group::request(&self.prefix, txns(&group)))).await;
            match answer {
                Err(failure) => tell_all(std::mem::take(&mut group), &failure),
                Ok(answer) if answer.succeeded() => {
                    let done = group::done(&answer.0);
                    group.drain(..).for_each(|waiting| waiting.tell(Ok(done.clone())));
                    self.look(&mut group, &mut rivals, left).await;
                }
                Ok(answer) => match &group[..] {
                    [waiting] if rivals.is_empty() => {
                        let answer = group::answer(&self.prefix, &waiting.txn, answer.0);
                        return group.into_iter().for_each(|waiting| waiting.tell(answer.clone()));
                    }
                    _ => self.look(&mut group, &mut rivals, left).await,
                },
            }
        }
    }

    /// Looks whose conditions do not hold, and tells them; the others stay.
    async fn look(&self, group: &mut Vec<Waiting>, rivals: &mut Vec<Waiting>, within: Duration) {
        if group.is_empty() && rivals.is_empty() {
            return;
        }
        let both = || txns(group).chain(txns(rivals));
        let looked = self.cluster.read_within(within, |member| call(member, group::look(&self.prefix, both()))).await;
        let answers = looked.map_err(Failure::of_read).and_then(|looked| group::losers(&self.prefix, both(), looked.0));
        let mut answers = match answers {
            Ok(answers) => answers.into_iter(),
            Err(error) => {
                return group.drain(..).chain(rivals.drain(..)).for_each(|waiting| waiting.tell(Err(error.clone())));
            }
        };
        for waiting in [group, rivals] {
            for (one, answer) in std::mem::take(waiting).into_iter().zip(&mut answers) {
                match answer {
                    Some(answer) => one.tell(Ok(answer)),
                    None => waiting.push(one),
                }
            }
        }
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
