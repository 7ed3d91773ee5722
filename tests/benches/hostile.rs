//! What honest clients notice of hostile ones, measured on real processes: `tests/bench` builds the release binary and runs this. An honest client
//! asks who it is and runs a job, alone and beside each attack, from the same address; the attackers pause between two attacks, so that
//! what is measured beside stands right before.

#![expect(clippy::print_stdout, reason = "a benchmark prints its table")]

use std::future::poll_fn;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, ensure};
use octavius_core::ExecutionId;
use octavius_core::token::{Token, TokenKind};
use octavius_proto::client::{Address, Connection};
use octavius_proto::v1;
use octavius_tests::{Random, World};
use tokio::io::AsyncWriteExt as _;
use tokio::net::TcpStream;
use tokio::task::JoinSet;
use tokio_stream::StreamExt as _;
use tonic::body::Body;
use tonic::codegen::{Service as _, http};
use tonic::transport::{Channel, Endpoint};

/// Honest calls that are measured for each row, one after the other.
const CALLS: usize = 400;

/// Connections of one attacker.
const CONNECTIONS: usize = 8;

/// Longest that anything may take.
const WITHIN: Duration = Duration::from_secs(30);

fn main() -> Result<()> {
    tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build()?.block_on(run())
}

/// What stops an attack, and counts what it did.
#[derive(Clone, Default)]
struct Attack {
    over: Arc<AtomicBool>,
    done: Arc<AtomicU64>,
}

impl Attack {
    fn goes_on(&self) -> bool {
        !self.over.load(Ordering::Relaxed)
    }

    fn count(&self) {
        self.done.fetch_add(1, Ordering::Relaxed);
    }
}

async fn run() -> Result<()> {
    let world = World::new()?;
    world.write("catalog/octavius.yaml", "catalog: bench\n")?;
    world.write("catalog/parked.yaml", "name: parked\ncommand: [/bin/true]\nexecutor: {pool: nobody}\n")?;
    let (_controller, port) = world.controller("store", 0)?;
    let admin = world.admin(port)?;
    admin.run(&["apply", "catalog"])?.expect(0)?;
    let token = |user: &str| -> Result<String> {
        let made = admin.run(&["tokens", "create", "--role", "user", "--user", user])?.expect(0)?.stdout;
        Ok(made.trim().to_owned())
    };
    let address = Address::parse(&format!("127.0.0.1:{port}"))?;
    let honest = connect(&address, &token("ann")?).await?;
    let eve = token("eve")?;
    measure(&honest).await?; // what is cold is not measured

    println!(
        "\n| beside | honest calls: median, p99 | alone, just before | ratio: median, p99 | attacks in that time | must be |"
    );
    println!("| --- | --- | --- | --- | --- | --- |");
    for (name, kind) in [
        ("wrong tokens, 8 connections with 128 calls each", Kind::WrongTokens),
        ("calls of one user, as many as it can, 8 connections with 128 calls each", Kind::Calls),
        ("all the streams that one user can open, and tries of more", Kind::Streams),
        ("messages that are begun and never end", Kind::Halves),
        ("connections that say nothing", Kind::Silence),
    ] {
        let alone = measure(&honest).await?;
        let attack = Attack::default();
        let mut attackers = kind.begin(&address, &eve, &attack).await?;
        let (before, begun) = (attack.done.load(Ordering::Relaxed), Instant::now());
        let beside = measure(&honest).await?;
        let (done, took) = (attack.done.load(Ordering::Relaxed) - before, begun.elapsed());
        attack.over.store(true, Ordering::Relaxed);
        attackers.shutdown().await;
        println!(
            "| {name} | {:.2}, {:.2} ms | {:.2}, {:.2} ms | {:.2}, {:.2} | {done} in {:.1} s | ≤ 2 |",
            ms(beside.0),
            ms(beside.1),
            ms(alone.0),
            ms(alone.1),
            beside.0.as_secs_f64() / alone.0.as_secs_f64(),
            beside.1.as_secs_f64() / alone.1.as_secs_f64(),
            took.as_secs_f64(),
        );
    }
    Ok(())
}

fn ms(duration: Duration) -> f64 {
    duration.as_secs_f64() * 1000.0
}

async fn connect(address: &Address, token: &str) -> Result<Connection> {
    Ok(Connection::open(std::slice::from_ref(address), Some(token), WITHIN).await?)
}

