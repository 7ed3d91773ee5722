//! The main job on `octavius dev`: a catalogue is checked, shown, applied; jobs run; their logs are read.

use anyhow::{Context as _, Result, ensure};
use octavius_tests::{World, eventually, on_every_store};

on_every_store! {
    a_catalogue_is_checked_shown_applied_and_changed,
    a_file_with_findings_is_never_applied,
    a_job_runs_and_everything_about_it_can_be_read,
    a_running_job_is_followed_and_cancelled_with_its_children,
    a_run_over_its_timeout_ends_as_timed_out,
    wrong_arguments_are_all_told_at_once_and_nothing_runs,
    every_job_of_the_repositorys_catalogue_runs,
}

const GREET: &str = "name: greet\ndescription: Say hello\ncommand: [sh, -c, 'echo \"hello $who\"; echo oops >&2']\nenv_vars:\n  args:\n  - {name: who, description: whom to greet, required: true}\n";
const FAIL: &str = "name: fail\ncommand: [sh, -c, 'echo before; exit 3']\n";
const SLEEP: &str = "name: sleep\ncommand: [sh, -c, 'echo started; sleep 600']\nenv_vars:\n  args:\n  - {name: unused}\n";

fn catalog(world: &World) -> Result<()> {
    world.write("catalog/octavius.yaml", "catalog: team\n")?;
    world.write("catalog/greet.yaml", GREET)?;
    world.write("catalog/fail.yaml", FAIL)?;
    world.write("catalog/sub/sleep.yaml", SLEEP)?;
    Ok(())
}

fn a_catalogue_is_checked_shown_applied_and_changed(world: &World) -> Result<()> {
    catalog(world)?;
    let (_daemons, client) = world.whole(None)?;
    client.run(&["validate"])?.expect(0)?;

    let diff = client.run(&["diff", "-o", "json"])?.expect(1)?.json()?;
    assert_eq!(diff["summary"]["added"], 3);
    assert_eq!(diff["parent_revision"], 0);
    let applied = client.run(&["apply", "-o", "json"])?.expect(0)?.json()?;
    assert_eq!(applied["revision"], 1);
    client.run(&["diff"])?.expect(0)?;
    let again = client.run(&["apply", "-o", "json"])?.expect(0)?.json()?;
    assert_eq!(again["revision"], 1, "nothing to do makes no revision");

    // A change, and a removal that needs consent.
    world.write("catalog/greet.yaml", &GREET.replace("Say hello", "Say good day"))?;
    std::fs::remove_file(world.path("catalog/fail.yaml"))?;
    let text = client.run(&["diff"])?.expect(1)?.stdout;
    assert!(text.contains("~ greet") && text.contains("- fail") && text.contains("blocked: needs --prune"), "{text}");
    let applied = client.run(&["apply", "-o", "json"])?.expect(0)?.json()?;
    assert_eq!((&applied["revision"], &applied["summary"]["removed"]), (&2.into(), &0.into()));
    client.run(&["describe", "fail"])?.expect(0)?;
    let refused = client.run(&["apply", "--prune"])?;
    ensure!(refused.code != 0, "a removal without a terminal needs --yes");
    client.run(&["apply", "--prune", "--yes"])?.expect(0)?;
    client.run(&["describe", "fail"])?.expect(3)?;
    let names = client.run(&["list", "-o", "name"])?.expect(0)?.stdout;
    assert_eq!(names.lines().collect::<Vec<_>>(), ["greet", "sleep"]);
    Ok(())
}

fn a_file_with_findings_is_never_applied(world: &World) -> Result<()> {
    catalog(world)?;
    world.write("catalog/bad.yaml", "name: bad\ncommand: [x]\ntimout: 5m\nretries: many\n")?;
    let (_daemons, client) = world.whole(None)?;
    let findings = client.run(&["validate"])?.expect(1)?;
    let all = format!("{}{}", findings.stdout, findings.stderr);
    assert!(all.contains("bad.yaml:3:1: error[") && all.contains("timeout") && all.contains("bad.yaml:4:10"), "{all}");
    client.run(&["diff"])?.expect(2)?;
    client.run(&["apply", "--yes"])?.expect(2)?;
    assert_eq!(client.run(&["list", "-o", "name"])?.expect(0)?.stdout, "");
    Ok(())
}

