//! The spool: all the output that this executor holds on its disk, and how much that may be.
//!
//! Each run gets room in advance: at first its share, later more, as fast as it needs it and as long as there is some. What is given away and not
//! given back is never more than the limit, so the disk is safe at every instant, whatever jobs print and whoever is dead. Blocks whose bytes a
//! controller has are given back to the disk. A job that has used its room up is held up by its shim; while that is so, the executor takes
//! nothing new.

use std::fs::{File, OpenOptions};
use std::io;
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};
use std::time::{Duration, Instant};

use octavius_core::Timing;
use tokio::sync::watch;
use tokio::task::spawn_blocking;

use crate::book::{Book, Closed};
use crate::journal::{OUTPUT, ROOM};
use crate::room::Room;

/// Runs that have not begun have a quarter of the spool reserved, all together; what a single one gets of it at first is no more than this.
const SHARE_MOST: u64 = 16 * 1024 * 1024;
/// And no less than a block of the disk.
const SHARE_LEAST: u64 = 4096;
/// Less than this is not worth being told.
const LEAST_GIFT: u64 = 64 * 1024;
/// A run that needs more again so soon gets twice as much.
const SOON: Duration = Duration::from_secs(1);
/// Blocks are given back in steps of at most this.
const STEP_MOST: u64 = 4 * 1024 * 1024;
/// What has been quiet for so many looks is looked at less often, once in so many.
const QUIET: u32 = 250;
const SELDOM: u64 = 3;
/// How often runs that are held up are told that output is being taken.
const BEAT: Duration = Duration::from_secs(1);

/// The spool. A handle, cheap to clone.
#[derive(Debug, Clone)]
pub(crate) struct Spool(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    limit: u64,
    capacity: u64,
    runs: Mutex<Vec<Weak<Entry>>>,
    /// Goes up with whatever a controller takes.
    taken: AtomicU64,
    /// Whether the file system is known not to take blocks back.
    keeps_blocks: AtomicBool,
}

/// What the spool knows of one run's output.
#[derive(Debug)]
pub(super) struct Entry {
    pub(super) folder: PathBuf,
    file: Mutex<Option<Arc<File>>>,
    /// How long the output is, as far as was looked.
    length: watch::Sender<u64>,
    /// Where the bytes begin that are still on the disk.
    freed: AtomicU64,
    /// How far it may grow.
    limit: AtomicU64,
    /// Nothing writes any more.
    ended: AtomicBool,
    /// Nobody will ever take what it prints.
    forsaken: AtomicBool,
    pace: Mutex<Pace>,
}

/// How room is given to one run.
#[derive(Debug)]
struct Pace {
    window: u64,
    given_at: Option<Instant>,
    /// The record for the shim, where one was written.
    told: Option<File>,
    beat: u64,
    beaten_at: Instant,
    /// What was taken of all output when it was last told so.
    taken: u64,
    quiet: u32,
}

