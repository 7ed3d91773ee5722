//! A controller as the page sees it: its RPCs over values in memory, with its permissions, and a note of each call.

use std::collections::{HashMap, HashSet};
use std::sync::{Arc, Mutex, MutexGuard};

use octavius_core::argument::{masked, resolve};
use octavius_core::{JobDefinition, Permission, Role};
use octavius_page::Rpcs;
use octavius_proto::v1::admin_service_server::{AdminService, AdminServiceServer};
use octavius_proto::v1::catalog_service_server::{CatalogService, CatalogServiceServer};
use octavius_proto::v1::execution_service_server::{ExecutionService, ExecutionServiceServer};
use octavius_proto::v1::executor_service_server::ExecutorServiceServer;
use octavius_proto::v1::log_service_server::LogServiceServer;
use octavius_proto::v1::{self, ExecutionState};
use octavius_proto::{Fault, reason};
use tokio_stream::{Empty, Iter};
use tonic::service::Routes;
use tonic::{Code, Request, Response, Status, Streaming};

use crate::unused::unused;

/// The time, by the fake's clock.
pub(crate) const NOW: i64 = 1_767_225_600;

/// A moment so many seconds before that.
pub(crate) fn ago(seconds: i64) -> Option<prost_types::Timestamp> {
    Some(prost_types::Timestamp { seconds: NOW - seconds, nanos: 0 })
}

pub(crate) type Stream<T> = Iter<std::vec::IntoIter<Result<T, Status>>>;

pub(crate) fn stream<T>(items: Vec<T>) -> Response<Stream<T>> {
    Response::new(tokio_stream::iter(items.into_iter().map(Ok).collect::<Vec<_>>()))
}

/// What the controller holds.
#[derive(Default)]
pub(crate) struct World {
    pub(crate) jobs: Vec<JobDefinition>,
    /// Of catalogue `support`: the definitions of each revision, from 1.
    pub(crate) revisions: Vec<(v1::Revision, Vec<JobDefinition>)>,
    pub(crate) paused: Option<v1::Paused>,
    pub(crate) executions: Vec<v1::Execution>,
    pub(crate) wait: Option<v1::Wait>,
    /// What a watch of an execution tells, one after the other.
    pub(crate) watched: Vec<v1::Execution>,
    pub(crate) executors: Vec<v1::Executor>,
    pub(crate) audit: Vec<v1::AuditRecord>,
    pub(crate) log: Vec<u8>,
    pub(crate) user: String,
    /// An execution that cannot be read, and what is told of that.
    pub(crate) unread: Option<(String, Fault)>,
    /// What the next call that changes something is refused with.
    pub(crate) refusal: Option<Fault>,
    /// The RPCs that were called, and what they were asked for where they change something.
    pub(crate) calls: Vec<(&'static str, String)>,
    pub(crate) executed: HashMap<String, v1::ExecuteRequest>,
    pub(crate) ended: HashSet<String>,
    /// Who the calls came from, as the server noted it, and the traces that they said they are part of.
    pub(crate) peers: Vec<(Option<Peer>, bool)>,
}

/// What a server notes of who a request came from.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Peer(pub(crate) u16);

#[derive(Clone, Default)]
pub(crate) struct Fake(Arc<Mutex<World>>);

fn refused(code: Code, reason: &str, message: &str) -> Status {
    Fault::new(code, reason, message).into()
}

pub(crate) fn missing(reason: &str, what: &str) -> Status {
    refused(Code::NotFound, reason, &format!("there is no {what}, or you may not see it"))
}

impl Fake {
    pub(crate) fn world(&self) -> MutexGuard<'_, World> {
        self.0.lock().unwrap()
    }

    pub(crate) fn rpcs(&self) -> Rpcs {
        let routes = Routes::new(AdminServiceServer::new(self.clone()))
            .add_service(CatalogServiceServer::new(self.clone()))
            .add_service(ExecutionServiceServer::new(self.clone()))
            .add_service(ExecutorServiceServer::new(self.clone()))
            .add_service(LogServiceServer::new(self.clone()));
        Rpcs::new(routes)
    }

    /// How often an RPC was called.
    pub(crate) fn count(&self, rpc: &str) -> usize {
        self.world().calls.iter().filter(|(called, _)| *called == rpc).count()
    }

