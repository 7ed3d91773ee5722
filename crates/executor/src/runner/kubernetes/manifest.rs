//! From a launch to a Kubernetes Job: pure, so that what a cluster is asked for can be read in a test.
//!
//! | on the Job | |
//! | --- | --- |
//! | label `octavius/id`, `octavius/attempt`, `octavius/executor` | whose Job it is; the watch selects by the last |
//! | label `octavius/job`, `app.kubernetes.io/job` | the job's name, the second as the first Octavius had it |
//! | label `octavius/user` | who asked, where a label can hold it; else an annotation of that name |
//! | annotation `octavius/nonce` | the claim's random number, so that an executor that lost its disk can go on |
//! | annotation `octavius/definition`, `octavius/author` | what runs: the digest of the job's definition, and its author |
//! | annotation `octavius/catalog`, `octavius/revision`, `octavius/commit`, `octavius/repository`, `octavius/file` | where that definition comes from; each absent where it is not known |
//! | annotation `octavius/masked` | variables that must not be seen in the log |
//! | annotation `octavius/let-be` | that no executor is to touch it, and why |

use std::collections::BTreeMap;
use std::time::Duration;

use k8s_openapi::api::batch::v1::{Job, JobSpec};
use k8s_openapi::api::core::v1::{
    Capabilities, Container, EnvVar, EnvVarSource, PodSpec, PodTemplateSpec, ResourceRequirements, SeccompProfile,
    SecretKeySelector, SecurityContext,
};
use k8s_openapi::apimachinery::pkg::api::resource::Quantity;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use octavius_core::definition::{KubernetesSecret, Secret, SecretSource};
use octavius_core::execution::{Ending, Reason, State};
use octavius_core::{ExecutorId, label};

use super::options::{JobSetting, KubernetesOptions};
use crate::runner::{Held, Launch, Origin};

pub(super) const ID: &str = "octavius/id";
pub(super) const ATTEMPT: &str = "octavius/attempt";
pub(super) const EXECUTOR: &str = "octavius/executor";
pub(super) const NONCE: &str = "octavius/nonce";
pub(super) const MASKED: &str = "octavius/masked";
pub(super) const LET_BE: &str = "octavius/let-be";
const JOB: &str = "octavius/job";
const USER: &str = "octavius/user";
const DEFINITION: &str = "octavius/definition";
const AUTHOR: &str = "octavius/author";
const CATALOG: &str = "octavius/catalog";
const REVISION: &str = "octavius/revision";
const COMMIT: &str = "octavius/commit";
const REPOSITORY: &str = "octavius/repository";
const FILE: &str = "octavius/file";
/// The first Octavius' label.
const SEED_JOB: &str = "app.kubernetes.io/job";

/// Longest value of what is told of where a job comes from: what is longer helps nobody, and there is little room.
const LONGEST_TOLD: usize = 1024;
/// What Kubernetes takes of annotations, keys and values of all together.
const ROOM: usize = 256 * 1024;

/// The container that runs the job.
pub(super) const CONTAINER: &str = "job";

/// A Job's name for an attempt: always one that Kubernetes takes, whatever the job is called.
pub(super) fn name(held: Held) -> String {
    format!("octavius-{held}")
}

/// Selects what belongs to an attempt.
pub(super) fn selector_of(held: Held) -> String {
    format!("{ID}={},{ATTEMPT}={}", held.id, held.fence.attempt)
}

/// What a runner makes Jobs with.
pub(super) struct Maker {
    pub(super) executor: ExecutorId,
    /// Where Jobs go that name no namespace.
    pub(super) namespace: String,
    pub(super) options: KubernetesOptions,
    template: PodTemplateSpec,
    /// Between the polite signal and the killing one, in whole seconds.
    kill_grace: Duration,
}

/// A Job to be created, and what the executor needs to know of it.
pub(super) struct Made {
    pub(super) namespace: String,
    pub(super) job: Job,
    /// Longest run, as the cluster enforces it.
    pub(super) timeout: Duration,
    /// Arguments whose values must not be seen in the log.
    pub(super) masked: BTreeMap<String, String>,
    /// Secrets that must be there, by the variable that each becomes.
    pub(super) secrets: Vec<(String, KubernetesSecret)>,
}

