//! A machine with a real systemd for tests, which tests/systemd/up starts: this machine's files under a layer of its own, and no network but
//! loopback.

use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Result, ensure};
use tempfile::TempDir;

use crate::process::{self, Output};

/// It ends with this value; should the test be killed, it notices within a second.
#[derive(Debug)]
pub struct Machine {
    folder: TempDir,
    pid: String,
}

fn script(name: &str) -> Command {
    Command::new(Path::new(env!("CARGO_MANIFEST_DIR")).join("systemd").join(name))
}

impl Machine {
    /// Starts one.
    ///
    /// # Errors
    /// Where none can be started here.
    pub fn start() -> Result<Self> {
        let folder = tempfile::Builder::new().prefix("octavius-machine-").tempdir()?;
        let mut machine = Self { folder, pid: String::new() };
        let up = process::run(script("up").arg(machine.folder.path()).arg(std::process::id().to_string()))?.expect(0)?;
        up.stdout.trim().clone_into(&mut machine.pid);
        ensure!(!machine.pid.is_empty(), "no process id: {}", up.stderr);
        Ok(machine)
    }

    /// Where this process finds a file of it.
    #[must_use]
    pub fn path(&self, inside: &str) -> PathBuf {
        Path::new("/proc").join(&self.pid).join("root").join(inside.trim_start_matches('/'))
    }

    /// Copies a file into it.
    ///
    /// # Errors
    /// Where that fails.
    pub fn copy(&self, from: &Path, inside: &str) -> Result<()> {
        std::fs::copy(from, self.path(inside))?;
        Ok(())
    }

    /// Runs a command in it as root, and waits for its end.
    ///
    /// # Errors
    /// Where it cannot be started.
    pub fn run(&self, command: &[&str]) -> Result<Output> {
        let mut nsenter = Command::new("nsenter");
        nsenter.args(["--target", &self.pid, "--mount", "--pid", "--cgroup", "--net"]).args(command);
        nsenter.env_clear().env("PATH", "/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin").env("HOME", "/root");
        process::run(&mut nsenter)
    }
}

impl Drop for Machine {
    fn drop(&mut self) {
        let down = process::run(script("down").arg(self.folder.path())).and_then(|output| output.expect(0));
        // What is left behind is a failure of the test, but must not hide why it failed before.
        if let Err(error) = down {
            assert!(std::thread::panicking(), "{error:#}");
        }
    }
}
