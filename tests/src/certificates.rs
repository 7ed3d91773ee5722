//! Certificates for a test: an authority of its own, and what it signs. Made new each time; nothing of it leaves the test's folder.

use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::Result;
use rcgen::{BasicConstraints, CertificateParams, DnType, ExtendedKeyUsagePurpose, IsCa, Issuer, KeyPair};

/// Somebody who signs certificates.
pub struct Authority {
    pem: String,
    issuer: Issuer<'static, KeyPair>,
}

/// The files of a certificate and of its key.
#[derive(Debug, Clone)]
pub struct PairFiles {
    /// The certificate.
    pub certificate: PathBuf,
    /// The key.
    pub key: PathBuf,
}

/// When a certificate is valid.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Days {
    /// Now.
    Now,
    /// Until yesterday.
    Past,
    /// From tomorrow on.
    Future,
}

const DAY: Duration = Duration::from_secs(24 * 3600);

impl Authority {
    /// A new authority.
    ///
    /// # Errors
    /// Where the system has no random numbers.
    pub fn new(name: &str) -> Result<Self> {
        let key = KeyPair::generate()?;
        let mut params = CertificateParams::default();
        params.distinguished_name.push(DnType::CommonName, name);
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        let pem = params.self_signed(&key)?.pem();
        Ok(Self { pem, issuer: Issuer::new(params, key) })
    }

    /// Its own certificate.
    #[must_use]
    pub fn pem(&self) -> &str {
        &self.pem
    }

    /// Writes its own certificate.
    ///
    /// # Errors
    /// Where that fails.
    pub fn write(&self, path: &Path) -> Result<PathBuf> {
        put(path, &self.pem, 0o644)?;
        Ok(path.to_owned())
    }

    /// Writes a certificate for a server with these names or addresses, and its key, as `DIR/NAME.pem` and `DIR/NAME.key`: each file at
    /// once, by renaming.
    ///
    /// # Errors
    /// Where that fails.
    pub fn server(&self, dir: &Path, name: &str, names: &[&str], days: Days) -> Result<PairFiles> {
        let names = names.iter().map(|name| (*name).to_owned()).collect();
        self.sign(dir, name, names, ExtendedKeyUsagePurpose::ServerAuth, days)
    }

    /// The same for a client.
    ///
    /// # Errors
    /// Where that fails.
    pub fn client(&self, dir: &Path, name: &str, days: Days) -> Result<PairFiles> {
        self.sign(dir, name, Vec::new(), ExtendedKeyUsagePurpose::ClientAuth, days)
    }

    fn sign(&self, dir: &Path, name: &str, names: Vec<String>, use_: ExtendedKeyUsagePurpose, days: Days) -> Result<PairFiles> {
        let key = KeyPair::generate()?;
        let mut params = CertificateParams::new(names)?;
        params.distinguished_name.push(DnType::CommonName, name);
        params.extended_key_usages = vec![use_];
        let since_1970 = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH)?;
        let now = rcgen::date_time_ymd(1970, 1, 1) + Duration::from_secs(since_1970.as_secs());
        (params.not_before, params.not_after) = match days {
            Days::Now => (now - DAY, now + DAY),
            Days::Past => (now - 2 * DAY, now - DAY),
            Days::Future => (now + DAY, now + 2 * DAY),
        };
        let certificate = params.signed_by(&key, &self.issuer)?;
        let files = PairFiles { certificate: dir.join(format!("{name}.pem")), key: dir.join(format!("{name}.key")) };
        put(&files.certificate, &certificate.pem(), 0o644)?;
        put(&files.key, &key.serialize_pem(), 0o600)?;
        Ok(files)
    }
}

fn put(path: &Path, text: &str, mode: u32) -> Result<()> {
    let beside = path.with_extension("new");
    std::fs::write(&beside, text)?;
    std::fs::set_permissions(&beside, std::fs::Permissions::from_mode(mode))?;
    Ok(std::fs::rename(beside, path)?)
}
