//! The kubernetes runner on a real cluster, with the rights that `deploy/executor-role.yaml` gives and no others.

mod ends;
mod faults;
mod logs;
mod restarts;
mod rights;

use std::path::PathBuf;
use std::time::Duration;

use octavius_core::{ExecutionId, ExecutorId, HumanDuration, Timing};
use octavius_executor::{ExecutorOptions, KubernetesConnection, KubernetesOptions, RunnerOptions, SecretOffers};
use octavius_proto::client::Address;
use octavius_proto::v1;
use octavius_tests::{Kubernetes, Namespace, Proxy};
use serde_json::{Value, json};

use crate::controller::{Controller, Record, TOKEN};
use crate::daemon::Daemon;

/// The rules of the role in this file.
fn role(file: &str) -> Value {
    let path = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("../../deploy").join(file);
    let role: Value = serde_yaml::from_slice(&std::fs::read(path).unwrap()).unwrap();
    role["rules"].clone()
}

/// An executor's place in a namespace of its own.
struct Site<'c> {
    cluster: &'c Kubernetes,
    controller: Controller,
    namespace: Namespace<'c>,
    folder: tempfile::TempDir,
    options: KubernetesOptions,
    capacity: u32,
}

impl<'c> Site<'c> {
    /// With the rights that an executor needs, and to read secrets.
    fn new(cluster: &'c Kubernetes) -> Self {
        let mut rules = role("executor-role.yaml");
        rules.as_array_mut().unwrap().push(json!({"apiGroups": [""], "resources": ["secrets"], "verbs": ["get"]}));
        Self::with_rules(cluster, &rules)
    }

    fn with_rules(cluster: &'c Kubernetes, rules: &Value) -> Self {
        let _ = tracing_subscriber::fmt().with_env_filter("octavius_executor=debug").with_test_writer().try_init();
        let namespace = cluster.namespace().unwrap();
        let account = namespace.account("executor", rules).unwrap();
        let options = KubernetesOptions {
            connection: KubernetesConnection::Kubeconfig { path: Some(account), context: None },
            start_limit: HumanDuration::new(Duration::from_secs(8)),
            log_patience: HumanDuration::new(Duration::from_secs(5)),
            ..KubernetesOptions::default()
        };
        let folder = tempfile::tempdir().unwrap();
        Self { cluster, controller: Controller::start(), namespace, folder, options, capacity: 16 }
    }

    /// Has the executor reach the cluster through a proxy.
    fn through_a_proxy(&self) -> Proxy {
        let KubernetesConnection::Kubeconfig { path: Some(path), .. } = &self.options.connection else { panic!("no kubeconfig") };
        let url = self.cluster.url().unwrap();
        let proxy = Proxy::before(url.rsplit(':').next().unwrap().parse().unwrap()).unwrap();
        let text = std::fs::read_to_string(path).unwrap();
        std::fs::write(path, text.replace(&url, &format!("https://{}", proxy.address()))).unwrap();
        proxy
    }

    fn data_dir(&self) -> PathBuf {
        self.folder.path().join("data")
    }

    fn list(&self, folder: &str) -> Vec<String> {
        let entries = std::fs::read_dir(self.data_dir().join(folder)).into_iter().flatten();
        entries.map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect()
    }

    /// What its executor offers to jobs.
    fn offers(&self) -> SecretOffers {
        SecretOffers { kubernetes: vec!["gateway".to_owned(), format!("{}/n*", self.namespace.name())], ..Default::default() }
    }

    fn start(&self) -> Daemon {
        Daemon::start(ExecutorOptions {
            id: ExecutorId::new("e1").unwrap(),
            controllers: vec![Address::parse(&self.controller.address.to_string()).unwrap()],
            credential: octavius_executor::Credential::given(TOKEN),
            labels: [("vpc".to_owned(), "a".to_owned())].into(),
            capacity: self.capacity,
            data_dir: self.data_dir(),
            runner: RunnerOptions::Kubernetes(Box::new(self.options.clone())),
            secrets: self.offers(),
            spool_limit: octavius_core::limit::SPOOL_BYTES,
            log_rate: None,
            connect_timeout: Duration::from_secs(2),
            timing: Timing::faster(20),
        })
    }

    fn run(&self, job: &Value) -> ExecutionId {
        self.run_for(job, Duration::from_secs(600))
    }

    fn run_for(&self, job: &Value, timeout: Duration) -> ExecutionId {
        self.controller.assign_with(job, &[], timeout)
    }

    fn ended(&self, id: ExecutionId) -> Record {
        octavius_tests::eventually("the attempt's end", || {
            let record = self.controller.record(id, 1);
            anyhow::ensure!(record.finished.is_some(), "{} {:?} {:?}", record.starting, record.handed_back, record.runs_as);
            Ok(record)
        })
        .unwrap()
    }

    fn ending(&self, id: ExecutionId) -> String {
        shown(&self.ended(id).ending().unwrap())
    }

    fn logged(&self, id: ExecutionId, text: &str) {
        octavius_tests::eventually("text in the log", || {
            let log = self.controller.record(id, 1).text();
            anyhow::ensure!(log.contains(text), "{log}");
            Ok(())
        })
        .unwrap();
    }

    fn job_path(&self, id: ExecutionId) -> String {
        self.namespace.batch(&format!("jobs/octavius-{id}-1"))
    }

    /// The Job of an execution, once it is so.
    fn job(&self, id: ExecutionId, what: &str, holds: impl Fn(&Value) -> bool) -> Value {
        octavius_tests::eventually(what, || {
            let job = self.cluster.get(&self.job_path(id))?;
            anyhow::ensure!(holds(&job), "{job}");
            Ok(job)
        })
        .unwrap()
    }

    /// The name of an execution's pod.
    fn pod(&self, id: ExecutionId) -> String {
        octavius_tests::eventually("a pod", || {
            let pods = self.cluster.get(&self.namespace.path(&format!("pods?labelSelector=octavius/id={id}")))?;
            let name = pods["items"][0]["metadata"]["name"].as_str();
            name.map(str::to_owned).ok_or_else(|| anyhow::anyhow!("none"))
        })
        .unwrap()
    }

    /// Waits until the cluster has no Job of the executor's any more, or none that is not being deleted.
    fn nothing_left(&self) {
        octavius_tests::eventually("no Jobs", || {
            let jobs = self.cluster.get(&self.namespace.batch("jobs"))?;
            let names: Vec<_> =
                jobs["items"].as_array().into_iter().flatten().map(|job| job["metadata"]["name"].clone()).collect();
            anyhow::ensure!(names.is_empty(), "{names:?}");
            anyhow::ensure!(self.list("runs").is_empty(), "{:?}", self.list("runs"));
            Ok(())
        })
        .unwrap();
    }
}

fn shown(ending: &v1::Ending) -> String {
    format!("{} {} {:?} {}", ending.outcome().as_str_name(), ending.reason, ending.exit_code, ending.message)
        .replace("EXECUTION_STATE_", "")
}

/// A job that runs a script in busybox.
fn sh(script: &str) -> Value {
    json!({"name": "j", "image_name": Kubernetes::BUSYBOX, "command": ["sh", "-c", script]})
}

/// The same with more fields.
fn sh_with(script: &str, more: &Value) -> Value {
    let mut job = sh(script);
    job.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
    job
}
