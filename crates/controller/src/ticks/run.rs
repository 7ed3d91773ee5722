//! What is done for one job whose time has come.

use std::sync::Arc;
use std::time::Duration;

use jiff::SignedDuration;
use octavius_core::argument::{self, Arguments};
use octavius_core::definition::{CatchUp, Overlap};
use octavius_core::execution::{Event, Submission};
use octavius_core::schedule::{Due, SCHEDULE_USER, Ticks};
use octavius_core::{Execution, ExecutionId, State, Timestamp};
use octavius_proto::reason;
use octavius_store::record::{SkippedTick, TickRecord};
use octavius_store::{Commit, Entry, Revision, StoreError, Txn, codec, key};
use octavius_trace::{Kind, Span};

use super::{Cursor, GRACE, RETRY, Scheduled, Ticker};
use crate::catalogs::{Job, View};
use crate::engine::EngineError;

/// Ids that are tried for one tick. Only somebody who means to be in the way has taken the first.
const IDS: u32 = 16;

/// What came of it.
#[derive(Debug)]
pub(super) enum Attended {
    /// The job has a new time, or is about to have one.
    Done,
    /// It is to be attended to again after so long.
    Later(Duration),
}

/// How the execution that a job's schedule made last stands.
enum Before {
    /// It has ended.
    Over,
    GoesOn,
    /// It waits for approval, and for so long at most.
    EndsIn(Duration),
}

/// How a transaction that moves a cursor went.
enum Moved {
    At(Revision),
    /// Something has changed: the execution of that id, the catalogue's head, and the cursor as they are now.
    No {
        execution: Option<Entry>,
        head: Option<Entry>,
        cursor: Option<Entry>,
    },
    /// It is not known; the cursor as it is now.
    Unknown {
        cursor: Option<Entry>,
    },
}

/// A job at its time.
struct Timed<'a> {
    folded: &'a str,
    job: Job,
    scheduled: Scheduled,
    /// The cursor, and the revision that wrote it.
    record: TickRecord,
    modified: Revision,
}

impl Ticker {
    /// Does for this job what its schedule and the clock ask for.
    pub(super) async fn attend(&self, view: &View, folded: &str) -> Result<Attended, StoreError> {
        let known = self.book().job(folded).map(|(scheduled, cursor)| (scheduled.clone(), cursor.cloned()));
        let Some((scheduled, cursor)) = known else { return Ok(Attended::Done) };
        let entry = view.entry(&scheduled.name).filter(|(_, entry)| entry.digest == scheduled.definition);
        let Some((catalog, entry)) = entry else { return Ok(Attended::Later(RETRY)) }; // the next turn knows better
        let definition = self.executions.definitions.get(entry.digest).await?;
        let job = Job { catalog: Arc::clone(catalog), entry: entry.clone(), definition };
        let Ok(ticks) = Ticks::of(&scheduled.schedule) else { return Ok(Attended::Done) };
        let (now, schedule) = (self.now(), scheduled.digest());
        let (record, modified) = match cursor {
            Some(Cursor { record, modified }) if record.schedule == schedule => (record, modified),
            // New, or another schedule than before: ticks begin now. What the job did last still counts.
            before => {
                let modified = before.as_ref().map_or(0, |before| before.modified);
                let same = before.map(|before| before.record).filter(|record| record.catalog == job.catalog.name);
                let execution = same.and_then(|record| record.execution);
                let record = TickRecord { catalog: job.catalog.name.clone(), schedule, last: now, execution, skipped: None };
                let timed = Timed { folded, job, scheduled, record: record.clone(), modified };
                return self.moves_alone(&timed, record).await;
            }
        };
        let timed = Timed { folded, job, scheduled, record, modified };
        let grace = SignedDuration::try_from(GRACE).unwrap_or_default();
        match ticks.due(timed.scheduled.schedule.catch_up, timed.record.last, now, grace) {
            Due::Wait(_) => {
                self.book().note(folded, Some(Cursor { record: timed.record, modified }), modified);
                Ok(Attended::Done)
            }
            Due::Missed(tick) => self.skip(&timed, tick, SkippedTick::MISSED, None).await,
            Due::Run(tick) => self.run_job(&timed, tick, now).await,
        }
    }

