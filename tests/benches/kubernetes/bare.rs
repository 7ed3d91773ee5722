//! Bare Jobs: what the cluster does by itself with the same pods.

use std::collections::HashMap;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail};
use octavius_tests::{Kubernetes, Namespace, Watch};
use serde_json::{Value, json};

use crate::PATIENCE;

/// A Job as the executor makes it, under another name, without its executor's label and not suspended. Who is bare has no start to report.
pub(crate) struct Bare(Value);

impl Bare {
    /// From a Job that the executor made.
    pub(crate) fn of(made: &Value) -> Result<Self> {
        let mut spec = made["spec"].clone();
        let whole = spec.as_object_mut().context("a Job has a spec")?;
        for key in ["selector", "manualSelector"] {
            whole.remove(key);
        }
        whole.insert("suspend".to_owned(), false.into());
        // The cluster's own labels, and those by which the executor would take it for its own.
        let labels = spec["template"]["metadata"]["labels"].as_object_mut().context("a pod has labels")?;
        labels.retain(|key, _| !key.contains("controller-uid") && !key.contains("job-name") && !key.starts_with("octavius/"));
        labels.insert("bench".to_owned(), "bare".into());
        let annotations = &made["metadata"]["annotations"];
        Ok(Self(json!({"metadata": {"annotations": annotations, "labels": {"bench": "bare"}}, "spec": spec})))
    }

    fn named(&self, name: &str) -> Value {
        let mut job = self.0.clone();
        job["metadata"]["name"] = name.into();
        job
    }

    /// From one Job's creation until a watch shows that it is complete.
    pub(crate) fn one(&self, cluster: &Kubernetes, namespace: &Namespace<'_>, watch: &Watch) -> Result<Duration> {
        watch.so_far()?;
        let job = self.named("bare");
        let begun = Instant::now();
        cluster.post(&namespace.batch("jobs"), &job)?;
        let ends = complete(watch, "bare", 1)?;
        let elapsed = ends["bare"].saturating_duration_since(begun);
        forget(cluster, namespace)?;
        Ok(elapsed)
    }

    /// From the first of many Jobs, created over one connection, until a watch shows that the last is complete.
    pub(crate) fn many(&self, cluster: &Kubernetes, namespace: &Namespace<'_>, watch: &Watch, count: usize) -> Result<Duration> {
        watch.so_far()?;
        let jobs: Vec<Value> = (0..count).map(|number| self.named(&format!("bare-{number}"))).collect();
        let begun = Instant::now();
        cluster.post_all(&namespace.batch("jobs"), &jobs)?;
        let last = complete(watch, "bare-", count)?.into_values().max().context("none")?;
        let elapsed = last.saturating_duration_since(begun);
        forget(cluster, namespace)?;
        Ok(elapsed)
    }
}

/// Waits until so many Jobs whose names begin so are complete, and says when each was.
fn complete(watch: &Watch, prefix: &str, count: usize) -> Result<HashMap<String, Instant>> {
    let mut ends = HashMap::new();
    while ends.len() < count {
        let change = watch.next(PATIENCE)?;
        if change.has("Failed") {
            bail!("{} failed", change.name());
        }
        if change.name().starts_with(prefix) && change.has("Complete") {
            ends.entry(change.name().to_owned()).or_insert(change.at);
        }
    }
    Ok(ends)
}

/// Deletes the Jobs, with their pods.
fn forget(cluster: &Kubernetes, namespace: &Namespace<'_>) -> Result<()> {
    cluster.delete(&format!("{}?labelSelector=bench%3Dbare&propagationPolicy=Background", namespace.batch("jobs")))?;
    crate::quiet(cluster, namespace)
}
