//! What guards an apply, a rollback and a single job against what happens between a look and the deed; and what is never shown.

use std::fs;
use std::io::Read as _;
use std::process::Stdio;

use anyhow::{Context as _, ensure};
use octavius_cli::{cli, env};
use octavius_tests::{Client, World, eventually};

use super::terminal::Terminal;
use super::{commit, controller, freeze, git, job, repository};

#[test]
fn a_plan_is_refused_where_files_moved_or_the_commit_is_another() {
    let world = World::new().unwrap();
    let one = repository(&world);
    let folder = world.path("");
    let (_controller, client) = controller(&world);
    client.run(&["diff", "--out", "one.plan"]).unwrap().expect(1).unwrap();
    let refused = |expected: &str| {
        let said = client.run(&["apply", "one.plan"]).unwrap().expect(3).unwrap().stderr;
        assert!(said.contains(expected), "{expected} in {said}");
    };
    let (from, to) = (world.path("catalog/greet.yaml"), world.path("catalog/moved.yaml"));
    fs::rename(&from, &to).unwrap();
    refused("`greet` is at catalog/moved.yaml:1, catalog/greet.yaml:1 was planned");
    commit(&folder, "two");
    refused("`greet` is at catalog/moved.yaml:1");
    fs::rename(&to, &from).unwrap();
    fs::write(&from, format!("# moved down\n{}", fs::read_to_string(&from).unwrap())).unwrap();
    refused("`greet` is at catalog/greet.yaml:2");
    git(&folder, &["checkout", "-q", "--force", "--detach", &one]);
    // no job of the plan is touched, and what it came from would be told wrong
    world.write("catalog/README.md", "words\n").unwrap();
    let short = &one[..7];
    refused(&format!(
        "files changed since the plan: they were those of commit {short}, and are those of commit {short} with changes"
    ));
    let two = commit(&folder, "two");
    refused(&format!("files changed since the plan: they were those of commit {short}, and are those of commit {}", &two[..7]));
    git(&folder, &["checkout", "-q", "--detach", &one]);
    client.run(&["apply", "one.plan"]).unwrap().expect(0).unwrap();
}

#[test]
fn what_is_watched_has_to_be_near_clean_and_permitted() {
    let world = World::new().unwrap();
    repository(&world);
    // nothing is sent there before it is allowed
    let far = ["apply", "--watch", "--cp-host", "127.0.0.1:1,192.0.2.1:3000", "--time-out", "1"];
    let refused = world.run(&far).unwrap().expect(3).unwrap();
    assert!(refused.stderr.contains("is not on this machine"), "{}", refused.stderr);
    world.run(&[&far[..], &["--yes"]].concat()).unwrap().expect(4).unwrap();

    let (_controller, port) = world.controller("store", 0).unwrap();
    let admin = world.admin(port).unwrap();
    let made = admin.run(&["tokens", "create", "--role", "user", "-o", "json"]).unwrap().expect(0).unwrap().json().unwrap();
    let user = made["token"].as_str().unwrap();
    // the secret of a token that nobody made
    let unknown = format!("{}{}", &user[..user.len() - 8], if user.ends_with("aaaaaaaa") { "bbbbbbbb" } else { "aaaaaaaa" });
    for (name, token, code) in [("unknown", unknown.as_str(), 8), ("user", user, 3)] {
        let client = world.client(name, port, token).unwrap();
        let mut command = client.command(&["apply", "catalog", "--watch"]);
        let mut watching = command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::piped()).spawn().unwrap();
        let ended = eventually("it ends by itself", || watching.try_wait()?.context("still running"));
        let _ = watching.kill();
        let ended = ended.unwrap().code().unwrap();
        let mut said = String::new();
        watching.stderr.take().unwrap().read_to_string(&mut said).unwrap();
        assert_eq!(ended, code, "{said}");
        assert!(!said.contains("watching"), "{said}");
    }

    job(&world, "new", "command: [\"true\"]");
    let watching = admin.start(&["apply", "catalog", "--watch", "--require-clean"]).unwrap();
    let said = |expected: &str| {
        eventually("it says so", || {
            let said = watching.said();
            ensure!(said.contains(expected), "{expected} in {said}");
            Ok(())
        })
        .unwrap();
    };
    said("the files in catalog differ from commit");
    assert_eq!(admin.run(&["list", "-o", "name"]).unwrap().expect(0).unwrap().stdout, "");
    commit(&world.path(""), "two");
    job(&world, "new", "command: [\"true\"]"); // the same again: git changes nothing in the folder
    said("3 added");
}

