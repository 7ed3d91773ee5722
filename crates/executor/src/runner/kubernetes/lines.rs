//! The bytes of a container's log, out of the stream that the kubelet serves, and where to go on after that stream broke.
//!
//! The stream is asked for with timestamps: each line then begins with the nanosecond at which the runtime read it, and so a place in the
//! log has a name, by which it is found again: the line's timestamp, and which of the lines with this timestamp it is. A stream that was
//! opened again shows the container's current file from its beginning. Where the place is in it, everything before is what is had already.
//! Where it is not, the file was rotated meanwhile, and what was lost with the file that went away cannot be known: a mark says so.
//! What bears no timestamp is not the container's but the kubelet's, and no part of the log.

use std::fs::{File, OpenOptions};
use std::io::{self, Write as _};
use std::os::unix::fs::{FileExt as _, OpenOptionsExt as _};
use std::path::Path;

use k8s_openapi::jiff::Timestamp;
use memchr::memchr;
use serde::{Deserialize, Serialize};

/// Longest timestamp, with the space after it: `2006-01-02T15:04:05.000000000+07:00 `.
const PREFIX: usize = 36;
/// Two lines of one container may be in the file in another order than their timestamps, but not by so much: one of its two outputs was
/// read before the other's line was written.
const DISORDER: k8s_openapi::jiff::SignedDuration = k8s_openapi::jiff::SignedDuration::from_secs(1);
/// What stands in the log where something may be missing.
pub(super) const GAP: &[u8] = b"\n[octavius: the container's log was rotated before it was read; output may be missing here]\n";
/// The file beside the output that says where its end is in the container's log.
const POSITION: &str = "position";

/// The beginning of the last line that was begun.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
struct Position {
    stamp: Timestamp,
    /// Which of the lines with this timestamp, from 1.
    ordinal: u32,
    /// Where in the output the line begins.
    offset: u64,
}

/// How a stream is joined to what is there.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Join {
    /// Every byte is new.
    Take,
    /// The place is looked for; so many lines with its timestamp have been seen.
    Seek(u32),
    /// The place was found; so many bytes are there already.
    Skip(u64),
    /// The place is not there; lines later than its timestamp are new.
    After,
}

/// What a stream that is about to begin has to do with the output.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Joint {
    /// The place where the output ends is in it.
    Place,
    /// It is not; the stream is of the file that follows.
    NextFile,
    /// It is not, and a file may have come and gone between.
    Gap,
}

/// That the place where the output ends is not in the stream.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Missed;

/// What a piece of a stream was.
pub(super) type Taken = Result<(), Missed>;

/// An attempt's output as a file, and its place in the container's log.
pub(super) struct Spool {
    output: File,
    position_file: File,
    length: u64,
    position: Option<Position>,
    join: Join,
    /// The beginning of a line, as long as it may be a timestamp.
    prefix: Vec<u8>,
    in_line: bool,
    /// Whether the line is the kubelet's own.
    foreign: bool,
    /// What the kubelet said in the container's place, the last of it.
    pub(super) said: String,
    /// Whether something may be missing.
    pub(super) has_gap: bool,
}

impl Spool {
    /// Opens the output in a run folder, as far as it came.
    pub(super) fn open(folder: &Path) -> io::Result<Self> {
        let file = |name: &str| {
            OpenOptions::new().read(true).write(true).create(true).truncate(false).mode(0o600).open(folder.join(name))
        };
        let output = OpenOptions::new().append(true).create(true).mode(0o600).open(folder.join(crate::journal::OUTPUT))?;
        let position_file = file(POSITION)?;
        let length = output.metadata()?.len();
        let mut bytes = vec![0; usize::try_from(position_file.metadata()?.len()).unwrap_or_default()];
        position_file.read_exact_at(&mut bytes, 0)?;
        let line = bytes.split(|&byte| byte == b'\n').next().unwrap_or_default();
        let position: Option<Position> = serde_json::from_slice(line).ok();
        let mut spool = Self {
            output,
            position_file,
            length,
            position: position.filter(|position| position.offset <= length),
            join: Join::Take,
            prefix: Vec::new(),
            in_line: false,
            foreign: false,
            said: String::new(),
            has_gap: false,
        };
        // A machine that lost its power may have kept the end of the one file and not of the other: then all is read again.
        if spool.position.is_none() && length > 0 {
            spool.output.set_len(0)?;
            spool.length = 0;
        }
        Ok(spool)
    }

