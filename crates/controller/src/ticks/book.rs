//! What is known of schedules: which jobs have one, how far each has been seen to, and who is due when. Filled by the catalogues and by the
//! watch of the cursors; only what has changed is looked at again.

use std::collections::{BTreeSet, HashMap, HashSet};

use jiff::SignedDuration;
use octavius_core::definition::Schedule;
use octavius_core::schedule::{Due, Ticks};
use octavius_core::{CatalogName, Digest, JobName, Timestamp};
use octavius_store::record::TickRecord;
use octavius_store::{Entry, Event, Revision, codec, key};

use crate::mirror::Listener;
use crate::ticks::{GRACE, Ticker};

/// A job with a schedule, as its catalogue's head has it.
#[derive(Debug, Clone)]
pub(super) struct Scheduled {
    pub(super) name: JobName,
    pub(super) catalog: CatalogName,
    pub(super) definition: Digest,
    pub(super) schedule: Schedule,
}

impl Scheduled {
    /// What the ticks depend on, and what of missed ones is made good: with another one, they begin anew.
    pub(super) fn digest(&self) -> Digest {
        let Schedule { cron, time_zone, catch_up, overlap: _ } = &self.schedule;
        Digest::of(&codec::encode(&(&self.catalog, cron, time_zone, catch_up)))
    }
}

/// A cursor and the revision that wrote it.
#[derive(Debug, Clone)]
pub(super) struct Cursor {
    pub(super) record: TickRecord,
    pub(super) modified: Revision,
}

/// What is known. All names are folded.
#[derive(Debug, Default)]
pub(super) struct Book {
    jobs: HashMap<String, Scheduled>,
    cursors: HashMap<String, Cursor>,
    /// Whether the cursors have been listed: before, one that is not here may be there.
    followed: bool,
    /// When each job is to be attended to. One that never is does not stand here.
    times: HashMap<String, Timestamp>,
    by_time: BTreeSet<(Timestamp, String)>,
    /// Those whose time is to be found anew.
    changed: HashSet<String>,
    /// Cursors whose jobs may have no schedule any more.
    loose: HashSet<String>,
}

impl Book {
    /// Takes in a job as its catalogue has it now.
    pub(super) fn put_job(&mut self, job: Scheduled) {
        let folded = job.name.folded();
        self.changed.insert(folded.clone());
        self.jobs.insert(folded, job);
    }

    /// Forgets a job that this catalogue has no more, or without schedule.
    pub(super) fn remove_job(&mut self, folded: &str, catalog: &CatalogName) {
        if self.jobs.get(folded).is_some_and(|job| job.catalog == *catalog) {
            self.jobs.remove(folded);
            self.set_time(folded, None);
        }
        if self.cursors.contains_key(folded) {
            self.loose.insert(folded.to_owned());
        }
    }

    /// Takes in a cursor as it is at `revision`, if nothing newer is known.
    pub(super) fn note(&mut self, folded: &str, cursor: Option<Cursor>, revision: Revision) {
        if self.cursors.get(folded).is_some_and(|known| known.modified > revision) {
            return;
        }
        match cursor {
            Some(cursor) => drop(self.cursors.insert(folded.to_owned(), cursor)),
            None => drop(self.cursors.remove(folded)),
        }
        if self.jobs.contains_key(folded) {
            self.changed.insert(folded.to_owned());
        } else if self.cursors.contains_key(folded) {
            self.loose.insert(folded.to_owned());
        }
    }

    /// Takes in a cursor as the store has it.
    pub(super) fn take_in(&mut self, entry: &Entry) {
        let Some(folded) = key::ticking_job(&entry.key) else { return };
        match codec::decode(entry) {
            Ok(record) => self.note(folded, Some(Cursor { record, modified: entry.modified }), entry.modified),
            Err(error) => tracing::error!(%error, "the schedule's cursor of a job"),
        }
    }

    pub(super) fn is_followed(&self) -> bool {
        self.followed
    }

