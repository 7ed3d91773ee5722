//! The same run again: the job of now, the arguments of then.

use futures::future::join_all;
use octavius_proto::v1::{self, Role};
use octavius_proto::{reason, to_duration};
use tonic::Code;

use crate::fake::{Fake, hello};
use crate::harness::{House, cancel, digest, execute, get, rerun_request, send_rerun};

const REFUND: &str = r#"{"name":"refund","command":["true"],"env_vars":{"args":[
    {"name":"order","required":true,"pattern":"^A-[0-9]+$"},{"name":"count","type":"integer","default":1},
    {"name":"card","sensitive":true}]}}"#;

#[tokio::test]
async fn the_job_of_now_runs_with_the_arguments_of_then() {
    let house = House::open().await;
    house.apply(&[REFUND]).await;
    let ann = house.person(Role::User, "ann", &[]).await;
    let source = execute(&ann, "refund", &[("order", "A-1"), ("card", "4111-1111")]).await.unwrap();
    let changed = REFUND.replace("\"true\"", "\"false\"").replace("\"default\":1", "\"default\":2");
    let revision = house.apply(&[&changed]).await.number;

    let id = send_rerun(&ann, rerun_request(&source)).await.unwrap();
    let again = get(&ann, &id).await;
    assert_eq!((again.rerun_of.as_str(), again.user.as_str(), again.revision), (source.as_str(), "ann", revision));
    assert_eq!(again.definition, digest(&changed).as_bytes().to_vec());
    assert_eq!((again.arguments["order"].as_str(), again.arguments["count"].as_str()), ("A-1", "1"));
    assert_eq!(again.arguments["card"], "********");
    assert_eq!(get(&ann, &source).await.rerun_of, "");
    // Of a rerun, and of what `@latest` means.
    let third = send_rerun(&ann, rerun_request("@latest")).await.unwrap();
    assert_eq!(get(&ann, &third).await.rerun_of, id);

    // The sensitive value has reached the job, and nobody had to know it.
    cancel(&ann, &source).await;
    let mut session = Fake::register(&house, "e").await.session(hello(1)).await.unwrap();
    let assignment = session.assignment().await;
    assert_eq!((assignment.id.as_str(), assignment.arguments["card"].as_str()), (id.as_str(), "4111-1111"));
}

#[tokio::test]
async fn a_rerun_repeated_is_one_execution() {
    let house = House::open().await;
    house.apply(&[REFUND]).await;
    let ann = house.person(Role::User, "ann", &[]).await;
    let source = execute(&ann, "refund", &[("order", "A-1")]).await.unwrap();
    let asked = rerun_request(&source[20..]);
    let answers = join_all((0..10).map(|_| send_rerun(&ann, asked.clone()))).await;
    assert!(answers.iter().all(|answer| answer.as_ref() == Ok(&asked.id)), "{answers:?}");
    // What is the latest by now is what the first call has made; it was not that which was meant.
    let latest = rerun_request("@latest");
    let made = send_rerun(&ann, latest.clone()).await.unwrap();
    assert_eq!(send_rerun(&ann, latest).await.as_ref(), Ok(&made));
    assert_eq!(get(&ann, &made).await.rerun_of, asked.id);
    let keyed = || v1::RerunExecutionRequest { idempotency_key: "nightly".into(), ..rerun_request("@latest") };
    let first = send_rerun(&ann, keyed()).await.unwrap();
    assert_eq!(send_rerun(&ann, keyed()).await, Ok(first.clone()));
    assert_eq!(get(&ann, &first).await.rerun_of, made);

    let other = v1::RerunExecutionRequest { source: source.clone(), ..keyed() };
    let fault = send_rerun(&ann, other).await.unwrap_err();
    assert_eq!((fault.code, fault.reason.as_str()), (Code::AlreadyExists, reason::KEY_REUSED), "another source");
    let longer = v1::RerunExecutionRequest { timeout: Some(to_duration(std::time::Duration::from_secs(9))), ..asked.clone() };
    assert_eq!(send_rerun(&ann, longer).await.unwrap_err().reason, reason::ID_TAKEN);
    let of_another = v1::RerunExecutionRequest { source: first, ..asked.clone() };
    assert_eq!(send_rerun(&ann, of_another).await.unwrap_err().reason, reason::ID_TAKEN);
    // An execution that was no rerun is not taken for one.
    let taken = v1::RerunExecutionRequest { id: source.clone(), source: source.clone(), ..Default::default() };
    assert_eq!(send_rerun(&ann, taken).await.unwrap_err().reason, reason::ID_TAKEN);
    let bob = house.person(Role::User, "bob", &[]).await;
    assert_eq!(send_rerun(&bob, asked).await.unwrap_err().reason, reason::ID_TAKEN, "an id is one user's");
}

