//! A piece of a log, as it stands in a segment of the store and, compressed, in an object of the archive: one byte that says the format's
//! version, then when its bytes were printed, then the bytes. Not JSON, as other records are: these are bytes of any kind, and many.

use bytes::{BufMut as _, Bytes, BytesMut};
use octavius_core::limit::STORED_VALUE_BYTES;
use octavius_core::log::Times;

/// The version that this code writes.
pub const VERSION: u8 = 1;

/// Most bytes of a log in one segment: with their times they are a value of the store.
pub const SEGMENT_BYTES: usize = STORED_VALUE_BYTES - 4096;

/// Most marks of times in one segment; a mark takes at most 16 bytes, and mostly 4.
const SEGMENT_MARKS: usize = 250;

/// Bytes of a log, and when they were printed.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Piece {
    /// The bytes.
    pub data: Bytes,
    /// When they were printed, by places from the piece's beginning.
    pub times: Times,
}

impl Piece {
    /// How many bytes of the log it is.
    #[must_use]
    pub fn size(&self) -> u64 {
        self.data.len() as u64
    }

    /// A part of it, by places from its beginning.
    #[must_use]
    pub fn part(&self, from: usize, to: usize) -> Self {
        let (from, to) = (from.min(self.data.len()), to.min(self.data.len()));
        Self { data: self.data.slice(from..to.max(from)), times: self.times.part(from as u64, to as u64) }
    }

    /// Pieces that follow each other, as one: a copy.
    #[must_use]
    pub fn join(pieces: &[Self]) -> Self {
        let mut data = BytesMut::with_capacity(pieces.iter().map(|piece| piece.data.len()).sum());
        let mut times = Times::default();
        for piece in pieces {
            times.append(data.len() as u64, &piece.times);
            data.extend_from_slice(&piece.data);
        }
        Self { data: data.freeze(), times }
    }

    /// A segment's value: at most [`SEGMENT_BYTES`] of a log go into one.
    #[must_use]
    pub fn to_segment(&self) -> Bytes {
        let mut times = self.times.clone();
        times.thin_to(SEGMENT_MARKS);
        encode(&times, &self.data)
    }

    /// What an object of the archive holds.
    #[must_use]
    pub fn to_bytes(&self) -> Bytes {
        encode(&self.times, &self.data)
    }

    /// Reads either back, without a copy.
    ///
    /// # Errors
    /// What is wrong, where the bytes are of a newer version or damaged.
    pub fn read(bytes: &Bytes) -> Result<Self, String> {
        match bytes.split_first() {
            Some((&VERSION, rest)) => {
                let (times, data) = postcard::take_from_bytes::<Times>(rest).map_err(|error| error.to_string())?;
                Ok(Self { data: bytes.slice_ref(data), times })
            }
            Some((version, _)) => Err(format!("written in format {version}, this version reads {VERSION}")),
            None => Err("empty".to_owned()),
        }
    }
}

fn encode(times: &Times, data: &[u8]) -> Bytes {
    #[expect(clippy::expect_used, reason = "numbers always have a form")]
    let times = postcard::to_allocvec(times).expect("times have a form");
    let mut bytes = BytesMut::with_capacity(1 + times.len() + data.len());
    bytes.put_u8(VERSION);
    bytes.extend_from_slice(&times);
    bytes.extend_from_slice(data);
    bytes.freeze()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_piece_is_read_back_and_a_newer_one_is_refused() {
        let mut times = Times::all_at(1_700_000_000_000);
        times.push(3, 1_700_000_000_500);
        let piece = Piece { data: Bytes::from_static(b"ab\n\0\xff"), times };
        assert_eq!(Piece::read(&piece.to_segment()).as_ref(), Ok(&piece));
        assert_eq!(Piece::read(&piece.to_bytes()).as_ref(), Ok(&piece));
        assert_eq!(Piece::join(&[piece.part(0, 3), piece.part(3, 99)]), piece);
        assert!(Piece::read(&Bytes::from_static(b"\x02x")).unwrap_err().contains("format 2"));
        assert!(Piece::read(&Bytes::new()).is_err());
    }

    #[test]
    fn the_largest_segment_with_the_most_times_is_a_value_of_the_store() {
        let mut times = Times::default();
        for mark in 0..100_000 {
            times.push(mark * 7, i64::try_from(mark).unwrap() * i64::from(u32::MAX));
        }
        let piece = Piece { data: vec![7; SEGMENT_BYTES].into(), times };
        let segment = piece.to_segment();
        assert!(segment.len() <= STORED_VALUE_BYTES, "{}", segment.len());
        assert_eq!(Piece::read(&segment).unwrap().data, piece.data);
    }
}
