//! Labels of executors and the selectors of jobs.

use std::collections::BTreeMap;

/// Labels by key, in order of their keys. An executor has them; a job's `executor` names those that must match.
pub type Labels = BTreeMap<String, String>;

/// Whether an executor with `labels` may run a job that asks for `selector`: every pair asked for must be there.
#[must_use]
pub fn matches(selector: &Labels, labels: &Labels) -> bool {
    selector.iter().all(|(key, value)| labels.get(key) == Some(value))
}

/// One text for a selector, the same for equal selectors: `vpc=payments,zone=a`; `any` for the empty one. It names a pool of
/// executors in the store's keys.
#[must_use]
pub fn pool(selector: &Labels) -> String {
    if selector.is_empty() {
        return "any".to_owned();
    }
    selector.iter().map(|(key, value)| format!("{key}={value}")).collect::<Vec<_>>().join(",")
}

/// Whether `text` may be a label's key or value: 1 to 63 characters of `A-Z a-z 0-9 . _ -`, letter or digit at both ends; a key
/// may also have one `/` after a prefix.
#[must_use]
pub fn is_valid_part(text: &str, is_key: bool) -> bool {
    let part = |text: &str| crate::id::JobName::new(text).is_ok();
    match text.split_once('/') {
        Some((prefix, name)) => is_key && part(prefix) && part(name),
        None => part(text),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn labels(pairs: &[(&str, &str)]) -> Labels {
        pairs.iter().map(|(k, v)| ((*k).to_owned(), (*v).to_owned())).collect()
    }

    #[test]
    fn a_job_runs_only_where_every_label_it_asks_for_is() {
        let executor = labels(&[("vpc", "payments"), ("zone", "a")]);
        assert!(matches(&labels(&[]), &executor));
        assert!(matches(&labels(&[("vpc", "payments")]), &executor));
        assert!(!matches(&labels(&[("vpc", "web")]), &executor));
        assert!(!matches(&labels(&[("vpc", "payments"), ("gpu", "yes")]), &executor));
        assert_eq!(pool(&executor), "vpc=payments,zone=a");
    }
}
