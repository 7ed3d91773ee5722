//! A controller over an etcd, executors in a cluster, and who calls them.

use std::process::Stdio;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, ensure};
use octavius_core::ExecutionId;
use octavius_proto::client::{Address, Connection};
use octavius_proto::v1;
use octavius_tests::{Client, Daemon, Kubernetes, KubernetesExecutor, Namespace, World, eventually};
use serde_json::json;
use tokio::runtime::Runtime;
use tokio::task::JoinSet;

use crate::PATIENCE;

/// A controller, and an admin's connection to it.
pub(crate) struct House {
    world: World,
    _controller: Daemon,
    port: u16,
    runtime: Runtime,
    connection: Connection,
}

impl House {
    pub(crate) fn open() -> Result<Self> {
        let world = World::on_etcd()?;
        let image = Kubernetes::BUSYBOX;
        world.write("catalog/octavius.yaml", "catalog: bench\n")?;
        for (job, pool) in [("true-job", "run"), ("parked-job", "park")] {
            let text = format!("name: {job}\nimage_name: {image}\ncommand: [\"true\"]\nexecutor: {{pool: {pool}}}\n");
            world.write(&format!("catalog/{job}.yaml"), &text)?;
        }
        let (controller, port) = world.controller("store", 0)?;
        world.admin(port)?.run(&["apply", "catalog"])?.expect(0)?;
        let token = std::fs::read_to_string(world.path("admin.token"))?;
        let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build()?;
        let address = [Address::parse(&format!("127.0.0.1:{port}"))?];
        let connection = runtime.block_on(Connection::open(&address, Some(token.trim()), Duration::from_secs(10)))?;
        Ok(Self { world, _controller: controller, port, runtime, connection })
    }

    fn admin(&self) -> Result<Client<'_>> {
        self.world.admin(self.port)
    }

    /// Starts an executor for a pool. Pods of `park` ask for a node that is not there.
    pub(crate) fn executor(
        &self,
        namespace: &Namespace<'_>,
        pool: &str,
        capacity: u32,
    ) -> Result<(KubernetesExecutor<'_>, Daemon)> {
        let nodes = if pool == "park" { json!({"octavius.test/none": "here"}) } else { json!({}) };
        let settings = json!({
            "cp_host": format!("127.0.0.1:{}", self.port),
            "access_token": self.admin()?.registration()?,
            "labels": {"pool": pool},
            "capacity": capacity,
            "wait_for_resource_poll_count": 3600,
            "job_active_deadline_seconds": 0,
            "pod_template": {"spec": {"nodeSelector": nodes, "containers": []}},
        });
        let executor = KubernetesExecutor::new(&self.world, pool, namespace, &settings)?;
        let daemon = executor.start(&[])?;
        Ok((executor, daemon))
    }

    /// One `octavius execute true-job --wait`, as a process.
    pub(crate) fn one(&self) -> Result<Duration> {
        let client = self.admin()?;
        let mut command = client.command(&["execute", "true-job", "--wait"]);
        let begun = Instant::now();
        let status = command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null()).status()?;
        let elapsed = begun.elapsed();
        ensure!(status.success(), "{status}");
        Ok(elapsed)
    }

    /// Executions, submitted one after the other over one connection.
    pub(crate) fn submit(&self, job: &str, count: usize) -> Result<Vec<String>> {
        let mut executions = self.connection.executions();
        self.runtime.block_on(async {
            let mut ids = Vec::new();
            for _ in 0..count {
                let id = ExecutionId::generate().to_string();
                let request = v1::ExecuteRequest { id: id.clone(), job: job.to_owned(), ..Default::default() };
                executions.execute(request).await?;
                ids.push(id);
            }
            Ok(ids)
        })
    }

    /// From the first of many executions until a watch of each shows that it has succeeded.
    pub(crate) fn many(&self, count: usize) -> Result<Duration> {
        let begun = Instant::now();
        let ids = self.submit("true-job", count)?;
        self.runtime.block_on(async {
            let mut watches = JoinSet::new();
            for id in ids {
                let mut executions = self.connection.executions();
                watches.spawn(async move {
                    let mut changes = executions.watch_execution(v1::WatchExecutionRequest { id }).await?.into_inner();
                    loop {
                        let change = tokio::time::timeout(PATIENCE, changes.message()).await?;
                        let execution = change?.and_then(|change| change.execution).context("the watch has ended")?;
                        match execution.state() {
                            v1::ExecutionState::Succeeded => return Ok(()),
                            state @ (v1::ExecutionState::Failed | v1::ExecutionState::Lost | v1::ExecutionState::TimedOut) => {
                                anyhow::bail!("{state:?}")
                            }
                            _ => {}
                        }
                    }
                });
            }
            while let Some(watched) = watches.join_next().await {
                watched??;
            }
            anyhow::Ok(())
        })?;
        Ok(begun.elapsed())
    }

    /// Waits until so many executions are said to run.
    pub(crate) fn until_running(&self, count: usize) -> Result<()> {
        let client = self.admin()?;
        eventually("they run", || {
            let arguments = ["executions", "--state", "running", "--limit", "1000", "-o", "json"];
            let running = client.run(&arguments)?.expect(0)?.json()?;
            let found = running["executions"].as_array().context("no list")?.len();
            ensure!(found == count, "{found} of {count}");
            Ok(())
        })
    }
}
