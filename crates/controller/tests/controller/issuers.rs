//! JSON Web Tokens of issuers that the configuration names: over the real RPCs, as GitHub Actions, GitLab CI and an identity provider
//! make them, and as somebody does who would like to be one of theirs.

use std::net::SocketAddr;

use octavius_controller::{Controller, ControllerOptions, IssuerConfig};
use octavius_proto::client::Connection;
use octavius_proto::v1::{self, AuditRecord, Role};
use octavius_proto::{Fault, reason};
use octavius_tests::jwt::{Issuer, Signer, hmac_token, seconds_from_now};
use serde_json::{Value, json};
use tonic::Code;

use crate::harness::{House, apply, connect, eventually, execute, head, header, soon, told};

const JOB: &str = r#"{"name":"j","command":["true"]}"#;

/// A controller that trusts these issuers, beside one of the house's that trusts none, on the same store.
struct Trusting {
    house: House,
    controller: Controller,
    address: SocketAddr,
}

impl Trusting {
    async fn open(issuers: &Value) -> Self {
        let house = House::open().await;
        let issuers = IssuerConfig::parse_all(issuers, std::path::Path::to_owned).unwrap();
        let options = ControllerOptions { issuers, ..house.options(house.dir().join("none")) };
        let controller = Controller::start(options).await.unwrap();
        let address = controller.address();
        Self { house, controller, address }
    }

    async fn connect(&self, token: &str) -> Connection {
        connect(self.address, Some(token)).await
    }

    async fn who(&self, token: &str) -> Result<v1::WhoAmIResponse, Fault> {
        let connection = self.connect(token).await;
        let answer = soon("an answer", connection.admin().who_am_i(v1::WhoAmIRequest {})).await;
        answer.map(tonic::Response::into_inner).map_err(|status| told(&status))
    }

    async fn trail(&self) -> Vec<AuditRecord> {
        let admin = self.house.admin().await;
        let mut stream = admin.admin().read_audit(v1::ReadAuditRequest::default()).await.unwrap().into_inner();
        let mut records = Vec::new();
        while let Some(response) = soon("a piece of the trail", stream.message()).await.unwrap() {
            records.extend(response.records);
        }
        records
    }
}

/// What a token of GitHub Actions says: <https://docs.github.com/en/actions/reference/security/oidc>.
fn github(issuer: &Issuer, over: Value) -> Value {
    claims(
        json!({
            "jti": "6d2b8b2b-1f7e-4f0a-9a35-3f8d5d2f8f8e",
            "sub": "repo:acme/jobs:environment:production",
            "aud": "octavius",
            "iss": issuer.url(),
            "ref": "refs/heads/main",
            "ref_type": "branch",
            "ref_protected": "true",
            "sha": "1f6b2c0d9f3d4e5a6b7c8d9e0f1a2b3c4d5e6f70",
            "repository": "acme/jobs",
            "repository_id": "74",
            "repository_owner": "acme",
            "repository_owner_id": "65",
            "repository_visibility": "private",
            "run_id": "30433642",
            "run_attempt": "1",
            "actor": "ann",
            "workflow": "octavius",
            "environment": "production",
            "event_name": "push",
            "job_workflow_ref": "acme/jobs/.github/workflows/octavius.yml@refs/heads/main",
            "runner_environment": "github-hosted",
            "iat": seconds_from_now(0),
            "nbf": seconds_from_now(-300),
            "exp": seconds_from_now(300),
        }),
        over,
    )
}

/// What a token of GitLab CI says: <https://docs.gitlab.com/ci/secrets/id_token_authentication/>.
fn gitlab(issuer: &Issuer, over: Value) -> Value {
    claims(
        json!({
            "namespace_id": "72",
            "namespace_path": "acme",
            "project_id": "20",
            "project_path": "acme/jobs",
            "user_id": "1",
            "user_login": "ann",
            "user_email": "ann@acme.com",
            "pipeline_id": "574",
            "pipeline_source": "push",
            "job_id": "302",
            "ref": "main",
            "ref_type": "branch",
            "ref_path": "refs/heads/main",
            "ref_protected": "true",
            "environment_protected": "false",
            "runner_id": 1,
            "runner_environment": "self-hosted",
            "sha": "714a629c0b401fdce83e847fc9589983fc6f46bc",
            "jti": "235b3a54-b797-45c7-ae9a-f72d7bc6ef5b",
            "iss": issuer.url(),
            "iat": seconds_from_now(0),
            "nbf": seconds_from_now(-5),
            "exp": seconds_from_now(3600),
            "sub": "project_path:acme/jobs:ref_type:branch:ref:main",
            "aud": "octavius",
        }),
        over,
    )
}

