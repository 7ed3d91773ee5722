//! What is to fail, read from text.

use std::time::Duration;

use crate::{POINTS, Point, VARIABLE, find};

/// What happens at a point.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Action {
    /// The process ends at once.
    Kill,
    /// The process is paused.
    Stop,
    /// The answer is lost.
    Drop,
    /// The thread sleeps.
    Delay(Duration),
}

/// One point that is to fail.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Planned {
    /// Where.
    pub point: &'static Point,
    /// How.
    pub action: Action,
    /// At which time that it is reached, from 1.
    pub at: u64,
}

/// Why a plan cannot be carried out.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct WrongPlan(String);

impl std::fmt::Display for WrongPlan {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{VARIABLE}: {}", self.0)
    }
}

impl std::error::Error for WrongPlan {}

impl Planned {
    /// Reads `name=action@n`, several separated by commas; an empty text plans nothing.
    ///
    /// # Errors
    /// Where a point is not known, or its action is none that it can have.
    pub fn parse_list(text: &str) -> Result<Vec<Self>, WrongPlan> {
        text.split(',').map(str::trim).filter(|part| !part.is_empty()).map(Self::parse).collect()
    }

    fn parse(text: &str) -> Result<Self, WrongPlan> {
        let wrong = |why: &str| WrongPlan(format!("\"{text}\": {why}"));
        let (name, rest) = text.split_once('=').ok_or_else(|| wrong("write NAME=ACTION or NAME=ACTION@N"))?;
        let point = find(name).ok_or_else(|| {
            let names: Vec<_> = POINTS.iter().map(|point| point.name).collect();
            wrong(&format!("no such point; there are {}", names.join(", ")))
        })?;
        let (action, at) = match rest.split_once('@') {
            Some((action, at)) => (action, at.parse().ok().filter(|at| *at > 0)),
            None => (rest, Some(1)),
        };
        let at = at.ok_or_else(|| wrong("after `@` stands a number from 1"))?;
        let action = match action {
            "kill" => Action::Kill,
            "stop" => Action::Stop,
            "drop" if point.can_drop => Action::Drop,
            "drop" => return Err(wrong("there is no answer here that could be lost")),
            _ => action
                .strip_prefix("delay:")
                .and_then(|millis| millis.parse().ok())
                .map(|millis| Action::Delay(Duration::from_millis(millis)))
                .ok_or_else(|| wrong("the action is none of kill, stop, drop, delay:MILLISECONDS"))?,
        };
        Ok(Self { point, action, at })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_plan_names_points_actions_and_times() {
        let plan = Planned::parse_list("store.commit=kill@3, reply.execute=drop,assign=delay:20").unwrap();
        let shown: Vec<_> = plan.iter().map(|one| (one.point.name, one.action, one.at)).collect();
        assert_eq!(
            shown,
            [
                ("store.commit", Action::Kill, 3),
                ("reply.execute", Action::Drop, 1),
                ("assign", Action::Delay(Duration::from_millis(20)), 1)
            ]
        );
        assert_eq!(Planned::parse_list("").unwrap(), []);
    }

    #[test]
    fn a_wrong_plan_is_refused_whole() {
        for (text, why) in [
            ("store.comit=kill", "no such point; there are store.commit,"),
            ("store.commit", "write NAME=ACTION"),
            ("store.commit=kill@0", "a number from 1"),
            ("store.commit=kill@x", "a number from 1"),
            ("store.commit=burn", "none of kill"),
            ("store.commit=delay:", "none of kill"),
            ("store.commit=drop", "no answer here"),
            ("assign=kill,what=kill", "no such point"),
        ] {
            let message = Planned::parse_list(text).unwrap_err().to_string();
            assert!(message.starts_with("OCTAVIUS_FAILPOINT: ") && message.contains(why), "{text}: {message}");
        }
    }
}
