//! What is looked up at each scrape: what waits and for what, who is there, how full the store is, when the certificate ends.

use std::fmt;
use std::sync::Arc;

use octavius_core::wait::cause;
use prometheus_client::collector::Collector;
use prometheus_client::encoding::{DescriptorEncoder, EncodeMetric as _};
use prometheus_client::metrics::MetricType;
use prometheus_client::metrics::gauge::ConstGauge;

use crate::archive::Archive;
use crate::fleet::Fleet;
use crate::listen::Certificates;
use crate::room::Room;
use crate::scheduler::Scheduler;
use crate::waiting::ExecutorFacts;
use crate::webhooks::{Backlog, Webhooks};

/// What is looked up.
pub(super) struct Live {
    pub(super) fleet: Arc<Fleet>,
    pub(super) scheduler: Arc<Scheduler>,
    pub(super) room: Arc<Room>,
    pub(super) archive: Option<Archive>,
    pub(super) certificates: Option<Arc<Certificates>>,
    pub(super) webhooks: Webhooks,
}

impl fmt::Debug for Live {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Live").finish_non_exhaustive()
    }
}

impl Collector for Live {
    fn encode(&self, mut encoder: DescriptorEncoder<'_>) -> fmt::Result {
        let executors = self.fleet.facts();
        let waiting = self.scheduler.waiting_by_cause(&executors);
        let waiting = WAITING.iter().map(|(code, label)| (*label, waiting.get(code).copied().unwrap_or_default()));
        gauges(&mut encoder, "executions_waiting", "Executions that wait, by what holds them up first.", "cause", waiting)?;
        let help = "Executions that wait for approval, which are not among those above.";
        gauge(&mut encoder, "executions_waiting_for_approval", help, self.scheduler.awaiting().count() as u64)?;
        let states = by_state(&executors, self.fleet.never_there());
        gauges(&mut encoder, "executors", "Executors, by state.", "state", states)?;
        gauges(&mut encoder, "slots", "Slots of the executors that are there.", "state", slots(&executors))?;
        let held: usize = executors.iter().map(|executor| executor.taken).sum();
        gauge(&mut encoder, "executions_held", "Executions that executors hold: claimed, starting or running.", held as u64)?;
        if let Some(percent) = self.room.percent() {
            gauge(&mut encoder, "store_fill_percent", "How full the store is, in percent of its quota.", percent)?;
        }
        if let Some(archive) = &self.archive {
            let help = "Whether the archive of logs answered last: 1 or 0.";
            gauge(&mut encoder, "archive_up", help, u64::from(!archive.is_down()))?;
        }
        let webhooks = self.webhooks.backlog();
        let of = |value: fn(&Backlog) -> usize| webhooks.iter().map(move |(name, backlog)| (name.as_str(), value(backlog)));
        let help = "Messages that a webhook has not taken yet.";
        gauges(&mut encoder, "webhook_deliveries_waiting", help, "webhook", of(|backlog| backlog.waiting))?;
        let help = "Messages that were given up and are kept.";
        gauges(&mut encoder, "webhook_deliveries_given_up", help, "webhook", of(|backlog| backlog.given_up))?;
        let help = "Whether a webhook took the last message that this controller brought it: 1 or 0.";
        gauges(&mut encoder, "webhook_up", help, "webhook", of(|backlog| usize::from(backlog.is_up)))?;
        // There is none in the clear, and a rule over it is silent there.
        if let Some(ends) = self.certificates.as_ref().and_then(|certificates| certificates.ends()) {
            let help = "When the first certificate of the chain that the port shows ends, in seconds since 1970.";
            gauge(&mut encoder, "tls_certificate_expiry_timestamp_seconds", help, ends)?;
        }
        Ok(())
    }
}

/// What may hold up a line as a whole, and how the metric calls it.
const WAITING: [(&str, &str); 8] = [
    (cause::JOB_PAUSED, "job_paused"),
    (cause::BACK_OFF, "back_off"),
    (cause::CONCURRENCY_LIMIT, "concurrency_limit"),
    (cause::NO_EXECUTOR, "no_executor"),
    (cause::NO_MATCHING_EXECUTOR, "no_matching_executor"),
    (cause::EXECUTOR_FULL, "executor_full"),
    (cause::EXECUTOR_DRAINING, "executor_draining"),
    (cause::AHEAD, "ahead"),
];

fn by_state(executors: &[ExecutorFacts], never_there: usize) -> [(&'static str, usize); 4] {
    let count = |of: fn(&ExecutorFacts) -> bool| executors.iter().filter(|executor| of(executor)).count();
    [
        ("active", count(|executor| executor.present && executor.draining.is_none())),
        ("draining", count(|executor| executor.present && executor.draining.is_some())),
        ("expired", count(|executor| !executor.present)),
        ("registered", never_there),
    ]
}

fn slots(executors: &[ExecutorFacts]) -> [(&'static str, usize); 2] {
    let there = executors.iter().filter(|executor| executor.present);
    let (taken, free) = there.fold((0, 0), |(taken, free), executor| {
        (taken + executor.taken, free + executor.capacity.saturating_sub(executor.taken))
    });
    [("taken", taken), ("free", free)]
}

/// Writes one gauge for each value of a label.
fn gauges<'v>(
    encoder: &mut DescriptorEncoder<'_>,
    name: &str,
    help: &str,
    label: &'static str,
    values: impl IntoIterator<Item = (&'v str, usize)>,
) -> fmt::Result {
    let mut family = encoder.encode_descriptor(name, help, None, MetricType::Gauge)?;
    for (value, count) in values {
        let labels = [(label, value)];
        let count = i64::try_from(count).unwrap_or(i64::MAX);
        ConstGauge::new(count).encode(family.encode_family(&labels)?)?;
    }
    Ok(())
}

/// Writes one gauge.
fn gauge(encoder: &mut DescriptorEncoder<'_>, name: &str, help: &str, value: u64) -> fmt::Result {
    let value = i64::try_from(value).unwrap_or(i64::MAX);
    ConstGauge::new(value).encode(encoder.encode_descriptor(name, help, None, MetricType::Gauge)?)
}

#[cfg(test)]
mod tests {
    use super::*;
    use octavius_core::wait::cause::ALL;

    #[test]
    fn every_cause_that_holds_up_a_line_has_its_label() {
        // What one executor lacks holds up no line while another may have it; that one is away is told as none being there.
        let of_one = [cause::LABEL, cause::EXECUTOR_ABSENT];
        let labelled: Vec<&str> = WAITING.iter().map(|(code, _)| *code).collect();
        let expected: Vec<&str> = ALL.into_iter().filter(|code| !of_one.contains(code)).collect();
        assert_eq!(labelled, expected);
        assert!(WAITING.iter().all(|(code, label)| code.to_lowercase() == *label));
    }

    #[test]
    fn slots_are_counted_where_an_executor_is_there() {
        let executor = |id: &str, present: bool, taken: usize| ExecutorFacts {
            id: id.parse().unwrap(),
            labels: Default::default(),
            capacity: 4,
            taken,
            no_room: false,
            full_since: None,
            present,
            absent_since: None,
            draining: None,
        };
        let executors = [executor("a", true, 1), executor("b", true, 5), executor("c", false, 2)];
        assert_eq!(slots(&executors), [("taken", 6), ("free", 3)]);
        assert_eq!(by_state(&executors, 7), [("active", 2), ("draining", 0), ("expired", 1), ("registered", 7)]);
    }
}
