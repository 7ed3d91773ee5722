//! Faults at random: made, and ended after a while.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::Result;
use octavius_tests::cluster::{Cluster, Link, Part};
use octavius_tests::history::{History, What};
use octavius_tests::{Direction, Mode, Random};

/// Longest pause of a process, and longest silence of a network.
const LONG: Duration = Duration::from_secs(15);

/// Longest time without a quorum.
const NO_QUORUM: Duration = Duration::from_secs(8);

/// Faults that last at the same time.
const AT_ONCE: usize = 2;

/// A fault that lasts.
#[derive(Debug, Clone, PartialEq)]
enum Fault {
    Killed(Vec<Part>),
    Paused(Vec<Part>),
    Bad(Vec<Link>, Mode),
}

impl Fault {
    /// What the table at the end counts it as.
    fn kind(&self) -> String {
        let part = |parts: &[Part]| match parts {
            [Part::Controller(_)] => "controller",
            [Part::Executor(_)] => "executor",
            [Part::Member(_)] => "etcd member",
            _ => "etcd quorum",
        };
        let link = |links: &[Link]| match links {
            [Link::Clients(_), ..] => "clients - controllers",
            [Link::Executor(..), ..] => "executor - controllers",
            _ => "controller - etcd",
        };
        match self {
            Self::Killed(parts) => format!("{} killed", part(parts)),
            Self::Paused(parts) => format!("{} paused", part(parts)),
            Self::Bad(links, mode) => {
                let mode = match mode {
                    Mode::Pass => "reset once",
                    Mode::Latency(_) => "slow",
                    Mode::Blackhole(Direction::Both) => "silent",
                    Mode::Blackhole(_) => "silent one way",
                    Mode::Reset => "reset",
                    Mode::CutAfter(_) => "cut in the middle",
                };
                format!("{}: {mode}", link(links))
            }
        }
    }

    fn touches_etcd(&self) -> bool {
        match self {
            Self::Killed(parts) | Self::Paused(parts) => parts.iter().any(|part| matches!(part, Part::Member(_))),
            Self::Bad(links, _) => links.iter().any(|link| matches!(link, Link::Etcd(..))),
        }
    }

    /// Whether the store cannot be written while this lasts.
    fn takes_the_store(&self) -> bool {
        matches!(self, Self::Killed(parts) | Self::Paused(parts) if parts.len() > 1)
    }

    fn collides(&self, other: &Self) -> bool {
        if self.touches_etcd() && other.touches_etcd() {
            return true;
        }
        match (self, other) {
            (Self::Killed(one) | Self::Paused(one), Self::Killed(two) | Self::Paused(two)) => {
                one.iter().any(|part| two.contains(part))
            }
            (Self::Bad(one, _), Self::Bad(two, _)) => one.iter().any(|link| two.contains(link)),
            _ => false,
        }
    }
}

/// Makes faults and ends them.
#[derive(Debug)]
pub(crate) struct Faults {
    random: Random,
    history: Arc<History>,
    lasting: Vec<(Instant, Fault)>,
    next: Instant,
    /// How many there were, by kind.
    pub(crate) counts: BTreeMap<String, usize>,
}

impl Faults {
    pub(crate) fn new(random: Random, history: Arc<History>) -> Self {
        Self { random, history, lasting: Vec::new(), next: Instant::now(), counts: BTreeMap::new() }
    }

    /// Ends the faults that have lasted long enough, and makes a new one where it is time.
    pub(crate) fn step(&mut self, cluster: &mut Cluster) -> Result<()> {
        let now = Instant::now();
        while let Some(index) = self.lasting.iter().position(|(until, _)| *until <= now) {
            let (_, fault) = self.lasting.swap_remove(index);
            self.end(cluster, &fault)?;
        }
        for (part, said) in cluster.tend()? {
            self.history.fault(format!("{part:?} ended by itself: {said}"));
            let kind =
                if matches!(part, Part::Controller(_)) { "controller ended by itself" } else { "executor ended by itself" };
            *self.counts.entry(kind.to_owned()).or_default() += 1;
        }
        if now >= self.next {
            self.next = now + self.random.between(Duration::from_millis(300), Duration::from_secs(4));
            if self.lasting.len() < AT_ONCE {
                let (fault, time) = self.choose(cluster);
                if !self.lasting.iter().any(|(_, lasting)| lasting.collides(&fault)) {
                    self.begin(cluster, &fault)?;
                    self.lasting.push((now + time, fault));
                }
            }
        }
        Ok(())
    }

