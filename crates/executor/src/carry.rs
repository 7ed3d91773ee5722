//! The way of the output from a job's pipe into the file, for as far as there is room for it.
//!
//! Where there is none, because the executor's spool is full or the disk is, the job is held up: nothing is read from its pipe, and nothing is
//! lost. Only where that lasts, and the executor says nothing of better times, is output dropped and counted, and the file says how much of it is
//! missing where.

use std::fs::{File, OpenOptions};
use std::io::{self, PipeReader, Read as _, Write};
use std::ops::Range;
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::Path;
use std::time::{Duration, Instant};

use rustix::fs::{OFlags, fcntl_getfl, fcntl_setfl};

use crate::journal::{OUTPUT, ROOM};
use crate::room::Room;
use crate::times::{Notes, now_ms};

/// How much output is carried at once: what a pipe holds.
const OUTPUT_BYTES: usize = 64 * 1024;
/// Output that comes in dribs is gathered for so long before it is read again: of two hundred jobs that print a line every 10 ms each, the shims
/// would otherwise take half a core.
const GATHER: Duration = Duration::from_millis(20);
/// So little is a drib.
const DRIB_BYTES: usize = 4 * 1024;
/// How often is looked for room, while the job is held up for want of it.
const LOOK_AGAIN: Duration = Duration::from_millis(20);
/// How often the same is done while output is dropped, or writing fails.
const WRITE_AGAIN: Duration = Duration::from_millis(200);
/// So much room there must be before what is dropped is dropped no more: otherwise there would be more marks than output.
const ENOUGH: u64 = 64 * 1024;

/// What stands in the output where so many bytes are missing.
fn mark(missing: u64) -> Vec<u8> {
    format!("\n[octavius: {missing} bytes of output are missing here: the executor's spool was full]\n").into_bytes()
}

/// The file, and what may be in it.
struct Sink<W> {
    open: Box<dyn FnMut() -> io::Result<W>>,
    /// Made for the first byte: many jobs print nothing.
    file: Option<W>,
    /// How many bytes are in it.
    length: u64,
    /// How many may be.
    limit: u64,
    /// How long there may be no room before output is dropped.
    patience: Duration,
    held_since: Option<Instant>,
    /// Bytes that were dropped and of which the file does not tell yet.
    missing: u64,
    /// What is left to be written of a mark that was begun.
    mark: Vec<u8>,
    /// Why writing failed last.
    error: Option<io::Error>,
}

impl<W: Write> Sink<W> {
    fn new(open: impl FnMut() -> io::Result<W> + 'static, limit: u64, patience: Duration) -> Self {
        Self {
            open: Box::new(open),
            file: None,
            length: 0,
            limit,
            patience,
            held_since: None,
            missing: 0,
            mark: Vec::new(),
            error: None,
        }
    }

    /// Takes bytes, and says how many: those that were written and those that were dropped. Fewer than there are where the job has to wait.
    /// `last` are those after the job's end, no more than a pipe holds, which go in though the limit is reached.
    fn put(&mut self, bytes: &[u8], now: Instant, last: bool) -> usize {
        if self.missing > 0 && !self.resume(last) {
            self.missing += bytes.len() as u64;
            return bytes.len();
        }
        let mut taken = 0;
        while taken < bytes.len() && self.mark_is_written() {
            let room = if last { u64::MAX } else { self.limit.saturating_sub(self.length) };
            let part = usize::try_from(room).unwrap_or(usize::MAX).min(bytes.len() - taken);
            match self.write(&bytes[taken..taken + part]) {
                0 => break,
                count => taken += count,
            }
            self.held_since = None;
        }
        if taken < bytes.len() && now.duration_since(*self.held_since.get_or_insert(now)) >= self.patience {
            self.missing = (bytes.len() - taken) as u64;
            self.held_since = None;
            return bytes.len();
        }
        taken
    }

