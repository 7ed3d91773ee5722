//! What `executor_config.json` says for the kubernetes runner: the keys of the first Octavius with what they meant there, and ours.
//!
//! | key | |
//! | --- | --- |
//! | `kube_config` | `out-of-cluster` takes `$KUBECONFIG` or `~/.kube/config`; anything else the account of the executor's own pod |
//! | `kube_context` | the context in that file |
//! | `default_namespace` | where Jobs go that name no namespace |
//! | `service_account_name` | the account of jobs that name none |
//! | `job_active_deadline_seconds` | longest run of any job, whatever it says; 0 for no limit |
//! | `job_retries` | taken and not used: a job says itself how often it is tried again |
//! | `wait_for_resource_poll_count` | seconds that a pod may wait for a node, a quota or an image |
//! | `log_process_wait_time` | seconds that the end of a log is waited for |
//! | `job_pod_annotations` | annotations of every Job and pod: a JSON object, or one in a text |
//! | the others | as [`KubernetesOptions`] has them |

use std::collections::BTreeMap;
use std::time::Duration;

use octavius_core::HumanDuration;
use octavius_executor::{KubernetesConnection, KubernetesOptions};

use crate::daemon::Settings;
use crate::env;
use crate::error::Outcome;

/// The first Octavius' word for a kubeconfig file.
const OUT_OF_CLUSTER: &str = "out-of-cluster";

/// Keys that only this runner reads, with the variable that stands over each: the first Octavius', then ours.
pub const KEYS: [(&str, &[&str]); 17] = [
    ("kube_config", &[env::KUBE_CONFIG]),
    ("kube_context", &[env::KUBE_CONTEXT]),
    ("default_namespace", &[env::DEFAULT_NAMESPACE]),
    ("service_account_name", &[env::SERVICE_ACCOUNT_NAME]),
    ("job_active_deadline_seconds", &[env::JOB_ACTIVE_DEADLINE_SECONDS]),
    ("job_retries", &[env::JOB_RETRIES]),
    ("wait_for_resource_poll_count", &[env::WAIT_FOR_RESOURCE_POLL_COUNT]),
    ("log_process_wait_time", &[env::LOG_PROCESS_WAIT_TIME]),
    ("job_pod_annotations", &[env::JOB_POD_ANNOTATIONS]),
    ("namespaces", &[env::NAMESPACES]),
    ("service_accounts", &[env::SERVICE_ACCOUNTS]),
    ("job_may_set", &[env::JOB_MAY_SET]),
    ("secret", &[env::SECRET]),
    ("pod_template", &[env::POD_TEMPLATE]),
    ("run_as_non_root", &[env::RUN_AS_NON_ROOT]),
    ("orphan_delay", &[env::ORPHAN_DELAY]),
    ("keep_finished", &[env::KEEP_FINISHED]),
];

/// Whether the settings are for this runner.
#[must_use]
pub fn are_in(settings: &Settings) -> bool {
    KEYS.iter().any(|(key, _)| settings.has(key))
}

/// Reads the options, and says what was taken and has no effect.
///
/// # Errors
/// Names the key whose value cannot be.
pub fn read(settings: &Settings) -> Outcome<(KubernetesOptions, Vec<String>)> {
    let mut warnings = Vec::new();
    let mut options = KubernetesOptions::default();
    let context = settings.text("kube_context")?;
    if settings.text("kube_config")?.as_deref() == Some(OUT_OF_CLUSTER) {
        options.connection = KubernetesConnection::Kubeconfig { path: None, context };
    } else if context.is_some() {
        warnings.push(format!("`kube_context` does nothing without `kube_config`: \"{OUT_OF_CLUSTER}\""));
    }
    options.default_namespace = settings.text("default_namespace")?.unwrap_or_default();
    options.namespaces = settings.list("namespaces")?;
    options.service_account = settings.text("service_account_name")?.unwrap_or_default();
    options.service_accounts = settings.list("service_accounts")?;
    options.annotations = annotations(settings)?;
    if settings.has("job_may_set") {
        let names = settings.list("job_may_set")?;
        let known = names.into_iter().map(|name| {
            serde_json::from_value(name.clone().into()).map_err(|_| {
                let problem = format!(
                    "has \"{}\", and only knows resources, plain_annotations and annotations",
                    crate::sanitize::line(&name)
                );
                settings.wrong("job_may_set", &problem)
            })
        });
        options.job_may_set = known.collect::<Outcome<_>>()?;
    }
    options.secret = settings.text("secret")?.unwrap_or_default();
    if let Some(template) = settings.object("pod_template")? {
        options.pod_template = template;
    }
    options.run_as_non_root = settings.flag("run_as_non_root")?.unwrap_or_default();
    let longest: u32 = settings.number("job_active_deadline_seconds")?.unwrap_or_default();
    options.longest_run = (longest > 0).then(|| HumanDuration::new(Duration::from_secs(longest.into())));
    for (key, option) in
        [("wait_for_resource_poll_count", &mut options.start_limit), ("log_process_wait_time", &mut options.log_patience)]
    {
        if let Some(seconds) = settings.seconds(key)? {
            *option = HumanDuration::new(seconds);
        }
    }
    for (key, option) in [("orphan_delay", &mut options.orphan_delay), ("keep_finished", &mut options.keep_finished)] {
        match settings.duration(key)? {
            None => {}
            // A Job that is deleted as soon as it ends takes its outcome with it.
            Some(duration) if duration < Duration::from_secs(60) => return Err(settings.wrong(key, "is under 1m")),
            Some(duration) => *option = HumanDuration::new(duration),
        }
    }
    if settings.number::<u32>("job_retries")?.is_some_and(|retries| retries > 0) {
        warnings.push("`job_retries` does nothing: how often a job is tried again stands in the job, as `retries`".to_owned());
    }
    Ok((options, warnings))
}

