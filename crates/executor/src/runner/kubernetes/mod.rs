//! The kubernetes runner: each attempt is a Kubernetes Job of its own, made suspended, resumed once the controller has said yes, and
//! deleted once the controller has its outcome.
//!
//! Rooms: `manifest` says what a Job looks like, `sight` what is to be seen of all of them over two watches for each namespace, `verdict`
//! what that means, `lines` and `follow` how a log is read whole, `record` what is kept on disk, `run` leads one attempt. A Job is created
//! before anything is written here and deleted before anything is removed here, and its labels and annotations name its attempt: so what a
//! crash leaves is always found again, be it with this disk or without.

mod api;
mod check;
mod connections;
mod follow;
mod lines;
mod manifest;
mod options;
mod record;
mod run;
mod seen;
mod sight;
mod verdict;

use std::collections::BTreeMap;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use async_trait::async_trait;
use k8s_openapi::api::batch::v1::Job;
use k8s_openapi::api::core::v1::{Pod, Secret};
use kube::Api;
use kube::api::{DeleteParams, ListParams, PostParams, Preconditions};
use kube::core::NamespaceResourceScope;
use octavius_core::Timing;
use octavius_core::definition::KubernetesSecret;
use octavius_core::execution::{Ending, Fence, Reason, State};
use octavius_failpoint::{EXECUTOR_JOB_CREATED, reach};
use tokio::sync::{Semaphore, watch};
use tokio::task::{JoinSet, spawn_blocking};
use tokio::time::Instant;

use self::api::Trouble;
use self::connections::Connections;
use self::manifest::{ATTEMPT, EXECUTOR, ID, LET_BE, MASKED, Made, Maker, NONCE};
use self::record::Record;
use self::run::KubernetesRun;
use self::sight::{Key, Orphan, Sights, Watched};
use super::process::private_folder;
use super::recover::quarantine;
use super::{Held, Launch, Orphans, Recovered, Run, Runner, Stage, Unprepared, folder};
use crate::offers::Offered;
use crate::spool::Spool;

pub use self::check::{KubernetesPermission, check_kubernetes, check_kubernetes_offers};
pub use self::options::{JobSetting, KubernetesConnection, KubernetesOptions};

/// How long an attempt waits for the API server before it is given back, so that another executor may have it: well within the time after
/// which a claim without a start goes back by itself.
const PREPARE_PATIENCE: Duration = Duration::from_secs(20);
/// Attempts that are made ready at once. Those that wait their turn have their definitions and nothing else: a Job is many times as large as
/// what is kept of it.
const PREPARED_AT_ONCE: usize = 16;
/// How long an executor that starts waits for the list of its Jobs, before it goes on with what its disk says.
const RECOVER_PATIENCE: Duration = Duration::from_secs(30);
/// Longest pause between looks for orphans.
const LOOK_FOR_ORPHANS: Duration = Duration::from_secs(60);

/// What every attempt in the cluster needs.
pub(super) struct Shared {
    connections: Connections,
    maker: Maker,
    sights: Sights,
    timing: Timing,
    runs: PathBuf,
    quarantine: PathBuf,
    /// What the output of all runs is a part of.
    spool: Spool,
    /// Since when this executor has had a session, where it has one.
    standing: watch::Receiver<Option<Instant>>,
    /// Jobs that no attempt is for, for the session to tell of.
    orphans: watch::Sender<Orphans>,
    /// Held while an attempt is made ready.
    preparing: Semaphore,
}

/// Where a runner keeps its things.
pub(crate) struct Place<'p> {
    /// A folder that is there, absolute, and this executor's alone.
    pub(crate) data_dir: &'p Path,
    /// What the output of all runs is a part of.
    pub(crate) spool: Spool,
}

/// Runs jobs as Kubernetes Jobs.
pub(crate) struct KubernetesRunner {
    shared: Arc<Shared>,
    /// The watches and the search for orphans, which end with the runner.
    tasks: Mutex<JoinSet<()>>,
}

impl Shared {
    fn jobs(&self, namespace: &str) -> Api<Job> {
        Api::namespaced(self.connections.calls(), namespace)
    }

    async fn watch<K: Watched + kube::Resource<Scope = NamespaceResourceScope>>(self: Arc<Self>, namespace: String) {
        let api: Api<K> = Api::namespaced(self.connections.calls(), &namespace);
        self.sights.keep_watching(api, &namespace, &self.maker.selector(), self.timing).await;
    }