    /// Writes how much is missing, where there is room for that and for what follows; true where nothing is dropped any more.
    fn resume(&mut self, last: bool) -> bool {
        let mark = mark(self.missing);
        let fits = last || self.limit.saturating_sub(self.length) >= mark.len() as u64 + ENOUGH;
        if !fits || !self.mark_is_written() {
            return false;
        }
        let count = self.write(&mark);
        if count == 0 {
            return false;
        }
        self.mark = mark[count..].to_vec();
        self.missing = 0;
        self.mark_is_written()
    }

    fn mark_is_written(&mut self) -> bool {
        while !self.mark.is_empty() {
            let mark = std::mem::take(&mut self.mark);
            let count = self.write(&mark);
            self.mark = mark[count..].to_vec();
            if count == 0 {
                return false;
            }
        }
        true
    }

    fn write(&mut self, bytes: &[u8]) -> usize {
        if bytes.is_empty() {
            return 0;
        }
        let file = match &mut self.file {
            Some(file) => Ok(file),
            none => (self.open)().map(|file| none.insert(file)),
        };
        match file.and_then(|file| file.write(bytes)) {
            Ok(count) => {
                self.length += count as u64;
                count
            }
            // What is interrupted, too, is tried again by whoever comes by.
            Err(error) => {
                self.error = Some(error);
                0
            }
        }
    }
}

/// How carrying came out.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Carried {
    /// There may be more.
    More,
    /// There is nothing more at present.
    Nothing,
    /// There is no room for what there is.
    Held,
}

/// The way of one job's output.
pub(crate) struct Carry {
    pipe: Option<PipeReader>,
    bytes: Vec<u8>,
    /// The part of `bytes` that is not in the file yet.
    waiting: Range<usize>,
    sink: Sink<File>,
    notes: Notes,
    room: Option<File>,
    told: Option<Room>,
    /// Until when output is gathered.
    gathers: Option<Instant>,
    /// Whether reading failed.
    broken: bool,
}

impl Carry {
    /// From this pipe, into the folder in which this process is.
    pub(crate) fn new(pipe: PipeReader, limit: u64, patience: Duration) -> io::Result<Self> {
        let flags = fcntl_getfl(&pipe)?;
        fcntl_setfl(&pipe, flags | OFlags::NONBLOCK)?;
        let open = || OpenOptions::new().create(true).append(true).mode(0o600).open(OUTPUT);
        Ok(Self {
            pipe: Some(pipe),
            bytes: vec![0; OUTPUT_BYTES],
            waiting: 0..0,
            sink: Sink::new(open, limit, patience),
            notes: Notes::new(Path::new("")),
            room: None,
            told: None,
            gathers: None,
            broken: false,
        })
    }

    /// The pipe, where reading from it makes sense.
    pub(crate) fn wanted(&self) -> Option<&PipeReader> {
        self.pipe.as_ref().filter(|_| self.waiting.is_empty() && !self.broken && self.gathering().is_none())
    }

    /// For how long output is gathered still.
    fn gathering(&self) -> Option<Duration> {
        let left = self.gathers?.saturating_duration_since(Instant::now());
        (!left.is_zero()).then_some(left)
    }

    /// When to carry on though nothing came.
    pub(crate) fn again(&self) -> Option<Duration> {
        if let Some(left) = self.gathering().filter(|_| self.waiting.is_empty() && !self.broken) {
            return Some(left);
        }
        let failing = self.broken || self.sink.missing > 0 || (!self.waiting.is_empty() && self.sink.limit > self.sink.length);
        match failing {
            true => Some(WRITE_AGAIN),
            false => (!self.waiting.is_empty()).then_some(LOOK_AGAIN),
        }
    }

    /// Carries what is there, but no more than a pipe holds, so that what else there is to do gets its turn.
    pub(crate) fn carry(&mut self) -> io::Result<Carried> {
        self.step(false)
    }

