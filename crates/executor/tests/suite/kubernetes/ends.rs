//! How jobs run, and every way in which they end.

use std::time::Duration;

use octavius_tests::Kubernetes;
use serde_json::json;

use super::{Site, sh, sh_with};

#[test]
fn a_job_runs_in_a_pod_and_its_log_and_end_arrive_and_nothing_is_left() {
    let cluster = Kubernetes::shared().unwrap();
    let site = Site::new(&cluster);
    let daemon = site.start();
    let job = sh_with(
        r#"echo "hello $who ($OCTAVIUS_ATTEMPT, $OCTAVIUS_USER, $OCTAVIUS_JOB)"; sleep 1; printf '\377\000'"#,
        &json!({"name": "Hello-Friend", "env_vars": {"args": [{"name": "who"}]}}),
    );
    let id = site.controller.assign_with(&job, &[("who", "$(PATH) $$ bob")], Duration::from_secs(60));
    let made = site.job(id, "a resumed Job", |job| job["spec"]["suspend"] == false);
    assert_eq!(made["metadata"]["labels"]["app.kubernetes.io/job"], "Hello-Friend");
    let record = site.ended(id);
    assert_eq!(super::shown(&record.ending().unwrap()), "SUCCEEDED  Some(0) ");
    assert_eq!(record.log, b"hello $(PATH) $$ bob (1, ann, Hello-Friend)\n\xff\x00");
    assert_eq!((record.repeated, record.finished_reports), (0, 1));
    assert_eq!(record.runs_as, Some(format!("job {}/octavius-{id}-1", site.namespace.name())));
    site.nothing_left();
    assert_eq!(site.controller.world().hellos[0].runner, "kubernetes");
    daemon.stop();
}

#[test]
fn ends_are_told_as_they_were_and_say_what_to_do() {
    let cluster = Kubernetes::shared().unwrap();
    let site = Site::new(&cluster);
    let daemon = site.start();
    let minute = Duration::from_secs(60);
    let with = |more| sh_with("true", &more);
    let expected = [
        (sh("exit 3"), minute, "FAILED EXIT_CODE Some(3) exit code 3"),
        (sh("sh -c 'kill -9 $$'; exit $?"), minute, "FAILED SIGNAL Some(137) killed by SIGKILL (9)"),
        (sh("sleep 60"), Duration::from_millis(1500), "TIMED_OUT DEADLINE None ran longer than 1s500ms"),
        (
            sh_with("tail /dev/zero", &json!({"resources": {"limits": {"memory": "16Mi"}}})),
            minute,
            "FAILED OOM_KILLED Some(137) killed because it used more memory than it may: raise",
        ),
        (with(json!({"command": ["no-such-program"]})), minute, "FAILED START_FAILED None the container could not be started: "),
        (with(json!({"image_name": "no image"})), minute, "FAILED IMAGE_PULL None the image cannot be pulled: InvalidImageName"),
        (
            with(json!({"image_name": "octavius.test/none:1"})),
            minute,
            "FAILED IMAGE_PULL None not started within 8s: the image cannot be pulled: ",
        ),
        (
            with(json!({"resources": {"requests": {"cpu": "1000"}}})),
            minute,
            "FAILED UNSCHEDULABLE None not started within 8s: no node takes the pod: ",
        ),
        (
            with(json!({"resources": {"requests": {"cpu": "many"}}})),
            minute,
            "FAILED REQUIREMENT_NOT_MET None the cluster does not take the Job: ",
        ),
        (with(json!({"namespace": "kube-system"})), minute, "FAILED FORBIDDEN None namespace `kube-system` is not one"),
        (with(json!({"service_account": "admin"})), minute, "FAILED FORBIDDEN None service account `admin` is not one"),
        (with(json!({"image_name": ""})), minute, "FAILED REQUIREMENT_NOT_MET None the job has no `image_name`"),
    ];
    let ids: Vec<_> = expected.iter().map(|(job, timeout, _)| site.run_for(job, *timeout)).collect();
    let told: Vec<_> = ids.into_iter().map(|id| site.ending(id)).collect();
    let wrong: Vec<_> = told.iter().zip(&expected).filter(|(told, expected)| !told.starts_with(expected.2)).collect();
    assert!(wrong.is_empty(), "{wrong:#?}");
    site.nothing_left();
    daemon.stop();
}

