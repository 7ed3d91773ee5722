//! One attempt's log as it is read, wherever its bytes are: in the store, in the archive, or on their way.

use octavius_core::ExecutionId;
use octavius_proto::Fault;
use octavius_store::piece::Piece;
use octavius_store::record::{LogHead, LogObject};
use octavius_store::{StoreError, key};

use super::{Logs, from_archive, pieces};
use crate::archive::ArchiveError;
use crate::engine::EngineError;
use crate::fault;

/// Bytes that are looked through at once for the last lines.
const TAIL_WINDOW: u64 = 1024 * 1024;

/// A line is at most so long where one is looked for to begin with.
const LINE_BYTES: u64 = 64 * 1024;

/// Looks at a log whose pieces move while they are looked for.
const MAX_TRIES: usize = 5;

/// What is at a place of a log.
pub(super) enum Found {
    /// Bytes, which begin just there.
    Piece(Piece),
    /// Nothing: it was cut out up to there.
    Cut(u64),
    /// Nothing: it is the end.
    End,
}

/// One attempt's log, as it is read from one end to the other.
#[derive(Debug)]
pub(super) struct Source<'a> {
    logs: &'a Logs,
    id: ExecutionId,
    pub(super) attempt: u32,
    /// The object that was read last, and its number.
    object: Option<(u32, LogObject)>,
}

impl<'a> Source<'a> {
    pub(super) fn new(logs: &'a Logs, id: ExecutionId, attempt: u32) -> Self {
        Self { logs, id, attempt, object: None }
    }

    pub(super) async fn head(&self) -> Result<Option<LogHead>, StoreError> {
        Ok(super::head(&*self.logs.store, self.id, self.attempt).await?.map(|(head, _)| head))
    }

    /// What is at `offset`, up to about 1 MiB of it.
    pub(super) async fn at(&mut self, offset: u64) -> Result<Found, Sending> {
        for _ in 0..MAX_TRIES {
            let Some(head) = self.head().await? else { return Ok(Found::End) };
            if head.removed {
                return Err(removed(self.id).into());
            }
            if offset >= head.next_offset {
                return Ok(Found::End);
            }
            if let Some(cut) = head.cut
                && (cut.from..cut.to).contains(&offset)
            {
                return Ok(Found::Cut(cut.to));
            }
            let found =
                if offset < head.archived { self.archived(&head, offset).await? } else { self.hot(&head, offset).await? };
            if let Some(piece) = found {
                return Ok(Found::Piece(piece));
            }
            // It has moved since the head was looked at, or goes.
            self.object = None;
        }
        Err(fault::from_engine(EngineError::NotFound(self.id)).into())
    }

    async fn hot(&self, head: &LogHead, offset: u64) -> Result<Option<Piece>, Sending> {
        let found = pieces::segments_at(&*self.logs.store, self.id, self.attempt, offset).await?;
        let (mut next, mut run) = (offset, Vec::new());
        for segment in found {
            let skip = next.checked_sub(segment.offset).and_then(|skip| usize::try_from(skip).ok());
            let Some(skip) = skip.filter(|_| next < head.next_offset) else { break };
            let piece = segment.piece.part(skip, segment.piece.data.len());
            next += piece.size();
            run.push(piece);
        }
        Ok((!run.is_empty()).then(|| match <[Piece; 1]>::try_from(run) {
            Ok([one]) => one,
            Err(run) => Piece::join(&run),
        }))
    }

    async fn archived(&mut self, head: &LogHead, offset: u64) -> Result<Option<Piece>, Sending> {
        let Some(archive) = &self.logs.keeping.archive else {
            return Err(fault::internal().into()); // a controller does not start without the store's archive
        };
        let store = &*self.logs.store;
        let holds = |object: &LogObject| (object.offset..object.end()).contains(&offset);
        let known = match self.object.take() {
            Some(known) if holds(&known.1) => Some(known),
            // Mostly it is the next one.
            Some((number, before)) if before.end() == offset => {
                let next = pieces::object(store, self.id, self.attempt, number + 1).await?;
                next.filter(holds).map(|next| (number + 1, next))
            }
            _ => None,
        };
        let found = match known {
            Some(known) => Some(known),
            None => pieces::find_object(store, self.id, self.attempt, head, offset).await?,
        };
        let Some((number, object)) = found else { return Ok(None) };
        match archive.read(self.id, self.attempt, &object, offset).await {
            Ok((_, piece)) => {
                self.object = Some((number, object));
                Ok((piece.size() > 0).then_some(piece))
            }
            // Cut or removed since: then the head says so.
            Err(ArchiveError::Missing { .. })
                if pieces::object(store, self.id, self.attempt, number).await?.as_ref() != Some(&object) =>
            {
                Ok(None)
            }
            Err(ArchiveError::Missing { .. }) if store.get(&key::execution(self.id)).await?.is_none() => Ok(None),
            Err(error) => Err(from_archive(error).into()),
        }
    }

