//! A disk in memory that remembers in which order it was written, can lose what was not synced, and can fail.

use std::io;
use std::sync::{Arc, Mutex, MutexGuard};

use redb::StorageBackend;

/// One thing that was done to the disk.
#[derive(Debug, Clone)]
pub(super) enum Op {
    Write(u64, Vec<u8>),
    SetLen(u64),
    Sync,
}

/// What to fail, counted in operations of all kinds from now on.
#[derive(Debug, Clone, Copy)]
pub(super) struct Fault {
    pub(super) after: usize,
    pub(super) error: io::ErrorKind,
    /// Whether a failing write or sync takes effect all the same.
    pub(super) takes_effect: bool,
}

#[derive(Debug, Default)]
struct State {
    image: Vec<u8>,
    /// Kept where `is_recording`.
    ops: Vec<Op>,
    is_recording: bool,
    syncs: usize,
    capacity: Option<u64>,
    fault: Option<Fault>,
}

/// The disk; clones are the same one.
#[derive(Debug, Clone, Default)]
pub(super) struct Disk {
    state: Arc<Mutex<State>>,
    gate: Arc<Mutex<()>>,
}

impl Disk {
    /// A disk that holds `image` and records what is done to it.
    pub(super) fn recording(image: Vec<u8>) -> Self {
        let disk = Self::default();
        *disk.state() = State { image, is_recording: true, ..State::default() };
        disk
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap()
    }

    pub(super) fn syncs(&self) -> usize {
        self.state().syncs
    }

    pub(super) fn ops(&self) -> Vec<Op> {
        self.state().ops.clone()
    }

    pub(super) fn op_count(&self) -> usize {
        self.state().ops.len()
    }

    pub(super) fn image(&self) -> Vec<u8> {
        self.state().image.clone()
    }

    pub(super) fn len(&self) -> u64 {
        self.state().image.len() as u64
    }

    pub(super) fn set_capacity(&self, bytes: Option<u64>) {
        self.state().capacity = bytes;
    }

    pub(super) fn set_fault(&self, fault: Option<Fault>) {
        self.state().fault = fault;
    }

    pub(super) fn has_fault(&self) -> bool {
        self.state().fault.is_some()
    }

    /// Lets no sync finish until the guard is dropped.
    pub(super) fn hold_syncs(&self) -> MutexGuard<'_, ()> {
        self.gate.lock().unwrap()
    }

    /// Carries an operation out, or fails.
    fn perform(&self, op: Op) -> io::Result<()> {
        let mut state = self.state();
        let fault = state.step();
        if let Some(fault) = fault
            && !fault.takes_effect
        {
            return Err(fault.error.into());
        }
        let end = match &op {
            Op::Write(offset, data) => offset + data.len() as u64,
            Op::SetLen(len) => *len,
            Op::Sync => 0,
        };
        if state.capacity.is_some_and(|capacity| end > capacity) {
            return Err(io::ErrorKind::StorageFull.into());
        }
        apply(&mut state.image, &op);
        state.syncs += usize::from(matches!(op, Op::Sync));
        if state.is_recording {
            state.ops.push(op);
        }
        fault.map_or(Ok(()), |fault| Err(fault.error.into()))
    }
}

impl State {
    /// Counts down to the fault, which happens once.
    fn step(&mut self) -> Option<Fault> {
        let fault = self.fault.as_mut()?;
        if fault.after == 0 {
            return self.fault.take();
        }
        fault.after -= 1;
        None
    }
}

/// Changes an image as an operation does.
pub(super) fn apply(image: &mut Vec<u8>, op: &Op) {
    match op {
        Op::Write(offset, data) => {
            let (start, end) = (*offset as usize, *offset as usize + data.len());
            if image.len() < end {
                image.resize(end, 0);
            }
            image[start..end].copy_from_slice(data);
        }
        Op::SetLen(len) => image.resize(*len as usize, 0),
        Op::Sync => {}
    }
}

impl StorageBackend for Disk {
    fn len(&self) -> io::Result<u64> {
        Ok(Disk::len(self))
    }

    fn read(&self, offset: u64, out: &mut [u8]) -> io::Result<()> {
        let mut state = self.state();
        if let Some(fault) = state.step() {
            return Err(fault.error.into());
        }
        let from = offset as usize;
        let bytes = state.image.get(from..from + out.len()).ok_or(io::ErrorKind::UnexpectedEof)?;
        out.copy_from_slice(bytes);
        Ok(())
    }

    fn set_len(&self, len: u64) -> io::Result<()> {
        self.perform(Op::SetLen(len))
    }

    fn sync_data(&self) -> io::Result<()> {
        drop(self.gate.lock());
        self.perform(Op::Sync)
    }

    fn write(&self, offset: u64, data: &[u8]) -> io::Result<()> {
        self.perform(Op::Write(offset, data.to_vec()))
    }
}
