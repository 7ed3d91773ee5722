//! Carrying an attempt's output to the controller: by offset, from the run folder's file, which is also the spool. In memory there are never more
//! than two pieces of an attempt, and of all attempts no more than [`Appends`] has room for.

use std::io;
use std::sync::Arc;
use std::time::Duration;

use octavius_core::Timing;
use octavius_core::execution::LogSeal;
use octavius_core::limit::LOG_PIECE_BYTES;
use octavius_core::log::Times;
use tokio::sync::{OwnedSemaphorePermit, watch};
use tokio::time::{Instant, timeout};

use crate::link::{Backoff, Link, Refused};
use crate::mask::Mask;
use crate::pace::{Appends, When};
use crate::runner::output::Output;
use crate::runner::{Held, Run};

/// The first piece after the executor's start: its answer tells how far the controller is, and it need not be sent again for more than that.
const FIRST: usize = 256 * 1024;
/// How much is read at once that only needs to be counted.
const COUNTED: usize = 256 * 1024;
/// Pause after an error of the disk, or an answer that makes no sense.
const PAUSE: Duration = Duration::from_secs(1);

/// The way of one attempt's output.
pub(crate) struct Upload {
    held: Held,
    run: Arc<dyn Run>,
    appends: Appends,
    /// Where the controller's copy ends, as far as is known.
    sent: u64,
    /// Bytes that are in the checksum.
    counted: u64,
    crc: u32,
    sealed: bool,
    timing: Timing,
    /// The length of the output beyond which there may be something to do.
    idle_at: u64,
    /// When the last append began.
    last: Option<Instant>,
    /// The piece that follows the one that was sent last, where it was read meanwhile.
    ahead: Option<Box<Piece>>,
    /// Since when the job has been over.
    over_since: Option<Instant>,
    unreadable_since: Option<Instant>,
    /// Since when the controller has had no room for more.
    refused_since: Option<Instant>,
    /// Pauses while it has none.
    backoff: Backoff,
    /// Whether the rest is not sent any more.
    cut: bool,
    /// What is to be said of the log, where it is not whole: the rest of the output could not be read, or what the controller lost is gone.
    trouble: Option<String>,
    given_up: bool,
}

/// A part of the output, masked.
struct Piece {
    from: u64,
    bytes: Vec<u8>,
    times: Times,
    _memory: Option<OwnedSemaphorePermit>,
}

enum Step {
    /// There was something.
    Went,
    /// There is nothing more at present.
    Idle,
    /// There is something, and it is sent at this time.
    Later(Instant),
    /// It will not get better soon.
    Stuck,
    /// The controller has no room for it; it is waited for so long after the first refusal, or after the job's end.
    NoRoom,
    HeldBack,
}

impl Upload {
    /// Begins where the output does; of what the controller has already, only the first piece is sent again, since the answer says how far the
    /// controller is.
    pub(crate) fn new(held: Held, run: Arc<dyn Run>, appends: Appends, timing: Timing) -> Self {
        let sent = run.output().sent();
        Self {
            held,
            run,
            appends,
            sent: sent.offset,
            counted: sent.offset,
            crc: sent.crc32c,
            sealed: false,
            timing,
            idle_at: 0,
            last: None,
            ahead: None,
            over_since: None,
            unreadable_since: None,
            refused_since: None,
            backoff: Backoff::new(timing),
            cut: false,
            trouble: None,
            given_up: false,
        }
    }

