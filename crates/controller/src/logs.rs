//! Logs: bytes in by offset, bytes out from any offset, live while they come.

use std::sync::Arc;

use bytes::{Bytes, BytesMut};
use octavius_core::execution::{Attempt, Execution, Fence, LogSeal};
use octavius_core::limit::{LOG_BYTES, STORED_VALUE_BYTES};
use octavius_core::{ExecutionId, Principal};
use octavius_proto::v1::log_service_server::LogService;
use octavius_proto::v1::{self, ReadLogResponse, read_log_response::Part};
use octavius_proto::{Fault, InvalidField, reason};
use octavius_store::record::LogHead;
use octavius_store::{Commit, Entry, Key, Range, Store, StoreError, Txn, codec, key};
use tokio::sync::mpsc;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;
use tonic::{Code, Request, Response, Status};

use crate::engine::{Engine, EngineError, Known};
use crate::executions::Executions;
use crate::heads::{End, Heads};
use crate::room::Room;
use crate::streams::{Responses, until_stop};
use crate::{auth, fault};

/// Most bytes of one append. Executors send a quarter of it.
const APPEND_BYTES: usize = 1024 * 1024;

/// Bytes of one transaction: well below what a store takes.
const TRANSACTION_BYTES: usize = 4 * STORED_VALUE_BYTES;

/// The last segment is written again, longer, while it is shorter than this; so a job that prints a little at a time leaves few keys,
/// and no byte is written more than about eight times.
const MERGE_BELOW: u64 = 8 * 1024;

/// Segments read at once: at most 1 MiB.
const PAGE: usize = 16;

/// Bytes that are looked through at once for the last lines.
const TAIL_WINDOW: u64 = (PAGE * STORED_VALUE_BYTES) as u64;

/// Tries of one append whose answer is lost.
const MAX_TRIES: usize = 5;

/// Why the end of a log is missing that was cut.
const NO_ROOM: &str = "the store had no room for the rest";

/// Pieces that may wait for a slow reader; then reading waits too.
const AHEAD: usize = 4;

#[derive(Debug, Clone)]
pub(crate) struct Logs {
    pub(crate) store: Arc<dyn Store>,
    pub(crate) engine: Engine,
    pub(crate) executions: Executions,
    pub(crate) heads: Arc<Heads>,
    pub(crate) room: Arc<Room>,
    pub(crate) tasks: TaskTracker,
    pub(crate) shutdown: CancellationToken,
}

impl Logs {
    async fn append(&self, principal: &Principal, request: v1::AppendLogRequest) -> Result<u64, Fault> {
        let id = octavius_proto::execution_id("id", &request.id)?;
        let fence = octavius_proto::fence(request.attempt, request.nonce)?;
        if request.data.len() > APPEND_BYTES {
            let message = format!("{} bytes at once, at most {APPEND_BYTES} are taken", request.data.len());
            return Err(Fault::new(Code::ResourceExhausted, reason::LIMIT, message));
        }
        let mut data = request.data;
        let mut offset = request.offset;
        loop {
            let piece = data.split_to(data.len().min(TRANSACTION_BYTES));
            let size = piece.len() as u64;
            let next = self.append_piece(principal, id, fence, offset, piece).await?;
            if data.is_empty() {
                return Ok(next);
            }
            offset = offset.saturating_add(size);
        }
    }

    /// The execution whose attempt this is, if the caller may append to its log. Who may is taken from what is remembered; who may not is
    /// told only by what is so now.
    async fn writable(&self, principal: &Principal, id: ExecutionId, fence: Fence, fresh: bool) -> Result<Known, Fault> {
        let may = |execution: &Execution| may_append(principal, execution, fence).is_ok();
        let known = if fresh { self.engine.read(id).await } else { self.engine.recall(id, may).await };
        let known = known.map_err(fault::from_engine)?;
        may_append(principal, &known.execution, fence)?;
        Ok(known)
    }

    /// The end of an attempt's log, as the store has it now.
    async fn look_at_end(&self, id: ExecutionId, attempt: u32) -> Result<End, StoreError> {
        let entry = self.store.get(&key::log_head(id, attempt)).await?;
        let head: Option<LogHead> = entry.as_ref().map(codec::decode).transpose()?;
        let head = head.unwrap_or(End::beginning().head);
        let mut last = Bytes::new();
        if (1..MERGE_BELOW).contains(&(head.kept - head.last_segment))
            && let Some(segment) = self.store.get(&key::log_segment(id, attempt, head.last_segment)).await?
        {
            last = segment.value;
        }
        Ok(End { modified: entry.map_or(0, |entry| entry.modified), head, last })
    }

