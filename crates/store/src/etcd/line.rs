//! A line of requests for etcd, and the few runners that take them from it in groups: one that comes while a runner is idle goes out at once
//! and alone; what comes while all of them wait for etcd becomes the next groups. So nobody waits for company, and under load the cost of a
//! call is shared by many.

use std::collections::VecDeque;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use tokio::sync::Notify;
use tokio_util::task::AbortOnDropHandle;

/// What the runners and the callers share.
struct Shared<T> {
    waiting: Mutex<VecDeque<T>>,
    came: Notify,
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
    pub(super) fn new<S, F>(runners: usize, take: fn(&mut VecDeque<T>) -> Vec<T>, send: S) -> Self
    where
        S: Fn(Vec<T>) -> F + Clone + Send + 'static,
        F: Future<Output = ()> + Send + 'static,
    {
        let shared = Arc::new(Shared { waiting: Mutex::default(), came: Notify::new() });
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

async fn run<T, S, F>(shared: Arc<Shared<T>>, take: fn(&mut VecDeque<T>) -> Vec<T>, send: S)
where
    S: Fn(Vec<T>) -> F,
    F: Future<Output = ()>,
{
    loop {
        let (group, is_more) = {
            let mut waiting = shared.lock();
            (take(&mut waiting), !waiting.is_empty())
        };
        if is_more {
            // For an idle runner: several that came at once may have woken only one.
            shared.came.notify_one();
        }
        if group.is_empty() {
            shared.came.notified().await;
        } else {
            send(group).await;
        }
    }
}
