//! By what an executor is known: its registration, and its tokens.

use std::time::Duration;

use octavius_core::{Digest, ExecutorId, Timestamp};
use octavius_proto::{Fault, reason, to_timestamp, v1};
use octavius_store::key;
use octavius_store::record::{ExecutorRecord, TokenRecord};
use tonic::{Code, Request};

use super::{Executors, caller};
use crate::tokens::{Lifetime, RegistrationError};
use crate::{audit, auth, fault};

/// What of a token's life passes before it is replaced.
const ROTATES_AT: f64 = 0.75;

/// After how long from now an executor is to replace this token; none where it does not end.
pub(super) fn rotate_after(token: &TokenRecord) -> Option<Duration> {
    let life = Duration::try_from(token.expires_at?.duration_since(token.created_at)).unwrap_or_default();
    let age = Duration::try_from(Timestamp::now().duration_since(token.created_at)).unwrap_or_default();
    Some(life.mul_f64(ROTATES_AT).saturating_sub(age))
}

/// The hash of a token that an executor has made for itself, if it has.
fn own(digest: &[u8]) -> Result<Option<Digest>, Fault> {
    if digest.is_empty() {
        return Ok(None);
    }
    Ok(Some(octavius_proto::digest("token_digest", digest)?))
}

fn refused(id: &ExecutorId, error: RegistrationError) -> Fault {
    match error {
        RegistrationError::Store(error) => fault::from_store(error),
        RegistrationError::Gone => auth::unauthenticated(),
        RegistrationError::UsedUp => fault::not_permitted(
            "as many executors were registered with this token as may be: an admin makes another one, `octavius tokens create \
             --role registration`, with --uses N for several executors",
        ),
        RegistrationError::Present => Fault::new(
            Code::AlreadyExists,
            reason::SESSION_EXISTS,
            format!("executor {id} is registered, and there: stop it first, or give this one another id"),
        ),
        RegistrationError::Taken => fault::invalid("somebody else has the token of this hash"),
    }
}

impl Executors {
    pub(super) async fn register(
        &self,
        request: Request<v1::RegisterExecutorRequest>,
    ) -> Result<v1::RegisterExecutorResponse, Fault> {
        let with = request.extensions().get::<Lifetime>().and_then(|lifetime| lifetime.digest);
        let (act, request) = audit::begin(request)?;
        let id = octavius_proto::executor_id("id", &request.id)?;
        let with = with.ok_or_else(auth::unauthenticated)?;
        let registered = self.tokens.register(&id, own(&request.token_digest)?, &with, &act).await;
        let registered = registered.map_err(|error| refused(&id, error))?;
        tracing::info!(executor = %id, by = act.user(), "registered");
        Ok(v1::RegisterExecutorResponse {
            token: registered.token.map(|token| token.reveal().to_owned()).unwrap_or_default(),
            controller_id: self.controller_id.clone(),
            expires_at: registered.expires_at.map(to_timestamp),
        })
    }

    pub(super) async fn rotate(&self, request: Request<v1::RotateTokenRequest>) -> Result<v1::RotateTokenResponse, Fault> {
        let (act, request) = audit::begin(request)?;
        let principal = act.principal()?;
        let id = caller(principal)?;
        act.on("executor", &id);
        let new = octavius_proto::digest("token_digest", &request.token_digest)?;
        let registered = self.tokens.rotate(&id, &principal.token_id, new, &act).await;
        let registered = registered.map_err(|error| refused(&id, error))?;
        Ok(v1::RotateTokenResponse { expires_at: registered.expires_at.map(to_timestamp) })
    }

    /// The record of an executor whose session begins with the token of this id, and that token.
    pub(super) async fn credential(&self, executor: &ExecutorId, token_id: &str) -> Result<(ExecutorRecord, TokenRecord), Fault> {
        let Some(entry) = self.store.get(&key::executor(executor)).await.map_err(fault::from_store)? else {
            return Err(fault::not_permitted(format!("executor {executor} is not registered")));
        };
        self.fleet.note_record(&entry);
        let settled = self.tokens.settle(executor, token_id).await.map_err(fault::from_store)?;
        settled.ok_or_else(auth::unauthenticated)
    }
}
