//! Where a controller keeps everything, as flags, environment and `controller_config.json` say: read here for `controller start` and
//! `restore` alike, and opened.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use clap::Args;
use octavius_proto::client::Address;
use octavius_store::{EmbeddedOptions, EtcdOptions, Refusal, Store, StoreError, open_embedded, open_etcd};

use crate::config::read_secret_file;
use crate::daemon::Settings;
use crate::env;
use crate::error::{Failure, Outcome};
use crate::exit::Exit;

/// The first Octavius' port of etcd.
const ETCD_PORT: u16 = 2379;

/// Smallest quota of an etcd that can be named. A store reaches for its last part only when the rest is full, and there has to be one.
const MIN_QUOTA_BYTES: u64 = 16 << 20;

/// Keys of `controller_config.json`: the first Octavius', then ours.
pub const KEYS: [&str; 41] = [
    "etcd_host",
    "etcd_port",
    "etcd_dial_timeout",
    "log_level",
    "app_port",
    "executor_ping_deadline",
    "log_file_path",
    "log_file_max_size_in_mb",
    "store",
    "listen",
    "tls_cert",
    "tls_key",
    "client_ca",
    "insecure",
    "metrics_listen",
    "page_listen",
    "page_behind_tls",
    "page_url",
    "bootstrap_token_file",
    "etcd_prefix",
    "etcd_user",
    "etcd_password_file",
    "etcd_ca_file",
    "etcd_cert_file",
    "etcd_key_file",
    "etcd_quota_bytes",
    "etcd_shared",
    "retention_age",
    "retention_executions",
    "retention_audit",
    "audit_export",
    "strategy",
    "archive",
    "log_limit",
    "retention_log_bytes",
    "request_rate",
    "executor_token_lifetime",
    crate::encryption_options::KEY,
    "issuers",
    "webhooks",
    "otlp_endpoint",
];

/// Variables that stand over the file. Those of flags are read with the flags, and weigh more than the first Octavius'.
const VARIABLES: [(&str, &[&str]); 17] = [
    ("etcd_host", &[env::SEED_ETCD_HOST]),
    ("etcd_port", &[env::ETCD_PORT, env::SEED_ETCD_PORT]),
    ("etcd_dial_timeout", &[env::ETCD_DIAL_TIMEOUT, env::SEED_ETCD_DIAL_TIMEOUT]),
    ("etcd_quota_bytes", &[env::ETCD_QUOTA_BYTES]),
    ("etcd_shared", &[env::ETCD_SHARED]),
    ("retention_age", &[env::RETENTION_AGE]),
    ("retention_executions", &[env::RETENTION_EXECUTIONS]),
    ("retention_log_bytes", &[env::RETENTION_LOG_BYTES]),
    ("retention_audit", &[env::RETENTION_AUDIT]),
    ("audit_export", &[env::AUDIT_EXPORT]),
    ("request_rate", &[env::REQUEST_RATE]),
    ("executor_token_lifetime", &[env::EXECUTOR_TOKEN_LIFETIME]),
    ("log_level", &[env::SEED_LOG_LEVEL]),
    ("app_port", &[env::APP_PORT, env::SEED_APP_PORT]),
    ("executor_ping_deadline", &[env::EXECUTOR_PING_DEADLINE, env::SEED_EXECUTOR_PING_DEADLINE]),
    ("log_file_path", &[env::LOG_FILE_PATH, env::SEED_LOG_FILE_PATH]),
    ("log_file_max_size_in_mb", &[env::LOG_FILE_MAX_SIZE, env::SEED_LOG_FILE_MAX_SIZE]),
];

