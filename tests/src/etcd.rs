//! Real etcd processes for tests and benchmarks: one member or several, on free ports, in a temporary folder, gone with the value that
//! holds them.

use std::fs::File;
use std::io::{Read as _, Write as _};
use std::net::{TcpListener, TcpStream};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use anyhow::{Context as _, Result, bail};
use rustix::process::{Pid, Signal, kill_process};
use tempfile::TempDir;

/// Longest wait for one answer of a member.
const ANSWER: Duration = Duration::from_secs(5);

/// Starts over where a port was taken between its choice and its use.
const STARTS: usize = 5;

/// Which etcd, and how it is started.
#[derive(Debug, Clone)]
pub struct EtcdOptions {
    /// How many members: 1, 3 or 5.
    pub members: usize,
    /// The program.
    pub program: PathBuf,
    /// More flags for each member, like `--quota-backend-bytes=16777216`.
    pub flags: Vec<String>,
}

impl EtcdOptions {
    /// So many members of the etcd that tests/run has found: `$OCTAVIUS_TEST_ETCD`, otherwise the `etcd` on the path.
    #[must_use]
    pub fn new(members: usize) -> Self {
        let program = std::env::var_os("OCTAVIUS_TEST_ETCD").map_or_else(|| PathBuf::from("etcd"), PathBuf::from);
        Self { members, program, flags: Vec::new() }
    }

    /// With one more flag.
    #[must_use]
    pub fn flag(mut self, flag: impl Into<String>) -> Self {
        self.flags.push(flag.into());
        self
    }

    /// So many members of etcd 3.6, which tests/run builds and names in `$OCTAVIUS_ETCD_36`.
    ///
    /// # Errors
    /// Where there is none.
    pub fn newer(members: usize) -> Result<Self> {
        let program = std::env::var_os("OCTAVIUS_ETCD_36").context("OCTAVIUS_ETCD_36 is not set: tests/run builds etcd 3.6")?;
        Ok(Self { program: program.into(), ..Self::new(members) })
    }
}

#[derive(Debug)]
struct Member {
    command: Vec<String>,
    client: u16,
    child: Option<Child>,
    stopped: bool,
}

/// A running etcd.
#[derive(Debug)]
pub struct Etcd {
    program: PathBuf,
    members: Vec<Member>,
    folder: TempDir,
}

impl Etcd {
    /// One member of the etcd that there is.
    ///
    /// # Errors
    /// Where it does not get ready; an etcd that is missing is an error, never a reason to pass.
    pub fn single() -> Result<Self> {
        Self::start(&EtcdOptions::new(1))
    }

    /// Starts the members and waits until all of them answer.
    ///
    /// # Errors
    /// Where they do not get ready, with what they said.
    pub fn start(options: &EtcdOptions) -> Result<Self> {
        let mut tries = 0;
        loop {
            tries += 1;
            match Self::try_start(options) {
                Err(error) if tries < STARTS && format!("{error:#}").contains("address already in use") => {}
                started => return started,
            }
        }
    }

    fn try_start(options: &EtcdOptions) -> Result<Self> {
        let folder = tempfile::Builder::new().prefix("octavius-etcd-").tempdir()?;
        let ports = free_ports(2 * options.members)?;
        let (clients, peers) = ports.split_at(options.members);
        let all = peers.iter().enumerate().map(|(index, port)| format!("m{index}=http://127.0.0.1:{port}"));
        let all = all.collect::<Vec<_>>().join(",");
        let mut members = Vec::new();
        for (index, (client, peer)) in clients.iter().zip(peers).enumerate() {
            let (client_url, peer_url) = (format!("http://127.0.0.1:{client}"), format!("http://127.0.0.1:{peer}"));
            let mut command = vec![
                format!("--name=m{index}"),
                format!("--data-dir={}", folder.path().join(format!("m{index}")).display()),
                format!("--listen-peer-urls={peer_url}"),
                format!("--initial-advertise-peer-urls={peer_url}"),
                format!("--initial-cluster={all}"),
                "--logger=zap".to_owned(),
            ];
            // TLS comes with flags of its own, its URLs too.
            if !options.flags.iter().any(|flag| flag.starts_with("--cert-file")) {
                command.push(format!("--listen-client-urls={client_url}"));
                command.push(format!("--advertise-client-urls={client_url}"));
            } else {
                let secure = client_url.replace("http:", "https:");
                command.push(format!("--listen-client-urls={secure}"));
                command.push(format!("--advertise-client-urls={secure}"));
                command.push(format!("--listen-metrics-urls=http://127.0.0.1:{}", free_ports(1)?[0]));
            }
            command.extend(options.flags.iter().cloned());
            members.push(Member { command, client: *client, child: None, stopped: false });
        }
        Self::launch(options.program.clone(), members, folder)
    }

