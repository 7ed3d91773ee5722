//! A principal on every call, and one table that says what each RPC needs. A call passes here before anything else sees it.

use std::sync::Arc;
use std::task::{Context, Poll};

use futures::future::BoxFuture;
use http::HeaderValue;
use octavius_core::{Permission, Principal};
use octavius_proto::{Fault, MAX_MESSAGE_BYTES, reason};
use tokio_util::task::TaskTracker;
use tonic::body::Body;
use tonic::{Code, Request, Status};
use tower::{Layer, Service};

use crate::catalog_service::MAX_APPLY_BYTES;
use crate::tokens::Tokens;
use crate::{fault, replies};

/// What each RPC needs. A test holds it to the protos: every RPC stands here, and nothing else.
pub(crate) const TABLE: &[(&str, Permission)] = &[
    // Who changes a catalogue reads it whole; others see the jobs that are for them, one by one.
    ("/octavius.v1.CatalogService/GetHead", Permission::Apply),
    ("/octavius.v1.CatalogService/GetBuckets", Permission::Apply),
    ("/octavius.v1.CatalogService/GetDefinitions", Permission::Apply),
    ("/octavius.v1.CatalogService/Apply", Permission::Apply),
    ("/octavius.v1.CatalogService/SetFrozen", Permission::Apply),
    ("/octavius.v1.CatalogService/ListRevisions", Permission::ReadCatalog),
    ("/octavius.v1.CatalogService/ListJobs", Permission::ReadCatalog),
    ("/octavius.v1.CatalogService/GetJob", Permission::ReadCatalog),
    ("/octavius.v1.ExecutionService/Execute", Permission::Execute),
    ("/octavius.v1.ExecutionService/GetExecution", Permission::ReadExecutions),
    ("/octavius.v1.ExecutionService/ListExecutions", Permission::ReadExecutions),
    ("/octavius.v1.ExecutionService/WatchExecution", Permission::ReadExecutions),
    ("/octavius.v1.ExecutionService/CancelExecution", Permission::Execute),
    ("/octavius.v1.LogService/AppendLog", Permission::RunExecutions),
    ("/octavius.v1.LogService/ReadLog", Permission::ReadExecutions),
    ("/octavius.v1.ExecutorService/RegisterExecutor", Permission::RegisterExecutor),
    ("/octavius.v1.ExecutorService/Session", Permission::RunExecutions),
    ("/octavius.v1.ExecutorService/ReportExecution", Permission::RunExecutions),
    ("/octavius.v1.ExecutorService/ListExecutors", Permission::ReadExecutors),
    ("/octavius.v1.AdminService/WhoAmI", Permission::Anyone),
    ("/octavius.v1.AdminService/CreateToken", Permission::Administer),
    ("/octavius.v1.AdminService/ListTokens", Permission::Administer),
    ("/octavius.v1.AdminService/RevokeToken", Permission::Administer),
    ("/octavius.v1.AdminService/Backup", Permission::Administer),
];

/// Services that need no token: whether the controller lives, and what it speaks, is no secret.
const PUBLIC: [&str; 3] =
    ["/grpc.health.v1.Health/", "/grpc.reflection.v1.ServerReflection/", "/grpc.reflection.v1alpha.ServerReflection/"];

/// Puts the check before a server's services.
#[derive(Debug, Clone)]
pub(crate) struct AuthLayer {
    pub(crate) tokens: Arc<Tokens>,
    /// Where calls under way are counted, so that a stop can wait for them.
    pub(crate) tasks: TaskTracker,
}

impl<S> Layer<S> for AuthLayer {
    type Service = Auth<S>;
    fn layer(&self, inner: S) -> Auth<S> {
        Auth { tokens: Arc::clone(&self.tokens), tasks: self.tasks.clone(), inner }
    }
}

/// The check.
#[derive(Debug, Clone)]
pub(crate) struct Auth<S> {
    tokens: Arc<Tokens>,
    tasks: TaskTracker,
    inner: S,
}

