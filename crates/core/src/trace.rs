//! The place of something in a distributed trace, as [W3C Trace Context](https://www.w3.org/TR/trace-context/) writes it down: what goes with a
//! call as `traceparent` and `tracestate`, and into a job's environment as `TRACEPARENT` and `TRACESTATE`.

use std::fmt;

use serde::{Deserialize, Serialize};

/// Most bytes of a state: what the standard asks everyone to pass on at least.
const STATE_BYTES: usize = 512;
/// Most members of a state.
const STATE_MEMBERS: usize = 32;

/// A span in a trace, of ours or of somebody else's: the parent of what follows from it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(into = "Written", try_from = "Written")]
pub struct TraceContext {
    trace_id: u128,
    span_id: u64,
    sampled: bool,
    state: String,
}

/// The form of a context in a record.
#[derive(Serialize, Deserialize)]
struct Written {
    parent: String,
    #[serde(default, skip_serializing_if = "String::is_empty")]
    state: String,
}

impl From<TraceContext> for Written {
    fn from(context: TraceContext) -> Self {
        Self { parent: context.traceparent(), state: context.state }
    }
}

impl TryFrom<Written> for TraceContext {
    type Error = &'static str;

    fn try_from(written: Written) -> Result<Self, Self::Error> {
        Self::parse(&written.parent, &written.state).ok_or("not a trace context")
    }
}

impl TraceContext {
    /// The context of a span. None where one of the ids is 0, which no span has.
    #[must_use]
    pub fn new(trace_id: u128, span_id: u64, sampled: bool, state: &str) -> Option<Self> {
        let state = if is_state(state) { state.trim_matches([' ', '\t']).to_owned() } else { String::new() };
        (trace_id != 0 && span_id != 0).then_some(Self { trace_id, span_id, sampled, state })
    }

    /// Reads a `traceparent` and the `tracestate` beside it, empty for none. Whatever is not just as the standard has it counts as no context:
    /// nobody is refused for it. A state that is not is dropped, and the parent holds without it.
    #[must_use]
    pub fn parse(parent: &str, state: &str) -> Option<Self> {
        if !parent.is_ascii() || parent.len() < 55 {
            return None;
        }
        let (known, rest) = parent.split_at(55);
        let mut parts = known.split('-');
        let mut hex = |digits: usize| {
            let part = parts.next().filter(|part| part.len() == digits)?;
            let lower = part.bytes().all(|byte| matches!(byte, b'0'..=b'9' | b'a'..=b'f'));
            u128::from_str_radix(part, 16).ok().filter(|_| lower)
        };
        let (version, trace_id, span_id, flags) = (hex(2)?, hex(32)?, hex(16)?, hex(2)?);
        // A later version may say more behind what is known; ff is none.
        let more = version > 0 && rest.starts_with('-');
        if version == 0xff || !(rest.is_empty() || more) {
            return None;
        }
        Self::new(trace_id, u64::try_from(span_id).ok()?, flags & 1 == 1, state)
    }

    /// The trace's id.
    #[must_use]
    pub const fn trace_id(&self) -> u128 {
        self.trace_id
    }

    /// The trace's id as people and tools write it: 32 hexadecimal digits.
    #[must_use]
    pub fn trace_id_text(&self) -> String {
        format!("{:032x}", self.trace_id)
    }

    /// The id of the span in the trace.
    #[must_use]
    pub const fn span_id(&self) -> u64 {
        self.span_id
    }

    /// Whether whoever began the trace records it.
    #[must_use]
    pub const fn is_sampled(&self) -> bool {
        self.sampled
    }

    /// The `traceparent`.
    #[must_use]
    pub fn traceparent(&self) -> String {
        self.to_string()
    }

    /// The `tracestate`; empty for none.
    #[must_use]
    pub fn tracestate(&self) -> &str {
        &self.state
    }
}

impl fmt::Display for TraceContext {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "00-{:032x}-{:016x}-{:02x}", self.trace_id, self.span_id, u8::from(self.sampled))
    }
}

