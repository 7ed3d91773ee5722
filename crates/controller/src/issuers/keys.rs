//! The keys of one issuer, as they were fetched last: fetched again in time, and when a token names one that is not known. Where they cannot
//! be fetched, the last ones are good for a day.

use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use tokio::sync::{Notify, Semaphore, watch};
use tokio_util::sync::CancellationToken;

use super::fetch::{Fetched, Fetcher};
use super::jose::Unverified;
use super::jwk::KeySet;

/// How long a call waits for keys to be fetched, in all: less than its client waits for the answer.
const WAITED: Duration = Duration::from_secs(8);

/// Calls that wait for one issuer's keys. Nobody knows yet who makes them: of more, each is told at once that its key is not known.
const WAITING: usize = 256;

/// How often keys are fetched.
#[derive(Debug, Clone, Copy)]
pub(super) struct Pace {
    /// Between two times, where whoever serves them does not say; and within which bounds he may.
    every: Duration,
    at_least: Duration,
    at_most: Duration,
    /// Until the first of the times after one that failed; each further one waits twice as long, up to `every`.
    again: Duration,
    /// Between two times at which a key that is not known has them fetched: whoever invents names of keys has an issuer asked no more often.
    unknown: Duration,
    /// For how long keys are good that cannot be fetched again.
    kept: Duration,
}

impl Pace {
    /// Over the network.
    pub(super) const REMOTE: Self = Self {
        every: Duration::from_secs(600),
        at_least: Duration::from_secs(60),
        at_most: Duration::from_secs(3600),
        again: Duration::from_secs(5),
        unknown: Duration::from_secs(10),
        kept: Duration::from_secs(24 * 3600),
    };

    /// From a file: it is looked at often, so that a change counts soon.
    pub(super) const FILE: Self =
        Self { every: Duration::from_secs(5), again: Duration::from_secs(1), unknown: Duration::from_secs(1), ..Self::REMOTE };

    fn next(&self, max_age: Option<Duration>) -> Duration {
        max_age.map_or(self.every, |age| age.clamp(self.at_least, self.at_most))
    }
}

/// How it stands with an issuer's keys.
#[derive(Debug, Clone)]
struct Standing {
    keys: Arc<KeySet>,
    /// When they were fetched; none where they have not been yet.
    at: Option<Instant>,
    /// Whether they are being fetched, or about to be.
    under_way: bool,
}

/// Why a token could not be verified.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Unfit {
    /// The issuer's keys could not be fetched yet, or for too long.
    NoKeys,
    /// None of them fits what the token names.
    UnknownKey,
    /// One does, and did not sign it.
    Forged,
}

/// The keys of one issuer.
#[derive(Debug)]
pub(super) struct Keys {
    name: String,
    fetcher: Fetcher,
    pace: Pace,
    standing: watch::Sender<Standing>,
    /// When a key that is not known had them fetched last.
    asked: Mutex<Option<Instant>>,
    ask: Notify,
    waiting: Semaphore,
}

impl Keys {
    pub(super) fn new(name: &str, fetcher: Fetcher, pace: Pace) -> Self {
        // The first fetch comes with the loop.
        let standing = watch::Sender::new(Standing { keys: Arc::default(), at: None, under_way: true });
        let waiting = Semaphore::new(WAITING);
        Self { name: name.to_owned(), fetcher, pace, standing, asked: Mutex::default(), ask: Notify::new(), waiting }
    }

    /// Verifies a token's signature. One whose key is not known waits for the keys to be fetched, if that is allowed again, or under way.
    pub(super) async fn verify(&self, token: &Unverified<'_>) -> Result<(), Unfit> {
        if let Some(verdict) = self.verify_now(token) {
            return verdict;
        }
        let Ok(_waiting) = self.waiting.try_acquire() else { return Err(self.unknown()) };
        let until = tokio::time::Instant::now() + WAITED;
        // What was under way already may have come too early to bring the key.
        for _ in 0..2 {
            let mut standing = self.standing.subscribe();
            if !standing.borrow_and_update().under_way && !self.ask() {
                break;
            }
            let fetched = tokio::time::timeout_at(until, standing.wait_for(|standing| !standing.under_way)).await;
            if let Some(verdict) = self.verify_now(token) {
                return verdict;
            }
            if fetched.is_err() {
                break;
            }
        }
        Err(self.unknown())
    }

    /// What the keys that are there say; none where none of them fits.
    fn verify_now(&self, token: &Unverified<'_>) -> Option<Result<(), Unfit>> {
        let keys = {
            let standing = self.standing.borrow();
            let good = self.is_good(&standing) && standing.keys.has(token);
            good.then(|| Arc::clone(&standing.keys))?
        };
        Some(if keys.verify(token) { Ok(()) } else { Err(Unfit::Forged) })
    }

    fn is_good(&self, standing: &Standing) -> bool {
        standing.at.is_some_and(|at| at.elapsed() < self.pace.kept)
    }

