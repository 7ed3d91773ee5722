//! The harness of the whole-system tests and benchmarks: the real binary in real processes, each test in a folder and an environment of
//! its own, with waits that are bounded and say what they saw last.

pub mod browser;
pub mod caller;
mod certificates;
pub mod checker;
pub mod cluster;
pub mod collector;
mod etcd;
pub mod history;
pub mod jwt;
mod kubernetes;
mod machine;
pub mod printer;
mod process;
mod proxy;
mod random;
pub mod receiver;
mod s3;
pub mod workload;
mod world;

pub use certificates::{Authority, Days, PairFiles};
pub use etcd::{Etcd, EtcdOptions, free_ports, http_get};
pub use kubernetes::{
    Change, Component, Helm, Kubernetes, KubernetesExecutor, Namespace, Paused, Watch, deploy, executor_rules, image, objects,
};
pub use machine::Machine;
pub use process::{Daemon, Output, cpu_time};
pub use proxy::{Direction, Mode, Proxy};
pub use random::Random;
pub use s3::S3;
pub use world::{Client, Special, World};

use std::time::{Duration, Instant};

use anyhow::{Result, bail};

/// How long a test waits for what should happen at once. Generous: the machine may be busy with other tests.
pub const PATIENCE: Duration = Duration::from_secs(60);

/// Asks `look` again and again until it answers `Ok`; after [`PATIENCE`] fails with what it said last.
///
/// # Errors
/// Where the condition did not come true in time.
pub fn eventually<T>(what: &str, mut look: impl FnMut() -> Result<T>) -> Result<T> {
    let begun = Instant::now();
    let mut pause = Duration::from_millis(5);
    loop {
        match look() {
            Ok(found) => return Ok(found),
            Err(error) if begun.elapsed() > PATIENCE => bail!("{what}: not within {PATIENCE:?}; last seen: {error:#}"),
            Err(_) => std::thread::sleep(pause),
        }
        pause = (pause * 2).min(Duration::from_millis(200));
    }
}

/// Makes two tests of each function that is named, which takes a [`World`]: one on the embedded store, one on etcd.
#[macro_export]
macro_rules! on_every_store {
    ($($test:ident),+ $(,)?) => {
        mod embedded {
            $(#[test]
            fn $test() -> anyhow::Result<()> {
                super::$test(&$crate::World::new()?)
            })+
        }
        mod etcd {
            $(#[test]
            fn $test() -> anyhow::Result<()> {
                super::$test(&$crate::World::on_etcd()?)
            })+
        }
    };
}
