//! A part of the store, mirrored: listed once, then followed. When the watch breaks or has missed something, it is listed again, so that
//! whoever listens only ever needs to hold what it was told last.

use std::sync::Arc;
use std::time::Duration;

use octavius_store::{Entry, Event, Key, Range, Revision, Store, StoreError};
use tokio_util::sync::CancellationToken;

/// Entries read at once.
const PAGE: usize = 1000;

/// Pause after the store did not answer.
const RETRY: Duration = Duration::from_millis(250);

/// Who wants to know. Both must be quick: nothing else is followed meanwhile.
pub(crate) trait Listener: Send + 'static {
    /// Forget everything; this is what there is, as of `revision`.
    fn reset(&mut self, entries: Vec<Entry>, revision: Revision);
    /// This has changed.
    fn change(&mut self, event: Event);
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

/// Mirrors `prefix` into `listener` until `shutdown`.
pub(crate) async fn run(store: Arc<dyn Store>, prefix: Key, mut listener: impl Listener, shutdown: CancellationToken) {
    let follow = async {
        loop {
            if let Err(error) = follow(&*store, &prefix, &mut listener).await {
                match error {
                    StoreError::Compacted { .. } => tracing::debug!(%prefix, %error, "listing again"),
                    error => {
                        tracing::warn!(%prefix, %error, "the watch broke");
                        tokio::time::sleep(RETRY).await;
                    }
                }
            }
        }
    };
    tokio::select! {
        () = follow => {}
        () = shutdown.cancelled() => {}
    }
}

async fn follow(store: &dyn Store, prefix: &Key, listener: &mut impl Listener) -> Result<(), StoreError> {
    let (entries, revision) = list(store, prefix).await?;
    listener.reset(entries, revision);
    let mut watch = store.watch(prefix, revision).await?;
    loop {
        for event in watch.next().await?.events {
            listener.change(event);
        }
    }
}