/// How an etcd lets one in. All of it may stand in the configuration file too.
#[derive(Debug, Clone, Default, Args)]
#[command(next_help_heading = "Access to etcd")]
pub struct EtcdAccessArgs {
    /// User of the etcd; the password is in OCTAVIUS_ETCD_PASSWORD or a file
    #[arg(long, value_name = "NAME", env = env::ETCD_USER)]
    etcd_user: Option<String>,
    /// File that holds the user's password
    #[arg(long, value_name = "FILE", env = env::ETCD_PASSWORD_FILE)]
    etcd_password_file: Option<PathBuf>,
    /// Certificate of the authority that signed the etcd's own, PEM
    #[arg(long, value_name = "FILE", env = env::ETCD_CA_FILE)]
    etcd_ca_file: Option<PathBuf>,
    /// Certificate to show to the etcd, PEM
    #[arg(long, value_name = "FILE", env = env::ETCD_CERT_FILE)]
    etcd_cert_file: Option<PathBuf>,
    /// Key of that certificate, PEM
    #[arg(long, value_name = "FILE", env = env::ETCD_KEY_FILE)]
    etcd_key_file: Option<PathBuf>,
}

/// The flags that say which store is meant.
#[derive(Debug, Clone, Default, Args)]
pub struct StoreArgs {
    /// Configuration file [default: ./controller_config.json, where it is there]
    #[arg(long, value_name = "FILE", env = env::CONTROLLER_CONFIG)]
    config: Option<PathBuf>,
    /// Where everything is kept: embedded:DIR, one file on this machine, or etcd
    #[arg(long, value_name = "STORE", env = env::STORE)]
    store: Option<String>,
    /// Members of the etcd, separated by commas; each a HOST, HOST:PORT or URL
    #[arg(long, value_name = "HOST:PORT,…", env = env::ETCD_HOST)]
    etcd_host: Option<String>,
    /// What all our keys in the etcd start with [default: /octavius/v1/]
    #[arg(long, value_name = "PREFIX", env = env::ETCD_PREFIX)]
    etcd_prefix: Option<String>,
    #[command(flatten)]
    access: EtcdAccessArgs,
}

/// A store that is meant, and not opened yet.
pub enum StoreChoice {
    /// One file in this folder.
    Embedded(PathBuf),
    /// An etcd.
    Etcd(EtcdOptions),
}

impl std::fmt::Debug for StoreChoice {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Embedded(dir) => write!(f, "embedded:{}", dir.display()),
            // no password
            Self::Etcd(options) => write!(f, "etcd at {}, prefix {}", options.endpoints.join(", "), options.prefix),
        }
    }
}

impl StoreChoice {
    /// The flags that mean this store; how one is let in is left out.
    #[must_use]
    pub fn flags(&self) -> String {
        match self {
            Self::Embedded(dir) => format!("--store embedded:{}", dir.display()),
            Self::Etcd(options) => {
                format!("--store etcd --etcd-host {} --etcd-prefix {}", options.endpoints.join(","), options.prefix)
            }
        }
    }
}

/// What a name of a store means.
#[derive(Debug, PartialEq, Eq)]
enum Named {
    Embedded(PathBuf),
    Etcd,
}

fn named(text: &str) -> Outcome<Named> {
    match text.split_once(':') {
        Some(("embedded", dir)) if !dir.is_empty() => Ok(Named::Embedded(PathBuf::from(dir))),
        _ if text == "etcd" => Ok(Named::Etcd),
        _ if text.starts_with("etcd:") => {
            Err(Failure::usage("--store etcd takes no address").hint("name its members with --etcd-host HOST:PORT,…"))
        }
        _ => Err(Failure::usage(format!("store \"{}\" is not known", crate::sanitize::line(text)))
            .hint("--store embedded:DIR, or --store etcd with --etcd-host HOST:PORT")),
    }
}

impl StoreArgs {
    /// The configuration file, with the variables that stand over it.
    ///
    /// # Errors
    /// Where it cannot be read or understood.
    pub fn settings(&self) -> Outcome<Settings> {
        Ok(Settings::read(self.config.as_deref(), "controller_config.json", &KEYS)?.with_variables(&VARIABLES))
    }

