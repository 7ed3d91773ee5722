//! Several controllers over an etcd of several members, and executors, with a proxy between any two of them: whatever can fail, a test can
//! make fail.

use std::sync::Arc;

use anyhow::{Context as _, Result};
use rustix::process::Signal;

use crate::caller::{Caller, Tags};
use crate::etcd::{Etcd, EtcdOptions, free_ports};
use crate::history::History;
use crate::process::Daemon;
use crate::proxy::Proxy;
use crate::workload::Workload;
use crate::world::{Special, World};

/// How many of what.
#[derive(Debug, Clone)]
pub struct Shape {
    /// Controllers.
    pub controllers: usize,
    /// Executors.
    pub executors: usize,
    /// How many executions each executor runs at once.
    pub capacity: u32,
    /// The etcd beneath.
    pub etcd: EtcdOptions,
    /// How many times as fast all timing is.
    pub faster: u32,
    /// How many jobs of the catalogue nobody runs.
    pub idle_jobs: usize,
    /// Whether its controllers have an archive of logs.
    pub archive: bool,
    /// More environment variables for all daemons.
    pub variables: Vec<(&'static str, &'static str)>,
}

impl Shape {
    /// So many controllers and executors over one member of etcd, 20 times as fast.
    #[must_use]
    pub fn small(controllers: usize, executors: usize) -> Self {
        Self {
            controllers,
            executors,
            capacity: 4,
            etcd: EtcdOptions::new(1),
            faster: 20,
            idle_jobs: 3,
            archive: false,
            variables: Vec::new(),
        }
    }

    /// The same over so many members.
    #[must_use]
    pub fn members(self, members: usize) -> Self {
        Self { etcd: EtcdOptions::new(members), ..self }
    }
}

/// A process that can be killed, paused and started again.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Part {
    /// A controller.
    Controller(usize),
    /// An executor.
    Executor(usize),
    /// A member of the etcd.
    Member(usize),
}

/// Two sides with a proxy between them.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Link {
    /// Between the clients and a controller.
    Clients(usize),
    /// Between an executor and a controller.
    Executor(usize, usize),
    /// Between a controller and a member of the etcd.
    Etcd(usize, usize),
}

/// The whole system, all of it real.
#[derive(Debug)]
pub struct Cluster {
    /// The jobs that it runs.
    pub workload: Workload,
    shape: Shape,
    ports: Vec<u16>,
    token: String,
    registrations: Vec<String>,
    // Parts end before what they lean on.
    executors: Vec<Option<Daemon>>,
    controllers: Vec<Option<Daemon>>,
    fronts: Vec<Vec<Proxy>>,
    backs: Vec<Vec<Proxy>>,
    /// The folder and the environment of its processes.
    pub world: World,
    /// The etcd.
    pub etcd: Etcd,
}

impl Cluster {
    /// Starts everything, applies the workload's catalogue as `tag`, and waits until all of it is ready.
    ///
    /// # Errors
    /// Where a part does not get ready.
    pub fn start(shape: Shape, tag: &str) -> Result<Self> {
        let etcd = Etcd::start(&shape.etcd)?;
        let world = World::over_etcd(&etcd.endpoints())?.faster(shape.faster).variable("OCTAVIUS_LOG_LEVEL", "warn");
        let world = if shape.archive { world.archiving() } else { world };
        let world = shape.variables.iter().fold(world, |world, (name, value)| world.variable(name, value));
        let workload = Workload::new(&world.write("ledger", "")?, shape.idle_jobs);
        let members = 0..shape.etcd.members;
        let back = |_| members.clone().map(|member| Proxy::before(etcd.port(member))).collect::<Result<Vec<_>>>();
        let backs = (0..shape.controllers).map(back).collect::<Result<Vec<_>>>()?;
        let ports = free_ports(shape.controllers)?;
        let front = |_| ports.iter().map(|port| Proxy::before(*port)).collect::<Result<Vec<_>>>();
        let fronts = (0..=shape.executors).map(front).collect::<Result<Vec<_>>>()?;
        let controllers = (0..shape.controllers).map(|_| None).collect();
        let executors = (0..shape.executors).map(|_| None).collect();
        let (token, registrations) = (String::new(), Vec::new());
        let mut cluster =
            Self { workload, shape, ports, token, registrations, executors, controllers, fronts, backs, world, etcd };
        for index in 0..cluster.shape.controllers {
            cluster.start_controller(index, &[], false)?;
        }
        cluster.token = std::fs::read_to_string(cluster.world.path("admin.token"))?.trim().to_owned();
        let admin = cluster.world.admin(cluster.ports[0])?;
        cluster.registrations = (0..cluster.shape.executors).map(|_| admin.registration()).collect::<Result<_>>()?;
        let applied = runtime()?.block_on(async {
            let (history, tags) = (Arc::default(), Tags::default());
            cluster.caller(0, &history, &tags)?.apply(&cluster.workload, tag).await
        });
        anyhow::ensure!(applied?, "the catalogue was not applied");
        for index in 0..cluster.shape.executors {
            cluster.start_executor(index, &[], false)?;
        }
        Ok(cluster)
    }

