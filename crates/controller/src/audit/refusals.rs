//! What was refused, noted beside the calls and never in their way. However many calls are refused, only so many records are written: the
//! first of each address, and then one that counts the rest.

use std::collections::{BTreeMap, HashMap};
use std::net::{IpAddr, Ipv6Addr};
use std::pin::pin;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use octavius_store::{Commit, Store, StoreError, Txn};
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;
use tonic::body::Body;
use tonic::codegen::Body as _;

use super::{Act, Reader, What};

/// Records of what was refused to one address in a window, a minute.
const OF_ONE_PEER: u32 = 10;

/// Addresses that are counted apart in a window; the others together.
const PEERS: usize = 64;

/// Of these, addresses that have a record of their own for what was only counted: those with the most.
const PEERS_TOLD: usize = 4;

/// Records of single calls in so many windows, an hour, from all addresses: with it, what strangers can write stays small whatever they do,
/// some hundreds of KiB a day.
const OF_ALL: u32 = 300;
const OF_ALL_WINDOWS: u32 = 60;

/// Actions and users that are named where calls were only counted.
const NAMED: usize = 8;

/// How much of a refused call's message is read to learn what it was about, and for how long it is waited for.
const MESSAGE_BYTES: usize = 16 * 1024;
const MESSAGE_WITHIN: Duration = Duration::from_secs(1);

/// How long the last counts may take to be written when the controller stops.
const LAST_WITHIN: Duration = Duration::from_secs(1);

/// A call that was refused.
#[derive(Debug)]
pub(crate) struct Refused {
    pub(crate) act: Act,
    /// The code of why.
    pub(crate) reason: String,
    /// The message, where nobody has read it, and what reads in it what was asked for.
    pub(crate) unread: Option<(Body, Reader)>,
}

#[derive(Debug, Default)]
struct Count {
    written: u32,
    held_back: u64,
    actions: BTreeMap<&'static str, u64>,
    users: BTreeMap<String, u64>,
}

impl Count {
    fn hold_back(&mut self, action: &'static str, user: &str) {
        self.held_back += 1;
        *self.actions.entry(action).or_default() += 1;
        if self.users.len() < NAMED || self.users.contains_key(user) {
            *self.users.entry(user.to_owned()).or_default() += 1;
        }
    }

    fn take_in(&mut self, other: Self) {
        self.held_back += other.held_back;
        for (action, count) in other.actions {
            *self.actions.entry(action).or_default() += count;
        }
        for (user, count) in other.users {
            if self.users.len() < NAMED || self.users.contains_key(&user) {
                *self.users.entry(user).or_default() += count;
            }
        }
    }

    /// The record of what was only counted.
    fn act(self, from: Option<IpAddr>) -> Act {
        let most = |counts: Vec<(String, u64)>| {
            let mut counts: Vec<_> = counts.into_iter().filter(|(name, _)| !name.is_empty()).collect();
            counts.sort_by_key(|(_, count)| std::cmp::Reverse(*count));
            counts.truncate(NAMED);
            counts.into_iter().map(|(name, count)| format!("{name} {count}")).collect::<Vec<_>>().join(", ")
        };
        let what = What { action: "call.refused", ..What::default() }
            .with("count", self.held_back)
            .with("actions", most(self.actions.into_iter().map(|(action, count)| (action.to_owned(), count)).collect()))
            .with("users", most(self.users.into_iter().collect()));
        Act::new(None, from, what)
    }
}

#[derive(Debug)]
struct State {
    peers: HashMap<Option<IpAddr>, Count>,
    /// Those for which there was no place.
    others: Count,
    /// Records of single calls since then.
    since: Instant,
    written: u32,
}

/// Notes what was refused.
#[derive(Debug)]
pub(crate) struct Refusals {
    store: Arc<dyn Store>,
    window: Duration,
    tasks: TaskTracker,
    state: Mutex<State>,
}

/// What counts as one address: with IPv6, everybody has as many as he likes of one network.
pub(crate) fn peer(from: Option<IpAddr>) -> Option<IpAddr> {
    match from {
        Some(IpAddr::V6(address)) if address.to_ipv4_mapped().is_none() => {
            Some(Ipv6Addr::from_bits(address.to_bits() & !u128::from(u64::MAX)).into())
        }
        from => from,
    }
}