    fn step(&mut self, last: bool) -> io::Result<Carried> {
        self.look_for_room();
        if self.sink.missing > 0 {
            self.sink.resume(last);
        }
        if !self.put(last) {
            return Ok(Carried::Held);
        }
        let Some(pipe) = &mut self.pipe else { return Ok(Carried::Nothing) };
        self.broken = false;
        match pipe.read(&mut self.bytes) {
            Ok(0) => self.pipe = None, // nobody has its other end any more
            Ok(count) => {
                self.waiting = 0..count;
                self.gathers = (count < DRIB_BYTES).then(|| Instant::now() + GATHER);
                let now = now_ms();
                match self.sink.length {
                    0 => self.notes.born(now),
                    length => self.notes.note(length, now),
                }
            }
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => return Ok(Carried::Nothing),
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => {
                self.broken = true;
                return Err(error);
            }
        }
        Ok(match (self.put(last), &self.pipe) {
            (false, _) => Carried::Held,
            (true, Some(_)) => Carried::More,
            (true, None) => Carried::Nothing,
        })
    }

    /// Puts what waits into the file; true where all of it is taken.
    fn put(&mut self, last: bool) -> bool {
        if self.waiting.len() as u64 > self.sink.limit.saturating_sub(self.sink.length) {
            self.look_for_room();
        }
        let taken = self.sink.put(&self.bytes[self.waiting.clone()], Instant::now(), last);
        self.waiting.start += taken;
        self.waiting.is_empty()
    }

    /// Hears what the executor has said, where what is known of it is used up.
    fn look_for_room(&mut self) {
        if self.sink.limit.saturating_sub(self.sink.length) >= OUTPUT_BYTES as u64 {
            return;
        }
        if self.room.is_none() {
            self.room = File::open(ROOM).ok();
        }
        let said = self.room.as_ref().and_then(Room::read);
        if let Some(room) = said.filter(|_| said != self.told) {
            self.told = said;
            self.sink.limit = self.sink.limit.max(room.limit);
            // Somebody is there who sees to it that there will be room.
            self.sink.held_since = None;
        }
    }

