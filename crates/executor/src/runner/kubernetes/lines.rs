//! The bytes of a container's log, out of the stream that the kubelet serves, and where to go on after that stream broke.
//!
//! The stream is asked for with timestamps: each line then begins with the nanosecond at which the runtime read it, and so a place in the
//! log has a name, by which it is found again: the line's timestamp, and which of the lines with this timestamp it is. A stream that was
//! opened again shows the container's current file from its beginning. Where the place is in it, everything before is what is had already.
//! Where it is not, the file was rotated meanwhile, and what was lost with the file that went away cannot be known: a mark says so.
//! What bears no timestamp is not the container's but the kubelet's, and no part of the log.
//!
//! A stream that is read too slowly loses output without a word: at the end of a file the kubelet goes on with the newest one, however many
//! have come and gone. It looks at their sizes at intervals, so such a hole is as wide in time, and whoever meets it was as far behind.

use std::fs::{File, OpenOptions};
use std::io::{self, Write as _};
use std::os::unix::fs::{FileExt as _, OpenOptionsExt as _};
use std::path::Path;

use k8s_openapi::jiff::{SignedDuration, Timestamp};
use memchr::memchr;
use serde::{Deserialize, Serialize};

use crate::times::Notes;

/// Longest timestamp, with the space after it: `2006-01-02T15:04:05.000000000+07:00 `.
const PREFIX: usize = 36;
/// Two lines of one container may be in the file in another order than their timestamps, but not by so much: one of its two outputs was
/// read before the other's line was written.
const DISORDER: SignedDuration = SignedDuration::from_secs(1);
/// Where two lines are so far apart, and the first was read so late, files may have come and gone between. Kubelets look at sizes every 10 s
/// where they are not told otherwise (`containerLogMonitorInterval`, at least 3 s).
const BEHIND: SignedDuration = SignedDuration::from_secs(5);
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
    /// How long after its timestamp it was read.
    #[serde(default)]
    late: SignedDuration,
    /// The least that any line was late: by so much the clocks differ at most, for that one was read at once, or later than at once.
    #[serde(default)]
    least: SignedDuration,
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
    notes: Notes,
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
            notes: Notes::go_on(folder),
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
            spool.notes.clear();
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

    /// Takes a piece of a stream, which came at `now` by this machine's clock.
    pub(super) fn take(&mut self, mut piece: &[u8], now: Timestamp) -> io::Result<Taken> {
        let mut fresh = Vec::with_capacity(piece.len());
        let mut taken = Ok(());
        while !piece.is_empty() {
            if !self.in_line {
                match self.line_begins(&mut piece, &mut fresh, now) {
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

    /// Reads a line's timestamp; false where there is not enough of it.
    fn line_begins(&mut self, piece: &mut &[u8], fresh: &mut Vec<u8>, now: Timestamp) -> Result<bool, Missed> {
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
                self.stamped(stamp, fresh, now)?;
            }
            None => {
                self.foreign = true;
                self.said.clear();
                self.said.push_str(text);
            }
        }
        Ok(true)
    }

    /// Decides what a line with this timestamp is. `fresh` is what comes before it and is not in the output yet.
    fn stamped(&mut self, stamp: Timestamp, fresh: &mut Vec<u8>, now: Timestamp) -> Result<(), Missed> {
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
            (Join::Take, Some(last)) if last.late - last.least >= BEHIND && stamp.duration_since(last.stamp) >= BEHIND => {
                self.has_gap = true;
                fresh.extend_from_slice(GAP);
            }
            _ => {}
        }
        let offset = match self.join {
            Join::Skip(left) => self.length - left,
            _ => {
                let offset = self.length + fresh.len() as u64;
                self.notes.note(offset, stamp.as_millisecond());
                offset
            }
        };
        let late = now.duration_since(stamp);
        let least = last.map_or(late, |last| last.least.min(late));
        let ordinal = last.filter(|last| last.stamp == stamp).map_or(1, |last| last.ordinal + 1);
        self.position = Some(Position { stamp, ordinal, offset, late, least });
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
            match spool.take(piece, Timestamp::UNIX_EPOCH).unwrap() {
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
    fn each_line_keeps_the_time_at_which_the_runtime_read_it() {
        let folder = tempfile::tempdir().unwrap();
        let mut spool = Spool::open(folder.path()).unwrap();
        spool.begin(Joint::Place).unwrap();
        let whole = stamped(&[(1000, "one\n"), (2000, "two\n"), (2001, "at once\n"), (9000, "nine\n")]);
        assert_eq!(feed(&mut spool, &whole[..60], 9), Err(Missed).or(Ok(())));
        let mut spool = Spool::open(folder.path()).unwrap();
        spool.begin(Joint::Place).unwrap();
        assert_eq!(feed(&mut spool, &whole, 9), Ok(()));
        let file = File::open(folder.path().join("output")).unwrap();
        let times = crate::times::Noted::default().between(folder.path(), &file, 0, spool.length());
        let begun: Timestamp = "2026-11-22T23:00:00Z".parse().unwrap();
        let marks: Vec<_> = times.marks().iter().map(|mark| (mark.at, mark.unix_ms - begun.as_millisecond())).collect();
        assert_eq!(marks, [(0, 1000), (4, 2000), (16, 9000)]);
    }

    #[test]
    fn a_crash_between_the_output_and_its_position_repeats_nothing() {
        let folder = tempfile::tempdir().unwrap();
        let whole = stamped(&LINES);
        let mut spool = Spool::open(folder.path()).unwrap();
        spool.begin(Joint::Place).unwrap();
        spool.take(&whole[..50], Timestamp::UNIX_EPOCH).unwrap().unwrap();
        let position = std::fs::read(folder.path().join(POSITION)).unwrap();
        spool.take(&whole[50..120], Timestamp::UNIX_EPOCH).unwrap().unwrap();
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
    fn a_hole_is_told_where_the_reader_was_behind_and_not_where_the_job_was_silent() {
        let line = |second: u32, text: &'static str| stamped(&[(second * 1000, text)]);
        let begun: Timestamp = "2026-11-22T23:00:00Z".parse().unwrap();
        // The node's clock is an hour behind: only what changes counts.
        let read = |second: i64| begun + SignedDuration::from_secs(second) + SignedDuration::from_hours(1);
        let run = |lines: &[(u32, &'static str, i64)]| {
            let folder = tempfile::tempdir().unwrap();
            let mut spool = Spool::open(folder.path()).unwrap();
            spool.begin(Joint::Place).unwrap();
            for &(second, text, at) in lines {
                spool.take(&line(second, text), read(at)).unwrap().unwrap();
                // What is known of clocks outlives the daemon.
                spool = Spool { has_gap: spool.has_gap, ..Spool::open(folder.path()).unwrap() };
                spool.join = Join::Take;
            }
            (output(folder.path()), spool.has_gap)
        };
        let mark = String::from_utf8_lossy(GAP).into_owned();
        assert_eq!(run(&[(0, "a\n", 0), (2, "b\n", 12), (14, "c\n", 15)]), (format!("a\nb\n{mark}c\n"), true));
        assert_eq!(run(&[(0, "a\n", 0), (2, "b\n", 2), (14, "c\n", 14)]), ("a\nb\nc\n".to_owned(), false), "silent");
        assert_eq!(run(&[(0, "a\n", 0), (2, "b\n", 12), (5, "c\n", 12)]), ("a\nb\nc\n".to_owned(), false), "behind");
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