    /// Sends everything until the job is over and all has been sent.
    pub(crate) async fn follow(&mut self, link: &Link, mut over: watch::Receiver<bool>) -> Result<(), Refused> {
        let run = Arc::clone(&self.run);
        let mut lengths = run.output().lengths();
        loop {
            let is_over = *over.borrow_and_update();
            if is_over {
                self.over_since.get_or_insert_with(Instant::now);
            }
            match self.step(link, is_over).await? {
                Step::Went => {}
                Step::Idle if is_over => return Ok(()),
                Step::Idle => {
                    let idle_at = self.idle_at;
                    tokio::select! {
                        _ = lengths.wait_for(|length| *length > idle_at) => {}
                        _ = over.changed() => {}
                    }
                }
                Step::Later(at) => {
                    let whole = self.sent.saturating_add(self.appends.largest() as u64);
                    tokio::select! {
                        () = tokio::time::sleep_until(at) => {}
                        _ = lengths.wait_for(|length| *length >= whole) => {}
                        _ = over.changed() => {}
                    }
                }
                Step::Stuck => tokio::time::sleep(PAUSE).await,
                // A job that runs has time: its output waits in its file, and there may be room again.
                Step::NoRoom if is_over && since(self.refused_since) >= self.timing.room_patience => self.cut_for_room(),
                Step::HeldBack if is_over && since(self.over_since) >= self.timing.archive_patience => self.cut_for_room(),
                Step::NoRoom | Step::HeldBack => {
                    let pause = self.backoff.pause();
                    let _ = timeout(pause, over.wait_for(|now| *now && !is_over)).await;
                }
            }
        }
    }

    /// What is to be said of the log, where it is not whole.
    pub(crate) fn trouble(&self) -> Option<&str> {
        self.trouble.as_deref()
    }

