//! Carrying an attempt's output to the controller: by offset, from the run folder's file, which is also the spool. In memory there is
//! never more than one piece.

use std::io;
use std::sync::Arc;
use std::time::Duration;

use octavius_core::execution::LogSeal;
use tokio::sync::watch;

use crate::link::{Link, Refused};
use crate::runner::{Held, Run};

/// Longest piece that is read, masked and sent at once, in bytes; a message may hold 1 MiB.
const PIECE: usize = 256 * 1024;
/// Pause after an error of the disk, or an answer that makes no sense.
const PAUSE: Duration = Duration::from_secs(1);

/// The way of one attempt's output.
pub(crate) struct Upload {
    held: Held,
    run: Arc<dyn Run>,
    /// Where the controller's copy ends, as far as is known.
    sent: u64,
    /// Bytes that are in the checksum.
    counted: u64,
    crc: u32,
    sealed: bool,
}

enum Step {
    /// There was something.
    Went,
    /// There is nothing more at present.
    Idle,
    /// It will not get better soon.
    Stuck,
}

impl Upload {
    /// Begins at the beginning; of what the controller has already, only the first piece is sent again, since the answer says how
    /// far the controller is.
    pub(crate) fn new(held: Held, run: Arc<dyn Run>) -> Self {
        Self { held, run, sent: 0, counted: 0, crc: 0, sealed: false }
    }

    /// Sends everything until the job is over and all has been sent.
    pub(crate) async fn follow(&mut self, link: &Link, mut over: watch::Receiver<bool>, poll: Duration) -> Result<(), Refused> {
        loop {
            let is_over = *over.borrow_and_update();
            match self.step(link, is_over).await? {
                Step::Went => {}
                Step::Idle if is_over => return Ok(()),
                Step::Idle => {
                    let _ = tokio::time::timeout(poll, over.changed()).await;
                }
                Step::Stuck => tokio::time::sleep(PAUSE).await,
            }
        }
    }

    /// Goes back to `offset`: the controller says that it has no more.
    pub(crate) fn go_back(&mut self, offset: u64) {
        self.sent = offset;
        self.sealed = false;
    }

    /// Size and checksum of what was read.
    pub(crate) fn seal(&self) -> LogSeal {
        LogSeal { size_bytes: self.counted, crc32c: self.crc }
    }

    async fn step(&mut self, link: &Link, over: bool) -> Result<Step, Refused> {
        // What the controller has already needs only be counted.
        let behind = self.sealed || self.counted < self.sent;
        let (from, longest) = match (self.sealed, behind) {
            (true, _) => (self.counted, PIECE),
            (false, true) => (self.counted, usize::try_from(self.sent - self.counted).unwrap_or(PIECE).min(PIECE)),
            (false, false) => (self.sent, PIECE),
        };
        let piece = match self.piece(from, longest, over).await {
            Ok(piece) => piece,
            Err(error) => {
                tracing::warn!(id = %self.held.id, attempt = self.held.fence.attempt, %error, "cannot read a job's output");
                return Ok(Step::Stuck);
            }
        };
        if piece.is_empty() {
            return Ok(Step::Idle);
        }
        let end = from + piece.len() as u64;
        if end > self.counted {
            let known = usize::try_from(self.counted - from).unwrap_or(piece.len());
            self.crc = crc32c::crc32c_append(self.crc, &piece[known..]);
            self.counted = end;
        }
        if behind {
            return Ok(Step::Went);
        }
        match link.append(self.held, from, piece).await {
            Ok(next) => {
                let went = next > from;
                self.sent = next;
                Ok(if went { Step::Went } else { Step::Stuck })
            }
            Err(Refused::LogSealed) => {
                self.sealed = true;
                Ok(Step::Went)
            }
            Err(refused) => Err(refused),
        }
    }

    /// Reads a piece, masked. What may be the beginning of a value that must not leave stays back until more is known, or the job is over.
    async fn piece(&self, from: u64, longest: usize, over: bool) -> io::Result<Vec<u8>> {
        let mask = self.run.mask();
        let context = mask.context();
        if context == 0 {
            return self.run.read(from, longest).await;
        }
        let before = usize::try_from(from).unwrap_or(usize::MAX).min(context);
        let wanted = before + longest + context;
        let mut bytes = self.run.read(from - before as u64, wanted).await?;
        let end = if bytes.len() == wanted {
            before + longest
        } else {
            let undecided = if over { 0 } else { mask.undecided(&bytes) };
            (bytes.len() - undecided).min(before + longest)
        };
        mask.apply(&mut bytes);
        bytes.truncate(end);
        bytes.drain(..before.min(bytes.len()));
        Ok(bytes)
    }
}