    /// Carries what is left when the job is over. The error says what of the end is missing.
    pub(crate) fn finish(&mut self, patience: Duration) -> Result<(), String> {
        let begun = Instant::now();
        loop {
            match self.step(true) {
                Ok(Carried::More) => {}
                Ok(Carried::Nothing) => break,
                Err(error) if begun.elapsed() > patience => return Err(error.to_string()),
                Ok(Carried::Held) | Err(_) => std::thread::sleep(WRITE_AGAIN),
            }
        }
        let begun = Instant::now();
        while (self.sink.missing > 0 && !self.sink.resume(true)) || !self.sink.mark_is_written() {
            if begun.elapsed() > patience {
                let why = self.sink.error.take().map_or_else(|| "no room".to_owned(), |error| error.to_string());
                return Err(format!("{} bytes: {why}", self.sink.missing));
            }
            std::thread::sleep(WRITE_AGAIN);
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use std::cell::RefCell;
    use std::rc::Rc;

    use proptest::prelude::*;

    use super::*;

    /// A disk that has room for so many bytes, and takes seven at a time.
    #[derive(Default)]
    struct Disk {
        room: usize,
        holds: Vec<u8>,
    }

    #[derive(Clone, Default)]
    struct Handle(Rc<RefCell<Disk>>);

    impl Write for Handle {
        fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
            let mut disk = self.0.borrow_mut();
            let count = bytes.len().min(7).min(disk.room);
            if count == 0 {
                return Err(io::ErrorKind::StorageFull.into());
            }
            disk.room -= count;
            disk.holds.extend_from_slice(&bytes[..count]);
            Ok(count)
        }

        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }

    const PATIENCE: Duration = Duration::from_secs(30);

    fn sink(limit: u64, room: usize) -> (Sink<Handle>, Handle) {
        let handle = Handle::default();
        handle.0.borrow_mut().room = room;
        let opened = handle.clone();
        (Sink::new(move || Ok(opened.clone()), limit, PATIENCE), handle)
    }

    fn text(handle: &Handle) -> String {
        String::from_utf8(handle.0.borrow().holds.clone()).unwrap()
    }

    #[test]
    fn output_waits_for_room_and_is_dropped_and_counted_only_after_that_was_in_vain() {
        let (mut sink, handle) = sink(10, usize::MAX);
        let begun = Instant::now();
        assert_eq!(sink.put(b"0123456789abc", begun, false), 10);
        assert_eq!(sink.put(b"abc", begun + PATIENCE / 2, false), 0, "held up");
        sink.limit = 12;
        assert_eq!(sink.put(b"abc", begun + PATIENCE, false), 2);
        assert_eq!(sink.put(b"c", begun + PATIENCE, false), 0);
        assert_eq!(sink.put(b"cdef", begun + PATIENCE * 2, false), 4, "dropped");
        assert_eq!(sink.put(b"ghi", begun + PATIENCE * 2, false), 3);
        sink.limit = 100;
        assert_eq!(sink.put(b"jk", begun + PATIENCE * 2, false), 2, "not enough room to begin again");
        sink.limit = 100_000;
        assert_eq!(sink.put(b"lmn", begun + PATIENCE * 2, false), 3);
        assert_eq!(text(&handle), format!("0123456789ab{}lmn", String::from_utf8(mark(9)).unwrap()));
        assert_eq!(mark(9), b"\n[octavius: 9 bytes of output are missing here: the executor's spool was full]\n");
    }

    #[test]
    fn a_full_disk_is_waited_for_and_then_marked_as_well() {
        let (mut sink, handle) = sink(u64::MAX, 10);
        let begun = Instant::now();
        assert_eq!(sink.put(b"0123456789abc", begun, false), 10);
        assert_eq!(sink.put(b"abc", begun + PATIENCE, false), 3);
        assert_eq!(sink.put(b"def", begun + PATIENCE, true), 3, "also what comes after the end");
        assert!(!sink.resume(true));
        handle.0.borrow_mut().room = 20;
        assert!(!sink.resume(true), "half a mark");
        assert_eq!(sink.put(b"ghi", begun + PATIENCE, false), 0, "which is to be finished first");
        handle.0.borrow_mut().room = usize::MAX;
        assert_eq!(sink.put(b"ghi", begun + PATIENCE, false), 3);
        assert_eq!(text(&handle), format!("0123456789{}ghi", String::from_utf8(mark(6)).unwrap()));
    }

    proptest! {
        /// Whatever becomes of limits and disks, the file is the output with counted holes in it.
        #[test]
        fn what_is_there_and_what_is_missing_is_all_there_was(
            steps in prop::collection::vec((1usize..300, 0u64..90_000, 0usize..90_000, 0u64..40), 1..40)
        ) {
            let (mut sink, handle) = sink(0, 0);
            let mut now = Instant::now();
            let mut printed = 0u64;
            let mut waiting = Vec::new();
            for (size, more, room, seconds) in steps {
                now += Duration::from_secs(seconds);
                sink.limit += more;
                handle.0.borrow_mut().room += room;
                if waiting.is_empty() {
                    waiting = (0..size as u64).map(|at| b'a' + u8::try_from((printed + at) % 26).unwrap()).collect();
                    printed += size as u64;
                }
                let taken = sink.put(&waiting, now, false);
                waiting.drain(..taken);
            }
            handle.0.borrow_mut().room = usize::MAX;
            sink.put(&waiting, now, true);
            prop_assert!(sink.missing == 0 || sink.resume(true));
            prop_assert!(sink.mark_is_written());
            let text = text(&handle);
            let mut at = 0u64;
            for (number, part) in text.split("\n[octavius: ").enumerate() {
                let kept = match number {
                    0 => part,
                    _ => {
                        let (count, rest) = part.split_once(" bytes of output").unwrap();
                        at += count.parse::<u64>().unwrap();
                        rest.split_once("]\n").unwrap().1
                    }
                };
                for byte in kept.bytes() {
                    prop_assert_eq!(byte, b'a' + u8::try_from(at % 26).unwrap());
                    at += 1;
                }
            }
            prop_assert_eq!(at, printed);
        }
    }
}
