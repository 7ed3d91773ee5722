//! Executors' own tokens. An executor makes its token for itself and shows only its hash: an answer that is lost can be asked for again, and
//! no token travels but to prove who calls.

use octavius_core::token::{Token, TokenKind};
use octavius_core::{Digest, ExecutorId, Role, Timestamp};
use octavius_store::record::{ExecutorRecord, TokenRecord};
use octavius_store::{Commit, StoreError, Txn, codec, key};

use super::{NewToken, Tokens};
use crate::audit::Act;
use crate::random;

/// An executor's token as it is now.
#[derive(Debug)]
pub(crate) struct Registered {
    /// The token, where it was made here.
    pub(crate) token: Option<Token>,
    pub(crate) expires_at: Option<Timestamp>,
}

/// Why an executor was given no token.
#[derive(Debug)]
pub(crate) enum RegistrationError {
    /// The store does not answer.
    Store(StoreError),
    /// The token that the call was made with is good no more.
    Gone,
    /// As many executors were registered with it as may be.
    UsedUp,
    /// The executor has a session: whoever has its token is there.
    Present,
    /// The hash is that of a token that somebody else has.
    Taken,
}

impl From<StoreError> for RegistrationError {
    fn from(error: StoreError) -> Self {
        Self::Store(error)
    }
}

impl Tokens {
    fn of_executor(&self, id: &ExecutorId, by: &str) -> TokenRecord {
        let lifetime = Some(self.executor_life);
        let bearer = NewToken { role: Role::Executor, user: id.to_string(), lifetime, ..NewToken::default() };
        Self::prepare(&bearer, by)
    }

    pub(super) async fn record(&self, digest: &Digest) -> Result<Option<TokenRecord>, StoreError> {
        self.store.get(&key::token(digest)).await?.as_ref().map(codec::decode).transpose()
    }

    /// Registers an executor: gives it the token of this hash, or a new one where it has made none, and takes an earlier one from it. Uses up
    /// one use of the registration token of the hash `with`, in the same transaction.
    pub(crate) async fn register(
        &self,
        id: &ExecutorId,
        own: Option<Digest>,
        with: &Digest,
        act: &Act,
    ) -> Result<Registered, RegistrationError> {
        let record_key = key::executor(id);
        loop {
            let known = self.store.get(&record_key).await?;
            let before: Option<ExecutorRecord> = known.as_ref().map(codec::decode).transpose()?;
            if let Some(own) = own.filter(|own| before.as_ref().is_some_and(|before| before.token == *own))
                && let Some(record) = self.record(&own).await?
            {
                return Ok(Registered { token: None, expires_at: record.expires_at }); // said once more
            }
            if self.store.get(&key::presence(id)).await?.is_some() {
                return Err(RegistrationError::Present);
            }
            // Nobody hits upon another's hash by accident.
            if let Some(own) = own
                && self.record(&own).await?.is_some()
            {
                return Err(RegistrationError::Taken);
            }
            let registration = self.store.get(&key::token(with)).await?.ok_or(RegistrationError::Gone)?;
            let mut right: TokenRecord = codec::decode(&registration)?;
            let token = own.is_none().then(|| Token::from_random(TokenKind::Executor, &random::bytes()));
            let digest = own.or(token.as_ref().map(Token::digest)).ok_or(RegistrationError::Gone)?;
            let made = self.of_executor(id, act.user());
            let mut txn = Txn::new().unchanged(&registration);
            if let Some(uses) = right.uses {
                right.uses = Some(uses.checked_sub(1).ok_or(RegistrationError::UsedUp)?);
                txn = txn.put(registration.key.clone(), codec::encode(&right));
            }
            act.note("token", &made.id);
            if before.is_some() {
                act.note("anew", true); // what had its token before is out
            }
            let record = ExecutorRecord {
                id: id.clone(),
                registered_at: Timestamp::now(),
                token: digest,
                next_token: None,
                session: before.as_ref().and_then(|before| before.session.clone()),
                draining: before.as_ref().and_then(|before| before.draining.clone()),
            };
            txn = txn
                .when(record_key.clone(), known.as_ref().map_or(0, |entry| entry.modified))
                .put(record_key.clone(), codec::encode(&record))
                .absent(key::token(&digest))
                .put(key::token(&digest), codec::encode(&made));
            let old: Vec<Digest> = before.iter().flat_map(|before| [Some(before.token), before.next_token]).flatten().collect();
            txn = old.iter().filter(|old| **old != digest).fold(txn, |txn, old| txn.delete(key::token(old)));
            match self.store.commit(act.done(txn)).await? {
                Commit::Done(_) => {
                    old.iter().for_each(|old| self.forget(old));
                    return Ok(Registered { token, expires_at: made.expires_at });
                }
                Commit::Conflict(_) => {}
            }
        }
    }

