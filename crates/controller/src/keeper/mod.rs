//! The upkeep of the store: what is old is removed, what nothing names is swept, what was replaced is forgotten, and the room is given back.
//! One controller at a time does it, turn by turn; should two do it at once, no harm is done, since each removal asks that what it
//! removes is still as it was looked at.

mod logs;
mod retention;
mod sweep;
mod tokens;

use std::error::Error as _;
use std::sync::Arc;
use std::time::{Duration, Instant};

use octavius_core::{ExecutionId, Timing};
use octavius_store::record::DutyRecord;
use octavius_store::{Commit, Entry, Key, Range, Revision, Store, StoreError, Txn, Usage, codec, key};
use tokio_util::sync::CancellationToken;

use crate::archive::Archive;
use crate::audit::{AuditExport, Exporter};
use crate::sealing::{self, Sealer};
use sweep::Sweep;

/// How often the record of whose turn it is is looked at within a turn.
const LOOKS: u32 = 5;

/// Blobs are swept once in so many turns: every six hours.
const SWEEP_TURNS: u32 = 72;

/// A blob must have been without a name for so many turns, a day, before it goes.
const GRACE_TURNS: u32 = 288;

/// Logs that are not to be kept any more are looked for once in so many turns, an hour.
const LOG_TURNS: u32 = 12;

/// Room is given back at most once in so many turns, an hour, while the store still takes writes: it does not answer meanwhile.
const RECLAIM_TURNS: u32 = 12;

/// Room is given back where the file takes so many percent of the quota, and less than so many percent of the file hold something.
const RECLAIM_FROM: u64 = 60;
const RECLAIM_BELOW: u64 = 70;

/// From here on it is given back for less: the file is close to the quota, where writes are refused whatever is free within.
const URGENT_FROM: u64 = 85;
const URGENT_BELOW: u64 = 90;

/// Of a full store it is worth giving room back where at most so many percent of its quota hold something.
const REOPEN_BELOW: u64 = 90;

/// How long ended executions and replaced revisions of catalogues are kept.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Retention {
    /// Executions that ended longer ago than this are removed, with their logs, and revisions of catalogues that are older, of which the
    /// newest 100 always stay. Counted in whole hours, rounded up; less than 5 h counts as 5 h for executions. 30 days by default.
    pub age: Duration,
    /// Most ended executions that are kept: beyond that, those that ended first are removed, but for those that ended less than 5 h ago,
    /// so that a call that is repeated still finds them. 100,000 by default.
    pub executions: u64,
    /// Most bytes that the logs of ended executions take in the archive: beyond that, those of executions that ended first are removed, and
    /// the executions stay. Looked at once an hour. No limit by default.
    pub log_bytes: Option<u64>,
    /// Records of the audit trail that are older are removed; where the trail is exported, not before that was done. 90 days by default.
    pub audit: Duration,
}

impl Retention {
    /// For how long the audit trail is kept where nothing is said.
    pub const AUDIT: Duration = Duration::from_secs(90 * 24 * 3600);
}

impl Default for Retention {
    fn default() -> Self {
        Self { age: Duration::from_secs(30 * 24 * 3600), executions: 100_000, log_bytes: None, audit: Self::AUDIT }
    }
}

/// Looks after the store when it is this controller's turn.
#[derive(Debug)]
pub(crate) struct Keeper {
    store: Arc<dyn Store>,
    timing: Timing,
    retention: Retention,
    archive: Option<Archive>,
    audit: Exporter,
    compact: bool,
    sealer: Sealer,
    /// New at each start.
    id: String,
    /// The record of whose turn it is, as it was seen last, and since when it has been so.
    seen: Option<(Option<Entry>, Instant)>,
    /// The store's revision when this controller's last turn began.
    began: Revision,
    sweep: Sweep,
    swept: Option<Instant>,
    /// When it was looked last which logs are not to be kept any more.
    logs_removed: Option<Instant>,
    reclaimed: Option<Instant>,
    /// What was replaced before this revision was forgotten in this controller's last turn.
    forgotten: Revision,
    /// The same as it was when a full store was last made to give room back.
    reclaimed_of: Revision,
}

