//! Webhooks: URLs that are told when an execution waits for approval, has ended, or has failed.
//!
//! What is to be told is written down in the very transaction that brings it about ([`Subscriptions`]), for each webhook that asks for it: so
//! nothing is missed, whatever fails then. Every controller knows all that waits ([`outbox`]); the one in whose slice an execution is brings it
//! ([`deliver`]), and takes it out of the store once it was taken. A crash in between brings it again, under the same id: at least once, and
//! in no order that could be relied on. What nobody has taken for a day is given up: listed, counted, in the audit trail, and tried again when
//! somebody says so.

mod config;
mod deliver;
mod message;
mod outbox;

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use futures::future::join_all;
use octavius_core::{Execution, ExecutionId, Timestamp, Timing, WebhookEvent};
use octavius_proto::{Fault, reason, to_timestamp, v1};
use octavius_store::record::DeliveryRecord;
use octavius_store::{Commit, Store, StoreError, Txn, codec, key};
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;
use tonic::Code;
use url::Url;

use crate::audit::Act;
use crate::engine::Engine;
use crate::mirror::Mirrors;
use crate::slices::Slices;
use deliver::{Courier, GivenUp};
use message::Message;
use outbox::{Held, Outbox, Which};

pub use config::WebhookConfig;
pub use message::Secrets as WebhookSecrets;

/// Most messages that may wait for one webhook: what is older than the newest so many is given up, so that one that is away for long does not
/// fill every controller's memory. Each takes about 400 bytes there.
const WAITING: usize = 10_000;

/// Most messages that are kept of those that a webhook was not brought; older ones are in the audit trail alone.
const GIVEN_UP: usize = 1000;

/// For how long they are kept.
const GIVEN_UP_HOURS: i64 = 30 * 24;

/// Messages that are moved in one transaction: each takes three operations.
const MOVED_AT_ONCE: usize = 30;

/// Most messages in one answer.
const LISTED: usize = 1000;

/// What each webhook asks for. Clones are of the same.
#[derive(Debug, Clone, Default)]
pub(crate) struct Subscriptions(Arc<[WebhookConfig]>);

impl Subscriptions {
    /// Adds to the transaction that takes an execution from `before` to `after` what is to be told of that; `before` is none for a new one.
    pub(crate) fn note(&self, mut txn: Txn, before: Option<&Execution>, after: &Execution, now: Timestamp) -> Txn {
        for webhook in &*self.0 {
            if let Some(event) = WebhookEvent::of(&webhook.events, before, after)
                && webhook.is_for(&after.job.folded())
            {
                let record = DeliveryRecord { at: now, tries: 0, then: now, failure: String::new() };
                txn = txn.put(key::delivery(after.id, event, &webhook.name), codec::encode(&record));
            }
        }
        txn
    }
}

impl From<Vec<WebhookConfig>> for Subscriptions {
    fn from(configs: Vec<WebhookConfig>) -> Self {
        Self(configs.into())
    }
}

/// How many messages wait for a webhook and were given up, and whether it took the last one.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Backlog {
    pub(crate) waiting: usize,
    pub(crate) given_up: usize,
    pub(crate) is_up: bool,
}

/// The webhooks, and what they were not brought yet. Clones are of the same.
#[derive(Debug, Clone)]
pub(crate) struct Webhooks {
    store: Arc<dyn Store>,
    timing: Timing,
    outbox: Outbox,
    couriers: Arc<[Courier]>,
    engine: Engine,
}

impl Webhooks {
    /// `page` is where browsers reach the web page.
    pub(crate) fn new(store: Arc<dyn Store>, engine: &Engine, timing: Timing, page: Option<&Url>) -> Self {
        let outbox = Outbox::default();
        let courier = |config: &WebhookConfig| {
            Courier::new(config.clone(), page.cloned(), Arc::clone(&store), engine.clone(), timing, outbox.clone())
        };
        let couriers = engine.subscriptions().0.iter().map(courier).collect();
        Self { store, timing, outbox, couriers, engine: engine.clone() }
    }

    /// Brings messages until the shutdown.
    pub(crate) async fn run(self, mirrors: Mirrors, slices: watch::Receiver<Option<Slices>>) {
        let brought = join_all(self.couriers.iter().map(|courier| courier.run(slices.clone(), mirrors.shutdown.clone())));
        let followed = mirrors.run(key::deliveries(), self.outbox.clone());
        let tidied = self.tidy(slices.clone(), mirrors.shutdown.clone());
        tokio::join!(brought, followed, tidied);
    }