fn whole_seconds(duration: Duration) -> i64 {
    i64::try_from(duration.as_millis().div_ceil(1000)).unwrap_or(i64::MAX).max(1)
}

/// Kubernetes puts the values of other variables in place of `$(NAME)`; two dollars stand for one.
fn literal(text: &str) -> String {
    text.replace('$', "$$")
}

fn refusal(reason: &str, message: String) -> Ending {
    Ending::because(State::Failed, reason, message)
}

/// Puts a value where a label can hold it, and among the annotations otherwise.
fn tell(metadata: &mut ObjectMeta, key: &str, value: &str) {
    if value.is_empty() {
        return;
    }
    let place = if label::is_valid_part(value, false) { &mut metadata.labels } else { &mut metadata.annotations };
    place.get_or_insert_default().insert(key.to_owned(), value.to_owned());
}

/// Tells where a job comes from, as far as that is known. Where annotations of the job's own have taken all the room, they matter more.
fn tell_origin(annotations: &mut BTreeMap<String, String>, origin: &Origin) {
    let Origin { catalog, revision, commit, repository, file, line } = origin;
    let revision = if *revision == 0 { String::new() } else { revision.to_string() };
    let file = if *line == 0 { file.clone() } else { format!("{}:{line}", cut(file, LONGEST_TOLD - 11)) };
    let mut taken: usize = annotations.iter().map(|(key, value)| key.len() + value.len()).sum();
    for (key, value) in [(CATALOG, catalog), (REVISION, &revision), (COMMIT, commit), (REPOSITORY, repository), (FILE, &file)] {
        let value = cut(value, LONGEST_TOLD);
        taken += key.len() + value.len();
        if !value.is_empty() && taken <= ROOM {
            annotations.insert(key.to_owned(), value.to_owned());
        }
    }
}

/// At most so many bytes of a text.
fn cut(text: &str, longest: usize) -> &str {
    let end = (0..=longest.min(text.len())).rev().find(|end| text.is_char_boundary(*end));
    &text[..end.unwrap_or_default()]
}

impl Maker {
    /// Checks the pod template, once for all jobs.
    pub(super) fn new(
        executor: ExecutorId,
        namespace: String,
        options: KubernetesOptions,
        kill_grace: Duration,
    ) -> Result<Self, String> {
        let template: PodTemplateSpec = match &options.pod_template {
            serde_json::Value::Null => PodTemplateSpec::default(),
            template => serde_json::from_value(template.clone()).map_err(|error| format!("pod_template: {error}"))?,
        };
        let containers = template.spec.iter().flat_map(|spec| &spec.containers);
        if let Some(other) = containers.into_iter().find(|container| container.name != CONTAINER) {
            let name = &other.name;
            return Err(format!(
                "pod_template: container `{name}`: only `{CONTAINER}` may be there, since a Job lasts as long as any container; \
                 use an init container with `restartPolicy: Always`"
            ));
        }
        Ok(Self { executor, namespace, options, template, kill_grace })
    }

    /// Every namespace that a job may be in.
    pub(super) fn namespaces(&self) -> Vec<String> {
        let mut all = vec![self.namespace.clone()];
        all.extend(self.options.namespaces.iter().filter(|namespace| **namespace != self.namespace).cloned());
        all
    }

    /// Selects what is this executor's.
    pub(super) fn selector(&self) -> String {
        format!("{EXECUTOR}={}", self.executor)
    }

