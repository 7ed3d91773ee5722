//! The client's configuration: `octavius_client.yaml`, and what flags and the environment put over it. It is read once and passed on as a
//! value. Keys are those of the first Octavius; `contexts` is new.

use std::collections::BTreeMap;
use std::fs;
use std::io::{Read as _, Write as _};
use std::path::{Path, PathBuf};
use std::time::Duration;

use octavius_controller::private::exposed;
use octavius_core::nearest::nearest;
use octavius_proto::client::Address;
use octavius_proto::tls::Authorities;

use crate::cli::ConnectArgs;
use crate::client_tls::Certificates;
use crate::env;
use crate::error::{Failure, Outcome};
use crate::token_from::TokenFrom;

/// The file's name, in `./` and `~/.octavius/`.
pub const FILE_NAME: &str = "octavius_client.yaml";

/// What the top of a file is called where a context is chosen or listed.
pub const TOP: &str = "default";

/// How long is waited for a controller where nothing is said: the first Octavius' default.
const DEFAULT_TIMEOUT: Duration = Duration::from_secs(10);

/// Longest text that is taken for a token file.
const TOKEN_FILE_BYTES: u64 = 16 * 1024;

/// What is known of one controller.
#[derive(Clone, Default, PartialEq, Eq)]
pub struct Entry {
    /// Addresses, separated by commas.
    pub cp_host: Option<String>,
    /// The user's address.
    pub email_id: Option<String>,
    /// The token.
    pub access_token: Option<String>,
    /// Seconds to wait for a connection; 0 for the default.
    pub connection_timeout_secs: Option<u64>,
    /// The authorities that may have signed the controller's certificate, in PEM: with them, the file is all that one needs.
    pub ca_pem: Option<String>,
    /// The file of a certificate to be shown to the controller. A path, since it is renewed more often than this file.
    pub client_cert: Option<PathBuf>,
    /// The file of its key.
    pub client_key: Option<PathBuf>,
    /// The name that the controller's certificate is for, where it is not that of the address.
    pub server_name: Option<String>,
}

impl std::fmt::Debug for Entry {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Entry({:?}, token {})", self.cp_host, if self.access_token.is_some() { "set" } else { "not set" })
    }
}

/// A configuration file.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct ClientFile {
    /// What stands at the top: used where no context is chosen.
    pub top: Entry,
    /// Named controllers.
    pub contexts: BTreeMap<String, Entry>,
    /// The context that is used where none is named.
    pub current_context: Option<String>,
}

const KEYS: [&str; 8] =
    ["CP_HOST", "EMAIL_ID", "ACCESS_TOKEN", "CONNECTION_TIMEOUT_SECS", "CA_PEM", "CLIENT_CERT", "CLIENT_KEY", "SERVER_NAME"];

impl ClientFile {
    /// Reads the text of a file.
    ///
    /// # Errors
    /// What is wrong with it, naming the key. No value is repeated: it may be a token.
    pub fn parse(text: &str) -> Result<Self, String> {
        // serde_yaml's own message may quote the text, which holds a token: only the place is told
        let value: serde_yaml::Value = serde_yaml::from_str(text).map_err(|error| match error.location() {
            Some(place) => format!("line {}, column {}: not valid YAML", place.line(), place.column()),
            None => "not valid YAML".to_owned(),
        })?;
        let fields = match value {
            serde_yaml::Value::Null => return Ok(Self::default()),
            serde_yaml::Value::Mapping(fields) => fields,
            _ => return Err("a map of keys is expected".to_owned()),
        };
        let mut file = Self::default();
        for (key, value) in &fields {
            let key = key.as_str().ok_or("a key is not a text")?;
            match key.to_ascii_lowercase().as_str() {
                "contexts" => {
                    let contexts = value.as_mapping().ok_or("`contexts` is not a map")?;
                    for (name, fields) in contexts {
                        let name = name.as_str().ok_or("the name of a context is not a text")?;
                        let fields = fields.as_mapping().ok_or_else(|| format!("context `{name}` is not a map"))?;
                        let mut entry = Entry::default();
                        for (key, value) in fields {
                            entry.set(key.as_str().ok_or("a key is not a text")?, value)?;
                        }
                        file.contexts.insert(name.to_owned(), entry);
                    }
                }
                "current_context" if value.is_null() => {}
                "current_context" => {
                    file.current_context = Some(value.as_str().ok_or("`current_context` is not a text")?.to_owned());
                }
                _ => file.top.set(key, value)?,
            }
        }
        Ok(file)
    }

