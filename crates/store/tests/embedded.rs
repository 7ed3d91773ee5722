//! The embedded store as its callers see it: the conformance suite on real files, what outlives the process, and what a kill leaves.

#![expect(clippy::unwrap_used, reason = "a test may fail loudly")]

use std::collections::BTreeMap;
use std::fs;
use std::io::{BufRead as _, BufReader, Write as _};
use std::os::unix::fs::PermissionsExt as _;
use std::path::Path;
use std::process::{Command, Stdio};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use octavius_store::{Commit, EmbeddedOptions, Entry, Key, Range, Revision, Store, StoreError, Txn, conformance, open_embedded};
use proptest::prelude::*;

fn open(dir: &Path) -> Arc<dyn Store> {
    open_embedded(dir, EmbeddedOptions::default()).unwrap()
}

fn open_error(dir: &Path) -> StoreError {
    open_embedded(dir, EmbeddedOptions::default()).unwrap_err()
}

async fn put(store: &dyn Store, name: &str, value: &str) -> Revision {
    match store.commit(Txn::new().put(Key::new(name), value.to_owned())).await {
        Ok(Commit::Done(revision)) => revision,
        other => panic!("{name}: {other:?}"),
    }
}

async fn all(store: &dyn Store) -> (Vec<Entry>, Revision) {
    let page = store.range(&Range::of(Key::new(""), usize::MAX)).await.unwrap();
    assert!(!page.more);
    (page.entries, page.revision)
}

#[tokio::test(flavor = "multi_thread")]
async fn it_conforms() {
    let dirs = Mutex::new(Vec::new());
    conformance::all(async || {
        let dir = tempfile::tempdir().unwrap();
        let store = open(dir.path());
        dirs.lock().unwrap().push(dir);
        store
    })
    .await;
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 40, failure_persistence: None, ..ProptestConfig::default() })]

    /// A failure prints the numbers of the smallest run that shows it.
    #[test]
    fn it_follows_the_model(choices in prop::collection::vec(any::<u64>(), 1..80)) {
        let dir = tempfile::tempdir().unwrap();
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        runtime.block_on(conformance::follows_model(&*open(dir.path()), &choices));
    }
}

#[tokio::test]
async fn a_store_outlives_its_process_with_its_revision() {
    let dir = tempfile::tempdir().unwrap();
    let mut before = (Vec::new(), 0);
    for round in 0..4 {
        let store = open(dir.path());
        assert_eq!(all(&*store).await, before);
        put(&*store, &format!("k{round}"), "x").await;
        put(&*store, "same", &format!("{round}")).await;
        before = all(&*store).await;
        assert_eq!(before.1, 2 * (round + 1));
    }
}

#[tokio::test]
async fn it_knows_how_much_room_it_takes() {
    let dir = tempfile::tempdir().unwrap();
    let store = open(dir.path());
    let empty = store.usage().await.unwrap();
    for index in 0..40 {
        put(&*store, &format!("k{index}"), &"x".repeat(60_000)).await;
    }
    let usage = store.usage().await.unwrap();
    assert!(usage.used_bytes >= empty.used_bytes + 2_400_000, "{empty:?}, then {usage:?}");
    assert_eq!(usage.allocated_bytes, fs::metadata(dir.path().join("octavius.redb")).unwrap().len());
    assert!(usage.used_bytes == usage.allocated_bytes && usage.quota_bytes.is_none() && !usage.full, "{usage:?}");
    store.compact(u64::MAX).await.unwrap();
    store.reclaim().await.unwrap();
}

#[tokio::test]
async fn a_second_opener_is_told_which_folder() {
    let dir = tempfile::tempdir().unwrap();
    let store = open(dir.path());
    let error = open_error(dir.path());
    let expected = format!("the store is not available: {}: another process has it open", dir.path().display());
    assert_eq!(error.to_string(), expected);
    assert_eq!(put(&*store, "k", "x").await, 1, "the first goes on");
    drop(store);
    assert_eq!(all(&*open(dir.path())).await.1, 1);
}

#[test]
fn it_is_for_its_owner_only_and_leaves_nothing_beside_it() {
    let root = tempfile::tempdir().unwrap();
    let dir = root.path().join("deep/er");
    drop(open(&dir));
    let mode = |path: &Path| fs::metadata(path).unwrap().permissions().mode() & 0o777;
    assert_eq!((mode(&dir), mode(&dir.join("octavius.redb"))), (0o700, 0o600));
    let names: Vec<_> = fs::read_dir(&dir).unwrap().map(|entry| entry.unwrap().file_name()).collect();
    assert_eq!(names, ["octavius.redb"]);
}

