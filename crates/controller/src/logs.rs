//! Logs: bytes in by offset, bytes out from any offset, live while they come. What has just come is in the store, in segments that followers
//! watch; what is more than a little, and all of it once its execution has ended, is in the archive.

mod append;
mod feed;
mod layout;
mod pieces;
mod read;
pub(crate) mod settle;
mod source;

use std::sync::Arc;

use octavius_core::execution::LogSeal;
use octavius_core::limit::LOG_BYTES_MIN;
use octavius_core::{Execution, ExecutionId};
use octavius_proto::v1::log_service_server::LogService;
use octavius_proto::v1::{self, ReadLogResponse};
use octavius_proto::{Fault, InvalidField, reason};
use octavius_store::piece::Piece;
use octavius_store::record::LogHead;
use octavius_store::{Entry, Store, StoreError, codec, key};
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;
use tonic::{Code, Request, Response, Status};

use crate::archive::{Archive, ArchiveError};
use crate::auth;
use crate::engine::Engine;
use crate::executions::Executions;
use crate::fault;
use crate::heads::Heads;
use crate::room::Room;
use crate::streams::{Responses, until_stop};
pub(crate) use feed::Feeds;
use read::Wanted;

/// Where logs are kept, and how much of them.
#[derive(Debug, Clone)]
pub(crate) struct Keeping {
    /// The archive, where there is one.
    pub(crate) archive: Option<Archive>,
    /// Most bytes that are kept of one attempt's log where its job does not say; without an archive, where it says more, too.
    pub(crate) limit: u64,
}

impl Keeping {
    /// Most bytes that are kept of each attempt of this execution.
    fn limit_of(&self, execution: &Execution) -> u64 {
        let limit = match (execution.logs.limit, &self.archive) {
            (None, _) => self.limit,
            (Some(limit), Some(_)) => limit,
            (Some(limit), None) => limit.min(self.limit),
        };
        limit.max(LOG_BYTES_MIN)
    }
}

#[derive(Debug, Clone)]
pub(crate) struct Logs {
    pub(crate) store: Arc<dyn Store>,
    pub(crate) engine: Engine,
    pub(crate) executions: Executions,
    pub(crate) heads: Arc<Heads>,
    pub(crate) feeds: Arc<Feeds>,
    pub(crate) keeping: Keeping,
    pub(crate) room: Arc<Room>,
    pub(crate) tasks: TaskTracker,
    pub(crate) shutdown: CancellationToken,
}

/// The head of an attempt's log, and the revision that wrote it; none where nothing of it is there.
async fn head(store: &dyn Store, id: ExecutionId, attempt: u32) -> Result<Option<(LogHead, u64)>, StoreError> {
    let entry = store.get(&key::log_head(id, attempt)).await?;
    entry.map(|entry| Ok((codec::decode(&entry)?, entry.modified))).transpose()
}

/// The piece of a log in a segment.
fn read_piece(entry: &Entry) -> Result<Piece, StoreError> {
    Piece::read(&entry.value).map_err(|why| StoreError::Unreadable(format!("{}: {why}", entry.key)))
}

/// What a caller is told of the archive's failures.
fn from_archive(error: ArchiveError) -> Fault {
    match error {
        ArchiveError::Store(error) => fault::from_store(error),
        ArchiveError::Damaged { .. } | ArchiveError::Missing { .. } => {
            tracing::error!(%error, "archive");
            Fault::new(Code::DataLoss, reason::LOG_DAMAGED, error.to_string())
        }
        ArchiveError::Unavailable { .. } | ArchiveError::Address { .. } | ArchiveError::Foreign { .. } => {
            tracing::warn!(%error, "archive");
            Fault::new(Code::Unavailable, reason::ARCHIVE_UNAVAILABLE, "the controller's archive of logs does not answer")
        }
    }
}

/// The seal of an attempt's log, where it is sealed.
fn seal_of(execution: &Execution, attempt: u32) -> Option<LogSeal> {
    execution.attempts.iter().find(|known| known.number == attempt)?.log
}

#[tonic::async_trait]
impl LogService for Logs {
    type ReadLogStream = Responses<ReadLogResponse>;

    async fn append_log(&self, request: Request<v1::AppendLogRequest>) -> Result<Response<v1::AppendLogResponse>, Status> {
        let principal = auth::principal(&request)?;
        let next_offset = self.append(&principal, request.into_inner()).await?;
        Ok(Response::new(v1::AppendLogResponse { next_offset }))
    }

    async fn read_log(&self, request: Request<v1::ReadLogRequest>) -> Result<Response<Self::ReadLogStream>, Status> {
        let principal = auth::principal(&request)?;
        let request = request.into_inner();
        let execution = self.executions.find(&principal, &request.id).await?;
        self.executions.must_be_theirs(&principal, &execution, "read its log").await?;
        for (field, is_set) in [("tail_lines", request.tail_lines > 0), ("since", request.since.is_some())] {
            if is_set && request.offset > 0 {
                return Err(Fault::from(InvalidField::new(field, "not together with `offset`")).into());
            }
        }
        let since = request.since.map(|since| octavius_proto::std_duration("since", since)).transpose().map_err(Fault::from)?;
        let only = (request.attempt > 0).then_some(request.attempt);
        if let Some(attempt) = only
            && !execution.attempts.iter().any(|known| known.number == attempt)
        {
            let message = format!("execution {} has no attempt {attempt}", execution.id);
            return Err(Fault::new(Code::NotFound, reason::NOT_FOUND, message).into());
        }
        let wanted = Wanted {
            attempt: only,
            offset: request.offset,
            follow: request.follow,
            tail_lines: request.tail_lines,
            since,
            times: request.times,
        };
        let (reader, ears) = self.reader(execution.id, wanted);
        let attempt = read::newest(&execution);
        let begin = reader.begin(only.unwrap_or(attempt)).await?;
        self.tasks.spawn(tracing::Instrument::in_current_span(reader.run(begin)));
        Ok(Response::new(until_stop(ears, self.shutdown.clone())))
    }
}
