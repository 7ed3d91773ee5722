//! Why an execution waits, as it is told; and how many wait for what, as it is counted.

use std::net::SocketAddr;

use octavius_core::Timestamp;
use octavius_proto::client::Connection;
use octavius_proto::v1::{self, ExecutionState as S};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};

use crate::fake::{Fake, finished, hello, labelled};
use crate::harness::{House, cancel, connect, eventually, execute, reaches, soon};

const JOB: &str = r#"{"name":"j","command":["true"]}"#;
const WEB: &str = r#"{"name":"web","command":["true"],"executor":{"vpc":"web"}}"#;

async fn wait_of(connection: &Connection, id: &str) -> Option<v1::Wait> {
    let request = v1::GetExecutionRequest { id: id.to_owned() };
    connection.executions().get_execution(request).await.unwrap().into_inner().wait
}

/// Waits until just these causes are told, each as `CODE executor: message`; without the times, which are the controller's. Returns them.
async fn told(connection: &Connection, id: &str, expected: &[&str]) -> v1::Wait {
    eventually(&format!("{expected:?}"), async || {
        let wait = wait_of(connection, id).await.unwrap();
        let line = |cause: &v1::WaitCause| {
            let message = cause.message.split(" since ").next().unwrap().to_owned();
            format!("{} {}: {message}", cause.code, cause.executor)
        };
        let lines: Vec<String> = wait.causes.iter().map(line).collect();
        if lines == expected { Ok(wait) } else { Err(format!("{lines:?}")) }
    })
    .await
}

#[tokio::test]
async fn one_learns_why_an_execution_waits() {
    let house = House::open().await;
    house.apply(&[WEB]).await;
    let admin = house.admin().await;
    let first = house.execute("web").await;
    told(&admin, &first, &["NO_EXECUTOR : no executor is there"]).await;

    let other = Fake::register(&house, "other").await;
    let _plain = other.session(hello(1)).await.unwrap();
    let lacks = "LABEL other: has no label vpc, needs vpc=web";
    let nearest = "NO_MATCHING_EXECUTOR other: no executor with vpc=web (nearest: other lacks it)";
    told(&admin, &first, &[nearest, lacks]).await;

    let began = Timestamp::now();
    let fake = Fake::register(&house, "web-1").await;
    let mut session = fake.session(labelled(1, &[("vpc", "web")])).await.unwrap();
    let claim = session.assignment().await;
    let second = house.execute("web").await;
    let third = house.execute("web").await;
    let full = "EXECUTOR_FULL web-1: full: 1/1 slots";
    let wait = told(&admin, &second, &[full, lacks]).await;
    assert_eq!(wait.ahead, 0);
    let since = octavius_proto::timestamp("since", wait.causes[0].since.as_ref().unwrap()).unwrap();
    assert!(began <= since && since <= Timestamp::now(), "{since}");
    assert!(wait.causes[0].message.contains(" since "), "{wait:?}");
    let behind = told(&admin, &third, &[full, "AHEAD : 1 execution is ahead of it", lacks]).await;
    assert_eq!(behind.ahead, 1);
    assert_eq!(behind.causes[0].since, wait.causes[0].since, "it has been full since then");

    // What runs, and what has ended, does not wait.
    assert_eq!(wait_of(&admin, &first).await, None);
    session.says_free(0).await;
    fake.completes(&claim, b"").await;
    told(&admin, &second, &["EXECUTOR_FULL web-1: says that it has no room, 0/1 slots are taken", lacks]).await;
    cancel(&admin, &third).await;
    assert_eq!(wait_of(&admin, &third).await, None);
}

#[tokio::test]
async fn an_executor_that_has_gone_is_what_is_missing() {
    let house = House::open().await;
    house.apply(&[WEB]).await;
    let admin = house.admin().await;
    let fake = Fake::register(&house, "web-1").await;
    let session = fake.session(labelled(1, &[("vpc", "web")])).await.unwrap();
    drop(session);
    eventually("the session to end", async || {
        let executors = admin.executors().list_executors(v1::ListExecutorsRequest {}).await.unwrap().into_inner().executors;
        match executors.iter().all(|executor| executor.state() == v1::ExecutorState::Expired) {
            true => Ok(()),
            false => Err(format!("{executors:?}")),
        }
    })
    .await;
    let id = house.execute("web").await;
    let wait = told(&admin, &id, &["NO_EXECUTOR : no executor is there", "EXECUTOR_ABSENT web-1: not there"]).await;
    assert!(wait.causes[1].since.is_some(), "{wait:?}");
}

