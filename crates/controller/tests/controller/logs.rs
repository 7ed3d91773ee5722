//! Logs: what a job printed is what is read, whole, in order, and to the end.

use std::time::Duration;

use octavius_proto::client::Connection;
use octavius_proto::v1::read_log_response::Part;
use octavius_proto::v1::{self, ExecutionState as S, Verdict};
use octavius_proto::{Fault, reason};
use octavius_store::{Txn, key};
use tonic::Code;

use crate::fake::{Fake, Session, hello};
use crate::harness::{Dice, House, soon, told};

const JOB: &str = r#"{"name":"j","command":["true"],"retries":2}"#;

/// What reading a log came to.
#[derive(Debug, Default, PartialEq, Eq)]
pub(crate) struct Read {
    /// Bytes, by attempt.
    attempts: Vec<(u32, Vec<u8>)>,
    /// Gaps: attempt, offset, size.
    pub(crate) gaps: Vec<(u32, u64, u64)>,
    pub(crate) end: Option<v1::LogEnd>,
}

impl Read {
    pub(crate) fn only(&self) -> &[u8] {
        assert!(self.attempts.len() <= 1, "one attempt was asked for");
        self.attempts.first().map(|(_, bytes)| bytes.as_slice()).unwrap_or_default()
    }
}

pub(crate) async fn read(connection: &Connection, request: v1::ReadLogRequest) -> Result<Read, Fault> {
    let mut next = request.offset;
    let mut read = Read::default();
    let mut stream = connection.logs().read_log(request).await.map_err(|status| told(&status))?.into_inner();
    while let Some(response) = soon("a piece of a log", stream.message()).await.map_err(|status| told(&status))? {
        assert_eq!(read.end, None, "nothing comes after the end");
        match response.part.unwrap() {
            Part::Chunk(chunk) => {
                if read.attempts.last().is_none_or(|(attempt, _)| *attempt != chunk.attempt) {
                    if !read.attempts.is_empty() {
                        next = 0;
                    }
                    read.attempts.push((chunk.attempt, Vec::new()));
                }
                // A reader that asks for the last lines does not know where they begin.
                if !read.attempts.last().unwrap().1.is_empty() {
                    assert_eq!(chunk.offset, next, "neither gap nor repetition");
                }
                next = chunk.offset + chunk.data.len() as u64;
                read.attempts.last_mut().unwrap().1.extend_from_slice(&chunk.data);
            }
            Part::Gap(gap) => {
                next = gap.offset + gap.size;
                read.gaps.push((gap.attempt, gap.offset, gap.size));
            }
            Part::End(end) => read.end = Some(end),
        }
    }
    assert!(read.end.is_some(), "a log ends with a word of its own");
    Ok(read)
}

pub(crate) fn whole(id: &str) -> v1::ReadLogRequest {
    v1::ReadLogRequest { id: id.to_owned(), ..Default::default() }
}

pub(crate) fn follow(id: &str) -> v1::ReadLogRequest {
    v1::ReadLogRequest { follow: true, ..whole(id) }
}

/// An execution that runs.
async fn running(house: &House) -> (Fake, Session, v1::Assignment) {
    house.apply(&[JOB]).await;
    let fake = Fake::register(house, "e").await;
    let mut session = fake.session(hello(1)).await.unwrap();
    house.execute("j").await;
    let claim = session.assignment().await;
    fake.begins(&claim).await;
    (fake, session, claim)
}

#[tokio::test]
async fn bytes_after_a_gap_are_refused_and_bytes_sent_twice_are_there_once() {
    let house = House::open().await;
    let (fake, _session, claim) = running(&house).await;
    let gap = fake.append(&claim, 5, b"later").await.unwrap_err();
    assert_eq!((gap.code, gap.reason.as_str(), gap.fact("next_offset")), (Code::OutOfRange, reason::LOG_GAP, Some("0")));
    assert_eq!(fake.append(&claim, u64::MAX, b"x").await.unwrap_err().fact("next_offset"), Some("0"));
    assert_eq!(fake.append(&claim, 0, b"").await, Ok(0), "where does it go on?");
    assert_eq!(fake.append(&claim, 0, b"hello ").await, Ok(6));
    for _ in 0..2 {
        assert_eq!(fake.append(&claim, 3, b"lo world").await, Ok(11), "an overlap, twice");
    }
    assert_eq!(fake.append(&claim, 0, b"he").await, Ok(11));
    assert_eq!(fake.append(&claim, 12, b"x").await.unwrap_err().fact("next_offset"), Some("11"));

    let early = fake.finishes(&claim, S::Succeeded, b"hello world!").await.unwrap_err();
    assert_eq!((early.code, early.fact("next_offset")), (Code::OutOfRange, Some("11")), "its log is not all there");
    assert_eq!(fake.append(&claim, 11, b"!").await, Ok(12));
    assert_eq!(fake.finishes(&claim, S::Succeeded, b"hello world!").await, Ok(Verdict::Accepted));
    let sealed = fake.append(&claim, 12, b"more").await.unwrap_err();
    assert_eq!((sealed.code, sealed.reason.as_str()), (Code::FailedPrecondition, reason::LOG_SEALED));
    let log = read(&house.admin().await, whole(&claim.id)).await.unwrap();
    assert_eq!(log.only(), b"hello world!");
    assert_eq!(log.end, Some(v1::LogEnd { sealed: true, size: 12, attempt: 1, damaged: false }));
}

