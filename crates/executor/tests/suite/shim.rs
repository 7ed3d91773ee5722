//! The shim alone: run folders written by hand, the program called as an executor calls it.

use std::fs;
use std::os::unix::fs::PermissionsExt as _;
use std::os::unix::process::CommandExt as _;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use rustix::process::{Pid, Signal, kill_process};
use serde_json::{Value, json};

use crate::{SHIM, eventually, is_running, until};

struct Folder(tempfile::TempDir);

impl Folder {
    fn new(command: &[&str]) -> Self {
        Self::with(command, &json!({}))
    }

    fn with(command: &[&str], more: &Value) -> Self {
        let folder = tempfile::tempdir().unwrap();
        fs::create_dir(folder.path().join("work")).unwrap();
        let mut spec = json!({
            "version": 1, "id": "00000000000000000000000007", "attempt": 1, "nonce": u64::MAX, "boot": "b", "command": command,
            "env": {"PATH": "/usr/bin:/bin", "GREETING": "hello"}, "masked": [], "timeout_ms": 60_000, "kill_grace_ms": 100,
        });
        for (key, value) in more.as_object().unwrap() {
            spec[key] = value.clone();
        }
        fs::write(folder.path().join("journal"), format!("{spec}\n")).unwrap();
        Self(folder)
    }

    fn sh(script: &str) -> Self {
        Self::new(&["sh", "-c", script])
    }

    fn path(&self, name: &str) -> PathBuf {
        self.0.path().join(name)
    }

    fn start(&self) -> Child {
        let mut command = Command::new(SHIM);
        command.arg("shim").arg(self.0.path()).env("LEAKED", "hunter2").stdin(Stdio::null()).stdout(Stdio::null());
        command.spawn().unwrap()
    }

    /// Runs the shim to its end and returns what it says of the job's.
    fn run(&self) -> Value {
        assert_eq!(self.start().wait().unwrap().code(), Some(0));
        self.exit()
    }

    fn exit(&self) -> Value {
        let journal = fs::read_to_string(self.path("journal")).unwrap();
        serde_json::from_str(journal.lines().nth(2).unwrap()).unwrap()
    }

    fn output(&self) -> Vec<u8> {
        fs::read(self.path("output")).unwrap()
    }

    /// Numbers that the job wrote into its output, as soon as there are so many.
    fn pids(&self, count: usize) -> Vec<u32> {
        eventually("process ids in the output", || {
            let text = fs::read_to_string(self.path("output")).unwrap_or_default();
            let whole = text.rsplit_once('\n').map(|(whole, _)| whole).unwrap_or_default();
            let pids: Vec<u32> = whole.split_whitespace().map(|pid| pid.parse().unwrap()).collect();
            if pids.len() == count { Ok(pids) } else { Err(text) }
        })
    }
}

fn signal(pid: u32, signal: Signal) {
    kill_process(Pid::from_raw(i32::try_from(pid).unwrap()).unwrap(), signal).unwrap();
}

fn outcome(exit: &Value) -> String {
    format!("{} {} {}", exit["cause"].as_str().unwrap(), exit["code"], exit["signal"])
}

#[test]
fn exit_codes_and_signals_are_told_apart() {
    for (script, expected) in [
        ("exit 0", "exited 0 null"),
        ("exit 3", "exited 3 null"),
        ("exit 255", "exited 255 null"),
        ("kill -9 $$", "exited null 9"),
    ] {
        assert_eq!(outcome(&Folder::sh(script).run()), expected, "{script}");
    }
}

#[test]
fn output_is_every_byte_of_both_streams_in_their_order() {
    let folder =
        Folder::sh(r"for i in 1 2 3; do printf 'out%s\n' $i; printf 'err%s\n' $i >&2; done; printf '\377\376\000\033[1mx'");
    folder.run();
    assert_eq!(folder.output(), b"out1\nerr1\nout2\nerr2\nout3\nerr3\n\xff\xfe\x00\x1b[1mx");
    assert_eq!(fs::metadata(folder.path("output")).unwrap().permissions().mode() & 0o777, 0o600);
}

#[test]
fn output_written_by_way_of_dev_stderr_leaves_the_rest_as_it_is() {
    let folder = Folder::sh("echo one; echo two > /dev/stderr; echo three > /dev/stdout; echo four");
    folder.run();
    assert_eq!(folder.output(), b"one\ntwo\nthree\nfour\n");
}

#[test]
fn much_output_is_whole_and_does_not_keep_a_stop_waiting() {
    let folder = Folder::sh("head -c 30000000 /dev/zero; echo end >&2");
    folder.run();
    let output = folder.output();
    assert_eq!((output.len(), &output[30_000_000..]), (30_000_004, &b"end\n"[..]));

    let folder = Folder::sh("exec yes");
    let mut shim = folder.start();
    until("output comes", || fs::metadata(folder.path("output")).is_ok_and(|output| output.len() > 1_000_000));
    signal(shim.id(), Signal::TERM);
    shim.wait().unwrap();
    assert_eq!(outcome(&folder.exit()), "stopped null 15");
}

