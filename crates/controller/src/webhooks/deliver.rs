//! Brings one webhook its messages: those of this controller's slice, the earliest first, a few at a time. One that is not taken is tried again
//! after a pause that doubles; while nothing is taken at all, a single message finds out whether it is back, and then all that wait go. What is
//! refused for itself is in nobody's way.

use std::pin::pin;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use futures::StreamExt as _;
use futures::stream::FuturesUnordered;
use octavius_core::timing::doubled;
use octavius_core::{Execution, State, Timestamp, Timing, WebhookEvent};
use octavius_store::record::DeliveryRecord;
use octavius_store::{Commit, Revision, Store, StoreError, Txn, codec, key};
use reqwest::{Client, StatusCode, header};
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;
use url::Url;

use super::config::WebhookConfig;
use super::message::Message;
use super::outbox::{Held, Outbox, Which};
use crate::audit::{Act, What};
use crate::clock::Clock;
use crate::engine::{Engine, EngineError};
use crate::metrics::WebhookCounts;
use crate::outbound;
use crate::random;
use crate::slices::Slices;

/// Messages that one webhook is given at the same time.
const AT_ONCE: usize = 16;

/// Most bytes that are read of an answer, so that its connection can be used again. What they say is not looked at.
const ANSWER_BYTES: usize = 64 * 1024;

/// Longest that is kept of why a message was not taken.
const FAILURE_CHARS: usize = 200;

/// How a webhook stands, as this controller has found it.
#[derive(Debug, Clone, Default)]
pub(super) struct Standing {
    /// How often in a row it has not taken what it was brought; what was brought together counts once.
    pub(super) failures: u32,
    /// Counts these since the start: a try that began before the last of them says nothing about what came after it.
    refusals: u64,
    /// Nothing is tried before.
    resume_at: Option<Instant>,
    pub(super) failing_since: Option<Timestamp>,
    /// Why it did not take one last.
    pub(super) failure: String,
    /// When it took one last.
    pub(super) delivered_at: Option<Timestamp>,
}

/// What brings one webhook its messages.
#[derive(Debug)]
pub(super) struct Courier {
    pub(super) config: WebhookConfig,
    client: Result<Client, String>,
    /// Where browsers reach the web page.
    page: Option<Url>,
    store: Arc<dyn Store>,
    engine: Engine,
    timing: Timing,
    clock: Clock,
    outbox: Outbox,
    counts: WebhookCounts,
    standing: Mutex<Standing>,
}

/// Why a webhook did not take a message.
#[derive(Debug)]
pub(super) struct Refused {
    pub(super) why: String,
    /// It says that it never will.
    is_gone: bool,
    /// It is this message that it does not take, and no other for that.
    is_for_itself: bool,
    /// It says when to come again.
    after: Option<Duration>,
}

impl From<String> for Refused {
    fn from(why: String) -> Self {
        Self { why, is_gone: false, is_for_itself: false, after: None }
    }
}

/// What came of a try.
enum Tried {
    Taken,
    /// There is nothing to tell any more.
    Outdated,
    /// The execution was removed before it could be told.
    Removed,
    Refused(Refused),
    /// What is to be told could not be read: nobody was asked.
    Unread(EngineError),
}

impl Courier {
    pub(super) fn new(
        config: WebhookConfig,
        page: Option<Url>,
        store: Arc<dyn Store>,
        engine: Engine,
        timing: Timing,
        outbox: Outbox,
    ) -> Self {
        let client = outbound::client(config.ca_file.as_deref(), &config.url);
        let counts = engine.counts.webhooks.clone();
        counts.begin(&config.name);
        let clock = engine.clock().clone();
        Self { config, client, page, store, engine, timing, clock, outbox, counts, standing: Mutex::default() }
    }

    fn lock(&self) -> MutexGuard<'_, Standing> {
        self.standing.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// How it stands.
    pub(super) fn standing(&self) -> Standing {
        self.lock().clone()
    }

