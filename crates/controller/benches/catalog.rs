//! What a catalogue of 1,000, 3,000 and 10,000 jobs of about 800 bytes costs the controller, through gRPC: `cargo bench -p
//! octavius-controller`. The store is embedded, or an etcd where the environment says `OCTAVIUS_TEST_STORE=etcd`. The aims, with 10,000
//! jobs: 50 ms for an apply of one change, and at most 150 MiB of memory for client and controller together.

#![expect(clippy::unwrap_used, clippy::print_stdout, reason = "a benchmark may fail loudly, and prints what it found")]

use std::net::SocketAddr;
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};

use octavius_controller::{Clock, Controller, ControllerOptions, Retention};
use octavius_core::{JobDefinition, Timing};
use octavius_proto::client::{Address, Connection};
use octavius_proto::v1::{self, apply_request::Part};
use octavius_store::{EmbeddedOptions, EtcdOptions, Store, open_embedded, open_etcd};
use octavius_tests::Etcd;

const SIZES: [usize; 3] = [1_000, 3_000, 10_000];

/// Applies of one change that are measured.
const CHANGES: usize = 15;

/// Definitions in one message, as clients send them.
const PER_MESSAGE: usize = 500;

fn job(number: usize, limit: usize) -> JobDefinition {
    let text = format!(
        r#"{{"name":"refund-order-{number}","description":"Refund one order and tell the customer","image_name":
        "registry.example/payments/refund:1.8.{number}","command":["/app/refund","--verbose"],"env_vars":{{"args":[{{"name":"order",
        "description":"like A-1042","required":true,"pattern":"^A-[0-9]+$"}},{{"name":"reason","description":"why","enum":["fraud",
        "goodwill"],"default":"goodwill"}},{{"name":"limit","description":"how many at once","type":"integer","default":{limit}}}],
        "secrets":[{{"name":"PAYMENT_TOKEN","description":"payment gateway","from":{{"kubernetes":{{"secret":"gateway","key":"token"}}}}}}]
        }},"authorized_groups":["support"],"author":"payments","executor":{{"vpc":"payments"}},"timeout":"10m","retries":1,
        "labels":{{"team":"payments","tier":"one"}},"confirm":true}}"#
    );
    serde_json::from_str(&text).unwrap()
}

fn entry(number: usize, job: &JobDefinition) -> v1::ManifestEntry {
    v1::ManifestEntry {
        name: job.name.to_string(),
        definition: job.digest().as_bytes().to_vec().into(),
        file: format!("catalog/team-{}/refund-order-{number}.yaml", number % 200),
        line: 2,
        changed_in: 0,
        inherited: Vec::new(),
    }
}

/// Applies jobs as they are made, so that the client never holds them all; how long from the first message to the answer.
async fn apply(connection: &Connection, parent: u64, jobs: std::ops::Range<usize>, limit: usize) -> Duration {
    let put = jobs.clone().map(|number| entry(number, &job(number, limit))).collect();
    let header = v1::ApplyHeader { catalog: "bench".into(), parent, put, ..Default::default() };
    let batches: Vec<_> = jobs.clone().step_by(PER_MESSAGE).map(|first| first..jobs.end.min(first + PER_MESSAGE)).collect();
    let messages = batches.into_iter().map(move |batch| {
        let json = |number| job(number, limit).to_canonical_json().into();
        let definitions = batch.map(|number| v1::Definition { json: json(number) }).collect();
        v1::ApplyRequest { part: Some(Part::Definitions(v1::ApplyDefinitions { definitions })) }
    });
    let parts = std::iter::once(v1::ApplyRequest { part: Some(Part::Header(header)) }).chain(messages);
    let began = Instant::now();
    connection.catalog().apply(futures::stream::iter(parts)).await.unwrap();
    began.elapsed()
}

async fn list(connection: &Connection, count: usize) -> Duration {
    let began = Instant::now();
    let (mut after, mut seen) = (String::new(), 0);
    loop {
        let page =
            connection.catalog().list_jobs(v1::ListJobsRequest { after, ..Default::default() }).await.unwrap().into_inner();
        seen += page.jobs.len();
        after = page.jobs.last().map(|job| job.name.clone()).unwrap_or_default();
        if !page.more {
            assert_eq!(seen, count);
            return began.elapsed();
        }
    }
}

async fn head(connection: &Connection) -> Duration {
    let began = Instant::now();
    let head = connection.catalog().get_head(v1::GetHeadRequest { catalog: "bench".into() }).await.unwrap().into_inner();
    assert!(head.revision.is_some());
    began.elapsed()
}

