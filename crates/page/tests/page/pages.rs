//! The pages themselves: every one for every role, with the same headers everywhere and with bounded calls.

use std::collections::HashSet;

use http::StatusCode;
use octavius_proto::v1::{self, ExecutionState};
use octavius_proto::{Fault, reason};
use tonic::Code;

use crate::browser::Browser;
use crate::fake::{Peer, ago};
use crate::world::{FAILED, PAGES, RUNNING, world};

#[tokio::test]
async fn every_page_answers_for_every_role_as_the_controller_says() {
    let fake = world("x");
    for role in ["viewer", "user", "applier", "admin"] {
        let mut browser = Browser::of(&fake, role);
        for page in PAGES {
            let answer = browser.get(page).await;
            let expected = if page == "/sign-in" { StatusCode::SEE_OTHER } else { StatusCode::OK };
            assert_eq!(answer.status, expected, "{page} for {role}: {}", answer.text);
        }
        let audit = browser.get("/audit").await;
        let expected = if role == "admin" { StatusCode::OK } else { StatusCode::FORBIDDEN };
        assert_eq!(audit.status, expected, "audit for {role}");
        let changes = browser.get("/revisions/support/2").await;
        let applies = matches!(role, "applier" | "admin");
        assert_eq!(changes.status, if applies { StatusCode::OK } else { StatusCode::FORBIDDEN }, "changes for {role}");
        let job = browser.get("/jobs/refund-order").await;
        assert_eq!(job.text.contains("class=\"run\""), role != "viewer", "a form for {role}");
        let running = browser.get(&format!("/executions/{RUNNING}")).await;
        assert_eq!(running.text.contains("value=\"cancel\""), role != "viewer", "a button for {role}");
        assert_eq!(running.text.contains("href=\"/audit\""), role == "admin", "a link for {role}");
    }
}

#[tokio::test]
async fn every_answer_has_the_headers_that_keep_others_out() {
    let fake = world("x");
    let mut browser = Browser::of(&fake, "viewer");
    let home = browser.get("/").await.text;
    let asset = home.split('"').find(|text| text.starts_with("/assets/page-") && text.ends_with(".css")).unwrap().to_owned();
    let others = ["/audit", "/no/such/page", "/jobs/none", "/executions/none", "/open?code=no", "/assets/none.css", &asset];
    for page in PAGES.iter().chain(&others) {
        for mut browser in [Browser::of(&fake, "viewer"), Browser::new(&fake)] {
            let answer = browser.get(page).await;
            let policy = answer.header("content-security-policy");
            for part in
                ["default-src 'none'", "script-src 'self'", "style-src 'self'", "form-action 'self'", "frame-ancestors 'none'"]
            {
                assert!(policy.contains(part), "{page}: {policy}");
            }
            assert!(!policy.contains("unsafe"));
            assert_eq!(answer.header("x-content-type-options"), "nosniff", "{page}");
            assert_eq!(answer.header("referrer-policy"), "same-origin", "{page}");
            let kept = if *page == asset { "public, max-age=31536000, immutable" } else { "no-store" };
            assert_eq!(answer.header("cache-control"), kept, "{page}");
            assert!(
                !answer.text.contains("<style") && !answer.text.contains(" style=") && !answer.text.contains("<script>"),
                "{page}"
            );
        }
    }
}

#[tokio::test]
async fn every_asset_of_a_page_is_there() {
    let mut browser = Browser::of(&world("x"), "user");
    let page = browser.get(&format!("/executions/{RUNNING}")).await.text;
    let assets: HashSet<_> = page.split('"').filter(|text| text.starts_with("/assets/")).map(str::to_owned).collect();
    assert!(assets.len() >= 5, "{assets:?}");
    for asset in assets {
        let answer = browser.get(&asset).await;
        let kind = answer.header("content-type");
        let fits = ["text/css", "text/javascript", "image/svg+xml"].iter().any(|known| kind.starts_with(known));
        assert!(answer.status == StatusCode::OK && fits, "{asset}: {kind}");
    }
}

