//! One attempt as a Kubernetes Job.

use std::fs;
use std::io;
use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use async_trait::async_trait;
use k8s_openapi::api::core::v1::{Event, Pod};
use kube::Api;
use kube::api::{DeleteParams, ListParams, Patch, PatchParams};
use octavius_core::execution::{Ending, Reason, State};
use octavius_failpoint::{EXECUTOR_JOB_DELETED, reach};
use serde_json::json;
use tokio::sync::watch;
use tokio::task::spawn_blocking;
use tokio::time::Instant;
use tokio_util::task::AbortOnDropHandle;

use super::Shared;
use super::api::{self, Trouble};
use super::follow::{Follower, LogEnd};
use super::manifest;
use super::record::{Record, note_ending};
use super::seen::{PodSeen, Why};
use super::sight::{Key, Seen, Sight};
use super::verdict::{Facts, Look, judge};
use crate::ending;
use crate::journal::{LET_BE, STOP, StopCause};
use crate::mask::Mask;
use crate::runner::output::Output;
use crate::runner::{Held, Over, Run, folder, recover};

/// First pause before the cluster is asked again why there is no pod; each is twice as long as the one before.
const ASK_AGAIN: Duration = Duration::from_secs(5);
/// How long the note on a Job that it is to be let be is tried.
const NOTE_PATIENCE: Duration = Duration::from_secs(10);

/// One attempt, by its Job.
pub(super) struct KubernetesRun {
    shared: Arc<Shared>,
    held: Held,
    key: Key,
    uid: String,
    folder: PathBuf,
    timeout: Duration,
    mask: Mask,
    sight: Sight,
    /// When it was resumed here, or found again.
    began: Mutex<Instant>,
    /// Whether the cluster has said that it is resumed.
    resumed: AtomicBool,
    /// Whether it was asked to resume it and did not answer.
    unanswered: AtomicBool,
    /// Whether the cluster has said that it deletes it.
    deleted: AtomicBool,
    stop: Mutex<Option<StopCause>>,
    ending: Mutex<Option<Ending>>,
    log: Mutex<Option<Log>>,
    output: Arc<Output>,
}

/// A log that is being followed.
struct Log {
    end: watch::Receiver<Option<LogEnd>>,
    _task: AbortOnDropHandle<()>,
}

fn guard<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// What the cluster was asked, and said, where no pod is seen.
#[derive(Default)]
struct Asked {
    /// Whether it was asked for the pods.
    pods: bool,
    /// Why there is none.
    why: Option<Why>,
    again: Option<Instant>,
    pause: Duration,
}

impl KubernetesRun {
    /// An attempt whose Job is there, or was, and whose folder is there.
    pub(super) fn new(shared: Arc<Shared>, record: &Record, ending: Option<Ending>) -> Self {
        let key = Key { namespace: record.namespace.clone(), name: record.name.clone() };
        let sight = shared.sights.look_at(key.clone());
        let folder = record.folder(&shared.runs);
        Self {
            held: record.held(),
            uid: record.uid.clone(),
            output: Arc::new(Output::new(&shared.spool, &folder, shared.spool.share())),
            folder,
            timeout: record.timeout(),
            mask: Mask::new(record.env.values().cloned()),
            shared,
            key,
            sight,
            began: Mutex::new(Instant::now()),
            resumed: AtomicBool::new(false),
            unanswered: AtomicBool::new(false),
            deleted: AtomicBool::new(false),
            stop: Mutex::new(None),
            ending: Mutex::new(ending),
            log: Mutex::new(None),
        }
    }

    /// What it is where it runs.
    pub(super) fn runs_as(&self) -> String {
        format!("job {}/{}", self.key.namespace, self.key.name)
    }

    fn asked_to_stop(&self) -> Option<StopCause> {
        let noted = || fs::read_to_string(self.folder.join(STOP)).ok().and_then(|text| StopCause::parse(&text));
        let mut known = guard(&self.stop);
        if known.is_none() {
            *known = noted();
        }
        *known
    }

