//! Some mutated catalogues of the program `fuzz`; the same cases in any number are in `examples/fuzz`.

use std::path::Path;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

#[path = "../../examples/fuzz/cases.rs"]
mod cases;

#[expect(clippy::print_stderr, reason = "a failure needs its seed")]
#[test]
fn mutated_catalogues_neither_break_nor_hold_up_the_loader() {
    let corpus = cases::Corpus::read(Path::new(env!("CARGO_MANIFEST_DIR"))).unwrap();
    let seed = std::env::var("OCTAVIUS_FUZZ_SEED").ok().map_or_else(
        || u64::from(SystemTime::now().duration_since(UNIX_EPOCH).unwrap().subsec_nanos()),
        |seed| seed.parse().unwrap(),
    );
    eprintln!("seed {seed}: set OCTAVIUS_FUZZ_SEED to run the same cases");
    let (mut good, mut jobs, mut findings) = (0, 0, 0);
    for number in 0..500 {
        let outcome = std::panic::catch_unwind(|| cases::run(&corpus, seed, number));
        let outcome = outcome.unwrap_or_else(|_| panic!("case {number} of seed {seed} failed: {}", shown(&corpus, seed, number)));
        assert!(outcome.took < Duration::from_secs(20), "case {number} of seed {seed} took {:?}", outcome.took);
        good += usize::from(outcome.good);
        jobs += outcome.jobs;
        findings += outcome.findings;
    }
    // Where nearly all are refused, the checks of what loads would be idle.
    assert!(good > 20 && jobs > 400 && findings > 400, "{good} without an error, {jobs} jobs, {findings} findings");
}

/// The files of a case, cut to what a report can take.
fn shown(corpus: &cases::Corpus, seed: u64, number: u64) -> String {
    let files = cases::files_of(corpus, seed, number);
    let shown = |(path, bytes): &(String, Vec<u8>)| format!("\n=== {path:?}\n{}", bytes[..bytes.len().min(2000)].escape_ascii());
    files.iter().map(shown).collect()
}
