//! Definitions by digest, from the store through a bounded memory: an execution needs its job's definition several times, a list of jobs
//! needs them all.

use std::collections::HashMap;
use std::sync::{Arc, Mutex};

use octavius_core::{Digest, JobDefinition};
use octavius_store::{Store, StoreError, blob};

/// Definitions kept in memory: about 1 KiB each, and a catalogue of a thousand jobs is large.
const KEPT: usize = 2048;

/// Definitions by digest.
#[derive(Debug)]
pub(crate) struct Definitions {
    store: Arc<dyn Store>,
    known: Mutex<HashMap<Digest, Arc<JobDefinition>>>,
}

impl Definitions {
    pub(crate) fn new(store: Arc<dyn Store>) -> Self {
        Self { store, known: Mutex::default() }
    }

    /// The definition of this digest, which something in the store names.
    pub(crate) async fn get(&self, digest: Digest) -> Result<Arc<JobDefinition>, StoreError> {
        self.find(digest).await?.ok_or_else(|| StoreError::Unreadable(format!("definition {digest} is missing")))
    }

    /// The definition of this digest, if there is one. Definitions never change, so what is known is right.
    pub(crate) async fn find(&self, digest: Digest) -> Result<Option<Arc<JobDefinition>>, StoreError> {
        let lock = || self.known.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
        if let Some(known) = lock().get(&digest) {
            return Ok(Some(Arc::clone(known)));
        }
        // Lists read very many of them, from a store that may never make one wait: others take their turns in between.
        tokio::task::coop::consume_budget().await;
        let Some(bytes) = blob::get(&*self.store, &digest).await? else { return Ok(None) };
        let definition = JobDefinition::from_canonical_json(&bytes)
            .map_err(|error| StoreError::Unreadable(format!("definition {digest}: {error}")))?;
        let definition = Arc::new(definition);
        let mut known = lock();
        if known.len() >= KEPT {
            // Any one goes: with more definitions than room, none is better to keep than another by what we know.
            if let Some(any) = known.keys().next().copied() {
                known.remove(&any);
            }
        }
        known.insert(digest, Arc::clone(&definition));
        Ok(Some(definition))
    }
}
