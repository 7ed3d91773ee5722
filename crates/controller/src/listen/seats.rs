//! How many connections there may be. One by which no good token has come yet is a stranger's, and gives way, the oldest first, when
//! another comes for which there is no room; one by which a token came stays. So whoever opens thousands of connections displaces their own
//! strangers, and those who show a token are served beside them, from the same address too.

use std::collections::{BTreeMap, HashMap};
use std::net::{IpAddr, Ipv6Addr, SocketAddr};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};
use std::task::{Context, Poll};

use futures::task::AtomicWaker;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};

/// Strangers of one address: enough for a health check, a fleet of executors that comes back at once, and a flood to be held in.
const STRANGERS_PER_PEER: usize = 256;

/// Connections of one address in all. An executor has one or two, a person at a command line one for a moment; behind one address may stand
/// a whole office, a cluster, or a load balancer that shows none but its own.
const PER_PEER: usize = 8192;

/// File descriptors that are not for connections: the store's, the archive's, the metrics'. A quarter of all, where there are few.
const RESERVED: usize = 256;

/// Calls under way by one connection of what takes no token: health checks and reflection, each of which a client has one or two of.
const PUBLIC_AT_ONCE: usize = 16;

/// How many connections there may be.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Limits {
    strangers_per_peer: usize,
    per_peer: usize,
    total: usize,
}

impl Limits {
    /// As many as this process may have files open, but for what else it needs them for; one address never takes all of it.
    pub(super) fn of_this_process() -> Self {
        let may = rustix::process::getrlimit(rustix::process::Resource::Nofile).current;
        Self::of(may.and_then(|may| usize::try_from(may).ok()).unwrap_or(usize::MAX))
    }

    fn of(files: usize) -> Self {
        let total = files - RESERVED.min(files / 4);
        let per_peer = PER_PEER.min(total - total / 4);
        Self { strangers_per_peer: STRANGERS_PER_PEER.min(per_peer / 2), per_peer, total }
    }
}

/// Who has a connection.
#[derive(Debug)]
pub(super) struct Seats {
    limits: Limits,
    state: Mutex<State>,
}

#[derive(Debug, Default)]
struct State {
    next: u64,
    total: usize,
    /// Every stranger, in the order in which they came.
    strangers: BTreeMap<u64, Weak<Seat>>,
    peers: HashMap<IpAddr, Of>,
}

/// Those of one address.
#[derive(Debug, Default)]
struct Of {
    all: usize,
    strangers: BTreeMap<u64, Weak<Seat>>,
}

/// A connection's place. It is free again when this is dropped.
#[derive(Debug)]
pub(crate) struct Seat {
    seats: Arc<Seats>,
    number: u64,
    address: SocketAddr,
    known: AtomicBool,
    closed: AtomicBool,
    waker: AtomicWaker,
    public: Arc<Semaphore>,
}

impl Seats {
    pub(super) fn new(limits: Limits) -> Arc<Self> {
        Arc::new(Self { limits, state: Mutex::default() })
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// A place for a connection from this address, if need be a stranger's. None where all are taken by those who are known.
    pub(super) fn take(self: &Arc<Self>, address: SocketAddr) -> Option<Arc<Seat>> {
        let Limits { strangers_per_peer, per_peer, total } = self.limits;
        let peer = peer_of(address.ip());
        let _gone; // let go of when the lock is no longer held: it may be the last one
        let mut state = self.lock();
        let of = state.peers.get(&peer);
        let (all, strangers) = of.map_or((0, 0), |of| (of.all, of.strangers.len()));
        let oldest = of.and_then(|of| of.strangers.keys().next().copied());
        if strangers >= strangers_per_peer || all >= per_peer {
            _gone = state.close(oldest?);
        } else if state.total >= total {
            // rather one of the address that asks for more than another's
            let oldest = oldest.or_else(|| state.strangers.keys().next().copied());
            _gone = state.close(oldest?);
        }
        let number = state.next;
        state.next += 1;
        let seat = Arc::new(Seat {
            seats: Arc::clone(self),
            number,
            address,
            known: AtomicBool::new(false),
            closed: AtomicBool::new(false),
            waker: AtomicWaker::new(),
            public: Arc::new(Semaphore::new(PUBLIC_AT_ONCE)),
        });
        state.strangers.insert(number, Arc::downgrade(&seat));
        let of = state.peers.entry(peer).or_default();
        of.strangers.insert(number, Arc::downgrade(&seat));
        of.all += 1;
        state.total += 1;
        Some(seat)
    }

    /// Has the oldest stranger give way.
    pub(super) fn make_room(&self) {
        let _gone;
        let mut state = self.lock();
        if let Some(oldest) = state.strangers.keys().next().copied() {
            _gone = state.close(oldest);
        }
    }
}

impl State {
    /// Has a stranger give way. It does not count any more from now on, and is to be let go of without the lock.
    fn close(&mut self, number: u64) -> Option<Arc<Seat>> {
        let seat = self.strangers.remove(&number)?.upgrade()?;
        if let Some(of) = self.peers.get_mut(&peer_of(seat.address.ip())) {
            of.strangers.remove(&number);
            of.all -= 1;
        }
        self.total -= 1;
        seat.closed.store(true, Ordering::Release);
        seat.waker.wake();
        Some(seat)
    }
}

impl Seat {
    /// Where the connection comes from.
    pub(super) fn address(&self) -> SocketAddr {
        self.address
    }

