//! A job's schedule as `octavius describe` shows it: when it runs next, in its own time zone, and what was skipped.

use octavius_core::Timestamp;
use octavius_core::definition::Schedule;
use octavius_proto::{v1, words};
use serde_json::{Value, json};

use crate::sanitize::line;

/// What the controller says of a job's schedule.
#[derive(Debug, Default)]
pub struct Planned {
    /// The next ticks.
    pub next: Vec<Timestamp>,
    /// The last tick without execution.
    pub skipped: Option<v1::SkippedTick>,
}

impl Planned {
    /// Takes it from the controller's answer.
    #[must_use]
    pub fn of(response: &v1::GetJobResponse) -> Self {
        let next = response.next_runs.iter().filter_map(|at| words::time(Some(at))).collect();
        Self { next, skipped: response.last_skipped.clone() }
    }

    /// The fields of the JSON form.
    #[must_use]
    pub fn to_json(&self) -> (Value, Value) {
        let skipped = self.skipped.as_ref().map(|skipped| {
            json!({
                "tick": words::time(skipped.tick.as_ref()).map(|at| at.to_string()),
                "because": skipped.because,
                "execution": (!skipped.execution.is_empty()).then_some(&skipped.execution),
            })
        });
        (self.next.iter().map(ToString::to_string).collect::<Vec<_>>().into(), skipped.into())
    }

    /// The lines that people read.
    #[must_use]
    pub fn lines(&self, schedule: &Schedule, now: Timestamp) -> Vec<String> {
        let told = words::schedule(schedule, &self.next, self.skipped.as_ref(), now);
        let mut lines = vec![line(&told.schedule)];
        lines.extend(told.ticks.iter().map(|tick| format!("  {tick}")));
        lines.extend(told.skipped.map(|skipped| line(&skipped)));
        lines
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_schedule_is_shown_in_its_own_time_zone() {
        let schedule: Schedule = serde_json::from_value(json!({"cron": "0 3 * * *", "time_zone": "Asia/Jakarta"})).unwrap();
        let at = |text: &str| text.parse::<Timestamp>().unwrap();
        let wire = |text: &str| Some(octavius_proto::to_timestamp(at(text)));
        let response = v1::GetJobResponse {
            next_runs: vec![wire("2026-11-29T20:00:00Z").unwrap(), wire("2026-11-30T20:00:00Z").unwrap()],
            last_skipped: Some(v1::SkippedTick {
                tick: wire("2026-11-28T20:00:00Z"),
                because: "overlap".into(),
                execution: "x1".into(),
            }),
            ..Default::default()
        };
        let planned = Planned::of(&response);
        assert_eq!(
            planned.lines(&schedule, at("2026-11-29T14:53:10Z")),
            [
                "scheduled at 0 3 * * * (Asia/Jakarta), next in 5h6m",
                "  Mon 2026-11-30 03:00 +0700",
                "  Tue 2026-12-01 03:00 +0700",
                "last skipped Sun 2026-11-29 03:00 +0700: execution x1 of a tick before had not ended",
            ]
        );
        let (next, skipped) = planned.to_json();
        assert_eq!(next, json!(["2026-11-29T20:00:00Z", "2026-11-30T20:00:00Z"]));
        assert_eq!(skipped, json!({"tick": "2026-11-28T20:00:00Z", "because": "overlap", "execution": "x1"}));
        assert_eq!(Planned::default().to_json(), (json!([]), Value::Null));
    }
}
