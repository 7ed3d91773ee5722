//! Running jobs from their forms: what is wrong stands beside its field, what was typed is kept, and nothing runs twice.

use http::StatusCode;
use octavius_core::JobDefinition;
use octavius_proto::{Fault, reason, v1};
use tonic::Code;

use crate::browser::Browser;
use crate::fake::Fake;
use crate::world::{RUNNING, WAITING, job, world};

const JOB: &str = "/jobs/refund-order";

/// A browser with the form before it: the form's token, and the id that it holds.
async fn form(fake: &Fake, role: &str) -> (Browser, String, String) {
    let mut browser = Browser::of(fake, role);
    let page = browser.get(JOB).await;
    assert_eq!(page.status, StatusCode::OK);
    (browser, page.hidden("form_token"), page.hidden("id"))
}

#[tokio::test]
async fn a_form_sent_twice_is_one_execution() {
    let fake = world("x");
    let (mut browser, token, id) = form(&fake, "user").await;
    let fields = [
        ("form_token", token.as_str()),
        ("id", &id),
        ("arg.order", "A-1"),
        ("arg.count", "5"),
        ("arg.reason", "fraud"),
        ("arg.pin", ""),
    ];
    for _ in 0..2 {
        let answer = browser.post(JOB, &fields).await;
        assert_eq!((answer.status, answer.location()), (StatusCode::SEE_OTHER, format!("/executions/{id}").as_str()));
    }
    let world = fake.world();
    assert_eq!(world.executed.len(), 1);
    let arguments = &world.executed[&id].arguments;
    assert_eq!(arguments["count"], "5");
    assert!(!arguments.contains_key("pin"), "what is left empty is the job's: {arguments:?}");
}

#[tokio::test]
async fn a_form_sent_again_with_other_values_asks_before_it_runs_another() {
    let fake = world("x");
    let (mut browser, token, id) = form(&fake, "user").await;
    browser.post(JOB, &[("form_token", &token), ("id", &id), ("arg.order", "A-1")]).await;
    let again = browser.post(JOB, &[("form_token", &token), ("id", &id), ("arg.order", "A-2")]).await;
    assert_eq!(again.status, StatusCode::CONFLICT);
    assert!(again.text.contains("the id is that of another execution") && again.tag("arg-order").contains("A-2"));
    let fresh = again.hidden("id");
    assert_ne!(fresh, id);
    let other = browser.post(JOB, &[("form_token", &token), ("id", &fresh), ("arg.order", "A-2")]).await;
    assert_eq!(other.location(), format!("/executions/{fresh}"));
}

#[tokio::test]
async fn what_is_wrong_stands_beside_its_field_and_the_rest_is_kept() {
    let fake = world("x");
    let (mut browser, token, id) = form(&fake, "user").await;
    let fields = [
        ("form_token", token.as_str()),
        ("id", &id),
        ("arg.order", "B-1"),
        ("arg.count", "many"),
        ("arg.reason", "fraud"),
        ("arg.wait", "5m"),
        ("arg.pin", "my-own-pin"),
    ];
    let answer = browser.post(JOB, &fields).await;
    assert_eq!(answer.status, StatusCode::BAD_REQUEST);
    for field in ["arg-order", "arg-count"] {
        assert!(answer.tag(field).contains("aria-invalid=\"true\""), "{}", answer.tag(field));
        assert!(answer.tag(field).contains(&format!("{field}-problem")), "it is described by what is wrong");
    }
    assert!(answer.text.contains("id=\"arg-count-problem\">&#34;many&#34; is not an integer"), "{}", answer.text);
    assert!(answer.tag("arg-order").contains("value=\"B-1\"") && answer.tag("arg-wait").contains("value=\"5m\""));
    assert!(answer.text.contains("<option value=\"fraud\" selected>"));
    assert!(!answer.tag("arg-wait").contains("aria-invalid"));
    assert!(!answer.text.contains("my-own-pin"), "what is sensitive is not sent back");
    assert_eq!(answer.hidden("id"), id, "nothing was run: it is still the same form");
    assert!(fake.world().executed.is_empty());
}

