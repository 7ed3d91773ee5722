//! What jobs print whose logs are looked at closely: bytes that follow from a seed, so that whoever reads the log knows them without having
//! been told. The program `printer` prints them; the tests and benchmarks that run it as a job ask [`Print::whole`] what must be there.

use std::fmt;
use std::io::{self, Write};
use std::path::Path;
use std::str::FromStr;
use std::time::{Duration, Instant, SystemTime};

use anyhow::{Context as _, Result, bail};

use crate::history::Bytes;
use crate::random::Random;

/// About how many bytes are made at once.
const BLOCK_BYTES: usize = 64 * 1024;

/// Longest piece that a job writes at once where it takes its time: pieces of every length up to this.
const PIECE_BYTES: usize = 48 * 1024;

/// What a log looks like.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// Any bytes: invalid UTF-8, NUL, control sequences, a line end now and then.
    Random,
    /// The same without a line end.
    Unbroken,
    /// Lines of about 100 bytes of a service that logs its requests; they compress as such logs do.
    Lines,
    /// Lines of 100 bytes each, with their numbers.
    Numbered,
}

const KINDS: [(Kind, &str); 4] =
    [(Kind::Random, "random"), (Kind::Unbroken, "unbroken"), (Kind::Lines, "lines"), (Kind::Numbered, "numbered")];

/// What one run of `printer` prints.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Print {
    /// Of which kind.
    pub kind: Kind,
    /// Which of its kind.
    pub seed: u64,
    /// How many bytes.
    pub bytes: u64,
    /// In how much time; as quickly as it goes where that is nothing.
    pub over: Duration,
}

impl fmt::Display for Print {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        let name = KINDS.iter().find(|(kind, _)| *kind == self.kind).map_or("", |(_, name)| name);
        write!(formatter, "{name} {} {} {}", self.seed, self.bytes, self.over.as_millis())
    }
}

impl FromStr for Print {
    type Err = anyhow::Error;

    fn from_str(text: &str) -> Result<Self> {
        let words: Vec<_> = text.split_whitespace().collect();
        let [name, seed, bytes, millis] = words[..] else { bail!("{text:?} is not KIND SEED BYTES MILLISECONDS") };
        let (kind, _) = KINDS.iter().find(|(_, known)| *known == name).with_context(|| format!("no kind {name:?}"))?;
        let over = Duration::from_millis(millis.parse()?);
        Ok(Self { kind: *kind, seed: seed.parse()?, bytes: bytes.parse()?, over })
    }
}

impl Print {
    /// Hands all bytes over, block by block.
    fn blocks(&self, mut take: impl FnMut(&[u8]) -> io::Result<()>) -> io::Result<()> {
        let mut source = Source { kind: self.kind, random: Random::new(self.seed), line: 0 };
        let mut block = Vec::with_capacity(BLOCK_BYTES + 256);
        let mut left = self.bytes;
        while left > 0 {
            block.clear();
            source.fill(&mut block);
            let some = usize::try_from(left).map_or(block.len(), |left| left.min(block.len()));
            take(&block[..some])?;
            left -= some as u64;
        }
        Ok(())
    }

    /// Size and checksum of all of it.
    #[must_use]
    pub fn whole(&self) -> Bytes {
        let mut crc32c = 0;
        let counted = self.blocks(|block| {
            crc32c = crc32c::crc32c_append(crc32c, block);
            Ok(())
        });
        debug_assert!(counted.is_ok(), "nothing here fails");
        Bytes { size: self.bytes, crc32c }
    }

    /// Prints it, in pieces of changing length where it takes its time.
    ///
    /// # Errors
    /// Where `out` takes no more.
    pub fn write(&self, out: &mut impl Write) -> io::Result<()> {
        if self.over.is_zero() {
            return self.blocks(|block| out.write_all(block));
        }
        let mut lengths = Random::new(self.seed ^ 0x5eed);
        let (begun, mut done) = (Instant::now(), 0);
        self.blocks(|mut block| {
            while !block.is_empty() {
                let (piece, rest) = block.split_at(block.len().min(1 + lengths.below(PIECE_BYTES)));
                out.write_all(piece)?;
                out.flush()?;
                (block, done) = (rest, done + piece.len() as u64);
                let due = self.over.mul_f64(done as f64 / self.bytes as f64);
                std::thread::sleep(due.saturating_sub(begun.elapsed())); // the job's own pace
            }
            Ok(())
        })
    }
}

/// Makes the bytes of a kind.
struct Source {
    kind: Kind,
    random: Random,
    line: u64,
}

impl Source {
    /// Makes some [`BLOCK_BYTES`].
    fn fill(&mut self, block: &mut Vec<u8>) {
        while block.len() < BLOCK_BYTES {
            match self.kind {
                Kind::Random => block.extend_from_slice(&self.random.number().to_le_bytes()),
                Kind::Unbroken => {
                    let bytes = self.random.number().to_le_bytes();
                    block.extend(bytes.map(|byte| if byte == b'\n' { b'\r' } else { byte }));
                }
                Kind::Lines => self.request(block),
                Kind::Numbered => {
                    self.line += 1;
                    block.extend_from_slice(format!("{:>99}\n", self.line).as_bytes());
                }
            }
        }
    }