fn guard<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Entry {
    /// The output, where it is there.
    pub(super) fn file(&self) -> io::Result<Option<Arc<File>>> {
        let mut opened = guard(&self.file);
        if let Some(file) = &*opened {
            return Ok(Some(Arc::clone(file)));
        }
        // To be written as well: giving blocks back is a change.
        match OpenOptions::new().read(true).write(true).open(self.folder.join(OUTPUT)) {
            Ok(file) => Ok(Some(Arc::clone(opened.insert(Arc::new(file))))),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
            Err(error) => Err(error),
        }
    }

    /// How long the output is now.
    pub(super) fn look(&self) -> io::Result<u64> {
        let length = match self.file()? {
            Some(file) => file.metadata()?.len(),
            None => 0,
        };
        self.length.send_if_modified(|known| std::mem::replace(known, length) != length);
        Ok(length)
    }

    pub(super) fn lengths(&self) -> watch::Receiver<u64> {
        self.length.subscribe()
    }

    pub(super) fn freed(&self) -> u64 {
        self.freed.load(Ordering::Relaxed)
    }

    pub(super) fn limit(&self) -> u64 {
        self.limit.load(Ordering::Relaxed)
    }

    /// Whether enough is there before `end` for giving it back to be worth it.
    pub(super) fn is_worth_it(&self, end: u64) -> bool {
        let freed = self.freed();
        let step = (self.limit().saturating_sub(freed) / 4).clamp(SHARE_LEAST, STEP_MOST);
        end >= freed + step
    }

    fn held(&self) -> bool {
        !self.ended.load(Ordering::Relaxed) && !self.forsaken.load(Ordering::Relaxed) && *self.length.borrow() >= self.limit()
    }

    /// What of the spool is this run's: what it has and what it may still have.
    fn claim(&self) -> u64 {
        let (length, limit) = (*self.length.borrow(), self.limit());
        // What an executor of an earlier version started has no limit.
        let has_ended = self.ended.load(Ordering::Relaxed) || limit == u64::MAX;
        (if has_ended { length } else { limit.max(length) }).saturating_sub(self.freed())
    }

    /// How many bytes it would like to have.
    fn wish(&self) -> u64 {
        if self.ended.load(Ordering::Relaxed) || self.forsaken.load(Ordering::Relaxed) {
            return 0;
        }
        let (window, left) = (guard(&self.pace).window, self.limit().saturating_sub(*self.length.borrow()));
        if left < window / 2 { window - left } else { 0 }
    }

    fn give(&self, more: u64, most: u64, share: u64) {
        let limit = self.limit() + more;
        self.limit.store(limit, Ordering::Relaxed);
        let mut pace = guard(&self.pace);
        let soon = pace.given_at.replace(Instant::now()).is_some_and(|at| at.elapsed() < SOON);
        pace.window = if soon { (pace.window * 2).min(most) } else { share.max(LEAST_GIFT) };
        pace.beat += 1;
        self.tell(&mut pace, limit);
    }

    /// Writes what the shim is to know. What cannot be written is written the next time.
    fn tell(&self, pace: &mut Pace, limit: u64) {
        let open = || OpenOptions::new().write(true).create(true).truncate(false).mode(0o600).open(self.folder.join(ROOM));
        if pace.told.is_none() {
            pace.told = open().ok();
        }
        if let Some(file) = &pace.told
            && let Err(error) = (Room { limit, beat: pace.beat }).write(file)
        {
            tracing::debug!(folder = %self.folder.display(), %error, "cannot tell a shim how much its job may print");
        }
    }

    /// Tells the shim of a job that is held up that output is being taken, so that it waits.
    fn encourage(&self, taken: u64) {
        let mut pace = guard(&self.pace);
        if pace.taken != taken && pace.beaten_at.elapsed() >= BEAT {
            pace.taken = taken;
            pace.beaten_at = Instant::now();
            pace.beat += 1;
            self.tell(&mut pace, self.limit());
        }
    }

    /// Whether it is to be looked at in this round.
    fn is_due(&self, round: u64) -> bool {
        guard(&self.pace).quiet < QUIET || round.is_multiple_of(SELDOM)
    }

    fn note_growth(&self, grown: bool) {
        let mut pace = guard(&self.pace);
        pace.quiet = if grown { 0 } else { pace.quiet.saturating_add(1) };
    }
}

/// How all of it stands after a look.
#[derive(Debug, PartialEq, Eq)]
struct Stand {
    /// Whether some job is held up for want of room, or what is reserved is not there any more.
    full: bool,
    /// Bytes that can be given.
    left: u64,
}

impl Spool {
    /// An empty spool of so many bytes, for so many runs at once.
    pub(crate) fn new(limit: u64, capacity: u32) -> Self {
        Self(Arc::new(Inner {
            limit,
            capacity: u64::from(capacity),
            runs: Mutex::default(),
            taken: AtomicU64::new(0),
            keeps_blocks: AtomicBool::new(false),
        }))
    }

    /// What a run has at first.
    pub(crate) fn share(&self) -> u64 {
        (self.0.limit / 4 / self.0.capacity.max(1)).clamp(SHARE_LEAST, SHARE_MOST) / SHARE_LEAST * SHARE_LEAST
    }

    /// Enters the output in this folder, which may grow to `limit` bytes as things stand, and of which those before `freed` are gone.
    pub(super) fn enter(&self, folder: &Path, limit: u64, freed: u64) -> Arc<Entry> {
        let told = OpenOptions::new().read(true).write(true).open(folder.join(ROOM)).ok();
        let said = told.as_ref().and_then(Room::read);
        let entry = Arc::new(Entry {
            folder: folder.to_owned(),
            file: Mutex::new(None),
            length: watch::Sender::new(0),
            freed: AtomicU64::new(freed),
            limit: AtomicU64::new(said.map_or(limit, |said| said.limit.max(limit))),
            ended: AtomicBool::new(false),
            forsaken: AtomicBool::new(false),
            pace: Mutex::new(Pace {
                window: self.share().max(LEAST_GIFT),
                given_at: None,
                told,
                beat: said.map_or(0, |said| said.beat),
                beaten_at: Instant::now(),
                taken: 0,
                quiet: 0,
            }),
        });
        guard(&self.0.runs).push(Arc::downgrade(&entry));
        entry
    }

