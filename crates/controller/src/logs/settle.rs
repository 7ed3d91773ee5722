//! What is left of a log in the store when its attempt has ended moves into the archive, soon after, by whichever controller heard of the end;
//! what nobody heard of is found by looking.

use std::collections::BTreeSet;
use std::sync::Arc;

use futures::StreamExt as _;
use octavius_core::{Execution, ExecutionId, Timing};
use octavius_store::piece::Piece;
use octavius_store::record::{KeptLogRecord, LogHead};
use octavius_store::{Commit, Range, Revision, Store, StoreError, Txn, codec, key};
use tokio::sync::mpsc;
use tokio_util::sync::CancellationToken;

use super::append::put_all;
use super::pieces::{self, Cut, Segment};
use super::{Keeping, head};
use crate::archive::{Archive, ArchiveError};
use crate::engine::{Engine, EngineError, Known};
use crate::heads::{End, Heads};

/// Ends that may wait to be seen to; those beyond are found by looking.
const WAITING: usize = 4096;

/// Executions whose logs are moved at once: each may take some 10 MiB meanwhile, and mostly takes next to nothing.
const AT_ONCE: usize = 4;

/// Keys that are looked at in one page.
const PAGE: usize = 500;

/// How often, within a turn of the store's keepers, it is looked for what nobody heard of.
const LOOKS: u32 = 5;

/// Segments that are removed in the transaction that moves them; the others follow.
const REMOVED_AT_ONCE: usize = 30;

/// Tries of one move against somebody else who changes the same log.
const MAX_TRIES: usize = 5;

/// Tells of ends. A handle, cheap to clone.
#[derive(Debug, Clone)]
pub(crate) struct Settling(mpsc::Sender<ExecutionId>);

impl Settling {
    /// Says that an attempt of this execution has ended.
    pub(crate) fn ended(&self, id: ExecutionId) {
        let _ = self.0.try_send(id); // what is not taken is found by looking
    }
}

/// Moves logs into the archive.
#[derive(Debug)]
pub(crate) struct Settler {
    store: Arc<dyn Store>,
    engine: Engine,
    heads: Arc<Heads>,
    keeping: Keeping,
    timing: Timing,
    ended: mpsc::Receiver<ExecutionId>,
}

/// What closes an execution's logs, in the transaction that moves the last byte.
struct Closing<'a> {
    known: &'a Known,
    /// What the logs of its other attempts take.
    others: u64,
}

impl Closing<'_> {
    fn add(&self, txn: Txn, attempt: u32, stored: u64) -> Txn {
        let Execution { id, job, finished_at, logs, .. } = &*self.known.execution;
        let txn = self.known.still(txn).delete(key::hot_log(*id, attempt));
        let Some(finished_at) = finished_at else { return txn };
        let stored = self.others + stored;
        let record = KeptLogRecord { job: job.clone(), stored, keep_for: logs.keep_for, keep_bytes: logs.keep_bytes };
        txn.put(key::kept_log(key::hour_of(*finished_at), *id), codec::encode(&record))
    }
}

impl Settler {
    pub(crate) fn new(
        store: Arc<dyn Store>,
        engine: Engine,
        heads: Arc<Heads>,
        keeping: Keeping,
        timing: Timing,
    ) -> (Self, Settling) {
        let (sender, ended) = mpsc::channel(WAITING);
        (Self { store, engine, heads, keeping, timing, ended }, Settling(sender))
    }

    /// Moves logs until `shutdown`. Without an archive there is nothing to do.
    pub(crate) async fn run(mut self, shutdown: CancellationToken) {
        let Some(archive) = self.keeping.archive.clone() else { return };
        let work = async {
            let mut look = tokio::time::interval(self.timing.keep_interval / LOOKS);
            look.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
            let mut some = Vec::new();
            loop {
                let waiting = tokio::select! {
                    count = self.ended.recv_many(&mut some, WAITING), if !self.ended.is_closed() => { debug_assert!(count > 0); some.drain(..).collect() }
                    _ = look.tick() => match self.waiting().await {
                        Ok(waiting) => waiting,
                        Err(error) => {
                            tracing::debug!(%error, "cannot look for logs that are to be archived");
                            continue;
                        }
                    },
                };
                self.settle_all(&archive, waiting).await;
            }
        };
        tokio::select! {
            () = work => {}
            () = shutdown.cancelled() => {}
        }
    }