#[tokio::test]
async fn troubles_say_what_failed_and_what_to_do_next() {
    let fake = world("x");
    let mut browser = Browser::of(&fake, "user");
    let job = browser.get("/jobs/refund-ordr").await;
    assert_eq!(job.status, StatusCode::NOT_FOUND);
    assert!(job.text.contains("there is no job refund-ordr") && job.text.contains("did you mean refund-order?"), "{}", job.text);
    assert!(job.text.contains("Sign out"), "the page still looks like the visitor's");
    let page = browser.get("/nothing").await;
    assert!(page.status == StatusCode::NOT_FOUND && page.text.contains("there is no page /nothing"));
    let post = browser.post("/executors", &[]).await;
    assert_eq!(post.status, StatusCode::METHOD_NOT_ALLOWED);
    let token = browser.get("/").await.hidden("form_token");
    fake.world().refusal = Some(Fault::new(Code::Unavailable, reason::STOPPING, "the controller is stopping"));
    let stopping = browser.post(&format!("/executions/{RUNNING}"), &[("form_token", &token), ("do", "cancel")]).await;
    assert_eq!(stopping.status, StatusCode::SERVICE_UNAVAILABLE);
    assert!(stopping.text.contains("the controller is stopping") && stopping.text.contains("try again in a moment"));
    let wrong = browser.get("/executions?since=yesterday").await;
    assert!(wrong.status == StatusCode::BAD_REQUEST && wrong.text.contains("write a duration like 90s"), "{}", wrong.text);
}

#[tokio::test]
async fn a_page_of_executions_costs_two_calls_however_many_there_are() {
    let fake = world("x");
    let many = (0..5000).map(|number| v1::Execution {
        id: format!("{number:026}"),
        job: "refund-order".to_owned(),
        user: "ann".to_owned(),
        state: ExecutionState::Succeeded.into(),
        created_at: ago(number),
        ..Default::default()
    });
    fake.world().executions = many.collect();
    let mut browser = Browser::of(&fake, "user");
    let page = browser.get("/executions?all=1&state=succeeded").await;
    assert_eq!(fake.world().calls.len(), 2, "{:?}", fake.world().calls);
    assert_eq!(page.text.matches("<th scope=\"row\">").count(), 50);
    let next = page.text.split('"').find(|text| text.contains("page=")).unwrap().replace("&#38;", "&");
    assert_eq!(next, "/executions?state=succeeded&all=1&page=50");
    assert!(browser.get(&next).await.text.contains(&format!("{:026}", 50)));
}

#[tokio::test]
async fn calls_are_made_as_the_peer_that_the_server_saw_and_in_no_trace_of_the_visitors() {
    let fake = world("x");
    let request =
        http::Request::get("/executors").header("traceparent", "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01");
    let request = request.extension(Peer(7)).body(axum::body::Body::empty()).unwrap();
    assert_eq!(Browser::of(&fake, "user").send(request).await.status, StatusCode::OK);
    assert_eq!(fake.world().peers, [(Some(Peer(7)), false); 2]);
}

#[tokio::test]
async fn the_end_of_an_id_leads_to_an_address_that_stays_true() {
    let mut browser = Browser::of(&world("x"), "user");
    let answer = browser.get("/executions/@latest").await;
    assert_eq!((answer.status, answer.location()), (StatusCode::SEE_OTHER, "/executions/0k3v7q2m8d5x1n4r6t9w0b9f2s"));
}

#[tokio::test]
async fn an_execution_says_in_the_words_of_the_command_line_how_it_stands() {
    let fake = world("x");
    let mut queued = fake.world().executions[1].clone();
    queued.state = ExecutionState::Queued.into();
    (queued.message, queued.cancel_requested_by) = (String::new(), String::new());
    fake.put(queued);
    let page = Browser::of(&fake, "user").get(&format!("/executions/{RUNNING}")).await;
    assert_eq!(page.sentence(), "queued 1m, 3rd in line");
    assert!(page.text.contains("Why it waits") && page.text.contains("data-state=\"queued\""));
    assert!(page.text.contains("<time datetime=\"2025-12-31T23:57:50Z\"><span class=\"relative\">2m10s ago</span>"));
}

