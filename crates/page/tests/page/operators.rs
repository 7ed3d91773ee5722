//! What admins do on a page: pausing a job, draining an executor.

use http::StatusCode;
use octavius_proto::v1;

use crate::browser::Browser;
use crate::fake::Fake;
use crate::world::world;

const JOB: &str = "/jobs/refund-order";
const EXECUTOR: &str = "/executors/pay-1";

/// The last call of an RPC.
fn asked(fake: &Fake, rpc: &str) -> String {
    let calls = &fake.world().calls;
    calls.iter().rev().find(|(called, _)| *called == rpc).map(|(_, asked)| asked.clone()).unwrap_or_default()
}

/// A form's button `word`, and whether it is on the page.
async fn offers(browser: &mut Browser, address: &str, word: &str) -> bool {
    browser.get(address).await.text.contains(&format!("name=\"do\" value=\"{word}\""))
}

#[tokio::test]
async fn a_job_is_paused_with_a_reason_and_unpaused() {
    let fake = world("x");
    fake.world().paused = None;
    let mut browser = Browser::of(&fake, "admin");
    assert!(!offers(&mut browser, JOB, "unpause").await && offers(&mut browser, JOB, "pause").await);
    let token = browser.get(JOB).await.hidden("form_token");
    let fields = [("form_token", token.as_str()), ("do", "pause"), ("reason", "the database moves")];
    assert_eq!(browser.post(JOB, &fields).await.location(), JOB);
    let request = v1::PauseJobsRequest { job: "refund-order".to_owned(), all: false, reason: "the database moves".to_owned() };
    assert_eq!(asked(&fake, "PauseJobs"), format!("{request:?}"));
    assert!(browser.get(JOB).await.text.contains("the database moves"));
    assert!(offers(&mut browser, JOB, "unpause").await && !offers(&mut browser, JOB, "pause").await);
    assert_eq!(browser.post(JOB, &[("form_token", &token), ("do", "unpause")]).await.location(), JOB);
    let request = v1::UnpauseJobsRequest { job: "refund-order".to_owned(), all: false };
    assert_eq!(asked(&fake, "UnpauseJobs"), format!("{request:?}"));
    assert!(fake.world().executed.is_empty(), "no button of the form runs it");
    assert_eq!(browser.post(JOB, &[("form_token", &token), ("do", "explode")]).await.status, StatusCode::BAD_REQUEST);
}

/// The pause of all jobs is not one job's to end.
#[tokio::test]
async fn a_job_that_is_paused_with_all_can_be_paused_by_its_name_too() {
    let fake = world("x");
    fake.world().paused.as_mut().unwrap().all = true;
    let mut browser = Browser::of(&fake, "admin");
    assert!(!offers(&mut browser, JOB, "unpause").await && offers(&mut browser, JOB, "pause").await);
    assert!(browser.get(JOB).await.text.contains("<code>octavius unpause --all</code>"));
}

#[tokio::test]
async fn an_executor_is_drained_and_resumed() {
    let fake = world("x");
    let mut browser = Browser::of(&fake, "admin");
    assert!(offers(&mut browser, EXECUTOR, "resume").await && !offers(&mut browser, EXECUTOR, "drain").await);
    let token = browser.get(EXECUTOR).await.hidden("form_token");
    for (word, rpc, other) in [("resume", "ResumeExecutor", "drain"), ("drain", "DrainExecutor", "resume")] {
        assert_eq!(browser.post(EXECUTOR, &[("form_token", &token), ("do", word)]).await.location(), EXECUTOR);
        assert!(asked(&fake, rpc).contains("\"pay-1\""), "{}", asked(&fake, rpc));
        assert!(offers(&mut browser, EXECUTOR, other).await && !offers(&mut browser, EXECUTOR, word).await);
    }
    assert_eq!(browser.post(EXECUTOR, &[("form_token", &token), ("do", "explode")]).await.status, StatusCode::BAD_REQUEST);
}

#[tokio::test]
async fn what_admins_do_is_neither_offered_to_others_nor_done_for_them_nor_for_another_page() {
    let fake = world("x");
    for role in ["viewer", "user", "applier"] {
        let mut browser = Browser::of(&fake, role);
        let token = browser.get(JOB).await.hidden("form_token");
        for (address, words) in [(JOB, ["pause", "unpause"]), (EXECUTOR, ["drain", "resume"])] {
            for word in words {
                assert!(!offers(&mut browser, address, word).await, "{word} for {role}");
                let answer = browser.post(address, &[("form_token", &token), ("do", word)]).await;
                assert_eq!(answer.status, StatusCode::FORBIDDEN, "{word} by {role}");
            }
        }
    }
    let mut admin = Browser::of(&fake, "admin");
    for (address, word) in [(JOB, "pause"), (EXECUTOR, "drain")] {
        assert_eq!(admin.post(address, &[("do", word)]).await.status, StatusCode::FORBIDDEN, "without a form token");
    }
    for rpc in ["PauseJobs", "UnpauseJobs", "DrainExecutor", "ResumeExecutor"] {
        assert_eq!(fake.count(rpc), 0, "{rpc}");
    }
}
