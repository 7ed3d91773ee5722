//! Waiting for an execution's end and following its log, over broken connections and restarts of controllers.

use std::time::Duration;

use octavius_core::State;
use octavius_proto::v1::{self, read_log_response::Part};
use tokio::time::Instant;

use crate::Context;
use crate::error::{Failure, Outcome};
use crate::execution::{has_ended, state};
use crate::exit::Exit;
use crate::session::{Patience, Session};

/// Waits until an execution has ended.
///
/// # Errors
/// Where the controller refuses, or is away for too long.
pub async fn until_ended(session: &Session, id: &str) -> Outcome<v1::Execution> {
    watch(session, id, has_ended).await
}

/// Waits until an execution is as `wanted`, or has ended.
async fn watch(session: &Session, id: &str, wanted: impl Fn(&v1::Execution) -> bool) -> Outcome<v1::Execution> {
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
    while let Some(message) = stream.message().await? {
        patience.renew();
        if let Some(execution) = message.execution
            && (has_ended(&execution) || wanted(&execution))
        {
            return Ok(Some(execution));
        }
    }
    Ok(None)
}

/// After a broken stream: waits and connects again, until patience ends.
async fn again(session: &Session, patience: &mut Patience, mut broken: Failure) -> Outcome<()> {
    loop {
        patience.bear(broken, |failure| session.notice(failure)).await?;
        match session.reconnect().await {
            Ok(()) => return Ok(()),
            Err(failure) => broken = failure,
        }
    }
}

/// Which log, and from where.
#[derive(Debug, Clone, Default)]
pub struct LogRequest {
    /// The execution.
    pub id: String,
    /// The attempt; 0 for the newest, and with `follow` those after it.
    pub attempt: u32,
    /// So many lines before the end; 0 for all.
    pub tail_lines: u64,
    /// Go on with what comes.
    pub follow: bool,
}

/// Where the bytes of a log go.
pub trait LogSink {
    /// Takes bytes.
    ///
    /// # Errors
    /// Where they cannot be written.
    fn bytes(&mut self, bytes: &[u8]) -> Outcome<()>;
    /// Takes a piece that is not there.
    fn gap(&mut self, gap: &v1::LogGap);
    /// Another attempt's log begins.
    fn attempt(&mut self, _number: u32) {}
    /// The attempt's log is sealed, and not what its executor says that the job printed.
    fn damaged(&mut self, _attempt: u32) {}
}

/// How far a log has been read.
#[derive(Debug, Clone, Copy, Default)]
struct Position {
    attempt: u32,
    offset: u64,
}

/// Reads a log into `sink`; with `follow` until the execution has ended. A connection that breaks is made again, and reading goes on at
/// the byte where it stood.
///
/// # Errors
/// Where the controller refuses, is away for too long, or the sink cannot take more.
pub async fn read_log(context: &Context, session: &Session, request: &LogRequest, sink: &mut impl LogSink) -> Outcome<()> {
    // where nothing has been shown yet and nothing is followed: as patient as with any call
    let (mut patience, mut brief) = (Patience::new(session.timeout()), Patience::of(session.timeout()));
    let mut wire = v1::ReadLogRequest {
        id: request.id.clone(),
        attempt: request.attempt,
        offset: 0,
        follow: request.follow,
        tail_lines: request.tail_lines,
    };
    let mut position = Position::default();
    loop {
        match read_once(session, &wire, &mut position, sink, &mut patience).await {
            Ok(true) => {
                if position.attempt == 0 && !request.follow {
                    context.shell.note("nothing has been printed yet");
                }
                // a stream that was taken up again at one attempt ends with it; with attempt 0 the controller goes on by itself
                let resumed = wire.attempt != request.attempt;
                if !request.follow || !resumed {
                    return Ok(());
                }
                let after = position.attempt;
                let execution = watch(session, &request.id, |execution| next_started(execution, after).is_some()).await?;
                match next_started(&execution, after) {
                    Some(next) => {
                        position = Position { attempt: next, offset: 0 };
                        sink.attempt(next);
                    }
                    None => return Ok(()),
                }
            }
            Ok(false) => {
                let broken = Failure::new(Exit::Unreachable, anyhow::Error::msg("the controller ended the stream"));
                again(session, &mut patience, broken).await?;
            }
            Err(failure) => {
                let patient = request.follow || position.offset > 0;
                again(session, if patient { &mut patience } else { &mut brief }, failure).await?;
            }
        }
        if position.attempt > 0 {
            wire.attempt = position.attempt;
            wire.offset = position.offset;
            wire.tail_lines = 0;
        }
    }
}

/// The first attempt after `after` that has started.
fn next_started(execution: &v1::Execution, after: u32) -> Option<u32> {
    execution
        .attempts
        .iter()
        .filter(|attempt| attempt.starting_at.is_some())
        .map(|attempt| attempt.number)
        .find(|&number| number > after)
}

/// Reads one stream; says whether it came to the log's end.
async fn read_once(
    session: &Session,
    wire: &v1::ReadLogRequest,
    position: &mut Position,
    sink: &mut impl LogSink,
    patience: &mut Patience,
) -> Outcome<bool> {
    let mut stream = session.call_once(async |to| to.logs().read_log(wire.clone()).await).await?;
    loop {
        let Some(message) = stream.message().await? else { return Ok(false) };
        patience.renew();
        match message.part {
            Some(Part::Chunk(chunk)) => {
                if position.attempt != 0 && position.attempt != chunk.attempt {
                    sink.attempt(chunk.attempt);
                }
                if position.attempt == chunk.attempt && chunk.offset < position.offset {
                    // a piece that overlaps what was shown already
                    let skip = usize::try_from(position.offset - chunk.offset).unwrap_or(usize::MAX);
                    sink.bytes(chunk.data.get(skip..).unwrap_or_default())?;
                } else {
                    sink.bytes(&chunk.data)?;
                }
                let end = chunk.offset + chunk.data.len() as u64;
                let shown = if position.attempt == chunk.attempt { position.offset } else { 0 };
                *position = Position { attempt: chunk.attempt, offset: end.max(shown) };
            }
            Some(Part::Gap(gap)) => {
                sink.gap(&gap);
                *position = Position { attempt: gap.attempt, offset: gap.offset + gap.size };
            }
            Some(Part::End(end)) => {
                if end.damaged {
                    sink.damaged(end.attempt);
                }
                return Ok(true);
            }
            // something that a newer controller says
            None => {}
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
