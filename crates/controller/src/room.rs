//! How full the store is, and what is therefore not taken any more. A store that has run full takes nothing, outcomes included; so what can
//! wait is refused long before: first log bytes, which executors keep in their own files meanwhile, then new work.

use std::sync::atomic::{AtomicU8, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use octavius_core::Timing;
use octavius_proto::{Fault, reason};
use octavius_store::{Store, Usage};
use tokio_util::sync::CancellationToken;
use tonic::Code;

/// From so many percent of the quota on, no log bytes are taken.
const NO_LOGS: u64 = 70;

/// From so many percent on, no new work is taken either: executions, catalogues.
const NO_WORK: u64 = 85;

/// A file of so many percent of the quota is full, whatever is free within it: the next large write may not find a place there.
const BRIM: u64 = 97;

/// So many percent below its limit, something is taken again, so that a store at the limit does not take and refuse by turns.
const BAND: u64 = 5;

/// What is taken.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Level {
    All,
    NoLogs,
    NoWork,
}

impl Level {
    /// The level at this fill, in percent, that follows `self`.
    fn next(self, fill: u64) -> Self {
        let up = if fill >= NO_WORK {
            Self::NoWork
        } else if fill >= NO_LOGS {
            Self::NoLogs
        } else {
            Self::All
        };
        let down = if fill + BAND >= NO_WORK {
            Self::NoWork
        } else if fill + BAND >= NO_LOGS {
            Self::NoLogs
        } else {
            Self::All
        };
        if up > self { up } else { self.min(down) }
    }
}

/// How full a store is, in percent of its quota. What is free within its file counts as free: the store uses that before the file grows.
/// Where only the disk sets a bound, it is full or it is not.
fn fill(usage: Usage) -> u64 {
    match usage.quota_bytes {
        _ if usage.full => 100,
        Some(quota) if quota > 0 => {
            // The file as a whole is what etcd holds against the quota: close to it, what is free within counts no more.
            let of = |bytes: u64| bytes.saturating_mul(100) / quota;
            let allocated = of(usage.allocated_bytes);
            if allocated >= BRIM { allocated } else { of(usage.used_bytes) }
        }
        _ => 0,
    }
}

/// What this controller knows of the room in the store. Read at every call, without waiting.
#[derive(Debug, Default)]
pub(crate) struct Room {
    /// 0 to 2, as in [`Level`].
    level: AtomicU8,
    last: Mutex<Option<Usage>>,
}

impl Room {
    /// Looks at the store every so often until `shutdown`.
    pub(crate) async fn watch(self: Arc<Self>, store: Arc<dyn Store>, timing: Timing, shutdown: CancellationToken) {
        let look = async {
            loop {
                match store.usage().await {
                    Ok(usage) => self.note(usage),
                    // What was known last stands; that the store is away is told by whoever needs it.
                    Err(error) => tracing::debug!(%error, "how full the store is"),
                }
                tokio::time::sleep(timing.reconcile_interval).await;
            }
        };
        tokio::select! {
            () = look => {}
            () = shutdown.cancelled() => {}
        }
    }

    /// How full the store was when it was last looked at, in percent.
    pub(crate) fn percent(&self) -> Option<u64> {
        self.last.lock().unwrap_or_else(PoisonError::into_inner).map(fill)
    }

    fn level(&self) -> Level {
        match self.level.load(Ordering::Relaxed) {
            0 => Level::All,
            1 => Level::NoLogs,
            _ => Level::NoWork,
        }
    }

    fn note(&self, usage: Usage) {
        *self.last.lock().unwrap_or_else(PoisonError::into_inner) = Some(usage);
        let (before, percent) = (self.level(), fill(usage));
        let level = before.next(percent);
        if level == before {
            return;
        }
        self.level.store(level as u8, Ordering::Relaxed);
        match level {
            Level::All => tracing::info!(percent, "the store has room again: logs and new work are taken"),
            Level::NoLogs if level < before => {
                tracing::warn!(percent, "the store has room for new work again; log bytes are not taken yet");
            }
            Level::NoLogs => {
                tracing::warn!(percent, limit = NO_LOGS, "the store fills up: log bytes are not taken, executors keep them");
            }
            Level::NoWork => {
                tracing::error!(percent, limit = NO_WORK, "the store is nearly full: neither log bytes nor new work are taken");
            }
        }
    }

    /// How full the store was when it was looked at last, and that in percent; none before that.
    pub(crate) fn seen(&self) -> Option<(Usage, u64)> {
        let last = *self.last.lock().unwrap_or_else(PoisonError::into_inner);
        last.map(|usage| (usage, fill(usage)))
    }

    /// Whether log bytes are taken.
    pub(crate) fn for_logs(&self) -> Result<(), Fault> {
        if self.level() < Level::NoLogs { Ok(()) } else { Err(self.refusal("log bytes are", NO_LOGS)) }
    }

    /// Whether new work is taken: executions, catalogues.
    pub(crate) fn for_work(&self) -> Result<(), Fault> {
        if self.level() < Level::NoWork { Ok(()) } else { Err(self.refusal("new work is", NO_WORK)) }
    }

    fn refusal(&self, what: &str, limit: u64) -> Fault {
        let last = *self.last.lock().unwrap_or_else(PoisonError::into_inner);
        let percent = last.map_or(100, fill);
        let message = format!(
            "the controller's store is {percent}% full, and {what} not taken from {limit}% until it is below {}%: \
             keep less (shorten the retention), or raise the store's quota",
            limit - BAND
        );
        Fault::new(Code::ResourceExhausted, reason::STORE_FULL, message).with("percent", percent).with("limit", limit)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn usage(used: u64) -> Usage {
        Usage { allocated_bytes: 95, used_bytes: used, quota_bytes: Some(100), full: false }
    }

    #[test]
    fn levels_rise_at_their_limits_and_fall_below_them() {
        let room = Room::default();
        for (used, logs, work) in [
            (69, true, true),
            (70, false, true),
            (84, false, true),
            (66, false, true),
            (85, false, false),
            (80, false, false),
            (79, false, true),
            (64, true, true),
            (99, false, false),
            (10, true, true),
        ] {
            room.note(usage(used));
            assert_eq!((room.for_logs().is_ok(), room.for_work().is_ok()), (logs, work), "{used}");
        }
    }

    #[test]
    fn a_refusal_says_how_full_it_is_and_what_to_do() {
        let room = Room::default();
        room.note(usage(90));
        let fault = room.for_work().unwrap_err();
        assert_eq!((fault.code, fault.reason.as_str()), (Code::ResourceExhausted, reason::STORE_FULL));
        assert_eq!((fault.fact("percent"), fault.fact("limit")), (Some("90"), Some("85")));
        assert!(fault.message.contains("90% full") && fault.message.contains("retention"), "{fault}");
    }

    #[test]
    fn without_a_quota_only_full_is_full() {
        let unbounded = Usage { quota_bytes: None, ..usage(u64::MAX) };
        assert_eq!((fill(unbounded), fill(Usage { full: true, ..unbounded }), fill(usage(33))), (0, 100, 33));
    }
}
