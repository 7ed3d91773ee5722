//! The command line against real controllers that die, freeze and lose answers while another lives; and what works without one, on a real
//! etcd: the import, backups and their return.

#![expect(clippy::unwrap_used, reason = "a helper that cannot do its work fails the test that called it")]

use std::fs;
use std::io::{BufRead as _, BufReader, Read as _, Write as _};
use std::net::TcpStream;
use std::process::Stdio;
use std::time::Duration;

use octavius_catalog::{Action, PlanOptions};
use octavius_cli::config::Resolved;
use octavius_cli::output::Shell;
use octavius_cli::remote_catalog::{Applying, apply, make_plan, observe, read};
use octavius_cli::session::Session;
use octavius_core::{CatalogName, ExecutionId};
use octavius_proto::client::Address;
use octavius_proto::v1;
use octavius_tests::{Client, Daemon, Direction, Etcd, Mode, Proxy, World, eventually, free_ports};
use rustix::process::Signal;

/// A catalogue with a job that prints ten lines within two seconds.
fn catalog(world: &World) -> String {
    world.write("catalog/octavius.yaml", "catalog: test\n").unwrap();
    let script = "for i in 1 2 3 4 5 6 7 8 9 10; do echo line $i; sleep 0.2; done";
    world.write("catalog/slow.yaml", &format!("name: slow\ncommand: [sh, -c, \"{script}\"]\n")).unwrap();
    world.path("catalog").display().to_string()
}

/// What the job prints.
fn lines() -> String {
    (1..=10).map(|line| format!("line {line}\n")).collect()
}

fn token(world: &World) -> String {
    fs::read_to_string(world.path("admin.token")).unwrap().trim().to_owned()
}

/// A client of several addresses.
fn client_of<'w>(world: &'w World, hosts: &[String]) -> Client<'w> {
    world.client_of("both", &hosts.join(","), &token(world)).unwrap()
}

fn resolved(world: &World, hosts: &[String]) -> Resolved {
    Resolved {
        addresses: hosts.iter().map(|host| Address::parse(host).unwrap()).collect(),
        token: Some(token(world)),
        token_source: None,
        email_id: None,
        timeout: Duration::from_secs(60),
        name: "test".to_owned(),
        warnings: Vec::new(),
    }
}

fn runtime() -> tokio::runtime::Runtime {
    tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().unwrap()
}

/// Two controllers over one etcd, an executor, and a client that knows both, the first one first.
struct Pair {
    first: Daemon,
    second: Daemon,
    _executor: Daemon,
    hosts: Vec<String>,
}

fn pair(world: &World) -> Pair {
    let (first, one) = world.controller("first", 0).unwrap();
    let (second, two) = world.controller("second", 0).unwrap();
    let admin = world.admin(two).unwrap();
    admin.run(&["apply", &catalog(world)]).unwrap().expect(0).unwrap();
    let executor = world.executor("e1", two, &admin.registration().unwrap(), 4).unwrap();
    Pair { first, second, _executor: executor, hosts: [one, two].map(|port| format!("127.0.0.1:{port}")).into() }
}

#[test]
fn a_followed_log_goes_on_when_its_controller_is_killed() {
    let world = World::on_etcd().unwrap();
    let Pair { first, second: _second, _executor, hosts } = pair(&world);
    let client = client_of(&world, &hosts);
    let (id, said) = std::thread::scope(|scope| {
        let following = scope.spawn(|| client.run(&["execute", "slow", "--follow"]).unwrap().expect(0).unwrap());
        let direct = world.admin(hosts[1].rsplit(':').next().unwrap().parse().unwrap()).unwrap();
        let id = eventually("it prints", || {
            let id = direct.run(&["executions", "--all", "-o", "name"])?.expect(0)?.stdout.trim().to_owned();
            anyhow::ensure!(!id.is_empty(), "nothing was submitted");
            let log = direct.run(&["getlogs", &id])?.expect(0)?.stdout;
            anyhow::ensure!(log.contains("line 2"), "{log:?}");
            Ok(id)
        })
        .unwrap();
        first.kill().unwrap();
        (id, following.join().unwrap())
    });
    assert_eq!(said.stdout, lines(), "{}", said.stderr);
    assert!(said.stderr.contains(&id) && said.stderr.contains("trying again"), "{}", said.stderr);
    // its address is still the first in the list
    for command in [&["status", &id][..], &["list"], &["getlogs", &id], &["execute", "slow", "--wait"]] {
        client.run(command).unwrap().expect(0).unwrap();
    }
}

