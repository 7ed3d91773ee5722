//! What the program does without a controller, as whole processes: usage, configuration, files, exit codes.

#![expect(clippy::unwrap_used, reason = "a helper that cannot do its work fails the test that called it")]

use std::fs;
use std::io::{Read as _, Write as _};
use std::net::TcpListener;
use std::os::unix::fs::PermissionsExt as _;
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use assert_cmd::assert::OutputAssertExt as _;
use tempfile::TempDir;

/// The program in an empty folder, with an empty home and no variable of ours.
fn octavius(folder: &Path) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_octavius"));
    command.env_clear().env("HOME", folder.join("home")).env("PATH", "/usr/bin:/bin").current_dir(folder).stdin(Stdio::null());
    command
}

fn folder() -> TempDir {
    let folder = tempfile::tempdir().unwrap();
    fs::create_dir(folder.path().join("home")).unwrap();
    folder
}

/// What a run printed and how it ended.
struct Ran {
    code: i32,
    stdout: String,
    stderr: String,
}

fn run(folder: &Path, arguments: &[&str]) -> Ran {
    ran(octavius(folder).args(arguments))
}

fn ran(command: &mut Command) -> Ran {
    let output = command.output().unwrap();
    let text = |bytes: Vec<u8>| String::from_utf8(bytes).unwrap();
    Ran { code: output.status.code().unwrap(), stdout: text(output.stdout), stderr: text(output.stderr) }
}

fn ran_with(folder: &Path, arguments: &[&str], name: &str, value: &str) -> Ran {
    ran(octavius(folder).args(arguments).env(name, value))
}

/// An address at which nothing listens.
fn closed_port() -> String {
    TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().to_string()
}

fn write(path: &Path, text: &str, mode: u32) {
    fs::create_dir_all(path.parent().unwrap()).unwrap();
    fs::write(path, text).unwrap();
    fs::set_permissions(path, fs::Permissions::from_mode(mode)).unwrap();
}

#[test]
fn alone_it_prints_its_help() {
    let folder = folder();
    let ran = run(folder.path(), &[]);
    assert_eq!((ran.code, ran.stderr.as_str()), (0, ""));
    for group in ["For the catalogue:", "For people who run jobs:", "For operators:", "Connections:"] {
        assert!(ran.stdout.contains(group), "{group} in {}", ran.stdout);
    }
}

#[test]
fn usage_errors_end_with_2_and_suggest() {
    let folder = folder();
    for (arguments, expected) in [
        (&["lst"][..], "'list'"),
        (&["list", "--outptu", "json"], "'--output'"),
        (&["list", "-o", "xml"], "possible values: table, wide, name, json, yaml"),
        (&["tokens", "create", "--expires", "soon"], "is not a duration"),
        (&["executions", "--state", "runing"], "did you mean `running`?"),
        (&["execute"], "no job is named"),
        (&["status"], "no execution is named"),
        (&["cancel"], "no execution is named"),
        (&["execute", "a", "--arg", "b"], "is not NAME=VALUE"),
        (&["cancel", "abcd", "--state", "queued"], "do not go together"),
        (&["describe", "a", "--job-name", "b"], "two different things"),
        (&["status", "abcd", "--job-id", "efgh"], "two different things"),
        (&["execute", "a", "--wait-timeout", "1s"], "--wait-timeout without --wait"),
        (&["status", "abcd", "--wait-timeout", "1s"], "--wait-timeout without --wait"),
        (&["execute", "a", "--follow", "-o", "json"], "--follow prints the log"),
    ] {
        let ran = run(folder.path(), arguments);
        assert_eq!((ran.code, ran.stdout.as_str()), (2, ""), "{arguments:?}: {}", ran.stderr);
        assert!(ran.stderr.contains(expected), "{arguments:?}: {}", ran.stderr);
        assert!(ran.stderr.starts_with("error: "), "{}", ran.stderr);
    }
}

