//! The shim: a small process between the executor and a job, so that the executor can die and come back while the job runs on.
//!
//! `octavius shim RUN_DIR` starts the job that `RUN_DIR/journal` describes, at most once however often it is called, watches over it,
//! holds it to its timeout, stops it on SIGTERM, and writes how it ended into the journal. Between a thousand of them and a busy
//! machine stands only how little each does: one thread, no runtime, and on the ordinary way no look around in `/proc`.
//!
//! A job is over when its command is over: what it left running in the background is killed then. The shim finds those processes
//! because it is their "subreaper", the one to whom the kernel gives children whose parents have died, whatever sessions and process
//! groups they made for themselves.
//!
//! The job writes into a pipe and the shim into the file. Were the file itself the job's standard output, `echo x > /dev/stderr` would
//! cut it to nothing.

use std::ffi::OsString;
use std::fs::{self, File, OpenOptions};
use std::io::{self, PipeReader, Read as _, Write as _};
use std::os::unix::fs::MetadataExt as _;
use std::os::unix::net::UnixStream;
use std::os::unix::process::CommandExt as _;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::io::Errno;
use rustix::process::{Pid, Signal, WaitId, WaitIdOptions, WaitOptions, WaitStatus, kill_process, kill_process_group};
use signal_hook::consts::{SIGCHLD, SIGTERM};

use crate::carry::Carry;
use crate::journal::{Cause, Exit, JOURNAL, Journal, Spec, WORK, line};
use crate::sys;

/// The job is over and the journal says how.
const DONE: i32 = 0;
/// It was not called as `shim RUN_DIR`.
pub(crate) const USAGE: i32 = 64;
/// Another shim has, or had, this run folder; this one did nothing.
pub(crate) const ALREADY_STARTED: i32 = 91;
/// The run folder is not usable; nothing was started.
const NOT_USABLE: i32 = 92;
/// The job is over but that could not be written into the journal.
const NOT_WRITTEN: i32 = 93;

/// Another process may hold the lock for a moment, to see whether someone else does.
const LOCK_PATIENCE: Duration = Duration::from_secs(1);
/// How long killed processes may take to go. One that hangs in the kernel, on a dead network drive, is left behind after that.
const KILL_PATIENCE: Duration = Duration::from_secs(10);

/// How long the last line is tried to be written to a disk that is full, and how often.
const END_PATIENCE: Duration = Duration::from_secs(600);
const END_AGAIN: Duration = Duration::from_secs(1);

/// Runs the shim; `arguments` are those after `shim`.
pub(crate) fn main(arguments: &[OsString]) -> i32 {
    let [folder] = arguments else {
        return complain(USAGE, &"the shim is called as `octavius shim RUN_DIR`, by an executor");
    };
    // First of all, so that from here on no signal to the executor's terminal or process group meets the shim. It fails where the
    // shim leads a group already, which is as good.
    let _ = rustix::process::setsid();
    match run(Path::new(folder)) {
        Ok(code) => code,
        Err(error) => complain(NOT_USABLE, &format_args!("run folder {}: {error}", folder.display())),
    }
}

#[expect(clippy::print_stderr, reason = "the shim has no other voice, and an executor gives it no standard error")]
fn complain(code: i32, message: &dyn std::fmt::Display) -> i32 {
    eprintln!("{message}");
    code
}

fn run(folder: &Path) -> io::Result<i32> {
    let signals = Signals::catch()?;
    std::env::set_current_dir(folder)?;
    let mut file = OpenOptions::new().read(true).append(true).open(JOURNAL)?;
    if !acquire(&file)? {
        return Ok(ALREADY_STARTED);
    }
    let mut bytes = Vec::new();
    file.read_to_end(&mut bytes)?;
    let Journal { spec, started, .. } = Journal::read(&bytes).map_err(io::Error::other)?;
    if started {
        return Ok(ALREADY_STARTED);
    }
    file.write_all(format!("{}\n", std::process::id()).as_bytes())?;
    // Nothing may go back from here on: what fails now is how the job ended.
    let started_at_ms = now_ms();
    let exit = start(&spec).map_or_else(Exit::start_failed, |(job, output)| watch(job, output, &spec, &signals));
    let exit = Exit { started_at_ms, ended_at_ms: now_ms(), ..exit };
    let written = line(&exit).map_err(io::Error::from);
    match written.and_then(|line| write_when_there_is_room(&mut file, &line, END_PATIENCE, END_AGAIN)) {
        Ok(()) => Ok(DONE),
        Err(error) => Ok(complain(NOT_WRITTEN, &format_args!("{JOURNAL}: {error}"))),
    }
}

/// Writes the last line, waiting for room where the disk is full: how the job ended is known here and nowhere else, and as long as this
/// process waits it holds the lock, so that nobody takes the job for lost.
fn write_when_there_is_room(file: &mut impl io::Write, mut line: &[u8], patience: Duration, again: Duration) -> io::Result<()> {
    let begun = Instant::now();
    while !line.is_empty() {
        match file.write(line) {
            Ok(0) => return Err(io::ErrorKind::WriteZero.into()),
            Ok(count) => line = &line[count..],
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) if is_full(&error) && begun.elapsed() < patience => std::thread::sleep(again),
            Err(error) => return Err(error),
        }
    }
    Ok(())
}

