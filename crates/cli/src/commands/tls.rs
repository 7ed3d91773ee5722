//! `octavius tls create`: an authority of one's own and the certificates that a controller and its clients need, to try TLS with.

use std::net::IpAddr;
use std::path::{Path, PathBuf};
use std::time::Duration;

use clap::{Args, Subcommand};
use octavius_core::HumanDuration;
use octavius_proto::pem;
use rcgen::{
    BasicConstraints, CertificateParams, DistinguishedName, DnType, ExtendedKeyUsagePurpose, IsCa, Issuer, KeyPair,
    KeyUsagePurpose,
};

use crate::client_tls::file_failure;
use crate::config::create_private_dir;
use crate::error::{Failure, Outcome};
use crate::exit::Exit;
use crate::{Context, env};

/// Flags of `octavius tls`.
#[derive(Debug, Args)]
pub struct TlsArgs {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Make an authority, a certificate for a controller, and certificates for clients: for development, and to try things
    Create(CreateArgs),
}

const NOTE: &str = "\
These certificates are for development: whoever has DIR/ca.key can make one for any name. Elsewhere, have them made and renewed by what makes the
others in your house: cert-manager, Vault, step-ca.

Nothing that is there is replaced. With DIR/ca.pem and DIR/ca.key there, what is missing is signed by that authority: to renew the controller's
certificate, remove server.pem and server.key and call this again; a controller that runs takes it without a restart.";

#[derive(Debug, Args)]
#[command(after_help = NOTE)]
struct CreateArgs {
    /// Folder of the certificates
    #[arg(value_name = "DIR", default_value = "tls")]
    dir: PathBuf,
    /// A name or an address at which the controller is reached, beside localhost, 127.0.0.1, ::1 and this machine's name; may be repeated
    #[arg(long, value_name = "NAME", env = env::HOST)]
    host: Vec<String>,
    /// Whom a client's certificate is for, its files are called so; may be repeated [default: client]
    #[arg(long, value_name = "NAME", env = env::CLIENT)]
    client: Vec<String>,
    /// How long the certificates are valid, at least 1d; the authority is for ten years
    #[arg(long, value_name = "DURATION", default_value = "365d", env = env::VALID_FOR)]
    valid_for: HumanDuration,
}

/// How long the authority is valid.
const AUTHORITY_VALID_FOR: Duration = Duration::from_secs(3650 * DAY);

const DAY: u64 = 24 * 3600;

/// What the authority's name begins with; then comes what its key is known by.
const AUTHORITY: &str = "octavius development CA";

/// Runs the command.
///
/// # Errors
/// Where a name cannot be one, what is there is in the way, or a file cannot be written.
pub fn run(context: &Context, args: &TlsArgs) -> Outcome {
    let Command::Create(args) = &args.command;
    create(context, args)
}

/// A certificate's file and its key's.
struct Files {
    certificate: PathBuf,
    key: PathBuf,
}

impl Files {
    fn of(dir: &Path, name: &str) -> Self {
        Self { certificate: dir.join(format!("{name}.pem")), key: dir.join(format!("{name}.key")) }
    }

    /// Whether both are there.
    fn are_there(&self) -> Outcome<bool> {
        match (self.certificate.exists(), self.key.exists()) {
            (false, false) => Ok(false),
            (true, true) => Ok(true),
            (true, false) => Err(half(&self.certificate, &self.key)),
            (false, true) => Err(half(&self.key, &self.certificate)),
        }
    }

    fn write(&self, certificate: &str, key: &str) -> Outcome<()> {
        write_new(&self.key, key, 0o600)?;
        write_new(&self.certificate, certificate, 0o644)
    }
}

fn half(there: &Path, missing: &Path) -> Failure {
    Failure::usage(format!("{} is there and {} is not", there.display(), missing.display()))
        .hint("bring the other one back, or remove this one, or name another folder")
}

fn write_new(path: &Path, text: &str, mode: u32) -> Outcome<()> {
    octavius_controller::private::write_new(path, text.as_bytes(), mode).map_err(|error| Failure::file("write", path, error))
}

