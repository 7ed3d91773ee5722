//! What counts of a Job and a pod: small values, taken from the large objects that the API server sends.

use k8s_openapi::api::batch::v1::Job;
use k8s_openapi::api::core::v1::{ContainerState, Pod};
use k8s_openapi::jiff::{SignedDuration, Timestamp};

use super::manifest::CONTAINER;

/// A reason and a message, as Kubernetes gives them.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub(super) struct Why {
    pub(super) reason: String,
    pub(super) message: String,
}

impl Why {
    fn new(reason: Option<&String>, message: Option<&String>) -> Self {
        Self { reason: reason.cloned().unwrap_or_default(), message: message.cloned().unwrap_or_default() }
    }
}

impl std::fmt::Display for Why {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match (self.reason.as_str(), self.message.as_str()) {
            (reason, "") => f.write_str(reason),
            ("", message) => f.write_str(message),
            (reason, message) => write!(f, "{reason}: {message}"),
        }
    }
}

/// A Job as it was last.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct JobSeen {
    pub(super) uid: String,
    pub(super) suspended: bool,
    pub(super) complete: bool,
    /// Why it failed, or is about to.
    pub(super) failed: Option<Why>,
    pub(super) deleting: bool,
    /// Whether no executor is to touch it.
    pub(super) is_let_be: bool,
}

impl JobSeen {
    pub(super) fn of(job: &Job, let_be: &str) -> Self {
        let conditions = || job.status.iter().flat_map(|status| status.conditions.iter().flatten());
        let true_one = |kind: &str| conditions().find(|condition| condition.type_ == kind && condition.status == "True");
        let failed = true_one("Failed").or_else(|| true_one("FailureTarget"));
        Self {
            uid: job.metadata.uid.clone().unwrap_or_default(),
            suspended: job.spec.as_ref().and_then(|spec| spec.suspend).unwrap_or_default(),
            complete: true_one("Complete").is_some(),
            failed: failed.map(|condition| Why::new(condition.reason.as_ref(), condition.message.as_ref())),
            deleting: job.metadata.deletion_timestamp.is_some(),
            is_let_be: job.metadata.annotations.as_ref().is_some_and(|annotations| annotations.contains_key(let_be)),
        }
    }
}

/// The job's container as it was last.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Contained {
    /// Nothing is said of it yet.
    Nothing,
    /// It has not begun.
    Waiting(Why),
    Running,
    Terminated {
        exit_code: i32,
        why: Why,
    },
}

impl Contained {
    fn of(state: &ContainerState) -> Self {
        match state {
            ContainerState { terminated: Some(ended), .. } => {
                Self::Terminated { exit_code: ended.exit_code, why: Why::new(ended.reason.as_ref(), ended.message.as_ref()) }
            }
            ContainerState { running: Some(_), .. } => Self::Running,
            ContainerState { waiting: Some(waiting), .. } => {
                Self::Waiting(Why::new(waiting.reason.as_ref(), waiting.message.as_ref()))
            }
            _ => Self::Nothing,
        }
    }
}

/// A pod as it was last.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct PodSeen {
    pub(super) name: String,
    pub(super) uid: String,
    pub(super) created: Option<Timestamp>,
    pub(super) phase: String,
    pub(super) why: Why,
    pub(super) node: String,
    /// Whether it was asked to end, by being deleted, before it had ended by itself.
    pub(super) cut_short: bool,
    /// It is there no more.
    pub(super) gone: bool,
    /// Why Kubernetes itself takes it away.
    pub(super) disrupted: Option<Why>,
    /// Why no node takes it.
    pub(super) unscheduled: Option<Why>,
    pub(super) container: Contained,
    /// The image of the job's container, by its digest, once it has begun; empty until then.
    pub(super) image: String,
}

/// An image's id without the scheme that Docker put before it.
fn image_of(id: &str) -> String {
    id.split_once("://").map_or(id, |(_, id)| id).to_owned()
}

impl PodSeen {
    pub(super) fn of(pod: &Pod) -> Self {
        let status = pod.status.clone().unwrap_or_default();
        let conditions = status.conditions.unwrap_or_default();
        let condition = |kind: &str, value: &str| {
            let found = conditions.iter().find(|condition| condition.type_ == kind && condition.status == value);
            found.map(|condition| Why::new(condition.reason.as_ref(), condition.message.as_ref()))
        };
        let containers = status.container_statuses.unwrap_or_default();
        let container = containers.iter().find(|container| container.name == CONTAINER);
        Self {
            name: pod.metadata.name.clone().unwrap_or_default(),
            uid: pod.metadata.uid.clone().unwrap_or_default(),
            created: pod.metadata.creation_timestamp.as_ref().map(|time| time.0),
            phase: status.phase.unwrap_or_default(),
            why: Why::new(status.reason.as_ref(), status.message.as_ref()),
            node: pod.spec.as_ref().and_then(|spec| spec.node_name.clone()).unwrap_or_default(),
            cut_short: cut_short(pod, container.and_then(|container| container.state.as_ref())),
            gone: false,
            disrupted: condition("DisruptionTarget", "True"),
            unscheduled: condition("PodScheduled", "False"),
            container: container.and_then(|container| container.state.as_ref()).map_or(Contained::Nothing, Contained::of),
            image: container.map_or_else(String::new, |container| image_of(&container.image_id)),
        }
    }

    /// Whether it runs no more and never will.
    pub(super) fn is_over(&self) -> bool {
        self.gone || matches!(self.phase.as_str(), "Succeeded" | "Failed")
    }

    /// Whether the job's container has begun at some time, so that there may be a log.
    pub(super) fn has_begun(&self) -> bool {
        matches!(self.container, Contained::Running | Contained::Terminated { .. })
    }

    /// Whether the job's container writes no more.
    pub(super) fn has_ended(&self) -> bool {
        self.is_over() || matches!(self.container, Contained::Terminated { .. })
    }
}

/// Whether a pod was deleted before its container had ended. The deletion's timestamp lies in the future by what the container is granted.
fn cut_short(pod: &Pod, state: Option<&ContainerState>) -> bool {
    let Some(deleted) = &pod.metadata.deletion_timestamp else { return false };
    let granted = SignedDuration::from_secs(pod.metadata.deletion_grace_period_seconds.unwrap_or_default());
    let ended = state.and_then(|state| state.terminated.as_ref()).and_then(|ended| ended.finished_at.as_ref());
    ended.is_none_or(|ended| ended.0 >= deleted.0 - granted)
}
