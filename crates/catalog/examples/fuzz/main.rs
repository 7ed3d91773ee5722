//! Loads mutated catalogues and holds the loader to its promises: `cargo run --release -p octavius-catalog --example fuzz --
//! --cases 100000 --seed 1`. A case that fails is named; `--case N` with the same seed runs it alone and shows its files first.

#![expect(clippy::print_stderr, reason = "a program for people who look for faults")]

mod cases;

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::Path;
use std::sync::mpsc::{RecvTimeoutError, channel};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use cases::{Corpus, files_of, run};

/// Longest that loading one case may take.
const BOUND: Duration = Duration::from_secs(2);

/// Longest that a case may take with all its checks; beyond it, the program gives up on it as hanging.
const HANG: Duration = Duration::from_secs(60);

/// Most memory that the process may have taken at any time, in MiB.
const MEMORY_MIB: u64 = 150;

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let (mut count, mut seed, mut only) = (10_000, None, None);
    let mut arguments = std::env::args().skip(1);
    while let Some(argument) = arguments.next() {
        let value = arguments.next().ok_or_else(|| format!("{argument} needs a number"))?.parse::<u64>()?;
        match argument.as_str() {
            "--cases" => count = value,
            "--seed" => seed = Some(value),
            "--case" => only = Some(value),
            _ => return Err(format!("{argument} is not known: --cases N, --seed N, --case N").into()),
        }
    }
    let now = SystemTime::now().duration_since(UNIX_EPOCH)?;
    let seed = seed.unwrap_or_else(|| u64::from(now.subsec_nanos()));
    let corpus = Corpus::read(Path::new(env!("CARGO_MANIFEST_DIR")))?;
    if let Some(number) = only {
        for (path, bytes) in files_of(&corpus, seed, number) {
            eprintln!("=== {path:?}, {} bytes\n{}", bytes.len(), bytes.escape_ascii());
        }
        let outcome = run(&corpus, seed, number);
        eprintln!("{} jobs, {} findings, {:?}", outcome.jobs, outcome.findings, outcome.took);
        return Ok(());
    }
    eprintln!("{count} cases with seed {seed}");
    fuzz(corpus, seed, count)
}

fn fuzz(corpus: Corpus, seed: u64, count: u64) -> Result<(), Box<dyn std::error::Error>> {
    let start = Instant::now();
    let (done, results) = channel();
    // The cases run beside, so that one that hangs is told of.
    std::thread::spawn(move || {
        for number in 0..count {
            let outcome = catch_unwind(AssertUnwindSafe(|| run(&corpus, seed, number)));
            if done.send((number, outcome.ok())).is_err() {
                return;
            }
        }
    });
    let (mut failed, mut slowest, mut good, mut jobs, mut findings) = (Vec::new(), (Duration::ZERO, 0), 0, 0, 0);
    for number in 0..count {
        match results.recv_timeout(HANG) {
            Ok((number, None)) => failed.push(number),
            Ok((number, Some(outcome))) => {
                slowest = slowest.max((outcome.took, number));
                good += u64::from(outcome.good);
                jobs += outcome.jobs;
                findings += outcome.findings;
            }
            Err(RecvTimeoutError::Timeout | RecvTimeoutError::Disconnected) => {
                return Err(format!("case {number} of seed {seed} hangs").into());
            }
        }
    }
    let memory = peak_memory_mib().ok_or("no VmHWM in /proc/self/status")?;
    eprintln!("{count} cases in {:?}: {good} catalogues without an error, {jobs} jobs, {findings} findings", start.elapsed());
    eprintln!("slowest: case {} with {:?}; peak memory {memory} MiB", slowest.1, slowest.0);
    if !failed.is_empty() {
        return Err(
            format!("{} cases of seed {seed} failed, the first: {:?}", failed.len(), &failed[..failed.len().min(10)]).into()
        );
    }
    if slowest.0 > BOUND {
        return Err(format!("case {} of seed {seed} took longer than {BOUND:?}", slowest.1).into());
    }
    if memory > MEMORY_MIB {
        return Err(format!("the peak of {memory} MiB is over the cap of {MEMORY_MIB} MiB").into());
    }
    Ok(())
}

fn peak_memory_mib() -> Option<u64> {
    let status = std::fs::read_to_string("/proc/self/status").ok()?;
    let line = status.lines().find(|line| line.starts_with("VmHWM:"))?;
    Some(line.split_whitespace().nth(1)?.parse::<u64>().ok()? / 1024)
}
