//! Stores over other stores: one that counts, and in tests those that fail or forget.

use std::fmt;
use std::time::Duration;

use async_trait::async_trait;
use bytes::Bytes;

use crate::api::{Commit, Entry, Key, Page, Presence, Range, Revision, Store, StoreError, Txn, Usage, Watch};

/// A store over another one, which does all that the layer does not do otherwise. Whoever implements it is a [`Store`].
#[async_trait]
pub trait StoreLayer: fmt::Debug + Send + Sync + 'static {
    /// The store beneath.
    fn inner(&self) -> &dyn Store;

    /// As [`Store::get`].
    ///
    /// # Errors
    /// Those of the store beneath, where the layer has none of its own.
    async fn get(&self, key: &Key) -> Result<Option<Entry>, StoreError> {
        self.inner().get(key).await
    }

    /// As [`Store::range`].
    ///
    /// # Errors
    /// Those of the store beneath, where the layer has none of its own.
    async fn range(&self, range: &Range) -> Result<Page, StoreError> {
        self.inner().range(range).await
    }

    /// As [`Store::commit`].
    ///
    /// # Errors
    /// Those of the store beneath, where the layer has none of its own.
    async fn commit(&self, txn: Txn) -> Result<Commit, StoreError> {
        self.inner().commit(txn).await
    }

    /// As [`Store::watch`].
    ///
    /// # Errors
    /// Those of the store beneath, where the layer has none of its own.
    async fn watch(&self, prefix: &Key, after: Revision) -> Result<Box<dyn Watch>, StoreError> {
        self.inner().watch(prefix, after).await
    }

    /// As [`Store::announce`].
    ///
    /// # Errors
    /// Those of the store beneath, where the layer has none of its own.
    async fn announce(&self, key: Key, value: Bytes, ttl: Duration) -> Result<Box<dyn Presence>, StoreError> {
        self.inner().announce(key, value, ttl).await
    }

    /// As [`Store::usage`].
    ///
    /// # Errors
    /// Those of the store beneath, where the layer has none of its own.
    async fn usage(&self) -> Result<Usage, StoreError> {
        self.inner().usage().await
    }

    /// As [`Store::compact`].
    ///
    /// # Errors
    /// Those of the store beneath, where the layer has none of its own.
    async fn compact(&self, until: Revision) -> Result<(), StoreError> {
        self.inner().compact(until).await
    }

    /// As [`Store::reclaim`].
    ///
    /// # Errors
    /// Those of the store beneath, where the layer has none of its own.
    async fn reclaim(&self) -> Result<(), StoreError> {
        self.inner().reclaim().await
    }
}

#[async_trait]
impl<L: StoreLayer> Store for L {
    async fn get(&self, key: &Key) -> Result<Option<Entry>, StoreError> {
        StoreLayer::get(self, key).await
    }

    async fn range(&self, range: &Range) -> Result<Page, StoreError> {
        StoreLayer::range(self, range).await
    }

    async fn commit(&self, txn: Txn) -> Result<Commit, StoreError> {
        StoreLayer::commit(self, txn).await
    }

    async fn watch(&self, prefix: &Key, after: Revision) -> Result<Box<dyn Watch>, StoreError> {
        StoreLayer::watch(self, prefix, after).await
    }

    async fn announce(&self, key: Key, value: Bytes, ttl: Duration) -> Result<Box<dyn Presence>, StoreError> {
        StoreLayer::announce(self, key, value, ttl).await
    }

    async fn usage(&self) -> Result<Usage, StoreError> {
        StoreLayer::usage(self).await
    }

    async fn compact(&self, until: Revision) -> Result<(), StoreError> {
        StoreLayer::compact(self, until).await
    }

    async fn reclaim(&self) -> Result<(), StoreError> {
        StoreLayer::reclaim(self).await
    }
}
