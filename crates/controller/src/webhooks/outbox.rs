//! The messages that webhooks have not taken, in memory: fed by the store's watch, in which all of them are. So it is known at once what there
//! is to do and what was given up, and nothing is scanned.

use std::cmp::Reverse;
use std::collections::{BTreeMap, BTreeSet, HashSet};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use octavius_core::{ExecutionId, Timestamp, WebhookEvent};
use octavius_store::record::DeliveryRecord;
use octavius_store::{Entry, Event, Key, Revision, codec, key};
use tokio::sync::Notify;

use crate::mirror::Listener;

/// Which message of a webhook: about which execution, and what of it. They sort by when the execution was asked for.
pub(super) type Which = (ExecutionId, WebhookEvent);

/// A message as the store has it.
#[derive(Debug, Clone)]
pub(super) struct Held {
    pub(super) record: DeliveryRecord,
    pub(super) modified: Revision,
    /// When it is tried next.
    pub(super) due: Timestamp,
    /// Whether the webhook refused this very message, so that it is not tried at once when others are taken.
    pub(super) is_refused: bool,
}

impl Held {
    /// A new one is due at once, whatever the clock of the controller says that wrote it down.
    pub(super) fn new(record: DeliveryRecord, modified: Revision) -> Self {
        let due = if record.tries == 0 { Timestamp::MIN } else { record.then };
        Self { record, modified, due, is_refused: false }
    }
}

/// The messages of one webhook.
#[derive(Debug, Default)]
struct Line {
    waiting: BTreeMap<Which, Held>,
    /// What waits, by when it is tried next.
    due: BTreeSet<(Timestamp, Which)>,
    /// What is being tried by this controller.
    busy: HashSet<Which>,
    given_up: BTreeMap<Which, Held>,
}

impl Line {
    fn insert(&mut self, which: Which, held: Held) {
        self.remove(which);
        self.due.insert((held.due, which));
        self.waiting.insert(which, held);
    }

    fn remove(&mut self, which: Which) {
        if let Some(before) = self.waiting.remove(&which) {
            self.due.remove(&(before.due, which));
        }
    }
}

/// All messages that were not taken. Clones are of the same.
#[derive(Debug, Clone, Default)]
pub(super) struct Outbox(Arc<Inner>);

#[derive(Debug, Default)]
struct Inner {
    lines: Mutex<BTreeMap<String, Line>>,
    /// Rung when there may be something to do.
    changed: Notify,
}