    /// Deletes a Job, and only the one of this UID; one that is gone is no error.
    async fn delete(&self, key: &Key, uid: &str, how: DeleteParams, patience: Option<Duration>) -> Result<(), Trouble> {
        let jobs = self.jobs(&key.namespace);
        let how = how.preconditions(Preconditions { uid: Some(uid.to_owned()), resource_version: None });
        let deleted = api::until_answered(self.timing, "delete a Job", patience, || jobs.delete(&key.name, &how)).await;
        match deleted {
            Err(Trouble::Refused(status)) if matches!(status.code, 404 | 409) => Ok(()),
            deleted => deleted.map(drop),
        }
    }

    /// The values of secrets, as far as this executor may read them: to see that they are there, and to mask them in the log.
    async fn secrets(
        &self,
        namespace: &str,
        secrets: &[(String, KubernetesSecret)],
    ) -> Result<BTreeMap<String, String>, Unprepared> {
        let api: Api<Secret> = Api::namespaced(self.connections.calls(), namespace);
        let mut read: BTreeMap<&str, Option<Secret>> = BTreeMap::new();
        let mut values = BTreeMap::new();
        let missing = |message: String| Unprepared::from(Ending::because(State::Failed, Reason::SECRET_MISSING, message));
        for (variable, source) in secrets {
            if !read.contains_key(source.secret.as_str()) {
                let got =
                    api::until_answered(self.timing, "read a Secret", Some(PREPARE_PATIENCE), || api.get(&source.secret)).await;
                let secret = match got {
                    Ok(secret) => Some(secret),
                    // Not for this executor to read. If it is not there, the kubelet says so.
                    Err(Trouble::Refused(status)) if status.code == 403 => None,
                    Err(Trouble::Refused(_)) => {
                        return Err(missing(format!(
                            "secret `{variable}`: namespace {namespace} has no Kubernetes Secret `{}`: create it, or change the job's `from`",
                            source.secret
                        )));
                    }
                    Err(Trouble::Passing(message)) => return Err(Unprepared::NotNow(message)),
                };
                read.insert(&source.secret, secret);
            }
            let Some(Some(secret)) = read.get(source.secret.as_str()) else { continue };
            let Some(value) = secret.data.as_ref().and_then(|data| data.get(&source.key)) else {
                return Err(missing(format!(
                    "secret `{variable}`: Kubernetes Secret `{}` in namespace {namespace} has no key `{}`",
                    source.secret, source.key
                )));
            };
            if let Ok(text) = String::from_utf8(value.0.clone()) {
                values.insert(variable.clone(), text);
            }
        }
        Ok(values)
    }

    /// Creates the Job, or finds that it was created before, and returns its UID.
    async fn create(&self, held: Held, made: &Made) -> Result<String, Unprepared> {
        let jobs = self.jobs(&made.namespace);
        let how = PostParams::default();
        let created =
            api::until_answered(self.timing, "create a Job", Some(PREPARE_PATIENCE), || jobs.create(&how, &made.job)).await;
        let status = match created {
            Ok(job) => return Ok(job.metadata.uid.unwrap_or_default()),
            Err(Trouble::Passing(message)) => {
                return Err(Unprepared::NotNow(format!("the Kubernetes API server cannot be reached: {message}")));
            }
            Err(Trouble::Refused(status)) => status,
        };
        let never = |reason: &str, message: String| Err(Ending::because(State::Failed, reason, message).into());
        match (status.code, status.reason.as_str()) {
            (409, "AlreadyExists") => self.existing(held, made).await,
            // Two Jobs at once, and one quota: the server asks for another try.
            (409, _) => Err(Unprepared::NotNow(status.message)),
            (403, _) if verdict::is_quota(&status.message) => Err(verdict::over_quota(&status.message).into()),
            (403, _) => Err(verdict::forbidden(&status.message).into()),
            _ => never(Reason::REQUIREMENT_NOT_MET, format!("the cluster does not take the Job: {}", status.message)),
        }
    }

