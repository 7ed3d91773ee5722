//! Where the bytes of a log go that stay in the store: which segments are written, and, where a log has a limit, which are cut out of its
//! middle. Pure, so that it can be tried with any log.

use octavius_store::piece::{Piece, SEGMENT_BYTES};
use octavius_store::record::{LogCut, LogHead};

/// The last segment is written again, longer, while it is shorter than this; so a job that prints a little at a time leaves few keys,
/// and few bytes are written again: it is what logs of many jobs that print a little cost a store most.
pub(super) const MERGE_BELOW: u64 = 2 * 1024;

/// Segments that are cut in one transaction. Of a log that was long when its limit became lower, the others follow with what is appended next.
pub(super) const CUT_AT_ONCE: usize = 50;

/// What a transaction that appends does to a log.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Layout {
    pub(super) head: LogHead,
    /// Segments to write, by where they begin.
    pub(super) put: Vec<(u64, Piece)>,
    /// Where segments begin that go.
    pub(super) delete: Vec<u64>,
}

impl Layout {
    /// The same, with nothing written: bytes that nobody can read any more are counted only.
    pub(super) fn counted_only(self) -> Self {
        let end = self.head.next_offset;
        Self { head: LogHead { archived: end, last_segment: end, ..self.head }, put: Vec::new(), delete: Vec::new() }
    }
}

/// How long a segment is at most, of a log of which so many bytes are kept.
fn segment_bytes(limit: u64) -> usize {
    usize::try_from(limit / 8).unwrap_or(SEGMENT_BYTES).clamp(4096, SEGMENT_BYTES)
}

/// Bytes of a log that is in the store that are kept.
pub(super) fn kept(head: &LogHead) -> u64 {
    head.next_offset - head.cut.map_or(0, |cut| cut.to - cut.from)
}

/// How many of `size` bytes that are to be appended may go into one transaction that takes `most`: with a limit, what fills the beginning
/// of the log goes alone; of what comes after that, only what stays is written, however much it is.
pub(super) fn at_once(head: &LogHead, limit: Option<u64>, size: usize, most: usize) -> usize {
    let Some(limit) = limit else { return size.min(most) };
    let half = limit / 2;
    let room = usize::try_from(half.saturating_sub(head.next_offset)).unwrap_or(usize::MAX);
    match room {
        0 if half <= most as u64 => size,
        0 => size.min(most),
        room => size.min(room).min(most),
    }
}

/// Appends all of `new`; `last` is the last segment where that is short.
pub(super) fn append(head: &LogHead, last: &Piece, new: &Piece, limit: u64) -> Layout {
    lay_out(head, last, new, head.next_offset, segment_bytes(limit), head.cut, Vec::new())
}

/// Appends `new` to a log of which at most `limit` bytes are kept, where all of it would be more. `segments` are those that may go: with
/// where they begin and how long they are, from the first one after the log's beginning that is kept in any case to the last.
pub(super) fn append_and_cut(head: &LogHead, last: &Piece, new: &Piece, limit: u64, segments: &[(u64, u64)]) -> Layout {
    let begins = segments.first().map_or(head.next_offset, |(begins, _)| *begins);
    let from = head.cut.map_or(begins, |cut| cut.from);
    let room = limit.saturating_sub(from);
    let mut delete = Vec::new();
    let mut to = begins;
    let mut rest = segments.iter().peekable();
    while delete.len() < CUT_AT_ONCE
        && let Some((begins, size)) = rest.next_if(|_| head.next_offset - to + new.size() > room)
    {
        delete.push(*begins);
        to = begins + size;
    }
    // Where all that was there is not enough to go, something of what comes goes too.
    let over = (head.next_offset - to + new.size()).saturating_sub(room).min(new.size());
    let skip = if rest.peek().is_some() { 0 } else { over };
    let stored = new.part(usize::try_from(skip).unwrap_or(usize::MAX), new.data.len());
    to += skip;
    let gone = delete.last() == Some(&head.last_segment) || head.last_segment < from || skip > 0;
    let last = if gone { &Piece::default() } else { last };
    let cut = (to > from).then_some(LogCut { from, to, first_object: 0, next_object: 0 });
    let mut layout = lay_out(head, last, &stored, head.next_offset + skip, segment_bytes(limit), cut, delete);
    layout.head.next_offset = head.next_offset + new.size();
    layout.head.crc32c = crc32c::crc32c_append(head.crc32c, &new.data);
    layout
}

