//! Real processes: run to their end, or kept as daemons that are killed when a test lets go of them.

use std::io::{BufRead as _, BufReader, Read};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::{Arc, Mutex};
use std::thread::JoinHandle;
use std::time::Duration;

use anyhow::{Context as _, Result, bail};
use rustix::process::{Pid, Signal, kill_process};

/// The binary under test: `$OCTAVIUS_BIN`, or the one beside this test program.
///
/// # Errors
/// Where there is none: the tests are run by tests/run, which builds it.
pub(crate) fn binary() -> Result<PathBuf> {
    if let Some(path) = std::env::var_os("OCTAVIUS_BIN") {
        return Ok(path.into());
    }
    let test = std::env::current_exe()?;
    let beside = test.ancestors().skip(1).map(|folder| folder.join("octavius")).find(|path| path.is_file());
    beside.context("no octavius binary: build it first, with `cargo build`, or run tests/run")
}

/// What a process that has ended left behind.
#[derive(Debug)]
pub struct Output {
    /// Its exit code; -1 where a signal ended it.
    pub code: i32,
    /// What it printed.
    pub stdout: String,
    /// What it said beside.
    pub stderr: String,
}

impl Output {
    /// The same output, if the exit code is `code`.
    ///
    /// # Errors
    /// Where it is another, with everything that was said.
    pub fn expect(self, code: i32) -> Result<Self> {
        if self.code != code {
            bail!("exit code {} where {code} was expected\n--- stdout\n{}\n--- stderr\n{}", self.code, self.stdout, self.stderr);
        }
        Ok(self)
    }

    /// Its stdout as JSON.
    ///
    /// # Errors
    /// Where it is none.
    pub fn json(&self) -> Result<serde_json::Value> {
        serde_json::from_str(&self.stdout).with_context(|| format!("not JSON: {}\n--- stderr\n{}", self.stdout, self.stderr))
    }
}

/// Runs a command to its end.
pub(crate) fn run(command: &mut Command) -> Result<Output> {
    let output = command.stdin(Stdio::null()).output()?;
    Ok(Output {
        code: output.status.code().unwrap_or(-1),
        stdout: String::from_utf8_lossy(&output.stdout).into_owned(),
        stderr: String::from_utf8_lossy(&output.stderr).into_owned(),
    })
}

/// How much of each stream of a daemon is kept, the newest half of it at least.
const SAID_BYTES: usize = 4 << 20;

/// A process that goes on until it is stopped; killed when it is dropped.
#[derive(Debug)]
pub struct Daemon {
    child: Child,
    /// The first line it printed.
    pub ready: String,
    printed: Arc<Mutex<String>>,
    said: Arc<Mutex<String>>,
    readers: Vec<JoinHandle<()>>,
}

/// Keeps the lines of a stream, the oldest of which may be dropped. It reads to the end whatever comes: the process must never wait for it.
fn keep(stream: impl Read, kept: &Mutex<String>) {
    let mut stream = BufReader::new(stream);
    let mut line = Vec::new();
    while stream.read_until(b'\n', &mut line).is_ok_and(|read| read > 0) {
        if let Ok(mut kept) = kept.lock() {
            kept.push_str(&String::from_utf8_lossy(&line));
            if kept.len() > SAID_BYTES {
                let half = kept.char_indices().map(|(at, _)| at).find(|at| *at >= SAID_BYTES / 2);
                kept.drain(..half.unwrap_or_default());
            }
        }
        line.clear();
    }
}

impl Daemon {
    /// Starts a process. With `waits`, returns once it has printed a line on stdout.
    pub(crate) fn start(command: &mut Command, waits: bool) -> Result<Self> {
        let mut child = command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn()?;
        let (printed, said) = (Arc::<Mutex<String>>::default(), Arc::<Mutex<String>>::default());
        let mut readers = Vec::new();
        if let Some(stderr) = child.stderr.take() {
            let said = Arc::clone(&said);
            readers.push(std::thread::spawn(move || keep(stderr, &said)));
        }
        let mut ready = String::new();
        if let Some(stdout) = child.stdout.take() {
            let mut stdout = BufReader::new(stdout);
            if waits && stdout.read_line(&mut ready)? == 0 {
                let status = child.wait()?;
                readers.into_iter().for_each(|reader| drop(reader.join()));
                let said = said.lock().map(|said| said.clone()).unwrap_or_default();
                bail!("{command:?} ended with {status} before it was ready:\n{said}");
            }
            let printed = Arc::clone(&printed);
            readers.push(std::thread::spawn(move || keep(stdout, &printed)));
        }
        Ok(Self { child, ready: ready.trim().to_owned(), printed, said, readers })
    }

