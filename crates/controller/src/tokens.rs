//! Tokens: made, looked up, revoked. The store knows only their SHA-256, and a token is found by that: no comparison takes longer the more of
//! a guess is right, for what is compared are hashes that whoever guesses cannot choose.

mod registration;
mod sessions;
mod used;

use std::collections::{HashMap, HashSet, VecDeque};
use std::fs::File;
use std::io::Read as _;
use std::net::IpAddr;
use std::path::Path;
use std::pin::pin;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, Weak};
use std::time::{Duration, Instant};

use octavius_core::token::{Token, TokenKind};
use octavius_core::{CatalogName, Digest, ExecutionId, Principal, Role, Timestamp};
use octavius_store::record::TokenRecord;
use octavius_store::{Commit, Entry, Event, Key, Revision, Store, StoreError, Txn, codec, key};
use tokio::sync::{Notify, oneshot};

use crate::audit::{Act, What};
use crate::limits::Guesses;
use crate::mirror::{Listener, Mirrors};
use crate::private;
use crate::{mirror, random};
pub(crate) use registration::RegistrationError;
use used::Used;

/// For how long a looked-up token is trusted without asking the store again; a revocation takes effect on every controller within it.
const TRUSTED_FOR: Duration = Duration::from_secs(2);

/// Looked-up tokens kept in memory.
const KEPT: usize = 10_000;

/// How long a token that nobody knows here is waited for where its address has guessed too often: a watch is seldom further behind.
const APPEARS_WITHIN: Duration = Duration::from_secs(1);

/// Longest sleep until a token's end is looked for again.
const LONGEST_SLEEP: Duration = Duration::from_secs(30);

/// Pause until a store that did not say whether a token is still there is asked again.
const DOUBT_AGAIN: Duration = Duration::from_millis(500);

/// Calls that wait for that at once. One more takes the place of the one that has waited longest: so each waits for a while, however many
/// guess.
const WAITING: usize = 1024;

/// How long a person's token is good where nothing is said.
pub(crate) const USER_LIFETIME: Duration = Duration::from_secs(90 * 24 * 3600);

/// How long a registration token is good where nothing is said.
pub(crate) const REGISTRATION_LIFETIME: Duration = Duration::from_secs(24 * 3600);

/// Tokens.
#[derive(Debug)]
pub(crate) struct Tokens {
    store: Arc<dyn Store>,
    /// How long an executor's token is good.
    executor_life: Duration,
    known: Mutex<HashMap<Digest, (Instant, TokenRecord)>>,
    /// Tokens that there are, as the watch shows it.
    shown: Mutex<HashSet<Digest>>,
    /// Whether the watch has shown them once: before that, nothing can be said of what it does not show.
    is_mirrored: AtomicBool,
    /// Told of each change of them.
    changed: Notify,
    guesses: Guesses,
    /// Calls that wait until the watch shows their token, the oldest first; those that wait no more among them.
    waiting: Mutex<VecDeque<oneshot::Sender<()>>>,
    /// Those whose streams are open; told when it may be gone.
    streamed: Mutex<HashMap<Digest, Weak<Notify>>>,
    used: Used,
}

/// Feeds the tokens with those that there are: everything under `token/`.
struct TokensListener(Arc<Tokens>);

fn digest_of(key: &Key) -> Option<Digest> {
    key.as_str().rsplit('/').next()?.parse().ok()
}

impl Listener for TokensListener {
    fn reset(&mut self, entries: Vec<Entry>, _: Revision) {
        *self.0.shown() = entries.iter().filter_map(|entry| digest_of(&entry.key)).collect();
        self.0.doubt(|digest| !self.0.is_shown(digest));
        self.0.is_mirrored.store(true, Ordering::SeqCst);
        self.0.changed.notify_waiters();
    }

    fn change(&mut self, event: Event, _: Revision) {
        let Some(digest) = digest_of(event.key()) else { return };
        match event {
            Event::Put(_) => {
                self.0.shown().insert(digest);
                self.0.changed.notify_waiters();
            }
            Event::Delete(_) => {
                self.0.shown().remove(&digest);
                self.0.forget(&digest);
            }
        }
    }
}

/// Keeps sight of the tokens that there are until the shutdown.
pub(crate) async fn follow(tokens: Arc<Tokens>, mirrors: Mirrors) {
    mirrors.run(key::tokens(), TokensListener(tokens)).await;
}

