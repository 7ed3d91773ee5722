//! What an object of the archive looks like: parts, each of which can be read without the others. A part is a skippable zstd frame with the
//! times of its bytes, and a zstd frame with the bytes. So `zstdcat` of a log's objects, in the order of their names, prints the log.

use bytes::{BufMut as _, Bytes};
use octavius_store::piece::{self, Piece};
use octavius_store::record::LogPart;

/// Bytes of a log in one part: what a reader has in its hands at a time.
pub(super) const PART_BYTES: usize = 256 * 1024;

/// zstd's own default: logs shrink to a fifth or less, at some 300 MB/s.
const LEVEL: i32 = 3;

/// The first skippable frame's magic number, RFC 8878, 3.1.2.
const SKIPPABLE: u32 = 0x184D_2A50;

/// Magic number and length, before a skippable frame's content.
const SKIPPABLE_HEADER: usize = 8;

/// A compressed object.
#[derive(Debug)]
pub(super) struct Packed {
    pub(super) bytes: Bytes,
    pub(super) parts: Vec<LogPart>,
}

/// Compresses a piece. It takes the time that it takes: not for a thread that serves others.
pub(super) fn pack(piece: &Piece) -> std::io::Result<Packed> {
    let mut compressor = zstd::bulk::Compressor::new(LEVEL)?;
    compressor.include_checksum(true)?;
    let mut bytes = Vec::with_capacity(piece.data.len() / 4);
    let mut parts = Vec::new();
    let mut from = 0;
    while from < piece.data.len() {
        let part = piece.part(from, from + PART_BYTES);
        from += part.data.len();
        let begins = bytes.len();
        let times = Piece { data: Bytes::new(), times: part.times }.to_bytes();
        bytes.put_u32_le(SKIPPABLE);
        bytes.put_u32_le(u32::try_from(times.len()).map_err(std::io::Error::other)?);
        bytes.extend_from_slice(&times);
        bytes.extend_from_slice(&compressor.compress(&part.data)?);
        parts.push(LogPart {
            size: u32::try_from(part.data.len()).map_err(std::io::Error::other)?,
            stored: u32::try_from(bytes.len() - begins).map_err(std::io::Error::other)?,
            crc32c: crc32c::crc32c(&part.data),
        });
    }
    Ok(Packed { bytes: bytes.into(), parts })
}

/// Reads one part back.
///
/// # Errors
/// What is wrong with it: it is not what was written.
pub(super) fn unpack(stored: &Bytes, part: LogPart) -> Result<Piece, String> {
    let header = stored.first_chunk::<SKIPPABLE_HEADER>().ok_or("it is too short")?;
    let [a, b, c, d, length @ ..] = *header;
    if u32::from_le_bytes([a, b, c, d]) != SKIPPABLE {
        return Err("it does not begin with times".to_owned());
    }
    let length = usize::try_from(u32::from_le_bytes(length)).map_err(|error| error.to_string())?;
    let data_at = SKIPPABLE_HEADER.saturating_add(length);
    if data_at > stored.len() {
        return Err("its times are cut off".to_owned());
    }
    let Piece { times, .. } = Piece::read(&stored.slice(SKIPPABLE_HEADER..data_at))?;
    let size = usize::try_from(part.size).map_err(|error| error.to_string())?;
    let data = zstd::bulk::decompress(&stored[data_at..], size).map_err(|error| error.to_string())?;
    if data.len() != size || crc32c::crc32c(&data) != part.crc32c {
        return Err("its bytes are not those that were written".to_owned());
    }
    Ok(Piece { data: data.into(), times })
}

/// The times of no bytes, for what is known to have none.
#[cfg(test)]
pub(super) fn untimed(data: &'static [u8]) -> Piece {
    Piece { data: Bytes::from_static(data), times: octavius_core::log::Times::default() }
}

const _: () = assert!(piece::VERSION == 1, "the times in objects have a piece's form: a new one must still be read here");

#[cfg(test)]
mod tests {
    use octavius_core::log::Times;

    use super::*;

    fn piece(size: usize) -> Piece {
        let mut times = Times::all_at(1_000);
        times.push(size as u64 / 2, 2_000);
        let data: Vec<u8> = (0..size).map(|index| if index % 100 == 99 { b'\n' } else { (index % 251) as u8 }).collect();
        Piece { data: data.into(), times }
    }

    #[test]
    fn parts_are_read_back_alone_and_together_are_one_zstd_stream() {
        let whole = piece(2 * PART_BYTES + 17);
        let Packed { bytes, parts } = pack(&whole).unwrap();
        assert_eq!(parts.iter().map(|part| part.size).collect::<Vec<_>>(), [262_144, 262_144, 17]);
        let (mut at, mut from) = (0, 0);
        for part in &parts {
            let stored = bytes.slice(at..at + part.stored as usize);
            let to = from + part.size as usize;
            assert_eq!(unpack(&stored, *part), Ok(whole.part(from, to)));
            (at, from) = (at + stored.len(), to);
        }
        assert_eq!(at, bytes.len());
        assert_eq!(zstd::stream::decode_all(&bytes[..]).unwrap(), whole.data);
    }

    #[test]
    fn a_flipped_bit_anywhere_is_found_or_changes_nothing() {
        let whole = piece(300);
        let Packed { bytes, parts } = pack(&whole).unwrap();
        for at in 0..bytes.len() {
            let mut flipped = bytes.to_vec();
            flipped[at] ^= 1;
            if let Ok(read) = unpack(&flipped.into(), parts[0]) {
                assert_eq!(read.data, whole.data, "byte {at}");
            }
        }
        for length in 0..bytes.len() {
            assert!(unpack(&bytes.slice(..length), parts[0]).is_err(), "{length}");
        }
        assert!(unpack(&pack(&untimed(b"other")).unwrap().bytes, parts[0]).is_err());
    }
}
