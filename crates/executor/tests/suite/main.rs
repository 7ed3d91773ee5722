//! The executor with real processes, against a controller that is stricter than the real one.

#![expect(clippy::unwrap_used, reason = "tests")]

mod controller;
mod daemon;
mod flow;
mod kubernetes;
mod outage;
mod recovery;
mod restored;
mod room;
mod shim;
mod spool;

use std::fmt::Debug;
use std::time::{Duration, Instant};

/// The shim as a program.
const SHIM: &str = env!("CARGO_BIN_EXE_octavius-test-shim");

/// Longest wait for anything. Generous, because it is only ever used up by what fails.
const PATIENCE: Duration = Duration::from_secs(20);

/// Waits until `look` gives something, and fails with what it saw last.
fn eventually<T, E: Debug>(what: &str, mut look: impl FnMut() -> Result<T, E>) -> T {
    let begun = Instant::now();
    loop {
        match look() {
            Ok(found) => return found,
            Err(last) if begun.elapsed() > PATIENCE => panic!("{what}: not in {PATIENCE:?}; last seen: {last:?}"),
            Err(_) => std::thread::sleep(Duration::from_millis(5)),
        }
    }
}

/// As [`eventually`], for conditions.
fn until(what: &str, mut holds: impl FnMut() -> bool) {
    eventually(what, || holds().then_some(()).ok_or("not so"));
}

/// Whether a process of this id runs, zombies not counted.
fn is_running(pid: u32) -> bool {
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
    stat.rsplit_once(')').is_some_and(|(_, rest)| !rest.trim_start().starts_with(['Z', 'X']))
}
