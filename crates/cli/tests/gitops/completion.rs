//! Completion as people have it: real shells that read the script, lines that are typed into them, and a real controller that is asked.

use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context as _, ensure};
use octavius_tests::{Client, Daemon, World, eventually};

use crate::terminal::Terminal;
use crate::{controller, job, repository};

/// The folder of the binary under test, for the path: the scripts ask the `octavius` that they find there.
fn folder() -> PathBuf {
    Path::new(env!("CARGO_BIN_EXE_octavius")).parent().unwrap().to_owned()
}

/// A controller with jobs and an execution, whose id is returned.
fn world() -> (World, u16, Daemon, String) {
    let world = World::new().unwrap();
    repository(&world);
    let refund = "description: Refund one order\ncommand: [echo, \"$order\"]\nenv_vars:\n  args:\n  - {name: order, required: true}\n  \
                  - {name: reason, enum: [fraud, good will, \"$(touch pwned)\"]}\n  - {name: dry_run, type: boolean}";
    job(&world, "refund-order", refund);
    let (daemon, port) = world.controller("store", 0).unwrap();
    let admin = world.admin(port).unwrap();
    admin.run(&["apply", "catalog", "--yes"]).unwrap().expect(0).unwrap();
    let id = admin.execute("greet", &[]).unwrap();
    (world, port, daemon, id)
}

/// A shell at a terminal, with its completion read and a key, Ctrl-O, that shows the line as it stands.
struct Shell<'c> {
    terminal: Terminal,
    client: &'c Client<'c>,
    lines: usize,
}

impl<'c> Shell<'c> {
    fn start(world: &World, client: &'c Client<'c>, shell: &str, setting: &str, line: &str) -> Self {
        let script = client.run(&["completion", shell]).unwrap().expect(0).unwrap().stdout;
        let script = world.write(&format!("completion.{shell}"), &script).unwrap();
        let path = format!("{}:{}", folder().display(), std::env::var("PATH").unwrap());
        let setting = setting.replace("SCRIPT", &script.display().to_string()).replace("PATH=", &format!("PATH={path}"));
        let file = world.write(&format!("rc-{shell}/.{shell}rc"), &setting).unwrap();
        let terminal = Terminal::running(client, &line.replace("FOLDER", &file.parent().unwrap().display().to_string()));
        let shell = Self { terminal, client, lines: 0 };
        shell.terminal.shows("READY>", 1);
        shell
    }

    /// The line that stands there after a text was typed and TAB pressed.
    fn completes(&mut self, text: &str) -> String {
        self.lines += 1;
        // the whole line is thrown away first
        self.terminal.press(&format!("\u{15}{text}\t\u{f}"));
        let lines = self.lines;
        eventually("the shell shows its line", || {
            let screen = self.terminal.screen();
            let shown: Vec<&str> =
                screen.split("LINE<").skip(1).filter_map(|rest| rest.split_once(">END")).map(|(line, _)| line).collect();
            ensure!(shown.len() >= lines, "{lines} lines are wanted: {screen}");
            Ok(shown[lines - 1].to_owned())
        })
        .with_context(|| format!("{text:?} of {:?}", self.client))
        .unwrap()
    }
}

/// What each shell makes of a line: what is typed, and what stands there then.
fn lines(id: &str) -> Vec<(String, String)> {
    let pair = |typed: &str, expected: &str| (typed.to_owned(), expected.to_owned());
    vec![
        pair("octavius descr", "octavius describe "),
        pair("octavius describe re", "octavius describe refund-order "),
        pair("octavius execute --job-name gre", "octavius execute --job-name greet "),
        pair("octavius execute refund-order --arg or", "octavius execute refund-order --arg order="),
        pair(
            "octavius execute refund-order --arg order=A-1 --arg dry",
            "octavius execute refund-order --arg order=A-1 --arg dry_run=",
        ),
        pair("octavius run refund-order --arg dry_run=t", "octavius run refund-order --arg dry_run=true "),
        pair("octavius execute refund-order --arg reason=fr", "octavius execute refund-order --arg reason=fraud "),
        pair("octavius execute refund-order --arg reason=go", "octavius execute refund-order --arg reason=good\\ will "),
        pair(&format!("octavius cancel {}", &id[..10]), &format!("octavius cancel {id} ")),
        pair("octavius status @l", "octavius status @latest "),
        pair("octavius validate cat", "octavius validate catalog/"),
        // nothing begins so
        pair("octavius describe zzz", "octavius describe zzz"),
    ]
}

