//! Traces: what this process exports, and the trace that a command is part of.

use std::time::Duration;

use octavius_core::TraceContext;
use octavius_trace::{Collector, Exporting, Kind, Span};

use crate::env;
use crate::error::{Failure, Outcome};
use crate::exit::Exit;
use crate::output::Shell;

/// How long the end of a command waits for its spans to be taken.
const FLUSH: Duration = Duration::from_secs(1);

/// How long the stop of a daemon waits for that.
const LAST: Duration = Duration::from_secs(3);

fn collector(configured: Option<&str>, service: &str) -> Result<Option<Collector>, String> {
    Collector::find(env::get, configured, service, env!("CARGO_PKG_VERSION"))
}

/// The export of a daemon's spans; none where nobody says where to.
#[derive(Debug)]
pub struct Export(Option<Exporting>);

impl Export {
    /// Begins it, where the environment or `configured` names a collector. `service` is how the daemon is called there.
    ///
    /// # Errors
    /// Where what is said cannot be understood.
    pub fn start(configured: Option<&str>, service: &str) -> Outcome<Self> {
        let Some(collector) = collector(configured, service).map_err(Failure::usage)? else { return Ok(Self(None)) };
        let exporting = octavius_trace::start(&collector).map_err(|error| Failure::new(Exit::Usage, error))?;
        tracing::info!(endpoint = collector.shown(), "exporting spans");
        Ok(Self(Some(exporting)))
    }

    /// Exports what is there still.
    pub async fn stop(self) {
        if let Some(exporting) = self.0
            && let Err(error) = exporting.stop(LAST).await
        {
            tracing::warn!(%error, "the last spans were not exported");
        }
    }
}

/// Runs a command as part of the trace that the environment names, as CI systems do; or as the first span of one, where a collector is named.
/// Whatever is wrong with that is a warning, and no reason not to run it.
///
/// # Errors
/// Those of the command.
pub async fn traced(shell: &Shell, name: &'static str, work: impl Future<Output = Outcome>) -> Outcome {
    let came = env::get(env::TRACEPARENT)
        .and_then(|parent| TraceContext::parse(parent.trim(), &env::get(env::TRACESTATE).unwrap_or_default()));
    let begun = collector(None, "octavius").and_then(|collector| {
        let hasty = collector.map(|collector| Collector { retries: false, ..collector });
        hasty.map(|collector| octavius_trace::start(&collector)).transpose().map_err(|error| error.to_string())
    });
    let exporting = begun.unwrap_or_else(|problem| {
        shell.warn(&format!("no trace: {problem}"));
        None
    });
    let mut span = Span::begin(name, Kind::Client, came.as_ref());
    let outcome = octavius_proto::trace::within(span.hand_on(came.as_ref()), work).await;
    let exit = match &outcome {
        Ok(exit) => *exit,
        Err(failure) => failure.exit,
    };
    if exit != Exit::Done {
        span.set("process.exit.code", i64::from(exit.code()));
        span.fail(format!("exit code {}", exit.code()));
    }
    drop(span);
    if let Some(exporting) = exporting
        && let Err(error) = exporting.stop(FLUSH).await
    {
        shell.warn(&error.to_string());
    }
    outcome
}
