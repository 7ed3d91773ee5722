//! A controller that has one execution's logs and nothing else. It sends as the real one does: pieces of bounded size, gaps from where they were
//! asked for on, and what comes while somebody follows.

use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use axum::body::Body;
use axum::response::Response;
use bytes::Bytes;
use futures::{Stream, StreamExt as _};
use http::Request;
use octavius_proto::v1::log_service_server::{LogService, LogServiceServer};
use octavius_proto::v1::read_log_response::Part;
use octavius_proto::v1::{self, ReadLogResponse};
use tokio::sync::watch;
use tonic::Status;
use tower::ServiceExt as _;

use crate::app::{PageOptions, router};
use crate::rpcs::{Calls, Rpcs};

/// Why the fake's gaps are gaps.
pub(super) const CUT: &str = "the log is longer than is kept of it: its beginning and its end are";

/// Bytes that were kept, or how many were not.
#[derive(Clone)]
enum Piece {
    Bytes(Bytes),
    Gap(u64),
}

/// One attempt's log.
#[derive(Clone, Default)]
pub(super) struct Attempt {
    /// Each with where it begins.
    pieces: Vec<(u64, Piece)>,
    size: u64,
    pub(super) sealed: bool,
    pub(super) damaged: bool,
    pub(super) over: bool,
}

impl Attempt {
    pub(super) fn print(&mut self, bytes: impl Into<Bytes>) {
        let bytes = bytes.into();
        let size = bytes.len() as u64;
        self.pieces.push((self.size, Piece::Bytes(bytes)));
        self.size += size;
    }

    pub(super) fn lose(&mut self, size: u64) {
        self.pieces.push((self.size, Piece::Gap(size)));
        self.size += size;
    }

    pub(super) fn end(&mut self) {
        (self.over, self.sealed) = (true, true);
    }
}

/// An execution's attempts; they are counted from 1.
#[derive(Clone, Default)]
pub(super) struct Told {
    pub(super) attempts: Vec<Attempt>,
    pub(super) over: bool,
    /// What every call is answered with, where it is anything.
    pub(super) refuses: Option<Status>,
}

/// The fake.
#[derive(Clone)]
pub(super) struct Fake {
    told: watch::Sender<Arc<Told>>,
    /// Bytes of logs that were sent.
    sent: Arc<AtomicU64>,
    /// Most bytes of one message.
    chunk: usize,
}

impl Fake {
    /// With one attempt's log, which is over.
    pub(super) fn of(log: impl Into<Bytes>) -> Self {
        let fake = Self::running();
        fake.change(|told| {
            told.attempts[0].print(log);
            told.attempts[0].end();
            told.over = true;
        });
        fake
    }

    /// With one attempt, which runs and has printed nothing.
    pub(super) fn running() -> Self {
        let told = Told { attempts: vec![Attempt::default()], ..Told::default() };
        Self { told: watch::Sender::new(Arc::new(told)), sent: Arc::default(), chunk: 256 * 1024 }
    }

    pub(super) fn in_chunks_of(self, chunk: usize) -> Self {
        Self { chunk, ..self }
    }

    pub(super) fn change(&self, change: impl FnOnce(&mut Told)) {
        self.told.send_modify(|told| change(Arc::make_mut(told)));
    }

    /// Prints to the newest attempt's log.
    pub(super) fn print(&self, text: &str) {
        self.change(|told| told.attempts.last_mut().unwrap().print(text.as_bytes().to_vec()));
    }

    /// Ends the newest attempt, and with it the execution.
    pub(super) fn end(&self) {
        self.change(|told| {
            told.attempts.last_mut().unwrap().end();
            told.over = true;
        });
    }

    /// How many bytes of logs were sent since this was asked last.
    pub(super) fn sent(&self) -> u64 {
        self.sent.swap(0, Ordering::Relaxed)
    }

    pub(super) fn calls(&self) -> Calls {
        Rpcs::new(LogServiceServer::new(self.clone())).by(Some("octs_test"), http::Extensions::new())
    }

    /// Asks the page, as a visitor with a session.
    pub(super) async fn get(&self, path: &str, last_event: Option<&str>) -> Response {
        let router = router(Rpcs::new(LogServiceServer::new(self.clone())), PageOptions::default());
        let mut request = Request::get(path).header("host", "localhost").header("cookie", "octavius=octs_test");
        if let Some(last) = last_event {
            request = request.header("last-event-id", last);
        }
        // A script asks: what fails is not sent to sign in.
        let request = request.header("sec-fetch-dest", "empty");
        router.oneshot(request.body(Body::empty()).unwrap()).await.unwrap()
    }

    /// A whole answer's status and body.
    pub(super) async fn body(&self, path: &str) -> (u16, Vec<u8>) {
        let response = self.get(path, None).await;
        let status = response.status().as_u16();
        (status, axum::body::to_bytes(response.into_body(), usize::MAX).await.unwrap().to_vec())
    }

    /// The body of an answer that must be good, as JSON.
    pub(super) async fn json(&self, path: &str) -> serde_json::Value {
        let (status, body) = self.body(path).await;
        assert_eq!(status, 200, "{}", String::from_utf8_lossy(&body));
        serde_json::from_slice(&body).unwrap()
    }

    /// Follows, from a place in the query or from the last event that came.
    pub(super) async fn follow(&self, query: &str, last_event: Option<&str>) -> Events {
        let response = self.get(&format!("/executions/x/log/follow?{query}"), last_event).await;
        assert_eq!(response.status(), 200);
        assert_eq!(response.headers()["content-type"], "text/event-stream");
        let bytes = response.into_body().into_data_stream().map(|bytes| bytes.map_err(|error| error.to_string()));
        Events { bytes: Box::pin(bytes), read: String::new() }
    }
}

