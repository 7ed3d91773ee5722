//! Clocks that are wrong by an hour: what is claimed, given up and written in which order goes by what each process sees change and by the
//! store's revisions, so none of it changes. Times that people are shown are those of the clock that took them.

use std::path::PathBuf;
use std::process::Command;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, ensure};
use octavius_core::execution::State;
use octavius_tests::cluster::{Part, Shape};
use octavius_tests::{PATIENCE, World};

use crate::faults::{Trial, long, short};

/// Builds what makes a clock wrong, in the world's folder.
pub(crate) fn wrong_clock(world: &World) -> Result<PathBuf> {
    let built = world.path("clock.so");
    let source = concat!(env!("CARGO_MANIFEST_DIR"), "/system/clock.c");
    let status = Command::new("cc").args(["-shared", "-fPIC", "-O1", "-o"]).arg(&built).arg(source).arg("-ldl").status()?;
    ensure!(status.success(), "cc: {status}");
    Ok(built)
}

#[test]
fn clocks_that_are_two_hours_apart_change_nothing() -> Result<()> {
    let mut trial = Trial::start(Shape::small(2, 2))?;
    let clock = wrong_clock(&trial.cluster.world)?.to_str().context("a path that is no text")?.to_owned();
    for (part, ahead) in
        [(Part::Controller(0), "3600"), (Part::Controller(1), "-3600"), (Part::Executor(0), "3600"), (Part::Executor(1), "-1800")]
    {
        let variables = [("LD_PRELOAD", clock.as_str()), ("CLOCK_AHEAD", ahead)];
        trial.cluster.kill(part)?;
        match part {
            Part::Controller(index) => trial.cluster.start_controller(index, &variables, false)?,
            Part::Executor(index) => trial.cluster.start_executor(index, &variables, false)?,
            Part::Member(_) => {}
        }
    }
    let callers = [trial.caller(0)?, trial.caller(1)?];
    let mut asked = Vec::new();
    for round in 0..12 {
        let run = if round % 4 == 3 { long(1) } else { short() };
        asked.push(trial.submit(&callers[round % 2], run)?);
    }
    let cancelled = trial.submit(&callers[1], long(300))?;
    trial.reaches(&callers[0], &cancelled, State::Running)?;
    ensure!(trial.runtime.block_on(callers[0].cancel(&cancelled, PATIENCE))?, "nobody heard that it is to stop");
    ensure!(trial.ended(&callers[1], &cancelled)?.state == State::Cancelled);
    for (round, id) in asked.iter().enumerate() {
        let seen = trial.ended(&callers[(round + 1) % 2], id)?;
        ensure!(seen.state == State::Succeeded && seen.attempts.len() == 1, "{seen:?}");
    }
    // The clocks really were wrong: what the first controller took down ended in an hour.
    let ends = asked.iter().map(|id| Ok(trial.ended(&callers[0], id)?.finished)).collect::<Result<Vec<_>>>()?;
    ensure!(ends.iter().flatten().any(|at| *at > Duration::from_secs(3000)), "{ends:?}");

    // Executors that are gone are given up by how long they are not seen, not by what the clocks say.
    let lost = trial.submit(&callers[0], long(300))?;
    trial.reaches(&callers[0], &lost, State::Running)?;
    let begun = Instant::now();
    trial.cluster.kill(Part::Executor(0))?;
    trial.cluster.kill(Part::Executor(1))?;
    ensure!(trial.ended(&callers[1], &lost)?.state == State::Lost);
    // Nine seconds at this pace; at once would be a clock's doing, and so would never.
    ensure!(begun.elapsed() > Duration::from_secs(4), "given up after {:?}", begun.elapsed());
    // That they all ended in time was waited for; when, they say by clocks that are wrong.
    trial.check_with(&callers[0], Duration::from_secs(2 * 3600))
}
