//! An executor that does what a test says, word by word.

use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};

use std::collections::HashMap;

use octavius_proto::Fault;
use octavius_proto::client::Connection;
use octavius_proto::v1::report_execution_request::Step;
use octavius_proto::v1::session_response::Say;
use octavius_proto::v1::{self, ExecutionState, SessionRequest, SessionResponse, Verdict, session_request};
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Status, Streaming};

use crate::harness::{House, PATIENCE, soon, told};

/// A registered executor.
#[derive(Clone)]
pub(crate) struct Fake {
    pub(crate) connection: Connection,
}

/// What it says at the beginning of a session.
pub(crate) fn hello(capacity: u32) -> v1::Hello {
    v1::Hello {
        version: octavius_controller::VERSION.into(),
        capacity,
        runner: "process".into(),
        instance: 1,
        ..Default::default()
    }
}

pub(crate) fn labelled(capacity: u32, labels: &[(&str, &str)]) -> v1::Hello {
    let labels: HashMap<_, _> = labels.iter().map(|(k, v)| ((*k).to_owned(), (*v).to_owned())).collect();
    v1::Hello { labels, ..hello(capacity) }
}

pub(crate) fn held(assignment: &v1::Assignment) -> v1::Held {
    v1::Held { id: assignment.id.clone(), attempt: assignment.attempt, nonce: assignment.nonce }
}

impl Fake {
    pub(crate) async fn register(house: &House, id: &str) -> Self {
        let token = house.register(id).await;
        Self { connection: house.connect(Some(&token)).await }
    }

    /// Opens a session, which pings by itself.
    pub(crate) async fn session(&self, hello: v1::Hello) -> Result<Session, Fault> {
        self.try_session(hello).await.map_err(|status| told(&status))
    }

    async fn try_session(&self, hello: v1::Hello) -> Result<Session, Status> {
        let (say, requests) = mpsc::channel(64);
        say.send(SessionRequest { say: Some(session_request::Say::Hello(hello)) }).await.unwrap();
        let mut executors = self.connection.executors();
        let opening = executors.session(ReceiverStream::new(requests));
        let mut heard = soon("a session", opening).await?.into_inner();
        let first = soon("a welcome", heard.message()).await?.and_then(|response| response.say);
        let Some(Say::Welcome(welcome)) = first else { panic!("not a welcome: {first:?}") };
        let every = std::time::Duration::try_from(welcome.ping_interval.unwrap()).unwrap();
        let pinging = say.clone();
        let free = Arc::new(AtomicU32::new(1));
        let says = Arc::clone(&free);
        let pings = tokio::spawn(async move {
            loop {
                tokio::time::sleep(every).await;
                if pinging.send(ping(says.load(Ordering::SeqCst))).await.is_err() {
                    return;
                }
            }
        });
        Ok(Session { heard, say, free, pings: pings.abort_handle(), welcome })
    }

    pub(crate) async fn report(&self, claim: &v1::Assignment, step: Step) -> Result<Verdict, Fault> {
        let v1::Assignment { id, attempt, nonce, .. } = claim.clone();
        let request = v1::ReportExecutionRequest { id, attempt, nonce, step: Some(step) };
        match self.connection.executors().report_execution(request).await {
            Ok(response) => Ok(response.into_inner().verdict()),
            Err(status) => Err(told(&status)),
        }
    }

    pub(crate) async fn starts(&self, claim: &v1::Assignment) -> Verdict {
        self.report(claim, Step::Starting(v1::Starting {})).await.unwrap()
    }

    pub(crate) async fn runs(&self, claim: &v1::Assignment) -> Verdict {
        self.report(claim, Step::Running(v1::Running { runs_as: "pid 7".into(), image: "i@sha256:7".into() })).await.unwrap()
    }

    /// Says that it starts and runs.
    pub(crate) async fn begins(&self, claim: &v1::Assignment) {
        assert_eq!(self.starts(claim).await, Verdict::Accepted);
        assert_eq!(self.runs(claim).await, Verdict::Accepted);
    }

    pub(crate) async fn finishes(&self, claim: &v1::Assignment, outcome: ExecutionState, log: &[u8]) -> Result<Verdict, Fault> {
        self.report(claim, finished(outcome, log)).await
    }

