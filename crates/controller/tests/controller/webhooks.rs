//! Webhooks, as whoever takes their messages meets them: a real HTTP server that checks each signature, is away, slow or unwilling, and is told
//! everything all the same.

mod trouble;

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use octavius_controller::{WebhookConfig, WebhookSecrets, private};
use octavius_core::{ExecutionId, Timestamp, Timing, WebhookEvent};
use octavius_proto::client::Connection;
use octavius_proto::v1::{self, ExecutionState as S, Role};
use octavius_proto::{Fault, reason};
use octavius_store::record::DeliveryRecord;
use octavius_store::{Range, Txn, codec, key};
use octavius_tests::free_ports;
use octavius_tests::receiver::{Message, Receiver, url_at};
use serde_json::{Value, json};
use tempfile::TempDir;
use tonic::Code;

use crate::audit::trail;
use crate::fake::{Fake, hello};
use crate::harness::{House, cancel, eventually, get, job, request, send, soon, timing, told};
use crate::waiting::http;

const JOBS: [&str; 3] = [
    r#"{"name":"pay","command":["true"]}"#,
    r#"{"name":"gated","command":["true"],"approvals":{"groups":["ops"]}}"#,
    r#"{"name":"Backup-all","command":["true"]}"#,
];

/// Times under which a message that fails is tried again soon.
fn quick() -> Timing {
    let (soon, later) = (Duration::from_millis(20), Duration::from_millis(100));
    Timing { webhook_retry_min: soon, webhook_retry_max: later, webhook_pause_max: later, ..timing() }
}

/// A secret in a file of its own.
pub(crate) struct Secret {
    folder: TempDir,
    pub(crate) text: String,
}

impl Secret {
    pub(crate) fn new() -> Self {
        let (folder, text) = (tempfile::tempdir().unwrap(), WebhookSecrets::generate());
        private::write_new(&folder.path().join("secret"), text.as_bytes(), 0o600).unwrap();
        Self { folder, text }
    }

    fn path(&self) -> PathBuf {
        self.folder.path().join("secret")
    }

    /// A webhook called `name`, as the configuration would have it.
    pub(crate) fn webhook(&self, name: &str, url: &str, more: &Value) -> WebhookConfig {
        let mut config = json!({"name": name, "url": url, "secret_file": self.path(), "events": ["finished"]});
        for (name, value) in more.as_object().unwrap() {
            config[name] = value.clone();
        }
        WebhookConfig::parse_all(&json!([config]), Path::to_owned).unwrap().remove(0)
    }
}

async fn house_of(timing: Timing, webhooks: Vec<WebhookConfig>) -> House {
    let house = House::telling(timing, webhooks, |store| store).await;
    house.apply(&JOBS).await;
    house
}

/// Runs a job to this end.
async fn end(house: &House, job: &str, outcome: S) -> String {
    let fake = Fake::register(house, &format!("e-{}", ExecutionId::generate())).await;
    let mut session = fake.session(hello(1)).await.unwrap();
    let id = house.execute(job).await;
    let claim = session.assignment().await;
    assert_eq!(claim.id, id);
    fake.begins(&claim).await;
    fake.finishes(&claim, outcome, b"").await.unwrap();
    id
}

/// What has been taken once that is so much.
async fn taken(receiver: &Receiver, count: usize) -> Vec<Message> {
    eventually(&format!("{count} messages"), async || {
        let taken = receiver.taken().map_err(|error| format!("{error:#}"))?;
        if taken.len() >= count { Ok(taken) } else { Err(format!("{taken:?}")) }
    })
    .await
}

async fn webhook(house: &House, name: &str) -> v1::Webhook {
    let listed = house.admin().await.admin().list_webhooks(v1::ListWebhooksRequest {}).await.unwrap().into_inner().webhooks;
    listed.into_iter().find(|webhook| webhook.name == name).unwrap()
}

async fn deliveries(house: &House, waiting: bool) -> Vec<v1::Delivery> {
    let request = v1::ListDeliveriesRequest { webhook: String::new(), waiting };
    house.admin().await.admin().list_deliveries(request).await.unwrap().into_inner().deliveries
}

/// Returns when the store holds nothing any more that is to be brought.
pub(crate) async fn nothing_left(house: &House) {
    eventually("nothing to be left", async || {
        let left = house.store().range(&Range::of(key::deliveries(), 10)).await.unwrap().entries;
        if left.is_empty() { Ok(()) } else { Err(format!("{left:?}")) }
    })
    .await;
}

