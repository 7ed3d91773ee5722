//! A collector of spans, as OpenTelemetry's own: it takes what is exported by OTLP, over gRPC or HTTP, with or without TLS, and keeps it for a
//! test to look at.

use std::io::{BufRead as _, BufReader, Read, Write};
use std::net::{SocketAddr, TcpListener};
use std::sync::{Arc, Mutex, PoisonError};

use anyhow::{Context as _, Result};
use opentelemetry_proto::tonic::collector::trace::v1::trace_service_server::{TraceService, TraceServiceServer};
use opentelemetry_proto::tonic::collector::trace::v1::{ExportTraceServiceRequest, ExportTraceServiceResponse};
use opentelemetry_proto::tonic::common::v1::{KeyValue, any_value::Value};
use prost::Message as _;
use rustls::pki_types::pem::PemObject as _;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use rustls::server::WebPkiClientVerifier;
use rustls::{RootCertStore, ServerConfig, ServerConnection, StreamOwned};
use tokio::runtime::Runtime;
use tokio_stream::wrappers::TcpListenerStream;
use tonic::transport::{Certificate, Identity, ServerTlsConfig};
use tonic::{Request, Response, Status};

use crate::certificates::PairFiles;

/// A span that was exported.
#[derive(Debug, Clone)]
pub struct Exported {
    /// What it is called.
    pub name: String,
    /// The `service.name` of the process that it is from.
    pub service: String,
    /// The trace's id, as people write it.
    pub trace_id: String,
    /// Its own.
    pub span_id: String,
    /// Its parent's; empty where it has none.
    pub parent_id: String,
    /// What is said of it.
    pub attributes: Vec<(String, String)>,
    /// What is said of the process.
    pub resource: Vec<(String, String)>,
    /// Whether it failed.
    pub failed: bool,
    /// How long it lasted, in nanoseconds.
    pub lasted: u64,
}

impl Exported {
    /// What is said of it under a name.
    #[must_use]
    pub fn attribute(&self, name: &str) -> Option<&str> {
        self.attributes.iter().find(|(known, _)| known == name).map(|(_, value)| value.as_str())
    }
}

#[derive(Debug, Clone, Default)]
struct Kept {
    spans: Arc<Mutex<Vec<Exported>>>,
    /// Headers of each export, `name: value`.
    headers: Arc<Mutex<Vec<String>>>,
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

fn texts(attributes: &[KeyValue]) -> Vec<(String, String)> {
    let text = |value: &Value| match value {
        Value::StringValue(text) => text.clone(),
        Value::IntValue(number) => number.to_string(),
        Value::BoolValue(flag) => flag.to_string(),
        other => format!("{other:?}"),
    };
    let value = |pair: &KeyValue| pair.value.as_ref().and_then(|value| value.value.as_ref()).map(text).unwrap_or_default();
    attributes.iter().map(|pair| (pair.key.clone(), value(pair))).collect()
}

impl Kept {
    fn take(&self, request: ExportTraceServiceRequest) {
        let mut kept = self.spans.lock().unwrap_or_else(PoisonError::into_inner);
        for of_resource in request.resource_spans {
            let resource = texts(&of_resource.resource.unwrap_or_default().attributes);
            let service = resource.iter().find(|(key, _)| key == "service.name").map(|(_, value)| value.clone());
            for span in of_resource.scope_spans.into_iter().flat_map(|scope| scope.spans) {
                kept.push(Exported {
                    name: span.name,
                    service: service.clone().unwrap_or_default(),
                    trace_id: hex(&span.trace_id),
                    span_id: hex(&span.span_id),
                    parent_id: hex(&span.parent_span_id),
                    attributes: texts(&span.attributes),
                    resource: resource.clone(),
                    failed: span.status.is_some_and(|status| status.code == 2),
                    lasted: span.end_time_unix_nano.saturating_sub(span.start_time_unix_nano),
                });
            }
        }
    }

    fn note(&self, header: String) {
        self.headers.lock().unwrap_or_else(PoisonError::into_inner).push(header);
    }
}

#[tonic::async_trait]
impl TraceService for Kept {
    async fn export(&self, request: Request<ExportTraceServiceRequest>) -> Result<Response<ExportTraceServiceResponse>, Status> {
        let headers = request.metadata().clone().into_headers();
        for (name, value) in &headers {
            self.note(format!("{name}: {}", value.to_str().unwrap_or_default()));
        }
        self.take(request.into_inner());
        Ok(Response::new(ExportTraceServiceResponse::default()))
    }
}

/// With what a collector speaks TLS: its own certificate, and the authority whose certificates it asks for.
#[derive(Debug, Clone, Copy)]
pub struct Secured<'s> {
    /// Its own.
    pub pair: &'s PairFiles,
    /// In PEM, of who may export; without, everybody.
    pub clients: Option<&'s str>,
}