    /// A line about a request: when, which, by whom, what came of it, how long it took. By hand, since formatting would be what a benchmark
    /// measures.
    fn request(&mut self, block: &mut Vec<u8>) {
        const PATHS: [&[u8]; 4] =
            [b"GET /api/v2/orders/", b"POST /api/v2/refunds/", b"GET /healthz?from=", b"PUT /api/v2/users/"];
        const ENDS: [&[u8]; 4] = [b" status=200 ms=", b" status=200 ms=", b" status=304 ms=", b" status=500 retry=true ms="];
        self.line += 1;
        let number = self.random.number();
        block.extend_from_slice(b"2026-03-01T");
        let clock = self.line / 500;
        for (index, value) in [clock / 3600 % 24, clock / 60 % 60, clock % 60].into_iter().enumerate() {
            block.extend_from_slice(&[b'0' + (value / 10) as u8, b'0' + (value % 10) as u8, b"::."[index]]);
        }
        decimal(block, self.line % 500 * 2, 3);
        block.extend_from_slice(b"Z INFO orders::http: request=");
        for shift in 0..8 {
            block.push(b"0123456789abcdef"[(number >> (4 * shift)) as usize & 15]);
        }
        block.push(b' ');
        block.extend_from_slice(PATHS[(number >> 32) as usize & 3]);
        decimal(block, (number >> 34) % 1_000_000, 6);
        block.extend_from_slice(ENDS[(number >> 54) as usize & 3]);
        decimal(block, (number >> 56) & 127, 3);
        block.push(b'\n');
    }
}

/// Writes a number with so many digits.
fn decimal(block: &mut Vec<u8>, number: u64, digits: u32) {
    for place in (0..digits).rev() {
        block.push(b'0' + (number / 10u64.pow(place) % 10) as u8);
    }
}

/// Prints lines that begin with the time at which they are printed, in nanoseconds since 1970: `per_second` of them for so long. One that is
/// late is made up for, as a program that is woken late does.
///
/// # Errors
/// Where `out` takes no more.
pub fn tick(per_second: u32, time: Duration, out: &mut impl Write) -> io::Result<()> {
    let begun = Instant::now();
    for number in 0..(f64::from(per_second) * time.as_secs_f64()) as u32 {
        let due = Duration::from_secs_f64(f64::from(number) / f64::from(per_second));
        std::thread::sleep(due.saturating_sub(begun.elapsed())); // the job's own pace
        // One write, as a program makes that logs lines.
        out.write_all(format!("{} {number:>60}\n", now_ns()).as_bytes())?;
    }
    Ok(())
}

/// The time in nanoseconds since 1970, by the clock that all processes of a machine share.
#[must_use]
pub fn now_ns() -> u64 {
    SystemTime::now()
        .duration_since(SystemTime::UNIX_EPOCH)
        .map_or(0, |since| u64::try_from(since.as_nanos()).unwrap_or(u64::MAX))
}

/// The definition of a job `prints` that runs the program at `printer` as its argument `what` says, and that keeps all that it prints. With
/// `gate`, it ends only when there is a file at that path.
#[must_use]
pub fn job(printer: &Path, gate: Option<&Path>) -> String {
    let printer = printer.display();
    let script = gate.map_or_else(
        || format!("exec '{printer}' $what"),
        |gate| format!("'{printer}' $what; while [ ! -e '{}' ]; do sleep 0.1; done", gate.display()),
    );
    let script = serde_json::Value::from(script);
    format!(
        "name: prints\ncommand: [sh, -c, {script}]\nlogs: {{limit: none}}\n\
         env_vars:\n  args:\n  - {{name: what, required: true}}\n"
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    fn printed(print: &Print) -> Vec<u8> {
        let mut bytes = Vec::new();
        print.write(&mut bytes).unwrap();
        bytes
    }

    #[test]
    fn what_is_printed_is_what_is_said_of_it() {
        for (kind, _) in KINDS {
            for bytes in [0, 1, 591_800] {
                let print = Print { kind, seed: 7, bytes, over: Duration::ZERO };
                assert_eq!(print.to_string().parse::<Print>().unwrap(), print);
                let all = printed(&print);
                assert_eq!(Bytes::of(&all), print.whole(), "{print}");
                let slowly = Print { over: Duration::from_millis(20), ..print };
                assert_eq!(printed(&slowly), all, "{print}");
            }
        }
    }

    #[test]
    fn kinds_are_what_they_are_called() {
        let of = |kind| printed(&Print { kind, seed: 1, bytes: 200_000, over: Duration::ZERO });
        assert!(std::str::from_utf8(&of(Kind::Random)).is_err() && of(Kind::Random).contains(&0));
        assert!(!of(Kind::Unbroken).contains(&b'\n'));
        assert!(of(Kind::Numbered).chunks(100).all(|line| line.len() == 100 && line.ends_with(b"\n")));
        let lines = String::from_utf8(of(Kind::Lines)).unwrap();
        let each = lines.len() / lines.lines().count();
        assert!((90..=110).contains(&each), "{each} bytes a line: {:?}", lines.lines().next());
    }
}