/// Everyone's single jobs are in one catalogue, so whoever puts one there moves the head for all.
#[test]
fn single_jobs_are_put_and_removed_side_by_side() {
    const MANY: usize = 6;
    let world = World::new().unwrap();
    let (_controller, client) = controller(&world);
    let side_by_side = |arguments: &(dyn Fn(usize) -> Vec<String> + Sync)| {
        std::thread::scope(|scope| {
            let client = &client;
            let one = |number: usize| {
                move || {
                    let arguments = arguments(number);
                    client.run(&arguments.iter().map(String::as_str).collect::<Vec<_>>())?.expect(0)
                }
            };
            let running: Vec<_> = (0..MANY).map(|number| scope.spawn(one(number))).collect();
            running.into_iter().try_for_each(|one| one.join().unwrap().map(drop)).unwrap();
        });
    };
    let words = |words: &[&str]| words.iter().map(|word| (*word).to_owned()).collect::<Vec<_>>();
    for number in 0..MANY {
        world.write(&format!("job-{number}.yaml"), &format!("name: job-{number}\ncommand: [\"true\"]\n")).unwrap();
    }
    let listed = || client.run(&["list", "-o", "name"]).unwrap().expect(0).unwrap().stdout.lines().count();
    side_by_side(&|number| words(&["create", "--job-path", &format!("job-{number}.yaml")]));
    assert_eq!(listed(), MANY);
    side_by_side(&|number| words(&["delete", &format!("job-{number}"), "--yes"]));
    assert_eq!(listed(), 0);
}

/// Removed by someone else after a person was asked: what they agreed to is not there any more.
#[test]
fn a_single_job_that_changed_meanwhile_is_left() {
    let world = World::new().unwrap();
    let (_controller, client) = controller(&world);
    let put = |word: &str| {
        world.write("a.yaml", &format!("name: a\ncommand: [echo, {word}]\n")).unwrap();
        client.run(&["create", "--job-path", "a.yaml"]).unwrap().expect(0).unwrap();
    };
    put("one");
    let mut terminal = Terminal::start(&client, "delete a");
    terminal.shows("apply to ", 1);
    put("two");
    terminal.press("y");
    let (code, screen) = terminal.ends();
    assert!(code == 3 && screen.contains("someone applied in the meantime"), "{code}: {screen}");
    client.run(&["describe", "a"]).unwrap().expect(0).unwrap();
}

#[test]
fn a_freeze_without_changes_is_asked_for_and_holds_for_what_was_seen() {
    let world = World::new().unwrap();
    repository(&world);
    let (_controller, client) = controller(&world);
    client.run(&["apply"]).unwrap().expect(0).unwrap();
    let frozen = || {
        let json = client.run(&["diff", "-o", "json", "--exit-zero"]).unwrap().expect(0).unwrap().json().unwrap();
        json.get("frozen").is_some_and(|frozen| !frozen.is_null())
    };
    let mut terminal = Terminal::start(&client, "rollback 1 --freeze");
    terminal.shows("freeze `support` of ", 1);
    terminal.press("n");
    let (code, screen) = terminal.ends();
    assert!(code == 3 && screen.contains("declined") && !frozen(), "{code}: {screen}");

    let mut terminal = Terminal::start(&client, "rollback 1 --freeze");
    terminal.shows("freeze `support` of ", 1);
    job(&world, "new", "command: [\"true\"]");
    client.run(&["apply"]).unwrap().expect(0).unwrap();
    terminal.press("y");
    let (code, screen) = terminal.ends();
    assert!(code == 3 && screen.contains("head has moved: revision 2 was applied before"), "{code}: {screen}");
    assert!(frozen());
    client.run(&["unfreeze"]).unwrap().expect(0).unwrap();
    client.run(&["rollback", "2", "--freeze"]).unwrap().expect(0).unwrap();
    assert!(frozen());
    freeze(&client);
}

