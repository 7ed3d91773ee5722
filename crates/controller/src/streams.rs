//! Streams to clients: fed by a task through a bounded channel, and over at once when the controller stops.

use std::pin::Pin;

use futures::Stream;
use tokio::sync::mpsc;
use tokio_util::sync::CancellationToken;
use tonic::Status;

use crate::fault;

/// What a server's stream is to tonic.
pub(crate) type Responses<T> = Pin<Box<dyn Stream<Item = Result<T, Status>> + Send>>;

/// What comes through `ears`, and UNAVAILABLE as its last word when the controller stops, so that a client knows that it has not heard
/// everything. The feeding task only has to end then.
pub(crate) fn until_stop<T: Send + 'static>(
    ears: mpsc::Receiver<Result<T, Status>>,
    shutdown: CancellationToken,
) -> Responses<T> {
    Box::pin(futures::stream::unfold(Some((ears, shutdown)), |state| async move {
        let (mut ears, shutdown) = state?;
        let heard = tokio::select! {
            biased;
            heard = ears.recv() => heard,
            () = shutdown.cancelled() => None,
        };
        match heard {
            Some(heard) => Some((heard, Some((ears, shutdown)))),
            None if shutdown.is_cancelled() => Some((Err(fault::stopping().into()), None)),
            None => None,
        }
    }))
}
