//! The webhooks, as each controller has found them.

use octavius_core::Timestamp;
use octavius_proto::client::Address;
use octavius_proto::v1;
use octavius_proto::words::{self, between};

use super::finding::{Area, Finding};

const AREA: Area = Area::Controllers;

/// Whether webhooks take their messages from the controller at `address`, which says who one is, and what time it is, by `me`.
pub(super) fn check(address: &Address, me: &v1::WhoAmIResponse, listed: &v1::ListWebhooksResponse) -> Vec<Finding> {
    let now = words::time(me.now.as_ref()).unwrap_or_else(Timestamp::now);
    listed.webhooks.iter().map(|webhook| found(webhook, now).of(address.to_string())).collect()
}

fn found(webhook: &v1::Webhook, now: Timestamp) -> Finding {
    let name = &webhook.name;
    if !webhook.is_configured {
        let told = format!("messages for {name} are there, and the controller's configuration does not name it");
        let remedy = "all controllers have the same webhooks; of one that is gone, its messages are given up within a day";
        return Finding::warning(AREA, "webhooks", told, remedy);
    }
    match words::time(webhook.failing_since.as_ref()) {
        Some(since) => {
            let long = between(since, now);
            let told = format!("{name} has taken no message for {long}, and {} waiting: {}", webhook.waiting, webhook.failure);
            Finding::problem(AREA, "webhooks", told, format!("see to it at {}; octavius webhooks test {name}", webhook.url))
        }
        None if webhook.given_up > 0 => {
            let told = format!("{} messages for {name} were given up", webhook.given_up);
            let remedy = format!("octavius webhooks deliveries {name}, and octavius webhooks retry {name}");
            Finding::warning(AREA, "webhooks", told, remedy)
        }
        None => Finding::ok(AREA, "webhooks", format!("{name} takes its messages")),
    }
}

#[cfg(test)]
mod tests {
    use super::super::finding::Verdict;
    use super::*;
    use octavius_proto::to_timestamp;

    #[test]
    fn webhooks_that_take_nothing_or_were_not_told_are_told() {
        let at = |second| Timestamp::from_second(second).unwrap();
        let found = |webhook: v1::Webhook| found(&v1::Webhook { name: "chat".into(), is_configured: true, ..webhook }, at(7200));
        let failing_since = Some(to_timestamp(at(0)));
        let failing = found(v1::Webhook { waiting: 3, failing_since, failure: "it answers 500".into(), ..Default::default() });
        assert_eq!(failing.verdict, Verdict::Problem);
        assert_eq!(failing.message, "chat has taken no message for 2h, and 3 waiting: it answers 500");
        assert_eq!(found(v1::Webhook { given_up: 2, ..Default::default() }).verdict, Verdict::Warning);
        assert_eq!(found(v1::Webhook::default()).verdict, Verdict::Ok);
    }
}
