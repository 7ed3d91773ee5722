//! Nothing leaks: after a day in the life of a system with every log at its loudest, no secret, no sensitive argument and no token stands in
//! anything that was printed, logged, stored, exported, backed up or left on a disk, nor ever in the list of processes.

use std::collections::BTreeSet;
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;

use aho_corasick::{AhoCorasick, AhoCorasickKind};
use anyhow::{Context as _, Result, ensure};
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use octavius_tests::{Client, Daemon, Etcd, Output, Special, World, eventually};

const CATALOG: &str = "catalog: leaks\n";

/// Prints everything that it was given, on both streams, and ends as it is told.
const PAY: &str = r#"
name: pay
command:
- sh
- -c
- |
  echo "pin=$pin note=$note key=$KEY cert=$CERT"
  printf '%s' "$pin"; printf '%s\n' "$KEY" >&2
  while [ -n "$gate" ] && ! [ -e "$gate" ]; do sleep 0.02; done
  exit "$code"
env_vars:
  args:
  - {name: pin, sensitive: true, required: true, pattern: "P[a-z0-9-]+"}
  - {name: note, sensitive: true}
  - {name: code, type: integer, default: 0}
  - {name: gate}
  secrets:
  - {name: KEY, from: {environment: PAYMENTS_TOKEN}}
  - {name: CERT, from: {file: OFFERED/cert}}
"#;

/// A job that wants a secret from somewhere.
fn wants(name: &str, from: &str) -> String {
    format!("name: {name}\ncommand: [sh, -c, 'echo \"$KEY\"']\nenv_vars: {{secrets: [{{name: KEY, from: {{{from}}}}}]}}\n")
}

/// What must be found nowhere, each with what it is.
struct Secrets(Vec<(String, String)>);

/// How much of the disk was searched, at least, so that a search of nothing is none.
const LEAST_SEARCHED: usize = 1 << 18;

impl Secrets {
    fn add(&mut self, what: &str, value: &str) -> String {
        self.0.push((what.to_owned(), value.to_owned()));
        value.to_owned()
    }

    /// What finds them, as they are or as programs write bytes, all at once: logs at their loudest are long.
    fn search(&self) -> Result<Search> {
        let forms: Vec<Vec<String>> = self.0.iter().map(|(_, value)| forms(value)).collect();
        let whose = forms.iter().zip(&self.0).flat_map(|(forms, (what, _))| vec![what.clone(); forms.len()]).collect();
        let searcher = AhoCorasick::builder().kind(Some(AhoCorasickKind::DFA)).build(forms.iter().flatten())?;
        Ok(Search { searcher, whose })
    }
}

/// A search for secrets.
struct Search {
    searcher: AhoCorasick,
    /// Whose form each pattern is.
    whose: Vec<String>,
}

impl Search {
    /// The secrets that stand in these bytes.
    fn in_bytes(&self, bytes: &[u8]) -> BTreeSet<&str> {
        self.searcher.find_iter(bytes).map(|found| self.whose[found.pattern().as_usize()].as_str()).collect()
    }
}

fn holds(bytes: &[u8], form: &[u8]) -> bool {
    memchr::memmem::find(bytes, form).is_some()
}

/// What a file holds, without the zeros that fill it up: etcd makes its files large before it writes them.
fn contents(path: &Path) -> Result<Vec<u8>> {
    let mut bytes = std::fs::read(path)?;
    let end = bytes.chunks(4096).rposition(|chunk| chunk.iter().any(|byte| *byte != 0)).map_or(0, |last| (last + 1) * 4096);
    bytes.truncate(end);
    Ok(bytes)
}

