//! Patterns with `*` in them, as the configuration has them.

/// A value that is matched exactly, but for each `*`, which stands for any characters, or none. It is matched from its beginning to its end.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Pattern(String);

impl Pattern {
    pub(crate) fn new(text: &str) -> Self {
        Self(text.to_owned())
    }

    /// Whether it is matched by everything.
    pub(crate) fn is_any(&self) -> bool {
        self.0.bytes().all(|byte| byte == b'*')
    }

    pub(crate) fn matches(&self, text: &str) -> bool {
        let Some((first, rest)) = self.0.split_once('*') else { return self.0 == text };
        let Some(mut text) = text.strip_prefix(first) else { return false };
        let mut parts: Vec<&str> = rest.split('*').collect();
        let last = parts.pop().unwrap_or_default();
        for part in parts {
            // The first place is the best one: it leaves the most for those that follow.
            let Some(at) = text.find(part) else { return false };
            text = &text[at + part.len()..];
        }
        text.ends_with(last)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn patterns_are_anchored_at_both_ends() {
        for (pattern, text, expected) in [
            ("acme/jobs", "acme/jobs", true),
            ("acme/jobs", "acme/jobs2", false),
            ("acme/jobs", "xacme/jobs", false),
            ("acme/jobs", "Acme/Jobs", false),
            ("acme/*", "acme/jobs", true),
            ("acme/*", "acme/", true),
            ("acme/*", "evil/acme/jobs", false),
            ("acme/*", "acme-evil/jobs", false),
            ("*/jobs", "acme/jobs", true),
            ("*/jobs", "acme/jobs/x", false),
            ("refs/*/v*.0", "refs/tags/v1.0", true),
            ("refs/*/v*.0", "refs/tags/v1.0.1", false),
            ("a*a", "a", false),
            ("a*a", "aa", true),
            ("a*b*b", "ab", false),
            ("a**b", "a-b", true),
            ("*", "", true),
            ("", "", true),
            ("", "a", false),
            ("a.c", "abc", false),
            ("[a]", "a", false),
            ("é*", "éa", true),
        ] {
            assert_eq!(Pattern::new(pattern).matches(text), expected, "{pattern} {text}");
        }
    }

    proptest! {
        #[test]
        fn a_pattern_is_what_a_regular_expression_says(pattern in "[ab*]{0,8}", text in "[ab]{0,10}") {
            /// Slow, and without a doubt.
            fn slow(pattern: &str, text: &str) -> bool {
                match pattern.chars().next() {
                    None => text.is_empty(),
                    Some('*') => (0..=text.len()).any(|at| slow(&pattern[1..], &text[at..])),
                    Some(c) => text.starts_with(c) && slow(&pattern[1..], &text[1..]),
                }
            }
            prop_assert_eq!(Pattern::new(&pattern).matches(&text), slow(&pattern, &text));
        }
    }
}
