//! Watches: all of them over one stream, so that thousands are cheap.
//!
//! The stream's task ([`super::stream`]) puts what comes into each watch's inbox. An inbox is bounded: a watch whose owner is slow is
//! cancelled at etcd and asked for anew, from where it stopped, once its owner has taken what is there.

use std::collections::VecDeque;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use async_trait::async_trait;
use tokio::sync::{Notify, mpsc};
use tokio_util::task::AbortOnDropHandle;

use super::connection::Cluster;
use super::keys::Prefix;
use super::stream::Stream;
use crate::api::{Event, Key, Revision, StoreError, Watch, WatchBatch};

/// Bytes that wait for a watch's owner before etcd is told to stop. A batch that is begun is always taken as a whole.
const INBOX_BYTES: usize = 1024 * 1024;

/// What a change takes beside its key and value, roughly.
const EVENT_BYTES: usize = 100;

/// What a watch tells the stream's task.
pub(super) enum Command {
    /// A new one, for changes after this revision.
    Begin(Arc<Watcher>, Revision),
    /// Its inbox is empty again.
    Resume(u64),
    /// Its owner is gone.
    End(u64),
}

/// A watch, as its owner and the stream's task share it.
pub(super) struct Watcher {
    /// Ours, not etcd's: that one is new with each stream.
    pub(super) id: u64,
    /// Etcd's range of keys: from the first to before the second.
    pub(super) keys: (Vec<u8>, Vec<u8>),
    inbox: Mutex<Inbox>,
    came: Notify,
}

#[derive(Default)]
struct Inbox {
    batches: VecDeque<WatchBatch>,
    bytes: usize,
    /// Whether etcd was told to stop because this is full.
    paused: bool,
    end: Option<StoreError>,
}

impl Watcher {
    fn lock(&self) -> MutexGuard<'_, Inbox> {
        self.inbox.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Hands the owner a batch; false where nothing more is wanted until it resumes.
    pub(super) fn deliver(&self, batch: WatchBatch) -> bool {
        let mut inbox = self.lock();
        inbox.bytes += size(&batch);
        inbox.batches.push_back(batch);
        inbox.paused = inbox.bytes >= INBOX_BYTES;
        let wants_more = !inbox.paused;
        drop(inbox);
        self.came.notify_one();
        wants_more
    }

    /// Ends the watch, after what has been delivered.
    pub(super) fn end(&self, error: StoreError) {
        self.lock().end.get_or_insert(error);
        self.came.notify_one();
    }
}

fn size(batch: &WatchBatch) -> usize {
    let size = |event: &Event| match event {
        Event::Put(entry) => EVENT_BYTES + entry.key.as_str().len() + entry.value.len(),
        Event::Delete(key) => EVENT_BYTES + key.as_str().len(),
    };
    batch.events.iter().map(size).sum()
}

/// All watches of a store.
pub(super) struct Watches {
    prefix: Prefix,
    commands: mpsc::UnboundedSender<Command>,
    last: AtomicU64,
    _stream: AbortOnDropHandle<()>,
}

impl Watches {
    pub(super) fn new(cluster: &Arc<Cluster>, prefix: &Prefix) -> Self {
        // Its length is bounded by what watches there are: each has at most one of each kind of command in it.
        let (sender, commands) = mpsc::unbounded_channel();
        let stream = Stream::new(Arc::clone(cluster), prefix.clone(), commands);
        let stream = AbortOnDropHandle::new(tokio::spawn(stream.run()));
        Self { prefix: prefix.clone(), commands: sender, last: AtomicU64::new(0), _stream: stream }
    }

    /// Begins a watch of all keys that start with `prefix`. Whether etcd still has what it asks for is told by the watch itself.
    pub(super) fn begin(&self, prefix: &Key, after: Revision) -> Watching {
        let watcher = Arc::new(Watcher {
            id: self.last.fetch_add(1, Ordering::Relaxed),
            keys: self.prefix.range(prefix),
            inbox: Mutex::default(),
            came: Notify::new(),
        });
        if self.commands.send(Command::Begin(Arc::clone(&watcher), after)).is_err() {
            watcher.end(closed());
        }
        Watching { watcher, commands: self.commands.clone() }
    }
}

/// What ends the watches of a store that closes.
pub(super) fn closed() -> StoreError {
    StoreError::Unavailable("it is closed".to_owned())
}

/// A watch, as its owner has it.
pub(super) struct Watching {
    watcher: Arc<Watcher>,
    commands: mpsc::UnboundedSender<Command>,
}

impl Watching {
    fn take(&self) -> Option<Result<WatchBatch, StoreError>> {
        let mut inbox = self.watcher.lock();
        let Some(batch) = inbox.batches.pop_front() else { return inbox.end.clone().map(Err) };
        inbox.bytes -= size(&batch);
        if inbox.paused && inbox.batches.is_empty() {
            inbox.paused = false;
            // Where there is no task any more, it has ended the watch.
            let _ = self.commands.send(Command::Resume(self.watcher.id));
        }
        Some(Ok(batch))
    }

    /// Waits for the end, whatever comes before.
    pub(super) async fn ended(&mut self) -> StoreError {
        loop {
            if let Err(error) = self.next().await {
                return error;
            }
        }
    }
}

#[async_trait]
impl Watch for Watching {
    async fn next(&mut self) -> Result<WatchBatch, StoreError> {
        loop {
            match self.take() {
                Some(taken) => return taken,
                None => self.watcher.came.notified().await,
            }
        }
    }
}

impl Drop for Watching {
    fn drop(&mut self) {
        // Without a task there is nothing to cancel.
        let _ = self.commands.send(Command::End(self.watcher.id));
    }
}
