//! What was reviewed, run: asked for at a terminal and in scripts, waited for, and run again.

use std::io::{Read as _, Write as _};
use std::net::TcpStream;

use super::*;
use octavius_tests::{Special, free_ports};

/// A catalogue of one job with arguments of several kinds.
fn refund(world: &World, rest: &str) {
    world.write("catalog/octavius.yaml", "catalog: support\n").unwrap();
    let args = "env_vars:\n  args:\n  - {name: order, description: like A-1, required: true, pattern: \"A-[0-9]+\"}\n  \
                - {name: wait, type: duration, default: 5m}\n  - {name: pin, sensitive: true}\n";
    job(world, "refund", &format!("command: [echo]\n{args}{rest}"));
}

#[test]
fn an_execution_is_explained_and_run_again_and_no_secret_is_seen() {
    const SECRET: &str = "4711-pin";
    let world = World::new().unwrap();
    refund(&world, "");
    let (controller, client) = controller(&world);
    let run = |arguments: &[&str], code: i32| {
        let ran = client.run(arguments).unwrap();
        assert!(!ran.stdout.contains(SECRET) && !ran.stderr.contains(SECRET), "{arguments:?}: {ran:?}");
        ran.expect(code).unwrap()
    };
    run(&["apply", "catalog"], 0);
    let wrong = run(&["execute", "refund", "--arg", "ordr=A-1", "--args", "wait=5,pin=4711-pin", "--arg", "order=B-1"], 2);
    for told in ["\"B-1\" does not match A-[0-9]+", "\"5\" is not a duration", "did you mean `order`?"] {
        assert!(wrong.stderr.contains(told), "{told}: {}", wrong.stderr);
    }
    let secret = format!("pin={SECRET}");
    let once = ["execute", "refund", "--args", "order=A-1", "--arg", secret.as_str(), "--idempotency-key", "monday"];
    let id = run(&once, 0).stdout.trim().to_owned();
    assert_eq!(run(&once, 0).stdout.trim(), id, "one key is one execution");
    let other = run(&["execute", "refund", "--arg", "order=A-2", "--idempotency-key", "monday"], 3);
    assert!(other.stderr.contains("idempotency key") && other.stderr.contains(&id), "{}", other.stderr);
    let behind = run(&["execute", "refund", "--arg", "order=A-2"], 0).stdout.trim().to_owned();

    let status = run(&["status", &behind], 0).stdout;
    assert!(status.contains(", 2nd in line\nno executor is there\n") && status.contains("old status  RECEIVED\n"), "{status}");
    let json = run(&["status", &behind, "-o", "json"], 0).json().unwrap();
    assert_eq!((json["wait"]["ahead"].as_u64(), json["first_octavius_status"].as_str()), (Some(1), Some("RECEIVED")));
    let codes: Vec<_> = json["wait"]["causes"].as_array().unwrap().iter().map(|cause| cause["code"].as_str().unwrap()).collect();
    assert_eq!(codes, ["NO_EXECUTOR", "AHEAD"]);
    let wide = run(&["executions", "-o", "wide"], 0).stdout;
    assert!(wide.lines().next().unwrap().contains("OLD STATUS") && wide.contains("RECEIVED"), "{wide}");
    assert!(run(&["describe", "refund"], 0).stdout.contains("RECEIVED"), "the last executions");
    run(&["describe", "refund", "-o", "json"], 0);
    let listed = run(&["executions", "-o", "json"], 0).json().unwrap();
    assert_eq!(listed["executions"][0]["first_octavius_status"], "RECEIVED");

    let same = run(&["rerun", &id], 0);
    assert_eq!((same.stdout.trim().len(), same.stderr.as_str()), (26, ""), "nothing has changed");
    refund(&world, "timeout: 1m\n");
    run(&["apply", "catalog"], 0);
    let again = run(&["rerun", &id[18..], "-o", "json"], 0);
    assert!(again.stderr.contains("refund has changed since: support revision 1 → support revision 2"), "{}", again.stderr);
    let again = again.json().unwrap()["id"].as_str().unwrap().to_owned();
    let json = run(&["status", &again, "-o", "json"], 0).json().unwrap();
    assert_eq!((json["rerun_of"].as_str(), json["arguments"]["pin"].as_str()), (Some(id.as_str()), Some("********")));
    assert!(run(&["status", &again], 0).stdout.contains(&format!("rerun of    {id}\n")));
    let by_key = ["rerun", "@latest", "--idempotency-key", "tuesday"];
    assert_eq!(run(&by_key, 0).stdout, run(&by_key, 0).stdout, "what `@latest` means changes, what was made does not");

    job(&world, "refund", "command: [echo]\nenv_vars:\n  args:\n  - {name: pin}\n  - {name: who, required: true}\n");
    run(&["apply", "catalog"], 0);
    let refused = run(&["rerun", &id], 2);
    for told in
        ["`pin`: it was sensitive, and is not any more", "`order` is not known", "`who` is required", "octavius execute refund"]
    {
        assert!(refused.stderr.contains(told), "{told}: {}", refused.stderr);
    }
    run(&["cancel", &again], 0);
    run(&["status", &again, "--wait"], 5);
    assert_eq!(client.status(&again).unwrap()["first_octavius_status"], "CREATION_FAILED");
    assert!(!controller.said().contains(SECRET), "{}", controller.said());
}