    fn bearer<T>(request: &Request<T>) -> String {
        let bearer = request.metadata().get("authorization").and_then(|value| value.to_str().ok()).unwrap_or_default();
        bearer.strip_prefix("Bearer ").unwrap_or_default().to_owned()
    }

    /// Notes the call, and refuses it where the bearer is nobody or may not make it. `octu_ROLE` is a token, `octs_ROLE` a session.
    pub(crate) fn called<T: std::fmt::Debug>(
        &self,
        rpc: &'static str,
        request: &Request<T>,
        needs: Permission,
    ) -> Result<Role, Status> {
        let bearer = Self::bearer(request);
        let role = bearer.strip_prefix("octu_").or(bearer.strip_prefix("octs_")).and_then(Role::parse);
        let role = role.filter(|_| !self.world().ended.contains(&bearer));
        let role = role.ok_or_else(|| refused(Code::Unauthenticated, reason::UNAUTHENTICATED, "no valid token"))?;
        if !role.may(needs) {
            let message = format!("your role, {role}, may not do this");
            return Err(refused(Code::PermissionDenied, reason::NOT_PERMITTED, &message));
        }
        let peer = request.extensions().get::<Peer>().copied();
        let mut world = self.world();
        world.peers.push((peer, request.metadata().contains_key("traceparent")));
        world.calls.push((rpc, format!("{:?}", request.get_ref())));
        Ok(role)
    }

    fn refusal(&self) -> Result<(), Status> {
        self.world().refusal.clone().map_or(Ok(()), |fault| Err(fault.into()))
    }

    fn execution(&self, id: &str) -> Result<v1::Execution, Status> {
        let found = self.world().executions.iter().find(|execution| execution.id == id).cloned();
        found.ok_or_else(|| missing(reason::EXECUTION_NOT_FOUND, &format!("execution {id}")))
    }

    /// Puts an execution in the place of the one of its id.
    pub(crate) fn put(&self, execution: v1::Execution) {
        let mut world = self.world();
        world.executions.retain(|known| known.id != execution.id);
        world.executions.insert(0, execution);
    }
}

#[tonic::async_trait]
impl AdminService for Fake {
    async fn who_am_i(&self, request: Request<v1::WhoAmIRequest>) -> Result<Response<v1::WhoAmIResponse>, Status> {
        let role = self.called("WhoAmI", &request, Permission::Anyone)?;
        let user = Some(self.world().user.clone()).filter(|user| !user.is_empty()).unwrap_or_else(|| "ann".to_owned());
        let groups = vec!["support".to_owned(), user.clone()];
        let version = "1.2.3".to_owned();
        Ok(Response::new(v1::WhoAmIResponse {
            user,
            role: v1::Role::from(role).into(),
            groups,
            version,
            now: ago(0),
            ..Default::default()
        }))
    }

    async fn create_session(
        &self,
        request: Request<v1::CreateSessionRequest>,
    ) -> Result<Response<v1::CreateSessionResponse>, Status> {
        let role = self.called("CreateSession", &request, Permission::ReadCatalog)?;
        // How long a cookie lasts goes by the clock of this machine.
        let end = std::time::SystemTime::now() + std::time::Duration::from_secs(3600);
        Ok(Response::new(v1::CreateSessionResponse { token: format!("octs_{role}"), expires_at: Some(end.into()) }))
    }

    async fn end_session(&self, request: Request<v1::EndSessionRequest>) -> Result<Response<v1::EndSessionResponse>, Status> {
        self.called("EndSession", &request, Permission::Anyone)?;
        self.world().ended.insert(Self::bearer(&request));
        Ok(Response::new(v1::EndSessionResponse {}))
    }

    async fn create_token(&self, _: Request<v1::CreateTokenRequest>) -> Result<Response<v1::CreateTokenResponse>, Status> {
        unused()
    }

    async fn list_tokens(&self, _: Request<v1::ListTokensRequest>) -> Result<Response<v1::ListTokensResponse>, Status> {
        unused()
    }

    async fn revoke_token(&self, _: Request<v1::RevokeTokenRequest>) -> Result<Response<v1::RevokeTokenResponse>, Status> {
        unused()
    }

    async fn pause_jobs(&self, request: Request<v1::PauseJobsRequest>) -> Result<Response<v1::PauseJobsResponse>, Status> {
        self.called("PauseJobs", &request, Permission::Administer)?;
        let v1::PauseJobsRequest { job: _, all, reason } = request.into_inner();
        let paused = Some(v1::Paused { by: "ann".to_owned(), at: ago(0), all, reason });
        self.world().paused.clone_from(&paused);
        Ok(Response::new(v1::PauseJobsResponse { paused }))
    }

