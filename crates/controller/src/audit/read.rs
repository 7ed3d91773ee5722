//! Reading the trail: in order of the store's revisions, which is that of the changes themselves, whatever the clocks of the controllers say.

use std::cmp::{Ordering, Reverse};
use std::collections::BinaryHeap;
use std::sync::Arc;

use octavius_core::{ExecutionId, Timestamp};
use octavius_proto::{Fault, InvalidField, to_timestamp, v1};
use octavius_store::record::AuditRecord;
use octavius_store::{Entry, Event, Range, Revision, Store, StoreError, codec, key};
use tokio::sync::mpsc;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;
use tonic::Status;

use super::CLOCKS_DIFFER_HOURS;
use crate::fault;
use crate::streams::{Responses, until_stop};

/// Keys read at once, and records told at once.
const PAGE: usize = 500;

/// Records that are held back so that those come in order whose controllers' clocks differ: their keys stand where the clocks put them. At the
/// rate of a busy system that is half a minute; with a quiet one, days.
const HELD_BACK: usize = 10_000;

/// Where a record stands in the trail. Several of one revision are ordered by their ids.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Position {
    pub(crate) revision: Revision,
    id: ExecutionId,
}

impl Position {
    /// Before everything that was written after this revision.
    pub(crate) fn after(revision: Revision) -> Self {
        Self { revision, id: ExecutionId::from_bits(u128::MAX) }
    }
}

/// A record and where it stands.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Audited {
    pub(crate) position: Position,
    pub(crate) record: AuditRecord,
}

impl Ord for Audited {
    fn cmp(&self, other: &Self) -> Ordering {
        self.position.cmp(&other.position)
    }
}

impl PartialOrd for Audited {
    fn partial_cmp(&self, other: &Self) -> Option<Ordering> {
        Some(self.cmp(other))
    }
}

impl Audited {
    fn of(entry: &Entry) -> Option<Self> {
        let (hour, id) = key::audited_of(&entry.key)?;
        // What a newer version wrote is not left out: that something happened is to be seen.
        let record = codec::decode(entry).unwrap_or_else(|error| {
            tracing::error!(%error, "a record of the audit trail cannot be read");
            AuditRecord {
                at: Timestamp::from_second(i64::try_from(hour * 3600).unwrap_or_default()).unwrap_or_default(),
                user: String::new(),
                role: None,
                token: String::new(),
                from: String::new(),
                action: "unreadable".to_owned(),
                object: String::new(),
                refused: String::new(),
                details: [("key".to_owned(), entry.key.to_string())].into(),
            }
        });
        Some(Self { position: Position { revision: entry.created, id }, record })
    }

    /// The record as others see it.
    pub(crate) fn to_wire(&self) -> v1::AuditRecord {
        let AuditRecord { at, user, role, token, from, action, object, refused, details } = self.record.clone();
        let result = if refused.is_empty() { v1::AuditResult::Done } else { v1::AuditResult::Refused };
        v1::AuditRecord {
            position: Some(v1::AuditPosition { revision: self.position.revision, id: self.position.id.to_string() }),
            at: Some(to_timestamp(at)),
            user,
            role: role.map(|role| role.to_string()).unwrap_or_default(),
            token_id: token,
            from,
            action,
            object,
            result: result.into(),
            reason: refused,
            details: details.into_iter().collect(),
        }
    }
}

/// What there is of the trail at one moment, piece by piece.
#[derive(Debug)]
pub(crate) struct Backlog {
    range: Option<Range>,
    /// The moment, once the first page was read.
    until: Revision,
    after: Option<Position>,
    since: Option<Timestamp>,
    waiting: BinaryHeap<Reverse<Audited>>,
}

impl Backlog {
    /// From the hour on (since 1970, UTC), what comes after the position and is not older than `since`.
    pub(crate) fn new(from_hour: u64, after: Option<Position>, since: Option<Timestamp>) -> Self {
        let range = Range { after: Some(key::audit_from(from_hour)), ..Range::of(key::audit(), PAGE) };
        Self { range: Some(range), until: 0, after, since, waiting: BinaryHeap::new() }
    }