/// At the other controller, without a record twice or missing.
#[test]
fn a_followed_audit_trail_goes_on_when_its_controller_is_killed() {
    let world = World::on_etcd().unwrap();
    let Pair { first, second: _second, _executor, hosts } = pair(&world);
    let client = client_of(&world, &hosts);
    let direct = world.admin(hosts[1].rsplit(':').next().unwrap().parse().unwrap()).unwrap();
    let mut command = client.command(&["audit", "-f", "-o", "json"]);
    let mut following = command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
    let (said, heard) = std::sync::mpsc::channel();
    let lines = BufReader::new(following.stdout.take().unwrap()).lines();
    let reading = std::thread::spawn(move || lines.map_while(Result::ok).for_each(|line| drop(said.send(line))));
    let mut seen: Vec<serde_json::Value> = Vec::new();
    let mut until = |object: &str| {
        while seen.last().is_none_or(|last| last["object"] != object) {
            let line = heard.recv_timeout(Duration::from_secs(60)).unwrap_or_else(|_| panic!("no {object} in {seen:?}"));
            seen.push(serde_json::from_str(&line).unwrap());
        }
        seen.clone()
    };
    let submit = || format!("execution/{}", direct.run(&["execute", "slow"]).unwrap().expect(0).unwrap().stdout.trim());
    until(&submit());
    first.kill().unwrap();
    until(&submit());
    let seen = until(&submit());
    following.kill().unwrap();
    let mut stderr = String::new();
    following.stderr.take().unwrap().read_to_string(&mut stderr).unwrap();
    following.wait().unwrap();
    reading.join().unwrap();
    assert!(stderr.contains("trying again"), "{stderr}");

    let all = json(&client, &["audit", "--since", "1h"]);
    let ids = |records: &[serde_json::Value]| records.iter().map(|record| record["id"].clone()).collect::<Vec<_>>();
    assert_eq!(ids(&seen), ids(all["records"].as_array().unwrap()), "followed, and read at once");
    assert_eq!((all["format_version"].as_u64(), seen[0]["format_version"].as_u64()), (Some(1), Some(1)));
    assert_eq!(json(&client, &["audit", "--limit", "2"])["records"].as_array().unwrap().len(), 2);
    let table = client.run(&["audit", "--limit", "2"]).unwrap().expect(0).unwrap().stdout;
    let rows: Vec<Vec<_>> = table.lines().map(|line| line.split_whitespace().skip(1).collect()).collect();
    assert_eq!(rows[0], ["USER", "ACTION", "OBJECT", "RESULT", "FROM"]);
    let object = seen.last().unwrap()["object"].as_str().unwrap();
    assert_eq!(rows[2], ["admin", "execution.submit", object, "done", "127.0.0.1"]);
    let none = client.run(&["audit", "--since", "2100-01-01T00:00:00Z"]).unwrap().expect(0).unwrap();
    assert_eq!((none.stdout.lines().count(), none.stderr.as_str()), (1, ""));
    client.run(&["audit", "--since", "soon"]).unwrap().expect(2).unwrap();
}

/// What a command prints as JSON.
fn json(client: &Client<'_>, command: &[&str]) -> serde_json::Value {
    client.run(&[command, &["-o", "json"]].concat()).unwrap().expect(0).unwrap().json().unwrap()
}

/// Waits until an execution of `slow` runs; its id.
fn running(client: &Client<'_>) -> String {
    let id = client.run(&["execute", "slow"]).unwrap().expect(0).unwrap().stdout.trim().to_owned();
    eventually("it runs", || {
        let status = json(client, &["status", &id]);
        anyhow::ensure!(status["state"] == "running", "{status}");
        Ok(())
    })
    .unwrap();
    id
}