    /// It is no stranger's any more.
    pub(super) fn is_known(&self) {
        if !self.known.swap(true, Ordering::Relaxed) {
            let mut state = self.seats.lock();
            state.strangers.remove(&self.number);
            if let Some(of) = state.peers.get_mut(&peer_of(self.address.ip())) {
                of.strangers.remove(&self.number);
            }
        }
    }

    /// Room for one more call that takes no token, while this is held; none where there are too many.
    pub(super) fn public_call(&self) -> Option<OwnedSemaphorePermit> {
        Arc::clone(&self.public).try_acquire_owned().ok()
    }

    /// Whether it has to give way; if not, the task is woken when it has to.
    pub(super) fn poll_closed(&self, context: &Context<'_>) -> Poll<()> {
        self.waker.register(context.waker());
        if self.closed.load(Ordering::Acquire) { Poll::Ready(()) } else { Poll::Pending }
    }

    /// Returns when it has to give way.
    pub(super) async fn closed(&self) {
        std::future::poll_fn(|context| self.poll_closed(context)).await;
    }
}

impl Drop for Seat {
    fn drop(&mut self) {
        let mut state = self.seats.lock();
        state.strangers.remove(&self.number);
        let peer = peer_of(self.address.ip());
        let counted = !*self.closed.get_mut();
        if let Some(of) = state.peers.get_mut(&peer) {
            of.strangers.remove(&self.number);
            of.all -= usize::from(counted);
            if of.all == 0 {
                state.peers.remove(&peer);
            }
        }
        state.total -= usize::from(counted);
    }
}

/// Whom an address stands for: of IPv6, everyone has at least a /64.
fn peer_of(address: IpAddr) -> IpAddr {
    match address.to_canonical() {
        IpAddr::V6(address) => Ipv6Addr::from_bits(address.to_bits() >> 64 << 64).into(),
        v4 @ IpAddr::V4(_) => v4,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn from(last: u8, port: u16) -> SocketAddr {
        SocketAddr::from(([192, 0, 2, last], port))
    }

    fn seats(strangers_per_peer: usize, per_peer: usize, total: usize) -> Arc<Seats> {
        Seats::new(Limits { strangers_per_peer, per_peer, total })
    }

    fn is_open(seat: &Seat) -> bool {
        !seat.closed.load(Ordering::Relaxed)
    }

    #[test]
    fn a_flood_displaces_itself_and_nobody_who_is_known() {
        let seats = seats(3, 10, 100);
        let honest = seats.take(from(1, 1)).unwrap();
        honest.is_known();
        let elsewhere = seats.take(from(2, 1)).unwrap();
        let flood: Vec<_> = (0..50).map(|port| seats.take(from(1, port)).unwrap()).collect();
        let open: Vec<_> = flood.iter().enumerate().filter(|(_, seat)| is_open(seat)).map(|(number, _)| number).collect();
        assert_eq!(open, [47, 48, 49]);
        assert!(is_open(&honest) && is_open(&elsewhere));
        drop(flood);
        let state = seats.lock();
        assert_eq!((state.total, state.strangers.len(), state.peers[&from(1, 1).ip()].all), (2, 1, 1));
    }

    #[test]
    fn of_one_address_so_many_are_known_and_no_more() {
        let seats = seats(3, 4, 100);
        let known = (0..4).map(|port| seats.take(from(1, port)).unwrap());
        let known: Vec<_> = known.inspect(|seat| seat.is_known()).collect();
        assert!(seats.take(from(1, 9)).is_none());
        assert!(seats.take(from(2, 9)).is_some());
        drop(known);
        assert!(seats.take(from(1, 9)).is_some());
        assert!(seats.lock().peers.is_empty(), "what is over is forgotten");
    }

    #[test]
    fn when_all_is_full_the_oldest_stranger_gives_way() {
        let seats = seats(3, 10, 3);
        let all: Vec<_> = (0..3).map(|last| seats.take(from(last, 1)).unwrap()).collect();
        all[0].is_known();
        let newest = seats.take(from(9, 1)).unwrap();
        assert_eq!(all.iter().map(|seat| is_open(seat)).collect::<Vec<_>>(), [true, false, true]);
        newest.is_known();
        all[2].is_known();
        assert!(seats.take(from(8, 1)).is_none());
        seats.make_room();
        assert!(all.iter().filter(|seat| is_open(seat)).count() == 2 && is_open(&newest));
    }

    #[test]
    fn one_network_of_ipv6_is_one_peer() {
        let at = |text: &str| peer_of(text.parse().unwrap());
        assert_eq!(at("2001:db8::1"), at("2001:db8::ffff:0:0:1"));
        assert_ne!(at("2001:db8::1"), at("2001:db8:0:1::1"));
        assert_eq!(at("::ffff:192.0.2.1"), at("192.0.2.1"));
        assert_ne!(at("192.0.2.1"), at("192.0.2.2"));
    }

    #[test]
    fn one_address_never_takes_all_there_is() {
        for files in [16, 64, 256, 1024, 20_000, usize::MAX] {
            let Limits { strangers_per_peer, per_peer, total } = Limits::of(files);
            assert!(strangers_per_peer <= per_peer && per_peer < total.max(1) && total < files, "{files}");
        }
        assert_eq!(Limits::of(20_000), Limits { strangers_per_peer: 256, per_peer: 8192, total: 19_744 });
        assert_eq!(Limits::of(1024), Limits { strangers_per_peer: 256, per_peer: 576, total: 768 });
    }
}
