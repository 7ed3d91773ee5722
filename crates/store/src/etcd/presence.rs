//! Presences: keys on a lease.

use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use bytes::Bytes;
use etcd_client::PutOptions;

use super::connection::Cluster;
use super::failure::Failure;
use super::keys::Prefix;
use super::renewal::Renewals;
use crate::api::{Key, Presence, StoreError, Txn};

/// Longest time to live: etcd refuses more than about 285 years, and nobody means even this.
const LONGEST: Duration = Duration::from_secs(365 * 24 * 3600);

/// A key on a lease. Whoever puts the key anew takes it off this lease, so that its end touches this owner's key only.
pub(super) struct Lease {
    cluster: Arc<Cluster>,
    renewals: Arc<Renewals>,
    id: i64,
}

impl Lease {
    pub(super) async fn announce(
        cluster: &Arc<Cluster>,
        renewals: &Arc<Renewals>,
        prefix: &Prefix,
        key: Key,
        value: Bytes,
        ttl: Duration,
    ) -> Result<Self, StoreError> {
        Txn::new().put(key.clone(), value.clone()).check()?;
        // Whole seconds, never less than asked for. Etcd makes more of it where it has to: at least one and a half election timeouts.
        let ttl = ttl.min(LONGEST);
        let seconds = i64::try_from(ttl.as_secs()).unwrap_or(i64::MAX) + i64::from(ttl.subsec_nanos() > 0);
        // Where this answer is lost, a lease without keys runs out by itself: nothing has happened.
        let granted = cluster
            .write(|member| {
                let mut lease = member.lease();
                async move { lease.grant(seconds.max(1), None).await }
            })
            .await
            .map_err(Failure::of_read)?;
        let lease = Self { cluster: Arc::clone(cluster), renewals: Arc::clone(renewals), id: granted.id() };
        let name = prefix.key(&key);
        let put = cluster.write(|member| {
            let (mut kv, name, value) = (member.kv(), name.clone(), value.to_vec());
            let options = PutOptions::new().with_lease(lease.id);
            async move { kv.put(name, value, Some(options)).await }
        });
        match put.await {
            Ok(_) => Ok(lease),
            Err(failure) => {
                let error = failure.of_write();
                // Best effort: it would run out anyway.
                let _ = lease.revoke().await;
                Err(error)
            }
        }
    }

    /// Ends the lease, and with it the key, in one step.
    async fn revoke(&self) -> Result<(), StoreError> {
        match self
            .cluster
            .write(|member| {
                let (mut lease, id) = (member.lease(), self.id);
                async move { lease.revoke(id).await }
            })
            .await
        {
            Ok(_) | Err(Failure::LeaseGone) => Ok(()),
            Err(failure) => Err(failure.of_write()),
        }
    }
}

#[async_trait]
impl Presence for Lease {
    async fn renew(&self) -> Result<(), StoreError> {
        self.renewals.renew(self.id).await
    }

    async fn withdraw(self: Box<Self>) -> Result<(), StoreError> {
        self.revoke().await
    }
}
