//! How much of one session is under way. A page is made at once and lies in memory until its browser has taken it, and the controller's own
//! limits have let it go by then: a browser that asks and never reads is held here.

use std::collections::HashMap;
use std::pin::Pin;
use std::sync::{Arc, Mutex, PoisonError, Weak};
use std::task::{Context, Poll};

use axum::body::{Body, Bytes};
use axum::extract::{Request, State};
use axum::middleware::Next;
use axum::response::{IntoResponse as _, Response};
use http::StatusCode;
use http::header::{CONTENT_TYPE, COOKIE};
use http_body::{Frame, SizeHint};
use ring::digest;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};

use crate::trouble::Trouble;

/// Requests of one session that may be under way, answers that are not taken included; live streams aside, which wait for their readers.
const AT_ONCE: usize = 32;

/// Sessions after which those that have nothing under way are forgotten.
const KEPT: usize = 1024;

/// What is under way, by session.
#[derive(Clone, Default)]
pub(crate) struct Turns(Arc<Mutex<HashMap<Vec<u8>, Weak<Semaphore>>>>);

impl Turns {
    fn of(&self, cookies: &[u8]) -> Arc<Semaphore> {
        let key = digest::digest(&digest::SHA256, cookies).as_ref().to_vec();
        let mut known = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(turns) = known.get(&key).and_then(Weak::upgrade) {
            return turns;
        }
        if known.len() >= KEPT {
            known.retain(|_, turns| turns.strong_count() > 0);
        }
        let turns = Arc::new(Semaphore::new(AT_ONCE));
        known.insert(key, Arc::downgrade(&turns));
        turns
    }
}

/// Lets a request in when it is its session's turn. Whoever has no cookie gets only what is small.
pub(crate) async fn bound(State(turns): State<Turns>, request: Request, next: Next) -> Response {
    let Some(cookies) = request.headers().get(COOKIE) else { return next.run(request).await };
    let Ok(permit) = turns.of(cookies.as_bytes()).try_acquire_owned() else {
        let told = "this browser has too many pages under way";
        return Trouble::of(StatusCode::TOO_MANY_REQUESTS, told).hint("wait for those, and try again").into_response();
    };
    let answer = next.run(request).await;
    let kind = answer.headers().get(CONTENT_TYPE).and_then(|kind| kind.to_str().ok()).unwrap_or_default();
    if kind.starts_with("text/event-stream") {
        return answer;
    }
    answer.map(|body| Body::new(Held { body, _permit: permit }))
}

/// An answer that is under way until it has been taken.
struct Held {
    body: Body,
    _permit: OwnedSemaphorePermit,
}

impl http_body::Body for Held {
    type Data = Bytes;
    type Error = axum::Error;

    fn poll_frame(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, axum::Error>>> {
        Pin::new(&mut self.body).poll_frame(context)
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_session_has_its_own_turns_and_those_with_none_under_way_are_forgotten() {
        let turns = Turns::default();
        let held: Vec<_> = (0..AT_ONCE).map(|_| turns.of(b"a").try_acquire_owned().unwrap()).collect();
        assert!(turns.of(b"a").try_acquire_owned().is_err());
        assert!(turns.of(b"b").try_acquire_owned().is_ok());
        drop(held);
        assert!(turns.of(b"a").try_acquire_owned().is_ok());
        for number in 0..2 * KEPT {
            turns.of(number.to_string().as_bytes());
        }
        assert!(turns.0.lock().unwrap().len() <= KEPT);
    }
}