fn create(context: &Context, args: &CreateArgs) -> Outcome {
    let CreateArgs { dir, host, client, valid_for: lifetime } = args;
    let lifetime = lifetime.get();
    if lifetime < Duration::from_secs(DAY) {
        return Err(Failure::usage("--valid-for is under 1d: the certificates would expire while one looks for the reason"));
    }
    let clients = if client.is_empty() { vec!["client".to_owned()] } else { client.clone() };
    for name in &clients {
        check_client(name)?;
    }
    let mut hosts: Vec<String> = ["localhost", "127.0.0.1", "::1"].map(str::to_owned).into();
    hosts.extend(this_host());
    for name in host {
        check_host(name)?;
        if !hosts.contains(name) {
            hosts.push(name.clone());
        }
    }
    let (authority, server) = (Files::of(dir, "ca"), Files::of(dir, "server"));
    let has_server = server.are_there()?;
    if has_server && !host.is_empty() {
        return Err(Failure::usage(format!("{} is there already", server.certificate.display()))
            .hint("remove it and its key to have it made for these hosts, by the same authority"));
    }
    let missing = clients.iter().filter_map(|name| match Files::of(dir, name).are_there() {
        Ok(true) => None,
        Ok(false) => Some(Ok(name)),
        Err(failure) => Some(Err(failure)),
    });
    let missing: Vec<&String> = missing.collect::<Outcome<_>>()?;

    let mut made: Vec<PathBuf> = Vec::new();
    let mut keep = |files: &Files, certificate: &str, key: &str| {
        files.write(certificate, key)?;
        made.extend([files.certificate.clone(), files.key.clone()]);
        Ok::<_, Failure>(())
    };
    let issuer = if authority.are_there()? {
        existing(&authority)?
    } else {
        if has_server {
            return Err(half(&server.certificate, &authority.certificate));
        }
        create_private_dir(dir)?;
        let key = KeyPair::generate().map_err(fault)?;
        let params = of_authority(&key);
        let certificate = params.self_signed(&key).map_err(fault)?;
        keep(&authority, &certificate.pem(), &key.serialize_pem())?;
        Issuer::new(params, key)
    };
    let sign = |name: &str, names: Vec<String>, purpose: ExtendedKeyUsagePurpose| {
        let key = KeyPair::generate().map_err(fault)?;
        let mut params = CertificateParams::new(names).map_err(fault)?;
        params.distinguished_name = called(name);
        params.extended_key_usages = vec![purpose];
        params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
        params.use_authority_key_identifier_extension = true;
        valid_for(&mut params, lifetime);
        let certificate = params.signed_by(&key, &issuer).map_err(fault)?;
        Ok::<_, Failure>((certificate.pem(), key.serialize_pem()))
    };
    if !has_server {
        let (certificate, key) = sign("octavius controller", hosts.clone(), ExtendedKeyUsagePurpose::ServerAuth)?;
        keep(&server, &certificate, &key)?;
    }
    for name in missing {
        let (certificate, key) = sign(name, Vec::new(), ExtendedKeyUsagePurpose::ClientAuth)?;
        keep(&Files::of(dir, name), &certificate, &key)?;
    }

    for path in &made {
        context.shell.line(&path.display().to_string())?;
    }
    if made.is_empty() {
        context.shell.note("all of it is there already");
        return Ok(Exit::Done);
    }
    context.shell.note("for development: whoever has ca.key can make a certificate for any name");
    let shown = |files: &Files| (files.certificate.display().to_string(), files.key.display().to_string());
    let ((ca, _), (certificate, key)) = (shown(&authority), shown(&server));
    if !has_server {
        context.shell.note(&format!("the controller is reached as {}", hosts.join(", ")));
        context.shell.hint(&format!("octavius controller start … --tls-cert {certificate} --tls-key {key}"));
    }
    context.shell.hint(&format!("octavius config --cp-host HOST:PORT --ca-file {ca} --token-file FILE"));
    if let Some(name) = clients.first() {
        let (certificate, key) = shown(&Files::of(dir, name));
        context.shell.hint(&format!(
            "with --client-ca {ca} at the controller, clients and executors need --client-cert {certificate} --client-key {key} too"
        ));
    }
    Ok(Exit::Done)
}