    /// Its process id.
    #[must_use]
    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    /// What it has said on stderr so far.
    #[must_use]
    pub fn said(&self) -> String {
        self.said.lock().map(|said| said.clone()).unwrap_or_default()
    }

    /// The address that opens the page of an `octavius dev` for who reads it, already signed in: `http://HOST:PORT/open?code=…`.
    ///
    /// # Errors
    /// Where it says none.
    pub fn page(&self) -> Result<String> {
        crate::eventually("the page's address is printed", || {
            let printed = self.printed.lock().map(|printed| printed.clone()).unwrap_or_default();
            let all = format!("{}\n{printed}\n{}", self.ready, self.said());
            let mut words = all.split(|found: char| found.is_whitespace() || "\",".contains(found));
            words
                .find(|word| word.starts_with("http://") && word.contains("/open?code="))
                .map(ToOwned::to_owned)
                .context(all.clone())
        })
    }

    /// Whether it has not ended yet.
    ///
    /// # Errors
    /// Where that cannot be found out.
    pub fn is_running(&mut self) -> Result<bool> {
        Ok(self.child.try_wait()?.is_none())
    }

    /// Sends a signal.
    ///
    /// # Errors
    /// Where the process is gone.
    pub fn signal(&self, signal: Signal) -> Result<()> {
        let pid = Pid::from_raw(i32::try_from(self.child.id())?).context("not a process id")?;
        Ok(kill_process(pid, signal)?)
    }

    /// Kills it, as `kill -9` does, and waits for its end.
    ///
    /// # Errors
    /// Where that fails.
    pub fn kill(mut self) -> Result<()> {
        self.child.kill()?;
        self.child.wait()?;
        Ok(())
    }

    /// Asks it to stop, as a service manager does, and waits for its end; returns the exit code and what it said.
    ///
    /// # Errors
    /// Where it does not stop in time.
    pub fn stop(mut self) -> Result<(i32, String)> {
        self.signal(Signal::TERM)?;
        let status = crate::eventually("the daemon stops", || self.child.try_wait()?.context("still running"))?;
        self.readers.drain(..).for_each(|reader| drop(reader.join()));
        Ok((status.code().unwrap_or(-1), self.said()))
    }

    /// Its resident memory, in bytes.
    ///
    /// # Errors
    /// Where the process is gone.
    pub fn resident_bytes(&self) -> Result<u64> {
        self.memory("VmRSS:")
    }

    /// The most resident memory that it has had since [`Self::reset_peak`], in bytes.
    ///
    /// # Errors
    /// Where the process is gone.
    pub fn peak_bytes(&self) -> Result<u64> {
        self.memory("VmHWM:")
    }

    /// Forgets how much resident memory it has had.
    ///
    /// # Errors
    /// Where the process is gone.
    pub fn reset_peak(&self) -> Result<()> {
        // What proc(5) says of this file: 5 resets the peak.
        Ok(std::fs::write(Path::new("/proc").join(self.child.id().to_string()).join("clear_refs"), "5")?)
    }

    fn memory(&self, name: &str) -> Result<u64> {
        let status = std::fs::read_to_string(Path::new("/proc").join(self.child.id().to_string()).join("status"))?;
        let line = status.lines().find(|line| line.starts_with(name)).with_context(|| format!("no {name}"))?;
        let kib: u64 = line.split_whitespace().nth(1).context("no number")?.parse()?;
        Ok(kib * 1024)
    }
}

/// The processor time that a process has used so far.
///
/// # Errors
/// Where there is no such process.
pub fn cpu_time(pid: u32) -> Result<Duration> {
    let stat = std::fs::read_to_string(Path::new("/proc").join(pid.to_string()).join("stat"))?;
    // The second field is the program's name in brackets, which may hold anything; utime and stime are the 14th and 15th.
    let (_, after) = stat.rsplit_once(')').context("no name")?;
    let ticks: u64 = after.split_whitespace().skip(11).take(2).map(|field| field.parse::<u64>().unwrap_or_default()).sum();
    Ok(Duration::from_secs_f64(ticks as f64 / rustix::param::clock_ticks_per_second() as f64))
}

impl Drop for Daemon {
    fn drop(&mut self) {
        // It may have ended by itself.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}
