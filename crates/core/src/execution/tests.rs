//! What holds for every sequence of events, and the ordinary ways through a life.

use super::*;
use proptest::prelude::*;

fn at(second: i64) -> Timestamp {
    Timestamp::from_second(1_700_000_000 + second).unwrap()
}

fn submitted(retries: u32, on_lost: OnLost) -> Execution {
    let mut job: JobDefinition = serde_json::from_str(r#"{"name":"j","command":["true"]}"#).unwrap();
    job.retries = retries;
    job.on_lost = on_lost;
    let submission = Submission {
        id: ExecutionId::from_bits(7),
        arguments: Arguments::new(),
        user: "ann".into(),
        at: at(0),
        timeout: None,
        slot: None,
    };
    Execution::submit(&job, CatalogName::new("c").unwrap(), 1, submission, &Timing::default())
}

fn executor() -> ExecutorId {
    ExecutorId::new("e1").unwrap()
}

fn ending() -> impl Strategy<Value = Ending> {
    (0..5usize, any::<bool>()).prop_map(|(outcome, hopeless)| {
        let reason = if hopeless { Reason::REQUIREMENT_NOT_MET } else { Reason::EXIT_CODE };
        Ending::because(State::ALL[5 + outcome], reason, "m")
    })
}

/// Fences of the past, the present and never: attempts and nonces from a small range, so that they often meet.
fn event() -> impl Strategy<Value = Event> {
    let fence = || (1..6u32, 0..3u64).prop_map(|(attempt, nonce)| Fence { attempt, nonce });
    prop_oneof![
        3 => (0..3u64).prop_map(|nonce| Event::Claim { executor: executor(), nonce, slot: None }),
        1 => fence().prop_map(|fence| Event::Unclaim { fence, reason: Reason::new(Reason::HANDED_BACK), message: String::new() }),
        4 => fence().prop_map(|fence| Event::Start { fence }),
        3 => (fence(), any::<bool>()).prop_map(|(fence, known)| {
            Event::Run { fence, runs_as: "1".into(), image: if known { "i@sha256:1".into() } else { String::new() } }
        }),
        3 => (fence(), ending()).prop_map(|(fence, ending)| Event::Finish { fence, ending, log: None }),
        1 => fence().prop_map(|fence| Event::Lose { fence, message: "gone".into() }),
        1 => Just(Event::Cancel { by: "bob".into() }),
        1 => Just(Event::ExpireWait),
        2 => (approver(), any::<bool>()).prop_map(|(by, approves)| {
            if approves { Event::Approve { by, reason: String::new() } } else { Event::Reject { by, reason: "no".into() } }
        }),
        1 => Just(Event::HoldUp { reason: Reason::new(Reason::ENCRYPTION_KEY_MISSING), message: "no key".into() }),
        1 => Just(Event::FailInQueue { reason: Reason::new(Reason::ARGUMENTS_DAMAGED), message: "damaged".into() }),
    ]
}

/// Whoever asked, and others, in the group and not, who may run the job and may not.
fn approver() -> impl Strategy<Value = Approver> {
    (0..4usize, any::<bool>(), any::<bool>()).prop_map(|(user, member, may_run)| Approver {
        user: ["ann", "bob", "cyn", "dan"][user].into(),
        groups: if member { vec!["ops".into()] } else { vec![] },
        may_run,
    })
}

/// A rule for approvals, or none.
fn rule() -> impl Strategy<Value = Option<ExecutionApprovals>> {
    prop::option::of((any::<bool>(), 1..4u32, any::<bool>(), 5..60u64).prop_map(|(grouped, count, not_self, seconds)| {
        ExecutionApprovals {
            groups: if grouped { vec!["ops".into()] } else { vec![] },
            count,
            not_self,
            valid_for: Duration::from_secs(seconds),
            approved: Vec::new(),
            rejected: None,
        }
    }))
}

fn fence_of(event: &Event) -> Option<Fence> {
    match event {
        Event::Unclaim { fence, .. }
        | Event::Start { fence }
        | Event::Run { fence, .. }
        | Event::Finish { fence, .. }
        | Event::Lose { fence, .. } => Some(*fence),
        Event::Claim { .. }
        | Event::Cancel { .. }
        | Event::HoldUp { .. }
        | Event::FailInQueue { .. }
        | Event::ExpireWait
        | Event::Approve { .. }
        | Event::Reject { .. }
        | Event::FreeSlot => None,
    }
}

/// Everything of an execution but the late outcomes of lost attempts.
fn without_late(execution: &Execution) -> Execution {
    let mut bare = execution.clone();
    for attempt in &mut bare.attempts {
        attempt.late = None;
        attempt.log = None;
    }
    bare
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(2000))]

    #[test]
    fn no_sequence_of_events_breaks_the_rules(
        events in prop::collection::vec(event(), 0..60), retries in 0..3u32, retry_lost: bool, rule in rule(),
    ) {
        let mut execution = submitted(retries, if retry_lost { OnLost::Retry } else { OnLost::Fail });
        execution.queue_timeout = Duration::from_secs(20); // so that some waits are too long
        if let Some(rule) = &rule {
            execution.approvals = Some(Box::new(rule.clone()));
            execution.state = State::WaitingForApproval;
        }
        let mut may_approve = std::collections::BTreeSet::new(); // by the events, whatever the record says
        for (second, event) in (1..).zip(events) {
            let before = execution.clone();
            let applied = execution.apply(event.clone(), at(second));
            if applied != Ok(Applied::Changed) {
                prop_assert_eq!(&execution, &before, "refused or repeated events change nothing");
            }
            if before.state.is_terminal() {
                prop_assert_eq!(without_late(&execution), without_late(&before), "terminal states never change");
            }
            if let Some(fence) = fence_of(&event) && before.fence() != Some(fence) {
                prop_assert_eq!(without_late(&execution), without_late(&before), "an old fence never acts");
            }
            if execution.starts() > before.starts() {
                prop_assert_eq!(execution.starts(), before.starts() + 1);
                prop_assert_eq!(before.state, State::Claimed, "a start needs a claim");
            }
            if let (Event::Approve { by, .. }, Some(rule), Ok(_)) = (&event, &rule, &applied) {
                let is_in = if rule.groups.is_empty() { by.may_run } else { !by.groups.is_empty() };
                prop_assert!(is_in && !(rule.not_self && by.user == "ann"), "{by:?} may not approve");
                if before.state == State::WaitingForApproval {
                    may_approve.insert(by.user.clone());
                }
            }
            if execution.state == State::Claimed && let Some(rule) = &rule {
                prop_assert!(may_approve.len() >= rule.count as usize, "claimed with {may_approve:?}");
            }
            if execution.state == State::WaitingForApproval {
                prop_assert!(before.state == State::WaitingForApproval && execution.attempts.is_empty());
            }
            if execution.starts() == 1 && before.starts() == 0 && let Some(rule) = &rule {
                prop_assert!(at(second) < at(0) + rule.valid_for, "what was approved starts in time or not at all");
            }
            let waited = matches!(before.state, State::WaitingForApproval | State::Queued);
            if waited && execution.state == State::TimedOut {
                prop_assert!(at(second) >= before.waits_until(), "a wait ends when it is too long, and not before");
            }
            if matches!(event, Event::FailInQueue { .. }) && applied == Ok(Applied::Changed) {
                prop_assert_eq!(before.state, State::Queued, "nothing is taken from who has it");
            }
            if !retry_lost {
                let lost = execution.attempts.iter().any(|a| a.ending.as_ref().is_some_and(|e| e.outcome == State::Lost));
                prop_assert!(!lost || execution.state.is_terminal(), "without on_lost: retry a loss is the end");
            }
            prop_assert_eq!(execution.state.is_terminal(), execution.finished_at.is_some());
            prop_assert!(execution.attempts.windows(2).all(|pair| pair[0].number < pair[1].number));
            prop_assert!(execution.attempts.len() <= Execution::MAX_ATTEMPTS);
            let json = serde_json::to_vec(&execution).unwrap();
            prop_assert_eq!(&serde_json::from_slice::<Execution>(&json).unwrap(), &execution, "it survives storage");
            prop_assert_eq!(execution.apply(event, at(second)).is_ok_and(|a| a == Applied::Changed) && applied.is_err(), false);
        }
    }
}

