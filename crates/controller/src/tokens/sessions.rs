//! Browsers' sessions. Whoever signs in shows a token once, and the browser keeps another in its place: of a few hours, which may what theirs
//! may and is gone with it. So what a browser holds is not worth much, and can be taken from it without taking anything from its owner.

use std::time::Duration;

use octavius_core::token::{Token, TokenKind};
use octavius_core::{Digest, Principal};
use octavius_proto::{Fault, reason};
use octavius_store::record::{BrowserSessionRecord, TokenRecord};
use octavius_store::{Commit, Entry, StoreError, Txn, codec, key};
use tonic::Code;

use super::{Lifetime, Made, NewToken, Tokens, digest_of, note};
use crate::audit::Act;
use crate::{fault, random};

/// How long a session lasts: a working day. One that was forgotten on somebody else's machine has ended by the next.
const SESSION_LIFETIME: Duration = Duration::from_secs(10 * 3600);

/// Sessions that are open with one token at once, or of one user of an identity provider: in as many browsers. The oldest ends for one more.
const SESSIONS: usize = 20;

impl Tokens {
    /// The record of a session for whoever calls, with a token of this lifetime.
    async fn session_of(&self, with: Lifetime, principal: &Principal) -> Result<TokenRecord, Fault> {
        if let Some(digest) = with.digest
            && self.record(&digest).await.map_err(fault::from_store)?.is_none_or(|record| record.session.is_some())
        {
            return Err(fault::not_permitted("a session is opened with a token, and not from within another session".to_owned()));
        }
        let Principal { user, role, groups, catalogs, .. } = principal.clone();
        let bearer = NewToken { role, user, groups, catalogs, uses: None, lifetime: Some(SESSION_LIFETIME) };
        let mut record = Self::prepare(&bearer, &principal.user);
        // An identity provider's token is good for minutes, and says only that somebody has signed in just now. A CI job's is to be good for no
        // longer than it says.
        if let (false, Some(end)) = (with.signs_in, with.expires_at) {
            record.expires_at = record.expires_at.map(|at| at.min(end));
        }
        record.session = Some(BrowserSessionRecord { of: with.digest });
        Ok(record)
    }

    /// Opens a session for whoever calls, with a token of this lifetime. It ends no later than that token.
    ///
    /// # Errors
    /// Where they call from within a session: what it may is not to outlive it. And those of the store.
    pub(crate) async fn create_session(&self, with: Lifetime, act: &Act) -> Result<Made, Fault> {
        let record = self.session_of(with, act.principal()?).await?;
        let mut open = self.sessions_beside(&record).await.map_err(fault::from_store)?;
        let excess = (open.len() + 1).saturating_sub(SESSIONS);
        let made = Made { token: Token::from_random(TokenKind::Session, &random::bytes()), record };
        note(act, &made.record);
        let digest = made.token.digest();
        let mut txn = Txn::new().absent(key::token(&digest)).put(key::token(&digest), codec::encode(&made.record));
        if let Some(of) = with.digest {
            // revoked in this very moment, it has no session
            let there = self.store.get(&key::token(&of)).await.map_err(fault::from_store)?;
            txn = txn.unchanged(&there.ok_or_else(crate::auth::unauthenticated)?);
        }
        open.truncate(excess);
        for (entry, old) in &open {
            txn = txn.delete(entry.key.clone()).delete(key::token_used(&old.id));
        }
        match self.store.commit(act.done(txn)).await.map_err(fault::from_store)? {
            Commit::Done(_) => {}
            Commit::Conflict(_) => return Err(crate::auth::unauthenticated()),
        }
        for digest in open.iter().filter_map(|(entry, _)| digest_of(&entry.key)) {
            self.forget(&digest);
        }
        Ok(made)
    }

    /// Ends the session that whoever calls calls from.
    ///
    /// # Errors
    /// Where they do not call from within a session, and those of the store.
    pub(crate) async fn end_session(&self, with: Lifetime, act: &Act) -> Result<(), Fault> {
        let outside = || {
            let message = "the call comes with a token that is not a session's; a token is revoked, by an admin";
            Fault::new(Code::FailedPrecondition, reason::NOT_A_SESSION, message.to_owned())
        };
        let digest = with.digest.ok_or_else(outside)?;
        let Some(entry) = self.store.get(&key::token(&digest)).await.map_err(fault::from_store)? else { return Ok(()) };
        let record: TokenRecord = codec::decode(&entry).map_err(fault::from_store)?;
        if record.session.is_none() {
            return Err(outside());
        }
        act.on("token", &record.id);
        let txn = Txn::new().delete(entry.key).delete(key::token_used(&record.id));
        act.commit_removal(&*self.store, txn).await.map_err(fault::from_store)?;
        self.forget(&digest);
        Ok(())
    }

    /// Whether what a token stands on is there still: for a session, the token that it was opened with.
    pub(super) async fn lives_still(&self, record: &TokenRecord) -> Result<bool, StoreError> {
        let Some(of) = record.session.as_ref().and_then(|session| session.of) else { return Ok(true) };
        Ok(self.look_up(of).await?.is_some())
    }

    /// The sessions that were opened with this token: at most as many as one may have.
    pub(super) async fn sessions_opened_with(&self, of: &Digest) -> Result<Vec<(Entry, TokenRecord)>, StoreError> {
        let mut sessions = self.sessions().await?;
        sessions.retain(|(_, record)| record.session.as_ref().is_some_and(|session| session.of == Some(*of)));
        sessions.truncate(2 * SESSIONS); // some may have been opened at the same time
        Ok(sessions)
    }

    /// All sessions, the oldest first.
    async fn sessions(&self) -> Result<Vec<(Entry, TokenRecord)>, StoreError> {
        let mut sessions = Vec::new();
        for entry in self.entries().await? {
            let record: TokenRecord = codec::decode(&entry)?;
            if record.session.is_some() {
                sessions.push((entry, record));
            }
        }
        sessions.sort_by(|(_, a), (_, b)| a.id.cmp(&b.id));
        Ok(sessions)
    }

    /// The sessions that count as one's with this one, the oldest first.
    async fn sessions_beside(&self, new: &TokenRecord) -> Result<Vec<(Entry, TokenRecord)>, StoreError> {
        let mut sessions = self.sessions().await?;
        sessions.retain(|(_, record)| record.user == new.user && record.session == new.session);
        Ok(sessions)
    }
}
