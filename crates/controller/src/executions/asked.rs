//! A call to execute: what is asked for, and whether it was asked for before.

use std::time::Duration;

use bytes::Bytes;
use octavius_core::argument::Arguments;
use octavius_core::{ExecutionId, Timestamp, TraceContext};
use octavius_proto::v1;
use octavius_proto::{Fault, InvalidField, reason};
use octavius_store::record::OnceRecord;
use octavius_store::{Entry, Key, codec, key};
use tonic::Code;

use super::{CLOCKS_DIFFER, ONCE_KEPT, ONCE_KEY_BYTES, earliest_id};
use crate::audit::Act;
use crate::engine::Engine;
use crate::fault;
use crate::reruns::Again;

/// A call to execute, as far as it can be understood without the catalogue.
pub(crate) struct Asked {
    pub(super) id: ExecutionId,
    pub(super) act: Act,
    pub(super) job: String,
    pub(super) arguments: Arguments,
    pub(super) timeout: Option<Duration>,
    /// Where the caller's own idempotency key is kept.
    pub(super) once: Option<Key>,
    /// The execution that is to be repeated, whose arguments these are.
    pub(super) again: Option<Again>,
    /// The trace that it is part of.
    pub(super) trace: Option<Box<TraceContext>>,
}

impl Asked {
    pub(crate) fn new(act: Act, request: v1::ExecuteRequest, again: Option<Again>, now: Timestamp) -> Result<Self, Fault> {
        let id = octavius_proto::execution_id("id", &request.id)?;
        if id < earliest_id(now - CLOCKS_DIFFER) || id > earliest_id(now + CLOCKS_DIFFER) {
            let problem = format!("{id} was not made within 2h of now, {now}: it is not a UUID version 7, or a clock is wrong");
            return Err(InvalidField::new("id", problem).into());
        }
        let timeout = match request.timeout {
            Some(timeout) => Some(Duration::try_from(timeout).map_err(|error| InvalidField::new("timeout", error))?),
            None => None,
        };
        if timeout.is_some_and(|timeout| timeout.is_zero() || timeout > octavius_core::HumanDuration::MAX) {
            return Err(InvalidField::new("timeout", "more than 0s and at most 366d").into());
        }
        if request.idempotency_key.len() > ONCE_KEY_BYTES {
            return Err(InvalidField::new("idempotency_key", format!("at most {ONCE_KEY_BYTES} bytes")).into());
        }
        let once = (!request.idempotency_key.is_empty()).then(|| key::once(act.user(), &request.idempotency_key));
        let arguments = request.arguments.into_iter().collect();
        Ok(Self { id, act, job: request.job, arguments, timeout, once, again, trace: None })
    }

    /// The same as part of a trace, if there is one.
    pub(crate) fn in_trace(mut self, trace: Option<Box<TraceContext>>) -> Self {
        self.trace = trace;
        self
    }

    /// What tells one request from another under the same idempotency key: its digest is kept.
    pub(super) fn essence(&self) -> Bytes {
        match &self.again {
            Some(again) => codec::encode(&("rerun", again.source, self.timeout)),
            None => codec::encode(&(self.job.to_ascii_lowercase(), &self.arguments, self.timeout)),
        }
    }

    /// What was answered under the same idempotency key, if that was not too long ago.
    pub(super) fn answered(&self, entry: Option<&Entry>, engine: &Engine) -> Result<Option<ExecutionId>, Fault> {
        let Some(known) = used_lately(entry, engine.clock().now())? else { return Ok(None) };
        match engine.sealer().digest_with(known.key, &self.essence()) {
            Ok(same) if same == known.request => Ok(Some(known.id)),
            Ok(_) => {
                let message = format!("the idempotency key was used for another request: execution {}", known.id);
                Err(Fault::new(Code::AlreadyExists, reason::KEY_REUSED, message).with("id", known.id))
            }
            Err(missing) => {
                let message = format!(
                    "the idempotency key was used for execution {}, with encryption key {missing}, which this controller does not have",
                    known.id
                );
                tracing::error!(execution = %known.id, key = %missing, "an encryption key is missing");
                Err(Fault::new(Code::FailedPrecondition, reason::ENCRYPTION_KEY_MISSING, message).with("key", missing))
            }
        }
    }
}

/// What is remembered of an idempotency key, if that is not too long ago.
pub(super) fn used_lately(entry: Option<&Entry>, now: Timestamp) -> Result<Option<OnceRecord>, Fault> {
    let known: Option<OnceRecord> = entry.map(codec::decode).transpose().map_err(fault::from_store)?;
    Ok(known.filter(|known| now.duration_since(known.at).unsigned_abs() < ONCE_KEPT))
}