    /// The revision that it shows: what comes later is not in it.
    pub(crate) fn until(&self) -> Revision {
        self.until
    }

    fn takes(&self, audited: &Audited) -> bool {
        audited.position.revision <= self.until
            && self.after.is_none_or(|after| audited.position > after)
            && self.since.is_none_or(|since| audited.record.at >= since)
    }

    /// The next records in their order; none at the end.
    pub(crate) async fn next(&mut self, store: &dyn Store) -> Result<Option<Vec<Audited>>, StoreError> {
        while let Some(range) = self.range.take() {
            let page = store.range(&range).await.inspect_err(|_| self.range = Some(range.clone()))?;
            if self.until == 0 {
                self.until = page.revision;
            }
            // Each page is as of now: what goes meanwhile is old enough not to be missed, what comes is beyond `until`.
            self.range = range.next(&page).map(|next| Range { at: None, ..next });
            for audited in page.entries.iter().filter_map(Audited::of) {
                if self.takes(&audited) {
                    self.waiting.push(Reverse(audited));
                }
            }
            if self.waiting.len() > HELD_BACK {
                return Ok(Some(self.pop(self.waiting.len() - HELD_BACK)));
            }
        }
        let some = self.pop(PAGE);
        Ok((!some.is_empty()).then_some(some))
    }

    fn pop(&mut self, count: usize) -> Vec<Audited> {
        std::iter::from_fn(|| self.waiting.pop().map(|Reverse(audited)| audited)).take(count).collect()
    }
}

/// The first hour in which a record may stand that was written at this time.
pub(crate) fn first_hour(at: Timestamp) -> u64 {
    key::hour_of(at).saturating_sub(CLOCKS_DIFFER_HOURS)
}

/// What somebody asked for.
struct Asked {
    since: Option<Timestamp>,
    after: Option<Position>,
    follow: bool,
}

impl TryFrom<v1::ReadAuditRequest> for Asked {
    type Error = InvalidField;
    fn try_from(request: v1::ReadAuditRequest) -> Result<Self, InvalidField> {
        let v1::ReadAuditRequest { since, follow, after } = request;
        let since = since.as_ref().map(|since| octavius_proto::timestamp("since", since)).transpose()?;
        let position = |after: v1::AuditPosition| {
            let id = octavius_proto::execution_id("after.id", &after.id)?;
            Ok::<_, InvalidField>(Position { revision: after.revision, id })
        };
        Ok(Self { since, after: after.map(position).transpose()?, follow })
    }
}

type Voice = mpsc::Sender<Result<v1::ReadAuditResponse, Status>>;

/// Nobody listens any more.
struct Gone;

async fn tell(voice: &Voice, audited: &[Audited], caught_up: bool) -> Result<(), Gone> {
    let records = audited.iter().map(Audited::to_wire).collect();
    voice.send(Ok(v1::ReadAuditResponse { records, caught_up })).await.map_err(|_| Gone)
}

/// Tells the trail until it is told, or nobody listens.
async fn tell_all(store: &dyn Store, asked: Asked, voice: &Voice) -> Result<Result<(), Gone>, StoreError> {
    let Asked { since, mut after, follow } = asked;
    let mut from_hour = since.map_or(0, first_hour);
    let mut caught_up = false;
    loop {
        let mut backlog = Backlog::new(from_hour, after, since);
        while let Some(some) = backlog.next(store).await? {
            if tell(voice, &some, false).await.is_err() {
                return Ok(Err(Gone));
            }
        }
        if !caught_up {
            caught_up = true;
            if tell(voice, &[], true).await.is_err() {
                return Ok(Err(Gone));
            }
        }
        if !follow {
            return Ok(Ok(()));
        }
        from_hour = first_hour(Timestamp::now());
        after = Some(Position::after(backlog.until()));
        let mut watch = match store.watch(&key::audit(), backlog.until()).await {
            Err(StoreError::Compacted { .. }) => continue,
            watch => watch?,
        };
        loop {
            let changed = tokio::select! {
                changed = watch.next() => changed,
                () = voice.closed() => return Ok(Err(Gone)),
            };
            let batch = match changed {
                Err(StoreError::Compacted { .. }) => break, // some were missed; they are read
                changed => changed?,
            };
            let mut some: Vec<_> = batch.events.iter().filter_map(put).filter_map(Audited::of).collect();
            some.sort_unstable();
            after = Some(Position::after(batch.revision));
            // A position from before the store was restored may be ahead of it: what comes is new all the same.
            if !some.is_empty() && tell(voice, &some, false).await.is_err() {
                return Ok(Err(Gone));
            }
        }
    }
}

