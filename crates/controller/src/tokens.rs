//! Tokens: made, looked up, revoked. The store knows only their SHA-256.

use std::collections::{HashMap, HashSet};
use std::path::Path;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use octavius_core::token::{Token, TokenKind};
use octavius_core::{Digest, ExecutionId, ExecutorId, Principal, Role, Timestamp};
use octavius_store::record::{ExecutorRecord, TokenRecord};
use octavius_store::{Commit, Entry, Event, Key, Revision, Store, StoreError, Txn, codec, key};

use crate::mirror::{Listener, Mirrors};
use crate::{mirror, random};

/// For how long a looked-up token is trusted without asking the store again; a revocation takes effect on every controller within it.
const TRUSTED_FOR: Duration = Duration::from_secs(2);

/// Looked-up tokens kept in memory.
const KEPT: usize = 10_000;

/// How long a person's token is good where nothing is said.
pub(crate) const USER_LIFETIME: Duration = Duration::from_secs(90 * 24 * 3600);

/// How long a registration token is good where nothing is said.
pub(crate) const REGISTRATION_LIFETIME: Duration = Duration::from_secs(24 * 3600);

/// Tokens.
#[derive(Debug)]
pub(crate) struct Tokens {
    store: Arc<dyn Store>,
    known: Mutex<HashMap<Digest, (Instant, TokenRecord)>>,
    /// Tokens that there are, as the watch shows it.
    shown: Mutex<HashSet<Digest>>,
}

/// Feeds the tokens with those that there are: everything under `token/`.
struct TokensListener(Arc<Tokens>);

fn digest_of(key: &Key) -> Option<Digest> {
    key.as_str().rsplit('/').next()?.parse().ok()
}

impl Listener for TokensListener {
    fn reset(&mut self, entries: Vec<Entry>, _: Revision) {
        *self.0.shown() = entries.iter().filter_map(|entry| digest_of(&entry.key)).collect();
    }

    fn change(&mut self, event: Event, _: Revision) {
        let Some(digest) = digest_of(event.key()) else { return };
        match event {
            Event::Put(_) => drop(self.0.shown().insert(digest)),
            Event::Delete(_) => {
                self.0.shown().remove(&digest);
                self.0.known().remove(&digest);
            }
        }
    }
}

/// Keeps sight of the tokens that there are until the shutdown.
pub(crate) async fn follow(tokens: Arc<Tokens>, mirrors: Mirrors) {
    mirrors.run(key::tokens(), TokensListener(tokens)).await;
}

/// A token that was just made.
pub(crate) struct Made {
    pub(crate) token: Token,
    pub(crate) record: TokenRecord,
}

/// Why the first admin's token could not be written.
#[derive(Debug, thiserror::Error)]
pub enum BootstrapError {
    /// The store does not answer.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// The file cannot be read or written.
    #[error("cannot use {path} for the first admin's token")]
    File {
        /// The file.
        path: std::path::PathBuf,
        /// Why.
        source: std::io::Error,
    },
    /// The file holds something that is not a user's token.
    #[error("{path} does not hold a token that starts with octu_")]
    NotAToken {
        /// The file.
        path: std::path::PathBuf,
    },
}

impl Tokens {
    pub(crate) fn new(store: Arc<dyn Store>) -> Self {
        Self { store, known: Mutex::default(), shown: Mutex::default() }
    }

