//! A line of requests for etcd, and the few runners that take them from it in groups: one that comes while nothing is under way goes out at
//! once and alone; what comes while all runners wait for etcd becomes the next groups. So nobody waits for company that may not come, and
//! under load the cost of a call is shared by many.

use std::collections::VecDeque;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use tokio::sync::Notify;
use tokio_util::task::AbortOnDropHandle;

/// How often a runner steps back for tasks that can go on already, before it takes a group while another is under way. Those who got their
/// answers together come back together, and the first of them must not go alone: etcd's cost is mostly one of calls. Of 0, 5, 30 and 90, 5
/// and more did the same in tests/benches/etcd (0.62 of bare puts; 0.57 with 0).
const STEPS_BACK: usize = 5;

/// What the runners and the callers share.
struct Shared<T> {
    waiting: Mutex<VecDeque<T>>,
    came: Notify,
    /// Groups under way.
    sent: AtomicUsize,
}

impl<T> Shared<T> {
    fn lock(&self) -> MutexGuard<'_, VecDeque<T>> {
        self.waiting.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// The line. Its runners end with it.
pub(super) struct Line<T> {
    shared: Arc<Shared<T>>,
    _runners: Vec<AbortOnDropHandle<()>>,
}

impl<T: Send + 'static> Line<T> {
    /// A line with so many runners. `take` takes a group out of what waits, and something if anything waits; `send` answers the group.
    pub(super) fn new<G, S, F>(runners: usize, take: fn(&mut VecDeque<T>) -> Option<G>, send: S) -> Self
    where
        G: Send + 'static,
        S: Fn(G) -> F + Clone + Send + 'static,
        F: Future<Output = ()> + Send + 'static,
    {
        let shared = Arc::new(Shared { waiting: Mutex::default(), came: Notify::new(), sent: AtomicUsize::new(0) });
        let runner = |_| AbortOnDropHandle::new(tokio::spawn(run(Arc::clone(&shared), take, send.clone())));
        let runners = (0..runners).map(runner).collect();
        Self { shared, _runners: runners }
    }

    /// Puts a request in line.
    pub(super) fn put(&self, request: T) {
        self.shared.lock().push_back(request);
        self.shared.came.notify_one();
    }
}

async fn run<T, G, S, F>(shared: Arc<Shared<T>>, take: fn(&mut VecDeque<T>) -> Option<G>, send: S)
where
    S: Fn(G) -> F,
    F: Future<Output = ()>,
{
    loop {
        if shared.sent.load(Ordering::Relaxed) > 0 {
            for _ in 0..STEPS_BACK {
                tokio::task::yield_now().await;
            }
        }
        let (group, is_more) = {
            let mut waiting = shared.lock();
            (take(&mut waiting), !waiting.is_empty())
        };
        if is_more {
            // For an idle runner: several that came at once may have woken only one.
            shared.came.notify_one();
        }
        let Some(group) = group else {
            shared.came.notified().await;
            continue;
        };
        shared.sent.fetch_add(1, Ordering::Relaxed);
        send(group).await;
        shared.sent.fetch_sub(1, Ordering::Relaxed);
    }
}
