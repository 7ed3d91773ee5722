//! What a controller tells an admin of itself and of what it leans on.

use std::sync::atomic::Ordering;
use std::time::Duration;

use octavius_controller::{AuditExport, Clock};
use octavius_core::Timestamp;
use octavius_proto::client::Connection;
use octavius_proto::v1;

use crate::harness::{House, eventually};
use crate::keeping::{Gauged, gauged};

async fn ask(admin: &Connection) -> v1::GetControllerResponse {
    admin.admin().get_controller(v1::GetControllerRequest {}).await.unwrap().into_inner()
}

#[tokio::test]
async fn its_version_its_time_its_store_and_its_archive_are_told() {
    let clock = Clock::manual("2026-03-01T12:00:00Z".parse::<Timestamp>().unwrap());
    let house = House::by(clock.clone()).await;
    let admin = house.admin().await;
    clock.advance(Duration::from_secs(90));
    let told = ask(&admin).await;
    assert_eq!(told.version, env!("CARGO_PKG_VERSION"));
    let now = Some(prost_types::Timestamp { seconds: 1_772_366_490, nanos: 0 });
    assert_eq!(told.now, now, "by the controller's clock");
    let me = admin.admin().who_am_i(v1::WhoAmIRequest {}).await.unwrap().into_inner();
    assert_eq!(me.now, now, "whoever it is may ask for the time");
    let archive = told.archive.unwrap();
    assert!(archive.problem.is_empty() && archive.url.ends_with("/archive"), "{archive:?}");
    assert_eq!(told.audit_export, None, "it is not exported");
    eventually("the store's size to be known", async || {
        let store = ask(&admin).await.store.unwrap();
        let known = store.allocated_bytes > 0 && store.answered_within.is_some() && !store.refuses_logs && !store.refuses_work;
        if known { Ok(()) } else { Err(format!("{store:?}")) }
    })
    .await;
}

/// An archive that lost its marker is not the store's any more, and one that is gone does not answer: nobody has to wait for a log to learn of it.
#[tokio::test]
async fn an_archive_that_is_gone_is_told_and_one_that_is_back_too() {
    let house = House::open().await;
    let admin = house.admin().await;
    let (folder, aside) = (house.archive.clone().unwrap(), house.dir().join("aside"));
    std::fs::rename(&folder, &aside).unwrap();
    let archive = ask(&admin).await.archive.unwrap();
    assert!(!archive.problem.is_empty(), "{archive:?}");
    std::fs::rename(&aside, &folder).unwrap();
    assert_eq!(ask(&admin).await.archive.unwrap().problem, "");
    let none = House::without_archive().await;
    assert_eq!(ask(&none.admin().await).await.archive, None);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_store_that_fills_up_says_what_it_refuses() {
    let Gauged { house, percent, .. } = gauged().await;
    let admin = house.admin().await;
    for (fill, refuses_logs, refuses_work) in [(75, true, false), (90, true, true), (10, false, false)] {
        percent.store(fill, Ordering::SeqCst);
        eventually("the controller to see it", async || {
            let store = ask(&admin).await.store.unwrap();
            let seen =
                u64::from(store.percent) == fill && (store.refuses_logs, store.refuses_work) == (refuses_logs, refuses_work);
            if seen { Ok(()) } else { Err(format!("{fill}: {store:?}")) }
        })
        .await;
    }
}

#[tokio::test]
async fn how_far_the_audit_trail_is_exported_is_told() {
    let out = tempfile::tempdir().unwrap();
    let mut house = House::with(crate::keeping::often()).await; // another controller's turn is waited for twice as long
    house.stop().await;
    house.audit_export = AuditExport::Folder(out.path().to_owned());
    house.start_again().await;
    let admin = house.admin().await;
    let hour = eventually("an export", async || {
        let told = ask(&admin).await.audit_export;
        told.and_then(|export| export.exported_at).ok_or_else(|| format!("{told:?}"))
    })
    .await;
    let age = Timestamp::now().as_second() - hour.seconds;
    assert!((0..2 * 3600).contains(&age) && hour.seconds % 3600 == 0, "{age} s ago, to the hour before");
}