#[tokio::test]
async fn the_state_of_an_execution_that_has_ended_is_told_once() {
    let fake = world("x");
    fake.world().wait = None;
    let mut ended = fake.world().executions[2].clone();
    ended.message = String::new();
    let mut browser = Browser::of(&fake, "user");
    for (state, exit_code, expected) in [
        (ExecutionState::Succeeded, None, "succeeded after 1m10s"),
        (ExecutionState::Failed, Some(3), "failed after 1m10s: exit code 3"),
        (ExecutionState::TimedOut, None, "timed out after 1m10s"),
        (ExecutionState::Cancelled, None, "cancelled by x after 1m10s"),
    ] {
        ended.state = state.into();
        ended.exit_code = exit_code;
        ended.reason = if exit_code.is_some() { "EXIT_CODE".to_owned() } else { String::new() };
        fake.put(ended.clone());
        let page = browser.get(&format!("/executions/{FAILED}")).await;
        assert_eq!(page.sentence(), expected);
        assert!(page.text.contains("<dt>webhook</dt><dd>x was not told that it failed: not yet, 2 tries</dd>"), "{}", page.text);
    }
}

#[tokio::test]
async fn who_wants_to_run_a_job_sees_whose_approval_it_needs() {
    let fake = world("x");
    let mut browser = Browser::of(&fake, "user");
    assert!(!browser.get("/jobs/refund-order").await.text.contains("<dt>approvals</dt>"), "it needs none");
    let rule = serde_json::json!({"groups": ["ops", "leads"], "count": 2, "valid_for": "1h"});
    fake.world().jobs[0].approvals = Some(serde_json::from_value(rule).unwrap());
    let page = browser.get("/jobs/refund-order").await.text;
    assert!(page.contains("<dt>approvals</dt><dd>2 of ops or leads, not the requester, within 1h</dd>"), "{page}");
}

#[tokio::test]
async fn a_revision_shows_what_it_changed_without_what_is_sensitive() {
    let page = Browser::of(&world("x"), "applier").get("/revisions/support/2").await;
    assert!(page.text.contains("data-action=\"changed\""), "{}", page.text);
    assert!(page.text.contains("- ") && page.text.contains("x, older"));
    let first = Browser::of(&world("x"), "applier").get("/revisions/support/1").await;
    assert!(first.text.contains("data-action=\"added\"") && first.text.contains("********"));
    assert!(!first.text.contains("sensitive-default") && !first.text.contains("sensitive-choice"));
    assert_eq!(Browser::of(&world("x"), "applier").get("/revisions/support/3").await.status, StatusCode::NOT_FOUND);
}

#[tokio::test]
async fn jobs_are_found_by_text_and_label_and_show_how_they_went() {
    let fake = world("refund one order");
    let mut browser = Browser::of(&fake, "viewer");
    let all = browser.get("/").await.text;
    assert!(all.contains("team=payments") && all.contains("<span class=\"tag\">paused</span>"), "{all}");
    assert!(all.contains("href=\"/executions/0k3v7q2m8d5x1n4r6t9w0b9f2s\""), "its last execution");
    assert!(browser.get("/?q=ONE+order&label=team%3Dpayments").await.text.contains("refund one order</td>"));
    for none in ["/?q=purge", "/?label=team%3Dweb"] {
        assert!(browser.get(none).await.text.contains("No job fits."), "{none}");
    }
}

#[tokio::test]
async fn the_audit_trail_is_filtered_by_its_address_newest_first() {
    let fake = world("x");
    let record = |user: &str, action: &str, at| v1::AuditRecord {
        user: user.to_owned(),
        action: action.to_owned(),
        at: ago(at),
        result: v1::AuditResult::Done.into(),
        ..Default::default()
    };
    fake.world().audit =
        (0..300).map(|n| record("ann", &format!("execution.n{n}-"), 1000 - n)).chain([record("bob", "job.pause", 0)]).collect();
    let mut browser = Browser::of(&fake, "admin");
    let all = browser.get("/audit").await.text;
    assert_eq!(all.matches("<code>").count(), 200);
    assert!(all.find("job.pause").unwrap() < all.find("execution.n299-").unwrap() && all.contains("The newest 200"));
    assert!(!all.contains("execution.n100-"));
    let bob = browser.get("/audit?user=bob&since=1d").await.text;
    assert!(bob.contains("job.pause") && !bob.contains("execution.n"));
    assert!(browser.get("/audit?refused=1").await.text.contains("Nothing fits."));
}

#[tokio::test]
async fn what_has_ended_is_not_followed_and_cannot_be_cancelled() {
    let page = Browser::of(&world("x"), "user").get(&format!("/executions/{FAILED}")).await.text;
    assert!(!page.contains("data-live=\"/executions/") && !page.contains("value=\"cancel\"") && page.contains("value=\"rerun\""));
}