#[test]
fn secrets_reach_the_job_are_masked_in_its_log_and_named_where_they_are_missing() {
    let cluster = Kubernetes::shared().unwrap();
    let site = Site::new(&cluster);
    let secret = json!({"metadata": {"name": "gateway"}, "stringData": {"token": "hunter2hunter2"}});
    cluster.post(&site.namespace.path("secrets"), &secret).unwrap();
    let daemon = site.start();
    let from = |from: serde_json::Value| {
        sh_with(
            r#"echo "$KEY $PIN"; test "$KEY" = hunter2hunter2"#,
            &json!({"env_vars": {"args": [{"name": "PIN", "sensitive": true}], "secrets": [{"name": "KEY", "from": from}]}}),
        )
    };
    let job = from(json!({"kubernetes": {"secret": "gateway", "key": "token"}}));
    let id = site.controller.assign_with(&job, &[("PIN", "987654")], Duration::from_secs(60));
    let record = site.ended(id);
    assert_eq!(
        (super::shown(&record.ending().unwrap()).as_str(), record.text().as_str()),
        ("SUCCEEDED  Some(0) ", "************** ******\n")
    );
    for (source, expected) in [
        (json!({"kubernetes": {"secret": "none", "key": "token"}}), "has no Kubernetes Secret `none`: create it"),
        (json!({"kubernetes": {"secret": "gateway", "key": "none"}}), "has no key `none`"),
        (json!(null), "has no `from`"),
        (json!({"environment": "HOME"}), "is kept on an executor's host"),
    ] {
        let told = site.ending(site.run(&from(source)));
        assert!(told.starts_with("FAILED SECRET_MISSING None secret `KEY`") && told.contains(expected), "{told}");
    }
    // It is there, and this executor could read it.
    let private = json!({"metadata": {"name": "private"}, "stringData": {"token": "swordfish"}});
    cluster.post(&site.namespace.path("secrets"), &private).unwrap();
    let told = site.ending(site.run(&from(json!({"kubernetes": {"secret": "private", "key": "token"}}))));
    assert!(told.starts_with("FAILED SECRET_NOT_OFFERED None secret `KEY`: executor `e1` does not offer"), "{told}");
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    let id = octavius_core::ExecutorId::new("e1").unwrap();
    let mut offers = site.offers();
    offers.add("kubernetes:elsewhere/gateway").unwrap();
    let found = runtime.block_on(octavius_executor::check_kubernetes_offers(&id, &site.options, &offers)).unwrap();
    let found: Vec<_> = found.iter().map(|found| (found.found, found.detail.as_str())).collect();
    let elsewhere = "the executor runs jobs in no such namespace: see `namespaces`";
    assert_eq!(found, [(Some(true), "keys token"), (None, "found when a job names one"), (Some(false), elsewhere)]);
    site.nothing_left();
    daemon.stop();
}

#[test]
fn a_full_quota_is_told_whether_it_is_for_jobs_or_for_pods() {
    let cluster = Kubernetes::shared().unwrap();
    let site = Site::new(&cluster);
    let daemon = site.start();
    for limit in ["pods", "count/jobs.batch"] {
        let name = limit.replace('/', "-");
        let quota = json!({"metadata": {"name": name}, "spec": {"hard": {limit: "0"}}});
        cluster.post(&site.namespace.path("resourcequotas"), &quota).unwrap();
        octavius_tests::eventually("the quota holds", || {
            let quota = cluster.get(&site.namespace.path(&format!("resourcequotas/{name}")))?;
            anyhow::ensure!(quota["status"]["hard"][limit] == "0", "{quota}");
            Ok(())
        })
        .unwrap();
        let told = site.ending(site.run(&sh("true")));
        assert!(told.starts_with("FAILED QUOTA None ") && told.contains("exceeded quota"), "{limit}: {told}");
    }
    site.nothing_left();
    daemon.stop();
}
