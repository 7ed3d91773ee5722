//! The controller as its clients meet it: over gRPC, on a store of its own.

#![expect(clippy::unwrap_used, reason = "a test ends where it must not go on")]
#![expect(clippy::print_stderr, reason = "seeds and measurements are told to whoever runs a test")]

mod apply;
mod backup;
mod bad_input;
mod catalogs;
mod executing;
mod fake;
mod harness;
mod keeping;
mod life;
mod logs;
mod meddling;
mod permissions;
mod restart;
mod sessions;
mod several;
mod shaky;