    async fn unpause_jobs(&self, request: Request<v1::UnpauseJobsRequest>) -> Result<Response<v1::UnpauseJobsResponse>, Status> {
        self.called("UnpauseJobs", &request, Permission::Administer)?;
        let was_paused = self.world().paused.take().is_some();
        Ok(Response::new(v1::UnpauseJobsResponse { was_paused, ..Default::default() }))
    }

    async fn list_webhooks(&self, _: Request<v1::ListWebhooksRequest>) -> Result<Response<v1::ListWebhooksResponse>, Status> {
        unused()
    }

    async fn list_deliveries(
        &self,
        _: Request<v1::ListDeliveriesRequest>,
    ) -> Result<Response<v1::ListDeliveriesResponse>, Status> {
        unused()
    }

    async fn retry_deliveries(
        &self,
        _: Request<v1::RetryDeliveriesRequest>,
    ) -> Result<Response<v1::RetryDeliveriesResponse>, Status> {
        unused()
    }

    async fn test_webhook(&self, _: Request<v1::TestWebhookRequest>) -> Result<Response<v1::TestWebhookResponse>, Status> {
        unused()
    }

    type BackupStream = Empty<Result<v1::BackupResponse, Status>>;

    async fn backup(&self, _: Request<v1::BackupRequest>) -> Result<Response<Self::BackupStream>, Status> {
        unused()
    }

    type ReadAuditStream = Stream<v1::ReadAuditResponse>;

    async fn read_audit(&self, request: Request<v1::ReadAuditRequest>) -> Result<Response<Self::ReadAuditStream>, Status> {
        self.called("ReadAudit", &request, Permission::Administer)?;
        let records = self.world().audit.clone();
        Ok(stream(vec![
            v1::ReadAuditResponse { records, caught_up: false },
            v1::ReadAuditResponse { records: Vec::new(), caught_up: true },
        ]))
    }

    async fn get_controller(&self, _: Request<v1::GetControllerRequest>) -> Result<Response<v1::GetControllerResponse>, Status> {
        unused()
    }
}

fn entry(job: &JobDefinition) -> v1::ManifestEntry {
    v1::ManifestEntry {
        name: job.name.to_string(),
        definition: job.digest().as_bytes().to_vec().into(),
        file: format!("catalog/{}.yaml", job.description),
        line: 3,
        ..Default::default()
    }
}

#[tonic::async_trait]
impl CatalogService for Fake {
    async fn get_head(&self, _: Request<v1::GetHeadRequest>) -> Result<Response<v1::GetHeadResponse>, Status> {
        unused()
    }

    type GetBucketsStream = Stream<v1::GetBucketsResponse>;

    async fn get_buckets(&self, request: Request<v1::GetBucketsRequest>) -> Result<Response<Self::GetBucketsStream>, Status> {
        self.called("GetBuckets", &request, Permission::Apply)?;
        let number = request.into_inner().revision;
        let world = self.world();
        let (_, jobs) = world.revisions.iter().find(|(revision, _)| revision.number == number).unwrap();
        Ok(stream(vec![v1::GetBucketsResponse { bucket: 0, entries: jobs.iter().map(entry).collect() }]))
    }

    type GetDefinitionsStream = Stream<v1::GetDefinitionsResponse>;

    async fn get_definitions(
        &self,
        request: Request<v1::GetDefinitionsRequest>,
    ) -> Result<Response<Self::GetDefinitionsStream>, Status> {
        self.called("GetDefinitions", &request, Permission::Apply)?;
        let digests = request.into_inner().digests;
        let world = self.world();
        let known = world.revisions.iter().flat_map(|(_, jobs)| jobs);
        let asked = known.filter(|job| digests.iter().any(|digest| digest[..] == job.digest().as_bytes()[..]));
        let definitions = asked.map(|job| v1::Definition { json: job.to_canonical_json().into() }).collect();
        Ok(stream(vec![v1::GetDefinitionsResponse { definitions }]))
    }

    async fn apply(&self, _: Request<Streaming<v1::ApplyRequest>>) -> Result<Response<v1::ApplyResponse>, Status> {
        unused()
    }