    /// Appends bytes that fit one transaction. Bytes that are there already are passed over.
    async fn append_piece(
        &self,
        principal: &Principal,
        id: ExecutionId,
        fence: Fence,
        offset: u64,
        data: Bytes,
    ) -> Result<u64, Fault> {
        let at = key::log_head(id, fence.attempt);
        let mut fresh = false;
        let mut lost = 0;
        loop {
            let known = self.writable(principal, id, fence, fresh).await?;
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
            let head = end.head;
            if offset > head.next_offset {
                let message = format!("the log of {id} goes on at byte {}, not at {offset}", head.next_offset);
                return Err(Fault::new(Code::OutOfRange, reason::LOG_GAP, message).with("next_offset", head.next_offset));
            }
            let there = usize::try_from(head.next_offset - offset).unwrap_or(usize::MAX);
            if there >= data.len() {
                return Ok(head.next_offset);
            }
            self.room.for_logs()?;
            let new = data.slice(there..);
            // The execution stands in the transaction too: nothing is appended to a log that has been sealed meanwhile.
            let mut txn = known.still(Txn::new()).when(at.clone(), end.modified);
            let (head, segments) = lay_out(id, fence.attempt, &end, &new);
            let last = segments.last().map(|(_, last)| last).filter(|last| (last.len() as u64) < MERGE_BELOW);
            // A copy: a slice would keep the whole message in memory.
            let last = last.map_or_else(Bytes::new, |last| Bytes::copy_from_slice(last));
            for (key, bytes) in segments {
                txn = txn.put(key, bytes);
            }
            match self.store.commit(txn.put(at.clone(), codec::encode(&head))).await {
                Ok(Commit::Done(modified)) => {
                    self.heads.put(id, fence.attempt, End { modified, head, last });
                    return Ok(head.next_offset);
                }
                Ok(Commit::Conflict(_)) => {
                    self.heads.remove(id, fence.attempt);
                    fresh = true;
                }
                // It may have been made; the next look tells.
                Err(StoreError::Unknown(_)) if lost + 1 < MAX_TRIES => {
                    lost += 1;
                    self.heads.remove(id, fence.attempt);
                    fresh = true;
                }
                Err(error) => return Err(fault::from_store(error)),
            }
        }
    }

    async fn head(&self, id: ExecutionId, attempt: u32) -> Result<Option<LogHead>, StoreError> {
        self.store.get(&key::log_head(id, attempt)).await?.as_ref().map(codec::decode).transpose()
    }

    /// Segments that hold bytes from `offset` on. The one that begins before it is among them.
    async fn segments(&self, id: ExecutionId, attempt: u32, offset: u64) -> Result<Vec<(u64, Bytes)>, StoreError> {
        // A segment is at most so long, so none that begins earlier can reach `offset`.
        let from = offset.checked_sub(STORED_VALUE_BYTES as u64);
        let after = from.map(|from| key::log_segment(id, attempt, from));
        let mut range = Range { after, ..Range::of(key::log_segments(id, attempt), PAGE) };
        // With many small segments before `offset`, the first page may end before it.
        loop {
            let page = self.store.range(&range).await?;
            let found: Vec<_> = page.entries.iter().filter_map(|entry| cut(entry, offset)).collect();
            match page.entries.last() {
                Some(last) if found.is_empty() && page.more => range.after = Some(last.key.clone()),
                _ => return Ok(found),
            }
        }
    }