#[tokio::test]
async fn what_does_not_fit_the_job_of_now_is_told_all_at_once() {
    let house = House::open().await;
    house.apply(&[REFUND]).await;
    let admin = house.admin().await;
    let source = execute(&admin, "refund", &[("order", "A-1"), ("card", "4111-1111")]).await.unwrap();
    let stricter = r#"{"name":"refund","command":["true"],"env_vars":{"args":[
        {"name":"order","pattern":"B-[0-9]+"},{"name":"card"},{"name":"who","required":true}]}}"#;
    house.apply(&[stricter]).await;
    let fault = send_rerun(&admin, rerun_request(&source)).await.unwrap_err();
    assert_eq!((fault.code, fault.reason.as_str()), (Code::InvalidArgument, reason::INVALID_ARGUMENTS));
    let fields: Vec<_> = fault.violations.iter().map(|violation| violation.field.as_str()).collect();
    assert_eq!(fields, ["card", "order", "who"], "{fault:?}");
    assert!(!format!("{fault:?}").contains("4111"), "{fault:?}");
    // Where the job is gone, so is what could run.
    let gone = v1::ApplyHeader { remove: vec!["refund".into()], ..crate::harness::header("c", 2, &[]) };
    crate::harness::apply(&admin, gone, &[]).await.unwrap();
    assert_eq!(send_rerun(&admin, rerun_request(&source)).await.unwrap_err().reason, reason::JOB_NOT_FOUND);
}

#[tokio::test]
async fn anothers_sensitive_arguments_are_not_to_be_had_by_running_it_again() {
    let house = House::open().await;
    let hidden = r#"{"name":"vip","command":["true"],"authorized_groups":["support"]}"#;
    house.apply(&[REFUND, hidden]).await;
    let ann = house.person(Role::User, "ann", &["support"]).await;
    let bob = house.person(Role::User, "bob", &[]).await;
    let viewer = house.person(Role::Viewer, "eve", &["support"]).await;
    let plain = execute(&ann, "refund", &[("order", "A-1")]).await.unwrap();
    let secret = execute(&ann, "refund", &[("order", "A-2"), ("card", "4111-1111")]).await.unwrap();
    let vip = execute(&ann, "vip", &[]).await.unwrap();

    let id = send_rerun(&bob, rerun_request(&plain)).await.unwrap();
    let again = get(&bob, &id).await;
    assert_eq!((again.user.as_str(), again.rerun_of.as_str()), ("bob", plain.as_str()));
    let fault = send_rerun(&bob, rerun_request(&secret)).await.unwrap_err();
    assert_eq!((fault.code, fault.reason.as_str()), (Code::PermissionDenied, reason::NOT_PERMITTED));
    assert!(fault.message.contains("(card)") && fault.message.contains("ann's"), "{fault:?}");
    assert!(!format!("{fault:?}").contains("4111"), "{fault:?}");
    assert_eq!(send_rerun(&bob, rerun_request(&vip)).await.unwrap_err().reason, reason::EXECUTION_NOT_FOUND);
    assert_eq!(send_rerun(&viewer, rerun_request(&plain)).await.unwrap_err().code, Code::PermissionDenied);

    let admin = house.admin().await;
    let id = send_rerun(&admin, rerun_request(&secret)).await.unwrap();
    assert_eq!(get(&admin, &id).await.arguments["card"], "********");
    // Large arguments lie beside their record; they are found again all the same.
    let names: Vec<String> = (0..4).map(|n| format!(r#"{{"name":"a{n}"}}"#)).collect();
    house.apply(&[&format!(r#"{{"name":"large","command":["true"],"env_vars":{{"args":[{}]}}}}"#, names.join(","))]).await;
    let value = "x".repeat(20_000);
    let given: Vec<(String, &str)> = (0..4).map(|n| (format!("a{n}"), value.as_str())).collect();
    let given: Vec<(&str, &str)> = given.iter().map(|(name, value)| (name.as_str(), *value)).collect();
    let large = execute(&ann, "large", &given).await.unwrap();
    let id = send_rerun(&bob, rerun_request(&large)).await.unwrap();
    assert_eq!(get(&bob, &id).await.arguments["a3"], value);
}
