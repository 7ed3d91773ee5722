//! The trace that a call is part of. Whoever makes calls for something runs them [`within`] its context, and each call made there carries it;
//! whoever takes a call finds it in its headers.

use octavius_core::TraceContext;
use tonic::metadata::{MetadataMap, MetadataValue};

use crate::v1;

const PARENT: &str = "traceparent";
const STATE: &str = "tracestate";

tokio::task_local! {
    static CURRENT: TraceContext;
}

/// Runs `work`, whose calls carry the context; without one, just as it is.
pub async fn within<T>(context: Option<TraceContext>, work: impl Future<Output = T>) -> T {
    match context {
        Some(context) => CURRENT.scope(context, work).await,
        None => work.await,
    }
}

/// The context that work runs in; none outside of [`within`].
#[must_use]
pub fn current() -> Option<TraceContext> {
    CURRENT.try_with(Clone::clone).ok()
}

/// Puts the context of the work that makes a call into the call's metadata.
pub(crate) fn send(metadata: &mut MetadataMap) {
    let _ = CURRENT.try_with(|context| {
        // What has been parsed has nothing in it that a header cannot hold.
        if let Ok(parent) = MetadataValue::try_from(context.traceparent()) {
            metadata.insert(PARENT, parent);
        }
        if let Some(state) = Some(context.tracestate()).filter(|state| !state.is_empty())
            && let Ok(state) = MetadataValue::try_from(state)
        {
            metadata.insert(STATE, state);
        }
    });
}

/// What a call's headers say of the trace that it is part of; none where they say nothing, or nothing that can be understood. A header that
/// is there twice says nothing.
#[must_use]
pub fn received(headers: &http::HeaderMap) -> Option<TraceContext> {
    let mut parents = headers.get_all(PARENT).iter();
    let (parent, None) = (parents.next()?, parents.next()) else { return None };
    let states: Vec<&str> = headers.get_all(STATE).iter().filter_map(|state| state.to_str().ok()).collect();
    TraceContext::parse(parent.to_str().ok()?, &states.join(","))
}

impl From<&TraceContext> for v1::TraceContext {
    fn from(context: &TraceContext) -> Self {
        Self { parent: context.traceparent(), state: context.tracestate().to_owned() }
    }
}

impl v1::TraceContext {
    /// The context, where it is one.
    #[must_use]
    pub fn read(&self) -> Option<TraceContext> {
        TraceContext::parse(&self.parent, &self.state)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const TEXT: &str = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01";

    #[tokio::test]
    async fn what_is_sent_within_a_trace_is_what_is_received() {
        let mut metadata = MetadataMap::new();
        send(&mut metadata);
        assert!(metadata.is_empty(), "nobody traces");
        let context = TraceContext::parse(TEXT, "a=b").unwrap();
        within(Some(context.clone()), async { send(&mut metadata) }).await;
        assert_eq!(received(&metadata.into_headers()), Some(context));
    }

    #[test]
    fn what_is_malformed_or_said_twice_is_nothing() {
        let mut headers = http::HeaderMap::new();
        headers.insert(PARENT, http::HeaderValue::from_bytes(b"\xff").unwrap());
        assert_eq!(received(&headers), None);
        headers.insert(PARENT, TEXT.parse().unwrap());
        assert!(received(&headers).is_some());
        headers.append(PARENT, TEXT.parse().unwrap());
        assert_eq!(received(&headers), None);
    }
}