fn put(event: &Event) -> Option<&Entry> {
    match event {
        // One that is written once more is the same: its transaction's answer was lost.
        Event::Put(entry) if entry.created == entry.modified => Some(entry),
        Event::Put(_) | Event::Delete(_) => None,
    }
}

/// Begins to tell the trail.
pub(crate) fn begin(
    store: Arc<dyn Store>,
    request: v1::ReadAuditRequest,
    tasks: &TaskTracker,
    shutdown: CancellationToken,
) -> Result<Responses<v1::ReadAuditResponse>, Fault> {
    let asked = Asked::try_from(request)?;
    let (voice, ears) = mpsc::channel(4);
    let stopping = shutdown.clone();
    tasks.spawn(async move {
        let telling = async {
            if let Err(error) = tell_all(&*store, asked, &voice).await {
                let _ = voice.send(Err(fault::from_store(error).into())).await; // nobody may listen any more
            }
        };
        tokio::select! {
            () = telling => {}
            () = stopping.cancelled() => {}
        }
    });
    Ok(until_stop(ears, shutdown))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::audit::{Act, What};
    use octavius_store::{Commit, EmbeddedOptions, Txn, open_embedded};

    /// Records whose keys the clocks have put in another order than they were written in are told as they were written.
    #[tokio::test]
    async fn the_order_is_that_of_the_revisions() {
        let dir = tempfile::tempdir().unwrap();
        let store = open_embedded(dir.path(), EmbeddedOptions::default()).unwrap();
        let mut revisions = Vec::new();
        for (number, hour) in [7, 6, 6, 8, 7, 5].into_iter().enumerate() {
            let act = Act::new(None, None, What::new("job.pause", "job", &number.to_string()));
            let value = codec::encode(&act.record(""));
            // Ids that fall, too.
            let id = ExecutionId::from_bits(1000 - number as u128);
            let Commit::Done(revision) = store.commit(Txn::new().put(key::audited(hour, id), value)).await.unwrap() else {
                panic!()
            };
            revisions.push(revision);
        }
        let told = async |mut backlog: Backlog| {
            let mut objects = Vec::new();
            while let Some(some) = backlog.next(&*store).await.unwrap() {
                objects.extend(some.into_iter().map(|audited| audited.record.object));
            }
            objects.join(" ")
        };
        assert_eq!(told(Backlog::new(0, None, None)).await, "job/0 job/1 job/2 job/3 job/4 job/5");
        assert_eq!(told(Backlog::new(6, None, None)).await, "job/0 job/1 job/2 job/3 job/4");
        assert_eq!(told(Backlog::new(0, Some(Position::after(revisions[3])), None)).await, "job/4 job/5");
        let earlier = Position { revision: revisions[2], id: ExecutionId::from_bits(1) };
        assert_eq!(told(Backlog::new(0, Some(earlier), None)).await, "job/2 job/3 job/4 job/5", "of one revision, by the id");
        let later = Timestamp::now() + std::time::Duration::from_secs(3600);
        assert_eq!(told(Backlog::new(0, None, Some(later))).await, "");
    }

    #[tokio::test]
    async fn what_cannot_be_read_is_told_as_such() {
        let dir = tempfile::tempdir().unwrap();
        let store = open_embedded(dir.path(), EmbeddedOptions::default()).unwrap();
        store.commit(Txn::new().put(key::audited(7, ExecutionId::from_bits(1)), &b"\x63new"[..])).await.unwrap();
        let some = Backlog::new(0, None, None).next(&*store).await.unwrap().unwrap();
        assert_eq!((some.len(), some[0].record.action.as_str()), (1, "unreadable"));
    }
}
