//! What happens when nothing goes wrong, and when only the job does.

use std::time::{Duration, Instant};

use octavius_core::ExecutorId;
use octavius_executor::{Credential, ExecutorError, ExecutorOptions, SecretOffers};
use octavius_proto::client::Address;
use octavius_proto::{reason, v1};
use serde_json::json;
use tonic::Code;

use crate::controller::{Controller, TOKEN};
use crate::daemon::{Daemon, Place};
use crate::{is_running, until};

fn sh(script: &str) -> serde_json::Value {
    json!({"name": "j", "command": ["sh", "-c", script]})
}

fn shown(ending: &v1::Ending) -> String {
    format!("{} {} {:?} {}", ending.outcome().as_str_name(), ending.reason, ending.exit_code, ending.message)
        .replace("EXECUTION_STATE_", "")
}

#[test]
fn a_job_runs_and_its_log_and_end_arrive_and_nothing_is_left() {
    let controller = Controller::start();
    let place = Place::near(&controller);
    let daemon = place.start();
    let job = json!({"name": "greet", "command": ["sh", "-c", r#"echo "hello $who ($OCTAVIUS_ATTEMPT, $OCTAVIUS_USER)"; printf '\377\000'"#],
        "env_vars": {"args": [{"name": "who"}]}});
    let id = controller.assign_with(&job, &[("who", "bob")], Duration::from_secs(9));
    let record = controller.ended(id);
    assert_eq!(shown(&record.ending().unwrap()), "SUCCEEDED  Some(0) ");
    assert_eq!(record.log, b"hello bob (1, ann)\n\xff\x00");
    assert_eq!((record.repeated, record.finished_reports), (0, 1));
    until("the run folder is gone", || place.list("runs").is_empty());
    let hello = controller.world().hellos[0].clone();
    assert_eq!((hello.runner.as_str(), hello.capacity, hello.held.len()), ("process", 4, 0));
    assert_eq!((hello.version.as_str(), hello.labels["vpc"].as_str()), (env!("CARGO_PKG_VERSION"), "a"));
    daemon.stop();
}

#[test]
fn ends_are_told_as_they_were() {
    let controller = Controller::start();
    let place = Place::near(&controller);
    let daemon = place.start();
    for (job, timeout, expected) in [
        (sh("exit 3"), 60_000, "FAILED EXIT_CODE Some(3) exit code 3"),
        (sh("kill -KILL $$"), 60_000, "FAILED SIGNAL Some(137) killed by SIGKILL (9)"),
        (sh("sleep 60"), 200, "TIMED_OUT DEADLINE None ran longer than 200ms"),
        (
            json!({"name": "j", "command": ["no-such-program"]}),
            60_000,
            "FAILED START_FAILED None program not found: no-such-program is in no",
        ),
        (
            json!({"name": "j", "image_name": "x:1"}),
            60_000,
            "FAILED REQUIREMENT_NOT_MET None the job has no `command`, which the process runner",
        ),
        (json!({"name": "j", "a_newer_field": 1}), 60_000, "FAILED REQUIREMENT_NOT_MET None executor version"),
    ] {
        let id = controller.assign_with(&job, &[], Duration::from_millis(timeout));
        let ending = shown(&controller.ended(id).ending().unwrap());
        assert!(ending.starts_with(expected), "{ending}");
    }
    daemon.stop();
}

#[test]
fn secrets_reach_the_job_and_nothing_else() {
    let controller = Controller::start();
    let place = Place::near(&controller);
    let file = place.data_dir().with_file_name("secret");
    std::fs::write(&file, "fr0m-file\n").unwrap();
    let secrets = SecretOffers {
        environment: vec!["PA*".to_owned(), "NOT_SET".to_owned()],
        files: vec![file.display().to_string(), "/no/".to_owned()],
        kubernetes: Vec::new(),
    };
    let daemon = Daemon::start(ExecutorOptions { secrets, ..place.options() });
    let secrets = |secrets: serde_json::Value| {
        let script =
            r#"[ "$KEY" = fr0m-file ] && [ -n "$WHERE" ] && echo "key $KEY pin $pin"; printf fr0m; sleep 0.2; echo -file"#;
        let args = json!([{"name": "pin", "sensitive": true}]);
        json!({"name": "j", "command": ["sh", "-c", script], "env_vars": {"secrets": secrets, "args": args}})
    };
    let job = secrets(json!([{"name": "KEY", "from": {"file": file}}, {"name": "WHERE", "from": {"environment": "PATH"}}]));
    let id = controller.assign_with(&job, &[("pin", "314159")], Duration::from_secs(60));
    assert_eq!(controller.ended(id).text(), "key ********* pin ******\n*********\n");

    for (from, reason) in [
        (json!({"file": "/no/such"}), "SECRET_MISSING"),
        (json!({"environment": "NOT_SET"}), "SECRET_MISSING"),
        (json!({"kubernetes": {"secret": "s", "key": "k"}}), "SECRET_MISSING"),
        (json!(null), "SECRET_MISSING"),
        (json!({"file": "/proc/self/environ"}), "SECRET_NOT_OFFERED"),
        (json!({"file": place.data_dir().join("lock")}), "SECRET_NOT_OFFERED"),
        (json!({"environment": "HOME"}), "SECRET_NOT_OFFERED"),
    ] {
        let id = controller.assign(&secrets(json!([{"name": "KEY", "from": from}])));
        let record = controller.ended(id);
        let ending = record.ending().unwrap();
        assert_eq!(ending.reason, reason);
        assert!(ending.message.contains("`KEY`") && !record.starting, "{ending:?}");
    }
    until("nothing is left", || place.list("runs").is_empty());
    daemon.stop();
}

#[test]
fn a_long_job_is_reported_as_running_and_read_meanwhile() {
    let controller = Controller::start();
    let place = Place::near(&controller);
    let daemon = place.start();
    let id = controller.assign(&sh("echo first; while ! [ -e go ]; do sleep 0.02; done; echo second"));
    controller.logged(id, "first\n");
    until("it is reported as running", || controller.record(id, 1).runs_as.is_some_and(|runs_as| runs_as.starts_with("pid ")));
    std::fs::write(place.run_dir().join("work/go"), "").unwrap();
    assert_eq!(controller.ended(id).text(), "first\nsecond\n");
    daemon.stop();
}

#[test]
fn a_cancelled_job_is_stopped_and_says_so() {
    let controller = Controller::start();
    let place = Place::near(&controller);
    let daemon = place.start();
    let id = controller.assign(&sh("trap '' TERM; echo ready; sleep 60 & wait; sleep 60"));
    controller.logged(id, "ready");
    controller.stop(id, v1::StopCause::Cancelled);
    assert_eq!(shown(&controller.ended(id).ending().unwrap()), "CANCELLED CANCELLED None stopped as requested");
    until("nothing is left", || place.list("runs").is_empty());
    daemon.stop();
}

#[test]
fn a_fenced_attempt_is_stopped_and_forgotten_without_a_word() {
    let controller = Controller::start();
    let place = Place::near(&controller);
    let daemon = place.start();
    let id = controller.assign(&sh("echo $$; sleep 60"));
    controller.logged(id, "\n");
    let pid = controller.record(id, 1).text().trim().parse().unwrap();
    controller.stop(id, v1::StopCause::Fenced);
    until("nothing is left", || place.list("runs").is_empty());
    assert!(!is_running(pid));
    assert!(controller.record(id, 1).finished.is_none());
    // A start that is answered with "stop" comes to the same.
    let id = assign_what_is_anothers(&controller);
    until("it is let go", || controller.world().pings.last() == Some(&4) && place.list("runs").is_empty());
    assert!(controller.record(id, 1).finished.is_none());
    daemon.stop();
}

/// An attempt that is another's before it begins.
fn assign_what_is_anothers(controller: &Controller) -> octavius_core::ExecutionId {
    controller.world().hold_starting = true;
    let id = controller.assign(&sh("echo never"));
    let mut world = controller.world();
    world.attempts.get_mut(&(id.to_string(), 1)).unwrap().fenced = true;
    world.hold_starting = false;
    world.pings.clear();
    id
}

#[test]
fn what_is_beyond_the_capacity_is_handed_back_and_what_is_known_is_not_run_twice() {
    let controller = Controller::start();
    let mut place = Place::near(&controller);
    place.capacity = 2;
    let daemon = place.start();
    let long = sh("echo ready; sleep 60");
    let held: Vec<_> = (0..2).map(|_| controller.assign(&long)).collect();
    held.iter().for_each(|&id| controller.logged(id, "ready"));
    controller.assign_again(held[0]);
    let beyond = controller.assign(&long);
    until("it is handed back", || controller.record(beyond, 1).handed_back.is_some());
    until("no slot is free", || controller.world().pings.last() == Some(&0));
    controller.stop(held[0], v1::StopCause::Cancelled);
    assert_eq!(controller.ended(held[0]).text(), "ready\n");
    until("a slot is free", || controller.world().pings.last() == Some(&1));
    let next = controller.assign(&sh("true"));
    controller.ended(next);
    controller.stop(held[1], v1::StopCause::Cancelled);
    controller.ended(held[1]);
    daemon.stop();
}

#[test]
fn an_executor_that_can_make_nothing_ready_gives_back_and_takes_nothing_until_it_can() {
    let controller = Controller::start();
    let place = Place::near(&controller);
    let daemon = place.start();
    until("it is there", || controller.world().pings.last() == Some(&4));
    let runs = place.data_dir().join("runs");
    std::fs::remove_dir(&runs).unwrap();
    std::fs::write(&runs, "no folder").unwrap();
    let id = controller.assign(&sh("true"));
    until("it is handed back", || controller.record(id, 1).handed_back.is_some());
    let message = controller.record(id, 1).handed_back.unwrap();
    assert!(message.contains("could not write its run folder"), "{message}");
    until("no slot is free", || controller.world().pings.last() == Some(&0));
    std::fs::remove_file(&runs).unwrap();
    std::fs::create_dir(&runs).unwrap();
    until("the slots are free again", || controller.world().pings.last() == Some(&4));
    let id = controller.assign(&sh("true"));
    assert_eq!(shown(&controller.ended(id).ending().unwrap()), "SUCCEEDED  Some(0) ");
    daemon.stop();
}

#[test]
fn a_hundred_jobs_at_once_come_out_right() {
    let controller = Controller::start();
    let mut place = Place::near(&controller);
    place.capacity = 100;
    let daemon = place.start();
    let ids: Vec<_> = (0..100).map(|number| controller.assign(&sh(&format!("echo {number}; exit {number}")))).collect();
    for (number, id) in ids.into_iter().enumerate() {
        let record = controller.ended(id);
        assert_eq!(record.text(), format!("{number}\n"));
        assert_eq!(record.ending().unwrap().exit_code, Some(i32::try_from(number).unwrap()));
    }
    daemon.stop();
}

#[test]
fn registration_shows_the_hash_of_a_token_that_is_kept_or_says_why_not() {
    let controller = Controller::start();
    let runtime = tokio::runtime::Runtime::new().unwrap();
    let (addresses, id) = ([Address::parse(&controller.address.to_string()).unwrap()], ExecutorId::new("e1").unwrap());
    let folder = tempfile::tempdir().unwrap();
    let dir = folder.path();
    let register =
        |token: &'static str| runtime.block_on(octavius_executor::register(&addresses, token, &id, dir, Duration::from_secs(2)));
    let refused = register("octr_bad").unwrap_err();
    assert_eq!(refused.to_string(), "executor `e1` was not registered: no valid token");
    assert!(Credential::read(dir, &id).unwrap().is_none());
    register("octr_good").unwrap();
    let kept: serde_json::Value = serde_json::from_str(&std::fs::read_to_string(Credential::path(dir)).unwrap()).unwrap();
    let hash = octavius_core::Digest::of(kept["token"].as_str().unwrap().as_bytes());
    assert_eq!(controller.world().registered, [hash.as_bytes().to_vec()]);
    drop(controller);
    until("nobody answers", || matches!(register("octr_good").unwrap_err(), ExecutorError::Connect(_)));
}

/// A controller that takes connections and has nothing to give must not win each time because it stands first.
#[test]
fn a_session_that_breaks_or_is_refused_is_taken_elsewhere() {
    let (mut first, second, mut third) = (Controller::start(), Controller::start(), Controller::start());
    let place = Place::among(&[&first, &second, &third]);
    let unavailable = Some((Code::Unavailable, reason::STORE_UNAVAILABLE));
    first.world().refuse_sessions = unavailable;
    second.world().refuse_sessions = unavailable;
    let daemon = place.start();
    until("a session with the third, since neither of the others takes it", || third.world().pings.len() > 1);
    second.world().refuse_sessions = None;
    first.kill();
    third.kill();
    until("a session with the second", || second.world().pings.len() > 1);
    daemon.stop();
}

#[test]
fn what_no_repetition_would_cure_ends_the_executor_with_what_to_do() {
    let controller = Controller::start();
    let mut place = Place::near(&controller);
    place.token = "octe_bad".to_owned();
    let message = place.start().gives_up().to_string();
    assert!(message.contains("register it again") && !message.contains("octe_bad"), "{message}");
    assert!(!format!("{:?}", place.options()).contains("octe_bad"));

    place.token = TOKEN.to_owned();
    controller.world().refuse_sessions = Some((Code::AlreadyExists, reason::SESSION_EXISTS));
    let begun = Instant::now();
    assert!(matches!(place.start().gives_up(), ExecutorError::SessionExists { .. }));
    assert!(controller.world().hellos.len() > 2, "it tried for a while");
    // However fast all else is: the lease of a presence whose controller was killed has a shortest time, whose end must be waited for.
    assert!(begun.elapsed() > Duration::from_secs(4), "{:?}", begun.elapsed());

    controller.world().refuse_sessions = None;
    let first = place.start();
    until("the first has the folder", || controller.world().pings.len() > 1);
    let second = place.start().gives_up();
    assert!(matches!(second, ExecutorError::DataDirInUse { .. }), "{second}");
    first.stop();
    place.capacity = 0;
    assert!(matches!(place.start().gives_up(), ExecutorError::NoCapacity));
}

/// Either of them may be upgraded meanwhile: what runs is not given up for it.
#[test]
fn versions_that_do_not_go_together_are_tried_again_slowly_until_they_do() {
    let controller = Controller::start();
    let place = Place::near(&controller);
    controller.world().refuse_sessions = Some((Code::FailedPrecondition, reason::VERSION_SKEW));
    let begun = Instant::now();
    let daemon = place.start();
    until("it has tried three times", || controller.world().hellos.len() >= 3);
    assert!(begun.elapsed() > Duration::from_secs(1), "{:?}", begun.elapsed());
    // A controller that takes every executor is looked at as well.
    {
        let mut world = controller.world();
        world.refuse_sessions = None;
        world.version = Some("9.0.0".to_owned());
    }
    let tries = controller.world().hellos.len();
    until("it has tried twice more", || controller.world().hellos.len() >= tries + 2);
    assert_eq!(controller.world().pings.len(), 0, "no session stood");
    controller.world().version = None;
    until("a session", || controller.world().pings.len() > 1);
    daemon.stop();
}
