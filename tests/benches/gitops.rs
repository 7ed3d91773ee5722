//! What a catalogue costs people who keep it in git: whole processes of the shipped binary on catalogues of 1,000, 3,000 and 10,000 jobs, beside
//! what git itself takes for the same files in the same run. `tests/bench` builds the binary and runs this.

#![expect(clippy::print_stdout, reason = "a benchmark prints its tables")]

use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, ensure};
use octavius_core::{Digest, JobDefinition};
use octavius_proto::client::{Address, Connection};
use octavius_proto::v1::{self, apply_request::Part};
use octavius_tests::{Client, World};

/// Sizes of the catalogues.
const SIZES: [usize; 3] = [1_000, 3_000, 10_000];

/// Folders that the jobs are spread over.
const FOLDERS: usize = 200;

/// Runs of what changes nothing; the median counts.
const RUNS: usize = 7;

/// Applies of one change that go straight to the controller.
const CHANGES: usize = 20;

/// What one catalogue took.
struct Figures {
    jobs: usize,
    store: &'static str,
    rows: Vec<Row>,
}

struct Row {
    what: &'static str,
    took: Duration,
    /// What git took for what is nearest to it.
    git: Option<(&'static str, Duration)>,
    /// Most memory of the process.
    peak: u64,
    limit: &'static str,
}

fn main() -> Result<()> {
    let mut all = Vec::new();
    for jobs in SIZES {
        all.push(measure(jobs, "embedded")?);
    }
    all.push(measure(SIZES[SIZES.len() - 1], "etcd")?);
    println!("\n| jobs | store | what | measured | git, for the same files | ratio | most memory | must be, at 10,000 jobs |");
    println!("| --- | --- | --- | --- | --- | --- | --- | --- |");
    for Figures { jobs, store, rows } in all {
        for Row { what, took, git, peak, limit } in rows {
            let (beside, ratio) = git.map_or_else(Default::default, |(what, git)| {
                (format!("`{what}` {}", seconds(git)), format!("{:.1}", took.as_secs_f64() / git.as_secs_f64()))
            });
            let peak = if peak == 0 { String::new() } else { format!("{:.0} MiB", peak as f64 / 1024.0) };
            println!("| {jobs} | {store} | {what} | {} | {beside} | {ratio} | {peak} | {limit} |", seconds(took));
        }
    }
    Ok(())
}

fn seconds(duration: Duration) -> String {
    let ms = duration.as_secs_f64() * 1000.0;
    if ms < 100.0 { format!("{ms:.1} ms") } else { format!("{:.2} s", ms / 1000.0) }
}

/// A job's file of about 800 bytes.
fn job(number: usize, limit: usize) -> String {
    format!(
        "name: job-{number}\ndescription: Job number {number}, which is described at the length that real jobs are described at\n\
         image_name: registry.example/team-{}/job:1.{number}\ncommand: [/usr/bin/run, --number, \"{number}\", --verbose]\n\
         env_vars:\n  secrets:\n    - name: PASSWORD\n      description: the password of the database\n  args:\n\
         \x20   - name: limit\n      description: how many rows are taken at most in one go\n      type: integer\n      default: {limit}\n\
         \x20   - name: mode\n      description: what happens to what is found\n      enum: [show, move, remove]\n      default: show\n\
         \x20   - name: since\n      description: only what is older than this\n      type: duration\n      default: 24h\n\
         labels: {{team: team-{}, tier: backend}}\nexecutor: {{vpc: vpc-{}}}\ntimeout: 1h\nretries: 2\n\
         author: platform\norganization: example\nauthorized_groups: [platform, team-{}]\n",
        number % 40,
        number % 40,
        number % 10,
        number % 40,
    )
}

fn path(number: usize) -> String {
    format!("catalog/folder-{}/job-{number}.yaml", number % FOLDERS)
}

fn git(world: &World, arguments: &[&str]) -> Result<Duration> {
    let mut command = Command::new("git");
    command.args(["-c", "user.name=bench", "-c", "user.email=bench@example.com", "-c", "init.defaultBranch=main"]);
    command.args(arguments).current_dir(world.path(".")).env("HOME", world.path("home")).env("GIT_CONFIG_NOSYSTEM", "1");
    let begun = Instant::now();
    let status = command.stdin(Stdio::null()).stdout(Stdio::null()).status()?;
    ensure!(status.success(), "git {arguments:?}: {status}");
    Ok(begun.elapsed())
}

/// Runs a process to its end; how long it took, and its most memory in KiB.
fn run(mut command: Command, code: i32) -> Result<(Duration, u64)> {
    let begun = Instant::now();
    let mut child = command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null()).spawn()?;
    let status = std::path::Path::new("/proc").join(child.id().to_string()).join("status");
    // What it held most is seen until it ends; a look each 5 ms costs it nothing.
    let mut peak = 0;
    let ended = loop {
        peak = high_water(&std::fs::read_to_string(&status).unwrap_or_default()).max(peak);
        if let Some(ended) = child.try_wait()? {
            break ended;
        }
        std::thread::sleep(Duration::from_millis(5)); // the measure's grain
    };
    let took = begun.elapsed();
    ensure!(ended.code() == Some(code), "{command:?}: {ended}");
    Ok((took, peak))
}

