//! A person at a terminal.

use std::io::{Read as _, Write as _};
use std::process::{Command, Stdio};
use std::sync::{Arc, Mutex};
use std::thread::JoinHandle;

use anyhow::{Context as _, ensure};
use octavius_tests::{Client, eventually};

/// What stands on a terminal, and the keys that are pressed. It is that of `script`, which every Linux has.
pub(crate) struct Terminal {
    child: std::process::Child,
    screen: Arc<Mutex<String>>,
    reader: Option<JoinHandle<()>>,
}

impl Terminal {
    /// The binary, with these arguments.
    pub(crate) fn start(client: &Client<'_>, line: &str) -> Self {
        let binary = env!("CARGO_BIN_EXE_octavius");
        Self::running(client, &format!("{binary} {line}"))
    }

    /// Any command, in the environment of a client.
    pub(crate) fn running(client: &Client<'_>, line: &str) -> Self {
        let mut command = Command::new("script");
        command.args(["--quiet", "--return", "--command", line, "/dev/null"]);
        let like = client.command(&[]);
        command.current_dir(like.get_current_dir().unwrap()).env_clear();
        command.envs(like.get_envs().filter_map(|(name, value)| Some((name, value?)))).env("TERM", "xterm").env("NO_COLOR", "1");
        let mut child = command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::inherit()).spawn().unwrap();
        let screen = Arc::<Mutex<String>>::default();
        let (mut output, written) = (child.stdout.take().unwrap(), screen.clone());
        let reader = std::thread::spawn(move || {
            let mut bytes = [0; 4096];
            while let Ok(read @ 1..) = output.read(&mut bytes) {
                written.lock().unwrap().push_str(&String::from_utf8_lossy(&bytes[..read]));
            }
        });
        Self { child, screen, reader: Some(reader) }
    }

    pub(crate) fn shows(&self, expected: &str, times: usize) {
        eventually("the terminal shows it", || {
            let screen = self.screen.lock().unwrap().clone();
            ensure!(screen.matches(expected).count() >= times, "{expected:?} in {screen}");
            Ok(())
        })
        .unwrap();
    }

    /// What it shows by now.
    pub(crate) fn screen(&self) -> String {
        self.screen.lock().unwrap().clone()
    }

    pub(crate) fn press(&mut self, key: &str) {
        self.child.stdin.as_mut().unwrap().write_all(key.as_bytes()).unwrap();
    }

    pub(crate) fn ends(mut self) -> (i32, String) {
        let status = eventually("it ends", || self.child.try_wait()?.context("still running")).unwrap();
        // what it wrote last may still be on its way
        self.reader.take().unwrap().join().unwrap();
        (status.code().unwrap(), self.screen.lock().unwrap().clone())
    }
}

impl Drop for Terminal {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}