    /// The UID of the Job that has the name already, if it is this very attempt's.
    async fn existing(&self, held: Held, made: &Made) -> Result<String, Unprepared> {
        let name = manifest::name(held);
        let jobs = self.jobs(&made.namespace);
        let found = api::until_answered(self.timing, "read a Job", Some(PREPARE_PATIENCE), || jobs.get(&name)).await;
        match found {
            Ok(job) if self.is_of(held, &job) => Ok(job.metadata.uid.unwrap_or_default()),
            Ok(_) => {
                let message = format!(
                    "namespace {} has a Job `{name}` that is not this execution's: delete it if nothing needs it, and execute again",
                    made.namespace
                );
                Err(Ending::because(State::Failed, Reason::CONFLICT, message).into())
            }
            Err(trouble) => Err(Unprepared::NotNow(trouble.to_string())),
        }
    }

    /// Whether a Job is this attempt's, made by this executor, and still there to be used.
    fn is_of(&self, held: Held, job: &Job) -> bool {
        let labels = job.metadata.labels.clone().unwrap_or_default();
        let is = |key: &str, value: String| labels.get(key) == Some(&value);
        let nonce = job.metadata.annotations.as_ref().and_then(|annotations| annotations.get(NONCE));
        is(ID, held.id.to_string())
            && is(ATTEMPT, held.fence.attempt.to_string())
            && is(EXECUTOR, self.maker.executor().to_string())
            && nonce.is_none_or(|nonce| *nonce == held.fence.nonce.to_string())
            && job.metadata.deletion_timestamp.is_none()
    }

    /// Deletes what no attempt is for, some time after it has said so; and only while there is a session, since otherwise another executor
    /// may have this one's id, and what is an orphan here is at work there.
    async fn look_after_orphans(&self) {
        let delay = self.maker.options.orphan_delay.get();
        loop {
            tokio::time::sleep((delay / 4).min(LOOK_FOR_ORPHANS)).await;
            let Some(since) = *self.standing.borrow() else { continue };
            let mut orphans = self.sights.orphans(since, delay);
            // What is let be has its folder, or had it.
            orphans.retain(|orphan| {
                let of = orphan.key.name.trim_start_matches("octavius-");
                !self.runs.join(of).exists() && !self.quarantine.join(of).exists()
            });
            for Orphan { key, .. } in orphans.iter().filter(|orphan| orphan.newly) {
                tracing::warn!(
                    namespace = key.namespace,
                    job = key.name,
                    "a Job of this executor that no execution is for: it is deleted later"
                );
            }
            self.tell_orphans(&orphans);
            let (due, mut left): (Vec<_>, Vec<_>) = orphans.into_iter().partition(|orphan| orphan.until <= Instant::now());
            for orphan in due {
                let Orphan { key, uid, .. } = &orphan;
                match self.delete(key, uid, DeleteParams::background(), Some(Duration::ZERO)).await {
                    Ok(()) => {
                        tracing::warn!(namespace = key.namespace, job = key.name, "deleted a Job that no execution is for");
                    }
                    Err(error) => {
                        tracing::warn!(namespace = key.namespace, job = key.name, %error, "cannot delete a Job that no execution is for");
                        left.push(orphan);
                    }
                }
            }
            self.tell_orphans(&left);
        }
    }

    /// Has the session tell the controller of them.
    fn tell_orphans(&self, orphans: &[Orphan]) {
        let first = orphans.iter().take(octavius_core::limit::ORPHANS).map(|orphan| super::Orphan {
            namespace: orphan.key.namespace.clone(),
            name: orphan.key.name.clone(),
            since: orphan.since,
            until: orphan.until,
        });
        let now = Orphans { first: first.collect(), count: orphans.len() };
        self.orphans.send_if_modified(|known| {
            let changed = *known != now;
            *known = now;
            changed
        });
    }
}

impl KubernetesRunner {
    /// A runner that keeps its things in `place`. The error says what of the
    /// options is wrong; whether the cluster answers shows later.
    pub(crate) async fn open(
        place: Place<'_>,
        offered: Offered,
        options: KubernetesOptions,
        timing: Timing,
        standing: watch::Receiver<Option<Instant>>,
        orphans: watch::Sender<Orphans>,
    ) -> Result<Self, String> {
        let (connections, namespace) = api::connect(&options).await?;
        let maker = Maker::new(offered, namespace, options, timing.kill_grace)?;
        let Place { data_dir, spool } = place;
        let (runs, quarantine) = (data_dir.join("runs"), data_dir.join("quarantine"));
        for folder in [&runs, &quarantine] {
            private_folder(folder).map_err(|error| format!("{}: {error}", folder.display()))?;
        }
        let (sights, preparing) = (Sights::default(), Semaphore::new(PREPARED_AT_ONCE));
        let shared =
            Arc::new(Shared { connections, maker, sights, timing, runs, quarantine, spool, standing, orphans, preparing });
        Ok(Self { shared, tasks: Mutex::default() })
    }

