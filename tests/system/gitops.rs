//! A catalogue that lives in git: planned, applied, rolled back, frozen, exported, and what the controller says of it all the while.

use std::path::Path;
use std::process::Command;
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use octavius_core::{Digest, JobDefinition};
use octavius_proto::client::{Address, Connection};
use octavius_proto::v1::{self, apply_request::Part};
use octavius_tests::{World, on_every_store};
use serde_json::{Value, json};

on_every_store! {
    a_catalogue_is_planned_applied_rolled_back_and_thawed,
    a_rollback_is_shown_consented_to_and_whole_or_not_at_all,
    what_is_exported_validates_and_is_the_same,
    single_jobs_are_made_and_removed_beside_a_catalogue_of_git,
}

const OLD: &str = "name: greet\ndescription: Say hello\ncommand: [sh, -c, 'echo hello']\n";
const NEW: &str = "name: greet\ndescription: Say good day\ncommand: [sh, -c, 'echo good day']\n";
const SWEEP: &str = "name: sweep\ncommand: [sh, -c, 'echo sweep']\n";

/// Git in a folder of the world, with nothing of the user's configuration; returns what it printed.
pub(crate) fn git(world: &World, dir: &str, arguments: &[&str]) -> Result<String> {
    let mut command = Command::new("git");
    command.args(["-c", "user.name=Ann", "-c", "user.email=ann@example.com", "-c", "init.defaultBranch=main"]);
    command.args(["-c", "safe.directory=*"]).args(arguments).current_dir(world.path(dir)).env_clear();
    command.env("PATH", std::env::var_os("PATH").context("no PATH")?);
    command.env("HOME", world.path("home")).env("GIT_CONFIG_NOSYSTEM", "1");
    let output = command.output()?;
    let (out, err) = (String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
    ensure!(output.status.success(), "git {arguments:?}: {out}{err}");
    Ok(out.trim().to_owned())
}

/// Commits all of the catalogue; returns the commit.
fn commit(world: &World, message: &str) -> Result<String> {
    git(world, ".", &["add", "catalog"])?;
    git(world, ".", &["commit", "--quiet", "--allow-empty", "--message", message])?;
    git(world, ".", &["rev-parse", "HEAD"])
}

/// A repository with a catalogue `team` of two jobs, of which one inherits; returns its commit.
fn repository(world: &World) -> Result<String> {
    world.write("catalog/octavius.yaml", "catalog: team\ndefaults:\n  timeout: 9m\n")?;
    world.write("catalog/greet.yaml", OLD)?;
    world.write("catalog/sub/sweep.yaml", SWEEP)?;
    git(world, ".", &["init", "--quiet"])?;
    git(world, ".", &["remote", "add", "origin", "https://ann:hunter2@git.example/team/jobs.git"])?;
    commit(world, "first")
}

fn revisions(json: &Value) -> Result<&Vec<Value>> {
    json["revisions"].as_array().with_context(|| format!("no revisions: {json}"))
}

fn a_catalogue_is_planned_applied_rolled_back_and_thawed(world: &World) -> Result<()> {
    let first = repository(world)?;
    let (_daemons, client) = world.whole(None)?;
    assert_eq!(client.run(&["apply", "-o", "json"])?.expect(0)?.json()?["revision"], 1);
    client.run(&["diff"])?.expect(0)?;

    // A change goes by a plan, which is good once.
    world.write("catalog/greet.yaml", NEW)?;
    let second = commit(world, "second")?;
    let shown = client.run(&["diff", "--out", "plan.json"])?.expect(1)?.stdout;
    assert!(shown.contains("~ greet") && shown.contains("1 changed"), "{shown}");
    assert_eq!(client.run(&["apply", "plan.json", "-o", "json"])?.expect(0)?.json()?["revision"], 2);
    client.run(&["apply", "plan.json"])?.expect(3)?;
    client.run(&["diff"])?.expect(0)?;

    // Back, and nothing is applied over it until it is thawed.
    let back = client.run(&["rollback", "1", "--freeze", "-o", "json"])?.expect(0)?;
    assert_eq!(back.json()?["revision"], 3);
    assert!(back.stderr.contains("→ revision 1 (") && back.stderr.contains("frozen"), "{}", back.stderr);
    let refused = client.run(&["apply"])?.expect(3)?;
    assert!(refused.stderr.contains("frozen") && refused.stderr.contains("octavius unfreeze"), "{}", refused.stderr);
    let drift = client.run(&["diff"])?.expect(1)?.stdout;
    assert!(drift.contains("~ greet") && drift.contains("frozen by"), "{drift}");
    let described = client.run(&["describe", "greet"])?.expect(0)?.stdout;
    assert!(described.contains("catalogue team is frozen by") && described.contains("Say hello"), "{described}");
    assert!(described.contains("timeout (line 3) from catalog/octavius.yaml"), "{described}");
    // Again to where it is: no revision, and it stays frozen.
    assert_eq!(client.run(&["rollback", "1", "-o", "json"])?.expect(0)?.json()?["revision"], 3);
    client.run(&["apply"])?.expect(3)?;
    client.run(&["unfreeze"])?.expect(0)?;
    client.run(&["unfreeze", "--catalog-name", "team"])?.expect(0)?;
    assert_eq!(client.run(&["apply", "-o", "json"])?.expect(0)?.json()?["revision"], 4);

    let history = client.run(&["history", "-o", "json"])?.expect(0)?.json()?;
    let told: Vec<_> =
        revisions(&history)?.iter().map(|r| (r["revision"].clone(), r["commit"].clone(), r["rollback_to"].clone())).collect();
    let of = |number: u64, commit: &str, to: Value| (number.into(), commit.into(), to);
    assert_eq!(
        told,
        [of(4, &second, Value::Null), of(3, &first, 1.into()), of(2, &second, Value::Null), of(1, &first, Value::Null)]
    );
    let second = &revisions(&history)?[2];
    assert!(second["plan_id"].is_string() && second["repository"] == "https://git.example/team/jobs.git", "{second}");
    assert!(!history.to_string().contains("hunter2"));
    let table = client.run(&["history"])?.expect(0)?.stdout;
    assert!(table.contains("+0 ~1 -0, rollback to 1") && table.contains("+2 ~0 -0") && table.contains(", plan "), "{table}");
    let of_one = client.run(&["history", "--job-name", "SWEEP", "-o", "json"])?.expect(0)?.json()?;
    assert_eq!(revisions(&of_one)?.iter().map(|r| &r["revision"]).collect::<Vec<_>>(), [&Value::from(1)]);
    let newest = client.run(&["history", "--limit", "1", "-o", "json"])?.expect(0)?.json()?;
    assert_eq!(revisions(&newest)?.len(), 1);
    Ok(())
}

fn a_rollback_is_shown_consented_to_and_whole_or_not_at_all(world: &World) -> Result<()> {
    repository(world)?;
    let (_daemons, client) = world.whole(None)?;
    client.run(&["rollback", "1"])?.expect(3)?;
    client.run(&["unfreeze"])?.expect(3)?;
    client.run(&["apply"])?.expect(0)?;
    for index in 0..8 {
        world.write(&format!("catalog/job-{index}.yaml"), &SWEEP.replace("sweep", &format!("job-{index}")))?;
    }
    client.run(&["apply"])?.expect(0)?;

    // More jobs go than an apply may remove by itself: the state has been reviewed, but someone has to say yes.
    let unasked = client.run(&["rollback", "1"])?.expect(3)?;
    assert!(unasked.stderr.contains("8 removed") && unasked.stderr.contains("--yes"), "{}", unasked.stderr);
    assert_eq!(client.run(&["rollback", "1", "--yes", "-o", "json"])?.expect(0)?.json()?["revision"], 3);
    assert_eq!(client.run(&["list", "-o", "name"])?.expect(0)?.stdout, "greet\nsweep\n");

    let none = client.run(&["rollback", "99"])?.expect(3)?;
    assert!(none.stderr.contains("no revision 99; it has 1 to 3"), "{}", none.stderr);
    client.run(&["rollback", "0"])?.expect(2)?;
    client.run(&["rollback"])?.expect(2)?;

    // A job that was protected since: half a rollback is none.
    world.write("catalog/job-0.yaml", "name: job-0\ncommand: [echo]\nprotect: true\n")?;
    client.run(&["apply"])?.expect(0)?;
    let protected = client.run(&["rollback", "1", "--yes"])?.expect(3)?;
    assert!(protected.stderr.contains("job `job-0` is protected"), "{}", protected.stderr);
    let history = client.run(&["history", "-o", "json"])?.expect(0)?.json()?;
    assert_eq!(revisions(&history)?.len(), 4);

    // Nothing to bring back, and frozen all the same where that is asked for.
    let same = client.run(&["rollback", "4", "--freeze", "-o", "json"])?.expect(0)?;
    assert_eq!(same.json()?["revision"], 4);
    client.run(&["apply", "--prune", "--yes"])?.expect(0)?;
    std::fs::remove_file(world.path("catalog/sub/sweep.yaml"))?;
    client.run(&["apply", "--prune", "--yes"])?.expect(3)?;
    Ok(())
}

fn what_is_exported_validates_and_is_the_same(world: &World) -> Result<()> {
    repository(world)?;
    let (_daemons, client) = world.whole(None)?;
    client.run(&["apply"])?.expect(0)?;
    world.write("catalog/greet.yaml", NEW)?;
    client.run(&["apply"])?.expect(0)?;

    let written = client.run(&["export", "out/team", "-o", "json"])?.expect(0)?.json()?;
    assert_eq!((&written["revision"], &written["jobs"]), (&2.into(), &2.into()));
    client.run(&["validate", "out/team"])?.expect(0)?;
    client.run(&["diff", "out/team"])?.expect(0)?;
    assert!(Path::new(&world.path("out/team/sub/sweep.yaml")).is_file(), "files keep their place: {written}");
    let again = client.run(&["export", "out/team"])?.expect(0)?.stdout;
    assert!(again.contains("out/team: 2 jobs of team revision 2 (3 were there already)"), "{again}");

    // Nothing is replaced: neither by another revision, nor where something else lies there.
    let greet = std::fs::read_to_string(world.path("out/team/greet.yaml"))?;
    let other = client.run(&["export", "out/team", "--revision", "1"])?.expect(2)?;
    assert!(
        other.stderr.contains("greet.yaml is there already") && other.stderr.contains("nothing was written"),
        "{}",
        other.stderr
    );
    assert_eq!(std::fs::read_to_string(world.path("out/team/greet.yaml"))?, greet);
    world.write("mixed/extra.yaml", SWEEP)?;
    let mixed = client.run(&["export", "mixed"])?.expect(2)?;
    assert!(mixed.stderr.contains("extra.yaml") && mixed.stderr.contains("nothing was written"), "{}", mixed.stderr);
    assert!(!world.path("mixed/greet.yaml").exists());

    client.run(&["export", "first", "--revision", "1"])?.expect(0)?;
    let first = std::fs::read_to_string(world.path("first/greet.yaml"))?;
    assert!(first.contains("Say hello") && greet.contains("Say good day"), "{first}\n{greet}");
    client.run(&["diff", "first"])?.expect(1)?;
    let none = client.run(&["export", "x", "--revision", "7"])?.expect(3)?;
    assert!(none.stderr.contains("it has 1 to 2"), "{}", none.stderr);
    assert!(!world.path("x").exists());
    // Without any folder that names it, the only catalogue is meant.
    std::fs::remove_dir_all(world.path("catalog"))?;
    client.run(&["export", "alone"])?.expect(0)?;
    client.run(&["diff", "alone"])?.expect(0)?;
    Ok(())
}

fn single_jobs_are_made_and_removed_beside_a_catalogue_of_git(world: &World) -> Result<()> {
    repository(world)?;
    let (_daemons, client) = world.whole(None)?;
    client.run(&["apply"])?.expect(0)?;
    let file = world.write("one.yaml", "name: one\ncommand: [echo, one]\n")?.display().to_string();
    let made = client.run(&["create", "--job-path", &file])?.expect(0)?;
    assert_eq!(made.stdout, "one\n");
    assert!(made.stderr.contains("manual: no revision") && made.stderr.contains("+ one"), "{}", made.stderr);
    assert_eq!(client.run(&["create", "--job-path", &file, "-o", "json"])?.expect(0)?.json()?["revision"], 1, "it is the same");

    // What git owns is changed there, and the refusal says where that is.
    let theirs = world.write("greet.yaml", NEW)?.display().to_string();
    for refused in [client.run(&["create", "--job-path", &theirs, "--yes"])?, client.run(&["delete", "greet", "--yes"])?] {
        let said = refused.expect(3)?.stderr;
        assert!(said.contains("catalogue `team` owns it") && said.contains("catalog/greet.yaml"), "{said}");
        assert!(said.contains("https://git.example/team/jobs.git"), "{said}");
    }
    let unasked = client.run(&["delete", "one"])?.expect(3)?;
    assert!(unasked.stderr.contains("- one") && unasked.stderr.contains("--yes"), "{}", unasked.stderr);
    client.run(&["delete", "one", "--yes"])?.expect(0)?;
    client.run(&["delete", "one", "--yes"])?.expect(3)?;
    assert_eq!(client.run(&["list", "-o", "name"])?.expect(0)?.stdout, "greet\nsweep\n");
    let history = client.run(&["history", "--catalog-name", "manual", "-o", "json"])?.expect(0)?.json()?;
    assert_eq!(revisions(&history)?.len(), 2);
    Ok(())
}

/// More revisions of one job than are asked for at once.
const MANY: u64 = 210;

#[test]
fn a_history_is_longer_than_one_answer() -> Result<()> {
    let world = World::new()?;
    let (_controller, port) = world.controller("store", 0)?;
    let admin = world.admin(port)?;
    let token = std::fs::read_to_string(world.path("admin.token"))?;
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    runtime.block_on(async {
        let address = [Address::parse(&format!("127.0.0.1:{port}"))?];
        let connection = Connection::open(&address, Some(token.trim()), Duration::from_secs(10)).await?;
        for parent in 0..MANY {
            let job = json!({"name": "j", "command": ["true"], "description": format!("{parent}")});
            let bytes = serde_json::from_value::<JobDefinition>(job)?.to_canonical_json();
            let definition = Digest::of(&bytes).as_bytes().to_vec().into();
            let entry = v1::ManifestEntry { name: "j".into(), definition, file: "j.yaml".into(), line: 1, ..Default::default() };
            let header = v1::ApplyHeader { catalog: "long".into(), parent, put: vec![entry], ..Default::default() };
            let definitions = vec![v1::Definition { json: bytes.into() }];
            let parts = [Part::Header(header), Part::Definitions(v1::ApplyDefinitions { definitions })];
            connection.catalog().apply(tokio_stream::iter(parts.map(|part| v1::ApplyRequest { part: Some(part) }))).await?;
        }
        anyhow::Ok(())
    })?;
    for arguments in [&["history", "--catalog-name", "long"][..], &["history", "--catalog-name", "long", "--job-name", "j"]] {
        let numbers = |limit: &str| -> Result<Vec<u64>> {
            let arguments = [arguments, &["--limit", limit, "-o", "json"]].concat();
            let history = admin.run(&arguments)?.expect(0)?.json()?;
            revisions(&history)?.iter().map(|revision| revision["revision"].as_u64().context("no number")).collect()
        };
        assert_eq!(numbers("5000")?, (1..=MANY).rev().collect::<Vec<_>>(), "{arguments:?}");
        assert_eq!(numbers("205")?, (6..=MANY).rev().collect::<Vec<_>>(), "{arguments:?}");
    }
    let none = admin.run(&["rollback", "2000", "--catalog-name", "long"])?.expect(3)?;
    assert!(none.stderr.contains("it has 1 to 210"), "{}", none.stderr);
    Ok(())
}