#[test]
fn a_first_admins_token_is_made_without_a_controller() {
    let folder = folder();
    let tokens = [(); 2].map(|()| {
        let ran = run(folder.path(), &["tokens", "generate"]);
        assert_eq!(ran.code, 0, "{}", ran.stderr);
        assert!(ran.stderr.contains("--bootstrap-token-file"), "{}", ran.stderr);
        ran.stdout.trim().parse::<octavius_core::token::Token>().unwrap()
    });
    assert_eq!(tokens[0].kind(), octavius_core::token::TokenKind::User);
    assert!(tokens[0] != tokens[1]);
}

#[test]
fn without_configuration_it_says_what_to_set() {
    let folder = folder();
    for command in
        [&["list"][..], &["describe", "a"], &["execute", "a"], &["executions"], &["status", "a"], &["getlogs", "a"], &["whoami"]]
    {
        let ran = run(folder.path(), command);
        assert_eq!((ran.code, ran.stdout.as_str()), (2, ""), "{command:?}");
        assert!(
            ran.stderr.contains("no controller is configured") && ran.stderr.contains("hint: octavius config --cp-host"),
            "{}",
            ran.stderr
        );
    }
}

#[test]
fn a_controller_that_is_not_there_is_told_within_the_timeout() {
    let folder = folder();
    let address = closed_port();
    let begun = Instant::now();
    let ran = run(folder.path(), &["list", "--cp-host", &address, "--time-out", "2"]);
    assert_eq!((ran.code, ran.stdout.as_str()), (4, ""), "{}", ran.stderr);
    assert!(ran.stderr.contains(&address) && ran.stderr.contains("connection refused"), "{}", ran.stderr);
    assert!(begun.elapsed() < Duration::from_secs(3));
}

#[test]
fn a_controller_that_does_not_answer_is_told_within_the_timeout() {
    let folder = folder();
    let silent = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = silent.local_addr().unwrap().to_string();
    let begun = Instant::now();
    let ran = run(folder.path(), &["executions", "--cp-host", &address, "--time-out", "1"]);
    assert_eq!(ran.code, 4, "{}", ran.stderr);
    assert!(ran.stderr.contains(&address) && ran.stderr.contains("did not answer within 1s"), "{}", ran.stderr);
    assert!(begun.elapsed() < Duration::from_secs(3), "{:?}", begun.elapsed());
}

/// A server of web pages says so in its first words, and no later try makes it a controller.
#[test]
fn a_port_that_is_no_controllers_is_told_at_once() {
    let folder = folder();
    let server = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = server.local_addr().unwrap().to_string();
    std::thread::spawn(move || {
        let answer = b"HTTP/1.1 400 Bad Request\r\nContent-Length: 0\r\nConnection: close\r\n\r\n";
        let mut taken = Vec::new(); // a connection that is closed with unread bytes may lose the answer
        for mut stream in server.incoming().flatten() {
            let _ = stream.write_all(answer);
            taken.push(stream);
        }
    });
    let begun = Instant::now();
    let ran = run(folder.path(), &["list", "--cp-host", &address, "--time-out", "30"]);
    assert_eq!((ran.code, ran.stdout.as_str()), (4, ""), "{}", ran.stderr);
    assert!(ran.stderr.contains(&format!("no controller answers at {address}: ")), "{}", ran.stderr);
    assert!(ran.stderr.contains("hint: is this the port of a controller?"), "{}", ran.stderr);
    assert!(begun.elapsed() < Duration::from_secs(10), "{:?}", begun.elapsed());
}

#[test]
fn several_addresses_are_each_named_once() {
    let folder = folder();
    let silent = TcpListener::bind("127.0.0.1:0").unwrap();
    let (silent, closed) = (silent.local_addr().map(|address| (silent, address.to_string())).unwrap(), closed_port());
    let hosts = format!("{},{closed}", silent.1);
    let ran = run(folder.path(), &["executions", "--cp-host", &hosts, "--time-out", "1"]);
    let told = ran.stderr.lines().find(|line| line.starts_with("error: ")).unwrap();
    assert!(ran.code == 4 && told.contains(&format!("{}: did not answer within ", silent.1)), "{}", ran.stderr);
    assert!([&silent.1, &closed].iter().all(|address| told.matches(address.as_str()).count() == 1), "{told}");
}

