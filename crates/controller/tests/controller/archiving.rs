//! Logs on their way into the archive and out of it: the same bytes wherever they are, and none in the store when all is over.

use std::path::{Path, PathBuf};
use std::time::Duration;

use octavius_controller::{Archive, Controller, Retention};
use octavius_core::ExecutionId;
use octavius_core::limit::LOG_BYTES_IN_STORE;
use octavius_core::log::Times;
use octavius_proto::client::Connection;
use octavius_proto::v1::{self, ExecutionState as S, Verdict};
use octavius_proto::{reason, to_duration};
use octavius_store::record::{KeptLogRecord, LogHead};
use octavius_store::{Key, Range, Txn, codec, key};
use tonic::Code;

use crate::fake::{Fake, Session, hello};
use crate::harness::{Dice, House, eventually, told};
use crate::keeping::{often, turns};
use crate::logs::{follow, read, whole};

const MIB: usize = 1024 * 1024;

fn job(name: &str, rules: &str) -> String {
    format!(r#"{{"name":"{name}","command":["true"]{rules}}}"#)
}

/// The job's next execution, which runs.
async fn run(house: &House, fake: &Fake, session: &mut Session, name: &str) -> v1::Assignment {
    house.execute(name).await;
    let claim = session.assignment().await;
    fake.begins(&claim).await;
    claim
}

async fn open(house: &House, jobs: &[String]) -> (Fake, Session) {
    house.apply(&jobs.iter().map(String::as_str).collect::<Vec<_>>()).await;
    let fake = Fake::register(house, "e").await;
    let session = fake.session(hello(4)).await.unwrap();
    (fake, session)
}

/// Appends everything in pieces of some size.
async fn print(fake: &Fake, claim: &v1::Assignment, from: usize, log: &[u8], piece: usize) {
    let mut at = from;
    while at < log.len() {
        let to = (at + piece).min(log.len());
        assert_eq!(fake.append(claim, at as u64, &log[at..to]).await, Ok(to as u64));
        at = to;
    }
}

async fn keys(house: &House, prefix: &str) -> Vec<String> {
    let page = house.store().range(&Range::of(Key::new(prefix), 10_000)).await.unwrap();
    page.entries.iter().map(|entry| entry.key.as_str().to_owned()).collect()
}

/// Waits until no byte of a log of what has ended is in the store.
pub(crate) async fn until_settled(house: &House) {
    eventually("logs to be archived", async || {
        let hot = keys(house, "hot/").await;
        if hot.is_empty() { Ok(()) } else { Err(format!("{hot:?}")) }
    })
    .await;
}

fn noise(dice: &mut Dice, size: usize) -> Vec<u8> {
    (0..size).map(|_| u8::try_from(dice.below(256)).unwrap()).collect()
}

/// Lines that say which they are.
fn lines(count: usize) -> Vec<u8> {
    (0..count).flat_map(|n| format!("{n:>8} {}\n", "x".repeat(90)).into_bytes()).collect()
}

pub(crate) fn objects(folder: &Path) -> Vec<PathBuf> {
    let mut found = Vec::new();
    for entry in std::fs::read_dir(folder).into_iter().flatten().flatten() {
        if entry.path().is_dir() {
            found.extend(objects(&entry.path()));
        } else if entry.path().extension().is_some_and(|extension| extension == "zst") {
            found.push(entry.path());
        }
    }
    found.sort();
    found
}

async fn tail(admin: &Connection, id: &str, tail_lines: u64) -> Vec<u8> {
    read(admin, v1::ReadLogRequest { tail_lines, ..whole(id) }).await.unwrap().only().to_vec()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_log_is_the_same_while_it_grows_when_it_has_ended_and_in_the_archive() {
    let mut dice = Dice::thrown();
    let house = House::open().await;
    let admin = house.admin().await;
    let (fake, mut session) = open(&house, &[job("j", "")]).await;
    // Bulk, trickles, and pieces in between.
    for piece in [4 * MIB, 700_000, 30_000] {
        let log = noise(&mut dice, 3 * MIB + 12_345);
        let claim = run(&house, &fake, &mut session, "j").await;
        let before = tokio::spawn({
            let (admin, id) = (admin.clone(), claim.id.clone());
            async move { read(&admin, follow(&id)).await.unwrap() }
        });
        print(&fake, &claim, 0, &log[..log.len() / 2], piece).await;
        assert!(read(&admin, whole(&claim.id)).await.unwrap().only() == &log[..log.len() / 2]);
        let during = tokio::spawn({
            let (admin, id) = (admin.clone(), claim.id.clone());
            async move { read(&admin, follow(&id)).await.unwrap() }
        });
        print(&fake, &claim, log.len() / 2, &log, piece).await;
        assert_eq!(fake.finishes(&claim, S::Succeeded, &log).await, Ok(Verdict::Accepted));
        let ended = read(&admin, whole(&claim.id)).await.unwrap();
        until_settled(&house).await;
        let left = keys(&house, &format!("log/{}/", claim.id)).await;
        assert!(left.iter().all(|key| !key.contains("/at/")), "{left:?}");
        let archived = read(&admin, whole(&claim.id)).await.unwrap();
        assert!(archived.only() == log && archived.gaps.is_empty());
        assert_eq!(archived.end, Some(v1::LogEnd { sealed: true, size: log.len() as u64, attempt: 1, damaged: false }));
        for other in [ended, before.await.unwrap(), during.await.unwrap()] {
            assert!(other == archived);
        }
        // Any part of it.
        for _ in 0..5 {
            let from = dice.below(log.len());
            let rest = read(&admin, v1::ReadLogRequest { offset: from as u64, ..whole(&claim.id) }).await.unwrap();
            assert!(rest.only() == &log[from..]);
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn much_at_once_does_not_pass_through_the_store() {
    let house = House::open().await;
    let (fake, mut session) = open(&house, &[job("j", "")]).await;
    let claim = run(&house, &fake, &mut session, "j").await;
    let log = lines(80_000);
    for (at, piece) in log.chunks(4 * MIB).enumerate().take(1) {
        fake.append(&claim, (at * 4 * MIB) as u64, piece).await.unwrap();
        let keys = keys(&house, &format!("log/{}/", claim.id)).await;
        assert!(keys.iter().all(|key| !key.contains("/at/")), "{keys:?}");
    }
    // A trickle goes into the store until it is no trickle any more.
    let mut at = 4 * MIB;
    while at < log.len() {
        let to = (at + 100_000).min(log.len());
        fake.append(&claim, at as u64, &log[at..to]).await.unwrap();
        at = to;
        let head = house.store().get(&key::log_head(claim.id.parse().unwrap(), 1)).await.unwrap().unwrap();
        let head: LogHead = codec::decode(&head).unwrap();
        assert!(head.next_offset - head.archived < 1_200_000, "{head:?}");
    }
    let stored: u64 = objects(&house.archive.clone().unwrap()).iter().map(|path| path.metadata().unwrap().len()).sum();
    assert!(stored < log.len() as u64 / 4, "{stored} bytes in the archive for {}", log.len());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn last_lines_and_those_since_a_time_are_found_wherever_they_are() {
    let house = House::open().await;
    let admin = house.admin().await;
    let (fake, mut session) = open(&house, &[job("j", "")]).await;
    let claim = run(&house, &fake, &mut session, "j").await;
    let log = lines(60_000);
    let line = log.len() / 60_000;
    let now = octavius_core::Timestamp::now().as_millisecond();
    // Every thousand lines a minute later; the last ones half a minute ago.
    let printed = |index: usize| now - 30_000 - i64::try_from(59 - index).unwrap() * 60_000;
    for (index, some) in log.chunks(1000 * line).enumerate() {
        let v1::Assignment { id, attempt, nonce, .. } = claim.clone();
        let times = Some(Times::all_at(printed(index)).into());
        let offset = (index * 1000 * line) as u64;
        let request = v1::AppendLogRequest { id, attempt, nonce, offset, data: some.to_vec().into(), times };
        fake.connection.logs().append_log(request).await.unwrap();
    }
    let since = async |minutes: u64| {
        let since = Some(to_duration(Duration::from_secs(minutes * 60)));
        read(&admin, v1::ReadLogRequest { since, ..whole(&claim.id) }).await.unwrap().only().to_vec()
    };
    for settled in [false, true] {
        if settled {
            assert_eq!(fake.finishes(&claim, S::Succeeded, &log).await, Ok(Verdict::Accepted));
            until_settled(&house).await;
        }
        for count in [1, 2, 100, 999, 20_000, 60_000, 70_000] {
            let expected = log.len().saturating_sub(count * line);
            assert!(tail(&admin, &claim.id, count as u64).await == log[expected..], "the last {count}, settled: {settled}");
        }
        for minutes in [1, 2, 30, 59, 60, 100] {
            let expected = (60 - usize::try_from(minutes).unwrap().min(60)) * 1000 * line;
            assert!(since(minutes).await == log[expected..], "{minutes} minutes, settled: {settled}");
        }
        assert_eq!(since(0).await, b"");
        let both = v1::ReadLogRequest { since: Some(to_duration(Duration::from_secs(120))), tail_lines: 10, ..whole(&claim.id) };
        assert!(read(&admin, both).await.unwrap().only() == &log[log.len() - 10 * line..]);
        // Each byte has its time.
        let timed = v1::ReadLogRequest { times: true, offset: (59 * 1000 * line) as u64, ..whole(&claim.id) };
        let mut stream = admin.logs().read_log(timed).await.unwrap().into_inner();
        let Some(v1::read_log_response::Part::Chunk(chunk)) = stream.message().await.unwrap().unwrap().part else { panic!() };
        let times = Times::try_from(chunk.times.unwrap()).unwrap();
        assert_eq!((times.at(0), times.at(chunk.data.len() as u64 - 1)), (Some(printed(59)), Some(printed(59))));
    }
}

/// With and without an archive: of what is over the limit the middle goes, and how much is missing is said.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn beginning_and_end_are_kept_of_what_is_over_the_limit() {
    let mut dice = Dice::thrown();
    let rule = |limit: &str| format!(r#","logs":{{"limit":"{limit}"}}"#);
    let jobs = [job("plain", ""), job("small", &rule("100KiB")), job("more", &rule("3MiB"))];
    for archive in [true, false] {
        let house = if archive { House::open().await } else { House::without_archive().await };
        let admin = house.admin().await;
        let (fake, mut session) = open(&house, &jobs).await;
        for (name, limit) in [("plain", LOG_BYTES_IN_STORE), ("small", 100 * 1024), ("more", 3 * MIB as u64)] {
            if archive && name == "plain" {
                continue; // 64 MiB are another test's
            }
            let limit = if archive { limit } else { limit.min(LOG_BYTES_IN_STORE) };
            let log = noise(&mut dice, 9 * MIB);
            let claim = run(&house, &fake, &mut session, name).await;
            let following = tokio::spawn({
                let (admin, id) = (admin.clone(), claim.id.clone());
                async move { read(&admin, follow(&id)).await.unwrap() }
            });
            let mut at = 0;
            while at < log.len() {
                let most = [50, 5_000, 300_000, 4 * MIB][dice.below(4)];
                let to = (at + 1 + dice.below(most)).min(log.len());
                print(&fake, &claim, at, &log[..to], 4 * MIB).await;
                at = to;
            }
            assert_eq!(fake.finishes(&claim, S::Succeeded, &log).await, Ok(Verdict::Accepted));
            let ended = read(&admin, whole(&claim.id)).await.unwrap();
            if archive {
                until_settled(&house).await;
            }
            let settled = read(&admin, whole(&claim.id)).await.unwrap();
            let [(1, from, size)] = settled.gaps[..] else { panic!("{name}: {:?}", settled.gaps) };
            let (begin, end) = (usize::try_from(from).unwrap(), usize::try_from(from + size).unwrap());
            let kept = log.len() as u64 - size;
            assert!(kept <= limit && kept > limit / 2, "{name}, archive {archive}: {kept} of {limit}");
            assert!(from >= limit / 2 && from < limit * 3 / 4, "{name}: the beginning has {from} of {limit}");
            assert!(settled.only() == [&log[..begin], &log[end..]].concat());
            assert!(ended == settled, "{name}");
            assert!(!settled.end.unwrap().damaged);
            assert!(tail(&admin, &claim.id, 1).await.len() < log.len());
            // Who followed saw more, and was told of what had gone by then.
            let followed = following.await.unwrap();
            let missed: u64 = followed.gaps.iter().map(|(_, _, size)| size).sum();
            assert_eq!(followed.only().len() as u64 + missed, log.len() as u64);
            let stored: u64 = objects(&house.dir().join("archive")).iter().map(|path| path.metadata().unwrap().len()).sum();
            assert!(stored <= limit * 21 / 20 + 3 * MIB as u64, "{stored} bytes in the archive");
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn while_the_archive_is_away_logs_stay_in_the_store_within_bounds() {
    let house = House::open().await;
    let admin = house.admin().await;
    let (fake, mut session) = open(&house, &[job("j", "")]).await;
    let claim = run(&house, &fake, &mut session, "j").await;
    let log = lines(200_000);
    let folder = house.archive.clone().unwrap();
    let away = folder.with_extension("away");
    std::fs::rename(&folder, &away).unwrap();
    std::fs::write(&folder, "no folder").unwrap();
    let mut at = 0;
    let refused = loop {
        let to = at + 900_000;
        match fake.append(&claim, at as u64, &log[at..to]).await {
            Ok(next) => assert_eq!(next, to as u64),
            Err(refused) => break refused,
        }
        at = to;
        assert!(at < 12 * MIB, "held back at last");
    };
    assert_eq!((refused.code, refused.reason.as_str()), (Code::Unavailable, reason::ARCHIVE_UNAVAILABLE));
    assert!(at > 4 * MIB, "{at} bytes were taken");
    assert!(read(&admin, whole(&claim.id)).await.unwrap().only() == &log[..at]);
    // The job ends meanwhile, and its log is read from the store.
    assert_eq!(fake.finishes(&claim, S::Succeeded, &log[..at]).await, Ok(Verdict::Accepted));
    assert!(read(&admin, whole(&claim.id)).await.unwrap().only() == &log[..at]);
    std::fs::remove_file(&folder).unwrap();
    std::fs::rename(&away, &folder).unwrap();
    until_settled(&house).await;
    assert!(read(&admin, whole(&claim.id)).await.unwrap().only() == &log[..at]);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_damaged_or_missing_object_is_told_and_nothing_of_it_is_returned() {
    let house = House::open().await;
    let admin = house.admin().await;
    let (fake, mut session) = open(&house, &[job("j", "")]).await;
    let claim = run(&house, &fake, &mut session, "j").await;
    let log = lines(100_000);
    print(&fake, &claim, 0, &log, 4 * MIB).await;
    assert_eq!(fake.finishes(&claim, S::Succeeded, &log).await, Ok(Verdict::Accepted));
    until_settled(&house).await;
    let second = objects(&house.archive.clone().unwrap()).remove(1);
    let mut bytes = std::fs::read(&second).unwrap();
    let middle = bytes.len() / 2;
    bytes[middle] ^= 1;
    std::fs::write(&second, bytes).unwrap();
    for _ in 0..2 {
        let mut stream = admin.logs().read_log(whole(&claim.id)).await.unwrap().into_inner();
        let mut read = Vec::new();
        let fault = loop {
            match stream.message().await {
                Ok(Some(response)) => {
                    let Some(v1::read_log_response::Part::Chunk(chunk)) = response.part else { panic!("{response:?}") };
                    read.extend_from_slice(&chunk.data);
                }
                Ok(None) => panic!("it ended as if all was well"),
                Err(status) => break told(&status),
            }
        };
        assert_eq!((fault.code, fault.reason.as_str()), (Code::DataLoss, reason::LOG_DAMAGED));
        assert!(fault.message.contains(&claim.id), "{fault}");
        assert!(log.starts_with(&read) && read.len() >= 4 * MIB);
        std::fs::remove_file(&second).ok();
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_controller_starts_with_the_stores_own_archive_only() {
    let house = House::open().await;
    for other in [None, Some(house.dir().join("another"))] {
        let archive = other.as_ref().map(|folder| Archive::open(folder.to_str().unwrap()).unwrap());
        let options = house.options_with(archive);
        let error = Controller::start(options).await.map(|_| ()).unwrap_err().to_string();
        assert!(error.contains("is not this store's") && error.contains("/archive"), "{error}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn logs_go_when_they_are_too_old_or_too_many_and_executions_stay() {
    let retention = Retention { log_bytes: Some(130_000), ..Retention::default() };
    let house = House::keeping(often(), retention).await;
    let admin = house.admin().await;
    let few = job("few", r#","logs":{"keep_bytes":"70KB"}"#);
    let (fake, mut session) = open(&house, &[job("j", ""), few, job("short", r#","logs":{"keep_for":"2h"}"#)]).await;
    let mut dice = Dice::thrown();
    let mut ids = Vec::new();
    for name in ["j", "few", "few", "few", "short", "j"] {
        let claim = run(&house, &fake, &mut session, name).await;
        // Noise is as long in the archive as it is.
        let log = noise(&mut dice, 30_000);
        print(&fake, &claim, 0, &log, MIB).await;
        assert_eq!(fake.finishes(&claim, S::Succeeded, &log).await, Ok(Verdict::Accepted));
        until_settled(&house).await;
        ids.push((claim.id, log));
    }
    // The third of `few` is more than they may take; then the oldest of all is one too many.
    let gone = async |index: usize| {
        let read = read(&admin, whole(&ids[index].0)).await;
        read.is_err_and(|fault| fault.reason == reason::LOG_REMOVED && fault.code == Code::NotFound)
    };
    eventually("two logs to go", async || {
        let kept = keys(&house, "kept-log/").await;
        if kept.len() == 4 { Ok(()) } else { Err(format!("{kept:?}")) }
    })
    .await;
    turns(&house, 2).await;
    for (index, (id, log)) in ids.iter().enumerate() {
        if index < 2 {
            assert!(gone(index).await, "{index}");
            let files = objects(&house.dir().join("archive"));
            assert!(files.iter().all(|file| !file.to_str().unwrap().contains(id.as_str())), "{files:?}");
        } else {
            assert!(read(&admin, whole(id)).await.unwrap().only() == log, "{index}");
        }
        let asked = v1::GetExecutionRequest { id: id.clone() };
        assert!(admin.executions().get_execution(asked).await.is_ok(), "its execution stays");
    }
    // What its job keeps for two hours goes after them.
    let id: ExecutionId = ids[4].0.parse().unwrap();
    let now = key::hour_of(octavius_core::Timestamp::now());
    let entries = house.store().range(&Range::of(key::kept_logs(), 10)).await.unwrap().entries;
    let entry = entries.iter().find(|entry| key::kept_log_of(&entry.key).unwrap().1 == id).unwrap();
    let record: KeptLogRecord = codec::decode(entry).unwrap();
    assert!((30_000..31_000).contains(&record.stored), "{record:?}");
    let txn = Txn::new().delete(entry.key.clone()).put(key::kept_log(now - 4, id), entry.value.clone());
    house.store().commit(txn).await.unwrap();
    eventually("an old log to go", async || if gone(4).await { Ok(()) } else { Err(String::new()) }).await;
}

/// Whatever the last attempt prints, the bytes of those before it are counted, and can be removed.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_log_is_counted_though_the_last_attempt_printed_nothing() {
    let house = House::open().await;
    let (fake, mut session) = open(&house, &[job("j", r#","retries":1"#)]).await;
    let claim = run(&house, &fake, &mut session, "j").await;
    print(&fake, &claim, 0, b"the first\n", MIB).await;
    assert_eq!(fake.finishes(&claim, S::Failed, b"the first\n").await, Ok(Verdict::Accepted));
    let again = session.assignment().await;
    assert_eq!((&again.id, again.attempt), (&claim.id, 2));
    eventually("the first attempt's log to be archived", async || {
        let left = keys(&house, &format!("log/{}/000001/at/", claim.id)).await;
        if left.is_empty() { Ok(()) } else { Err(format!("{left:?}")) }
    })
    .await;
    fake.completes(&again, b"").await;
    until_settled(&house).await;
    assert_eq!(keys(&house, "kept-log/").await.len(), 1);
    let all = read(&house.admin().await, v1::ReadLogRequest { attempt: 1, ..whole(&claim.id) }).await.unwrap();
    assert_eq!(all.only(), b"the first\n");
}

/// What is kept of a log that was long before its limit became lower shrinks to the limit, however many pieces of it are too many.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_lower_limit_cuts_a_long_log_step_by_step() {
    let mut dice = Dice::thrown();
    let log = noise(&mut dice, 12 * MIB);
    for archive in [true, false] {
        let mut house = if archive { House::open().await } else { House::without_archive().await };
        house.stop().await;
        house.log_limit = u64::MAX;
        house.start_again().await;
        house.apply(&[&job("j", "")]).await;
        let token = house.register("e").await;
        let fake = Fake { connection: house.connect(Some(&token)).await };
        let mut session = fake.session(hello(4)).await.unwrap();
        let claim = run(&house, &fake, &mut session, "j").await;
        // Many small pieces, each of which is one of the log's for good.
        print(&fake, &claim, 0, &log[..10 * MIB], if archive { 600_000 } else { 40_000 }).await;
        let limit = if archive { MIB as u64 } else { 128 * 1024 };
        house.stop().await;
        house.log_limit = limit;
        house.start_again().await;
        let fake = Fake { connection: house.connect(Some(&token)).await };
        print(&fake, &claim, 10 * MIB, &log, 100_000).await;
        assert_eq!(fake.finishes(&claim, S::Succeeded, &log).await, Ok(Verdict::Accepted));
        if archive {
            until_settled(&house).await;
        }
        let seen = read(&house.admin().await, whole(&claim.id)).await.unwrap();
        let [(1, from, size)] = seen.gaps[..] else { panic!("{:?}", seen.gaps) };
        let (begin, end) = (usize::try_from(from).unwrap(), usize::try_from(from + size).unwrap());
        assert!(seen.only() == [&log[..begin], &log[end..]].concat());
        assert!(seen.only().len() as u64 <= limit, "{} of {limit}, archive: {archive}", seen.only().len());
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn lines_since_a_time_are_found_though_the_clock_was_set_back() {
    let house = House::open().await;
    let admin = house.admin().await;
    let (fake, mut session) = open(&house, &[job("j", "")]).await;
    let claim = run(&house, &fake, &mut session, "j").await;
    let log = lines(60_000);
    let (now, part) = (octavius_core::Timestamp::now().as_millisecond(), log.len() / 6);
    for (index, minutes) in [60, 20, 50, 45, 40, 10].into_iter().enumerate() {
        let v1::Assignment { id, attempt, nonce, .. } = claim.clone();
        let times = Some(Times::all_at(now - minutes * 60_000).into());
        let (offset, data) = ((index * part) as u64, log[index * part..(index + 1) * part].to_vec().into());
        let request = v1::AppendLogRequest { id, attempt, nonce, offset, data, times };
        fake.connection.logs().append_log(request).await.unwrap();
    }
    for (minutes, first) in [(70, 0), (55, 1), (30, 1), (15, 5)] {
        let since = Some(to_duration(Duration::from_secs(minutes * 60)));
        let seen = read(&admin, v1::ReadLogRequest { since, ..whole(&claim.id) }).await.unwrap();
        assert!(seen.only() == &log[first * part..], "{minutes} minutes");
    }
}
