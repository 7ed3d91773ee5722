//! Where spans go, and how they get there: from OpenTelemetry's own variables, as far as they are not left to its library.

use std::path::{Path, PathBuf};
use std::time::Duration;

use opentelemetry::KeyValue;
use opentelemetry_otlp::tonic_types::transport::{Certificate, ClientTlsConfig, Identity};
use opentelemetry_otlp::{RetryPolicy, SpanExporter, WithExportConfig as _, WithHttpConfig as _, WithTonicConfig as _};
use opentelemetry_sdk::Resource;
use opentelemetry_sdk::resource::{EnvResourceDetector, ResourceDetector as _};

/// How a collector is spoken to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Protocol {
    /// gRPC.
    Grpc,
    /// Protocol buffers over HTTP.
    Http,
}

/// The files of TLS with a collector, in PEM.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Files {
    /// The authorities that its certificate is held against; without, those that the system trusts.
    pub authorities: Option<PathBuf>,
    /// The certificate that is shown to it, and its private key.
    pub identity: Option<(PathBuf, PathBuf)>,
}

/// A collector, and how this process is called there.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Collector {
    /// Its URL; for [`Protocol::Http`] with the whole path.
    pub endpoint: String,
    /// How it is spoken to.
    pub protocol: Protocol,
    /// What `https://` needs beside it.
    pub files: Files,
    /// The process's `service.name`.
    pub service: String,
    /// The process's version.
    pub version: &'static str,
    /// Whether a batch that is not taken is tried again for a while: not by a process that is about to end.
    pub retries: bool,
}

/// Why spans cannot be exported.
#[derive(Debug, thiserror::Error)]
#[error("spans cannot be exported to {endpoint}: {why}")]
pub struct StartError {
    /// The collector's URL.
    endpoint: String,
    /// What is wrong with it.
    why: String,
}

/// What follows the address of a collector that is spoken to over HTTP.
const HTTP_PATH: &str = "/v1/traces";

/// Longest time for one export, as the library has it where nothing is said.
const WITHIN: Duration = Duration::from_secs(10);

/// Samplers, as the library knows them.
const SAMPLERS: [&str; 6] =
    ["always_on", "always_off", "traceidratio", "parentbased_always_on", "parentbased_always_off", "parentbased_traceidratio"];