#[test]
fn output_without_an_executor_to_take_it_is_held_up_then_dropped_and_counted() {
    // More than a pipe and the shim hold between them: with less the job may end before it is held up.
    let script = "head -c 1000000 /dev/zero | tr '\\0' x; touch printed";
    let folder = Folder::with(&["sh", "-c", script], &json!({"room": 100_000, "room_patience_ms": 300}));
    let begun = Instant::now();
    let mut shim = folder.start();
    until("the room is used up", || fs::metadata(folder.path("output")).is_ok_and(|output| output.len() == 100_000));
    shim.wait().unwrap();
    assert!(begun.elapsed() >= Duration::from_millis(300) && folder.path("work/printed").exists());
    let output = String::from_utf8(folder.output()).unwrap();
    let (kept, rest) = output.split_once('\n').unwrap();
    assert_eq!(rest, "[octavius: 900000 bytes of output are missing here: the executor's spool was full]\n");
    assert_eq!((kept.len(), outcome(&folder.exit()).as_str()), (100_000, "exited 0 null"));
}

#[test]
fn times_are_noted_where_output_does_not_come_at_once() {
    let folder = Folder::sh("echo one; echo two");
    folder.run();
    assert!(!folder.path("times").exists() || folder.output() == b"one\ntwo\n");
    let folder = Folder::sh("echo one; sleep 0.1; echo two; sleep 0.1; echo three");
    folder.run();
    let times = fs::read(folder.path("times")).unwrap();
    let records: Vec<_> = times.chunks(16).map(|record| record.split_at(8)).collect();
    let number = |bytes: &[u8]| u64::from_le_bytes(bytes.try_into().unwrap());
    let offsets: Vec<_> = records.iter().map(|(offset, _)| number(offset)).collect();
    assert_eq!(offsets, [4, 8]);
    let gap = number(records[1].1) - number(records[0].1);
    assert!((90..10_000).contains(&gap), "{gap} ms");
}

#[test]
fn a_job_that_closes_its_output_is_waited_for_in_peace() {
    let folder = Folder::sh("echo bye; exec >&- 2>&-; sleep 0.3; exit 4");
    assert_eq!((outcome(&folder.run()), folder.output()), ("exited 4 null".to_owned(), b"bye\n".to_vec()));
}

#[test]
fn a_job_sees_the_environment_of_its_spec_and_nothing_of_the_executors() {
    let folder = Folder::new(&["env"]);
    folder.run();
    let mut lines: Vec<_> = String::from_utf8(folder.output()).unwrap().lines().map(str::to_owned).collect();
    lines.sort();
    assert_eq!(lines, ["GREETING=hello", "PATH=/usr/bin:/bin"]);
}

#[test]
fn a_job_stands_in_an_empty_folder_without_input_or_files_of_ours() {
    let folder = Folder::sh("cat; pwd; ls -A; for fd in /proc/$$/fd/*; do readlink $fd; done");
    folder.run();
    let base = fs::canonicalize(folder.0.path()).unwrap();
    let output = String::from_utf8(folder.output()).unwrap();
    let ours: Vec<_> = output.lines().filter_map(|line| Path::new(line).strip_prefix(&base).ok()?.to_str()).collect();
    assert_eq!(ours, ["work"]);
    assert!(output.lines().any(|line| line == "/dev/null"), "{output}");
}

#[test]
fn a_second_shim_runs_nothing_while_the_first_runs_or_after() {
    let folder = Folder::sh("echo $$; sleep 60");
    let mut first = folder.start();
    folder.pids(1);
    assert_eq!(folder.start().wait().unwrap().code(), Some(91));
    signal(first.id(), Signal::TERM);
    assert_eq!(first.wait().unwrap().code(), Some(0));
    assert_eq!(folder.start().wait().unwrap().code(), Some(91));
    assert_eq!(outcome(&folder.exit()), "stopped null 15");
    assert_eq!(folder.pids(1).len(), 1);
}

#[test]
fn of_many_shims_at_once_one_runs_the_job() {
    let folder = Folder::sh("echo $$");
    let shims: Vec<_> = (0..10).map(|_| folder.start()).collect();
    let mut codes: Vec<_> = shims.into_iter().map(|mut shim| shim.wait().unwrap().code().unwrap()).collect();
    codes.sort_unstable();
    assert_eq!((codes[0], &codes[1..]), (0, &[91; 9][..]));
    assert_eq!(folder.pids(1).len(), 1);
}

/// A job whose family has a child in a session of its own, one that ignores SIGTERM, and one in the background.
const FAMILY: &str = r#"trap "" TERM; setsid sh -c 'echo $$; sleep 60' & sleep 60 & echo $!; echo $$; sleep 60"#;

