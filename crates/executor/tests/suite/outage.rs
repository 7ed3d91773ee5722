//! The controller goes away, comes back, or loses its answers.

use std::time::Duration;

use octavius_proto::v1;
use serde_json::json;

use crate::controller::Controller;
use crate::daemon::Place;
use crate::until;

fn sh(script: &str) -> serde_json::Value {
    json!({"name": "j", "command": ["sh", "-c", script]})
}

#[test]
fn a_lost_answer_to_the_end_is_asked_for_again() {
    let controller = Controller::start();
    let place = Place::near(&controller);
    let daemon = place.start();
    controller.world().lose_finished_answers = 3;
    let id = controller.assign(&sh("echo x"));
    until("the end is reported until it is answered", || controller.record(id, 1).finished_reports == 4);
    until("nothing is left", || place.list("runs").is_empty());
    daemon.stop();
}

#[test]
fn lost_answers_to_log_pieces_cost_repetition_and_no_bytes() {
    let controller = Controller::start();
    let place = Place::near(&controller);
    let daemon = place.start();
    {
        let mut world = controller.world();
        (world.lose_append_answers, world.unavailable) = (3, 3);
    }
    let id = controller.assign(&sh("seq 1 200000"));
    let record = controller.ended(id);
    let expected: String = (1..=200_000).map(|number| format!("{number}\n")).collect();
    assert_eq!(record.text(), expected);
    assert!(record.repeated > 0);
    daemon.stop();
}

#[test]
fn a_log_goes_on_where_it_was_when_the_controller_comes_back() {
    let mut controller = Controller::start();
    let place = Place::near(&controller);
    let daemon = place.start();
    let id = controller.assign(&sh(
        "for i in $(seq 1 100); do echo line $i; sleep 0.01; done; while ! [ -e go ]; do sleep 0.02; done; echo end",
    ));
    for line in ["line 10\n", "line 40\n", "line 70\n"] {
        controller.logged(id, line);
        controller.kill();
        controller.come_back();
    }
    controller.kill();
    std::fs::write(place.run_dir().join("work/go"), "").unwrap();
    until("the job ends while there is no controller", || place.journal().len() == 3);
    controller.come_back();
    let expected: String = (1..=100).map(|number| format!("line {number}\n")).chain(["end\n".to_owned()]).collect();
    assert_eq!(controller.ended(id).text(), expected);
    let hellos = controller.world().hellos.clone();
    assert!(hellos.iter().all(|hello| hello.instance == hellos[0].instance), "one run of the daemon is one instance");
    assert_eq!(hellos.last().unwrap().held.iter().map(|held| held.id.clone()).collect::<Vec<_>>(), [id.to_string()]);
    daemon.stop();
}

#[test]
fn a_job_that_may_start_does_so_once_however_long_the_answer_takes() {
    let mut controller = Controller::start();
    let place = Place::near(&controller);
    let daemon = place.start();
    controller.world().hold_starting = true;
    let id = controller.assign(&sh("echo started"));
    place.prepared();
    controller.kill();
    controller.come_back();
    assert_eq!(place.journal().len(), 1, "nothing starts before the controller said yes");
    controller.world().hold_starting = false;
    assert_eq!(controller.ended(id).text(), "started\n");
    daemon.stop();
}

#[test]
fn an_executor_without_a_controller_waits_and_can_be_stopped() {
    let mut controller = Controller::start();
    let place = Place::near(&controller);
    controller.kill();
    let daemon = place.start();
    until("it has begun", || place.data_dir().join("lock").exists());
    controller.come_back();
    until("it found the controller", || controller.world().pings.len() > 2);
    controller.kill();
    daemon.stop();
}

#[test]
fn a_cancel_reaches_a_job_after_an_outage() {
    let mut controller = Controller::start();
    let place = Place::near(&controller);
    let daemon = place.start();
    let id = controller.assign_with(&sh("echo ready; sleep 60"), &[], Duration::from_secs(60));
    controller.logged(id, "ready");
    controller.kill();
    controller.come_back();
    controller.stop(id, v1::StopCause::Cancelled);
    assert_eq!(controller.ended(id).ending().unwrap().outcome(), v1::ExecutionState::Cancelled);
    daemon.stop();
}

#[test]
fn the_next_executor_goes_on_where_the_controller_is_and_not_from_the_beginning() {
    let controller = Controller::start();
    let place = Place::near(&controller);
    let daemon = place.start();
    let id = controller.assign(&sh("seq 1 200000; while ! [ -e go ]; do sleep 0.02; done; echo end"));
    controller.logged(id, "\n200000\n");
    daemon.kill();
    let daemon = place.start();
    std::fs::write(place.run_dir().join("work/go"), "").unwrap();
    let record = controller.ended(id);
    assert!(record.text().ends_with("\n200000\nend\n"));
    assert!(record.repeated <= 256 * 1024, "{} bytes were sent twice", record.repeated);
    daemon.stop();
}

#[test]
fn a_controller_that_has_lost_the_end_of_a_log_gets_it_again() {
    let controller = Controller::start();
    let place = Place::near(&controller);
    let daemon = place.start();
    let job = sh("seq 1 10000; while ! [ -e go ]; do sleep 0.02; done; [ -e more ] && echo more; exit 0");
    let expected: String = (1..=10_000).map(|number| format!("{number}\n")).collect();
    for (more, end) in [(false, ""), (true, "more\n")] {
        let id = controller.assign(&job);
        controller.logged(id, "\n10000\n");
        controller.world().attempts.get_mut(&(id.to_string(), 1)).unwrap().log.truncate(4000);
        let work = place.run_dir().join("work");
        if more {
            std::fs::write(work.join("more"), "").unwrap();
        }
        std::fs::write(work.join("go"), "").unwrap();
        assert_eq!(controller.ended(id).text(), format!("{expected}{end}"));
        until("nothing is left", || place.list("runs").is_empty());
    }
    daemon.stop();
}