    /// Brings messages until the shutdown. Nothing is brought before it is known which are this controller's.
    pub(super) async fn run(&self, mut slices: watch::Receiver<Option<Slices>>, shutdown: CancellationToken) {
        let mut under_way = FuturesUnordered::new();
        let name = &self.config.name;
        loop {
            let mut changed = pin!(self.outbox.changed());
            changed.as_mut().enable(); // before the look, so that nothing is missed between it and the wait
            let own = slices.borrow_and_update().clone();
            let is_own = |id| own.as_ref().is_some_and(|own| own.is_own(id));
            let now = self.clock.now();
            let mut pause = self.timing.reconcile_interval;
            loop {
                let Standing { failures, resume_at, .. } = self.standing();
                let room = if failures > 0 { 1 } else { AT_ONCE };
                let rest = resume_at.map_or(Duration::ZERO, |at| at.saturating_duration_since(self.clock.instant()));
                if under_way.len() >= room || !rest.is_zero() {
                    pause = if rest.is_zero() { pause } else { rest.min(pause) };
                    break;
                }
                let Some((which, held)) = self.outbox.take(name, now, failures > 0, is_own) else {
                    pause = self.outbox.next(name, is_own).map_or(pause, |next| until(now, next).min(pause));
                    break;
                };
                under_way.push(self.bring(which, held));
            }
            // A change that has come while all hands were full is seen when one is free.
            tokio::select! {
                biased;
                () = shutdown.cancelled() => return,
                Some(()) = under_way.next(), if !under_way.is_empty() => {}
                () = changed => {}
                Ok(()) = slices.changed() => {}
                () = self.clock.sleep(pause) => {}
            }
        }
    }

    /// Tries to bring a message, and writes down what came of it.
    async fn bring(&self, which: Which, held: Held) {
        let modified = held.modified;
        let refusals = self.lock().refusals;
        let tried = self.attempt(which).await;
        let now = self.clock.now();
        let left = match tried {
            Tried::Taken => {
                self.took(now, refusals);
                self.counts.delivered(&self.config.name);
                self.settle(which).await
            }
            Tried::Outdated => self.settle(which).await,
            Tried::Removed => {
                let failure = match held.record.failure.as_str() {
                    "" => "its execution was removed before".to_owned(),
                    failure => format!("its execution was removed before; last: {failure}"),
                };
                let record = DeliveryRecord { then: now, failure, ..held.record.clone() };
                self.give_up(which, held, record).await
            }
            Tried::Refused(refused) => {
                self.counts.failed(&self.config.name);
                if !refused.is_for_itself {
                    self.refused(now, refusals, &refused);
                }
                self.put_off(which, held, &refused, now).await
            }
            // A record that cannot be read stays so, and is told like what nobody takes.
            Tried::Unread(error) if until(held.record.at, now) >= self.timing.webhook_patience => {
                let record = DeliveryRecord { then: now, failure: error.to_string(), ..held.record.clone() };
                self.give_up(which, held, record).await
            }
            Tried::Unread(error) => {
                tracing::warn!(webhook = self.config.name, execution = %which.0, %error, "what is to be told could not be read");
                Some(Held { due: now.checked_add(self.timing.webhook_retry_min).unwrap_or(now), ..held })
            }
        };
        self.outbox.done(&self.config.name, which, modified, left);
    }

    async fn attempt(&self, (id, event): Which) -> Tried {
        let execution = match self.engine.get(id).await {
            Ok(execution) => execution,
            Err(EngineError::NotFound(_)) => return Tried::Removed,
            Err(error) => return Tried::Unread(error),
        };
        if is_outdated(event, &execution) {
            return Tried::Outdated;
        }
        match self.send(Message::of(&execution, event, self.page.as_ref())).await {
            Ok(()) => Tried::Taken,
            Err(refused) => Tried::Refused(refused),
        }
    }

