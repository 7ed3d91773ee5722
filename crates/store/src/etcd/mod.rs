//! The backend that is an etcd: one or several members, shared by any number of controllers.
//!
//! Transactions that wait at the same time go to etcd as one ([`group`], [`commit`]); watches share one stream that opens itself again
//! ([`watch`], [`stream`]); presences are keys on leases, renewed over one stream ([`presence`], [`renewal`]). An error says whether a write
//! may have happened ([`failure`]). Where the etcd is shared with others, [`Store::compact`] and [`Store::reclaim`] are not for us to call:
//! they concern everyone's keys.

mod commit;
mod connection;
mod failure;
mod gets;
mod group;
mod keys;
mod line;
mod presence;
mod read;
mod renewal;
mod stream;
mod upkeep;
mod watch;

use std::fmt;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use bytes::Bytes;

use crate::api::{Commit, Entry, Key, Page, Presence, Range, Revision, Store, StoreError, Txn, Usage, Watch};
use crate::failing;
use commit::Commits;
use connection::Cluster;
use gets::Gets;
use keys::Prefix;
use presence::Lease;
use renewal::Renewals;
use watch::Watches;

/// How an etcd is reached.
#[derive(Clone)]
pub struct EtcdOptions {
    /// Its members: `HOST:PORT`, or URLs with `http` or `https`. At least one.
    pub endpoints: Vec<String>,
    /// What all our keys in it start with, `/octavius/v1/` by default, so that it can be shared with others.
    pub prefix: String,
    /// How long to wait for the answer to one call, a connection to a second member included where the first one is silent. A transaction
    /// that waits behind others may take a quarter as long again.
    pub timeout: Duration,
    /// User and password, where it asks for them.
    pub user: Option<(String, String)>,
    /// Where its certificates are signed by an authority of one's own: the authority's certificate, PEM.
    pub ca_file: Option<PathBuf>,
    /// Where it asks for a client's certificate: certificate and key, PEM.
    pub client_cert: Option<(PathBuf, PathBuf)>,
    /// The quota that its members were started with, `--quota-backend-bytes`; etcd's default is 2 GiB.
    pub quota_bytes: u64,
}

impl EtcdOptions {
    /// The usual way to these members.
    #[must_use]
    pub fn new(endpoints: Vec<String>) -> Self {
        Self {
            endpoints,
            prefix: "/octavius/v1/".to_owned(),
            timeout: Duration::from_secs(2),
            user: None,
            ca_file: None,
            client_cert: None,
            quota_bytes: 2 * 1024 * 1024 * 1024,
        }
    }
}

/// Opens the store in an etcd. It lives on the Tokio runtime that this is called on; members that do not answer now may do so later, as long
/// as one does.
///
/// # Errors
/// [`StoreError::Unavailable`] where no member answers in time, names the endpoints and what went wrong at each; [`StoreError::Refused`]
/// where a file cannot be read, an endpoint is none, or etcd refuses the user.
pub async fn open_etcd(options: EtcdOptions) -> Result<Arc<dyn Store>, StoreError> {
    let prefix = Prefix::new(options.prefix.clone());
    // Some user may see our prefix only, so that nothing else is asked for. Etcd wants a key of at least one byte.
    let probe = Some(prefix.key(&Key::new(""))).filter(|key| !key.is_empty()).unwrap_or_else(|| vec![0]);
    let cluster = Arc::new(Cluster::open(&options, probe).await?);
    let watches = Watches::new(&cluster, &prefix);
    let renewals = Arc::new(Renewals::new(&cluster));
    let commits = Commits::new(&cluster, &prefix);
    let gets = Gets::new(&cluster, &prefix);
    Ok(Arc::new(Etcd { cluster, prefix, commits, gets, watches, renewals, quota_bytes: options.quota_bytes }))
}

/// All keys and values under a prefix of someone else's, in order and as they are at one moment: for imports. `options.prefix` has no part
/// in it.
///
/// # Errors
/// As [`open_etcd`].
pub async fn read_foreign(options: EtcdOptions, prefix: &str) -> Result<Vec<(Vec<u8>, Bytes)>, StoreError> {
    let probe = if prefix.is_empty() { vec![0] } else { prefix.as_bytes().to_vec() };
    read::foreign(&Cluster::open(&options, probe).await?, prefix).await
}

/// The store in an etcd.
struct Etcd {
    cluster: Arc<Cluster>,
    prefix: Prefix,
    commits: Commits,
    gets: Gets,
    watches: Watches,
    renewals: Arc<Renewals>,
    quota_bytes: u64,
}

impl fmt::Debug for Etcd {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Etcd")
            .field("prefix", &self.prefix)
            .field("member", &self.cluster.current().1.to_string())
            .finish_non_exhaustive()
    }
}

#[async_trait]
impl Store for Etcd {
    async fn get(&self, key: &Key) -> Result<Option<Entry>, StoreError> {
        self.gets.get(key).await
    }

    async fn range(&self, range: &Range) -> Result<Page, StoreError> {
        read::range(&self.cluster, &self.watches, &self.prefix, range).await
    }

    async fn commit(&self, txn: Txn) -> Result<Commit, StoreError> {
        failing::commit(self.commits.commit(txn)).await
    }

    async fn watch(&self, prefix: &Key, after: Revision) -> Result<Box<dyn Watch>, StoreError> {
        Ok(Box::new(self.watches.begin(prefix, after)))
    }

    async fn announce(&self, key: Key, value: Bytes, ttl: Duration) -> Result<Box<dyn Presence>, StoreError> {
        Ok(Box::new(Lease::announce(&self.cluster, &self.renewals, &self.prefix, key, value, ttl).await?))
    }

    async fn usage(&self) -> Result<Usage, StoreError> {
        upkeep::usage(&self.cluster, self.quota_bytes).await
    }

    async fn compact(&self, until: Revision) -> Result<(), StoreError> {
        upkeep::compact(&self.cluster, until).await
    }

    async fn reclaim(&self) -> Result<(), StoreError> {
        upkeep::reclaim(&self.cluster, self.quota_bytes).await
    }
}