    /// Where the last `lines` lines of an attempt's kept log begin. Reads backwards, each byte once, a window at a time.
    async fn tail(&self, id: ExecutionId, attempt: u32, lines: u64) -> Result<u64, StoreError> {
        let end = self.head(id, attempt).await?.map_or(0, |head| head.kept);
        let mut missing = lines;
        let mut upper = end;
        while upper > 0 {
            let lower = upper.saturating_sub(TAIL_WINDOW);
            let mut window = Vec::new();
            let mut at = lower;
            while at < upper {
                let segments = self.segments(id, attempt, at).await?;
                let Some((last, bytes)) = segments.last() else { break };
                at = last + bytes.len() as u64;
                window.extend(segments);
            }
            for (begins, bytes) in window.iter().rev() {
                for index in (0..bytes.len()).rev().filter(|index| bytes[*index] == b'\n') {
                    let line = begins + index as u64 + 1;
                    // A line break at the very end begins no line.
                    if line < end && line <= upper {
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

/// The head after `new`, and the segments to write. Of what is over the limit only size and checksum are kept.
fn lay_out(id: ExecutionId, attempt: u32, end: &End, new: &Bytes) -> (LogHead, Vec<(Key, Bytes)>) {
    let head = end.head;
    let room = usize::try_from(LOG_BYTES.saturating_sub(head.kept)).unwrap_or(usize::MAX);
    // Once something was cut, nothing is kept any more: what is kept is one piece from the beginning.
    let kept = if head.kept == head.next_offset { new.slice(..new.len().min(room)) } else { Bytes::new() };
    let mut after = LogHead {
        next_offset: head.next_offset + new.len() as u64,
        kept: head.kept + kept.len() as u64,
        crc32c: crc32c::crc32c_append(head.crc32c, new),
        last_segment: head.last_segment,
    };
    let mut start = head.kept;
    let mut rest = kept;
    let last_size = head.kept - head.last_segment;
    if !rest.is_empty() && (1..MERGE_BELOW).contains(&last_size) && end.last.len() as u64 == last_size {
        let mut merged = BytesMut::with_capacity(end.last.len() + rest.len());
        merged.extend_from_slice(&end.last);
        merged.extend_from_slice(&rest);
        start = head.last_segment;
        rest = merged.freeze();
    }
    let mut segments = Vec::new();
    while !rest.is_empty() {
        let segment = rest.split_to(rest.len().min(STORED_VALUE_BYTES));
        after.last_segment = start;
        start += segment.len() as u64;
        segments.push((key::log_segment(id, attempt, after.last_segment), segment));
    }
    (after, segments)
}

/// The part of a segment that is at or after `offset`, and where it begins.
fn cut(entry: &Entry, offset: u64) -> Option<(u64, Bytes)> {
    let begins = u64::from_str_radix(entry.key.as_str().rsplit('/').next()?, 16).ok()?;
    let skip = usize::try_from(offset.saturating_sub(begins)).ok()?;
    (skip < entry.value.len()).then(|| (begins + skip as u64, entry.value.slice(skip..)))
}

/// One reader of one log.
struct Reader {
    logs: Logs,
    id: ExecutionId,
    voice: mpsc::Sender<Result<ReadLogResponse, Status>>,
    follow: bool,
    /// Only this attempt; otherwise the newest, and with `follow` those after it.
    only: Option<u32>,
}

impl Reader {
    async fn say(&self, part: Part) -> Result<(), Sending> {
        self.voice.send(Ok(ReadLogResponse { part: Some(part) })).await.map_err(|_| Sending::Ended)
    }

    async fn run(self, attempt: u32, offset: u64) {
        let shutdown = self.logs.shutdown.clone();
        let reading = async {
            if let Err(Sending::Failed(fault)) = self.read(attempt, offset).await {
                let _ = self.voice.send(Err(fault.into())).await; // nobody may listen any more
            }
        };
        tokio::select! {
            () = reading => {}
            () = shutdown.cancelled() => {}
        }
    }

    async fn read(&self, mut attempt: u32, mut offset: u64) -> Result<(), Sending> {
        let record = Range::of(key::execution(self.id), 1);
        loop {
            // The revision first, then the facts: whatever happens after them is seen by the watch.
            let page = self.logs.store.range(&record).await?;
            let entry = page.entries.first().ok_or_else(|| fault::from_engine(EngineError::NotFound(self.id)))?;
            let execution: Execution = codec::decode(entry)?;
            if attempt == 0 {
                attempt = next_started(&execution, 0);
            }
            if attempt > 0 {
                self.send_from(attempt, &mut offset).await?;
            }
            let over = execution.state.is_terminal()
                || execution.attempts.iter().any(|known| known.number == attempt && known.ended_at.is_some());
            let later = next_started(&execution, attempt);
            if over && self.only.is_none() && self.follow && later > attempt {
                self.tell_gap(seal_of(&execution, attempt), attempt, offset).await?;
                (attempt, offset) = (later, 0);
                continue;
            }
            let ended = if self.only.is_some() { over } else { execution.state.is_terminal() };
            if !self.follow || ended {
                return self.end(&execution, attempt, offset).await;
            }
            self.wait(page.revision, attempt).await?;
        }
    }

    /// Tells what was printed at or after `offset` and is not kept; returns the log's size.
    async fn tell_gap(&self, seal: Option<LogSeal>, attempt: u32, offset: u64) -> Result<u64, Sending> {
        let head = self.logs.head(self.id, attempt).await?;
        let size = seal.map_or(0, |seal| seal.size_bytes).max(head.map_or(0, |head| head.next_offset));
        let Some(LogHead { next_offset, kept, .. }) = head else {
            // With bytes that were sealed and no head, it has been removed since the execution was looked at.
            if seal.is_some_and(|seal| seal.size_bytes > seal.missing_bytes) {
                return Err(fault::from_engine(EngineError::NotFound(self.id)).into());
            }
            self.gap(attempt, offset, size, NO_ROOM.to_owned()).await?;
            return Ok(size);
        };
        if offset < kept && seal.is_some() {
            return Err(fault::from_engine(EngineError::NotFound(self.id)).into());
        }
        self.gap(attempt, kept.max(offset), next_offset, format!("only the first {kept} bytes are kept")).await?;
        self.gap(attempt, next_offset.max(offset), size, NO_ROOM.to_owned()).await?;
        Ok(size)
    }

    /// Tells that the bytes from `begins` to `ends` are not there, if these are any.
    async fn gap(&self, attempt: u32, begins: u64, ends: u64, reason: String) -> Result<(), Sending> {
        if begins >= ends {
            return Ok(());
        }
        self.say(Part::Gap(v1::LogGap { attempt, offset: begins, size: ends - begins, reason })).await
    }

    async fn end(&self, execution: &Execution, attempt: u32, offset: u64) -> Result<(), Sending> {
        let seal = seal_of(execution, attempt);
        let size = self.tell_gap(seal, attempt, offset).await?;
        // What was cut for want of room is told as a gap: that is no damage.
        let damaged = seal.is_some_and(|seal| !seal.whole && seal.missing_bytes == 0);
        self.say(Part::End(v1::LogEnd { sealed: seal.is_some(), size, attempt, damaged })).await
    }

    async fn send_from(&self, attempt: u32, offset: &mut u64) -> Result<(), Sending> {
        loop {
            let segments = self.logs.segments(self.id, attempt, *offset).await?;
            if segments.is_empty() {
                return Ok(());
            }
            for (begins, data) in segments {
                // What is kept is one piece: where bytes are missing before others, the log is being removed.
                if begins != *offset {
                    return Err(fault::from_engine(EngineError::NotFound(self.id)).into());
                }
                *offset = begins + data.len() as u64;
                self.say(Part::Chunk(v1::LogChunk { attempt, offset: begins, data })).await?;
            }
        }
    }

    /// Waits until the execution or this attempt's log has changed after `revision`.
    async fn wait(&self, revision: u64, attempt: u32) -> Result<(), Sending> {
        let watch = async |prefix: Key| {
            let mut watch = self.logs.store.watch(&prefix, revision).await?;
            watch.next().await.map(drop)
        };
        let changed = tokio::select! {
            changed = watch(key::execution(self.id)) => changed,
            changed = watch(key::log_head(self.id, attempt)), if attempt > 0 => changed,
            () = self.voice.closed() => return Err(Sending::Ended),
        };
        match changed {
            Err(StoreError::Compacted { .. }) => Ok(()), // much has changed; look again
            changed => Ok(changed?),
        }
    }
}

/// Why a reader ends before its time.
enum Sending {
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

/// The seal of an attempt's log, where it is sealed.
fn seal_of(execution: &Execution, attempt: u32) -> Option<LogSeal> {
    execution.attempts.iter().find(|known| known.number == attempt)?.log
}

/// The newest attempt that has started, 0 for none.
fn newest(execution: &Execution) -> u32 {
    execution.attempts.iter().rev().find(|attempt| attempt.starting_at.is_some()).map_or(0, |attempt| attempt.number)
}

/// The first attempt after `attempt` that has started; `attempt` where there is none.
fn next_started(execution: &Execution, attempt: u32) -> u32 {
    let later = |known: &&Attempt| known.number > attempt && known.starting_at.is_some();
    execution.attempts.iter().find(later).map_or(attempt, |known| known.number)
}

#[tonic::async_trait]
impl LogService for Logs {
    type ReadLogStream = Responses<ReadLogResponse>;

    async fn append_log(&self, request: Request<v1::AppendLogRequest>) -> Result<Response<v1::AppendLogResponse>, Status> {
        let principal = auth::principal(&request)?;
        let next_offset = self.append(&principal, request.into_inner()).await?;
        Ok(Response::new(v1::AppendLogResponse { next_offset }))
    }

    async fn read_log(&self, request: Request<v1::ReadLogRequest>) -> Result<Response<Self::ReadLogStream>, Status> {
        let principal = auth::principal(&request)?;
        let request = request.into_inner();
        let execution = self.executions.find(&principal, &request.id).await?;
        if request.tail_lines > 0 && request.offset > 0 {
            return Err(Fault::from(InvalidField::new("tail_lines", "not together with `offset`")).into());
        }
        let only = (request.attempt > 0).then_some(request.attempt);
        if let Some(attempt) = only
            && !execution.attempts.iter().any(|known| known.number == attempt)
        {
            let message = format!("execution {} has no attempt {attempt}", execution.id);
            return Err(Fault::new(Code::NotFound, reason::NOT_FOUND, message).into());
        }
        let attempt = only.unwrap_or_else(|| newest(&execution));
        let mut offset = request.offset;
        if request.tail_lines > 0 {
            offset = self.tail(execution.id, attempt, request.tail_lines).await.map_err(fault::from_store)?;
        }
        let (voice, ears) = mpsc::channel(AHEAD);
        let reader = Reader { logs: self.clone(), id: execution.id, voice, follow: request.follow, only };
        self.tasks.spawn(reader.run(attempt, offset));
        Ok(Response::new(until_stop(ears, self.shutdown.clone())))
    }
}
