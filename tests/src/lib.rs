//! The harness of the whole-system tests and benchmarks: the real binary in real processes, each test in a folder and an environment of
//! its own, with waits that are bounded and say what they saw last.

mod process;
mod world;

pub use process::{Daemon, Output};
pub use world::{Client, World};

use std::time::{Duration, Instant};

use anyhow::{Result, bail};

/// How long a test waits for what should happen at once. Generous: the machine may be busy with other tests.
pub const PATIENCE: Duration = Duration::from_secs(60);

/// Asks `look` again and again until it answers `Ok`; after [`PATIENCE`] fails with what it said last.
///
/// # Errors
/// Where the condition did not come true in time.
pub fn eventually<T>(what: &str, mut look: impl FnMut() -> Result<T>) -> Result<T> {
    let begun = Instant::now();
    let mut pause = Duration::from_millis(5);
    loop {
        match look() {
            Ok(found) => return Ok(found),
            Err(error) if begun.elapsed() > PATIENCE => bail!("{what}: not within {PATIENCE:?}; last seen: {error:#}"),
            Err(_) => std::thread::sleep(pause),
        }
        pause = (pause * 2).min(Duration::from_millis(200));
    }
}
