//! What this executor holds: which attempts, how far they are, and whether they are to stop. The one place that says how many slots
//! are free.

use std::collections::HashMap;
use std::sync::atomic::{AtomicBool, AtomicU8, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use octavius_core::ExecutionId;
use tokio::sync::{Notify, watch};

use crate::journal::StopCause;
use crate::runner::Held;

/// An attempt's page. Given up by dropping it.
#[derive(Debug)]
pub(crate) struct Page {
    pub(crate) held: Held,
    stop: watch::Receiver<Option<StopCause>>,
    over: Arc<AtomicBool>,
    book: Book,
}

#[derive(Debug)]
struct Line {
    held: Held,
    stop: watch::Sender<Option<StopCause>>,
    over: Arc<AtomicBool>,
}

/// Why an attempt was not entered.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum NotEntered {
    /// It is in the book.
    Known,
    /// Every slot is taken.
    Full,
}

/// What this executor holds. A handle, cheap to clone.
#[derive(Debug, Clone)]
pub(crate) struct Book(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    capacity: usize,
    lines: Mutex<HashMap<(ExecutionId, u32), Line>>,
    freed: Notify,
    /// Why nothing more can be taken here at present, whatever the slots say.
    closed: AtomicU8,
}

/// Why nothing is taken.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Closed(u8);

impl Closed {
    /// Nothing can be made ready.
    pub(crate) const UNREADY: Self = Self(1);
    /// There is no room for output.
    pub(crate) const SPOOL: Self = Self(2);
}

impl Book {
    /// An empty book.
    pub(crate) fn new(capacity: u32) -> Self {
        let capacity = usize::try_from(capacity).unwrap_or(usize::MAX);
        Self(Arc::new(Inner { capacity, lines: Mutex::default(), freed: Notify::new(), closed: AtomicU8::new(0) }))
    }

    fn lines(&self) -> MutexGuard<'_, HashMap<(ExecutionId, u32), Line>> {
        self.0.lines.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn taken(lines: &HashMap<(ExecutionId, u32), Line>) -> usize {
        // An attempt whose process is gone needs no slot while its last report is under way: the controller may answer that report
        // and send the next assignment in any order.
        lines.values().filter(|line| !line.over.load(Ordering::Relaxed)).count()
    }

    /// Enters what a controller assigned, if there is room.
    pub(crate) fn enter(&self, held: Held) -> Result<Page, NotEntered> {
        self.enter_within(held, self.0.capacity)
    }

    /// Enters what was found from before, whether there is room or not.
    pub(crate) fn enter_found(&self, held: Held) -> Result<Page, NotEntered> {
        self.enter_within(held, usize::MAX)
    }

    fn enter_within(&self, held: Held, capacity: usize) -> Result<Page, NotEntered> {
        let mut lines = self.lines();
        let key = (held.id, held.fence.attempt);
        if lines.contains_key(&key) {
            return Err(NotEntered::Known);
        }
        if Self::taken(&lines) >= capacity {
            return Err(NotEntered::Full);
        }
        let (sender, stop) = watch::channel(None);
        let over = Arc::new(AtomicBool::new(false));
        lines.insert(key, Line { held, stop: sender, over: Arc::clone(&over) });
        Ok(Page { held, stop, over, book: self.clone() })
    }

    /// Notes that an attempt is to stop; false if it is not in the book.
    pub(crate) fn stop(&self, id: ExecutionId, attempt: u32, cause: StopCause) -> bool {
        let lines = self.lines();
        let Some(line) = lines.get(&(id, attempt)) else { return false };
        line.stop.send_if_modified(|known| {
            let stronger = known.is_none_or(|known| known < cause);
            if stronger {
                *known = Some(cause);
            }
            stronger
        });
        true
    }

    /// Everything that is held.
    pub(crate) fn held(&self) -> Vec<Held> {
        self.lines().values().map(|line| line.held).collect()
    }

