//! How far a job's output may grow, as the executor tells the job's shim: one record in a file of the run folder, written in place and read
//! whenever the shim has used up what it knows of. So the output of all jobs together stays within the executor's [spool](crate::spool) at
//! every instant, however fast they print, and also while no executor is there to look.

use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt as _;

/// What the executor says.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Room {
    /// How many bytes the output may have, those counted that were given back long ago.
    pub(crate) limit: u64,
    /// Changes as long as some output of this executor is taken by a controller: then it is worth waiting.
    pub(crate) beat: u64,
}

/// Mixed into the check, so that a file of zeros says nothing.
const SALT: u64 = 0x6f63_7461_7669_7573;

impl Room {
    fn check(self) -> u64 {
        self.limit.rotate_left(17) ^ self.beat ^ SALT
    }

    /// Reads the record; none where it is not whole, which is so for moments at most.
    pub(crate) fn read(file: &File) -> Option<Self> {
        let mut bytes = [0; 24];
        file.read_exact_at(&mut bytes, 0).ok()?;
        let [limit, beat, check] = [0, 8, 16].map(|at| bytes[at..at + 8].try_into().map(u64::from_le_bytes).unwrap_or_default());
        let room = Self { limit, beat };
        (room.check() == check).then_some(room)
    }

    /// Writes the record.
    pub(crate) fn write(self, file: &File) -> io::Result<()> {
        file.write_all_at([self.limit, self.beat, self.check()].map(u64::to_le_bytes).as_flattened(), 0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_record_is_read_as_it_was_written_and_a_torn_one_is_none() {
        let file = tempfile::tempfile().unwrap();
        assert_eq!(Room::read(&file), None);
        let room = Room { limit: 123_456_789, beat: 7 };
        room.write(&file).unwrap();
        assert_eq!(Room::read(&file), Some(room));
        for at in 0..24 {
            file.write_all_at(&[0xa5], at).unwrap();
            assert_eq!(Room::read(&file), None, "{at}");
            room.write(&file).unwrap();
        }
        file.write_all_at(&[0; 24], 0).unwrap();
        assert_eq!(Room::read(&file), None);
    }
}
