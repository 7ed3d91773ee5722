//! The figures of logs: how quickly a large one goes through and comes back, what that costs, how soon a line is seen by those who follow.
//! `tests/bench` builds the release binary and runs this. One controller and one executor with the process runner, each a process, on loopback,
//! first on the embedded store, then on a real etcd, with an archive in a folder; who submits and follows is this program, over gRPC.
//!
//! `OCTAVIUS_BENCH_QUICK=1` makes everything small: whether it runs, not how quickly. `OCTAVIUS_BENCH_LOG_MIB` is the size of the large log. With
//! words from `bulk live readers` as arguments only these parts are measured, with `embedded` or `etcd` only on that store.

#![expect(clippy::print_stdout, reason = "a benchmark prints its table")]

mod bulk;
mod live;

use std::path::Path;
use std::time::Duration;

use anyhow::{Context as _, Result};
use octavius_core::ExecutionId;
use octavius_proto::client::{Address, Connection};
use octavius_proto::v1;
use octavius_tests::{Client, Daemon, Etcd, World, printer};

/// The program that the jobs run.
const PRINTER: &str = env!("CARGO_BIN_EXE_printer");

/// Connections that the followers share.
const CONNECTIONS: usize = 8;

/// How long a call may take to be made.
const CONNECT: Duration = Duration::from_secs(10);

/// How large everything is.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Sizes {
    /// Bytes of the large log.
    pub(crate) bulk: u64,
    /// Executions at once, each with a follower.
    pub(crate) executions: usize,
    /// How long they print.
    pub(crate) live: Duration,
    /// Followers of one execution.
    pub(crate) readers: usize,
    /// How long it prints.
    pub(crate) read: Duration,
}

impl Sizes {
    fn of_environment() -> Result<Self> {
        let quick = std::env::var_os("OCTAVIUS_BENCH_QUICK").is_some_and(|value| value != "0");
        let mut sizes = if quick {
            let time = Duration::from_secs(3);
            Self { bulk: 32 << 20, executions: 10, live: time, readers: 10, read: time }
        } else {
            let (live, read) = (Duration::from_secs(20), Duration::from_secs(10));
            Self { bulk: 1 << 30, executions: 200, live, readers: 100, read }
        };
        if let Ok(mib) = std::env::var("OCTAVIUS_BENCH_LOG_MIB") {
            sizes.bulk = mib.parse::<u64>().context("OCTAVIUS_BENCH_LOG_MIB")? << 20;
        }
        Ok(sizes)
    }
}

/// A controller and an executor, and an admin's connections.
pub(crate) struct House {
    // Parts end before what they lean on.
    pub(crate) executor: Daemon,
    pub(crate) controller: Daemon,
    pub(crate) connections: Vec<Connection>,
    port: u16,
    pub(crate) world: World,
    pub(crate) etcd: Option<Etcd>,
}

impl House {
    async fn open(store: &str, capacity: usize) -> Result<Self> {
        let etcd = (store == "etcd").then(Etcd::single).transpose()?;
        let world = etcd.as_ref().map_or_else(World::new, |etcd| World::over_etcd(&etcd.endpoints()))?.archiving();
        world.write("catalog/octavius.yaml", "catalog: bench\n")?;
        world.write("catalog/prints.yaml", &printer::job(Path::new(PRINTER), None))?;
        let (controller, port) = world.controller("store", 0)?;
        let admin = world.admin(port)?;
        admin.run(&["apply", "catalog"])?.expect(0)?;
        let executor = world.executor("e1", port, &admin.registration()?, u32::try_from(capacity)?)?;
        let token = std::fs::read_to_string(world.path("admin.token"))?;
        let address = [Address::parse(&format!("127.0.0.1:{port}"))?];
        let mut connections = Vec::new();
        for _ in 0..CONNECTIONS {
            connections.push(Connection::open(&address, Some(token.trim()), CONNECT).await?);
        }
        Ok(Self { executor, controller, connections, port, world, etcd })
    }