    /// What it consists of.
    #[must_use]
    pub fn shape(&self) -> &Shape {
        &self.shape
    }

    /// A client of all controllers that begins with the one of index `first`.
    ///
    /// # Errors
    /// Never: the addresses are right.
    pub fn caller(&self, first: usize, history: &Arc<History>, tags: &Tags) -> Result<Caller> {
        let addresses: Vec<_> = self.fronts[0].iter().map(|proxy| proxy.address().to_string()).collect();
        Caller::new(&addresses, first, &self.token, history, tags)
    }

    /// Where a controller itself listens.
    #[must_use]
    pub fn port(&self, controller: usize) -> u16 {
        self.ports[controller]
    }

    /// The proxy between two sides.
    #[must_use]
    pub fn link(&self, link: Link) -> &Proxy {
        match link {
            Link::Clients(controller) => &self.fronts[0][controller],
            Link::Executor(executor, controller) => &self.fronts[executor + 1][controller],
            Link::Etcd(controller, member) => &self.backs[controller][member],
        }
    }

    /// Every pair of sides.
    #[must_use]
    pub fn links(&self) -> Vec<Link> {
        let Shape { controllers, executors, .. } = self.shape;
        let members = self.shape.etcd.members;
        let all = (0..controllers).flat_map(|controller| {
            let executors = (0..executors).map(move |executor| Link::Executor(executor, controller));
            let members = (0..members).map(move |member| Link::Etcd(controller, member));
            std::iter::once(Link::Clients(controller)).chain(executors).chain(members)
        });
        all.collect()
    }

    /// Starts a controller, with these variables.
    ///
    /// # Errors
    /// Where it cannot be started, or is waited for and does not get ready.
    pub fn start_controller(&mut self, index: usize, variables: &[(&str, &str)], unattended: bool) -> Result<()> {
        let etcd: Vec<_> = self.backs[index].iter().map(|proxy| proxy.address().to_string()).collect();
        let special = Special { variables, etcd: Some(&etcd.join(",")), unattended };
        let (daemon, _) = self.world.controller_with(&format!("c{index}"), self.ports[index], &special)?;
        self.controllers[index] = Some(daemon);
        Ok(())
    }

    /// Starts an executor, with these variables.
    ///
    /// # Errors
    /// Where it cannot be started, or is waited for and does not get ready.
    pub fn start_executor(&mut self, index: usize, variables: &[(&str, &str)], unattended: bool) -> Result<()> {
        let hosts: Vec<_> = self.fronts[index + 1].iter().map(|proxy| proxy.address().to_string()).collect();
        let special = Special { variables, etcd: None, unattended };
        let (id, token, capacity) = (format!("e{index}"), &self.registrations[index], self.shape.capacity);
        let daemon = self.world.executor_of(&id, &hosts.join(","), token, capacity, &special)?;
        self.executors[index] = Some(daemon);
        Ok(())
    }

