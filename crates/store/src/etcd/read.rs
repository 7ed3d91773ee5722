//! Reading pages. All reads are linearizable: they show every transaction that was answered before they were asked.

use std::time::Duration;

use bytes::Bytes;
use etcd_client::GetOptions;
use octavius_core::limit::STORED_VALUE_BYTES;

use super::connection::Cluster;
use super::failure::Failure;
use super::keys::{Prefix, number, range_of, revision};
use super::watch::Watches;
use crate::api::{Page, Range, StoreError};

/// Entries that are asked for at first: few pages are longer, and at the largest values it is 16 MiB.
const FIRST_CHUNK: usize = 256;

/// Most entries that are asked for at once: 64 MiB at the largest values, which is what an answer may have.
const LARGEST_CHUNK: usize = 1024;

/// Entries in a chunk of keys that are not ours. Etcd's requests end at 1.5 MiB, and so do its values.
const FOREIGN_CHUNK: i64 = 40;

/// A page. Etcd answers as many entries as it is asked for, whatever their size, so that a page is asked for in chunks, all at one revision.
pub(super) async fn range(cluster: &Cluster, watches: &Watches, prefix: &Prefix, range: &Range) -> Result<Page, StoreError> {
    if range.limit == 0 {
        return Err(StoreError::Invalid("a page holds at least one entry".to_owned()));
    }
    let (mut from, to) = prefix.range(&range.prefix);
    if let Some(after) = range.after.as_ref().filter(|after| **after >= range.prefix) {
        from = prefix.after(after);
    }
    let mut at = range.at;
    let mut page = Page { entries: Vec::new(), more: false, revision: 0 };
    let mut bytes = 0;
    let mut chunk = FIRST_CHUNK;
    loop {
        let limit = chunk.min(range.limit - page.entries.len());
        let options =
            GetOptions::new().with_range(to.clone()).with_limit(number(limit as u64)).with_revision(at.map_or(0, number));
        let answer = cluster
            .read(|member| {
                let (mut kv, from, options) = (member.kv(), from.clone(), options.clone());
                async move { kv.get(from, Some(options)).await }
            })
            .await;
        let answer = match answer {
            Ok(answer) => answer.0,
            Err(Failure::Compacted) => return Err(compacted(watches, cluster.timeout, range, at).await),
            Err(failure) => return Err(failure.of_read()),
        };
        let shown = revision(answer.header.map_or(0, |header| header.revision));
        page.revision = *at.get_or_insert(shown);
        for pair in answer.kvs {
            if bytes + pair.value.len() > Range::MAX_BYTES {
                page.more = true;
                return Ok(page);
            }
            bytes += pair.value.len();
            page.entries.push(prefix.entry(pair)?);
        }
        page.more = answer.more;
        let Some(last) = page.entries.last().filter(|_| answer.more && page.entries.len() < range.limit) else { return Ok(page) };
        from = prefix.after(&last.key);
        // As many as would fill the page, by the size of those that are there.
        let each = (bytes / page.entries.len()).clamp(1, STORED_VALUE_BYTES);
        chunk = ((Range::MAX_BYTES - bytes) / each + 1).min(LARGEST_CHUNK);
    }
}

/// Etcd does not say what the oldest revision is where it refuses to read; it does where it refuses to watch.
async fn compacted(watches: &Watches, timeout: Duration, range: &Range, at: Option<u64>) -> StoreError {
    let asked = at.unwrap_or_default();
    let mut watch = watches.begin(&range.prefix, asked.saturating_sub(1));
    match tokio::time::timeout(timeout, watch.ended()).await {
        Ok(StoreError::Compacted { oldest, .. }) => StoreError::Compacted { asked, oldest },
        _ => StoreError::Compacted { asked, oldest: asked + 1 },
    }
}

/// All keys and values below a prefix that is not ours, as they are at one moment.
pub(super) async fn foreign(cluster: &Cluster, prefix: &str) -> Result<Vec<(Vec<u8>, Bytes)>, StoreError> {
    let (mut from, to) = range_of(prefix.as_bytes().to_vec());
    let mut found: Vec<(Vec<u8>, Bytes)> = Vec::new();
    let mut at = 0;
    loop {
        let options = GetOptions::new().with_range(to.clone()).with_limit(FOREIGN_CHUNK).with_revision(at);
        let answer = cluster
            .read(|member| {
                let (mut kv, from, options) = (member.kv(), from.clone(), options.clone());
                async move { kv.get(from, Some(options)).await }
            })
            .await;
        let answer = match answer {
            Ok(answer) => answer.0,
            Err(Failure::Compacted) => {
                return Err(StoreError::Unavailable("it was compacted in the middle of reading; try again".to_owned()));
            }
            Err(failure) => return Err(failure.of_read()),
        };
        if at == 0 {
            at = answer.header.map_or(0, |header| header.revision);
        }
        found.extend(answer.kvs.into_iter().map(|pair| (pair.key, Bytes::from(pair.value))));
        let Some((last, _)) = found.last().filter(|_| answer.more) else { return Ok(found) };
        from = [last.as_slice(), b"\0"].concat();
    }
}