    /// Gives an executor, which calls with its token of the id `token_id`, another one. Both are good until a session begins with the new one.
    pub(crate) async fn rotate(
        &self,
        id: &ExecutorId,
        token_id: &str,
        new: Digest,
        act: &Act,
    ) -> Result<Registered, RegistrationError> {
        let record_key = key::executor(id);
        loop {
            let entry = self.store.get(&record_key).await?.ok_or(RegistrationError::Gone)?;
            let before: ExecutorRecord = codec::decode(&entry)?;
            let current = self.record(&before.token).await?;
            if current.is_none_or(|current| current.id != token_id) {
                return Err(RegistrationError::Gone);
            }
            if before.next_token == Some(new)
                && let Some(record) = self.record(&new).await?
            {
                return Ok(Registered { token: None, expires_at: record.expires_at });
            }
            if self.record(&new).await?.is_some() {
                return Err(RegistrationError::Taken);
            }
            let made = self.of_executor(id, id.as_str());
            act.note("token", &made.id);
            let record = ExecutorRecord { next_token: Some(new), ..before.clone() };
            let mut txn = Txn::new()
                .unchanged(&entry)
                .put(record_key.clone(), codec::encode(&record))
                .absent(key::token(&new))
                .put(key::token(&new), codec::encode(&made));
            if let Some(old) = before.next_token.filter(|old| *old != new) {
                txn = txn.delete(key::token(&old)); // of an earlier try, whose answer was lost
            }
            match self.store.commit(act.done(txn)).await? {
                Commit::Done(_) => return Ok(Registered { token: None, expires_at: made.expires_at }),
                Commit::Conflict(_) => {}
            }
        }
    }

    /// A session begins with the token of the id `token_id`: the record with that as the executor's one and only. None where it is not its own.
    pub(crate) async fn settle(
        &self,
        id: &ExecutorId,
        token_id: &str,
    ) -> Result<Option<(ExecutorRecord, TokenRecord)>, StoreError> {
        let record_key = key::executor(id);
        loop {
            let Some(entry) = self.store.get(&record_key).await? else { return Ok(None) };
            let record: ExecutorRecord = codec::decode(&entry)?;
            // The token of this call may be one that a newer registration has replaced, and that is trusted for a moment still.
            if let Some(token) = self.record(&record.token).await?.filter(|token| token.id == token_id) {
                return Ok(Some((record, token)));
            }
            let Some(next) = record.next_token else { return Ok(None) };
            let Some(token) = self.record(&next).await?.filter(|token| token.id == token_id) else { return Ok(None) };
            let settled = ExecutorRecord { token: next, next_token: None, ..record.clone() };
            let txn =
                Txn::new().unchanged(&entry).put(record_key.clone(), codec::encode(&settled)).delete(key::token(&record.token));
            if let Commit::Done(_) = self.store.commit(txn).await? {
                self.forget(&record.token);
                tracing::info!(executor = %id, "its token was replaced");
                return Ok(Some((settled, token)));
            }
        }
    }
}
