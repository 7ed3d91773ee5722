//! The backup RPC: the store's file, piece by piece, at the pace of whoever takes it.

use std::sync::Arc;

use octavius_proto::{Fault, reason, v1};
use octavius_store::backup::{Backup, BackupError};
use octavius_store::{Store, StoreError, Txn};
use tokio::sync::mpsc;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;
use tonic::{Code, Status};

use crate::audit::Act;
use crate::fault;
use crate::streams::{Responses, until_stop};

/// Pieces of a quarter of a MiB that may wait for a slow client, 8 MiB in all; then reading the store waits too. A store keeps what is replaced
/// for minutes only, so a small one is read to its end whatever the client does, and a large one needs a client that keeps up.
const AHEAD: usize = 32;

/// Begins a backup as of now. The stream ends with the file's last byte, or with what went wrong.
pub(crate) async fn begin(
    store: Arc<dyn Store>,
    act: &Act,
    tasks: &TaskTracker,
    shutdown: CancellationToken,
) -> Result<Responses<v1::BackupResponse>, Fault> {
    // It changes nothing, and yet it is in the trail: nobody reads more at once. A full store is backed up all the same.
    match store.commit(act.done(Txn::new())).await {
        Err(error @ StoreError::Full(_)) => tracing::error!(%error, "the backup is not in the audit trail"),
        done => drop(done.map_err(fault::from_store)?),
    }
    let mut backup = Backup::begin(store).await.map_err(told)?;
    let revision = backup.header().revision;
    tracing::info!(revision, by = act.user(), "a backup begins");
    let (voice, ears) = mpsc::channel(AHEAD);
    let stopping = shutdown.clone();
    tasks.spawn(async move {
        let reading = async {
            let mut bytes = 0;
            loop {
                let piece = match backup.next().await {
                    Ok(Some(data)) => {
                        bytes += data.len();
                        Ok(v1::BackupResponse { data })
                    }
                    Ok(None) => return tracing::info!(revision, bytes, "a backup is whole"),
                    Err(error) => Err(Status::from(told(error))),
                };
                let failed = piece.is_err();
                if voice.send(piece).await.is_err() || failed {
                    return tracing::info!(revision, bytes, "a backup ended before it was whole");
                }
            }
        };
        tokio::select! {
            () = reading => {}
            () = stopping.cancelled() => {}
        }
    });
    Ok(until_stop(ears, shutdown))
}

fn told(error: BackupError) -> Fault {
    match error {
        BackupError::Store(error) => fault::from_store(error),
        BackupError::Overtaken { .. } => Fault::new(Code::Aborted, reason::STORE_UNAVAILABLE, error.to_string()),
        error => {
            tracing::error!(%error, "backup");
            fault::internal()
        }
    }
}
