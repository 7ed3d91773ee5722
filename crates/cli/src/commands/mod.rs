//! One module for each command: its flags, and what it does.

pub mod apply;
pub mod backup;
pub mod cancel;
pub mod completion;
pub mod config;
pub mod controller;
pub mod create;
pub mod demo;
pub mod describe;
pub mod dev;
pub mod diff;
pub mod execute;
pub mod executions;
pub mod executor;
pub mod executors;
pub mod getlogs;
pub mod history;
pub mod import;
pub mod list;
pub mod schema;
pub mod status;
pub mod tokens;
pub mod validate;
pub mod version;
pub mod whoami;
