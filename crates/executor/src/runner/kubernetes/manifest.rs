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
//! | annotation `octavius/trace-id` | the trace that it is part of, where somebody traces |
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
use octavius_core::{ExecutorId, TraceContext, label};

use super::options::{JobSetting, KubernetesOptions};
use crate::offers::Offered;
use crate::runner::environment::{TRACEPARENT, TRACESTATE, trace_in, traced};
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
const TRACE_ID: &str = "octavius/trace-id";
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

/// The span that a Job was given as the parent of its own.
pub(super) fn trace_of(container: &Container) -> Option<TraceContext> {
    let value = |name: &str| {
        let variable = container.env.iter().flatten().find(|variable| variable.name == name);
        variable.and_then(|variable| variable.value.as_ref()).map(|value| value.replace("$$", "$"))
    };
    let (parent, state) = (value(TRACEPARENT), value(TRACESTATE));
    trace_in(|name| if name == TRACEPARENT { parent.as_deref() } else { state.as_deref() })
}

/// What a runner makes Jobs with.
pub(super) struct Maker {
    /// What jobs may be given.
    pub(super) offered: Offered,
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
        offered: Offered,
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
        Ok(Self { offered, namespace, options, template, kill_grace })
    }

    /// Whose Jobs these are.
    pub(super) fn executor(&self) -> &ExecutorId {
        &self.offered.executor
    }

    /// Every namespace that a job may be in.
    pub(super) fn namespaces(&self) -> Vec<String> {
        let mut all = vec![self.namespace.clone()];
        all.extend(self.options.namespaces.iter().filter(|namespace| **namespace != self.namespace).cloned());
        all
    }

    /// Selects what is this executor's.
    pub(super) fn selector(&self) -> String {
        format!("{EXECUTOR}={}", self.executor())
    }

    /// Makes the Job, suspended. The error is the attempt's ending.
    pub(super) fn make(&self, launch: &Launch) -> Result<Made, Ending> {
        let job = &launch.job;
        let namespace = self.namespace_of(&job.namespace)?;
        let service_account = self.service_account_of(&job.service_account)?;
        if job.resources != octavius_core::definition::Resources::default() && !self.lets(JobSetting::Resources) {
            return Err(self.may_not_set("`resources`: take it out of the job"));
        }
        self.allow_annotations(&job.annotations)?;
        let secrets = job.env_vars.secrets.iter().map(|secret| Ok((secret.name.clone(), self.source(secret, &namespace)?)));
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

    fn lets(&self, setting: JobSetting) -> bool {
        self.options.job_may_set.contains(&setting)
    }

    fn may_not_set(&self, what: &str) -> Ending {
        refusal(Reason::FORBIDDEN, format!("executor `{}` lets no job set {what}", self.executor()))
    }

    /// Those with a prefix, like `vault.hashicorp.com/agent-inject`, are orders to what else runs in the cluster: they are a way to secrets
    /// that this executor does not offer.
    fn allow_annotations(&self, annotations: &BTreeMap<String, String>) -> Result<(), Ending> {
        if annotations.is_empty() || self.lets(JobSetting::Annotations) {
            return Ok(());
        }
        if !self.lets(JobSetting::PlainAnnotations) {
            return Err(self.may_not_set("`annotations`: take it out of the job"));
        }
        match annotations.keys().find(|key| key.contains('/') && !key.starts_with("octavius/")) {
            None => Ok(()),
            Some(key) => Err(self.may_not_set(&format!(
                "the annotation `{key}`, on which something else in the cluster may act: take it out of the job, or add `annotations` to \
                 the executor's `job_may_set`"
            ))),
        }
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
            self.executor()
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
            self.executor()
        );
        Err(refusal(Reason::FORBIDDEN, message))
    }

    /// Where in the cluster a secret is, if it is offered there.
    fn source(&self, secret: &Secret, namespace: &str) -> Result<KubernetesSecret, Ending> {
        let name = &secret.name;
        match &secret.from {
            Some(source @ SecretSource::Kubernetes(from)) => {
                // What the executor's owner names for secrets without a `from` is for jobs.
                let own = !self.options.secret.is_empty() && from.secret == self.options.secret;
                if own || self.offered.offers.has_kubernetes(namespace, &from.secret) {
                    Ok(from.clone())
                } else {
                    Err(self.offered.refusal(secret, source, namespace))
                }
            }
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
        // With a prefix they are orders to others too, see `allow_annotations`. Jobs have labels to be found by: that needs none on the pod.
        let any = self.lets(JobSetting::Annotations);
        labels.retain(|key, _| !key.contains('/') || (any && !key.starts_with("octavius/")));
        annotations.insert(NONCE.to_owned(), held.fence.nonce.to_string());
        annotations.insert(DEFINITION.to_owned(), job.digest().to_string());
        let hidden: Vec<&str> = masked.keys().chain(secrets.iter().map(|(name, _)| name)).map(String::as_str).collect();
        if !hidden.is_empty() {
            annotations.insert(MASKED.to_owned(), hidden.join(","));
        }
        if let Some(trace) = &launch.trace {
            annotations.insert(TRACE_ID.to_owned(), trace.trace_id_text());
        }
        labels.insert(ID.to_owned(), held.id.to_string());
        labels.insert(ATTEMPT.to_owned(), held.fence.attempt.to_string());
        labels.insert(EXECUTOR.to_owned(), self.executor().to_string());
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
        // Where the job has a variable of that name, it is not told of the trace.
        let named = |name: &str| launch.arguments.contains_key(name) || secrets.iter().any(|(secret, _)| secret == name);
        let traced = traced(launch.trace.as_ref()).filter(|(name, _)| !named(name));
        let own: Vec<_> = own.into_iter().chain(traced).collect();
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
mod tests;