    /// Which store is meant. One that is named by nothing while an etcd's host is named is that etcd: so the first Octavius' files mean it.
    ///
    /// # Errors
    /// Where none is named, or what is said of it cannot be.
    pub fn choice(&self, settings: &Settings) -> Outcome<StoreChoice> {
        // a wrong value is told even where it would not be used
        let etcd = self.etcd(settings)?;
        let store = match (&self.store, settings.text("store")?) {
            (Some(text), _) => Some(named(text)?),
            (None, Some(text)) => Some(match named(&text)? {
                Named::Embedded(dir) => Named::Embedded(settings.beside(&dir)),
                Named::Etcd => Named::Etcd,
            }),
            (None, None) => None,
        };
        match (store, etcd) {
            (Some(Named::Embedded(dir)), _) => Ok(StoreChoice::Embedded(dir)),
            (Some(Named::Etcd) | None, Some(options)) => Ok(StoreChoice::Etcd(options)),
            (Some(Named::Etcd), None) => Err(Failure::usage("--store etcd, and no etcd is named")
                .hint("name its members: --etcd-host HOST:PORT,…, OCTAVIUS_ETCD_HOST, or `etcd_host` in controller_config.json")),
            (None, None) => Err(Failure::usage("no store is named")
                .hint("--store embedded:DIR keeps everything in one file of DIR, for one controller")
                .hint("--store etcd --etcd-host HOST:PORT,… is for any number of controllers")),
        }
    }

    fn etcd(&self, settings: &Settings) -> Outcome<Option<EtcdOptions>> {
        let port = settings.number("etcd_port")?;
        let timeout = settings.seconds("etcd_dial_timeout")?;
        let (quota, prefix) = (settings.number("etcd_quota_bytes")?, settings.text("etcd_prefix")?);
        if quota.is_some_and(|quota| quota < MIN_QUOTA_BYTES) {
            let problem = "is under 16 MiB (16777216): write the bytes that etcd's --quota-backend-bytes has";
            return Err(settings.wrong("etcd_quota_bytes", problem));
        }
        let prefix = self.etcd_prefix.clone().or(prefix);
        if let Some(prefix) = prefix.as_deref().filter(|prefix| !is_prefix(prefix)) {
            return Err(Failure::usage(format!("etcd_prefix \"{}\" cannot be", crate::sanitize::line(prefix)))
                .hint("printable ASCII that ends with a slash, like /octavius/v1/"));
        }
        let access = self.access.over(settings)?;
        let Some(host) = self.etcd_host.clone().map_or_else(|| settings.text("etcd_host"), |host| Ok(Some(host)))? else {
            return Ok(None);
        };
        let mut options = access.options(&host, port)?;
        if let Some(timeout) = timeout {
            options.timeout = timeout;
        }
        if let Some(quota) = quota {
            options.quota_bytes = quota;
        }
        if let Some(prefix) = prefix {
            options.prefix = prefix;
        }
        Ok(Some(options))
    }
}

fn is_prefix(prefix: &str) -> bool {
    prefix.len() > 1 && prefix.len() <= 256 && prefix.ends_with('/') && prefix.bytes().all(|byte| byte.is_ascii_graphic())
}

impl EtcdAccessArgs {
    /// What flags and their variables leave open, taken from the file.
    fn over(&self, settings: &Settings) -> Outcome<Self> {
        let path = |given: &Option<PathBuf>, key| given.clone().map_or_else(|| settings.path(key), |path| Ok(Some(path)));
        Ok(Self {
            etcd_user: self.etcd_user.clone().map_or_else(|| settings.text("etcd_user"), |user| Ok(Some(user)))?,
            etcd_password_file: path(&self.etcd_password_file, "etcd_password_file")?,
            etcd_ca_file: path(&self.etcd_ca_file, "etcd_ca_file")?,
            etcd_cert_file: path(&self.etcd_cert_file, "etcd_cert_file")?,
            etcd_key_file: path(&self.etcd_key_file, "etcd_key_file")?,
        })
    }