/// Its text is in the files, and nowhere else.
#[test]
fn a_sensitive_value_is_in_nothing_that_is_printed_or_kept() {
    const SECRETS: [&str; 4] = ["4711-default", "4711-first", "4711-second", "4711-wrong"];
    let world = World::new().unwrap();
    repository(&world);
    let (_controller, client) = controller(&world);
    let with = |default: &str, choices: &str, rest: &str| {
        let args = format!(
            "  - name: pin\n    description: a pin\n    sensitive: true\n    default: {default}\n  \
             - name: door\n    description: which\n    sensitive: true\n    enum: [{choices}]\n{rest}"
        );
        job(&world, "greet", &format!("command: [echo]\nenv_vars:\n  args:\n{args}"));
    };
    let run = |client: &Client<'_>, arguments: &[&str]| {
        let ran = client.run(arguments).unwrap();
        for secret in SECRETS {
            let found = [&ran.stdout, &ran.stderr].iter().any(|text| text.contains(secret));
            assert!(!found, "{arguments:?}: {}\n{}", ran.stdout, ran.stderr);
        }
        ran
    };
    let everywhere = |plan: &str, code: i32| {
        for form in ["text", "json", "github"] {
            run(&client, &["validate", "-o", form]).expect(0).unwrap();
        }
        for form in ["text", "markdown", "json", "yaml", "name"] {
            run(&client, &["diff", "-o", form]).expect(code).unwrap();
            run(&client, &["diff", "--against", "HEAD", "-o", form]).expect(1).unwrap();
        }
        run(&client, &["diff", "--out", plan]).expect(code).unwrap();
        let text = fs::read_to_string(world.path(plan)).unwrap();
        assert!(SECRETS.iter().all(|secret| !text.contains(secret)), "{text}");
        run(&client, &["apply", "--dry-run"]).expect(0).unwrap();
        run(&client, &["apply", "--dry-run", "-o", "json"]).expect(0).unwrap();
        run(&client, &["apply", plan]).expect(0).unwrap();
        for form in ["text", "json", "yaml"] {
            run(&client, &["describe", "greet", "-o", form]).expect(0).unwrap();
        }
        for arguments in [&["list", "-o", "json"][..], &["list", "-o", "wide"], &["history", "-o", "json"]] {
            run(&client, arguments).expect(0).unwrap();
        }
    };
    with("4711-default", "4711-first, 4711-second", "");
    everywhere("one.plan", 1);
    with("4711-second", "4711-second, 4711-default", "    required: true\n");
    everywhere("two.plan", 1);
    run(&client, &["rollback", "1", "--yes"]).expect(0).unwrap();

    // with findings at the values themselves, of which a line of the file is shown
    for (default, choices, rest) in [
        ("4711-default", "4711-first, 4711-first", ""),
        ("[4711-wrong]", "4711-first", ""),
        ("4711-default", "4711-first", "    default: 4711-wrong\n"),
        ("4711-default", "4711-first", "    type: integer\n"),
        ("4711-default", "4711-first", "    comand: 4711-wrong\n"),
    ] {
        with(default, choices, rest);
        for form in ["text", "json", "github"] {
            run(&client, &["validate", "-o", form]).expect(1).unwrap();
        }
        run(&client, &["diff"]).expect(2).unwrap();
        run(&client, &["apply"]).expect(2).unwrap();
    }
}

