//! Certificates and private keys in PEM files, as both ends of a connection read them.

use std::io::{self, Read as _};
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use rustls::pki_types::pem::PemObject as _;
use rustls::pki_types::{CertificateDer, PrivateKeyDer, ServerName, UnixTime};
use rustls::{CertificateError, RootCertStore};

/// Largest file that is read: a bundle of all public authorities is a quarter of it.
const LIMIT_BYTES: u64 = 1024 * 1024;

/// Who may read a file with a private key: its owner and its group. Others must not. The group is allowed because that is how Kubernetes lets
/// a process that is not root read a Secret (`fsGroup`, with `defaultMode: 0440`).
const OTHERS: u32 = 0o007;

/// Why certificates or a key cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum PemError {
    /// The file cannot be read.
    #[error("cannot read {}", path.display())]
    Read {
        /// The file.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// The private key in it is everyone's.
    #[error("{} holds a private key and can be read by others (mode {mode:03o})", path.display())]
    Shared {
        /// The file.
        path: PathBuf,
        /// Its permissions.
        mode: u32,
    },
    /// There is no certificate in it, or what is there is none.
    #[error("{origin}: {problem}")]
    Content {
        /// The file, or what the text is.
        origin: String,
        /// What is wrong.
        problem: String,
    },
    /// A certificate and a key of different pairs.
    #[error("the key in {} is not that of the certificate in {}", key.display(), certificate.display())]
    Mismatch {
        /// The certificate's file.
        certificate: PathBuf,
        /// The key's file.
        key: PathBuf,
    },
}

fn content(origin: &str, problem: impl Into<String>) -> PemError {
    PemError::Content { origin: origin.to_owned(), problem: problem.into() }
}

/// Reads a file of certificates. It may be anyone's to read.
///
/// # Errors
/// Where it cannot be read, or is too large to be one.
pub fn read(path: &Path) -> Result<Vec<u8>, PemError> {
    Ok(read_with_mode(path)?.0)
}

/// Reads a file with a private key, which others than its owner and its group must not be able to read.
///
/// # Errors
/// Where it cannot be read, or others can read it.
pub fn read_private(path: &Path) -> Result<Vec<u8>, PemError> {
    let (bytes, mode) = read_with_mode(path)?;
    if mode & OTHERS != 0 {
        return Err(PemError::Shared { path: path.to_owned(), mode: mode & 0o777 });
    }
    Ok(bytes)
}

fn read_with_mode(path: &Path) -> Result<(Vec<u8>, u32), PemError> {
    let failed = |source| PemError::Read { path: path.to_owned(), source };
    let file = std::fs::File::open(path).map_err(failed)?;
    let mode = file.metadata().map_err(failed)?.permissions().mode();
    let mut bytes = Vec::new();
    file.take(LIMIT_BYTES + 1).read_to_end(&mut bytes).map_err(failed)?;
    if bytes.len() as u64 > LIMIT_BYTES {
        return Err(content(&path.display().to_string(), "over 1 MiB: not a file of certificates"));
    }
    Ok((bytes, mode))
}

/// The certificates in a text; `origin` is what it is called where something is wrong with it.
///
/// # Errors
/// Where there is none, or what stands there is none.
pub fn certificates(pem: &[u8], origin: &str) -> Result<Vec<CertificateDer<'static>>, PemError> {
    let found: Result<Vec<_>, _> = CertificateDer::pem_slice_iter(pem).collect();
    let found = found.map_err(|_| content(origin, "damaged: it is not PEM"))?;
    if found.is_empty() {
        return Err(content(origin, "there is no certificate in it: \"-----BEGIN CERTIFICATE-----\" is expected"));
    }
    Ok(found)
}

/// The authorities in a text.
///
/// # Errors
/// Where there is none, or what stands there is none.
pub fn authorities(pem: &[u8], origin: &str) -> Result<RootCertStore, PemError> {
    let mut store = RootCertStore::empty();
    for (number, certificate) in certificates(pem, origin)?.into_iter().enumerate() {
        let damaged = |_| content(origin, format!("certificate {} in it is damaged", number + 1));
        store.add(certificate).map_err(damaged)?;
    }
    Ok(store)
}

/// A certificate with those that it is signed by, and its private key. No `Debug`: the key.
pub struct Pair {
    /// The certificate itself first.
    pub chain: Vec<CertificateDer<'static>>,
    /// The key.
    pub key: PrivateKeyDer<'static>,
}

