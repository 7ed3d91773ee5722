//! The executor goes away, or a shim does, and what is left is found again.

use std::fs;
use std::time::Duration;

use octavius_proto::v1;
use rustix::process::{Pid, Signal, kill_process};
use serde_json::json;

use crate::controller::Controller;
use crate::daemon::Place;
use crate::{is_running, until};

const WAITS: &str = "echo $$; echo before; while ! [ -e go ]; do sleep 0.02; done; echo after";

fn sh(script: &str) -> serde_json::Value {
    json!({"name": "j", "command": ["sh", "-c", script]})
}

fn expected(log: &str) -> bool {
    let lines: Vec<_> = log.lines().collect();
    lines.len() == 3 && lines[1..] == ["before", "after"]
}

fn held_by_last_hello(controller: &Controller) -> Vec<String> {
    controller.world().hellos.last().unwrap().held.iter().map(|held| held.id.clone()).collect()
}

#[test]
fn a_job_outlives_its_executor_and_its_log_is_whole() {
    let controller = Controller::start();
    let place = Place::near(&controller);
    for killed in [true, false] {
        let daemon = place.start();
        let id = controller.assign(&sh(WAITS));
        controller.logged(id, "before");
        if killed {
            daemon.kill();
        } else {
            daemon.stop();
        }
        let run_dir = place.run_dir();
        assert_eq!(place.journal().len(), 2, "the job runs on");
        controller.world().attempts.get_mut(&(id.to_string(), 1)).unwrap().runs_as = None;
        let daemon = place.start();
        until("the attempt is named", || held_by_last_hello(&controller) == [id.to_string()]);
        let runs_as = format!("pid {}", place.journal()[1]);
        until("it is shown as running", || controller.record(id, 1).runs_as.as_ref() == Some(&runs_as));
        fs::write(run_dir.join("work/go"), "").unwrap();
        let record = controller.ended(id);
        assert!(expected(&record.text()), "{:?}", record.text());
        assert_eq!(record.ending().unwrap().outcome(), v1::ExecutionState::Succeeded);
        until("nothing is left", || place.list("runs").is_empty());
        daemon.stop();
    }
}

#[test]
fn an_end_that_nobody_saw_is_reported_by_the_next_executor() {
    let controller = Controller::start();
    let place = Place::near(&controller);
    let daemon = place.start();
    let id = controller.assign(&sh(&format!("{WAITS}; exit 5")));
    controller.logged(id, "before");
    daemon.kill();
    fs::write(place.run_dir().join("work/go"), "").unwrap();
    until("the job ends", || place.journal().len() == 3);
    let daemon = place.start();
    let record = controller.ended(id);
    assert_eq!((record.ending().unwrap().exit_code, expected(&record.text())), (Some(5), true));
    daemon.stop();
}

#[test]
fn an_end_that_was_taken_but_never_answered_is_reported_again_with_the_same_words() {
    let controller = Controller::start();
    let place = Place::near(&controller);
    let daemon = place.start();
    controller.world().lose_finished_answers = u32::MAX;
    let id = controller.assign(&sh("seq 1 100000"));
    let reports = controller.ended(id).finished_reports;
    daemon.kill();
    controller.world().lose_finished_answers = 0;
    let daemon = place.start();
    until("it is reported again", || controller.record(id, 1).finished_reports > reports);
    until("nothing is left", || place.list("runs").is_empty() && place.list("quarantine").is_empty());
    daemon.stop();
}

#[test]
fn a_job_that_was_only_prepared_starts_under_the_next_executor() {
    let controller = Controller::start();
    let place = Place::near(&controller);
    let daemon = place.start();
    controller.world().hold_starting = true;
    let id = controller.assign(&sh("echo once"));
    place.prepared();
    daemon.kill();
    controller.world().hold_starting = false;
    let daemon = place.start();
    assert_eq!(controller.ended(id).text(), "once\n");
    daemon.stop();
}

#[test]
fn a_cancel_that_an_executor_did_not_live_to_carry_out_is_carried_out_by_the_next() {
    let controller = Controller::start();
    let place = Place::near(&controller);
    let daemon = place.start();
    let id = controller.assign(&sh("echo ready; sleep 60"));
    controller.logged(id, "ready");
    daemon.kill();
    fs::write(place.run_dir().join("stop"), "cancelled").unwrap();
    let daemon = place.start();
    assert_eq!(controller.ended(id).ending().unwrap().outcome(), v1::ExecutionState::Cancelled);
    daemon.stop();
}