fn annotations(settings: &Settings) -> Outcome<BTreeMap<String, String>> {
    let key = "job_pod_annotations";
    let Some(object) = settings.object(key)? else { return Ok(BTreeMap::new()) };
    serde_json::from_value(object).map_err(|_| settings.wrong(key, "is not a map of texts"))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn settings(json: &str) -> Settings {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("executor_config.json");
        std::fs::write(&path, json).unwrap();
        Settings::read(Some(&path), "none", &KEYS.map(|(key, _)| key)).unwrap()
    }

    #[test]
    fn the_first_octavius_keys_mean_what_they_meant() {
        let read = super::read(&settings(
            r#"{"kube_config": "out-of-cluster", "kube_context": "payments", "default_namespace": "jobs",
                "service_account_name": "runner", "job_active_deadline_seconds": "600", "job_retries": 2,
                "wait_for_resource_poll_count": 5, "log_process_wait_time": 7,
                "job_pod_annotations": "{\"sidecar.istio.io/inject\": \"false\"}"}"#,
        ));
        let (options, warnings) = read.unwrap();
        let seconds = |seconds| HumanDuration::new(Duration::from_secs(seconds));
        let expected = KubernetesOptions {
            connection: KubernetesConnection::Kubeconfig { path: None, context: Some("payments".to_owned()) },
            default_namespace: "jobs".to_owned(),
            service_account: "runner".to_owned(),
            longest_run: Some(seconds(600)),
            start_limit: seconds(5),
            log_patience: seconds(7),
            annotations: [("sidecar.istio.io/inject".to_owned(), "false".to_owned())].into(),
            ..KubernetesOptions::default()
        };
        assert_eq!(options, expected);
        assert!(warnings.len() == 1 && warnings[0].contains("`job_retries` does nothing"), "{warnings:?}");
        let (options, warnings) = super::read(&settings(r#"{"kube_config": "in-cluster", "job_retries": 0}"#)).unwrap();
        assert_eq!((options, warnings.len()), (KubernetesOptions::default(), 0));
    }

    #[test]
    fn ours_are_read_as_the_runner_has_them() {
        let (options, _) = super::read(&settings(
            r#"{"namespaces": ["a", "b"], "service_accounts": "robot, other", "job_may_set": [], "secret": "jobs",
                "pod_template": {"spec": {"nodeSelector": {"pool": "jobs"}}}, "run_as_non_root": true, "orphan_delay": "2m",
                "keep_finished": "1d"}"#,
        ))
        .unwrap();
        assert_eq!((options.namespaces.len(), options.service_accounts.len(), options.job_may_set.len()), (2, 2, 0));
        assert_eq!(options.pod_template["spec"]["nodeSelector"]["pool"], "jobs");
        assert!(options.run_as_non_root && options.secret == "jobs");
        assert_eq!((options.orphan_delay.to_string(), options.keep_finished.to_string()), ("2m".into(), "1d".into()));
    }

    #[test]
    fn a_value_that_cannot_be_is_named() {
        for (json, expected) in [
            (r#"{"job_pod_annotations": "team: support"}"#, "`job_pod_annotations` is not a JSON object"),
            (r#"{"job_pod_annotations": {"replicas": 3}}"#, "`job_pod_annotations` is not a map of texts"),
            (r#"{"job_may_set": ["namespace"]}"#, "`job_may_set` has \"namespace\""),
            (r#"{"namespaces": [1]}"#, "`namespaces` is not a list of texts"),
            (r#"{"pod_template": "none"}"#, "`pod_template` is not a JSON object"),
            (r#"{"keep_finished": "1s"}"#, "`keep_finished` is under 1m"),
            (r#"{"wait_for_resource_poll_count": "few"}"#, "`wait_for_resource_poll_count` is not a whole number"),
            (r#"{"kube_context": 3}"#, "`kube_context` is not a text"),
        ] {
            let message = super::read(&settings(json)).unwrap_err().error.unwrap().to_string();
            assert!(message.contains(expected), "{json}: {message}");
        }
    }
}
