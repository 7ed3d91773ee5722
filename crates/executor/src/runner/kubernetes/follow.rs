//! Following a pod's log into the attempt's output file, for as long as the container writes, over as many broken streams as it takes.

use std::io;
use std::path::PathBuf;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use futures::{AsyncBufReadExt as _, AsyncReadExt as _};
use k8s_openapi::api::core::v1::Pod;
use k8s_openapi::jiff::Timestamp;
use kube::api::LogParams;
use kube::{Api, Client};
use octavius_core::Timing;
use tokio::sync::watch;
use tokio::task::spawn_blocking;
use tokio::time::{Instant, timeout};

use super::api::{self, Trouble};
use super::lines::{Joint, Missed, Spool};
use super::manifest::CONTAINER;
use super::seen::PodSeen;
use super::sight::Seen;
use crate::link::Backoff;
use crate::runner::output::Output;

/// Largest piece that is read at once.
const PIECE: usize = 64 * 1024;
/// A stream that ends while the container is still said to run: for so long the news of its end may be on its way.
const NEWS: Duration = Duration::from_secs(3);
/// A stream whose container has ended ends at the end of the file that it reads, and leaves the one that a rotation has just begun. What is
/// in that one, so soon after, follows without a gap.
const AT_ONCE: Duration = Duration::from_secs(5);
/// A stream from which nothing came for so long is opened again, in case it lost the file at a rotation; each time later.
const SILENCE: Duration = Duration::from_secs(60);
const LONGEST_SILENCE: Duration = Duration::from_secs(960);
/// The rest of a stream whose container has ended comes within this time.
const REST: Duration = Duration::from_secs(10);

/// How a log came out: what is missing of it, where something may be.
pub(super) type LogEnd = Option<String>;

/// What is needed to follow a log.
pub(super) struct Follower {
    pub(super) client: Client,
    pub(super) namespace: String,
    pub(super) folder: PathBuf,
    pub(super) output: Arc<Output>,
    pub(super) seen: watch::Receiver<Seen>,
    pub(super) timing: Timing,
    /// How long a log is waited for that the cluster refuses to give.
    pub(super) patience: Duration,
}

/// How a stream ended.
enum Ended {
    /// As streams end.
    Cleanly,
    /// The place where the output ends was not in it.
    Missed,
    /// It broke, or was left because nothing came.
    Broke(String),
}

impl Follower {
    /// Follows the log until all of it is in the output file.
    pub(super) async fn follow(mut self) -> LogEnd {
        let first = self.wait_for_begin().await?;
        // On the heap, so that what waits for a pod to begin is small.
        Box::pin(self.follow_begun(first)).await
    }

    async fn follow_begun(mut self, first: PodSeen) -> LogEnd {
        let spool = loop {
            let folder = self.folder.clone();
            match spawn_blocking(move || Spool::open(&folder)).await.map_err(io::Error::other).and_then(|opened| opened) {
                Ok(spool) => break Arc::new(Mutex::new(spool)),
                Err(error) => {
                    tracing::warn!(pod = first.name, %error, "cannot open a job's output file, trying on");
                    tokio::time::sleep(NEWS).await;
                }
            }
        };
        let mut backoff = api::backoff(self.timing);
        let mut refused_since: Option<Instant> = None;
        let mut silence = SILENCE;
        let mut join = Joint::Place;
        let mut clean_at: Option<Instant> = None;
        let mut doubted = None;
        loop {
            let had = guard(&spool).length();
            let ended = self.stream(&first.name, &spool, join, silence).await;
            if guard(&spool).length() > had {
                backoff.reset();
                (refused_since, silence) = (None, SILENCE);
            }
            join = Joint::Place;
            match ended {
                Ok(Ended::Missed) => {
                    let follows = clean_at.is_some_and(|at| at.elapsed() < AT_ONCE) && self.pod(&first).has_ended();
                    join = if follows { Joint::NextFile } else { Joint::Gap };
                    continue;
                }
                Ok(Ended::Cleanly) => {
                    clean_at = Some(Instant::now());
                    if !self.pod(&first).has_ended() {
                        let _ = timeout(NEWS, self.seen.wait_for(|seen| of(seen, &first).has_ended())).await;
                    }
                    if self.pod(&first).has_ended() && self.is_whole(&first.name, &spool, &mut doubted).await {
                        return missing(&guard(&spool), None);
                    }
                }
                Ok(Ended::Broke(error)) => {
                    silence = (silence * 2).min(LONGEST_SILENCE);
                    tracing::debug!(pod = first.name, error, "a log's stream broke, opening it again");
                }
                Err(Trouble::Passing(error)) => {
                    tracing::debug!(pod = first.name, error, "cannot open a log's stream, trying again");
                }
                Err(Trouble::Refused(status)) => {
                    let since = *refused_since.get_or_insert_with(Instant::now);
                    let gone = status.code == 404 && self.pod(&first).gone;
                    if gone || (since.elapsed() >= self.patience && self.pod(&first).has_ended()) {
                        return missing(&guard(&spool), Some(&status.message));
                    }
                    tracing::debug!(pod = first.name, error = status.message, "a log's stream is refused, trying again");
                }
            }
            self.pause(&mut backoff).await;
        }
    }

    async fn pause(&self, backoff: &mut Backoff) {
        tokio::time::sleep(backoff.pause()).await;
    }

    fn pod(&self, first: &PodSeen) -> PodSeen {
        of(&self.seen.borrow(), first)
    }