    /// Appends; where the log goes on.
    pub(crate) async fn append(&self, claim: &v1::Assignment, offset: u64, data: &[u8]) -> Result<u64, Fault> {
        let v1::Assignment { id, attempt, nonce, .. } = claim.clone();
        let request = v1::AppendLogRequest { id, attempt, nonce, offset, data: data.to_vec().into(), times: None };
        match self.connection.logs().append_log(request).await {
            Ok(response) => Ok(response.into_inner().next_offset),
            Err(status) => Err(told(&status)),
        }
    }

    /// Runs an assignment from its start to its good end, printing `log`.
    pub(crate) async fn completes(&self, claim: &v1::Assignment, log: &[u8]) {
        self.begins(claim).await;
        if !log.is_empty() {
            assert_eq!(self.append(claim, 0, log).await, Ok(log.len() as u64));
        }
        assert_eq!(self.finishes(claim, ExecutionState::Succeeded, log).await, Ok(Verdict::Accepted));
    }
}

pub(crate) fn finished(outcome: ExecutionState, log: &[u8]) -> Step {
    let exit_code = match outcome {
        ExecutionState::Succeeded => Some(0),
        ExecutionState::Failed => Some(3),
        _ => None,
    };
    let reason = if outcome == ExecutionState::Failed { "EXIT_CODE" } else { "" };
    let ending = v1::Ending { outcome: outcome.into(), reason: reason.into(), message: String::new(), exit_code };
    let (log_size, log_crc32c) = (log.len() as u64, crc32c::crc32c(log));
    Step::Finished(v1::Finished { ending: Some(ending), log_size, log_crc32c, log_cut: false })
}

fn ping(free: u32) -> SessionRequest {
    SessionRequest { say: Some(session_request::Say::Ping(v1::Ping { free })) }
}

/// A session that stands.
pub(crate) struct Session {
    /// What it was greeted with.
    pub(crate) welcome: v1::Welcome,
    /// What the controller says, pongs and all.
    pub(crate) heard: Streaming<SessionResponse>,
    /// Kept, so that falling silent is not hanging up.
    say: mpsc::Sender<SessionRequest>,
    /// What the pings say is free.
    free: Arc<AtomicU32>,
    pings: tokio::task::AbortHandle,
}

impl Drop for Session {
    fn drop(&mut self) {
        self.pings.abort();
    }
}

impl Session {
    /// Says now, and with each ping, that so many slots are free.
    pub(crate) async fn says_free(&self, free: u32) {
        self.free.store(free, Ordering::SeqCst);
        self.say.send(ping(free)).await.unwrap();
    }

    /// Tells what it has made and no execution is for.
    pub(crate) async fn tells_orphans(&self, orphans: v1::Orphans) {
        self.say.send(SessionRequest { say: Some(session_request::Say::Orphans(orphans)) }).await.unwrap();
    }

    /// Stops pinging, and does not hang up.
    pub(crate) fn falls_silent(&self) {
        self.pings.abort();
    }

    /// The next word that is no pong, or how the session ended.
    pub(crate) async fn next(&mut self) -> Result<Option<Say>, Status> {
        soon("a word in the session", async {
            loop {
                match self.heard.message().await?.map(|response| response.say.unwrap()) {
                    Some(Say::Pong(_)) => {}
                    other => return Ok(other),
                }
            }
        })
        .await
    }

    pub(crate) async fn assignment(&mut self) -> v1::Assignment {
        match self.next().await {
            Ok(Some(Say::Assignment(assignment))) => assignment,
            other => panic!("not an assignment: {other:?}"),
        }
    }

    pub(crate) async fn stop(&mut self) -> v1::Stop {
        match self.next().await {
            Ok(Some(Say::Stop(stop))) => stop,
            other => panic!("not a stop: {other:?}"),
        }
    }

    /// Makes sure that nothing but pongs has come, `pongs` of them.
    pub(crate) async fn hears_nothing(&mut self, pongs: usize) {
        for _ in 0..pongs {
            let response = tokio::time::timeout(PATIENCE, self.heard.message()).await.unwrap().unwrap().unwrap();
            assert!(matches!(response.say, Some(Say::Pong(_))), "{response:?}");
        }
    }
}