    /// Goes back to `offset`, which is where the controller says that its copy ends; false where there is nothing to send from there.
    pub(crate) fn go_back(&mut self, offset: u64) -> bool {
        let helps = offset < self.counted && !self.given_up && !self.cut;
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

    /// Whether the controller's copy ends before the output does.
    pub(crate) fn is_cut(&self) -> bool {
        self.cut
    }

    fn cut_for_room(&mut self) {
        tracing::error!(
            execution = %self.held.id, attempt = self.held.fence.attempt, sent = self.sent,
            "the controller has no room for the rest of a job's log: it is cut"
        );
        self.cut_here();
    }

    /// Sends nothing more. What is left is still read and counted, so that the log can say how much is missing.
    fn cut_here(&mut self) {
        self.cut = true;
        self.sealed = true;
        self.ahead = None;
    }

    /// The controller has lost what it had, and it is here no more.
    fn cut_for_loss(&mut self, begin: u64) {
        let missing = begin - self.sent;
        tracing::error!(
            execution = %self.held.id, attempt = self.held.fence.attempt, sent = self.sent, begin,
            "the controller has lost a part of a log that it had, and it is not here any more: the log is cut"
        );
        self.trouble = Some(format!(
            "the log is not whole from byte {} on: the controller had {missing} more bytes, and the executor has them no more",
            self.sent
        ));
        self.cut_here();
    }

    async fn step(&mut self, link: &Link, over: bool) -> Result<Step, Refused> {
        if self.given_up {
            return Ok(Step::Idle);
        }
        match self.try_step(link, over).await {
            Ok(step) => step,
            Err(error) => {
                let since = *self.unreadable_since.get_or_insert_with(Instant::now);
                // A broken disk does not get better, and the end of the job must not wait for it for ever.
                if over && since.elapsed() >= self.timing.lost_after {
                    tracing::error!(execution = %self.held.id, attempt = self.held.fence.attempt, %error, "the rest of a job's output is given up");
                    self.trouble = Some(format!("the rest of the log could not be read: {error}"));
                    self.given_up = true;
                    return Ok(Step::Idle);
                }
                tracing::warn!(execution = %self.held.id, attempt = self.held.fence.attempt, %error, "cannot read a job's output");
                Ok(Step::Stuck)
            }
        }
    }

    /// The error is one of the disk's.
    async fn try_step(&mut self, link: &Link, over: bool) -> io::Result<Result<Step, Refused>> {
        let run = Arc::clone(&self.run);
        let output = run.output();
        if !self.sealed && self.sent < output.begin() {
            self.cut_for_loss(output.begin());
        }
        let length = output.length()?;
        // What the controller has already needs only be counted.
        if self.sealed || self.counted < self.sent {
            return self.count(length, over).await.map(Ok);
        }
        let available = length.saturating_sub(self.sent);
        if available == 0 {
            self.idle_at = length;
            return Ok(Ok(Step::Idle));
        }
        if !over && let When::At(at) = self.appends.when(available, self.last, Instant::now()) {
            return Ok(Ok(Step::Later(at)));
        }
        let ahead = self.ahead.take().filter(|piece| piece.from == self.sent);
        let piece = match ahead {
            Some(piece) => *piece,
            None => {
                let largest = if self.last.is_none() { FIRST } else { LOG_PIECE_BYTES };
                let size = usize::try_from(available).unwrap_or(usize::MAX).min(largest).min(self.appends.largest());
                let memory = self.appends.memory(size).await;
                let read = read(output, run.mask(), self.sent, size, over).await?;
                Piece { _memory: memory, ..read }
            }
        };
        self.unreadable_since = None;
        if piece.bytes.is_empty() {
            self.idle_at = length;
            return Ok(Ok(Step::Idle));
        }
        self.appends.turn(piece.bytes.len()).await;
        Ok(self.send(link, piece).await)
    }

    /// Counts what is not to be sent.
    async fn count(&mut self, length: u64, over: bool) -> io::Result<Step> {
        let run = Arc::clone(&self.run);
        let end = if self.sealed { length } else { self.sent.min(length) };
        let size = usize::try_from(end.saturating_sub(self.counted)).unwrap_or(usize::MAX).min(COUNTED);
        let piece = match size {
            0 => None,
            _ => Some(read(run.output(), run.mask(), self.counted, size, over).await?).filter(|piece| !piece.bytes.is_empty()),
        };
        self.unreadable_since = None;
        let Some(piece) = piece else {
            self.idle_at = length;
            return Ok(Step::Idle);
        };
        self.note(&piece);
        run.output().release(self.counted, self.crc, run.mask().context()).await;
        Ok(Step::Went)
    }

    /// Brings the checksum up to the end of a piece.
    fn note(&mut self, piece: &Piece) {
        let end = piece.from + piece.bytes.len() as u64;
        if end > self.counted {
            let known = usize::try_from(self.counted - piece.from).unwrap_or(piece.bytes.len());
            self.crc = crc32c::crc32c_append(self.crc, &piece.bytes[known..]);
            self.counted = end;
        }
    }

    async fn send(&mut self, link: &Link, piece: Piece) -> Result<Step, Refused> {
        self.note(&piece);
        let Piece { from, bytes, times, _memory } = piece;
        let (run, size, end) = (Arc::clone(&self.run), bytes.len(), from + bytes.len() as u64);
        self.last = Some(Instant::now());
        // Calls and pieces are on the heap, since they are seldom there: what waits for a job to print should be small.
        let append = Box::pin(link.append(self.held, from, bytes, times));
        let (answer, ahead) = if size == self.appends.largest() {
            tokio::join!(append, Box::pin(self.read_ahead(&run, end)))
        } else {
            (append.await, None)
        };
        drop(_memory);
        self.ahead = ahead;
        match answer {
            Ok(next) => {
                let went = next > from;
                self.sent = next;
                self.refused_since = None;
                self.backoff.reset();
                if next == self.counted {
                    run.output().release(next, self.crc, run.mask().context()).await;
                }
                Ok(if went { Step::Went } else { Step::Stuck })
            }
            Err(Refused::LogSealed) => {
                self.sealed = true;
                Ok(Step::Went)
            }
            Err(Refused::NoRoom(message)) => Ok(self.refused(&message, Step::NoRoom)),
            Err(Refused::HeldBack(message)) => Ok(self.refused(&message, Step::HeldBack)),
            Err(refused) => Err(refused),
        }
    }

    fn refused(&mut self, message: &str, step: Step) -> Step {
        if self.refused_since.is_none() {
            tracing::warn!(execution = %self.held.id, attempt = self.held.fence.attempt, why = message, "a log waits for room");
        }
        self.refused_since.get_or_insert_with(Instant::now);
        self.ahead = None;
        step
    }

    /// Reads the next piece while the one before it is under way, where there is a whole one and memory for it.
    async fn read_ahead(&self, run: &Arc<dyn Run>, from: u64) -> Option<Box<Piece>> {
        let size = self.appends.largest();
        let needed = (size + run.mask().context()) as u64;
        if run.output().length().ok()? < from + needed {
            return None;
        }
        let memory = self.appends.memory_now(size)?;
        let piece = read(run.output(), run.mask(), from, size, false).await.ok()?;
        Some(Box::new(Piece { _memory: Some(memory), ..piece }))
    }
}

fn since(moment: Option<Instant>) -> Duration {
    moment.map_or(Duration::ZERO, |moment| moment.elapsed())
}

/// Reads a piece, masked. What may be the beginning of a value that must not leave stays back until more is known, or the job is over.
async fn read(output: &Output, mask: &Mask, from: u64, longest: usize, over: bool) -> io::Result<Piece> {
    let context = mask.context();
    let before = usize::try_from(from).unwrap_or(usize::MAX).min(context);
    let wanted = before + longest + context;
    let (mut bytes, times) = output.read(from - before as u64, wanted, from).await?;
    let end = if bytes.len() == wanted {
        before + longest
    } else {
        let undecided = if over || context == 0 { 0 } else { mask.undecided(&bytes) };
        (bytes.len() - undecided).min(before + longest)
    };
    if context > 0 {
        mask.apply(&mut bytes);
        bytes.truncate(end);
        bytes.drain(..before.min(bytes.len()));
    }
    let times = times.part(0, bytes.len() as u64);
    Ok(Piece { from, bytes, times, _memory: None })
}

#[cfg(test)]
mod tests {
    use std::io::Write as _;
    use std::path::Path;

