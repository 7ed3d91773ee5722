//! What the fleet must get right whatever comes when.

use super::*;
use octavius_core::dispatch::Item;
use octavius_store::record::ExecutorRecord;
use std::time::Duration;

/// Who would be given what asks for `selector`.
fn choose(fleet: &Fleet, selector: &Labels) -> Option<ExecutorId> {
    let mut queue = fleet.queue();
    let item = Item { id: ExecutionId::from_bits(99), arrived: 1, limit: 0 };
    let line = queue.dispatch().arrive("pool", selector, "job", 4, item, true);
    let executor = queue.dispatch().take().map(|decision| decision.executor);
    queue.dispatch().leave(line, item.id, item.arrived, true, false);
    drop(queue);
    let mut state = fleet.lock();
    let all: Vec<_> = state.sessions.keys().cloned().collect();
    all.iter().for_each(|executor| fleet.offer(&mut state, executor)); // what was taken is given back
    executor
}

fn begin(fleet: &Fleet, id: &str, instance: u64, labels: &[(&str, &str)], capacity: usize) -> Option<u64> {
    let (voice, ears) = mpsc::channel(8);
    std::mem::forget(ears); // the session stays open for the length of the test
    let labels = labels.iter().map(|(k, v)| ((*k).to_owned(), (*v).to_owned())).collect();
    let id = id.parse().unwrap();
    fleet.note_record(&registered(&id, None, 1));
    let (number, _) = fleet.begin(&id, instance, labels, capacity, voice, Duration::from_secs(9))?;
    assert_eq!(choose(fleet, &[("never".to_owned(), "open".to_owned())].into()), None);
    fleet.open(&id, number);
    Some(number)
}

fn registered(id: &ExecutorId, draining: Option<&str>, modified: Revision) -> Entry {
    let at = octavius_core::Timestamp::UNIX_EPOCH;
    let draining = draining.map(|by| DrainRecord { by: by.to_owned(), at });
    let record =
        ExecutorRecord { id: id.clone(), registered_at: at, token: Digest::of(b"t"), next_token: None, session: None, draining };
    Entry { key: key::executor(id), value: codec::encode(&record), created: 1, modified }
}

fn own(id: u128, nonce: u64, started: bool, modified: Revision) -> Entry {
    let record = OwnRecord {
        fence: octavius_core::execution::Fence { attempt: 1, nonce },
        started,
        cancel: false,
        timeout: std::time::Duration::from_secs(60),
    };
    let key = key::owned(&"e".parse().unwrap(), ExecutionId::from_bits(id));
    Entry { key, value: codec::encode(&record), created: modified, modified }
}

#[test]
fn work_goes_to_the_least_loaded_executor_that_fits() {
    let fleet = Fleet::default();
    begin(&fleet, "big", 1, &[], 4).unwrap();
    begin(&fleet, "small", 2, &[("vpc", "web")], 1).unwrap();
    let web: Labels = [("vpc".to_owned(), "web".to_owned())].into();
    assert_eq!(choose(&fleet, &web).unwrap().as_str(), "small");
    fleet.claiming(&"small".parse().unwrap(), 1);
    assert_eq!(choose(&fleet, &web), None);
    assert_eq!(choose(&fleet, &Labels::new()).unwrap().as_str(), "big");
    fleet.unclaimed(&"small".parse().unwrap(), 1);
    assert_eq!(choose(&fleet, &web).unwrap().as_str(), "small");
}

/// What was read says more than what the watch shows later of the time before.
#[test]
fn one_that_drains_is_given_nothing_and_old_news_changes_nothing() {
    let fleet = std::sync::Arc::new(Fleet::default());
    let e: ExecutorId = "e".parse().unwrap();
    begin(&fleet, "e", 1, &[], 1).unwrap();
    let chosen = || choose(&fleet, &Labels::new()).is_some();
    let asks = |modified| Some(Txn::new().when(key::executor(&e), modified));
    assert_eq!((chosen(), fleet.still_takes_work(&e, Txn::new())), (true, asks(1)));
    fleet.note_record(&registered(&e, Some("ann"), 5));
    let mut feed = Registrations(std::sync::Arc::clone(&fleet));
    crate::mirror::Listener::change(&mut feed, octavius_store::Event::Put(registered(&e, None, 3)), 3);
    crate::mirror::Listener::reset(&mut feed, vec![registered(&e, None, 4)], 4);
    crate::mirror::Listener::reset(&mut feed, vec![], 4);
    assert_eq!((chosen(), fleet.still_takes_work(&e, Txn::new())), (false, None));
    assert_eq!(fleet.facts()[0].draining.as_ref().map(|(by, _)| by.as_str()), Some("ann"));
    crate::mirror::Listener::change(&mut feed, octavius_store::Event::Put(registered(&e, None, 6)), 6);
    assert_eq!((chosen(), fleet.still_takes_work(&e, Txn::new())), (true, asks(6)));
    // Its record goes: so does its session.
    let (voice, _ears) = mpsc::channel(8);
    let (number, end) = fleet.begin(&e, 1, Labels::new(), 1, voice, Duration::from_secs(9)).unwrap();
    fleet.open(&e, number);
    assert!(chosen());
    crate::mirror::Listener::change(&mut feed, octavius_store::Event::Delete(key::executor(&e)), 7);
    assert!(!chosen() && end.is_cancelled());
    assert_eq!(fleet.still_takes_work(&e, Txn::new()), None);
}

