//! What an executor has made and no execution is for, as it is told in a session and kept for whoever asks.

use octavius_core::limit::ORPHANS;
use octavius_proto::{timestamp, to_timestamp, v1};
use octavius_store::record::{OrphanRecord, SessionRecord};

use super::texts::clip;

/// Longest name that Kubernetes gives a Job or a namespace, in bytes.
const NAME_BYTES: usize = 253;

/// Keeps what was told, within bounds; true where it is not what is kept already.
pub(super) fn note(session: &mut SessionRecord, told: &v1::Orphans) -> bool {
    let first: Vec<_> = told.orphans.iter().take(ORPHANS).map(record).collect();
    let count = u64::from(told.count).max(first.len() as u64);
    let changed = (&session.orphans, session.orphan_count) != (&first, count);
    (session.orphans, session.orphan_count) = (first, count);
    changed
}

/// A time that is none is left out: what is told of is what matters.
fn record(told: &v1::Orphan) -> OrphanRecord {
    let v1::Orphan { name, namespace, since, removed_at } = told;
    OrphanRecord {
        name: clip(name, NAME_BYTES),
        namespace: clip(namespace, NAME_BYTES),
        since: since.as_ref().and_then(|at| timestamp("since", at).ok()),
        removed_at: removed_at.as_ref().and_then(|at| timestamp("removed_at", at).ok()),
    }
}

/// What is kept, as it is shown.
pub(super) fn shown(session: &SessionRecord) -> Vec<v1::Orphan> {
    let one = |OrphanRecord { name, namespace, since, removed_at }: &OrphanRecord| v1::Orphan {
        name: name.clone(),
        namespace: namespace.clone(),
        since: since.map(to_timestamp),
        removed_at: removed_at.map(to_timestamp),
    };
    session.orphans.iter().map(one).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use octavius_core::Timestamp;

    #[test]
    fn what_is_kept_is_bounded_whatever_is_told() {
        let mut session = SessionRecord {
            labels: octavius_core::Labels::new(),
            capacity: 1,
            version: String::new(),
            runner: String::new(),
            seen_at: Timestamp::UNIX_EPOCH,
            orphans: Vec::new(),
            orphan_count: 0,
        };
        let nonsense = Some(prost_types::Timestamp { seconds: i64::MAX, nanos: -1 });
        let orphan = v1::Orphan { name: "x".repeat(9_000), namespace: "a\u{1b}b".to_owned(), since: nonsense, removed_at: None };
        let told = v1::Orphans { orphans: vec![orphan; 500], count: 3 };
        assert!(note(&mut session, &told));
        assert!(!note(&mut session, &told), "the same again is no change");
        let kept = shown(&session);
        assert_eq!((kept.len(), session.orphan_count), (ORPHANS, 20), "a count is never less than what is shown");
        assert_eq!((kept[0].name.len(), kept[0].namespace.as_str(), kept[0].since), (NAME_BYTES, "a b", None));
        assert!(note(&mut session, &v1::Orphans::default()));
        assert!(shown(&session).is_empty());
    }
}
