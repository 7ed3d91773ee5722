//! A job's log as people and scripts read it.

use std::os::unix::process::CommandExt as _;
use std::process::Child;

use super::*;

/// Bytes of every kind: a NUL, what is no UTF-8, what a terminal would obey, and no line break at the end.
const PRINTED: &[u8] = b"one\n\0two\xff\xfe\n\x1b[31mred\x1b]0;title\x07 \xe2\x82\xac\r\nand a last line that does not end";

/// A world with a controller, an executor, and a job that runs a shell script of its argument `script`.
fn shell(world: &World) -> (Vec<Daemon>, Client<'_>) {
    world.write("catalog/octavius.yaml", "catalog: support\n").unwrap();
    job(world, "shell", "command: [sh, -c, \"eval \\\"$script\\\"\"]\nenv_vars: {args: [{name: script, required: true}]}");
    let (controller, client) = controller(world);
    client.run(&["apply", "catalog"]).unwrap().expect(0).unwrap();
    let port = client.config();
    let port = fs::read_to_string(port).unwrap();
    let port = port.lines().find_map(|line| line.rsplit_once("127.0.0.1:")).unwrap().1;
    let port = port.trim_matches(|c: char| !c.is_ascii_digit()).parse().unwrap();
    let executor = world.executor("e1", port, &client.registration().unwrap(), 4).unwrap();
    (vec![controller, executor], client)
}

fn run(client: &Client<'_>, script: &str) -> String {
    client.execute("shell", &["--arg", &format!("script={script}")]).unwrap()
}

/// A script that prints these bytes.
fn prints(bytes: &[u8]) -> String {
    let octal: Vec<_> = bytes.iter().map(|byte| format!("\\{byte:03o}")).collect();
    format!("printf '{}'", octal.concat())
}

/// The exit code of a call, and what it wrote.
fn output(client: &Client<'_>, arguments: &[&str]) -> (Option<i32>, Vec<u8>, String) {
    let output = client.command(arguments).output().unwrap();
    (output.status.code(), output.stdout, String::from_utf8_lossy(&output.stderr).into_owned())
}

fn read(client: &Client<'_>, arguments: &[&str]) -> Vec<u8> {
    let (code, stdout, stderr) = output(client, arguments);
    assert_eq!(code, Some(0), "{arguments:?}: {stderr}");
    stdout
}

/// Without the stamps before its lines, which are as long as a time and a space.
fn unstamped(log: &[u8]) -> Vec<u8> {
    let line = |line: &[u8]| {
        let stamp = std::str::from_utf8(&line[..25]).unwrap();
        assert!(stamp.starts_with("- ") || (stamp.starts_with("20") && stamp.ends_with("Z ")), "{stamp:?}");
        line[25..].to_vec()
    };
    log.split_inclusive(|byte| *byte == b'\n').flat_map(line).collect()
}

#[test]
fn a_log_is_the_same_bytes_however_it_is_read() {
    let world = World::new().unwrap();
    let (_daemons, client) = shell(&world);
    let id = run(&client, &prints(PRINTED));
    client.run(&["status", &id, "--wait"]).unwrap().expect(0).unwrap();
    for flags in
        [&[][..], &["--raw"], &["-f"], &["--attempt", "1"], &["--tail", "100"], &["--since", "1d"], &["-f", "--attempt", "1"]]
    {
        let arguments = [&["getlogs", &id][..], flags].concat();
        assert_eq!(read(&client, &arguments), PRINTED, "{flags:?}");
        let stamped = read(&client, &[&arguments[..], &["--timestamps"]].concat());
        assert_eq!(unstamped(&stamped), PRINTED, "{flags:?} {}", String::from_utf8_lossy(&stamped));
    }
    let last = &PRINTED[PRINTED.iter().rposition(|byte| *byte == b'\n').unwrap() + 1..];
    assert_eq!(read(&client, &["getlogs", &id, "--tail", "1"]), last);
    assert_eq!(unstamped(&read(&client, &["logs", "--job-id", &id, "--tail", "1", "--timestamps"])), last);
    let file = world.path("log").display().to_string();
    fs::write(&file, "a log before it").unwrap();
    assert_eq!(read(&client, &["getlogs", &id, "--output-file", &file]), b"");
    assert_eq!(fs::read(&file).unwrap(), PRINTED);
    read(&client, &["getlogs", &id, "--output-file", &file, "--timestamps"]);
    assert_eq!(unstamped(&fs::read(&file).unwrap()), PRINTED);

    let by_variable = |name: &str, value: &str| client.command(&["getlogs", &id]).env(name, value).output().unwrap().stdout;
    assert_eq!(unstamped(&by_variable("OCTAVIUS_TIMESTAMPS", "true")), PRINTED);
    assert_eq!(by_variable("OCTAVIUS_TAIL", "1"), last);
    assert_eq!(by_variable("OCTAVIUS_SINCE", "2020-01-01T00:00:00Z"), PRINTED);

    let (code, _, told) = output(&client, &["getlogs", &id, "--attempt", "2", "--output-file", &file]);
    assert!(code == Some(3) && told.contains("has no attempt 2"), "{told}");
    assert_eq!(unstamped(&fs::read(&file).unwrap()), PRINTED, "a log that is not there leaves the file as it was");
    let (code, _, told) = output(&client, &["getlogs", &id, "--since", "soon"]);
    assert!(code == Some(2) && told.contains("write a duration like 90s"), "{told}");
}

