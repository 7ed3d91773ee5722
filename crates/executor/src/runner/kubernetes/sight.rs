//! What is to be seen of the cluster: two watches for each namespace, one of Jobs and one of pods, whatever the number of attempts, and
//! what they showed last, by Job.

use std::collections::HashMap;
use std::fmt::Debug;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use futures::{StreamExt as _, TryStreamExt as _};
use k8s_openapi::api::batch::v1::Job;
use k8s_openapi::api::core::v1::Pod;
use kube::Api;
use kube::api::{ListParams, WatchEvent, WatchParams};
use octavius_core::Timing;
use serde::de::DeserializeOwned;
use tokio::sync::watch;
use tokio::time::Instant;

use super::api::{self, Trouble};
use super::manifest::{ATTEMPT, EXECUTOR, ID, LET_BE};
use super::seen::{JobSeen, PodSeen};

/// The server ends each watch after so long, in seconds, so that one whose connection has died unnoticed is noticed.
const WATCH_SECONDS: u32 = 25;
/// A watch from which nothing came for so long, not even its end, is dead.
const SILENCE: Duration = Duration::from_secs(WATCH_SECONDS as u64 + 5);
/// Everything is listed again so often, whatever the watches say: an event that was lost is made good then.
const LIST_AGAIN: Duration = Duration::from_secs(600);
/// Objects for each page of a list, which bounds what is held in memory.
const PAGE: u32 = 100;

/// Whether a Job is there.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Presence {
    /// No list has been seen since it was asked for.
    Unknown,
    /// It is there, and is this.
    There(JobSeen),
    /// It is not there any more.
    Gone,
}

/// What was seen last of a Job and its pods.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Seen {
    pub(super) job: Presence,
    /// Its pods, those that are gone with how they were last; nearly always one.
    pub(super) pods: Vec<PodSeen>,
}

impl Seen {
    /// The pod that counts: the newest.
    pub(super) fn pod(&self) -> Option<&PodSeen> {
        self.pods.iter().max_by_key(|pod| pod.created)
    }
}

/// A Job's namespace and name.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub(super) struct Key {
    pub(super) namespace: String,
    pub(super) name: String,
}

struct Entry {
    seen: watch::Sender<Seen>,
    /// Since when it has been asked for, or has been seen: what a list that began before does not show may still be there.
    known_since: Instant,
    /// Attempts that look at it.
    lookers: usize,
    /// Since when nobody has looked at it.
    alone_since: Instant,
    /// Whether a Job without an attempt has been told of.
    told: bool,
}

/// All that is seen. A handle, cheap to clone.
#[derive(Clone, Default)]
pub(super) struct Sights(Arc<Mutex<HashMap<Key, Entry>>>);

/// One Job as it is seen. As long as this is there, what was seen is kept.
pub(super) struct Sight {
    sights: Sights,
    key: Key,
    seen: watch::Receiver<Seen>,
}

impl Sight {
    /// Takes note that the cluster has said that the Job is not there.
    pub(super) fn is_gone(&self) {
        if let Some(entry) = self.sights.entries().get(&self.key) {
            entry.change(|seen| seen.job = Presence::Gone);
        }
    }

    pub(super) fn seen(&self) -> watch::Receiver<Seen> {
        self.seen.clone()
    }
}

impl Drop for Sight {
    fn drop(&mut self) {
        let mut entries = self.sights.entries();
        if let Some(entry) = entries.get_mut(&self.key) {
            entry.lookers -= 1;
            entry.alone_since = Instant::now();
            if entry.is_over() {
                entries.remove(&self.key);
            }
        }
    }
}

impl Entry {
    fn new() -> Self {
        let now = Instant::now();
        let seen = watch::Sender::new(Seen { job: Presence::Unknown, pods: Vec::new() });
        Self { seen, known_since: now, lookers: 0, alone_since: now, told: false }
    }

    /// Whether there is nothing left to keep it for.
    fn is_over(&self) -> bool {
        self.lookers == 0 && !matches!(self.seen.borrow().job, Presence::There(_))
    }

    fn change(&self, change: impl FnOnce(&mut Seen)) {
        self.seen.send_if_modified(|seen| {
            let before = seen.clone();
            change(seen);
            *seen != before
        });
    }
}

