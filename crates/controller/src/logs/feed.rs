//! What those who follow one execution share: one pair of watches of the store, however many they are, and the bytes that came last. Nobody who
//! writes a log waits for anybody who follows it.

use std::collections::{BTreeMap, HashMap};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};

use octavius_core::{Execution, ExecutionId};
use octavius_proto::Fault;
use octavius_store::piece::Piece;
use octavius_store::record::LogHead;
use octavius_store::{Event, Key, Range, Revision, Store, StoreError, codec, key};
use tokio::sync::watch;
use tokio_util::sync::{CancellationToken, DropGuard};

use super::Logs;
use super::pieces::segment;
use crate::engine::EngineError;
use crate::fault;

/// Bytes that are kept of what came last: those who follow at the same pace are never further behind than that.
const KEPT: usize = 128 * 1024;

/// What is known of an execution now; or why it cannot be followed any more.
pub(super) type News = Result<Now, Fault>;

/// What is known of an execution now.
#[derive(Debug, Clone)]
pub(super) struct Now {
    /// It.
    pub(super) execution: Arc<Execution>,
    /// Counts how often changes were missed: whoever has seen a lower number looks where the bytes are kept.
    pub(super) thread: u64,
}

/// The last bytes of an execution's newest log.
#[derive(Debug, Default)]
struct Last {
    attempt: u32,
    pieces: BTreeMap<u64, Piece>,
    /// Where each attempt's log ends, of those that have grown since the feed began.
    ends: HashMap<u32, u64>,
}

impl Last {
    fn put(&mut self, attempt: u32, offset: u64, piece: Piece) {
        if attempt < self.attempt {
            return;
        }
        if attempt > self.attempt {
            (self.attempt, self.pieces) = (attempt, BTreeMap::new());
        }
        self.pieces.insert(offset, piece);
        let mut size: usize = self.pieces.values().map(|piece| piece.data.len()).sum();
        while size > KEPT && self.pieces.len() > 1 {
            size -= self.pieces.pop_first().map_or(0, |(_, piece)| piece.data.len());
        }
    }
}

/// What is followed of one execution.
#[derive(Debug)]
pub(super) struct Feed {
    news: watch::Sender<News>,
    last: Mutex<Last>,
    turn: tokio::sync::Mutex<()>,
}

impl Feed {
    /// What is known, and the changes of it.
    pub(super) fn news(&self) -> watch::Receiver<News> {
        self.news.subscribe()
    }

    fn last(&self) -> MutexGuard<'_, Last> {
        self.last.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Where an attempt's log ends; 0 where it has not grown since the feed began.
    pub(super) fn end(&self, attempt: u32) -> u64 {
        self.last().ends.get(&attempt).copied().unwrap_or_default()
    }

    /// Bytes from `offset` on, where they are among the last.
    pub(super) fn piece(&self, attempt: u32, offset: u64) -> Option<Piece> {
        let last = self.last();
        let (begins, piece) = last.pieces.range(..=offset).next_back().filter(|_| last.attempt == attempt)?;
        let skip = usize::try_from(offset - begins).ok()?;
        (skip < piece.data.len()).then(|| piece.part(skip, piece.data.len()))
    }

    /// Keeps bytes for those who ask next.
    pub(super) fn keep(&self, attempt: u32, offset: u64, piece: Piece) {
        self.last().put(attempt, offset, piece);
    }

    /// The turn to read what all who follow need.
    pub(super) async fn turn(&self) -> tokio::sync::MutexGuard<'_, ()> {
        self.turn.lock().await
    }

    /// Takes in changes of the logs.
    fn take_in(&self, events: Vec<Event>) -> Result<(), StoreError> {
        let mut last = self.last();
        for event in events {
            let Event::Put(entry) = event else { continue };
            let mut parts = entry.key.as_str().rsplitn(4, '/');
            match (parts.next(), parts.next(), parts.next()) {
                (Some("head"), Some(attempt), _) => {
                    let head: LogHead = codec::decode(&entry)?;
                    if let Ok(attempt) = attempt.parse() {
                        last.ends.insert(attempt, head.next_offset);
                    }
                }
                (Some(_), Some("at"), Some(attempt)) => {
                    let segment = segment(&entry)?;
                    if let Ok(attempt) = attempt.parse() {
                        last.put(attempt, segment.offset, segment.piece);
                    }
                }
                _ => {} // an object: whoever comes to it reads it
            }
        }
        Ok(())
    }

    fn change(&self, change: impl FnOnce(&mut Now)) {
        self.news.send_if_modified(|news| match news {
            Ok(now) => {
                change(now);
                true
            }
            Err(_) => false,
        });
    }

    fn fail(&self, fault: Fault) {
        self.news.send_modify(|news| *news = Err(fault));
    }
}