    /// Sends a message, and waits until it is taken.
    pub(super) async fn send(&self, message: Message) -> Result<(), Refused> {
        let client = self.client.as_ref().map_err(Clone::clone)?;
        let secrets = self.config.secrets()?;
        let request = message.put(client.post(self.config.url.clone()), &secrets, Timestamp::now());
        let told = |error: reqwest::Error| {
            let why = octavius_proto::client::root_cause(&error.without_url());
            Refused::from(why.chars().take(FAILURE_CHARS).collect::<String>())
        };
        let mut response = request.send().await.map_err(told)?;
        let status = response.status();
        let after = response.headers().get(header::RETRY_AFTER).and_then(|value| value.to_str().ok()?.parse().ok());
        let mut read = 0;
        while let Ok(Some(chunk)) = response.chunk().await {
            read += chunk.len();
            if read > ANSWER_BYTES {
                break;
            }
        }
        if status.is_success() {
            return Ok(());
        }
        let more = if status.is_redirection() { ", and redirects are not followed" } else { "" };
        let after = after.map(Duration::from_secs);
        let (is_gone, is_for_itself) = (status == StatusCode::GONE, is_of_the_message(status));
        Err(Refused { why: format!("it answers {status}{more}"), is_gone, is_for_itself, after })
    }

    /// It has taken a message, whose try began when it had refused that often.
    pub(super) fn took(&self, now: Timestamp, refusals: u64) {
        let mut standing = self.lock();
        standing.delivered_at = Some(now);
        if standing.refusals != refusals || standing.failures == 0 {
            return;
        }
        let failures = standing.failures;
        *standing = Standing { delivered_at: Some(now), refusals, ..Standing::default() };
        drop(standing);
        tracing::info!(webhook = self.config.name, "a webhook takes messages again");
        if failures > 1 {
            self.outbox.hasten(&self.config.name, now); // after a single failure each has its own pause
        }
    }

    /// How often it has refused.
    pub(super) fn refusals(&self) -> u64 {
        self.lock().refusals
    }

    /// It has not taken what was brought when it had refused that often.
    fn refused(&self, now: Timestamp, refusals: u64, refused: &Refused) {
        let mut standing = self.lock();
        if standing.failures == 0 {
            tracing::warn!(webhook = self.config.name, why = refused.why, "a webhook does not take messages");
        }
        if standing.refusals == refusals {
            standing.refusals += 1;
            standing.failures = standing.failures.saturating_add(1);
        }
        standing.failing_since.get_or_insert(now);
        standing.failure.clone_from(&refused.why);
        let pause = doubled(self.timing.webhook_retry_min, standing.failures, self.timing.webhook_pause_max);
        let pause = pause.max(refused.after.unwrap_or_default().min(self.timing.webhook_retry_max));
        let resume_at = self.clock.instant() + pause;
        standing.resume_at = Some(standing.resume_at.map_or(resume_at, |before| before.max(resume_at)));
    }

    /// A message is done with, whatever has become of it meanwhile. That has to be written down, or it would be sent again; only the shutdown
    /// keeps it from being tried.
    async fn settle(&self, (id, event): Which) -> Option<Held> {
        let at = key::delivery(id, event, &self.config.name);
        while let Err(error) = self.store.commit(Txn::new().delete(at.clone())).await {
            tracing::debug!(webhook = self.config.name, execution = %id, %error, "that a message was taken is not written down yet");
            self.clock.sleep(self.timing.retry_max).await;
        }
        None
    }

    /// A message was not taken: it is tried again later, or given up.
    async fn put_off(&self, which: Which, held: Held, refused: &Refused, now: Timestamp) -> Option<Held> {
        let tries = held.record.tries.saturating_add(1);
        let waited = until(held.record.at, now);
        let record = DeliveryRecord { at: held.record.at, tries, then: now, failure: refused.why.clone() };
        if refused.is_gone || waited >= self.timing.webhook_patience {
            return self.give_up(which, held, record).await;
        }
        let pause = jittered(doubled(self.timing.webhook_retry_min, tries, self.timing.webhook_retry_max));
        let pause = pause.max(refused.after.unwrap_or_default().min(self.timing.webhook_retry_max));
        let then = now.checked_add(pause).unwrap_or(now);
        let record = DeliveryRecord { then, ..record };
        let at = key::delivery(which.0, which.1, &self.config.name);
        let txn = Txn::new().when(at.clone(), held.modified).put(at, codec::encode(&record));
        let held = Held { record, due: then, is_refused: refused.is_for_itself, ..held };
        self.keep(self.store.commit(txn).await, held)
    }

