//! Output on its way: when it goes, when it was printed, what is kept of it on the disk, and what happens where there is no room for it.

use std::fs;
use std::os::unix::fs::MetadataExt as _;
use std::path::Path;
use std::time::{Duration, Instant, SystemTime};

use octavius_executor::ExecutorOptions;
use serde_json::json;

use crate::controller::Controller;
use crate::daemon::{Daemon, Place};
use crate::{eventually, until};

const MIB: u64 = 1024 * 1024;

fn sh(script: &str) -> serde_json::Value {
    json!({"name": "j", "command": ["sh", "-c", script]})
}

/// Prints the numbers up to this one, and waits until it may end.
fn numbers(last: u32) -> serde_json::Value {
    sh(&format!("seq 1 {last}; while ! [ -e go ]; do sleep 0.02; done; echo end"))
}

fn printed(last: u32) -> Vec<u8> {
    let mut text: String = (1..=last).map(|number| format!("{number}\n")).collect();
    text.push_str("end\n");
    text.into_bytes()
}

/// Bytes of the disk that a file takes.
fn on_disk(file: &Path) -> u64 {
    fs::metadata(file).map_or(0, |found| found.blocks() * 512)
}

fn start(place: &Place, options: impl FnOnce(ExecutorOptions) -> ExecutorOptions) -> Daemon {
    Daemon::start(options(place.options()))
}

#[test]
fn pieces_say_when_they_were_printed_and_come_five_times_a_second_at_most() {
    let controller = Controller::start();
    let place = Place::near(&controller);
    let daemon = place.start();
    let id = controller.assign(&sh("for i in $(seq 1 100); do echo line $i; sleep 0.02; done"));
    let record = controller.ended(id);
    let lines: Vec<_> = record.text().match_indices("line ").map(|(at, _)| at as u64).collect();
    assert_eq!(lines.len(), 100);
    let times: Vec<_> = lines.iter().map(|&at| record.times.at(at).unwrap()).collect();
    assert!(times.is_sorted(), "{times:?}");
    // A busy machine may hold a few of them up, but nothing makes them come earlier.
    assert!(times[99] - times[0] >= 1950, "{times:?}");
    let now = i64::try_from(SystemTime::UNIX_EPOCH.elapsed().unwrap().as_millis()).unwrap();
    assert!(now - times[99] >= 0 && now - times[0] < 60_000, "{now}: {times:?}");

    let gaps: Vec<_> = record.appends.windows(2).map(|two| two[1].0 - two[0].0).collect();
    // The last goes at once, and an answer may be late where the next is not.
    let early = gaps[..gaps.len() - 1].iter().filter(|gap| **gap < Duration::from_millis(150)).count();
    assert!(gaps.len() >= 4 && early <= 1, "{gaps:?}");
    daemon.stop();
}

#[test]
fn much_goes_in_large_pieces_and_what_a_controller_has_takes_no_room_on_the_disk() {
    const LAST: u32 = 6_000_000;
    let controller = Controller::start();
    let place = Place::near(&controller);
    let daemon = place.start();
    let id = controller.assign(&numbers(LAST));
    controller.logged(id, &format!("\n{LAST}\n"));
    let run = place.run_dir();
    until("it is given back", || on_disk(&run.join("output")) <= 5 * MIB);
    let length = fs::metadata(run.join("output")).unwrap().len();
    assert!(length > 40_000_000 && run.join("sent").exists());
    daemon.kill();

    // The next executor knows how far it was, and what the checksum of all that was.
    let daemon = place.start();
    fs::write(run.join("work/go"), "").unwrap();
    let record = controller.ended(id);
    assert!(record.log == printed(LAST));
    assert!(record.repeated <= 5 * 1024 * 1024, "{} bytes were sent twice", record.repeated);
    let large = record.appends.iter().filter(|(_, size)| *size as u64 == 4 * MIB).count();
    assert!(large >= 3, "{:?}", record.appends);
    until("nothing is left", || place.list("runs").is_empty());
    daemon.stop();
}

#[test]
fn a_controller_that_lost_what_is_here_no_more_has_a_log_that_is_cut() {
    const LAST: u32 = 3_000_000;
    let controller = Controller::start();
    let place = Place::near(&controller);
    let daemon = place.start();
    let id = controller.assign(&numbers(LAST));
    controller.logged(id, &format!("\n{LAST}\n"));
    let run = place.run_dir();
    until("it is given back", || run.join("sent").exists());
    controller.world().attempts.get_mut(&(id.to_string(), 1)).unwrap().log.truncate(4000);
    fs::write(run.join("work/go"), "").unwrap();
    let record = controller.ended(id);
    let finished = record.finished.clone().unwrap();
    assert_eq!((finished.log_cut, finished.log_size), (true, printed(LAST).len() as u64));
    assert!(record.log == printed(LAST)[..4000], "and no zeros");
    let message = record.ending().unwrap().message;
    assert!(message.starts_with("the log is not whole from byte 4000 on"), "{message}");
    daemon.stop();
}

