//! A controller for tests. It keeps no more than it must, refuses whatever a real one would, notes whatever an executor should never
//! do, and can be made to fail in the middle.

use std::collections::HashMap;
use std::net::{SocketAddr, TcpListener};
use std::pin::Pin;
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::{Duration, Instant};

use octavius_core::ExecutionId;
use octavius_core::limit::LOG_PIECE_BYTES;
use octavius_core::log::Times;
use octavius_proto::v1;
use octavius_proto::v1::executor_service_server::{ExecutorService, ExecutorServiceServer};
use octavius_proto::v1::log_service_server::{LogService, LogServiceServer};
use octavius_proto::v1::report_execution_request::Step;
use octavius_proto::v1::session_request::Say as Request;
use octavius_proto::v1::session_response::Say as Response;
use octavius_proto::{Fault, MAX_APPEND_BYTES, reason, to_duration};
use tokio::sync::mpsc;
use tokio_stream::wrappers::{TcpListenerStream, UnboundedReceiverStream};
use tonic::{Code, Status, Streaming};

pub(crate) const TOKEN: &str = "octe_good";

/// What is known of an attempt.
#[derive(Debug, Clone, Default)]
pub(crate) struct Record {
    pub(crate) nonce: u64,
    pub(crate) starting: bool,
    pub(crate) runs_as: Option<String>,
    pub(crate) finished: Option<v1::Finished>,
    pub(crate) finished_reports: u32,
    pub(crate) handed_back: Option<String>,
    /// The attempt is another's now: everything about it is answered with "stop".
    pub(crate) fenced: bool,
    /// The controller has never heard of it.
    pub(crate) forgotten: bool,
    /// What was said of it after it was forgotten.
    pub(crate) said_since: u32,
    pub(crate) log: Vec<u8>,
    /// Bytes that were sent though they were there already.
    pub(crate) repeated: usize,
    /// When they were printed.
    pub(crate) times: Times,
    /// When each append came, and its size.
    pub(crate) appends: Vec<(Instant, usize)>,
    assignment: Option<v1::Assignment>,
}

impl Record {
    pub(crate) fn ending(&self) -> Option<v1::Ending> {
        self.finished.clone()?.ending
    }

    /// Whether it was assigned and nothing was heard of it since.
    fn is_open(&self) -> bool {
        self.assignment.is_some() && !self.starting && !self.fenced && self.finished.is_none() && self.handed_back.is_none()
    }

    pub(crate) fn text(&self) -> String {
        String::from_utf8_lossy(&self.log).into_owned()
    }
}

/// What a test can see and change.
#[derive(Default)]
pub(crate) struct World {
    pub(crate) attempts: HashMap<(String, u32), Record>,
    pub(crate) hellos: Vec<v1::Hello>,
    /// The hashes of tokens with which executors registered.
    pub(crate) registered: Vec<Vec<u8>>,
    pub(crate) pings: Vec<u32>,
    /// What no execution is for, each time that it was told.
    pub(crate) orphans: Vec<v1::Orphans>,
    /// What an executor should never have done.
    pub(crate) violations: Vec<String>,
    /// So many reports of an end are taken, and the answer is lost.
    pub(crate) lose_finished_answers: u32,
    /// So many appends are taken, and the answer is lost.
    pub(crate) lose_append_answers: u32,
    /// So many calls of any kind are answered with "unavailable".
    pub(crate) unavailable: u32,
    /// There is no room for logs.
    pub(crate) no_room: bool,
    /// The archive is away.
    pub(crate) no_archive: bool,
    /// Appends that were refused for want of room.
    pub(crate) refused_appends: u32,
    /// Reports of a start are not answered while this is set.
    pub(crate) hold_starting: bool,
    /// The version that it says it has; its own where nothing is said.
    pub(crate) version: Option<String>,
    /// Every session is refused for this reason.
    pub(crate) refuse_sessions: Option<(Code, &'static str)>,
    session: Option<mpsc::UnboundedSender<Result<v1::SessionResponse, Status>>>,
}

#[derive(Clone)]
struct Shared(Arc<Mutex<World>>);

impl Shared {
    fn world(&self) -> MutexGuard<'_, World> {
        self.0.lock().unwrap()
    }

