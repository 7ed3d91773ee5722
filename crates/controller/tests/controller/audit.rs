//! The audit trail: who did, or was refused, what. One record for each change, in the change's own transaction.

use std::collections::BTreeSet;
use std::path::Path;
use std::sync::atomic::Ordering;
use std::time::Duration;

use octavius_controller::{AuditExport, Retention};
use octavius_core::{ExecutionId, Timestamp, Timing};
use octavius_proto::client::Connection;
use octavius_proto::v1::{self, AuditRecord, AuditResult, Role};
use octavius_proto::{DESCRIPTORS, reason, to_timestamp};
use octavius_store::{Range, Store, Txn, key};
use octavius_tests::receiver::Receiver;
use prost::Message as _;
use tonic::{Code, Streaming};

use crate::fake::{Fake, hello};
use crate::harness::{
    House, apply, cancel, connect, eventually, execute, header, request, rerun_request, send, send_rerun, soon, timing, told,
};
use crate::keeping::{Gauged, gauged};
use crate::webhooks::Secret;

const REFUND: &str =
    r#"{"name":"refund","command":["true"],"env_vars":{"args":[{"name":"order"},{"name":"pin","sensitive":true}]}}"#;

async fn open(connection: &Connection, request: v1::ReadAuditRequest) -> Streaming<v1::ReadAuditResponse> {
    connection.admin().read_audit(request).await.unwrap().into_inner()
}

/// The trail as it is now.
pub(crate) async fn trail(house: &House) -> Vec<AuditRecord> {
    let mut stream = open(&house.admin().await, v1::ReadAuditRequest::default()).await;
    let mut records = Vec::new();
    while let Some(response) = soon("a piece of the trail", stream.message()).await.unwrap() {
        records.extend(response.records);
    }
    records
}

/// What is new in the trail, in short: who, what, on what, with what result.
struct Reader(usize);

impl Reader {
    async fn of(house: &House) -> Self {
        Self(trail(house).await.len())
    }

    async fn new_records(&mut self, house: &House) -> Vec<AuditRecord> {
        let records = trail(house).await;
        records[std::mem::replace(&mut self.0, records.len())..].to_vec()
    }

    /// Refusals are written beside the call.
    async fn next_refused(&mut self, house: &House) -> AuditRecord {
        let mut new = eventually("the refusal to be noted", async || {
            let records = trail(house).await;
            let new = records[self.0..].to_vec();
            if new.is_empty() { Err("nothing is new".to_owned()) } else { Ok(new) }
        })
        .await;
        self.0 += new.len();
        assert_eq!(new.len(), 1, "{new:?}");
        assert_eq!(new[0].result(), AuditResult::Refused);
        new.remove(0)
    }
}

fn short(record: &AuditRecord) -> String {
    format!("{} {} {}", record.user, record.action, record.object)
}

fn detail<'a>(record: &'a AuditRecord, name: &str) -> &'a str {
    record.details.get(name).map(String::as_str).unwrap_or_default()
}

/// RPCs that change nothing, and those by which executors tell what has become of something.
const NOT_AUDITED: &[&str] = &[
    "GetHead",
    "GetBuckets",
    "GetDefinitions",
    "ListRevisions",
    "ListJobs",
    "GetJob",
    "GetExecution",
    "ListExecutions",
    "WatchExecution",
    "ReadLog",
    "ListExecutors",
    "GetExecutor",
    "GetController",
    "WhoAmI",
    "ListTokens",
    "ListWebhooks",
    "ListDeliveries",
    "ReadAudit",
    "AppendLog",
    "Session",
    "ReportExecution",
];

