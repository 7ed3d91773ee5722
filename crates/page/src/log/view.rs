//! A piece of a log to look at: so many whole rows before or after a place. However long a log is, no more is read than that takes.

use bytes::Bytes;
use octavius_proto::v1::LogEnd;
use serde::Serialize;
use tonic::Status;

use super::parts::{Gap, Log, Part};
use super::rows::{ROW_BYTES, Rows};

/// Bytes of a log that are looked at together: a few screens.
pub(super) const VIEW_BYTES: u64 = 64 * 1024;

/// Rows that are looked at together, where they are short: each is some work for a browser.
pub(super) const VIEW_ROWS: usize = 1000;

/// Bytes before a view that are read for the colours that are in force where it begins.
const BEFORE_BYTES: u64 = 4 * 1024;

/// Bytes that are made to rows at once: a view ends about where it should.
const STEP_BYTES: usize = 4 * 1024;

/// What is to be said of a log, in the words of the command line: nothing where all is well. It `is_over` where nobody expects more.
pub(super) fn note(end: &LogEnd, is_over: bool) -> String {
    match end {
        LogEnd { damaged: true, attempt, .. } => {
            format!("the log of attempt {attempt} is not whole: its executor's count or checksum differs from what was kept")
        }
        LogEnd { size: 0, sealed, attempt, .. } if *sealed || (is_over && *attempt == 0) => "nothing was printed".to_owned(),
        LogEnd { attempt: 1.., sealed: false, .. } if is_over => {
            "the log may not be whole: its executor has not said so; what it still sends is kept".to_owned()
        }
        LogEnd { size: 0, .. } => "nothing has been printed yet".to_owned(),
        _ => String::new(),
    }
}

/// Where to look.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Place {
    /// At the end.
    Tail,
    /// From this offset on, where a row begins.
    From(u64),
    /// At what is before this offset, where a row begins.
    Before(u64),
    /// From the first row that begins at or after this offset.
    Near(u64),
}

/// Rows of a log, and where they are.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize)]
pub(super) struct View {
    /// The attempt; 0 where none has started.
    pub(super) attempt: u32,
    /// Where the first row begins.
    pub(super) start: u64,
    /// Where the row after these begins; where the last one does, if that one has not ended.
    pub(super) end: u64,
    /// Bytes of the log so far.
    pub(super) size: u64,
    /// Whether nothing comes after these rows, by now.
    pub(super) is_last: bool,
    /// Whether nothing more will come.
    pub(super) sealed: bool,
    /// What is to be said of the log; mostly nothing.
    pub(super) note: String,
    /// The rows.
    pub(super) html: String,
}

/// What was read of a log, in order.
#[derive(Debug)]
enum Piece {
    Bytes(u64, Bytes),
    Gap(Gap),
}

impl Log {
    /// Looks at a place.
    pub(super) async fn view(&self, place: Place) -> Result<View, Status> {
        let end = self.end().await?;
        let log = self.of(end.attempt);
        let view = View {
            attempt: end.attempt,
            size: end.size,
            sealed: end.sealed,
            note: note(&end, false),
            is_last: true,
            start: end.size,
            end: end.size,
            html: String::new(),
        };
        if end.attempt == 0 {
            return Ok(view);
        }
        match place {
            Place::Tail => log.before(end.size, &end, view).await,
            Place::Before(to) => log.before(to.min(end.size), &end, view).await,
            Place::From(from) => log.after(from.min(end.size), &end, view).await,
            Place::Near(0) => log.after(0, &end, view).await,
            Place::Near(_) if end.size == 0 => log.after(0, &end, view).await,
            Place::Near(near) => match log.row_after(near.min(end.size), &end).await? {
                Some(from) => log.after(from, &end, view).await,
                None => log.before(end.size, &end, view).await,
            },
        }
    }

