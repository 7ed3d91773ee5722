//! Bytes in: by offset, each once, from any controller to any other. A little goes into the store, much at once into the archive.

use bytes::Bytes;
use octavius_core::execution::{Attempt, Execution, Fence};
use octavius_core::limit::{LOG_PIECE_BYTES, STORED_VALUE_BYTES};
use octavius_core::log::Times;
use octavius_core::{ExecutionId, Principal};
use octavius_proto::{Fault, reason, v1};
use octavius_store::piece::Piece;
use octavius_store::record::{LogHead, LogObject};
use octavius_store::{Commit, StoreError, Txn, codec, key};
use tonic::Code;

use super::layout::{self, Layout, MERGE_BELOW};
use super::pieces::{self, Cut, Segment};
use super::{Logs, from_archive, read_piece};
use crate::archive::{Archive, ArchiveError};
use crate::engine::{EngineError, Known};
use crate::fault;
use crate::heads::End;

/// Most bytes of one append.
const APPEND_BYTES: usize = LOG_PIECE_BYTES;

/// Bytes of one transaction: well below what a store takes.
const TRANSACTION_BYTES: usize = 4 * STORED_VALUE_BYTES;

/// So many bytes at once do not pass through the store.
const BULK_BYTES: u64 = 512 * 1024;

/// So many bytes of one log stay in the store while its job runs; more of them move into the archive.
const HOT_BYTES: u64 = 1024 * 1024;

/// While the archive does not answer, so many may.
const HOT_BYTES_MAX: u64 = 8 * 1024 * 1024;

/// Segments that are removed in the transaction that moves them; the others follow.
const REMOVED_AT_ONCE: usize = 30;

/// Tries of one append whose answer is lost.
const MAX_TRIES: usize = 5;

/// Tries of one append while others change the same log or its execution: more is not contention.
const MAX_CONFLICTS: usize = 100;

/// Whose log is written.
#[derive(Debug, Clone, Copy)]
struct Writer<'a> {
    principal: &'a Principal,
    id: ExecutionId,
    fence: Fence,
}

/// What came of a try.
enum Tried {
    /// The log ends there now.
    Done(LogHead, octavius_store::Revision, Piece),
    /// Something has changed meanwhile.
    Conflict,
}

impl Logs {
    pub(super) async fn append(&self, principal: &Principal, request: v1::AppendLogRequest) -> Result<u64, Fault> {
        let id = octavius_proto::execution_id("id", &request.id)?;
        let fence = octavius_proto::fence(request.attempt, request.nonce)?;
        if request.data.len() > APPEND_BYTES {
            let message = format!("{} bytes at once, at most {APPEND_BYTES} are taken", request.data.len());
            return Err(Fault::new(Code::ResourceExhausted, reason::LIMIT, message));
        }
        let times = Times::try_from(request.times.unwrap_or_default())?;
        let writer = Writer { principal, id, fence };
        let whole = Piece { data: request.data, times };
        let end = request.offset.saturating_add(whole.size());
        let mut next = self.append_some(writer, request.offset, &whole).await?;
        while next < end {
            let done = usize::try_from(next - request.offset).unwrap_or(usize::MAX);
            next = self.append_some(writer, next, &whole.part(done, whole.data.len())).await?;
        }
        Ok(next)
    }

    /// The execution whose attempt this is, if the caller may append to its log. Who may is taken from what is remembered; who may not is
    /// told only by what is so now.
    async fn writable(&self, writer: Writer<'_>, fresh: bool) -> Result<Known, Fault> {
        let Writer { principal, id, fence } = writer;
        let may = |execution: &Execution| may_append(principal, execution, fence).is_ok();
        let known = if fresh { self.engine.read(id).await } else { self.engine.recall(id, may).await };
        let known = known.map_err(fault::from_engine)?;
        may_append(principal, &known.execution, fence)?;
        Ok(known)
    }

    /// The end of an attempt's log, as the store has it now.
    async fn look_at_end(&self, id: ExecutionId, attempt: u32) -> Result<End, StoreError> {
        let (head, modified) = super::head(&*self.store, id, attempt).await?.unwrap_or_default();
        let mut last = Piece::default();
        if (1..MERGE_BELOW).contains(&(head.next_offset - head.last_segment))
            && let Some(segment) = self.store.get(&key::log_segment(id, attempt, head.last_segment)).await?
        {
            last = read_piece(&segment)?;
        }
        Ok(End { modified, head, last })
    }

