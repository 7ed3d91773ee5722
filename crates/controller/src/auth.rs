//! A principal on every call, and one table that says what each RPC needs and what it is to the audit trail. A call passes here before
//! anything else sees it.

use std::net::IpAddr;
use std::sync::Arc;
use std::task::{Context, Poll};

use futures::FutureExt as _;
use futures::future::BoxFuture;
use http::HeaderValue;
use octavius_core::{Permission, Principal};
use octavius_proto::{Fault, MAX_APPEND_BYTES, MAX_MESSAGE_BYTES, reason, v1};
use tokio_util::task::TaskTracker;
use tonic::body::Body;
use tonic::{Code, Request, Status};
use tower::{Layer, Service};

use crate::audit::{Act, Reader, Refusals, Refused, What, of, of_apply};
use crate::catalog_service::MAX_APPLY_BYTES;
use crate::issuers::{Denial, Issuers, is_jwt};
use crate::limits::{self, Holding, Limits};
use crate::listen::Peer;
use crate::metrics::{Observed, Rpcs};
use crate::tokens::{Bearer, Lifetime, Tokens};
use crate::{answer, fault, replies};

/// What an RPC is to the audit trail. Each names its action, also those whose calls are in the trail only where they are refused.
#[derive(Debug, Clone, Copy)]
pub(crate) enum Audit {
    /// It changes nothing.
    Reads(&'static str),
    /// An executor says what has become of something: nobody's change, but the system's own.
    Told(&'static str),
    /// Somebody changes something, or reads everything: each leaves a record. The function reads in a message what it asks for.
    Changes(&'static str, Reader),
}

use Audit::{Changes, Reads, Told};

impl Audit {
    pub(crate) const fn action(self) -> &'static str {
        match self {
            Reads(action) | Told(action) | Changes(action, _) => action,
        }
    }

    /// Whether an answer of this code means that somebody was refused. To be told that something is not there may be that, too: what is
    /// not for one's eyes is not there. What was only looked for, or could not be understood, was not refused.
    fn refused(self, code: Code) -> bool {
        match code {
            Code::PermissionDenied | Code::Unauthenticated => true,
            Code::NotFound | Code::FailedPrecondition | Code::Aborted | Code::AlreadyExists => matches!(self, Changes(..)),
            _ => false,
        }
    }
}

/// What each RPC needs, and what it is to the audit trail. A test holds it to the protos: every RPC stands here, and nothing else.
pub(crate) const TABLE: &[(&str, Permission, Audit)] = &[
    // Who changes a catalogue reads it whole; others see the jobs that are for them, one by one.
    ("/octavius.v1.CatalogService/GetHead", Permission::Apply, Reads("catalog.read")),
    ("/octavius.v1.CatalogService/GetBuckets", Permission::Apply, Reads("catalog.read")),
    ("/octavius.v1.CatalogService/GetDefinitions", Permission::Apply, Reads("catalog.read")),
    ("/octavius.v1.CatalogService/Apply", Permission::Apply, Changes("catalog.apply", of_apply)),
    ("/octavius.v1.CatalogService/SetFrozen", Permission::Apply, Changes("catalog.freeze", of::<v1::SetFrozenRequest>)),
    ("/octavius.v1.CatalogService/ListRevisions", Permission::ReadCatalog, Reads("catalog.read")),
    ("/octavius.v1.CatalogService/ListJobs", Permission::ReadCatalog, Reads("job.read")),
    ("/octavius.v1.CatalogService/GetJob", Permission::ReadCatalog, Reads("job.read")),
    ("/octavius.v1.ExecutionService/Execute", Permission::Execute, Changes("execution.submit", of::<v1::ExecuteRequest>)),
    (
        "/octavius.v1.ExecutionService/RerunExecution",
        Permission::Execute,
        Changes("execution.rerun", of::<v1::RerunExecutionRequest>),
    ),
    ("/octavius.v1.ExecutionService/GetExecution", Permission::ReadExecutions, Reads("execution.read")),
    ("/octavius.v1.ExecutionService/ListExecutions", Permission::ReadExecutions, Reads("execution.read")),
    ("/octavius.v1.ExecutionService/WatchExecution", Permission::ReadExecutions, Reads("execution.read")),
    (
        "/octavius.v1.ExecutionService/CancelExecution",
        Permission::Execute,
        Changes("execution.cancel", of::<v1::CancelExecutionRequest>),
    ),
    (
        "/octavius.v1.ExecutionService/ApproveExecution",
        Permission::Execute,
        Changes("execution.approve", of::<v1::ApproveExecutionRequest>),
    ),
    (
        "/octavius.v1.ExecutionService/RejectExecution",
        Permission::Execute,
        Changes("execution.reject", of::<v1::RejectExecutionRequest>),
    ),
    ("/octavius.v1.LogService/AppendLog", Permission::RunExecutions, Told("log.append")),
    ("/octavius.v1.LogService/ReadLog", Permission::ReadExecutions, Reads("log.read")),
    (
        "/octavius.v1.ExecutorService/RegisterExecutor",
        Permission::RegisterExecutor,
        Changes("executor.register", of::<v1::RegisterExecutorRequest>),
    ),
    (
        "/octavius.v1.ExecutorService/RotateToken",
        Permission::RunExecutions,
        Changes("executor.rotate", of::<v1::RotateTokenRequest>),
    ),
    ("/octavius.v1.ExecutorService/Session", Permission::RunExecutions, Told("executor.session")),
    ("/octavius.v1.ExecutorService/ReportExecution", Permission::RunExecutions, Told("execution.report")),
    ("/octavius.v1.ExecutorService/ListExecutors", Permission::ReadExecutors, Reads("executor.read")),
    ("/octavius.v1.ExecutorService/GetExecutor", Permission::ReadExecutors, Reads("executor.read")),
    (
        "/octavius.v1.ExecutorService/DrainExecutor",
        Permission::Administer,
        Changes("executor.drain", of::<v1::DrainExecutorRequest>),
    ),
    (
        "/octavius.v1.ExecutorService/ResumeExecutor",
        Permission::Administer,
        Changes("executor.resume", of::<v1::ResumeExecutorRequest>),
    ),
    (
        "/octavius.v1.ExecutorService/RevokeExecutor",
        Permission::Administer,
        Changes("executor.revoke", of::<v1::RevokeExecutorRequest>),
    ),
    ("/octavius.v1.AdminService/WhoAmI", Permission::Anyone, Reads("token.read")),
    ("/octavius.v1.AdminService/CreateSession", Permission::SignIn, Changes("session.create", of::<v1::CreateSessionRequest>)),
    ("/octavius.v1.AdminService/EndSession", Permission::SignIn, Changes("session.end", of::<v1::EndSessionRequest>)),
    ("/octavius.v1.AdminService/CreateToken", Permission::Administer, Changes("token.create", of::<v1::CreateTokenRequest>)),
    ("/octavius.v1.AdminService/ListTokens", Permission::Administer, Reads("token.read")),
    ("/octavius.v1.AdminService/RevokeToken", Permission::Administer, Changes("token.revoke", of::<v1::RevokeTokenRequest>)),
    ("/octavius.v1.AdminService/PauseJobs", Permission::Administer, Changes("job.pause", of::<v1::PauseJobsRequest>)),
    ("/octavius.v1.AdminService/UnpauseJobs", Permission::Administer, Changes("job.unpause", of::<v1::UnpauseJobsRequest>)),
    ("/octavius.v1.AdminService/ReadAudit", Permission::Administer, Reads("audit.read")),
    ("/octavius.v1.AdminService/GetController", Permission::Administer, Reads("controller.read")),
    ("/octavius.v1.AdminService/ListWebhooks", Permission::Administer, Reads("webhook.read")),
    ("/octavius.v1.AdminService/ListDeliveries", Permission::Administer, Reads("webhook.read")),
    (
        "/octavius.v1.AdminService/RetryDeliveries",
        Permission::Administer,
        Changes("webhook.retry", of::<v1::RetryDeliveriesRequest>),
    ),
    ("/octavius.v1.AdminService/TestWebhook", Permission::Administer, Changes("webhook.test", of::<v1::TestWebhookRequest>)),
    ("/octavius.v1.AdminService/Backup", Permission::Administer, Changes("backup.read", of::<v1::BackupRequest>)),
];

/// Services that need no token: whether the controller lives, and what it speaks, is no secret.
const PUBLIC: [&str; 3] =
    ["/grpc.health.v1.Health/", "/grpc.reflection.v1.ServerReflection/", "/grpc.reflection.v1alpha.ServerReflection/"];

/// Puts the check before a server's services.
#[derive(Debug, Clone)]
pub(crate) struct AuthLayer {
    pub(crate) tokens: Arc<Tokens>,
    pub(crate) issuers: Arc<Issuers>,
    pub(crate) refusals: Arc<Refusals>,
    pub(crate) limits: Arc<Limits>,
    pub(crate) rpcs: Rpcs,
    /// Where calls under way are counted, so that a stop can wait for them.
    pub(crate) tasks: TaskTracker,
}

impl<S> Layer<S> for AuthLayer {
    type Service = Auth<S>;
    fn layer(&self, inner: S) -> Auth<S> {
        Auth { layer: self.clone(), inner }
    }
}

/// The check.
#[derive(Debug, Clone)]
pub(crate) struct Auth<S> {
    layer: AuthLayer,
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

    fn call(&mut self, request: http::Request<Body>) -> Self::Future {
        // The clone takes the place of the service that was just found ready.
        let clone = self.inner.clone();
        let mut inner = std::mem::replace(&mut self.inner, clone);
        let AuthLayer { tokens, issuers, refusals, limits, rpcs, tasks } = self.layer.clone();
        let path = request.uri().path().to_owned();
        let header = request.headers().get(http::header::AUTHORIZATION).cloned();
        Box::pin(tasks.track_future(async move {
            let observed = rpcs.begin(&path);
            let mut ends = None;
            let peer = request.extensions().get::<Peer>().cloned();
            let from = peer.as_ref().map(Peer::address);
            let (reply, holding) = match check(&tokens, &issuers, &path, header.as_ref(), from).await {
                Ok(Passed::Public) => match public_call(peer.as_ref()) {
                    Ok(holding) => (inner.call(request).await?, holding),
                    Err(fault) => (Status::from(fault).into_http(), None),
                },
                Ok(Passed::As(act, audit, lifetime)) => match admit(&limits, &act, &path, peer.as_ref()).await {
                    Ok(holding) => {
                        let mut request = request.map(|body| holding.receive(body));
                        request.extensions_mut().insert(act.clone());
                        request.extensions_mut().insert(lifetime);
                        ends = Some(lifetime);
                        let reply = inner.call(request).await.map(|reply| readable(&path, reply))?;
                        note_refused(&refusals, audit, act, &reply);
                        (replies::send(&path, reply), Some(holding))
                    }
                    Err(fault) => (Status::from(fault).into_http(), None),
                },
                Err(Denied { fault, noted }) => {
                    if let Some((act, audit)) = noted {
                        let unread = match audit {
                            Changes(_, read) => Some((request.into_body(), read)),
                            Reads(_) | Told(_) => None,
                        };
                        refusals.note(Refused { act, reason: fault.reason.clone(), unread });
                    }
                    (Status::from(fault).into_http(), None)
                }
            };
            // A stream lasts no longer than the right to it.
            let ends = ends.filter(|_| observed.as_ref().is_some_and(Observed::is_stream));
            let ends = ends.map(|lifetime| async move { tokens.ended(lifetime).await }.boxed());
            Ok(answer::under_way(reply, holding, observed, ends))
        }))
    }
}

/// Lets a call in when it is its turn. Its connection is no stranger's any more.
async fn admit(limits: &Limits, act: &Act, path: &str, peer: Option<&Peer>) -> Result<Holding, Fault> {
    if let Some(peer) = peer {
        peer.is_known();
    }
    limits.admit(act.principal()?, path).await
}

/// Lets a call in that takes no token; nobody knows who makes it, and so each connection has its share.
fn public_call(peer: Option<&Peer>) -> Result<Option<Holding>, Fault> {
    let too_many = || limits::limited("this connection has too many calls without a token under way".to_owned());
    peer.map(|peer| peer.public_call().map(|call| Holding::new(call, None, None)).ok_or_else(too_many)).transpose()
}

/// Notes a call that its service refused.
fn note_refused(refusals: &Arc<Refusals>, audit: Audit, act: Act, reply: &http::Response<Body>) {
    let code = reply.headers().get(Status::GRPC_STATUS).map(|code| Code::from_bytes(code.as_bytes()));
    if code.is_some_and(|code| audit.refused(code)) {
        let status = Status::from_header_map(reply.headers());
        let reason = status.map(|status| Fault::from_status(&status).reason).unwrap_or_default();
        refusals.note(Refused { act, reason, unread: None });
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
        Some(Code::OutOfRange) => fault::too_large(match path.split('/').nth(1) {
            Some("octavius.v1.CatalogService") => MAX_APPLY_BYTES,
            Some("octavius.v1.LogService") => MAX_APPEND_BYTES,
            _ => MAX_MESSAGE_BYTES,
        }),
        Some(Code::Internal) => fault::invalid("the message cannot be read"),
        _ => return response,
    };
    Status::from(fault).into_http()
}

/// A call that may go on.
enum Passed {
    /// Whoever makes it.
    Public,
    /// Made by somebody who may.
    As(Act, Audit, Lifetime),
}

/// A call that may not.
struct Denied {
    fault: Fault,
    /// What is to be noted of it.
    noted: Option<(Act, Audit)>,
}

impl From<Fault> for Denied {
    fn from(fault: Fault) -> Self {
        Self { fault, noted: None }
    }
}

async fn check(
    tokens: &Tokens,
    issuers: &Issuers,
    path: &str,
    header: Option<&HeaderValue>,
    from: Option<IpAddr>,
) -> Result<Passed, Denied> {
    if PUBLIC.iter().any(|public| path.starts_with(public)) {
        return Ok(Passed::Public);
    }
    // What is not an RPC of ours goes on: the router says so.
    let row = TABLE.iter().find(|(known, ..)| *known == path);
    let audit = row.map_or(Reads("call"), |(_, _, audit)| *audit);
    let act = |principal| Act::new(principal, from, What { action: audit.action(), ..What::default() });
    let refused = |whose, why| {
        let act = act(whose);
        act.note("token", why);
        Denied { fault: unauthenticated(), noted: Some((act, audit)) }
    };
    let text = header.and_then(|value| value.to_str().ok());
    let token = text.and_then(|text| text.strip_prefix("Bearer ")).ok_or_else(|| refused(None, "missing"))?;
    let (principal, lifetime) = if is_jwt(token) {
        let denied = |denial: Denial| {
            let act = act(None);
            denial.note(&act);
            Denied { fault: unauthenticated(), noted: Some((act, audit)) }
        };
        let known = issuers.bearer(token).await.map_err(denied)?;
        (known.principal, Lifetime { digest: None, expires_at: Some(known.good_until), signs_in: known.signs_in })
    } else {
        match tokens.bearer(token, from).await.map_err(fault::from_store)? {
            Bearer::Known(principal, lifetime) => (principal, lifetime),
            Bearer::Malformed => return Err(refused(None, "malformed")),
            Bearer::Refused { whose, why } => return Err(refused(whose, why)),
        }
    };
    if let Some((_, permission, _)) = row
        && !principal.role.may(*permission)
    {
        let rpc = path.rsplit('/').next().unwrap_or(path);
        let message = format!("{} has role {}, which may not {}", principal.user, principal.role, describe(*permission));
        let fault = fault::not_permitted(message).with("rpc", rpc);
        return Err(Denied { fault, noted: Some((act(Some(principal)), audit)) });
    }
    Ok(Passed::As(act(Some(principal)), audit, lifetime))
}

fn describe(permission: Permission) -> &'static str {
    match permission {
        Permission::Anyone => "do anything",
        Permission::SignIn => "sign in with a browser",
        Permission::ReadCatalog => "read the catalogue",
        Permission::ReadExecutions => "read executions",
        Permission::ReadExecutors => "read executors",
        Permission::Execute => "run, cancel or approve jobs",
        Permission::Apply => "read or change a catalogue as a whole",
        Permission::Administer => "administer tokens, executors and pauses, or read the audit trail",
        Permission::RunExecutions => "act as an executor",
        Permission::RegisterExecutor => "register an executor",
    }
}

/// One same answer for a token that is absent, malformed, unknown, revoked, expired or of the wrong kind.
pub(crate) fn unauthenticated() -> Fault {
    Fault::new(Code::Unauthenticated, reason::UNAUTHENTICATED, "not signed in: the token is missing, unknown or expired")
}

/// What this call is to the audit trail.
pub(crate) fn act<T>(request: &Request<T>) -> Result<Act, Fault> {
    request.extensions().get::<Act>().cloned().ok_or_else(unauthenticated)
}

/// Who makes this call.
pub(crate) fn principal<T>(request: &Request<T>) -> Result<Principal, Fault> {
    act(request)?.principal().cloned()
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
        let table: BTreeSet<String> = TABLE.iter().map(|(path, ..)| (*path).to_owned()).collect();
        assert_eq!(table.len(), TABLE.len(), "an RPC stands in the table twice");
        assert_eq!(table, rpcs);
    }