/// Every other RPC, once, and once more where it can be repeated: a new RPC is missing here until somebody decides.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn each_change_leaves_exactly_one_record_and_a_repetition_none() {
    let secret = Secret::new();
    let receiver = Receiver::start(&secret.text).unwrap();
    let hook = secret.webhook("chat", &receiver.url(), &serde_json::json!({"jobs": "none"}));
    let house = House::telling(timing(), vec![hook], |store| store).await;
    let admin = house.admin().await;
    let ann = house.person(Role::User, "ann", &[]).await;
    let token_of_ann = ann.admin().who_am_i(v1::WhoAmIRequest {}).await.unwrap().into_inner().token_id;
    let ci = house.person(Role::Applier, "ci", &[]).await;
    let bob = house.person(Role::User, "bob", &["leads"]).await;
    let registration = house.person(Role::Registration, "operator", &[]).await;
    let mut reader = Reader::of(&house).await;
    let mut seen = BTreeSet::new();
    let mut one = async |rpcs: &[&'static str], expected: &str| {
        let new = reader.new_records(&house).await;
        assert_eq!(new.iter().map(short).collect::<Vec<_>>(), [expected], "{rpcs:?}: {new:?}");
        let record = new.into_iter().next().unwrap();
        assert_eq!((record.result(), record.reason.as_str(), record.from.as_str()), (AuditResult::Done, "", "127.0.0.1"));
        seen.extend(rpcs.iter().copied());
        record
    };

    let provenance = v1::Provenance { commit: "c".repeat(40), ..Default::default() };
    let wanted = || v1::ApplyHeader { provenance: Some(provenance.clone()), plan_id: "p1".into(), ..header("c", 0, &[REFUND]) };
    apply(&ci, wanted(), &[REFUND]).await.unwrap();
    let record = one(&["Apply"], "ci catalog.apply catalog/c").await;
    assert_eq!((detail(&record, "revision"), detail(&record, "added"), detail(&record, "plan_id")), ("1", "1", "p1"));
    assert_eq!((detail(&record, "commit"), record.role.as_str()), (provenance.commit.as_str(), "applier"));
    apply(&ci, header("c", 1, &[REFUND]), &[REFUND]).await.unwrap();
    let changed = REFUND.replace("true", "false");
    apply(&admin, header("c", 1, &[&changed]), &[&changed]).await.unwrap();
    one(&["Apply"], "admin catalog.apply catalog/c").await;
    let back = v1::ApplyHeader { rollback_to: 1, freeze: true, ..header("c", 2, &[REFUND]) };
    apply(&admin, back, &[REFUND]).await.unwrap();
    let record = one(&["Apply"], "admin catalog.rollback catalog/c").await;
    assert_eq!((detail(&record, "revision"), detail(&record, "rollback_to"), detail(&record, "freeze")), ("3", "1", "true"));
    for (frozen, action) in [(false, "unfreeze"), (true, "freeze"), (false, "unfreeze")] {
        for _ in 0..2 {
            let request = v1::SetFrozenRequest { catalog: "c".into(), frozen };
            ci.catalog().set_frozen(request).await.unwrap();
        }
        one(&["SetFrozen"], &format!("ci catalog.{action} catalog/c")).await;
    }

    let asked = v1::ExecuteRequest { idempotency_key: "k".into(), ..request("refund", &[("order", "A-1"), ("pin", "hunter2")]) };
    let id = send(&ann, asked.clone()).await.unwrap();
    assert_eq!(send(&ann, asked.clone()).await.unwrap(), id);
    assert_eq!(send(&ann, v1::ExecuteRequest { id: request("j", &[]).id, ..asked }).await.unwrap(), id);
    let record = one(&["Execute"], &format!("ann execution.submit execution/{id}")).await;
    let arguments = (detail(&record, "arguments.order"), detail(&record, "arguments.pin"));
    assert_eq!((arguments, detail(&record, "job")), (("A-1", "********"), "refund"));
    assert_eq!((record.token_id.as_str(), record.role.as_str()), (token_of_ann.as_str(), "user"));
    let again = rerun_request(&id);
    let second = send_rerun(&ann, again.clone()).await.unwrap();
    assert_eq!(send_rerun(&ann, again).await.unwrap(), second);
    let record = one(&["RerunExecution"], &format!("ann execution.rerun execution/{second}")).await;
    assert_eq!((detail(&record, "rerun_of"), detail(&record, "arguments.pin")), (id.as_str(), "********"));
    for _ in 0..2 {
        cancel(&ann, &id[20..]).await;
    }
    one(&["CancelExecution"], &format!("ann execution.cancel execution/{id}")).await;

    let gated = r#"{"name":"gated","command":["true"],"approvals":{"groups":["leads"]}}"#;
    apply(&ci, header("c", 3, &[gated]), &[gated]).await.unwrap();
    one(&["Apply"], "ci catalog.apply catalog/c").await;
    for (rpc, action, decision) in [("ApproveExecution", "approve", "approved"), ("RejectExecution", "reject", "rejected")] {
        let id = send(&ann, request("gated", &[])).await.unwrap();
        one(&["Execute"], &format!("ann execution.submit execution/{id}")).await;
        for _ in 0..2 {
            let (end, reason) = (id[20..].to_owned(), "seen".to_owned());
            if rpc == "ApproveExecution" {
                bob.executions().approve_execution(v1::ApproveExecutionRequest { id: end, reason }).await.unwrap();
            } else {
                bob.executions().reject_execution(v1::RejectExecutionRequest { id: end, reason }).await.unwrap();
            }
        }
        let record = one(&[rpc], &format!("bob execution.{action} execution/{id}")).await;
        let details = (detail(&record, "job"), detail(&record, "decision"), detail(&record, "reason"));
        assert_eq!(details, ("gated", decision, "seen"));
    }

    for _ in 0..2 {
        let request = v1::PauseJobsRequest { job: "refund".into(), all: false, reason: "moving".into() };
        admin.admin().pause_jobs(request).await.unwrap();
    }
    assert_eq!(detail(&one(&["PauseJobs"], "admin job.pause job/refund").await, "reason"), "moving");
    admin.admin().pause_jobs(v1::PauseJobsRequest { all: true, ..Default::default() }).await.unwrap();
    one(&["PauseJobs"], "admin job.pause job/*").await;
    for _ in 0..2 {
        admin.admin().unpause_jobs(v1::UnpauseJobsRequest { job: "refund".into(), all: false }).await.unwrap();
    }
    one(&["UnpauseJobs"], "admin job.unpause job/refund").await;

    let register = async || {
        let request = v1::RegisterExecutorRequest { id: "e".into(), ..Default::default() };
        registration.executors().register_executor(request).await.unwrap().into_inner().token
    };
    register().await;
    let record = one(&["RegisterExecutor"], "operator executor.register executor/e").await;
    assert_eq!((detail(&record, "anew"), record.role.as_str()), ("", "registration"));
    let executor = house.connect(Some(&register().await)).await;
    assert_eq!(detail(&one(&["RegisterExecutor"], "operator executor.register executor/e").await, "anew"), "true");
    for _ in 0..2 {
        let request = v1::RotateTokenRequest { token_digest: vec![7; 32].into() };
        executor.executors().rotate_token(request).await.unwrap();
    }
    one(&["RotateToken"], "e executor.rotate executor/e").await;
    for _ in 0..2 {
        admin.executors().drain_executor(v1::DrainExecutorRequest { id: "e".into() }).await.unwrap();
    }
    one(&["DrainExecutor"], "admin executor.drain executor/e").await;
    for _ in 0..2 {
        admin.executors().resume_executor(v1::ResumeExecutorRequest { id: "e".into() }).await.unwrap();
    }
    one(&["ResumeExecutor"], "admin executor.resume executor/e").await;
    for _ in 0..2 {
        let request = v1::RevokeExecutorRequest { id: "e".into(), force: false };
        admin.executors().revoke_executor(request).await.unwrap();
    }
    one(&["RevokeExecutor"], "admin executor.revoke executor/e").await;

    let made = house.token(Role::Viewer, "eve", &["support"]).await;
    let record = one(&["CreateToken"], &format!("admin token.create token/{}", made.id)).await;
    let whose = (detail(&record, "user"), detail(&record, "role"), detail(&record, "groups"));
    assert_eq!(whose, ("eve", "viewer", "support"));
    assert!(!format!("{record:?}").contains(&made.token[5..]), "the token itself is nowhere");
    admin.admin().revoke_token(v1::RevokeTokenRequest { id: made.id.clone() }).await.unwrap();
    assert_eq!(detail(&one(&["RevokeToken"], &format!("admin token.revoke token/{}", made.id)).await, "user"), "eve");

    let opened = bob.admin().create_session(v1::CreateSessionRequest {}).await.unwrap().into_inner().token;
    let within = house.connect(Some(&opened)).await;
    let id = within.admin().who_am_i(v1::WhoAmIRequest {}).await.unwrap().into_inner().token_id;
    let record = one(&["CreateSession"], &format!("bob session.create token/{id}")).await;
    assert!(!format!("{record:?}").contains(&opened[5..]), "the session's token is nowhere");
    within.admin().end_session(v1::EndSessionRequest {}).await.unwrap();
    one(&["EndSession"], &format!("bob session.end token/{id}")).await;

    admin.admin().test_webhook(v1::TestWebhookRequest { webhook: "chat".into() }).await.unwrap();
    one(&["TestWebhook"], "admin webhook.test webhook/chat").await;
    let given_up = crate::webhooks::put(Txn::new(), true, ExecutionId::generate(), "gone", Timestamp::now());
    house.store().commit(given_up).await.unwrap();
    eventually("it to be tried again", async || {
        let request = v1::RetryDeliveriesRequest { webhook: String::new(), execution: String::new() };
        let moved = admin.admin().retry_deliveries(request).await.unwrap().into_inner().deliveries;
        if moved == 1 { Ok(()) } else { Err(format!("{moved}")) }
    })
    .await;
    let record = one(&["RetryDeliveries"], "admin webhook.retry webhook/*").await;
    assert_eq!(detail(&record, "deliveries"), "1");

    let mut backup = admin.admin().backup(v1::BackupRequest {}).await.unwrap().into_inner();
    while soon("a piece of a backup", backup.message()).await.unwrap().is_some() {}
    one(&["Backup"], "admin backup.read store").await;

    let descriptors = prost_types::FileDescriptorSet::decode(DESCRIPTORS).unwrap();
    let services = descriptors.file.iter().filter(|file| file.package() == "octavius.v1").flat_map(|file| &file.service);
    let rpcs: BTreeSet<_> =
        services.flat_map(|service| service.method.iter().map(prost_types::MethodDescriptorProto::name)).collect();
    let known: BTreeSet<_> = seen.iter().copied().chain(NOT_AUDITED.iter().copied()).collect();
    assert_eq!(known, rpcs, "each RPC leaves a record, or is said to leave none");

    // Nothing of it is out of order, and nothing that was to be hidden is in it.
    let all = trail(&house).await;
    let positions: Vec<_> = all.iter().map(|record| record.position.clone().unwrap()).collect();
    assert!(positions.windows(2).all(|pair| (pair[0].revision, &pair[0].id) < (pair[1].revision, &pair[1].id)), "{positions:?}");
    assert_eq!(short(&all[0]).split(' ').nth(1), Some("token.create"), "the first admin's, by the controller itself");
    assert_eq!((detail(&all[0], "by"), detail(&all[0], "user"), all[0].user.as_str()), ("bootstrap", "admin", ""));
    assert!(!format!("{all:?}").contains("hunter"));
}