async fn start(store: Arc<dyn Store>, dir: &Path) -> (Controller, Connection) {
    let token = dir.join("admin.token");
    let options = ControllerOptions {
        store,
        listen: SocketAddr::from(([127, 0, 0, 1], 0)),
        tls: None,
        bootstrap_token_file: token.clone(),
        timing: Timing::default(),
        retention: Retention::default(),
        archive: None,
        log_limit: octavius_core::limit::LOG_BYTES_IN_STORE,
        audit_export: octavius_controller::AuditExport::default(),
        compact: true,
        strategy: octavius_core::dispatch::Strategy::default(),
        encryption: octavius_controller::Encryption::default(),
        clock: Clock::default(),
        limits: octavius_controller::RequestLimits { rate: None },
        issuers: Vec::new(),
        webhooks: Vec::new(),
        metrics_listen: None,
        page: None,
    };
    let controller = Controller::start(options).await.unwrap();
    let token = std::fs::read_to_string(token).unwrap();
    let address = Address::parse(&controller.address().to_string()).unwrap();
    let connection = Connection::open(&[address], Some(token.trim()), Duration::from_secs(30)).await.unwrap();
    (controller, connection)
}

/// A figure of this process' memory, in MiB: `VmRSS` for now, `VmHWM` for the most.
fn memory(what: &str) -> u64 {
    let status = std::fs::read_to_string("/proc/self/status").unwrap();
    let line = status.lines().find(|line| line.starts_with(what)).unwrap();
    line.split_whitespace().nth(1).unwrap().parse::<u64>().unwrap() / 1024
}

fn ms(duration: Duration) -> String {
    format!("{:.1}", duration.as_secs_f64() * 1000.0)
}

async fn measure(jobs: usize, etcd: Option<&Etcd>) {
    let dir = tempfile::tempdir().unwrap();
    let store: Arc<dyn Store> = match etcd {
        Some(etcd) => open_etcd(EtcdOptions::new(etcd.endpoints())).await.unwrap(),
        None => open_embedded(&dir.path().join("store"), EmbeddedOptions::default()).unwrap(),
    };
    let (controller, connection) = start(Arc::clone(&store), dir.path()).await;
    let before = memory("VmRSS");
    let first = apply(&connection, 0, 0..jobs, 100).await;
    let peak = memory("VmHWM");
    let head_after = head(&connection).await;
    let mut changes = Vec::new();
    for change in 1..=CHANGES {
        changes.push(apply(&connection, change as u64, change..change + 1, 100 + change).await);
    }
    changes.sort_unstable();
    let mut heads = Vec::new();
    for _ in 0..CHANGES {
        heads.push(head(&connection).await);
    }
    heads.sort_unstable();
    let (cold, warm) = (list(&connection, jobs).await, list(&connection, jobs).await);
    controller.stop().await;

    // Another controller knows nothing yet.
    let (controller, connection) = start(store, dir.path()).await;
    let head_cold = head(&connection).await;
    let list_cold = list(&connection, jobs).await;
    controller.stop().await;
    println!(
        "| {jobs} | {} | {} | {} / {} | {} | {} | {} / {} | {} | {} | {before} → {peak}, {} at the end |",
        ms(first),
        ms(head_after),
        ms(changes[CHANGES / 2]),
        ms(changes[CHANGES - 1]),
        ms(heads[CHANGES / 2]),
        ms(head_cold),
        ms(cold),
        ms(warm),
        ms(list_cold),
        job(1234, 1).to_canonical_json().len(),
        memory("VmHWM"),
    );
}

fn main() {
    let size = std::env::var("OCTAVIUS_BENCH_JOBS").ok().map(|size| vec![size.parse().unwrap()]);
    let on_etcd = std::env::var("OCTAVIUS_TEST_STORE").is_ok_and(|store| store == "etcd");
    println!(
        "| jobs | first apply, ms | GetHead after it | one change, median / worst | GetHead | after a restart | ListJobs, all, first / again \
         | after a restart | bytes of one | MiB before, at most after the first apply |"
    );
    println!("| --- | --- | --- | --- | --- | --- | --- | --- | --- | --- |");
    for jobs in size.unwrap_or_else(|| SIZES.to_vec()) {
        let etcd = on_etcd.then(|| Etcd::single().unwrap());
        tokio::runtime::Runtime::new().unwrap().block_on(measure(jobs, etcd.as_ref()));
    }
}
