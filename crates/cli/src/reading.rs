//! Reading a log, over broken connections and restarts of controllers.

use octavius_core::Timestamp;
use octavius_core::log::Times;
use octavius_proto::to_duration;
use octavius_proto::v1::{self, read_log_response::Part};
use tokio::time::Instant;

use crate::error::{Failure, Outcome};
use crate::exit::Exit;
use crate::session::{Patience, Session};
use crate::wait;

/// Why bytes are missing that the controller neither sent nor told of.
const NOT_SENT: &str = "the controller did not send them";

/// Which log, and from where.
#[derive(Debug, Clone, Default)]
pub struct LogRequest {
    /// The execution.
    pub id: String,
    /// The attempt; 0 for the newest, and with `follow` those after it.
    pub attempt: u32,
    /// So many lines before the end; 0 for all.
    pub tail_lines: u64,
    /// Only what was printed since, by the clock here; lines are whole.
    pub since: Option<Timestamp>,
    /// Go on with what comes.
    pub follow: bool,
    /// Say when the bytes were printed.
    pub times: bool,
}

/// Where the bytes of a log go.
pub trait LogSink {
    /// Takes bytes, and when they were printed, where that was asked for and is known.
    ///
    /// # Errors
    /// Where they cannot be written.
    fn bytes(&mut self, bytes: &[u8], times: &Times) -> Outcome<()>;
    /// Takes a piece that is not there.
    ///
    /// # Errors
    /// Where that cannot be written.
    fn gap(&mut self, gap: &v1::LogGap) -> Outcome<()>;
    /// Another attempt's log begins.
    ///
    /// # Errors
    /// Where that cannot be written.
    fn attempt(&mut self, _number: u32) -> Outcome<()> {
        Ok(())
    }
    /// The attempt's log is sealed, and not what its executor says that the job printed.
    fn damaged(&mut self, _attempt: u32) {}
}

/// How a log ended.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct LogRead {
    /// The attempt that was read last; 0 where none has started.
    pub attempt: u32,
    /// Whether its log is whole; otherwise more may come.
    pub sealed: bool,
    /// How long it is, in bytes.
    pub size: u64,
    /// Whether bytes were given.
    pub shown: bool,
}

/// How far a log has been read.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Position {
    attempt: u32,
    offset: u64,
}

/// What came of a log so far.
#[derive(Debug, Default)]
struct Reading {
    /// Where the next byte is to come from; unknown before the first has come.
    position: Option<Position>,
    shown: bool,
}

impl Reading {
    /// Asks for what comes next. Where to begin is said by the first bytes; whatever is asked after them goes on there.
    fn wire(&self, request: &LogRequest, now: Timestamp) -> v1::ReadLogRequest {
        let LogRequest { id, attempt, tail_lines, since, follow, times } = request.clone();
        let wire = v1::ReadLogRequest { id, follow, times, ..Default::default() };
        match self.position {
            Some(Position { attempt, offset }) => v1::ReadLogRequest { attempt, offset, ..wire },
            None => {
                // By how long ago, since clocks differ; each time anew, since that moment goes further away.
                let since = since.map(|since| to_duration(now.duration_since(since).try_into().unwrap_or_default()));
                v1::ReadLogRequest { attempt, tail_lines, since, ..wire }
            }
        }
    }

    /// Gives one part to `sink`; what the log's end says, where it is that.
    fn take(&mut self, part: Part, request: &LogRequest, sink: &mut impl LogSink) -> Outcome<Option<LogRead>> {
        match part {
            Part::Chunk(chunk) => {
                let v1::LogChunk { attempt, offset, data, times } = chunk;
                let times = times.and_then(|times| Times::try_from(times).ok()).unwrap_or_default();
                self.go_to(attempt, request, offset, sink)?;
                let next = self.position.map_or(offset, |position| position.offset);
                if next < offset {
                    sink.gap(&v1::LogGap { attempt, offset: next, size: offset - next, reason: NOT_SENT.to_owned() })?;
                }
                // a piece may overlap what was shown already
                let skip = usize::try_from(next.saturating_sub(offset)).unwrap_or(usize::MAX);
                if let Some(new) = data.get(skip..).filter(|new| !new.is_empty()) {
                    let part = if skip == 0 { times } else { times.part(skip as u64, data.len() as u64) };
                    sink.bytes(new, &part)?;
                    self.shown = true;
                }
                self.position = Some(Position { attempt, offset: next.max(offset.saturating_add(data.len() as u64)) });
            }
            Part::Gap(gap) => {
                self.go_to(gap.attempt, request, gap.offset, sink)?;
                sink.gap(&gap)?;
                self.position = Some(Position { attempt: gap.attempt, offset: gap.offset.saturating_add(gap.size) });
            }
            Part::End(v1::LogEnd { sealed, size, attempt, damaged }) => {
                if damaged {
                    sink.damaged(attempt);
                }
                return Ok(Some(LogRead { attempt, sealed, size, shown: self.shown }));
            }
        }
        Ok(None)
    }

