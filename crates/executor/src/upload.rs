//! Carrying an attempt's output to the controller: by offset, from the run folder's file, which is also the spool. In memory there is
//! never more than one piece.

use std::io;
use std::sync::Arc;
use std::time::{Duration, Instant};

use octavius_core::Timing;
use octavius_core::execution::LogSeal;
use tokio::sync::watch;

use crate::link::{Backoff, Link, Refused};
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
    timing: Timing,
    unreadable_since: Option<Instant>,
    /// Since when the controller has had no room for more.
    refused_since: Option<Instant>,
    /// Pauses while it has none.
    backoff: Backoff,
    /// Whether the rest is not sent any more, because there was no room for it.
    cut: bool,
    /// Why the rest of the output was given up.
    given_up: Option<String>,
}

enum Step {
    /// There was something.
    Went,
    /// There is nothing more at present.
    Idle,
    /// It will not get better soon.
    Stuck,
    /// The controller has no room for it.
    NoRoom,
}

impl Upload {
    /// Begins at the beginning; of what the controller has already, only the first piece is sent again, since the answer says how
    /// far the controller is.
    pub(crate) fn new(held: Held, run: Arc<dyn Run>, timing: Timing) -> Self {
        Self {
            held,
            run,
            sent: 0,
            counted: 0,
            crc: 0,
            sealed: false,
            timing,
            unreadable_since: None,
            refused_since: None,
            backoff: Backoff::new(timing),
            cut: false,
            given_up: None,
        }
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
                // A job that runs has time: its output waits in its file, and there may be room again.
                Step::NoRoom if is_over && self.refused_for() >= self.timing.room_patience => self.cut_here(),
                Step::NoRoom => {
                    let pause = self.backoff.pause();
                    let _ = tokio::time::timeout(pause, over.wait_for(|now| *now && !is_over)).await;
                }
            }
        }
    }

    /// Why the log ends before the output does, if so.
    pub(crate) fn given_up(&self) -> Option<&str> {
        self.given_up.as_deref()
    }

    /// Goes back to `offset`, which is where the controller says that its copy ends; false where there is nothing to send from there.
    pub(crate) fn go_back(&mut self, offset: u64) -> bool {
        let helps = offset < self.counted && self.given_up.is_none() && !self.cut;
        if helps {
            self.sent = offset;
            self.sealed = false;
        }
        helps
    }

    /// Size and checksum of what was read.
    pub(crate) fn seal(&self) -> LogSeal {
        LogSeal { size_bytes: self.counted, crc32c: self.crc, whole: true, missing_bytes: 0 }
    }

    /// Whether the controller's copy ends before the output does, because there was no room for the rest.
    pub(crate) fn is_cut(&self) -> bool {
        self.cut
    }

    fn refused_for(&self) -> Duration {
        self.refused_since.map_or(Duration::ZERO, |since| since.elapsed())
    }

    /// Sends nothing more. What is left is still read and counted, so that the log can say how much is missing.
    fn cut_here(&mut self) {
        tracing::error!(
            id = %self.held.id, attempt = self.held.fence.attempt, sent = self.sent,
            "the controller has no room for the rest of a job's log: it is cut"
        );
        self.cut = true;
        self.sealed = true;
    }

    async fn step(&mut self, link: &Link, over: bool) -> Result<Step, Refused> {
        // What the controller has already needs only be counted.
        let behind = self.sealed || self.counted < self.sent;
        let (from, longest) = match (self.sealed, behind) {
            (true, _) => (self.counted, PIECE),
            (false, true) => (self.counted, usize::try_from(self.sent - self.counted).unwrap_or(PIECE).min(PIECE)),
            (false, false) => (self.sent, PIECE),
        };
        if self.given_up.is_some() {
            return Ok(Step::Idle);
        }
        let piece = match self.piece(from, longest, over).await {
            Ok(piece) => piece,
            Err(error) => {
                let since = *self.unreadable_since.get_or_insert_with(Instant::now);
                // A broken disk does not get better, and the end of the job must not wait for it for ever.
                if over && since.elapsed() >= self.timing.lost_after {
                    tracing::error!(id = %self.held.id, attempt = self.held.fence.attempt, %error, "the rest of a job's output is given up");
                    self.given_up = Some(format!("the rest of the log could not be read: {error}"));
                    return Ok(Step::Idle);
                }
                tracing::warn!(id = %self.held.id, attempt = self.held.fence.attempt, %error, "cannot read a job's output");
                return Ok(Step::Stuck);
            }
        };
        self.unreadable_since = None;
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
                self.refused_since = None;
                self.backoff.reset();
                Ok(if went { Step::Went } else { Step::Stuck })
            }
            Err(Refused::LogSealed) => {
                self.sealed = true;
                Ok(Step::Went)
            }
            Err(Refused::NoRoom(message)) => {
                if self.refused_since.is_none() {
                    tracing::warn!(id = %self.held.id, attempt = self.held.fence.attempt, message, "a log waits for room");
                }
                self.refused_since.get_or_insert_with(Instant::now);
                Ok(Step::NoRoom)
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

#[cfg(test)]
mod tests {
    use async_trait::async_trait;
    use octavius_core::ExecutionId;
    use octavius_core::execution::{Ending, Fence};

    use super::*;
    use crate::journal::StopCause;
    use crate::mask::Mask;
    use crate::runner::Over;

    /// A run whose output is on a broken disk.
    struct Broken(Mask);

    #[async_trait]
    impl Run for Broken {
        async fn start(&self) -> Result<String, Ending> {
            Err(Ending::succeeded())
        }
        async fn wait(&self) -> Over {
            Over::NotStarted(String::new())
        }
        async fn image(&self) -> String {
            String::new()
        }
        async fn stop(&self, _: StopCause) {}
        async fn stop_asked(&self) -> Option<StopCause> {
            None
        }
        async fn read(&self, _: u64, _: usize) -> io::Result<Vec<u8>> {
            Err(io::Error::other("broken disk"))
        }
        fn mask(&self) -> &Mask {
            &self.0
        }
        async fn remove(&self) {}
        async fn let_be(&self, _: &str) {}
        async fn quarantine(&self, _: &str) {}
    }

    #[tokio::test]
    async fn output_that_cannot_be_read_does_not_hold_up_the_end_for_ever() {
        let (_sender, connected) = watch::channel(None);
        let link = Link::new(connected, Timing::default());
        let held = Held { id: ExecutionId::from_bits(1), fence: Fence { attempt: 1, nonce: 9 } };
        let timing = Timing { lost_after: Duration::ZERO, ..Timing::default() };
        let mut upload = Upload::new(held, Arc::new(Broken(Mask::new([]))), timing);
        assert!(matches!(upload.step(&link, false).await, Ok(Step::Stuck)), "a job that runs may write on");
        assert_eq!(upload.given_up(), None);
        let (_sender, over) = watch::channel(true);
        upload.follow(&link, over, Duration::from_millis(1)).await.unwrap();
        assert_eq!(upload.given_up(), Some("the rest of the log could not be read: broken disk"));
        assert_eq!(upload.seal(), LogSeal { size_bytes: 0, crc32c: 0, whole: true, missing_bytes: 0 });
    }
}
