//! Room: how much there is, and how it is given back.

use std::time::Duration;

use etcd_client::{AlarmAction, AlarmOptions, AlarmType};

use super::connection::{Cluster, Member};
use super::failure::Failure;
use super::keys::number;
use crate::api::{Revision, StoreError, Usage};

/// Longest time for a member to rewrite its file: it does about 1 GiB in 10 s, and a quota is rarely beyond 8 GiB.
const DEFRAGMENTATION: Duration = Duration::from_secs(300);

/// A file of which less than one in so many bytes is free is not rewritten: the member would stand still for nothing.
const WORTH_IT: u64 = 10;

/// A full store takes writes again once every member's file is below so many percent of its quota: at the quota it would be full again at once.
const REOPEN_BELOW: u64 = 90;

/// A member as it says itself.
struct Status {
    allocated: u64,
    used: u64,
    /// Its quota, where it tells: from 3.6 on.
    quota: Option<u64>,
    is_leader: bool,
}

async fn status(cluster: &Cluster, member: &Member) -> Result<Status, Failure> {
    let answer = cluster
        .ask(member, cluster.timeout, |member| {
            let mut maintenance = member.maintenance();
            async move { maintenance.status().await }
        })
        .await?;
    let count = |number: i64| u64::try_from(number).unwrap_or_default();
    let own = answer.header().map_or(0, etcd_client::ResponseHeader::member_id);
    Ok(Status {
        allocated: count(answer.db_size()),
        used: count(answer.raft_used_db_size()),
        quota: Some(count(answer.db_size_quota())).filter(|quota| *quota > 0),
        is_leader: answer.leader() == own,
    })
}

/// The ids of the members that ran full.
async fn full_members(cluster: &Cluster) -> Result<Vec<u64>, Failure> {
    let answer = cluster
        .read(|member| {
            let mut maintenance = member.maintenance();
            async move { maintenance.alarm(AlarmAction::Get, AlarmType::Nospace, None).await }
        })
        .await?;
    // Etcd before 3.6 answers alarms of all kinds.
    Ok(answer
        .alarms()
        .iter()
        .filter(|alarm| alarm.alarm() == AlarmType::Nospace)
        .map(etcd_client::AlarmMember::member_id)
        .collect())
}

/// The usage of the member that has the largest file. Members that do not answer are left out, unless none does.
pub(super) async fn usage(cluster: &Cluster, quota_bytes: u64) -> Result<Usage, StoreError> {
    let full = !full_members(cluster).await.map_err(Failure::of_read)?.is_empty();
    let mut worst: Option<Usage> = None;
    let mut last = None;
    for member in cluster.members() {
        match status(cluster, member).await {
            Ok(status) => {
                let quota = status.quota.unwrap_or(quota_bytes);
                let usage = Usage { allocated_bytes: status.allocated, used_bytes: status.used, quota_bytes: Some(quota), full };
                worst = worst.filter(|worst| worst.allocated_bytes >= usage.allocated_bytes).or(Some(usage));
            }
            Err(failure) => last = Some(failure),
        }
    }
    match (worst, last) {
        (Some(usage), _) => Ok(usage),
        (None, Some(failure)) => Err(failure.of_read()),
        (None, None) => Err(StoreError::Unavailable("it has no members".to_owned())),
    }
}

pub(super) async fn compact(cluster: &Cluster, until: Revision) -> Result<(), StoreError> {
    if until == 0 {
        return Ok(());
    }
    // Done twice it is the same as once, so that a lost answer may be asked for again.
    match cluster
        .read(|member| {
            let mut kv = member.kv();
            async move { kv.compact(number(until), None).await }
        })
        .await
    {
        Ok(_) | Err(Failure::Compacted) => Ok(()),
        Err(failure) => Err(failure.of_read()),
    }
}

/// The members that do not answer while room is given back, and what the last of them said.
#[derive(Default)]
struct Silent(Option<StoreError>);

impl Silent {
    /// What a member answered, if it did.
    fn note<T>(&mut self, member: &Member, answer: Result<T, Failure>) -> Option<T> {
        answer
            .map_err(|failure| {
                let error = StoreError::Unavailable(format!("{member}: {}", failure.of_read()));
                tracing::warn!(%error, "an etcd member is passed over while room is given back");
                self.0 = Some(error);
            })
            .ok()
    }

    /// Fails unless so many, who did answer, are more than half of all members.
    fn unless_majority(&self, answered: usize, cluster: &Cluster) -> Result<(), StoreError> {
        match &self.0 {
            Some(error) if answered * 2 <= cluster.members().len() => Err(error.clone()),
            _ => Ok(()),
        }
    }
}

/// Has each member rewrite its file where that gives something back, one after the other and the leader last, because a member does not
/// answer meanwhile. Then lifts the alarms, if there is room again. Members that do not answer are passed over as long as most do: a store
/// that has run full must come back without one that is gone. Should that one be full still when it returns, it raises its alarm again.
pub(super) async fn reclaim(cluster: &Cluster, quota_bytes: u64) -> Result<(), StoreError> {
    let full = full_members(cluster).await.map_err(Failure::of_read)?;
    let mut silent = Silent::default();
    let mut members = Vec::new();
    for member in cluster.members() {
        if let Some(status) = silent.note(member, status(cluster, member).await) {
            let free = status.allocated.saturating_sub(status.used);
            let worth_it = !full.is_empty() || free >= status.allocated / WORTH_IT;
            members.push((status.is_leader, worth_it, member));
        }
    }
    members.sort_by_key(|(is_leader, ..)| *is_leader);
    let mut rewritten = Vec::new();
    for (_, worth_it, member) in members {
        if worth_it {
            let answer = cluster
                .ask(member, DEFRAGMENTATION, |member| {
                    let mut maintenance = member.maintenance();
                    async move { maintenance.defragment().await }
                })
                .await;
            if silent.note(member, answer).is_none() {
                continue;
            }
        }
        rewritten.push(member);
    }
    silent.unless_majority(rewritten.len(), cluster)?;
    if full.is_empty() {
        return Ok(());
    }
    let mut with_room = 0;
    for member in rewritten {
        let Some(status) = silent.note(member, status(cluster, member).await) else { continue };
        let quota = status.quota.unwrap_or(quota_bytes);
        if status.allocated.saturating_mul(100) >= quota.saturating_mul(REOPEN_BELOW) {
            return Ok(());
        }
        with_room += 1;
    }
    silent.unless_majority(with_room, cluster)?;
    for id in full {
        let lifted = cluster.read(|member| {
            let (mut maintenance, mut options) = (member.maintenance(), AlarmOptions::new());
            options.with_member(id);
            async move { maintenance.alarm(AlarmAction::Deactivate, AlarmType::Nospace, Some(options)).await }
        });
        lifted.await.map_err(Failure::of_read)?;
    }
    Ok(())
}