impl Collector {
    /// The collector that the environment names, or else `configured`; none where neither does, or the environment says that nothing is to be
    /// exported. `service` is the process's name where the environment gives it none.
    ///
    /// Read here: `OTEL_SDK_DISABLED`, `OTEL_TRACES_EXPORTER`, `OTEL_EXPORTER_OTLP_ENDPOINT`, `OTEL_EXPORTER_OTLP_PROTOCOL`,
    /// `OTEL_EXPORTER_OTLP_CERTIFICATE`, `OTEL_EXPORTER_OTLP_CLIENT_CERTIFICATE`, `OTEL_EXPORTER_OTLP_CLIENT_KEY`, `OTEL_SERVICE_NAME`, and
    /// those of the same with `_TRACES`. The library reads those about headers, time-outs, resources, limits and samplers by itself; with
    /// a certificate over HTTP, the time-out is always 10 s.
    ///
    /// # Errors
    /// Where a variable cannot be understood; the error names it. What was meant is then not known, and nothing is exported.
    pub fn find(
        variable: impl Fn(&str) -> Option<String>,
        configured: Option<&str>,
        service: &str,
        version: &'static str,
    ) -> Result<Option<Self>, String> {
        let variable = |name: &str| variable(name).map(|value| value.trim().to_owned()).filter(|value| !value.is_empty());
        if variable("OTEL_SDK_DISABLED").is_some_and(|value| value.eq_ignore_ascii_case("true")) {
            return Ok(None);
        }
        let whole = variable("OTEL_EXPORTER_OTLP_TRACES_ENDPOINT");
        let base = variable("OTEL_EXPORTER_OTLP_ENDPOINT").or_else(|| configured.map(str::to_owned));
        let Some(address) = whole.clone().or(base) else { return Ok(None) };
        match variable("OTEL_TRACES_EXPORTER").as_deref() {
            None | Some("otlp") => {}
            Some("none") => return Ok(None),
            Some(other) => return Err(format!("OTEL_TRACES_EXPORTER is \"{}\"; otlp or none is expected", other.escape_debug())),
        }
        let named = ["OTEL_EXPORTER_OTLP_TRACES_PROTOCOL", "OTEL_EXPORTER_OTLP_PROTOCOL"];
        let protocol = match named.into_iter().find_map(|name| Some((name, variable(name)?))) {
            Some((_, text)) if text == "grpc" => Protocol::Grpc,
            Some((_, text)) if text == "http/protobuf" => Protocol::Http,
            Some((name, other)) => {
                return Err(format!("{name} is \"{}\"; grpc or http/protobuf is expected", other.escape_debug()));
            }
            // The port that is gRPC's own says so; otherwise what the standard has for the default.
            None if address.trim_end_matches('/').ends_with(":4317") => Protocol::Grpc,
            None => Protocol::Http,
        };
        if let Some(sampler) = variable("OTEL_TRACES_SAMPLER").filter(|text| !SAMPLERS.contains(&text.as_str())) {
            let known = SAMPLERS.join(", ");
            return Err(format!("OTEL_TRACES_SAMPLER is \"{}\"; known are {known}", sampler.escape_debug()));
        }
        if let Some(ratio) = variable("OTEL_TRACES_SAMPLER_ARG")
            && !ratio.parse::<f64>().is_ok_and(|ratio| (0.0..=1.0).contains(&ratio))
        {
            return Err(format!("OTEL_TRACES_SAMPLER_ARG is \"{}\", not a number from 0 to 1", ratio.escape_debug()));
        }
        let endpoint = match (protocol, whole) {
            (Protocol::Http, None) => format!("{}{HTTP_PATH}", address.trim_end_matches('/')),
            _ => address,
        };
        let file = |what: &str| {
            let named = [format!("OTEL_EXPORTER_OTLP_TRACES_{what}"), format!("OTEL_EXPORTER_OTLP_{what}")];
            named.iter().find_map(|name| variable(name)).map(PathBuf::from)
        };
        let identity = match (file("CLIENT_CERTIFICATE"), file("CLIENT_KEY")) {
            (Some(certificate), Some(key)) => Some((certificate, key)),
            (None, None) => None,
            (Some(_), None) => return Err("OTEL_EXPORTER_OTLP_CLIENT_CERTIFICATE needs OTEL_EXPORTER_OTLP_CLIENT_KEY".to_owned()),
            (None, Some(_)) => return Err("OTEL_EXPORTER_OTLP_CLIENT_KEY needs OTEL_EXPORTER_OTLP_CLIENT_CERTIFICATE".to_owned()),
        };
        let files = Files { authorities: file("CERTIFICATE"), identity };
        let service = variable("OTEL_SERVICE_NAME").unwrap_or_else(|| service.to_owned());
        Ok(Some(Self { endpoint, protocol, files, service, version, retries: true }))
    }

    /// The endpoint as it may be told: without a password or a key, as some put into a URL.
    #[must_use]
    pub fn shown(&self) -> String {
        let place = self.endpoint.split(['?', '#']).next().unwrap_or_default();
        let (scheme, rest) = place.split_at(place.find("://").map_or(0, |at| at + 3));
        let (authority, path) = rest.split_at(rest.find('/').unwrap_or(rest.len()));
        let host = authority.rsplit('@').next().unwrap_or_default();
        format!("{scheme}{host}{path}")
    }

    pub(crate) fn exporter(&self) -> Result<SpanExporter, StartError> {
        let wrong = |why: String| StartError { endpoint: self.shown(), why };
        if !self.endpoint.starts_with("http://") && !self.endpoint.starts_with("https://") {
            return Err(wrong("a URL that begins with http:// or https:// is expected".to_owned()));
        }
        // Both kinds of clients look for one, and panic where there is none. One that is there already stays.
        let _ = rustls::crypto::ring::default_provider().install_default();
        let policy = if self.retries { RetryPolicy::recommended() } else { RetryPolicy::disabled() };
        let is_tls = self.endpoint.starts_with("https://");
        let built = match self.protocol {
            Protocol::Grpc => {
                let builder = SpanExporter::builder().with_tonic().with_retry_policy(policy).with_endpoint(self.endpoint.clone());
                match is_tls {
                    true => builder.with_tls_config(self.files.for_grpc().map_err(wrong)?).build(),
                    false => builder.build(),
                }
            }
            Protocol::Http => {
                let builder = SpanExporter::builder()
                    .with_http()
                    .with_retry_policy(policy)
                    .with_protocol(opentelemetry_otlp::Protocol::HttpBinary)
                    .with_endpoint(self.endpoint.clone());
                match is_tls && self.files != Files::default() {
                    true => builder.with_http_client(self.files.for_http().map_err(wrong)?).build(),
                    false => builder.build(),
                }
            }
        };
        built.map_err(|error| wrong(error.to_string()))
    }