/// A text as it is, in hexadecimal digits, as a list of numbers, and in base64 wherever in a group of three it begins.
fn forms(text: &str) -> Vec<String> {
    let hex: String = text.bytes().map(|byte| format!("{byte:02x}")).collect();
    let numbers = text.bytes().map(|byte| byte.to_string()).collect::<Vec<_>>().join(", ");
    // What neighbours share a character with is left out.
    let base64 = (0..3).map(|shift| {
        let coded = STANDARD.encode([&vec![b'x'; shift], text.as_bytes()].concat());
        coded.trim_end_matches('=').chars().skip(4 * usize::from(shift > 0)).take(coded.len() - 8).collect::<String>()
    });
    [text.to_owned(), hex, numbers].into_iter().chain(base64).collect()
}

/// Everything that was said, by whom.
#[derive(Default)]
struct Heard(Vec<(String, String)>);

impl Heard {
    fn take(&mut self, by: &str, output: &Output) {
        self.0.push((by.to_owned(), format!("{}{}", output.stdout, output.stderr)));
    }

    /// Has somebody call the binary, and listens.
    fn run(&mut self, client: &Client<'_>, arguments: &[&str], code: i32) -> Result<Output> {
        let output = client.run(arguments)?;
        self.take(&arguments.join(" "), &output);
        output.expect(code).with_context(|| arguments.join(" "))
    }
}

/// Looks at the command lines of all processes, again and again.
struct Onlooker {
    stop: Arc<AtomicBool>,
    thread: JoinHandle<BTreeSet<String>>,
}

impl Onlooker {
    fn begin(secrets: Vec<String>) -> Self {
        let stop = Arc::new(AtomicBool::new(false));
        let stopped = Arc::clone(&stop);
        let thread = std::thread::spawn(move || {
            let mut seen = BTreeSet::new();
            while !stopped.load(Ordering::SeqCst) {
                for entry in std::fs::read_dir("/proc").into_iter().flatten().flatten() {
                    let Ok(line) = std::fs::read(entry.path().join("cmdline")) else { continue };
                    if secrets.iter().any(|secret| holds(&line, secret.as_bytes())) {
                        seen.insert(String::from_utf8_lossy(&line).replace('\0', " "));
                    }
                }
                std::thread::sleep(std::time::Duration::from_millis(3));
            }
            seen
        });
        Self { stop, thread }
    }

    fn end(self) -> BTreeSet<String> {
        self.stop.store(true, Ordering::SeqCst);
        self.thread.join().unwrap()
    }
}

/// Every file below a folder.
fn files(folder: &Path, found: &mut Vec<PathBuf>) -> Result<()> {
    for entry in std::fs::read_dir(folder)? {
        let path = entry?.path();
        if path.is_dir() {
            files(&path, found)?;
        } else if path.is_file() {
            found.push(path);
        }
    }
    Ok(())
}

/// A text that is nowhere else.
fn unique() -> String {
    octavius_core::ExecutionId::generate().to_string()
}

fn private(path: &Path) -> Result<()> {
    Ok(std::fs::set_permissions(path, std::fs::Permissions::from_mode(0o600))?)
}

/// What is kept secret in one world, and who lives there.
struct Day<'w> {
    world: &'w World,
    secrets: Secrets,
    heard: Heard,
    pin: String,
    /// Files that hold a secret because that is what they are for; each must be its owner's alone.
    meant: Vec<PathBuf>,
}

