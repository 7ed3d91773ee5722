//! A real Kubernetes of one node for tests, which tests/cluster/up starts: the one that tests/run has started for all tests, or one of the
//! test's own. Each test has a namespace of its own in it.

mod deploy;
mod executor;
mod watch;

use std::fs::File;
use std::io::Write as _;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use anyhow::{Context as _, Result, bail, ensure};
use rustix::process::{Pid, Signal, kill_process};
use serde_json::{Value, json};
use tempfile::TempDir;

pub use self::deploy::{Helm, deploy, image, objects};
pub use self::executor::{KubernetesExecutor, executor_rules};
pub use self::watch::{Change, Watch};
use crate::process;

/// A process that a Kubernetes is made of, which a test pauses or kills.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Component {
    /// etcd 3.6, where the API server keeps everything.
    Etcd,
    /// kube-apiserver.
    ApiServer,
    /// kube-controller-manager, which makes pods of Jobs.
    ControllerManager,
    /// kube-scheduler, which gives pods their node.
    Scheduler,
    /// kubelet, the node.
    Kubelet,
    /// containerd, which runs the containers.
    Containerd,
}

impl Component {
    /// Every one.
    pub const ALL: [Self; 6] =
        [Self::Etcd, Self::ApiServer, Self::ControllerManager, Self::Scheduler, Self::Kubelet, Self::Containerd];

    /// As the scripts call it.
    const fn name(self) -> &'static str {
        match self {
            Self::Etcd => "etcd",
            Self::ApiServer => "apiserver",
            Self::ControllerManager => "controller-manager",
            Self::Scheduler => "scheduler",
            Self::Kubelet => "kubelet",
            Self::Containerd => "containerd",
        }
    }
}

/// A running Kubernetes.
#[derive(Debug)]
pub struct Kubernetes {
    folder: PathBuf,
    alone: bool,
    /// Held while the cluster is used: by many tests at once, or by one that is alone with it.
    _turn: File,
    /// Where the cluster is this value's own: its folder, and its end.
    _own: Option<Own>,
}

impl Kubernetes {
    /// The image of a static busybox: `sh` and its usual company. It is there already and never pulled.
    pub const BUSYBOX: &str = "octavius.test/busybox:1";

    /// The cluster of this test run, together with other tests: `$OCTAVIUS_TEST_CLUSTER`. Starts one where that is not set.
    ///
    /// # Errors
    /// Where there is none and none can be started: a cluster that is missing is an error, never a reason to pass.
    pub fn shared() -> Result<Self> {
        Self::join(false)
    }

    /// The cluster of this test run, alone: waits until other tests have left it, and keeps them waiting. For tests that pause or kill
    /// components, or count requests.
    ///
    /// # Errors
    /// As [`Kubernetes::shared`].
    pub fn alone() -> Result<Self> {
        Self::join(true)
    }

    /// A cluster of the test's own, stopped when it is dropped.
    ///
    /// # Errors
    /// Where it does not get ready.
    pub fn start() -> Result<Self> {
        let own = Own::start()?;
        let folder = own.folder.path().to_owned();
        Ok(Self { alone: true, _turn: turn(&folder, true)?, _own: Some(own), folder })
    }

    fn join(alone: bool) -> Result<Self> {
        let Some(folder) = std::env::var_os("OCTAVIUS_TEST_CLUSTER").map(PathBuf::from) else { return Self::start() };
        let turn = turn(&folder, alone)?;
        let cluster = Self { folder, alone, _turn: turn, _own: None };
        // A test that was killed while it was alone may have left something paused.
        for component in Component::ALL {
            cluster.send(component, Signal::CONT)?;
        }
        cluster.until_ready()?;
        Ok(cluster)
    }

    /// The administrator's kubeconfig.
    #[must_use]
    pub fn kubeconfig(&self) -> PathBuf {
        self.folder.join("kubeconfig")
    }

