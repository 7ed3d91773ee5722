//! What becomes of executions, counted where it happens.

use std::collections::HashSet;
use std::sync::{Arc, Mutex, PoisonError};

use octavius_core::execution::Reason;
use octavius_core::{Execution, State, Timestamp};
use prometheus_client::encoding::EncodeLabelSet;
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::histogram::Histogram;
use prometheus_client::registry::Registry;

use super::Label;
use super::webhooks::WebhookCounts;

/// Jobs that have series of their own; what others do is counted together. Each has one for each state and reason in which it ended.
const JOBS: usize = 1000;

/// How jobs beyond that are called: no job can be.
const OTHER_JOBS: &str = "_other";

/// How a reason is called that this version does not know: executors choose them.
const OTHER_REASON: &str = "OTHER";

/// What people say to an execution that waits for approval, as the metric calls it.
const APPROVED: &str = "approved";
const REJECTED: &str = "rejected";

/// Seconds for which executions wait and run: from what is fast here to a day.
const SECONDS: [f64; 16] = [0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 15.0, 60.0, 300.0, 1800.0, 7200.0, 86_400.0];

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct Ended {
    // not `job`: a scraper has one of its own, and would rename this
    job_name: String,
    state: &'static str,
    reason: String,
}

/// What happens, counted by this controller since its start. Clones count together.
#[derive(Debug, Clone)]
pub(crate) struct Counts {
    submitted: Counter,
    claims: Counter,
    approvals: Family<Label, Counter>,
    finished: Family<Label, Counter>,
    by_job: Family<Ended, Counter>,
    jobs: Arc<Mutex<HashSet<String>>>,
    waited: Histogram,
    ran: Histogram,
    appended: Counter,
    read: Counter,
    /// What becomes of webhooks' messages.
    pub(crate) webhooks: WebhookCounts,
}

impl Default for Counts {
    fn default() -> Self {
        let finished = Family::<Label, Counter>::default();
        // Zeros, so that a rate is to be had from the first on.
        for state in State::ALL.into_iter().filter(|state| state.is_terminal()) {
            finished.get_or_create_owned(&[("state", state.as_str())]);
        }
        let approvals = Family::<Label, Counter>::default();
        for decision in [APPROVED, REJECTED] {
            approvals.get_or_create_owned(&[("decision", decision)]);
        }
        Self {
            submitted: Counter::default(),
            claims: Counter::default(),
            approvals,
            finished,
            by_job: Family::default(),
            jobs: Arc::default(),
            waited: Histogram::new(SECONDS),
            ran: Histogram::new(SECONDS),
            appended: Counter::default(),
            read: Counter::default(),
            webhooks: WebhookCounts::default(),
        }
    }
}

/// Seconds from one time to another, by the clocks of the controllers that noted them.
fn seconds(from: Timestamp, to: Timestamp) -> f64 {
    to.duration_since(from).as_secs_f64().max(0.0)
}

impl Counts {
    /// Counts an execution that this controller has accepted.
    pub(crate) fn submitted(&self) {
        self.submitted.inc();
    }

    /// Counts a step that this controller has taken.
    pub(crate) fn step(&self, before: &Execution, after: &Execution) {
        if before.state == State::Queued && after.state == State::Claimed {
            self.claims.inc();
            self.waited.observe(seconds(before.state_since, after.state_since));
        }
        if let Some((was, is)) = before.approvals.as_deref().zip(after.approvals.as_deref()) {
            if is.approved.len() > was.approved.len() {
                self.approvals.get_or_create(&[("decision", APPROVED)]).inc();
            }
            if is.rejected.is_some() && was.rejected.is_none() {
                self.approvals.get_or_create(&[("decision", REJECTED)]).inc();
            }
        }
        if after.state.is_terminal() && !before.state.is_terminal() {
            self.finished.get_or_create(&[("state", after.state.as_str())]).inc();
            self.by_job.get_or_create(&self.ended(after)).inc();
            let last = after.attempts.last();
            if let Some(running) = last.and_then(|last| last.running_at) {
                self.ran.observe(seconds(running, last.and_then(|last| last.ended_at).unwrap_or(after.state_since)));
            }
        }
    }