    /// The admin at a command line.
    pub(crate) fn client(&self) -> Result<Client<'_>> {
        self.world.admin(self.port)
    }

    /// Runs the job that prints what is said here.
    pub(crate) async fn print(&self, what: String) -> Result<String> {
        let request = v1::ExecuteRequest {
            id: ExecutionId::generate().to_string(),
            job: "prints".to_owned(),
            arguments: [("what".to_owned(), what)].into(),
            ..Default::default()
        };
        Ok(self.connections[0].executions().execute(request).await?.into_inner().id)
    }

    /// Waits until an execution has ended, well.
    pub(crate) async fn finished(&self, id: &str) -> Result<v1::Execution> {
        let request = v1::WatchExecutionRequest { id: id.to_owned() };
        let mut watch = self.connections[0].executions().watch_execution(request).await?.into_inner();
        while let Some(message) = watch.message().await? {
            let execution = message.execution.unwrap_or_default();
            if execution.finished_at.is_some() {
                anyhow::ensure!(execution.state() == v1::ExecutionState::Succeeded, "{execution:?}");
                return Ok(execution);
            }
        }
        anyhow::bail!("{id} is not watched any more")
    }
}

/// A row of the table.
pub(crate) struct Row {
    pub(crate) what: String,
    pub(crate) measured: String,
    pub(crate) aim: &'static str,
}

fn main() -> Result<()> {
    let sizes = Sizes::of_environment()?;
    let asked: Vec<String> = std::env::args().skip(1).filter(|argument| !argument.starts_with('-')).collect();
    let is_asked = |among: &[&str], name: &str| {
        let any = asked.iter().any(|word| among.contains(&word.as_str()));
        !any || asked.iter().any(|word| word == name)
    };
    let part = |name| is_asked(&["bulk", "live", "readers"], name);
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build()?;
    let mut rows = Vec::new();
    for store in ["embedded", "etcd"].into_iter().filter(|store| is_asked(&["embedded", "etcd"], store)) {
        let mut measured = runtime.block_on(async {
            let mut rows = Vec::new();
            if part("bulk") {
                rows.extend(bulk::measure(&House::open(store, 1).await?, &sizes).await?);
            }
            if part("live") {
                rows.extend(live::many(&House::open(store, sizes.executions).await?, &sizes).await?);
            }
            if part("readers") {
                rows.extend(live::readers(&House::open(store, 1).await?, &sizes).await?);
            }
            anyhow::Ok(rows)
        })?;
        rows.extend(measured.drain(..).map(|row| (store, row)));
    }
    println!("\n{}", machine());
    println!("| what | store | measured | must be |");
    println!("| --- | --- | --- | --- |");
    rows.iter().for_each(|(store, Row { what, measured, aim })| println!("| {what} | {store} | {measured} | {aim} |"));
    Ok(())
}

/// What this was measured on.
fn machine() -> String {
    let read = |path: &str| std::fs::read_to_string(path).unwrap_or_default();
    let field = |text: &str, name: &str| {
        let line = text.lines().find(|line| line.starts_with(name))?;
        Some(line.split_once(':')?.1.trim().to_owned())
    };
    let cores = std::thread::available_parallelism().map_or(0, std::num::NonZero::get);
    let model = field(&read("/proc/cpuinfo"), "model name").unwrap_or_else(|| "unknown".to_owned());
    let memory = field(&read("/proc/meminfo"), "MemTotal").unwrap_or_default();
    format!("{cores} cores ({model}), {memory} of memory, Linux {}", read("/proc/sys/kernel/osrelease").trim())
}

pub(crate) fn mib(bytes: u64) -> f64 {
    bytes as f64 / 1024.0 / 1024.0
}

pub(crate) fn ms(time: Duration) -> f64 {
    time.as_secs_f64() * 1000.0
}