    /// The executions with bytes of logs in the store.
    async fn waiting(&self) -> Result<BTreeSet<ExecutionId>, StoreError> {
        let mut range = Range::of(key::hot_logs(), PAGE);
        let mut waiting = BTreeSet::new();
        loop {
            let page = self.store.range(&range).await?;
            waiting.extend(page.entries.iter().filter_map(|entry| key::hot_log_of(&entry.key)).map(|(id, _)| id));
            match range.next(&page) {
                Some(next) => range = next,
                None => return Ok(waiting),
            }
        }
    }

    async fn settle_all(&self, archive: &Archive, waiting: BTreeSet<ExecutionId>) {
        let settle = async |id: ExecutionId| match self.settle(archive, id).await {
            Ok(()) => self.heads.forget(id),
            Err(ArchiveError::Store(error)) => tracing::debug!(execution = %id, %error, "a log is archived later"),
            Err(error) => tracing::debug!(execution = %id, %error, "a log stays in the store for now"),
        };
        futures::stream::iter(waiting).for_each_concurrent(AT_ONCE, settle).await;
    }

    /// Moves the log of an execution that is over, where all of it is one short segment that is remembered, as of most: without a read. False
    /// where it is not so.
    async fn settle_short(&self, archive: &Archive, id: ExecutionId) -> Result<bool, ArchiveError> {
        const ATTEMPT: u32 = 1;
        let Some(End { modified, head, last }) = self.heads.get(id, ATTEMPT) else { return Ok(false) };
        if last.size() == 0 || last.size() != head.next_offset || head.archived > 0 || head.cut.is_some() {
            return Ok(false);
        }
        let Ok(known) = self.engine.recall(id, |execution| execution.state.is_terminal()).await else { return Ok(false) };
        if !known.execution.state.is_terminal() || known.execution.attempts.len() != 1 {
            return Ok(false);
        }
        let limit = self.keeping.limit_of(&known.execution);
        if archive.is_down() {
            return Err(archive.still_down());
        }
        let _turn = archive.turn().await;
        let mut objects = put_all(archive, id, ATTEMPT, 0, vec![last], limit).await?;
        let Cut { head, removed } = pieces::with_objects(&*self.store, id, ATTEMPT, head, &mut objects, limit).await?;
        let txn = Txn::new().when(key::log_head(id, ATTEMPT), modified).delete(key::log_segment(id, ATTEMPT, 0));
        let txn = pieces::write_objects(txn, id, ATTEMPT, 0, &objects, &removed);
        let txn = Closing { known: &known, others: 0 }.add(txn, ATTEMPT, head.stored);
        let done = self.store.commit(txn.put(key::log_head(id, ATTEMPT), codec::encode(&head))).await?;
        Ok(matches!(done, Commit::Done(_)))
    }

    /// Moves what has ended of an execution's logs.
    async fn settle(&self, archive: &Archive, id: ExecutionId) -> Result<(), ArchiveError> {
        if self.settle_short(archive, id).await? {
            return Ok(());
        }
        let page = self.store.range(&Range::of(key::hot_log_prefix(id), Txn::MAX_OPERATIONS)).await?;
        let hot: Vec<u32> =
            page.entries.iter().filter_map(|entry| key::hot_log_of(&entry.key)).map(|(_, attempt)| attempt).collect();
        let Some(last) = hot.last().copied() else { return Ok(()) };
        let known = match self.engine.read(id).await {
            Ok(known) => known,
            Err(EngineError::Store(error)) => return Err(error.into()),
            Err(_) => {
                // Removed while it was written to.
                archive.remove(id).await?;
                let txn = hot.iter().fold(Txn::new(), |txn, attempt| txn.delete(key::hot_log(id, *attempt)));
                self.store.commit(txn).await?;
                return Ok(());
            }
        };
        let execution = &*known.execution;
        let over = execution.state.is_terminal();
        let has_ended =
            |number: u32| over || execution.attempts.iter().any(|attempt| attempt.number == number && attempt.ended_at.is_some());
        for attempt in hot {
            if !has_ended(attempt) {
                continue;
            }
            if over && attempt == last {
                let others = self.others(execution, attempt).await?;
                let closing = Closing { known: &known, others };
                self.close(archive, &closing, attempt).await?;
                continue;
            }
            let moved = self.move_log(archive, execution, attempt, None).await?;
            // Until the execution is over the key stays: what comes after this attempt may print nothing, and then this one closes its logs.
            if over && let Some((_, modified)) = moved {
                let txn = Txn::new().when(key::log_head(id, attempt), modified).delete(key::hot_log(id, attempt));
                self.store.commit(txn).await?;
            }
        }
        Ok(())
    }

