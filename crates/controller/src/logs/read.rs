//! Bytes out: from any offset on, and live while they come.

use std::time::Duration;

use octavius_core::execution::{Attempt, Execution, LogSeal};
use octavius_core::{ExecutionId, Timestamp};
use octavius_proto::Fault;
use octavius_proto::v1::{self, ReadLogResponse, read_log_response::Part};
use octavius_store::piece::Piece;
use tokio::sync::mpsc;
use tonic::Status;

use super::feed::{Feed, Now};
use super::source::{Found, Sending, Source};
use super::{Logs, seal_of};
use crate::engine::EngineError;
use crate::fault;

/// Most bytes of one message.
const CHUNK_BYTES: usize = 256 * 1024;

/// Pieces that may wait for a slow reader; then reading waits too.
const AHEAD: usize = 2;

/// Why the end of a log is missing that was cut.
const NO_ROOM: &str = "the store had no room for the rest";

/// Why its middle is.
const CUT: &str = "the log is longer than is kept of it: its beginning and its end are";

/// What is wanted of a log.
#[derive(Debug, Clone, Copy)]
pub(super) struct Wanted {
    /// Only this attempt; otherwise the newest, and with `follow` those after it.
    pub(super) attempt: Option<u32>,
    pub(super) offset: u64,
    pub(super) follow: bool,
    pub(super) tail_lines: u64,
    pub(super) since: Option<Duration>,
    pub(super) times: bool,
}

/// Where a reader begins.
#[derive(Debug, Clone, Copy)]
pub(super) struct Begin {
    attempt: u32,
    offset: u64,
}

/// One reader of one log.
pub(super) struct Reader {
    logs: Logs,
    id: ExecutionId,
    voice: mpsc::Sender<Result<ReadLogResponse, Status>>,
    wanted: Wanted,
}

impl Logs {
    /// A reader, and what it says.
    pub(super) fn reader(&self, id: ExecutionId, wanted: Wanted) -> (Reader, mpsc::Receiver<Result<ReadLogResponse, Status>>) {
        let (voice, ears) = mpsc::channel(AHEAD);
        (Reader { logs: self.clone(), id, voice, wanted }, ears)
    }
}

impl Reader {
    /// Where to begin, in this attempt's log.
    pub(super) async fn begin(&self, attempt: u32) -> Result<Begin, Fault> {
        let mut source = Source::new(&self.logs, self.id, attempt);
        let mut offset = self.wanted.offset;
        let found = async {
            if self.wanted.tail_lines > 0 {
                offset = source.tail(self.wanted.tail_lines).await?;
            }
            if let Some(since) = self.wanted.since {
                let ago = i64::try_from(since.as_millis()).unwrap_or(i64::MAX);
                offset = offset.max(source.since(Timestamp::now().as_millisecond().saturating_sub(ago)).await?);
            }
            Ok(Begin { attempt, offset })
        };
        found.await.map_err(|sending| match sending {
            Sending::Failed(fault) => fault,
            Sending::Ended => fault::stopping(),
        })
    }

    async fn say(&self, part: Part) -> Result<(), Sending> {
        self.voice.send(Ok(ReadLogResponse { part: Some(part) })).await.map_err(|_| Sending::Ended)
    }

    pub(super) async fn run(self, begin: Begin) {
        let shutdown = self.logs.shutdown.clone();
        let reading = async {
            if let Err(Sending::Failed(fault)) = self.read(begin).await {
                let _ = self.voice.send(Err(fault.into())).await; // nobody may listen any more
            }
        };
        tokio::select! {
            () = reading => {}
            () = shutdown.cancelled() => {}
        }
    }

    async fn read(&self, Begin { mut attempt, mut offset }: Begin) -> Result<(), Sending> {
        if !self.wanted.follow {
            let execution = self.logs.engine.get(self.id).await.map_err(fault::from_engine)?;
            let mut source = Source::new(&self.logs, self.id, attempt);
            if attempt > 0 {
                self.send_from(&mut source, &mut offset).await?;
            }
            return self.end(&execution, &source, offset).await;
        }
        let only = self.wanted.attempt.is_some();
        let feed = self.logs.feeds.of(&self.logs, self.id).await?;
        let mut news = feed.news();
        let mut source = Source::new(&self.logs, self.id, attempt);
        // What the feed does not know is read from where it is kept: at first, and where the feed has lost its thread.
        let mut thread = None;
        loop {
            let now = news.borrow_and_update().clone();
            let Now { execution, thread: known } = now?;
            if attempt == 0 {
                attempt = next_started(&execution, 0);
                source = Source::new(&self.logs, self.id, attempt);
            }
            let over = execution.state.is_terminal()
                || execution.attempts.iter().any(|known| known.number == attempt && known.ended_at.is_some());
            if attempt > 0 {
                if over || thread != Some(known) {
                    self.send_from(&mut source, &mut offset).await?;
                    thread = Some(known);
                } else {
                    self.send_live(&feed, &mut source, &mut offset).await?;
                }
            }
            let later = next_started(&execution, attempt);
            if over && !only && later > attempt {
                self.tell_missing(&source, seal_of(&execution, attempt), offset).await?;
                (attempt, offset, thread) = (later, 0, None);
                source = Source::new(&self.logs, self.id, attempt);
                continue;
            }
            if execution.state.is_terminal() || (only && over) {
                return self.end(&execution, &source, offset).await;
            }
            tokio::select! {
                changed = news.changed() => if changed.is_err() {
                    return Err(fault::stopping().into());
                },
                () = self.voice.closed() => return Err(Sending::Ended),
            }
        }
    }

