//! The controller has no room for logs: they wait where they are, and the end of a job does not wait for ever.

use serde_json::json;

use crate::controller::Controller;
use crate::daemon::Place;
use crate::until;

fn sh(script: &str) -> serde_json::Value {
    json!({"name": "j", "command": ["sh", "-c", script]})
}

#[test]
fn a_log_that_is_refused_waits_in_its_file_and_comes_whole_when_there_is_room() {
    let controller = Controller::start();
    let place = Place::near(&controller);
    let daemon = place.start();
    let id = controller.assign(&sh("echo first; while ! [ -e go ]; do sleep 0.02; done; seq 1 100000"));
    controller.logged(id, "first\n");
    controller.world().no_room = true;
    std::fs::write(place.run_dir().join("work/go"), "").unwrap();
    until("it is refused, and tried again", || controller.world().refused_appends > 3);
    assert!(controller.record(id, 1).finished.is_none(), "the end waits for its log");
    controller.world().no_room = false;
    let record = controller.ended(id);
    let expected: String = (1..=100_000).map(|number| format!("{number}\n")).collect();
    assert_eq!(record.text(), format!("first\n{expected}"));
    assert!(!record.finished.unwrap().log_cut);
    daemon.stop();
}

#[test]
fn the_end_of_a_job_lands_though_its_log_does_not() {
    let controller = Controller::start();
    let place = Place::near(&controller);
    let daemon = place.start();
    let id = controller.assign(&sh("echo first; while ! [ -e go ]; do sleep 0.02; done; seq 1 100000"));
    controller.logged(id, "first\n");
    controller.world().no_room = true;
    std::fs::write(place.run_dir().join("work/go"), "").unwrap();
    let record = controller.ended(id);
    let size = "first\n".len() as u64 + (1..=100_000).map(|number| format!("{number}\n").len() as u64).sum::<u64>();
    let finished = record.finished.clone().unwrap();
    assert_eq!((finished.log_cut, finished.log_size), (true, size), "it says how much there was");
    assert_eq!((record.text().as_str(), record.ending().unwrap().exit_code), ("first\n", Some(0)));
    until("nothing is left", || place.list("runs").is_empty());
    // What comes after is not touched by it.
    controller.world().no_room = false;
    let id = controller.assign(&sh("echo more"));
    assert_eq!(controller.ended(id).text(), "more\n");
    daemon.stop();
}