/// Nothing listens at the address: that it is not even tried shows that the file was looked at first.
#[test]
fn a_backup_replaces_nothing_but_a_regular_file() {
    let folder = folder();
    let path = |name: &str| folder.path().join(name);
    fs::create_dir(path("folder")).unwrap();
    std::os::unix::fs::symlink("nowhere", path("dangling")).unwrap();
    rustix::fs::mknodat(rustix::fs::CWD, path("pipe"), rustix::fs::FileType::Fifo, rustix::fs::Mode::RUSR, 0).unwrap();
    let address = closed_port();
    for (name, expected) in [
        ("folder", "folder is a folder"),
        ("dangling", "is a link that leads nowhere"),
        ("pipe", "is not a regular file"),
        ("/dev/null", "is not a regular file"),
        ("none/file", "its folder is not there"),
    ] {
        let ran = run(folder.path(), &["backup", name, "--cp-host", &address]);
        assert!(ran.code == 2 && ran.stderr.contains(expected), "{name}: {}", ran.stderr);
        assert!(ran.stderr.contains("`-` writes to standard output"), "{}", ran.stderr);
    }
    // a file, and a link to one, may be written
    fs::write(path("file"), "before").unwrap();
    std::os::unix::fs::symlink("file", path("link")).unwrap();
    for name in ["file", "link", "new"] {
        assert_eq!(run(folder.path(), &["backup", name, "--cp-host", &address]).code, 4, "{name}");
    }
    assert!(fs::read_to_string(path("file")).unwrap() == "before" && !path("new").exists());
}

#[test]
fn log_levels_and_retention_that_cannot_be_are_refused() {
    let folder = folder();
    let start = ["controller", "start", "--store", "embedded:data", "--listen", "127.0.0.1:0"];
    for (name, value, expected) in [
        ("LOG_LEVEL", "inof", "\"inof\" is not a log level"),
        ("OCTAVIUS_LOG_LEVEL", "octavius=debug", "filters go into OCTAVIUS_LOG"),
        ("OCTAVIUS_LOG", "a=b=c", "OCTAVIUS_LOG is \"a=b=c\", not a filter"),
        ("OCTAVIUS_RETENTION_AGE", "0s", "OCTAVIUS_RETENTION_AGE is under 1h"),
        ("OCTAVIUS_RETENTION_AGE", "59m", "OCTAVIUS_RETENTION_AGE is under 1h"),
        ("OCTAVIUS_RETENTION_EXECUTIONS", "0", "OCTAVIUS_RETENTION_EXECUTIONS is 0"),
        ("OCTAVIUS_RETENTION_AUDIT", "1m", "OCTAVIUS_RETENTION_AUDIT is under 1h"),
    ] {
        let ran = ran_with(folder.path(), &start, name, value);
        assert!(ran.code == 2 && ran.stderr.contains(expected), "{name}={value}: {}", ran.stderr);
    }
    assert!(!folder.path().join("data").exists());
    let ran = ran_with(folder.path(), &start, "OCTAVIUS_AUDIT_EXPORT", "/dev/null/trail");
    assert!(ran.code == 2 && ran.stderr.contains("cannot write the audit trail to /dev/null/trail"), "{}", ran.stderr);
    let help = run(folder.path(), &["controller", "start", "--help"]).stdout;
    assert!(help.contains("1h or more") && help.contains("audit_export"), "{help}");
}

#[test]
fn an_execution_of_which_no_answer_came_can_be_repeated_safely() {
    let folder = folder();
    let silent = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = silent.local_addr().unwrap().to_string();
    let ran = run(folder.path(), &["execute", "refund", "--arg", "pin=secret", "--cp-host", &address, "--time-out", "1"]);
    assert_eq!((ran.code, ran.stdout.as_str()), (4, ""), "{}", ran.stderr);
    assert!(ran.stderr.contains("run the same command again with --idempotency-key 0"), "{}", ran.stderr);
    assert!(!ran.stderr.contains("secret"), "{}", ran.stderr);
    let ran = run(folder.path(), &["execute", "refund", "--cp-host", &closed_port(), "--time-out", "1"]);
    assert_eq!(ran.code, 4, "{}", ran.stderr);
    assert!(ran.stderr.contains("nothing was sent"), "{}", ran.stderr);
}

