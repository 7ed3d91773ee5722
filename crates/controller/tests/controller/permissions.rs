//! Who may do what, for every RPC there is, and what one is told who may not.

use octavius_proto::v1::{self, Role};
use octavius_proto::{DESCRIPTORS, Fault, reason};
use prost::Message as _;
use tonic::codegen::http::uri::PathAndQuery;
use tonic::transport::{Channel, Endpoint};
use tonic::{Code, Request, Status};
use tonic_prost::ProstCodec;

use crate::harness::{House, eventually, told};

const EVERYONE: &str = "viewer user applier admin executor registration";
const PEOPLE: &str = "viewer user applier admin";
const RUNNERS: &str = "user applier admin";
const APPLIERS: &str = "applier admin";

/// Every RPC, and who may call it. Written out once more: a change should be a decision.
const EXPECTED: &[(&str, &str)] = &[
    ("CatalogService/GetHead", APPLIERS),
    ("CatalogService/GetBuckets", APPLIERS),
    ("CatalogService/GetDefinitions", APPLIERS),
    ("CatalogService/Apply", APPLIERS),
    ("CatalogService/SetFrozen", APPLIERS),
    ("CatalogService/ListRevisions", PEOPLE),
    ("CatalogService/ListJobs", PEOPLE),
    ("CatalogService/GetJob", PEOPLE),
    ("ExecutionService/Execute", RUNNERS),
    ("ExecutionService/RerunExecution", RUNNERS),
    ("ExecutionService/GetExecution", PEOPLE),
    ("ExecutionService/ListExecutions", PEOPLE),
    ("ExecutionService/WatchExecution", PEOPLE),
    ("ExecutionService/CancelExecution", RUNNERS),
    ("ExecutionService/ApproveExecution", RUNNERS),
    ("ExecutionService/RejectExecution", RUNNERS),
    ("LogService/AppendLog", "executor"),
    ("LogService/ReadLog", PEOPLE),
    ("ExecutorService/RegisterExecutor", "registration"),
    ("ExecutorService/RotateToken", "executor"),
    ("ExecutorService/Session", "executor"),
    ("ExecutorService/ReportExecution", "executor"),
    ("ExecutorService/ListExecutors", PEOPLE),
    ("ExecutorService/GetExecutor", PEOPLE),
    ("ExecutorService/DrainExecutor", "admin"),
    ("ExecutorService/ResumeExecutor", "admin"),
    ("ExecutorService/RevokeExecutor", "admin"),
    ("AdminService/WhoAmI", EVERYONE),
    ("AdminService/CreateSession", PEOPLE),
    ("AdminService/EndSession", PEOPLE),
    ("AdminService/CreateToken", "admin"),
    ("AdminService/ListTokens", "admin"),
    ("AdminService/RevokeToken", "admin"),
    ("AdminService/PauseJobs", "admin"),
    ("AdminService/UnpauseJobs", "admin"),
    ("AdminService/Backup", "admin"),
    ("AdminService/ReadAudit", "admin"),
    ("AdminService/GetController", "admin"),
    ("AdminService/ListWebhooks", "admin"),
    ("AdminService/ListDeliveries", "admin"),
    ("AdminService/RetryDeliveries", "admin"),
    ("AdminService/TestWebhook", "admin"),
];

pub(crate) async fn channel(house: &House) -> Channel {
    Endpoint::from_shared(format!("http://{}", house.address)).unwrap().connect().await.unwrap()
}

/// Calls any RPC with an empty message, whatever kind of RPC it is.
pub(crate) async fn call(channel: &Channel, path: &str, authorization: Option<&str>) -> Result<(), Status> {
    let mut client = tonic::client::Grpc::new(channel.clone());
    client.ready().await.map_err(|error| Status::unknown(error.to_string()))?;
    let mut request = Request::new(futures::stream::iter([()]));
    if let Some(value) = authorization {
        request.metadata_mut().insert("authorization", value.parse().unwrap());
    }
    let path: PathAndQuery = path.parse().unwrap();
    let response = client.streaming::<_, (), (), _>(request, path, ProstCodec::default()).await?;
    response.into_inner().message().await.map(drop)
}

