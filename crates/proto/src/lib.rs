//! The wire format of Octavius: code generated from `/proto`, and its conversions to the domain. From the wire to the domain everything
//! is checked, and an error names the field; from the domain to the wire nothing can fail.

mod audit;
pub mod client;
mod convert;
mod fault;
pub mod json;
mod line;
pub mod pem;
pub mod tls;
pub mod trace;
pub mod words;

#[expect(missing_docs, clippy::all, clippy::pedantic, clippy::allow_attributes, reason = "generated code")]
mod generated {
    tonic::include_proto!("octavius.v1");
}

/// Messages, clients and servers of package `octavius.v1`.
pub mod v1 {
    pub use super::generated::*;
}

pub use audit::audit_json;
pub use convert::{
    InvalidField, definition, digest, ending, execution, execution_id, executor_id, fence, job_name, state, std_duration,
    timestamp, to_duration, to_execution, to_state, to_timestamp,
};
pub use fault::{DOMAIN, Fault, Violation, reason};

/// The protos' descriptors, for reflection and for tests that walk all RPCs.
pub const DESCRIPTORS: &[u8] = include_bytes!(concat!(env!("OUT_DIR"), "/descriptors.bin"));

/// Largest gRPC message that either side takes, in bytes: applies are cut to 1 MiB, a page of jobs stays below this.
pub const MAX_MESSAGE_BYTES: usize = 4 * 1024 * 1024;

/// The same for an append to a log: its bytes, and when they were printed.
pub const MAX_APPEND_BYTES: usize = octavius_core::limit::LOG_PIECE_BYTES + 1024 * 1024;

/// Bytes that may be under way before the other side has taken them. The protocol's own 64 KiB would hold up a page of jobs, or a piece of
/// a log, for a round trip or several.
pub const WINDOW_BYTES: u32 = 1024 * 1024;