#[test]
fn several_are_not_cancelled_by_habit() {
    let folder = folder();
    let ran = run(folder.path(), &["cancel", "--job-name", "a", "--cp-host", "h:1"]);
    assert_eq!(ran.code, 3, "{}", ran.stderr);
    assert!(ran.stderr.contains("pass --yes"), "{}", ran.stderr);
    for selector in ["OCTAVIUS_STATE", "OCTAVIUS_JOB_NAME", "OCTAVIUS_ALL"] {
        let ran = ran_with(folder.path(), &["cancel", "--cp-host", "h:1", "--yes"], selector, "running");
        assert_eq!(ran.code, 2, "{}", ran.stderr);
        assert!(ran.stderr.contains("no execution is named"), "{}", ran.stderr);
    }
}

#[test]
fn addresses_that_are_none_are_usage_errors() {
    let folder = folder();
    let ran = run(folder.path(), &["list", "--cp-host", "localhost"]);
    assert_eq!(ran.code, 2);
    assert!(ran.stderr.contains("\"localhost\" is not the address of a controller: write HOST:PORT"), "{}", ran.stderr);
}

#[test]
fn version_does_not_fail_without_a_controller() {
    let folder = folder();
    let ran = run(folder.path(), &["version"]);
    assert_eq!(ran.code, 0);
    assert_eq!(ran.stdout, format!("client      {}\n", env!("CARGO_PKG_VERSION")));
    let ran = run(folder.path(), &["version", "-o", "json", "--cp-host", &closed_port()]);
    assert_eq!(ran.code, 0);
    let value: serde_json::Value = serde_json::from_str(&ran.stdout).unwrap();
    assert_eq!((&value["format_version"], &value["controller"]), (&1.into(), &serde_json::Value::Null));
}

#[test]
fn a_closed_pipe_is_quiet() {
    let folder = folder();
    let mut child =
        octavius(folder.path()).args(["completion", "bash"]).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
    drop(child.stdout.take()); // as `| true` does
    let mut stderr = String::new();
    child.stderr.take().unwrap().read_to_string(&mut stderr).unwrap();
    assert_eq!((child.wait().unwrap().code(), stderr.as_str()), (Some(0), ""));
}

#[test]
fn a_closed_pipe_does_not_turn_no_into_yes() {
    let folder = folder();
    write(&folder.path().join("catalog/octavius.yaml"), "catalog: support\n", 0o644);
    write(&folder.path().join("catalog/a.yaml"), "name: a\ncomand: [a]\n", 0o644);
    let (reader, writer) = std::io::pipe().unwrap();
    drop(reader); // as `| true` does
    let output = octavius(folder.path()).arg("validate").stdout(writer).stderr(Stdio::piped()).output().unwrap();
    assert_eq!((output.status.code(), output.stderr.as_slice()), (Some(1), &b""[..]));
}

#[test]
fn completions_are_made_for_shells() {
    let folder = folder();
    for shell in ["bash", "zsh", "fish", "elvish", "powershell"] {
        let ran = run(folder.path(), &["completion", shell]);
        assert_eq!(ran.code, 0);
        // the first three ask when they are needed; the others were told all of it
        let asked = run(folder.path(), &["__complete", shell, "getl"]).stdout;
        let known = if asked.is_empty() { ran.stdout.contains("getlogs") } else { asked.starts_with("getlogs") };
        assert!(known, "{shell}: {asked}");
        assert_eq!(ran.stdout.contains("__complete"), !asked.is_empty(), "{shell}");
    }
}

#[test]
fn schemas_are_json() {
    let folder = folder();
    for (of, title) in [("job", "Octavius job"), ("catalog", "Octavius catalogue")] {
        let ran = run(folder.path(), &["schema", of]);
        let value: serde_json::Value = serde_json::from_str(&ran.stdout).unwrap();
        assert_eq!((ran.code, &value["title"]), (0, &title.into()));
    }
}