    /// The rows from `from` on.
    async fn after(&self, from: u64, end: &LogEnd, view: View) -> Result<View, Status> {
        // The last row may begin where enough has been shown, and is whole.
        let to = from.saturating_add(VIEW_BYTES + ROW_BYTES + 8).min(end.size);
        let pieces = self.pieces(from.saturating_sub(BEFORE_BYTES), to).await?;
        let from = gap_at(&pieces, from).map_or(from, |gap| gap.offset);
        let (html, place) = shown(&pieces, from, true);
        Ok(closed(html, place, from, to, end, view))
    }

    /// The rows that end at `to`.
    async fn before(&self, to: u64, end: &LogEnd, view: View) -> Result<View, Status> {
        let lower = to.saturating_sub(VIEW_BYTES);
        let pieces = self.pieces(lower.saturating_sub(BEFORE_BYTES), to).await?;
        let from = first_row(&pieces, lower, to);
        let (html, place) = shown(&pieces, from, false);
        Ok(closed(html, place, from, to, end, view))
    }

    /// Where a row begins at or after `near`, which is not 0; where none does for long, there. None where none begins any more.
    async fn row_after(&self, near: u64, end: &LogEnd) -> Result<Option<u64>, Status> {
        let to = near.saturating_add(ROW_BYTES).min(end.size);
        let pieces = self.pieces(near - 1, to).await?;
        for piece in &pieces {
            let begins = match piece {
                Piece::Gap(gap) => Some(gap.offset),
                Piece::Bytes(offset, data) => data.iter().position(|byte| *byte == b'\n').map(|index| offset + index as u64 + 1),
            };
            if let Some(begins) = begins {
                return Ok((begins < end.size).then_some(begins));
            }
        }
        Ok((to < end.size).then_some(near))
    }

    /// Reads from `from` to `to`. Where that begins within a gap, the gap is told as a whole.
    async fn pieces(&self, from: u64, to: u64) -> Result<Vec<Piece>, Status> {
        let mut pieces = Vec::new();
        if from >= to {
            return Ok(pieces);
        }
        let mut parts = self.read(from, false).await?;
        loop {
            let next = match parts.next().await? {
                Part::Attempt(_) => continue,
                Part::End(_) => break,
                Part::Gap(gap) => {
                    let next = gap.end();
                    pieces.push(Piece::Gap(gap));
                    next
                }
                Part::Bytes(offset, data) => {
                    let next = offset + data.len() as u64;
                    let wanted = usize::try_from(to - offset).map_or(data.len(), |wanted| wanted.min(data.len()));
                    // A copy, so that the whole of what was sent is not held for a part of it.
                    pieces.push(Piece::Bytes(offset, Bytes::copy_from_slice(&data[..wanted])));
                    next
                }
            };
            if next >= to {
                break;
            }
        }
        drop(parts);
        if let Some(Piece::Gap(gap)) = pieces.first_mut()
            && gap.offset > 0
        {
            let (begins, end) = (self.gap_begins(gap.offset, gap.end()).await?, gap.end());
            (gap.offset, gap.size) = (begins, end - begins);
        }
        Ok(pieces)
    }

    /// Where the gap begins that `within` lies in and that ends at `end`. The controller tells of a gap from where it was asked on, so the
    /// beginning is looked for, in halves.
    async fn gap_begins(&self, within: u64, end: u64) -> Result<u64, Status> {
        let (mut low, mut high) = (0, within);
        while low < high {
            let middle = low + (high - low) / 2;
            low = match self.read(middle, false).await?.next().await? {
                Part::Gap(gap) if gap.end() >= end => {
                    high = middle;
                    low
                }
                Part::Gap(gap) => gap.end().clamp(middle + 1, high),
                Part::Bytes(_, data) => middle.saturating_add(data.len() as u64).clamp(middle + 1, high),
                Part::Attempt(_) | Part::End(_) => middle + 1,
            };
        }
        Ok(low)
    }
}

