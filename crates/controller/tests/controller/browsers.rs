//! Browsers' sessions: opened with a token, good for what it is good for, and gone with it.

use std::time::Duration;

use octavius_core::Timestamp;
use octavius_core::token::{Token, TokenKind};
use octavius_proto::v1::{self, Role};
use octavius_proto::{Fault, reason};
use tonic::Code;

use crate::harness::{House, connect, eventually, soon, told};

/// Signs in with this token.
async fn sign_in(house: &House, token: &str) -> Result<v1::CreateSessionResponse, Fault> {
    let with = house.connect(Some(token)).await;
    let made = with.admin().create_session(v1::CreateSessionRequest {}).await;
    made.map(tonic::Response::into_inner).map_err(|status| told(&status))
}

async fn who_is(house: &House, token: &str) -> Result<v1::WhoAmIResponse, Fault> {
    let with = house.connect(Some(token)).await;
    let who = with.admin().who_am_i(v1::WhoAmIRequest {}).await;
    who.map(tonic::Response::into_inner).map_err(|status| told(&status))
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_session_may_what_its_token_may_and_ends_when_one_signs_out() {
    let house = House::open().await;
    let ann = house.token(Role::User, "ann", &["support"]).await;
    let opened = sign_in(&house, &ann.token).await.unwrap();
    assert_eq!(opened.token.parse::<Token>().unwrap().kind(), TokenKind::Session);
    let end = octavius_proto::timestamp("expires_at", &opened.expires_at.unwrap()).unwrap();
    let left = end.duration_since(Timestamp::now());
    assert!(Duration::try_from(left).unwrap() <= Duration::from_secs(10 * 3600), "{left}");

    let who = who_is(&house, &opened.token).await.unwrap();
    assert_eq!((who.user.as_str(), who.role(), who.groups), ("ann", Role::User, vec!["support".to_owned()]));
    let listed = house.admin().await.admin().list_tokens(v1::ListTokensRequest {}).await.unwrap().into_inner().tokens;
    let sessions: Vec<_> = listed.iter().filter(|token| token.is_session).map(|token| token.user.as_str()).collect();
    assert_eq!(sessions, ["ann"]);

    let within = house.connect(Some(&opened.token)).await;
    within.admin().end_session(v1::EndSessionRequest {}).await.unwrap();
    assert_eq!(who_is(&house, &opened.token).await.unwrap_err().code, Code::Unauthenticated);
    who_is(&house, &ann.token).await.unwrap(); // what she signed in with is as good as before
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_session_is_gone_with_its_token_on_every_controller_and_so_is_what_it_streams() {
    let house = House::open().await;
    house.apply(&[r#"{"name":"j","command":["true"]}"#]).await;
    let id = house.execute("j").await;
    let ann = house.token(Role::User, "ann", &[]).await;
    let opened = sign_in(&house, &ann.token).await.unwrap();
    let neighbour = house.neighbour().await;
    let elsewhere = connect(neighbour.address(), Some(&opened.token)).await;
    let mut watching =
        elsewhere.executions().watch_execution(v1::WatchExecutionRequest { id: id.clone() }).await.unwrap().into_inner();
    soon("the first message", watching.message()).await.unwrap().unwrap();

    house.admin().await.admin().revoke_token(v1::RevokeTokenRequest { id: ann.id }).await.unwrap();
    let end = soon("the end of the stream", async {
        loop {
            match watching.message().await {
                Ok(Some(_)) => {}
                Ok(None) => return None,
                Err(status) => return Some(told(&status).reason),
            }
        }
    });
    assert_eq!(end.await.as_deref(), Some(reason::UNAUTHENTICATED));
    eventually("the other controller to refuse it", async || match elsewhere.admin().who_am_i(v1::WhoAmIRequest {}).await {
        Err(status) if status.code() == Code::Unauthenticated => Ok(()),
        other => Err(format!("{other:?}")),
    })
    .await;
    neighbour.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_session_ends_no_later_than_its_token_and_opens_no_other() {
    let house = House::open().await;
    let short = v1::CreateTokenRequest {
        role: Role::User.into(),
        user: "eve".into(),
        lifetime: Some(prost_types::Duration { seconds: 600, nanos: 0 }),
        ..Default::default()
    };
    let eve = house.admin().await.admin().create_token(short).await.unwrap().into_inner();
    let opened = sign_in(&house, &eve.token).await.unwrap();
    assert_eq!(opened.expires_at, eve.expires_at);

    let fault = sign_in(&house, &opened.token).await.unwrap_err();
    assert_eq!(
        (fault.code, fault.message.as_str()),
        (Code::PermissionDenied, "a session is opened with a token, and not from within another session")
    );
    let with = house.connect(Some(&eve.token)).await;
    let fault = told(&with.admin().end_session(v1::EndSessionRequest {}).await.unwrap_err());
    assert_eq!((fault.code, fault.reason.as_str()), (Code::FailedPrecondition, reason::NOT_A_SESSION), "{fault:?}");
    who_is(&house, &eve.token).await.unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_oldest_of_too_many_sessions_gives_way() {
    let house = House::open().await;
    let ann = house.token(Role::Viewer, "ann", &[]).await;
    let bob = house.token(Role::Viewer, "bob", &[]).await;
    let of_bob = sign_in(&house, &bob.token).await.unwrap();
    let mut opened = Vec::new();
    for _ in 0..21 {
        opened.push(sign_in(&house, &ann.token).await.unwrap().token);
    }
    assert_eq!(who_is(&house, &opened[0]).await.unwrap_err().code, Code::Unauthenticated);
    for token in opened[1..].iter().chain([&of_bob.token]) {
        who_is(&house, token).await.unwrap();
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn who_signs_in_and_out_is_in_the_audit_trail_without_the_token() {
    let house = House::open().await;
    let ann = house.token(Role::User, "ann", &[]).await;
    let opened = sign_in(&house, &ann.token).await.unwrap();
    house.connect(Some(&opened.token)).await.admin().end_session(v1::EndSessionRequest {}).await.unwrap();
    let admin = house.admin().await;
    let mut records = admin.admin().read_audit(v1::ReadAuditRequest::default()).await.unwrap().into_inner();
    let (mut actions, mut all) = (Vec::new(), String::new());
    while let Some(some) = records.message().await.unwrap() {
        for record in some.records {
            all.push_str(&format!("{record:?}"));
            if record.user == "ann" {
                actions.push((record.action, record.reason.is_empty()));
            }
        }
    }
    assert_eq!(actions, [("session.create".to_owned(), true), ("session.end".to_owned(), true)]);
    assert!(!all.contains(&opened.token) && !all.contains(&ann.token));
}