fn high_water(status: &str) -> u64 {
    let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:"));
    line.and_then(|line| line.split_whitespace().next()).and_then(|kib| kib.parse().ok()).unwrap_or_default()
}

/// The median run, and the most memory of any.
fn median(mut runs: Vec<(Duration, u64)>) -> (Duration, u64) {
    runs.sort_unstable();
    let peak = runs.iter().map(|(_, peak)| *peak).max().unwrap_or_default();
    (runs[runs.len() / 2].0, peak)
}

fn measure(jobs: usize, store: &'static str) -> Result<Figures> {
    let world = if store == "etcd" { World::on_etcd()? } else { World::new()? };
    world.write("catalog/octavius.yaml", "catalog: bench\n")?;
    for number in 0..jobs {
        world.write(&path(number), &job(number, 100))?;
    }
    world.write(".gitignore", "*\n!catalog\n!catalog/**\n")?;
    git(&world, &["init", "-q"])?;
    let began = Instant::now();
    git(&world, &["add", "-A"])?;
    git(&world, &["commit", "-qm", "All jobs"])?;
    let committed = began.elapsed();
    let (controller, port) = world.controller("store", 0)?;
    let admin = world.admin(port)?;
    let status =
        || median((0..RUNS).filter_map(|_| git(&world, &["status", "--porcelain"]).ok()).map(|took| (took, 0)).collect()).0;
    let times = |arguments: &[&str], code| -> Result<_> {
        Ok(median((0..RUNS).map(|_| run(admin.command(arguments), code)).collect::<Result<_>>()?))
    };

    let mut rows = Vec::new();
    let mut row = |what, (took, peak), git, limit| rows.push(Row { what, took, git, peak, limit });
    row("`validate`", times(&["validate", "catalog"], 0)?, Some(("git status", status())), "≤ 0.6 s, 150 MiB");
    row(
        "first `apply`",
        run(admin.command(&["apply", "catalog"]), 0)?,
        Some(("git add, git commit", committed)),
        "≤ 2 s, 150 MiB",
    );
    row("`diff` without changes", times(&["diff", "catalog"], 0)?, Some(("git status", status())), "≤ 0.6 s, 150 MiB");
    // One change at a time, each committed, as a pipeline applies it.
    let mut one = Vec::new();
    for limit in 0..RUNS {
        world.write(&path(7), &job(7, limit))?;
        git(&world, &["commit", "-qam", "One job"])?;
        one.push(run(admin.command(&["apply", "catalog"]), 0)?);
    }
    row("`apply` of one change", median(one), Some(("git status", status())), "≤ 0.7 s, 150 MiB");
    row(
        "`diff --against HEAD~1`, one change",
        times(&["diff", "catalog", "--against", "HEAD~1"], 1)?,
        Some(("git status", status())),
        "≤ 1.0 s, 150 MiB",
    );
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    let at_controller = runtime.block_on(changes(&world, &admin, port))?;
    let peak = high_water(&std::fs::read_to_string(format!("/proc/{}/status", controller.pid()))?);
    row(
        "the call of an apply of one change, at the controller",
        (at_controller, peak),
        None,
        "≤ 50 ms; controller's most memory in all of this ≤ 150 MiB",
    );
    Ok(Figures { jobs, store, rows })
}

/// How long the controller takes for an apply of one change: the median of calls.
async fn changes(world: &World, admin: &Client<'_>, port: u16) -> Result<Duration> {
    let token = std::fs::read_to_string(world.path("admin.token"))?;
    let address = [Address::parse(&format!("127.0.0.1:{port}"))?];
    let connection = Connection::open(&address, Some(token.trim()), Duration::from_secs(10)).await?;
    let head = admin.run(&["history", "--catalog-name", "bench", "-o", "json"])?.expect(0)?.json()?;
    let mut parent = head["revisions"][0]["revision"].as_u64().context("no revision")?;
    let mut times = Vec::new();
    for limit in 0..CHANGES {
        let definition: JobDefinition = serde_json::from_value(serde_json::json!({
            "name": "job-7", "command": ["/usr/bin/run"], "description": format!("changed {limit} times"),
        }))?;
        let json = definition.to_canonical_json();
        let entry = v1::ManifestEntry {
            name: "job-7".to_owned(),
            definition: Digest::of(&json).as_bytes().to_vec().into(),
            file: path(7),
            line: 1,
            ..Default::default()
        };
        let header = v1::ApplyHeader { catalog: "bench".to_owned(), parent, put: vec![entry], ..Default::default() };
        let definitions = vec![v1::Definition { json: json.into() }];
        let parts = [Part::Header(header), Part::Definitions(v1::ApplyDefinitions { definitions })];
        let parts = parts.map(|part| v1::ApplyRequest { part: Some(part) });
        let begun = Instant::now();
        let made = connection.catalog().apply(tokio_stream::iter(parts)).await?.into_inner();
        times.push(begun.elapsed());
        parent = made.revision.context("no revision")?.number;
    }
    times.sort_unstable();
    Ok(times[times.len() / 2])
}