    /// Resumes the Job of this UID. Doing so again does no harm.
    async fn resume(&self) -> Result<(), Trouble> {
        let jobs = self.shared.jobs(&self.key.namespace);
        let patch = Patch::Merge(json!({"metadata": {"uid": self.uid}, "spec": {"suspend": false}}));
        let how = PatchParams::default();
        // No longer than a permission to start holds.
        let patience = Some(self.shared.timing.start_within / 2);
        let resume = || jobs.patch(&self.key.name, &how, &patch);
        api::until_answered(self.shared.timing, "resume a Job", patience, resume).await.map(drop)
    }

    /// Begins to follow the log, if that has not been done.
    fn follow_log(&self) -> watch::Receiver<Option<LogEnd>> {
        let mut log = guard(&self.log);
        if let Some(log) = &*log {
            return log.end.clone();
        }
        let follower = Follower {
            client: self.shared.connections.logs(),
            namespace: self.key.namespace.clone(),
            folder: self.folder.clone(),
            output: Arc::clone(&self.output),
            seen: self.sight.seen(),
            timing: self.shared.timing,
            patience: self.shared.maker.options.log_patience.get(),
        };
        let (sender, end) = watch::channel(None);
        let task = tokio::spawn(async move {
            let end = follower.follow().await;
            let _ = sender.send(Some(end));
        });
        *log = Some(Log { end: end.clone(), _task: AbortOnDropHandle::new(task) });
        end
    }

    /// Waits until the whole log is in the output file, and says what is missing.
    async fn log_end(&self, seen: &Seen) -> LogEnd {
        if !seen.pods.iter().any(PodSeen::has_begun) {
            return None;
        }
        let mut end = self.follow_log();
        match end.wait_for(Option::is_some).await {
            Ok(end) => end.clone().flatten(),
            Err(_) => Some("the end of the log may be missing: a fault in the executor".to_owned()),
        }
    }

    /// Keeps how it ends, before anything of it is deleted.
    fn decide(&self, ending: &Ending) {
        *guard(&self.ending) = Some(ending.clone());
        if let Err(error) = note_ending(&self.folder, ending) {
            tracing::warn!(execution = %self.held.id, attempt = self.held.fence.attempt, %error, "cannot note how an attempt ended");
        }
    }

    /// Asks the cluster for the attempt's pods, and shows them.
    async fn ask_for_pods(&self) {
        let pods: Api<Pod> = Api::namespaced(self.shared.connections.calls(), &self.key.namespace);
        let wanted = ListParams::default().labels(&manifest::selector_of(self.held));
        match api::until_answered(self.shared.timing, "list a Job's pods", None, || pods.list(&wanted)).await {
            Ok(list) => list.items.iter().for_each(|pod| self.shared.sights.show(pod, false)),
            Err(error) => tracing::warn!(job = self.key.name, %error, "cannot list a Job's pods"),
        }
    }

    /// Asks the cluster why there is no pod.
    async fn ask_why(&self) -> Why {
        let events: Api<Event> = Api::namespaced(self.shared.connections.calls(), &self.key.namespace);
        let wanted = ListParams::default().fields(&format!("involvedObject.uid={},type=Warning", self.uid));
        match api::once(events.list(&wanted)).await {
            Ok(list) => {
                let last = list.items.into_iter().max_by_key(|event| event.last_timestamp.clone());
                last.map_or_else(Why::default, |event| Why {
                    reason: event.reason.unwrap_or_default(),
                    message: event.message.unwrap_or_default(),
                })
            }
            // Not for this executor to read, or not now: it goes without.
            Err(error) => {
                tracing::debug!(job = self.key.name, %error, "cannot read the events of a Job");
                Why::default()
            }
        }
    }

    /// Deletes the Job with its pod, and comes back when the cluster has said yes.
    async fn delete_now(&self) {
        let deleted = self.shared.delete(&self.key, &self.uid, DeleteParams::foreground(), None).await;
        match deleted {
            Ok(()) => self.deleted.store(true, Ordering::Relaxed),
            Err(error) => {
                tracing::warn!(job = self.key.name, %error, "the cluster does not let a Job be deleted, trying on");
                tokio::time::sleep(ASK_AGAIN).await;
            }
        }
    }

