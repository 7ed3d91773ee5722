//! An attempt in its trace, and in the executor's log: every line and every call within it says which attempt it is of.

use octavius_core::TraceContext;
use octavius_core::execution::{Ending, State};
use octavius_proto::trace;
use octavius_trace::{Kind, Span};
use tracing::Instrument as _;
use tracing::field::{Empty, display};

use crate::runner::Held;

/// An attempt's own span.
#[derive(Debug)]
pub(crate) struct Traced {
    span: Span,
    context: Option<TraceContext>,
}

impl Traced {
    /// Begins the span of an attempt, a child of the context that came with it.
    pub(crate) fn begin(held: Held, came: Option<&TraceContext>) -> Self {
        let mut span = Span::begin("attempt", Kind::Consumer, came);
        if span.is_recorded() {
            span.set("octavius.execution.id", held.id.to_string());
            span.set("octavius.attempt", i64::from(held.fence.attempt));
        }
        let context = span.hand_on(came);
        Self { span, context }
    }

    /// The parent of what the job itself does.
    pub(crate) fn context(&self) -> Option<&TraceContext> {
        self.context.as_ref()
    }

    /// Runs what is done for the attempt.
    pub(crate) async fn lead<T>(&self, held: Held, work: impl Future<Output = T>) -> T {
        let line = tracing::info_span!("attempt", execution = %held.id, attempt = held.fence.attempt, trace_id = Empty);
        if let Some(context) = &self.context {
            line.record("trace_id", display(context.trace_id_text()));
        }
        trace::within(self.context.clone(), work).instrument(line).await
    }

    /// Says which job it is of.
    pub(crate) fn of_job(&mut self, job: &str) {
        if self.span.is_recorded() {
            self.span.set("octavius.job", job.to_owned());
        }
    }

    /// Says how the attempt ended. The message stays where people may see the execution: nobody knows what is in it.
    pub(crate) fn ended(&mut self, ending: &Ending) {
        if !self.span.is_recorded() {
            return;
        }
        self.span.set("octavius.outcome", ending.outcome.to_string());
        if let Some(code) = ending.exit_code {
            self.span.set("octavius.exit_code", i64::from(code));
        }
        if let Some(reason) = &ending.reason {
            self.span.set("octavius.reason", reason.0.clone());
        }
        if ending.outcome != State::Succeeded {
            self.span.fail(ending.reason.as_ref().map_or_else(|| ending.outcome.to_string(), |reason| reason.0.clone()));
        }
    }

    /// Says why the attempt was not led to its end here.
    pub(crate) fn left(&mut self, why: &'static str) {
        self.span.set("octavius.left", why);
    }
}

/// A step of the attempt in whose work this is called. It ends when it is dropped.
pub(crate) fn step(name: &'static str) -> Span {
    match octavius_trace::is_on() {
        true => Span::begin(name, Kind::Internal, trace::current().as_ref()),
        false => Span::default(),
    }
}