fn rpcs() -> Vec<String> {
    let descriptors = prost_types::FileDescriptorSet::decode(DESCRIPTORS).unwrap();
    let files = descriptors.file.into_iter().filter(|file| file.package() == "octavius.v1");
    let services = files.flat_map(|file| file.service);
    services.flat_map(|s| s.method.iter().map(|m| format!("{}/{}", s.name(), m.name())).collect::<Vec<_>>()).collect()
}

#[tokio::test]
async fn each_role_may_call_exactly_what_is_its_to_call() {
    let house = House::open().await;
    let channel = channel(&house).await;
    let mut tokens = Vec::new();
    for (name, role) in [
        ("viewer", Role::Viewer),
        ("user", Role::User),
        ("applier", Role::Applier),
        ("admin", Role::Admin),
        ("registration", Role::Registration),
    ] {
        tokens.push((name, house.token(role, name, &[]).await.token));
    }
    tokens.push(("executor", house.register("executor").await));

    let rpcs = rpcs();
    assert_eq!(rpcs.len(), EXPECTED.len(), "an RPC without an expectation: {rpcs:?}");
    for rpc in rpcs {
        let (_, allowed) = EXPECTED.iter().find(|(known, _)| *known == rpc).unwrap_or_else(|| panic!("{rpc}: who may call it?"));
        for (role, token) in &tokens {
            let answer = call(&channel, &format!("/octavius.v1.{rpc}"), Some(&format!("Bearer {token}"))).await;
            let fault = answer.err().map(|status| told(&status));
            let refused = fault.as_ref().is_some_and(|fault| fault.code == Code::PermissionDenied);
            assert_eq!(refused, !allowed.split(' ').any(|one| one == *role), "{role} calls {rpc}: {fault:?}");
            if let Some(fault) = fault {
                assert_ne!(fault.code, Code::Unauthenticated, "{role} calls {rpc}");
                assert_ne!(fault.code, Code::Internal, "{role} calls {rpc} with an empty message: {fault:?}");
                assert!(!refused || fault.reason == reason::NOT_PERMITTED, "{fault:?}");
            }
        }
    }
}

#[tokio::test]
async fn whatever_is_wrong_with_a_token_the_answer_is_the_same() {
    let house = House::open().await;
    let channel = channel(&house).await;
    let good = house.token(Role::User, "ann", &[]).await.token;
    let revoked = house.token(Role::User, "bob", &[]).await;
    let short = v1::CreateTokenRequest {
        role: Role::User.into(),
        user: "eve".into(),
        groups: vec![],
        lifetime: Some(prost_types::Duration { seconds: 0, nanos: 1_000_000 }),
        ..Default::default()
    };
    let admin = house.admin().await;
    let expired = admin.admin().create_token(short).await.unwrap().into_inner().token;
    admin.admin().revoke_token(v1::RevokeTokenRequest { id: revoked.id.clone() }).await.unwrap();
    admin.admin().revoke_token(v1::RevokeTokenRequest { id: revoked.id }).await.unwrap_err();
    let elsewhere = House::open().await.token;

    let flipped = |position: usize| {
        let mut bytes = good.clone().into_bytes();
        bytes[position] = if bytes[position] == b'7' { b'8' } else { b'7' };
        format!("Bearer {}", String::from_utf8(bytes).unwrap())
    };
    let wrong_kind = format!("Bearer octe_{}", good.strip_prefix("octu_").unwrap());
    let wrong = [
        ("none", None),
        ("empty", Some(String::new())),
        ("no scheme", Some(good.clone())),
        ("another scheme", Some(format!("Basic {good}"))),
        ("malformed", Some("Bearer octu_short".to_owned())),
        ("a flipped character", Some(flipped(9))),
        ("a flipped checksum", Some(flipped(good.len() - 1))),
        ("cut", Some(format!("Bearer {}", &good[..good.len() - 1]))),
        ("another kind", Some(wrong_kind)),
        ("revoked", Some(format!("Bearer {}", revoked.token))),
        ("expired", Some(format!("Bearer {expired}"))),
        ("another controller's", Some(format!("Bearer {elsewhere}"))),
    ];
    for path in ["/octavius.v1.AdminService/WhoAmI", "/octavius.v1.AdminService/ListTokens", "/octavius.v1.NoService/Nothing"] {
        let mut answers: Vec<(Fault, String)> = Vec::new();
        for (what, authorization) in &wrong {
            // The clock has to pass the end of a token's life.
            eventually(&format!("{what} to be refused"), async || match call(&channel, path, authorization.as_deref()).await {
                Err(status) if status.code() == Code::Unauthenticated => {
                    answers.push((told(&status), format!("{:?}", status.details())));
                    Ok(())
                }
                other => Err(format!("{other:?}")),
            })
            .await;
        }
        assert!(answers.windows(2).all(|pair| pair[0] == pair[1]), "answers differ, and tell an attacker why: {answers:?}");
        assert_eq!(answers[0].0.reason, reason::UNAUTHENTICATED);
    }
    call(&channel, "/octavius.v1.AdminService/WhoAmI", Some(&format!("Bearer {good}"))).await.unwrap();
}