    /// The file's text.
    #[must_use]
    pub fn to_yaml(&self) -> String {
        let mut fields = self.top.to_mapping();
        if let Some(name) = &self.current_context {
            fields.insert("current_context".into(), name.clone().into());
        }
        if !self.contexts.is_empty() {
            let contexts = self.contexts.iter().map(|(name, entry)| (name.clone().into(), entry.to_mapping().into()));
            fields.insert("contexts".into(), serde_yaml::Value::Mapping(contexts.collect()));
        }
        serde_yaml::to_string(&fields).unwrap_or_default()
    }

    fn holds_token(&self) -> bool {
        self.contexts.values().chain([&self.top]).any(|entry| entry.access_token.is_some())
    }

    /// Whether a name means what stands at the top: [`TOP`] does, where no context is called so.
    #[must_use]
    pub fn is_top(&self, name: &str) -> bool {
        name == TOP && !self.contexts.contains_key(name)
    }

    /// Whether the top names a controller.
    #[must_use]
    pub fn has_top(&self) -> bool {
        self.top.cp_host.is_some()
    }

    /// The context of this name.
    ///
    /// # Errors
    /// Where there is none: names the nearest.
    pub fn context(&self, name: &str) -> Outcome<&Entry> {
        if self.is_top(name) && self.has_top() {
            return Ok(&self.top);
        }
        self.contexts.get(name).ok_or_else(|| {
            let failure = Failure::usage(format!("no context `{name}` in the configuration"));
            let names = self.contexts.keys().map(String::as_str);
            match nearest(name, names.clone()) {
                Some(near) => failure.hint(format!("did you mean `{near}`?")),
                None if self.contexts.is_empty() => {
                    failure.hint("it has no contexts: `octavius config --context NAME --cp-host HOST:PORT` makes one")
                }
                None => failure.hint(format!("it has {}", names.collect::<Vec<_>>().join(", "))),
            }
        })
    }
}

impl Entry {
    fn set(&mut self, key: &str, value: &serde_yaml::Value) -> Result<(), String> {
        use serde_yaml::Value;
        let text = |value: &Value| match value {
            Value::Null => Ok(None),
            Value::String(text) if text.is_empty() => Ok(None),
            Value::String(text) => Ok(Some(text.clone())),
            Value::Number(number) => Ok(Some(number.to_string())),
            _ => Err(format!("`{key}` is not a text")),
        };
        match key.to_ascii_uppercase().as_str() {
            "CP_HOST" => {
                // several addresses may be a list as well
                self.cp_host = match value {
                    Value::Sequence(items) => {
                        let items: Result<Vec<_>, _> = items.iter().map(text).collect();
                        Some(items?.into_iter().flatten().collect::<Vec<_>>().join(","))
                    }
                    value => text(value)?,
                };
            }
            "EMAIL_ID" => self.email_id = text(value)?,
            "ACCESS_TOKEN" => self.access_token = text(value)?,
            "CA_PEM" => self.ca_pem = text(value)?,
            "CLIENT_CERT" => self.client_cert = text(value)?.map(PathBuf::from),
            "CLIENT_KEY" => self.client_key = text(value)?.map(PathBuf::from),
            "SERVER_NAME" => self.server_name = text(value)?,
            "CONNECTION_TIMEOUT_SECS" => {
                self.connection_timeout_secs = match text(value)? {
                    Some(text) => Some(text.parse().map_err(|_| format!("`{key}` is not a whole number of seconds"))?),
                    None => None,
                };
            }
            _ => {
                let hint = nearest(key, KEYS.into_iter().chain(["contexts", "current_context"]));
                return Err(format!(
                    "unknown key `{key}`{}",
                    hint.map(|near| format!("; did you mean `{near}`?")).unwrap_or_default()
                ));
            }
        }
        Ok(())
    }