    /// Waits for what was asked of a cluster that did not answer; true if the Job is resumed.
    async fn is_resumed(&self) -> bool {
        let jobs = self.shared.jobs(&self.key.namespace);
        match api::until_answered(self.shared.timing, "read a Job", None, || jobs.get(&self.key.name)).await {
            Ok(job) => job.spec.and_then(|spec| spec.suspend) != Some(true),
            Err(_) => {
                self.sight.is_gone();
                true
            }
        }
    }

    async fn until_over(&self) -> Result<(Ending, Seen), Over> {
        let mut changes = self.sight.seen();
        let mut asked = Asked::default();
        loop {
            let seen = changes.borrow_and_update().clone();
            let waited = guard(&self.began).elapsed();
            let decided = guard(&self.ending).clone();
            let now = Instant::now();
            if asked.again.is_some_and(|again| now >= again) {
                asked.why = None;
            }
            let look = judge(
                &seen,
                &Facts {
                    uid: &self.uid,
                    resumed: self.resumed.load(Ordering::Relaxed),
                    waited,
                    stop: self.asked_to_stop(),
                    decided: decided.as_ref(),
                    timeout: self.timeout,
                    start_limit: self.shared.maker.options.start_limit.get(),
                    no_pod: asked.why.as_ref(),
                },
            );
            let pause = match look {
                // The two watches know nothing of each other: the Job's end may be seen before its pod is, and the pod has the log.
                Look::Over(_) if seen.pods.is_empty() && !asked.pods => {
                    self.ask_for_pods().await;
                    asked.pods = true;
                    continue;
                }
                Look::Over(ending) => return Ok((ending, seen)),
                Look::NotStarted => return Err(Over::NotStarted("the Job was not resumed".to_owned())),
                Look::GiveUp(ending) => {
                    tracing::info!(job = self.key.name, why = ending.message, "given up");
                    self.decide(&ending);
                    continue;
                }
                Look::Delete if self.deleted.load(Ordering::Relaxed) => None,
                Look::Delete => {
                    self.delete_now().await;
                    continue;
                }
                Look::AskWhy => {
                    asked.why = Some(self.ask_why().await);
                    asked.pause = (asked.pause * 2).max(ASK_AGAIN);
                    asked.again = Some(Instant::now() + asked.pause);
                    continue;
                }
                Look::Wait(pause) => pause,
            };
            let until = [pause.map(|pause| now + pause), asked.again].into_iter().flatten().filter(|until| *until > now).min();
            let sleep = async {
                match until {
                    Some(until) => tokio::time::sleep_until(until).await,
                    None => std::future::pending().await,
                }
            };
            tokio::select! {
                changed = changes.changed() => if changed.is_err() {
                    std::future::pending::<()>().await; // the runner is going down, and this with it
                },
                () = sleep => {}
            }
        }
    }
}

#[async_trait]
impl Run for KubernetesRun {
    async fn start(&self) -> Result<String, Ending> {
        let resumed = self.resume().await;
        *guard(&self.began) = Instant::now();
        match resumed {
            Ok(()) => self.resumed.store(true, Ordering::Relaxed),
            Err(Trouble::Passing(_)) => self.unanswered.store(true, Ordering::Relaxed),
            // Deleted, and perhaps there is another of its name.
            Err(Trouble::Refused(status)) if matches!(status.code, 404 | 409) => self.sight.is_gone(),
            Err(Trouble::Refused(status)) if status.code == 403 => return Err(super::verdict::forbidden(&status.message)),
            Err(Trouble::Refused(status)) => {
                let message = format!("the cluster does not let the Job begin: {}", status.message);
                return Err(Ending::because(State::Failed, Reason::START_FAILED, message));
            }
        }
        Ok(self.runs_as())
    }