#[tokio::test]
async fn why_it_waits_is_told_by_every_controller_alike() {
    let house = House::open().await;
    let neighbour = house.neighbour().await;
    house.apply(&[JOB, WEB]).await;
    let at_a = house.admin().await;
    let at_b = connect(neighbour.address(), Some(&house.token)).await;
    let id = execute(&at_a, "web", &[]).await.unwrap();
    for connection in [&at_a, &at_b] {
        told(connection, &id, &["NO_EXECUTOR : no executor is there"]).await;
    }
    let fake = Fake::register(&house, "e").await;
    let mut session = fake.session(labelled(1, &[("vpc", "other")])).await.unwrap();
    execute(&at_a, "j", &[]).await.unwrap();
    let claim = session.assignment().await;
    for connection in [&at_a, &at_b] {
        let nearest = "NO_MATCHING_EXECUTOR e: no executor with vpc=web (nearest: e has vpc=other)";
        told(connection, &id, &[nearest, "LABEL e: vpc=other, needs vpc=web"]).await;
    }
    let second = execute(&at_b, "j", &[]).await.unwrap();
    for connection in [&at_a, &at_b] {
        let wait = told(connection, &second, &["EXECUTOR_FULL e: full: 1/1 slots"]).await;
        assert!(wait.causes[0].since.is_some(), "each has seen it itself: {wait:?}");
    }
    fake.completes(&claim, b"").await;
    neighbour.stop().await;
}

/// A request over HTTP/1.1: the head of the answer, and its body.
pub(crate) async fn http(address: SocketAddr, method: &str, path: &str) -> (String, String) {
    let mut stream = tokio::net::TcpStream::connect(address).await.unwrap();
    let request = format!("{method} {path} HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n");
    stream.write_all(request.as_bytes()).await.unwrap();
    let mut answer = String::new();
    soon("an answer", stream.read_to_string(&mut answer)).await.unwrap();
    let (head, body) = answer.split_once("\r\n\r\n").unwrap();
    (head.to_owned(), body.to_owned())
}