    fn to_mapping(&self) -> serde_yaml::Mapping {
        let mut fields = serde_yaml::Mapping::new();
        let values = [
            self.cp_host.clone().map(Into::into),
            self.email_id.clone().map(Into::into),
            self.access_token.clone().map(Into::into),
            self.connection_timeout_secs.map(Into::into),
            self.ca_pem.clone().map(Into::into),
            self.client_cert.as_ref().map(|path| path.to_string_lossy().into_owned().into()),
            self.client_key.as_ref().map(|path| path.to_string_lossy().into_owned().into()),
            self.server_name.clone().map(Into::into),
        ];
        for (key, value) in KEYS.into_iter().zip::<[Option<serde_yaml::Value>; 8]>(values) {
            if let Some(value) = value {
                fields.insert(key.into(), value);
            }
        }
        fields
    }
}

/// Where a configuration file was found.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Found {
    /// It was named by a flag or the environment.
    Named,
    /// It lay in the working directory: perhaps of someone else's making.
    Here,
    /// It lay in the user's folder.
    Home,
}

/// A configuration file with its place.
#[derive(Debug, Clone)]
pub struct Located {
    /// Its path.
    pub path: PathBuf,
    /// How it was found.
    pub found: Found,
    /// What it says.
    pub file: ClientFile,
}

/// What a command needs to reach a controller.
#[derive(Clone)]
pub struct Resolved {
    /// Addresses, to be tried in order.
    pub addresses: Vec<Address>,
    /// The token.
    pub token: Option<String>,
    /// Where the token came from: a flag, a variable, a file.
    pub token_source: Option<String>,
    /// The user's address.
    pub email_id: Option<String>,
    /// Longest wait for a controller.
    pub timeout: Duration,
    /// What the controller is called: the context's name, or its addresses.
    pub name: String,
    /// Things that the person should know.
    pub warnings: Vec<String>,
}

impl std::fmt::Debug for Resolved {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Resolved({})", self.name)
    }
}

/// `~/.octavius/octavius_client.yaml`.
#[must_use]
pub fn home_path() -> Option<PathBuf> {
    Some(PathBuf::from(env::path(env::HOME)?).join(".octavius").join(FILE_NAME))
}

/// Finds and reads the configuration file, where there is one.
///
/// # Errors
/// Where the file that was named is missing, a file cannot be understood, or one with a token can be read by others.
pub fn locate(args: &ConnectArgs) -> Outcome<Option<Located>> {
    if let Some(path) = args.config.clone().or_else(|| env::path(env::CONFIG).map(PathBuf::from)) {
        return match read(&path)? {
            Some(file) => Ok(Some(Located { path, found: Found::Named, file })),
            None => Err(Failure::usage(format!("no configuration file at {}", path.display()))
                .hint("`octavius config --config FILE --cp-host HOST:PORT --token-file FILE` writes one")),
        };
    }
    for (path, found) in [(Some(PathBuf::from(FILE_NAME)), Found::Here), (home_path(), Found::Home)] {
        if let Some(path) = path
            && let Some(file) = read(&path)?
        {
            return Ok(Some(Located { path, found, file }));
        }
    }
    Ok(None)
}

/// Reads a configuration file; none where it does not exist.
///
/// # Errors
/// Where it cannot be read or understood, or holds a token and can be read by others.
pub fn read(path: &Path) -> Outcome<Option<ClientFile>> {
    let (text, mode) = match read_with_mode(path) {
        Ok(read) => read,
        Err(error) if matches!(error.kind(), std::io::ErrorKind::NotFound | std::io::ErrorKind::NotADirectory) => {
            return Ok(None);
        }
        Err(error) => return Err(Failure::file("read", path, error)),
    };
    let file = ClientFile::parse(&text).map_err(|problem| Failure::usage(format!("{}: {problem}", path.display())))?;
    if file.holds_token() && mode & 0o077 != 0 {
        return Err(shared(path, mode));
    }
    Ok(Some(file))
}

fn read_with_mode(path: &Path) -> std::io::Result<(String, u32)> {
    use std::os::unix::fs::PermissionsExt as _;
    let mut file = fs::File::open(path)?;
    let mode = file.metadata()?.permissions().mode();
    let mut text = String::new();
    file.read_to_string(&mut text)?;
    Ok((text, mode))
}

fn shared(path: &Path, mode: u32) -> Failure {
    Failure::usage(format!("{} holds a token and can be read by others (mode {:03o})", path.display(), mode & 0o777))
        .hint(format!("chmod 600 {}", path.display()))
}

/// Writes a configuration file that only its owner can read: whole, or not at all.
///
/// # Errors
/// Where it cannot be written.
pub fn write(path: &Path, file: &ClientFile) -> Outcome<()> {
    write_private(path, file.to_yaml().as_bytes())
}

