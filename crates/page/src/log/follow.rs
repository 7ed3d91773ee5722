//! A log as it comes, as server-sent events. Each event bears a batch of rows, however fast a job prints, and where the next one begins: a
//! browser that lost the connection says that of the last event, and nothing is lost or repeated.

use std::convert::Infallible;
use std::time::Duration;

use bytes::{Buf as _, Bytes};
use futures::Stream;
use octavius_proto::Fault;
use serde::Serialize;
use tokio::time::{Instant, timeout, timeout_at};
use tonic::{Code, Status};

use super::parts::{Log, Part, Parts};
use super::rows::Rows;
use super::view::{VIEW_ROWS, note};

/// Events come no faster than that: a browser shows them one by one.
const APART: Duration = Duration::from_millis(50);

/// Bytes of a log in one event.
const EVENT_BYTES: usize = 64 * 1024;

/// Bytes that are made to rows at once, where no line ends sooner.
const STEP_BYTES: usize = 4 * 1024;

/// How often something is sent where nothing comes, so that either side finds out when the other has gone.
const BEAT: Duration = Duration::from_secs(15);

/// How often it is looked whether another attempt has started: it could start just between a look and a call.
const LOOK_AGAIN: Duration = Duration::from_secs(5);

/// How long a browser waits before it connects again, in milliseconds.
const RETRY: &str = "retry: 1000\n\n";

/// A place in an execution's logs, as events name it: `ATTEMPT-OFFSET`.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(super) struct Position {
    /// The attempt; 0 where none has started.
    pub(super) attempt: u32,
    pub(super) offset: u64,
}

impl Position {
    pub(super) fn parse(text: &str) -> Option<Self> {
        let (attempt, offset) = text.split_once('-')?;
        Some(Self { attempt: attempt.parse().ok()?, offset: offset.parse().ok()? })
    }
}

/// A batch of rows.
#[derive(Debug, Serialize)]
struct Batch<'a> {
    start: u64,
    end: u64,
    html: &'a str,
}

/// How a log ended.
#[derive(Debug, Serialize)]
struct Ended {
    size: u64,
    sealed: bool,
    /// What is to be said of it.
    note: String,
}

/// One who follows.
pub(super) struct Follower {
    log: Log,
    /// Whether the attempts after this one are followed too.
    goes_on: bool,
    attempt: u32,
    rows: Rows,
    /// Where the rows begin that have not been sent.
    begins: u64,
    parts: Parts,
    /// Bytes that came and are not yet rows.
    rest: Bytes,
    stage: Stage,
    /// What came and has not been looked at.
    then: Option<Result<Part, Status>>,
    sent: Instant,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Stage {
    /// Nothing has been sent.
    Begin,
    /// An attempt's log is read.
    Reading,
    /// The attempt is over; the execution may have another.
    Between,
    /// Everything has been told.
    Over,
}

/// How much one event tells.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
struct Told {
    bytes: usize,
    rows: usize,
}

impl Told {
    fn is_enough(self) -> bool {
        self.bytes >= EVENT_BYTES || self.rows >= VIEW_ROWS
    }
}

impl Follower {
    /// Follows from a place on, where a row begins; with `goes_on` also the attempts after that.
    ///
    /// # Errors
    /// Where the log cannot be read.
    pub(super) async fn new(log: &Log, from: Position, goes_on: bool) -> Result<Self, Status> {
        let log = log.of(from.attempt);
        let parts = log.read(from.offset, true).await?;
        Ok(Self {
            log,
            goes_on,
            attempt: from.attempt,
            rows: Rows::new(from.offset),
            begins: from.offset,
            parts,
            rest: Bytes::new(),
            stage: Stage::Begin,
            then: None,
            sent: Instant::now(),
        })
    }

    /// The events, each as it goes over the wire. Nothing is read ahead of who takes them.
    pub(super) fn events(self) -> impl Stream<Item = Result<Bytes, Infallible>> {
        futures::stream::unfold(self, |mut follower| async move {
            let text = follower.next().await?;
            Some((Ok(Bytes::from(text)), follower))
        })
    }

    /// What is sent next; none where that is all.
    async fn next(&mut self) -> Option<String> {
        if self.stage == Stage::Begin {
            self.stage = Stage::Reading;
            return Some(RETRY.to_owned());
        }
        if self.stage == Stage::Over {
            return None;
        }
        match self.gather().await {
            Ok(text) => Some(text),
            Err(status) => {
                self.stage = Stage::Over;
                // A controller that stops, or a store that is away: the browser connects again, and another may answer.
                let passes = matches!(status.code(), Code::Unavailable | Code::DeadlineExceeded | Code::ResourceExhausted);
                (!passes).then(|| event("failed", None, &Fault::from_status(&status).message))
            }
        }
    }