    fn trouble(&self) -> Result<(), Status> {
        let mut world = self.world();
        if world.unavailable > 0 {
            world.unavailable -= 1;
            return Err(Fault::new(Code::Unavailable, reason::STORE_UNAVAILABLE, "made up").into());
        }
        Ok(())
    }
}

fn authenticate<T>(request: &tonic::Request<T>, token: &str) -> Result<(), Status> {
    let given = request.metadata().get("authorization").and_then(|value| value.to_str().ok());
    if given == Some(&format!("Bearer {token}")) {
        return Ok(());
    }
    Err(Fault::new(Code::Unauthenticated, reason::UNAUTHENTICATED, "no valid token").into())
}

fn verdict(verdict: v1::Verdict) -> tonic::Response<v1::ReportExecutionResponse> {
    tonic::Response::new(v1::ReportExecutionResponse { verdict: verdict.into() })
}

#[tonic::async_trait]
impl ExecutorService for Shared {
    type SessionStream = Pin<Box<dyn futures::Stream<Item = Result<v1::SessionResponse, Status>> + Send>>;

    async fn register_executor(
        &self,
        request: tonic::Request<v1::RegisterExecutorRequest>,
    ) -> Result<tonic::Response<v1::RegisterExecutorResponse>, Status> {
        authenticate(&request, "octr_good")?;
        self.world().registered.push(request.into_inner().token_digest.to_vec());
        Ok(tonic::Response::new(v1::RegisterExecutorResponse { controller_id: "c".to_owned(), ..Default::default() }))
    }

    async fn rotate_token(
        &self,
        request: tonic::Request<v1::RotateTokenRequest>,
    ) -> Result<tonic::Response<v1::RotateTokenResponse>, Status> {
        authenticate(&request, TOKEN)?;
        Err(Status::unimplemented("an older controller"))
    }

    async fn session(
        &self,
        request: tonic::Request<Streaming<v1::SessionRequest>>,
    ) -> Result<tonic::Response<Self::SessionStream>, Status> {
        authenticate(&request, TOKEN)?;
        let mut requests = request.into_inner();
        let Some(v1::SessionRequest { say: Some(Request::Hello(hello)) }) = requests.message().await? else {
            return Err(Status::invalid_argument("no hello"));
        };
        let (sender, responses) = mpsc::unbounded_channel();
        {
            let mut world = self.world();
            world.hellos.push(hello.clone());
            if let Some((code, reason)) = world.refuse_sessions {
                return Err(Fault::new(code, reason, "made up").into());
            }
            let welcome = v1::Welcome {
                version: world.version.clone().unwrap_or_else(|| env!("CARGO_PKG_VERSION").to_owned()),
                controller_id: "c".to_owned(),
                ping_interval: Some(to_duration(Duration::from_millis(100))),
                rotate_token_after: None,
            };
            sender.send(Ok(say(Response::Welcome(welcome)))).unwrap();
            // What was said into a session that was gone already did not arrive.
            let held: Vec<_> = hello.held.iter().map(|held| (held.id.clone(), held.attempt)).collect();
            for (_, record) in world.attempts.iter().filter(|(key, record)| record.is_open() && !held.contains(key)) {
                sender.send(Ok(say(Response::Assignment(record.assignment.clone().unwrap())))).unwrap();
            }
            world.session = Some(sender.clone());
        }
        let shared = self.clone();
        tokio::spawn(async move {
            while let Ok(Some(request)) = requests.message().await {
                match request.say {
                    Some(Request::Ping(ping)) => {
                        shared.world().pings.push(ping.free);
                        let _ = sender.send(Ok(say(Response::Pong(v1::Pong {}))));
                    }
                    Some(Request::Orphans(orphans)) => shared.world().orphans.push(orphans),
                    other => shared.world().violations.push(format!("said {other:?} in a session")),
                }
            }
            let mut world = shared.world();
            if world.session.as_ref().is_some_and(|current| current.same_channel(&sender)) {
                world.session = None;
            }
        });
        Ok(tonic::Response::new(Box::pin(UnboundedReceiverStream::new(responses))))
    }