    /// Appends as much of `data` as goes at once, at least a byte. Bytes that are there already are passed over.
    async fn append_some(&self, writer: Writer<'_>, offset: u64, data: &Piece) -> Result<u64, Fault> {
        let Writer { id, fence, .. } = writer;
        let mut fresh = false;
        let (mut lost, mut conflicts) = (0, 0);
        loop {
            let known = self.writable(writer, fresh).await?;
            let remembered = if fresh { None } else { self.heads.get(id, fence.attempt) };
            // Only what follows at once is done from memory; anything else is looked at before it is answered.
            let remembered = remembered.filter(|end| end.head.next_offset == offset);
            // Of a log that is not known here, the first bytes most likely begin it; the transaction asks whether they do.
            // Where no bytes are taken, it is looked at: those that are there already are still answered.
            let begins = (offset == 0 && !fresh && self.room.for_logs().is_ok()).then(End::beginning);
            let end = match remembered.or(begins) {
                Some(end) => end,
                None => self.look_at_end(id, fence.attempt).await.map_err(fault::from_store)?,
            };
            let next = end.head.next_offset;
            if offset > next {
                let message = format!("the log of {id} goes on at byte {next}, not at {offset}");
                return Err(Fault::new(Code::OutOfRange, reason::LOG_GAP, message).with("next_offset", next));
            }
            let there = usize::try_from(next - offset).unwrap_or(usize::MAX);
            if there >= data.data.len() {
                return Ok(next);
            }
            let new = data.part(there, data.data.len());
            match self.try_append(&known, fence.attempt, &end, &new).await? {
                Ok(Tried::Done(head, modified, last)) => {
                    self.engine.counts.appended(head.next_offset - next);
                    self.heads.put(id, fence.attempt, End { modified, head, last });
                    return Ok(head.next_offset);
                }
                Ok(Tried::Conflict) if conflicts < MAX_CONFLICTS => conflicts += 1,
                Ok(Tried::Conflict) => return Err(fault::from_engine(EngineError::Contended(id))),
                // It may have been made; the next look tells.
                Err(StoreError::Unknown(_)) if lost + 1 < MAX_TRIES => lost += 1,
                Err(error) => return Err(fault::from_store(error)),
            }
            self.heads.remove(id, fence.attempt);
            fresh = true;
        }
    }

    /// Appends to the archive or to the store.
    async fn try_append(&self, known: &Known, attempt: u32, end: &End, new: &Piece) -> Result<Result<Tried, StoreError>, Fault> {
        if end.head.removed {
            // Nobody can read it any more: it is counted, for the seal.
            let layout = layout::append(&end.head, &Piece::default(), new, u64::MAX).counted_only();
            return Ok(self.commit_layout(known, attempt, end, layout, Txn::new()).await);
        }
        let limit = self.keeping.limit_of(&known.execution);
        let Some(archive) = self.archive_for(&end.head, limit) else {
            self.room.for_logs()?;
            return Ok(self.store_bounded(known, attempt, end, new, limit).await);
        };
        let hot = end.head.next_offset - end.head.archived + new.size();
        let bulk = new.size() >= BULK_BYTES || hot >= HOT_BYTES;
        if bulk && archive.is_down() {
            if hot > HOT_BYTES_MAX {
                return Err(from_archive(archive.still_down()));
            }
        } else if bulk {
            match archive.within(self.to_archive(archive, known, attempt, end, new)).await {
                Ok(tried) => return Ok(Ok(tried)),
                Err(ArchiveError::Store(error)) => return Ok(Err(error)),
                Err(error) if hot > HOT_BYTES_MAX => return Err(from_archive(error)),
                Err(error) => {
                    tracing::debug!(execution = %known.execution.id, attempt, %error, "log bytes stay in the store for now");
                }
            }
        }
        self.room.for_logs()?;
        let some = new.part(0, TRANSACTION_BYTES);
        let layout = layout::append(&end.head, &end.last, &some, u64::MAX);
        Ok(self.store_hot(archive, known, attempt, end, layout, limit).await)
    }