    /// A controller or executor that runs.
    ///
    /// # Errors
    /// Where it does not run, or is neither.
    pub fn daemon(&mut self, part: Part) -> Result<&mut Daemon> {
        let daemon = match part {
            Part::Controller(index) => self.controllers[index].as_mut(),
            Part::Executor(index) => self.executors[index].as_mut(),
            Part::Member(_) => None,
        };
        daemon.with_context(|| format!("{part:?} does not run"))
    }

    /// Takes a controller or executor out, to be asked for its last words; another can then be started in its place.
    pub fn take(&mut self, part: Part) -> Option<Daemon> {
        match part {
            Part::Controller(index) => self.controllers[index].take(),
            Part::Executor(index) => self.executors[index].take(),
            Part::Member(_) => None,
        }
    }

    /// The last words of every controller and executor that runs, for the message of a test that fails.
    #[must_use]
    pub fn said(&self) -> String {
        let controllers = self.controllers.iter().enumerate().map(|(index, daemon)| (Part::Controller(index), daemon));
        let executors = self.executors.iter().enumerate().map(|(index, daemon)| (Part::Executor(index), daemon));
        let mut text = String::new();
        for (part, daemon) in controllers.chain(executors) {
            let said = daemon.as_ref().map_or_else(|| "does not run".to_owned(), Daemon::said);
            let from = said.lines().count().saturating_sub(10);
            text.push_str(&format!("{part:?} says:\n"));
            said.lines().skip(from).for_each(|line| text.push_str(&format!("  {line}\n")));
        }
        text
    }

    /// Kills a part, as `kill -9` does.
    ///
    /// # Errors
    /// Where that fails.
    pub fn kill(&mut self, part: Part) -> Result<()> {
        match part {
            Part::Member(index) => self.etcd.kill(index),
            Part::Controller(_) | Part::Executor(_) => self.take(part).map_or(Ok(()), Daemon::kill),
        }
    }

    /// Starts a part again; does not wait until it is ready.
    ///
    /// # Errors
    /// Where it cannot be started.
    pub fn revive(&mut self, part: Part) -> Result<()> {
        match part {
            Part::Member(index) => self.etcd.revive(index),
            Part::Controller(index) => self.start_controller(index, &[], true),
            Part::Executor(index) => self.start_executor(index, &[], true),
        }
    }

    /// Pauses a part.
    ///
    /// # Errors
    /// Where it does not run.
    pub fn pause(&mut self, part: Part) -> Result<()> {
        self.signal(part, Signal::STOP)
    }

    /// Wakes a part that was paused.
    ///
    /// # Errors
    /// Where it does not run.
    pub fn wake(&mut self, part: Part) -> Result<()> {
        self.signal(part, Signal::CONT)
    }

    fn signal(&mut self, part: Part, signal: Signal) -> Result<()> {
        match part {
            Part::Member(index) => self.etcd.signal(index, signal),
            Part::Controller(_) | Part::Executor(_) => self.daemon(part)?.signal(signal),
        }
    }

    /// Starts again, as a service manager would, what has ended without being killed; returns what that was, and its last words.
    ///
    /// # Errors
    /// Where something cannot be started.
    pub fn tend(&mut self) -> Result<Vec<(Part, String)>> {
        let controllers = (0..self.controllers.len()).map(Part::Controller);
        let parts: Vec<_> = controllers.chain((0..self.executors.len()).map(Part::Executor)).collect();
        let mut ended = Vec::new();
        for part in parts {
            let Ok(daemon) = self.daemon(part) else { continue };
            if !daemon.is_running()? {
                let said = daemon.said();
                let last: Vec<_> = said.lines().rev().take(3).collect();
                ended.push((part, last.into_iter().rev().collect::<Vec<_>>().join(" | ")));
                self.revive(part)?;
            }
        }
        Ok(ended)
    }
}

/// A runtime for clients that are used from a test without one.
///
/// # Errors
/// Where there are no threads.
pub fn runtime() -> Result<tokio::runtime::Runtime> {
    Ok(tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build()?)
}
