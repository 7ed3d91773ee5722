//! A store whose answers are timed and counted.

use std::sync::Arc;

use async_trait::async_trait;
use octavius_store::{Commit, Entry, Key, Page, Range, Revision, Store, StoreError, StoreLayer, Txn, Watch};
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::{Family, MetricConstructor};
use prometheus_client::metrics::histogram::Histogram;
use prometheus_client::registry::Registry;
use tokio::time::Instant;

use super::Label;

/// Seconds in which a store answers: from memory's to when it counts as away.
const SECONDS: [f64; 12] = [0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 1.0, 5.0, 15.0];

/// Changes of one transaction.
const CHANGES: [f64; 7] = [1.0, 2.0, 4.0, 8.0, 16.0, 50.0, 100.0];

/// Makes a histogram of answers' times.
#[derive(Debug, Clone)]
struct Times;

impl MetricConstructor<Histogram> for Times {
    fn new_metric(&self) -> Histogram {
        Histogram::new(SECONDS)
    }
}

/// What is known of a store's answers. Clones count together.
#[derive(Debug, Clone)]
pub(crate) struct StoreCounts {
    get: Histogram,
    range: Histogram,
    commit: Histogram,
    seconds: Family<Label, Histogram, Times>,
    errors: Family<Label, Counter>,
    changes: Histogram,
    conflicts: Counter,
    watches: Counter,
}

impl Default for StoreCounts {
    fn default() -> Self {
        let seconds = Family::<Label, Histogram, Times>::new_with_constructor(Times);
        let errors = Family::<Label, Counter>::default();
        let of = |operation| {
            errors.get_or_create_owned(&[("operation", operation)]);
            seconds.get_or_create_owned(&[("operation", operation)])
        };
        Self {
            get: of("get"),
            range: of("range"),
            commit: of("commit"),
            seconds,
            errors,
            changes: Histogram::new(CHANGES),
            conflicts: Counter::default(),
            watches: Counter::default(),
        }
    }
}

impl StoreCounts {
    pub(super) fn register(&self, registry: &mut Registry) {
        registry.register("store_seconds", "For how long the store was waited for, in seconds", self.seconds.clone());
        registry.register("store_errors", "Calls of the store that failed", self.errors.clone());
        registry.register("store_transaction_changes", "Keys that one transaction changed", self.changes.clone());
        let help = "Transactions that met somebody else's change, and were not made";
        registry.register("store_conflicts", help, self.conflicts.clone());
        let help = "Watches that were begun; one that breaks is begun again";
        registry.register("store_watches_begun", help, self.watches.clone());
    }

    fn answered<T>(&self, operation: &'static str, seconds: &Histogram, begun: Instant, answer: &Result<T, StoreError>) {
        seconds.observe(begun.elapsed().as_secs_f64());
        if answer.is_err() {
            self.errors.get_or_create(&[("operation", operation)]).inc();
        }
    }
}

/// The store, seen through its counts.
#[derive(Debug)]
pub(crate) struct Counted {
    inner: Arc<dyn Store>,
    counts: StoreCounts,
}

impl Counted {
    pub(crate) fn new(inner: Arc<dyn Store>, counts: StoreCounts) -> Self {
        Self { inner, counts }
    }
}

#[async_trait]
impl StoreLayer for Counted {
    fn inner(&self) -> &dyn Store {
        &*self.inner
    }

    async fn get(&self, key: &Key) -> Result<Option<Entry>, StoreError> {
        let begun = Instant::now();
        let answer = self.inner.get(key).await;
        self.counts.answered("get", &self.counts.get, begun, &answer);
        answer
    }

    async fn range(&self, range: &Range) -> Result<Page, StoreError> {
        let begun = Instant::now();
        let answer = self.inner.range(range).await;
        self.counts.answered("range", &self.counts.range, begun, &answer);
        answer
    }

    async fn commit(&self, txn: Txn) -> Result<Commit, StoreError> {
        let begun = Instant::now();
        let changes = txn.changes.len();
        let answer = self.inner.commit(txn).await;
        self.counts.answered("commit", &self.counts.commit, begun, &answer);
        match &answer {
            Ok(Commit::Done(_)) => self.counts.changes.observe(changes as f64),
            Ok(Commit::Conflict(_)) => {
                self.counts.conflicts.inc();
            }
            Err(_) => {}
        }
        answer
    }

    async fn watch(&self, prefix: &Key, after: Revision) -> Result<Box<dyn Watch>, StoreError> {
        self.counts.watches.inc();
        self.inner.watch(prefix, after).await
    }
}