fn is_full(error: &io::Error) -> bool {
    matches!(error.kind(), io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded)
}

fn acquire(lock: &File) -> io::Result<bool> {
    let begun = Instant::now();
    loop {
        match lock.try_lock() {
            Ok(()) => return Ok(true),
            Err(fs::TryLockError::WouldBlock) if begun.elapsed() < LOCK_PATIENCE => std::thread::sleep(Duration::from_millis(5)),
            Err(fs::TryLockError::WouldBlock) => return Ok(false),
            Err(fs::TryLockError::Error(error)) => return Err(error),
        }
    }
}

fn now_ms() -> u64 {
    let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    u64::try_from(since.as_millis()).unwrap_or(u64::MAX)
}

/// SIGCHLD and SIGTERM wake a poll; SIGTERM is remembered.
struct Signals {
    wake: UnixStream,
    stop: Arc<AtomicBool>,
}

impl Signals {
    fn catch() -> io::Result<Self> {
        let (wake, waker) = UnixStream::pair()?;
        wake.set_nonblocking(true)?;
        let stop = Arc::new(AtomicBool::new(false));
        signal_hook::flag::register(SIGTERM, Arc::clone(&stop))?;
        signal_hook::low_level::pipe::register(SIGTERM, waker.try_clone()?)?;
        signal_hook::low_level::pipe::register(SIGCHLD, waker)?;
        Ok(Self { wake, stop })
    }

    fn stop_asked(&self) -> bool {
        self.stop.load(Ordering::SeqCst)
    }

    /// Waits for a signal, or for output where some is waited for, at most so long.
    fn wait(&self, longest: Duration, output: Option<&PipeReader>) {
        let seconds = i64::try_from(longest.as_secs()).unwrap_or(i64::MAX);
        let timeout = Timespec { tv_sec: seconds, tv_nsec: longest.subsec_nanos().into() };
        let signal = PollFd::new(&self.wake, PollFlags::IN);
        let ready = match output {
            Some(pipe) => poll(&mut [signal.clone(), PollFd::new(pipe, PollFlags::IN)], Some(&timeout)),
            None => poll(&mut [signal], Some(&timeout)),
        };
        if ready.is_ok_and(|count| count > 0) {
            let mut bytes = [0; 64];
            let _ = (&self.wake).read(&mut bytes);
        }
    }
}

/// Starts the job: in its own process group, so that its group can be killed without the shim.
fn start(spec: &Spec) -> Result<(Pid, Carry), String> {
    let (name, arguments) = spec.command.split_first().ok_or("the job has no command")?;
    let program = find(name, spec.env.get("PATH").map(String::as_str).unwrap_or_default())?;
    let make = || -> io::Result<_> {
        let (reader, writer) = io::pipe()?;
        let patience = Duration::from_millis(spec.room_patience_ms);
        Ok((writer.try_clone()?, writer, Carry::new(reader, spec.room, patience)?))
    };
    let (stdout, stderr, output) = make().map_err(|error| format!("cannot take the job's output: {error}"))?;
    rustix::process::set_child_subreaper(Some(rustix::process::getpid()))
        .map_err(|error| format!("cannot watch the job: {error}"))?;
    let mut command = Command::new(&program);
    command.arg0(name).args(arguments).env_clear().envs(&spec.env).current_dir(WORK).process_group(0);
    command.stdin(Stdio::null()).stdout(stdout).stderr(stderr);
    let child = command.spawn().map_err(|error| cannot_run(&program, &error))?;
    Ok((Pid::from_child(&child), output))
}

/// Looks a program up in PATH, here and not by the kernel's `execvp`, for the sake of a clear message and of the faster `posix_spawn`.
fn find(name: &str, path: &str) -> Result<PathBuf, String> {
    if name.contains('/') {
        return Ok(PathBuf::from(name));
    }
    let mut unusable = None;
    for folder in path.split(':').filter(|folder| folder.starts_with('/')) {
        let candidate = Path::new(folder).join(name);
        match fs::metadata(&candidate) {
            Ok(found) if found.is_file() && found.mode() & 0o111 != 0 => return Ok(candidate),
            Ok(found) if found.is_file() => unusable = unusable.or(Some(candidate)),
            Ok(_) | Err(_) => {}
        }
    }
    Err(match unusable {
        Some(candidate) => format!("program is not executable: {}", candidate.display()),
        None => format!("program not found: {name} is in no folder of PATH ({path})"),
    })
}