#[test]
fn an_executor_is_drained_while_controllers_come_and_go_and_revoked_when_it_is_empty() {
    let world = World::on_etcd().unwrap();
    let Pair { first, second: _second, _executor, hosts } = pair(&world);
    let client = client_of(&world, &hosts);
    let id = running(&client);
    let near = client.run(&["executors", "drain", "e2"]).unwrap().expect(3).unwrap();
    assert!(near.stderr.contains("did you mean `e1`?"), "{}", near.stderr);
    let busy = client.run(&["executors", "revoke", "e1"]).unwrap().expect(3).unwrap();
    assert!(busy.stderr.contains(&id) && busy.stderr.contains("drain e1 --wait"), "{}", busy.stderr);
    let late = client.run(&["executors", "drain", "e1", "--wait", "--wait-timeout", "100ms"]).unwrap().expect(124).unwrap();
    assert!(late.stderr.contains(&id) && late.stdout.is_empty(), "{} {}", late.stdout, late.stderr);
    let shown = json(&client, &["executors", "describe", "e1"]);
    assert_eq!((&shown["state"], &shown["draining"]["by"]), (&"draining".into(), &"admin".into()), "{shown}");
    std::thread::scope(|scope| {
        let waiting = scope.spawn(|| client.run(&["executors", "drain", "e1", "--wait"]).unwrap().expect(0).unwrap());
        first.kill().unwrap();
        let waited = waiting.join().unwrap();
        assert_eq!(waited.stdout, "e1 is drained: it holds nothing\n", "{}", waited.stderr);
    });
    assert_eq!(json(&client, &["status", &id])["state"], "succeeded");
    client.run(&["executors", "resume", "e1"]).unwrap().expect(0).unwrap();
    client.run(&["execute", "slow", "--wait"]).unwrap().expect(0).unwrap();

    let lost = running(&client);
    let revoked = json(&client, &["executors", "revoke", "e1", "--force"]);
    assert_eq!(revoked["lost"], serde_json::json!([lost]), "{revoked}");
    assert_eq!(json(&client, &["status", &lost])["state"], "lost");
    client.run(&["executors", "revoke", "e1"]).unwrap().expect(3).unwrap();
    assert_eq!(json(&client, &["executors"])["executors"], serde_json::json!([]));
}

#[test]
fn a_paused_job_waits_and_says_so() {
    let world = World::new().unwrap();
    let (_controller, port) = world.controller("store", 0).unwrap();
    let client = world.admin(port).unwrap();
    client.run(&["apply", &catalog(&world)]).unwrap().expect(0).unwrap();
    let _executor = world.executor("e1", port, &client.registration().unwrap(), 4).unwrap();
    client.run(&["execute", "slow", "--wait"]).unwrap().expect(0).unwrap();
    let listed = || client.run(&["list"]).unwrap().expect(0).unwrap().stdout;
    assert!(!listed().contains("PAUSED"));
    client.run(&["pause"]).unwrap().expect(2).unwrap();
    client.run(&["pause", "slow", "--all"]).unwrap().expect(2).unwrap();
    let near = client.run(&["pause", "slwo"]).unwrap().expect(3).unwrap();
    assert!(near.stderr.contains("did you mean `slow`?"), "{}", near.stderr);
    let paused = client.run(&["pause", "slow", "--reason", "the database moves"]).unwrap().expect(0).unwrap();
    assert!(
        paused.stdout.starts_with("slow: paused by admin since ") && paused.stdout.ends_with(": the database moves\n"),
        "{}",
        paused.stdout
    );
    assert!(listed().contains("PAUSED"));
    let waits = client.run(&["execute", "slow", "--wait", "--wait-timeout", "1s"]).unwrap().expect(124).unwrap();
    let status = client.run(&["status", waits.stdout.trim()]).unwrap().expect(0).unwrap().stdout;
    assert!(status.contains("the job is paused since") && status.contains("the database moves"), "{status}");
    assert_eq!(json(&client, &["describe", "slow"])["paused"]["by"], "admin");
    client.run(&["pause", "--all"]).unwrap().expect(0).unwrap();
    let left = client.run(&["unpause", "slow"]).unwrap().expect(0).unwrap();
    assert!(left.stdout.contains("paused with all jobs by admin"), "{}", left.stdout);
    client.run(&["unpause", "--all"]).unwrap().expect(0).unwrap();
    client.run(&["status", waits.stdout.trim(), "--wait"]).unwrap().expect(0).unwrap();
}

#[test]
fn a_controller_that_is_frozen_costs_a_share_of_the_time() {
    let world = World::on_etcd().unwrap();
    let Pair { first, second, _executor, hosts } = pair(&world);
    let client = client_of(&world, &hosts);
    first.signal(Signal::STOP).unwrap();
    let listed = client.run(&["list", "-o", "name", "--time-out", "4"]).unwrap().expect(0).unwrap();
    assert_eq!(listed.stdout, "slow\n");
    assert!(listed.stderr.contains(&format!("{} did not answer within 2s; trying again", hosts[0])), "{}", listed.stderr);
    second.kill().unwrap();
    let refused = client.run(&["list", "--time-out", "2"]).unwrap().expect(4).unwrap();
    let told = &refused.stderr;
    assert!(told.contains(&format!("{}: ", hosts[0])) && told.contains(&format!("{}: connection refused", hosts[1])), "{told}");
    first.signal(Signal::CONT).unwrap();
}

