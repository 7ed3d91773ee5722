//! Webhooks by the command line: the real binary from the configuration file on, a receiver that is there, away and back.

use std::os::unix::fs::PermissionsExt as _;

use anyhow::{Context as _, Result, ensure};
use octavius_tests::receiver::Receiver;
use octavius_tests::{Special, World, eventually};
use serde_json::{Value, json};

#[test]
fn who_is_to_approve_is_told_and_what_was_not_taken_is_seen_and_tried_again() -> Result<()> {
    let world = World::new()?;
    let secret = world.path("conf/chat.secret").display().to_string();
    world.write("conf/empty", "")?;
    world.run(&["webhooks", "new-secret", &secret])?.expect(0)?;
    ensure!(std::fs::metadata(&secret)?.permissions().mode() & 0o777 == 0o600);
    let there = world.run(&["webhooks", "new-secret", &secret])?.expect(2)?.stderr;
    ensure!(there.contains("chat.secret") && there.contains("name another file"), "{there}");
    let text = std::fs::read_to_string(&secret)?;
    let receiver = Receiver::start(&text)?;
    let config = json!({"webhooks": [
        {"name": "chat", "url": receiver.url(), "secret_file": "chat.secret", "events": ["waiting_for_approval", "finished", "failed"]},
    ]});
    let file = world.write("conf/controller_config.json", &config.to_string())?.display().to_string();
    let special = Special { variables: &[("OCTAVIUS_CONTROLLER_CONFIG", &file)], ..Special::default() };
    let (controller, port) = world.controller_with("store", 0, &special)?;
    let admin = world.admin(port)?;
    world.write("catalog/octavius.yaml", "catalog: team\n")?;
    world.write(
        "catalog/gated.yaml",
        "name: gated\ncommand: [sh, -c, 'exit 3']\napprovals: {groups: [leads], not_self: false}\n",
    )?;
    admin.run(&["apply", "catalog"])?.expect(0)?;
    let _executor = world.executor("e", port, &admin.registration()?, 1)?;

    // It is set up and tried.
    ensure!(admin.run(&["webhooks", "test", "chat"])?.expect(0)?.stdout == "chat has taken it\n");
    receiver.answer(403, None);
    let failed = admin.run(&["webhooks", "test", "chat"])?.expect(3)?.stderr;
    ensure!(failed.contains("did not take it: it answers 403 Forbidden") && !failed.contains("s3cr3t"), "{failed}");
    receiver.answer(204, None);

    // The message says enough to go and approve.
    let id = admin.run(&["execute", "gated"])?.expect(0)?.stdout.trim().to_owned();
    let told = |count: usize| {
        eventually("the messages", || {
            let taken = receiver.taken()?;
            ensure!(taken.len() == count, "{taken:?}");
            Ok(taken)
        })
    };
    let asked = told(2)?.remove(1);
    ensure!(asked.execution() == id && asked.kind() == "execution.waiting_for_approval", "{asked:?}");
    let status: Value = admin.run(&["status", &id, "-o", "json"])?.expect(0)?.json()?;
    // In the words of `status`, but for what is one's own there, and for what stands in the message alone.
    for (key, value) in asked.body["data"].as_object().context("no object")? {
        match key.as_str() {
            "url" | "starts" => {}
            "approvals" => ensure!(value["groups"] == status[key]["groups"] && value["expires_at"] == status[key]["expires_at"]),
            _ => ensure!(*value == status[key], "{key}: {asked:?} and {status}"),
        }
    }
    ensure!(asked.body["data"]["url"].is_null(), "no page is served");

    // The receiver says that it is gone: what was to be told is given up, is seen, and is tried again when somebody says so.
    receiver.answer(410, None);
    let create = ["tokens", "create", "--role", "user", "--user", "lead", "--group", "leads"];
    let lead = world.client("lead", port, admin.run(&create)?.expect(0)?.stdout.trim())?;
    lead.run(&["approve", &id])?.expect(0)?;
    let listed: Value = eventually("it is given up", || {
        let listed = admin.run(&["webhooks", "deliveries", "-o", "json"])?.expect(0)?.json()?;
        ensure!(listed["deliveries"].as_array().is_some_and(|list| !list.is_empty()), "{listed}");
        Ok(listed)
    })?;
    let delivery = &listed["deliveries"][0];
    ensure!((&delivery["webhook"], &delivery["execution"], &delivery["event"]) == (&json!("chat"), &json!(id), &json!("failed")));
    ensure!(delivery["failure"] == "it answers 410 Gone" && !delivery["given_up_at"].is_null(), "{delivery}");
    let table = admin.run(&["webhooks", "deliveries", "chat"])?.expect(0)?.stdout;
    ensure!(table.starts_with("WEBHOOK") && table.contains(&id) && table.contains("it answers 410"), "{table}");
    let shown = admin.run(&["status", &id])?.expect(0)?.stdout;
    ensure!(shown.contains("chat was not told that it failed: given up after 1 try"), "{shown}");
    let webhooks = admin.run(&["webhooks", "list"])?.expect(0)?;
    ensure!(webhooks.stdout.contains("failing for ") && webhooks.stderr.contains("octavius webhooks retry NAME"), "{webhooks:?}");
    let audit = admin.run(&["audit", "-o", "json"])?.expect(0)?.stdout;
    ensure!(audit.contains("webhook.abandon") && !audit.contains("s3cr3t") && !audit.contains(text.trim()), "{audit}");
    let doctor = admin.run(&["doctor"])?.expect(1)?.stdout;
    ensure!(doctor.contains("chat has taken no message for "), "{doctor}");
    admin.run(&["webhooks", "retry"])?.expect(2)?;
    lead.run(&["webhooks", "retry", "chat"])?.expect(3)?;
    admin.run(&["webhooks", "retry", "nobody"])?.expect(3)?;
    receiver.answer(204, None);
    ensure!(admin.run(&["webhooks", "retry", "chat"])?.expect(0)?.stdout == "1 delivery is tried again\n");
    let failed = told(3)?.remove(2);
    ensure!(failed.execution() == id && failed.body["data"]["exit_code"] == 3, "{failed:?}");
    ensure!(admin.run(&["webhooks", "retry", "--all"])?.expect(0)?.stdout == "nothing was given up\n");
    let none = admin.run(&["webhooks", "deliveries", "--waiting"])?.expect(0)?;
    ensure!(none.stdout.is_empty() && none.stderr.contains("no deliveries wait"), "{none:?}");
    ensure!(admin.run(&["webhooks", "list", "-o", "name"])?.expect(0)?.stdout == "chat\n");
    let log = controller.said();
    ensure!(log.contains("a webhook's messages were given up") && !log.contains("s3cr3t") && !log.contains(text.trim()), "{log}");
    Ok(())
}

#[test]
fn a_slip_in_what_is_said_of_webhooks_keeps_a_controller_from_starting() -> Result<()> {
    let world = World::new()?;
    let webhook = json!({"name": "chat", "url": "https://chat.example/x", "secret_file": "chat.secret", "events": "finished"});
    let file = world.write("controller_config.json", &json!({ "webhooks": [webhook] }).to_string())?;
    let store = format!("embedded:{}", world.path("store").display());
    let start = ["controller", "start", "--store", &store, "--config", &file.display().to_string()];
    let told = world.run(&start)?.expect(2)?.stderr;
    ensure!(
        told.contains("controller_config.json: `webhooks[0]` cannot be used: ") && told.contains("chat.secret: No such"),
        "{told}"
    );
    let written = world.write("chat.secret", "whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw\n")?;
    std::fs::set_permissions(&written, std::fs::Permissions::from_mode(0o644))?;
    let told = world.run(&start)?.expect(2)?.stderr;
    ensure!(told.contains("others can read it (mode 644)"), "{told}");
    ensure!(!told.contains("MfKQ"), "a secret is shown: {told}");
    Ok(())
}