impl Pair {
    /// Reads the pair in two texts that were read from these files; that they belong together is found out by whoever uses them.
    ///
    /// # Errors
    /// Where one of them does not hold what it should.
    pub fn parse(chain: &[u8], key: &[u8], files: (&Path, &Path)) -> Result<Self, PemError> {
        let (certificate_file, key_file) = (files.0.display().to_string(), files.1.display().to_string());
        let chain = certificates(chain, &certificate_file)?;
        let no_key = |_| content(&key_file, "there is no private key in it: \"-----BEGIN PRIVATE KEY-----\" is expected");
        let key = PrivateKeyDer::from_pem_slice(key).map_err(no_key)?;
        Ok(Self { chain, key })
    }

    /// What is wrong with the days of the certificate, if anything is: it has expired, or is not valid yet.
    #[must_use]
    pub fn out_of_date(&self) -> Option<CertificateError> {
        days(self.chain.first()?, UnixTime::now())
    }

    /// When the first of the certificate and those that it is signed by ends, in seconds since 1970: from then on, nobody trusts the pair.
    /// None where no certificate can be read.
    #[must_use]
    pub fn ends(&self) -> Option<u64> {
        // At the end of time each of them has ended, and the verifier says when.
        let end_of_time = UnixTime::since_unix_epoch(Duration::from_secs(u64::MAX));
        let ends = self.chain.iter().filter_map(|certificate| match days(certificate, end_of_time) {
            Some(CertificateError::ExpiredContext { not_after, .. }) => Some(not_after.as_secs()),
            _ => None,
        });
        ends.min()
    }
}

/// What is wrong with the days of a certificate at a time, if anything is. They are looked at before the signature and what the certificate may
/// be used for: whoever it is that signed it, that they are wrong is told first.
fn days(certificate: &CertificateDer<'static>, at: UnixTime) -> Option<CertificateError> {
    use rustls::client::WebPkiServerVerifier;
    use rustls::client::danger::ServerCertVerifier as _;
    let mut anchors = RootCertStore::empty();
    anchors.add(certificate.clone()).ok()?;
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let verifier = WebPkiServerVerifier::builder_with_provider(Arc::new(anchors), provider).build().ok()?;
    let name = ServerName::try_from("any.invalid").ok()?;
    match verifier.verify_server_cert(certificate, &[], &name, &[], at) {
        Err(rustls::Error::InvalidCertificate(
            error @ (CertificateError::Expired
            | CertificateError::ExpiredContext { .. }
            | CertificateError::NotValidYet
            | CertificateError::NotValidYetContext { .. }),
        )) => Some(error),
        _ => None,
    }
}

/// Why a pair that was read cannot be used: mostly that its parts do not belong together.
#[must_use]
pub fn unusable(error: &rustls::Error, files: (&Path, &Path)) -> PemError {
    match error {
        rustls::Error::InconsistentKeys(_) => PemError::Mismatch { certificate: files.0.to_owned(), key: files.1.to_owned() },
        rustls::Error::InvalidCertificate(_) => content(&files.0.display().to_string(), "the certificate in it is damaged"),
        _ => content(&files.1.display().to_string(), "the key in it cannot be used; RSA, ECDSA and Ed25519 keys can"),
    }
}

#[cfg(test)]
mod tests {
    use rcgen::{BasicConstraints, CertificateParams, IsCa, Issuer, KeyPair, date_time_ymd};

    use super::*;

    /// An authority that ends in the year, and what it signs.
    fn chain(own_ends: i32, authority_ends: i32) -> Pair {
        let mut authority = CertificateParams::default();
        authority.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        authority.not_after = date_time_ymd(authority_ends, 1, 1);
        let (authority_key, key) = (KeyPair::generate().unwrap(), KeyPair::generate().unwrap());
        let signed_by = authority.self_signed(&authority_key).unwrap().pem();
        let mut own = CertificateParams::new(vec!["ctl.example".to_owned()]).unwrap();
        own.not_after = date_time_ymd(own_ends, 1, 1);
        let own = own.signed_by(&key, &Issuer::new(authority, authority_key)).unwrap().pem();
        let files = (Path::new("tls.crt"), Path::new("tls.key"));
        Pair::parse(format!("{own}{signed_by}").as_bytes(), key.serialize_pem().as_bytes(), files).unwrap()
    }

    #[test]
    fn a_pair_ends_with_the_first_of_its_certificates() {
        let year = |year| u64::try_from(date_time_ymd(year, 1, 1).unix_timestamp()).unwrap();
        assert_eq!(chain(2091, 2092).ends(), Some(year(2091)));
        assert_eq!(chain(2092, 2091).ends(), Some(year(2091)));
        // One that has ended still says when it did.
        assert_eq!(chain(2001, 2092).ends(), Some(year(2001)));
        assert!(matches!(chain(2001, 2092).out_of_date(), Some(CertificateError::ExpiredContext { .. })));
        assert_eq!(chain(2092, 2091).out_of_date(), None);
    }
}