/// Wherever the connection is cut, each command answers in full through the other address.
#[test]
fn a_connection_may_be_cut_at_any_byte() {
    let world = World::new().unwrap();
    let (_controller, port) = world.controller("store", 0).unwrap();
    let direct = world.admin(port).unwrap();
    let catalog = catalog(&world);
    for number in 0..60 {
        world.write(&format!("catalog/j{number:02}.yaml"), &format!("name: j{number:02}\ncommand: [\"true\"]\n")).unwrap();
    }
    direct.run(&["apply", &catalog]).unwrap().expect(0).unwrap();
    let proxy = Proxy::before(port).unwrap();
    let client = client_of(&world, &[proxy.address().to_string(), format!("127.0.0.1:{port}")]);
    let names = direct.run(&["list", "-o", "name"]).unwrap().expect(0).unwrap().stdout;
    let mut revision = 1;
    for bytes in [0, 1, 60, 150, 250, 350, 500, 700, 1000, 2000, 4000, 8000] {
        proxy.set(Mode::CutAfter(bytes));
        let listed = client.run(&["list", "-o", "name"]).unwrap().expect(0).unwrap();
        assert_eq!(listed.stdout, names, "cut after {bytes}: {}", listed.stderr);
        client.run(&["diff", &catalog]).unwrap().expect(0).unwrap();
        world.write("catalog/j00.yaml", &format!("name: j00\ndescription: cut after {bytes}\ncommand: [\"true\"]\n")).unwrap();
        revision += 1;
        let applied = client.run(&["apply", &catalog]).unwrap().expect(0).unwrap();
        assert_eq!(applied.stdout, format!("revision {revision}\n"), "cut after {bytes}: {}", applied.stderr);
        let file = world.path("backup").display().to_string();
        client.run(&["backup", &file]).unwrap().expect(0).unwrap();
        client.run(&["execute", "slow"]).unwrap().expect(0).unwrap();
        let made = direct.run(&["executions", "-o", "name"]).unwrap().expect(0).unwrap().stdout;
        assert_eq!(u64::try_from(made.lines().count()).unwrap(), revision - 1, "cut after {bytes}: {made}");
    }
}

/// Waits until what a command prints shows that something was done.
fn until_done(client: &Client<'_>, command: &[&str], shows: &str) {
    tokio::task::block_in_place(|| {
        eventually("it is done", || {
            let printed = client.run(command)?.expect(0)?.stdout;
            anyhow::ensure!(printed.contains(shows), "{printed:?}");
            Ok(())
        })
    })
    .unwrap();
}