    /// What only reads, of what those may call who change things.
    const READS: [&str; 8] =
        ["GetHead", "GetBuckets", "GetDefinitions", "ListTokens", "ReadAudit", "GetController", "ListWebhooks", "ListDeliveries"];

    /// A new RPC that changes something does not go without its record because somebody forgot.
    #[test]
    fn whatever_changes_something_is_in_the_audit_trail() {
        for (path, permission, audit) in TABLE {
            let reads = READS.iter().any(|rpc| path.ends_with(&format!("/{rpc}")));
            let fits = match permission {
                Permission::SignIn | Permission::Execute | Permission::RegisterExecutor => matches!(audit, Changes(..)),
                Permission::Apply | Permission::Administer => matches!(audit, Changes(..)) != reads,
                // Of what executors do, this one is not the system's own: by it they keep their right to do anything.
                Permission::RunExecutions => matches!(audit, Told(_)) != path.ends_with("/RotateToken"),
                Permission::Anyone | Permission::ReadCatalog | Permission::ReadExecutions | Permission::ReadExecutors => {
                    matches!(audit, Reads(_))
                }
            };
            assert!(fits, "{path} needs {permission:?} and is {audit:?}");
            let words: Vec<_> = audit.action().split('.').collect();
            let is_word = |word: &&str| !word.is_empty() && word.bytes().all(|byte| byte.is_ascii_lowercase());
            assert!(words.len() == 2 && words.iter().all(is_word), "{path}: {}", audit.action());
        }
    }

    #[test]
    fn what_could_not_be_understood_was_not_refused() {
        let changes = Changes("job.pause", of::<v1::PauseJobsRequest>);
        let codes = |audit: Audit| (0..17).map(Code::from_i32).filter(|code| audit.refused(*code)).collect::<Vec<_>>();
        assert_eq!(codes(Reads("job.read")), [Code::PermissionDenied, Code::Unauthenticated]);
        let more = [Code::NotFound, Code::AlreadyExists, Code::PermissionDenied, Code::FailedPrecondition, Code::Aborted];
        assert_eq!(codes(changes), more.into_iter().chain([Code::Unauthenticated]).collect::<Vec<_>>());
    }
}
