//! Schedules over controllers that run, watches and all. What each case comes to is tested turn by turn beside the code.

use std::time::Duration;

use jiff::SignedDuration;
use octavius_controller::Clock;
use octavius_core::Timestamp;
use octavius_proto::client::Connection;
use octavius_proto::v1::{self, Role};
use octavius_store::key;

use crate::harness::{House, eventually, told};

const MINUTE: Duration = Duration::from_secs(60);

/// A clock that stands in the middle of a minute, near the time that it is: ids and tokens are held against that.
fn clock() -> Clock {
    let minute = Timestamp::now().as_second() / 60 * 60;
    Clock::manual(Timestamp::from_second(minute + 30).unwrap())
}

/// The ticks that have executions, newest first, once there are so many.
async fn ran(connection: &Connection, job: &str, count: usize) -> Vec<Timestamp> {
    eventually(&format!("{count} executions of {job}"), async || {
        let listed = v1::ListExecutionsRequest { job: job.to_owned(), all: true, limit: 1000, ..Default::default() };
        let executions = connection.executions().list_executions(listed).await.unwrap().into_inner().executions;
        let ticks: Vec<_> =
            executions.iter().map(|run| octavius_proto::timestamp("tick", run.tick.as_ref().unwrap()).unwrap()).collect();
        if ticks.len() >= count { Ok(ticks) } else { Err(format!("{ticks:?}")) }
    })
    .await
}

async fn begins(house: &House, job: &str) {
    eventually("the cursor of a new schedule", async || {
        house.store().get(&key::tick(job)).await.unwrap().ok_or_else(|| "none".to_owned()).map(drop)
    })
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn two_controllers_run_each_tick_once_and_one_that_comes_back_goes_on() {
    let clock = clock();
    let mut house = House::by(clock.clone()).await;
    let neighbour = house.neighbour().await;
    let often = r#"{"name":"often","command":["true"],"schedule":{"cron":"* * * * *","overlap":"allow"}}"#;
    house.apply(&[often]).await;
    begins(&house, "often").await;
    let admin = house.admin().await;
    for minute in 1..=5 {
        clock.advance(MINUTE);
        let ticks = ran(&admin, "often", minute).await;
        assert_eq!(ticks.len(), minute, "{ticks:?}");
    }
    let job = v1::GetJobRequest { name: "often".into() };
    let next = admin.catalog().get_job(job).await.unwrap().into_inner().next_runs;
    let next: Vec<_> = next.iter().map(|at| octavius_proto::timestamp("next", at).unwrap()).collect();
    let first = clock.now().checked_add(SignedDuration::from_secs(30)).unwrap();
    let expected: Vec<_> = (0..5).map(|n| first.checked_add(SignedDuration::from_mins(n)).unwrap()).collect();
    assert_eq!(next, expected);

    // While no controller runs, ticks are missed; the newest is on time.
    neighbour.stop().await;
    house.stop().await;
    clock.advance(MINUTE * 10);
    house.start_again().await;
    let admin = house.admin().await;
    let ticks = ran(&admin, "often", 6).await;
    assert_eq!((ticks.len(), ticks[0]), (6, clock.now().checked_sub(SignedDuration::from_secs(30)).unwrap()));

    // A job that is gone takes its cursor along.
    let head = crate::harness::head(&admin, "c").await;
    let removal = v1::ApplyHeader { remove: vec!["often".into()], ..crate::harness::header("c", head, &[]) };
    crate::harness::apply(&admin, removal, &[]).await.unwrap();
    eventually("the cursor to go", async || match house.store().get(&key::tick("often")).await.unwrap() {
        None => Ok(()),
        Some(_) => Err("it is there".to_owned()),
    })
    .await;
}

#[tokio::test]
async fn nobody_has_the_name_that_schedules_ask_by() {
    let house = House::open().await;
    let request = v1::CreateTokenRequest { role: Role::User.into(), user: "octavius:schedule".into(), ..Default::default() };
    let refused = told(&house.admin().await.admin().create_token(request).await.unwrap_err());
    assert!(refused.message.contains("octavius:"), "{refused:?}");
}
