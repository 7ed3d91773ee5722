//! Waiting for an execution's end, over broken connections and restarts of controllers.

use std::time::Duration;

use octavius_core::State;
use octavius_proto::v1;
use octavius_proto::words::has_ended;
use tokio::time::Instant;

use crate::error::{Failure, Outcome};
use crate::execution::state;
use crate::exit::Exit;
use crate::session::{Patience, Session};

/// Waits until an execution has ended.
///
/// # Errors
/// Where the controller refuses, or is away for too long.
pub async fn until_ended(session: &Session, id: &str) -> Outcome<v1::Execution> {
    watch(session, id, |execution| has_ended(execution.state())).await
}

/// An execution as it is now.
///
/// # Errors
/// As [`until_ended`].
pub async fn look(session: &Session, id: &str) -> Outcome<v1::Execution> {
    watch(session, id, |_| true).await
}

/// Waits until an execution is as `wanted`, or has ended.
pub(crate) async fn watch(session: &Session, id: &str, wanted: impl Fn(&v1::Execution) -> bool) -> Outcome<v1::Execution> {
    let mut patience = Patience::new(session.timeout());
    loop {
        let broken = match watch_once(session, id, &wanted, &mut patience).await {
            Ok(Some(execution)) => return Ok(execution),
            Ok(None) => Failure::new(Exit::Unreachable, anyhow::Error::msg("the controller ended the stream")),
            Err(failure) => failure,
        };
        again(session, &mut patience, broken).await?;
    }
}

async fn watch_once(
    session: &Session,
    id: &str,
    wanted: &impl Fn(&v1::Execution) -> bool,
    patience: &mut Patience,
) -> Outcome<Option<v1::Execution>> {
    let request = v1::WatchExecutionRequest { id: id.to_owned() };
    let mut stream = session.call_once(async |to| to.executions().watch_execution(request.clone()).await).await?;
    let opened = Instant::now();
    while let Some(message) = patience.next(&mut stream, opened).await? {
        if let Some(execution) = message.execution
            && (has_ended(execution.state()) || wanted(&execution))
        {
            return Ok(Some(execution));
        }
    }
    Ok(None)
}

/// After a broken stream: waits and connects again, until patience ends.
pub(crate) async fn again(session: &Session, patience: &mut Patience, mut broken: Failure) -> Outcome<()> {
    loop {
        patience.bear(broken, |failure| session.notice(failure)).await?;
        match session.reconnect().await {
            Ok(()) => return Ok(()),
            Err(failure) => broken = failure,
        }
    }
}

/// How a wait ended.
#[derive(Debug)]
pub enum Waited<T> {
    /// With what was waited for.
    Done(T),
    /// The time was over.
    TimedOut,
    /// The person pressed Ctrl-C.
    Interrupted,
}

/// Runs `work` until it is done, the time is over, or the person presses Ctrl-C.
///
/// # Errors
/// Those of `work`.
pub async fn bounded<T>(limit: Option<Duration>, work: impl Future<Output = Outcome<T>>) -> Outcome<Waited<T>> {
    let deadline = limit.map(|limit| Instant::now() + limit);
    let over = async {
        match deadline {
            Some(deadline) => tokio::time::sleep_until(deadline).await,
            None => std::future::pending().await,
        }
    };
    tokio::select! {
        biased;
        done = work => done.map(Waited::Done),
        () = over => Ok(Waited::TimedOut),
        signal = tokio::signal::ctrl_c() => match signal {
            Ok(()) => Ok(Waited::Interrupted),
            Err(error) => Err(Failure::new(Exit::Fault, anyhow::Error::new(error).context("cannot listen for Ctrl-C"))),
        },
    }
}

/// The exit for an execution that has ended.
#[must_use]
pub fn exit_of(execution: &v1::Execution) -> Exit {
    state(execution).map_or(Exit::Fault, |state: State| Exit::of_outcome(state))
}