#[tokio::test]
async fn only_the_executor_that_has_the_attempt_may_append() {
    let house = House::open().await;
    let (_fake, _session, claim) = running(&house).await;
    let thief = Fake::register(&house, "thief").await;
    let guess = v1::Assignment { nonce: claim.nonce.wrapping_add(1), ..claim.clone() };
    let fault = thief.append(&claim, 0, b"forged").await.unwrap_err();
    assert_eq!((fault.code, fault.reason.as_str()), (Code::PermissionDenied, reason::NOT_PERMITTED));
    // An attempt that was never there: an executor whose store was restored from an older backup learns so that it is to let it be.
    for who in [&thief, &_fake] {
        let fault = who.append(&guess, 0, b"forged").await.unwrap_err();
        assert_eq!((fault.code, fault.reason.as_str()), (Code::NotFound, reason::EXECUTION_NOT_FOUND));
    }
    let nowhere = v1::Assignment { id: octavius_core::ExecutionId::generate().to_string(), ..claim.clone() };
    assert_eq!(thief.append(&nowhere, 0, b"x").await.unwrap_err().code, Code::NotFound);
    let large = vec![0; octavius_core::limit::LOG_PIECE_BYTES + 1];
    assert_eq!(_fake.append(&claim, 0, &large).await.unwrap_err().code, Code::ResourceExhausted);
    assert_eq!(read(&house.admin().await, whole(&claim.id)).await.unwrap().only(), b"");
}

