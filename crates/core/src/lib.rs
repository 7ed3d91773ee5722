//! The domain of Octavius: identifiers, job definitions, arguments and their checks, the execution state machine, roles and
//! permissions. Nothing here does I/O or knows a transport, and times and randomness come in as values, so that all of it can be tested as
//! plain functions. The one exception is [`ExecutionId::generate`], which asks the clock and the operating system for a new id.

pub mod access;
pub mod argument;
pub mod check;
pub mod definition;
pub mod digest;
pub mod dispatch;
pub mod duration;
pub mod execution;
pub mod id;
pub mod key_id;
pub mod label;
pub mod limit;
pub mod log;
pub mod nearest;
pub mod schedule;
pub mod size;
pub mod timing;
pub mod token;
pub mod trace;
pub mod version;
pub mod wait;
pub mod webhook;

pub use access::{Permission, Principal, Role};
pub use definition::JobDefinition;
pub use digest::Digest;
pub use duration::HumanDuration;
pub use execution::{Execution, State};
pub use id::{CatalogName, ExecutionId, ExecutorId, JobName};
pub use jiff::Timestamp;
pub use key_id::KeyId;
pub use label::Labels;
pub use size::{ByteSize, SizeLimit};
pub use timing::Timing;
pub use trace::TraceContext;
pub use wait::Wait;
pub use webhook::WebhookEvent;
