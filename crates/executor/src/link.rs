//! Calls to a controller, whichever it is at present: each is repeated until it is answered, through outages, restarts and changes of
//! the controller. All of them are such that repeating them does no harm.

use std::time::Duration;

use octavius_core::Timing;
use octavius_core::execution::{Ending, LogSeal};
use octavius_core::log::Times;
use octavius_proto::client::Connection;
use octavius_proto::v1::report_execution_request::Step;
use octavius_proto::{Fault, reason, v1};
use tokio::sync::watch;
use tonic::{Code, Status};

use crate::runner::Held;

/// A call that has not been answered for so long is made again.
const CALL_TIMEOUT: Duration = Duration::from_secs(15);
/// A piece of a log may be longer under way, by a second for so many bytes: a thin line is no reason to begin again. A line that is dead is
/// found out by the connection itself.
const SLOWEST: u64 = 16 * 1024;

/// How many times the longest pause a long one is.
const LONG: u32 = 15;

/// Why a call was given up: what it says will be refused always.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub(crate) enum Refused {
    /// The controller has not all of the log before this offset.
    #[error("the log is missing from byte {0}")]
    LogGap(u64),
    /// The log is complete.
    #[error("the log is sealed")]
    LogSealed,
    /// The store has no room for the log at present.
    #[error("{0}")]
    NoRoom(String),
    /// The log is held back until the archive is there again.
    #[error("{0}")]
    HeldBack(String),
    /// The controller has never heard of the attempt: its store may have been restored from an older backup.
    #[error("{0}")]
    Forgotten(String),
    /// The controller does not take what is said about the attempt, or not from this executor.
    #[error("{0}")]
    Unknown(String),
}

/// Pauses that grow, with jitter, so that many executors do not come back at one instant.
#[derive(Debug)]
pub(crate) struct Backoff {
    timing: Timing,
    next: Duration,
}

impl Backoff {
    pub(crate) fn new(timing: Timing) -> Self {
        Self { timing, next: timing.retry_min }
    }

    pub(crate) fn reset(&mut self) {
        self.next = self.timing.retry_min;
    }

    /// The next pause: between half and the whole of it.
    pub(crate) fn pause(&mut self) -> Duration {
        let whole = self.next.min(self.timing.retry_max);
        self.next = (self.next * 2).min(self.timing.retry_max);
        Self::jittered(whole)
    }

    /// A long pause: what is waited for is that somebody puts something right.
    pub(crate) fn long_pause(&self) -> Duration {
        Self::jittered(self.timing.retry_max * LONG)
    }

    fn jittered(whole: Duration) -> Duration {
        let random = u32::try_from(random() >> 32).unwrap_or_default();
        whole / 2 + whole.mul_f64(f64::from(random) / f64::from(u32::MAX) / 2.0)
    }
}

/// A random number; where the system has none, one that differs between processes.
pub(crate) fn random() -> u64 {
    getrandom::u64().unwrap_or_else(|_| u64::from(std::process::id()))
}

/// Calls to a controller. A handle, cheap to clone.
#[derive(Debug, Clone)]
pub(crate) struct Link {
    connection: watch::Receiver<Option<Connection>>,
    timing: Timing,
}

impl Link {
    pub(crate) fn new(connection: watch::Receiver<Option<Connection>>, timing: Timing) -> Self {
        Self { connection, timing }
    }

    /// Reports a step until it is answered.
    pub(crate) async fn report(&self, held: Held, step: Step) -> Result<v1::Verdict, Refused> {
        let request = v1::ReportExecutionRequest {
            id: held.id.to_string(),
            attempt: held.fence.attempt,
            nonce: held.fence.nonce,
            step: Some(step),
        };
        let answer = self.call("report", held, refusal, |connection| {
            let request = request.clone();
            async move { connection.executors().report_execution(request).await }
        });
        // Calls are on the heap, since they are large and seldom there: what waits for a job's end should be small.
        Ok(Box::pin(answer).await?.verdict())
    }

    /// Reports the end of an attempt until it is answered; `cut` where the rest of its log is not sent any more.
    pub(crate) async fn report_finished(
        &self,
        held: Held,
        ending: &Ending,
        log: LogSeal,
        cut: bool,
    ) -> Result<v1::Verdict, Refused> {
        let finished =
            v1::Finished { ending: Some(ending.into()), log_size: log.size_bytes, log_crc32c: log.crc32c, log_cut: cut };
        self.report(held, Step::Finished(finished)).await
    }

    /// Appends bytes to an attempt's log until that is answered, and returns where the log ends then. Where there is no room for them, it
    /// is for the caller to say how long that is waited for.
    pub(crate) async fn append(&self, held: Held, offset: u64, data: Vec<u8>, times: Times) -> Result<u64, Refused> {
        let patience = CALL_TIMEOUT + Duration::from_secs(data.len() as u64 / SLOWEST);
        let request = v1::AppendLogRequest {
            id: held.id.to_string(),
            attempt: held.fence.attempt,
            nonce: held.fence.nonce,
            offset,
            data: data.into(),
            times: (!times.is_empty()).then(|| times.into()),
        };
        let answer = self.call_within(patience, "append to a log", held, append_refusal, |connection| {
            let request = request.clone();
            async move { connection.logs().append_log(request).await }
        });
        match Box::pin(answer).await {
            Ok(answer) => Ok(answer.next_offset),
            Err(Refused::LogGap(next)) => Ok(next),
            Err(refused) => Err(refused),
        }
    }

    async fn call<T, F>(
        &self,
        what: &'static str,
        held: Held,
        refusal: fn(&Status) -> Option<Refused>,
        make: impl Fn(Connection) -> F,
    ) -> Result<T, Refused>
    where
        F: Future<Output = Result<tonic::Response<T>, Status>>,
    {
        self.call_within(CALL_TIMEOUT, what, held, refusal, make).await
    }

