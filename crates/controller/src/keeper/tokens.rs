//! Tokens that have come to their end stay for a while, so that whoever wonders why something was refused finds them, and then go; so do notes
//! of when tokens were used that are no more.

use std::collections::HashSet;
use std::time::Duration;

use octavius_core::Timestamp;
use octavius_store::record::TokenRecord;
use octavius_store::{Commit, Entry, Store, StoreError, Txn, codec, key};

use super::Pages;

/// For how long a token is kept that has come to its end.
const KEPT_FOR: Duration = Duration::from_secs(7 * 24 * 3600);

/// Removes tokens that came to their end a while ago; how many.
pub(super) async fn remove(store: &dyn Store) -> Result<u64, StoreError> {
    let Ok(before) = Timestamp::now().saturating_sub(KEPT_FOR) else { return Ok(0) };
    // Notes are read first: a token that is made meanwhile, and used, is not taken for one that is gone.
    let mut noted = Vec::new();
    let mut pages = Pages::of(key::tokens_used());
    while let Some(entries) = pages.next(store).await? {
        noted.extend(entries.into_iter().map(|entry| entry.key));
    }
    let (mut removed, mut there) = (0, HashSet::new());
    let mut pages = Pages::of(key::tokens());
    while let Some(entries) = pages.next(store).await? {
        for entry in &entries {
            let Some(record) = read(entry) else { continue };
            if record.expires_at.is_none_or(|at| at >= before) {
                there.insert(record.id);
                continue;
            }
            let txn = Txn::new().unchanged(entry).delete(entry.key.clone());
            removed += u64::from(matches!(store.commit(txn).await?, Commit::Done(_)));
        }
    }
    noted.retain(|note| key::token_used_of(note).is_some_and(|id| !there.contains(id)));
    for some in noted.chunks(Txn::MAX_OPERATIONS) {
        store.commit(some.iter().fold(Txn::new(), |txn, note| txn.delete(note.clone()))).await?;
    }
    Ok(removed)
}

fn read(entry: &Entry) -> Option<TokenRecord> {
    codec::decode(entry).inspect_err(|error| tracing::error!(%error, "cannot read a token's record")).ok()
}

#[cfg(test)]
mod tests {
    use octavius_core::{Digest, Role};
    use octavius_store::record::UsedRecord;
    use octavius_store::{EmbeddedOptions, open_embedded};

    use super::*;

    #[tokio::test]
    async fn only_what_is_over_for_a_while_goes_and_its_note_with_it() {
        let dir = tempfile::tempdir().unwrap();
        let store = open_embedded(dir.path(), EmbeddedOptions::default()).unwrap();
        let day = Duration::from_secs(24 * 3600);
        let ago = |days: u32| Some(Timestamp::now().saturating_sub(day * days).unwrap());
        for (id, expires_at) in
            [("old", ago(8)), ("over", ago(6)), ("good", Timestamp::now().checked_add(day).ok()), ("first", None)]
        {
            let record = TokenRecord {
                id: id.to_owned(),
                role: Role::User,
                user: "ann".to_owned(),
                groups: Vec::new(),
                catalogs: Vec::new(),
                created_at: Timestamp::now(),
                created_by: "admin".to_owned(),
                expires_at,
                uses: None,
                session: None,
            };
            let at = key::token(&Digest::of(id.as_bytes()));
            store.commit(Txn::new().put(at, codec::encode(&record))).await.unwrap();
        }
        for id in ["old", "good", "revoked"] {
            let note = codec::encode(&UsedRecord { at: Timestamp::now() });
            store.commit(Txn::new().put(key::token_used(id), note)).await.unwrap();
        }
        assert_eq!(remove(&*store).await.unwrap(), 1);
        assert!(store.get(&key::token(&Digest::of(b"old"))).await.unwrap().is_none());
        for (id, stays) in [("old", false), ("good", true), ("revoked", false)] {
            assert_eq!(store.get(&key::token_used(id)).await.unwrap().is_some(), stays, "{id}");
        }
        assert_eq!(remove(&*store).await.unwrap(), 0);
    }
}