    /// Gathers what comes until it is time for an event.
    async fn gather(&mut self) -> Result<String, Status> {
        if self.then.is_none() && self.rest.is_empty() {
            let patience = if self.stage == Stage::Between { LOOK_AGAIN } else { BEAT };
            match timeout(patience, self.parts.next()).await {
                Ok(part) => self.then = Some(part),
                Err(_) => {
                    let mut text = ":\n\n".to_owned();
                    if self.stage == Stage::Between {
                        self.look_for_another(self.rows.row_begins(), &mut text).await?;
                    }
                    return Ok(text);
                }
            }
        }
        let (mut html, mut text, mut told) = (String::new(), String::new(), Told::default());
        let due = self.sent + APART;
        let turn = loop {
            self.make_rows(&mut html, &mut told);
            if !self.rest.is_empty() || told.is_enough() {
                break None;
            }
            let part = match self.then.take() {
                Some(part) => Ok(part),
                None => timeout_at(due, self.parts.next()).await,
            };
            match part {
                Ok(Ok(Part::Bytes(_, data))) => self.rest = data,
                Ok(Ok(Part::Gap(gap))) => {
                    self.rows.gap(gap.offset, gap.size, &gap.reason, &mut html);
                    told.rows += 1;
                }
                Ok(Ok(turn)) => break Some(turn),
                Ok(Err(status)) if told == Told::default() => return Err(status),
                // What came before it is told first.
                Ok(Err(status)) => {
                    self.then = Some(Err(status));
                    break None;
                }
                Err(_) => break None,
            }
        };
        match turn {
            None => self.tell_rows(html, &mut text),
            Some(turn) => self.turn(turn, html, told, &mut text).await?,
        }
        // A job that prints without a pause is not read faster than it can be shown.
        tokio::time::sleep_until(due).await;
        self.sent = Instant::now();
        Ok(text)
    }

    /// Makes rows of what came, as far as it fits into one event.
    fn make_rows(&mut self, html: &mut String, told: &mut Told) {
        while !self.rest.is_empty() && !told.is_enough() {
            let step = self.rest.len().min(STEP_BYTES);
            let step = self.rest[..step].iter().position(|byte| *byte == b'\n').map_or(step, |line| line + 1);
            self.rows.take(&self.rest[..step], html);
            self.rest.advance(step);
            told.bytes += step;
            told.rows += 1;
        }
    }

    /// The event with these rows, and with the one that has not ended.
    fn tell_rows(&mut self, mut html: String, out: &mut String) {
        self.rows.open(&mut html);
        let end = self.rows.row_begins();
        let batch = Batch { start: self.begins, end, html: &html };
        out.push_str(&event("rows", Some(Position { attempt: self.attempt, offset: end }), &json(&batch)));
        self.begins = end;
    }

    /// Another attempt's log begins, or this one's ends: after the rows that came before that.
    async fn turn(&mut self, turn: Part, mut html: String, told: Told, out: &mut String) -> Result<(), Status> {
        match turn {
            Part::Attempt(attempt) if self.attempt == 0 => {
                self.attempt = attempt;
                out.push_str(&event("attempt", Some(Position { attempt, offset: 0 }), &attempt.to_string()));
            }
            Part::Attempt(attempt) => {
                if told != Told::default() {
                    self.tell_rows(html, out);
                }
                self.begin_attempt(attempt, out).await?;
            }
            Part::End(end) if self.goes_on && self.stage == Stage::Reading && end.attempt > 0 => {
                if told != Told::default() {
                    self.tell_rows(html, out);
                }
                self.attempt = end.attempt;
                self.look_for_another(end.size, out).await?;
            }
            Part::End(end) => {
                self.rows.finish(&mut html);
                if !html.is_empty() {
                    self.tell_rows(html, out);
                }
                let position = Position { attempt: self.attempt, offset: self.rows.row_begins() };
                let ended = Ended { size: end.size, sealed: end.sealed, note: note(&end, true) };
                out.push_str(&event("end", Some(position), &json(&ended)));
                self.stage = Stage::Over;
            }
            Part::Bytes(..) | Part::Gap(_) => {}
        }
        Ok(())
    }

    /// Goes on with the next attempt, where one has started; otherwise waits for one, or for the execution's end.
    async fn look_for_another(&mut self, size: u64, out: &mut String) -> Result<(), Status> {
        let newest = self.log.of(0).end().await?.attempt;
        if newest > self.attempt {
            return self.begin_attempt(self.attempt + 1, out).await;
        }
        self.parts = self.log.of(self.attempt).read_on(size).await?;
        self.stage = Stage::Between;
        Ok(())
    }

    /// Goes on with an attempt's log, from its first byte on.
    async fn begin_attempt(&mut self, attempt: u32, out: &mut String) -> Result<(), Status> {
        self.parts = self.log.of(attempt).read(0, true).await?;
        (self.attempt, self.rows, self.begins, self.stage) = (attempt, Rows::new(0), 0, Stage::Reading);
        out.push_str(&event("attempt", Some(Position { attempt, offset: 0 }), &attempt.to_string()));
        Ok(())
    }
}

fn json(value: &impl Serialize) -> String {
    // Numbers and texts: that cannot fail.
    serde_json::to_string(value).unwrap_or_default()
}

/// An event as it goes over the wire; `data` is one line.
fn event(name: &str, id: Option<Position>, data: &str) -> String {
    let id = id.map(|Position { attempt, offset }| format!("id: {attempt}-{offset}\n")).unwrap_or_default();
    format!("{id}event: {name}\ndata: {data}\n\n")
}
