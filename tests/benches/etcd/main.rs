//! The figures of a controller over a real etcd, beside what that etcd does with bare puts in the same run: `tests/bench` builds the release
//! binary and runs this. All calls here go through gRPC to a controller process; the executor is one that does nothing but report, so that
//! what is measured is the controller and its store.

#![expect(clippy::print_stdout, reason = "a benchmark prints its table")]

mod idle;
mod load;
mod raw;

use std::time::{Duration, Instant};

use anyhow::{Context as _, Result};
use octavius_proto::client::{Address, Connection};
use octavius_proto::v1;
use octavius_tests::{Daemon, Etcd, World, cpu_time};

/// Callers at once, for Octavius and for bare puts alike.
pub(crate) const CALLERS: usize = 64;

/// Connections that the callers share.
pub(crate) const CONNECTIONS: usize = 4;

/// Executions of one measured round.
const ROUND: usize = 10_000;

/// Rounds of the first row, where it is measured alone.
const ROUNDS_ALONE: usize = 7;

/// Executions that wait while the last rounds are measured.
const WAITING: usize = 100_000;

/// One execution at a time, handed to an idle executor.
const HANDED: usize = 1_000;

/// Executors with a session each, that do nothing but ping.
const PINGING: usize = 1_000;

/// For how long they are watched.
const WATCHED: Duration = Duration::from_secs(30);

/// A controller over an etcd, and an admin's connections to it.
pub(crate) struct House {
    pub(crate) etcd: Etcd,
    pub(crate) controller: Daemon,
    pub(crate) address: Address,
    pub(crate) connections: Vec<Connection>,
    _world: World,
}

impl House {
    async fn open() -> Result<Self> {
        let etcd = Etcd::single()?;
        let world = World::new()?;
        world.write(
            "controller_config.json",
            &format!("{{\"etcd_host\": \"127.0.0.1\", \"etcd_port\": {}, \"request_rate\": \"none\"}}", etcd.port(0)),
        )?;
        world.write("catalog/octavius.yaml", "catalog: bench\n")?;
        world.write("catalog/nothing.yaml", "name: nothing\ncommand: [/bin/true]\nexecutor: {pool: work}\n")?;
        world.write("catalog/parked.yaml", "name: parked\ncommand: [/bin/true]\nexecutor: {pool: nobody}\n")?;
        let (config, token) = (world.path("controller_config.json"), world.path("admin.token"));
        let (config, token) = (config.display().to_string(), token.display().to_string());
        let arguments = ["controller", "start", "--config", &config, "--store", "etcd", "--listen", "127.0.0.1:0"];
        let controller = world.daemon(arguments.into_iter().chain(["--bootstrap-token-file", &token]))?;
        let port: u16 = controller.ready.rsplit(':').next().and_then(|port| port.parse().ok()).context("no port")?;
        world.admin(port)?.run(&["apply", "catalog"])?.expect(0)?;
        let token = std::fs::read_to_string(world.path("admin.token"))?;
        let address = Address::parse(&format!("127.0.0.1:{port}"))?;
        let mut connections = Vec::new();
        for _ in 0..CONNECTIONS {
            connections.push(connect(&address, token.trim()).await?);
        }
        Ok(Self { etcd, controller, address, connections, _world: world })
    }

    /// A connection of a newly registered executor.
    pub(crate) async fn executor(&self, id: &str) -> Result<Connection> {
        let request = v1::CreateTokenRequest { role: v1::Role::Registration.into(), user: id.to_owned(), ..Default::default() };
        let made = self.connections[0].admin().create_token(request).await?.into_inner();
        let registration = connect(&self.address, &made.token).await?;
        let request = v1::RegisterExecutorRequest { id: id.to_owned(), ..Default::default() };
        let registered = registration.executors().register_executor(request).await?.into_inner();
        connect(&self.address, &registered.token).await
    }
}

async fn connect(address: &Address, token: &str) -> Result<Connection> {
    Ok(Connection::open(std::slice::from_ref(address), Some(token), Duration::from_secs(10)).await?)
}

fn main() -> Result<()> {
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build()?;
    if std::env::args().any(|argument| argument == "accepted") {
        return runtime.block_on(accepted_only());
    }
    let rows = runtime.block_on(measure())?;
    println!("\n| what | measured | beside it | ratio | must be |");
    println!("| --- | --- | --- | --- | --- |");
    rows.iter().for_each(|row| println!("{row}"));
    Ok(())
}

