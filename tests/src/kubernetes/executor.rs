//! An executor with the kubernetes runner, set up in a namespace as an administrator does it: with the rights of
//! `deploy/executor-role.yaml` and no others.

use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};

use anyhow::{Context as _, Result};
use serde_json::{Value, json};

use super::Namespace;
use crate::process::Daemon;
use crate::world::World;

/// What an administrator gives an executor: the rules of the role in `deploy`.
///
/// # Errors
/// Where the file cannot be read.
pub fn executor_rules() -> Result<Value> {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../deploy/executor-role.yaml");
    let role: Value = serde_yaml::from_str(&std::fs::read_to_string(path)?)?;
    Ok(role["rules"].clone())
}

/// An executor's account and configuration. It can be started again and again.
#[derive(Debug)]
pub struct KubernetesExecutor<'w> {
    world: &'w World,
    /// The file with its configuration.
    pub config: PathBuf,
    /// The kubeconfig of its account.
    pub kubeconfig: PathBuf,
    /// What the API server's audit calls its user.
    pub user: String,
}

impl<'w> KubernetesExecutor<'w> {
    /// Sets one up that keeps its data in the world's folder of its name. `settings` are put over its configuration, which has the first
    /// Octavius' keys and does not name the runner.
    ///
    /// # Errors
    /// Where that fails.
    pub fn new(world: &'w World, id: &str, namespace: &Namespace<'_>, settings: &Value) -> Result<Self> {
        let kubeconfig = namespace.account(id, &executor_rules()?)?;
        let config = Self::configure(world, id, namespace, settings)?;
        let user = format!("system:serviceaccount:{}:{id}", namespace.name());
        Ok(Self { world, config, kubeconfig, user })
    }

    /// The same with an account that exists.
    ///
    /// # Errors
    /// Where that fails.
    pub fn configure(world: &World, id: &str, namespace: &Namespace<'_>, settings: &Value) -> Result<PathBuf> {
        let mut config = json!({
            "id": id,
            "data_dir": id,
            "kube_config": "out-of-cluster",
            "kube_context": "test",
            "default_namespace": namespace.name(),
            "service_account_name": "",
            "job_active_deadline_seconds": 300,
            "job_retries": 0,
            "wait_for_resource_poll_count": 60,
            "log_process_wait_time": 10,
            "job_pod_annotations": "{\"team\": \"support\"}",
        });
        let settings = settings.as_object().context("no object")?.clone();
        config.as_object_mut().context("no object")?.extend(settings);
        let path = world.write(&format!("{id}.json"), &config.to_string())?;
        std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o600))?;
        Ok(path)
    }

    /// Starts it and waits until it is ready.
    ///
    /// # Errors
    /// Where it does not get ready.
    pub fn start(&self, variables: &[(&str, &str)]) -> Result<Daemon> {
        let kubeconfig = self.kubeconfig.display().to_string();
        let config = self.config.display().to_string();
        let variables: Vec<_> = variables.iter().copied().chain([("KUBECONFIG", kubeconfig.as_str())]).collect();
        self.world.daemon_with(["executor", "start", "--config", &config], &variables)
    }
}
