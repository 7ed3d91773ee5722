//! RPCs that no page calls: answered by the fake as a mistake of the page's.

use octavius_proto::v1::executor_service_server::ExecutorService;
use octavius_proto::v1::log_service_server::LogService;
use octavius_proto::v1::{self};
use tokio_stream::Empty;
use tonic::{Request, Response, Status, Streaming};

use crate::fake::{Fake, Stream, missing, stream};

/// What a fake answers where the page has no business.
pub(crate) fn unused<T>() -> Result<Response<T>, Status> {
    Err(Status::unimplemented("no page calls this"))
}

fn no_executor(id: &str) -> Status {
    missing(octavius_proto::reason::NOT_FOUND, &format!("executor {id}"))
}

impl Fake {
    /// Lets an executor drain, or ends that; as it is then.
    fn draining(&self, id: &str, drain: Option<v1::Drain>) -> Result<v1::Executor, Status> {
        let mut world = self.world();
        let executor = world.executors.iter_mut().find(|executor| executor.id == id).ok_or_else(|| no_executor(id))?;
        executor.draining = drain;
        Ok(executor.clone())
    }
}

#[tonic::async_trait]
impl ExecutorService for Fake {
    async fn register_executor(
        &self,
        _: Request<v1::RegisterExecutorRequest>,
    ) -> Result<Response<v1::RegisterExecutorResponse>, Status> {
        unused()
    }

    async fn rotate_token(&self, _: Request<v1::RotateTokenRequest>) -> Result<Response<v1::RotateTokenResponse>, Status> {
        unused()
    }

    type SessionStream = Empty<Result<v1::SessionResponse, Status>>;

    async fn session(&self, _: Request<Streaming<v1::SessionRequest>>) -> Result<Response<Self::SessionStream>, Status> {
        unused()
    }

    async fn report_execution(
        &self,
        _: Request<v1::ReportExecutionRequest>,
    ) -> Result<Response<v1::ReportExecutionResponse>, Status> {
        unused()
    }

    async fn list_executors(
        &self,
        request: Request<v1::ListExecutorsRequest>,
    ) -> Result<Response<v1::ListExecutorsResponse>, Status> {
        self.called("ListExecutors", &request, octavius_core::Permission::ReadExecutors)?;
        Ok(Response::new(v1::ListExecutorsResponse { executors: self.world().executors.clone() }))
    }

    async fn get_executor(&self, request: Request<v1::GetExecutorRequest>) -> Result<Response<v1::GetExecutorResponse>, Status> {
        self.called("GetExecutor", &request, octavius_core::Permission::ReadExecutors)?;
        let id = request.into_inner().id;
        let executor = self.world().executors.iter().find(|executor| executor.id == id).cloned();
        Ok(Response::new(v1::GetExecutorResponse { executor: Some(executor.ok_or_else(|| no_executor(&id))?) }))
    }

    async fn drain_executor(
        &self,
        request: Request<v1::DrainExecutorRequest>,
    ) -> Result<Response<v1::DrainExecutorResponse>, Status> {
        self.called("DrainExecutor", &request, octavius_core::Permission::Administer)?;
        let drain = v1::Drain { by: "ann".to_owned(), at: crate::fake::ago(0) };
        let executor = self.draining(&request.get_ref().id, Some(drain))?;
        Ok(Response::new(v1::DrainExecutorResponse { executor: Some(executor) }))
    }

    async fn resume_executor(
        &self,
        request: Request<v1::ResumeExecutorRequest>,
    ) -> Result<Response<v1::ResumeExecutorResponse>, Status> {
        self.called("ResumeExecutor", &request, octavius_core::Permission::Administer)?;
        let executor = self.draining(&request.get_ref().id, None)?;
        Ok(Response::new(v1::ResumeExecutorResponse { executor: Some(executor) }))
    }

    async fn revoke_executor(
        &self,
        _: Request<v1::RevokeExecutorRequest>,
    ) -> Result<Response<v1::RevokeExecutorResponse>, Status> {
        unused()
    }
}

#[tonic::async_trait]
impl LogService for Fake {
    async fn append_log(&self, _: Request<v1::AppendLogRequest>) -> Result<Response<v1::AppendLogResponse>, Status> {
        unused()
    }

    type ReadLogStream = Stream<v1::ReadLogResponse>;

    async fn read_log(&self, request: Request<v1::ReadLogRequest>) -> Result<Response<Self::ReadLogStream>, Status> {
        use v1::read_log_response::Part;
        self.called("ReadLog", &request, octavius_core::Permission::ReadExecutions)?;
        let data = bytes::Bytes::from(self.world().log.clone());
        let size = data.len() as u64;
        let offset = request.into_inner().offset.min(size);
        let data = data.slice(usize::try_from(offset).unwrap()..);
        let chunk = Part::Chunk(v1::LogChunk { attempt: 1, offset, data, times: None });
        let end = Part::End(v1::LogEnd { sealed: true, size, attempt: 1, damaged: false });
        Ok(stream(vec![v1::ReadLogResponse { part: Some(chunk) }, v1::ReadLogResponse { part: Some(end) }]))
    }
}
