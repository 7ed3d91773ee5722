//! Asking for runs: what is refused and why, and that a call repeated is one execution.

use futures::future::join_all;
use octavius_core::ExecutionId;
use octavius_proto::client::Connection;
use octavius_proto::v1::{self, ExecutionState, Role};
use octavius_proto::{reason, to_duration};
use tonic::Code;

use crate::fake::{Fake, hello};
use crate::harness::{House, cancel, execute, get, header, request, send, told};

const REFUND: &str = r#"{"name":"refund","command":["true"],"env_vars":{"args":[
    {"name":"order","required":true,"pattern":"^A-[0-9]+$"},{"name":"count","type":"integer","default":1},
    {"name":"card","sensitive":true},{"name":"note"}]}}"#;

async fn list(connection: &Connection, request: v1::ListExecutionsRequest) -> v1::ListExecutionsResponse {
    connection.executions().list_executions(request).await.unwrap().into_inner()
}

fn everyone() -> v1::ListExecutionsRequest {
    v1::ListExecutionsRequest { all: true, ..Default::default() }
}

#[tokio::test]
async fn a_call_repeated_is_one_execution() {
    let house = House::open().await;
    house.apply(&[REFUND]).await;
    let ann = house.person(Role::User, "ann", &[]).await;
    let asked = request("refund", &[("order", "A-1")]);
    let answers = join_all((0..20).map(|_| send(&ann, asked.clone()))).await;
    assert!(answers.iter().all(|answer| answer.as_ref() == Ok(&asked.id)), "{answers:?}");
    // Written differently, meant the same.
    let same = v1::ExecuteRequest { job: "REFUND".into(), ..asked.clone() };
    assert_eq!(send(&ann, same).await.as_ref(), Ok(&asked.id));
    assert_eq!(list(&ann, everyone()).await.executions.len(), 1);

    let others = [
        v1::ExecuteRequest { arguments: [("order".to_owned(), "A-2".to_owned())].into(), ..asked.clone() },
        v1::ExecuteRequest { timeout: Some(to_duration(std::time::Duration::from_secs(5))), ..asked.clone() },
    ];
    for other in others {
        let fault = send(&ann, other).await.unwrap_err();
        assert_eq!((fault.code, fault.reason.as_str()), (Code::AlreadyExists, reason::ID_TAKEN));
    }
    let bob = house.person(Role::User, "bob", &[]).await;
    assert_eq!(send(&bob, asked.clone()).await.unwrap_err().reason, reason::ID_TAKEN);

    // The answer to a repeated call does not hang on what the catalogue says by now: other defaults, or no such job.
    let changed = REFUND.replace("\"default\":1", "\"default\":2");
    house.apply(&[&changed]).await;
    assert_eq!(send(&ann, asked.clone()).await.as_ref(), Ok(&asked.id));
    let gone = v1::ApplyHeader { remove: vec!["refund".into()], ..header("c", 2, &[]) };
    crate::harness::apply(&house.admin().await, gone, &[]).await.unwrap();
    assert_eq!(send(&ann, asked.clone()).await.as_ref(), Ok(&asked.id));
    assert_eq!(execute(&ann, "refund", &[("order", "A-1")]).await.unwrap_err().reason, reason::JOB_NOT_FOUND);
    assert_eq!(get(&ann, &asked.id).await.arguments["count"], "1", "what was accepted stays as it was");
}

#[tokio::test]
async fn an_idempotency_key_answers_with_its_first_execution() {
    let house = House::open().await;
    house.apply(&[REFUND]).await;
    let ann = house.person(Role::User, "ann", &[]).await;
    let keyed =
        |order: &str| v1::ExecuteRequest { idempotency_key: "Refund of A-1".into(), ..request("refund", &[("order", order)]) };
    let answers = join_all((0..20).map(|_| send(&ann, keyed("A-1")))).await;
    let first = answers[0].clone().unwrap();
    assert!(answers.iter().all(|answer| answer.as_ref() == Ok(&first)), "{answers:?}");
    let fault = send(&ann, keyed("A-2")).await.unwrap_err();
    assert_eq!(
        (fault.code, fault.reason.as_str(), fault.fact("id")),
        (Code::AlreadyExists, reason::KEY_REUSED, Some(first.as_str()))
    );
    house.apply(&[&REFUND.replace("\"default\":1", "\"default\":2")]).await;
    assert_eq!(send(&ann, keyed("A-1")).await, Ok(first.clone()));
    assert_eq!(list(&ann, everyone()).await.executions.len(), 1);
    // Keys are one's own.
    let bob = house.person(Role::User, "bob", &[]).await;
    assert_ne!(send(&bob, keyed("A-1")).await.unwrap(), first);
}

