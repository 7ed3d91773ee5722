//! Tokens, pauses, webhooks, the audit trail, and who one is.

use std::sync::Arc;
use std::time::Duration;

use octavius_core::schedule::RESERVED_USERS;
use octavius_core::{CatalogName, JobName, Role, Timestamp};
use octavius_proto::v1::admin_service_server::AdminService;
use octavius_proto::{Fault, InvalidField, reason, to_timestamp, v1};
use octavius_store::Store;
use octavius_store::record::TokenRecord;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;
use tonic::{Code, Request, Response, Status};

use crate::audit::Act;
use crate::catalogs::Catalogs;
use crate::condition::Condition;
use crate::issuers::{self, Issuers};
use crate::pauses::{Pauses, Whose};
use crate::streams::Responses;
use crate::tokens::{Lifetime, NewToken, REGISTRATION_LIFETIME, Tokens, USER_LIFETIME};
use crate::webhooks::Webhooks;
use crate::{audit, auth, backup, fault};

/// Longest life of a token: longer ones should be renewed instead.
const MAX_LIFETIME: Duration = Duration::from_secs(366 * 24 * 3600);

/// Most groups of one token, and most characters of a user's or group's name.
pub(crate) const MAX_GROUPS: usize = 64;
pub(crate) const MAX_NAME: usize = 128;

/// Most executors that may be registered with one token.
const MAX_USES: u32 = 10_000;

/// Longest reason of a pause, in bytes.
const MAX_REASON: usize = 200;

#[derive(Debug)]
pub(crate) struct Admin {
    pub(crate) store: Arc<dyn Store>,
    pub(crate) tokens: Arc<Tokens>,
    pub(crate) issuers: Arc<Issuers>,
    pub(crate) catalogs: Arc<Catalogs>,
    pub(crate) pauses: Arc<Pauses>,
    pub(crate) webhooks: Webhooks,
    pub(crate) condition: Condition,
    pub(crate) controller_id: String,
    pub(crate) tasks: TaskTracker,
    pub(crate) shutdown: CancellationToken,
}

/// Which job a request about pauses names; none for all of them.
fn named(job: &str, all: bool) -> Result<Option<JobName>, Fault> {
    match (job.is_empty(), all) {
        (true, true) => Ok(None),
        (false, false) => Ok(Some(octavius_proto::job_name("job", job)?)),
        _ => Err(InvalidField::new("job", "a job or all of them, one of the two").into()),
    }
}

impl Admin {
    async fn pause(&self, act: &Act, request: v1::PauseJobsRequest) -> Result<v1::PauseJobsResponse, Fault> {
        let job = named(&request.job, request.all)?;
        if request.reason.len() > MAX_REASON || request.reason.chars().any(char::is_control) {
            return Err(InvalidField::new("reason", format!("one line of at most {MAX_REASON} bytes is expected")).into());
        }
        if let Some(job) = &job {
            self.catalogs.job(act.principal()?, &*self.catalogs.view().await?, job.as_str()).await?;
        }
        let whose = job.as_ref().map_or(Whose::All, Whose::Job);
        let pause = self.pauses.pause(whose, act, &request.reason).await.map_err(fault::from_store)?;
        tracing::info!(job = request.job, all = request.all, by = act.user(), "paused");
        Ok(v1::PauseJobsResponse { paused: Some((&pause).into()) })
    }

    async fn unpause(&self, act: &Act, request: v1::UnpauseJobsRequest) -> Result<v1::UnpauseJobsResponse, Fault> {
        let job = named(&request.job, request.all)?;
        let whose = job.as_ref().map_or(Whose::All, Whose::Job);
        let left = self.pauses.unpause(whose, act).await.map_err(fault::from_store)?;
        // A job that is gone may be paused still: that comes first. A name that is none at all is told.
        if let Some(job) = job.as_ref().filter(|_| !left.was_paused) {
            self.catalogs.job(act.principal()?, &*self.catalogs.view().await?, job.as_str()).await?;
        }
        tracing::info!(job = request.job, all = request.all, by = act.user(), "unpaused");
        let all = left.all.as_ref().map(Into::into);
        Ok(v1::UnpauseJobsResponse { was_paused: left.was_paused, all, still_paused: left.still_paused })
    }

