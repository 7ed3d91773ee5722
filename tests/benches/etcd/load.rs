//! Submissions by many callers, and an executor that runs nothing: it reports each assignment's whole life over the wire, as the real one does.

use std::collections::HashMap;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail, ensure};
use octavius_core::ExecutionId;
use octavius_proto::client::Connection;
use octavius_proto::v1::report_execution_request::Step;
use octavius_proto::v1::session_response::Say;
use octavius_proto::v1::{self, SessionRequest, session_request};
use tokio::sync::{Mutex, mpsc};
use tokio::task::JoinSet;
use tokio_stream::wrappers::ReceiverStream;

use crate::{CALLERS, House};

/// Longest wait for the next assignment or end.
const PATIENCE: Duration = Duration::from_secs(60);

/// What every run prints.
const LINE: &[u8] = b"a runner that does nothing still says that it has done it\n";

/// Submissions per second, each acknowledged before its caller makes the next.
pub(crate) async fn accepted(house: &House, job: &'static str, executions: usize) -> Result<f64> {
    let begun = Instant::now();
    let mut lanes = JoinSet::new();
    for lane in 0..CALLERS {
        let connection = house.connections[lane % house.connections.len()].clone();
        lanes.spawn(async move {
            for _ in 0..executions / CALLERS {
                submit(&connection, job).await?;
            }
            anyhow::Ok(())
        });
    }
    while let Some(lane) = lanes.join_next().await {
        lane??;
    }
    Ok((executions / CALLERS * CALLERS) as f64 / begun.elapsed().as_secs_f64())
}

async fn submit(connection: &Connection, job: &str) -> Result<String> {
    let id = ExecutionId::generate().to_string();
    let request = v1::ExecuteRequest { id, job: job.to_owned(), ..Default::default() };
    Ok(connection.executions().execute(request).await?.into_inner().id)
}

/// Whole executions per second: from the first submission until the last has finished.
pub(crate) async fn whole(house: &House, executor: &Executor, executions: usize) -> Result<f64> {
    let executions = executions / CALLERS * CALLERS;
    let begun = Instant::now();
    let submitted = accepted(house, "nothing", executions);
    let finished = executor.finished(executions);
    let (submitted, finished) = tokio::join!(submitted, finished);
    submitted?;
    finished?;
    Ok(executions as f64 / begun.elapsed().as_secs_f64())
}

/// From each acknowledgement until the assignment is in the executor's hands, sorted; one execution at a time.
pub(crate) async fn handed(house: &House, executor: &Executor, executions: usize) -> Result<Vec<Duration>> {
    let mut times = Vec::with_capacity(executions);
    for _ in 0..executions {
        let id = submit(&house.connections[0], "nothing").await?;
        let accepted = Instant::now();
        let (assigned, at) = executor.next_assigned().await?;
        ensure!(assigned == id, "{assigned} was handed out, not {id}");
        times.push(at.saturating_duration_since(accepted));
        executor.finished(1).await?;
    }
    times.sort_unstable();
    Ok(times)
}

/// An executor with one session.
pub(crate) struct Executor {
    assigned: Mutex<mpsc::UnboundedReceiver<(String, Instant)>>,
    finished: Mutex<mpsc::UnboundedReceiver<Result<()>>>,
    session: tokio::task::JoinHandle<()>,
}

impl Executor {
    /// Registers an executor of this pool and opens its session.
    pub(crate) async fn begin(house: &House, pool: &str, capacity: u32) -> Result<Self> {
        let id = format!("bench-{}", ExecutionId::generate());
        let connection = house.executor(&id).await?;
        let (say, mut heard, every) = session(&connection, pool, capacity).await?;
        let (note, assigned) = mpsc::unbounded_channel();
        let (done, finished) = mpsc::unbounded_channel();
        let session = tokio::spawn(async move {
            let mut pings = tokio::time::interval(every);
            let mut running = JoinSet::new();
            loop {
                tokio::select! {
                    _ = pings.tick() => {
                        let free = capacity.saturating_sub(u32::try_from(running.len()).unwrap_or(capacity));
                        if say.send(ping(free)).await.is_err() {
                            break;
                        }
                    }
                    Some(_) = running.join_next(), if !running.is_empty() => {}
                    response = heard.message() => match response {
                        Ok(Some(response)) => {
                            if let Some(Say::Assignment(assignment)) = response.say {
                                drop(note.send((assignment.id.clone(), Instant::now())));
                                let (connection, done) = (connection.clone(), done.clone());
                                running.spawn(async move { drop(done.send(run(&connection, &assignment).await)) });
                            }
                        }
                        Ok(None) | Err(_) => break,
                    }
                }
            }
        });
        Ok(Self { assigned: Mutex::new(assigned), finished: Mutex::new(finished), session })
    }

