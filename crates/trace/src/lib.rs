//! Spans of Octavius' own, and their export to a collector by OTLP. The one room for OpenTelemetry.
//!
//! A process that was not told of a collector makes no spans: [`Span::begin`] then looks at one place in memory and does nothing. One that was
//! makes them as the sampler says, and they go by a bounded queue to a task that sends them in batches; what finds the queue full is dropped and
//! counted. No call ever waits for that. Where something belongs in a trace is [`TraceContext`], which travels whether or not the processes on
//! its way export anything.
//!
//! Nothing that may be secret goes into a span: no arguments, no tokens, no output.

mod collector;
mod export;

use std::borrow::Cow;
use std::sync::OnceLock;
use std::time::SystemTime;

use octavius_core::TraceContext;
use opentelemetry::trace::{
    Span as _, SpanContext, SpanKind, Status, TraceContextExt as _, TraceFlags, TraceState, Tracer as _, TracerProvider as _,
};
use opentelemetry::{Context, KeyValue, SpanId, TraceId};
use opentelemetry_sdk::trace::{SdkTracer, SdkTracerProvider, SpanExporter as _};

pub use collector::{Collector, Files, Protocol, StartError};
pub use export::{Exporting, NotExported};

/// The process's tracer, where it exports.
static TRACER: OnceLock<SdkTracer> = OnceLock::new();

/// Begins to export spans, for the rest of the process. To be called within a runtime, which has to live as long as spans are to be exported.
///
/// # Errors
/// Where the collector's address cannot be understood.
pub fn start(collector: &Collector) -> Result<Exporting, StartError> {
    let mut exporter = collector.exporter()?;
    let resource = collector.resource();
    exporter.set_resource(&resource);
    let (queue, exporting) = export::begin(exporter, collector.shown());
    let provider = SdkTracerProvider::builder().with_resource(resource).with_span_processor(queue).build();
    let _ = TRACER.set(provider.tracer("octavius")); // a second one changes nothing
    Ok(exporting)
}

/// Whether this process exports spans.
#[must_use]
pub fn is_on() -> bool {
    TRACER.get().is_some()
}

/// On which side of what a span is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// Work within the process.
    Internal,
    /// A call that is made.
    Client,
    /// A call that is answered.
    Server,
    /// The work that somebody else has put into a queue.
    Consumer,
}

impl From<Kind> for SpanKind {
    fn from(kind: Kind) -> Self {
        match kind {
            Kind::Internal => Self::Internal,
            Kind::Client => Self::Client,
            Kind::Server => Self::Server,
            Kind::Consumer => Self::Consumer,
        }
    }
}

/// Something that takes time. It ends when it is dropped.
#[derive(Debug, Default)]
pub struct Span(Option<Box<opentelemetry_sdk::trace::Span>>);

impl Span {
    /// Begins a span now; without a parent, it begins a trace. Nothing where the process does not export.
    #[must_use]
    pub fn begin(name: impl Into<Cow<'static, str>>, kind: Kind, parent: Option<&TraceContext>) -> Self {
        Self::begin_at(name, kind, parent, None)
    }

    /// The same for one that began at `since`.
    #[must_use]
    pub fn since(
        name: impl Into<Cow<'static, str>>,
        kind: Kind,
        parent: Option<&TraceContext>,
        since: impl Into<SystemTime>,
    ) -> Self {
        if is_on() { Self::begin_at(name, kind, parent, Some(since.into())) } else { Self(None) }
    }

    fn begin_at(
        name: impl Into<Cow<'static, str>>,
        kind: Kind,
        parent: Option<&TraceContext>,
        since: Option<SystemTime>,
    ) -> Self {
        let Some(tracer) = TRACER.get() else { return Self(None) };
        let mut builder = tracer.span_builder(name).with_kind(kind.into());
        builder.start_time = since;
        let context = parent.map_or_else(Context::new, |parent| Context::new().with_remote_span_context(to_sdk(parent)));
        Self(Some(Box::new(tracer.build_with_context(builder, &context))))
    }

    /// Its place in its trace, for what follows from it; none where the process does not export.
    #[must_use]
    pub fn context(&self) -> Option<TraceContext> {
        let context = self.0.as_ref()?.span_context();
        TraceContext::new(
            u128::from_be_bytes(context.trace_id().to_bytes()),
            u64::from_be_bytes(context.span_id().to_bytes()),
            context.is_sampled(),
            &context.trace_state().header(),
        )
    }

    /// What to hand on: its own context where it is recorded, and otherwise the one that came, if any. So a process that does not export, or
    /// that samples less than others, does not cut a trace in two.
    #[must_use]
    pub fn hand_on(&self, came: Option<&TraceContext>) -> Option<TraceContext> {
        let own = self.0.as_ref().is_some_and(|span| span.is_recording()).then(|| self.context()).flatten();
        own.or_else(|| came.cloned())
    }

    /// Says something about it. What may be secret does not belong here.
    pub fn set(&mut self, key: &'static str, value: impl Into<opentelemetry::Value>) {
        if let Some(span) = &mut self.0 {
            span.set_attribute(KeyValue::new(key, value.into()));
        }
    }

    /// Says that what it stands for failed. What may be secret does not belong here.
    pub fn fail(&mut self, why: impl Into<Cow<'static, str>>) {
        if let Some(span) = &mut self.0 {
            span.set_status(Status::error(why));
        }
    }

    /// Whether it will be exported: whatever costs something to find out is to be asked for only then.
    #[must_use]
    pub fn is_recorded(&self) -> bool {
        self.0.as_ref().is_some_and(|span| span.is_recording())
    }
}

fn to_sdk(context: &TraceContext) -> SpanContext {
    SpanContext::new(
        TraceId::from_bytes(context.trace_id().to_be_bytes()),
        SpanId::from_bytes(context.span_id().to_be_bytes()),
        if context.is_sampled() { TraceFlags::SAMPLED } else { TraceFlags::default() },
        true,
        context.tracestate().parse().unwrap_or_else(|_| TraceState::default()),
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_process_that_does_not_export_makes_nothing_and_hands_on_what_came() {
        let came = TraceContext::parse("00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01", "a=b").unwrap();
        let mut span = Span::begin("x", Kind::Server, Some(&came));
        span.set("key", "value");
        span.fail("why");
        assert!(!span.is_recorded() && span.context().is_none());
        assert_eq!(span.hand_on(Some(&came)), Some(came));
        assert_eq!(span.hand_on(None), None);
    }
}