    /// What this process is. What the environment says of it goes first.
    pub(crate) fn resource(&self) -> Resource {
        let said = EnvResourceDetector::new().detect();
        let named = std::env::var("OTEL_SERVICE_NAME").is_ok_and(|name| !name.trim().is_empty());
        let own = [("service.name", self.service.clone()), ("service.version", self.version.to_owned())]
            .into_iter()
            .filter(|(key, _)| said.get(&(*key).into()).is_none() || (*key == "service.name" && named))
            .map(|(key, value)| KeyValue::new(key, value));
        Resource::builder_empty().with_detector(Box::new(EnvResourceDetector::new())).with_attributes(own).build()
    }
}

/// What is in a file of certificates or of a key.
fn read(path: &Path) -> Result<Vec<u8>, String> {
    std::fs::read(path).map_err(|error| format!("{}: {error}", path.display()))
}

impl Files {
    fn for_grpc(&self) -> Result<ClientTlsConfig, String> {
        let config = match &self.authorities {
            Some(path) => ClientTlsConfig::new().ca_certificate(Certificate::from_pem(read(path)?)),
            None => ClientTlsConfig::new().with_enabled_roots(),
        };
        Ok(match &self.identity {
            Some((certificate, key)) => config.identity(Identity::from_pem(read(certificate)?, read(key)?)),
            None => config,
        })
    }