    /// Waits until there is, or has been, something that writes; none where nothing ever did.
    async fn wait_for_begin(&mut self) -> Option<PodSeen> {
        let begun = |seen: &Seen| seen.pod().is_some_and(PodSeen::has_begun);
        match self.seen.wait_for(begun).await {
            Ok(seen) => seen.pod().cloned(),
            Err(_) => None,
        }
    }

    async fn stream(&self, pod: &str, spool: &Arc<Mutex<Spool>>, join: Joint, silence: Duration) -> Result<Ended, Trouble> {
        let pods: Api<Pod> = Api::namespaced(self.client.clone(), &self.namespace);
        let wanted = LogParams { container: Some(CONTAINER.to_owned()), follow: true, timestamps: true, ..LogParams::default() };
        // The answer begins with the first byte of the log, which a quiet job may be long in writing.
        let stream = match self.within(silence, Box::pin(pods.log_stream(pod, &wanted))).await {
            Ok(opened) => opened?,
            Err(why) => return Ok(Ended::Broke(why)),
        };
        let mut stream = std::pin::pin!(stream);
        let begun = guard(spool).begin(join);
        if let Err(error) = begun {
            return Ok(Ended::Broke(format!("the output file: {error}")));
        }
        loop {
            // Where the executor's spool is full, nothing is read: the kubelet keeps it, and a mark says what was rotated away meanwhile.
            let room = self.output.room().await;
            // A job that prints nothing for hours has no buffer meanwhile.
            let piece = match self.within(silence, stream.fill_buf()).await {
                Ok(Ok([])) => return Ok(if guard(spool).end() == Err(Missed) { Ended::Missed } else { Ended::Cleanly }),
                Ok(Ok(came)) => came[..came.len().min(PIECE).min(room)].to_vec(),
                Ok(Err(error)) => return Ok(Ended::Broke(error.to_string())),
                Err(why) => return Ok(Ended::Broke(why)),
            };
            stream.consume_unpin(piece.len());
            let now = Timestamp::now();
            let spool = Arc::clone(spool);
            let taken = spawn_blocking(move || guard(&spool).take(&piece, now)).await.map_err(io::Error::other);
            match taken.and_then(|taken| taken) {
                Ok(Ok(())) => {}
                Ok(Err(Missed)) => return Ok(Ended::Missed),
                // A full disk: the kubelet keeps what is not taken, and the stream goes on where the file ends.
                Err(error) => {
                    tracing::warn!(pod, %error, "cannot write a job's output, trying on");
                    return Ok(Ended::Broke(error.to_string()));
                }
            }
        }
    }

    /// Waits for something of a stream, but neither for ever nor for long after the container's end.
    async fn within<T>(&self, silence: Duration, something: impl Future<Output = T>) -> Result<T, String> {
        let mut seen = self.seen.clone();
        let over = async {
            let _ = seen.wait_for(|seen| seen.pod().is_none_or(PodSeen::has_ended)).await;
            tokio::time::sleep(REST).await;
        };
        tokio::select! {
            biased;
            came = something => Ok(came),
            () = tokio::time::sleep(silence) => Err(format!("nothing came for {} s", silence.as_secs())),
            () = over => Err("nothing came after the container's end".to_owned()),
        }
    }

    /// Whether the last line of the container's log is the last one that was taken. A stream also ends, and no less cleanly, where the
    /// kubelet went away behind the API server. `doubted` is the last line's timestamp at the time when this was asked before: what is
    /// still so after another stream is the timestamp of a long line's last piece, which is later than the line's.
    async fn is_whole(&self, pod: &str, spool: &Arc<Mutex<Spool>>, doubted: &mut Option<Timestamp>) -> bool {
        let pods: Api<Pod> = Api::namespaced(self.client.clone(), &self.namespace);
        let wanted = LogParams {
            container: Some(CONTAINER.to_owned()),
            tail_lines: Some(1),
            // Of the line no more than its timestamp is needed.
            limit_bytes: Some(64),
            timestamps: true,
            ..LogParams::default()
        };
        let last = match api::once(tail(&pods, pod, &wanted)).await {
            Ok(last) => last,
            // What cannot be asked any more cannot be read any better.
            Err(Trouble::Refused(_)) => return true,
            Err(Trouble::Passing(_)) => return false,
        };
        let text = last.split(|&byte| byte == b' ').next().and_then(|text| std::str::from_utf8(text).ok()).unwrap_or_default();
        let Ok(stamp) = text.parse() else { return true };
        let known = guard(spool).stamp();
        known.is_some_and(|known| stamp <= known) || doubted.replace(stamp) == Some(stamp)
    }
}

async fn tail(pods: &Api<Pod>, pod: &str, wanted: &LogParams) -> Result<Vec<u8>, kube::Error> {
    let stream = pods.log_stream(pod, wanted).await?;
    let mut bytes = Vec::new();
    let mut stream = std::pin::pin!(stream);
    stream.read_to_end(&mut bytes).await.map_err(kube::Error::ReadEvents)?;
    Ok(bytes)
}

/// What is seen of this pod now.
fn of(seen: &Seen, first: &PodSeen) -> PodSeen {
    seen.pods.iter().find(|pod| pod.uid == first.uid).cloned().unwrap_or_else(|| PodSeen { gone: true, ..first.clone() })
}

fn missing(spool: &Spool, why: Option<&str>) -> LogEnd {
    match why {
        Some(why) => Some(format!("the end of the log may be missing: {why}")),
        None if spool.has_gap => Some("a part of the log may be missing: it was rotated before it was read".to_owned()),
        None => None,
    }
}

fn guard(spool: &Mutex<Spool>) -> MutexGuard<'_, Spool> {
    spool.lock().unwrap_or_else(PoisonError::into_inner)
}
