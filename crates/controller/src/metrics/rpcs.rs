//! Calls of RPCs, by what became of them.

use std::collections::HashSet;
use std::fmt;
use std::sync::Arc;
use std::sync::atomic::{AtomicI64, AtomicU64, Ordering};

use prometheus_client::collector::Collector;
use prometheus_client::encoding::{DescriptorEncoder, EncodeMetric as _};
use prometheus_client::metrics::MetricType;
use prometheus_client::metrics::counter::ConstCounter;
use prometheus_client::metrics::gauge::ConstGauge;
use prometheus_client::metrics::histogram::Histogram;
use prost::Message as _;
use prost_types::FileDescriptorSet;
use tokio::time::Instant;
use tonic::Code;

use crate::auth::TABLE;

/// The codes of gRPC.
const CODES: usize = 17;

/// Seconds until a call is done, its answer taken.
const SECONDS: [f64; 11] = [0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 1.0, 5.0, 30.0];

#[derive(Debug)]
struct Rpc {
    /// Its name, of service and method.
    name: &'static str,
    is_stream: bool,
    under_way: AtomicI64,
    codes: [AtomicU64; CODES],
    seconds: Histogram,
}

/// All RPCs, in the order of the table. Clones count together.
#[derive(Debug, Clone)]
pub(crate) struct Rpcs(Arc<Vec<Rpc>>);

/// RPCs that answer, or ask, with a stream: that they last is no news.
fn streams() -> HashSet<String> {
    let mut streams = HashSet::new();
    // Our own descriptors can be read, or there would be no reflection either.
    for file in FileDescriptorSet::decode(octavius_proto::DESCRIPTORS).unwrap_or_default().file {
        for service in &file.service {
            let methods = service.method.iter().filter(|method| method.client_streaming() || method.server_streaming());
            streams.extend(methods.map(|method| format!("/{}.{}/{}", file.package(), service.name(), method.name())));
        }
    }
    streams
}

impl Default for Rpcs {
    fn default() -> Self {
        let streams = streams();
        let of = |path: &'static str| Rpc {
            name: path.trim_start_matches("/octavius.v1."),
            is_stream: streams.contains(path),
            under_way: AtomicI64::new(0),
            codes: [const { AtomicU64::new(0) }; CODES],
            seconds: Histogram::new(SECONDS),
        };
        Self(Arc::new(TABLE.iter().map(|(path, ..)| of(path)).collect()))
    }
}

impl Rpcs {
    /// Begins to observe a call; none where it is not of ours.
    pub(crate) fn begin(&self, path: &str) -> Option<Observed> {
        let index = TABLE.iter().position(|(known, ..)| *known == path)?;
        self.0[index].under_way.fetch_add(1, Ordering::Relaxed);
        Some(Observed { rpcs: self.clone(), index, begun: Instant::now(), code: Code::Cancelled })
    }
}

/// A call under way: when it is dropped, it is over. One whose code nobody has said was given up by its caller.
#[derive(Debug)]
pub(crate) struct Observed {
    rpcs: Rpcs,
    index: usize,
    begun: Instant,
    code: Code,
}

impl Observed {
    /// Whether it is a call that asks, or answers, with a stream.
    pub(crate) fn is_stream(&self) -> bool {
        self.rpcs.0.get(self.index).is_some_and(|rpc| rpc.is_stream)
    }

    /// Reads what became of it in an answer's headers or trailers, if it stands there.
    pub(crate) fn read(&mut self, headers: &http::HeaderMap) {
        if let Some(code) = headers.get(tonic::Status::GRPC_STATUS) {
            self.code = Code::from_bytes(code.as_bytes());
        }
    }
}

impl Drop for Observed {
    fn drop(&mut self) {
        let Some(rpc) = self.rpcs.0.get(self.index) else { return };
        rpc.under_way.fetch_sub(1, Ordering::Relaxed);
        if let Some(count) = usize::try_from(self.code as i32).ok().and_then(|code| rpc.codes.get(code)) {
            count.fetch_add(1, Ordering::Relaxed);
        }
        if !rpc.is_stream {
            rpc.seconds.observe(self.begun.elapsed().as_secs_f64());
        }
    }
}

/// A code as gRPC writes it: UNAVAILABLE.
fn name(code: usize) -> String {
    let camel = format!("{:?}", Code::from_i32(i32::try_from(code).unwrap_or_default()));
    let mut name = String::new();
    for (index, letter) in camel.char_indices() {
        if index > 0 && letter.is_uppercase() {
            name.push('_');
        }
        name.push(letter.to_ascii_uppercase());
    }
    name
}

impl Collector for Rpcs {
    fn encode(&self, mut encoder: DescriptorEncoder<'_>) -> fmt::Result {
        let help = "Calls that are over, by RPC and gRPC code.";
        let mut family = encoder.encode_descriptor("rpcs", help, None, MetricType::Counter)?;
        for rpc in &*self.0 {
            for (code, count) in rpc.codes.iter().enumerate() {
                let count = count.load(Ordering::Relaxed);
                if count > 0 || code == 0 {
                    let labels = [("rpc", rpc.name.to_owned()), ("code", name(code))];
                    ConstCounter::new(count).encode(family.encode_family(&labels)?)?;
                }
            }
        }
        let help = "Calls that are under way.";
        let mut family = encoder.encode_descriptor("rpcs_under_way", help, None, MetricType::Gauge)?;
        for rpc in &*self.0 {
            let under_way = ConstGauge::new(rpc.under_way.load(Ordering::Relaxed));
            under_way.encode(family.encode_family(&[("rpc", rpc.name)])?)?;
        }
        let help = "For how long calls without a stream took until their answer was taken, in seconds.";
        let mut family = encoder.encode_descriptor("rpc_seconds", help, None, MetricType::Histogram)?;
        for rpc in self.0.iter().filter(|rpc| !rpc.is_stream) {
            rpc.seconds.encode(family.encode_family(&[("rpc", rpc.name)])?)?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn streams_are_known_as_such_and_codes_are_called_as_grpc_calls_them() {
        let streams = streams();
        assert!(streams.contains("/octavius.v1.LogService/ReadLog") && streams.contains("/octavius.v1.CatalogService/Apply"));
        assert!(!streams.contains("/octavius.v1.ExecutionService/Execute"));
        assert!(streams.iter().all(|path| TABLE.iter().any(|(known, ..)| known == path)), "{streams:?}");
        assert_eq!((name(0), name(8), name(16)), ("OK".into(), "RESOURCE_EXHAUSTED".into(), "UNAUTHENTICATED".into()));
    }
}
