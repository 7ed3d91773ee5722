//! What others do to Jobs and pods, and stops.

use std::time::{Duration, Instant};

use octavius_proto::timestamp;
use octavius_proto::v1::StopCause;
use octavius_tests::{Kubernetes, Mode};
use serde_json::json;

use super::{Site, sh};

#[test]
fn a_cancelled_job_is_stopped_and_told_so_and_a_fenced_one_is_stopped_and_nothing_is_told() {
    let cluster = Kubernetes::shared().unwrap();
    let site = Site::new(&cluster);
    let daemon = site.start();
    let script = "trap 'echo told; exit 0' TERM; echo begun; while true; do sleep 0.1; done";
    let cancelled = site.run(&sh(script));
    let fenced = site.run(&sh(script));
    site.logged(cancelled, "begun\n");
    site.logged(fenced, "begun\n");
    site.controller.stop(cancelled, StopCause::Cancelled);
    site.controller.stop(fenced, StopCause::Fenced);
    let record = site.ended(cancelled);
    assert_eq!(super::shown(&record.ending().unwrap()), "CANCELLED CANCELLED None stopped as requested");
    assert_eq!(record.text(), "begun\ntold\n");
    site.nothing_left();
    assert!(site.controller.record(fenced, 1).finished.is_none());
    daemon.stop();
}

#[test]
fn a_pod_that_is_deleted_or_evicted_is_the_infrastructures_fault_and_the_gap_is_told() {
    let cluster = Kubernetes::shared().unwrap();
    let site = Site::new(&cluster);
    let daemon = site.start();
    let deleted = site.run(&sh("echo begun; sleep 600"));
    let evicted = site.run(&sh("echo begun; sleep 600"));
    site.logged(deleted, "begun\n");
    site.logged(evicted, "begun\n");
    cluster.delete(&site.namespace.path(&format!("pods/{}", site.pod(deleted)))).unwrap();
    let pod = site.pod(evicted);
    let eviction = json!({"apiVersion": "policy/v1", "kind": "Eviction", "metadata": {"name": pod}});
    cluster.post(&site.namespace.path(&format!("pods/{pod}/eviction")), &eviction).unwrap();
    for (id, expected) in
        [(deleted, "was deleted on node localhost"), (evicted, "was taken off node localhost: EvictionByEvictionAPI")]
    {
        let told = site.ending(id);
        let gap = "what the job printed last may be missing from the log";
        assert!(told.starts_with("FAILED INFRASTRUCTURE None pod ") && told.contains(expected) && told.contains(gap), "{told}");
        assert_eq!(site.controller.record(id, 1).text(), "begun\n");
    }
    site.nothing_left();
    daemon.stop();
}

#[test]
fn a_job_that_someone_deletes_is_told_within_half_a_minute() {
    let cluster = Kubernetes::shared().unwrap();
    let site = Site::new(&cluster);
    let daemon = site.start();
    for how in ["Background", "Foreground"] {
        let id = site.run(&sh("trap 'exit 0' TERM; echo begun; while true; do sleep 0.1; done"));
        site.logged(id, "begun\n");
        let begun = Instant::now();
        cluster.delete(&format!("{}?propagationPolicy={how}", site.job_path(id))).unwrap();
        let told = site.ending(id);
        assert!(told.starts_with("FAILED DELETED_EXTERNALLY None the Kubernetes Job was deleted"), "{how}: {told}");
        assert!(begun.elapsed() < Duration::from_secs(30), "{how}: {:?}", begun.elapsed());
    }
    site.nothing_left();
    daemon.stop();
}

#[test]
fn a_job_that_is_there_already_is_taken_up_if_it_is_this_attempts_and_named_if_it_is_not() {
    let cluster = Kubernetes::shared().unwrap();
    let site = Site::new(&cluster);
    // Nobody listens yet: the assignments wait.
    let session = json!({"name": "j", "image_name": Kubernetes::BUSYBOX, "command": ["true"]});
    let (ours, other) = (site.controller.prepare(&session), site.controller.prepare(&session));
    for (id, executor) in [(ours, "e1"), (other, "e2")] {
        let name = format!("octavius-{id}-1");
        let labels = json!({"octavius/id": id.to_string(), "octavius/attempt": "1", "octavius/executor": executor});
        let container = json!({"name": "job", "image": Kubernetes::BUSYBOX, "command": ["echo", "made before"]});
        let job = json!({"metadata": {"name": name, "labels": labels}, "spec": {"suspend": true, "backoffLimit": 0,
            "template": {"metadata": {"labels": labels}, "spec": {"restartPolicy": "Never", "containers": [container]}}}});
        cluster.post(&site.namespace.batch("jobs"), &job).unwrap();
    }
    let daemon = site.start();
    let record = site.ended(ours);
    assert_eq!(
        (super::shown(&record.ending().unwrap()).as_str(), record.text().as_str()),
        ("SUCCEEDED  Some(0) ", "made before\n")
    );
    let told = site.ending(other);
    assert!(told.starts_with("FAILED CONFLICT None ") && told.contains(&format!("`octavius-{other}-1`")), "{told}");
    let left = cluster.get(&site.job_path(other)).unwrap();
    assert_eq!(left["spec"]["suspend"], true, "what is not ours is not touched");
    daemon.stop();
}