/// Who bears a token.
#[derive(Debug)]
pub(crate) enum Bearer {
    /// It is good, for so long.
    Known(Principal, Lifetime),
    /// It is no token at all.
    Malformed,
    /// It is one, and not good, for a reason that its bearer is not told.
    Refused {
        /// Whose it was.
        whose: Option<Principal>,
        why: &'static str,
    },
}

/// For how long what a caller shows is good.
#[derive(Debug, Clone, Copy, Default)]
pub(crate) struct Lifetime {
    /// SHA-256 of the token, where the store has it.
    pub(crate) digest: Option<Digest>,
    /// When it ends, if it does.
    pub(crate) expires_at: Option<Timestamp>,
    /// Whether it says that somebody has just signed in, and is not to last: an issuer's that visitors of the page sign in with.
    pub(crate) signs_in: bool,
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
    /// The file can be read by others than its owner.
    #[error("{path} can be read by others (mode {mode:03o}): `chmod 600` it", path = path.display())]
    Exposed {
        /// The file.
        path: std::path::PathBuf,
        /// Its permissions.
        mode: u32,
    },
    /// The file holds something that is not a user's token.
    #[error("{path} does not hold a token that starts with octu_")]
    NotAToken {
        /// The file.
        path: std::path::PathBuf,
    },
}

