//! Pages that change by themselves.

use http::StatusCode;
use octavius_proto::v1::{self, ExecutionState};

use crate::browser::Browser;
use crate::world::{RUNNING, world};

#[tokio::test]
async fn a_page_is_told_each_change_and_the_end_and_then_no_more() {
    let fake = world("first\rsecond\nthird <b>");
    let execution = fake.world().executions[1].clone();
    fake.world().watched = vec![execution.clone(), execution.clone()];
    let ended =
        v1::Execution { state: ExecutionState::Succeeded.into(), finished_at: execution.state_since, ..execution.clone() };
    let mut browser = Browser::of(&fake, "viewer");
    let address = format!("/executions/{RUNNING}/events");
    let going = browser.get(&address).await;
    assert_eq!((going.status, going.header("content-type")), (StatusCode::OK, "text/event-stream"));
    assert_eq!(going.text.matches("event: status\n").count(), 2, "{}", going.text);
    assert!(!going.text.contains("event: ended") && !going.text.contains("<b>") && !going.text.contains('\r'));
    fake.put(ended);
    let over = browser.get(&address).await;
    assert_eq!((over.text.matches("event: ").count(), over.text.matches("event: ended\n").count()), (1, 1));
    assert!(over.text.contains("data-state=\"succeeded\""));
}
