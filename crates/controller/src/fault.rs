//! The one place where what went wrong inside becomes what a caller is told. Internal context is logged, never sent.

use octavius_core::execution::Refusal;
use octavius_proto::{Fault, reason};
use octavius_store::StoreError;
use tonic::{Code, Status};

use crate::engine::EngineError;

/// What a caller is told of a store's error.
#[expect(clippy::needless_pass_by_value, reason = "`map_err` hands it over")]
pub(crate) fn from_store(error: StoreError) -> Fault {
    match error {
        StoreError::Unavailable(_) | StoreError::Unknown(_) => {
            tracing::warn!(%error, "store");
            Fault::new(Code::Unavailable, reason::STORE_UNAVAILABLE, "the controller's store does not answer")
        }
        StoreError::Full(_) => {
            tracing::error!(%error, "store");
            Fault::new(
                Code::ResourceExhausted,
                reason::STORE_FULL,
                "the controller's store is full; outcomes still land, new work does not",
            )
        }
        StoreError::Compacted { .. } | StoreError::PresenceLost => {
            tracing::warn!(%error, "store");
            Fault::new(
                Code::Unavailable,
                reason::STORE_UNAVAILABLE,
                "the controller lost sight of its store for a moment, try again",
            )
        }
        StoreError::Refused { .. } | StoreError::Invalid(_) | StoreError::Unreadable(_) => {
            tracing::error!(%error, "store");
            internal()
        }
    }
}

/// What a caller is told of a fault of ours.
pub(crate) fn internal() -> Fault {
    Fault::new(Code::Internal, reason::INTERNAL, "a fault inside the controller; its log says more")
}

/// What a caller is told of a step that an execution did not take.
pub(crate) fn from_engine(error: EngineError) -> Fault {
    match error {
        EngineError::Store(error) => from_store(error),
        EngineError::NotFound(id) => {
            Fault::new(Code::NotFound, reason::EXECUTION_NOT_FOUND, format!("no execution {id}")).with("id", id)
        }
        EngineError::Sealed(id, error) => error.told(id),
        EngineError::Refused(refusal @ Refusal::NotAnOutcome(_)) => invalid(refusal.to_string()),
        EngineError::Refused(refusal) => Fault::new(Code::FailedPrecondition, "REFUSED", refusal.to_string()),
        EngineError::Contended(id) | EngineError::Forestalled(id) => {
            Fault::new(Code::Unavailable, reason::STORE_UNAVAILABLE, format!("execution {id} changes too quickly, try again"))
        }
    }
}

/// What a caller is told whose stream of messages of at most `limit` bytes broke, or cannot be read.
pub(crate) fn broken(what: &str, status: &Status, limit: usize) -> Fault {
    if status.code() == Code::OutOfRange { too_large(limit) } else { invalid(format!("the {what} ended before it was whole")) }
}

/// What a caller is told of a message over the limit.
pub(crate) fn too_large(limit: usize) -> Fault {
    Fault::new(Code::ResourceExhausted, reason::LIMIT, format!("the message is too large: at most {limit} bytes are taken"))
}

/// What a caller is told while the controller stops.
pub(crate) fn stopping() -> Fault {
    Fault::new(Code::Unavailable, reason::STOPPING, "the controller is stopping")
}

/// What a caller is told of a request that makes no sense.
pub(crate) fn invalid(message: impl Into<String>) -> Fault {
    Fault::new(Code::InvalidArgument, reason::INVALID_REQUEST, message)
}

/// What a caller is told of a job that is not there, or not for them.
pub(crate) fn no_job(name: &str, nearest: Option<&str>) -> Fault {
    let mut fault = Fault::new(Code::NotFound, reason::JOB_NOT_FOUND, format!("no job \"{}\"", name.escape_debug()));
    if let Some(nearest) = nearest {
        fault = fault.with("nearest", nearest);
    }
    fault
}

/// What a caller is told of a catalogue that was never applied.
pub(crate) fn no_catalog(name: &octavius_core::CatalogName) -> Fault {
    Fault::new(Code::NotFound, reason::NOT_FOUND, format!("no catalogue {name}"))
}

/// What a caller is told of a revision that is not there, or not kept any more.
pub(crate) fn no_revision(catalog: &octavius_core::CatalogName, number: u64) -> Fault {
    Fault::new(Code::NotFound, reason::NOT_FOUND, format!("catalogue {catalog} has no revision {number}"))
}

/// What a caller is told who may not.
pub(crate) fn not_permitted(message: impl Into<String>) -> Fault {
    Fault::new(Code::PermissionDenied, reason::NOT_PERMITTED, message)
}
