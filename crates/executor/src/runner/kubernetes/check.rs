//! Whether the cluster lets the executor do what it needs to: asked of the cluster itself, without touching anything.

use k8s_openapi::api::authorization::v1::{ResourceAttributes, SelfSubjectAccessReview, SelfSubjectAccessReviewSpec};
use k8s_openapi::api::core::v1::Secret;
use kube::Api;
use kube::api::PostParams;
use octavius_core::ExecutorId;
use serde::Serialize;

use super::api::{self, Trouble};
use super::manifest::Maker;
use super::options::KubernetesOptions;
use crate::offers::{FoundOffer, Offered, named};
use crate::{ExecutorError, SecretOffers};

/// Something that the executor does in the cluster, and whether it may.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct KubernetesPermission {
    /// The namespace in which it does so.
    pub namespace: String,
    /// The verb, as in a Role.
    pub verb: &'static str,
    /// The API group, as in a Role; empty for the core group.
    pub group: &'static str,
    /// The resource, as in a Role: `jobs`, `pods/log`.
    pub resource: &'static str,
    /// What it is needed for.
    pub needed_for: &'static str,
    /// Whether the executor cannot do without.
    pub required: bool,
    /// Whether the cluster allows it.
    pub allowed: bool,
    /// What the cluster says of it, where it says something.
    pub reason: String,
}

/// Verb, group, resource, what for, whether it cannot do without.
const NEEDS: [(&str, &str, &str, &str, bool); 11] = [
    ("create", "batch", "jobs", "to run a job", true),
    ("get", "batch", "jobs", "to know a Job again whose creation was not answered", true),
    ("list", "batch", "jobs", "to find its Jobs", true),
    ("watch", "batch", "jobs", "to see its Jobs end", true),
    ("patch", "batch", "jobs", "to resume a Job", true),
    ("delete", "batch", "jobs", "to stop a job, and to remove it after its end", true),
    ("list", "", "pods", "to find a job's pod", true),
    ("watch", "", "pods", "to see a job's pod end", true),
    ("get", "", "pods/log", "to read a job's log", true),
    ("get", "", "secrets", "to tell a missing secret before the start, and to mask secrets in logs", false),
    ("list", "", "events", "to tell why a Job gets no pod", false),
];

/// Asks the cluster, for every namespace that the options name, whether it allows what the executor needs.
///
/// # Errors
/// Where the options are not usable, or the cluster does not answer.
pub async fn check_kubernetes(id: &ExecutorId, options: &KubernetesOptions) -> Result<Vec<KubernetesPermission>, ExecutorError> {
    let failed = |why: String| ExecutorError::Kubernetes { why };
    let (connections, namespace) = api::connect(options).await.map_err(failed)?;
    let offered = Offered { executor: id.clone(), offers: SecretOffers::default(), own_folder: "/".into() };
    let maker = Maker::new(offered, namespace, options.clone(), std::time::Duration::ZERO).map_err(failed)?;
    let reviews: Api<SelfSubjectAccessReview> = Api::all(connections.calls());
    let mut permissions = Vec::new();
    for namespace in maker.namespaces() {
        for (verb, group, resource, needed_for, required) in NEEDS {
            let (name, subresource) = resource.split_once('/').map_or((resource, None), |(name, sub)| (name, Some(sub)));
            let attributes = ResourceAttributes {
                namespace: Some(namespace.clone()),
                verb: Some(verb.to_owned()),
                group: Some(group.to_owned()),
                resource: Some(name.to_owned()),
                subresource: subresource.map(str::to_owned),
                ..ResourceAttributes::default()
            };
            let spec = SelfSubjectAccessReviewSpec { resource_attributes: Some(attributes), ..Default::default() };
            let review = SelfSubjectAccessReview { spec, ..Default::default() };
            let answer = api::once(reviews.create(&PostParams::default(), &review)).await;
            let status = answer.map_err(|trouble| failed(trouble.to_string()))?.status.unwrap_or_default();
            let namespace = namespace.clone();
            let reason = status.reason.unwrap_or_default();
            permissions.push(KubernetesPermission {
                namespace,
                verb,
                group,
                resource,
                needed_for,
                required,
                allowed: status.allowed,
                reason,
            });
        }
    }
    Ok(permissions)
}

/// Looks for the Secrets that are offered by their whole names, in every namespace that the options name, as the runner would for a job.
///
/// # Errors
/// Where the options are not usable, or the cluster does not answer.
pub async fn check_kubernetes_offers(
    id: &ExecutorId,
    options: &KubernetesOptions,
    offers: &SecretOffers,
) -> Result<Vec<FoundOffer>, ExecutorError> {
    let failed = |why: String| ExecutorError::Kubernetes { why };
    let (connections, namespace) = api::connect(options).await.map_err(failed)?;
    let offered = Offered { executor: id.clone(), offers: offers.clone(), own_folder: "/".into() };
    let maker = Maker::new(offered, namespace, options.clone(), std::time::Duration::ZERO).map_err(failed)?;
    let own = Some(&options.secret).filter(|secret| !secret.is_empty());
    let mut found = Vec::new();
    for offer in own.into_iter().chain(&offers.kubernetes) {
        let (of, name) = offer.split_once('/').map_or((None, offer.as_str()), |(namespace, name)| (Some(namespace), name));
        if offer.contains('*') {
            let detail = "found when a job names one".to_owned();
            found.push(FoundOffer { kind: "kubernetes", offer: offer.clone(), found: None, detail });
            continue;
        }
        let namespaces: Vec<String> =
            maker.namespaces().into_iter().filter(|namespace| of.is_none_or(|of| of == namespace)).collect();
        if namespaces.is_empty() {
            let detail = "the executor runs jobs in no such namespace: see `namespaces`".to_owned();
            found.push(FoundOffer { kind: "kubernetes", offer: offer.clone(), found: Some(false), detail });
        }
        for namespace in namespaces {
            let api: Api<Secret> = Api::namespaced(connections.calls(), &namespace);
            let (there, detail) = match api::once(api.get(name)).await {
                Ok(secret) => (Some(true), format!("keys {}", named(secret.data.unwrap_or_default().into_keys().collect()))),
                Err(Trouble::Refused(status)) if status.code == 403 => (
                    None,
                    "not for the executor to read: a missing one is told late, and its values are not masked in logs".to_owned(),
                ),
                Err(Trouble::Refused(status)) if status.code == 404 => (Some(false), "there is none".to_owned()),
                Err(trouble) => return Err(failed(trouble.to_string())),
            };
            found.push(FoundOffer { kind: "kubernetes", offer: format!("{namespace}/{name}"), found: there, detail });
        }
    }
    Ok(found)
}