    /// Begins to watch. What is looked at by then and is not there any more shows in the first list; see [`Sights::look_at`].
    fn watch(&self) {
        let shared = &self.shared;
        let mut tasks = self.tasks.lock().unwrap_or_else(PoisonError::into_inner);
        for namespace in shared.maker.namespaces() {
            tasks.spawn(Arc::clone(shared).watch::<Job>(namespace.clone()));
            tasks.spawn(Arc::clone(shared).watch::<Pod>(namespace));
        }
        let orphans = Arc::clone(shared);
        tasks.spawn(async move { orphans.look_after_orphans().await });
    }

    /// Jobs of this executor, as far as the cluster answers.
    async fn listed(&self) -> Vec<Job> {
        let mut all = Vec::new();
        for namespace in self.shared.maker.namespaces() {
            let jobs = self.shared.jobs(&namespace);
            let mut page = ListParams::default().labels(&self.shared.maker.selector()).limit(100);
            loop {
                let listed =
                    api::until_answered(self.shared.timing, "list Jobs", Some(RECOVER_PATIENCE), || jobs.list(&page)).await;
                match listed {
                    Ok(list) => {
                        all.extend(list.items);
                        match list.metadata.continue_.filter(|token| !token.is_empty()) {
                            Some(token) => page = page.continue_token(&token),
                            None => break,
                        }
                    }
                    Err(error) => {
                        tracing::warn!(namespace, %error, "cannot list Jobs: going on with those of which the run folders tell");
                        break;
                    }
                }
            }
        }
        all
    }

    /// Goes on with a Job whose run folder is lost, if its annotations say enough. None where it is to be left alone.
    async fn adopt(&self, job: &Job) -> Option<Recovered> {
        let shared = &self.shared;
        let labels = job.metadata.labels.as_ref()?;
        let annotations = job.metadata.annotations.as_ref()?;
        if annotations.contains_key(LET_BE) || job.metadata.deletion_timestamp.is_some() {
            return None;
        }
        let fence = Fence { attempt: labels.get(ATTEMPT)?.parse().ok()?, nonce: annotations.get(NONCE)?.parse().ok()? };
        let held = Held { id: labels.get(ID)?.parse().ok()?, fence };
        if shared.quarantine.join(held.to_string()).exists() {
            return None;
        }
        let (namespace, name) = (job.metadata.namespace.clone()?, job.metadata.name.clone()?);
        let spec = job.spec.as_ref()?;
        let pod = spec.template.spec.as_ref()?;
        let timeout = Duration::from_secs(pod.active_deadline_seconds.and_then(|limit| u64::try_from(limit).ok())?);
        let hidden: Vec<&str> = annotations.get(MASKED).map_or("", String::as_str).split(',').collect();
        let mut masked = BTreeMap::new();
        let mut secrets = Vec::new();
        for variable in pod.containers.iter().flat_map(|container| container.env.iter().flatten()) {
            let source = variable.value_from.as_ref().and_then(|from| from.secret_key_ref.as_ref());
            match (&variable.value, source) {
                (Some(value), _) if hidden.contains(&variable.name.as_str()) => {
                    masked.insert(variable.name.clone(), value.replace("$$", "$"));
                }
                (None, Some(source)) => {
                    let source = KubernetesSecret { secret: source.name.clone(), key: source.key.clone() };
                    secrets.push((variable.name.clone(), source));
                }
                _ => {}
            }
        }
        // One that is gone by now is in no log that is still to be read.
        masked.extend(shared.secrets(&namespace, &secrets).await.unwrap_or_default());
        let uid = job.metadata.uid.clone().unwrap_or_default();
        let trace = pod.containers.first().and_then(manifest::trace_of);
        let record = Record::new(held, &namespace, &name, &uid, timeout, masked).in_trace(trace.clone());
        if let Err(error) = record.write(&shared.runs) {
            tracing::warn!(namespace, job = name, %error, "cannot write the run folder of a Job that was found");
            return None;
        }
        tracing::info!(namespace, job = name, "going on with a Job that was found by its labels");
        let run = KubernetesRun::new(Arc::clone(shared), &record, None);
        let stage = if spec.suspend == Some(true) { Stage::Prepared } else { Stage::Started(Some(run.runs_as())) };
        Some(Recovered { held, stage, run: Arc::new(run), trace })
    }
}

