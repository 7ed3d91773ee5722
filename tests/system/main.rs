//! The whole system, as its users meet it: the real binary, real processes, real files.

#![expect(clippy::unwrap_used, reason = "tests")]

mod apart;
mod demo;
mod etcd_3_6;
mod etcd_faults;
mod faults;
mod house;
mod kubernetes;
mod kubernetes_jobs;
mod main_job;
mod survival;
