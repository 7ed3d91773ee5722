//! What one caller can ask of a controller, so that others have their share: calls at once, calls a second, bytes of messages that are on
//! their way, and guesses at tokens. Every limit is a caller's own; what one does, no other feels.
//!
//! | limit | of | over it |
//! | --- | --- | --- |
//! | [`AT_ONCE`] | a principal | refused with RATE_LIMITED |
//! | [`APPLIES`] | a principal | waits up to [`APPLY_WITHIN`], then refused with RATE_LIMITED |
//! | [`RequestLimits::rate`] | a principal | waits up to [`WAITS`], then refused with RATE_LIMITED |
//! | [`MESSAGE_KIB`] | a principal's unary messages | what follows is read when there is room again |
//! | [`body::RECEIVED_WITHIN`] | a unary message | refused with SLOW_MESSAGE |
//! | [`Guesses`] | an address | its unknown tokens are not looked up in the store any more; those that are good never wait |
//!
//! Beside them stand those of a connection, which the server has: its streams, its headers, its windows.

mod body;
mod bucket;

use std::collections::HashMap;
use std::hash::{BuildHasher as _, RandomState};
use std::net::IpAddr;
use std::num::NonZeroU32;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use octavius_core::{Principal, Role};
use octavius_proto::{Fault, reason};
use tokio::sync::Semaphore;
use tokio::time::{Instant, timeout};
use tonic::Code;

pub(crate) use body::Holding;
use bucket::Bucket;

use crate::audit::peer;

/// Calls that one principal may have under way on a controller, answers that were not yet taken among them. One that lists counts as
/// [`LISTS_WEIGH`].
const AT_ONCE: u32 = 2048;

/// What a call weighs whose one answer may be of some megabytes: so that all that a principal does not take stays below half a gigabyte.
const LISTS_WEIGH: u32 = 16;

/// The calls of that weight.
const LISTS: [&str; 4] = [
    "/octavius.v1.CatalogService/ListJobs",
    "/octavius.v1.CatalogService/ListRevisions",
    "/octavius.v1.ExecutionService/ListExecutions",
    "/octavius.v1.ExecutorService/ListExecutors",
];

/// Calls that send a stream of messages: each has its own limits.
const STREAMED: [&str; 2] = [APPLY, "/octavius.v1.ExecutorService/Session"];

/// Bytes of unary messages, in KiB, that one principal may have on their way; small messages are not counted.
const MESSAGE_KIB: usize = 64 * 1024;

/// Applies that one principal may have under way, so that the few places that there are for all are not one's alone; and for how long one more
/// waits for its turn.
const APPLIES: usize = 2;
const APPLY_WITHIN: Duration = Duration::from_secs(60);
const APPLY: &str = "/octavius.v1.CatalogService/Apply";

/// After how long one is refused who has too many calls under way.
const REFUSED_AFTER: Duration = Duration::from_secs(1);

/// For how long a call waits that is over its principal's rate.
const WAITS: Duration = Duration::from_secs(2);

/// How many times as often as others an executor may call.
const EXECUTORS: f64 = 5.0;

/// Principals, and addresses, that are kept in mind; of more, those that are as if they had never called are forgotten.
const KEPT: usize = 4096;

/// Unknown tokens of one address that are looked up in the store at once, and then a second.
const GUESSES: f64 = 30.0;
const GUESSES_A_SECOND: f64 = 1.0;

/// What of the limits can be set.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct RequestLimits {
    /// Calls a second that one principal may make on a controller, on the average; as many at once. None for as many as it likes.
    pub rate: Option<NonZeroU32>,
}

impl RequestLimits {
    /// Calls a second where nothing is said: a tenth of what one controller accepts on a machine of two cores (README.md, “Speed”), so that
    /// nobody gets there by accident and the others hardly notice. Executors, which report for many, have five times as many.
    pub const RATE: NonZeroU32 = NonZeroU32::new(1000).expect("not 0");
}

impl Default for RequestLimits {
    fn default() -> Self {
        Self { rate: Some(Self::RATE) }
    }
}

/// What one principal uses.
#[derive(Debug)]
struct Caller {
    rate: Mutex<Bucket>,
    calls: Arc<Semaphore>,
    messages: Arc<Semaphore>,
    applies: Arc<Semaphore>,
}

impl Caller {
    fn new(rate: f64, now: Instant) -> Self {
        Self {
            rate: Mutex::new(Bucket::full(rate, now)),
            calls: Arc::new(Semaphore::new(AT_ONCE as usize)),
            messages: Arc::new(Semaphore::new(MESSAGE_KIB)),
            applies: Arc::new(Semaphore::new(APPLIES)),
        }
    }

