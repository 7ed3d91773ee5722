//! The program that jobs of tests and benchmarks run to print what follows from a seed: `printer KIND SEED BYTES MILLISECONDS`, or lines with
//! the time in them: `printer ticks PER_SECOND MILLISECONDS`.

use std::time::Duration;

use anyhow::Result;
use octavius_tests::printer::{Print, tick};

fn main() -> Result<()> {
    let arguments: Vec<_> = std::env::args().skip(1).collect();
    // Each write is one of the job's own: nothing of ours stands in between.
    let mut out = std::fs::File::from(std::os::fd::AsFd::as_fd(&std::io::stdout()).try_clone_to_owned()?);
    if let [ticks, per_second, millis] = &arguments[..]
        && ticks == "ticks"
    {
        tick(per_second.parse()?, Duration::from_millis(millis.parse()?), &mut out)?;
    } else {
        arguments.join(" ").parse::<Print>()?.write(&mut out)?;
    }
    Ok(())
}