    use async_trait::async_trait;
    use octavius_core::ExecutionId;
    use octavius_core::execution::{Ending, Fence};
    use proptest::prelude::*;

    use super::*;
    use crate::journal::{OUTPUT, StopCause};
    use crate::runner::Over;
    use crate::spool::Spool;

    /// A run whose output is whatever is in a folder.
    struct Folder {
        mask: Mask,
        output: Output,
    }

    impl Folder {
        fn new(folder: &Path, mask: Mask) -> Self {
            Self { mask, output: Output::new(&Spool::new(1 << 24, 1), folder, 1 << 24) }
        }
    }

    #[async_trait]
    impl Run for Folder {
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
        fn output(&self) -> &Output {
            &self.output
        }
        fn mask(&self) -> &Mask {
            &self.mask
        }
        async fn remove(&self) {}
        async fn let_be(&self, _: &str) {}
        async fn quarantine(&self, _: &str) {}
    }

    fn upload(folder: &Path, timing: Timing) -> (Upload, Link) {
        let (_, connected) = watch::channel(None);
        let held = Held { id: ExecutionId::from_bits(1), fence: Fence { attempt: 1, nonce: 9 } };
        let run = Arc::new(Folder::new(folder, Mask::new([])));
        (Upload::new(held, run, Appends::new(timing, None), timing), Link::new(connected, timing))
    }

    #[tokio::test]
    async fn output_that_cannot_be_read_does_not_hold_up_the_end_for_ever() {
        let folder = tempfile::tempdir().unwrap();
        std::fs::create_dir(folder.path().join(OUTPUT)).unwrap();
        let timing = Timing { lost_after: Duration::ZERO, ..Timing::default() };
        let (mut upload, link) = upload(folder.path(), timing);
        assert!(matches!(upload.step(&link, false).await, Ok(Step::Stuck)), "a job that runs may write on");
        assert_eq!(upload.trouble(), None);
        let (_sender, over) = watch::channel(true);
        upload.follow(&link, over).await.unwrap();
        let trouble = upload.trouble().unwrap();
        assert!(trouble.starts_with("the rest of the log could not be read: "), "{trouble}");
        assert_eq!(upload.seal(), LogSeal { size_bytes: 0, crc32c: 0, whole: true, missing_bytes: 0 });
    }