    /// How many bytes there are.
    pub(super) fn length(&self) -> u64 {
        self.length
    }

    /// The timestamp of the last line.
    pub(super) fn stamp(&self) -> Option<Timestamp> {
        self.position.map(|position| position.stamp)
    }

    /// Prepares for a stream that begins where the container's file does.
    pub(super) fn begin(&mut self, joint: Joint) -> io::Result<()> {
        self.join = match (self.position, joint) {
            (None, _) => Join::Take,
            (Some(_), Joint::Place) => Join::Seek(0),
            (Some(_), Joint::NextFile | Joint::Gap) => Join::After,
        };
        self.prefix.clear();
        self.in_line = false;
        self.foreign = false;
        if joint == Joint::Gap {
            self.has_gap = true;
            self.write(GAP)?;
        }
        Ok(())
    }

    /// Takes a piece of a stream.
    pub(super) fn take(&mut self, mut piece: &[u8]) -> io::Result<Taken> {
        let mut fresh = Vec::with_capacity(piece.len());
        let mut taken = Ok(());
        while !piece.is_empty() {
            if !self.in_line {
                match self.line_begins(&mut piece, self.length + fresh.len() as u64) {
                    Ok(true) => {}
                    Ok(false) => break,
                    Err(missed) => {
                        taken = Err(missed);
                        break;
                    }
                }
            }
            let end = memchr(b'\n', piece).map_or(piece.len(), |at| at + 1);
            let (part, rest) = piece.split_at(end);
            self.in_line = !part.ends_with(b"\n");
            piece = rest;
            self.part(part, &mut fresh);
        }
        self.write(&fresh)?;
        Ok(taken)
    }

    /// Tells whether a stream that ended had shown the place it was to go on from.
    pub(super) fn end(&self) -> Taken {
        if matches!(self.join, Join::Seek(_)) { Err(Missed) } else { Ok(()) }
    }

    /// Reads a line's timestamp; false where there is not enough of it. `at` is where the line would begin in the output.
    fn line_begins(&mut self, piece: &mut &[u8], at: u64) -> Result<bool, Missed> {
        let wanted = PREFIX.saturating_sub(self.prefix.len()).min(piece.len());
        let found = memchr(b' ', &piece[..wanted]).map(|space| space + 1);
        let line_end = memchr(b'\n', &piece[..wanted]);
        let taken = match (found, line_end) {
            (Some(space), Some(end)) if end < space => end,
            (Some(space), _) => space,
            (None, Some(end)) => end,
            (None, None) => wanted,
        };
        self.prefix.extend_from_slice(&piece[..taken]);
        let complete = self.prefix.ends_with(b" ") || self.prefix.len() >= PREFIX || (found.is_none() && line_end.is_some());
        *piece = &piece[taken..];
        if !complete {
            return Ok(false);
        }
        let prefix = std::mem::take(&mut self.prefix);
        let text = std::str::from_utf8(&prefix).unwrap_or_default();
        self.in_line = true;
        match text.strip_suffix(' ').and_then(|text| text.parse::<Timestamp>().ok()) {
            Some(stamp) => {
                self.foreign = false;
                self.stamped(stamp, at)?;
            }
            None => {
                self.foreign = true;
                self.said.clear();
                self.said.push_str(text);
            }
        }
        Ok(true)
    }

