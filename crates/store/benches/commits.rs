//! What durable writes and reads of the embedded store cost, beside what the disk itself takes for a durable append in the same run.
//! Prints a table; `cargo bench -p octavius-store`. The first argument that is a number is the seconds per row, 2 by default.

#![expect(clippy::unwrap_used, clippy::print_stdout, reason = "a benchmark may fail loudly, and prints what it found")]

use std::fs::File;
use std::io::Write as _;
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};

use octavius_store::{EmbeddedOptions, Key, Range, Store, Txn, open_embedded};
use tokio::task::JoinSet;

/// About what a record of an execution takes.
const VALUE_BYTES: usize = 400;

/// Records in the store while it is measured.
const RECORDS: usize = 40_000;

fn main() {
    let seconds = std::env::args().find_map(|argument| argument.parse().ok()).unwrap_or(2.0);
    let time = Duration::from_secs_f64(seconds);
    let dir =
        tempfile::tempdir_in(std::env::var_os("CARGO_TARGET_TMPDIR").unwrap_or_else(|| std::env::temp_dir().into())).unwrap();
    let runtime = tokio::runtime::Runtime::new().unwrap();

    println!("{:<44} {:>10} {:>10} {:>8}", "", "per second", "each, µs", "of disk");
    let disk = appends(dir.path(), time);
    row("disk: append and fdatasync", disk, disk, 1);
    let store = open_embedded(dir.path(), EmbeddedOptions::default()).unwrap();
    runtime.block_on(fill(&store));
    for committers in [1, 4, 16, 64, 256] {
        let rate = runtime.block_on(commits(&store, committers, 1, time));
        row(&format!("commit of one key, {committers} at once"), rate, disk, committers);
    }
    let rate = runtime.block_on(commits(&store, 64, 4, time));
    row("commit of four keys, one condition, 64 at once", rate, disk, 64);
    let start = Instant::now();
    let mut watches = Vec::new();
    for index in 0..5_000 {
        watches.push(runtime.block_on(store.watch(&key(index), u64::MAX)).unwrap());
    }
    let opened = start.elapsed();
    let rate = runtime.block_on(commits(&store, 64, 1, time));
    row("commit of one key, 64 at once, 5,000 watches", rate, disk, 64);
    drop(watches);
    let rate = runtime.block_on(gets(&store, time));
    row("get of one key", rate, disk, 1);
    let rate = runtime.block_on(pages(&store, time));
    row("page of 100 keys", rate, disk, 1);
    println!("opening 5,000 watches took {opened:.1?}");
    println!("resident at the end: {} MiB", resident_kib() / 1024);

    let copy = tempfile::tempdir_in(dir.path()).unwrap();
    let path = copy.path().join("octavius.redb");
    std::fs::copy(dir.path().join("octavius.redb"), &path).unwrap();
    let start = Instant::now();
    let opened = open_embedded(copy.path(), EmbeddedOptions::default()).unwrap();
    let size = path.metadata().unwrap().len() >> 20;
    println!("opening a file of {size} MiB that was not closed: {:.1?}", start.elapsed());
    drop(opened);
    let start = Instant::now();
    drop(open_embedded(copy.path(), EmbeddedOptions::default()).unwrap());
    println!("opening and closing it after a proper close: {:.1?}", start.elapsed());
}

fn row(what: &str, rate: f64, disk: f64, at_once: usize) {
    println!("{what:<44} {rate:>10.0} {:>10.1} {:>8.2}", 1e6 * at_once as f64 / rate, rate / disk);
}

fn key(index: usize) -> Key {
    Key::new(format!("exec/{index:026}"))
}

/// Durable appends per second, as a log file would make them.
fn appends(dir: &Path, time: Duration) -> f64 {
    let mut file = File::create(dir.join("append")).unwrap();
    let start = Instant::now();
    let mut count = 0;
    while start.elapsed() < time {
        file.write_all(&[b'x'; VALUE_BYTES]).unwrap();
        file.sync_data().unwrap();
        count += 1;
    }
    f64::from(count) / start.elapsed().as_secs_f64()
}

async fn fill(store: &Arc<dyn Store>) {
    for start in (0..RECORDS).step_by(Txn::MAX_OPERATIONS) {
        let keys = (start..start + Txn::MAX_OPERATIONS).map(key);
        store.commit(keys.fold(Txn::new(), |txn, key| txn.put(key, vec![b'x'; VALUE_BYTES]))).await.unwrap();
    }
}

/// Commits per second, of `keys` keys each, by `committers` that each wait for the answer before the next.
async fn commits(store: &Arc<dyn Store>, committers: usize, keys: usize, time: Duration) -> f64 {
    let start = Instant::now();
    let mut tasks = JoinSet::new();
    for committer in 0..committers {
        let store = Arc::clone(store);
        tasks.spawn(async move {
            let mut count = 0_usize;
            while start.elapsed() < time {
                let at = |n: usize| key((committer * 7919 + count * 104_729 + n * 31) % RECORDS);
                let mut txn = (0..keys).fold(Txn::new(), |txn, n| txn.put(at(n), vec![b'y'; VALUE_BYTES]));
                if keys > 1 {
                    txn = txn.absent(Key::new("none"));
                }
                store.commit(txn).await.unwrap();
                count += 1;
            }
            count
        });
    }
    let mut total = 0;
    while let Some(count) = tasks.join_next().await {
        total += count.unwrap();
    }
    total as f64 / start.elapsed().as_secs_f64()
}

async fn gets(store: &Arc<dyn Store>, time: Duration) -> f64 {
    let start = Instant::now();
    let mut count = 0;
    while start.elapsed() < time {
        store.get(&key(count * 7919 % RECORDS)).await.unwrap().unwrap();
        count += 1;
    }
    count as f64 / start.elapsed().as_secs_f64()
}

async fn pages(store: &Arc<dyn Store>, time: Duration) -> f64 {
    let start = Instant::now();
    let mut count = 0;
    while start.elapsed() < time {
        let range = Range { after: Some(key(count * 7919 % RECORDS)), ..Range::of(Key::new("exec/"), 100) };
        store.range(&range).await.unwrap();
        count += 1;
    }
    count as f64 / start.elapsed().as_secs_f64()
}

/// This process' resident memory, where the system tells it.
fn resident_kib() -> u64 {
    let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:"));
    line.and_then(|line| line.trim().trim_end_matches(" kB").parse().ok()).unwrap_or(0)
}