#[tokio::test]
async fn all_that_is_wrong_with_arguments_is_told_by_name_at_once() {
    let house = House::open().await;
    house.apply(&[REFUND]).await;
    let ann = house.person(Role::User, "ann", &[]).await;
    let given = [("order", "B-1"), ("count", "many"), ("nte", "x"), ("card", "\0")];
    let fault = execute(&ann, "refund", &given).await.unwrap_err();
    assert_eq!((fault.code, fault.reason.as_str()), (Code::InvalidArgument, reason::INVALID_ARGUMENTS));
    let fields: Vec<_> = fault.violations.iter().map(|violation| violation.field.as_str()).collect();
    assert_eq!(fields, ["order", "count", "card", "nte"]);
    assert!(fault.violations[3].description.contains("did you mean `note`"), "{fault:?}");

    let long = "x".repeat(33 * 1024);
    let fault = execute(&ann, "refund", &[("order", "A-1"), ("note", &long)]).await.unwrap_err();
    assert!(fault.violations[0].description.contains("at most 32768"), "{fault:?}");
    // A flood of names is refused like any other, and quickly.
    let flood: Vec<(String, String)> = (0..2000).map(|n| (format!("{n}{}", "y".repeat(1000)), String::new())).collect();
    let flood: Vec<(&str, &str)> = flood.iter().map(|(k, v)| (k.as_str(), v.as_str())).collect();
    let fault = execute(&ann, "refund", &flood).await.unwrap_err();
    assert_eq!((fault.code, fault.reason.as_str()), (Code::InvalidArgument, reason::INVALID_ARGUMENTS), "{fault:?}");
}

