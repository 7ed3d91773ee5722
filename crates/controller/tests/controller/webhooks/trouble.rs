//! Messages that are never taken, that are to come later, that bear another clock's time, and those that are too many.

use std::collections::BTreeSet;
use std::time::{Duration, Instant};

use octavius_core::{ExecutionId, Timestamp, Timing, WebhookEvent};
use octavius_store::record::DeliveryRecord;
use octavius_store::{Txn, codec, key};
use octavius_tests::receiver::Receiver;
use serde_json::json;

use super::{Secret, deliveries, given_up, house_of, put, quick, retry, taken, webhook};
use crate::harness::{cancel, eventually, request, send, timing};

/// What is refused for itself, or always, gets in nobody's way, and is tried more and more seldom.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_message_that_is_never_taken_holds_up_no_other() {
    let secret = Secret::new();
    let receiver = Receiver::start(&secret.text).unwrap();
    let house = house_of(timing(), vec![secret.webhook("chat", &receiver.url(), &json!({}))]).await;
    let admin = house.admin().await;
    let mut bad = Vec::new();
    for n in 0..60 {
        let id = send(&admin, request("pay", &[])).await.unwrap();
        receiver.answer_of(&id, if n % 2 == 0 { 422 } else { 500 });
        cancel(&admin, &id).await;
        bad.push(id);
    }
    let mut good = BTreeSet::new();
    for _ in 0..40 {
        let id = send(&admin, request("pay", &[])).await.unwrap();
        cancel(&admin, &id).await;
        good.insert(id);
    }
    let began = Instant::now();
    let told: BTreeSet<_> = taken(&receiver, 40).await.iter().map(|message| message.execution().to_owned()).collect();
    assert_eq!(told, good);
    let left = eventually("the others to be left", async || {
        let left = deliveries(&house, true).await;
        if left.len() == 60 { Ok(left) } else { Err(format!("{left:?}")) }
    })
    .await;
    let most = left.iter().map(|delivery| delivery.tries).max().unwrap();
    assert!(most < 30, "one of them was tried {most} times within {:?}", began.elapsed());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn one_that_says_when_to_come_again_is_left_in_peace_until_then() {
    let secret = Secret::new();
    let receiver = Receiver::start(&secret.text).unwrap();
    let timing = Timing { webhook_retry_max: Duration::from_secs(3600), ..quick() };
    let house = house_of(timing, vec![secret.webhook("chat", &receiver.url(), &json!({}))]).await;
    let admin = house.admin().await;
    receiver.answer(429, Some(("retry-after", "2".to_owned())));
    let began = Instant::now();
    let id = send(&admin, request("pay", &[])).await.unwrap();
    cancel(&admin, &id).await;
    eventually("a try", async || if receiver.count() > 0 { Ok(()) } else { Err(String::new()) }).await;
    receiver.answer(204, None);
    assert_eq!(taken(&receiver, 1).await[0].execution(), id);
    assert!(began.elapsed() >= Duration::from_secs(2), "{:?}", began.elapsed());
    assert_eq!(receiver.count(), 2);
    eventually("it to be well again", async || match webhook(&house, "chat").await.failing_since {
        None => Ok(()),
        Some(since) => Err(format!("{since:?}")),
    })
    .await;
}

/// By another controller's clock, an hour ahead.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn whatever_time_a_new_message_bears_it_is_brought_at_once() {
    let secret = Secret::new();
    let receiver = Receiver::start(&secret.text).unwrap();
    let house = house_of(quick(), vec![secret.webhook("chat", &receiver.url(), &json!({"jobs": "none"}))]).await;
    let admin = house.admin().await;
    let id = send(&admin, request("pay", &[])).await.unwrap();
    cancel(&admin, &id).await;
    let ahead = Timestamp::now().checked_add(Duration::from_secs(3600)).unwrap();
    let record = DeliveryRecord { at: ahead, tries: 0, then: ahead, failure: String::new() };
    let at = key::delivery(id.parse().unwrap(), WebhookEvent::Finished, "chat");
    house.store().commit(Txn::new().put(at, codec::encode(&record))).await.unwrap();
    assert_eq!(taken(&receiver, 1).await[0].execution(), id);
}

/// What is kept for one that is away, or not configured any more, has bounds, and what goes beyond them is told.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_is_kept_has_bounds() {
    let secret = Secret::new();
    let timing = Timing { webhook_pause_max: Duration::from_millis(50), ..timing() };
    let receiver = Receiver::start(&secret.text).unwrap();
    let house = house_of(timing, vec![secret.webhook("chat", &receiver.url(), &json!({}))]).await;
    let now = Timestamp::now();
    let long_ago = now.checked_sub(timing.webhook_patience * 2).unwrap();
    // Nobody is called so on this controller.
    let ids: Vec<_> = (0..11_010u32).map(|_| ExecutionId::generate()).collect();
    for some in ids[..10_005].chunks(100) {
        let txn = some.iter().fold(Txn::new(), |txn, id| put(txn, false, *id, "absent", now));
        house.store().commit(txn).await.unwrap();
    }
    let mut over = given_up(&house, 5).await;
    over.sort_by(|one, other| one.execution.cmp(&other.execution));
    let told: Vec<_> = over.iter().map(|delivery| delivery.execution.clone()).collect();
    assert_eq!(told, ids[..5].iter().map(ToString::to_string).collect::<Vec<_>>(), "the oldest");
    assert!(over[0].failure.contains("more than 10000 waited"), "{over:?}");
    // With 1,005 more of these, the newest 1,000 stay.
    for some in ids[10_005..].chunks(100) {
        let txn = some.iter().fold(Txn::new(), |txn, id| put(txn, true, *id, "absent", now));
        house.store().commit(txn).await.unwrap();
    }
    eventually("1,000 to be left", async || match webhook(&house, "absent").await.given_up {
        1000 => Ok(()),
        other => Err(format!("{other}")),
    })
    .await;
    let left = deliveries(&house, false).await;
    assert_eq!(left[0].execution, ids[10_010].to_string());
    // Of an execution that is not kept any more there is nothing to tell, and that is told.
    let removed = ExecutionId::generate();
    house.store().commit(put(Txn::new(), false, removed, "chat", now)).await.unwrap();
    let chat = eventually("it to be given up", async || {
        let chat = webhook(&house, "chat").await;
        if chat.given_up == 1 { Ok(chat) } else { Err(format!("{chat:?}")) }
    })
    .await;
    assert_eq!((chat.waiting, receiver.came().unwrap().len()), (0, 0));
    // After a day, it is not waited for somebody to be called so.
    let old = ExecutionId::generate();
    house.store().commit(put(Txn::new(), false, old, "old", long_ago)).await.unwrap();
    house.store().commit(put(Txn::new(), false, ExecutionId::generate(), "new", now)).await.unwrap();
    eventually("it to be given up", async || {
        let old = webhook(&house, "old").await;
        if (old.given_up, old.waiting, old.is_configured) == (1, 0, false) { Ok(()) } else { Err(format!("{old:?}")) }
    })
    .await;
    assert_eq!(webhook(&house, "new").await.waiting, 1, "another controller may know it soon");
    assert_eq!(retry(&house.admin().await, "old", "").await, Ok(1));
}
