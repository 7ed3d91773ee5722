//! What the feature `armed` adds: the plan of this process, and its execution.

use std::io::Write as _;
use std::sync::OnceLock;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use rustix::process::{Signal, getpid, kill_process};

use crate::{Action, FIRED, Planned, Point, VARIABLE, WrongPlan};

/// Within this time a process that was told to stop has stopped, on a busy machine too.
const STOPPED_WITHIN: Duration = Duration::from_millis(300);

struct Armed {
    planned: Planned,
    reached: AtomicU64,
}

static PLAN: OnceLock<Vec<Armed>> = OnceLock::new();

pub(crate) fn arm() -> Result<(), WrongPlan> {
    let text = std::env::var_os(VARIABLE).unwrap_or_default();
    let plan = Planned::parse_list(&text.to_string_lossy())?;
    let armed = plan.into_iter().map(|planned| Armed { planned, reached: AtomicU64::new(0) }).collect();
    let _ = PLAN.set(armed); // armed before: the variable is the same
    Ok(())
}

pub(crate) fn reach(point: &'static Point) -> bool {
    let mut lost = false;
    for armed in PLAN.get().into_iter().flatten().filter(|armed| armed.planned.point == point) {
        if armed.reached.fetch_add(1, Ordering::Relaxed) + 1 == armed.planned.at {
            lost |= fail(armed.planned);
        }
    }
    lost
}

fn fail(planned: Planned) -> bool {
    let Planned { point, action, at } = planned;
    // Written in one call, so that it comes out whole before the process ends. Where nobody reads it there is nobody to tell.
    let _ = std::io::stderr().write_all(format!("{FIRED}{} {action:?} at {at}\n", point.name).as_bytes());
    match action {
        Action::Kill => drop(kill_process(getpid(), Signal::KILL)), // a process may always signal itself
        Action::Stop => {
            let _ = kill_process(getpid(), Signal::STOP);
            // Another thread may be the one that takes the signal, and this one would go on until all are stopped: here it waits for that.
            std::thread::sleep(STOPPED_WITHIN);
        }
        Action::Delay(time) => std::thread::sleep(time),
        Action::Drop => return true,
    }
    false
}