fn lay_out(
    head: &LogHead,
    last: &Piece,
    new: &Piece,
    mut begins: u64,
    segment_bytes: usize,
    cut: Option<LogCut>,
    delete: Vec<u64>,
) -> Layout {
    let mut after = LogHead {
        next_offset: head.next_offset + new.size(),
        crc32c: crc32c::crc32c_append(head.crc32c, &new.data),
        cut,
        ..*head
    };
    let mut new = new.clone();
    let last_size = head.next_offset - head.last_segment;
    if new.size() > 0 && (1..MERGE_BELOW).contains(&last_size) && last.size() == last_size {
        new = Piece::join(&[last.clone(), new]);
        begins = head.last_segment;
    }
    let mut put = Vec::new();
    let mut from = 0;
    after.last_segment = if new.data.is_empty() { head.last_segment } else { begins };
    while from < new.data.len() {
        let segment = new.part(from, from + segment_bytes);
        from += segment.data.len();
        after.last_segment = begins;
        let next = begins + segment.size();
        put.push((begins, segment));
        begins = next;
    }
    Layout { head: after, put, delete }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use octavius_core::log::Times;
    use proptest::prelude::*;

    use super::*;

    /// A log as a store would have it.
    #[derive(Debug, Default)]
    struct Log {
        head: LogHead,
        segments: BTreeMap<u64, Piece>,
    }

    impl Log {
        fn last(&self) -> Piece {
            let size = self.head.next_offset - self.head.last_segment;
            if (1..MERGE_BELOW).contains(&size) { self.segments[&self.head.last_segment].clone() } else { Piece::default() }
        }

        fn append(&mut self, new: &Piece, limit: u64) {
            let layout = if kept(&self.head) + new.size() <= limit {
                append(&self.head, &self.last(), new, limit)
            } else {
                let from = self.head.cut.map_or(limit / 2, |cut| cut.to);
                let segments: Vec<_> = self.segments.range(from..).map(|(begins, piece)| (*begins, piece.size())).collect();
                append_and_cut(&self.head, &self.last(), new, limit, &segments)
            };
            for gone in layout.delete {
                assert!(self.segments.remove(&gone).is_some());
            }
            self.segments.extend(layout.put);
            self.head = layout.head;
        }
    }

    proptest! {
        #[test]
        fn beginning_and_end_are_kept_and_no_more(
            sizes in prop::collection::vec(prop_oneof![1usize..300, 1usize..20_000, 1usize..200_000], 1..60),
            limit in prop_oneof![Just(65_536u64), 65_536u64..400_000, Just(u64::MAX)],
        ) {
            let total: usize = sizes.iter().sum();
            let printed: Vec<u8> = (0..total).map(|at| (at % 251) as u8).collect();
            let mut log = Log::default();
            for size in sizes {
                let mut rest = size;
                while rest > 0 {
                    let at = usize::try_from(log.head.next_offset).unwrap();
                    let some = at_once(&log.head, Some(limit), rest, 256 * 1024);
                    prop_assert!(some > 0 && some <= rest);
                    let data = printed[at..at + some].to_vec();
                    log.append(&Piece { data: data.into(), times: Times::all_at(1) }, limit);
                    rest -= some;
                }
                prop_assert!(kept(&log.head) <= limit);
            }
            prop_assert_eq!(log.head.next_offset, total as u64);
            prop_assert_eq!(log.head.crc32c, crc32c::crc32c(&printed));
            let cut = log.head.cut.map_or((total as u64, total as u64), |cut| (cut.from, cut.to));
            if total as u64 > limit {
                prop_assert!(cut.0 >= limit / 2 && cut.0 < limit / 2 + limit / 8 + 4096, "{:?} of {}", cut, limit);
                // What is kept of the end is not less than a quarter.
                prop_assert!(total as u64 - cut.1 >= limit / 4, "{:?} of {} for {}", cut, total, limit);
            } else {
                prop_assert!(log.head.cut.is_none());
            }
            let mut at = 0;
            for (begins, piece) in &log.segments {
                if at == cut.0 {
                    at = cut.1;
                }
                prop_assert_eq!(*begins, at);
                let from = usize::try_from(at).unwrap();
                prop_assert!(piece.data.len() <= SEGMENT_BYTES.max(9000));
                prop_assert_eq!(&piece.data[..], &printed[from..from + piece.data.len()]);
                at += piece.size();
            }
            prop_assert_eq!(if at == cut.0 { cut.1 } else { at }, total as u64);
        }
    }
}
