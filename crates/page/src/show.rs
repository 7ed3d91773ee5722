//! Small things that many pages show: times, states, counts. What they write is markup already, made of nothing that comes from elsewhere.

use std::fmt;

use askama::filters::HtmlSafe;
use octavius_core::{ExecutionId, Timestamp};
use octavius_proto::v1::{Execution, ExecutionState};
use octavius_proto::words;

/// A moment, in UTC and from now: `3m ago 2026-11-29 16:05:59 UTC`.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Moment {
    at: Timestamp,
    now: Timestamp,
}

impl HtmlSafe for Moment {}

impl fmt::Display for Moment {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let relative = if self.at <= self.now {
            format!("{} ago", words::between(self.at, self.now))
        } else {
            format!("in {}", words::between(self.now, self.at))
        };
        let (machine, people) = (self.at.strftime("%Y-%m-%dT%H:%M:%SZ"), self.at.strftime("%Y-%m-%d %H:%M:%S UTC"));
        write!(f, "<time datetime=\"{machine}\"><span class=\"relative\">{relative}</span> <small>{people}</small></time>")
    }
}

/// A time of the wire as it is shown; none where there is none.
pub(crate) fn moment(at: &Option<prost_types::Timestamp>, now: &Timestamp) -> Option<Moment> {
    words::time(at.as_ref()).map(|at| Moment { at, now: *now })
}

/// A state, in a word and with a sign of its own, so that its colour is never all that tells it.
#[derive(Debug, Clone, Copy)]
pub(crate) struct State(pub(crate) ExecutionState);

impl HtmlSafe for State {}

impl fmt::Display for State {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let name = words::state_name(self.0);
        write!(f, "<span class=\"state\" data-state=\"{name}\">{}</span>", words::spoken(self.0))
    }
}

/// The state of this number; of one that this version does not know, `unknown`.
pub(crate) fn state(number: &i32) -> State {
    State(ExecutionState::try_from(*number).unwrap_or(ExecutionState::Unspecified))
}

/// Labels or other pairs in one line, in order: `a=1, b=2`.
pub(crate) fn pairs<'a>(pairs: impl IntoIterator<Item = (&'a String, &'a String)>) -> String {
    let mut pairs: Vec<_> = pairs.into_iter().map(|(name, value)| format!("{name}={value}")).collect();
    pairs.sort_unstable();
    pairs.join(", ")
}

/// An execution where a whole id is too much to listen to: its job, and the end of its id.
pub(crate) fn called(execution: &Execution) -> String {
    let end = execution.id.parse().map_or_else(|_| execution.id.clone(), ExecutionId::short);
    format!("{} {end}", execution.job)
}

/// How long an execution has taken, or takes until now.
pub(crate) fn duration(execution: &Execution, now: &Timestamp) -> String {
    words::duration(execution, *now)
}

/// The commit of a revision, short, and whether files differed from it: `4be07d1, changed`.
pub(crate) fn commit(provenance: &Option<octavius_proto::v1::Provenance>) -> String {
    let Some((provenance, commit)) = provenance.as_ref().and_then(|from| Some((from, from.commit.get(..7)?))) else {
        return String::new();
    };
    format!("{commit}{}", if provenance.dirty { ", changed" } else { "" })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_moment_is_told_from_now_and_in_utc() {
        let now = Timestamp::from_second(1_767_225_600).unwrap();
        let at =
            |seconds: i64| moment(&Some(prost_types::Timestamp { seconds: 1_767_225_600 + seconds, nanos: 0 }), &now).unwrap();
        assert_eq!(
            at(-130).to_string(),
            "<time datetime=\"2025-12-31T23:57:50Z\"><span class=\"relative\">2m10s ago</span> <small>2025-12-31 23:57:50 UTC</small></time>"
        );
        assert!(at(3600).to_string().contains("in 1h<"));
        assert!(moment(&None, &now).is_none());
    }
}