#[tokio::test]
async fn a_form_is_made_from_the_arguments() {
    let (mut browser, ..) = form(&world("x"), "user").await;
    let page = browser.get(JOB).await;
    assert!(page.tag("arg-order").contains("required") && page.tag("arg-order").contains("pattern=\"A-[0-9]+\""));
    assert!(page.tag("arg-count").contains("type=\"number\" step=\"1\"") && page.tag("arg-count").contains("value=\"3\""));
    assert!(page.tag("arg-share").contains("step=\"any\""));
    assert!(page.tag("arg-reason").starts_with("<select") && page.tag("arg-notify").starts_with("<select"));
    assert!(page.tag("arg-note").starts_with("<textarea"));
    assert!(page.tag("arg-pin").contains("type=\"password\"") && page.tag("arg-door").contains("type=\"password\""));
    for id in ["order", "count", "share", "reason", "notify", "wait", "note", "pin", "door"] {
        assert!(page.text.contains(&format!("<label for=\"arg-{id}\">")), "{id} has a label");
    }
    for hidden in ["sensitive-default", "sensitive-choice"] {
        assert!(!page.text.contains(hidden), "what a sensitive argument may be is shown nowhere");
    }
    assert!(page.text.contains("<code>catalog/x.yaml:3</code>") && page.text.contains("4be07d1, changed"), "where it comes from");
}

#[tokio::test]
async fn a_job_that_asks_for_its_name_runs_with_it_alone() {
    let fake = world("x");
    fake.world().jobs = vec![JobDefinition { confirm: true, ..job("x") }];
    let (mut browser, token, id) = form(&fake, "user").await;
    let fields = |confirm| [("form_token", token.as_str()), ("id", id.as_str()), ("arg.order", "A-7"), ("confirm", confirm)];
    let refused = browser.post(JOB, &fields("refund")).await;
    assert_eq!((refused.status, fake.count("Execute")), (StatusCode::BAD_REQUEST, 0));
    assert!(refused.tag("confirm").contains("aria-invalid=\"true\"") && refused.tag("arg-order").contains("A-7"));
    assert_eq!(browser.post(JOB, &fields("refund-order")).await.status, StatusCode::SEE_OTHER);
}

#[tokio::test]
async fn a_refusal_is_told_in_the_form_in_the_controllers_words() {
    let fake = world("x");
    let (mut browser, token, id) = form(&fake, "user").await;
    fake.world().refusal = Some(Fault::new(Code::ResourceExhausted, reason::STORE_FULL, "the store is full"));
    let answer = browser.post(JOB, &[("form_token", &token), ("id", &id), ("arg.order", "A-1")]).await;
    assert_eq!(answer.status, StatusCode::SERVICE_UNAVAILABLE);
    assert!(answer.text.contains("the store is full") && answer.text.contains("an operator must free some"));
    assert!(answer.tag("arg-order").contains("A-1"));
}

#[tokio::test]
async fn a_form_that_is_too_large_is_refused_before_it_is_read_in_whole() {
    let fake = world("x");
    let (mut browser, token, id) = form(&fake, "user").await;
    let huge = "x".repeat(2 * 1024 * 1024);
    let answer = browser.post(JOB, &[("form_token", &token), ("id", &id), ("arg.order", &huge)]).await;
    assert_eq!(answer.status, StatusCode::PAYLOAD_TOO_LARGE);
    assert!(answer.text.contains("at most 1024 KiB"));
    let sign_in = Browser::new(&fake).post("/sign-in", &[("token", &huge[..20_000])]).await;
    assert_eq!(sign_in.status, StatusCode::PAYLOAD_TOO_LARGE, "of those who are not known, less is read");
}

#[tokio::test]
async fn buttons_of_an_execution_do_what_they_say() {
    let fake = world("x");
    let mut browser = Browser::of(&fake, "user");
    let address = format!("/executions/{RUNNING}");
    let page = browser.get(&address).await;
    let token = page.hidden("form_token");
    let cancelled = browser.post(&address, &[("form_token", &token), ("do", "cancel")]).await;
    assert_eq!((cancelled.location(), fake.count("CancelExecution")), (address.as_str(), 1));
    let new_id = page.hidden("new_id");
    let again = browser.post(&address, &[("form_token", &token), ("do", "rerun"), ("new_id", &new_id)]).await;
    assert_eq!(again.location(), format!("/executions/{new_id}"));
    let unknown = browser.post(&address, &[("form_token", &token), ("do", "explode")]).await;
    assert_eq!(unknown.status, StatusCode::BAD_REQUEST);
}