const BASH: &str = "\
PATH=
PS1='READY>'
bind 'set enable-bracketed-paste off'
bind 'set bell-style none'
. SCRIPT
show() { printf 'LINE<%s>END\\n' \"$READLINE_LINE\"; }
bind -x '\"\\C-o\": show'
";

const ZSH: &str = "\
PATH=
PS1='READY>'
unsetopt zle_bracketed_paste beep prompt_cr prompt_sp auto_list list_ambiguous 2>/dev/null
autoload -Uz compinit
compinit -u -D
. SCRIPT
show() { print -r -- \"LINE<$BUFFER>END\" }
zle -N show
bindkey '^O' show
bindkey '^U' kill-whole-line
";

#[test]
fn bash_completes_what_the_controller_has() {
    let (world, port, _daemon, id) = world();
    let client = world.admin(port).unwrap();
    let mut bash = Shell::start(&world, &client, "bash", BASH, "bash --noprofile --rcfile FOLDER/.bashrc -i");
    for (typed, expected) in lines(&id) {
        assert_eq!(bash.completes(&typed), expected, "{typed}");
    }
    // What a job's author wrote is inserted as a word, and is no command.
    let line = bash.completes("octavius execute refund-order --arg reason=\\$");
    assert_eq!(line, "octavius execute refund-order --arg reason=\\$\\(touch\\ pwned\\) ");
    let line = bash.completes("octavius execute refund-order --arg \"reason=\\$");
    assert_eq!(line, "octavius execute refund-order --arg \"reason=\\$(touch pwned)\" ");
    assert!(!world.path("pwned").exists());
}

#[test]
fn zsh_completes_what_the_controller_has() {
    let (world, port, _daemon, id) = world();
    let client = world.admin(port).unwrap();
    let mut zsh = Shell::start(&world, &client, "zsh", ZSH, "env ZDOTDIR=FOLDER zsh -d -i");
    for (typed, expected) in lines(&id) {
        assert_eq!(zsh.completes(&typed), expected, "{typed}");
    }
}

/// Fish tells by itself what it would offer.
#[test]
fn fish_completes_what_the_controller_has() {
    let (world, port, _daemon, id) = world();
    let client = world.admin(port).unwrap();
    let script = client.run(&["completion", "fish"]).unwrap().expect(0).unwrap().stdout;
    let script = world.write("octavius.fish", &script).unwrap();
    let like = client.command(&[]);
    let offered = |line: &str| {
        let path = format!("{}:{}", folder().display(), std::env::var("PATH").unwrap());
        let asks = format!("source {}; complete --do-complete '{line}'", script.display());
        let mut fish = Command::new("fish");
        fish.args(["--no-config", "-c", &asks]).current_dir(world.path("")).env_clear();
        fish.envs(like.get_envs().filter_map(|(name, value)| Some((name, value?)))).env("PATH", path);
        let output = fish.stdin(Stdio::null()).output().expect("fish is there: tests/lib.sh installs it");
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        String::from_utf8(output.stdout).unwrap()
    };
    assert_eq!(offered("octavius describe re"), "refund-order\tRefund one order\n");
    assert!(offered("octavius ").contains("execute\tRun a job\n"));
    let arguments = offered("octavius execute refund-order --arg ");
    let named: Vec<&str> = arguments.lines().filter_map(|line| line.split('\t').next()).collect();
    assert_eq!(named, ["order=", "reason=", "dry_run="]);
    assert_eq!(offered("octavius execute refund-order --arg dry_run="), "dry_run=true\ndry_run=false\n");
    assert!(offered("octavius execute refund-order --arg reason=").contains("reason=good will\n"));
    assert!(offered(&format!("octavius cancel {}", &id[..10])).starts_with(&format!("{id}\tgreet queued")));
    assert_eq!(offered("octavius describe zzz"), "");
}

/// Whoever presses TAB waits: neither a controller that is away, nor one that is silent, nor one without a token for it costs more than a moment or
/// says a word.
#[test]
fn what_does_not_answer_is_silence_and_costs_a_moment() {
    let world = World::new().unwrap();
    let silent = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let closed = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
    let (daemon, admin) = controller(&world);
    let address = std::fs::read_to_string(admin.config()).unwrap();
    let address = address.lines().find_map(|line| line.strip_prefix("CP_HOST: ")).unwrap().to_owned();
    for host in [silent.local_addr().unwrap().to_string(), closed.to_string(), address] {
        let began = Instant::now();
        let variables = [("OCTAVIUS_CP_HOST", host.as_str()), ("OCTAVIUS_TOKEN", "octu_nonsense")];
        let output = world.run_with(&["__complete", "bash", "describe", "re"], &variables).unwrap();
        assert_eq!((output.code, output.stdout.as_str(), output.stderr.as_str()), (0, "", ""), "{host}");
        // half a second is the limit; the rest is for a machine that is busy
        assert!(began.elapsed() < Duration::from_secs(5), "{host}: {:?}", began.elapsed());
    }
    // Nor is a token read from the terminal that somebody types at.
    let variables = [("OCTAVIUS_CP_HOST", "127.0.0.1:1"), ("OCTAVIUS_TOKEN_FILE", "-")];
    let output = world.run_with(&["__complete", "bash", "describe", "re"], &variables).unwrap();
    assert_eq!((output.code, output.stdout.as_str()), (0, ""));
    drop(daemon);
}
