//! How a controller listens: with TLS, or without it where that is safe or asked for.

use std::net::SocketAddr;
use std::path::PathBuf;

use clap::Args;
use octavius_controller::TlsFiles;

use crate::daemon::Settings;
use crate::env;
use crate::error::{Failure, Outcome};

/// The flags of it; all of them may stand in the configuration file.
#[derive(Debug, Clone, Default, Args)]
#[command(next_help_heading = "TLS")]
pub struct TlsArgs {
    /// Certificate to show to clients, PEM, with those between it and its authority. Read again when it changes, as the next two are
    #[arg(long, value_name = "FILE", env = env::TLS_CERT)]
    tls_cert: Option<PathBuf>,
    /// Key of that certificate, PEM, which others than its owner and group cannot read
    #[arg(long, value_name = "FILE", env = env::TLS_KEY)]
    tls_key: Option<PathBuf>,
    /// Ask clients and executors for a certificate that this authority has signed, PEM; a token is needed as well
    #[arg(long, value_name = "FILE", env = env::CLIENT_CA)]
    client_ca: Option<PathBuf>,
    /// Listen without TLS on an address that other machines reach: tokens travel in the clear
    #[arg(long, env = env::INSECURE)]
    insecure: bool,
}

impl TlsArgs {
    /// The certificates, with what the file says where no flag does. None where the controller listens in the clear.
    ///
    /// # Errors
    /// Where one of the pair is missing; or both are, one of the addresses is not of this machine alone, and nobody has asked for that.
    pub fn files(&self, settings: &Settings, listen: &[SocketAddr]) -> Outcome<Option<TlsFiles>> {
        let path = |flag: &Option<PathBuf>, key| flag.clone().map_or_else(|| settings.path(key), |path| Ok(Some(path)));
        let client_ca = path(&self.client_ca, "client_ca")?;
        let missing = |what: &str, flag: &str| Err(Failure::usage(format!("{what} is missing")).hint(format!("{flag} FILE")));
        match (path(&self.tls_cert, "tls_cert")?, path(&self.tls_key, "tls_key")?) {
            (Some(certificate), Some(key)) => Ok(Some(TlsFiles { certificate, key, client_ca })),
            (Some(_), None) => missing("the key of the certificate", "--tls-key"),
            (None, Some(_)) => missing("the certificate of the key", "--tls-cert"),
            (None, None) if client_ca.is_some() => {
                missing("with an authority for clients, the controller's own certificate", "--tls-cert FILE --tls-key")
            }
            (None, None) => {
                let insecure = self.insecure || settings.flag("insecure")?.unwrap_or_default();
                let Some(listen) = listen.iter().find(|address| !insecure && !address.ip().is_loopback()) else {
                    return Ok(None);
                };
                Err(Failure::usage(format!(
                    "{listen} is reached from other machines, and without TLS tokens travel in the clear"
                ))
                .hint("--tls-cert FILE --tls-key FILE; `octavius tls create` makes some to try with")
                .hint("or --insecure, where the network is one to be trusted or something before it speaks TLS"))
            }
        }
    }
}