fn claimed(execution: &mut Execution, nonce: u64) -> Fence {
    execution.apply(Event::Claim { executor: executor(), nonce, slot: None }, at(1)).unwrap();
    execution.fence().unwrap()
}

#[test]
fn the_ordinary_life_of_an_execution() {
    let mut execution = submitted(0, OnLost::Fail);
    let fence = claimed(&mut execution, 9);
    assert_eq!(fence, Fence { attempt: 1, nonce: 9 });
    for event in [
        Event::Start { fence },
        Event::Run { fence, runs_as: "job a/b".into(), image: String::new() },
        Event::Run { fence, runs_as: "job a/b".into(), image: "i@sha256:1".into() },
        Event::Finish {
            fence,
            ending: Ending::succeeded(),
            log: Some(LogSeal { size_bytes: 3, crc32c: 1, whole: true, missing_bytes: 0 }),
        },
    ] {
        assert_eq!(execution.apply(event.clone(), at(2)), Ok(Applied::Changed));
        assert_eq!(execution.apply(event, at(3)), Ok(Applied::Unchanged), "every report can be repeated");
    }
    assert_eq!((execution.state, execution.exit_code), (State::Succeeded, Some(0)));
}

#[test]
fn failures_are_retried_as_often_as_the_job_says() {
    let mut execution = submitted(1, OnLost::Fail);
    for (round, expected) in [(1, State::Queued), (2, State::Failed)] {
        let fence = claimed(&mut execution, round);
        execution.apply(Event::Start { fence }, at(2)).unwrap();
        let ending = Ending { exit_code: Some(3), ..Ending::because(State::Failed, Reason::EXIT_CODE, "exit code 3") };
        execution.apply(Event::Finish { fence, ending, log: None }, at(3)).unwrap();
        assert_eq!(execution.state, expected);
    }
    assert_eq!((execution.starts(), execution.exit_code), (2, Some(3)));
}