    /// Makes the Job, suspended. The error is the attempt's ending.
    pub(super) fn make(&self, launch: &Launch) -> Result<Made, Ending> {
        let job = &launch.job;
        let namespace = self.namespace_of(&job.namespace)?;
        let service_account = self.service_account_of(&job.service_account)?;
        for (setting, asked, field) in [
            (JobSetting::Resources, job.resources != octavius_core::definition::Resources::default(), "resources"),
            (JobSetting::Annotations, !job.annotations.is_empty(), "annotations"),
        ] {
            if asked && !self.options.job_may_set.contains(&setting) {
                let message = format!("executor `{}` lets no job set `{field}`: take it out of the job", self.executor);
                return Err(refusal(Reason::FORBIDDEN, message));
            }
        }
        let secrets = job.env_vars.secrets.iter().map(|secret| Ok((secret.name.clone(), self.source(secret)?)));
        let secrets = secrets.collect::<Result<Vec<_>, Ending>>()?;
        let mut masked = BTreeMap::new();
        for (name, value) in &launch.arguments {
            if job.argument(name).is_none_or(|argument| argument.sensitive) {
                masked.insert(name.clone(), value.clone());
            }
        }
        let timeout = self.options.longest_run.map_or(launch.timeout, |longest| launch.timeout.min(longest.get()));
        let metadata = self.metadata(launch, &namespace, &masked, &secrets);
        let pod = self.pod(launch, &metadata, service_account, timeout, &secrets)?;
        // The pod's own limit ends the run and leaves the pod, with its log; this one is for what never comes so far.
        let backstop = timeout + self.options.start_limit.get() + self.kill_grace + Duration::from_secs(60);
        let spec = JobSpec {
            suspend: Some(true),
            backoff_limit: Some(0),
            completions: Some(1),
            parallelism: Some(1),
            pod_replacement_policy: Some("Failed".to_owned()),
            active_deadline_seconds: Some(whole_seconds(backstop)),
            ttl_seconds_after_finished: Some(i32::try_from(self.options.keep_finished.get().as_secs()).unwrap_or(i32::MAX)),
            template: pod,
            ..JobSpec::default()
        };
        let job = Job { metadata, spec: Some(spec), status: None };
        Ok(Made { namespace, job, timeout, masked, secrets })
    }

    fn namespace_of(&self, asked: &str) -> Result<String, Ending> {
        if asked.is_empty() || asked == self.namespace {
            return Ok(self.namespace.clone());
        }
        if self.options.namespaces.iter().any(|allowed| allowed == asked) {
            return Ok(asked.to_owned());
        }
        let allowed = self.namespaces().join(", ");
        let message = format!(
            "namespace `{asked}` is not one that executor `{}` may use ({allowed}): change the job's `namespace`, or add it to the executor's `namespaces`",
            self.executor
        );
        Err(refusal(Reason::FORBIDDEN, message))
    }

    fn service_account_of(&self, asked: &str) -> Result<String, Ending> {
        let own = &self.options.service_account;
        if asked.is_empty() || asked == own {
            return Ok(own.clone());
        }
        if self.options.service_accounts.iter().any(|allowed| allowed == asked) {
            return Ok(asked.to_owned());
        }
        let message = format!(
            "service account `{asked}` is not one that executor `{}` may use: change the job's `service_account`, or add it to the executor's `service_accounts`",
            self.executor
        );
        Err(refusal(Reason::FORBIDDEN, message))
    }

    /// Where in the cluster a secret is.
    fn source(&self, secret: &Secret) -> Result<KubernetesSecret, Ending> {
        let name = &secret.name;
        match &secret.from {
            Some(SecretSource::Kubernetes(source)) => Ok(source.clone()),
            None if !self.options.secret.is_empty() => {
                Ok(KubernetesSecret { secret: self.options.secret.clone(), key: name.clone() })
            }
            None => Err(refusal(
                Reason::SECRET_MISSING,
                format!(
                    "secret `{name}` has no `from`, and the executor's `secret` names no Kubernetes Secret: add one of the two"
                ),
            )),
            // Its value would have to stand in the Job for everyone who may read Jobs.
            Some(SecretSource::Environment(_) | SecretSource::File(_)) => Err(refusal(
                Reason::SECRET_MISSING,
                format!(
                    "secret `{name}` is kept on an executor's host, and a pod can only be given a Kubernetes Secret: use `from: {{kubernetes: ..}}`"
                ),
            )),
        }
    }