/// Between a job's start and its end the executor hears nothing, and by then the API server knows nothing any more of what it missed.
#[test]
fn an_end_that_was_missed_and_forgotten_by_the_cluster_is_found_by_listing_again() {
    let cluster = Kubernetes::alone().unwrap();
    let site = Site::new(&cluster);
    let proxy = site.through_a_proxy();
    let user = format!("system:serviceaccount:{}:executor", site.namespace.name());
    let calls = |verb: &str, resource: &str| {
        let events = cluster.audit(&user).unwrap();
        events.iter().filter(|event| event["verb"] == verb && event["objectRef"]["resource"] == resource).count()
    };
    let daemon = site.start();
    let ids = [site.run(&sh("echo begun; sleep 2; echo over")), site.run(&sh("echo begun; sleep 2; exit 3"))];
    for id in ids {
        site.logged(id, "begun\n");
    }
    let seen = cluster.get(&site.namespace.batch("jobs")).unwrap()["metadata"]["resourceVersion"].clone();
    let listed = (calls("list", "jobs"), calls("list", "pods"));
    proxy.set(Mode::Reset);
    for (id, condition) in ids.into_iter().zip(["Complete", "Failed"]) {
        site.job(id, "the job's end", |job| {
            let mut conditions = job["status"]["conditions"].as_array().into_iter().flatten();
            conditions.any(|seen| seen["type"] == condition)
        });
    }
    cluster.forget_history().unwrap();
    // What the executor is about to be told.
    let old = format!("jobs?watch=true&timeoutSeconds=5&resourceVersion={}", seen.as_str().unwrap());
    let answer = cluster.text(&site.namespace.batch(&old)).unwrap_or_else(|error| error.to_string());
    assert!(answer.contains("410"), "{answer}");
    proxy.set(Mode::Pass);
    assert_eq!(site.ending(ids[0]), "SUCCEEDED  Some(0) ");
    assert_eq!(site.controller.record(ids[0], 1).text(), "begun\nover\n");
    assert_eq!(site.ending(ids[1]), "FAILED EXIT_CODE Some(3) exit code 3");
    // Either watch may be the one that tells the ends; the other finds out a moment later.
    octavius_tests::eventually("both are listed again", || {
        let again = (calls("list", "jobs"), calls("list", "pods"));
        anyhow::ensure!(again.0 > listed.0 && again.1 > listed.1, "{listed:?}, then {again:?}");
        Ok(())
    })
    .unwrap();
    site.nothing_left();
    daemon.stop();
}

#[test]
fn a_job_that_nobody_knows_is_deleted_after_a_while_and_one_that_is_let_be_is_not() {
    let cluster = Kubernetes::shared().unwrap();
    let mut site = Site::new(&cluster);
    site.options.orphan_delay = octavius_core::HumanDuration::new(Duration::from_secs(2));
    let make = |name: &str, annotations: serde_json::Value| {
        let labels = json!({"octavius/executor": "e1"});
        let container = json!({"name": "job", "image": Kubernetes::BUSYBOX, "command": ["true"]});
        let job = json!({"metadata": {"name": name, "labels": labels, "annotations": annotations}, "spec": {"suspend": true,
            "template": {"spec": {"restartPolicy": "Never", "containers": [container]}}}});
        cluster.post(&site.namespace.batch("jobs"), &job).unwrap();
    };
    make("octavius-orphan", json!({}));
    make("octavius-let-be", json!({"octavius/let-be": "restored"}));
    let daemon = site.start();
    octavius_tests::eventually("the orphan is gone", || {
        let jobs = cluster.get(&site.namespace.batch("jobs"))?;
        let names: Vec<_> = jobs["items"].as_array().unwrap().iter().map(|job| job["metadata"]["name"].clone()).collect();
        anyhow::ensure!(names == ["octavius-let-be"], "{names:?}");
        Ok(())
    })
    .unwrap();
    let told = octavius_tests::eventually("it is told that there is none any more", || {
        let told = site.controller.world().orphans.clone();
        anyhow::ensure!(told.last().is_some_and(|last| last.count == 0), "{told:?}");
        Ok(told)
    })
    .unwrap();
    let [orphan] = &told[0].orphans[..] else { panic!("{told:?}") };
    assert_eq!((told[0].count, orphan.name.as_str(), orphan.namespace.as_str()), (1, "octavius-orphan", site.namespace.name()));
    let at = |time: Option<_>| timestamp("at", &time.unwrap()).unwrap();
    let delay = Duration::try_from(at(orphan.removed_at).duration_since(at(orphan.since))).unwrap();
    assert!(delay >= Duration::from_secs(2) && delay < Duration::from_secs(30), "{delay:?}");
    assert_eq!(told.len(), 2, "only changes are told: {told:?}");
    daemon.stop();
}
