//! Reading keys and pages from a snapshot.

use std::collections::BTreeMap;
use std::ops::Bound;
use std::sync::Mutex;

use redb::ReadTransaction;

use super::feed::Feed;
use super::file::{self, Failure, RECORDS, Stored};
use super::lock;
use crate::api::{Entry, Key, Page, Range, StoreError};

pub(super) fn get(snapshot: &ReadTransaction, key: &Key) -> Result<Option<Entry>, Failure> {
    let Some(bytes) = snapshot.open_table(RECORDS)?.get(key.as_str())? else { return Ok(None) };
    Ok(Some(Stored::decode(key.as_str(), bytes.value())?.entry(key.clone())))
}

/// A page: the snapshot's keys with the changes since the asked revision undone.
///
/// The snapshot is taken before the history is asked, and a change is in the history before it is in any snapshot; so all that the
/// snapshot shows beyond the asked revision is there to be undone, or the history says that it is not.
pub(super) fn range(snapshot: &ReadTransaction, feed: &Mutex<Feed>, range: &Range) -> Result<Page, Failure> {
    let newest = file::revision(snapshot)?;
    let at = range.at.unwrap_or(newest);
    if range.limit == 0 {
        return Err(StoreError::Invalid("a page holds at least one entry".to_owned()).into());
    }
    if at > newest {
        return Err(StoreError::Invalid(format!("revision {at} is still to come, the newest is {newest}")).into());
    }
    let after = range.after.as_ref().filter(|after| **after >= range.prefix);
    let is_asked = |key: &Key| key.as_str().starts_with(range.prefix.as_str()) && after.is_none_or(|after| key > after);
    let undo = if at < newest { lock(feed).undo(at, newest, is_asked)? } else { BTreeMap::new() };
    let mut undo = undo.into_iter().peekable();

    let start = after.map_or(Bound::Included(range.prefix.as_str()), |after| Bound::Excluded(after.as_str()));
    let records = snapshot.open_table(RECORDS)?;
    let mut records = records.range::<&str>((start, Bound::Unbounded))?;
    let mut record = records.next().transpose()?;
    let mut page = Page { entries: Vec::new(), more: false, revision: at };
    let mut bytes = 0;
    loop {
        let key = record.as_ref().map(|(key, _)| key.value()).filter(|key| key.starts_with(range.prefix.as_str()));
        // The next undone key comes first where it is smaller, and instead where it is the same.
        let is_undone = match (key, undo.peek()) {
            (_, None) => false,
            (None, Some(_)) => true,
            (Some(key), Some((undone, _))) => undone.as_str() <= key,
        };
        let entry = if is_undone {
            let Some((undone, before)) = undo.next() else { break };
            if key == Some(undone.as_str()) {
                record = records.next().transpose()?;
            }
            let Some(before) = before else { continue };
            before.entry(undone)
        } else {
            let Some((key, value)) = record.take().filter(|(key, _)| key.value().starts_with(range.prefix.as_str())) else {
                break;
            };
            record = records.next().transpose()?;
            Stored::decode(key.value(), value.value())?.entry(Key::new(key.value()))
        };
        bytes += entry.value.len();
        if page.entries.len() == range.limit || bytes > Range::MAX_BYTES {
            page.more = true;
            break;
        }
        page.entries.push(entry);
    }
    Ok(page)
}