    async fn wait(&self) -> Over {
        if self.unanswered.load(Ordering::Relaxed) {
            let resumed = self.is_resumed().await;
            self.unanswered.store(false, Ordering::Relaxed);
            self.resumed.store(resumed, Ordering::Relaxed);
        }
        drop(self.follow_log());
        let (mut ending, seen) = match self.until_over().await {
            Ok(over) => over,
            Err(not_started) => return not_started,
        };
        let before = guard(&self.ending).is_some();
        let mut missing = self.log_end(&seen).await;
        let reason = ending.reason.as_ref().map(|reason| reason.0.as_str());
        if missing.is_none()
            && matches!(reason, Some(Reason::INFRASTRUCTURE | Reason::EVICTED | Reason::DELETED_EXTERNALLY))
            && seen.pods.iter().any(PodSeen::has_begun)
        {
            missing = Some("what the job printed last may be missing from the log".to_owned());
        }
        if seen.pods.is_empty() && ending.outcome == State::Succeeded {
            missing = Some("the log is missing: the pod was removed before it could be read".to_owned());
        }
        if !before {
            ending::append(&mut ending, missing.as_deref().unwrap_or_default());
            self.decide(&ending);
        }
        Over::Ended(ending)
    }

    async fn image(&self) -> String {
        let mut changes = self.sight.seen();
        let known = |seen: &Seen| seen.pods.iter().find(|pod| !pod.image.is_empty()).map(|pod| pod.image.clone());
        loop {
            let image = known(&changes.borrow_and_update());
            if let Some(image) = image {
                return image;
            }
            if changes.changed().await.is_err() {
                std::future::pending::<()>().await; // the runner is going down, and this with it
            }
        }
    }

    async fn stop(&self, cause: StopCause) {
        let asked = self.asked_to_stop();
        if asked.is_none_or(|asked| asked < cause) {
            *guard(&self.stop) = Some(cause);
            if let Err(error) = fs::write(self.folder.join(STOP), cause.as_str()) {
                tracing::warn!(execution = %self.held.id, attempt = self.held.fence.attempt, %error, "cannot note that the job is to stop");
            }
        }
        // The rest is done by whoever waits: the cluster may be long in answering.
    }

    async fn stop_asked(&self) -> Option<StopCause> {
        self.asked_to_stop()
    }

    fn output(&self) -> &Output {
        &self.output
    }

    fn mask(&self) -> &Mask {
        &self.mask
    }

    async fn remove(&self) {
        loop {
            match self.shared.delete(&self.key, &self.uid, DeleteParams::background(), None).await {
                Ok(()) => break,
                Err(error) => {
                    tracing::warn!(job = self.key.name, %error, "the cluster does not let a Job be deleted, trying on");
                    tokio::time::sleep(ASK_AGAIN).await;
                }
            }
        }
        reach(&EXECUTOR_JOB_DELETED);
        let folder = self.folder.clone();
        let removed = spawn_blocking(move || folder::remove(&folder)).await;
        if let Err(error) = removed.unwrap_or_else(|error| Err(io::Error::other(error))) {
            tracing::warn!(execution = %self.held.id, attempt = self.held.fence.attempt, %error, "cannot remove a run folder");
        }
    }

    async fn let_be(&self, why: &str) {
        let Held { id, fence } = self.held;
        if let Err(error) = fs::write(self.folder.join(LET_BE), why) {
            tracing::warn!(execution = %id, attempt = fence.attempt, %error, "cannot note that an attempt is let be: the next executor finds it again");
        }
        // On the Job as well, for an executor that has lost its disk by then.
        let jobs = self.shared.jobs(&self.key.namespace);
        let patch = Patch::Merge(json!({"metadata": {"uid": self.uid, "annotations": {manifest::LET_BE: why}}}));
        let how = PatchParams::default();
        let note = || jobs.patch(&self.key.name, &how, &patch);
        if let Err(error) = api::until_answered(self.shared.timing, "annotate a Job", Some(NOTE_PATIENCE), note).await {
            tracing::warn!(job = self.key.name, %error, "cannot note on a Job that it is let be");
        }
    }

    async fn quarantine(&self, why: &str) {
        recover::quarantine(&self.shared.quarantine, &self.folder, why);
    }
}