/// The end of one wait, told late, must not end the next.
#[test]
fn a_wait_that_began_anew_is_not_ended_for_the_one_before() {
    let mut execution = submitted(1, OnLost::Fail);
    execution.queue_timeout = Duration::from_secs(10);
    let fence = claimed(&mut execution, 1);
    execution.apply(Event::Start { fence }, at(2)).unwrap();
    let failed = Ending::because(State::Failed, Reason::EXIT_CODE, "exit code 3");
    execution.apply(Event::Finish { fence, ending: failed, log: None }, at(9)).unwrap();
    let waiting = execution.clone();
    assert_eq!(execution.apply(Event::ExpireWait, at(11)), Err(Refusal::MayWait), "its first wait would be over");
    assert_eq!(execution, waiting);
    assert_eq!(execution.apply(Event::ExpireWait, at(19)), Ok(Applied::Changed));
    assert_eq!(execution.state, State::TimedOut);
}

#[test]
fn a_cancel_before_the_start_ends_it_and_refuses_the_start() {
    let mut execution = submitted(0, OnLost::Fail);
    let fence = claimed(&mut execution, 1);
    execution.apply(Event::Cancel { by: "ann".into() }, at(2)).unwrap();
    assert_eq!(execution.state, State::Cancelled);
    assert_eq!(execution.apply(Event::Start { fence }, at(3)), Err(Refusal::Ended(State::Cancelled)));
}