fn a_job_runs_and_everything_about_it_can_be_read(world: &World) -> Result<()> {
    catalog(world)?;
    let (_daemons, client) = world.whole(Some("catalog"))?;
    eventually("the catalogue is applied", || client.run(&["describe", "greet"])?.expect(0))?;

    let id = client.execute("greet", &["--arg", "who=a=1, b=2 and \"ü\"", "--wait"])?;
    assert_eq!(id.len(), 26, "the id alone is on stdout: {id:?}");
    let log = client.run(&["getlogs", &id])?.expect(0)?.stdout;
    assert_eq!(log, "hello a=1, b=2 and \"ü\"\noops\n");
    let status = client.status(&id)?;
    assert_eq!((&status["state"], &status["exit_code"]), (&"succeeded".into(), &0.into()));
    assert_eq!(client.status("@latest")?["id"], id.as_str());
    assert_eq!(client.status(&id[20..])?["id"], id.as_str());

    // The first Octavius' words and flags.
    let old = client.run(&["execute", "--job-name", "greet", "--args", "who=proctor", "--wait"])?.expect(0)?.stdout;
    assert_eq!(client.run(&["getlogs", "--job-id", old.trim()])?.expect(0)?.stdout, "hello proctor\noops\n");
    let described = client.run(&["describe", "--job-name", "greet"])?.expect(0)?.stdout;
    assert!(described.contains("who") && described.contains("required") && described.contains("whom to greet"), "{described}");

    // Followed: the log on stdout, the id on stderr.
    let followed = client.run(&["execute", "greet", "--arg", "who=you", "--follow"])?.expect(0)?;
    assert_eq!(followed.stdout, "hello you\noops\n");

    // A failure says so, everywhere.
    let failed = client.run(&["execute", "fail", "--wait"])?.expect(1)?;
    let status = client.status(failed.stdout.trim())?;
    assert_eq!((&status["state"], &status["exit_code"], &status["reason"]), (&"failed".into(), &3.into(), &"EXIT_CODE".into()));

    let table = client.run(&["executions"])?.expect(0)?.stdout;
    assert_eq!(table.lines().count(), 5, "{table}");
    let failures = client.run(&["executions", "--state", "failed", "-o", "json"])?.expect(0)?.json()?;
    assert_eq!(failures["executions"].as_array().context("no list")?.len(), 1);
    Ok(())
}

fn a_running_job_is_followed_and_cancelled_with_its_children(world: &World) -> Result<()> {
    catalog(world)?;
    let (_daemons, client) = world.whole(Some("catalog"))?;
    eventually("the catalogue is applied", || client.run(&["describe", "sleep"])?.expect(0))?;
    let id = client.execute("sleep", &[])?;
    let log = eventually("the log shows", || {
        let log = client.run(&["getlogs", &id])?.expect(0)?.stdout;
        ensure!(log == "started\n", "{log:?}");
        Ok(log)
    })?;
    assert_eq!(log, "started\n");
    eventually("it runs", || {
        let state = client.status(&id)?["state"].clone();
        ensure!(state == "running", "{state}");
        Ok(())
    })?;
    client.run(&["cancel", &id])?.expect(0)?;
    client.run(&["status", &id, "--wait"])?.expect(5)?;
    assert_eq!(client.status(&id)?["state"], "cancelled");
    client.run(&["cancel", &id])?.expect(0)?;
    Ok(())
}