/// The record's revision is that of the change.
#[tokio::test]
async fn a_record_is_written_with_its_change() {
    let house = House::open().await;
    house.apply(&[REFUND]).await;
    let id: ExecutionId = house.execute("refund").await.parse().unwrap();
    let written = house.store().get(&key::execution(id)).await.unwrap().unwrap().created;
    let records = trail(&house).await;
    let record = records.iter().find(|record| record.action == "execution.submit").unwrap();
    assert_eq!(record.position.as_ref().unwrap().revision, written);
}

/// What executors report, and what follows from it, is not somebody's change.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_the_system_does_by_itself_is_not_in_the_trail() {
    let house = House::open().await;
    house.apply(&[r#"{"name":"j","command":["true"],"schedule":{"cron":"* * * * *"}}"#]).await;
    let fake = Fake::register(&house, "e").await;
    let mut session = fake.session(hello(1)).await.unwrap();
    let mut reader = Reader::of(&house).await;
    let id = house.execute("j").await;
    let claim = session.assignment().await;
    fake.completes(&claim, b"printed\n").await;
    assert_eq!(
        reader.new_records(&house).await.iter().map(short).collect::<Vec<_>>(),
        [format!("admin execution.submit execution/{id}")]
    );
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn each_refusal_is_noted_with_who_what_and_on_what() {
    let house = House::with(often()).await; // in windows of 10 ms, so that none is only counted
    house.apply(&[REFUND, r#"{"name":"secret","command":["true"],"authorized_groups":["ops"]}"#]).await;
    let (ann, viewer) = (house.person(Role::User, "ann", &[]).await, house.person(Role::Viewer, "vic", &[]).await);
    let bob = house.person(Role::User, "bob", &[]).await;
    let admin = house.admin().await;
    let id = execute(&ann, "refund", &[("pin", "hunter2")]).await.unwrap();
    let mut reader = Reader::of(&house).await;

    // By their role: nobody has read the message but to learn what it was about.
    execute(&viewer, "refund", &[("pin", "hunter2")]).await.unwrap_err();
    let record = reader.next_refused(&house).await;
    assert_eq!((short(&record).as_str(), record.reason.as_str()), ("vic execution.submit job/refund", reason::NOT_PERMITTED));
    assert_eq!((record.role.as_str(), record.from.as_str()), ("viewer", "127.0.0.1"));
    assert!(!format!("{record:?}").contains("hunter"));
    apply(&ann, header("c", 1, &[REFUND]), &[REFUND]).await.unwrap_err();
    assert_eq!(short(&reader.next_refused(&house).await), "ann catalog.apply catalog/c");
    let create = v1::CreateTokenRequest { role: Role::Admin.into(), user: "ann".into(), ..Default::default() };
    ann.admin().create_token(create).await.unwrap_err();
    let record = reader.next_refused(&house).await;
    assert_eq!((short(&record).as_str(), detail(&record, "role")), ("ann token.create user/ann", "admin"));
    // What may not be read, too.
    assert_eq!(ann.admin().read_audit(v1::ReadAuditRequest::default()).await.unwrap_err().code(), Code::PermissionDenied);
    assert_eq!(short(&reader.next_refused(&house).await), "ann audit.read ");

    // By what they may see, and by whose it is.
    assert_eq!(execute(&ann, "secret", &[]).await.unwrap_err().reason, reason::JOB_NOT_FOUND);
    let record = reader.next_refused(&house).await;
    assert_eq!((short(&record).as_str(), record.reason.as_str()), ("ann execution.submit job/secret", reason::JOB_NOT_FOUND));
    send_rerun(&bob, rerun_request(&id)).await.unwrap_err();
    let record = reader.next_refused(&house).await;
    let expected = format!("bob execution.rerun execution/{id}");
    assert_eq!((short(&record), record.reason.as_str()), (expected, reason::NOT_PERMITTED));
    // By the state of things.
    admin.catalog().set_frozen(v1::SetFrozenRequest { catalog: "c".into(), frozen: true }).await.unwrap();
    reader.new_records(&house).await;
    apply(&admin, header("c", 1, &[REFUND]), &[REFUND]).await.unwrap_err();
    let record = reader.next_refused(&house).await;
    assert_eq!((short(&record).as_str(), record.reason.as_str()), ("admin catalog.apply catalog/c", reason::FROZEN));
    // A token where its id was asked for.
    admin.admin().revoke_token(v1::RevokeTokenRequest { id: house.token.clone() }).await.unwrap_err();
    assert_eq!(short(&reader.next_refused(&house).await), "admin token.revoke ********");
    // What makes no sense, and what was only looked for, was not refused.
    execute(&ann, "refund", &[("nope", "x")]).await.unwrap_err();
    admin.executions().get_execution(v1::GetExecutionRequest { id: ExecutionId::generate().to_string() }).await.unwrap_err();

    // Tokens that were good, or never were.
    let short_lived = v1::CreateTokenRequest {
        role: Role::User.into(),
        user: "eve".into(),
        groups: vec![],
        lifetime: Some(prost_types::Duration { seconds: 0, nanos: 1_000_000 }),
        ..Default::default()
    };
    let expired = admin.admin().create_token(short_lived).await.unwrap().into_inner();
    reader.new_records(&house).await;
    let with = async |token: &str| {
        let connection = house.connect(Some(token)).await;
        eventually("the token to be refused", async || match execute(&connection, "refund", &[]).await {
            Err(fault) if fault.code == Code::Unauthenticated => Ok(()),
            other => Err(format!("{other:?}")),
        })
        .await;
    };
    // The clock has to pass its end first.
    eventually(
        "the token's end",
        async || if octavius_core::Timestamp::now() > then(&expired) { Ok(()) } else { Err("".into()) },
    )
    .await;
    with(&expired.token).await;
    let record = reader.next_refused(&house).await;
    assert_eq!((short(&record).as_str(), detail(&record, "token")), ("eve execution.submit job/refund", "expired"));
    assert_eq!((record.reason.as_str(), record.token_id.as_str()), (reason::UNAUTHENTICATED, expired.id.as_str()));
    let elsewhere = House::open().await.token;
    with(&elsewhere).await;
    let record = reader.next_refused(&house).await;
    assert_eq!((short(&record).as_str(), detail(&record, "token")), (" execution.submit job/refund", "unknown, or revoked"));
    // What is no token at all, and none.
    with("octu_short").await;
    let record = reader.next_refused(&house).await;
    assert_eq!((short(&record).as_str(), detail(&record, "token")), (" execution.submit job/refund", "malformed"));
    let nobody = house.connect(None).await;
    execute(&nobody, "refund", &[]).await.unwrap_err();
    let record = reader.next_refused(&house).await;
    assert_eq!((short(&record).as_str(), detail(&record, "token")), (" execution.submit job/refund", "missing"));
}

fn then(made: &v1::CreateTokenResponse) -> octavius_core::Timestamp {
    let at = made.expires_at.unwrap();
    octavius_core::Timestamp::new(at.seconds, at.nanos).unwrap()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_flood_of_refused_calls_leaves_few_records() {
    let house = House::with(Timing { keep_interval: Duration::from_secs(10), ..timing() }).await;
    house.apply(&[REFUND]).await;
    let viewer = house.person(Role::Viewer, "vic", &[]).await;
    let before = trail(&house).await.len();
    for _ in 0..200 {
        execute(&viewer, "refund", &[]).await.unwrap_err();
    }
    let told = |records: &[AuditRecord]| {
        let counted = records.iter().filter(|record| record.action == "call.refused");
        let counted: u64 = counted.map(|record| detail(record, "count").parse::<u64>().unwrap()).sum();
        counted + records.iter().filter(|record| record.action == "execution.submit").count() as u64
    };
    let records = eventually("all of them to be counted", async || {
        let records = trail(&house).await.split_off(before);
        if told(&records) == 200 { Ok(records) } else { Err(format!("{} are told", told(&records))) }
    })
    .await;
    // On a slow machine they fall into several windows of two seconds each.
    assert!(records.len() <= 100, "{} records", records.len());
    let count = records.iter().find(|record| record.action == "call.refused").unwrap();
    assert_eq!((count.from.as_str(), count.reason.as_str()), ("127.0.0.1", "REPEATED"));
    assert!(detail(count, "actions").starts_with("execution.submit "), "{count:?}");
    assert!(detail(count, "users").starts_with("vic "), "{count:?}");
    // Who does what he may is not held up, and in the trail.
    let id = house.execute("refund").await;
    assert!(trail(&house).await.iter().any(|record| record.object == format!("execution/{id}")));
}

/// With two controllers: what one is asked to do, a follower at the other sees.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_follower_sees_what_comes_through_any_controller_and_goes_on_where_it_was() {
    let house = House::open().await;
    house.apply(&[REFUND]).await;
    let neighbour = house.neighbour().await;
    let there = connect(neighbour.address(), Some(&house.token)).await;
    let follow = |after: Option<v1::AuditPosition>| v1::ReadAuditRequest { follow: true, after, since: None };
    let mut stream = open(&there, follow(None)).await;
    let mut seen = Vec::new();
    loop {
        let response = soon("the trail so far", stream.message()).await.unwrap().unwrap();
        seen.extend(response.records);
        if response.caught_up {
            break;
        }
    }
    assert_eq!(seen.iter().map(|record| record.action.as_str()).collect::<Vec<_>>(), ["token.create", "catalog.apply"]);
    let mut ids = Vec::new();
    for _ in 0..3 {
        ids.push(format!("execution/{}", house.execute("refund").await));
        let response = soon("what is new", stream.message()).await.unwrap().unwrap();
        assert_eq!(response.records.iter().map(|record| &record.object).collect::<Vec<_>>(), [&ids[ids.len() - 1]]);
        seen.extend(response.records);
    }
    drop(stream);

    // Taken up again after the first of the three, at the other controller.
    let mut stream = open(&house.admin().await, follow(seen[2].position.clone())).await;
    let response = soon("the rest", stream.message()).await.unwrap().unwrap();
    assert_eq!(response.records.iter().map(|record| &record.object).collect::<Vec<_>>(), [&ids[1], &ids[2]]);
    assert!(soon("its end", stream.message()).await.unwrap().unwrap().caught_up);

    // Since a time, and not before it.
    let since = |since| v1::ReadAuditRequest { since: Some(to_timestamp(since)), follow: false, after: None };
    let now = octavius_core::Timestamp::now();
    let mut stream = open(&there, since(now + Duration::from_secs(60))).await;
    let end = soon("the end", stream.message()).await.unwrap().unwrap();
    assert!(end.records.is_empty() && end.caught_up);
    let mut stream = open(&there, since(now - Duration::from_secs(3600))).await;
    assert_eq!(soon("all", stream.message()).await.unwrap().unwrap().records.len(), 5);
    let wrong = v1::AuditPosition { revision: 1, id: "no id".into() };
    let fault = told(&there.admin().read_audit(follow(Some(wrong))).await.unwrap_err());
    assert_eq!((fault.code, fault.violations[0].field.as_str()), (Code::InvalidArgument, "after.id"));
    neighbour.stop().await;
}

fn often() -> Timing {
    Timing { keep_interval: Duration::from_millis(50), ..timing() }
}

/// An hour long past.
const LONG_AGO: u64 = 5;

async fn entries(store: &dyn Store) -> Vec<octavius_store::Entry> {
    store.range(&Range::of(key::audit(), 1000)).await.unwrap().entries
}

/// Makes what is in the trail appear to have been there for long.
async fn age(house: &House) {
    for entry in entries(&**house.store()).await {
        let (hour, id) = key::audited_of(&entry.key).unwrap();
        if hour > LONG_AGO {
            let moved = Txn::new().unchanged(&entry).delete(entry.key.clone());
            house.store().commit(moved.put(key::audited(LONG_AGO, id), entry.value)).await.unwrap();
        }
    }
}

async fn until_nothing_old_is_left(house: &House) {
    eventually("what is old to be removed", async || {
        let entries = entries(&**house.store()).await;
        let old = entries.iter().filter(|entry| key::audited_of(&entry.key).unwrap().0 == LONG_AGO).count();
        if old == 0 { Ok(()) } else { Err(format!("{old} are left")) }
    })
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_is_old_is_removed_and_what_is_not_stays() {
    let house = House::with(often()).await;
    house.apply(&[REFUND]).await;
    age(&house).await;
    let id = house.execute("refund").await;
    until_nothing_old_is_left(&house).await;
    assert_eq!(trail(&house).await.iter().map(short).collect::<Vec<_>>(), [format!("admin execution.submit execution/{id}")]);
}

fn exported(folder: &Path) -> Vec<String> {
    let Ok(files) = std::fs::read_dir(folder) else { return Vec::new() };
    let mut files: Vec<_> = files.map(|file| file.unwrap().path()).filter(|path| path.extension().is_some()).collect();
    files.sort();
    let text: String = files.iter().map(|file| std::fs::read_to_string(file).unwrap()).collect();
    let lines = text.lines().map(|line| serde_json::from_str::<serde_json::Value>(line).unwrap());
    lines.map(|line| format!("{} {}", line["action"].as_str().unwrap(), line["object"].as_str().unwrap())).collect()
}

/// Everything was there for long when the export was configured, and the first exports fail.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_is_old_is_exported_before_it_goes() {
    let out = tempfile::tempdir().unwrap();
    let for_ever = Retention { audit: Duration::from_secs(1_000_000 * 3600), ..Retention::default() };
    let mut house = House::keeping(often(), for_ever).await;
    house.apply(&[REFUND]).await;
    let id = house.execute("refund").await;
    age(&house).await;
    let before = entries(&**house.store()).await.len();
    house.stop().await;

    // A folder stands where the day's file is to be: today's, or tomorrow's.
    let now = octavius_core::Timestamp::now();
    let days = [now, now + Duration::from_secs(24 * 3600)].map(|at| format!("audit-{}.jsonl", at.strftime("%Y-%m-%d")));
    days.iter().for_each(|day| std::fs::create_dir(out.path().join(day)).unwrap());
    house.retention = Retention::default();
    house.audit_export = AuditExport::Folder(out.path().to_owned());
    house.start_again().await;
    let turn = async || house.store().get(&key::duty()).await.unwrap().unwrap().modified;
    for _ in 0..4 {
        let before = turn().await;
        eventually("another turn", async || if turn().await > before { Ok(()) } else { Err("none".to_owned()) }).await;
    }
    assert_eq!(entries(&**house.store()).await.len(), before, "what is in no file stays");

    days.iter().for_each(|day| std::fs::remove_dir(out.path().join(day)).unwrap());
    until_nothing_old_is_left(&house).await;
    let expected = ["token.create token/", "catalog.apply catalog/c", &format!("execution.submit execution/{id}")];
    let lines = exported(out.path());
    assert!(lines.len() == before && lines.iter().zip(expected).all(|(line, begins)| line.starts_with(begins)), "{lines:?}");

    // What comes later is appended, in its time.
    let second = house.execute("refund").await;
    eventually("the next export", async || match exported(out.path()).split_off(before).as_slice() {
        [line] if *line == format!("execution.submit execution/{second}") => Ok(()),
        other => Err(format!("{other:?}")),
    })
    .await;
}

/// What takes a right away, and what rescues what there is, is not held up because it cannot be noted.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_full_store_lets_rights_be_taken_away_and_a_backup_be_made() {
    let Gauged { house, percent, full, .. } = gauged().await;
    house.apply(&[REFUND]).await;
    let eve = house.token(Role::User, "eve", &[]).await;
    house.register("e").await;
    let mut reader = Reader::of(&house).await;
    percent.store(95, Ordering::SeqCst);
    full.store(true, Ordering::SeqCst);
    let admin = house.admin().await;
    admin.admin().revoke_token(v1::RevokeTokenRequest { id: eve.id }).await.unwrap();
    let request = v1::RevokeExecutorRequest { id: "e".into(), force: true };
    assert!(admin.executors().revoke_executor(request).await.unwrap().into_inner().was_registered);
    let mut backup = admin.admin().backup(v1::BackupRequest {}).await.unwrap().into_inner();
    while soon("a piece of a backup", backup.message()).await.unwrap().is_some() {}
    let tokens = admin.admin().list_tokens(v1::ListTokensRequest {}).await.unwrap().into_inner().tokens;
    assert!(tokens.iter().all(|token| token.user != "eve" && token.user != "e"), "{tokens:?}");
    assert_eq!(reader.new_records(&house).await, [], "there was no room for it");
}

#[tokio::test]
async fn a_controller_that_cannot_export_does_not_begin() {
    let out = tempfile::tempdir().unwrap();
    let file = out.path().join("file");
    std::fs::write(&file, "").unwrap();
    let house = House::open().await;
    let options = octavius_controller::ControllerOptions {
        audit_export: AuditExport::Folder(file.join("trail")),
        ..house.options(out.path().join("none"))
    };
    let error = octavius_controller::Controller::start(options).await.unwrap_err();
    assert!(error.to_string().starts_with("cannot write the audit trail to "), "{error}");
}
