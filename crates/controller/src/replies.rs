//! Where a test makes a reply get lost: what was asked for is done, and the caller hears that nobody answered.

use octavius_failpoint::{Point, REPLY_APPEND_LOG, REPLY_APPLY, REPLY_CANCEL, REPLY_EXECUTE, REPLY_REPORT, is_lost};
use tonic::Status;
use tonic::body::Body;

fn point(path: &str) -> Option<&'static Point> {
    match path {
        "/octavius.v1.ExecutionService/Execute" => Some(&REPLY_EXECUTE),
        "/octavius.v1.ExecutionService/CancelExecution" => Some(&REPLY_CANCEL),
        "/octavius.v1.CatalogService/Apply" => Some(&REPLY_APPLY),
        "/octavius.v1.ExecutorService/ReportExecution" => Some(&REPLY_REPORT),
        "/octavius.v1.LogService/AppendLog" => Some(&REPLY_APPEND_LOG),
        _ => None,
    }
}

/// The reply to a call of `path`, or what the caller hears of one that a test has dropped.
pub(crate) fn send(path: &str, reply: http::Response<Body>) -> http::Response<Body> {
    if point(path).is_some_and(is_lost) { Status::unavailable("a test has dropped the reply").into_http() } else { reply }
}