    /// The address of its API server, `https://127.0.0.1:PORT`.
    ///
    /// # Errors
    /// Where the cluster is gone.
    pub fn url(&self) -> Result<String> {
        Ok(std::fs::read_to_string(self.folder.join("url"))?.trim().to_owned())
    }

    /// A new namespace, in which pods can be created.
    ///
    /// # Errors
    /// Where that fails.
    pub fn namespace(&self) -> Result<Namespace<'_>> {
        let folder = tempfile::Builder::new().prefix("octavius-namespace-").tempdir()?;
        let made = self.post("/api/v1/namespaces", &json!({"metadata": {"generateName": "test-"}}))?;
        let name = made["metadata"]["name"].as_str().context("no name")?.to_owned();
        let namespace = Namespace { cluster: self, name, folder };
        crate::eventually("the namespace has its default account", || self.get(&namespace.path("serviceaccounts/default")))?;
        let admin = std::fs::read_to_string(self.kubeconfig())?;
        let (before, after) = admin.split_once("context: {").context("no context in the kubeconfig")?;
        let in_it = format!("{before}context: {{namespace: {}, {after}", namespace.name);
        std::fs::write(namespace.kubeconfig(), in_it)?;
        Ok(namespace)
    }

    /// Pauses a component, as a machine does that hangs: its connections stay open and nothing answers. It goes on when the value is
    /// dropped.
    ///
    /// # Errors
    /// Where the test is not alone with the cluster, or the component does not run.
    pub fn pause(&self, component: Component) -> Result<Paused<'_>> {
        ensure!(self.alone, "only a test that is alone with the cluster may pause {}", component.name());
        self.send(component, Signal::STOP)?;
        Ok(Paused { cluster: self, component })
    }

    /// Kills a component, as `kill -9` does. It is started again at once, as by a service manager; see [`Kubernetes::until_ready`].
    ///
    /// # Errors
    /// Where the test is not alone with the cluster, or the component does not run.
    pub fn kill(&self, component: Component) -> Result<()> {
        ensure!(self.alone, "only a test that is alone with the cluster may kill {}", component.name());
        let killed = self.pid(component)?;
        self.send(component, Signal::KILL)?;
        crate::eventually("a killed component is started again", || {
            ensure!(self.pid(component)? != killed, "{} still has the id {killed}", component.name());
            Ok(())
        })
    }

    /// Throws away what was before: etcd is compacted, and the API server, which remembers for a while what etcd does not, is started anew. A
    /// watch from a version of before is answered with 410.
    ///
    /// # Errors
    /// Where the test is not alone with the cluster, or it does not recover.
    pub fn forget_history(&self) -> Result<()> {
        ensure!(self.alone, "only a test that is alone with the cluster may compact its etcd");
        let etcd = |call: &str, body: &Value| -> Result<Value> {
            let mut command = Command::new("curl");
            command
                .args(["--silent", "--show-error", "--fail-with-body", "--max-time", "10", "--data-binary"])
                .arg(body.to_string());
            // Relative, since the path of a socket may not be long.
            command.args(["--unix-socket", "etcd:2379"]).arg(format!("http://etcd/v3/kv/{call}")).current_dir(&self.folder);
            Ok(serde_json::from_str(&process::run(&mut command)?.expect(0)?.stdout)?)
        };
        let now = etcd("range", &json!({"key": "AA=="}))?["header"]["revision"].clone();
        etcd("compaction", &json!({"revision": now, "physical": true}))?;
        self.kill(Component::ApiServer)?;
        self.until_ready()
    }

    /// Waits until the API server answers and the node is ready.
    ///
    /// # Errors
    /// Where that is not so in time.
    pub fn until_ready(&self) -> Result<()> {
        crate::eventually("the cluster is ready", || {
            self.text("/readyz")?;
            let node = self.get("/api/v1/nodes/localhost")?;
            let mut conditions = node["status"]["conditions"].as_array().context("no conditions")?.iter();
            let ready = conditions.find(|condition| condition["type"] == "Ready").context("not known yet")?;
            ensure!(ready["status"] == "True", "{ready}");
            Ok(())
        })
    }

    /// The process id of a component; another after it was killed.
    ///
    /// # Errors
    /// Where it has not been started.
    pub fn pid(&self, component: Component) -> Result<u32> {
        let path = self.folder.join("pids").join(component.name());
        let text = std::fs::read_to_string(&path).with_context(|| format!("no {}: does the cluster run?", path.display()))?;
        Ok(text.trim().parse()?)
    }

    /// What a component has said so far.
    ///
    /// # Errors
    /// Where it has not been started.
    pub fn log(&self, component: Component) -> Result<String> {
        Ok(std::fs::read_to_string(self.folder.join("logs").join(format!("{}.log", component.name())))?)
    }

    /// How many requests the API server has answered since it was started whose metric has all of these labels, like
    /// `("resource", "jobs")` and `("verb", "LIST")`. Those of all clients count: only a test that is alone can say whose they are.
    ///
    /// # Errors
    /// Where the API server does not answer.
    pub fn requests(&self, labels: &[(&str, &str)]) -> Result<u64> {
        let labels: Vec<String> = labels.iter().map(|(name, value)| format!("{name}=\"{value}\"")).collect();
        let metrics = self.text("/metrics")?;
        let mut sum = 0.0;
        for line in metrics.lines().filter(|line| line.starts_with("apiserver_request_total{")) {
            let (named, count) = line.rsplit_once(' ').context("no number")?;
            // A name may be the end of another's: `resource` of `subresource`.
            if labels.iter().all(|label| named.contains(&format!("{{{label}")) || named.contains(&format!(",{label}"))) {
                sum += count.parse::<f64>()?;
            }
        }
        Ok(sum as u64)
    }

    /// The requests of a user that the API server has answered so far, as `audit.k8s.io/v1` events, from the oldest. Users are the test's own
    /// service accounts; nobody else is audited. A watch is told of when it ends.
    ///
    /// # Errors
    /// Where the audit cannot be read.
    pub fn audit(&self, user: &str) -> Result<Vec<Value>> {
        let text = std::fs::read_to_string(self.folder.join("logs/audit.log"))?;
        // Its last line may be on its way.
        let whole = text.split_inclusive('\n').filter(|line| line.ends_with('\n'));
        let events = whole.filter(|line| line.contains(user)).map(serde_json::from_str).collect::<Result<Vec<Value>, _>>()?;
        Ok(events.into_iter().filter(|event| event["user"]["username"] == user).collect())
    }

    /// Reads an object or a list by its path, like `/api/v1/nodes`.
    ///
    /// # Errors
    /// Where the API server refuses or does not answer.
    pub fn get(&self, path: &str) -> Result<Value> {
        Ok(serde_json::from_str(&self.text(path)?)?)
    }

    /// Reads what is no JSON: logs, metrics.
    ///
    /// # Errors
    /// As [`Kubernetes::get`].
    pub fn text(&self, path: &str) -> Result<String> {
        self.request("GET", path, None)
    }

    /// Creates an object in the collection at `path`.
    ///
    /// # Errors
    /// As [`Kubernetes::get`].
    pub fn post(&self, path: &str, object: &Value) -> Result<Value> {
        Ok(serde_json::from_str(&self.request("POST", path, Some(("application/json", object)))?)?)
    }

    /// Creates objects, one after the other over one connection: as fast as one client can.
    ///
    /// # Errors
    /// As [`Kubernetes::get`]; those before the one that was refused are there.
    pub fn post_all(&self, path: &str, objects: &[Value]) -> Result<()> {
        let common = std::fs::read_to_string(self.folder.join("curl.conf"))?;
        let url = self.url()?;
        let quoted = |text: &str| text.replace('\\', "\\\\").replace('"', "\\\"");
        let each = objects.iter().map(|object| {
            let body = quoted(&object.to_string());
            format!("{common}url = \"{url}{path}\"\nheader = \"Content-Type: application/json\"\ndata-binary = \"{body}\"\nfail-with-body\noutput = \"-\"\n")
        });
        let config = each.collect::<Vec<_>>().join("next\n");
        let mut command = Command::new("curl");
        command.args(["--silent", "--show-error", "--fail-early", "--config", "-"]);
        let mut child = command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn()?;
        child.stdin.take().context("no stdin")?.write_all(config.as_bytes())?;
        let output = child.wait_with_output()?;
        let said = String::from_utf8_lossy(&output.stdout);
        ensure!(
            output.status.success(),
            "POST {path}: {} {}",
            String::from_utf8_lossy(&output.stderr).trim(),
            said.lines().last().unwrap_or_default()
        );
        Ok(())
    }

    /// Changes an object by a merge patch (RFC 7386).
    ///
    /// # Errors
    /// As [`Kubernetes::get`].
    pub fn patch(&self, path: &str, change: &Value) -> Result<Value> {
        Ok(serde_json::from_str(&self.request("PATCH", path, Some(("application/merge-patch+json", change)))?)?)
    }

    /// Deletes an object or a collection.
    ///
    /// # Errors
    /// As [`Kubernetes::get`].
    pub fn delete(&self, path: &str) -> Result<Value> {
        Ok(serde_json::from_str(&self.request("DELETE", path, None)?)?)
    }

    /// One request. By curl, so that the tests need no HTTPS client beside the one under test.
    fn request(&self, method: &str, path: &str, body: Option<(&str, &Value)>) -> Result<String> {
        let mut command = Command::new("curl");
        command.args(["--silent", "--show-error", "--max-time", "10", "--request", method, "--write-out", "\n%{http_code}"]);
        command.arg("--config").arg(self.folder.join("curl.conf")).arg(format!("{}{path}", self.url()?));
        if let Some((kind, _)) = body {
            command.args(["--header", &format!("Content-Type: {kind}"), "--data-binary", "@-"]);
        }
        let mut child = command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn()?;
        let mut stdin = child.stdin.take().context("no stdin")?;
        if let Some((_, body)) = body {
            stdin.write_all(body.to_string().as_bytes())?;
        }
        drop(stdin);
        let output = child.wait_with_output()?;
        ensure!(output.status.success(), "{method} {path}: {}", String::from_utf8_lossy(&output.stderr).trim());
        let said = String::from_utf8_lossy(&output.stdout).into_owned();
        let (answer, code) = said.rsplit_once('\n').context("no status")?;
        if !code.starts_with('2') {
            bail!("{method} {path}: {code} {answer}");
        }
        Ok(answer.to_owned())
    }

    fn send(&self, component: Component, signal: Signal) -> Result<()> {
        let pid = Pid::from_raw(i32::try_from(self.pid(component)?)?).context("not a process id")?;
        kill_process(pid, signal).with_context(|| format!("{} does not run", component.name()))
    }
}