    fn is_idle(&self, rate: f64, now: Instant) -> bool {
        self.calls.available_permits() == AT_ONCE as usize && lock(&self.rate).is_full(rate, rate, now)
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// The limits of principals.
#[derive(Debug)]
pub(crate) struct Limits {
    rate: Option<f64>,
    callers: Mutex<HashMap<u64, Arc<Caller>>>,
    hasher: RandomState,
}

impl Limits {
    pub(crate) fn new(limits: RequestLimits) -> Self {
        let rate = limits.rate.map(|rate| f64::from(rate.get()));
        Self { rate, callers: Mutex::default(), hasher: RandomState::new() }
    }

    fn caller(&self, principal: &Principal) -> Arc<Caller> {
        // However many tokens somebody has. Two whose hashes are the same, which nobody can bring about, would share.
        let who = self.hasher.hash_one((principal.role, &principal.user));
        let (rate, now) = (self.rate_of(principal).unwrap_or(1.0), Instant::now());
        let mut callers = lock(&self.callers);
        if callers.len() >= KEPT && !callers.contains_key(&who) {
            callers.retain(|_, caller| Arc::strong_count(caller) > 1 || !caller.is_idle(rate, now));
        }
        Arc::clone(callers.entry(who).or_insert_with(|| Arc::new(Caller::new(rate, now))))
    }

    fn rate_of(&self, principal: &Principal) -> Option<f64> {
        let times = if principal.role == Role::Executor { EXECUTORS } else { 1.0 };
        self.rate.map(|rate| rate * times)
    }

    /// Lets a call in when it is its turn; what it then holds is given back when its answer has been taken.
    ///
    /// # Errors
    /// Where its principal has too many under way, or calls too often.
    pub(crate) async fn admit(&self, principal: &Principal, path: &str) -> Result<Holding, Fault> {
        let caller = self.caller(principal);
        let weight = if LISTS.contains(&path) { LISTS_WEIGH } else { 1 };
        let Ok(call) = Arc::clone(&caller.calls).try_acquire_many_owned(weight) else {
            tokio::time::sleep(REFUSED_AFTER).await; // whoever asks again at once gets no further by it
            let message =
                format!("{} has {AT_ONCE} calls under way on this controller, or their answers to take", principal.user);
            return Err(limited(message));
        };
        if let Some(rate) = self.rate_of(principal) {
            let wait = lock(&caller.rate).take(rate, rate, WAITS, Instant::now());
            match wait {
                Some(Duration::ZERO) => {}
                Some(wait) => tokio::time::sleep(wait).await,
                None => return Err(limited(format!("{} calls more than {rate} times a second", principal.user))),
            }
        }
        let apply = match path {
            APPLY => match timeout(APPLY_WITHIN, Arc::clone(&caller.applies).acquire_owned()).await {
                Ok(Ok(apply)) => Some(apply),
                _ => return Err(limited(format!("{} has {APPLIES} applies under way, and none ended", principal.user))),
            },
            _ => None,
        };
        let messages = (!STREAMED.contains(&path)).then(|| Arc::clone(&caller.messages));
        Ok(Holding::new(call, apply, messages))
    }
}

pub(crate) fn limited(message: String) -> Fault {
    Fault::new(Code::ResourceExhausted, reason::RATE_LIMITED, message)
}

/// Guesses at tokens, by address.
#[derive(Debug, Default)]
pub(crate) struct Guesses(Mutex<HashMap<Option<IpAddr>, Bucket>>);

impl Guesses {
    /// Whether a token that nobody here knows, from this address, may be looked up.
    pub(crate) fn allow(&self, from: Option<IpAddr>) -> bool {
        let now = Instant::now();
        let mut peers = lock(&self.0);
        let mut peer = peer(from);
        if peers.len() >= KEPT && !peers.contains_key(&peer) {
            peers.retain(|_, bucket| !bucket.is_full(GUESSES_A_SECOND, GUESSES, now));
            if peers.len() >= KEPT {
                peer = None; // so many at once are one attack
            }
        }
        let bucket = peers.entry(peer).or_insert_with(|| Bucket::full(GUESSES, now));
        bucket.take(GUESSES_A_SECOND, GUESSES, Duration::ZERO, now).is_some()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use prost::Message as _;
    use std::collections::BTreeSet;

    fn somebody(user: &str) -> Principal {
        Principal::new("t", user, Role::User)
    }

    const GET: &str = "/octavius.v1.ExecutionService/GetExecution";

    #[test]
    fn what_is_named_here_are_rpcs_and_all_that_send_a_stream() {
        let descriptors = prost_types::FileDescriptorSet::decode(octavius_proto::DESCRIPTORS).unwrap();
        let (mut all, mut streamed) = (BTreeSet::new(), BTreeSet::new());
        for service in descriptors.file.iter().filter(|file| file.package() == "octavius.v1").flat_map(|file| &file.service) {
            for method in &service.method {
                let path = format!("/octavius.v1.{}/{}", service.name(), method.name());
                if method.client_streaming() {
                    streamed.insert(path.clone());
                }
                all.insert(path);
            }
        }
        assert_eq!(streamed, STREAMED.map(str::to_owned).into());
        assert!(LISTS.iter().all(|path| all.contains(*path)), "{all:?}");
    }

    #[tokio::test(start_paused = true)]
    async fn one_who_calls_too_often_waits_and_is_then_refused_and_no_other_feels_it() {
        let limits = Limits::new(RequestLimits { rate: NonZeroU32::new(10) });
        let begun = Instant::now();
        for _ in 0..10 {
            limits.admit(&somebody("ann"), GET).await.unwrap();
        }
        assert_eq!(begun.elapsed(), Duration::ZERO, "a second's worth goes at once");
        limits.admit(&somebody("ann"), GET).await.unwrap();
        assert!(begun.elapsed() >= Duration::from_millis(100), "{:?}", begun.elapsed());

        let ann = somebody("ann");
        let many = futures::future::join_all((0..50).map(|_| limits.admit(&ann, GET))).await;
        let refused: Vec<_> = many.iter().filter_map(|call| call.as_ref().err()).collect();
        assert!((25..35).contains(&refused.len()), "{}", refused.len());
        assert!(refused.iter().all(|fault| fault.reason == reason::RATE_LIMITED), "{refused:?}");
        let before = Instant::now();
        limits.admit(&somebody("bob"), GET).await.unwrap();
        assert_eq!(before.elapsed(), Duration::ZERO);
    }

    #[tokio::test]
    async fn calls_under_way_are_limited_and_lists_weigh_more() {
        let limits = Limits::new(RequestLimits { rate: None });
        let mut held = Vec::new();
        for _ in 0..AT_ONCE / LISTS_WEIGH - 1 {
            held.push(limits.admit(&somebody("ann"), LISTS[2]).await.unwrap());
        }
        for _ in 0..LISTS_WEIGH {
            held.push(limits.admit(&somebody("ann"), GET).await.unwrap());
        }
        assert_eq!(limits.admit(&somebody("ann"), GET).await.unwrap_err().reason, reason::RATE_LIMITED);
        limits.admit(&somebody("bob"), GET).await.unwrap();
        held.pop();
        limits.admit(&somebody("ann"), GET).await.unwrap();
    }

    #[tokio::test(start_paused = true)]
    async fn who_called_long_ago_is_forgotten_and_who_has_calls_under_way_is_not() {
        let limits = Limits::new(RequestLimits::default());
        let _held = limits.admit(&somebody("ann"), GET).await.unwrap();
        for number in 0..KEPT {
            limits.admit(&somebody(&format!("user {number}")), GET).await.unwrap();
            tokio::time::advance(Duration::from_millis(1)).await;
        }
        assert!(lock(&limits.callers).len() < KEPT, "{}", lock(&limits.callers).len());
        assert_eq!(limits.caller(&somebody("ann")).calls.available_permits(), AT_ONCE as usize - 1);
    }

    #[tokio::test(start_paused = true)]
    async fn an_address_guesses_a_few_times_and_then_now_and_then() {
        let guesses = Guesses::default();
        let from = Some(IpAddr::from([192, 0, 2, 1]));
        let allowed = (0..10_000).filter(|_| guesses.allow(from)).count();
        assert_eq!(allowed, 30);
        assert!(guesses.allow(Some(IpAddr::from([192, 0, 2, 2]))));
        tokio::time::advance(Duration::from_secs(5)).await;
        assert_eq!((0..100).filter(|_| guesses.allow(from)).count(), 5);
        for number in 0..100_000_u32 {
            guesses.allow(Some(IpAddr::from((number + (10 << 24)).to_be_bytes())));
        }
        assert!(lock(&guesses.0).len() <= KEPT + 1, "{}", lock(&guesses.0).len());
    }
}