    async fn report_execution(
        &self,
        request: tonic::Request<v1::ReportExecutionRequest>,
    ) -> Result<tonic::Response<v1::ReportExecutionResponse>, Status> {
        authenticate(&request, TOKEN)?;
        self.trouble()?;
        let report = request.into_inner();
        let step = report.step.unwrap();
        while matches!(step, Step::Starting(_)) && self.world().hold_starting {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
        let mut world = self.world();
        let World { attempts, violations, lose_finished_answers, .. } = &mut *world;
        let record = attempts.get_mut(&(report.id.clone(), report.attempt)).unwrap();
        let mut wrong = |what: &str| violations.push(format!("{}-{}: {what}", report.id, report.attempt));
        if record.nonce != report.nonce {
            wrong("another nonce");
        }
        if record.forgotten {
            record.said_since += 1;
            return Err(forgotten(&report.id));
        }
        if record.fenced {
            return Ok(verdict(v1::Verdict::Stop));
        }
        match step {
            Step::Starting(_) => {
                if record.finished.is_some() {
                    wrong("starts after its end");
                }
                if record.handed_back.is_some() {
                    return Ok(verdict(v1::Verdict::Stop));
                }
                record.starting = true;
            }
            Step::Running(running) => {
                if !record.starting {
                    wrong("runs without a start");
                }
                record.runs_as = Some(running.runs_as);
            }
            Step::Finished(finished) => {
                let ending = finished.ending.clone().unwrap();
                let unstarted = [v1::ExecutionState::Failed, v1::ExecutionState::Lost];
                if !record.starting && !unstarted.contains(&ending.outcome()) {
                    wrong("ends without a start");
                }
                let cut = finished.log_cut && finished.log_size > record.log.len() as u64;
                if finished.log_size > record.log.len() as u64 && !cut {
                    let gap = Fault::new(Code::OutOfRange, reason::LOG_GAP, "not whole").with("next_offset", record.log.len());
                    return Err(gap.into());
                }
                let announced = usize::try_from(finished.log_size).unwrap();
                if !cut && finished.log_crc32c != crc32c::crc32c(&record.log[..announced]) {
                    wrong("another checksum");
                }
                if record.finished.as_ref().is_some_and(|before| *before != finished) {
                    wrong("two different ends");
                }
                record.finished = Some(finished);
                record.finished_reports += 1;
                if *lose_finished_answers > 0 {
                    *lose_finished_answers -= 1;
                    return Err(Status::unavailable("the answer is lost"));
                }
            }
            Step::HandedBack(back) => {
                if record.starting {
                    wrong("handed back after its start");
                }
                record.handed_back = Some(back.message);
            }
        }
        Ok(verdict(v1::Verdict::Accepted))
    }

    async fn list_executors(
        &self,
        _: tonic::Request<v1::ListExecutorsRequest>,
    ) -> Result<tonic::Response<v1::ListExecutorsResponse>, Status> {
        Err(Status::unimplemented(""))
    }

    async fn get_executor(
        &self,
        _: tonic::Request<v1::GetExecutorRequest>,
    ) -> Result<tonic::Response<v1::GetExecutorResponse>, Status> {
        Err(Status::unimplemented(""))
    }

    async fn drain_executor(
        &self,
        _: tonic::Request<v1::DrainExecutorRequest>,
    ) -> Result<tonic::Response<v1::DrainExecutorResponse>, Status> {
        Err(Status::unimplemented(""))
    }

    async fn resume_executor(
        &self,
        _: tonic::Request<v1::ResumeExecutorRequest>,
    ) -> Result<tonic::Response<v1::ResumeExecutorResponse>, Status> {
        Err(Status::unimplemented(""))
    }

    async fn revoke_executor(
        &self,
        _: tonic::Request<v1::RevokeExecutorRequest>,
    ) -> Result<tonic::Response<v1::RevokeExecutorResponse>, Status> {
        Err(Status::unimplemented(""))
    }
}

#[tonic::async_trait]
impl LogService for Shared {
    type ReadLogStream = Pin<Box<dyn futures::Stream<Item = Result<v1::ReadLogResponse, Status>> + Send>>;