    /// What the logs of an execution's attempts but this one take.
    async fn others(&self, execution: &Execution, but: u32) -> Result<u64, StoreError> {
        let mut stored = 0;
        for attempt in execution.attempts.iter().filter(|attempt| attempt.number != but) {
            stored += head(&*self.store, execution.id, attempt.number).await?.map_or(0, |(head, _)| head.stored);
        }
        Ok(stored)
    }

    /// Moves the last log of an execution that is over.
    async fn close(&self, archive: &Archive, closing: &Closing<'_>, attempt: u32) -> Result<(), ArchiveError> {
        let id = closing.known.execution.id;
        let moved = self.move_log(archive, &closing.known.execution, attempt, Some(closing)).await?;
        let (txn, stored) = match moved {
            Some((head, modified)) => (Txn::new().when(key::log_head(id, attempt), modified), head.stored),
            None => (Txn::new().absent(key::log_head(id, attempt)), 0),
        };
        // Most logs are closed by now, with the move: then there is no key any more that says that they are not.
        if self.store.get(&key::hot_log(id, attempt)).await?.is_some() {
            self.store.commit(closing.add(txn, attempt, stored)).await?;
        }
        Ok(())
    }

    /// Moves what the store has of a log's bytes; its head then, and the revision that wrote it. None where there is no such log.
    async fn move_log(
        &self,
        archive: &Archive,
        execution: &Execution,
        attempt: u32,
        closing: Option<&Closing<'_>>,
    ) -> Result<Option<(LogHead, Revision)>, ArchiveError> {
        let id = execution.id;
        let limit = self.keeping.limit_of(execution);
        for _ in 0..MAX_TRIES {
            let Some((head, modified)) = head(&*self.store, id, attempt).await? else { return Ok(None) };
            let turn = archive.turn().await;
            let segments = pieces::segments_from(&*self.store, id, attempt, 0).await?;
            let (mut left, mut hot): (Vec<Segment>, Vec<Segment>) =
                segments.into_iter().partition(|segment| segment.offset < head.archived);
            if head.archived == head.next_offset {
                pieces::remove_segments(&*self.store, id, attempt, &left).await?;
                return Ok(Some((head, modified)));
            }
            let Some(runs) = pieces::runs(&head, &hot) else { continue }; // somebody else moves it, or writes to it
            // With an archive that is away, one of them tries; the others are found again.
            if archive.is_down() {
                return Err(archive.still_down());
            }
            let (mut objects, mut cut) = (Vec::new(), head.cut);
            for (begins, run) in runs {
                if let Some(cut) = cut.as_mut().filter(|cut| cut.next_object == 0 && cut.to == begins) {
                    let first = u32::try_from(objects.len()).unwrap_or(u32::MAX);
                    (cut.first_object, cut.next_object) = (first, first);
                }
                let all: Vec<Piece> = run.iter().map(|segment| segment.piece.clone()).collect();
                objects.extend(put_all(archive, id, attempt, begins, all, limit).await?);
            }
            let head = LogHead { cut, ..head };
            let Cut { head: after, removed } = pieces::with_objects(&*self.store, id, attempt, head, &mut objects, limit).await?;
            left.extend(hot.split_off(hot.len().min(REMOVED_AT_ONCE)));
            let mut txn = Txn::new().when(key::log_head(id, attempt), modified);
            txn = pieces::write_objects(txn, id, attempt, head.objects, &objects, &removed);
            for segment in &hot {
                txn = txn.delete(key::log_segment(id, attempt, segment.offset));
            }
            if let Some(closing) = closing.filter(|_| left.is_empty()) {
                txn = closing.add(txn, attempt, after.stored);
            }
            if let Commit::Done(modified) = self.store.commit(txn.put(key::log_head(id, attempt), codec::encode(&after))).await? {
                drop(turn);
                pieces::remove_segments(&*self.store, id, attempt, &left).await?;
                pieces::remove_objects(archive, id, attempt, &removed).await;
                return Ok(Some((after, modified)));
            }
        }
        Err(StoreError::Unavailable(format!("the log of {id} changes too quickly")).into())
    }
}
