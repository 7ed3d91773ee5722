//! What a call holds while it is under way, and the body of its message, which is read as there is room for it.

use std::pin::Pin;
use std::sync::{Arc, OnceLock};
use std::task::{Context, Poll, ready};
use std::time::Duration;

use bytes::Bytes;
use futures::future::BoxFuture;
use http_body::{Body as _, Frame, SizeHint};
use octavius_proto::{Fault, reason};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio::time::Sleep;
use tonic::body::Body;
use tonic::{Code, Status};

/// For how long a unary message is waited for from its first byte to its last; 4 MiB take 60 s at 70 KB/s.
pub(super) const RECEIVED_WITHIN: Duration = Duration::from_secs(60);

/// Messages of up to this, in bytes, are not counted: there are at most as many as calls.
const SMALL: usize = 32 * 1024;

/// Before each message stand a byte that says whether it is compressed, and its length.
const PREFIX: usize = 5;

/// What one call holds.
#[derive(Debug)]
pub(crate) struct Holding(Arc<Held>);

#[derive(Debug)]
struct Held {
    _call: OwnedSemaphorePermit,
    _apply: Option<OwnedSemaphorePermit>,
    /// Where room for its message is found, if that is limited.
    messages: Option<Arc<Semaphore>>,
    message: OnceLock<OwnedSemaphorePermit>,
}

impl Holding {
    pub(crate) fn new(call: OwnedSemaphorePermit, apply: Option<OwnedSemaphorePermit>, messages: Option<Arc<Semaphore>>) -> Self {
        Self(Arc::new(Held { _call: call, _apply: apply, messages, message: OnceLock::new() }))
    }

    /// The body of a call, read as there is room for its message and within its time.
    pub(crate) fn receive(&self, body: Body) -> Body {
        match &self.0.messages {
            Some(_) if !body.is_end_stream() => Body::new(Received {
                body,
                held: Arc::clone(&self.0),
                prefix: Prefix::default(),
                room: None,
                read: None,
                until: None,
            }),
            _ => body,
        }
    }
}

/// The bytes before a message, as they come.
#[derive(Debug, Default)]
struct Prefix {
    bytes: [u8; PREFIX],
    have: usize,
}

impl Prefix {
    /// Takes in what comes; the message's length, once, when it is known.
    fn take(&mut self, data: &[u8]) -> Option<usize> {
        if self.have == PREFIX {
            return None;
        }
        let more = data.len().min(PREFIX - self.have);
        self.bytes[self.have..self.have + more].copy_from_slice(&data[..more]);
        self.have += more;
        let [_, a, b, c, d] = self.bytes;
        (self.have == PREFIX).then(|| usize::try_from(u32::from_be_bytes([a, b, c, d])).unwrap_or(usize::MAX))
    }
}

/// The body of a unary call.
struct Received {
    body: Body,
    held: Arc<Held>,
    prefix: Prefix,
    /// While room for its message is waited for: that, and what was read meanwhile.
    room: Option<BoxFuture<'static, OwnedSemaphorePermit>>,
    read: Option<Frame<Bytes>>,
    /// From when the first of it was waited for.
    until: Option<Pin<Box<Sleep>>>,
}

impl Received {
    fn poll(&mut self, context: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, Status>>> {
        loop {
            if let Some(room) = &mut self.room {
                let permit = ready!(room.as_mut().poll(context));
                let _ = self.held.message.set(permit); // it is set once: a prefix is whole once
                self.room = None;
            }
            if let Some(read) = self.read.take() {
                return Poll::Ready(Some(Ok(read)));
            }
            let frame = match ready!(Pin::new(&mut self.body).poll_frame(context)) {
                Some(Ok(frame)) => frame,
                end => return Poll::Ready(end),
            };
            let length = frame.data_ref().and_then(|data| self.prefix.take(data));
            if let (Some(length), Some(messages)) = (length.filter(|length| *length > SMALL), &self.held.messages) {
                // A message over the limit is refused as soon as its length is read, and takes no room before.
                let kib = u32::try_from(length.div_ceil(1024).min(octavius_proto::MAX_APPEND_BYTES / 1024)).unwrap_or(u32::MAX);
                let messages = Arc::clone(messages);
                self.room = Some(Box::pin(async move {
                    match messages.acquire_many_owned(kib).await {
                        Ok(permit) => permit,
                        Err(_) => std::future::pending().await, // nobody closes it
                    }
                }));
            }
            self.read = Some(frame);
        }
    }
}

impl http_body::Body for Received {
    type Data = Bytes;
    type Error = Status;