    /// Slots that are free; none while the executor is closed, so that it is given nothing.
    pub(crate) fn free(&self) -> u32 {
        if self.0.closed.load(Ordering::Relaxed) != 0 {
            return 0;
        }
        let free = self.0.capacity.saturating_sub(Self::taken(&self.lines()));
        u32::try_from(free).unwrap_or(u32::MAX)
    }

    /// From here on no slot is free, until [`Book::open_again`] for the same reason. False if that was so already.
    pub(crate) fn close(&self, why: Closed) -> bool {
        let newly = self.0.closed.fetch_or(why.0, Ordering::Relaxed) & why.0 == 0;
        self.tell();
        newly
    }

    /// Ends what [`Book::close`] began.
    pub(crate) fn open_again(&self, why: Closed) {
        self.0.closed.fetch_and(!why.0, Ordering::Relaxed);
        self.tell();
    }

    /// Has the controller told how many slots are free.
    pub(crate) fn tell(&self) {
        self.0.freed.notify_one();
    }

    /// Waits until the number of free slots is to be told again: above all, when one has become free.
    pub(crate) async fn freed(&self) {
        self.0.freed.notified().await;
    }
}

impl Page {
    /// The book that it is in.
    pub(crate) fn book(&self) -> &Book {
        &self.book
    }

    /// A stop that was asked for.
    pub(crate) fn stop(&self) -> Option<StopCause> {
        *self.stop.borrow()
    }

    /// Told of every change of [`Page::stop`].
    pub(crate) fn stops(&self) -> watch::Receiver<Option<StopCause>> {
        self.stop.clone()
    }

    /// Notes that nothing runs any more, which frees the slot.
    pub(crate) fn set_over(&self) {
        if !self.over.swap(true, Ordering::Relaxed) {
            self.book.tell();
        }
    }
}

impl Drop for Page {
    fn drop(&mut self) {
        self.set_over();
        self.book.lines().remove(&(self.held.id, self.held.fence.attempt));
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use octavius_core::execution::Fence;

    fn held(bits: u128, attempt: u32) -> Held {
        Held { id: ExecutionId::from_bits(bits), fence: Fence { attempt, nonce: 9 } }
    }

    #[test]
    fn slots_are_counted_from_entering_to_being_over() {
        let book = Book::new(2);
        let one = book.enter(held(1, 1)).unwrap();
        assert_eq!(book.enter(held(1, 1)).unwrap_err(), NotEntered::Known);
        let found = book.enter_found(held(2, 1)).unwrap();
        assert_eq!((book.free(), book.enter(held(3, 1)).unwrap_err()), (0, NotEntered::Full));
        let _beyond = book.enter_found(held(4, 1)).unwrap();
        one.set_over();
        assert_eq!((book.free(), book.held().len()), (0, 3));
        found.set_over();
        assert_eq!(book.free(), 1);
        drop(one);
        assert_eq!((book.free(), book.held().len()), (1, 2));
        let unready = Closed::UNREADY;
        assert_eq!((book.close(unready), book.close(unready), book.close(Closed::SPOOL), book.free()), (true, false, true, 0));
        book.open_again(unready);
        assert_eq!(book.free(), 0);
        book.open_again(Closed::SPOOL);
        assert_eq!(book.free(), 1);
    }

    #[test]
    fn a_stronger_stop_replaces_a_weaker_one_and_not_the_other_way() {
        let book = Book::new(1);
        let page = book.enter(held(1, 1)).unwrap();
        assert!(!book.stop(ExecutionId::from_bits(1), 2, StopCause::Fenced));
        assert_eq!(page.stop(), None);
        for cause in [StopCause::Cancelled, StopCause::Fenced, StopCause::Cancelled] {
            assert!(book.stop(ExecutionId::from_bits(1), 1, cause));
        }
        assert_eq!(page.stop(), Some(StopCause::Fenced));
    }
}
