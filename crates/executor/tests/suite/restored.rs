//! The store was restored from an older backup and knows nothing of what runs here: that is let be.

use std::fs;

use octavius_core::ExecutionId;
use octavius_proto::v1;
use serde_json::json;

use crate::controller::Controller;
use crate::daemon::Place;
use crate::{is_running, until};

const WAITS: &str = "echo $$; while ! [ -e go ]; do sleep 0.02; done; echo after; sleep 0.3; exit 7";

fn begin(controller: &Controller) -> (ExecutionId, u32) {
    let id = controller.assign(&json!({"name": "j", "command": ["sh", "-c", WAITS]}));
    controller.logged(id, "\n");
    let pid = controller.record(id, 1).text().trim().parse().unwrap();
    (id, pid)
}

fn forget(controller: &Controller, id: ExecutionId) {
    controller.world().attempts.get_mut(&(id.to_string(), 1)).unwrap().forgotten = true;
}

fn let_be(controller: &Controller, place: &Place) {
    until("its slot is free", || controller.world().pings.last() == Some(&place.capacity));
    until("it is noted", || place.run_dir().join("let-be").exists());
}

#[test]
fn what_the_store_does_not_know_runs_on_unreported_and_goes_into_quarantine_at_its_end() {
    let controller = Controller::start();
    let place = Place::near(&controller);
    let daemon = place.start();
    let (id, pid) = begin(&controller);
    forget(&controller, id);
    controller.stop(id, v1::StopCause::Unknown);
    let_be(&controller, &place);
    assert!(is_running(pid));
    fs::write(place.run_dir().join("work/go"), "").unwrap();
    until("it is put aside", || place.list("quarantine").len() == 1 && place.list("runs").is_empty());
    let kept = place.data_dir().join("quarantine").join(&place.list("quarantine")[0]);
    assert!(fs::read_to_string(kept.join("output")).unwrap().ends_with("\nafter\n"), "it ran to its own end");
    assert!(fs::read_to_string(kept.join("let-be")).unwrap().contains("does not know"));
    assert!(controller.record(id, 1).finished.is_none());
    daemon.stop();
}

#[test]
fn an_answer_that_nothing_is_known_of_it_does_the_same_and_the_next_executor_leaves_it_alone() {
    let controller = Controller::start();
    let place = Place::near(&controller);
    let daemon = place.start();
    let (id, pid) = begin(&controller);
    forget(&controller, id);
    let run_dir = place.run_dir();
    fs::write(run_dir.join("work/go"), "").unwrap(); // its output is what the executor speaks of
    let_be(&controller, &place);
    daemon.stop();
    assert_eq!(controller.record(id, 1).said_since, 1);

    controller.world().pings.clear();
    let daemon = place.start();
    until("the next one is there", || controller.world().pings.last() == Some(&place.capacity));
    assert_eq!(controller.world().hellos.last().unwrap().held, []);
    until("the job is over", || !is_running(pid));
    assert_eq!(controller.record(id, 1).said_since, 1, "it was spoken of again");
    daemon.stop();
    until("the job's end is written", || place.list("runs").is_empty() || place.journal().len() == 3);
    let daemon = place.start();
    until("it is put aside", || place.list("quarantine").len() == 1 && place.list("runs").is_empty());
    daemon.stop();
}

#[test]
fn the_same_attempt_is_not_started_beside_one_that_is_let_be() {
    let controller = Controller::start();
    let place = Place::near(&controller);
    let daemon = place.start();
    let (id, pid) = begin(&controller);
    controller.stop(id, v1::StopCause::Unknown);
    let_be(&controller, &place);
    controller.assign_again(id);
    let record = controller.ended(id);
    let ending = record.ending().unwrap();
    assert_eq!((ending.outcome(), ending.reason.as_str()), (v1::ExecutionState::Failed, "START_FAILED"));
    assert!(ending.message.contains("still has a run"), "{}", ending.message);
    assert!(is_running(pid) && place.run_dir().join("output").exists());
    fs::write(place.run_dir().join("work/go"), "").unwrap();
    until("it is put aside", || place.list("quarantine").len() == 1);
    daemon.stop();
}