impl<S> Service<http::Request<Body>> for Auth<S>
where
    S: Service<http::Request<Body>, Response = http::Response<Body>> + Clone + Send + 'static,
    S::Future: Send,
{
    type Response = http::Response<Body>;
    type Error = S::Error;
    type Future = BoxFuture<'static, Result<Self::Response, Self::Error>>;

    fn poll_ready(&mut self, context: &mut Context<'_>) -> Poll<Result<(), S::Error>> {
        self.inner.poll_ready(context)
    }

    fn call(&mut self, mut request: http::Request<Body>) -> Self::Future {
        // The clone takes the place of the service that was just found ready.
        let clone = self.inner.clone();
        let mut inner = std::mem::replace(&mut self.inner, clone);
        let tokens = Arc::clone(&self.tokens);
        let tasks = self.tasks.clone();
        let path = request.uri().path().to_owned();
        let header = request.headers().get(http::header::AUTHORIZATION).cloned();
        Box::pin(tasks.track_future(async move {
            match check(&tokens, &path, header.as_ref()).await {
                Ok(Some(principal)) => {
                    request.extensions_mut().insert(principal);
                    inner.call(request).await.map(|reply| readable(&path, reply)).map(|reply| replies::send(&path, reply))
                }
                Ok(None) => inner.call(request).await,
                Err(fault) => Ok(Status::from(fault).into_http()),
            }
        }))
    }
}

/// Puts an answer of ours in the place of what the transport says of a message that it could not read: a fault of the caller's is not
/// ours, and OUT_OF_RANGE has a meaning of its own with us. All that we say has details.
fn readable(path: &str, response: http::Response<Body>) -> http::Response<Body> {
    let headers = response.headers();
    if headers.contains_key("grpc-status-details-bin") {
        return response;
    }
    let fault = match headers.get(Status::GRPC_STATUS).map(|code| Code::from_bytes(code.as_bytes())) {
        Some(Code::OutOfRange) => {
            let catalog = path.starts_with("/octavius.v1.CatalogService/");
            fault::too_large(if catalog { MAX_APPLY_BYTES } else { MAX_MESSAGE_BYTES })
        }
        Some(Code::Internal) => fault::invalid("the message cannot be read"),
        _ => return response,
    };
    Status::from(fault).into_http()
}

/// The principal of a call that may go on; none for a public one.
async fn check(tokens: &Tokens, path: &str, header: Option<&HeaderValue>) -> Result<Option<Principal>, Fault> {
    if PUBLIC.iter().any(|public| path.starts_with(public)) {
        return Ok(None);
    }
    let text = header.and_then(|value| value.to_str().ok());
    let token = text.and_then(|text| text.strip_prefix("Bearer ")).ok_or_else(unauthenticated)?;
    let principal = tokens.principal(token).await.map_err(fault::from_store)?.ok_or_else(unauthenticated)?;
    let Some((_, permission)) = TABLE.iter().find(|(known, _)| *known == path) else {
        return Ok(Some(principal)); // not an RPC of ours: the router says so
    };
    if !principal.role.may(*permission) {
        let rpc = path.rsplit('/').next().unwrap_or(path);
        let message = format!("{} has role {}, which may not {}", principal.user, principal.role, describe(*permission));
        return Err(fault::not_permitted(message).with("rpc", rpc));
    }
    Ok(Some(principal))
}

fn describe(permission: Permission) -> &'static str {
    match permission {
        Permission::Anyone => "do anything",
        Permission::ReadCatalog => "read the catalogue",
        Permission::ReadExecutions => "read executions",
        Permission::ReadExecutors => "read executors",
        Permission::Execute => "run or cancel jobs",
        Permission::Apply => "read or change a catalogue as a whole",
        Permission::Administer => "administer tokens",
        Permission::RunExecutions => "act as an executor",
        Permission::RegisterExecutor => "register an executor",
    }
}

/// One same answer for a token that is absent, malformed, unknown, revoked, expired or of the wrong kind.
pub(crate) fn unauthenticated() -> Fault {
    Fault::new(Code::Unauthenticated, reason::UNAUTHENTICATED, "not signed in: the token is missing, unknown or expired")
}

/// Who makes this call.
pub(crate) fn principal<T>(request: &Request<T>) -> Result<Principal, Fault> {
    request.extensions().get::<Principal>().cloned().ok_or_else(unauthenticated)
}

#[cfg(test)]
mod tests {
    use super::*;
    use prost::Message as _;
    use std::collections::BTreeSet;

    #[test]
    fn every_rpc_stands_in_the_table_and_nothing_else_does() {
        let descriptors = prost_types::FileDescriptorSet::decode(octavius_proto::DESCRIPTORS).unwrap();
        let mut rpcs = BTreeSet::new();
        for file in descriptors.file.iter().filter(|file| file.package() == "octavius.v1") {
            for service in &file.service {
                rpcs.extend(service.method.iter().map(|method| format!("/octavius.v1.{}/{}", service.name(), method.name())));
            }
        }
        let table: BTreeSet<String> = TABLE.iter().map(|(path, _)| (*path).to_owned()).collect();
        assert_eq!(table.len(), TABLE.len(), "an RPC stands in the table twice");
        assert_eq!(table, rpcs);
    }
}