    async fn next_assigned(&self) -> Result<(String, Instant)> {
        let mut assigned = self.assigned.lock().await;
        tokio::time::timeout(PATIENCE, assigned.recv()).await.context("nothing was handed out")?.context("the session ended")
    }

    async fn finished(&self, count: usize) -> Result<()> {
        let mut finished = self.finished.lock().await;
        for _ in 0..count {
            let next = tokio::time::timeout(PATIENCE, finished.recv()).await;
            next.context("executions do not finish")?.context("the session ended")??;
        }
        // Who only counts ends leaves no assignments behind for who looks at them.
        if count > 1 {
            let mut assigned = self.assigned.lock().await;
            while assigned.try_recv().is_ok() {}
        }
        Ok(())
    }

    /// Ends the session.
    pub(crate) async fn end(self) {
        self.session.abort();
        let _ = self.session.await; // it was told to end
    }
}

/// What a session is spoken through, and how often to ping.
type Conversation = (mpsc::Sender<SessionRequest>, tonic::Streaming<v1::SessionResponse>, Duration);

/// Opens a session.
pub(crate) async fn session(connection: &Connection, pool: &str, capacity: u32) -> Result<Conversation> {
    let (say, requests) = mpsc::channel(16);
    let hello = v1::Hello {
        version: env!("CARGO_PKG_VERSION").to_owned(),
        capacity,
        labels: HashMap::from([("pool".to_owned(), pool.to_owned())]),
        runner: "process".to_owned(),
        instance: 1,
        ..Default::default()
    };
    say.send(SessionRequest { say: Some(session_request::Say::Hello(hello)) }).await?;
    let mut heard = connection.executors().session(ReceiverStream::new(requests)).await?.into_inner();
    let Some(Say::Welcome(welcome)) = heard.message().await?.and_then(|response| response.say) else { bail!("no welcome") };
    let every = welcome.ping_interval.and_then(|every| Duration::try_from(every).ok()).context("no interval")?;
    Ok((say, heard, every))
}

pub(crate) fn ping(free: u32) -> SessionRequest {
    SessionRequest { say: Some(session_request::Say::Ping(v1::Ping { free })) }
}

/// The whole life of an assignment, as its executor reports it.
async fn run(connection: &Connection, assignment: &v1::Assignment) -> Result<()> {
    let v1::Assignment { id, attempt, nonce, .. } = assignment.clone();
    let report = async |step: Step| -> Result<()> {
        let request = v1::ReportExecutionRequest { id: id.clone(), attempt, nonce, step: Some(step) };
        let verdict = connection.executors().report_execution(request).await?.into_inner().verdict();
        ensure!(verdict == v1::Verdict::Accepted, "{verdict:?}");
        Ok(())
    };
    report(Step::Starting(v1::Starting {})).await?;
    report(Step::Running(v1::Running { runs_as: "nothing".to_owned(), ..Default::default() })).await?;
    let request = v1::AppendLogRequest { id: id.clone(), attempt, nonce, offset: 0, data: LINE.into(), times: None };
    connection.logs().append_log(request).await?;
    let ending = v1::Ending {
        outcome: v1::ExecutionState::Succeeded.into(),
        reason: String::new(),
        message: String::new(),
        exit_code: Some(0),
    };
    let log_crc32c = crc32c::crc32c(LINE);
    report(Step::Finished(v1::Finished { ending: Some(ending), log_size: LINE.len() as u64, log_crc32c, log_cut: false })).await
}
