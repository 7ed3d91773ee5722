//! The controller: gRPC services, scheduling, logs and identity over a store. It holds no state of its own: what it keeps in memory is a
//! mirror of the store, so that any number of controllers serve one store, and a restart loses nothing.
//!
//! The way in is [`Controller::start`]. Inside, a call passes `auth` first, which gives it its place in the `audit` trail, then a service (`catalog_service`, `executions`, `logs`,
//! `executors`, `admin`); every step of an execution is one transaction of the `engine`; the `scheduler` hands out what waits to the
//! `fleet`, the `ticks` of schedules ask for executions by themselves, and the `reconcile` loop sees to what no event brings about.

mod admin;
mod answer;
mod archive;
mod audit;
mod auth;
mod awaiting;
mod backup;
mod catalog_service;
mod catalogs;
mod clock;
mod condition;
mod config;
mod definitions;
mod engine;
mod executions;
mod executors;
mod fault;
mod fleet;
mod heads;
mod issuers;
mod keeper;
mod limits;
mod listen;
mod logs;
mod losses;
mod metrics;
mod mirror;
#[cfg(test)]
mod model;
mod origins;
mod outbound;
mod page;
mod pattern;
mod pauses;
pub mod private;
mod queue;
mod random;
mod recent;
mod reconcile;
mod replies;
mod reruns;
mod room;
mod scheduler;
mod sealing;
mod server;
mod slices;
mod slots;
mod streams;
mod ticks;
mod tokens;
mod traced;
mod waiting;
mod webhooks;

pub use archive::{Archive, ArchiveError};
pub use audit::AuditExport;
pub use clock::Clock;
pub use config::ConfigError;
pub use issuers::IssuerConfig;
pub use keeper::Retention;
pub use limits::RequestLimits;
pub use listen::TlsFiles;
pub use octavius_page::OpenCode;
pub use page::PageListen;
pub use sealing::{Encryption, EncryptionKey, NotAKey, UsedKey, used_keys};
pub use server::{Controller, ControllerError, ControllerOptions};
pub use tokens::BootstrapError;
pub use webhooks::{WebhookConfig, WebhookSecrets};

/// This version, as `octavius version` and sessions tell it.
pub const VERSION: &str = env!("CARGO_PKG_VERSION");