impl Tokens {
    pub(crate) fn new(store: Arc<dyn Store>, executor_life: Duration) -> Self {
        Self {
            store,
            executor_life,
            known: Mutex::default(),
            shown: Mutex::default(),
            is_mirrored: AtomicBool::new(false),
            changed: Notify::new(),
            guesses: Guesses::default(),
            waiting: Mutex::default(),
            streamed: Mutex::default(),
            used: Used::default(),
        }
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

    /// Who bears this token, of whom a call comes from there.
    pub(crate) async fn bearer(&self, text: &str, from: Option<IpAddr>) -> Result<Bearer, StoreError> {
        // The checksum fails before the store is asked.
        let Ok(token) = text.parse::<Token>() else { return Ok(Bearer::Malformed) };
        let digest = token.digest();
        // Whoever guesses wears himself out, and not the store: of one who has guessed too often, only what is shown is looked up. What has
        // been made through another controller a moment ago is good, and soon shown: it is waited for.
        let is_strange = self.is_mirrored.load(Ordering::SeqCst) && !self.is_trusted(&digest) && !self.is_shown(&digest);
        if is_strange && !self.guesses.allow(from) && !self.appears(&digest).await {
            return Ok(Bearer::Refused { whose: None, why: "unknown, or revoked" });
        }
        let Some(record) = self.look_up(digest).await? else {
            return Ok(Bearer::Refused { whose: None, why: "unknown, or revoked" });
        };
        let fits = match token.kind() {
            TokenKind::User => record.session.is_none() && !matches!(record.role, Role::Executor | Role::Registration),
            TokenKind::Session => record.session.is_some(),
            TokenKind::Executor => record.role == Role::Executor,
            TokenKind::Registration => record.role == Role::Registration,
        };
        let lifetime = Lifetime { digest: Some(digest), expires_at: record.expires_at, signs_in: false };
        let expired = record.expires_at.is_some_and(|at| at <= Timestamp::now());
        let outlived = !self.lives_still(&record).await?;
        let TokenRecord { id: token_id, user, role, groups, catalogs, .. } = record;
        let principal = Principal { token_id, user, role, groups, catalogs };
        Ok(match (fits, expired) {
            (true, false) if outlived => Bearer::Refused { whose: Some(principal), why: "of one that was revoked" },
            (true, false) => Bearer::Known(principal, lifetime),
            (true, true) => Bearer::Refused { whose: Some(principal), why: "expired" },
            (false, _) => Bearer::Refused { whose: Some(principal), why: "of another kind" },
        })
    }

    fn is_trusted(&self, digest: &Digest) -> bool {
        self.known().get(digest).is_some_and(|(at, _)| at.elapsed() < TRUSTED_FOR)
    }

    /// Whether the watch shows this token soon.
    async fn appears(&self, digest: &Digest) -> bool {
        let (place, pushed_out) = oneshot::channel();
        {
            let mut waiting = self.waiting.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
            waiting.push_back(place);
            if waiting.len() > WAITING {
                waiting.pop_front();
            }
        }
        let shown = async {
            loop {
                let mut changed = pin!(self.changed.notified());
                changed.as_mut().enable();
                if self.is_shown(digest) {
                    return;
                }
                changed.await;
            }
        };
        tokio::select! {
            () = shown => true,
            _ = pushed_out => false,
            () = tokio::time::sleep(APPEARS_WITHIN) => false,
        }
    }

    async fn look_up(&self, digest: Digest) -> Result<Option<TokenRecord>, StoreError> {
        if let Some((at, record)) = self.known().get(&digest)
            && at.elapsed() < TRUSTED_FOR
        {
            return Ok(Some(record.clone()));
        }
        let asked = Instant::now();
        let Some(entry) = self.store.get(&key::token(&digest)).await? else { return Ok(None) };
        let record: TokenRecord = codec::decode(&entry)?;
        let mut known = self.known();
        if known.len() >= KEPT {
            known.retain(|_, (at, _)| at.elapsed() < TRUSTED_FOR);
        }
        known.insert(digest, (asked, record.clone()));
        drop(known);
        self.used.note(&record);
        Ok(Some(record))
    }

    /// Returns when what a caller has shown is good no more: revoked, replaced, or at its end. Within a second, on every controller whose
    /// watch goes on.
    pub(crate) async fn ended(&self, lifetime: Lifetime) {
        let notify = lifetime.digest.map_or_else(Arc::default, |digest| self.streamed(digest));
        loop {
            let mut doubted = pin!(notify.notified());
            doubted.as_mut().enable();
            // That it is there, the watch says; that it is not, or not yet, the store is asked.
            if let Some(digest) = lifetime.digest.filter(|digest| !self.is_shown(digest)) {
                match self.store.get(&key::token(&digest)).await {
                    Ok(None) => return,
                    Ok(Some(_)) => {}
                    Err(_) => {
                        tokio::time::sleep(DOUBT_AGAIN).await;
                        continue;
                    }
                }
            }
            let left = lifetime.expires_at.map(|at| Duration::try_from(at.duration_since(Timestamp::now())).unwrap_or_default());
            if left.is_some_and(|left| left.is_zero()) {
                return;
            }
            tokio::select! {
                () = doubted => {}
                // In steps, since the clock may be set.
                () = tokio::time::sleep(left.unwrap_or(LONGEST_SLEEP).min(LONGEST_SLEEP)) => {}
            }
        }
    }

    /// What tells the streams of a token that it may be gone.
    fn streamed(&self, digest: Digest) -> Arc<Notify> {
        let mut streamed = self.streamed.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
        if let Some(known) = streamed.get(&digest).and_then(Weak::upgrade) {
            return known;
        }
        streamed.retain(|_, notify| notify.strong_count() > 0);
        let notify = Arc::new(Notify::new());
        streamed.insert(digest, Arc::downgrade(&notify));
        notify
    }

    /// Has the streams of those tokens find out whether they are good.
    fn doubt(&self, of: impl Fn(&Digest) -> bool) {
        let streamed = self.streamed.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
        for (_, notify) in streamed.iter().filter(|(digest, _)| of(digest)) {
            if let Some(notify) = notify.upgrade() {
                notify.notify_waiters();
            }
        }
    }

    /// The record of a token for this bearer, made now.
    fn prepare(bearer: &NewToken, by: &str) -> TokenRecord {
        let now = Timestamp::now();
        let NewToken { role, user, groups, catalogs, uses, lifetime } = bearer.clone();
        TokenRecord {
            id: ExecutionId::generate().to_string(),
            role,
            user,
            groups,
            catalogs,
            created_at: now,
            created_by: by.to_owned(),
            expires_at: lifetime.and_then(|lifetime| now.checked_add(lifetime).ok()),
            uses,
            session: None,
        }
    }

    /// Makes a token for a person, a CI job, or the registration of an executor.
    pub(crate) async fn create(&self, bearer: &NewToken, act: &Act) -> Result<Made, StoreError> {
        let kind = if bearer.role == Role::Registration { TokenKind::Registration } else { TokenKind::User };
        let token = Token::from_random(kind, &random::bytes());
        let made = Made { token, record: Self::prepare(bearer, act.user()) };
        let digest = made.token.digest();
        note(act, &made.record);
        let txn = Txn::new().absent(key::token(&digest)).put(key::token(&digest), codec::encode(&made.record));
        self.store.commit(act.done(txn)).await?;
        Ok(made)
    }

    /// Does not trust a token any more that was removed, and has its streams end.
    pub(crate) fn forget(&self, digest: &Digest) {
        self.known().remove(digest);
        self.doubt(|streamed| streamed == digest);
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
    pub(crate) async fn revoke(&self, id: &str, act: &Act) -> Result<bool, StoreError> {
        for entry in self.entries().await? {
            let record: TokenRecord = codec::decode(&entry)?;
            if record.id == id {
                act.note("user", &record.user);
                act.note("role", record.role);
                let digest = digest_of(&entry.key);
                let sessions = match &digest {
                    Some(digest) => self.sessions_opened_with(digest).await?,
                    None => Vec::new(),
                };
                let mut there = Some(entry.clone());
                while let Some(entry) = there {
                    let mut txn = Txn::new().unchanged(&entry).delete(entry.key.clone()).delete(key::token_used(id));
                    for (session, record) in &sessions {
                        txn = txn.delete(session.key.clone()).delete(key::token_used(&record.id));
                    }
                    there = match act.commit_removal(&*self.store, txn).await? {
                        Commit::Done(_) => None,
                        // Used meanwhile, of which it keeps count; or revoked by another, which has the record then.
                        Commit::Conflict(_) => self.store.get(&entry.key).await?,
                    };
                }
                for digest in sessions.iter().filter_map(|(session, _)| digest_of(&session.key)).chain(digest) {
                    self.forget(&digest);
                }
                return Ok(true);
            }
        }
        Ok(false)
    }

    /// Sees to it that there is an admin: where the store knows none, the token in `file` becomes one's, once; where there is no such file, it
    /// is made, readable by its owner alone. One that was revoked does not come back with the next start.
    pub(crate) async fn bootstrap(&self, file: &Path) -> Result<(), BootstrapError> {
        let error = |source| BootstrapError::File { path: file.to_owned(), source };
        let now = Timestamp::now();
        let is_admin = |record: &TokenRecord| {
            record.session.is_none() && record.role == Role::Admin && record.expires_at.is_none_or(|at| at > now)
        };
        if self.list().await?.iter().any(is_admin) {
            return Ok(());
        }
        let bearer = NewToken { role: Role::Admin, user: "admin".to_owned(), lifetime: None, ..NewToken::default() };
        let token = Token::from_random(TokenKind::User, &random::bytes());
        let mut made = Made { token, record: Self::prepare(&bearer, "bootstrap") };
        match File::open(file) {
            Ok(mut opened) => {
                if let Some(mode) = private::exposed(&opened.metadata().map_err(error)?) {
                    return Err(BootstrapError::Exposed { path: file.to_owned(), mode });
                }
                let mut text = String::new();
                opened.read_to_string(&mut text).map_err(error)?;
                let token = text.trim().parse::<Token>().ok().filter(|token| token.kind() == TokenKind::User);
                made.token = token.ok_or_else(|| BootstrapError::NotAToken { path: file.to_owned() })?;
            }
            Err(missing) if missing.kind() == std::io::ErrorKind::NotFound => {
                file.parent().map_or(Ok(()), std::fs::create_dir_all).map_err(error)?;
                private::write_new(file, format!("{}\n", made.token.reveal()).as_bytes(), 0o600).map_err(error)?;
            }
            Err(other) => return Err(error(other)),
        }
        let digest = made.token.digest();
        let (at, marker) = (key::token(&digest), key::bootstrapped(&digest));
        if self.store.get(&marker).await?.is_some() {
            tracing::warn!(
                file = %file.display(),
                "the store knows no admin, and the token in the file was revoked, or has ended: remove the file, and a new one is made"
            );
            return Ok(());
        }
        let act = Act::new(None, None, What::new("token.create", "token", "").with("by", "bootstrap"));
        note(&act, &made.record);
        let txn = Txn::new().put(at, codec::encode(&made.record)).put(marker, "");
        self.store.commit(act.done(txn)).await?;
        Ok(())
    }
}

/// Whom a token is to be for.
#[derive(Debug, Clone)]
pub(crate) struct NewToken {
    pub(crate) role: Role,
    pub(crate) user: String,
    pub(crate) groups: Vec<String>,
    pub(crate) catalogs: Vec<CatalogName>,
    pub(crate) uses: Option<u32>,
    pub(crate) lifetime: Option<Duration>,
}

impl Default for NewToken {
    fn default() -> Self {
        let lifetime = Some(USER_LIFETIME);
        Self { role: Role::Viewer, user: String::new(), groups: Vec::new(), catalogs: Vec::new(), uses: None, lifetime }
    }
}

/// Says of an act that makes a token which it is, and for whom.
fn note(act: &Act, record: &TokenRecord) {
    act.on("token", &record.id);
    act.note("user", &record.user);
    act.note("role", record.role);
    act.note("groups", record.groups.join(","));
    act.note("catalogs", record.catalogs.iter().map(CatalogName::as_str).collect::<Vec<_>>().join(","));
    if let Some(uses) = record.uses {
        act.note("uses", uses);
    }
    if let Some(at) = record.expires_at {
        act.note("expires_at", at);
    }
}
