//! The pieces of one log: segments in the store and objects in the archive, found by offset, moved from one to the other, and cut out of the
//! middle where a log is longer than is kept.

use octavius_core::ExecutionId;
use octavius_core::limit::{LOG_PIECE_BYTES, STORED_VALUE_BYTES};
use octavius_store::piece::Piece;
use octavius_store::record::{LogCut, LogHead, LogObject};
use octavius_store::{Entry, Range, Store, StoreError, Txn, codec, key};

use super::read_piece;
use crate::archive::Archive;

/// Entries that are read at once: at most 1 MiB of segments.
const PAGE: usize = 16;

/// Smallest objects that a log is cut into whose limit is low.
const OBJECT_BYTES_MIN: usize = 128 * 1024;

/// Objects that are cut in one transaction. Of a log that was long when its limit became lower, the others follow with what is appended next.
const CUT_AT_ONCE: usize = 30;

/// A segment of the store.
#[derive(Debug, Clone)]
pub(super) struct Segment {
    pub(super) offset: u64,
    pub(super) piece: Piece,
}

impl Segment {
    fn end(&self) -> u64 {
        self.offset + self.piece.size()
    }
}

pub(super) fn segment(entry: &Entry) -> Result<Segment, StoreError> {
    let offset = entry.key.as_str().rsplit('/').next().and_then(|text| u64::from_str_radix(text, 16).ok());
    let offset = offset.ok_or_else(|| StoreError::Unreadable(format!("{}: names no offset", entry.key)))?;
    Ok(Segment { offset, piece: read_piece(entry)? })
}

/// A page of segments, from the one that holds `offset`, or begins after it.
pub(super) async fn segments_at(
    store: &dyn Store,
    id: ExecutionId,
    attempt: u32,
    offset: u64,
) -> Result<Vec<Segment>, StoreError> {
    // A segment is at most so long, so none that begins earlier can reach `offset`.
    let from = offset.checked_sub(STORED_VALUE_BYTES as u64);
    let after = from.map(|from| key::log_segment(id, attempt, from));
    let mut range = Range { after, ..Range::of(key::log_segments(id, attempt), PAGE) };
    // With many small segments before `offset`, the first page may end before it.
    loop {
        let page = store.range(&range).await?;
        let mut found = Vec::new();
        for entry in &page.entries {
            let segment = segment(entry)?;
            if segment.end() > offset {
                found.push(segment);
            }
        }
        match page.entries.last() {
            Some(last) if found.is_empty() && page.more => range.after = Some(last.key.clone()),
            _ => return Ok(found),
        }
    }
}

/// All segments that begin at `offset` or after it: of a log whose bytes move on into the archive, or whose length has a limit.
pub(super) async fn segments_from(
    store: &dyn Store,
    id: ExecutionId,
    attempt: u32,
    offset: u64,
) -> Result<Vec<Segment>, StoreError> {
    let after = offset.checked_sub(1).map(|before| key::log_segment(id, attempt, before));
    let mut range = Range { after, ..Range::of(key::log_segments(id, attempt), 4 * PAGE) };
    let mut found = Vec::new();
    loop {
        let page = store.range(&range).await?;
        for entry in &page.entries {
            found.push(segment(entry)?);
        }
        match range.next(&page) {
            Some(next) => range = next,
            None => return Ok(found),
        }
    }
}

/// The segments of a log that are in the store, in one run, or in two where its middle was cut out there; with where each run begins. None
/// where they are not what the head says.
pub(super) fn runs<'s>(head: &LogHead, segments: &'s [Segment]) -> Option<Vec<(u64, &'s [Segment])>> {
    let bounds = match head.cut.filter(|cut| cut.next_object == 0) {
        Some(cut) => vec![(head.archived, cut.from), (cut.to, head.next_offset)],
        None => vec![(head.archived, head.next_offset)],
    };
    let mut rest = segments;
    let mut runs = Vec::new();
    for (begins, ends) in bounds {
        let mut at = begins;
        let mut count = 0;
        while at < ends {
            at = rest.get(count).filter(|segment| segment.offset == at)?.end();
            count += 1;
        }
        if at != ends {
            return None;
        }
        let (run, others) = rest.split_at(count);
        runs.push((begins, run));
        rest = others;
    }
    rest.is_empty().then_some(runs)
}

/// Removes segments whose bytes are in objects.
pub(super) async fn remove_segments(
    store: &dyn Store,
    id: ExecutionId,
    attempt: u32,
    segments: &[Segment],
) -> Result<(), StoreError> {
    for some in segments.chunks(Txn::MAX_OPERATIONS) {
        let txn = some.iter().fold(Txn::new(), |txn, segment| txn.delete(key::log_segment(id, attempt, segment.offset)));
        store.commit(txn).await?;
    }
    Ok(())
}

/// How large objects are of a log of which so many bytes are kept.
pub(super) fn object_bytes(limit: u64) -> usize {
    usize::try_from(limit / 8).unwrap_or(usize::MAX).clamp(OBJECT_BYTES_MIN, LOG_PIECE_BYTES)
}