    fn known(&self) -> std::sync::MutexGuard<'_, HashMap<Digest, (Instant, TokenRecord)>> {
        self.known.lock().unwrap_or_else(std::sync::PoisonError::into_inner)
    }

    fn shown(&self) -> std::sync::MutexGuard<'_, HashSet<Digest>> {
        self.shown.lock().unwrap_or_else(std::sync::PoisonError::into_inner)
    }

    /// Whether the watch shows the token of this digest; one that was made or revoked a moment ago may be shown too late.
    pub(crate) fn is_shown(&self, digest: &Digest) -> bool {
        self.shown().contains(digest)
    }

    /// Who bears this token; `None` where it is not valid, for whatever reason.
    pub(crate) async fn principal(&self, text: &str) -> Result<Option<Principal>, StoreError> {
        // The checksum fails before the store is asked.
        let Ok(token) = text.parse::<Token>() else { return Ok(None) };
        let digest = token.digest();
        let Some(record) = self.look_up(digest).await? else { return Ok(None) };
        let fits = match token.kind() {
            TokenKind::User => !matches!(record.role, Role::Executor | Role::Registration),
            TokenKind::Executor => record.role == Role::Executor,
            TokenKind::Registration => record.role == Role::Registration,
        };
        let expired = record.expires_at.is_some_and(|at| at <= Timestamp::now());
        let valid = fits && !expired;
        Ok(valid.then_some(Principal { token_id: record.id, user: record.user, role: record.role, groups: record.groups }))
    }

    async fn look_up(&self, digest: Digest) -> Result<Option<TokenRecord>, StoreError> {
        if let Some((at, record)) = self.known().get(&digest)
            && at.elapsed() < TRUSTED_FOR
        {
            return Ok(Some(record.clone()));
        }
        let Some(entry) = self.store.get(&key::token(&digest)).await? else { return Ok(None) };
        let record: TokenRecord = codec::decode(&entry)?;
        let mut known = self.known();
        if known.len() >= KEPT {
            known.retain(|_, (at, _)| at.elapsed() < TRUSTED_FOR);
        }
        known.insert(digest, (Instant::now(), record.clone()));
        Ok(Some(record))
    }

    fn prepare(kind: TokenKind, role: Role, user: &str, groups: Vec<String>, by: &str, lifetime: Option<Duration>) -> Made {
        let token = Token::from_random(kind, &random::bytes());
        let now = Timestamp::now();
        let record = TokenRecord {
            id: ExecutionId::generate().to_string(),
            role,
            user: user.to_owned(),
            groups,
            created_at: now,
            created_by: by.to_owned(),
            expires_at: lifetime.and_then(|lifetime| now.checked_add(lifetime).ok()),
        };
        Made { token, record }
    }

    /// Makes a token for a person, a CI job, or the registration of an executor.
    pub(crate) async fn create(
        &self,
        role: Role,
        user: &str,
        groups: Vec<String>,
        by: &str,
        lifetime: Duration,
    ) -> Result<Made, StoreError> {
        let kind = if role == Role::Registration { TokenKind::Registration } else { TokenKind::User };
        let made = Self::prepare(kind, role, user, groups, by, Some(lifetime));
        let digest = made.token.digest();
        self.store.commit(Txn::new().absent(key::token(&digest)).put(key::token(&digest), codec::encode(&made.record))).await?;
        Ok(made)
    }

    /// Registers an executor: gives it a token of its own and takes an earlier one from it.
    pub(crate) async fn register(&self, id: &ExecutorId, by: &str) -> Result<Token, StoreError> {
        let record_key = key::executor(id);
        loop {
            let known = self.store.get(&record_key).await?;
            let before: Option<ExecutorRecord> = known.as_ref().map(codec::decode).transpose()?;
            let made = Self::prepare(TokenKind::Executor, Role::Executor, id.as_str(), Vec::new(), by, None);
            let digest = made.token.digest();
            let record = ExecutorRecord {
                id: id.clone(),
                registered_at: Timestamp::now(),
                token: digest,
                session: before.as_ref().and_then(|before| before.session.clone()),
            };
            let mut txn = Txn::new()
                .when(record_key.clone(), known.as_ref().map_or(0, |entry| entry.modified))
                .put(record_key.clone(), codec::encode(&record))
                .put(key::token(&digest), codec::encode(&made.record));
            if let Some(before) = &before {
                txn = txn.delete(key::token(&before.token));
            }
            if let Commit::Done(_) = self.store.commit(txn).await? {
                if let Some(before) = before {
                    self.known().remove(&before.token);
                }
                return Ok(made.token);
            }
        }
    }

    /// All tokens' records, oldest first.
    pub(crate) async fn list(&self) -> Result<Vec<TokenRecord>, StoreError> {
        let mut records = self.entries().await?.iter().map(codec::decode).collect::<Result<Vec<TokenRecord>, _>>()?;
        records.sort_by(|a, b| a.id.cmp(&b.id));
        Ok(records)
    }

    async fn entries(&self) -> Result<Vec<Entry>, StoreError> {
        Ok(mirror::list(&*self.store, &key::tokens()).await?.0)
    }

    /// Revokes the token of this id; false where there is none.
    pub(crate) async fn revoke(&self, id: &str) -> Result<bool, StoreError> {
        for entry in self.entries().await? {
            let record: TokenRecord = codec::decode(&entry)?;
            if record.id == id {
                self.store.commit(Txn::new().delete(entry.key)).await?;
                self.known().retain(|_, (_, known)| known.id != id);
                return Ok(true);
            }
        }
        Ok(false)
    }

    /// When the caller's own token ends.
    pub(crate) async fn expiry(&self, id: &str) -> Result<Option<Timestamp>, StoreError> {
        Ok(self.list().await?.into_iter().find(|record| record.id == id).and_then(|record| record.expires_at))
    }

    /// Sees to it that there is an admin: where the store knows none, the token in `file` becomes one's; where there is no such file, it is
    /// made, readable by its owner alone.
    pub(crate) async fn bootstrap(&self, file: &Path) -> Result<(), BootstrapError> {
        let error = |source| BootstrapError::File { path: file.to_owned(), source };
        let now = Timestamp::now();
        let is_admin = |record: &TokenRecord| record.role == Role::Admin && record.expires_at.is_none_or(|at| at > now);
        if self.list().await?.iter().any(is_admin) {
            return Ok(());
        }
        let mut made = Self::prepare(TokenKind::User, Role::Admin, "admin", Vec::new(), "bootstrap", None);
        match std::fs::read_to_string(file) {
            Ok(text) => {
                let token = text.trim().parse::<Token>().ok().filter(|token| token.kind() == TokenKind::User);
                made.token = token.ok_or_else(|| BootstrapError::NotAToken { path: file.to_owned() })?;
            }
            Err(missing) if missing.kind() == std::io::ErrorKind::NotFound => {
                write_private(file, made.token.reveal()).map_err(error)?;
            }
            Err(other) => return Err(error(other)),
        }
        let at = key::token(&made.token.digest());
        self.store.commit(Txn::new().put(at, codec::encode(&made.record))).await?;
        Ok(())
    }
}

/// Writes a file that only its owner can read.
fn write_private(path: &Path, text: &str) -> std::io::Result<()> {
    use std::io::Write as _;
    use std::os::unix::fs::OpenOptionsExt as _;
    if let Some(parent) = path.parent() {
        std::fs::create_dir_all(parent)?;
    }
    let mut file = std::fs::OpenOptions::new().write(true).create_new(true).mode(0o600).open(path)?;
    writeln!(file, "{text}")?;
    file.sync_all()
}
