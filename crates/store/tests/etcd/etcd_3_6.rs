//! The same on etcd 3.6, which is recommended: other tests run on the one that the distribution has.

use octavius_tests::{Etcd, EtcdOptions};

use crate::conforms;

#[tokio::test(flavor = "multi_thread")]
async fn one_member_conforms() {
    conforms(&Etcd::start(&EtcdOptions::newer(1).unwrap()).unwrap()).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn three_members_conform() {
    conforms(&Etcd::start(&EtcdOptions::newer(3).unwrap()).unwrap()).await;
}