    /// Before something of an attempt's log: it begins at its first byte, but for where the reading itself begins.
    fn go_to(&mut self, attempt: u32, request: &LogRequest, offset: u64, sink: &mut impl LogSink) -> Outcome<()> {
        match self.position {
            Some(position) if position.attempt == attempt => {}
            Some(_) => {
                sink.attempt(attempt)?;
                self.position = Some(Position { attempt, offset: 0 });
            }
            None => {
                let anywhere = request.tail_lines > 0 || request.since.is_some();
                self.position = Some(Position { attempt, offset: if anywhere { offset } else { 0 } });
            }
        }
        Ok(())
    }
}

/// Reads a log into `sink`; with `follow` until the execution has ended. A connection that breaks is made again, and reading goes on at
/// the byte where it stood.
///
/// # Errors
/// Where the controller refuses, is away for too long, or the sink cannot take more.
pub async fn read_log(session: &Session, request: &LogRequest, sink: &mut impl LogSink) -> Outcome<LogRead> {
    // where nothing has been shown yet and nothing is followed: as patient as with any call
    let (mut patience, mut brief) = (Patience::new(session.timeout()), Patience::of(session.timeout()));
    let mut reading = Reading::default();
    loop {
        // a stream that was taken up again at one attempt ends with it; with attempt 0 the controller goes on by itself
        let resumed = request.attempt == 0 && reading.position.is_some();
        match read_once(session, request, &mut reading, sink, &mut patience).await {
            Ok(Some(read)) => {
                if !request.follow || !resumed {
                    return Ok(read);
                }
                let started = |execution: &v1::Execution| next_started(execution, read.attempt);
                let execution = wait::watch(session, &request.id, |execution| started(execution).is_some()).await?;
                let Some(attempt) = started(&execution) else { return Ok(read) };
                sink.attempt(attempt)?;
                reading.position = Some(Position { attempt, offset: 0 });
            }
            Ok(None) => {
                let broken = Failure::new(Exit::Unreachable, anyhow::Error::msg("the controller ended the stream"));
                wait::again(session, &mut patience, broken).await?;
            }
            Err(failure) => {
                let patient = request.follow || reading.shown;
                wait::again(session, if patient { &mut patience } else { &mut brief }, failure).await?;
            }
        }
    }
}

/// The first attempt after `after` that has started.
fn next_started(execution: &v1::Execution, after: u32) -> Option<u32> {
    execution
        .attempts
        .iter()
        .filter(|attempt| attempt.starting_at.is_some())
        .map(|attempt| attempt.number)
        .find(|&number| number > after)
}