    /// Ends all faults.
    pub(crate) fn heal(&mut self, cluster: &mut Cluster) -> Result<()> {
        for (_, fault) in std::mem::take(&mut self.lasting) {
            self.end(cluster, &fault)?;
        }
        Ok(())
    }

    fn choose(&mut self, cluster: &Cluster) -> (Fault, Duration) {
        let random = &mut self.random;
        let shape = cluster.shape();
        let (controllers, executors, members) = (shape.controllers, shape.executors, shape.etcd.members);
        let part = match random.below(10) {
            0..4 => Part::Controller(random.below(controllers)),
            4..8 => Part::Executor(random.below(executors)),
            _ => Part::Member(random.below(members)),
        };
        match random.below(10) {
            0..3 => (Fault::Killed(vec![part]), random.between(Duration::ZERO, Duration::from_secs(4))),
            3..5 => (Fault::Paused(vec![part]), random.between(Duration::from_secs(1), LONG)),
            5 => {
                let spared = random.below(members);
                let most = (0..members).filter(|member| *member != spared).map(Part::Member).collect();
                let time = random.between(Duration::from_secs(1), NO_QUORUM);
                (if random.percent(50) { Fault::Paused(most) } else { Fault::Killed(most) }, time)
            }
            _ => {
                let links = self.links(controllers, executors, members);
                self.bad(links)
            }
        }
    }

    /// One link, or all of one side.
    fn links(&mut self, controllers: usize, executors: usize, members: usize) -> Vec<Link> {
        let random = &mut self.random;
        let (controller, executor) = (random.below(controllers), random.below(executors));
        let mut links: Vec<_> = match random.below(3) {
            0 => (0..controllers).map(Link::Clients).collect(),
            1 => (0..controllers).map(|controller| Link::Executor(executor, controller)).collect(),
            _ => (0..members).map(|member| Link::Etcd(controller, member)).collect(),
        };
        if random.percent(60) {
            links = vec![links[random.below(links.len())]];
        }
        links
    }

    fn bad(&mut self, links: Vec<Link>) -> (Fault, Duration) {
        let random = &mut self.random;
        let time = random.between(Duration::from_secs(1), LONG);
        let mode = match random.below(7) {
            0 | 1 => Mode::Blackhole(Direction::Both),
            2 => Mode::Blackhole(if random.percent(50) { Direction::ToServer } else { Direction::ToClient }),
            3 => Mode::Latency(random.between(Duration::from_millis(20), Duration::from_millis(300))),
            4 => Mode::Reset,
            5 => Mode::CutAfter(random.number() % 50_000),
            _ => Mode::Pass,
        };
        let time = if matches!(mode, Mode::Reset) { time.min(Duration::from_secs(5)) } else { time };
        (Fault::Bad(links, mode), time)
    }

    fn begin(&mut self, cluster: &mut Cluster, fault: &Fault) -> Result<()> {
        *self.counts.entry(fault.kind()).or_default() += 1;
        self.history.fault(format!("{fault:?}"));
        if fault.takes_the_store() {
            self.history.record(What::StoreAway);
        }
        match fault {
            Fault::Killed(parts) => parts.iter().try_for_each(|part| cluster.kill(*part))?,
            Fault::Paused(parts) => parts.iter().try_for_each(|part| cluster.pause(*part))?,
            Fault::Bad(links, mode) => {
                for link in links {
                    match mode {
                        Mode::Pass => cluster.link(*link).reset(),
                        mode => cluster.link(*link).set(*mode),
                    }
                }
            }
        }
        Ok(())
    }

    fn end(&mut self, cluster: &mut Cluster, fault: &Fault) -> Result<()> {
        self.history.fault(format!("over: {fault:?}"));
        match fault {
            Fault::Killed(parts) => parts.iter().try_for_each(|part| cluster.revive(*part))?,
            // It may have ended by itself meanwhile: then another is in its place.
            Fault::Paused(parts) => parts.iter().for_each(|part| drop(cluster.wake(*part))),
            Fault::Bad(links, _) => links.iter().for_each(|link| cluster.link(*link).set(Mode::Pass)),
        }
        if fault.takes_the_store() {
            self.history.record(What::StoreBack);
        }
        Ok(())
    }
}
