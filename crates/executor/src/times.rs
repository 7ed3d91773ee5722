//! When a job's output was printed: a file of fixed-size records beside the output, each saying that the bytes from an offset on were read at
//! a time. Whatever is wrong with it, it is never more than a time that is not known.
//!
//! There is none where all of the output came at once, as that of most short jobs does: then the output's own birth says when. A job that
//! prints a byte now and then would need more room for times than for output; where it would be much more, marks are left out.

use std::fs::{File, OpenOptions};
use std::io;
use std::os::unix::fs::{FileExt as _, OpenOptionsExt as _};
use std::path::{Path, PathBuf};
use std::time::{SystemTime, UNIX_EPOCH};

use octavius_core::limit::LOG_PIECE_MARKS;
use octavius_core::log::{GRAIN_MS, Times};

use crate::journal::TIMES;

/// A record: the offset, and milliseconds since 1970, both with their lowest byte first.
const RECORD: usize = 16;
/// Records that are read at once.
const BLOCK: usize = 256;
/// So much may the file have however little was printed: ten minutes of a job that prints without a pause.
const FREE_BYTES: u64 = 1024 * 1024;

/// Milliseconds since 1970.
pub(crate) fn now_ms() -> i64 {
    unix_ms(SystemTime::now())
}

fn unix_ms(time: SystemTime) -> i64 {
    let since = time.duration_since(UNIX_EPOCH).unwrap_or_default();
    i64::try_from(since.as_millis()).unwrap_or(i64::MAX)
}

/// Writes the records.
#[derive(Debug)]
pub(crate) struct Notes {
    path: PathBuf,
    file: Option<File>,
    records: u64,
    last_ms: Option<i64>,
}

impl Notes {
    /// For an output that is not there yet.
    pub(crate) fn new(folder: &Path) -> Self {
        Self { path: folder.join(TIMES), file: None, records: 0, last_ms: None }
    }

    /// For an output that somebody goes on with.
    pub(crate) fn go_on(folder: &Path) -> Self {
        let records = std::fs::metadata(folder.join(TIMES)).map_or(0, |found| found.len() / RECORD as u64);
        Self { records, ..Self::new(folder) }
    }

    /// Notes that the output begins now, which its birth tells as well.
    pub(crate) fn born(&mut self, unix_ms: i64) {
        self.last_ms = Some(unix_ms);
    }

    /// Notes that the bytes from `offset` on were printed at this time, where that is worth a mark. What cannot be written is not known.
    pub(crate) fn note(&mut self, offset: u64, unix_ms: i64) {
        let near = self.last_ms.is_some_and(|last| unix_ms.saturating_sub(last).abs() < GRAIN_MS);
        if near || self.records * RECORD as u64 > FREE_BYTES + offset {
            return;
        }
        let mut record = [0; RECORD];
        record[..8].copy_from_slice(&offset.to_le_bytes());
        record[8..].copy_from_slice(&unix_ms.to_le_bytes());
        let open = || OpenOptions::new().write(true).create(true).truncate(false).mode(0o600).open(&self.path);
        if self.file.is_none() {
            self.file = open().ok();
        }
        // By place and not at the end: after half a record, the next one stands where it should.
        let Some(file) = &self.file else { return };
        if file.write_all_at(&record, self.records * RECORD as u64).is_ok() {
            self.records += 1;
            self.last_ms = Some(unix_ms);
        }
    }

    /// Forgets everything, since the output begins anew.
    pub(crate) fn clear(&mut self) {
        let _ = std::fs::remove_file(&self.path);
        (self.file, self.records, self.last_ms) = (None, 0, None);
    }
}

/// The records, as the executor reads them.
#[derive(Debug, Default)]
pub(crate) struct Noted {
    file: Option<File>,
    /// A record at or before everything that is asked for as long as nobody goes back.
    place: u64,
}

fn record(file: &File, index: u64) -> io::Result<(u64, i64)> {
    let mut bytes = [0; RECORD];
    file.read_exact_at(&mut bytes, index * RECORD as u64)?;
    Ok(decode(&bytes))
}

fn decode(bytes: &[u8]) -> (u64, i64) {
    let at = |from: usize| bytes[from..from + 8].try_into().unwrap_or_default();
    (u64::from_le_bytes(at(0)), i64::from_le_bytes(at(8)))
}

impl Noted {
    /// When the output's bytes from `from` to `to` were printed, by places from `from` on. `output` is the output itself.
    pub(crate) fn between(&mut self, folder: &Path, output: &File, from: u64, to: u64) -> Times {
        if self.file.is_none() {
            self.file = File::open(folder.join(TIMES)).ok();
        }
        self.read(output, from, to).unwrap_or_default()
    }

