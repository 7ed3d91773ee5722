//! A world for one test: a folder and an environment of its own, and the daemons that live in it.

use std::ffi::OsStr;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context as _, Result};
use tempfile::TempDir;

use crate::etcd::Etcd;
use crate::process::{self, Daemon, Output};

/// A folder and an environment of one test's own. Processes started here see nothing of the user's configuration.
#[derive(Debug)]
pub struct World {
    folder: TempDir,
    binary: PathBuf,
    store: Backing,
    variables: Vec<(String, String)>,
}

/// Where this world's controllers keep everything.
#[derive(Debug)]
enum Backing {
    /// In a file of the world's folder.
    Embedded,
    /// In the etcd with these clients' addresses, which may be the world's own.
    Etcd { hosts: String, _own: Option<Etcd> },
}

impl World {
    /// An empty world, whose controllers use the embedded store.
    ///
    /// # Errors
    /// Where the folder cannot be made, or there is no binary to test.
    pub fn new() -> Result<Self> {
        Self::with(Backing::Embedded)
    }

    /// An empty world, whose controllers use an etcd of its own with one member.
    ///
    /// # Errors
    /// Where the etcd does not start, the folder cannot be made, or there is no binary to test.
    pub fn on_etcd() -> Result<Self> {
        let etcd = Etcd::single()?;
        Self::with(Backing::Etcd { hosts: etcd.endpoints().join(","), _own: Some(etcd) })
    }

    /// An empty world, whose controllers use the etcd at `endpoints`, each `HOST:PORT`.
    ///
    /// # Errors
    /// Where the folder cannot be made, or there is no binary to test.
    pub fn over_etcd(endpoints: &[String]) -> Result<Self> {
        Self::with(Backing::Etcd { hosts: endpoints.join(","), _own: None })
    }

    fn with(store: Backing) -> Result<Self> {
        let folder = tempfile::Builder::new().prefix("octavius-test-").tempdir()?;
        Ok(Self { folder, binary: process::binary()?, store, variables: Vec::new() })
    }

    /// The same world with one more environment variable for all that is started in it.
    #[must_use]
    pub fn variable(mut self, name: &str, value: &str) -> Self {
        self.variables.push((name.to_owned(), value.to_owned()));
        self
    }

    /// The same world with all durations of its daemons so many times as fast.
    #[must_use]
    pub fn faster(self, factor: u32) -> Self {
        self.variable("OCTAVIUS_FASTER", &factor.to_string())
    }

    /// The same world with an archive of logs for its controllers, in the folder [`World::archive`].
    #[must_use]
    pub fn archiving(self) -> Self {
        let archive = self.archive().display().to_string();
        self.variable("OCTAVIUS_ARCHIVE", &archive)
    }

    /// Where the archive is of a world that was made to have one.
    #[must_use]
    pub fn archive(&self) -> PathBuf {
        self.path("archive")
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
        command.envs(self.variables.iter().map(|(name, value)| (name, value)));
        command
    }

    /// Calls the binary and waits for its end.
    ///
    /// # Errors
    /// Where it cannot be started.
    pub fn run(&self, arguments: &[&str]) -> Result<Output> {
        process::run(&mut self.command(arguments))
    }

    /// Calls the binary with these variables and waits for its end.
    ///
    /// # Errors
    /// Where it cannot be started.
    pub fn run_with(&self, arguments: &[&str], variables: &[(&str, &str)]) -> Result<Output> {
        process::run(self.command(arguments).envs(variables.iter().copied()))
    }

    /// Starts the binary as a daemon, and waits until it has printed that it is ready.
    ///
    /// # Errors
    /// Where it does not get ready.
    pub fn daemon<A: AsRef<OsStr>>(&self, arguments: impl IntoIterator<Item = A>) -> Result<Daemon> {
        Daemon::start(&mut self.command(arguments), true)
    }

