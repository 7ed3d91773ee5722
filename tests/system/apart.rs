//! A controller and executors, each a process of its own, do the same as `dev`.

use anyhow::{Context as _, Result, ensure};
use octavius_tests::{World, eventually, on_every_store};

on_every_store! {
    a_controller_and_an_executor_started_apart_do_the_main_job,
    roles_and_tokens_are_held_to,
}

const WHERE: &str = "name: where\ncommand: [sh, -c, 'echo ran']\n";

pub(crate) fn a_controller_and_an_executor_started_apart_do_the_main_job(world: &World) -> Result<()> {
    world.write("catalog/octavius.yaml", "catalog: team\n")?;
    world.write("catalog/where.yaml", WHERE)?;
    let (controller, port) = world.controller("store", 0)?;
    let admin = world.admin(port)?;
    admin.run(&["apply", "catalog"])?.expect(0)?;

    // Nobody is there yet: it waits, and says why.
    let id = admin.execute("where", &[])?;
    let waits = admin.run(&["status", &id])?.expect(0)?.stdout;
    assert!(waits.contains("queued") && waits.contains("no executor"), "{waits}");

    let made = admin.run(&["tokens", "create", "--role", "executor", "--user", "exec-1", "-o", "json"])?.expect(0)?.json()?;
    let token = made["token"].as_str().context("no token")?;
    let registration = world.write("registration.token", token)?;
    std::fs::set_permissions(&registration, std::os::unix::fs::PermissionsExt::from_mode(0o600))?;
    let data = world.path("exec-1").display().to_string();
    let host = format!("127.0.0.1:{port}");
    let file = registration.display().to_string();
    world
        .run(&["executor", "register", "--id", "exec-1", "--cp-host", &host, "--token-file", &file, "--data-dir", &data])?
        .expect(0)?;
    let executor = world.executor("exec-1", port, "", 2)?;
    admin.run(&["status", &id, "--wait"])?.expect(0)?;
    assert_eq!(admin.run(&["getlogs", &id])?.expect(0)?.stdout, "ran\n");

    let executors = admin.run(&["executors", "-o", "json"])?.expect(0)?.json()?;
    assert_eq!((&executors["executors"][0]["id"], &executors["executors"][0]["state"]), (&"exec-1".into(), &"active".into()));

    // Both stop when asked, promptly and without complaint.
    let (code, said) = executor.stop()?;
    assert_eq!(code, 0, "{said}");
    let (code, said) = controller.stop()?;
    assert_eq!(code, 0, "{said}");
    Ok(())
}

fn roles_and_tokens_are_held_to(world: &World) -> Result<()> {
    world.write("catalog/octavius.yaml", "catalog: team\n")?;
    world.write("catalog/where.yaml", WHERE)?;
    let (_controller, port) = world.controller("store", 0)?;
    let admin = world.admin(port)?;
    let made = admin.run(&["tokens", "create", "--role", "user", "--user", "ann", "-o", "json"])?.expect(0)?.json()?;
    let ann = world.client("ann", port, made["token"].as_str().context("no token")?)?;
    ann.run(&["apply", "catalog"])?.expect(3)?;
    admin.run(&["apply", "catalog"])?.expect(0)?;
    ann.run(&["tokens", "list"])?.expect(3)?;
    let id = ann.execute("where", &[])?;
    assert_eq!(ann.status(&id)?["state"], "queued");
    let whoami = ann.run(&["whoami", "-o", "json"])?.expect(0)?.json()?;
    assert_eq!((&whoami["user"], &whoami["role"]), (&"ann".into(), &"user".into()));

    admin.run(&["tokens", "revoke", made["id"].as_str().context("no id")?])?.expect(0)?;
    eventually("the revoked token is refused", || ann.run(&["list"])?.expect(8))?;
    let stranger = world.client("stranger", port, "octu_nonsense")?;
    let refused = stranger.run(&["list"])?.expect(8)?;
    ensure!(refused.stdout.is_empty() && !refused.stderr.is_empty(), "{refused:?}");
    Ok(())
}
