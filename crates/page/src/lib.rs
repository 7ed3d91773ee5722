//! The web page, for people who do not live in a terminal: the catalogue with forms, executions and their logs, approvals, executors,
//! revisions and the audit trail. It has no door of its own into the controller: for everything that it shows or does it makes the same
//! calls as the command line, with the visitor's session as the bearer, so that permissions, limits and the audit trail are those of gRPC.
//! It works without script; script adds what changes by itself.

mod app;
mod approvals;
mod assets;
mod audit;
mod catalog;
mod execution;
mod executions;
mod executors;
mod form;
mod headers;
mod job;
mod log;
mod provider;
mod revisions;
mod rpcs;
mod session;
mod shell;
mod show;
mod trouble;
mod turns;

pub use app::{OpenCode, PageOptions, router};
pub use provider::{Asked, Provider, ProviderError};
pub use rpcs::{BoxError, Rpcs};