/// The answers are lost after the controller has done what was asked: what is repeated finds it done.
#[test]
fn a_lost_answer_is_not_a_second_deed() {
    let world = World::new().unwrap();
    let (_controller, port) = world.controller("store", 0).unwrap();
    let direct = world.admin(port).unwrap();
    let folder = catalog(&world);
    let proxy = Proxy::before(port).unwrap();
    let hosts = [proxy.address().to_string(), format!("127.0.0.1:{port}")];
    runtime().block_on(async {
        let session = Session::connect(&Shell::new(true), resolved(&world, &hosts)).await.unwrap();
        assert_eq!(session.address().to_string(), hosts[0]);
        let name = CatalogName::new("test").unwrap();
        let (loaded, _) = read(folder.as_ref()).unwrap();
        let remote = observe(&session, &name, &loaded.jobs).await.unwrap();
        let plan = make_plan(&name, &remote, &loaded.jobs, &PlanOptions::default()).unwrap();
        assert_eq!(plan.changes[0].action, Action::Added);
        let applying = Applying { controller_id: remote.controller_id.clone(), ..Default::default() };

        proxy.set(Mode::Blackhole(Direction::ToClient));
        let (made, ()) = tokio::join!(apply(&session, &plan, applying.clone()), async {
            until_done(&direct, &["history", "--catalog-name", "test", "-o", "json"], "\"revision\": 1");
            proxy.set(Mode::Pass);
            proxy.reset();
        });
        let made = made.unwrap();
        assert_eq!((made.number, made.parent), (1, 0));
        // the same plan, made by someone else from the same parent, is the same; another one is not
        world.write("catalog/other.yaml", "name: other\ncommand: [\"true\"]\n").unwrap();
        let (loaded, _) = read(folder.as_ref()).unwrap();
        let stale = make_plan(&name, &remote, &loaded.jobs, &PlanOptions::default()).unwrap();
        let failure = apply(&session, &stale, applying).await.unwrap_err();
        assert!(failure.is(octavius_proto::reason::HEAD_MOVED), "{failure:?}");
    });
    let id = ExecutionId::generate().to_string();
    runtime().block_on(async {
        let session = Session::connect(&Shell::new(true), resolved(&world, &hosts)).await.unwrap();
        session.call(async |to| to.admin().who_am_i(v1::WhoAmIRequest {}).await).await.unwrap();
        proxy.set(Mode::Blackhole(Direction::ToClient));
        let request = v1::ExecuteRequest { id: id.clone(), job: "slow".to_owned(), ..Default::default() };
        let made = session.call(async |to| to.executions().execute(request.clone()).await);
        let (made, ()) = tokio::join!(made, async {
            until_done(&direct, &["executions", "-o", "name"], &id);
            proxy.set(Mode::Pass);
            proxy.reset();
        });
        assert_eq!(made.unwrap().id, id);
    });
    let made = direct.run(&["executions", "-o", "name"]).unwrap().expect(0).unwrap().stdout;
    assert_eq!(made, format!("{id}\n"));
}

/// Writes a key through etcd's JSON gateway.
fn put(port: u16, key: &str, value: &[u8]) {
    post(port, "kv/put", &format!("{{\"key\":\"{}\",\"value\":\"{}\"}}", base64(key.as_bytes()), base64(value)));
}

/// Calls etcd through its JSON gateway.
fn post(port: u16, path: &str, body: &str) {
    let mut stream = TcpStream::connect(("127.0.0.1", port)).unwrap();
    stream.set_read_timeout(Some(Duration::from_secs(30))).unwrap();
    let length = body.len();
    write!(stream, "POST /v3/{path} HTTP/1.0\r\nHost: localhost\r\nContent-Length: {length}\r\n\r\n{body}").unwrap();
    let mut answer = String::new();
    stream.read_to_string(&mut answer).unwrap();
    assert!(answer.lines().next().unwrap().ends_with("200 OK"), "{answer}");
}

fn base64(bytes: &[u8]) -> String {
    const DIGITS: &[u8; 64] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";
    let group = |part: &[u8]| {
        let bits = part.iter().chain([&0, &0]).take(3).fold(0usize, |bits, byte| bits << 8 | usize::from(*byte));
        let digit = |index: usize| if index <= part.len() { char::from(DIGITS[bits >> (18 - 6 * index) & 63]) } else { '=' };
        (0..4).map(digit).collect::<String>()
    };
    bytes.chunks(3).map(group).collect()
}

/// `{1: name, 3: image, 4: {2: [{1: argument}]}}`, as protobuf writes it.
fn metadata(name: &str, argument: &str) -> Vec<u8> {
    let field = |tag: u8, bytes: &[u8]| [&[tag << 3 | 2, u8::try_from(bytes.len()).unwrap()], bytes].concat();
    let variables = field(2, &field(1, argument.as_bytes()));
    [field(1, name.as_bytes()), field(3, b"image:1"), field(4, &variables)].concat()
}