fn a_run_over_its_timeout_ends_as_timed_out(world: &World) -> Result<()> {
    catalog(world)?;
    let (_daemons, client) = world.whole(Some("catalog"))?;
    eventually("the catalogue is applied", || client.run(&["describe", "sleep"])?.expect(0))?;
    let ended = client.run(&["execute", "sleep", "--timeout", "1s", "--wait"])?.expect(6)?;
    assert_eq!(client.status(ended.stdout.trim())?["reason"], "DEADLINE");
    let waited = client.run(&["execute", "sleep", "--wait", "--wait-timeout", "1s"])?.expect(124)?;
    client.run(&["cancel", waited.stdout.trim()])?.expect(0)?;
    // Its job would outlive this test otherwise: jobs outlive their executors.
    client.run(&["status", waited.stdout.trim(), "--wait"])?.expect(5)?;
    Ok(())
}

fn wrong_arguments_are_all_told_at_once_and_nothing_runs(world: &World) -> Result<()> {
    catalog(world)?;
    let (_daemons, client) = world.whole(Some("catalog"))?;
    eventually("the catalogue is applied", || client.run(&["describe", "greet"])?.expect(0))?;
    let refused = client.run(&["execute", "greet", "--arg", "whom=x"])?.expect(2)?;
    assert!(
        refused.stderr.contains("who") && refused.stderr.contains("required") && refused.stderr.contains("whom"),
        "{}",
        refused.stderr
    );
    assert_eq!(refused.stdout, "");
    let unknown = client.run(&["execute", "gret"])?.expect(3)?;
    assert!(unknown.stderr.contains("greet"), "the nearest name is suggested: {}", unknown.stderr);
    let none = client.run(&["executions", "-o", "json"])?.expect(0)?.json()?;
    assert_eq!(none["executions"].as_array().context("no list")?.len(), 0);
    Ok(())
}

fn every_job_of_the_repositorys_catalogue_runs(world: &World) -> Result<()> {
    let catalog = format!("{}/../catalog", env!("CARGO_MANIFEST_DIR"));
    world.run(&["validate", &catalog])?.expect(0)?;
    let (_daemons, client) = world.whole(Some(&catalog))?;
    let names = eventually("the catalogue is applied", || {
        let names = client.run(&["list", "-o", "name"])?.expect(0)?.stdout;
        ensure!(names.lines().count() >= 9, "{names}");
        Ok(names)
    })?;
    for name in names.lines() {
        let job = client.run(&["describe", name, "-o", "json"])?.expect(0)?.json()?;
        let mut arguments = vec!["execute".to_owned(), name.to_owned(), "--wait".to_owned()];
        for argument in job["job"]["env_vars"]["args"].as_array().into_iter().flatten() {
            if argument["required"] == true {
                arguments.push("--arg".to_owned());
                arguments.push(format!("{}={}", argument["name"].as_str().context("no name")?, sample(world, argument)?));
            }
        }
        let arguments: Vec<&str> = arguments.iter().map(String::as_str).collect();
        let ended = client.run(&arguments)?;
        let log = client.run(&["getlogs", "@latest"])?.stdout;
        ensure!(ended.code == 0, "{name}: {ended:?}\n{log}");
        ensure!(!log.is_empty(), "{name} printed nothing");
    }
    Ok(())
}

/// A value for a required argument: what the catalogue's own README and descriptions give as examples.
fn sample(world: &World, argument: &serde_json::Value) -> Result<String> {
    let name = argument["name"].as_str().context("no name")?;
    if let Some(choice) = argument["enum"].as_array().and_then(|choices| choices.first()) {
        return Ok(choice.as_str().context("not text")?.to_owned());
    }
    let folder = world.path("sample");
    std::fs::create_dir_all(&folder)?;
    std::fs::write(folder.join("a.txt"), "a\n")?;
    let lower = name.to_lowercase();
    Ok(match argument["type"].as_str().unwrap_or("string") {
        "integer" | "number" => "3".to_owned(),
        "boolean" => "false".to_owned(),
        "duration" => "1h".to_owned(),
        _ if lower.contains("dir") || lower.contains("path") || lower.contains("source") => folder.display().to_string(),
        _ if lower.contains("mail") => "ann@example.com".to_owned(),
        _ if lower.contains("ticket") => "OPS-1042".to_owned(),
        _ => "ann".to_owned(),
    })
}
