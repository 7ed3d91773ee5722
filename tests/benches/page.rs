//! The web page in a real browser, on real processes, with as much in the store as a busy team has: `tests/bench` builds the release binary and
//! runs this. Needs Debian's chromium and chromedriver, see `have_browser` in `tests/lib.sh`.

#![expect(clippy::print_stdout, reason = "a benchmark prints its table")]

use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, ensure};
use octavius_core::ExecutionId;
use octavius_proto::client::{Address, Connection};
use octavius_proto::v1;
use octavius_tests::browser::Browser;
use octavius_tests::{Client, Daemon, World, eventually};
use reqwest::header::{ACCEPT, COOKIE, SET_COOKIE};
use tokio::task::JoinSet;
use tokio_stream::StreamExt as _;

/// Executions that are there when their list is opened.
const EXECUTIONS: usize = 100_000;

/// Lines of the long log.
const LINES: u64 = 1_000_000;

/// Live logs that are open at once.
const VIEWERS: usize = 200;

/// How often a page is opened; the median counts.
const TIMES: usize = 11;

/// Calls under way while executions are made.
const LANES: usize = 64;

/// Longest that anything may take.
const WITHIN: Duration = Duration::from_secs(60);

const MIB: f64 = 1_048_576.0;

fn main() -> Result<()> {
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build()?;
    let world = World::new()?;
    world.write("catalog/octavius.yaml", "catalog: bench\n")?;
    world.write("catalog/parked.yaml", "name: parked\ncommand: [/bin/true]\nexecutor: {pool: nobody}\n")?;
    world.write("catalog/long.yaml", &format!("name: long\ncommand: [seq, '{LINES}']\n"))?;
    let live = "name: live\ncommand: [sh, -c, 'for i in $(seq 600); do seq 100; sleep 0.1; done']\n";
    world.write("catalog/live.yaml", live)?;
    let catalog = world.path("catalog").display().to_string();
    let (dev, admin) = world.dev(&["--catalog", &catalog])?;
    let open = dev.page()?;
    let root = open.split("/open").next().context("no address")?.to_owned();
    let browser = Browser::start()?;
    browser.go(&open)?;

    println!("\n| what | measured | must be |");
    println!("| --- | --- | --- |");
    long_log(&browser, &root, &admin)?;
    runtime.block_on(live_logs(&open, &root, &admin, &dev))?;
    runtime.block_on(fill(&admin))?;
    let painted = median(|| {
        browser.go(&format!("{root}/executions?all=true"))?;
        browser.first_paint()
    })?;
    row(&format!("first paint of the executions, of which there are {EXECUTIONS}"), painted, 150);
    Ok(())
}

fn row(what: &str, took: Duration, limit: u128) {
    println!("| {what} | {} ms | ≤ {limit} ms |", took.as_millis());
}

fn median(mut measure: impl FnMut() -> Result<Duration>) -> Result<Duration> {
    let mut times = (0..TIMES).map(|_| measure()).collect::<Result<Vec<_>>>()?;
    times.sort_unstable();
    Ok(times[TIMES / 2])
}

fn long_log(browser: &Browser, root: &str, admin: &Client<'_>) -> Result<()> {
    let id = admin.execute("long", &[])?;
    eventually("the long job ends", || {
        let state = admin.status(&id)?["state"].to_string();
        ensure!(state.contains("succeeded"), "{state}");
        Ok(())
    })?;
    let page = format!("{root}/executions/{id}");
    let opened = median(|| browser.time_until(&page, ".log-row", &LINES.to_string()))?;
    row(&format!("a log of {LINES} lines shows its end"), opened, 300);
    Ok(())
}

/// What so many readers of one live log cost the process.
async fn live_logs(open: &str, root: &str, admin: &Client<'_>, dev: &Daemon) -> Result<()> {
    let _ = rustls::crypto::ring::default_provider().install_default();
    let browser = reqwest::Client::builder().redirect(reqwest::redirect::Policy::none()).no_proxy().build()?;
    let entered = browser.get(open).send().await?;
    let cookie = entered.headers().get(SET_COOKIE).context("no session")?.to_str()?;
    let cookie = cookie.split(';').next().unwrap_or_default().to_owned();
    let id = admin.execute("live", &[])?;
    tokio::time::sleep(Duration::from_secs(3)).await; // what the job itself costs is in the figure before
    let before = dev.resident_bytes()?;
    let mut viewers = JoinSet::new();
    for _ in 0..VIEWERS {
        let request = browser.get(format!("{root}/executions/{id}/log/follow"));
        let answer = request.header(COOKIE, &cookie).header(ACCEPT, "text/event-stream").send().await?;
        ensure!(answer.status().is_success(), "{}", answer.status());
        viewers.spawn(async move {
            let mut bytes = 0;
            let mut events = std::pin::pin!(answer.bytes_stream());
            while let Some(Ok(some)) = events.next().await {
                bytes += some.len();
            }
            bytes
        });
    }
    let begun = Instant::now();
    let mut most = before;
    while begun.elapsed() < Duration::from_secs(10) {
        most = most.max(dev.resident_bytes()?);
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
    ensure!(viewers.try_join_next().is_none(), "a viewer's stream has ended");
    viewers.shutdown().await;
    let cost = (most - before) as f64 / MIB;
    println!("| {VIEWERS} open live logs, 1,000 lines a second each: memory | {cost:.0} MiB | ≤ 50 MiB |");
    admin.run(&["cancel", &id])?.expect(0)?;
    Ok(())
}

/// Has executions that wait.
async fn fill(admin: &Client<'_>) -> Result<()> {
    let text = std::fs::read_to_string(admin.config())?;
    let value = |key: &str| {
        let line = text.lines().find_map(|line| line.trim().strip_prefix(key)).with_context(|| format!("{key} in {text}"))?;
        Ok::<_, anyhow::Error>(line.trim().trim_matches(['"', '\'']).to_owned())
    };
    let (host, token) = (value("CP_HOST:")?, value("ACCESS_TOKEN:")?);
    let connection = Connection::open(&[Address::parse(&host)?], Some(&token), WITHIN).await?;
    let mut lanes = JoinSet::new();
    for lane in 0..LANES {
        let connection = connection.clone();
        let count = EXECUTIONS / LANES + usize::from(lane < EXECUTIONS % LANES);
        lanes.spawn(async move {
            for _ in 0..count {
                let id = ExecutionId::generate().to_string();
                let request = v1::ExecuteRequest { id, job: "parked".into(), ..Default::default() };
                // A caller who is asked to wait waits.
                while let Err(status) = connection.executions().execute(request.clone()).await {
                    ensure!(status.code() == tonic::Code::ResourceExhausted, "{status}");
                    tokio::time::sleep(Duration::from_millis(50)).await;
                }
            }
            Ok::<_, anyhow::Error>(())
        });
    }
    while let Some(done) = lanes.join_next().await {
        done??;
    }
    Ok(())
}