    /// Notes that a controller has taken output.
    pub(super) fn taken(&self) {
        self.0.taken.fetch_add(1, Ordering::Relaxed);
    }

    /// Gives the blocks before `end` back to the disk. `keep` writes down first what is to be known of them afterwards. Blocks; for a thread
    /// of its own.
    pub(super) fn give_back(&self, entry: &Entry, end: u64, keep: impl FnOnce(u64) -> io::Result<()>) -> io::Result<()> {
        let (freed, end) = (entry.freed(), end / SHARE_LEAST * SHARE_LEAST);
        if !self.0.keeps_blocks.load(Ordering::Relaxed)
            && let Some(file) = entry.file()?
        {
            keep(end)?;
            match punch(&file, freed, end) {
                Err(error) if error.kind() == io::ErrorKind::Unsupported => {
                    self.0.keeps_blocks.store(true, Ordering::Relaxed);
                    tracing::debug!(%error, "the file system takes no blocks back: output stays on the disk until its job is over");
                }
                done => done?,
            }
        }
        entry.freed.store(end, Ordering::Relaxed);
        Ok(())
    }

    /// Looks at every run's output: who waits for it is woken, and who needs room is given it. `round` counts these.
    fn look(&self, round: u64) -> Stand {
        let entries: Vec<Arc<Entry>> = {
            let mut runs = guard(&self.0.runs);
            runs.retain(|run| run.strong_count() > 0);
            runs.iter().filter_map(Weak::upgrade).collect()
        };
        let mut claimed: u64 = 0;
        let mut begun: u64 = 0;
        for entry in &entries {
            if entry.is_due(round) {
                let before = *entry.length.borrow();
                // What cannot be looked at is told by whoever reads it.
                let now = entry.look().unwrap_or(before);
                entry.note_growth(now != before);
            }
            claimed = claimed.saturating_add(entry.claim());
            begun += u64::from(!entry.ended.load(Ordering::Relaxed));
        }
        let reserved = self.share() * self.0.capacity.saturating_sub(begun);
        let full = claimed.saturating_add(reserved) > self.0.limit;
        let mut left = self.0.limit.saturating_sub(claimed).saturating_sub(reserved);
        let wishing = entries.iter().filter(|entry| entry.wish() > 0).count() as u64;
        // Whoever is first in one round is not in the next.
        let first = usize::try_from(round).unwrap_or_default() % entries.len().max(1);
        for entry in entries[first..].iter().chain(&entries[..first]) {
            let wish = entry.wish();
            let fair = if wishing > 1 { left / 2 } else { left };
            let gift = wish.min(fair);
            if wish > 0 && gift >= wish.min(LEAST_GIFT) {
                entry.give(gift, self.0.limit / 4, self.share());
                left -= gift;
            }
        }
        let held: Vec<_> = entries.iter().filter(|entry| entry.held()).collect();
        held.iter().for_each(|entry| entry.encourage(self.0.taken.load(Ordering::Relaxed)));
        Stand { full: full || !held.is_empty(), left }
    }

    /// Looks at everything at intervals. Never ends.
    pub(crate) async fn keep(&self, book: Book, timing: Timing) {
        let mut ticks = tokio::time::interval(timing.log_poll);
        ticks.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        let mut closed = false;
        for round in 0.. {
            ticks.tick().await;
            if guard(&self.0.runs).is_empty() && !closed {
                continue;
            }
            let spool = self.clone();
            let Ok(stand) = spawn_blocking(move || spool.look(round)).await else { continue };
            if stand.full && !closed {
                closed = true;
                book.close(Closed::SPOOL);
                tracing::warn!(
                    limit_bytes = self.0.limit,
                    "the spool is full: taking no work until there is room, and jobs that print wait"
                );
            } else if closed && !stand.full && stand.left >= self.0.limit / 8 {
                closed = false;
                book.open_again(Closed::SPOOL);
                tracing::info!("there is room in the spool: taking work again");
            }
        }
    }
}

impl Entry {
    /// Notes that nothing writes any more: what it might have printed is others' to print.
    pub(super) fn end(&self) {
        self.ended.store(true, Ordering::Relaxed);
    }

    /// Notes that nobody will take what it prints: it gets no more room.
    pub(super) fn forsake(&self) {
        self.forsaken.store(true, Ordering::Relaxed);
    }
}

