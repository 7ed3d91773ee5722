//! The way of spans to the collector: a bounded queue, and a task that sends what is in it. A collector that is away costs the spans, one
//! warning, and no more.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use opentelemetry::Context;
use opentelemetry_otlp::SpanExporter;
use opentelemetry_sdk::error::OTelSdkResult;
use opentelemetry_sdk::trace::{Span, SpanData, SpanExporter as _, SpanProcessor};
use tokio::sync::mpsc::{self, Receiver, Sender};
use tokio::task::JoinHandle;
use tokio::time::{Instant, timeout, timeout_at};
use tokio_util::sync::CancellationToken;

/// Most spans that wait, a kilobyte or so each.
const QUEUE: usize = 2048;
/// Most spans of one batch.
const BATCH: usize = 512;
/// How long a batch is gathered.
const GATHER: Duration = Duration::from_secs(1);
/// Longest time for a batch to be taken. What the library tries again is within it.
const TAKEN_WITHIN: Duration = Duration::from_secs(10);

/// That spans were not exported.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("spans were not exported to {endpoint}: {why}")]
pub struct NotExported {
    /// Where to.
    pub endpoint: String,
    /// Why, the last time.
    pub why: String,
}

/// The way into the queue.
#[derive(Debug)]
pub(crate) struct Queue {
    spans: Sender<SpanData>,
    dropped: Arc<AtomicU64>,
}

impl SpanProcessor for Queue {
    fn on_start(&self, _: &mut Span, _: &Context) {}

    fn on_end(&self, span: SpanData) {
        if span.span_context.is_sampled() && self.spans.try_send(span).is_err() {
            self.dropped.fetch_add(1, Ordering::Relaxed);
        }
    }

    fn force_flush(&self) -> OTelSdkResult {
        Ok(()) // nobody asks it: see `Exporting::stop`
    }

    fn shutdown_with_timeout(&self, _: Duration) -> OTelSdkResult {
        Ok(())
    }
}

/// The export of a process. Dropping it ends nothing: [`Exporting::stop`] does.
#[derive(Debug)]
pub struct Exporting {
    stop: CancellationToken,
    task: JoinHandle<Result<(), NotExported>>,
    endpoint: String,
}

impl Exporting {
    /// Exports what is there still, within `limit`, and ends. Spans that end later are lost.
    ///
    /// # Errors
    /// Where the last of them were not taken.
    pub async fn stop(self, limit: Duration) -> Result<(), NotExported> {
        self.stop.cancel();
        let abort = self.task.abort_handle();
        let why = match timeout(limit, self.task).await {
            Ok(Ok(ended)) => return ended,
            Ok(Err(failed)) => failed.to_string(),
            Err(_) => {
                abort.abort();
                format!("no answer within {} ms", limit.as_millis())
            }
        };
        Err(NotExported { endpoint: self.endpoint, why })
    }
}

/// The queue, and the task that sends what is in it.
pub(crate) fn begin(exporter: SpanExporter, endpoint: String) -> (Queue, Exporting) {
    let (sender, spans) = mpsc::channel(QUEUE);
    let dropped = Arc::new(AtomicU64::new(0));
    let stop = CancellationToken::new();
    let queue = Queue { spans: sender, dropped: Arc::clone(&dropped) };
    let shipping = Shipping { exporter, spans, dropped, stop: stop.clone(), endpoint: endpoint.clone(), lost: 0, why: None };
    let task = tokio::spawn(shipping.run());
    (queue, Exporting { stop, task, endpoint })
}

struct Shipping {
    exporter: SpanExporter,
    spans: Receiver<SpanData>,
    dropped: Arc<AtomicU64>,
    stop: CancellationToken,
    endpoint: String,
    /// Spans that a collector did not take.
    lost: u64,
    /// Why it did not take the last batch; none where it did.
    why: Option<String>,
}

impl Shipping {
    async fn run(mut self) -> Result<(), NotExported> {
        let mut batch = Vec::new();
        loop {
            let goes_on = self.gather(&mut batch).await;
            if !batch.is_empty() {
                self.send(std::mem::take(&mut batch)).await;
            } else if !goes_on {
                break;
            }
        }
        match self.why {
            None => Ok(()),
            Some(why) => Err(NotExported { endpoint: self.endpoint, why }),
        }
    }

    /// Waits for spans, and for a while for more of them; false where the process stops. What was there by then is in the batch.
    async fn gather(&mut self, batch: &mut Vec<SpanData>) -> bool {
        let first = tokio::select! {
            biased;
            first = self.spans.recv() => first,
            () = self.stop.cancelled() => None,
        };
        let Some(first) = first else { return false };
        batch.push(first);
        let until = Instant::now() + GATHER;
        while batch.len() < BATCH {
            let room = BATCH - batch.len();
            let more = tokio::select! {
                biased;
                more = timeout_at(until, self.spans.recv_many(batch, room)) => more.unwrap_or(0),
                () = self.stop.cancelled() => 0,
            };
            if more == 0 {
                break;
            }
        }
        !self.stop.is_cancelled()
    }

    async fn send(&mut self, batch: Vec<SpanData>) {
        let count = batch.len() as u64;
        let answer = match timeout(TAKEN_WITHIN, self.exporter.export(batch)).await {
            Ok(answer) => answer.map_err(|error| error.to_string()),
            Err(_) => Err(format!("no answer within {} s", TAKEN_WITHIN.as_secs())),
        };
        match answer {
            Ok(()) => {
                if self.why.take().is_some() {
                    let lost = self.lost + self.dropped.load(Ordering::Relaxed);
                    tracing::info!(endpoint = self.endpoint, lost, "spans are exported again");
                }
            }
            Err(why) => {
                self.lost += count;
                if self.why.is_none() {
                    tracing::warn!(endpoint = self.endpoint, error = why, "spans cannot be exported; trying on with later ones");
                }
                self.why = Some(why);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use opentelemetry::trace::{Tracer as _, TracerProvider as _};
    use opentelemetry_sdk::trace::{Sampler, SdkTracerProvider};

    use super::*;
    use crate::{Collector, Files, Protocol};

    /// More spans than there is room for, and nobody who takes them: whoever makes them is not held up, memory is bounded, and the end comes
    /// in time.
    #[tokio::test]
    async fn a_flood_of_spans_for_a_collector_that_never_answers_costs_the_spans() {
        let silent = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        let endpoint = format!("http://{}", silent.local_addr().unwrap());
        let (protocol, files) = (Protocol::Grpc, Files::default());
        let collector =
            Collector { endpoint: endpoint.clone(), protocol, files, service: "s".into(), version: "1", retries: true };
        let (queue, exporting) = begin(collector.exporter().unwrap(), endpoint.clone());
        let dropped = Arc::clone(&queue.dropped);
        let provider = SdkTracerProvider::builder().with_sampler(Sampler::AlwaysOn).with_span_processor(queue).build();
        let tracer = provider.tracer("t");
        // In one breath: the task that takes them out has no turn meanwhile.
        for _ in 0..QUEUE + 1000 {
            drop(tracer.start("x"));
        }
        assert_eq!(dropped.load(Ordering::Relaxed), 1000);
        let limit = Duration::from_millis(300);
        let begun = Instant::now();
        let error = exporting.stop(limit).await.unwrap_err();
        assert!(begun.elapsed() < limit + Duration::from_secs(10), "{:?}", begun.elapsed());
        assert_eq!(error, NotExported { endpoint, why: "no answer within 300 ms".to_owned() });
    }
}