#[test]
fn config_writes_what_the_first_octavius_wrote_and_masks_the_token() {
    let folder = folder();
    let token_file = folder.path().join("token");
    write(&token_file, "octu_secret\n", 0o600);
    let written = run(
        folder.path(),
        &["config", "--cp-host", "a:1,b:2", "--email-id", "ann@example.com", "--token-file", "token", "--time-out", "5"],
    );
    assert_eq!(written.code, 0, "{}", written.stderr);
    let path = folder.path().join("home/.octavius/octavius_client.yaml");
    assert_eq!(fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o600);
    assert_eq!(
        fs::read_to_string(&path).unwrap(),
        "CP_HOST: a:1,b:2\nEMAIL_ID: ann@example.com\nACCESS_TOKEN: octu_secret\nCONNECTION_TIMEOUT_SECS: 5\n"
    );
    let shown = run(folder.path(), &["config", "view"]);
    assert!(shown.stdout.contains("ACCESS_TOKEN: octu_********") && !shown.stdout.contains("secret"), "{}", shown.stdout);
    let shown = run(folder.path(), &["config", "view", "-o", "json"]);
    assert!(!shown.stdout.contains("secret"));
    // one key alone leaves the others
    assert_eq!(run(folder.path(), &["config", "--time-out", "7"]).code, 0);
    assert!(fs::read_to_string(&path).unwrap().contains("octu_secret"));
    // another host does not get the token of the one before
    let other = run(folder.path(), &["config", "--cp-host", "evil:1"]);
    assert!(other.stderr.contains("warning: the token"), "{}", other.stderr);
    assert!(!fs::read_to_string(&path).unwrap().contains("octu_secret"));
}

#[test]
fn a_token_as_a_flag_works_and_warns() {
    let folder = folder();
    let ran = run(folder.path(), &["config", "--cp-host", "a:1", "--token", "octu_secret"]);
    assert_eq!(ran.code, 0);
    assert!(ran.stderr.contains("warning: others on this machine can read `--token`"), "{}", ran.stderr);
}

#[test]
fn contexts_are_chosen_and_near_misses_suggested() {
    let folder = folder();
    for (name, host) in [("prod", "a:1"), ("stage", "b:2")] {
        assert_eq!(run(folder.path(), &["config", "--context", name, "--cp-host", host]).code, 0);
    }
    assert_eq!(run(folder.path(), &["config", "contexts"]).stdout, "* prod\n  stage\n");
    assert_eq!(run(folder.path(), &["config", "use", "stage"]).code, 0);
    assert_eq!(run(folder.path(), &["config", "contexts"]).stdout, "  prod\n* stage\n");
    // what stands at the top is called `default`
    assert_eq!(run(folder.path(), &["config", "--cp-host", "c:3"]).code, 0);
    assert_eq!(run(folder.path(), &["config", "use", "default"]).code, 0);
    assert_eq!(run(folder.path(), &["config", "contexts"]).stdout, "* default\n  prod\n  stage\n");
    let ran = run(folder.path(), &["list", "--context", "pord"]);
    assert_eq!(ran.code, 2);
    assert!(ran.stderr.contains("did you mean `prod`?"), "{}", ran.stderr);
}

#[test]
fn a_first_context_beside_a_controller_is_not_switched_to() {
    let folder = folder();
    assert_eq!(run(folder.path(), &["config", "--cp-host", "a:1"]).code, 0);
    let ran = run(folder.path(), &["config", "--context", "prod", "--cp-host", "b:2"]);
    assert!(ran.stderr.contains("context default is in use") && ran.stderr.contains("config use prod"), "{}", ran.stderr);
    assert_eq!(run(folder.path(), &["config", "contexts"]).stdout, "* default\n  prod\n");
}

