//! What happened in a run, as its clients and its jobs saw it: who asked for what, what they were told, what each job really did, which
//! faults there were. [`crate::checker`] holds it against the invariants.

use std::collections::{BTreeMap, HashMap};
use std::fmt;
use std::path::Path;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant, SystemTime};

use anyhow::{Context as _, Result};
use octavius_core::execution::State;
use octavius_proto::v1;

/// Something that happened.
#[derive(Debug, Clone, PartialEq)]
pub struct Event {
    /// When, since the run began.
    pub at: Duration,
    /// What.
    pub what: What,
}

/// What can happen.
#[derive(Debug, Clone, PartialEq)]
pub enum What {
    /// A client asks for an execution; whether it is accepted is not known yet.
    Submitted {
        /// The execution's id.
        id: String,
        /// What its job permits.
        permits: Permits,
    },
    /// A client was told that the execution is accepted.
    Acknowledged {
        /// The execution's id.
        id: String,
    },
    /// A client asks for the execution to stop.
    CancelAsked {
        /// The execution's id.
        id: String,
    },
    /// Someone was shown an execution.
    Seen {
        /// The execution's id.
        id: String,
        /// How.
        by: Reader,
        /// What it was like.
        seen: Seen,
    },
    /// Someone was told that there is no such execution.
    Missing {
        /// The execution's id.
        id: String,
        /// When they asked.
        asked: Duration,
    },
    /// The job itself says that it began.
    Started {
        /// The execution's id.
        id: String,
        /// Which attempt.
        attempt: u32,
    },
    /// The job itself says that it came to its end.
    Ended {
        /// The execution's id.
        id: String,
        /// Which attempt.
        attempt: u32,
    },
    /// A log was read to its end.
    Log {
        /// The execution's id.
        id: String,
        /// Which attempt's.
        attempt: u32,
        /// What was read.
        read: Bytes,
        /// What an attempt prints that runs to its end.
        whole: Bytes,
        /// Whether what was read is the beginning of that.
        prefix: bool,
        /// Whether the answer named a gap, a cut or damage.
        marked: bool,
    },
    /// An apply begins that makes the catalogue hold `jobs` jobs which all bear `tag`.
    Applying {
        /// What tells this state of the catalogue from others.
        tag: String,
        /// How many jobs it has.
        jobs: usize,
    },
    /// Someone read a whole catalogue.
    CatalogRead {
        /// How many jobs bore which tag.
        tags: BTreeMap<String, usize>,
    },
    /// From here on the store cannot be written: it has no quorum, or nobody can reach it.
    StoreAway,
    /// The store can be written again.
    StoreBack,
    /// Something was still there that should have been removed.
    Left {
        /// What.
        what: String,
    },
    /// A fault was made or ended.
    Fault {
        /// Which.
        what: String,
    },
}

/// What a job permits.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Permits {
    /// Longest life of an execution while everything works: its wait and all its attempts.
    pub deadline: Duration,
    /// How often it is run again after a failure.
    pub retries: usize,
    /// Whether it is run again after a loss.
    pub on_lost_retry: bool,
}

/// How someone came to see an execution.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Reader {
    /// By a call that was made at this time. What it shows is not older than that.
    Call(Duration),
    /// On the stream of this number. What it shows may be older than what others know; it never goes back.
    Stream(u64),
}

/// Bytes, by what tells them from others.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Bytes {
    /// How many.
    pub size: u64,
    /// Their CRC-32C.
    pub crc32c: u32,
}

impl Bytes {
    /// Of this text.
    #[must_use]
    pub fn of(bytes: &[u8]) -> Self {
        Self { size: bytes.len() as u64, crc32c: crc32c::crc32c(bytes) }
    }
}

/// An execution as it was shown.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Seen {
    /// Where it is in its life.
    pub state: State,
    /// Why.
    pub reason: String,
    /// The job's exit code.
    pub exit_code: Option<i32>,
    /// When it ended, since the run began, by the controller's clock.
    pub finished: Option<Duration>,
    /// Its attempts.
    pub attempts: Vec<SeenAttempt>,
}

