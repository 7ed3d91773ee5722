//! Presences. Times to live are of whole seconds, as etcd has them.

use std::time::Duration;

use super::{PATIENCE, key, next, put, shorts};
use crate::api::{Presence, Store, StoreError, Watch};

const SHORT: Duration = Duration::from_secs(1);
const LONG: Duration = Duration::from_secs(600);

async fn announce(store: &dyn Store, value: &'static str, ttl: Duration) -> Box<dyn Presence> {
    store.announce(key("p/one"), value.into(), ttl).await.unwrap()
}

async fn value(store: &dyn Store) -> Option<String> {
    store.get(&key("p/one")).await.unwrap().map(|entry| String::from_utf8_lossy(&entry.value).into_owned())
}

/// That nothing happens for a time, which is also how the tests let time pass.
async fn quiet(watch: &mut Box<dyn Watch>, time: Duration) {
    let event = tokio::time::timeout(time, watch.next()).await;
    assert!(event.is_err(), "{event:?}");
}

pub(super) async fn one_appears_and_runs_out(store: &dyn Store) {
    let start = put(store, "p/other", "x").await;
    let mut watch = store.watch(&key("p/one"), start).await.unwrap();
    let presence = announce(store, "here", SHORT).await;
    assert_eq!(shorts(&next(&mut watch).await), ["p/one=here"]);
    assert_eq!(value(store).await.as_deref(), Some("here"));
    assert_eq!(shorts(&next(&mut watch).await), ["p/one gone"]);
    assert_eq!(presence.renew().await, Err(StoreError::PresenceLost));
    assert_eq!(value(store).await, None);
    // One that is dropped runs out as well, and the same key can be announced again.
    drop(announce(store, "again", SHORT).await);
    assert_eq!(shorts(&next(&mut watch).await), ["p/one=again"]);
    assert_eq!(shorts(&next(&mut watch).await), ["p/one gone"]);
    assert!(store.get(&key("p/other")).await.unwrap().is_some());
}

pub(super) async fn one_is_renewed(store: &dyn Store) {
    let start = put(store, "p/other", "x").await;
    let presence = announce(store, "here", SHORT * 2).await;
    let mut watch = store.watch(&key("p/one"), start).await.unwrap();
    assert_eq!(shorts(&next(&mut watch).await), ["p/one=here"]);
    for _ in 0..6 {
        quiet(&mut watch, SHORT / 2).await;
        assert_eq!(presence.renew().await, Ok(()));
    }
    assert_eq!(shorts(&next(&mut watch).await), ["p/one gone"]);
}

pub(super) async fn one_is_withdrawn(store: &dyn Store) {
    let start = put(store, "p/other", "x").await;
    let mut watch = store.watch(&key("p/one"), start).await.unwrap();
    let presence = announce(store, "here", LONG).await;
    assert_eq!(shorts(&next(&mut watch).await), ["p/one=here"]);
    assert_eq!(tokio::time::timeout(PATIENCE, presence.withdraw()).await, Ok(Ok(())));
    assert_eq!(value(store).await, None);
    assert_eq!(shorts(&next(&mut watch).await), ["p/one gone"]);
}

pub(super) async fn one_is_taken_over(store: &dyn Store) {
    let start = put(store, "p/other", "x").await;
    let mut watch = store.watch(&key("p/one"), start).await.unwrap();
    let old = announce(store, "old", SHORT).await;
    let new = announce(store, "new", LONG).await;
    assert_eq!(shorts(&next(&mut watch).await), ["p/one=old"]);
    assert_eq!(shorts(&next(&mut watch).await), ["p/one=new"]);
    // The old one's end, by time or by its owner, is not the new one's.
    quiet(&mut watch, SHORT * 3).await;
    assert_eq!(old.renew().await, Err(StoreError::PresenceLost));
    assert_eq!(new.renew().await, Ok(()));
    assert!(matches!(old.withdraw().await, Ok(()) | Err(StoreError::PresenceLost)));
    assert_eq!(value(store).await.as_deref(), Some("new"));
    new.withdraw().await.unwrap();
    assert_eq!(shorts(&next(&mut watch).await), ["p/one gone"]);
}