impl Outbox {
    fn lock(&self) -> MutexGuard<'_, BTreeMap<String, Line>> {
        // A panic while it was held leaves plain maps behind, which the next listing puts right.
        self.0.lines.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Returns when there may be something new. Begin to wait before looking.
    pub(super) fn changed(&self) -> tokio::sync::futures::Notified<'_> {
        self.0.changed.notified()
    }

    /// The next message of a webhook that is due, of those that are `own`: the earliest, or, to find out whether it takes any, one that it has
    /// refused the fewest times, the newest of these: of what is never taken there may be much. It is busy from then on, until [`Outbox::done`].
    pub(super) fn take(
        &self,
        webhook: &str,
        now: Timestamp,
        to_find_out: bool,
        own: impl Fn(ExecutionId) -> bool,
    ) -> Option<(Which, Held)> {
        let mut lines = self.lock();
        let line = lines.get_mut(webhook)?;
        let due = line.due.iter().take_while(|(due, _)| *due <= now).map(|(_, which)| *which);
        let mut due = due.filter(|which| !line.busy.contains(which) && own(which.0));
        let tries = |which: &Which| (line.waiting.get(which).map_or(0, |held| held.record.tries), Reverse(*which));
        let which = if to_find_out { due.min_by_key(tries) } else { due.next() }?;
        line.busy.insert(which);
        Some((which, line.waiting.get(&which)?.clone()))
    }

    /// When the next message of a webhook is due, of those that are `own` and are not being tried.
    pub(super) fn next(&self, webhook: &str, own: impl Fn(ExecutionId) -> bool) -> Option<Timestamp> {
        let lines = self.lock();
        let line = lines.get(webhook)?;
        line.due.iter().find(|(_, which)| !line.busy.contains(which) && own(which.0)).map(|(then, _)| *then)
    }

    /// A message, as it was `tried`, is not being tried any more: it is as `left` says, or gone. Where the watch has shown something newer
    /// meanwhile, it is so.
    pub(super) fn done(&self, webhook: &str, which: Which, tried: Revision, left: Option<Held>) {
        if let Some(line) = self.lock().get_mut(webhook) {
            line.busy.remove(&which);
            let modified = left.as_ref().map_or(tried, |left| left.modified);
            if line.waiting.get(&which).is_some_and(|known| known.modified <= modified) {
                line.remove(which);
                if let Some(left) = left {
                    line.insert(which, left);
                }
            }
        }
        self.0.changed.notify_waiters();
    }

    /// Everything that waits for a webhook is due at once, but for what it refused by itself: it takes messages again.
    pub(super) fn hasten(&self, webhook: &str, now: Timestamp) {
        if let Some(line) = self.lock().get_mut(webhook) {
            for held in line.waiting.values_mut().filter(|held| !held.is_refused) {
                held.due = held.due.min(now);
            }
            line.due = line.waiting.iter().map(|(which, held)| (held.due, *which)).collect();
        }
        self.0.changed.notify_waiters();
    }

    /// How many messages wait and how many were given up, for each webhook that has any.
    pub(super) fn counts(&self) -> BTreeMap<String, (usize, usize)> {
        self.lock().iter().map(|(name, line)| (name.clone(), (line.waiting.len(), line.given_up.len()))).collect()
    }

    /// What `wanted` says of each message, the oldest execution first; `given_up` chooses between those that wait and those that were given up.
    /// It is told how many of the same webhook are newer, too.
    pub(super) fn select<T>(&self, given_up: bool, wanted: impl Fn(&str, Which, &Held, usize) -> Option<T>) -> Vec<T> {
        let lines = self.lock();
        let all = lines.iter().flat_map(|(name, line)| {
            let of = if given_up { &line.given_up } else { &line.waiting };
            let newer = (0..of.len()).rev();
            of.iter().zip(newer).map(move |((which, held), newer)| (name.as_str(), *which, held, newer))
        });
        let mut selected: Vec<_> =
            all.filter_map(|(name, which, held, newer)| wanted(name, which, held, newer).map(|wanted| (which, wanted))).collect();
        selected.sort_by_key(|(which, _)| *which);
        selected.into_iter().map(|(_, wanted)| wanted).collect()
    }

    /// What was not taken of one execution's messages: to which webhook, of what, and whether it was given up.
    pub(super) fn of(&self, id: ExecutionId) -> Vec<(String, WebhookEvent, bool, Held)> {
        let lines = self.lock();
        let range = (id, WebhookEvent::ALL[0])..=(id, WebhookEvent::ALL[WebhookEvent::ALL.len() - 1]);
        let told = lines.iter().flat_map(|(name, line)| {
            let of = |all: &BTreeMap<Which, Held>, given_up: bool| {
                let found = all.range(range.clone()).map(|((_, event), held)| (name.clone(), *event, given_up, held.clone()));
                found.collect::<Vec<_>>()
            };
            [of(&line.waiting, false), of(&line.given_up, true)].concat()
        });
        told.collect()
    }

    fn put(lines: &mut BTreeMap<String, Line>, entry: &Entry) {
        let Some((id, event, webhook, given_up)) = key::delivery_of(&entry.key) else {
            return tracing::debug!(key = %entry.key, "a newer version's");
        };
        match codec::decode(entry) {
            Ok(record) => {
                let held = Held::new(record, entry.modified);
                let line = lines.entry(webhook.to_owned()).or_default();
                if given_up {
                    line.given_up.insert((id, event), held);
                } else if line.waiting.get(&(id, event)).is_none_or(|known| known.modified < held.modified) {
                    line.insert((id, event), held); // and where it was written here, more is known of it
                }
            }
            // It is left where it is.
            Err(error) => tracing::error!(key = %entry.key, %error, "a webhook's message cannot be read"),
        }
    }

    fn delete(lines: &mut BTreeMap<String, Line>, key: &Key) {
        let Some((id, event, webhook, given_up)) = key::delivery_of(key) else { return };
        let Some(line) = lines.get_mut(webhook) else { return };
        if given_up {
            line.given_up.remove(&(id, event));
        } else {
            line.remove((id, event));
        }
        if line.waiting.is_empty() && line.given_up.is_empty() && line.busy.is_empty() {
            lines.remove(webhook);
        }
    }
}