    /// The bytes from `lower` to `upper`, as far as they are there: with where each piece begins.
    async fn between(&mut self, lower: u64, upper: u64) -> Result<Vec<(u64, Piece)>, Sending> {
        let mut at = lower;
        let mut found = Vec::new();
        while at < upper {
            match self.at(at).await? {
                Found::Piece(piece) => {
                    let piece = piece.part(0, usize::try_from(upper - at).unwrap_or(usize::MAX));
                    let begins = at;
                    at += piece.size();
                    found.push((begins, piece));
                }
                Found::Cut(to) => at = to,
                Found::End => break,
            }
        }
        Ok(found)
    }

    /// Where the last `lines` lines begin. Reads backwards, each byte once, a window at a time.
    pub(super) async fn tail(&mut self, lines: u64) -> Result<u64, Sending> {
        let Some(head) = self.head().await? else { return Ok(0) };
        let end = head.next_offset;
        let mut missing = lines;
        let mut upper = end;
        while upper > 0 {
            // What was cut is passed over in one step.
            if let Some(cut) = head.cut
                && (cut.from + 1..=cut.to).contains(&upper)
            {
                upper = cut.from;
                continue;
            }
            let lower = upper.saturating_sub(TAIL_WINDOW).max(head.cut.filter(|cut| cut.to < upper).map_or(0, |cut| cut.to));
            for (begins, piece) in self.between(lower, upper).await?.iter().rev() {
                for index in memchr::memrchr_iter(b'\n', &piece.data) {
                    let line = begins + index as u64 + 1;
                    // A line break at the very end begins no line.
                    if line < end {
                        missing -= 1;
                        if missing == 0 {
                            return Ok(line);
                        }
                    }
                }
            }
            upper = lower;
        }
        Ok(0)
    }

    /// Where the first line begins that was printed at or after a time; the end where none was. Of what was printed at an unknown time, it is
    /// taken that it was after.
    pub(super) async fn since(&mut self, unix_ms: i64) -> Result<u64, Sending> {
        let mut found = None;
        for _ in 0..MAX_TRIES {
            let Some(head) = self.head().await? else { return Ok(0) };
            found = self.first_archived_since(&head, unix_ms).await?;
            if found.is_some() {
                break;
            }
        }
        let mut at = found.ok_or_else(|| fault::from_engine(EngineError::NotFound(self.id)))?;
        loop {
            match self.at(at).await? {
                Found::End => return Ok(at),
                Found::Cut(to) => at = to,
                Found::Piece(piece) if piece.times.is_empty() => return self.line_from(at).await,
                Found::Piece(piece) => match piece.times.since(unix_ms) {
                    Some(place) => return self.line_from(at + place).await,
                    None => at += piece.size(),
                },
            }
        }
    }

    /// Where the first object begins that has something of that time; where the store's part begins, if none has. None where an object was cut
    /// since the head was looked at.
    async fn first_archived_since(&self, head: &LogHead, unix_ms: i64) -> Result<Option<u64>, Sending> {
        let is_cut = |number: u32| head.cut.is_some_and(|cut| (cut.first_object..cut.next_object).contains(&number));
        let (mut low, mut high) = (0, head.objects);
        let mut begins = head.archived;
        while low < high {
            let mut middle = low + (high - low) / 2;
            if let Some(cut) = head.cut.filter(|_| is_cut(middle)) {
                if cut.next_object >= high {
                    high = cut.first_object;
                    continue;
                }
                middle = cut.next_object;
            }
            let Some(object) = pieces::object(&*self.logs.store, self.id, self.attempt, middle).await? else { return Ok(None) };
            if object.printed.is_none_or(|(_, last)| last >= unix_ms) {
                begins = object.offset;
                // Those that were cut are no candidates.
                high = if middle > 0 && is_cut(middle - 1) && low < middle {
                    head.cut.map_or(middle, |cut| cut.first_object)
                } else {
                    middle
                };
            } else {
                low = middle + 1;
            }
        }
        Ok(Some(begins))
    }

    /// Where a line begins at or after `offset`; `offset` where there is no line break for long.
    async fn line_from(&mut self, offset: u64) -> Result<u64, Sending> {
        let Some(before) = offset.checked_sub(1) else { return Ok(0) };
        for (begins, piece) in self.between(before, offset + LINE_BYTES).await? {
            if let Some(index) = memchr::memchr(b'\n', &piece.data) {
                return Ok(begins + index as u64 + 1);
            }
        }
        Ok(offset)
    }
}

/// What a reader is told of a log that was removed while its execution is kept.
fn removed(id: ExecutionId) -> Fault {
    let message =
        format!("the log of {id} was removed: the logs of its job, or all logs, took more room or were older than is kept");
    Fault::new(tonic::Code::NotFound, octavius_proto::reason::LOG_REMOVED, message)
}

/// Why a reader ends before its time.
pub(super) enum Sending {
    /// Nobody listens any more.
    Ended,
    /// Something failed, and is to be told.
    Failed(Fault),
}

impl From<StoreError> for Sending {
    fn from(error: StoreError) -> Self {
        Self::Failed(fault::from_store(error))
    }
}

impl From<Fault> for Sending {
    fn from(fault: Fault) -> Self {
        Self::Failed(fault)
    }
}