/// CI systems set variables that nobody gave a value to the empty text. Each command gets as far as without them: to an address that is none.
#[test]
fn an_empty_variable_counts_as_unset_for_every_command() {
    fn leaves(command: &clap::Command, path: &[String], into: &mut Vec<Vec<String>>) {
        let path = [path, &[command.get_name().to_owned()]].concat();
        if command.has_subcommands() {
            command.get_subcommands().for_each(|one| leaves(one, &path, into));
        } else {
            into.push(path);
        }
    }
    let mut commands = Vec::new();
    cli::command().get_subcommands().for_each(|command| leaves(command, &[], &mut commands));
    assert!(commands.len() > 30, "{commands:?}");
    let empty = env::ALL.iter().filter(|name| name.starts_with("OCTAVIUS_")).map(|name| (*name, ""));
    let empty: Vec<_> = empty.collect();
    for mut command in commands {
        let more: &[&str] = match command.join(" ").as_str() {
            "demo" => continue,            // it takes no flags, and starts real daemons
            "tokens generate" => continue, // it prints another one each time
            "dev" => &["--listen", "192.0.2.1:1"],
            "rollback" => &["1"],
            "export" | "import" | "backup" | "restore" | "completion" => &["zsh"],
            "create" => &["--job-path", "none.yaml"],
            "delete" | "describe" | "execute" | "rerun" | "status" | "getlogs" => &["a"],
            _ => &[],
        };
        command.extend(more.iter().map(|word| (*word).to_owned()));
        command.extend(["--cp-host".to_owned(), "no address".to_owned()]);
        let run = |variables: &[(&str, &str)]| {
            let world = World::new().unwrap();
            world.write("catalog/octavius.yaml", "catalog: support\n").unwrap();
            let output = world.command(&command).envs(variables.iter().copied()).stdin(Stdio::null()).output().unwrap();
            let text = |bytes| String::from_utf8(bytes).unwrap().replace(&*world.path("").to_string_lossy(), "");
            (output.status.code(), text(output.stdout), text(output.stderr))
        };
        assert_eq!(run(&empty), run(&[]), "{command:?}");
    }
}

#[test]
fn a_second_catalogue_is_told_what_the_recipe_and_the_hook_lack() {
    let world = World::new().unwrap();
    git(&world.path(""), &["init", "-q"]);
    for (system, recipe) in [("github", ".github/workflows/octavius.yml"), ("gitlab", ".gitlab/octavius.yml")] {
        let first = world.run(&["init", "a", "--ci", system]).unwrap().expect(0).unwrap();
        assert!(!first.stderr.contains("another catalogue"), "{}", first.stderr);
        let again = world.run(&["init", "a", "--ci", system]).unwrap().expect(0).unwrap();
        assert!(!again.stderr.contains("another catalogue"), "{}", again.stderr);
        let second = world.run(&["init", "b", "--ci", system]).unwrap().expect(0).unwrap();
        for expected in [
            format!("warning: {recipe} is for another catalogue, not for b\n"),
            "with `CATALOG: b`, and `b/**".to_owned(),
            "warning: .octavius/pre-commit is for another catalogue, not for b\n".to_owned(),
            "let the hook run it for this one too: .octavius/pre-commit b\n".to_owned(),
        ] {
            assert!(second.stderr.contains(&expected), "{expected} in {}", second.stderr);
        }
        // with a recipe of its own
        let text = fs::read_to_string(world.path(recipe)).context(recipe).unwrap();
        world.write(&recipe.replace(".yml", "-b.yml"), &text.replace("CATALOG: a", "CATALOG: b")).unwrap();
        let third = world.run(&["init", "b", "--ci", system]).unwrap().expect(0).unwrap();
        assert!(!third.stderr.contains("octavius.yml is for another"), "{}", third.stderr);
    }
}
