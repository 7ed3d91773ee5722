//! Backups of real stores on disk.

use std::io::Cursor;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use async_trait::async_trait;

use super::*;
use crate::{EmbeddedOptions, StoreLayer, open_embedded};

struct Place {
    store: Arc<dyn Store>,
    _dir: tempfile::TempDir,
}

fn place() -> Place {
    place_with(EmbeddedOptions::default())
}

fn place_with(options: EmbeddedOptions) -> Place {
    let dir = tempfile::tempdir().unwrap();
    Place { store: open_embedded(dir.path(), options).unwrap(), _dir: dir }
}

async fn put(store: &dyn Store, key: &str, value: impl Into<Bytes>) {
    store.commit(Txn::new().put(Key::new(key), value)).await.unwrap();
}

/// A store that a controller has used, with this many further keys.
async fn used(count: usize) -> Place {
    let place = place();
    let record = ControllerRecord { id: "c1".to_owned() };
    put(&*place.store, key::controller().as_str(), codec::encode(&record)).await;
    for n in 0..count {
        put(&*place.store, &format!("exec/{n:04}"), format!("value {n}")).await;
    }
    place
}

async fn all(store: &dyn Store) -> Vec<(String, Bytes)> {
    let mut range = Some(Range::of(Key::new(""), 1000));
    let mut all = Vec::new();
    while let Some(asked) = range {
        let page = store.range(&asked).await.unwrap();
        range = asked.next(&page);
        all.extend(page.entries.into_iter().map(|entry| (entry.key.as_str().to_owned(), entry.value)));
    }
    all
}

async fn file(place: &Place) -> Vec<u8> {
    let mut backup = Backup::begin(Arc::clone(&place.store)).await.unwrap();
    let mut file = Vec::new();
    while let Some(piece) = backup.next().await.unwrap() {
        assert!(!piece.is_empty() && piece.len() <= PIECE_BYTES);
        file.extend_from_slice(&piece);
    }
    assert!(backup.next().await.unwrap().is_none(), "the end is the end");
    file
}

#[tokio::test]
async fn what_was_backed_up_is_what_is_restored_and_what_passes_is_left_out() {
    let from = used(1200).await;
    for n in 0..20u8 {
        put(&*from.store, &format!("blob/{n}"), vec![n; STORED_VALUE_BYTES]).await;
    }
    put(&*from.store, "empty", "").await;
    let kept = all(&*from.store).await;
    put(&*from.store, key::duty().as_str(), "whose turn").await;
    let _there = from.store.announce(Key::new("presence/e"), Bytes::new(), Duration::from_secs(60)).await.unwrap();
    let _peer = from.store.announce(key::peer("x"), Bytes::new(), Duration::from_secs(60)).await.unwrap();

    let file = file(&from).await;
    let to = place();
    let summary = restore(&*to.store, &mut Cursor::new(&file)).await.unwrap();
    assert_eq!(all(&*to.store).await, kept);
    assert_eq!((summary.entries, summary.bytes), (kept.len() as u64, file.len() as u64));
    assert_eq!(summary.header.controller_id, "c1");
    // A backup of what was restored differs in nothing but its header.
    let again = self::file(&to).await;
    let again = restore(&*place().store, &mut Cursor::new(&again)).await.unwrap();
    assert_eq!(again.entries, summary.entries);
}

#[tokio::test]
async fn a_backup_shows_one_instant_however_slowly_it_is_taken() {
    let from = used(1500).await;
    let before = all(&*from.store).await;
    let mut backup = Backup::begin(Arc::clone(&from.store)).await.unwrap();
    let mut file = Vec::new();
    let mut n = 0;
    while let Some(piece) = backup.next().await.unwrap() {
        file.extend_from_slice(&piece);
        n += 1;
        put(&*from.store, "exec/0001", format!("changed {n}")).await;
        put(&*from.store, &format!("exec/zz{n}"), "new").await;
    }
    put(&*from.store, "exec/0002", "changed after").await;
    let to = place();
    restore(&*to.store, &mut Cursor::new(&file)).await.unwrap();
    assert_eq!(all(&*to.store).await, before);
}

#[tokio::test]
async fn a_store_that_changes_too_much_meanwhile_is_told_and_one_never_used_too() {
    let small = place_with(EmbeddedOptions { history_changes: 10, ..EmbeddedOptions::default() });
    assert!(matches!(Backup::begin(Arc::clone(&small.store)).await, Err(BackupError::Unused)));
    let record = codec::encode(&ControllerRecord { id: "c1".to_owned() });
    put(&*small.store, key::controller().as_str(), record).await;
    let mut backup = Backup::begin(Arc::clone(&small.store)).await.unwrap();
    for n in 0..50 {
        put(&*small.store, "x", format!("{n}")).await;
    }
    let revision = backup.header().revision;
    assert!(matches!(backup.next().await, Err(BackupError::Overtaken { revision: told, .. }) if told == revision));
}