/// The first row alone, round by round, and where its processor time goes: for whoever works on it.
async fn accepted_only() -> Result<()> {
    let house = House::open().await?;
    let bare = raw::Puts::connect(&house.etcd).await?;
    let used = || -> Result<[f64; 3]> {
        let pids = [house.controller.pid(), house.etcd.pid(0)?, std::process::id()];
        let mut times = [0.0; 3];
        for (time, pid) in times.iter_mut().zip(pids) {
            *time = cpu_time(pid)?.as_secs_f64() * 1e6 / ROUND as f64;
        }
        Ok(times)
    };
    println!(
        "| bare puts/s | accepted/s | ratio | controller, µs each | etcd | callers | executions per proposal | a bare put: etcd | callers |"
    );
    println!("| --- | --- | --- | --- | --- | --- | --- | --- | --- |");
    for _ in 0..ROUNDS_ALONE {
        let start = used()?;
        let put = bare.rate(ROUND).await?;
        let (middle, proposed) = (used()?, house.etcd.proposals(0)?);
        let accepted = load::accepted(&house, "parked", ROUND).await?;
        let end = used()?;
        let [controller, etcd, callers] = [0, 1, 2].map(|who| end[who] - middle[who]);
        println!(
            "| {put:.0} | {accepted:.0} | {:.2} | {controller:.0} | {etcd:.0} | {callers:.0} | {:.1} | {:.0} | {:.0} |",
            accepted / put,
            ROUND as f64 / (house.etcd.proposals(0)? - proposed) as f64,
            middle[1] - start[1],
            middle[2] - start[2]
        );
    }
    Ok(())
}

async fn measure() -> Result<Vec<String>> {
    let mut rows = Vec::new();
    let house = House::open().await?;
    let bare = raw::Puts::connect(&house.etcd).await?;

    // In turn, so that both see the same machine; the median of three rounds each.
    let (mut puts, mut accepted, mut whole) = (Vec::new(), Vec::new(), Vec::new());
    for _ in 0..3 {
        puts.push(bare.rate(ROUND).await?);
        accepted.push(load::accepted(&house, "parked", ROUND).await?);
        let executor = load::Executor::begin(&house, "work", 256).await?;
        whole.push(load::whole(&house, &executor, ROUND).await?);
        executor.end().await;
    }
    let put = median(&mut puts);
    let (accepted, whole) = (median(&mut accepted), median(&mut whole));
    let beside = format!("bare etcd puts, {CALLERS} callers {put:.0}/s");
    rows.push(row("`Execute` accepted and durable, 64 callers", accepted, &beside, accepted / put, "≥ 0.6, aim 1.0"));
    rows.push(row(
        "whole executions, accepted to finished with one log segment",
        whole,
        &beside,
        whole / put,
        "≥ 0.12, aim 0.25",
    ));

    let executor = load::Executor::begin(&house, "work", 256).await?;
    let write = bare.alone(HANDED).await?;
    let handed = load::handed(&house, &executor, HANDED).await?;
    executor.end().await;
    let above = |at: Duration| at.saturating_sub(write).as_secs_f64() * 1000.0;
    rows.push(format!(
        "| accepted → handed to an idle executor, above one etcd write | median {:.1} ms, p99 {:.1} ms | one etcd put {:.2} ms | | ≤ 5 ms, ≤ 25 ms |",
        above(handed[handed.len() / 2]),
        above(handed[handed.len() * 99 / 100]),
        write.as_secs_f64() * 1000.0
    ));

    let (mut waiting, begun) = (3 * ROUND, Instant::now());
    while waiting < WAITING {
        load::accepted(&house, "parked", ROUND).await?;
        waiting += ROUND;
    }
    println!("{waiting} executions wait, after {:.0} s", begun.elapsed().as_secs_f64());
    let (mut puts, mut late_accepted, mut late_whole) = (Vec::new(), Vec::new(), Vec::new());
    for _ in 0..3 {
        puts.push(bare.rate(ROUND).await?);
        late_accepted.push(load::accepted(&house, "parked", ROUND / 2).await?);
        let executor = load::Executor::begin(&house, "work", 256).await?;
        late_whole.push(load::whole(&house, &executor, ROUND / 2).await?);
        executor.end().await;
    }
    let late_put = median(&mut puts);
    for (what, late, early) in
        [("accepted", median(&mut late_accepted), accepted), ("whole executions", median(&mut late_whole), whole)]
    {
        // Both are shares of what the etcd did with bare puts at the time.
        let ratio = (late / late_put) / (early / put);
        let beside = format!("{early:.0}/s before; bare puts {late_put:.0}/s now, {put:.0}/s then");
        rows.push(row(&format!("{what}, with 100,000 waiting"), late, &beside, ratio, "0.8 to 1.2"));
    }
    let mib = house.controller.resident_bytes()? as f64 / 1024.0 / 1024.0;
    rows.push(format!("| controller with 100,000 waiting executions, resident | {mib:.1} MiB | | | ≤ 100 MiB |"));
    drop(house);

    let house = House::open().await?;
    let idle = idle::watch(&house, PINGING, WATCHED).await?;
    rows.push(format!(
        "| {PINGING} executors pinging every 2 s: the controller's processor time | {:.1} % of a core | etcd {:.1} % | | ≤ 20 % |",
        idle.controller * 100.0,
        idle.etcd * 100.0
    ));
    rows.push(format!("| of these, writes through consensus per ping | {:.4} | | | 0 |", idle.writes_per_ping));
    Ok(rows)
}

fn median(values: &mut [f64]) -> f64 {
    values.sort_unstable_by(f64::total_cmp);
    values[values.len() / 2]
}

fn row(what: &str, rate: f64, beside: &str, ratio: f64, limit: &str) -> String {
    format!("| {what} | {rate:.0}/s | {beside} | {ratio:.2} | {limit} |")
}