    async fn create(&self, act: &Act, request: v1::CreateTokenRequest) -> Result<v1::CreateTokenResponse, Fault> {
        let asked = Role::try_from(request.role())?;
        // An executor's own token comes from its registration; what is handed out beforehand is the right to register.
        let role = if asked == Role::Executor { Role::Registration } else { asked };
        check_name("user", &request.user)?;
        if request.user.starts_with(RESERVED_USERS) {
            let problem = format!("names that begin with {RESERVED_USERS} are the controller's own");
            return Err(InvalidField::new("user", problem).into());
        }
        if request.groups.len() > MAX_GROUPS {
            return Err(InvalidField::new("groups", format!("{} groups, at most {MAX_GROUPS}", request.groups.len())).into());
        }
        for group in &request.groups {
            check_name("groups", group)?;
        }
        if role != Role::Applier && !request.catalogs.is_empty() {
            return Err(InvalidField::new("catalogs", "only an applier is for certain catalogues").into());
        }
        if request.catalogs.len() > MAX_GROUPS {
            let problem = format!("{} catalogues, at most {MAX_GROUPS}; none for every one", request.catalogs.len());
            return Err(InvalidField::new("catalogs", problem).into());
        }
        let catalogs = request.catalogs.iter().map(|name| name.parse::<CatalogName>()).collect::<Result<Vec<_>, _>>();
        let catalogs = catalogs.map_err(|error| InvalidField::new("catalogs", error))?;
        let uses = match (role, request.uses) {
            (Role::Registration, uses @ 0..=MAX_USES) => Some(uses.max(1)),
            (Role::Registration, uses) => {
                return Err(InvalidField::new("uses", format!("{uses} executors, at most {MAX_USES}")).into());
            }
            (_, 0) => None,
            _ => return Err(InvalidField::new("uses", "only a registration token is used up").into()),
        };
        let default = if role == Role::Registration { REGISTRATION_LIFETIME } else { USER_LIFETIME };
        let lifetime = match request.lifetime {
            Some(lifetime) => Duration::try_from(lifetime).map_err(|error| InvalidField::new("lifetime", error))?,
            None => default,
        };
        if lifetime.is_zero() || lifetime > MAX_LIFETIME {
            return Err(InvalidField::new("lifetime", "a token is good for more than 0s and at most 366d").into());
        }
        let lifetime = Some(lifetime);
        let bearer = NewToken { role, user: request.user, groups: request.groups, catalogs, uses, lifetime };
        let made = self.tokens.create(&bearer, act).await.map_err(fault::from_store)?;
        tracing::info!(token = made.record.id, user = made.record.user, %role, by = act.user(), "token made");
        Ok(v1::CreateTokenResponse {
            id: made.record.id,
            token: made.token.reveal().to_owned(),
            expires_at: made.record.expires_at.map(to_timestamp),
        })
    }
}

/// Whether a user or a group can be called so.
pub(crate) fn is_name(name: &str) -> bool {
    !name.trim().is_empty() && name.chars().count() <= MAX_NAME && !name.chars().any(char::is_control)
}

fn check_name(field: &'static str, name: &str) -> Result<(), InvalidField> {
    if is_name(name) {
        Ok(())
    } else {
        Err(InvalidField::new(field, format!("a name has 1 to {MAX_NAME} characters, none of them control characters")))
    }
}

fn info(record: TokenRecord, used: Option<Timestamp>) -> v1::TokenInfo {
    v1::TokenInfo {
        catalogs: record.catalogs.iter().map(ToString::to_string).collect(),
        uses_left: record.uses,
        last_used_at: used.map(to_timestamp),
        is_session: record.session.is_some(),
        id: record.id,
        role: v1::Role::from(record.role).into(),
        user: record.user,
        groups: record.groups,
        created_at: Some(to_timestamp(record.created_at)),
        created_by: record.created_by,
        expires_at: record.expires_at.map(to_timestamp),
    }
}

#[tonic::async_trait]
impl AdminService for Admin {
    type BackupStream = Responses<v1::BackupResponse>;
    type ReadAuditStream = Responses<v1::ReadAuditResponse>;

    async fn read_audit(&self, request: Request<v1::ReadAuditRequest>) -> Result<Response<Self::ReadAuditStream>, Status> {
        let told = audit::read(Arc::clone(&self.store), request.into_inner(), &self.tasks, self.shutdown.clone())?;
        Ok(Response::new(told))
    }

    async fn backup(&self, request: Request<v1::BackupRequest>) -> Result<Response<Self::BackupStream>, Status> {
        let (act, _) = audit::begin(request)?;
        Ok(Response::new(backup::begin(Arc::clone(&self.store), &act, &self.tasks, self.shutdown.clone()).await?))
    }

    async fn who_am_i(&self, request: Request<v1::WhoAmIRequest>) -> Result<Response<v1::WhoAmIResponse>, Status> {
        let principal = auth::principal(&request)?;
        let lifetime = request.extensions().get::<Lifetime>().and_then(|lifetime| lifetime.expires_at);
        let header = request.metadata().get("authorization").and_then(|value| value.to_str().ok());
        let (issuer, expires_at) = match header.and_then(|text| text.strip_prefix("Bearer ")) {
            // Nothing of it is stored: it says so itself, and has just been believed.
            Some(token) if issuers::is_jwt(token) => {
                let known = self.issuers.bearer(token).await.map_err(|_| auth::unauthenticated())?;
                (known.issuer, Some(known.expires_at))
            }
            _ => (String::new(), lifetime),
        };
        Ok(Response::new(v1::WhoAmIResponse {
            user: principal.user,
            role: v1::Role::from(principal.role).into(),
            groups: principal.groups,
            expires_at: expires_at.map(to_timestamp),
            version: crate::VERSION.to_owned(),
            controller_id: self.controller_id.clone(),
            token_id: principal.token_id,
            catalogs: principal.catalogs.iter().map(ToString::to_string).collect(),
            now: Some(to_timestamp(self.condition.clock.now())),
            issuer,
        }))
    }