#[test]
fn a_late_outcome_of_a_lost_attempt_is_kept_beside_it() {
    let mut execution = submitted(0, OnLost::Fail);
    let fence = claimed(&mut execution, 1);
    execution.apply(Event::Start { fence }, at(2)).unwrap();
    execution.apply(Event::Lose { fence, message: "silent for 3m".into() }, at(3)).unwrap();
    assert_eq!(execution.state, State::Lost);
    let late = Event::Finish { fence, ending: Ending::succeeded(), log: None };
    assert_eq!(execution.apply(late, at(4)), Ok(Applied::Changed));
    assert_eq!(execution.state, State::Lost);
    assert_eq!(execution.attempts[0].late, Some(Ending::succeeded()));
}

#[test]
fn only_a_job_that_says_so_runs_again_after_a_loss() {
    let mut execution = submitted(0, OnLost::Retry);
    let fence = claimed(&mut execution, 1);
    execution.apply(Event::Start { fence }, at(2)).unwrap();
    execution.apply(Event::Lose { fence, message: String::new() }, at(3)).unwrap();
    assert_eq!(execution.state, State::Queued);
    assert_ne!(claimed(&mut execution, 1), fence);
}

#[test]
fn a_claim_whose_answer_was_lost_can_be_made_again_and_another_cannot() {
    let mut execution = submitted(0, OnLost::Fail);
    let claim = |nonce| Event::Claim { executor: executor(), nonce, slot: None };
    assert_eq!(execution.apply(claim(1), at(1)), Ok(Applied::Changed));
    assert_eq!(execution.apply(claim(1), at(2)), Ok(Applied::Unchanged));
    assert_eq!(execution.apply(claim(2), at(2)), Err(Refusal::State(State::Claimed)));
}

/// Otherwise an execution with many retries could not take another step: its record would not fit the store.
#[test]
fn the_longest_life_fits_one_value_of_the_store() {
    let mut execution = submitted(100, OnLost::Fail);
    execution.user = "é".repeat(128);
    execution.arguments = [("a".to_owned(), "x".repeat(Execution::ARGUMENTS_BYTES))].into();
    let decision = |number: u32| ApprovalDecision {
        by: format!("{number}{}", "é".repeat(127)),
        at: at(1),
        reason: "\"".repeat(crate::limit::APPROVAL_REASON_BYTES),
    };
    execution.approvals = Some(Box::new(ExecutionApprovals {
        groups: vec!["x".repeat(crate::limit::APPROVAL_GROUP_BYTES); crate::limit::APPROVAL_GROUPS],
        count: crate::limit::APPROVAL_COUNT,
        not_self: true,
        valid_for: crate::limit::APPROVAL_VALID_MAX,
        approved: (0..crate::limit::APPROVAL_COUNT).map(decision).collect(),
        rejected: None,
    }));
    execution.selector = (0..crate::limit::LABELS).map(|n| (format!("{n:063}"), "x".repeat(63))).collect();
    let executor = ExecutorId::new("x".repeat(63)).unwrap();
    let when = Timestamp::from_nanosecond(1_700_000_000_123_456_789).unwrap();
    let message = "\"".repeat(Execution::MESSAGE_BYTES);
    let step = |execution: &mut Execution, event| {
        execution.apply(event, when).unwrap();
        let bytes = serde_json::to_vec(&execution).unwrap().len();
        assert!(bytes < crate::limit::STORED_VALUE_BYTES, "{bytes} after {} attempts", execution.attempts.len());
    };
    let mut nonce = u64::MAX;
    while execution.state == State::Queued {
        for started in [false, true] {
            nonce -= 1;
            step(&mut execution, Event::Claim { executor: executor.clone(), nonce, slot: None });
            let fence = execution.fence().unwrap();
            if started {
                let reason = Some(Reason("R".repeat(32)));
                let ending = Ending { outcome: State::Failed, reason, message: message.clone(), exit_code: Some(i32::MIN) };
                let log = Some(LogSeal { size_bytes: u64::MAX, crc32c: u32::MAX, whole: false, missing_bytes: u64::MAX });
                step(&mut execution, Event::Start { fence });
                step(&mut execution, Event::Run { fence, runs_as: "\"".repeat(200), image: "x".repeat(330) });
                step(&mut execution, Event::Finish { fence, ending, log });
            } else {
                step(&mut execution, Event::Unclaim { fence, reason: Reason::new("R"), message: message.clone() });
            }
        }
    }
    assert_eq!((execution.state, execution.starts()), (State::Failed, 101));
    assert!(execution.attempts.len() <= Execution::MAX_ATTEMPTS);
}

