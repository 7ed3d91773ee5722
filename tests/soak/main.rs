//! The soak: three controllers over a three-member etcd, two executors, clients that do everything that clients do, and faults at random
//! for some minutes. Then all faults end, everything is looked at, and the history is held against the invariants.
//!
//! `cargo run --package octavius-tests --bin soak -- --minutes 10 --quiet-minutes 5 --seed 7`

#![expect(clippy::print_stdout, reason = "what it found is its output")]

mod clients;
mod faults;

use std::process::ExitCode;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant, SystemTime};

use anyhow::{Context as _, Result, bail};
use octavius_tests::caller::{Caller, Tags};
use octavius_tests::checker::{Verdict, check};
use octavius_tests::cluster::{Cluster, Shape, runtime};
use octavius_tests::history::History;
use octavius_tests::workload::Workload;
use octavius_tests::{EtcdOptions, Random};
use tokio::sync::watch;

use crate::clients::Shared;
use crate::faults::Faults;

/// What I1 allows over a deadline, at the system's own timing.
const GRACE: Duration = Duration::from_secs(300);

const USAGE: &str = "soak [--minutes N] [--quiet-minutes N] [--seed N] [--rate EXECUTIONS_A_SECOND] [--faster FACTOR]";

struct Options {
    busy: Duration,
    quiet: Duration,
    seed: u64,
    rate: f64,
    faster: u32,
}

impl Options {
    fn read() -> Result<Self> {
        let seed = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH)?.as_millis();
        let mut options = Self {
            busy: Duration::from_secs(600),
            quiet: Duration::from_secs(300),
            seed: u64::try_from(seed)?,
            rate: 4.0,
            faster: 20,
        };
        let mut arguments = std::env::args().skip(1);
        while let Some(flag) = arguments.next() {
            let value = arguments.next().context(USAGE)?;
            let minutes = || -> Result<Duration> { Ok(Duration::try_from_secs_f64(value.parse::<f64>()? * 60.0)?) };
            match flag.as_str() {
                "--minutes" => options.busy = minutes()?,
                "--quiet-minutes" => options.quiet = minutes()?,
                "--seed" => options.seed = value.parse()?,
                "--rate" => options.rate = value.parse()?,
                "--faster" => options.faster = value.parse()?,
                _ => bail!("{flag} is not known: {USAGE}"),
            }
        }
        anyhow::ensure!(options.rate > 0.0 && options.faster > 0, "rate and factor are more than nothing");
        Ok(options)
    }
}

fn main() -> ExitCode {
    match Options::read().and_then(|options| soak(&options)) {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::FAILURE,
        Err(error) => {
            println!("the soak could not be done: {error:#}");
            ExitCode::from(2)
        }
    }
}