#[test]
fn a_full_spool_holds_jobs_up_and_loses_nothing_as_long_as_output_is_taken() {
    const LAST: u32 = 6_000_000;
    let controller = Controller::start();
    let place = Place::near(&controller);
    controller.world().no_room = true;
    let daemon = start(&place, |options| ExecutorOptions { spool_limit: 16 * MIB, ..options });
    let id = controller.assign(&numbers(LAST));
    until("the job is held up and nothing more is taken", || controller.world().pings.last() == Some(&0));
    let run = place.run_dir();
    assert!(on_disk(&run.join("output")) <= 16 * MIB);
    controller.world().no_room = false;
    fs::write(run.join("work/go"), "").unwrap();
    let record = controller.ended(id);
    assert!(record.log == printed(LAST), "{} bytes", record.log.len());
    until("work is taken again", || controller.world().pings.last() == Some(&4));
    daemon.stop();
}

#[test]
fn what_a_full_spool_has_no_room_for_is_marked_and_counted() {
    const LAST: u32 = 6_000_000;
    let controller = Controller::start();
    let place = Place::near(&controller);
    controller.world().no_room = true;
    let daemon = start(&place, |options| ExecutorOptions { spool_limit: 16 * MIB, ..options });
    let id = controller.assign(&sh(&format!(
        "seq 1 {LAST}; touch printed; while ! [ -e go ]; do sleep 0.02; done; echo more; while ! [ -e end ]; do sleep 0.02; done; echo end"
    )));
    until("nothing more is taken", || controller.world().pings.last() == Some(&0));
    let run = place.run_dir();
    let most = eventually("the job has printed everything", || {
        let most = on_disk(&run.join("output")) + on_disk(&run.join("times"));
        if run.join("work/printed").exists() { Ok(most) } else { Err(most) }
    });
    assert!(most <= 16 * MIB, "{most} bytes of the disk");
    assert_eq!(controller.world().pings.last(), Some(&0), "still nothing is taken");
    controller.world().no_room = false;
    controller.logged(id, "the executor's spool was full]\n");
    until("work is taken again", || controller.world().pings.last() == Some(&3));
    fs::write(run.join("work/go"), "").unwrap();
    controller.logged(id, "more\n");
    fs::write(run.join("work/end"), "").unwrap();
    let record = controller.ended(id);
    let text = record.text();
    let (kept, rest) = text.split_once("\n[octavius: ").unwrap();
    let (missing, rest) = rest.split_once(" bytes of output are missing here: the executor's spool was full]\n").unwrap();
    let all = printed(LAST);
    assert!(all.starts_with(kept.as_bytes()) && kept.len() > 8 * 1024 * 1024, "{} bytes kept", kept.len());
    assert_eq!(rest, "more\nend\n");
    assert_eq!(missing.parse::<usize>().unwrap(), all.len() - "end\n".len() - kept.len());
    assert!(!record.finished.unwrap().log_cut);
    daemon.stop();
}

#[test]
fn a_log_that_waits_for_the_archive_is_not_cut_so_soon() {
    let controller = Controller::start();
    let place = Place::near(&controller);
    let daemon = place.start();
    controller.world().no_archive = true;
    let id = controller.assign(&sh("echo x"));
    let begun = Instant::now();
    until("it has waited for longer than for room", || {
        begun.elapsed() > place.options().timing.room_patience + Duration::from_secs(1)
    });
    assert!(controller.record(id, 1).finished.is_none());
    controller.world().no_archive = false;
    let record = controller.ended(id);
    assert_eq!((record.text().as_str(), record.finished.unwrap().log_cut), ("x\n", false));
    daemon.stop();
}

#[test]
fn an_executor_keeps_to_its_rate() {
    let controller = Controller::start();
    let place = Place::near(&controller);
    let daemon = start(&place, |options| ExecutorOptions { log_rate: Some(2 * MIB), ..options });
    let begun = Instant::now();
    let ids = [(); 2].map(|()| controller.assign(&sh("head -c 2500000 /dev/zero | tr '\\0' x")));
    for id in ids {
        assert!(controller.ended(id).log == [b'x'; 2_500_000]);
    }
    // 5 MB, the last half MiB of which is sent before its time is over.
    assert!(begun.elapsed() >= Duration::from_secs(2), "{:?}", begun.elapsed());
    daemon.stop();
}