    async fn list_revisions(
        &self,
        request: Request<v1::ListRevisionsRequest>,
    ) -> Result<Response<v1::ListRevisionsResponse>, Status> {
        self.called("ListRevisions", &request, Permission::ReadCatalog)?;
        let before = request.into_inner().before;
        let world = self.world();
        let revisions = world.revisions.iter().rev().map(|(revision, _)| revision.clone());
        let revisions = revisions.filter(|revision| before == 0 || revision.number < before).collect();
        Ok(Response::new(v1::ListRevisionsResponse { revisions }))
    }

    async fn list_jobs(&self, request: Request<v1::ListJobsRequest>) -> Result<Response<v1::ListJobsResponse>, Status> {
        self.called("ListJobs", &request, Permission::ReadCatalog)?;
        let ask = request.into_inner();
        let world = self.world();
        let fits = |job: &&JobDefinition| {
            let text = format!("{} {}", job.name, job.description).to_lowercase();
            text.contains(&ask.search.to_lowercase())
                && ask.labels.iter().all(|(name, value)| job.labels.iter().any(|(known, of)| (known, of) == (name, value)))
        };
        let summary = |job: &JobDefinition| v1::JobSummary {
            name: job.name.to_string(),
            description: job.description.clone(),
            catalog: "support".to_owned(),
            labels: job.labels.iter().map(|(name, value)| (name.to_string(), value.to_string())).collect(),
            paused: world.paused.clone(),
            ..Default::default()
        };
        let jobs = world.jobs.iter().filter(fits).map(summary).collect();
        Ok(Response::new(v1::ListJobsResponse { jobs, more: false }))
    }

    async fn get_job(&self, request: Request<v1::GetJobRequest>) -> Result<Response<v1::GetJobResponse>, Status> {
        self.called("GetJob", &request, Permission::ReadCatalog)?;
        let name = request.into_inner().name;
        let world = self.world();
        let Some(job) = world.jobs.iter().find(|job| job.name.as_str().eq_ignore_ascii_case(&name)) else {
            let fault =
                Fault::new(Code::NotFound, reason::JOB_NOT_FOUND, format!("there is no job {name}, or you may not see it"));
            return Err(fault.with("nearest", "refund-order").into());
        };
        Ok(Response::new(v1::GetJobResponse {
            definition: Some(v1::Definition { json: job.to_canonical_json().into() }),
            entry: Some(entry(job)),
            changed_in: world.revisions.last().map(|(revision, _)| revision.clone()),
            head: 2,
            paused: world.paused.clone(),
            ..Default::default()
        }))
    }

    async fn set_frozen(&self, _: Request<v1::SetFrozenRequest>) -> Result<Response<v1::SetFrozenResponse>, Status> {
        unused()
    }
}

#[tonic::async_trait]
impl ExecutionService for Fake {
    async fn execute(&self, request: Request<v1::ExecuteRequest>) -> Result<Response<v1::ExecuteResponse>, Status> {
        self.called("Execute", &request, Permission::Execute)?;
        self.refusal()?;
        let ask = request.into_inner();
        let mut world = self.world();
        let job = world.jobs.iter().find(|job| job.name.as_str() == ask.job).cloned();
        let job = job.ok_or_else(|| missing(reason::JOB_NOT_FOUND, &format!("job {}", ask.job)))?;
        let given = ask.arguments.clone().into_iter().collect();
        let arguments = resolve(&job, &given).map_err(|errors| {
            let fault =
                Fault::new(Code::InvalidArgument, reason::INVALID_ARGUMENTS, format!("arguments do not fit job {}", ask.job));
            Status::from(
                errors.iter().fold(fault, |fault, error| fault.violating(error.name().unwrap_or_default(), error.to_string())),
            )
        })?;
        match world.executed.get(&ask.id) {
            Some(first) if *first == ask => return Ok(Response::new(v1::ExecuteResponse { id: ask.id })),
            Some(_) => return Err(refused(Code::AlreadyExists, reason::ID_TAKEN, "the id is that of another execution")),
            None => {}
        }
        let execution = v1::Execution {
            id: ask.id.clone(),
            job: ask.job.clone(),
            user: "ann".to_owned(),
            state: ExecutionState::Queued.into(),
            arguments: masked(&job, &arguments).into_iter().collect(),
            created_at: ago(0),
            ..Default::default()
        };
        world.executions.insert(0, execution);
        world.executed.insert(ask.id.clone(), ask.clone());
        Ok(Response::new(v1::ExecuteResponse { id: ask.id }))
    }