impl Sights {
    fn entries(&self) -> MutexGuard<'_, HashMap<Key, Entry>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Looks at a Job, which is there, or was before the watches began.
    pub(super) fn look_at(&self, key: Key) -> Sight {
        let mut entries = self.entries();
        let entry = entries.entry(key.clone()).or_insert_with(Entry::new);
        entry.lookers += 1;
        let seen = entry.seen.subscribe();
        drop(entries);
        Sight { sights: self.clone(), key, seen }
    }

    /// Jobs that nobody has looked at for so long, counted from `since` at the earliest.
    pub(super) fn orphans(&self, since: Instant, delay: Duration) -> Vec<Orphan> {
        let mut entries = self.entries();
        let mut orphans = Vec::new();
        for (key, entry) in entries.iter_mut().filter(|(_, entry)| entry.lookers == 0) {
            let Presence::There(job) = entry.seen.borrow().job.clone() else { continue };
            let counted_from = entry.alone_since.max(since);
            // Between a Job's creation and the first look at it there are moments. What was told of stays told of over a new session.
            if job.is_let_be || job.deleting || (!entry.told && counted_from.elapsed() < delay / 10) {
                continue;
            }
            orphans.push(Orphan {
                key: key.clone(),
                uid: job.uid,
                newly: !std::mem::replace(&mut entry.told, true),
                since: entry.alone_since,
                until: counted_from + delay,
            });
        }
        orphans.sort_unstable_by(|one, other| (one.since, &one.key.name).cmp(&(other.since, &other.key.name)));
        orphans
    }
}

/// A Job of this executor that no attempt is for.
pub(super) struct Orphan {
    pub(super) key: Key,
    pub(super) uid: String,
    /// Whether it has not been told of before.
    pub(super) newly: bool,
    /// Since when nobody has looked at it.
    pub(super) since: Instant,
    /// When it has been alone for long enough to be deleted.
    pub(super) until: Instant,
}

/// What the watches are of: Jobs and pods.
pub(super) trait Watched: kube::Resource<DynamicType = ()> + Clone + DeserializeOwned + Debug + Send + 'static {
    /// What is told in our log.
    const WHAT: &'static str;

    /// The Job that it is, or belongs to.
    fn key(&self) -> Option<Key>;

    /// Takes it into what is seen.
    fn show(&self, seen: &mut Seen);

    /// Takes its end into what is seen.
    fn take_away(&self, seen: &mut Seen);

    /// Takes into what is seen that a list showed only objects of these UIDs.
    fn settle(seen: &mut Seen, listed: &[String]);
}

fn key_of(metadata: &k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta) -> Option<Key> {
    let labels = metadata.labels.as_ref()?;
    labels.get(EXECUTOR)?;
    let name = format!("octavius-{}-{}", labels.get(ID)?, labels.get(ATTEMPT)?);
    Some(Key { namespace: metadata.namespace.clone()?, name })
}

impl Watched for Job {
    const WHAT: &'static str = "jobs";

    fn key(&self) -> Option<Key> {
        Some(Key { namespace: self.metadata.namespace.clone()?, name: self.metadata.name.clone()? })
    }

    fn show(&self, seen: &mut Seen) {
        seen.job = Presence::There(JobSeen::of(self, LET_BE));
    }

    fn take_away(&self, seen: &mut Seen) {
        seen.job = Presence::Gone;
    }

    fn settle(seen: &mut Seen, listed: &[String]) {
        if listed.is_empty() {
            seen.job = Presence::Gone;
        }
    }
}

impl Watched for Pod {
    const WHAT: &'static str = "pods";

    fn key(&self) -> Option<Key> {
        key_of(&self.metadata)
    }

    fn show(&self, seen: &mut Seen) {
        let mut pod = PodSeen::of(self);
        match seen.pods.iter_mut().find(|known| known.uid == pod.uid) {
            Some(known) => {
                // The kubelet deletes an ended pod once more, which hides when it was deleted first.
                pod.cut_short |= known.cut_short;
                *known = pod;
            }
            None => seen.pods.push(pod),
        }
    }

    fn take_away(&self, seen: &mut Seen) {
        self.show(seen);
        let uid = self.metadata.uid.as_deref().unwrap_or_default();
        seen.pods.iter_mut().filter(|pod| pod.uid == uid).for_each(|pod| pod.gone = true);
    }