impl Keeper {
    pub(crate) fn new(
        store: Arc<dyn Store>,
        timing: Timing,
        retention: Retention,
        archive: Option<Archive>,
        audit_export: AuditExport,
        compact: bool,
        sealer: Sealer,
    ) -> Self {
        Self {
            store,
            timing,
            retention,
            archive,
            audit: Exporter::new(audit_export),
            compact,
            sealer,
            id: ExecutionId::generate().to_string(),
            seen: None,
            began: 0,
            sweep: Sweep::default(),
            swept: None,
            logs_removed: None,
            reclaimed: None,
            forgotten: 0,
            reclaimed_of: 0,
        }
    }

    /// Takes turns until `shutdown`.
    pub(crate) async fn run(mut self, shutdown: CancellationToken) {
        let turns = async {
            loop {
                if let Err(error) = self.look().await {
                    tracing::warn!(%error, "the store could not be looked after");
                }
                tokio::time::sleep(self.timing.keep_interval / LOOKS).await;
            }
        };
        tokio::select! {
            () = turns => {}
            () = shutdown.cancelled() => {}
        }
    }

    /// Takes the next turn where it is due: where the record has stayed as it is for a whole turn, by this controller's own clock, and for two
    /// where it is another's. So whoever has it keeps it, and with it what it knows of blobs, though it may be a little late at times.
    async fn look(&mut self) -> Result<(), StoreError> {
        let page = self.store.range(&Range::of(key::duty(), 1)).await?;
        let entry = page.entries.into_iter().find(|entry| entry.key == key::duty());
        let last: Option<DutyRecord> = entry.as_ref().map(codec::decode).transpose()?;
        let turns = if last.as_ref().is_some_and(|last| last.controller == self.id) { 1 } else { 2 };
        match &self.seen {
            Some((seen, since)) if *seen == entry && since.elapsed() < turns * self.timing.keep_interval => return Ok(()),
            Some((seen, _)) if *seen == entry => {}
            // One that was never there is nobody's: it need not be waited for.
            _ if entry.is_some() => {
                self.seen = Some((entry, Instant::now()));
                return Ok(());
            }
            _ => {}
        }
        let turn = last.as_ref().map_or(1, |last| last.turn + 1);
        let record = DutyRecord { turn, controller: self.id.clone(), revision: page.revision };
        let value = codec::encode(&record);
        let modified = entry.as_ref().map_or(0, |entry| entry.modified);
        match self.store.commit(Txn::new().when(key::duty(), modified).put(key::duty(), value.clone())).await {
            Ok(Commit::Done(revision)) => {
                let created = entry.map_or(revision, |entry| entry.created);
                self.seen = Some((Some(Entry { key: key::duty(), value, created, modified: revision }), Instant::now()));
            }
            Ok(Commit::Conflict(_)) | Err(StoreError::Unknown(_)) => return Ok(()),
            // A full store is the one that needs it most. Then all controllers do it, which is a waste and no harm.
            Err(StoreError::Full(_)) => self.seen = Some((entry, Instant::now())),
            Err(error) => return Err(error),
        }
        let before = last.map_or(0, |last| last.revision).max(self.began);
        self.began = page.revision;
        self.turn(before).await;
        Ok(())
    }

    /// Removes logs that are not to be kept any more, where it is time for that; how many.
    async fn remove_logs(&mut self) -> u64 {
        let Some(archive) = &self.archive else { return 0 };
        if self.logs_removed.is_some_and(|removed| removed.elapsed() < self.timing.keep_interval * LOG_TURNS) {
            return 0;
        }
        self.logs_removed = Some(Instant::now());
        match logs::remove(&*self.store, archive, self.retention.log_bytes).await {
            Ok(removed) => removed,
            Err(error) => {
                tracing::warn!(%error, "logs that are not to be kept any more could not be removed");
                0
            }
        }
    }