/// An attempt as it was shown.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SeenAttempt {
    /// From 1.
    pub number: u32,
    /// Whether an executor has said that it starts it.
    pub started: bool,
    /// How it ended.
    pub outcome: Option<State>,
    /// What was heard of it after it had been given up.
    pub late: Option<State>,
}

impl Seen {
    /// Reads an execution as the wire has it. `epoch` is when the run began.
    ///
    /// # Errors
    /// Where its state is none.
    pub fn of(execution: &v1::Execution, epoch: SystemTime) -> Result<Self> {
        let state = |wire: i32| -> Result<State> {
            let name = v1::ExecutionState::try_from(wire)?.as_str_name();
            let name = name.trim_start_matches("EXECUTION_STATE_").to_lowercase();
            State::parse(&name).with_context(|| format!("{name} is no state"))
        };
        let ending = |ending: &Option<v1::Ending>| ending.as_ref().map(|ending| state(ending.outcome)).transpose();
        let attempts = execution.attempts.iter().map(|attempt| -> Result<SeenAttempt> {
            Ok(SeenAttempt {
                number: attempt.number,
                started: attempt.starting_at.is_some(),
                outcome: ending(&attempt.ending)?,
                late: ending(&attempt.late)?,
            })
        });
        let finished = execution.finished_at.and_then(|at| SystemTime::try_from(at).ok());
        Ok(Self {
            state: state(execution.state)?,
            reason: execution.reason.clone(),
            exit_code: execution.exit_code,
            finished: finished.map(|at| at.duration_since(epoch).unwrap_or_default()),
            attempts: attempts.collect::<Result<_>>()?,
        })
    }

    /// What must stay as it is once the execution has ended.
    #[must_use]
    pub fn end(&self) -> Option<(State, &str, Option<i32>, Option<Duration>)> {
        self.state.is_terminal().then_some((self.state, self.reason.as_str(), self.exit_code, self.finished))
    }
}

/// Takes down what happens, from any thread.
#[derive(Debug)]
pub struct History {
    begun: Instant,
    epoch: SystemTime,
    inner: Mutex<Inner>,
}

#[derive(Debug, Default)]
struct Inner {
    events: Vec<Event>,
    /// The newest sight of each execution by each kind of reader: one that shows nothing new is not taken down again.
    newest: HashMap<String, Seen>,
    streams: u64,
}

impl Default for History {
    fn default() -> Self {
        Self { begun: Instant::now(), epoch: SystemTime::now(), inner: Mutex::default() }
    }
}

impl History {
    fn inner(&self) -> MutexGuard<'_, Inner> {
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The time since the run began.
    #[must_use]
    pub fn now(&self) -> Duration {
        self.begun.elapsed()
    }

    /// Takes something down that happens now.
    pub fn record(&self, what: What) {
        let at = self.now();
        self.inner().events.push(Event { at, what });
    }

    /// Takes a fault down.
    pub fn fault(&self, what: impl fmt::Display) {
        self.record(What::Fault { what: what.to_string() });
    }

    /// A number for a stream, to take down what is seen on it.
    #[must_use]
    pub fn stream(&self) -> Reader {
        let mut inner = self.inner();
        inner.streams += 1;
        Reader::Stream(inner.streams)
    }

    /// Takes down what someone was shown; again only where it is new, so that the memory is bounded by what happens and not by who looks.
    ///
    /// # Errors
    /// Where the wire's message is no execution.
    pub fn seen(&self, by: Reader, execution: &v1::Execution) -> Result<Seen> {
        let seen = Seen::of(execution, self.epoch)?;
        let at = self.now();
        let mut inner = self.inner();
        if inner.newest.get(&execution.id) != Some(&seen) {
            inner.newest.insert(execution.id.clone(), seen.clone());
            inner.events.push(Event { at, what: What::Seen { id: execution.id.clone(), by, seen: seen.clone() } });
        }
        Ok(seen)
    }