impl Secured<'_> {
    fn for_grpc(self) -> Result<ServerTlsConfig> {
        let identity = Identity::from_pem(std::fs::read(&self.pair.certificate)?, std::fs::read(&self.pair.key)?);
        let config = ServerTlsConfig::new().identity(identity);
        Ok(match self.clients {
            Some(authority) => config.client_ca_root(Certificate::from_pem(authority)),
            None => config,
        })
    }

    fn for_http(self) -> Result<Arc<ServerConfig>> {
        let provider = Arc::new(rustls::crypto::ring::default_provider());
        let builder = ServerConfig::builder_with_provider(Arc::clone(&provider)).with_safe_default_protocol_versions()?;
        let builder = match self.clients {
            Some(authority) => {
                let mut roots = RootCertStore::empty();
                roots.add(CertificateDer::from_pem_slice(authority.as_bytes())?)?;
                let verifier = WebPkiClientVerifier::builder_with_provider(Arc::new(roots), provider).build()?;
                builder.with_client_cert_verifier(verifier)
            }
            None => builder.with_no_client_auth(),
        };
        let chain = vec![CertificateDer::from_pem_file(&self.pair.certificate)?];
        Ok(Arc::new(builder.with_single_cert(chain, PrivateKeyDer::from_pem_file(&self.pair.key)?)?))
    }
}

/// A collector that listens until it is dropped.
#[derive(Debug)]
pub struct Collector {
    kept: Kept,
    url: String,
    _runtime: Option<Runtime>,
}

impl Collector {
    /// One that speaks gRPC, in the clear or as it is secured.
    ///
    /// # Errors
    /// Where it cannot listen, or a certificate cannot be used.
    pub fn grpc(secured: Option<Secured<'_>>) -> Result<Self> {
        let kept = Kept::default();
        let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build()?;
        let listener = runtime.block_on(tokio::net::TcpListener::bind("127.0.0.1:0"))?;
        let url = url(secured, listener.local_addr()?);
        let service = TraceServiceServer::new(kept.clone());
        let mut server = tonic::transport::Server::builder();
        if let Some(secured) = secured {
            let _ = rustls::crypto::ring::default_provider().install_default(); // one that is there already stays
            server = server.tls_config(secured.for_grpc()?)?;
        }
        let server = server.add_service(service);
        runtime.spawn(server.serve_with_incoming(TcpListenerStream::new(listener)));
        Ok(Self { kept, url, _runtime: Some(runtime) })
    }

    /// One that speaks HTTP, in the clear or as it is secured.
    ///
    /// # Errors
    /// Where it cannot listen, or a certificate cannot be used.
    pub fn http(secured: Option<Secured<'_>>) -> Result<Self> {
        let kept = Kept::default();
        let listener = TcpListener::bind("127.0.0.1:0")?;
        let url = url(secured, listener.local_addr()?);
        let tls = secured.map(Secured::for_http).transpose()?;
        let taker = kept.clone();
        // It ends with the test's process.
        std::thread::spawn(move || {
            for stream in listener.incoming().flatten() {
                let (taker, tls) = (taker.clone(), tls.clone());
                std::thread::spawn(move || {
                    let _ = match tls {
                        None => serve(&taker, stream),
                        Some(tls) => ServerConnection::new(tls)
                            .map_err(anyhow::Error::from)
                            .and_then(|greeting| serve(&taker, StreamOwned::new(greeting, stream))),
                    };
                });
            }
        });
        Ok(Self { kept, url, _runtime: None })
    }

    /// Its URL, as `OTEL_EXPORTER_OTLP_ENDPOINT` takes it.
    #[must_use]
    pub fn url(&self) -> &str {
        &self.url
    }

    /// What has been exported so far.
    #[must_use]
    pub fn spans(&self) -> Vec<Exported> {
        self.kept.spans.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// The headers of all exports so far, `name: value`.
    #[must_use]
    pub fn headers(&self) -> Vec<String> {
        self.kept.headers.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }
}

fn url(secured: Option<Secured<'_>>, address: SocketAddr) -> String {
    format!("{}://{address}", if secured.is_some() { "https" } else { "http" })
}

/// Answers one connection's requests, each with a body whose length is said.
fn serve(kept: &Kept, stream: impl Read + Write) -> Result<()> {
    let mut reader = BufReader::new(stream);
    loop {
        let mut length = 0;
        let mut first = true;
        loop {
            let mut line = String::new();
            if reader.read_line(&mut line)? == 0 {
                return Ok(());
            }
            let line = line.trim_end().to_ascii_lowercase();
            if line.is_empty() {
                break;
            }
            if let Some(text) = line.strip_prefix("content-length:") {
                length = text.trim().parse()?;
            }
            anyhow::ensure!(!first || line.starts_with("post /v1/traces "), "{line}");
            first = false;
            kept.note(line);
        }
        let mut body = vec![0; length];
        reader.read_exact(&mut body)?;
        kept.take(ExportTraceServiceRequest::decode(body.as_slice()).context("not an export")?);
        let answer = b"HTTP/1.1 200 OK\r\ncontent-type: application/x-protobuf\r\ncontent-length: 0\r\n\r\n";
        reader.get_mut().write_all(answer)?;
        reader.get_mut().flush()?;
    }
}