    /// One turn. What was replaced before `before` is forgotten.
    async fn turn(&mut self, before: Revision) {
        let began = Instant::now();
        // First: what is old and was not exported stays.
        match self.audit.run(&*self.store).await {
            Ok(0) => {}
            Ok(records) => tracing::info!(records, "exported the audit trail"),
            Err(error) => tracing::error!(%error, source = error.source(), "the audit trail could not be exported"),
        }
        // What fails does not keep the rest from being done: a damaged record must not let the store run full.
        let removed = told(
            "what is old could not be removed",
            retention::remove(&*self.store, self.retention, self.archive.as_ref()).await,
        );
        let tokens = told("tokens that are over could not be removed", tokens::remove(&*self.store).await);
        let logs = self.remove_logs().await;
        let resealed =
            told("sensitive arguments could not be encrypted anew", sealing::reseal_some(&*self.store, &self.sealer).await);
        if resealed > 0 {
            tracing::info!(
                executions = resealed,
                "encrypted sensitive arguments with the first key that were under an older one"
            );
        }
        let mut blobs = 0;
        let keep = self.timing.keep_interval;
        if self.swept.is_none_or(|swept| swept.elapsed() >= keep * SWEEP_TURNS) {
            blobs = told("blobs could not be swept", self.sweep.run(&*self.store, keep * GRACE_TURNS).await);
            self.swept = Some(Instant::now());
        }
        let usage = told("how full the store is could not be asked", self.store.usage().await.map(Some));
        let settled = self.forgotten;
        if self.compact {
            let full = usage.is_some_and(|usage| usage.full);
            told("what was replaced could not be forgotten", self.forget(before, full).await);
        }
        if removed != retention::Removed::default() || blobs > 0 || logs > 0 || tokens > 0 {
            let retention::Removed { executions, keys, revisions, audited } = removed;
            let took = began.elapsed();
            tracing::info!(executions, logs, once_keys = keys, revisions, audited, tokens, blobs, ?took, "removed what was old");
        }
        // Giving back halts members for all who use them, like forgetting: in an etcd that is shared, it is for those who run it.
        if self.compact
            && let Some(usage) = usage
        {
            told("room could not be given back", self.give_back_room(usage, settled).await);
        }
    }

    /// Has the store forget what was replaced before `before`, and a full one all of it: little happens there that anyone could miss, and
    /// whoever does lists again.
    async fn forget(&mut self, before: Revision, full: bool) -> Result<(), StoreError> {
        let until = if full { self.store.range(&Range::of(key::duty(), 1)).await?.revision } else { before };
        if until > 0 {
            self.store.compact(until).await?;
            self.forgotten = until;
        }
        Ok(())
    }

    /// Has the store give room back where that is worth standing still for. `settled` is what the last turn had it forget, which is done by
    /// now.
    async fn give_back_room(&mut self, usage: Usage, settled: Revision) -> Result<(), StoreError> {
        let percent = |part: u64, of: u64| part.saturating_mul(100) / of.max(1);
        let Some(quota) = usage.quota_bytes else { return Ok(()) };
        let allocated = percent(usage.allocated_bytes, quota);
        let below = if allocated >= URGENT_FROM { URGENT_BELOW } else { RECLAIM_BELOW };
        let loose = allocated >= RECLAIM_FROM
            && percent(usage.used_bytes, usage.allocated_bytes) < below
            && self.reclaimed.is_none_or(|then| then.elapsed() >= self.timing.keep_interval * RECLAIM_TURNS);
        // Etcd counts what it has forgotten as free with the next write, which a full store does not take: the count stands still. So
        // whatever it says, room is given back once for all that was removed.
        let freed = percent(usage.used_bytes, quota) <= REOPEN_BELOW || settled > self.reclaimed_of;
        if loose || (usage.full && freed) {
            (self.reclaimed, self.reclaimed_of) = (Some(Instant::now()), settled);
            self.store.reclaim().await?;
            let now = self.store.usage().await?;
            tracing::info!(before = usage.allocated_bytes, after = now.allocated_bytes, full = now.full, "gave room back");
        }
        Ok(())
    }
}

fn told<T: Default>(what: &'static str, done: Result<T, StoreError>) -> T {
    done.unwrap_or_else(|error| {
        tracing::warn!(%error, "{what}");
        T::default()
    })
}

/// Keys read at once.
const PAGE: usize = 500;

/// The pages of a range, one after the other, each as of when it is read: what is removed meanwhile is not missed, and what comes meanwhile
/// is for the next turn.
struct Pages(Option<Range>);

impl Pages {
    fn of(prefix: Key) -> Self {
        Self(Some(Range::of(prefix, PAGE)))
    }

    fn after(prefix: Key, last: Key) -> Self {
        Self(Some(Range { after: Some(last), ..Range::of(prefix, PAGE) }))
    }

    async fn next(&mut self, store: &dyn Store) -> Result<Option<Vec<Entry>>, StoreError> {
        let Some(range) = self.0.take() else { return Ok(None) };
        let page = store.range(&range).await?;
        self.0 = range.next(&page).map(|next| Range { at: None, ..next });
        Ok(Some(page.entries))
    }
}
