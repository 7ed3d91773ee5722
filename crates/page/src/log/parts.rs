//! An execution's log as the controller gives it: in order, without repetition, and what is missing told.

use bytes::Bytes;
use octavius_proto::v1::{self, read_log_response};
use tonic::{Status, Streaming};

use crate::rpcs::Calls;

/// Why bytes are missing that the controller neither sent nor told of.
const NOT_SENT: &str = "the controller did not send them";

/// The log of one attempt, or of the newest.
#[derive(Clone)]
pub(super) struct Log {
    calls: Calls,
    id: String,
    /// The attempt; 0 for the newest that started.
    pub(super) attempt: u32,
}

/// Bytes that are not there.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Gap {
    pub(super) offset: u64,
    pub(super) size: u64,
    pub(super) reason: String,
}

impl Gap {
    /// Where what comes after it begins.
    pub(super) fn end(&self) -> u64 {
        self.offset.saturating_add(self.size)
    }
}

/// The next of a log.
#[derive(Debug, Clone, PartialEq)]
pub(super) enum Part {
    /// What follows is of this attempt; after it come its first bytes, or those that were asked for.
    Attempt(u32),
    /// Bytes, and where they begin.
    Bytes(u64, Bytes),
    /// Bytes that are not there.
    Gap(Gap),
    /// Nothing more comes.
    End(v1::LogEnd),
}

impl Log {
    pub(super) fn new(calls: &Calls, id: &str, attempt: u32) -> Self {
        Self { calls: calls.clone(), id: id.to_owned(), attempt }
    }

    /// The same execution's log of this attempt.
    pub(super) fn of(&self, attempt: u32) -> Self {
        Self { attempt, ..self.clone() }
    }

    /// How far the log has come, without any of its bytes.
    pub(super) async fn end(&self) -> Result<v1::LogEnd, Status> {
        // No log is so long: from there on there is nothing but its end.
        let mut parts = self.read(u64::MAX, false).await?;
        loop {
            if let Part::End(end) = parts.next().await? {
                return Ok(end);
            }
        }
    }

    /// Reads from an offset on; with `follow` until the attempt has ended, or the execution where no attempt was chosen. Whoever has enough drops
    /// it: little more is read than was taken.
    pub(super) async fn read(&self, offset: u64, follow: bool) -> Result<Parts, Status> {
        self.ask(self.attempt, offset, follow).await
    }

    /// Reads what comes after this attempt's log, which is so long by now, until the execution has ended. Of an attempt that has started already
    /// the beginning may be missing.
    pub(super) async fn read_on(&self, size: u64) -> Result<Parts, Status> {
        self.ask(0, size, true).await
    }

    async fn ask(&self, attempt: u32, offset: u64, follow: bool) -> Result<Parts, Status> {
        let request = v1::ReadLogRequest { id: self.id.clone(), attempt, offset, follow, ..Default::default() };
        let stream = self.calls.logs().read_log(request).await?.into_inner();
        Ok(Parts { stream, attempt: self.attempt, next: offset, held: None })
    }
}

/// What comes of a log.
#[derive(Debug)]
pub(super) struct Parts {
    stream: Streaming<v1::ReadLogResponse>,
    /// The attempt that it is of; 0 before that is known.
    attempt: u32,
    /// Where the next byte is to come from.
    next: u64,
    /// What came behind something that had to be told first.
    held: Option<Part>,
}

impl Parts {
    /// What comes next; after the end, nothing may be asked for. Dropping the future loses nothing.
    pub(super) async fn next(&mut self) -> Result<Part, Status> {
        loop {
            if let Some(part) = self.held.take()
                && let Some(part) = self.fit(part)
            {
                return Ok(part);
            }
            let message = self.stream.message().await?;
            let message = message.ok_or_else(|| Status::unavailable("the controller ended the stream of the log"))?;
            let (attempt, part) = match message.part {
                Some(read_log_response::Part::Chunk(chunk)) => (chunk.attempt, Part::Bytes(chunk.offset, chunk.data)),
                Some(read_log_response::Part::Gap(v1::LogGap { attempt, offset, size, reason })) => {
                    (attempt, Part::Gap(Gap { offset, size, reason }))
                }
                Some(read_log_response::Part::End(end)) => return Ok(Part::End(end)),
                // something that a newer controller says
                None => continue,
            };
            self.held = Some(part);
            if attempt != self.attempt {
                // A later attempt's log begins at its first byte.
                if self.attempt > 0 {
                    self.next = 0;
                }
                self.attempt = attempt;
                return Ok(Part::Attempt(attempt));
            }
        }
    }

    /// The part as far as it is new; before it, what it passes over.
    fn fit(&mut self, part: Part) -> Option<Part> {
        let (offset, end) = match &part {
            Part::Bytes(offset, data) => (*offset, offset.saturating_add(data.len() as u64)),
            Part::Gap(gap) => (gap.offset, gap.end()),
            Part::Attempt(_) | Part::End(_) => return Some(part),
        };
        let next = self.next;
        if next < offset {
            (self.next, self.held) = (offset, Some(part));
            return Some(Part::Gap(Gap { offset: next, size: offset - next, reason: NOT_SENT.to_owned() }));
        }
        if end <= next {
            return None;
        }
        self.next = end;
        Some(match part {
            Part::Bytes(_, data) => Part::Bytes(next, data.slice(usize::try_from(next - offset).unwrap_or(data.len())..)),
            Part::Gap(gap) => Part::Gap(Gap { offset: next, size: end - next, ..gap }),
            other => other,
        })
    }
}
