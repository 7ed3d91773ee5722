//! What every backend must do, as tests that any backend runs: one suite, so that nothing can lean on what only one of them does.
//!
//! A test panics where the store does wrong. All waits are bounded. Nothing here relies on what a revision's number is, only on its
//! order, and nothing on two transactions that run at the same time having different ones.

#![expect(clippy::unwrap_used, clippy::missing_panics_doc, reason = "these are tests: a panic is how they fail")]

mod blobs;
mod data;
mod model;
mod presences;
mod watches;

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;

pub use model::follows_model;

use crate::api::{Commit, Entry, Event, Key, Range, Revision, Store, StoreError, Txn, Watch, WatchBatch};

/// Longest wait for what must happen.
const PATIENCE: Duration = Duration::from_secs(30);

/// Runs the whole suite, each test on a store of its own that `make` gives, empty. Needs a Tokio runtime with timers.
pub async fn all(make: impl AsyncFn() -> Arc<dyn Store>) {
    data::keys_come_and_go(&*make().await).await;
    data::values_hold_any_bytes(&*make().await).await;
    data::conditions_hold_all_or_nothing_is_written(&*make().await).await;
    data::a_conflict_reads_what_was_asked(&*make().await).await;
    data::revisions_grow(&*make().await).await;
    data::racers_lose_no_update(make().await).await;
    data::ranges_are_ordered_and_cut_at_prefixes(&*make().await).await;
    data::pages_end_by_limit_and_by_size(&*make().await).await;
    data::pages_of_one_revision_show_one_state(make().await).await;
    data::limits_refuse_and_change_nothing(&*make().await).await;
    data::what_limits_allow_is_taken(&*make().await).await;
    watches::past_and_present_come_in_order(&*make().await).await;
    watches::a_transaction_is_one_batch_of_its_prefix(&*make().await).await;
    watches::two_watchers_see_the_same(&*make().await).await;
    watches::nothing_is_lost_between_a_list_and_a_watch(make().await).await;
    watches::old_revisions_are_whole_or_compacted(&*make().await).await;
    watches::a_dropped_wait_loses_nothing(&*make().await).await;
    // These mostly wait for time to pass, so they do it together.
    let stores = (make().await, make().await, make().await, make().await);
    tokio::join!(
        presences::one_appears_and_runs_out(&*stores.0),
        presences::one_is_renewed(&*stores.1),
        presences::one_is_withdrawn(&*stores.2),
        presences::one_is_taken_over(&*stores.3),
    );
    blobs::all_sizes_come_back(&*make().await).await;
    blobs::damage_is_told(&*make().await).await;
    blobs::what_no_transaction_takes_is_refused_and_ends_nothing_silently(&*make().await).await;
    blobs::a_blob_is_whole_or_not_there_whatever_is_not_written(make().await).await;
    for seed in 1..=5 {
        follows_model(&*make().await, &model::choices(seed, 60)).await;
    }
}

fn key(text: &str) -> Key {
    Key::new(text)
}

/// Commits what must succeed.
async fn done(store: &dyn Store, txn: Txn) -> Revision {
    match store.commit(txn.clone()).await {
        Ok(Commit::Done(revision)) => revision,
        other => panic!("{txn:?} must be done: {other:?}"),
    }
}

async fn put(store: &dyn Store, name: &str, value: impl Into<Bytes>) -> Revision {
    done(store, Txn::new().put(key(name), value)).await
}

/// All entries of a range, read in pages of one revision.
async fn list(store: &dyn Store, range: Range) -> Result<(Vec<Entry>, Revision), StoreError> {
    let mut next = Some(range);
    let mut entries = Vec::new();
    let mut revision = 0;
    while let Some(range) = next {
        let page = store.range(&range).await?;
        assert!(page.entries.len() <= range.limit, "{range:?} gave {} entries", page.entries.len());
        assert!(revision == 0 || revision == page.revision, "pages of {revision} and {}", page.revision);
        assert!(!page.more || !page.entries.is_empty(), "{range:?} gave nothing, and more");
        revision = page.revision;
        next = range.next(&page);
        entries.extend(page.entries);
    }
    Ok((entries, revision))
}

/// All keys under a prefix, now.
async fn names(store: &dyn Store, prefix: &str) -> Vec<String> {
    let (entries, _) = list(store, Range::of(key(prefix), 1000)).await.unwrap();
    entries.into_iter().map(|entry| entry.key.to_string()).collect()
}

/// What a watch must deliver within [`PATIENCE`].
async fn next(watch: &mut Box<dyn Watch>) -> WatchBatch {
    tokio::time::timeout(PATIENCE, watch.next()).await.expect("nothing came from the watch").unwrap()
}

/// An event as a short text, for comparisons: `a=1` or `a gone`.
fn short(event: &Event) -> String {
    match event {
        Event::Put(entry) => format!("{}={}", entry.key, String::from_utf8_lossy(&entry.value)),
        Event::Delete(key) => format!("{key} gone"),
    }
}

fn shorts(batch: &WatchBatch) -> Vec<String> {
    let mut shorts: Vec<_> = batch.events.iter().map(short).collect();
    shorts.sort();
    shorts
}
