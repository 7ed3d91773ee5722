//! A controller with something of everything, in which each text that comes from elsewhere can be any.

use octavius_core::JobDefinition;
use octavius_proto::v1::{self, ExecutionState, ExecutorState};
use serde_json::json;

use crate::fake::{Fake, ago};

/// The executions, by what is to be seen of them.
pub(crate) const RUNNING: &str = "0k3v7q2m8d5x1n4r6t9w0b9f2q";
pub(crate) const FAILED: &str = "0k3v7q2m8d5x1n4r6t9w0b9f2r";
pub(crate) const WAITING: &str = "0k3v7q2m8d5x1n4r6t9w0b9f2s";

/// A job with an argument of every kind.
pub(crate) fn job(text: &str) -> JobDefinition {
    serde_json::from_value(json!({
        "name": "refund-order", "description": text, "author": text, "image_name": text,
        "authorized_groups": [text], "executor": {"vpc": "payments"}, "labels": {"team": "payments"},
        "env_vars": {
            "args": [
                {"name": "order", "description": text, "required": true, "pattern": "A-[0-9]+"},
                {"name": "count", "type": "integer", "default": 3},
                {"name": "share", "type": "number"},
                {"name": "reason", "enum": ["fraud", "goodwill", text], "default": "goodwill"},
                {"name": "notify", "type": "boolean"},
                {"name": "wait", "type": "duration", "default": "10m"},
                {"name": "note", "default": format!("{text}\n{text}")},
                {"name": "pin", "sensitive": true, "default": "sensitive-default"},
                {"name": "door", "sensitive": true, "enum": ["sensitive-choice", "sensitive-default"]},
            ],
            "secrets": [{"name": "PAYMENT_TOKEN"}],
        },
    }))
    .unwrap()
}

fn revision(number: u64, text: &str) -> v1::Revision {
    v1::Revision {
        catalog: "support".to_owned(),
        number,
        parent: number - 1,
        applied_by: text.to_owned(),
        applied_at: ago(3600),
        provenance: Some(v1::Provenance {
            commit: "4be07d1".repeat(6)[..40].to_owned(),
            dirty: true,
            repository: text.to_owned(),
            author: text.to_owned(),
        }),
        summary: Some(v1::RevisionSummary { added: 1, changed: 1, ..Default::default() }),
        plan_id: text.to_owned(),
        ..Default::default()
    }
}

fn ending(text: &str) -> v1::Ending {
    let outcome = ExecutionState::Failed.into();
    v1::Ending { outcome, reason: "EXIT_CODE".to_owned(), message: text.to_owned(), exit_code: Some(3) }
}

fn execution(id: &str, state: ExecutionState, text: &str) -> v1::Execution {
    v1::Execution {
        id: id.to_owned(),
        job: "refund-order".to_owned(),
        catalog: "support".to_owned(),
        definition: vec![7; 32].into(),
        revision: 2,
        arguments: [("order".to_owned(), text.to_owned()), ("pin".to_owned(), "********".to_owned())].into(),
        user: text.to_owned(),
        state: state.into(),
        state_since: ago(60),
        message: text.to_owned(),
        created_at: ago(130),
        executor: text.to_owned(),
        cancel_requested_by: text.to_owned(),
        selector: [("vpc".to_owned(), text.to_owned())].into(),
        rerun_of: text.to_owned(),
        trace_id: text.to_owned(),
        is_callers: true,
        ..Default::default()
    }
}

/// A controller whose texts are all `text`; what has a form of its own, such as a job's name, is as it is.
pub(crate) fn world(text: &str) -> Fake {
    let fake = Fake::default();
    let mut world = fake.world();
    let older = JobDefinition { description: format!("{text}, older"), ..job(text) };
    world.jobs = vec![job(text)];
    world.revisions = vec![(revision(1, text), vec![older]), (revision(2, text), vec![job(text)])];
    world.paused = Some(v1::Paused { by: text.to_owned(), at: ago(5), all: false, reason: text.to_owned() });
    let cause = v1::WaitCause {
        code: "EXECUTOR_FULL".to_owned(),
        message: text.to_owned(),
        executor: text.to_owned(),
        executions: vec![text.to_owned()],
        ..Default::default()
    };
    world.wait = Some(v1::Wait { ahead: 2, causes: vec![cause] });
    let attempt = v1::Attempt {
        number: 1,
        executor: text.to_owned(),
        claimed_at: ago(120),
        starting_at: ago(119),
        running_at: ago(118),
        ended_at: ago(60),
        ending: Some(ending(text)),
        late: Some(ending(text)),
        log_size: Some(text.len() as u64),
        runs_as: text.to_owned(),
        image: text.to_owned(),
    };
    let decision = v1::ApprovalDecision { by: text.to_owned(), at: ago(30), reason: text.to_owned() };
    let approvals = v1::ExecutionApprovals {
        groups: vec![text.to_owned()],
        count: 2,
        not_self: true,
        expires_at: ago(-3600),
        approved: vec![decision],
        rejected: None,
        is_callers: true,
        has_callers: false,
    };
    world.executions = vec![
        v1::Execution { approvals: Some(approvals), ..execution(WAITING, ExecutionState::WaitingForApproval, text) },
        v1::Execution { attempts: vec![attempt.clone()], ..execution(RUNNING, ExecutionState::Running, text) },
        v1::Execution {
            attempts: vec![attempt],
            finished_at: ago(60),
            exit_code: Some(3),
            reason: "EXIT_CODE".to_owned(),
            deliveries: vec![v1::Delivery {
                webhook: text.to_owned(),
                event: "failed".to_owned(),
                tries: 2,
                ..Default::default()
            }],
            ..execution(FAILED, ExecutionState::Failed, text)
        },
    ];
    let orphan = v1::Orphan { name: text.to_owned(), namespace: text.to_owned(), since: ago(60), removed_at: ago(-60) };
    world.executors = vec![v1::Executor {
        id: "pay-1".to_owned(),
        state: ExecutorState::Active.into(),
        labels: [("vpc".to_owned(), text.to_owned())].into(),
        capacity: 4,
        running: vec![text.to_owned()],
        version: text.to_owned(),
        runner: text.to_owned(),
        registered_at: ago(1000),
        last_seen_at: ago(1),
        draining: Some(v1::Drain { by: text.to_owned(), at: ago(10) }),
        orphans: vec![orphan],
        orphan_count: 3,
    }];
    world.audit = vec![v1::AuditRecord {
        at: ago(10),
        user: text.to_owned(),
        role: text.to_owned(),
        from: text.to_owned(),
        action: text.to_owned(),
        object: format!("execution/{text}"),
        result: v1::AuditResult::Refused.into(),
        reason: text.to_owned(),
        details: [("name".to_owned(), text.to_owned())].into(),
        ..Default::default()
    }];
    world.log = format!("{text}\n").into_bytes();
    world.user = text.to_owned();
    drop(world);
    fake
}

/// Every page of that world, for those who may see it.
pub(crate) const PAGES: [&str; 12] = [
    "/",
    "/jobs/refund-order",
    "/executions",
    "/executions?all=1&state=failed&since=2h",
    "/executions/0k3v7q2m8d5x1n4r6t9w0b9f2q",
    "/executions/0k3v7q2m8d5x1n4r6t9w0b9f2r",
    "/executions/0k3v7q2m8d5x1n4r6t9w0b9f2s",
    "/approvals",
    "/executors",
    "/executors/pay-1",
    "/revisions",
    "/sign-in",
];