impl Refusals {
    pub(crate) fn new(store: Arc<dyn Store>, window: Duration, tasks: TaskTracker) -> Self {
        let state = State { peers: HashMap::new(), others: Count::default(), since: Instant::now(), written: 0 };
        Self { store, window, tasks, state: Mutex::new(state) }
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Whether this one has a record of its own; otherwise it is counted.
    fn admit(&self, act: &Act) -> bool {
        let mut state = self.state();
        if state.since.elapsed() >= self.window * OF_ALL_WINDOWS {
            (state.since, state.written) = (Instant::now(), 0);
        }
        let enough = state.written >= OF_ALL;
        let peer = peer(act.0.from);
        let has_place = state.peers.len() < PEERS || state.peers.contains_key(&peer);
        let count = if has_place { state.peers.entry(peer).or_default() } else { &mut state.others };
        if enough || count.written >= OF_ONE_PEER {
            let action = act.what().action;
            count.hold_back(action, act.user());
            return false;
        }
        count.written += 1;
        state.written += 1;
        true
    }

    /// Notes one, soon.
    pub(crate) fn note(self: &Arc<Self>, refused: Refused) {
        if !self.admit(&refused.act) {
            return;
        }
        let this = Arc::clone(self);
        self.tasks.spawn(async move {
            let Refused { act, reason, unread } = refused;
            if let Some((body, read)) = unread
                && let Ok(Some(message)) = tokio::time::timeout(MESSAGE_WITHIN, first_message(body)).await
                && let Some(what) = read(&message)
            {
                act.is(what);
            }
            this.write(&act, &reason).await;
        });
    }

    async fn write(&self, act: &Act, reason: &str) {
        let record = act.record(reason);
        tracing::info!(user = record.user, from = record.from, action = record.action, object = record.object, reason, "refused");
        let written: Result<Commit, StoreError> = self.store.commit(act.put(Txn::new(), &record)).await;
        if let Err(error) = written {
            tracing::warn!(?record, %error, "this is not in the audit trail");
        }
    }

    /// Writes, window by window, what was only counted, until the shutdown.
    pub(crate) async fn run(self: Arc<Self>, shutdown: CancellationToken) {
        loop {
            tokio::select! {
                () = tokio::time::sleep(self.window) => self.tell_counts().await,
                () = shutdown.cancelled() => {
                    let _ = tokio::time::timeout(LAST_WITHIN, self.tell_counts()).await; // what does not get there was logged
                    return;
                }
            }
        }
    }

    async fn tell_counts(&self) {
        let (peers, mut others) = {
            let mut state = self.state();
            (std::mem::take(&mut state.peers), std::mem::take(&mut state.others))
        };
        let mut peers: Vec<_> = peers.into_iter().filter(|(_, count)| count.held_back > 0).collect();
        peers.sort_by_key(|(_, count)| std::cmp::Reverse(count.held_back));
        let rest = peers.split_off(peers.len().min(PEERS_TOLD));
        rest.into_iter().for_each(|(_, count)| others.take_in(count));
        for (from, count) in peers {
            self.write(&count.act(from), "REPEATED").await;
        }
        if others.held_back > 0 {
            self.write(&others.act(None), "REPEATED").await;
        }
    }
}

/// The first message of a call's body, or the beginning of it; none where it is compressed, or the body ends before it.
async fn first_message(body: Body) -> Option<Vec<u8>> {
    const PREFIX: usize = 5; // whether it is compressed, and its length
    let mut body = pin!(body);
    let mut read = Vec::new();
    loop {
        if let [compressed, length @ ..] = read.get(..PREFIX).unwrap_or_default() {
            let length = length.iter().fold(0, |length, byte| length << 8 | usize::from(*byte));
            if *compressed != 0 {
                return None;
            }
            let wanted = PREFIX + length.min(MESSAGE_BYTES);
            if read.len() >= wanted {
                return Some(read[PREFIX..wanted].to_vec());
            }
        }
        let frame = std::future::poll_fn(|context| body.as_mut().poll_frame(context)).await?.ok()?;
        read.extend_from_slice(&frame.into_data().ok()?);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use octavius_core::{Principal, Role};
    use octavius_store::record::AuditRecord;
    use octavius_store::{EmbeddedOptions, Range, codec, key, open_embedded};

    fn refused(from: IpAddr, user: &str) -> Refused {
        let principal = Principal::new("t", user, Role::Viewer);
        let act = Act::new(Some(principal), Some(from), What::new("job.pause", "job", "j"));
        Refused { act, reason: "NOT_PERMITTED".into(), unread: None }
    }

    async fn records(store: &Arc<dyn Store>) -> Vec<AuditRecord> {
        let page = store.range(&Range::of(key::audit(), 1000)).await.unwrap();
        page.entries.iter().map(|entry| codec::decode(entry).unwrap()).collect()
    }

    #[tokio::test]
    async fn a_flood_leaves_a_few_records_and_one_that_counts() {
        let dir = tempfile::tempdir().unwrap();
        let store = open_embedded(dir.path(), EmbeddedOptions::default()).unwrap();
        let tasks = TaskTracker::new();
        let refusals = Arc::new(Refusals::new(Arc::clone(&store), Duration::from_secs(60), tasks.clone()));
        for number in 0..1000 {
            refusals.note(refused(IpAddr::from([192, 0, 2, 1]), if number % 4 == 0 { "ann" } else { "bob" }));
        }
        refusals.note(refused(IpAddr::from([192, 0, 2, 2]), "eve"));
        refusals.tell_counts().await;
        tasks.close();
        tasks.wait().await;
        let records = records(&store).await;
        assert_eq!(records.len(), OF_ONE_PEER as usize + 2);
        let counted: Vec<_> = records.iter().filter(|record| record.action == "call.refused").collect();
        assert_eq!((counted.len(), counted[0].from.as_str(), counted[0].refused.as_str()), (1, "192.0.2.1", "REPEATED"));
        let details: Vec<_> = counted[0].details.iter().map(|(name, value)| (name.as_str(), value.as_str())).collect();
        assert_eq!(details, [("actions", "job.pause 990"), ("count", "990"), ("users", "bob 743, ann 247")]);
        assert!(records.iter().any(|record| record.user == "eve"), "others are not held back for it");
    }

    /// However many addresses there are.
    #[tokio::test]
    async fn all_addresses_together_write_only_so_much() {
        let dir = tempfile::tempdir().unwrap();
        let store = open_embedded(dir.path(), EmbeddedOptions::default()).unwrap();
        let tasks = TaskTracker::new();
        let refusals = Arc::new(Refusals::new(Arc::clone(&store), Duration::from_secs(60), tasks.clone()));
        let mut calls = 0;
        for network in 0..3_u16 {
            for host in 0..2000_u16 {
                // In each network as many addresses as one likes are one.
                let address = Ipv6Addr::new(0x2001, 0xdb8, network, host / 20, host, 1, 2, 3);
                refusals.note(refused(address.into(), "eve"));
                calls += 1;
            }
            refusals.tell_counts().await;
        }
        tasks.close();
        tasks.wait().await;
        let records = records(&store).await;
        let (counted, single): (Vec<_>, Vec<_>) = records.iter().partition(|record| record.action == "call.refused");
        assert_eq!(single.len(), OF_ALL as usize);
        assert!(counted.len() <= 3 * (PEERS_TOLD + 1), "{}", counted.len());
        let total: u64 = counted.iter().map(|record| record.details["count"].parse::<u64>().unwrap()).sum();
        assert_eq!(total + single.len() as u64, calls, "none is lost");
    }

    #[tokio::test]
    async fn the_first_message_is_read_whatever_pieces_it_comes_in() {
        let framed = |compressed: u8, message: &[u8]| {
            let length = u32::try_from(message.len()).unwrap().to_be_bytes();
            [&[compressed], &length[..], message].concat()
        };
        let body = |bytes: &[u8], piece: usize| {
            let pieces: Vec<_> =
                bytes.chunks(piece).map(|piece| Ok::<_, tonic::Status>(bytes::Bytes::copy_from_slice(piece))).collect();
            Body::new(pieces_of(pieces))
        };
        for piece in [1, 4, 5, 100] {
            assert_eq!(first_message(body(&framed(0, b"hello"), piece)).await.as_deref(), Some(&b"hello"[..]));
        }
        assert_eq!(first_message(body(&framed(1, b"hello"), 3)).await, None);
        assert_eq!(first_message(body(&framed(0, b"hello")[..7], 3)).await, None);
        assert_eq!(first_message(Body::empty()).await, None);
        let long = framed(0, &vec![b'x'; 3 * MESSAGE_BYTES]);
        assert_eq!(first_message(body(&long, 1000)).await.map(|message| message.len()), Some(MESSAGE_BYTES));
    }

    /// A body that comes in these pieces.
    fn pieces_of(pieces: Vec<Result<bytes::Bytes, tonic::Status>>) -> axum::body::Body {
        axum::body::Body::from_stream(futures::stream::iter(pieces))
    }
}
