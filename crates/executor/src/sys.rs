//! What the operating system is asked that std does not ask: processes that cannot be mistaken for others, and a clock that also
//! counts while the machine sleeps. All of it is Linux, and all of it is here.

use std::fs;
use std::io;
use std::os::fd::OwnedFd;
use std::time::Duration;

use rustix::process::{Pid, PidfdFlags, Signal, pidfd_open, pidfd_send_signal};

/// A process that stays the one meant, even when it ends and its id is used again.
#[derive(Debug)]
pub(crate) struct Process {
    /// Becomes readable when the process ends.
    pub(crate) handle: OwnedFd,
}

impl Process {
    /// Opens the process that has this id now.
    pub(crate) fn open(pid: u32) -> io::Result<Self> {
        let raw = i32::try_from(pid).ok().and_then(Pid::from_raw).ok_or(io::ErrorKind::InvalidInput)?;
        Ok(Self { handle: pidfd_open(raw, PidfdFlags::NONBLOCK)? })
    }

    /// Sends a signal; a process that has ended is no error.
    pub(crate) fn signal(&self, signal: Signal) -> io::Result<()> {
        match pidfd_send_signal(&self.handle, signal) {
            Ok(()) | Err(rustix::io::Errno::SRCH) => Ok(()),
            Err(error) => Err(error.into()),
        }
    }
}

/// Time since the machine started, sleep included, so that what an executor heard before a long sleep counts as old after it.
pub(crate) fn awake() -> Duration {
    let now = rustix::time::clock_gettime(rustix::time::ClockId::Boottime);
    Duration::new(u64::try_from(now.tv_sec).unwrap_or_default(), u32::try_from(now.tv_nsec).unwrap_or_default())
}

/// What tells one start of the machine from the next; empty where the system does not say.
pub(crate) fn boot_id() -> String {
    fs::read_to_string("/proc/sys/kernel/random/boot_id").map(|text| text.trim().to_owned()).unwrap_or_default()
}

/// The ids of all processes that one can see.
fn processes() -> impl Iterator<Item = u32> {
    let entries = fs::read_dir("/proc").ok().into_iter().flatten();
    entries.filter_map(|entry| entry.ok()?.file_name().to_str()?.parse().ok())
}

/// The processes whose parent is `parent`. Read from `/proc/PID/stat`, because `/proc/PID/task/PID/children` is not in every kernel.
pub(crate) fn children_of(parent: u32) -> Vec<Pid> {
    let parent_of = |pid: u32| -> Option<u32> {
        let stat = fs::read(format!("/proc/{pid}/stat")).ok()?;
        // The second field is the program's name in parentheses and may hold anything, so count from its end: state, then parent.
        let after = stat.iter().rposition(|&byte| byte == b')')? + 1;
        std::str::from_utf8(&stat[after..]).ok()?.split_ascii_whitespace().nth(1)?.parse().ok()
    };
    let children = processes().filter(|&pid| parent_of(pid) == Some(parent));
    children.filter_map(|pid| i32::try_from(pid).ok().and_then(Pid::from_raw)).collect()
}

/// Kills every process whose environment holds all of `marks` (`NAME=value`), and returns how many. A process is opened before its
/// environment is read, so that no other can be meant; one that has changed its environment, or belongs to someone else, is not found.
pub(crate) fn kill_marked(marks: &[String]) -> usize {
    let marked = |pid: u32| -> Option<Process> {
        let process = Process::open(pid).ok()?;
        let environment = fs::read(format!("/proc/{pid}/environ")).ok()?;
        let holds = |mark: &String| environment.split(|&byte| byte == 0).any(|variable| variable == mark.as_bytes());
        marks.iter().all(holds).then_some(process)
    };
    processes().filter_map(marked).filter(|process| process.signal(Signal::KILL).is_ok()).count()
}

/// Whether some process holds the exclusive lock on the file.
pub(crate) fn is_locked(file: &fs::File) -> io::Result<bool> {
    match file.try_lock_shared() {
        Ok(()) => file.unlock().map(|()| false),
        Err(fs::TryLockError::WouldBlock) => Ok(true),
        Err(fs::TryLockError::Error(error)) => Err(error),
    }
}