#[test]
fn a_form_in_the_environment_that_a_command_does_not_have_is_ignored() {
    let folder = folder();
    for form in ["wide", "nonsense"] {
        let ran = ran_with(folder.path(), &["version"], "OCTAVIUS_OUTPUT", form);
        assert_eq!((ran.code, ran.stdout.starts_with("client ")), (0, true), "{}", ran.stderr);
    }
    assert!(ran_with(folder.path(), &["version"], "OCTAVIUS_OUTPUT", "json").stdout.starts_with('{'));
    let ran = run(folder.path(), &["create", "--job-path", "none.yaml"]);
    assert!(ran.code == 2 && ran.stderr.contains("no file at none.yaml"), "{}", ran.stderr);
}

#[test]
fn a_file_with_a_token_that_others_can_read_is_refused() {
    let folder = folder();
    let path = folder.path().join("home/.octavius/octavius_client.yaml");
    write(&path, "CP_HOST: a:1\nACCESS_TOKEN: octu_secret\n", 0o644);
    let ran = run(folder.path(), &["list"]);
    assert_eq!(ran.code, 2);
    assert!(ran.stderr.contains("can be read by others (mode 644)") && ran.stderr.contains("hint: chmod 600 "), "{}", ran.stderr);
    assert!(!ran.stderr.contains("secret"));
    // without a token there is nothing to hide
    write(&path, &format!("CP_HOST: {}\n", closed_port()), 0o644);
    assert_eq!(run(folder.path(), &["list"]).code, 4);
}

#[test]
fn mistakes_in_a_configuration_file_are_named_and_no_value_is_shown() {
    let folder = folder();
    let path = folder.path().join("client.yaml");
    for (text, expected) in [
        ("CP_HSOT: a:1\n", "unknown key `CP_HSOT`; did you mean `CP_HOST`?"),
        ("ACCESS_TOKEN: octu_secret\nCP_HOST: [\n", "not valid YAML"),
        ("CONNECTION_TIMEOUT_SECS: octu_secret\n", "`CONNECTION_TIMEOUT_SECS` is not a whole number of seconds"),
        ("octu_secret", "a map of keys is expected"),
        ("EMAIL_ID: a\n", "names no controller (CP_HOST)"),
    ] {
        write(&path, text, 0o600);
        let ran = run(folder.path(), &["list", "--config", "client.yaml"]);
        assert_eq!(ran.code, 2, "{}", ran.stderr);
        assert!(ran.stderr.contains(expected) && !ran.stderr.contains("secret"), "{}", ran.stderr);
    }
    let ran = run(folder.path(), &["list", "--config", "none.yaml"]);
    assert!(ran.code == 2 && ran.stderr.contains("no configuration file at none.yaml"), "{}", ran.stderr);
}

#[test]
fn flag_goes_before_environment_before_file() {
    let folder = folder();
    let (in_file, in_env, in_flag) = ("127.0.0.1:1", "127.0.0.1:2", "127.0.0.1:3");
    write(&folder.path().join("home/.octavius/octavius_client.yaml"), &format!("CP_HOST: {in_file}\n"), 0o600);
    let tried = |command: &mut Command| ran(command).stderr;
    assert!(tried(octavius(folder.path()).arg("list")).contains(in_file));
    assert!(tried(octavius(folder.path()).arg("list").env("CP_HOST", in_env)).contains(in_env));
    assert!(tried(octavius(folder.path()).arg("list").env("CP_HOST", in_file).env("OCTAVIUS_CP_HOST", in_env)).contains(in_env));
    assert!(
        tried(octavius(folder.path()).args(["list", "--cp-host", in_flag]).env("OCTAVIUS_CP_HOST", in_env)).contains(in_flag)
    );
    assert!(tried(octavius(folder.path()).args(["--cp-host", in_flag, "list"])).contains(in_flag));
}

#[test]
fn flags_can_come_from_the_environment() {
    let folder = folder();
    let address = closed_port();
    let ran = ran(octavius(folder.path())
        .arg("executors")
        .arg("list")
        .env("OCTAVIUS_OUTPUT", "json")
        .env("OCTAVIUS_CP_HOST", &address));
    assert_eq!(ran.code, 4, "{}", ran.stderr);
    let ran =
        self::ran(octavius(folder.path()).args(["execute", "a"]).env("OCTAVIUS_WAIT", "yes").env("OCTAVIUS_CP_HOST", &address));
    assert_eq!(ran.code, 4, "{}", ran.stderr);
    let ran = self::ran(octavius(folder.path()).args(["execute", "a"]).env("OCTAVIUS_WAIT", "perhaps"));
    assert!(ran.code == 2 && ran.stderr.contains("--wait"), "{}", ran.stderr);
}