impl<'w> Day<'w> {
    fn new(world: &'w World) -> Result<Self> {
        let mut secrets = Secrets(Vec::new());
        let pin = secrets.add("the sensitive argument", &format!("P{}", unique()));
        let large = secrets.add("the large sensitive argument", &format!("N{}", unique()));
        let wrong = secrets.add("the sensitive argument that does not fit", &format!("W{}", unique()));
        let named = ["the secret in the environment", "the secret that is not offered"];
        for what in named {
            secrets.add(what, &format!("E{}", unique()));
        }
        let cert = secrets.add("the secret in a file", &format!("F{}", unique()));
        let hidden = secrets.add("the file that is not offered", &format!("H{}", unique()));
        let large = format!("{large}{}", "x".repeat(9000));
        let mut meant = Vec::new();
        let gate = world.path("gate").display().to_string();
        for (name, text) in [
            ("offered/cert", cert),
            ("private/cert", hidden),
            ("args/good", format!("pin: {pin}\nnote: {large}\n")),
            ("args/failing", format!("pin: {pin}\nnote: {pin}\ncode: 3\n")),
            ("args/long", format!("pin: {pin}\ngate: {gate}\n")),
            ("args/wrong", format!("pin: {wrong}\npinn: {wrong}\n")),
            ("args/broken", format!("- pin: {wrong}\n- {wrong}: [{wrong}\n")),
            ("args/nested", format!("pin: {{deep: {wrong}}}\nnote: [{wrong}]\n")),
        ] {
            let path = world.write(name, &text)?;
            private(&path)?;
            meant.push(path);
        }
        world.write("catalog/octavius.yaml", CATALOG)?;
        world.write("catalog/pay.yaml", &PAY.replace("OFFERED", &world.path("offered").display().to_string()))?;
        let hidden = world.path("private/cert").display().to_string();
        for (name, from) in [
            ("missing", "environment: PAYMENTS_NONE".to_owned()),
            ("unoffered", "environment: PRIVATE_TOKEN".to_owned()),
            ("unoffered-file", format!("file: {hidden}")),
            ("own", "environment: OCTAVIUS_TOKEN".to_owned()),
        ] {
            world.write(&format!("catalog/{name}.yaml"), &wants(name, &from))?;
        }
        Ok(Self { world, secrets, heard: Heard::default(), pin, meant })
    }

    fn path(&self, name: &str) -> String {
        self.world.path(name).display().to_string()
    }

    fn value(&self, what: &str) -> &str {
        let found = self.secrets.0.iter().find(|(of, _)| of == what);
        found.map_or("", |(_, value)| value)
    }

    /// An executor whose log is a file, with what it is to keep secret.
    fn executor(&mut self, port: u16, registration: &str) -> Result<Daemon> {
        let config = serde_json::json!({
            "id": "e1", "cp_host": format!("127.0.0.1:{port}"), "access_token": registration, "runner": "process", "capacity": 4,
            "log_file_path": self.path("executor.log"), "data_dir": self.path("e1"),
            "secrets": {"environment": ["PAYMENTS_*"], "files": [format!("{}/", self.path("offered"))]},
        });
        let path = self.world.write("executor.json", &config.to_string())?;
        private(&path)?;
        self.meant.extend([path.clone(), self.world.path("e1/credential.json")]);
        let (key, hidden) = (self.value("the secret in the environment"), self.value("the secret that is not offered"));
        let variables = [("PAYMENTS_TOKEN", key), ("PRIVATE_TOKEN", hidden)];
        self.world.daemon_with(["executor", "start", "--config", &path.display().to_string()], &variables)
    }

    /// A token that is made for somebody; that it is printed this once is what it is for.
    fn token(&mut self, admin: &Client<'_>, what: &str, arguments: &[&str]) -> Result<String> {
        let all: Vec<&str> = ["tokens", "create", "-o", "json"].iter().chain(arguments).copied().collect();
        let made = admin.run(&all)?.expect(0)?.json()?;
        Ok(self.secrets.add(what, made["token"].as_str().context("no token")?))
    }

    fn execute(&mut self, client: &Client<'_>, job: &str, arguments: &[&str], code: i32) -> Result<String> {
        let all: Vec<&str> = ["execute", job].iter().chain(arguments).copied().collect();
        Ok(self.heard.run(client, &all, code)?.stdout.lines().next().unwrap_or_default().to_owned())
    }

    fn ends(&mut self, client: &Client<'_>, id: &str, state: &str) -> Result<serde_json::Value> {
        self.heard.run(client, &["status", id, "--wait"], if state == "succeeded" { 0 } else { 1 })?;
        let status = self.heard.run(client, &["status", id, "-o", "json"], 0)?.json()?;
        ensure!(status["state"] == state, "{status}");
        Ok(status)
    }