    async fn append_log(
        &self,
        request: tonic::Request<v1::AppendLogRequest>,
    ) -> Result<tonic::Response<v1::AppendLogResponse>, Status> {
        authenticate(&request, TOKEN)?;
        self.trouble()?;
        let append = request.into_inner();
        let mut world = self.world();
        let World { attempts, violations, lose_append_answers, no_room, no_archive, refused_appends, .. } = &mut *world;
        let record = attempts.get_mut(&(append.id.clone(), append.attempt)).unwrap();
        let mut wrong = |what: &str| violations.push(format!("{}-{}: {what}", append.id, append.attempt));
        if record.nonce != append.nonce {
            wrong("another nonce");
        }
        if !record.starting {
            wrong("a log before the start");
        }
        if append.data.is_empty() || append.data.len() > LOG_PIECE_BYTES {
            wrong("a piece that is empty or too large");
        }
        if record.forgotten {
            record.said_since += 1;
            return Err(forgotten(&append.id));
        }
        if *no_room {
            *refused_appends += 1;
            return Err(Fault::new(Code::ResourceExhausted, reason::STORE_FULL, "no room").into());
        }
        if *no_archive {
            *refused_appends += 1;
            return Err(Fault::new(Code::Unavailable, reason::ARCHIVE_UNAVAILABLE, "no archive").into());
        }
        let offset = usize::try_from(append.offset).unwrap();
        if offset > record.log.len() {
            let next = record.log.len();
            return Err(Fault::new(Code::OutOfRange, reason::LOG_GAP, "gap").with("next_offset", next).into());
        }
        if record.finished.is_some() {
            return Err(Fault::new(Code::FailedPrecondition, reason::LOG_SEALED, "sealed").into());
        }
        let known = (record.log.len() - offset).min(append.data.len());
        if record.log[offset..offset + known] != append.data[..known] {
            wrong("other bytes than before");
        }
        record.repeated += known;
        record.appends.push((Instant::now(), append.data.len()));
        let times = Times::try_from(append.times.unwrap_or_default()).unwrap();
        record.times.append(record.log.len() as u64, &times.part(known as u64, append.data.len() as u64));
        record.log.extend_from_slice(&append.data[known..]);
        if *lose_append_answers > 0 {
            *lose_append_answers -= 1;
            return Err(Status::unavailable("the answer is lost"));
        }
        Ok(tonic::Response::new(v1::AppendLogResponse { next_offset: record.log.len() as u64 }))
    }

    async fn read_log(&self, _: tonic::Request<v1::ReadLogRequest>) -> Result<tonic::Response<Self::ReadLogStream>, Status> {
        Err(Status::unimplemented(""))
    }
}

fn forgotten(id: &str) -> Status {
    Fault::new(Code::NotFound, reason::EXECUTION_NOT_FOUND, format!("no execution {id}")).into()
}

fn say(say: Response) -> v1::SessionResponse {
    v1::SessionResponse { say: Some(say) }
}

/// A controller on an address of its own, which it keeps over restarts.
pub(crate) struct Controller {
    shared: Shared,
    pub(crate) address: SocketAddr,
    server: Option<tokio::runtime::Runtime>,
}

impl Controller {
    pub(crate) fn start() -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let mut controller = Self { shared: Shared(Arc::default()), address: listener.local_addr().unwrap(), server: None };
        controller.serve(listener);
        controller
    }

    fn serve(&mut self, listener: TcpListener) {
        let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build().unwrap();
        listener.set_nonblocking(true).unwrap();
        let shared = self.shared.clone();
        runtime.spawn(async move {
            let listener = TcpListenerStream::new(tokio::net::TcpListener::from_std(listener).unwrap());
            let server = tonic::transport::Server::builder()
                .add_service(ExecutorServiceServer::new(shared.clone()))
                .add_service(LogServiceServer::new(shared).max_decoding_message_size(MAX_APPEND_BYTES));
            server.serve_with_incoming(listener).await.unwrap();
        });
        self.server = Some(runtime);
    }