#[tokio::test]
async fn an_approval_goes_through_with_its_reason_and_back_to_the_inbox() {
    let fake = world("x");
    let mut browser = Browser::of(&fake, "user");
    let inbox = browser.get("/approvals").await;
    let token = inbox.hidden("form_token");
    assert!(
        inbox.text.contains(&format!("action=\"/executions/{WAITING}\"")) && inbox.text.contains("order=x"),
        "with its arguments"
    );
    for button in ["Approve", "Reject"] {
        let label = format!("aria-label=\"{button} refund-order {}\"", &WAITING[20..]);
        assert!(inbox.text.contains(&label), "one card's buttons are to be told from another's: {}", inbox.text);
    }
    let label = format!(">Reason<span class=\"unseen\"> to approve or reject refund-order {}</span></label>", &WAITING[20..]);
    assert!(inbox.text.contains(&label), "and so are its fields: {}", inbox.text);
    let address = format!("/executions/{WAITING}");
    let fields = [("form_token", token.as_str()), ("do", "approve"), ("reason", "it is right"), ("back", "approvals")];
    assert_eq!(browser.post(&address, &fields).await.location(), "/approvals");
    let asked = fake.world().calls.iter().rev().find(|(rpc, _)| *rpc == "ApproveExecution").unwrap().1.clone();
    assert!(asked.contains("it is right") && asked.contains(WAITING), "{asked}");
    let fields = [("form_token", token.as_str()), ("do", "reject"), ("reason", "it is wrong")];
    assert_eq!(browser.post(&address, &fields).await.location(), address);
    assert_eq!(fake.count("RejectExecution"), 1);
}

#[tokio::test]
async fn whose_approval_is_not_waited_for_is_offered_no_button() {
    let fake = world("x");
    let mut waiting = fake.world().executions[0].clone();
    if let Some(approvals) = &mut waiting.approvals {
        approvals.is_callers = false;
    }
    fake.put(waiting);
    let mut browser = Browser::of(&fake, "user");
    for page in ["/approvals".to_owned(), format!("/executions/{WAITING}")] {
        let page = browser.get(&page).await;
        assert!(page.text.contains("1 of 2 approvals, from x, not from the requester"), "{}", page.text);
        assert!(!page.text.contains("value=\"approve\"") && !page.text.contains("value=\"reject\""));
    }
}

/// What the controller would refuse is not offered, whatever their role is.
#[tokio::test]
async fn who_only_judges_an_execution_is_not_offered_to_cancel_or_to_repeat_it() {
    let fake = world("x");
    let waiting = fake.world().executions[0].clone();
    let address = format!("/executions/{WAITING}");
    for offered in [true, false] {
        fake.put(v1::Execution { is_callers: offered, ..waiting.clone() });
        let page = Browser::of(&fake, "user").get(&address).await.text;
        assert!(page.contains("value=\"approve\"") && page.contains("value=\"reject\""), "{page}");
        for button in ["cancel", "rerun"] {
            assert_eq!(page.contains(&format!("value=\"{button}\"")), offered, "{button}: {page}");
        }
    }
}

#[tokio::test]
async fn what_one_has_approved_waits_for_others_and_can_only_be_rejected() {
    let fake = world("x");
    let mut waiting = fake.world().executions[0].clone();
    waiting.approvals.as_mut().unwrap().has_callers = true;
    fake.put(waiting);
    let mut browser = Browser::of(&fake, "user");
    let inbox = browser.get("/approvals").await.text;
    assert!(
        inbox.contains("Nothing waits for you.") && inbox.contains("Waiting for others") && inbox.contains(WAITING),
        "{inbox}"
    );
    assert!(!inbox.contains("value=\"approve\""), "{inbox}");
    let page = browser.get(&format!("/executions/{WAITING}")).await.text;
    assert!(page.contains("value=\"reject\"") && !page.contains("value=\"approve\""), "{page}");
}

/// Who finds nothing in the inbox goes home: it is empty only where nothing waits.
#[tokio::test]
async fn an_inbox_that_cannot_be_read_in_whole_says_so_and_what_is_gone_is_passed_over() {
    let fake = world("x");
    let mut browser = Browser::of(&fake, "user");
    let unread = |code, reason: &str| Some((WAITING.to_owned(), Fault::new(code, reason, "the store does not answer")));
    fake.world().unread = unread(Code::Unavailable, reason::STORE_UNAVAILABLE);
    let inbox = browser.get("/approvals").await;
    assert_eq!(inbox.status, StatusCode::SERVICE_UNAVAILABLE);
    assert!(inbox.text.contains("the store does not answer") && !inbox.text.contains("Nothing waits for you."), "{}", inbox.text);
    fake.world().unread = unread(Code::NotFound, reason::EXECUTION_NOT_FOUND);
    let inbox = browser.get("/approvals").await;
    assert_eq!(inbox.status, StatusCode::OK);
    assert!(inbox.text.contains("Nothing waits for you."), "{}", inbox.text);
}
