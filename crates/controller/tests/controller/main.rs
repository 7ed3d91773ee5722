//! The controller as its clients meet it: over gRPC, on a store of its own.

#![expect(clippy::unwrap_used, reason = "a test ends where it must not go on")]
#![expect(clippy::print_stderr, reason = "seeds and measurements are told to whoever runs a test")]

mod alerts;
mod apply;
mod approvals;
mod archiving;
mod audit;
mod backup;
mod bad_input;
mod browsers;
mod catalogs;
mod condition;
mod executing;
mod fake;
mod harness;
mod hostile;
mod issuers;
mod keeping;
mod life;
mod limits;
mod logs;
mod meddling;
mod operators;
mod page;
mod permissions;
mod reruns;
mod restart;
mod schedules;
mod sealing;
mod sessions;
mod several;
mod shaky;
mod strangers;
mod tls;
mod tokens;
mod waiting;
mod webhooks;