fn cannot_run(program: &Path, error: &io::Error) -> String {
    let shown = program.display();
    match error.kind() {
        // A relative program is looked for in the job's own folder, which is empty.
        io::ErrorKind::NotFound if !Path::new(WORK).join(program).exists() => format!("program not found: {shown}"),
        io::ErrorKind::NotFound => format!("cannot start {shown}: the interpreter that it names was not found"),
        io::ErrorKind::PermissionDenied => format!("program is not executable: {shown}"),
        io::ErrorKind::ArgumentListTooLong => format!("cannot start {shown}: its arguments and environment are too large"),
        _ => format!("cannot start {shown}: {error}"),
    }
}

/// Waits for the job's end and brings it about where it must; nothing of the job is left afterwards.
fn watch(job: Pid, mut output: Carry, spec: &Spec, signals: &Signals) -> Exit {
    let deadline = Instant::now().checked_add(Duration::from_millis(spec.timeout_ms));
    let grace = Duration::from_millis(spec.kill_grace_ms);
    let mut cause = Cause::Exited;
    let mut kill_at: Option<Instant> = None;
    let mut status = None;
    let mut longest = None;
    loop {
        let now = Instant::now();
        let next = kill_at.or(deadline).map_or(Duration::from_secs(3600), |at| at.saturating_duration_since(now));
        signals.wait(longest.map_or(next, |longest| next.min(longest)), output.wanted());
        if status.is_some() || has_ended(job) {
            break;
        }
        reap(job, &mut status);
        let _ = output.carry(); // what fails is tried again
        longest = output.again();
        let now = Instant::now();
        // A job that has just been waited for has ended by itself, and its id, which is its group's, may be another's by now.
        if kill_at.is_none() && status.is_none() {
            let over = deadline.is_some_and(|deadline| now >= deadline);
            if over || signals.stop_asked() {
                cause = if signals.stop_asked() { Cause::Stopped } else { Cause::TimedOut };
                kill_at = Some(now + grace);
                let _ = kill_process_group(job, Signal::TERM);
                let _ = kill_process_group(job, Signal::CONT); // a job that was suspended hears it, too
            }
        }
        if kill_at.is_some_and(|at| now >= at) {
            break;
        }
    }
    if status.is_none() {
        // The job's process has not been waited for, so no other can have got its id, which is that of its group.
        let _ = kill_process_group(job, Signal::KILL);
    }
    kill_rest(job, &mut status, signals);
    let message =
        output.finish(KILL_PATIENCE).err().map(|what| format!("the end of the output is lost: {what}")).unwrap_or_default();
    let (code, signal) = status.map_or((None, None), |status| (status.exit_status(), status.terminating_signal()));
    Exit { cause, code, signal, message, started_at_ms: 0, ended_at_ms: 0 }
}

/// Whether the job's own process has ended; it stays there to be waited for.
fn has_ended(job: Pid) -> bool {
    let peek = WaitIdOptions::EXITED | WaitIdOptions::NOHANG | WaitIdOptions::NOWAIT;
    !matches!(rustix::process::waitid(WaitId::Pid(job), peek), Ok(None) | Err(Errno::INTR))
}

/// Takes note of children that have ended; true if there are others.
fn reap(job: Pid, status: &mut Option<WaitStatus>) -> bool {
    loop {
        match rustix::process::wait(WaitOptions::NOHANG) {
            Ok(Some((pid, ended))) if pid == job => *status = Some(ended),
            Ok(Some(_)) | Err(Errno::INTR) => {}
            Ok(None) => return true,
            Err(_) => return false,
        }
    }
}

/// Kills what is left of the job: its children, then theirs, who become the shim's own, until there are none.
fn kill_rest(job: Pid, status: &mut Option<WaitStatus>, signals: &Signals) {
    let begun = Instant::now();
    let me = std::process::id();
    while reap(job, status) && begun.elapsed() < KILL_PATIENCE {
        for child in sys::children_of(me) {
            let _ = kill_process(child, Signal::KILL);
        }
        signals.wait(Duration::from_millis(50), None);
    }
}

/// The name of a signal's number.
pub(crate) fn signal_name(number: i32) -> &'static str {
    signal_hook::low_level::signal_name(number).unwrap_or("a signal")
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A disk with no room for some writes, which then takes four bytes at a time.
    struct Disk {
        full: u32,
        holds: Vec<u8>,
    }

    impl io::Write for Disk {
        fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
            if self.full > 0 {
                self.full -= 1;
                return Err(io::ErrorKind::StorageFull.into());
            }
            let taken = bytes.len().min(4);
            self.holds.extend_from_slice(&bytes[..taken]);
            Ok(taken)
        }

        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }

    #[test]
    fn the_last_line_waits_for_room_on_the_disk_and_not_for_ever() {
        let mut disk = Disk { full: 3, holds: Vec::new() };
        write_when_there_is_room(&mut disk, b"how it ended\n", END_PATIENCE, Duration::ZERO).unwrap();
        assert_eq!(disk.holds, b"how it ended\n");
        disk.full = u32::MAX;
        let error = write_when_there_is_room(&mut disk, b"x", Duration::ZERO, Duration::ZERO).unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::StorageFull);
    }
}