    /// The way to these members; `port` is that of those that name none.
    ///
    /// # Errors
    /// Where a member's address cannot be, or half of a pair is missing: user and password, certificate and key.
    pub fn options(&self, hosts: &str, port: Option<u16>) -> Outcome<EtcdOptions> {
        let client_cert = match (&self.etcd_cert_file, &self.etcd_key_file) {
            (Some(cert), Some(key)) => Some((cert.clone(), key.clone())),
            (None, None) => None,
            (Some(_), None) => return Err(Failure::usage("etcd_cert_file without etcd_key_file: a certificate needs its key")),
            (None, Some(_)) => return Err(Failure::usage("etcd_key_file without etcd_cert_file: a key needs its certificate")),
        };
        let password = match &self.etcd_password_file {
            Some(path) => Some(read_secret_file(path, "password")?),
            None => env::get(env::ETCD_PASSWORD),
        };
        let user = match (&self.etcd_user, password) {
            (Some(user), Some(password)) => Some((user.clone(), password)),
            (None, None) => None,
            (Some(_), None) => {
                return Err(Failure::usage("etcd_user, and no password")
                    .hint("give it in a file, --etcd-password-file FILE, or in OCTAVIUS_ETCD_PASSWORD"));
            }
            (None, Some(_)) => return Err(Failure::usage("a password for etcd, and no etcd_user")),
        };
        let secure = self.etcd_ca_file.is_some() || client_cert.is_some();
        let endpoints = hosts.split(',').map(|host| endpoint(host.trim(), port.unwrap_or(ETCD_PORT), secure));
        let endpoints = endpoints.collect::<Outcome<Vec<_>>>()?;
        Ok(EtcdOptions { user, ca_file: self.etcd_ca_file.clone(), client_cert, ..EtcdOptions::new(endpoints) })
    }
}

/// One member's URL.
fn endpoint(host: &str, port: u16, secure: bool) -> Outcome<String> {
    let wrong = |problem: &str| {
        Failure::usage(format!("etcd_host: \"{}\" {problem}", crate::sanitize::line(host)))
            .hint("write HOST, HOST:PORT, or a URL with http or https; several separated by commas")
    };
    let (scheme, rest) = match host.split_once("://") {
        Some((scheme @ ("http" | "https"), rest)) => (scheme, rest.trim_end_matches('/')),
        Some(_) => return Err(wrong("is no address of an etcd")),
        None => (if secure { "https" } else { "http" }, host),
    };
    if secure && scheme == "http" {
        return Err(wrong("is without TLS, and certificates are given for it"));
    }
    // an IPv6 address stands in brackets, so that its last part is not taken for a port
    let has_port = rest.rsplit_once(':').is_some_and(|(_, last)| !last.ends_with(']'));
    let rest = if has_port { rest.to_owned() } else { format!("{rest}:{port}") };
    Address::parse(&rest).map_err(|_| wrong("is no address of an etcd"))?;
    Ok(format!("{scheme}://{rest}"))
}

/// Opens the embedded store in a folder.
///
/// # Errors
/// Where the folder cannot be used, or another process has it open.
pub fn open_embedded_in(dir: &Path) -> Outcome<Arc<dyn Store>> {
    open_embedded(dir, EmbeddedOptions::default()).map_err(|error| {
        let locked = error.to_string().contains("another process");
        let failure = Failure::new(Exit::Usage, error);
        if locked {
            failure.hint("one process at a time has it; give this one a folder of its own, or stop the other")
        } else {
            failure
        }
    })
}

/// Opens the store that is meant.
///
/// # Errors
/// Where a folder cannot be used, or no member of the etcd answers.
pub async fn open(choice: StoreChoice) -> Outcome<Arc<dyn Store>> {
    match choice {
        StoreChoice::Embedded(dir) => open_embedded_in(&dir),
        StoreChoice::Etcd(options) => {
            let needs = format!("read and write all keys that start with {}", options.prefix);
            let wanted = EtcdUse::new(&options, "etcd_dial_timeout", needs);
            open_etcd(options).await.map_err(|error| wanted.failure(error))
        }
    }
}