/// Whether a `tracestate` is as the standard has it: `key=value` separated by commas, where no key is twice.
fn is_state(state: &str) -> bool {
    let members: Vec<&str> =
        state.split(',').map(|member| member.trim_matches([' ', '\t'])).filter(|member| !member.is_empty()).collect();
    let is_key = |key: &str| {
        let first = key.bytes().next().is_some_and(|byte| byte.is_ascii_lowercase() || byte.is_ascii_digit());
        let rest = |byte: u8| byte.is_ascii_lowercase() || byte.is_ascii_digit() || b"_-*/@".contains(&byte);
        first && key.len() <= 256 && key.bytes().all(rest)
    };
    let is_value = |value: &str| {
        let printable = |byte: u8| (0x20..=0x7e).contains(&byte) && byte != b',' && byte != b'=';
        !value.is_empty() && value.len() <= 256 && value.bytes().all(printable)
    };
    let mut keys: Vec<&str> = members.iter().filter_map(|member| member.split_once('=')).map(|(key, _)| key).collect();
    keys.sort_unstable();
    keys.dedup();
    state.len() <= STATE_BYTES
        && members.len() <= STATE_MEMBERS
        && keys.len() == members.len()
        && members.iter().all(|member| member.split_once('=').is_some_and(|(key, value)| is_key(key) && is_value(value)))
}

#[cfg(test)]
mod tests {
    use super::*;

    const PARENT: &str = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01";

    #[test]
    fn what_the_standard_shows_is_read_and_written_as_it_was() {
        let context = TraceContext::parse(PARENT, "rojo=00f067aa0ba902b7,congo=t61rcWkgMzE").unwrap();
        assert_eq!(context.trace_id_text(), "4bf92f3577b34da6a3ce929d0e0e4736");
        assert_eq!((context.span_id(), context.is_sampled()), (0x00f0_67aa_0ba9_02b7, true));
        assert_eq!(context.traceparent(), PARENT);
        assert_eq!(context.tracestate(), "rojo=00f067aa0ba902b7,congo=t61rcWkgMzE");
        let stored = serde_json::to_string(&context).unwrap();
        assert_eq!(serde_json::from_str::<TraceContext>(&stored).unwrap(), context);
        let plain = TraceContext::parse(PARENT, "").unwrap();
        assert_eq!(serde_json::to_string(&plain).unwrap(), format!("{{\"parent\":\"{PARENT}\"}}"));
        assert!(serde_json::from_str::<TraceContext>(r#"{"parent":"x"}"#).is_err());
    }

    #[test]
    fn flags_and_versions_of_tomorrow_are_read_as_far_as_they_are_known() {
        let of = |text: &str| TraceContext::parse(text, "").map(|context| context.traceparent());
        assert_eq!(of(&PARENT.replace("-01", "-03")), Some(PARENT.to_owned()));
        assert_eq!(of(&PARENT.replace("-01", "-02")), Some(PARENT.replace("-01", "-00")));
        assert_eq!(of(&PARENT.replacen("00-", "cc-", 1)), Some(PARENT.to_owned()));
        assert_eq!(of(&format!("{}-what-comes", PARENT.replacen("00-", "cc-", 1))), Some(PARENT.to_owned()));
    }

    #[test]
    fn whatever_is_malformed_is_no_context() {
        for wrong in [
            "".to_owned(),
            "x".to_owned(),
            PARENT[..54].to_owned(),
            format!("{PARENT}-more"),
            format!("{PARENT}0"),
            format!(" {PARENT}"),
            PARENT.to_uppercase(),
            PARENT.replacen("00-", "ff-", 1),
            PARENT.replacen("00-", "cc-", 1) + ".more",
            PARENT.replace('-', "_"),
            PARENT.replace("4bf92f3577b34da6a3ce929d0e0e4736", &"0".repeat(32)),
            PARENT.replace("00f067aa0ba902b7", &"0".repeat(16)),
            PARENT.replace("4bf9", "4bg9"),
            PARENT.replace("4bf9", "+bf9"),
            PARENT.replace("4bf9", "4bé"),
        ] {
            assert_eq!(TraceContext::parse(&wrong, ""), None, "{wrong}");
        }
    }

    #[test]
    fn a_state_that_is_none_is_dropped_and_the_parent_holds() {
        let many: Vec<String> = (0..33).map(|number| format!("k{number}=v")).collect();
        for wrong in ["a", "=b", "a=", "A=b", "a=b,a=c", "a=b\nc", "a=b=c", &"a".repeat(600), &many.join(",")] {
            let context = TraceContext::parse(PARENT, wrong).unwrap();
            assert_eq!(context.tracestate(), "", "{wrong}");
        }
        assert_eq!(TraceContext::parse(PARENT, " a=b , ,c@d=e f").unwrap().tracestate(), "a=b , ,c@d=e f");
    }
}