#[async_trait]
impl Runner for KubernetesRunner {
    fn name(&self) -> &'static str {
        "kubernetes"
    }

    async fn prepare(&self, launch: Launch) -> Result<Arc<dyn Run>, Unprepared> {
        let shared = &self.shared;
        let held = launch.held;
        if shared.runs.join(held.to_string()).exists() {
            let message =
                "this executor still has a run of the same attempt, of which the store did not know: see its quarantine";
            return Err(Ending::because(State::Failed, Reason::START_FAILED, message).into());
        }
        let Ok(Ok(_turn)) = tokio::time::timeout(PREPARE_PATIENCE, shared.preparing.acquire()).await else {
            return Err(Unprepared::NotNow("the API server is slow, and too many Jobs wait to be created".to_owned()));
        };
        let made = shared.maker.make(&launch)?;
        let trace = launch.trace.clone();
        drop(launch);
        let mut masked = made.masked.clone();
        masked.extend(shared.secrets(&made.namespace, &made.secrets).await?);
        let uid = shared.create(held, &made).await?;
        reach(&EXECUTOR_JOB_CREATED);
        let name = manifest::name(held);
        let record = Record::new(held, &made.namespace, &name, &uid, made.timeout, masked).in_trace(trace);
        let (writer, runs) = (Arc::new(record), shared.runs.clone());
        let record = Arc::clone(&writer);
        let written = spawn_blocking(move || writer.write(&runs)).await.map_err(io::Error::other).and_then(|written| written);
        if let Err(error) = written {
            let key = Key { namespace: made.namespace, name };
            if let Err(error) = shared.delete(&key, &uid, DeleteParams::background(), Some(Duration::ZERO)).await {
                tracing::warn!(job = key.name, %error, "cannot delete a Job that is not used: that is done later");
            }
            return Err(Unprepared::NotNow(format!("the executor could not write a run folder: {error}")));
        }
        Ok(Arc::new(KubernetesRun::new(Arc::clone(shared), &record, None)))
    }

    async fn probe(&self) -> io::Result<()> {
        let jobs = self.shared.jobs(&self.shared.maker.namespace);
        let page = ListParams::default().labels(&self.shared.maker.selector()).limit(1);
        api::once(jobs.list(&page)).await.map_err(|trouble| io::Error::other(trouble.to_string()))?;
        let probe = self.shared.runs.join("probe");
        let write = move || {
            private_folder(&probe)?;
            std::fs::write(probe.join("room"), [0; 256 * 1024]).and(std::fs::remove_dir_all(&probe))
        };
        spawn_blocking(write).await.map_err(io::Error::other)?
    }

    async fn recover(&self) -> io::Result<Vec<Recovered>> {
        let mut found = Vec::new();
        for entry in std::fs::read_dir(&self.shared.runs)? {
            let path = entry?.path();
            if let Ok(why) = std::fs::read_to_string(path.join(crate::journal::LET_BE)) {
                quarantine(&self.shared.quarantine, &path, &why);
                continue;
            }
            match Record::read(&path) {
                Ok(Some((record, ending))) => {
                    let run = KubernetesRun::new(Arc::clone(&self.shared), &record, ending);
                    let stage = Stage::Started(Some(run.runs_as()));
                    found.push(Recovered { held: record.held(), stage, run: Arc::new(run), trace: record.trace });
                }
                // Nothing was told of it yet; its Job, if there is one, is found below.
                Ok(None) => {
                    if let Err(error) = folder::remove(&path) {
                        tracing::warn!(path = %path.display(), %error, "cannot remove a run folder");
                    }
                }
                Err(why) => quarantine(&self.shared.quarantine, &path, &why),
            }
        }
        for job in self.listed().await {
            let name = job.metadata.name.as_deref().unwrap_or_default();
            if !self.shared.runs.join(name.trim_start_matches("octavius-")).exists()
                && let Some(recovered) = self.adopt(&job).await
            {
                found.push(recovered);
            }
        }
        self.watch();
        Ok(found)
    }
}
