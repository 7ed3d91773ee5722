//! A running watch of the embedded store.

use std::sync::Arc;

use async_trait::async_trait;
use tokio::sync::Notify;

use super::{Shared, lock};
use crate::api::{Key, Revision, StoreError, Watch, WatchBatch};

/// A watch; dropping it ends it.
pub(super) struct Watching {
    shared: Arc<Shared>,
    id: u64,
    wake: Arc<Notify>,
    /// Why it ended.
    end: Option<StoreError>,
}

impl Watching {
    pub(super) fn begin(shared: Arc<Shared>, prefix: &Key, after: Revision) -> Result<Self, StoreError> {
        let (id, wake) = lock(&shared.feed).watch(prefix, after)?;
        Ok(Self { shared, id, wake, end: None })
    }
}

#[async_trait]
impl Watch for Watching {
    async fn next(&mut self) -> Result<WatchBatch, StoreError> {
        if let Some(end) = &self.end {
            return Err(end.clone());
        }
        loop {
            // A wake-up between this look and the wait is kept by the `Notify`.
            let next = lock(&self.shared.feed).next(self.id);
            if let Some(batch) = next {
                if let Err(error) = &batch {
                    self.end = Some(error.clone());
                    lock(&self.shared.feed).unwatch(self.id);
                }
                return batch;
            }
            self.wake.notified().await;
        }
    }
}

impl Drop for Watching {
    fn drop(&mut self) {
        lock(&self.shared.feed).unwatch(self.id);
    }
}