#[test]
fn a_person_is_asked_for_what_is_missing_and_for_the_name_where_it_matters() {
    let world = World::new().unwrap();
    refund(&world, "confirm: true\n");
    let (_controller, client) = controller(&world);
    client.run(&["apply", "catalog"]).unwrap().expect(0).unwrap();
    let mut terminal = Terminal::start(&client, "execute refund --arg pin=1");
    terminal.shows("order (like A-1)", 1);
    terminal.press("B-1\r");
    terminal.shows("does not match", 1);
    terminal.press("\u{15}A-1\r");
    terminal.shows("type its name to run it", 1);
    terminal.press("refund\r");
    let (code, screen) = terminal.ends();
    assert_eq!(code, 0, "{screen}");
    let status = client.status("@latest").unwrap();
    assert_eq!(status["arguments"]["order"], "A-1");

    for line in ["execute refund --arg order=A-1", "rerun @latest"] {
        let mut terminal = Terminal::start(&client, line);
        terminal.shows("type its name to run it", 1);
        terminal.press("yes\r");
        let (code, screen) = terminal.ends();
        assert!(code == 3 && screen.contains("declined; nothing was run"), "{line}: {code}: {screen}");
    }
    let mut terminal = Terminal::start(&client, "rerun @latest");
    terminal.shows("type its name to run it", 1);
    terminal.press("refund\r");
    assert_eq!(terminal.ends().0, 0);
    let listed = client.run(&["executions", "-o", "name"]).unwrap().expect(0).unwrap().stdout;
    assert_eq!(listed.lines().count(), 2, "{listed}");
}

/// With one controller alone there is nobody else to ask while it is away.
#[test]
fn a_wait_outlives_its_only_controller() {
    let world = World::new().unwrap();
    world.write("catalog/octavius.yaml", "catalog: support\n").unwrap();
    job(
        &world,
        "gate",
        "command: [sh, -c, \"until [ -e \\\"$gate\\\" ]; do sleep 0.1; done; exit 3\"]\nenv_vars:\n  args:\n  - {name: gate}",
    );
    let (controller, port) = world.controller("store", 0).unwrap();
    let client = world.admin(port).unwrap();
    client.run(&["apply", "catalog"]).unwrap().expect(0).unwrap();
    let _executor = world.executor("e1", port, &client.registration().unwrap(), 1).unwrap();
    let gate = world.path("gate");
    let argument = format!("gate={}", gate.display());
    let waited = std::thread::scope(|scope| {
        let waiting = scope.spawn(|| client.run(&["execute", "gate", "--arg", &argument, "--wait"]).unwrap());
        eventually("it runs", || {
            let state = client.status("@latest")?["state"].clone();
            ensure!(state == "running", "{state}");
            Ok(())
        })
        .unwrap();
        controller.kill().unwrap();
        let (again, _) = world.controller("store", port).unwrap();
        fs::write(&gate, "").unwrap();
        (waiting.join().unwrap(), again)
    });
    let ended = waited.0.expect(1).unwrap();
    assert!(ended.stderr.contains("trying again") && ended.stderr.contains("exit code 3"), "{}", ended.stderr);
    let status = client.status(ended.stdout.trim()).unwrap();
    assert_eq!((status["exit_code"].as_i64(), status["first_octavius_status"].as_str()), (Some(3), Some("POD_FAILED")));
    // Waited for after its end, it answers at once, and alike.
    client.run(&["status", "@latest", "--wait"]).unwrap().expect(1).unwrap();
}

#[test]
fn a_loss_that_is_waited_for_ends_with_7() {
    let world = World::new().unwrap().faster(20);
    world.write("catalog/octavius.yaml", "catalog: support\n").unwrap();
    job(&world, "nap", "command: [sleep, \"20\"]");
    let (_controller, port) = world.controller("store", 0).unwrap();
    let client = world.admin(port).unwrap();
    client.run(&["apply", "catalog"]).unwrap().expect(0).unwrap();
    let executor = world.executor("e1", port, &client.registration().unwrap(), 1).unwrap();
    let id = client.execute("nap", &[]).unwrap();
    eventually("it runs", || {
        let state = client.status(&id)?["state"].clone();
        ensure!(state == "running", "{state}");
        Ok(())
    })
    .unwrap();
    executor.kill().unwrap();
    client.run(&["status", &id, "--wait"]).unwrap().expect(7).unwrap();
    assert_eq!(client.status(&id).unwrap()["first_octavius_status"], "FETCH_POD_LOG_FAILED");
}

#[test]
fn metrics_are_served_where_that_is_asked_for() {
    let world = World::new().unwrap();
    let port = free_ports(1).unwrap().remove(0);
    let address = format!("127.0.0.1:{port}");
    let variables = [("OCTAVIUS_METRICS_LISTEN", address.as_str())];
    let special = Special { variables: &variables, ..Special::default() };
    let (controller, _) = world.controller_with("store", 0, &special).unwrap();
    let mut stream = TcpStream::connect(&address).unwrap();
    stream.write_all(b"GET /metrics HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n").unwrap();
    let mut answer = String::new();
    stream.read_to_string(&mut answer).unwrap();
    assert!(answer.contains("octavius_executions_waiting{cause=\"no_executor\"} 0\n"), "{answer}");
    assert!(controller.said().contains(&format!("metrics: http://{address}/metrics")), "{}", controller.said());
    // The address is taken: that is told before anything is served.
    let store = format!("embedded:{}", world.path("other").display());
    let arguments = ["controller", "start", "--listen", "127.0.0.1:0", "--store", &store, "--metrics-listen", &address];
    let refused = world.run(&arguments).unwrap().expect(2).unwrap();
    assert!(refused.stderr.contains(&format!("cannot listen on {address}")), "{}", refused.stderr);
}
