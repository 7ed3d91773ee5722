//! The whole system, as its users meet it: the real binary, real processes, real files.

#![expect(clippy::unwrap_used, reason = "tests")]

mod apart;
mod browser;
mod browser_everywhere;
mod browser_page;
mod clocks;
mod comments;
mod demo;
mod etcd_3_6;
mod etcd_faults;
mod executor_faults;
mod faults;
mod gitops;
mod house;
mod image;
mod issuers;
mod kubernetes;
mod kubernetes_charts;
mod kubernetes_deploy;
mod kubernetes_faults;
mod kubernetes_inside;
mod kubernetes_jobs;
mod kubernetes_kills;
mod leaks;
mod log_faults;
mod logs;
mod main_job;
mod recipes;
mod release;
mod survival;
mod systemd;
mod tls;
mod traces;
mod upgrade;
mod webhooks;