    /// Decides what a line with this timestamp is.
    fn stamped(&mut self, stamp: Timestamp, at: u64) -> Result<(), Missed> {
        let last = self.position;
        match (&mut self.join, last) {
            (Join::Seek(seen), Some(last)) => {
                if stamp == last.stamp {
                    *seen += 1;
                    if *seen == last.ordinal {
                        self.join = Join::Skip(self.length - last.offset);
                    }
                } else if stamp.duration_since(last.stamp) > DISORDER {
                    return Err(Missed);
                }
                return Ok(());
            }
            (Join::After, Some(last)) => {
                if stamp <= last.stamp {
                    return Ok(());
                }
                self.join = Join::Take;
            }
            _ => {}
        }
        let offset = match self.join {
            Join::Skip(left) => self.length - left,
            _ => at,
        };
        let ordinal = last.filter(|last| last.stamp == stamp).map_or(1, |last| last.ordinal + 1);
        self.position = Some(Position { stamp, ordinal, offset });
        Ok(())
    }

    /// Takes a part of one line.
    fn part(&mut self, part: &[u8], fresh: &mut Vec<u8>) {
        if self.foreign {
            let room = 300usize.saturating_sub(self.said.len());
            self.said.push_str(&String::from_utf8_lossy(&part[..part.len().min(room)]));
            return;
        }
        match &mut self.join {
            Join::Take => fresh.extend_from_slice(part),
            Join::Seek(_) | Join::After => {}
            Join::Skip(left) => {
                let skipped = usize::try_from(*left).unwrap_or(usize::MAX).min(part.len());
                *left -= skipped as u64;
                if *left == 0 {
                    self.join = Join::Take;
                }
                fresh.extend_from_slice(&part[skipped..]);
            }
        }
    }

