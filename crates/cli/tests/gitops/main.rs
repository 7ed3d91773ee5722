//! What was reviewed is what runs: `diff`, plans in files, and `apply` with its guards, as real processes over real git repositories and a
//! real controller.

#![expect(clippy::unwrap_used, reason = "a helper that cannot do its work fails the test that called it")]

mod approvals;
mod completion;
mod doctor;
mod guards;
mod logs;
mod running;
mod terminal;

use std::fs;
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use octavius_cli::config::Resolved;
use octavius_cli::output::Shell;
use octavius_cli::session::Session;
use octavius_proto::client::Address;
use octavius_proto::v1;
use octavius_tests::{Client, Daemon, World, eventually, on_every_store};
use rustix::process::Signal;
use terminal::Terminal;

/// Runs git in a folder, with nothing of the user's configuration; returns what it prints.
fn git(folder: &Path, arguments: &[&str]) -> String {
    let name = ["-c", "user.name=Ann", "-c", "user.email=ann@example.com", "-c", "init.defaultBranch=main"];
    let mut command = Command::new("git");
    command.args(name).args(arguments).current_dir(folder).env_clear();
    command.env("PATH", std::env::var_os("PATH").unwrap()).env("HOME", folder).env("GIT_CONFIG_NOSYSTEM", "1");
    let output = command.output().unwrap();
    assert!(output.status.success(), "git {arguments:?}: {}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8(output.stdout).unwrap().trim().to_owned()
}

/// Commits everything in a folder's catalogue, and returns the commit.
fn commit(folder: &Path, message: &str) -> String {
    git(folder, &["add", "catalog"]);
    git(folder, &["commit", "-q", "-m", message]);
    git(folder, &["rev-parse", "HEAD"])
}

fn job(world: &World, name: &str, rest: &str) {
    world.write(&format!("catalog/{name}.yaml"), &format!("name: {name}\n{rest}\n")).unwrap();
}

/// A repository with a catalogue of two jobs, committed.
fn repository(world: &World) -> String {
    git(&world.path(""), &["init", "-q"]);
    world.write("catalog/octavius.yaml", "catalog: support\n").unwrap();
    job(world, "greet", "command: [echo, hello]");
    job(world, "slow", "command: [sleep, \"100\"]");
    commit(&world.path(""), "one")
}

/// A controller without executors: what is asked for stays queued, and nothing is left running.
fn controller(world: &World) -> (Daemon, Client<'_>) {
    let (daemon, port) = world.controller("store", 0).unwrap();
    (daemon, world.admin(port).unwrap())
}

fn names(folder: &Path) -> Vec<String> {
    fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect()
}

#[test]
fn a_diff_tells_what_would_change_and_what_still_runs() {
    let world = World::new().unwrap();
    let one = repository(&world);
    let (_controller, client) = controller(&world);
    let first = client.run(&["diff"]).unwrap().expect(1).unwrap();
    assert!(first.stdout.contains(&format!("/support: no revision → working tree ({})\n", &one[..7])), "{}", first.stdout);
    client.run(&["apply"]).unwrap().expect(0).unwrap();
    client.run(&["diff"]).unwrap().expect(0).unwrap();

    for _ in 0..2 {
        client.execute("slow", &[]).unwrap();
    }
    client.execute("greet", &[]).unwrap();
    job(&world, "slow", "command: [sleep, \"200\"]");
    fs::remove_file(world.path("catalog/greet.yaml")).unwrap();
    let changed = client.run(&["diff", "--prune"]).unwrap().expect(1).unwrap().stdout;
    for expected in [
        format!("revision 1 ({0}) → working tree ({0}, changed)\n", &one[..7]),
        "    :2  command[1]  100 → 200\n    2 running executions keep revision 1\n".to_owned(),
        "- greet  catalog/greet.yaml, last run ".to_owned(),
        "\n    1 running execution keeps revision 1\n1 changed, 1 removed, 0 unchanged\n".to_owned(),
    ] {
        assert!(changed.contains(&expected), "{expected} in {changed}");
    }
    let json = client.run(&["diff", "-o", "json"]).unwrap().expect(1).unwrap().json().unwrap();
    let of = |name: &str| json["changes"].as_array().unwrap().iter().find(|change| change["job"] == name).unwrap().clone();
    assert_eq!((of("slow")["running"].as_u64(), of("slow").get("last_run")), (Some(2), None));
    assert_eq!((of("greet")["running"].as_u64(), of("greet")["action"].as_str()), (Some(1), Some("blocked")));
    assert!(of("greet")["last_run"].is_string());

    // only executions of the definition that goes are counted
    client.run(&["apply"]).unwrap().expect(0).unwrap();
    client.execute("slow", &[]).unwrap();
    job(&world, "slow", "command: [sleep, \"300\"]");
    let changed = client.run(&["diff"]).unwrap().expect(1).unwrap().stdout;
    assert!(changed.contains("    1 running execution keeps revision 2\n"), "{changed}");
    assert!(changed.contains("blocked: needs --prune"), "{changed}");
    let markdown = client.run(&["diff", "-o", "markdown"]).unwrap().expect(1).unwrap().stdout;
    assert!(markdown.starts_with("<!-- octavius:") && markdown.contains("1 running execution keeps revision 2"), "{markdown}");
    assert_eq!(client.run(&["diff", "-o", "name", "--exit-zero"]).unwrap().expect(0).unwrap().stdout, "greet\nslow\n");
}

/// 2 means findings in the files, or flags that cannot be; all other trouble is above it.
#[test]
fn a_diff_ends_as_its_contract_says() {
    let world = World::new().unwrap();
    repository(&world);
    let missing = world.run(&["diff"]).unwrap().expect(3).unwrap();
    assert!(missing.stderr.contains("no controller is configured"), "{}", missing.stderr);
    world.run(&["diff", "--cp-host", "127.0.0.1:1", "--time-out", "1"]).unwrap().expect(4).unwrap();
    world.run(&["diff", "nowhere"]).unwrap().expect(3).unwrap();
    let unknown = world.run(&["diff", "--against", "nowhere"]).unwrap().expect(3).unwrap();
    assert!(unknown.stderr.contains("no revision `nowhere`"), "{}", unknown.stderr);
    world.run(&["diff", "--against", "HEAD", "--out", "p"]).unwrap().expect(2).unwrap(); // wrong usage, as an unknown flag is
    let stdout = world.run(&["diff", "--out", "-"]).unwrap().expect(2).unwrap();
    assert!(stdout.stderr.contains("not to standard output"), "{}", stdout.stderr);
    job(&world, "slow", "command: 5");
    for arguments in [&["diff"][..], &["diff", "--against", "HEAD"], &["diff", "--against", "nowhere"]] {
        let findings = world.run(arguments).unwrap().expect(2).unwrap();
        assert!(findings.stderr.contains("catalog/slow.yaml:2:10: error[type]"), "{}", findings.stderr);
    }
}

/// Neither a configuration nor a token nor a controller is there.
#[test]
fn a_diff_against_a_git_revision_is_offline() {
    let world = World::new().unwrap();
    let one = repository(&world);
    world.run(&["diff", "--against", "HEAD"]).unwrap().expect(0).unwrap();
    job(&world, "slow", "command: [sleep, \"200\"]");
    job(&world, "new", "command: [\"true\"]");
    let two = commit(&world.path(""), "two");
    fs::remove_file(world.path("catalog/greet.yaml")).unwrap();
    let told = world.run(&["diff", "--against", "HEAD~1"]).unwrap().expect(1).unwrap();
    let expected = format!(
        "support: HEAD~1 ({}) → working tree ({}, changed)\n\
         + new    catalog/new.yaml\n\
         ~ slow   catalog/slow.yaml\n    :2  command[1]  100 → 200\n\
         - greet  catalog/greet.yaml\n    blocked: needs --prune\n\
         1 added, 1 changed, 1 removed (blocked), 0 unchanged\n",
        &one[..7],
        &two[..7]
    );
    assert_eq!((told.stdout.as_str(), told.stderr.as_str()), (&*expected, ""));
    let json = world.run(&["diff", "--against", &one, "--prune", "-o", "json"]).unwrap().expect(1).unwrap().json().unwrap();
    assert_eq!((json["against"]["commit"].as_str(), json["summary"]["removed"].as_u64()), (Some(&*one), Some(1)));
    let markdown = world.run(&["diff", "--against", "main~1", "-o", "markdown"]).unwrap().expect(1).unwrap().stdout;
    assert!(markdown.contains("**1 added, 1 changed, 1 removed (blocked), 0 unchanged**"), "{markdown}");
    // in the folder itself, too
    let within = Command::new(env!("CARGO_BIN_EXE_octavius"))
        .args(["diff", ".", "--against", "HEAD", "-o", "name"])
        .current_dir(world.path("catalog"))
        .env("HOME", world.path("home"))
        .output()
        .unwrap();
    assert_eq!((within.status.code(), String::from_utf8_lossy(&within.stdout).as_ref()), (Some(1), "greet\n"));
    // a shallow clone does not have it
    git(&world.path(""), &["clone", "-q", "--depth", "1", &format!("file://{}", world.path("").display()), "shallow"]);
    let shallow = world.run(&["diff", "shallow/catalog", "--against", "HEAD~1"]).unwrap().expect(3).unwrap();
    assert!(shallow.stderr.contains("shallow clone"), "{}", shallow.stderr);
}

fn a_plan_is_carried_out_exactly_or_not_at_all(world: &World) -> Result<()> {
    repository(world);
    let (_controller, client) = controller(world);
    let secret = "4711-never-shown";
    job(
        world,
        "greet",
        &format!(
            "command: [echo]\nenv_vars:\n  args:\n  - {{name: pin, description: p, default: \"{secret}\", sensitive: true}}"
        ),
    );
    let shown = client.run(&["diff", "--out", "one.plan"])?.expect(1)?;
    ensure!(shown.stderr.contains("plan written to one.plan"), "{}", shown.stderr);
    let text = fs::read_to_string(world.path("one.plan"))?;
    ensure!(!text.contains(secret), "{text}");
    // it is shown without any controller, as it was
    let again = world.run(&["apply", "one.plan", "--dry-run"])?.expect(0)?;
    ensure!(again.stdout == shown.stdout, "{} and {}", again.stdout, shown.stdout);
    ensure!(world.run(&["apply", "one.plan", "--dry-run", "-o", "json"])?.expect(0)?.json()?["parent_revision"] == 0);

    let refused = |arguments: &[&str], code: i32, expected: &str| -> Result<()> {
        let said = client.run(arguments)?.expect(code)?.stderr;
        ensure!(said.contains(expected), "{expected} in {said}");
        Ok(())
    };
    for flag in ["--prune", "--allow-empty", "--allow-older", "--watch"] {
        refused(&["apply", "one.plan", flag], 2, &format!("{flag} is for planning"))?;
    }
    for flag in ["--max-deletions=3", "--retry-conflict=1s"] {
        refused(&["apply", "one.plan", flag], 2, "is for planning")?;
    }
    refused(&["apply", "one.plan", "--require-clean"], 3, "differ from commit")?;
    refused(&["apply", "catalog/slow.yaml"], 2, "not a plan")?;
    refused(&["diff", "--out", "catalog/plan.json"], 3, "would be read as a job")?;
    fs::write(world.path("edited.plan"), text.replace("greet", "great"))?;
    refused(&["apply", "edited.plan"], 2, "damaged")?;

    // files that changed, or have findings now
    job(world, "slow", "command: [sleep, \"1\"]");
    refused(&["apply", "one.plan"], 3, "the files do not give this plan any more: `slow`")?;
    job(world, "slow", "command: 5");
    refused(&["apply", "one.plan"], 3, "the files have changed since the plan was made, and have findings now")?;
    job(world, "slow", "command: [sleep, \"100\"]");
    // a variable that was set for all applies is none of this one's business
    let mut command = client.command(&["apply", "one.plan", "-o", "json"]);
    let done = command.envs([("OCTAVIUS_RETRY_CONFLICT", "1s"), ("OCTAVIUS_ALLOW_OLDER", "1")]).stdin(Stdio::null()).output()?;
    let said = String::from_utf8_lossy(&done.stderr);
    ensure!(done.status.code() == Some(0), "{said}");
    ensure!(!said.contains(secret), "{said}");
    ensure!(serde_json::from_slice::<serde_json::Value>(&done.stdout)?["revision"] == 1);
    refused(&["apply", "one.plan"], 3, "the plan was used before: it made revision 1 by ")?;

    // head moved
    job(world, "new", "command: [\"true\"]");
    client.run(&["diff", "--out", "two.plan"])?.expect(1)?;
    job(world, "newer", "command: [\"true\"]");
    client.run(&["apply"])?.expect(0)?;
    refused(&["apply", "two.plan"], 3, "head has moved: the plan was made against revision 1")?;

    // removals that were planned need no other consent
    fs::remove_file(world.path("catalog/new.yaml"))?;
    fs::remove_file(world.path("catalog/newer.yaml"))?;
    client.run(&["diff", "--prune", "--out", "three.plan"])?.expect(1)?;
    client.run(&["apply", "three.plan"])?.expect(0)?;
    client.run(&["diff"])?.expect(0)?;
    // whole, or not at all: no temporary file stays
    ensure!(!names(&world.path("")).iter().any(|name| name.starts_with(".tmp")), "{:?}", names(&world.path("")));
    Ok(())
}

/// Appliers of the same catalogue that do not know of one another: each brings its own job, and none loses.
fn appliers_that_try_again_all_get_through(world: &World) -> Result<()> {
    const RACERS: usize = 8;
    let (_controller, client) = controller(world);
    for racer in 0..RACERS {
        world.write(&format!("{racer}/octavius.yaml"), "catalog: support\n")?;
        world.write(&format!("{racer}/job-{racer}.yaml"), &format!("name: job-{racer}\ncommand: [\"true\"]\n"))?;
    }
    std::thread::scope(|scope| {
        let client = &client;
        let race = |racer: usize| move || client.run(&["apply", &racer.to_string(), "--retry-conflict", "60s"])?.expect(0);
        let racing: Vec<_> = (0..RACERS).map(|racer| scope.spawn(race(racer))).collect();
        racing.into_iter().try_for_each(|racer| racer.join().unwrap().map(drop))
    })?;
    let history = client.run(&["history", "--catalog-name", "support", "-o", "json"])?.expect(0)?.json()?;
    let chain: Vec<_> =
        history["revisions"].as_array().context("no revisions")?.iter().map(|one| one["parent"].as_u64()).collect();
    ensure!(chain == (0..RACERS as u64).rev().map(Some).collect::<Vec<_>>(), "{chain:?}");
    ensure!(client.run(&["list", "-o", "name"])?.expect(0)?.stdout.lines().count() == RACERS);
    Ok(())
}

on_every_store!(a_plan_is_carried_out_exactly_or_not_at_all, appliers_that_try_again_all_get_through);

#[test]
fn a_plan_is_for_one_controller() {
    let world = World::new().unwrap();
    repository(&world);
    let (_controller, client) = controller(&world);
    client.run(&["diff", "--out", "one.plan"]).unwrap().expect(1).unwrap();
    let (_other, other) = world.dev(&[]).unwrap();
    let refused = other.run(&["apply", "one.plan"]).unwrap().expect(3).unwrap();
    assert!(refused.stderr.contains("the plan was made against another controller"), "{}", refused.stderr);
    client.run(&["apply", "one.plan"]).unwrap().expect(0).unwrap();
}

#[test]
fn an_older_commit_is_refused_and_files_in_no_commit_are_told() {
    let world = World::new().unwrap();
    let one = repository(&world);
    let folder = world.path("");
    let (_controller, client) = controller(&world);
    client.run(&["apply", "--require-clean"]).unwrap().expect(0).unwrap();
    job(&world, "slow", "command: [sleep, \"200\"]");
    let refused = client.run(&["apply", "--require-clean"]).unwrap().expect(3).unwrap();
    assert!(refused.stderr.contains(&format!("the files in catalog differ from commit {}", &one[..7])), "{}", refused.stderr);
    let dirty = client.run(&["apply"]).unwrap().expect(0).unwrap();
    assert!(dirty.stderr.contains("warning: the files differ from commit"), "{}", dirty.stderr);
    let two = commit(&folder, "two");
    let clean = client.run(&["diff"]).unwrap().expect(0).unwrap();
    assert!(clean.stdout.contains(&format!("revision 2 ({}, changed)", &one[..7])), "{}", clean.stdout);
    job(&world, "greet", "command: [echo, again]");
    let three = commit(&folder, "three");
    client.run(&["apply"]).unwrap().expect(0).unwrap();

    git(&folder, &["checkout", "-q", &two]);
    let warned = client.run(&["diff"]).unwrap().expect(1).unwrap();
    let older = format!("commit {} is older than {}", &two[..7], &three[..7]);
    assert!(warned.stderr.contains(&older), "{}", warned.stderr);
    for arguments in [&["apply", "--yes"][..], &["diff", "--out", "old.plan"]] {
        let refused = client.run(arguments).unwrap().expect(3).unwrap();
        assert!(refused.stderr.contains(&older) && refused.stderr.contains("--allow-older"), "{}", refused.stderr);
    }
    assert!(!world.path("old.plan").exists());
    client.run(&["diff", "--out", "old.plan", "--allow-older"]).unwrap().expect(1).unwrap();
    client.run(&["apply", "--allow-older"]).unwrap().expect(0).unwrap();
    // the newer one again, and from a clone that does not know what came before
    git(&folder, &["checkout", "-q", "main"]);
    client.run(&["apply"]).unwrap().expect(0).unwrap();
    job(&world, "greet", "command: [echo, once more]");
    commit(&folder, "four");
    git(&folder, &["clone", "-q", "--depth", "1", &format!("file://{}", folder.display()), "shallow"]);
    let shallow = client.run(&["apply", "shallow/catalog"]).unwrap().expect(0).unwrap();
    assert!(shallow.stderr.contains("cannot be told"), "{}", shallow.stderr);
    // nothing to do is no going back
    git(&world.path("shallow"), &["checkout", "-q", "--detach"]);
    client.run(&["apply", "shallow/catalog", "--require-clean"]).unwrap().expect(0).unwrap();
}

#[test]
fn a_frozen_catalogue_takes_nothing_and_says_who_froze_it() {
    let world = World::new().unwrap();
    repository(&world);
    let (_controller, client) = controller(&world);
    client.run(&["apply"]).unwrap().expect(0).unwrap();
    job(&world, "new", "command: [\"true\"]");
    client.run(&["diff", "--out", "new.plan"]).unwrap().expect(1).unwrap();
    freeze(&client);
    let shown = client.run(&["diff"]).unwrap().expect(1).unwrap();
    assert!(shown.stdout.lines().next().unwrap().contains(", frozen by admin since 20"), "{}", shown.stdout);
    let json = client.run(&["diff", "-o", "json"]).unwrap().expect(1).unwrap().json().unwrap();
    assert_eq!(json["frozen"]["by"], "admin");
    for arguments in [&["apply"][..], &["apply", "new.plan"], &["apply", "--yes", "--retry-conflict", "5s"]] {
        let refused = client.run(arguments).unwrap().expect(3).unwrap();
        assert!(refused.stderr.contains("catalogue `support` is frozen by admin since 20"), "{}", refused.stderr);
        assert!(refused.stderr.contains("octavius unfreeze"), "{}", refused.stderr);
    }
    fs::remove_file(world.path("catalog/new.yaml")).unwrap();
    client.run(&["apply"]).unwrap().expect(0).unwrap();
}

fn freeze(client: &Client<'_>) {
    let config = fs::read_to_string(client.config()).unwrap();
    let value = |key: &str| config.lines().find_map(|line| line.strip_prefix(key)).unwrap().trim().to_owned();
    let resolved = Resolved {
        addresses: vec![Address::parse(&value("CP_HOST:")).unwrap()],
        token: Some(value("ACCESS_TOKEN:")),
        token_source: None,
        email_id: None,
        timeout: Duration::from_secs(60),
        name: "test".to_owned(),
        warnings: Vec::new(),
    };
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    runtime.block_on(async {
        let session = Session::connect(&Shell::new(true), resolved).await.unwrap();
        let request = v1::SetFrozenRequest { catalog: "support".to_owned(), frozen: true };
        session.call(async |to| to.catalog().set_frozen(request.clone()).await).await.unwrap();
    });
}

#[test]
fn a_watched_catalogue_is_applied_on_each_change_and_nothing_is_removed() {
    let world = World::new().unwrap();
    repository(&world);
    let (_controller, client) = controller(&world);
    let far = world.run(&["apply", "--watch", "--cp-host", "127.0.0.1:1,192.0.2.1:3000", "--prune"]).unwrap().expect(2).unwrap();
    assert!(far.stderr.contains("--prune and --watch do not go together"), "{}", far.stderr);
    let watching = client.start(&["apply", "catalog", "--watch"]).unwrap();
    let said = |expected: &str| {
        eventually("it says so", || {
            let said = watching.said();
            ensure!(said.contains(expected), "{expected} in {said}");
            Ok(())
        })
        .unwrap();
    };
    let listed = |expected: &str| {
        eventually("it is applied", || {
            let listed = client.run(&["list", "-o", "name"])?.expect(0)?.stdout;
            ensure!(listed == expected, "{listed}");
            Ok(())
        })
        .unwrap();
    };
    said("watching catalog for changes");
    listed("greet\nslow\n");
    job(&world, "new", "command: 5");
    said("catalog/new.yaml:2:10: error[type]");
    listed("greet\nslow\n");
    job(&world, "new", "command: [\"true\"]");
    listed("greet\nnew\nslow\n");
    fs::remove_file(world.path("catalog/slow.yaml")).unwrap();
    said("support: revision 2, 1 removed (blocked), 2 unchanged");
    listed("greet\nnew\nslow\n");
    watching.signal(Signal::INT).unwrap();
    let (code, said) = watching.stop().unwrap();
    assert_eq!(code, 130, "{said}");
}

#[test]
fn jobs_that_no_executor_takes_are_told_with_the_server() {
    let world = World::new().unwrap();
    repository(&world);
    let (_dev, client) = world.dev(&["--label", "vpc=payment"]).unwrap();
    job(&world, "slow", "command: [sleep, \"1\"]\nexecutor: {vpc: payments}");
    assert!(!client.run(&["validate"]).unwrap().expect(0).unwrap().stdout.contains("warning"));
    eventually("the executor's labels are known", || {
        let told = client.run(&["validate", "--server"])?.expect(0)?.stdout;
        ensure!(told.contains("catalog/slow.yaml:3:17: warning[no-executor]") && told.contains("vpc=payment"), "{told}");
        Ok(())
    })
    .unwrap();
    let json = client.run(&["validate", "--server", "-o", "json"]).unwrap().expect(0).unwrap().json().unwrap();
    assert_eq!((json["findings"][0]["code"].as_str(), json["valid"].as_bool()), (Some("no-executor"), Some(true)));
    world.run(&["validate", "--server", "--cp-host", "127.0.0.1:1", "--time-out", "1"]).unwrap().expect(4).unwrap();
}

/// What a person agreed to is what is applied, also where someone else came before.
#[test]
fn consent_holds_for_what_was_shown() {
    let world = World::new().unwrap();
    let (_controller, client) = controller(&world);
    for folder in ["ours", "theirs"] {
        world.write(&format!("{folder}/octavius.yaml"), "catalog: support\n").unwrap();
    }
    let put = |folder: &str, name: &str, word: &str| {
        world.write(&format!("{folder}/{name}.yaml"), &format!("name: {name}\ncommand: [echo, {word}]\n")).unwrap();
    };
    let theirs = |name: &str, word: &str| {
        put("theirs", name, word);
        client.run(&["apply", "theirs"]).unwrap().expect(0).unwrap();
    };
    put("ours", "a", "one");
    // someone else's job does not touch what was agreed to
    let mut terminal = Terminal::start(&client, "apply ours --retry-conflict 60s");
    terminal.shows("apply to ", 1);
    theirs("b", "one");
    terminal.press("y");
    let (code, screen) = terminal.ends();
    assert!(code == 0 && screen.contains("planning again") && screen.contains("revision 2"), "{code}: {screen}");
    // without the flag it is refused
    put("ours", "a", "two");
    let mut terminal = Terminal::start(&client, "apply ours");
    terminal.shows("apply to ", 1);
    theirs("b", "two");
    terminal.press("y");
    let (code, screen) = terminal.ends();
    assert!(code == 3 && screen.contains("--retry-conflict"), "{code}: {screen}");
    // the same job: what it comes to is another change, and is asked for again
    let mut terminal = Terminal::start(&client, "apply ours --retry-conflict 60s");
    terminal.shows("apply to ", 1);
    theirs("a", "three");
    terminal.press("y");
    terminal.shows("three → two", 1);
    terminal.press("n");
    let (code, screen) = terminal.ends();
    assert!(code == 3 && screen.contains("declined"), "{code}: {screen}");
    let (code, _) = {
        let mut terminal = Terminal::start(&client, "apply ours");
        terminal.shows("apply to ", 1);
        terminal.press("n");
        terminal.ends()
    };
    assert_eq!(code, 3);
}
