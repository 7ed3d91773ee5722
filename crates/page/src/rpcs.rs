//! The controller's gRPC services as the page calls them: in this process, in the visitor's name.

use std::fmt;
use std::task::{Context, Poll};

use http::header::AUTHORIZATION;
use http::{Extensions, HeaderValue, Request, Response};
use octavius_proto::MAX_MESSAGE_BYTES;
use octavius_proto::v1::admin_service_client::AdminServiceClient;
use octavius_proto::v1::catalog_service_client::CatalogServiceClient;
use octavius_proto::v1::execution_service_client::ExecutionServiceClient;
use octavius_proto::v1::executor_service_client::ExecutorServiceClient;
use octavius_proto::v1::log_service_client::LogServiceClient;
use tonic::body::Body;
use tower::util::BoxCloneSyncService;
use tower::{Service, ServiceExt as _};

/// Why a call came to nothing before it was answered.
pub type BoxError = Box<dyn std::error::Error + Send + Sync>;

/// The controller's gRPC services, with all that stands before them: who may call, how much, and what is written down of it.
#[derive(Clone)]
pub struct Rpcs(BoxCloneSyncService<Request<Body>, Response<Body>, BoxError>);

impl fmt::Debug for Rpcs {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Rpcs")
    }
}

impl Rpcs {
    /// The services behind `service`, which answers as the controller answers a gRPC client.
    pub fn new<S>(service: S) -> Self
    where
        S: Service<Request<Body>, Response = Response<Body>> + Clone + Send + Sync + 'static,
        S::Error: Into<BoxError>,
        S::Future: Send + 'static,
    {
        Self(BoxCloneSyncService::new(service.map_err(Into::into)))
    }

    /// Calls with this token, or with none, as the peer that the extensions tell of.
    pub(crate) fn by(&self, bearer: Option<&str>, peer: Extensions) -> Calls {
        let bearer = bearer.and_then(|token| {
            let mut value = HeaderValue::try_from(format!("Bearer {token}")).ok()?;
            value.set_sensitive(true);
            Some(value)
        });
        Calls(Caller { rpcs: self.clone(), bearer, peer })
    }
}

/// What the generated clients speak through.
#[derive(Clone)]
pub(crate) struct Caller {
    rpcs: Rpcs,
    bearer: Option<HeaderValue>,
    peer: Extensions,
}

impl Service<Request<Body>> for Caller {
    type Response = Response<Body>;
    type Error = BoxError;
    type Future = <BoxCloneSyncService<Request<Body>, Response<Body>, BoxError> as Service<Request<Body>>>::Future;

    fn poll_ready(&mut self, context: &mut Context<'_>) -> Poll<Result<(), BoxError>> {
        self.rpcs.0.poll_ready(context)
    }

    fn call(&mut self, mut request: Request<Body>) -> Self::Future {
        if let Some(bearer) = &self.bearer {
            request.headers_mut().insert(AUTHORIZATION, bearer.clone());
        }
        request.extensions_mut().extend(self.peer.clone());
        self.rpcs.0.call(request)
    }
}

/// The services, called by one visitor.
#[derive(Clone)]
pub(crate) struct Calls(Caller);

impl Calls {
    pub(crate) fn admin(&self) -> AdminServiceClient<Caller> {
        AdminServiceClient::new(self.0.clone()).max_decoding_message_size(MAX_MESSAGE_BYTES)
    }

    pub(crate) fn catalog(&self) -> CatalogServiceClient<Caller> {
        CatalogServiceClient::new(self.0.clone()).max_decoding_message_size(MAX_MESSAGE_BYTES)
    }

    pub(crate) fn executions(&self) -> ExecutionServiceClient<Caller> {
        ExecutionServiceClient::new(self.0.clone()).max_decoding_message_size(MAX_MESSAGE_BYTES)
    }

    pub(crate) fn executors(&self) -> ExecutorServiceClient<Caller> {
        ExecutorServiceClient::new(self.0.clone()).max_decoding_message_size(MAX_MESSAGE_BYTES)
    }

    pub(crate) fn logs(&self) -> LogServiceClient<Caller> {
        LogServiceClient::new(self.0.clone()).max_decoding_message_size(MAX_MESSAGE_BYTES)
    }
}
