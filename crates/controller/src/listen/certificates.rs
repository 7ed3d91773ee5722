//! The certificates that the port shows and those that it asks for: read from files, and read again when they change, as they do when a
//! certificate is renewed. Connections that stand are not touched by it; each new one sees what is there then.

use std::fmt;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, RwLock};
use std::time::Duration;

use octavius_proto::pem::{self, Pair, PemError};
use octavius_proto::tls::ALPN;
use rustls::ServerConfig;
use rustls::server::WebPkiClientVerifier;
use tokio_util::sync::CancellationToken;

/// How often the files are looked at. What they hold is compared, and not their times: Kubernetes swaps a link to a folder, others copy over
/// or rename. Two looks have to agree, so that of a certificate and its key not one is the old one's.
const LOOK: Duration = Duration::from_secs(1);

/// The files of a controller's certificates, in PEM.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TlsFiles {
    /// The certificate that it shows, and those between it and its authority.
    pub certificate: PathBuf,
    /// Its private key. Others than its owner and group must not be able to read it.
    pub key: PathBuf,
    /// The authorities of clients' certificates. With it, nobody connects without one, and a token is needed as well.
    pub client_ca: Option<PathBuf>,
}

impl TlsFiles {
    fn read(&self) -> Result<Contents, PemError> {
        let client_ca = self.client_ca.as_deref().map(pem::read).transpose()?;
        Ok(Contents { certificate: pem::read(&self.certificate)?, key: pem::read_private(&self.key)?, client_ca })
    }

    fn pair(&self) -> (&Path, &Path) {
        (&self.certificate, &self.key)
    }
}

/// What the files hold.
#[derive(PartialEq, Eq)]
struct Contents {
    certificate: Vec<u8>,
    key: Vec<u8>,
    client_ca: Option<Vec<u8>>,
}

impl fmt::Debug for Contents {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Contents").finish_non_exhaustive() // the key
    }
}

/// What a look at the files shows; a problem as what is said of it.
type Look = Result<Contents, String>;

/// The certificates as they are now.
#[derive(Debug)]
pub(crate) struct Certificates {
    files: TlsFiles,
    /// What was taken or refused last.
    settled: Mutex<Look>,
    current: RwLock<Current>,
}

/// What is in use.
#[derive(Debug, Clone)]
struct Current {
    config: Arc<ServerConfig>,
    /// When the first certificate of the chain ends, in seconds since 1970.
    ends: Option<u64>,
}

impl Certificates {
    /// Reads the files.
    ///
    /// # Errors
    /// Where they cannot be used. One that has expired can: it is told, and another may be on its way.
    pub(crate) fn load(files: TlsFiles) -> Result<Self, PemError> {
        let contents = files.read()?;
        let (current, problem) = build(&files, &contents)?;
        if let Some(problem) = problem {
            tracing::error!(certificate = %files.certificate.display(), problem, "clients will not trust the certificate");
        }
        Ok(Self { files, settled: Mutex::new(Ok(contents)), current: RwLock::new(current) })
    }

    fn settled(&self) -> MutexGuard<'_, Look> {
        self.settled.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// What a handshake that begins now needs.
    pub(crate) fn current(&self) -> Arc<ServerConfig> {
        Arc::clone(&self.current.read().unwrap_or_else(PoisonError::into_inner).config)
    }

    /// When what is shown now ends, in seconds since 1970: from then on no client trusts it.
    pub(crate) fn ends(&self) -> Option<u64> {
        self.current.read().unwrap_or_else(PoisonError::into_inner).ends
    }

    /// Takes what the files hold whenever that is something new and good.
    pub(crate) async fn follow(self: Arc<Self>, shutdown: CancellationToken) {
        // What the last look showed, where it was something new.
        let mut before: Option<Look> = None;
        let mut looks = tokio::time::interval(LOOK);
        loop {
            tokio::select! {
                _ = looks.tick() => {}
                () = shutdown.cancelled() => return,
            }
            let files = self.files.clone();
            let look = tokio::task::spawn_blocking(move || files.read().map_err(|error| told(&error)));
            let Ok(look) = look.await else { continue };
            if *self.settled() == look {
                before = None;
            } else if before.as_ref() == Some(&look) {
                if self.take(&look) {
                    tracing::info!(certificate = %self.files.certificate.display(), "the certificates have changed: new connections see the new ones");
                }
                *self.settled() = look;
                before = None;
            } else {
                before = Some(look);
            }
        }
    }

    /// Whether what a look showed is good, and taken.
    fn take(&self, look: &Look) -> bool {
        let built = look.as_ref().map_err(Clone::clone).and_then(|contents| match build(&self.files, contents) {
            Ok((current, None)) => Ok(current),
            Ok((_, Some(problem))) => Err(format!("{}: {problem}", self.files.certificate.display())),
            Err(error) => Err(told(&error)),
        });
        match built {
            Ok(current) => {
                *self.current.write().unwrap_or_else(PoisonError::into_inner) = current;
                true
            }
            Err(error) => {
                tracing::error!(error, "the new certificates are not taken, and those from before stay in use");
                false
            }
        }
    }
}

/// An error with its cause, on one line.
fn told(error: &PemError) -> String {
    match std::error::Error::source(error) {
        Some(source) => format!("{error}: {source}"),
        None => error.to_string(),
    }
}

/// What a handshake needs of these contents; and what is wrong with the certificate's days, if anything is.
fn build(files: &TlsFiles, contents: &Contents) -> Result<(Current, Option<String>), PemError> {
    let pair = Pair::parse(&contents.certificate, &contents.key, files.pair())?;
    let ends = pair.ends();
    let out_of_date = pair.out_of_date().map(|error| error.to_string());
    let of_the_clients = |problem: String| {
        let file = files.client_ca.as_deref().unwrap_or(Path::new("client_ca"));
        PemError::Content { origin: file.display().to_string(), problem }
    };
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let builder = ServerConfig::builder_with_provider(Arc::clone(&provider)).with_protocol_versions(rustls::DEFAULT_VERSIONS);
    let builder = builder.map_err(|error| of_the_clients(error.to_string()))?;
    let builder = match (&files.client_ca, &contents.client_ca) {
        (Some(path), Some(text)) => {
            let roots = pem::authorities(text, &path.display().to_string())?;
            let verifier = WebPkiClientVerifier::builder_with_provider(Arc::new(roots), provider).build();
            builder.with_client_cert_verifier(verifier.map_err(|error| of_the_clients(error.to_string()))?)
        }
        _ => builder.with_no_client_auth(),
    };
    let config = builder.with_single_cert(pair.chain, pair.key);
    let mut config = config.map_err(|error| pem::unusable(&error, files.pair()))?;
    config.alpn_protocols = vec![ALPN.to_vec()];
    Ok((Current { config: Arc::new(config), ends }, out_of_date))
}