/// The deliveries that were given up, once there are so many.
async fn given_up(house: &House, count: usize) -> Vec<v1::Delivery> {
    eventually(&format!("{count} to be given up"), async || {
        let given_up = deliveries(house, false).await;
        if given_up.len() == count { Ok(given_up) } else { Err(format!("{given_up:?}")) }
    })
    .await
}

async fn retry(connection: &Connection, webhook: &str, execution: &str) -> Result<u64, Fault> {
    let request = v1::RetryDeliveriesRequest { webhook: webhook.to_owned(), execution: execution.to_owned() };
    let answer = connection.admin().retry_deliveries(request).await.map_err(|status| told(&status))?;
    Ok(answer.into_inner().deliveries)
}

async fn test(connection: &Connection, webhook: &str) -> Result<(), Fault> {
    let request = v1::TestWebhookRequest { webhook: webhook.to_owned() };
    connection.admin().test_webhook(request).await.map(|_| ()).map_err(|status| told(&status))
}

/// An address where nobody is.
fn away() -> std::net::SocketAddr {
    std::net::SocketAddr::from(([127, 0, 0, 1], free_ports(1).unwrap()[0]))
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn each_is_told_what_it_asks_for_once_signed_and_without_arguments() {
    let secret = Secret::new();
    let [all, failures, backups] = [(); 3].map(|()| Receiver::start(&secret.text).unwrap());
    let house = house_of(
        quick(),
        vec![
            secret.webhook("all", &all.url(), &json!({"events": WebhookEvent::ALL.map(WebhookEvent::as_str)})),
            secret.webhook("failures", &failures.url(), &json!({"events": "failed"})),
            secret.webhook("backups", &backups.url(), &json!({"jobs": ["backup-*"]})),
        ],
    )
    .await;
    let admin = house.admin().await;
    let waits = send(&admin, request("gated", &[])).await.unwrap();
    let told = taken(&all, 1).await.remove(0);
    assert_eq!((told.kind(), told.execution()), ("execution.waiting_for_approval", waits.as_str()));
    assert_eq!(told.id, format!("{waits}-waiting_for_approval"));
    let data = &told.body["data"];
    assert_eq!((&data["state"], &data["approvals"]["groups"]), (&json!("waiting_for_approval"), &json!(["ops"])));
    assert_eq!((&data["job"], &data["user"], &data["finished_at"]), (&json!("gated"), &json!("admin"), &Value::Null));
    let until: Timestamp = data["approvals"]["expires_at"].as_str().unwrap().parse().unwrap();
    assert!(until > Timestamp::now());
    assert!(data.get("arguments").is_none(), "{data}");

    cancel(&admin, &waits).await;
    let cancelled = taken(&all, 2).await.remove(1);
    assert_eq!((cancelled.kind(), cancelled.body["data"]["state"].as_str()), ("execution.finished", Some("cancelled")));
    let failed = end(&house, "pay", S::Failed).await;
    let succeeded = end(&house, "backup-all", S::Succeeded).await;
    let told = taken(&all, 4).await;
    let short: Vec<_> = told.iter().map(|told| (told.kind(), told.execution())).collect();
    assert_eq!(short[2..], [("execution.failed", failed.as_str()), ("execution.finished", succeeded.as_str())]);
    assert_eq!((&told[2].body["data"]["reason"], &told[2].body["data"]["exit_code"]), (&json!("EXIT_CODE"), &json!(3)));
    assert_eq!(told[3].body["timestamp"], told[3].body["data"]["finished_at"]);
    let only = taken(&failures, 1).await;
    assert_eq!((only.len(), only[0].execution()), (1, failed.as_str()));
    let only = taken(&backups, 1).await;
    assert_eq!((only.len(), only[0].kind(), only[0].execution()), (1, "execution.finished", succeeded.as_str()));

    // Nothing is left behind, and what was done is counted.
    nothing_left(&house).await;
    let (_, metrics) = http(house.metrics_address(), "GET", "/metrics").await;
    for line in [
        r#"octavius_webhook_deliveries_total{webhook="all",outcome="delivered"} 4"#,
        r#"octavius_webhook_deliveries_total{webhook="failures",outcome="failed"} 0"#,
        r#"octavius_webhook_deliveries_waiting{webhook="backups"} 0"#,
        r#"octavius_webhook_up{webhook="all"} 1"#,
    ] {
        assert!(metrics.lines().any(|known| known == line), "{line} is not in {metrics}");
    }
    let all = webhook(&house, "all").await;
    assert!(all.delivered_at.is_some() && all.failing_since.is_none() && all.is_configured, "{all:?}");
    assert!(!all.url.contains("s3cr3t") && all.url.starts_with("http://127.0.0.1:"), "{all:?}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_is_not_taken_is_tried_again_under_the_same_id_and_told_with_the_execution() {
    let secret = Secret::new();
    let receiver = Receiver::start(&secret.text).unwrap();
    let elsewhere = Receiver::start(&secret.text).unwrap();
    let house = house_of(quick(), vec![secret.webhook("chat", &receiver.url(), &json!({}))]).await;
    let admin = house.admin().await;
    receiver.answer(302, Some(("location", elsewhere.url())));
    let id = end(&house, "pay", S::Succeeded).await;
    let execution = eventually("a second try", async || {
        let execution = get(&admin, &id).await;
        if execution.deliveries.iter().any(|delivery| delivery.tries > 1) { Ok(execution) } else { Err(format!("{execution:?}")) }
    })
    .await;
    let [delivery] = execution.deliveries.as_slice() else { panic!("{execution:?}") };
    assert_eq!((delivery.webhook.as_str(), delivery.event.as_str()), ("chat", "finished"));
    assert!(delivery.next_at.is_some() && delivery.given_up_at.is_none() && delivery.failure.is_empty(), "{delivery:?}");
    let listed = webhook(&house, "chat").await;
    assert!(listed.failing_since.is_some() && listed.failure.contains("302") && listed.waiting == 1, "{listed:?}");
    assert_eq!(elsewhere.came().unwrap().len(), 0, "a redirect is not followed");
    let (_, metrics) = http(house.metrics_address(), "GET", "/metrics").await;
    assert!(metrics.contains("octavius_webhook_up{webhook=\"chat\"} 0"), "{metrics}");

    receiver.answer(500, None);
    let came = receiver.came().unwrap().len();
    eventually("a try", async || if receiver.came().unwrap().len() > came { Ok(()) } else { Err(String::new()) }).await;
    receiver.answer(204, None);
    let ids: BTreeSet<_> = taken(&receiver, 1).await.into_iter().map(|message| message.id).collect();
    let all: BTreeSet<_> = receiver.came().unwrap().into_iter().map(|message| message.id).collect();
    assert_eq!((ids.len(), &ids), (1, &all), "one message, and one id for all tries");
    eventually("nothing to be left", async || {
        let left = get(&admin, &id).await.deliveries;
        if left.is_empty() { Ok(()) } else { Err(format!("{left:?}")) }
    })
    .await;
    assert_eq!(receiver.taken().unwrap().len(), 1);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_waits_outlives_the_controller_and_goes_at_once_when_the_webhook_is_back() {
    let secret = Secret::new();
    let address = away();
    // Who is away is asked again late: that it is back is found out by one message, and the others do not wait for their time.
    let timing = Timing { webhook_retry_max: Duration::from_secs(3600), webhook_retry_min: Duration::from_secs(2), ..quick() };
    let mut house = house_of(timing, vec![secret.webhook("chat", &url_at(address), &json!({}))]).await;
    let mut ids = BTreeSet::new();
    for _ in 0..5 {
        ids.insert(end(&house, "pay", S::Succeeded).await);
    }
    eventually("all to wait, one of them tried", async || {
        let waiting = deliveries(&house, true).await;
        let is_so = waiting.len() == 5 && waiting.iter().any(|delivery| delivery.tries > 0);
        if is_so { Ok(()) } else { Err(format!("{waiting:?}")) }
    })
    .await;
    house.stop().await;
    house.start_again().await;
    let receiver = Receiver::at(address, &secret.text).unwrap();
    let told: BTreeSet<_> = taken(&receiver, 5).await.iter().map(|message| message.execution().to_owned()).collect();
    assert_eq!(told, ids);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_is_given_up_is_listed_counted_and_tried_again_when_somebody_says_so() {
    let secret = Secret::new();
    let receiver = Receiver::start(&secret.text).unwrap();
    let timing = Timing { webhook_patience: Duration::from_millis(300), ..quick() };
    let hooks = vec![
        secret.webhook("chat", &receiver.url(), &json!({})),
        secret.webhook("gone", &receiver.url(), &json!({"events": "failed"})),
    ];
    let house = house_of(timing, hooks).await;
    let admin = house.admin().await;
    receiver.answer(503, None);
    let id = end(&house, "pay", S::Succeeded).await;
    let delivery = given_up(&house, 1).await.remove(0);
    assert_eq!((delivery.webhook.as_str(), delivery.execution.as_str()), ("chat", id.as_str()));
    assert!(delivery.tries > 1 && delivery.failure.contains("503") && delivery.next_at.is_none(), "{delivery:?}");
    assert!(get(&admin, &id).await.deliveries[0].given_up_at.is_some());
    let record = trail(&house).await.into_iter().find(|record| record.action == "webhook.abandon").unwrap();
    assert_eq!((record.object, record.user), (format!("execution/{id}"), String::new()));
    assert_eq!((record.details["webhook"].as_str(), record.details["event"].as_str()), ("chat", "finished"));
    let came = receiver.came().unwrap().len();
    let (_, metrics) = http(house.metrics_address(), "GET", "/metrics").await;
    for line in [
        r#"octavius_webhook_deliveries_total{webhook="chat",outcome="given_up"} 1"#,
        r#"octavius_webhook_deliveries_given_up{webhook="chat"} 1"#,
        r#"octavius_webhook_deliveries_waiting{webhook="chat"} 0"#,
    ] {
        assert!(metrics.lines().any(|known| known == line), "{line} is not in {metrics}");
    }

    // One that says that it is gone for good is not asked for a day.
    receiver.answer(410, None);
    let failed = end(&house, "pay", S::Failed).await;
    let all = given_up(&house, 3).await;
    assert!(all.iter().filter(|delivery| delivery.execution == failed).all(|delivery| delivery.tries == 1), "{all:?}");

    receiver.answer(200, None);
    assert_eq!(receiver.came().unwrap().len(), came + 2, "what was given up was not tried again by itself");
    for (webhook, execution, code) in [("nobody", "", Code::NotFound), ("", "not an id", Code::InvalidArgument)] {
        assert_eq!(retry(&admin, webhook, execution).await.unwrap_err().code, code);
    }
    let ann = house.person(Role::User, "ann", &[]).await;
    assert_eq!(retry(&ann, "", "").await.unwrap_err().code, Code::PermissionDenied);
    assert_eq!(retry(&admin, "gone", &id).await, Ok(0), "that one was for another");
    assert_eq!(retry(&admin, "chat", &id).await, Ok(1));
    assert_eq!(taken(&receiver, 1).await[0].execution(), id);
    assert_eq!(retry(&admin, "", "").await, Ok(2));
    assert_eq!(taken(&receiver, 3).await.len(), 3);
    let records = trail(&house).await.into_iter().filter(|record| record.action == "webhook.retry" && record.user == "admin");
    let objects: Vec<_> = records.filter(|record| record.reason.is_empty()).map(|record| record.object).collect();
    assert!(objects.ends_with(&["webhook/chat".to_owned(), "webhook/*".to_owned()]), "{objects:?}");
    assert_eq!((deliveries(&house, false).await, retry(&admin, "", "").await), (vec![], Ok(0)));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn nobody_is_asked_to_approve_what_waits_no_longer() {
    let secret = Secret::new();
    let address = away();
    let hook = secret.webhook("inbox", &url_at(address), &json!({"events": ["waiting_for_approval", "finished"]}));
    let house = house_of(quick(), vec![hook]).await;
    let admin = house.admin().await;
    let id = send(&admin, request("gated", &[])).await.unwrap();
    cancel(&admin, &id).await;
    let events: Vec<_> = get(&admin, &id).await.deliveries.into_iter().map(|delivery| delivery.event).collect();
    assert_eq!(events, ["finished"], "and it is not said that they were not asked");
    let receiver = Receiver::at(address, &secret.text).unwrap();
    let told = taken(&receiver, 1).await;
    assert_eq!((told.len(), told[0].kind()), (1, "execution.finished"));
    nothing_left(&house).await;
    assert_eq!(receiver.came().unwrap().len(), 1);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn of_several_controllers_one_tells() {
    let secret = Secret::new();
    let receiver = Receiver::start(&secret.text).unwrap();
    let house = house_of(quick(), vec![secret.webhook("chat", &receiver.url(), &json!({}))]).await;
    let (one, other) = (house.neighbour().await, house.neighbour().await);
    let admin = house.admin().await;
    // Once they have heard of each other.
    eventually("each end to be told once", async || {
        let before = receiver.count();
        let mut ids = BTreeSet::new();
        for _ in 0..20 {
            let id = send(&admin, request("pay", &[])).await.unwrap();
            cancel(&admin, &id).await;
            ids.insert(id);
        }
        nothing_left(&house).await;
        let told: Vec<_> = receiver.taken().unwrap()[before..].iter().map(|message| message.execution().to_owned()).collect();
        assert!(ids.iter().all(|id| told.contains(id)), "{told:?} and not {ids:?}");
        if told.len() == ids.len() { Ok(()) } else { Err(format!("{} times", told.len())) }
    })
    .await;
    let mut delivered = 0;
    for address in [house.metrics_address(), one.metrics_address().unwrap(), other.metrics_address().unwrap()] {
        let (_, metrics) = http(address, "GET", "/metrics").await;
        let count = metrics.lines().find_map(|line| {
            line.strip_prefix(r#"octavius_webhook_deliveries_total{webhook="chat",outcome="delivered"} "#)?.parse::<usize>().ok()
        });
        delivered += count.unwrap();
    }
    let count = receiver.count();
    assert_eq!(delivered, count);
    // What one leaves behind, the others tell.
    receiver.answer(500, None);
    let id = send(&admin, request("pay", &[])).await.unwrap();
    cancel(&admin, &id).await;
    one.stop().await;
    other.stop().await;
    receiver.answer(200, None);
    let last = taken(&receiver, count + 1).await;
    assert_eq!(last[last.len() - 1].execution(), id);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn one_that_does_not_answer_holds_up_nobody_else_and_no_stop() {
    let secret = Secret::new();
    let (slow, quick_one) = (Receiver::start(&secret.text).unwrap(), Receiver::start(&secret.text).unwrap());
    let hooks = vec![secret.webhook("slow", &slow.url(), &json!({})), secret.webhook("quick", &quick_one.url(), &json!({}))];
    let mut house = house_of(quick(), hooks).await;
    slow.hold(true);
    for _ in 0..20 {
        let id = house.execute("pay").await;
        cancel(&house.admin().await, &id).await;
    }
    assert_eq!(taken(&quick_one, 20).await.len(), 20);
    eventually("as many as go at once", async || match slow.came().unwrap().len() {
        16 => Ok(()),
        other => Err(format!("{other}")),
    })
    .await;
    let took = house.stop().await;
    assert!(took < Duration::from_secs(5), "{took:?}");
    slow.hold(false);
    house.start_again().await;
    let told: BTreeSet<_> = {
        eventually("all of them", async || {
            let told: BTreeSet<_> = slow.came().unwrap().iter().map(|message| message.execution().to_owned()).collect();
            if told.len() == 20 { Ok(told) } else { Err(format!("{told:?}")) }
        })
        .await
    };
    assert_eq!(told.len(), 20);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn whether_one_takes_messages_is_tried_on_demand_and_says_what_is_wrong() {
    let secret = Secret::new();
    let receiver = Receiver::start(&secret.text).unwrap();
    let hooks = vec![secret.webhook("chat", &receiver.url(), &json!({})), secret.webhook("away", &url_at(away()), &json!({}))];
    let house = house_of(quick(), hooks).await;
    let admin = house.admin().await;
    assert_eq!(test(&admin, "chat").await, Ok(()));
    let told = receiver.taken().unwrap().remove(0);
    assert_eq!((told.kind(), &told.body["data"]), ("octavius.test", &json!({"user": "admin"})));
    receiver.answer(401, None);
    for (name, expected) in [("chat", "did not take it: it answers 401 Unauthorized"), ("away", "did not take it: ")] {
        let fault = test(&admin, name).await.unwrap_err();
        assert_eq!((fault.code, fault.reason.as_str()), (Code::FailedPrecondition, reason::WEBHOOK_FAILED));
        assert!(fault.message.contains(expected) && !fault.message.contains("s3cr3t"), "{fault:?}");
    }
    assert_eq!(test(&admin, "nobody").await.unwrap_err().code, Code::NotFound);
    assert_eq!(webhook(&house, "chat").await.failing_since, None, "a trial says nothing of what waits");
    // One that was found to fail, with nothing left to find out by, is well again when a trial says so.
    receiver.answer(410, None);
    end(&house, "pay", S::Succeeded).await;
    given_up(&house, 1).await;
    assert!(webhook(&house, "chat").await.failing_since.is_some());
    receiver.answer(200, None);
    assert_eq!(test(&admin, "chat").await, Ok(()));
    assert_eq!(webhook(&house, "chat").await.failing_since, None);
}

/// Both sides change their secret one after the other, and nothing is lost in between.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_secret_is_replaced_without_a_restart() {
    let secret = Secret::new();
    let receiver = Receiver::start(&secret.text).unwrap();
    let house = house_of(quick(), vec![secret.webhook("chat", &receiver.url(), &json!({}))]).await;
    let admin = house.admin().await;
    let next = WebhookSecrets::generate();
    std::fs::write(secret.path(), format!("{next}\n{}\n", secret.text)).unwrap();
    assert_eq!(test(&admin, "chat").await, Ok(()));
    receiver.trust(&next).unwrap();
    assert_eq!(test(&admin, "chat").await, Ok(()));
    std::fs::write(secret.path(), &next).unwrap();
    assert_eq!(test(&admin, "chat").await, Ok(()));
    let signatures: Vec<_> = receiver.taken().unwrap().iter().map(|message| message.signatures.len()).collect();
    assert_eq!(signatures, [2, 2, 1]);
    // A file that is no secret any more holds messages up, and says so, and sends nothing that is not signed.
    std::fs::write(secret.path(), "oops").unwrap();
    let id = end(&house, "pay", S::Succeeded).await;
    let failing = eventually("it to fail", async || {
        let webhook = webhook(&house, "chat").await;
        if webhook.failing_since.is_some() { Ok(webhook) } else { Err(format!("{webhook:?}")) }
    })
    .await;
    assert!(failing.failure.contains("not 1 to 4 secrets") && !failing.failure.contains("oops"), "{failing:?}");
    std::fs::write(secret.path(), &next).unwrap();
    assert_eq!(taken(&receiver, 4).await[3].execution(), id);
}

/// Puts a message into the store as a controller would have.
pub(crate) fn put(txn: Txn, given_up: bool, id: ExecutionId, webhook: &str, at: Timestamp) -> Txn {
    let record = DeliveryRecord { at, tries: 1, then: at, failure: "it answers 500".into() };
    let of = if given_up { key::delivery_given_up } else { key::delivery };
    txn.put(of(id, WebhookEvent::Finished, webhook), codec::encode(&record))
}

/// The whole of what a controller with webhooks does for an execution is in the transactions that it would make anyway.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn nothing_is_told_before_it_is_so() {
    let secret = Secret::new();
    let receiver = Receiver::start(&secret.text).unwrap();
    let hook = secret.webhook("chat", &receiver.url(), &json!({"events": WebhookEvent::ALL.map(WebhookEvent::as_str)}));
    let house = house_of(quick(), vec![hook]).await;
    let fake = Fake::register(&house, "e").await;
    let mut session = fake.session(hello(1)).await.unwrap();
    let retried = r#"{"name":"again","command":["true"],"retries":1}"#;
    assert_eq!(job(retried).retries, 1);
    house.apply(&[retried]).await;
    let id = house.execute("again").await;
    for last in [false, true] {
        let claim = soon("an attempt", session.assignment()).await;
        fake.begins(&claim).await;
        session.hears_nothing(3).await;
        assert_eq!(receiver.came().unwrap().len(), 0, "it runs, or is tried again");
        fake.finishes(&claim, S::Failed, b"").await.unwrap();
        if !last {
            assert_eq!(deliveries(&house, true).await, []);
        }
    }
    let told = taken(&receiver, 1).await;
    assert_eq!((told.len(), told[0].kind(), told[0].execution()), (1, "execution.failed", id.as_str()));
    assert_eq!(told[0].body["data"]["starts"], 2);
}

/// How long it takes until whoever waits for it is told: soon, as it would be useless otherwise.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn it_is_told_without_a_turn_of_anything() {
    let secret = Secret::new();
    let receiver = Receiver::start(&secret.text).unwrap();
    // All that comes round by itself comes round late.
    let late = Duration::from_secs(3600);
    let timing = Timing { reconcile_interval: late, webhook_pause_max: late, webhook_retry_min: late, ..timing() };
    let house = house_of(timing, vec![secret.webhook("chat", &receiver.url(), &json!({}))]).await;
    let id = house.execute("pay").await;
    let began = Instant::now();
    cancel(&house.admin().await, &id).await;
    assert_eq!(taken(&receiver, 1).await[0].execution(), id);
    assert!(began.elapsed() < late / 100);
}