    /// The archive, where bytes of this log go there while its job runs: not where so little is kept that it is no more than other logs have
    /// in the store, nor where it was cut there already.
    fn archive_for(&self, head: &LogHead, limit: u64) -> Option<&Archive> {
        let is_large = limit >= HOT_BYTES && head.cut.is_none_or(|cut| cut.next_object > 0);
        self.keeping.archive.as_ref().filter(|_| is_large || head.objects > 0)
    }

    /// Appends to a log that stays in the store, and of which only so much is kept.
    async fn store_bounded(&self, known: &Known, attempt: u32, end: &End, new: &Piece, limit: u64) -> Result<Tried, StoreError> {
        let mut some = new.part(0, layout::at_once(&end.head, Some(limit), new.data.len(), TRANSACTION_BYTES));
        let layout = if layout::kept(&end.head) + some.size() <= limit {
            layout::append(&end.head, &end.last, &some, limit)
        } else {
            let from = end.head.cut.map_or(limit / 2, |cut| cut.to);
            let segments = pieces::segments_from(&*self.store, known.execution.id, attempt, from).await?;
            let segments: Vec<_> = segments.iter().map(|segment| (segment.offset, segment.piece.size())).collect();
            if segments.len() > layout::CUT_AT_ONCE {
                some = some.part(0, TRANSACTION_BYTES);
            }
            layout::append_and_cut(&end.head, &end.last, &some, limit, &segments)
        };
        self.commit_layout(known, attempt, end, layout, Txn::new()).await
    }

    /// Appends to the store what will move into the archive; what is over the limit goes from there.
    async fn store_hot(
        &self,
        archive: &Archive,
        known: &Known,
        attempt: u32,
        end: &End,
        mut layout: Layout,
        limit: u64,
    ) -> Result<Tried, StoreError> {
        let id = known.execution.id;
        let Cut { head, removed } = pieces::cut_objects(&*self.store, id, attempt, layout.head, &[], limit).await?;
        layout.head = head;
        let cut = pieces::write_objects(Txn::new(), id, attempt, head.objects, &[], &removed);
        let tried = self.commit_layout(known, attempt, end, layout, cut).await?;
        if matches!(tried, Tried::Done(..)) {
            self.remove_later(archive, id, attempt, removed);
        }
        Ok(tried)
    }

    /// Removes objects that were cut: nobody waits for that.
    fn remove_later(&self, archive: &Archive, id: ExecutionId, attempt: u32, removed: Vec<(u32, LogObject)>) {
        if !removed.is_empty() {
            let archive = archive.clone();
            self.tasks.spawn(async move { pieces::remove_objects(&archive, id, attempt, &removed).await });
        }
    }

    /// Writes what was laid out, with what `txn` changes already.
    async fn commit_layout(&self, known: &Known, attempt: u32, end: &End, layout: Layout, txn: Txn) -> Result<Tried, StoreError> {
        let id = known.execution.id;
        // The execution stands in the transaction too: nothing is appended to a log that has been sealed meanwhile.
        let mut txn = known.still(txn).when(key::log_head(id, attempt), end.modified);
        let Layout { head, put, delete } = layout;
        let last = put.last().map(|(_, last)| last).filter(|last| last.size() < MERGE_BELOW);
        // A copy: a slice would keep the whole message in memory.
        let last = last.map_or_else(Piece::default, |last| Piece::join(std::slice::from_ref(last)));
        // What begins to have bytes in the store says so, for whoever moves them when the execution has ended.
        if self.keeping.archive.is_some() && !head.removed && (end.modified == 0 || end.head.archived == end.head.next_offset) {
            txn = txn.put(key::hot_log(id, attempt), Bytes::new());
        }
        for (offset, piece) in &put {
            txn = txn.put(key::log_segment(id, attempt, *offset), piece.to_segment());
        }
        for offset in delete {
            txn = txn.delete(key::log_segment(id, attempt, offset));
        }
        match self.store.commit(txn.put(key::log_head(id, attempt), codec::encode(&head))).await? {
            Commit::Done(modified) => Ok(Tried::Done(head, modified, last)),
            Commit::Conflict(_) => Ok(Tried::Conflict),
        }
    }

