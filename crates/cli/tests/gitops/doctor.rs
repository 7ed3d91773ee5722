//! `octavius doctor` on machines that are well, and on such that are not.

use std::os::unix::fs::PermissionsExt as _;

use octavius_tests::{Output, World};
use serde_json::Value;

use crate::repository;

/// What a check came to, by its name; of several, the one of the subject.
fn verdict<'j>(json: &'j Value, area: &str, check: &str, subject: &str) -> &'j str {
    let checks = json["checks"].as_array().unwrap();
    let is_it = |one: &&Value| {
        one["area"] == area && one["check"] == check && (subject.is_empty() || one["subject"].as_str().unwrap().contains(subject))
    };
    checks.iter().find(is_it).map_or("missing", |one| one["verdict"].as_str().unwrap())
}

/// The answer as JSON, after it was held against its schema.
fn told(output: &Output) -> Value {
    let json = output.json().unwrap();
    let schema = concat!(env!("CARGO_MANIFEST_DIR"), "/../../schemas/doctor.schema.json");
    let schema: Value = serde_json::from_str(&std::fs::read_to_string(schema).unwrap()).unwrap();
    let validator = jsonschema::draft7::new(&schema).unwrap();
    let problems: Vec<_> = validator.iter_errors(&json).map(|error| error.to_string()).collect();
    assert_eq!(problems, Vec::<String>::new(), "{json:#}");
    json
}

#[test]
fn where_all_is_well_it_ends_with_0_and_says_so() {
    let world = World::new().unwrap().archiving();
    repository(&world);
    let (_daemon, port) = world.controller("store", 0).unwrap();
    let admin = world.admin(port).unwrap();
    let _executor = world.executor("e1", port, &admin.registration().unwrap(), 2).unwrap();
    let (host, executor_config) = (world.path("host.json"), world.path("e1.executor.json"));
    let config = serde_json::json!({
        "store": format!("embedded:{}", world.path("store").display()), "archive": world.archive(),
        "bootstrap_token_file": world.path("admin.token"), "listen": format!("127.0.0.1:{port}"),
    });
    std::fs::write(&host, config.to_string()).unwrap();
    let data = world.path("e1").display().to_string();
    let arguments = [
        "doctor",
        "-o",
        "json",
        "--controller-config",
        host.to_str().unwrap(),
        "--executor-config",
        executor_config.to_str().unwrap(),
    ];
    let mut command = admin.command(&arguments);
    let output = command.env("OCTAVIUS_DATA_DIR", data).output().unwrap();
    let output = Output {
        code: output.status.code().unwrap(),
        stdout: String::from_utf8(output.stdout).unwrap(),
        stderr: String::from_utf8(output.stderr).unwrap(),
    };
    let json = told(&output);
    assert_eq!(output.code, 0, "{json:#}");
    assert_eq!(json["ok"], true);
    for (area, check) in [
        ("client", "configuration"),
        ("client", "context"),
        ("client", "token"),
        ("controllers", "tls"),
        ("controllers", "address"),
        ("controllers", "identity"),
        ("controllers", "expiry"),
        ("controllers", "version"),
        ("controllers", "clock"),
        ("controllers", "store"),
        ("controllers", "archive"),
        ("executors", "present"),
        ("catalog", "files"),
        ("catalog", "git"),
        ("controller_host", "configuration"),
        ("controller_host", "store"),
        ("controller_host", "archive"),
        ("controller_host", "admin_token"),
        ("controller_host", "listen"),
        ("executor_host", "configuration"),
        ("executor_host", "data_dir"),
        ("executor_host", "registered"),
        ("executor_host", "address"),
        ("executor_host", "clock"),
    ] {
        assert_eq!(verdict(&json, area, check, ""), "ok", "{area} {check}: {json:#}");
    }
    let text = admin.run(&["doctor"]).unwrap().expect(0).unwrap().stdout;
    assert!(text.starts_with("client\n  ok       configuration: ") && text.contains("0 problems"), "{text}");
}

#[test]
fn with_nothing_configured_it_says_what_to_set() {
    let world = World::new().unwrap();
    let output = world.run(&["doctor"]).unwrap().expect(1).unwrap();
    assert!(
        output.stdout.contains("no controller is configured") && output.stdout.contains("octavius config --cp-host"),
        "{}",
        output.stdout
    );
    assert!(output.stdout.contains("1 problem"), "{}", output.stdout);
    let json = told(&world.run(&["doctor", "-o", "json"]).unwrap().expect(1).unwrap());
    assert_eq!((json["ok"].as_bool(), verdict(&json, "catalog", "files", "")), (Some(false), "skipped"));
    // An executor's machine need not be a client's: what is wrong there is what counts.
    let config = world.write("executor_config.json", "{\"id\": \"e1\"}").unwrap();
    let json =
        told(&world.run(&["doctor", "-o", "json", "--executor-config", config.to_str().unwrap()]).unwrap().expect(1).unwrap());
    assert_eq!(verdict(&json, "client", "configuration", ""), "skipped");
    assert_eq!(verdict(&json, "executor_host", "registered", ""), "warning");
    assert_eq!(verdict(&json, "executor_host", "address", ""), "problem", "{json:#}");
}