/// The object of this number.
pub(super) async fn object(
    store: &dyn Store,
    id: ExecutionId,
    attempt: u32,
    number: u32,
) -> Result<Option<LogObject>, StoreError> {
    store.get(&key::log_object(id, attempt, number)).await?.as_ref().map(codec::decode).transpose()
}

/// The number of the object that holds `offset`, and the object. None where there is none: it was moved, cut or removed.
pub(super) async fn find_object(
    store: &dyn Store,
    id: ExecutionId,
    attempt: u32,
    head: &LogHead,
    offset: u64,
) -> Result<Option<(u32, LogObject)>, StoreError> {
    let (mut low, mut high) = match head.cut {
        Some(cut) if offset < cut.from => (0, cut.first_object),
        Some(cut) => (cut.next_object, head.objects),
        None => (0, head.objects),
    };
    while low < high {
        let middle = low + (high - low) / 2;
        let Some(found) = object(store, id, attempt, middle).await? else { return Ok(None) };
        if offset < found.offset {
            high = middle;
        } else if offset >= found.end() {
            low = middle + 1;
        } else {
            return Ok(Some((middle, found)));
        }
    }
    Ok(None)
}

/// A head with new objects, and the objects that are cut for them.
#[derive(Debug)]
pub(super) struct Cut {
    pub(super) head: LogHead,
    /// By their numbers.
    pub(super) removed: Vec<(u32, LogObject)>,
}

/// The head of a log to which objects are added that hold all from `archived` on to its end. Where more would be kept than the limit, the
/// oldest objects after its beginning go.
pub(super) async fn with_objects(
    store: &dyn Store,
    id: ExecutionId,
    attempt: u32,
    head: LogHead,
    added: &mut [LogObject],
    limit: u64,
) -> Result<Cut, StoreError> {
    let mut latest = head.latest;
    for object in &mut *added {
        // The latest time so far, also where a clock was set back: what is looked for by time is found by halves.
        latest = latest.max(object.printed.map(|(_, last)| last));
        object.printed = object.printed.map(|(first, _)| first).or(latest).zip(latest);
    }
    let added = &*added;
    let head = LogHead {
        latest,
        archived: added.last().map_or(head.archived, LogObject::end),
        last_segment: head.next_offset,
        objects: head.objects + u32::try_from(added.len()).unwrap_or(u32::MAX),
        stored: head.stored + added.iter().map(LogObject::stored).sum::<u64>(),
        ..head
    };
    cut_objects(store, id, attempt, head, added, limit).await
}

/// Takes objects out of the middle of a log until no more is kept than the limit; `added` are the last of its objects where they have no
/// records yet.
pub(super) async fn cut_objects(
    store: &dyn Store,
    id: ExecutionId,
    attempt: u32,
    mut head: LogHead,
    added: &[LogObject],
    limit: u64,
) -> Result<Cut, StoreError> {
    let before = head.objects - u32::try_from(added.len()).unwrap_or(u32::MAX);
    let get = async |number: u32| match number.checked_sub(before) {
        Some(index) => Ok(added.get(index as usize).cloned()),
        None => object(store, id, attempt, number).await,
    };
    let mut removed = Vec::new();
    while super::layout::kept(&head) > limit && removed.len() < CUT_AT_ONCE {
        let number = match head.cut {
            Some(cut) => cut.next_object,
            None => {
                // The first that begins in the second half of what is kept.
                let (mut low, mut high) = (0, head.objects);
                while low < high {
                    let middle = low + (high - low) / 2;
                    match get(middle).await? {
                        Some(found) if found.offset >= limit / 2 => high = middle,
                        _ => low = middle + 1,
                    }
                }
                low
            }
        };
        let Some(gone) = get(number).await? else { break };
        head.stored = head.stored.saturating_sub(gone.stored());
        let cut = head.cut.unwrap_or(LogCut { from: gone.offset, to: gone.offset, first_object: number, next_object: number });
        head.cut = Some(LogCut { to: gone.end(), next_object: number + 1, ..cut });
        removed.push((number, gone));
    }
    Ok(Cut { head, removed })
}

/// Writes the records of added objects, from this number on, and removes those of objects that are gone.
pub(super) fn write_objects(
    mut txn: Txn,
    id: ExecutionId,
    attempt: u32,
    first: u32,
    added: &[LogObject],
    removed: &[(u32, LogObject)],
) -> Txn {
    let is_removed = |number: u32| removed.iter().any(|(gone, _)| *gone == number);
    for (number, object) in (first..).zip(added).filter(|(number, _)| !is_removed(*number)) {
        txn = txn.put(key::log_object(id, attempt, number), codec::encode(object));
    }
    for (number, _) in removed.iter().filter(|(number, _)| *number < first) {
        txn = txn.delete(key::log_object(id, attempt, *number));
    }
    txn
}

/// Removes objects that no record names any more. What fails is removed with the log.
pub(super) async fn remove_objects(archive: &Archive, id: ExecutionId, attempt: u32, removed: &[(u32, LogObject)]) {
    for (_, object) in removed {
        if let Err(error) = archive.remove_object(id, attempt, object).await {
            tracing::debug!(execution = %id, attempt, %error, "an object that was cut is left for later");
        }
    }
}