    async fn call_within<T, F>(
        &self,
        patience: Duration,
        what: &'static str,
        held: Held,
        refusal: fn(&Status) -> Option<Refused>,
        make: impl Fn(Connection) -> F,
    ) -> Result<T, Refused>
    where
        F: Future<Output = Result<tonic::Response<T>, Status>>,
    {
        let mut backoff = Backoff::new(self.timing);
        let mut told = false;
        loop {
            let connection = self.connected().await;
            let mut newer = self.connection.clone();
            newer.mark_unchanged();
            let given_up = async {
                // What is asked of a controller that another has taken the place of is hardly answered any more.
                let _ = tokio::time::timeout(patience.saturating_sub(CALL_TIMEOUT), newer.changed()).await;
                tokio::time::sleep(CALL_TIMEOUT).await;
            };
            let status = tokio::select! {
                answer = make(connection) => match answer {
                    Ok(answer) => return Ok(answer.into_inner()),
                    Err(status) => status,
                },
                () = given_up => Status::deadline_exceeded("no answer"),
            };
            if let Some(refused) = refusal(&status) {
                return Err(refused);
            }
            if told {
                tracing::debug!(execution = %held.id, attempt = held.fence.attempt, code = ?status.code(), error = status.message(), "cannot {what}, trying again");
            } else {
                tracing::warn!(execution = %held.id, attempt = held.fence.attempt, code = ?status.code(), error = status.message(), "cannot {what}, trying on");
                told = true;
            }
            tokio::time::sleep(backoff.pause()).await;
        }
    }

    async fn connected(&self) -> Connection {
        let mut connection = self.connection.clone();
        loop {
            if let Some(connection) = connection.borrow_and_update().clone() {
                return connection;
            }
            if connection.changed().await.is_err() {
                std::future::pending::<()>().await; // the executor is going down, and this with it
            }
        }
    }
}

/// Whether a status means that the same call will never succeed.
fn refusal(status: &Status) -> Option<Refused> {
    let fault = Fault::from_status(status);
    if let Some(next) = fault.fact("next_offset").and_then(|text| text.parse().ok()) {
        return Some(Refused::LogGap(next));
    }
    if fault.reason == reason::LOG_SEALED {
        return Some(Refused::LogSealed);
    }
    if fault.reason == reason::EXECUTION_NOT_FOUND {
        return Some(Refused::Forgotten(fault.message));
    }
    let unknown =
        matches!(fault.code, Code::NotFound | Code::InvalidArgument | Code::FailedPrecondition | Code::PermissionDenied);
    // A proxy in between may answer so too, about itself; only what a controller says counts.
    (unknown && !fault.reason.is_empty()).then_some(Refused::Unknown(fault.message))
}

/// The same for an append, which need not go on trying where the store has no room: the output is safe in its file.
fn append_refusal(status: &Status) -> Option<Refused> {
    let fault = Fault::from_status(status);
    match fault.reason.as_str() {
        reason::STORE_FULL => Some(Refused::NoRoom(fault.message)),
        reason::ARCHIVE_UNAVAILABLE => Some(Refused::HeldBack(fault.message)),
        _ => refusal(status),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pauses_double_up_to_the_longest_and_never_sink_below_half() {
        let timing = Timing::default();
        let mut backoff = Backoff::new(timing);
        let mut expected = timing.retry_min;
        for _ in 0..20 {
            let pause = backoff.pause();
            assert!(pause >= expected / 2 && pause <= expected, "{pause:?} of {expected:?}");
            expected = (expected * 2).min(timing.retry_max);
        }
        assert!(backoff.long_pause() >= 5 * timing.retry_max);
        backoff.reset();
        assert!(backoff.pause() <= timing.retry_min);
    }

    #[test]
    fn only_what_a_controller_says_for_good_ends_the_trying() {
        let gap = Fault::new(Code::OutOfRange, reason::LOG_GAP, "gap").with("next_offset", 7);
        assert_eq!(refusal(&gap.into()), Some(Refused::LogGap(7)));
        assert_eq!(refusal(&Fault::new(Code::FailedPrecondition, reason::LOG_SEALED, "x").into()), Some(Refused::LogSealed));
        let unknown = Fault::new(Code::NotFound, reason::EXECUTION_NOT_FOUND, "no execution x");
        assert_eq!(refusal(&unknown.into()), Some(Refused::Forgotten("no execution x".to_owned())));
        let another = Fault::new(Code::PermissionDenied, reason::NOT_PERMITTED, "not yours");
        assert_eq!(refusal(&another.into()), Some(Refused::Unknown("not yours".to_owned())));
        let full: Status = Fault::new(Code::ResourceExhausted, reason::STORE_FULL, "full").into();
        assert_eq!((refusal(&full), append_refusal(&full)), (None, Some(Refused::NoRoom("full".to_owned()))));
        for code in [Code::ResourceExhausted, Code::Unavailable] {
            let archive: Status = Fault::new(code, reason::ARCHIVE_UNAVAILABLE, "away").into();
            assert_eq!((refusal(&archive), append_refusal(&archive)), (None, Some(Refused::HeldBack("away".to_owned()))));
        }
        for passing in
            [Status::not_found("a proxy's page"), Status::unavailable("x"), Status::unknown("x"), Status::unauthenticated("x")]
        {
            assert_eq!(refusal(&passing), None);
        }
        assert_eq!(refusal(&Fault::new(Code::Unavailable, reason::STORE_UNAVAILABLE, "x").into()), None);
    }
}