    fn settle(seen: &mut Seen, listed: &[String]) {
        seen.pods.iter_mut().filter(|pod| !listed.contains(&pod.uid)).for_each(|pod| pod.gone = true);
    }
}

impl Sights {
    /// Takes what the cluster says of an object into what is seen; `gone` where it is its end.
    pub(super) fn show<K: Watched>(&self, object: &K, gone: bool) {
        let Some(key) = object.key() else { return };
        let mut entries = self.entries();
        let entry = entries.entry(key.clone()).or_insert_with(Entry::new);
        entry.change(|seen| if gone { object.take_away(seen) } else { object.show(seen) });
        if entry.is_over() {
            entries.remove(&key);
        }
    }

    /// Takes a whole list: what it does not show, and was known before it began, is gone.
    fn settle<K: Watched>(&self, namespace: &str, listed: &HashMap<Key, Vec<String>>, begun: Instant) {
        let mut entries = self.entries();
        for (key, entry) in entries.iter_mut().filter(|(key, entry)| key.namespace == namespace && entry.known_since < begun) {
            let of_this = listed.get(key).map_or(&[][..], Vec::as_slice);
            entry.change(|seen| K::settle(seen, of_this));
        }
        entries.retain(|_, entry| !entry.is_over());
    }

    async fn list<K: Watched>(&self, api: &Api<K>, namespace: &str, selector: &str) -> Result<String, Trouble> {
        let begun = Instant::now();
        let mut listed: HashMap<Key, Vec<String>> = HashMap::new();
        let mut page = ListParams::default().labels(selector).limit(PAGE);
        loop {
            let list = api::once(api.list(&page)).await?;
            for object in &list.items {
                if let Some(key) = object.key() {
                    listed.entry(key).or_default().push(object.meta().uid.clone().unwrap_or_default());
                }
                self.show(object, false);
            }
            match list.metadata.continue_.filter(|token| !token.is_empty()) {
                Some(token) => page = page.continue_token(&token),
                None => {
                    self.settle::<K>(namespace, &listed, begun);
                    return Ok(list.metadata.resource_version.unwrap_or_default());
                }
            }
        }
    }

    /// Watches until something comes that only another list can put right, and leaves in `version` how far it came.
    async fn watch<K: Watched>(&self, api: &Api<K>, selector: &str, version: &mut String) -> Result<(), Trouble> {
        let params = WatchParams::default().labels(selector).timeout(WATCH_SECONDS);
        let stream = api::once(api.watch(&params, version)).await?;
        let mut stream = std::pin::pin!(stream.into_stream());
        loop {
            let event = match tokio::time::timeout(SILENCE, stream.next()).await {
                Ok(Some(event)) => event?,
                Ok(None) => return Ok(()),
                Err(_) => return Err(Trouble::Passing(format!("a watch was silent for {} s", SILENCE.as_secs()))),
            };
            let gone = matches!(event, WatchEvent::Deleted(_));
            match event {
                WatchEvent::Added(object) | WatchEvent::Modified(object) | WatchEvent::Deleted(object) => {
                    self.show(&object, gone);
                    if let Some(now) = &object.meta().resource_version {
                        now.clone_into(version);
                    }
                }
                WatchEvent::Bookmark(bookmark) => *version = bookmark.metadata.resource_version,
                WatchEvent::Error(status) => return Err(kube::Error::Api(status).into()),
            }
        }
    }