    /// Makes the tick's execution, unless something speaks against it.
    async fn run_job(&self, timed: &Timed<'_>, tick: Timestamp, now: Timestamp) -> Result<Attended, StoreError> {
        if (self.is_paused)(&timed.scheduled.name) {
            return self.skip(timed, tick, SkippedTick::PAUSED, None).await;
        }
        if timed.scheduled.schedule.overlap == Overlap::Skip
            && let Some(id) = timed.record.execution
        {
            // What is late anyway, and to be made good, may be a little later.
            let patience = if timed.scheduled.schedule.catch_up == CatchUp::None { tick } else { now };
            match self.before(id, now, patience.saturating_add(GRACE).unwrap_or(Timestamp::MAX)).await? {
                Before::Over => {}
                Before::GoesOn => return self.skip(timed, tick, SkippedTick::OVERLAP, Some(id)).await,
                Before::EndsIn(wait) => return Ok(Attended::Later(wait)),
            }
        }
        if self.executions.room.for_work().is_err() {
            return Ok(Attended::Later(self.longest_pause())); // it runs late, or is missed
        }
        let Ok(arguments) = argument::resolve(&timed.job.definition, &Arguments::new()) else {
            return self.skip(timed, tick, SkippedTick::ARGUMENTS, None).await;
        };
        for number in 0..IDS {
            let id = ExecutionId::of_tick(&timed.job.catalog.name, &timed.scheduled.name, tick, number);
            let submission = Submission {
                id,
                arguments: arguments.clone(),
                user: SCHEDULE_USER.to_owned(),
                at: now,
                timeout: None,
                slot: None,
            };
            let mut execution = match self.executions.queued(&timed.job, submission).await {
                Err(EngineError::Store(error)) => return Err(error),
                // No key for arguments that are sensitive: an operator's to set right, and told in the log.
                Err(error) => {
                    tracing::error!(job = %timed.scheduled.name, %tick, %error, "a tick has no execution");
                    return self.skip(timed, tick, SkippedTick::ARGUMENTS, None).await;
                }
                Ok(execution) => execution,
            };
            execution.tick = Some(tick);
            let traced = Span::begin("schedule", Kind::Internal, None);
            execution.trace = traced.hand_on(None).map(Box::new);
            // Ticks are rare: the store is asked, whatever the watch has shown.
            let slot = match self.executions.scheduler.slots().reserve(&execution, &*self.executions.store, true).await {
                Ok(slot) => slot,
                Err(fault) if fault.reason == reason::CONCURRENCY_LIMIT => {
                    return self.skip(timed, tick, SkippedTick::FULL, None).await;
                }
                Err(_) => return Ok(Attended::Later(RETRY)),
            };
            execution.slot = slot.as_ref().map(|slot| slot.slot);
            let execution = Arc::new(execution);
            let record = TickRecord { last: tick, execution: Some(id), ..timed.record.clone() };
            match self.moves(timed, self.executions.engine.submission(&execution), &record).await? {
                Moved::At(revision) => {
                    if let Some(slot) = slot {
                        slot.made(revision);
                    }
                    self.executions.scheduler.submitted(&execution, revision);
                    tracing::info!(job = %timed.scheduled.name, %tick, execution = %id, "scheduled");
                    return Ok(Attended::Done);
                }
                Moved::No { execution: Some(there), cursor, .. } if unmoved(cursor.as_ref(), timed) => {
                    // The cursor does not know of an execution that is there: one of this very tick, and the cursor was lost; or somebody
                    // else has taken its id.
                    let there: Execution = codec::decode(&there)?;
                    if there.tick == Some(tick) && there.job.folded() == timed.folded {
                        return self.moves_alone(timed, record).await;
                    }
                }
                moved => return self.gave_way(timed, moved).await,
            }
        }
        tracing::error!(job = %timed.scheduled.name, %tick, "others have taken every id of a tick");
        self.skip(timed, tick, SkippedTick::MISSED, None).await
    }

