//! The figures of an executor on a real Kubernetes, beside bare Jobs with the same pods, created through the same API server in the same run:
//! `tests/bench` builds the release binary, starts a cluster and runs this. Controller, executor and `octavius` are processes; the store
//! is a real etcd.

#![expect(clippy::print_stdout, reason = "a benchmark prints its table")]

mod bare;
mod house;

use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use octavius_tests::{Kubernetes, Namespace, eventually};

use crate::bare::Bare;
use crate::house::House;

/// Pairs of one execution and one bare Job.
const PAIRS: usize = 20;

/// Executions and Jobs of a round of many.
const MANY: usize = 40;

/// Rounds of many, of each kind.
const ROUNDS: usize = 3;

/// Jobs that are active at once while the executor's memory is looked at.
const ACTIVE: usize = 500;

/// Longest wait for the next thing to happen.
pub(crate) const PATIENCE: Duration = Duration::from_secs(60);

fn main() -> Result<()> {
    let cluster = Kubernetes::alone()?;
    let asked = |part: &str| std::env::args().any(|argument| argument == part);
    let mut rows = if asked("memory") { Vec::new() } else { speed(&cluster)? };
    if !asked("speed") {
        rows.push(memory(&cluster)?);
    }
    println!("\n| what | measured | beside it | ratio | must be |");
    println!("| --- | --- | --- | --- | --- |");
    rows.iter().for_each(|row| println!("{row}"));
    Ok(())
}

/// Waits until nothing of what was measured is left, so that each begins on the same machine.
pub(crate) fn quiet(cluster: &Kubernetes, namespace: &Namespace<'_>) -> Result<()> {
    for path in [namespace.batch("jobs"), namespace.path("pods")] {
        eventually("nothing is left", || {
            let left = cluster.get(&format!("{path}?limit=1"))?;
            ensure!(left["items"].as_array().is_some_and(Vec::is_empty), "{path}: something is left");
            Ok(())
        })?;
    }
    Ok(())
}

fn speed(cluster: &Kubernetes) -> Result<Vec<String>> {
    let namespace = cluster.namespace()?;
    let house = House::open()?;
    let (executor, daemon) = house.executor(&namespace, "run", 64)?;
    let watch = cluster.watch(&namespace.batch("jobs"))?;
    house.one()?; // what comes with the first is not measured, and says what a Job looks like
    let made = watch.so_far()?.into_iter().next().context("the executor made no Job")?;
    let bare = Bare::of(&made.object)?;
    quiet(cluster, &namespace)?;

    let (mut ours, mut theirs) = (Vec::new(), Vec::new());
    for _ in 0..PAIRS {
        theirs.push(bare.one(cluster, &namespace, &watch)?.as_secs_f64());
        ours.push(house.one()?.as_secs_f64());
        quiet(cluster, &namespace)?;
    }
    let (one, job) = (median(&mut ours), median(&mut theirs));
    let mut rows = vec![format!(
        "| `octavius execute true-job --wait`, whole process, {PAIRS} times | {one:.2} s, {:+.2} s | one bare Job, created to `Complete` {job:.2} s | {:.2} | ≤ 0.30 s above, aim 0.15 |",
        one - job,
        one / job
    )];

    let (mut ours, mut theirs, mut calls) = (Vec::new(), Vec::new(), 0);
    for _ in 0..ROUNDS {
        theirs.push(bare.many(cluster, &namespace, &watch, MANY)?.as_secs_f64());
        let before = cluster.audit(&executor.user)?.len();
        ours.push(house.many(MANY)?.as_secs_f64());
        quiet(cluster, &namespace)?;
        calls += cluster.audit(&executor.user)?.len() - before;
    }
    let (many, jobs) = (median(&mut ours), median(&mut theirs));
    let ratio = many / jobs;
    rows.push(format!(
        "| {MANY} executions of `true`, submitted to finished | {many:.1} s | {MANY} bare Jobs {jobs:.1} s | {ratio:.2} | ≤ 1.25, aim 1.10 |"
    ));
    let each = calls as f64 / (MANY * ROUNDS) as f64;
    rows.push(format!("| of these, the executor's calls to the API server, each | {each:.1} | | | ≤ 8 |"));
    let verbs = cluster.audit(&executor.user)?;
    println!("{} calls of the executor in all: {}", verbs.len(), by_kind(&verbs));
    println!("the executor after them, resident: {:.1} MiB", mib(daemon.resident_bytes()?));
    Ok(rows)
}

/// What was called how often.
fn by_kind(events: &[serde_json::Value]) -> String {
    let mut kinds = std::collections::BTreeMap::<String, usize>::new();
    for event in events {
        let what = &event["objectRef"];
        let text = |value: &serde_json::Value| value.as_str().unwrap_or_default().to_owned();
        let sub = what["subresource"].as_str().map_or_else(String::new, |sub| format!("/{sub}"));
        *kinds.entry(format!("{} {}{sub}", text(&event["verb"]), text(&what["resource"]))).or_default() += 1;
    }
    kinds.into_iter().map(|(kind, count)| format!("{kind} {count}")).collect::<Vec<_>>().join(", ")
}

/// What the executor takes up while many Jobs are active. Their pods ask for a node that is not there, so that none runs.
fn memory(cluster: &Kubernetes) -> Result<String> {
    let namespace = cluster.namespace()?;
    let house = House::open()?;
    let (_, daemon) = house.executor(&namespace, "park", u32::try_from(ACTIVE)?)?;
    let before = mib(daemon.resident_bytes()?);
    println!("while none is: {}", shares(daemon.pid())?);
    let watch = cluster.watch(&namespace.path("pods"))?;
    house.submit("parked-job", ACTIVE)?;
    let mut pods = std::collections::HashSet::new();
    while pods.len() < ACTIVE {
        pods.insert(watch.next(PATIENCE)?.name().to_owned());
    }
    house.until_running(ACTIVE)?;
    let active = mib(daemon.resident_bytes()?);
    println!("while {ACTIVE} Jobs are active: {}", shares(daemon.pid())?);
    Ok(format!("| executor with {ACTIVE} active Jobs, resident | {active:.1} MiB | idle {before:.1} MiB | | ≤ 40 MiB |"))
}

/// What of a process's memory is its own, and what of files that it has mapped: the program.
fn shares(pid: u32) -> Result<String> {
    let status = std::fs::read_to_string(format!("/proc/{pid}/status"))?;
    let lines = status.lines().filter(|line| ["RssAnon:", "RssFile:", "VmHWM:"].iter().any(|name| line.starts_with(name)));
    Ok(lines.map(|line| line.split_whitespace().collect::<Vec<_>>().join(" ")).collect::<Vec<_>>().join(", "))
}

fn mib(bytes: u64) -> f64 {
    bytes as f64 / 1024.0 / 1024.0
}

fn median(values: &mut [f64]) -> f64 {
    values.sort_unstable_by(f64::total_cmp);
    values[values.len() / 2]
}