    /// Looks through everything that was said and everything that is on the disk.
    fn search(&self, folders: &[&Path]) -> Result<()> {
        let search = self.secrets.search()?;
        let mut leaks = Vec::new();
        for (by, text) in &self.heard.0 {
            let found = search.in_bytes(text.as_bytes());
            leaks.extend(found.iter().map(|what| format!("{what}: said by `{by}`")));
        }
        let (mut all, mut searched) = (Vec::new(), 0);
        for folder in folders {
            files(folder, &mut all)?;
        }
        for path in all {
            if self.meant.contains(&path) {
                let mode = path.metadata()?.permissions().mode() & 0o777;
                ensure!(mode == 0o600, "{} holds a secret and can be read by others: {mode:o}", path.display());
                continue;
            }
            let bytes = contents(&path)?;
            searched += bytes.len();
            let found = search.in_bytes(&bytes);
            leaks.extend(found.iter().map(|what| format!("{what}: in {}", path.display())));
        }
        ensure!(searched >= LEAST_SEARCHED, "only {searched} bytes were searched");
        ensure!(leaks.is_empty(), "{} leaks:\n{}", leaks.len(), leaks.join("\n"));
        Ok(())
    }
}

/// What an operator and a user do in a day, with much that goes wrong.
fn live(day: &mut Day<'_>) -> Result<()> {
    let world = day.world;
    let key = day.path("encryption.key");
    world.run(&["controller", "new-key", &key])?.expect(0)?;
    day.meant.push(world.path("encryption.key"));
    let (log, export) = (day.path("controller.log"), day.path("trail"));
    let variables = [
        ("OCTAVIUS_ENCRYPTION_KEY_FILE", key.as_str()),
        ("OCTAVIUS_LOG_FILE_PATH", log.as_str()),
        ("OCTAVIUS_AUDIT_EXPORT", export.as_str()),
    ];
    let special = Special { variables: &variables, ..Special::default() };
    let (controller, port) = world.controller_with("store", 0, &special)?;
    let admin = world.admin(port)?;
    let admin_token = std::fs::read_to_string(world.path("admin.token"))?;
    day.secrets.add("the admin's token", admin_token.trim());
    day.meant.extend([world.path("admin.token"), world.path("admin/octavius_client.yaml")]);
    let registration = day.token(&admin, "the registration token", &["--role", "executor", "--user", "e1"])?;
    let ann = day.token(&admin, "the user's token", &["--role", "user", "--user", "ann"])?;
    let gone = day.token(&admin, "the revoked token", &["--role", "user", "--user", "bob"])?;
    let onlooker = Onlooker::begin(day.secrets.0.iter().map(|(_, value)| value.clone()).collect());

    // The catalogue.
    let (catalog, plan) = (day.path("catalog"), day.path("plan.json"));
    for (arguments, code) in [
        (vec!["validate", &catalog], 0),
        (vec!["validate", &catalog, "-o", "json"], 0),
        (vec!["diff", &catalog, "-o", "markdown"], 1),
        (vec!["diff", &catalog, "--out", &plan], 1),
        (vec!["apply", &plan], 0),
        (vec!["diff", &catalog], 0),
        (vec!["history"], 0),
        (vec!["export", &day.path("exported")], 0),
        (vec!["list", "-o", "json"], 0),
        (vec!["describe", "pay"], 0),
        (vec!["describe", "pay", "-o", "json"], 0),
    ] {
        day.heard.run(&admin, &arguments, code)?;
    }
    let executor = day.executor(port, &registration)?;
    let credential: serde_json::Value = serde_json::from_slice(&std::fs::read(world.path("e1/credential.json"))?)?;
    day.secrets.add("the executor's token", credential["token"].as_str().context("no token")?);
    let user = world.client("ann", port, &ann)?;
    day.meant.push(world.path("ann/octavius_client.yaml"));

    // Runs that end well, badly, and not at all.
    let args = |name: &str| world.path("args").join(name).display().to_string();
    let good = day.execute(&user, "pay", &["--args-file", &args("good"), "--wait", "--idempotency-key", "monday"], 0)?;
    let same = day.execute(&user, "pay", &["--args-file", &args("good"), "--idempotency-key", "monday"], 0)?;
    ensure!(good == same, "{good} {same}");
    day.execute(&user, "pay", &["--args-file", &args("failing"), "--idempotency-key", "monday"], 3)?;
    day.execute(&user, "pay", &["--args-file", &args("failing"), "--follow"], 1)?;
    let again = day.heard.run(&user, &["rerun", &good, "--wait"], 0)?.stdout.trim().to_owned();
    for (name, code) in [("wrong", 2), ("broken", 2), ("nested", 2)] {
        day.execute(&user, "pay", &["--args-file", &args(name)], code)?;
    }
    for (job, reason) in [
        ("missing", "SECRET_MISSING"),
        ("unoffered", "SECRET_NOT_OFFERED"),
        ("unoffered-file", "SECRET_NOT_OFFERED"),
        ("own", "SECRET_NOT_OFFERED"),
    ] {
        let id = day.execute(&user, job, &[], 0)?;
        let status = day.ends(&user, &id, "failed")?;
        ensure!(status["reason"] == reason, "{status}");
    }
    let cancelled = day.execute(&user, "pay", &["--args-file", &args("long")], 0)?;
    eventually("it runs", || {
        ensure!(user.status(&cancelled)?["state"] == "running");
        Ok(())
    })?;
    day.heard.run(&user, &["cancel", &cancelled], 0)?;
    day.heard.run(&user, &["status", &cancelled, "--wait"], 5)?;
    // One that outlives its executor, which finds it again by what it left on the disk.
    let long = day.execute(&user, "pay", &["--args-file", &args("long")], 0)?;
    eventually("it prints", || {
        let log = user.run(&["getlogs", &long])?;
        ensure!(log.stdout.contains("pin="), "{}", log.stdout);
        Ok(())
    })?;
    let said = executor.said();
    executor.kill()?;
    day.heard.0.push(("the executor".to_owned(), said));
    let executor = day.executor(port, &registration)?;
    world.write("gate", "")?;
    day.ends(&user, &long, "succeeded")?;

    // What people read.
    for id in [&good, &again, &long, &cancelled] {
        let log = day.heard.run(&user, &["getlogs", id, "--raw", "--timestamps"], 0)?;
        ensure!(log.stdout.contains("pin=***"), "{}", log.stdout);
        day.heard.run(&admin, &["getlogs", id, "--tail", "5"], 0)?;
        day.heard.run(&admin, &["status", id], 0)?;
        day.heard.run(&admin, &["status", id, "-o", "yaml"], 0)?;
    }
    let backup = day.path("octavius.backup");
    for arguments in [
        vec!["executions", "--all", "-o", "json"],
        vec!["executions"],
        vec!["audit", "-o", "json"],
        vec!["audit", "-o", "wide"],
        vec!["tokens", "list", "-o", "json"],
        vec!["executors", "-o", "json"],
        vec!["executors", "describe", "e1"],
        vec!["whoami"],
        vec!["config", "view"],
        vec!["version"],
        vec!["backup", &backup],
        vec!["backup", "-"],
    ] {
        day.heard.run(&admin, &arguments, 0)?;
    }
    let check = world.run_with(
        &["executor", "check", "--config", &day.path("executor.json")],
        &[("PAYMENTS_TOKEN", day.value("the secret in the environment"))],
    )?;
    ensure!(check.stdout.contains("PAYMENTS_TOKEN"), "{}", check.stdout);
    day.heard.take("executor check", &check);

    // Those who may not.
    let listed = admin.run(&["tokens", "list", "-o", "json"])?.json()?;
    let bob = listed["tokens"].as_array().context("no tokens")?.iter().find(|token| token["user"] == "bob");
    day.heard.run(&admin, &["tokens", "revoke", bob.context("no bob")?["id"].as_str().context("no id")?], 0)?;
    let mut bent = ann.clone();
    bent.replace_range(20..21, if &ann[20..21] == "a" { "b" } else { "a" });
    let bent = day.secrets.add("a token with a slip", &bent);
    for (name, token) in [("bob", &gone), ("eve", &bent), ("mallory", &registration)] {
        let client = world.client(name, port, token)?;
        day.meant.push(world.path(name).join("octavius_client.yaml"));
        for arguments in [vec!["list"], vec!["execute", "pay", "--args-file", &args("good")], vec!["tokens", "revoke", token]] {
            let output = client.run(&arguments)?;
            // A token where its id is asked for is the caller's own doing, and in their own command.
            let by = if arguments[0] == "tokens" { "tokens revoke" } else { arguments[0] };
            ensure!(output.code != 0, "{by} by {name}");
            day.heard.take(&format!("{by} by {name}"), &output);
        }
    }
    day.heard.run(&user, &["tokens", "list"], 3)?;
    let seen = onlooker.end();
    let seen: Vec<_> = seen.iter().filter(|line| !line.contains("tokens revoke")).collect();
    ensure!(seen.is_empty(), "in the list of processes: {seen:?}");

    eventually("the trail is exported", || {
        let mut exported = Vec::new();
        files(&world.path("trail"), &mut exported)?;
        let exported: String = exported.iter().filter_map(|path| std::fs::read_to_string(path).ok()).collect();
        ensure!(exported.contains("execution.submit") && exported.contains("token.revoke"), "{exported}");
        Ok(())
    })?;
    for (by, daemon) in [("the executor", executor), ("the controller", controller)] {
        let ready = daemon.ready.clone();
        let (code, said) = daemon.stop()?;
        ensure!(code == 0, "{by}: {code}: {said}");
        day.heard.0.push((by.to_owned(), ready + &said));
    }
    let left: Vec<_> = std::fs::read_dir(world.path("e1/runs"))?.collect();
    ensure!(left.is_empty(), "{left:?}");
    Ok(())
}