/// Waits for one's turn with the cluster in `folder`.
fn turn(folder: &Path, alone: bool) -> Result<File> {
    let file = File::options().create(true).append(true).open(folder.join("turn"));
    let file = file.with_context(|| format!("no cluster in {}", folder.display()))?;
    if alone {
        file.lock()?;
    } else {
        file.lock_shared()?;
    }
    Ok(file)
}

/// A paused component; it goes on when this is dropped.
#[derive(Debug)]
pub struct Paused<'c> {
    cluster: &'c Kubernetes,
    component: Component,
}

impl Drop for Paused<'_> {
    fn drop(&mut self) {
        // It may have been killed meanwhile.
        let _ = self.cluster.send(self.component, Signal::CONT);
    }
}

/// A namespace of one test's own, deleted with everything in it when this is dropped.
#[derive(Debug)]
pub struct Namespace<'c> {
    cluster: &'c Kubernetes,
    name: String,
    folder: TempDir,
}

impl Namespace<'_> {
    /// Its name.
    #[must_use]
    pub fn name(&self) -> &str {
        &self.name
    }

    /// The path of a collection or an object of the core group in it, like `pods` or `pods/NAME/log`.
    #[must_use]
    pub fn path(&self, rest: &str) -> String {
        format!("/api/v1/namespaces/{}/{rest}", self.name)
    }

    /// The path of a collection or an object of the batch group in it, like `jobs`.
    #[must_use]
    pub fn batch(&self, rest: &str) -> String {
        format!("/apis/batch/v1/namespaces/{}/{rest}", self.name)
    }

    /// The administrator's kubeconfig, with this namespace as the default.
    #[must_use]
    pub fn kubeconfig(&self) -> PathBuf {
        self.folder.path().join("kubeconfig")
    }

    /// The kubeconfig of a new service account that may do here what `rules` (as in a Role) say and nothing else.
    ///
    /// # Errors
    /// Where that fails.
    pub fn account(&self, name: &str, rules: &Value) -> Result<PathBuf> {
        let rbac = format!("/apis/rbac.authorization.k8s.io/v1/namespaces/{}", self.name);
        let metadata = json!({"name": name});
        self.cluster.post(&self.path("serviceaccounts"), &json!({"metadata": metadata}))?;
        self.cluster.post(&format!("{rbac}/roles"), &json!({"metadata": metadata, "rules": rules}))?;
        let role = json!({"apiGroup": "rbac.authorization.k8s.io", "kind": "Role", "name": name});
        let subject = json!({"kind": "ServiceAccount", "name": name, "namespace": self.name});
        let binding = json!({"metadata": metadata, "roleRef": role, "subjects": [subject]});
        self.cluster.post(&format!("{rbac}/rolebindings"), &binding)?;
        let request = json!({"spec": {"expirationSeconds": 3600}});
        let made = self.cluster.post(&self.path(&format!("serviceaccounts/{name}/token")), &request)?;
        let token = made["status"]["token"].as_str().context("no token")?;
        let admin = std::fs::read_to_string(self.kubeconfig())?;
        let (before, after) = admin.split_once("token: ").context("no token in the kubeconfig")?;
        let (_, after) = after.split_once('}').context("no end of the token in the kubeconfig")?;
        let path = self.folder.path().join(format!("{name}.kubeconfig"));
        std::fs::write(&path, format!("{before}token: {token}}}{after}"))?;
        Ok(path)
    }
}