/// An event.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Event {
    pub(super) name: String,
    pub(super) id: String,
    pub(super) data: String,
}

/// Events as a browser reads them.
pub(super) struct Events {
    bytes: Pin<Box<dyn Stream<Item = Result<Bytes, String>> + Send>>,
    read: String,
}

impl Events {
    /// The next event; none at the end.
    pub(super) async fn next(&mut self) -> Option<Event> {
        loop {
            while let Some((block, rest)) = self.read.split_once("\n\n") {
                let mut event = Event { name: String::new(), id: String::new(), data: String::new() };
                for line in block.lines().filter(|line| !line.starts_with(':')) {
                    let (field, value) = line.split_once(": ").unwrap();
                    match field {
                        "event" => event.name = value.to_owned(),
                        "id" => event.id = value.to_owned(),
                        "data" => event.data = value.to_owned(),
                        "retry" => {}
                        other => panic!("a browser knows no field {other}: {block}"),
                    }
                }
                self.read = rest.to_owned();
                if !event.name.is_empty() {
                    return Some(event);
                }
            }
            let bytes = tokio::time::timeout(std::time::Duration::from_secs(60), self.bytes.next()).await;
            let bytes = bytes.unwrap_or_else(|_| panic!("nothing comes; read last: {:?}", self.read))?;
            self.read.push_str(std::str::from_utf8(&bytes.unwrap()).unwrap());
        }
    }
}

/// One who reads.
struct Reader {
    fake: Fake,
    told: watch::Receiver<Arc<Told>>,
    request: v1::ReadLogRequest,
    attempt: u32,
    offset: u64,
    ended: bool,
}

impl Reader {
    async fn next(&mut self) -> Option<ReadLogResponse> {
        if self.ended {
            return None;
        }
        loop {
            let told = self.told.borrow_and_update().clone();
            let newest = u32::try_from(told.attempts.len()).unwrap();
            if self.attempt == 0 {
                self.attempt = newest.min(1);
            }
            let none = Attempt::default();
            let log = told.attempts.get(self.attempt.wrapping_sub(1) as usize).unwrap_or(&none);
            if let Some(part) = self.part(log) {
                return Some(ReadLogResponse { part: Some(part) });
            }
            let over = told.over || log.over;
            let only = self.request.attempt > 0;
            if self.request.follow && over && !only && newest > self.attempt {
                (self.attempt, self.offset) = (self.attempt + 1, 0);
                continue;
            }
            if !self.request.follow || told.over || (only && over) {
                self.ended = true;
                let Attempt { sealed, size, damaged, .. } = *log;
                let end = v1::LogEnd { sealed, size, attempt: self.attempt, damaged };
                return Some(ReadLogResponse { part: Some(Part::End(end)) });
            }
            self.told.changed().await.ok()?;
        }
    }

    fn part(&mut self, log: &Attempt) -> Option<Part> {
        if self.offset >= log.size {
            return None;
        }
        let index = log.pieces.partition_point(|(begins, _)| *begins <= self.offset) - 1;
        let (begins, piece) = &log.pieces[index];
        let (attempt, offset) = (self.attempt, self.offset);
        let part = match piece {
            Piece::Bytes(bytes) => {
                let from = usize::try_from(offset - begins).unwrap();
                let data = bytes.slice(from..bytes.len().min(from + self.fake.chunk));
                self.offset += data.len() as u64;
                self.fake.sent.fetch_add(data.len() as u64, Ordering::Relaxed);
                Part::Chunk(v1::LogChunk { attempt, offset, data, times: None })
            }
            Piece::Gap(size) => {
                self.offset = begins + size;
                Part::Gap(v1::LogGap { attempt, offset, size: begins + size - offset, reason: CUT.to_owned() })
            }
        };
        Some(part)
    }
}

#[tonic::async_trait]
impl LogService for Fake {
    type ReadLogStream = Pin<Box<dyn Stream<Item = Result<ReadLogResponse, Status>> + Send>>;

    async fn append_log(
        &self,
        _: tonic::Request<v1::AppendLogRequest>,
    ) -> Result<tonic::Response<v1::AppendLogResponse>, Status> {
        Err(Status::unimplemented("the page writes no logs"))
    }

    async fn read_log(
        &self,
        request: tonic::Request<v1::ReadLogRequest>,
    ) -> Result<tonic::Response<Self::ReadLogStream>, Status> {
        assert_eq!(request.metadata().get("authorization").unwrap(), "Bearer octs_test", "the visitor's session is the bearer");
        let request = request.into_inner();
        let told = self.told.subscribe();
        let now = told.borrow().clone();
        if let Some(status) = &now.refuses {
            return Err(status.clone());
        }
        let newest = u32::try_from(now.attempts.len()).unwrap();
        if request.attempt > newest {
            return Err(Status::not_found(format!("execution x has no attempt {}", request.attempt)));
        }
        let attempt = if request.attempt > 0 { request.attempt } else { newest };
        let reader = Reader { fake: self.clone(), told, attempt, offset: request.offset, request, ended: false };
        let parts = futures::stream::unfold(reader, |mut reader| async move {
            let part = reader.next().await?;
            Some((Ok(part), reader))
        });
        Ok(tonic::Response::new(Box::pin(parts)))
    }
}