/// Reads one stream; what the log's end said, if it came to that.
async fn read_once(
    session: &Session,
    request: &LogRequest,
    reading: &mut Reading,
    sink: &mut impl LogSink,
    patience: &mut Patience,
) -> Outcome<Option<LogRead>> {
    let wire = reading.wire(request, Timestamp::now());
    let mut stream = session.call_once(async |to| to.logs().read_log(wire.clone()).await).await?;
    let opened = Instant::now();
    while let Some(message) = patience.next(&mut stream, opened).await? {
        // without a part: something that a newer controller says
        let Some(part) = message.part else { continue };
        if let Some(read) = reading.take(part, request, sink)? {
            return Ok(Some(read));
        }
    }
    Ok(None)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// What came, as text.
    #[derive(Default)]
    struct Heard(Vec<String>);

    impl LogSink for Heard {
        fn bytes(&mut self, bytes: &[u8], times: &Times) -> Outcome<()> {
            let times: Vec<_> = times.marks().iter().map(|mark| format!(" {}@{}", mark.at, mark.unix_ms)).collect();
            self.0.push(format!("{}{}", String::from_utf8_lossy(bytes), times.concat()));
            Ok(())
        }
        fn gap(&mut self, gap: &v1::LogGap) -> Outcome<()> {
            self.0.push(format!("gap {}+{} {}", gap.offset, gap.size, gap.reason));
            Ok(())
        }
        fn attempt(&mut self, number: u32) -> Outcome<()> {
            self.0.push(format!("attempt {number}"));
            Ok(())
        }
        fn damaged(&mut self, attempt: u32) {
            self.0.push(format!("damaged {attempt}"));
        }
    }

    fn chunk(attempt: u32, offset: u64, data: &'static str, times: &[(u64, i64)]) -> Part {
        let mut known = Times::default();
        times.iter().for_each(|&(at, unix_ms)| known.push(at, unix_ms));
        let times = (!known.is_empty()).then(|| known.into());
        Part::Chunk(v1::LogChunk { attempt, offset, data: data.into(), times })
    }

    fn gap(attempt: u32, offset: u64, size: u64) -> Part {
        Part::Gap(v1::LogGap { attempt, offset, size, reason: "cut".into() })
    }

    fn heard(request: &LogRequest, reading: &mut Reading, parts: Vec<Part>) -> Vec<String> {
        let mut heard = Heard::default();
        for part in parts {
            assert_eq!(reading.take(part, request, &mut heard).unwrap(), None);
        }
        heard.0
    }

    fn asks(request: &LogRequest, reading: &Reading) -> (u32, u64, u64, Option<i64>) {
        let wire = reading.wire(request, Timestamp::from_second(1000).unwrap());
        (wire.attempt, wire.offset, wire.tail_lines, wire.since.map(|since| since.seconds))
    }

    #[test]
    fn after_a_break_it_goes_on_where_it_stood() {
        let since = Timestamp::from_second(400).unwrap();
        let request = LogRequest { tail_lines: 5, since: Some(since), follow: true, times: true, ..LogRequest::default() };
        let mut reading = Reading::default();
        assert_eq!(asks(&request, &reading), (0, 0, 5, Some(600)));
        assert!(reading.wire(&request, since).times);
        let parts = vec![chunk(1, 100, "abc", &[(0, 10)]), chunk(1, 103, "d", &[(0, 20)])];
        assert_eq!(heard(&request, &mut reading, parts), ["abc 0@10", "d 0@20"]);
        assert_eq!(asks(&request, &reading), (1, 104, 0, None));
        // a piece that was sent in part already, as a newer controller may cut it
        let parts = vec![chunk(1, 98, "yzabc", &[(0, 10)]), chunk(1, 101, "bcdefg", &[(0, 10), (2, 20), (4, 40)])];
        assert_eq!(heard(&request, &mut reading, parts), ["efg 0@20 1@40"]);
        assert_eq!(heard(&request, &mut reading, vec![chunk(2, 0, "next", &[])]), ["attempt 2", "next"]);
        assert_eq!(asks(&request, &reading), (2, 4, 0, None));
    }

    #[test]
    fn nothing_is_missing_in_silence() {
        let request = LogRequest { attempt: 1, ..LogRequest::default() };
        let mut reading = Reading::default();
        let left_out = format!("gap 0+3 {NOT_SENT}");
        assert_eq!(heard(&request, &mut reading, vec![chunk(1, 3, "def", &[])]), [&left_out, "def"]);
        let parts = vec![gap(1, 6, 4), chunk(1, 10, "k", &[]), chunk(1, 13, "n", &[]), gap(2, 0, 2), chunk(2, 2, "c", &[])];
        let told = format!("gap 11+2 {NOT_SENT}");
        assert_eq!(heard(&request, &mut reading, parts), ["gap 6+4 cut", "k", &told, "n", "attempt 2", "gap 0+2 cut", "c"]);
    }

    #[test]
    fn the_end_says_what_there_is() {
        let (request, mut reading, mut heard) = (LogRequest::default(), Reading::default(), Heard::default());
        let end = Part::End(v1::LogEnd { sealed: true, size: 3, attempt: 1, damaged: true });
        let read = LogRead { attempt: 1, sealed: true, size: 3, shown: false };
        assert_eq!(reading.take(end.clone(), &request, &mut heard).unwrap(), Some(read));
        reading.take(chunk(1, 0, "abc", &[]), &request, &mut heard).unwrap();
        assert_eq!(reading.take(end, &request, &mut heard).unwrap(), Some(LogRead { shown: true, ..read }));
        assert_eq!(heard.0, ["damaged 1", "abc", "damaged 1"]);
    }

    #[test]
    fn a_moment_that_is_still_to_come_is_now() {
        let request = LogRequest { since: Some(Timestamp::from_second(2000).unwrap()), ..LogRequest::default() };
        assert_eq!(asks(&request, &Reading::default()), (0, 0, 0, Some(0)));
    }
}
