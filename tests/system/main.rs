//! The whole system, as its users meet it: the real binary, real processes, real files.

#![expect(clippy::unwrap_used, reason = "tests")]

mod apart;
mod clocks;
mod comments;
mod demo;
mod etcd_3_6;
mod etcd_faults;
mod faults;
mod gitops;
mod house;
mod kubernetes;
mod kubernetes_inside;
mod kubernetes_jobs;
mod kubernetes_kills;
mod main_job;
mod recipes;
mod survival;