    /// Appends to the archive, together with what the store has of the log's end.
    async fn to_archive(
        &self,
        archive: &Archive,
        known: &Known,
        attempt: u32,
        end: &End,
        new: &Piece,
    ) -> Result<Tried, ArchiveError> {
        let id = known.execution.id;
        let limit = self.keeping.limit_of(&known.execution);
        let turn = archive.turn().await;
        let mut hot = Vec::new();
        if end.head.archived < end.head.next_offset {
            hot = pieces::segments_from(&*self.store, id, attempt, end.head.archived).await?;
            if pieces::runs(&end.head, &hot).is_none() {
                return Ok(Tried::Conflict);
            }
        }
        let mut all: Vec<Piece> = hot.iter().map(|Segment { piece, .. }| piece.clone()).collect();
        all.push(new.clone());
        let mut objects = put_all(archive, id, attempt, end.head.archived, all, limit).await?;
        let appended = LogHead {
            next_offset: end.head.next_offset + new.size(),
            crc32c: crc32c::crc32c_append(end.head.crc32c, &new.data),
            ..end.head
        };
        let Cut { head, removed } = pieces::with_objects(&*self.store, id, attempt, appended, &mut objects, limit).await?;
        let mut txn = known.still(Txn::new()).when(key::log_head(id, attempt), end.modified);
        if end.modified == 0 || end.head.archived == end.head.next_offset {
            txn = txn.put(key::hot_log(id, attempt), Bytes::new());
        }
        txn = pieces::write_objects(txn, id, attempt, end.head.objects, &objects, &removed);
        let later = hot.split_off(hot.len().min(REMOVED_AT_ONCE));
        for segment in &hot {
            txn = txn.delete(key::log_segment(id, attempt, segment.offset));
        }
        match self.store.commit(txn.put(key::log_head(id, attempt), codec::encode(&head))).await? {
            Commit::Conflict(_) => Ok(Tried::Conflict),
            Commit::Done(modified) => {
                // It is done; what is left behind is removed with the log, at the latest.
                if let Err(error) = pieces::remove_segments(&*self.store, id, attempt, &later).await {
                    tracing::debug!(execution = %id, attempt, %error, "segments that were moved are left for later");
                }
                drop(turn);
                self.remove_later(archive, id, attempt, removed);
                Ok(Tried::Done(head, modified, Piece::default()))
            }
        }
    }
}

/// Writes pieces that follow each other from `offset` on as objects, none larger than an eighth of what is kept.
pub(super) async fn put_all(
    archive: &Archive,
    id: ExecutionId,
    attempt: u32,
    offset: u64,
    all: Vec<Piece>,
    limit: u64,
) -> Result<Vec<LogObject>, ArchiveError> {
    let whole = match <[Piece; 1]>::try_from(all) {
        Ok([one]) => one,
        Err(all) => Piece::join(&all),
    };
    let most = pieces::object_bytes(limit);
    let mut objects = Vec::new();
    let mut from = 0;
    while from < whole.data.len() {
        // A little more than an object is one.
        let rest = whole.data.len() - from;
        let size = if rest <= most + most / 4 { rest } else { most };
        objects.push(archive.put(id, attempt, offset + from as u64, whole.part(from, from + size)).await?);
        from += size;
    }
    Ok(objects)
}

/// Whether the caller may append to the log of this attempt.
fn may_append(principal: &Principal, execution: &Execution, fence: Fence) -> Result<(), Fault> {
    let id = execution.id;
    let this = |attempt: &&Attempt| attempt.number == fence.attempt && attempt.nonce == fence.nonce;
    match execution.attempts.iter().find(this) {
        Some(attempt) if attempt.executor.as_str() != principal.user => {
            Err(fault::not_permitted(format!("execution {id} is not {}'s", principal.user)))
        }
        Some(attempt) if attempt.log.is_some() => {
            Err(Fault::new(Code::FailedPrecondition, reason::LOG_SEALED, format!("the log of {id} is sealed")))
        }
        Some(_) => Ok(()),
        // Attempts are not forgotten while anyone may write to them: it is of another history of the store.
        None => {
            let message = format!("attempt {} of {id} is not known by this fence", fence.attempt);
            Err(Fault::new(Code::NotFound, reason::EXECUTION_NOT_FOUND, message))
        }
    }
}