    fn unknown(&self) -> Unfit {
        if self.is_good(&self.standing.borrow()) { Unfit::UnknownKey } else { Unfit::NoKeys }
    }

    /// Has the keys fetched, unless that was done a moment ago.
    fn ask(&self) -> bool {
        let mut asked = self.asked.lock().unwrap_or_else(PoisonError::into_inner);
        if asked.is_some_and(|at| at.elapsed() < self.pace.unknown) {
            return false;
        }
        *asked = Some(Instant::now());
        self.standing.send_modify(|standing| standing.under_way = true);
        self.ask.notify_one();
        true
    }

    /// Keeps the keys fresh until the shutdown.
    pub(super) async fn run(&self, shutdown: CancellationToken) {
        let mut failures = 0;
        loop {
            self.standing.send_modify(|standing| standing.under_way = true);
            let fetched = tokio::select! {
                fetched = self.fetcher.fetch() => fetched,
                () = shutdown.cancelled() => break,
            };
            let wait = match fetched {
                Ok(Fetched { keys, max_age }) => {
                    if failures > 0 {
                        tracing::info!(issuer = self.name, keys = keys.len(), "the issuer's keys can be fetched again");
                    }
                    failures = 0;
                    self.take(keys);
                    self.pace.next(max_age)
                }
                Err(problem) => {
                    tracing::warn!(issuer = self.name, %problem, "the issuer's keys cannot be fetched");
                    self.standing.send_modify(|standing| standing.under_way = false);
                    failures += 1;
                    (self.pace.again * 2_u32.saturating_pow(failures.min(16) - 1)).min(self.pace.every)
                }
            };
            tokio::select! {
                () = tokio::time::sleep(wait) => {}
                () = self.ask.notified() => {}
                () = shutdown.cancelled() => break,
            }
        }
        // Nobody waits for what does not come any more.
        self.standing.send_modify(|standing| standing.under_way = false);
    }

    fn take(&self, keys: KeySet) {
        self.standing.send_modify(|standing| {
            if *standing.keys != keys {
                tracing::info!(issuer = self.name, keys = keys.len(), "the issuer's keys have changed");
            }
            *standing = Standing { keys: Arc::new(keys), at: Some(Instant::now()), under_way: false };
        });
    }
}

#[cfg(test)]
mod tests {
    use super::super::testing::{Signer, claims, config, issuer};
    use super::*;
    use octavius_tests::jwt::{Answer, Issuer};
    use serde_json::{Value, json};
    use std::sync::Arc;

    /// Longest wait for what should happen at once.
    const PATIENCE: Duration = Duration::from_secs(60);

    /// Nothing comes by itself, and a failure is soon followed by another try.
    const STILL: Pace = Pace { unknown: Duration::from_secs(3600), again: Duration::from_millis(10), ..Pace::REMOTE };

    /// The keys of an issuer, kept fresh until it is dropped.
    struct Kept {
        keys: Arc<Keys>,
        stop: CancellationToken,
    }

    impl Drop for Kept {
        fn drop(&mut self) {
            self.stop.cancel();
        }
    }

    fn keep(issuer: &Issuer, extra: Value, pace: Pace) -> Kept {
        let keys = Arc::new(Keys::new("i", Fetcher::new(&config(issuer, extra)), pace));
        let stop = CancellationToken::new();
        tokio::spawn({
            let (keys, stop) = (Arc::clone(&keys), stop.clone());
            async move { keys.run(stop).await }
        });
        Kept { keys, stop }
    }

    impl Kept {
        async fn verify(&self, signer: &Signer) -> Result<(), Unfit> {
            let token = signer.sign(&claims());
            self.keys.verify(&Unverified::parse(&token).unwrap()).await
        }

        /// Asks until the answer is this one.
        async fn becomes(&self, signer: &Signer, expected: Result<(), Unfit>) {
            let asked = async {
                while self.verify(signer).await != expected {
                    tokio::time::sleep(Duration::from_millis(5)).await;
                }
            };
            tokio::time::timeout(PATIENCE, asked).await.unwrap_or_else(|_| panic!("{expected:?} did not come"));
        }
    }

    #[tokio::test]
    async fn tokens_that_come_with_the_start_wait_for_the_first_keys() {
        let signer = Signer::ed25519("k");
        let issuer = issuer(&[&signer]).await;
        let kept = keep(&issuer, json!({}), STILL);
        let all = futures::future::join_all((0..50).map(|_| kept.verify(&signer))).await;
        assert!(all.iter().all(Result::is_ok));
        assert_eq!(kept.verify(&Signer::ed25519("k")).await, Err(Unfit::Forged));
        assert_eq!(issuer.fetches(), 1, "a forged signature has nothing fetched");
    }

    #[tokio::test]
    async fn a_key_that_is_new_has_the_keys_fetched_and_one_that_is_gone_is_no_more() {
        let (old, new) = (Signer::ed25519("old"), Signer::p256("new"));
        let issuer = issuer(&[&old]).await;
        let kept = keep(&issuer, json!({}), STILL);
        assert_eq!(kept.verify(&old).await, Ok(()));
        issuer.publish(&[&new.0]);
        assert_eq!(kept.verify(&new).await, Ok(()));
        assert_eq!(kept.verify(&old).await, Err(Unfit::UnknownKey));
        assert_eq!(issuer.fetches(), 2);
    }