    /// Starts etcd 3.6 with flags that somebody else has written: of each member, the port on which it listens for clients, and all its flags.
    /// Waits until every member knows a leader.
    ///
    /// # Errors
    /// Where there is no etcd 3.6, or one of them does not get ready.
    pub fn of_flags(flags: impl IntoIterator<Item = (u16, Vec<String>)>) -> Result<Self> {
        let members = flags.into_iter().map(|(client, command)| Member { command, client, child: None, stopped: false });
        let folder = tempfile::Builder::new().prefix("octavius-etcd-").tempdir()?;
        Self::launch(EtcdOptions::newer(0)?.program, members.collect(), folder)
    }

    fn launch(program: PathBuf, members: Vec<Member>, folder: TempDir) -> Result<Self> {
        let mut etcd = Self { program, members, folder };
        for index in 0..etcd.members.len() {
            etcd.spawn(index)?;
        }
        for index in 0..etcd.members.len() {
            etcd.until_ready(index)?;
        }
        Ok(etcd)
    }

    fn log(&self, index: usize) -> PathBuf {
        self.folder.path().join(format!("m{index}.log"))
    }

    fn spawn(&mut self, index: usize) -> Result<()> {
        let log = File::options().create(true).append(true).open(self.log(index))?;
        let member = &mut self.members[index];
        let child = Command::new(&self.program)
            .args(&member.command)
            .env_clear()
            .env("PATH", std::env::var_os("PATH").unwrap_or_default())
            .stdin(Stdio::null())
            .stdout(log.try_clone()?)
            .stderr(log)
            .spawn()
            .with_context(|| format!("cannot start {}: tests/run installs it", self.program.display()))?;
        member.child = Some(child);
        Ok(())
    }

    fn until_ready(&mut self, index: usize) -> Result<()> {
        let log = self.log(index);
        let member = &mut self.members[index];
        let metrics = member.command.iter().find_map(|flag| flag.strip_prefix("--listen-metrics-urls=http://127.0.0.1:"));
        let port = metrics.map_or(Ok(member.client), str::parse)?;
        let mut ended = None;
        let ready = crate::eventually("etcd answers", || {
            if let Some(child) = &mut member.child
                && let Some(status) = child.try_wait()?
            {
                ended = Some(status);
                return Ok(());
            }
            // Not its health: a full one calls itself ill, and serves.
            let metrics = http_get(port, "/metrics")?;
            if metrics.contains("\netcd_server_has_leader 1") { Ok(()) } else { bail!("it knows no leader") }
        });
        if ready.is_err() || ended.is_some() {
            let said = std::fs::read_to_string(&log).unwrap_or_default();
            let tail: Vec<&str> = said.lines().rev().take(20).collect();
            bail!("etcd did not get ready ({ended:?}): {}", tail.into_iter().rev().collect::<Vec<_>>().join("\n"));
        }
        Ok(())
    }

    /// Where its members listen for clients: `127.0.0.1:PORT`.
    #[must_use]
    pub fn endpoints(&self) -> Vec<String> {
        self.members.iter().map(|member| format!("127.0.0.1:{}", member.client)).collect()
    }

    /// Where a member listens for clients.
    #[must_use]
    pub fn port(&self, index: usize) -> u16 {
        self.members[index].client
    }

    /// Its folder, with the members' data and logs.
    #[must_use]
    pub fn folder(&self) -> &Path {
        self.folder.path()
    }