    fn read(&mut self, output: &File, from: u64, to: u64) -> io::Result<Times> {
        let mut times = Times::default();
        let count = match &self.file {
            Some(file) => file.metadata()?.len() / RECORD as u64,
            None => 0,
        };
        let Some(file) = self.file.as_ref().filter(|_| count > 0) else {
            birth(output, &mut times);
            return Ok(times);
        };
        if self.place >= count || record(file, self.place)?.0 > from {
            self.place = last_before(file, count, from)?;
        }
        if self.place == 0 && record(file, 0)?.0 > from {
            birth(output, &mut times);
        }
        let mut block = vec![0; RECORD * BLOCK];
        let mut index = self.place;
        'all: while index < count {
            let records = usize::try_from(count - index).unwrap_or(BLOCK).min(BLOCK);
            let bytes = &mut block[..records * RECORD];
            file.read_exact_at(bytes, index * RECORD as u64)?;
            for bytes in bytes.chunks_exact(RECORD) {
                let (offset, unix_ms) = decode(bytes);
                if offset >= to {
                    break 'all;
                }
                if (offset, unix_ms) == (0, 0) {
                    // It was given back.
                } else if offset <= from {
                    // The last of these is the one that counts.
                    (times, self.place) = (Times::all_at(unix_ms), index);
                } else {
                    times.push(offset - from, unix_ms);
                }
                index += 1;
            }
            if times.marks().len() > 2 * LOG_PIECE_MARKS {
                times.thin_to(LOG_PIECE_MARKS);
            }
        }
        times.thin_to(LOG_PIECE_MARKS);
        Ok(times)
    }

    /// The file, and how many of its bytes are not needed as long as nobody goes back.
    pub(crate) fn done_with(&self) -> Option<(&File, u64)> {
        Some((self.file.as_ref()?, self.place * RECORD as u64))
    }
}

/// The last record at or before `offset`; the first one where there is none. Records that were given back read as zeros, and so are before it.
fn last_before(file: &File, count: u64, offset: u64) -> io::Result<u64> {
    let (mut low, mut high) = (0, count);
    while low + 1 < high {
        let middle = low + (high - low) / 2;
        if record(file, middle)?.0 <= offset { low = middle } else { high = middle }
    }
    Ok(low)
}

/// Says that everything came when the output was made, where the file system knows when that was.
fn birth(output: &File, times: &mut Times) {
    if let Ok(born) = output.metadata().and_then(|output| output.created()) {
        *times = Times::all_at(unix_ms(born));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn marks(times: &Times) -> Vec<(u64, i64)> {
        times.marks().iter().map(|mark| (mark.at, mark.unix_ms)).collect()
    }

    #[test]
    fn each_part_of_the_output_has_the_times_of_its_bytes() {
        let folder = tempfile::tempdir().unwrap();
        let output = File::create(folder.path().join("output")).unwrap();
        let mut notes = Notes::new(folder.path());
        for (offset, unix_ms) in [(0, 1000), (10, 1005), (20, 1010), (30, 1019), (40, 1020), (50, 2000)] {
            notes.note(offset, unix_ms);
        }
        let mut noted = Noted::default();
        let mut between = |from, to| marks(&noted.between(folder.path(), &output, from, to));
        assert_eq!(between(0, 60), [(0, 1000), (20, 1010), (40, 1020), (50, 2000)]);
        assert_eq!(between(25, 45), [(0, 1010), (15, 1020)]);
        assert_eq!(between(50, 60), [(0, 2000)]);
        assert_eq!(between(5, 15), [(0, 1000)], "and back again");
        assert_eq!(between(5, 5), [(0, 1000)]);
        let mut notes = Notes::go_on(folder.path());
        notes.note(60, 1);
        assert_eq!(between(50, 99), [(0, 2000), (10, 1)], "clocks are set back");
    }

    #[test]
    fn a_file_that_is_missing_or_torn_costs_nothing_but_times() {
        let folder = tempfile::tempdir().unwrap();
        let output = File::create(folder.path().join("output")).unwrap();
        let born = output.metadata().unwrap().created().map(unix_ms);
        let all: Vec<_> = born.iter().map(|born| (0, *born)).collect();
        assert_eq!(marks(&Noted::default().between(folder.path(), &output, 3, 9)), all);
        let mut notes = Notes::new(folder.path());
        notes.born(0);
        notes.note(2, 5);
        assert!(!folder.path().join(TIMES).exists(), "at once");
        notes.note(4, 1000);
        notes.note(6, 2000);
        assert_eq!(marks(&Noted::default().between(folder.path(), &output, 4, 9)), [(0, 1000), (2, 2000)]);
        assert_eq!(marks(&Noted::default().between(folder.path(), &output, 0, 5)), [all, vec![(4, 1000)]].concat());
        OpenOptions::new().write(true).open(folder.path().join(TIMES)).unwrap().set_len(20).unwrap();
        assert_eq!(marks(&Noted::default().between(folder.path(), &output, 4, 9)), [(0, 1000)]);
        Notes::go_on(folder.path()).note(8, 3000);
        assert_eq!(marks(&Noted::default().between(folder.path(), &output, 4, 9)), [(0, 1000), (4, 3000)]);
    }

    #[test]
    fn what_has_many_marks_is_told_by_some_of_them() {
        let folder = tempfile::tempdir().unwrap();
        let output = File::create(folder.path().join("output")).unwrap();
        let mut notes = Notes::new(folder.path());
        (0..30_000).for_each(|number| notes.note(number * 100, i64::try_from(number).unwrap() * 20));
        let times = Noted::default().between(folder.path(), &output, 0, 3_000_000);
        assert!(times.marks().len() <= LOG_PIECE_MARKS && times.marks().len() > LOG_PIECE_MARKS / 4, "{}", times.marks().len());
        assert!(times.marks().iter().all(|mark| mark.at / 100 * 20 == u64::try_from(mark.unix_ms).unwrap()));
    }

    #[test]
    fn times_take_no_more_room_than_output_and_some() {
        let folder = tempfile::tempdir().unwrap();
        let mut notes = Notes::new(folder.path());
        (0..100_000).for_each(|number| notes.note(number, i64::try_from(number).unwrap() * 10));
        assert!(std::fs::metadata(folder.path().join(TIMES)).unwrap().len() <= FREE_BYTES + 100_000);
    }
}