    fn for_http(&self) -> Result<reqwest::Client, String> {
        let unusable = |path: &Path, error: reqwest::Error| format!("{}: {error}", path.display());
        let mut builder = reqwest::Client::builder().timeout(WITHIN);
        if let Some(path) = &self.authorities {
            let authorities = reqwest::Certificate::from_pem_bundle(&read(path)?).map_err(|error| unusable(path, error))?;
            builder = builder.tls_certs_only(authorities);
        }
        if let Some((certificate, key)) = &self.identity {
            let both = [read(certificate)?, read(key)?].join(&b'\n');
            builder = builder.identity(reqwest::Identity::from_pem(&both).map_err(|error| unusable(certificate, error))?);
        }
        builder.build().map_err(|error| error.to_string())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn find(variables: &[(&str, &str)], configured: Option<&str>) -> Result<Option<Collector>, String> {
        let variable = |name: &str| variables.iter().find(|(known, _)| *known == name).map(|(_, value)| (*value).to_owned());
        Collector::find(variable, configured, "octavius", "0.1.0")
    }

    fn place(variables: &[(&str, &str)], configured: Option<&str>) -> Option<(String, Protocol)> {
        find(variables, configured).unwrap().map(|collector| (collector.endpoint, collector.protocol))
    }

    #[test]
    fn nothing_is_exported_where_nobody_says_where_to_or_somebody_says_not_to() {
        let endpoint = ("OTEL_EXPORTER_OTLP_ENDPOINT", "http://c:4317");
        assert_eq!(place(&[], None), None);
        assert_eq!(place(&[("OTEL_EXPORTER_OTLP_ENDPOINT", " ")], None), None);
        assert_eq!(place(&[endpoint, ("OTEL_SDK_DISABLED", "True")], Some("http://d")), None);
        assert_eq!(place(&[endpoint, ("OTEL_TRACES_EXPORTER", "none")], None), None);
    }

    #[test]
    fn the_environment_goes_before_the_file_and_the_protocol_follows_the_port() {
        let of = |endpoint: &str, protocol| Some((endpoint.to_owned(), protocol));
        assert_eq!(place(&[], Some("http://c:4317")), of("http://c:4317", Protocol::Grpc));
        assert_eq!(place(&[], Some("http://c:4318/")), of("http://c:4318/v1/traces", Protocol::Http));
        let env = ("OTEL_EXPORTER_OTLP_ENDPOINT", "https://e:4317");
        assert_eq!(place(&[env], Some("http://c:4318")), of("https://e:4317", Protocol::Grpc));
        let http = ("OTEL_EXPORTER_OTLP_PROTOCOL", "http/protobuf");
        assert_eq!(place(&[env, http], None), of("https://e:4317/v1/traces", Protocol::Http));
        let traces = ("OTEL_EXPORTER_OTLP_TRACES_ENDPOINT", "http://t/own");
        assert_eq!(place(&[env, traces], None), of("http://t/own", Protocol::Http));
        let grpc = ("OTEL_EXPORTER_OTLP_TRACES_PROTOCOL", "grpc");
        assert_eq!(place(&[http, traces, grpc], None), of("http://t/own", Protocol::Grpc));
    }

    #[test]
    fn a_variable_that_cannot_be_understood_is_named() {
        for (name, value) in [
            ("OTEL_EXPORTER_OTLP_PROTOCOL", "http/json"),
            ("OTEL_TRACES_EXPORTER", "zipkin"),
            ("OTEL_TRACES_SAMPLER", "allways_on"),
            ("OTEL_TRACES_SAMPLER_ARG", "10%"),
        ] {
            let told = find(&[(name, value)], Some("http://c:4317")).unwrap_err();
            assert!(told.starts_with(&format!("{name} is \"{value}\"")), "{told}");
        }
    }

    #[test]
    fn what_is_told_of_an_endpoint_holds_no_secret() {
        for (endpoint, shown) in [
            ("https://ann:hunter2@c:4318/v1/traces?key=hunter2#hunter2", "https://c:4318/v1/traces"),
            ("http://hunter2@[::1]:4317", "http://[::1]:4317"),
            ("http://a@b:hunter2@c/@d", "http://c/@d"),
            ("ann:hunter2@c:4317", "c:4317"),
            ("https://c?key=hunter2", "https://c"),
            ("", ""),
        ] {
            let endpoint = endpoint.to_owned();
            let collector = Collector {
                endpoint,
                protocol: Protocol::Grpc,
                files: Files::default(),
                service: String::new(),
                version: "1",
                retries: false,
            };
            assert_eq!(collector.shown(), shown);
        }
    }

    #[test]
    fn an_endpoint_that_is_no_url_is_told() {
        for endpoint in ["collector:4317", "grpc://c:4317", "http://a b:4317"] {
            let collector = find(&[], Some(endpoint)).unwrap().unwrap();
            let told = collector.exporter().unwrap_err().to_string();
            assert!(told.starts_with(&format!("spans cannot be exported to {}", collector.endpoint)), "{told}");
        }
    }
    #[test]
    fn files_of_tls_are_those_of_traces_first_and_a_certificate_goes_with_its_key() {
        let endpoint = ("OTEL_EXPORTER_OTLP_ENDPOINT", "https://c:4317");
        let (all, traces) =
            (("OTEL_EXPORTER_OTLP_CERTIFICATE", "/all.pem"), ("OTEL_EXPORTER_OTLP_TRACES_CERTIFICATE", "/traces.pem"));
        let (shown, key) =
            (("OTEL_EXPORTER_OTLP_CLIENT_CERTIFICATE", "/c.pem"), ("OTEL_EXPORTER_OTLP_TRACES_CLIENT_KEY", "/c.key"));
        let files = find(&[endpoint, all, traces, shown, key], None).unwrap().unwrap().files;
        let identity = Some(("/c.pem".into(), "/c.key".into()));
        assert_eq!(files, Files { authorities: Some("/traces.pem".into()), identity });
        assert_eq!(find(&[endpoint], None).unwrap().unwrap().files, Files::default());
        for (alone, missing) in [(shown, "OTEL_EXPORTER_OTLP_CLIENT_KEY"), (key, "OTEL_EXPORTER_OTLP_CLIENT_CERTIFICATE")] {
            let told = find(&[endpoint, alone], None).unwrap_err();
            assert!(told.ends_with(&format!(" needs {missing}")), "{told}");
        }
        // A file that is not there is named before anything is sent.
        for protocol in ["grpc", "http/protobuf"] {
            let missing =
                [endpoint, ("OTEL_EXPORTER_OTLP_PROTOCOL", protocol), ("OTEL_EXPORTER_OTLP_CERTIFICATE", "/none/ca.pem")];
            let told = find(&missing, None).unwrap().unwrap().exporter().unwrap_err().to_string();
            assert!(told.contains(": /none/ca.pem: No such file"), "{told}");
        }
    }
}