    /// How the execution before stands, at `now`. One that waits for approval and will not have got it before `until` is as good as ended: of a
    /// job whose approvals are good for as long as there is between two ticks it ends just after the next is due.
    async fn before(&self, id: ExecutionId, now: Timestamp, until: Timestamp) -> Result<Before, StoreError> {
        let engine = &self.executions.engine;
        let execution = match engine.get(id).await {
            Ok(execution) => execution,
            Err(EngineError::Store(error)) => return Err(error),
            Err(_) => return Ok(Before::Over), // it ended long ago, and is removed
        };
        if execution.state.is_terminal() {
            return Ok(Before::Over);
        }
        let waits = execution.state == State::WaitingForApproval;
        let Some(ends) = execution.approval_expires_at().filter(|ends| waits && *ends < until) else { return Ok(Before::GoesOn) };
        if let Ok(wait) = Duration::try_from(ends.duration_since(now))
            && !wait.is_zero()
        {
            return Ok(Before::EndsIn(wait));
        }
        // Its time is over, and nobody has ended it yet: another who does so at the same time does no harm.
        match engine.step(id, Event::ExpireWait).await {
            Ok(_) => Ok(Before::Over),
            Err(EngineError::Store(error)) => Err(error),
            Err(_) => Ok(Before::EndsIn(RETRY)), // approved or ended a moment ago: looked at again
        }
    }

    /// Passes over a tick, and notes why.
    async fn skip(
        &self,
        timed: &Timed<'_>,
        tick: Timestamp,
        because: &str,
        execution: Option<ExecutionId>,
    ) -> Result<Attended, StoreError> {
        tracing::info!(job = %timed.scheduled.name, %tick, because, "a tick was skipped");
        let skipped = Some(SkippedTick { tick, because: because.to_owned(), execution });
        self.moves_alone(timed, TickRecord { last: tick, skipped, ..timed.record.clone() }).await
    }

    /// Moves the cursor and nothing else.
    async fn moves_alone(&self, timed: &Timed<'_>, record: TickRecord) -> Result<Attended, StoreError> {
        match self.moves(timed, Txn::new(), &record).await? {
            Moved::At(_) => Ok(Attended::Done),
            moved => self.gave_way(timed, moved).await,
        }
    }

    /// Moves the cursor to `record`, with what else `txn` asks for and does. The job must still be at its catalogue's head.
    async fn moves(&self, timed: &Timed<'_>, txn: Txn, record: &TickRecord) -> Result<Moved, StoreError> {
        let at = key::tick(timed.folded);
        let txn = timed.job.still_current(txn).when(at.clone(), timed.modified);
        let txn = txn.put(at.clone(), codec::encode(record)).or_read(at.clone());
        match self.executions.store.commit(txn).await {
            Ok(Commit::Done(modified)) => {
                self.book().note(timed.folded, Some(Cursor { record: record.clone(), modified }), modified);
                Ok(Moved::At(modified))
            }
            Ok(Commit::Conflict(mut read)) => {
                let (cursor, head) = (read.pop().flatten(), read.pop().flatten());
                Ok(Moved::No { execution: read.into_iter().next().flatten(), head, cursor })
            }
            // It may have happened, which the cursor tells. Where it has not, it may yet: the next try finds it, or is found.
            Err(StoreError::Unknown(_)) => Ok(Moved::Unknown { cursor: self.executions.store.get(&at).await? }),
            Err(error) => Err(error),
        }
    }

    /// Takes in what stood against a transaction.
    async fn gave_way(&self, timed: &Timed<'_>, moved: Moved) -> Result<Attended, StoreError> {
        let (cursor, head) = match moved {
            Moved::At(_) => return Ok(Attended::Done),
            Moved::No { cursor, head, .. } => (cursor, Some(head)),
            Moved::Unknown { cursor } => (cursor, None),
        };
        let same = unmoved(cursor.as_ref(), timed);
        match &cursor {
            Some(entry) => self.book().take_in(entry),
            // What was deleted was deleted after what is known of it.
            None => self.book().note(timed.folded, None, timed.modified),
        }
        if head.is_some_and(|head| !timed.job.was_current(head.as_ref())) {
            // The next turn sees what has become of the catalogue.
            let _ = self.executions.catalogs.view().await;
            return Ok(Attended::Later(Duration::ZERO));
        }
        Ok(if same { Attended::Later(RETRY) } else { Attended::Done })
    }
}

/// Whether the cursor still is as it was when a job's time came.
fn unmoved(cursor: Option<&Entry>, timed: &Timed<'_>) -> bool {
    cursor.map_or(0, |cursor| cursor.modified) == timed.modified
}