fn claims(mut claims: Value, over: Value) -> Value {
    let Value::Object(over) = over else { panic!("{over} is no object") };
    for (name, value) in over {
        claims[name] = value;
    }
    claims
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_job_of_github_actions_or_gitlab_ci_applies_with_its_own_token() {
    let (hub_key, lab_key) = (Signer::rsa("38826b17").unwrap(), Signer::rsa("lab").unwrap());
    let (hub, lab) = (Issuer::start(&[&hub_key]).await.unwrap(), Issuer::start(&[&lab_key]).await.unwrap());
    let trusting = Trusting::open(&json!([
        {
            "name": "github", "issuer": hub.url(), "audiences": ["octavius"], "user": "{repository}",
            "rules": [
                {"when": {"repository": "acme/jobs", "ref": "refs/heads/main", "event_name": "push"}, "role": "applier", "groups": ["ci"]},
                {"when": {"repository_owner": "acme"}, "role": "viewer"},
            ],
        },
        {
            "name": "gitlab", "issuer": lab.url(), "audiences": ["octavius"], "user": "{project_path}",
            "rules": [{"when": {"project_path": "acme/jobs", "ref_path": "refs/heads/main", "ref_protected": "true"}, "role": "applier", "catalogs": ["c"]}],
        },
    ]))
    .await;

    let token = hub_key.sign(&github(&hub, json!({}))).unwrap();
    let me = trusting.who(&token).await.unwrap();
    assert_eq!((me.user.as_str(), me.role(), me.groups.as_slice()), ("github:acme/jobs", Role::Applier, &["ci".to_owned()][..]));
    assert_eq!((me.issuer, me.token_id.as_str()), (hub.url(), "jwt:github:6d2b8b2b-1f7e-4f0a-9a35-3f8d5d2f8f8e"));
    assert!((200..=300).contains(&(me.expires_at.unwrap().seconds - seconds_from_now(0))));
    let ci = trusting.connect(&token).await;
    let head_now = head(&ci, "c").await;
    apply(&ci, header("c", head_now, &[JOB]), &[JOB]).await.unwrap();
    execute(&ci, "j", &[]).await.unwrap();

    let token = lab_key.sign(&gitlab(&lab, json!({}))).unwrap();
    assert_eq!(trusting.who(&token).await.unwrap().user, "gitlab:acme/jobs");
    let changed = JOB.replace("true", "false");
    let ci = trusting.connect(&token).await;
    let head_now = head(&ci, "c").await;
    apply(&ci, header("c", head_now, &[&changed]), &[&changed]).await.unwrap();

    // Its rule names the catalogue that it applies, and no other.
    assert_eq!(trusting.who(&token).await.unwrap().catalogs, ["c"]);
    let refused = apply(&ci, header("d", 0, &[&changed]), &[&changed]).await.unwrap_err();
    assert_eq!(refused.code, Code::PermissionDenied);

    // Another branch sees, and no more; another's repository does not get in; nor does a token for somebody else.
    let branch = hub_key.sign(&github(&hub, json!({"ref": "refs/heads/evil"}))).unwrap();
    let viewer = trusting.connect(&branch).await;
    let refused = apply(&viewer, header("c", 2, &[JOB]), &[JOB]).await.unwrap_err();
    assert_eq!(refused.code, Code::PermissionDenied);
    for (key, claims) in [
        (&hub_key, github(&hub, json!({"repository": "evil/jobs", "repository_owner": "evil"}))),
        (&hub_key, github(&hub, json!({"aud": "https://github.com/acme"}))),
        (&hub_key, github(&hub, json!({"iss": lab.url()}))),
        (&lab_key, gitlab(&lab, json!({"ref_protected": "false"}))),
        (&lab_key, gitlab(&lab, json!({"exp": seconds_from_now(-3600)}))),
    ] {
        let fault = trusting.who(&key.sign(&claims).unwrap()).await.unwrap_err();
        assert_eq!((fault.code, fault.reason.as_str()), (Code::Unauthenticated, reason::UNAUTHENTICATED), "{claims}");
    }

    let applied: Vec<_> = trusting.trail().await.into_iter().filter(|record| record.action == "catalog.apply").collect();
    let told: Vec<_> =
        applied.iter().map(|record| (record.user.as_str(), record.role.as_str(), record.reason.as_str())).collect();
    assert_eq!(told[..2], [("github:acme/jobs", "applier", ""), ("gitlab:acme/jobs", "applier", "")]);
    assert_eq!(applied[0].token_id, "jwt:github:6d2b8b2b-1f7e-4f0a-9a35-3f8d5d2f8f8e");
    trusting.controller.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_person_is_what_the_groups_of_an_identity_provider_make_of_him() {
    let key = Signer::p256("1").unwrap();
    let provider = Issuer::start(&[&key]).await.unwrap();
    let trusting = Trusting::open(&json!([{
        "name": "okta", "issuer": provider.url(), "audiences": ["octavius"], "user": "{email}", "groups_claim": "groups",
        "rules": [{"when": {"groups": "platform"}, "role": "admin"}, {"role": "user"}],
    }]))
    .await;
    let token = |email: &str, groups: &[&str]| {
        let claims = json!({
            "iss": provider.url(), "aud": "octavius", "sub": "00u1", "email": email, "email_verified": true, "groups": groups,
            "iat": seconds_from_now(0), "exp": seconds_from_now(3600),
        });
        key.sign(&claims).unwrap()
    };
    trusting.house.apply(&[r#"{"name":"secret","command":["true"],"authorized_groups":["support"]}"#]).await;
    let (ann, bob, eve) =
        (token("ann@acme.com", &["platform"]), token("bob@acme.com", &["web", "support"]), token("eve@acme.com", &["web"]));
    let jobs = async |token: &str| {
        let list = trusting.connect(token).await.catalog().list_jobs(v1::ListJobsRequest::default()).await;
        list.unwrap().into_inner().jobs.len()
    };
    assert_eq!((jobs(&ann).await, jobs(&bob).await, jobs(&eve).await), (1, 1, 0));
    let made = v1::CreateTokenRequest { role: Role::User.into(), user: "carl".into(), ..Default::default() };
    trusting.connect(&ann).await.admin().create_token(made.clone()).await.unwrap();
    let refused = trusting.connect(&bob).await.admin().create_token(made).await.unwrap_err();
    assert_eq!(told(&refused).code, Code::PermissionDenied);
    assert_eq!(trusting.who(&bob).await.unwrap().groups, ["web", "support"]);

    // What is running is its user's, with whichever of his tokens he comes.
    let id = execute(&trusting.connect(&bob).await, "secret", &[]).await.unwrap();
    let again = trusting.connect(&token("bob@acme.com", &[])).await;
    let seen = again.executions().get_execution(v1::GetExecutionRequest { id }).await;
    assert!(seen.is_ok(), "{seen:?}");
    trusting.controller.stop().await;
}

/// Whatever somebody brings: the same answer, a record that says why, and nothing of the token in it.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn whoever_forges_a_token_is_refused_and_his_token_is_nowhere() {
    let (rsa, ec, foreign) = (Signer::rsa("r").unwrap(), Signer::p256("e").unwrap(), Signer::p256("e").unwrap());
    let issuer = Issuer::start(&[&rsa, &ec]).await.unwrap();
    let trusting = Trusting::open(&json!([{
        "name": "ci", "issuer": issuer.url(), "audiences": ["octavius"], "rules": [{"when": {"sub": "ann"}, "role": "admin"}],
    }]))
    .await;
    let good = json!({"iss": issuer.url(), "aud": "octavius", "sub": "ann", "exp": seconds_from_now(300)});
    assert_eq!(trusting.who(&rsa.sign(&good).unwrap()).await.unwrap().user, "ci:ann");
    let none = rsa.sign_as(&json!({"alg": "none", "typ": "JWT"}), &good).unwrap();
    let truncated = rsa.sign(&good).unwrap();
    let forged = [
        (none.clone(), "its algorithm is none of RS256, ES256 and EdDSA"),
        (none[..=none.rfind('.').unwrap()].to_owned(), "not of three parts, or one of them is empty"),
        (hmac_token(rsa.jwk().to_string().as_bytes(), "r", &good), "its algorithm is none of RS256, ES256 and EdDSA"),
        (ec.sign_as(&json!({"alg": "RS256", "kid": "e"}), &good).unwrap(), "its issuer has no such key"),
        (foreign.sign(&good).unwrap(), "its signature is not its issuer's"),
        (truncated[..truncated.len() - 2].to_owned(), "its signature is not its issuer's"),
        (rsa.sign(&claims(good.clone(), json!({"sub": "eve"}))).unwrap(), "no rule of its issuer fits its claims"),
    ];
    let records = async || {
        let all = trusting.trail().await;
        all.into_iter().filter(|record| record.action == "token.create" && !record.reason.is_empty()).collect::<Vec<_>>()
    };
    let asked = v1::CreateTokenRequest { role: Role::Admin.into(), user: "eve".into(), ..Default::default() };
    for (number, (token, why)) in forged.iter().enumerate() {
        let status = trusting.connect(token).await.admin().create_token(asked.clone()).await.unwrap_err();
        assert!(!status.message().contains(why) && !status.message().contains(&token[..40]), "{status}");
        assert_eq!(told(&status).reason, reason::UNAUTHENTICATED);
        let record = eventually("the refusal to be noted", async || {
            let records = records().await;
            records.get(number).cloned().ok_or_else(|| format!("{} records", records.len()))
        })
        .await;
        assert_eq!(record.details.get("token").map(String::as_str), Some(*why));
        let text = format!("{record:?}");
        assert!(token.split('.').all(|part| part.is_empty() || !text.contains(part)), "{text}");
    }
    let last = records().await.pop().unwrap();
    assert_eq!((last.details["issuer"].as_str(), last.details["subject"].as_str(), last.user.as_str()), ("ci", "eve", ""));
    trusting.controller.stop().await;
}

/// A controller that trusts nobody refuses what another one takes, and a store's own token is no less good where issuers are trusted.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn issuers_are_trusted_where_they_are_named_and_tokens_of_the_store_everywhere() {
    let key = Signer::ed25519("k").unwrap();
    let mut issuer = Issuer::away().unwrap();
    issuer.publish(&[&key]);
    let trusting =
        Trusting::open(&json!([{"name": "ci", "issuer": issuer.url(), "audiences": "octavius", "rules": [{"role": "user"}]}]))
            .await;
    let token = key.sign(&json!({"iss": issuer.url(), "aud": "octavius", "sub": "ann", "exp": seconds_from_now(300)})).unwrap();
    // While the issuer is away, nobody of his gets in; the others do.
    assert_eq!(trusting.who(&token).await.unwrap_err().code, Code::Unauthenticated);
    assert_eq!(trusting.who(&trusting.house.token).await.unwrap().user, "admin");
    issuer.come().await.unwrap();
    eventually("the issuer's keys to be fetched", async || trusting.who(&token).await.map_err(|fault| format!("{fault:?}")))
        .await;
    let elsewhere = trusting.house.connect(Some(&token)).await;
    let status = elsewhere.admin().who_am_i(v1::WhoAmIRequest {}).await.unwrap_err();
    assert_eq!(told(&status).code, Code::Unauthenticated);

    // A flood of keys that nobody knows costs the issuer one request, and the honest nothing.
    let before = issuer.fetches();
    // Fewer connections than an address has where nobody is known by them.
    let flood = (0..200).map(async |n| {
        let token = key.sign_as(&json!({"alg": "EdDSA", "kid": format!("x{n}")}), &json!({"iss": issuer.url()})).unwrap();
        trusting.who(&token).await.unwrap_err().code
    });
    let codes = soon("the flood to end", futures::future::join_all(flood)).await;
    assert!(codes.iter().all(|code| *code == Code::Unauthenticated));
    assert_eq!(trusting.who(&token).await.unwrap().user, "ci:ann");
    assert!(issuer.fetches() - before <= 2, "{} fetches", issuer.fetches() - before);
    trusting.controller.stop().await;
}
