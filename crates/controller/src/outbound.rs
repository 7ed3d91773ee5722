//! Calls that a controller makes to others over HTTP: to whom it may, how, and for how long.

use std::path::Path;
use std::time::Duration;

use reqwest::redirect::Policy;
use reqwest::{Certificate, Client};
use url::{Host, Url};

/// Longest time that a call may take, and all that belong together.
pub(crate) const WITHIN: Duration = Duration::from_secs(10);

/// Whether nobody between can read or change what comes from there and goes there.
pub(crate) fn is_safe(url: &Url) -> bool {
    is_plain(url) && (url.scheme() == "https" || is_on_loopback(url))
}

/// Whether it bears no user, password or fragment: they would be shown with it.
pub(crate) fn is_plain(url: &Url) -> bool {
    url.username().is_empty() && url.password().is_none() && url.fragment().is_none()
}

/// Whether it is HTTP in clear within this machine.
pub(crate) fn is_on_loopback(url: &Url) -> bool {
    let local = match url.host() {
        Some(Host::Ipv4(address)) => address.is_loopback(),
        Some(Host::Ipv6(address)) => address.is_loopback(),
        Some(Host::Domain(_)) | None => false, // a name may lead anywhere
    };
    url.scheme() == "http" && local
}

/// What calls `url`, and trusts the certificates of `ca_file` beside the system's. It follows no redirects.
///
/// # Errors
/// Where the certificates cannot be used.
pub(crate) fn client(ca_file: Option<&Path>, url: &Url) -> Result<Client, String> {
    // What speaks HTTP takes the process' provider of cryptography, and panics where there is none. An error means that there is one already.
    let _ = rustls::crypto::ring::default_provider().install_default();
    let mut builder = Client::builder().redirect(Policy::none()).timeout(WITHIN).referer(false).user_agent("octavius");
    if is_on_loopback(url) {
        builder = builder.no_proxy();
    }
    if let Some(path) = ca_file {
        for certificate in certificates(path).map_err(|problem| format!("{}: {problem}", path.display()))? {
            builder = builder.add_root_certificate(certificate);
        }
    }
    builder.build().map_err(|error| octavius_proto::client::root_cause(&error))
}

/// The certificates of a file.
///
/// # Errors
/// Where it cannot be read, or holds none.
pub(crate) fn certificates(path: &Path) -> Result<Vec<Certificate>, String> {
    let bytes = std::fs::read(path).map_err(|error| error.to_string())?;
    match Certificate::from_pem_bundle(&bytes) {
        Ok(certificates) if !certificates.is_empty() => Ok(certificates),
        _ => Err("it holds no certificates".to_owned()),
    }
}