    async fn give_up(&self, which: Which, held: Held, record: DeliveryRecord) -> Option<Held> {
        let due = record.then.checked_add(self.timing.webhook_retry_min).unwrap_or(record.then);
        let done = give_up(&*self.store, &self.config.name, &[(which, held.modified, record)]).await;
        if let Ok(Commit::Done(_)) = done {
            self.counts.given_up(&self.config.name, 1);
            return None;
        }
        self.keep(done, Held { due, ..held })
    }

    /// A message as it is after it was written down. Where that could not be done, it is so here, and the store says what it said before.
    fn keep(&self, written: Result<Commit, StoreError>, held: Held) -> Option<Held> {
        match written {
            Ok(Commit::Done(modified)) => Some(Held { modified, ..held }),
            Ok(Commit::Conflict(_)) => None, // another controller has been quicker, and the watch tells
            Err(error) => {
                tracing::debug!(webhook = self.config.name, %error, "that a message was not taken is not written down");
                Some(held)
            }
        }
    }
}

/// Whether there is nothing to tell any more: whoever would be asked to look would find nothing to do.
pub(super) fn is_outdated(event: WebhookEvent, execution: &Execution) -> bool {
    event == WebhookEvent::WaitingForApproval && execution.state != State::WaitingForApproval
}

/// A message that is given up: which it is, as it was read, and what is kept of it.
pub(super) type GivenUp = (Which, Revision, DeliveryRecord);

/// Moves messages of a webhook to those that were given up, with one record in the audit trail; not more of them than
/// [`super::MOVED_AT_ONCE`].
pub(super) async fn give_up(store: &dyn Store, webhook: &str, some: &[GivenUp]) -> Result<Commit, StoreError> {
    let Some(((id, event), _, last)) = some.last() else { return Ok(Commit::Conflict(Vec::new())) };
    let what = match some {
        [_] => What::new("webhook.abandon", "execution", &id.to_string()).with("webhook", webhook).with("event", event),
        _ => What::new("webhook.abandon", "webhook", webhook).with("deliveries", some.len()),
    };
    let what = what.with("tries", last.tries).with("failure", &last.failure);
    let mut txn = Txn::new();
    for ((id, event), modified, record) in some {
        let at = key::delivery(*id, *event, webhook);
        txn = txn.when(at.clone(), *modified).delete(at);
        txn = txn.put(key::delivery_given_up(*id, *event, webhook), codec::encode(record));
    }
    let done = store.commit(Act::new(None, None, what).done(txn)).await?;
    if let Commit::Done(_) = done {
        let (deliveries, failure) = (some.len(), &last.failure);
        tracing::error!(webhook, last = %id, deliveries, failure, "a webhook's messages were given up");
    }
    Ok(done)
}

/// Whether an answer speaks of the message and not of whoever takes it: what is wrong with this one need not be with the next.
fn is_of_the_message(status: StatusCode) -> bool {
    // who one is, where it is, whether it is there, and that it is asked too often or too slowly
    const OF_THE_WEBHOOK: [u16; 8] = [401, 403, 404, 405, 407, 408, 410, 429];
    status.is_client_error() && !OF_THE_WEBHOOK.contains(&status.as_u16())
}

/// About so long, so that what failed together does not come back together.
fn jittered(pause: Duration) -> Duration {
    pause.mul_f64(0.8 + 0.4 * (random::number() as f64 / u64::MAX as f64))
}

/// From `now` until `then`; nothing where that is past.
pub(super) fn until(now: Timestamp, then: Timestamp) -> Duration {
    if then > now { then.duration_since(now).unsigned_abs() } else { Duration::ZERO }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_failed_together_does_not_come_back_together() {
        let first = Duration::from_secs(5);
        for _ in 0..100 {
            let pause = jittered(first).as_secs_f64();
            assert!((4.0..=6.0).contains(&pause), "{pause}");
        }
    }
}
