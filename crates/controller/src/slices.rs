//! Which of the living controllers hands an execution out first. Each decides alone, from the same facts, by rendezvous hashing: when one
//! comes or goes, only its own slice moves. Nothing depends on them agreeing; it only makes races for one execution rare.

use std::collections::BTreeSet;
use std::hash::{Hash as _, Hasher};
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use octavius_core::{Digest, ExecutionId};
use octavius_store::{Entry, Event, Presence, Revision, StoreError, key};
use tokio::sync::watch;

use crate::mirror::{Listener, Mirrors};
use crate::scheduler::Scheduler;

/// The slice of one controller among the others.
#[derive(Debug, Clone, Default)]
pub(crate) struct Slices {
    own: u64,
    others: Vec<u64>,
}

impl Slices {
    /// The slice of `own` among all that live; it counts itself, whether or not it is among them.
    pub(crate) fn of<'a>(own: &str, all: impl Iterator<Item = &'a str>) -> Self {
        let seed = |id: &str| {
            Digest::of(id.as_bytes()).as_bytes().iter().fold(0, |seed: u64, byte| (seed << 8) ^ (seed >> 56) ^ u64::from(*byte))
        };
        Self { own: seed(own), others: all.filter(|id| *id != own).map(seed).collect() }
    }

    /// Whether an execution is in it.
    pub(crate) fn is_own(&self, id: ExecutionId) -> bool {
        let weight = |seed: u64| {
            let mut mix = Mix(seed);
            id.hash(&mut mix);
            (mix.finish(), seed)
        };
        self.others.is_empty() || {
            let own = weight(self.own);
            self.others.iter().all(|other| weight(*other) < own)
        }
    }
}

/// A small hash that is the same in every process, as the standard library's is not.
struct Mix(u64);

impl Hasher for Mix {
    fn write(&mut self, bytes: &[u8]) {
        // The steps of splitmix64, eight bytes at a time.
        for chunk in bytes.chunks(8) {
            let mut eight = [0; 8];
            eight[..chunk.len()].copy_from_slice(chunk);
            let mut z = (self.0 ^ u64::from_le_bytes(eight)).wrapping_add(0x9E37_79B9_7F4A_7C15);
            z = (z ^ (z >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
            z = (z ^ (z >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
            self.0 = z ^ (z >> 31);
        }
    }

    fn finish(&self) -> u64 {
        self.0
    }
}

/// Knows who lives, and tells the queue and whoever else wants to know.
struct Peers {
    own: String,
    all: BTreeSet<String>,
    scheduler: Arc<Scheduler>,
    told: watch::Sender<Option<Slices>>,
}

impl Peers {
    fn tell(&self) {
        let slices = Slices::of(&self.own, self.all.iter().map(String::as_str));
        tracing::debug!(controllers = slices.others.len() + 1, "slices");
        self.told.send_replace(Some(slices.clone()));
        self.scheduler.queue().slice(slices);
    }
}

fn peer_of(key: &octavius_store::Key) -> Option<String> {
    key.as_str().rsplit('/').next().map(str::to_owned)
}

impl Listener for Peers {
    fn reset(&mut self, entries: Vec<Entry>, _: Revision) {
        self.all = entries.iter().filter_map(|entry| peer_of(&entry.key)).collect();
        self.tell();
    }

    fn change(&mut self, event: Event, _: Revision) {
        let changed = match (&event, peer_of(event.key())) {
            (Event::Put(_), Some(peer)) => self.all.insert(peer),
            (Event::Delete(_), Some(peer)) => self.all.remove(&peer),
            (_, None) => false,
        };
        if changed {
            self.tell();
        }
    }
}

/// Tells the other controllers that this one, `own`, lives, and the queue and `told` which slice is its own, until the shutdown.
pub(crate) async fn run(
    own: String,
    scheduler: Arc<Scheduler>,
    told: watch::Sender<Option<Slices>>,
    mirrors: Mirrors,
    every: Duration,
    ttl: Duration,
) {
    let peers = Peers { own: own.clone(), all: BTreeSet::new(), scheduler, told };
    tokio::join!(mirrors.run(key::peers(), peers), announce(&own, &mirrors, every, ttl));
}

/// Keeps a controller's presence. Where the store does not answer, the others do its share after a while; it goes on all the same.
async fn announce(own: &str, mirrors: &Mirrors, every: Duration, ttl: Duration) {
    let mut turns = tokio::time::interval(every);
    turns.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    let mut presence: Option<Box<dyn Presence>> = None;
    loop {
        tokio::select! {
            biased;
            () = mirrors.shutdown.cancelled() => break,
            _ = turns.tick() => {}
        }
        if let Some(standing) = &presence {
            match standing.renew().await {
                Ok(()) => continue,
                Err(StoreError::PresenceLost) => {}
                Err(error) => {
                    tracing::debug!(%error, "the controller's presence could not be renewed");
                    continue;
                }
            }
        }
        match mirrors.store.announce(key::peer(own), Bytes::new(), ttl).await {
            Ok(anew) => presence = Some(anew),
            Err(error) => tracing::warn!(%error, "the controller could not announce itself"),
        }
    }
    if let Some(presence) = presence
        && let Err(error) = presence.withdraw().await
    {
        tracing::debug!(%error, "the controller's presence runs out by itself");
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_execution_is_in_one_slice_and_only_that_of_a_controller_that_left_moves() {
        let all = ["one", "two", "three"];
        let of = |own: &str, all: &[&str]| Slices::of(own, all.iter().copied());
        let owner = |all: &[&'static str], bits: u128| {
            let owners: Vec<_> = all.iter().filter(|own| of(own, all).is_own(ExecutionId::from_bits(bits))).collect();
            assert_eq!(owners.len(), 1, "{bits}: {owners:?}");
            *owners[0]
        };
        let mut counts = std::collections::BTreeMap::new();
        for n in 0..3000 {
            // As ids made one after the other.
            let bits = (1_700_000_000_000_u128 << 80) + (n << 20) + 12_345;
            let before = owner(&all, bits);
            *counts.entry(before).or_insert(0) += 1;
            let after = owner(&all[..2], bits);
            assert!(before == after || before == "three");
        }
        assert!(counts.values().all(|count| (800..1200).contains(count)), "{counts:?}");
    }

    #[test]
    fn a_controller_that_nobody_has_heard_of_yet_has_a_slice_all_the_same() {
        assert!(Slices::of("a", std::iter::empty()).is_own(ExecutionId::from_bits(1)));
        let slices = Slices::of("a", ["b"].into_iter());
        let own = (0..100).filter(|bits| slices.is_own(ExecutionId::from_bits(*bits))).count();
        assert!((20..80).contains(&own), "{own}");
    }
}