impl Drop for Namespace<'_> {
    fn drop(&mut self) {
        // What is left of it goes with the cluster. Shells that are a container's first process ignore the polite signal: no grace for pods.
        let _ = self.cluster.delete(&format!("/api/v1/namespaces/{}", self.name));
        let _ = self.cluster.delete(&self.path("pods?gracePeriodSeconds=0"));
    }
}

/// A cluster that ends with this value; should the test be killed, the cluster notices within a second.
#[derive(Debug)]
struct Own {
    folder: TempDir,
}

fn script(name: &str) -> Command {
    Command::new(Path::new(env!("CARGO_MANIFEST_DIR")).join("cluster").join(name))
}

impl Own {
    fn start() -> Result<Self> {
        let own = Self { folder: tempfile::Builder::new().prefix("octavius-cluster-").tempdir()? };
        process::run(script("up").arg(own.folder.path()).arg(std::process::id().to_string()))?.expect(0)?;
        Ok(own)
    }
}

impl Drop for Own {
    fn drop(&mut self) {
        let down = process::run(script("down").arg(self.folder.path())).and_then(|output| output.expect(0));
        // What is left behind is a failure of the test, but must not hide why it failed before.
        if let Err(error) = down {
            assert!(std::thread::panicking(), "{error:#}");
        }
    }
}
