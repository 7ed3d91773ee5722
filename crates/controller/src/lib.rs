//! The controller: gRPC services, scheduling, logs and identity over a store. It holds no state of its own: what it keeps in memory is a
//! mirror of the store, so that any number of controllers serve one store, and a restart loses nothing.
//!
//! The way in is [`Controller::start`]. Inside, a call passes `auth` first, then a service (`catalog_service`, `executions`, `logs`,
//! `executors`, `admin`); every step of an execution is one transaction of the `engine`; the `scheduler` hands out what waits to the
//! `fleet`, and the `reconcile` loop sees to what no event brings about.

mod admin;
mod auth;
mod backup;
mod catalog_service;
mod catalogs;
mod definitions;
mod engine;
mod executions;
mod executors;
mod fault;
mod fleet;
mod heads;
mod keeper;
mod logs;
mod losses;
mod mirror;
mod origins;
mod queue;
mod random;
mod recent;
mod reconcile;
mod replies;
mod room;
mod scheduler;
mod server;
mod slices;
mod streams;
mod tokens;

pub use keeper::Retention;
pub use server::{Controller, ControllerError, ControllerOptions};
pub use tokens::BootstrapError;

/// This version, as `octavius version` and sessions tell it.
pub const VERSION: &str = env!("CARGO_PKG_VERSION");