/// Writes a file that only its owner can read: whole, or not at all.
///
/// # Errors
/// Where it cannot be written.
pub fn write_private(path: &Path, bytes: &[u8]) -> Outcome<()> {
    let folder = path.parent().filter(|folder| !folder.as_os_str().is_empty()).unwrap_or(Path::new("."));
    create_private_dir(folder)?;
    let written = (|| {
        let mut temporary = tempfile::NamedTempFile::new_in(folder)?; // 0600 by itself
        temporary.write_all(bytes)?;
        temporary.as_file().sync_all()?;
        temporary.persist(path).map_err(|error| error.error)
    })();
    written.map(|_| ()).map_err(|error| Failure::file("write", path, error))
}

/// Makes a folder and those above it; new ones are their owner's alone.
///
/// # Errors
/// Where that is not possible.
pub fn create_private_dir(path: &Path) -> Outcome<()> {
    use std::os::unix::fs::DirBuilderExt as _;
    fs::DirBuilder::new().recursive(true).mode(0o700).create(path).map_err(|error| Failure::file("make", path, error))
}

/// Reads a token from a file that others cannot read, or from standard input for `-`. A pipe is read once, by whoever was meant to.
///
/// # Errors
/// Where it cannot be read, or others can, or it is empty.
pub fn read_token_file(path: &Path) -> Outcome<String> {
    read_secret(path, "token", |file| match exposed(file) {
        Some(mode) if file.is_file() => Err(shared(path, mode)),
        _ => Ok(()),
    })
}

/// Reads a secret from a file, or from standard input for `-`; `what` says what it is.
///
/// # Errors
/// Where it cannot be read, or is empty.
pub fn read_secret_file(path: &Path, what: &str) -> Outcome<String> {
    read_secret(path, what, |_| Ok(()))
}

fn read_secret(path: &Path, what: &str, check: impl FnOnce(&fs::Metadata) -> Outcome<()>) -> Outcome<String> {
    let unreadable = |error| Failure::file(&format!("read the {what} from"), path, error);
    let mut text = String::new();
    let read = if path == Path::new("-") {
        std::io::stdin().lock().take(TOKEN_FILE_BYTES).read_to_string(&mut text)
    } else {
        let file = fs::File::open(path).map_err(unreadable)?;
        check(&file.metadata().map_err(unreadable)?)?;
        file.take(TOKEN_FILE_BYTES).read_to_string(&mut text)
    };
    read.map_err(unreadable)?;
    let secret = text.trim();
    if secret.is_empty() {
        return Err(Failure::usage(format!("{} holds no {what}", path.display())));
    }
    Ok(secret.to_owned())
}

/// The token that flags or the environment give, and what it came from.
///
/// # Errors
/// Where a token file cannot be read, or the CI system makes no token.
pub fn given_token(args: &ConnectArgs, warnings: &mut Vec<String>) -> Outcome<Option<(String, &'static str)>> {
    if let Some(token) = &args.token {
        warnings.push(
            "others on this machine can read `--token` from the list of processes: use --token-file or OCTAVIUS_TOKEN".into(),
        );
        return Ok(Some((token.trim().to_owned(), "--token")));
    }
    if let Some(path) = &args.token_file {
        return Ok(Some((read_token_file(path)?, "--token-file")));
    }
    if let Some(from) = &args.token_from {
        return Ok(Some((from.get()?, "--token-from")));
    }
    for (name, is_file) in [(env::TOKEN, false), (env::TOKEN_FILE, true)] {
        if let Some(value) = env::get(name) {
            let token = if is_file { read_token_file(Path::new(&value))? } else { value.trim().to_owned() };
            return Ok(Some((token, name)));
        }
    }
    if let Some(from) = env::get(env::TOKEN_FROM) {
        let from: TokenFrom = from.parse().map_err(|problem| Failure::usage(format!("{}: {problem}", env::TOKEN_FROM)))?;
        return Ok(Some((from.get()?, env::TOKEN_FROM)));
    }
    Ok(env::get(env::SEED_ACCESS_TOKEN).map(|token| (token.trim().to_owned(), env::SEED_ACCESS_TOKEN)))
}

