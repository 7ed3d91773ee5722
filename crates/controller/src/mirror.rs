//! A part of the store, mirrored: listed once, then followed. When the watch breaks or has missed something, it is listed again, so that
//! whoever listens only ever needs to hold what it was told last.

use std::sync::Arc;
use std::time::Duration;

use octavius_store::{Entry, Event, Key, Range, Revision, Store, StoreError};
use tokio_util::sync::CancellationToken;

use crate::losses::Judge;

/// Entries read at once.
const PAGE: usize = 1000;

/// Pause after the store did not answer.
const RETRY: Duration = Duration::from_millis(250);

/// Who wants to know. Both must be quick: nothing else is followed meanwhile.
pub(crate) trait Listener: Send + 'static {
    /// Forget everything; this is what there is, as of `revision`.
    fn reset(&mut self, entries: Vec<Entry>, revision: Revision);
    /// This has changed, at `revision`.
    fn change(&mut self, event: Event, revision: Revision);
    /// One transaction has changed all of this, at `revision`. Whoever must not be seen between two of them, takes them at once.
    fn changes(&mut self, events: Vec<Event>, revision: Revision) {
        events.into_iter().for_each(|event| self.change(event, revision));
    }
}

/// All entries under `prefix`, and the revision that they are of.
pub(crate) async fn list(store: &dyn Store, prefix: &Key) -> Result<(Vec<Entry>, Revision), StoreError> {
    'again: loop {
        let mut range = Range::of(prefix.clone(), PAGE);
        let mut entries = Vec::new();
        loop {
            let mut page = match store.range(&range).await {
                Err(StoreError::Compacted { .. }) if range.at.is_some() => continue 'again,
                page => page?,
            };
            let next = range.next(&page);
            entries.append(&mut page.entries);
            match next {
                Some(next) => range = next,
                None => return Ok((entries, page.revision)),
            }
        }
    }
}

/// What mirrors are made with.
#[derive(Debug, Clone)]
pub(crate) struct Mirrors {
    pub(crate) store: Arc<dyn Store>,
    /// Is told when the store is away.
    pub(crate) judge: Arc<Judge>,
    pub(crate) shutdown: CancellationToken,
}

impl Mirrors {
    /// Mirrors `prefix` into `listener` until the shutdown.
    pub(crate) async fn run(&self, prefix: Key, mut listener: impl Listener) {
        let follow = async {
            loop {
                if let Err(error) = self.follow(&prefix, &mut listener).await {
                    match error {
                        StoreError::Compacted { .. } => tracing::debug!(%prefix, %error, "listing again"),
                        error => {
                            tracing::warn!(%prefix, %error, "the watch broke");
                            self.judge.store_failed();
                            tokio::time::sleep(RETRY).await;
                        }
                    }
                }
            }
        };
        tokio::select! {
            biased;
            () = follow => {}
            () = self.shutdown.cancelled() => {}
        }
    }

    async fn follow(&self, prefix: &Key, listener: &mut impl Listener) -> Result<(), StoreError> {
        let (entries, revision) = list(&*self.store, prefix).await?;
        listener.reset(entries, revision);
        let mut watch = self.store.watch(prefix, revision).await?;
        self.judge.store_answered();
        loop {
            let batch = watch.next().await?;
            listener.changes(batch.events, batch.revision);
        }
    }
}