    fn metadata(
        &self,
        launch: &Launch,
        namespace: &str,
        masked: &BTreeMap<String, String>,
        secrets: &[(String, KubernetesSecret)],
    ) -> ObjectMeta {
        let (held, job) = (launch.held, &launch.job);
        // What the job says for itself goes first: what Octavius needs to find its Jobs again stays as it is.
        let mut annotations = self.options.annotations.clone();
        annotations.extend(job.annotations.clone());
        annotations.retain(|key, _| !key.starts_with("octavius/"));
        let mut labels: BTreeMap<String, String> = job.labels.clone().into_iter().collect();
        labels.retain(|key, _| !key.starts_with("octavius/"));
        annotations.insert(NONCE.to_owned(), held.fence.nonce.to_string());
        annotations.insert(DEFINITION.to_owned(), job.digest().to_string());
        let hidden: Vec<&str> = masked.keys().chain(secrets.iter().map(|(name, _)| name)).map(String::as_str).collect();
        if !hidden.is_empty() {
            annotations.insert(MASKED.to_owned(), hidden.join(","));
        }
        labels.insert(ID.to_owned(), held.id.to_string());
        labels.insert(ATTEMPT.to_owned(), held.fence.attempt.to_string());
        labels.insert(EXECUTOR.to_owned(), self.executor.to_string());
        let mut metadata = ObjectMeta {
            name: Some(name(held)),
            namespace: Some(namespace.to_owned()),
            labels: Some(labels),
            annotations: Some(annotations),
            ..ObjectMeta::default()
        };
        tell_origin(metadata.annotations.get_or_insert_default(), &launch.origin);
        for (key, value) in [(JOB, job.name.as_str()), (SEED_JOB, job.name.as_str()), (USER, &launch.user), (AUTHOR, &job.author)]
        {
            tell(&mut metadata, key, value);
        }
        metadata
    }

    fn pod(
        &self,
        launch: &Launch,
        metadata: &ObjectMeta,
        service_account: String,
        timeout: Duration,
        secrets: &[(String, KubernetesSecret)],
    ) -> Result<PodTemplateSpec, Ending> {
        let mut pod = self.template.clone();
        let its = pod.metadata.get_or_insert_default();
        its.labels.get_or_insert_default().extend(metadata.labels.clone().unwrap_or_default());
        its.annotations.get_or_insert_default().extend(metadata.annotations.clone().unwrap_or_default());
        let spec: &mut PodSpec = pod.spec.get_or_insert_default();
        let container = self.container(launch, spec.containers.pop().unwrap_or_default(), secrets)?;
        spec.containers = vec![container];
        spec.restart_policy = Some("Never".to_owned());
        spec.active_deadline_seconds = Some(whole_seconds(timeout));
        spec.termination_grace_period_seconds.get_or_insert(whole_seconds(self.kill_grace));
        // A job gets the cluster's credentials only where somebody chose an account for it.
        if !service_account.is_empty() {
            spec.service_account_name = Some(service_account);
        } else if spec.service_account_name.is_none() {
            spec.automount_service_account_token.get_or_insert(false);
        }
        Ok(pod)
    }