    /// Takes down what jobs wrote into the ledger: lines `start|end ID ATTEMPT SECONDS`, seconds since 1970 with decimals.
    ///
    /// # Errors
    /// Where the file cannot be read, or a whole line of it is none of these.
    pub fn ledger(&self, path: &Path) -> Result<()> {
        let epoch = self.epoch.duration_since(SystemTime::UNIX_EPOCH)?;
        let text = std::fs::read_to_string(path).with_context(|| format!("cannot read {}", path.display()))?;
        let mut inner = self.inner();
        for line in text.lines() {
            let wrong = || format!("the ledger has the line {line:?}");
            let fields: Vec<_> = line.split(' ').collect();
            let [what, id, attempt, at] = fields[..] else { anyhow::bail!(wrong()) };
            let (id, attempt) = (id.to_owned(), attempt.parse().with_context(wrong)?);
            let at = Duration::from_secs_f64(at.parse().with_context(wrong)?).saturating_sub(epoch);
            let what = match what {
                "start" => What::Started { id, attempt },
                "end" => What::Ended { id, attempt },
                _ => anyhow::bail!(wrong()),
            };
            inner.events.push(Event { at, what });
        }
        Ok(())
    }

    /// Everything so far, in order of time.
    #[must_use]
    pub fn events(&self) -> Vec<Event> {
        let mut events = self.inner().events.clone();
        events.sort_by_key(|event| event.at);
        events
    }
}

impl What {
    /// The execution that it is about.
    #[must_use]
    pub fn id(&self) -> Option<&str> {
        match self {
            Self::Submitted { id, .. }
            | Self::Acknowledged { id }
            | Self::CancelAsked { id }
            | Self::Seen { id, .. }
            | Self::Missing { id, .. }
            | Self::Started { id, .. }
            | Self::Ended { id, .. }
            | Self::Log { id, .. } => Some(id),
            Self::Applying { .. }
            | Self::CatalogRead { .. }
            | Self::StoreAway
            | Self::StoreBack
            | Self::Left { .. }
            | Self::Fault { .. } => None,
        }
    }
}

impl fmt::Display for Event {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:>9.3} s  ", self.at.as_secs_f64())?;
        match &self.what {
            What::Submitted { id, .. } => write!(f, "{id} submitted"),
            What::Acknowledged { id } => write!(f, "{id} acknowledged"),
            What::CancelAsked { id } => write!(f, "{id} asked to stop"),
            What::Seen { id, by, seen } => {
                write!(f, "{id} seen {}", seen.state)?;
                if !seen.reason.is_empty() {
                    write!(f, " {}", seen.reason)?;
                }
                for attempt in &seen.attempts {
                    let SeenAttempt { number, started, outcome, late } = attempt;
                    write!(f, ", #{number}{}", if *started { " started" } else { "" })?;
                    outcome.iter().try_for_each(|outcome| write!(f, " {outcome}"))?;
                    late.iter().try_for_each(|late| write!(f, " (late: {late})"))?;
                }
                match by {
                    Reader::Call(asked) => write!(f, " (asked at {:.3})", asked.as_secs_f64()),
                    Reader::Stream(number) => write!(f, " (stream {number})"),
                }
            }
            What::Missing { id, asked } => write!(f, "{id} not found (asked at {:.3})", asked.as_secs_f64()),
            What::Started { id, attempt } => write!(f, "{id} #{attempt}: the job begins"),
            What::Ended { id, attempt } => write!(f, "{id} #{attempt}: the job ends"),
            What::Log { id, attempt, read, whole, prefix, marked } => {
                write!(f, "{id} #{attempt}: log of {} bytes, whole {} (prefix {prefix}, marked {marked})", read.size, whole.size)
            }
            What::Applying { tag, jobs } => write!(f, "applying {tag} with {jobs} jobs"),
            What::CatalogRead { tags } => write!(f, "catalogue read: {tags:?}"),
            What::StoreAway => write!(f, "the store is away"),
            What::StoreBack => write!(f, "the store is back"),
            What::Left { what } => write!(f, "left behind: {what}"),
            What::Fault { what } => write!(f, "fault: {what}"),
        }
    }
}