    #[tokio::test]
    async fn a_flood_of_keys_that_nobody_knows_has_them_fetched_once() {
        let signer = Signer::ed25519("k");
        let issuer = issuer(&[&signer]).await;
        let kept = keep(&issuer, json!({}), STILL);
        assert_eq!(kept.verify(&signer).await, Ok(()));
        let foreign = Signer::ed25519("k");
        let tokens: Vec<String> =
            (0..500).map(|n| foreign.sign_as(&json!({"alg": "EdDSA", "kid": format!("k{n}")}), &claims())).collect();
        let flood = tokens.iter().map(async |token| kept.keys.verify(&Unverified::parse(token).unwrap()).await);
        let all = futures::future::join_all(flood).await;
        assert!(all.iter().all(|verdict| *verdict == Err(Unfit::UnknownKey)));
        assert_eq!(kept.verify(&signer).await, Ok(()));
        assert_eq!(issuer.fetches(), 2, "at the start, and once for all of them");
    }

    #[tokio::test(start_paused = true)]
    async fn of_those_whom_nobody_knows_yet_a_few_wait_for_keys_and_not_for_long() {
        let away = Issuer::away().unwrap();
        // Nobody fetches them.
        let keys = Keys::new("i", Fetcher::new(&config(&away, json!({}))), STILL);
        let token = Signer::ed25519("k").sign(&claims());
        let begun = tokio::time::Instant::now();
        let waits = (0..1000).map(async |_| {
            assert_eq!(keys.verify(&Unverified::parse(&token).unwrap()).await, Err(Unfit::NoKeys));
            begun.elapsed()
        });
        let waited = futures::future::join_all(waits).await;
        assert_eq!(waited.iter().filter(|waited| waited.is_zero()).count(), 1000 - WAITING);
        let longest = *waited.iter().max().unwrap();
        assert!(longest >= WAITED && longest < WAITED + Duration::from_secs(1), "{longest:?}");
        assert_eq!(keys.waiting.available_permits(), WAITING);
    }

    #[tokio::test]
    async fn an_issuer_that_is_away_is_asked_until_it_comes() {
        let signer = Signer::p256("k");
        let mut issuer = Issuer::away().unwrap();
        issuer.publish(&[&signer.0]);
        let kept = keep(&issuer, json!({}), STILL);
        assert_eq!(kept.verify(&signer).await, Err(Unfit::NoKeys));
        issuer.come().await.unwrap();
        kept.becomes(&signer, Ok(())).await;
    }

    #[tokio::test]
    async fn the_last_keys_are_good_while_the_issuer_is_away_and_not_for_ever() {
        let signer = Signer::rsa("k");
        let issuer = issuer(&[&signer]).await;
        let often = Pace { every: Duration::from_millis(5), ..STILL };
        let (day, moment) =
            (keep(&issuer, json!({}), often), keep(&issuer, json!({}), Pace { kept: Duration::from_millis(200), ..often }));
        day.becomes(&signer, Ok(())).await;
        moment.becomes(&signer, Ok(())).await;
        issuer.answer("/keys", Answer { status: 503, header: None, body: String::new() });
        moment.becomes(&signer, Err(Unfit::NoKeys)).await;
        assert_eq!(day.verify(&signer).await, Ok(()));
        issuer.publish(&[&signer.0]);
        moment.becomes(&signer, Ok(())).await;
        issuer.publish(&[]);
        day.becomes(&signer, Err(Unfit::UnknownKey)).await;
    }

    #[tokio::test]
    async fn a_file_is_read_again_when_it_changes() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("keys.json");
        let (old, new) = (Signer::ed25519("old"), Signer::ed25519("new"));
        let write = |text: String| std::fs::write(&path, text).unwrap();
        let set = |signer: &Signer| json!({"keys": [signer.jwk()]}).to_string();
        write(set(&old));
        let away = Issuer::away().unwrap();
        let kept = keep(&away, json!({"jwks_file": path.to_str().unwrap()}), Pace { every: Duration::from_millis(5), ..STILL });
        assert_eq!(kept.verify(&old).await, Ok(()));
        write("half a fi".to_owned());
        assert_eq!(kept.verify(&old).await, Ok(()));
        write(set(&new));
        kept.becomes(&old, Err(Unfit::UnknownKey)).await;
        assert_eq!(kept.verify(&new).await, Ok(()));
    }

    #[test]
    fn whoever_serves_the_keys_says_within_bounds_how_often_they_are_fetched() {
        for (max_age, expected) in [(None, 600), (Some(0), 60), (Some(90), 90), (Some(u64::MAX), 3600)] {
            assert_eq!(Pace::REMOTE.next(max_age.map(Duration::from_secs)), Duration::from_secs(expected));
        }
    }
}