    /// The same with these variables.
    ///
    /// # Errors
    /// Where it does not get ready.
    pub fn daemon_with<A: AsRef<OsStr>>(
        &self,
        arguments: impl IntoIterator<Item = A>,
        variables: &[(&str, &str)],
    ) -> Result<Daemon> {
        Daemon::start(self.command(arguments).envs(variables.iter().copied()), true)
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

    /// Starts a controller on `port` (0 for a free one) with its store in `store`, or in this world's etcd; its first admin's token is in
    /// `admin.token`.
    ///
    /// # Errors
    /// Where it does not get ready.
    pub fn controller(&self, store: &str, port: u16) -> Result<(Daemon, u16)> {
        self.controller_with(store, port, &Special::default())
    }

    /// The same, with something special about it.
    ///
    /// # Errors
    /// Where it does not get ready.
    pub fn controller_with(&self, store: &str, port: u16, special: &Special<'_>) -> Result<(Daemon, u16)> {
        let token = self.path("admin.token").display().to_string();
        let listen = format!("127.0.0.1:{port}");
        let mut arguments = vec!["controller", "start", "--listen", &listen, "--bootstrap-token-file", &token];
        let folder = format!("embedded:{}", self.path(store).display());
        let file;
        match &self.store {
            Backing::Embedded => arguments.extend(["--store", &folder]),
            Backing::Etcd { hosts, .. } => {
                let hosts = special.etcd.unwrap_or(hosts);
                let config = serde_json::json!({"etcd_host": hosts, "etcd_prefix": "/octavius/v1/"});
                file = self.write(&format!("{store}.controller.json"), &config.to_string())?.display().to_string();
                arguments.extend(["--store", "etcd", "--config", &file]);
            }
        }
        let daemon = Daemon::start(self.command(arguments).envs(special.variables.iter().copied()), !special.unattended)?;
        if special.unattended {
            return Ok((daemon, port));
        }
        let port = port_in(&daemon.ready).with_context(|| format!("no port in {:?}", daemon.ready))?;
        Ok((daemon, port))
    }

    /// Everything that the main job needs, with the catalogue of that folder applied: `octavius dev`, or on etcd a controller and an
    /// executor of their own.
    ///
    /// # Errors
    /// Where a part of it does not get ready.
    pub fn whole(&self, catalog: Option<&str>) -> Result<(Vec<Daemon>, Client<'_>)> {
        if let Backing::Embedded = self.store {
            let catalog = catalog.map_or_else(Vec::new, |catalog| vec!["--catalog", catalog]);
            let (dev, client) = self.dev(&catalog)?;
            return Ok((vec![dev], client));
        }
        let (controller, port) = self.controller("store", 0)?;
        let admin = self.admin(port)?;
        if let Some(catalog) = catalog {
            admin.run(&["apply", catalog])?.expect(0)?;
        }
        let executor = self.executor("e1", port, &admin.registration()?, 4)?;
        Ok((vec![executor, controller], admin))
    }

    /// Writes a client's configuration for the controller on `port`.
    ///
    /// # Errors
    /// Where that fails.
    pub fn client(&self, name: &str, port: u16, token: &str) -> Result<Client<'_>> {
        self.client_of(name, &format!("127.0.0.1:{port}"), token)
    }

    /// Writes a client's configuration for controllers at `hosts`, each `HOST:PORT`, separated by commas.
    ///
    /// # Errors
    /// Where that fails.
    pub fn client_of(&self, name: &str, hosts: &str, token: &str) -> Result<Client<'_>> {
        use std::os::unix::fs::PermissionsExt as _;
        let text = format!("CP_HOST: {hosts}\nEMAIL_ID: {name}@example.com\nACCESS_TOKEN: {token}\n");
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
        self.executor_of(id, &format!("127.0.0.1:{port}"), token, capacity, &Special::default())
    }

    /// The same for controllers at `hosts`, each `HOST:PORT`, separated by commas, and with something special about it.
    ///
    /// # Errors
    /// Where it does not get ready.
    pub fn executor_of(&self, id: &str, hosts: &str, token: &str, capacity: u32, special: &Special<'_>) -> Result<Daemon> {
        let data = self.path(id).display().to_string();
        let capacity = capacity.to_string();
        let config = format!("{{\"id\": \"{id}\", \"cp_host\": \"{hosts}\", \"access_token\": \"{token}\"}}");
        let config = self.write(&format!("{id}.executor.json"), &config)?;
        std::fs::set_permissions(&config, std::os::unix::fs::PermissionsExt::from_mode(0o600))?;
        let config = config.display().to_string();
        let arguments =
            ["executor", "start", "--config", &config, "--data-dir", &data, "--runner", "process", "--capacity", &capacity];
        Daemon::start(self.command(arguments).envs(special.variables.iter().copied()), !special.unattended)
    }
}

/// What is special about a daemon.
#[derive(Debug, Clone, Copy, Default)]
pub struct Special<'s> {
    /// More environment variables.
    pub variables: &'s [(&'s str, &'s str)],
    /// Addresses of etcd instead of the world's, separated by commas: those of proxies, say. Executors have no use for it.
    pub etcd: Option<&'s str>,
    /// Whether nobody waits until it is ready, which may be never while faults go on.
    pub unattended: bool,
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

    /// A new token with which one executor registers itself.
    ///
    /// # Errors
    /// Where it cannot be had.
    pub fn registration(&self) -> Result<String> {
        let made = self.run(&["tokens", "create", "--role", "executor", "--user", "e", "-o", "json"])?.expect(0)?.json()?;
        Ok(made["token"].as_str().context("no token")?.to_owned())
    }

    /// An execution's status.
    ///
    /// # Errors
    /// Where it cannot be had.
    pub fn status(&self, id: &str) -> Result<serde_json::Value> {
        self.run(&["status", id, "-o", "json"])?.expect(0)?.json()
    }
}
