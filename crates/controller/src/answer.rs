//! The body of an answer. While it lasts, the call is under way: with its end, what the call held is given back, and what became of it is
//! counted.

use std::pin::Pin;
use std::task::{Context, Poll};

use bytes::Bytes;
use futures::future::BoxFuture;
use http_body::{Frame, SizeHint};
use tonic::Status;
use tonic::body::Body;

use crate::auth;
use crate::limits::Holding;
use crate::metrics::Observed;

struct Answer {
    body: Body,
    _holding: Option<Holding>,
    observed: Option<Observed>,
    /// Ready when the caller has no right to it any more.
    ends: Option<BoxFuture<'static, ()>>,
}

/// Ties what a call holds, and what is observed of it, to its answer, which breaks off when `ends` is ready.
pub(crate) fn under_way(
    reply: http::Response<Body>,
    holding: Option<Holding>,
    observed: Option<Observed>,
    ends: Option<BoxFuture<'static, ()>>,
) -> http::Response<Body> {
    if holding.is_none() && observed.is_none() {
        return reply;
    }
    let mut observed = observed;
    if let Some(observed) = &mut observed {
        observed.read(reply.headers());
    }
    reply.map(|body| Body::new(Answer { body, _holding: holding, observed, ends }))
}

impl http_body::Body for Answer {
    type Data = Bytes;
    type Error = Status;

    fn poll_frame(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, Status>>> {
        if let Some(ends) = &mut self.ends
            && ends.as_mut().poll(context).is_ready()
        {
            self.ends = None;
            self.body = Body::empty();
            let mut trailers = http::HeaderMap::new();
            // It can be written: the text is ours.
            let _ = Status::from(auth::unauthenticated()).add_header(&mut trailers);
            if let Some(observed) = &mut self.observed {
                observed.read(&trailers);
            }
            return Poll::Ready(Some(Ok(Frame::trailers(trailers))));
        }
        let frame = Pin::new(&mut self.body).poll_frame(context);
        if let (Poll::Ready(Some(Ok(frame))), Some(observed)) = (&frame, &mut self.observed)
            && let Some(trailers) = frame.trailers_ref()
        {
            observed.read(trailers);
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