#[test]
fn each_controller_of_a_list_is_asked() {
    let world = World::new().unwrap();
    let (_daemon, port) = world.controller("store", 0).unwrap();
    let other = World::new().unwrap();
    let (_stranger, elsewhere) = other.controller("store", 0).unwrap();
    let token = std::fs::read_to_string(world.path("admin.token")).unwrap();
    let closed = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
    let client = world.client_of("ann", &format!("127.0.0.1:{port},{closed},no-such-host.invalid:3000"), token.trim()).unwrap();
    let json = told(&client.run(&["doctor", "-o", "json"]).unwrap().expect(0).unwrap());
    assert_eq!(verdict(&json, "controllers", "address", &format!("127.0.0.1:{port}")), "ok");
    assert_eq!(verdict(&json, "controllers", "address", &closed.to_string()), "warning", "the others still answer: {json:#}");
    assert_eq!(verdict(&json, "controllers", "address", "no-such-host.invalid"), "warning");

    let client = world.client_of("ann", &closed.to_string(), token.trim()).unwrap();
    let output = client.run(&["doctor", "-o", "json"]).unwrap().expect(1).unwrap();
    assert_eq!(verdict(&told(&output), "controllers", "address", ""), "problem");

    // a controller that does not know the token is there all the same
    let client = world.client_of("ann", &format!("127.0.0.1:{elsewhere}"), token.trim()).unwrap();
    let json = told(&client.run(&["doctor", "-o", "json"]).unwrap().expect(1).unwrap());
    assert_eq!(verdict(&json, "controllers", "address", ""), "ok");
    assert_eq!(verdict(&json, "controllers", "token", ""), "problem", "{json:#}");
}

/// A token is not printed, and a silent host is not waited for longer than the connection timeout.
#[test]
fn a_silent_controller_is_told_within_the_timeout_and_no_secret_with_it() {
    let world = World::new().unwrap();
    let silent = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let client = world.client_of("ann", &silent.local_addr().unwrap().to_string(), "octu_hunter2").unwrap();
    let began = std::time::Instant::now();
    let output = client.run(&["doctor", "--time-out", "1"]).unwrap().expect(1).unwrap();
    assert!(began.elapsed() < std::time::Duration::from_secs(8), "{:?}", began.elapsed());
    assert!(output.stdout.contains("did not answer within"), "{}", output.stdout);
    assert!(output.stdout.contains("mistyped"), "{}", output.stdout);
    assert!(!format!("{output:?}").contains("hunter2"), "{output:?}");
}

#[test]
fn what_others_can_read_and_what_is_not_valid_is_told_with_its_remedy() {
    let world = World::new().unwrap();
    let (_daemon, port) = world.controller("store", 0).unwrap();
    let admin = world.admin(port).unwrap();
    world.write("catalog/octavius.yaml", "catalog: support\n").unwrap();
    world.write("catalog/broken.yaml", "name: broken\nimage: a\n").unwrap();
    let output = admin.run(&["doctor", "-o", "json"]).unwrap().expect(1).unwrap();
    let json = told(&output);
    assert_eq!(verdict(&json, "catalog", "files", ""), "problem");
    assert!(output.stdout.contains("octavius validate catalog"), "{}", output.stdout);
    assert_eq!(verdict(&json, "catalog", "git", ""), "warning", "it is in no repository");
    assert_eq!(verdict(&json, "executors", "present", ""), "warning", "there is none");

    std::fs::set_permissions(admin.config(), std::fs::Permissions::from_mode(0o644)).unwrap();
    let output = admin.run(&["doctor"]).unwrap().expect(1).unwrap();
    assert!(
        output.stdout.contains("can be read by others (mode 644)") && output.stdout.contains("chmod 600"),
        "{}",
        output.stdout
    );

    let config = world.write("controller_config.json", r#"{"store": "embedded:data", "listem": "127.0.0.1:1"}"#).unwrap();
    let output = admin.run(&["doctor", "--controller-config", config.to_str().unwrap()]).unwrap().expect(1).unwrap();
    assert!(output.stdout.contains("unknown key `listem`; did you mean `listen`?"), "{}", output.stdout);
}

/// What is told to an admin alone is no fault for others.
#[test]
fn a_user_is_not_told_how_the_store_is_and_nothing_is_wrong_with_that() {
    let world = World::new().unwrap();
    let (_daemon, port) = world.controller("store", 0).unwrap();
    let admin = world.admin(port).unwrap();
    let made = admin.run(&["tokens", "create", "--role", "user", "--user", "bob", "--expires", "2d", "-o", "json"]).unwrap();
    let token = made.expect(0).unwrap().json().unwrap()["token"].as_str().unwrap().to_owned();
    let bob = world.client("bob", port, &token).unwrap();
    let json = told(&bob.run(&["doctor", "-o", "json"]).unwrap().expect(0).unwrap());
    assert_eq!(verdict(&json, "controllers", "store", ""), "skipped");
    assert_eq!(verdict(&json, "controllers", "expiry", ""), "warning", "two days are soon");
    assert_eq!(verdict(&json, "controllers", "identity", ""), "ok");
    // Nor is it in the audit trail, as what is refused would be.
    bob.run(&["audit"]).unwrap().expect(3).unwrap();
    let by_bob = || {
        let trail = admin.run(&["audit", "-o", "json"])?.expect(0)?.json()?;
        let records = trail["records"].as_array().into_iter().flatten().filter(|record| record["user"] == "bob");
        Ok::<_, anyhow::Error>(records.map(|record| record["action"].to_string()).collect::<Vec<_>>())
    };
    octavius_tests::eventually("the refused call in the trail", || {
        anyhow::ensure!(!by_bob()?.is_empty(), "nothing by bob");
        Ok(())
    })
    .unwrap();
    assert_eq!(by_bob().unwrap(), ["\"audit.read\""]);
}