    fn container(
        &self,
        launch: &Launch,
        mut container: Container,
        secrets: &[(String, KubernetesSecret)],
    ) -> Result<Container, Ending> {
        let job = &launch.job;
        CONTAINER.clone_into(&mut container.name);
        if !job.image_name.is_empty() {
            container.image = Some(job.image_name.clone());
        }
        if container.image.is_none() {
            let message = "the job has no `image_name`, which the kubernetes runner needs: add it to the job, or run it on a process executor";
            return Err(refusal(Reason::REQUIREMENT_NOT_MET, message.to_owned()));
        }
        if !job.command.is_empty() {
            container.command = Some(job.command.iter().map(|word| literal(word)).collect());
        }
        let env = container.env.get_or_insert_default();
        let held = launch.held;
        let own = [
            ("OCTAVIUS_EXECUTION_ID", held.id.to_string()),
            ("OCTAVIUS_ATTEMPT", held.fence.attempt.to_string()),
            ("OCTAVIUS_JOB", job.name.to_string()),
            ("OCTAVIUS_USER", launch.user.clone()),
        ];
        let own = own.iter().map(|(name, value)| (*name, value.as_str()));
        let given = launch.arguments.iter().map(|(name, value)| (name.as_str(), value.as_str()));
        let plain =
            given.chain(own).map(|(name, value)| EnvVar { name: name.to_owned(), value: Some(literal(value)), value_from: None });
        let referred = secrets.iter().map(|(name, source)| EnvVar {
            name: name.clone(),
            value: None,
            value_from: Some(EnvVarSource {
                secret_key_ref: Some(SecretKeySelector { name: source.secret.clone(), key: source.key.clone(), optional: None }),
                ..EnvVarSource::default()
            }),
        });
        for variable in plain.chain(referred).collect::<Vec<_>>() {
            env.retain(|before| before.name != variable.name);
            env.push(variable);
        }
        let resources: &mut ResourceRequirements = container.resources.get_or_insert_default();
        for (asked, place) in [(&job.resources.requests, &mut resources.requests), (&job.resources.limits, &mut resources.limits)]
        {
            if !asked.is_empty() {
                let asked = asked.iter().map(|(name, amount)| (name.clone(), Quantity(amount.clone())));
                place.get_or_insert_default().extend(asked);
            }
        }
        self.secure(container.security_context.get_or_insert_default());
        Ok(container)
    }

    /// What the "restricted" standard asks for, except that root is refused only where the executor says so. The template goes first.
    fn secure(&self, context: &mut SecurityContext) {
        context.allow_privilege_escalation.get_or_insert(false);
        context.capabilities.get_or_insert_with(|| Capabilities { drop: Some(vec!["ALL".to_owned()]), add: None });
        context
            .seccomp_profile
            .get_or_insert_with(|| SeccompProfile { type_: "RuntimeDefault".to_owned(), localhost_profile: None });
        if self.options.run_as_non_root {
            context.run_as_non_root.get_or_insert(true);
        }
    }
}

#[cfg(test)]
mod tests {
    use octavius_core::ExecutionId;
    use octavius_core::execution::Fence;
    use serde_json::json;

    use super::*;

    fn maker(options: serde_json::Value) -> Maker {
        let options = serde_json::from_value(options).unwrap();
        Maker::new(ExecutorId::new("e1").unwrap(), "jobs".to_owned(), options, Duration::from_secs(10)).unwrap()
    }

    fn launch(job: serde_json::Value, arguments: &[(&str, &str)]) -> Launch {
        Launch {
            held: Held { id: ExecutionId::from_bits(7), fence: Fence { attempt: 2, nonce: 9 } },
            job: serde_json::from_value(job).unwrap(),
            arguments: arguments.iter().map(|(k, v)| ((*k).to_owned(), (*v).to_owned())).collect(),
            timeout: Duration::from_millis(1500),
            user: "ann@example.com".to_owned(),
            origin: Origin::default(),
        }
    }