/// The bytes as the job printed them, whatever they are and however they were cut.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn any_bytes_cut_anyhow_come_back_whole_for_everyone() {
    let mut dice = Dice::thrown();
    let house = House::open().await;
    let admin = house.admin().await;
    let (fake, mut session, mut claim) = running(&house).await;
    for round in 0..6 {
        let size = [0, 1, 5_000, 64 * 1024, 400_000, 1_500_000][round];
        let log = dice.bytes(size);
        let before = tokio::spawn({
            let (admin, id) = (admin.clone(), claim.id.clone());
            async move { read(&admin, follow(&id)).await.unwrap() }
        });
        let (mut sent, mut during) = (0, Vec::new());
        while sent < log.len() {
            let longest = [10, 3000, 70_000, 300_000, 1 << 20][dice.below(5)];
            let end = (sent + 1 + dice.below(longest)).min(log.len());
            let begin = sent - dice.below(sent.min(100) + 1); // some of it again
            // Twice at the same time, as after a lost answer.
            let calls = tokio::join!(
                fake.append(&claim, begin as u64, &log[begin..end]),
                fake.append(&claim, begin as u64, &log[begin..end])
            );
            assert_eq!(calls, (Ok(end as u64), Ok(end as u64)));
            sent = end;
            if during.len() < 4 {
                let (admin, id) = (admin.clone(), claim.id.clone());
                during.push(tokio::spawn(async move { read(&admin, follow(&id)).await.unwrap() }));
            }
        }
        assert_eq!(fake.finishes(&claim, S::Succeeded, &log).await, Ok(Verdict::Accepted));
        let after = read(&admin, follow(&claim.id)).await.unwrap();
        let end = Some(v1::LogEnd { sealed: true, size: size as u64, attempt: 1, damaged: false });
        assert!(after.only() == log && after.end == end, "round {round}");
        for follower in during.into_iter().chain([before]) {
            let seen = follower.await.unwrap();
            assert!(seen.only() == log && seen.end == end, "round {round}: {} of {size} bytes", seen.only().len());
        }
        for _ in 0..8 {
            let offset = dice.below(size + 2) as u64;
            let rest = read(&admin, v1::ReadLogRequest { offset, ..whole(&claim.id) }).await.unwrap();
            assert!(rest.only() == &log[(offset as usize).min(size)..], "from byte {offset} of {size}");
        }
        let far = read(&admin, v1::ReadLogRequest { offset: u64::MAX, ..whole(&claim.id) }).await.unwrap();
        assert_eq!(far.only(), b"");
        house.execute("j").await;
        claim = session.assignment().await;
        fake.begins(&claim).await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_last_lines_are_the_last_lines() {
    let mut dice = Dice::thrown();
    let house = House::open().await;
    let admin = house.admin().await;
    let (fake, mut session, mut claim) = running(&house).await;
    let long = |count: usize| format!("{}\n", "x".repeat(count));
    let logs = [
        String::new(),
        "\n".into(),
        "no end".into(),
        "one\n".into(),
        "one\ntwo".into(),
        "one\n\n\nfour\n".into(),
        "\n".repeat(5000),
        [long(70_000), long(300_000), "short\n".into(), long(65_536), "end".into()].concat(),
        (0..20_000).map(|n| format!("line {n} {}\n", "y".repeat(dice.below(60)))).collect(),
    ];
    for log in logs {
        for piece in log.as_bytes().chunks(100_000).enumerate() {
            fake.append(&claim, piece.0 as u64 * 100_000, piece.1).await.unwrap();
        }
        let all: Vec<&str> = log.split_inclusive('\n').collect();
        for lines in [1, 2, 3, 4, 5, 4999, 5000, 6000, u64::MAX] {
            let begin = all.len().saturating_sub(usize::try_from(lines).unwrap_or(usize::MAX));
            let expected = all[begin..].concat();
            let tail = read(&admin, v1::ReadLogRequest { tail_lines: lines, ..whole(&claim.id) }).await.unwrap();
            assert!(
                tail.only() == expected.as_bytes(),
                "{lines} lines of {}: {} bytes, not {}",
                all.len(),
                tail.only().len(),
                expected.len()
            );
        }
        let following = tokio::spawn({
            let (admin, id) = (admin.clone(), claim.id.clone());
            async move { read(&admin, v1::ReadLogRequest { tail_lines: 1, ..follow(&id) }).await.unwrap() }
        });
        fake.finishes(&claim, S::Succeeded, log.as_bytes()).await.unwrap();
        assert_eq!(following.await.unwrap().only(), all.last().copied().unwrap_or_default().as_bytes());
        house.execute("j").await;
        claim = session.assignment().await;
        fake.begins(&claim).await;
    }
    let both = v1::ReadLogRequest { tail_lines: 1, offset: 1, ..whole(&claim.id) };
    assert_eq!(read(&admin, both).await.unwrap_err().code, Code::InvalidArgument);
    let none = v1::ReadLogRequest { attempt: 9, ..whole(&claim.id) };
    assert_eq!(read(&admin, none).await.unwrap_err().code, Code::NotFound);
}

/// One that begins before the first attempt hears every attempt, in order, and then the end.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_follower_goes_from_attempt_to_attempt() {
    let house = House::open().await;
    let admin = house.admin().await;
    house.apply(&[JOB]).await;
    let id = house.execute("j").await;
    let followers: Vec<_> = (0..4)
        .map(|_| {
            let (admin, id) = (admin.clone(), id.clone());
            tokio::spawn(async move { read(&admin, follow(&id)).await.unwrap() })
        })
        .collect();
    let fake = Fake::register(&house, "e").await;
    let mut session = fake.session(hello(1)).await.unwrap();
    let mut first = None;
    for attempt in 1..=3 {
        let claim = session.assignment().await;
        fake.begins(&claim).await;
        let log = format!("attempt {attempt}\n");
        fake.append(&claim, 0, log.as_bytes()).await.unwrap();
        fake.finishes(&claim, S::Failed, log.as_bytes()).await.unwrap();
        first.get_or_insert(claim);
    }
    let expected: Vec<_> = (1..=3).map(|attempt| (attempt, format!("attempt {attempt}\n").into_bytes())).collect();
    for follower in followers {
        let seen = follower.await.unwrap();
        assert_eq!(seen.attempts, expected, "no attempt is passed over");
        assert_eq!(seen.end, Some(v1::LogEnd { sealed: true, size: 10, attempt: 3, damaged: false }));
    }
    assert_eq!(read(&admin, whole(&id)).await.unwrap().only(), b"attempt 3\n", "the newest, where none is named");
    let one = v1::ReadLogRequest { attempt: 1, ..follow(&id) };
    assert_eq!(read(&admin, one).await.unwrap().only(), b"attempt 1\n");
    let never = house.execute("j").await;
    crate::harness::cancel(&admin, &never).await;
    assert_eq!(read(&admin, follow(&never)).await.unwrap(), Read { end: Some(v1::LogEnd::default()), ..Default::default() });
}