#[test]
fn the_timeout_ends_the_whole_family() {
    let folder = Folder::with(&["sh", "-c", FAMILY], &json!({"timeout_ms": 300}));
    let begun = Instant::now();
    let mut shim = folder.start();
    let pids = folder.pids(3);
    assert_eq!(shim.wait().unwrap().code(), Some(0));
    assert_eq!(outcome(&folder.exit()), "timed_out null 9");
    assert!(begun.elapsed() >= Duration::from_millis(400), "the grace was not kept");
    assert_eq!(pids.iter().filter(|&&pid| is_running(pid)).count(), 0);
}

#[test]
fn a_stop_ends_a_family_that_ignores_the_signal() {
    let folder = Folder::sh(FAMILY);
    let mut shim = folder.start();
    let pids = folder.pids(3);
    signal(shim.id(), Signal::TERM);
    assert_eq!(shim.wait().unwrap().code(), Some(0));
    assert_eq!(outcome(&folder.exit()), "stopped null 9");
    assert_eq!(pids.iter().filter(|&&pid| is_running(pid)).count(), 0);
}

#[test]
fn a_stop_is_polite_first_and_leaves_time_to_clean_up() {
    let script = r#"trap 'echo bye; exit 7' TERM; sleep 60 & echo ready; wait"#;
    let folder = Folder::with(&["sh", "-c", script], &json!({"kill_grace_ms": 20_000}));
    let mut shim = folder.start();
    until("the job is ready", || fs::read(folder.path("output")).is_ok_and(|output| output == b"ready\n"));
    signal(shim.id(), Signal::TERM);
    assert_eq!(shim.wait().unwrap().code(), Some(0));
    assert_eq!((outcome(&folder.exit()).as_str(), folder.output().as_slice()), ("stopped 7 null", &b"ready\nbye\n"[..]));
}

#[test]
fn a_job_is_over_when_its_command_is_and_takes_its_background_with_it() {
    let folder = Folder::sh("sleep 60 & echo $!; setsid sleep 60 & echo $!; exit 5");
    let begun = Instant::now();
    assert_eq!(outcome(&folder.run()), "exited 5 null");
    assert!(begun.elapsed() < Duration::from_secs(10));
    assert_eq!(folder.pids(2).into_iter().filter(|&pid| is_running(pid)).count(), 0);
}

#[test]
fn children_that_end_before_the_job_are_not_kept_as_zombies() {
    let folder = Folder::sh("sh -c 'sleep 0.05 & echo $!'; sh -c 'sleep 0.05 & echo $!'; sleep 60");
    let mut shim = folder.start();
    let pids = folder.pids(2);
    until("orphans are waited for", || pids.iter().all(|pid| !Path::new(&format!("/proc/{pid}")).exists()));
    signal(shim.id(), Signal::TERM);
    shim.wait().unwrap();
}

#[test]
fn what_cannot_be_started_says_why() {
    let script = tempfile::tempdir().unwrap();
    let path = |name: &str, text: &str, mode: u32| {
        let path = script.path().join(name);
        fs::write(&path, text).unwrap();
        fs::set_permissions(&path, fs::Permissions::from_mode(mode)).unwrap();
        path.display().to_string()
    };
    for (program, expected) in [
        ("no-such-program".to_owned(), "program not found: no-such-program"),
        ("/no/such/program".to_owned(), "program not found: /no/such/program"),
        ("./relative".to_owned(), "program not found: ./relative"),
        (path("plain", "x", 0o600), "program is not executable"),
        (path("odd", "#!/no/interpreter\n", 0o700), "interpreter"),
    ] {
        let exit = Folder::new(&[&program]).run();
        assert_eq!(exit["cause"], "start_failed");
        assert!(exit["message"].as_str().unwrap().contains(expected), "{exit}");
    }
    assert_eq!(Folder::new(&[]).run()["message"], "the job has no command");
}

#[test]
fn an_unusable_folder_is_left_alone() {
    let mut command = Command::new(SHIM);
    let complaint = |command: &mut Command| command.stderr(Stdio::piped()).output().unwrap();
    let output = complaint(command.arg("shim"));
    assert_eq!(output.status.code(), Some(64));
    let folder = Folder::new(&["true"]);
    let journal = "{\"version\": 99}\n";
    fs::write(folder.path("journal"), journal).unwrap();
    let output = complaint(Command::new(SHIM).arg("shim").arg(folder.0.path()).process_group(0));
    assert_eq!(output.status.code(), Some(92));
    assert!(String::from_utf8_lossy(&output.stderr).contains("run folder"), "{output:?}");
    assert_eq!(fs::read_to_string(folder.path("journal")).unwrap(), journal);
}

#[test]
fn a_hundred_at_once() {
    let folders: Vec<_> = (0..100).map(|number| Folder::sh(&format!("echo {number}; exit {number}"))).collect();
    let shims: Vec<_> = folders.iter().map(Folder::start).collect();
    for (number, (folder, mut shim)) in folders.iter().zip(shims).enumerate() {
        assert_eq!(shim.wait().unwrap().code(), Some(0));
        assert_eq!(outcome(&folder.exit()), format!("exited {number} null"));
        assert_eq!(folder.output(), format!("{number}\n").as_bytes());
    }
}