    /// The member that leads, once there is one.
    ///
    /// # Errors
    /// Where none does in time.
    pub fn leader(&self) -> Result<usize> {
        crate::eventually("a member leads", || {
            for (index, member) in self.members.iter().enumerate() {
                if member.child.is_some() && !member.stopped {
                    let leads = http_get(member.client, "/metrics").is_ok_and(|text| text.contains("\netcd_server_is_leader 1"));
                    if leads {
                        return Ok(index);
                    }
                }
            }
            bail!("no member leads")
        })
    }

    /// A member's process id.
    ///
    /// # Errors
    /// Where it does not run.
    pub fn pid(&self, index: usize) -> Result<u32> {
        Ok(self.members[index].child.as_ref().context("the member does not run")?.id())
    }

    /// How many proposals a member has seen committed: each is a write through consensus.
    ///
    /// # Errors
    /// Where it does not answer.
    pub fn proposals(&self, index: usize) -> Result<u64> {
        self.metric(index, "etcd_server_proposals_committed_total ")
    }

    /// How many keys a member has seen put, in whatever transactions.
    ///
    /// # Errors
    /// Where it does not answer.
    pub fn puts(&self, index: usize) -> Result<u64> {
        self.metric(index, "etcd_mvcc_put_total ").or_else(|_| self.metric(index, "etcd_debugging_mvcc_put_total "))
    }

    fn metric(&self, index: usize, name: &str) -> Result<u64> {
        let metrics = http_get(self.members[index].client, "/metrics")?;
        let line = metrics.lines().find_map(|line| line.strip_prefix(name));
        Ok(line.with_context(|| format!("no metric {name}"))?.trim().parse::<f64>()? as u64)
    }

    /// Sends a member a signal; [`Signal::STOP`] pauses it, [`Signal::CONT`] wakes it.
    ///
    /// # Errors
    /// Where it does not run.
    pub fn signal(&mut self, index: usize, signal: Signal) -> Result<()> {
        let pid = self.pid(index)?;
        kill_process(Pid::from_raw(i32::try_from(pid)?).context("not a process id")?, signal)?;
        match signal {
            Signal::STOP => self.members[index].stopped = true,
            Signal::CONT => self.members[index].stopped = false,
            _ => {}
        }
        Ok(())
    }

    /// Kills a member, as `kill -9` does. Its data stays.
    ///
    /// # Errors
    /// Where that fails.
    pub fn kill(&mut self, index: usize) -> Result<()> {
        if let Some(mut child) = self.members[index].child.take() {
            child.kill()?;
            child.wait()?;
        }
        self.members[index].stopped = false;
        Ok(())
    }

    /// Starts a member again that was killed; does not wait until it is ready.
    ///
    /// # Errors
    /// Where it cannot be started.
    pub fn revive(&mut self, index: usize) -> Result<()> {
        self.spawn(index)
    }

    /// Starts a member again that was killed, and waits until it answers.
    ///
    /// # Errors
    /// Where it does not get ready.
    pub fn restart(&mut self, index: usize) -> Result<()> {
        self.spawn(index)?;
        self.until_ready(index)
    }
}

impl Drop for Etcd {
    fn drop(&mut self) {
        for member in &mut self.members {
            if let Some(child) = &mut member.child {
                // It may have ended by itself; SIGKILL also ends one that is paused.
                let _ = child.kill();
                let _ = child.wait();
            }
        }
    }
}

/// Ports that are free at present.
///
/// # Errors
/// Where there are none.
pub fn free_ports(count: usize) -> Result<Vec<u16>> {
    let listeners = (0..count).map(|_| TcpListener::bind(("127.0.0.1", 0))).collect::<std::io::Result<Vec<_>>>()?;
    listeners.iter().map(|listener| Ok(listener.local_addr()?.port())).collect()
}

/// What HTTP on this machine answers, its head included; whatever the status is.
///
/// # Errors
/// Where nothing answers.
pub fn http_get(port: u16, path: &str) -> Result<String> {
    let mut stream = TcpStream::connect_timeout(&([127, 0, 0, 1], port).into(), ANSWER)?;
    stream.set_read_timeout(Some(ANSWER))?;
    write!(stream, "GET {path} HTTP/1.0\r\nHost: localhost\r\n\r\n")?;
    let mut answer = String::new();
    stream.read_to_string(&mut answer)?;
    Ok(answer)
}