#[test]
fn a_file_in_the_working_directory_gets_no_token_from_elsewhere() {
    let folder = folder();
    write(&folder.path().join("octavius_client.yaml"), &format!("CP_HOST: {}\n", closed_port()), 0o644);
    let ran = ran(octavius(folder.path()).arg("list").env("ACCESS_TOKEN", "octu_secret"));
    assert!(ran.stderr.contains("warning: the token of ACCESS_TOKEN is not sent"), "{}", ran.stderr);
}

#[test]
fn validate_tells_what_is_wrong_where() {
    let folder = folder();
    let catalog = folder.path().join("catalog");
    write(&catalog.join("octavius.yaml"), "catalog: support\n", 0o644);
    write(&catalog.join("hello.yaml"), "name: hello\ndescription: says hello\ncommand: [echo, hello]\n", 0o644);
    octavius(folder.path()).arg("validate").assert().code(0).stderr("");
    write(
        &catalog.join("sync.yaml"),
        "name: sync\ncommand: [sync]\nenv_vars:\n  args:\n  - name: limit\n    type: integer\n    default: many\n",
        0o644,
    );
    let found = run(folder.path(), &["validate"]);
    assert_eq!(found.code, 1);
    assert!(found.stdout.contains("catalog/sync.yaml:7:14: error[default-type]"), "{}", found.stdout);
    let found = run(folder.path(), &["validate", "catalog", "-o", "json"]);
    let value: serde_json::Value = serde_json::from_str(&found.stdout).unwrap();
    assert_eq!((found.code, &value["valid"], &value["format_version"]), (1, &false.into(), &1.into()));
    assert_eq!(value["findings"][0]["line"], 7);
    let found = run(folder.path(), &["validate", "-o", "github"]);
    assert!(found.stdout.starts_with("::error file=catalog/sync.yaml,line=7,"), "{}", found.stdout);
    // findings stop a diff and an apply before any network
    for command in ["diff", "apply"] {
        let ran = run(folder.path(), &[command]);
        assert_eq!((ran.code, ran.stdout.as_str()), (2, ""));
        assert!(ran.stderr.contains("error[default-type]"), "{}", ran.stderr);
    }
}

#[test]
fn validate_of_nothing_ends_with_2() {
    let folder = folder();
    assert_eq!(run(folder.path(), &["validate"]).code, 2);
    fs::create_dir(folder.path().join("catalog")).unwrap();
    assert_eq!(run(folder.path(), &["validate"]).code, 2);
}

#[test]
fn a_seed_job_file_alone_is_valid() {
    let folder = folder();
    let text = r#"{"name":"hello","description":"d","image_name":"img:1","env_vars":{"secrets":[{"name":"S","description":"s"}],
        "args":[{"name":"data","description":"who","required":true}]},"authorized_groups":["g"],"author":"a","contributors":"b, c",
        "organization":"o"}"#;
    write(&folder.path().join("metadata.json"), text, 0o644);
    let ran = run(folder.path(), &["validate", "metadata.json"]);
    assert_eq!(ran.code, 0, "{}{}", ran.stdout, ran.stderr);
}

