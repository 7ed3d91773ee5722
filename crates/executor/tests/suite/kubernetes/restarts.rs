//! Executors that end in the middle, and what the next one makes of it.

use std::time::Duration;

use octavius_proto::v1::StopCause;
use octavius_tests::Kubernetes;

use super::{Site, sh};

#[test]
fn an_executor_that_was_killed_at_any_stage_goes_on_where_it_was_with_its_disk_and_without() {
    let cluster = Kubernetes::shared().unwrap();
    for keeps_disk in [true, false] {
        let site = Site::new(&cluster);
        let forget = || {
            if !keeps_disk {
                std::fs::remove_dir_all(site.data_dir()).unwrap();
            }
        };
        // Created and not resumed: the controller has not said yes.
        site.controller.world().hold_starting = true;
        let daemon = site.start();
        let id = site.run(&sh("echo begun; while [ ! -e /tmp/x ]; do sleep 0.1; i=$((i+1)); [ $i -lt 60 ] || exit 0; done"));
        site.job(id, "a suspended Job", |job| job["spec"]["suspend"] == true);
        octavius_tests::eventually("a run folder", || {
            anyhow::ensure!(site.list("runs").len() == 1, "none");
            Ok(())
        })
        .unwrap();
        daemon.kill();
        forget();
        site.controller.world().hold_starting = false;
        // Resumed and running.
        let daemon = site.start();
        site.logged(id, "begun\n");
        daemon.kill();
        forget();
        // Over, and not reported.
        site.controller.world().unavailable = u32::MAX;
        let daemon = site.start();
        let ended = |job: &serde_json::Value| job["status"]["succeeded"] == 1;
        site.job(id, "a Job that succeeded", ended);
        daemon.kill();
        forget();
        site.controller.world().unavailable = 0;
        let daemon = site.start();
        let record = site.ended(id);
        assert_eq!(super::shown(&record.ending().unwrap()), "SUCCEEDED  Some(0) ");
        assert_eq!(record.text(), "begun\n");
        site.nothing_left();
        daemon.stop();
    }
}

#[test]
fn a_report_whose_answer_was_lost_is_repeated_by_the_next_executor_though_the_job_is_gone() {
    let cluster = Kubernetes::shared().unwrap();
    let site = Site::new(&cluster);
    let daemon = site.start();
    site.controller.world().lose_finished_answers = u32::MAX;
    let id = site.run(&sh("exit 4"));
    site.ended(id);
    daemon.kill();
    cluster.delete(&format!("{}?propagationPolicy=Background", site.job_path(id))).unwrap();
    octavius_tests::eventually("the Job is gone", || {
        anyhow::ensure!(cluster.get(&site.job_path(id)).is_err(), "there");
        Ok(())
    })
    .unwrap();
    site.controller.world().lose_finished_answers = 0;
    let daemon = site.start();
    site.nothing_left();
    assert_eq!(site.ending(id), "FAILED EXIT_CODE Some(4) exit code 4");
    daemon.stop();
}

#[test]
fn a_stop_that_was_asked_for_before_a_restart_is_carried_out_after_it() {
    let cluster = Kubernetes::shared().unwrap();
    let site = Site::new(&cluster);
    let daemon = site.start();
    let id = site.run(&sh("echo begun; sleep 600"));
    site.logged(id, "begun\n");
    daemon.kill();
    let folder = site.data_dir().join("runs").join(&site.list("runs")[0]);
    std::fs::write(folder.join("stop"), "cancelled").unwrap();
    let daemon = site.start();
    assert_eq!(site.ending(id), "CANCELLED CANCELLED None stopped as requested");
    site.nothing_left();
    daemon.stop();
}

#[test]
fn what_the_store_does_not_know_runs_on_and_is_put_aside_and_no_executor_touches_it_again() {
    let cluster = Kubernetes::shared().unwrap();
    let mut site = Site::new(&cluster);
    site.options.orphan_delay = octavius_core::HumanDuration::new(Duration::from_secs(1));
    let daemon = site.start();
    let id = site.run(&sh("echo begun; sleep 3"));
    site.logged(id, "begun\n");
    site.controller.stop(id, StopCause::Unknown);
    octavius_tests::eventually("put aside", || {
        anyhow::ensure!(site.list("quarantine").len() == 1, "no");
        Ok(())
    })
    .unwrap();
    let job = cluster.get(&site.job_path(id)).unwrap();
    assert!(job["metadata"]["annotations"]["octavius/let-be"].is_string(), "{job}");
    daemon.stop();
    std::fs::remove_dir_all(site.data_dir()).unwrap();
    let daemon = site.start();
    let other = site.run(&sh("sleep 4"));
    site.ended(other);
    assert!(cluster.get(&site.job_path(id)).is_ok(), "it is still there");
    assert!(site.controller.record(id, 1).finished.is_none());
    daemon.stop();
}