/// The gap that a view which is to begin at `from` would begin within.
fn gap_at(pieces: &[Piece], from: u64) -> Option<&Gap> {
    pieces.iter().find_map(|piece| match piece {
        Piece::Gap(gap) if gap.offset < from && gap.end() > from => Some(gap),
        _ => None,
    })
}

/// Where the first of the rows begins that are shown of what ends at `to`: not before `lower` but for a gap, and not too many.
fn first_row(pieces: &[Piece], lower: u64, to: u64) -> u64 {
    let (mut first, mut rows) = (None, 0);
    for piece in pieces.iter().rev() {
        match piece {
            Piece::Gap(gap) if gap.end() > lower || (gap.end() == lower && lower > 0) => {
                // What comes after a gap begins a row; the gap is one itself.
                first = Some(if gap.end() > lower { gap.offset } else { lower });
                rows += 1;
            }
            Piece::Gap(_) => {}
            Piece::Bytes(offset, data) => {
                for (index, _) in data.iter().enumerate().rev().filter(|(_, byte)| **byte == b'\n') {
                    let begins = offset + index as u64 + 1;
                    // A line break at the very end begins no row.
                    if begins < lower || rows >= VIEW_ROWS {
                        break;
                    }
                    if begins < to {
                        first = Some(begins);
                        rows += 1;
                    }
                }
            }
        }
        if rows >= VIEW_ROWS {
            return first.unwrap_or(lower);
        }
    }
    // A line that is longer than all that is shown goes on in a row that begins anywhere.
    if lower == 0 { 0 } else { first.unwrap_or(lower) }
}

/// How far the rows of a view have come.
enum Shown {
    /// So far, and that is enough.
    Enough(u64),
    /// To the end of what was read; the last row is as it is here.
    All(Rows),
}

/// The rows from `start` on; where it is `bounded`, no more than is looked at together.
fn shown(pieces: &[Piece], start: u64, bounded: bool) -> (String, Shown) {
    let begins = pieces.first().map_or(start, |piece| match piece {
        Piece::Bytes(offset, _) => *offset,
        Piece::Gap(gap) => gap.offset,
    });
    let (mut rows, mut html, mut before) = (Rows::new(begins), String::new(), String::new());
    let mut count = 0;
    for piece in pieces {
        let mut rest = match piece {
            Piece::Gap(gap) => {
                rows.gap(gap.offset, gap.size, &gap.reason, if gap.offset < start { &mut before } else { &mut html });
                count += 1;
                continue;
            }
            Piece::Bytes(offset, data) => {
                let early = usize::try_from(start.saturating_sub(*offset)).map_or(data.len(), |early| early.min(data.len()));
                let (early, rest) = data.split_at(early);
                rows.take(early, &mut before);
                if !early.is_empty() && offset + early.len() as u64 == start {
                    rows.restart(start);
                }
                rest
            }
        };
        while !rest.is_empty() {
            let step = rest.len().min(STEP_BYTES);
            let line = rest[..step].iter().position(|byte| *byte == b'\n');
            let (step, after) = rest.split_at(line.map_or(step, |line| line + 1));
            rest = after;
            rows.take(step, &mut html);
            count += usize::from(line.is_some());
            let shown = rows.row_begins().saturating_sub(start);
            if bounded && (count >= VIEW_ROWS || shown >= VIEW_BYTES) {
                return (html, Shown::Enough(rows.row_begins()));
            }
        }
    }
    (html, Shown::All(rows))
}

/// The view of these rows, of what was read up to `to`.
fn closed(mut html: String, place: Shown, start: u64, to: u64, log: &LogEnd, view: View) -> View {
    let (end, is_last) = match place {
        Shown::Enough(at) => (at, at >= log.size),
        Shown::All(rows) if to >= log.size && !log.sealed => {
            rows.open(&mut html);
            (rows.row_begins(), true)
        }
        Shown::All(mut rows) => {
            rows.finish(&mut html);
            (rows.row_begins(), to >= log.size)
        }
    };
    View { start, end, is_last, html, ..view }
}
