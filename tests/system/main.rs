//! The whole system, as its users meet it: the real binary, real processes, real files.

#![expect(clippy::unwrap_used, reason = "tests")]

mod apart;
mod demo;
mod house;
mod main_job;
mod survival;