    /// Sends what has just come, as the feed has it; what it has not, one follower reads for all.
    async fn send_live(&self, feed: &Feed, source: &mut Source<'_>, offset: &mut u64) -> Result<(), Sending> {
        while feed.end(source.attempt) > *offset {
            let piece = match feed.piece(source.attempt, *offset) {
                Some(piece) => piece,
                None => match self.read_for_all(feed, source, *offset).await? {
                    Found::End => return Ok(()),
                    Found::Piece(piece) => piece,
                    Found::Cut(to) => {
                        self.tell_cut(source.attempt, offset, to).await?;
                        continue;
                    }
                },
            };
            self.send_piece(source.attempt, offset, &piece).await?;
        }
        Ok(())
    }

    /// Reads what the feed has not, for all who follow. Nothing is said meanwhile: one who does not listen must not hold up the others.
    async fn read_for_all(&self, feed: &Feed, source: &mut Source<'_>, offset: u64) -> Result<Found, Sending> {
        let _turn = feed.turn().await;
        if let Some(piece) = feed.piece(source.attempt, offset) {
            return Ok(Found::Piece(piece));
        }
        let found = source.at(offset).await?;
        if let Found::Piece(piece) = &found {
            feed.keep(source.attempt, offset, piece.clone());
        }
        Ok(found)
    }

    /// Tells what was printed at or after `offset` and never came; returns the log's size.
    async fn tell_missing(&self, source: &Source<'_>, seal: Option<LogSeal>, offset: u64) -> Result<u64, Sending> {
        let head = source.head().await?;
        let had = head.map_or(0, |head| head.next_offset);
        let size = seal.map_or(0, |seal| seal.size_bytes).max(had);
        // With bytes that were sealed and no head, it has been removed since the execution was looked at.
        if head.is_none() && seal.is_some_and(|seal| seal.size_bytes > seal.missing_bytes) {
            return Err(fault::from_engine(EngineError::NotFound(self.id)).into());
        }
        self.gap(source.attempt, had.max(offset), size, NO_ROOM.to_owned()).await?;
        Ok(size)
    }

    /// Tells that the bytes from `begins` to `ends` are not there, if these are any.
    async fn gap(&self, attempt: u32, begins: u64, ends: u64, reason: String) -> Result<(), Sending> {
        if begins >= ends {
            return Ok(());
        }
        self.say(Part::Gap(v1::LogGap { attempt, offset: begins, size: ends - begins, reason })).await
    }

    async fn end(&self, execution: &Execution, source: &Source<'_>, offset: u64) -> Result<(), Sending> {
        let seal = seal_of(execution, source.attempt);
        let size = self.tell_missing(source, seal, offset).await?;
        // What was cut for want of room is told as a gap: that is no damage.
        let damaged = seal.is_some_and(|seal| !seal.whole && seal.missing_bytes == 0);
        self.say(Part::End(v1::LogEnd { sealed: seal.is_some(), size, attempt: source.attempt, damaged })).await
    }

    /// Sends everything from `offset` on that is there by now.
    async fn send_from(&self, source: &mut Source<'_>, offset: &mut u64) -> Result<(), Sending> {
        loop {
            match source.at(*offset).await? {
                Found::End => return Ok(()),
                Found::Cut(to) => self.tell_cut(source.attempt, offset, to).await?,
                Found::Piece(piece) => self.send_piece(source.attempt, offset, &piece).await?,
            }
        }
    }

    async fn tell_cut(&self, attempt: u32, offset: &mut u64, to: u64) -> Result<(), Sending> {
        self.gap(attempt, *offset, to, CUT.to_owned()).await?;
        *offset = to;
        Ok(())
    }

    async fn send_piece(&self, attempt: u32, offset: &mut u64, piece: &Piece) -> Result<(), Sending> {
        let mut from = 0;
        while from < piece.data.len() {
            let part = piece.part(from, from + CHUNK_BYTES);
            from += part.data.len();
            let size = part.size();
            let times = self.wanted.times.then(|| part.times.into());
            self.say(Part::Chunk(v1::LogChunk { attempt, offset: *offset, data: part.data, times })).await?;
            *offset += size;
            self.logs.engine.counts.read(size);
        }
        Ok(())
    }
}

/// The newest attempt that has started, 0 for none.
pub(super) fn newest(execution: &Execution) -> u32 {
    execution.attempts.iter().rev().find(|attempt| attempt.starting_at.is_some()).map_or(0, |attempt| attempt.number)
}

/// The first attempt after `attempt` that has started; `attempt` where there is none.
fn next_started(execution: &Execution, attempt: u32) -> u32 {
    let later = |known: &&Attempt| known.number > attempt && known.starting_at.is_some();
    execution.attempts.iter().find(later).map_or(attempt, |known| known.number)
}