/// The feeds of executions that are followed through this controller.
#[derive(Debug, Default)]
pub(crate) struct Feeds(Mutex<HashMap<ExecutionId, Weak<Held>>>);

/// A feed, and what feeds it for as long as somebody holds it.
#[derive(Debug)]
pub(super) struct Held {
    feed: Arc<Feed>,
    _watched: DropGuard,
}

impl std::ops::Deref for Held {
    type Target = Feed;

    fn deref(&self) -> &Feed {
        &self.feed
    }
}

impl Feeds {
    fn lock(&self) -> MutexGuard<'_, HashMap<ExecutionId, Weak<Held>>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn known(&self, id: ExecutionId) -> Option<Arc<Held>> {
        self.lock().get(&id)?.upgrade().filter(|held| held.news.borrow().is_ok())
    }

    /// The feed of an execution.
    pub(super) async fn of(&self, logs: &Logs, id: ExecutionId) -> Result<Arc<Held>, Fault> {
        if let Some(known) = self.known(id) {
            return Ok(known);
        }
        let (execution, revision) = look(&*logs.store, id).await?;
        let now = Now { execution, thread: 0 };
        let feed =
            Arc::new(Feed { news: watch::Sender::new(Ok(now)), last: Mutex::default(), turn: tokio::sync::Mutex::default() });
        let watched = CancellationToken::new();
        let held = Arc::new(Held { feed: Arc::clone(&feed), _watched: watched.clone().drop_guard() });
        {
            let mut feeds = self.lock();
            // Somebody else may have been quicker.
            if let Some(known) = feeds.get(&id).and_then(Weak::upgrade).filter(|held| held.news.borrow().is_ok()) {
                return Ok(known);
            }
            feeds.retain(|_, held| held.strong_count() > 0);
            feeds.insert(id, Arc::downgrade(&held));
        }
        let (store, stop) = (Arc::clone(&logs.store), logs.shutdown.clone());
        logs.tasks.spawn(async move {
            let work =
                futures::future::join(follow_execution(&*store, &feed, id, revision), follow_logs(&*store, &feed, id, revision));
            tokio::select! {
                _ = work => {}
                () = watched.cancelled() => {}
                () = stop.cancelled() => {}
            }
        });
        Ok(held)
    }
}

/// The execution, and a revision at which it was so.
async fn look(store: &dyn Store, id: ExecutionId) -> Result<(Arc<Execution>, Revision), Fault> {
    let page = store.range(&Range::of(key::execution(id), 1)).await.map_err(fault::from_store)?;
    let entry = page.entries.first().ok_or_else(|| fault::from_engine(EngineError::NotFound(id)))?;
    Ok((Arc::new(codec::decode(entry).map_err(fault::from_store)?), page.revision))
}

async fn follow_execution(store: &dyn Store, feed: &Feed, id: ExecutionId, mut revision: Revision) {
    loop {
        let failed = watch_all(store, key::execution(id), &mut revision, |events| {
            match events.into_iter().next_back() {
                Some(Event::Put(entry)) => {
                    let execution = Arc::new(codec::decode(&entry)?);
                    feed.change(|now| now.execution = execution);
                }
                Some(Event::Delete(_)) => feed.fail(fault::from_engine(EngineError::NotFound(id))),
                None => {}
            }
            Ok(())
        });
        match failed.await {
            StoreError::Compacted { .. } => match look(store, id).await {
                Ok((execution, now)) => {
                    revision = now;
                    feed.change(|now| now.execution = execution);
                }
                Err(fault) => return feed.fail(fault),
            },
            error => return feed.fail(fault::from_store(error)),
        }
    }
}

async fn follow_logs(store: &dyn Store, feed: &Feed, id: ExecutionId, mut revision: Revision) {
    loop {
        let failed = watch_all(store, key::logs(id), &mut revision, |events| {
            feed.take_in(events)?;
            feed.change(|_| {}); // of the bytes, which are beside it
            Ok(())
        });
        match failed.await {
            // Much has changed: whoever follows looks at what is kept.
            StoreError::Compacted { .. } => match look(store, id).await {
                Ok((_, now)) => {
                    revision = now;
                    feed.change(|now| now.thread += 1);
                }
                Err(fault) => return feed.fail(fault),
            },
            error => return feed.fail(fault::from_store(error)),
        }
    }
}

/// Watches until that fails.
async fn watch_all(
    store: &dyn Store,
    prefix: Key,
    revision: &mut Revision,
    mut take: impl FnMut(Vec<Event>) -> Result<(), StoreError>,
) -> StoreError {
    let watched = async {
        let mut watch = store.watch(&prefix, *revision).await?;
        loop {
            let batch = watch.next().await?;
            take(batch.events)?;
            *revision = batch.revision;
        }
    };
    let failed: Result<std::convert::Infallible, StoreError> = watched.await;
    match failed {
        Err(error) => error,
        Ok(never) => match never {},
    }
}
