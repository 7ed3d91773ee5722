//! Tokens, and who one is.

use std::sync::Arc;
use std::time::Duration;

use octavius_core::Role;
use octavius_proto::v1::admin_service_server::AdminService;
use octavius_proto::{Fault, InvalidField, reason, to_timestamp, v1};
use octavius_store::Store;
use octavius_store::record::TokenRecord;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;
use tonic::{Code, Request, Response, Status};

use crate::streams::Responses;
use crate::tokens::{REGISTRATION_LIFETIME, Tokens, USER_LIFETIME};
use crate::{auth, backup, fault};

/// Longest life of a token: longer ones should be renewed instead.
const MAX_LIFETIME: Duration = Duration::from_secs(366 * 24 * 3600);

/// Most groups of one token, and most characters of a user's or group's name.
const MAX_GROUPS: usize = 64;
const MAX_NAME: usize = 128;

#[derive(Debug)]
pub(crate) struct Admin {
    pub(crate) store: Arc<dyn Store>,
    pub(crate) tokens: Arc<Tokens>,
    pub(crate) controller_id: String,
    pub(crate) tasks: TaskTracker,
    pub(crate) shutdown: CancellationToken,
}

impl Admin {
    async fn create(&self, by: &str, request: v1::CreateTokenRequest) -> Result<v1::CreateTokenResponse, Fault> {
        let asked = Role::try_from(request.role())?;
        // An executor's own token comes from its registration; what is handed out beforehand is the right to register.
        let role = if asked == Role::Executor { Role::Registration } else { asked };
        check_name("user", &request.user)?;
        if request.groups.len() > MAX_GROUPS {
            return Err(InvalidField::new("groups", format!("{} groups, at most {MAX_GROUPS}", request.groups.len())).into());
        }
        for group in &request.groups {
            check_name("groups", group)?;
        }
        let default = if role == Role::Registration { REGISTRATION_LIFETIME } else { USER_LIFETIME };
        let lifetime = match request.lifetime {
            Some(lifetime) => Duration::try_from(lifetime).map_err(|error| InvalidField::new("lifetime", error))?,
            None => default,
        };
        if lifetime.is_zero() || lifetime > MAX_LIFETIME {
            return Err(InvalidField::new("lifetime", "a token is good for more than 0s and at most 366d").into());
        }
        let made = self.tokens.create(role, &request.user, request.groups, by, lifetime).await.map_err(fault::from_store)?;
        tracing::info!(id = made.record.id, user = made.record.user, %role, by, "token made");
        Ok(v1::CreateTokenResponse {
            id: made.record.id,
            token: made.token.reveal().to_owned(),
            expires_at: made.record.expires_at.map(to_timestamp),
        })
    }
}

fn check_name(field: &'static str, name: &str) -> Result<(), InvalidField> {
    let fits = !name.trim().is_empty() && name.chars().count() <= MAX_NAME && !name.chars().any(char::is_control);
    if fits {
        Ok(())
    } else {
        Err(InvalidField::new(field, format!("a name has 1 to {MAX_NAME} characters, none of them control characters")))
    }
}

fn info(record: TokenRecord) -> v1::TokenInfo {
    v1::TokenInfo {
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

    async fn backup(&self, request: Request<v1::BackupRequest>) -> Result<Response<Self::BackupStream>, Status> {
        let by = auth::principal(&request)?.user;
        Ok(Response::new(backup::begin(Arc::clone(&self.store), &by, &self.tasks, self.shutdown.clone()).await?))
    }

    async fn who_am_i(&self, request: Request<v1::WhoAmIRequest>) -> Result<Response<v1::WhoAmIResponse>, Status> {
        let principal = auth::principal(&request)?;
        let expires_at = self.tokens.expiry(&principal.token_id).await.map_err(fault::from_store)?;
        Ok(Response::new(v1::WhoAmIResponse {
            user: principal.user,
            role: v1::Role::from(principal.role).into(),
            groups: principal.groups,
            expires_at: expires_at.map(to_timestamp),
            version: crate::VERSION.to_owned(),
            controller_id: self.controller_id.clone(),
            token_id: principal.token_id,
        }))
    }

    async fn create_token(&self, request: Request<v1::CreateTokenRequest>) -> Result<Response<v1::CreateTokenResponse>, Status> {
        let principal = auth::principal(&request)?;
        Ok(Response::new(self.create(&principal.user, request.into_inner()).await?))
    }

    async fn list_tokens(&self, _: Request<v1::ListTokensRequest>) -> Result<Response<v1::ListTokensResponse>, Status> {
        let tokens = self.tokens.list().await.map_err(fault::from_store)?;
        Ok(Response::new(v1::ListTokensResponse { tokens: tokens.into_iter().map(info).collect() }))
    }

    async fn revoke_token(&self, request: Request<v1::RevokeTokenRequest>) -> Result<Response<v1::RevokeTokenResponse>, Status> {
        let by = auth::principal(&request)?.user;
        let id = request.into_inner().id;
        if !self.tokens.revoke(&id).await.map_err(fault::from_store)? {
            return Err(Fault::new(Code::NotFound, reason::NOT_FOUND, format!("no token {}", id.escape_debug())).into());
        }
        tracing::info!(id, by, "token revoked");
        Ok(Response::new(v1::RevokeTokenResponse {}))
    }
}
