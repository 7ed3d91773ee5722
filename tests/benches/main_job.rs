//! The figures of the main job, measured on real processes: `tests/bench` builds the release binary and runs this. Absolute figures are those of
//! the machine; what was measured beside them in the same run says what the machine itself can do.

#![expect(clippy::print_stdout, reason = "a benchmark prints its table")]

use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, ensure};
use octavius_core::ExecutionId;
use octavius_proto::client::{Address, Connection};
use octavius_proto::v1;
use octavius_tests::{Client, World, eventually};

const JOBS: usize = 1_000;
const EXECUTIONS: usize = 10_000;
const CALLERS: usize = 64;
const RUNS: usize = 40;

fn main() -> Result<()> {
    let dev = latencies()?;
    let apart = throughput()?;
    println!("\n| what | measured | beside it | ratio | must be |");
    println!("| --- | --- | --- | --- | --- |");
    for row in dev.iter().chain(&apart) {
        println!("{row}");
    }
    Ok(())
}

/// Wall times of whole processes, in turn with `/bin/true`, so that both see the same machine.
fn alternate(runs: usize, mut command: impl FnMut() -> Command) -> Result<(Duration, Duration)> {
    let mut times = (Vec::new(), Vec::new());
    for _ in 0..runs {
        times.0.push(time(&mut command())?);
        times.1.push(time(&mut Command::new("/bin/true"))?);
    }
    Ok((median(&mut times.0), median(&mut times.1)))
}

fn time(command: &mut Command) -> Result<Duration> {
    let begun = Instant::now();
    let status = command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null()).status()?;
    let elapsed = begun.elapsed();
    ensure!(status.success(), "{command:?}: {status}");
    Ok(elapsed)
}

fn median(times: &mut [Duration]) -> Duration {
    times.sort_unstable();
    times[times.len() / 2]
}

fn ms(duration: Duration) -> f64 {
    duration.as_secs_f64() * 1000.0
}

fn latency_row(what: &str, (measured, beside): (Duration, Duration), limit: &str) -> String {
    let ratio = measured.as_secs_f64() / beside.as_secs_f64();
    format!("| {what} | {:.1} ms | `/bin/true` as a process {:.1} ms | {ratio:.1} | ≤ {limit} |", ms(measured), ms(beside))
}

fn catalog(world: &World, jobs: usize) -> Result<()> {
    world.write("catalog/octavius.yaml", "catalog: bench\n")?;
    world.write("catalog/true-job.yaml", "name: true-job\ncommand: [/bin/true]\n")?;
    for number in 0..jobs {
        let description =
            format!("Job number {number}, which does nothing and is described at the length that real jobs are described at");
        let text = format!(
            "name: job-{number}\ndescription: {description}\nimage_name: registry.example/team/job:{number}\ncommand: [/bin/true]\n\
             env_vars:\n  args:\n  - {{name: one, description: the first argument, type: integer, default: {number}}}\n\
             \x20 - {{name: two, description: the second argument, enum: [a, b, c], default: a}}\nauthor: platform\norganization: example\n"
        );
        world.write(&format!("catalog/team-{}/job-{number}.yaml", number % 20), &text)?;
    }
    Ok(())
}

fn latencies() -> Result<Vec<String>> {
    let world = World::new()?;
    catalog(&world, JOBS)?;
    let (_dev, client) = world.dev(&[])?;
    client.run(&["apply", "catalog"])?.expect(0)?;
    client.execute("true-job", &["--wait"])?;
    let of = |arguments: &'static [&'static str]| alternate(RUNS, || client.command(arguments));
    let nomad = of(&["execute", "true-job", "--wait"])?;
    Ok(vec![
        latency_row("`octavius execute true-job --wait`, whole process, against `dev`", nomad, "40 ms"),
        latency_row("`octavius list` of 1,000 jobs, whole process", of(&["list"])?, "10 ms"),
        latency_row("`octavius describe job-7`, whole process", of(&["describe", "job-7"])?, "10 ms"),
    ])
}