#[tokio::test]
async fn health_and_reflection_need_no_token() {
    let house = House::open().await;
    let channel = channel(&house).await;
    call(&channel, "/grpc.health.v1.Health/Check", None).await.unwrap();
    let reflection = call(&channel, "/grpc.reflection.v1.ServerReflection/ServerReflectionInfo", None).await;
    assert!(reflection.as_ref().map_or_else(|status| status.code() != Code::Unauthenticated, |()| true), "{reflection:?}");
}

#[tokio::test]
async fn tokens_are_listed_without_themselves_and_names_that_are_none_are_refused() {
    let house = House::open().await;
    let made = house.token(Role::Executor, "vpc-a", &[]).await;
    assert!(made.token.starts_with("octr_"), "who asks for an executor's token gets one to register with");
    let admin = house.admin().await;
    let listed = admin.admin().list_tokens(v1::ListTokensRequest {}).await.unwrap().into_inner().tokens;
    assert_eq!(listed.iter().map(|token| token.user.as_str()).collect::<Vec<_>>(), ["admin", "vpc-a"], "oldest first");
    assert!(!format!("{listed:?}").contains(&made.token[5..]), "a token is shown once");

    let wrong = |user: &str, role: Role, seconds: i64| v1::CreateTokenRequest {
        role: role.into(),
        user: user.to_owned(),
        groups: vec![],
        lifetime: Some(prost_types::Duration { seconds, nanos: 0 }),
        ..Default::default()
    };
    for (request, field) in [
        (wrong("", Role::User, 60), "user"),
        (wrong("a\nb", Role::User, 60), "user"),
        (wrong(&"x".repeat(129), Role::User, 60), "user"),
        (wrong("ann", Role::Unspecified, 60), "role"),
        (wrong("ann", Role::User, 0), "lifetime"),
        (wrong("ann", Role::User, -1), "lifetime"),
        (wrong("ann", Role::User, i64::MAX), "lifetime"),
        (v1::CreateTokenRequest { groups: vec!["g".into(); 65], ..wrong("ann", Role::User, 60) }, "groups"),
        (v1::CreateTokenRequest { role: 99, ..wrong("ann", Role::User, 60) }, "role"),
        (v1::CreateTokenRequest { catalogs: vec!["c".into()], ..wrong("ann", Role::User, 60) }, "catalogs"),
        (v1::CreateTokenRequest { catalogs: vec!["a/b".into()], ..wrong("ci", Role::Applier, 60) }, "catalogs"),
        (v1::CreateTokenRequest { catalogs: vec!["c".into(); 65], ..wrong("ci", Role::Applier, 60) }, "catalogs"),
        (v1::CreateTokenRequest { uses: 1, ..wrong("ann", Role::User, 60) }, "uses"),
        (v1::CreateTokenRequest { uses: 10_001, ..wrong("operator", Role::Registration, 60) }, "uses"),
    ] {
        let fault = told(&admin.admin().create_token(request.clone()).await.expect_err(field));
        assert_eq!((fault.code, fault.violations[0].field.as_str()), (Code::InvalidArgument, field), "{request:?}");
    }
}