#[test]
fn the_jobs_of_a_first_octavius_become_a_catalogue() {
    let etcd = Etcd::single().unwrap();
    let world = World::new().unwrap();
    let host = etcd.endpoints().remove(0);
    let nothing = world.run(&["import", "--etcd", &host, "jobs"]).unwrap().expect(2).unwrap();
    assert!(nothing.stderr.contains("no key starts with metadata/"), "{}", nothing.stderr);
    put(etcd.port(0), "metadata/hello", &metadata("hello", "who"));
    put(etcd.port(0), "metadata/bye", &metadata("bye", "who"));
    put(etcd.port(0), "logs/hello", b"something else");
    let ran = world.run(&["import", "--etcd", &host, "jobs"]).unwrap().expect(0).unwrap();
    assert!(ran.stdout.contains("jobs: 2 imported, 0 not"), "{}", ran.stdout);
    assert_eq!(fs::read_to_string(world.path("jobs/octavius.yaml")).unwrap(), "catalog: jobs\n");
    let text = fs::read_to_string(world.path("jobs/hello.yaml")).unwrap();
    assert_eq!(text, "name: hello\nimage_name: image:1\nenv_vars:\n  args:\n  - name: who\n");
    world.run(&["validate", "jobs"]).unwrap().expect(0).unwrap();

    // what is there is never replaced, and nothing beside it written
    fs::remove_file(world.path("jobs/bye.yaml")).unwrap();
    let again = world.run(&["import", "--etcd", &host, "jobs"]).unwrap().expect(2).unwrap();
    assert!(again.stderr.contains("jobs/hello.yaml is there already; nothing was written"), "{}", again.stderr);
    assert!(!world.path("jobs/bye.yaml").exists());

    // into a folder that is there; a job that someone else has already is told before anything is written
    world.write("team/octavius.yaml", "catalog: team\n").unwrap();
    world.write("team/sub/other.yaml", "name: hello\ncommand: [\"true\"]\n").unwrap();
    let clash = world.run(&["import", "--etcd", &host, "team"]).unwrap().expect(2).unwrap();
    assert!(clash.stderr.contains("error[duplicate-name]") && clash.stderr.contains("nothing was written"), "{}", clash.stderr);
    assert!(!world.path("team/bye.yaml").exists() && !world.path("team/hello.yaml").exists());
    fs::remove_file(world.path("team/sub/other.yaml")).unwrap();
    let ran = world.run(&["import", "--etcd", &host, "team"]).unwrap().expect(0).unwrap();
    assert!(ran.stderr.contains("`octavius diff team`"), "{}", ran.stderr);
    assert_eq!(fs::read_to_string(world.path("team/octavius.yaml")).unwrap(), "catalog: team\n");
    for folder in [".", "team"] {
        let names: Vec<_> = fs::read_dir(world.path(folder)).unwrap().map(|entry| entry.unwrap().file_name()).collect();
        assert!(names.iter().all(|name| !name.to_string_lossy().starts_with(".octavius")), "{names:?}");
    }

    // what cannot be taken holds up nothing else
    put(etcd.port(0), "metadata/wrong", &metadata("wrong", "no-name"));
    put(etcd.port(0), "metadata/broken", &[0x0a, 0xff]);
    let arguments = ["import", "--etcd", &host, "new/place", "--catalog-name", "seed", "-o", "json"];
    let ran = world.run(&arguments).unwrap().expect(1).unwrap();
    let json = ran.json().unwrap();
    assert_eq!((&json["catalog"], &json["valid"]), (&"seed".into(), &true.into()), "{json:#}");
    let keys: Vec<_> = json["refused"].as_array().unwrap().iter().map(|refused| refused["key"].as_str().unwrap()).collect();
    assert_eq!(keys, ["metadata/broken", "metadata/wrong"]);
    assert!(json["refused"][1]["reasons"][0].as_str().unwrap().contains("no-name"), "{json:#}");
    assert_eq!(ran.stderr, "", "what the JSON says is not said twice");
    assert!(world.path("new/place/bye.yaml").exists() && !world.path("new/place/wrong.yaml").exists());
}

/// Files of backups that are not finished.
fn parts(world: &World) -> usize {
    let names = fs::read_dir(world.path(".")).unwrap().map(|entry| entry.unwrap().file_name());
    names.filter(|name| name.to_string_lossy().starts_with(".octavius-backup-")).count()
}