#[tokio::test]
async fn a_file_that_is_cut_or_changed_anywhere_is_found_out_before_anything_is_written() {
    let file = file(&used(3).await).await;
    let whole = verify(&mut Cursor::new(&file)).unwrap();
    assert_eq!(whole.entries, 4);
    for end in 0..file.len() {
        let error = verify(&mut Cursor::new(&file[..end])).unwrap_err();
        let told = match error {
            BackupError::Foreign => end < MAGIC.len(),
            BackupError::CutShort(at) => at == end as u64,
            _ => false,
        };
        assert!(told, "{end}: {error}");
    }
    for at in 0..file.len() {
        let mut damaged = file.clone();
        damaged[at] ^= 0x10;
        let error = verify(&mut Cursor::new(&damaged)).unwrap_err();
        // Where damage is told, it is at or before the byte, never behind it.
        assert!(!matches!(error, BackupError::Damaged { at: told, .. } if told > at as u64), "{at}: {error}");
    }
    let to = place();
    let mut more = file.clone();
    more.push(0);
    for (bytes, expected) in [
        (&file[..file.len() - 1], "cut short"),
        (&more[..], "something follows its end"),
        (&b"#!/bin/sh\necho some other file\n"[..], "not a backup"),
    ] {
        let error = restore(&*to.store, &mut Cursor::new(bytes)).await.unwrap_err();
        assert!(error.to_string().contains(expected), "{error}");
    }
    let mut newer = file.clone();
    newer[MAGIC.len()] = 2;
    let error = restore(&*to.store, &mut Cursor::new(&newer)).await.unwrap_err();
    assert!(matches!(error, BackupError::Newer(2)), "{error}");
    assert_eq!(all(&*to.store).await, []);
}

#[tokio::test]
async fn a_store_that_holds_something_is_left_as_it_is() {
    let file = file(&used(3).await).await;
    let to = used(1).await;
    put(&*to.store, key::controller().as_str(), codec::encode(&ControllerRecord { id: "another".to_owned() })).await;
    let before = all(&*to.store).await;
    let error = restore(&*to.store, &mut Cursor::new(&file)).await.unwrap_err();
    assert_eq!(error.to_string(), "the store is not empty, it holds controller, exec/0000: restore into an empty one");
    assert_eq!(all(&*to.store).await, before);
}

/// Its last write may have landed without an answer: whoever runs it again must not think that the store is another's.
#[tokio::test]
async fn a_restore_that_is_done_and_run_again_says_so() {
    let file = file(&used(3).await).await;
    let to = place();
    restore(&*to.store, &mut Cursor::new(&file)).await.unwrap();
    let before = all(&*to.store).await;
    let error = restore(&*to.store, &mut Cursor::new(&file)).await.unwrap_err();
    assert!(matches!(&error, BackupError::Restored(id) if id == "c1"), "{error}");
    assert!(error.to_string().contains("restored already"), "{error}");
    assert_eq!(all(&*to.store).await, before);
}

/// A store that goes away after so many transactions.
#[derive(Debug)]
struct Dying {
    inner: Arc<dyn Store>,
    left: AtomicUsize,
    /// Whether the last transaction is made, and only its answer is lost.
    loses_answers: bool,
}

#[async_trait]
impl StoreLayer for Dying {
    fn inner(&self) -> &dyn Store {
        &*self.inner
    }

    async fn commit(&self, txn: Txn) -> Result<Commit, StoreError> {
        if self.left.fetch_update(Ordering::SeqCst, Ordering::SeqCst, |left| left.checked_sub(1)).is_err() {
            return Err(StoreError::Unavailable("gone".to_owned()));
        }
        let done = self.inner.commit(txn).await;
        if self.loses_answers { Err(StoreError::Unknown("lost".to_owned())) } else { done }
    }
}

#[tokio::test]
async fn a_restore_that_was_interrupted_anywhere_is_recognised_and_finished_by_another() {
    let from = used(400).await;
    let file = file(&from).await;
    put(&*from.store, "exec/later", "").await;
    let other = self::file(&from).await;
    let kept = {
        let to = place();
        restore(&*to.store, &mut Cursor::new(&file)).await.unwrap();
        all(&*to.store).await
    };
    for (transactions, loses_answers) in (1..8).flat_map(|count| [(count, false), (count, true)]) {
        let to = place();
        let dying = Dying { inner: Arc::clone(&to.store), left: AtomicUsize::new(transactions), loses_answers };
        let interrupted = restore(&dying, &mut Cursor::new(&file)).await;
        let begun = to.store.get(&key::restoring()).await.unwrap().is_some();
        let whole = to.store.get(&key::controller()).await.unwrap().is_some();
        assert!(begun != whole, "{transactions}: either it is being restored or it is whole");
        assert!(interrupted.is_err() || whole, "{transactions}: it said that it was done");
        if begun {
            let error = restore(&*to.store, &mut Cursor::new(&other)).await.unwrap_err();
            assert!(matches!(error, BackupError::Other(_)), "{error}");
            restore(&*to.store, &mut Cursor::new(&file)).await.unwrap();
        }
        assert_eq!(all(&*to.store).await, kept, "{transactions}");
    }
}
