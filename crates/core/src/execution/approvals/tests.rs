//! Who may approve, what comes of it, and when it is too late.

use super::*;
use crate::argument::Arguments;
use crate::definition::JobDefinition;
use crate::execution::{Event, Submission};
use crate::id::{CatalogName, ExecutionId};
use crate::timing::Timing;

fn at(second: i64) -> Timestamp {
    Timestamp::from_second(1_700_000_000 + second).unwrap()
}

/// Asked for by ann, under this rule.
fn asked(rule: &str) -> Execution {
    let job: JobDefinition =
        serde_json::from_str(&format!(r#"{{"name":"j","command":["true"],"retries":1,"approvals":{rule}}}"#)).unwrap();
    let (id, arguments) = (ExecutionId::from_bits(7), Arguments::new());
    let submission = Submission { id, arguments, user: "ann".into(), at: at(0), timeout: None, slot: None };
    Execution::submit(&job, CatalogName::new("c").unwrap(), 1, submission, &Timing::default())
}

fn who(user: &str, groups: &[&str]) -> Approver {
    Approver { user: user.into(), groups: groups.iter().map(|group| (*group).to_owned()).collect(), may_run: true }
}

fn approve(execution: &mut Execution, by: Approver, second: i64) -> Result<Applied, Refusal> {
    execution.apply(Event::Approve { by, reason: "seen".into() }, at(second))
}

fn reject(execution: &mut Execution, by: Approver, second: i64) -> Result<Applied, Refusal> {
    execution.apply(Event::Reject { by, reason: "not today".into() }, at(second))
}

fn claim(execution: &mut Execution, nonce: u64, second: i64) -> Result<crate::execution::Fence, Refusal> {
    execution.apply(Event::Claim { executor: "e".parse().unwrap(), nonce, slot: None }, at(second))?;
    Ok(execution.fence().unwrap())
}

#[test]
fn what_waits_for_approval_is_claimed_only_after_the_last_that_it_needs() {
    let mut execution = asked(r#"{"count":2}"#);
    assert_eq!(execution.state, State::WaitingForApproval);
    assert_eq!(claim(&mut execution, 1, 1), Err(Refusal::State(State::WaitingForApproval)));
    assert_eq!(approve(&mut execution, who("bob", &[]), 2), Ok(Applied::Changed));
    assert_eq!(approve(&mut execution, who("bob", &[]), 3), Ok(Applied::Unchanged), "one person is one approval");
    assert_eq!(execution.state, State::WaitingForApproval);
    assert_eq!(approve(&mut execution, who("cyn", &[]), 4), Ok(Applied::Changed));
    assert_eq!((execution.state, execution.state_since), (State::Queued, at(4)));
    assert_eq!(approve(&mut execution, who("dan", &[]), 5), Ok(Applied::Unchanged), "another was quicker");
    claim(&mut execution, 1, 6).unwrap();
    let approved: Vec<_> = execution.approvals.unwrap().approved.into_iter().map(|d| (d.by, d.reason)).collect();
    assert_eq!(approved, [("bob".to_owned(), "seen".to_owned()), ("cyn".to_owned(), "seen".to_owned())]);
}

#[test]
fn who_may_is_told_to_those_who_may_not() {
    let refused = |rule: &str, by: Approver| {
        let mut execution = asked(rule);
        let approved = approve(&mut execution, by.clone(), 1).unwrap_err();
        assert_eq!(reject(&mut execution, by, 1), Err(approved.clone()), "who may not approve may not reject");
        assert_eq!(execution, asked(rule), "and changes nothing");
        approved.to_string()
    };
    assert_eq!(
        refused(r#"{"groups":["ops","leads"]}"#, who("bob", &["support"])),
        "only members of ops or leads may approve or reject it"
    );
    let outsider = Approver { may_run: false, ..who("bob", &["support"]) };
    assert_eq!(refused("{}", outsider.clone()), "only those who may run the job may approve or reject it");
    assert_eq!(
        refused(r#"{"groups":["ops"]}"#, who("ann", &["ops"])),
        "whoever asked for an execution of this job may not approve or reject it: somebody else must"
    );
    // Who is in the group need not be one who may run it, and where the file says so, one's own word is enough.
    let member = Approver { groups: vec!["ops".into()], ..outsider };
    assert_eq!(approve(&mut asked(r#"{"groups":["ops"]}"#), member, 1), Ok(Applied::Changed));
    assert_eq!(approve(&mut asked(r#"{"not_self":false}"#), who("ann", &[]), 1), Ok(Applied::Changed));
}

#[test]
fn one_who_may_approve_can_say_no_also_after_a_yes_and_nothing_follows_it() {
    let mut execution = asked(r#"{"count":2}"#);
    approve(&mut execution, who("bob", &[]), 1).unwrap();
    assert_eq!(reject(&mut execution, who("bob", &[]), 2), Ok(Applied::Changed));
    assert_eq!((execution.state, execution.finished_at), (State::Cancelled, Some(at(2))));
    assert_eq!(execution.reason, Some(Reason::new(Reason::REJECTED)));
    assert_eq!(execution.message, "rejected by bob: not today");
    assert_eq!(reject(&mut execution, who("bob", &[]), 3), Ok(Applied::Unchanged), "the call repeated");
    let over = Err(Refusal::NotWaitingForApproval(State::Cancelled));
    assert_eq!(reject(&mut execution, who("cyn", &[]), 3), over);
    assert_eq!(approve(&mut execution, who("cyn", &[]), 3), over);
    assert_eq!(approve(&mut execution, who("bob", &[]), 3), over, "his yes came to nothing, and he is told so");
    // What is approved is stopped by cancelling it, and what asks for no approval has nobody's word.
    let mut execution = asked("{}");
    approve(&mut execution, who("bob", &[]), 1).unwrap();
    assert_eq!(reject(&mut execution, who("bob", &[]), 2), Err(Refusal::NotWaitingForApproval(State::Queued)));
    execution.approvals = None;
    assert_eq!(approve(&mut execution, who("bob", &[]), 2), Err(Refusal::NotWaitingForApproval(State::Queued)));
}

#[test]
fn an_approval_that_is_repeated_is_no_error_only_where_it_let_something_start() {
    let approved = || {
        let mut execution = asked("{}");
        approve(&mut execution, who("bob", &[]), 1).unwrap();
        execution
    };
    // It starts, and ends as it may.
    let mut execution = approved();
    let fence = claim(&mut execution, 1, 2).unwrap();
    execution.apply(Event::Start { fence }, at(3)).unwrap();
    assert_eq!(approve(&mut execution, who("bob", &[]), 4), Ok(Applied::Unchanged));
    execution.apply(Event::Finish { fence, ending: Ending::succeeded(), log: None }, at(5)).unwrap();
    assert_eq!(approve(&mut execution, who("bob", &[]), 6), Ok(Applied::Unchanged));
    assert_eq!(approve(&mut execution, who("cyn", &[]), 6), Err(Refusal::NotWaitingForApproval(State::Succeeded)));
    // It is cancelled in the queue, or not handed out in time.
    let mut cancelled = approved();
    cancelled.apply(Event::Cancel { by: "ann".into() }, at(2)).unwrap();
    assert_eq!(approve(&mut cancelled, who("bob", &[]), 3), Err(Refusal::NotWaitingForApproval(State::Cancelled)));
    let mut expired = approved();
    let over = expired.waits_until();
    expired.apply(Event::ExpireWait, over).unwrap();
    let again = expired.apply(Event::Approve { by: who("bob", &[]), reason: String::new() }, over);
    assert_eq!(again, Err(Refusal::NotWaitingForApproval(State::TimedOut)));
    // One of two is not enough, and the time is over before it is ended.
    let mut half = asked(r#"{"count":2,"valid_for":"1h"}"#);
    approve(&mut half, who("bob", &[]), 1).unwrap();
    assert_eq!(approve(&mut half, who("bob", &[]), 3600), Err(Refusal::ApprovalExpired));
}

#[test]
fn an_approval_that_does_not_come_in_time_ends_the_wait() {
    let mut execution = asked(r#"{"count":2,"valid_for":"1h"}"#);
    approve(&mut execution, who("bob", &[]), 1).unwrap();
    assert_eq!(execution.apply(Event::ExpireWait, at(3599)), Err(Refusal::MayWait));
    // Nobody has ended it yet, and all the same it is too late.
    assert_eq!(approve(&mut execution, who("cyn", &[]), 3600), Err(Refusal::ApprovalExpired));
    assert_eq!(execution.apply(Event::ExpireWait, at(3600)), Ok(Applied::Changed));
    assert_eq!((execution.state, execution.reason), (State::TimedOut, Some(Reason::new(Reason::APPROVAL_EXPIRED))));
    assert_eq!(execution.message, "1 of 2 approvals came within 1h");
}

#[test]
fn an_approval_is_good_for_a_first_start_in_time_and_for_no_other() {
    let expired = Some(Reason::new(Reason::APPROVAL_EXPIRED));
    // Still in the queue: the time to be approved and started is shorter than that to wait there.
    let mut queued = asked(r#"{"valid_for":"1h"}"#);
    approve(&mut queued, who("bob", &[]), 3000).unwrap();
    assert_eq!(queued.waits_until(), at(3600));
    let mut claimed = queued.clone();
    queued.apply(Event::ExpireWait, at(3600)).unwrap();
    assert_eq!((queued.state, &queued.reason), (State::TimedOut, &expired));
    assert_eq!(queued.message, "it was approved, and did not start within 1h of being asked for");
    // Nobody has ended it yet, and all the same nobody is given it.
    assert_eq!(claim(&mut claimed.clone(), 1, 3600), Err(Refusal::ApprovalExpired));
    // Claimed, and its executor is slow to begin: it does not, and back in the queue it ends.
    let fence = claim(&mut claimed, 1, 3599).unwrap();
    let mut started = claimed.clone();
    assert_eq!(claimed.apply(Event::Start { fence }, at(3600)), Err(Refusal::ApprovalExpired));
    claimed.apply(Event::Unclaim { fence, reason: Reason::new(Reason::HANDED_BACK), message: String::new() }, at(3601)).unwrap();
    assert_eq!((claimed.state, &claimed.reason), (State::TimedOut, &expired));
    // Once started, what follows is the same run.
    started.apply(Event::Start { fence }, at(3599)).unwrap();
    started.apply(Event::Start { fence }, at(3601)).unwrap();
    let ending = Ending::because(State::Failed, Reason::EXIT_CODE, "exit code 3");
    started.apply(Event::Finish { fence, ending, log: None }, at(4000)).unwrap();
    assert_eq!(started.apply(Event::ExpireWait, at(4001)), Err(Refusal::MayWait));
    let fence = claim(&mut started, 2, 4002).unwrap();
    assert_eq!(started.apply(Event::Start { fence }, at(4003)), Ok(Applied::Changed));
}

#[test]
fn the_time_in_the_queue_is_counted_from_the_last_approval() {
    let mut execution = asked(r#"{"valid_for":"30d"}"#);
    execution.queue_timeout = Duration::from_secs(100);
    assert_eq!(execution.apply(Event::ExpireWait, at(1000)), Err(Refusal::MayWait));
    approve(&mut execution, who("bob", &[]), 1000).unwrap();
    assert_eq!(execution.apply(Event::ExpireWait, at(1099)), Err(Refusal::MayWait));
    execution.apply(Event::ExpireWait, at(1100)).unwrap();
    assert_eq!(execution.reason, Some(Reason::new(Reason::QUEUE_DEADLINE)));
}

#[test]
fn it_can_be_cancelled_while_it_waits() {
    let mut execution = asked("{}");
    assert_eq!(execution.apply(Event::Cancel { by: "ann".into() }, at(1)), Ok(Applied::Changed));
    assert_eq!((execution.state, execution.reason), (State::Cancelled, Some(Reason::new(Reason::CANCELLED))));
}

/// Records of before have no approvals, and those of jobs that ask for none pay nothing.
#[test]
fn the_rule_is_kept_as_it_was_and_records_without_one_read() {
    let execution = asked(r#"{"groups":["ops"],"count":2,"not_self":false,"valid_for":"1h"}"#);
    let kept = execution.approvals.as_deref().unwrap();
    assert_eq!((kept.groups.as_slice(), kept.count, kept.not_self), (["ops".to_owned()].as_slice(), 2, false));
    assert_eq!(kept.valid_for, Duration::from_secs(3600));
    let mut json = serde_json::to_value(&execution).unwrap();
    assert_eq!(serde_json::from_value::<Execution>(json.clone()).unwrap(), execution);
    json.as_object_mut().unwrap().remove("approvals");
    json["state"] = "queued".into();
    let before: Execution = serde_json::from_value(json).unwrap();
    assert!(before.approvals.is_none() && !serde_json::to_string(&before).unwrap().contains("approv"));
}
