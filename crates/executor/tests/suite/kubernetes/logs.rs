//! Logs, whole, whatever they are and whatever breaks meanwhile.

use std::time::Duration;

use octavius_tests::{Component, Kubernetes};

use super::{Site, sh};

#[test]
fn output_of_every_kind_arrives_as_it_was() {
    let cluster = Kubernetes::shared().unwrap();
    let site = Site::new(&cluster);
    let daemon = site.start();
    let long = "0123456789abcdef".repeat(5000);
    let cases = [
        ("true".to_owned(), String::new()),
        ("echo at once".to_owned(), "at once\n".to_owned()),
        ("echo; echo; printf 'no end'".to_owned(), "\n\nno end".to_owned()),
        (
            "for i in $(seq 5000); do printf 0123456789abcdef; done; echo; echo after; sleep 1".to_owned(),
            format!("{long}\nafter\n"),
        ),
        // What a process wrote in its last moment the runtime may lose, when the machine is busy: seen with containerd 1.6, whose own log
        // file lacks it. That is not what is tested here.
        ("seq 20000; sleep 1".to_owned(), (1..=20_000).map(|number| format!("{number}\n")).collect()),
        ("echo 2026-11-22T23:00:00.000000000Z not a stamp".to_owned(), "2026-11-22T23:00:00.000000000Z not a stamp\n".to_owned()),
    ];
    let ids: Vec<_> = cases.iter().map(|(script, _)| site.run(&sh(script))).collect();
    for (id, (script, output)) in ids.into_iter().zip(&cases) {
        let record = site.ended(id);
        assert_eq!(super::shown(&record.ending().unwrap()), "SUCCEEDED  Some(0) ", "{script}");
        assert!(record.text() == *output, "{script}: {} bytes: {:.200}", record.log.len(), record.text());
    }
    site.nothing_left();
    daemon.stop();
}

#[test]
fn a_hundred_megabytes_come_through_rotation() {
    let cluster = Kubernetes::shared().unwrap();
    let site = Site::new(&cluster);
    let daemon = site.start();
    let id = site.run(&sh(
        // With pauses, so that the kubelet, which looks at sizes every ten seconds, rotates more than once; and in long lines, so that even a
        // busy machine reads as fast as they come: who is behind by two rotations misses a file.
        "line=$(printf %07999d 7); for i in 1 2 3 4 5 6 7 8 9 10; do yes $line | head -n 1250; sleep 2; done",
    ));
    let begun = std::time::Instant::now();
    while site.controller.record(id, 1).finished.is_none() && begun.elapsed() < Duration::from_secs(110) {
        std::thread::sleep(Duration::from_millis(200));
    }
    let record = site.controller.record(id, 1);
    let line = format!("{:07999}\n", 7);
    let finished = record.finished.as_ref().map(|finished| super::shown(finished.ending.as_ref().unwrap()));
    assert_eq!(finished.as_deref(), Some("SUCCEEDED  Some(0) "), "{} bytes", record.log.len());
    assert_eq!(record.log.len(), 100_000_000);
    assert!(record.log.chunks(8000).all(|chunk| chunk == line.as_bytes()));
    daemon.stop();
}

/// What a job prints that counts for ten seconds.
const COUNT: &str = "for i in $(seq 100); do echo line $i; sleep 0.1; done";

fn counted() -> String {
    (1..=100).map(|number| format!("line {number}\n")).collect()
}

#[test]
fn a_log_is_whole_though_the_api_server_and_the_kubelet_were_killed() {
    let cluster = Kubernetes::alone().unwrap();
    let site = Site::new(&cluster);
    let daemon = site.start();
    let id = site.run(&sh(COUNT));
    site.logged(id, "line 10\n");
    cluster.kill(Component::ApiServer).unwrap();
    site.logged(id, "line 40\n");
    cluster.kill(Component::Kubelet).unwrap();
    let record = site.ended(id);
    assert_eq!((super::shown(&record.ending().unwrap()), record.text()), ("SUCCEEDED  Some(0) ".to_owned(), counted()));
    daemon.stop();
}

#[test]
fn an_api_server_that_hangs_fails_nothing_and_loses_nothing() {
    let cluster = Kubernetes::alone().unwrap();
    let site = Site::new(&cluster);
    let daemon = site.start();
    let running = site.run(&sh(COUNT));
    site.logged(running, "line 10\n");
    let paused = cluster.pause(Component::ApiServer).unwrap();
    let assigned = site.run(&sh("echo meanwhile"));
    // The job that runs writes on, ends, and none of it can be seen from here.
    let begun = std::time::Instant::now();
    while begun.elapsed() < Duration::from_secs(14) {
        std::thread::sleep(Duration::from_millis(100));
        assert!(site.controller.record(running, 1).finished.is_none());
    }
    drop(paused);
    let record = site.ended(running);
    assert_eq!((super::shown(&record.ending().unwrap()), record.text()), ("SUCCEEDED  Some(0) ".to_owned(), counted()));
    octavius_tests::eventually("the other is run, or given back to the queue", || {
        let record = site.controller.record(assigned, 1);
        anyhow::ensure!(record.finished.is_some() || record.handed_back.is_some(), "{}", record.starting);
        Ok(())
    })
    .unwrap();
    daemon.stop();
}