/// Gives blocks of a file back to the disk.
pub(super) fn punch(file: &File, from: u64, to: u64) -> io::Result<()> {
    use rustix::fs::FallocateFlags;
    if from < to {
        rustix::fs::fallocate(file, FallocateFlags::PUNCH_HOLE | FallocateFlags::KEEP_SIZE, from, to - from)?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    const MIB: u64 = 1024 * 1024;

    /// A folder as a run has one, and a way to print into it as far as the shim would let a job.
    struct Printer {
        folder: tempfile::TempDir,
        entry: Arc<Entry>,
    }

    impl Printer {
        fn new(spool: &Spool) -> Self {
            let folder = tempfile::tempdir().unwrap();
            let entry = spool.enter(folder.path(), spool.share(), 0);
            Self { folder, entry }
        }

        fn allowed(&self) -> u64 {
            let said = File::open(self.folder.path().join(ROOM)).ok().and_then(|file| Room::read(&file));
            said.map_or(self.entry.limit(), |said| said.limit)
        }

        /// Prints all that it may.
        fn print(&self) {
            let output = OpenOptions::new().create(true).append(true).open(self.folder.path().join(OUTPUT)).unwrap();
            output.set_len(self.allowed()).unwrap();
        }

        fn length(&self) -> u64 {
            std::fs::metadata(self.folder.path().join(OUTPUT)).map_or(0, |found| found.len())
        }
    }

    #[test]
    fn however_much_jobs_print_the_spool_stays_within_its_limit() {
        let spool = Spool::new(32 * MIB, 4);
        assert_eq!(spool.share(), 2 * MIB);
        let printers: Vec<_> = (0..3).map(|_| Printer::new(&spool)).collect();
        let mut rounds = 0..;
        let mut settle = || {
            let mut stand = Stand { full: false, left: 0 };
            for round in rounds.by_ref().take(50) {
                stand = spool.look(round);
                printers.iter().for_each(Printer::print);
            }
            stand
        };
        assert!(settle().full);
        let lengths: Vec<_> = printers.iter().map(Printer::length).collect();
        let all: u64 = lengths.iter().sum();
        // The share of the slot that is free stays free.
        assert!(all <= 30 * MIB && all > 28 * MIB, "{lengths:?}");
        assert!(lengths.iter().all(|length| *length >= 4 * MIB), "each has its part: {lengths:?}");

        // What a controller has is room for others.
        let first = &printers[0];
        spool.give_back(&first.entry, first.length(), |_| Ok(())).unwrap();
        assert!(settle().full);
        let after: u64 = printers.iter().map(|printer| printer.length() - printer.entry.freed()).sum();
        assert!(after <= 30 * MIB && after > 28 * MIB, "{after}");

        // What is over prints no more, and what it holds stays counted until it is taken.
        printers.iter().for_each(|printer| printer.entry.end());
        assert_eq!(spool.look(0), Stand { full: true, left: 0 }, "the shares of four new ones are not there");
        printers.iter().for_each(|printer| spool.give_back(&printer.entry, printer.length(), |_| Ok(())).unwrap());
        assert!(!spool.look(0).full);
        drop(printers);
        assert_eq!(spool.look(0), Stand { full: false, left: 24 * MIB });
    }

    #[test]
    fn one_that_prints_much_gets_most_of_it_and_one_that_nobody_listens_to_nothing_more() {
        let spool = Spool::new(32 * MIB, 4);
        let (loud, forsaken) = (Printer::new(&spool), Printer::new(&spool));
        forsaken.entry.forsake();
        for round in 0..50 {
            spool.look(round);
            loud.print();
            forsaken.print();
        }
        assert_eq!(forsaken.length(), 2 * MIB);
        assert!(loud.length() > 25 * MIB, "{}", loud.length());
        assert!(spool.look(0).full);
        loud.entry.end();
        forsaken.entry.end();
        drop(loud);
        assert!(!spool.look(0).full, "one that is forsaken is nobody's concern");
    }

    #[test]
    fn a_job_that_waits_hears_that_output_is_taken() {
        let spool = Spool::new(16 * MIB, 1);
        let printer = Printer::new(&spool);
        for round in 0..50 {
            spool.look(round);
            printer.print();
        }
        let said = || Room::read(&File::open(printer.folder.path().join(ROOM)).unwrap()).unwrap();
        let before = said();
        guard(&printer.entry.pace).beaten_at = Instant::now().checked_sub(BEAT).unwrap();
        spool.look(0);
        assert_eq!(said(), before, "nothing was taken");
        spool.taken();
        spool.look(0);
        assert_eq!((said().limit, said().beat), (before.limit, before.beat + 1));
        // The next executor goes on from there.
        let again = Spool::new(16 * MIB, 1).enter(printer.folder.path(), 4096, 0);
        assert_eq!(again.limit(), before.limit);
    }
}