impl Listener for Outbox {
    fn reset(&mut self, entries: Vec<Entry>, _: Revision) {
        let mut lines = self.lock();
        // What is being tried stays so.
        for line in lines.values_mut() {
            *line = Line { busy: std::mem::take(&mut line.busy), ..Line::default() };
        }
        lines.retain(|_, line| !line.busy.is_empty());
        entries.iter().for_each(|entry| Self::put(&mut lines, entry));
        drop(lines);
        self.0.changed.notify_waiters();
    }

    fn change(&mut self, event: Event, _: Revision) {
        let mut lines = self.lock();
        match &event {
            Event::Put(entry) => Self::put(&mut lines, entry),
            Event::Delete(key) => Self::delete(&mut lines, key),
        }
        drop(lines);
        self.0.changed.notify_waiters();
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use WebhookEvent::{Failed, Finished};

    fn at(second: i64) -> Timestamp {
        Timestamp::from_second(second).unwrap()
    }

    fn id(bits: u128) -> ExecutionId {
        ExecutionId::from_bits(bits)
    }

    fn record(then: i64) -> DeliveryRecord {
        DeliveryRecord { at: at(0), tries: 1, then: at(then), failure: String::new() }
    }

    fn entry(key: Key, then: i64) -> Entry {
        Entry { key, value: codec::encode(&record(then)), created: 1, modified: 1 }
    }

    fn waiting(bits: u128, then: i64) -> Entry {
        entry(key::delivery(id(bits), Failed, "chat"), then)
    }

    #[test]
    fn what_is_due_is_taken_once_the_earliest_first_and_only_ones_own() {
        let mut outbox = Outbox::default();
        outbox.reset(vec![waiting(1, 30), waiting(2, 10), waiting(3, 20)], 1);
        let take = |outbox: &Outbox, now| outbox.take("chat", at(now), false, |id| id != self::id(2)).map(|(which, _)| which.0);
        assert_eq!((take(&outbox, 19), outbox.next("chat", |_| true)), (None, Some(at(10))));
        assert_eq!((take(&outbox, 30), take(&outbox, 30), take(&outbox, 30)), (Some(id(3)), Some(id(1)), None));
        assert_eq!(outbox.take("else", at(99), false, |_| true).map(|(which, _)| which), None);
        // One was taken, the other was not.
        outbox.done("chat", (id(3), Failed), 1, None);
        outbox.done("chat", (id(1), Failed), 1, Some(Held::new(record(40), 2)));
        assert_eq!((take(&outbox, 39), outbox.next("chat", |id| id != self::id(2))), (None, Some(at(40))));
        outbox.hasten("chat", at(31));
        assert_eq!(take(&outbox, 31), Some(id(1)));
        assert_eq!(outbox.counts()["chat"], (2, 0));
    }

    #[test]
    fn what_a_webhook_refuses_is_not_in_the_way_of_the_rest() {
        let mut outbox = Outbox::default();
        outbox.reset(vec![waiting(1, 10), waiting(2, 20)], 1);
        let mut fresh = waiting(3, 3600);
        fresh.value = codec::encode(&DeliveryRecord { tries: 0, ..record(3600) });
        outbox.change(Event::Put(fresh), 2);
        let find = |outbox: &Outbox| outbox.take("chat", at(30), true, |_| true).map(|(which, _)| which.0);
        assert_eq!(find(&outbox), Some(id(3)), "it was not tried yet, and is due whatever the time is that it bears");
        outbox.done("chat", (id(3), Failed), 1, None);
        let refused = Held { is_refused: true, ..Held::new(DeliveryRecord { tries: 9, ..record(90) }, 2) };
        assert_eq!(find(&outbox), Some(id(2)));
        outbox.done("chat", (id(2), Failed), 1, Some(refused));
        outbox.change(Event::Put(Entry { modified: 2, ..waiting(2, 90) }), 2);
        outbox.hasten("chat", at(5));
        let take = |outbox: &Outbox| outbox.take("chat", at(5), false, |_| true).map(|(which, _)| which.0);
        assert_eq!((take(&outbox), take(&outbox), outbox.next("chat", |_| true)), (Some(id(1)), None, Some(at(90))));
    }

    #[test]
    fn what_is_being_tried_when_all_is_listed_anew_is_not_tried_twice() {
        let mut outbox = Outbox::default();
        outbox.reset(vec![waiting(1, 10)], 1);
        assert!(outbox.take("chat", at(10), false, |_| true).is_some());
        outbox.reset(vec![waiting(1, 10)], 2);
        assert!(outbox.take("chat", at(10), false, |_| true).is_none());
        outbox.done("chat", (id(1), Failed), 1, None);
        assert_eq!(outbox.next("chat", |_| true), None);
    }

    /// As where the answer to what was written down was lost, and the watch was quicker.
    #[test]
    fn what_the_watch_has_shown_meanwhile_counts() {
        let mut outbox = Outbox::default();
        let mut again = waiting(1, 50);
        outbox.reset(vec![waiting(1, 10), waiting(2, 10)], 1);
        while outbox.take("chat", at(10), false, |_| true).is_some() {}
        again.modified = 7;
        outbox.change(Event::Put(again), 7);
        outbox.change(Event::Delete(waiting(2, 10).key), 8);
        outbox.done("chat", (id(1), Failed), 1, None);
        outbox.done("chat", (id(2), Failed), 1, Some(Held::new(record(20), 1)));
        assert_eq!((outbox.next("chat", |_| true), outbox.counts()["chat"]), (Some(at(50)), (1, 0)));
    }

    #[test]
    fn what_was_given_up_is_told_with_what_waits_of_an_execution() {
        let mut outbox = Outbox::default();
        outbox.reset(vec![entry(key::delivery_given_up(id(1), Failed, "chat"), 5), waiting(2, 1)], 1);
        outbox.change(Event::Put(entry(key::delivery(id(1), Finished, "pager"), 7)), 2);
        let told: Vec<_> = outbox.of(id(1)).into_iter().map(|(name, event, given_up, _)| (name, event, given_up)).collect();
        assert_eq!(told, [("chat".to_owned(), Failed, true), ("pager".to_owned(), Finished, false)]);
        assert_eq!(
            outbox.select(true, |name, (id, _), _, newer| Some((name.to_owned(), id, newer))),
            [("chat".to_owned(), id(1), 0)]
        );
        assert_eq!(outbox.counts()["chat"], (1, 1));
        outbox.change(Event::Delete(key::delivery_given_up(id(1), Failed, "chat")), 3);
        outbox.change(Event::Delete(waiting(2, 1).key), 4);
        assert_eq!(outbox.counts().keys().collect::<Vec<_>>(), ["pager"]);
    }
}