#[test]
fn a_folder_that_cannot_be_used_is_named() {
    let root = tempfile::tempdir().unwrap();
    let file = root.path().join("file");
    fs::write(&file, "x").unwrap();
    let error = open_error(&file.join("dir"));
    assert!(matches!(&error, StoreError::Unavailable(why) if why.contains("file/dir: ")), "{error}");
}

#[tokio::test]
async fn a_damaged_file_is_refused() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("octavius.redb");
    let store = open(dir.path());
    for index in 0..50 {
        put(&*store, &format!("k{index}"), &"x".repeat(500)).await;
    }
    let expected = all(&*store).await;
    drop(store);
    let good = fs::read(&path).unwrap();

    let refused = |bytes: &[u8], what: &str| {
        fs::write(&path, bytes).unwrap();
        let error = open_error(dir.path());
        let folder = dir.path().display().to_string();
        assert!(matches!(&error, StoreError::Unreadable(why) if why.starts_with(&folder)), "{what}: {error}");
    };
    refused(b"not a store at all", "another file");
    refused(&vec![0; good.len()], "zeroes");
    refused(&good[..good.len() / 2], "one cut in half");
    let mut bytes = good.clone();
    bytes[..64].fill(0xaa);
    refused(&bytes, "one without its beginning");
    fs::write(&path, &good).unwrap();
    assert_eq!(all(&*open(dir.path())).await, expected, "the file itself was good");
}

/// Where the writer that is to be killed writes.
const WRITER_DIR: &str = "OCTAVIUS_STORE_TEST_WRITER_DIR";

/// What [`a_killed_process_loses_nothing_acknowledged`] starts and kills: commits without end, and a line for each that was answered.
async fn write_until_killed(dir: &Path) {
    let store = open(dir);
    let round = all(&*store).await.1;
    let mut writers = tokio::task::JoinSet::new();
    for writer in 0..8 {
        let store = Arc::clone(&store);
        writers.spawn(async move {
            for index in 0.. {
                let name = format!("{round:08}/{writer}/{index:06}");
                let revision = put(&*store, &name, &"x".repeat(index % 700)).await;
                // Where nobody reads any more, this process was killed, or is about to be.
                if writeln!(std::io::stdout(), "ack {name} {revision}").is_err() {
                    return;
                }
            }
        });
    }
    while writers.join_next().await.is_some() {}
}

#[tokio::test(flavor = "multi_thread")]
async fn a_killed_process_loses_nothing_acknowledged() {
    // The process that is killed is this test, started once more.
    if let Some(dir) = std::env::var_os(WRITER_DIR) {
        return write_until_killed(Path::new(&dir)).await;
    }
    let dir = tempfile::tempdir().unwrap();
    let mut acknowledged = BTreeMap::new();
    let mut slowest = Duration::ZERO;
    for lines in [1, 300, 20, 1_000, 150, 77] {
        let mut writer = Command::new(std::env::current_exe().unwrap())
            .args(["--exact", "--nocapture", "a_killed_process_loses_nothing_acknowledged"])
            .env(WRITER_DIR, dir.path())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let mut output = BufReader::new(writer.stdout.take().unwrap());
        let mut line = String::new();
        let mut count = 0;
        loop {
            line.clear();
            // What is read after the kill was acknowledged before it.
            if output.read_line(&mut line).unwrap() == 0 {
                break;
            }
            let Some((name, revision)) = line.strip_prefix("ack ").and_then(|ack| ack.strip_suffix('\n')?.split_once(' ')) else {
                continue;
            };
            acknowledged.insert(name.to_owned(), revision.parse::<Revision>().unwrap());
            count += 1;
            if count == lines {
                writer.kill().unwrap();
            }
        }
        writer.wait().unwrap();
        assert!(count >= lines, "the writer ended after {count} lines");

        let start = Instant::now();
        let store = open(dir.path());
        slowest = slowest.max(start.elapsed());
        let (entries, revision) = all(&*store).await;
        assert_eq!(entries.len() as u64, revision, "each key is one transaction, and none came without its revision");
        let stored: BTreeMap<_, _> = entries.iter().map(|entry| (entry.key.as_str(), entry.modified)).collect();
        for (name, revision) in &acknowledged {
            assert_eq!(stored.get(name.as_str()), Some(revision), "{name} was acknowledged");
        }
        let mut revisions: Vec<_> = stored.values().copied().collect();
        revisions.sort_unstable();
        assert_eq!(revisions, (1..=revision).collect::<Vec<_>>());
        let mut last: BTreeMap<&str, usize> = BTreeMap::new();
        for name in stored.keys() {
            let (writer, index) = name.rsplit_once('/').unwrap();
            let next = last.entry(writer).or_default();
            assert_eq!(index.parse(), Ok(*next), "a writer's earlier commit is missing before {name}");
            *next += 1;
        }
    }
    assert!(slowest < Duration::from_secs(5), "opening after a kill took {slowest:?}");
}