#[test]
fn on_a_terminal_a_log_is_harmless_and_raw_where_that_is_asked_for() {
    let world = World::new().unwrap();
    let (_daemons, client) = shell(&world);
    let id = run(&client, &prints(PRINTED));
    client.run(&["status", &id, "--wait"]).unwrap().expect(0).unwrap();
    let (code, screen) = Terminal::start(&client, &format!("getlogs {id}")).ends();
    assert_eq!((code, &*screen), (0, "one\r\ntwo\u{fffd}\u{fffd}\r\nred €\r\nand a last line that does not end"));
    let (code, screen) = Terminal::start(&client, &format!("getlogs {id} --raw")).ends();
    assert!(code == 0 && screen.contains("\x1b[31mred\x1b]0;title\x07"), "{screen:?}");
    let (code, screen) = Terminal::start(&client, &format!("getlogs {id} --timestamps --tail 2")).ends();
    let lines: Vec<_> = screen.split("\r\n").map(|line| &line[25..]).collect();
    assert_eq!((code, &lines[..]), (0, &["red €", "and a last line that does not end"][..]));
}

#[test]
fn a_followed_log_says_why_it_ended() {
    let world = World::new().unwrap();
    let (_daemons, client) = shell(&world);
    let follow = |id: &str| output(&client, &["getlogs", id, "-f"]);
    let (code, log, told) = follow(&run(&client, "echo well"));
    assert!(code == Some(0) && log == b"well\n" && told.starts_with("succeeded after ") && told.lines().count() == 1, "{told}");
    let (code, log, told) = follow(&run(&client, "echo no; exit 3"));
    assert!(code == Some(0) && log == b"no\n", "reading a log is not failing with it: {told}");
    assert!(told.starts_with("failed after ") && told.ends_with(": exit code 3\n"), "{told}");
    let (code, log, told) = output(&client, &["getlogs", &run(&client, ":"), "-f", "--timestamps"]);
    assert!(code == Some(0) && log.is_empty() && told.starts_with("succeeded after "), "{told}");

    let id = run(&client, "echo began; exec sleep 100");
    std::thread::scope(|scope| {
        let following = scope.spawn(|| follow(&id));
        until_printed(&client, &id, b"began\n");
        client.run(&["cancel", &id]).unwrap().expect(0).unwrap();
        let (code, log, told) = following.join().unwrap();
        assert!(code == Some(0) && log == b"began\n", "{told}");
        assert!(told.starts_with("cancelled by admin after "), "{told}");
    });
}

fn until_printed(client: &Client<'_>, id: &str, expected: &[u8]) {
    eventually("it prints", || {
        let (_, log, told) = output(client, &["getlogs", id]);
        ensure!(log == expected, "{} {told}", String::from_utf8_lossy(&log));
        Ok(())
    })
    .unwrap();
}

/// What is printed comes at once, and Ctrl-C leaves the job alone.
#[test]
fn a_followed_log_is_live_and_is_left_with_ctrl_c() {
    let world = World::new().unwrap();
    let (_daemons, client) = shell(&world);
    let id = run(&client, "printf 'no line yet'; exec sleep 100");
    let file = world.path("live");
    let mut command = client.command(&["getlogs", &id, "-f"]);
    let mut following: Child =
        command.stdout(fs::File::create(&file).unwrap()).stderr(Stdio::piped()).process_group(0).spawn().unwrap();
    eventually("it comes", || {
        let come = fs::read_to_string(&file)?;
        ensure!(come == "no line yet", "{come:?}");
        Ok(())
    })
    .unwrap();
    let pid = rustix::process::Pid::from_child(&following);
    rustix::process::kill_process(pid, Signal::INT).unwrap();
    let status = eventually("it ends", || following.try_wait()?.context("still there")).unwrap();
    let told = std::io::read_to_string(following.stderr.take().unwrap()).unwrap();
    assert_eq!(status.code(), Some(130), "{told}");
    assert!(told.contains("detached, the job runs on") && told.contains(&format!("octavius cancel {id}")), "{told}");
    eventually("it runs on", || {
        let state = client.status(&id)?["state"].clone();
        ensure!(state == "running", "{state}");
        Ok(())
    })
    .unwrap();
    client.run(&["cancel", &id]).unwrap().expect(0).unwrap();
}
