//! The main job on etcd 3.6, which is recommended: other tests run on the one that the distribution has.

use anyhow::Result;
use octavius_tests::{Etcd, EtcdOptions, World};

#[test]
fn controller_and_executor_do_the_main_job() -> Result<()> {
    let etcd = Etcd::start(&EtcdOptions::newer(3)?)?;
    crate::apart::a_controller_and_an_executor_started_apart_do_the_main_job(&World::over_etcd(&etcd.endpoints())?)
}