#[test]
fn daemons_say_what_they_need() {
    let folder = folder();
    for (arguments, expected) in [
        (&["controller", "start"][..], "no store is named"),
        (&["controller", "start", "--store", "etcd"], "no etcd is named"),
        (&["controller", "start", "--store", "etcd:localhost"], "--store etcd takes no address"),
        (&["controller", "start", "--store", "redis"], "is not known"),
        (&["executor", "start"], "the executor has no id"),
        (&["executor", "start", "--id", "a"], "no controller is named"),
        (&["executor", "start", "--id", "a", "--cp-host", "h:1", "--runner", "docker"], "runner \"docker\" is not known"),
        (&["executor", "start", "--id", "a", "--cp-host", "h:1", "--spool-limit", "1MiB"], "--spool-limit is under 16MiB"),
        (&["executor", "start", "--id", "a", "--cp-host", "h:1", "--spool-limit", "64mib"], "64MiB"),
        (&["executor", "start", "--id", "a", "--cp-host", "h:1", "--log-rate", "0"], "--log-rate is 0"),
        (&["executor", "check"], "the executor has no id"),
        (&["executor", "check", "--id", "a", "--runner", "kubernetes"], "the kubernetes runner cannot be used"),
        (&["dev", "--listen", "0.0.0.0:0"], "can be reached from other machines"),
    ] {
        let ran = run(folder.path(), arguments);
        assert_eq!((ran.code, ran.stdout.as_str()), (2, ""), "{arguments:?}: {}", ran.stderr);
        assert!(ran.stderr.contains(expected), "{arguments:?}: {}", ran.stderr);
    }
    let ran = run(folder.path(), &["executor", "start", "--id", "a", "--cp-host", "h:1"]);
    assert_eq!(ran.code, 8, "{}", ran.stderr);
}

#[test]
fn an_executor_is_checked_without_a_controller() {
    let folder = folder();
    let checked = run(folder.path(), &["executor", "check", "--id", "a", "--data-dir", "data", "-o", "json"]);
    let value: serde_json::Value = serde_json::from_str(&checked.stdout).unwrap();
    assert_eq!((checked.code, &value["runner"], &value["registered"]), (0, &"process".into(), &false.into()), "{value}");
    assert!(!folder.path().join("data").exists(), "a check leaves nothing behind");
    write(&folder.path().join("file"), "", 0o644);
    let checked = run(folder.path(), &["executor", "check", "--id", "a", "--data-dir", "file/data"]);
    assert!(checked.code == 1 && checked.stderr.contains("data folder file/data"), "{}{}", checked.stdout, checked.stderr);
    // a configuration for a cluster is for the kubernetes runner, and says so when it cannot be reached
    write(&folder.path().join("executor_config.json"), r#"{"id": "a", "kube_config": "out-of-cluster"}"#, 0o644);
    let checked = ran_with(folder.path(), &["executor", "check"], "KUBECONFIG", "nowhere");
    assert!(checked.code == 2 && checked.stderr.contains("the kubernetes runner cannot be used"), "{}", checked.stderr);
    let checked = ran_with(folder.path(), &["executor", "check"], "OCTAVIUS_JOB_MAY_SET", "namespace");
    assert!(checked.code == 2 && checked.stderr.contains("OCTAVIUS_JOB_MAY_SET has \"namespace\""), "{}", checked.stderr);
}

#[test]
fn seed_configuration_files_are_read_and_mistakes_named() {
    let folder = folder();
    let path = folder.path().join("controller_config.json");
    write(&path, r#"{"etcd_host": "localhost", "etcd_port": "2379", "app_prot": 3000}"#, 0o644);
    let ran = run(folder.path(), &["controller", "start"]);
    assert!(ran.code == 2 && ran.stderr.contains("unknown key `app_prot`; did you mean `app_port`?"), "{}", ran.stderr);
    write(&path, r#"{"etcd_host": "localhost", "executor_ping_deadline": "soon", "store": "embedded:data"}"#, 0o644);
    let ran = run(folder.path(), &["controller", "start"]);
    assert!(ran.code == 2 && ran.stderr.contains("`executor_ping_deadline` is not a whole number"), "{}", ran.stderr);
    let path = folder.path().join("executor_config.json");
    write(&path, r#"{"id": "e-1", "cp_host": "h:1", "access_token": "octr_secret", "job_retries": 0}"#, 0o644);
    let ran = run(folder.path(), &["executor", "start"]);
    assert!(
        ran.code == 2 && ran.stderr.contains("hint: chmod 600 executor_config.json") && !ran.stderr.contains("secret"),
        "{}",
        ran.stderr
    );
}
