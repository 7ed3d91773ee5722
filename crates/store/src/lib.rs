//! The store of Octavius: one narrow trait that every part of the controller writes through, the keys and records that are kept in
//! it, and its backends. Callers see [`Store`] only; [`open_embedded`] picks the backend that is one file on disk, [`open_etcd`] the one
//! that any number of controllers share.
//!
//! A store is a map from keys to values with one revision number for all of it, which each successful transaction raises by one. A
//! transaction writes all of its keys or none, on the condition that other keys are still as they were read. What
//! [`Store::commit`] has answered is durable.

mod api;
pub mod backup;
pub mod blob;
pub mod codec;
pub mod conformance;
mod embedded;
mod etcd;
mod failing;
pub mod key;
mod layer;
pub mod piece;
pub mod record;

pub use api::{
    Change, Commit, Condition, Entry, Event, Key, Page, Presence, Range, Refusal, Revision, Store, StoreError, Txn, Usage, Watch,
    WatchBatch,
};
pub use embedded::{EmbeddedOptions, open_embedded};
pub use etcd::{EtcdOptions, open_etcd, read_foreign};
pub use layer::StoreLayer;