/// The limits promise 256 KiB of arguments; a store's value holds 64.
#[tokio::test]
async fn arguments_larger_than_a_record_reach_the_job_whole() {
    let house = House::open().await;
    let names: Vec<String> = (0..10).map(|n| format!(r#"{{"name":"a{n}"}}"#)).collect();
    let job = format!(r#"{{"name":"large","command":["true"],"env_vars":{{"args":[{}]}}}}"#, names.join(","));
    house.apply(&[&job]).await;
    let admin = house.admin().await;
    let value = "\"\u{1}".repeat(12_000);
    let given: Vec<(String, &str)> = (0..10).map(|n| (format!("a{n}"), value.as_str())).collect();
    let given: Vec<(&str, &str)> = given.iter().map(|(k, v)| (k.as_str(), *v)).collect();
    let asked = request("large", &given);
    let id = send(&admin, asked.clone()).await.unwrap();
    assert_eq!(send(&admin, asked).await, Ok(id.clone()), "repeated");
    assert_eq!(get(&admin, &id).await.arguments["a9"], value);
    let fake = Fake::register(&house, "e").await;
    let mut session = fake.session(hello(1)).await.unwrap();
    let assignment = session.assignment().await;
    assert!(assignment.arguments.len() == 10 && assignment.arguments.values().all(|given| *given == value));
    fake.completes(&assignment, b"").await;
    let over: Vec<(&str, &str)> = given.iter().map(|(name, _)| (*name, "")).collect();
    let big = "x".repeat(32 * 1024);
    let over: Vec<(&str, &str)> = over.into_iter().map(|(name, _)| (name, big.as_str())).collect();
    let fault = execute(&admin, "large", &over).await.unwrap_err();
    assert!(fault.violations[0].description.contains("in all"), "{fault:?}");
}

#[tokio::test]
async fn a_job_for_others_is_not_there_for_one() {
    let house = House::open().await;
    let secret = r#"{"name":"refund-vip","command":["true"],"authorized_groups":["support"]}"#;
    house.apply(&[secret, REFUND, r#"{"name":"backup","command":["true"]}"#]).await;
    let bob = house.person(Role::User, "bob", &["ops"]).await;
    let sue = house.person(Role::User, "sue", &["ops", "support"]).await;

    let fault = execute(&bob, "bakcup", &[]).await.unwrap_err();
    assert_eq!(
        (fault.code, fault.reason.as_str(), fault.fact("nearest")),
        (Code::NotFound, reason::JOB_NOT_FOUND, Some("backup"))
    );
    let names = async |who: &Connection| {
        let jobs = who.catalog().list_jobs(v1::ListJobsRequest::default()).await.unwrap().into_inner().jobs;
        jobs.into_iter().map(|job| job.name).collect::<Vec<_>>()
    };
    assert_eq!(names(&bob).await, ["backup", "refund"]);
    assert_eq!(names(&sue).await, ["backup", "refund", "refund-vip"]);
    let never = execute(&bob, "refund-vup", &[]).await.unwrap_err();
    assert_ne!(never.fact("nearest"), Some("refund-vip"), "its name is not told");
    // Whether the job is for others or not there at all cannot be told apart.
    let hidden = execute(&bob, "refund-vip", &[]).await.unwrap_err();
    assert_eq!((hidden.reason.as_str(), hidden.message.as_str()), (reason::JOB_NOT_FOUND, "no job \"refund-vip\""));
    let described = bob.catalog().get_job(v1::GetJobRequest { name: "refund-vip".into() }).await.unwrap_err();
    assert_eq!(told(&described).reason, reason::JOB_NOT_FOUND);

    let id = execute(&sue, "refund-vip", &[]).await.unwrap();
    assert_eq!(get(&sue, &id).await.user, "sue");
    let short = id[20..].to_owned();
    for text in [id.clone(), short.clone()] {
        let unseen = bob.executions().get_execution(v1::GetExecutionRequest { id: text.clone() }).await.unwrap_err();
        assert_eq!(told(&unseen).reason, reason::EXECUTION_NOT_FOUND);
        let uncancelled = bob.executions().cancel_execution(v1::CancelExecutionRequest { id: text.clone() }).await.unwrap_err();
        assert_eq!(told(&uncancelled).reason, reason::EXECUTION_NOT_FOUND);
        let unread = bob.logs().read_log(v1::ReadLogRequest { id: text, ..Default::default() }).await.unwrap_err();
        assert_eq!(told(&unread).reason, reason::EXECUTION_NOT_FOUND);
    }
    assert_eq!(list(&bob, everyone()).await.executions, []);
    assert_eq!(get(&sue, &short).await.id, id);
    assert_eq!(get(&sue, "@latest").await.id, id);
    assert_eq!(get(&house.admin().await, &id).await.id, id);
}

#[tokio::test]
async fn a_sensitive_value_reaches_the_job_and_nobody_else() {
    let house = House::open().await;
    house.apply(&[REFUND]).await;
    let ann = house.person(Role::User, "ann", &[]).await;
    let id = execute(&ann, "refund", &[("order", "A-1"), ("card", "4111-1111")]).await.unwrap();
    let shown = get(&ann, &id).await;
    assert_eq!((shown.arguments["card"].as_str(), shown.arguments["order"].as_str()), ("********", "A-1"));
    let mut watch = ann.executions().watch_execution(v1::WatchExecutionRequest { id: id.clone() }).await.unwrap().into_inner();
    let seen = watch.message().await.unwrap().unwrap();
    let listed = list(&ann, everyone()).await;
    let cancelled =
        cancel(&house.admin().await, &execute(&ann, "refund", &[("order", "A-1"), ("card", "4111-1111")]).await.unwrap()).await;
    for text in [format!("{seen:?}"), format!("{listed:?}"), format!("{cancelled:?}")] {
        assert!(!text.contains("4111-1111"), "{text}");
    }
    let fault = execute(&ann, "refund", &[("order", "A-1"), ("card", &"4111-1111".repeat(4000))]).await.unwrap_err();
    assert!(!format!("{fault:?}").contains("4111-1111"), "{fault:?}");
    let mut session = Fake::register(&house, "e").await.session(hello(1)).await.unwrap();
    assert_eq!(session.assignment().await.arguments["card"], "4111-1111");
}

#[tokio::test]
async fn lists_are_newest_first_in_pages_by_user_job_state_and_time() {
    let house = House::open().await;
    house.apply(&[REFUND, r#"{"name":"backup","command":["true"]}"#]).await;
    let ann = house.person(Role::User, "ann", &[]).await;
    let bob = house.person(Role::User, "b/o b", &[]).await;
    let mut ids = Vec::new();
    for n in 0..6 {
        let who = if n % 2 == 0 { &ann } else { &bob };
        ids.push(
            execute(who, if n < 3 { "backup" } else { "refund" }, if n < 3 { &[] } else { &[("order", "A-1")] }).await.unwrap(),
        );
    }
    cancel(&ann, &ids[0]).await;
    let of = |response: v1::ListExecutionsResponse| -> Vec<usize> {
        response.executions.iter().map(|execution| ids.iter().position(|id| *id == execution.id).unwrap()).collect()
    };
    assert_eq!(of(list(&ann, everyone()).await), [5, 4, 3, 2, 1, 0]);
    assert_eq!(of(list(&bob, v1::ListExecutionsRequest::default()).await), [5, 3, 1], "one's own");
    assert_eq!(of(list(&ann, v1::ListExecutionsRequest { user: "b/o b".into(), ..Default::default() }).await), [5, 3, 1]);
    assert_eq!(
        of(list(&ann, v1::ListExecutionsRequest { job: "BACKUP".into(), all: true, ..Default::default() }).await),
        [2, 1, 0]
    );
    let cancelled = v1::ListExecutionsRequest { states: vec![ExecutionState::Cancelled.into()], ..everyone() };
    assert_eq!(of(list(&ann, cancelled).await), [0]);
    for filter in [everyone(), v1::ListExecutionsRequest { user: "ann".into(), ..Default::default() }] {
        let whole = of(list(&ann, filter.clone()).await);
        let (mut pages, mut token, mut calls) = (Vec::new(), String::new(), 0);
        loop {
            let page = list(&ann, v1::ListExecutionsRequest { limit: 3, page_token: token, ..filter.clone() }).await;
            token = page.next_page_token.clone();
            pages.extend(of(page));
            calls += 1;
            if token.is_empty() {
                break;
            }
        }
        assert_eq!((pages, calls), (whole.clone(), whole.len() / 3), "no empty page at the end");
    }
    // Someone whose clock is an hour fast does not hide what came after.
    let fast = ExecutionId::from_bits(bits_in(3600));
    let mut asked = request("backup", &[]);
    asked.id = fast.to_string();
    send(&ann, asked).await.unwrap();
    let since = get(&ann, &ids[4]).await.created_at;
    let recent = list(&ann, v1::ListExecutionsRequest { since, ..everyone() }).await;
    assert_eq!(recent.executions.len(), 3, "{recent:?}");
    let nonsense = v1::ListExecutionsRequest { page_token: "nonsense".into(), ..everyone() };
    assert_eq!(told(&ann.executions().list_executions(nonsense).await.unwrap_err()).code, Code::InvalidArgument);
}

/// The bits of an id made so many seconds from now.
fn bits_in(seconds: i64) -> u128 {
    let now = octavius_core::Timestamp::now().as_millisecond();
    u128::try_from(now + seconds * 1000).unwrap() << 80 | 7 << 76 | 5
}

#[tokio::test]
async fn an_id_that_was_not_made_now_is_refused() {
    let house = House::open().await;
    house.apply(&[REFUND]).await;
    let admin = house.admin().await;
    for bits in [0, 1, u128::MAX, bits_in(-3 * 3600), bits_in(3 * 3600)] {
        let mut asked = request("refund", &[("order", "A-1")]);
        asked.id = ExecutionId::from_bits(bits).to_string();
        let fault = send(&admin, asked).await.unwrap_err();
        assert_eq!((fault.code, fault.violations[0].field.as_str()), (Code::InvalidArgument, "id"), "{bits:x}");
    }
}
