//! Which keys the store needs still, and the change from one to the next: what is kept under an older key is encrypted anew with the first, so
//! that the older key's file can go one day.

use octavius_core::{Execution, ExecutionId, KeyId};
use octavius_store::{Commit, Key, Range, Store, StoreError, Txn, codec, key};

use super::{SealError, Sealer};
use crate::engine::{kept_arguments, set_aside_arguments};

/// Executions that are counted, or encrypted anew, at once.
const PAGE: usize = 500;

/// Executions that one turn encrypts anew: some seconds of work.
const TURN: u64 = 5000;

/// A key, and how many executions need it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct UsedKey {
    /// The key.
    pub id: KeyId,
    /// How many executions have arguments that are encrypted with it.
    pub executions: u64,
}

/// The keys with which something in the store is encrypted.
///
/// # Errors
/// Where the store does not answer.
pub async fn used_keys(store: &dyn Store) -> Result<Vec<UsedKey>, StoreError> {
    let mut used = Vec::new();
    for id in ids(store).await? {
        let mut executions = 0;
        let mut range = Range::of(key::sealed_with(id), PAGE);
        loop {
            let page = store.range(&range).await?;
            executions += page.entries.len() as u64;
            match range.next(&page) {
                Some(next) => range = Range { at: None, ..next },
                None => break,
            }
        }
        used.push(UsedKey { id, executions });
    }
    Ok(used)
}

/// The ids of these keys: one read for each, however much there is under it.
async fn ids(store: &dyn Store) -> Result<Vec<KeyId>, StoreError> {
    let mut ids = Vec::new();
    let mut range = Range::of(key::sealed_all(), 1);
    loop {
        let page = store.range(&range).await?;
        let Some(entry) = page.entries.first() else { return Ok(ids) };
        let past = match key::sealed_of(&entry.key) {
            Some((id, _)) => {
                ids.push(id);
                Key::new(format!("{}~", key::sealed_with(id)))
            }
            None => entry.key.clone(),
        };
        range = Range { after: Some(past), ..Range::of(key::sealed_all(), 1) };
    }
}

/// Tells, at a controller's start, which keys it lacks and which it could do without.
pub(crate) async fn tell_keys(store: &dyn Store, sealer: &Sealer) -> Result<(), StoreError> {
    let ids = ids(store).await?;
    for key in ids.iter().filter(|id| sealer.key(**id).is_none()) {
        tracing::error!(
            %key,
            "the store holds sensitive arguments that are encrypted with a key that this controller does not have: executions that wait \
             with such arguments are not handed out by it, nor run again; name that key's file too"
        );
    }
    for key in sealer.keys.iter().skip(1).filter(|key| !ids.contains(&key.id)) {
        tracing::info!(key = %key.id, "nothing is encrypted with this older key any more: its file can go a day after the last controller wrote with it");
    }
    match sealer.first() {
        Some(key) => tracing::info!(%key, "sensitive arguments are encrypted"),
        None if sealer.clear => tracing::warn!("sensitive arguments are kept in the clear, as the configuration says"),
        None => tracing::warn!(
            "there is no encryption key: executions with sensitive arguments are refused; `octavius controller new-key FILE` makes one, \
             and --encryption-key-file FILE names it, the same for all controllers"
        ),
    }
    Ok(())
}

/// Encrypts anew, with the first key, some of what is encrypted with older ones; how many executions that were. What is under a key that
/// this controller lacks stays.
pub(crate) async fn reseal_some(store: &dyn Store, sealer: &Sealer) -> Result<u64, StoreError> {
    let Some(first) = sealer.first() else { return Ok(0) };
    let mut done = 0;
    for with in ids(store).await?.into_iter().filter(|id| *id != first && sealer.key(*id).is_some()) {
        let mut range = Range::of(key::sealed_with(with), PAGE);
        loop {
            let page = store.range(&range).await?;
            for entry in &page.entries {
                if let Some((_, id)) = key::sealed_of(&entry.key)
                    && reseal(store, sealer, &entry.key, id).await?
                {
                    done += 1;
                }
            }
            match range.next(&page) {
                Some(next) if done < TURN => range = Range { at: None, ..next },
                _ => break,
            }
        }
    }
    Ok(done)
}

/// Encrypts one execution's arguments anew; false where somebody was quicker, or they cannot be opened.
async fn reseal(store: &dyn Store, sealer: &Sealer, listed: &Key, id: ExecutionId) -> Result<bool, StoreError> {
    let Some(entry) = store.get(&key::execution(id)).await? else {
        store.commit(Txn::new().absent(key::execution(id)).delete(listed.clone())).await?;
        return Ok(false);
    };
    let mut execution: Execution = codec::decode(&entry)?;
    let kept = match kept_arguments(store, &execution).await {
        Err(error @ StoreError::Unreadable(_)) => {
            tracing::error!(execution = %id, %error, "cannot be encrypted with the new key");
            return Ok(false);
        }
        kept => kept?,
    };
    match sealer.reseal(&execution, kept) {
        Ok(None) => Ok(false),
        Ok(Some((with, arguments))) => {
            (execution.sealed_with, execution.arguments, execution.large_arguments) = (Some(with), arguments, None);
            set_aside_arguments(store, &mut execution).await?;
            let txn = Txn::new().unchanged(&entry).put(entry.key.clone(), codec::encode(&execution));
            let txn = txn.delete(listed.clone()).put(key::sealed(with, id), "");
            Ok(matches!(store.commit(txn).await?, Commit::Done(_)))
        }
        Err(error @ (SealError::Damaged { .. } | SealError::KeyMissing(_) | SealError::NoKey { .. })) => {
            tracing::error!(execution = %id, %error, "cannot be encrypted with the new key");
            Ok(false)
        }
    }
}