    fn poll_frame(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, Status>>> {
        let this = self.get_mut();
        if let Poll::Ready(frame) = this.poll(context) {
            return Poll::Ready(frame);
        }
        let until = this.until.get_or_insert_with(|| Box::pin(tokio::time::sleep(RECEIVED_WITHIN)));
        ready!(until.as_mut().poll(context));
        let message = format!("the message did not arrive within {} s; nothing was done", RECEIVED_WITHIN.as_secs());
        Poll::Ready(Some(Err(Fault::new(Code::DeadlineExceeded, reason::SLOW_MESSAGE, message).into())))
    }

    fn is_end_stream(&self) -> bool {
        self.read.is_none() && self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        if self.read.is_none() { self.body.size_hint() } else { SizeHint::default() }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use futures::stream::{self, StreamExt as _};
    use std::future::poll_fn;
    use tokio::time::Instant;

    fn framed(message: &[u8]) -> Vec<u8> {
        [&[0], &u32::try_from(message.len()).unwrap().to_be_bytes()[..], message].concat()
    }

    /// A body that comes in pieces of this size, and with `more` does not end.
    fn pieces(bytes: &[u8], size: usize, more: bool) -> Body {
        let pieces: Vec<_> = bytes.chunks(size).map(|piece| Ok::<_, Status>(Bytes::copy_from_slice(piece))).collect();
        let body = stream::iter(pieces);
        Body::new(if more {
            axum::body::Body::from_stream(body.chain(stream::pending()))
        } else {
            axum::body::Body::from_stream(body)
        })
    }

    async fn read(body: Body) -> Result<Vec<u8>, Status> {
        let (mut body, mut read) = (body, Vec::new());
        while let Some(frame) = poll_fn(|context| Pin::new(&mut body).poll_frame(context)).await {
            read.extend_from_slice(&frame?.into_data().unwrap());
        }
        Ok(read)
    }

    fn holding(messages: &Arc<Semaphore>) -> Holding {
        let calls = Arc::new(Semaphore::new(1));
        Holding::new(calls.try_acquire_owned().unwrap(), None, Some(Arc::clone(messages)))
    }

    #[tokio::test]
    async fn a_message_comes_through_as_it_is_and_its_room_is_kept_until_the_call_is_over() {
        let room = Arc::new(Semaphore::new(1000));
        for (size, kib) in [(0, 0), (10, 0), (SMALL, 0), (SMALL + 1, 33), (500_000, 489)] {
            let message = framed(&vec![7; size]);
            for piece in [1, 4, 5, 6, 1000, 1_000_000] {
                if size / piece > 10_000 {
                    continue;
                }
                let holding = holding(&room);
                assert!(read(holding.receive(pieces(&message, piece, false))).await.unwrap() == message, "{size} by {piece}");
                assert_eq!(room.available_permits(), 1000 - kib, "{size} by {piece}");
                drop(holding);
                assert_eq!(room.available_permits(), 1000);
            }
        }
    }

    #[tokio::test(start_paused = true)]
    async fn a_message_that_finds_no_room_waits_for_it_and_one_that_does_not_end_is_given_up() {
        let room = Arc::new(Semaphore::new(100));
        let (first, second) = (holding(&room), holding(&room));
        let message = framed(&[7; 90 * 1024]);
        let slow = first.receive(pieces(&message[..50_000], 10_000, true));
        let slow = tokio::spawn(read(slow));
        tokio::time::sleep(Duration::from_secs(1)).await;
        let begun = Instant::now();
        let waits = tokio::spawn(read(second.receive(pieces(&message, 10_000, false))));
        let refused = slow.await.unwrap().unwrap_err();
        assert_eq!(begun.elapsed(), RECEIVED_WITHIN - Duration::from_secs(1));
        assert_eq!(Fault::from_status(&refused).reason, reason::SLOW_MESSAGE);
        drop(first);
        assert!(waits.await.unwrap().unwrap() == message);
    }
}