    async fn get_controller(&self, _: Request<v1::GetControllerRequest>) -> Result<Response<v1::GetControllerResponse>, Status> {
        Ok(Response::new(self.condition.told().await?))
    }

    async fn create_session(
        &self,
        request: Request<v1::CreateSessionRequest>,
    ) -> Result<Response<v1::CreateSessionResponse>, Status> {
        let lifetime = request.extensions().get::<Lifetime>().copied().unwrap_or_default();
        let (act, _) = audit::begin(request)?;
        let made = self.tokens.create_session(lifetime, &act).await?;
        tracing::info!(token = made.record.id, user = made.record.user, "signed in");
        Ok(Response::new(v1::CreateSessionResponse {
            token: made.token.reveal().to_owned(),
            expires_at: made.record.expires_at.map(to_timestamp),
        }))
    }

    async fn end_session(&self, request: Request<v1::EndSessionRequest>) -> Result<Response<v1::EndSessionResponse>, Status> {
        let lifetime = request.extensions().get::<Lifetime>().copied().unwrap_or_default();
        let (act, _) = audit::begin(request)?;
        self.tokens.end_session(lifetime, &act).await?;
        tracing::info!(user = act.user(), "signed out");
        Ok(Response::new(v1::EndSessionResponse {}))
    }

    async fn create_token(&self, request: Request<v1::CreateTokenRequest>) -> Result<Response<v1::CreateTokenResponse>, Status> {
        let (act, request) = audit::begin(request)?;
        Ok(Response::new(self.create(&act, request).await?))
    }

    async fn list_tokens(&self, _: Request<v1::ListTokensRequest>) -> Result<Response<v1::ListTokensResponse>, Status> {
        let tokens = self.tokens.list().await.map_err(fault::from_store)?;
        let used = self.tokens.uses().await.map_err(fault::from_store)?;
        let info = |record: TokenRecord| {
            let used = used(&record.id);
            info(record, used)
        };
        Ok(Response::new(v1::ListTokensResponse { tokens: tokens.into_iter().map(info).collect() }))
    }

    async fn pause_jobs(&self, request: Request<v1::PauseJobsRequest>) -> Result<Response<v1::PauseJobsResponse>, Status> {
        let (act, request) = audit::begin(request)?;
        Ok(Response::new(self.pause(&act, request).await?))
    }

    async fn unpause_jobs(&self, request: Request<v1::UnpauseJobsRequest>) -> Result<Response<v1::UnpauseJobsResponse>, Status> {
        let (act, request) = audit::begin(request)?;
        Ok(Response::new(self.unpause(&act, request).await?))
    }

    async fn list_webhooks(&self, _: Request<v1::ListWebhooksRequest>) -> Result<Response<v1::ListWebhooksResponse>, Status> {
        Ok(Response::new(v1::ListWebhooksResponse { webhooks: self.webhooks.list() }))
    }

    async fn list_deliveries(
        &self,
        request: Request<v1::ListDeliveriesRequest>,
    ) -> Result<Response<v1::ListDeliveriesResponse>, Status> {
        let v1::ListDeliveriesRequest { webhook, waiting } = request.into_inner();
        Ok(Response::new(self.webhooks.deliveries(&webhook, !waiting)?))
    }

    async fn retry_deliveries(
        &self,
        request: Request<v1::RetryDeliveriesRequest>,
    ) -> Result<Response<v1::RetryDeliveriesResponse>, Status> {
        let (act, v1::RetryDeliveriesRequest { webhook, execution }) = audit::begin(request)?;
        let id = match execution.as_str() {
            "" => None,
            text => Some(octavius_proto::execution_id("execution", text).map_err(Fault::from)?),
        };
        let deliveries = self.webhooks.retry(&webhook, id, &act).await?;
        tracing::info!(webhook, execution, deliveries, by = act.user(), "messages are tried again");
        Ok(Response::new(v1::RetryDeliveriesResponse { deliveries }))
    }

    async fn test_webhook(&self, request: Request<v1::TestWebhookRequest>) -> Result<Response<v1::TestWebhookResponse>, Status> {
        let (act, v1::TestWebhookRequest { webhook }) = audit::begin(request)?;
        self.webhooks.test(&webhook, &act).await?;
        Ok(Response::new(v1::TestWebhookResponse {}))
    }

    async fn revoke_token(&self, request: Request<v1::RevokeTokenRequest>) -> Result<Response<v1::RevokeTokenResponse>, Status> {
        let (act, v1::RevokeTokenRequest { id }) = audit::begin(request)?;
        if !self.tokens.revoke(&id, &act).await.map_err(fault::from_store)? {
            return Err(Fault::new(Code::NotFound, reason::NOT_FOUND, format!("no token {}", id.escape_debug())).into());
        }
        tracing::info!(token = id, by = act.user(), "token revoked");
        Ok(Response::new(v1::RevokeTokenResponse {}))
    }
}