#[test]
fn a_second_daemon_with_the_same_id_is_refused_and_the_same_one_may_come_back() {
    let fleet = Fleet::default();
    let first = begin(&fleet, "e", 1, &[], 1).unwrap();
    assert_eq!(begin(&fleet, "e", 2, &[], 1), None);
    let again = begin(&fleet, "e", 1, &[], 1).unwrap();
    assert!(!fleet.end(&"e".parse().unwrap(), first), "the old session's end does not end the new one");
    assert!(fleet.end(&"e".parse().unwrap(), again));
    assert!(begin(&fleet, "e", 2, &[], 1).is_some());
}

/// A slot that is counted twice idles; one that is not counted runs two jobs where one has room; one that is never given back is
/// lost until the controller restarts.
#[test]
fn a_slot_is_taken_from_the_claim_to_the_release_whatever_the_watch_shows_when() {
    let fleet = Fleet::default();
    let e: ExecutorId = "e".parse().unwrap();
    begin(&fleet, "e", 1, &[], 1).unwrap();
    let free = || choose(&fleet, &Labels::new()).is_some();

    // The watch shows the claim before the claim's own answer is known.
    fleet.claiming(&e, 1);
    fleet.hold(&own(1, 1, false, 5));
    fleet.claimed(&e, 1, 5);
    assert!(!free());
    fleet.release(&own(1, 1, false, 5).key);
    assert!(free());

    // An earlier claim's release is shown while the next claim of the same execution is under way.
    fleet.claiming(&e, 2);
    fleet.release(&own(1, 1, false, 5).key);
    assert!(!free(), "the slot is the new claim's");

    // The watch breaks; claim and release both lie before the next listing, which shows neither.
    fleet.claimed(&e, 2, 7);
    assert!(!free());
    fleet.reset(&[], 9);
    assert!(free(), "a slot leaked");

    // The same, but the claim's answer comes after the listing.
    fleet.claiming(&e, 3);
    fleet.reset(&[], 12);
    assert!(!free(), "the claim is still under way");
    fleet.claimed(&e, 3, 11);
    assert!(free(), "a slot leaked");
}

/// Otherwise a busy store, whose watches often fall behind, would never give a dead claim back.
#[test]
fn listing_again_does_not_make_a_claim_younger() {
    let fleet = Fleet::default();
    fleet.reset(&[own(1, 1, false, 5)], 5);
    let since = fleet.holdings()[0].2.since;
    fleet.reset(&[own(1, 1, false, 5)], 6);
    assert_eq!(fleet.holdings()[0].2.since, since);
    fleet.reset(&[own(1, 1, true, 7)], 7);
    assert!(fleet.holdings()[0].2.since > since);
}

/// Or else every listing, and a busy store makes many, would say that an executor has been full since just now.
#[test]
fn since_when_an_executor_is_full_outlasts_a_listing_and_ends_with_a_free_slot() {
    let clock = Clock::manual(Timestamp::UNIX_EPOCH);
    let fleet = Fleet::new(clock.clone(), SharedQueue::default());
    let full_since = || fleet.facts().remove(0).full_since.map(Timestamp::as_second);
    let pass = |seconds| clock.advance(Duration::from_secs(seconds));
    let e: ExecutorId = "e".parse().unwrap();
    begin(&fleet, "e", 1, &[], 2).unwrap();
    fleet.hold(&own(1, 1, true, 5));
    assert_eq!(full_since(), None);
    pass(10);
    fleet.claiming(&e, 2);
    pass(10);
    fleet.hold(&own(2, 2, false, 6));
    fleet.reset(&[own(1, 1, true, 5), own(2, 2, false, 6)], 7);
    assert_eq!(full_since(), Some(10), "the claim took the last slot");
    fleet.release(&own(1, 1, true, 5).key);
    assert_eq!(full_since(), None);
    pass(10);
    fleet.heard(&e, 0);
    assert_eq!(full_since(), Some(30), "it says that it has no room");
    assert!(fleet.facts()[0].no_room);
    fleet.heard(&e, 1);
    assert_eq!(full_since(), None);
    fleet.reset(&[own(1, 1, true, 5), own(2, 2, false, 6)], 8);
    assert_eq!(full_since(), Some(30), "listed by another controller's doing");
    fleet.reset(&[], 9);
    assert_eq!(full_since(), None);
    assert!(fleet.lock().full_since.is_empty());
}

#[test]
fn a_session_that_does_not_listen_ends_instead_of_growing() {
    let fleet = Fleet::default();
    let e: ExecutorId = "e".parse().unwrap();
    fleet.note_record(&registered(&e, None, 1));
    let (voice, _ears) = mpsc::channel(2);
    let (number, end) = fleet.begin(&e, 1, Labels::new(), 1, voice, Duration::from_secs(9)).unwrap();
    let pong = || Say::Pong(octavius_proto::v1::Pong {});
    assert!(!fleet.tell(&e, pong()), "the first word is a welcome");
    fleet.greet(&e, number, Welcome::default());
    assert!(fleet.tell(&e, pong()));
    assert!(!end.is_cancelled());
    assert!(!fleet.tell(&e, pong()));
    assert!(end.is_cancelled());
}