    fn ended(&self, execution: &Execution) -> Ended {
        let job = execution.job.as_str();
        let mut jobs = self.jobs.lock().unwrap_or_else(PoisonError::into_inner);
        let is_told = jobs.contains(job) || (jobs.len() < JOBS && jobs.insert(job.to_owned()));
        let reason = execution.reason.as_ref().map_or("", Reason::as_str);
        let reason = if reason.is_empty() || Reason::ALL.contains(&reason) { reason } else { OTHER_REASON };
        let job = if is_told { job } else { OTHER_JOBS };
        Ended { job_name: job.to_owned(), state: execution.state.as_str(), reason: reason.to_owned() }
    }

    /// Counts bytes that this controller has taken into logs.
    pub(crate) fn appended(&self, bytes: u64) {
        self.appended.inc_by(bytes);
    }

    /// Counts bytes of logs that this controller has handed out.
    pub(crate) fn read(&self, bytes: u64) {
        self.read.inc_by(bytes);
    }

    pub(super) fn register(&self, registry: &mut Registry) {
        registry.register("executions_submitted", "Executions that this controller accepted", self.submitted.clone());
        registry.register("claims", "Executions that this controller handed to an executor", self.claims.clone());
        let help = "Decisions on executions that waited for approval, which this controller recorded, by decision";
        registry.register("approvals", help, self.approvals.clone());
        let help = "Executions whose end this controller recorded, by state";
        registry.register("executions_finished", help, self.finished.clone());
        let help = "The same by job, state and reason; jobs beyond the first 1,000 as _other";
        registry.register("job_executions_finished", help, self.by_job.clone());
        let help = "For how long what this controller handed out had waited, in seconds";
        registry.register("execution_waiting_seconds", help, self.waited.clone());
        let help = "For how long the last attempt of what this controller saw end had run, in seconds";
        registry.register("execution_running_seconds", help, self.ran.clone());
        registry.register("log_bytes_appended", "Bytes that this controller took into logs", self.appended.clone());
        registry.register("log_bytes_read", "Bytes of logs that this controller handed out", self.read.clone());
        self.webhooks.register(registry);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use octavius_core::argument::Arguments;
    use octavius_core::execution::{Ending, Submission};
    use octavius_core::{ExecutionId, Timing};
    use prometheus_client::encoding::text;

    #[test]
    fn however_many_jobs_and_reasons_there_are_the_series_are_bounded() {
        let counts = Counts::default();
        let mut registry = Registry::default();
        counts.register(&mut registry);
        for number in 0..3 * JOBS {
            let at = Timestamp::from_second(1000).unwrap();
            let job = serde_json::from_str(&format!(r#"{{"name":"j{number}","command":["true"]}}"#)).unwrap();
            let id = ExecutionId::generate();
            let submission = Submission { id, arguments: Arguments::new(), user: "ann".into(), at, timeout: None, slot: None };
            let before = Execution::submit(&job, "c".parse().unwrap(), 1, submission, &Timing::default());
            let ending = Ending::because(State::Failed, &format!("R{number}"), "");
            let after = Execution { state: State::Failed, reason: ending.reason, ..before.clone() };
            counts.step(&before, &after);
        }
        let mut written = String::new();
        text::encode(&mut written, &registry).unwrap();
        let series: Vec<&str> = written.lines().filter(|line| line.starts_with("job_executions_finished_total")).collect();
        assert_eq!(series.len(), JOBS + 1);
        let others = r#"job_executions_finished_total{job_name="_other",state="failed",reason="OTHER"} 2000"#;
        assert!(series.contains(&others), "{series:?}");
    }
}