/// `/bin/true` started and waited for, by two threads, as often as the machine can.
fn bare_processes() -> Result<f64> {
    const EACH: u32 = 1000;
    let begun = Instant::now();
    std::thread::scope(|scope| -> Result<()> {
        let lanes: Vec<_> = (0..2)
            .map(|_| {
                scope.spawn(|| -> Result<()> {
                    for _ in 0..EACH {
                        time(&mut Command::new("/bin/true"))?;
                    }
                    Ok(())
                })
            })
            .collect();
        lanes.into_iter().try_for_each(|lane| lane.join().map_err(|_| anyhow::anyhow!("a thread panicked"))?)
    })?;
    Ok(f64::from(2 * EACH) / begun.elapsed().as_secs_f64())
}

fn throughput() -> Result<Vec<String>> {
    let world = World::new()?;
    catalog(&world, JOBS)?;
    let (controller, port) = world.controller("store", 0)?;
    let admin = world.admin(port)?;
    admin.run(&["apply", "catalog"])?.expect(0)?;
    let made = admin.run(&["tokens", "create", "--role", "executor", "--user", "e", "-o", "json"])?.expect(0)?.json()?;
    let executor = world.executor("e1", port, made["token"].as_str().context("no token")?, 32)?;
    let token = std::fs::read_to_string(world.path("admin.token"))?;

    let bare = bare_processes()?;
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build()?;
    let begun = Instant::now();
    runtime.block_on(submit(port, token.trim()))?;
    let accepted = EXECUTIONS as f64 / begun.elapsed().as_secs_f64();
    wait_for_all(&admin)?;
    let finished = EXECUTIONS as f64 / begun.elapsed().as_secs_f64();
    let mib = |bytes: u64| bytes as f64 / 1024.0 / 1024.0;
    let (controller, executor) = (mib(controller.resident_bytes()?), mib(executor.resident_bytes()?));
    Ok(vec![
        format!(
            "| `/bin/true` through the process runner, accepted to finished, state durable, {EXECUTIONS} executions | {finished:.0}/s | bare `/bin/true`, two threads {bare:.0}/s | {:.2} | ≥ 300/s |",
            finished / bare
        ),
        format!("| of these, accepted and durable while others run, {CALLERS} callers | {accepted:.0}/s | | | |"),
        format!(
            "| controller with {JOBS} jobs and {EXECUTIONS} finished executions, resident | {controller:.1} MiB | executor {executor:.1} MiB | | ≤ 60 MiB |"
        ),
    ])
}

async fn submit(port: u16, token: &str) -> Result<()> {
    let address = [Address::parse(&format!("127.0.0.1:{port}"))?];
    let connection = Connection::open(&address, Some(token), Duration::from_secs(10)).await?;
    let mut lanes = tokio::task::JoinSet::new();
    for lane in 0..CALLERS {
        let mut executions = connection.executions();
        let share = EXECUTIONS / CALLERS + usize::from(lane < EXECUTIONS % CALLERS);
        lanes.spawn(async move {
            for _ in 0..share {
                let id = ExecutionId::generate().to_string();
                let request = v1::ExecuteRequest { id, job: "true-job".to_owned(), ..Default::default() };
                executions.execute(request).await?;
            }
            anyhow::Ok(())
        });
    }
    while let Some(lane) = lanes.join_next().await {
        lane??;
    }
    Ok(())
}

/// Waits until nothing is on its way any more; looking costs the controller a short list.
fn wait_for_all(admin: &Client<'_>) -> Result<()> {
    eventually("all executions end", || {
        let open = ["--state", "queued", "--state", "claimed", "--state", "starting", "--state", "running"];
        let arguments: Vec<&str> = ["executions", "--limit", "1", "-o", "json"].into_iter().chain(open).collect();
        let left = admin.run(&arguments)?.expect(0)?.json()?;
        ensure!(left["executions"].as_array().context("no list")?.is_empty(), "{left}");
        Ok(())
    })
}