    /// Goes away as a killed process does: connections end in the middle of whatever they do.
    pub(crate) fn kill(&mut self) {
        self.server.take().unwrap().shutdown_background();
        self.world().session = None;
    }

    /// Comes back on the same address.
    pub(crate) fn come_back(&mut self) {
        let listener = crate::eventually("the address is free", || TcpListener::bind(self.address));
        self.serve(listener);
    }

    pub(crate) fn world(&self) -> MutexGuard<'_, World> {
        self.shared.world()
    }

    /// What is known of an attempt.
    pub(crate) fn record(&self, id: ExecutionId, attempt: u32) -> Record {
        self.world().attempts[&(id.to_string(), attempt)].clone()
    }

    fn tell(&self, response: &Response) {
        crate::until("an executor listens", || {
            let world = self.world();
            world.session.as_ref().is_some_and(|session| session.send(Ok(say(response.clone()))).is_ok())
        });
    }

    /// Assigns a job's first attempt and returns its id.
    pub(crate) fn assign(&self, job: &serde_json::Value) -> ExecutionId {
        self.assign_with(job, &[], Duration::from_secs(60))
    }

    pub(crate) fn assign_with(&self, job: &serde_json::Value, arguments: &[(&str, &str)], timeout: Duration) -> ExecutionId {
        let (id, record) = Self::made(job, arguments, timeout);
        let assignment = say(Response::Assignment(record.assignment.clone().unwrap()));
        // At once, so that a session that begins now is not told twice, the second time perhaps after the end.
        crate::until("an executor listens", || {
            let mut world = self.world();
            let told = world.session.as_ref().is_some_and(|session| session.send(Ok(assignment.clone())).is_ok());
            if told {
                world.attempts.insert((id.to_string(), 1), record.clone());
            }
            told
        });
        id
    }

    /// Makes an assignment that the next session begins with.
    pub(crate) fn prepare(&self, job: &serde_json::Value) -> ExecutionId {
        let (id, record) = Self::made(job, &[], Duration::from_secs(60));
        self.world().attempts.insert((id.to_string(), 1), record);
        id
    }

    fn made(job: &serde_json::Value, arguments: &[(&str, &str)], timeout: Duration) -> (ExecutionId, Record) {
        let id = ExecutionId::generate();
        let assignment = v1::Assignment {
            trace: None,
            id: id.to_string(),
            attempt: 1,
            nonce: u64::MAX - 7,
            definition: job.to_string().into_bytes().into(),
            arguments: arguments.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned())).collect(),
            timeout: Some(to_duration(timeout)),
            user: "ann".to_owned(),
            origin: None,
        };
        let record = Record { nonce: assignment.nonce, assignment: Some(assignment), ..Record::default() };
        (id, record)
    }

    /// Assigns what was assigned before.
    pub(crate) fn assign_again(&self, id: ExecutionId) {
        let assignment = self.record(id, 1).assignment.unwrap();
        self.tell(&Response::Assignment(assignment));
    }

    pub(crate) fn stop(&self, id: ExecutionId, cause: v1::StopCause) {
        self.tell(&Response::Stop(v1::Stop { id: id.to_string(), attempt: 1, cause: cause.into() }));
    }

    /// Waits for an attempt's end.
    pub(crate) fn ended(&self, id: ExecutionId) -> Record {
        crate::eventually("the attempt's end", || {
            let record = self.record(id, 1);
            if record.finished.is_some() { Ok(record) } else { Err(Box::new(record)) }
        })
    }

    /// Waits until an attempt's log holds this.
    pub(crate) fn logged(&self, id: ExecutionId, text: &str) {
        crate::eventually("text in the log", || {
            let log = self.record(id, 1).text();
            if log.contains(text) { Ok(()) } else { Err(log) }
        });
    }
}

impl Drop for Controller {
    fn drop(&mut self) {
        if let Some(server) = self.server.take() {
            server.shutdown_background();
        }
        if !std::thread::panicking() {
            assert_eq!(self.world().violations, Vec::<String>::new());
        }
    }
}