fn soak(options: &Options) -> Result<bool> {
    let Options { busy, quiet, seed, rate, faster } = *options;
    println!("seed {seed}");
    println!("three controllers, three members of etcd, two executors; all timing {faster} times as fast");
    let mut random = Random::new(seed);
    let shape = Shape {
        controllers: 3,
        executors: 2,
        capacity: 8,
        etcd: EtcdOptions::new(3),
        faster,
        archive: false,
        idle_jobs: 30,
        variables: Vec::new(),
    };
    let mut cluster = Cluster::start(shape, "first")?;
    let (history, tags, shared) = (Arc::new(History::default()), Tags::default(), Arc::new(Shared::default()));
    let callers: Vec<Arc<Caller>> =
        (0..3).map(|first| Ok(Arc::new(cluster.caller(first, &history, &tags)?))).collect::<Result<_>>()?;
    let runtime = runtime()?;
    // A first state that the checker knows.
    anyhow::ensure!(runtime.block_on(callers[0].apply(&cluster.workload, "state"))?, "the catalogue was not applied");

    let (stop, stopped) = watch::channel(false);
    let more = Workload::new(cluster.workload.ledger(), 45);
    let mut tasks =
        vec![runtime.spawn(clients::submit(callers.clone(), Arc::clone(&shared), random.fork(), rate, stopped.clone()))];
    for caller in &callers {
        let (caller, workloads) = (Arc::clone(caller), [cluster.workload.clone(), more.clone()]);
        let shared = Arc::clone(&shared);
        tasks.push(runtime.spawn(clients::apply(caller, shared, workloads, random.fork(), stopped.clone())));
    }
    for caller in &callers {
        tasks.push(runtime.spawn(clients::read(Arc::clone(caller), Arc::clone(&shared), random.fork(), stopped.clone())));
    }
    let mut faults = Faults::new(random.fork(), Arc::clone(&history));
    let begun = Instant::now();
    let mut told = begun;
    while begun.elapsed() < busy {
        faults.step(&mut cluster)?;
        if told.elapsed() >= Duration::from_secs(10) {
            told = Instant::now();
            progress(begun.elapsed(), &shared, &faults)?;
        }
        std::thread::sleep(Duration::from_millis(50));
    }
    faults.heal(&mut cluster)?;
    stop.send_replace(true);
    println!("{:>6.0} s  no more faults; everything is looked at", begun.elapsed().as_secs_f64());
    let quieting = std::thread::scope(|scope| -> Result<()> {
        let looking = scope.spawn(|| {
            runtime.block_on(async {
                for task in tasks {
                    task.await?;
                }
                let ends = tokio::time::Instant::now() + quiet;
                clients::look_at_all(&callers, shared.asked(), quiet).await?;
                println!("{:>6.0} s  looked at; quiet until the time is over, then once more", begun.elapsed().as_secs_f64());
                // What is over must still be what it was.
                tokio::time::sleep_until(ends).await;
                clients::look_at_all(&callers, shared.asked(), quiet).await
            })
        });
        while !looking.is_finished() {
            for (part, said) in cluster.tend()? {
                history.fault(format!("{part:?} ended by itself: {said}"));
            }
            std::thread::sleep(Duration::from_millis(50));
        }
        looking.join().map_err(|_| anyhow::anyhow!("a client panicked"))?
    });
    history.ledger(cluster.workload.ledger())?;
    let verdict = check(&history.events(), GRACE / faster);
    report(seed, &verdict, &shared, &faults);
    quieting.context("not everything could be looked at")?;
    let wrong = shared.wrong.lock().map_or(0, |wrong| wrong.len());
    Ok(verdict.violations.is_empty() && verdict.undecided.is_empty() && wrong == 0)
}

fn progress(at: Duration, shared: &Shared, faults: &Faults) -> Result<()> {
    let asked = shared.asked();
    let acknowledged = asked.iter().filter(|asked| asked.acknowledged).count();
    let status = std::fs::read_to_string("/proc/self/status")?;
    let memory = status.lines().find_map(|line| line.strip_prefix("VmRSS:")).unwrap_or_default().trim();
    println!(
        "{:>6.0} s  {} submitted, {acknowledged} acknowledged, {} applies, {} reads of the catalogue, {} faults; harness {memory}",
        at.as_secs_f64(),
        asked.len(),
        shared.applies.load(Ordering::Relaxed),
        shared.reads.load(Ordering::Relaxed),
        faults.counts.values().sum::<usize>(),
    );
    Ok(())
}

fn report(seed: u64, verdict: &Verdict, shared: &Shared, faults: &Faults) {
    println!("\nfaults");
    for (kind, count) in &faults.counts {
        println!("  {count:>6}  {kind}");
    }
    println!("executions: {} acknowledged, {} starts", verdict.acknowledged, verdict.starts);
    for (state, count) in &verdict.states {
        println!("  {count:>6}  {state}");
    }
    for violation in &verdict.violations {
        println!("\n{violation}");
    }
    if let Ok(wrong) = shared.wrong.lock() {
        for wrong in wrong.iter() {
            println!("\na client was told what it should not have been: {wrong}");
        }
    }
    for id in &verdict.undecided {
        println!("\n{id} has not ended, and still has time: the quiet minutes were too few");
    }
    println!("\nseed {seed}: {} violations", verdict.violations.len());
}