    fn write(&mut self, bytes: &[u8]) -> io::Result<()> {
        self.output.write_all(bytes)?;
        self.length += bytes.len() as u64;
        if let Some(position) = &self.position {
            // Of one width nearly always, and cut at the line's end: what an earlier, longer one leaves behind it does no harm.
            let mut line = serde_json::to_vec(position)?;
            line.push(b'\n');
            self.position_file.write_all_at(&line, 0)?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn stamped(lines: &[(u32, &str)]) -> Vec<u8> {
        let lines =
            lines.iter().flat_map(|(nano, text)| format!("2026-11-22T23:00:{:02}.{nano:09}Z {text}", nano / 1000).into_bytes());
        lines.collect()
    }

    fn output(folder: &Path) -> String {
        String::from_utf8_lossy(&std::fs::read(folder.join("output")).unwrap()).into_owned()
    }

    fn feed(spool: &mut Spool, bytes: &[u8], piece: usize) -> Taken {
        for piece in bytes.chunks(piece) {
            match spool.take(piece).unwrap() {
                Ok(()) => {}
                missed => return missed,
            }
        }
        spool.end()
    }

    const LINES: [(u32, &str); 6] =
        [(1, "one\n"), (2, "two\n"), (2, "two again\n"), (3, "\n"), (4, "a 2026-11-22T23:00:00Z b\n"), (5, "no end")];
    const TEXT: &str = "one\ntwo\ntwo again\n\na 2026-11-22T23:00:00Z b\nno end";

    proptest! {
        #[test]
        fn however_it_is_cut_and_broken_the_output_is_whole(piece in 1usize..90, breaks in prop::collection::vec(0usize..400, 0..4),
            reopened in any::<bool>()) {
            let folder = tempfile::tempdir().unwrap();
            let whole = stamped(&LINES);
            let mut spool = Spool::open(folder.path()).unwrap();
            for at in breaks {
                spool.begin(Joint::Place).unwrap();
                let _ = feed(&mut spool, &whole[..at.min(whole.len())], piece);
                if reopened {
                    spool = Spool::open(folder.path()).unwrap();
                }
            }
            spool.begin(Joint::Place).unwrap();
            prop_assert_eq!(feed(&mut spool, &whole, piece), Ok(()));
            prop_assert_eq!(output(folder.path()), TEXT);
            prop_assert_eq!(spool.length(), TEXT.len() as u64);
        }
    }

    #[test]
    fn a_crash_between_the_output_and_its_position_repeats_nothing() {
        let folder = tempfile::tempdir().unwrap();
        let whole = stamped(&LINES);
        let mut spool = Spool::open(folder.path()).unwrap();
        spool.begin(Joint::Place).unwrap();
        spool.take(&whole[..50]).unwrap().unwrap();
        let position = std::fs::read(folder.path().join(POSITION)).unwrap();
        spool.take(&whole[50..120]).unwrap().unwrap();
        std::fs::write(folder.path().join(POSITION), position).unwrap();
        let mut spool = Spool::open(folder.path()).unwrap();
        spool.begin(Joint::Place).unwrap();
        assert_eq!(feed(&mut spool, &whole, 7), Ok(()));
        assert_eq!(output(folder.path()), TEXT);
    }

    #[test]
    fn a_rotated_file_leaves_a_mark_and_nothing_is_repeated() {
        let folder = tempfile::tempdir().unwrap();
        let mut spool = Spool::open(folder.path()).unwrap();
        spool.begin(Joint::Place).unwrap();
        assert_eq!(feed(&mut spool, &stamped(&[(1, "one\n"), (2, "two\n")]), 9), Ok(()));
        let after = stamped(&[(2001, "late\n"), (2002, "later\n")]);
        spool.begin(Joint::Place).unwrap();
        assert_eq!(feed(&mut spool, &after, 9), Err(Missed));
        spool.begin(Joint::Gap).unwrap();
        assert_eq!(feed(&mut spool, &after, 9), Ok(()));
        let expected = format!("one\ntwo\n{}late\nlater\n", String::from_utf8_lossy(GAP));
        assert_eq!(output(folder.path()), expected);
        spool.begin(Joint::Place).unwrap();
        assert_eq!(feed(&mut spool, &after, 9), Ok(()));
        assert_eq!((output(folder.path()), spool.has_gap), (expected, true));
    }

    #[test]
    fn the_file_that_follows_is_joined_without_a_mark() {
        let folder = tempfile::tempdir().unwrap();
        let mut spool = Spool::open(folder.path()).unwrap();
        spool.begin(Joint::Place).unwrap();
        assert_eq!(feed(&mut spool, &stamped(&[(1, "one\n")]), 9), Ok(()));
        let next = stamped(&[(2, "two\n")]);
        spool.begin(Joint::Place).unwrap();
        assert_eq!(feed(&mut spool, &next, 9), Err(Missed));
        spool.begin(Joint::NextFile).unwrap();
        assert_eq!(feed(&mut spool, &next, 9), Ok(()));
        assert_eq!((output(folder.path()).as_str(), spool.has_gap), ("one\ntwo\n", false));
    }

    #[test]
    fn what_the_kubelet_says_is_no_part_of_the_log() {
        let folder = tempfile::tempdir().unwrap();
        let mut spool = Spool::open(folder.path()).unwrap();
        spool.begin(Joint::Place).unwrap();
        let mut bytes = stamped(&[(1, "one\n")]);
        bytes.extend_from_slice(b"unable to retrieve container logs for containerd://1\nx\n");
        bytes.extend(stamped(&[(2, "two\n")]));
        assert_eq!(feed(&mut spool, &bytes, 11), Ok(()));
        assert_eq!((output(folder.path()).as_str(), spool.said.as_str()), ("one\ntwo\n", "x\n"));
    }

    #[test]
    fn output_may_be_any_bytes() {
        let folder = tempfile::tempdir().unwrap();
        let mut spool = Spool::open(folder.path()).unwrap();
        spool.begin(Joint::Place).unwrap();
        let mut bytes = b"2026-11-22T23:00:00.000000001+07:00 ".to_vec();
        bytes.extend_from_slice(b"\xff\0\r \x1b[1m\n");
        assert_eq!(feed(&mut spool, &bytes, 3), Ok(()));
        assert_eq!(std::fs::read(folder.path().join("output")).unwrap(), b"\xff\0\r \x1b[1m\n");
    }
}