/// Median and 99th percentile of what an honest client asks: who it is, and a job.
async fn measure(honest: &Connection) -> Result<(Duration, Duration)> {
    let mut times = Vec::new();
    for call in 0..CALLS {
        let begun = Instant::now();
        if call % 2 == 0 {
            honest.admin().who_am_i(v1::WhoAmIRequest {}).await?;
        } else {
            let id = ExecutionId::generate().to_string();
            let request = v1::ExecuteRequest { id, job: "parked".to_owned(), ..Default::default() };
            honest.executions().execute(request).await?;
        }
        times.push(begun.elapsed());
    }
    times.sort_unstable();
    Ok((times[times.len() / 2], times[times.len() * 99 / 100]))
}

#[derive(Clone, Copy)]
enum Kind {
    WrongTokens,
    Calls,
    Streams,
    Halves,
    Silence,
}

impl Kind {
    /// Begins an attack, and returns when it is in full swing.
    async fn begin(self, address: &Address, eve: &str, attack: &Attack) -> Result<JoinSet<()>> {
        let mut tasks = JoinSet::new();
        match self {
            Self::WrongTokens => {
                let mut random = Random::new(7);
                for _ in 0..CONNECTIONS {
                    let mut bytes = [0; 32];
                    bytes.chunks_mut(8).for_each(|chunk| chunk.copy_from_slice(&random.number().to_le_bytes()));
                    let wrong = Token::from_random(TokenKind::User, &bytes);
                    let stranger = connect(address, wrong.reveal()).await?;
                    for _ in 0..128 {
                        let (stranger, attack) = (stranger.clone(), attack.clone());
                        tasks.spawn(async move {
                            while attack.goes_on() {
                                let _ = stranger.admin().who_am_i(v1::WhoAmIRequest {}).await;
                                attack.count();
                            }
                        });
                    }
                }
            }
            Self::Calls => {
                for _ in 0..CONNECTIONS {
                    let connection = connect(address, eve).await?;
                    for _ in 0..128 {
                        let (connection, attack) = (connection.clone(), attack.clone());
                        tasks.spawn(async move {
                            while attack.goes_on() {
                                let _ = connection.admin().who_am_i(v1::WhoAmIRequest {}).await;
                                attack.count();
                            }
                        });
                    }
                }
            }
            Self::Streams => {
                let connection = connect(address, eve).await?;
                let id = ExecutionId::generate().to_string();
                let request = v1::ExecuteRequest { id: id.clone(), job: "parked".to_owned(), ..Default::default() };
                connection.executions().execute(request).await?;
                for _ in 0..CONNECTIONS {
                    let connection = connect(address, eve).await?;
                    for _ in 0..512 {
                        let (connection, attack, id) = (connection.clone(), attack.clone(), id.clone());
                        tasks.spawn(async move {
                            while attack.goes_on() {
                                let request = v1::WatchExecutionRequest { id: id.clone() };
                                let opened = connection.executions().watch_execution(request).await;
                                attack.count();
                                if let Ok(opened) = opened {
                                    let mut stream = opened.into_inner();
                                    while let Ok(Some(_)) = stream.message().await {}
                                }
                            }
                        });
                    }
                }
            }
            Self::Halves => {
                for _ in 0..CONNECTIONS {
                    let channel = Endpoint::from_shared(format!("http://{address}"))?.connect().await?;
                    for _ in 0..128 {
                        let (channel, token, attack) = (channel.clone(), eve.to_owned(), attack.clone());
                        tasks.spawn(async move {
                            let _ = half(channel, &token, &attack).await;
                        });
                    }
                }
            }
            Self::Silence => {
                for _ in 0..2000 {
                    let (host, attack) = (address.to_string(), attack.clone());
                    tasks.spawn(async move {
                        let Ok(mut stream) = TcpStream::connect(&host).await else { return };
                        attack.count();
                        let _ = stream.write_all(b"P").await;
                        let _ = stream.readable().await; // until it is closed
                    });
                }
            }
        }
        tokio::time::sleep(Duration::from_secs(2)).await; // until all of it has begun
        ensure!(!tasks.is_empty(), "nobody attacks");
        Ok(tasks)
    }
}

/// A call whose message is begun, and of which nothing more comes.
async fn half(mut channel: Channel, token: &str, attack: &Attack) -> Result<()> {
    let length = u32::try_from(octavius_proto::MAX_MESSAGE_BYTES)?.to_be_bytes();
    let begun = [&[0], &length[..], &[0x12; 1000]].concat();
    let pieces = tokio_stream::iter([Ok::<_, tonic::Status>(begun)]).chain(tokio_stream::pending());
    let request = http::Request::post("/octavius.v1.ExecutionService/Execute")
        .header("content-type", "application/grpc")
        .header("te", "trailers")
        .header("authorization", format!("Bearer {token}"))
        .body(Body::new(axum::body::Body::from_stream(pieces)))?;
    poll_fn(|context| channel.poll_ready(context)).await?;
    attack.count();
    channel.call(request).await.context("it was refused")?;
    Ok(())
}
