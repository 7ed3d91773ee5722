//! What a client trusts and shows, as flags, environment and file say: certificates for the way to a controller.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use octavius_proto::client::{Address, ConnectError};
use octavius_proto::pem::PemError;
use octavius_proto::tls::{Authorities, Tls, TlsSettings, TlsTrouble};

use crate::cli::ConnectArgs;
use crate::env;
use crate::error::{Failure, Outcome};
use crate::exit::Exit;

/// What may be said of the certificates; nothing of it where a controller is spoken with in the clear, or its certificate is one that the
/// system trusts.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Certificates {
    /// Who may have signed the controller's.
    pub ca: Option<Authorities>,
    /// The file of the client's own.
    pub client_cert: Option<PathBuf>,
    /// The file of its key.
    pub client_key: Option<PathBuf>,
    /// The name that the controller's is for, where it is not that of its address.
    pub server_name: Option<String>,
}

impl Certificates {
    /// What flags and the environment say.
    #[must_use]
    pub fn given(args: &ConnectArgs) -> Self {
        let path = |flag: &Option<PathBuf>, name| flag.clone().or_else(|| env::path(name).map(PathBuf::from));
        Self {
            ca: path(&args.ca_file, env::CA_FILE).map(Authorities::File),
            client_cert: path(&args.client_cert, env::CLIENT_CERT),
            client_key: path(&args.client_key, env::CLIENT_KEY),
            server_name: args.server_name.clone().or_else(|| env::get(env::SERVER_NAME)),
        }
    }

    /// What is said here, and what is not said as `other` has it.
    #[must_use]
    pub fn or(self, other: Self) -> Self {
        Self {
            ca: self.ca.or(other.ca),
            client_cert: self.client_cert.or(other.client_cert),
            client_key: self.client_key.or(other.client_key),
            server_name: self.server_name.or(other.server_name),
        }
    }

    /// These addresses, spoken with by TLS where anything is said.
    ///
    /// # Errors
    /// Where half of a pair is missing, a file cannot be used, or an address says `http`.
    pub fn secure(self, addresses: Vec<Address>) -> Outcome<Vec<Address>> {
        if self == Self::default() {
            return Ok(addresses);
        }
        let identity = match (self.client_cert, self.client_key) {
            (Some(certificate), Some(key)) => Some((certificate, key)),
            (None, None) => None,
            (Some(_), None) => return Err(Failure::usage("a client's certificate without its key").hint("--client-key FILE")),
            (None, Some(_)) => return Err(Failure::usage("a client's key without its certificate").hint("--client-cert FILE")),
        };
        let authorities = self.ca.unwrap_or(Authorities::System);
        let tls = Tls::new(TlsSettings { authorities, identity, server_name: self.server_name });
        let tls = Arc::new(tls.map_err(ConnectError::from)?);
        let secured: Result<_, _> = addresses.into_iter().map(|address| address.secured(&tls)).collect();
        Ok(secured?)
    }
}

/// The text of a file of authorities, to be kept in the configuration.
///
/// # Errors
/// Where it cannot be read, or holds none.
pub fn read_ca(path: &Path) -> Outcome<String> {
    let bytes = octavius_proto::pem::read(path).map_err(file_failure)?;
    octavius_proto::pem::authorities(&bytes, &path.display().to_string()).map_err(file_failure)?;
    String::from_utf8(bytes).map_err(|_| Failure::usage(format!("{} is not text", path.display())))
}

/// That a certificate or a key cannot be used.
#[must_use]
pub fn file_failure(error: PemError) -> Failure {
    let hint = match &error {
        PemError::Shared { path, .. } => Some(format!(
            "chmod 600 {}; its group may read it too (640), as in Kubernetes with `defaultMode: 0440` and `fsGroup`",
            path.display()
        )),
        PemError::Mismatch { .. } => Some("name a certificate and a key that were made together".to_owned()),
        PemError::Read { .. } | PemError::Content { .. } => None,
    };
    let failure = Failure::new(Exit::Usage, error);
    match hint {
        Some(hint) => failure.hint(hint),
        None => failure,
    }
}

/// What to do where TLS does not come about.
#[must_use]
pub fn hint(trouble: &TlsTrouble) -> &'static str {
    match trouble {
        TlsTrouble::UnknownAuthority => {
            "name the authority that signed it: `octavius config --ca-file FILE`, or OCTAVIUS_CA_FILE; `octavius tls create` calls it ca.pem"
        }
        TlsTrouble::OtherName { .. } => {
            "use an address that it is for, have one made for this address, or say which one it is: --server-name NAME"
        }
        TlsTrouble::Expired(_) => {
            "an operator puts a new one in its place; the controller takes it without a restart. Is this machine's clock right?"
        }
        TlsTrouble::NotYetValid(_) => "is the clock of this machine right?",
        TlsTrouble::Certificate(_) => "an operator has it made anew; `octavius tls create` makes some to try with",
        TlsTrouble::Clear => {
            "is this the port of a controller? One without TLS needs a context that sets no CA, client's certificate or server name: \
             `octavius config --context NAME --cp-host HOST:PORT --token-file FILE`, then `octavius config use NAME`"
        }
        TlsTrouble::NotHttp2 => {
            "is this the port of a controller, or does something stand before it that does not pass HTTP/2 on?"
        }
        TlsTrouble::TlsOnly => {
            "use https://HOST:PORT where the system trusts its certificate, or set its CA: `octavius config --ca-file FILE`"
        }
        TlsTrouble::CertificateWanted => "show one: --client-cert FILE --client-key FILE, which `octavius config` keeps",
        TlsTrouble::CertificateRefused(_) => {
            "show one that the controller's --client-ca has signed, and that is valid: --client-cert FILE --client-key FILE"
        }
    }
}