fn fault(error: rcgen::Error) -> Failure {
    Failure::new(Exit::Fault, anyhow::Error::new(error).context("cannot make a certificate"))
}

/// An authority that this command has made before.
fn existing(files: &Files) -> Outcome<Issuer<'static, KeyPair>> {
    let foreign = || {
        let (certificate, key) = (files.certificate.display(), files.key.display());
        Failure::usage(format!("{certificate} and {key} are no authority that this command has made"))
            .hint("name another folder, or have the certificates made by what made that authority")
    };
    let text = pem::read_private(&files.key).map_err(file_failure)?;
    let key = KeyPair::from_pem(&String::from_utf8(text).map_err(|_| foreign())?).map_err(|_| foreign())?;
    let text = pem::read(&files.certificate).map_err(file_failure)?;
    let certificates = pem::certificates(&text, &files.certificate.display().to_string()).map_err(file_failure)?;
    let params = of_authority(&key);
    let holds = |part: &[u8]| certificates.first().is_some_and(|der| der.windows(part.len()).any(|window| window == part));
    if !holds(key.public_key_raw()) || !holds(name_of_authority(&key).as_bytes()) {
        return Err(foreign());
    }
    Ok(Issuer::new(params, key))
}

/// An authority is known again by its key alone.
fn name_of_authority(key: &KeyPair) -> String {
    let id = CertificateParams::default().key_identifier(key);
    let id: String = id.iter().take(4).map(|byte| format!("{byte:02x}")).collect();
    format!("{AUTHORITY} {id}")
}

fn of_authority(key: &KeyPair) -> CertificateParams {
    let mut params = CertificateParams::default();
    params.distinguished_name = called(&name_of_authority(key));
    params.is_ca = IsCa::Ca(BasicConstraints::Constrained(0));
    params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
    valid_for(&mut params, AUTHORITY_VALID_FOR);
    params
}

fn called(name: &str) -> DistinguishedName {
    let mut called = DistinguishedName::new();
    called.push(DnType::CommonName, name);
    called
}

/// From yesterday, since clocks differ, to so long from now.
fn valid_for(params: &mut CertificateParams, duration: Duration) {
    let since_1970 = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap_or_default();
    let now = Duration::from_secs(since_1970.as_secs());
    let begun = rcgen::date_time_ymd(1970, 1, 1);
    params.not_before = begun + now.saturating_sub(Duration::from_secs(DAY));
    params.not_after = begun + (now + duration);
}

/// This machine's name, where it has one that others may use.
fn this_host() -> Option<String> {
    let name = std::fs::read_to_string("/proc/sys/kernel/hostname").ok()?;
    let name = name.trim().to_ascii_lowercase();
    (name != "localhost" && check_host(&name).is_ok()).then_some(name)
}

fn check_host(name: &str) -> Outcome<()> {
    let label = |label: &str| {
        !label.is_empty()
            && label.len() <= 63
            && label.bytes().all(|byte| byte.is_ascii_alphanumeric() || byte == b'-' || byte == b'_')
    };
    let name_proper = name.strip_prefix("*.").unwrap_or(name);
    let is_name = name.len() <= 253 && name_proper.split('.').all(label);
    if is_name || name.parse::<IpAddr>().is_ok() {
        return Ok(());
    }
    Err(Failure::usage(format!("\"{}\" is neither a host's name nor its address", crate::sanitize::line(name)))
        .hint("--host ctl.example, --host 192.0.2.7, --host '*.octavius.example'; without scheme and port"))
}

fn check_client(name: &str) -> Outcome<()> {
    let may = |byte: u8| byte.is_ascii_alphanumeric() || matches!(byte, b'.' | b'_' | b'-' | b'@');
    let reserved = ["ca", "server"].contains(&name);
    if !reserved && !name.is_empty() && name.len() <= 64 && !name.starts_with('.') && name.bytes().all(may) {
        return Ok(());
    }
    Err(Failure::usage(format!("--client \"{}\" cannot be the name of a file here", crate::sanitize::line(name)))
        .hint("letters, digits and . _ - @; not ca, and not server"))
}