    pub(super) fn job(&self, folded: &str) -> Option<(&Scheduled, Option<&Cursor>)> {
        Some((self.jobs.get(folded)?, self.cursors.get(folded)))
    }

    /// Finds anew when some of the jobs are due of which something has changed; whether any are left.
    pub(super) fn plan(&mut self, at_most: usize, now: Timestamp) -> bool {
        let some: Vec<String> = self.changed.iter().take(at_most).cloned().collect();
        for folded in some {
            self.changed.remove(&folded);
            let time = self.jobs.get(&folded).and_then(|job| time_of(job, self.cursors.get(&folded), now));
            self.set_time(&folded, time);
        }
        !self.changed.is_empty()
    }

    fn set_time(&mut self, folded: &str, time: Option<Timestamp>) {
        if let Some(before) = self.times.remove(folded) {
            self.by_time.remove(&(before, folded.to_owned()));
        }
        if let Some(time) = time {
            self.times.insert(folded.to_owned(), time);
            self.by_time.insert((time, folded.to_owned()));
        }
    }

    /// Those that are to be attended to by now.
    pub(super) fn due(&self, now: Timestamp) -> Vec<String> {
        self.by_time.iter().take_while(|(time, _)| *time <= now).map(|(_, folded)| folded.clone()).collect()
    }

    /// When the next one after `now` is due.
    pub(super) fn next(&self, now: Timestamp) -> Option<Timestamp> {
        self.by_time.iter().map(|(time, _)| *time).find(|time| *time > now)
    }

    /// Some of the cursors whose jobs have no schedule, by what is known of the catalogues.
    pub(super) fn loose(&mut self, at_most: usize) -> Vec<(String, Cursor)> {
        let Self { loose, jobs, cursors, .. } = self;
        loose.retain(|folded| cursors.contains_key(folded) && !jobs.contains_key(folded));
        loose.iter().take(at_most).filter_map(|folded| Some((folded.clone(), cursors.get(folded)?.clone()))).collect()
    }

    #[cfg(test)]
    pub(super) fn sizes(&self) -> [usize; 4] {
        [self.jobs.len(), self.cursors.len(), self.times.len(), self.by_time.len()]
    }
}

/// When a job is to be attended to; at once where its cursor is to be set.
fn time_of(job: &Scheduled, cursor: Option<&Cursor>, now: Timestamp) -> Option<Timestamp> {
    let Some(record) = cursor.map(|cursor| &cursor.record).filter(|record| record.schedule == job.digest()) else {
        return Some(now);
    };
    let grace = SignedDuration::try_from(GRACE).unwrap_or_default();
    match Ticks::of(&job.schedule).ok()?.due(job.schedule.catch_up, record.last, now, grace) {
        Due::Wait(next) => next,
        Due::Run(_) | Due::Missed(_) => Some(now),
    }
}

/// Feeds the book with the cursors: everything under `tick/`.
pub(super) struct CursorsListener(pub(super) std::sync::Arc<Ticker>);

impl Listener for CursorsListener {
    fn reset(&mut self, entries: Vec<Entry>, revision: Revision) {
        let mut book = self.0.book();
        let listed: HashSet<&str> = entries.iter().filter_map(|entry| key::ticking_job(&entry.key)).collect();
        let gone: Vec<String> = book.cursors.keys().filter(|known| !listed.contains(known.as_str())).cloned().collect();
        for folded in gone {
            book.note(&folded, None, revision);
        }
        entries.iter().for_each(|entry| book.take_in(entry));
        book.followed = true;
        drop(book);
        self.0.woken.notify_one();
    }

    fn change(&mut self, event: Event, revision: Revision) {
        let mut book = self.0.book();
        match event {
            Event::Put(entry) => book.take_in(&entry),
            Event::Delete(at) => {
                if let Some(folded) = key::ticking_job(&at) {
                    book.note(folded, None, revision);
                }
            }
        }
        drop(book);
        self.0.woken.notify_one();
    }
}