    async fn rerun_execution(
        &self,
        request: Request<v1::RerunExecutionRequest>,
    ) -> Result<Response<v1::ExecuteResponse>, Status> {
        self.called("RerunExecution", &request, Permission::Execute)?;
        self.refusal()?;
        let ask = request.into_inner();
        let again = v1::Execution { id: ask.id.clone(), rerun_of: ask.source.clone(), ..self.execution(&ask.source)? };
        self.put(again);
        Ok(Response::new(v1::ExecuteResponse { id: ask.id }))
    }

    async fn get_execution(
        &self,
        request: Request<v1::GetExecutionRequest>,
    ) -> Result<Response<v1::GetExecutionResponse>, Status> {
        self.called("GetExecution", &request, Permission::ReadExecutions)?;
        let mut id = request.into_inner().id;
        if id == "@latest" {
            id = self.world().executions.first().map(|execution| execution.id.clone()).unwrap_or_default();
        }
        if let Some((_, fault)) = self.world().unread.clone().filter(|(unread, _)| *unread == id) {
            return Err(fault.into());
        }
        let execution = Some(self.execution(&id)?);
        Ok(Response::new(v1::GetExecutionResponse { execution, wait: self.world().wait.clone() }))
    }

    async fn list_executions(
        &self,
        request: Request<v1::ListExecutionsRequest>,
    ) -> Result<Response<v1::ListExecutionsResponse>, Status> {
        self.called("ListExecutions", &request, Permission::ReadExecutions)?;
        let ask = request.into_inner();
        let world = self.world();
        let from: usize = ask.page_token.parse().unwrap_or_default();
        let fits = |execution: &&v1::Execution| {
            (ask.job.is_empty() || execution.job == ask.job)
                && (ask.states.is_empty() || ask.states.contains(&execution.state))
                && (ask.user.is_empty() || execution.user == ask.user)
        };
        let fitting: Vec<_> = world.executions.iter().filter(fits).cloned().collect();
        let limit = usize::try_from(ask.limit).unwrap();
        let next_page_token = if fitting.len() > from + limit { (from + limit).to_string() } else { String::new() };
        let short = |execution: v1::Execution| v1::Execution { arguments: HashMap::new(), attempts: Vec::new(), ..execution };
        let executions = fitting.into_iter().skip(from).take(limit).map(short).collect();
        Ok(Response::new(v1::ListExecutionsResponse { executions, next_page_token }))
    }

    type WatchExecutionStream = Stream<v1::WatchExecutionResponse>;

    async fn watch_execution(
        &self,
        request: Request<v1::WatchExecutionRequest>,
    ) -> Result<Response<Self::WatchExecutionStream>, Status> {
        self.called("WatchExecution", &request, Permission::ReadExecutions)?;
        self.execution(&request.into_inner().id)?;
        let watched = self.world().watched.clone();
        Ok(stream(watched.into_iter().map(|execution| v1::WatchExecutionResponse { execution: Some(execution) }).collect()))
    }

    async fn cancel_execution(
        &self,
        request: Request<v1::CancelExecutionRequest>,
    ) -> Result<Response<v1::CancelExecutionResponse>, Status> {
        self.called("CancelExecution", &request, Permission::Execute)?;
        self.refusal()?;
        let execution = self.execution(&request.into_inner().id)?;
        Ok(Response::new(v1::CancelExecutionResponse { execution: Some(execution) }))
    }

    async fn approve_execution(
        &self,
        request: Request<v1::ApproveExecutionRequest>,
    ) -> Result<Response<v1::ApproveExecutionResponse>, Status> {
        self.called("ApproveExecution", &request, Permission::ReadExecutions)?;
        self.refusal()?;
        let execution = self.execution(&request.into_inner().id)?;
        Ok(Response::new(v1::ApproveExecutionResponse { execution: Some(execution) }))
    }

    async fn reject_execution(
        &self,
        request: Request<v1::RejectExecutionRequest>,
    ) -> Result<Response<v1::RejectExecutionResponse>, Status> {
        self.called("RejectExecution", &request, Permission::ReadExecutions)?;
        self.refusal()?;
        let execution = self.execution(&request.into_inner().id)?;
        Ok(Response::new(v1::RejectExecutionResponse { execution: Some(execution) }))
    }
}