#[test]
fn a_loss_is_not_a_failure_that_retries_repeat() {
    let lost = || Ending::because(State::Lost, Reason::RUNNER_LOST, "the host restarted");
    let mut execution = submitted(3, OnLost::Fail);
    let fence = claimed(&mut execution, 1);
    execution.apply(Event::Finish { fence, ending: lost(), log: None }, at(2)).unwrap();
    assert_eq!(execution.state, State::Queued, "nothing had started");
    let fence = claimed(&mut execution, 2);
    execution.apply(Event::Start { fence }, at(3)).unwrap();
    execution.apply(Event::Finish { fence, ending: lost(), log: None }, at(4)).unwrap();
    assert_eq!(execution.state, State::Lost, "the job may have done its work already");
}

#[test]
fn an_execution_waits_longer_before_each_attempt_and_not_for_ever() {
    let timing = Timing::default();
    let job: JobDefinition = serde_json::from_str(r#"{"name":"j","command":["true"],"retries":100}"#).unwrap();
    let submission = Submission {
        id: ExecutionId::from_bits(7),
        arguments: Arguments::new(),
        user: "ann".into(),
        at: at(0),
        timeout: None,
        slot: None,
    };
    let mut execution = Execution::submit(&job, CatalogName::new("c").unwrap(), 1, submission, &timing);
    assert_eq!(execution.back_off(&timing), Duration::ZERO);
    let mut pauses = Vec::new();
    for nonce in 0..8 {
        // A claim that came to nothing makes no pause longer.
        execution.apply(Event::Claim { executor: executor(), nonce: 100 + nonce, slot: None }, at(1)).unwrap();
        let fence = execution.fence().unwrap();
        execution.apply(Event::Unclaim { fence, reason: Reason::new("X"), message: String::new() }, at(1)).unwrap();
        assert_eq!(execution.back_off(&timing), Duration::ZERO, "it was given back, and may go at once");
        execution.apply(Event::Claim { executor: executor(), nonce, slot: None }, at(1)).unwrap();
        let fence = execution.fence().unwrap();
        execution.apply(Event::Start { fence }, at(1)).unwrap();
        assert_eq!(execution.back_off(&timing), Duration::ZERO);
        let ending = Ending::because(State::Failed, "X", "");
        execution.apply(Event::Finish { fence, ending, log: None }, at(1)).unwrap();
        pauses.push(execution.back_off(&timing).as_secs());
    }
    assert_eq!(pauses, [10, 20, 40, 80, 160, 320, 360, 360]);
}

#[test]
fn a_limited_execution_is_not_claimed_without_a_slot_below_its_limit() {
    let job: JobDefinition = serde_json::from_str(r#"{"name":"j","command":["true"],"concurrency":{"limit":2}}"#).unwrap();
    let submission = Submission {
        id: ExecutionId::from_bits(7),
        arguments: Arguments::new(),
        user: "ann".into(),
        at: at(0),
        timeout: None,
        slot: None,
    };
    let mut execution = Execution::submit(&job, CatalogName::new("c").unwrap(), 1, submission, &Timing::default());
    let claim = |slot| Event::Claim { executor: executor(), nonce: 1, slot };
    assert_eq!(execution.apply(claim(None), at(1)), Err(Refusal::NoSlot));
    assert_eq!(execution.apply(claim(Some(2)), at(1)), Err(Refusal::NoSlot));
    assert_eq!(execution.apply(claim(Some(1)), at(1)), Ok(Applied::Changed));
    assert_eq!(execution.slot, Some(1));
    let fence = execution.fence().unwrap();
    execution.apply(Event::Start { fence }, at(1)).unwrap();
    execution.apply(Event::Lose { fence, message: String::new() }, at(1)).unwrap();
    assert_eq!(execution.slot, Some(1), "it may run still");
    // Who cancels it says that it does not.
    assert_eq!(execution.clone().apply(Event::Cancel { by: "ann".into() }, at(2)), Ok(Applied::Changed));
    execution.apply(Event::Finish { fence, ending: Ending::succeeded(), log: None }, at(3)).unwrap();
    assert_eq!((execution.slot, execution.state), (None, State::Lost));
}

#[test]
fn what_the_job_says_about_its_logs_is_pinned() {
    let submitted = |logs: &str| {
        let job: JobDefinition = serde_json::from_str(&format!(r#"{{"name":"j","command":["true"],"logs":{logs}}}"#)).unwrap();
        let (id, arguments) = (ExecutionId::from_bits(7), Arguments::new());
        let submission = Submission { id, arguments, user: "ann".into(), at: at(0), timeout: None, slot: None };
        Execution::submit(&job, CatalogName::new("c").unwrap(), 1, submission, &Timing::default())
    };
    let hours = |hours: u64| Some(Duration::from_secs(hours * 3600));
    let some = submitted(r#"{"limit":"256MiB","keep_for":"90d","keep_bytes":"10GiB"}"#);
    assert_eq!(some.logs, LogRules { limit: Some(256 << 20), keep_for: hours(90 * 24), keep_bytes: Some(10 << 30) });
    let all = submitted(r#"{"limit":"none"}"#);
    assert_eq!(all.logs, LogRules { limit: Some(u64::MAX), ..LogRules::default() });
    for execution in [some, all, submitted("{}")] {
        let written = serde_json::to_string(&execution).unwrap();
        assert_eq!(written.contains("logs"), execution.logs != LogRules::default(), "{written}");
        assert_eq!(serde_json::from_str::<Execution>(&written).unwrap(), execution);
    }
}

/// One controller lacks a key and another has it: what the first says must not stand after the second has handed it out.
#[test]
fn what_holds_an_execution_up_is_told_while_it_waits_and_with_the_end_of_its_wait() {
    let mut execution = submitted(0, OnLost::Fail);
    let hold = Event::HoldUp { reason: Reason::new(Reason::ENCRYPTION_KEY_MISSING), message: "no key 0a1b2c3d".into() };
    assert_eq!(execution.apply(hold.clone(), at(1)), Ok(Applied::Changed));
    assert_eq!(execution.apply(hold.clone(), at(2)), Ok(Applied::Unchanged));
    assert_eq!((execution.state, execution.message.as_str()), (State::Queued, "no key 0a1b2c3d"));
    let mut waited = execution.clone();
    waited.apply(Event::ExpireWait, waited.waits_until()).unwrap();
    assert_eq!(waited.reason, Some(Reason::new(Reason::QUEUE_DEADLINE)));
    assert!(waited.message.ends_with(": no key 0a1b2c3d"), "{}", waited.message);
    claimed(&mut execution, 1);
    assert_eq!((&execution.reason, execution.message.as_str()), (&None, ""));
    assert_eq!(execution.apply(hold, at(3)), Err(Refusal::State(State::Claimed)));
}

/// Submissions are many, and most are in nobody's trace.
#[test]
fn an_execution_that_nobody_traces_pays_nothing_for_it() {
    let mut execution = submitted(0, OnLost::Fail);
    let plain = serde_json::to_string(&execution).unwrap();
    assert!(!plain.contains("trace"), "{plain}");
    assert_eq!(serde_json::from_str::<Execution>(&plain).unwrap(), execution);
    let parent = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01";
    execution.trace = TraceContext::parse(parent, "").map(Box::new);
    let traced = serde_json::to_string(&execution).unwrap();
    assert!(traced.contains(&format!(r#""trace":{{"parent":"{parent}"}}"#)) && traced.len() < plain.len() + 90, "{traced}");
    assert_eq!(serde_json::from_str::<Execution>(&traced).unwrap(), execution);
}