/// Retention takes a log away piece by piece, from its beginning.
#[tokio::test]
async fn a_log_that_is_being_removed_is_not_read_as_if_it_began_later() {
    let house = House::without_archive().await;
    let admin = house.admin().await;
    let (fake, _session, claim) = running(&house).await;
    let log = vec![b'x'; 200_000];
    fake.append(&claim, 0, &log).await.unwrap();
    assert_eq!(fake.finishes(&claim, S::Succeeded, &log).await, Ok(Verdict::Accepted));
    let first = key::log_segment(claim.id.parse().unwrap(), 1, 0);
    house.store().commit(Txn::new().delete(first)).await.unwrap();
    let fault = read(&admin, whole(&claim.id)).await.unwrap_err();
    assert_eq!((fault.code, fault.reason.as_str()), (Code::NotFound, reason::EXECUTION_NOT_FOUND));
    let rest = read(&admin, v1::ReadLogRequest { offset: 150_000, ..whole(&claim.id) }).await.unwrap();
    assert_eq!(rest.only(), &log[150_000..], "what is there can still be read");
}

/// Nothing gets into a log behind its seal, however the calls race.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn no_byte_is_appended_after_the_seal() {
    let house = House::open().await;
    let admin = house.admin().await;
    let (fake, mut session, mut claim) = running(&house).await;
    for round in 0..40 {
        let (appended, finished) = tokio::join!(fake.append(&claim, 0, b"late"), fake.finishes(&claim, S::Succeeded, b""));
        let log = read(&admin, whole(&claim.id)).await.unwrap();
        match (&appended, &finished) {
            (Err(fault), Ok(Verdict::Accepted)) => {
                assert_eq!(fault.reason, reason::LOG_SEALED);
                assert_eq!(
                    (log.only(), log.end),
                    (&b""[..], Some(v1::LogEnd { sealed: true, size: 0, attempt: 1, damaged: false })),
                    "round {round}"
                );
            }
            // It came first, and the end did not know of it: the ending stands, and the log is not called whole.
            (Ok(4), Ok(Verdict::Accepted)) => {
                let end = v1::LogEnd { sealed: true, size: 4, attempt: 1, damaged: true };
                assert_eq!((log.only(), log.end), (&b"late"[..], Some(end)), "round {round}");
            }
            other => panic!("round {round}: {other:?}"),
        }
        house.execute("j").await;
        claim = session.assignment().await;
        fake.begins(&claim).await;
    }
}

/// Bytes of memory that this process has at present.
fn memory() -> u64 {
    let status = std::fs::read_to_string("/proc/self/status").unwrap();
    let line = status.lines().find(|line| line.starts_with("RssAnon:")).unwrap();
    line.split_whitespace().nth(1).unwrap().parse::<u64>().unwrap() * 1024
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn followers_that_do_not_read_cost_next_to_nothing() {
    let house = House::open().await;
    let admin = house.admin().await;
    let (fake, _session, claim) = running(&house).await;
    let mut idle = Vec::new();
    for _ in 0..20 {
        idle.push(admin.logs().read_log(follow(&claim.id)).await.unwrap().into_inner());
    }
    let before = memory();
    let piece = vec![b'x'; 1 << 20];
    for n in 0..24 {
        fake.append(&claim, n << 20, &piece).await.unwrap();
    }
    // Whoever does read gets on all the same.
    let mut quick = house.admin().await.logs().read_log(whole(&claim.id)).await.unwrap().into_inner();
    let mut bytes = 0;
    while let Some(response) = tokio::time::timeout(Duration::from_secs(30), quick.message()).await.unwrap().unwrap() {
        if let Some(Part::Chunk(chunk)) = response.part {
            bytes += chunk.data.len();
        }
    }
    assert_eq!(bytes, 24 << 20);
    let grown = memory().saturating_sub(before);
    // Twenty times 24 MiB would be 480; the store's own cache and history, and other tests beside this one, take their share.
    assert!(grown < 250 << 20, "{} MiB more", grown >> 20);
    drop(idle);
}
