//! Places at which a test makes Octavius fail: the process ends, is paused, or an answer is lost, at the n-th time that it comes by.
//!
//! Only a build with the feature `armed` has them; in every other one the functions here are empty, and the variable is not read: nobody
//! should be able to end a controller of ours by its environment. Which place fails, and how, is in the variable [`VARIABLE`]:
//!
//! ```text
//! OCTAVIUS_FAILPOINT=store.commit.done=kill@3,reply.execute=drop
//! ```
//!
//! | action | what happens |
//! | --- | --- |
//! | `kill` | the process ends at once, as with `kill -9` |
//! | `stop` | the process is paused, as with `kill -STOP`; whoever tests wakes it with `kill -CONT` |
//! | `drop` | the answer is lost: what was asked for is done, the caller hears that nothing came back; only where [`Point::can_drop`] |
//! | `delay:MS` | the thread that came by sleeps for so many milliseconds |
//!
//! `@N` means the N-th time, the first where it is not given. Each happens once in the life of a process, and is told on stderr in a line
//! that begins with [`FIRED`].

#[cfg(feature = "armed")]
mod armed;
mod plan;

pub use plan::{Action, Planned, WrongPlan};

/// The environment variable that says what fails.
pub const VARIABLE: &str = "OCTAVIUS_FAILPOINT";

/// How the line on stderr begins that tells that a point has failed; the point's name follows.
pub const FIRED: &str = "failpoint reached: ";

/// Which process comes by a point.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Process {
    /// The controller.
    Controller,
    /// The executor.
    Executor,
}

/// A place in the code at which a test can make it fail.
#[derive(Debug, PartialEq, Eq, Hash)]
pub struct Point {
    /// Its name, as the variable has it.
    pub name: &'static str,
    /// Who comes by it.
    pub process: Process,
    /// Whether there is an answer here that can be lost.
    pub can_drop: bool,
}

macro_rules! points {
    ($($(#[$doc:meta])* $constant:ident = $name:literal, $process:ident, $can_drop:literal;)*) => {
        $($(#[$doc])* pub static $constant: Point = Point { name: $name, process: Process::$process, can_drop: $can_drop };)*

        /// Every point.
        pub static POINTS: &[&Point] = &[$(&$constant),*];
    };
}

points! {
    /// Before a transaction goes to the store.
    STORE_COMMIT = "store.commit", Controller, false;
    /// After a transaction was done, before anyone knows.
    STORE_COMMIT_DONE = "store.commit.done", Controller, true;
    /// An execution was accepted, and the client has no answer yet.
    REPLY_EXECUTE = "reply.execute", Controller, true;
    /// A request to cancel was noted, and the client has no answer yet.
    REPLY_CANCEL = "reply.cancel", Controller, true;
    /// A catalogue was applied, and the client has no answer yet.
    REPLY_APPLY = "reply.apply", Controller, true;
    /// A step of an attempt was taken down, and the executor has no answer yet.
    REPLY_REPORT = "reply.report", Controller, true;
    /// Bytes of a log were taken, and the executor has no answer yet.
    REPLY_APPEND_LOG = "reply.append-log", Controller, true;
    /// Before an object of a log goes into the archive.
    ARCHIVE_PUT = "archive.put", Controller, false;
    /// An object is in the archive, and no record names it yet.
    ARCHIVE_PUT_DONE = "archive.put.done", Controller, false;
    /// An executor's presence was announced, and it has not been welcomed yet.
    SESSION_ANNOUNCED = "session.announced", Controller, false;
    /// An execution was claimed for an executor that has not been told yet.
    ASSIGN = "assign", Controller, false;
    /// An executor was told of an assignment.
    ASSIGN_TOLD = "assign.told", Controller, false;
    /// Before each batch of blobs, of which an apply writes the most.
    APPLY_BLOBS = "apply.blobs", Controller, false;
    /// All blobs of an apply are there, and the head has not moved yet.
    APPLY_HEAD = "apply.head", Controller, false;
    /// An assignment was received, and nothing has been made of it.
    EXECUTOR_ASSIGNED = "executor.assigned", Executor, false;
    /// Before an attempt is reported as starting.
    EXECUTOR_STARTING = "executor.starting", Executor, false;
    /// An attempt was reported as starting, and has not been started.
    EXECUTOR_STARTING_TOLD = "executor.starting.told", Executor, false;
    /// The shim of an attempt was started, or its Kubernetes Job was resumed.
    EXECUTOR_STARTED = "executor.started", Executor, false;
    /// A job is over, and the rest of its log has not been sent.
    EXECUTOR_OVER = "executor.over", Executor, false;
    /// The whole log was sent, and the outcome has not been reported.
    EXECUTOR_LOG_SENT = "executor.log-sent", Executor, false;
    /// The outcome was reported, and the run folder is still there.
    EXECUTOR_REPORTED = "executor.reported", Executor, false;
    /// A suspended Kubernetes Job was created, and nothing of it is written down here.
    EXECUTOR_JOB_CREATED = "executor.job-created", Executor, false;
    /// The Kubernetes Job of an attempt that is over was deleted, and the run folder is still there.
    EXECUTOR_JOB_DELETED = "executor.job-deleted", Executor, false;
}

/// The point of this name.
#[must_use]
pub fn find(name: &str) -> Option<&'static Point> {
    POINTS.iter().copied().find(|point| point.name == name)
}

/// Reads [`VARIABLE`]. To be called before anything else by each process that has points.
///
/// # Errors
/// Where it names a point that is not there, or asks for what cannot be: the process must not begin then, or a test would pass that tested
/// nothing. Without the feature `armed` never.
pub fn arm() -> Result<(), WrongPlan> {
    #[cfg(feature = "armed")]
    armed::arm()?;
    Ok(())
}

/// Comes by a point: fails here if that was asked for.
#[inline]
pub fn reach(point: &'static Point) {
    let _ = is_lost(point); // a plan drops only where an answer can be lost, and those places ask
}

/// Comes by a point at which there is an answer, and says whether that answer is lost now.
#[inline]
#[must_use]
pub fn is_lost(point: &'static Point) -> bool {
    #[cfg(feature = "armed")]
    let lost = armed::reach(point);
    #[cfg(not(feature = "armed"))]
    let lost = {
        let _ = point;
        false
    };
    lost
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_point_is_found_by_its_name() {
        for point in POINTS {
            assert_eq!(find(point.name), Some(*point));
        }
        let mut names: Vec<_> = POINTS.iter().map(|point| point.name).collect();
        names.sort_unstable();
        names.dedup();
        assert_eq!(names.len(), POINTS.len(), "two points of one name");
    }

    #[test]
    fn nothing_fails_where_nothing_was_asked_for() {
        arm().unwrap();
        for point in POINTS {
            reach(point);
            assert!(!is_lost(point));
        }
    }
}