/// Everything logs as much as it can, by this filter.
fn loud(world: World, filter: &str) -> World {
    world.faster(20).archiving().variable("OCTAVIUS_LOG", filter).variable("RUST_LOG", filter).variable("RUST_BACKTRACE", "1")
}

/// That the search finds what there is: else it would pass for nothing.
fn finds(day: &Day<'_>, store: &Path) -> Result<()> {
    for name in ["controller.log", "executor.log"] {
        let log = std::fs::read_to_string(day.world.path(name))?;
        ensure!(log.contains("\"level\":\"DEBUG\""), "{name} is not as loud as can be");
    }
    let mut all = Vec::new();
    files(store, &mut all)?;
    let holds_job = all.iter().any(|path| contents(path).is_ok_and(|bytes| holds(&bytes, b"PAYMENTS_TOKEN")));
    ensure!(holds_job, "the store is not in {all:?}");
    let search = day.secrets.search()?;
    let expected = BTreeSet::from(["the sensitive argument"]);
    let planted = format!("x{}", STANDARD.encode(format!("ab{}cd", day.pin)));
    ensure!(search.in_bytes(planted.as_bytes()) == expected, "base64 is not found");
    let planted = format!("{:?}", day.pin.as_bytes());
    ensure!(search.in_bytes(planted.as_bytes()) == expected, "numbers are not found");
    Ok(())
}