    #[test]
    fn a_job_is_suspended_named_labelled_and_restricted() {
        let launch = launch(
            json!({"name": "Refund.Order", "image_name": "x:1", "command": ["sh", "-c", "echo $(who) $$"], "author": "the payments team",
                "resources": {"limits": {"memory": "64Mi"}}, "annotations": {"team": "pay", "octavius/nonce": "1"},
                "env_vars": {"args": [{"name": "who"}, {"name": "pin", "sensitive": true}],
                    "secrets": [{"name": "KEY", "from": {"kubernetes": {"secret": "s", "key": "k"}}}]}}),
            &[("who", "$(PATH)"), ("pin", "1234")],
        );
        let made = maker(json!({"annotations": {"all": "yes"}})).make(&launch).unwrap();
        let job = serde_json::to_value(&made.job).unwrap();
        let held = "00000000000000000000000007-2";
        let metadata = &job["metadata"];
        assert_eq!(
            (metadata["name"].as_str(), metadata["namespace"].as_str()),
            (Some(&*format!("octavius-{held}")), Some("jobs"))
        );
        assert_eq!(
            metadata["labels"],
            json!({"octavius/id": "00000000000000000000000007", "octavius/attempt": "2", "octavius/executor": "e1",
                "octavius/job": "Refund.Order", "app.kubernetes.io/job": "Refund.Order"})
        );
        assert_eq!(
            metadata["annotations"],
            json!({"octavius/nonce": "9", "octavius/definition": launch.job.digest().to_string(), "octavius/masked": "pin,KEY",
                "octavius/user": "ann@example.com", "octavius/author": "the payments team", "team": "pay", "all": "yes"})
        );
        let spec = &job["spec"];
        assert_eq!((&spec["suspend"], &spec["backoffLimit"]), (&json!(true), &json!(0)));
        let pod = &spec["template"]["spec"];
        assert_eq!(pod["restartPolicy"], "Never");
        assert_eq!((&pod["activeDeadlineSeconds"], &pod["terminationGracePeriodSeconds"]), (&json!(2), &json!(10)));
        assert_eq!(pod["automountServiceAccountToken"], false);
        let container = &pod["containers"][0];
        assert_eq!(container["command"], json!(["sh", "-c", "echo $$(who) $$$$"]));
        assert_eq!(container["resources"]["limits"]["memory"], "64Mi");
        assert_eq!(
            container["securityContext"],
            json!({"allowPrivilegeEscalation": false, "capabilities": {"drop": ["ALL"]}, "seccompProfile": {"type": "RuntimeDefault"}})
        );
        let variable = |name: &str| container["env"].as_array().unwrap().iter().find(|v| v["name"] == name).unwrap().clone();
        assert_eq!(variable("who")["value"], "$$(PATH)");
        assert_eq!(variable("OCTAVIUS_ATTEMPT")["value"], "2");
        assert_eq!(variable("KEY")["valueFrom"]["secretKeyRef"], json!({"name": "s", "key": "k"}));
        assert_eq!((made.masked.len(), &made.masked["pin"]), (1, &"1234".to_owned()));
    }

    #[test]
    fn where_a_job_comes_from_is_told_as_far_as_it_is_known_and_there_is_room() {
        let told = |origin: Origin, annotations: serde_json::Value| {
            let job = json!({"name": "j", "image_name": "x:1", "annotations": annotations});
            let made = maker(json!({})).make(&Launch { origin, ..launch(job, &[]) }).unwrap();
            let spec = made.job.spec.unwrap();
            let on_both = [made.job.metadata.annotations.unwrap(), spec.template.metadata.unwrap().annotations.unwrap()];
            assert_eq!(on_both[0], on_both[1]);
            let [on_job, _] = on_both;
            let keys = [CATALOG, REVISION, COMMIT, REPOSITORY, FILE];
            on_job.into_iter().filter(|(key, _)| keys.contains(&key.as_str())).collect::<BTreeMap<_, _>>()
        };
        assert_eq!(told(Origin::default(), json!({"octavius/commit": "forged"})), BTreeMap::new());
        let whole = Origin {
            catalog: "team".to_owned(),
            revision: 7,
            commit: "c0ffee".to_owned(),
            repository: "https://example.com/team/jobs".to_owned(),
            file: "catalog/pay/refund.yaml".to_owned(),
            line: 3,
        };
        let expected = [
            (CATALOG, "team"),
            (REVISION, "7"),
            (COMMIT, "c0ffee"),
            (REPOSITORY, "https://example.com/team/jobs"),
            (FILE, "catalog/pay/refund.yaml:3"),
        ];
        let expected: BTreeMap<_, _> = expected.into_iter().map(|(key, value)| (key.to_owned(), value.to_owned())).collect();
        assert_eq!(told(whole.clone(), json!({})), expected);
        let long = told(Origin { file: "é".repeat(5000), ..whole.clone() }, json!({}));
        assert!(long[FILE].len() <= LONGEST_TOLD && long[FILE].ends_with("é:3"), "{}", long[FILE].len());
        let full = told(whole, json!({"mine": "x".repeat(ROOM - 150)}));
        assert!(!full.contains_key(FILE), "{full:?}");
    }

