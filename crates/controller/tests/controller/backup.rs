//! A backup that is taken while work goes on, and a controller on what was restored from it.

use std::collections::BTreeSet;
use std::io::Cursor;
use std::net::SocketAddr;
use std::path::Path;
use std::sync::Arc;

use octavius_controller::{Archive, Clock, Controller, ControllerError, ControllerOptions, Retention};
use octavius_proto::v1::{self, ExecutionState as S, Role};
use octavius_store::{EmbeddedOptions, Store, Txn, backup, key, open_embedded};
use tempfile::TempDir;
use tonic::{Code, Status};

use crate::fake::{Fake, hello};
use crate::harness::{House, connect, execute, get, soon, timing};

const JOB: &str = r#"{"name":"j","command":["true"],"env_vars":{"args":[{"name":"a"}]}}"#;

async fn take(connection: &octavius_proto::client::Connection) -> Result<Vec<u8>, Status> {
    let mut stream = connection.admin().backup(v1::BackupRequest {}).await?.into_inner();
    let mut file = Vec::new();
    while let Some(piece) = soon("a piece of a backup", stream.message()).await? {
        assert!(piece.data.len() <= backup::PIECE_BYTES);
        file.extend_from_slice(&piece.data);
    }
    Ok(file)
}

/// The archive is no part of a backup: it stays where it is.
fn options(archive: &Path, store: &Arc<dyn Store>, dir: &TempDir) -> ControllerOptions {
    ControllerOptions {
        store: Arc::clone(store),
        listen: SocketAddr::from(([127, 0, 0, 1], 0)),
        tls: None,
        bootstrap_token_file: dir.path().join("token"),
        timing: timing(),
        retention: Retention::default(),
        archive: Some(Archive::open(archive.to_str().unwrap()).unwrap()),
        log_limit: octavius_core::limit::LOG_BYTES_IN_STORE,
        audit_export: octavius_controller::AuditExport::default(),
        compact: true,
        strategy: octavius_core::dispatch::Strategy::default(),
        encryption: octavius_controller::Encryption::default(),
        clock: Clock::default(),
        limits: octavius_controller::RequestLimits::default(),
        issuers: Vec::new(),
        webhooks: Vec::new(),
        metrics_listen: None,
        page: None,
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn every_execution_of_a_backup_is_there_after_a_restore() {
    let house = House::open().await;
    house.apply(&[JOB]).await;
    let admin = house.admin().await;
    let fake = Fake::register(&house, "e").await;
    let mut session = fake.session(hello(1)).await.unwrap();
    let done = execute(&admin, "j", &[]).await.unwrap();
    let claim = session.assignment().await;
    fake.completes(&claim, &vec![b'x'; 1_000_000]).await;
    let runs = execute(&admin, "j", &[("a", &"y".repeat(30_000))]).await.unwrap();
    let claim = session.assignment().await;
    fake.begins(&claim).await;

    // Work comes in before, while and after the backup is taken.
    let (stop, mut stopped) = tokio::sync::watch::channel(false);
    let working = {
        let admin = admin.clone();
        tokio::spawn(async move {
            let mut ids = BTreeSet::new();
            while !*stopped.borrow_and_update() {
                ids.insert(execute(&admin, "j", &[]).await.unwrap());
            }
            ids
        })
    };
    let before: BTreeSet<_> = {
        let mut ids = BTreeSet::from([done.clone(), runs.clone()]);
        for _ in 0..20 {
            ids.insert(execute(&admin, "j", &[]).await.unwrap());
        }
        ids
    };
    let file = take(&admin).await.unwrap();
    stop.send(true).unwrap();
    let all: BTreeSet<_> = working.await.unwrap().union(&before).cloned().collect();

    let dir = tempfile::tempdir().unwrap();
    let store = open_embedded(&dir.path().join("store"), EmbeddedOptions::default()).unwrap();
    let summary = backup::restore(&*store, &mut Cursor::new(&file)).await.unwrap();
    assert_eq!((summary.header.controller_id.as_str(), summary.bytes), (house.id(), file.len() as u64));
    let controller = Controller::start(options(&house.dir().join("archive"), &store, &dir)).await.unwrap();
    assert_eq!(controller.id(), house.id());
    // Tokens are those of then.
    let restored = connect(controller.address(), Some(&house.token)).await;
    let mut listed = BTreeSet::new();
    let mut page_token = String::new();
    loop {
        let request = v1::ListExecutionsRequest { all: true, limit: 1000, page_token, ..Default::default() };
        let page = restored.executions().list_executions(request).await.unwrap().into_inner();
        listed.extend(page.executions.into_iter().map(|execution| execution.id));
        page_token = page.next_page_token;
        if page_token.is_empty() {
            break;
        }
    }
    assert_eq!(before.difference(&listed).collect::<Vec<_>>(), Vec::<&String>::new(), "what was there before the backup");
    assert_eq!(listed.difference(&all).collect::<Vec<_>>(), Vec::<&String>::new(), "what nobody asked for");
    assert_eq!(get(&restored, &done).await.state(), S::Succeeded);
    let running = get(&restored, &runs).await;
    assert_eq!((running.state(), running.arguments["a"].len()), (S::Running, 30_000));
    let new = execute(&restored, "j", &[]).await.unwrap();
    assert_eq!(get(&restored, &new).await.state(), S::Queued);
    controller.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_waits_for_approval_waits_still_after_a_restore_and_can_be_approved() {
    let house = House::open().await;
    house.apply(&[r#"{"name":"gated","command":["true"],"approvals":{"count":2}}"#]).await;
    let bob = house.token(Role::User, "bob", &[]).await.token;
    let ann = house.person(Role::User, "ann", &[]).await;
    let id = execute(&ann, "gated", &[]).await.unwrap();
    let approve = async |connection: &octavius_proto::client::Connection| {
        let request = v1::ApproveExecutionRequest { id: id.clone(), reason: String::new() };
        connection.executions().approve_execution(request).await.unwrap().into_inner().execution.unwrap()
    };
    let admin = house.admin().await;
    assert_eq!(approve(&admin).await.state(), S::WaitingForApproval);
    let file = take(&admin).await.unwrap();

    let dir = tempfile::tempdir().unwrap();
    let store = open_embedded(&dir.path().join("store"), EmbeddedOptions::default()).unwrap();
    backup::restore(&*store, &mut Cursor::new(&file)).await.unwrap();
    let controller = Controller::start(options(&house.dir().join("archive"), &store, &dir)).await.unwrap();
    let restored = connect(controller.address(), Some(&bob)).await;
    let states = vec![S::WaitingForApproval.into()];
    let request = v1::ListExecutionsRequest { all: true, states, ..Default::default() };
    let listed = restored.executions().list_executions(request).await.unwrap().into_inner().executions;
    assert_eq!(listed.iter().map(|execution| &execution.id).collect::<Vec<_>>(), [&id]);
    let queued = approve(&restored).await;
    assert_eq!((queued.state(), queued.approvals.unwrap().approved.len()), (S::Queued, 2), "the approval of before counts");
    controller.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn only_admins_take_backups_and_a_stopping_controller_ends_them() {
    let mut house = House::open().await;
    for role in [Role::Viewer, Role::User, Role::Applier] {
        let person = house.person(role, "ann", &[]).await;
        assert_eq!(take(&person).await.unwrap_err().code(), Code::PermissionDenied);
    }
    for n in 0..300u32 {
        house
            .store()
            .commit(Txn::new().put(key::blob_chunk(&octavius_core::Digest::of(b"x"), n as usize), vec![7; 60_000]))
            .await
            .unwrap();
    }
    let mut stream = house.admin().await.admin().backup(v1::BackupRequest {}).await.unwrap().into_inner();
    assert!(!soon("a first piece", stream.message()).await.unwrap().unwrap().data.is_empty());
    let took = house.stop().await;
    assert!(took < std::time::Duration::from_secs(8), "a client that does not read held the stop up for {took:?}");
    let ended = loop {
        match soon("the end", stream.message()).await {
            Ok(Some(_)) => {}
            Ok(None) => panic!("a backup that is not whole ended as if it were"),
            Err(status) => break status,
        }
    };
    assert!(matches!(ended.code(), Code::Unavailable | Code::Unknown | Code::Cancelled), "{ended:?}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn no_controller_begins_on_a_store_that_is_not_wholly_restored() {
    let dir = tempfile::tempdir().unwrap();
    let store = open_embedded(&dir.path().join("store"), EmbeddedOptions::default()).unwrap();
    store.commit(Txn::new().put(key::restoring(), "begun")).await.unwrap();
    let refused = Controller::start(options(&dir.path().join("archive"), &store, &dir)).await.unwrap_err();
    assert!(matches!(refused, ControllerError::Restoring), "{refused}");
    assert!(refused.to_string().contains("run the restore again"));
    assert!(store.get(&key::controller()).await.unwrap().is_none());
}
