//! TLS as the clients of a controller speak it: what they trust, what they show, and what is told where it does not come about.

use std::error::Error;
use std::fmt;
use std::io;
use std::path::PathBuf;
use std::sync::{Arc, Mutex, PoisonError};

use rustls::pki_types::{ServerName, UnixTime};
use rustls::{AlertDescription, CertificateError, ClientConfig, RootCertStore};
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;
use tokio_rustls::client::TlsStream;

use crate::pem::{self, Pair, PemError};

/// The protocol within TLS: HTTP/2.
pub const ALPN: &[u8] = b"h2";

/// What a listener with TLS says to a client that comes without, as the debug data of a GOAWAY; clients of any kind show it.
pub const TLS_ONLY: &str = "this port speaks TLS only";

/// Where certificates stand that are trusted.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Authorities {
    /// Those that the system trusts.
    System,
    /// These, in PEM.
    Text(String),
    /// Those in a PEM file, which is read again for each new connection.
    File(PathBuf),
}

/// What a client trusts and what it shows.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TlsSettings {
    /// Who may have signed a controller's certificate.
    pub authorities: Authorities,
    /// The files of a certificate and its key to be shown to the controller; they are read again for each new connection.
    pub identity: Option<(PathBuf, PathBuf)>,
    /// The name that the controller's certificate has to be for, where it is not that of the address.
    pub server_name: Option<String>,
}

impl Default for TlsSettings {
    fn default() -> Self {
        Self { authorities: Authorities::System, identity: None, server_name: None }
    }
}

/// What a client needs for connections with TLS. Shared by all addresses of it.
#[derive(Default)]
pub struct Tls {
    settings: TlsSettings,
    /// What was made last.
    made: Mutex<Option<Made>>,
}

/// What a handshake needs, and of which bytes it was made.
struct Made {
    of: Vec<Vec<u8>>,
    config: Arc<ClientConfig>,
}

impl fmt::Debug for Tls {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.settings.fmt(f)
    }
}

impl Tls {
    /// TLS with these settings. Their files are read now, so that what is wrong with them is told at once.
    ///
    /// # Errors
    /// Where a file cannot be used, or the server's name is none.
    pub fn new(settings: TlsSettings) -> Result<Self, PemError> {
        if let Some(name) = &settings.server_name {
            let wrong = |_| PemError::Content { origin: name.clone(), problem: "is no name of a server".to_owned() };
            ServerName::try_from(name.as_str()).map_err(wrong)?;
        }
        let tls = Self { settings, made: Mutex::default() };
        tls.config()?;
        Ok(tls)
    }

    /// What a handshake needs, of the files as they are now.
    fn config(&self) -> Result<Arc<ClientConfig>, PemError> {
        let TlsSettings { authorities, identity, server_name: _ } = &self.settings;
        let mut read = Vec::new();
        match authorities {
            Authorities::System => {}
            Authorities::Text(text) => read.push(text.clone().into_bytes()),
            Authorities::File(path) => read.push(pem::read(path)?),
        }
        if let Some((certificate, key)) = identity {
            read.push(pem::read(certificate)?);
            read.push(pem::read_private(key)?);
        }
        let mut made = self.made.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(made) = &*made
            && made.of == read
        {
            return Ok(Arc::clone(&made.config));
        }
        let config = Arc::new(build(authorities, identity.as_ref(), &read)?);
        *made = Some(Made { of: read, config: Arc::clone(&config) });
        Ok(config)
    }

    /// The name that the certificate of a controller at this host has to be for.
    fn name(&self, host: &str) -> io::Result<ServerName<'static>> {
        let name = self.settings.server_name.as_deref().unwrap_or(host.trim_matches(['[', ']']));
        ServerName::try_from(name.to_owned()).map_err(io::Error::other)
    }

    /// Makes a connection to this host one with TLS.
    pub(crate) async fn shake_hands(&self, host: &str, stream: TcpStream) -> io::Result<TlsStream<TcpStream>> {
        let (config, name) = (self.config().map_err(io::Error::other)?, self.name(host)?);
        let stream = TlsConnector::from(config).connect(name, stream).await?;
        if stream.get_ref().1.alpn_protocol() != Some(ALPN) {
            return Err(io::Error::other(TlsTrouble::NotHttp2));
        }
        Ok(stream)
    }
}

fn build(authorities: &Authorities, identity: Option<&(PathBuf, PathBuf)>, read: &[Vec<u8>]) -> Result<ClientConfig, PemError> {
    let mut read = read.iter();
    let mut next = || read.next().map(Vec::as_slice).unwrap_or_default();
    let roots = match authorities {
        Authorities::System => system_roots(),
        Authorities::Text(_) => pem::authorities(next(), "the configured CA")?,
        Authorities::File(path) => pem::authorities(next(), &path.display().to_string())?,
    };
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let builder = ClientConfig::builder_with_provider(provider)
        .with_protocol_versions(rustls::DEFAULT_VERSIONS)
        .map_err(|error| PemError::Content { origin: "TLS".to_owned(), problem: error.to_string() })?
        .with_root_certificates(roots);
    let mut config = match identity {
        None => builder.with_no_client_auth(),
        Some((certificate, key)) => {
            let files = (certificate.as_path(), key.as_path());
            let pair = Pair::parse(next(), next(), files)?;
            builder.with_client_auth_cert(pair.chain, pair.key).map_err(|error| pem::unusable(&error, files))?
        }
    };
    config.alpn_protocols = vec![ALPN.to_vec()];
    Ok(config)
}

