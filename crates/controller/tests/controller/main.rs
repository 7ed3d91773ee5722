//! The controller as its clients meet it: over gRPC, on an embedded store in a folder of its own.

#![expect(clippy::unwrap_used, reason = "a test ends where it must not go on")]
#![expect(clippy::print_stderr, reason = "seeds and measurements are told to whoever runs a test")]

mod apply;
mod bad_input;
mod executing;
mod fake;
mod harness;
mod life;
mod logs;
mod permissions;
mod restart;
mod sessions;
mod shaky;