    /// Watches for as long as it is polled.
    pub(super) async fn keep_watching<K>(&self, api: Api<K>, namespace: &str, selector: &str, timing: Timing)
    where
        K: Watched,
    {
        let mut backoff = api::backoff(timing);
        let mut version: Option<String> = None;
        let mut listed_at = Instant::now();
        loop {
            let trouble = match &mut version {
                None => match self.list(&api, namespace, selector).await {
                    Ok(listed) => {
                        version = Some(listed);
                        listed_at = Instant::now();
                        backoff.reset();
                        continue;
                    }
                    Err(trouble) => trouble,
                },
                Some(at) => match self.watch(&api, selector, at).await {
                    Ok(()) => {
                        backoff.reset();
                        if listed_at.elapsed() >= LIST_AGAIN {
                            version = None;
                        }
                        continue;
                    }
                    // Above all 410: the version is too old to go on from.
                    Err(trouble @ Trouble::Refused(_)) => {
                        version = None;
                        trouble
                    }
                    Err(trouble) => trouble,
                },
            };
            let gone = matches!(&trouble, Trouble::Refused(status) if status.code == 410);
            if gone {
                tracing::debug!(namespace, what = K::WHAT, "a watch fell too far behind, listing again");
                continue;
            }
            tracing::warn!(namespace, what = K::WHAT, error = %trouble, "cannot watch, trying on");
            tokio::time::sleep(backoff.pause()).await;
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicUsize, Ordering};

    use http::{Request, Response};
    use kube::Client;
    use kube::client::Body;
    use serde_json::json;

    use super::*;

    fn job() -> serde_json::Value {
        let labels = json!({"octavius/executor": "e1"});
        json!({"apiVersion": "batch/v1", "kind": "Job", "metadata": {"name": "j", "namespace": "n", "uid": "u", "labels": labels}})
    }

    /// An API server whose watch is too old at once, and by whose second list the Job is gone.
    fn too_old() -> (Client, Arc<AtomicUsize>) {
        let lists = Arc::new(AtomicUsize::new(0));
        let counted = Arc::clone(&lists);
        let service = tower::service_fn(move |request: Request<Body>| {
            let lists = Arc::clone(&counted);
            async move {
                let query = request.uri().query().unwrap_or_default();
                let said = if query.contains("watch=true") && lists.load(Ordering::SeqCst) > 1 {
                    std::future::pending().await
                } else if query.contains("watch=true") {
                    json!({"type": "ERROR", "object": {"kind": "Status", "status": "Failure", "code": 410, "reason": "Expired",
                        "message": "too old resource version"}})
                } else {
                    let items = if lists.fetch_add(1, Ordering::SeqCst) == 0 { vec![job()] } else { vec![] };
                    json!({"apiVersion": "batch/v1", "kind": "JobList", "metadata": {"resourceVersion": "5"}, "items": items})
                };
                Ok::<_, std::convert::Infallible>(Response::new(Body::from(format!("{said}\n").into_bytes())))
            }
        });
        (Client::new(service, "n"), lists)
    }

    #[tokio::test]
    async fn a_watch_that_fell_too_far_behind_lists_again_and_misses_no_end() {
        let (client, lists) = too_old();
        let sights = Sights::default();
        let sight = sights.look_at(Key { namespace: "n".to_owned(), name: "j".to_owned() });
        let mut seen = sight.seen();
        let watching = sights.keep_watching(Api::<Job>::namespaced(client, "n"), "n", "octavius/executor=e1", Timing::default());
        let ended = async {
            seen.wait_for(|seen| seen.job == Presence::Gone).await.map(drop).unwrap();
        };
        tokio::select! {
            () = watching => {}
            ended = tokio::time::timeout(Duration::from_secs(20), ended) => ended.unwrap(),
        }
        assert_eq!(lists.load(Ordering::SeqCst), 2);
    }

    #[tokio::test]
    async fn a_job_that_nobody_looks_at_is_an_orphan_after_the_delay_and_forgotten_when_it_is_gone() {
        let (sights, begun) = (Sights::default(), Instant::now());
        let job: Job = serde_json::from_value(job()).unwrap();
        sights.show(&job, false);
        let sight = sights.look_at(job.key().unwrap());
        assert!(sights.orphans(begun, Duration::ZERO).is_empty(), "it is looked at");
        drop(sight);
        assert!(sights.orphans(begun, Duration::from_secs(600)).is_empty(), "it may be looked at in a moment");
        let orphans = sights.orphans(begun, Duration::ZERO);
        let due = |orphan: &Orphan| orphan.until <= Instant::now();
        assert_eq!(
            orphans.iter().map(|orphan| (orphan.uid.as_str(), orphan.newly, due(orphan))).collect::<Vec<_>>(),
            [("u", true, true)]
        );
        assert!(!sights.orphans(begun, Duration::ZERO)[0].newly);
        // With a new session the delay begins anew, and it is an orphan as before.
        let anew = sights.orphans(Instant::now(), Duration::from_secs(600));
        assert_eq!((anew.len(), due(&anew[0]), anew[0].since), (1, false, orphans[0].since));
        sights.show(&job, true);
        assert!(sights.entries().is_empty());
    }
}
