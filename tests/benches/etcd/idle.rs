//! What many executors cost that have nothing to do.

use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result};
use futures::StreamExt as _;
use octavius_tests::cpu_time;
use tokio::task::JoinSet;

use crate::House;
use crate::load::{ping, session};

/// Registrations under way at once.
const AT_ONCE: usize = 16;

/// What was seen.
pub(crate) struct Idle {
    /// The controller's processor time, as a share of one core.
    pub(crate) controller: f64,
    /// That of etcd.
    pub(crate) etcd: f64,
    /// Proposals that etcd committed, for each ping.
    pub(crate) writes_per_ping: f64,
}

/// Connects executors, lets them ping for `watched`, and looks what that costs.
pub(crate) async fn watch(house: &House, executors: usize, watched: Duration) -> Result<Idle> {
    let permits = Arc::new(tokio::sync::Semaphore::new(AT_ONCE));
    let mut sessions = JoinSet::new();
    let (tell, mut told) = tokio::sync::mpsc::unbounded_channel();
    let mut connecting = futures::stream::FuturesUnordered::new();
    for number in 0..executors {
        let permits = Arc::clone(&permits);
        connecting.push(async move {
            let _permit = permits.acquire().await?;
            let connection = house.executor(&format!("idle-{number}")).await?;
            let conversation = session(&connection, "idle", 4).await?;
            anyhow::Ok((connection, conversation))
        });
    }
    let mut interval = Duration::from_secs(2);
    while let Some(connected) = connecting.next().await {
        let (connection, (say, mut heard, every)) = connected?;
        interval = every;
        let tell = tell.clone();
        sessions.spawn(async move {
            let _connection = connection;
            let mut pings = tokio::time::interval(every);
            loop {
                tokio::select! {
                    _ = pings.tick() => if say.send(ping(4)).await.is_err() { break },
                    response = heard.message() => if !matches!(response, Ok(Some(_))) { break },
                }
            }
            let _ = tell.send(()); // nobody may look any more
        });
    }
    drop(connecting);
    // What the beginnings cost is over after two rounds of pings.
    tokio::time::sleep(2 * interval).await;
    let look = || -> Result<(Duration, Duration, u64)> {
        Ok((cpu_time(house.controller.pid())?, cpu_time(house.etcd.pid(0)?)?, house.etcd.proposals(0)?))
    };
    let (before, begun) = (look()?, Instant::now());
    tokio::time::sleep(watched).await;
    let (after, elapsed) = (look()?, begun.elapsed().as_secs_f64());
    anyhow::ensure!(told.try_recv().is_err(), "a session ended");
    let pings = executors as f64 * elapsed / interval.as_secs_f64();
    sessions.shutdown().await;
    let share = |before: Duration, after: Duration| after.saturating_sub(before).as_secs_f64() / elapsed;
    Ok(Idle {
        controller: share(before.0, after.0),
        etcd: share(before.1, after.1),
        writes_per_ping: after.2.checked_sub(before.2).context("etcd counts backwards")? as f64 / pings,
    })
}