/// Those that the system trusts; none where it has none, and then no certificate is trusted.
fn system_roots() -> RootCertStore {
    let mut roots = RootCertStore::empty();
    roots.add_parsable_certificates(rustls_native_certs::load_native_certs().certs);
    roots
}

/// Why a connection with TLS does not come about, or one without is not taken. It stays so until somebody puts it right.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum TlsTrouble {
    /// Nobody who is trusted has signed the controller's certificate.
    #[error("its certificate is signed by nobody who is trusted")]
    UnknownAuthority,
    /// The certificate is another server's.
    #[error("its certificate is {presented}, and not for {expected}")]
    OtherName {
        /// The name that was asked for.
        expected: String,
        /// What it is for: `for a, b`.
        presented: String,
    },
    /// The certificate is no longer valid.
    #[error("its certificate has expired{0}")]
    Expired(String),
    /// The certificate is not valid yet.
    #[error("its certificate is not valid yet{0}")]
    NotYetValid(String),
    /// Something else is wrong with it.
    #[error("its certificate cannot be trusted: {0}")]
    Certificate(String),
    /// What answers does not speak TLS.
    #[error("it does not speak TLS")]
    Clear,
    /// What answers speaks TLS, and is no controller.
    #[error("it speaks TLS, and not HTTP/2")]
    NotHttp2,
    /// The controller takes no connection without TLS.
    #[error("it speaks TLS only")]
    TlsOnly,
    /// The controller asks for a client's certificate, and none was shown.
    #[error("it asks for a client's certificate, and none is set")]
    CertificateWanted,
    /// The controller does not take the client's certificate.
    #[error("it does not take the client's certificate ({0})")]
    CertificateRefused(String),
}

impl TlsTrouble {
    /// What of this kind is among the causes of an error.
    #[must_use]
    pub fn of(error: &(dyn Error + 'static)) -> Option<Self> {
        let mut next = Some(error);
        while let Some(error) = next {
            if let Some(trouble) = error.downcast_ref::<Self>() {
                return Some(trouble.clone());
            }
            if let Some(trouble) = error.downcast_ref::<rustls::Error>().and_then(Self::of_rustls) {
                return Some(trouble);
            }
            // What is within an input or output error is not its source, but its source's source is.
            next = match error.downcast_ref::<io::Error>().and_then(io::Error::get_ref) {
                Some(inner) => Some(inner),
                None => error.source(),
            };
        }
        None
    }

    fn of_rustls(error: &rustls::Error) -> Option<Self> {
        use AlertDescription as A;
        use CertificateError as C;
        use rustls::Error as E;
        let refused = |why: &str| Self::CertificateRefused(why.to_owned());
        Some(match error {
            E::InvalidCertificate(C::UnknownIssuer) => Self::UnknownAuthority,
            E::InvalidCertificate(C::Expired) => Self::Expired(String::new()),
            E::InvalidCertificate(C::ExpiredContext { not_after, .. }) => Self::Expired(moment(*not_after)),
            E::InvalidCertificate(C::NotValidYet) => Self::NotYetValid(String::new()),
            E::InvalidCertificate(C::NotValidYetContext { not_before, .. }) => Self::NotYetValid(moment(*not_before)),
            E::InvalidCertificate(C::NotValidForNameContext { expected, presented }) => {
                Self::OtherName { expected: expected.to_str().into_owned(), presented: names(presented) }
            }
            E::InvalidCertificate(other) => Self::Certificate(other.to_string()),
            E::InvalidMessage(_) => Self::Clear,
            E::NoApplicationProtocol | E::AlertReceived(A::NoApplicationProtocol) => Self::NotHttp2,
            E::AlertReceived(A::CertificateRequired) => Self::CertificateWanted,
            E::AlertReceived(A::CertificateExpired) => refused("it has expired"),
            E::AlertReceived(A::UnknownCA) => refused("it is signed by nobody whom the controller trusts"),
            E::AlertReceived(
                A::BadCertificate
                | A::UnsupportedCertificate
                | A::CertificateRevoked
                | A::CertificateUnknown
                | A::AccessDenied
                | A::DecryptError,
            ) => refused("it is not one of a client's, or something else is wrong with it"),
            _ => return None,
        })
    }
}

/// `at 2026-…`, where the moment can be shown.
fn moment(at: UnixTime) -> String {
    let second = i64::try_from(at.as_secs()).ok().and_then(|seconds| jiff::Timestamp::from_second(seconds).ok());
    second.map(|at| format!(" ({at})")).unwrap_or_default()
}

/// `for a, b`, of names as webpki shows them: `DnsName("a")`.
fn names(presented: &[String]) -> String {
    let name = |shown: &String| {
        let inner = shown.split_once('(').and_then(|(_, rest)| rest.strip_suffix(')')).unwrap_or(shown);
        inner.trim_matches('"').to_owned()
    };
    match presented {
        [] => "for no name at all".to_owned(),
        some => format!("for {}", some.iter().map(name).collect::<Vec<_>>().join(", ")),
    }
}