#[tokio::test]
async fn metrics_count_what_waits_by_its_cause_and_what_happened() {
    let house = House::open().await;
    house.apply(&[JOB, WEB]).await;
    let admin = house.admin().await;
    let scraped = async |lines: &[&str]| {
        eventually(&format!("{lines:?}"), async || {
            let (head, body) = http(house.metrics_address(), "GET", "/metrics").await;
            assert!(head.starts_with("HTTP/1.1 200") && head.contains("application/openmetrics-text; version=1.0.0"), "{head}");
            match lines.iter().all(|line| body.lines().any(|known| known == *line)) {
                true => Ok(body),
                false => Err(body),
            }
        })
        .await
    };
    let none = scraped(&[
        "# TYPE octavius_executions_waiting gauge",
        "octavius_executions_waiting{cause=\"no_executor\"} 0",
        "octavius_executors{state=\"active\"} 0",
        "octavius_claims_total 0",
        "octavius_executions_finished_total{state=\"lost\"} 0",
    ])
    .await;
    assert!(none.ends_with("# EOF\n"), "{none}");
    // But for those of jobs, and of what became of calls.
    let counted = ["octavius_job_executions_finished_total{", "octavius_rpcs_total{"];
    let is_fixed = |line: &&str| !line.starts_with('#') && !counted.iter().any(|counted| line.starts_with(counted));
    let series = |body: &str| body.lines().filter(is_fixed).count();

    for _ in 0..3 {
        house.execute("web").await;
    }
    scraped(&["octavius_executions_waiting{cause=\"no_executor\"} 3"]).await;
    house.register("never").await;
    let fake = Fake::register(&house, "e").await;
    let mut session = fake.session(hello(2)).await.unwrap();
    let id = house.execute("j").await;
    let claim = session.assignment().await;
    assert_eq!(claim.id, id);
    scraped(&[
        "octavius_executions_waiting{cause=\"no_matching_executor\"} 3",
        "octavius_executions_waiting{cause=\"no_executor\"} 0",
        "octavius_executors{state=\"active\"} 1",
        "octavius_executors{state=\"registered\"} 1",
        "octavius_slots{state=\"taken\"} 1",
        "octavius_slots{state=\"free\"} 1",
        "octavius_claims_total 1",
    ])
    .await;
    fake.begins(&claim).await;
    fake.report(&claim, finished(S::Failed, b"")).await.unwrap();
    // Said again, it has not happened again.
    fake.report(&claim, finished(S::Failed, b"")).await.unwrap();
    reaches(&admin, &id, S::Failed).await;
    let body = scraped(&[
        "octavius_executions_finished_total{state=\"failed\"} 1",
        "octavius_executions_finished_total{state=\"succeeded\"} 0",
        "octavius_slots{state=\"free\"} 2",
        "octavius_executions_submitted_total 4",
        "octavius_executions_held 0",
        "octavius_execution_waiting_seconds_count 1",
        "octavius_execution_running_seconds_count 1",
        "octavius_rpcs_total{rpc=\"ExecutionService/Execute\",code=\"OK\"} 4",
        "octavius_rpcs_under_way{rpc=\"ExecutorService/Session\"} 1",
        "octavius_rpcs_under_way{rpc=\"ExecutionService/Execute\"} 0",
        "octavius_rpc_seconds_count{rpc=\"ExecutionService/Execute\"} 4",
        "octavius_archive_up 1",
        "octavius_store_fill_percent 0",
    ])
    .await;
    assert_eq!(series(&body), series(&none), "no series comes from what users do");
    let of_jobs: Vec<&str> = body.lines().filter(|line| line.starts_with("octavius_job_executions_finished_total{")).collect();
    assert_eq!(of_jobs, ["octavius_job_executions_finished_total{job_name=\"j\",state=\"failed\",reason=\"EXIT_CODE\"} 1"]);
    let count = |name: &str| -> f64 {
        let line = body.lines().find(|line| line.starts_with(&format!("{name} "))).unwrap_or_else(|| panic!("{name} in {body}"));
        line.rsplit(' ').next().unwrap().parse().unwrap()
    };
    assert!(count("octavius_store_seconds_count{operation=\"commit\"}") >= 4.0);
    assert!(count("octavius_store_watches_begun_total") >= 4.0);
    assert_eq!(count("octavius_store_errors_total{operation=\"commit\"}"), 0.0);
    execute(&house.connect(Some("octu_none")).await, "j", &[]).await.unwrap_err();
    execute(&admin, "nothing", &[]).await.unwrap_err();
    scraped(&[
        "octavius_rpcs_total{rpc=\"ExecutionService/Execute\",code=\"UNAUTHENTICATED\"} 1",
        "octavius_rpcs_total{rpc=\"ExecutionService/Execute\",code=\"NOT_FOUND\"} 1",
    ])
    .await;
}

#[tokio::test]
async fn only_metrics_and_health_are_served_there() {
    let house = House::open().await;
    let (head, body) = http(house.metrics_address(), "GET", "/healthz").await;
    assert!(head.starts_with("HTTP/1.1 200") && body == "ok\n", "{head} {body}");
    let (head, body) = http(house.metrics_address(), "GET", "/readyz").await;
    assert!(head.starts_with("HTTP/1.1 200") && body == "ok\n", "{head} {body}");
    for (method, path, expected) in [("GET", "/", 404), ("GET", "/metrics/x", 404), ("POST", "/metrics", 405)] {
        let (head, _) = http(house.metrics_address(), method, path).await;
        assert!(head.starts_with(&format!("HTTP/1.1 {expected}")), "{method} {path}: {head}");
    }
}