    fn courier(&self, name: &str) -> Option<&Courier> {
        self.couriers.iter().find(|courier| courier.config.name == name)
    }

    /// How each webhook stands that there is, or that messages are there for.
    pub(crate) fn backlog(&self) -> BTreeMap<String, Backlog> {
        let counts = self.outbox.counts();
        let known = self.couriers.iter().map(|courier| courier.config.name.clone());
        let names: BTreeSet<_> = known.chain(counts.keys().cloned()).collect();
        let of = |name: String| {
            let (waiting, given_up) = counts.get(&name).copied().unwrap_or_default();
            let is_up = self.courier(&name).is_some_and(|courier| courier.standing().failures == 0);
            (name, Backlog { waiting, given_up, is_up })
        };
        names.into_iter().map(of).collect()
    }

    /// What was not brought of one execution's messages, but for what would not be told any more.
    pub(crate) fn undelivered(&self, execution: &Execution) -> Vec<v1::Delivery> {
        let id = execution.id;
        let told = |(webhook, event, given_up, held): (String, WebhookEvent, bool, Held)| {
            // Why, and so where it is, is for admins.
            v1::Delivery { failure: String::new(), ..wire(&webhook, (id, event), given_up, &held) }
        };
        let of = self.outbox.of(id).into_iter();
        of.filter(|(_, event, given_up, _)| *given_up || !deliver::is_outdated(*event, execution)).map(told).collect()
    }

    /// All webhooks.
    pub(crate) fn list(&self) -> Vec<v1::Webhook> {
        let told = |(name, backlog): (String, Backlog)| {
            let courier = self.courier(&name);
            let standing = courier.map(Courier::standing).unwrap_or_default();
            v1::Webhook {
                url: courier.map(|courier| courier.config.place()).unwrap_or_default(),
                events: courier
                    .map(|courier| courier.config.events.iter().map(ToString::to_string).collect())
                    .unwrap_or_default(),
                jobs: courier.map(|courier| courier.config.jobs().map(str::to_owned).collect()).unwrap_or_default(),
                waiting: backlog.waiting as u64,
                given_up: backlog.given_up as u64,
                failing_since: standing.failing_since.map(to_timestamp),
                failure: standing.failure,
                delivered_at: standing.delivered_at.map(to_timestamp),
                is_configured: courier.is_some(),
                name,
            }
        };
        self.backlog().into_iter().map(told).collect()
    }

    /// Messages that were given up, or those that wait: of one webhook, or of all.
    pub(crate) fn deliveries(&self, webhook: &str, given_up: bool) -> Result<v1::ListDeliveriesResponse, Fault> {
        self.must_be_there(webhook)?;
        let mut all = self.outbox.select(given_up, |name, which, held, _| {
            (webhook.is_empty() || name == webhook).then(|| wire(name, which, given_up, held))
        });
        let more = all.len().saturating_sub(LISTED) as u64;
        all.truncate(LISTED);
        Ok(v1::ListDeliveriesResponse { deliveries: all, more })
    }

    /// A name that was given must be a webhook's, or one that messages are there for.
    fn must_be_there(&self, webhook: &str) -> Result<(), Fault> {
        if webhook.is_empty() || self.backlog().contains_key(webhook) {
            return Ok(());
        }
        Err(Fault::new(Code::NotFound, reason::NOT_FOUND, format!("no webhook {}", webhook.escape_debug())))
    }

    /// Has messages that were given up tried again: all of them, those of one webhook, or of one execution. How many.
    pub(crate) async fn retry(&self, webhook: &str, execution: Option<ExecutionId>, act: &Act) -> Result<u64, Fault> {
        self.must_be_there(webhook)?;
        let chosen = self.outbox.select(true, |name, which, held, _| {
            let is_meant = (webhook.is_empty() || name == webhook) && execution.is_none_or(|id| id == which.0);
            is_meant.then(|| (name.to_owned(), which, held.clone()))
        });
        act.note("deliveries", chosen.len());
        let now = self.engine.clock().now();
        let mut moved = 0;
        let back = async |some: &[(String, Which, Held)]| {
            let mut txn = Txn::new();
            for (name, (id, event), held) in some {
                let from = key::delivery_given_up(*id, *event, name);
                let record = DeliveryRecord { at: now, then: now, tries: 0, ..held.record.clone() };
                txn = txn
                    .when(from.clone(), held.modified)
                    .delete(from)
                    .put(key::delivery(*id, *event, name), codec::encode(&record));
            }
            let done = self.store.commit(act.done(txn)).await.map_err(crate::fault::from_store)?;
            Ok::<_, Fault>(matches!(done, Commit::Done(_)))
        };
        for some in chosen.chunks(MOVED_AT_ONCE) {
            if back(some).await? {
                moved += some.len() as u64;
                continue;
            }
            // Somebody else has one of them tried at the same time, and none was moved: the others are.
            for one in some {
                moved += u64::from(back(std::slice::from_ref(one)).await?);
            }
        }
        Ok(moved)
    }