    #[tokio::test]
    async fn a_controller_that_lost_what_is_not_here_any_more_is_told_and_gets_no_zeros() {
        let folder = tempfile::tempdir().unwrap();
        let bytes: Vec<u8> = (0..9_000_000).map(|at| b'a' + u8::try_from(at % 23).unwrap()).collect();
        std::fs::write(folder.path().join(OUTPUT), &bytes).unwrap();
        let (before, _) = upload(folder.path(), Timing::default());
        before.run.output().release(8_000_000, crc32c::crc32c(&bytes[..8_000_000]), 0).await;

        // The next executor goes on from there, with the checksum of all of it.
        let (mut upload, link) = upload(folder.path(), Timing::default());
        assert_eq!((upload.sent, upload.counted), (8_000_000, 8_000_000));
        assert!(upload.go_back(7_999_000), "that is in a block that stays");
        assert!(upload.go_back(1000));
        let (_sender, over) = watch::channel(true);
        upload.follow(&link, over).await.unwrap();
        assert!(upload.is_cut() && !upload.go_back(0));
        assert!(upload.trouble().unwrap().starts_with("the log is not whole from byte 1000 on"));
        let seal = upload.seal();
        assert_eq!((seal.size_bytes, seal.crc32c), (9_000_000, crc32c::crc32c(&bytes)), "it says how much there was");
    }

    proptest! {
        #![proptest_config(ProptestConfig { cases: 16, ..ProptestConfig::default() })]

        /// However the output comes, is cut into pieces, taken, given back, and found again: what is sent is the whole, masked.
        #[test]
        fn pieces_put_together_are_the_whole_masked(
            seed in any::<u64>(),
            steps in prop::collection::vec((1usize..150_000, 1usize..120_000, any::<bool>(), prop::bool::weighted(0.2)), 1..25)
        ) {
            let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
            let folder = tempfile::tempdir().unwrap();
            let values = ["abca", "bbbbbb", "cabcab", "aaaa"].map(str::to_owned);
            let longer = "abc".repeat(500);
            let mask = || Mask::new(values.iter().cloned().chain([longer.clone()]));
            let mut run = Folder::new(folder.path(), mask());
            let mut random = seed | 1;
            let mut next = || {
                random = random.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
                random >> 33
            };
            let mut file = std::fs::File::create(folder.path().join(OUTPUT)).unwrap();
            let (mut whole, mut sent) = (Vec::new(), Vec::new());
            let last = steps.len() - 1;
            for (number, (grows, size, taken, found_again)) in steps.into_iter().enumerate() {
                if found_again {
                    let acknowledged = run.output.sent().offset;
                    run = Folder::new(folder.path(), mask());
                    prop_assert!(run.output.sent().offset >= acknowledged && run.output.sent().offset <= sent.len() as u64);
                    sent.truncate(usize::try_from(run.output.sent().offset).unwrap());
                }
                let at = whole.len();
                while whole.len() < at + grows {
                    match next() % 50 {
                        0 => whole.extend_from_slice(longer.as_bytes()),
                        1 => whole.extend_from_slice(&longer.as_bytes()[..700]),
                        _ => whole.push(b"abcd"[usize::try_from(next() % 4).unwrap()]),
                    }
                }
                file.write_all(&whole[at..]).unwrap();
                loop {
                    let over = number == last;
                    let size = if over { 200_000 } else { size };
                    let piece = runtime.block_on(read(&run.output, &run.mask, sent.len() as u64, size, over)).unwrap();
                    if piece.bytes.is_empty() {
                        break;
                    }
                    prop_assert!(piece.bytes.len() <= size);
                    sent.extend_from_slice(&piece.bytes);
                    if taken {
                        runtime.block_on(run.output.release(sent.len() as u64, 0, run.mask.context()));
                    }
                    if !over {
                        break;
                    }
                }
            }
            mask().apply(&mut whole);
            prop_assert!(sent == whole, "{} bytes sent, {} printed", sent.len(), whole.len());
        }
    }
}
