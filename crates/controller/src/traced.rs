//! A call in its trace, and in the log: every line that is written for it says which RPC, which request and which trace it is of.
//!
//! This layer is the outermost. Where the process does not export and the log is not asked for, it costs a look at the call's headers.

use std::pin::Pin;
use std::sync::LazyLock;
use std::sync::atomic::{AtomicU64, Ordering};
use std::task::{Context, Poll};

use bytes::Bytes;
use futures::future::BoxFuture;
use http_body::{Frame, SizeHint};
use octavius_core::TraceContext;
use octavius_proto::trace;
use octavius_trace::{Kind, Span};
use tonic::body::Body;
use tonic::{Code, Request, Status};
use tower::{Layer, Service};
use tracing::Instrument as _;
use tracing::field::{Empty, display};

use crate::auth::TABLE;
use crate::random;

/// What is before the name of an RPC of ours, of service and method.
const PREFIX: &str = "/octavius.v1.";

/// Lasts as long as an executor is there: a span would be told of after days, and say nothing.
const SESSION: &str = "ExecutorService/Session";

/// Requests are told apart by numbers that follow each other, from a beginning that is each process's own; and short enough for tools that
/// read numbers as JavaScript does. As texts they would cost each call more than all the rest of this.
static NEXT: LazyLock<AtomicU64> = LazyLock::new(|| AtomicU64::new(random::number() >> 12));

/// The span that a call is, or that it came from, for what follows from it.
pub(crate) fn context<T>(request: &Request<T>) -> Option<Box<TraceContext>> {
    request.extensions().get::<TraceContext>().cloned().map(Box::new)
}

/// Puts calls into their traces.
#[derive(Debug, Clone, Copy)]
pub(crate) struct TraceLayer;

impl<S> Layer<S> for TraceLayer {
    type Service = Traced<S>;
    fn layer(&self, inner: S) -> Traced<S> {
        Traced { inner }
    }
}

/// A service whose calls are in their traces.
#[derive(Debug, Clone)]
pub(crate) struct Traced<S> {
    inner: S,
}

impl<S> Service<http::Request<Body>> for Traced<S>
where
    S: Service<http::Request<Body>, Response = http::Response<Body>>,
    S::Future: Send + 'static,
{
    type Response = http::Response<Body>;
    type Error = S::Error;
    type Future = BoxFuture<'static, Result<Self::Response, Self::Error>>;

    fn poll_ready(&mut self, context: &mut Context<'_>) -> Poll<Result<(), S::Error>> {
        self.inner.poll_ready(context)
    }

    fn call(&mut self, mut request: http::Request<Body>) -> Self::Future {
        let path = request.uri().path();
        // What is not of ours, such as a probe of the health, is not worth a line.
        let Some((known, ..)) = TABLE.iter().find(|(known, ..)| *known == path) else {
            return Box::pin(self.inner.call(request));
        };
        let rpc = known.strip_prefix(PREFIX).unwrap_or(known);
        let came = trace::received(request.headers());
        let mut span = match rpc {
            SESSION => Span::default(),
            _ => Span::begin(&known[1..], Kind::Server, came.as_ref()),
        };
        if span.is_recorded() {
            let (service, method) = known[1..].split_once('/').unwrap_or_default();
            span.set("rpc.system", "grpc");
            span.set("rpc.service", service);
            span.set("rpc.method", method);
        }
        let line = tracing::info_span!("rpc", rpc, request_id = NEXT.fetch_add(1, Ordering::Relaxed), trace_id = Empty);
        if let Some(context) = span.hand_on(came.as_ref()) {
            line.record("trace_id", display(context.trace_id_text()));
            request.extensions_mut().insert(context);
        }
        let reply = self.inner.call(request).instrument(line);
        if !span.is_recorded() {
            return Box::pin(reply);
        }
        Box::pin(async move {
            let reply = reply.await?;
            read(&mut span, reply.headers());
            Ok(reply.map(|body| Body::new(Answer { body, span })))
        })
    }
}

/// Reads what became of a call in its answer's headers or trailers, if it stands there. The message may hold what only the caller is to see.
fn read(span: &mut Span, headers: &http::HeaderMap) {
    let Some(code) = headers.get(Status::GRPC_STATUS).map(|code| Code::from_bytes(code.as_bytes())) else { return };
    span.set("rpc.grpc.status_code", i64::from(i32::from(code)));
    // What is the caller's own fault is no error of the server's.
    if matches!(
        code,
        Code::Unknown | Code::DeadlineExceeded | Code::Unimplemented | Code::Internal | Code::Unavailable | Code::DataLoss
    ) {
        span.fail(format!("{code:?}"));
    }
}

/// The body of an answer: with its end, the call's span ends.
struct Answer {
    body: Body,
    span: Span,
}

impl http_body::Body for Answer {
    type Data = Bytes;
    type Error = Status;

    fn poll_frame(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, Status>>> {
        let frame = Pin::new(&mut self.body).poll_frame(context);
        if let Poll::Ready(Some(Ok(frame))) = &frame
            && let Some(trailers) = frame.trailers_ref()
        {
            read(&mut self.span, trailers);
        }
        frame
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}