    #[test]
    fn the_template_is_the_base_and_octavius_has_the_last_word_on_what_it_needs() {
        let maker = maker(json!({"run_as_non_root": true, "service_account": "runner", "longest_run": "1s", "pod_template": {
            "metadata": {"labels": {"team": "x", "octavius/executor": "other"}},
            "spec": {"restartPolicy": "Always", "nodeSelector": {"disk": "fast"}, "imagePullSecrets": [{"name": "pull"}],
                "containers": [{"name": "job", "imagePullPolicy": "Always", "securityContext": {"readOnlyRootFilesystem": true},
                    "env": [{"name": "HTTP_PROXY", "value": "p"}, {"name": "who", "value": "template"}]}]}}}));
        let made = maker.make(&launch(json!({"name": "j", "image_name": "x:1"}), &[("who", "bob")])).unwrap();
        let template = serde_json::to_value(made.job.spec.unwrap().template).unwrap();
        assert_eq!(template["metadata"]["labels"]["octavius/executor"], "e1");
        assert_eq!(template["metadata"]["labels"]["team"], "x");
        let pod = &template["spec"];
        assert_eq!((&pod["restartPolicy"], &pod["nodeSelector"]["disk"]), (&json!("Never"), &json!("fast")));
        assert_eq!((&pod["serviceAccountName"], &pod["automountServiceAccountToken"]), (&json!("runner"), &json!(null)));
        assert_eq!(pod["activeDeadlineSeconds"], 1);
        let container = &pod["containers"][0];
        let context = &container["securityContext"];
        assert_eq!((&context["readOnlyRootFilesystem"], &context["runAsNonRoot"]), (&json!(true), &json!(true)));
        let names: Vec<_> = container["env"].as_array().unwrap().iter().map(|v| v["name"].as_str().unwrap()).collect();
        assert_eq!(names.iter().filter(|name| **name == "who").count(), 1, "{names:?}");
    }

    #[test]
    fn what_an_executor_does_not_allow_is_refused_and_says_what_to_do() {
        let maker = maker(json!({"namespaces": ["other"], "service_accounts": ["robot"], "job_may_set": []}));
        for (job, expected) in [
            (json!({"namespace": "kube-system"}), "FORBIDDEN namespace `kube-system` is not one"),
            (json!({"service_account": "admin"}), "FORBIDDEN service account `admin` is not one"),
            (json!({"resources": {"limits": {"cpu": "1"}}}), "FORBIDDEN executor `e1` lets no job set `resources`"),
            (json!({"annotations": {"a": "b"}}), "FORBIDDEN executor `e1` lets no job set `annotations`"),
            (json!({"image_name": ""}), "REQUIREMENT_NOT_MET the job has no `image_name`"),
            (json!({"env_vars": {"secrets": [{"name": "K"}]}}), "SECRET_MISSING secret `K` has no `from`"),
            (
                json!({"env_vars": {"secrets": [{"name": "K", "from": {"file": "/x"}}]}}),
                "SECRET_MISSING secret `K` is kept on an executor",
            ),
        ] {
            let mut whole = json!({"name": "j", "image_name": "x:1"});
            whole.as_object_mut().unwrap().extend(job.as_object().unwrap().clone());
            let ending = maker.make(&launch(whole, &[])).err().unwrap();
            let told = format!("{} {}", ending.reason.unwrap(), ending.message);
            assert!(told.starts_with(expected), "{told}");
        }
        let allowed = json!({"name": "j", "image_name": "x:1", "namespace": "other", "service_account": "robot"});
        assert_eq!(maker.make(&launch(allowed, &[])).unwrap().namespace, "other");
        let sidecar = serde_json::from_value(json!({"pod_template": {"spec": {"containers": [{"name": "side"}]}}})).unwrap();
        let refused = Maker::new(ExecutorId::new("e1").unwrap(), "n".to_owned(), sidecar, Duration::ZERO).err().unwrap();
        assert!(refused.contains("container `side`"), "{refused}");
    }
}
