//! A world for one test: a folder and an environment of its own, and the daemons that live in it.

use std::ffi::OsStr;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context as _, Result};
use tempfile::TempDir;

use crate::process::{self, Daemon, Output};

/// A folder and an environment of one test's own. Processes started here see nothing of the user's configuration.
#[derive(Debug)]
pub struct World {
    folder: TempDir,
    binary: PathBuf,
}

impl World {
    /// An empty world.
    ///
    /// # Errors
    /// Where the folder cannot be made, or there is no binary to test.
    pub fn new() -> Result<Self> {
        Ok(Self { folder: tempfile::Builder::new().prefix("octavius-test-").tempdir()?, binary: process::binary()? })
    }

    /// A path in its folder.
    #[must_use]
    pub fn path(&self, relative: &str) -> PathBuf {
        self.folder.path().join(relative)
    }

    /// Writes a file into its folder, and the folders that it needs.
    ///
    /// # Errors
    /// Where that fails.
    pub fn write(&self, relative: &str, text: &str) -> Result<PathBuf> {
        let path = self.path(relative);
        std::fs::create_dir_all(path.parent().context("no parent")?)?;
        std::fs::write(&path, text)?;
        Ok(path)
    }

    /// The binary under test, called with `arguments` in this world.
    pub fn command<A: AsRef<OsStr>>(&self, arguments: impl IntoIterator<Item = A>) -> Command {
        let mut command = Command::new(&self.binary);
        command.args(arguments).current_dir(self.folder.path()).env_clear();
        for kept in ["PATH", "LANG", "LLVM_PROFILE_FILE"] {
            if let Some(value) = std::env::var_os(kept) {
                command.env(kept, value);
            }
        }
        command.env("HOME", self.path("home")).env("TMPDIR", self.folder.path()).env("GIT_CONFIG_NOSYSTEM", "1");
        command
    }

    /// Calls the binary and waits for its end.
    ///
    /// # Errors
    /// Where it cannot be started.
    pub fn run(&self, arguments: &[&str]) -> Result<Output> {
        process::run(&mut self.command(arguments))
    }

    /// Starts `octavius dev` on a free port.
    ///
    /// # Errors
    /// Where it does not get ready.
    pub fn dev(&self, more: &[&str]) -> Result<(Daemon, Client<'_>)> {
        let data = self.path("dev").display().to_string();
        let fixed = ["dev", "--listen", "127.0.0.1:0", "--data-dir", &data];
        let arguments = fixed.iter().chain(more);
        let daemon = Daemon::start(&mut self.command(arguments), true)?;
        Ok((daemon, Client { world: self, config: self.path("dev/octavius_client.yaml") }))
    }

    /// Starts a controller on `port` (0 for a free one) with its store in `store`; its first admin's token is in `admin.token`.
    ///
    /// # Errors
    /// Where it does not get ready.
    pub fn controller(&self, store: &str, port: u16) -> Result<(Daemon, u16)> {
        let store = format!("embedded:{}", self.path(store).display());
        let token = self.path("admin.token").display().to_string();
        let listen = format!("127.0.0.1:{port}");
        let arguments = ["controller", "start", "--store", &store, "--listen", &listen, "--bootstrap-token-file", &token];
        let daemon = Daemon::start(&mut self.command(arguments), true)?;
        let port = port_in(&daemon.ready).with_context(|| format!("no port in {:?}", daemon.ready))?;
        Ok((daemon, port))
    }

    /// Writes a client's configuration for the controller on `port`.
    ///
    /// # Errors
    /// Where that fails.
    pub fn client(&self, name: &str, port: u16, token: &str) -> Result<Client<'_>> {
        use std::os::unix::fs::PermissionsExt as _;
        let text = format!("CP_HOST: 127.0.0.1:{port}\nEMAIL_ID: {name}@example.com\nACCESS_TOKEN: {token}\n");
        let config = self.write(&format!("{name}/octavius_client.yaml"), &text)?;
        std::fs::set_permissions(&config, std::fs::Permissions::from_mode(0o600))?;
        Ok(Client { world: self, config })
    }

    /// The first admin's client of a controller that [`World::controller`] started.
    ///
    /// # Errors
    /// Where there is no token.
    pub fn admin(&self, port: u16) -> Result<Client<'_>> {
        let token = std::fs::read_to_string(self.path("admin.token"))?;
        self.client("admin", port, token.trim())
    }

    /// Starts an executor with its data in the folder `id`; it registers itself with `token` where it is new.
    ///
    /// # Errors
    /// Where it does not get ready.
    pub fn executor(&self, id: &str, port: u16, token: &str, capacity: u32) -> Result<Daemon> {
        let data = self.path(id).display().to_string();
        let (host, capacity) = (format!("127.0.0.1:{port}"), capacity.to_string());
        let config = format!("{{\"id\": \"{id}\", \"cp_host\": \"{host}\", \"access_token\": \"{token}\"}}");
        let config = self.write(&format!("{id}.executor.json"), &config)?;
        std::fs::set_permissions(&config, std::os::unix::fs::PermissionsExt::from_mode(0o600))?;
        let config = config.display().to_string();
        let arguments =
            ["executor", "start", "--config", &config, "--data-dir", &data, "--runner", "process", "--capacity", &capacity];
        Daemon::start(&mut self.command(arguments), true)
    }
}

/// The port at the end of an address in a text: `… 127.0.0.1:3000, …`.
fn port_in(text: &str) -> Option<u16> {
    let after = text.split("127.0.0.1:").nth(1)?;
    after.chars().take_while(char::is_ascii_digit).collect::<String>().parse().ok()
}

/// Someone at a command line: calls the binary with a configuration.
#[derive(Debug)]
pub struct Client<'w> {
    world: &'w World,
    config: PathBuf,
}

impl Client<'_> {
    /// The file of the configuration.
    #[must_use]
    pub fn config(&self) -> &Path {
        &self.config
    }

    /// The binary, called with `arguments` and this configuration.
    #[must_use]
    pub fn command(&self, arguments: &[&str]) -> Command {
        let mut command = self.world.command(arguments);
        command.env("OCTAVIUS_CONFIG", &self.config);
        command
    }

    /// Calls the binary and waits for its end.
    ///
    /// # Errors
    /// Where it cannot be started.
    pub fn run(&self, arguments: &[&str]) -> Result<Output> {
        process::run(&mut self.command(arguments))
    }

    /// Starts the binary and does not wait.
    ///
    /// # Errors
    /// Where it cannot be started.
    pub fn start(&self, arguments: &[&str]) -> Result<Daemon> {
        Daemon::start(&mut self.command(arguments), false)
    }

    /// Runs a job, and returns the execution's id.
    ///
    /// # Errors
    /// Where it was not accepted.
    pub fn execute(&self, job: &str, more: &[&str]) -> Result<String> {
        let arguments: Vec<&str> = ["execute", job].iter().chain(more).copied().collect();
        Ok(self.run(&arguments)?.expect(0)?.stdout.trim().to_owned())
    }

    /// An execution's status.
    ///
    /// # Errors
    /// Where it cannot be had.
    pub fn status(&self, id: &str) -> Result<serde_json::Value> {
        self.run(&["status", id, "-o", "json"])?.expect(0)?.json()
    }
}