/// What an etcd was wanted for: what is said where it cannot be used.
#[derive(Debug)]
pub struct EtcdUse {
    endpoints: String,
    timeout: Duration,
    /// What sets the timeout.
    setting: &'static str,
    /// What the user has to be allowed.
    needs: String,
}

impl EtcdUse {
    /// A use of the etcd that the options name; `setting` is the key or flag of the timeout, `needs` what the user has to be allowed.
    #[must_use]
    pub fn new(options: &EtcdOptions, setting: &'static str, needs: String) -> Self {
        Self { endpoints: options.endpoints.join(", "), timeout: options.timeout, setting, needs }
    }

    /// An etcd that cannot be used, with what to do.
    #[must_use]
    pub fn failure(&self, error: StoreError) -> Failure {
        use StoreError as E;
        let (exit, hint) = match &error {
            E::Refused { refusal: Refusal::Options, .. } => {
                (Exit::Usage, "certificates and keys are PEM files: --etcd-ca-file, --etcd-cert-file, --etcd-key-file".to_owned())
            }
            E::Refused { refusal: Refusal::NoUsers, .. } => {
                (Exit::Usage, "this etcd knows no users: leave --etcd-user and the password out".to_owned())
            }
            E::Refused { refusal: Refusal::Credentials, .. } => (
                Exit::NotSignedIn,
                "--etcd-user NAME, and the password in --etcd-password-file FILE or OCTAVIUS_ETCD_PASSWORD".to_owned(),
            ),
            E::Refused { refusal: Refusal::Permission, .. } => (Exit::Refused, format!("the etcd's user has to {}", self.needs)),
            E::Unavailable(_) => (
                Exit::Unreachable,
                "does it run there, and does it want TLS (an https URL, --etcd-ca-file, --etcd-cert-file)?".to_owned(),
            ),
            _ => (Exit::Fault, "its log may say more".to_owned()),
        };
        let Self { endpoints, timeout, setting, .. } = self;
        let timeout = octavius_core::HumanDuration::new(*timeout);
        let failure =
            Failure::new(exit, anyhow::Error::new(error).context(format!("cannot use the etcd at {endpoints}"))).hint(hint);
        if exit == Exit::Unreachable { failure.hint(format!("each call may take {timeout}: {setting} sets it")) } else { failure }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn settings(text: &str) -> (tempfile::TempDir, Settings) {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("controller_config.json");
        std::fs::write(&path, text).unwrap();
        let settings = Settings::read(Some(&path), "none", &KEYS).unwrap();
        (folder, settings)
    }

    fn etcd(args: &StoreArgs, text: &str) -> Outcome<EtcdOptions> {
        match args.choice(&settings(text).1)? {
            StoreChoice::Etcd(options) => Ok(options),
            StoreChoice::Embedded(dir) => panic!("embedded in {}", dir.display()),
        }
    }

    fn told(failure: &Failure) -> String {
        format!("{:#}", failure.error.as_ref().unwrap())
    }

    #[test]
    fn stores_are_named_or_refused() {
        assert_eq!(named("embedded:/data/x").unwrap(), Named::Embedded(PathBuf::from("/data/x")));
        assert_eq!(named("etcd").unwrap(), Named::Etcd);
        for text in ["etcd:http://a", "embedded", "embedded:", "redis"] {
            assert_eq!(named(text).unwrap_err().exit, Exit::Usage, "{text}");
        }
    }

    #[test]
    fn a_file_of_the_first_octavius_means_its_etcd() {
        let text =
            r#"{"etcd_host": "etcd-1", "etcd_port": "2380", "etcd_dial_timeout": 5, "app_port": 8080, "log_level": "info"}"#;
        let options = etcd(&StoreArgs::default(), text).unwrap();
        assert_eq!((options.endpoints, options.timeout.as_secs()), (vec!["http://etcd-1:2380".to_owned()], 5));
        assert_eq!((options.prefix.as_str(), options.quota_bytes), ("/octavius/v1/", 2 << 30));
        let (folder, with_store) = settings(r#"{"etcd_host": "etcd-1", "store": "embedded:data"}"#);
        match StoreArgs::default().choice(&with_store).unwrap() {
            StoreChoice::Embedded(dir) => assert_eq!(dir, folder.path().join("data")),
            StoreChoice::Etcd(_) => panic!("a store that is named goes before a host"),
        }
    }

    #[test]
    fn members_are_hosts_ports_or_urls() {
        let endpoints = |hosts: &str| {
            EtcdAccessArgs::default().options(hosts, None).map(|options| options.endpoints.join(" ")).map_err(|f| told(&f))
        };
        assert_eq!(endpoints("a, b:1,http://c:2/").unwrap(), "http://a:2379 http://b:1 http://c:2");
        assert_eq!(endpoints("[::1],https://[::1]:4").unwrap(), "http://[::1]:2379 https://[::1]:4");
        for wrong in ["", "a,,b", "a:port", "ftp://a", "a b", ":2379"] {
            assert!(endpoints(wrong).unwrap_err().contains("is no address of an etcd"), "{wrong}");
        }
    }

    #[test]
    fn with_certificates_it_is_tls() {
        let access = EtcdAccessArgs { etcd_ca_file: Some("ca.pem".into()), ..Default::default() };
        assert_eq!(access.options("a", Some(1)).unwrap().endpoints, ["https://a:1"]);
        assert!(told(&access.options("http://a", None).err().unwrap()).contains("without TLS"));
        let half = EtcdAccessArgs { etcd_cert_file: Some("c.pem".into()), ..Default::default() };
        assert!(told(&half.options("a", None).err().unwrap()).contains("etcd_key_file"));
        let user = EtcdAccessArgs { etcd_user: Some("root".into()), ..Default::default() };
        assert!(told(&user.options("a", None).err().unwrap()).contains("no password"));
    }

    #[test]
    fn a_password_comes_from_a_file_beside_the_configuration() {
        let (folder, settings) = settings(r#"{"etcd_host": "a", "etcd_user": "octavius", "etcd_password_file": "pw"}"#);
        let choose = || StoreArgs::default().choice(&settings);
        assert!(told(&choose().unwrap_err()).contains("pw"));
        std::fs::write(folder.path().join("pw"), "geheim\n").unwrap();
        let StoreChoice::Etcd(options) = choose().unwrap() else { panic!("not etcd") };
        assert_eq!(options.user, Some(("octavius".to_owned(), "geheim".to_owned())));
        assert_eq!(format!("{:?}", StoreChoice::Etcd(options)), "etcd at http://a:2379, prefix /octavius/v1/");
    }

    #[test]
    fn wrong_values_name_their_key() {
        let args = StoreArgs { store: Some("etcd".to_owned()), ..Default::default() };
        for (text, expected) in [
            ("{}", "no etcd is named"),
            (r#"{"etcd_host": 3}"#, "`etcd_host` is not a text"),
            (r#"{"etcd_host": "a", "etcd_port": 70000}"#, "`etcd_port` is not a whole number, or out of range"),
            (r#"{"etcd_host": "a", "etcd_dial_timeout": 0}"#, "`etcd_dial_timeout` is 0"),
            (r#"{"etcd_host": "a", "etcd_dial_timeout": "2s"}"#, "`etcd_dial_timeout` is not a whole number of seconds, like 2"),
            (r#"{"etcd_host": "a", "etcd_quota_bytes": 16777215}"#, "`etcd_quota_bytes` is under 16 MiB"),
            (r#"{"etcd_host": "a", "etcd_quota_bytes": "2GiB"}"#, "`etcd_quota_bytes` is not a whole number"),
            (r#"{"etcd_host": "a", "etcd_prefix": "octavius"}"#, "etcd_prefix \"octavius\" cannot be"),
        ] {
            let failure = etcd(&args, text).err().unwrap();
            assert!(failure.exit == Exit::Usage && told(&failure).contains(expected), "{text}: {}", told(&failure));
        }
    }
}
