//! What the etcd store makes of an etcd: its transactions and reads beside single puts and reads by the plain client, on the same etcd in the
//! same run, in turns. Prints a table; `cargo bench -p octavius-store --bench etcd`. The first argument that is a number is the seconds per
//! row and turn, 1 by default; `members=3` measures that many members.

#![expect(clippy::unwrap_used, clippy::print_stdout, reason = "a benchmark may fail loudly, and prints what it found")]

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use etcd_client::{Client, KvClient};
use octavius_store::{Commit, EtcdOptions, Key, Store, Txn, open_etcd};
use octavius_tests::{Etcd, EtcdOptions as Start};
use tokio::task::JoinSet;

/// About what a record of a submission takes.
const VALUE_BYTES: usize = 256;

/// Turns of each row; the table shows the middle one.
const TURNS: usize = 5;

/// Callers at the same time, where there are several.
const CALLERS: usize = 64;

/// Counts keys, so that each is new.
static NEXT: AtomicUsize = AtomicUsize::new(0);

fn fresh() -> String {
    format!("exec/{:020}", NEXT.fetch_add(1, Ordering::Relaxed))
}

fn value() -> Vec<u8> {
    vec![b'x'; VALUE_BYTES]
}

/// What a row does once, on either side.
#[derive(Clone, Copy)]
enum Row {
    RawPut,
    RawGet,
    Put,
    Submission,
    Get,
}

#[derive(Clone)]
struct Sides {
    raw: KvClient,
    store: Arc<dyn Store>,
}

impl Sides {
    async fn once(&mut self, row: Row) {
        match row {
            Row::RawPut => drop(self.raw.put(format!("/raw/{}", fresh()), value(), None).await.unwrap()),
            Row::RawGet => assert_eq!(self.raw.get("/raw/one", None).await.unwrap().kvs().len(), 1),
            Row::Put => done(&self.store.commit(Txn::new().put(Key::new(fresh()), value())).await.unwrap()),
            Row::Submission => {
                let id = fresh();
                let once = Key::new(format!("once/{id}"));
                let names = [id.clone(), format!("queue/{id}"), format!("by-job/{id}")];
                let txn = Txn::new().absent(once.clone()).put(once.clone(), value()).or_read(once);
                done(
                    &self.store.commit(names.into_iter().fold(txn, |txn, name| txn.put(Key::new(name), value()))).await.unwrap(),
                );
            }
            Row::Get => assert!(self.store.get(&Key::new("one")).await.unwrap().is_some()),
        }
    }
}

fn done(commit: &Commit) {
    assert!(matches!(commit, Commit::Done(_)), "{commit:?}");
}

/// How often per second, by so many callers that each wait for the answer before they ask again.
async fn rate(sides: &Sides, row: Row, callers: usize, time: Duration) -> f64 {
    let begun = Instant::now();
    let mut tasks = JoinSet::new();
    for _ in 0..callers {
        let mut sides = sides.clone();
        tasks.spawn(async move {
            let mut count = 0_usize;
            while begun.elapsed() < time {
                sides.once(row).await;
                count += 1;
            }
            count
        });
    }
    let count: usize = tasks.join_all().await.into_iter().sum();
    count as f64 / begun.elapsed().as_secs_f64()
}

#[tokio::main]
async fn main() {
    let seconds = std::env::args().find_map(|argument| argument.parse().ok()).unwrap_or(1.0);
    let members = std::env::args().find_map(|argument| argument.strip_prefix("members=")?.parse().ok()).unwrap_or(1);
    // Room for all that is written, so that the quota plays no part.
    let etcd = Etcd::start(&Start::new(members).flag("--quota-backend-bytes=8589934592")).unwrap();
    let mut raw = Client::connect(etcd.endpoints(), None).await.unwrap().kv_client();
    let store = open_etcd(EtcdOptions { timeout: Duration::from_secs(10), ..EtcdOptions::new(etcd.endpoints()) }).await.unwrap();
    raw.put("/raw/one", value(), None).await.unwrap();
    done(&store.commit(Txn::new().put(Key::new("one"), value())).await.unwrap());
    let sides = Sides { raw, store };

    let rows = [
        ("put, plain client", Row::RawPut, CALLERS),
        ("submission: 4 keys, 1 condition, 1 read", Row::Submission, CALLERS),
        ("commit of one key", Row::Put, CALLERS),
        ("get, plain client", Row::RawGet, CALLERS),
        ("get", Row::Get, CALLERS),
        ("put, plain client", Row::RawPut, 1),
        ("submission", Row::Submission, 1),
        ("commit of one key", Row::Put, 1),
        ("get, plain client", Row::RawGet, 1),
        ("get", Row::Get, 1),
    ];
    let mut rates = vec![Vec::new(); rows.len()];
    for _ in 0..TURNS {
        for (rates, (_, row, callers)) in rates.iter_mut().zip(rows) {
            rates.push(rate(&sides, row, callers, Duration::from_secs_f64(seconds)).await);
        }
    }
    println!("{:<42} {:>8} {:>10} {:>10} {:>8}", format!("{members} members"), "at once", "per second", "each, µs", "of plain");
    let mut plain = 1.0;
    for (rates, (what, row, callers)) in rates.iter_mut().zip(rows) {
        rates.sort_by(f64::total_cmp);
        let rate = rates[TURNS / 2];
        if matches!(row, Row::RawPut | Row::RawGet) {
            plain = rate;
        }
        println!("{what:<42} {callers:>8} {rate:>10.0} {:>10.0} {:>8.2}", 1e6 * callers as f64 / rate, rate / plain);
    }
}
