//! What webhooks cost, and how soon they are told: real processes, a receiver on loopback that checks each signature. `tests/bench` builds the
//! release binary and runs this.

#![expect(clippy::print_stdout, reason = "a benchmark prints its table")]

use std::os::unix::fs::PermissionsExt as _;
use std::time::{Duration, Instant};

use anyhow::{Result, ensure};
use octavius_core::ExecutionId;
use octavius_proto::client::{Address, Connection};
use octavius_proto::v1;
use octavius_tests::receiver::Receiver;
use octavius_tests::{Special, World};
use serde_json::json;
use tokio::task::JoinSet;

/// Executions that end one after the other, and those that end together.
const SINGLE: usize = 300;
const MANY: usize = 6_000;

/// Calls under way at the same time.
const LANES: usize = 64;

/// Longest that anything may take.
const WITHIN: Duration = Duration::from_secs(60);

const SECRET: &str = "whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw";

fn main() -> Result<()> {
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build()?;
    let receiver = Receiver::start(SECRET)?;
    let (with, without) = (World::new()?, World::new()?);
    let secret = with.write("conf/chat.secret", SECRET)?;
    std::fs::set_permissions(&secret, std::fs::Permissions::from_mode(0o600))?;
    let config =
        json!({"webhooks": [{"name": "chat", "url": receiver.url(), "secret_file": "chat.secret", "events": "finished"}]});
    let config = with.write("conf/controller_config.json", &config.to_string())?.display().to_string();
    let special = Special { variables: &[("OCTAVIUS_CONTROLLER_CONFIG", &config)], ..Special::default() };
    let (_telling, telling) = with.controller_with("store", 0, &special)?;
    let (_silent, silent) = without.controller("store", 0)?;
    for (world, port) in [(&with, telling), (&without, silent)] {
        world.write("catalog/octavius.yaml", "catalog: bench\n")?;
        world.write("catalog/parked.yaml", "name: parked\ncommand: [/bin/true]\nexecutor: {pool: nobody}\n")?;
        world.admin(port)?.run(&["apply", "catalog"])?.expect(0)?;
    }
    let token = |world: &World| std::fs::read_to_string(world.path("store/admin.token"));
    let telling = runtime.block_on(connect(telling, &token(&with)?))?;
    let silent = runtime.block_on(connect(silent, &token(&without)?))?;

    let mut times = runtime.block_on(one_by_one(&telling, &receiver))?;
    times.sort_unstable();
    let (median, p99) = (times[times.len() / 2], times[times.len() * 99 / 100]);
    // In turns, so that what else the machine does meets both.
    let (mut ended, mut told, mut alone) = (Vec::new(), Vec::new(), Vec::new());
    for _ in 0..3 {
        alone.push(runtime.block_on(together(&silent))?.as_secs_f64());
        let before = receiver.came()?.len();
        let begun = Instant::now();
        ended.push(runtime.block_on(together(&telling))?.as_secs_f64());
        wait_for(&receiver, before + MANY)?;
        told.push(begun.elapsed().as_secs_f64());
    }
    let rate = |times: &mut Vec<f64>| {
        times.sort_unstable_by(f64::total_cmp);
        MANY as f64 / times[1]
    };
    let (alone, ended, told) = (rate(&mut alone), rate(&mut ended), rate(&mut told));
    println!("\n| what | measured |");
    println!("| --- | --- |");
    let millis = |time: Duration| time.as_secs_f64() * 1000.0;
    println!("| a webhook is told, after an end was acknowledged: median, p99 | {:.1}, {:.1} ms |", millis(median), millis(p99));
    println!("| {MANY} ends at once, acknowledged a second, without webhooks | {alone:.0} |");
    println!("| the same with one that is told of each | {ended:.0} ({:.2} of that) |", ended / alone);
    println!("| and told | {told:.0} a second |");
    Ok(())
}

async fn connect(port: u16, token: &str) -> Result<Connection> {
    Ok(Connection::open(&[Address::parse(&format!("127.0.0.1:{port}"))?], Some(token.trim()), WITHIN).await?)
}

async fn submit(connection: &Connection) -> Result<String> {
    let id = ExecutionId::generate().to_string();
    let request = v1::ExecuteRequest { id: id.clone(), job: "parked".into(), ..Default::default() };
    connection.executions().execute(request).await?;
    Ok(id)
}

async fn end(connection: &Connection, id: String) -> Result<()> {
    connection.executions().cancel_execution(v1::CancelExecutionRequest { id }).await?;
    Ok(())
}

/// Waits until so many messages have come.
fn wait_for(receiver: &Receiver, count: usize) -> Result<()> {
    let begun = Instant::now();
    while receiver.count() < count {
        ensure!(begun.elapsed() < WITHIN, "{} of {count} have come", receiver.count());
        std::thread::sleep(Duration::from_micros(100));
    }
    receiver.came().map(drop)
}

async fn one_by_one(connection: &Connection, receiver: &Receiver) -> Result<Vec<Duration>> {
    let mut times = Vec::with_capacity(SINGLE);
    for _ in 0..SINGLE {
        let id = submit(connection).await?;
        let count = receiver.count();
        end(connection, id).await?;
        let ended = Instant::now();
        tokio::task::block_in_place(|| wait_for(receiver, count + 1))?;
        times.push(ended.elapsed());
    }
    Ok(times)
}

/// How long it takes until that many have ended, and all that was acknowledged.
async fn together(connection: &Connection) -> Result<Duration> {
    let mut ids = Vec::with_capacity(MANY);
    let mut lanes = JoinSet::new();
    for _ in 0..LANES {
        let connection = connection.clone();
        lanes.spawn(async move {
            let mut ids = Vec::new();
            for _ in 0..MANY / LANES + 1 {
                ids.push(submit(&connection).await?);
            }
            Ok::<_, anyhow::Error>(ids)
        });
    }
    while let Some(lane) = lanes.join_next().await {
        ids.extend(lane??);
    }
    ids.truncate(MANY);
    let begun = Instant::now();
    let mut lanes = JoinSet::new();
    for ids in ids.chunks(MANY.div_ceil(LANES)) {
        let (connection, ids) = (connection.clone(), ids.to_vec());
        lanes.spawn(async move {
            for id in ids {
                end(&connection, id).await?;
            }
            Ok::<_, anyhow::Error>(())
        });
    }
    while let Some(lane) = lanes.join_next().await {
        lane??;
    }
    Ok(begun.elapsed())
}