#[test]
fn a_backup_returns_into_an_empty_store() {
    use std::os::unix::fs::PermissionsExt as _;
    let world = World::on_etcd().unwrap();
    let (controller, port) = world.controller("store", 0).unwrap();
    let admin = world.admin(port).unwrap();
    let folder = catalog(&world);
    admin.run(&["apply", &folder]).unwrap().expect(0).unwrap();
    let file = world.path("octavius.backup");
    // two at once do not get into each other's way
    std::thread::scope(|scope| {
        for _ in 0..2 {
            scope.spawn(|| admin.run(&["backup", "octavius.backup"]).unwrap().expect(0).unwrap());
        }
    });
    let made = admin.run(&["backup", "octavius.backup", "-o", "json"]).unwrap().expect(0).unwrap();
    assert!(made.stderr.contains("keep it like a secret"), "{}", made.stderr);
    assert_eq!(fs::metadata(&file).unwrap().permissions().mode() & 0o777, 0o600);
    let made = made.json().unwrap();
    assert_eq!(made["bytes"].as_u64().unwrap(), fs::metadata(&file).unwrap().len());
    assert_eq!(parts(&world), 0);
    // one that is interrupted leaves nothing, and what was there stays
    let proxy = Proxy::before(port).unwrap();
    proxy.set(Mode::Blackhole(Direction::ToClient));
    let token = fs::read_to_string(world.path("admin.token")).unwrap();
    let slow = world.client("slow", proxy.address().port(), token.trim()).unwrap();
    for signal in [Signal::INT, Signal::TERM] {
        let mut child = slow.command(&["backup", "octavius.backup", "--time-out", "600"]).spawn().unwrap();
        let begun = || if parts(&world) == 1 { Ok(()) } else { Err(anyhow::Error::msg("no file is there")) };
        eventually("it has begun", begun).unwrap();
        rustix::process::kill_process(rustix::process::Pid::from_child(&child), signal).unwrap();
        assert_eq!(child.wait().unwrap().code(), Some(130));
        assert_eq!(parts(&world), 0);
    }
    // no backup, no file: what was there stays
    let nobody = world.client("nobody", port, "octu_nobody").unwrap();
    nobody.run(&["backup", "octavius.backup"]).unwrap().expect(8).unwrap();
    assert_eq!(made["bytes"].as_u64().unwrap(), fs::metadata(&file).unwrap().len());
    controller.kill().unwrap();

    let restored =
        world.run(&["restore", "octavius.backup", "--store", "embedded:new", "-o", "json"]).unwrap().expect(0).unwrap();
    let restored = restored.json().unwrap();
    for key in ["controller_id", "revision", "keys", "bytes"] {
        assert_eq!(restored[key], made[key], "{key}");
    }
    let again = world.run(&["restore", "octavius.backup", "--store", "embedded:new"]).unwrap().expect(3).unwrap();
    assert!(again.stderr.contains("hint: `octavius controller start --store embedded:new`"), "{}", again.stderr);
    let theirs = ["controller", "start", "--store", "embedded:theirs", "--listen", "127.0.0.1:0"];
    world.daemon(theirs).unwrap().stop().unwrap();
    let into = world.run(&["restore", "octavius.backup", "--store", "embedded:theirs"]).unwrap().expect(3).unwrap();
    assert!(into.stderr.contains("the store is not empty, nothing was written: embedded:theirs"), "{}", into.stderr);
    assert!(into.stderr.contains("hint: an empty one is "), "{}", into.stderr);
    let elsewhere = Etcd::single().unwrap();
    let host = elsewhere.endpoints().remove(0);
    // through a pipe
    let mut command = world.command(["restore", "-", "--store", "etcd", "--etcd-host", &host]);
    let mut child = command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
    child.stdin.take().unwrap().write_all(&fs::read(&file).unwrap()).unwrap();
    let output = child.wait_with_output().unwrap();
    let (stdout, stderr) = (String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
    assert!(output.status.success() && stdout.contains("prefix /octavius/v1/: "), "{stdout}{stderr}");
    assert!(stderr.contains(&format!("controller start --store etcd --etcd-host http://{host} ")), "{stderr}");

    fs::write(world.path("cut"), &fs::read(&file).unwrap()[..1000]).unwrap();
    let cut = world.run(&["restore", "cut", "--store", "embedded:other"]).unwrap().expect(2).unwrap();
    assert!(cut.stderr.contains("cut short"), "{}", cut.stderr);
    assert!(!world.path("other").exists());

    // the old token and catalogue are there again
    let arguments = ["controller", "start", "--store", "etcd", "--etcd-host", &host, "--listen", "127.0.0.1:0"];
    let controller = world.daemon(arguments).unwrap();
    let port = controller.ready.rsplit(':').next().unwrap().trim().parse().unwrap();
    let admin = world.admin(port).unwrap();
    admin.run(&["diff", &folder]).unwrap().expect(0).unwrap();
}

#[test]
fn a_file_of_the_first_octavius_starts_a_controller_on_its_etcd() {
    let etcd = Etcd::single().unwrap();
    let world = World::new().unwrap();
    let app_port = free_ports(1).unwrap()[0];
    let text = format!(
        r#"{{"etcd_host": "127.0.0.1", "etcd_port": "{}", "etcd_dial_timeout": 2, "log_level": "info", "app_port": {app_port}}}"#,
        etcd.port(0)
    );
    world.write("conf/controller_config.json", &text).unwrap();
    let controller = world.daemon(["controller", "start", "--config", "conf/controller_config.json"]).unwrap();
    assert!(controller.ready.contains(&format!("127.0.0.1:{app_port}")), "{}", controller.ready);
    // the first admin's token lies beside the file
    let token = fs::read_to_string(world.path("conf/admin.token")).unwrap();
    let admin = world.client("admin", app_port, token.trim()).unwrap();
    admin.run(&["whoami"]).unwrap().expect(0).unwrap();
    controller.stop().unwrap();
}

#[test]
fn what_has_to_be_put_right_about_an_etcd_has_its_own_exit() {
    let etcd = Etcd::single().unwrap();
    let world = World::new().unwrap();
    let host = etcd.endpoints().remove(0);
    world.write("password", "word\n").unwrap();
    let start = ["controller", "start", "--store", "etcd", "--etcd-host", &host, "--listen", "127.0.0.1:0"];
    let import = ["import", "jobs", "--etcd", &host];
    for command in [&start[..], &import] {
        let ran = world.run(&[command, &["--etcd-ca-file", "none.pem"]].concat()).unwrap().expect(2).unwrap();
        assert!(ran.stderr.contains("none.pem: No such file"), "{}", ran.stderr);
        let user = [command, &["--etcd-user", "ann", "--etcd-password-file", "password"]].concat();
        let ran = world.run(&user).unwrap().expect(2).unwrap();
        assert!(ran.stderr.contains("hint: this etcd knows no users"), "{}", ran.stderr);
    }
    let listed = world.run(&["list", "--cp-host", &host]).unwrap().expect(4).unwrap();
    assert!(listed.stderr.contains("is this the port of a controller?"), "{}", listed.stderr);

    for (path, body) in [
        ("user/add", r#"{"name":"root","password":"r"}"#),
        ("role/add", r#"{"name":"root"}"#),
        ("user/grant", r#"{"user":"root","role":"root"}"#),
        ("user/add", r#"{"name":"ann","password":"word"}"#),
        ("enable", "{}"),
    ] {
        post(etcd.port(0), &format!("auth/{path}"), body);
    }
    for command in [&start[..], &import] {
        let ran = world.run(command).unwrap().expect(8).unwrap();
        assert!(ran.stderr.contains("hint: --etcd-user NAME"), "{}", ran.stderr);
        let user = [command, &["--etcd-user", "ann", "--etcd-password-file", "password"]].concat();
        let ran = world.run(&user).unwrap().expect(3).unwrap();
        assert!(ran.stderr.contains("hint: the etcd's user has to read"), "{}", ran.stderr);
    }
}

#[test]
fn an_etcd_that_does_not_answer_ends_with_4_and_is_named() {
    let world = World::new().unwrap();
    let host = format!("127.0.0.1:{}", free_ports(1).unwrap()[0]);
    for arguments in [&["controller", "start", "--store", "etcd", "--etcd-host", &host][..], &["import", "--etcd", &host, "jobs"]]
    {
        let ran = world.run(arguments).unwrap().expect(4).unwrap();
        assert!(ran.stderr.contains(&format!("cannot use the etcd at http://{host}")), "{}", ran.stderr);
        assert!(ran.stderr.contains("hint: does it run there"), "{}", ran.stderr);
    }
    let port = host.rsplit(':').next().unwrap();
    let mut command = world.command(["controller", "start", "--store", "etcd"]);
    let output = command.env("ETCD_HOST", "127.0.0.1").env("ETCD_PORT", port).output().unwrap();
    assert_eq!(output.status.code(), Some(4), "the first Octavius' variables are read");
    // Kubernetes names services in such a way, and means nothing by it
    let mut command = world.command(["controller", "start", "--store", "etcd", "--etcd-host", &host]);
    let output = command.env("OCTAVIUS_ETCD_PORT", "tcp://10.0.0.1:2379").env("APP_PORT", "tcp://10.0.0.2:80").output().unwrap();
    assert_eq!(output.status.code(), Some(4), "{}", String::from_utf8_lossy(&output.stderr));
    let mut command = world.command(["controller", "start", "--store", "etcd"]);
    let output = command.env("OCTAVIUS_ETCD_HOST", &host).env("OCTAVIUS_RETENTION_AGE", "30").output().unwrap();
    let told = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.code() == Some(2) && told.contains("OCTAVIUS_RETENTION_AGE is wrong"), "{told}");
}
