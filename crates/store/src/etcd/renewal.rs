//! Renewing leases: all of them over one stream. Etcd's leader answers from memory, without asking the other members, so that a thousand
//! renewals a second cost little.

use std::collections::{HashMap, VecDeque};
use std::sync::Arc;

use etcd_client::{LeaseKeepAliveStream, LeaseKeeper};
use tokio::sync::{mpsc, oneshot};
use tokio::time::timeout;
use tokio_util::task::AbortOnDropHandle;

use super::connection::Cluster;
use super::failure::Failure;
use crate::api::StoreError;

/// Renewals that may wait for the stream; more callers wait before it.
const WAITING: usize = 256;

type Answer = oneshot::Sender<Result<(), Failure>>;

/// A lease to be renewed, and who waits for that.
type Request = (i64, Answer);

/// The way for renewals to etcd.
pub(super) struct Renewals {
    cluster: Arc<Cluster>,
    requests: mpsc::Sender<Request>,
    _task: AbortOnDropHandle<()>,
}

impl Renewals {
    pub(super) fn new(cluster: &Arc<Cluster>) -> Self {
        let (sender, requests) = mpsc::channel(WAITING);
        let task = AbortOnDropHandle::new(tokio::spawn(serve(Arc::clone(cluster), requests)));
        Self { cluster: Arc::clone(cluster), requests: sender, _task: task }
    }

    /// Renews a lease.
    pub(super) async fn renew(&self, lease: i64) -> Result<(), StoreError> {
        let limit = self.cluster.timeout;
        let (turn, _) = self.cluster.current();
        let ask = async {
            let (sender, answer) = oneshot::channel();
            let closed = || Failure::Lost("the stream of renewals ended".to_owned());
            self.requests.send((lease, sender)).await.map_err(|_| closed())?;
            answer.await.unwrap_or_else(|_| Err(closed()))
        };
        timeout(limit, ask)
            .await
            .unwrap_or_else(|_| {
                self.cluster.leave(turn);
                Err(Failure::timed_out(limit))
            })
            .map_err(Failure::of_read)
    }
}

/// Those who wait for the answers to their renewals, by lease.
#[derive(Default)]
struct Pending(HashMap<i64, VecDeque<Answer>>);

impl Pending {
    fn add(&mut self, lease: i64, answer: Answer) {
        // Those who have given up are not answered any more; without this they would add up while etcd is silent.
        let waiting = self.0.entry(lease).or_default();
        waiting.retain(|answer| !answer.is_closed());
        waiting.push_back(answer);
    }

    /// Tells everyone who waits for this lease: an answer says how things are now, whichever renewal it was to.
    fn tell(&mut self, lease: i64, result: &Result<(), Failure>) {
        for answer in self.0.remove(&lease).into_iter().flatten() {
            let _ = answer.send(result.clone());
        }
    }

    fn tell_all(&mut self, failure: &Failure) {
        for (_, waiting) in self.0.drain() {
            for answer in waiting {
                let _ = answer.send(Err(failure.clone()));
            }
        }
    }
}

async fn serve(cluster: Arc<Cluster>, mut requests: mpsc::Receiver<Request>) {
    let mut first = None;
    // A stream opens with a renewal, and once more with the next one after it broke.
    loop {
        let request = match first.take() {
            Some(request) => Some(request),
            None => requests.recv().await,
        };
        let Some((lease, answer)) = request else { return };
        if answer.is_closed() {
            continue;
        }
        match cluster
            .read(|member| {
                let mut client = member.lease_stream();
                async move { client.keep_alive(lease).await }
            })
            .await
        {
            Ok((keeper, stream)) => {
                // The caller may have stopped waiting.
                let _ = answer.send(Ok(()));
                first = stay(&cluster, keeper, stream, &mut requests).await;
            }
            Err(failure) => {
                let _ = answer.send(Err(failure));
            }
        }
    }
}

/// Serves renewals over a stream for as long as it holds and its member is the one that is asked. What came too late for it is handed back.
async fn stay(
    cluster: &Cluster,
    mut keeper: LeaseKeeper,
    mut stream: LeaseKeepAliveStream,
    requests: &mut mpsc::Receiver<Request>,
) -> Option<Request> {
    let (turn, _) = cluster.current();
    let mut pending = Pending::default();
    let (failure, rest) = loop {
        tokio::select! {
            request = requests.recv() => {
                let closing = || Failure::Lost("the store is closing".to_owned());
                let Some((lease, answer)) = request else { break (closing(), None) };
                if cluster.current().0 != turn {
                    // Somebody found that this member does not answer.
                    break (Failure::Lost("the member that was asked does not answer".to_owned()), Some((lease, answer)));
                }
                pending.add(lease, answer);
                keeper.id = lease;
                // Bounded: a stream that takes nothing any more must not hold up its own end.
                match timeout(cluster.timeout, keeper.keep_alive()).await {
                    Ok(Ok(())) => {}
                    Ok(Err(error)) => break (error.into(), None),
                    Err(_) => break (Failure::timed_out(cluster.timeout), None),
                }
            }
            message = stream.message() => match message {
                Ok(Some(message)) => {
                    let result = if message.ttl() > 0 { Ok(()) } else { Err(Failure::LeaseGone) };
                    pending.tell(message.id(), &result);
                }
                Ok(None) => break (Failure::Lost("the stream of renewals ended".to_owned()), None),
                Err(error) => break (error.into(), None),
            }
        }
    };
    pending.tell_all(&failure);
    rest
}