#[test]
fn no_secret_and_no_token_is_left_anywhere_with_an_embedded_store() -> Result<()> {
    let world = loud(World::new()?, "trace");
    let mut day = Day::new(&world)?;
    live(&mut day)?;
    finds(&day, &world.path("store"))?;
    day.search(&[&world.path("")])
}

#[test]
fn no_secret_and_no_token_is_left_anywhere_with_etcd() -> Result<()> {
    let etcd = Etcd::single()?;
    // Each frame of each connection is in the logs of the other test; with those to etcd they would be too long to search.
    let world = loud(World::over_etcd(&etcd.endpoints())?, "trace,h2=info,hyper=debug,hyper_util=debug,tower=debug");
    let mut day = Day::new(&world)?;
    live(&mut day)?;
    // With its log of writes: all that ever was in it.
    finds(&day, etcd.folder())?;
    day.search(&[&world.path(""), etcd.folder()])
}

/// A backup is of use to whoever has the key, and to nobody else.
#[test]
fn a_restored_store_says_which_key_it_needs_and_goes_on_with_it() -> Result<()> {
    let world = World::new()?.faster(20).archiving();
    world.write("catalog/octavius.yaml", CATALOG)?;
    let job = "name: pay\ncommand: [sh, -c, 'test \"$pin\" = hunter2']\nenv_vars: {args: [{name: pin, sensitive: true}]}\n";
    world.write("catalog/pay.yaml", job)?;
    world.write("args", "pin: hunter2\n")?;
    let path = |name: &str| world.path(name).display().to_string();
    let (controller, port) = world.controller("first", 0)?;
    let admin = world.admin(port)?;
    admin.run(&["apply", &path("catalog")])?.expect(0)?;
    let waits = admin.execute("pay", &["--args-file", &path("args")])?;
    admin.run(&["backup", &path("backup")])?.expect(0)?;
    controller.stop()?;
    let store = format!("embedded:{}", path("second"));
    let keys = |more: &[&str]| {
        let arguments = ["controller", "keys", "--store", &store, "-o", "json"];
        let all: Vec<&str> = arguments.iter().chain(more).copied().collect();
        world.run(&all)?.expect(0)
    };
    let restored = world.run(&["restore", &path("backup"), "--store", &store])?.expect(0)?;
    let listed = keys(&[])?;
    let key = listed.json()?["keys"][0].clone();
    let id = key["key"].as_str().context("no key")?;
    ensure!(key["use"] == "missing" && key["executions"] == 1, "{key}");
    ensure!(restored.stderr.contains(id) && listed.stderr.contains(id), "{}{}", restored.stderr, listed.stderr);

    // Without it nothing else is held up, and the execution says what it waits for.
    let (controller, port) = world.controller("second", 0)?;
    let admin = world.admin(port)?;
    let executor = world.executor("e1", port, &admin.registration()?, 1)?;
    let status = eventually("it says why it waits", || {
        let status = admin.status(&waits)?;
        ensure!(status["reason"] == "ENCRYPTION_KEY_MISSING", "{status}");
        Ok(status)
    })?;
    ensure!(status["state"] == "queued" && status["message"].as_str().is_some_and(|text| text.contains(id)), "{status}");
    let shown = admin.run(&["status", &waits])?.expect(0)?.stdout;
    ensure!(shown.contains(&format!("encrypted with key {id}")), "{shown}");
    admin.run(&["execute", "pay", "--args-file", &path("args"), "--wait"])?.expect(0)?;
    let refused = admin.run(&["rerun", &waits])?.expect(3)?;
    ensure!(refused.stderr.contains(id) && refused.stderr.contains("--encryption-key-file"), "{}", refused.stderr);
    let (_, said) = controller.stop()?;
    ensure!(said.contains(id), "{said}");

    let files = format!("{},{}", path("second/encryption.key"), path("first/encryption.key"));
    let special = Special { variables: &[("OCTAVIUS_ENCRYPTION_KEY_FILE", files.as_str())], ..Special::default() };
    let (controller, _) = world.controller_with("second", port, &special)?;
    admin.run(&["status", &waits, "--wait"])?.expect(0)?;
    drop(executor);
    controller.stop()?;
    let left = keys(&["--encryption-key-file", &files])?.json()?["keys"].clone();
    let purposes: Vec<_> = left.as_array().context("no keys")?.iter().map(|key| key["use"].as_str()).collect();
    ensure!(purposes == [Some("encrypts"), Some("reads")], "{left}");
    Ok(())
}
