//! What the kubernetes runner is told: how to reach its cluster, what jobs may ask for, and how long it waits for what.

use std::collections::{BTreeMap, BTreeSet};
use std::path::PathBuf;
use std::time::Duration;

use octavius_core::HumanDuration;
use serde::{Deserialize, Serialize};

/// How the `kubernetes` runner reaches its cluster and what it makes of jobs there. Plain data; it is checked when the executor starts.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct KubernetesOptions {
    /// How to reach the cluster.
    pub connection: KubernetesConnection,
    /// Where Jobs go that name no namespace; empty for the namespace of the kubeconfig's context, or of the executor's own pod.
    pub default_namespace: String,
    /// Other namespaces that a job may name. The default one is always allowed.
    pub namespaces: Vec<String>,
    /// The service account of jobs that name none; empty for the namespace's own default, and then without its token.
    pub service_account: String,
    /// Other service accounts that a job may name.
    pub service_accounts: Vec<String>,
    /// Annotations that every Job and its pod get.
    pub annotations: BTreeMap<String, String>,
    /// What a job may set itself, over the pod template.
    pub job_may_set: BTreeSet<JobSetting>,
    /// The Kubernetes Secret whose keys are the names of secrets that say no `from`; empty where there is none.
    pub secret: String,
    /// A `PodTemplateSpec` in JSON on which every pod is built: pull secrets, tolerations, node selectors, volumes. A container called
    /// `job` in it is the base of the job's own; other containers are refused, since a Job lasts as long as any of them.
    pub pod_template: serde_json::Value,
    /// Refuse images that run as root. Off by default: the images of the first Octavius run as root. Namespaces that enforce the
    /// "restricted" pod security standard want it on.
    pub run_as_non_root: bool,
    /// Longest run of any job, whatever it says itself.
    pub longest_run: Option<HumanDuration>,
    /// How long a pod may wait for a node, a quota, or an image that cannot be pulled at present, before the job fails.
    pub start_limit: HumanDuration,
    /// How long the end of a log is waited for that the cluster refuses to give.
    pub log_patience: HumanDuration,
    /// How long a Job of this executor that it knows nothing of is left alone before it is deleted.
    pub orphan_delay: HumanDuration,
    /// How long the cluster keeps a finished Job if the executor never comes back to delete it.
    pub keep_finished: HumanDuration,
}

impl Default for KubernetesOptions {
    fn default() -> Self {
        let seconds = |seconds| HumanDuration::new(Duration::from_secs(seconds));
        Self {
            connection: KubernetesConnection::InCluster,
            default_namespace: String::new(),
            namespaces: Vec::new(),
            service_account: String::new(),
            service_accounts: Vec::new(),
            annotations: BTreeMap::new(),
            job_may_set: [JobSetting::Resources, JobSetting::PlainAnnotations].into(),
            secret: String::new(),
            pod_template: serde_json::Value::Null,
            run_as_non_root: false,
            longest_run: None,
            // Longer than a node takes to be added by an autoscaler, shorter than anyone's patience.
            start_limit: seconds(300),
            log_patience: seconds(60),
            orphan_delay: seconds(600),
            // An executor may be away for a long week-end; Jobs are deleted as soon as their outcome is known, so few ever live so long.
            keep_finished: seconds(7 * 24 * 3600),
        }
    }
}

/// How to reach a cluster.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "snake_case", deny_unknown_fields)]
pub enum KubernetesConnection {
    /// With the service account of the pod in which the executor runs.
    #[default]
    InCluster,
    /// With a kubeconfig file.
    Kubeconfig {
        /// The file; none for `$KUBECONFIG` or `~/.kube/config`.
        #[serde(default)]
        path: Option<PathBuf>,
        /// The context in it; none for its current one.
        #[serde(default)]
        context: Option<String>,
    },
}

/// Something that a job may be allowed to set for itself. Namespace and service account have lists of their own.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum JobSetting {
    /// `resources`: what is set aside for it and what it may not exceed.
    Resources,
    /// `annotations` without a prefix, like `team`: nothing in a cluster acts on them.
    PlainAnnotations,
    /// Any `annotations`, and labels with a prefix on the pod. What runs in a cluster acts on those with a prefix, and some of it hands out
    /// secrets and roles, which then are not held to what the executor offers.
    Annotations,
}
