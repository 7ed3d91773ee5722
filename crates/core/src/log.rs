//! When the bytes of a log were printed.

use serde::{Deserialize, Serialize};

/// Marks are at least so far apart, in milliseconds: a job that prints without a pause has at most a hundred a second.
pub const GRAIN_MS: i64 = 10;

/// That the bytes from here on, up to the next mark, were printed at this time.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Mark {
    /// How many bytes after the beginning of the piece.
    pub at: u64,
    /// Milliseconds since 1970, UTC, by the clock of where the bytes were read.
    pub unix_ms: i64,
}

/// When the bytes of a piece of a log were printed: marks in the order of their places. Without any, it is not known.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(from = "Steps", into = "Steps")]
pub struct Times(Vec<Mark>);

/// As times are written down: each mark as its distance from the one before, which takes little room.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Steps {
    /// The first mark's time.
    pub first_unix_ms: i64,
    /// For each mark, the bytes after the one before, and the milliseconds.
    pub steps: Vec<(u64, i64)>,
}

impl From<Steps> for Times {
    fn from(steps: Steps) -> Self {
        let mut times = Self::default();
        let (mut at, mut unix_ms) = (0u64, steps.first_unix_ms);
        for (skip, wait) in steps.steps {
            (at, unix_ms) = (at.saturating_add(skip), unix_ms.saturating_add(wait));
            times.0.push(Mark { at, unix_ms });
        }
        times
    }
}

impl From<Times> for Steps {
    fn from(times: Times) -> Self {
        let first_unix_ms = times.0.first().map_or(0, |mark| mark.unix_ms);
        let mut before = Mark { at: 0, unix_ms: first_unix_ms };
        let step = |mark: &Mark| {
            let step = (mark.at - before.at, mark.unix_ms.saturating_sub(before.unix_ms));
            before = *mark;
            step
        };
        Self { first_unix_ms, steps: times.0.iter().map(step).collect() }
    }
}

impl Times {
    /// That a whole piece was printed at one time.
    #[must_use]
    pub fn all_at(unix_ms: i64) -> Self {
        Self(vec![Mark { at: 0, unix_ms }])
    }

    /// The marks, in the order of their places.
    #[must_use]
    pub fn marks(&self) -> &[Mark] {
        &self.0
    }

    /// Whether nothing is known.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// Says that the bytes from `at` on were printed at this time. Where that is hardly later than the mark before, or not after it in place,
    /// nothing is said.
    pub fn push(&mut self, at: u64, unix_ms: i64) {
        match self.0.last() {
            Some(last) if at <= last.at || unix_ms.saturating_sub(last.unix_ms).abs() < GRAIN_MS => {}
            _ => self.0.push(Mark { at, unix_ms }),
        }
    }

    /// When the byte at this place was printed.
    #[must_use]
    pub fn at(&self, place: u64) -> Option<i64> {
        let after = self.0.partition_point(|mark| mark.at <= place);
        Some(self.0[after.checked_sub(1)?].unix_ms)
    }

    /// The times of a part of the piece, by places from its beginning.
    #[must_use]
    pub fn part(&self, from: u64, to: u64) -> Self {
        let mut part = Self::default();
        if let Some(unix_ms) = self.at(from).filter(|_| from < to) {
            part.0.push(Mark { at: 0, unix_ms });
        }
        let within = self.0.iter().filter(|mark| mark.at > from && mark.at < to);
        part.0.extend(within.map(|mark| Mark { at: mark.at - from, unix_ms: mark.unix_ms }));
        part
    }

    /// Adds the times of what follows the first `size` bytes.
    pub fn append(&mut self, size: u64, next: &Self) {
        for mark in &next.0 {
            self.push(size.saturating_add(mark.at), mark.unix_ms);
        }
    }

    /// Takes marks away, evenly, until there are at most so many; the first stays.
    pub fn thin_to(&mut self, most: usize) {
        let count = self.0.len();
        if count > most {
            let every = count.div_ceil(most.max(1));
            self.0 = self.0.iter().copied().step_by(every).collect();
        }
    }

    /// The first place that was printed at or after this time; none where all was printed before, or nothing is known.
    #[must_use]
    pub fn since(&self, unix_ms: i64) -> Option<u64> {
        self.0.iter().find(|mark| mark.unix_ms >= unix_ms).map(|mark| mark.at)
    }

    /// The earliest and the latest time.
    #[must_use]
    pub fn span(&self) -> Option<(i64, i64)> {
        let times = || self.0.iter().map(|mark| mark.unix_ms);
        Some((times().min()?, times().max()?))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn times(marks: &[(u64, i64)]) -> Times {
        Times(marks.iter().map(|&(at, unix_ms)| Mark { at, unix_ms }).collect())
    }

    #[test]
    fn each_byte_has_the_time_of_the_mark_before_it() {
        let times = times(&[(2, 1000), (5, 1020), (9, 1010)]);
        assert_eq!([0, 1, 2, 4, 5, 8, 9, 99].map(|at| times.at(at).unwrap_or(-1)), [-1, -1, 1000, 1000, 1020, 1020, 1010, 1010]);
        assert_eq!((times.since(1000), times.since(1001), times.since(1021)), (Some(2), Some(5), None));
        assert_eq!(times.span(), Some((1000, 1020)));
        assert_eq!(times.part(3, 9), self::times(&[(0, 1000), (2, 1020)]));
        assert_eq!(times.part(0, 2), Times::default());
    }

    #[test]
    fn what_was_printed_at_nearly_one_time_has_one_mark() {
        let mut times = Times::all_at(100);
        times.push(5, 109);
        times.push(7, 110);
        times.push(7, 500);
        times.append(10, &self::times(&[(0, 111), (4, 200)]));
        assert_eq!(times, self::times(&[(0, 100), (7, 110), (14, 200)]));
        times.thin_to(2);
        assert_eq!(times, self::times(&[(0, 100), (14, 200)]));
    }

    proptest! {
        #[test]
        fn steps_are_the_same_times(marks in prop::collection::vec((0u64..1000, any::<i32>()), 0..20)) {
            let mut times = Times::default();
            let mut at = 0;
            for (skip, unix_ms) in marks {
                at += skip + 1;
                times.push(at, i64::from(unix_ms));
            }
            prop_assert_eq!(Times::from(Steps::from(times.clone())), times);
        }

        #[test]
        fn parts_say_the_same_as_the_whole(cut in 0u64..60, marks in prop::collection::vec((1u64..9, 10i64..99), 0..9)) {
            let mut whole = Times::default();
            let (mut at, mut unix_ms) = (0, 0);
            for (skip, wait) in marks {
                (at, unix_ms) = (at + skip, unix_ms + wait);
                whole.push(at, unix_ms);
            }
            let mut joined = whole.part(0, cut);
            joined.append(cut, &whole.part(cut, 100));
            for place in 0..100 {
                prop_assert_eq!(joined.at(place), whole.at(place));
            }
        }
    }
}
