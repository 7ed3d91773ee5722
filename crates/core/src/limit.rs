//! Limits that more than one part of Octavius holds to. Limits of one part stand beside its code.

/// Longest name of a job, catalogue or executor, in characters: what a Kubernetes label value can hold.
pub const NAME_CHARS: usize = 63;

/// Longest name of an argument or secret, in characters.
pub const VARIABLE_NAME_CHARS: usize = 128;

/// Largest value of one argument, in bytes. Linux takes 128 KiB per environment string; Kubernetes objects are much smaller.
pub const ARGUMENT_VALUE_BYTES: usize = 32 * 1024;

/// Largest sum of an execution's argument names and values, in bytes.
pub const ARGUMENTS_BYTES: usize = 256 * 1024;

/// Most arguments, and most secrets, that one job may declare.
pub const VARIABLES_PER_JOB: usize = 256;

/// Most labels of a job, of an executor, and of a job's choice of executors.
pub const LABELS: usize = 32;

/// Most groups whose members may approve a job's executions.
pub const APPROVAL_GROUPS: usize = 10;

/// Longest name of such a group, in bytes: it is kept with each execution.
pub const APPROVAL_GROUP_BYTES: usize = 128;

/// Most people who must approve an execution.
pub const APPROVAL_COUNT: u32 = 10;

/// Shortest time that a job may leave for its approvals.
pub const APPROVAL_VALID_MIN: std::time::Duration = std::time::Duration::from_secs(60);

/// Longest time that a job may leave for its approvals: they are somebody's word on what is as it was, and a request that is older is made anew.
pub const APPROVAL_VALID_MAX: std::time::Duration = std::time::Duration::from_secs(30 * 24 * 3600);

/// Most bytes of why somebody approves or rejects an execution.
pub const APPROVAL_REASON_BYTES: usize = 200;

/// Most orphans of an executor that are told by name; the others are counted.
pub const ORPHANS: usize = 20;

/// Largest job file, in bytes.
pub const JOB_FILE_BYTES: usize = 256 * 1024;

/// Largest catalogue: files.
pub const CATALOG_JOBS: usize = 10_000;

/// Largest catalogue: bytes of all its files.
pub const CATALOG_BYTES: usize = 32 * 1024 * 1024;

/// Deepest nesting of a job file.
pub const FILE_DEPTH: usize = 32;

/// Largest value under one key of the store, in bytes; larger things are split.
pub const STORED_VALUE_BYTES: usize = 64 * 1024;

/// Most log bytes kept for one attempt with an archive, where nothing else is said. Where a job prints more, the beginning and the end are
/// kept, about half of it each, and the cut is marked and counted.
pub const LOG_BYTES: u64 = 64 * 1024 * 1024;

/// The same without an archive: the store is no place for logs.
pub const LOG_BYTES_IN_STORE: u64 = 256 * 1024;

/// Least that a limit on an attempt's log may be.
pub const LOG_BYTES_MIN: u64 = 64 * 1024;

/// Shortest time that a job may have its logs kept for.
pub const LOG_KEPT_MIN: std::time::Duration = std::time::Duration::from_secs(3600);

/// Largest piece of a log that is appended at once, in bytes, and about the size of an object in the archive.
pub const LOG_PIECE_BYTES: usize = 4 * 1024 * 1024;

/// Most output that waits on an executor's disk until a controller has it, in bytes, where nothing else is said.
pub const SPOOL_BYTES: u64 = 256 * 1024 * 1024;

/// Least that this may be.
pub const SPOOL_BYTES_MIN: u64 = 16 * 1024 * 1024;

/// Most marks of time that go with one piece of a log: 20 KiB or so of a message.
pub const LOG_PIECE_MARKS: usize = 4096;
