//! What becomes of webhooks' messages, counted where it happens.

use prometheus_client::encoding::EncodeLabelSet;
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::registry::Registry;

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct Tried {
    webhook: String,
    outcome: &'static str,
}

/// What came of a message that was brought, as the metric calls it.
const DELIVERED: &str = "delivered";
const FAILED: &str = "failed";
const GIVEN_UP: &str = "given_up";

/// What becomes of webhooks' messages on this controller. Clones count together. The configuration names the webhooks, and bounds them.
#[derive(Debug, Clone, Default)]
pub(crate) struct WebhookCounts(Family<Tried, Counter>);

impl WebhookCounts {
    fn of(&self, webhook: &str, outcome: &'static str) -> Counter {
        self.0.get_or_create_owned(&Tried { webhook: webhook.to_owned(), outcome })
    }

    /// Begins with zeros, so that a rate is to be had from the first on.
    pub(crate) fn begin(&self, webhook: &str) {
        for outcome in [DELIVERED, FAILED, GIVEN_UP] {
            self.of(webhook, outcome);
        }
    }

    /// A webhook has taken a message.
    pub(crate) fn delivered(&self, webhook: &str) {
        self.of(webhook, DELIVERED).inc();
    }

    /// A webhook has not taken a message this time.
    pub(crate) fn failed(&self, webhook: &str) {
        self.of(webhook, FAILED).inc();
    }

    /// So many messages were given up.
    pub(crate) fn given_up(&self, webhook: &str, messages: u64) {
        self.of(webhook, GIVEN_UP).inc_by(messages);
    }

    pub(super) fn register(&self, registry: &mut Registry) {
        let help = "Tries of this controller to bring webhooks a message, by webhook and outcome, and messages that it gave up";
        registry.register("webhook_deliveries", help, self.0.clone());
    }
}