/// Puts flags over the environment over the file over the defaults.
///
/// # Errors
/// Where nothing says which controller is meant, or what is said cannot be understood.
pub fn resolve(args: &ConnectArgs) -> Outcome<Resolved> {
    let located = locate(args)?;
    let mut warnings = Vec::new();
    let context = args.context.clone().or_else(|| env::get(env::CONTEXT));
    let (entry, context) = match (&located, context) {
        (None, Some(name)) => return Err(Failure::usage(format!("no configuration file that could hold context `{name}`"))),
        (None, None) => (Entry::default(), None),
        (Some(located), named) => match named.or_else(|| located.file.current_context.clone()) {
            Some(name) => (located.file.context(&name)?.clone(), Some(name)),
            None => (located.file.top.clone(), None),
        },
    };
    let given_host = args.cp_host.clone().or_else(|| env::get(env::CP_HOST)).or_else(|| env::get(env::SEED_CP_HOST));
    let host_is_given = given_host.is_some();
    let Some(host) = given_host.or(entry.cp_host) else {
        return Err(no_configuration(located.as_ref()));
    };
    let given = given_token(args, &mut warnings)?;
    // A repository that was cloned may bring a file that names its own host: no token from elsewhere is sent there.
    let foreign = !host_is_given && located.as_ref().is_some_and(|located| located.found == Found::Here);
    let in_file = located.as_ref().map(|located| located.path.display().to_string());
    let (token, token_source) = match given {
        Some((_, source)) if foreign => {
            warnings.push(format!(
                "the token of {source} is not sent to the host that ./{FILE_NAME} names; pass `--config {FILE_NAME}` where that is meant"
            ));
            (entry.access_token, in_file)
        }
        Some((token, source)) => (Some(token), Some(source.to_owned())),
        None => (entry.access_token, in_file),
    };
    let token_source = token_source.filter(|_| token.is_some());
    let timeout = timeout(args, entry.connection_timeout_secs)?;
    let beside = |path: Option<PathBuf>| {
        let folder = located.as_ref().and_then(|located| located.path.parent());
        path.map(|path| folder.map_or_else(|| path.clone(), |folder| folder.join(&path)))
    };
    let certificates = Certificates::given(args).or(Certificates {
        ca: entry.ca_pem.map(Authorities::Text),
        client_cert: beside(entry.client_cert),
        client_key: beside(entry.client_key),
        server_name: entry.server_name,
    });
    Ok(Resolved {
        addresses: certificates.secure(Address::parse_list(&host)?)?,
        token,
        token_source,
        email_id: args
            .email_id
            .clone()
            .or_else(|| env::get(env::EMAIL_ID))
            .or_else(|| env::get(env::SEED_EMAIL_ID))
            .or(entry.email_id),
        timeout,
        name: context.filter(|_| !host_is_given).unwrap_or(host),
        warnings,
    })
}

/// The longest wait for an answer, as flag, environment or file say; 10 s where none does, or says 0.
///
/// # Errors
/// Where a variable is no whole number.
pub fn timeout(args: &ConnectArgs, in_file: Option<u64>) -> Outcome<Duration> {
    Ok(match args.time_out.map_or_else(given_timeout, |seconds| Ok(Some(seconds)))?.or(in_file) {
        None | Some(0) => DEFAULT_TIMEOUT,
        Some(seconds) => Duration::from_secs(seconds.min(24 * 3600)),
    })
}

/// Seconds to wait that the environment names.
fn given_timeout() -> Outcome<Option<u64>> {
    for name in [env::TIME_OUT, env::SEED_TIMEOUT] {
        if let Some(value) = env::get(name) {
            return value
                .parse()
                .map(Some)
                .map_err(|_| Failure::usage(format!("{name} is \"{value}\", not a whole number of seconds")));
        }
    }
    Ok(None)
}

fn no_configuration(located: Option<&Located>) -> Failure {
    let failure = match located {
        Some(located) => Failure::usage(format!("{} names no controller (CP_HOST)", located.path.display())),
        None => Failure::usage(format!(
            "no controller is configured: neither --cp-host nor OCTAVIUS_CP_HOST nor a file {FILE_NAME} in ./ or ~/.octavius/"
        )),
    };
    failure
        .hint("octavius config --cp-host HOST:PORT --token-file FILE")
        .hint("to try it on this machine: `octavius dev`, then set OCTAVIUS_CONFIG to the file that it names")
}
