//! When tokens were last used. Noted in memory, and written every few minutes: no call waits for it, and no call writes.

use std::collections::HashMap;
use std::sync::{Mutex, PoisonError};

use octavius_core::Timestamp;
use octavius_store::record::{TokenRecord, UsedRecord};
use octavius_store::{StoreError, Txn, codec, key};
use tokio_util::sync::CancellationToken;

use super::Tokens;
use crate::mirror;

/// Tokens of which a use is kept in memory until it is written.
const KEPT: usize = 50_000;

/// Uses that are not written yet, by the tokens' ids.
#[derive(Debug, Default)]
pub(super) struct Used(Mutex<HashMap<String, Timestamp>>);

impl Used {
    pub(super) fn note(&self, record: &TokenRecord) {
        let mut used = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if used.len() < KEPT || used.contains_key(&record.id) {
            used.insert(record.id.clone(), Timestamp::now());
        }
    }

    fn take(&self) -> HashMap<String, Timestamp> {
        std::mem::take(&mut self.0.lock().unwrap_or_else(PoisonError::into_inner))
    }

    fn put_back(&self, unwritten: &[(String, Timestamp)]) {
        let mut used = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        for (id, at) in unwritten {
            used.entry(id.clone()).or_insert(*at); // a newer use stands
        }
    }

    fn peek(&self, id: &str) -> Option<Timestamp> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).get(id).copied()
    }
}

impl Tokens {
    /// Writes every so often which tokens were used, until the shutdown, and once more then.
    pub(crate) async fn note_uses(&self, every: std::time::Duration, shutdown: CancellationToken) {
        loop {
            let stops = tokio::select! {
                () = tokio::time::sleep(every) => false,
                () = shutdown.cancelled() => true,
            };
            if let Err(error) = self.write_uses().await {
                tracing::debug!(%error, "when tokens were used is not noted");
            }
            if stops {
                return;
            }
        }
    }

    async fn write_uses(&self) -> Result<(), StoreError> {
        let used: Vec<(String, Timestamp)> = self.used.take().into_iter().collect();
        for some in used.chunks(Txn::MAX_OPERATIONS) {
            let note =
                |txn: Txn, (id, at): &(String, Timestamp)| txn.put(key::token_used(id), codec::encode(&UsedRecord { at: *at }));
            if let Err(error) = self.store.commit(some.iter().fold(Txn::new(), note)).await {
                self.used.put_back(&used); // also what was written: it is written once more
                return Err(error);
            }
        }
        Ok(())
    }

    /// When tokens were last used, by their ids, as far as this controller knows.
    pub(crate) async fn uses(&self) -> Result<impl Fn(&str) -> Option<Timestamp>, StoreError> {
        let (entries, _) = mirror::list(&*self.store, &key::tokens_used()).await?;
        let mut written = HashMap::new();
        for entry in &entries {
            if let Some(id) = key::token_used_of(&entry.key) {
                written.insert(id.to_owned(), codec::decode::<UsedRecord>(entry)?.at);
            }
        }
        Ok(move |id: &str| written.get(id).copied().max(self.used.peek(id)))
    }
}
