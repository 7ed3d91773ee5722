//! Definitions by digest, from the store through a bounded memory: an execution needs its job's definition several times, a list of jobs
//! needs them all.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard};

use futures::{StreamExt as _, TryStreamExt as _, stream};
use octavius_core::{Digest, JobDefinition};
use octavius_store::{Store, StoreError, blob};

/// Most bytes of JSON whose definitions are kept in memory, where they take about three times as much: a catalogue of ten thousand jobs of
/// the usual size fits.
const KEPT_BYTES: usize = 12 * 1024 * 1024;

/// Definitions that are read at once.
const AT_ONCE: usize = 64;

/// Those that are in memory, each with the bytes of its JSON.
#[derive(Debug, Default)]
struct Kept {
    by_digest: HashMap<Digest, (Arc<JobDefinition>, usize)>,
    bytes: usize,
}

impl Kept {
    fn put(&mut self, digest: Digest, definition: Arc<JobDefinition>, size: usize) {
        if self.by_digest.contains_key(&digest) {
            return; // two have read it at the same time
        }
        while self.bytes + size > KEPT_BYTES {
            // Any one goes: with more definitions than room, none is better to keep than another by what we know.
            let Some(any) = self.by_digest.keys().next().copied() else { break };
            self.bytes -= self.by_digest.remove(&any).map_or(0, |(_, size)| size);
        }
        self.by_digest.insert(digest, (definition, size));
        self.bytes += size;
    }
}

/// Definitions by digest.
#[derive(Debug)]
pub(crate) struct Definitions {
    store: Arc<dyn Store>,
    kept: Mutex<Kept>,
}

impl Definitions {
    pub(crate) fn new(store: Arc<dyn Store>) -> Self {
        Self { store, kept: Mutex::default() }
    }

    fn kept(&self) -> MutexGuard<'_, Kept> {
        self.kept.lock().unwrap_or_else(std::sync::PoisonError::into_inner)
    }

    /// The definition of this digest, which something in the store names.
    pub(crate) async fn get(&self, digest: Digest) -> Result<Arc<JobDefinition>, StoreError> {
        self.find(digest).await?.ok_or_else(|| StoreError::Unreadable(format!("definition {digest} is missing")))
    }

    /// The definitions of these digests, in their order, which something in the store names.
    pub(crate) async fn all(&self, digests: Vec<Digest>) -> Result<Vec<Arc<JobDefinition>>, StoreError> {
        stream::iter(digests.into_iter().map(|digest| self.get(digest))).buffered(AT_ONCE).try_collect().await
    }

    /// The definition of this digest, if there is one. Definitions never change, so what is known is right.
    pub(crate) async fn find(&self, digest: Digest) -> Result<Option<Arc<JobDefinition>>, StoreError> {
        if let Some((known, _)) = self.kept().by_digest.get(&digest) {
            return Ok(Some(Arc::clone(known)));
        }
        let Some((definition, size)) = self.read(digest).await? else { return Ok(None) };
        self.kept().put(digest, Arc::clone(&definition), size);
        Ok(Some(definition))
    }

    /// As [`Definitions::get`], for somebody who looks at very many once: what is not in memory does not come to stay there.
    pub(crate) async fn look_at(&self, digest: Digest) -> Result<Arc<JobDefinition>, StoreError> {
        if let Some((known, _)) = self.kept().by_digest.get(&digest) {
            return Ok(Arc::clone(known));
        }
        let missing = || StoreError::Unreadable(format!("definition {digest} is missing"));
        Ok(self.read(digest).await?.ok_or_else(missing)?.0)
    }

    /// A definition from the store, with the bytes of its JSON.
    async fn read(&self, digest: Digest) -> Result<Option<(Arc<JobDefinition>, usize)>, StoreError> {
        // Lists read very many of them, from a store that may never make one wait: others take their turns in between.
        tokio::task::coop::consume_budget().await;
        let Some(bytes) = blob::get(&*self.store, &digest).await? else { return Ok(None) };
        let definition = JobDefinition::from_canonical_json(&bytes)
            .map_err(|error| StoreError::Unreadable(format!("definition {digest}: {error}")))?;
        Ok(Some((Arc::new(definition), bytes.len())))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_kept_stays_within_its_bytes() {
        let definition: JobDefinition = serde_json::from_str(r#"{"name":"j","command":["true"]}"#).unwrap();
        let definition = Arc::new(definition);
        let mut kept = Kept::default();
        for n in 0..100u32 {
            kept.put(Digest::of(&n.to_le_bytes()), Arc::clone(&definition), KEPT_BYTES / 10);
            kept.put(Digest::of(&n.to_le_bytes()), Arc::clone(&definition), KEPT_BYTES / 10);
            assert_eq!(kept.bytes, kept.by_digest.values().map(|(_, size)| size).sum::<usize>());
            assert!(kept.bytes <= KEPT_BYTES);
        }
        assert_eq!(kept.by_digest.len(), 10);
    }
}