#[test]
fn a_killed_shim_is_told_and_what_it_left_is_killed() {
    let controller = Controller::start();
    let place = Place::near(&controller);
    for executor_sees_it in [true, false] {
        let daemon = place.start();
        let id = controller.assign(&sh("setsid sh -c 'echo $$; exec sleep 60' & echo $$; wait"));
        until("both have said who they are", || controller.record(id, 1).text().lines().count() == 2);
        let pids: Vec<u32> = controller.record(id, 1).text().lines().map(|line| line.parse().unwrap()).collect();
        let shim: i32 = place.journal()[1].parse().unwrap();
        let daemon = if executor_sees_it {
            kill_process(Pid::from_raw(shim).unwrap(), Signal::KILL).unwrap();
            daemon
        } else {
            daemon.kill();
            kill_process(Pid::from_raw(shim).unwrap(), Signal::KILL).unwrap();
            until("the shim is gone", || !is_running(u32::try_from(shim).unwrap()));
            place.start()
        };
        let ending = controller.ended(id).ending().unwrap();
        assert_eq!((ending.outcome(), ending.reason.as_str()), (v1::ExecutionState::Lost, "RUNNER_LOST"));
        until("what it left is gone", || !pids.iter().any(|&pid| is_running(pid)));
        daemon.stop();
    }
}

#[test]
fn a_restart_of_the_machine_before_the_start_is_not_taken_for_nothing_having_run() {
    let controller = Controller::start();
    let place = Place::near(&controller);
    let daemon = place.start();
    controller.world().hold_starting = true;
    let id = controller.assign(&sh("echo twice"));
    place.prepared();
    daemon.kill();
    controller.world().hold_starting = false;
    let mut spec: serde_json::Value = serde_json::from_str(&place.journal()[0]).unwrap();
    spec["boot"] = json!("another");
    fs::write(place.run_dir().join("journal"), format!("{spec}\n")).unwrap();
    let daemon = place.start();
    let record = controller.ended(id);
    assert_eq!((record.ending().unwrap().reason.as_str(), record.text().as_str()), ("RUNNER_LOST", ""));
    daemon.stop();
}

#[test]
fn what_cannot_be_understood_is_put_aside_and_is_no_hindrance() {
    let controller = Controller::start();
    let place = Place::near(&controller);
    let runs = place.data_dir().join("runs");
    for (name, spec) in [("junk", Some("{")), ("newer", Some("{\"version\": 99}\n")), ("bare", None), ("half-removed", None)] {
        fs::create_dir_all(runs.join(name).join("work")).unwrap();
        if let Some(spec) = spec {
            fs::write(runs.join(name).join("journal"), spec).unwrap();
        }
    }
    fs::write(runs.join("half-removed/output"), "something").unwrap();
    fs::write(runs.join("a-file"), "something").unwrap();
    fs::create_dir(runs.join("secret")).unwrap();
    fs::write(runs.join("secret/journal"), "{\"version\":99,\"env\":{\"KEY\":\"hunter2\"}}\n").unwrap();
    let daemon = place.start();
    let id = controller.assign(&sh("echo x"));
    assert_eq!(controller.ended(id).text(), "x\n");
    let mut aside = place.list("quarantine");
    aside.sort();
    assert_eq!(aside, ["a-file", "junk", "newer", "secret"]);
    let journal = fs::read_to_string(place.data_dir().join("quarantine/secret/journal")).unwrap();
    assert_eq!(journal, "{\"env\":{},\"version\":99}\n");
    until("nothing else is left", || place.list("runs").is_empty());
    daemon.stop();
}

#[test]
fn an_executor_that_is_stopping_hands_back_or_leaves_to_the_next_what_has_not_begun() {
    let controller = Controller::start();
    let place = Place::near(&controller);
    let daemon = place.start();
    controller.world().hold_starting = true;
    let id = controller.assign_with(&sh("echo x"), &[], Duration::from_secs(60));
    place.prepared();
    daemon.stop();
    assert_eq!(place.journal().len(), 1);
    controller.world().hold_starting = false;
    let daemon = place.start();
    assert_eq!(controller.ended(id).text(), "x\n");
    daemon.stop();
}

#[test]
fn a_log_of_which_the_controller_has_more_than_a_power_loss_left_here_ends_all_the_same() {
    let controller = Controller::start();
    let place = Place::near(&controller);
    let daemon = place.start();
    let id = controller.assign(&sh("seq 1 1000; while ! [ -e go ]; do sleep 0.02; done; exit 4"));
    controller.logged(id, "1000\n");
    daemon.kill();
    let run_dir = place.run_dir();
    fs::write(run_dir.join("work/go"), "").unwrap();
    until("the job ends", || place.journal().len() == 3);
    fs::OpenOptions::new().write(true).open(run_dir.join("output")).unwrap().set_len(10).unwrap();
    let daemon = place.start();
    let record = controller.ended(id);
    assert_eq!((record.ending().unwrap().exit_code, record.finished.unwrap().log_size), (Some(4), 10));
    until("nothing is left", || place.list("runs").is_empty());
    assert!(place.list("quarantine").is_empty());
    daemon.stop();
}