    /// Sends a webhook a message of no execution, now.
    pub(crate) async fn test(&self, webhook: &str, act: &Act) -> Result<(), Fault> {
        self.must_be_there(webhook)?;
        let Some(courier) = self.courier(webhook) else {
            let told = format!("webhook {} is not in this controller's configuration", webhook.escape_debug());
            return Err(Fault::new(Code::FailedPrecondition, reason::WEBHOOK_FAILED, told));
        };
        self.store.commit(act.done(Txn::new())).await.map_err(crate::fault::from_store)?;
        let clock = self.engine.clock();
        let (message, refusals) = (Message::test(clock.now(), act.user()), courier.refusals());
        courier.send(message).await.map_err(|refused| {
            let told = format!("webhook {webhook} at {} did not take it: {}", courier.config.place(), refused.why);
            Fault::new(Code::FailedPrecondition, reason::WEBHOOK_FAILED, told).with("webhook", webhook)
        })?;
        courier.took(clock.now(), refusals);
        Ok(())
    }

    /// Sees to what no courier does: messages that are too many, those for webhooks that are not configured any more, and those that were given
    /// up long ago.
    async fn tidy(&self, slices: watch::Receiver<Option<Slices>>, shutdown: CancellationToken) {
        loop {
            tokio::select! {
                () = shutdown.cancelled() => return,
                () = self.engine.clock().sleep(self.timing.webhook_pause_max) => {}
            }
            let own = slices.borrow().clone();
            if let Some(own) = own
                && let Err(error) = self.tidy_once(|id| own.is_own(id)).await
            {
                tracing::warn!(%error, "messages of webhooks could not be seen to");
            }
        }
    }

    async fn tidy_once(&self, own: impl Fn(ExecutionId) -> bool) -> Result<(), StoreError> {
        let now = self.engine.clock().now();
        let over = self.outbox.select(false, |name, which, held, newer| {
            let is_old = deliver::until(held.record.at, now) >= self.timing.webhook_patience;
            let failure = match self.courier(name).map(Courier::standing) {
                _ if newer >= WAITING => format!("more than {WAITING} waited for it"),
                None if is_old => "no webhook has this name".to_owned(),
                // One that takes nothing is asked once in a while: not each message is tried.
                Some(standing) if is_old && standing.failures > 0 => standing.failure,
                _ => return None,
            };
            let record = DeliveryRecord { then: now, failure, ..held.record.clone() };
            own(which.0).then(|| (name.to_owned(), (which, held.modified, record)))
        });
        let mut by_name: BTreeMap<String, Vec<GivenUp>> = BTreeMap::new();
        for (name, one) in over {
            by_name.entry(name).or_default().push(one);
        }
        let counts = &self.engine.counts.webhooks;
        self.outbox.counts().keys().for_each(|name| counts.begin(name));
        for (name, all) in by_name {
            for some in all.chunks(MOVED_AT_ONCE) {
                // One of which something has become meanwhile keeps the others for the next turn.
                if let Commit::Done(_) = deliver::give_up(&*self.store, &name, some).await? {
                    counts.given_up(&name, some.len() as u64);
                }
            }
        }
        let gone = self.outbox.select(true, |name, which, held, newer| {
            let is_old = now.duration_since(held.record.then).as_hours() >= GIVEN_UP_HOURS;
            ((newer >= GIVEN_UP || is_old) && own(which.0)).then(|| key::delivery_given_up(which.0, which.1, name))
        });
        for some in gone.chunks(MOVED_AT_ONCE) {
            self.store.commit(some.iter().fold(Txn::new(), |txn, at| txn.delete(at.clone()))).await?;
        }
        Ok(())
    }
}

fn wire(webhook: &str, (id, event): Which, given_up: bool, held: &Held) -> v1::Delivery {
    let DeliveryRecord { at, tries, then, failure } = &held.record;
    v1::Delivery {
        webhook: webhook.to_owned(),
        execution: id.to_string(),
        event: event.to_string(),
        at: Some(to_timestamp(*at)),
        tries: *tries,
        next_at: (!given_up).then(|| to_timestamp(*then)),
        given_up_at: given_up.then(|| to_timestamp(*then)),
        failure: failure.clone(),
    }
}
